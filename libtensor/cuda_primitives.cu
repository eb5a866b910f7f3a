/* Fill, copy, accumulate, random numbers and searches over any strides and dtypes.
 *
 * Dense tensors go 16 bytes a thread; a copy between different layouts goes through 32 x 33 tiles in shared memory, so
 * that both sides are read and written along their own contiguous axis; everything else walks a merged loop nest. */
#include "cuda_primitives.h"

#include <limits.h>

#include "cuda_common.cuh"
#include "philox.h"

#define THREADS 256

/* ---- conversions: float to integer truncates toward zero and saturates, NaN gives 0; anything to bool is != 0 ---- */

struct tn_bool {
    uint8_t value;
};

template <typename To, typename From> struct convert {
    static __device__ __forceinline__ To from(From x) { return (To)x; }
};
template <typename To> struct integer_limits;
template <> struct integer_limits<int64_t> { static __device__ __forceinline__ int64_t low() { return LLONG_MIN; } static __device__ __forceinline__ int64_t high() { return LLONG_MAX; } };
template <> struct integer_limits<int32_t> { static __device__ __forceinline__ int32_t low() { return INT_MIN; } static __device__ __forceinline__ int32_t high() { return INT_MAX; } };
template <> struct integer_limits<uint8_t> { static __device__ __forceinline__ uint8_t low() { return 0; } static __device__ __forceinline__ uint8_t high() { return 255; } };

template <typename To> __device__ __forceinline__ To saturate(double x) {
    if (x != x) return 0;
    if (x <= (double)integer_limits<To>::low()) return integer_limits<To>::low();
    if (x >= (double)integer_limits<To>::high()) return integer_limits<To>::high();
    return (To)x;
}
#define SATURATING(To)                                                                                                 \
    template <> struct convert<To, double> { static __device__ __forceinline__ To from(double x) { return saturate<To>(x); } };             \
    template <> struct convert<To, float> { static __device__ __forceinline__ To from(float x) { return saturate<To>((double)x); } };       \
    template <> struct convert<To, tn_cuda_bf16> { static __device__ __forceinline__ To from(tn_cuda_bf16 x) { return saturate<To>((double)__bfloat162float(x)); } };
SATURATING(int64_t)
SATURATING(int32_t)
SATURATING(uint8_t)

/* bf16 takes part through f32 (f64 is rounded once, directly). */
template <typename From> struct convert<tn_cuda_bf16, From> {
    static __device__ __forceinline__ tn_cuda_bf16 from(From x) { return __double2bfloat16((double)x); }
};
template <> struct convert<tn_cuda_bf16, tn_cuda_bf16> { static __device__ __forceinline__ tn_cuda_bf16 from(tn_cuda_bf16 x) { return x; } };
template <> struct convert<tn_cuda_bf16, float> { static __device__ __forceinline__ tn_cuda_bf16 from(float x) { return __float2bfloat16_rn(x); } };
template <> struct convert<float, tn_cuda_bf16> { static __device__ __forceinline__ float from(tn_cuda_bf16 x) { return __bfloat162float(x); } };
template <> struct convert<double, tn_cuda_bf16> { static __device__ __forceinline__ double from(tn_cuda_bf16 x) { return (double)__bfloat162float(x); } };

__device__ __forceinline__ bool is_nonzero(tn_cuda_bf16 x) { return __bfloat162float(x) != 0; }
template <typename From> __device__ __forceinline__ bool is_nonzero(From x) { return x != 0; }
template <typename From> struct convert<tn_bool, From> {
    static __device__ __forceinline__ tn_bool from(From x) { return tn_bool{(uint8_t)is_nonzero(x)}; }
};
template <typename To> struct convert<To, tn_bool> {
    static __device__ __forceinline__ To from(tn_bool x) { return convert<To, uint8_t>::from(x.value != 0); }
};
template <> struct convert<tn_bool, tn_bool> { static __device__ __forceinline__ tn_bool from(tn_bool x) { return x; } };
template <> struct convert<tn_cuda_bf16, tn_bool> {
    static __device__ __forceinline__ tn_cuda_bf16 from(tn_bool x) { return __float2bfloat16_rn(x.value ? 1.0f : 0.0f); }
};

