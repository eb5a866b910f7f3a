/* What the CUDA kernels of this family share: the meaning of elementwise_list.h's expressions on the device, operands of any strides and
 * dtypes, and how their elements are read.
 *
 * Packed kernels move groups of 16 bytes of f32 or bf16. They follow any strides, as long as the innermost axis of every operand is
 * contiguous (a pack) or repeated (one element for the whole group). Plain kernels take one element after the other, of any dtype. */
#ifndef TENON_ELEMENTWISE_CUDA_CUH
#define TENON_ELEMENTWISE_CUDA_CUH

#include <string.h>
#include <type_traits>

#include "elementwise_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../activation_cuda.cuh"

#define THREADS 256
#define MAX_IN 3
#define MAX_OUT 2

namespace {

/* ---- what the lists' expressions mean; W is double, float or, forward, int64_t ---- */

#define EXP(x) tn_exp_of(x)
#define LOG(x) tn_log_of(x)
#define LOG1P(x) log1p_of(x)
#define SQRT(x) root_of(x)
#define ABS(x) magnitude_of(x)
#define SIN(x) sine_of(x)
#define COS(x) cosine_of(x)
#define POW(a, b) power_of(a, b)
#define POWER(x, exponent) power_of_one_exponent(x, exponent)
#define SOFTPLUS(x) softplus_of(x)
#define ACT(act, x) tn_act_value<act>(x)
#define SELECT(condition, yes, no) ((condition) ? (yes) : (no))
#define WRAP(a, operator, b) (int64_t)((uint64_t)(a) operator (uint64_t)(b))
#define QUOTIENT(a, b) ((b) == 0 ? 0 : (b) == -1 ? WRAP(0, -, a) : (a) / (b))

__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double root_of(double x) { return sqrt(x); }
__device__ __forceinline__ float root_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double magnitude_of(double x) { return fabs(x); }
__device__ __forceinline__ float magnitude_of(float x) { return fabsf(x); }
__device__ __forceinline__ double sine_of(double x) { return sin(x); }
__device__ __forceinline__ float sine_of(float x) { return sinf(x); }
__device__ __forceinline__ double cosine_of(double x) { return cos(x); }
__device__ __forceinline__ float cosine_of(float x) { return cosf(x); }
__device__ __forceinline__ double power_of(double a, double b) { return pow(a, b); }
__device__ __forceinline__ float power_of(float a, float b) { return powf(a, b); }

__device__ __forceinline__ double power_of_one_exponent(double x, double exponent) { return exponent == 2 ? x * x : pow(x, exponent); }
/* The frequent exponents without a call; all threads take the same branch. */
__device__ __forceinline__ float power_of_one_exponent(float x, float exponent) {
    if (exponent == 1) return x;
    if (exponent == 2) return x * x;
    if (exponent == 3) return x * x * x;
    if (exponent == -1) return 1.0f / x;
    if (exponent == 0.5f) return sqrtf(x);
    if (exponent == -0.5f) return 1.0f / sqrtf(x);
    return powf(x, exponent);
}

/* ln(1 + y) for y in [0, 1]: twice the series of atanh t, t = y / (2 + y) <= 1/3; what is left out is below 2e-8 of the result. */
__device__ __forceinline__ float log1p_of_fraction(float y) {
    float t = __fdividef(y, 2.0f + y), z = t * t;
    float p = 1.0f / 13.0f;
    p = p * z + 1.0f / 11.0f;
    p = p * z + 1.0f / 9.0f;
    p = p * z + 1.0f / 7.0f;
    p = p * z + 1.0f / 5.0f;
    p = p * z + 1.0f / 3.0f;
    return 2.0f * (p * z * t + t);
}
__device__ __forceinline__ double log1p_of_fraction(double y) { return log1p(y); }

/* max(x, 0) + ln(1 + e^-|x|) */
template <typename W> __device__ __forceinline__ W softplus_of(W x) {
    return (x < 0 ? (W)0 : x) + log1p_of_fraction(tn_exp_of(-magnitude_of(x)));
}

/* The places of operands: forward by input; gradients read d first, then what was saved. */
#define OPERANDS_of_x(GET) GET(x, 0)
#define OPERANDS_of_ab(GET) GET(a, 0) GET(b, 1)
#define OPERANDS_of_cond(GET) GET(cond, 0) GET(a, 1) GET(b, 2)
#define OPERANDS_none(GET) GET(d, 0)
#define OPERANDS_pass(GET) GET(d, 0)
#define OPERANDS_x(GET) GET(d, 0) GET(x, 1)
#define OPERANDS_o(GET) GET(d, 0) GET(o, 1)
#define OPERANDS_a(GET) GET(d, 0) GET(a, 1)
#define OPERANDS_b(GET) GET(d, 0) GET(b, 2)
#define OPERANDS_ab(GET) GET(d, 0) GET(a, 1) GET(b, 2)
#define OPERANDS_cond(GET) GET(d, 0) GET(cond, 1)

#define GET_VALUE(name, k) [[maybe_unused]] const W name = in[k];

/* A device function of an expression: in[] holds the operands, numbers[] the op's args. */
#define EXPRESSION(function, operands, expression)                                                            \
    template <typename W> __device__ __forceinline__ W function(const W *in, const W *numbers) {              \
        [[maybe_unused]] const W zero = 0, one = 1, half = (W)0.5, p0 = numbers[0], p1 = numbers[1], s0 = p0; \
        operands(GET_VALUE) return expression;                                                                \
    }

/* How many groups a thread has in flight: more of those whose arithmetic is short. */
#define GROUPS_loop 4
#define GROUPS_lanes 2
/* And few of those whose code is long. */
constexpr int groups_of(int op, int usual) { return op == TN_INDEX_pow || op == TN_INDEX_pow_scalar ? 1 : usual; }

/* ---- the lists' expressions as device functions ---- */

#define UNARY_EXPRESSIONS(name, doc, how, forward, reads, how_gradient, gradient) \
    EXPRESSION(name##_value, OPERANDS_of_x, forward)                              \
    EXPRESSION(name##_gradient, OPERANDS_##reads, gradient)
#define BINARY_EXPRESSIONS(name, doc, how, forward, forward_i64, reads_a, how_a, gradient_a, reads_b, how_b, gradient_b) \
    EXPRESSION(name##_value, OPERANDS_of_ab, forward)                                                                    \
    EXPRESSION(name##_value_of_integers, OPERANDS_of_ab, forward_i64)                                                    \
    EXPRESSION(name##_gradient_a, OPERANDS_##reads_a, gradient_a)                                                        \
    EXPRESSION(name##_gradient_b, OPERANDS_##reads_b, gradient_b)
#define COMPARISON_EXPRESSIONS(name, doc, condition)                       \
    EXPRESSION(name##_value, OPERANDS_of_ab, SELECT(condition, one, zero)) \
    EXPRESSION(name##_value_of_integers, OPERANDS_of_ab, SELECT(condition, one, zero))
#define CHOICE_EXPRESSIONS(name, doc, forward, forward_i64, reads_a, gradient_a, reads_b, gradient_b) \
    EXPRESSION(name##_value, OPERANDS_of_cond, forward)                                               \
    EXPRESSION(name##_value_of_integers, OPERANDS_of_cond, forward_i64)                               \
    EXPRESSION(name##_gradient_a, OPERANDS_##reads_a, gradient_a)                                     \
    EXPRESSION(name##_gradient_b, OPERANDS_##reads_b, gradient_b)

TN_UNARY_OPS(UNARY_EXPRESSIONS)
TN_UNARY_OPS_WITH_NUMBERS(UNARY_EXPRESSIONS)
TN_BINARY_OPS(BINARY_EXPRESSIONS)
TN_COMPARISON_OPS(COMPARISON_EXPRESSIONS)
TN_CHOICE_OPS(CHOICE_EXPRESSIONS)

/* ---- operands ---- */

struct operand {
    const void *data;
    int dtype;
    bool splat;  /* packed kernels: repeated along the innermost axis */
    bool absent; /* not read */
};

template <typename E, int n> struct alignas(n * sizeof(E)) group { E at[n]; };

/* A group as it lies in memory, up to 16 bytes; of a repeated element only the first place is filled. No register is touched after its
 * load, so that loads that follow need not wait. */
template <typename E, int n> __device__ __forceinline__ uint4 load_raw(const operand &from, int64_t offset) {
    typedef typename std::conditional<sizeof(E) == 2, uint16_t, uint8_t>::type narrow_bits;
    typedef typename std::conditional<sizeof(E) == 4, uint32_t, narrow_bits>::type bits;
    const E *at = (const E *)from.data + offset;
    uint4 raw = {};
    if (from.splat) {
        raw.x = *reinterpret_cast<const bits *>(at);
    } else if constexpr (n * sizeof(E) == 16) {
        raw = *reinterpret_cast<const uint4 *>(at);
    } else if constexpr (n * sizeof(E) == 8) {
        uint2 half = *reinterpret_cast<const uint2 *>(at);
        raw.x = half.x, raw.y = half.y;
    } else {
        raw.x = *reinterpret_cast<const uint32_t *>(at);
    }
    return raw;
}
template <typename E, int n> __device__ __forceinline__ void store_group(E *to, int64_t at, const group<E, n> &values) {
    if constexpr (sizeof values == 16) ((uint4 *)to)[at] = *reinterpret_cast<const uint4 *>(&values);
    else if constexpr (sizeof values == 8) ((uint2 *)to)[at] = *reinterpret_cast<const uint2 *>(&values);
    else ((uint32_t *)to)[at] = *reinterpret_cast<const uint32_t *>(&values);
}

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(tn_cuda_bf16 x) { return tn_widen(x); }
__device__ __forceinline__ float widened(uint8_t x) { return x; }
template <typename T> __device__ __forceinline__ T narrowed(float x) { return tn_narrow<T>(x); }
template <> __device__ __forceinline__ uint8_t narrowed<uint8_t>(float x) { return x != 0; }

template <typename E, int n> __device__ __forceinline__ float element_of(const uint4 &raw, int j, bool splat) {
    group<E, n> values;
    memcpy(&values, &raw, sizeof values);
    return widened(splat ? values.at[0] : values.at[j]);
}

/* What packed kernels are made for is a type Op with
 *     n_in        operands
 *     groups      of each that a thread has in flight
 *     cond        the operand that is bytes, or -1
 *     n_out, out<T>, value<k>(in, numbers)        the outputs */
template <typename Op, typename T> __device__ __forceinline__ void load_groups(const operand *from, const int64_t *offset, uint4 *raw) {
    const int n = tn_pack<T>::n;
#pragma unroll
    for (int k = 0; k < Op::n_in; k++)
        if (!from[k].absent) raw[k] = k == Op::cond ? load_raw<uint8_t, n>(from[k], offset[k]) : load_raw<T, n>(from[k], offset[k]);
}
template <typename Op, typename T> __device__ __forceinline__ void elements_of(const operand *from, const uint4 *raw, int j, float *in) {
    const int n = tn_pack<T>::n;
#pragma unroll
    for (int k = 0; k < Op::n_in; k++)
        in[k] = k == Op::cond ? element_of<uint8_t, n>(raw[k], j, from[k].splat) : element_of<T, n>(raw[k], j, from[k].splat);
}

/* One element of any dtype, as what is computed in. */
template <typename W> __device__ __forceinline__ W load_any(const operand &from, int64_t offset) {
    if constexpr (std::is_floating_point<W>::value) {
        if (from.dtype == TN_F64) return (W)((const double *)from.data)[offset];
        if (from.dtype == TN_F32) return (W)((const float *)from.data)[offset];
        if (from.dtype == TN_BF16) return (W)tn_widen(((const tn_cuda_bf16 *)from.data)[offset]);
    }
    if (from.dtype == TN_I64) return (W)((const int64_t *)from.data)[offset];
    if (from.dtype == TN_I32) return (W)((const int32_t *)from.data)[offset];
    return (W)((const uint8_t *)from.data)[offset];
}

/* Integers wrap around. */
template <typename W> __device__ __forceinline__ void store_any(void *to, int dtype, int64_t at, W value) {
    if (dtype == TN_BOOL) ((uint8_t *)to)[at] = value != 0;
    else if constexpr (std::is_floating_point<W>::value) {
        if (dtype == TN_F64) ((double *)to)[at] = (double)value;
        else if (dtype == TN_F32) ((float *)to)[at] = (float)value;
        else if (std::is_same<W, double>::value) ((tn_cuda_bf16 *)to)[at] = __double2bfloat16((double)value);
        else ((tn_cuda_bf16 *)to)[at] = __float2bfloat16_rn((float)value);
    } else {
        if (dtype == TN_I64) ((int64_t *)to)[at] = value;
        else if (dtype == TN_I32) ((int32_t *)to)[at] = (int32_t)value;
        else ((uint8_t *)to)[at] = (uint8_t)value;
    }
}

/* Where item i of a nest lies in each operand. Packed kernels are only run where 32 bits count the items of several axes. */
template <int Operands, typename Index> __device__ __forceinline__ void offsets_of(const tn_nest &nest, Index i, int64_t *offset) {
#pragma unroll
    for (int k = 0; k < Operands; k++) offset[k] = 0;
#pragma unroll 1
    for (int axis = nest.axes - 1; axis > 0; axis--) {
        Index size = (Index)nest.shape[axis], outer = i / size, at = i - outer * size;
#pragma unroll
        for (int k = 0; k < Operands; k++) offset[k] += (int64_t)at * nest.stride[k][axis];
        i = outer;
    }
#pragma unroll
    for (int k = 0; k < Operands; k++) offset[k] += (int64_t)i * nest.stride[k][0];
}
template <int Operands> __device__ __forceinline__ void offsets_of_group(const tn_nest &nest, int64_t i, int64_t *offset) {
    if (nest.axes > 1) return offsets_of<Operands, uint32_t>(nest, (uint32_t)i, offset);
#pragma unroll
    for (int k = 0; k < Operands; k++) offset[k] = i * nest.stride[k][0];
}
template <int Operands> __device__ __forceinline__ void offsets_of_element(const tn_nest &nest, int64_t i, int64_t *offset) {
    if (nest.axes == 1 || nest.numel <= UINT32_MAX) offsets_of_group<Operands>(nest, i, offset);
    else offsets_of<Operands, int64_t>(nest, i, offset);
}

/* Which places of in[] an expression reads: a bit each. */
#define PLACES_none 1
#define PLACES_pass 1
#define PLACES_a 3
#define PLACES_b 5
#define PLACES_ab 7
#define PLACES_cond 3

/* Both gradients of an op of two operands; in[] is d and the operands, or d and cond. */
#define GRADIENTS_OP(name, groups_in_flight, inputs, cond_at, reads_a, reads_b)                                               \
    struct name##_gradients {                                                                                                 \
        static constexpr int n_in = inputs, n_out = 2, groups = groups_of(TN_INDEX_##name, groups_in_flight), cond = cond_at; \
        template <typename T> using out = T;                                                                                  \
        static constexpr unsigned places(int k) { return k == 0 ? PLACES_##reads_a : PLACES_##reads_b; }                      \
        template <int k> static __device__ __forceinline__ float value(const float *in, const float *numbers) {               \
            return k == 0 ? name##_gradient_a(in, numbers) : name##_gradient_b(in, numbers);                                  \
        }                                                                                                                     \
    };
#define BINARY_GRADIENTS_OP(name, doc, how, forward, forward_i64, reads_a, how_a, gradient_a, reads_b, how_b, gradient_b) \
    GRADIENTS_OP(name, GROUPS_##how_b, 3, -1, reads_a, reads_b)
#define CHOICE_GRADIENTS_OP(name, doc, forward, forward_i64, reads_a, gradient_a, reads_b, gradient_b) \
    GRADIENTS_OP(name, GROUPS_loop, 2, 1, reads_a, reads_b)
TN_BINARY_OPS(BINARY_GRADIENTS_OP)
TN_CHOICE_OPS(CHOICE_GRADIENTS_OP)

/* The same by number, for plain kernels. */
#define PAIR_GRADIENT_CASE(name, ...) \
    case TN_INDEX_##name: return k == 0 ? name##_gradient_a(in, numbers) : name##_gradient_b(in, numbers);
template <typename W> __device__ __forceinline__ W pair_gradient(int op, int k, const W *in, const W *numbers) {
    switch (op) {
        TN_BINARY_OPS(PAIR_GRADIENT_CASE)
        TN_CHOICE_OPS(PAIR_GRADIENT_CASE)
    }
    return 0;
}

/* ---- operands, on the host ---- */

static inline operand operand_of(const tn_tensor *t, int dtype) {
    return operand{ t ? t->data : NULL, t ? (int)t->dtype : dtype, false, !t };
}

/* t's strides within `shape`, to which it broadcasts; NULL steps nowhere. */
static inline void strides_within(const tn_shape *shape, const tn_tensor *t, int64_t *stride) {
    for (int axis = 0; axis < shape->axes; axis++) {
        int own = t ? axis - (shape->axes - t->axes) : -1;
        stride[axis] = own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
    }
}

static inline tn_nest nest_within(const tn_shape *shape, const tn_tensor *const *t, int n) {
    int64_t stride[TN_CUDA_MAX_OPERANDS][TN_MAX_AXES];
    const int64_t *strides[TN_CUDA_MAX_OPERANDS];
    for (int k = 0; k < n; k++) {
        strides_within(shape, t[k] ? t[k] : t[0], stride[k]);
        strides[k] = stride[k];
    }
    return tn_make_nest(shape->axes, shape->size, n, strides);
}

/* Makes the last axis of `inner` one of groups of n elements, if every operand can be read so: operands are of `dtype` (number `cond`
 * of bytes), contiguous or repeated along that axis, and aligned. `outer`, if given, is a second nest whose offsets are added. What
 * does not fill a group, possible only where `inner` is a single axis, is told in `tail`; without `tail` nothing may be left. */
static inline bool make_groups(tn_nest *inner, const tn_nest *outer, operand *in, int n_in, int dtype, int cond, int64_t *tail) {
    int n = 16 / (int)tn_dtype_size((tn_dtype)dtype), last = inner->axes - 1;
    int64_t left = inner->shape[last] % n;
    if (left && (!tail || inner->axes > 1)) return false;
    if (inner->axes > 1 && inner->numel / n > UINT32_MAX) return false;
    if (outer && outer->axes > 1 && outer->numel > UINT32_MAX) return false;
    for (int k = 0; k < n_in; k++) {
        if (in[k].absent) continue;
        if (k != cond && in[k].dtype != dtype) return false;
        if (inner->stride[k][last] != 0 && inner->stride[k][last] != 1) return false;
        in[k].splat = inner->stride[k][last] == 0;
        if (in[k].splat) continue;
        if ((uintptr_t)in[k].data % (k == cond ? n : 16)) return false;
        for (int axis = 0; axis < last; axis++)
            if (inner->stride[k][axis] % n) return false;
        for (int axis = 0; outer && axis < outer->axes; axis++)
            if (outer->stride[k][axis] % n) return false;
    }
    if (tail) *tail = left;
    inner->shape[last] /= n;
    inner->numel /= n;
    for (int k = 0; k < n_in; k++) inner->stride[k][last] *= n;
    return true;
}

static inline void read_numbers(const tn_op_call *call, double numbers[2]) {
    const double *args = (const double *)call->args;
    int n = tn_elementwise_of(call)->n_numbers;
    numbers[0] = n > 0 ? args[0] : 0;
    numbers[1] = n > 1 ? args[1] : 0;
}

/* Which operand of `where` is bytes beside f32 or bf16: in a gradient d stands before it. */
static inline int cond_place(const tn_op_call *call, bool gradient) {
    return tn_elementwise_of(call)->kind == TN_ELEMENTWISE_CHOICE ? (gradient ? 1 : 0) : -1;
}

/* The gradient functions' number for input i: 0 or 1. */
static inline int gradient_place(const tn_op_call *call, int i) {
    return tn_elementwise_of(call)->kind == TN_ELEMENTWISE_CHOICE ? i - 1 : i;
}

/* What the gradients of the inputs in `inputs` read, each in its place. */
static inline void gradient_operands(const tn_op_call *call, unsigned inputs, const tn_tensor **in, operand *operands) {
    const tn_elementwise_op *op = tn_elementwise_of(call);
    unsigned reads = 0;
    for (int i = 0; i < call->n_in; i++)
        if (inputs >> i & 1) reads |= op->reads[i];
    in[0] = call->dout[0];
    in[1] = reads & TN_READS_OUT ? call->out[0] : reads & TN_READS_IN0 ? call->in[0] : NULL;
    in[2] = reads & TN_READS_IN1 ? call->in[1] : NULL;
    for (int k = 0; k < MAX_IN; k++) operands[k] = operand_of(in[k], in[0]->dtype);
}

static inline bool packs_allowed(const tn_op_call *call, tn_dtype dtype) {
    return call->device->cuda_path != TN_CUDA_PLAIN && (dtype == TN_F32 || dtype == TN_BF16);
}

} // namespace

#endif
