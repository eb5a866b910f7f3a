/* Linear attention in readable steps, for any dtype, width and alignment: every intermediate (qb, kb, y, ...) is written out in the wide
 * dtype, [slice][token][feature], for a run of slices at a time; a slice is one (batch, head). */
#ifndef TENON_LINEAR_ATTENTION_PLAIN_CUH
#define TENON_LINEAR_ATTENTION_PLAIN_CUH

#include "../../libtensor/cuda_common.cuh"
#include "../activation_cuda.cuh"
#include "../lrpe_grid.h"
#include "linear_attention_internal.h"

#define TN_LA_PLAIN_THREADS 128
#define TN_LA_PLAIN_ROOM ((int64_t)256 << 20) /* bytes that a run of slices may take, unless one alone needs more */

struct tn_la_run {
    int64_t first, count, heads; /* slices first .. first + count - 1 of b x heads */
};

/* How many slices make a run. */
static inline int64_t tn_la_plain_slices(const tn_la_problem *problem, int64_t bytes_of_one) {
    int64_t all = problem->b * problem->h, fit = TN_LA_PLAIN_ROOM / (bytes_of_one > 0 ? bytes_of_one : 1);
    if (fit > 32768) fit = 32768;
    if (fit < 1) fit = 1;
    return fit < all ? fit : all;
}

static inline dim3 tn_la_plain_grid(const tn_la_run &run, int64_t blocks_of_one) {
    const int64_t most = 0x7fffffff;
    return dim3((unsigned)(blocks_of_one < 1 ? 1 : blocks_of_one > most ? most : blocks_of_one), (unsigned)run.count);
}

/* Where a token's features lie, in elements. */
__device__ __forceinline__ int64_t tn_la_row(const tn_la_strides &stride, int64_t heads, int64_t slice, int64_t token) {
    return slice / heads * stride.batch + slice % heads * stride.head + token * stride.token;
}

/* Where the packed sequences of the one batch begin; without `cu` each batch is one sequence. */
struct tn_la_starts {
    const int64_t *cu;
    int64_t sequences, tokens;
};

static inline tn_la_starts tn_la_starts_of(const tn_la_problem *problem) { return { problem->cu_seqlens, problem->sequences, problem->n }; }

/* The first token of a sequence, kept within the tokens there are whatever cu says. */
__device__ __forceinline__ int64_t tn_la_start(const tn_la_starts &starts, int64_t sequence) {
    int64_t at = starts.cu[sequence];
    return at < 0 ? 0 : at < starts.tokens ? at : starts.tokens;
}

/* A token's place in its sequence. */
__device__ __forceinline__ int64_t tn_la_position(const tn_la_starts &starts, int64_t token) {
    if (!starts.cu) return token;
    int64_t low = 0, high = starts.sequences; /* the last sequence that begins at or before the token */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (starts.cu[middle] <= token) low = middle;
        else high = middle;
    }
    return starts.sequences > 0 ? token - starts.cu[low] : token;
}

template <typename W> __device__ __forceinline__ W tn_la_act(int act, W x) {
    TN_WITH_ACT(act, Act, return tn_act_value<Act>(x));
    return x;
}
template <typename W> __device__ __forceinline__ W tn_la_act_slope(int act, W x) {
    TN_WITH_ACT(act, Act, return tn_act_slope<Act>(x));
    return (W)1;
}

/* cos and sin of the angle that a feature of a token turns by; `token` counts from its sequence's start. */
template <typename W>
__device__ __forceinline__ void tn_la_turn(const tn_lrpe_grid &grid, const W *theta, int64_t head, int64_t token, int64_t feature, W *c,
                                           W *s) {
    int axis = tn_lrpe_axis(&grid, feature);
    *c = 1;
    *s = 0;
    if (axis < 0) return;
    W speed = theta[(grid.theta_heads == 1 ? 0 : head) * grid.theta_width + tn_lrpe_theta_column(&grid, feature)];
    double sine, cosine;
    sincos((double)tn_lrpe_coordinate(&grid, token, axis) * (double)speed, &sine, &cosine);
    *c = (W)cosine;
    *s = (W)sine;
}

/* What softmax over the features of a row needs; the whole block calls it, `scratch` holds a W per warp. */
template <typename T>
__device__ __forceinline__ void tn_la_softmax_row(const T *x, int64_t width, tn_wide<T> *maximum, tn_wide<T> *sum, tn_wide<T> *scratch) {
    using W = tn_wide<T>;
    W most = (W)-INFINITY, total = 0;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) most = max(most, tn_widen(x[i]));
    most = tn_block_max(most, (W)-INFINITY, scratch);
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) total += tn_exp_of(tn_widen(x[i]) - most);
    *maximum = most;
    *sum = tn_block_sum(total, scratch);
}

/* act(x) of one feature; maximum and sum are those of softmax over the row. */
template <typename W>
__device__ __forceinline__ W tn_la_activated(const tn_la_operand &operand, W x, int64_t slice, int64_t feature, W maximum, W sum) {
    if (operand.act != TN_SOFTMAX) return tn_la_act(operand.act, x);
    if (operand.over_sequence) {
        maximum = ((const W *)operand.maximum)[slice * operand.width + feature];
        sum = ((const W *)operand.sum)[slice * operand.width + feature];
    }
    return tn_exp_of(x - maximum) / sum;
}

