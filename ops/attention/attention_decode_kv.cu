/* One query for each sequence against a cache of keys and values, which are read once, at the speed of memory.
 *
 * The heads of q that share a head of k and v are the rows of one tile of mma.sync, up to 16: what is read is read for all of them, and
 * rows without a head cost nothing, since time is that of reading a sequence's m hk (d + e) numbers. More heads are blocks that run side by
 * side, of which one finds in the L2 cache what another has read.
 *
 *     s [heads, keys] = q k'      o [heads, e] += exp2(s - maximum) v
 *
 * A block has a part of the keys of one (sequence, head of k and v). Each of its 4 warps takes every fourth run of 16 keys (8 of f32); it
 * fetches them by cp.async into a ring of its own, so that warps do not wait for one another, and asks for more as soon as a k or a v was
 * read: of 6 there is one at work and 5 on their way (of 12 of width 64, 11),
 *
 *     warp | k [16][d] | v [16][e] | k | v | k | v |       96 KB a block, two blocks to a multiprocessor
 *
 * mma.sync takes of f32 numbers the first 11 bits. Cut in two such numbers each, they are multiplied by three products instead of one.
 *
 * At the end the warps of a block, the blocks of a cluster (Hopper) and, where there are more, the parts in the workspace are merged by
 * their maxima and sums, always in the same order. */

#include "attention_decode_kv.h"
#include "attention_online.cuh"

namespace {

constexpr int HEADS = 16, WARPS = 4, THREADS = TN_WARP * WARPS, BLOCKS = 2; /* blocks that share a multiprocessor */
constexpr int RINGS = 96 << 10, MOST_BLOCKS = 8;                            /* bytes of a block's rings; blocks of a cluster */

struct kv_args {
    const void *q, *k, *v;
    void *o;
    float *lse;   /* NULL: nobody keeps it */
    float *parts; /* NULL: one part, which is o. [b][h][part][E], then maximum and sum [b][h][part][2] */
    const int64_t *seqlens;
    int64_t m;
    int b, h, hk, group, chunk, n_parts, row_blocks; /* row_blocks: of the heads that share a head of k and v */
    float scale, scale_v;                            /* scale: of the scores, in powers of 2 */
};

template <typename T> constexpr int keys_of_tile = 32 / (int)sizeof(T);

template <typename T, int D> struct shape_of {
    static constexpr int KEYS = keys_of_tile<T>, STEP = WARPS * KEYS; /* of a warp's tile; of all warps' */
    static constexpr int ROW_BYTES = D * (int)sizeof(T), HALF = KEYS * ROW_BYTES, TILES = RINGS / (WARPS * 2 * HALF);
    static constexpr int BYTES = RINGS + HEADS * ROW_BYTES;
    static constexpr int ROW = D + 8; /* floats of a merged o, so that the rows of a fragment lie in other banks */
    static_assert(HEADS * (WARPS * (ROW + 2) + 2) * 4 <= RINGS, "the merge runs where the rings were");
};

/* Where a block works: heads first .. first + heads - 1, keys [begin, end) of a head of k and v. */
struct place {
    int64_t batch;
    int begin, end, kv, first, heads;
};

__device__ __forceinline__ place place_of(const kv_args &a) {
    place p;
    int rows = 0;
    p.batch = blockIdx.z;
    p.kv = blockIdx.y;
    if (a.row_blocks > 1) {
        rows = p.kv % a.row_blocks * HEADS;
        p.kv /= a.row_blocks;
    }
    p.first = p.kv * a.group + rows;
    p.heads = min(HEADS, a.group - rows);
    int64_t length = a.seqlens ? tn_at_within(a.seqlens[p.batch], 0, a.m) : a.m;
    p.begin = blockIdx.x * a.chunk;
    p.end = min(p.begin + a.chunk, (int)length);
    return p;
}

/* ROWS rows of width D, of which the first `there` exist; the others are 0. */
template <int N_THREADS, int ROWS, int D, typename T>
__device__ __forceinline__ void fetch(uint32_t to, const T *from, int64_t stride, int there, int thread) {
    constexpr int OF_PIECE = 16 / (int)sizeof(T), PIECES = D / OF_PIECE, STEP = N_THREADS / PIECES;
    static_assert(ROWS % STEP == 0, "threads come out even");
    int row = thread / PIECES, piece = thread % PIECES;
    from += row * stride + piece * OF_PIECE;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP, from += STEP * stride)
        tn_at_copy_16(to + tn_at_piece<PIECES * 16>(row + i, piece), from, row + i < there);
}

