/* Forward of the reductions, and backward of those whose gradient is not a broadcast. */
#include "reduce_internal.h"

#include <string.h>

#include "../../libtensor/cpu_primitives.h"
#include "../../libtensor/parallel.h"
#include "../lanes_cpu.h"
#include "../op_support.h"

/* ---- forward ---- */

static tn_reduction reduction_of(const tn_op_call *call, const tn_reducer *reducer) {
    return (tn_reduction){
        .reducer = reducer,
        .in = call->in[0],
        .axes = tn_reduced_axes(call->args, call->in[0]->axes),
        .divisor = 1,
        .out_dtype = call->out_spec[0].dtype,
        .threads = call->threads,
        .workspace = call->workspace,
    };
}

static size_t workspace_of(const tn_op_call *call, bool backward, const tn_reducer *reducer) {
    if (backward) return 0;
    tn_reduction r = reduction_of(call, reducer);
    return tn_reduce_workspace_bytes(&r);
}

size_t tn_sum_workspace(const tn_op_call *call, bool backward) {
    return backward ? 0 : workspace_of(call, backward, tn_reducer_sum(call->in[0]->dtype));
}
size_t tn_extremum_workspace(const tn_op_call *call, bool backward) {
    return backward ? 0 : workspace_of(call, backward, tn_reducer_extremum(call->in[0]->dtype));
}
size_t tn_logsumexp_workspace(const tn_op_call *call, bool backward) {
    return backward ? 0 : workspace_of(call, backward, tn_reducer_logsumexp(call->in[0]->dtype));
}

tn_status tn_sum_forward_cpu(tn_op_call *call) {
    tn_reduction r = reduction_of(call, tn_reducer_sum(call->in[0]->dtype));
    r.out = call->out[0]->data;
    tn_reduce_run(&r);
    return TN_OK;
}

tn_status tn_mean_forward_cpu(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    tn_reduction r = reduction_of(call, tn_reducer_sum(x->dtype));
    r.divisor = (double)tn_reduced_count(x->shape, x->axes, r.axes);
    r.out = call->out[0]->data;
    tn_reduce_run(&r);
    return TN_OK;
}

static tn_status extremum_forward(tn_op_call *call, bool flip) {
    tn_reduction r = reduction_of(call, tn_reducer_extremum(call->in[0]->dtype));
    r.flip = flip;
    r.out = call->out[0]->data;
    if (call->aux[0]) {
        r.index = call->aux[0]->data;
        r.index_dtype = call->aux[0]->dtype;
    }
    tn_reduce_run(&r);
    return TN_OK;
}

tn_status tn_max_forward_cpu(tn_op_call *call) { return extremum_forward(call, false); }
tn_status tn_min_forward_cpu(tn_op_call *call) { return extremum_forward(call, true); }

tn_status tn_argmax_forward_cpu(tn_op_call *call) {
    tn_reduction r = reduction_of(call, tn_reducer_extremum(call->in[0]->dtype));
    r.index = call->out[0]->data;
    r.index_dtype = TN_I64;
    tn_reduce_run(&r);
    return TN_OK;
}

tn_status tn_logsumexp_forward_cpu(tn_op_call *call) {
    tn_reduction r = reduction_of(call, tn_reducer_logsumexp(call->in[0]->dtype));
    r.out = call->out[0]->data;
    for (int i = 0; i < 2; i++) r.statistics[i] = call->aux[i] ? call->aux[i]->data : NULL;
    tn_reduce_run(&r);
    return TN_OK;
}

/* ---- mean: its gradient divided by the count ---- */

tn_status tn_divide_forward_cpu(tn_op_call *call) {
    double count = (double)*(const int64_t *)call->args;
    const tn_tensor *g = call->in[0];
    void *o = call->out[0]->data;
    for (int64_t i = 0; i < g->numel; i++) {
        if (g->dtype == TN_F64) ((double *)o)[i] = ((const double *)g->data)[i] / count;
        else if (g->dtype == TN_F32) ((float *)o)[i] = (float)((double)((const float *)g->data)[i] / count);
        else ((tn_bf16 *)o)[i] = tn_f32_to_bf16((float)((double)tn_bf16_to_f32(((const tn_bf16 *)g->data)[i]) / count));
    }
    return TN_OK;
}

/* ---- max and min: the gradient goes to the winner's place, all else is 0 ---- */

