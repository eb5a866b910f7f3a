#include "reduce_internal.h"

#include "../family.h"
#include "../op_support.h"

/* ---- check() ---- */

static bool check_dims(tn_op_call *call) {
    const tn_reduce_args *args = call->args;
    const tn_tensor *x = call->in[0];
    uint32_t seen = 0;
    TN_WANT(args->dims.axes >= 0 && args->dims.axes <= TN_MAX_AXES, call, TN_ERR_ARGUMENT, "dims has %d entries", args->dims.axes);
    for (int i = 0; i < args->dims.axes; i++) {
        int axis = tn_axis_of(args->dims.size[i], x->axes);
        TN_WANT(axis >= 0, call, TN_ERR_ARGUMENT, "dims names axis %lld: wanted axes of x", (long long)args->dims.size[i]);
        TN_WANT(!(seen >> axis & 1), call, TN_ERR_ARGUMENT, "dims names axis %d twice", axis);
        seen |= 1u << axis;
    }
    return true;
}

static int64_t reduced_count(const tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    return tn_reduced_count(x->shape, x->axes, tn_reduced_axes(call->args, x->axes));
}

static void reduced_shape(const tn_op_call *call, tn_shape *shape) {
    const tn_reduce_args *args = call->args;
    const tn_tensor *x = call->in[0];
    uint32_t reduced = tn_reduced_axes(args, x->axes);
    shape->axes = 0;
    for (int i = 0; i < x->axes; i++) {
        if (!(reduced >> i & 1)) shape->size[shape->axes++] = x->shape[i];
        else if (args->keep) shape->size[shape->axes++] = 1;
    }
}

static bool check_reduction(tn_op_call *call, tn_dtype out) {
    if (!check_dims(call)) return false;
    call->out_spec[0].dtype = out;
    reduced_shape(call, &call->out_spec[0].shape);
    return true;
}

static bool check_something(tn_op_call *call) {
    TN_WANT(reduced_count(call) > 0 || tn_spec_numel(&call->out_spec[0]) == 0, call, TN_ERR_SHAPE,
            "the %s of nothing: wanted axes that are not empty", call->op->name);
    return true;
}

static bool sum_check(tn_op_call *call) {
    return check_reduction(call, tn_dtype_is_float(call->in[0]->dtype) ? call->in[0]->dtype : TN_I64);
}
static bool mean_check(tn_op_call *call) { return check_reduction(call, call->in[0]->dtype) && check_something(call); }
static bool argmax_check(tn_op_call *call) { return check_reduction(call, TN_I64) && check_something(call); }

static bool extremum_check(tn_op_call *call) {
    if (!check_reduction(call, call->in[0]->dtype) || !check_something(call)) return false;
    call->n_aux = 1;
    call->aux_spec[0] = (tn_spec){ reduced_count(call) > INT32_MAX ? TN_I64 : TN_I32, call->out_spec[0].shape };
    return true;
}

static bool logsumexp_check(tn_op_call *call) {
    if (!check_reduction(call, call->in[0]->dtype)) return false;
    call->save_in = 1;
    call->n_aux = 2;
    call->aux_spec[0] = call->aux_spec[1] = (tn_spec){ tn_wide_dtype(call->in[0]->dtype), call->out_spec[0].shape };
    return true;
}

static bool cumsum_check(tn_op_call *call) {
    const tn_cumsum_args *args = call->args;
    const tn_tensor *x = call->in[0];
    TN_WANT(tn_axis_of(args->dim, x->axes) >= 0, call, TN_ERR_ARGUMENT, "dim %lld: wanted an axis of x", (long long)args->dim);
    call->out_spec[0] = tn_spec_like(x);
    if (!tn_dtype_is_float(x->dtype)) call->out_spec[0].dtype = TN_I64;
    return true;
}

/* ---- formulas ---- */

static int64_t nothing_saved(const tn_op_call *call) {
    (void)call;
    return 0;
}

