/* How fast the CPU's copies, vector functions, random numbers and matrix products are, beside memcpy and OpenBLAS.
 *
 *     bench-cpu-primitives [WORD] [THREADS]      only groups whose name contains WORD: copy, function, random, gemm, batch */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libtensor/blas.h"
#include "libtensor/cpu_primitives.h"
#include "libtensor/gemm_cpu.h"
#include "libtensor/parallel.h"
#include "libtensor/simd.h"

#define BYTES ((int64_t)64 << 20)
#define ROUNDS 15

static int threads;
static char *from, *to; /* 2 * BYTES each */

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Seconds of the quickest of `rounds`, each long enough to be timed. */
static double best_of(int rounds, void (*run)(void *user), void *user) {
    double best = 1e30;
    int repeat = 1;
    for (int round = 0; round < rounds; round++) {
        double start = now_s();
        for (int i = 0; i < repeat; i++) run(user);
        double each = (now_s() - start) / repeat;
        if (each < best) best = each;
        if (each * repeat < 2e-4) repeat = (int)(4e-4 / (each + 1e-9)) + 1;
    }
    return best;
}

/* ---- copies ---- */

typedef struct copy_case {
    const char *name;
    tn_dtype to_dtype, from_dtype;
    int axes;
    int64_t shape[4], from_stride[4];
} copy_case;

static const copy_case copies[] = {
    { "dense f32", TN_F32, TN_F32, 1, { 16 << 20 }, { 1 } },
    { "f32 -> bf16", TN_BF16, TN_F32, 1, { 16 << 20 }, { 1 } },
    { "bf16 -> f32", TN_F32, TN_BF16, 1, { 16 << 20 }, { 1 } },
    { "f32 -> f64", TN_F64, TN_F32, 1, { 16 << 20 }, { 1 } },
    { "f32 -> i64", TN_I64, TN_F32, 1, { 16 << 20 }, { 1 } },
    { "f32 transposed 4096 x 4096", TN_F32, TN_F32, 2, { 4096, 4096 }, { 1, 4096 } },
    { "f32 transposed 4000 x 4195", TN_F32, TN_F32, 2, { 4000, 4195 }, { 1, 4000 } },
    { "bf16 transposed 4096 x 4096", TN_BF16, TN_BF16, 2, { 4096, 4096 }, { 1, 4096 } },
    { "bf16 -> f32 transposed", TN_F32, TN_BF16, 2, { 4096, 4096 }, { 1, 4096 } },
    { "f32 [b,n,h,d] -> [b,h,n,d], d 64", TN_F32, TN_F32, 4, { 8, 16, 2048, 64 }, { 2048 * 1024, 64, 1024, 1 } },
    { "f32 row broadcast", TN_F32, TN_F32, 2, { 4096, 4096 }, { 0, 1 } },
};

typedef struct tensor_pair {
    tn_tensor to, from;
} tensor_pair;

static tn_tensor tensor_over(void *data, tn_dtype dtype, int axes, const int64_t *shape, const int64_t *stride) {
    tn_tensor t = { .data = data, .dtype = dtype, .axes = axes, .numel = 1 };
    for (int i = axes - 1; i >= 0; i--) {
        t.shape[i] = shape[i];
        t.stride[i] = stride ? stride[i] : t.numel;
        t.numel *= shape[i];
    }
    return t;
}

static void run_copy(void *user) {
    tensor_pair *pair = user;
    tn_cpu_copy(&pair->to, &pair->from, threads);
}
static void run_accumulate(void *user) {
    tensor_pair *pair = user;
    tn_cpu_accumulate(&pair->to, &pair->from, threads);
}
static void run_fill(void *user) {
    tensor_pair *pair = user;
    tn_cpu_fill(&pair->to, 1.5, threads);
}
static void run_find(void *user) {
    tensor_pair *pair = user;
    tn_cpu_find_nonfinite(&pair->from, threads);
}
static void memcpy_range(void *user, int64_t begin, int64_t end) {
    (void)user;
    memcpy(to + begin, from + begin, (size_t)(end - begin));
}
static void run_memcpy(void *user) {
    (void)user;
    tn_parallel_for(BYTES, BYTES / threads, memcpy_range, NULL, threads);
}

static void say_copy(const char *name, double bytes, double seconds, double reference) {
    printf("copy      %-36s %8.2f ms %7.1f GB/s  %4.0f %% of memcpy\n", name, seconds * 1e3, bytes / seconds * 1e-9,
           100 * bytes / seconds / reference);
}

