/* First pass of the backward of non-causal linear attention: reads q, g and do, writes dq and dg, sums up dS.
 *
 * A block keeps S (bf16) in shared memory and dS (f32) in registers. Per tile of 64 tokens:
 *
 *     qb = lrpe(act(q))            raw tile -> encoded tile, not where it is q itself
 *     y = qb S                     products 1;   dg = do y act'(g), dy = do act(g), in place of g and do
 *     dqb = dy S', dS += qb' dy    products 2 and 3, together
 *     dq = act'(lrpe'(dqb))        in place of q
 *
 *     barriers:   tile is there | qb is there | dy is there | (all done with the tile)
 *
 * The tiles to come are fetched by cp.async into `stages` places meanwhile. */
#include "linear_attention_bwd_tiles.cuh"

namespace {

template <typename Z> struct layout {
    static constexpr int stages = Z::F > 128 ? 2 : 3;
    static constexpr int state = 0, encoded = state + Z::state_bytes, raw = encoded + Z::encoded_bytes, stage_bytes = 3 * Z::raw_bytes;
    static constexpr int sums = raw + stages * stage_bytes, speeds = sums + Z::G * TN_BWD_THREADS * 16;
    static constexpr int columns = speeds + Z::W * (int)sizeof(tn_bwd_speed), rows = columns + Z::W * 16, coordinates = rows + 4 * TN_BWD_TOKENS * 8;
    static constexpr int axes = coordinates + 2 * TN_LRPE_MAX_AXES * TN_BWD_TOKENS * 4, bytes = axes + Z::W;
};

template <typename Z> __device__ __forceinline__ void fetch(const tn_bwd_pass &p, uint32_t to, uint32_t tile) {
    const uint32_t slice = tile / p.deal.tiles, token = (tile - slice * p.deal.tiles) * TN_BWD_TOKENS;
    const int64_t left = p.x.tokens - token;
    const int rows = left < TN_BWD_TOKENS ? (int)left : TN_BWD_TOKENS;
    tn_bwd_fetch<Z::W>(to, tn_bwd_slice(p.x.x, p.x.stride, p.deal.heads, slice) + token * p.x.stride.token, p.x.stride.token, rows, p.d,
                       p.how == TN_BWD_ROTATE);
    if (p.has_gate)
        tn_bwd_fetch<Z::W>(to + Z::raw_bytes, tn_bwd_slice(p.z.x, p.z.stride, p.deal.heads, slice) + token * p.z.stride.token, p.z.stride.token,
                           rows, p.e, false);
    tn_bwd_fetch<Z::W>(to + 2 * Z::raw_bytes, tn_bwd_slice(p.d_o, p.o_stride, p.deal.heads, slice) + token * p.o_stride.token, p.o_stride.token,
                       rows, p.e, false);
}

/* From y in accumulators: g's tile becomes dg, do's becomes dy. */
template <typename Z, int Act>
__device__ __forceinline__ void gate_as(const tn_bwd_pass &p, uint32_t g, uint32_t d_o, float (&y)[Z::N][4], const tn_bwd_place &at,
                                     const tn_bwd_act &act, tn_bwd_exchange &exchange) {
    float both[2] = { 0, 0 };
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * (Z::W / 2) + 16 * j, chunk = column / 8;
        uint32_t words[4];
        float x[8], slope[8], d[8];
        tn_bwd_read(words, d_o, at, chunk);
        tn_bwd_unpack(d, words);
        tn_bwd_read(words, g, at, chunk);
        tn_bwd_unpack(x, words);
        act.apply<Act>(x, slope, column + at.pair);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float dg = d[i] * TN_BWD_AT(y, j, i >> 1, i & 1);
            if (Act == TN_BWD_ANY_ACT && act.over_features) {
                if (column < p.e) both[i >> 1 & 1] += x[i] * dg;
                TN_BWD_AT(y, j, i >> 1, i & 1) = dg;
            }
            d[i] = Act == TN_BWD_ANY_ACT && column >= p.e ? 0.0f : d[i] * x[i];
            slope[i] *= dg;
        }
        tn_bwd_pack(words, d);
        tn_bwd_write(d_o, at, chunk, words);
        if (Act != TN_BWD_ANY_ACT || !act.over_features) {
            tn_bwd_pack(words, slope);
            tn_bwd_write(g, at, chunk, words);
        }
    }
    if (Act != TN_BWD_ANY_ACT || !act.over_features) return;
    tn_bwd_row_sums(exchange, at, both);
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * (Z::W / 2) + 16 * j, chunk = column / 8;
        uint32_t words[4];
        float x[8], slope[8];
        tn_bwd_read(words, g, at, chunk);
        tn_bwd_unpack(x, words);
        act.apply<Act>(x, slope, column + at.pair);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] *= TN_BWD_AT(y, j, i >> 1, i & 1) - both[i >> 1 & 1];
        tn_bwd_pack(words, x);
        tn_bwd_write(g, at, chunk, words);
    }
}

