/* First pass of the backward of non-causal linear attention with cosine LRPE, for wgmma and full tiles: d = e = 128, one axis, gate.
 *
 * dS takes 128 of the registers of two warp groups, so that these cannot do all the rest one step after the other. Four groups share the
 * work:
 *
 *     encoders (2 groups)    fetch tiles, qb = lrpe(act(q)), dS += qb' dy            (dS in registers)
 *     readers (2 groups)     y = qb S, dg, dy, dqb = dy S', dq                       (each half of the columns)
 *
 *     encoders   | qb(i)       | dS(i - 1) ..  | fetch(i + 1) |   wait   | dS(i), qb(i + 1) ..
 *     readers       dq(i - 1)  | y(i), dg, dy(i)              | dqb(i), dq(i)              | y(i + 1)
 *
 * Named barriers say: qb is there (and its tile), dy is there, the tile is done with.
 *
 * Softmax over the features: p takes q's place; sum p dp = <qb, dqb> = <qb, dy S'> = <y, dy> is known before dqb is. Encoders take
 * exponentials only; readers divide by their sums, through do: every gradient of q, g and S has one of do or of y in it. */
#include "linear_attention_bwd_cosine.cuh"

namespace {

using Z = tn_bwd_shape<128, true, true, 2>; /* the share of an encoder or reader */

enum { ENCODERS = 256, READERS = 256, THREADS = ENCODERS + READERS, STAGES = 2 };
enum { STEADY = 1, ENCODED, DY, READ, ROWS, OUT /* and OUT + 1, in turn */ };

struct room {
    static constexpr int state = 0, encoded = Z::state_bytes, raw = encoded + Z::encoded_bytes, stage = 3 * Z::raw_bytes;
    static constexpr int sums = raw + STAGES * stage, steps = sums + Z::G * READERS * 16, first = steps + (8 * TN_BWD_STEPS + 128) * 8;
    static constexpr int of_rows = 2 * TN_BWD_TOKENS * 4, rows = first + 2 * 4 * 128 * 8, row_sums = rows + of_rows,
                         rows_y = row_sums + of_rows, bytes = rows_y + of_rows;
};

/* ---- encoders ---- */

__device__ __forceinline__ void fetch(const tn_bwd_pass &p, uint32_t to, tn_bwd_walk &next) {
    if (next.left) tn_bwd_fetch_q<Z>(p, to, next.slice, next.token), next.move(p.x.tokens);
    tn_tile_fetched();
}

/* qb of a tile; with softmax it is yet to be divided by the rows' sums. */
template <bool Softmax>
__device__ __forceinline__ void encode(const tn_bwd_pass &p, char *shared, uint32_t qb, uint32_t tile, const tn_bwd_cosine_turn &turn,
                                       const tn_bwd_place &at) {
    float2 *rows = reinterpret_cast<float2 *>(shared + room::rows);
    float *row_sums = reinterpret_cast<float *>(shared + room::row_sums) + at.group * TN_BWD_TOKENS + at.row, sum[2];
    if constexpr (!Softmax) {
        tn_bwd_cosine_encode_tile<Z, ROWS>(rows, qb, tile, turn, at, p.x.act);
        return;
    }
    tn_bwd_cosine_encode_as<Z, ROWS, TN_SOFTMAX, true>(rows, qb, tile, turn, at, sum);
    tn_bwd_quad_sums(sum);
    if ((at.lane & 3) == 0) row_sums[0] = sum[0], row_sums[8] = sum[1];
}

template <bool Softmax> __device__ __forceinline__ void be_encoder(const tn_bwd_pass &p, char *shared) {
    const uint32_t base = tn_tile_address(shared), raw = base + room::raw, qb = base + room::encoded;
    tn_bwd_place at;
    at.group = __shfl_sync(0xffffffffu, at.group, 0);
    float ds[Z::M][Z::C][4];
#pragma unroll
    for (int i = 0; i < Z::M; i++) tn_bwd_clear(ds[i]);
    tn_bwd_walk here(p.deal, blockIdx.x), next = here;
    fetch(p, raw, next);
    fetch(p, raw + room::stage, next);
    int odd = 0;     /* of two places, the tile's */
    bool two = true; /* the tile after it is on its way too */
    while (here.left) {
        const uint32_t slice = here.slice;
        const tn_tile_rate rate = tn_bwd_cosine_load_steps(reinterpret_cast<float2 *>(shared + room::steps), p, slice % p.deal.heads);
        do {
            const uint32_t tile = raw + odd * room::stage;
            float2 *first = reinterpret_cast<float2 *>(shared + room::first) + odd * 4 * 128;
            tn_bwd_cosine_load_first<2>(first, rate, (float)(here.token + p.x.grid.offset), (int)threadIdx.x / 128 * 2);
            if (two) tn_tile_await<1>();
            else tn_tile_await<0>();
            tn_wgmma_await<0>();
#pragma unroll
            for (int i = 0; i < Z::M; i++) tn_wgmma_hold(ds[i]);
            /* Of all encoders the fetched rows are there, and dS has what qb was for. */
            tn_bwd_meet<ENCODERS>(STEADY);
            encode<Softmax>(p, shared, qb, tile, { first, reinterpret_cast<const float2 *>(shared + room::steps) }, at);
            tn_wgmma_publish();
            tn_bwd_tell<THREADS>(ENCODED);
            if (!two) {
                tn_bwd_meet<THREADS>(OUT + (odd ^ 1));
                fetch(p, raw + (odd ^ 1) * room::stage, next);
            }
            two = false;
            tn_bwd_meet<THREADS>(DY);
            tn_bwd_add_outer<Z>(ds, qb, tile + 2 * Z::raw_bytes, 0, at);
            tn_bwd_add_outer<Z>(ds, qb, tile + 2 * Z::raw_bytes, 1, at);
            here.move(p.x.tokens);
            odd ^= 1;
        } while (here.left && here.slice == slice);
        tn_wgmma_await<0>();
#pragma unroll
        for (int i = 0; i < Z::M; i++) tn_wgmma_hold(ds[i]);
        /* Readers are still at dq. */
        const int64_t piece = (int64_t)blockIdx.x + slice;
        if (p.state_parts) tn_bwd_leave_state<Z>(p.state_parts + piece * (Z::F * Z::W), p.scale, ds, at);
        tn_bwd_meet<THREADS>(OUT + (odd ^ 1));
        tn_bwd_meet<ENCODERS>(STEADY);
        fetch(p, raw + (odd ^ 1) * room::stage, next);
        two = true;
    }
    tn_tile_await<0>();
}

/* ---- the reader ---- */

/* y's columns from 64 `half` on. */
__device__ __forceinline__ void begin_y(float (&y)[8][4], uint32_t qb, uint32_t state, int half) {
    const uint32_t left = tn_bwd_columns_from(qb), right = tn_bwd_rows_from(state + half * Z::F * 128, Z::F * 128);
    tn_wgmma_begin();
#pragma unroll
    for (int k = 0; k < Z::F / 16; k++)
        tn_bwd_wgmma<false, true>(y, tn_bwd_descriptor(left + TN_BWD_COLUMNS(k, TN_BWD_PANEL)), tn_bwd_descriptor(right + k * 128), k != 0);
    tn_wgmma_commit();
}
/* g becomes dg, do times `share` of the row becomes dy; both: of two rows, sum y dy, y as it is here. */
template <int Act, bool Softmax>
__device__ __forceinline__ void gate_as(uint32_t g, uint32_t d_o, const float (&y)[8][4], int half, const tn_bwd_place &at,
                                        const float (&share)[2], float (&both)[2]) {
    uint32_t words[2][4], dwords[2][4];
    tn_bwd_read(words[0], g, at, 8 * half);
    tn_bwd_read(dwords[0], d_o, at, 8 * half);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int chunk = 8 * half + 2 * j, now = j & 1;
        float x[8], slope[8], d[8];
        if (j < 3) {
            tn_bwd_read(words[now ^ 1], g, at, chunk + 2);
            tn_bwd_read(dwords[now ^ 1], d_o, at, chunk + 2);
        }
        tn_bwd_unpack(x, words[now]);
        tn_bwd_unpack(d, dwords[now]);
        tn_bwd_activate(x, slope, Act);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (Softmax) d[i] *= share[i >> 1 & 1];
            const float dg = d[i] * TN_BWD_AT(y, j, i >> 1, i & 1);
            if (Softmax) both[i >> 1 & 1] = fmaf(dg, x[i], both[i >> 1 & 1]);
            d[i] *= x[i];
            slope[i] *= dg;
        }
        tn_bwd_pack(dwords[now], d);
        tn_bwd_pack(words[now], slope);
        tn_bwd_write(d_o, at, chunk, dwords[now]);
        tn_bwd_write(g, at, chunk, words[now]);
    }
}
/* With softmax it leaves this group's part of the rows' sums p dp. */
template <bool Softmax>
__device__ __forceinline__ void gate(char *shared, uint32_t g, uint32_t d_o, const float (&y)[8][4], const tn_bwd_place &at, int act) {
    float share[2] = { 1, 1 }, both[2] = { 0, 0 };
    if constexpr (Softmax) {
        const float *row_sums = reinterpret_cast<const float *>(shared + room::row_sums) + at.row;
#pragma unroll
        for (int row = 0; row < 2; row++) share[row] = __fdividef(1.0f, row_sums[8 * row] + row_sums[TN_BWD_TOKENS + 8 * row]);
    }
    if (act == TN_SILU) gate_as<TN_SILU, Softmax>(g, d_o, y, at.group, at, share, both);
    else gate_as<TN_NONE, Softmax>(g, d_o, y, at.group, at, share, both);
    if constexpr (Softmax) {
        float *rows_y = reinterpret_cast<float *>(shared + room::rows_y) + at.group * TN_BWD_TOKENS + at.row;
        tn_bwd_quad_sums(both);
        if ((at.lane & 3) == 0) rows_y[0] = share[0] * both[0], rows_y[8] = share[1] * both[1];
    }
}

