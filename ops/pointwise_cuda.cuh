/* o = f(a) and o = f(a, b) over dense tensors, at memory speed.
 *
 * A block takes a run of UNROLL x THREADS packs of 16 bytes; each thread loads UNROLL packs of every input, THREADS apart, before it
 * computes, so that enough bytes are in flight to cover the latency of memory (4 x 16 B x 2048 threads = 128 KiB a multiprocessor;
 * 3 TB/s x 700 ns / 132 asks for 16 KiB). Bytes: each input once, the output once. The plain path is the same with one element at a
 * time, for any alignment. */
#ifndef TENON_POINTWISE_CUDA_CUH
#define TENON_POINTWISE_CUDA_CUH

#include "../libtensor/cuda_common.cuh"

#define TN_POINTWISE_THREADS 256
#define TN_POINTWISE_UNROLL 4

template <typename T, typename F> __global__ void __launch_bounds__(TN_POINTWISE_THREADS) tn_pointwise_plain(T *o, const T *a, const T *b, int64_t numel, F f) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += (int64_t)gridDim.x * blockDim.x)
        o[i] = tn_narrow<T>(f(tn_widen(a[i]), b ? tn_widen(b[i]) : (tn_wide<T>)0));
}

template <bool Two, typename T, typename F> __global__ void __launch_bounds__(TN_POINTWISE_THREADS) tn_pointwise_packed(T *o, const T *a, const T *b, int64_t numel, F f) {
    const int n = tn_pack<T>::n;
    int64_t n_packs = numel / n, first = (int64_t)blockIdx.x * (TN_POINTWISE_THREADS * TN_POINTWISE_UNROLL) + threadIdx.x;
    tn_pack<T> pa[TN_POINTWISE_UNROLL], pb[TN_POINTWISE_UNROLL];
#pragma unroll
    for (int u = 0; u < TN_POINTWISE_UNROLL; u++) {
        int64_t i = first + u * TN_POINTWISE_THREADS;
        if (i >= n_packs) break;
        pa[u] = tn_load_pack(a + i * n);
        if (Two) pb[u] = tn_load_pack(b + i * n);
    }
#pragma unroll
    for (int u = 0; u < TN_POINTWISE_UNROLL; u++) {
        int64_t i = first + u * TN_POINTWISE_THREADS;
        if (i >= n_packs) break;
        tn_pack<T> po;
#pragma unroll
        for (int j = 0; j < n; j++) po.at[j] = tn_narrow<T>(f(tn_widen(pa[u].at[j]), Two ? tn_widen(pb[u].at[j]) : (tn_wide<T>)0));
        tn_store_pack(o + i * n, po);
    }
    int64_t tail = n_packs * n + threadIdx.x;
    if (blockIdx.x == 0 && tail < numel) o[tail] = tn_narrow<T>(f(tn_widen(a[tail]), Two ? tn_widen(b[tail]) : (tn_wide<T>)0));
}

/* f takes two numbers; b may be NULL, and then the second is 0. */
template <typename T, typename F> static cudaError_t tn_pointwise(bool plain, T *o, const T *a, const T *b, int64_t numel, F f, void *stream) {
    if (numel == 0) return cudaSuccess;
    cudaStream_t s = (cudaStream_t)stream;
    if (plain || !tn_aligned16(o) || !tn_aligned16(a) || !tn_aligned16(b)) {
        tn_pointwise_plain<<<tn_blocks(numel, TN_POINTWISE_THREADS), TN_POINTWISE_THREADS, 0, s>>>(o, a, b, numel, f);
    } else {
        unsigned blocks = tn_blocks(numel, (int64_t)TN_POINTWISE_THREADS * TN_POINTWISE_UNROLL * tn_pack<T>::n);
        if (b) tn_pointwise_packed<true><<<blocks, TN_POINTWISE_THREADS, 0, s>>>(o, a, b, numel, f);
        else tn_pointwise_packed<false><<<blocks, TN_POINTWISE_THREADS, 0, s>>>(o, a, b, numel, f);
    }
    return cudaGetLastError();
}

#endif
