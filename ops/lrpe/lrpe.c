#include "../family.h"
#include "../op_support.h"
#include "lrpe_internal.h"

/* ---- the geometry ---- */

static tn_lrpe_strides strides_of(const tn_tensor *t, int layout) {
    int token = tn_layout_token_axis(layout), head = tn_layout_head_axis(layout);
    return (tn_lrpe_strides){ t->stride[0], t->stride[token], t->stride[head], t->stride[3] };
}

static tn_lrpe_strides dense_strides(int layout, int64_t tokens, int64_t heads, int64_t width) {
    bool heads_outside = layout == TN_BHND;
    return (tn_lrpe_strides){ tokens * heads * width, heads_outside ? width : heads * width, heads_outside ? tokens * width : width, 1 };
}

static tn_status make_grid(const tn_lrpe_args *args, const tn_shape *x, const tn_shape *theta, bool moves, tn_lrpe_grid *grid, char *reason,
                           size_t n_bytes) {
    tn_lrpe_request request = {
        .kind = args->kind,
        .tokens = x->size[tn_layout_token_axis(args->layout)],
        .heads = x->size[tn_layout_head_axis(args->layout)],
        .width = x->size[3],
        .shape = args->shape,
        .leading = args->l,
        .offset = args->offset,
        .moves = moves,
        .theta = theta,
    };
    return tn_lrpe_grid_make(grid, &request, reason, n_bytes);
}

static tn_lrpe_softmax softmax_of(const tn_lrpe_args *args) {
    if (args->act != TN_SOFTMAX) return TN_LRPE_NO_SOFTMAX;
    return tn_axis_of(args->dim, 4) == 3 ? TN_LRPE_SOFTMAX_FEATURES : TN_LRPE_SOFTMAX_TOKENS;
}

static void plan_tensors(tn_lrpe_call *lrpe, const tn_op_call *call, bool backward) {
    const tn_lrpe_args *args = call->args;
    const tn_tensor *x = call->in[TN_LRPE_X], *theta = call->in[TN_LRPE_THETA], *offset_t = call->in[TN_LRPE_OFFSET];
    lrpe->x = x ? x->data : NULL;
    if (x) lrpe->x_stride = strides_of(x, args->layout);
    lrpe->theta = theta ? theta->data : NULL;
    lrpe->offset_t = offset_t ? offset_t->data : NULL;
    if (!backward) {
        lrpe->o = call->out[0]->data;
        return;
    }
    lrpe->d = call->dout[0]->data;
    lrpe->do_stride = strides_of(call->dout[0], args->layout);
    lrpe->dx = call->din[TN_LRPE_X] ? call->din[TN_LRPE_X]->data : NULL;
    lrpe->dtheta = call->din[TN_LRPE_THETA] ? call->din[TN_LRPE_THETA]->data : NULL;
}

/* Statistics come first, the table last. */
static void plan_aux(tn_lrpe_call *lrpe, const tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    int at = 0;
    if (lrpe->softmax == TN_LRPE_SOFTMAX_TOKENS) {
        lrpe->max = call->aux[at] ? call->aux[at]->data : NULL;
        at++;
        lrpe->sum = call->aux[at] ? call->aux[at]->data : NULL;
        at++;
    }
    if (args->cache && call->aux[at]) lrpe->table = call->aux[at]->data;
    lrpe->table_stride = dense_strides(args->layout, lrpe->grid.tokens, lrpe->grid.theta_heads, 2 * lrpe->grid.angles);
    lrpe->table_stride.batch = 0;
    if (lrpe->grid.theta_heads == 1) lrpe->table_stride.head = 0;
}

void tn_lrpe_plan(tn_lrpe_call *lrpe, const tn_op_call *call, bool backward) {
    const tn_lrpe_args *args = call->args;
    const tn_tensor *in = call->in[TN_LRPE_X];
    tn_spec x = backward ? call->in_spec[TN_LRPE_X] : tn_spec_like(in);
    tn_shape theta = backward ? call->in_spec[TN_LRPE_THETA].shape : tn_shape_of(call->in[TN_LRPE_THETA]);
    char reason[128];
    *lrpe = (tn_lrpe_call){ .kind = args->kind, .dtype = x.dtype, .wide = tn_wide_dtype(x.dtype), .act = args->act };
    make_grid(args, &x.shape, &theta, false, &lrpe->grid, reason, sizeof reason); /* check() has seen it work */
    lrpe->softmax = softmax_of(args);
    lrpe->layout = args->layout;
    lrpe->batch = x.shape.size[0];
    lrpe->heads = x.shape.size[tn_layout_head_axis(args->layout)];
    lrpe->width = x.shape.size[3];
    lrpe->out_width = args->kind == TN_COSINE ? 2 * lrpe->width : lrpe->width;
    lrpe->o_stride = dense_strides(args->layout, lrpe->grid.tokens, lrpe->heads, lrpe->out_width);
    lrpe->dx_stride = dense_strides(args->layout, lrpe->grid.tokens, lrpe->heads, lrpe->width);
    plan_tensors(lrpe, call, backward);
    plan_aux(lrpe, call);
}

