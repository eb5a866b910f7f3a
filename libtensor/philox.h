/* Philox4x32-10, a counter-based random generator (Salmon et al., SC 2011), and how its bits become numbers.
 *
 * It compiles as C and as CUDA. A stream is (seed, draw index): draw d is 64 bits, half d & 1 of the block with counter d >> 1
 * and key seed, so that any element's number can be had without those before it.
 *
 * Every device gives the same bits: the arithmetic is + - * / and sqrt of IEEE doubles in a fixed order, never fused.
 * Host code that calls tn_philox_normal_pair or tn_philox_scale must be compiled with -ffp-contract=off. */
#ifndef TENON_PHILOX_H
#define TENON_PHILOX_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "bf16.h"

#ifdef __CUDA_ARCH__
#define TN_ADD_(a, b) __dadd_rn((a), (b))
#define TN_SUB_(a, b) __dsub_rn((a), (b))
#define TN_MUL_(a, b) __dmul_rn((a), (b))
#define TN_DIV_(a, b) __ddiv_rn((a), (b))
#define TN_SQRT_(a) __dsqrt_rn(a)
#define TN_DOUBLE_BITS_(x) ((uint64_t)__double_as_longlong(x))
#define TN_BITS_DOUBLE_(u) __longlong_as_double((long long)(u))
#else
#define TN_ADD_(a, b) ((a) + (b))
#define TN_SUB_(a, b) ((a) - (b))
#define TN_MUL_(a, b) ((a) * (b))
#define TN_DIV_(a, b) ((a) / (b))
#define TN_SQRT_(a) sqrt(a)
#define TN_DOUBLE_BITS_(x) tn_double_bits_(x)
#define TN_BITS_DOUBLE_(u) tn_bits_double_(u)
#endif

