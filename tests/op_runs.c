#include "op_runs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "libtensor/bf16.h"

int tn_sample_inputs_given(const tn_sample *sample) {
    int n = 0;
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++)
        if (sample->in[i].present) n = i + 1;
    return n;
}

/* ---- saying what runs ---- */

void tn_run_note(const run_how *how, const char *what) {
    char shapes[256] = "";
    size_t at = 0;
    for (int i = 0; i < TN_OP_MAX_INPUTS && at < sizeof shapes; i++) {
        const tn_sample_input *in = &how->sample->in[i];
        if (!in->present) continue;
        at += (size_t)snprintf(shapes + at, sizeof shapes - at, "%s[", at ? " " : "");
        for (int axis = 0; axis < in->shape.axes && at < sizeof shapes; axis++)
            at += (size_t)snprintf(shapes + at, sizeof shapes - at, "%s%lld", axis ? "," : "", (long long)in->shape.size[axis]);
        if (at < sizeof shapes) at += (size_t)snprintf(shapes + at, sizeof shapes - at, "]");
    }
    tn_test_note("%s/%s %s, inputs %s, attrs %s, seed %d%s%s", how->op->name, how->sample->name, tn_dtype_name(how->dtype), shapes,
                 how->sample->attrs ? how->sample->attrs : "{}", TN_TEST_SEED, what ? ", " : "", what ? what : "");
}

/* ---- layouts ---- */

/* Where the elements of a tensor of this shape lie in its storage. */
static int64_t lay_out(run_layout layout, const tn_shape *shape, int64_t *stride, int64_t *offset) {
    int64_t next = layout == LAYOUT_STRIDED ? 2 : 1;
    *offset = layout == LAYOUT_DENSE ? 0 : 3;
    for (int i = 0; i < shape->axes; i++) {
        int axis = layout == LAYOUT_PERMUTED ? i : shape->axes - 1 - i;
        stride[axis] = next;
        next *= shape->size[axis];
        if (layout == LAYOUT_PADDED && i == 0) next += 5;
    }
    return *offset + next + 2;
}

/* t's values in another layout; the gaps hold NaN, so that a kernel that reads them shows. */
static tn_tensor *in_layout(tn_tensor *t, run_layout layout) {
    int64_t stride[TN_MAX_AXES], offset;
    tn_shape shape = tn_shape_of(t);
    if (layout == LAYOUT_DENSE) return t;
    int64_t n_stored = lay_out(layout, &shape, stride, &offset);
    tn_tensor *storage = tn_full(t->cx, t->dtype, TN_SHAPE(n_stored), tn_dtype_is_float(t->dtype) ? (double)NAN : 1);
    return tn_assign(tn_alias(storage, shape, stride, offset), t);
}

/* The first slice of t's first axis, repeated: with stride 0, or stored. */
static tn_tensor *broadcast_first_axis(tn_tensor *t, bool stored) {
    int64_t stride[TN_MAX_AXES];
    for (int i = 0; i < t->axes; i++) stride[i] = i ? t->stride[i] : 0;
    tn_tensor *repeated = tn_alias(t, tn_shape_of(t), stride, 0);
    return stored ? tn_assign(tn_empty(t->cx, t->dtype, tn_shape_of(t)), repeated) : repeated;
}

/* ---- running ---- */

tn_context *tn_run_open(const run_how *how) {
    tn_context *cx = tn_open(&(tn_options){
        .device = how->device ? how->device : tn_test_device(), .seed = TN_TEST_SEED, .threads = how->threads, .debug = how->debug });
    tn_test_ok(cx);
    return cx;
}

/* Promotes what has the dtype of the run (or goes with it) to f64. */
static tn_tensor *promoted(tn_tensor *t, const tn_sample_input *given) {
    if (given->other_dtype || !tn_dtype_is_float(t->dtype)) return t;
    return tn_assign(tn_empty(t->cx, TN_F64, tn_shape_of(t)), t);
}

static void prepare_inputs(const run_how *how, run_call *call, uint32_t leaves) {
    for (int i = 0; i < call->n_in; i++) {
        tn_tensor *t = call->in[i];
        if (!t) continue;
        if (how->wide_reference) t = promoted(t, &how->sample->in[i]);
        if (how->broadcast_input == i + 1) t = broadcast_first_axis(t, how->broadcast_dense);
        if (how->laid_out >> i & 1) t = in_layout(t, how->layout);
        if (leaves >> i & 1) tn_require_grad(t, true);
        call->in[i] = t;
    }
}

void tn_run_forward(tn_context *cx, const run_how *how, run_call *call) {
    uint32_t leaves = 0;
    tn_rng_set(cx, (tn_rng_state){ TN_TEST_SEED, 0 });
    tn_sample_make(cx, how->op, how->sample, how->dtype, TN_TEST_SEED, true, call->in, &call->n_in, &call->args);
    tn_test_ok(cx);
    for (int i = 0; i < call->n_in; i++) {
        if (!tn_requires_grad(call->in[i])) continue;
        tn_require_grad(call->in[i], false);
        if (!(how->without >> i & 1)) leaves |= 1u << i;
    }
    prepare_inputs(how, call, leaves);
    tn_test_ok(cx);
    tn_apply(how->op, call->in, call->n_in, &call->args, call->out);
    tn_test_ok(cx);
    call->backward = false;
    for (int i = 0; i < how->op->n_outputs; i++) call->backward |= call->out[i] && tn_requires_grad(call->out[i]);
}