typedef struct scatter {
    char *dx;
    const char *dout;
    const void *index;
    size_t size;
    bool wide_index;
    int n_kept, n_reduced; /* axes of dx, innermost first */
    int64_t kept_size[TN_MAX_AXES], kept_stride[TN_MAX_AXES], reduced_size[TN_MAX_AXES], reduced_stride[TN_MAX_AXES];
} scatter;

static void clear_part(void *user, int64_t begin, int64_t end) { memset((char *)user + begin, 0, (size_t)(end - begin)); }

static int64_t offset_of(int64_t place, int n, const int64_t *size, const int64_t *stride) {
    int64_t offset = 0;
    for (int i = 0; i < n; i++) {
        offset += place % size[i] * stride[i];
        place /= size[i];
    }
    return offset;
}

static void scatter_part(void *user, int64_t begin, int64_t end) {
    const scatter *s = user;
    for (int64_t i = begin; i < end; i++) {
        int64_t winner = s->wide_index ? ((const int64_t *)s->index)[i] : ((const int32_t *)s->index)[i];
        int64_t at =
            offset_of(i, s->n_kept, s->kept_size, s->kept_stride) + offset_of(winner, s->n_reduced, s->reduced_size, s->reduced_stride);
        memcpy(s->dx + (size_t)at * s->size, s->dout + (size_t)i * s->size, s->size);
    }
}

tn_status tn_extremum_backward_cpu(tn_op_call *call) {
    const tn_tensor *dx = call->din[0], *dout = call->dout[0];
    uint32_t reduced = tn_reduced_axes(call->args, dx->axes);
    scatter s = { .dx = dx->data,
                  .dout = dout->data,
                  .index = call->aux[0]->data,
                  .size = tn_dtype_size(dx->dtype),
                  .wide_index = call->aux[0]->dtype == TN_I64 };
    for (int i = dx->axes - 1; i >= 0; i--) {
        bool gone = reduced >> i & 1;
        int at = gone ? s.n_reduced++ : s.n_kept++;
        (gone ? s.reduced_size : s.kept_size)[at] = dx->shape[i];
        (gone ? s.reduced_stride : s.kept_stride)[at] = dx->stride[i];
    }
    const int64_t clear_grain = 1 << 18, scatter_grain = 1 << 12;
    tn_parallel_for((int64_t)tn_bytes(dx), clear_grain, clear_part, dx->data, call->threads);
    if (dx->numel) tn_parallel_for(dout->numel, scatter_grain, scatter_part, &s, call->threads);
    return TN_OK;
}

/* ---- logsumexp: dx = do exp(x - m - log s), 0 where m is -inf ---- */

typedef struct lse_axis {
    int64_t size, o_stride;
} lse_axis;

/* Elements of x and dx side by side, and what belongs to them o_stride (0 or 1) apart. */
typedef struct lse_part {
    void *dx;
    const void *x, *m, *log_s, *dout;
    int64_t o_stride, n;
} lse_part;

typedef struct lse_backward {
    const char *x;
    char *dx;
    const tn_tensor *m, *log_s, *dout;
    size_t size; /* of an element of x */
    int n_axes;  /* outer ones, innermost first */
    lse_axis inner, outer[TN_MAX_AXES];
    void (*write)(const lse_part *part);
} lse_backward;

static void plan_lse_axes(lse_backward *b, const tn_tensor *dx, uint32_t reduced) {
    int64_t o_stride = 1;
    bool have_inner = false;
    b->n_axes = 0;
    b->inner = (lse_axis){ 1, 0 };
    for (int i = dx->axes - 1; i >= 0; i--) {
        bool gone = reduced >> i & 1;
        lse_axis axis = { dx->shape[i], gone ? 0 : o_stride };
        if (!gone) o_stride *= axis.size;
        if (axis.size == 1) continue;
        lse_axis *last = b->n_axes ? &b->outer[b->n_axes - 1] : &b->inner;
        if (!have_inner) b->inner = axis;
        else if (axis.o_stride == last->size * last->o_stride) last->size *= axis.size;
        else b->outer[b->n_axes++] = axis;
        have_inner = true;
    }
}

TN_INLINE tn_vf lse_gradient(tn_vf x, tn_vf m, tn_vf log_s, tn_vf dout) {
    return tn_vf_select((tn_vi)m == (int32_t)0xff800000 /* -inf */, tn_vf_zero(), dout * tn_vf_exp((x - m) - log_s));
}

