/* Backward of non-causal linear attention for short heads, in one launch: d = e = 128, q, k, v and g as they are, gate, wgmma.
 *
 * A block has one head: its dS goes from registers to the place in shared memory where S was, and never comes back from memory. Two blocks
 * fit on a multiprocessor, so that a few more heads than multiprocessors do not take twice as long.
 *
 *     queries   y = q S | dg = do y, dy = do g, in place | dq = dy S', dS += q' dy | dq in q's place
 *     keys      dv = k dS, dk = v dS' | in place
 *
 * Five places hold tiles; a place is fetched into as soon as it is free:
 *
 *     tile i      a: q   b: g   c: do   d: the next q   e: the next g
 *     dg is out   b: the next do
 *     at the end  c: the q after that, a: the g after that (or k and v) */
#include "linear_attention_bwd_passes.cuh"

namespace {

using Z = tn_bwd_shape<128, false, true, 2>;

enum { PLACES = 5 };
struct room {
    static constexpr int state = 0, raw = Z::state_bytes, bytes = raw + PLACES * Z::raw_bytes;
};

/* The block's head and what it fetches: tiles of queries, then of keys. */
struct head {
    const tn_bwd_short &p;
    uint32_t slice;
    int queries, tiles; /* tiles of queries, of both */

    __device__ __forceinline__ void pair(int tile, uint32_t to, uint32_t other) const {
        if (tile >= tiles) return;
        const tn_bwd_pass &of = tile < queries ? p.q : p.k;
        const int64_t token = (int64_t)(tile < queries ? tile : tile - queries) * TN_BWD_TOKENS;
        const int rows = tn_bwd_rows_left(of.x.tokens, token);
        tn_bwd_fetch<Z>(to, tn_bwd_rows(of.x.x, of.x.stride, p.q.deal, slice, token), of.x.stride.token, rows, Z::W, false);
        tn_bwd_fetch<Z>(other, tn_bwd_rows(of.z.x, of.z.stride, p.q.deal, slice, token), of.z.stride.token, rows, Z::W, false);
    }
    __device__ __forceinline__ void gradient(int tile, uint32_t to) const {
        if (tile >= queries) return;
        const int64_t token = (int64_t)tile * TN_BWD_TOKENS;
        tn_bwd_fetch<Z>(to, tn_bwd_rows(p.q.d_o, p.q.o_stride, p.q.deal, slice, token), p.q.o_stride.token,
                        tn_bwd_rows_left(p.q.x.tokens, token), Z::W, false);
    }
    __device__ __forceinline__ void store(const void *dx, const tn_la_strides &stride, uint32_t from, const tn_bwd_place &at, int64_t token,
                                          int64_t tokens) const {
        tn_bwd_store<Z>(from, at, tn_bwd_rows(const_cast<void *>(dx), stride, p.q.deal, slice, token), stride.token,
                        tn_bwd_rows_left(tokens, token), Z::W, false);
    }
};

__device__ __forceinline__ void load_state(uint32_t to, const float *state, float scale) {
    constexpr int per_row = Z::W / 8, n = Z::F * per_row / Z::threads;
    float4 x[n][2];
#pragma unroll
    for (int i = 0; i < n; i++) {
        const float4 *from = reinterpret_cast<const float4 *>(state) + (i * Z::threads + (int)threadIdx.x) * 2;
        x[i][0] = from[0], x[i][1] = from[1];
    }
#pragma unroll
    for (int i = 0; i < n; i++) {
        const int at = i * Z::threads + (int)threadIdx.x;
        tn_tile_write(to + tn_tile_chunk(Z::F, at / per_row, at % per_row),
                      make_uint4(tn_pair_of(scale * x[i][0].x, scale * x[i][0].y), tn_pair_of(scale * x[i][0].z, scale * x[i][0].w),
                                 tn_pair_of(scale * x[i][1].x, scale * x[i][1].y), tn_pair_of(scale * x[i][1].z, scale * x[i][1].w)));
    }
}

/* g's tile becomes dg, do's becomes dy. */
__device__ __forceinline__ void gate(uint32_t g, uint32_t d_o, const float (&y)[Z::N][4], const tn_bwd_place &at) {
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int chunk = at.group * Z::N + 2 * j;
        uint32_t words[4], dwords[4];
        float x[8], d[8];
        tn_bwd_read(words, g, at, chunk);
        tn_bwd_read(dwords, d_o, at, chunk);
        tn_bwd_unpack(x, words);
        tn_bwd_unpack(d, dwords);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float dy = d[i] * x[i];
            x[i] = d[i] * TN_BWD_AT(y, j, i >> 1, i & 1);
            d[i] = dy;
        }
        tn_bwd_pack(words, x);
        tn_bwd_pack(dwords, d);
        tn_bwd_write(g, at, chunk, words);
        tn_bwd_write(d_o, at, chunk, dwords);
    }
}

__device__ __forceinline__ void write(uint32_t to, const float (&x)[Z::N][4], const tn_bwd_place &at) {
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        uint32_t words[4];
#pragma unroll
        for (int r = 0; r < 4; r++) words[r] = tn_pair_of(TN_BWD_AT(x, j, r, 0), TN_BWD_AT(x, j, r, 1));
        tn_bwd_write(to, at, at.group * Z::N + 2 * j, words);
    }
}

