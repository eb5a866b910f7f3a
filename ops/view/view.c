/* The views. */
#include "view_internal.h"

#include "../../libtensor/context_internal.h"
#include "../family.h"
#include "../op_support.h"

static int64_t nothing_saved(const tn_op_call *call) {
    (void)call;
    return 0;
}

static const tn_input_def view_inputs[] = { { .name = "x", .dtypes = TN_ANY_DTYPE, .flags = TN_INPUT_STRIDED, .doc = "any shape" } };

/* Hands a tensor made in backward to the tape. */
static bool pass_on(tn_op_call *call, tn_tensor *dx) {
    call->din[0] = tn_retain(dx);
    return dx != NULL;
}

/* ---- reshape ---- */

static bool same_sizes(const tn_tensor *x, const tn_shape *shape) {
    bool same = x->axes == shape->axes;
    for (int i = 0; same && i < x->axes; i++) same = x->shape[i] == shape->size[i];
    return same;
}

/* Strides that show x's elements in another shape of as many; false where only a copy could. Runs of x's axes that are one stretch
 * of memory are cut anew; no new axis may reach across two of them. */
static bool strides_in_shape(const tn_tensor *x, const tn_shape *shape, int64_t *stride) {
    int to = shape->axes - 1;
    int64_t run = 1;
    if (x->numel == 0 || x->axes == 0) {
        for (int64_t dense = 1; to >= 0; to--) {
            stride[to] = dense;
            dense *= shape->size[to] > 0 ? shape->size[to] : 1;
        }
        return true;
    }
    int64_t base = x->stride[x->axes - 1];
    for (int from = x->axes - 1; from >= 0; from--) {
        run *= x->shape[from];
        bool goes_on = from > 0 && (x->shape[from - 1] == 1 || x->stride[from - 1] == run * base);
        if (goes_on) continue;
        int64_t covered = 1;
        while (to >= 0 && (covered < run || shape->size[to] == 1)) {
            stride[to] = covered * base;
            covered *= shape->size[to--];
        }
        if (covered != run) return false;
        run = 1;
        if (from > 0) base = x->stride[from - 1];
    }
    return to < 0;
}

static tn_tensor *in_shape(tn_tensor *x, const tn_shape *shape) {
    int64_t stride[TN_MAX_AXES];
    if (same_sizes(x, shape)) return tn_alias(x, *shape, x->stride, 0);
    if (strides_in_shape(x, shape, stride)) return tn_alias(x, *shape, stride, 0);
    tn_tensor *dense = tn_dense(x, x->dtype);
    if (!dense) return NULL;
    tn_tensor *o = strides_in_shape(dense, shape, stride) ? tn_alias(dense, *shape, stride, 0) : NULL;
    tn_unreference(dense);
    return o;
}

/* A size of -1 becomes what is left of x's elements. */
static bool reshape_check(tn_op_call *call) {
    const tn_reshape_args *args = call->args;
    const tn_tensor *x = call->in[0];
    tn_shape *shape = &call->out_spec[0].shape;
    int open = -1;
    int64_t known = 1;
    TN_WANT(args->shape.axes >= 0 && args->shape.axes <= TN_MAX_AXES, call, TN_ERR_ARGUMENT, "shape has %d axes", args->shape.axes);
    *shape = args->shape;
    call->out_spec[0].dtype = x->dtype;
    for (int i = 0; i < shape->axes; i++) {
        int64_t size = shape->size[i];
        TN_WANT(size >= -1, call, TN_ERR_ARGUMENT, "size %lld: wanted sizes of at least 0, or -1 once", (long long)size);
        TN_WANT(size >= 0 || open < 0, call, TN_ERR_ARGUMENT, "more than one size is -1");
        if (size < 0) open = i;
        else TN_WANT(!__builtin_mul_overflow(known, size, &known), call, TN_ERR_SHAPE, "a shape of too many elements");
    }
    if (open >= 0) {
        TN_WANT(known > 0 && x->numel % known == 0, call, TN_ERR_SHAPE, "%lld elements do not fill the other axes of %lld elements",
                (long long)x->numel, (long long)known);
        shape->size[open] = x->numel / known;
        return true;
    }
    TN_WANT(known == x->numel, call, TN_ERR_SHAPE, "a shape of %lld elements: wanted %lld", (long long)known, (long long)x->numel);
    return true;
}

