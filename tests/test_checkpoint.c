/* Checkpoints: what goes in comes out, training goes on bit for bit, and neither a kill at any moment nor damage to any byte is missed. */
#include "harness.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "examples/checkpoint.h"
#include "examples/checkpoint_files.h"
#include "libtensor/host_memory.h"
#include "ops/tenon.h"

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof(array)[0]))

static char folder[64], run[80];

/* A little model with its optimizer, and the data position that goes with it. */
typedef struct training {
    tn_context *cx;
    tn_params *params;
    tn_tensor *weight, *bias;
    tn_adamw *opt;
    tn_vocabulary *vocabulary;
    json_t *config;
    run_checkpoint_state state;
} training;

/* One thread: a process that has started more can't go on in a fork. */
static training begin(uint64_t seed) {
    training t = { .cx = tn_open(&(tn_options){ .device = "cpu", .seed = seed, .threads = 1 }) };
    t.params = tn_params_new(t.cx);
    t.weight = tn_params_add(t.params, tn_fill_xavier_uniform(tn_parameter(t.cx, TN_F32, TN_SHAPE(3, 4)), 1), 0, "weight");
    t.bias = tn_params_add(t.params, tn_fill_uniform(tn_parameter(t.cx, TN_BF16, TN_SHAPE(3)), -1, 1), 1, "bias");
    t.opt = tn_adamw_new(t.params, TN_ADAMW(.lr = 0.01));
    t.vocabulary = tn_vocabulary_characters(t.cx, "a z\xc3\xa4\n", 6);
    t.config = json_pack("{s:s, s:i, s:f}", "model", "linear", "layers", 4, "lr", 0.1 + 0.2);
    t.state = (run_checkpoint_state){ .best_loss = NAN, .config = t.config };
    tn_test_ok(t.cx);
    return t;
}

static void end(training *t) {
    tn_vocabulary_free(t->vocabulary);
    json_decref(t->config);
    tn_close(t->cx);
}

/* A step whose input comes from the context's random stream. */
static void step(training *t) {
    tn_scope *scope = tn_scope_begin(t->cx);
    tn_tensor *y = tn_add(tn_linear(tn_randn(t->cx, TN_F32, TN_SHAPE(5, 4)), t->weight, NULL), tn_cast(t->bias, TN_F32));
    tn_backward(tn_mean(tn_mul(y, y)));
    tn_adamw_step(t->opt);
    tn_zero_grad(t->opt);
    tn_scope_end(scope);
    tn_test_ok(t->cx);
    t->state.step++;
    t->state.data_row += 5;
}

static bool save(training *t, int keep, bool best) {
    return run_checkpoint_save(t->cx, &(run_checkpoint_args){ .folder = run,
                                                              .params = t->params,
                                                              .optimizer = t->opt,
                                                              .vocabulary = t->vocabulary,
                                                              .state = &t->state,
                                                              .keep = keep,
                                                              .best = best });
}

static bool resume(training *t, const char *path) {
    run_checkpoint *checkpoint = run_checkpoint_open(t->cx, path);
    bool fine = run_checkpoint_load(checkpoint, t->params, t->opt) && run_checkpoint_restore_random(checkpoint, t->cx);
    if (fine) {
        t->state.step = run_checkpoint_state_of(checkpoint)->step;
        t->state.data_row = run_checkpoint_state_of(checkpoint)->data_row;
    }
    run_checkpoint_close(checkpoint);
    return fine;
}

static void same_weights(const training *a, const training *b) {
    for (int64_t i = 0; i < tn_params_count(a->params); i++) {
        unsigned char x[64], y[64];
        size_t n_bytes = tn_bytes(tn_params_at(a->params, i));
        assert_true(tn_to_data(tn_params_at(a->params, i), x, n_bytes) && tn_to_data(tn_params_at(b->params, i), y, n_bytes));
        assert_memory_equal(x, y, n_bytes);
    }
}

