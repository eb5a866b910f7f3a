/* The rows of both norms in f32 and bf16, by vectors. Sums run in f32: 64 partial sums, added in a fixed order. */
#include <string.h>

#include "../../libtensor/parallel.h"
#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "norm_internal.h"

#define LANES TN_VF_LANES

/* Runs the body for i = 0, 16, .. over a row of d elements, all of which lie before n: whole vectors first, then what is left. */
#define TN_EACH_VECTOR(i, n, d, ...)           \
    do {                                       \
        int64_t i = 0;                         \
        for (; i + LANES <= (d); i += LANES) { \
            const int64_t n = i + LANES;       \
            __VA_ARGS__                        \
        }                                      \
        if (i < (d)) {                         \
            const int64_t n = (d);             \
            __VA_ARGS__                        \
        }                                      \
    } while (0)

/* The lanes of elements i .. i + 15 that lie before the n-th; the others are zero. */
TN_INLINE tn_vf lanes_before(tn_vf v, int64_t i, int64_t n) {
    return n - i >= LANES ? v : tn_vf_select(tn_vi_lane() < (int32_t)(n - i), v, tn_vf_zero());
}

TN_INLINE float sum_of(tn_dtype dtype, const void *x, int64_t d) {
    tn_vf sum[4] = { 0 };
    int64_t i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES)
        for (int j = 0; j < 4; j++) sum[j] += tn_lanes_load(dtype, x, i + j * LANES, d);
    for (; i < d; i += LANES) sum[0] += tn_lanes_load(dtype, x, i, d);
    return tn_vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

TN_INLINE float sum_of_squares(tn_dtype dtype, const void *x, int64_t d, float mean) {
    tn_vf sum[4] = { 0 };
    int64_t i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES)
        for (int j = 0; j < 4; j++) {
            tn_vf v = tn_lanes_load(dtype, x, i + j * LANES, d) - mean;
            sum[j] = tn_vf_fma(v, v, sum[j]);
        }
    for (; i < d; i += LANES) {
        tn_vf v = lanes_before(tn_lanes_load(dtype, x, i, d) - mean, i, d);
        sum[0] = tn_vf_fma(v, v, sum[0]);
    }
    return tn_vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

TN_INLINE void *row_of(tn_dtype dtype, const void *first, int64_t row, int64_t d) {
    return first ? tn_elements_after(dtype, first, row * d) : NULL;
}

/* ---- forward ---- */

TN_INLINE void forward_row(const tn_norm_rows *job, int64_t row, tn_dtype dtype, bool has_gate, int act, bool center) {
    const int64_t d = job->d;
    const void *x = row_of(dtype, job->x, row, d), *g = row_of(dtype, job->g, row, d);
    void *o = row_of(dtype, job->o, row, d);
    float mean = center ? sum_of(dtype, x, d) / (float)d : 0;
    float rstd = (float)(1 / sqrt((double)(sum_of_squares(dtype, x, d, mean) / (float)d) + job->eps));
    TN_EACH_VECTOR(i, n, d, {
        tn_vf y = (tn_lanes_load(dtype, x, i, n) - mean) * rstd * tn_lanes_load(dtype, job->weight, i, n);
        if (has_gate) y *= tn_vf_act(act, tn_lanes_load(dtype, g, i, n));
        if (center) y += tn_lanes_load(dtype, job->bias, i, n);
        tn_lanes_store(dtype, o, i, n, y);
    });
    if (job->rstd) ((float *)job->rstd)[row] = rstd;
    if (job->mean) ((float *)job->mean)[row] = mean;
}

TN_INLINE void forward_rows(const tn_norm_rows *job, int64_t begin, int64_t end, tn_dtype dtype) {
    for (int64_t row = begin; row < end; row++) {
        if (job->center) forward_row(job, row, dtype, false, TN_NONE, true);
        else if (!job->g) forward_row(job, row, dtype, false, TN_NONE, false);
        else if (job->g_act == TN_SILU) forward_row(job, row, dtype, true, TN_SILU, false);
        else forward_row(job, row, dtype, true, job->g_act, false);
    }
}

TN_SIMD_CLONES static void forward_f32(void *user, int64_t begin, int64_t end) { forward_rows(user, begin, end, TN_F32); }
TN_SIMD_CLONES static void forward_bf16(void *user, int64_t begin, int64_t end) { forward_rows(user, begin, end, TN_BF16); }
/* Clones are exported whatever their visibility, so those are static. */
void tn_norm_forward_f32(void *user, int64_t begin, int64_t end) { forward_f32(user, begin, end); }
void tn_norm_forward_bf16(void *user, int64_t begin, int64_t end) { forward_bf16(user, begin, end); }

/* ---- backward ---- */

/* Inside TN_EACH_VECTOR: the scratch rows, always f32. */
#define LOAD(row) tn_lanes_load(TN_F32, row, i, n)
#define STORE(row, v) tn_lanes_store(TN_F32, row, i, n, v)

/* A row between its two looks. With u = dout * act(g) * weight, dx = rstd * u - (along_x * (x - mean) + shift). */
typedef struct tn_norm_row {
    const void *x, *dout;
    float rstd, mean, along_x, shift;
    float *gated; /* dout * act(g), where there is a gate */
} tn_norm_row;

