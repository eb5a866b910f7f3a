/* Checkpoints that something happened to: neither a kill at any moment nor damage to any byte is missed. */
#include "checkpoint_run.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

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

static const struct CMUnitTest cases[] = { CASE(killed_at_each_stage), CASE(killed_at_any_moment), CASE(damage_anywhere), CASE(messages) };

int main(int argc, char **argv) { return run_in_folder("test_checkpoint_damage", cases, sizeof cases / sizeof *cases, argc, argv); }
