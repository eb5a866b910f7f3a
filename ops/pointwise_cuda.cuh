/* o = f(a) and o = f(a, b) over dense tensors, at memory speed.
 *
 * A block takes a run of UNROLL x THREADS packs of 16 bytes; each thread asks for UNROLL packs of every input, THREADS apart, before it
 * uses the first, so that enough bytes are in flight to cover the latency of memory (4 x 16 B x 1024 threads = 64 KiB a multiprocessor;
 * 3 TB/s x 700 ns / 132 asks for 16 KiB). Bytes: each input once, the output once. The plain path is the same with one element at a
 * time, for f64 and any alignment. */
#ifndef TENON_POINTWISE_CUDA_CUH
#define TENON_POINTWISE_CUDA_CUH

#include <type_traits>

#include "../libtensor/cuda_common.cuh"

namespace {

#define TN_POINTWISE_THREADS 256
#define TN_POINTWISE_UNROLL 4

/* f of one number leaves b alone. */
template <typename F, typename W> __device__ __forceinline__ W tn_pointwise_value(const F &f, W a, W b) {
    if constexpr (std::is_invocable<F, W, W>::value) return f(a, b);
    else return f(a);
}

template <typename T, typename F>
__global__ void __launch_bounds__(TN_POINTWISE_THREADS) tn_pointwise_plain(T *o, const T *a, const T *b, int64_t numel, F f) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += (int64_t)gridDim.x * blockDim.x)
        o[i] = tn_narrow<T>(tn_pointwise_value(f, tn_widen(a[i]), b ? tn_widen(b[i]) : (tn_wide<T>)0));
}

template <bool Two, typename T, typename F>
__global__ void __launch_bounds__(TN_POINTWISE_THREADS) tn_pointwise_packed(T *o, const T *a, const T *b, int64_t numel, F f) {
    const int n = tn_pack<T>::n;
    int64_t n_packs = numel / n, first = (int64_t)blockIdx.x * (TN_POINTWISE_THREADS * TN_POINTWISE_UNROLL) + threadIdx.x;
    uint4 raw_a[TN_POINTWISE_UNROLL], raw_b[TN_POINTWISE_UNROLL];
#pragma unroll
    for (int u = 0; u < TN_POINTWISE_UNROLL; u++) {
        int64_t i = first + u * TN_POINTWISE_THREADS;
        if (i < n_packs) raw_a[u] = tn_load_raw(a + i * n);
        if (Two && i < n_packs) raw_b[u] = tn_load_raw(b + i * n);
    }
#pragma unroll
    for (int u = 0; u < TN_POINTWISE_UNROLL; u++) {
        int64_t i = first + u * TN_POINTWISE_THREADS;
        if (i >= n_packs) break;
        tn_pack<T> po;
#pragma unroll
        for (int j = 0; j < n; j++)
            po.at[j] = tn_narrow<T>(tn_pointwise_value(f, tn_raw_element<T>(raw_a[u], j), Two ? tn_raw_element<T>(raw_b[u], j) : 0.0f));
        tn_store_pack(o + i * n, po);
    }
    int64_t tail = n_packs * n + threadIdx.x;
    if (blockIdx.x == 0 && tail < numel)
        o[tail] = tn_narrow<T>(tn_pointwise_value(f, tn_widen(a[tail]), Two ? tn_widen(b[tail]) : (tn_wide<T>)0));
}

/* f takes one number, or two: then b may be NULL, and the second is 0. */
template <typename T, typename F>
static cudaError_t tn_pointwise(bool plain, T *o, const T *a, const T *b, int64_t numel, F f, void *stream) {
    if (numel == 0) return cudaSuccess;
    cudaStream_t s = (cudaStream_t)stream;
    if (plain || sizeof(T) == 8 || !tn_aligned16(o) || !tn_aligned16(a) || !tn_aligned16(b)) {
        tn_pointwise_plain<<<tn_blocks(numel, TN_POINTWISE_THREADS), TN_POINTWISE_THREADS, 0, s>>>(o, a, b, numel, f);
    } else if constexpr (sizeof(T) < 8) {
        unsigned blocks = tn_blocks(numel, (int64_t)TN_POINTWISE_THREADS * TN_POINTWISE_UNROLL * tn_pack<T>::n);
        if constexpr (std::is_invocable<F, tn_wide<T>, tn_wide<T>>::value)
            if (b) tn_pointwise_packed<true><<<blocks, TN_POINTWISE_THREADS, 0, s>>>(o, a, b, numel, f);
        if (!b) tn_pointwise_packed<false><<<blocks, TN_POINTWISE_THREADS, 0, s>>>(o, a, b, numel, f);
    }
    return cudaGetLastError();
}

template <typename T, typename F> static cudaError_t tn_pointwise(bool plain, T *o, const T *a, int64_t numel, F f, void *stream) {
    return tn_pointwise<T>(plain, o, a, (const T *)NULL, numel, f, stream);
}

} // namespace

#endif
