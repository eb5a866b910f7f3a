/* Every registered op, every sample, every dtype: the registry drives these cases, so that a new op is tested by being there. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "autograd/autograd.h"
#include "harness.h"
#include "libtensor/host_memory.h"
#include "libtensor/memory.h"
#include "op_cases.h"
#include "op_comparisons.h"
#include "ops/registry.h"
#include "outside_op.h"

/* ---- the entry ---- */

static void test_complete(void **state) {
    const op_case *c = *state;
    const char *missing = tn_op_incomplete(c->op);
    TN_TEST_WANT(!missing, "%s lacks %s", c->op->name, missing);
    TN_TEST_WANT(c->op->family && c->op->family[0], "%s names no family", c->op->name);
    for (int i = 0; i < c->op->n_attrs; i++) {
        tn_op_args_buffer args;
        char reason[256] = "";
        const tn_attr_def *attr = &c->op->attrs[i];
        tn_op_default_args(c->op, &args);
        if (attr->default_text)
            TN_TEST_WANT(tn_op_set_attr(c->op, &args, attr->name, attr->default_text, reason, sizeof reason), "the default of %s: %s",
                         attr->name, reason);
        TN_TEST_WANT(attr->offset < c->op->args_bytes, "%s lies outside the args struct", attr->name);
        TN_TEST_WANT(attr->doc && attr->doc[0], "%s has no doc", attr->name);
        for (int k = 0; k < i; k++) TN_TEST_WANT(strcmp(attr->name, c->op->attrs[k].name) != 0, "two attributes are called %s", attr->name);
    }
    for (int i = 0; i < c->op->n_inputs; i++)
        for (int k = 0; k < i; k++)
            TN_TEST_WANT(strcmp(c->op->inputs[i].name, c->op->inputs[k].name) != 0, "two inputs are called %s", c->op->inputs[i].name);
}

static void test_samples_named_once(void **state) {
    const op_case *c = *state;
    for (const tn_sample *a = c->op->samples; a->name; a++)
        for (const tn_sample *b = c->op->samples; b < a; b++)
            TN_TEST_WANT(strcmp(a->name, b->name) != 0, "two samples are called %s", a->name);
}

/* ---- numbers ---- */

static void test_accuracy(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_MASK(c->dtype), tn_compare_with_f64);
}

/* Integers have nothing to be compared with; they run. */
static void run_once(run_how *how) {
    run_results results = tn_run(how);
    tn_run_free(&results);
}

static void test_integers(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_INTS | TN_MASK(TN_BOOL), run_once);
}

static void run_twice(run_how *how) {
    run_results first = tn_run(how), second = tn_run(how);
    tn_run_compare(how, &first, &second, -1, "twice");
    tn_run_free(&first);
    tn_run_free(&second);
}

static void test_deterministic(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, run_twice);
}

static void test_threads(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, tn_compare_threads);
}

/* ---- layouts ---- */

static void test_layouts(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, tn_compare_layouts);
}

static void run_with_broadcast(run_how *how) {
    for (int i = 0; i < tn_sample_inputs_given(how->sample); i++) {
        const tn_sample_input *in = &how->sample->in[i];
        if (!in->present || in->shape.axes == 0 || in->shape.size[0] < 2) continue;
        /* A list of integers, such as where sequences begin, has a meaning that one of them repeated does not. */
        if (in->other_dtype && !tn_dtype_is_float(in->dtype) && in->fill == TN_FILL_LIST) continue;
        how->broadcast_input = i + 1;
        how->broadcast_dense = true;
        tn_run_note(how, "one slice repeated, stored");
        run_results stored = tn_run(how);
        how->broadcast_dense = false;
        tn_compare_layout(how, &stored, "one slice repeated, stride 0");
        tn_run_free(&stored);
    }
}

static void test_broadcast_layout(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, run_with_broadcast);
}

/* ---- which gradients are wanted ---- */

