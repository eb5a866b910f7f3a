/* A thread takes packs of 16 bytes of both halves of a row (and of do), a few of them THREADS apart and all asked for before the first is
 * used; see ../pointwise_cuda.cuh for the numbers. The plain kernels take one element a thread, for f64 and any width or alignment. */
#include <string.h>

#include "swiglu_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../activation_cuda.cuh"

#define THREADS 256
#define FORWARD_PACKS 4
#define BACKWARD_PACKS 2

namespace {

/* Of x [rows, 2 width] and o [rows, width], in elements or in packs. */
template <typename Index> __device__ __forceinline__ int64_t first_half(int64_t i, int64_t width) {
    Index row = (Index)i / (Index)width;
    return i + (int64_t)row * width;
}

template <typename W> __device__ __forceinline__ W swiglu_of(W u, W v) { return tn_act_value<TN_SILU>(u) * v; }
template <typename W> __device__ __forceinline__ void swiglu_gradients(W u, W v, W d, W *du, W *dv) {
    W s = tn_sigmoid_of(u);
    *du = d * v * (s * ((W)1 + u * ((W)1 - s)));
    *dv = d * (u * s);
}

template <typename T> __global__ void __launch_bounds__(THREADS) swiglu_forward_elements(T *o, const T *x, int64_t numel, int64_t width) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= numel) return;
    int64_t at = first_half<int64_t>(i, width);
    o[i] = tn_narrow<T>(swiglu_of(tn_widen(x[at]), tn_widen(x[at + width])));
}

template <typename T>
__global__ void __launch_bounds__(THREADS) swiglu_backward_elements(T *dx, const T *x, const T *d, int64_t numel, int64_t width) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= numel) return;
    int64_t at = first_half<int64_t>(i, width);
    tn_wide<T> du, dv;
    swiglu_gradients(tn_widen(x[at]), tn_widen(x[at + width]), tn_widen(d[i]), &du, &dv);
    dx[at] = tn_narrow<T>(du);
    dx[at + width] = tn_narrow<T>(dv);
}

/* Sixteen bytes as they lie in memory: nothing is taken out of them before all are asked for. */
template <typename T> __device__ __forceinline__ uint4 load_raw(const T *from) { return *reinterpret_cast<const uint4 *>(from); }
template <typename T> __device__ __forceinline__ tn_pack<T> pack_of(const uint4 &raw) {
    tn_pack<T> pack;
    memcpy(&pack, &raw, sizeof pack);
    return pack;
}

