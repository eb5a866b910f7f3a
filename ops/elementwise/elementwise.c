#include <math.h>

#include "elementwise_internal.h"

#include "../family.h"
#include "../op_support.h"

/* ---- check ---- */

/* Grows `shape` so that t broadcasts to it; false where an axis does not fit. */
static bool broadcast_with(tn_shape *shape, const tn_tensor *t) {
    int added = t->axes - shape->axes;
    if (added > 0) {
        for (int i = shape->axes - 1; i >= 0; i--) shape->size[i + added] = shape->size[i];
        for (int i = 0; i < added; i++) shape->size[i] = 1;
        shape->axes = t->axes;
    }
    for (int i = 0; i < t->axes; i++) {
        int64_t *size = &shape->size[shape->axes - t->axes + i];
        if (*size == 1) *size = t->shape[i];
        else if (t->shape[i] != 1 && t->shape[i] != *size) return false;
    }
    return true;
}

static void save_what_is_read(tn_op_call *call) {
    const tn_elementwise_op *op = tn_elementwise_of(call);
    unsigned reads = 0;
    for (int i = 0; i < call->n_in; i++)
        if (tn_wants(call, i)) reads |= op->reads[i];
    call->save_in = reads & (TN_READS_OUT - 1);
    call->save_out = reads & TN_READS_OUT ? 1 : 0;
}

static bool unary_check(tn_op_call *call) {
    const tn_elementwise_op *op = tn_elementwise_of(call);
    const double *numbers = call->args;
    for (int i = 0; i < op->n_numbers; i++)
        TN_WANT(!isnan(numbers[i]), call, TN_ERR_ARGUMENT, "%s = nan: wanted a number", call->op->attrs[i].name);
    if (op->index == TN_INDEX_clamp)
        TN_WANT(numbers[0] <= numbers[1], call, TN_ERR_ARGUMENT, "low = %g, high = %g: wanted low <= high", numbers[0], numbers[1]);
    call->out_spec[0] = tn_spec_like(call->in[0]);
    save_what_is_read(call);
    return true;
}

/* The operands from `first` on decide the dtype, all of them the shape. */
static bool meet(tn_op_call *call, int first) {
    tn_spec *out = &call->out_spec[0];
    out->shape = tn_shape_of(call->in[0]);
    for (int i = 1; i < call->n_in; i++)
        TN_WANT(broadcast_with(&out->shape, call->in[i]), call, TN_ERR_SHAPE,
                "wanted shapes that broadcast: axes, aligned at the last, that agree or are 1");
    out->dtype = tn_dtype_promote(call->in[first]->dtype, call->in[first + 1]->dtype);
    save_what_is_read(call);
    return true;
}

static bool pair_check(tn_op_call *call) {
    if (!meet(call, 0)) return false;
    int index = tn_elementwise_of(call)->index;
    tn_dtype *dtype = &call->out_spec[0].dtype;
    TN_WANT(*dtype != TN_BOOL || index == TN_INDEX_eq || index == TN_INDEX_ne, call, TN_ERR_DTYPE, "wanted numbers, not two bools");
    TN_WANT(tn_dtype_is_float(*dtype) || index != TN_INDEX_pow, call, TN_ERR_DTYPE, "wanted f64, f32 or bf16 for a or b");
    if (tn_elementwise_of(call)->kind == TN_ELEMENTWISE_COMPARISON) *dtype = TN_BOOL;
    return true;
}

static bool choice_check(tn_op_call *call) { return meet(call, 1); }

/* ---- formulas ---- */

static tn_spec input_spec(const tn_op_call *call, int i) { return call->in_spec ? call->in_spec[i] : tn_spec_like(call->in[i]); }

static bool passes_gradient(const tn_op_call *call, int input) {
    if (tn_elementwise_of(call)->index == TN_INDEX_affine) return ((const tn_affine_args *)call->args)->scale == 1;
    if (!tn_elementwise_of(call)->passes[input]) return false;
    tn_spec own = input_spec(call, input), out = call->in_spec ? tn_spec_like(call->dout[0]) : call->out_spec[0];
    bool same = own.dtype == out.dtype && own.shape.axes == out.shape.axes;
    for (int i = 0; same && i < own.shape.axes; i++) same = own.shape.size[i] == out.shape.size[i];
    return same;
}