static void run_one_gradient(run_how *how) {
    run_results all = tn_run(how);
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++) {
        if (!all.grad[i].present) continue;
        char what[64];
        snprintf(what, sizeof what, "the gradient of input %d alone", i);
        how->without = ~(1u << i);
        tn_run_note(how, what);
        run_results one = tn_run(how), expected = all;
        for (int k = 0; k < TN_OP_MAX_INPUTS; k++)
            if (k != i) expected.grad[k].present = false;
        tn_run_compare(how, &expected, &one, tn_same_kernel_tolerance(how->dtype), what);
        tn_run_free(&one);
    }
    tn_run_free(&all);
}

static void test_one_gradient(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_FLOATS, run_one_gradient);
}

static void run_without_gradients(run_how *how) {
    run_results with = tn_run(how);
    how->without = ~0u;
    run_results without = tn_run(how);
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++) with.grad[i].present = false;
    tn_run_compare(how, &with, &without, tn_same_kernel_tolerance(how->dtype), "forward alone");
    tn_run_free(&with);
    tn_run_free(&without);
}

static void test_without_gradients(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_FLOATS, run_without_gradients);
}

/* ---- what the tape holds ---- */

static void add_entry(void *user, const tn_saved_entry *entry) { *(int64_t *)user += entry->n_bytes; }

static void compare_ledger(const run_how *how, uint32_t without) {
    run_how these = *how;
    run_call call;
    tn_op_call planned;
    tn_saved_summary summary;
    these.without = without;
    tn_context *cx = tn_run_open(&these);
    tn_scope *scope = tn_scope_begin(cx);
    tn_run_forward(cx, &these, &call);
    TN_TEST_WANT(tn_op_plan(how->op, call.in, call.n_in, &call.args, &planned), "the call can't be planned: %s", tn_error(cx));
    int64_t formula = planned.wants && how->op->saved_bytes ? how->op->saved_bytes(&planned) : 0, visited = 0, of_outputs = 0;
    for (int i = 0; i < how->op->n_outputs && !of_outputs; i++) of_outputs = tn_saved_bytes_of(call.out[i]);
    tn_saved_visit(cx, add_entry, &visited);
    TN_TEST_WANT(tn_saved_summary_get(cx, &summary), "no summary");
    TN_TEST_WANT(formula == of_outputs, "the tape holds %lld bytes, saved_bytes() says %lld (inputs without gradient: bits %x)",
                 (long long)of_outputs, (long long)formula, (unsigned)without & 0xffff);
    TN_TEST_WANT(visited == of_outputs && summary.ledger_bytes == of_outputs, "the ledger says %lld, its summary %lld, the node %lld",
                 (long long)visited, (long long)summary.ledger_bytes, (long long)of_outputs);
    TN_TEST_WANT(call.backward == (planned.wants != 0), "the outputs %s a gradient, but the plan says %x",
                 call.backward ? "have" : "have not", (unsigned)planned.wants);
    tn_run_backward(cx, &these, &call);
    TN_TEST_WANT(tn_saved_summary_get(cx, &summary) && summary.n_entries == 0, "after backward the tape still holds %lld tensors",
                 (long long)summary.n_entries);
    tn_scope_end(scope);
    tn_test_ok(cx);
    tn_close(cx);
}

static void compare_ledgers(run_how *how) {
    compare_ledger(how, 0);
    compare_ledger(how, ~0u);
    for (int i = 0; i < tn_sample_inputs_given(how->sample); i++) {
        compare_ledger(how, 1u << i);
        compare_ledger(how, ~(1u << i));
    }
}

static void test_saved_bytes(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, compare_ledgers);
}

static void check_floor(run_how *how) {
    run_call call;
    tn_op_call planned;
    tn_context *cx = tn_run_open(how);
    tn_scope *scope = tn_scope_begin(cx);
    tn_run_forward(cx, how, &call);
    TN_TEST_WANT(tn_op_plan(how->op, call.in, call.n_in, &call.args, &planned), "the call can't be planned: %s", tn_error(cx));
    int64_t bytes = 0;
    for (int i = 0; i < planned.n_out; i++) bytes += (int64_t)tn_bytes(call.out[i]);
    if (how->op->floor_bytes && !(how->op->flags & TN_OP_VIEW)) {
        TN_TEST_WANT(how->op->floor_bytes(&planned, false) >= bytes, "forward's floor is %lld bytes, but the outputs alone are %lld",
                     (long long)how->op->floor_bytes(&planned, false), (long long)bytes);
        if (planned.wants) TN_TEST_WANT(how->op->floor_bytes(&planned, true) >= 0, "backward's floor is negative");
    }
    tn_scope_end(scope);
    tn_close(cx);
}