static bool reshape_view(tn_op_call *call) { return (call->out[0] = in_shape(call->in[0], &call->out_spec[0].shape)) != NULL; }
static bool reshape_backward(tn_op_call *call) { return pass_on(call, in_shape(call->dout[0], &call->in_spec[0].shape)); }

static const tn_output_def reshape_outputs[] = { { "o", "of the given shape" } };
static const tn_attr_def reshape_attrs[] = { TN_ATTR(tn_reshape_args, shape, TN_ATTR_INT_LIST, NULL, "the new shape; one size may be -1") };

const tn_op_def tn_reshape_def = {
    .name = "reshape",
    .family = "view",
    .doc = "the same elements in another shape; a view where the strides allow it",
    .flags = TN_OP_VIEW,
    .inputs = view_inputs,
    .n_inputs = 1,
    .outputs = reshape_outputs,
    .n_outputs = 1,
    .attrs = reshape_attrs,
    .n_attrs = TN_COUNT(reshape_attrs),
    .args_bytes = sizeof(tn_reshape_args),
    .samples = tn_reshape_samples,
    .check = reshape_check,
    .view = reshape_view,
    .backward_tensors = reshape_backward,
    .saved_bytes = nothing_saved,
};

/* ---- permute ---- */

static bool permute_check(tn_op_call *call) {
    const tn_permute_args *args = call->args;
    const tn_tensor *x = call->in[0];
    uint32_t seen = 0;
    TN_WANT(args->dims.axes == x->axes, call, TN_ERR_ARGUMENT, "dims has %d entries: wanted each of the %d axes once", args->dims.axes,
            x->axes);
    call->out_spec[0] = (tn_spec){ .dtype = x->dtype, .shape.axes = x->axes };
    for (int i = 0; i < x->axes; i++) {
        int axis = tn_axis_of(args->dims.size[i], x->axes);
        TN_WANT(axis >= 0, call, TN_ERR_ARGUMENT, "dims names axis %lld: wanted axes of x", (long long)args->dims.size[i]);
        TN_WANT(!(seen >> axis & 1), call, TN_ERR_ARGUMENT, "dims names axis %d twice", axis);
        seen |= 1u << axis;
        call->out_spec[0].shape.size[i] = x->shape[axis];
    }
    return true;
}

static bool permute_view(tn_op_call *call) {
    const tn_permute_args *args = call->args;
    tn_tensor *x = call->in[0];
    int64_t stride[TN_MAX_AXES];
    for (int i = 0; i < x->axes; i++) stride[i] = x->stride[tn_axis_of(args->dims.size[i], x->axes)];
    return (call->out[0] = tn_alias(x, call->out_spec[0].shape, stride, 0)) != NULL;
}

static bool permute_backward(tn_op_call *call) {
    const tn_permute_args *args = call->args;
    tn_tensor *dout = call->dout[0];
    int64_t stride[TN_MAX_AXES];
    for (int i = 0; i < dout->axes; i++) stride[tn_axis_of(args->dims.size[i], dout->axes)] = dout->stride[i];
    return pass_on(call, tn_alias(dout, call->in_spec[0].shape, stride, 0));
}

static const tn_output_def permute_outputs[] = { { "o", "x with its axes in another order" } };
static const tn_attr_def permute_attrs[] = { TN_ATTR(tn_permute_args, dims, TN_ATTR_INT_LIST, NULL, "axis i of o is axis dims[i] of x") };

const tn_op_def tn_permute_def = {
    .name = "permute",
    .family = "view",
    .doc = "the axes in another order",
    .flags = TN_OP_VIEW,
    .inputs = view_inputs,
    .n_inputs = 1,
    .outputs = permute_outputs,
    .n_outputs = 1,
    .attrs = permute_attrs,
    .n_attrs = TN_COUNT(permute_attrs),
    .args_bytes = sizeof(tn_permute_args),
    .samples = tn_permute_samples,
    .check = permute_check,
    .view = permute_view,
    .backward_tensors = permute_backward,
    .saved_bytes = nothing_saved,
};

/* ---- slice ---- */

