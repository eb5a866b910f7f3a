#include "../../libtensor/simd.h"
#include "../activation_cpu.h"
#include "elementwise_internal.h"
#include "elementwise_walk_cpu.h"

/* ---- what the lists' expressions mean for a float, a vector of them, and a double ---- */

#define FOR_TYPE(x, f32, lanes, f64) _Generic((x), float : f32, tn_vf : lanes, double : f64)
#define FOR_LANES(x, lanes, f64) _Generic((x), tn_vf : lanes, double : f64)
#define FOR_ONE(x, f32, f64) _Generic((x), float : f32, double : f64)
#define ABS(x) FOR_ONE(x, fabsf, fabs)(x)
#define SQRT(x) FOR_ONE(x, sqrtf, sqrt)(x)
#define POW(a, b) FOR_ONE(a, powf, pow)(a, b)
#define SELECT(condition, yes, no) ((condition) ? (yes) : (no))
#define EXP(x) FOR_LANES(x, tn_vf_exp, exp)(x)
#define LOG(x) FOR_TYPE(x, logf, tn_vf_log, log)(x)
#define LOG1P(x) FOR_LANES(x, tn_vf_log1p, log1p)(x)
#define SIN(x) FOR_LANES(x, tn_vf_sin, sin)(x)
#define COS(x) FOR_LANES(x, tn_vf_cos, cos)(x)
#define ACT(act, x) FOR_LANES(x, tn_vf_act, tn_f64_act)(act, x)
#define SOFTPLUS(x) FOR_LANES(x, lanes_softplus, f64_softplus)(x)
#define POWER(x, exponent) FOR_LANES(x, lanes_power, f64_power)(x, exponent)
#define WRAP(a, operator, b) (int64_t)((uint64_t)a operator(uint64_t) b)
#define QUOTIENT(a, b) (b == 0 ? 0 : b == -1 ? WRAP(0, -, a) : a / b)

/* max(x, 0) + ln(1 + e^-|x|) */
TN_INLINE tn_vf lanes_softplus(tn_vf x) {
    tn_vi negative = (tn_vi)x >> 31;
    return (tn_vf)((tn_vi)x & ~negative) + tn_vf_log1p(tn_vf_exp(-tn_vf_abs(x)));
}
TN_INLINE double f64_softplus(double x) { return (x < 0 ? 0 : x) + log1p(exp(-fabs(x))); }

static __attribute__((noinline)) void pow_lanes(float *x, float exponent) {
    for (int i = 0; i < TN_VF_LANES; i++) x[i] = powf(x[i], exponent);
}
/* x^exponent for one exponent, the frequent ones without a call. */
TN_INLINE tn_vf lanes_power(tn_vf x, double exponent) {
    if (exponent == 1) return x;
    if (exponent == 2) return x * x;
    if (exponent == 3) return x * x * x;
    if (exponent == -1) return 1.0f / x;
    if (exponent == 0.5) return tn_vf_sqrt(x);
    if (exponent == -0.5) return 1.0f / tn_vf_sqrt(x);
    float lanes[TN_VF_LANES];
    tn_vf_store(lanes, x);
    pow_lanes(lanes, (float)exponent);
    return tn_vf_load(lanes);
}
TN_INLINE double f64_power(double x, double exponent) { return exponent == 2 ? x * x : pow(x, exponent); }

/* ---- kernels: a loop over a panel, from an expression and the operands it reads ---- */

/* The operands of forward, and those of a gradient by what it reads besides d. */
#define OPERANDS_of_x(GET) GET(x, 0)
#define OPERANDS_of_ab(GET) GET(a, 0) GET(b, 1)
#define OPERANDS_of_cond(GET) GET(cond, 0) GET(a, 1) GET(b, 2)
#define OPERANDS_none(GET) GET(d, 0)
#define OPERANDS_pass(GET) GET(d, 0)
#define OPERANDS_x(GET) GET(d, 0) GET(x, 1)
#define OPERANDS_o(GET) GET(d, 0) GET(o, 1)
#define OPERANDS_a(GET) GET(d, 0) GET(a, 1)
#define OPERANDS_b(GET) GET(d, 0) GET(b, 1)
#define OPERANDS_ab(GET) GET(d, 0) GET(a, 1) GET(b, 2)
#define OPERANDS_cond(GET) GET(d, 0) GET(cond, 1)

#define UNUSED __attribute__((unused))
#define POINT_F32(name, k) const float *restrict name##s = panel->in[k];
#define POINT_F64(name, k) const double *restrict name##s = panel->in[k];
#define POINT_I64(name, k) const int64_t *restrict name##s = panel->in[k];
#define GET_F32(name, k) const float name = name##s[i];
#define GET_F64(name, k) const double name = name##s[i];
#define GET_I64(name, k) const int64_t name UNUSED = name##s[i];
#define GET_LANES(name, k) const tn_vf name = tn_vf_load_part(name##s + i, n - i);

