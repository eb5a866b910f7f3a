/* One block's way through k and v: what the kernels that make S share. */
#ifndef TENON_LINEAR_ATTENTION_STATE_CUH
#define TENON_LINEAR_ATTENTION_STATE_CUH

#include "linear_attention_fwd.cuh"

#define TN_LA_TILE_TOKENS 64
#define TN_LA_EXACT_EVERY 4 /* tiles */

namespace {

/* Shared memory of one block, in bytes from its begin: stages of a k tile and a v tile, then, for f32, the planes of the v tile in use,
 * then coordinates. D: width of a k tile. */
template <typename T, int W, int E, int D = W> struct state_layout {
    typedef tn_tile_share<T, TN_LA_TILE_TOKENS, D, 2 * W, 1> share_k;
    typedef tn_tile_share<T, TN_LA_TILE_TOKENS, E, 2 * W, 1> share_v;
    static constexpr int stage_v = share_k::bytes, stage = share_k::bytes + share_v::bytes,
                         v_planes = share_v::wide ? 3 * share_v::plane_bytes : 0;
    static constexpr int coordinates = 2 * TN_LRPE_MAX_AXES * TN_LA_TILE_TOKENS * 4;
    static constexpr __host__ __device__ int tiles(int stages) { return stages * stage; }
    static constexpr __host__ __device__ int places(int stages) { return stages * stage + v_planes; }
    static constexpr __host__ __device__ int bytes(int stages) { return places(stages) + coordinates + 1024; }
};

/* Two slots x four tokens of a thread: cosine and sine. With rotate both slots are one pair and only the first is kept. */
template <int Kind, bool Fine> struct turns {
    static constexpr int n = Kind == TN_LA_COSINE ? 2 : 1;
    tn_tile_rate rate[n];
    int axis[n];
    float c[n][4], s[n][4], step_c[n], step_s[n];

    struct slots {
        tn_la_slot at[n];
    };
    /* slot: of the warp. */
    static __device__ __forceinline__ slots look_up(const tn_la_forward &f, int head, int slot) {
        slots found = {};
        if constexpr (tn_la_turns(Kind)) {
#pragma unroll
            for (int i = 0; i < n; i++) found.at[i] = tn_la_slot_of(f, f.k_grid, head % f.h, slot + (threadIdx.x >> 2 & 7) + 8 * i);
        }
        return found;
    }
    __device__ __forceinline__ void begin(const slots &found) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            rate[i] = tn_tile_rate_of(found.at[i].theta), axis[i] = found.at[i].axis;
            tn_turn_of<Fine>(16.0f, rate[i], step_c[i], step_s[i]);
        }
    }
    /* coordinates: [axis][TN_LA_TILE_TOKENS]; NULL: one axis, on which `token` itself is the coordinate. */
    __device__ __forceinline__ void exact(const float *coordinates, int token) {
#pragma unroll
        for (int i = 0; i < n; i++)
#pragma unroll
            for (int u = 0; u < 4; u++) {
                const int at = token + (u & 1) + (u >> 1) * 8;
                tn_turn_of<Fine>(coordinates ? coordinates[axis[i] * TN_LA_TILE_TOKENS + at] : (float)at, rate[i], c[i][u], s[i][u]);
            }
    }
    __device__ __forceinline__ void on() {
#pragma unroll
        for (int i = 0; i < n; i++)
#pragma unroll
            for (int u = 0; u < 4; u++) tn_turn_on(c[i][u], s[i][u], step_c[i], step_s[i]);
    }
    /* x: raw fragment (registers 0, 2: first slot; 1, 3: second), f32 values as x[register][token parity]. */
    __device__ __forceinline__ void encode(const float (&x)[4][2], float (&first)[4][2], float (&second)[4][2]) const {
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                int u = (r >> 1) * 2 + p;
                if (Kind == TN_LA_UNTURNED) {
                    first[r][p] = x[r][p];
                } else if (Kind == TN_LA_COSINE) {
                    first[r][p] = x[r][p] * c[(r & 1) * (n - 1)][u];
                    second[r][p] = x[r][p] * s[(r & 1) * (n - 1)][u];
                } else if ((r & 1) == 0) {
                    first[r][p] = fmaf(x[r][p], c[0][u], -x[r + 1][p] * s[0][u]);
                    first[r + 1][p] = fmaf(x[r][p], s[0][u], x[r + 1][p] * c[0][u]);
                }
            }
    }
};

