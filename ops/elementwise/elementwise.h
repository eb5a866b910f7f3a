/* Arithmetic element by element.
 *
 *     tn_tensor *z = tn_add(tn_mul(x, w), bias);              x [8,128,64], w [64], bias [1,128,1]: broadcast to [8,128,64]
 *     tn_tensor *y = tn_where(tn_gt(x, zero), x, tn_mul_scalar(x, 0.1));
 *
 * Ops of two tensors broadcast as numpy does: shapes are aligned at the last axis, and an axis that is missing or 1 is
 * repeated. Operands of two dtypes meet in tn_dtype_promote of them (tensor.h), which is the result's dtype; each gradient
 * has its own input's dtype and shape, summed over the axes along which the input was repeated. Nothing repeated or converted
 * is ever stored. f32 and bf16 compute in f32, f64 in f64, integers in i64 and wrap around.
 *
 * Saved for backward, and only what the gradients that are wanted need:
 *     neg, add, sub, affine       nothing
 *     exp, sqrt, rsqrt            o
 *     abs, log, log1p, sin, cos, softplus, logsigmoid, clamp, pow_scalar       x
 *     mul                         b for a's gradient, a for b's
 *     div                         b for a's gradient, both for b's
 *     pow, maximum, minimum       both
 *     where                       cond
 * each of its elements x element size bytes. */
#ifndef TENON_ELEMENTWISE_H
#define TENON_ELEMENTWISE_H

#include "../../libtensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- of one tensor: f64, f32, bf16 ---- */

TN_API tn_tensor *tn_neg(tn_tensor *x);
TN_API tn_tensor *tn_abs(tn_tensor *x); /* abs'(0) = 0 */
TN_API tn_tensor *tn_exp(tn_tensor *x);
TN_API tn_tensor *tn_log(tn_tensor *x);
TN_API tn_tensor *tn_log1p(tn_tensor *x); /* ln(1 + x), right for small x too */
TN_API tn_tensor *tn_sqrt(tn_tensor *x);
TN_API tn_tensor *tn_rsqrt(tn_tensor *x); /* 1 / sqrt(x) */
TN_API tn_tensor *tn_sin(tn_tensor *x);
TN_API tn_tensor *tn_cos(tn_tensor *x);
TN_API tn_tensor *tn_softplus(tn_tensor *x);   /* ln(1 + e^x) */
TN_API tn_tensor *tn_logsigmoid(tn_tensor *x); /* ln(1 / (1 + e^-x)) */

typedef struct tn_affine_args {
    double scale; /* 1 */
    double shift; /* 0 */
} tn_affine_args;
#define TN_AFFINE(...) ((tn_affine_args){ .scale = 1, .shift = 0, __VA_ARGS__ })
TN_API tn_tensor *tn_affine(tn_tensor *x, tn_affine_args args); /* x * scale + shift */
TN_API tn_tensor *tn_add_scalar(tn_tensor *x, double scalar);
TN_API tn_tensor *tn_mul_scalar(tn_tensor *x, double scalar);

typedef struct tn_pow_scalar_args {
    double exponent; /* required */
} tn_pow_scalar_args;
TN_API tn_tensor *tn_pow_scalar(tn_tensor *x, double exponent);

typedef struct tn_clamp_args {
    double low;  /* -inf */
    double high; /* inf */
} tn_clamp_args;
#define TN_CLAMP(...) ((tn_clamp_args){ .low = -__builtin_inf(), .high = __builtin_inf(), __VA_ARGS__ })
TN_API tn_tensor *tn_clamp(tn_tensor *x, tn_clamp_args args); /* the gradient passes where low <= x <= high */

/* ---- of two tensors: also integers, save pow ---- */

TN_API tn_tensor *tn_add(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_sub(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_mul(tn_tensor *a, tn_tensor *b);
/* Of integers: rounded towards 0, and 0 where b is 0. */
TN_API tn_tensor *tn_div(tn_tensor *a, tn_tensor *b);
/* a^b. The exponent's gradient, o ln a, flows where a > 0 and is 0 elsewhere. */
TN_API tn_tensor *tn_pow(tn_tensor *a, tn_tensor *b);
/* NaN where either is. Where a = b each gets half of the gradient. */
TN_API tn_tensor *tn_maximum(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_minimum(tn_tensor *a, tn_tensor *b);

/* Comparisons give bool and have no gradient; eq and ne take bool as well. */
TN_API tn_tensor *tn_eq(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_ne(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_lt(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_le(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_gt(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_ge(tn_tensor *a, tn_tensor *b);

/* a where cond (bool or u8) is not 0, else b; all three broadcast. */
TN_API tn_tensor *tn_where(tn_tensor *cond, tn_tensor *a, tn_tensor *b);

#ifdef __cplusplus
}
#endif
#endif