/* dS (+ begin), to `ds` where that is wanted, and as a bf16 tile. */
__device__ __forceinline__ void keep_state(uint32_t to, const tn_bwd_short &p, uint32_t slice, const float (&ds)[Z::C][4],
                                           const tn_bwd_place &at) {
    const int64_t from = (int64_t)slice * Z::F * Z::W;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = at.group * 64 + at.row + 8 * half;
#pragma unroll
        for (int j = 0; j < Z::C; j++) {
            const int column = 8 * j + at.pair;
            float2 x = make_float2(p.q.scale * ds[j][2 * half], p.q.scale * ds[j][2 * half + 1]);
            if (p.begin) {
                const float2 more = *reinterpret_cast<const float2 *>(p.begin + from + row * Z::W + column);
                x.x += more.x, x.y += more.y;
            }
            if (p.ds) *reinterpret_cast<float2 *>(p.ds + from + row * Z::W + column) = x;
            tn_tile_write_word(to + tn_tile_pair(Z::F, row, column), tn_pair_of(x.x, x.y));
        }
    }
}

__global__ void __launch_bounds__(Z::threads, 2) pass_short(const __grid_constant__ tn_bwd_short p) {
#if TN_TILE_WGMMA
    extern __shared__ __align__(1024) char shared[];
    const uint32_t base = tn_tile_address(shared), state = base + room::state;
    const tn_bwd_place at;
    const int queries = (int)((p.q.x.tokens + TN_BWD_TOKENS - 1) / TN_BWD_TOKENS),
              keys = (int)((p.k.x.tokens + TN_BWD_TOKENS - 1) / TN_BWD_TOKENS);
    const head of = { p, blockIdx.x, queries, queries + keys };
    uint32_t a = base + room::raw, b = a + Z::raw_bytes, c = b + Z::raw_bytes, d = c + Z::raw_bytes, e = d + Z::raw_bytes;
    of.pair(0, a, b);
    of.gradient(0, c);
    tn_tile_fetched();
    of.pair(1, d, e);
    tn_tile_fetched();
    load_state(state, p.q.state + (int64_t)of.slice * Z::F * Z::W, p.q.scale);
    float ds[1][Z::C][4];
    tn_bwd_clear(ds[0]);
#pragma unroll 1
    for (int tile = 0; tile < queries; tile++) {
        const int64_t token = (int64_t)tile * TN_BWD_TOKENS;
        tn_tile_await<1>();
        tn_wgmma_publish();
        __syncthreads();
        float y[Z::N][4];
        tn_bwd_times_state<Z>(y, a, state, at);
        tn_wgmma_await<0>();
        tn_wgmma_hold(y);
        gate(b, c, y, at);
        tn_wgmma_publish();
        __syncthreads();
        tn_bwd_times_state_transposed<Z>(y, c, state, 0, at);
        tn_bwd_add_outer<Z>(ds, a, c, 0, at);
        if (p.q.dz) of.store(p.q.dz, p.q.z.stride, b, at, token, p.q.x.tokens);
        __syncthreads();
        of.gradient(tile + 1, b);
        tn_tile_fetched();
        tn_wgmma_await<0>();
        tn_wgmma_hold(y);
        tn_wgmma_hold(ds[0]);
        __syncthreads();
        if (p.q.dx) {
            write(a, y, at);
            of.store(p.q.dx, p.q.x.stride, a, at, token, p.q.x.tokens);
        }
        __syncthreads();
        of.pair(tile + 2, c, a);
        tn_tile_fetched();
        const uint32_t free = c, other = a;
        a = d, c = b, b = e, d = free, e = other;
    }
    keep_state(state, p, of.slice, ds[0], at);
#pragma unroll 1
    for (int tile = queries; tile < queries + keys; tile++) {
        const int64_t token = (int64_t)(tile - queries) * TN_BWD_TOKENS;
        tn_tile_await<1>();
        tn_wgmma_publish();
        __syncthreads();
        float dz[Z::N][4], dx[Z::P][4];
        tn_bwd_times_state<Z>(dz, a, state, at);
        tn_bwd_times_state_transposed<Z>(dx, b, state, 0, at);
        tn_wgmma_await<0>();
        tn_wgmma_hold(dz);
        tn_wgmma_hold(dx);
        __syncthreads();
        if (p.k.dz) {
            write(b, dz, at);
            of.store(p.k.dz, p.k.z.stride, b, at, token, p.k.x.tokens);
        }
        if (p.k.dx) {
            write(a, dx, at);
            of.store(p.k.dx, p.k.x.stride, a, at, token, p.k.x.tokens);
        }
        __syncthreads();
        of.pair(tile + 2, a, b);
        tn_tile_fetched();
        const uint32_t free = a, other = b;
        a = d, b = e, d = free, e = other;
    }
    tn_tile_await<0>();
#endif
}

} // namespace

int tn_bwd_run_short(const tn_bwd_short *pass, void *stream) {
    pass_short<<<pass->slices, Z::threads, room::bytes, (cudaStream_t)stream>>>(*pass);
    return (int)cudaGetLastError();
}

int tn_bwd_shared_short(void) {
    static int known;
    return tn_bwd_ready(pass_short, room::bytes, true, &known);
}
