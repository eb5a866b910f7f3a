/* One query for each sequence against a cache of factors of rank 1, at the speed of reading the cache.
 *
 * All heads share bk and bv, so heads are the rows of two products, and nothing of h x d is made for a token:
 *
 *     t [heads, keys] = q bk'      s = t * ak'      o [heads, e] += (exp(s - maximum) * av') bv
 *
 * A block takes a part of a sequence's keys for up to 32 heads. Its four warps are 16 heads by 16 keys each (of a tile of 32 keys, or of
 * 64 where
 * there are no more than 16 heads); tiles of bk, bv, ak and av come by cp.async, several ahead, with their 16-byte pieces permuted so that
 * ldmatrix meets no bank twice:
 *
 *     stage | bk [keys][d] | bv [keys][e] | ak [keys][heads] | av [keys][heads] |
 *
 * ak and av, read by ldmatrix.trans, fall into place beside the accumulators of t. At the end the warps of a block, the blocks of a cluster
 * (Hopper) and, where there are more, the parts in the workspace are merged by their maxima and sums, always in the same order. */
#include <cooperative_groups.h>

#include "attention_decode.h"
#include "attention_tiles.cuh"

namespace {

constexpr int THREADS = 128, MOST_RANKS = 64; /* of the query */

struct decode_args {
    const tn_cuda_bf16 *aq, *bq, *ak, *bk, *av, *bv;
    tn_cuda_bf16 *o;
    float *lse;   /* NULL: nobody keeps it */
    float *parts; /* NULL: one part, which is o. [b][part][h][E], then maximum and sum [b][part][h][2] */
    const int64_t *seqlens;
    int64_t m, chunk;
    int b, h, rq, n_parts;
    int head_step;        /* heads that a block writes */
    float scale, scale_v; /* of t ak, in powers of 2 */
    bool hopper;
};

/* ---- a block's memory ---- */

template <int D, int E, int MT> struct shape_of {
    static constexpr int HEADS = 16 * MT, KEY_WARPS = 4 / MT, KEYS = 16 * KEY_WARPS, STAGES = MT == 2 ? 5 : 3;
    static constexpr int BK = KEYS * D * 2, BV = KEYS * E * 2, A = KEYS * HEADS * 2, STAGE = BK + BV + 2 * A, Q = HEADS * D * 2;
    static constexpr int ROW = E + 8; /* of a merged o, so that the rows of a fragment lie in other banks */
    static constexpr int BYTES = STAGES * STAGE + Q;
    static_assert(MOST_RANKS * (D + HEADS) * 2 <= STAGE, "the query's factors lie where the last stage will be");
    static_assert(KEY_WARPS * HEADS * (ROW + 2) * 4 <= STAGES * STAGE, "the merge runs where the stages were");
};

/* Where a block works: heads from head0 (a multiple of 8) on, of which it writes [first, last); keys [begin, end). */
struct place {
    int64_t batch, begin, end;
    int head0, first, last, pieces;
};

__device__ __forceinline__ place place_of(const decode_args &a, int heads) {
    place p;
    p.batch = blockIdx.y;
    p.first = blockIdx.z * a.head_step;
    p.last = min(p.first + a.head_step, a.h);
    p.head0 = p.first & ~7;
    p.pieces = min(heads, a.h - p.head0) / 8;
    int64_t length = a.seqlens ? tn_at_within(a.seqlens[p.batch], 0, a.m) : a.m;
    p.begin = blockIdx.x * a.chunk;
    p.end = min(p.begin + a.chunk, length);
    return p;
}

template <typename S, int D, int E>
__device__ __forceinline__ void fetch_tile(const decode_args &a, const place &p, uint32_t stage, int64_t key) {
    int there = (int)min((int64_t)S::KEYS, p.end - key);
    int64_t row = p.batch * a.m + key;
    tn_at_fetch<THREADS, S::KEYS, D * 2>(stage, a.bk + row * D, D, D / 8, there);
    tn_at_fetch<THREADS, S::KEYS, S::HEADS * 2>(stage + S::BK + S::BV, a.ak + row * a.h + p.head0, a.h, p.pieces, there);
    tn_at_fetch<THREADS, S::KEYS, E * 2>(stage + S::BK, a.bv + row * E, E, E / 8, there);
    tn_at_fetch<THREADS, S::KEYS, S::HEADS * 2>(stage + S::BK + S::BV + S::A, a.av + row * a.h + p.head0, a.h, p.pieces, there);
}

/* The query's factors, where the last stage will be: bq [ranks][D], then aq [HEADS][64], zeros behind the ranks there are and the heads
 * there are. What
 * comes by cp.async joins the next group. */
template <typename S, int D> __device__ __forceinline__ void fetch_query(const decode_args &a, const place &p, unsigned char *to) {
    const tn_cuda_bf16 *aq = a.aq + (p.batch * a.h + p.head0) * a.rq, *bq = a.bq + p.batch * a.rq * D;
    int heads = p.pieces * 8, ranks = (a.rq + 15) / 16 * 16, whole = a.rq % 8 == 0;
    uint32_t bq_at = tn_at_shared(to), aq_at = bq_at + MOST_RANKS * D * 2;
    for (int i = threadIdx.x; i < ranks * (D / 8); i += THREADS) {
        int r = i / (D / 8), piece = i % (D / 8);
        bool here = r < a.rq;
        tn_at_copy_16(bq_at + tn_at_piece<D * 2>(r, piece), bq + (here ? r : 0) * D + piece * 8, here);
    }
    for (int i = threadIdx.x; whole && i < S::HEADS * (ranks / 8); i += THREADS) {
        int head = i / (ranks / 8), piece = i % (ranks / 8);
        bool here = head < heads && piece * 8 < a.rq;
        tn_at_copy_16(aq_at + tn_at_piece<MOST_RANKS * 2>(head, piece), aq + (here ? head * a.rq + piece * 8 : 0), here);
    }
    for (int i = threadIdx.x; !whole && i < S::HEADS * ranks; i += THREADS) {
        int head = i / ranks, r = i % ranks;
        *(tn_cuda_bf16 *)(to + MOST_RANKS * D * 2 + tn_at_piece<MOST_RANKS * 2>(head, r / 8) + r % 8 * 2) =
            head < heads && r < a.rq ? aq[head * a.rq + r] : __float2bfloat16_rn(0.0f);
    }
}

/* q [HEADS][D] of what fetch_query brought, without scale. A warp takes its heads, and its share of the columns. In a rolled loop, since
 * with cold
 * caches instructions come no faster than data. */
template <typename S, int D>
__device__ __forceinline__ void make_query(int ranks, const unsigned char *from, unsigned char *q, int warp_heads, int part) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
    uint32_t bq_at = tn_at_shared(from), aq_at = bq_at + MOST_RANKS * D * 2;
    constexpr int COLUMNS = D / S::KEY_WARPS;
#pragma unroll 1
    for (int column = part * COLUMNS; column < (part + 1) * COLUMNS; column += 16) {
        float sum[2][4] = {};
#pragma unroll 1
        for (int r = 0; r < ranks; r += 16) {
            uint32_t rows[4], b[4];
            tn_at_load(rows, aq_at + tn_at_piece<MOST_RANKS * 2>(warp_heads + matrix % 2 * 8 + row8, r / 8 + matrix / 2));
            tn_at_load_transposed(b, bq_at + tn_at_piece<D * 2>(r + matrix % 2 * 8 + row8, column / 8 + matrix / 2));
            tn_at_multiply_add(sum[0], rows, b[0], b[1]);
            tn_at_multiply_add(sum[1], rows, b[2], b[3]);
        }
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(uint32_t *)(q + tn_at_piece<D * 2>(warp_heads + half * 8 + lane / 4, column / 8 + t) + lane % 4 * 4) =
                    tn_at_pair(sum[t][2 * half], sum[t][2 * half + 1]);
    }
}