/* Normal numbers that every float dtype can hold, so that all runs of a sample get the same upstream gradient. */
static tn_tensor *upstream_like(const tn_tensor *out, int output) {
    double *values = malloc((size_t)out->numel * sizeof *values + 1);
    uint64_t state = TN_TEST_SEED + (uint64_t)output;
    for (int64_t i = 0; values && i < out->numel; i++) {
        double sum = -6;
        for (int k = 0; k < 12; k++) {
            state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            sum += (double)(state >> 11) * 0x1p-53;
        }
        values[i] = (double)tn_bf16_to_f32(tn_f64_to_bf16(sum));
    }
    tn_tensor *wide = values ? tn_from_data(out->cx, TN_F64, tn_shape_of(out), values) : NULL;
    free(values);
    tn_tensor *upstream = tn_assign(tn_empty(out->cx, out->dtype, tn_shape_of(out)), wide);
    tn_release(wide);
    return upstream;
}

void tn_run_backward(tn_context *cx, const run_how *how, run_call *call) {
    tn_tensor *roots[TN_OP_MAX_OUTPUTS], *upstream[TN_OP_MAX_OUTPUTS];
    int n_roots = 0;
    if (!call->backward) return;
    for (int i = 0; i < how->op->n_outputs; i++) {
        if (!call->out[i] || !tn_requires_grad(call->out[i]) || how->mute_outputs >> i & 1) continue;
        roots[n_roots] = call->out[i];
        upstream[n_roots++] = in_layout(upstream_like(call->out[i], i), how->upstream_layout);
    }
    tn_test_ok(cx);
    if (n_roots) tn_backward_many(roots, upstream, n_roots, false);
    tn_test_ok(cx);
}

static run_values read_values(const tn_tensor *t) {
    if (!t) return (run_values){ .present = false };
    return (run_values){ .present = true, .dtype = t->dtype, .shape = tn_shape_of(t), .n = t->numel, .v = tn_test_doubles(t) };
}

run_results tn_run(const run_how *how) {
    run_results results = { .backward = false };
    run_call call;
    tn_context *cx = how->cx ? how->cx : tn_run_open(how);
    tn_scope *scope = tn_scope_begin(cx);
    tn_run_forward(cx, how, &call);
    for (int i = 0; i < how->op->n_outputs; i++) results.out[i] = read_values(call.out[i]);
    tn_run_backward(cx, how, &call);
    for (int i = 0; i < call.n_in; i++) results.grad[i] = read_values(tn_grad(call.in[i]));
    results.backward = call.backward;
    if (how->debug) tn_memory_check(cx);
    tn_scope_end(scope);
    tn_test_ok(cx);
    if (cx != how->cx) tn_close(cx);
    return results;
}

void tn_run_free(run_results *results) {
    for (int i = 0; i < TN_OP_MAX_OUTPUTS; i++) free(results->out[i].v);
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++) free(results->grad[i].v);
    *results = (run_results){ .backward = false };
}

/* ---- comparing ---- */

static void compare_bits(const run_values *expected, const run_values *actual, const char *what) {
    for (int64_t i = 0; i < expected->n; i++)
        TN_TEST_WANT(memcmp(&expected->v[i], &actual->v[i], sizeof(double)) == 0 || (isnan(expected->v[i]) && isnan(actual->v[i])),
                     "%s: wanted equal bits; element %lld is %.17g, wanted %.17g", what, (long long)i, actual->v[i], expected->v[i]);
}

/* A result of few bits can't be nearer than those allow: a cast to bf16 is as coarse in an f64 run. */
static double tolerance_for(const run_values *actual, double tolerance) {
    double coarse = actual->dtype == TN_BF16 ? 2.5e-2 : actual->dtype == TN_F32 ? 3e-5 : 0;
    return tolerance < coarse && tolerance >= 3e-5 ? coarse : tolerance;
}

static void compare_values(const run_values *expected, const run_values *actual, double tolerance, const char *what) {
    TN_TEST_WANT(expected->present == actual->present, "%s is %s in one run only", what, "present");
    if (!expected->present) return;
    TN_TEST_WANT(expected->n == actual->n, "%s has %lld elements in one run and %lld in the other", what, (long long)expected->n,
                 (long long)actual->n);
    if (tolerance < 0) compare_bits(expected, actual, what);
    else tn_test_close(expected->v, actual->v, expected->n, tolerance_for(actual, tolerance), what);
}

void tn_run_compare(const run_how *how, const run_results *expected, const run_results *actual, double tolerance, const char *what) {
    const tn_op_def *op = how->op;
    char name[256];
    tn_run_note(how, what);
    for (int i = 0; i < op->n_outputs; i++) {
        snprintf(name, sizeof name, "out.%s", op->outputs[i].name);
        compare_values(&expected->out[i], &actual->out[i], tolerance, name);
    }
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++) {
        const tn_input_def *input = &op->inputs[i < op->n_inputs ? i : op->n_inputs - 1];
        snprintf(name, sizeof name, "grad.%s (input %d)", input->name, i);
        compare_values(&expected->grad[i], &actual->grad[i], tolerance, name);
    }
}
