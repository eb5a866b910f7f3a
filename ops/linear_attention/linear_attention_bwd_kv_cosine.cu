/* Second pass of the backward of non-causal linear attention with cosine LRPE, for wgmma and full tiles: d = e = 128, one axis, v as it is.
 *
 * The way to dv and the way to dk have only the tile in common, and go side by side, a tile apart:
 *
 *     encoders (2 groups)    fetch tiles, kb = lrpe(act(k)), dvb = kb dS, dv              (each half of the columns)
 *     readers (2 groups)     dkb = v dS', dk = act'(lrpe'(dkb)), in k's place             (each half of the features)
 *
 * dv leaves by kb's place. Softmax over the features: p takes k's place; sum p dp = <kb, dkb> = <kb, v dS'> = <dvb, v> comes from the
 * encoders. */
#include "linear_attention_bwd_cosine.cuh"

namespace {

using Z = tn_bwd_shape<128, true, true, 2>; /* the share of an encoder or reader */

enum { ENCODERS = 256, READERS = 256, THREADS = ENCODERS + READERS, STAGES = 3 };
enum { STEADY = 1, ENCODED, MULTIPLIED, ROWS, READ, LEFT, LOADED, READY /* and READY + 1, in turn */, OUT = READY + 2 /* likewise */ };

struct room {
    static constexpr int state = 0, encoded = Z::state_bytes, raw = encoded + Z::encoded_bytes, stage = 2 * Z::raw_bytes;
    static constexpr int steps = raw + STAGES * stage, first = steps + 9 * TN_BWD_STEPS * 8, rows = first + STAGES * 4 * 128 * 8;
    static constexpr int products = rows + 2 * TN_BWD_TOKENS * 8, sums = products + STAGES * 2 * TN_BWD_TOKENS * 4,
                         bytes = sums + 8 * Z::share * 4;
};

/* Of a tile: where it is in shared memory, and its angles. */
struct place {
    uint32_t k, v;
    float2 *first;
    float *products; /* [2][64]: of rows, <dvb, v> by halves of the columns */

    __device__ __forceinline__ place(char *shared, int stage)
        : k(tn_tile_address(shared) + room::raw + stage * room::stage), v(k + Z::raw_bytes),
          first(reinterpret_cast<float2 *>(shared + room::first) + stage * 4 * 128),
          products(reinterpret_cast<float *>(shared + room::products) + stage * 2 * TN_BWD_TOKENS) {}
};
__device__ __forceinline__ int after(int stage) { return stage + 1 == STAGES ? 0 : stage + 1; }

__device__ __forceinline__ void fetch(const tn_bwd_pass &p, uint32_t to, tn_bwd_walk &next) {
    if (next.left) tn_bwd_fetch_kv<Z>(p, to, next.slice, next.token), next.move(p.x.tokens);
    tn_tile_fetched();
}

/* dvb to dv, by way of kb's place, and where softmax needs them its products with v. */
__device__ __forceinline__ void finish(const tn_bwd_pass &p, const float (&dvb)[Z::N][4], const place &tile, uint32_t kb,
                                       const tn_bwd_place &at) {
    if (p.x.act != TN_SOFTMAX) return;
    float both[2] = { 0, 0 };
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        uint32_t words[4];
        float x[8];
        tn_bwd_read(words, tile.v, at, at.group * Z::N + 2 * j);
        tn_bwd_unpack(x, words);
#pragma unroll
        for (int i = 0; i < 8; i++) both[i >> 1 & 1] = fmaf(x[i], TN_BWD_AT(dvb, j, i >> 1, i & 1), both[i >> 1 & 1]);
    }
    tn_bwd_quad_sums(both);
    if ((at.lane & 3) == 0)
        tile.products[at.group * TN_BWD_TOKENS + at.row] = both[0], tile.products[at.group * TN_BWD_TOKENS + at.row + 8] = both[1];
}

/* dS of a slice, from the parts that the first pass has left; by the readers. */
__device__ __forceinline__ void add_parts(uint32_t to, const tn_bwd_pass &p, uint32_t slice) {
    constexpr int per_row = Z::W / 8;
    const int thread = (int)threadIdx.x - ENCODERS;
    const uint32_t block = tn_bwd_owner(p.dealt, slice * p.dealt.tiles), last = tn_bwd_owner(p.dealt, (slice + 1) * p.dealt.tiles - 1);
    const float4 *from = reinterpret_cast<const float4 *>(p.state_parts + (int64_t)(block + slice) * (Z::F * Z::W)) + thread * 2;
#pragma unroll 1
    for (int i = 0; i < Z::F * per_row / READERS; i += 4) {
        float4 sum[4][2];
#pragma unroll
        for (int j = 0; j < 4; j++) sum[j][0] = from[j * READERS * 2], sum[j][1] = from[j * READERS * 2 + 1];
        const float4 *more = from;
        for (uint32_t b = block; b < last; b++) {
            more += Z::F * Z::W / 4;
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float4 part = more[j * READERS * 2 + half];
                    sum[j][half].x += part.x, sum[j][half].y += part.y, sum[j][half].z += part.z, sum[j][half].w += part.w;
                }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = (i + j) * READERS + thread;
            tn_tile_write(to + tn_tile_chunk(Z::F, at / per_row, at % per_row),
                          make_uint4(tn_pair_of(sum[j][0].x, sum[j][0].y), tn_pair_of(sum[j][0].z, sum[j][0].w),
                                     tn_pair_of(sum[j][1].x, sum[j][1].y), tn_pair_of(sum[j][1].z, sum[j][1].w)));
        }
        from += 4 * READERS * 2;
    }
}

