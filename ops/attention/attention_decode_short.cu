/* One query against a short cache of factors of rank 1, where time is a chain of latencies: the memory's, and that of instructions, which
 * with cold caches come no faster than data. All scores of 32 heads exist at once, so weights are made once, nothing of the width of o is
 * merged between blocks, and q itself is not made:
 *
 *     t' [keys, ranks] = bk bq'      s' [keys, 32 heads] = (t' aq') * ak      p = exp(s' - maximum) * av      o [32, columns] = p bv
 *
 * The blocks of a cluster share a sequence in two ways. By keys: a warp makes p of 16 keys, from factors that come straight to its registers,
 * and hands it to every block of the cluster, with its block's maxima and its own sums of exp. By columns: a block has some columns of o and
 * all keys, its own first, while the others' p are on their way. A warp of it has some tiles of 8 columns and a part of every block's keys;
 * the warps of the same columns add up in the end. Where there is room for more blocks, several clusters make the same p and share the
 * columns.
 *
 * What comes from other blocks is counted by a barrier in the memory that it comes to (st.async), so nobody waits for what he sent to be
 * there. A block reads no memory but its own, and ends when it has all that it is sent: nothing is sent to a block that is gone.
 *
 *     bv [all keys][own columns] | p [all keys][32] | o [part of the keys][32][own columns] | maxima [block][32] | sums [warp][32] |
 *     own maxima [32], 0 | barrier |
 */
#include <cfloat>

#include "attention_decode.cuh"

