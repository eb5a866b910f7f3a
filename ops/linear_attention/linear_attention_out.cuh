/* One block's way through q and g: what the kernels that make o share. */
#ifndef TENON_LINEAR_ATTENTION_OUT_CUH
#define TENON_LINEAR_ATTENTION_OUT_CUH

#include "linear_attention_fwd.cuh"

#define TN_LA_WARP_TOKENS 16

namespace {

/* What turns a slot: its rate, and the cosine and sine of eight tokens' turn. */
struct slot_turn {
    tn_tile_rate rate;
    float step_c, step_s;
};

/* Shared memory of one block: S | turns of the slots | their axes | the warps' coordinates | the warps' rings. */
template <typename T, int W, int E, int Kind, bool Wgmma> struct out_layout {
    typedef tn_tile_share<T, TN_LA_WARP_TOKENS, Kind == TN_LA_BROAD ? 2 * W : W, 32> share_q;
    typedef tn_tile_share<T, TN_LA_WARP_TOKENS, E, 32> share_g;
    static constexpr bool wide = share_q::wide;
    static constexpr int warps = wide && !Wgmma ? 4 : 8; /* as many as an A100 has room for */
    static constexpr int state_rows = tn_la_has_halves(Kind) ? 2 * W : W, planes = wide ? 3 : 1;
    static constexpr int s_plane = state_rows * E * 2, s = s_plane * planes;
    static constexpr int stage = wide ? share_q::bytes : share_q::bytes + share_g::bytes;
    static constexpr bool off_axis = tn_la_turns(Kind) && !Wgmma;
    static constexpr int turns = !tn_la_turns(Kind) ? 0 : W * (int)sizeof(slot_turn), axes = off_axis ? W * 4 : 0;
    static constexpr int coordinates = off_axis ? TN_LRPE_MAX_AXES * TN_LA_WARP_TOKENS * 4 : 0;
    static constexpr int tables = turns + axes + warps * coordinates;
    static constexpr __host__ __device__ int ring(int stages) { return stages * stage; }
    static constexpr __host__ __device__ int bytes(int stages) { return s + warps * ring(stages) + tables + 1024; }
};

template <typename T, int W, int E, int Kind, int Act, bool Wgmma> struct out_block {
    typedef out_layout<T, W, E, Kind, Wgmma> shared;
    static constexpr bool wide = shared::wide;
    static constexpr int planes = shared::planes, fragments = tn_la_has_halves(Kind) ? 2 : 1, N = E / 8,
                         tokens = TN_LA_WARP_TOKENS * shared::warps;

    const tn_la_forward &f;
    const int warp, lane, column;
    const uint32_t s, ring, step; /* addresses; step: from a stage of the ring to the next */
    slot_turn *turns;
    int *axes;
    float *coordinates; /* [axis][TN_LA_WARP_TOKENS] of this warp */
    const T *next_q, *next_g, *g;
    T *o;
    float c[N][4];
    float small[wide ? N : 1][4]; /* f32: the five smaller products, apart, since tensor cores cut off what they add to a large sum */
    float row_scale[2];           /* of c's rows g and g + 8 */

    /* s_tile: where S lies; rings: those of all warps, `stages` of each; tables: where turns and coordinates go. */
    __device__ __forceinline__ out_block(const tn_la_forward &f, uint32_t s_tile, uint32_t rings, int stages, char *tables, int column,
                                         uint32_t step = shared::stage)
        : f(f), warp(threadIdx.x >> 5), lane(threadIdx.x & 31), column(column), s(s_tile), ring(rings + warp * shared::ring(stages)),
          step(step) {
        turns = reinterpret_cast<slot_turn *>(tables);
        axes = reinterpret_cast<int *>(tables + shared::turns);
        coordinates = reinterpret_cast<float *>(tables + shared::turns + shared::axes + warp * shared::coordinates);
    }

    __device__ __forceinline__ int64_t first_token(const tn_la_place &at) const {
        return (int64_t)at.piece * tokens + warp * TN_LA_WARP_TOKENS;
    }
    __device__ __forceinline__ int rows_at(const tn_la_place &at) const {
        int64_t left = f.q.tokens - first_token(at);
        return left < 0 ? 0 : left < TN_LA_WARP_TOKENS ? (int)left : TN_LA_WARP_TOKENS;
    }
    __device__ __forceinline__ uint32_t stage_at(int stage) const { return ring + stage * step; }

    /* This lane's first chunks of q and g of a unit (divisions are slow: only when the head changes). */
    __device__ __forceinline__ void find_next(const tn_la_place &at) {
        const int64_t b = at.head / f.h, h = at.head % f.h, first = first_token(at);
        next_q = (const T *)f.q.x + b * f.q.batch + h * f.q.head + first * f.q.token + shared::share_q::offset(f.q.token, lane);
        next_g = (const T *)f.g.x + b * f.g.batch + h * f.g.head + first * f.g.token + shared::share_g::offset(f.g.token, lane) + column;
    }
    /* Where g and o of a head begin. */
    __device__ __forceinline__ void find(int head) {
        const int64_t b = head / f.h, h = head % f.h;
        o = (T *)f.o + b * f.o_batch + h * f.o_head + column;
        g = (const T *)f.g.x + b * f.g.batch + h * f.g.head + column;
    }

    __device__ __forceinline__ void fetch_q(int stage, const tn_la_place &at) {
        shared::share_q::fetch(stage_at(stage), next_q, f.q.token, rows_at(at), f.d, lane);
        next_q += tokens * f.q.token;
    }
    __device__ __forceinline__ void fetch_g(int stage, const tn_la_place &at) {
        if (!wide && f.g.x)
            shared::share_g::fetch(stage_at(stage) + shared::share_q::bytes, next_g, f.g.token, rows_at(at), f.e - column, lane);
        next_g += tokens * f.g.token;
    }
    __device__ __forceinline__ void fetch(int stage, const tn_la_place &at) {
        fetch_q(stage, at);
        fetch_g(stage, at);
    }

    /* S of a head, by the whole block. */
    __device__ __forceinline__ void take_state(int head) {
        const float *from = f.s + (int64_t)head * f.state_rows * f.e + column;
#pragma unroll 8
        for (int i = threadIdx.x; i < shared::state_rows * (E / 8); i += shared::warps * 32) {
            int row = i / (E / 8), chunk = i % (E / 8), slot = Kind == TN_LA_COSINE && row >= W ? row - W : row;
            float4 low = make_float4(0, 0, 0, 0), high = low;
            if (slot < f.d && column + chunk * 8 < f.e) {
                int feature = tn_slot_feature(Kind == TN_LA_ROTATED, f.d, slot) + (row == slot ? 0 : f.d);
                const float4 *at = reinterpret_cast<const float4 *>(from + (int64_t)feature * f.e + chunk * 8);
                low = at[0], high = at[1];
            }
            const uint32_t to = s + tn_tile_chunk(shared::state_rows, row, chunk);
            if constexpr (wide) {
                uint32_t pairs[4][3];
                tn_pairs_of(pairs[0], low.x, low.y), tn_pairs_of(pairs[1], low.z, low.w);
                tn_pairs_of(pairs[2], high.x, high.y), tn_pairs_of(pairs[3], high.z, high.w);
#pragma unroll
                for (int p = 0; p < 3; p++)
                    tn_tile_write(to + p * shared::s_plane, make_uint4(pairs[0][p], pairs[1][p], pairs[2][p], pairs[3][p]));
            } else {
                tn_tile_write(to, make_uint4(tn_pair_of(low.x, low.y), tn_pair_of(low.z, low.w), tn_pair_of(high.x, high.y),
                                             tn_pair_of(high.z, high.w)));
            }
        }
    }
    /* The turns of a head's slots, by the whole block: a thread looks up one of them. */
    __device__ __forceinline__ tn_la_slot look_up(int head) const {
        if (tn_la_turns(Kind) && threadIdx.x < W) return tn_la_slot_of(f, f.q_grid, head % f.h, threadIdx.x);
        return tn_la_slot{ 0, 0 };
    }
    __device__ __forceinline__ void take_turns(const tn_la_slot &slot) {
        if (tn_la_turns(Kind) && threadIdx.x < W) {
            slot_turn turn;
            turn.rate = tn_tile_rate_of(slot.theta);
            tn_turn_of<wide>(8.0f, turn.rate, turn.step_c, turn.step_s);
            turns[threadIdx.x] = turn;
            if (shared::off_axis) axes[threadIdx.x] = slot.axis;
        }
    }

    /* Softmax over the features takes the maximum before, and the sum of what it gives afterwards: o is linear in qb. */
    float most[2], sum[2];
    __device__ __forceinline__ void find_most(uint32_t (&raw)[W / 16][4]) {
        __nv_bfloat162 of_row[2];
#pragma unroll
        for (int step = 0; step < W / 16; step++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                if (step * 16 + (r >> 1) * 8 >= f.d) raw[step][r] = 0xff80ff80u; /* slots beyond d: minus infinity */
                __nv_bfloat162 pair = *reinterpret_cast<const __nv_bfloat162 *>(&raw[step][r]);
                of_row[r & 1] = step == 0 && r < 2 ? pair : __hmax2(of_row[r & 1], pair);
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            most[i] = fmaxf(__low2float(of_row[i]), __high2float(of_row[i]));
            most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 1));
            most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 2));
            sum[i] = 0;
        }
    }
    __device__ __forceinline__ void find_scale() {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if constexpr (Act == TN_SOFTMAX) {
                sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
                sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
                row_scale[i] = f.scale / sum[i];
            } else {
                row_scale[i] = f.scale;
            }
        }
    }

    __device__ __forceinline__ void activate(float (&x)[4][2]) {
        if constexpr (Act == TN_SILU || Act == TN_SOFTMAX) {
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    if (Act == TN_SILU) {
                        x[r][p] = tn_silu_quick(x[r][p]);
                    } else {
                        x[r][p] = tn_exp_quick(x[r][p] - most[r & 1]);
                    }
                }
            if (Act == TN_SOFTMAX) {
                sum[0] += (x[0][0] + x[0][1]) + (x[2][0] + x[2][1]);
                sum[1] += (x[1][0] + x[1][1]) + (x[3][0] + x[3][1]);
            }
        }
    }

    /* The numbers of a fragment of 16 slots, as they are. */
    __device__ __forceinline__ void read(float (&x)[4][2], uint32_t q_tile, int step) {
        const int chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, step * 2),
                  other_chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, step * 2 + 1);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const uint32_t at =
                shared::share_q::wide_chunk(q_tile, (lane >> 2) + (r & 1) * 8, r >> 1 ? other_chunk : chunk) + (lane & 3) * 8;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x[r][0]), "=f"(x[r][1]) : "r"(at) : "memory");
        }
    }
    __device__ __forceinline__ void read(uint32_t (&a)[4], uint32_t q_tile, int step) {
        tn_fragment_a(a, q_tile, TN_LA_WARP_TOKENS, 0, tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, step * 2),
                      tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, step * 2 + 1));
    }
    static __device__ __forceinline__ void widen(float (&x)[4][2], const uint32_t (&a)[4]) {
#pragma unroll
        for (int r = 0; r < 4; r++) x[r][0] = tn_pair_low(a[r]), x[r][1] = tn_pair_high(a[r]);
    }
    static __device__ __forceinline__ void fill(uint32_t (&a)[planes][fragments][4], int i, const float (&x)[4][2]) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            if constexpr (wide) {
                uint32_t pairs[3];
                tn_pairs_of(pairs, x[r][0], x[r][1]);
                a[0][i][r] = pairs[0], a[planes / 2][i][r] = pairs[1], a[planes - 1][i][r] = pairs[2];
            } else {
                a[0][i][r] = tn_pair_of(x[r][0], x[r][1]);
            }
        }
    }

    /* The A's of 16 slots from their numbers. coordinate: of token g of the warp, on one axis. */
    __device__ __forceinline__ void encode(uint32_t (&a)[planes][fragments][4], float (&x)[4][2], int step, float coordinate,
                                           bool off_axis) {
        float second[4][2];
        activate(x);
#pragma unroll
        for (int part = 0; part < (tn_la_turns(Kind) ? fragments : 0); part++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                int slot = step * 16 + part * 8 + (lane & 3) * 2 + p;
                slot_turn turn = turns[slot];
                float c0, s0, c1, s1;
                if (!Wgmma && off_axis) {
                    const float *of_axis = coordinates + axes[slot] * TN_LA_WARP_TOKENS + (lane >> 2);
                    tn_turn_of<wide>(of_axis[0], turn.rate, c0, s0);
                    tn_turn_of<wide>(of_axis[8], turn.rate, c1, s1);
                } else {
                    tn_turn_of<wide>(coordinate, turn.rate, c0, s0);
                    c1 = c0, s1 = s0;
                    tn_turn_on(c1, s1, turn.step_c, turn.step_s);
                }
                if (Kind == TN_LA_COSINE) {
                    float x0 = x[part * 2][p], x1 = x[part * 2 + 1][p];
                    x[part * 2][p] = x0 * c0, second[part * 2][p] = x0 * s0;
                    x[part * 2 + 1][p] = x1 * c1, second[part * 2 + 1][p] = x1 * s1;
                } else {
                    float x0 = x[0][p], y0 = x[2][p], x1 = x[1][p], y1 = x[3][p];
                    x[0][p] = fmaf(x0, c0, -y0 * s0), x[2][p] = fmaf(x0, s0, y0 * c0);
                    x[1][p] = fmaf(x1, c1, -y1 * s1), x[3][p] = fmaf(x1, s1, y1 * c1);
                }
            }
        fill(a, 0, x);
        if constexpr (Kind == TN_LA_COSINE) fill(a, fragments - 1, second);
    }

    __device__ __forceinline__ void multiply(const uint32_t (&a)[planes][fragments][4], int step) {
        constexpr int products = wide ? 6 : 1;
#pragma unroll
        for (int i = 0; i < fragments; i++) {
            const int row = i * W + step * 16;
            if constexpr (Wgmma) {
#pragma unroll
                for (int p = 0; p < products; p++) {
                    const uint64_t b =
                        tn_wgmma_rows(s + (wide ? tn_plane_of_b(p) : 0) * shared::s_plane + row * 128, shared::state_rows * 128);
                    if constexpr (wide) {
                        if (p < products - 1) tn_wgmma<true>(small, a[tn_plane_of_a(p)][i], b);
                        else tn_wgmma<true>(c, a[tn_plane_of_a(p)][i], b);
                    } else {
                        tn_wgmma<true>(c, a[0][i], b);
                    }
                }
            } else {
#pragma unroll
                for (int j = 0; j < N; j += 2) {
                    uint32_t b[planes][4];
#pragma unroll
                    for (int p = 0; p < planes; p++) tn_fragment_b(b[p], s + p * shared::s_plane, shared::state_rows, row, j);
#pragma unroll
                    for (int p = 0; p < products; p++)
#pragma unroll
                        for (int other = 0; other < 2; other++) {
                            const uint32_t(&of_b)[4] = b[wide ? tn_plane_of_b(p) : 0];
                            tn_mma(wide && p < products - 1 ? small[(j + other) % (wide ? N : 1)] : c[j + other],
                                   a[wide ? tn_plane_of_a(p) : 0][i], of_b[2 * other], of_b[2 * other + 1]);
                        }
                }
            }
        }
    }

    /* c = qb S of the warp's tokens, from q settled at q_tile. */
    __device__ __forceinline__ void product(uint32_t q_tile, const tn_la_place &at) {
        const int64_t first = first_token(at);
        const bool off_axis = !Wgmma && tn_la_turns(Kind) && (f.q_grid.axes > 1 || first < f.q_grid.leading);
        const float coordinate = (float)(first + (lane >> 2) - f.q_grid.leading + f.q_grid.offset);
#pragma unroll
        for (int j = 0; j < N; j++) {
            c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
            if (wide)
                small[j % (wide ? N : 1)][0] = small[j % (wide ? N : 1)][1] = small[j % (wide ? N : 1)][2] = small[j % (wide ? N : 1)][3] =
                    0;
        }
        uint32_t raw[W / 16][4];
        if constexpr (Act == TN_SOFTMAX) {
#pragma unroll
            for (int step = 0; step < W / 16; step++) read(raw[step], q_tile, step);
            find_most(raw);
        }
#pragma unroll
        for (int step = 0; step < W / 16; step++) {
            uint32_t a[planes][fragments][4];
            if constexpr (wide) {
                float x[4][2];
                read(x, q_tile, step);
                encode(a, x, step, coordinate, off_axis);
            } else {
                if constexpr (Act != TN_SOFTMAX) read(raw[step], q_tile, step);
                if constexpr (tn_la_turns(Kind) || Act == TN_SILU || Act == TN_SOFTMAX) {
                    float x[4][2];
                    widen(x, raw[step]);
                    encode(a, x, step, coordinate, off_axis);
                } else {
#pragma unroll
                    for (int r = 0; r < 4; r++) a[0][0][r] = raw[step][r];
                    if constexpr (Kind == TN_LA_BROAD) read(a[0][1], q_tile, step + W / 16);
                }
            }
            if constexpr (Wgmma) {
                if (step == 0) tn_wgmma_hold(c);
                if constexpr (wide) tn_wgmma_hold(small);
                tn_wgmma_begin();
            }
            multiply(a, step);
            if constexpr (Wgmma) {
                tn_wgmma_commit();
                tn_wgmma_await<1>(); /* the fragments before these are free */
            }
        }
        if constexpr (Wgmma) {
            tn_wgmma_await<0>();
            tn_wgmma_hold(c);
            if constexpr (wide) tn_wgmma_hold(small);
        }
        if constexpr (wide) {
#pragma unroll
            for (int j = 0; j < N; j++) c[j][0] += small[j][0], c[j][1] += small[j][1], c[j][2] += small[j][2], c[j][3] += small[j][3];
        }
        find_scale();
    }

    /* scale, gate and round: o takes the place of g. */
    enum { UNGATED, GATED, GATED_BY_SILU };
    template <int Gate> __device__ __forceinline__ void gate(uint32_t g_tile) {
        const int g = lane >> 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t words[N];
            const uint32_t row = g_tile + (g + half * 8) * 128 + (lane & 3) * 4;
            if (Gate != UNGATED) {
#pragma unroll
                for (int j = 0; j < N; j++) words[j] = tn_tile_read_word(row + (j >> 3) * TN_LA_WARP_TOKENS * 128 + (((j ^ g) & 7) << 4));
            }
#pragma unroll
            for (int j = 0; j < N; j++) {
                float low = c[j][half * 2] * row_scale[half], high = c[j][half * 2 + 1] * row_scale[half];
                if (Gate == GATED) low *= tn_pair_low(words[j]), high *= tn_pair_high(words[j]);
                if (Gate == GATED_BY_SILU) low *= tn_silu_quick(tn_pair_low(words[j])), high *= tn_silu_quick(tn_pair_high(words[j]));
                words[j] = tn_pair_of(low, high);
            }
#pragma unroll
            for (int j = 0; j < N; j++) tn_tile_write_word(row + (j >> 3) * TN_LA_WARP_TOKENS * 128 + (((j ^ g) & 7) << 4), words[j]);
        }
    }
    /* bf16: gated in shared memory, then rows leave in 16-byte stores. */
    __device__ __forceinline__ void finish_in_place(uint32_t g_tile, T *o, int rows) {
        if (!f.g.x) gate<UNGATED>(g_tile);
        else if (f.g.act == TN_SILU) gate<GATED_BY_SILU>(g_tile);
        else gate<GATED>(g_tile);
        __syncwarp();
        constexpr int per_row = E / 8, row_step = 32 / per_row, n = TN_LA_WARP_TOKENS / row_step;
        const int first = lane / per_row, chunk = lane % per_row;
        uint4 words[n];
#pragma unroll
        for (int i = 0; i < n; i++) words[i] = tn_tile_read(g_tile + tn_tile_chunk(TN_LA_WARP_TOKENS, first + i * row_step, chunk));
        if (column + chunk * 8 < f.e) {
#pragma unroll
            for (int i = 0; i < n; i++)
                if (first + i * row_step < rows)
                    tn_store_pack(o + (first + i * row_step) * f.o_token + chunk * 8, *reinterpret_cast<const tn_pack<T> *>(&words[i]));
        }
        __syncwarp();
    }
    /* f32: pairs, straight to and from memory (whole sectors of 32 bytes). */
    __device__ __forceinline__ void finish_in_pairs(const T *gate, T *o, int rows) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = (lane >> 2) + half * 8;
            if (row >= rows) continue;