__device__ __forceinline__ void be_encoder(const tn_bwd_pass &p, char *shared) {
    const uint32_t base = tn_tile_address(shared), kb = base + room::encoded, state = base + room::state;
    float2 *steps = reinterpret_cast<float2 *>(shared + room::steps), *rows_of = reinterpret_cast<float2 *>(shared + room::rows);
    tn_bwd_place at;
    at.group = __shfl_sync(0xffffffffu, at.group, 0); /* the same for the warp: the compiler sees it */
    tn_bwd_walk here(p.deal, blockIdx.x), next = here;
    fetch(p, place(shared, 0).k, next);
    fetch(p, place(shared, 1).k, next);
    tn_bwd_let_next_start();
    int stage = 0, odd = 0;
    bool begun = false; /* has there been a tile? */
    while (here.left) {
        const uint32_t slice = here.slice;
        /* Encoders are done with the last slice's dS. */
        tn_bwd_tell<THREADS>(LEFT);
        /* No one needs its steps any more. */
        if (begun) tn_bwd_meet<THREADS>(OUT + (odd ^ 1));
        const tn_tile_rate rate = tn_bwd_cosine_load_steps(steps, p, slice % p.deal.heads);
        bool loaded = false; /* dS */
        bool out = begun;    /* is the tile before this one known to be done with? */
        do {
            const place tile(shared, stage);
            tn_bwd_cosine_load_first<2>(tile.first, rate, (float)(here.token + p.x.grid.offset), (int)threadIdx.x / 128 * 2);
            tn_tile_await<1>();
            tn_wgmma_publish();
            /* Of all encoders the fetched rows are there, and kb's place is free. */
            tn_bwd_meet<ENCODERS>(STEADY);
            tn_bwd_cosine_encode_tile<Z, ROWS>(rows_of, kb, tile.k, { tile.first, steps }, at, p.x.act);
            tn_wgmma_publish();
            if (loaded) tn_bwd_meet<ENCODERS>(ENCODED);
            else tn_bwd_meet<THREADS>(LOADED);
            loaded = true;
            /* k has been read: dk may take its place. */
            if (p.x.act != TN_SOFTMAX) tn_bwd_tell<THREADS>(READY + odd);
            float dvb[Z::N][4];
            tn_bwd_times_state<Z>(dvb, kb, state, at);
            if (begun && !out) tn_bwd_meet<THREADS>(OUT + (odd ^ 1));
            out = false;
            /* The tile before this one has left its place. */
            fetch(p, place(shared, after(after(stage))).k, next);
            tn_wgmma_await<0>();
            tn_wgmma_hold(dvb);
            finish(p, dvb, tile, kb, at);
            if (p.x.act == TN_SOFTMAX) tn_bwd_tell<THREADS>(READY + odd);
            tn_bwd_meet<ENCODERS>(MULTIPLIED);
            if (p.dz) {
#pragma unroll
                for (int j = 0; j < Z::G; j++) {
                    uint32_t words[4];
#pragma unroll
                    for (int r = 0; r < 4; r++) words[r] = tn_pair_of(TN_BWD_AT(dvb, j, r, 0), TN_BWD_AT(dvb, j, r, 1));
                    tn_bwd_write(kb, at, at.group * Z::N + 2 * j, words);
                }
                tn_bwd_store<Z>(kb, at, tn_bwd_rows(p.dz, p.z.stride, p.deal, slice, here.token), p.z.stride.token,
                                tn_bwd_rows_left(p.x.tokens, here.token), Z::W, false);
            }
            begun = true;
            here.move(p.x.tokens);
            stage = after(stage);
            odd ^= 1;
        } while (here.left && here.slice == slice);
    }
    if (begun) tn_bwd_meet<THREADS>(OUT + (odd ^ 1));
    tn_tile_await<0>();
}

