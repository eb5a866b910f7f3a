/* Predicted memory is what a run then takes, and the tape's formulas are what it holds. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "ops/tenon.h"

enum { ROWS = 24, WIDTH = 32 };

/* A step of a small model; user is how many layers it has. */
static bool step(tn_context *cx, void *user) {
    int n_layers = *(int *)user;
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *x = tn_randn(cx, TN_F32, TN_SHAPE(ROWS, WIDTH));
    for (int i = 0; i < n_layers; i++) {
        tn_tensor *w = tn_parameter(cx, TN_F32, TN_SHAPE(WIDTH, WIDTH));
        tn_tensor *norm = tn_parameter(cx, TN_F32, TN_SHAPE(WIDTH));
        x = tn_add(x, tn_act(tn_linear(tn_rms_norm(x, norm, NULL, TN_RMS_NORM()), w, NULL), TN_ACT(.act = TN_SILU)));
    }
    tn_backward(tn_mean(tn_mul(x, x)));
    tn_scope_end(scope);
    return !tn_failed(cx);
}

static void test_prediction_is_what_is_taken(void **unused) {
    (void)unused;
    for (int n_layers = 1; n_layers < 6; n_layers += 2) {
        tn_options options = { .device = tn_test_device(), .seed = 1 };
        tn_memory_stats predicted, measured;
        char reason[256];
        TN_TEST_WANT(tn_predict_memory(&options, step, &n_layers, &predicted, reason, sizeof reason), "%s", reason);
        tn_context *cx = tn_open(&options);
        TN_TEST_WANT(step(cx, &n_layers), "%s", tn_error(cx));
        tn_memory_stats_get(cx, &measured);
        TN_TEST_WANT(predicted.all.allocated.peak == measured.all.allocated.peak &&
                         predicted.all.reserved.peak == measured.all.reserved.peak,
                     "%d layers: predicted %lld, taken %lld", n_layers, (long long)predicted.all.allocated.peak,
                     (long long)measured.all.allocated.peak);
        tn_close(cx);
    }
}

static bool fails(tn_context *cx, void *user) {
    (void)user;
    tn_matmul(tn_zeros(cx, TN_F32, TN_SHAPE(2, 3)), tn_zeros(cx, TN_F32, TN_SHAPE(2, 3)));
    return true;
}

static void test_reasons(void **unused) {
    (void)unused;
    tn_memory_stats stats;
    char reason[256];
    int n_layers = 3;
    TN_TEST_WANT(!tn_predict_memory(&(tn_options){ .device = "cpu" }, fails, NULL, &stats, reason, sizeof reason), "a step that fails");
    TN_TEST_WANT(strstr(reason, "matmul"), "the reason is '%s'", reason);
    TN_TEST_WANT(!tn_predict_memory(&(tn_options){ .device = "cpu", .memory_limit = 4096 }, step, &n_layers, &stats, reason, sizeof reason),
                 "a step beyond the limit");
    TN_TEST_WANT(strstr(reason, "limit") || strstr(reason, "memory"), "the reason is '%s'", reason);
}

static void check_entry(void *user, const tn_tape_entry *entry) {
    TN_TEST_WANT(entry->saved_bytes == entry->formula_bytes, "%s keeps %lld bytes and says %lld", entry->op, (long long)entry->saved_bytes,
                 (long long)entry->formula_bytes);
    ((int64_t *)user)[0]++;
    ((int64_t *)user)[1] += entry->saved_bytes;
}

static tn_tensor *square(void *user, tn_tensor *const *in, int n_in) {
    (void)user, (void)n_in;
    return tn_mul(in[0], in[0]);
}

static void test_tape_holds_what_formulas_say(void **unused) {
    (void)unused;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1 });
    tn_tensor *x = tn_require_grad(tn_randn(cx, TN_F32, TN_SHAPE(ROWS, WIDTH)), true);
    tn_tensor *o = tn_sum(tn_checkpoint(cx, square, NULL, (tn_tensor *[]){ tn_act(x, TN_ACT(.act = TN_GELU)) }, 1));
    int64_t seen[2] = { 0 };
    tn_saved_summary summary;
    tn_tape_visit(cx, check_entry, seen);
    tn_saved_summary_get(cx, &summary);
    TN_TEST_WANT(seen[0] == 3 && seen[1] == summary.ledger_bytes, "%lld calls, %lld bytes of %lld", (long long)seen[0], (long long)seen[1],
                 (long long)summary.ledger_bytes);
    tn_backward(o);
    seen[0] = 0;
    tn_tape_visit(cx, check_entry, seen);
    TN_TEST_WANT(seen[0] == 0, "backward leaves no call behind");
    tn_test_ok(cx);
    tn_close(cx);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prediction_is_what_is_taken),
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_tape_holds_what_formulas_say),
    };
    return tn_test_main("predict", tests, sizeof tests / sizeof *tests, argc, argv);
}
