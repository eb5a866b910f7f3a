/* linear on the CPU: the products, and before and after them the bias and the activation. */
#include <string.h>

#include "../../libtensor/parallel.h"
#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "../op_support.h"
#include "matmul_internal.h"

#define SMALLEST_CHUNK_ELEMENTS 16384
#define MOST_CHUNKS 64 /* of rows in backward; fixed, so that dbias does not depend on the number of threads */

/* ---- bias and activation, forward ---- */

typedef struct tn_linear_rows {
    tn_dtype dtype;
    int act;
    int64_t n;        /* features of a row */
    const void *from; /* the bias, or the sums */
    void *to;
} tn_linear_rows;

static void put_bias(void *user, int64_t begin, int64_t end) {
    const tn_linear_rows *job = user;
    size_t bytes = (size_t)job->n * tn_dtype_size(job->dtype);
    for (int64_t row = begin; row < end; row++) memcpy((char *)job->to + (size_t)row * bytes, job->from, bytes);
}

TN_INLINE void activate_lanes(const tn_linear_rows *job, int64_t begin, int64_t end, tn_dtype dtype) {
    for (int64_t i = begin; i < end; i += TN_VF_LANES)
        tn_lanes_store(dtype, job->to, i, end, tn_vf_act(job->act, tn_lanes_load(dtype, job->from, i, end)));
}
TN_SIMD_CLONES static void activate_f32(const tn_linear_rows *job, int64_t begin, int64_t end) { activate_lanes(job, begin, end, TN_F32); }
TN_SIMD_CLONES static void activate_bf16(const tn_linear_rows *job, int64_t begin, int64_t end) {
    activate_lanes(job, begin, end, TN_BF16);
}

static void activate(void *user, int64_t begin, int64_t end) {
    const tn_linear_rows *job = user;
    if (job->dtype == TN_F32) activate_f32(job, begin, end);
    else if (job->dtype == TN_BF16) activate_bf16(job, begin, end);
    else
        for (int64_t i = begin; i < end; i++) ((double *)job->to)[i] = tn_f64_act(job->act, ((const double *)job->from)[i]);
}

tn_status tn_linear_forward_cpu(tn_op_call *call) {
    const tn_linear_args *args = call->args;
    tn_tensor *o = call->out[0], *sum = tn_linear_saves_sum(args->act) && call->aux[0] ? call->aux[0] : o;
    if (o->numel == 0) return TN_OK;
    tn_linear_rows job = { .dtype = o->dtype, .act = args->act, .n = o->shape[o->axes - 1], .to = sum->data };
    if (call->in[2]) {
        job.from = call->in[2]->data;
        tn_parallel_for(o->numel / job.n, SMALLEST_CHUNK_ELEMENTS / job.n + 1, put_bias, &job, call->threads);
    }
    tn_product product = tn_linear_product(call, sum);
    product.beta = call->in[2] ? 1 : 0; /* sum holds the bias already */
    tn_status status = tn_product_run_cpu(&product, call->threads, call->workspace);
    if (status != TN_OK || args->act == TN_NONE) return status;
    job.from = sum->data;
    job.to = o->data;
    tn_parallel_for(o->numel, tn_even_grain(o->numel, SMALLEST_CHUNK_ELEMENTS, TN_VF_LANES, call->threads), activate, &job, call->threads);
    return TN_OK;
}

/* ---- bias and activation, backward ---- */

typedef struct tn_linear_gradient {
    tn_dtype dtype;
    int act;
    int64_t n, grain; /* features of a row, rows of a chunk */
    const void *dout;
    const void *saved; /* the sum or o, as act needs it */
    void *dsum;        /* NULL without an activation: dout is it */
    void *parts;       /* dbias of every chunk; NULL: not wanted */
} tn_linear_gradient;

TN_INLINE tn_vf slope(int act, tn_vf saved) {
    return tn_linear_saves_sum(act) ? tn_vf_act_slope(act, saved) : tn_vf_act_slope_at_output(act, saved);
}

TN_INLINE void gradient_rows(const tn_linear_gradient *job, int64_t begin, int64_t end, tn_dtype dtype) {
    const int64_t n = job->n;
    float *part = job->parts ? (float *)job->parts + begin / job->grain * n : NULL;
    for (int64_t row = begin; row < end; row++) {
        const void *dout = tn_elements_after(dtype, job->dout, row * n),
                   *saved = job->saved ? tn_elements_after(dtype, job->saved, row * n) : NULL;
        void *dsum = job->dsum ? tn_elements_after(dtype, job->dsum, row * n) : NULL;
        for (int64_t i = 0; i < n; i += TN_VF_LANES) {
            tn_vf d = tn_lanes_load(dtype, dout, i, n);
            if (dsum) {
                d *= slope(job->act, tn_lanes_load(dtype, saved, i, n));
                tn_lanes_store(dtype, dsum, i, n, d);
            }
            if (part) tn_lanes_store(TN_F32, part, i, n, row == begin ? d : d + tn_lanes_load(TN_F32, part, i, n));
        }
    }
}
TN_SIMD_CLONES static void gradient_f32(const tn_linear_gradient *job, int64_t begin, int64_t end) {
    gradient_rows(job, begin, end, TN_F32);
}
TN_SIMD_CLONES static void gradient_bf16(const tn_linear_gradient *job, int64_t begin, int64_t end) {
    gradient_rows(job, begin, end, TN_BF16);
}