/* Runs `body` with T the C++ type of any dtype. */
#define WITH_DTYPE(dtype, T, ...)                                                                                      \
    switch (dtype) {                                                                                                   \
    case TN_F64: { using T = double; __VA_ARGS__; } break;                                                             \
    case TN_F32: { using T = float; __VA_ARGS__; } break;                                                              \
    case TN_BF16: { using T = tn_cuda_bf16; __VA_ARGS__; } break;                                                      \
    case TN_I64: { using T = int64_t; __VA_ARGS__; } break;                                                            \
    case TN_I32: { using T = int32_t; __VA_ARGS__; } break;                                                            \
    case TN_U8: { using T = uint8_t; __VA_ARGS__; } break;                                                             \
    default: { using T = tn_bool; __VA_ARGS__; } break;                                                                \
    }

static tn_nest nest_of(const tn_tensor *a, const tn_tensor *b) {
    const int64_t *strides[2] = {a->stride, b ? b->stride : a->stride};
    return tn_make_nest(a->axes, a->shape, b ? 2 : 1, strides);
}

/* ---- fill ---- */

template <typename T> __global__ void fill_nest(T *to, tn_nest nest, double value) {
    T converted = convert<T, double>::from(value);
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t offset;
        tn_nest_offsets<1, int64_t>(nest, i, &offset);
        to[offset] = converted;
    }
}

/* n whole packs, then the elements after them. */
template <typename T> __global__ void fill_dense(T *to, int64_t numel, double value) {
    T converted = convert<T, double>::from(value);
    tn_pack<T> pack;
#pragma unroll
    for (int j = 0; j < tn_pack<T>::n; j++) pack.at[j] = converted;
    int64_t n_packs = numel / tn_pack<T>::n, first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first; i < n_packs; i += step) tn_store_pack(to + i * tn_pack<T>::n, pack);
    for (int64_t i = n_packs * tn_pack<T>::n + first; i < numel; i += step) to[i] = converted;
}

extern "C" int tn_cuda_fill(tn_tensor *to, double value, void *stream) {
    if (to->numel == 0) return 0;
    tn_nest nest = nest_of(to, NULL);
    WITH_DTYPE(to->dtype, T, {
        if (tn_nest_is_dense(nest) && tn_aligned16(to->data))
            fill_dense<T><<<tn_blocks(to->numel, THREADS * tn_pack<T>::n), THREADS, 0, (cudaStream_t)stream>>>((T *)to->data, to->numel, value);
        else
            fill_nest<T><<<tn_blocks(to->numel, THREADS), THREADS, 0, (cudaStream_t)stream>>>((T *)to->data, nest, value);
    });
    return (int)cudaGetLastError();
}

/* ---- copy ---- */

template <typename To, typename From, typename Index> __global__ void copy_nest(To *to, const From *from, tn_nest nest) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t offset[2];
        tn_nest_offsets<2, Index>(nest, (Index)i, offset);
        to[offset[0]] = convert<To, From>::from(from[offset[1]]);
    }
}

/* Eight elements a thread: the narrower side moves at least 8 bytes at a time. */
template <typename To, typename From> __global__ void copy_dense(To *to, const From *from, int64_t numel) {
    const int n = 8;
    struct alignas(sizeof(From) * n > 16 ? 16 : sizeof(From) * n) from_group { From at[n]; };
    struct alignas(sizeof(To) * n > 16 ? 16 : sizeof(To) * n) to_group { To at[n]; };
    int64_t n_groups = numel / n, first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first; i < n_groups; i += step) {
        from_group read = ((const from_group *)from)[i];
        to_group written;
#pragma unroll
        for (int j = 0; j < n; j++) written.at[j] = convert<To, From>::from(read.at[j]);
        ((to_group *)to)[i] = written;
    }
    for (int64_t i = n_groups * n + first; i < numel; i += step) to[i] = convert<To, From>::from(from[i]);
}

#define TILE 32
#define TILE_ROWS 8

/* Axis `x` is contiguous in `from`, axis `y` in `to`; a block moves one TILE x TILE tile of them for one item of the others. */
struct tiling {
    tn_nest rest;
    int64_t size_x, size_y, to_stride_x, from_stride_y, tiles_x, tiles_y;
};