static void test_floor_bytes(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, check_floor);
}

/* ---- memory ---- */

static void run_in_debug_mode(run_how *how) {
    run_results plain = tn_run(how);
    how->debug = true;
    run_results guarded = tn_run(how);
    tn_run_compare(how, &plain, &guarded, -1, "with red zones and NaN poison");
    how->layout = LAYOUT_PADDED;
    how->laid_out = ~0u;
    tn_run_note(how, "with red zones, padded inputs");
    run_results padded = tn_run(how);
    tn_run_free(&plain);
    tn_run_free(&guarded);
    tn_run_free(&padded);
}

static void test_red_zones(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, run_in_debug_mode);
}

static int64_t bytes_in_use(const tn_context *cx) {
    tn_memory_stats stats;
    TN_TEST_WANT(tn_memory_stats_get(cx, &stats), "no statistics");
    return stats.all.requested.current;
}

static void return_to_baseline(run_how *how) {
    run_call call;
    int64_t blocks = tn_host_live_blocks();
    tn_context *cx = tn_run_open(how);
    int64_t before = bytes_in_use(cx);
    for (int round = 0; round < 3; round++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_run_forward(cx, how, &call);
        if (round > 0) tn_run_backward(cx, how, &call);
        tn_scope_end(scope);
        tn_test_ok(cx);
        TN_TEST_WANT(bytes_in_use(cx) == before, "%lld bytes stay after the scope, %s", (long long)(bytes_in_use(cx) - before),
                     round ? "forward and backward" : "forward alone");
    }
    tn_close(cx);
    TN_TEST_WANT(tn_host_live_blocks() == blocks, "%lld host blocks stay after closing", (long long)(tn_host_live_blocks() - blocks));
}

static void test_baseline(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, return_to_baseline);
}

static void test_dry_run(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_ANY_DTYPE, tn_compare_with_dry_run);
}

/* ---- calls that must fail ---- */

/* The first sample that is to succeed, in the first dtype from f32 on that it runs in. */
static void choose_good_sample(run_how *how) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .history_events = -1 });
    how->sample = how->op->samples;
    while (how->sample->name && how->sample->error != TN_OK) how->sample++;
    TN_TEST_WANT(how->sample->name, "%s has no sample that is to succeed", how->op->name);
    unsigned mask = tn_sample_dtypes(cx, how->op, how->sample);
    how->dtype = TN_F32;
    while (how->dtype < TN_BOOL && !(mask >> how->dtype & 1)) how->dtype++;
    tn_run_note(how, NULL);
    tn_close(cx);
}

static void fail_as_said(tn_context *cx, const run_how *how) {
    const tn_sample *sample = how->sample;
    run_call call;
    int64_t before = bytes_in_use(cx);
    tn_scope *scope = tn_scope_begin(cx);
    for (int i = 0; i < TN_OP_MAX_OUTPUTS; i++) call.out[i] = NULL;
    if (tn_sample_make(cx, how->op, sample, how->dtype, TN_TEST_SEED, true, call.in, &call.n_in, &call.args)) {
        tn_tensor *result = tn_apply(how->op, call.in, call.n_in, &call.args, call.out);
        if (sample->in_data && strcmp(tn_test_device(), "cpu") != 0 && !tn_failed(cx)) {
            TN_TEST_WANT(tn_synchronize(cx), "%s/%s did harm: %s", how->op->name, sample->name, tn_error(cx));
            tn_scope_end(scope);
            return;
        }
        TN_TEST_WANT(!result && tn_failed(cx), "%s/%s was to fail with %s", how->op->name, sample->name, tn_status_name(sample->error));
        for (int i = 0; i < how->op->n_outputs; i++) TN_TEST_WANT(!call.out[i], "output %d of a failed call is not NULL", i);
    }
    TN_TEST_WANT(strcmp(tn_error_op(cx), how->op->name) == 0, "the error names '%s' as the op: %s", tn_error_op(cx), tn_error(cx));
    tn_test_error(cx, sample->error, sample->message);
    tn_scope_end(scope);
    TN_TEST_WANT(bytes_in_use(cx) == before, "%lld bytes stay after a failed call", (long long)(bytes_in_use(cx) - before));
}

