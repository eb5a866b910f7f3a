/* Softmax along any axis, forward and backward.
 *
 * Along the last axis a row belongs to one warp (up to 1024 elements of bf16, 512 of f32) or to one block, which keeps it in
 * registers: x is read once and o written once (2T; backward reads o and do and writes dx, 3T). Rows too long for a block's registers
 * are walked several times, mostly in L2.
 *
 * Along another axis the tensor is [outer, axis, inner]: a block of 32 x 8 threads owns 32 neighbouring packs of columns, its eight
 * rows of threads each walk an eighth of the axis with a running maximum and sum, which are merged at the end; then the columns are
 * walked again. Nothing is transposed. The second walk finds the slab in L2 where outer slabs are small. */
#include "act_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../activation_cuda.cuh"
#include "../op_support.h"

template <typename W> __device__ __forceinline__ W lowest();
template <> __device__ __forceinline__ double lowest<double>() { return -INFINITY; }
template <> __device__ __forceinline__ float lowest<float>() { return -INFINITY; }

template <typename W> __device__ __forceinline__ W weight_of(W x, W max) { return tn_exp_of(x - max); }

/* ---- the last axis ---- */

/* A row in registers: THREADS threads hold PACKS packs each; columns beyond the row count as minus infinity. With Packed false a pack
 * is one element, for any alignment and width. */
template <typename T, int PACKS, bool Packed> struct row_in_registers {
    static constexpr int n = Packed ? tn_pack<T>::n : 1;
    tn_wide<T> at[PACKS][n];

    __device__ __forceinline__ void load(const T *row, int64_t columns, int thread, int threads, tn_wide<T> beyond) {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = (int64_t)(p * threads + thread) * n;
            if (column < columns) {
                if (Packed) {
                    tn_pack<T> pack = tn_load_pack(row + column);
#pragma unroll
                    for (int j = 0; j < n; j++) at[p][j] = tn_widen(pack.at[j]);
                } else {
                    at[p][0] = tn_widen(row[column]);
                }
            } else {
#pragma unroll
                for (int j = 0; j < n; j++) at[p][j] = beyond;
            }
        }
    }

    __device__ __forceinline__ void store(T *row, int64_t columns, int thread, int threads) const {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = (int64_t)(p * threads + thread) * n;
            if (column >= columns) continue;
            if (Packed) {
                tn_pack<T> pack;
#pragma unroll
                for (int j = 0; j < n; j++) pack.at[j] = tn_narrow<T>(at[p][j]);
                tn_store_pack(row + column, pack);
            } else {
                row[column] = tn_narrow<T>(at[p][0]);
            }
        }
    }
};

/* WARPS warps work on one row; a block of 256 threads has 8 / WARPS rows (WARPS = 1), or one row (WARPS = warps of the block). */
template <typename T, int PACKS, bool Packed, bool OneWarp> __global__ void softmax_rows(T *o, const T *x, int64_t rows, int64_t columns) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    int per_block = OneWarp ? blockDim.x / TN_WARP : 1, threads = OneWarp ? TN_WARP : blockDim.x;
    int thread = OneWarp ? threadIdx.x % TN_WARP : threadIdx.x;
    for (int64_t row = (int64_t)blockIdx.x * per_block + (OneWarp ? threadIdx.x / TN_WARP : 0); row < rows; row += (int64_t)gridDim.x * per_block) {
        row_in_registers<T, PACKS, Packed> values;
        values.load(x + row * columns, columns, thread, threads, lowest<W>());
        W max = lowest<W>(), sum = 0;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < values.n; j++) max = values.at[p][j] > max ? values.at[p][j] : max;
        max = OneWarp ? tn_warp_max(max) : tn_block_max(max, lowest<W>(), scratch);
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < values.n; j++) {
                values.at[p][j] = weight_of(values.at[p][j], max);
                sum += values.at[p][j];
            }
        sum = OneWarp ? tn_warp_sum(sum) : tn_block_sum(sum, scratch);
        W scale = (W)1 / sum;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < values.n; j++) values.at[p][j] *= scale;
        values.store(o + row * columns, columns, thread, threads);
    }
}

template <typename T, int PACKS, bool Packed, bool OneWarp> __global__ void softmax_rows_backward(T *dx, const T *o, const T *d, int64_t rows, int64_t columns) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    int per_block = OneWarp ? blockDim.x / TN_WARP : 1, threads = OneWarp ? TN_WARP : blockDim.x;
    int thread = OneWarp ? threadIdx.x % TN_WARP : threadIdx.x;
    for (int64_t row = (int64_t)blockIdx.x * per_block + (OneWarp ? threadIdx.x / TN_WARP : 0); row < rows; row += (int64_t)gridDim.x * per_block) {
        row_in_registers<T, PACKS, Packed> values, upstream;
        values.load(o + row * columns, columns, thread, threads, 0);
        upstream.load(d + row * columns, columns, thread, threads, 0);
        W dot = 0;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < values.n; j++) dot += values.at[p][j] * upstream.at[p][j];
        dot = OneWarp ? tn_warp_sum(dot) : tn_block_sum(dot, scratch);
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < values.n; j++) values.at[p][j] *= upstream.at[p][j] - dot;
        values.store(dx + row * columns, columns, thread, threads);
    }
}