/* ---- what the call may be, and what it keeps ---- */

static bool saves_x(const tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    return call->wants && (args->act != TN_NONE || tn_wants(call, TN_LRPE_THETA));
}
static bool saves_theta(const tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    return call->wants && !args->cache;
}
static bool saves_offset(const tn_op_call *call) {
    return call->in[TN_LRPE_OFFSET] && (saves_theta(call) || tn_wants(call, TN_LRPE_THETA));
}

/* Maximum or sum of every column of tokens. */
static tn_spec statistic_spec(const tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    const tn_tensor *x = call->in[TN_LRPE_X];
    return (tn_spec){ tn_wide_dtype(x->dtype), TN_SHAPE(x->shape[0], x->shape[tn_layout_head_axis(args->layout)], x->shape[3]) };
}

static tn_spec table_spec(const tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    const tn_tensor *x = call->in[TN_LRPE_X], *theta = call->in[TN_LRPE_THETA];
    int64_t tokens = x->shape[tn_layout_token_axis(args->layout)], row = args->kind == TN_COSINE ? 2 * x->shape[3] : x->shape[3];
    tn_shape shape = args->layout == TN_BHND ? TN_SHAPE(theta->shape[0], tokens, row) : TN_SHAPE(tokens, theta->shape[0], row);
    return (tn_spec){ tn_wide_dtype(x->dtype), shape };
}

static bool check_attributes(tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    const tn_tensor *x = call->in[TN_LRPE_X], *offset_t = call->in[TN_LRPE_OFFSET];
    TN_WANT(x->axes == 4, call, TN_ERR_SHAPE, "wanted x of four axes");
    TN_WANT(args->layout == TN_BNHD || args->layout == TN_BHND, call, TN_ERR_ARGUMENT, "layout = %d is none", args->layout);
    TN_WANT(args->act >= TN_NONE && args->act <= TN_SOFTMAX, call, TN_ERR_ARGUMENT, "act = %d is no activation", args->act);
    if (args->act == TN_SOFTMAX) {
        int axis = tn_axis_of(args->dim, 4);
        TN_WANT(axis == 3 || axis == tn_layout_token_axis(args->layout), call, TN_ERR_ARGUMENT,
                "softmax along dim %lld: wanted the features (3) or the tokens (%d)", (long long)args->dim,
                tn_layout_token_axis(args->layout));
    }
    TN_WANT(args->shape.axes >= 0 && args->shape.axes <= TN_LRPE_MAX_AXES, call, TN_ERR_ARGUMENT, "shape has %d axes", args->shape.axes);
    TN_WANT(!offset_t || offset_t->numel == 1, call, TN_ERR_SHAPE, "wanted offset_t of one element");
    return true;
}

static bool lrpe_check(tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    const tn_tensor *x = call->in[TN_LRPE_X];
    tn_shape shape = tn_shape_of(x), theta = tn_shape_of(call->in[TN_LRPE_THETA]);
    tn_lrpe_grid grid;
    char reason[128];
    if (!check_attributes(call)) return false;
    tn_status status = make_grid(args, &shape, &theta, call->in[TN_LRPE_OFFSET] != NULL, &grid, reason, sizeof reason);
    TN_WANT(status == TN_OK, call, status, "%s", reason);

    if (args->kind == TN_COSINE) shape.size[3] *= 2;
    call->out_spec[0] = (tn_spec){ x->dtype, shape };
    if (softmax_of(args) == TN_LRPE_SOFTMAX_TOKENS) {
        call->aux_spec[call->n_aux++] = statistic_spec(call);
        call->aux_spec[call->n_aux++] = statistic_spec(call);
    }
    if (args->cache) call->aux_spec[call->n_aux++] = table_spec(call);
    call->save_in = (uint32_t)saves_x(call) << TN_LRPE_X | (uint32_t)saves_theta(call) << TN_LRPE_THETA |
                    (uint32_t)saves_offset(call) << TN_LRPE_OFFSET;
    return true;
}

/* ---- formulas ---- */

/* Bytes of maximum and sum of softmax over the tokens. */
static int64_t statistics_bytes(const tn_op_call *call) {
    if (softmax_of(call->args) != TN_LRPE_SOFTMAX_TOKENS) return 0;
    tn_spec spec = statistic_spec(call);
    return 2 * tn_spec_bytes(&spec);
}

static int64_t lrpe_saved_bytes(const tn_op_call *call) {
    const tn_lrpe_args *args = call->args;
    const tn_tensor *x = call->in[TN_LRPE_X], *theta = call->in[TN_LRPE_THETA];
    int64_t wide = (int64_t)tn_dtype_size(tn_wide_dtype(x->dtype)), bytes = statistics_bytes(call);
    bool for_theta = tn_wants(call, TN_LRPE_THETA);
    if (!call->wants) return 0;
    if (args->act != TN_NONE || for_theta) bytes += x->numel * (int64_t)tn_dtype_size(x->dtype);
    if (args->cache) {
        int64_t tokens = x->shape[tn_layout_token_axis(args->layout)], angles = args->kind == TN_COSINE ? x->shape[3] : x->shape[3] / 2;
        bytes += tokens * theta->shape[0] * 2 * angles * wide;
    } else {
        bytes += theta->numel * wide;
    }
    if (call->in[TN_LRPE_OFFSET] && (!args->cache || for_theta)) bytes += 8;
    return bytes;
}

