/* OpenBLAS, loaded at first use; the library works without it. */
#ifndef TENON_BLAS_H
#define TENON_BLAS_H

#include <stdbool.h>

typedef struct tn_blas {
    /* CBLAS with 32-bit integers: order 101 row-major; transpose 111 no, 112 yes. */
    void (*sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
                  float *c, int ldc);
    void (*dgemm)(int order, int ta, int tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b, int ldb,
                  double beta, double *c, int ldc);
    void (*set_threads)(int n);     /* OpenBLAS's own; may be NULL */
    void (*omp_set_threads)(int n); /* of the OpenMP runtime OpenBLAS uses; NULL in other builds of it */
    int (*omp_threads)(void);
    bool avx512;           /* the processor has it */
    bool narrow;           /* and OpenBLAS does not use it: the user asked for a core type without */
    char description[192]; /* "OpenBLAS 0.3.21 SkylakeX (/usr/lib/.../libopenblas.so.0)" */
} tn_blas;

/* NULL when none was found. The search happens once: $TENON_BLAS (a path; "none" for no BLAS at all), the places where distributions
 * keep the OpenMP build, then whatever libopenblas.so.0 the loader knows. */
const tn_blas *tn_blas_get(void);

/* Runs between these use `threads` threads; the result of begin goes to end. Not to be called inside a parallel region. */
int tn_blas_begin(const tn_blas *blas, int threads);
void tn_blas_end(const tn_blas *blas, int before);

#endif