/* The first look: the row's means of u and of u times the normalised row; with a gate also dg. */
TN_INLINE void measure_row(const tn_norm_rows *job, int64_t at, tn_norm_row *row, tn_dtype dtype, bool has_gate, int act, bool center) {
    const int64_t d = job->d;
    const void *g = row_of(dtype, job->g, at, d);
    void *dg = row_of(dtype, job->dg, at, d);
    tn_vf sum = { 0 }, dot = { 0 };
    TN_EACH_VECTOR(i, n, d, {
        tn_vf dy = tn_lanes_load(dtype, row->dout, i, n), weight = tn_lanes_load(dtype, job->weight, i, n);
        tn_vf normal = (tn_lanes_load(dtype, row->x, i, n) - row->mean) * row->rstd;
        if (has_gate) {
            tn_vf gate = tn_lanes_load(dtype, g, i, n);
            if (dg) tn_lanes_store(dtype, dg, i, n, dy * normal * weight * tn_vf_act_slope(act, gate));
            dy *= tn_vf_act(act, gate);
            STORE(row->gated, dy);
        }
        tn_vf u = dy * weight;
        if (center) sum += u;
        dot = tn_vf_fma(u, lanes_before(normal, i, n), dot);
    });
    row->along_x = tn_vf_sum(dot) / (float)d * row->rstd * row->rstd;
    row->shift = center ? tn_vf_sum(sum) / (float)d * row->rstd : 0;
}

/* The second look, from cache: dx, and the row's part of the sums over rows. */
TN_INLINE void finish_row(const tn_norm_rows *job, int64_t at, const tn_norm_row *row, float *dweight, float *dbias, tn_dtype dtype,
                          bool has_gate, bool center) {
    void *dx = row_of(dtype, job->dx, at, job->d);
    TN_EACH_VECTOR(i, n, job->d, {
        tn_vf dy = has_gate ? LOAD(row->gated) : tn_lanes_load(dtype, row->dout, i, n);
        tn_vf from_mean = tn_lanes_load(dtype, row->x, i, n) - row->mean;
        tn_vf u = dy * tn_lanes_load(dtype, job->weight, i, n);
        if (dx) tn_lanes_store(dtype, dx, i, n, row->rstd * u - (from_mean * row->along_x + row->shift));
        if (job->wants_weight) STORE(dweight, tn_vf_fma(dy, from_mean * row->rstd, LOAD(dweight)));
        if (center && job->wants_bias) STORE(dbias, LOAD(dbias) + dy);
    });
}

TN_INLINE void backward_row(const tn_norm_rows *job, int64_t at, float *scratch, tn_dtype dtype, bool has_gate, int act, bool center) {
    const int64_t d = job->d;
    tn_norm_row row = { .x = row_of(dtype, job->x, at, d),
                        .dout = row_of(dtype, job->dout, at, d),
                        .rstd = ((const float *)job->rstd)[at],
                        .mean = center ? ((const float *)job->mean)[at] : 0,
                        .gated = scratch + 2 * d };
    measure_row(job, at, &row, dtype, has_gate, act, center);
    if (job->dx || job->wants_weight || job->wants_bias) finish_row(job, at, &row, scratch, scratch + d, dtype, has_gate, center);
}

TN_INLINE void bias_row(const tn_norm_rows *job, int64_t row, float *dbias, tn_dtype dtype) {
    const void *dout = row_of(dtype, job->dout, row, job->d);
    TN_EACH_VECTOR(i, n, job->d, { STORE(dbias, LOAD(dbias) + tn_lanes_load(dtype, dout, i, n)); });
}

TN_INLINE void backward_rows(const tn_norm_rows *job, int64_t begin, int64_t end, tn_dtype dtype) {
    float *scratch = (float *)job->scratch + begin / job->grain * TN_NORM_SCRATCH_ROWS * job->d;
    memset(scratch, 0, (size_t)(2 * job->d) * sizeof(float));
    for (int64_t row = begin; row < end; row++) {
        if (!job->x) bias_row(job, row, scratch + job->d, dtype);
        else if (job->center) backward_row(job, row, scratch, dtype, false, TN_NONE, true);
        else if (!job->g) backward_row(job, row, scratch, dtype, false, TN_NONE, false);
        else if (job->g_act == TN_SILU) backward_row(job, row, scratch, dtype, true, TN_SILU, false);
        else backward_row(job, row, scratch, dtype, true, job->g_act, false);
    }
}

TN_SIMD_CLONES static void backward_f32(void *user, int64_t begin, int64_t end) { backward_rows(user, begin, end, TN_F32); }
TN_SIMD_CLONES static void backward_bf16(void *user, int64_t begin, int64_t end) { backward_rows(user, begin, end, TN_BF16); }
void tn_norm_backward_f32(void *user, int64_t begin, int64_t end) { backward_f32(user, begin, end); }
void tn_norm_backward_bf16(void *user, int64_t begin, int64_t end) { backward_bf16(user, begin, end); }
