/* Backward of attention by wgmma: attention_bwd.cu's two passes with 128 keys, or queries, to a block. One warpgroup fetches tiles by cp.async,
 * two multiply, 64 rows each; p and ds stay in their registers as the left sides of the products that sum them.
 *
 *     dk, dv  shared memory | k [128][D] | v [128][D] | stages x ( q [QUERIES][D] | do [QUERIES][D] | lse, delta | bounds ) |
 *     dq      shared memory | q [128][D] | do [128][D] | 2 x k [128][D] | 2 x v [128][D] | */
#include "attention_hopper.cuh"

namespace {

constexpr int BLOCK_ROWS = 128, KEYS = 128;

template <int D> struct keys_shape {
    static constexpr int QUERIES = D == 128 ? 64 : 128, STAGES = 3; /* registers for scores against registers for sums */
    static constexpr int OWN = BLOCK_ROWS * D * 2, TILE = QUERIES * D * 2, ROWS = QUERIES * 8;
    static constexpr int STAGE = 2 * TILE + 2 * ROWS, BYTES = 1024 + 2 * OWN + STAGES * STAGE + STAGES * 16;
};

template <int D> struct queries_shape {
    static constexpr int STAGES = 2, OWN = BLOCK_ROWS * D * 2, TILE = KEYS * D * 2;
    static constexpr int STAGE = 2 * TILE, BYTES = 1024 + 2 * OWN + STAGES * STAGE + 2 * STAGES * 16;
};

#if TN_AT_WGMMA

/* ---- dk, dv ---- */

template <int D> __device__ __forceinline__ void fetch_queries(const tn_at_core &c, const tn_at_walk &w, uint32_t stage, int step) {
    using S = keys_shape<D>;
    int64_t head = w.head + step / w.tiles, t = w.first + step % w.tiles * S::QUERIES, batch = c.first_batch + w.batch;
    tn_at_fetch_panels<S::QUERIES, D>(stage, tn_at_of<tn_cuda_bf16>(c.q, w.batch, t, head), c.q.token, c.p.n - t);
    tn_at_fetch_panels<S::QUERIES, D>(stage + S::TILE, tn_at_of<tn_cuda_bf16>(c.d_o, w.batch, t, head), c.d_o.token, c.p.n - t);
    const float2 *rows = (const float2 *)c.rows + (batch * c.p.h + c.first_head + head) * c.padded + t;
    const int2 *bounds = (const int2 *)c.bounds + batch * c.padded + t;
    constexpr int HALF = S::QUERIES / 2; /* pieces of two */
    if (threadIdx.x < HALF) tn_at_copy_16(stage + 2 * S::TILE + threadIdx.x * 16, rows + threadIdx.x * 2, true);
    int i = threadIdx.x - (TN_AT_GROUP - HALF);
    if (i >= 0) tn_at_copy_16(stage + 2 * S::TILE + S::ROWS + i * 16, bounds + i * 2, true);
}

template <int D>
__device__ __forceinline__ void feed_queries(const tn_at_core &c, const tn_at_walk &w, uint32_t own,
                                             tn_at_ring<keys_shape<D>::STAGES> ring) {
    using S = keys_shape<D>;
    int64_t there = tn_at_keys_there(c, w.batch) - w.key, head = w.head / c.group;
    if (w.steps == 0) return;
    tn_at_fetch_panels<BLOCK_ROWS, D>(own, tn_at_of<tn_cuda_bf16>(c.k, w.batch, w.key, head), c.k.token, there);
    tn_at_fetch_panels<BLOCK_ROWS, D>(own + S::OWN, tn_at_of<tn_cuda_bf16>(c.v, w.batch, w.key, head), c.v.token, there);
    for (int step = 0; step < w.steps; step++) {
        ring.await_empty();
        fetch_queries<D>(c, w, own + 2 * S::OWN + ring.stage * S::STAGE, step);
        ring.deliver(step, step == w.steps - 1);
    }
}

/* p of keys by queries in bf16, 0 where not seen. */
template <bool SOME, int N>
__device__ __forceinline__ void weigh(uint32_t (&p)[N / 2][4], const float (&s)[N][4], float scale, const float2 *rows, const int2 *bounds,
                                      int key) {
    int lane4 = threadIdx.x % 4 * 2;
#pragma unroll
    for (int t = 0; t < N; t++) {
        float4 of = *(const float4 *)(rows + t * 8 + lane4);
        int4 seen = SOME ? *(const int4 *)(bounds + t * 8 + lane4) : make_int4(0, 0, 0, 0);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float low = tn_at_exp2(fmaf(s[t][2 * half], scale, -of.x)), high = tn_at_exp2(fmaf(s[t][2 * half + 1], scale, -of.z));
            int here = key + half * 8;
            if (SOME && (here < seen.x || here >= seen.y)) low = 0;
            if (SOME && (here < seen.z || here >= seen.w)) high = 0;
            p[t / 2][t % 2 * 2 + half] = tn_at_pair(low, high);
        }
    }
}