/* What theta gets, in shared memory. */
struct reader_sums {
    float4 *room; /* [Z::G][READERS], from this thread's on */

    __device__ __forceinline__ void add(int j, const float (&part)[4]) {
        float4 sum = room[j * READERS];
        sum.x += part[0], sum.y += part[1], sum.z += part[2], sum.w += part[3];
        room[j * READERS] = sum;
    }
};

/* What the readers have summed up for theta, added in a fixed order, and cleared. */
__device__ __forceinline__ void add_up(char *shared, float *to) {
    float4 *sums = reinterpret_cast<float4 *>(shared + room::sums);
    const int thread = (int)threadIdx.x - ENCODERS;
    tn_bwd_meet<READERS>(READ);
    if (to && thread < Z::W) {
        const int slot = thread % Z::share, k = 2 * (slot >> 3 & 1) + (slot & 1);
        float sum = 0;
        for (int row = 0; row < 32; row++)
            sum += reinterpret_cast<const float *>(sums + slot / 16 * READERS + (thread / Z::share * 4 + row / 8) * 32 + row % 8 * 4 +
                                                   slot % 8 / 2)[k];
        to[thread] = sum;
    }
    tn_bwd_meet<READERS>(READ);
    for (int j = 0; j < Z::G; j++) sums[j * READERS + thread] = make_float4(0, 0, 0, 0);
}

