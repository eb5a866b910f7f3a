#include "sample_inputs.h"

#include <math.h>
#include <string.h>

#include "../libtensor/bf16.h"
#include "../libtensor/context_internal.h"
#include "registry.h"

static const tn_input_def *input_def(const tn_op_def *op, int i) { return &op->inputs[i < op->n_inputs ? i : op->n_inputs - 1]; }

/* A repeated last input is there as often as the sample says. */
static int count_inputs(const tn_op_def *op, const tn_sample *sample) {
    int n = op->n_inputs;
    if (!(op->inputs[n - 1].flags & TN_INPUT_VARIADIC)) return n;
    for (int i = n; i < TN_OP_MAX_INPUTS; i++)
        if (sample->in[i].present) n = i + 1;
    return n;
}

/* ---- dtypes ---- */

static tn_dtype first_of(unsigned mask) {
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        if (mask >> i & 1) return (tn_dtype)i;
    return TN_F32;
}

static tn_dtype dtype_of_input(const tn_op_def *op, const tn_sample *sample, int i, tn_dtype data) {
    const tn_input_def *def = input_def(op, i);
    if (sample->in[i].other_dtype) return sample->in[i].dtype;
    if (def->flags & TN_INPUT_WIDE) return data == TN_F64 ? TN_F64 : TN_F32;
    return !def->dtypes || def->dtypes & TN_MASK(data) ? data : first_of(def->dtypes);
}

/* Does input i take the dtype the sample runs in? */
static bool is_data(const tn_op_def *op, const tn_sample *sample, int i) {
    const tn_input_def *def = input_def(op, i);
    return sample->in[i].present && !sample->in[i].other_dtype && !(def->flags & TN_INPUT_WIDE) &&
           (!def->dtypes || def->dtypes & TN_FLOATS);
}

unsigned tn_sample_dtypes(const tn_context *cx, const tn_op_def *op, const tn_sample *sample) {
    unsigned runs = op->flags & TN_OP_VIEW ? TN_ANY_DTYPE : op->forward_dtypes[cx->device->kind];
    int n_in = count_inputs(op, sample), data = 0;
    while (data < n_in && !is_data(op, sample, data)) data++;
    if (sample->dtypes) return sample->dtypes & (data == 0 ? runs : TN_ANY_DTYPE);
    if (data == n_in) return TN_MASK(TN_F32); /* the name alone: every dtype would be the same run */
    unsigned taken = input_def(op, data)->dtypes ? input_def(op, data)->dtypes : TN_ANY_DTYPE;
    /* The kernels' masks speak of the first input. */
    return data == 0 ? taken & runs : taken & TN_FLOATS;
}

/* ---- numbers ---- */

static uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* In (0, 1). */
static double uniform(uint64_t seed, int input, int64_t element, int draw) {
    uint64_t key = mixed(seed + UINT64_C(0x9E3779B97F4A7C15) * (uint64_t)(input + 1));
    return ((double)(mixed(key + UINT64_C(0x9E3779B97F4A7C15) * (2 * (uint64_t)element + (uint64_t)draw + 1)) >> 11) + 0.5) * 0x1p-53;
}

static double normal(uint64_t seed, int input, int64_t element) {
    const double two_pi = 6.283185307179586;
    return sqrt(-2 * log(uniform(seed, input, element, 0))) * cos(two_pi * uniform(seed, input, element, 1));
}

static double value_of(const tn_sample_input *given, uint64_t seed, int input, int64_t element) {
    switch (given->fill) {
    case TN_FILL_NORMAL: return given->a + (given->a == 0 && given->b == 0 ? 1 : given->b) * normal(seed, input, element);
    case TN_FILL_UNIFORM: return given->a + (given->b - given->a) * uniform(seed, input, element, 0);
    case TN_FILL_INTEGER: return floor(given->a + (given->b - given->a) * uniform(seed, input, element, 0));
    case TN_FILL_CONSTANT: return given->a;
    case TN_FILL_LIST: return given->n_values > 0 ? given->values[element % given->n_values] : 0;
    }
    return 0;
}

static void store(void *bytes, int64_t i, tn_dtype dtype, double value) {
    switch (dtype) {
    case TN_F64: ((double *)bytes)[i] = value; break;
    case TN_F32: ((float *)bytes)[i] = (float)value; break;
    case TN_BF16: ((tn_bf16 *)bytes)[i] = tn_f64_to_bf16(value); break;
    case TN_I64: ((int64_t *)bytes)[i] = (int64_t)llround(value); break;
    case TN_I32: ((int32_t *)bytes)[i] = (int32_t)llround(value); break;
    case TN_U8: ((uint8_t *)bytes)[i] = (uint8_t)llround(fabs(value)); break;
    case TN_BOOL: ((uint8_t *)bytes)[i] = llround(value) != 0; break;
    case TN_DTYPE_COUNT: break;
    }
}

