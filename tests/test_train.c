/* tenon-train and tenon-generate: configs, resumed runs, and that generation token by token is the model that was trained. */
#include "harness.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "examples/train_budget.h"
#include "examples/train_step.h"

#define TENON_TRAIN TN_TEST_BUILD "/examples/tenon-train"
#define TENON_GENERATE TN_TEST_BUILD "/examples/tenon-generate"

static char folder[64], said[4096];

/* ---- running programs ---- */

static char *path_in(const char *name) {
    static char paths[8][256];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static char *read_all(const char *path, size_t *n_bytes) {
    FILE *stream = fopen(path, "rb");
    TN_TEST_WANT(stream, "can't read %s", path);
    fseek(stream, 0, SEEK_END);
    *n_bytes = (size_t)ftell(stream);
    rewind(stream);
    char *bytes = calloc(*n_bytes + 1, 1);
    TN_TEST_WANT(bytes && fread(bytes, 1, *n_bytes, stream) == *n_bytes, "can't read %s", path);
    fclose(stream);
    return bytes;
}

/* Its exit code, or 128 + signal; what it wrote to either stream is in `said`. */
static int run(const char *const *arguments) {
    const char *output = path_in("output");
    pid_t child = fork();
    if (child == 0) {
        int to = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(to, STDOUT_FILENO);
        dup2(to, STDERR_FILENO);
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    int status = 0;
    TN_TEST_WANT(child > 0 && waitpid(child, &status, 0) == child, "can't run %s", arguments[0]);
    size_t n;
    char *text = read_all(output, &n);
    snprintf(said, sizeof said, "%s", text);
    free(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void want_code(int code, const char *const *arguments, const char *words) {
    int got = run(arguments);
    TN_TEST_WANT(got == code, "exit code %d, wanted %d; it said: %s", got, code, said);
    TN_TEST_WANT(!words || strstr(said, words), "wanted '%s', it said: %s", words, said);
}

/* A small run on the test's text, on one thread; `out` below the test's folder. */
#define TRAIN(code, words, out, ...)                                                                                                       \
    do {                                                                                                                                   \
        char out_option[300], data_option[300];                                                                                            \
        snprintf(out_option, sizeof out_option, "--out=%s", path_in(out));                                                                 \
        snprintf(data_option, sizeof data_option, "--data=%s", path_in("text"));                                                           \
        const char *device_option[] = { "--device", tn_test_device() };                                                                    \
        want_code(code,                                                                                                                    \
                  (const char *const[]){ TENON_TRAIN, out_option, data_option, device_option[0], device_option[1], "--threads=1",          \
                                         "--layers=2", "--heads=2", "--width=32", "--context=24", "--batch=4", "--steps=20", "--warmup=4", \
                                         "--eval_batches=2", "--log_every=5", __VA_ARGS__, NULL },                                         \
                  words);                                                                                                                  \
    } while (0)

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/tenon-train-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    FILE *text = fopen(path_in("text"), "w");
    for (int i = 0; text && i < 400; i++) fprintf(text, "line %d of a text that repeats itself, %d times in all.\n", i, i * i % 97);
    return text && fclose(text) == 0 ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* ---- configs ---- */

static void a_config_says_what_is_wrong(void **state) {
    (void)state;
    static const char *const wrong[][2] = { { "{\"stepz\": 5}", "unknown key \"stepz\"" },
                                            { "{\"steps\": \"5\"}", "\"steps\" wants a whole number, got \"5\"" },
                                            { "{\"steps\": 5.5}", "\"steps\" wants a whole number" },
                                            { "{\"lr\": true}", "\"lr\" wants a number" },
                                            { "{\"tied\": 1}", "\"tied\" wants true or false" },
                                            { "{\"dtype\": \"f16\"}", "\"dtype\" wants one of" },
                                            { "[]", "JSON object" },
                                            { "{", ":1:" } };
    char config_option[300];
    snprintf(config_option, sizeof config_option, "--config=%s", path_in("config.json"));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        FILE *config = fopen(path_in("config.json"), "w");
        fputs(wrong[i][0], config);
        fclose(config);
        want_code(2, (const char *const[]){ TENON_TRAIN, config_option, NULL }, wrong[i][1]);
    }
    want_code(2, (const char *const[]){ TENON_TRAIN, "--widht=3", NULL }, "--widht");
    want_code(2, (const char *const[]){ TENON_TRAIN, "--width=three", NULL }, "--width wants a whole number");
    want_code(2, (const char *const[]){ TENON_TRAIN, "--width=0", NULL }, "width = 0");
    want_code(2, (const char *const[]){ TENON_TRAIN, "--model=linear,lstm", "--task=copy", NULL }, "linear,lstm");
    want_code(2, (const char *const[]){ TENON_TRAIN, "--heads=3", "--task=copy", NULL }, "heads");
    want_code(2, (const char *const[]){ TENON_TRAIN, NULL }, "nothing to learn from");
    want_code(0, (const char *const[]){ TENON_TRAIN, "--help", NULL }, "--weight_decay");
    want_code(0, (const char *const[]){ TENON_TRAIN, "--version", NULL }, "tenon-train");
}

static void a_config_survives_json(void **state) {
    (void)state;
    train_config first, second;
    char reason[256];
    train_config_defaults(&first);
    first.width = 96, first.lr = 3e-4, first.tied = 0, first.model = "tpa";
    json_t *object = train_config_to_json(&first);
    train_config_defaults(&second);
    TN_TEST_WANT(train_config_from_json(&second, object, reason, sizeof reason), "%s", reason);
    assert_int_equal(second.width, 96);
    assert_true(second.lr == 3e-4 && second.tied == 0 && strcmp(second.model, "tpa") == 0);
    assert_null(train_config_fixed_difference(&first, &second));
    second.context++;
    assert_string_equal(train_config_fixed_difference(&first, &second), "context");
    json_decref(object);
    train_config_free(&second);
}

static void a_schedule_rises_and_falls(void **state) {
    (void)state;
    train_config c;
    train_config_defaults(&c);
    c.steps = 110, c.warmup = 10, c.lr = 1, c.min_lr = 0.1, c.stable = 0.5;
    for (int schedule = TRAIN_COSINE; schedule <= TRAIN_WSD; schedule++) {
        c.schedule = schedule;
        assert_true(train_config_lr(&c, 0) < 0.1 && train_config_lr(&c, 9) < 1);
        assert_true(train_config_lr(&c, 10) == 1);
        assert_true(fabs(train_config_lr(&c, 110) - (schedule == TRAIN_CONSTANT ? 1 : 0.1)) < 1e-12);
    }
    assert_true(train_config_lr(&c, 60) == 1 && fabs(train_config_lr(&c, 85) - 0.55) < 1e-12);
}

/* ---- runs ---- */

static void want_same_file(const char *a, const char *b, const char *name) {
    char left[300], right[300];
    size_t n_left, n_right;
    snprintf(left, sizeof left, "%s/step-00000020/%s", path_in(a), name);
    snprintf(right, sizeof right, "%s/step-00000020/%s", path_in(b), name);
    char *x = read_all(left, &n_left), *y = read_all(right, &n_right);
    TN_TEST_WANT(n_left == n_right && memcmp(x, y, n_left) == 0, "%s and %s differ", left, right);
    free(x);
    free(y);
}

static void want_same_run(const char *a, const char *b) {
    want_same_file(a, b, "model.safetensors");
    want_same_file(a, b, "optimizer.safetensors");
}

/* 20 steps straight; 10, killed while the next checkpoint is written, and 10 more. */
static void a_killed_run_goes_on_bit_for_bit(void **state) {
    (void)state;
    static const char *const stages[] = { "0", "3", "6" };
    TRAIN(0, NULL, "straight", "--dropout=0.1");
    TRAIN(0, NULL, "again", "--dropout=0.1");
    want_same_run("straight", "again");
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        char out[16];
        snprintf(out, sizeof out, "killed-%s", stages[i]);
        TRAIN(0, "steps 10", out, "--dropout=0.1", "--stop_after=10");
        setenv("TENON_TEST_KILL_CHECKPOINT", stages[i], 1);
        TRAIN(137, "goes on after step 10", out, "--dropout=0.1", "--checkpoint_every=5", "--eval_every=0", "--resume");
        unsetenv("TENON_TEST_KILL_CHECKPOINT");
        TRAIN(0, "goes on after step 10", out, "--dropout=0.1", "--resume");
        want_same_run("straight", out);
    }
}

static void a_run_is_not_overwritten(void **state) {
    (void)state;
    TRAIN(0, NULL, "kept", "--stop_after=5");
    TRAIN(2, "--resume", "kept", "--stop_after=5");
    TRAIN(2, "width", "kept", "--resume", "--width=64");
    TRAIN(0, "goes on after step 5", "kept", "--resume");
    char command[300];
    snprintf(command, sizeof command, "truncate -s -1 %s/step-00000020/model.safetensors", path_in("kept"));
    assert_int_equal(system(command), 0);
    TRAIN(2, "model.safetensors", "kept", "--resume");
}

static double loss_at(const char *out, int64_t step) {
    char path[300];
    size_t n;
    snprintf(path, sizeof path, "%s/log.jsonl", path_in(out));
    char *text = read_all(path, &n);
    double loss = NAN;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *object = json_loads(line, 0, NULL);
        TN_TEST_WANT(object, "no JSON: %s", line);
        static const char *const wanted[] = { "loss", "lr", "grad_norm", "tok_s", "ms" };
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) assert_true(json_is_number(json_object_get(object, wanted[i])));
        if (json_integer_value(json_object_get(object, "step")) == step) loss = json_number_value(json_object_get(object, "loss"));
        json_decref(object);
    }
    free(text);
    TN_TEST_WANT(isfinite(loss), "no step %lld in %s", (long long)step, path);
    return loss;
}

