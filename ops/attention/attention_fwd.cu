/* Fused attention, forward: a block keeps 128 rows of q, goes along the keys by tiles of 64 and softens scores as they come.
 *
 * What a row is depends on the op. Without factors it is a token of one head. With factors of rank 1 all heads share bk and bv, and k =
 * ak bk: then
 * rows are 16 heads of 8 tokens, the tiles are bk and bv themselves, and ak and av weigh the scores in the registers,
 *
 *     s[(t, h), key] = scale * ak[key, h] <q[t, h], bk[key]>      o[t, h] += (p[(t, h), key] av[key, h]) bv[key]
 *
 * so that no k or v is ever made, and q, 16 heads at a time from one reading of bq, only once. Read by ldmatrix.trans ak and av fall into
 * place beside
 * the accumulators of the scores.
 *
 *     shared memory | q [128][D] | 2 x ( k [64][D] | v [64][E] | ak [64][16] | av [64][16] ) |
 *
 * Each of the 4 warps has 32 rows: two tiles of mma rows share what is read of k and v. */
#include "attention_core.cuh"

namespace {

constexpr int THREADS = 128, ROWS = 128, KEYS = 64, HEADS = 16, STAGES = 2;

struct fwd_args {
    tn_at_core c;
    float scale; /* of the scores, in powers of 2 */
};

template <int D, int E, bool SHARED> struct shape_of {
    static constexpr int TOKENS = SHARED ? ROWS / HEADS : ROWS;
    static constexpr int Q = ROWS * tn_at_row_bytes<D>, K = KEYS * tn_at_row_bytes<D>, V = KEYS * tn_at_row_bytes<E>,
                         A = SHARED ? KEYS * HEADS * 2 : 0;
    static constexpr int STAGE = K + V + 2 * A, BYTES = Q + STAGES * STAGE;
};

/* Where a block works. */
struct place {
    int64_t batch, first; /* the first of its tokens */
    int head, pieces;     /* the first of its heads; 8 heads each */
    int begin, end;       /* the keys that any of its rows sees */
};

template <typename S, bool SHARED> __device__ __forceinline__ place place_of(const tn_at_core &c) {
    const tn_at_problem &p = c.p;
    place at;
    int none;
    at.batch = c.first_batch + blockIdx.z;
    at.first = (int64_t)(gridDim.x - 1 - blockIdx.x) * S::TOKENS; /* the longest of causal ones first */
    at.head = SHARED ? blockIdx.y * HEADS : blockIdx.y;
    at.pieces = SHARED ? (int)(min((int64_t)HEADS, p.h - at.head) / 8) : 0;
    tn_at_keys_seen(p, at.batch, at.first, &at.begin, &none);
    tn_at_keys_seen(p, at.batch, min(at.first + S::TOKENS, p.n) - 1, &none, &at.end);
    at.begin = at.begin / KEYS * KEYS;
    return at;
}

template <typename S, int D, int E, bool SHARED>
__device__ __forceinline__ void fetch_tile(const tn_at_core &c, const place &at, uint32_t stage, int key) {
    const tn_at_problem &p = c.p;
    int there = at.end - key;
    int64_t row = at.batch * p.m + key;
    if (SHARED) {
        tn_at_fetch<THREADS, KEYS, D * 2>(stage, (const tn_cuda_bf16 *)p.k.x + row * D, D, D / 8, there);
        tn_at_fetch<THREADS, KEYS, E * 2>(stage + S::K, (const tn_cuda_bf16 *)p.v.x + row * E, E, E / 8, there);
        tn_at_fetch<THREADS, KEYS, HEADS * 2>(stage + S::K + S::V, (const tn_cuda_bf16 *)p.k.a + row * p.h + at.head, p.h, at.pieces,
                                              there);
        tn_at_fetch<THREADS, KEYS, HEADS * 2>(stage + S::K + S::V + S::A, (const tn_cuda_bf16 *)p.v.a + row * p.h + at.head, p.h, at.pieces,
                                              there);
    } else {
        int64_t head = at.head / c.group;
        tn_at_fetch_rows<THREADS, KEYS, D>(stage, tn_at_of<tn_cuda_bf16>(c.k, blockIdx.z, key, head), c.k.token, there);
        tn_at_fetch_rows<THREADS, KEYS, E>(stage + S::K, tn_at_of<tn_cuda_bf16>(c.v, blockIdx.z, key, head), c.v.token, there);
    }
}

/* q of 16 heads of 8 tokens from its factors, without scale; a thread takes a column. */
template <typename S, int D> __device__ __forceinline__ void make_query(const tn_at_problem &p, const place &at, unsigned char *q) {
    int j = threadIdx.x, rank = (int)p.q.rank;
    if (j >= D) return;
#pragma unroll 1
    for (int token = 0; token < S::TOKENS; token++) {
        float sum[HEADS] = {};
        int64_t t = at.batch * p.n + at.first + token;
        const tn_cuda_bf16 *aq = (const tn_cuda_bf16 *)p.q.a + (t * p.h + at.head) * rank,
                           *bq = (const tn_cuda_bf16 *)p.q.x + t * rank * D + j;
        int heads = at.first + token < p.n ? at.pieces * 8 : 0;
        for (int r0 = 0; r0 < rank && heads > 0; r0 += 8) {
            float x[8];
#pragma unroll
            for (int r = 0; r < 8; r++) x[r] = r0 + r < rank ? tn_widen(bq[(r0 + r) * D]) : 0.0f;
            if (rank % 8 == 0) {
#pragma unroll
                for (int i = 0; i < HEADS; i++) {
                    uint4 raw = i < heads ? tn_load_raw(aq + i * rank + r0) : make_uint4(0, 0, 0, 0);
#pragma unroll
                    for (int r = 0; r < 8; r++) sum[i] += tn_raw_element<tn_cuda_bf16>(raw, r) * x[r];
                }
            } else {
#pragma unroll 1
                for (int r = 0; r < 8 && r0 + r < rank; r++) {
                    float here = tn_widen(bq[(r0 + r) * D]);
#pragma unroll
                    for (int i = 0; i < HEADS; i++)
                        if (i < heads) sum[i] += tn_widen(aq[i * rank + r0 + r]) * here;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < HEADS; i++)
            *(tn_cuda_bf16 *)(q + tn_at_piece<D * 2>(token * HEADS + i, j / 8) + j % 8 * 2) = __float2bfloat16_rn(sum[i]);
    }
}

/* What a warp keeps of its 32 rows: a thread has rows lane / 4 and lane / 4 + 8 of both tiles of 16. */
template <int E> struct warp_state {
    float o[2][E / 8][4];
    float most[2][2], sum[2][2]; /* sums of the thread's own columns until the end */
    int begin[2][2], end[2][2];  /* keys seen; where rows are heads those of a tile see the same */
    int all_begin, all_end;      /* by every row of the warp */
};

template <typename S, int D, int E, bool SHARED>
__device__ __forceinline__ void take_tile(const fwd_args &a, uint32_t q, uint32_t stage, int key0, warp_state<E> &w) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
    float s[2][KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t rows[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++)
            tn_at_load(rows[i], q + tn_at_piece<tn_at_row_bytes<D>>(i * 16 + matrix % 2 * 8 + row8, 2 * k + matrix / 2));
#pragma unroll
        for (int g = 0; g < KEYS / 16; g++) {
            uint32_t b[4];
            tn_at_load(b, stage + tn_at_piece<tn_at_row_bytes<D>>(g * 16 + matrix / 2 * 8 + row8, 2 * k + matrix % 2));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                tn_at_multiply_add(s[i][2 * g], rows[i], b[0], b[1]);
                tn_at_multiply_add(s[i][2 * g + 1], rows[i], b[2], b[3]);
            }
        }
    }
    /* Scores in powers of 2. */
#pragma unroll
    for (int g = 0; g < KEYS / 16; g++) {
        uint32_t ak[4];
        if (SHARED) tn_at_load_transposed(ak, stage + S::K + S::V + tn_at_piece<HEADS * 2>(g * 16 + matrix / 2 * 8 + row8, matrix % 2));
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float factor = a.scale;
                if (SHARED) factor *= c % 2 ? tn_at_high(ak[t * 2 + c / 2]) : tn_at_low(ak[t * 2 + c / 2]);
#pragma unroll
                for (int i = 0; i < 2; i++) s[i][2 * g + t][c] *= factor;
            }
    }
    if (key0 < w.all_begin || key0 + KEYS > w.all_end) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int t = 0; t < KEYS / 8; t++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int key = key0 + t * 8 + lane % 4 * 2 + c % 2;
                    if (key < w.begin[i][SHARED ? 0 : c / 2] || key >= w.end[i][SHARED ? 0 : c / 2]) s[i][t][c] = -INFINITY;
                }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = w.most[i][half];
