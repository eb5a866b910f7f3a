/* Forward of attention by wgmma: a block keeps 128 rows of q and goes along the keys by tiles of 128. One warpgroup fetches by cp.async,
 * two multiply, 64 rows each, and soften scores as they come; weights stay in registers as the left side of the product with v.
 *
 * Rows are tokens of a head, or, straight from factors of rank 1, 16 heads of 8 tokens as in attention_fwd.cu: the tiles are bk and bv, ak
 * and av weigh scores and weights in the registers, and a warp's 16 rows are the heads of one token, whose q it makes with one product.
 *
 *     shared memory | q [128][D] | 2 x ( k [128][D] | ak [128][16] | av [128][16] ) | 2 x v [128][D] | */
#include "attention_hopper.cuh"

namespace {

constexpr int ROWS = 128, KEYS = 128, HEADS = 16, STAGES = 2;

template <int D, bool SHARED> struct shape_of {
    static constexpr int TOKENS = SHARED ? ROWS / HEADS : ROWS;
    static constexpr int Q = ROWS * D * 2, TILE = KEYS * D * 2, A = SHARED ? KEYS * HEADS * 2 : 0;
    static constexpr int STAGE = 2 * TILE + 2 * A, BYTES = 1024 + Q + STAGES * STAGE + 2 * STAGES * 16;
};

#if TN_AT_WGMMA

struct place {
    int64_t batch, first; /* the batch of all; the first of the block's tokens */
    int head, pieces;     /* within the run; 8 heads each */
    int begin, end;       /* the keys that any of its rows sees */
};

template <typename S, bool SHARED> __device__ __forceinline__ place place_of(const tn_at_core &c) {
    place at;
    int none;
    at.batch = c.first_batch + blockIdx.z;
    at.first = (int64_t)(gridDim.x - 1 - blockIdx.x) * S::TOKENS; /* the longest of causal ones first */
    at.head = SHARED ? blockIdx.y * HEADS : blockIdx.y;
    at.pieces = SHARED ? (int)(min((int64_t)HEADS, c.p.h - at.head) / 8) : 0;
    tn_at_keys_seen(c.p, at.batch, at.first, &at.begin, &none);
    tn_at_keys_seen(c.p, at.batch, min(at.first + S::TOKENS, c.p.n) - 1, &none, &at.end);
    at.begin = at.begin / KEYS * KEYS;
    return at;
}

/* ---- the fetching warpgroup ---- */

/* Factors of a tile's keys for 16 heads: a thread takes a key. */
__device__ __forceinline__ void fetch_factors(uint32_t to, const void *from, int64_t h, const place &at, int there) {
    int key = threadIdx.x;
    const tn_cuda_bf16 *row = (const tn_cuda_bf16 *)from + (key < there ? key * h : 0);
#pragma unroll
    for (int piece = 0; piece < 2; piece++)
        if (piece < at.pieces) tn_at_copy_16(to + tn_at_piece<HEADS * 2>(key, piece), row + piece * 8, key < there);
}

/* The tiles' places: keys with what weighs them and the values, and values, each in a ring of its own. */
template <typename S> __device__ __forceinline__ uint32_t keys_at(uint32_t query, int stage) {
    return query + S::Q + stage * (S::TILE + 2 * S::A);
}
template <typename S> __device__ __forceinline__ uint32_t values_at(uint32_t query, int stage) {
    return query + S::Q + STAGES * (S::TILE + 2 * S::A) + stage * S::TILE;
}

template <typename S, int D, bool SHARED>
__device__ __forceinline__ void fetch_keys(const tn_at_core &c, const place &at, uint32_t to, int key) {
    int there = at.end - key;
    int64_t row = at.batch * c.p.m + key, head = at.head / c.group;
    if (!SHARED) {
        tn_at_fetch_panels<KEYS, D>(to, tn_at_of<tn_cuda_bf16>(c.k, blockIdx.z, key, head), c.k.token, there);
        return;
    }
    tn_at_fetch_panels<KEYS, D>(to, (const tn_cuda_bf16 *)c.p.k.x + row * D, D, there);
    fetch_factors(to + S::TILE, (const tn_cuda_bf16 *)c.p.k.a + row * c.p.h + at.head, c.p.h, at, there);
    fetch_factors(to + S::TILE + S::A, (const tn_cuda_bf16 *)c.p.v.a + row * c.p.h + at.head, c.p.h, at, there);
}

template <int D, bool SHARED> __device__ __forceinline__ void fetch_values(const tn_at_core &c, const place &at, uint32_t to, int key) {
    int64_t head = at.head / c.group;
    const tn_cuda_bf16 *from =
        SHARED ? (const tn_cuda_bf16 *)c.p.v.x + (at.batch * c.p.m + key) * D : tn_at_of<tn_cuda_bf16>(c.v, blockIdx.z, key, head);
    tn_at_fetch_panels<KEYS, D>(to, from, SHARED ? D : c.v.token, at.end - key);
}

/* Values lag a step behind keys, so that nobody waits for the one to ask for the other. */
template <typename S, int D, bool SHARED>
__device__ __forceinline__ void feed(const tn_at_core &c, const place &at, uint32_t query, tn_at_ring<STAGES> keys,
                                     tn_at_ring<STAGES> values) {
    tn_at_handing_over tiles = { 0 };
    if (at.begin >= at.end) return;
    if (!SHARED)
        tn_at_fetch_panels<ROWS, D>(query, tn_at_of<tn_cuda_bf16>(c.q, blockIdx.z, at.first, at.head), c.q.token, c.p.n - at.first);
    for (int key = at.begin; key < at.end + KEYS; key += KEYS) {
        if (key < at.end) {
            keys.await_empty();
            fetch_keys<S, D, SHARED>(c, at, keys_at<S>(query, keys.stage), key);
            tiles.asked_for(keys.full());
            keys.step();
        }
        if (key > at.begin) {
            values.await_empty();
            fetch_values<D, SHARED>(c, at, values_at<S>(query, values.stage), key - KEYS);
            tiles.asked_for(values.full());
            values.step();
        }
    }
    tiles.finish();
}

/* ---- the others ---- */

/* A warp's 16 rows of q, the heads of its token, without scale: aq [16, rank] bq [rank, D] by products of depth 16. Columns of D / 8 each
 * belong to the same lanes, so that bq is read, and q written, by whole pieces. */
template <typename S, int D> __device__ __forceinline__ void make_query(const tn_at_core &c, const place &at, unsigned char *q) {
    constexpr int N = D / 8;
    int lane = threadIdx.x % TN_WARP, row0 = (threadIdx.x - TN_AT_GROUP) / TN_WARP * 16, rank = (int)c.p.q.rank, heads = at.pieces * 8;
    int64_t token = at.first + row0 / HEADS, t = at.batch * c.p.n + token;
    bool there = token < c.p.n;
    const tn_cuda_bf16 *aq = (const tn_cuda_bf16 *)c.p.q.a + (t * c.p.h + at.head) * rank,
                       *bq = (const tn_cuda_bf16 *)c.p.q.x + t * rank * D + lane / 4 * N;
    float sum[N][4] = {};
    for (int r0 = 0; there && r0 < rank; r0 += 16) {
        uint32_t left[4];
        uint4 right[4][N / 8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int head = lane / 4 + i % 2 * 8, r = r0 + i / 2 * 8 + lane % 4 * 2;
            const unsigned short *of = (const unsigned short *)aq + head * rank + r;
            uint32_t low = head < heads && r < rank ? of[0] : 0, high = head < heads && r + 1 < rank ? of[1] : 0;
            left[i] = low | high << 16;
            int k = r0 + i / 2 * 8 + lane % 4 * 2 + i % 2;
#pragma unroll
            for (int j = 0; j < N / 8; j++) right[i][j] = k < rank ? tn_load_raw(bq + k * D + j * 8) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            uint32_t b[2];
#pragma unroll
            for (int i = 0; i < 2; i++)
                b[i] = __byte_perm(tn_word_of(right[2 * i][n / 8], n % 8 / 2), tn_word_of(right[2 * i + 1][n / 8], n % 8 / 2),
                                   n % 2 ? 0x7632 : 0x5410);
            tn_at_multiply_add(sum[n], left, b[0], b[1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = row0 + lane / 4 + i / 2 * 8, column = (lane % 4 * 2 + i % 2) * N;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            uint4 words = make_uint4(tn_at_pair(sum[j * 8][i], sum[j * 8 + 1][i]), tn_at_pair(sum[j * 8 + 2][i], sum[j * 8 + 3][i]),
                                     tn_at_pair(sum[j * 8 + 4][i], sum[j * 8 + 5][i]), tn_at_pair(sum[j * 8 + 6][i], sum[j * 8 + 7][i]));
            *(uint4 *)(q + tn_at_panel_piece<ROWS>(row, column / 8 + j)) = words;
        }
    }
}

/* What a thread keeps of its rows, lane / 4 and 8 more. */
template <int D> struct row_state {
    float o[D / 8][4];
    float most[2], sum[2];  /* sums of the thread's own columns until the end */
    int begin[2], end[2];   /* keys seen */
    int all_begin, all_end; /* by every row of the warp */
};

/* Token and head of a thread's row. */
template <bool SHARED> __device__ __forceinline__ void row_of(const place &at, int half, int64_t *token, int *head) {
    int row = (threadIdx.x - TN_AT_GROUP) / TN_WARP * 16 + half * 8 + threadIdx.x % TN_WARP / 4;
    *token = at.first + (SHARED ? row / HEADS : row);
    *head = at.head + (SHARED ? row % HEADS : 0);
}

/* Scores before their scale, which must not be negative: with k's factors and the sign that the scale had, -infinity where not seen. */
template <bool SHARED, int D>
__device__ __forceinline__ void finish_scores(float (&s)[KEYS / 8][4], bool negative, uint32_t factors, int key0, const row_state<D> &w) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
#pragma unroll
    for (int g = 0; SHARED && g < KEYS / 16; g++) {
        uint32_t ak[4];
        tn_at_load_transposed(ak, factors + tn_at_piece<HEADS * 2>(g * 16 + matrix / 2 * 8 + row8, matrix % 2));
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[2 * g + t][i] *= i % 2 ? tn_at_high(ak[t * 2 + i / 2]) : tn_at_low(ak[t * 2 + i / 2]);
    }
    if (negative) {
#pragma unroll
        for (int t = 0; t < KEYS / 8; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[t][i] = -s[t][i];
    }
    if (key0 >= w.all_begin && key0 + KEYS <= w.all_end) return;
#pragma unroll
    for (int t = 0; t < KEYS / 8; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = key0 + t * 8 + lane % 4 * 2 + i % 2;
            if (key < w.begin[i / 2] || key >= w.end[i / 2]) s[t][i] = -INFINITY;
        }
}

/* s := exp2(scale (s - maximum)) with the maximum so far; what was summed before counts `kept`. */
template <int D> __device__ __forceinline__ void soften(float (&s)[KEYS / 8][4], float scale, float (&kept)[2], row_state<D> &w) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = w.most[half];
#pragma unroll
        for (int t = 0; t < KEYS / 8; t++) most = fmaxf(most, fmaxf(s[t][2 * half], s[t][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        float base = most == -INFINITY ? 0.0f : most * scale, sum = 0;
        kept[half] = tn_at_exp2(fmaf(w.most[half], scale, -base));
        w.most[half] = most;
#pragma unroll
        for (int t = 0; t < KEYS / 8; t++)
#pragma unroll
            for (int i = 0; i < 2; i++) sum += s[t][2 * half + i] = tn_at_exp2(fmaf(s[t][2 * half + i], scale, -base));
        w.sum[half] = w.sum[half] * kept[half] + sum;
    }
}

template <bool SHARED>
__device__ __forceinline__ void round_weights(uint32_t (&p)[KEYS / 16][4], const float (&s)[KEYS / 8][4], uint32_t factors) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
#pragma unroll
    for (int g = 0; g < KEYS / 16; g++) {
        uint32_t av[4];
        if (SHARED) tn_at_load_transposed(av, factors + tn_at_piece<HEADS * 2>(g * 16 + matrix / 2 * 8 + row8, matrix % 2));
#pragma unroll
        for (int x = 0; x < 4; x++) {
            float low = s[2 * g + x / 2][x % 2 * 2], high = s[2 * g + x / 2][x % 2 * 2 + 1];
            p[g][x] = tn_at_pair(low, high);
            if (SHARED) p[g][x] = tn_at_pair_product(p[g][x], av[x]);
        }
    }
}

template <int D, bool SHARED>
__device__ __forceinline__ void write_rows(const tn_at_core &c, const place &at, float scale, row_state<D> &w) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t token;
        int head;
        row_of<SHARED>(at, half, &token, &head);
        float sum = w.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (token >= c.p.n || head >= (SHARED ? c.p.h : c.heads)) continue;
        float factor = sum == 0 ? 0.0f : c.scale_v / sum;
        tn_cuda_bf16 *o = tn_at_of<tn_cuda_bf16>(c.o, blockIdx.z, token, head) + threadIdx.x % 4 * 2;
#pragma unroll
        for (int t = 0; t < D / 8; t++) *(uint32_t *)(o + t * 8) = tn_at_pair(w.o[t][2 * half] * factor, w.o[t][2 * half + 1] * factor);
        if (c.p.lse && threadIdx.x % 4 == 0)
            ((float *)c.p.lse)[(at.batch * c.p.h + c.first_head + head) * c.p.n + token] =
                sum == 0 ? -INFINITY : (w.most[half] * scale + log2f(sum)) * 0.693147181f;
    }
}

template <bool SHARED, int D> __device__ __forceinline__ row_state<D> start_rows(const tn_at_core &c, const place &at) {
    row_state<D> w = {};
    w.all_begin = 0, w.all_end = 0x7fffffff;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t token;
        int head;
        row_of<SHARED>(at, half, &token, &head);
        w.most[half] = -INFINITY;
        tn_at_keys_seen(c.p, at.batch, min(token, c.p.n - 1), &w.begin[half], &w.end[half]);
        w.all_begin = max(w.all_begin, w.begin[half]);
        w.all_end = min(w.all_end, w.end[half]);
    }
    w.all_begin = __reduce_max_sync(0xffffffffu, w.all_begin);
    w.all_end = __reduce_min_sync(0xffffffffu, w.all_end);
    return w;
}