/* Each operand once, if the gradient of an input that wants one reads it. */
static int64_t saved_bytes(const tn_op_call *call) {
    const tn_elementwise_op *op = tn_elementwise_of(call);
    int64_t bytes = 0;
    for (int operand = 0; operand < call->n_in; operand++)
        for (int i = 0; i < call->n_in; i++)
            if (tn_wants(call, i) && op->reads[i] >> operand & 1) {
                bytes += (int64_t)tn_bytes(call->in[operand]);
                break;
            }
    bool output = tn_wants(call, 0) && op->reads[0] & TN_READS_OUT; /* only of unary ops */
    return bytes + (output ? tn_call_out_bytes(call) : 0);
}

/* Forward reads the inputs and writes o. Backward reads do and what was saved and writes the gradients, but those that are do
 * itself. */
static int64_t floor_bytes(const tn_op_call *call, bool backward) {
    if (!backward) return tn_call_in_bytes(call) + tn_call_out_bytes(call);
    int64_t gradients = 0;
    for (int i = 0; i < call->n_in; i++)
        if (tn_wants(call, i) && !passes_gradient(call, i)) gradients += (int64_t)tn_bytes(call->in[i]);
    return gradients ? tn_call_out_bytes(call) + saved_bytes(call) + gradients : 0;
}

/* ---- descriptions ---- */

static const tn_input_def unary_inputs[] = { { .name = "x", .flags = TN_INPUT_STRIDED, .dtypes = TN_FLOATS, .doc = "any shape" } };
static const tn_input_def binary_inputs[] = {
    { .name = "a", .flags = TN_INPUT_STRIDED, .dtypes = TN_ANY_DTYPE, .doc = "any shape" },
    { .name = "b", .flags = TN_INPUT_STRIDED, .dtypes = TN_ANY_DTYPE, .doc = "a shape that broadcasts with a's" },
};
static const tn_input_def comparison_inputs[] = {
    { .name = "a", .flags = TN_INPUT_STRIDED | TN_INPUT_NO_GRADIENT, .dtypes = TN_ANY_DTYPE, .doc = "any shape" },
    { .name = "b", .flags = TN_INPUT_STRIDED | TN_INPUT_NO_GRADIENT, .dtypes = TN_ANY_DTYPE, .doc = "a shape that broadcasts with a's" },
};
static const tn_input_def choice_inputs[] = {
    { .name = "cond", .flags = TN_INPUT_STRIDED | TN_INPUT_NO_GRADIENT, .dtypes = TN_MASK(TN_BOOL) | TN_MASK(TN_U8), .doc = "any shape" },
    { .name = "a", .flags = TN_INPUT_STRIDED, .dtypes = TN_ANY_DTYPE, .doc = "a shape that broadcasts with the others" },
    { .name = "b", .flags = TN_INPUT_STRIDED, .dtypes = TN_ANY_DTYPE, .doc = "a shape that broadcasts with the others" },
};
static const tn_output_def unary_outputs[] = { { "o", "like x" } };
static const tn_output_def other_outputs[] = { { "o", "the shape the inputs broadcast to" } };

static const tn_attr_def affine_attrs[] = {
    TN_ATTR(tn_affine_args, scale, TN_ATTR_FLOAT, "1", "x is multiplied by it"),
    TN_ATTR(tn_affine_args, shift, TN_ATTR_FLOAT, "0", "and this is added"),
};
static const tn_attr_def clamp_attrs[] = {
    TN_ATTR(tn_clamp_args, low, TN_ATTR_FLOAT, "-inf", "the least value"),
    TN_ATTR(tn_clamp_args, high, TN_ATTR_FLOAT, "inf", "the greatest value"),
};
static const tn_attr_def pow_scalar_attrs[] = { TN_ATTR(tn_pow_scalar_args, exponent, TN_ATTR_FLOAT, NULL, "the exponent") };