/* ---- the sweep over the keys: what a warp keeps of its 16 heads, of which a thread has rows lane / 4 and lane / 4 + 8 ---- */

template <int E> struct warp_state {
    float o[E / 8][4];
    float most[2], sum[2]; /* of the thread's own columns until the end */
};

template <typename S, int D, int E>
__device__ __forceinline__ void take_tile(const decode_args &a, const uint32_t (&q)[D / 16][4], uint32_t stage, int warp_heads,
                                          int warp_keys, int there, warp_state<E> &w) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
    float s[2][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t b[4];
        tn_at_load(b, stage + tn_at_piece<D * 2>(warp_keys + matrix / 2 * 8 + row8, 2 * k + matrix % 2));
        tn_at_multiply_add(s[0], q[k], b[0], b[1]);
        tn_at_multiply_add(s[1], q[k], b[2], b[3]);
    }
    uint32_t ak[4], av[4];
    int a_at = tn_at_piece<S::HEADS * 2>(warp_keys + matrix / 2 * 8 + row8, warp_heads / 8 + matrix % 2);
    tn_at_load_transposed(ak, stage + S::BK + S::BV + a_at);
    tn_at_load_transposed(av, stage + S::BK + S::BV + S::A + a_at);
    float most[2] = { w.most[0], w.most[1] };
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t pair = ak[t * 2 + i / 2];
            int key = warp_keys + t * 8 + lane % 4 * 2 + i % 2;
            s[t][i] = key < there ? s[t][i] * (i % 2 ? tn_at_high(pair) : tn_at_low(pair)) * a.scale : -INFINITY;
            most[i / 2] = fmaxf(most[i / 2], s[t][i]);
        }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 1));
        most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 2));
    }
    bool risen = most[0] != w.most[0] || most[1] != w.most[1];
    if (__any_sync(0xffffffffu, risen)) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float kept = w.most[i] == -INFINITY ? 0.0f : tn_at_exp2(w.most[i] - most[i]);
            w.most[i] = most[i];
            w.sum[i] *= kept;