/* ---- products of 16 heads with a tile of k, and of v ---- */

/* Rows lane / 4 and lane / 4 + 8 of q, words lane % 4 of the i-th 16 bytes and of the next: so lies the left side of a product, of bf16,
 * two to a word, as of f32. */
template <int ROW_BYTES> __device__ __forceinline__ void load_query(uint32_t (&a)[4], uint32_t q, int i) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8;
    tn_at_load(a, q + tn_at_piece<ROW_BYTES>(matrix % 2 * 8 + lane % 8, i + matrix / 2));
}

/* s [heads][16 keys] += q k' */
template <int D> __device__ __forceinline__ void score(float (&s)[2][4], uint32_t q, uint32_t k) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row = matrix / 2 * 8 + lane % 8;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t a[4], b[4];
        load_query<D * 2>(a, q, 2 * i);
        tn_at_load(b, k + tn_at_piece<D * 2>(row, 2 * i + matrix % 2));
        tn_at_multiply_add(s[0], a, b[0], b[1]);
        tn_at_multiply_add(s[1], a, b[2], b[3]);
    }
}

/* o [heads][D] += weights v */
template <int D> __device__ __forceinline__ void add_values(float (&o)[D / 8][4], const float (&s)[2][4], uint32_t v) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row = matrix % 2 * 8 + lane % 8;
    uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; i++) p[i] = tn_at_pair(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t b[4];
        tn_at_load_transposed(b, v + tn_at_piece<D * 2>(row, 2 * i + matrix / 2));
        tn_at_multiply_add(o[2 * i], p, b[0], b[1]);
        tn_at_multiply_add(o[2 * i + 1], p, b[2], b[3]);
    }
}

/* Of f32: numbers as sums of two of 11 bits. Of their four products the least is left out. */
template <int N> struct cut_in_two {
    uint32_t high[N], low[N];
    __device__ __forceinline__ explicit cut_in_two(const uint32_t *x) {
        constexpr uint32_t KEPT = 0xffffe000u;
#pragma unroll
        for (int i = 0; i < N; i++) {
            high[i] = x[i] & KEPT;
            low[i] = __float_as_uint(__uint_as_float(x[i]) - __uint_as_float(high[i])) & KEPT;
        }
    }
};
/* c [16 x 8] += a [16 x 8] b [8 x 8] */
__device__ __forceinline__ void multiply_add_8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_add_8(float (&c)[4], const cut_in_two<4> &a, const cut_in_two<2> &b) {
    multiply_add_8(c, a.low, b.high);
    multiply_add_8(c, a.high, b.low);
    multiply_add_8(c, a.high, b.high);
}

/* s [heads][8 keys] += q k' */
template <int D> __device__ __forceinline__ void score(float (&s)[1][4], uint32_t q, uint32_t k) {
    int lane = threadIdx.x % TN_WARP;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t b[4];
        tn_at_load(b, k + tn_at_piece<D * 4>(lane % 8, 4 * i + lane / 8));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t a[4];
            load_query<D * 4>(a, q, 4 * i + half * 2);
            multiply_add_8(s[0], cut_in_two<4>(a), cut_in_two<2>(b + half * 2));
        }
    }
}

/* o [heads][D] += weights v, even keys before odd ones, since so the weights lie. The tensor cores cut off what they add up, so sums over
 * many tiles are not left to them. */
template <int D> __device__ __forceinline__ void add_values(float (&o)[D / 8][4], const float (&s)[1][4], uint32_t v) {
    int lane = threadIdx.x % TN_WARP, key = lane % 4 * 2;
    const uint32_t words[4] = { __float_as_uint(s[0][0]), __float_as_uint(s[0][2]), __float_as_uint(s[0][1]), __float_as_uint(s[0][3]) };
    cut_in_two<4> p(words);
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        uint32_t b[2];
#pragma unroll
        for (int j = 0; j < 2; j++)
            asm volatile("ld.shared.b32 %0, [%1];"
                         : "=r"(b[j])
                         : "r"(v + tn_at_piece<D * 4>(key + j, 2 * i + lane / 16) + lane / 4 % 4 * 4)
                         : "memory");
        float more[4] = {};
        multiply_add_8(more, p, cut_in_two<2>(b));
#pragma unroll
        for (int c = 0; c < 4; c++) o[i][c] += more[c];
    }
}