template <typename T> __global__ void __launch_bounds__(THREADS) swiglu_forward_packs(T *o, const T *x, int64_t n_packs, int64_t width) {
    const int n = tn_pack<T>::n;
    int64_t first = (int64_t)blockIdx.x * (THREADS * FORWARD_PACKS) + threadIdx.x;
    uint4 raw_u[FORWARD_PACKS], raw_v[FORWARD_PACKS];
#pragma unroll
    for (int k = 0; k < FORWARD_PACKS; k++) {
        int64_t i = first + k * THREADS;
        if (i >= n_packs) break;
        int64_t at = first_half<uint32_t>(i, width);
        raw_u[k] = load_raw(x + at * n);
        raw_v[k] = load_raw(x + (at + width) * n);
    }
#pragma unroll
    for (int k = 0; k < FORWARD_PACKS; k++) {
        int64_t i = first + k * THREADS;
        if (i >= n_packs) break;
        tn_pack<T> u = pack_of<T>(raw_u[k]), v = pack_of<T>(raw_v[k]), out;
#pragma unroll
        for (int j = 0; j < n; j++) out.at[j] = tn_narrow<T>(swiglu_of(tn_widen(u.at[j]), tn_widen(v.at[j])));
        tn_store_pack(o + i * n, out);
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) swiglu_backward_packs(T *dx, const T *x, const T *d, int64_t n_packs, int64_t width) {
    const int n = tn_pack<T>::n;
    int64_t first = (int64_t)blockIdx.x * (THREADS * BACKWARD_PACKS) + threadIdx.x, at[BACKWARD_PACKS];
    uint4 raw_u[BACKWARD_PACKS], raw_v[BACKWARD_PACKS], raw_d[BACKWARD_PACKS];
#pragma unroll
    for (int k = 0; k < BACKWARD_PACKS; k++) {
        int64_t i = first + k * THREADS;
        if (i >= n_packs) break;
        at[k] = first_half<uint32_t>(i, width);
        raw_u[k] = load_raw(x + at[k] * n);
        raw_v[k] = load_raw(x + (at[k] + width) * n);
        raw_d[k] = load_raw(d + i * n);
    }
#pragma unroll
    for (int k = 0; k < BACKWARD_PACKS; k++) {
        if (first + k * THREADS >= n_packs) break;
        tn_pack<T> u = pack_of<T>(raw_u[k]), v = pack_of<T>(raw_v[k]), upstream = pack_of<T>(raw_d[k]), out_u, out_v;
#pragma unroll
        for (int j = 0; j < n; j++) {
            float du, dv;
            swiglu_gradients(tn_widen(u.at[j]), tn_widen(v.at[j]), tn_widen(upstream.at[j]), &du, &dv);
            out_u.at[j] = tn_narrow<T>(du);
            out_v.at[j] = tn_narrow<T>(dv);
        }
        tn_store_pack(dx + at[k] * n, out_u);
        tn_store_pack(dx + (at[k] + width) * n, out_v);
    }
}

/* x and its rows' second halves start on a pack, and 32 bits count the packs. */
template <typename T> bool packs_fit(const tn_op_call *call, int64_t numel, int64_t width, const void *a, const void *b, const void *c) {
    const int n = tn_pack<T>::n;
    return call->device->cuda_path != TN_CUDA_PLAIN && sizeof(T) < 8 && width % n == 0 && numel / n <= UINT32_MAX && tn_aligned16(a) &&
           tn_aligned16(b) && tn_aligned16(c);
}

template <typename T> void forward(tn_op_call *call, int64_t numel, int64_t width) {
    const T *x = (const T *)call->in[0]->data;
    T *o = (T *)call->out[0]->data;
    const int n = tn_pack<T>::n;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (packs_fit<T>(call, numel, width, x, o, o)) {
        unsigned blocks = tn_blocks(numel / n, THREADS * FORWARD_PACKS);
        if constexpr (sizeof(T) < 8) swiglu_forward_packs<T><<<blocks, THREADS, 0, stream>>>(o, x, numel / n, width / n);
    } else {
        swiglu_forward_elements<T><<<tn_blocks(numel, THREADS), THREADS, 0, stream>>>(o, x, numel, width);
    }
}

template <typename T> void backward(tn_op_call *call, int64_t numel, int64_t width) {
    const T *x = (const T *)call->in[0]->data, *d = (const T *)call->dout[0]->data;
    T *dx = (T *)call->din[0]->data;
    const int n = tn_pack<T>::n;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (packs_fit<T>(call, numel, width, x, d, dx)) {
        unsigned blocks = tn_blocks(numel / n, THREADS * BACKWARD_PACKS);
        if constexpr (sizeof(T) < 8) swiglu_backward_packs<T><<<blocks, THREADS, 0, stream>>>(dx, x, d, numel / n, width / n);
    } else {
        swiglu_backward_elements<T><<<tn_blocks(numel, THREADS), THREADS, 0, stream>>>(dx, x, d, numel, width);
    }
}

} // namespace

extern "C" tn_status tn_swiglu_forward_cuda(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    if (x->numel == 0) return TN_OK;
    TN_WITH_FLOAT(x->dtype, T, (forward<T>(call, x->numel / 2, x->shape[x->axes - 1] / 2)));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "swiglu forward");
}

extern "C" tn_status tn_swiglu_backward_cuda(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    if (x->numel == 0) return TN_OK;
    TN_WITH_FLOAT(x->dtype, T, (backward<T>(call, x->numel / 2, x->shape[x->axes - 1] / 2)));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "swiglu backward");
}
