/* The copies: contiguous, copy, cast, concat. The device's own copy does the work, over any strides and dtypes. */
#include "view_internal.h"

#include "../../libtensor/context_internal.h"
#include "../op_support.h"

static int64_t nothing_saved(const tn_op_call *call) {
    (void)call;
    return 0;
}

/* Forward reads x and writes o; backward hands on (a view of) its gradient. */
static int64_t copy_floor_bytes(const tn_op_call *call, bool backward) {
    return backward ? 0 : tn_call_in_bytes(call) + tn_call_out_bytes(call);
}
/* Backward reads do and writes dx. */
static int64_t cast_floor_bytes(const tn_op_call *call, bool backward) {
    (void)backward;
    return tn_call_in_bytes(call) + tn_call_out_bytes(call);
}

static const tn_input_def copy_inputs[] = { { .name = "x", .dtypes = TN_ANY_DTYPE, .flags = TN_INPUT_STRIDED, .doc = "any shape" } };
static const tn_output_def copy_outputs[] = { { "o", "like x, dense" } };

/* ---- contiguous and copy ---- */

static bool copy_check(tn_op_call *call) {
    call->out_spec[0] = tn_spec_like(call->in[0]);
    return true;
}

static bool copy_backward(tn_op_call *call) { return (call->din[0] = tn_retain(call->dout[0])) != NULL; }

tn_status tn_copy_forward(tn_op_call *call) {
    tn_device *device = call->cx->device;
    return device->interface->copy(device, call->out[0], call->in[0], call->cx->stream);
}

#define COPY(op_name, op_doc)                                                                                                             \
    {                                                                                                                                     \
        .name = #op_name, .family = "view", .doc = op_doc, .inputs = copy_inputs, .n_inputs = 1, .outputs = copy_outputs, .n_outputs = 1, \
        .samples = tn_##op_name##_samples, .check = copy_check, .forward[TN_DEVICE_CPU] = tn_copy_forward,                                \
        .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_copy_forward), .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,                        \
        .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE, .backward_tensors = copy_backward, .saved_bytes = nothing_saved,                  \
        .floor_bytes = copy_floor_bytes                                                                                                   \
    }

const tn_op_def tn_contiguous_def = COPY(contiguous, "the same values without gaps, in row-major order");
const tn_op_def tn_copy_def = COPY(copy, "a copy of its own");

/* ---- cast ---- */

static bool cast_check(tn_op_call *call) {
    const tn_cast_args *args = call->args;
    TN_WANT((unsigned)args->dtype < TN_DTYPE_COUNT, call, TN_ERR_DTYPE, "%d is no dtype", (int)args->dtype);
    call->out_spec[0] = tn_spec_like(call->in[0]);
    call->out_spec[0].dtype = args->dtype;
    if (!tn_dtype_is_float(args->dtype)) call->wants = 0;
    return true;
}

tn_status tn_cast_backward(tn_op_call *call) {
    tn_device *device = call->cx->device;
    return device->interface->copy(device, call->din[0], call->dout[0], call->cx->stream);
}

static const tn_output_def cast_outputs[] = { { "o", "like x, in dtype" } };
static const tn_attr_def cast_attrs[] = { TN_ATTR(tn_cast_args, dtype, TN_ATTR_DTYPE, NULL, "the dtype of o") };

const tn_op_def tn_cast_def = {
    .name = "cast",
    .family = "view",
    .doc = "the values in another dtype; the gradient is cast back, integers end it",
    .flags = TN_OP_STRIDED_DOUT,
    .inputs = copy_inputs,
    .n_inputs = 1,
    .outputs = cast_outputs,
    .n_outputs = 1,
    .attrs = cast_attrs,
    .n_attrs = TN_COUNT(cast_attrs),
    .args_bytes = sizeof(tn_cast_args),
    .samples = tn_cast_samples,
    .check = cast_check,
    .forward[TN_DEVICE_CPU] = tn_copy_forward,
    .backward[TN_DEVICE_CPU] = tn_cast_backward,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_copy_forward),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_cast_backward),
    .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .saved_bytes = nothing_saved,
    .floor_bytes = cast_floor_bytes,
};

