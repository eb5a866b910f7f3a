/* rms_norm and layer_norm on CUDA, both as one: o = (x - mean) rstd weight act(g) + bias, as tn_norm_rows says.
 *
 * Packed path (f32, bf16). A row belongs to a team: 1 to 32 lanes of a warp, or a whole block; a lane has NUMBERS of its columns, so that
 * x (and g, do) are read once and o (and dx, dg) written once.
 *
 *     d               256        512        768        1024       2048      4096      6144      8192      32768 (f32, backward: 16384)
 *     team            32 lanes   32 lanes   32 lanes   32 lanes   a block of d / NUMBERS threads, at most 256, 1024 (512) of long rows
 *     NUMBERS         8          16         24         32         8         16        24        32        32 (16)
 *
 * Forward keeps the raw packs in registers and asks for its next row while it stores this one. Backward keeps sums of dweight and dbias
 * in registers (a lane has the same columns of every row), so its rows come through a ring in shared memory, several deep:
 *
 *     block b: rows b, b + blocks, ..   ring: [row k+1: x | do | g][row k+2: ..]   sums -> scratch [block][dweight | dbias][d] in f32
 *
 * and a small kernel adds the blocks' sums in order. Bytes: forward 2T (3T with g), backward 3T (5T with g); the scratch is below 1% from
 * some ten thousand rows on.
 * Plain path (f64, any width and alignment): a block per row, columns in a loop. */
#ifndef TENON_NORM_CUDA_CUH
#define TENON_NORM_CUDA_CUH

#include "../activation_cuda.cuh"
#include "../rows_cuda.cuh"
#include "norm_internal.h"

#define NORM_THREADS 256
#define NORM_PLAIN_THREADS 256

/* What a kernel is compiled for: the gates that models use have kernels of their own, the others are told apart while they run. */
enum norm_kind { NORM_RMS, NORM_RMS_G, NORM_RMS_G_SILU, NORM_RMS_G_ANY, NORM_LAYER };

__host__ __device__ constexpr bool norm_gated(int kind) { return kind == NORM_RMS_G || kind == NORM_RMS_G_SILU || kind == NORM_RMS_G_ANY; }

static inline norm_kind norm_kind_of(const tn_norm_rows *job) {
    if (job->center) return NORM_LAYER;
    if (!job->g) return NORM_RMS;
    return job->g_act == TN_NONE ? NORM_RMS_G : job->g_act == TN_SILU ? NORM_RMS_G_SILU : NORM_RMS_G_ANY;
}

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
/* One copy of all of them is enough for the kernels that need it. */
static __device__ __noinline__ float norm_any_gate(int act, float g) { return norm_gate(act, g); }
static __device__ __noinline__ float norm_any_gate_slope(int act, float g) { return norm_gate_slope(act, g); }

template <int Kind> __device__ __forceinline__ float norm_gate_of(int act, float g) {
    if (Kind == NORM_RMS_G_ANY) return norm_any_gate(act, g);
    return tn_act_value < Kind == NORM_RMS_G_SILU ? TN_SILU : TN_NONE > (g);
}
template <int Kind> __device__ __forceinline__ float norm_gate_slope_of(int act, float g) {
    if (Kind == NORM_RMS_G_ANY) return norm_any_gate_slope(act, g);
    return tn_act_slope < Kind == NORM_RMS_G_SILU ? TN_SILU : TN_NONE > (g);
}

__device__ __forceinline__ double norm_rsqrt(double x) { return 1.0 / sqrt(x); }
__device__ __forceinline__ float norm_rsqrt(float x) { return 1.0f / sqrtf(x); }

typedef struct norm_shape {
    int numbers; /* columns a lane can hold: 8, 16, 24 or 32; 0: the row is too long */
    int lanes;   /* of a team: up to a warp, or all threads of the block */
    int threads; /* of a block */
} norm_shape;

/* `fewest`: NUMBERS are not below it; `of_long`: NUMBERS where NORM_THREADS of 32 are too few. */
static inline norm_shape norm_shape_of(int64_t d, int fewest, int of_long, int most_threads) {
    norm_shape shape = { fewest, 1, NORM_THREADS };
    if (d <= 32 * TN_WARP) {
        while (shape.numbers * TN_WARP < d) shape.numbers += 8;
        while (shape.lanes * shape.numbers < d) shape.lanes *= 2;
        return shape;
    }
    while (shape.numbers < 32 && shape.numbers * NORM_THREADS < d) shape.numbers += 8;
    if (shape.numbers * NORM_THREADS < d) shape.numbers = of_long;
    int64_t warps = (d + shape.numbers * TN_WARP - 1) / (shape.numbers * TN_WARP);
    shape.threads = (int)(warps <= TN_WARP ? warps : TN_WARP + 1) * TN_WARP;
    shape.lanes = shape.threads;
    if (shape.threads > most_threads) shape.numbers = 0;
    return shape;
}

static inline bool norm_can_pack(const tn_norm_rows *job, tn_dtype dtype, const tn_device *device) {
    size_t size = tn_dtype_size(dtype);
    return device->cuda_path != TN_CUDA_PLAIN && dtype != TN_F64 && job->d * size % 16 == 0 && tn_aligned16(job->x) &&
           tn_aligned16(job->weight) && tn_aligned16(job->bias) && tn_aligned16(job->g) && tn_aligned16(job->dout) &&
           tn_aligned16(job->o) && tn_aligned16(job->dx) && tn_aligned16(job->dg);
}

#endif
