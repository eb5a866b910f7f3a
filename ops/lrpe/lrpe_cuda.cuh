/* What the CUDA kernels of lrpe share: where a thread stands, its angles, the activation of its features, and who can run packed.
 *
 * Packed kernels (f32, bf16). A thread owns a token, a head and a pack of 16 bytes of features (rotate: with the pack that is half a row
 * further on), takes its cosines and sines once and walks the batch with them:
 *
 *     row = (token, head)   | lane 0: features 0..7 | lane 1: 8..15 | ... |   `lanes` lanes, a power of two; rotate: and 8 of the other half
 *     b = 0, 1, 2, ...      the same thread, Ahead packs asked for before the first is used
 *
 * Plain kernels (f64, any width, stride and alignment) are in lrpe_plain.cu. */
#ifndef TENON_LRPE_CUDA_CUH
#define TENON_LRPE_CUDA_CUH

#include "lrpe_internal.h"

#include "../activation_cuda.cuh"
#include "../lrpe_angle_cuda.cuh"
#include "../rows_cuda.cuh"

#define LRPE_THREADS 256

/* Acts as template constants: those that are often used by themselves, the others chosen at run time. */
enum { LRPE_ANY_ACT = -1, LRPE_SOFTMAX_TOKENS = -2 };

/* A call as the packed kernels see it: all that fits in 32 bits. */
struct lrpe_job {
    tn_lrpe_call call;
    uint32_t tokens, heads, leading, axes, extent[TN_LRPE_MAX_AXES], span, rows;
    int lanes_log2;                                                    /* threads of a row */
    uint32_t packs;                                                    /* of them used */
    bool tokens_fastest;                                               /* neighbouring rows: tokens of a head; else heads of a token */
    int64_t batch_step;                                                /* batches a block walks */
    const float *column_max, *column_sum, *column_shift, *column_dots; /* softmax over tokens: [b, h, d] each */
    float *parts;                                                      /* of dtheta: [block row][head][W] */
};

/* ---- where a thread stands ---- */

struct lrpe_place {
    uint32_t token, head, feature; /* the first of its pack */
    bool inside;
};

__device__ __forceinline__ lrpe_place lrpe_place_of(const lrpe_job &job, uint32_t n) {
    lrpe_place at;
    uint32_t lane = threadIdx.x & ((1u << job.lanes_log2) - 1), row = (blockIdx.x * LRPE_THREADS + threadIdx.x) >> job.lanes_log2;
    at.inside = lane < job.packs && row < job.rows;
    at.feature = at.inside ? lane * n : 0;
    if (row >= job.rows) row = 0;
    uint32_t inner = job.tokens_fastest ? job.tokens : job.heads, outer = row / inner, rest = row - outer * inner;
    at.token = job.tokens_fastest ? rest : outer;
    at.head = job.tokens_fastest ? outer : rest;
    return at;
}

__device__ __forceinline__ int64_t lrpe_offset(const tn_lrpe_strides &stride, const lrpe_place &at) {
    return (int64_t)at.token * stride.token + (int64_t)at.head * stride.head + at.feature;
}

/* ---- angles ---- */

__device__ __forceinline__ int64_t lrpe_coordinate(const lrpe_job &job, uint32_t token, uint32_t axis) {
    if (token < job.leading || axis >= job.axes) return 0;
    uint32_t at = token - job.leading;
    if (job.axes == 1) return at + job.call.grid.offset + (job.call.offset_t ? *job.call.offset_t : 0);
    for (uint32_t inner = job.axes - 1; inner > axis; inner--) at /= job.extent[inner];
    return at % job.extent[axis];
}

/* N features of a head and what turns them. They belong to one axis, or from `split` on to the next: an axis is never narrower than a pack
 * here. Features that no axis reaches have theta 0. */
