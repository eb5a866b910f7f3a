/* Backward of attention, bf16, mma.sync: one pass for the gradients of the keys and values, one for those of the queries, so that every sum
 * is one block's and in order. Scores are made again in both.
 *
 *     dk, dv  a block has 64 keys, each of its 4 warps 16; it goes along the queries by tiles of 64
 *                 p' = exp2(k q' - lse)   dp' = v do'   ds' = p' (dp' - delta)     dv += p' do    dk += ds' q
 *     dq      a block has 64 queries, goes along the keys by tiles of 64
 *                 p = exp2(q k' - lse)    dp = do v'    ds = p (dp - delta)        dq += ds k
 *
 * p and ds never leave the registers: accumulators of one product are the left side of the next. Tiles come two steps ahead by cp.async. */
#include "attention_core.cuh"

namespace {

constexpr int THREADS = 128, TILE = 64, STAGES = 2;
constexpr int ROWS_BYTES = TILE * 8, STAT_BYTES = 2 * ROWS_BYTES;

/* ---- what a row needs ---- */

template <int D> __global__ void __launch_bounds__(THREADS) rows_of(const __grid_constant__ tn_at_core c) {
    constexpr int LANES = D == 32 ? 4 : D == 64 ? 8 : 16;
    const tn_at_problem &p = c.p;
    int64_t row = (blockIdx.x * (int64_t)THREADS + threadIdx.x) / LANES, head = row % p.h, t = row / p.h % c.padded,
            batch = row / p.h / c.padded;
    int piece = threadIdx.x % LANES;
    bool there = batch < p.b && t < p.n;
    float sum = 0;
    if (there && piece < D / 8) {
        int64_t at = ((batch * p.n + t) * p.h + head) * D + piece * 8;
        uint4 o = tn_load_raw((const tn_cuda_bf16 *)p.o + at), d_o = tn_load_raw((const tn_cuda_bf16 *)p.d_o + at);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += tn_raw_element<tn_cuda_bf16>(o, j) * tn_raw_element<tn_cuda_bf16>(d_o, j);
    }
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (piece > 0 || batch >= p.b) return;
    float lse = there ? ((const float *)p.lse)[(batch * p.h + head) * p.n + t] : -INFINITY;
    bool blind = lse == -INFINITY;
    ((float2 *)c.rows)[(batch * p.h + head) * c.padded + t] = blind ? make_float2(INFINITY, 0.0f) : make_float2(lse * 1.44269504f, sum);
    if (head > 0) return;
    int begin = 0, end = 0;
    if (there) tn_at_keys_seen(p, batch, t, &begin, &end);
    ((int2 *)c.bounds)[batch * c.padded + t] = begin < end ? make_int2(begin, end) : make_int2(0x7fffffff, 0);
}

/* ---- products ---- */

/* s [16 x TILE] = a b': 16 rows of the tile `a`, TILE rows of the tile `b`, both of width D. */
template <int D> __device__ __forceinline__ void multiply_rows(float (&s)[TILE / 8][4], uint32_t a, uint32_t b) {
    constexpr int ROW = tn_at_row_bytes<D>;
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
#pragma unroll
    for (int t = 0; t < TILE / 8; t++) s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[4];
        tn_at_load(left, a + tn_at_piece<ROW>(matrix % 2 * 8 + row8, 2 * k + matrix / 2));
#pragma unroll
        for (int g = 0; g < TILE / 16; g++) {
            uint32_t right[4];
            tn_at_load(right, b + tn_at_piece<ROW>(g * 16 + matrix / 2 * 8 + row8, 2 * k + matrix % 2));
            tn_at_multiply_add(s[2 * g], left, right[0], right[1]);
            tn_at_multiply_add(s[2 * g + 1], left, right[2], right[3]);
        }
    }
}

/* sum [16 x D] += s [16 x TILE] b, s rounded to bf16. */
template <int D> __device__ __forceinline__ void add_product(float (&sum)[D / 8][4], const float (&s)[TILE / 8][4], uint32_t b) {
    constexpr int ROW = tn_at_row_bytes<D>;
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
#pragma unroll
    for (int g = 0; g < TILE / 16; g++) {
        uint32_t left[4];
#pragma unroll
        for (int x = 0; x < 4; x++) left[x] = tn_at_pair(s[2 * g + x / 2][x % 2 * 2], s[2 * g + x / 2][x % 2 * 2 + 1]);
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t right[4];
            tn_at_load_transposed(right, b + tn_at_piece<ROW>(g * 16 + matrix % 2 * 8 + row8, 2 * i + matrix / 2));
            tn_at_multiply_add(sum[2 * i], left, right[0], right[1]);
            tn_at_multiply_add(sum[2 * i + 1], left, right[2], right[3]);
        }
    }
}