/* Rows of any length: maximum, sum and result are three walks. */
template <typename T> __global__ void softmax_long_rows(T *o, const T *x, int64_t rows, int64_t columns) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *from = x + row * columns;
        W max = lowest<W>(), sum = 0;
        for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
            W value = tn_widen(from[i]);
            max = value > max ? value : max;
        }
        max = tn_block_max(max, lowest<W>(), scratch);
        for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) sum += weight_of(tn_widen(from[i]), max);
        W scale = (W)1 / tn_block_sum(sum, scratch);
        for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) o[row * columns + i] = tn_narrow<T>(weight_of(tn_widen(from[i]), max) * scale);
    }
}

template <typename T> __global__ void softmax_long_rows_backward(T *dx, const T *o, const T *d, int64_t rows, int64_t columns) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        W dot = 0;
        for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) dot += tn_widen(o[row * columns + i]) * tn_widen(d[row * columns + i]);
        dot = tn_block_sum(dot, scratch);
        for (int64_t i = threadIdx.x; i < columns; i += blockDim.x)
            dx[row * columns + i] = tn_narrow<T>(tn_widen(o[row * columns + i]) * (tn_widen(d[row * columns + i]) - dot));
    }
}

/* PACKS packs for each of the row's threads hold the row; short rows take a warp, others a block. */
#define WITH_ROW_SHAPE(T, packed, columns, PACKS, ONE_WARP, THREADS, LAUNCH, LAUNCH_LONG)                              \
    do {                                                                                                               \
        int64_t packs_ = ((columns) + ((packed) ? tn_pack<T>::n : 1) - 1) / ((packed) ? tn_pack<T>::n : 1);            \
        if (packs_ <= 32) { constexpr int PACKS = 1; constexpr bool ONE_WARP = true; constexpr int THREADS = 256; LAUNCH; }                  \
        else if (packs_ <= 64) { constexpr int PACKS = 2; constexpr bool ONE_WARP = true; constexpr int THREADS = 256; LAUNCH; }             \
        else if (packs_ <= 128) { constexpr int PACKS = 4; constexpr bool ONE_WARP = true; constexpr int THREADS = 256; LAUNCH; }            \
        else if (packs_ <= 512) { constexpr int PACKS = 2; constexpr bool ONE_WARP = false; constexpr int THREADS = 256; LAUNCH; }           \
        else if (packs_ <= 2048) { constexpr int PACKS = 4; constexpr bool ONE_WARP = false; constexpr int THREADS = 512; LAUNCH; }          \
        else { LAUNCH_LONG; }                                                                                          \
    } while (0)

#define ROWS_OF(rows, one_warp, threads) tn_blocks((rows), (one_warp) ? (threads) / TN_WARP : 1)

template <typename T, bool Packed> static void forward_rows(T *o, const T *x, int64_t rows, int64_t columns, cudaStream_t stream) {
    WITH_ROW_SHAPE(T, Packed, columns, PACKS, ONE_WARP, THREADS,
                   (softmax_rows<T, PACKS, Packed, ONE_WARP><<<ROWS_OF(rows, ONE_WARP, THREADS), THREADS, 0, stream>>>(o, x, rows, columns)),
                   (softmax_long_rows<T><<<tn_blocks(rows, 1), 1024, 0, stream>>>(o, x, rows, columns)));
}

template <typename T, bool Packed> static void backward_rows(T *dx, const T *o, const T *d, int64_t rows, int64_t columns, cudaStream_t stream) {
    WITH_ROW_SHAPE(T, Packed, columns, PACKS, ONE_WARP, THREADS,
                   (softmax_rows_backward<T, PACKS, Packed, ONE_WARP><<<ROWS_OF(rows, ONE_WARP, THREADS), THREADS, 0, stream>>>(dx, o, d, rows, columns)),
                   (softmax_long_rows_backward<T><<<tn_blocks(rows, 1), 1024, 0, stream>>>(dx, o, d, rows, columns)));
}

/* ---- another axis ---- */

#define COLUMNS_X 32
#define SLICES_Y 8