TN_HOST_DEVICE uint64_t tn_double_bits_(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
TN_HOST_DEVICE double tn_bits_double_(uint64_t u) {
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Both halves of a 32-bit product; of a plain 64-bit one nvcc adds the halves' zero upper parts up as well. */
TN_HOST_DEVICE uint64_t tn_philox_product_(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#else
    return (uint64_t)a * b;
#endif
}

typedef struct tn_philox_block {
    uint32_t word[4];
} tn_philox_block;

TN_HOST_DEVICE tn_philox_block tn_philox(tn_philox_block counter, uint32_t key0, uint32_t key1) {
    uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = tn_philox_product_(0xd2511f53u, c0), p1 = tn_philox_product_(0xcd9e8d57u, c2);
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)p0;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    tn_philox_block out;
    out.word[0] = c0, out.word[1] = c1, out.word[2] = c2, out.word[3] = c3;
    return out;
}

/* The two draws 2 * block and 2 * block + 1 of stream `seed`. */
TN_HOST_DEVICE void tn_philox_draws(uint64_t seed, uint64_t block, uint64_t *even, uint64_t *odd) {
    tn_philox_block counter;
    counter.word[0] = (uint32_t)block, counter.word[1] = (uint32_t)(block >> 32), counter.word[2] = 0, counter.word[3] = 0;
    tn_philox_block out = tn_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
    *even = out.word[0] | (uint64_t)out.word[1] << 32;
    *odd = out.word[2] | (uint64_t)out.word[3] << 32;
}

/* Draw `index` of stream `seed`: 64 random bits. */
TN_HOST_DEVICE uint64_t tn_philox_bits(uint64_t seed, uint64_t index) {
    uint64_t even, odd;
    tn_philox_draws(seed, index >> 1, &even, &odd);
    return index & 1 ? odd : even;
}

/* ---- uniform in [0, 1): the draw's upper bits; multiples of 2^-52 and of 2^-24 ---- */

TN_HOST_DEVICE double tn_philox_uniform_f64(uint64_t bits) { return TN_BITS_DOUBLE_(0x3ff0000000000000u | bits >> 12) - 1.0; }
TN_HOST_DEVICE float tn_philox_uniform_f32(uint64_t bits) { return (float)(uint32_t)(bits >> 40) * 5.9604644775390625e-8f; }

/* ---- integers in [low, high), high > low: the upper half of bits * range ---- */

TN_HOST_DEVICE int64_t tn_philox_integer(uint64_t bits, int64_t low, int64_t high) {
    uint64_t range = (uint64_t)high - (uint64_t)low;
    uint64_t a = bits >> 32, b = bits & 0xffffffffu, c = range >> 32, d = range & 0xffffffffu;
    uint64_t middle = a * d + (b * d >> 32), other = b * c + (middle & 0xffffffffu);
    return (int64_t)((uint64_t)low + (a * c + (middle >> 32) + (other >> 32)));
}

/* ---- normal: Box and Muller's pair from the two draws of a block ---- */

/* ln x for x in [2^-52, 1]: atanh series of (m - 1) / (m + 1), m in [sqrt 1/2, sqrt 2). */
TN_HOST_DEVICE double tn_philox_log_(double x) {
    uint64_t bits = TN_DOUBLE_BITS_(x) - 0x3fe6a09e667f3bcdu;
    /* The exponent through the mantissa of 2^52 + 2^51, where integers need no conversion instruction. */
    double k = TN_SUB_(TN_BITS_DOUBLE_(0x4338000000000000u + (uint64_t)((int64_t)bits >> 52)), 6755399441055744.0);
    double m = TN_BITS_DOUBLE_((bits & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu);
    double s = TN_DIV_(TN_SUB_(m, 1.0), TN_ADD_(m, 1.0)), z = TN_MUL_(s, s);
    double p = 1.0 / 21.0;
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 19.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 17.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 15.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 13.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 11.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 9.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 7.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 5.0);
    p = TN_ADD_(TN_MUL_(p, z), 1.0 / 3.0);
    p = TN_MUL_(TN_MUL_(p, z), s);
    return TN_ADD_(TN_MUL_(k, 0.69314718055994530942), TN_MUL_(2.0, TN_ADD_(s, p)));
}

/* sin and cos of 2 pi u for u in [0, 1): u = n / 4 + v with |v| <= 1/8, Taylor series in 2 pi v. */
TN_HOST_DEVICE void tn_philox_sincos_(double u, double *sine, double *cosine) {
    double shifted = TN_ADD_(TN_MUL_(u, 4.0), 6755399441055744.0);
    uint64_t n = TN_DOUBLE_BITS_(shifted);
    double v = TN_SUB_(u, TN_MUL_(0.25, TN_SUB_(shifted, 6755399441055744.0)));
    double x = TN_MUL_(v, 6.28318530717958647693), z = TN_MUL_(x, x);
    double s = -1.0 / 1307674368000.0, c = 1.0 / 20922789888000.0;
    s = TN_ADD_(TN_MUL_(s, z), 1.0 / 6227020800.0);
    s = TN_ADD_(TN_MUL_(s, z), -1.0 / 39916800.0);
    s = TN_ADD_(TN_MUL_(s, z), 1.0 / 362880.0);
    s = TN_ADD_(TN_MUL_(s, z), -1.0 / 5040.0);
    s = TN_ADD_(TN_MUL_(s, z), 1.0 / 120.0);
    s = TN_ADD_(TN_MUL_(s, z), -1.0 / 6.0);
    s = TN_ADD_(TN_MUL_(TN_MUL_(s, z), x), x);
    c = TN_ADD_(TN_MUL_(c, z), -1.0 / 87178291200.0);
    c = TN_ADD_(TN_MUL_(c, z), 1.0 / 479001600.0);
    c = TN_ADD_(TN_MUL_(c, z), -1.0 / 3628800.0);
    c = TN_ADD_(TN_MUL_(c, z), 1.0 / 40320.0);
    c = TN_ADD_(TN_MUL_(c, z), -1.0 / 720.0);
    c = TN_ADD_(TN_MUL_(c, z), 1.0 / 24.0);
    c = TN_ADD_(TN_MUL_(c, z), -0.5);
    c = TN_ADD_(TN_MUL_(c, z), 1.0);
    /* A quarter turn swaps the two and flips signs; by masks, so that loops over this vectorise. */
    uint64_t swap = 0 - (n & 1), s_bits = TN_DOUBLE_BITS_(s), c_bits = TN_DOUBLE_BITS_(c);
    *sine = TN_BITS_DOUBLE_(((s_bits & ~swap) | (c_bits & swap)) ^ (n & 2) << 62);
    *cosine = TN_BITS_DOUBLE_(((c_bits & ~swap) | (s_bits & swap)) ^ ((n + 1) & 2) << 62);
}

/* Two independent normal numbers of mean 0 and deviation 1: those of draws 2 * block (even) and 2 * block + 1 (odd). */
TN_HOST_DEVICE void tn_philox_normal_pair(uint64_t even_bits, uint64_t odd_bits, double *even, double *odd) {
    double u = TN_SUB_(1.0, tn_philox_uniform_f64(even_bits)); /* in (0, 1] */
    double radius = TN_SQRT_(TN_MUL_(-2.0, tn_philox_log_(u)));
    double sine, cosine;
    tn_philox_sincos_(tn_philox_uniform_f64(odd_bits), &sine, &cosine);
    *even = TN_MUL_(radius, cosine);
    *odd = TN_MUL_(radius, sine);
}

/* offset + scale * x in two roundings: mean and deviation, or low and high - low. */
TN_HOST_DEVICE double tn_philox_scale(double x, double offset, double scale) { return TN_ADD_(offset, TN_MUL_(scale, x)); }

/* ---- a uniform number in its dtype: where rounding reached `high`, the number just below it ---- */

TN_HOST_DEVICE double tn_philox_below_f64(double x, double high) {
    if (!(x >= high)) return x;
    uint64_t bits = TN_DOUBLE_BITS_(x);
    return TN_BITS_DOUBLE_(bits << 1 == 0 ? 0x8000000000000001u : bits >> 63 ? bits + 1 : bits - 1);
}
TN_HOST_DEVICE float tn_philox_below_f32(double x, double high) {
    float nearest = (float)x;
    if (!((double)nearest >= high)) return nearest;
    uint32_t bits;
    memcpy(&bits, &nearest, sizeof bits);
    bits = bits << 1 == 0 ? 0x80000001u : bits >> 31 ? bits + 1 : bits - 1;
    memcpy(&nearest, &bits, sizeof bits);
    return nearest;
}
TN_HOST_DEVICE tn_bf16 tn_philox_below_bf16(double x, double high) {
    tn_bf16 nearest = tn_f64_to_bf16(x);
    if (!((double)tn_bf16_to_f32(nearest) >= high)) return nearest;
    return (tn_bf16)((nearest & 0x7fff) == 0 ? 0x8001 : nearest >> 15 ? nearest + 1 : nearest - 1);
}

#endif
