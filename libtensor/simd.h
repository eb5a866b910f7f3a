/* Vectors of 64 bytes, and the functions of a real variable that the CPU kernels need on them.
 *
 * The types are the compiler's vector extensions, so operators work on them on every processor: one AVX-512 register,
 * two of AVX2, four of SSE2 or NEON. A kernel is written once and marked TN_SIMD_CLONES, which compiles it for several
 * instruction sets and picks one when the program starts:
 *
 *     TN_SIMD_CLONES static void scale(void *user, int64_t begin, int64_t end) { ... tn_vf x = tn_vf_load(p); ... }
 *
 * Helpers are inlined into each clone. A marked function must not contain an OpenMP region (its body would not be
 * cloned): hand the marked function to tn_parallel_for instead.
 *
 * Results may differ in the last bit between instruction sets (fused multiply-add), never between runs on one machine. */
#ifndef TENON_SIMD_H
#define TENON_SIMD_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "bf16.h"

/* Clones need ifuncs, which call the resolver before ThreadSanitizer is up; under AddressSanitizer one set is enough, since compiling it
 * takes minutes. "default" comes first because clang takes the first version's features when it checks how vectors are passed. Before 18,
 * clang makes the resolver of a static function global, and two files that each have a clone of one name do not link. */
#if defined(__has_feature)
#define TN_HAS_FEATURE(x) __has_feature(x)
#else
#define TN_HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__) || TN_HAS_FEATURE(thread_sanitizer) || TN_HAS_FEATURE(address_sanitizer)
#undef TN_NO_SIMD_CLONES
#define TN_NO_SIMD_CLONES
#endif
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(TN_NO_SIMD_CLONES)
#if defined(__clang__)
#if __clang_major__ >= 18
#define TN_SIMD_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
#elif __GNUC__ >= 12
#define TN_SIMD_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
#endif
#ifndef TN_SIMD_CLONES
#define TN_SIMD_CLONES
#endif

/* Every helper is inlined: how such vectors would be passed to a function does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

#define TN_INLINE static inline __attribute__((always_inline, unused))

#define TN_VF_LANES 16
#define TN_VD_LANES 8

typedef float tn_vf __attribute__((vector_size(64)));     /* 16 x f32 */
typedef int32_t tn_vi __attribute__((vector_size(64)));   /* 16 x i32, and the masks of tn_vf: -1 true, 0 false */
typedef uint32_t tn_vu __attribute__((vector_size(64)));  /* 16 x u32 */
typedef double tn_vd __attribute__((vector_size(64)));    /* 8 x f64 */
typedef int64_t tn_vl __attribute__((vector_size(64)));   /* 8 x i64, and the masks of tn_vd */
typedef double tn_vd16 __attribute__((vector_size(128))); /* 16 x f64: a tn_vf widened; only for operators and conversion */

/* The same in memory, at any address of an element. */
typedef float tn_vf_memory __attribute__((vector_size(64), aligned(4), may_alias));
typedef double tn_vd_memory __attribute__((vector_size(64), aligned(8), may_alias));

/* Halves, for conversions and reductions. */
typedef float tn_vf8 __attribute__((vector_size(32)));
typedef uint16_t tn_vh16 __attribute__((vector_size(32)));
typedef float tn_vf4 __attribute__((vector_size(16)));
typedef double tn_vd4 __attribute__((vector_size(32)));

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TN_HAS_SHUFFLEVECTOR 1
#endif
#endif

#ifdef TN_HAS_SHUFFLEVECTOR
#define TN_VF_LOW(v) __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
#define TN_VF_HIGH(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
#define TN_HALF4_LOW(v) __builtin_shufflevector(v, v, 0, 1, 2, 3)
#define TN_HALF4_HIGH(v) __builtin_shufflevector(v, v, 4, 5, 6, 7)
#else
#define TN_PART_(type, v, first)                                 \
    ({                                                           \
        __typeof__(v) whole_ = (v);                              \
        type part_;                                              \
        memcpy(&part_, (char *)&whole_ + (first), sizeof part_); \
        part_;                                                   \
    })