template <int N> struct lrpe_features {
    uint32_t axis;
    int split;
    float theta[N];

    __device__ __forceinline__ lrpe_features(const lrpe_job &job, const lrpe_place &at) {
        axis = at.feature / job.span;
        uint32_t column = at.feature - axis * job.span, width = (uint32_t)job.call.grid.theta_width;
        split = job.span - column < N ? (int)(job.span - column) : N;
#pragma unroll
        for (int j = 0; j < N; j++) theta[j] = 0;
        if (!job.call.theta) return; /* a table takes its place */
        const float *row = (const float *)job.call.theta + (job.call.grid.theta_heads == 1 ? 0 : (int64_t)at.head * width);
        bool turns = axis < job.axes, turns_next = axis + 1 < job.axes;
#pragma unroll
        for (int j = 0; j < N; j++) {
            uint32_t from = j < split ? column + j : j - split;
            bool wanted = j < split ? turns : turns_next;
            float loaded = row[wanted & (width > 1) ? from : 0]; /* always, so that the loads stand in a row */
            theta[j] = wanted ? loaded : 0.0f;
        }
    }
};

/* A token's coordinates along the one or two axes of a pack. */
struct lrpe_reach {
    tn_lrpe_position first, second;
    int split;

    template <int N>
    __device__ __forceinline__ lrpe_reach(const lrpe_job &job, const lrpe_features<N> &features, uint32_t token)
        : first(lrpe_coordinate(job, token, features.axis)),
          second(features.split < N ? lrpe_coordinate(job, token, features.axis + 1) : 0), split(features.split) {}
    __device__ __forceinline__ const tn_lrpe_position &operator[](int j) const { return j < split ? first : second; }
};

/* One test for all of a pack, so that the near ones run side by side. */
template <typename T, int N>
__device__ __forceinline__ void lrpe_sincos(const lrpe_reach &reach, const float *theta, float *sine, float *cosine) {
    bool near = true;
#pragma unroll
    for (int j = 0; j < N; j++) near &= tn_lrpe_is_near(reach[j].near, theta[j]);
    if (near) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (sizeof(T) == 4) tn_lrpe_sincos_fine(reach[j].near, theta[j], &sine[j], &cosine[j]);
            else tn_lrpe_sincos_fast(reach[j].near, theta[j], &sine[j], &cosine[j]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) {
            float2 far = tn_lrpe_sincos_far((double)reach[j].whole * (double)theta[j]);
            sine[j] = far.x;
            cosine[j] = far.y;
        }
    }
}

/* Angles of a thread that walks tokens `step` apart, there and back. For bf16 along one axis it turns the last ones by step * theta: 4
 * instructions a feature; each turn adds 5e-7 at most, and there are at most some hundred. */
template <typename T, int N> struct lrpe_walk {
    float sine[N], cosine[N], step_sine[N], step_cosine[N];
    uint32_t step;
    bool turns;

    __device__ __forceinline__ lrpe_walk(const lrpe_job &job, const lrpe_place &at, uint32_t apart)
        : step(apart), turns(sizeof(T) == 2 && job.axes == 1) {
        const lrpe_features<N> features(job, at);
        lrpe_sincos<T, N>(lrpe_reach(job, features, at.token), features.theta, sine, cosine);
#pragma unroll
        for (int j = 0; j < N && sizeof(T) == 2; j++) {
            turns &= tn_lrpe_is_near((float)step, features.theta[j]);
            tn_lrpe_sincos_fast((float)step, features.theta[j], &step_sine[j], &step_cosine[j]);
        }
    }
    /* Must be called for each token of the walk in turn. */
    __device__ __forceinline__ void to(const lrpe_job &job, const lrpe_place &at, bool back) {
        if (turns && at.token >= job.leading + (back ? 0 : step)) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                float along = cosine[j], across = sine[j], turn = back ? -step_sine[j] : step_sine[j];
                cosine[j] = along * step_cosine[j] - across * turn;
                sine[j] = across * step_cosine[j] + along * turn;
            }
        } else { /* theta is read again, so that no register holds it */
            const lrpe_features<N> features(job, at);
            lrpe_sincos<T, N>(lrpe_reach(job, features, at.token), features.theta, sine, cosine);
        }
    }
};