/* ---- concat ---- */

static bool concat_check(tn_op_call *call) {
    const tn_concat_args *args = call->args;
    const tn_tensor *first = call->in[0];
    int axis = tn_axis_of(args->dim, first->axes);
    TN_WANT(axis >= 0, call, TN_ERR_ARGUMENT, "dim %lld: wanted an axis of the inputs", (long long)args->dim);
    call->out_spec[0] = tn_spec_like(first);
    for (int i = 1; i < call->n_in; i++) {
        const tn_tensor *x = call->in[i];
        TN_WANT(x->dtype == first->dtype, call, TN_ERR_DTYPE, "input %d is %s: wanted %s as the first", i, tn_dtype_name(x->dtype),
                tn_dtype_name(first->dtype));
        bool fits = x->axes == first->axes;
        for (int k = 0; fits && k < x->axes; k++) fits = k == axis || x->shape[k] == first->shape[k];
        TN_WANT(fits, call, TN_ERR_SHAPE, "input %d does not fit the first: wanted the same sizes but along axis %d", i, axis);
        call->out_spec[0].shape.size[axis] += x->shape[axis];
    }
    return true;
}

tn_tensor tn_part_of(const tn_tensor *t, int axis, int64_t start, int64_t step, int64_t n) {
    tn_tensor part = *t;
    part.data = (char *)t->data + start * t->stride[axis] * (int64_t)tn_dtype_size(t->dtype);
    part.numel = t->shape[axis] ? t->numel / t->shape[axis] * n : 0;
    part.shape[axis] = n;
    part.stride[axis] = t->stride[axis] * step;
    return part;
}

tn_status tn_concat_forward(tn_op_call *call) {
    tn_device *device = call->cx->device;
    const tn_tensor *o = call->out[0];
    int axis = tn_axis_of(((const tn_concat_args *)call->args)->dim, o->axes);
    int64_t at = 0;
    tn_status status = TN_OK;
    for (int i = 0; status == TN_OK && i < call->n_in; i++) {
        const tn_tensor *x = call->in[i];
        tn_tensor part = tn_part_of(o, axis, at, 1, x->shape[axis]);
        if (x->numel) status = device->interface->copy(device, &part, x, call->cx->stream);
        at += x->shape[axis];
    }
    return status;
}

/* Each input's gradient is its part of do, as it lies there. */
static bool concat_backward(tn_op_call *call) {
    tn_tensor *dout = call->dout[0];
    int axis = tn_axis_of(((const tn_concat_args *)call->args)->dim, dout->axes);
    int64_t at = 0;
    for (int i = 0; i < call->n_in; i++) {
        const tn_shape *shape = &call->in_spec[i].shape;
        int64_t offset = dout->numel ? at * dout->stride[axis] : 0;
        at += shape->size[axis];
        if (!tn_wants(call, i)) continue;
        bool empty = shape->size[axis] == 0;
        call->din[i] = tn_retain(tn_alias(dout, *shape, dout->stride, empty ? 0 : offset));
        if (!call->din[i]) return false;
    }
    return true;
}

static const tn_input_def concat_inputs[] = {
    { .name = "x", .dtypes = TN_ANY_DTYPE, .flags = TN_INPUT_STRIDED | TN_INPUT_VARIADIC, .doc = "one dtype, the same sizes but along dim" }
};
static const tn_output_def concat_outputs[] = { { "o", "the inputs one after the other" } };
static const tn_attr_def concat_attrs[] = { TN_ATTR(tn_concat_args, dim, TN_ATTR_INT, "0", "the axis along which they follow each other") };