static void run_on_same_context(tn_context *cx, run_how how) {
    run_call call;
    tn_scope *scope = tn_scope_begin(cx);
    choose_good_sample(&how);
    tn_run_forward(cx, &how, &call);
    tn_run_backward(cx, &how, &call);
    tn_scope_end(scope);
    tn_test_ok(cx);
}

static void test_errors(void **state) {
    const op_case *c = *state;
    int64_t blocks = tn_host_live_blocks();
    for (const tn_sample *sample = c->op->samples; sample->name; sample++) {
        if (sample->error == TN_OK) continue;
        run_how how = { .op = c->op, .sample = sample };
        tn_context *cx = tn_run_open(&how);
        unsigned mask = sample->dtypes ? sample->dtypes : TN_FLOATS;
        for (int dtype = 0; dtype < TN_DTYPE_COUNT; dtype++) {
            how.dtype = (tn_dtype)dtype;
            if (!(mask >> dtype & 1)) continue;
            tn_run_note(&how, NULL);
            fail_as_said(cx, &how);
            run_on_same_context(cx, how);
        }
        tn_close(cx);
    }
    TN_TEST_WANT(tn_host_live_blocks() == blocks, "%lld host blocks stay", (long long)(tn_host_live_blocks() - blocks));
}

static bool try_to_run(tn_context *cx, const run_how *how, run_call *call) {
    tn_tensor *roots[TN_OP_MAX_OUTPUTS], *upstream[TN_OP_MAX_OUTPUTS];
    int n_roots = 0;
    if (!tn_apply(how->op, call->in, call->n_in, &call->args, call->out)) return false;
    for (int i = 0; i < how->op->n_outputs; i++) {
        if (!call->out[i] || !tn_requires_grad(call->out[i])) continue;
        roots[n_roots] = call->out[i];
        upstream[n_roots++] = tn_full(cx, call->out[i]->dtype, tn_shape_of(call->out[i]), 1);
    }
    return !tn_failed(cx) && (n_roots == 0 || tn_backward_many(roots, upstream, n_roots, false));
}

/* One run with the n-th host allocation failing: it says so or it succeeds, and leaves nothing behind. True: nothing failed any more. */
static bool survive(const run_how *how, int64_t n) {
    run_call call;
    tn_context *cx = tn_run_open(how);
    tn_scope *scope = tn_scope_begin(cx);
    int64_t before = bytes_in_use(cx);
    tn_host_fail_after(n, false);
    if (tn_sample_make(cx, how->op, how->sample, how->dtype, TN_TEST_SEED, true, call.in, &call.n_in, &call.args))
        try_to_run(cx, how, &call);
    tn_host_fail_after(0, false);
    bool failed = tn_failed(cx);
    if (failed) tn_test_error(cx, TN_ERR_HOST_MEMORY, NULL);
    tn_scope_end(scope);
    TN_TEST_WANT(bytes_in_use(cx) == before, "%lld bytes stay after host allocation %lld failed", (long long)(bytes_in_use(cx) - before),
                 (long long)n);
    run_on_same_context(cx, *how);
    tn_close(cx);
    return !failed;
}

static void test_host_memory(void **state) {
    const op_case *c = *state;
    int64_t blocks = tn_host_live_blocks();
    run_how how = { .op = c->op };
    choose_good_sample(&how);
    int64_t n = 1, quiet = 0;
    /* A failure that something can do without passes unseen, so the end is several quiet rounds. */
    for (; quiet < 3; n++) {
        quiet = survive(&how, n) ? quiet + 1 : 0;
        TN_TEST_WANT(n < 1000, "host allocations never end");
    }
    TN_TEST_WANT(tn_host_live_blocks() == blocks, "%lld host blocks stay", (long long)(tn_host_live_blocks() - blocks));
}

/* ---- device memory running out ---- */

enum { N_FILLERS = 96, FILLER_BYTES = 1024 };

