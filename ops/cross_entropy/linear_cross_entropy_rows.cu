/* A chunk of logits turned into losses and dlogits at once: a block takes a row, which stays in shared memory between the passes.
 *
 *     copy      all 16 B packs of the row at once -> shared memory
 *     largest   m
 *     sum       of exp(z - m)
 *     write     dlogits = scale (exp(z - m - log sum) - [target]), over the logits
 *
 * A thread meets its own packs alone, so only m and the sum are waited for. Bytes: the logits once, dlogits once. Two blocks of a row of
 * 50304 bf16 fit a multiprocessor of Hopper: one reads while the other computes. */
#include "cross_entropy_rows.cuh"

#include <float.h>

#define BOTH_THREADS 512
#define BOTH_WIDE_THREADS 1024          /* where one block fills the shared memory */
#define BOTH_SHARED_TO_PAIR (112 << 10) /* bytes of a row of which two fit */
#define LOG2_E 1.4426950408889634f

__device__ __forceinline__ float power_of_2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

/* The larger of the elements of two packs, place by place. A NaN is passed over; the sum meets it. */
template <typename T> __device__ __forceinline__ uint4 larger_of(uint4 a, uint4 b);
template <> __device__ __forceinline__ uint4 larger_of<float>(uint4 a, uint4 b) {
    return make_uint4(__float_as_uint(fmaxf(__uint_as_float(a.x), __uint_as_float(b.x))),
                      __float_as_uint(fmaxf(__uint_as_float(a.y), __uint_as_float(b.y))),
                      __float_as_uint(fmaxf(__uint_as_float(a.z), __uint_as_float(b.z))),
                      __float_as_uint(fmaxf(__uint_as_float(a.w), __uint_as_float(b.w))));
}
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b) {
    __nv_bfloat162 most = __hmax2(*(__nv_bfloat162 *)&a, *(__nv_bfloat162 *)&b);
    return *(uint32_t *)&most;
}
template <> __device__ __forceinline__ uint4 larger_of<tn_cuda_bf16>(uint4 a, uint4 b) {
    return make_uint4(larger_pair(a.x, b.x), larger_pair(a.y, b.y), larger_pair(a.z, b.z), larger_pair(a.w, b.w));
}

template <typename T> struct both_pass {
    static constexpr int n = tn_pack<T>::n;
    uint4 *row;
    int v, packs;

    /* Rows are padded to whole packs; what lies beyond v becomes minus infinity, which counts as nothing. */
    __device__ __forceinline__ void copy(const T *logits) const {
        for (int pack = threadIdx.x; pack < packs; pack += blockDim.x)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(row + pack)),
                         "l"(__cvta_generic_to_global(logits + pack * n))
                         : "memory");
        asm volatile("cp.async.wait_all;" ::: "memory");
        int last = packs - 1;
        if (v % n && last % blockDim.x == threadIdx.x)
            for (int j = v % n; j < n; j++) ((T *)(row + last))[j] = tn_narrow<T>(-INFINITY);
    }
    __device__ __forceinline__ float largest() const {
        if ((int)threadIdx.x >= packs) return -FLT_MAX;
        uint4 most = row[threadIdx.x];
#pragma unroll 4
        for (int pack = threadIdx.x + blockDim.x; pack < packs; pack += blockDim.x) most = larger_of<T>(most, row[pack]);
        float largest = -FLT_MAX; /* finite, also where all logits are minus infinity */
#pragma unroll
        for (int j = 0; j < n; j++) largest = fmaxf(largest, tn_raw_element<T>(most, j));
        return largest;
    }
    __device__ __forceinline__ float sum(float max) const {
        float sum = 0;
#pragma unroll 2
        for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
            uint4 raw = row[pack];
            float part = 0;
#pragma unroll
            for (int j = 0; j < n; j++) part += power_of_2((tn_raw_element<T>(raw, j) - max) * LOG2_E);
            sum += part;
        }
        return sum;
    }
    /* scale exp(z - m - log sum) as one power: the scale, which is not negative, goes into the exponent. */
    __device__ __forceinline__ void store(T *dlogits, float max, float log_sum, float scale, int target) const {
        float shift = fmaf(-LOG2_E, log_sum, log2f(scale));
        int pack_of_target = target / n;
#pragma unroll 2
        for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
            uint4 raw = row[pack];
            tn_pack<T> d;
#pragma unroll
            for (int j = 0; j < n; j++) d.at[j] = tn_narrow<T>(power_of_2(fmaf(tn_raw_element<T>(raw, j) - max, LOG2_E, shift)));
            tn_store_pack(dlogits + pack * n, d);
            if (pack == pack_of_target) /* after the pack's own, by the same thread */
                dlogits[target] = tn_narrow<T>(entropy_expm1(tn_widen(((const T *)row)[target]) - max - log_sum) * scale);
        }
    }
    __device__ __forceinline__ void clear(T *dlogits) const {
        for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) *(uint4 *)(dlogits + pack * n) = make_uint4(0, 0, 0, 0);
    }
};

template <typename T> __global__ void __launch_bounds__(BOTH_WIDE_THREADS) entropy_both(tn_entropy_rows_cuda job) {
    extern __shared__ uint4 both_row[];
    __shared__ float scratch[TN_WARP];
    int v = (int)job.v;
    both_pass<T> pass = { both_row, v, (v + both_pass<T>::n - 1) / both_pass<T>::n };
    float scale = *(const float *)job.scale;
    int64_t row = blockIdx.x, target = job.target[row];
    T *logits = (T *)job.dlogits + row * job.row;
    bool counts = target != job.ignore_index, known = target >= 0 && target < job.v;
    float loss = counts && !known ? entropy_nan(0.0f) : 0;
    if (counts && known) { /* the whole block goes the same way */
        pass.copy(logits);
        float max = tn_block_max(pass.largest(), -FLT_MAX, scratch);
        float log_sum = entropy_log(tn_block_sum(pass.sum(max), scratch));
        loss = (max - tn_widen(((const T *)both_row)[target])) + log_sum;
        pass.store(logits, max, log_sum, scale, (int)target);
    } else {
        pass.clear(logits);
    }
    if (threadIdx.x == 0) ((float *)job.loss)[row] = loss;
}