TN_INLINE void lse_write(tn_dtype dtype, const lse_part *part) {
    int64_t n = part->n;
    if (part->o_stride == 0) {
        tn_vf m = tn_vf_set(*(const float *)part->m), log_s = tn_vf_set(*(const float *)part->log_s);
        tn_vf dout = tn_vf_set(tn_element_load(dtype, part->dout, 0));
        for (int64_t i = 0; i < n; i += TN_VF_LANES)
            tn_lanes_store(dtype, part->dx, i, n, lse_gradient(tn_lanes_load(dtype, part->x, i, n), m, log_s, dout));
        return;
    }
    for (int64_t i = 0; i < n; i += TN_VF_LANES)
        tn_lanes_store(dtype, part->dx, i, n,
                       lse_gradient(tn_lanes_load(dtype, part->x, i, n), tn_lanes_load(TN_F32, part->m, i, n),
                                    tn_lanes_load(TN_F32, part->log_s, i, n), tn_lanes_load(dtype, part->dout, i, n)));
}

TN_SIMD_CLONES static void lse_write_f32(const lse_part *part) { lse_write(TN_F32, part); }
TN_SIMD_CLONES static void lse_write_bf16(const lse_part *part) { lse_write(TN_BF16, part); }
static void lse_write_f64(const lse_part *part) {
    const double *x = part->x, *m = part->m, *log_s = part->log_s, *dout = part->dout;
    for (int64_t i = 0; i < part->n; i++) {
        int64_t at = i * part->o_stride;
        ((double *)part->dx)[i] = m[at] == -INFINITY ? 0 : dout[at] * exp(x[i] - m[at] - log_s[at]);
    }
}

static const void *element(const tn_tensor *t, int64_t at) { return (const char *)t->data + at * (int64_t)tn_dtype_size(t->dtype); }

static void lse_row(const lse_backward *b, int64_t row, int64_t o_at) {
    size_t offset = (size_t)(row * b->inner.size) * b->size;
    const lse_part part = {
        .dx = b->dx + offset,
        .x = b->x + offset,
        .m = element(b->m, o_at),
        .log_s = element(b->log_s, o_at),
        .dout = element(b->dout, o_at),
        .o_stride = b->inner.o_stride,
        .n = b->inner.size,
    };
    b->write(&part);
}

static void lse_rows(void *user, int64_t begin, int64_t end) {
    const lse_backward *b = user;
    for (int64_t row = begin; row < end; row++) {
        int64_t o_at = 0, rest = row;
        for (int i = 0; i < b->n_axes; i++) {
            o_at += rest % b->outer[i].size * b->outer[i].o_stride;
            rest /= b->outer[i].size;
        }
        lse_row(b, row, o_at);
    }
}

/* A single long row is cut so that every core has a part of it. */
static void cut_long_row(lse_backward *b) {
    const int64_t part = 1 << 12;
    if (b->n_axes || b->inner.size % part || b->inner.size == part) return;
    b->outer[b->n_axes++] = (lse_axis){ b->inner.size / part, part * b->inner.o_stride };
    b->inner.size = part;
}

tn_status tn_logsumexp_backward_cpu(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    tn_tensor *dx = call->din[0];
    lse_backward b = {
        .x = x->data, .dx = dx->data, .m = call->aux[0], .log_s = call->aux[1], .dout = call->dout[0], .size = tn_dtype_size(x->dtype)
    };
    if (x->numel == 0) return TN_OK;
    /* What has other strides than dx is laid out in dx first and then worked on in place. */
    if (!tn_is_contiguous(x)) {
        tn_status status = tn_cpu_copy(dx, x, call->threads);
        if (status != TN_OK) return status;
        b.x = dx->data;
    }
    b.write = x->dtype == TN_F64 ? lse_write_f64 : x->dtype == TN_F32 ? lse_write_f32 : lse_write_bf16;
    plan_lse_axes(&b, dx, tn_reduced_axes(call->args, dx->axes));
    cut_long_row(&b);
    const int64_t task = 8192;
    int64_t n_rows = dx->numel / b.inner.size;
    tn_parallel_for(n_rows, tn_even_grain(n_rows, task / b.inner.size + 1, 1, call->threads), lse_rows, &b, call->threads);
    return TN_OK;
}