/* Takes what the allocator has reserved, down to the last block, and forbids it more. */
static void fill_up(tn_context *cx, tn_tensor **fillers) {
    tn_memory_stats stats;
    for (int i = 0; i < N_FILLERS; i++) fillers[i] = tn_empty(cx, TN_U8, TN_SHAPE(FILLER_BYTES));
    tn_test_ok(cx);
    TN_TEST_WANT(tn_memory_stats_get(cx, &stats), "no statistics");
    tn_memory_set_limit(cx, (size_t)stats.all.reserved.current);
    for (int64_t bytes = (int64_t)1 << 24; bytes >= 1; bytes /= 2)
        while (tn_empty(cx, TN_U8, TN_SHAPE(bytes)) || (tn_test_error(cx, TN_ERR_MEMORY, "limit"), false)) continue;
}

/* With more and more room, so that every allocation of the call is the failing one once. */
static void test_memory_limit(void **state) {
    const op_case *c = *state;
    run_how how = { .op = c->op };
    run_call call;
    tn_tensor *fillers[N_FILLERS];
    choose_good_sample(&how);
    tn_context *cx = tn_run_open(&how);
    int64_t before = bytes_in_use(cx);
    tn_scope *scope = tn_scope_begin(cx);
    tn_sample_make(cx, how.op, how.sample, how.dtype, TN_TEST_SEED, true, call.in, &call.n_in, &call.args);
    fill_up(cx, fillers);
    bool done = false;
    for (int i = 0; i <= N_FILLERS && !done; i++) {
        int64_t in_use = bytes_in_use(cx);
        tn_scope *attempt = tn_scope_begin(cx);
        done = try_to_run(cx, &how, &call);
        if (!done) tn_test_error(cx, TN_ERR_MEMORY, "limit");
        tn_scope_end(attempt);
        for (int k = 0; k < call.n_in; k++) tn_clear_grad(call.in[k]);
        TN_TEST_WANT(bytes_in_use(cx) == in_use, "%lld bytes stay after running out of memory", (long long)(bytes_in_use(cx) - in_use));
        if (i < N_FILLERS) tn_release(fillers[i]);
    }
    tn_scope_end(scope);
    tn_test_ok(cx);
    TN_TEST_WANT(bytes_in_use(cx) == before, "%lld bytes stay after the scope", (long long)(bytes_in_use(cx) - before));
    tn_close(cx);
}

/* ---- gradients ---- */

static void check_gradient(run_how *how) {
    tn_gradcheck_result result;
    tn_context *cx = tn_run_open(how);
    if (tn_sample_has_gradcheck(cx, how->op, how->sample)) {
        tn_gradcheck_options options = TN_GRADCHECK(.seed = TN_TEST_SEED, .full_limit = 1500, .n_projections = 2);
        TN_TEST_WANT(tn_sample_gradcheck(cx, how->op, how->sample, options, &result), "the check could not be made: %s", tn_error(cx));
        TN_TEST_WANT(result.passed,
                     "d output %d [%lld] / d input %d [%lld]: backward says %.12g, differences %.12g, %.3g of the tolerance; "
                     "tenon-gradcheck '%s/%s' --seed %d checks it alone",
                     result.output, (long long)result.output_index, result.input, (long long)result.input_index, result.analytic,
                     result.numeric, result.worst_share, how->op->name, how->sample->name, TN_TEST_SEED);
    }
    tn_close(cx);
}

static void test_gradcheck(void **state) {
    const op_case *c = *state;
    tn_for_each_run(c->op, TN_MASK(TN_F64), check_gradient);
}

/* ---- the registry as a whole ---- */

static void test_names_unique(void **state) {
    (void)state;
    TN_TEST_WANT(tn_op_count() > 0, "there are no ops");
    for (int i = 0; i < tn_op_count(); i++) {
        TN_TEST_WANT(tn_op_find(tn_op_at(i)->name) == tn_op_at(i), "%s is found as another op", tn_op_at(i)->name);
        for (int k = 0; k < i; k++)
            TN_TEST_WANT(strcmp(tn_op_at(i)->name, tn_op_at(k)->name) != 0, "two ops are called %s", tn_op_at(i)->name);
    }
    TN_TEST_WANT(!tn_op_at(-1) && !tn_op_at(tn_op_count()) && !tn_op_find("no such op") && !tn_op_find(NULL),
                 "an op is found that there is not");
}

