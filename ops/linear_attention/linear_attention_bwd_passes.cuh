/* What the two passes of the backward of non-causal linear attention do with a tile and with a slice (a head of a batch). */
#ifndef TENON_LINEAR_ATTENTION_BWD_PASSES_CUH
#define TENON_LINEAR_ATTENTION_BWD_PASSES_CUH

#include "linear_attention_bwd_tiles.cuh"

/* A block's shared memory. Stages hold the raw tiles of q, g and do, or of k and v. */
template <typename Z_, int Tiles, int Stages, bool Values, bool Sums> struct tn_bwd_layout {
    using Z = Z_;
    static constexpr int stages = Stages, stage_bytes = Tiles * Z::raw_bytes;
    static constexpr int state = 0, encoded = state + Z::state_bytes, values = encoded + Z::encoded_bytes;
    static constexpr int raw = values + (Values ? Z::raw_bytes : 0), sums = raw + stages * stage_bytes;
    static constexpr int angles = sums + (Sums ? Z::G * Z::threads * 16 : 0),
                         columns = angles + ((int)sizeof(tn_bwd_angles<Z>) + 15) / 16 * 16;
    static constexpr int rows = columns + Z::W * 16, bytes = rows + 2 * Z::groups * TN_BWD_TOKENS * 8;
};
template <typename Z> using tn_bwd_layout_q = tn_bwd_layout<Z, 3, (Z::cosine && Z::W > 64) ? 2 : 3, false, true>;
template <typename Z> using tn_bwd_layout_kv = tn_bwd_layout<Z, 2, 3, true, false>;

/* A thread's side of a pass. */
template <typename L> struct tn_bwd_worker {
    using Z = typename L::Z;
    char *shared;
    uint32_t base;
    tn_bwd_place at;
    tn_bwd_exchange<Z::groups> exchange;
    tn_bwd_turn<Z> turn;
    int stage;
    bool odd; /* of two places for coordinates, the one in use */

    __device__ __forceinline__ explicit tn_bwd_worker(char *room)
        : shared(room), base(tn_tile_address(room)), exchange{ reinterpret_cast<float2 *>(room + L::rows), 0 },
          turn{ reinterpret_cast<tn_bwd_angles<Z> *>(room + L::angles), NULL, TN_BWD_STILL, 0, 0 }, stage(0), odd(false) {}

    __device__ __forceinline__ float4 *columns() const { return reinterpret_cast<float4 *>(shared + L::columns); }
    __device__ __forceinline__ uint32_t state() const { return base + L::state; }
    __device__ __forceinline__ uint32_t encoded() const { return base + L::encoded; }
    __device__ __forceinline__ uint32_t raw(int of) const { return base + L::raw + of * L::stage_bytes; }
    /* The place of the tile that has been dealt with last. */
    __device__ __forceinline__ uint32_t freed() const { return raw(stage == 0 ? L::stages - 1 : stage - 1); }
    __device__ __forceinline__ void move() { stage = stage + 1 == L::stages ? 0 : stage + 1; }

    /* What the slice's tiles of q or k need of it beside the state. */
    __device__ __forceinline__ void load_tables(const tn_bwd_pass &p, uint32_t slice) const {
        if (p.how != TN_BWD_PLAIN) {
            tn_bwd_load_angles<Z>(turn.of, p.x.grid, p.theta, slice % p.deal.heads);
            __syncthreads();
        }
        if (!p.x.over_sequence) return;
        for (int slot = threadIdx.x; slot < Z::W; slot += Z::threads) {
            int64_t feature = slot < p.d ? (int64_t)slice * p.d + tn_slot_feature(p.how == TN_BWD_ROTATE, p.d, slot) : -1;
            columns()[slot] = feature < 0 ? make_float4(0, 0, 0, 0)
                                          : make_float4(((const float *)p.x.maximum)[feature], 1.0f / ((const float *)p.x.sum)[feature],
                                                        p.off ? p.off[(int64_t)slice * Z::W + slot] : 0.0f, 0);
        }
    }

    /* Before a tile: where its rows stand, and then it is there. */
    __device__ __forceinline__ void await_tile(const tn_bwd_pass &p, int64_t token, int rows) {
        const int before = turn.way;
        turn.way = p.how == TN_BWD_PLAIN ? TN_BWD_STILL : p.x.grid.axes == 1 && token >= p.x.grid.leading ? TN_BWD_STRAIGHT : TN_BWD_BENT;
        turn.rows = rows;
        turn.first = (float)(token - p.x.grid.leading + p.x.grid.offset);
        /* One place serves coordinates and first angles. */
        if (before != turn.way && before != TN_BWD_STILL) __syncthreads();
        if (turn.way == TN_BWD_STRAIGHT) tn_bwd_load_first<Z>(turn.of, at, turn.first + (float)(16 * at.warp));
        if (turn.way == TN_BWD_BENT) {
            turn.coordinates = turn.of->coordinates[odd];
            tn_bwd_load_coordinates<Z>(turn.of->coordinates[odd], p.x.grid, token);
            odd = !odd;
        }
        tn_tile_await<L::stages - 2>();
        tn_wgmma_publish();
        __syncthreads();
    }
};