#define F32_loop(kernel, operands, expression)                                                                                   \
    TN_SIMD_CLONES static void kernel(const tn_panel *panel) {                                                                   \
        const float p0 UNUSED = (float)panel->numbers[0], p1 UNUSED = (float)panel->numbers[1], zero UNUSED = 0, one UNUSED = 1, \
                       half UNUSED = 0.5f;                                                                                       \
        float *restrict to = panel->to;                                                                                          \
        int64_t n = panel->n;                                                                                                    \
        operands(POINT_F32) for (int64_t i = 0; i < n; i++) { operands(GET_F32) to[i] = expression; }                            \
    }
#define F32_lanes(kernel, operands, expression)                                   \
    TN_SIMD_CLONES static void kernel(const tn_panel *panel) {                    \
        const double s0 UNUSED = panel->numbers[0];                               \
        const tn_vf p0 UNUSED = tn_vf_set((float)s0), zero UNUSED = tn_vf_zero(); \
        float *restrict to = panel->to;                                           \
        int64_t n = panel->n;                                                     \
        operands(POINT_F32) for (int64_t i = 0; i < n; i += TN_VF_LANES) {        \
            operands(GET_LANES) tn_vf_store_part(to + i, expression, n - i);      \
        }                                                                         \
    }
#define F64_PANEL(kernel, operands, expression)                                                                                     \
    static void kernel(const tn_panel *panel) {                                                                                     \
        const double s0 UNUSED = panel->numbers[0], p0 UNUSED = s0, p1 UNUSED = panel->numbers[1], zero UNUSED = 0, one UNUSED = 1, \
                        half UNUSED = 0.5;                                                                                          \
        double *restrict to = panel->to;                                                                                            \
        int64_t n = panel->n;                                                                                                       \
        operands(POINT_F64) for (int64_t i = 0; i < n; i++) { operands(GET_F64) to[i] = expression; }                               \
    }
#define I64_PANEL(kernel, operands, expression)                                                              \
    static void kernel(const tn_panel *panel) {                                                              \
        int64_t *restrict to = panel->to;                                                                    \
        operands(POINT_I64) for (int64_t i = 0; i < panel->n; i++) { operands(GET_I64) to[i] = expression; } \
    }
#define FLOAT_PANELS(kernel, operands, how, expression) \
    F32_##how(kernel##_f32, operands, expression) F64_PANEL(kernel##_f64, operands, expression)

