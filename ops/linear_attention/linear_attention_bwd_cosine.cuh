/* What the two passes of the backward of linear attention with cosine LRPE share where tiles are full (d = e = 128, one axis): a warp group
 * has 64 rows and all their columns, so that nothing about a row has to be asked of another group. */
#ifndef TENON_LINEAR_ATTENTION_BWD_COSINE_CUH
#define TENON_LINEAR_ATTENTION_BWD_COSINE_CUH

#include "linear_attention_bwd_passes.cuh"

enum { TN_BWD_STEPS = 136 /* a row of the table: rows begin in different banks */ };

using tn_bwd_full = tn_bwd_shape<128, true, true, 1>; /* one warp group's share: everything */

template <int Threads> TN_TILE_DEVICE void tn_bwd_meet(int barrier) {
    asm volatile("bar.sync %0, %1;" : : "r"(barrier), "n"(Threads) : "memory");
}
template <int Threads> TN_TILE_DEVICE void tn_bwd_tell(int barrier) {
    asm volatile("bar.arrive %0, %1;" : : "r"(barrier), "n"(Threads) : "memory");
}

/* Angles of a tile: row 16 w + g turns by the angle of row 16 w, then g theta, row 16 w + g + 8 by another 8 theta. */
struct tn_bwd_cosine_turn {
    const float2 *first; /* [4][128] cos and sin of warps' first rows, of this tile */
    const float2 *steps; /* [9][TN_BWD_STEPS] of g theta, of this head */

    /* What a thread needs of the tables for the angles of columns pair, pair + 1, pair + 8 and pair + 9 of sixteen. Loaded together, and
     * where it is written: the compiler would wait for one after the other. */
    struct of_sixteen {
        float4 first[2], step[2], eight[2];
    };
    __device__ __forceinline__ void load(of_sixteen &to, const tn_bwd_place &at, int column) const {
        const uint32_t a = tn_tile_address(first + at.warp * 128 + column + at.pair);
        const uint32_t b = tn_tile_address(steps + (at.lane >> 2) * TN_BWD_STEPS + column + at.pair);
        const uint32_t e = tn_tile_address(steps + 8 * TN_BWD_STEPS + column + at.pair);
#pragma unroll
        for (int two = 0; two < 2; two++)
            to.first[two] = read(a + two * 64), to.step[two] = read(b + two * 64), to.eight[two] = read(e + two * 64);
    }
    static __device__ __forceinline__ float4 read(uint32_t from) {
        float4 x;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(from) : "memory");
        return x;
    }
    /* cos and sin of two neighbouring angles in a thread's two rows. */
    static __device__ __forceinline__ void of(const of_sixteen &from, int two, float (&c)[2][2], float (&s)[2][2]) {
        const float4 a = from.first[two], b = from.step[two], eight = from.eight[two];
        c[0][0] = a.x, s[0][0] = a.y, c[1][0] = a.z, s[1][0] = a.w;
        tn_turn_on(c[0][0], s[0][0], b.x, b.y);
        tn_turn_on(c[1][0], s[1][0], b.z, b.w);
        c[0][1] = c[0][0], s[0][1] = s[0][0], c[1][1] = c[1][0], s[1][1] = s[1][0];
        tn_turn_on(c[0][1], s[0][1], eight.x, eight.y);
        tn_turn_on(c[1][1], s[1][1], eight.z, eight.w);
    }
};

/* A state (f32 [d'][e], dense) times `scale` as a bf16 tile, rows in the order of slots; `thread` of `Threads` has a part. */
template <int Threads, int AtOnce> TN_TILE_DEVICE void tn_bwd_cosine_load_state(uint32_t to, const float *state, float scale, int thread) {
    using Z = tn_bwd_full;
    constexpr int per_row = Z::W / 8;
#pragma unroll 1
    for (int i = thread; i < Z::F * per_row; i += AtOnce * Threads) {
        float4 x[AtOnce][2];
#pragma unroll
        for (int j = 0; j < AtOnce; j++) {
            const int at = i + j * Threads, row = tn_bwd_feature<Z>(false, Z::W, at / per_row);
            const float4 *from = reinterpret_cast<const float4 *>(state + row * Z::W) + at % per_row * 2;
            x[j][0] = from[0], x[j][1] = from[1];
        }
#pragma unroll
        for (int j = 0; j < AtOnce; j++) {
            const int at = i + j * Threads;
            tn_tile_write(to + tn_tile_chunk(Z::F, at / per_row, at % per_row),
                          make_uint4(tn_pair_of(scale * x[j][0].x, scale * x[j][0].y), tn_pair_of(scale * x[j][0].z, scale * x[j][0].w),
                                     tn_pair_of(scale * x[j][1].x, scale * x[j][1].y), tn_pair_of(scale * x[j][1].z, scale * x[j][1].w)));
        }
    }
}

