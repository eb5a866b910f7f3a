/* Checkpoints: what goes in comes out, training goes on bit for bit, and what can't be written or read says so. */
#include "checkpoint_run.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "libtensor/host_memory.h"

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

static const struct CMUnitTest cases[] = { CASE(round_trip), CASE(same_bits_after_resuming), CASE(last_few_and_best), CASE(another_model),
                                           CASE(unwritable), CASE(without_host_memory),      CASE(checksum) };

int main(int argc, char **argv) { return run_in_folder("test_checkpoint", cases, sizeof cases / sizeof *cases, argc, argv); }
