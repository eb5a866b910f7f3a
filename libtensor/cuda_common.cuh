/* What every .cu file of Tenon uses: dtypes, 16-byte packs, reductions in a fixed order, strided indexing. */
#ifndef TENON_CUDA_COMMON_CUH
#define TENON_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "tensor.h"

typedef __nv_bfloat16 tn_cuda_bf16;

/* The type arithmetic runs in: f64 for f64, f32 for f32 and bf16. */
template <typename T> struct tn_wide_of { using type = float; };
template <> struct tn_wide_of<double> { using type = double; };
template <typename T> using tn_wide = typename tn_wide_of<T>::type;

__device__ __forceinline__ double tn_widen(double x) { return x; }
__device__ __forceinline__ float tn_widen(float x) { return x; }
/* A bf16 is the upper half of an f32. In so many words the code is the same for every architecture, and is compiled once. */
__device__ __forceinline__ float tn_widen(tn_cuda_bf16 x) { return __uint_as_float((unsigned)__bfloat16_as_ushort(x) << 16); }

template <typename T> __device__ __forceinline__ T tn_narrow(tn_wide<T> x);
template <> __device__ __forceinline__ double tn_narrow<double>(double x) { return x; }
template <> __device__ __forceinline__ float tn_narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ tn_cuda_bf16 tn_narrow<tn_cuda_bf16>(float x) { return __float2bfloat16_rn(x); }