template <typename T, int W, int E, int Kind, int Act, bool Wgmma> struct state_block {
    typedef state_layout<T, W, E, Kind == TN_LA_BROAD ? 2 * W : W> shared;
    static constexpr bool wide = shared::share_k::wide;
    static constexpr int planes = wide ? 3 : 1, fragments = tn_la_has_halves(Kind) ? 2 : 1, N = E / 8;

    float c[fragments][N][4];
    turns<Kind, wide> turn;

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < fragments; i++)
#pragma unroll
            for (int j = 0; j < N; j++) c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0;
    }

    /* The A's of 16 tokens: [plane][fragment]. */
    __device__ __forceinline__ void read(uint32_t (&a)[planes][fragments][4], uint32_t k_tile, int row, int chunk, int other_chunk) {
        float x[4][2], first[4][2], second[4][2];
        if constexpr (wide) {
            const int lane = threadIdx.x & 31;
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    const int token = row + (lane & 3) * 2 + p + (r >> 1) * 8;
                    x[r][p] = __uint_as_float(
                        tn_tile_read_word(shared::share_k::wide_chunk(k_tile, token, r & 1 ? other_chunk : chunk) + (lane >> 2) * 4));
                }
        } else {
            tn_fragment_a_transposed(a[0][0], k_tile, TN_LA_TILE_TOKENS, row, chunk, other_chunk);
            if constexpr (Kind == TN_LA_BROAD)
                tn_fragment_a_transposed(a[0][1], k_tile, TN_LA_TILE_TOKENS, row, chunk + W / 8, other_chunk + W / 8);
#pragma unroll
            for (int r = 0; r < 4; r++) x[r][0] = tn_pair_low(a[0][0][r]), x[r][1] = tn_pair_high(a[0][0][r]);
        }
        if constexpr (!wide && !tn_la_turns(Kind) && Act != TN_SILU) return; /* they are what they should be */
        if constexpr (Act == TN_SILU) {
#pragma unroll
            for (int r = 0; r < 4; r++) x[r][0] = tn_silu_quick(x[r][0]), x[r][1] = tn_silu_quick(x[r][1]);
        }
        turn.encode(x, first, second);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            fill(a, 0, r, first[r][0], first[r][1]);
            if (Kind == TN_LA_COSINE) fill(a, fragments - 1, r, second[r][0], second[r][1]);
        }
    }
    static __device__ __forceinline__ void fill(uint32_t (&a)[planes][fragments][4], int i, int r, float low, float high) {
        if constexpr (wide) {
            uint32_t pairs[3];
            tn_pairs_of(pairs, low, high);
            a[0][i][r] = pairs[0], a[planes / 2][i][r] = pairs[1], a[planes - 1][i][r] = pairs[2];
        } else {
            a[0][i][r] = tn_pair_of(low, high);
        }
    }

    /* to += the products of 16 tokens. */
    __device__ __forceinline__ void multiply(float (&to)[fragments][N][4], const uint32_t (&a)[planes][fragments][4], uint32_t v_tile,
                                             int row) {
        constexpr int products = wide ? 6 : 1;
        if constexpr (Wgmma) {
            tn_wgmma_begin();
#pragma unroll
            for (int p = 0; p < products; p++) {
                const int of_a = wide ? tn_plane_of_a(p) : 0, of_b = wide ? tn_plane_of_b(p) : 0;
                uint64_t b = tn_wgmma_rows(v_tile + of_b * shared::share_v::plane_bytes + row * 128, TN_LA_TILE_TOKENS * 128);
#pragma unroll
                for (int i = 0; i < fragments; i++) tn_wgmma<true>(to[i], a[of_a][i], b);
            }
            tn_wgmma_commit();
        } else {
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                uint32_t b[planes][4];
                float sum[fragments][2][4] = {};
#pragma unroll
                for (int p = 0; p < planes; p++) tn_fragment_b(b[p], v_tile + p * shared::share_v::plane_bytes, TN_LA_TILE_TOKENS, row, j);
#pragma unroll
                for (int p = 0; p < products; p++)
#pragma unroll
                    for (int i = 0; i < fragments; i++)
#pragma unroll
                        for (int other = 0; other < 2; other++) {
                            const uint32_t(&of_b)[4] = b[wide ? tn_plane_of_b(p) : 0];
                            tn_mma(wide ? sum[i][other] : to[i][j + other], a[wide ? tn_plane_of_a(p) : 0][i], of_b[2 * other],
                                   of_b[2 * other + 1]);
                        }
#pragma unroll
                for (int i = 0; i < fragments && wide; i++)
#pragma unroll
                    for (int at = 0; at < 8; at++) to[i][j + at / 4][at % 4] += sum[i][at / 4][at % 4];
            }
        }
    }

    /* The tile's share of S. Angles are computed for the first 16 tokens if `exact`, for all if `off_axis` (never with wgmma: it runs on
     * while the next 16 tokens are turned, and nothing may branch meanwhile; it takes the first token's coordinate instead of a table). */
    __device__ __forceinline__ void tile(uint32_t k_tile, uint32_t v_tile, int chunk, int other_chunk, bool exact, bool off_axis,
                                         const float *coordinates, int first_coordinate) {
        /* Tensor cores cut off what they add to a large sum: f32 data are summed by themselves first (wgmma: 64 tokens, mma: 16). */
        if constexpr (wide && Wgmma) {
            float sum[fragments][N][4] = {};
            add_tile(sum, k_tile, v_tile, chunk, other_chunk, exact, off_axis, coordinates, first_coordinate);
#pragma unroll
            for (int i = 0; i < fragments; i++)
#pragma unroll
                for (int j = 0; j < N; j++)
#pragma unroll
                    for (int at = 0; at < 4; at++) c[i][j][at] += sum[i][j][at];
        } else {
            add_tile(c, k_tile, v_tile, chunk, other_chunk, exact, off_axis, coordinates, first_coordinate);
        }
    }
    __device__ __forceinline__ void add_tile(float (&to)[fragments][N][4], uint32_t k_tile, uint32_t v_tile, int chunk, int other_chunk,
                                             bool exact, bool off_axis, const float *coordinates, int first_coordinate) {
        if constexpr (Wgmma) hold(to);
#pragma unroll
        for (int row = 0; row < TN_LA_TILE_TOKENS; row += 16) {
            uint32_t a[planes][fragments][4];
            if constexpr (tn_la_turns(Kind)) {
                if ((row == 0 && exact) || (!Wgmma && off_axis))
                    turn.exact(Wgmma ? NULL : coordinates, (Wgmma ? first_coordinate : 0) + row + (threadIdx.x & 3) * 2);
                else turn.on();
            }
            read(a, k_tile, row, chunk, other_chunk);
            multiply(to, a, v_tile, row);
            if (Wgmma) tn_wgmma_await<1>(); /* the fragments before these are free */
        }
        if constexpr (Wgmma) {
            tn_wgmma_await<0>();
            hold(to);
        }
    }
    __device__ __forceinline__ void hold(float (&to)[fragments][N][4]) {
#pragma unroll
        for (int i = 0; i < fragments; i++) tn_wgmma_hold(to[i]);
    }

    /* Where this thread's row of a fragment begins in [state_rows][e] of a head; NULL: it has none there. */
    __device__ __forceinline__ float *row_of(float *s, const tn_la_forward &f, int slot, int i, int half) const {
        const int at = slot + ((threadIdx.x & 31) >> 2) + half * 8 + (Kind == TN_LA_BROAD ? i * W : 0);
        if (at >= f.d) return NULL;
        return s + (int64_t)(tn_slot_feature(Kind == TN_LA_ROTATED, f.d, at) + (Kind == TN_LA_COSINE ? i * f.d : 0)) * f.e;
    }
    /* The state of a head is added. */
    __device__ __forceinline__ void add(const float *from, const tn_la_forward &f, int slot, int column) {
        const int first = column + (threadIdx.x & 3) * 2;
#pragma unroll
        for (int i = 0; i < fragments; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float *const row = row_of(const_cast<float *>(from), f, slot, i, half);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    if (!row || first + j * 8 >= f.e) continue;
                    const float2 pair = *reinterpret_cast<const float2 *>(row + first + j * 8);
                    c[i][j][half * 2] += pair.x, c[i][j][half * 2 + 1] += pair.y;
                }
            }
    }
    /* Written to [state_rows][e] of a head. Neighbouring threads exchange pairs first, so that each writes 16 bytes: of block j or, the odd
     * ones, of block j + 1. */
    __device__ __forceinline__ void write(float *to, const tn_la_forward &f, int slot, int column) {
        const bool odd = threadIdx.x & 1;
        const int first = column + (threadIdx.x & 2) * 2 + (odd ? 8 : 0);
#pragma unroll
        for (int i = 0; i < fragments; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float *const row = row_of(to, f, slot, i, half);
#pragma unroll
                for (int j = 0; j < N; j += 2) {
                    const float x0 = c[i][j][half * 2], x1 = c[i][j][half * 2 + 1], y0 = c[i][j + 1][half * 2],
                                y1 = c[i][j + 1][half * 2 + 1];
                    const float z0 = __shfl_xor_sync(0xffffffffu, odd ? x0 : y0, 1), z1 = __shfl_xor_sync(0xffffffffu, odd ? x1 : y1, 1);
                    if (!row || first + j * 8 >= f.e) continue;
                    *reinterpret_cast<float4 *>(row + first + j * 8) = odd ? make_float4(z0, z1, y0, y1) : make_float4(x0, x1, z0, z1);
                }
            }
    }
    /* As bf16 into a tile of slots x columns; slots and columns that do not exist are zero. */
    __device__ __forceinline__ void keep(uint32_t s_tile, int slot) {
        const int lane = threadIdx.x & 31, rows = fragments * W;
#pragma unroll
        for (int i = 0; i < fragments; i++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int j = 0; j < N; j++)
                    tn_tile_write_word(s_tile + tn_tile_pair(rows, i * W + slot + (lane >> 2) + half * 8, j * 8 + (lane & 3) * 2),
                                       tn_pair_of(c[i][j][half * 2], c[i][j][half * 2 + 1]));
    }
};

