/* rms_norm and layer_norm on CUDA, both as one: o = (x - mean) rstd weight act(g) + bias, as tn_norm_rows says.
 *
 * Packed path (f32, bf16). A row is held in registers by a team: 4 to 32 lanes of a warp for short rows, a whole block for long ones;
 * every lane has PACKS packs of 16 bytes. x (and g, do) are read once, o (and dx, dg) written once. A block of backward walks a fixed
 * run of rows; a lane always has the same columns, so it sums their dweight and dbias in registers over all its rows:
 *
 *     rows of one block   | team 0: r0, r8, .. | team 1: r1, r9, .. | ...      sums in registers, then over the teams in order
 *     scratch             [block][dweight | dbias][d] in f32, summed over the blocks in order by a second small kernel
 *
 * Bytes: forward 2T (3T with g), backward 3T (5T with g); the scratch is below 1% from a few thousand rows on.
 * Plain path (f64, any width and alignment): a block per row, columns in a loop. */
#ifndef TENON_NORM_CUDA_CUH
#define TENON_NORM_CUDA_CUH

#include "../../libtensor/cuda_common.cuh"
#include "../activation_cuda.cuh"
#include "norm_internal.h"

#define NORM_THREADS 256
#define NORM_LONG_THREADS 1024
#define NORM_PLAIN_THREADS 256
/* Blocks of a backward: a multiple of what 132 multiprocessors hold, and fixed, so that sums come in the same order on every GPU. */
#define NORM_CHUNKS 528

template <typename W> __device__ __forceinline__ W norm_gate(int act, W g) {
    W value = g;
    TN_WITH_ACT(act, Act, value = (tn_act_value<Act, W>(g)));
    return value;
}
template <typename W> __device__ __forceinline__ W norm_gate_slope(int act, W g) {
    W value = 1;
    TN_WITH_ACT(act, Act, value = (tn_act_slope<Act, W>(g)));
    return value;
}

__device__ __forceinline__ double norm_rsqrt(double x) { return 1.0 / sqrt(x); }
__device__ __forceinline__ float norm_rsqrt(float x) { return 1.0f / sqrtf(x); }

/* The threads that share a row. */
struct norm_team {
    int size, lane; /* of a team inside a warp; a block-wide team has size 0 */
    float *scratch;

    __device__ __forceinline__ float sum(float x) const {
        if (size == 0) return tn_block_sum(x, scratch);
        for (int step = size / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
        return x;
    }
};

/* A row's part in one thread: pack p holds columns (p * team + lane) * n ... */
template <typename T, int PACKS> struct norm_part {
    static constexpr int n = tn_pack<T>::n;
    float at[PACKS][n];

    __device__ __forceinline__ void load(const T *row, int64_t d, int lane, int lanes) {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = (int64_t)(p * lanes + lane) * n;
            tn_pack<T> pack;
            if (column < d) pack = tn_load_pack(row + column);
#pragma unroll
            for (int j = 0; j < n; j++) at[p][j] = column < d ? tn_widen(pack.at[j]) : 0.0f;
        }
    }
    __device__ __forceinline__ void store(T *row, int64_t d, int lane, int lanes) const {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = (int64_t)(p * lanes + lane) * n;
            if (column >= d) continue;
            tn_pack<T> pack;
#pragma unroll
            for (int j = 0; j < n; j++) pack.at[j] = tn_narrow<T>(at[p][j]);
            tn_store_pack(row + column, pack);
        }
    }
};

/* Lanes of a team and packs per lane for rows of n_packs packs. */
typedef struct norm_shape {
    int team;    /* 0: the whole block */
    int packs;   /* 1, 2 or 4; 0: the row is too long for registers */
    int threads; /* of a block */
} norm_shape;

static inline norm_shape norm_shape_of(int64_t n_packs) {
    norm_shape shape = {4, 1, NORM_THREADS};
    while (shape.team < TN_WARP && shape.team < n_packs) shape.team *= 2;
    if (n_packs <= shape.team) return shape;
    for (shape.packs = 2; shape.packs <= 4; shape.packs *= 2)
        if (n_packs <= shape.packs * TN_WARP) return shape;
    shape.team = 0;
    shape.packs = 4;
    shape.threads = n_packs <= 4 * NORM_THREADS ? NORM_THREADS : NORM_LONG_THREADS;
    if (n_packs > 4 * NORM_LONG_THREADS) shape.packs = 0;
    return shape;
}

static inline bool norm_can_pack(const tn_norm_rows *job, tn_dtype dtype, const tn_device *device) {
    size_t size = tn_dtype_size(dtype);
    return device->cuda_path != TN_CUDA_PLAIN && dtype != TN_F64 && job->d * size % 16 == 0 && tn_aligned16(job->x) && tn_aligned16(job->weight) &&
           tn_aligned16(job->bias) && tn_aligned16(job->g) && tn_aligned16(job->dout) && tn_aligned16(job->o) && tn_aligned16(job->dx) &&
           tn_aligned16(job->dg) && norm_shape_of(job->d * (int64_t)size / 16).packs > 0;
}

#endif