__device__ __forceinline__ float *lrpe_table_row(const lrpe_job &job, const lrpe_place &at) {
    const tn_lrpe_strides &stride = job.call.table_stride;
    return (float *)job.call.table + (int64_t)at.token * stride.token + (int64_t)at.head * stride.head + at.feature;
}
template <int N> __device__ __forceinline__ void lrpe_table_load(const lrpe_job &job, const lrpe_place &at, float *sine, float *cosine) {
    const float *row = lrpe_table_row(job, at), *sines = row + job.call.grid.angles;
#pragma unroll
    for (int j = 0; j < N; j += 4) {
        tn_open_pack<float>(tn_ask_pack(row + j, at.inside), cosine + j);
        tn_open_pack<float>(tn_ask_pack(sines + j, at.inside), sine + j);
    }
}
/* By one head where all share it. */
template <int N>
__device__ __forceinline__ void lrpe_table_store(const lrpe_job &job, const lrpe_place &at, const float *sine, const float *cosine) {
    if (!at.inside || (job.call.grid.theta_heads == 1 && at.head != 0)) return;
    float *row = lrpe_table_row(job, at), *sines = row + job.call.grid.angles;
#pragma unroll
    for (int j = 0; j < N; j += 4) {
        tn_put_pack(row + j, cosine + j);
        tn_put_pack(sines + j, sine + j);
    }
}

/* ---- activations of N features of a row ---- */

/* 2^x by the special function unit alone; results below 1e-38 are 0. */
__device__ __forceinline__ float lrpe_exp2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}
#define LRPE_LOG2_E 1.4426950408889634f
/* exp(x - max) to T's precision. For bf16 as 2^(x log2 e - shift), shift = max log2 e rounded: off by 4e-4 at |x| = 1e4, a quarter of what
 * rounding to bf16 takes. */
template <typename T> __device__ __forceinline__ float lrpe_shift(float max) { return sizeof(T) == 4 ? max : max * LRPE_LOG2_E; }
template <typename T> __device__ __forceinline__ float lrpe_weight(float x, float shift) {
    return sizeof(T) == 4 ? expf(x - shift) : lrpe_exp2(fmaf(x, LRPE_LOG2_E, -shift));
}

__device__ __forceinline__ float lrpe_team_sum(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
__device__ __forceinline__ float lrpe_team_max(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

/* x becomes exp(x - max), max that of the row; returns one over the row's sum. */
template <typename T, int N> __device__ __forceinline__ float lrpe_softmax_weights(float *x, bool inside, int lanes) {
    float max = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < N; j++) max = fmaxf(max, x[j]);
    max = lrpe_team_max(inside ? max : -INFINITY, lanes);
    const float shift = lrpe_shift<T>(max);
#pragma unroll
    for (int j = 0; j < N; j++) {
        x[j] = lrpe_weight<T>(x[j], shift);
        sum += x[j];
    }
    return tn_reciprocal(lrpe_team_sum(inside ? sum : 0.0f, lanes));
}

/* exp(x - max) / sum is 2^(x log2 e - this). */
__device__ __forceinline__ float lrpe_column_shift(float max, float sum) {
    float log2_sum;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2_sum) : "f"(sum));
    return fmaf(max, LRPE_LOG2_E, log2_sum);
}
/* exp(x - max) / sum of N neighbouring columns, which begin at `column`; for bf16 in one product and one exponential. */
template <typename T, int N> __device__ __forceinline__ void lrpe_softmax_columns(const lrpe_job &job, int64_t column, float *x) {
#pragma unroll
    for (int j = 0; j < N; j += 4) {
        const float4 shift = *(const float4 *)((sizeof(T) == 4 ? job.column_max : job.column_shift) + column + j);
        const float each[4] = { shift.x, shift.y, shift.z, shift.w };
#pragma unroll
        for (int i = 0; i < 4; i++) x[j + i] = lrpe_weight<T>(x[j + i], each[i]);
        if (sizeof(T) == 4) {
            const float4 sum = *(const float4 *)(job.column_sum + column + j);
            const float total[4] = { sum.x, sum.y, sum.z, sum.w };
#pragma unroll
            for (int i = 0; i < 4; i++) x[j + i] *= tn_reciprocal(total[i]);
        }
    }
}

