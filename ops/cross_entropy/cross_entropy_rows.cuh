/* How rows of logits are read on CUDA.
 *
 * A row belongs to a team: a warp where it is short, else a block. Rows of an odd number of classes start anywhere, so a row is a head
 * of single elements up to the next 16 bytes, packs of 16 bytes, and a tail:
 *
 *     | head (< 16 B) | pack | pack | ..  | pack | tail (< 16 B) |
 *       one a lane      lane i takes packs i, i + team, ..;         one a lane
 *                       UNROLL of them on their way at once
 *
 * Unpacked (f64, the plain path, or dlogits that lie otherwise than the logits) a pack is one element. */
#ifndef TENON_CROSS_ENTROPY_ROWS_CUH
#define TENON_CROSS_ENTROPY_ROWS_CUH

#include "../../libtensor/cuda_common.cuh"
#include "cross_entropy_cuda.h"

#define ENTROPY_UNROLL 4
#define ENTROPY_WARP_ROW 1024 /* classes up to which a warp takes a row */
#define ENTROPY_WARP_BLOCK 256

__device__ __forceinline__ double entropy_exp(double x) { return exp(x); }
/* e^x for x <= 0 as 2^(x log2 e), by one instruction. The product's rounding costs |x| 2^-24 of the result: much only where that is
 * nothing. */
__device__ __forceinline__ float entropy_exp(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.4426950408889634f));
    return power;
}
__device__ __forceinline__ double entropy_expm1(double x) { return expm1(x); }
__device__ __forceinline__ float entropy_expm1(float x) { return expm1f(x); }
__device__ __forceinline__ double entropy_log(double x) { return log(x); }
__device__ __forceinline__ float entropy_log(float x) { return logf(x); }
__device__ __forceinline__ double entropy_nan(double) { return nan(""); }
__device__ __forceinline__ float entropy_nan(float) { return nanf(""); }

/* The threads that share a row. */
template <bool OneWarp> struct entropy_team {
    __device__ __forceinline__ static int size() { return OneWarp ? TN_WARP : (int)blockDim.x; }
    __device__ __forceinline__ static int lane() { return OneWarp ? (int)threadIdx.x % TN_WARP : (int)threadIdx.x; }
    __device__ __forceinline__ static int64_t first_row() {
        return OneWarp ? (int64_t)blockIdx.x * (blockDim.x / TN_WARP) + threadIdx.x / TN_WARP : (int64_t)blockIdx.x;
    }
    __device__ __forceinline__ static int64_t row_step() { return (int64_t)gridDim.x * (OneWarp ? blockDim.x / TN_WARP : 1); }
};

/* N neighbouring elements; with N > 1 they are aligned to 16 bytes. */
template <typename T, int N> __device__ __forceinline__ void entropy_load(const T *from, tn_wide<T> (&to)[N]) {
    if constexpr (N == 1) {
        to[0] = tn_widen(from[0]);
    } else {
        constexpr int n = tn_pack<T>::n;
#pragma unroll
        for (int i = 0; i < N; i += n) {
            tn_pack<T> pack = tn_load_pack(from + i);
#pragma unroll
            for (int j = 0; j < n; j++) to[i + j] = tn_widen(pack.at[j]);
        }
    }
}
template <typename T, int N> __device__ __forceinline__ void entropy_store(T *to, const tn_wide<T> (&from)[N]) {
    if constexpr (N == 1) {
        to[0] = tn_narrow<T>(from[0]);
    } else {
        tn_pack<T> pack;
#pragma unroll
        for (int j = 0; j < N; j++) pack.at[j] = tn_narrow<T>(from[j]);
        tn_store_pack(to, pack);
    }
}

/* A row's head, packs of N elements and tail, by the alignment of `start`. */
template <int N> struct entropy_cut {
    int64_t head, packs, v;

    template <typename T> __device__ __forceinline__ entropy_cut(const T *start, int64_t classes) {
        v = classes;
        head = N == 1 ? 0 : (int64_t)((16 - ((uintptr_t)start & 15)) & 15) / (int64_t)sizeof(T);
        if (head > v) head = v;
        packs = (v - head) / N;
    }
    __device__ __forceinline__ int64_t tail() const { return head + packs * N; }
    __device__ __forceinline__ int64_t column(int64_t pack) const { return head + pack * N; }
};

/* ---- launches ---- */

static inline unsigned entropy_threads(int64_t v, int64_t pack) {
    int64_t packs = v / pack;
    return v <= ENTROPY_WARP_ROW ? ENTROPY_WARP_BLOCK : packs < 2048 ? 128 : packs < 8192 ? 256 : 512;
}
static inline unsigned entropy_blocks(int64_t rows, int64_t v) {
    return tn_blocks(rows, v <= ENTROPY_WARP_ROW ? ENTROPY_WARP_BLOCK / TN_WARP : 1);
}

#endif