/* The slab's corner that a block owns. Columns beyond the inner size are idle. */
template <int N> struct slab {
    int64_t base, axis, inner, column, begin, end;
    bool idle;
    __device__ __forceinline__ slab(int64_t axis_size, int64_t inner_size, int64_t block, int64_t blocks_per_outer) {
        axis = axis_size;
        inner = inner_size;
        column = (block % blocks_per_outer * COLUMNS_X + threadIdx.x) * N;
        base = block / blocks_per_outer * axis * inner + column;
        int64_t slice = (axis + SLICES_Y - 1) / SLICES_Y;
        begin = threadIdx.y * slice;
        end = begin + slice < axis ? begin + slice : axis;
        idle = column >= inner;
    }
};

template <typename T, bool Packed> __device__ __forceinline__ void load_columns(const T *from, tn_wide<T> *to) {
    if (Packed) {
        tn_pack<T> pack = tn_load_pack(from);
#pragma unroll
        for (int j = 0; j < tn_pack<T>::n; j++) to[j] = tn_widen(pack.at[j]);
    } else {
        to[0] = tn_widen(from[0]);
    }
}
template <typename T, bool Packed> __device__ __forceinline__ void store_columns(T *to, const tn_wide<T> *from) {
    if (Packed) {
        tn_pack<T> pack;
#pragma unroll
        for (int j = 0; j < tn_pack<T>::n; j++) pack.at[j] = tn_narrow<T>(from[j]);
        tn_store_pack(to, pack);
    } else {
        to[0] = tn_narrow<T>(from[0]);
    }
}

template <typename T, bool Packed> __global__ void softmax_columns(T *o, const T *x, int64_t outer, int64_t axis, int64_t inner) {
    typedef tn_wide<T> W;
    constexpr int n = Packed ? tn_pack<T>::n : 1;
    __shared__ W all_max[SLICES_Y][COLUMNS_X][n], all_sum[SLICES_Y][COLUMNS_X][n];
    int64_t per_outer = (inner + COLUMNS_X * n - 1) / (COLUMNS_X * n);
    for (int64_t block = blockIdx.x; block < outer * per_outer; block += gridDim.x) {
        slab<n> s(axis, inner, block, per_outer);
        W max[n], sum[n], value[n];
#pragma unroll
        for (int j = 0; j < n; j++) max[j] = lowest<W>(), sum[j] = 0;
        for (int64_t i = s.begin; i < s.end && !s.idle; i++) {
            load_columns<T, Packed>(x + s.base + i * inner, value);
#pragma unroll
            for (int j = 0; j < n; j++) {
                /* One exponential an element: of the smaller by the larger. Equal infinities count as distance zero. */
                W above = value[j] > max[j] ? value[j] : max[j], below = value[j] > max[j] ? max[j] : value[j];
                W weight = below == above ? (W)1 : weight_of(below, above);
                sum[j] = value[j] > max[j] ? sum[j] * weight + (W)1 : sum[j] + weight;
                max[j] = above;
            }
        }
#pragma unroll
        for (int j = 0; j < n; j++) all_max[threadIdx.y][threadIdx.x][j] = max[j], all_sum[threadIdx.y][threadIdx.x][j] = sum[j];
        __syncthreads();
#pragma unroll
        for (int j = 0; j < n; j++) {
            max[j] = lowest<W>(), sum[j] = 0;
            for (int y = 0; y < SLICES_Y; y++) max[j] = all_max[y][threadIdx.x][j] > max[j] ? all_max[y][threadIdx.x][j] : max[j];
            for (int y = 0; y < SLICES_Y; y++)
                sum[j] += all_max[y][threadIdx.x][j] == max[j] ? all_sum[y][threadIdx.x][j]
                                                               : all_sum[y][threadIdx.x][j] * weight_of(all_max[y][threadIdx.x][j], max[j]);
            sum[j] = (W)1 / sum[j];
        }
        for (int64_t i = s.begin; i < s.end && !s.idle; i++) {
            load_columns<T, Packed>(x + s.base + i * inner, value);
#pragma unroll
            for (int j = 0; j < n; j++) value[j] = weight_of(value[j], max[j]) * sum[j];
            store_columns<T, Packed>(o + s.base + i * inner, value);
        }
        __syncthreads();
    }
}