namespace {

constexpr int HEADS = 32;
constexpr int MOST_RANKS = 16;    /* of the query */
constexpr float LEAST = -FLT_MAX; /* maximum of no scores */

/* W warps to a block, C blocks to a cluster, N clusters to a sequence. */
template <int D, int W, int C, int N> struct shape_of {
    static constexpr int THREADS = W * TN_WARP, KEYS = W * 16, ALL = C * KEYS, COLUMNS = D / C / N;
    /* Tiles of 8 columns, of a warp; the warps that take them all, and how many such groups share a block's keys. */
    static constexpr int LEAST_TILES = COLUMNS < 32 ? 1 : 2, TILES = COLUMNS / 8 / W > LEAST_TILES ? COLUMNS / 8 / W : LEAST_TILES;
    static constexpr int PARTS = COLUMNS / 8 / TILES, GROUPS = W / PARTS, GROUP_KEYS = KEYS / GROUPS;
    static constexpr int ROW = COLUMNS + 8; /* of o, so that eight of them lie in other banks */
    static_assert(PARTS * GROUPS == W && GROUP_KEYS % 32 == 0, "every warp has its share");
    static constexpr int P = ALL * COLUMNS * 2, O = P + ALL * HEADS * 2, MOST = O + GROUPS * HEADS * ROW * 4;
    static constexpr int SUM = MOST + C * HEADS * 4, OWN = SUM + C * W * HEADS * 4, BARRIER = OWN + (HEADS + 2) * 4, BYTES = BARRIER + 8;
    static constexpr int SENT = (C - 1) * (KEYS * 2 + 4 + W * 4) * HEADS; /* bytes, to a block */
};

/* ---- the cluster ---- */

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define TN_AT_CLUSTERS 1
#else
#define TN_AT_CLUSTERS 0
#endif

template <int C> __device__ __forceinline__ void say_started() {
#if TN_AT_CLUSTERS
    if (C > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
template <int C> __device__ __forceinline__ void await_start() {
#if TN_AT_CLUSTERS
    if (C > 1) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

/* Before anybody may send: how many bytes are going to come. */
template <int C> __device__ __forceinline__ void expect(uint32_t barrier, int bytes) {
#if TN_AT_CLUSTERS
    if (C == 1) return;
    if (threadIdx.x == 0)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(barrier) : "memory");
    __syncwarp();
    if (threadIdx.x == 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}
template <int C> __device__ __forceinline__ void await_others(uint32_t barrier) {
#if TN_AT_CLUSTERS
    uint32_t there = C == 1;
    while (!there)
        asm volatile("{\n\t.reg .pred all;\n\t"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 all, [%1], 0;\n\t"
                     "selp.b32 %0, 1, 0, all;\n\t}"
                     : "=r"(there)
                     : "r"(barrier)
                     : "memory");
#endif
}

/* The same place in the memory of block `rank`. */
__device__ __forceinline__ uint32_t in_block(uint32_t at, int rank) {
#if TN_AT_CLUSTERS
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
#endif
    return at;
}
__device__ __forceinline__ void send(uint32_t to, uint32_t barrier, const uint32_t (&x)[4]) {
#if TN_AT_CLUSTERS
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to), "r"(x[0]),
                 "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(barrier)
                 : "memory");
#endif
}
__device__ __forceinline__ void send(uint32_t to, uint32_t barrier, float x) {
#if TN_AT_CLUSTERS
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(__float_as_uint(x)),
                 "r"(barrier)
                 : "memory");
#endif
}

/* ---- what comes from memory, all of it asked for at once ---- */

struct place {
    int rank, column;      /* the block's, in its cluster; its first of o */
    int heads;             /* of 32, that there are */
    int key, there, last;  /* a thread's first key; how many there are in the sequence; the last */
    uint64_t token, slice; /* the sequence's first, and its first head's, of all */
};

template <typename S, int C> __device__ __forceinline__ place place_of(const tn_at_decode_args &a) {
    place at;
    int head0 = (int)blockIdx.z * HEADS;
    at.there = (int)a.m;
    if (a.seqlens) at.there = (int)tn_at_within(a.seqlens[blockIdx.y], 0, a.m);
    at.last = max(at.there - 1, 0);
    at.rank = (int)blockIdx.x % C;
    at.column = (int)blockIdx.x * S::COLUMNS;
    at.heads = min(HEADS, a.h - head0);
    at.key = at.rank * S::KEYS + (int)(threadIdx.x / TN_WARP * 16 + threadIdx.x % TN_WARP / 4);
    at.token = (uint64_t)blockIdx.y * (uint32_t)a.m;
    at.slice = (uint64_t)blockIdx.y * (uint32_t)a.h + head0;
    return at;
}

/* Rows of a tensor, from an address that the compiler knows nothing of, so that a row's is one addition to it. In place of rows behind the
 * last comes the last again: it counts for nothing. */
struct rows_from {
    const char *at;
    int last;
    uint32_t stride;
    __device__ __forceinline__ rows_from(const tn_cuda_bf16 *first, int last, int64_t width)
        : at((const char *)first), last(last), stride((uint32_t)width * 2) {
        asm volatile("" : "+l"(at));
    }
    __device__ __forceinline__ const char *operator[](int row) const { return at + (uint64_t)(uint32_t)min(row, last) * stride; }
};

/* Asked for here and now, whatever the compiler thinks. What all warps of a block want (the query) comes by way of the L1 cache. */
__device__ __forceinline__ void load(uint32_t (&x)[4], const char *from) {
    asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "l"(from)
                 : "memory");
}
__device__ __forceinline__ void load_cached(uint32_t (&x)[4], const char *from) {
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "l"(from) : "memory");
}
__device__ __forceinline__ void load_cached(uint32_t (&x)[2], const char *from) {
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "l"(from) : "memory");
}

/* A thread's share of a warp's 16 keys: of keys lane / 4 and lane / 4 + 8, pieces lane % 4 of bk, and heads 8 (lane % 4) on. Of the query:
 * the same pieces of two ranks, and four ranks of four heads. Ranks and heads are taken in the order in which later products find them in
 * place: column i of a tile j of 8 is head 8 (i / 2) + 2 j + i % 2, and rank 4 (i / 2) + 2 j + i % 2. */
template <int D> struct factors { uint32_t bk[2][D / 32][4], bq[2][D / 32][4], ak[2][4], av[2][4], aq[4][2]; };