static size_t row_bytes(tn_dtype dtype, int64_t v) { return ((size_t)v * tn_dtype_size(dtype) + 15) / 16 * 16; }

extern "C" bool tn_entropy_fits_cuda(const tn_device *device, tn_dtype dtype, int64_t v) {
    const size_t own = 1024; /* the system's share of a block, and the reductions' */
    return device->cuda_path != TN_CUDA_PLAIN && dtype != TN_F64 && row_bytes(dtype, v) + own <= device->shared_bytes;
}

template <typename T> static cudaError_t launch_both(const tn_entropy_rows_cuda &job, cudaStream_t stream) {
    size_t bytes = row_bytes(job.dtype, job.v);
    unsigned threads = bytes > BOTH_SHARED_TO_PAIR ? BOTH_WIDE_THREADS : bytes < BOTH_SHARED_TO_PAIR / 8 ? BOTH_THREADS / 4 : BOTH_THREADS;
    cudaError_t error = cudaFuncSetAttribute(entropy_both<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    entropy_both<T><<<(unsigned)job.rows, threads, bytes, stream>>>(job);
    return cudaGetLastError();
}

extern "C" tn_status tn_entropy_both_cuda(tn_device *device, const tn_entropy_rows_cuda *job, void *stream) {
    cudaStream_t s = (cudaStream_t)stream;
    if (job->rows == 0 || job->v == 0) return TN_OK;
    cudaError_t error = job->dtype == TN_F32 ? launch_both<float>(*job, s) : launch_both<tn_cuda_bf16>(*job, s);
    return tn_cuda_said(device, (int)error, "linear_cross_entropy rows");
}

/* ---- backward ---- */

#define SCALED_THREADS 256
#define SCALED_UNROLL 4

/* `By`: the type of do, T or f32. */
template <typename T, typename By>
__global__ void __launch_bounds__(SCALED_THREADS) scale_elements(T *to, const T *from, const By *by, int64_t numel) {
    tn_wide<T> scale = tn_widen(*by);
    for (int64_t i = (int64_t)blockIdx.x * SCALED_THREADS + threadIdx.x; i < numel; i += (int64_t)gridDim.x * SCALED_THREADS)
        to[i] = tn_narrow<T>(tn_widen(from[i]) * scale);
}

template <typename T, typename By>
__global__ void __launch_bounds__(SCALED_THREADS) scale_packs(T *to, const T *from, const By *by, int64_t packs, int64_t numel) {
    constexpr int n = tn_pack<T>::n;
    float scale = tn_widen(*by);
    int64_t first = (int64_t)blockIdx.x * SCALED_THREADS * SCALED_UNROLL + threadIdx.x;
    uint4 raw[SCALED_UNROLL];
#pragma unroll
    for (int u = 0; u < SCALED_UNROLL; u++) {
        int64_t pack = first + u * SCALED_THREADS;
        raw[u] = tn_load_raw(from + (pack < packs ? pack : 0) * n);
    }
#pragma unroll
    for (int u = 0; u < SCALED_UNROLL; u++) {
        int64_t pack = first + u * SCALED_THREADS;
        tn_pack<T> scaled;
#pragma unroll
        for (int j = 0; j < n; j++) scaled.at[j] = tn_narrow<T>(tn_raw_element<T>(raw[u], j) * scale);
        if (pack < packs) tn_store_pack(to + pack * n, scaled);
    }
    if (blockIdx.x == 0 && packs * n + threadIdx.x < numel)
        to[packs * n + threadIdx.x] = tn_narrow<T>(tn_widen(from[packs * n + threadIdx.x]) * scale);
}

template <typename T, typename By>
static void launch_scaled(const tn_tensor *to, const tn_tensor *from, const tn_tensor *dout, bool packed, cudaStream_t stream) {
    int64_t packs = to->numel / tn_pack<T>::n;
    if constexpr (sizeof(T) < 8) {
        if (packed && packs > 0) {
            scale_packs<T, By><<<tn_blocks(packs, SCALED_THREADS * SCALED_UNROLL), SCALED_THREADS, 0, stream>>>(
                (T *)to->data, (const T *)from->data, (const By *)dout->data, packs, to->numel);
            return;
        }
    }
    scale_elements<T, By><<<tn_blocks(to->numel, SCALED_THREADS), SCALED_THREADS, 0, stream>>>((T *)to->data, (const T *)from->data,
                                                                                               (const By *)dout->data, to->numel);
}

extern "C" tn_status tn_entropy_scaled_cuda(tn_device *device, const tn_tensor *to, const tn_tensor *from, const tn_tensor *dout,
                                            void *stream) {
    bool packed = device->cuda_path != TN_CUDA_PLAIN && tn_aligned16(to->data) && tn_aligned16(from->data);
    if (to->numel == 0) return TN_OK;
    if (to->dtype != dout->dtype) launch_scaled<tn_cuda_bf16, float>(to, from, dout, packed, (cudaStream_t)stream);
    else TN_WITH_FLOAT(to->dtype, T, (launch_scaled<T, T>(to, from, dout, packed, (cudaStream_t)stream)));
    return tn_cuda_said(device, (int)cudaGetLastError(), "linear_cross_entropy backward");
}