template <typename To, typename From> __global__ void copy_tiles(To *to, const From *from, tiling t) {
    __shared__ From tile[TILE][TILE + 1];
    int64_t n_tiles = t.rest.numel * t.tiles_x * t.tiles_y;
    for (int64_t block = blockIdx.x; block < n_tiles; block += gridDim.x) {
        int64_t offset[2], x0 = block % t.tiles_x * TILE, y0 = block / t.tiles_x % t.tiles_y * TILE;
        tn_nest_offsets<2, int64_t>(t.rest, block / (t.tiles_x * t.tiles_y), offset);
        for (int row = threadIdx.y; row < TILE; row += TILE_ROWS)
            if (x0 + threadIdx.x < t.size_x && y0 + row < t.size_y)
                tile[row][threadIdx.x] = from[offset[1] + x0 + threadIdx.x + (y0 + row) * t.from_stride_y];
        __syncthreads();
        for (int row = threadIdx.y; row < TILE; row += TILE_ROWS)
            if (y0 + threadIdx.x < t.size_y && x0 + row < t.size_x)
                to[offset[0] + y0 + threadIdx.x + (x0 + row) * t.to_stride_x] = convert<To, From>::from(tile[threadIdx.x][row]);
        __syncthreads();
    }
}

static int axis_with_stride_one(const tn_nest &nest, int operand) {
    for (int i = 0; i < nest.axes; i++)
        if (nest.stride[operand][i] == 1) return i;
    return -1;
}

/* True where tiles pay: both sides have a contiguous axis, two different ones, both long. */
static bool make_tiling(const tn_nest &nest, tiling *t) {
    int y = axis_with_stride_one(nest, 0), x = axis_with_stride_one(nest, 1);
    const int64_t short_axis = 8;
    if (x < 0 || y < 0 || x == y || nest.shape[x] < short_axis || nest.shape[y] < short_axis) return false;
    *t = tiling{{}, nest.shape[x], nest.shape[y], nest.stride[0][x], nest.stride[1][y], (nest.shape[x] + TILE - 1) / TILE, (nest.shape[y] + TILE - 1) / TILE};
    int64_t shape[TN_MAX_AXES], to[TN_MAX_AXES], from[TN_MAX_AXES];
    int n = 0;
    for (int i = 0; i < nest.axes; i++) {
        if (i == x || i == y) continue;
        shape[n] = nest.shape[i];
        to[n] = nest.stride[0][i];
        from[n++] = nest.stride[1][i];
    }
    const int64_t *strides[2] = {to, from};
    t->rest = tn_make_nest(n, shape, 2, strides);
    return true;
}

/* The same copy in units of 16 bytes, where both sides' innermost axis is contiguous and everything is aligned. */
static bool widen_nest(tn_nest *nest, const void *to, const void *from, size_t element_bytes) {
    int last = nest->axes - 1;
    int64_t n = 16 / (int64_t)element_bytes;
    if (nest->stride[0][last] != 1 || nest->stride[1][last] != 1 || nest->shape[last] % n || !tn_aligned16(to) || !tn_aligned16(from)) return false;
    for (int i = 0; i < last; i++)
        if (nest->stride[0][i] % n || nest->stride[1][i] % n) return false;
    for (int i = 0; i < last; i++) {
        nest->stride[0][i] /= n;
        nest->stride[1][i] /= n;
    }
    nest->shape[last] /= n;
    nest->numel /= n;
    return true;
}

struct alignas(16) sixteen_bytes { uint32_t word[4]; };
template <> struct convert<sixteen_bytes, sixteen_bytes> { static __device__ __forceinline__ sixteen_bytes from(sixteen_bytes x) { return x; } };

template <typename To, typename From> static void launch_nest(To *to, const From *from, const tn_nest &nest, cudaStream_t stream) {
    unsigned blocks = tn_blocks(nest.numel, THREADS);
    if (nest.numel <= INT_MAX) copy_nest<To, From, uint32_t><<<blocks, THREADS, 0, stream>>>(to, from, nest);
    else copy_nest<To, From, int64_t><<<blocks, THREADS, 0, stream>>>(to, from, nest);
}

