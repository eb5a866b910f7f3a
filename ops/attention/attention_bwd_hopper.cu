/* Backward of attention by wgmma: attention_bwd.cu's two passes with 128 keys, or queries, to a block. One warpgroup fetches tiles by
 * cp.async, two multiply, 64 rows each; p and ds stay in their registers as the left sides of the products that sum them.
 *
 *     dk, dv  shared memory | k [128][D] | v [128][D] | stages x ( q [QUERIES][D] | do [QUERIES][D] | lse, delta | bounds ) |
 *     dq      shared memory | q [128][D] | do [128][D] | stages x ( k [128][D] | v [128][D] ) | */
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
    static constexpr int STAGE = 2 * TILE, BYTES = 1024 + 2 * OWN + STAGES * STAGE + STAGES * 16;
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

/* s := p of keys by queries, where seen. */
template <int N>
__device__ __forceinline__ void weigh_keys(float (&s)[N][4], float scale, const float2 *rows, const int2 *bounds, int key0, int key) {
    bool all = bounds[N * 8 - 1].x <= key0 && bounds[0].y >= key0 + BLOCK_ROWS;
    int lane4 = threadIdx.x % 4 * 2;
#pragma unroll
    for (int t = 0; t < N; t++) {
        float4 of = *(const float4 *)(rows + t * 8 + lane4);
#pragma unroll
        for (int i = 0; i < 4; i++) s[t][i] = tn_at_exp2(fmaf(s[t][i], scale, i % 2 ? -of.z : -of.x));
    }
    if (all) return;
#pragma unroll
    for (int t = 0; t < N; t++) {
        int4 seen = *(const int4 *)(bounds + t * 8 + lane4);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int here = key + i / 2 * 8;
            if (here < (i % 2 ? seen.z : seen.x) || here >= (i % 2 ? seen.w : seen.y)) s[t][i] = 0;
        }
    }
}

template <int N> __device__ __forceinline__ void round_to(uint32_t (&to)[N / 2][4], const float (&s)[N][4]) {
#pragma unroll
    for (int g = 0; g < N / 2; g++)
#pragma unroll
        for (int x = 0; x < 4; x++) to[g][x] = tn_at_pair(s[2 * g + x / 2][x % 2 * 2], s[2 * g + x / 2][x % 2 * 2 + 1]);
}