template <int N>
__device__ __forceinline__ void weigh_keys(uint32_t (&p)[N / 2][4], const float (&s)[N][4], float scale, const float2 *rows,
                                           const int2 *bounds, int key0, int key) {
    if (bounds[N * 8 - 1].x <= key0 && bounds[0].y >= key0 + BLOCK_ROWS) weigh<false, N>(p, s, scale, rows, bounds, key);
    else weigh<true, N>(p, s, scale, rows, bounds, key);
}

/* ds of keys by queries in bf16. p in bf16 is enough for it, and scores give their registers back. */
template <int N>
__device__ __forceinline__ void slope(uint32_t (&ds)[N / 2][4], const uint32_t (&p)[N / 2][4], const float (&dp)[N][4], float scale_v,
                                      const float2 *rows) {
#pragma unroll
    for (int t = 0; t < N; t++) {
        float4 of = *(const float4 *)(rows + t * 8 + threadIdx.x % 4 * 2);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t pair = p[t / 2][t % 2 * 2 + half];
            float low = tn_at_low(pair) * fmaf(dp[t][2 * half], scale_v, -of.y),
                  high = tn_at_high(pair) * fmaf(dp[t][2 * half + 1], scale_v, -of.w);
            ds[t / 2][t % 2 * 2 + half] = tn_at_pair(low, high);
        }
    }
}

/* What a warpgroup of 64 keys keeps. */
template <int D> struct key_sums {
    static constexpr int N = keys_shape<D>::QUERIES / 8;
    float dk[D / 8][4], dv[D / 8][4], s[N][4], dp[N][4];
    uint32_t p[N / 2][4], ds[N / 2][4];
};

/* A tile's scores and dp are begun ... */
template <int D> __device__ __forceinline__ void begin_tile(key_sums<D> &w, uint32_t own, uint32_t queries) {
    using S = keys_shape<D>;
    tn_at_begin();
    tn_at_scores<D, BLOCK_ROWS>(w.s, own, queries);
    tn_at_scores<D, BLOCK_ROWS>(w.dp, own + S::OWN, queries + S::TILE);
}

/* ... and, once they are there, the products that sum p and ds; the stage before is free then. */
template <int D>
__device__ __forceinline__ void sum_tile(key_sums<D> &w, const tn_at_core &c, uint32_t queries, const unsigned char *rows, int key0,
                                         int key, const tn_at_ring<keys_shape<D>::STAGES> &ring, int before) {
    using S = keys_shape<D>;
    constexpr int N = S::QUERIES / 8;
    tn_at_finish<1>();
    tn_at_hold(w.s);
    if (before >= 0) ring.say_empty(before);
    weigh_keys<N>(w.p, w.s, c.scale * 1.44269504f, (const float2 *)rows, (const int2 *)(rows + S::ROWS), key0, key);
    tn_at_finish<0>();
    tn_at_hold(w.dp);
    tn_at_hold(w.p);
    tn_at_begin();
    tn_at_add_values(w.dv, w.p, queries + S::TILE);
    slope<N>(w.ds, w.p, w.dp, c.scale_v, (const float2 *)rows);
    tn_at_hold(w.ds);
    tn_at_begin();
    tn_at_add_values(w.dk, w.ds, queries);
    tn_at_finish<(D == 128)>(); /* dk's product may run on beside the next scores where registers allow it */
}