/* Table of a head's steps; all of 256 threads call it. Returns the rate of this thread's own angle. */
TN_TILE_DEVICE tn_tile_rate tn_bwd_cosine_load_steps(float2 *steps, const tn_bwd_pass &p, uint32_t head) {
    const tn_lrpe_grid &grid = p.x.grid;
    const int angle = (int)threadIdx.x % 128;
    const float of = p.theta[(grid.theta_heads == 1 ? 0 : head) * grid.theta_width + tn_lrpe_theta_column(&grid, angle)];
    const tn_tile_rate rate = tn_tile_rate_of(of);
    for (int step = (int)threadIdx.x / 128; step < 9; step += 2) {
        float2 turned;
        tn_turn_of((float)step, rate, turned.x, turned.y);
        steps[step * TN_BWD_STEPS + angle] = turned;
    }
    return rate;
}
/* Of this thread's angle, where the rows of warps `begin` .. end - 1 begin. */
template <int Warps> TN_TILE_DEVICE void tn_bwd_cosine_load_first(float2 *first, tn_tile_rate rate, float coordinate, int begin) {
    first += begin * 128 + (int)threadIdx.x % 128;
#pragma unroll
    for (int i = 0; i < Warps; i++) {
        float2 turned;
        tn_turn_of(coordinate + (float)(16 * (begin + i)), rate, turned.x, turned.y);
        first[i * 128] = turned;
    }
}

/* A product's part that gives 32 features: dx [64 x 64] = d (64 x 128) state', 32 columns for cosines, then 32 for sines. */
TN_TILE_DEVICE void tn_bwd_cosine_begin(float (&dx)[8][4], uint32_t d, uint32_t state, int part) {
    using Z = tn_bwd_full;
    const uint32_t left = tn_bwd_columns_from(d), right = tn_bwd_columns_from(state + part * 64 * 128);
    tn_wgmma_begin();
#pragma unroll
    for (int k = 0; k < Z::W / 16; k++)
        tn_bwd_wgmma<false, false>(dx, tn_bwd_descriptor(left + TN_BWD_COLUMNS(k, TN_BWD_PANEL)),
                                   tn_bwd_descriptor(right + TN_BWD_COLUMNS(k, Z::F * 128)), k != 0);
    tn_wgmma_commit();
}

/* From the gradient of 32 encoded features to that of the raw ones, in x's place, and to what theta gets of it. With softmax x is p, and
 * `both` the sum of p dp of the two rows. */
template <int Act, typename Sums>
TN_TILE_DEVICE void tn_bwd_cosine_decode_as(uint32_t raw, const tn_bwd_cosine_turn &turn, const float (&dx)[8][4], int part,
                                            const tn_bwd_place &at, const float (&weight)[2], const float (&both)[2], Sums &sums) {
    uint32_t words[2][4];
    tn_bwd_read(words[0], raw, at, 4 * part);
    tn_bwd_read(words[1], raw, at, 4 * part + 2);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int column = 32 * part + 16 * j;
        float x[8], slope[8], sum[4] = { 0, 0, 0, 0 };
        tn_bwd_cosine_turn::of_sixteen angles;
        turn.load(angles, at, column);
        tn_bwd_unpack(x, words[j]);
        if constexpr (Act != TN_SOFTMAX) tn_bwd_activate(x, slope, Act);
#pragma unroll
        for (int two = 0; two < 2; two++) {
            float c[2][2], s[2][2];
            turn.of(angles, two, c, s);
#pragma unroll
            for (int row = 0; row < 2; row++)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int r = 2 * two + row, i = 2 * r + k;
                    const float first = TN_BWD_AT(dx, j, r, k), second = TN_BWD_AT(dx, 2 + j, r, k);
                    const float d = fmaf(first, c[k][row], second * s[k][row]);
                    sum[2 * two + k] = fmaf(weight[row] * x[i], fmaf(c[k][row], second, -s[k][row] * first), sum[2 * two + k]);
                    x[i] = Act == TN_SOFTMAX ? x[i] * (d - both[row]) : slope[i] * d;
                }
        }
        sums.add((2 * part + j) & 3, sum);
        tn_bwd_pack(words[j], x);
        tn_bwd_write(raw, at, column / 8, words[j]);
    }
}
template <typename Sums>
TN_TILE_DEVICE void tn_bwd_cosine_decode(uint32_t raw, const tn_bwd_cosine_turn &turn, const float (&dx)[8][4], int part,
                                         const tn_bwd_place &at, int act, const float (&weight)[2], const float (&both)[2], Sums &sums) {
    if (act == TN_SILU) tn_bwd_cosine_decode_as<TN_SILU>(raw, turn, dx, part, at, weight, both, sums);
    else if (act == TN_SOFTMAX) tn_bwd_cosine_decode_as<TN_SOFTMAX>(raw, turn, dx, part, at, weight, both, sums);
    else tn_bwd_cosine_decode_as<TN_NONE>(raw, turn, dx, part, at, weight, both, sums);
}