template <bool Softmax> __device__ __forceinline__ void be_reader(const tn_bwd_pass &p, char *shared) {
    const uint32_t base = tn_tile_address(shared), qb = base + room::encoded, state = base + room::state;
    tn_bwd_place at;
    at.group = __shfl_sync(0xffffffffu, at.group, 0) - 2; /* the same for the warp: the compiler sees it */
    float a[8][4];
    tn_bwd_walk here(p.deal, blockIdx.x);
    const float *rows_y = reinterpret_cast<const float *>(shared + room::rows_y);
    reader_sums sums = { reinterpret_cast<float4 *>(shared + room::sums) + (threadIdx.x - ENCODERS) };
    int odd = 0;
    add_up(shared, NULL);
    while (here.left) {
        const uint32_t slice = here.slice;
        /* No reader needs the last slice's state any more, and only readers do. */
        tn_bwd_cosine_load_state<READERS, 4>(state, p.state + (int64_t)slice * Z::F * Z::W, p.scale, (int)threadIdx.x - ENCODERS);
        tn_wgmma_publish();
        do {
            const uint32_t q = base + room::raw + odd * room::stage, g = q + Z::raw_bytes, d_o = g + Z::raw_bytes;
            const int rows = tn_bwd_rows_left(p.x.tokens, here.token);
            const float coordinate = (float)(here.token + p.x.grid.offset);
            const float weight[2] = { at.row < rows ? coordinate + (float)at.row : 0.0f,
                                      at.row + 8 < rows ? coordinate + (float)(at.row + 8) : 0.0f };
            const tn_bwd_cosine_turn turn = { reinterpret_cast<const float2 *>(shared + room::first) + odd * 4 * 128,
                                              reinterpret_cast<const float2 *>(shared + room::steps) };
            float both[2] = { 0, 0 };
            tn_bwd_meet<THREADS>(ENCODED);
            begin_y(a, qb, state, at.group);
            tn_wgmma_await<0>();
            tn_wgmma_hold(a);
            gate<Softmax>(shared, g, d_o, a, at, p.z.act);
            tn_wgmma_publish();
            tn_bwd_tell<THREADS>(DY);
            tn_bwd_meet<READERS>(READ);
            tn_bwd_cosine_begin(a, d_o, state, 2 * at.group);
            if (Softmax) {
#pragma unroll
                for (int row = 0; row < 2; row++) both[row] = rows_y[at.row + 8 * row] + rows_y[TN_BWD_TOKENS + at.row + 8 * row];
            }
            if (p.dz) tn_bwd_store<Z>(g, at, tn_bwd_rows(p.dz, p.z.stride, p.deal, slice, here.token), p.z.stride.token, rows, Z::W, false);
            tn_wgmma_await<0>();
            tn_wgmma_hold(a);
            tn_bwd_cosine_decode(q, turn, a, 2 * at.group, at, Softmax ? TN_SOFTMAX : p.x.act, weight, both, sums);
            tn_bwd_cosine_begin(a, d_o, state, 2 * at.group + 1);
            tn_wgmma_await<0>();
            tn_wgmma_hold(a);
            tn_bwd_cosine_decode(q, turn, a, 2 * at.group + 1, at, Softmax ? TN_SOFTMAX : p.x.act, weight, both, sums);
            if (p.dx) tn_bwd_store<Z>(q, at, tn_bwd_rows(p.dx, p.x.stride, p.deal, slice, here.token), p.x.stride.token, rows, Z::W, false);
            tn_bwd_tell<THREADS>(OUT + odd);
            here.move(p.x.tokens);
            odd ^= 1;
        } while (here.left && here.slice == slice);
        add_up(shared, p.what == TN_BWD_SUMS_THETA ? p.sums + ((int64_t)blockIdx.x + slice) * Z::W : NULL);
    }
}

template <bool Softmax> __global__ void __launch_bounds__(THREADS, 1) pass_q_cosine(const __grid_constant__ tn_bwd_pass p) {
#if TN_TILE_WGMMA
    extern __shared__ __align__(1024) char shared[];
    tn_bwd_let_next_start();
    if (threadIdx.x < ENCODERS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 176;");
        be_encoder<Softmax>(p, shared);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 80;");
        be_reader<Softmax>(p, shared);
    }
#endif
}

} // namespace

int tn_bwd_run_q_cosine(const tn_bwd_pass *pass, void *stream) {
    const auto kernel = pass->x.act == TN_SOFTMAX ? pass_q_cosine<true> : pass_q_cosine<false>;
    kernel<<<pass->deal.blocks, THREADS, room::bytes, (cudaStream_t)stream>>>(*pass);
    return (int)cudaGetLastError();
}

int tn_bwd_shared_q_cosine(void) {
    static int known, of_softmax;
    const int any = tn_bwd_ready(pass_q_cosine<false>, room::bytes, true, &known);
    return any ? tn_bwd_ready(pass_q_cosine<true>, room::bytes, true, &of_softmax) : any;
}