static void parts_of_a_step_add_up(void **state) {
    (void)state;
    TRAIN(0, NULL, "whole", "--batch=8");
    TRAIN(0, NULL, "parts", "--batch=4", "--accumulate=2");
    double whole = loss_at("whole", 20), parts = loss_at("parts", 20);
    TN_TEST_WANT(fabs(whole - parts) < 1e-4 * whole, "loss %.6f of whole steps, %.6f of parts", whole, parts);
    TN_TEST_WANT(whole < loss_at("whole", 1) - 0.3, "the loss stays at %g", whole);
}

/* ---- activations made again ---- */

static void what_runs_again_gives_the_same_bits(void **state) {
    (void)state;
    static const char *const ways[] = { "attention", "mlp", "block", "every-2", "every-3:2", "block:1+mlp", "offload", "offload:1+block" };
#define ALIKE "--model=linear,tpa,softmax", "--layers=3", "--dropout=0.1", "--accumulate=2", "--checkpoint_every=20", "--eval_every=0"
    TRAIN(0, NULL, "kept", ALIKE);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        char way[32];
        snprintf(way, sizeof way, "--recompute=%s", ways[i]);
        TRAIN(0, NULL, ways[i], ALIKE, way);
        want_same_run("kept", ways[i]);
    }
    if (strcmp(tn_test_device(), "cpu") == 0) { /* elsewhere workspaces of a size of their own come on top */
        TRAIN(0, "recompute=", "bounded", ALIKE, "--activation-budget=900000");
        want_same_run("kept", "bounded");
    }
    TRAIN(2, "recompute = blocks", "wrong", "--recompute=blocks");
    TRAIN(2, "recompute = every-0", "wrong", "--recompute=every-0");
    TRAIN(2, "wanted one of them", "wrong", "--recompute=mlp", "--activation_budget=1000000");
    TRAIN(1, "at least", "wrong", "--activation_budget=1000");
}