/* What is fetched next: the tile, and where this thread's first chunks of it are. */
template <typename T, int W, int E, int D = W> struct reader {
    typedef state_layout<T, W, E, D> shared;
    tn_la_place at;
    int stage, last_rows; /* last_rows: of a head's last tile */
    const T *k, *v;

    __device__ __forceinline__ reader(const tn_la_forward &f, const tn_la_place &first) : at(first), stage(0) {
        last_rows = (int)(f.k.tokens - (int64_t)(f.state_deal.per_head - 1) * TN_LA_TILE_TOKENS);
        find(f);
    }
    __device__ __forceinline__ void find(const tn_la_forward &f) {
        const int64_t b = at.head / f.h, h = at.head % f.h, first = (int64_t)at.piece * TN_LA_TILE_TOKENS;
        k = (const T *)f.k.x + b * f.k.batch + h * f.k.head + first * f.k.token + shared::share_k::offset(f.k.token, threadIdx.x);
        v = (const T *)f.v.x + b * f.v.batch + h * f.v.head + first * f.v.token + shared::share_v::offset(f.v.token, threadIdx.x) +
            blockIdx.y * E;
    }
    /* One tile into the next stage of the ring at `ring`, if there is one left; the group is closed in any case. */
    __device__ __forceinline__ void fetch(uint32_t ring, const tn_la_forward &f) {
        if (at.left > 0) {
            const int rows = at.piece + 1 == f.state_deal.per_head ? last_rows : TN_LA_TILE_TOKENS;
            const uint32_t to = ring + stage * shared::stage;
            shared::share_k::fetch(to, k, f.k.token, rows, f.d, threadIdx.x);
            shared::share_v::fetch(to + shared::stage_v, v, f.v.token, rows, f.e - blockIdx.y * E, threadIdx.x);
            k += TN_LA_TILE_TOKENS * f.k.token, v += TN_LA_TILE_TOKENS * f.v.token;
            if (tn_la_next_place(f.state_deal, blockIdx.x, at)) find(f);
        }
        tn_tile_fetched();
        stage = stage + 1 == f.stages ? 0 : stage + 1;
    }
};

/* Activates what this thread has fetched; f32: v is split into its planes, which everyone must have done with. */
template <typename T, int W, int E, int D = W>
__device__ __forceinline__ void settle(uint32_t stage, uint32_t v_planes, const tn_la_forward &f, const tn_la_place &at, int column) {
    typedef state_layout<T, W, E, D> shared;
    const int64_t left = f.k.tokens - (int64_t)at.piece * TN_LA_TILE_TOKENS;
    const int rows = left < TN_LA_TILE_TOKENS ? (int)left : TN_LA_TILE_TOKENS;
    shared::share_k::settle(stage, f.k, f.k.act, at.head, 0, rows, f.d, threadIdx.x);
    shared::share_v::settle(stage + shared::stage_v, f.v, f.v.act, at.head, column, rows, f.e - column, threadIdx.x);
    if constexpr (shared::share_v::wide) shared::share_v::write_planes(v_planes, stage + shared::stage_v, threadIdx.x);
}

} // namespace

#endif