static int64_t extremum_saved_bytes(const tn_op_call *call) {
    return tn_spec_numel(&call->out_spec[0]) * (reduced_count(call) > INT32_MAX ? 8 : 4);
}

static int64_t logsumexp_statistics_bytes(const tn_op_call *call) {
    return 2 * tn_spec_numel(&call->out_spec[0]) * (int64_t)tn_dtype_size(tn_wide_dtype(call->in[0]->dtype));
}
static int64_t logsumexp_saved_bytes(const tn_op_call *call) { return tn_call_in_bytes(call) + logsumexp_statistics_bytes(call); }

/* Backward of sum and mean hands on their gradient with stride 0; mean's is divided first. */
static int64_t sum_floor_bytes(const tn_op_call *call, bool backward) {
    return backward ? 0 : tn_call_in_bytes(call) + tn_call_out_bytes(call);
}
static int64_t mean_floor_bytes(const tn_op_call *call, bool backward) {
    return backward ? 2 * tn_call_out_bytes(call) : tn_call_in_bytes(call) + tn_call_out_bytes(call);
}
/* Forward reads x and writes o; backward reads do and the indices and writes dx. */
static int64_t extremum_floor_bytes(const tn_op_call *call, bool backward) {
    return tn_call_in_bytes(call) + tn_call_out_bytes(call) + (backward ? extremum_saved_bytes(call) : 0);
}
static int64_t argmax_floor_bytes(const tn_op_call *call, bool backward) {
    return backward ? 0 : tn_call_in_bytes(call) + tn_call_out_bytes(call);
}
/* Backward reads x, the statistics and do and writes dx. */
static int64_t logsumexp_floor_bytes(const tn_op_call *call, bool backward) {
    return tn_call_in_bytes(call) + tn_call_out_bytes(call) + (backward ? logsumexp_saved_bytes(call) : 0);
}
static int64_t cumsum_floor_bytes(const tn_op_call *call, bool backward) {
    return backward ? 2 * tn_call_in_bytes(call) : tn_call_in_bytes(call) + tn_call_out_bytes(call);
}

/* ---- backward of sum and mean: the gradient seen with stride 0 along the reduced axes ---- */

static tn_tensor *broadcast_back(const tn_op_call *call, tn_tensor *g) {
    const tn_reduce_args *args = call->args;
    const tn_shape *shape = &call->in_spec[0].shape;
    uint32_t reduced = tn_reduced_axes(args, shape->axes);
    int64_t stride[TN_MAX_AXES];
    for (int i = 0, axis = 0; i < shape->axes; i++) {
        bool gone = reduced >> i & 1;
        stride[i] = gone ? 0 : g->stride[axis];
        if (!gone || args->keep) axis++;
    }
    return tn_retain(tn_alias(g, *shape, stride, 0));
}

static bool sum_backward(tn_op_call *call) {
    call->din[0] = broadcast_back(call, call->dout[0]);
    return call->din[0] != NULL;
}

static bool divide_check(tn_op_call *call) {
    call->out_spec[0] = tn_spec_like(call->in[0]);
    return true;
}

static const tn_input_def divide_inputs[] = { { .name = "dout", .dtypes = TN_FLOATS } };
static const tn_output_def divide_outputs[] = { { .name = "o" } };

/* Outside the registry: the inside of mean's backward. */
static const tn_op_def divide_def = {
    .name = "mean",
    .flags = TN_OP_NOT_DIFFERENTIABLE,
    .inputs = divide_inputs,
    .n_inputs = 1,
    .outputs = divide_outputs,
    .n_outputs = 1,
    .args_bytes = sizeof(int64_t),
    .check = divide_check,
    .forward[TN_DEVICE_CPU] = tn_divide_forward_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_divide_forward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
};

