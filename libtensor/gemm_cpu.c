#include "gemm_cpu.h"

#include <limits.h>

#include "blas.h"
#include "gemm_kernel.h"
#include "parallel.h"

/* Measured: where our kernel beats a call of OpenBLAS 0.3.21, in multiply-adds of one product and in rows. */
#define SMALL_WORK (32.0 * 32 * 32)
#define SMALL_TURNED_WORK (128.0 * 128 * 128) /* A as it is, B transposed */
#define SMALL_BATCHED_WORK (256.0 * 256 * 256)
#define FEW_ROWS 8
#define WIDE_WORK (512.0 * 512 * 512)
#define CHUNK_WORK (64.0 * 64 * 32) /* what is worth handing to another thread */

static double work_of(const tn_gemm_batch *call) { return (double)call->m * (double)call->n * (double)call->k; }

static bool fits_int(int64_t x) { return x <= INT_MAX; }

static bool leading_ok(int64_t rows, int64_t columns, int64_t leading) { return leading >= columns || rows <= 1; }

static tn_status check(const tn_gemm_batch *c) {
    if (c->dtype != TN_F64 && c->dtype != TN_F32 && c->dtype != TN_BF16) return TN_ERR_DTYPE;
    bool sizes = c->n_batch >= 0 && c->m >= 0 && c->n >= 0 && c->k >= 0;
    bool a = c->ta ? leading_ok(c->k, c->m, c->lda) : leading_ok(c->m, c->k, c->lda);
    bool b = c->tb ? leading_ok(c->n, c->k, c->ldb) : leading_ok(c->k, c->n, c->ldb);
    return sizes && a && b && leading_ok(c->m, c->n, c->ldc) ? TN_OK : TN_ERR_ARGUMENT;
}

/* ---- our own kernel over all cores ---- */

typedef struct own_job {
    const tn_gemm_batch *call;
    tn_gemm_problem first;
    tn_gemm_tiling tiling;
} own_job;

static void run_tiles(void *user, int64_t begin, int64_t end) {
    const own_job *job = (const own_job *)user;
    const tn_gemm_batch *call = job->call;
    int64_t size = (int64_t)tn_dtype_size(call->dtype), tiles = job->tiling.n_down * job->tiling.n_across;
    for (int64_t item = begin; item < end; item++) {
        int64_t matrix = item / tiles, tile = item % tiles;
        tn_gemm_problem p = job->first;
        p.a = (const char *)call->a + matrix * call->stride_a * size;
        p.b = (const char *)call->b + matrix * call->stride_b * size;
        p.c = (char *)call->c + matrix * call->stride_c * size;
        tn_gemm_tile(&p, tile / job->tiling.n_across, tile % job->tiling.n_across);
    }
}

static void run_own(const tn_gemm_batch *c) {
    own_job job = { .call = c,
                    .first = { .dtype = c->dtype,
                               .ta = c->ta,
                               .tb = c->tb,
                               .m = c->m,
                               .n = c->n,
                               .k = c->k,
                               .alpha = c->alpha,
                               .beta = c->beta,
                               .lda = c->lda,
                               .ldb = c->ldb,
                               .ldc = c->ldc } };
    job.tiling = tn_gemm_tiles(&job.first);
    int64_t items = c->n_batch * job.tiling.n_down * job.tiling.n_across;
    double each = work_of(c) / (double)(job.tiling.n_down * job.tiling.n_across) + 1;
    int64_t least = each < CHUNK_WORK ? (int64_t)(CHUNK_WORK / each) + 1 : 1;
    tn_parallel_for(items, tn_even_grain(items, least, 1, c->threads), run_tiles, &job, c->threads);
}

/* ---- OpenBLAS ---- */

static bool blas_takes(const tn_gemm_batch *c) {
    bool sizes = fits_int(c->m) && fits_int(c->n) && fits_int(c->k) && fits_int(c->lda) && fits_int(c->ldb) && fits_int(c->ldc);
    return sizes && c->dtype != TN_BF16 && c->k > 0 && c->alpha != 0;
}

/* OpenBLAS refuses a leading dimension below the row's length even where there is but one row. */
static int leading(int64_t given, int64_t columns) {
    int64_t at_least = columns > 1 ? columns : 1;
    return (int)(given > at_least ? given : at_least);
}