/* Of two rows, the sums over the four threads of a quad that share them. */
TN_TILE_DEVICE void tn_bwd_quad_sums(float (&sum)[2]) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
    }
}

/* Softmax over the features: of a thread's `N` times 16 columns, the rows' maxima times log2 e and sums of exp(x - maximum), by quads. */
template <int N> TN_TILE_DEVICE void tn_bwd_row_statistics(const uint32_t (&words)[N][4], float (&most)[2], float (&sum)[2]) {
    most[0] = most[1] = -INFINITY, sum[0] = sum[1] = 0;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) most[r & 1] = fmaxf(most[r & 1], fmaxf(tn_pair_low(words[j][r]), tn_pair_high(words[j][r])));
#pragma unroll
    for (int row = 0; row < 2; row++) {
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xffffffffu, most[row], 1));
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xffffffffu, most[row], 2)) * TN_BWD_LOG2_E;
    }
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            sum[r & 1] += tn_bwd_exp2(fmaf(tn_pair_low(words[j][r]), TN_BWD_LOG2_E, -most[r & 1]));
            sum[r & 1] += tn_bwd_exp2(fmaf(tn_pair_high(words[j][r]), TN_BWD_LOG2_E, -most[r & 1]));
        }
    tn_bwd_quad_sums(sum);
}

/* cos and sin parts of 16 encoded columns, from raw ones in x. */
TN_TILE_DEVICE void tn_bwd_cosine_encode(uint32_t (&cosines)[4], uint32_t (&sines)[4], float (&x)[8],
                                         const tn_bwd_cosine_turn::of_sixteen &angles) {
    float y[8];
#pragma unroll
    for (int two = 0; two < 2; two++) {
        float c[2][2], s[2][2];
        tn_bwd_cosine_turn::of(angles, two, c, s);
#pragma unroll
        for (int row = 0; row < 2; row++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int i = 2 * (two * 2 + row) + k;
                y[i] = x[i] * s[k][row];
                x[i] *= c[k][row];
            }
    }
    tn_bwd_pack(cosines, x);
    tn_bwd_pack(sines, y);
}

/* Softmax over the features, of rows that two groups share (`rows`: [2][64], barrier: theirs): x of a thread's two rows times log2 e less
 * this is log2 of p. */
template <typename Z, int Barrier>
TN_TILE_DEVICE void tn_bwd_cosine_softmax(float2 *rows, const tn_bwd_place &at, uint32_t raw, float (&less)[2]) {
    float most[2], sum[2];
    uint32_t words[Z::G][4];
    tn_bwd_read_all<Z>(words, raw, at);
    tn_bwd_row_statistics(words, most, sum);
#pragma unroll
    for (int row = 0; row < 2; row++)
        if ((at.lane & 3) == 0) rows[at.group * TN_BWD_TOKENS + at.row + 8 * row] = make_float2(most[row], sum[row]);
    tn_bwd_meet<Z::threads>(Barrier);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const float2 a = rows[at.row + 8 * row], b = rows[TN_BWD_TOKENS + at.row + 8 * row];
        const float top = fmaxf(a.x, b.x);
        less[row] = top + tn_bwd_log2(fmaf(a.y, tn_bwd_exp2(a.x - top), b.y * tn_bwd_exp2(b.x - top)));
    }
}