/* ---- the sweep over the keys ---- */

/* Scores to weights. */
template <int D, int N> __device__ __forceinline__ void soften(float (&s)[N][4], float scale, int there, tn_at_online<D> &w) {
    int lane = threadIdx.x % TN_WARP;
    float most[2] = { w.most[0], w.most[1] };
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[t][i] = t * 8 + lane % 4 * 2 + i % 2 < there ? s[t][i] * scale : -INFINITY;
            most[i / 2] = fmaxf(most[i / 2], s[t][i]);
        }
    w.rise_to(most);
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[t][i] = tn_at_exp2(s[t][i] - w.base(i / 2));
            w.sum[i / 2] += s[t][i];
        }
}

/* A warp's runs of keys. Copies go in groups k, v, k, v, .. of which 2 TILES are on their way: k of the first tile is there once all but
 * 2 TILES - 1 are, and from then on what is wanted next is once all but 2 TILES - 2 are. */
template <typename T, int D> __device__ __forceinline__ void sweep(const kv_args &a, const place &p, uint32_t memory, tn_at_online<D> &w) {
    using S = shape_of<T, D>;
    constexpr int HALVES = 2 * S::TILES;
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP;
    uint32_t ring = memory + warp * HALVES * S::HALF, query = memory + RINGS;
    int first = p.begin + warp * S::KEYS, left = p.end - first; /* keys from the next tile to be taken on */
    int64_t stride = (int64_t)a.hk * D, row = (p.batch * a.m + first) * a.hk + p.kv, step = S::STEP * stride;
    const T *k = (const T *)a.k + row * D, *v = (const T *)a.v + row * D;
#pragma unroll 1
    for (int i = 0; i < S::TILES; i++) {
        int there = left - i * S::STEP;
        uint32_t slot = ring + i * 2 * S::HALF;
        if (there > 0) fetch<TN_WARP, S::KEYS, D>(slot, k, stride, there, lane);
        tn_at_copy_commit();
        if (there > 0) fetch<TN_WARP, S::KEYS, D>(slot + S::HALF, v, stride, there, lane);
        tn_at_copy_commit();
        k += step, v += step;
    }
    tn_at_copy_wait<HALVES - 1>();
    __syncthreads(); /* the query, which all asked for first, is there */

    uint32_t slot = ring;
#pragma unroll 1
    for (; left > 0; left -= S::STEP) {
        int next = left - S::TILES * S::STEP;
        float s[S::KEYS / 8][4] = {};
        score<D>(s, query, slot);
        tn_at_copy_wait<HALVES - 2>();
        __syncwarp(); /* v is there, and k was read */
        if (next > 0) fetch<TN_WARP, S::KEYS, D>(slot, k, stride, next, lane);
        tn_at_copy_commit();
        soften<D>(s, a.scale, left, w);
        add_values<D>(w.o, s, slot + S::HALF);
        tn_at_copy_wait<HALVES - 2>();
        __syncwarp(); /* k is there, and v was read */
        if (next > 0) fetch<TN_WARP, S::KEYS, D>(slot + S::HALF, v, stride, next, lane);
        tn_at_copy_commit();
        k += step, v += step;
        slot = slot + 2 * S::HALF == ring + HALVES * S::HALF ? ring : slot + 2 * S::HALF;
    }
}

/* ---- merging ---- */

struct merged {
    float sum, most;
};

/* Of numbers whose maximum is `most`, beside others whose maximum is `top`. */
__device__ __forceinline__ float weight_of(float most, float top) { return most == -INFINITY ? 0.0f : tn_at_exp2(most - top); }

__device__ __forceinline__ void add_weighted(float4 &sum, float weight, float4 x) {
    sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
}

__device__ __forceinline__ void store_4(float *to, float4 x) { *(float4 *)to = x; }
__device__ __forceinline__ void store_4(tn_cuda_bf16 *to, float4 x) {
    *(uint2 *)to = make_uint2(tn_at_pair(x.x, x.y), tn_at_pair(x.z, x.w));
}

/* Four columns of a head's o, and with the first of them its log-sum-exp. */
template <typename T> __device__ __forceinline__ void write_row(const kv_args &a, int64_t slice, int D, int column, float4 o, merged all) {
    float factor = all.sum == 0 ? 0.0f : __fdividef(a.scale_v, all.sum);
    store_4((T *)a.o + slice * D + column, make_float4(o.x * factor, o.y * factor, o.z * factor, o.w * factor));
    if (a.lse && column == 0) a.lse[slice] = all.sum == 0 ? -INFINITY : (all.most + __log2f(all.sum)) * 0.693147181f;
}

