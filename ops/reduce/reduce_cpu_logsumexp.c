/* log sum exp in one sweep: a running maximum m and the sum s of exp(x - m), rescaled when a block brings a larger maximum.
 * Where m is infinite the exponentials are taken as they are: all -inf gives s = 0, a +inf gives s = inf. */
#include "reduce_internal.h"

#include <stdalign.h>

#include "../lanes_cpu.h"

/* A panel's state: n maxima, then n sums. */

TN_INLINE tn_vf shift_of(tn_vf maximum) { return tn_vf_select(((tn_vi)tn_vf_abs(maximum) - 0x7f800000) >> 31, maximum, tn_vf_zero()); }
/* What a sum of exp(x - from) is multiplied by to become one of exp(x - to). Nothing was summed where from is -inf. */
TN_INLINE tn_vf rescale(tn_vf from, tn_vf to) {
    return tn_vf_select((tn_vi)from == (int32_t)0xff800000, tn_vf_zero(), tn_vf_exp(shift_of(from) - shift_of(to)));
}

static void lse_start_f32(void *state, int64_t n) {
    float *m = state;
    for (int64_t i = 0; i < n; i++) {
        m[i] = -INFINITY;
        m[n + i] = 0;
    }
}

/* Floats as integers in the same order; maxima are taken of these, which every compiler does in vectors. A NaN among them may be lost:
 * it comes through in the sum. */
TN_INLINE tn_vi ordered(tn_vf x) { return (tn_vi)x ^ (((tn_vi)x >> 31) & INT32_MAX); }
TN_INLINE tn_vf unordered(tn_vi key) { return (tn_vf)(key ^ ((key >> 31) & INT32_MAX)); }
TN_INLINE tn_vi larger(tn_vi a, tn_vi b) { return tn_vi_select(a > b, a, b); }
TN_INLINE tn_vf max_of(tn_vf a, tn_vf b) { return unordered(larger(ordered(a), ordered(b))); }

TN_INLINE tn_vf max_of_run(tn_dtype dtype, const void *p, int64_t n) {
    tn_vi a = ordered(tn_vf_set(-INFINITY)), b = a;
    int64_t i = 0;
    for (; i + 2 * TN_VF_LANES <= n; i += 2 * TN_VF_LANES) {
        a = larger(a, ordered(tn_lanes_load(dtype, p, i, i + TN_VF_LANES)));
        b = larger(b, ordered(tn_lanes_load(dtype, p, i + TN_VF_LANES, i + 2 * TN_VF_LANES)));
    }
    for (; i < n; i += TN_VF_LANES) a = larger(a, ordered(tn_lanes_load_or(dtype, p, i, n, -INFINITY)));
    int32_t key[TN_VF_LANES];
    a = larger(a, b);
    memcpy(key, &a, sizeof key);
    for (int lane = 1; lane < TN_VF_LANES; lane++) key[0] = key[lane] > key[0] ? key[lane] : key[0];
    return unordered(tn_vi_set(key[0]));
}

TN_INLINE float sum_of_exp(tn_dtype dtype, const void *p, int64_t n, tn_vf shift) {
    tn_vf a = tn_vf_zero(), b = a;
    int64_t i = 0;
    for (; i + 2 * TN_VF_LANES <= n; i += 2 * TN_VF_LANES) {
        a += tn_vf_exp(tn_lanes_load(dtype, p, i, i + TN_VF_LANES) - shift);
        b += tn_vf_exp(tn_lanes_load(dtype, p, i + TN_VF_LANES, i + 2 * TN_VF_LANES) - shift);
    }
    for (; i < n; i += TN_VF_LANES) a += tn_vf_exp(tn_lanes_load_or(dtype, p, i, n, -INFINITY) - shift);
    return tn_vf_sum(a + b);
}