#pragma unroll
            for (int t = 0; t < KEYS / 8; t++) most = fmaxf(most, fmaxf(s[i][t][2 * half], s[i][t][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            float base = most == -INFINITY ? 0.0f : most, kept = tn_at_exp2(w.most[i][half] - base), sum = 0;
            w.most[i][half] = most;
#pragma unroll
            for (int t = 0; t < KEYS / 8; t++)
#pragma unroll
                for (int c = 0; c < 2; c++) sum += s[i][t][2 * half + c] = tn_at_exp2(s[i][t][2 * half + c] - base);
            w.sum[i][half] = w.sum[i][half] * kept + sum;
#pragma unroll
            for (int t = 0; t < E / 8; t++) w.o[i][t][2 * half] *= kept, w.o[i][t][2 * half + 1] *= kept;
        }
#pragma unroll
    for (int g = 0; g < KEYS / 16; g++) {
        uint32_t av[4], weights[2][4];
        if (SHARED)
            tn_at_load_transposed(av, stage + S::K + S::V + S::A + tn_at_piece<HEADS * 2>(g * 16 + matrix / 2 * 8 + row8, matrix % 2));
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int x = 0; x < 4; x++) {
                float low = s[i][2 * g + x / 2][x % 2 * 2], high = s[i][2 * g + x / 2][x % 2 * 2 + 1];
                if (SHARED) low *= tn_at_low(av[x]), high *= tn_at_high(av[x]);
                weights[i][x] = tn_at_pair(low, high);
            }
#pragma unroll
        for (int c = 0; c < E / 16; c++) {
            uint32_t b[4];
            tn_at_load_transposed(b, stage + S::K + tn_at_piece<tn_at_row_bytes<E>>(g * 16 + matrix % 2 * 8 + row8, 2 * c + matrix / 2));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                tn_at_multiply_add(w.o[i][2 * c], weights[i], b[0], b[1]);
                tn_at_multiply_add(w.o[i][2 * c + 1], weights[i], b[2], b[3]);
            }
        }
    }
}