#pragma unroll
            for (int t = 0; t < E / 8; t++) w.o[t][2 * i] *= kept, w.o[t][2 * i + 1] *= kept;
        }
    }
    uint32_t p[4];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float base = w.most[i] == -INFINITY ? 0.0f : w.most[i];
            float p0 = tn_at_exp2(s[t][2 * i] - base), p1 = tn_at_exp2(s[t][2 * i + 1] - base);
            w.sum[i] += p0 + p1;
            p[t * 2 + i] = tn_at_pair(p0 * tn_at_low(av[t * 2 + i]), p1 * tn_at_high(av[t * 2 + i]));
        }
#pragma unroll
    for (int c = 0; c < E / 16; c++) {
        uint32_t b[4];
        tn_at_load_transposed(b, stage + S::BK + tn_at_piece<E * 2>(warp_keys + matrix % 2 * 8 + row8, 2 * c + matrix / 2));
        tn_at_multiply_add(w.o[2 * c], p, b[0], b[1]);
        tn_at_multiply_add(w.o[2 * c + 1], p, b[2], b[3]);
    }
}

/* ---- merging ---- */

struct merged {
    float sum, most;
};

/* Four columns of a head's o from parts 0 .. n - 1, of which row(i) gives the place and stat(i) that of maximum and sum. */
template <typename Row, typename Stat> __device__ __forceinline__ float4 merge_row(int n, Row row, Stat stat, merged *all) {
    float most = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) most = fmaxf(most, stat(i)[0]);
    float4 o = make_float4(0, 0, 0, 0);
    for (int i = 0; i < n; i++) {
        const float *mine = stat(i);
        float weight = mine[0] == -INFINITY ? 0.0f : tn_at_exp2(mine[0] - most);
        float4 part = *(const float4 *)row(i);
        sum += weight * mine[1];
        o.x += weight * part.x, o.y += weight * part.y, o.z += weight * part.z, o.w += weight * part.w;
    }
    *all = { sum, most };
    return o;
}

/* Four columns of a head's o, and with the first of them its log-sum-exp. */
__device__ __forceinline__ void write_row(const decode_args &a, int64_t batch, int head, int E, int column, float4 o, merged all) {
    float factor = all.sum == 0 ? 0.0f : a.scale_v / all.sum;
    uint2 words = make_uint2(tn_at_pair(o.x * factor, o.y * factor), tn_at_pair(o.z * factor, o.w * factor));
    *(uint2 *)(a.o + (batch * a.h + head) * E + column) = words;
    if (a.lse && column == 0) a.lse[batch * a.h + head] = all.sum == 0 ? -INFINITY : (all.most + log2f(all.sum)) * 0.693147181f;
}

