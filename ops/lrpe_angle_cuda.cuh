/* Cosines and sines of LRPE on CUDA, for every family that encodes: of position * theta, right to about 1e-7 wherever the token stands.
 *
 *     near  |position| < 2^24 and |position * theta| < 6.5e6: the position is an f32, and the product is taken in two parts,
 *           hi = round(position * theta), lo = fma(position, theta, -hi), so hi + lo is exact. The nearest multiple k of pi/2 (2 pi), k < 2^22,
 *           is taken away from hi with A + B = pi/2 to 49 bits by fma: hi - k A is exact, since both are multiples of 2^-23 that cancel
 *           to a number below 2; what pi/2 - A - B still lacks is k * 1.7e-15 < 7.2e-9. Then lo is added.
 *     far   anything else: the product in f64 (exact below 2^29), and the f64 sine and cosine.
 *
 * tn_lrpe_sincos_fine evaluates polynomials on what is left (f32 data: 1.2e-7 at worst, in 27 instructions), tn_lrpe_sincos_fast the sine
 * and cosine of the special function unit (bf16 data: 5e-7, in 11). */
#ifndef TENON_LRPE_ANGLE_CUDA_CUH
#define TENON_LRPE_ANGLE_CUDA_CUH

#include "../libtensor/cuda_common.cuh"
#include "lrpe_grid.h"

#define TN_LRPE_NEAR_POSITION ((int64_t)1 << 24)
#define TN_LRPE_NEAR_ANGLE 6.5e6f

/* The two leading parts of pi/2; those of 2 pi are four times as large. */
#define TN_HALF_PI_A 1.5707963705062866f
#define TN_HALF_PI_B -4.371138828673793e-08f
/* Added and taken away, it rounds an f32 below 2^22 to an integer, which stands in the low bits in between. */
#define TN_ROUNDS_TO_INTEGER 12582912.0f

__device__ __forceinline__ bool tn_lrpe_is_near(float position, float theta) { return fabsf(position * theta) < TN_LRPE_NEAR_ANGLE; }

/* position * theta - k * Period, k the nearest integer, whose low bits come in *turns. */
template <int QuarterTurns> __device__ __forceinline__ float tn_lrpe_remainder(float position, float theta, int *turns) {
    const float period = 0.25f * QuarterTurns, inverse = 0.15915494309189535f / period;
    float hi = __fmul_rn(position, theta), lo = fmaf(position, theta, -hi);
    float biased = fmaf(hi, inverse, TN_ROUNDS_TO_INTEGER), k = __fsub_rn(biased, TN_ROUNDS_TO_INTEGER);
    *turns = __float_as_int(biased);
    float rest = fmaf(-k, TN_HALF_PI_A * QuarterTurns, hi);
    return fmaf(-k, TN_HALF_PI_B * QuarterTurns, rest) + lo;
}

/* Near angles. Taylor's series up to r^9 and r^10: k is the nearest integer up to a fifth, so |r| stays below 1.1. */
__device__ __forceinline__ void tn_lrpe_sincos_fine(float position, float theta, float *sine, float *cosine) {
    int quarter;
    float r = tn_lrpe_remainder<1>(position, theta, &quarter), square = r * r;
    float s = fmaf(2.7557319e-6f, square, -1.9841270e-4f), c = fmaf(-2.7557319e-7f, square, 2.4801587e-5f);
    s = fmaf(s, square, 8.3333333e-3f);
    c = fmaf(c, square, -1.3888889e-3f);
    s = fmaf(s, square, -1.6666667e-1f);
    c = fmaf(c, square, 4.1666667e-2f);
    s = fmaf(s * square, r, r);
    c = fmaf(c, square, -0.5f);
    c = fmaf(c, square, 1.0f);
    float across = quarter & 1 ? c : s, along = quarter & 1 ? s : c;
    *sine = __int_as_float(__float_as_int(across) ^ (quarter << 30 & (int)0x80000000));
    *cosine = __int_as_float(__float_as_int(along) ^ ((quarter + 1) << 30 & (int)0x80000000));
}
__device__ __forceinline__ void tn_lrpe_sincos_fast(float position, float theta, float *sine, float *cosine) {
    int turns;
    float r = tn_lrpe_remainder<4>(position, theta, &turns);
    *sine = __sinf(r);
    *cosine = __cosf(r);
}

/* Any angle. A call, so that its registers are nobody else's. Returns sine and cosine. */
static __device__ __noinline__ float2 tn_lrpe_sincos_far(double angle) {
    double s, c;
    sincos(angle, &s, &c);
    return make_float2((float)s, (float)c);
}

/* Where a token stands along an axis. */
struct tn_lrpe_position {
    int64_t whole;
    float near; /* the same, or infinite where f32 does not hold it */

    __device__ __forceinline__ tn_lrpe_position(int64_t at) : whole(at) {
        near = at < TN_LRPE_NEAR_POSITION && at > -TN_LRPE_NEAR_POSITION ? (float)at : __int_as_float(0x7f800000);
    }
};

/* Sine and cosine of position * theta in T's own precision. Not near are also infinity and NaN. */
template <typename T>
__device__ __forceinline__ void tn_lrpe_sincos(const tn_lrpe_position &position, float theta, float *sine, float *cosine) {
    if (tn_lrpe_is_near(position.near, theta)) {
        if (sizeof(T) == 4) tn_lrpe_sincos_fine(position.near, theta, sine, cosine);
        else tn_lrpe_sincos_fast(position.near, theta, sine, cosine);
    } else {
        float2 far = tn_lrpe_sincos_far((double)position.whole * (double)theta);
        *sine = far.x;
        *cosine = far.y;
    }
}
template <typename T>
__device__ __forceinline__ void tn_lrpe_sincos(const tn_lrpe_position &position, double theta, double *sine, double *cosine) {
    sincos((double)position.whole * theta, sine, cosine);
}

#endif