template <int D>
__device__ __forceinline__ void sum_keys(const tn_at_core &c, const tn_at_walk &w, unsigned char *memory,
                                         tn_at_ring<keys_shape<D>::STAGES> ring) {
    using S = keys_shape<D>;
    constexpr int N = S::QUERIES / 8;
    int group = threadIdx.x / TN_AT_GROUP - 1, row = threadIdx.x % TN_AT_GROUP / TN_WARP * 16 + threadIdx.x % TN_WARP / 4;
    uint32_t own = tn_at_shared(memory), keys = own + group * 64 * 128, values = keys + S::OWN, stages = own + 2 * S::OWN;
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, scale = c.scale * 1.44269504f;
    int64_t key = w.key + group * 64 + row;
    for (int step = 0; step < w.steps; step++) {
        ring.await_full();
        uint32_t queries = stages + ring.stage * S::STAGE, upstream = queries + S::TILE;
        const unsigned char *rows = memory + 2 * S::OWN + ring.stage * S::STAGE + 2 * S::TILE;
        float s[N][4], dp[N][4];
        uint32_t p[N / 2][4], ds[N / 2][4];
        tn_at_begin();
        tn_at_scores<D, BLOCK_ROWS>(s, keys, queries);
        tn_at_scores<D, BLOCK_ROWS>(dp, values, upstream);
        tn_at_finish<1>();
        tn_at_hold(s);
        weigh_keys(s, scale, (const float2 *)rows, (const int2 *)(rows + S::ROWS), (int)w.key, (int)key);
        round_to(p, s);
        tn_at_finish<0>();
        tn_at_hold(dp);
        tn_at_hold(p);
        tn_at_begin();
        tn_at_add_values(dv, p, upstream);
#pragma unroll
        for (int t = 0; t < N; t++) {
            float4 of = *(const float4 *)((const float2 *)rows + t * 8 + threadIdx.x % 4 * 2);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t pair = p[t / 2][t % 2 * 2 + i / 2]; /* p in bf16 is enough: s gives its registers back */
                dp[t][i] = (i % 2 ? tn_at_high(pair) : tn_at_low(pair)) * fmaf(dp[t][i], c.scale_v, i % 2 ? -of.w : -of.y);
            }
        }
        round_to(ds, dp);
        tn_at_hold(ds);
        tn_at_begin();
        tn_at_add_values(dk, ds, queries);
        tn_at_finish<0>();
        tn_at_hold(dv);
        tn_at_hold(dk);
        ring.say_empty(ring.stage);
        ring.step();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        tn_at_write_key(c, w, dk, half, key + half * 8, c.dk, c.dk_part, c.scale);
        tn_at_write_key(c, w, dv, half, key + half * 8, c.dv, c.dv_part, c.scale_v);
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

template <int D>
__device__ __forceinline__ void feed_keys(const tn_at_core &c, const place &at, uint32_t own, tn_at_ring<queries_shape<D>::STAGES> ring) {
    using S = queries_shape<D>;
    int64_t head = blockIdx.y / c.group;
    if (at.begin >= at.end) return;
    tn_at_fetch_panels<BLOCK_ROWS, D>(own, tn_at_of<tn_cuda_bf16>(c.q, blockIdx.z, at.t0, blockIdx.y), c.q.token, c.p.n - at.t0);
    tn_at_fetch_panels<BLOCK_ROWS, D>(own + S::OWN, tn_at_of<tn_cuda_bf16>(c.d_o, blockIdx.z, at.t0, blockIdx.y), c.d_o.token,
                                      c.p.n - at.t0);
    for (int key = at.begin; key < at.end; key += KEYS) {
        uint32_t stage = own + 2 * S::OWN + ring.stage * S::STAGE;
        ring.await_empty();
        tn_at_fetch_panels<KEYS, D>(stage, tn_at_of<tn_cuda_bf16>(c.k, blockIdx.z, key, head), c.k.token, at.end - key);
        tn_at_fetch_panels<KEYS, D>(stage + S::TILE, tn_at_of<tn_cuda_bf16>(c.v, blockIdx.z, key, head), c.v.token, at.end - key);
        ring.deliver((key - at.begin) / KEYS, key + KEYS >= at.end);
    }
}

template <int D>
__device__ __forceinline__ void sum_queries(const tn_at_core &c, const place &at, uint32_t own, tn_at_ring<queries_shape<D>::STAGES> ring) {
    using S = queries_shape<D>;
    constexpr int N = KEYS / 8;
    int group = threadIdx.x / TN_AT_GROUP - 1, lane4 = threadIdx.x % 4 * 2;
    uint32_t queries = own + group * 64 * 128, upstream = queries + S::OWN, stages = own + 2 * S::OWN;
    int64_t t = at.t0 + group * 64 + threadIdx.x % TN_AT_GROUP / TN_WARP * 16 + threadIdx.x % TN_WARP / 4;
    float2 row[2];
    int2 seen[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        row[half] = ((const float2 *)c.rows)[(at.batch * c.p.h + c.first_head + blockIdx.y) * c.padded + t + half * 8];
        seen[half] = ((const int2 *)c.bounds)[at.batch * c.padded + t + half * 8];
    }
    int all_begin = __reduce_max_sync(0xffffffffu, max(seen[0].x, seen[1].x)),
        all_end = __reduce_min_sync(0xffffffffu, min(seen[0].y, seen[1].y));
    float dq[D / 8][4] = {}, scale = c.scale * 1.44269504f;
    for (int key = at.begin; key < at.end; key += KEYS) {
        ring.await_full();
        uint32_t keys = stages + ring.stage * S::STAGE, values = keys + S::TILE;
        float s[N][4], dp[N][4];
        uint32_t ds[N / 2][4];
        tn_at_begin();
        tn_at_scores<D, BLOCK_ROWS>(s, queries, keys);
        tn_at_scores<D, BLOCK_ROWS>(dp, upstream, values);
        tn_at_finish<1>();
        tn_at_hold(s);
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[j][i] = tn_at_exp2(fmaf(s[j][i], scale, -row[i / 2].x));
        if (all_begin > key || all_end < key + KEYS) {
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int here = key + j * 8 + lane4 + i % 2;
                    if (here < seen[i / 2].x || here >= seen[i / 2].y) s[j][i] = 0;
                }
        }
        tn_at_finish<0>();
        tn_at_hold(dp);
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[j][i] *= fmaf(dp[j][i], c.scale_v, -row[i / 2].y);
        round_to(ds, s);
        tn_at_hold(ds);
        tn_at_begin();
        tn_at_add_values(dq, ds, keys);
        tn_at_finish<0>();
        tn_at_hold(dq);
        ring.say_empty(ring.stage);
        ring.step();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (t + half * 8 >= c.p.n) continue;
        tn_cuda_bf16 *to = tn_at_of<tn_cuda_bf16>(c.dq, blockIdx.z, t + half * 8, blockIdx.y) + lane4;
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
        tn_at_fewer_registers<40>();
        feed_queries<D>(c, w, own, ring);
    } else {
        tn_at_more_registers<232>();
        sum_keys<D>(c, w, memory, ring);
    }
#endif
}

template <int D> __global__ void __launch_bounds__(TN_AT_BLOCK, 1) queries_back(const __grid_constant__ tn_at_core c) {
#if TN_AT_WGMMA
    using S = queries_shape<D>;
    uint32_t own = tn_at_shared(tn_at_aligned_memory());
    tn_at_ring<S::STAGES> ring = { own + 2 * S::OWN + S::STAGES * S::STAGE };
    place at = place_of(c);
    ring.make();
    __syncthreads();
    if (threadIdx.x < TN_AT_GROUP) {
        tn_at_fewer_registers<40>();
        feed_keys<D>(c, at, own, ring);
    } else {
        tn_at_more_registers<232>();
        sum_queries<D>(c, at, own, ring);
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