#define TN_VF_LOW(v) TN_PART_(tn_vf8, v, 0)
#define TN_VF_HIGH(v) TN_PART_(tn_vf8, v, 32)
#define TN_HALF4_LOW(v) TN_PART_(__typeof__(_Generic((v), tn_vd : (tn_vd4){ 0 }, default : (tn_vf4){ 0 })), v, 0)
#define TN_HALF4_HIGH(v) TN_PART_(__typeof__(_Generic((v), tn_vd : (tn_vd4){ 0 }, default : (tn_vf4){ 0 })), v, sizeof(v) / 2)
#endif

/* ---- f32: load, store (by lanes, which become one store: GCC spills a vector wider than a register to store it whole) ---- */

TN_INLINE tn_vf tn_vf_zero(void) { return (tn_vf){ 0 }; }
TN_INLINE tn_vf tn_vf_set(float x) { return (tn_vf){ x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x }; }
TN_INLINE tn_vi tn_vi_set(int32_t x) { return (tn_vi){ x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x }; }
/* 0, 1, .. 15 */
TN_INLINE tn_vi tn_vi_lane(void) { return (tn_vi){ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 }; }
TN_INLINE tn_vf tn_vf_load(const float *p) { return *(const tn_vf_memory *)p; }
TN_INLINE void tn_vf_store(float *p, tn_vf v) {
    for (int i = 0; i < TN_VF_LANES; i++) p[i] = v[i];
}

/* Copies the first n < 64/size elements in pieces of fixed size, so that no call is made. */
TN_INLINE void tn_copy_tail_(void *to, const void *from, int64_t bytes) {
    char *t = (char *)to;
    const char *f = (const char *)from;
    if (bytes & 32) memcpy(t, f, 32), t += 32, f += 32;
    if (bytes & 16) memcpy(t, f, 16), t += 16, f += 16;
    if (bytes & 8) memcpy(t, f, 8), t += 8, f += 8;
    if (bytes & 4) memcpy(t, f, 4), t += 4, f += 4;
    if (bytes & 2) memcpy(t, f, 2);
}

/* The first n elements, 0 <= n <= 16; the other lanes are `rest`. */
TN_INLINE tn_vf tn_vf_load_part_or(const float *p, int64_t n, float rest) {
    if (n >= TN_VF_LANES) return tn_vf_load(p);
    tn_vf v = tn_vf_set(rest);
    float lane[TN_VF_LANES];
    memcpy(lane, &v, sizeof v);
    tn_copy_tail_(lane, p, n * 4);
    return tn_vf_load(lane);
}
TN_INLINE tn_vf tn_vf_load_part(const float *p, int64_t n) { return tn_vf_load_part_or(p, n, 0); }
TN_INLINE void tn_vf_store_part(float *p, tn_vf v, int64_t n) {
    if (n >= TN_VF_LANES) {
        tn_vf_store(p, v);
        return;
    }
    float lane[TN_VF_LANES];
    tn_vf_store(lane, v);
    tn_copy_tail_(p, lane, n * 4);
}

/* ---- f32 <-> bf16 ---- */

TN_INLINE tn_vf tn_vf_from_bf16_bits(tn_vh16 half) { return (tn_vf)(__builtin_convertvector(half, tn_vu) << 16); }
TN_INLINE tn_vh16 tn_vf_to_bf16_bits(tn_vf v) {
    tn_vu bits = (tn_vu)v;
    tn_vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    tn_vu is_nan = (tn_vu)((0x7f800000 - ((tn_vi)v & 0x7fffffff)) >> 31);
    tn_vu quiet = (bits >> 16) | 0x40u;
    return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), tn_vh16);
}
TN_INLINE tn_vf tn_vf_load_bf16(const tn_bf16 *p) {
    tn_vh16 half;
    memcpy(&half, p, sizeof half);
    return tn_vf_from_bf16_bits(half);
}
TN_INLINE void tn_vf_store_bf16(tn_bf16 *p, tn_vf v) {
    tn_vh16 half = tn_vf_to_bf16_bits(v);
    memcpy(p, &half, sizeof half);
}
TN_INLINE tn_vf tn_vf_load_bf16_part(const tn_bf16 *p, int64_t n) {
    if (n >= TN_VF_LANES) return tn_vf_load_bf16(p);
    tn_bf16 lane[TN_VF_LANES] = { 0 };
    tn_copy_tail_(lane, p, n * 2);
    return tn_vf_load_bf16(lane);
}
TN_INLINE void tn_vf_store_bf16_part(tn_bf16 *p, tn_vf v, int64_t n) {
    if (n >= TN_VF_LANES) {
        tn_vf_store_bf16(p, v);
        return;
    }
    tn_bf16 lane[TN_VF_LANES];
    tn_vf_store_bf16(lane, v);
    tn_copy_tail_(p, lane, n * 2);
}