static void bench_copies(void) {
    double seconds = best_of(ROUNDS, run_memcpy, NULL), reference = 2.0 * BYTES / seconds;
    say_copy("memcpy, a share for each thread", 2.0 * BYTES, seconds, reference);
    for (size_t i = 0; i < sizeof copies / sizeof *copies; i++) {
        const copy_case *c = &copies[i];
        tensor_pair pair = { tensor_over(to, c->to_dtype, c->axes, c->shape, NULL),
                             tensor_over(from, c->from_dtype, c->axes, c->shape, c->from_stride) };
        double read = c->from_stride[0] ? (double)pair.from.numel : 0;
        double bytes = read * (double)tn_dtype_size(c->from_dtype) + (double)(pair.to.numel * (int64_t)tn_dtype_size(c->to_dtype));
        say_copy(c->name, bytes, best_of(ROUNDS, run_copy, &pair), reference);
    }
    const int64_t shape[] = { BYTES / 4 };
    tensor_pair pair = { tensor_over(to, TN_F32, 1, shape, NULL), tensor_over(from, TN_F32, 1, shape, NULL) };
    say_copy("fill f32", 1.0 * BYTES, best_of(ROUNDS, run_fill, &pair), reference);
    say_copy("accumulate f32", 3.0 * BYTES, best_of(ROUNDS, run_accumulate, &pair), reference);
    say_copy("find_nonfinite f32", 1.0 * BYTES, best_of(ROUNDS, run_find, &pair), reference);
}

/* ---- vector functions, in the first-level cache ---- */

#define LANES 4096
#define MAP(name, expression)                              \
    TN_SIMD_CLONES static void map_##name(void *user) {    \
        const float *x = (const float *)user;              \
        float *y = (float *)user + LANES;                  \
        for (int64_t i = 0; i < LANES; i += TN_VF_LANES) { \
            tn_vf v = tn_vf_load(x + i);                   \
            tn_vf_store(y + i, expression);                \
        }                                                  \
    }
MAP(exp, tn_vf_exp(v))
MAP(log, tn_vf_log(v))
MAP(log1p, tn_vf_log1p(v))
MAP(tanh, tn_vf_tanh(v))
MAP(sigmoid, tn_vf_sigmoid(v))
MAP(erf, tn_vf_erf(v))
MAP(sin, tn_vf_sin(v))
MAP(sqrt, tn_vf_sqrt(v))

static void bench_functions(void) {
    static const struct {
        const char *name;
        void (*map)(void *user);
    } list[] = { { "exp", map_exp },         { "log", map_log }, { "log1p", map_log1p }, { "tanh", map_tanh },
                 { "sigmoid", map_sigmoid }, { "erf", map_erf }, { "sin", map_sin },     { "sqrt", map_sqrt } };
    float *x = (float *)from;
    for (int i = 0; i < LANES; i++) x[i] = 0.001f + (float)i / 800;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        printf("function  %-36s %8.2f billion/s on one thread\n", list[i].name, LANES / best_of(ROUNDS, list[i].map, x) * 1e-9);
}

/* ---- random numbers ---- */

typedef struct random_case {
    tn_tensor to;
    tn_random_spec spec;
} random_case;

static void run_random(void *user) {
    random_case *c = user;
    tn_cpu_random(&c->to, &c->spec, threads);
}

static void bench_random(void) {
    static const char *const names[] = { "uniform", "normal", "integer" };
    static const tn_dtype dtypes[] = { TN_F32, TN_F64 };
    const int64_t shape[] = { 4 << 20 };
    for (int kind = 0; kind < 3; kind++)
        for (int d = 0; d < 2; d++) {
            random_case c = { tensor_over(to, dtypes[d], 1, shape, NULL),
                              { .kind = (tn_random_kind)kind, .b = 1, .high = 100, .seed = 1 } };
            char name[64];
            snprintf(name, sizeof name, "%s %s", names[kind], tn_dtype_name(dtypes[d]));
            printf("random    %-36s %8.0f million/s\n", name, (double)shape[0] / best_of(ROUNDS, run_random, &c) * 1e-6);
        }
}

/* ---- matrix products ---- */

static void run_gemm(void *user) { tn_gemm_batched(user); }

/* OpenBLAS called as its user would, one product after the other. */
static void run_blas(void *user) {
    const tn_gemm_batch *c = user;
    const tn_blas *blas = tn_blas_get();
    int before = tn_blas_begin(blas, threads), ta = c->ta ? 112 : 111, tb = c->tb ? 112 : 111;
    for (int64_t i = 0; i < c->n_batch; i++) {
        int64_t a = i * c->stride_a, b = i * c->stride_b, at = i * c->stride_c;
        if (c->dtype == TN_F64)
            blas->dgemm(101, ta, tb, (int)c->m, (int)c->n, (int)c->k, 1, (const double *)c->a + a, (int)c->lda, (const double *)c->b + b,
                        (int)c->ldb, 0, (double *)c->c + at, (int)c->ldc);
        else
            blas->sgemm(101, ta, tb, (int)c->m, (int)c->n, (int)c->k, 1, (const float *)c->a + a, (int)c->lda, (const float *)c->b + b,
                        (int)c->ldb, 0, (float *)c->c + at, (int)c->ldc);
    }
    tn_blas_end(blas, before);
}