const tn_op_def tn_concat_def = {
    .name = "concat",
    .family = "view",
    .doc = "tensors one after the other along an axis",
    .inputs = concat_inputs,
    .n_inputs = 1,
    .outputs = concat_outputs,
    .n_outputs = 1,
    .attrs = concat_attrs,
    .n_attrs = TN_COUNT(concat_attrs),
    .args_bytes = sizeof(tn_concat_args),
    .samples = tn_concat_samples,
    .check = concat_check,
    .forward[TN_DEVICE_CPU] = tn_concat_forward,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_concat_forward),
    .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE,
    .backward_tensors = concat_backward,
    .saved_bytes = nothing_saved,
    .floor_bytes = copy_floor_bytes,
};

/* ---- slice's gradient: 0 beside the slice ---- */

tn_status tn_slice_backward(tn_op_call *call) {
    tn_device *device = call->cx->device;
    const tn_tensor *dout = call->dout[0];
    tn_tensor *dx = call->din[0];
    tn_slice_range range = tn_slice_range_of(call->args, &call->in_spec[0].shape);
    if (dx->numel == 0) return TN_OK;
    /* Every byte is written once, but where the slice has gaps. */
    int64_t end = range.start + range.count;
    bool gaps = range.count > 1 && range.step > 1;
    tn_tensor inside = tn_part_of(dx, range.axis, range.start, range.step, range.count);
    tn_tensor before = tn_part_of(dx, range.axis, 0, 1, range.start);
    tn_tensor after = tn_part_of(dx, range.axis, end, 1, dx->shape[range.axis] - end);
    tn_status status = gaps ? device->interface->fill(device, dx, 0, call->cx->stream) : TN_OK;
    if (status == TN_OK && inside.numel) status = device->interface->copy(device, &inside, dout, call->cx->stream);
    if (status == TN_OK && before.numel && !gaps) status = device->interface->fill(device, &before, 0, call->cx->stream);
    if (status == TN_OK && after.numel && !gaps) status = device->interface->fill(device, &after, 0, call->cx->stream);
    return status;
}

/* ---- the calls ---- */

static tn_tensor *apply(const tn_op_def *op, tn_tensor *x, const void *args) {
    tn_tensor *o;
    return tn_apply(op, &x, 1, args, &o);
}

tn_tensor *tn_contiguous(tn_tensor *x) { return x && tn_ready(x->cx) && tn_is_contiguous(x) ? x : apply(&tn_contiguous_def, x, NULL); }
tn_tensor *tn_clone(tn_tensor *x) { return apply(&tn_copy_def, x, NULL); }
tn_tensor *tn_cast(tn_tensor *x, tn_dtype dtype) {
    return x && tn_ready(x->cx) && x->dtype == dtype ? x : apply(&tn_cast_def, x, &(tn_cast_args){ dtype });
}

/* More tensors than an op takes are joined in equal groups first. */
tn_tensor *tn_concat(tn_tensor *const *x, int n, int64_t dim) {
    tn_tensor *group[TN_OP_MAX_INPUTS], *o;
    if (!x || n < 1) return NULL;
    if (n <= TN_OP_MAX_INPUTS) return tn_apply(&tn_concat_def, x, n, &(tn_concat_args){ dim }, &o);
    for (int64_t i = 0; i < TN_OP_MAX_INPUTS; i++) {
        int begin = (int)(n * i / TN_OP_MAX_INPUTS), end = (int)(n * (i + 1) / TN_OP_MAX_INPUTS);
        group[i] = end - begin == 1 ? x[begin] : tn_concat(x + begin, end - begin, dim);
    }
    return tn_apply(&tn_concat_def, group, TN_OP_MAX_INPUTS, &(tn_concat_args){ dim }, &o);
}

tn_tensor *tn_stack(tn_tensor *const *x, int n, int64_t dim) {
    if (!x || n < 1 || !x[0]) return NULL;
    tn_context *cx = x[0]->cx;
    tn_tensor **flat = tn_host_alloc((size_t)n * sizeof *flat);
    if (!flat) return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_stack", "the host has no memory left");
    int64_t axis = dim < 0 ? dim + x[0]->axes + 1 : dim;
    for (int i = 0; i < n; i++) flat[i] = tn_unsqueeze(x[i], axis);
    tn_tensor *o = tn_concat(flat, n, axis);
    tn_host_free(flat);
    return o;
}