__device__ __forceinline__ void write_part(const decode_args &a, int64_t batch, int part, int head, int E, int column, float4 o,
                                           merged all) {
    int64_t at = (batch * a.n_parts + part) * a.h + head;
    *(float4 *)(a.parts + at * E + column) = o;
    if (column == 0) *(float2 *)(a.parts + (int64_t)a.b * a.n_parts * a.h * E + at * 2) = make_float2(all.most, all.sum);
}

template <int D, int E, int MT> __global__ void __launch_bounds__(THREADS, 2) decode(decode_args a) {
    using S = shape_of<D, E, MT>;
    extern __shared__ __align__(128) unsigned char memory[];
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP, warp_heads = warp % MT * 16, key_warp = warp / MT;
    place p = place_of(a, S::HEADS); /* rows of heads that there are not hold anything, and are not written */
    uint32_t stages = tn_at_shared(memory);
    int n_tiles = p.end > p.begin ? (int)((p.end - p.begin + S::KEYS - 1) / S::KEYS) : 0;

    unsigned char *factors = memory + (S::STAGES - 1) * S::STAGE, *query = memory + S::STAGES * S::STAGE;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (a.parts) cudaTriggerProgrammaticLaunchCompletion();
#endif
    fetch_query<S, D>(a, p, factors);
    tn_at_copy_commit();
#pragma unroll 1
    for (int i = 0; i < S::STAGES - 1; i++) {
        if (i < n_tiles) fetch_tile<S, D, E>(a, p, stages + i * S::STAGE, p.begin + i * S::KEYS);
        tn_at_copy_commit();
    }
    tn_at_copy_wait<S::STAGES - 1>();
    __syncthreads();
    make_query<S, D>((a.rq + 15) / 16 * 16, factors, query, warp_heads, key_warp);
    __syncthreads();
    uint32_t q[D / 16][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++) /* matrices: heads 0-7, 8-15 of the first 8 columns, then of the others */
        tn_at_load(q[k], tn_at_shared(query) + tn_at_piece<D * 2>(warp_heads + lane / 8 % 2 * 8 + lane % 8, 2 * k + lane / 16));

    warp_state<E> w = {};
    w.most[0] = w.most[1] = -INFINITY;
    for (int tile = 0; tile < n_tiles; tile++) {
        tn_at_copy_wait<S::STAGES - 2>();
        __syncthreads();
        int next = tile + S::STAGES - 1;
        if (next < n_tiles) fetch_tile<S, D, E>(a, p, stages + next % S::STAGES * S::STAGE, p.begin + (int64_t)next * S::KEYS);
        tn_at_copy_commit();
        int64_t left = p.end - p.begin - (int64_t)tile * S::KEYS;
        take_tile<S, D, E>(a, q, stages + tile % S::STAGES * S::STAGE, warp_heads, key_warp * 16, (int)min((int64_t)S::KEYS, left), w);
    }
    tn_at_copy_wait<0>();
    __syncthreads();

    /* The warps of the same heads, through shared memory. */
    float *rows = (float *)memory, *stats = rows + S::KEY_WARPS * S::HEADS * S::ROW;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float sum = w.sum[i];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        int at = key_warp * S::HEADS + warp_heads + i * 8 + lane / 4;
        if (lane % 4 == 0) stats[at * 2] = w.most[i], stats[at * 2 + 1] = sum;
#pragma unroll
        for (int t = 0; t < E / 8; t++)
            *(float2 *)(rows + at * S::ROW + t * 8 + lane % 4 * 2) = make_float2(w.o[t][2 * i], w.o[t][2 * i + 1]);
    }
    __syncthreads();
    constexpr int PER_ROW = E / 4;
    int size = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    namespace cg = cooperative_groups;
    auto cluster = cg::this_cluster();
    size = (int)cluster.num_blocks();