template <typename To, typename From> static int copy_as(tn_tensor *to, const tn_tensor *from, tn_nest nest, bool same_dtype, cudaStream_t stream) {
    tiling t;
    if (tn_nest_is_dense(nest) && tn_aligned16(to->data) && tn_aligned16(from->data)) {
        if (same_dtype) return (int)cudaMemcpyAsync(to->data, from->data, (size_t)to->numel * sizeof(To), cudaMemcpyDeviceToDevice, stream);
        copy_dense<To, From><<<tn_blocks(to->numel, THREADS * 8), THREADS, 0, stream>>>((To *)to->data, (const From *)from->data, to->numel);
    } else if (same_dtype && widen_nest(&nest, to->data, from->data, sizeof(To))) {
        launch_nest((sixteen_bytes *)to->data, (const sixteen_bytes *)from->data, nest, stream);
    } else if (make_tiling(nest, &t)) {
        copy_tiles<To, From><<<tn_blocks(t.rest.numel * t.tiles_x * t.tiles_y, 1), dim3(TILE, TILE_ROWS), 0, stream>>>((To *)to->data, (const From *)from->data, t);
    } else {
        launch_nest((To *)to->data, (const From *)from->data, nest, stream);
    }
    return (int)cudaGetLastError();
}

extern "C" int tn_cuda_copy(tn_tensor *to, const tn_tensor *from, void *stream) {
    if (to->numel == 0) return 0;
    tn_nest nest = nest_of(to, from);
    int error = 0;
    WITH_DTYPE(to->dtype, To, WITH_DTYPE(from->dtype, From, error = (copy_as<To, From>(to, from, nest, to->dtype == from->dtype, (cudaStream_t)stream))));
    return error;
}

/* ---- accumulate ---- */

template <typename T> __global__ void accumulate_nest(T *to, const T *from, tn_nest nest) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t offset[2];
        tn_nest_offsets<2, int64_t>(nest, i, offset);
        to[offset[0]] = tn_narrow<T>(tn_widen(to[offset[0]]) + tn_widen(from[offset[1]]));
    }
}

template <typename T> __global__ void accumulate_dense(T *to, const T *from, int64_t numel) {
    const int n = tn_pack<T>::n;
    int64_t n_packs = numel / n, first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first; i < n_packs; i += step) {
        tn_pack<T> a = tn_load_pack(to + i * n), b = tn_load_pack(from + i * n);
#pragma unroll
        for (int j = 0; j < n; j++) a.at[j] = tn_narrow<T>(tn_widen(a.at[j]) + tn_widen(b.at[j]));
        tn_store_pack(to + i * n, a);
    }
    for (int64_t i = n_packs * n + first; i < numel; i += step) to[i] = tn_narrow<T>(tn_widen(to[i]) + tn_widen(from[i]));
}

extern "C" int tn_cuda_accumulate(tn_tensor *to, const tn_tensor *from, void *stream) {
    if (to->numel == 0) return 0;
    tn_nest nest = nest_of(to, from);
    TN_WITH_FLOAT(to->dtype, T, {
        if (tn_nest_is_dense(nest) && tn_aligned16(to->data) && tn_aligned16(from->data))
            accumulate_dense<T><<<tn_blocks(to->numel, THREADS * tn_pack<T>::n), THREADS, 0, (cudaStream_t)stream>>>((T *)to->data, (const T *)from->data, to->numel);
        else
            accumulate_nest<T><<<tn_blocks(to->numel, THREADS), THREADS, 0, (cudaStream_t)stream>>>((T *)to->data, (const T *)from->data, nest);
    });
    return (int)cudaGetLastError();
}

/* ---- arange ---- */

template <typename T> __global__ void arange_dense(T *to, int64_t numel) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += (int64_t)gridDim.x * blockDim.x)
        to[i] = convert<T, int64_t>::from(i);
}

extern "C" int tn_cuda_arange(tn_tensor *to, void *stream) {
    if (to->numel == 0) return 0;
    WITH_DTYPE(to->dtype, T, (arange_dense<T><<<tn_blocks(to->numel, THREADS), THREADS, 0, (cudaStream_t)stream>>>((T *)to->data, to->numel)));
    return (int)cudaGetLastError();
}

/* ---- random numbers: a thread makes the two draws of one Philox block, with the same arithmetic as the CPU ---- */

template <typename T> struct random_float;
template <> struct random_float<double> {
    static __device__ __forceinline__ double below(double x, double high) { return tn_philox_below_f64(x, high); }
};
template <> struct random_float<float> {
    static __device__ __forceinline__ float below(double x, double high) { return tn_philox_below_f32(x, high); }
};
template <> struct random_float<tn_cuda_bf16> {
    static __device__ __forceinline__ tn_cuda_bf16 below(double x, double high) { return __ushort_as_bfloat16(tn_philox_below_bf16(x, high)); }
};

