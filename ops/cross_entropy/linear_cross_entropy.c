#include "cross_entropy_internal.h"

#include "../op_support.h"

static bool linear_cross_entropy_check(tn_op_call *call) {
    const tn_tensor *x = call->in[0], *weight = call->in[1];
    if (!tn_cross_entropy_check_target(call, x, call->in[2])) return false;
    TN_WANT(weight->axes == 2 && weight->shape[1] == x->shape[x->axes - 1], call, TN_ERR_SHAPE, "wanted weight [v, %lld], x's last axis",
            (long long)x->shape[x->axes - 1]);
    /* The gradients for do = 1. */
    for (int i = 0; i < 2; i++) call->aux_spec[i] = tn_wants(call, i) ? tn_spec_like(call->in[i]) : (tn_spec){ x->dtype, TN_SHAPE(0) };
    return true;
}

static int64_t linear_cross_entropy_saved_bytes(const tn_op_call *call) {
    int64_t bytes = 0;
    for (int i = 0; i < 2; i++)
        if (tn_wants(call, i)) bytes += (int64_t)tn_bytes(call->in[i]);
    return bytes;
}

/* Forward reads x, weight and targets and writes a number and the gradients for do = 1; backward reads these and do and writes dx and
 * dweight. */
static int64_t linear_cross_entropy_floor_bytes(const tn_op_call *call, bool backward) {
    int64_t number = tn_call_out_bytes(call), gradients = linear_cross_entropy_saved_bytes(call);
    return number + (backward ? 2 * gradients : tn_call_in_bytes(call) + gradients);
}

static const tn_input_def linear_cross_entropy_inputs[] = {
    { .name = "x", .dtypes = TN_FLOATS, .doc = "[.., d]" },
    { .name = "weight", .doc = "[v, d]" },
    { .name = "target", .flags = TN_INPUT_NO_GRADIENT, .dtypes = TN_MASK(TN_I64), .doc = "[..], 0 .. v-1 or ignore_index" },
};
static const tn_output_def linear_cross_entropy_outputs[] = { { "o", "scalar" } };

const tn_op_def tn_linear_cross_entropy_def = {
    .name = "linear_cross_entropy",
    .family = "cross_entropy",
    .doc = "cross_entropy of x weight', whose logits are made a few rows at a time",
    .flags = TN_OP_THREADS_MATTER,
    .inputs = linear_cross_entropy_inputs,
    .n_inputs = TN_COUNT(linear_cross_entropy_inputs),
    .outputs = linear_cross_entropy_outputs,
    .n_outputs = TN_COUNT(linear_cross_entropy_outputs),
    .attrs = tn_cross_entropy_attrs,
    .n_attrs = TN_COUNT(tn_cross_entropy_attrs),
    .args_bytes = sizeof(tn_cross_entropy_args),
    .samples = tn_linear_cross_entropy_samples,
    .check = linear_cross_entropy_check,
    .forward[TN_DEVICE_CPU] = tn_linear_cross_entropy_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_linear_cross_entropy_backward_cpu,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_linear_cross_entropy_workspace_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_cross_entropy_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_cross_entropy_backward_cuda),
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_cross_entropy_workspace_cuda),
    .saved_bytes = linear_cross_entropy_saved_bytes,
    .floor_bytes = linear_cross_entropy_floor_bytes,
};

tn_tensor *tn_linear_cross_entropy(tn_tensor *x, tn_tensor *weight, tn_tensor *target, tn_cross_entropy_args args) {
    tn_tensor *o, *in[] = { x, weight, target };
    return tn_apply(&tn_linear_cross_entropy_def, in, TN_COUNT(in), &args, &o);
}