template <int D>
__device__ __forceinline__ void sum_keys(const tn_at_core &c, const tn_at_walk &w, unsigned char *memory,
                                         tn_at_ring<keys_shape<D>::STAGES> ring) {
    using S = keys_shape<D>;
    int group = threadIdx.x / TN_AT_GROUP - 1, row = threadIdx.x % TN_AT_GROUP / TN_WARP * 16 + threadIdx.x % TN_WARP / 4, before = -1;
    uint32_t own = tn_at_shared(memory) + group * 64 * 128, stages = tn_at_shared(memory) + 2 * S::OWN;
    int64_t key = w.key + group * 64 + row;
    key_sums<D> sums;
#pragma unroll
    for (int t = 0; t < D / 8; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums.dk[t][i] = sums.dv[t][i] = 0;
    tn_at_hold(sums.dk);
    tn_at_hold(sums.dv);
#pragma unroll 1
    for (int step = 0; step < w.steps; step++) {
        int at = ring.stage * S::STAGE;
        ring.await_full();
        begin_tile(sums, own, stages + at);
        sum_tile(sums, c, stages + at, memory + 2 * S::OWN + at + 2 * S::TILE, (int)w.key, (int)key, ring, before);
        before = ring.stage;
        ring.step();
    }
    tn_at_finish<0>();
    tn_at_hold(sums.dk);
    tn_at_hold(sums.dv);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        tn_at_write_key(c, w, sums.dk, half, key + half * 8, c.dk, c.dk_part, c.scale);
        tn_at_write_key(c, w, sums.dv, half, key + half * 8, c.dv, c.dv_part, c.scale_v);
    }
}

/* ---- dq ---- */

struct place {
    int64_t t0, batch; /* the batch of all; the first query */
    int begin, end;    /* keys that any query of the block sees */
};

__device__ __forceinline__ place place_of(const tn_at_core &c) {
    place at;
    int none;
    at.t0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * BLOCK_ROWS; /* the longest of causal ones first */
    at.batch = c.first_batch + blockIdx.z;
    tn_at_keys_seen(c.p, at.batch, at.t0, &at.begin, &none);
    tn_at_keys_seen(c.p, at.batch, min(at.t0 + BLOCK_ROWS, c.p.n) - 1, &none, &at.end);
    at.begin = at.begin / KEYS * KEYS;
    return at;
}

/* The tiles' places: keys and values, each in a ring of its own. */
template <int D> struct key_rings {
    tn_at_ring<queries_shape<D>::STAGES> keys, values;
    uint32_t own; /* q and do */

    __device__ __forceinline__ uint32_t keys_at() const { return own + 2 * queries_shape<D>::OWN + keys.stage * queries_shape<D>::TILE; }
    __device__ __forceinline__ uint32_t values_at() const {
        using S = queries_shape<D>;
        return own + 2 * S::OWN + (S::STAGES + values.stage) * S::TILE;
    }
};

template <int D> __device__ __forceinline__ void feed_keys(const tn_at_core &c, const place &at, key_rings<D> rings) {
    using S = queries_shape<D>;
    int64_t head = blockIdx.y / c.group;
    tn_at_handing_over tiles = { 0 };
    if (at.begin >= at.end) return;
    tn_at_fetch_panels<BLOCK_ROWS, D>(rings.own, tn_at_of<tn_cuda_bf16>(c.q, blockIdx.z, at.t0, blockIdx.y), c.q.token, c.p.n - at.t0);
    tn_at_fetch_panels<BLOCK_ROWS, D>(rings.own + S::OWN, tn_at_of<tn_cuda_bf16>(c.d_o, blockIdx.z, at.t0, blockIdx.y), c.d_o.token,
                                      c.p.n - at.t0);
    for (int key = at.begin; key < at.end; key += KEYS) {
        rings.values.await_empty();
        tn_at_fetch_panels<KEYS, D>(rings.values_at(), tn_at_of<tn_cuda_bf16>(c.v, blockIdx.z, key, head), c.v.token, at.end - key);
        tiles.asked_for(rings.values.full());
        rings.values.step();
        rings.keys.await_empty();
        tn_at_fetch_panels<KEYS, D>(rings.keys_at(), tn_at_of<tn_cuda_bf16>(c.k, blockIdx.z, key, head), c.k.token, at.end - key);
        tiles.asked_for(rings.keys.full());
        rings.keys.step();
    }
    tiles.finish();
}