#endif
    for (int i = threadIdx.x; i < S::HEADS * PER_ROW; i += THREADS) {
        int row = i / PER_ROW, column = i % PER_ROW * 4, head = p.head0 + row;
        bool mine = head >= p.first && head < p.last;
        merged all;
        float4 o = merge_row(
            S::KEY_WARPS, [&](int k) { return rows + (k * S::HEADS + row) * S::ROW + column; },
            [&](int k) { return stats + (k * S::HEADS + row) * 2; }, &all);
        if (size > 1) { /* in place: no other thread reads this part of the row; the sums go where nobody reads any more, below */
            *(float4 *)(rows + row * S::ROW + column) = o;
            if (column == 0) ((float2 *)(stats + S::KEY_WARPS * S::HEADS * 2))[row] = make_float2(all.most, all.sum);
        } else if (mine) {
            if (a.parts) write_part(a, p.batch, blockIdx.x, head, E, column, o, all);
            else write_row(a, p.batch, head, E, column, o, all);
        }
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (size == 1) return;
    cluster.sync();
    float *totals = stats + S::KEY_WARPS * S::HEADS * 2;
    for (int i = (int)cluster.block_rank() * THREADS + threadIdx.x; i < S::HEADS * PER_ROW; i += size * THREADS) {
        int row = i / PER_ROW, column = i % PER_ROW * 4, head = p.head0 + row;
        if (head < p.first || head >= p.last) continue;
        merged all;
        float4 o = merge_row(
            size, [&](int k) { return cluster.map_shared_rank(rows, k) + row * S::ROW + column; },
            [&](int k) { return cluster.map_shared_rank(totals, k) + row * 2; }, &all);
        if (a.parts) write_part(a, p.batch, blockIdx.x / size, head, E, column, o, all);
        else write_row(a, p.batch, head, E, column, o, all);
    }
    cluster.sync();
#endif
}

/* The parts in the workspace; a warp takes a head. On Hopper it is started before the parts are there, and waits. */
template <int E> __global__ void __launch_bounds__(THREADS) merge_parts(decode_args a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
    int64_t at = (int64_t)blockIdx.x * (THREADS / TN_WARP) + threadIdx.x / TN_WARP;
    if (at >= (int64_t)a.b * a.h) return;
    int64_t batch = at / a.h, head = at % a.h;
    const float *stats = a.parts + (int64_t)a.b * a.n_parts * a.h * E;
    for (int column = threadIdx.x % TN_WARP * 4; column < E; column += TN_WARP * 4) {
        merged all;
        float4 o = merge_row(
            a.n_parts, [&](int k) { return a.parts + ((batch * a.n_parts + k) * a.h + head) * E + column; },
            [&](int k) { return stats + ((batch * a.n_parts + k) * a.h + head) * 2; }, &all);
        write_row(a, batch, (int)head, E, column, o, all);
    }
}

/* ---- launches ---- */

bool is_wide(const tn_at_problem *p) { return p->h > 16 && p->algo != TN_TPA_BH; }
int heads_of_block(const tn_at_problem *p) { return p->algo == TN_TPA_BH ? 1 : is_wide(p) ? 32 : 16; }
int64_t head_blocks(const tn_at_problem *p) { return (p->h + heads_of_block(p) - 1) / heads_of_block(p); }

constexpr int64_t SMALL_TILES = 64; /* of a sequence: read as fast as a second kernel starts */

constexpr int64_t FEW_PARTS = 16; /* cost the second kernel nothing that shows */

/* With few tiles the blocks of a sequence are one cluster, if all clusters can run at once: a GPC does not divide evenly into clusters of 8
 * or 4, so a tenth of the places is left out of account. Else they fill the device, twice over where that leaves few parts. */
tn_at_split split_of(const tn_at_problem *p, const tn_device *device) {
    int64_t keys = is_wide(p) ? 32 : 64, tiles = (p->m + keys - 1) / keys, blocks = p->b * head_blocks(p);
    int64_t places = 2 * (device->multiprocessors > 0 ? device->multiprocessors : 132);
    if (tiles < 2 || (p->algo != TN_TPA_BN && p->algo != TN_TPA_AUTO)) return { 1, 1, (tiles > 0 ? tiles : 1) * keys };
    for (int64_t size = 8; device->cuda_path == TN_CUDA_HOPPER && tiles <= SMALL_TILES && size > 1; size /= 2)
        if (size <= tiles && size * blocks <= places * 9 / 10) return { (int)size, (int)size, (tiles + size - 1) / size * keys };
    int64_t twice = places / blocks, once = twice / 2, splits = twice < FEW_PARTS ? twice : once > FEW_PARTS ? once : FEW_PARTS;
    if (splits > tiles) splits = tiles;
    if (splits < 1) splits = 1;
    int64_t each = (tiles + splits - 1) / splits;
    return { (int)((tiles + each - 1) / each), 1, each * keys };
}