#define READS_none 0
#define READS_pass 0
#define READS_x TN_READS_IN0
#define READS_o TN_READS_OUT
#define READS_a TN_READS_IN0
#define READS_b TN_READS_IN1
#define READS_ab (TN_READS_IN0 | TN_READS_IN1)
#define READS_cond TN_READS_IN0
#define PASSES_none false
#define PASSES_pass true
#define PASSES_a false
#define PASSES_b false
#define PASSES_ab false

#define UNARY_OWN(op_name, op_doc, how, forward, reads_x, ...) \
    [TN_INDEX_##op_name] = { .index = TN_INDEX_##op_name, .kind = TN_ELEMENTWISE_UNARY, .reads = { READS_##reads_x } },
#define NUMBERS_OWN(op_name, op_doc, how, forward, reads_x, ...) \
    [TN_INDEX_##op_name] = { .index = TN_INDEX_##op_name,        \
                             .kind = TN_ELEMENTWISE_UNARY,       \
                             .reads = { READS_##reads_x },       \
                             .n_numbers = sizeof(tn_##op_name##_args) / sizeof(double) },
#define BINARY_OWN(op_name, op_doc, how, forward, integers, reads_a, how_a, gradient_a, reads_b, ...) \
    [TN_INDEX_##op_name] = { .index = TN_INDEX_##op_name,                                             \
                             .kind = TN_ELEMENTWISE_BINARY,                                           \
                             .reads = { READS_##reads_a, READS_##reads_b },                           \
                             .passes = { PASSES_##reads_a, PASSES_##reads_b } },
#define COMPARISON_OWN(op_name, op_doc, condition) \
    [TN_INDEX_##op_name] = { .index = TN_INDEX_##op_name, .kind = TN_ELEMENTWISE_COMPARISON },
#define CHOICE_OWN(op_name, op_doc, forward, integers, reads_a, gradient_a, reads_b, gradient_b) \
    [TN_INDEX_##op_name] = { .index = TN_INDEX_##op_name, .kind = TN_ELEMENTWISE_CHOICE, .reads = { 0, READS_##reads_a, READS_##reads_b } },

static const tn_elementwise_op own[TN_ELEMENTWISE_COUNT] = { TN_UNARY_OPS(UNARY_OWN) TN_UNARY_OPS_WITH_NUMBERS(NUMBERS_OWN) TN_BINARY_OPS(
    BINARY_OWN) TN_COMPARISON_OPS(COMPARISON_OWN) TN_CHOICE_OPS(CHOICE_OWN) };

#define COMMON(op_name, op_doc, op_inputs, op_outputs)                                                                            \
    .name = #op_name, .family = "elementwise", .doc = op_doc, .own = &own[TN_INDEX_##op_name], .inputs = op_inputs,               \
    .n_inputs = TN_COUNT(op_inputs), .outputs = op_outputs, .n_outputs = 1, .forward[TN_DEVICE_CPU] = tn_elementwise_forward_cpu, \
    .forward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE, .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_elementwise_forward_cuda),        \
    .forward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE, .floor_bytes = floor_bytes, .samples = tn_elementwise_##op_name##_samples
#define DIFFERENTIABLE                                                                                                                  \
    .flags = TN_OP_STRIDED_DOUT, .saved_bytes = saved_bytes, .workspace[TN_DEVICE_CPU] = tn_elementwise_workspace,                      \
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_elementwise_workspace_cuda), .backward[TN_DEVICE_CPU] = tn_elementwise_backward_cpu, \
    .backward_dtypes[TN_DEVICE_CPU] = TN_ANY_DTYPE, .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_elementwise_backward_cuda),           \
    .backward_dtypes[TN_DEVICE_CUDA] = TN_ANY_DTYPE, .passes_gradient = passes_gradient

#define UNARY_DEF(op_name, op_doc, ...) \
    [TN_INDEX_##op_name] = { COMMON(op_name, op_doc, unary_inputs, unary_outputs), DIFFERENTIABLE, .check = unary_check },
#define NUMBERS_DEF(op_name, op_doc, ...)                                          \
    [TN_INDEX_##op_name] = { COMMON(op_name, op_doc, unary_inputs, unary_outputs), \
                             DIFFERENTIABLE,                                       \
                             .check = unary_check,                                 \
                             .attrs = op_name##_attrs,                             \
                             .n_attrs = TN_COUNT(op_name##_attrs),                 \
                             .args_bytes = sizeof(tn_##op_name##_args) },
#define BINARY_DEF(op_name, op_doc, ...) \
    [TN_INDEX_##op_name] = { COMMON(op_name, op_doc, binary_inputs, other_outputs), DIFFERENTIABLE, .check = pair_check },
#define COMPARISON_DEF(op_name, op_doc, ...) \
    [TN_INDEX_##                             \
        op_name] = { COMMON(op_name, op_doc, comparison_inputs, other_outputs), .check = pair_check, .flags = TN_OP_NOT_DIFFERENTIABLE },
#define CHOICE_DEF(op_name, op_doc, ...) \
    [TN_INDEX_##op_name] = { COMMON(op_name, op_doc, choice_inputs, other_outputs), DIFFERENTIABLE, .check = choice_check },

static const tn_op_def defs[TN_ELEMENTWISE_COUNT] = { TN_UNARY_OPS(UNARY_DEF) TN_UNARY_OPS_WITH_NUMBERS(NUMBERS_DEF) TN_BINARY_OPS(
    BINARY_DEF) TN_COMPARISON_OPS(COMPARISON_DEF) TN_CHOICE_OPS(CHOICE_DEF) };

#define ADDRESS(op_name, ...) &defs[TN_INDEX_##op_name],
static const tn_op_def *const ops[TN_ELEMENTWISE_COUNT] = { TN_UNARY_OPS(ADDRESS) TN_UNARY_OPS_WITH_NUMBERS(ADDRESS) TN_BINARY_OPS(ADDRESS)
                                                                TN_COMPARISON_OPS(ADDRESS) TN_CHOICE_OPS(ADDRESS) };
const tn_op_family tn_family_elementwise = { ops, TN_ELEMENTWISE_COUNT };

/* ---- public calls ---- */

static tn_tensor *apply(int index, tn_tensor *const *in, int n_in, const void *args) {
    tn_tensor *o;
    return tn_apply(&defs[index], in, n_in, args, &o);
}

#define UNARY_CALL(op_name, ...) \
    tn_tensor *tn_##op_name(tn_tensor *x) { return apply(TN_INDEX_##op_name, &x, 1, NULL); }
#define PAIR_CALL(op_name, ...) \
    tn_tensor *tn_##op_name(tn_tensor *a, tn_tensor *b) { return apply(TN_INDEX_##op_name, (tn_tensor *[]){ a, b }, 2, NULL); }

TN_UNARY_OPS(UNARY_CALL)
TN_BINARY_OPS(PAIR_CALL)
TN_COMPARISON_OPS(PAIR_CALL)

tn_tensor *tn_affine(tn_tensor *x, tn_affine_args args) { return apply(TN_INDEX_affine, &x, 1, &args); }
tn_tensor *tn_add_scalar(tn_tensor *x, double scalar) { return tn_affine(x, TN_AFFINE(.shift = scalar)); }
tn_tensor *tn_mul_scalar(tn_tensor *x, double scalar) { return tn_affine(x, TN_AFFINE(.scale = scalar)); }
tn_tensor *tn_clamp(tn_tensor *x, tn_clamp_args args) { return apply(TN_INDEX_clamp, &x, 1, &args); }
tn_tensor *tn_pow_scalar(tn_tensor *x, double exponent) { return apply(TN_INDEX_pow_scalar, &x, 1, &(tn_pow_scalar_args){ exponent }); }
tn_tensor *tn_where(tn_tensor *cond, tn_tensor *a, tn_tensor *b) { return apply(TN_INDEX_where, (tn_tensor *[]){ cond, a, b }, 3, NULL); }
