#include "swiglu_internal.h"

#include "../family.h"
#include "../op_support.h"

static bool swiglu_check(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    TN_WANT(x->axes > 0 && x->shape[x->axes - 1] % 2 == 0, call, TN_ERR_SHAPE, "wanted x with a last axis of even size (two halves)");
    call->out_spec[0] = tn_spec_like(x);
    call->out_spec[0].shape.size[x->axes - 1] /= 2;
    call->save_in = 1;
    return true;
}

static int64_t swiglu_saved_bytes(const tn_op_call *call) { return (int64_t)tn_bytes(call->in[0]); }

/* Forward reads x (2T) and writes o (T); backward reads x and do and writes dx. */
static int64_t swiglu_floor_bytes(const tn_op_call *call, bool backward) {
    return (int64_t)tn_bytes(call->in[0]) * (backward ? 2 : 1) + tn_call_out_bytes(call);
}

static const tn_input_def swiglu_inputs[] = { { .name = "x", .dtypes = TN_FLOATS, .doc = "[.., 2f]" } };
static const tn_output_def swiglu_outputs[] = { { "o", "[.., f]" } };

static const tn_op_def swiglu_def = {
    .name = "swiglu",
    .family = "swiglu",
    .doc = "silu of the last axis's first half times its second half",
    .inputs = swiglu_inputs,
    .n_inputs = TN_COUNT(swiglu_inputs),
    .outputs = swiglu_outputs,
    .n_outputs = TN_COUNT(swiglu_outputs),
    .samples = tn_swiglu_samples,
    .check = swiglu_check,
    .forward[TN_DEVICE_CPU] = tn_swiglu_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_swiglu_backward_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_swiglu_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_swiglu_backward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .saved_bytes = swiglu_saved_bytes,
    .floor_bytes = swiglu_floor_bytes,
};

static const tn_op_def *const swiglu_ops[] = { &swiglu_def };
const tn_op_family tn_family_swiglu = { swiglu_ops, TN_COUNT(swiglu_ops) };

tn_tensor *tn_swiglu(tn_tensor *x) {
    tn_tensor *o;
    return tn_apply(&swiglu_def, &x, 1, NULL, &o);
}
