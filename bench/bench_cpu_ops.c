/* How fast the CPU's ops move memory, beside copying, and what dispatching one costs.
 *
 *     bench-cpu-ops [WORD]      only rows whose name contains WORD
 *
 * GB/s counts the op's floor bytes: every input read once, every output written once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libtensor/parallel.h"
#include "ops/tenon.h"

#define BYTES ((int64_t)64 << 20)
#define ROUNDS 7
#define CHAIN 1000
#define CHAIN_ROUNDS 200

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- copying ---- */

typedef struct bench_copy {
    const char *from;
    char *to;
} bench_copy;

static void copy_range(void *user, int64_t begin, int64_t end) {
    const bench_copy *copy = user;
    memcpy(copy->to + begin, copy->from + begin, (size_t)(end - begin));
}

/* Bytes read and written per second by memcpy on all cores. */
static double copy_bandwidth(tn_context *cx) {
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *from = tn_zeros(cx, TN_U8, TN_SHAPE(BYTES)), *to = tn_zeros(cx, TN_U8, TN_SHAPE(BYTES));
    double best = 0;
    for (int round = 0; to && round < 2 * ROUNDS; round++) {
        bench_copy copy = { from->data, to->data };
        double start = now_s();
        tn_parallel_for(BYTES, BYTES / tn_threads(cx), copy_range, &copy, tn_threads(cx));
        double rate = 2 * (double)BYTES / (now_s() - start);
        if (rate > best) best = rate;
    }
    tn_scope_end(scope);
    return best;
}

/* ---- one op ---- */

/* Shapes are given for f32; the first axis is scaled so that the first input has 64 MB in every dtype. */
typedef struct bench_case {
    const char *label, *op, *attrs;
    int64_t rows, width; /* of x, and of a second input of the same shape */
    bool pair, weight, bias;
} bench_case;

static const bench_case cases[] = {
    { .label = "add", .op = "add", .rows = 4096, .width = 4096, .pair = true },
    { .label = "mul", .op = "mul", .rows = 4096, .width = 4096, .pair = true },
    { .label = "mul by a row", .op = "mul", .rows = 4096, .width = 4096, .weight = true },
    { .label = "exp", .op = "exp", .rows = 4096, .width = 4096 },
    { .label = "silu", .op = "act", .attrs = "{\"act\": \"silu\"}", .rows = 4096, .width = 4096 },
    { .label = "gelu", .op = "act", .attrs = "{\"act\": \"gelu\"}", .rows = 4096, .width = 4096 },
    { .label = "softmax(-1)", .op = "act", .attrs = "{\"act\": \"softmax\"}", .rows = 16384, .width = 1024 },
    { .label = "softmax(0)", .op = "act", .attrs = "{\"act\": \"softmax\", \"dim\": 0}", .rows = 4096, .width = 4096 },
    { .label = "swiglu", .op = "swiglu", .rows = 4096, .width = 4096 },
    { .label = "dropout", .op = "dropout", .rows = 4096, .width = 4096 },
    { .label = "rms_norm", .op = "rms_norm", .rows = 16384, .width = 1024, .weight = true },
    { .label = "layer_norm", .op = "layer_norm", .rows = 16384, .width = 1024, .weight = true, .bias = true },
};

typedef struct bench_result {
    double forward_s, backward_s;
    int64_t forward_bytes, backward_bytes;
} bench_result;

static int make_inputs(tn_context *cx, const bench_case *bench, tn_dtype dtype, tn_tensor **in) {
    int n = 0;
    int64_t rows = bench->rows * 4 / (int64_t)tn_dtype_size(dtype);
    in[n++] = tn_randn(cx, dtype, TN_SHAPE(rows, bench->width));
    if (bench->pair) in[n++] = tn_randn(cx, dtype, TN_SHAPE(rows, bench->width));
    if (bench->weight) in[n++] = tn_randn(cx, dtype, TN_SHAPE(bench->width));
    if (bench->bias) in[n++] = tn_randn(cx, dtype, TN_SHAPE(bench->width));
    for (int i = 0; i < n; i++) tn_require_grad(in[i], true);
    return n;
}

static double least(double a, double b) { return a < b ? a : b; }

