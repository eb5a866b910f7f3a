#include "sampling_internal.h"

#include "../../libtensor/context_internal.h"
#include "../family.h"
#include "../op_support.h"

/* Kernels count the elements of a line in 32 bits. */
static bool line_fits(tn_op_call *call, int64_t size) {
    TN_WANT(call->cx->device->kind != TN_DEVICE_CUDA || size <= INT32_MAX, call, TN_ERR_UNSUPPORTED,
            "on cuda wanted lines of fewer than 2^31 elements");
    return true;
}

/* ---- topk ---- */

static bool topk_check(tn_op_call *call) {
    const tn_topk_args *args = call->args;
    const tn_tensor *x = call->in[0];
    int axis = tn_axis_of(args->dim, x->axes);
    TN_WANT(axis >= 0, call, TN_ERR_ARGUMENT, "dim %lld: wanted an axis of x", (long long)args->dim);
    TN_WANT(args->k >= 0 && args->k <= x->shape[axis], call, TN_ERR_ARGUMENT, "k %lld: wanted 0 to %lld", (long long)args->k,
            (long long)x->shape[axis]);
    call->out_spec[0] = tn_spec_like(x);
    call->out_spec[0].shape.size[axis] = args->k;
    call->out_spec[1] = (tn_spec){ TN_I64, call->out_spec[0].shape };
    call->save_out = 2;
    return line_fits(call, x->shape[axis]);
}

static int64_t topk_saved_bytes(const tn_op_call *call) { return tn_spec_bytes(&call->out_spec[1]); }

/* Forward reads x and writes both outputs; backward reads the values' gradient and the indices and writes dx. */
static int64_t topk_floor_bytes(const tn_op_call *call, bool backward) {
    (void)backward;
    return tn_call_in_bytes(call) + tn_call_out_bytes(call);
}

static const tn_input_def topk_inputs[] = { { .name = "x", .dtypes = TN_FLOATS, .doc = "any shape but a scalar" } };
static const tn_output_def topk_outputs[] = { { "values", "like x with k elements along dim" }, { "indices", "i64: where they stood" } };
static const tn_attr_def topk_attrs[] = {
    TN_ATTR(tn_topk_args, k, TN_ATTR_INT, NULL, "how many"),
    TN_ATTR(tn_topk_args, dim, TN_ATTR_INT, "-1", "the axis"),
    TN_ATTR(tn_topk_args, largest, TN_ATTR_BOOL, "true", "false: the smallest"),
};

static const tn_op_def topk_def = {
    .name = "topk",
    .family = "sampling",
    .doc = "the k largest elements along an axis in order, and their places",
    .inputs = topk_inputs,
    .n_inputs = 1,
    .outputs = topk_outputs,
    .n_outputs = TN_COUNT(topk_outputs),
    .attrs = topk_attrs,
    .n_attrs = TN_COUNT(topk_attrs),
    .args_bytes = sizeof(tn_topk_args),
    .samples = tn_topk_samples,
    .check = topk_check,
    .forward[TN_DEVICE_CPU] = tn_topk_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_topk_backward_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_topk_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_topk_backward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_topk_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_topk_workspace_cuda),
    .saved_bytes = topk_saved_bytes,
    .floor_bytes = topk_floor_bytes,
};

/* ---- multinomial ---- */

static bool multinomial_check(tn_op_call *call) {
    const tn_multinomial_args *args = call->args;
    const tn_tensor *x = call->in[0];
    TN_WANT(x->axes >= 1, call, TN_ERR_SHAPE, "wanted weights [.., v]");
    int64_t size = x->shape[x->axes - 1];
    TN_WANT(args->n_samples >= 0, call, TN_ERR_ARGUMENT, "n_samples %lld: wanted at least 0", (long long)args->n_samples);
    TN_WANT(args->replacement || args->n_samples <= size, call, TN_ERR_ARGUMENT, "%lld samples of %lld places without replacement",
            (long long)args->n_samples, (long long)size);
    call->out_spec[0] = (tn_spec){ TN_I64, tn_shape_of(x) };
    call->out_spec[0].shape.size[x->axes - 1] = args->n_samples;
    TN_WANT(size > 0 || tn_spec_numel(&call->out_spec[0]) == 0, call, TN_ERR_SHAPE, "samples of no places");
    return line_fits(call, size);
}

static int64_t multinomial_saved_bytes(const tn_op_call *call) {
    (void)call;
    return 0;
}

static int64_t multinomial_floor_bytes(const tn_op_call *call, bool backward) {
    return backward ? 0 : tn_call_in_bytes(call) + tn_call_out_bytes(call);
}

static const tn_input_def multinomial_inputs[] = {
    { .name = "weights", .dtypes = TN_FLOATS, .flags = TN_INPUT_NO_GRADIENT, .doc = "[.., v], >= 0" },
};
static const tn_output_def multinomial_outputs[] = { { "index", "i64 [.., n_samples]" } };
static const tn_attr_def multinomial_attrs[] = {
    TN_ATTR(tn_multinomial_args, n_samples, TN_ATTR_INT, "1", "draws from each row"),
    TN_ATTR(tn_multinomial_args, replacement, TN_ATTR_BOOL, "true", "false: no place twice from one row"),
};

static const tn_op_def multinomial_def = {
    .name = "multinomial",
    .family = "sampling",
    .doc = "places drawn with given weights",
    .flags = TN_OP_NOT_DIFFERENTIABLE | TN_OP_RANDOM,
    .inputs = multinomial_inputs,
    .n_inputs = 1,
    .outputs = multinomial_outputs,
    .n_outputs = 1,
    .attrs = multinomial_attrs,
    .n_attrs = TN_COUNT(multinomial_attrs),
    .args_bytes = sizeof(tn_multinomial_args),
    .samples = tn_multinomial_samples,
    .check = multinomial_check,
    .forward[TN_DEVICE_CPU] = tn_multinomial_forward_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_multinomial_forward_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_multinomial_workspace,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_multinomial_workspace_cuda),
    .saved_bytes = multinomial_saved_bytes,
    .floor_bytes = multinomial_floor_bytes,
};

static const tn_op_def *const sampling_ops[] = { &topk_def, &multinomial_def };
const tn_op_family tn_family_sampling = { sampling_ops, TN_COUNT(sampling_ops) };

/* ---- the calls ---- */

tn_tensor *tn_topk(tn_tensor *x, tn_topk_args args, tn_tensor **index) {
    tn_tensor *o[2];
    tn_apply(&topk_def, &x, 1, &args, o);
    if (index) *index = o[1];
    return o[0];
}

tn_tensor *tn_multinomial(tn_tensor *weights, tn_multinomial_args args) {
    if (!weights) return NULL;
    tn_tensor *o;
    tn_rng_state rng = tn_rng_get(weights->cx);
    args.seed = rng.seed;
    args.counter = rng.counter;
    tn_apply(&multinomial_def, &weights, 1, &args, &o);
    if (!o) return NULL;
    rng.counter += (uint64_t)o->numel;
    tn_rng_set(weights->cx, rng);
    return o;
}
