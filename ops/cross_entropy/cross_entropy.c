#include "cross_entropy_internal.h"

#include "../family.h"
#include "../op_support.h"

bool tn_cross_entropy_check_target(tn_op_call *call, const tn_tensor *rows, const tn_tensor *target) {
    TN_WANT(rows->axes >= 1, call, TN_ERR_SHAPE, "wanted %s with at least one axis", call->op->inputs[0].name);
    bool fits = target->axes == rows->axes - 1;
    for (int axis = 0; fits && axis < target->axes; axis++) fits = target->shape[axis] == rows->shape[axis];
    TN_WANT(fits, call, TN_ERR_SHAPE, "wanted target of %s's shape without the last axis", call->op->inputs[0].name);
    const tn_cross_entropy_args *args = call->args;
    call->out_spec[0] = (tn_spec){ args->wide_loss ? tn_wide_dtype(rows->dtype) : rows->dtype, TN_SCALAR };
    call->n_aux = 2;
    call->aux_spec[0] = call->aux_spec[1] = (tn_spec){ tn_wide_dtype(rows->dtype), tn_shape_of(target) };
    return true;
}

static bool cross_entropy_check(tn_op_call *call) {
    call->save_in = 3;
    return tn_cross_entropy_check_target(call, call->in[0], call->in[1]);
}

static int64_t cross_entropy_saved_bytes(const tn_op_call *call) {
    int64_t rows = call->in[1]->numel, statistic = (int64_t)tn_dtype_size(tn_wide_dtype(call->in[0]->dtype));
    return (int64_t)tn_bytes(call->in[0]) + rows * (8 + 2 * statistic);
}

/* Forward reads logits and targets and writes a number; backward reads what was saved and do and writes dlogits. */
static int64_t cross_entropy_floor_bytes(const tn_op_call *call, bool backward) {
    int64_t number = tn_call_out_bytes(call);
    return backward ? number + cross_entropy_saved_bytes(call) + (int64_t)tn_bytes(call->in[0]) : tn_call_in_bytes(call) + number;
}

const tn_attr_def tn_cross_entropy_attrs[2] = {
    TN_ATTR(tn_cross_entropy_args, ignore_index, TN_ATTR_INT, "-100", "rows with this target do not count"),
    TN_ATTR(tn_cross_entropy_args, wide_loss, TN_ATTR_BOOL, "false", "the loss is f32 beside bf16"),
};

static const tn_input_def cross_entropy_inputs[] = {
    { .name = "logits", .dtypes = TN_FLOATS, .doc = "[.., v]" },
    { .name = "target", .flags = TN_INPUT_NO_GRADIENT, .dtypes = TN_MASK(TN_I64), .doc = "[..], 0 .. v-1 or ignore_index" },
};
static const tn_output_def cross_entropy_outputs[] = { { "o", "scalar" } };

static const tn_op_def cross_entropy_def = {
    .name = "cross_entropy",
    .family = "cross_entropy",
    .doc = "mean of -log softmax(logits)[target]",
    .inputs = cross_entropy_inputs,
    .n_inputs = TN_COUNT(cross_entropy_inputs),
    .outputs = cross_entropy_outputs,
    .n_outputs = TN_COUNT(cross_entropy_outputs),
    .attrs = tn_cross_entropy_attrs,
    .n_attrs = TN_COUNT(tn_cross_entropy_attrs),
    .args_bytes = sizeof(tn_cross_entropy_args),
    .samples = tn_cross_entropy_samples,
    .check = cross_entropy_check,
    .forward[TN_DEVICE_CPU] = tn_cross_entropy_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_cross_entropy_backward_cpu,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_cross_entropy_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_cross_entropy_backward_cuda),
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_cross_entropy_workspace_cuda),
    .saved_bytes = cross_entropy_saved_bytes,
    .floor_bytes = cross_entropy_floor_bytes,
};

static const tn_op_def *const cross_entropy_ops[] = { &cross_entropy_def, &tn_linear_cross_entropy_def };
const tn_op_family tn_family_cross_entropy = { cross_entropy_ops, TN_COUNT(cross_entropy_ops) };

tn_tensor *tn_cross_entropy(tn_tensor *logits, tn_tensor *target, tn_cross_entropy_args args) {
    tn_tensor *o, *in[] = { logits, target };
    return tn_apply(&cross_entropy_def, in, TN_COUNT(in), &args, &o);
}