/* The scores of a tile are softened while the product of the tile before with its values runs. */
template <typename S, int D, bool SHARED>
__device__ __forceinline__ void answer(const tn_at_core &c, const place &at, unsigned char *memory, tn_at_ring<STAGES> keys,
                                       tn_at_ring<STAGES> values) {
    int group = threadIdx.x / TN_AT_GROUP - 1;
    uint32_t query = tn_at_shared(memory), own = query + group * 64 * 128, p[KEYS / 16][4];
    float scale = fmaxf(fabsf(c.scale) * 1.44269504f, 1e-30f), s[KEYS / 8][4], kept[2]; /* never 0 times infinity */
    if (SHARED) {
        make_query<S, D>(c, at, memory);
        tn_at_publish();
        tn_at_group_barrier(group);
    }
    row_state<D> w = start_rows<SHARED, D>(c, at);
    for (int key = at.begin; key < at.end; key += KEYS) {
        uint32_t tile = keys_at<S>(query, keys.stage);
        keys.await_full();
        tn_at_begin();
        tn_at_scores<D, ROWS>(s, own, tile);
        if (key > at.begin) {
            values.await_full();
            tn_at_hold(p);
            tn_at_hold(w.o);
            tn_at_begin();
            tn_at_add_values(w.o, p, values_at<S>(query, values.stage));
            tn_at_finish<1>();
        } else {
            tn_at_finish<0>();
        }
        tn_at_hold(s);
        if (!SHARED) keys.say_empty(keys.stage);
        finish_scores<SHARED>(s, c.scale < 0, tile + S::TILE, key, w);
        soften(s, scale, kept, w);
        tn_at_finish<0>();
        tn_at_hold(s);
        tn_at_hold(w.o);
        if (key > at.begin) {
            values.say_empty(values.stage);
            values.step();
        }
        round_weights<SHARED>(p, s, tile + S::TILE + S::A);
        if (SHARED) keys.say_empty(keys.stage);
        keys.step();
        if (__any_sync(0xffffffffu, kept[0] != 1 || kept[1] != 1)) { /* a maximum seldom moves after the first tiles */
#pragma unroll
            for (int t = 0; t < D / 8; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) w.o[t][i] *= kept[i / 2];
        }
    }
    if (at.begin < at.end) {
        values.await_full();
        tn_at_hold(p);
        tn_at_hold(w.o);
        tn_at_begin();
        tn_at_add_values(w.o, p, values_at<S>(query, values.stage));
        tn_at_finish<0>();
        tn_at_hold(w.o);
    }
    write_rows<D, SHARED>(c, at, scale, w);
}