/* ---- the folder ---- */

static void command(const char *format) {
    char text[512];
    snprintf(text, sizeof text, format, run);
    TN_TEST_WANT(system(text) == 0, "%s", text);
}

static int set_up(void **state) {
    (void)state;
    snprintf(run, sizeof run, "%s/run", folder);
    command("rm -rf '%s'");
    return 0;
}

static const char *in_run(const char *name) {
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", run, name);
    return path;
}

static int compare_names(const void *a, const void *b) { return strcmp(a, b); }

static void add_name(void *user, const char *name) {
    char(*names)[32] = user;
    for (int i = 0; i < 16; i++)
        if (!names[i][0]) {
            snprintf(names[i], sizeof names[i], "%s", name);
            return;
        }
}

/* The names in the run's folder in order, with spaces between. */
static const char *listed(void) {
    static char all[512];
    char names[16][32] = { "" };
    tn_folder_visit(run, add_name, names);
    int n = 0;
    while (n < 16 && names[n][0]) n++;
    qsort(names, (size_t)n, sizeof names[0], compare_names);
    all[0] = '\0';
    for (int i = 0; i < n; i++) snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? " " : "", names[i]);
    return all;
}

static unsigned char *read_all(const char *path, size_t *n_bytes) {
    FILE *stream = fopen(path, "rb");
    unsigned char *bytes = malloc(1 << 16);
    TN_TEST_WANT(stream && bytes, "can't read %s", path);
    *n_bytes = fread(bytes, 1, 1 << 16, stream);
    fclose(stream);
    return bytes;
}

static void write_all(const char *path, const void *bytes, size_t n_bytes) {
    remove(path); /* some file systems flush a file that is written over */
    FILE *stream = fopen(path, "wb");
    TN_TEST_WANT(stream && fwrite(bytes, 1, n_bytes, stream) == n_bytes && fclose(stream) == 0, "can't write %s", path);
}

/* ---- what goes in comes out ---- */

static void round_trip(void **state) {
    (void)state;
    training a = begin(UINT64_C(0xfedcba9876543210)), b = begin(2);
    a.state.more = json_pack("{s:s}", "note", "kept");
    a.state.best_loss = 1.0 / 3;
    step(&a);
    step(&a);
    assert_false(run_checkpoint_exists(run));
    assert_true(save(&a, 3, false));
    assert_true(run_checkpoint_exists(run));
    assert_string_equal(listed(), "step-00000002");
    run_checkpoint *checkpoint = run_checkpoint_open(b.cx, run);
    tn_test_ok(b.cx);
    const run_checkpoint_state *read = run_checkpoint_state_of(checkpoint);
    assert_true(read->step == 2 && read->data_row == 10 && read->threads == 1 && read->best_loss == 1.0 / 3);
    assert_string_equal(read->device, "cpu");
    assert_true(json_equal(read->config, a.config) && json_equal(read->more, a.state.more));
    tn_rng_state random = tn_rng_get(a.cx);
    assert_true(read->random.seed == random.seed && read->random.counter == random.counter);
    const tn_vocabulary *vocabulary = run_checkpoint_vocabulary(checkpoint);
    size_t n_bytes = 0;
    assert_true(tn_vocabulary_count(vocabulary) == 5 && memcmp(tn_vocabulary_text(vocabulary, 4, &n_bytes), "\xc3\xa4", 2) == 0);
    assert_true(run_checkpoint_load(checkpoint, b.params, NULL));
    same_weights(&a, &b);
    run_checkpoint_close(checkpoint);
    json_decref(a.state.more);
    end(&a);
    end(&b);
}

static void same_bits_after_resuming(void **state) {
    (void)state;
    training straight = begin(11), first = begin(11), second = begin(12);
    for (int i = 0; i < 20; i++) step(&straight);
    for (int i = 0; i < 10; i++) step(&first);
    assert_true(save(&first, 1, false));
    assert_true(resume(&second, in_run("step-00000010")));
    for (int i = 0; i < 10; i++) step(&second);
    assert_int_equal(second.state.data_row, straight.state.data_row);
    same_weights(&straight, &second);
    end(&straight);
    end(&first);
    end(&second);
}