/* A place as Python reads it: negative from the end, then held within [0, size]. */
static int64_t place_in(int64_t place, int64_t size) {
    if (place < 0) place = place < -size ? 0 : place + size;
    return place > size ? size : place;
}

tn_slice_range tn_slice_range_of(const tn_slice_args *args, const tn_shape *shape) {
    int axis = tn_axis_of(args->dim, shape->axes);
    int64_t size = shape->size[axis], start = place_in(args->start, size), end = place_in(args->end, size);
    return (tn_slice_range){ axis, start, args->step, end > start ? (end - start - 1) / args->step + 1 : 0 };
}

static bool slice_check(tn_op_call *call) {
    const tn_slice_args *args = call->args;
    const tn_tensor *x = call->in[0];
    TN_WANT(tn_axis_of(args->dim, x->axes) >= 0, call, TN_ERR_ARGUMENT, "dim %lld: wanted an axis of x", (long long)args->dim);
    TN_WANT(args->step >= 1, call, TN_ERR_ARGUMENT, "step %lld: wanted at least 1", (long long)args->step);
    call->out_spec[0] = tn_spec_like(x);
    tn_slice_range range = tn_slice_range_of(args, &call->out_spec[0].shape);
    call->out_spec[0].shape.size[range.axis] = range.count;
    return true;
}

static bool slice_view(tn_op_call *call) {
    tn_tensor *x = call->in[0];
    int64_t stride[TN_MAX_AXES];
    tn_shape whole = tn_shape_of(x);
    tn_slice_range range = tn_slice_range_of(call->args, &whole);
    for (int i = 0; i < x->axes; i++) stride[i] = x->stride[i];
    if (range.count > 1) stride[range.axis] *= range.step;
    return (call->out[0] = tn_alias(x, call->out_spec[0].shape, stride, range.count ? range.start * x->stride[range.axis] : 0)) != NULL;
}

static const tn_output_def slice_outputs[] = { { "o", "x with fewer elements along dim" } };
static const tn_attr_def slice_attrs[] = {
    TN_ATTR(tn_slice_args, dim, TN_ATTR_INT, "0", "the axis"),
    TN_ATTR(tn_slice_args, start, TN_ATTR_INT, "0", "the first element; negative from the end"),
    TN_ATTR(tn_slice_args, end, TN_ATTR_INT, "9223372036854775807", "the first element left out; negative from the end"),
    TN_ATTR(tn_slice_args, step, TN_ATTR_INT, "1", "from one element to the next"),
};

const tn_op_def tn_slice_def = {
    .name = "slice",
    .family = "view",
    .doc = "every step-th element of an axis from start to before end",
    .flags = TN_OP_VIEW | TN_OP_STRIDED_DOUT,
    .inputs = view_inputs,
    .n_inputs = 1,
    .outputs = slice_outputs,
    .n_outputs = 1,
    .attrs = slice_attrs,
    .n_attrs = TN_COUNT(slice_attrs),
    .args_bytes = sizeof(tn_slice_args),
    .samples = tn_slice_samples,
    .check = slice_check,
    .view = slice_view,
    .backward[TN_DEVICE_CPU] = tn_slice_backward,
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_slice_backward),
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .saved_bytes = nothing_saved,
};

/* ---- expand ---- */

static bool expand_check(tn_op_call *call) {
    const tn_expand_args *args = call->args;
    const tn_tensor *x = call->in[0];
    int added = args->shape.axes - x->axes;
    TN_WANT(args->shape.axes <= TN_MAX_AXES && added >= 0, call, TN_ERR_ARGUMENT, "shape has %d axes: wanted %d to %d", args->shape.axes,
            x->axes, TN_MAX_AXES);
    call->out_spec[0] = (tn_spec){ x->dtype, args->shape };
    for (int i = 0; i < args->shape.axes; i++) {
        int64_t *size = &call->out_spec[0].shape.size[i], own = i < added ? 1 : x->shape[i - added];
        TN_WANT(*size >= 0 || (*size == -1 && i >= added), call, TN_ERR_ARGUMENT,
                "size %lld of axis %d: wanted at least 0, or -1 for one of x's axes", (long long)*size, i);
        if (*size == -1) *size = own;
        TN_WANT(*size == own || own == 1, call, TN_ERR_SHAPE, "axis %d has size %lld and can't become %lld", i, (long long)own,
                (long long)*size);
    }
    TN_WANT(tn_shape_numel(&call->out_spec[0].shape) >= 0, call, TN_ERR_SHAPE, "a shape of too many elements");
    return true;
}