/* Token and head of a thread's row. */
template <bool SHARED> __device__ __forceinline__ void row_of(const place &at, int i, int half, int64_t *token, int *head) {
    int row = threadIdx.x / TN_WARP * 32 + i * 16 + half * 8 + threadIdx.x % TN_WARP / 4;
    *token = at.first + (SHARED ? row / HEADS : row);
    *head = at.head + (SHARED ? row % HEADS : 0);
}

template <int D, int E, bool SHARED> __global__ void __launch_bounds__(THREADS, 2) forward(const __grid_constant__ fwd_args a) {
    using S = shape_of<D, E, SHARED>;
    extern __shared__ __align__(128) unsigned char memory[];
    const tn_at_core &c = a.c;
    const tn_at_problem &p = c.p;
    place at = place_of<S, SHARED>(c);
    uint32_t query = tn_at_shared(memory), stages = query + S::Q;
    int n_tiles = at.end > at.begin ? (at.end - at.begin + KEYS - 1) / KEYS : 0;

    if (!SHARED)
        tn_at_fetch_rows<THREADS, ROWS, D>(query, tn_at_of<tn_cuda_bf16>(c.q, blockIdx.z, at.first, at.head), c.q.token, p.n - at.first);
    if (n_tiles > 0) fetch_tile<S, D, E, SHARED>(c, at, stages, at.begin);
    tn_at_copy_commit();
    if (SHARED) make_query<S, D>(p, at, memory);

    warp_state<E> w = {};
    w.all_begin = 0, w.all_end = 0x7fffffff;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t token;
            int head;
            row_of<SHARED>(at, i, half, &token, &head);
            w.most[i][half] = -INFINITY;
            tn_at_keys_seen(p, at.batch, min(token, p.n - 1), &w.begin[i][half], &w.end[i][half]);
            w.all_begin = max(w.all_begin, w.begin[i][half]);
            w.all_end = min(w.all_end, w.end[i][half]);
        }
    w.all_begin = __reduce_max_sync(0xffffffffu, w.all_begin);
    w.all_end = __reduce_min_sync(0xffffffffu, w.all_end);

    uint32_t own = query + threadIdx.x / TN_WARP * 32 * tn_at_row_bytes<D>;
    for (int tile = 0; tile < n_tiles; tile++) {
        tn_at_copy_wait<0>();
        __syncthreads();
        if (tile + 1 < n_tiles) fetch_tile<S, D, E, SHARED>(c, at, stages + (tile + 1) % STAGES * S::STAGE, at.begin + (tile + 1) * KEYS);
        tn_at_copy_commit();
        take_tile<S, D, E, SHARED>(a, own, stages + tile % STAGES * S::STAGE, at.begin + tile * KEYS, w);
    }