/* ---- f32: lanes ---- */

TN_INLINE tn_vf tn_vf_select(tn_vi mask, tn_vf yes, tn_vf no) { return (tn_vf)((mask & (tn_vi)yes) | (~mask & (tn_vi)no)); }
TN_INLINE tn_vi tn_vi_select(tn_vi mask, tn_vi yes, tn_vi no) { return (mask & yes) | (~mask & no); }
/* GCC makes scalar code of a vector's x != x; the bits do not have that problem. */
TN_INLINE tn_vi tn_vf_is_nan(tn_vf a) { return (0x7f800000 - ((tn_vi)a & 0x7fffffff)) >> 31; }
TN_INLINE tn_vl tn_vd_is_nan(tn_vd a) { return (0x7ff0000000000000 - ((tn_vl)a & INT64_MAX)) >> 63; }
/* Where either is NaN: b. By lanes, of which the compiler makes min and max instructions of any width. */
TN_INLINE tn_vf tn_vf_min(tn_vf a, tn_vf b) {
    tn_vf r;
    for (int i = 0; i < TN_VF_LANES; i++) r[i] = a[i] < b[i] ? a[i] : b[i];
    return r;
}
TN_INLINE tn_vf tn_vf_max(tn_vf a, tn_vf b) {
    tn_vf r;
    for (int i = 0; i < TN_VF_LANES; i++) r[i] = a[i] > b[i] ? a[i] : b[i];
    return r;
}
/* Where either is NaN: NaN. */
TN_INLINE tn_vf tn_vf_min_nan(tn_vf a, tn_vf b) { return tn_vf_select(tn_vf_is_nan(a), a, tn_vf_min(a, b)); }
TN_INLINE tn_vf tn_vf_max_nan(tn_vf a, tn_vf b) { return tn_vf_select(tn_vf_is_nan(a), a, tn_vf_max(a, b)); }
/* a * b + c, fused where the instruction set can. */
TN_INLINE tn_vf tn_vf_fma(tn_vf a, tn_vf b, tn_vf c) { return a * b + c; }
TN_INLINE tn_vf tn_vf_abs(tn_vf a) { return (tn_vf)((tn_vi)a & 0x7fffffff); }
TN_INLINE tn_vf tn_vf_copysign(tn_vf magnitude, tn_vf sign) {
    return (tn_vf)(((tn_vi)magnitude & 0x7fffffff) | ((tn_vi)sign & (int32_t)0x80000000));
}
TN_INLINE tn_vf tn_vf_sqrt(tn_vf a) {
    tn_vf r;
    for (int i = 0; i < TN_VF_LANES; i++) r[i] = __builtin_sqrtf(a[i]);
    return r;
}

