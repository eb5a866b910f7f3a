#include "../../libtensor/parallel.h"
#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "swiglu_internal.h"

#define SMALLEST_GRAIN 16384

typedef struct tn_swiglu_job {
    tn_dtype dtype;
    int64_t f;
    const void *x, *d;
    void *to;
} tn_swiglu_job;

/* Rows are worked on a block at a time. Each half of a row is a run of its own in memory, which processors have to find
 * anew, so meanwhile the next row's block is asked for. */
#define BLOCK 64

TN_INLINE void fetch_next_row(tn_dtype dtype, const void *u, const void *v, int64_t i, int64_t f) {
    for (int64_t j = 0; j < BLOCK; j += 16) {
        __builtin_prefetch(tn_elements_after(dtype, u, 2 * f + i + j));
        __builtin_prefetch(tn_elements_after(dtype, v, 2 * f + i + j));
    }
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

TN_INLINE void forward_row(tn_dtype dtype, const void *restrict u, const void *restrict v, void *restrict o, int64_t f) {
    for (int64_t at = 0; at < f; at += BLOCK) {
        fetch_next_row(dtype, u, v, at, f);
        int64_t end = least(at + BLOCK, f);
        for (int64_t i = at; i < end; i++)
            tn_lane_store(dtype, o, i, tn_f32_act(TN_SILU, tn_lane_load(dtype, u, i)) * tn_lane_load(dtype, v, i));
    }
}

TN_INLINE void backward_row(tn_dtype dtype, const void *restrict u, const void *restrict v, const void *restrict d, void *restrict du,
                            void *restrict dv, int64_t f) {
    for (int64_t at = 0; at < f; at += BLOCK) {
        fetch_next_row(dtype, u, v, at, f);
        int64_t end = least(at + BLOCK, f);
        for (int64_t i = at; i < end; i++) {
            float x = tn_lane_load(dtype, u, i), upstream = tn_lane_load(dtype, d, i), s = tn_f32_sigmoid(x);
            tn_lane_store(dtype, du, i, upstream * tn_lane_load(dtype, v, i) * (s * (1.0f + x * (1.0f - s))));
            tn_lane_store(dtype, dv, i, upstream * (x * s));
        }
    }
}

TN_INLINE void forward_rows(tn_dtype dtype, const tn_swiglu_job *job, int64_t begin, int64_t end) {
    int64_t f = job->f;
    for (int64_t row = begin; row < end; row++) {
        const void *u = tn_elements_after(dtype, job->x, row * 2 * f);
        forward_row(dtype, u, tn_elements_after(dtype, u, f), tn_elements_after(dtype, job->to, row * f), f);
    }
}
TN_INLINE void backward_rows(tn_dtype dtype, const tn_swiglu_job *job, int64_t begin, int64_t end) {
    int64_t f = job->f;
    for (int64_t row = begin; row < end; row++) {
        const void *u = tn_elements_after(dtype, job->x, row * 2 * f);
        void *du = tn_elements_after(dtype, job->to, row * 2 * f);
        const void *v = tn_elements_after(dtype, u, f), *d = tn_elements_after(dtype, job->d, row * f);
        backward_row(dtype, u, v, d, du, tn_elements_after(dtype, du, f), f);
    }
}

TN_SIMD_CLONES static void forward_lanes(void *user, int64_t begin, int64_t end) {
    const tn_swiglu_job *job = user;
    if (job->dtype == TN_F32) forward_rows(TN_F32, job, begin, end);
    else forward_rows(TN_BF16, job, begin, end);
}
TN_SIMD_CLONES static void backward_lanes(void *user, int64_t begin, int64_t end) {
    const tn_swiglu_job *job = user;
    if (job->dtype == TN_F32) backward_rows(TN_F32, job, begin, end);
    else backward_rows(TN_BF16, job, begin, end);
}

static void forward_f64(void *user, int64_t begin, int64_t end) {
    const tn_swiglu_job *job = user;
    int64_t f = job->f;
    for (int64_t row = begin; row < end; row++) {
        const double *u = (const double *)job->x + row * 2 * f, *v = u + f;
        double *o = (double *)job->to + row * f;
        for (int64_t i = 0; i < f; i++) o[i] = tn_f64_act(TN_SILU, u[i]) * v[i];
    }
}
static void backward_f64(void *user, int64_t begin, int64_t end) {
    const tn_swiglu_job *job = user;
    int64_t f = job->f;
    for (int64_t row = begin; row < end; row++) {
        const double *u = (const double *)job->x + row * 2 * f, *v = u + f, *d = (const double *)job->d + row * f;
        double *du = (double *)job->to + row * 2 * f, *dv = du + f;
        for (int64_t i = 0; i < f; i++) {
            du[i] = d[i] * v[i] * tn_f64_act_slope(TN_SILU, u[i]);
            dv[i] = d[i] * tn_f64_act(TN_SILU, u[i]);
        }
    }
}

static tn_status run(tn_range_body f64, tn_range_body lanes, const tn_tensor *x, const tn_tensor *d, tn_tensor *to, int threads) {
    int64_t width = x->shape[x->axes - 1];
    if (x->numel == 0) return TN_OK;
    tn_swiglu_job job = { .dtype = x->dtype, .f = width / 2, .x = x->data, .d = d ? d->data : NULL, .to = to->data };
    int64_t rows = x->numel / width;
    tn_parallel_for(rows, tn_even_grain(rows, SMALLEST_GRAIN / width, 1, threads), x->dtype == TN_F64 ? f64 : lanes, &job, threads);
    return TN_OK;
}

tn_status tn_swiglu_forward_cpu(tn_op_call *call) {
    return run(forward_f64, forward_lanes, call->in[0], NULL, call->out[0], call->threads);
}
tn_status tn_swiglu_backward_cpu(tn_op_call *call) {
    return run(backward_f64, backward_lanes, call->in[0], call->dout[0], call->din[0], call->threads);
}