/* What the readers have for theta, added in a fixed order: rows of a warp, then warps. */
__device__ __forceinline__ void add_up(char *shared, const tn_bwd_sums<Z> &sums, const tn_bwd_place &at, float *to) {
    float *place = reinterpret_cast<float *>(shared + room::sums);
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        float of[4] = { sums.at[j][0], sums.at[j][1], sums.at[j][2], sums.at[j][3] };
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
            for (int step = 4; step < 32; step *= 2) of[k] += __shfl_xor_sync(0xffffffffu, of[k], step);
            if (at.lane < 4) place[(at.group * 4 + at.warp) * Z::share + 16 * j + 8 * (k >> 1) + at.pair + (k & 1)] = of[k];
        }
    }
    tn_bwd_meet<READERS>(READ);
    const int column = (int)threadIdx.x - ENCODERS;
    if (column < Z::W) {
        const float *of = place + column / Z::share * 4 * Z::share + column % Z::share;
        to[column] = ((of[0] + of[Z::share]) + of[2 * Z::share]) + of[3 * Z::share];
    }
    tn_bwd_meet<READERS>(READ);
}

__device__ __forceinline__ void be_reader(const tn_bwd_pass &p, char *shared) {
    const uint32_t state = tn_tile_address(shared) + room::state;
    const float2 *steps = reinterpret_cast<const float2 *>(shared + room::steps);
    tn_bwd_place at;
    at.group = __shfl_sync(0xffffffffu, at.group, 0) - 2; /* the same for the warp: the compiler sees it */
    tn_bwd_walk here(p.deal, blockIdx.x);
    tn_bwd_sums<Z> sums;
    int stage = 0, odd = 0;
    /* dS comes from the kernel before; k and v, which encoders begin with, are older. */
    tn_bwd_await_previous();
    while (here.left) {
        const uint32_t slice = here.slice;
        sums.clear();
        tn_bwd_meet<THREADS>(LEFT);
        if (p.state_parts) add_parts(state, p, slice);
        else tn_bwd_cosine_load_state<READERS, 8>(state, p.state + (int64_t)slice * Z::F * Z::W, 1.0f, (int)threadIdx.x - ENCODERS);
        tn_wgmma_publish();
        tn_bwd_tell<THREADS>(LOADED);
        do {
            const place tile(shared, stage);
            const tn_bwd_cosine_turn turn = { tile.first, steps };
            const int rows = tn_bwd_rows_left(p.x.tokens, here.token);
            const float coordinate = (float)(here.token + p.x.grid.offset);
            const float weight[2] = { at.row < rows ? coordinate + (float)at.row : 0.0f,
                                      at.row + 8 < rows ? coordinate + (float)(at.row + 8) : 0.0f };
            float a[8][4], b[8][4], both[2] = { 0, 0 };
            tn_bwd_meet<THREADS>(READY + odd);
            tn_bwd_cosine_begin(a, tile.v, state, 2 * at.group);
            tn_bwd_cosine_begin(b, tile.v, state, 2 * at.group + 1);
            if (p.x.act == TN_SOFTMAX) {
#pragma unroll
                for (int row = 0; row < 2; row++)
                    both[row] = tile.products[at.row + 8 * row] + tile.products[TN_BWD_TOKENS + at.row + 8 * row];
            }
            tn_wgmma_await<1>();
            tn_wgmma_hold(a);
            tn_bwd_cosine_decode(tile.k, turn, a, 2 * at.group, at, p.x.act, weight, both, sums);
            tn_wgmma_await<0>();
            tn_wgmma_hold(b);
            tn_bwd_cosine_decode(tile.k, turn, b, 2 * at.group + 1, at, p.x.act, weight, both, sums);
            if (p.dx)
                tn_bwd_store<Z>(tile.k, at, tn_bwd_rows(p.dx, p.x.stride, p.deal, slice, here.token), p.x.stride.token, rows, Z::W, false);
            tn_bwd_tell<THREADS>(OUT + odd);
            here.move(p.x.tokens);
            stage = after(stage);
            odd ^= 1;
        } while (here.left && here.slice == slice);
        if (p.what == TN_BWD_SUMS_THETA) add_up(shared, sums, at, p.sums + ((int64_t)blockIdx.x + slice) * Z::W);
    }
}

__global__ void __launch_bounds__(THREADS, 1) pass_kv_cosine(const __grid_constant__ tn_bwd_pass p) {
#if TN_TILE_WGMMA
    extern __shared__ __align__(1024) char shared[];
    if (threadIdx.x < ENCODERS) be_encoder(p, shared);
    else be_reader(p, shared);
#endif
}

} // namespace

int tn_bwd_run_kv_cosine(const tn_bwd_pass *pass, void *stream) {
    if (pass->follows)
        return (int)tn_bwd_launch_early(pass_kv_cosine, dim3(pass->deal.blocks), THREADS, room::bytes, (cudaStream_t)stream, *pass);
    pass_kv_cosine<<<pass->deal.blocks, THREADS, room::bytes, (cudaStream_t)stream>>>(*pass);
    return (int)cudaGetLastError();
}

int tn_bwd_shared_kv_cosine(void) {
    static int known;
    return tn_bwd_ready(pass_kv_cosine, room::bytes, true, &known);
}
