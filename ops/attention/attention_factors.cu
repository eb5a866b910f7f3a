/* Between factors and what they stand for, for the bf16 kernels that want q, k and v written out:
 *
 *     to[head, t] = sum_r a[t, head, r] x[t, r]
 *     da[t, head, r] = <d[head, t], x[t, r]>        dx[t, r] = sum over heads of a[t, head, r] d[head, t]
 *
 * The way back is two products for each token, heads x width by width x ranks and ranks x heads by heads x width; a warp makes both from
 * one reading of d, 16 heads at a time and in order. */
#include "attention_core.cuh"

namespace {

constexpr int THREADS = 128, WARPS = THREADS / TN_WARP, HEADS = 4;

struct expand_args {
    int64_t tokens, heads, all_heads, rank, first_batch, first_head;
    const tn_cuda_bf16 *x, *a;
    tn_at_view to;
};

/* A block takes a token, a thread 8 columns of 4 heads. */
template <int D> __global__ void __launch_bounds__(THREADS) expand(const __grid_constant__ expand_args g) {
    constexpr int PIECES = D / 8, SLOTS = THREADS / PIECES;
    int64_t token = blockIdx.x, row = (g.first_batch + blockIdx.y) * g.tokens + token;
    int piece = threadIdx.x % PIECES, slot = threadIdx.x / PIECES;
    const tn_cuda_bf16 *x = g.x + row * g.rank * D + piece * 8, *a = g.a + (row * g.all_heads + g.first_head) * g.rank;
    if (slot >= SLOTS) return;
    for (int64_t head = slot * HEADS; head < g.heads; head += SLOTS * HEADS) {
        float sum[HEADS][8] = {};
        const tn_cuda_bf16 *of[HEADS];
#pragma unroll
        for (int i = 0; i < HEADS; i++) of[i] = a + min(head + i, g.heads - 1) * g.rank;
#pragma unroll 4
        for (int64_t r = 0; r < g.rank; r++) {
            uint4 raw = tn_load_raw(x + r * D);
#pragma unroll
            for (int i = 0; i < HEADS; i++) {
                float factor = tn_widen(of[i][r]);
#pragma unroll
                for (int j = 0; j < 8; j++) sum[i][j] += factor * tn_raw_element<tn_cuda_bf16>(raw, j);
            }
        }
#pragma unroll
        for (int i = 0; i < HEADS; i++) {
            if (head + i >= g.heads) break;
            tn_pack<tn_cuda_bf16> pack;
#pragma unroll
            for (int j = 0; j < 8; j++) pack.at[j] = __float2bfloat16_rn(sum[i][j]);
            tn_store_pack(tn_at_of<tn_cuda_bf16>(g.to, blockIdx.y, token, head + i) + piece * 8, pack);
        }
    }
}

struct contract_args {
    int64_t tokens, heads, all_heads, rank, first_batch, first_head;
    const tn_cuda_bf16 *x, *a;
    tn_cuda_bf16 *dx, *da;
    tn_at_view d;
    float *sums;      /* [tokens, rank, width] of one batch; NULL: all heads are here */
    bool start, last; /* of the runs that share the sums */
    const int64_t *seqlens;
};

/* Tiles of a warp: 16 heads of d, 16 ranks of x, 16 x 16 of a. */
template <int D> constexpr int tile_bytes = 16 * tn_at_row_bytes<D>;
template <int D> constexpr int warp_bytes = 2 * tile_bytes<D> + 16 * 32;

/* 16 rows of width D by one warp; the first `there` exist. */
template <int D> __device__ __forceinline__ void fetch_16(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int64_t there) {
    constexpr int PIECES = D / 8;
#pragma unroll
    for (int i = threadIdx.x % TN_WARP; i < 16 * PIECES; i += TN_WARP) {
        int row = i / PIECES, piece = i % PIECES;
        bool here = row < there;
        tn_at_copy_16(to + tn_at_piece<tn_at_row_bytes<D>>(row, piece), from + (here ? row : 0) * stride + piece * 8, here);
    }
}

template <int D>
__device__ __forceinline__ void write_da(const contract_args &g, uint32_t d, uint32_t x, tn_cuda_bf16 *to, int64_t heads, int64_t ranks) {
    constexpr int ROW = tn_at_row_bytes<D>;
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
    float sum[2][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[4], right[4];
        tn_at_load(left, d + tn_at_piece<ROW>(matrix % 2 * 8 + row8, 2 * k + matrix / 2));
        tn_at_load(right, x + tn_at_piece<ROW>(matrix / 2 * 8 + row8, 2 * k + matrix % 2));
        tn_at_multiply_add(sum[0], left, right[0], right[1]);
        tn_at_multiply_add(sum[1], left, right[2], right[3]);
    }
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int head = lane / 4 + i / 2 * 8, r = t * 8 + lane % 4 * 2 + i % 2;
            if (head < heads && r < ranks) to[head * g.rank + r] = __float2bfloat16_rn(sum[t][i]);
        }
}

template <int D> __device__ __forceinline__ void add_dx(float (&sum)[D / 8][4], uint32_t d, uint32_t a) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
    uint32_t left[4];
    tn_at_load_transposed(left, a + tn_at_piece<32>(matrix / 2 * 8 + row8, matrix % 2));
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t right[4];
        tn_at_load_transposed(right, d + tn_at_piece<tn_at_row_bytes<D>>(matrix % 2 * 8 + row8, 2 * i + matrix / 2));
        tn_at_multiply_add(sum[2 * i], left, right[0], right[1]);
        tn_at_multiply_add(sum[2 * i + 1], left, right[2], right[3]);
    }
}