template <typename T> struct drawn {
    static __device__ __forceinline__ T number(double x, double high) { return convert<T, double>::from(x); }
};
#define DRAWN_FLOAT(T)                                                                                                 \
    template <> struct drawn<T> { static __device__ __forceinline__ T number(double x, double high) { return random_float<T>::below(x, high); } };
DRAWN_FLOAT(double)
DRAWN_FLOAT(float)
DRAWN_FLOAT(tn_cuda_bf16)

template <typename T> __global__ void random_dense(T *to, int64_t numel, tn_random_spec spec, double high) {
    int64_t skip = (int64_t)(spec.counter & 1), n_blocks = (numel + skip + 1) / 2;
    for (int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; block < n_blocks; block += (int64_t)gridDim.x * blockDim.x) {
        uint64_t bits[2];
        tn_philox_draws(spec.seed, (spec.counter >> 1) + (uint64_t)block, &bits[0], &bits[1]);
        double value[2];
        if (spec.kind == TN_RANDOM_NORMAL) tn_philox_normal_pair(bits[0], bits[1], &value[0], &value[1]);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int64_t i = 2 * block + j - skip;
            if (i < 0 || i >= numel) continue;
            if (spec.kind == TN_RANDOM_INTEGER) to[i] = convert<T, int64_t>::from(tn_philox_integer(bits[j], spec.low, spec.high));
            else if (spec.kind == TN_RANDOM_NORMAL) to[i] = drawn<T>::number(tn_philox_scale(value[j], spec.a, spec.b), high);
            else to[i] = drawn<T>::number(tn_philox_scale(tn_philox_uniform_f64(bits[j]), spec.a, __dsub_rn(spec.b, spec.a)), high);
        }
    }
}

extern "C" int tn_cuda_random(tn_tensor *to, const tn_random_spec *spec, void *stream) {
    if (to->numel == 0) return 0;
    if (spec->kind == TN_RANDOM_INTEGER && spec->low >= spec->high) return (int)cudaErrorInvalidValue;
    double high = spec->kind == TN_RANDOM_UNIFORM && spec->a < spec->b ? spec->b : INFINITY;
    WITH_DTYPE(to->dtype, T, (random_dense<T><<<tn_blocks((to->numel + 2) / 2, THREADS), THREADS, 0, (cudaStream_t)stream>>>((T *)to->data, to->numel, *spec, high)));
    return (int)cudaGetLastError();
}

/* ---- searches ---- */

__global__ void start_search(int64_t *found) { *found = LLONG_MAX; }
__global__ void end_search(int64_t *found) {
    if (*found == LLONG_MAX) *found = -1;
}

/* The minimum over integers does not depend on the order of its operands, so an atomic keeps the result fixed. */
__device__ __forceinline__ void note(int64_t *found, int64_t at) { atomicMin((long long *)found, (long long)at); }

template <typename T> __global__ void search_nonfinite(const T *from, tn_nest nest, int64_t *found) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t offset;
        tn_nest_offsets<1, int64_t>(nest, i, &offset);
        if (!isfinite(tn_widen(from[offset]))) note(found, i);
    }
}

__global__ void search_other_byte(const unsigned char *from, unsigned char byte, int64_t bytes, int64_t *found) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < bytes; i += (int64_t)gridDim.x * blockDim.x)
        if (from[i] != byte) note(found, i);
}

extern "C" int tn_cuda_find_nonfinite(const tn_tensor *t, int64_t *found, void *stream) {
    start_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    tn_nest nest = nest_of(t, NULL);
    if (t->numel > 0 && tn_dtype_size(t->dtype) && (t->dtype == TN_F64 || t->dtype == TN_F32 || t->dtype == TN_BF16))
        TN_WITH_FLOAT(t->dtype, T, (search_nonfinite<T><<<tn_blocks(t->numel, THREADS), THREADS, 0, (cudaStream_t)stream>>>((const T *)t->data, nest, found)));
    end_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    return (int)cudaGetLastError();
}

extern "C" int tn_cuda_find_other_byte(const void *from, unsigned char byte, size_t bytes, int64_t *found, void *stream) {
    start_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    if (bytes)
        search_other_byte<<<tn_blocks((int64_t)bytes, THREADS), THREADS, 0, (cudaStream_t)stream>>>((const unsigned char *)from, byte, (int64_t)bytes, found);
    end_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    return (int)cudaGetLastError();
}