__device__ __forceinline__ void write_part(const kv_args &a, int64_t slice, int part, int D, int column, float4 o, merged all) {
    int64_t at = slice * a.n_parts + part;
    *(float4 *)(a.parts + at * D + column) = o;
    if (column == 0) *(float2 *)(a.parts + (int64_t)a.b * a.h * a.n_parts * D + at * 2) = make_float2(all.most, all.sum);
}

/* A block's memory once the rings are done with. */
template <typename S> struct merge_room {
    float *rows;  /* [warp][head][ROW] */
    float *stats; /* [warp][head][2]: maximum and sum */
    float *total; /* [head][2]: the block's, for others */
    __device__ __forceinline__ explicit merge_room(unsigned char *memory) {
        rows = (float *)memory;
        stats = rows + WARPS * HEADS * S::ROW;
        total = stats + WARPS * HEADS * 2;
    }
};

template <typename S, int D> __device__ __forceinline__ void hand_over(const merge_room<S> &room, const tn_at_online<D> &w) {
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int at = warp * HEADS + i * 8 + lane / 4;
        float sum = w.sum[i];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) *(float2 *)(room.stats + at * 2) = make_float2(w.most[i], sum);
#pragma unroll
        for (int t = 0; t < D / 8; t++)
            *(float2 *)(room.rows + at * S::ROW + t * 8 + lane % 4 * 2) = make_float2(w.o[t][i * 2], w.o[t][i * 2 + 1]);
    }
    __syncthreads();
}

/* Four columns of a head's o from N parts, of which the first n are there; stat(i) gives part i's maximum and sum, row(i) its columns. All
 * is asked for before anything is waited for. */
template <int N, typename Stat, typename Row> __device__ __forceinline__ float4 add_up(int n, Stat stat, Row row, merged *all) {
    float2 stats[N];
    float4 rows[N], o = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < N; i++) {
        stats[i] = i < n ? *(const float2 *)stat(i) : make_float2(-INFINITY, 0);
        rows[i] = i < n ? *(const float4 *)row(i) : o;
    }
    *all = { 0, -INFINITY };
#pragma unroll
    for (int i = 0; i < N; i++) all->most = fmaxf(all->most, stats[i].x);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float weight = weight_of(stats[i].x, all->most);
        all->sum += weight * stats[i].y;
        add_weighted(o, weight, rows[i]);
    }
    return o;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/* The blocks of a cluster, each of which has its sums in its first warp's rows: every block finishes its share of the columns. */
template <typename T, int D, typename S>
__device__ __forceinline__ void merge_cluster(const kv_args &a, const place &p, const merge_room<S> &room) {
    int size = (int)__clusterSizeInBlocks();
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#pragma unroll 1
    for (int i = (int)__clusterRelativeBlockRank() * THREADS + threadIdx.x; i < p.heads * (D / 4); i += size * THREADS) {
        int row = i / (D / 4), column = i % (D / 4) * 4;
        merged all;
        float4 o = add_up<MOST_BLOCKS>(
            size, [&](int block) { return (const float *)__cluster_map_shared_rank(room.total, block) + row * 2; },
            [&](int block) { return (const float *)__cluster_map_shared_rank(room.rows, block) + row * S::ROW + column; }, &all);
        write_row<T>(a, p.batch * a.h + p.first + row, D, column, o, all);
    }
    /* Nobody's memory goes while others read it. Nothing was written that they need, so o is not waited for. */
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}
#endif

