/* Sixteen neighbouring elements of f32 or bf16 data as a vector, the end of a row included: for CPU kernels written once for
 * both dtypes. Where `dtype` is a constant after inlining nothing of the choice is left. */
#ifndef TENON_LANES_CPU_H
#define TENON_LANES_CPU_H

#include "../libtensor/simd.h"
#include "../libtensor/tensor.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Elements i .. i + 15 of the n at p; beyond the n-th: `rest`. */
TN_INLINE tn_vf tn_lanes_load_or(tn_dtype dtype, const void *p, int64_t i, int64_t n, float rest) {
    if (dtype == TN_F32) return tn_vf_load_part_or((const float *)p + i, n - i, rest);
    tn_vf v = tn_vf_load_bf16_part((const tn_bf16 *)p + i, n - i);
    if (n - i >= TN_VF_LANES || rest == 0) return v;
    return tn_vf_select(tn_vi_lane() < (int32_t)(n - i), v, tn_vf_set(rest));
}
TN_INLINE tn_vf tn_lanes_load(tn_dtype dtype, const void *p, int64_t i, int64_t n) { return tn_lanes_load_or(dtype, p, i, n, 0); }

/* Writes as many lanes as lie before the n-th element. */
TN_INLINE void tn_lanes_store(tn_dtype dtype, void *p, int64_t i, int64_t n, tn_vf v) {
    if (dtype == TN_F32) tn_vf_store_part((float *)p + i, v, n - i);
    else tn_vf_store_bf16_part((tn_bf16 *)p + i, v, n - i);
}

/* Stores past the caches, which spares reading what is overwritten: for results that are too large to be found there again.
 * p is aligned to 16 bytes; tn_stream_end makes the stores visible to other threads. Elsewhere than on x86 a common store. */
TN_INLINE void tn_vf_stream(float *p, tn_vf v) {
#ifdef __SSE2__
    float lanes[TN_VF_LANES];
    tn_vf_store(lanes, v);
    for (int i = 0; i < TN_VF_LANES; i += 4) _mm_stream_ps(p + i, _mm_loadu_ps(lanes + i));
#else
    tn_vf_store(p, v);
#endif
}
TN_INLINE void tn_stream_end(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* One element as f32, and back: for plain loops, which the compiler makes vector code of. */
TN_INLINE float tn_lane_load(tn_dtype dtype, const void *p, int64_t i) {
    return dtype == TN_F32 ? ((const float *)p)[i] : tn_bf16_to_f32(((const tn_bf16 *)p)[i]);
}
TN_INLINE void tn_lane_store(tn_dtype dtype, void *p, int64_t i, float x) {
    if (dtype == TN_F32) ((float *)p)[i] = x;
    else ((tn_bf16 *)p)[i] = tn_f32_to_bf16(x);
}

/* p advanced by `elements`. */
TN_INLINE void *tn_elements_after(tn_dtype dtype, const void *p, int64_t elements) {
    return (char *)p + elements * (dtype == TN_F64 ? 8 : dtype == TN_F32 ? 4 : 2);
}

#endif