static void last_few_and_best(void **state) {
    (void)state;
    training t = begin(3), b = begin(4);
    for (int i = 1; i <= 6; i++) {
        step(&t);
        assert_true(save(&t, 2, false));
        if (i == 2 || i == 4) assert_true(save(&t, 2, true));
    }
    assert_string_equal(listed(), "best step-00000005 step-00000006");
    assert_true(resume(&b, in_run("best")));
    assert_int_equal(b.state.step, 4);
    /* A step saved again takes the place of the first; an earlier step leaves later ones alone. */
    assert_true(save(&t, 2, false));
    assert_true(save(&b, 2, false));
    assert_string_equal(listed(), "best step-00000004 step-00000005 step-00000006");
    assert_true(resume(&b, run));
    assert_int_equal(b.state.step, 6);
    same_weights(&t, &b);
    end(&t);
    end(&b);
}

/* ---- kills ---- */

/* In a process of its own: resumes, makes a step and saves, again and again; killed at this stage of the save, if there is one. */
static void child(const char *stage, int n_saves) {
    if (stage) setenv("TENON_TEST_KILL_CHECKPOINT", stage, 1);
    training t = begin(5);
    bool fine = !run_checkpoint_exists(run) || resume(&t, run);
    for (int i = 0; fine && i < n_saves; i++) {
        step(&t);
        fine = save(&t, 2, false) && save(&t, 2, true);
    }
    _exit(fine ? 0 : 1);
}

static int run_child(const char *stage, int n_saves, int kill_after_us) {
    int status = 0;
    pid_t pid = fork();
    TN_TEST_WANT(pid >= 0, "fork failed");
    if (pid == 0) child(stage, n_saves);
    if (kill_after_us) {
        usleep((useconds_t)kill_after_us);
        kill(pid, SIGKILL);
    }
    waitpid(pid, &status, 0);
    return status;
}

/* After a kill the newest checkpoint is whole, and it is that of a run that was never killed. */
static int64_t check_after_kill(int64_t least, int64_t most) {
    training t = begin(6), straight = begin(5);
    TN_TEST_WANT(resume(&t, run), "%s", tn_error(t.cx));
    TN_TEST_WANT(t.state.step >= least && t.state.step <= most, "step %d, wanted %d to %d", (int)t.state.step, (int)least, (int)most);
    while (straight.state.step < t.state.step) step(&straight);
    same_weights(&t, &straight);
    int64_t at = t.state.step;
    end(&t);
    end(&straight);
    return at;
}

static void killed_at_each_stage(void **state) {
    (void)state;
    assert_int_equal(run_child(NULL, 3, 0), 0);
    int64_t at = 3;
    int n_stages = 0;
    for (;; n_stages++) {
        char stage[16];
        snprintf(stage, sizeof stage, "%d", n_stages);
        tn_test_note("stage %d", n_stages);
        int status = run_child(stage, 1, 0);
        if (WIFEXITED(status)) break;
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        at = check_after_kill(at, at + 1);
    }
    assert_true(n_stages >= 10);
    assert_int_equal(run_child(NULL, 1, 0), 0);
    assert_null(strstr(listed(), "."));
}

static void killed_at_any_moment(void **state) {
    (void)state;
    assert_int_equal(run_child(NULL, 1, 0), 0);
    int64_t at = 1;
    for (int i = 0; i < 25; i++) {
        int status = run_child(NULL, 1000000, 2000 + 1700 * i % 20000);
        assert_true(WIFSIGNALED(status));
        at = check_after_kill(at, INT64_MAX);
    }
    assert_int_equal(run_child(NULL, 1, 0), 0);
    check_after_kill(at + 1, at + 1);
    assert_null(strstr(listed(), "."));
}