template <typename T, int D> __global__ void __launch_bounds__(THREADS, BLOCKS) decode(const __grid_constant__ kv_args a) {
    using S = shape_of<T, D>;
    extern __shared__ __align__(128) unsigned char memory[];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (a.parts) cudaTriggerProgrammaticLaunchCompletion();
#endif
    place p = place_of(a);
    uint32_t base = tn_at_shared(memory);
    fetch<THREADS, HEADS, D>(base + RINGS, (const T *)a.q + (p.batch * a.h + p.first) * D, D, p.heads, threadIdx.x);
    tn_at_copy_commit();
    tn_at_online<D> w = {};
    w.most[0] = w.most[1] = -INFINITY;
    sweep<T, D>(a, p, base, w);
    tn_at_copy_wait<0>();
    __syncthreads();

    merge_room<S> room(memory);
    hand_over<S, D>(room, w);
    bool alone = true;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    alone = __clusterSizeInBlocks() == 1;
#endif
#pragma unroll 1
    for (int i = threadIdx.x; i < p.heads * (D / 4); i += THREADS) {
        int row = i / (D / 4), column = i % (D / 4) * 4;
        int64_t slice = p.batch * a.h + p.first + row;
        merged all;
        float4 o = add_up<WARPS>(
            WARPS, [&](int warp) { return room.stats + (warp * HEADS + row) * 2; },
            [&](int warp) { return room.rows + (warp * HEADS + row) * S::ROW + column; }, &all);
        if (!alone) { /* in place: nobody else reads these columns */
            *(float4 *)(room.rows + row * S::ROW + column) = o;
            if (column == 0) *(float2 *)(room.total + row * 2) = make_float2(all.most, all.sum);
        } else if (a.parts) {
            write_part(a, slice, blockIdx.x, D, column, o, all);
        } else {
            write_row<T>(a, slice, D, column, o, all);
        }
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (!alone) merge_cluster<T, D, S>(a, p, room);
#endif
}

/* The parts in the workspace: a block takes a head, a warp every fourth part of it. On Hopper it is started before the parts are there, and
 * waits. */
template <typename T, int D> __global__ void __launch_bounds__(THREADS) merge_parts(const __grid_constant__ kv_args a) {
    constexpr int TOGETHER = 8;
    __shared__ __align__(16) float rows[WARPS][D];
    __shared__ float2 of_warp[WARPS];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP, column = lane * 4 % D;
    int64_t slice = blockIdx.x;
    const float *parts = a.parts + slice * a.n_parts * D + column;
    const float2 *stats = (const float2 *)(a.parts + (int64_t)a.b * a.h * a.n_parts * D) + slice * a.n_parts;
    merged all = { 0, -INFINITY };
    float4 o = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int first = warp; first < a.n_parts; first += WARPS * TOGETHER) {
        merged next;
        float4 more = add_up<TOGETHER>((a.n_parts - first + WARPS - 1) / WARPS, [&](int i) { return stats + first + i * WARPS; },
                                       [&](int i) { return parts + (int64_t)(first + i * WARPS) * D; }, &next);
        float most = fmaxf(all.most, next.most), old = weight_of(all.most, most), young = weight_of(next.most, most);
        all = { all.sum * old + next.sum * young, most };
        o = make_float4(o.x * old, o.y * old, o.z * old, o.w * old);
        add_weighted(o, young, more);
    }
    if (lane * 4 < D) *(float4 *)(rows[warp] + column) = o;
    if (lane == 0) of_warp[warp] = make_float2(all.most, all.sum);
    __syncthreads();
    if (warp > 0 || lane * 4 >= D) return;
    o = add_up<WARPS>(
        WARPS, [&](int i) { return of_warp + i; }, [&](int i) { return rows[i] + column; }, &all);
    write_row<T>(a, slice, D, column, o, all);
}

/* ---- launches ---- */

/* How the keys of a sequence are spread: `splits` blocks take `chunk` keys each, and are one cluster or write parts. */
struct split {
    int64_t splits, chunk;
    bool cluster;
};

int64_t row_blocks(const tn_at_problem *p) { return (p->h / p->hk + HEADS - 1) / HEADS; }

constexpr int64_t FEW_TILES = 32, MANY_TILES = 64; /* of a sequence: to be read soon; worth a second kernel */

/* A block to every other multiprocessor keeps memory busy, to every one where more than reading is to be done: f32, or reading from the L2
 * cache as well. More blocks are slower, as they begin and end and are merged. Clusters of many blocks would leave multiprocessors out. */
