/* The pointwise activations on CUDA, in f64 or f32 (bf16 comes widened), for every family that applies one.
 *
 *     o = tn_act_value<Act>(x);    dx = d * tn_act_slope<Act>(x);    dx = d * tn_act_slope_at_output<Act>(o);
 */
#ifndef TENON_ACTIVATION_CUDA_CUH
#define TENON_ACTIVATION_CUDA_CUH

#include "../libtensor/cuda_common.cuh"
#include "activation.h"

__device__ __forceinline__ double tn_exp_of(double x) { return exp(x); }
__device__ __forceinline__ float tn_exp_of(float x) { return expf(x); }
__device__ __forceinline__ double tn_log_of(double x) { return log(x); }
__device__ __forceinline__ float tn_log_of(float x) { return logf(x); }
__device__ __forceinline__ double tn_tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float tn_tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tn_reciprocal(double x) { return 1.0 / x; }
/* One instruction, right to one ulp; subnormal numbers and results are 0. */
__device__ __forceinline__ float tn_reciprocal(float x) {
    float quotient;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(x));
    return quotient;
}

/* 1 / (1 + e^-x): for x far below zero e^-x overflows to infinity and the quotient is 0, as it should be; for f32 it is 0 from where
 * sigmoid is below 1e-38. */
template <typename W> __device__ __forceinline__ W tn_sigmoid_of(W x) { return tn_reciprocal((W)1 + tn_exp_of(-x)); }

/* The normal distribution function, with its digits kept far below zero, and e^(-x^2/2). */
__device__ __forceinline__ double tn_normal_below(double x, double *bell) {
    *bell = exp(-0.5 * x * x);
    return 0.5 * erfc(-0.70710678118654752440 * x);
}
/* As activation_cpu.h has it, with 17 instructions: erfcf takes three times as many, which bf16 at memory speed has no time for. What the
 * roundings of x^2 / 2 add to the relative error grows with it: 1.5e-6 down to -5, 1.1e-5 at -13, where Phi is 1e-38. */
__device__ __forceinline__ float tn_normal_below(float x, float *bell) {
    float t = tn_reciprocal(fmaf(fabsf(x), 0.295f, 1.0f)), p = fmaf(t, 3.777999911e-2f, -1.752964096e-1f);
    p = fmaf(p, t, 2.538855998e-1f);
    p = fmaf(p, t, -9.689288564e-2f);
    p = fmaf(p, t, 1.518119976e-1f);
    p = fmaf(p, t, 9.121576559e-2f);
    p = fmaf(p, t, 1.199413285e-1f);
    p = fmaf(p, t, 1.175545844e-1f);
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(*bell) : "f"(x * x * -0.72134752044448170368f));
    float tail = *bell * (p * t);
    return x < 0 ? tail : 1.0f - tail;
}

template <typename W> __device__ __forceinline__ W tn_gelu_of(W x) {
    W bell;
    return x * tn_normal_below(x, &bell);
}
template <typename W> __device__ __forceinline__ W tn_gelu_slope_of(W x) {
    W bell, below = tn_normal_below(x, &bell);
    return below + x * bell * (W)0.39894228040143267794;
}

template <int Act, typename W> __device__ __forceinline__ W tn_act_value(W x) {
    switch (Act) {
    case TN_RELU: return x > 0 || x != x ? x : (W)0;
    case TN_SIGMOID: return tn_sigmoid_of(x);
    case TN_SILU: return x * tn_sigmoid_of(x);
    case TN_GELU: return tn_gelu_of(x);
    case TN_TANH: return tn_tanh_of(x);
    default: return x;
    }
}

/* act'(x) from o = act(x): relu, sigmoid, tanh. */
template <int Act, typename W> __device__ __forceinline__ W tn_act_slope_at_output(W o) {
    switch (Act) {
    case TN_RELU: return o > 0 ? (W)1 : (W)0;
    case TN_SIGMOID: return o * ((W)1 - o);
    case TN_TANH: return (W)1 - o * o;
    default: return (W)1;
    }
}

template <int Act, typename W> __device__ __forceinline__ W tn_act_slope(W x) {
    if (Act == TN_SILU) {
        W s = tn_sigmoid_of(x);
        return s * ((W)1 + x * ((W)1 - s));
    }
    if (Act == TN_GELU) return tn_gelu_slope_of(x);
    return tn_act_slope_at_output<Act, W>(Act == TN_RELU ? x : tn_act_value<Act, W>(x));
}

/* Runs `body` with Act a constant; `act` is a pointwise activation. */
#define TN_WITH_ACT(act, Act, ...)                                                                                     \
    switch (act) {                                                                                                     \
    case TN_RELU: { constexpr int Act = TN_RELU; __VA_ARGS__; } break;                                                 \
    case TN_SIGMOID: { constexpr int Act = TN_SIGMOID; __VA_ARGS__; } break;                                           \
    case TN_SILU: { constexpr int Act = TN_SILU; __VA_ARGS__; } break;                                                 \
    case TN_GELU: { constexpr int Act = TN_GELU; __VA_ARGS__; } break;                                                 \
    case TN_TANH: { constexpr int Act = TN_TANH; __VA_ARGS__; } break;                                                 \
    default: { constexpr int Act = TN_NONE; __VA_ARGS__; } break;                                                      \
    }

#endif