/* The rows of a tile in memory. */
TN_TILE_DEVICE const tn_cuda_bf16 *tn_bwd_rows(const void *x, const tn_la_strides &stride, const tn_bwd_deal &deal, uint32_t slice,
                                               int64_t token) {
    return (const tn_cuda_bf16 *)x + (int64_t)(slice / deal.heads) * stride.batch + (int64_t)(slice % deal.heads) * stride.head +
           token * stride.token;
}
TN_TILE_DEVICE tn_cuda_bf16 *tn_bwd_rows(void *x, const tn_la_strides &stride, const tn_bwd_deal &deal, uint32_t slice, int64_t token) {
    return const_cast<tn_cuda_bf16 *>(tn_bwd_rows((const void *)x, stride, deal, slice, token));
}
TN_TILE_DEVICE int tn_bwd_rows_left(int64_t tokens, int64_t token) {
    return tokens - token < TN_BWD_TOKENS ? (int)(tokens - token) : TN_BWD_TOKENS;
}

template <typename Z> TN_TILE_DEVICE void tn_bwd_fetch_q(const tn_bwd_pass &p, uint32_t to, uint32_t slice, int64_t token) {
    const int rows = tn_bwd_rows_left(p.x.tokens, token);
    tn_bwd_fetch<Z>(to, tn_bwd_rows(p.x.x, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, p.how == TN_BWD_ROTATE);
    if (p.has_gate)
        tn_bwd_fetch<Z>(to + Z::raw_bytes, tn_bwd_rows(p.z.x, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
    tn_bwd_fetch<Z>(to + 2 * Z::raw_bytes, tn_bwd_rows(p.d_o, p.o_stride, p.deal, slice, token), p.o_stride.token, rows, p.e, false);
}
template <typename Z> TN_TILE_DEVICE void tn_bwd_fetch_kv(const tn_bwd_pass &p, uint32_t to, uint32_t slice, int64_t token) {
    const int rows = tn_bwd_rows_left(p.x.tokens, token);
    tn_bwd_fetch<Z>(to, tn_bwd_rows(p.x.x, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, p.how == TN_BWD_ROTATE);
    tn_bwd_fetch<Z>(to + Z::raw_bytes, tn_bwd_rows(p.z.x, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
}

/* ---- the first pass: q, g, do ---- */

/* From y in accumulators: g's tile becomes dg, do's becomes dy. */
template <typename Z, int Act>
TN_TILE_DEVICE void tn_bwd_gate_as(const tn_bwd_pass &p, uint32_t g, uint32_t d_o, float (&y)[Z::N][4], const tn_bwd_place &at,
                                   const tn_bwd_act &act, tn_bwd_exchange<Z::groups> &exchange) {
    uint32_t words[Z::G][4], dwords[Z::G][4];
    tn_bwd_read_all<Z>(words, g, at);
    tn_bwd_read_all<Z>(dwords, d_o, at);
    tn_wgmma_await<0>();
    tn_wgmma_hold(y);
    float kept[Act == TN_SOFTMAX ? Z::G : 1][8], both[2] = { 0, 0 };
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * Z::share + 16 * j;
        float x[8], slope[8], d[8];
        tn_bwd_unpack(d, dwords[j]);
        tn_bwd_unpack(x, words[j]);
        act.apply<Act>(x, slope, column + at.pair);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float dg = d[i] * TN_BWD_AT(y, j, i >> 1, i & 1);
            if constexpr (Act == TN_SOFTMAX) {
                both[i >> 1 & 1] += column < p.e ? x[i] * dg : 0.0f;
                TN_BWD_AT(y, j, i >> 1, i & 1) = dg;
                kept[j][i] = x[i];
            }
            d[i] = Act == TN_SOFTMAX && column >= p.e ? 0.0f : d[i] * x[i];
            slope[i] *= dg;
        }
        tn_bwd_pack(dwords[j], d);
        if constexpr (Act != TN_SOFTMAX) tn_bwd_pack(words[j], slope);
    }
    tn_bwd_write_all<Z>(d_o, at, dwords);
    if constexpr (Act == TN_SOFTMAX) {
        tn_bwd_row_sums(exchange, at, both);
#pragma unroll
        for (int j = 0; j < Z::G; j++) {
#pragma unroll
            for (int i = 0; i < 8; i++) kept[j][i] *= TN_BWD_AT(y, j, i >> 1, i & 1) - both[i >> 1 & 1];
            tn_bwd_pack(words[j], kept[j]);
        }
    }
    tn_bwd_write_all<Z>(g, at, words);
}

template <typename Z>
TN_TILE_DEVICE void tn_bwd_gate(const tn_bwd_pass &p, uint32_t g, uint32_t d_o, float (&y)[Z::N][4], const tn_bwd_place &at,
                                const tn_bwd_act &act, tn_bwd_exchange<Z::groups> &exchange) {
    if (act.act == TN_SILU) tn_bwd_gate_as<Z, TN_SILU>(p, g, d_o, y, at, act, exchange);
    else if (act.act == TN_NONE) tn_bwd_gate_as<Z, TN_NONE>(p, g, d_o, y, at, act, exchange);
    else if (act.act == TN_SOFTMAX) tn_bwd_gate_as<Z, TN_SOFTMAX>(p, g, d_o, y, at, act, exchange);
    else tn_bwd_gate_as<Z, TN_BWD_ANY_ACT>(p, g, d_o, y, at, act, exchange);
}

/* A warp's own 2 KiB of a raw tile's place, once it has nothing there any more. */
template <typename Z> TN_TILE_DEVICE uint32_t tn_bwd_own(uint32_t tile, const tn_bwd_place &at) {
    return tile + at.group * TN_BWD_PANEL + at.warp * 2048;
}

template <typename L, int Part, typename Sums>
TN_TILE_DEVICE void tn_bwd_part_q(const tn_bwd_pass &p, tn_bwd_worker<L> &w, uint32_t qb, uint32_t q, uint32_t g, uint32_t d_o, uint32_t dq,
                                  tn_bwd_act &act, Sums &sums, float (&ds)[L::Z::M][L::Z::C][4], uint32_t slice, int64_t token, int rows,
                                  float (&both)[2]) {
    using Z = typename L::Z;
    float dx[Z::P][4];
    tn_bwd_times_state_transposed<Z>(dx, d_o, w.state(), Part, w.at);
    tn_bwd_add_outer<Z>(ds, qb, d_o, Part, w.at);
    if (Part == 0 && p.has_gate && p.dz)
        tn_bwd_store<Z>(g, w.at, tn_bwd_rows(p.dz, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
    tn_wgmma_await<1>();
    tn_wgmma_hold(dx);
    if (p.dx || p.what != TN_BWD_NO_SUMS)
        tn_bwd_decode<Z, Part>(dq, q, tn_bwd_own<Z>(g, w.at), dx, w.at, act, w.turn, w.exchange, p.d, p.what, sums, both);
}

/* A tile that is there, at `q`, g and do behind it. */
template <typename L, typename Sums>
TN_TILE_DEVICE void tn_bwd_tile_q(const tn_bwd_pass &p, tn_bwd_worker<L> &w, uint32_t slice, int64_t token, int rows, Sums &sums,
                                  float (&ds)[L::Z::M][L::Z::C][4]) {
    using Z = typename L::Z;
    const bool encodes = p.how != TN_BWD_PLAIN || p.x.act != TN_NONE;
    const uint32_t q = w.raw(w.stage), g = q + Z::raw_bytes, d_o = g + Z::raw_bytes, qb = encodes ? w.encoded() : q,
                   dq = encodes ? q : w.encoded();
    if (encodes) {
        tn_bwd_act act(p.x.act, p.x.over_sequence, w.columns());
        if (act.over_features) {
            tn_bwd_row_softmax<Z>(act, w.exchange, w.at, q, p.d);
            act.put_aside(w.at);
        }
        tn_bwd_encode<Z>(qb, q, w.at, act, w.turn, p.d);
        tn_wgmma_publish();
        __syncthreads();
    }
    if (p.has_gate) {
        float y[Z::N][4];
        tn_bwd_times_state<Z>(y, qb, w.state(), w.at);
        tn_bwd_act act(p.z.act, false, NULL);
        if (act.over_features) tn_bwd_row_softmax<Z>(act, w.exchange, w.at, g, p.e);
        tn_bwd_gate<Z>(p, g, d_o, y, w.at, act, w.exchange);
        tn_wgmma_publish();
        __syncthreads();
    }
    tn_bwd_act act(p.x.act, p.x.over_sequence, w.columns());
    if (act.over_features) act.take_back(w.at);
    float both[2] = { 0, 0 };
    tn_bwd_part_q<L, 0>(p, w, qb, q, g, d_o, dq, act, sums, ds, slice, token, rows, both);
    if constexpr (Z::H > 1) tn_bwd_part_q<L, 1>(p, w, qb, q, g, d_o, dq, act, sums, ds, slice, token, rows, both);
    if (p.dx)
        tn_bwd_store<Z>(dq, w.at, tn_bwd_rows(p.dx, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, p.how == TN_BWD_ROTATE);
    tn_wgmma_await<0>();
#pragma unroll
    for (int i = 0; i < Z::M; i++) tn_wgmma_hold(ds[i]);
    w.move();
}

/* The row (a slot) and the column that c[i][j][0] of dS is at; c[i][j][2] is 8 rows below. */
template <typename Z> TN_TILE_DEVICE int tn_bwd_state_row(const tn_bwd_place &at, int i) {
    return (at.group / Z::parts * Z::M + i) * 64 + at.row;
}
template <typename Z> TN_TILE_DEVICE int tn_bwd_state_column(const tn_bwd_place &at, int j) {
    return at.group % Z::parts * Z::C * 8 + at.pair + 8 * j;
}

/* dS of a piece, left for others to add; then it begins anew. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_leave_state(float *part, float scale, float (&ds)[Z::M][Z::C][4], const tn_bwd_place &at) {
#pragma unroll
    for (int i = 0; i < Z::M; i++) {
#pragma unroll
        for (int j = 0; j < Z::C; j++) {
            float *to = part + tn_bwd_state_row<Z>(at, i) * Z::W + tn_bwd_state_column<Z>(at, j);
            *reinterpret_cast<float2 *>(to) = make_float2(scale * ds[i][j][0], scale * ds[i][j][1]);
            *reinterpret_cast<float2 *>(to + 8 * Z::W) = make_float2(scale * ds[i][j][2], scale * ds[i][j][3]);
        }
        tn_bwd_clear(ds[i]);
    }
}

/* ---- the second pass: k, v ---- */

/* vb = act(v). */
template <typename Z, int Act>
TN_TILE_DEVICE void tn_bwd_value_as(uint32_t to, uint32_t raw, const tn_bwd_place &at, const tn_bwd_act &act, int width) {
    uint32_t words[Z::G][4];
    tn_bwd_read_all<Z>(words, raw, at);
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * Z::share + 16 * j;
        float x[8], slope[8];
        tn_bwd_unpack(x, words[j]);
        act.apply<Act>(x, slope, column + at.pair);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = column < width ? x[i] : 0.0f;
        tn_bwd_pack(words[j], x);
    }
    tn_bwd_write_all<Z>(to, at, words);
}

/* dv, from dvb in accumulators. */
template <typename Z, int Act>
TN_TILE_DEVICE void tn_bwd_value_back_as(uint32_t to, uint32_t raw, const float (&d)[Z::N][4], const tn_bwd_place &at,
                                         const tn_bwd_act &act, tn_bwd_exchange<Z::groups> &exchange, int width) {
    uint32_t words[Z::G][4];
    float both[2] = { 0, 0 };
    tn_bwd_read_all<Z>(words, raw, at);
    if constexpr (Act == TN_SOFTMAX) {
#pragma unroll
        for (int j = 0; j < Z::G; j++) {
            const int column = at.group * Z::share + 16 * j;
            float x[8], slope[8];
            tn_bwd_unpack(x, words[j]);
            act.apply<Act>(x, slope, column + at.pair);
#pragma unroll
            for (int i = 0; i < 8; i++) both[i >> 1 & 1] += column < width ? x[i] * TN_BWD_AT(d, j, i >> 1, i & 1) : 0.0f;
        }
        tn_bwd_row_sums(exchange, at, both);
    }
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * Z::share + 16 * j;
        float x[8], slope[8];
        tn_bwd_unpack(x, words[j]);
        act.apply<Act>(x, slope, column + at.pair);
#pragma unroll
        for (int i = 0; i < 8; i++) slope[i] *= TN_BWD_AT(d, j, i >> 1, i & 1) - both[i >> 1 & 1];
        tn_bwd_pack(words[j], slope);
    }
    tn_bwd_write_all<Z>(to, at, words);
}

template <typename Z>
TN_TILE_DEVICE void tn_bwd_value_back(uint32_t to, uint32_t raw, const float (&d)[Z::N][4], const tn_bwd_place &at, const tn_bwd_act &act,
                                      tn_bwd_exchange<Z::groups> &exchange, int width) {
    if (act.act == TN_NONE) tn_bwd_value_back_as<Z, TN_NONE>(to, raw, d, at, act, exchange, width);
    else if (act.act == TN_SOFTMAX) tn_bwd_value_back_as<Z, TN_SOFTMAX>(to, raw, d, at, act, exchange, width);
    else tn_bwd_value_back_as<Z, TN_BWD_ANY_ACT>(to, raw, d, at, act, exchange, width);
}

/* A tile that is there, at `k`, v behind it; `values` is a place for vb, or dv. */
template <typename L, typename Sums>
TN_TILE_DEVICE void tn_bwd_tile_kv(const tn_bwd_pass &p, tn_bwd_worker<L> &w, uint32_t values, uint32_t slice, int64_t token, int rows,
                                   Sums &sums) {
    using Z = typename L::Z;
    const bool encodes = p.how != TN_BWD_PLAIN || p.x.act != TN_NONE, acts = p.z.act != TN_NONE;
    const uint32_t k = w.raw(w.stage), v = k + Z::raw_bytes, kb = encodes ? w.encoded() : k, dk = encodes ? k : w.encoded();
    const uint32_t vb = acts ? values : v, dv = acts ? v : values;
    tn_bwd_act value_act(p.z.act, false, NULL);
    if (encodes) {
        tn_bwd_act act(p.x.act, p.x.over_sequence, w.columns());
        if (act.over_features) {
            tn_bwd_row_softmax<Z>(act, w.exchange, w.at, k, p.d);
            act.put_aside(w.at);
        }
        tn_bwd_encode<Z>(kb, k, w.at, act, w.turn, p.d);
    }
    if (value_act.over_features) {
        tn_bwd_row_softmax<Z>(value_act, w.exchange, w.at, v, p.e);
        tn_bwd_value_as<Z, TN_SOFTMAX>(vb, v, w.at, value_act, p.e);
    } else if (acts) {
        tn_bwd_value_as<Z, TN_BWD_ANY_ACT>(vb, v, w.at, value_act, p.e);
    }
    if (encodes || acts) {
        tn_wgmma_publish();
        __syncthreads();
    }
    float dz[Z::N][4], dx[Z::H][Z::P][4], both[2] = { 0, 0 };
    tn_bwd_times_state<Z>(dz, kb, w.state(), w.at);
#pragma unroll
    for (int part = 0; part < Z::H; part++) tn_bwd_times_state_transposed<Z>(dx[part], vb, w.state(), part, w.at);
    tn_wgmma_await<Z::H>();
    tn_wgmma_hold(dz);
    if (p.dz) {
        tn_bwd_value_back<Z>(dv, v, dz, w.at, value_act, w.exchange, p.e);
        tn_bwd_store<Z>(dv, w.at, tn_bwd_rows(p.dz, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
    }
    tn_bwd_act act(p.x.act, p.x.over_sequence, w.columns());
    if (act.over_features) act.take_back(w.at);
    const bool back = p.dx || p.what != TN_BWD_NO_SUMS;
    tn_wgmma_await<Z::H - 1>();
    tn_wgmma_hold(dx[0]);
    if (back) tn_bwd_decode<Z, 0>(dk, k, tn_bwd_own<Z>(dv, w.at), dx[0], w.at, act, w.turn, w.exchange, p.d, p.what, sums, both);
    if constexpr (Z::H > 1) {
        tn_wgmma_await<0>();
        tn_wgmma_hold(dx[1]);
        if (back) tn_bwd_decode<Z, 1>(dk, k, tn_bwd_own<Z>(dv, w.at), dx[1], w.at, act, w.turn, w.exchange, p.d, p.what, sums, both);
    }
    if (p.dx)
        tn_bwd_store<Z>(dk, w.at, tn_bwd_rows(p.dx, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, p.how == TN_BWD_ROTATE);
    w.move();
}

/* ---- a block's range of tiles ---- */

/* A walk over tiles, slice by slice. */
struct tn_bwd_walk {
    uint32_t left, slice; /* tiles to come, this one included */
    int64_t token;

    __device__ __forceinline__ tn_bwd_walk(const tn_bwd_deal &deal, uint32_t block) {
        const uint32_t first = block < deal.blocks ? tn_bwd_first(deal, block) : 0, at = deal.blocks ? first / deal.tiles : 0;
        left = block < deal.blocks ? tn_bwd_first(deal, block + 1) - first : 0;
        slice = at;
        token = (int64_t)(first - at * deal.tiles) * TN_BWD_TOKENS;
    }
    __device__ __forceinline__ void move(int64_t tokens) {
        left--;
        token += TN_BWD_TOKENS;
        if (token >= tokens) token = 0, slice++;
    }
};

#endif