template <typename S, int D>
__device__ __forceinline__ void fetch(factors<D> &f, const tn_at_decode_args &a, const place &at, uint32_t memory) {
    int lane = threadIdx.x % TN_WARP, column = lane / 4, quarter = lane % 4, head0 = (int)blockIdx.z * HEADS;
    rows_from bk(a.bk + at.token * D + quarter * 8, at.last, D);
    rows_from bq(a.bq + (uint64_t)blockIdx.y * a.rq * D + quarter * 8, a.rq - 1, D);
    rows_from aq(a.aq + at.slice * a.rq + quarter * 4, at.heads - 1, a.rq);
    int head = min(quarter * 8, at.heads - 8);
    rows_from ak(a.ak + at.token * a.h + head0 + head, at.last, a.h), av(a.av + at.token * a.h + head0 + head, at.last, a.h);
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < D / 32; i++) load(f.bk[j][i], bk[at.key + j * 8] + i * 64);
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < D / 32; i++) load_cached(f.bq[j][i], bq[column / 2 * 4 + j * 2 + column % 2] + i * 64);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        f.aq[j][0] = f.aq[j][1] = 0;
        if (quarter * 4 < a.rq) load_cached(f.aq[j], aq[column / 2 * 8 + j * 2 + column % 2]);
    }
#pragma unroll
    for (int j = 0; j < 2; j++) load(f.ak[j], ak[at.key + j * 8]), load(f.av[j], av[at.key + j * 8]);

    constexpr int PIECES = S::COLUMNS / 8, STEP = S::THREADS / PIECES;
    static_assert(STEP % 8 == 0, "rows of a thread are permuted alike");
    int row = (int)(threadIdx.x / PIECES), piece = (int)(threadIdx.x % PIECES);
    rows_from bv(a.bv + at.token * D + at.column + piece * 8, at.last, D);
    uint32_t to = memory + tn_at_piece<S::COLUMNS * 2>(row, piece);
#pragma unroll
    for (int i = 0; i < S::ALL / STEP; i++) tn_at_copy_16(to + i * STEP * S::COLUMNS * 2, bv[row + i * STEP], true);
}

/* ---- by keys ---- */

/* A thread's scores, later weights: [j][2 i + k] of key lane / 4 + 8 i and head 8 (lane % 4) + 2 j + k. Zero is 0, but the compiler does
 * not know until all has been asked for: else it would put bk in order, and wait for it, before. */
template <int D> __device__ __forceinline__ void score(float (&s)[4][4], const factors<D> &f, float scale, uint32_t zero) {
    float t[2][4] = {};
#pragma unroll
    for (int i = 0; i < D / 32; i++)
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            uint32_t keys[4] = { f.bk[0][i][k] ^ zero, f.bk[1][i][k] ^ zero, f.bk[0][i][k + 1] ^ zero, f.bk[1][i][k + 1] ^ zero };
#pragma unroll
            for (int j = 0; j < 2; j++) tn_at_multiply_add(t[j], keys, f.bq[j][i][k], f.bq[j][i][k + 1]);
        }
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = tn_at_pair(t[i / 2][i % 2 * 2] * scale, t[i / 2][i % 2 * 2 + 1] * scale);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
        tn_at_multiply_add(s[j], x, f.aq[j][0], f.aq[j][1]);
    }
}

