#include "act_internal.h"

#include "../family.h"
#include "../op_support.h"

static bool act_check(tn_op_call *call) {
    const tn_act_args *args = call->args;
    const tn_tensor *x = call->in[0];
    TN_WANT(args->act >= TN_NONE && args->act <= TN_SOFTMAX, call, TN_ERR_ARGUMENT, "act = %d is no activation", args->act);
    if (args->act == TN_SOFTMAX)
        TN_WANT(tn_axis_of(args->dim, x->axes) >= 0, call, TN_ERR_ARGUMENT, "softmax along dim %lld: wanted an axis of x",
                (long long)args->dim);
    call->out_spec[0] = tn_spec_like(x);
    call->save_in = tn_act_saves_input(args->act) ? 1 : 0;
    call->save_out = tn_act_saves_output(args->act) ? 1 : 0;
    return true;
}

static bool act_passes_gradient(const tn_op_call *call, int input) {
    const tn_act_args *args = call->args;
    return input == 0 && args->act == TN_NONE;
}

static int64_t act_saved_bytes(const tn_op_call *call) {
    const tn_act_args *args = call->args;
    return args->act == TN_NONE ? 0 : (int64_t)tn_bytes(call->in[0]);
}

/* Forward reads x and writes o; backward reads do and what was saved and writes dx, or, of none, passes do on. */
static int64_t act_floor_bytes(const tn_op_call *call, bool backward) {
    if (backward && act_passes_gradient(call, 0)) return 0;
    return (int64_t)tn_bytes(call->in[0]) * 2 + (backward ? act_saved_bytes(call) : 0);
}

static const char *const act_names[] = TN_ACTIVATION_NAMES;

static const tn_input_def act_inputs[] = { { .name = "x", .dtypes = TN_FLOATS, .doc = "any shape" } };
static const tn_output_def act_outputs[] = { { "o", "like x" } };
static const tn_attr_def act_attrs[] = {
    TN_ATTR_OF(tn_act_args, act, act_names, "none", "the activation"),
    TN_ATTR(tn_act_args, dim, TN_ATTR_INT, "-1", "axis of softmax"),
};

static const tn_op_def act_def = {
    .name = "act",
    .family = "act",
    .doc = "activation element by element, or softmax along any axis",
    .inputs = act_inputs,
    .n_inputs = TN_COUNT(act_inputs),
    .outputs = act_outputs,
    .n_outputs = TN_COUNT(act_outputs),
    .attrs = act_attrs,
    .n_attrs = TN_COUNT(act_attrs),
    .args_bytes = sizeof(tn_act_args),
    .samples = tn_act_samples,
    .check = act_check,
    .forward[TN_DEVICE_CPU] = tn_act_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_act_backward_cpu,
    .workspace[TN_DEVICE_CPU] = tn_softmax_workspace,
    .passes_gradient = act_passes_gradient,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_act_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_act_backward_cuda),
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_softmax_workspace_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .saved_bytes = act_saved_bytes,
    .floor_bytes = act_floor_bytes,
};

static const tn_op_def *const act_ops[] = { &act_def };
const tn_op_family tn_family_act = { act_ops, TN_COUNT(act_ops) };

tn_tensor *tn_act(tn_tensor *x, tn_act_args args) {
    tn_tensor *o;
    return tn_apply(&act_def, &x, 1, &args, &o);
}

tn_tensor *tn_relu(tn_tensor *x) { return tn_act(x, TN_ACT(.act = TN_RELU)); }
tn_tensor *tn_sigmoid(tn_tensor *x) { return tn_act(x, TN_ACT(.act = TN_SIGMOID)); }
tn_tensor *tn_silu(tn_tensor *x) { return tn_act(x, TN_ACT(.act = TN_SILU)); }
tn_tensor *tn_gelu(tn_tensor *x) { return tn_act(x, TN_ACT(.act = TN_GELU)); }
tn_tensor *tn_tanh(tn_tensor *x) { return tn_act(x, TN_ACT(.act = TN_TANH)); }
tn_tensor *tn_softmax(tn_tensor *x, int64_t dim) { return tn_act(x, TN_ACT(.act = TN_SOFTMAX, .dim = dim)); }