static void run_case(tn_context *cx, const tn_op_def *op, const void *args, tn_tensor **in, int n_in, bench_result *result) {
    tn_tensor *out[TN_OP_MAX_OUTPUTS];
    tn_op_call call;
    if (!tn_op_plan(op, in, n_in, args, &call)) return;
    result->forward_bytes = op->floor_bytes(&call, false);
    result->backward_bytes = op->floor_bytes(&call, true);
    tn_tensor *upstream = tn_randn(cx, call.out_spec[0].dtype, call.out_spec[0].shape);
    result->forward_s = result->backward_s = 1e30;
    for (int round = 0; !tn_failed(cx) && round < ROUNDS; round++) {
        tn_scope *scope = tn_scope_begin(cx);
        double start = now_s();
        tn_apply(op, in, n_in, args, out);
        double between = now_s();
        tn_backward_with(out[0], TN_BACKWARD(.grad = upstream));
        double end = now_s();
        tn_scope_end(scope);
        for (int i = 0; i < n_in; i++) tn_clear_grad(in[i]);
        result->forward_s = least(result->forward_s, between - start);
        result->backward_s = least(result->backward_s, end - between);
    }
}

static void print_rate(int64_t bytes, double seconds, double copy) {
    if (bytes > 0) printf(" %10.1f %6.0f%%", (double)bytes / seconds * 1e-9, 100 * (double)bytes / seconds / copy);
    else printf(" %10s %7s", "passed on", "");
}

static bool bench_op(tn_context *cx, const bench_case *bench, tn_dtype dtype, double copy) {
    const tn_op_def *op = tn_op_find(bench->op);
    int64_t args[TN_OP_MAX_ARGS_BYTES / sizeof(int64_t)];
    char reason[256];
    if (!op) return true;
    if (!tn_op_set_attrs_json(op, args, bench->attrs, reason, sizeof reason)) {
        fprintf(stderr, "bench-cpu-ops: %s: %s\n", bench->label, reason);
        return false;
    }
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *in[TN_OP_MAX_INPUTS] = { NULL };
    bench_result result = { 0 };
    if (make_inputs(cx, bench, dtype, in) > 0) run_case(cx, op, args, in, op->n_inputs, &result);
    if (!tn_failed(cx)) {
        printf("%-14s %-5s %7.0f", bench->label, tn_dtype_name(dtype), (double)tn_bytes(in[0]) / (1 << 20));
        print_rate(result.forward_bytes, result.forward_s, copy);
        print_rate(result.backward_bytes, result.backward_s, copy);
        printf("\n");
    }
    tn_scope_end(scope);
    return !tn_failed(cx);
}

/* ---- dispatch: a chain of additions of one element ---- */

static bool bench_dispatch(tn_context *cx) {
    tn_tensor *x = tn_parameter(cx, TN_F32, TN_SHAPE(1)), *one = tn_full(cx, TN_F32, TN_SHAPE(1), 1);
    double forward = 1e30, backward = 1e30, whole = 1e30;
    for (int round = 0; !tn_failed(cx) && round < CHAIN_ROUNDS; round++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_tensor *y = x;
        double start = now_s();
        for (int i = 0; i < CHAIN; i++) y = tn_add(y, one);
        double between = now_s();
        tn_backward(y);
        double end = now_s();
        tn_scope_end(scope);
        whole = least(whole, now_s() - start);
        forward = least(forward, between - start);
        backward = least(backward, end - between);
        tn_clear_grad(x);
    }
    if (tn_failed(cx)) return false;
    double scale = 1e9 / CHAIN;
    printf("one-element add, ns: forward %.0f, backward %.0f, both with the scope's end %.0f\n", forward * scale, backward * scale,
           whole * scale);
    return true;
}

int main(int argc, char **argv) {
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu", .seed = 1, .history_events = -1 });
    static const tn_dtype dtypes[] = { TN_F32, TN_BF16, TN_F64 };
    double copy = tn_failed(cx) ? 0 : copy_bandwidth(cx);
    bool fine = copy > 0;
    printf("%s: copying %.1f GB/s (read + written)\n", tn_device_detail(cx), copy * 1e-9);
    printf("%-14s %-5s %7s %10s %7s %10s %7s\n", "op", "dtype", "MB", "fwd GB/s", "copy", "bwd GB/s", "copy");
    for (int d = 0; d < TN_COUNT(dtypes); d++)
        for (int i = 0; fine && i < TN_COUNT(cases); i++)
            if (argc < 2 || strstr(cases[i].label, argv[1])) fine = bench_op(cx, &cases[i], dtypes[d], copy);
    fine = fine && bench_dispatch(cx);
    if (!fine) fprintf(stderr, "bench-cpu-ops: %s\n", cx ? tn_error(cx) : "the host has no memory left");
    tn_close(cx);
    return fine ? 0 : 1;
}