static bool mean_backward(tn_op_call *call) {
    const tn_shape *shape = &call->in_spec[0].shape;
    int64_t count = tn_reduced_count(shape->size, shape->axes, tn_reduced_axes(call->args, shape->axes));
    tn_tensor *g;
    tn_apply(&divide_def, &call->dout[0], 1, &count, &g);
    call->din[0] = g ? broadcast_back(call, g) : NULL;
    return call->din[0] != NULL;
}

/* ---- the descriptions ---- */

static const tn_input_def float_inputs[] = { { .name = "x", .dtypes = TN_FLOATS, .flags = TN_INPUT_STRIDED, .doc = "any shape" } };
static const tn_input_def any_inputs[] = { { .name = "x", .dtypes = TN_ANY_DTYPE, .flags = TN_INPUT_STRIDED, .doc = "any shape" } };
static const tn_input_def dense_inputs[] = { { .name = "x", .dtypes = TN_ANY_DTYPE, .doc = "any shape but a scalar" } };
static const tn_output_def reduced_outputs[] = { { "o", "x without the reduced axes" } };
static const tn_output_def cumsum_outputs[] = { { "o", "like x" } };
static const tn_attr_def reduce_attrs[] = {
    TN_ATTR(tn_reduce_args, dims, TN_ATTR_INT_LIST, "", "axes to reduce; none: all"),
    TN_ATTR(tn_reduce_args, keep, TN_ATTR_BOOL, "false", "leave the reduced axes in place with size 1"),
};
static const tn_attr_def cumsum_attrs[] = {
    TN_ATTR(tn_cumsum_args, dim, TN_ATTR_INT, NULL, "the axis"),
    TN_ATTR(tn_cumsum_args, reverse, TN_ATTR_BOOL, "false", "sum from the end"),
    TN_ATTR(tn_cumsum_args, exclusive, TN_ATTR_BOOL, "false", "leave out the element itself"),
};

#define REDUCTION(op_name, in_list)                                                                                                    \
    .name = #op_name, .family = "reduce", .inputs = in_list, .n_inputs = 1, .outputs = reduced_outputs, .n_outputs = 1,                \
    .attrs = reduce_attrs, .n_attrs = TN_COUNT(reduce_attrs), .args_bytes = sizeof(tn_reduce_args), .samples = tn_##op_name##_samples, \
    .forward[TN_DEVICE_CPU] = tn_##op_name##_forward_cpu, .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_##op_name##_forward_cuda)

static const tn_op_def sum_def = {
    REDUCTION(sum, any_inputs),
    .doc = "sum over any axes; integers into i64",
    .check = sum_check,
    .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE,
    .workspace[TN_DEVICE_CPU] = tn_sum_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_sum_workspace_cuda),
    .backward_tensors = sum_backward,
    .saved_bytes = nothing_saved,
    .floor_bytes = sum_floor_bytes,
};

static const tn_op_def mean_def = {
    REDUCTION(mean, float_inputs),
    .doc = "mean over any axes",
    .check = mean_check,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_sum_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_sum_workspace_cuda),
    .backward_tensors = mean_backward,
    .saved_bytes = nothing_saved,
    .floor_bytes = mean_floor_bytes,
};

#define EXTREMUM(op, word)                                                                \
    static const tn_op_def op##_def = {                                                   \
        REDUCTION(op, any_inputs),                                                        \
        .doc = word " over any axes; NaN wins, the gradient goes to the first of equals", \
        .check = extremum_check,                                                          \
        .backward[TN_DEVICE_CPU] = tn_extremum_backward_cpu,                              \
        .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_extremum_backward_cuda),            \
        .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,                                    \
        .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE,                                   \
        .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,                                      \
        .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,                                     \
        .workspace[TN_DEVICE_CPU] = tn_extremum_workspace,                                \
        .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_extremum_workspace_cuda),          \
        .saved_bytes = extremum_saved_bytes,                                              \
        .floor_bytes = extremum_floor_bytes,                                              \
    }
EXTREMUM(max, "maximum");
EXTREMUM(min, "minimum");