/* A product that is not fused into a sum: where the same product is added here and taken away there, both must be rounded alike. */
__device__ __forceinline__ double tn_product_of(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float tn_product_of(float a, float b) { return __fmul_rn(a, b); }

/* Sixteen bytes of T, moved by one instruction. */
template <typename T> struct alignas(16) tn_pack {
    static constexpr int n = 16 / (int)sizeof(T);
    T at[n];
};

template <typename T> __device__ __forceinline__ tn_pack<T> tn_load_pack(const T *from) {
    tn_pack<T> pack;
    *reinterpret_cast<uint4 *>(&pack) = *reinterpret_cast<const uint4 *>(from);
    return pack;
}
/* To global memory. As assembly, since nvcc 13.0 tears a plain 16-byte store into words where a branch stands between it and the
 * arithmetic. */
template <typename T> __device__ __forceinline__ void tn_store_pack(T *to, const tn_pack<T> &pack) {
    const uint4 words = *reinterpret_cast<const uint4 *>(&pack);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
}
/* Number j of a pack that was read as words. To ask for several packs at once keep them like this: of a tn_pack nvcc extracts the
 * elements right behind the load, which waits for it. */
__device__ __forceinline__ uint4 tn_load_raw(const void *from) { return *reinterpret_cast<const uint4 *>(from); }
__device__ __forceinline__ uint32_t tn_word_of(const uint4 &raw, int i) { return i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w; }
template <typename T> __device__ __forceinline__ tn_wide<T> tn_raw_element(const uint4 &raw, int j);
template <> __device__ __forceinline__ double tn_raw_element<double>(const uint4 &raw, int j) {
    return j == 0 ? __hiloint2double((int)raw.y, (int)raw.x) : __hiloint2double((int)raw.w, (int)raw.z);
}
template <> __device__ __forceinline__ float tn_raw_element<float>(const uint4 &raw, int j) { return __uint_as_float(tn_word_of(raw, j)); }
template <> __device__ __forceinline__ float tn_raw_element<tn_cuda_bf16>(const uint4 &raw, int j) {
    uint32_t word = tn_word_of(raw, j / 2);
    return __uint_as_float(j & 1 ? word & 0xffff0000u : word << 16);
}
static inline bool tn_aligned16(const void *p) { return ((uintptr_t)p & 15) == 0; }

/* Runs `body` with T the C++ type of a float dtype. */
#define TN_WITH_FLOAT(dtype, T, ...)    \
    do {                                \
        if ((dtype) == TN_F64) {        \
            using T = double;           \
            __VA_ARGS__;                \
        } else if ((dtype) == TN_F32) { \
            using T = float;            \
            __VA_ARGS__;                \
        } else {                        \
            using T = tn_cuda_bf16;     \
            __VA_ARGS__;                \
        }                               \
    } while (0)

/* ---- sums and maxima over a warp and over a block; the order is fixed, so equal inputs give equal bits ---- */

#define TN_WARP 32

template <typename W> __device__ __forceinline__ W tn_warp_sum(W x) {
#pragma unroll
    for (int step = TN_WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
template <typename W> __device__ __forceinline__ W tn_warp_max(W x) {
#pragma unroll
    for (int step = TN_WARP / 2; step > 0; step /= 2) {
        W other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other > x ? other : x;
    }
    return x;
}

/* Every thread of the block gets the sum. `scratch` holds one W per warp; it may be reused after the call. */
template <typename W> __device__ __forceinline__ W tn_block_sum(W x, W *scratch) {
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP, n_warps = (blockDim.x + TN_WARP - 1) / TN_WARP;
    x = tn_warp_sum(x);
    if (n_warps == 1) return x;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < n_warps ? scratch[lane] : (W)0;
    x = tn_warp_sum(x);
    __syncthreads();
    return x;
}
template <typename W> __device__ __forceinline__ W tn_block_max(W x, W lowest, W *scratch) {
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP, n_warps = (blockDim.x + TN_WARP - 1) / TN_WARP;
    x = tn_warp_max(x);
    if (n_warps == 1) return x;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < n_warps ? scratch[lane] : lowest;
    x = tn_warp_max(x);
    __syncthreads();
    return x;
}

/* ---- launches ---- */

/* Blocks for a grid-stride loop over n items, `per_block` at a time. */
static inline unsigned tn_blocks(int64_t n, int64_t per_block) {
    const int64_t most = 0x7fffffff;
    int64_t blocks = (n + per_block - 1) / per_block;
    return (unsigned)(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

/* ---- strided operands ---- */

#define TN_CUDA_MAX_OPERANDS 4

/* A loop nest over a common shape, axes merged where every operand allows it; strides in elements. */
struct tn_nest {
    int axes, operands;
    int64_t numel;
    int64_t shape[TN_MAX_AXES];
    int64_t stride[TN_CUDA_MAX_OPERANDS][TN_MAX_AXES];
};

/* strides[k] has `axes` entries for operand k. Axes of size 1 go, neighbours that step alike in every operand merge. */
static inline tn_nest tn_make_nest(int axes, const int64_t *shape, int operands, const int64_t *const *strides) {
    tn_nest nest;
    nest.axes = 0;
    nest.operands = operands;
    nest.numel = 1;
    for (int i = 0; i < axes; i++) {
        nest.numel *= shape[i];
        if (shape[i] == 1) continue;
        bool merges = nest.axes > 0;
        for (int k = 0; merges && k < operands; k++) merges = nest.stride[k][nest.axes - 1] == strides[k][i] * shape[i];
        int at = merges ? nest.axes - 1 : nest.axes++;
        nest.shape[at] = merges ? nest.shape[at] * shape[i] : shape[i];
        for (int k = 0; k < operands; k++) nest.stride[k][at] = strides[k][i];
    }
    if (nest.axes == 0) {
        nest.axes = 1;
        nest.shape[0] = 1;
        for (int k = 0; k < operands; k++) nest.stride[k][0] = 0;
    }
    return nest;
}

/* Element offsets of item `i` in every operand. Index is int32_t where all offsets fit, else int64_t. */
template <int Operands, typename Index> __device__ __forceinline__ void tn_nest_offsets(const tn_nest &nest, Index i, int64_t *offset) {
#pragma unroll
    for (int k = 0; k < Operands; k++) offset[k] = 0;
#pragma unroll 1
    for (int axis = nest.axes - 1; axis > 0; axis--) {
        Index size = (Index)nest.shape[axis], outer = i / size, at = i - outer * size;
#pragma unroll
        for (int k = 0; k < Operands; k++) offset[k] += (int64_t)at * nest.stride[k][axis];
        i = outer;
    }
#pragma unroll
    for (int k = 0; k < Operands; k++) offset[k] += (int64_t)i * nest.stride[k][0];
}

static inline bool tn_nest_is_dense(const tn_nest &nest) {
    for (int k = 0; k < nest.operands; k++)
        if (nest.axes != 1 || (nest.stride[k][0] != 1 && nest.shape[0] != 1)) return false;
    return true;
}

#endif
