#include "index_internal.h"

#include "../family.h"
#include "../op_support.h"

#define INDEX_DTYPES (TN_MASK(TN_I64) | TN_MASK(TN_I32))

/* Both ops read (table, index) and save the index. */
static int64_t index_bytes(const tn_op_call *call) { return (int64_t)tn_bytes(call->in[1]); }

/* Forward reads the index and what it points at and writes o; backward reads the index and do and writes the table's gradient. */
static int64_t index_floor_bytes(const tn_op_call *call, bool backward) {
    int64_t out = tn_call_out_bytes(call);
    return index_bytes(call) + out + (backward ? (int64_t)tn_bytes(call->in[0]) : out);
}

/* ---- embedding ---- */

static bool embedding_check(tn_op_call *call) {
    const tn_tensor *weight = call->in[0], *index = call->in[1];
    TN_WANT(weight->axes == 2, call, TN_ERR_SHAPE, "wanted weight [v, d]");
    TN_WANT(index->axes < TN_MAX_AXES, call, TN_ERR_SHAPE, "wanted an index of fewer than %d axes", TN_MAX_AXES);
    call->out_spec[0] = (tn_spec){ weight->dtype, tn_shape_of(index) };
    tn_shape *shape = &call->out_spec[0].shape;
    shape->size[shape->axes++] = weight->shape[1];
    call->save_in = 2;
    return true;
}

static const tn_input_def embedding_inputs[] = {
    { .name = "weight", .dtypes = TN_FLOATS, .doc = "[v, d]" },
    { .name = "index", .dtypes = INDEX_DTYPES, .flags = TN_INPUT_NO_GRADIENT, .doc = "any shape, each in [0, v)" },
};
static const tn_output_def embedding_outputs[] = { { "o", "the index's shape, then d" } };

static const tn_op_def embedding_def = {
    .name = "embedding",
    .family = "index",
    .doc = "rows of a table by index",
    .inputs = embedding_inputs,
    .n_inputs = TN_COUNT(embedding_inputs),
    .outputs = embedding_outputs,
    .n_outputs = 1,
    .samples = tn_embedding_samples,
    .check = embedding_check,
    .forward[TN_DEVICE_CPU] = tn_embedding_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_embedding_backward_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_embedding_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_embedding_backward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_embedding_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_embedding_workspace_cuda),
    .saved_bytes = index_bytes,
    .floor_bytes = index_floor_bytes,
};

/* ---- gather ---- */

static bool gather_check(tn_op_call *call) {
    const tn_gather_args *args = call->args;
    const tn_tensor *x = call->in[0], *index = call->in[1];
    int axis = tn_axis_of(args->dim, x->axes);
    TN_WANT(axis >= 0, call, TN_ERR_ARGUMENT, "dim %lld: wanted an axis of x", (long long)args->dim);
    TN_WANT(index->axes == x->axes, call, TN_ERR_SHAPE, "wanted an index of %d axes, as x has", x->axes);
    for (int i = 0; i < x->axes; i++)
        TN_WANT(i == axis || index->shape[i] <= x->shape[i], call, TN_ERR_SHAPE, "axis %d of the index is longer than x's", i);
    call->out_spec[0] = (tn_spec){ x->dtype, tn_shape_of(index) };
    call->save_in = 2;
    return true;
}

static const tn_input_def gather_inputs[] = {
    { .name = "x", .dtypes = TN_ANY_DTYPE, .flags = TN_INPUT_STRIDED, .doc = "any shape but a scalar" },
    { .name = "index", .dtypes = INDEX_DTYPES, .flags = TN_INPUT_NO_GRADIENT | TN_INPUT_STRIDED, .doc = "as many axes as x" },
};
static const tn_output_def gather_outputs[] = { { "o", "like the index" } };
static const tn_attr_def gather_attrs[] = { TN_ATTR(tn_gather_args, dim, TN_ATTR_INT, NULL, "the axis the index counts along") };

static const tn_op_def gather_def = {
    .name = "gather",
    .family = "index",
    .doc = "elements along an axis by index",
    .inputs = gather_inputs,
    .n_inputs = TN_COUNT(gather_inputs),
    .outputs = gather_outputs,
    .n_outputs = 1,
    .attrs = gather_attrs,
    .n_attrs = TN_COUNT(gather_attrs),
    .args_bytes = sizeof(tn_gather_args),
    .samples = tn_gather_samples,
    .check = gather_check,
    .forward[TN_DEVICE_CPU] = tn_gather_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_gather_backward_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_gather_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_gather_backward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_gather_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_gather_workspace_cuda),
    .saved_bytes = index_bytes,
    .floor_bytes = index_floor_bytes,
};

static const tn_op_def *const index_ops[] = { &embedding_def, &gather_def };
const tn_op_family tn_family_index = { index_ops, TN_COUNT(index_ops) };

/* ---- the calls ---- */

tn_tensor *tn_embedding(tn_tensor *weight, tn_tensor *index) {
    tn_tensor *o;
    return tn_apply(&embedding_def, (tn_tensor *[]){ weight, index }, 2, NULL, &o);
}

tn_tensor *tn_gather(tn_tensor *x, tn_tensor *index, int64_t dim) {
    tn_tensor *o;
    return tn_apply(&gather_def, (tn_tensor *[]){ x, index }, 2, &(tn_gather_args){ dim }, &o);
}

/* A gather whose index is the same along every other axis: stride 0 there. */
tn_tensor *tn_index_select(tn_tensor *x, int64_t dim, tn_tensor *index) {
    if (!x || !index) return NULL;
    int axis = tn_axis_of(dim, x->axes);
    int64_t stride[TN_MAX_AXES] = { 0 };
    tn_shape shape = tn_shape_of(x);
    if (axis < 0)
        return tn_fail(x->cx, TN_ERR_ARGUMENT, "tn_index_select", "dim %lld: wanted one of the %d axes of x", (long long)dim, x->axes);
    if (index->axes != 1) return tn_fail(x->cx, TN_ERR_SHAPE, "tn_index_select", "the index has %d axes: wanted 1", index->axes);
    shape.size[axis] = index->shape[0];
    stride[axis] = index->stride[0];
    return tn_gather(x, tn_alias(index, shape, stride, 0), axis);
}