template <typename Z>
__device__ __forceinline__ void gate(const tn_bwd_pass &p, uint32_t g, uint32_t d_o, float (&y)[Z::N][4], const tn_bwd_place &at,
                                     const tn_bwd_act &act, tn_bwd_exchange &exchange) {
    if (act.act == TN_SILU) gate_as<Z, TN_SILU>(p, g, d_o, y, at, act, exchange);
    else if (act.act == TN_NONE) gate_as<Z, TN_NONE>(p, g, d_o, y, at, act, exchange);
    else gate_as<Z, TN_BWD_ANY_ACT>(p, g, d_o, y, at, act, exchange);
}

template <typename Z> __global__ void __launch_bounds__(TN_BWD_THREADS, 1) pass_q(const __grid_constant__ tn_bwd_pass p) {
    if constexpr (!tn_bwd_has_code<Z>) return;
    using L = layout<Z>;
    extern __shared__ __align__(1024) char shared[];
    const uint32_t base = tn_tile_address(shared), state = base + L::state;
    const tn_bwd_place at;
    const bool encodes = p.how != TN_BWD_PLAIN || p.x.act != TN_NONE, rotate = p.how == TN_BWD_ROTATE;
    const bool back = p.dx || p.what != TN_BWD_NO_SUMS;
    float4 *columns = reinterpret_cast<float4 *>(shared + L::columns);
    tn_bwd_speed *speeds = reinterpret_cast<tn_bwd_speed *>(shared + L::speeds);
    unsigned char *axes = reinterpret_cast<unsigned char *>(shared + L::axes);
    float *coordinates = reinterpret_cast<float *>(shared + L::coordinates);
    tn_bwd_act act(p.x.act, p.x.over_sequence, columns), gate_act(p.z.act, false, columns);
    tn_bwd_exchange exchange = { reinterpret_cast<float2 *>(shared + L::rows), 0 };
    tn_bwd_turn turn = { speeds, axes, coordinates, true, 0, { 0, 0 } };
    tn_bwd_sums_shared<Z> sums = { reinterpret_cast<float4 *>(shared + L::sums) };
    float ds[Z::M][Z::C][4];
#pragma unroll
    for (int i = 0; i < Z::M; i++) tn_bwd_clear(ds[i]);

    const uint32_t begin = tn_bwd_first(p.deal, blockIdx.x), end = tn_bwd_first(p.deal, blockIdx.x + 1);
#pragma unroll
    for (int ahead = 0; ahead < L::stages - 1; ahead++) {
        if (begin + ahead < end) fetch<Z>(p, base + L::raw + ahead * L::stage_bytes, begin + ahead);
        tn_tile_fetched();
    }
    int stage = 0;
    for (uint32_t first = begin; first < end;) {
        const uint32_t slice = first / p.deal.tiles, after = (slice + 1) * p.deal.tiles, last = after < end ? after : end;
        /* The block is done with the last slice's state. */
        __syncthreads();
        tn_bwd_load_state<Z>(state, p.state + (int64_t)slice * (Z::cosine ? 2 * p.d : p.d) * p.e, p.scale, p.d, p.e, rotate);
        if (p.how != TN_BWD_PLAIN) tn_bwd_load_speeds<Z::W>(speeds, axes, p.x.grid, p.theta, slice % p.deal.heads);
        if (act.over_sequence)
            for (int slot = threadIdx.x; slot < Z::W; slot += TN_BWD_THREADS) {
                int64_t feature = slot < p.d ? (int64_t)slice * p.d + tn_slot_feature(rotate, p.d, slot) : -1;
                columns[slot] = feature < 0 ? make_float4(0, 0, 0, 0)
                                            : make_float4(((const float *)p.x.maximum)[feature], 1.0f / ((const float *)p.x.sum)[feature],
                                                          p.off ? p.off[(int64_t)slice * Z::W + slot] : 0.0f, 0);
            }
        if (p.what != TN_BWD_NO_SUMS) sums.clear();
        for (uint32_t tile = first; tile < last; tile++) {
            const int64_t token = (int64_t)(tile - slice * p.deal.tiles) * TN_BWD_TOKENS;
            const int rows = p.x.tokens - token < TN_BWD_TOKENS ? (int)(p.x.tokens - token) : TN_BWD_TOKENS;
            const uint32_t q = base + L::raw + stage * L::stage_bytes, g = q + Z::raw_bytes, d_o = g + Z::raw_bytes;
            const uint32_t qb = encodes ? base + L::encoded : q, dq = encodes ? q : base + L::encoded;
            turn.straight = p.how == TN_BWD_PLAIN || (p.x.grid.axes == 1 && token >= p.x.grid.leading);
            turn.coordinates = coordinates + (tile & 1) * TN_LRPE_MAX_AXES * TN_BWD_TOKENS;
            turn.at = (float)(token + at.row - p.x.grid.leading + p.x.grid.offset);
            turn.there[0] = at.row < rows ? 1.0f : 0.0f, turn.there[1] = at.row + 8 < rows ? 1.0f : 0.0f;
            if (!turn.straight)
                tn_bwd_load_coordinates(coordinates + (tile & 1) * TN_LRPE_MAX_AXES * TN_BWD_TOKENS, p.x.grid, token);
            tn_tile_await<L::stages - 2>();
            tn_wgmma_publish();
            __syncthreads();
            {
                const int next = stage == 0 ? L::stages - 1 : stage - 1;
                if (tile + L::stages - 1 < end) fetch<Z>(p, base + L::raw + next * L::stage_bytes, tile + L::stages - 1);
                tn_tile_fetched();
            }
            if (encodes) {
                if (act.over_features) tn_bwd_row_softmax<Z>(act, exchange, at, q, p.d);
                tn_bwd_encode<Z>(qb, q, at, act, turn, p.d, p.how);
                tn_wgmma_publish();
                __syncthreads();
            }
            if (p.has_gate) {
                float y[Z::N][4];
                tn_bwd_times_state<Z>(y, qb, state, at);
                if (gate_act.over_features) tn_bwd_row_softmax<Z>(gate_act, exchange, at, g, p.e);
                tn_wgmma_await<0>();
                tn_wgmma_hold(y);
                gate<Z>(p, g, d_o, y, at, gate_act, exchange);
                tn_wgmma_publish();
                __syncthreads();
            }
            float dx[Z::X][4];
            tn_bwd_times_state_transposed<Z>(dx, d_o, state, at);
            tn_bwd_add_outer<Z>(ds, qb, d_o, at);
            if (p.has_gate && p.dz)
                tn_bwd_store<Z::W>(g, at, tn_bwd_slice(p.dz, p.z.stride, p.deal.heads, slice) + token * p.z.stride.token, p.z.stride.token, rows,
                                   p.e, false);
            tn_wgmma_await<1>();
            tn_wgmma_hold(dx);
            if (back) {
                tn_bwd_decode<Z>(dq, q, dx, at, act, turn, exchange, p.d, p.how, p.what, sums);
                if (p.dx)
                    tn_bwd_store<Z::W>(dq, at, tn_bwd_slice(p.dx, p.x.stride, p.deal.heads, slice) + token * p.x.stride.token, p.x.stride.token,
                                       rows, p.d, rotate);
            }
            tn_wgmma_await<0>();
#pragma unroll
            for (int i = 0; i < Z::M; i++) tn_wgmma_hold(ds[i]);
            stage = stage + 1 == L::stages ? 0 : stage + 1;
        }
        const int64_t piece = (int64_t)blockIdx.x + slice;
        if (p.state_parts) {
            float *part = p.state_parts + piece * (Z::F * Z::W);
#pragma unroll
            for (int i = 0; i < Z::M; i++) {
                const int row = (Z::by_rows ? (at.group * Z::M + i) * 64 : 0) + at.row, column = (Z::by_rows ? 0 : at.group * Z::C * 8) + at.pair;
#pragma unroll
                for (int j = 0; j < Z::C; j++) {
                    float *to = part + row * Z::W + column + 8 * j;
                    *reinterpret_cast<float2 *>(to) = make_float2(p.scale * ds[i][j][0], p.scale * ds[i][j][1]);
                    *reinterpret_cast<float2 *>(to + 8 * Z::W) = make_float2(p.scale * ds[i][j][2], p.scale * ds[i][j][3]);
                }
                tn_bwd_clear(ds[i]);
            }
        }
        if (p.what != TN_BWD_NO_SUMS) {
            __syncthreads();
            tn_bwd_add_up<Z>(p.sums + piece * Z::W, sums.room);
            __syncthreads();
        }
        first = last;
    }
    tn_tile_await<0>();
}