/* to[slice][token] = scale * lrpe(act(x)); a block takes a token. */
template <typename T>
__global__ void tn_la_plain_encode(tn_la_run run, tn_la_starts starts, tn_la_operand operand, bool cosine, const tn_wide<T> *theta,
                                   tn_wide<T> scale, tn_wide<T> *to) {
    using W = tn_wide<T>;
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    int64_t local = blockIdx.y, slice = run.first + local, head = slice % run.heads, d = operand.width;
    int64_t width = operand.encoded && cosine ? 2 * d : d;
    for (int64_t token = blockIdx.x; token < operand.tokens; token += gridDim.x) {
        const T *x = (const T *)operand.x + tn_la_row(operand.stride, run.heads, slice, token);
        W *row = to + (local * operand.tokens + token) * width, maximum = 0, sum = 1;
        if (operand.act == TN_SOFTMAX && !operand.over_sequence) tn_la_softmax_row(x, d, &maximum, &sum, scratch);
        int64_t half = operand.encoded && !cosine ? d / 2 : d, position = operand.encoded ? tn_la_position(starts, token) : 0;
        for (int64_t i = threadIdx.x; i < half; i += blockDim.x) {
            W a = scale * tn_la_activated(operand, tn_widen(x[i]), slice, i, maximum, sum), c, s;
            if (!operand.encoded) {
                row[i] = a;
                continue;
            }
            tn_la_turn(operand.grid, theta, head, position, i, &c, &s);
            if (cosine) {
                row[i] = a * c;
                row[d + i] = a * s;
            } else {
                W other = scale * tn_la_activated(operand, tn_widen(x[half + i]), slice, half + i, maximum, sum);
                row[i] = a * c - other * s;
                row[half + i] = a * s + other * c;
            }
        }
    }
}

template <typename T>
static inline void tn_la_plain_encode_run(const tn_la_problem *problem, const tn_la_operand *operand, double scale, const tn_la_run &run,
                                          tn_wide<T> *to, cudaStream_t stream) {
    if (operand->tokens == 0 || run.count == 0) return;
    tn_la_plain_encode<T><<<tn_la_plain_grid(run, operand->tokens), TN_LA_PLAIN_THREADS, 0, stream>>>(
        run, tn_la_starts_of(problem), *operand, problem->kind == TN_COSINE, (const tn_wide<T> *)problem->theta, (tn_wide<T>)scale, to);
}

/* ---- products ---- */

/* A matrix per slice: element (i, j) of slice z is at[z * slice + i * row + j * column]. */
template <typename W> struct tn_la_matrix {
    const W *at;
    int64_t slice, row, column;
};
template <typename W> static inline tn_la_matrix<W> tn_la_rows(const W *at, int64_t rows, int64_t columns) {
    return { at, rows * columns, columns, 1 };
}
template <typename W> static inline tn_la_matrix<W> tn_la_transposed(tn_la_matrix<W> m) { return { m.at, m.slice, m.column, m.row }; }

#define TN_LA_TILE 64
#define TN_LA_DEPTH 16

/* to [rows x columns] of each slice = a [rows x depth] b [depth x columns] (+ begin, where given). 16 x 16 threads make a tile of 64 x 64,
 * 4 x 4 each, from slabs 16 deep in shared memory. */
template <typename W>
__global__ void __launch_bounds__(256)
    tn_la_plain_product(int64_t rows, int64_t columns, int64_t depth, tn_la_matrix<W> a, tn_la_matrix<W> b, const W *begin, W *to) {
    __shared__ W left[TN_LA_DEPTH][TN_LA_TILE + 1], right[TN_LA_DEPTH][TN_LA_TILE + 1];
    int64_t across = (columns + TN_LA_TILE - 1) / TN_LA_TILE, tiles = across * ((rows + TN_LA_TILE - 1) / TN_LA_TILE), slice = blockIdx.y;
    int y = threadIdx.x / 16, x = threadIdx.x % 16;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t row0 = tile / across * TN_LA_TILE, column0 = tile % across * TN_LA_TILE;
        W sum[4][4] = {};
        for (int64_t k0 = 0; k0 < depth; k0 += TN_LA_DEPTH) {
            for (int at = threadIdx.x; at < TN_LA_DEPTH * TN_LA_TILE; at += 256) {
                /* Neighbouring threads along whichever axis is dense. */
                int k = a.column == 1 ? at % TN_LA_DEPTH : at / TN_LA_TILE, i = a.column == 1 ? at / TN_LA_DEPTH : at % TN_LA_TILE;
                left[k][i] = k0 + k < depth && row0 + i < rows ? a.at[slice * a.slice + (row0 + i) * a.row + (k0 + k) * a.column] : (W)0;
                k = b.row == 1 ? at % TN_LA_DEPTH : at / TN_LA_TILE, i = b.row == 1 ? at / TN_LA_DEPTH : at % TN_LA_TILE;
                right[k][i] =
                    k0 + k < depth && column0 + i < columns ? b.at[slice * b.slice + (k0 + k) * b.row + (column0 + i) * b.column] : (W)0;
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < TN_LA_DEPTH; k++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[i][j] += left[k][y + 16 * i] * right[k][x + 16 * j];
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int64_t row = row0 + y + 16 * i, column = column0 + x + 16 * j, at = (slice * rows + row) * columns + column;
                if (row < rows && column < columns) to[at] = begin ? sum[i][j] + begin[at] : sum[i][j];
            }
    }
}

template <typename W>
static inline void tn_la_plain_product_run(const tn_la_run &run, int64_t rows, int64_t columns, int64_t depth, tn_la_matrix<W> a,
                                           tn_la_matrix<W> b, const W *begin, W *to, cudaStream_t stream) {
    int64_t tiles = ((rows + TN_LA_TILE - 1) / TN_LA_TILE) * ((columns + TN_LA_TILE - 1) / TN_LA_TILE);
    if (tiles == 0 || run.count == 0) return;
    tn_la_plain_product<W><<<tn_la_plain_grid(run, tiles), 256, 0, stream>>>(rows, columns, depth, a, b, begin, to);
}

#endif