#endif

template <int D, bool SHARED> __global__ void __launch_bounds__(TN_AT_BLOCK, 1) forward(const __grid_constant__ tn_at_core c) {
#if TN_AT_WGMMA
    using S = shape_of<D, SHARED>;
    unsigned char *memory = tn_at_aligned_memory();
    uint32_t query = tn_at_shared(memory);
    tn_at_ring<STAGES> keys = { query + S::Q + STAGES * S::STAGE }, values = { keys.at + STAGES * 16 };
    place at = place_of<S, SHARED>(c);
    keys.make();
    values.make();
    __syncthreads();
    if (threadIdx.x < TN_AT_GROUP) {
        tn_at_fewer_registers<56>();
        feed<S, D, SHARED>(c, at, query, keys, values);
    } else {
        tn_at_more_registers<224>();
        answer<S, D, SHARED>(c, at, memory, keys, values);
    }
#endif
}

template <int D, bool SHARED> int start(const tn_at_core &c, cudaStream_t stream) {
    using S = shape_of<D, SHARED>;
    cudaError_t error = cudaFuncSetAttribute(forward<D, SHARED>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error != cudaSuccess) return (int)error;
    dim3 grid((unsigned)((c.p.n + S::TOKENS - 1) / S::TOKENS), (unsigned)(SHARED ? (c.p.h + HEADS - 1) / HEADS : c.heads),
              (unsigned)c.batches);
    forward<D, SHARED><<<grid, TN_AT_BLOCK, S::BYTES, stream>>>(c);
    return (int)cudaGetLastError();
}

} // namespace

int tn_at_hopper_forward(const tn_at_core *c, void *stream) {
    cudaStream_t on = (cudaStream_t)stream;
    if (!c->q.at) return (c->p.d == 128 ? start<128, true> : start<64, true>)(*c, on);
    return (c->p.d == 128 ? start<128, false> : start<64, false>)(*c, on);
}