/* The same tree on every instruction set: lanes 8 apart, then 4, 2, 1. */
TN_INLINE float tn_vf_sum(tn_vf v) {
    tn_vf8 eight = TN_VF_LOW(v) + TN_VF_HIGH(v);
    tn_vf4 four = TN_HALF4_LOW(eight) + TN_HALF4_HIGH(eight);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
TN_INLINE float tn_max_nan_(float a, float b) { return a > b || a != a ? a : b; }
TN_INLINE float tn_min_nan_(float a, float b) { return a < b || a != a ? a : b; }
/* NaN if any lane is. */
TN_INLINE float tn_vf_max_lane(tn_vf v) {
    float a[TN_VF_LANES];
    tn_vf_store(a, v);
    for (int half = TN_VF_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] = tn_max_nan_(a[i], a[i + half]);
    return a[0];
}
TN_INLINE float tn_vf_min_lane(tn_vf v) {
    float a[TN_VF_LANES];
    tn_vf_store(a, v);
    for (int half = TN_VF_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] = tn_min_nan_(a[i], a[i + half]);
    return a[0];
}
/* True if any lane of a mask is set. */
TN_INLINE bool tn_vi_any(tn_vi mask) {
    uint64_t part[8];
    memcpy(part, &mask, sizeof part);
    return ((part[0] | part[1]) | (part[2] | part[3])) | ((part[4] | part[5]) | (part[6] | part[7]));
}

/* ---- f64 ---- */

TN_INLINE tn_vd tn_vd_zero(void) { return (tn_vd){ 0 }; }
TN_INLINE tn_vd tn_vd_set(double x) { return (tn_vd){ x, x, x, x, x, x, x, x }; }
TN_INLINE tn_vd tn_vd_load(const double *p) { return *(const tn_vd_memory *)p; }
TN_INLINE void tn_vd_store(double *p, tn_vd v) {
    for (int i = 0; i < TN_VD_LANES; i++) p[i] = v[i];
}
TN_INLINE tn_vd tn_vd_load_part_or(const double *p, int64_t n, double rest) {
    if (n >= TN_VD_LANES) return tn_vd_load(p);
    double lane[TN_VD_LANES] = { rest, rest, rest, rest, rest, rest, rest, rest };
    tn_copy_tail_(lane, p, n * 8);
    return tn_vd_load(lane);
}
TN_INLINE tn_vd tn_vd_load_part(const double *p, int64_t n) { return tn_vd_load_part_or(p, n, 0); }
TN_INLINE void tn_vd_store_part(double *p, tn_vd v, int64_t n) {
    if (n >= TN_VD_LANES) {
        tn_vd_store(p, v);
        return;
    }
    double lane[TN_VD_LANES];
    tn_vd_store(lane, v);
    tn_copy_tail_(p, lane, n * 8);
}
TN_INLINE tn_vd tn_vd_load_f32(const float *p) {
    tn_vf8 eight;
    memcpy(&eight, p, sizeof eight);
    return __builtin_convertvector(eight, tn_vd);
}
TN_INLINE void tn_vd_store_f32(float *p, tn_vd v) {
    tn_vf8 eight = __builtin_convertvector(v, tn_vf8);
    memcpy(p, &eight, sizeof eight);
}
TN_INLINE tn_vd16 tn_vd16_from_vf(tn_vf v) { return __builtin_convertvector(v, tn_vd16); }
TN_INLINE tn_vf tn_vf_from_vd16(tn_vd16 v) { return __builtin_convertvector(v, tn_vf); }
TN_INLINE tn_vd tn_vd_select(tn_vl mask, tn_vd yes, tn_vd no) { return (tn_vd)((mask & (tn_vl)yes) | (~mask & (tn_vl)no)); }
TN_INLINE tn_vd tn_vd_min(tn_vd a, tn_vd b) {
    tn_vd r;
    for (int i = 0; i < TN_VD_LANES; i++) r[i] = a[i] < b[i] ? a[i] : b[i];
    return r;
}
TN_INLINE tn_vd tn_vd_max(tn_vd a, tn_vd b) {
    tn_vd r;
    for (int i = 0; i < TN_VD_LANES; i++) r[i] = a[i] > b[i] ? a[i] : b[i];
    return r;
}
TN_INLINE tn_vd tn_vd_max_nan(tn_vd a, tn_vd b) { return tn_vd_select(tn_vd_is_nan(a), a, tn_vd_max(a, b)); }
TN_INLINE tn_vd tn_vd_fma(tn_vd a, tn_vd b, tn_vd c) { return a * b + c; }
TN_INLINE tn_vd tn_vd_abs(tn_vd a) { return (tn_vd)((tn_vl)a & INT64_MAX); }
TN_INLINE tn_vd tn_vd_sqrt(tn_vd a) {
    tn_vd r;
    for (int i = 0; i < TN_VD_LANES; i++) r[i] = __builtin_sqrt(a[i]);
    return r;
}
TN_INLINE double tn_vd_sum(tn_vd v) {
    tn_vd4 four = TN_HALF4_LOW(v) + TN_HALF4_HIGH(v);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
TN_INLINE double tn_vd_max_lane(tn_vd v) {
    double best = v[0];
    for (int i = 1; i < TN_VD_LANES; i++) best = v[i] > best || v[i] != v[i] ? v[i] : best;
    return best;
}

/* ---- f32 functions: within 2 ulp of the exact value over the whole line, NaN, infinities and denormals included ----
 *
 * Polynomials are minimax fits over the reduced interval; the error quoted is that of the polynomial alone. Conditions are
 * formed from the bits by subtraction and shift, because compilers take a comparison of vectors wider than a register apart
 * into scalars. */

TN_INLINE tn_vi tn_abs_bits_(tn_vf x) { return (tn_vi)x & 0x7fffffff; }
/* |x| > limit, for limit >= 0 given by its bits; true for NaN. */
TN_INLINE tn_vi tn_above_(tn_vi abs_bits, int32_t limit_bits) { return (limit_bits - abs_bits) >> 31; }
TN_INLINE tn_vi tn_is_nan_(tn_vi abs_bits) { return tn_above_(abs_bits, 0x7f800000); }
TN_INLINE tn_vf tn_nan_where_(tn_vi mask, tn_vf y) { return (tn_vf)((tn_vi)y | (mask & 0x7fc00000)); }

TN_INLINE tn_vf tn_exp2i_(tn_vi n) { return (tn_vf)((tn_vu)(n + 127) << 23); }

/* e^x for |x| <= 105. */
TN_INLINE tn_vf tn_exp_core_(tn_vf x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the rounded integer in the low bits */
    tn_vf shifted = x * 1.44269504f + magic;
    tn_vf n = shifted - magic;
    tn_vf t = x - n * 0.693359375f; /* exact; x = n ln 2 + r + low */
    tn_vf r = t - n * -2.12194440e-4f;
    tn_vf low = (t - r) - n * -2.12194440e-4f;
    tn_vf q = r * 1.381417853e-3f + 8.368922397e-3f; /* 3e-9 */
    q = q * r + 4.166840762e-2f;
    q = q * r + 1.666651964e-1f;
    q = q * r + 4.999999404e-1f;
    tn_vf p = ((r * r * q + low) + r) + 1.0f;
    tn_vi k = (tn_vi)((tn_vu)shifted - 0x4b400000u);
    tn_vi half = k >> 1; /* in two steps, so that a denormal result is rounded once */
    return p * tn_exp2i_(half) * tn_exp2i_(k - half);
}
/* e^x */
TN_INLINE tn_vf tn_vf_exp(tn_vf x) {
    tn_vi magnitude = tn_abs_bits_(x);
    tn_vf bounded = tn_vf_select(tn_above_(magnitude, 0x42d20000), tn_vf_copysign(tn_vf_set(105.0f), x), x);
    return tn_nan_where_(tn_is_nan_(magnitude), tn_exp_core_(bounded));
}

/* ln(m 2^k) + low for m = 1 + f in [sqrt 1/2, sqrt 2]. */
TN_INLINE tn_vf tn_log_core_(tn_vf f, tn_vf k, tn_vf low) {
    tn_vf p = f * 6.915857643e-2f - 1.179415509e-1f; /* 7e-10 */
    p = p * f + 1.187498420e-1f;
    p = p * f - 1.238378212e-1f;
    p = p * f + 1.421833783e-1f;
    p = p * f - 1.666927189e-1f;
    p = p * f + 2.000224143e-1f;
    p = p * f - 2.499998659e-1f;
    p = p * f + 3.333331048e-1f;
    tn_vf square = f * f;
    tn_vf tail = p * f * square + (k * -2.12194440e-4f + low);
    tail = tail - 0.5f * square;
    return (f + tail) + k * 0.693359375f;
}
/* x = m 2^k with m in [sqrt 1/2, sqrt 2], for normal x > 0. */
TN_INLINE tn_vf tn_log_split_(tn_vf x, tn_vi *k) {
    tn_vi bits = (tn_vi)((tn_vu)x - 0x3f3504f3u);
    *k = bits >> 23;
    return (tn_vf)((tn_vu)(bits & 0x007fffff) + 0x3f3504f3u);
}
/* y = ln u where u > 0 is finite; else -inf at 0, NaN below, and x (what u came from) if that is NaN or infinite. */
TN_INLINE tn_vf tn_log_ends_(tn_vf y, tn_vf u, tn_vf x) {
    tn_vi zero = (tn_abs_bits_(u) - 1) >> 31;
    y = tn_vf_select(zero, tn_vf_set(-INFINITY), y);
    y = tn_vf_select(tn_above_(tn_abs_bits_(x), 0x7f7fffff), x, y);
    return tn_nan_where_(((tn_vi)u >> 31) & ~zero, y);
}
/* ln x: -inf at 0, NaN below */
TN_INLINE tn_vf tn_vf_log(tn_vf x) {
    tn_vi denormal = (tn_vi)((tn_vu)x - 0x00800000u) >> 31;
    tn_vf scaled = x * (tn_vf)((denormal & (25 << 23)) + 0x3f800000); /* by 2^25 */
    tn_vi k;
    tn_vf m = tn_log_split_(scaled, &k);
    k = k - (denormal & 25);
    return tn_log_ends_(tn_log_core_(m - 1.0f, __builtin_convertvector(k, tn_vf), tn_vf_zero()), x, x);
}
/* ln(1 + x), right also for small x: -inf at -1, NaN below */
TN_INLINE tn_vf tn_vf_log1p(tn_vf x) {
    tn_vf u = 1.0f + x;
    /* What the sum lost, exactly: reckoned from the larger of the two. */
    tn_vf lost = tn_vf_select((tn_vi)(x - 1.0f) >> 31, x - (u - 1.0f), 1.0f - (u - x));
    tn_vi k;
    tn_vf m = tn_log_split_(u, &k);
    tn_vf y = tn_log_core_(m - 1.0f, __builtin_convertvector(k, tn_vf), lost / u);
    y = tn_vf_select(tn_above_(tn_abs_bits_(x), 0x322bcc77), y, x); /* 1e-8; keeps -0 and denormals */
    return tn_log_ends_(y, u, x);
}

TN_INLINE tn_vf tn_vf_tanh(tn_vf x) {
    tn_vi magnitude = tn_abs_bits_(x);
    tn_vf z = x * x;
    tn_vf p = z * -5.681285169e-3f + 2.061862685e-2f; /* tanh(x)/x - 1 for |x| <= 0.625: 5e-9 */
    p = p * z - 5.373369902e-2f;
    p = p * z + 1.333137304e-1f;
    p = p * z - 3.333328068e-1f;
    p = p * z * (tn_vf)magnitude + (tn_vf)magnitude;
    tn_vf t = tn_vf_select(tn_above_(magnitude, 0x41200000), tn_vf_set(10.0f), (tn_vf)magnitude);
    tn_vf large = 1.0f - 2.0f / (tn_exp_core_(t + t) + 1.0f);
    tn_vf y = tn_vf_select(tn_above_(magnitude, 0x3f200000), large, p);
    return tn_nan_where_(tn_is_nan_(magnitude), tn_vf_copysign(y, x));
}
/* 1 / (1 + e^-x) */
TN_INLINE tn_vf tn_vf_sigmoid(tn_vf x) {
    tn_vi magnitude = tn_abs_bits_(x);
    tn_vf t = tn_vf_select(tn_above_(magnitude, 0x42d20000), tn_vf_set(105.0f), (tn_vf)magnitude);
    tn_vf e = tn_exp_core_(-t);
    tn_vf sum = 1.0f + e;
    tn_vf lost = e - (sum - 1.0f); /* by that rounding; 1.45 - sum / 2 is 1 / sum, near enough */
    tn_vf y = tn_vf_select((tn_vi)x >> 31, e, tn_vf_set(1.0f)) / sum;
    y = y - y * (lost * (1.45f - 0.5f * sum));
    return tn_nan_where_(tn_is_nan_(magnitude), y);
}

TN_INLINE tn_vf tn_vf_erf(tn_vf x) {
    tn_vi magnitude = tn_abs_bits_(x);
    tn_vf z = x * x;
    tn_vf small = z * 8.271303523e-5f - 8.119181148e-4f; /* erf(x)/x - 1 for |x| < 0.9375: 5e-10 */
    small = small * z + 5.198952276e-3f;
    small = small * z - 2.685856260e-2f;
    small = small * z + 1.128368080e-1f;
    small = small * z - 3.761263192e-1f;
    small = small * z + 1.283791661e-1f;
    small = small * x + x;
    tn_vf u = tn_vf_select(tn_above_(magnitude, 0x40866666), tn_vf_set(4.2f), (tn_vf)magnitude);
    tn_vf large = u * -1.118325417e-5f + 3.223231761e-4f; /* ln(erfc(u))/u up to 4.2: 7e-10 */
    large = large * u - 3.640505951e-3f;
    large = large * u + 2.375793457e-2f;
    large = large * u - 1.062320918e-1f;
    large = large * u - 6.351541877e-1f;
    large = large * u - 1.128647804f;
    large = tn_vf_copysign(1.0f - tn_exp_core_(large * u), x);
    return tn_nan_where_(tn_is_nan_(magnitude), tn_vf_select(tn_above_(magnitude, 0x3f700000), large, small));
}

/* ---- sine and cosine ---- */

#define TN_SINCOS_MAX 8388608.0f
#define TN_SINCOS_MAX_BITS_ 0x4b000000
TN_INLINE void tn_sincos_core_(tn_vf r, tn_vi quadrant, tn_vf *sine, tn_vf *cosine) {
    tn_vf z = r * r;
    tn_vf s = z * 2.718237283e-6f - 1.983932743e-4f; /* 5e-12 */
    s = s * z + 8.333329111e-3f;
    s = s * z - 1.666666716e-1f;
    s = s * z * r + r;
    tn_vf c = z * 2.443241283e-5f - 1.388730947e-3f; /* 1e-10 */
    c = c * z + 4.166664556e-2f;
    c = c * z * z + (1.0f - 0.5f * z);
    tn_vi swap = -(quadrant & 1);
    tn_vi sine_sign = (quadrant & 2) << 30, cosine_sign = ((quadrant + 1) & 2) << 30;
    *sine = (tn_vf)((tn_vi)tn_vf_select(swap, c, s) ^ sine_sign);
    *cosine = (tn_vf)((tn_vi)tn_vf_select(swap, s, c) ^ cosine_sign);
}
/* Sine and cosine, rounded to f32, of 16 angles held in f64, each at most TN_SINCOS_MAX in magnitude. An f32 times an integer
 * below 2^29 is exact in f64, so the angle of a product needs no more than this. The reduction is exact enough because n has 23
 * bits and the first part of pi/2 has 29. */
TN_INLINE void tn_vf_sincos_f64(tn_vd16 angle, tn_vf *sine, tn_vf *cosine) {
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: rounds to an integer */
    tn_vd16 n = angle * 0.63661977236758134 + magic;
    n = n - magic;
    tn_vd16 r = (angle - n * 0x1.921fb54p+0) - n * 0x1.10b4611a62633p-30;
    tn_vi quadrant = __builtin_convertvector(__builtin_convertvector(n, tn_vf), tn_vi);
    tn_sincos_core_(__builtin_convertvector(r, tn_vf), quadrant, sine, cosine);
}
static __attribute__((noinline, unused)) void tn_sincos_far_(const float *x, float *sine, float *cosine) {
    for (int i = 0; i < TN_VF_LANES; i++)
        if (!(fabsf(x[i]) <= TN_SINCOS_MAX)) sine[i] = sinf(x[i]), cosine[i] = cosf(x[i]);
}
TN_INLINE void tn_vf_sincos(tn_vf x, tn_vf *sine, tn_vf *cosine) {
    tn_vi magnitude = tn_abs_bits_(x);
    tn_vf_sincos_f64(tn_vd16_from_vf(x), sine, cosine);
    *sine = (tn_vf)((tn_vi)*sine | ((tn_vi)x & ((magnitude - 1) >> 31))); /* -0 stays -0 */
    if (tn_vi_any(tn_above_(magnitude, TN_SINCOS_MAX_BITS_))) {
        float in[TN_VF_LANES], s[TN_VF_LANES], c[TN_VF_LANES];
        tn_vf_store(in, x);
        tn_vf_store(s, *sine);
        tn_vf_store(c, *cosine);
        tn_sincos_far_(in, s, c);
        *sine = tn_vf_load(s);
        *cosine = tn_vf_load(c);
    }
}
TN_INLINE tn_vf tn_vf_sin(tn_vf x) {
    tn_vf s, c;
    tn_vf_sincos(x, &s, &c);
    return s;
}
TN_INLINE tn_vf tn_vf_cos(tn_vf x) {
    tn_vf s, c;
    tn_vf_sincos(x, &s, &c);
    return c;
}

#endif