/* ---- dk, dv ---- */

template <int D> __device__ __forceinline__ void fetch_queries(const tn_at_core &c, const tn_at_walk &w, uint32_t stage, int step) {
    constexpr int BYTES = TILE * tn_at_row_bytes<D>;
    int64_t head = w.head + step / w.tiles, t = w.first + step % w.tiles * TILE;
    tn_at_fetch_rows<THREADS, TILE, D>(stage, tn_at_of<tn_cuda_bf16>(c.q, w.batch, t, head), c.q.token, c.p.n - t);
    tn_at_fetch_rows<THREADS, TILE, D>(stage + BYTES, tn_at_of<tn_cuda_bf16>(c.d_o, w.batch, t, head), c.d_o.token, c.p.n - t);
    int64_t batch = c.first_batch + w.batch;
    const float2 *rows = (const float2 *)c.rows + (batch * c.p.h + c.first_head + head) * c.padded + t;
    const int2 *bounds = (const int2 *)c.bounds + batch * c.padded + t;
    static_assert(STAT_BYTES == THREADS / 2 * 16, "");
    int i = threadIdx.x % (THREADS / 4) * 2;
    if (threadIdx.x < THREADS / 4) tn_at_copy_16(stage + 2 * BYTES + i * 8, rows + i, true);
    else if (threadIdx.x < THREADS / 2) tn_at_copy_16(stage + 2 * BYTES + ROWS_BYTES + i * 8, bounds + i, true);
}

/* s := p, dp := ds, of keys by queries. */
__device__ __forceinline__ void slope_of_keys(const tn_at_core &c, float (&s)[TILE / 8][4], float (&dp)[TILE / 8][4], const float2 *rows,
                                              const int2 *bounds, int key0) {
    float scale = c.scale * 1.44269504f;
    int lane = threadIdx.x % TN_WARP, key = key0 + threadIdx.x / TN_WARP * 16 + lane / 4;
    bool all = bounds[TILE - 1].x <= key0 && bounds[0].y >= key0 + TILE;
#pragma unroll
    for (int t = 0; t < TILE / 8; t++) {
        int at = t * 8 + lane % 4 * 2;
        float4 of = *(const float4 *)(rows + at);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float p = tn_at_exp2(fmaf(s[t][i], scale, i % 2 ? -of.z : -of.x));
            if (!all) {
                int2 seen = bounds[at + i % 2];
                if (key + i / 2 * 8 < seen.x || key + i / 2 * 8 >= seen.y) p = 0;
            }
            s[t][i] = p;
            dp[t][i] = p * fmaf(dp[t][i], c.scale_v, i % 2 ? -of.w : -of.y);
        }
    }
}

template <int D> constexpr int stage_bytes = 2 * TILE *tn_at_row_bytes<D> + STAT_BYTES;
template <int D> constexpr int keys_bytes = 2 * TILE *tn_at_row_bytes<D> + STAGES *stage_bytes<D>;

template <int D> __global__ void __launch_bounds__(THREADS, 2) keys_back(const __grid_constant__ tn_at_core c) {
    constexpr int BYTES = TILE * tn_at_row_bytes<D>, OWN = 16 * tn_at_row_bytes<D>;
    extern __shared__ __align__(128) unsigned char memory[];
    tn_at_walk w = tn_at_walk_of<TILE, TILE>(c);
    uint32_t keys = tn_at_shared(memory), values = keys + BYTES, stages = values + BYTES, own = threadIdx.x / TN_WARP * OWN;
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    if (w.steps > 0) {
        int64_t head = w.head / c.group;
        int64_t there = tn_at_keys_there(c, w.batch) - w.key;
        tn_at_fetch_rows<THREADS, TILE, D>(keys, tn_at_of<tn_cuda_bf16>(c.k, w.batch, w.key, head), c.k.token, there);
        tn_at_fetch_rows<THREADS, TILE, D>(values, tn_at_of<tn_cuda_bf16>(c.v, w.batch, w.key, head), c.v.token, there);
        fetch_queries<D>(c, w, stages, 0);
    }
    tn_at_copy_commit();
    for (int step = 0; step < w.steps; step++) {
        tn_at_copy_wait<0>();
        __syncthreads();
        int at = step % STAGES * stage_bytes<D>;
        if (step + 1 < w.steps) fetch_queries<D>(c, w, stages + (step + 1) % STAGES * stage_bytes<D>, step + 1);
        tn_at_copy_commit();
        float s[TILE / 8][4], dp[TILE / 8][4];
        multiply_rows<D>(s, keys + own, stages + at);
        multiply_rows<D>(dp, values + own, stages + at + BYTES);
        const unsigned char *stat = memory + 2 * BYTES + at + 2 * BYTES;
        slope_of_keys(c, s, dp, (const float2 *)stat, (const int2 *)(stat + ROWS_BYTES), (int)w.key);
        add_product<D>(dv, s, stages + at + BYTES);
        add_product<D>(dk, dp, stages + at);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t key = w.key + threadIdx.x / TN_WARP * 16 + half * 8 + threadIdx.x % TN_WARP / 4;
        tn_at_write_key(c, w, dk, half, key, c.dk, c.dk_part, c.scale);
        tn_at_write_key(c, w, dv, half, key, c.dv, c.dv_part, c.scale_v);
    }
}