template <typename T, bool Packed> __global__ void softmax_columns_backward(T *dx, const T *o, const T *d, int64_t outer, int64_t axis, int64_t inner) {
    typedef tn_wide<T> W;
    constexpr int n = Packed ? tn_pack<T>::n : 1;
    __shared__ W all_dots[SLICES_Y][COLUMNS_X][n];
    int64_t per_outer = (inner + COLUMNS_X * n - 1) / (COLUMNS_X * n);
    for (int64_t block = blockIdx.x; block < outer * per_outer; block += gridDim.x) {
        slab<n> s(axis, inner, block, per_outer);
        W dot[n], value[n], upstream[n];
#pragma unroll
        for (int j = 0; j < n; j++) dot[j] = 0;
        for (int64_t i = s.begin; i < s.end && !s.idle; i++) {
            load_columns<T, Packed>(o + s.base + i * inner, value);
            load_columns<T, Packed>(d + s.base + i * inner, upstream);
#pragma unroll
            for (int j = 0; j < n; j++) dot[j] += value[j] * upstream[j];
        }
#pragma unroll
        for (int j = 0; j < n; j++) all_dots[threadIdx.y][threadIdx.x][j] = dot[j];
        __syncthreads();
#pragma unroll
        for (int j = 0; j < n; j++) {
            dot[j] = 0;
            for (int y = 0; y < SLICES_Y; y++) dot[j] += all_dots[y][threadIdx.x][j];
        }
        for (int64_t i = s.begin; i < s.end && !s.idle; i++) {
            load_columns<T, Packed>(o + s.base + i * inner, value);
            load_columns<T, Packed>(d + s.base + i * inner, upstream);
#pragma unroll
            for (int j = 0; j < n; j++) value[j] *= upstream[j] - dot[j];
            store_columns<T, Packed>(dx + s.base + i * inner, value);
        }
        __syncthreads();
    }
}

/* ---- choice ---- */

typedef struct softmax_shape {
    int64_t outer, axis, inner;
} softmax_shape;

static softmax_shape shape_of(const tn_op_call *call, const tn_tensor *like) {
    const tn_act_args *args = (const tn_act_args *)call->args;
    tn_around around = tn_around_axis(like->shape, like->axes, tn_axis_of(args->dim, like->axes));
    return softmax_shape{around.outer, around.axis, around.inner};
}

template <typename T> static bool packs_fit(const tn_op_call *call, int64_t contiguous, const void *a, const void *b, const void *c) {
    return call->device->cuda_path != TN_CUDA_PLAIN && sizeof(T) < 8 && contiguous % tn_pack<T>::n == 0 && tn_aligned16(a) && tn_aligned16(b) && tn_aligned16(c);
}

static unsigned column_blocks(const softmax_shape &s, int n) { return tn_blocks(s.outer * ((s.inner + COLUMNS_X * n - 1) / (COLUMNS_X * n)), 1); }

template <typename T> static void forward(tn_op_call *call, const softmax_shape &s) {
    T *o = (T *)call->out[0]->data;
    const T *x = (const T *)call->in[0]->data;
    cudaStream_t stream = (cudaStream_t)call->stream;
    dim3 block(COLUMNS_X, SLICES_Y);
    if (s.inner == 1) {
        if (packs_fit<T>(call, s.axis, o, x, x)) forward_rows<T, true>(o, x, s.outer, s.axis, stream);
        else forward_rows<T, false>(o, x, s.outer, s.axis, stream);
    } else if (packs_fit<T>(call, s.inner, o, x, x)) {
        softmax_columns<T, true><<<column_blocks(s, tn_pack<T>::n), block, 0, stream>>>(o, x, s.outer, s.axis, s.inner);
    } else {
        softmax_columns<T, false><<<column_blocks(s, 1), block, 0, stream>>>(o, x, s.outer, s.axis, s.inner);
    }
}

template <typename T> static void backward(tn_op_call *call, const softmax_shape &s) {
    T *dx = (T *)call->din[0]->data;
    const T *o = (const T *)call->out[0]->data, *d = (const T *)call->dout[0]->data;
    cudaStream_t stream = (cudaStream_t)call->stream;
    dim3 block(COLUMNS_X, SLICES_Y);
    if (s.inner == 1) {
        if (packs_fit<T>(call, s.axis, dx, o, d)) backward_rows<T, true>(dx, o, d, s.outer, s.axis, stream);
        else backward_rows<T, false>(dx, o, d, s.outer, s.axis, stream);
    } else if (packs_fit<T>(call, s.inner, dx, o, d)) {
        softmax_columns_backward<T, true><<<column_blocks(s, tn_pack<T>::n), block, 0, stream>>>(dx, o, d, s.outer, s.axis, s.inner);
    } else {
        softmax_columns_backward<T, false><<<column_blocks(s, 1), block, 0, stream>>>(dx, o, d, s.outer, s.axis, s.inner);
    }
}

extern "C" tn_status tn_softmax_forward_cuda(tn_op_call *call) {
    softmax_shape s = shape_of(call, call->in[0]);
    if (call->in[0]->numel == 0) return TN_OK;
    TN_WITH_FLOAT(call->in[0]->dtype, T, (forward<T>(call, s)));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "softmax forward");
}

extern "C" tn_status tn_softmax_backward_cuda(tn_op_call *call) {
    softmax_shape s = shape_of(call, call->out[0]);
    if (call->out[0]->numel == 0) return TN_OK;
    TN_WITH_FLOAT(call->out[0]->dtype, T, (backward<T>(call, s)));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "softmax backward");
}
