/* rms_norm and layer_norm on the CPU: the f64 reference, and what drives it and the vector kernels. */
#include <math.h>
#include <string.h>

#include "../../libtensor/parallel.h"
#include "../activation_cpu.h"
#include "../op_support.h"
#include "norm_internal.h"

#define SMALLEST_CHUNK_ELEMENTS 16384
#define MOST_CHUNKS 64 /* of a backward; fixed, so that sums over rows do not depend on the number of threads */
#define SMALLEST_CHUNK_ROWS 16

/* ---- f64 ---- */

static void forward_row_f64(const tn_norm_rows *job, int64_t row) {
    const int64_t d = job->d;
    const double *x = (const double *)job->x + row * d, *weight = job->weight, *bias = job->bias;
    const double *g = job->g ? (const double *)job->g + row * d : NULL;
    double *o = (double *)job->o + row * d;
    double mean = 0, square = 0;
    for (int64_t i = 0; job->center && i < d; i++) mean += x[i];
    mean /= (double)d;
    for (int64_t i = 0; i < d; i++) square += (x[i] - mean) * (x[i] - mean);
    double rstd = 1 / sqrt(square / (double)d + job->eps);
    for (int64_t i = 0; i < d; i++) o[i] = (x[i] - mean) * rstd * weight[i] * (g ? tn_f64_act(job->g_act, g[i]) : 1) + (bias ? bias[i] : 0);
    if (job->rstd) ((double *)job->rstd)[row] = rstd;
    if (job->mean) ((double *)job->mean)[row] = mean;
}

static void forward_f64(void *user, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) forward_row_f64(user, row);
}

static void backward_row_f64(const tn_norm_rows *job, int64_t row, double *dweight, double *dbias, double *u) {
    const int64_t d = job->d;
    const double *dout = (const double *)job->dout + row * d;
    for (int64_t i = 0; job->wants_bias && i < d; i++) dbias[i] += dout[i];
    if (!job->x) return;
    const double *x = (const double *)job->x + row * d, *weight = job->weight;
    const double *g = job->g ? (const double *)job->g + row * d : NULL;
    double rstd = ((const double *)job->rstd)[row], mean = job->mean ? ((const double *)job->mean)[row] : 0;
    double sum = 0, dot = 0;
    for (int64_t i = 0; i < d; i++) {
        double normal = (x[i] - mean) * rstd, gate = g ? tn_f64_act(job->g_act, g[i]) : 1;
        u[i] = dout[i] * weight[i] * gate;
        sum += u[i];
        dot += u[i] * normal;
        if (job->wants_weight) dweight[i] += dout[i] * normal * gate;
        if (job->dg) ((double *)job->dg)[row * d + i] = dout[i] * normal * weight[i] * tn_f64_act_slope(job->g_act, g[i]);
    }
    sum = job->center ? sum / (double)d : 0;
    dot /= (double)d;
    for (int64_t i = 0; job->dx && i < d; i++) ((double *)job->dx)[row * d + i] = rstd * (u[i] - sum - (x[i] - mean) * rstd * dot);
}

static void backward_f64(void *user, int64_t begin, int64_t end) {
    const tn_norm_rows *job = user;
    double *dweight = (double *)job->scratch + begin / job->grain * TN_NORM_SCRATCH_ROWS * job->d;
    double *dbias = dweight + job->d, *u = dbias + job->d;
    memset(dweight, 0, (size_t)(2 * job->d) * sizeof(double));
    for (int64_t row = begin; row < end; row++) backward_row_f64(job, row, dweight, dbias, u);
}

/* ---- the sums over all rows ---- */

typedef struct tn_norm_sum {
    const void *first; /* this sum's row in the scratch of chunk 0 */
    void *to;
    int64_t n_chunks, d;
    tn_dtype dtype;
} tn_norm_sum;

static void sum_chunks(void *user, int64_t begin, int64_t end) {
    const tn_norm_sum *sum = user;
    int64_t step = TN_NORM_SCRATCH_ROWS * sum->d;
    for (int64_t i = begin; i < end; i++) {
        double f64 = 0;
        float f32 = 0;
        if (sum->dtype == TN_F64) {
            for (int64_t chunk = 0; chunk < sum->n_chunks; chunk++) f64 += ((const double *)sum->first)[chunk * step + i];
            ((double *)sum->to)[i] = f64;
            continue;
        }
        for (int64_t chunk = 0; chunk < sum->n_chunks; chunk++) f32 += ((const float *)sum->first)[chunk * step + i];
        if (sum->dtype == TN_F32) ((float *)sum->to)[i] = f32;
        else ((tn_bf16 *)sum->to)[i] = tn_f32_to_bf16(f32);
    }
}