TN_INLINE void lse_rows(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    float *m = state, *s = m + block->across;
    for (int64_t a = 0; a < block->across; a++) {
        const void *p = tn_elements_after(dtype, block->data, a * block->across_stride);
        tn_vf before = tn_vf_set(m[a]), now = max_of(before, max_of_run(dtype, p, block->along));
        float sum = sum_of_exp(dtype, p, block->along, shift_of(now));
        s[a] = (m[a] == -INFINITY ? 0 : s[a] * rescale(before, now)[0]) + sum;
        m[a] = now[0];
    }
}

/* Columns i .. i + 15, of which those below n count. */
TN_INLINE void lse_strip(tn_dtype dtype, float *m, float *s, const tn_reduce_block *block, int64_t i, int64_t n) {
    int64_t stride = block->along_stride, along = block->along;
    tn_vf before = tn_vf_load_part(m + i, n - i), sum = tn_vf_zero();
    tn_vi top = ordered(before);
    for (int64_t l = 0; l < along; l++)
        top = larger(top, ordered(tn_lanes_load(dtype, tn_elements_after(dtype, block->data, l * stride), i, n)));
    tn_vf now = unordered(top), shift = shift_of(now);
    for (int64_t l = 0; l < along; l++)
        sum += tn_vf_exp(tn_lanes_load(dtype, tn_elements_after(dtype, block->data, l * stride), i, n) - shift);
    tn_vf_store_part(s + i, tn_vf_load_part(s + i, n - i) * rescale(before, now) + sum, n - i);
    tn_vf_store_part(m + i, now, n - i);
}

TN_INLINE void lse_columns(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    int64_t n = block->across, i = 0;
    float *m = state, *s = m + n;
    for (; i + TN_VF_LANES <= n; i += TN_VF_LANES) lse_strip(dtype, m, s, block, i, i + TN_VF_LANES);
    if (i < n) lse_strip(dtype, m, s, block, i, n);
}

TN_SIMD_CLONES static void lse_rows_f32(void *state, const tn_reduce_block *block) { lse_rows(TN_F32, state, block); }
TN_SIMD_CLONES static void lse_rows_bf16(void *state, const tn_reduce_block *block) { lse_rows(TN_BF16, state, block); }
TN_SIMD_CLONES static void lse_columns_f32(void *state, const tn_reduce_block *block) { lse_columns(TN_F32, state, block); }
TN_SIMD_CLONES static void lse_columns_bf16(void *state, const tn_reduce_block *block) { lse_columns(TN_BF16, state, block); }

TN_SIMD_CLONES static void lse_merge_f32(void *state, const void *later, int64_t n) {
    float *m = state, *s = m + n;
    const float *other_m = later, *other_s = other_m + n;
    for (int64_t i = 0; i < n; i += TN_VF_LANES) {
        tn_vf a = tn_vf_load_part(m + i, n - i), b = tn_vf_load_part(other_m + i, n - i), now = max_of(a, b);
        tn_vf sum = tn_vf_load_part(s + i, n - i) * rescale(a, now) + tn_vf_load_part(other_s + i, n - i) * rescale(b, now);
        tn_vf_store_part(s + i, sum, n - i);
        tn_vf_store_part(m + i, now, n - i);
    }
}

/* The statistics for backward are m and log s apart: their sum has lost what tells x - o from x - m where m is large. */
TN_SIMD_CLONES static void lse_finish_f32(const tn_reduction *r, const void *state, int64_t n, int64_t at, int64_t stride) {
    const float *m = state, *s = m + n;
    for (int64_t i = 0; i < n; i += TN_VF_LANES) {
        float log_s[TN_VF_LANES], o[TN_VF_LANES];
        tn_vf lanes = tn_vf_log(tn_vf_load_part(s + i, n - i));
        tn_vf_store(log_s, lanes);
        tn_vf_store(o, shift_of(tn_vf_load_part(m + i, n - i)) + lanes);
        for (int64_t lane = 0; lane < TN_VF_LANES && i + lane < n; lane++) {
            int64_t to = at + (i + lane) * stride;
            if (r->out_dtype == TN_F32) ((float *)r->out)[to] = o[lane];
            else ((tn_bf16 *)r->out)[to] = tn_f32_to_bf16(o[lane]);
            if (!r->statistics[0]) continue;
            ((float *)r->statistics[0])[to] = m[i + lane];
            ((float *)r->statistics[1])[to] = log_s[lane];
        }
    }
}