#pragma unroll
            for (int j = 0; j < N; j++) {
                const int col = j * 8 + (lane & 3) * 2;
                if (column + col >= f.e) continue;
                float x[2] = { 1, 1 };
                if (f.g.x) {
                    float2 pair = *reinterpret_cast<const float2 *>(gate + row * f.g.token + col);
                    x[0] = pair.x, x[1] = pair.y;
                    tn_activate<false>(x, f.g.act);
                }
                *reinterpret_cast<float2 *>(o + row * f.o_token + col) =
                    make_float2(x[0] * (c[j][half * 2] * row_scale[half]), x[1] * (c[j][half * 2 + 1] * row_scale[half]));
            }
        }
    }

    /* c = qb S of a unit, from q as it came. */
    __device__ __forceinline__ void multiply_unit(int stage, const tn_la_place &at) {
        const uint32_t q_tile = stage_at(stage);
        const int64_t first = first_token(at);
        if (!Wgmma && tn_la_turns(Kind) && (f.q_grid.axes > 1 || first < f.q_grid.leading))
            for (int i = lane; i < f.q_grid.axes * TN_LA_WARP_TOKENS; i += 32)
                coordinates[i] = (float)tn_lrpe_coordinate(&f.q_grid, first + i % TN_LA_WARP_TOKENS, i / TN_LA_WARP_TOKENS);
        if constexpr (Act == TN_LA_SETTLED) shared::share_q::settle(q_tile, f.q, f.q.act, at.head, 0, rows_at(at), f.d, lane);
        __syncwarp();
        product(q_tile, at);
    }
    /* o of a unit, from c and g as it came. */
    __device__ __forceinline__ void finish_unit(int stage, const tn_la_place &at) {
        const uint32_t g_tile = stage_at(stage) + shared::share_q::bytes;
        const int rows = rows_at(at);
        const int64_t first = first_token(at);
        if constexpr (Act == TN_LA_SETTLED) {
            if (!wide && f.g.x && f.g.act != TN_SILU)
                shared::share_g::settle(g_tile, f.g, f.g.act, at.head, column, rows, f.e - column, lane);
        }
        __syncwarp();
        if constexpr (wide) finish_in_pairs(g + first * f.g.token, o + first * f.o_token, rows);
        else finish_in_place(g_tile, o + first * f.o_token, rows);
        if (wide) __syncwarp();
    }
    __device__ __forceinline__ void unit(int stage, const tn_la_place &at) {
        multiply_unit(stage, at);
        finish_unit(stage, at);
    }
};

} // namespace

#endif
