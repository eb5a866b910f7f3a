#include <string.h>

#include "../../libtensor/parallel.h"
#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "act_internal.h"

#define SMALLEST_GRAIN 16384
#define COPY_GRAIN (1 << 18)

/* Forward: from = x, to = o. Backward: from = what was saved, d = do, to = dx. */
typedef struct tn_act_job {
    int act;
    const void *from, *d;
    void *to;
} tn_act_job;

/* Runs loop(act) with act a constant, so that the choice stands outside the loop. */
#define FOR_CONSTANT_ACT(act, loop)           \
    switch (act) {                            \
    case TN_RELU: loop(TN_RELU); break;       \
    case TN_SIGMOID: loop(TN_SIGMOID); break; \
    case TN_SILU: loop(TN_SILU); break;       \
    case TN_GELU: loop(TN_GELU); break;       \
    case TN_TANH: loop(TN_TANH); break;       \
    }

TN_INLINE void forward_range(tn_dtype dtype, const tn_act_job *job, int64_t begin, int64_t end) {
    const void *restrict x = job->from;
    void *restrict o = job->to;
#define FORWARD_LOOP(act) \
    for (int64_t i = begin; i < end; i++) tn_lane_store(dtype, o, i, tn_f32_act(act, tn_lane_load(dtype, x, i)))
    FOR_CONSTANT_ACT(job->act, FORWARD_LOOP)
}

TN_INLINE float slope(int act, float saved) {
    return tn_act_saves_input(act) ? tn_f32_act_slope(act, saved) : tn_f32_act_slope_at_output(act, saved);
}

TN_INLINE void backward_range(tn_dtype dtype, const tn_act_job *job, int64_t begin, int64_t end) {
    const void *restrict saved = job->from, *restrict d = job->d;
    void *restrict dx = job->to;
#define BACKWARD_LOOP(act) \
    for (int64_t i = begin; i < end; i++) tn_lane_store(dtype, dx, i, tn_lane_load(dtype, d, i) * slope(act, tn_lane_load(dtype, saved, i)))
    FOR_CONSTANT_ACT(job->act, BACKWARD_LOOP)
}

TN_SIMD_CLONES static void forward_f32(void *user, int64_t begin, int64_t end) { forward_range(TN_F32, user, begin, end); }
TN_SIMD_CLONES static void forward_bf16(void *user, int64_t begin, int64_t end) { forward_range(TN_BF16, user, begin, end); }
TN_SIMD_CLONES static void backward_f32(void *user, int64_t begin, int64_t end) { backward_range(TN_F32, user, begin, end); }
TN_SIMD_CLONES static void backward_bf16(void *user, int64_t begin, int64_t end) { backward_range(TN_BF16, user, begin, end); }

static void forward_f64(void *user, int64_t begin, int64_t end) {
    const tn_act_job *job = user;
    const double *x = job->from;
    double *o = job->to;
    for (int64_t i = begin; i < end; i++) o[i] = tn_f64_act(job->act, x[i]);
}

static void backward_f64(void *user, int64_t begin, int64_t end) {
    const tn_act_job *job = user;
    const double *saved = job->from, *d = job->d;
    double *dx = job->to;
    bool at_input = tn_act_saves_input(job->act);
    for (int64_t i = begin; i < end; i++)
        dx[i] = d[i] * (at_input ? tn_f64_act_slope(job->act, saved[i]) : tn_f64_act_slope_at_output(job->act, saved[i]));
}

static void copy_bytes(void *user, int64_t begin, int64_t end) {
    const tn_act_job *job = user;
    memcpy((char *)job->to + begin, (const char *)job->from + begin, (size_t)(end - begin));
}

static tn_status run(const tn_op_call *call, const tn_range_body bodies[3], const tn_tensor *x, tn_act_job *job) {
    int64_t grain = tn_even_grain(x->numel, SMALLEST_GRAIN, 64, call->threads);
    tn_parallel_for(x->numel, grain, bodies[x->dtype], job, call->threads);
    return TN_OK;
}

tn_status tn_act_forward_cpu(tn_op_call *call) {
    const tn_act_args *args = call->args;
    const tn_tensor *x = call->in[0];
    if (args->act == TN_SOFTMAX) return tn_softmax_forward_cpu(call);
    tn_act_job job = { .act = args->act, .from = x->data, .to = call->out[0]->data };
    if (args->act == TN_NONE) {
        tn_parallel_for((int64_t)tn_bytes(x), COPY_GRAIN, copy_bytes, &job, call->threads);
        return TN_OK;
    }
    static const tn_range_body bodies[3] = { [TN_F64] = forward_f64, [TN_F32] = forward_f32, [TN_BF16] = forward_bf16 };
    return run(call, bodies, x, &job);
}

tn_status tn_act_backward_cpu(tn_op_call *call) {
    const tn_act_args *args = call->args;
    if (args->act == TN_SOFTMAX) return tn_softmax_backward_cpu(call);
    /* none never comes here: it passes the gradient on as it is. */
    const tn_tensor *saved = tn_act_saves_input(args->act) ? call->in[0] : call->out[0];
    static const tn_range_body bodies[3] = { [TN_F64] = backward_f64, [TN_F32] = backward_f32, [TN_BF16] = backward_bf16 };
    tn_act_job job = { .act = args->act, .from = saved->data, .d = call->dout[0]->data, .to = call->din[0]->data };
    return run(call, bodies, saved, &job);
}