split split_of(const tn_at_problem *p, const tn_device *device) {
    bool f32 = p->dtype == TN_F32, hopper = device->cuda_path == TN_CUDA_HOPPER;
    int64_t keys = WARPS * (f32 ? keys_of_tile<float> : keys_of_tile<tn_cuda_bf16>), tiles = (p->m + keys - 1) / keys;
    if (tiles == 0) return { 1, keys, false };
    int64_t blocks = p->b * p->hk * row_blocks(p), places = device->multiprocessors > 0 ? device->multiprocessors : 132;
    int64_t wanted = places / 2 * (f32 ? 2 : 1) * (row_blocks(p) > 1 && tiles >= FEW_TILES ? 2 : 1);
    int64_t splits = tn_at_within(wanted / blocks, 1, tiles < MANY_TILES && tiles > MOST_BLOCKS ? MOST_BLOCKS : tiles);
    int64_t each = (tiles + splits - 1) / splits;
    splits = (tiles + each - 1) / each;
    bool cluster = splits > 1 && splits <= MOST_BLOCKS && (tiles < MANY_TILES || splits * blocks <= places * 3 / 4 || splits == 2);
    return { splits, each * keys, hopper && cluster };
}

template <typename T, int D> cudaError_t start(const kv_args &a, const split &by, bool hopper, cudaStream_t stream) {
    using S = shape_of<T, D>;
    cudaError_t error = cudaFuncSetAttribute(decode<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)by.splits, (unsigned)(a.hk * a.row_blocks), (unsigned)a.b);
    how.blockDim = dim3(THREADS);
    how.dynamicSmemBytes = S::BYTES;
    how.stream = stream;
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)by.splits;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    how.attrs = &cluster;
    how.numAttrs = by.cluster ? 1 : 0;
    error = cudaLaunchKernelEx(&how, decode<T, D>, a);
    if (error != cudaSuccess || !a.parts) return error;
    cudaLaunchAttribute early;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    how.gridDim = dim3((unsigned)(a.b * a.h));
    how.dynamicSmemBytes = 0;
    how.attrs = &early;
    how.numAttrs = hopper ? 1 : 0;
    return cudaLaunchKernelEx(&how, merge_parts<T, D>, a);
}

size_t bytes_of_parts(const tn_at_problem *p, const split &by) {
    return by.splits > 1 && !by.cluster ? (size_t)(p->b * p->h * by.splits * (p->e + 2)) * sizeof(float) : 0;
}

cudaError_t run(const tn_at_problem *p, const split &by, bool hopper, void *workspace, cudaStream_t stream) {
    const double log2_e = 1.4426950408889634;
    kv_args a = {};
    a.q = p->q.x, a.k = p->k.x, a.v = p->v.x;
    a.o = p->o;
    a.lse = (float *)p->lse;
    a.n_parts = by.cluster ? 1 : (int)by.splits;
    a.parts = a.n_parts > 1 ? (float *)workspace : NULL;
    a.seqlens = p->seqlens;
    a.m = p->m, a.chunk = (int)by.chunk;
    a.b = (int)p->b, a.h = (int)p->h, a.hk = (int)p->hk, a.group = (int)(p->h / p->hk), a.row_blocks = (int)row_blocks(p);
    a.scale = (float)(p->q.factor * p->k.factor * log2_e);
    a.scale_v = (float)p->v.factor;
    if (p->dtype == TN_BF16) return (p->d == 128 ? start<tn_cuda_bf16, 128> : start<tn_cuda_bf16, 64>)(a, by, hopper, stream);
    return (p->d == 128 ? start<float, 128> : start<float, 64>)(a, by, hopper, stream);
}

} // namespace

bool tn_at_decode_kv_fits(const tn_at_problem *p, const tn_device *device) {
    if (device->cuda_path == TN_CUDA_PLAIN || (p->dtype != TN_BF16 && p->dtype != TN_F32) || p->n != 1 || p->k.rank || p->cu_seqlens)
        return false;
    if (p->d != p->e || (p->d != 128 && p->d != 64)) return false;
    size_t bytes = RINGS + HEADS * (size_t)p->d * tn_dtype_size(p->dtype);
    if (device->shared_bytes > 0 && device->shared_bytes < bytes) return false;
    bool aligned = tn_aligned16(p->q.x) && tn_aligned16(p->k.x) && tn_aligned16(p->v.x) && tn_aligned16(p->o);
    return aligned && p->m < 1 << 30 && p->b > 0 && p->b < 65536 && p->hk * row_blocks(p) < 65536 && p->b * p->h < INT32_MAX;
}

size_t tn_at_decode_kv_workspace(const tn_at_problem *p, const tn_device *device) { return bytes_of_parts(p, split_of(p, device)); }

int tn_at_decode_kv_forward(const tn_at_problem *p, const tn_device *device, void *workspace, void *stream) {
    return (int)run(p, split_of(p, device), device->cuda_path == TN_CUDA_HOPPER, workspace, (cudaStream_t)stream);
}