/* ---- f64 ---- */

static double shift_f64(double maximum) { return fabs(maximum) < INFINITY ? maximum : 0; }
static double rescale_f64(double from, double to) { return from == -INFINITY ? 0 : exp(shift_f64(from) - shift_f64(to)); }
static double max_f64(double a, double b) { return a > b ? a : b; }

static void lse_start_f64(void *state, int64_t n) {
    double *m = state;
    for (int64_t i = 0; i < n; i++) {
        m[i] = -INFINITY;
        m[n + i] = 0;
    }
}

static void lse_take_f64(double *m, double *s, const double *p, int64_t stride, int64_t n) {
    double before = *m, now = before, sum = 0;
    for (int64_t i = 0; i < n; i++) now = max_f64(now, p[i * stride]);
    for (int64_t i = 0; i < n; i++) sum += exp(p[i * stride] - shift_f64(now));
    *s = *s * rescale_f64(before, now) + sum;
    *m = now;
}

static void lse_rows_f64(void *state, const tn_reduce_block *block) {
    double *m = state, *s = m + block->across;
    for (int64_t a = 0; a < block->across; a++)
        lse_take_f64(&m[a], &s[a], (const double *)block->data + a * block->across_stride, 1, block->along);
}

static void lse_columns_f64(void *state, const tn_reduce_block *block) {
    double *m = state, *s = m + block->across;
    for (int64_t a = 0; a < block->across; a++)
        lse_take_f64(&m[a], &s[a], (const double *)block->data + a, block->along_stride, block->along);
}

static void lse_merge_f64(void *state, const void *later, int64_t n) {
    double *m = state, *s = m + n;
    const double *other_m = later, *other_s = other_m + n;
    for (int64_t i = 0; i < n; i++) {
        double now = max_f64(m[i], other_m[i]);
        s[i] = s[i] * rescale_f64(m[i], now) + other_s[i] * rescale_f64(other_m[i], now);
        m[i] = now;
    }
}

static void lse_finish_f64(const tn_reduction *r, const void *state, int64_t n, int64_t at, int64_t stride) {
    const double *m = state, *s = m + n;
    for (int64_t i = 0; i < n; i++) {
        double log_s = log(s[i]);
        ((double *)r->out)[at + i * stride] = shift_f64(m[i]) + log_s;
        if (!r->statistics[0]) continue;
        ((double *)r->statistics[0])[at + i * stride] = m[i];
        ((double *)r->statistics[1])[at + i * stride] = log_s;
    }
}

/* Few enough rows that a block stays in cache between its two passes. */
#define COLUMN_ROWS 32
#define SHORT_ROW 32

static const tn_reducer lse_f64 = { TN_F64,          NULL,          false,         16, COLUMN_ROWS, SHORT_ROW, lse_start_f64, lse_rows_f64,
                                    lse_columns_f64, lse_merge_f64, lse_finish_f64 };
static const tn_reducer lse_f32 = { TN_F32,          NULL,          false,         8, COLUMN_ROWS, SHORT_ROW, lse_start_f32, lse_rows_f32,
                                    lse_columns_f32, lse_merge_f32, lse_finish_f32 };
static const tn_reducer lse_bf16 = { TN_BF16,          &lse_f32,      false,         8,
                                     COLUMN_ROWS,      SHORT_ROW,     lse_start_f32, lse_rows_bf16,
                                     lse_columns_bf16, lse_merge_f32, lse_finish_f32 };

const tn_reducer *tn_reducer_logsumexp(tn_dtype dtype) { return dtype == TN_F64 ? &lse_f64 : dtype == TN_F32 ? &lse_f32 : &lse_bf16; }