/* Loss and memory of the second of two steps. */
static double second_step(const train_config *c, int64_t *bytes) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 5, .threads = 1 });
    tn_data_options options = train_config_data(c);
    tn_data *data = tn_data_open(cx, &options);
    tn_data_info info = tn_data_info_of(data);
    model m;
    train_stepper stepper;
    double loss = 0, norm = 0;
    model_init(&m, cx, c, &info);
    TN_TEST_WANT(train_stepper_init(&stepper, &m, data) && train_step(&stepper, 0) && train_step_measured(&stepper, 1, bytes) &&
                     train_step_results(&stepper, &loss, &norm),
                 "%s", tn_error(cx));
    train_stepper_free(&stepper);
    tn_data_close(data);
    tn_close(cx);
    return loss;
}

static void a_budget_is_kept(void **state) {
    (void)state;
    static const double shares[] = { 1, 0.9, 0.75, 0.6, 0.5 };
    char reason[512];
    train_config c;
    train_config_defaults(&c);
    c.task = TRAIN_TASK_COPY, c.layers = 6, c.width = 64, c.dropout = 0.1, c.graph = 0, c.device = tn_test_device(), c.threads = 1;
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    tn_data_options options = train_config_data(&c);
    tn_data *data = tn_data_open(cx, &options);
    int64_t without, bytes;
    double loss = second_step(&c, &without), work = -1;
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        train_budget chosen;
        c.recompute = "none";
        c.activation_budget = (int64_t)(shares[i] * (double)without * (strcmp(tn_test_device(), "cpu") ? 1.02 : 1));
        TN_TEST_WANT(train_budget_choose(&c, data, &chosen, reason, sizeof reason), "%s", reason);
        assert_true(i > 0 ? chosen.more_work > 0 : strcmp(chosen.recompute, "none") == 0);
        assert_true(chosen.more_work >= work && chosen.more_work < 0.35);
        work = chosen.more_work;
        c.recompute = chosen.recompute;
        assert_true(second_step(&c, &bytes) == loss);
        TN_TEST_WANT(bytes <= c.activation_budget, "%s takes %lld of %lld bytes, predicted %lld", chosen.recompute, (long long)bytes,
                     (long long)c.activation_budget, (long long)chosen.bytes);
    }
    tn_data_close(data);
    tn_close(cx);
}

