/* Rows of logits on the CPU. The gradient needs exp(logit - log-sum-exp); the maximum and the log of the sum beside it are kept apart,
 * since their sum, rounded to f32, would lose what tells large logits apart. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "../../libtensor/parallel.h"
#include "../lanes_cpu.h"
#include "../op_support.h"
#include "cross_entropy_internal.h"

#define SMALLEST_CHUNK_ELEMENTS 16384
#define LANES TN_VF_LANES

/* ---- one row, f32 and bf16 ---- */

/* In four running vectors; a NaN anywhere is the result. */
TN_INLINE float largest(tn_dtype dtype, const void *row, int64_t v) {
    tn_vf most[4] = { tn_vf_set(-INFINITY), tn_vf_set(-INFINITY), tn_vf_set(-INFINITY), tn_vf_set(-INFINITY) };
    int64_t i = 0;
    for (; i + 4 * LANES <= v; i += 4 * LANES)
        for (int j = 0; j < 4; j++) most[j] = tn_vf_max_nan(tn_lanes_load(dtype, row, i + j * LANES, v), most[j]);
    for (; i < v; i += LANES) most[0] = tn_vf_max_nan(tn_lanes_load_or(dtype, row, i, v, -INFINITY), most[0]);
    return tn_vf_max_lane(tn_vf_max_nan(tn_vf_max_nan(most[0], most[1]), tn_vf_max_nan(most[2], most[3])));
}

TN_INLINE float sum_of_exponentials(tn_dtype dtype, const void *row, int64_t v, float max) {
    tn_vf sum[4] = { 0 };
    int64_t i = 0;
    for (; i + 4 * LANES <= v; i += 4 * LANES)
        for (int j = 0; j < 4; j++) sum[j] += tn_vf_exp(tn_lanes_load(dtype, row, i + j * LANES, v) - max);
    for (; i < v; i += LANES) sum[0] += tn_vf_exp(tn_lanes_load_or(dtype, row, i, v, -INFINITY) - max);
    return tn_vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

TN_INLINE float logit_at(tn_dtype dtype, const void *row, int64_t i) {
    return dtype == TN_F32 ? ((const float *)row)[i] : tn_bf16_to_f32(((const tn_bf16 *)row)[i]);
}

TN_INLINE double sum_losses(tn_entropy_rows *job, int64_t begin, int64_t end, tn_dtype dtype) {
    double loss = 0;
    for (int64_t row = begin; row < end; row++) {
        const void *logits = tn_elements_after(dtype, job->logits, row * job->v);
        float max = largest(dtype, logits, job->v), log_sum = logf(sum_of_exponentials(dtype, logits, job->v, max));
        if (job->max) {
            ((float *)job->max)[row] = max;
            ((float *)job->log_sum)[row] = log_sum;
        }
        if (job->target[row] != job->ignore_index) loss += (max - logit_at(dtype, logits, job->target[row])) + log_sum;
    }
    return loss;
}
TN_SIMD_CLONES static double sum_losses_f32(tn_entropy_rows *job, int64_t begin, int64_t end) {
    return sum_losses(job, begin, end, TN_F32);
}
TN_SIMD_CLONES static double sum_losses_bf16(tn_entropy_rows *job, int64_t begin, int64_t end) {
    return sum_losses(job, begin, end, TN_BF16);
}

TN_INLINE void gradients(const tn_entropy_rows *job, int64_t begin, int64_t end, tn_dtype dtype) {
    for (int64_t row = begin; row < end; row++) {
        const void *logits = tn_elements_after(dtype, job->logits, row * job->v);
        void *dlogits = tn_elements_after(dtype, job->dlogits, row * job->v);
        int64_t target = job->target[row];
        if (target == job->ignore_index) {
            memset(dlogits, 0, (size_t)job->v * (dtype == TN_F32 ? 4 : 2));
            continue;
        }
        float max = ((const float *)job->max)[row], log_sum = ((const float *)job->log_sum)[row], scale = (float)job->scale;
        float at_target = expm1f(logit_at(dtype, logits, target) - max - log_sum) * scale;
        for (int64_t i = 0; i < job->v; i += LANES)
            tn_lanes_store(dtype, dlogits, i, job->v, tn_vf_exp(tn_lanes_load(dtype, logits, i, job->v) - max - log_sum) * scale);
        if (dtype == TN_F32) ((float *)dlogits)[target] = at_target;
        else ((tn_bf16 *)dlogits)[target] = tn_f32_to_bf16(at_target);
    }
}
TN_SIMD_CLONES static void gradients_f32(const tn_entropy_rows *job, int64_t begin, int64_t end) { gradients(job, begin, end, TN_F32); }
TN_SIMD_CLONES static void gradients_bf16(const tn_entropy_rows *job, int64_t begin, int64_t end) { gradients(job, begin, end, TN_BF16); }

/* ---- one row, f64 ---- */

static double sum_losses_f64(tn_entropy_rows *job, int64_t begin, int64_t end) {
    double loss = 0;
    for (int64_t row = begin; row < end; row++) {
        const double *logits = (const double *)job->logits + row * job->v;
        double max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < job->v; i++) max = logits[i] > max || isnan(logits[i]) ? logits[i] : max;
        for (int64_t i = 0; i < job->v; i++) sum += exp(logits[i] - max);
        if (job->max) {
            ((double *)job->max)[row] = max;
            ((double *)job->log_sum)[row] = log(sum);
        }
        if (job->target[row] != job->ignore_index) loss += (max - logits[job->target[row]]) + log(sum);
    }
    return loss;
}

