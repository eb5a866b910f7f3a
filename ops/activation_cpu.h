/* The pointwise activations on the CPU, for every family that applies one: f32 (bf16 comes widened) and f64.
 *
 * `act` is a tn_activation below TN_SOFTMAX. The helpers are inlined, so where `act` is a constant nothing of the choice is
 * left in the loop:
 *
 *     o = tn_f32_act(TN_SILU, x);
 *     dx = d * tn_f32_act_slope(TN_SILU, x);
 *     dx = d * tn_f32_act_slope_at_output(TN_TANH, o);      relu, sigmoid and tanh only
 *
 * The f32 ones have neither calls nor branches: plain loops over them become vector code of whatever width a TN_SIMD_CLONES clone
 * has. tn_vf_act and its like do the same to sixteen lanes, for kernels that are written with vectors; f64 goes by libm. */
#ifndef TENON_ACTIVATION_CPU_H
#define TENON_ACTIVATION_CPU_H

#include "../libtensor/simd.h"
#include "activation.h"

/* ---- f32 ---- */

TN_INLINE uint32_t tn_bits_of_f32_(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
TN_INLINE float tn_f32_of_bits_(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x = n ln 2 + r with |r| <= ln 2 / 2; returns 2^n. The sum with 1.5 * 2^23 has n in its low bits. For -87 <= x <= 88. */
TN_INLINE float tn_exp_split_(float x, float *r) {
    float shifted = x * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    *r = x - n * 0.693359375f;
    *r = *r - n * -2.12194440e-4f;
    return tn_f32_of_bits_((tn_bits_of_f32_(shifted) << 23) + 0x3f800000u);
}

/* e^x for x <= 0, within 2 ulp; 0 below -87, where results are no longer normal numbers. */
TN_INLINE float tn_f32_exp_below_0(float x) {
    float r, scale = tn_exp_split_(x, &r);
    float q = r * 1.381417853e-3f + 8.368922397e-3f; /* minimax fit, 3e-9 */
    q = q * r + 4.166840762e-2f;
    q = q * r + 1.666651964e-1f;
    q = q * r + 4.999999404e-1f;
    float e = ((r * r * q + r) + 1.0f) * scale;
    return x < -87.0f ? 0.0f : e;
}

TN_INLINE float tn_f32_sigmoid(float x) {
    float e = tn_f32_exp_below_0(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* m / (m + 2) with m = e^2|x| - 1, which keeps the digits of small x. */
TN_INLINE float tn_f32_tanh(float x) {
    float t = 2.0f * fabsf(x);
    float r, scale = tn_exp_split_(t > 20.0f ? 20.0f : t, &r);
    float q = r * 1.991459576e-4f + 1.394131104e-3f; /* minimax fit, 2e-10 */
    q = q * r + 8.333272301e-3f;
    q = q * r + 4.166635126e-2f;
    q = q * r + 1.666666716e-1f;
    q = q * r + 0.5f;
    float m = (r * r * q + r) * scale + (scale - 1.0f);
    return copysignf(m / (m + 2.0f), x);
}

/* The distribution function Phi of the normal distribution, and e^(-x^2/2): Phi(-a) e^(a^2/2) for a >= 0 is a polynomial in
 * 1 / (1 + 0.295 a), here a minimax fit with a relative error of 4e-8. Small Phi(x) keep their digits. */
TN_INLINE float tn_f32_normal_below(float x, float *bell) {
    float t = 1.0f / (1.0f + 0.295f * fabsf(x));
    float p = t * 3.777999911e-2f - 1.752964096e-1f;
    p = p * t + 2.538855998e-1f;
    p = p * t - 9.689288564e-2f;
    p = p * t + 1.518119976e-1f;
    p = p * t + 9.121576559e-2f;
    p = p * t + 1.199413285e-1f;
    p = p * t + 1.175545844e-1f;
    *bell = tn_f32_exp_below_0(-0.5f * x * x);
    float tail = *bell * (p * t);
    return x < 0.0f ? tail : 1.0f - tail;
}

TN_INLINE float tn_f32_gelu_(float x) {
    float bell;
    return x * tn_f32_normal_below(x, &bell);
}
TN_INLINE float tn_f32_silu_slope_(float x) {
    float s = tn_f32_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}
TN_INLINE float tn_f32_gelu_slope_(float x) {
    float bell, below = tn_f32_normal_below(x, &bell);
    return below + x * bell * 0.39894228040143268f;
}

TN_INLINE float tn_f32_act(int act, float x) {
    switch (act) {
    case TN_RELU: return x <= 0.0f ? 0.0f : x; /* a NaN stays one */
    case TN_SIGMOID: return tn_f32_sigmoid(x);
    case TN_SILU: return x * tn_f32_sigmoid(x);
    case TN_GELU: return tn_f32_gelu_(x);
    case TN_TANH: return tn_f32_tanh(x);
    default: return x;
    }
}

/* act'(x) from o = act(x), where o says all there is to know. */
TN_INLINE float tn_f32_act_slope_at_output(int act, float o) {
    switch (act) {
    case TN_RELU: return o > 0.0f ? 1.0f : 0.0f;
    case TN_SIGMOID: return o * (1.0f - o);
    case TN_TANH: return 1.0f - o * o;
    default: return 1.0f;
    }
}

/* act'(x) */
TN_INLINE float tn_f32_act_slope(int act, float x) {
    if (act == TN_SILU) return tn_f32_silu_slope_(x);
    if (act == TN_GELU) return tn_f32_gelu_slope_(x);
    return tn_f32_act_slope_at_output(act, act == TN_RELU ? x : tn_f32_act(act, x));
}

/* ---- sixteen f32 ---- */

/* Runs an expression of `lane` over the lanes of v, for each act by itself, so that the compiler sees a loop without a switch. */
#define TN_ACT_LANES_(act, v, expression)                             \
    do {                                                              \
        float lanes_[TN_VF_LANES];                                    \
        tn_vf_store(lanes_, v);                                       \
        switch (act) {                                                \
        case TN_RELU: TN_ACT_LOOP_(TN_RELU, expression); break;       \
        case TN_SIGMOID: TN_ACT_LOOP_(TN_SIGMOID, expression); break; \
        case TN_SILU: TN_ACT_LOOP_(TN_SILU, expression); break;       \
        case TN_GELU: TN_ACT_LOOP_(TN_GELU, expression); break;       \
        case TN_TANH: TN_ACT_LOOP_(TN_TANH, expression); break;       \
        default: TN_ACT_LOOP_(TN_NONE, expression); break;            \
        }                                                             \
        (v) = tn_vf_load(lanes_);                                     \
    } while (0)
#define TN_ACT_LOOP_(act, expression) \
    for (int lane_ = 0; lane_ < TN_VF_LANES; lane_++) lanes_[lane_] = expression(act, lanes_[lane_])

TN_INLINE tn_vf tn_vf_act(int act, tn_vf x) {
    if (act != TN_NONE) TN_ACT_LANES_(act, x, tn_f32_act);
    return x;
}
TN_INLINE tn_vf tn_vf_act_slope(int act, tn_vf x) {
    TN_ACT_LANES_(act, x, tn_f32_act_slope);
    return x;
}
TN_INLINE tn_vf tn_vf_act_slope_at_output(int act, tn_vf o) {
    TN_ACT_LANES_(act, o, tn_f32_act_slope_at_output);
    return o;
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