/* ---- damage ---- */

static void refused(const char *what, tn_status status, const char *words) {
    training t = begin(9);
    tn_test_note("%s", what);
    const char *before = strdup(listed());
    run_checkpoint *checkpoint = run_checkpoint_open(t.cx, run);
    TN_TEST_WANT(checkpoint == NULL, "opened all the same");
    if (status) tn_test_error(t.cx, status, words);
    assert_true(t.state.step == 0 && strcmp(listed(), before) == 0);
    free((char *)before);
    end(&t);
}

static void damage_anywhere(void **state) {
    (void)state;
    static const char *const files[] = { "model.safetensors", "optimizer.safetensors", "vocabulary.json", "state.json", "COMPLETE" };
    training t = begin(7);
    step(&t);
    assert_true(save(&t, 1, false));
    for (int64_t i = 0; i < COUNT(files); i++) {
        char name[64], what[128];
        snprintf(name, sizeof name, "step-00000001/%s", files[i]);
        size_t n_bytes = 0;
        unsigned char *bytes = read_all(in_run(name), &n_bytes);
        for (size_t n = 0; n<n_bytes; n += n_bytes> 300 ? 7 : 1) {
            snprintf(what, sizeof what, "%s cut to %zu bytes", files[i], n);
            write_all(in_run(name), bytes, n);
            refused(what, TN_OK, NULL);
        }
        for (size_t at = 0; at<n_bytes; at += n_bytes> 300 ? 3 : 1) {
            snprintf(what, sizeof what, "%s changed at byte %zu", files[i], at);
            bytes[at] ^= (unsigned char)(1 << at % 8);
            write_all(in_run(name), bytes, n_bytes);
            bytes[at] ^= (unsigned char)(1 << at % 8);
            refused(what, TN_OK, NULL);
        }
        remove(in_run(name));
        snprintf(what, sizeof what, "%s missing", files[i]);
        refused(what, TN_OK, NULL);
        write_all(in_run(name), bytes, n_bytes);
        free(bytes);
    }
    training again = begin(8);
    assert_true(resume(&again, run));
    end(&again);
    end(&t);
}

static void messages(void **state) {
    (void)state;
    training t = begin(7);
    refused("no folder", TN_ERR_IO, "there is no such folder");
    command("mkdir '%s'");
    refused("empty", TN_ERR_IO, "no complete checkpoint");
    command("mkdir '%s/step-00000009'");
    refused("a step without anything", TN_ERR_IO, "no complete checkpoint");
    command("rmdir '%s/step-00000009'");
    step(&t);
    assert_true(save(&t, 1, false));
    size_t n_bytes = 0;
    unsigned char *model = read_all(in_run("step-00000001/model.safetensors"), &n_bytes);
    write_all(in_run("step-00000001/model.safetensors"), model, n_bytes - 1);
    refused("cut", TN_ERR_FORMAT, "model.safetensors: truncated: ");
    model[n_bytes - 1] ^= 1;
    write_all(in_run("step-00000001/model.safetensors"), model, n_bytes);
    refused("changed", TN_ERR_FORMAT, "model.safetensors: damaged: its CRC-32C is");
    write_all(in_run("step-00000001/state.json"), "{}", 2);
    refused("foreign", TN_ERR_FORMAT, "damaged: state.json is not the one");
    free(model);
    assert_true(save(&t, 1, false)); /* heals it */
    step(&t);
    assert_true(save(&t, 2, false));
    command("rm '%s/step-00000002/COMPLETE'");
    training back = begin(1);
    assert_true(resume(&back, run));
    assert_int_equal(back.state.step, 1);
    assert_false(resume(&back, in_run("step-00000002")));
    tn_test_error(back.cx, TN_ERR_FORMAT, "not a complete checkpoint");
    end(&back);
    end(&t);
}