/* Floats as integers in the same order. */
__device__ __forceinline__ int ordered(float x) {
    int bits = __float_as_int(x);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
__device__ __forceinline__ float of_ordered(int bits) { return __int_as_float(bits ^ (bits >> 31 & 0x7fffffff)); }

/* Brings together what the eight lanes with the same heads have: a lane gets head 8 (lane % 4) + lane / 4. */
template <typename F> __device__ __forceinline__ float bring_together(const float (&x)[8], F f) {
    int lane = threadIdx.x % TN_WARP;
    float a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = f(lane & 16 ? x[i + 4] : x[i], __shfl_xor_sync(0xffffffffu, lane & 16 ? x[i] : x[i + 4], 16));
#pragma unroll
    for (int i = 0; i < 2; i++) b[i] = f(lane & 8 ? a[i + 2] : a[i], __shfl_xor_sync(0xffffffffu, lane & 8 ? a[i] : a[i + 2], 8));
    return f(lane & 4 ? b[1] : b[0], __shfl_xor_sync(0xffffffffu, lane & 4 ? b[0] : b[1], 4));
}
__device__ __forceinline__ int head_of_lane() { return (int)(threadIdx.x % 4 * 8 + threadIdx.x % TN_WARP / 4); }

__device__ __forceinline__ float half_of(uint32_t pair, int i) { return i % 2 ? tn_at_high(pair) : tn_at_low(pair); }

/* Scores to weights, against the maxima of the block's keys; sum: of exp, of the warp's keys and the lane's head. */
template <typename S, int D>
__device__ __forceinline__ void weigh(uint32_t (&p)[2][4], float *sum, float (&s)[4][4], const factors<D> &f, const place &at, int *own) {
    float most[8], sums[8];
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float &x = s[i / 2][k * 2 + i % 2];
            x = at.key + k * 8 < at.there ? x * half_of(f.ak[k][i / 2], i) : -INFINITY;
            most[i] = k ? fmaxf(most[i], x) : x;
        }
    atomicMax(own + head_of_lane(), ordered(bring_together(most, [](float x, float y) { return fmaxf(x, y); })));
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) most[i] = of_ordered(own[threadIdx.x % 4 * 8 + i]), sums[i] = 0;
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float low = tn_at_exp2(s[j][k * 2] - most[2 * j]), high = tn_at_exp2(s[j][k * 2 + 1] - most[2 * j + 1]);
            sums[2 * j] += low, sums[2 * j + 1] += high;
            p[k][j] = tn_at_pair(low * half_of(f.av[k][j], 0), high * half_of(f.av[k][j], 1));
        }
    *sum = bring_together(sums, [](float x, float y) { return x + y; });
}

/* To the block's own memory and to that of the others. */
template <typename S, int W, int C>
__device__ __forceinline__ void hand_out(const uint32_t (&p)[2][4], float sum, const place &at, unsigned char *memory, const int *own) {
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP;
    int p_at = S::P + tn_at_piece<HEADS * 2>(at.key, lane % 4), sum_at = S::SUM + ((at.rank * W + warp) * HEADS + head_of_lane()) * 4;
    int most_at = S::MOST + (at.rank * HEADS + lane) * 4;
    float most = of_ordered(own[lane]);
#pragma unroll
    for (int i = 1; i < C; i++) {
        uint32_t there = in_block(tn_at_shared(memory), (unsigned)(at.rank + i) % C), barrier = there + S::BARRIER;
#pragma unroll
        for (int k = 0; k < 2; k++) send(there + p_at + k * 8 * HEADS * 2, barrier, p[k]);
        send(there + sum_at, barrier, sum);
        if (warp == i) send(there + most_at, barrier, most);
    }
#pragma unroll
    for (int k = 0; k < 2; k++) *(uint4 *)(memory + p_at + k * 8 * HEADS * 2) = make_uint4(p[k][0], p[k][1], p[k][2], p[k][3]);
    *(float *)(memory + sum_at) = sum;
    if (warp == 0) *(float *)(memory + most_at) = most;
}

/* ---- by columns ---- */

/* A lane's head, number `lane`. */
struct head_state {
    float most, sum;
};

/* o [tile][head / 16]: a thread has rows lane / 4 and lane / 4 + 8 of 16 heads. Of the keys of one block, from `key` on. */
template <typename S> __device__ __forceinline__ void multiply(float (&o)[S::TILES][2][4], uint32_t memory, int key, int part) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, key8 = matrix / 2 * 8 + lane % 8;
    uint32_t p = memory + S::P + key * HEADS * 2, v = memory + key * S::COLUMNS * 2;