static void refuse_without(const char *missing, tn_op_def def) {
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    int n = tn_op_count();
    def.name = def.name ? "outside_incomplete" : NULL;
    TN_TEST_WANT(!tn_op_register(cx, &def), "an op without %s was registered", missing);
    tn_test_error(cx, TN_ERR_ARGUMENT, missing);
    TN_TEST_WANT(tn_op_count() == n, "a refused op counts");
    tn_close(cx);
}

/* The cases of outside_cube show that an op from outside is like the library's own; here is what registration refuses. */
static void test_registering(void **state) {
    (void)state;
    const tn_op_def whole = tn_outside_op;
    tn_op_def def;
#define WITHOUT(words, field)                \
    def = whole;                             \
    memset(&def.field, 0, sizeof def.field); \
    refuse_without(words, def)
    WITHOUT("a name", name);
    WITHOUT("doc", doc);
    WITHOUT("inputs", inputs);
    WITHOUT("outputs", outputs);
    WITHOUT("check()", check);
    WITHOUT("CPU reference", forward);
    WITHOUT("backward", backward);
    WITHOUT("saved-bytes", saved_bytes);
    WITHOUT("floor-bytes", floor_bytes);
    WITHOUT("samples", samples);
#undef WITHOUT
    def = whole;
    def.samples = &whole.samples[3];
    refuse_without("samples", def);
    def = whole;
    def.args_bytes = TN_OP_MAX_ARGS_BYTES + 1;
    refuse_without("args struct", def);

    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    TN_TEST_WANT(!tn_op_register(cx, &tn_outside_op), "a second op of one name was registered");
    tn_test_error(cx, TN_ERR_ARGUMENT, "outside_cube");
    TN_TEST_WANT(!tn_op_register(cx, NULL), "nothing was registered");
    tn_test_error(cx, TN_ERR_ARGUMENT, NULL);
    tn_close(cx);
}

/* ---- one case per op and kind ---- */

static const op_kind kinds[] = {
    { "complete", test_complete, tn_any_op, TN_F64 },
    { "sample-names", test_samples_named_once, tn_any_op, TN_F64 },
    { "f64", test_accuracy, tn_any_op, TN_F64 },
    { "f32", test_accuracy, tn_any_op, TN_F32 },
    { "bf16", test_accuracy, tn_any_op, TN_BF16 },
    { "integers", test_integers, tn_op_takes_integers, TN_I64 },
    { "deterministic", test_deterministic, tn_any_op, TN_F64 },
    { "threads", test_threads, tn_any_op, TN_F64 },
    { "layouts", test_layouts, tn_any_op, TN_F64 },
    { "broadcast-layout", test_broadcast_layout, tn_any_op, TN_F64 },
    { "one-gradient", test_one_gradient, tn_op_has_gradient, TN_F64 },
    { "without-gradients", test_without_gradients, tn_any_op, TN_F64 },
    { "saved-bytes", test_saved_bytes, tn_any_op, TN_F64 },
    { "floor-bytes", test_floor_bytes, tn_any_op, TN_F64 },
    { "red-zones", test_red_zones, tn_any_op, TN_F64 },
    { "baseline", test_baseline, tn_any_op, TN_F64 },
    { "dry-run", test_dry_run, tn_any_op, TN_F64 },
    { "errors", test_errors, tn_any_op, TN_F64 },
    { "memory-limit", test_memory_limit, tn_any_op, TN_F64 },
    { "host-memory", test_host_memory, tn_any_op, TN_F64 },
    { "gradcheck", test_gradcheck, tn_op_has_gradient, TN_F64 },
};

static const struct CMUnitTest more[] = {
    { .name = "registry/names", .test_func = test_names_unique },
    { .name = "registry/registering", .test_func = test_registering },
};

int main(int argc, char **argv) { return tn_op_cases_main("test_registry", kinds, TN_COUNT(kinds), more, TN_COUNT(more), argc, argv); }