/* A sound checkpoint of another model, or without an optimizer. */
static void another_model(void **state) {
    (void)state;
    training t = begin(1);
    step(&t);
    t.state.config = json_object();
    assert_true(run_checkpoint_save(t.cx, &(run_checkpoint_args){ .folder = run, .params = t.params, .state = &t.state }));
    json_decref(t.state.config);
    assert_false(resume(&t, run));
    tn_test_error(t.cx, TN_ERR_FORMAT, "saved without an optimizer");
    tn_params_add(t.params, tn_parameter(t.cx, TN_F32, TN_SHAPE(2)), 0, "scale");
    run_checkpoint *checkpoint = run_checkpoint_open(t.cx, run);
    assert_null(run_checkpoint_vocabulary(checkpoint));
    assert_false(run_checkpoint_load(checkpoint, t.params, NULL));
    tn_test_error(t.cx, TN_ERR_FORMAT, "has no tensor scale");
    run_checkpoint_close(checkpoint);
    end(&t);
}

static void unwritable(void **state) {
    (void)state;
    training t = begin(1);
    write_all(run, "x", 1);
    assert_false(save(&t, 1, false));
    tn_test_error(t.cx, TN_ERR_IO, NULL);
    command("rm '%s'");
    step(&t);
    assert_true(save(&t, 1, false));
    step(&t);
    struct rlimit before, small = { 300, RLIM_INFINITY };
    getrlimit(RLIMIT_FSIZE, &before);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    bool saved = save(&t, 1, false);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    assert_false(saved);
    tn_test_error(t.cx, TN_ERR_IO, "File too large");
    assert_string_equal(listed(), "step-00000001");
    assert_true(resume(&t, run));
    t.state.config = NULL;
    assert_false(save(&t, 1, false));
    tn_test_error(t.cx, TN_ERR_ARGUMENT, "JSON objects");
    end(&t);
}

/* Whichever of the library's allocations fails: an error, nothing half written, and the checkpoint before is still there. */
static void without_host_memory(void **state) {
    (void)state;
    training t = begin(1), back = begin(2);
    step(&t);
    assert_true(save(&t, 1, false));
    step(&t);
    bool done = false;
    for (int64_t n = 1; !done; n++) {
        tn_host_fail_after(n, n % 2);
        done = save(&t, 1, false);
        tn_host_fail_after(0, false);
        if (!done) tn_test_error(t.cx, TN_ERR_HOST_MEMORY, NULL);
        assert_string_equal(listed(), done ? "step-00000002" : "step-00000001");
    }
    done = false;
    for (int64_t n = 1; !done; n++) {
        tn_host_fail_after(n, n % 2);
        done = resume(&back, run);
        tn_host_fail_after(0, false);
        if (!done) tn_test_error(back.cx, TN_ERR_HOST_MEMORY, NULL);
    }
    same_weights(&t, &back);
    end(&t);
    end(&back);
}

static void checksum(void **state) {
    (void)state;
    assert_int_equal(tn_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(tn_crc32c(tn_crc32c(0, "12345", 5), "6789", 4), 0xe3069283);
}

#define CASE(function) \
    { #function, function, set_up, NULL, NULL }

static const struct CMUnitTest cases[] = {
    CASE(round_trip),           CASE(same_bits_after_resuming), CASE(last_few_and_best), CASE(killed_at_each_stage),
    CASE(killed_at_any_moment), CASE(damage_anywhere),          CASE(messages),          CASE(another_model),
    CASE(unwritable),           CASE(without_host_memory),      CASE(checksum),
};

int main(int argc, char **argv) {
    snprintf(folder, sizeof folder, "/tmp/tenon-test.XXXXXX");
    if (!mkdtemp(folder)) return perror(folder), 1;
    int code = tn_test_main("test_checkpoint", cases, sizeof cases / sizeof *cases, argc, argv);
    char text[128];
    snprintf(text, sizeof text, "rm -rf '%s'", folder);
    return system(text) == 0 ? code : 1;
}