template <int D>
__device__ __forceinline__ void take_sums(const contract_args &g, float (&sum)[D / 8][4], int64_t token, int64_t row, int64_t r0,
                                          bool give) {
    int lane = threadIdx.x % TN_WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t r = r0 + lane / 4 + half * 8;
        if (r >= g.rank) continue;
        float *sums = g.sums ? g.sums + (token * g.rank + r) * D + lane % 4 * 2 : NULL;
        tn_cuda_bf16 *to = g.dx + (row * g.rank + r) * D + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            if (!give) {
                float2 before = *(const float2 *)(sums + i * 8);
                sum[i][2 * half] = before.x, sum[i][2 * half + 1] = before.y;
            } else if (sums && !g.last) *(float2 *)(sums + i * 8) = make_float2(sum[i][2 * half], sum[i][2 * half + 1]);
            else *(uint32_t *)(to + i * 8) = tn_at_pair(sum[i][2 * half], sum[i][2 * half + 1]);
        }
    }
}

/* A warp takes a token. */
template <int D> __global__ void __launch_bounds__(THREADS) contract(const __grid_constant__ contract_args g) {
    __shared__ __align__(128) unsigned char memory[WARPS * warp_bytes<D>];
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP;
    int64_t token = blockIdx.x * (int64_t)WARPS + warp, batch = g.first_batch + blockIdx.y, row = batch * g.tokens + token;
    if (token >= g.tokens) return;
    unsigned char *own = memory + warp * warp_bytes<D>;
    uint32_t d = tn_at_shared(own), x = d + tile_bytes<D>, a = x + tile_bytes<D>;
    bool there = !g.seqlens || token < g.seqlens[batch]; /* behind them a and x may be anything, and d is 0 */
    const tn_cuda_bf16 *of_a = g.a + (row * g.all_heads + g.first_head) * g.rank;
    for (int64_t r0 = 0; r0 < g.rank; r0 += 16) {
        int64_t ranks = min(g.rank - r0, (int64_t)16);
        float sum[D / 8][4] = {};
        if (g.dx && g.sums && !g.start) take_sums<D>(g, sum, token, row, r0, false);
        fetch_16<D>(x, g.x + (row * g.rank + r0) * D, D, there ? ranks : 0);
        for (int64_t h0 = 0; h0 < g.heads; h0 += 16) {
            int64_t heads = min(g.heads - h0, (int64_t)16);
            fetch_16<D>(d, tn_at_of<tn_cuda_bf16>(g.d, blockIdx.y, token, h0), g.d.head, heads);
            tn_at_copy_commit();
#pragma unroll
            for (int i = lane; i < 256; i += TN_WARP) {
                int head = i / 16, r = i % 16;
                bool here = there && head < heads && r < ranks;
                *(tn_cuda_bf16 *)(own + 2 * tile_bytes<D> + tn_at_piece<32>(head, r / 8) + r % 8 * 2) =
                    here ? of_a[(h0 + head) * g.rank + r0 + r] : __float2bfloat16_rn(0.0f);
            }
            tn_at_copy_wait<0>();
            __syncwarp();
            if (g.da) write_da<D>(g, d, x, g.da + (row * g.all_heads + g.first_head + h0) * g.rank + r0, heads, ranks);
            if (g.dx) add_dx<D>(sum, d, a);
            __syncwarp();
        }
        if (g.dx) take_sums<D>(g, sum, token, row, r0, true);
    }
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

int tn_at_expand(const tn_at_core *c, const tn_at_operand *x, tn_at_view to, void *stream) {
    expand_args g = {
        x->tokens, c->heads, c->p.h, x->rank, c->first_batch, c->first_head, (const tn_cuda_bf16 *)x->x, (const tn_cuda_bf16 *)x->a, to
    };
    if (x->tokens == 0) return 0;
    dim3 grid((unsigned)x->tokens, (unsigned)c->batches);
    WITH_WIDTH(x->width, D, expand<D><<<grid, THREADS, 0, (cudaStream_t)stream>>>(g));
    return (int)cudaGetLastError();
}

int tn_at_contract(const tn_at_core *c, const tn_at_operand *x, bool keys, tn_at_view d, float *sums, void *stream) {
    if (x->tokens == 0 || (!x->da && !x->dx)) return 0;
    contract_args g = { x->tokens, c->heads, c->p.h, x->rank, c->first_batch, c->first_head };
    g.x = (const tn_cuda_bf16 *)x->x, g.a = (const tn_cuda_bf16 *)x->a, g.dx = (tn_cuda_bf16 *)x->dx, g.da = (tn_cuda_bf16 *)x->da;
    g.d = d, g.sums = sums, g.start = c->first_head == 0, g.last = c->first_head + c->heads == c->p.h;
    g.seqlens = keys ? c->p.seqlens : NULL;
    dim3 grid((unsigned)((x->tokens + WARPS - 1) / WARPS), (unsigned)c->batches);
    WITH_WIDTH(x->width, D, contract<D><<<grid, THREADS, 0, (cudaStream_t)stream>>>(g));
    return (int)cudaGetLastError();
}