#define UNARY_KERNELS(name, doc, how, forward, reads, how_gradient, gradient) \
    FLOAT_PANELS(name##_forward, OPERANDS_of_x, how, forward)                 \
    FLOAT_PANELS(name##_gradient, OPERANDS_##reads, how_gradient, gradient)
#define BINARY_KERNELS(name, doc, how, forward, forward_i64, reads_a, how_a, gradient_a, reads_b, how_b, gradient_b) \
    FLOAT_PANELS(name##_forward, OPERANDS_of_ab, how, forward)                                                       \
    I64_PANEL(name##_forward_i64, OPERANDS_of_ab, forward_i64)                                                       \
    FLOAT_PANELS(name##_gradient_a, OPERANDS_##reads_a, how_a, gradient_a)                                           \
    FLOAT_PANELS(name##_gradient_b, OPERANDS_##reads_b, how_b, gradient_b)
#define COMPARISON_KERNELS(name, doc, condition)                                     \
    FLOAT_PANELS(name##_forward, OPERANDS_of_ab, loop, SELECT(condition, one, zero)) \
    I64_PANEL(name##_forward_i64, OPERANDS_of_ab, (condition))
#define CHOICE_KERNELS(name, doc, forward, forward_i64, reads_a, gradient_a, reads_b, gradient_b) \
    FLOAT_PANELS(name##_forward, OPERANDS_of_cond, loop, forward)                                 \
    I64_PANEL(name##_forward_i64, OPERANDS_of_cond, forward_i64)                                  \
    FLOAT_PANELS(name##_gradient_a, OPERANDS_##reads_a, loop, gradient_a)                         \
    FLOAT_PANELS(name##_gradient_b, OPERANDS_##reads_b, loop, gradient_b)

TN_UNARY_OPS(UNARY_KERNELS)
TN_UNARY_OPS_WITH_NUMBERS(UNARY_KERNELS)
TN_BINARY_OPS(BINARY_KERNELS)
TN_COMPARISON_OPS(COMPARISON_KERNELS)
TN_CHOICE_OPS(CHOICE_KERNELS)

typedef struct tn_elementwise_kernels {
    tn_panel_function forward[TN_COMPUTE_COUNT];
    tn_panel_function gradient[TN_ELEMENTWISE_MAX_IN][2]; /* by input, then f64, f32 */
} tn_elementwise_kernels;

#define UNARY_ROW(name, ...) \
    [TN_INDEX_##name] = { { name##_forward_f64, name##_forward_f32, NULL }, { { name##_gradient_f64, name##_gradient_f32 } } },
#define FORWARD_ROW(name) \
    { name##_forward_f64, name##_forward_f32, name##_forward_i64 }
#define PAIR_ROW(name) \
    { name##_gradient_a_f64, name##_gradient_a_f32 }, { name##_gradient_b_f64, name##_gradient_b_f32 }
#define BINARY_ROW(name, ...) [TN_INDEX_##name] = { FORWARD_ROW(name), { PAIR_ROW(name) } },
#define COMPARISON_ROW(name, ...) [TN_INDEX_##name] = { FORWARD_ROW(name), { { NULL } } },
#define CHOICE_ROW(name, ...) [TN_INDEX_##name] = { FORWARD_ROW(name), { { NULL }, PAIR_ROW(name) } },

static const tn_elementwise_kernels kernels[TN_ELEMENTWISE_COUNT] = { TN_UNARY_OPS(UNARY_ROW) TN_UNARY_OPS_WITH_NUMBERS(
    UNARY_ROW) TN_BINARY_OPS(BINARY_ROW) TN_COMPARISON_OPS(COMPARISON_ROW) TN_CHOICE_OPS(CHOICE_ROW) };

/* ---- passes ---- */

/* The doubles of the args struct, padded so that a kernel can read two. */
static void read_numbers(const tn_op_call *call, double numbers[2]) {
    int n = tn_elementwise_of(call)->n_numbers;
    const double *args = call->args;
    numbers[0] = n > 0 ? args[0] : 0;
    numbers[1] = n > 1 ? args[1] : 0;
}

/* The dtype the operands meet in: the output's, but for comparisons. */
static tn_dtype meeting_dtype(const tn_op_call *call) {
    if (tn_elementwise_of(call)->kind != TN_ELEMENTWISE_COMPARISON) return call->out[0]->dtype;
    return tn_dtype_promote(call->in[0]->dtype, call->in[1]->dtype);
}

tn_status tn_elementwise_forward_cpu(tn_op_call *call) {
    tn_compute compute = tn_compute_for(meeting_dtype(call));
    tn_shape shape = tn_shape_of(call->out[0]);
    double numbers[2];
    read_numbers(call, numbers);
    tn_walk walk;
    tn_walk_begin(&walk, &shape, compute, kernels[tn_elementwise_of(call)->index].forward[compute], numbers);
    for (int i = 0; i < call->n_in; i++) tn_walk_read(&walk, call->in[i]);
    tn_walk_write(&walk, call->out[0]);
    tn_walk_run(&walk, 1, call->threads);
    return TN_OK;
}

tn_status tn_elementwise_backward_cpu(tn_op_call *call) {
    const tn_elementwise_op *op = tn_elementwise_of(call);
    const tn_tensor *d = call->dout[0];
    tn_compute compute = tn_compute_for(d->dtype);
    tn_shape shape = tn_shape_of(d);
    double numbers[2];
    read_numbers(call, numbers);
    tn_walk walks[TN_ELEMENTWISE_MAX_IN];
    int n = 0;
    for (int i = 0; i < call->n_in; i++) {
        if (!(call->wants >> i & 1)) continue;
        tn_walk *walk = &walks[n++];
        tn_walk_begin(walk, &shape, compute, kernels[op->index].gradient[i][compute], numbers);
        walk->partials = call->workspace;
        tn_walk_read(walk, d);
        for (int k = 0; k < call->n_in; k++)
            if (op->reads[i] >> k & 1) tn_walk_read(walk, call->in[k]);
        if (op->reads[i] & TN_READS_OUT) tn_walk_read(walk, call->out[0]);
        tn_walk_write(walk, call->din[i]);
    }
    tn_walk_run(walks, n, call->threads);
    return TN_OK;
}

size_t tn_elementwise_workspace(const tn_op_call *call, bool backward) {
    size_t bytes = 0;
    for (int i = 0; backward && i < call->n_in; i++) {
        if (!(call->wants >> i & 1) || call->din[i]->numel == call->dout[0]->numel) continue;
        size_t own = tn_walk_partial_bytes(call->dout[0]->numel, call->din[i]->numel);
        if (own > bytes) bytes = own;
    }
    return bytes;
}