static bool expand_view(tn_op_call *call) {
    tn_tensor *x = call->in[0];
    const tn_shape *shape = &call->out_spec[0].shape;
    int64_t stride[TN_MAX_AXES];
    int added = shape->axes - x->axes;
    for (int i = 0; i < shape->axes; i++) stride[i] = i < added || x->shape[i - added] != shape->size[i] ? 0 : x->stride[i - added];
    return (call->out[0] = tn_alias(x, *shape, stride, 0)) != NULL;
}

static const tn_output_def expand_outputs[] = { { "o", "x repeated" } };
static const tn_attr_def expand_attrs[] = { TN_ATTR(tn_expand_args, shape, TN_ATTR_INT_LIST, NULL,
                                                    "the shape to fill; -1 keeps x's size") };

const tn_op_def tn_expand_def = {
    .name = "expand",
    .family = "view",
    .doc = "axes of size 1 repeated with stride 0, new axes in front",
    .flags = TN_OP_VIEW | TN_OP_STRIDED_DOUT,
    .inputs = view_inputs,
    .n_inputs = 1,
    .outputs = expand_outputs,
    .n_outputs = 1,
    .attrs = expand_attrs,
    .n_attrs = TN_COUNT(expand_attrs),
    .args_bytes = sizeof(tn_expand_args),
    .samples = tn_expand_samples,
    .check = expand_check,
    .view = expand_view,
    .workspace[TN_DEVICE_CPU] = tn_expand_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_expand_workspace_cuda),
    .backward[TN_DEVICE_CPU] = tn_expand_backward_cpu,
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_expand_backward_cuda),
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .saved_bytes = nothing_saved,
};

static const tn_op_def *const view_ops[] = { &tn_reshape_def,    &tn_permute_def, &tn_slice_def, &tn_expand_def,
                                             &tn_contiguous_def, &tn_cast_def,    &tn_copy_def,  &tn_concat_def };
const tn_op_family tn_family_view = { view_ops, TN_COUNT(view_ops) };

/* ---- the calls ---- */

static tn_tensor *apply(const tn_op_def *op, tn_tensor *x, const void *args) {
    tn_tensor *o;
    return tn_apply(op, &x, 1, args, &o);
}

/* dim as an axis of `axes`, or -1 with an error; x may not be NULL. */
static int axis_or_fail(tn_tensor *x, int64_t dim, int axes, const char *call) {
    int axis = tn_axis_of(dim, axes);
    char text[128];
    if (axis < 0)
        tn_fail(x->cx, TN_ERR_ARGUMENT, call, "dim %lld: wanted an axis; got x %s", (long long)dim, tn_describe(x, text, sizeof text));
    return axis;
}

tn_tensor *tn_reshape(tn_tensor *x, tn_int_list shape) { return apply(&tn_reshape_def, x, &(tn_reshape_args){ shape }); }
tn_tensor *tn_permute(tn_tensor *x, tn_int_list dims) { return apply(&tn_permute_def, x, &(tn_permute_args){ dims }); }
tn_tensor *tn_slice(tn_tensor *x, tn_slice_args args) { return apply(&tn_slice_def, x, &args); }
tn_tensor *tn_expand(tn_tensor *x, tn_int_list shape) { return apply(&tn_expand_def, x, &(tn_expand_args){ shape }); }

tn_tensor *tn_flatten(tn_tensor *x, int64_t first, int64_t last) {
    if (!x) return NULL;
    /* A scalar becomes one axis of one element. */
    if (x->axes == 0) return tn_reshape(x, TN_DIMS(1));
    int from = axis_or_fail(x, first, x->axes, "tn_flatten"), to = axis_or_fail(x, last, x->axes, "tn_flatten");
    if (from < 0 || to < 0) return NULL;
    if (from > to) return tn_fail(x->cx, TN_ERR_ARGUMENT, "tn_flatten", "axis %d comes after axis %d", from, to);
    tn_int_list shape = { 0 };
    for (int i = 0; i < x->axes; i++) {
        if (i > from && i <= to) shape.size[shape.axes - 1] *= x->shape[i];
        else shape.size[shape.axes++] = x->shape[i];
    }
    return tn_reshape(x, shape);
}