/* What a thread knows of its rows, lane / 4 and 8 more. */
struct query_rows {
    float2 row[2]; /* lse, <do, o> */
    int2 seen[2];
    int all_begin, all_end; /* seen by every row of the warp */
};

__device__ __forceinline__ query_rows rows_of(const tn_at_core &c, const place &at, int64_t t) {
    query_rows r;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        r.row[half] = ((const float2 *)c.rows)[(at.batch * c.p.h + c.first_head + blockIdx.y) * c.padded + t + half * 8];
        r.seen[half] = ((const int2 *)c.bounds)[at.batch * c.padded + t + half * 8];
    }
    r.all_begin = __reduce_max_sync(0xffffffffu, max(r.seen[0].x, r.seen[1].x));
    r.all_end = __reduce_min_sync(0xffffffffu, min(r.seen[0].y, r.seen[1].y));
    return r;
}

/* p of queries by keys in bf16, 0 where not seen. */
template <bool SOME, int N>
__device__ __forceinline__ void weigh_rows(uint32_t (&p)[N / 2][4], const float (&s)[N][4], float scale, const query_rows &r, int key) {
#pragma unroll
    for (int t = 0; t < N; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float low = tn_at_exp2(fmaf(s[t][2 * half], scale, -r.row[half].x)),
                  high = tn_at_exp2(fmaf(s[t][2 * half + 1], scale, -r.row[half].x));
            int here = key + t * 8 + threadIdx.x % 4 * 2;
            if (SOME && (here < r.seen[half].x || here >= r.seen[half].y)) low = 0;
            if (SOME && (here + 1 < r.seen[half].x || here + 1 >= r.seen[half].y)) high = 0;
            p[t / 2][t % 2 * 2 + half] = tn_at_pair(low, high);
        }
}

template <int D> __device__ __forceinline__ void sum_queries(const tn_at_core &c, const place &at, key_rings<D> rings) {
    using S = queries_shape<D>;
    constexpr int N = KEYS / 8;
    int group = threadIdx.x / TN_AT_GROUP - 1, before = -1;
    uint32_t queries = rings.own + group * 64 * 128, upstream = queries + S::OWN;
    int64_t t = at.t0 + group * 64 + threadIdx.x % TN_AT_GROUP / TN_WARP * 16 + threadIdx.x % TN_WARP / 4;
    query_rows r = rows_of(c, at, t);
    float dq[D / 8][4] = {}, s[N][4], dp[N][4], scale = c.scale * 1.44269504f;
    uint32_t ds[N / 2][4];
    tn_at_hold(dq);
#pragma unroll 1
    for (int key = at.begin; key < at.end; key += KEYS) {
        uint32_t keys = rings.keys_at();
        rings.keys.await_full();
        rings.values.await_full();
        tn_at_begin();
        tn_at_scores<D, BLOCK_ROWS>(s, queries, keys);
        tn_at_scores<D, BLOCK_ROWS>(dp, upstream, rings.values_at());
        tn_at_finish<1>(); /* of the tile before dq's product was still running */
        tn_at_hold(s);
        if (before >= 0) rings.keys.say_empty(before);
        if (r.all_begin <= key && r.all_end >= key + KEYS) weigh_rows<false, N>(ds, s, scale, r, key);
        else weigh_rows<true, N>(ds, s, scale, r, key);
        tn_at_finish<0>();
        tn_at_hold(dp);
        rings.values.say_empty(rings.values.stage);
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t p = ds[j / 2][j % 2 * 2 + half];
                ds[j / 2][j % 2 * 2 + half] = tn_at_pair(tn_at_low(p) * fmaf(dp[j][2 * half], c.scale_v, -r.row[half].y),
                                                         tn_at_high(p) * fmaf(dp[j][2 * half + 1], c.scale_v, -r.row[half].y));
            }
        tn_at_hold(ds);
        tn_at_begin();
        tn_at_add_values(dq, ds, keys);
        if (D == 128) { /* no registers to let it run on beside the next scores */
            tn_at_finish<0>();
            rings.keys.say_empty(rings.keys.stage);
        } else {
            before = rings.keys.stage;
        }
        rings.keys.step();
        rings.values.step();
    }
    tn_at_finish<0>();
    tn_at_hold(dq);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (t + half * 8 >= c.p.n) continue;
        tn_cuda_bf16 *to = tn_at_of<tn_cuda_bf16>(c.dq, blockIdx.z, t + half * 8, blockIdx.y) + threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = 0; i < D / 8; i++) *(uint32_t *)(to + i * 8) = tn_at_pair(dq[i][2 * half] * c.scale, dq[i][2 * half + 1] * c.scale);
    }
}