static void bench_gemm(const char *group, tn_dtype dtype, bool ta, bool tb, int64_t n_batch, int64_t m, int64_t n, int64_t k) {
    tn_gemm_batch c = { .dtype = dtype,
                        .ta = ta,
                        .tb = tb,
                        .n_batch = n_batch,
                        .m = m,
                        .n = n,
                        .k = k,
                        .alpha = 1,
                        .beta = 0,
                        .a = from,
                        .b = from + BYTES,
                        .c = to,
                        .lda = ta ? m : k,
                        .ldb = tb ? k : n,
                        .ldc = n,
                        .stride_a = m * k,
                        .stride_b = n * k,
                        .stride_c = m * n,
                        .threads = threads };
    double work = 2.0 * (double)n_batch * (double)m * (double)n * (double)k, ours = best_of(ROUNDS, run_gemm, &c);
    char name[64];
    snprintf(name, sizeof name, "%s %c%c %lld x (%lld x %lld x %lld)", tn_dtype_name(dtype), "NT"[ta], "NT"[tb], (long long)n_batch,
             (long long)m, (long long)n, (long long)k);
    printf("%-9s %-36s %8.1f GFLOP/s", group, name, work / ours * 1e-9);
    if (tn_blas_get()) {
        if (dtype == TN_BF16) c.dtype = TN_F32;
        double theirs = best_of(ROUNDS, run_blas, &c);
        printf("   OpenBLAS%s %8.1f   %4.0f %%", dtype == TN_BF16 ? " (f32)" : "", work / theirs * 1e-9, 100 * theirs / ours);
    }
    printf("\n");
}

static void fill_operands(void) {
    for (int64_t i = 0; i < 2 * BYTES / 4; i++) ((float *)from)[i] = (float)(i % 17) / 16 - 0.5f;
}

static void bench_products(void) {
    const tn_blas *blas = tn_blas_get();
    printf("gemm      %s\n", blas ? blas->description : "no OpenBLAS");
    fill_operands();
    static const int64_t sizes[][3] = { { 16, 16, 16 },     { 64, 64, 64 },    { 128, 128, 128 }, { 256, 256, 256 }, { 1024, 1024, 1024 },
                                        { 2048, 512, 512 }, { 8, 1024, 1024 }, { 1, 1024, 1024 }, { 1024, 1, 1024 } };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int form = 0; form < 3; form++) bench_gemm("gemm", TN_F32, form == 2, form == 1, 1, sizes[i][0], sizes[i][1], sizes[i][2]);
    bench_gemm("gemm", TN_F64, false, false, 1, 1024, 1024, 1024);
    bench_gemm("gemm", TN_BF16, false, false, 1, 1024, 1024, 1024);
    bench_gemm("gemm", TN_BF16, false, true, 1, 1024, 1024, 1024);
}

static void bench_batches(void) {
    fill_operands();
    for (int dtype = TN_F64; dtype <= TN_BF16; dtype++) {
        bench_gemm("batch", (tn_dtype)dtype, false, false, 64, 128, 128, 32);
        bench_gemm("batch", (tn_dtype)dtype, false, true, 64, 128, 128, 32);
        bench_gemm("batch", (tn_dtype)dtype, true, false, 64, 32, 32, 128);
        bench_gemm("batch", (tn_dtype)dtype, false, false, 512, 16, 16, 16);
        bench_gemm("batch", (tn_dtype)dtype, false, false, 8, 256, 256, 256);
        bench_gemm("batch", (tn_dtype)dtype, false, true, 64, 1, 128, 256);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } groups[] = { { "copy", bench_copies },
                   { "function", bench_functions },
                   { "random", bench_random },
                   { "gemm", bench_products },
                   { "batch", bench_batches } };
    threads = argc > 2 ? atoi(argv[2]) : tn_parallel_threads();
    char reason[128];
    tn_device *device = tn_device_open_cpu(threads, reason, sizeof reason);
    void *memory[2];
    if (!device || device->interface->segment_alloc(device, 2 * BYTES, &memory[0]) != TN_OK ||
        device->interface->segment_alloc(device, 2 * BYTES, &memory[1]) != TN_OK) {
        fprintf(stderr, "bench-cpu-primitives: %s\n", device ? device->failure : reason);
        return 2;
    }
    from = memory[0], to = memory[1];
    memset(from, 1, 2 * BYTES);
    memset(to, 1, 2 * BYTES);
    printf("%s\n", device->detail);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (argc < 2 || strstr(groups[i].name, argv[1])) groups[i].run();
    device->interface->segment_free(device, memory[0], 2 * BYTES);
    device->interface->segment_free(device, memory[1], 2 * BYTES);
    device->interface->close(device);
    return 0;
}