static void gradients_f64(const tn_entropy_rows *job, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
        const double *logits = (const double *)job->logits + row * job->v;
        double *dlogits = (double *)job->dlogits + row * job->v;
        int64_t target = job->target[row];
        bool ignored = target == job->ignore_index;
        double max = ((const double *)job->max)[row], log_sum = ((const double *)job->log_sum)[row];
        double at_target = ignored ? 0 : expm1(logits[target] - max - log_sum) * job->scale;
        for (int64_t i = 0; i < job->v; i++) dlogits[i] = ignored ? 0 : exp(logits[i] - max - log_sum) * job->scale;
        if (!ignored) dlogits[target] = at_target;
    }
}

/* ---- all rows ---- */

static int64_t row_grain(const tn_entropy_rows *job) {
    int64_t grain = (job->rows + TN_CROSS_ENTROPY_PARTS - 1) / TN_CROSS_ENTROPY_PARTS,
            worthwhile = SMALLEST_CHUNK_ELEMENTS / (job->v + 1) + 1;
    return grain < worthwhile ? worthwhile : grain;
}

static void sum_chunk(void *user, int64_t begin, int64_t end) {
    tn_entropy_rows *job = user;
    double *part = &job->part[begin / job->grain];
    if (job->dtype == TN_F64) *part = sum_losses_f64(job, begin, end);
    else if (job->dtype == TN_F32) *part = sum_losses_f32(job, begin, end);
    else *part = sum_losses_bf16(job, begin, end);
}

double tn_cross_entropy_sum(tn_entropy_rows *rows, int threads) {
    rows->grain = row_grain(rows);
    tn_parallel_for(rows->rows, rows->grain, sum_chunk, rows, threads);
    double loss = 0;
    for (int64_t chunk = 0; chunk < tn_chunk_count(rows->rows, rows->grain); chunk++) loss += rows->part[chunk];
    return loss;
}

static void gradient_chunk(void *user, int64_t begin, int64_t end) {
    const tn_entropy_rows *job = user;
    if (job->dtype == TN_F64) gradients_f64(job, begin, end);
    else if (job->dtype == TN_F32) gradients_f32(job, begin, end);
    else gradients_bf16(job, begin, end);
}

void tn_cross_entropy_gradient(tn_entropy_rows *rows, int threads) {
    tn_parallel_for(rows->rows, row_grain(rows), gradient_chunk, rows, threads);
}

int64_t tn_cross_entropy_count(tn_op_call *call, const tn_tensor *target, int64_t v, tn_status *status) {
    const tn_cross_entropy_args *args = call->args;
    const int64_t *value = target->data;
    int64_t count = 0;
    *status = TN_OK;
    for (int64_t row = 0; row < target->numel; row++) {
        if (value[row] == args->ignore_index) continue;
        if (value[row] < 0 || value[row] >= v) {
            *status = TN_ERR_ARGUMENT;
            tn_refuse(call, *status, "target number %" PRId64 " is %" PRId64 ", wanted 0 to %" PRId64 " or ignore_index (%" PRId64 ")", row,
                      value[row], v - 1, args->ignore_index);
            return 0;
        }
        count++;
    }
    return count;
}

void tn_cross_entropy_store(tn_tensor *scalar, double value) {
    if (scalar->dtype == TN_F64) *(double *)scalar->data = value;
    else if (scalar->dtype == TN_F32) *(float *)scalar->data = (float)value;
    else *(tn_bf16 *)scalar->data = tn_f64_to_bf16(value);
}

double tn_cross_entropy_load(const tn_tensor *scalar) {
    if (scalar->dtype == TN_F64) return *(const double *)scalar->data;
    return scalar->dtype == TN_F32 ? *(const float *)scalar->data : tn_bf16_to_f32(*(const tn_bf16 *)scalar->data);
}

/* ---- calls ---- */

static tn_entropy_rows rows_of(const tn_op_call *call) {
    const tn_cross_entropy_args *args = call->args;
    const tn_tensor *logits = call->in[0], *target = call->in[1];
    return (tn_entropy_rows){ .dtype = logits->dtype,
                              .rows = target->numel,
                              .v = logits->shape[logits->axes - 1],
                              .ignore_index = args->ignore_index,
                              .logits = logits->data,
                              .target = target->data,
                              .max = call->aux[0] ? call->aux[0]->data : NULL,
                              .log_sum = call->aux[1] ? call->aux[1]->data : NULL };
}

tn_status tn_cross_entropy_forward_cpu(tn_op_call *call) {
    tn_entropy_rows rows = rows_of(call);
    tn_status status;
    int64_t count = tn_cross_entropy_count(call, call->in[1], rows.v, &status);
    if (status != TN_OK) return status;
    double loss = tn_cross_entropy_sum(&rows, call->threads);
    tn_cross_entropy_store(call->out[0], count > 0 ? loss / (double)count : 0);
    return TN_OK;
}

tn_status tn_cross_entropy_backward_cpu(tn_op_call *call) {
    tn_entropy_rows rows = rows_of(call);
    tn_status status;
    int64_t count = tn_cross_entropy_count(call, call->in[1], rows.v, &status);
    if (status != TN_OK) return status;
    rows.dlogits = call->din[0]->data;
    rows.scale = count > 0 ? tn_cross_entropy_load(call->dout[0]) / (double)count : 0;
    tn_cross_entropy_gradient(&rows, call->threads);
    return TN_OK;
}