#endif

template <int D> __global__ void __launch_bounds__(TN_AT_BLOCK, 1) keys_back(const __grid_constant__ tn_at_core c) {
#if TN_AT_WGMMA
    using S = keys_shape<D>;
    unsigned char *memory = tn_at_aligned_memory();
    uint32_t own = tn_at_shared(memory);
    tn_at_ring<S::STAGES> ring = { own + 2 * S::OWN + S::STAGES * S::STAGE };
    tn_at_walk w = tn_at_walk_of<BLOCK_ROWS, S::QUERIES>(c);
    ring.make();
    __syncthreads();
    if (threadIdx.x < TN_AT_GROUP) {
        tn_at_fewer_registers<24>();
        feed_queries<D>(c, w, own, ring);
    } else {
        tn_at_more_registers<240>();
        sum_keys<D>(c, w, memory, ring);
    }
#endif
}

template <int D> __global__ void __launch_bounds__(TN_AT_BLOCK, 1) queries_back(const __grid_constant__ tn_at_core c) {
#if TN_AT_WGMMA
    using S = queries_shape<D>;
    uint32_t own = tn_at_shared(tn_at_aligned_memory()), barriers = own + 2 * S::OWN + S::STAGES * S::STAGE;
    key_rings<D> rings = { { barriers }, { barriers + S::STAGES * 16 }, own };
    place at = place_of(c);
    rings.keys.make();
    rings.values.make();
    __syncthreads();
    if (threadIdx.x < TN_AT_GROUP) {
        tn_at_fewer_registers<24>();
        feed_keys<D>(c, at, rings);
    } else {
        tn_at_more_registers<240>();
        sum_queries<D>(c, at, rings);
    }
#endif
}

template <typename K> int start(K kernel, int bytes, int64_t tokens, int64_t heads, const tn_at_core *c, void *stream) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return (int)error;
    dim3 grid((unsigned)((tokens + BLOCK_ROWS - 1) / BLOCK_ROWS), (unsigned)heads, (unsigned)c->batches);
    kernel<<<grid, TN_AT_BLOCK, bytes, (cudaStream_t)stream>>>(*c);
    return (int)cudaGetLastError();
}

} // namespace

int tn_at_hopper_dkv(const tn_at_core *c, void *stream) {
    int64_t heads = c->heads / c->group * c->parts;
    return c->p.d == 128 ? start(keys_back<128>, keys_shape<128>::BYTES, c->p.m, heads, c, stream)
                         : start(keys_back<64>, keys_shape<64>::BYTES, c->p.m, heads, c, stream);
}

int tn_at_hopper_dq(const tn_at_core *c, void *stream) {
    return c->p.d == 128 ? start(queries_back<128>, queries_shape<128>::BYTES, c->p.n, c->heads, c, stream)
                         : start(queries_back<64>, queries_shape<64>::BYTES, c->p.n, c->heads, c, stream);
}