static const tn_op_def argmax_def = {
    REDUCTION(argmax, any_inputs),
    .doc = "place of the maximum among the reduced elements, the first of equals",
    .flags = TN_OP_NOT_DIFFERENTIABLE,
    .check = argmax_check,
    .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE,
    .workspace[TN_DEVICE_CPU] = tn_extremum_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_extremum_workspace_cuda),
    .saved_bytes = nothing_saved,
    .floor_bytes = argmax_floor_bytes,
};

static const tn_op_def logsumexp_def = {
    REDUCTION(logsumexp, float_inputs),
    .doc = "log of the sum of exponentials over any axes, without overflow",
    .check = logsumexp_check,
    .backward[TN_DEVICE_CPU] = tn_logsumexp_backward_cpu,
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_logsumexp_backward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_logsumexp_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_logsumexp_workspace_cuda),
    .saved_bytes = logsumexp_saved_bytes,
    .floor_bytes = logsumexp_floor_bytes,
};

static const tn_op_def cumsum_def = {
    .name = "cumsum",
    .family = "reduce",
    .doc = "running sum along an axis; integers into i64",
    .inputs = dense_inputs,
    .n_inputs = 1,
    .outputs = cumsum_outputs,
    .n_outputs = 1,
    .attrs = cumsum_attrs,
    .n_attrs = TN_COUNT(cumsum_attrs),
    .args_bytes = sizeof(tn_cumsum_args),
    .samples = tn_cumsum_samples,
    .check = cumsum_check,
    .forward[TN_DEVICE_CPU] = tn_cumsum_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_cumsum_backward_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_cumsum_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_cumsum_backward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_cumsum_workspace_cuda),
    .saved_bytes = nothing_saved,
    .floor_bytes = cumsum_floor_bytes,
};

static const tn_op_def *const reduce_ops[] = { &sum_def, &mean_def, &max_def, &min_def, &argmax_def, &logsumexp_def, &cumsum_def };
const tn_op_family tn_family_reduce = { reduce_ops, TN_COUNT(reduce_ops) };

/* ---- the calls ---- */

static tn_tensor *reduce(const tn_op_def *op, tn_tensor *x, const tn_reduce_args *args) {
    tn_tensor *o;
    return tn_apply(op, &x, 1, args, &o);
}

static const tn_reduce_args all_axes;

tn_tensor *tn_sum(tn_tensor *x) { return reduce(&sum_def, x, &all_axes); }
tn_tensor *tn_mean(tn_tensor *x) { return reduce(&mean_def, x, &all_axes); }
tn_tensor *tn_max(tn_tensor *x) { return reduce(&max_def, x, &all_axes); }
tn_tensor *tn_min(tn_tensor *x) { return reduce(&min_def, x, &all_axes); }
tn_tensor *tn_argmax(tn_tensor *x) { return reduce(&argmax_def, x, &all_axes); }
tn_tensor *tn_logsumexp(tn_tensor *x) { return reduce(&logsumexp_def, x, &all_axes); }

tn_tensor *tn_sum_over(tn_tensor *x, tn_reduce_args args) { return reduce(&sum_def, x, &args); }
tn_tensor *tn_mean_over(tn_tensor *x, tn_reduce_args args) { return reduce(&mean_def, x, &args); }
tn_tensor *tn_max_over(tn_tensor *x, tn_reduce_args args) { return reduce(&max_def, x, &args); }
tn_tensor *tn_min_over(tn_tensor *x, tn_reduce_args args) { return reduce(&min_def, x, &args); }
tn_tensor *tn_argmax_over(tn_tensor *x, tn_reduce_args args) { return reduce(&argmax_def, x, &args); }
tn_tensor *tn_logsumexp_over(tn_tensor *x, tn_reduce_args args) { return reduce(&logsumexp_def, x, &args); }

tn_tensor *tn_cumsum(tn_tensor *x, tn_cumsum_args args) {
    tn_tensor *o;
    return tn_apply(&cumsum_def, &x, 1, &args, &o);
}