tn_tensor *tn_squeeze(tn_tensor *x, int64_t dim) {
    if (!x) return NULL;
    int axis = axis_or_fail(x, dim, x->axes, "tn_squeeze");
    if (axis < 0) return NULL;
    if (x->shape[axis] != 1)
        return tn_fail(x->cx, TN_ERR_SHAPE, "tn_squeeze", "axis %d has size %lld: wanted 1", axis, (long long)x->shape[axis]);
    tn_int_list shape = { 0 };
    for (int i = 0; i < x->axes; i++)
        if (i != axis) shape.size[shape.axes++] = x->shape[i];
    return tn_reshape(x, shape);
}

tn_tensor *tn_unsqueeze(tn_tensor *x, int64_t dim) {
    if (!x) return NULL;
    if (x->axes == TN_MAX_AXES)
        return tn_fail(x->cx, TN_ERR_SHAPE, "tn_unsqueeze", "x has %d axes already, the most there can be", x->axes);
    int axis = axis_or_fail(x, dim, x->axes + 1, "tn_unsqueeze");
    if (axis < 0) return NULL;
    tn_int_list shape = { .axes = x->axes + 1 };
    for (int i = 0; i < shape.axes; i++) shape.size[i] = i == axis ? 1 : x->shape[i - (i > axis)];
    return tn_reshape(x, shape);
}

tn_tensor *tn_transpose(tn_tensor *x, int64_t dim_a, int64_t dim_b) {
    if (!x) return NULL;
    int a = axis_or_fail(x, dim_a, x->axes, "tn_transpose"), b = axis_or_fail(x, dim_b, x->axes, "tn_transpose");
    if (a < 0 || b < 0) return NULL;
    tn_int_list dims = { .axes = x->axes };
    for (int i = 0; i < x->axes; i++) dims.size[i] = i == a ? b : i == b ? a : i;
    return tn_permute(x, dims);
}

tn_tensor *tn_narrow(tn_tensor *x, int64_t dim, int64_t start, int64_t length) {
    if (!x) return NULL;
    int axis = axis_or_fail(x, dim, x->axes, "tn_narrow");
    if (axis < 0) return NULL;
    if (start < 0 || length < 0 || start > x->shape[axis] || length > x->shape[axis] - start)
        return tn_fail(x->cx, TN_ERR_ARGUMENT, "tn_narrow", "%lld elements from %lld on of an axis of %lld", (long long)length,
                       (long long)start, (long long)x->shape[axis]);
    return tn_slice(x, TN_SLICE(.dim = axis, .start = start, .end = start + length));
}

tn_tensor *tn_select(tn_tensor *x, int64_t dim, int64_t index) {
    if (!x) return NULL;
    int axis = axis_or_fail(x, dim, x->axes, "tn_select");
    if (axis < 0) return NULL;
    int64_t size = x->shape[axis], at = index < 0 ? index + size : index;
    if (at < 0 || at >= size)
        return tn_fail(x->cx, TN_ERR_ARGUMENT, "tn_select", "element %lld of an axis of %lld", (long long)index, (long long)size);
    return tn_squeeze(tn_slice(x, TN_SLICE(.dim = axis, .start = at, .end = at + 1)), axis);
}

bool tn_split(tn_tensor *x, int64_t dim, int n, tn_tensor **parts) {
    for (int i = 0; i < n; i++) parts[i] = NULL;
    int axis = x ? axis_or_fail(x, dim, x->axes, "tn_split") : -1;
    if (axis < 0) return false;
    if (n < 1 || x->shape[axis] % n) {
        tn_fail(x->cx, TN_ERR_ARGUMENT, "tn_split", "an axis of %lld elements into %d parts", (long long)x->shape[axis], n);
        return false;
    }
    int64_t length = x->shape[axis] / n;
    bool fine = true;
    for (int i = 0; fine && i < n; i++) fine = (parts[i] = tn_narrow(x, axis, i * length, length)) != NULL;
    for (int i = 0; !fine && i < n; i++) parts[i] = NULL;
    return fine;
}