template <int D, int E, int MT>
cudaError_t start(const decode_args &a, const tn_at_split &split, int64_t head_groups, cudaStream_t stream) {
    using S = shape_of<D, E, MT>;
    cudaError_t error = cudaFuncSetAttribute(decode<D, E, MT>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)split.splits, (unsigned)a.b, (unsigned)head_groups);
    how.blockDim = dim3(THREADS);
    how.dynamicSmemBytes = S::BYTES;
    how.stream = stream;
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)split.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    how.attrs = &cluster;
    how.numAttrs = split.cluster > 1 ? 1 : 0;
    error = cudaLaunchKernelEx(&how, decode<D, E, MT>, a);
    if (error != cudaSuccess || !a.parts) return error;
    cudaLaunchAttribute early;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    how.gridDim = dim3(tn_blocks((int64_t)a.b * a.h, THREADS / TN_WARP));
    how.dynamicSmemBytes = 0;
    how.attrs = &early;
    how.numAttrs = a.hopper ? 1 : 0;
    return cudaLaunchKernelEx(&how, merge_parts<E>, a);
}

} // namespace

bool tn_at_decode_fits(const tn_at_problem *p, const tn_device *device) {
    if (device->cuda_path == TN_CUDA_PLAIN || p->dtype != TN_BF16 || p->n != 1 || p->cu_seqlens) return false;
    if (p->algo == TN_TPA_COMPOSED || p->algo == TN_TPA_NAIVE) return false;
    bool widths = p->d == p->e && (p->d == 128 || p->d == 64);
    bool aligned = tn_aligned16(p->k.a) && tn_aligned16(p->k.x) && tn_aligned16(p->v.a) && tn_aligned16(p->v.x) && tn_aligned16(p->q.a) &&
                   tn_aligned16(p->q.x) && tn_aligned16(p->o);
    return p->k.rank == 1 && p->v.rank == 1 && p->q.rank <= MOST_RANKS && widths && p->h % 8 == 0 && aligned && p->b > 0 && p->b < 65536 &&
           head_blocks(p) < 65536;
}

size_t tn_at_decode_workspace(const tn_at_problem *p, const tn_device *device) {
    tn_at_split split = split_of(p, device);
    int64_t parts = split.splits / split.cluster;
    return parts > 1 ? (size_t)(p->b * parts * p->h * (p->e + 2)) * sizeof(float) : 0;
}

int tn_at_decode_forward(const tn_at_problem *p, const tn_device *device, void *workspace, void *stream) {
    const double log2_e = 1.4426950408889634;
    tn_at_split split = split_of(p, device);
    decode_args a = {};
    a.aq = (const tn_cuda_bf16 *)p->q.a, a.bq = (const tn_cuda_bf16 *)p->q.x;
    a.ak = (const tn_cuda_bf16 *)p->k.a, a.bk = (const tn_cuda_bf16 *)p->k.x;
    a.av = (const tn_cuda_bf16 *)p->v.a, a.bv = (const tn_cuda_bf16 *)p->v.x;
    a.o = (tn_cuda_bf16 *)p->o;
    a.lse = (float *)p->lse;
    a.n_parts = split.splits / split.cluster;
    a.parts = a.n_parts > 1 ? (float *)workspace : NULL;
    a.seqlens = p->seqlens;
    a.m = p->m;
    a.chunk = split.chunk;
    a.b = (int)p->b, a.h = (int)p->h, a.rq = (int)p->q.rank;
    a.head_step = heads_of_block(p);
    a.scale = (float)(p->q.factor * p->k.factor * log2_e);
    a.scale_v = (float)p->v.factor;
    a.hopper = device->cuda_path == TN_CUDA_HOPPER;
    cudaStream_t on = (cudaStream_t)stream;
    if (p->d == 128) return (int)(is_wide(p) ? start<128, 128, 2> : start<128, 128, 1>)(a, split, head_blocks(p), on);
    return (int)(is_wide(p) ? start<64, 64, 2> : start<64, 64, 1>)(a, split, head_blocks(p), on);
}