#pragma unroll
    for (int i = 0; i < S::GROUP_KEYS; i += 32) {
        uint32_t x[2][2][4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            tn_at_load_transposed(x[k / 2][k % 2], p + tn_at_piece<HEADS * 2>(key8, k / 2 * 2 + matrix % 2) + (i + k % 2 * 16) * HEADS * 2);
#pragma unroll
        for (int j = 0; j < S::TILES; j++) {
            uint32_t b[4];
            tn_at_load_transposed(b, v + tn_at_piece<S::COLUMNS * 2>(lane, part * S::TILES + j) + i * S::COLUMNS * 2);
#pragma unroll
            for (int k = 0; k < 4; k++) tn_at_multiply_add(o[j][k / 2], x[k / 2][k % 2], b[k % 2 * 2], b[k % 2 * 2 + 1]);
        }
    }
}

/* The group's keys of all blocks. In a rolled loop: instructions have their latency too. */
template <typename S, int W, int C>
__device__ __forceinline__ void add_up(float (&o)[S::TILES][2][4], head_state &w, const unsigned char *memory, int rank, int part,
                                       int group) {
    int lane = threadIdx.x % TN_WARP;
    const float *most = (const float *)(memory + S::MOST) + lane, *sums = (const float *)(memory + S::SUM) + lane;
#pragma unroll 1
    for (int i = 0; i < C; i++) {
        int block = (unsigned)(rank + i) % C;
        float more[S::TILES][2][4] = {};
        multiply<S>(more, tn_at_shared(memory), block * S::KEYS + group * S::GROUP_KEYS, part);
        if (i == 0) {
            await_others<C>(tn_at_shared(memory) + S::BARRIER);
            w.most = most[0], w.sum = 0;
#pragma unroll
            for (int j = 1; j < C; j++) w.most = fmaxf(w.most, most[j * HEADS]);
        }
        float weight = tn_at_exp2(most[block * HEADS] - w.most), sum = 0;
#pragma unroll
        for (int j = 0; j < W; j++) sum += sums[(block * W + j) * HEADS];
        w.sum += weight * sum;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float of_head = __shfl_sync(0xffffffffu, weight, k * 8 + lane / 4);
#pragma unroll
            for (int j = 0; j < S::TILES; j++) {
                float *to = o[j][k / 2] + k % 2 * 2, *from = more[j][k / 2] + k % 2 * 2;
                to[0] += of_head * from[0], to[1] += of_head * from[1];
            }
        }
    }
}

template <typename S> __device__ __forceinline__ void put(const float (&o)[S::TILES][2][4], unsigned char *memory, int part, int group) {
    int lane = threadIdx.x % TN_WARP;
    float *to = (float *)(memory + S::O) + (group * HEADS + lane / 4) * S::ROW + part * S::TILES * 8 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < S::TILES; j++)
            *(float2 *)(to + i * 8 * S::ROW + j * 8) = make_float2(o[j][i / 2][i % 2 * 2], o[j][i / 2][i % 2 * 2 + 1]);
}

/* Four columns of a head's o to a thread, from all groups of keys. */
template <typename S, int D>
__device__ __forceinline__ void write(const tn_at_decode_args &a, const place &at, const head_state &w, const unsigned char *memory) {
    constexpr int FOURS = S::COLUMNS / 4, ALL_FOURS = HEADS * FOURS, TIMES = ALL_FOURS > S::THREADS ? ALL_FOURS / S::THREADS : 1;
    float factor = w.sum == 0 ? 0.0f : __fdividef(a.scale_v, w.sum);
    tn_cuda_bf16 *to = a.o + at.slice * D + at.column;
#pragma unroll
    for (int k = 0; k < TIMES; k++) {
        int i = (int)threadIdx.x + k * S::THREADS, head = i / FOURS, column = i % FOURS * 4;
        if (ALL_FOURS < S::THREADS && i >= ALL_FOURS) break;
        float by = __shfl_sync(0xffffffffu, factor, head);
        const float *from = (const float *)(memory + S::O) + head * S::ROW + column;
        float4 o = *(const float4 *)from;
#pragma unroll
        for (int group = 1; group < S::GROUPS; group++) {
            float4 more = *(const float4 *)(from + group * HEADS * S::ROW);
            o.x += more.x, o.y += more.y, o.z += more.z, o.w += more.w;
        }
        uint2 words = by == 0 ? make_uint2(0, 0) : make_uint2(tn_at_pair(o.x * by, o.y * by), tn_at_pair(o.z * by, o.w * by));
        if (head < at.heads) *(uint2 *)(to + head * D + column) = words; /* of no keys, what was read may be anything */
    }
    int lane = threadIdx.x;
    if (a.lse && at.column == 0 && lane < at.heads)
        a.lse[at.slice + lane] = w.sum == 0 ? -INFINITY : (w.most + __log2f(w.sum)) * 0.693147181f;
}