/* to = the parts' sum, in order. */
__global__ void add_parts(int64_t n, int64_t parts, const float *from, tn_cuda_bf16 *to) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        float sum = 0;
        for (int64_t part = 0; part < parts; part++) sum += from[part * n + i];
        to[i] = __float2bfloat16_rn(sum);
    }
}

/* ---- dq ---- */

template <int D> __device__ __forceinline__ void fetch_keys(const tn_at_core &c, uint32_t stage, int64_t key, int64_t end) {
    int64_t head = blockIdx.y / c.group;
    tn_at_fetch_rows<THREADS, TILE, D>(stage, tn_at_of<tn_cuda_bf16>(c.k, blockIdx.z, key, head), c.k.token, end - key);
    tn_at_fetch_rows<THREADS, TILE, D>(stage + TILE * tn_at_row_bytes<D>, tn_at_of<tn_cuda_bf16>(c.v, blockIdx.z, key, head), c.v.token,
                                       end - key);
}

template <int D> constexpr int query_bytes = (2 + 2 * STAGES) * TILE *tn_at_row_bytes<D>;

template <int D> __global__ void __launch_bounds__(THREADS, 2) queries_back(const __grid_constant__ tn_at_core c) {
    constexpr int BYTES = TILE * tn_at_row_bytes<D>, OWN = 16 * tn_at_row_bytes<D>;
    extern __shared__ __align__(128) unsigned char memory[];
    int64_t t0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * TILE, batch = c.first_batch + blockIdx.z; /* the longest of causal ones first */
    int lane = threadIdx.x % TN_WARP, begin, end, none;
    tn_at_keys_seen(c.p, batch, t0, &begin, &none);
    tn_at_keys_seen(c.p, batch, min(t0 + TILE, c.p.n) - 1, &none, &end);
    begin = begin / TILE * TILE;

    float2 row[2];
    int2 seen[2];
    int64_t own_t = t0 + threadIdx.x / TN_WARP * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        row[half] = ((const float2 *)c.rows)[(batch * c.p.h + c.first_head + blockIdx.y) * c.padded + own_t + half * 8];
        seen[half] = ((const int2 *)c.bounds)[batch * c.padded + own_t + half * 8];
    }
    int all_begin = __reduce_max_sync(0xffffffffu, max(seen[0].x, seen[1].x)),
        all_end = __reduce_min_sync(0xffffffffu, min(seen[0].y, seen[1].y));

    uint32_t queries = tn_at_shared(memory), upstream = queries + BYTES, stages = upstream + BYTES, own = threadIdx.x / TN_WARP * OWN;
    float dq[D / 8][4] = {}, scale = c.scale * 1.44269504f;
    tn_at_fetch_rows<THREADS, TILE, D>(queries, tn_at_of<tn_cuda_bf16>(c.q, blockIdx.z, t0, blockIdx.y), c.q.token, c.p.n - t0);
    tn_at_fetch_rows<THREADS, TILE, D>(upstream, tn_at_of<tn_cuda_bf16>(c.d_o, blockIdx.z, t0, blockIdx.y), c.d_o.token, c.p.n - t0);
    if (begin < end) fetch_keys<D>(c, stages, begin, end);
    tn_at_copy_commit();
    for (int key = begin, stage = 0; key < end; key += TILE, stage = (stage + 1) % STAGES) {
        tn_at_copy_wait<0>();
        __syncthreads();
        if (key + TILE < end) fetch_keys<D>(c, stages + (stage + 1) % STAGES * 2 * BYTES, key + TILE, end);
        tn_at_copy_commit();
        uint32_t at = stages + stage * 2 * BYTES;
        float s[TILE / 8][4], dp[TILE / 8][4];
        multiply_rows<D>(s, queries + own, at);
        multiply_rows<D>(dp, upstream + own, at + BYTES);
        bool all = all_begin <= key && all_end >= key + TILE;
#pragma unroll
        for (int t = 0; t < TILE / 8; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float p = tn_at_exp2(fmaf(s[t][i], scale, -row[i / 2].x));
                if (!all) {
                    int here = key + t * 8 + lane % 4 * 2 + i % 2;
                    if (here < seen[i / 2].x || here >= seen[i / 2].y) p = 0;
                }
                s[t][i] = p * fmaf(dp[t][i], c.scale_v, -row[i / 2].y);
            }
        add_product<D>(dq, s, at);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t t = own_t + half * 8;
        if (t >= c.p.n) continue;
        tn_cuda_bf16 *to = tn_at_of<tn_cuda_bf16>(c.dq, blockIdx.z, t, blockIdx.y) + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < D / 8; i++) *(uint32_t *)(to + i * 8) = tn_at_pair(dq[i][2 * half] * c.scale, dq[i][2 * half + 1] * c.scale);
    }
}

