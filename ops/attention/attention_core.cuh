/* What the kernels of attention_core.h share. */
#ifndef TENON_ATTENTION_CORE_CUH
#define TENON_ATTENTION_CORE_CUH

#include "attention_core.h"
#include "attention_tiles.cuh"

/* Keys [begin, end) that query t sees. */
__device__ __forceinline__ void tn_at_keys_seen(const tn_at_problem &p, int64_t batch, int64_t t, int *begin, int *end) {
    *begin = *end = 0;
    if (p.cu_seqlens && p.sequences < 1) return;
    tn_at_span span = tn_at_span_of(&p, p.cu_seqlens ? tn_at_sequence_of(&p, t) : batch);
    if (t < span.q_begin || t >= span.q_end) return;
    *begin = (int)span.k_begin;
    *end = (int)tn_at_seen(&p, &span, t);
}

/* Queries [begin, end) that see any of the keys from `key` to `last`. */
__device__ __forceinline__ void tn_at_queries_of(const tn_at_problem &p, int64_t batch, int64_t key, int64_t last, int64_t *begin,
                                                 int64_t *end) {
    *begin = *end = 0;
    if (p.cu_seqlens && p.sequences < 1) return;
    tn_at_span first = tn_at_span_of(&p, p.cu_seqlens ? tn_at_sequence_of(&p, key) : batch), after = first;
    if (p.cu_seqlens) after = tn_at_span_of(&p, tn_at_sequence_of(&p, last));
    if (key >= after.k_end) return;
    *begin = p.causal ? max(first.q_begin, key - first.shift) : first.q_begin;
    *end = after.q_end;
}

/* Row bytes of a tile of width D in shared memory: eight rows of 96 would not permute. */
template <int D> constexpr int tn_at_row_bytes = D == 96 ? 256 : D * 2;

/* ROWS rows of width D, `stride` elements apart, of which the first `there` exist; the others are 0. */
template <int THREADS, int ROWS, int D>
__device__ __forceinline__ void tn_at_fetch_rows(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int64_t there) {
    constexpr int PIECES = D / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        int row = i / PIECES, piece = i % PIECES;
        bool here = row < there;
        tn_at_copy_16(to + tn_at_piece<tn_at_row_bytes<D>>(row, piece), from + (here ? row : 0) * stride + piece * 8, here);
    }
}

template <typename T> __device__ __forceinline__ T *tn_at_of(const tn_at_view &view, int64_t batch, int64_t token, int64_t head) {
    return (T *)view.at + batch * view.batch + token * view.token + head * view.head;
}

/* What a block of KEYS keys walks along: tiles of queries, head after head of its part of the group. */
struct tn_at_walk {
    int64_t batch, head, key; /* within the run; the first head */
    int64_t first;            /* query */
    int tiles, steps;         /* of a head; of all */
};

template <int KEYS, int QUERIES> __device__ __forceinline__ tn_at_walk tn_at_walk_of(const tn_at_core &c) {
    tn_at_walk w;
    int64_t begin, end, heads = c.group / c.parts;
    w.batch = blockIdx.z, w.head = blockIdx.y * heads, w.key = (int64_t)blockIdx.x * KEYS;
    tn_at_queries_of(c.p, c.first_batch + w.batch, w.key, min(w.key + KEYS, c.p.m) - 1, &begin, &end);
    w.first = begin / QUERIES * QUERIES;
    w.tiles = end > begin ? (int)((end - w.first + QUERIES - 1) / QUERIES) : 0;
    w.steps = (int)(w.tiles * heads);
    return w;
}

/* Keys of a batch: what lies behind them may be anything. */
__device__ __forceinline__ int64_t tn_at_keys_there(const tn_at_core &c, int64_t batch) {
    return c.p.seqlens ? tn_at_within(c.p.seqlens[c.first_batch + batch], 0, c.p.m) : c.p.m;
}

/* A thread's two values of a row of dk or dv. */
template <int N>
__device__ __forceinline__ void tn_at_write_key(const tn_at_core &c, const tn_at_walk &w, const float (&sum)[N][4], int half, int64_t key,
                                                const tn_at_view &to, float *part, float factor) {
    int64_t heads = c.heads / c.group, head = blockIdx.y / c.parts, which = blockIdx.y % c.parts;
    int column = threadIdx.x % 4 * 2;
    if (key >= c.p.m) return;
    if (c.parts > 1) {
        float *row = part + (((which * c.batches + w.batch) * c.p.m + key) * heads + head) * N * 8 + column;
#pragma unroll
        for (int t = 0; t < N; t++) *(float2 *)(row + t * 8) = make_float2(sum[t][2 * half] * factor, sum[t][2 * half + 1] * factor);
    } else if (to.at) {
        tn_cuda_bf16 *row = tn_at_of<tn_cuda_bf16>(to, w.batch, key, head) + column;
#pragma unroll
        for (int t = 0; t < N; t++) *(uint32_t *)(row + t * 8) = tn_at_pair(sum[t][2 * half] * factor, sum[t][2 * half + 1] * factor);
    }
}

#endif
