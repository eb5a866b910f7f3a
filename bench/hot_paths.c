/* Paths that every program takes, each once, one after the other, for counting instructions.
 *
 * check_instructions.py runs it under callgrind, which counts what happens inside hot_path_run and writes a file each time it returns.
 * Printed are what the counts depend on (compiler, C library, the instruction set that callgrind shows), then the paths' names.
 * Everything runs on one thread, in fixed sizes with fixed numbers, after a first run that is not counted. */
#include <stdio.h>
#include <string.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include "ops/tenon.h"

#define ROWS 64
#define WIDTH 1024

typedef struct hot_path {
    const char *name;
    /* Fills in[0 .. 4) with what run takes. */
    void (*make)(tn_context *cx, tn_tensor **in);
    void (*run)(tn_context *cx, tn_tensor **in);
} hot_path;

static tn_tensor *leaf(tn_tensor *t) { return tn_require_grad(t, true); }
static tn_tensor *f32(tn_context *cx, tn_shape shape) { return leaf(tn_randn(cx, TN_F32, shape)); }
static tn_tensor *bf16(tn_context *cx, tn_shape shape) { return leaf(tn_randn(cx, TN_BF16, shape)); }

static void rows_f32(tn_context *cx, tn_tensor **in) {
    in[0] = f32(cx, TN_SHAPE(ROWS, WIDTH));
    in[1] = f32(cx, TN_SHAPE(ROWS, WIDTH));
    in[2] = f32(cx, TN_SHAPE(WIDTH));
}

static void rows_bf16(tn_context *cx, tn_tensor **in) {
    in[0] = bf16(cx, TN_SHAPE(ROWS, WIDTH));
    in[1] = bf16(cx, TN_SHAPE(ROWS, WIDTH));
}

static void back(tn_tensor *o, tn_tensor *upstream) { tn_backward_with(o, TN_BACKWARD(.grad = upstream)); }

/* ---- the host's own work ---- */

static void allocate(tn_context *cx, tn_tensor **in) {
    (void)in;
    for (int i = 0; i < 1000; i++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_empty(cx, TN_F32, TN_SHAPE(1 + i % 7, 128));
        tn_empty(cx, TN_F32, TN_SHAPE(4096, 64));
        tn_scope_end(scope);
    }
}

static void small(tn_context *cx, tn_tensor **in) { in[0] = f32(cx, TN_SHAPE(16)); }

static void tape(tn_context *cx, tn_tensor **in) {
    (void)cx;
    tn_tensor *x = in[0];
    for (int i = 0; i < 200; i++) x = tn_mul(x, in[0]);
    tn_backward(tn_sum(x));
}

/* ---- kernels ---- */

static void product(tn_context *cx, tn_tensor **in) {
    (void)cx;
    back(tn_mul(in[0], in[1]), in[1]);
}

static void silu(tn_context *cx, tn_tensor **in) {
    (void)cx;
    back(tn_silu(in[0]), in[1]);
}

static void softmax(tn_context *cx, tn_tensor **in) {
    (void)cx;
    back(tn_softmax(in[0], -1), in[1]);
}

static void rms_norm(tn_context *cx, tn_tensor **in) {
    (void)cx;
    back(tn_rms_norm(in[0], in[2], NULL, TN_RMS_NORM()), in[1]);
}

static void sums(tn_context *cx, tn_tensor **in) {
    (void)cx;
    tn_sum(in[0]);
    tn_sum_over(in[0], TN_REDUCE(.dims = TN_SHAPE(0)));
    tn_sum_over(in[0], TN_REDUCE(.dims = TN_SHAPE(-1)));
}

static void transpose(tn_context *cx, tn_tensor **in) {
    (void)cx;
    tn_contiguous(tn_transpose(in[0], 0, 1));
}

static void widen(tn_context *cx, tn_tensor **in) {
    (void)cx;
    tn_cast(tn_cast(in[0], TN_F32), TN_BF16);
}

static void random_numbers(tn_context *cx, tn_tensor **in) {
    (void)in;
    tn_randn(cx, TN_F32, TN_SHAPE(ROWS, WIDTH));
}

static void classes(tn_context *cx, tn_tensor **in) {
    in[0] = f32(cx, TN_SHAPE(ROWS, WIDTH));
    in[1] = tn_randint(cx, TN_I64, TN_SHAPE(ROWS), 0, WIDTH);
}

