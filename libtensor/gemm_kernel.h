/* Our own matrix product, one thread: packed panels and a register-blocked kernel chosen by cpuid. */
#ifndef TENON_GEMM_KERNEL_H
#define TENON_GEMM_KERNEL_H

#include "tensor.h"

/* C [m,n] = alpha * op(A) op(B) + beta * C, row-major; all three of `dtype`. Uses about 300 KiB of stack. */
typedef struct tn_gemm_problem {
    tn_dtype dtype;
    bool ta, tb;
    int64_t m, n, k;
    double alpha, beta;
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc;
} tn_gemm_problem;

/* C is worked off in tiles of at most this size; tiles can be computed in any order and by any thread. */
typedef struct tn_gemm_tiling {
    int64_t rows, columns;    /* of a tile */
    int64_t n_down, n_across; /* tiles */
} tn_gemm_tiling;
tn_gemm_tiling tn_gemm_tiles(const tn_gemm_problem *problem);
void tn_gemm_tile(const tn_gemm_problem *problem, int64_t down, int64_t across);
/* All of C := op(A) op(B) + beta C on the calling thread. */
void tn_gemm_alone(tn_dtype dtype, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc);

/* Of a problem with one row or one column: C's elements [first, first + n). */
void tn_gemv_part(const tn_gemm_problem *problem, int64_t first, int64_t n);

#endif
