/* Matrix products on the CPU: OpenBLAS for large ones, our own kernel for small, batched and bf16 ones, for vectors, inside
 * parallel loops and where no OpenBLAS is found. Row-major.
 *
 *     C = alpha * op(A) * op(B) + beta * C         op(A) [m,k], op(B) [k,n], C [m,n]
 *
 * A is stored [m,k] (ta: [k,m]) with lda elements from row to row, B likewise. With beta = 0 C is not read; with alpha = 0 or k = 0
 * A and B are not read. bf16 is widened, summed in f32 over all of k and rounded once. A leading dimension smaller than its row is
 * TN_ERR_ARGUMENT, except where there is at most one row. A call changes nothing unless it returns TN_OK. */
#ifndef TENON_GEMM_CPU_H
#define TENON_GEMM_CPU_H

#include "tensor.h"

/* Scratch that a call needs; none at present: bf16 is widened panel by panel on the stack. `n_batch` is 1 for the plain call. */
size_t tn_gemm_workspace_bytes(tn_dtype dtype, int64_t n_batch, int64_t m, int64_t n, int64_t k, int threads);

tn_status tn_gemm_f32(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                      int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace);
tn_status tn_gemm_f64(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                      int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace);
tn_status tn_gemm_bf16(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                       int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace);

/* n_batch products at once: matrix i starts i * stride_{a,b,c} elements after the first. A stride of 0 shares A or B; the matrices C must
 * not overlap. */
typedef struct tn_gemm_batch {
    tn_dtype dtype; /* TN_F64, TN_F32 or TN_BF16, of all three */
    bool ta, tb;
    int64_t n_batch, m, n, k;
    double alpha, beta;
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc;
    int64_t stride_a, stride_b, stride_c;
    int threads;
    void *workspace; /* tn_gemm_workspace_bytes, may be NULL when that is 0 */
} tn_gemm_batch;
tn_status tn_gemm_batched(const tn_gemm_batch *call);

#endif