static void cross_entropy(tn_context *cx, tn_tensor **in) {
    (void)cx;
    tn_backward(tn_cross_entropy(in[0], in[1], TN_CROSS_ENTROPY()));
}

static void positions(tn_context *cx, tn_tensor **in) {
    in[0] = bf16(cx, TN_SHAPE(2, 64, 4, 64));
    in[1] = tn_randn(cx, TN_F32, TN_SHAPE(4, 32));
    in[2] = bf16(cx, TN_SHAPE(2, 64, 4, 64));
}

static void lrpe(tn_context *cx, tn_tensor **in) {
    (void)cx;
    back(tn_lrpe(in[0], in[1], NULL, TN_LRPE(.kind = TN_ROTATE, .act = TN_SILU)), in[2]);
}

static void heads(tn_context *cx, tn_tensor **in) {
    for (int i = 0; i < 3; i++) in[i] = f32(cx, TN_SHAPE(1, 128, 2, 32));
    in[3] = tn_fill(tn_empty(cx, TN_F32, TN_SHAPE(2)), -0.05);
}

static void causal(tn_context *cx, tn_tensor **in) {
    (void)cx;
    back(tn_linear_attention(in[0], in[1], in[2], TN_LINEAR_ATTENTION(.log_decay = in[3], .causal = true)), in[2]);
}

static void attention(tn_context *cx, tn_tensor **in) {
    (void)cx;
    back(tn_attention(in[0], in[1], in[2], TN_ATTENTION(.causal = true)), in[2]);
}

static void nothing(tn_context *cx, tn_tensor **in) {
    (void)cx;
    (void)in;
}

static const hot_path paths[] = {
    { "allocate and free", nothing, allocate },
    { "200 ops recorded and walked back", small, tape },
    { "mul f32", rows_f32, product },
    { "mul bf16", rows_bf16, product },
    { "silu f32", rows_f32, silu },
    { "softmax f32", rows_f32, softmax },
    { "softmax bf16", rows_bf16, softmax },
    { "rms_norm f32", rows_f32, rms_norm },
    { "sums f32", rows_f32, sums },
    { "transpose f32", rows_f32, transpose },
    { "casts bf16", rows_bf16, widen },
    { "normal numbers", nothing, random_numbers },
    { "cross_entropy f32", classes, cross_entropy },
    { "lrpe rotate bf16", positions, lrpe },
    { "causal linear attention f32", heads, causal },
    { "causal attention f32", heads, attention },
};

/* What is counted. callgrind knows it by its name. */
__attribute__((noinline)) void hot_path_run(const hot_path *path, tn_context *cx, tn_tensor **in);
void hot_path_run(const hot_path *path, tn_context *cx, tn_tensor **in) {
    tn_scope *scope = tn_scope_begin(cx);
    path->run(cx, in);
    tn_scope_end(scope);
}

/* The first time fills pools and caches. Under its own name, so that it is not counted. */
static void warm_up(const hot_path *path, tn_context *cx, tn_tensor **in) {
    tn_scope *scope = tn_scope_begin(cx);
    path->run(cx, in);
    tn_scope_end(scope);
    for (int i = 0; i < 4; i++)
        if (in[i]) tn_clear_grad(in[i]);
}

/* What the counts depend on besides the code. */
static void print_surroundings(const tn_context *cx) {
#ifdef __clang__
    const char *compiler = "clang";
#else
    const char *compiler = "gcc";
#endif
#ifdef __GLIBC__
    const char *library = gnu_get_libc_version();
#else
    const char *library = "unknown";
#endif
    const char *instructions = strrchr(tn_device_detail(cx), ' ');
    printf("%s %s " BENCH_OPTIMIZATION ", C library %s,%s\n", compiler, __VERSION__, library,
           instructions ? instructions : " unknown processor");
}

int main(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu", .seed = 1337, .threads = 1 });
    print_surroundings(cx);
    for (int i = 0; i < TN_COUNT(paths); i++) {
        tn_tensor *in[4] = { NULL };
        tn_scope *scope = tn_scope_begin(cx);
        paths[i].make(cx, in);
        warm_up(&paths[i], cx, in);
        hot_path_run(&paths[i], cx, in);
        tn_scope_end(scope);
        puts(paths[i].name);
    }
    if (tn_failed(cx)) fprintf(stderr, "bench-hot-paths: %s\n", tn_error(cx));
    int code = tn_failed(cx) ? 1 : 0;
    tn_close(cx);
    return code;
}