template <int D> cudaError_t start_dkv(const tn_at_core &c, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(keys_back<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, keys_bytes<D>);
    if (error != cudaSuccess) return error;
    dim3 grid((unsigned)((c.p.m + TILE - 1) / TILE), (unsigned)(c.heads / c.group * c.parts), (unsigned)c.batches);
    keys_back<D><<<grid, THREADS, keys_bytes<D>, stream>>>(c);
    return cudaGetLastError();
}

template <int D> cudaError_t start_dq(const tn_at_core &c, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(queries_back<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, query_bytes<D>);
    if (error != cudaSuccess) return error;
    dim3 grid((unsigned)((c.p.n + TILE - 1) / TILE), (unsigned)c.heads, (unsigned)c.batches);
    queries_back<D><<<grid, THREADS, query_bytes<D>, stream>>>(c);
    return cudaGetLastError();
}

} // namespace

#define WITH_WIDTH(d, D, ...)      \
    do {                           \
        if ((d) == 128) {          \
            constexpr int D = 128; \
            __VA_ARGS__;           \
        } else if ((d) == 96) {    \
            constexpr int D = 96;  \
            __VA_ARGS__;           \
        } else if ((d) == 64) {    \
            constexpr int D = 64;  \
            __VA_ARGS__;           \
        } else {                   \
            constexpr int D = 32;  \
            __VA_ARGS__;           \
        }                          \
    } while (0)

int tn_at_core_rows(const tn_at_core *c, void *stream) {
    int64_t rows = c->p.b * c->padded * c->p.h;
    if (rows == 0) return 0;
    WITH_WIDTH(c->p.d, D,
               rows_of<D><<<tn_blocks(rows * (D == 32   ? 4
                                              : D == 64 ? 8
                                                        : 16),
                                      THREADS),
                            THREADS, 0, (cudaStream_t)stream>>>(*c));
    return (int)cudaGetLastError();
}

int tn_at_core_dq(const tn_at_core *c, void *stream) {
    cudaError_t error = cudaSuccess;
    WITH_WIDTH(c->p.d, D, error = start_dq<D>(*c, (cudaStream_t)stream));
    return (int)error;
}

int tn_at_core_dkv(const tn_at_core *c, void *stream) {
    cudaError_t error = cudaSuccess;
    WITH_WIDTH(c->p.d, D, error = start_dkv<D>(*c, (cudaStream_t)stream));
    return (int)error;
}

int tn_at_core_add_parts(const tn_at_core *c, void *stream) {
    if (c->parts == 1) return 0;
    int64_t all = c->batches * c->p.m * (c->heads / c->group) * c->p.d;
    const float *parts[] = { c->dk_part, c->dv_part };
    void *to[] = { c->dk.at, c->dv.at };
    for (int i = 0; i < 2; i++)
        if (to[i]) add_parts<<<tn_blocks(all, THREADS), THREADS, 0, (cudaStream_t)stream>>>(all, c->parts, parts[i], (tn_cuda_bf16 *)to[i]);
    return (int)cudaGetLastError();
}
