/* One query for each sequence against a cache of factors of rank 1, at the speed of reading the cache.
 *
 * All heads share bk and bv, so heads are the rows of two products, and nothing of h x d is made for a token:
 *
 *     t [heads, keys] = q bk'      s = t * ak'      o [heads, e] += (exp(s - maximum) * av') bv
 *
 * A block takes a part of a sequence's keys for up to 32 heads. Its four warps are 16 heads by 16 keys each (of a tile of 32 keys, or of 64
 * where there are no more than 16 heads); tiles of bk, bv, ak and av come by cp.async, several ahead, with their 16-byte pieces permuted so
 * that ldmatrix meets no bank twice:
 *
 *     stage | bk [keys][d] | bv [keys][e] | ak [keys][heads] | av [keys][heads] |
 *
 * ak and av, read by ldmatrix.trans, fall into place beside the accumulators of t. At the end the warps of a block, the blocks of a cluster
 * (Hopper) and, where there are more, the parts in the workspace are merged by their maxima and sums, always in the same order. */

#include "attention_decode.cuh"
#include "attention_online.cuh"

namespace {

/* More than 16 heads (wide), or not: stages of a long part's pipeline, and blocks of a short one that share a multiprocessor. */
constexpr int WIDE_STAGES = 5, NARROW_STAGES = 3, WIDE_BLOCKS = 3, NARROW_BLOCKS = 2;

constexpr int MOST_RANKS = 64; /* of the query */

/* ---- where a block works, how rows come to shared memory, the query ---- */

/* Where a block works: heads from head0 (a multiple of 8) on, of which it writes [first, last); keys [begin, end). */
struct place {
    int64_t batch, begin, end;
    int head0, first, last, pieces;
};

__device__ __forceinline__ place place_of(const tn_at_decode_args &a, int heads) {
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

/* Rows of `pieces` pieces of 16 bytes (zeros behind them, and behind the rows there are) into a tile. A thread stays with its piece and
 * goes down the rows by a multiple of 8, so that neither the permutation nor anything else is worked out twice: with cold caches
 * instructions come no faster than data, and code of few instructions is what makes short sequences quick. */
template <int THREADS, int ROWS, int ROW_BYTES>
__device__ __forceinline__ void fetch_rows(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int pieces, int there) {
    constexpr int PIECES = ROW_BYTES / 16, STEP = THREADS / PIECES;
    static_assert(STEP % 8 == 0 && (ROWS % STEP == 0 || ROWS < STEP), "rows of a thread are permuted alike");
    int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    bool mine = piece < pieces;
    if (ROWS < STEP && row >= ROWS) return;
    from += (int64_t)row * stride + piece * 8;
    to += tn_at_piece<ROW_BYTES>(row, piece);
#pragma unroll
    for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++) {
        bool here = mine && row + i * STEP < there;
        tn_at_copy_16(to + i * STEP * ROW_BYTES, here ? from + i * STEP * stride : from - (int64_t)row * stride - piece * 8, here);
    }
}

/* The query's factors: bq [ranks][D], then aq [HEADS][64], zeros behind the ranks there are and the heads there are. What comes by cp.async
 * joins the next group. S: a block's THREADS, HEADS, KEY_WARPS. */
template <typename S, int D> __device__ __forceinline__ void fetch_query(const tn_at_decode_args &a, const place &p, unsigned char *to) {
    const tn_cuda_bf16 *aq = a.aq + (p.batch * a.h + p.head0) * a.rq, *bq = a.bq + p.batch * a.rq * D;
    int heads = p.pieces * 8, ranks = (a.rq + 15) / 16 * 16;
    uint32_t bq_at = tn_at_shared(to), aq_at = bq_at + MOST_RANKS * D * 2;
#pragma unroll 1
    for (int r = 0; r < ranks; r += 16) fetch_rows<S::THREADS, 16, D * 2>(bq_at + r * D * 2, bq + r * D, D, D / 8, a.rq - r);
    constexpr int THREADS_OF_HEAD = S::THREADS / S::HEADS;
    int head = threadIdx.x / THREADS_OF_HEAD;
    if (a.rq % 8 == 0) {
#pragma unroll 1
        for (int piece = threadIdx.x % THREADS_OF_HEAD; piece < ranks / 8; piece += THREADS_OF_HEAD) {
            bool here = head < heads && piece * 8 < a.rq;
            tn_at_copy_16(aq_at + tn_at_piece<MOST_RANKS * 2>(head, piece), here ? aq + head * a.rq + piece * 8 : aq, here);
        }
    } else {
#pragma unroll 1
        for (int r = threadIdx.x % THREADS_OF_HEAD; r < ranks; r += THREADS_OF_HEAD)
            *(tn_cuda_bf16 *)(to + MOST_RANKS * D * 2 + tn_at_piece<MOST_RANKS * 2>(head, r / 8) + r % 8 * 2) =
                head < heads && r < a.rq ? aq[head * a.rq + r] : __float2bfloat16_rn(0.0f);
    }
}

/* q [HEADS][D] of what fetch_query brought, without scale. A warp takes its heads, and its share of the columns. In a rolled loop, since
 * with cold caches instructions come no faster than data. */
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

/* Of numbers whose maximum is `most`, beside others whose maximum is `top`. */
__device__ __forceinline__ float weight_of(float most, float top) { return most == -INFINITY ? 0.0f : tn_at_exp2(most - top); }

/* ---- a block's memory ---- */

template <int D, int E, int MT> struct shape_of {
    static constexpr int WARPS = 4, THREADS = TN_WARP * WARPS;
    static constexpr int HEADS = 16 * MT, KEY_WARPS = WARPS / MT, KEYS = 16 * KEY_WARPS;
    static constexpr int STAGES = MT == 2 ? WIDE_STAGES : NARROW_STAGES, BLOCKS = MT == 2 ? WIDE_BLOCKS : NARROW_BLOCKS;
    static constexpr int BK = KEYS * D * 2, BV = KEYS * E * 2, A = KEYS * HEADS * 2, STAGE = BK + BV + 2 * A, Q = HEADS * D * 2;
    static constexpr int ROW = E + 8; /* of a merged o, so that the rows of a fragment lie in other banks */
    __host__ __device__ static constexpr int bytes(int stages) { return stages * STAGE + Q; }
    static_assert(MOST_RANKS * (D + HEADS) * 2 <= STAGE, "the query's factors lie where the last stage will be");
    static_assert(HEADS * (KEY_WARPS * (ROW + 2) + 2) * 4 <= bytes(2), "the merge runs where the stages were");
};

template <typename S, int D, int E>
__device__ __forceinline__ void fetch_tile(const tn_at_decode_args &a, const place &p, uint32_t stage, int64_t key) {
    int there = (int)min((int64_t)S::KEYS, p.end - key);
    int64_t row = p.batch * a.m + key;
    fetch_rows<S::THREADS, S::KEYS, D * 2>(stage, a.bk + row * D, D, D / 8, there);
    fetch_rows<S::THREADS, S::KEYS, S::HEADS * 2>(stage + S::BK + S::BV, a.ak + row * a.h + p.head0, a.h, p.pieces, there);
    fetch_rows<S::THREADS, S::KEYS, E * 2>(stage + S::BK, a.bv + row * E, E, E / 8, there);
    fetch_rows<S::THREADS, S::KEYS, S::HEADS * 2>(stage + S::BK + S::BV + S::A, a.av + row * a.h + p.head0, a.h, p.pieces, there);
}

/* ---- the sweep over the keys ---- */

template <typename S, int D, int E>
__device__ __forceinline__ void take_tile(const tn_at_decode_args &a, const uint32_t (&q)[D / 16][4], uint32_t stage, int warp_heads,
                                          int warp_keys, int there, tn_at_online<E> &w) {
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
    w.rise_to(most);
    uint32_t p[4];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float base = w.base(i);
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

constexpr int MOST_BLOCKS = 8; /* of a cluster */

struct merged {
    float sum, most;
};

__device__ __forceinline__ void add_weighted(float4 &sum, float weight, float4 x) {
    sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
}

/* Four columns of a head's o, and with the first of them its log-sum-exp. */
__device__ __forceinline__ void write_row(const tn_at_decode_args &a, int64_t batch, int head, int E, int column, float4 o, merged all) {
    float factor = all.sum == 0 ? 0.0f : a.scale_v / all.sum;
    uint2 words = make_uint2(tn_at_pair(o.x * factor, o.y * factor), tn_at_pair(o.z * factor, o.w * factor));
    *(uint2 *)(a.o + (batch * a.h + head) * E + column) = words;
    if (a.lse && column == 0) a.lse[batch * a.h + head] = all.sum == 0 ? -INFINITY : (all.most + log2f(all.sum)) * 0.693147181f;
}

__device__ __forceinline__ void write_part(const tn_at_decode_args &a, int64_t batch, int part, int head, int E, int column, float4 o,
                                           merged all) {
    int64_t at = (batch * a.n_parts + part) * a.h + head;
    *(float4 *)(a.parts + at * E + column) = o;
    if (column == 0) *(float2 *)(a.parts + (int64_t)a.b * a.n_parts * a.h * E + at * 2) = make_float2(all.most, all.sum);
}

/* A block's memory once the stages are done with. */
template <typename S> struct merge_room {
    float *rows;  /* [key warp][head][ROW] */
    float *most;  /* [key warp][head] */
    float *sum;   /* [key warp][head] */
    float *total; /* [head][2]: the block's maximum and sum */
    __device__ __forceinline__ explicit merge_room(unsigned char *memory) {
        rows = (float *)memory;
        total = rows + S::KEY_WARPS * S::HEADS * S::ROW;
        most = total + 2 * S::HEADS;
        sum = most + S::KEY_WARPS * S::HEADS;
    }
};

/* The warps of a block bring what they have to one maximum a head, so that it only has to be added up. */
template <typename S, int E>
__device__ __forceinline__ void put_together(const merge_room<S> &room, const tn_at_online<E> &w, int warp_heads, int key_warp) {
    int lane = threadIdx.x % TN_WARP;
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (lane % 4 == 0) room.most[key_warp * S::HEADS + warp_heads + i * 8 + lane / 4] = w.most[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int head = warp_heads + i * 8 + lane / 4, at = key_warp * S::HEADS + head;
        float top = -INFINITY;
#pragma unroll
        for (int k = 0; k < S::KEY_WARPS; k++) top = fmaxf(top, room.most[k * S::HEADS + head]);
        float weight = weight_of(w.most[i], top), sum = w.sum[i];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) room.sum[at] = sum * weight;
        if (lane % 4 == 0 && key_warp == 0) room.total[head * 2] = top;
#pragma unroll
        for (int t = 0; t < E / 8; t++)
            *(float2 *)(room.rows + at * S::ROW + t * 8 + lane % 4 * 2) = make_float2(w.o[t][2 * i] * weight, w.o[t][2 * i + 1] * weight);
    }
    __syncthreads();
}

/* Four columns of a head's o, added up over the block's warps. */
template <typename S> __device__ __forceinline__ float4 add_up(const merge_room<S> &room, int head, int column, merged *all) {
    float4 o = make_float4(0, 0, 0, 0);
    *all = { 0, room.total[head * 2] };
#pragma unroll
    for (int k = 0; k < S::KEY_WARPS; k++) {
        add_weighted(o, 1, *(const float4 *)(room.rows + (k * S::HEADS + head) * S::ROW + column));
        all->sum += room.sum[k * S::HEADS + head];
    }
    return o;
}

/* A head's columns from n parts (at most TN_WARP), four to a lane; row(i) gives the place of part i, stat(i) that of its maximum and sum.
 * All is asked for before anything is waited for, eight parts at a time. */
template <int E, typename Row, typename Stat> __device__ __forceinline__ float4 merge_row(int n, Row row, Stat stat, merged *all) {
    constexpr int TOGETHER = 8;
    int lane = threadIdx.x % TN_WARP;
    float2 mine = lane < n ? *(const float2 *)stat(lane) : make_float2(-INFINITY, 0.0f);
    float4 o = make_float4(0, 0, 0, 0);
    float weight = 0;
#pragma unroll 1
    for (int first = 0; first < n; first += TOGETHER) {
        float4 part[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) part[i] = *(const float4 *)(row(min(first + i, n - 1)) + lane * 4 % E);
        if (first == 0) {
            float most = tn_warp_max(mine.x);
            weight = weight_of(mine.x, most);
            *all = { tn_warp_sum(weight * mine.y), most };
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            float of_part = __shfl_sync(0xffffffffu, weight, min(first + i, TN_WARP - 1));
            add_weighted(o, first + i < n ? of_part : 0.0f, part[i]);
        }
    }
    return o;
}

template <int D, int E, int MT>
__global__ void __launch_bounds__(shape_of<D, E, MT>::THREADS, shape_of<D, E, MT>::BLOCKS) decode(tn_at_decode_args a) {
    using S = shape_of<D, E, MT>;
    extern __shared__ __align__(128) unsigned char memory[];
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP, warp_heads = warp % MT * 16, key_warp = warp / MT;
    place p = place_of(a, S::HEADS); /* rows of heads that there are not hold anything, and are not written */
    uint32_t stages = tn_at_shared(memory);
    int n_tiles = p.end > p.begin ? (int)((p.end - p.begin + S::KEYS - 1) / S::KEYS) : 0;

    unsigned char *factors = memory + (a.stages - 1) * S::STAGE, *query = memory + a.stages * S::STAGE;
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

    tn_at_online<E> w = {};
    w.most[0] = w.most[1] = -INFINITY;
#pragma unroll 1
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

    merge_room<S> room(memory);
    put_together<S, E>(room, w, warp_heads, key_warp);
    constexpr int PER_ROW = E / 4;
    int size = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    size = (int)__clusterSizeInBlocks();
#endif
#pragma unroll 2
    for (int i = threadIdx.x; i < S::HEADS * PER_ROW; i += S::THREADS) {
        int row = i / PER_ROW, column = i % PER_ROW * 4, head = p.head0 + row;
        merged all;
        float4 o = add_up<S>(room, row, column, &all);
        if (size > 1) { /* in place: nobody else reads these columns */
            *(float4 *)(room.rows + row * S::ROW + column) = o;
            if (column == 0) room.total[row * 2 + 1] = all.sum;
        } else if (head >= p.first && head < p.last) {
            if (a.parts) write_part(a, p.batch, blockIdx.x, head, E, column, o, all);
            else write_row(a, p.batch, head, E, column, o, all);
        }
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (size == 1) return;
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#pragma unroll 1
    for (int i = (int)__clusterRelativeBlockRank() * S::THREADS + threadIdx.x; i < S::HEADS * PER_ROW; i += size * S::THREADS) {
        int row = i / PER_ROW, column = i % PER_ROW * 4, head = p.head0 + row;
        if (head < p.first || head >= p.last) continue;
        float2 stat[MOST_BLOCKS];
        float4 part[MOST_BLOCKS], o = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < MOST_BLOCKS; k++)
            if (k < size) {
                stat[k] = *(const float2 *)((const float *)__cluster_map_shared_rank(room.total, k) + row * 2);
                part[k] = *(const float4 *)((const float *)__cluster_map_shared_rank(room.rows, k) + row * S::ROW + column);
            }
        merged all = { 0, -INFINITY };
#pragma unroll
        for (int k = 0; k < MOST_BLOCKS; k++)
            if (k < size) all.most = fmaxf(all.most, stat[k].x);
#pragma unroll
        for (int k = 0; k < MOST_BLOCKS; k++)
            if (k < size) {
                float weight = weight_of(stat[k].x, all.most);
                all.sum += weight * stat[k].y;
                add_weighted(o, weight, part[k]);
            }
        if (a.parts) write_part(a, p.batch, blockIdx.x / size, head, E, column, o, all);
        else write_row(a, p.batch, head, E, column, o, all);
    }
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    /* Nobody's memory goes while others read it. Nothing was written that they need, so o is not waited for. */
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

constexpr int MERGE_THREADS = 128;

/* The parts in the workspace; a warp takes a head. On Hopper it is started before the parts are there, and waits. */
template <int E> __global__ void __launch_bounds__(MERGE_THREADS) merge_parts(tn_at_decode_args a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
    int64_t at = (int64_t)blockIdx.x * (MERGE_THREADS / TN_WARP) + threadIdx.x / TN_WARP;
    if (at >= (int64_t)a.b * a.h) return;
    int64_t batch = at / a.h, head = at % a.h;
    const float *stats = a.parts + (int64_t)a.b * a.n_parts * a.h * E;
    merged all = { 0, -INFINITY };
    float4 o = make_float4(0, 0, 0, 0);
    for (int first = 0; first < a.n_parts; first += TN_WARP) {
        merged next;
        int64_t at_first = (batch * a.n_parts + first) * a.h + head;
        float4 piece = merge_row<E>(
            min(a.n_parts - first, TN_WARP), [&](int k) { return a.parts + (at_first + (int64_t)k * a.h) * E; },
            [&](int k) { return stats + (at_first + (int64_t)k * a.h) * 2; }, &next);
        float most = fmaxf(all.most, next.most), old = weight_of(all.most, most), young = weight_of(next.most, most);
        all = { all.sum * old + next.sum * young, most };
        o = make_float4(o.x * old, o.y * old, o.z * old, o.w * old);
        add_weighted(o, young, piece);
    }
    int column = threadIdx.x % TN_WARP * 4;
    if (column < E) write_row(a, batch, (int)head, E, column, o, all);
}

/* ---- launches ---- */

bool is_wide(const tn_at_problem *p) { return p->h > 16 && p->algo != TN_TPA_BH; }
int heads_of_block(const tn_at_problem *p) { return p->algo == TN_TPA_BH ? 1 : is_wide(p) ? 32 : 16; }
int64_t head_blocks(const tn_at_problem *p) { return (p->h + heads_of_block(p) - 1) / heads_of_block(p); }

constexpr int64_t SMALL_TILES = 64; /* of a sequence: read as fast as a second kernel starts */

constexpr int64_t FEW_PARTS = 16; /* cost the second kernel nothing that shows */

/* A kernel's shape as the host sees it. */
struct form {
    int64_t keys, heads, most_stages, most_blocks;
};

form form_of(const tn_at_problem *p) {
    if (is_wide(p)) return { 32, 32, WIDE_STAGES, WIDE_BLOCKS };
    return { 64, 16, NARROW_STAGES, NARROW_BLOCKS };
}

/* Room for every tile of a block and the query's factors, where that is less than a pipeline. */
int stages_of(const form &f, int64_t tiles) { return (int)tn_at_within(tiles + 1, 2, f.most_stages); }

int64_t multiprocessors_of(const tn_device *device) { return device->multiprocessors > 0 ? device->multiprocessors : 132; }

/* Blocks that the device runs at once when each takes so many tiles. */
int64_t places_of(const tn_at_problem *p, const tn_device *device, const form &f, int64_t tiles) {
    int64_t bytes = stages_of(f, tiles) * f.keys * (p->d + p->e + 2 * f.heads) * 2 + f.heads * p->d * 2 + 1024;
    int64_t shared = device->shared_bytes > 0 ? device->shared_bytes : 166912;
    return tn_at_within(shared / bytes, 1, f.most_blocks) * multiprocessors_of(device);
}

/* The blocks of a sequence as one cluster, of as many blocks as can run at once with those of the others: a GPC does not divide evenly into
 * clusters of 8 or 4, so a tenth of the places is left out of account. */
bool split_in_cluster(const tn_at_problem *p, const tn_device *device, const form &f, tn_at_split *split) {
    int64_t tiles = (p->m + f.keys - 1) / f.keys, blocks = p->b * head_blocks(p);
    for (int64_t size = MOST_BLOCKS; size > 1; size /= 2) {
        int64_t each = (tiles + size - 1) / size;
        if (size > tiles || size * blocks > places_of(p, device, f, each) * 9 / 10) continue;
        *split = { (int)size, (int)size, each * f.keys, 0 };
        return true;
    }
    return false;
}

/* For attention_decode_short.cu: a chunk's keys are 16 to a warp. Clusters of 4 find room in three quarters of the device at the least,
 * since a GPC does not divide evenly into them; two clusters' blocks on one multiprocessor take longer than larger blocks on more of
 * them. */
bool split_short(const tn_at_problem *p, const tn_device *device, tn_at_split *split) {
    int64_t blocks = p->b * head_blocks(p), places = multiprocessors_of(device), for_fours = places * 3 / 4, chunk = 64;
    if (!is_wide(p) || !tn_at_decode_short_fits(p->q.rank) || p->m > 512 || blocks > places) return false;
    int cluster = 2, sharers = p->m <= 128 || blocks * 4 <= places ? 2 : 1;
    if (p->m <= 64) cluster = 1, sharers = blocks * 4 <= places ? 4 : 2;
    else if (p->m > 256 && blocks * 4 <= for_fours) cluster = 4, sharers = 1;
    else if (p->m > 128 && p->m <= 256 && p->d == 128 && blocks * 8 <= for_fours) cluster = 4;
    while (cluster * chunk < p->m) chunk *= 2;
    if (chunk == 256 && blocks * cluster > places) return false;
    *split = { cluster, cluster, chunk, sharers };
    return true;
}

/* With few tiles the blocks of a sequence are one cluster. Else they fill the device, twice over where that leaves few parts. */
tn_at_split split_of(const tn_at_problem *p, const tn_device *device) {
    form f = form_of(p);
    int64_t tiles = (p->m + f.keys - 1) / f.keys, blocks = p->b * head_blocks(p);
    bool hopper = device->cuda_path == TN_CUDA_HOPPER;
    tn_at_split split;
    if (tiles == 0 || (p->algo != TN_TPA_BN && p->algo != TN_TPA_AUTO)) return { 1, 1, (tiles > 0 ? tiles : 1) * f.keys, 0 };
    if (hopper && split_short(p, device, &split)) return split;
    if (hopper && tiles <= SMALL_TILES && split_in_cluster(p, device, f, &split)) return split;
    int64_t twice = 2 * multiprocessors_of(device) / blocks, once = twice / 2;
    int64_t splits = twice < FEW_PARTS ? twice : once > FEW_PARTS ? once : FEW_PARTS;
    if (splits > tiles) splits = tiles;
    if (splits < 1) splits = 1;
    int64_t each = (tiles + splits - 1) / splits;
    return { (int)((tiles + each - 1) / each), 1, each * f.keys, 0 };
}

template <int D, int E, int MT>
cudaError_t start(const tn_at_decode_args &a, const tn_at_split &split, int64_t head_groups, cudaStream_t stream) {
    using S = shape_of<D, E, MT>;
    cudaError_t error = cudaFuncSetAttribute(decode<D, E, MT>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::bytes(S::STAGES));
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)split.splits, (unsigned)a.b, (unsigned)head_groups);
    how.blockDim = dim3(S::THREADS);
    how.dynamicSmemBytes = S::bytes(a.stages);
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
    how.gridDim = dim3(tn_blocks((int64_t)a.b * a.h, MERGE_THREADS / TN_WARP));
    how.blockDim = dim3(MERGE_THREADS);
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
    tn_at_decode_args a = {};
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
    form f = form_of(p);
    a.stages = stages_of(f, split.chunk / f.keys);
    a.scale = (float)(p->q.factor * p->k.factor * log2_e);
    a.scale_v = (float)p->v.factor;
    a.hopper = device->cuda_path == TN_CUDA_HOPPER;
    cudaStream_t on = (cudaStream_t)stream;
    int64_t groups = head_blocks(p);
    if (split.sharers > 0) return tn_at_decode_short(&a, p->d, &split, groups, on);
    if (p->d == 128) return (int)(is_wide(p) ? start<128, 128, 2> : start<128, 128, 1>)(a, split, groups, on);
    return (int)(is_wide(p) ? start<64, 64, 2> : start<64, 64, 1>)(a, split, groups, on);
}