static tn_tensor *make_input(tn_context *cx, const tn_op_def *op, const tn_sample_input *given, tn_dtype dtype, uint64_t seed, int input) {
    int64_t numel = tn_shape_numel(&given->shape);
    if (numel < 0) return tn_fail(cx, TN_ERR_SHAPE, op->name, "input %d of the sample has no possible shape", input);
    void *bytes = tn_host_alloc((size_t)numel * tn_dtype_size(dtype) + 1);
    if (!bytes) return tn_fail(cx, TN_ERR_HOST_MEMORY, op->name, "the host has no memory left for a sample");
    for (int64_t i = 0; i < numel; i++) store(bytes, i, dtype, value_of(given, seed, input, i));
    tn_tensor *t = tn_from_data(cx, dtype, given->shape, bytes);
    tn_host_free(bytes);
    return t;
}

/* ---- samples ---- */

static bool has_gradient(const tn_context *cx, const tn_op_def *op, const tn_tensor *first, const tn_tensor *t, int i) {
    if (op->flags & TN_OP_NOT_DIFFERENTIABLE || input_def(op, i)->flags & TN_INPUT_NO_GRADIENT || !tn_dtype_is_float(t->dtype))
        return false;
    return op->flags & TN_OP_VIEW || op->backward_tensors || !first || op->backward_dtypes[cx->device->kind] & TN_MASK(first->dtype);
}

bool tn_sample_make(tn_context *cx, const tn_op_def *op, const tn_sample *sample, tn_dtype dtype, uint64_t seed, bool requires_grad,
                    tn_tensor *in[TN_OP_MAX_INPUTS], int *n_in, tn_op_args_buffer *args) {
    char reason[512];
    memset(in, 0, TN_OP_MAX_INPUTS * sizeof *in);
    *n_in = count_inputs(op, sample);
    if (!tn_ready(cx)) return false;
    if (!tn_op_set_attrs_json(op, args, sample->attrs, reason, sizeof reason)) {
        tn_fail(cx, TN_ERR_ARGUMENT, op->name, "%s", reason);
        return false;
    }
    for (int i = 0; i < *n_in; i++) {
        if (!sample->in[i].present) continue;
        in[i] = make_input(cx, op, &sample->in[i], dtype_of_input(op, sample, i, dtype), seed, i);
        if (!in[i]) return false;
        if (requires_grad && has_gradient(cx, op, in[0], in[i], i) && !tn_require_grad(in[i], true)) return false;
    }
    return true;
}

/* ---- gradient checks ---- */

typedef struct sample_call {
    const tn_op_def *op;
    tn_op_args_buffer args;
    tn_rng_state rng; /* an op that draws must draw the same numbers each time */
} sample_call;

static bool run_sample(void *user, tn_tensor *const *in, int n_in, tn_tensor **out, int n_out) {
    const sample_call *call = user;
    tn_tensor *all[TN_OP_MAX_OUTPUTS];
    for (int i = 0; i < n_in; i++)
        if (in[i]) tn_rng_set(in[i]->cx, call->rng);
    if (!tn_apply(call->op, in, n_in, &call->args, all)) return false;
    for (int i = 0; i < n_out; i++) out[i] = all[i];
    return true;
}

bool tn_sample_has_gradcheck(const tn_context *cx, const tn_op_def *op, const tn_sample *sample) {
    return !(op->flags & TN_OP_NOT_DIFFERENTIABLE) && sample->error == TN_OK && !sample->no_gradcheck &&
           tn_sample_dtypes(cx, op, sample) & TN_MASK(TN_F64);
}

static int count_outputs(tn_context *cx, const sample_call *call, tn_tensor *const *in, int n_in) {
    tn_op_call planned;
    return tn_op_plan(call->op, in, n_in, &call->args, &planned) ? planned.n_out : tn_ready(cx) ? 0 : -1;
}

static bool check_in_scope(tn_context *cx, const tn_op_def *op, const tn_sample *sample, tn_gradcheck_options options,
                           tn_gradcheck_result *result) {
    sample_call call = { .op = op, .rng = { options.seed, 0 } };
    tn_tensor *in[TN_OP_MAX_INPUTS];
    int n_in;
    if (!tn_sample_make(cx, op, sample, TN_F64, options.seed, true, in, &n_in, &call.args)) return false;
    bool some = false;
    for (int i = 0; i < n_in; i++) {
        /* What is not f64 is beyond differences of this step. */
        if (in[i] && in[i]->dtype != TN_F64 && tn_requires_grad(in[i])) tn_require_grad(in[i], false);
        some = some || tn_requires_grad(in[i]);
    }
    int n_out = count_outputs(cx, &call, in, n_in);
    if (n_out < 0) return false;
    if (some) return tn_gradcheck(run_sample, &call, in, n_in, n_out, options, result);
    result->passed = true;
    return true;
}

bool tn_sample_gradcheck(tn_context *cx, const tn_op_def *op, const tn_sample *sample, tn_gradcheck_options options,
                         tn_gradcheck_result *result) {
    *result = (tn_gradcheck_result){ .input = -1, .output = -1 };
    tn_scope *scope = tn_scope_begin(cx);
    if (!scope) return false;
    tn_rng_state rng = tn_rng_get(cx);
    bool fine = check_in_scope(cx, op, sample, options, result);
    tn_rng_set(cx, rng);
    tn_scope_end(scope);
    return fine;
}