#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t token;
            int head;
            row_of<SHARED>(at, i, half, &token, &head);
            float sum = w.sum[i][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (token >= p.n || head >= (SHARED ? p.h : c.heads)) continue;
            float factor = sum == 0 ? 0.0f : c.scale_v / sum;
            tn_cuda_bf16 *o = tn_at_of<tn_cuda_bf16>(c.o, blockIdx.z, token, head) + threadIdx.x % 4 * 2;
#pragma unroll
            for (int t = 0; t < E / 8; t++)
                *(uint32_t *)(o + t * 8) = tn_at_pair(w.o[i][t][2 * half] * factor, w.o[i][t][2 * half + 1] * factor);
            if (p.lse && threadIdx.x % 4 == 0)
                ((float *)p.lse)[(at.batch * p.h + c.first_head + head) * p.n + token] =
                    sum == 0 ? -INFINITY : (w.most[i][half] + log2f(sum)) * 0.693147181f;
        }
}

template <int D, int E, bool SHARED> cudaError_t start(const fwd_args &a, cudaStream_t stream) {
    using S = shape_of<D, E, SHARED>;
    cudaError_t error = cudaFuncSetAttribute(forward<D, E, SHARED>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error != cudaSuccess) return error;
    const tn_at_core &c = a.c;
    dim3 grid((unsigned)((c.p.n + S::TOKENS - 1) / S::TOKENS), (unsigned)(SHARED ? (c.p.h + HEADS - 1) / HEADS : c.heads),
              (unsigned)c.batches);
    forward<D, E, SHARED><<<grid, THREADS, S::BYTES, stream>>>(a);
    return cudaGetLastError();
}

} // namespace

int tn_at_core_forward(const tn_at_core *core, void *stream) {
    fwd_args a = { *core, core->scale * 1.44269504f };
    cudaStream_t on = (cudaStream_t)stream;
    int width = (int)core->p.d;
    if (!core->q.at) return (int)(width == 128 ? start<128, 128, true> : start<64, 64, true>)(a, on);
    return (int)(width == 128  ? start<128, 128, false>
                 : width == 96 ? start<96, 96, false>
                 : width == 64 ? start<64, 64, false>
                               : start<32, 32, false>)(a, on);
}