template <typename Z> int launch(const tn_bwd_pass *pass, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(pass_q<Z>, cudaFuncAttributeMaxDynamicSharedMemorySize, layout<Z>::bytes);
    if (error != cudaSuccess) return (int)error;
    pass_q<Z><<<pass->deal.blocks, TN_BWD_THREADS, layout<Z>::bytes, stream>>>(*pass);
    return (int)cudaGetLastError();
}

template <typename Z> int shared_bytes() {
    if (!Z::wgmma) return layout<Z>::bytes;
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, pass_q<Z>) == cudaSuccess && attributes.binaryVersion == 90 ? layout<Z>::bytes : -1;
}

} // namespace

int tn_bwd_run_q(const tn_bwd_pass *pass, int width, bool wgmma, void *stream) {
    const bool cosine = pass->how == TN_BWD_COSINE;
#define LAUNCH(...) launch<__VA_ARGS__>(pass, (cudaStream_t)stream)
    if (wgmma) return cosine ? LAUNCH(tn_bwd_shape<128, true, true>) : LAUNCH(tn_bwd_shape<128, false, true>);
    if (width == 128) return cosine ? LAUNCH(tn_bwd_shape<128, true, false>) : LAUNCH(tn_bwd_shape<128, false, false>);
    return cosine ? LAUNCH(tn_bwd_shape<64, true, false>) : LAUNCH(tn_bwd_shape<64, false, false>);
}

int tn_bwd_shared_q(int width, bool cosine, bool wgmma) {
    if (wgmma) return cosine ? shared_bytes<tn_bwd_shape<128, true, true>>() : shared_bytes<tn_bwd_shape<128, false, true>>();
    if (width == 128) return cosine ? shared_bytes<tn_bwd_shape<128, true, false>>() : shared_bytes<tn_bwd_shape<128, false, false>>();
    return cosine ? shared_bytes<tn_bwd_shape<64, true, false>>() : shared_bytes<tn_bwd_shape<64, false, false>>();
}
