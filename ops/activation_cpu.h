/* The pointwise activations on the CPU, for every family that applies one: f32 on tn_vf (bf16 comes widened), f64 by libm.
 *
 * `act` is a tn_activation below TN_SOFTMAX. The helpers are inlined, so where `act` is a constant nothing of the choice is
 * left in the loop:
 *
 *     o = tn_vf_act(TN_SILU, x);
 *     dx = d * tn_vf_act_slope(TN_SILU, x);
 *     dx = d * tn_vf_act_slope_at_output(TN_TANH, o);      relu, sigmoid and tanh only
 */
#ifndef TENON_ACTIVATION_CPU_H
#define TENON_ACTIVATION_CPU_H

#include "../libtensor/simd.h"
#include "activation.h"

/* ---- f32 ---- */

/* The distribution function Phi of the normal distribution, and e^(-x^2/2): Phi(-a) e^(a^2/2) for a >= 0 is a polynomial in
 * 1 / (1 + 0.295 a), here a minimax fit with a relative error of 4e-8. Small Phi(x) keep their digits. */
TN_INLINE tn_vf tn_vf_normal_below(tn_vf x, tn_vf *bell) {
    tn_vf t = 1.0f / (1.0f + 0.295f * tn_vf_abs(x));
    tn_vf p = t * 3.777999911e-2f - 1.752964096e-1f;
    p = p * t + 2.538855998e-1f;
    p = p * t - 9.689288564e-2f;
    p = p * t + 1.518119976e-1f;
    p = p * t + 9.121576559e-2f;
    p = p * t + 1.199413285e-1f;
    p = p * t + 1.175545844e-1f;
    *bell = tn_vf_exp(-0.5f * x * x);
    tn_vf tail = *bell * (p * t);
    return tn_vf_select((tn_vi)x >> 31, tail, 1.0f - tail);
}
TN_INLINE tn_vf tn_vf_gelu_(tn_vf x) {
    tn_vf bell;
    return x * tn_vf_normal_below(x, &bell);
}

/* By bits, since compilers make scalar code of comparisons of vectors wider than a register: 0 - bits is negative for
 * x > 0 and for -0. */
TN_INLINE tn_vi tn_vf_is_positive_(tn_vf x) { return ((0 - (tn_vi)x) & ~(tn_vi)x) >> 31; }

TN_INLINE tn_vf tn_vf_act(int act, tn_vf x) {
    switch (act) {
    case TN_RELU: return (tn_vf)((tn_vi)x & (tn_vf_is_positive_(x) | tn_vf_is_nan(x)));
    case TN_SIGMOID: return tn_vf_sigmoid(x);
    case TN_SILU: return x * tn_vf_sigmoid(x);
    case TN_GELU: return tn_vf_gelu_(x);
    case TN_TANH: return tn_vf_tanh(x);
    default: return x;
    }
}

/* act'(x) from o = act(x), where o says all there is to know. */
TN_INLINE tn_vf tn_vf_act_slope_at_output(int act, tn_vf o) {
    switch (act) {
    case TN_RELU: return (tn_vf)((tn_vi)tn_vf_set(1.0f) & tn_vf_is_positive_(o));
    case TN_SIGMOID: return o * (1.0f - o);
    case TN_TANH: return 1.0f - o * o;
    default: return tn_vf_set(1.0f);
    }
}

TN_INLINE tn_vf tn_vf_silu_slope_(tn_vf x) {
    tn_vf s = tn_vf_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}
TN_INLINE tn_vf tn_vf_gelu_slope_(tn_vf x) {
    tn_vf bell, below = tn_vf_normal_below(x, &bell);
    return below + x * bell * 0.39894228040143268f;
}

/* act'(x) */
TN_INLINE tn_vf tn_vf_act_slope(int act, tn_vf x) {
    if (act == TN_SILU) return tn_vf_silu_slope_(x);
    if (act == TN_GELU) return tn_vf_gelu_slope_(x);
    return tn_vf_act_slope_at_output(act, act == TN_RELU ? x : tn_vf_act(act, x));
}

/* ---- f64 ---- */

TN_INLINE double tn_f64_sigmoid(double x) {
    double e = exp(-fabs(x));
    return (x < 0 ? e : 1) / (1 + e);
}
TN_INLINE double tn_f64_normal_below(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }

TN_INLINE double tn_f64_act(int act, double x) {
    switch (act) {
    case TN_RELU: return x <= 0 ? 0 : x;
    case TN_SIGMOID: return tn_f64_sigmoid(x);
    case TN_SILU: return x * tn_f64_sigmoid(x);
    case TN_GELU: return x * tn_f64_normal_below(x);
    case TN_TANH: return tanh(x);
    default: return x;
    }
}

TN_INLINE double tn_f64_act_slope_at_output(int act, double o) {
    switch (act) {
    case TN_RELU: return o > 0 ? 1 : 0;
    case TN_SIGMOID: return o * (1 - o);
    case TN_TANH: return 1 - o * o;
    default: return 1;
    }
}

TN_INLINE double tn_f64_silu_slope_(double x) {
    double s = tn_f64_sigmoid(x);
    return s * (1 + x * (1 - s));
}
TN_INLINE double tn_f64_gelu_slope_(double x) { return tn_f64_normal_below(x) + x * (exp(-0.5 * x * x) * 0.39894228040143267794); }

TN_INLINE double tn_f64_act_slope(int act, double x) {
    if (act == TN_SILU) return tn_f64_silu_slope_(x);
    if (act == TN_GELU) return tn_f64_gelu_slope_(x);
    return tn_f64_act_slope_at_output(act, act == TN_RELU ? x : tn_f64_act(act, x));
}

#endif