template <int D, int W, int C, int N> __global__ void __launch_bounds__(W *TN_WARP, 1) decode(const __grid_constant__ tn_at_decode_args a) {
    using S = shape_of<D, W, C, N>;
    extern __shared__ __align__(128) unsigned char memory[];
    int *own = (int *)(memory + S::OWN);
    place at = place_of<S, C>(a);
    factors<D> f;
    fetch<S, D>(f, a, at, tn_at_shared(memory));
    expect<C>(tn_at_shared(memory) + S::BARRIER, S::SENT);
    say_started<C>();
    if (threadIdx.x <= HEADS) own[threadIdx.x] = threadIdx.x < HEADS ? ordered(LEAST) : 0;
    __syncthreads();
    float s[4][4], sum;
    score<D>(s, f, a.scale, *(volatile uint32_t *)(own + HEADS));
    uint32_t p[2][4];
    weigh<S, D>(p, &sum, s, f, at, own);
    await_start<C>(); /* their barriers are set up */
    hand_out<S, W, C>(p, sum, at, memory, own);
    tn_at_copy_commit();
    tn_at_copy_wait<0>();
    __syncthreads();
    int part = threadIdx.x / TN_WARP % S::PARTS, group = threadIdx.x / TN_WARP / S::PARTS;
    float o[S::TILES][2][4] = {};
    head_state heads;
    add_up<S, W, C>(o, heads, memory, at.rank, part, group);
    put<S>(o, memory, part, group);
    __syncthreads();
    write<S, D>(a, at, heads, memory);
}

template <int D, int W, int C, int N> cudaError_t start(const tn_at_decode_args &a, int64_t head_groups, cudaStream_t stream) {
    using S = shape_of<D, W, C, N>;
    cudaError_t error = cudaFuncSetAttribute(decode<D, W, C, N>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3(C * N, (unsigned)a.b, (unsigned)head_groups);
    how.blockDim = dim3(S::THREADS);
    how.dynamicSmemBytes = S::BYTES;
    how.stream = stream;
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = C;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    how.attrs = &cluster;
    how.numAttrs = C > 1 ? 1 : 0;
    return cudaLaunchKernelEx(&how, decode<D, W, C, N>, a);
}

template <int D> cudaError_t start_for(const tn_at_decode_args &a, const tn_at_split &split, int64_t head_groups, cudaStream_t stream) {
    if (a.chunk == 256) return (split.sharers == 1 ? start<D, 16, 2, 1> : start<D, 16, 2, 2>)(a, head_groups, stream);
    if (a.chunk == 128 && split.cluster == 4) return start<D, 8, 4, 1>(a, head_groups, stream);
    if (a.chunk == 128) return (split.sharers == 1 ? start<D, 8, 2, 1> : start<D, 8, 2, 2>)(a, head_groups, stream);
    if (D == 128 && split.cluster == 4) return start<128, 4, 4, 2>(a, head_groups, stream);
    if (split.cluster == 2) return start<D, 4, 2, 2>(a, head_groups, stream);
    return (split.sharers == 2 ? start<D, 4, 1, 2> : start<D, 4, 1, 4>)(a, head_groups, stream);
}

} // namespace

bool tn_at_decode_short_fits(int64_t ranks) { return ranks % 4 == 0 && ranks <= MOST_RANKS; }

int tn_at_decode_short(const tn_at_decode_args *a, int64_t width, const tn_at_split *split, int64_t head_groups, cudaStream_t stream) {
    return (int)(width == 128 ? start_for<128> : start_for<64>)(*a, *split, head_groups, stream);
}
