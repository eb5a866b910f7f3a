#include "matmul_internal.h"

#include "../op_support.h"

static bool linear_check(tn_op_call *call) {
    const tn_linear_args *args = call->args;
    const tn_tensor *x = call->in[0], *weight = call->in[1], *bias = call->in[2];
    TN_WANT(x->axes >= 1, call, TN_ERR_SHAPE, "wanted x with at least one axis");
    TN_WANT(weight->axes == 2 && weight->shape[1] == x->shape[x->axes - 1], call, TN_ERR_SHAPE, "wanted weight [out, %lld], x's last axis",
            (long long)x->shape[x->axes - 1]);
    TN_WANT(!bias || (bias->axes == 1 && bias->shape[0] == weight->shape[0]), call, TN_ERR_SHAPE, "wanted bias [%lld], weight's first axis",
            (long long)weight->shape[0]);
    TN_WANT(args->act >= TN_NONE && args->act < TN_SOFTMAX, call, TN_ERR_ARGUMENT, "act = %d works not element by element", args->act);
    call->out_spec[0] = tn_spec_like(x);
    call->out_spec[0].shape.size[x->axes - 1] = weight->shape[0];
    call->save_in = (tn_wants(call, 1) ? 1 : 0) | (tn_wants(call, 0) ? 2 : 0);
    call->save_out = tn_linear_saves_output(args->act) ? 1 : 0;
    if (tn_linear_saves_sum(args->act)) {
        call->n_aux = 1;
        call->aux_spec[0] = call->out_spec[0];
    }
    return true;
}

static int64_t linear_saved_bytes(const tn_op_call *call) {
    const tn_linear_args *args = call->args;
    return (tn_wants(call, 1) ? (int64_t)tn_bytes(call->in[0]) : 0) + (tn_wants(call, 0) ? (int64_t)tn_bytes(call->in[1]) : 0) +
           (args->act != TN_NONE ? tn_call_out_bytes(call) : 0);
}

/* Forward reads every input and writes o; backward reads do, x, weight and what the activation saved and writes every gradient. */
static int64_t linear_floor_bytes(const tn_op_call *call, bool backward) {
    const tn_linear_args *args = call->args;
    int64_t in = tn_call_in_bytes(call), out = tn_call_out_bytes(call);
    if (!backward) return in + out;
    return out * (args->act != TN_NONE ? 2 : 1) + in + (int64_t)(tn_bytes(call->in[0]) + tn_bytes(call->in[1]));
}

static const char *const pointwise_names[] = TN_POINTWISE_ACTIVATION_NAMES;

static const tn_input_def linear_inputs[] = {
    { .name = "x", .flags = TN_INPUT_STRIDED, .dtypes = TN_FLOATS, .doc = "[.., in]" },
    { .name = "weight", .flags = TN_INPUT_STRIDED, .doc = "[out, in]" },
    { .name = "bias", .flags = TN_INPUT_OPTIONAL, .doc = "[out]" },
};
static const tn_output_def linear_outputs[] = { { "o", "[.., out]" } };
static const tn_attr_def linear_attrs[] = { TN_ATTR_OF(tn_linear_args, act, pointwise_names, "none", "activation of the sum") };

const tn_op_def tn_linear_def = {
    .name = "linear",
    .family = "matmul",
    .doc = "act(x weight' + bias)",
    .flags = TN_OP_THREADS_MATTER,
    .inputs = linear_inputs,
    .n_inputs = TN_COUNT(linear_inputs),
    .outputs = linear_outputs,
    .n_outputs = TN_COUNT(linear_outputs),
    .attrs = linear_attrs,
    .n_attrs = TN_COUNT(linear_attrs),
    .args_bytes = sizeof(tn_linear_args),
    .samples = tn_linear_samples,
    .check = linear_check,
    .forward[TN_DEVICE_CPU] = tn_linear_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_linear_backward_cpu,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_linear_workspace_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_backward_cuda),
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_workspace_cuda),
    .saved_bytes = linear_saved_bytes,
    .floor_bytes = linear_floor_bytes,
};

tn_tensor *tn_linear_with(tn_tensor *x, tn_tensor *weight, tn_tensor *bias, tn_linear_args args) {
    tn_tensor *o, *in[] = { x, weight, bias };
    return tn_apply(&tn_linear_def, in, TN_COUNT(in), &args, &o);
}

tn_tensor *tn_linear(tn_tensor *x, tn_tensor *weight, tn_tensor *bias) { return tn_linear_with(x, weight, bias, TN_LINEAR()); }
