#include "outside_op.h"

#include "libtensor/bf16.h"

typedef struct outside_args {
    double factor;
} outside_args;

static bool check(tn_op_call *call) {
    const outside_args *args = call->args;
    TN_WANT(args->factor != 0, call, TN_ERR_ARGUMENT, "factor = 0: wanted another number");
    call->out_spec[0] = (tn_spec){ call->in[0]->dtype, tn_shape_of(call->in[0]) };
    call->save_in = 1;
    return true;
}

static int64_t saved_bytes(const tn_op_call *call) { return (int64_t)tn_bytes(call->in[0]); }
static int64_t floor_bytes(const tn_op_call *call, bool backward) { return (int64_t)tn_bytes(call->in[0]) * (backward ? 3 : 2); }

static double load(const tn_tensor *t, int64_t i) {
    if (t->dtype == TN_F64) return ((const double *)t->data)[i];
    return t->dtype == TN_F32 ? (double)((const float *)t->data)[i] : (double)tn_bf16_to_f32(((const tn_bf16 *)t->data)[i]);
}

static void store(tn_tensor *t, int64_t i, double value) {
    if (t->dtype == TN_F64) ((double *)t->data)[i] = value;
    else if (t->dtype == TN_F32) ((float *)t->data)[i] = (float)value;
    else ((tn_bf16 *)t->data)[i] = tn_f64_to_bf16(value);
}

static tn_status forward(tn_op_call *call) {
    const outside_args *args = call->args;
    for (int64_t i = 0; i < call->out[0]->numel; i++) {
        double x = load(call->in[0], i);
        store(call->out[0], i, args->factor * x * x * x);
    }
    return TN_OK;
}

static tn_status backward(tn_op_call *call) {
    const outside_args *args = call->args;
    for (int64_t i = 0; i < call->din[0]->numel; i++) {
        double x = load(call->in[0], i);
        store(call->din[0], i, load(call->dout[0], i) * 3 * args->factor * x * x);
    }
    return TN_OK;
}

static const tn_input_def inputs[] = { { .name = "x", .dtypes = TN_FLOATS, .doc = "any shape" } };
static const tn_output_def outputs[] = { { "o", "like x" } };
static const tn_attr_def attrs[] = { TN_ATTR(outside_args, factor, TN_ATTR_FLOAT, "1", "what the cube is multiplied by") };
static const tn_sample samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(3, 5) } },
    { .name = "factor", .in = { TN_SAMPLE_SHAPE(7) }, .attrs = "{\"factor\": -0.5}" },
    { .name = "scalar", .in = { { .present = true } } },
    { .name = "zero-factor", .in = { TN_SAMPLE_SHAPE(2) }, .attrs = "{\"factor\": 0}", .error = TN_ERR_ARGUMENT, .message = "factor = 0" },
    { .name = NULL },
};

const tn_op_def tn_outside_op = {
    .name = "outside_cube",
    .family = "outside",
    .doc = "the cube of x, from outside the library",
    .inputs = inputs,
    .n_inputs = TN_COUNT(inputs),
    .outputs = outputs,
    .n_outputs = TN_COUNT(outputs),
    .attrs = attrs,
    .n_attrs = TN_COUNT(attrs),
    .args_bytes = sizeof(outside_args),
    .samples = samples,
    .check = check,
    .forward[TN_DEVICE_CPU] = forward,
    .backward[TN_DEVICE_CPU] = backward,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .saved_bytes = saved_bytes,
    .floor_bytes = floor_bytes,
};