/* The same less the maximum alone: then it is log2 of exp(x - maximum), whose sum is yet to be had. rows: float[2][64]. */
template <typename Z, int Barrier>
TN_TILE_DEVICE void tn_bwd_cosine_most(float *rows, const tn_bwd_place &at, uint32_t raw, float (&less)[2]) {
    __nv_bfloat162 most[2];
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        uint32_t words[4];
        tn_bwd_read(words, raw, at, at.group * Z::N + 2 * j);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const __nv_bfloat162 pair = *reinterpret_cast<const __nv_bfloat162 *>(&words[r]);
            most[r & 1] = j == 0 && r < 2 ? pair : __hmax2(most[r & 1], pair);
        }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        less[row] = fmaxf(__low2float(most[row]), __high2float(most[row]));
        less[row] = fmaxf(less[row], __shfl_xor_sync(0xffffffffu, less[row], 1));
        less[row] = fmaxf(less[row], __shfl_xor_sync(0xffffffffu, less[row], 2));
        if ((at.lane & 3) == 0) rows[at.group * TN_BWD_TOKENS + at.row + 8 * row] = less[row];
    }
    tn_bwd_meet<Z::threads>(Barrier);
#pragma unroll
    for (int row = 0; row < 2; row++) less[row] = TN_BWD_LOG2_E * fmaxf(less[row], rows[(at.group ^ 1) * TN_BWD_TOKENS + at.row + 8 * row]);
}

/* encoded = lrpe(act(raw)), each thread its own elements; with softmax p takes the raw tile's place. Undivided: of softmax only the
 * exponentials, whose sums over the thread's columns go to `sum`. */
template <typename Z, int Barrier, int Act, bool Undivided>
TN_TILE_DEVICE void tn_bwd_cosine_encode_as(float2 *rows, uint32_t encoded, uint32_t raw, const tn_bwd_cosine_turn &turn,
                                            const tn_bwd_place &at, float (&sum)[2]) {
    float less[2];
    if constexpr (Act == TN_SOFTMAX && Undivided) tn_bwd_cosine_most<Z, Barrier>(reinterpret_cast<float *>(rows), at, raw, less);
    else if constexpr (Act == TN_SOFTMAX) tn_bwd_cosine_softmax<Z, Barrier>(rows, at, raw, less);
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * Z::share + 16 * j, chunk = at.group * Z::X + (j / 2 * 4 + j % 2) * 2;
        uint32_t words[4], more[4];
        float x[8], slope[8];
        tn_bwd_cosine_turn::of_sixteen angles;
        tn_bwd_read(words, raw, at, column / 8);
        turn.load(angles, at, column);
        tn_bwd_unpack(x, words);
        if constexpr (Act == TN_SOFTMAX) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] = tn_bwd_exp2(fmaf(x[i], TN_BWD_LOG2_E, -less[i >> 1 & 1]));
                if (Undivided) sum[i >> 1 & 1] += x[i];
            }
            tn_bwd_pack(words, x);
            tn_bwd_write(raw, at, column / 8, words);
        } else {
            tn_bwd_activate(x, slope, Act);
        }
        tn_bwd_cosine_encode(words, more, x, angles);
        tn_bwd_write(encoded, at, chunk, words);
        tn_bwd_write(encoded, at, chunk + Z::run / 8, more);
    }
}
template <typename Z, int Barrier>
TN_TILE_DEVICE void tn_bwd_cosine_encode_tile(float2 *rows, uint32_t encoded, uint32_t raw, const tn_bwd_cosine_turn &turn,
                                              const tn_bwd_place &at, int act) {
    float sum[2];
    if (act == TN_SILU) tn_bwd_cosine_encode_as<Z, Barrier, TN_SILU, false>(rows, encoded, raw, turn, at, sum);
    else if (act == TN_SOFTMAX) tn_bwd_cosine_encode_as<Z, Barrier, TN_SOFTMAX, false>(rows, encoded, raw, turn, at, sum);
    else tn_bwd_cosine_encode_as<Z, Barrier, TN_NONE, false>(rows, encoded, raw, turn, at, sum);
}

#endif
