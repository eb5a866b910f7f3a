/* bfloat16: the upper half of an f32. Conversions round to nearest even; a NaN stays a NaN. Compiles as C and as CUDA. */
#ifndef TENON_BF16_H
#define TENON_BF16_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define TN_HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define TN_HOST_DEVICE static inline __attribute__((always_inline, unused))
#endif

#ifdef __CUDACC__
#define TN_BF16_INLINE static __host__ __device__ __forceinline__
#else
#define TN_BF16_INLINE static inline
#endif

typedef uint16_t tn_bf16;

TN_HOST_DEVICE float tn_bf16_to_f32(tn_bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

TN_HOST_DEVICE tn_bf16 tn_f32_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet_nan = (bits >> 16) | 0x40u;
    return (tn_bf16)((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

/* One rounding only: the f32 in between is rounded to odd, so that it can't fall onto a tie that the double is beside. */
TN_HOST_DEVICE tn_bf16 tn_f64_to_bf16(double value) {
    float nearest = (float)value;
    uint32_t bits;
    memcpy(&bits, &nearest, sizeof bits);
    if ((double)nearest != value && (bits & 0x7fffffffu) <= 0x7f800000u) {
        double magnitude = value < 0 ? -value : value;
        double nearest_magnitude = nearest < 0 ? -(double)nearest : (double)nearest;
        if (nearest_magnitude > magnitude) bits--;
        bits |= 1u;
        memcpy(&nearest, &bits, sizeof bits);
    }
    return tn_f32_to_bf16(nearest);
}

#endif