static void finish_sum(const tn_op_call *call, const tn_norm_rows *job, int input, int scratch_row) {
    tn_tensor *to = call->din[input];
    if (!to) return;
    size_t element = to->dtype == TN_F64 ? sizeof(double) : sizeof(float);
    const char *scratch = job->scratch; /* none where there are no rows */
    tn_norm_sum sum = { .first = scratch ? scratch + (size_t)(scratch_row * job->d) * element : NULL,
                        .to = to->data,
                        .n_chunks = tn_chunk_count(job->rows, job->grain),
                        .d = job->d,
                        .dtype = to->dtype };
    tn_parallel_for(job->d, 1024, sum_chunks, &sum, call->threads);
}

/* ---- calls ---- */

static int64_t row_count(const tn_spec *x) {
    int64_t rows = 1;
    for (int i = 0; i < x->shape.axes - 1; i++) rows *= x->shape.size[i];
    return rows;
}

static int64_t row_width(const tn_spec *x) { return x->shape.size[x->shape.axes - 1]; }

static int64_t backward_grain(int64_t rows, int64_t d) {
    int64_t grain = (rows + MOST_CHUNKS - 1) / MOST_CHUNKS, worthwhile = SMALLEST_CHUNK_ELEMENTS / (d + 1) + 1;
    if (grain < worthwhile) grain = worthwhile;
    return grain < SMALLEST_CHUNK_ROWS ? SMALLEST_CHUNK_ROWS : grain;
}

size_t tn_norm_workspace_cpu(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    const tn_spec *x = &call->in_spec[0];
    int64_t rows = row_count(x), d = row_width(x);
    return (size_t)(tn_chunk_count(rows, backward_grain(rows, d)) * TN_NORM_SCRATCH_ROWS * d) * tn_dtype_size(tn_wide_dtype(x->dtype));
}

static const void *data_of(const tn_tensor *t) { return t ? t->data : NULL; }
static void *place_of(const tn_tensor *t) { return t ? t->data : NULL; }

static tn_status run_forward(tn_op_call *call, tn_norm_rows *job) {
    const tn_tensor *x = call->in[0];
    if (x->numel == 0) return TN_OK;
    job->d = x->shape[x->axes - 1];
    job->rows = x->numel / job->d;
    job->x = x->data;
    job->weight = call->in[1]->data;
    job->o = call->out[0]->data;
    job->rstd = place_of(call->aux[0]);
    tn_range_body body = x->dtype == TN_F64 ? forward_f64 : x->dtype == TN_F32 ? tn_norm_forward_f32 : tn_norm_forward_bf16;
    tn_parallel_for(job->rows, tn_even_grain(job->rows, SMALLEST_CHUNK_ELEMENTS / job->d + 1, 1, call->threads), body, job, call->threads);
    return TN_OK;
}

static tn_status run_backward(tn_op_call *call, tn_norm_rows *job) {
    tn_dtype dtype = call->in_spec[0].dtype;
    job->rows = row_count(&call->in_spec[0]);
    job->d = row_width(&call->in_spec[0]);
    job->grain = backward_grain(job->rows, job->d);
    job->x = data_of(call->in[0]);
    job->weight = data_of(call->in[1]);
    job->dout = call->dout[0]->data;
    job->dx = place_of(call->din[0]);
    job->rstd = call->n_aux ? place_of(call->aux[0]) : NULL;
    job->wants_weight = call->din[1] != NULL;
    job->scratch = call->workspace;
    tn_range_body body = dtype == TN_F64 ? backward_f64 : dtype == TN_F32 ? tn_norm_backward_f32 : tn_norm_backward_bf16;
    if (job->d > 0) tn_parallel_for(job->rows, job->grain, body, job, call->threads);
    finish_sum(call, job, 1, 0);
    if (job->wants_bias) finish_sum(call, job, 2, 1);
    return TN_OK;
}

tn_status tn_rms_norm_forward_cpu(tn_op_call *call) {
    const tn_rms_norm_args *args = call->args;
    tn_norm_rows job = { .eps = args->eps, .g_act = args->g_act, .g = data_of(call->in[2]) };
    return run_forward(call, &job);
}

tn_status tn_rms_norm_backward_cpu(tn_op_call *call) {
    const tn_rms_norm_args *args = call->args;
    tn_norm_rows job = { .eps = args->eps, .g_act = args->g_act, .g = data_of(call->in[2]), .dg = place_of(call->din[2]) };
    return run_backward(call, &job);
}

tn_status tn_layer_norm_forward_cpu(tn_op_call *call) {
    const tn_layer_norm_args *args = call->args;
    tn_norm_rows job = { .eps = args->eps, .center = true, .bias = call->in[2]->data, .mean = call->n_aux ? place_of(call->aux[1]) : NULL };
    return run_forward(call, &job);
}

tn_status tn_layer_norm_backward_cpu(tn_op_call *call) {
    const tn_layer_norm_args *args = call->args;
    tn_norm_rows job = {
        .eps = args->eps, .center = true, .mean = call->n_aux ? place_of(call->aux[1]) : NULL, .wants_bias = call->din[2] != NULL
    };
    return run_backward(call, &job);
}