static void run_blas(const tn_blas *blas, const tn_gemm_batch *c) {
    int ta = c->ta ? 112 : 111, tb = c->tb ? 112 : 111, m = (int)c->m, n = (int)c->n, k = (int)c->k;
    int lda = leading(c->lda, c->ta ? m : k), ldb = leading(c->ldb, c->tb ? k : n), ldc = leading(c->ldc, n);
    int before = tn_blas_begin(blas, c->threads);
    for (int64_t i = 0; i < c->n_batch; i++) {
        int64_t a = i * c->stride_a, b = i * c->stride_b, at = i * c->stride_c;
        if (c->dtype == TN_F64)
            blas->dgemm(101, ta, tb, m, n, k, c->alpha, (const double *)c->a + a, lda, (const double *)c->b + b, ldb, c->beta,
                        (double *)c->c + at, ldc);
        else
            blas->sgemm(101, ta, tb, m, n, k, (float)c->alpha, (const float *)c->a + a, lda, (const float *)c->b + b, ldb, (float)c->beta,
                        (float *)c->c + at, ldc);
    }
    tn_blas_end(blas, before);
}

/* ---- which of them ---- */

/* Matrices that lie behind one another and share B are one tall matrix. */
static tn_gemm_batch stack(tn_gemm_batch c) {
    bool behind = c.stride_a == c.m * c.lda && c.stride_c == c.m * c.ldc && c.stride_b == 0 && !c.ta;
    if (c.n_batch <= 1 || !behind || c.m == 0) return c;
    c.m *= c.n_batch;
    c.n_batch = 1;
    return c;
}

/* f32 with AVX-512: up to this size our kernel is the quicker one on two threads (768 x 704 x 128: 0.35 ms to 0.45), and on one where
 * OpenBLAS uses half of the width. */
static bool beats_blas(const tn_gemm_batch *c, const tn_blas *blas) {
    bool wide = blas && blas->avx512 && c->dtype == TN_F32;
    return wide && (blas->narrow || c->threads > 1) && work_of(c) <= WIDE_WORK;
}

static bool prefers_own(const tn_gemm_batch *c) {
    double work = work_of(c);
    bool turned = c->tb && !c->ta;
    if (c->n_batch > 1) return work <= SMALL_BATCHED_WORK && (c->threads > 1 || turned);
    return c->m <= FEW_ROWS || c->n == 1 || work <= (turned ? SMALL_TURNED_WORK : SMALL_WORK);
}

tn_status tn_gemm_batched(const tn_gemm_batch *call) {
    tn_status status = check(call);
    if (status != TN_OK) return status;
    if (call->n_batch == 0 || call->m == 0 || call->n == 0) return TN_OK;
    tn_gemm_batch c = stack(*call);
    bool own = prefers_own(&c) || !blas_takes(&c) || tn_parallel_inside();
    const tn_blas *blas = own ? NULL : tn_blas_get();
    if (beats_blas(&c, blas)) blas = NULL;
    if (blas) run_blas(blas, &c);
    else run_own(&c);
    return TN_OK;
}

size_t tn_gemm_workspace_bytes(tn_dtype dtype, int64_t n_batch, int64_t m, int64_t n, int64_t k, int threads) {
    (void)dtype, (void)n_batch, (void)m, (void)n, (void)k, (void)threads;
    return 0;
}

static tn_status gemm(tn_dtype dtype, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda,
                      const void *b, int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace) {
    return tn_gemm_batched(&(tn_gemm_batch){ .dtype = dtype,
                                             .ta = ta,
                                             .tb = tb,
                                             .n_batch = 1,
                                             .m = m,
                                             .n = n,
                                             .k = k,
                                             .alpha = alpha,
                                             .beta = beta,
                                             .a = a,
                                             .b = b,
                                             .c = c,
                                             .lda = lda,
                                             .ldb = ldb,
                                             .ldc = ldc,
                                             .threads = threads,
                                             .workspace = workspace });
}

tn_status tn_gemm_f32(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                      int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace) {
    return gemm(TN_F32, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, threads, workspace);
}
tn_status tn_gemm_f64(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                      int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace) {
    return gemm(TN_F64, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, threads, workspace);
}
tn_status tn_gemm_bf16(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                       int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace) {
    return gemm(TN_BF16, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, threads, workspace);
}