template <int Act, int N> __device__ __forceinline__ void lrpe_act_of(float *x) {
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = tn_act_value<Act, float>(x[j]);
}
template <int Act, int N> __device__ __forceinline__ void lrpe_slope_of(const float *x, float *d) {
#pragma unroll
    for (int j = 0; j < N; j++) d[j] *= tn_act_slope<Act, float>(x[j]);
}

/* The columns of a softmax over tokens that a thread works on. */
__device__ __forceinline__ int64_t lrpe_column(const lrpe_job &job, int64_t b, const lrpe_place &at) {
    return (b * job.heads + at.head) * job.call.width + at.feature;
}

/* x [Parts][N] becomes act(x); Parts packs of a row, half a row apart. */
template <typename T, int Act, int Parts, int N>
__device__ __forceinline__ void lrpe_apply(const lrpe_job &job, int64_t b, const lrpe_place &at, float *x) {
    if (Act == TN_SOFTMAX) {
        float scale = lrpe_softmax_weights<T, Parts * N>(x, at.inside, 1 << job.lanes_log2);
#pragma unroll
        for (int j = 0; j < Parts * N; j++) x[j] *= scale;
    } else if (Act == LRPE_SOFTMAX_TOKENS) {
#pragma unroll
        for (int part = 0; part < Parts && at.inside; part++)
            lrpe_softmax_columns<T, N>(job, lrpe_column(job, b, at) + part * job.call.grid.angles, x + part * N);
    } else if (Act == LRPE_ANY_ACT) TN_WITH_ACT(job.call.act, Chosen, (lrpe_act_of<Chosen, Parts * N>(x)))
    else lrpe_act_of<Act, Parts * N>(x);
}

/* d, the gradient of a softmax over features, becomes that of x, which holds the weights already. */
template <int N> __device__ __forceinline__ void lrpe_softmax_slope(const float *x, float scale, bool inside, int lanes, float *d) {
    float dot = 0;
#pragma unroll
    for (int j = 0; j < N; j++) dot += x[j] * d[j];
    dot = lrpe_team_sum(inside ? dot : 0.0f, lanes) * scale;
#pragma unroll
    for (int j = 0; j < N; j++) d[j] = x[j] * scale * (d[j] - dot);
}

/* The same for any other act of x. */
template <typename T, int Act, int Parts, int N>
__device__ __forceinline__ void lrpe_apply_slope(const lrpe_job &job, int64_t b, const lrpe_place &at, float *x, float *d) {
    if (Act == LRPE_SOFTMAX_TOKENS) {
        lrpe_apply<T, Act, Parts, N>(job, b, at, x);
        if (at.inside) {
#pragma unroll
            for (int part = 0; part < Parts; part++) {
                const float *dots = job.column_dots + lrpe_column(job, b, at) + part * job.call.grid.angles;
#pragma unroll
                for (int j = 0; j < N; j++) d[part * N + j] = x[part * N + j] * (d[part * N + j] - dots[j]);
            }
        }
    } else if (Act == LRPE_ANY_ACT) TN_WITH_ACT(job.call.act, Chosen, (lrpe_slope_of<Chosen, Parts * N>(x, d)))
    else lrpe_slope_of<Act, Parts * N>(x, d);
}

/* ---- the turn itself: [x1, x2] or x, to two packs; and back ---- */