static void gradient_f64(const tn_linear_gradient *job, int64_t begin, int64_t end) {
    double *part = job->parts ? (double *)job->parts + begin / job->grain * job->n : NULL;
    const double *dout = job->dout, *saved = job->saved;
    double *dsum = job->dsum;
    for (int64_t row = begin; row < end; row++)
        for (int64_t i = 0, at = row * job->n; i < job->n; i++, at++) {
            double d = dout[at];
            if (dsum) {
                d *=
                    tn_linear_saves_sum(job->act) ? tn_f64_act_slope(job->act, saved[at]) : tn_f64_act_slope_at_output(job->act, saved[at]);
                dsum[at] = d;
            }
            if (part) part[i] = row == begin ? d : part[i] + d;
        }
}

static void gradient(void *user, int64_t begin, int64_t end) {
    const tn_linear_gradient *job = user;
    if (job->dtype == TN_F32) gradient_f32(job, begin, end);
    else if (job->dtype == TN_BF16) gradient_bf16(job, begin, end);
    else gradient_f64(job, begin, end);
}

static void add_parts(const tn_linear_gradient *job, int64_t n_parts, void *dbias) {
    for (int64_t i = 0; i < job->n; i++) {
        double f64 = 0;
        float f32 = 0;
        for (int64_t part = 0; part < n_parts; part++) {
            if (job->dtype == TN_F64) f64 += ((const double *)job->parts)[part * job->n + i];
            else f32 += ((const float *)job->parts)[part * job->n + i];
        }
        if (job->dtype == TN_F64) ((double *)dbias)[i] = f64;
        else if (job->dtype == TN_F32) ((float *)dbias)[i] = f32;
        else ((tn_bf16 *)dbias)[i] = tn_f32_to_bf16(f32);
    }
}

/* ---- backward ---- */

static int64_t row_count(const tn_tensor *dout) {
    int64_t rows = 1;
    for (int axis = 0; axis < dout->axes - 1; axis++) rows *= dout->shape[axis];
    return rows;
}

static int64_t row_grain(int64_t rows, int64_t n) {
    int64_t grain = (rows + MOST_CHUNKS - 1) / MOST_CHUNKS, worthwhile = SMALLEST_CHUNK_ELEMENTS / (n + 1) + 1;
    return grain < worthwhile ? worthwhile : grain;
}

/* Backward's scratch: dsum, and after it first the parts of dbias, then what the products need. */
typedef struct tn_linear_scratch {
    size_t dsum, parts, product;
} tn_linear_scratch;

static size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

static tn_linear_scratch backward_scratch(const tn_op_call *call) {
    const tn_linear_args *args = call->args;
    const tn_tensor *dout = call->dout[0];
    int64_t rows = row_count(dout), n = dout->shape[dout->axes - 1];
    tn_linear_scratch scratch = { 0 };
    if (args->act != TN_NONE) scratch.dsum = whole_lines(tn_bytes(dout));
    if (call->din[2])
        scratch.parts = whole_lines((size_t)(tn_chunk_count(rows, row_grain(rows, n)) * n) * tn_dtype_size(tn_wide_dtype(dout->dtype)));
    for (int i = 0; i < 2; i++) {
        if (!call->din[i] || !tn_product_needs_workspace_cpu(dout, call->in[1 - i])) continue;
        tn_product product = tn_linear_gradient_product(call, i, NULL);
        size_t bytes = tn_product_workspace_cpu(&product, tn_threads(call->cx));
        if (bytes > scratch.product) scratch.product = bytes;
    }
    return scratch;
}

size_t tn_linear_workspace_cpu(const tn_op_call *call, bool backward) {
    const tn_linear_args *args = call->args;
    if (backward) {
        tn_linear_scratch scratch = backward_scratch(call);
        return scratch.dsum + (scratch.parts > scratch.product ? scratch.parts : scratch.product);
    }
    if (!tn_product_needs_workspace_cpu(call->in[0], call->in[1])) return 0;
    tn_product product = tn_linear_product(call, tn_linear_saves_sum(args->act) && call->aux[0] ? call->aux[0] : call->out[0]);
    return tn_product_workspace_cpu(&product, tn_threads(call->cx));
}

tn_status tn_linear_backward_cpu(tn_op_call *call) {
    const tn_linear_args *args = call->args;
    const tn_tensor *dout = call->dout[0];
    tn_linear_scratch scratch = backward_scratch(call);
    char *workspace = call->workspace;
    int64_t rows = row_count(dout);
    tn_linear_gradient job = { .dtype = dout->dtype, .act = args->act, .n = dout->shape[dout->axes - 1], .dout = dout->data };
    job.grain = row_grain(rows, job.n);
    if (scratch.dsum) {
        job.saved = tn_linear_saves_sum(args->act) ? call->aux[0]->data : call->out[0]->data;
        job.dsum = workspace;
    }
    if (scratch.parts) job.parts = workspace + scratch.dsum;
    if (job.dsum || job.parts) tn_parallel_for(job.n > 0 ? rows : 0, job.grain, gradient, &job, call->threads);
    if (call->din[2]) add_parts(&job, tn_chunk_count(rows, job.grain), call->din[2]->data);

    const void *dsum = job.dsum ? job.dsum : dout->data;
    void *for_product = scratch.product ? workspace + scratch.dsum : NULL;
    tn_status status = TN_OK;
    for (int i = 0; status == TN_OK && i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = tn_linear_gradient_product(call, i, dsum);
        status = tn_product_run_cpu(&product, call->threads, for_product);
    }
    return status;
}
