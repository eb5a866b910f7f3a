#include "dropout_internal.h"

#include "../../libtensor/context_internal.h"

#include "../family.h"
#include "../op_support.h"

static bool dropout_check(tn_op_call *call) {
    const tn_dropout_args *args = call->args;
    TN_WANT(args->p >= 0 && args->p <= 1, call, TN_ERR_ARGUMENT, "p = %g: wanted a probability from 0 to 1", args->p);
    const tn_tensor *place = call->in[TN_DROPOUT_PLACE];
    TN_WANT(!place || place->numel == 1, call, TN_ERR_SHAPE, "wanted a scalar as place");
    call->out_spec[0] = tn_spec_like(call->in[0]);
    if (place) call->save_in = 1u << TN_DROPOUT_PLACE;
    return true;
}

static bool dropout_passes_gradient(const tn_op_call *call, int input) {
    const tn_dropout_args *args = call->args;
    return input == 0 && args->p == 0;
}

static int64_t dropout_saved_bytes(const tn_op_call *call) { return call->in[TN_DROPOUT_PLACE] ? 8 : 0; }

/* Both passes read one tensor and write one; with p = 0 backward hands do on. */
static int64_t dropout_floor_bytes(const tn_op_call *call, bool backward) {
    return backward && dropout_passes_gradient(call, 0) ? 0 : 2 * (int64_t)tn_bytes(call->in[0]);
}

static const tn_input_def dropout_inputs[] = {
    { .name = "x", .dtypes = TN_FLOATS, .doc = "any shape" },
    { .name = "place",
      .flags = TN_INPUT_OPTIONAL | TN_INPUT_NO_GRADIENT,
      .dtypes = TN_MASK(TN_I64),
      .doc = "an even number that is added to where the random stream stands" },
};
static const tn_output_def dropout_outputs[] = { { "o", "like x" } };
static const tn_attr_def dropout_attrs[] = { TN_ATTR(tn_dropout_args, p, TN_ATTR_FLOAT, "0.5", "probability of an element to be zeroed") };

static const tn_op_def dropout_def = {
    .name = "dropout",
    .family = "dropout",
    .doc = "zeroes elements at random and scales the others",
    .flags = TN_OP_RANDOM,
    .inputs = dropout_inputs,
    .n_inputs = TN_COUNT(dropout_inputs),
    .outputs = dropout_outputs,
    .n_outputs = TN_COUNT(dropout_outputs),
    .attrs = dropout_attrs,
    .n_attrs = TN_COUNT(dropout_attrs),
    .args_bytes = sizeof(tn_dropout_args),
    .samples = tn_dropout_samples,
    .check = dropout_check,
    .forward[TN_DEVICE_CPU] = tn_dropout_cpu,
    .backward[TN_DEVICE_CPU] = tn_dropout_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_dropout_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_dropout_cuda),
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .passes_gradient = dropout_passes_gradient,
    .saved_bytes = dropout_saved_bytes,
    .floor_bytes = dropout_floor_bytes,
};

static const tn_op_def *const dropout_ops[] = { &dropout_def };
const tn_op_family tn_family_dropout = { dropout_ops, TN_COUNT(dropout_ops) };

tn_tensor *tn_dropout(tn_tensor *x, tn_dropout_args args) {
    tn_tensor *o;
    if (!x) return NULL;
    tn_tensor *in[] = { x, x->cx->rng_place };
    tn_rng_state stream = tn_rng_get(x->cx);
    args.seed = stream.seed;
    args.counter = stream.counter + (stream.counter & 1); /* a block holds two draws */
    if (tn_apply(&dropout_def, in, 2, &args, &o) && args.p > 0 && args.p < 1) {
        uint64_t groups = ((uint64_t)x->numel + TN_DROPOUT_GROUP - 1) / TN_DROPOUT_GROUP;
        stream.counter = args.counter + 2 * TN_DROPOUT_BLOCKS * groups;
        tn_rng_set(x->cx, stream);
    }
    return o;
}
