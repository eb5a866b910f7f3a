/* What the kernels for one query against factors of rank 1 share: where a block works, how rows come to shared memory, the query. */
#ifndef TENON_ATTENTION_DECODE_CUH
#define TENON_ATTENTION_DECODE_CUH

#include "attention_decode.h"
#include "attention_tiles.cuh"

constexpr int TN_AT_MOST_RANKS = 64; /* of the query */

struct tn_at_decode_args {
    const tn_cuda_bf16 *aq, *bq, *ak, *bk, *av, *bv;
    tn_cuda_bf16 *o;
    float *lse;   /* NULL: nobody keeps it */
    float *parts; /* NULL: one part, which is o. [b][part][h][E], then maximum and sum [b][part][h][2] */
    const int64_t *seqlens;
    int64_t m, chunk;
    int b, h, rq, n_parts;
    int head_step;        /* heads that a block writes */
    int stages;           /* that a block has room for: all, or one for each of its tiles and one for the query's factors */
    float scale, scale_v; /* of t ak, in powers of 2 */
    bool hopper;
};

/* Where a block works: heads from head0 (a multiple of 8) on, of which it writes [first, last); keys [begin, end). */
struct tn_at_decode_place {
    int64_t batch, begin, end;
    int head0, first, last, pieces;
};

__device__ __forceinline__ tn_at_decode_place tn_at_decode_place_of(const tn_at_decode_args &a, int heads) {
    tn_at_decode_place p;
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
__device__ __forceinline__ void tn_at_decode_fetch(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int pieces, int there) {
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
template <typename S, int D>
__device__ __forceinline__ void tn_at_decode_fetch_query(const tn_at_decode_args &a, const tn_at_decode_place &p, unsigned char *to) {
    const tn_cuda_bf16 *aq = a.aq + (p.batch * a.h + p.head0) * a.rq, *bq = a.bq + p.batch * a.rq * D;
    int heads = p.pieces * 8, ranks = (a.rq + 15) / 16 * 16;
    uint32_t bq_at = tn_at_shared(to), aq_at = bq_at + TN_AT_MOST_RANKS * D * 2;
#pragma unroll 1
    for (int r = 0; r < ranks; r += 16) tn_at_decode_fetch<S::THREADS, 16, D * 2>(bq_at + r * D * 2, bq + r * D, D, D / 8, a.rq - r);
    constexpr int THREADS_OF_HEAD = S::THREADS / S::HEADS;
    int head = threadIdx.x / THREADS_OF_HEAD;
    if (a.rq % 8 == 0) {
#pragma unroll 1
        for (int piece = threadIdx.x % THREADS_OF_HEAD; piece < ranks / 8; piece += THREADS_OF_HEAD) {
            bool here = head < heads && piece * 8 < a.rq;
            tn_at_copy_16(aq_at + tn_at_piece<TN_AT_MOST_RANKS * 2>(head, piece), here ? aq + head * a.rq + piece * 8 : aq, here);
        }
    } else {
#pragma unroll 1
        for (int r = threadIdx.x % THREADS_OF_HEAD; r < ranks; r += THREADS_OF_HEAD)
            *(tn_cuda_bf16 *)(to + TN_AT_MOST_RANKS * D * 2 + tn_at_piece<TN_AT_MOST_RANKS * 2>(head, r / 8) + r % 8 * 2) =
                head < heads && r < a.rq ? aq[head * a.rq + r] : __float2bfloat16_rn(0.0f);
    }
}

/* q [HEADS][D] of what fetch_query brought, without scale. A warp takes its heads, and its share of the columns. In a rolled loop, since
 * with cold caches instructions come no faster than data. */
template <typename S, int D>
__device__ __forceinline__ void tn_at_decode_make_query(int ranks, const unsigned char *from, unsigned char *q, int warp_heads, int part) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
    uint32_t bq_at = tn_at_shared(from), aq_at = bq_at + TN_AT_MOST_RANKS * D * 2;
    constexpr int COLUMNS = D / S::KEY_WARPS;
#pragma unroll 1
    for (int column = part * COLUMNS; column < (part + 1) * COLUMNS; column += 16) {
        float sum[2][4] = {};
#pragma unroll 1
        for (int r = 0; r < ranks; r += 16) {
            uint32_t rows[4], b[4];
            tn_at_load(rows, aq_at + tn_at_piece<TN_AT_MOST_RANKS * 2>(warp_heads + matrix % 2 * 8 + row8, r / 8 + matrix / 2));
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
__device__ __forceinline__ float tn_at_weight_of(float most, float top) { return most == -INFINITY ? 0.0f : tn_at_exp2(most - top); }

/* A chunk of 64, 128 or 256 keys, which is all there are, for each block (attention_decode_short.cu). Returns a cudaError_t. */
int tn_at_decode_short(const tn_at_decode_args *a, int64_t width, int64_t head_groups, cudaStream_t stream);

#endif
