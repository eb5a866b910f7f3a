#include "norm_internal.h"

#include <math.h>

#include "../family.h"
#include "../op_support.h"

static bool check_rows(tn_op_call *call, double eps) {
    const tn_tensor *x = call->in[0], *weight = call->in[1];
    TN_WANT(x->axes >= 1, call, TN_ERR_SHAPE, "wanted x with at least one axis");
    TN_WANT(weight->axes == 1 && weight->shape[0] == x->shape[x->axes - 1], call, TN_ERR_SHAPE, "wanted weight [%lld], the last axis of x",
            (long long)x->shape[x->axes - 1]);
    TN_WANT(eps >= 0 && isfinite(eps), call, TN_ERR_ARGUMENT, "eps = %g: wanted a finite number, not below 0", eps);
    call->out_spec[0] = tn_spec_like(x);
    return true;
}

/* One number for every row. */
static tn_spec row_statistic(const tn_tensor *x) {
    tn_spec spec = { tn_wide_dtype(x->dtype), tn_shape_of(x) };
    spec.shape.axes--;
    return spec;
}

static int64_t row_statistic_bytes(const tn_op_call *call) {
    tn_spec spec = row_statistic(call->in[0]);
    return tn_spec_bytes(&spec);
}

/* ---- rms_norm ---- */

static bool rms_norm_check(tn_op_call *call) {
    const tn_rms_norm_args *args = call->args;
    const tn_tensor *x = call->in[0], *g = call->in[2];
    if (!check_rows(call, args->eps)) return false;
    TN_WANT(args->g_act >= TN_NONE && args->g_act < TN_SOFTMAX, call, TN_ERR_ARGUMENT, "g_act = %d works not element by element",
            args->g_act);
    TN_WANT(g || args->g_act == TN_NONE, call, TN_ERR_ARGUMENT, "g_act without g");
    TN_WANT(!g || tn_same_shape(x, g), call, TN_ERR_SHAPE, "wanted g of x's shape");
    call->save_in = g ? 7 : 3;
    call->n_aux = 1;
    call->aux_spec[0] = row_statistic(x);
    return true;
}

static int64_t rms_norm_saved_bytes(const tn_op_call *call) { return tn_call_in_bytes(call) + row_statistic_bytes(call); }

/* Forward reads every input once and writes o; backward reads do and what was saved and writes a gradient of every input. */
static int64_t rms_norm_floor_bytes(const tn_op_call *call, bool backward) {
    if (!backward) return tn_call_in_bytes(call) + tn_call_out_bytes(call);
    return tn_call_out_bytes(call) + rms_norm_saved_bytes(call) + tn_call_in_bytes(call);
}

static const char *const pointwise_names[] = TN_POINTWISE_ACTIVATION_NAMES;

static const tn_input_def rms_norm_inputs[] = {
    { .name = "x", .dtypes = TN_FLOATS, .doc = "[.., d]" },
    { .name = "weight", .doc = "[d]" },
    { .name = "g", .flags = TN_INPUT_OPTIONAL, .doc = "gate, like x" },
};
static const tn_output_def norm_outputs[] = { { "o", "like x" } };

/* All of an op of this family but what its doc says. */
#define NORM(op)                                                                                                                     \
    .name = #op, .family = "norm", .inputs = op##_inputs, .n_inputs = TN_COUNT(op##_inputs), .outputs = norm_outputs,                \
    .n_outputs = TN_COUNT(norm_outputs), .attrs = op##_attrs, .n_attrs = TN_COUNT(op##_attrs), .args_bytes = sizeof(tn_##op##_args), \
    .samples = tn_##op##_samples, .check = op##_check, .forward[TN_DEVICE_CPU] = tn_##op##_forward_cpu,                              \
    .backward[TN_DEVICE_CPU] = tn_##op##_backward_cpu, .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_##op##_forward_cuda),            \
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_##op##_backward_cuda), .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,                \
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS, .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_norm_workspace_cuda),               \
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS, .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,                                         \
    .workspace[TN_DEVICE_CPU] = tn_norm_workspace_cpu, .saved_bytes = op##_saved_bytes, .floor_bytes = op##_floor_bytes

static const tn_attr_def rms_norm_attrs[] = {
    TN_ATTR(tn_rms_norm_args, eps, TN_ATTR_FLOAT, "1e-6", "added to the mean square"),
    TN_ATTR_OF(tn_rms_norm_args, g_act, pointwise_names, "none", "activation of the gate"),
};

static const tn_op_def rms_norm_def = {
    NORM(rms_norm),
    .doc = "x / rms(x) * weight * act(g) over the last axis",
};

/* ---- layer_norm ---- */

#define WANTS_X_OR_WEIGHT 3u

static bool layer_norm_check(tn_op_call *call) {
    const tn_layer_norm_args *args = call->args;
    const tn_tensor *x = call->in[0], *weight = call->in[1], *bias = call->in[2];
    if (!check_rows(call, args->eps)) return false;
    TN_WANT(tn_same_shape(weight, bias), call, TN_ERR_SHAPE, "wanted bias of weight's shape");
    if (!(call->wants & WANTS_X_OR_WEIGHT)) return true;
    call->save_in = 3;
    call->n_aux = 2;
    call->aux_spec[0] = call->aux_spec[1] = row_statistic(x);
    return true;
}

static int64_t layer_norm_saved_bytes(const tn_op_call *call) {
    if (!(call->wants & WANTS_X_OR_WEIGHT)) return 0;
    return (int64_t)(tn_bytes(call->in[0]) + tn_bytes(call->in[1])) + 2 * row_statistic_bytes(call);
}

static int64_t layer_norm_floor_bytes(const tn_op_call *call, bool backward) {
    if (!backward) return tn_call_in_bytes(call) + tn_call_out_bytes(call);
    return tn_call_out_bytes(call) + layer_norm_saved_bytes(call) + tn_call_in_bytes(call);
}

static const tn_input_def layer_norm_inputs[] = {
    { .name = "x", .dtypes = TN_FLOATS, .doc = "[.., d]" },
    { .name = "weight", .doc = "[d]" },
    { .name = "bias", .doc = "[d]" },
};
static const tn_attr_def layer_norm_attrs[] = {
    TN_ATTR(tn_layer_norm_args, eps, TN_ATTR_FLOAT, "1e-5", "added to the variance"),
};

static const tn_op_def layer_norm_def = {
    NORM(layer_norm),
    .doc = "(x - mean) / deviation * weight + bias over the last axis",
};

static const tn_op_def *const norm_ops[] = { &rms_norm_def, &layer_norm_def };
const tn_op_family tn_family_norm = { norm_ops, TN_COUNT(norm_ops) };

tn_tensor *tn_rms_norm(tn_tensor *x, tn_tensor *weight, tn_tensor *g, tn_rms_norm_args args) {
    tn_tensor *o, *in[] = { x, weight, g };
    return tn_apply(&rms_norm_def, in, TN_COUNT(in), &args, &o);
}

tn_tensor *tn_layer_norm(tn_tensor *x, tn_tensor *weight, tn_tensor *bias, tn_layer_norm_args args) {
    tn_tensor *o, *in[] = { x, weight, bias };
    return tn_apply(&layer_norm_def, in, TN_COUNT(in), &args, &o);
}