static void every_mixer_and_task_learns(void **state) {
    (void)state;
    TRAIN(0, NULL, "mixed", "--model=linear,tpa,softmax", "--layers=3", "--decay=data", "--lrpe=learned", "--tied=false", "--schedule=wsd");
    assert_true(loss_at("mixed", 20) < loss_at("mixed", 1) - 0.2);
    TRAIN(0, NULL, "wide", "--dtype=bf16", "--model=tpa,linear");
    assert_true(loss_at("wide", 20) < loss_at("wide", 1) - 0.2);
    char out_option[300];
    snprintf(out_option, sizeof out_option, "--out=%s", path_in("shapes"));
    want_code(0,
              (const char *const[]){ TENON_TRAIN, out_option, "--task=shapes", "--device", tn_test_device(), "--threads=1", "--width=16",
                                     "--heads=2", "--batch=16", "--steps=20", "--warmup=1", "--eval_batches=1",
                                     "--model=linear,tpa,softmax", "--layers=3", NULL },
              NULL);
    loss_at("shapes", 20);
}

/* ---- generation ---- */

static void text_is_generated(void **state) {
    (void)state;
    char checkpoint[300], first[sizeof said];
    TRAIN(0, NULL, "writer", "--model=linear,tpa", "--lr=1e-2", "--steps=40");
    snprintf(checkpoint, sizeof checkpoint, "--checkpoint=%s", path_in("writer"));
    const char *const arguments[] = { TENON_GENERATE, checkpoint, "--prompt=line", "--tokens=20",    "--top-k=5",
                                      "--top-p=0.9",  "--seed=3", "--device",      tn_test_device(), NULL };
    want_code(0, arguments, "line");
    memcpy(first, said, sizeof first);
    want_code(0, arguments, NULL);
    assert_string_equal(first, said);
    want_code(1, (const char *const[]){ TENON_GENERATE, checkpoint, "--prompt=\x01", NULL }, "U+0001");
    want_code(2, (const char *const[]){ TENON_GENERATE, "--checkpoint=/nowhere", NULL }, "/nowhere");
    want_code(2, (const char *const[]){ TENON_GENERATE, NULL }, "--checkpoint");
}

/* Logits after 13 tokens: all at once, and 4 + 9 x 1. */
static void compare_steps_with_whole(const char *mixer, int decay) {
    enum { TOKENS = 13, FIRST = 4, VOCAB = 17 };
    train_config c;
    train_config_defaults(&c);
    c.model = mixer, c.layers = 2, c.heads = 2, c.width = 32, c.decay = decay, c.shift = decay == TRAIN_DECAY_DATA;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 5 });
    model m;
    model_init(&m, cx, &c, &(tn_data_info){ .vocab = VOCAB });
    tn_no_grad_begin(cx);
    tn_tensor *ids = tn_randint(cx, TN_I64, TN_SHAPE(2, TOKENS), 0, VOCAB);
    model_cache whole[2] = { { .room = TOKENS }, { .room = TOKENS } }, steps[2] = { { .room = TOKENS }, { .room = TOKENS } };
    double *wanted = tn_test_doubles(model_next_logits(&m, ids, 0, whole));
    tn_tensor *logits = model_next_logits(&m, tn_contiguous(tn_narrow(ids, 1, 0, FIRST)), 0, steps);
    for (int64_t i = FIRST; i < TOKENS; i++) logits = model_next_logits(&m, tn_contiguous(tn_narrow(ids, 1, i, 1)), i, steps);
    double *got = tn_test_doubles(logits);
    tn_test_close(wanted, got, 2 * VOCAB, 1e-4, mixer);
    for (int i = 0; i < 2; i++) model_cache_free(&whole[i]), model_cache_free(&steps[i]);
    free(wanted);
    free(got);
    tn_test_ok(cx);
    tn_close(cx);
}

static void token_by_token_is_the_same_model(void **state) {
    (void)state;
    compare_steps_with_whole("linear", TRAIN_DECAY_CONSTANT);
    compare_steps_with_whole("linear", TRAIN_DECAY_DATA);
    compare_steps_with_whole("tpa", TRAIN_DECAY_NONE);
    compare_steps_with_whole("softmax", TRAIN_DECAY_NONE);
}

#define IN_FOLDER(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
static const struct CMUnitTest cases[] = {
    IN_FOLDER(a_config_says_what_is_wrong),
    cmocka_unit_test(a_config_survives_json),
    cmocka_unit_test(a_schedule_rises_and_falls),
    IN_FOLDER(a_killed_run_goes_on_bit_for_bit),
    IN_FOLDER(a_run_is_not_overwritten),
    IN_FOLDER(parts_of_a_step_add_up),
    IN_FOLDER(what_runs_again_gives_the_same_bits),
    cmocka_unit_test(a_budget_is_kept),
    IN_FOLDER(every_mixer_and_task_learns),
    IN_FOLDER(text_is_generated),
    cmocka_unit_test(token_by_token_is_the_same_model),
};
TN_TEST_MAIN("train", cases)
