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
__device__ __forceinline__ float tn_reciprocal(float x) { return __fdividef(1.0f, x); }

/* 1 / (1 + e^-x): for x far below zero e^-x overflows to infinity and the quotient is 0, as it should be.
 * __fdividef gives 0 for divisors above 2^126, where sigmoid is below 1e-38. */
template <typename W> __device__ __forceinline__ W tn_sigmoid_of(W x) { return tn_reciprocal((W)1 + tn_exp_of(-x)); }

/* The normal distribution function, with its digits kept far below zero. */
__device__ __forceinline__ double tn_normal_below(double x) { return 0.5 * erfc(-0.70710678118654752440 * x); }
__device__ __forceinline__ float tn_normal_below(float x) { return 0.5f * erfcf(-0.70710678118654752440f * x); }
template <typename W> __device__ __forceinline__ W tn_normal_density(W x) { return (W)0.39894228040143267794 * tn_exp_of((W)-0.5 * x * x); }

template <int Act, typename W> __device__ __forceinline__ W tn_act_value(W x) {
    switch (Act) {
    case TN_RELU: return x > 0 || x != x ? x : (W)0;
    case TN_SIGMOID: return tn_sigmoid_of(x);
    case TN_SILU: return x * tn_sigmoid_of(x);
    case TN_GELU: return x * tn_normal_below(x);
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
    if (Act == TN_GELU) return tn_normal_below(x) + x * tn_normal_density(x);
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
