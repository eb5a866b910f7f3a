/* Products with a vector, which the panels of gemm_kernel.c would mostly fill with zeros. */
#include "gemm_kernel.h"

#include "simd.h"

#define DEPTH 2048  /* elements of the vector kept at hand in the type sums run in */
#define COLUMNS 128 /* outputs summed in registers, where rows of the matrix are added up */

/* y[i] += dot(row i of the matrix, x): four rows at a time, each in one vector of sums. */
#define DOT_ROWS(name, T, FROM, V, LANES, LOAD, LOAD_PART, SUM)                                                  \
    TN_SIMD_CLONES static void name(T *y, const FROM *matrix, int64_t ld, const T *x, int64_t rows, int64_t k) { \
        for (int64_t i = 0; i < rows; i += 4) {                                                                  \
            int64_t n = rows - i < 4 ? rows - i : 4;                                                             \
            const FROM *row[4];                                                                                  \
            for (int64_t r = 0; r < 4; r++) row[r] = matrix + (i + (r < n ? r : 0)) * ld;                        \
            V sum[4] = { { 0 }, { 0 }, { 0 }, { 0 } };                                                           \
            int64_t l = 0;                                                                                       \
            for (; l + LANES <= k; l += LANES) {                                                                 \
                V v = *(const V##_memory *)(x + l);                                                              \
                sum[0] += LOAD(row[0] + l) * v;                                                                  \
                sum[1] += LOAD(row[1] + l) * v;                                                                  \
                sum[2] += LOAD(row[2] + l) * v;                                                                  \
                sum[3] += LOAD(row[3] + l) * v;                                                                  \
            }                                                                                                    \
            if (l < k) {                                                                                         \
                V v = *(const V##_memory *)(x + l); /* x is filled up with zeros */                              \
                for (int r = 0; r < 4; r++) sum[r] += LOAD_PART(row[r] + l, k - l) * v;                          \
            }                                                                                                    \
            for (int64_t r = 0; r < n; r++) y[i + r] += SUM(sum[r]);                                             \
        }                                                                                                        \
    }
DOT_ROWS(dot_f32, float, float, tn_vf, TN_VF_LANES, tn_vf_load, tn_vf_load_part, tn_vf_sum)
DOT_ROWS(dot_f64, double, double, tn_vd, TN_VD_LANES, tn_vd_load, tn_vd_load_part, tn_vd_sum)
DOT_ROWS(dot_bf16, float, tn_bf16, tn_vf, TN_VF_LANES, tn_vf_load_bf16, tn_vf_load_bf16_part, tn_vf_sum)

/* y[j] += sum over k of x[k] * matrix[k][j], for at most COLUMNS columns; y has room for whole vectors. */
#define ADD_ROWS(name, T, FROM, V, LANES, LOAD, LOAD_PART, STORE)                                                   \
    TN_SIMD_CLONES static void name(T *y, const FROM *matrix, int64_t ld, const T *x, int64_t columns, int64_t k) { \
        int64_t j = 0;                                                                                              \
        for (; j + 4 * LANES <= columns; j += 4 * LANES) {                                                          \
            V s0 = V##_load(y + j), s1 = V##_load(y + j + LANES);                                                   \
            V s2 = V##_load(y + j + 2 * LANES), s3 = V##_load(y + j + 3 * LANES);                                   \
            const FROM *row = matrix + j;                                                                           \
            for (int64_t l = 0; l < k; l++, row += ld) {                                                            \
                s0 += x[l] * LOAD(row);                                                                             \
                s1 += x[l] * LOAD(row + LANES);                                                                     \
                s2 += x[l] * LOAD(row + 2 * LANES);                                                                 \
                s3 += x[l] * LOAD(row + 3 * LANES);                                                                 \
            }                                                                                                       \
            STORE(y + j, s0), STORE(y + j + LANES, s1), STORE(y + j + 2 * LANES, s2), STORE(y + j + 3 * LANES, s3); \
        }                                                                                                           \
        for (; j < columns; j += LANES) {                                                                           \
            int64_t n = columns - j < LANES ? columns - j : LANES;                                                  \
            V s = V##_load(y + j);                                                                                  \
            const FROM *row = matrix + j;                                                                           \
            if (n == LANES)                                                                                         \
                for (int64_t l = 0; l < k; l++, row += ld) s += x[l] * LOAD(row);                                   \
            else                                                                                                    \
                for (int64_t l = 0; l < k; l++, row += ld) s += x[l] * LOAD_PART(row, n);                           \
            STORE(y + j, s);                                                                                        \
        }                                                                                                           \
    }
ADD_ROWS(add_f32, float, float, tn_vf, TN_VF_LANES, tn_vf_load, tn_vf_load_part, tn_vf_store)
ADD_ROWS(add_f64, double, double, tn_vd, TN_VD_LANES, tn_vd_load, tn_vd_load_part, tn_vd_store)
ADD_ROWS(add_bf16, float, tn_bf16, tn_vf, TN_VF_LANES, tn_vf_load_bf16, tn_vf_load_bf16_part, tn_vf_store)

/* ---- C's part [first, first + n) of the one row or column it has ---- */

typedef struct vector_problem {
    const void *matrix, *vector;
    int64_t ld, vector_step, c_step;
    bool dots; /* an output is the product of a row of the matrix with the vector; else the outputs are a sum of rows */
} vector_problem;

static vector_problem arrange(const tn_gemm_problem *p) {
    if (p->m == 1) return (vector_problem){ p->b, p->a, p->ldb, p->ta ? p->lda : 1, 1, p->tb };
    return (vector_problem){ p->a, p->b, p->lda, p->tb ? 1 : p->ldb, p->ldc, !p->ta };
}

static void gather(tn_dtype dtype, void *to, const void *from, int64_t first, int64_t step, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int64_t at = (first + i) * step;
        if (dtype == TN_F64) ((double *)to)[i] = ((const double *)from)[at];
        if (dtype == TN_F32) ((float *)to)[i] = ((const float *)from)[at];
        if (dtype == TN_BF16) ((float *)to)[i] = tn_bf16_to_f32(((const tn_bf16 *)from)[at]);
    }
    memset((char *)to + n * (dtype == TN_F64 ? 8 : 4), 0, 64);
}

static void add_part(tn_dtype dtype, const vector_problem *v, void *sum, const void *x, int64_t first, int64_t n, int64_t k0, int64_t k) {
    int64_t at = v->dots ? first * v->ld + k0 : k0 * v->ld + first;
    if (dtype == TN_F64) (v->dots ? dot_f64 : add_f64)((double *)sum, (const double *)v->matrix + at, v->ld, (const double *)x, n, k);
    if (dtype == TN_F32) (v->dots ? dot_f32 : add_f32)((float *)sum, (const float *)v->matrix + at, v->ld, (const float *)x, n, k);
    if (dtype == TN_BF16) (v->dots ? dot_bf16 : add_bf16)((float *)sum, (const tn_bf16 *)v->matrix + at, v->ld, (const float *)x, n, k);
}

static void put(const tn_gemm_problem *p, int64_t step, int64_t first, int64_t n, const void *sum) {
    for (int64_t i = 0; i < n; i++) {
        int64_t at = (first + i) * step;
        if (p->dtype == TN_F64) {
            double *c = (double *)p->c + at, s = p->alpha * ((const double *)sum)[i];
            *c = p->beta == 0 ? s : s + p->beta * *c;
        } else if (p->dtype == TN_F32) {
            float *c = (float *)p->c + at, s = (float)p->alpha * ((const float *)sum)[i];
            *c = p->beta == 0 ? s : s + (float)p->beta * *c;
        } else {
            tn_bf16 *c = (tn_bf16 *)p->c + at;
            float s = (float)p->alpha * ((const float *)sum)[i];
            *c = tn_f32_to_bf16(p->beta == 0 ? s : s + (float)p->beta * tn_bf16_to_f32(*c));
        }
    }
}

void tn_gemv_part(const tn_gemm_problem *p, int64_t first, int64_t n) {
    _Alignas(64) char x[DEPTH * 8 + 64], sum[COLUMNS * 8 + 64];
    vector_problem v = arrange(p);
    for (int64_t end = first + n; first < end; first += COLUMNS) {
        int64_t part = end - first < COLUMNS ? end - first : COLUMNS;
        memset(sum, 0, sizeof sum);
        for (int64_t k0 = 0; k0 < p->k && p->alpha != 0; k0 += DEPTH) {
            int64_t k = p->k - k0 < DEPTH ? p->k - k0 : DEPTH;
            gather(p->dtype, x, v.vector, k0, v.vector_step, k);
            add_part(p->dtype, &v, sum, x, first, part, k0, k);
        }
        put(p, v.c_step, first, part, sum);
    }
}
