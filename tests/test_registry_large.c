/* Every registered op on large inputs. Samples are small, so loops over whole vectors and over several threads hardly run in them. Here
 * one size of a sample grows wherever it occurs, as if sizes were names of axes; what check() then refuses is left out. */
#include "harness.h"

#include <string.h>

#include "op_cases.h"
#include "op_comparisons.h"

enum { LARGE_ELEMENTS = 60000, MOST_LARGE_PER_SAMPLE = 3, MOST_LARGE_PER_OP = 6 };

static double elements_of(const tn_sample *sample) {
    double total = 0;
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++) {
        double n = sample->in[i].present;
        for (int axis = 0; axis < sample->in[i].shape.axes; axis++) n *= (double)sample->in[i].shape.size[axis];
        total += n;
    }
    return total;
}

static tn_sample with_size(const tn_sample *sample, int64_t size, int64_t larger) {
    tn_sample grown = *sample;
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++)
        for (int axis = 0; axis < grown.in[i].shape.axes; axis++)
            if (grown.in[i].shape.size[axis] == size) grown.in[i].shape.size[axis] = larger;
    return grown;
}

static bool is_accepted(tn_context *cx, const tn_op_def *op, const tn_sample *sample, tn_dtype dtype) {
    tn_tensor *in[TN_OP_MAX_INPUTS];
    tn_op_args_buffer args;
    tn_op_call call;
    int n_in;
    tn_scope *scope = tn_scope_begin(cx);
    bool accepted = tn_sample_make(cx, op, sample, dtype, TN_TEST_SEED, false, in, &n_in, &args) && tn_op_plan(op, in, n_in, &args, &call);
    tn_clear_error(cx);
    tn_scope_end(scope);
    return accepted;
}

/* An odd size if the op takes it, so that no vector comes out even; else a multiple. */
static bool grow(tn_context *cx, const tn_op_def *op, const tn_sample *sample, tn_dtype dtype, int64_t size, tn_sample *grown) {
    for (int64_t factor = 2; factor < LARGE_ELEMENTS; factor += factor / 2) {
        *grown = with_size(sample, size, factor * size + 1);
        if (elements_of(grown) < LARGE_ELEMENTS) continue;
        if (elements_of(grown) > 4.0 * LARGE_ELEMENTS) return false;
        if (is_accepted(cx, op, grown, dtype)) return true;
        *grown = with_size(sample, size, factor * size);
        return is_accepted(cx, op, grown, dtype);
    }
    return false;
}

static int sizes_of(const tn_sample *sample, int64_t *sizes, int most) {
    int n = 0;
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++)
        for (int axis = 0; sample->in[i].present && axis < sample->in[i].shape.axes; axis++) {
            int64_t size = sample->in[i].shape.size[axis];
            bool known = size < 2;
            for (int k = 0; k < n; k++) known |= sizes[k] == size;
            if (!known && n < most) sizes[n++] = size;
        }
    return n;
}

static void for_each_large_run(const tn_op_def *op, tn_dtype dtype, void (*body)(run_how *how)) {
    int n_runs = 0;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .history_events = -1 });
    for (const tn_sample *sample = op->samples; sample->name && n_runs < MOST_LARGE_PER_OP; sample++) {
        int64_t sizes[MOST_LARGE_PER_SAMPLE];
        if (sample->error != TN_OK || !(tn_sample_dtypes(cx, op, sample) >> dtype & 1)) continue;
        int n_sizes = sizes_of(sample, sizes, MOST_LARGE_PER_SAMPLE);
        for (int i = 0; i < n_sizes && n_runs < MOST_LARGE_PER_OP; i++) {
            tn_sample grown;
            if (!grow(cx, op, sample, dtype, sizes[i], &grown)) continue;
            run_how how = { .op = op, .sample = &grown, .dtype = dtype };
            tn_run_note(&how, "grown");
            body(&how);
            n_runs++;
        }
    }
    tn_close(cx);
}

static void test_large_accuracy(void **state) {
    const op_case *c = *state;
    for_each_large_run(c->op, c->dtype, tn_compare_with_f64);
}

static void check_large_gradient(run_how *how) {
    tn_gradcheck_result result;
    tn_context *cx = tn_run_open(how);
    if (tn_sample_has_gradcheck(cx, how->op, how->sample)) {
        tn_gradcheck_options options = TN_GRADCHECK(.seed = TN_TEST_SEED, .full_limit = 1, .n_projections = 1);
        TN_TEST_WANT(tn_sample_gradcheck(cx, how->op, how->sample, options, &result), "the check could not be made: %s", tn_error(cx));
        TN_TEST_WANT(result.passed, "d output %d / d input %d: backward says %.12g, differences %.12g, %.3g of the tolerance",
                     result.output, result.input, result.analytic, result.numeric, result.worst_share);
    }
    tn_close(cx);
}

/* f32 and bf16 are compared with f64 cut at the same places; this compares f64 with the function. */
static void test_large_gradcheck(void **state) {
    const op_case *c = *state;
    for_each_large_run(c->op, TN_F64, check_large_gradient);
}

static void test_large_threads(void **state) {
    const op_case *c = *state;
    for_each_large_run(c->op, TN_F32, tn_compare_threads);
    for_each_large_run(c->op, TN_BF16, tn_compare_threads);
}

static void run_large_layouts(run_how *how) {
    run_results dense = tn_run(how);
    how->laid_out = ~0u;
    how->layout = how->upstream_layout = LAYOUT_PERMUTED;
    tn_compare_layout(how, &dense, "inputs and upstream gradients permuted");
    how->layout = how->upstream_layout = LAYOUT_PADDED;
    tn_compare_layout(how, &dense, "inputs and upstream gradients padded");
    tn_run_free(&dense);
}

static void test_large_layouts(void **state) {
    const op_case *c = *state;
    for_each_large_run(c->op, TN_F32, run_large_layouts);
}

static void test_large_dry_run(void **state) {
    const op_case *c = *state;
    for_each_large_run(c->op, TN_BF16, tn_compare_with_dry_run);
}

/* Among so many numbers of few bits the largest is there twice. */
static bool has_smooth_gradient(const tn_op_def *op) {
    static const char *const others[] = { "max", "min", "topk" };
    for (int i = 0; i < TN_COUNT(others); i++)
        if (strcmp(op->name, others[i]) == 0) return false;
    return tn_op_has_gradient(op);
}

static const op_kind kinds[] = {
    { "f32", test_large_accuracy, tn_any_op, TN_F32 },     { "bf16", test_large_accuracy, tn_any_op, TN_BF16 },
    { "threads", test_large_threads, tn_any_op, TN_F32 },  { "layouts", test_large_layouts, tn_any_op, TN_F32 },
    { "dry-run", test_large_dry_run, tn_any_op, TN_BF16 }, { "gradcheck", test_large_gradcheck, has_smooth_gradient, TN_F64 },
};

int main(int argc, char **argv) { return tn_op_cases_main("test_registry_large", kinds, TN_COUNT(kinds), NULL, 0, argc, argv); }