/* Forward reads x and theta and writes o, and what it keeps besides x. Backward reads do and what was saved and writes the gradients that
 * are wanted. */
static int64_t lrpe_floor_bytes(const tn_op_call *call, bool backward) {
    const tn_tensor *x = call->in[TN_LRPE_X], *theta = call->in[TN_LRPE_THETA];
    if (!backward) {
        bool keeps_table = call->wants && ((const tn_lrpe_args *)call->args)->cache;
        tn_spec table = table_spec(call);
        return tn_call_in_bytes(call) + tn_call_out_bytes(call) + (call->wants ? statistics_bytes(call) : 0) +
               (keeps_table ? tn_spec_bytes(&table) : 0);
    }
    return tn_call_out_bytes(call) + lrpe_saved_bytes(call) + (tn_wants(call, TN_LRPE_X) ? (int64_t)tn_bytes(x) : 0) +
           (tn_wants(call, TN_LRPE_THETA) ? (int64_t)tn_bytes(theta) : 0);
}

/* ---- the op ---- */

static const char *const kind_names[] = TN_LRPE_KIND_NAMES;
static const char *const act_names[] = TN_ACTIVATION_NAMES;
static const char *const layout_names[] = TN_LAYOUT_NAMES;

static const tn_input_def lrpe_inputs[] = {
    { .name = "x", .flags = TN_INPUT_STRIDED, .dtypes = TN_FLOATS, .doc = "[b, n, h, d], or [b, h, n, d] with layout bhnd" },
    { .name = "theta", .flags = TN_INPUT_WIDE, .doc = "[h, w] or [1, w]" },
    { .name = "offset_t",
      .flags = TN_INPUT_OPTIONAL | TN_INPUT_NO_GRADIENT,
      .dtypes = TN_MASK(TN_I64),
      .doc = "one number, added to offset" },
};
static const tn_output_def lrpe_outputs[] = { { "o", "like x; cosine: with twice the features" } };
static const tn_attr_def lrpe_attrs[] = {
    TN_ATTR_OF(tn_lrpe_args, kind, kind_names, NULL, "rotate pairs of features, or cosine and sine of each"),
    TN_ATTR_OF(tn_lrpe_args, act, act_names, "none", "activation of x"),
    TN_ATTR(tn_lrpe_args, dim, TN_ATTR_INT, "-1", "axis of softmax: features or tokens"),
    TN_ATTR(tn_lrpe_args, shape, TN_ATTR_INT_LIST, "", "grid of the tokens after l, last axis fastest; empty: one axis"),
    TN_ATTR(tn_lrpe_args, l, TN_ATTR_INT, "0", "leading tokens, which have angle 0"),
    TN_ATTR(tn_lrpe_args, offset, TN_ATTR_INT, "0", "added to positions; one axis only"),
    TN_ATTR(tn_lrpe_args, cache, TN_ATTR_BOOL, "false", "keep cosines and sines for backward"),
    TN_ATTR_OF(tn_lrpe_args, layout, layout_names, "bnhd", "order of x's axes"),
};

static const tn_op_def lrpe_def = {
    .name = "lrpe",
    .family = "lrpe",
    .doc = "linearised relative position encoding of act(x)",
    .flags = TN_OP_STRIDED_DOUT,
    .inputs = lrpe_inputs,
    .n_inputs = TN_COUNT(lrpe_inputs),
    .outputs = lrpe_outputs,
    .n_outputs = TN_COUNT(lrpe_outputs),
    .attrs = lrpe_attrs,
    .n_attrs = TN_COUNT(lrpe_attrs),
    .args_bytes = sizeof(tn_lrpe_args),
    .samples = tn_lrpe_samples,
    .check = lrpe_check,
    .forward[TN_DEVICE_CPU] = tn_lrpe_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_lrpe_backward_cpu,
    .workspace[TN_DEVICE_CPU] = tn_lrpe_workspace_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_lrpe_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_lrpe_backward_cuda),
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_lrpe_workspace_cuda),
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .saved_bytes = lrpe_saved_bytes,
    .floor_bytes = lrpe_floor_bytes,
};

static const tn_op_def *const lrpe_ops[] = { &lrpe_def };
const tn_op_family tn_family_lrpe = { lrpe_ops, TN_COUNT(lrpe_ops) };

tn_tensor *tn_lrpe(tn_tensor *x, tn_tensor *theta, tn_tensor *offset_t, tn_lrpe_args args) {
    tn_tensor *o, *in[] = { x, theta, offset_t };
    return tn_apply(&lrpe_def, in, TN_COUNT(in), &args, &o);
}