template <int Kind, int N> __device__ __forceinline__ void lrpe_turn(const float *x, const float *sine, const float *cosine, float *o) {
#pragma unroll
    for (int j = 0; j < N; j++) {
        o[j] = Kind == TN_ROTATE ? x[j] * cosine[j] - x[N + j] * sine[j] : x[j] * cosine[j];
        o[N + j] = Kind == TN_ROTATE ? x[j] * sine[j] + x[N + j] * cosine[j] : x[j] * sine[j];
    }
}
template <int Kind, int N>
__device__ __forceinline__ void lrpe_turn_back(const float *d, const float *sine, const float *cosine, float *dx) {
#pragma unroll
    for (int j = 0; j < N; j++) {
        dx[j] = d[j] * cosine[j] + d[N + j] * sine[j];
        if (Kind == TN_ROTATE) dx[N + j] = d[N + j] * cosine[j] - d[j] * sine[j];
    }
}

/* ---- between the files ---- */

/* Of the packed kernels that give a thread a row: rows, and batches. */
static inline dim3 lrpe_row_blocks(const lrpe_job &job) {
    int64_t threads = (int64_t)job.rows << job.lanes_log2;
    return dim3((unsigned)((threads + LRPE_THREADS - 1) / LRPE_THREADS),
                (unsigned)((job.call.batch + job.batch_step - 1) / job.batch_step));
}

/* False: the plain kernels must run. `job` is complete but for its pointers to scratch. */
bool lrpe_can_pack(const tn_lrpe_call *lrpe, const tn_device *device, lrpe_job *job);

/* Scratch, in floats (or doubles): where each piece starts that the pass needs. */
struct lrpe_scratch {
    int64_t n_parts; /* rows of parts of dtheta */
    int64_t slices;  /* of the tokens, for statistics of a softmax over them */
    int64_t parts, max, sum, shift, dots, partials, total;
};
lrpe_scratch lrpe_scratch_of(const tn_lrpe_call *lrpe, const tn_device *device, bool backward);

cudaError_t lrpe_forward_plain(const tn_lrpe_call *lrpe, const lrpe_scratch &scratch, void *workspace, cudaStream_t stream);
cudaError_t lrpe_backward_plain(const tn_lrpe_call *lrpe, const lrpe_scratch &scratch, void *workspace, cudaStream_t stream);
cudaError_t lrpe_sum_parts(const tn_lrpe_call *lrpe, int64_t n_parts, const void *parts, cudaStream_t stream);

/* Statistics of the columns of a softmax over tokens, by slices of the tokens; partials: 2 [b, slices, h, d]. */
cudaError_t lrpe_column_statistics(const lrpe_job &job, int64_t slices, float *partials, float *max, float *sum, float *shift,
                                   cudaStream_t stream);
cudaError_t lrpe_column_products(const lrpe_job &job, int64_t slices, float *partials, float *shift, float *dots, cudaStream_t stream);

/* A pass of softmax over tokens with a head's columns kept on chip: how its blocks are cut. */
#define LRPE_SLAB_THREADS 128
#define LRPE_SLAB_BLOCKS 16
struct lrpe_slab {
    int blocks;      /* of a cluster, at most LRPE_SLAB_BLOCKS; 0: it does not fit */
    int packs;       /* pairs of packs (rotate) or packs of a token that a block has */
    uint32_t tokens; /* of a block */
    size_t bytes;    /* of shared memory */
    bool crowded;    /* five blocks on a multiprocessor instead of four: short sequences */
};
lrpe_slab lrpe_slab_of(const lrpe_job &job, const tn_device *device, bool backward);
cudaError_t lrpe_forward_on_chip(const lrpe_job &job, const lrpe_slab &slab, cudaStream_t stream);
cudaError_t lrpe_backward_on_chip(const lrpe_job &job, const lrpe_slab &slab, cudaStream_t stream);

#endif
