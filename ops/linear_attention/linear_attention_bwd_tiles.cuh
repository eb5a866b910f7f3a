/* What the two passes of the backward of non-causal linear attention share: places of threads, products of tiles, and the way from a raw
 * tile of q, k, v or g to what is multiplied (encode) and from a gradient back to the raw one (decode).
 *
 * A block has eight warps in two groups of four and walks tiles of 64 tokens. Warp w of a group has rows 16 w .. 16 w + 15, and group c has
 * half c of the columns, so that every element of a raw tile, of what it becomes and of its gradient belongs to one thread, in the order of
 * accumulators:
 *
 *     raw (W wide)      | group 0: W / 2 | group 1: W / 2 |
 *     encoded, rotate   | group 0        | group 1        |                      slots: pairs stand 8 columns apart
 *     encoded, cosine   | group 0: cos, sin  | group 1: cos, sin   |             2 W wide
 *
 * A column of such an order is a slot; tn_bwd_feature says which feature it is. Features beyond the width are zero. */
#ifndef TENON_LINEAR_ATTENTION_BWD_TILES_CUH
#define TENON_LINEAR_ATTENTION_BWD_TILES_CUH

#include "linear_attention_bwd.h"
#include "linear_attention_tiles.cuh"

#define TN_BWD_THREADS 256
#define TN_BWD_PANEL (TN_BWD_TOKENS * 128) /* bytes of 64 columns of a tile of tokens */

template <int W_, bool Cosine_, bool Wgmma_> struct tn_bwd_shape {
    static constexpr int W = W_, F = Cosine_ ? 2 * W : W; /* raw and encoded width */
    static constexpr bool cosine = Cosine_, wgmma = Wgmma_;
    static constexpr int G = W / 32;                  /* groups of 16 raw columns that a warp owns */
    static constexpr int N = W / 16, X = F / 16;      /* its blocks of 8 columns, raw and encoded */
    static constexpr int raw_bytes = TN_BWD_TOKENS * W * 2, encoded_bytes = TN_BWD_TOKENS * F * 2, state_bytes = F * W * 2;
    /* dS: a warpgroup owns M times 64 rows and all columns or, where there are but 64 rows, half of the columns. */
    static constexpr bool by_rows = F >= 128;
    static constexpr int M = by_rows ? F / 128 : 1, C = by_rows ? W / 8 : W / 16;
};

/* Is there code for this shape? Kernels of others are left empty for this architecture, and are not asked for. */
template <typename Z> constexpr bool tn_bwd_has_code = !Z::wgmma || TN_TILE_WGMMA;

/* The feature of slot s of the encoded width, or -1. `d`: raw width; rotate: pairs. */
template <typename Z> TN_TILE_DEVICE int tn_bwd_feature(bool rotate, int d, int slot) {
    if (!Z::cosine) return slot < d ? tn_slot_feature(rotate, d, slot) : -1;
    int half = slot / (Z::W / 2), feature = (half >> 1) * (Z::W / 2) + slot % (Z::W / 2);
    return feature < d ? (half & 1) * d + feature : -1;
}

/* ---- threads ---- */

struct tn_bwd_place {
    int lane, warp, group, row, pair; /* the first of its two rows (the other is 8 below), and the first of its columns in a block */
    uint32_t of_row, swizzle;

    __device__ __forceinline__ tn_bwd_place() {
        lane = threadIdx.x & 31;
        warp = threadIdx.x >> 5 & 3;
        group = threadIdx.x >> 7;
        row = 16 * warp + (lane >> 2);
        pair = 2 * (lane & 3);
        of_row = (16 * warp + (lane & 15)) * 128;
        swizzle = ((lane >> 4) ^ (lane & 7)) << 4;
    }
    /* Where this lane's row of a 16 x 16 block lies in a tile, for ldmatrix and stmatrix; chunk is even. */
    __device__ __forceinline__ uint32_t block(int chunk) const { return (chunk >> 3) * TN_BWD_PANEL + of_row + (swizzle ^ (chunk & 6) << 4); }
};

/* 16 x 16 of this warp: register r holds rows row + 8 (r & 1), columns 8 (r >> 1) + pair, + 1. */
TN_TILE_DEVICE void tn_bwd_read(uint32_t (&x)[4], uint32_t tile, const tn_bwd_place &at, int chunk) { tn_tile_blocks(x, tile + at.block(chunk)); }
TN_TILE_DEVICE void tn_bwd_write(uint32_t tile, const tn_bwd_place &at, int chunk, const uint32_t (&x)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(tile + at.block(chunk)), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
#else
#pragma unroll
    for (int r = 0; r < 4; r++) tn_tile_write_word(tile + tn_tile_pair(TN_BWD_TOKENS, at.row + 8 * (r & 1), 8 * (chunk + (r >> 1)) + at.pair), x[r]);
#endif
}
/* Eight values of such a block; value 2 r + i is half i of register r. */
TN_TILE_DEVICE void tn_bwd_unpack(float (&x)[8], const uint32_t (&from)[4]) {
#pragma unroll
    for (int r = 0; r < 4; r++) x[2 * r] = tn_pair_low(from[r]), x[2 * r + 1] = tn_pair_high(from[r]);
}
TN_TILE_DEVICE void tn_bwd_pack(uint32_t (&to)[4], const float (&x)[8]) {
#pragma unroll
    for (int r = 0; r < 4; r++) to[r] = tn_pair_of(x[2 * r], x[2 * r + 1]);
}
/* Value 2 r + i of group j in accumulators. */
#define TN_BWD_AT(c, j, r, i) (c)[2 * (j) + ((r) >> 1)][((r) & 1) * 2 + (i)]

/* ---- rows of the tensors ---- */

/* Where a slice's rows begin. */
TN_TILE_DEVICE const tn_cuda_bf16 *tn_bwd_slice(const void *x, const tn_la_strides &stride, uint32_t heads, uint32_t slice) {
    return (const tn_cuda_bf16 *)x + (int64_t)(slice / heads) * stride.batch + (int64_t)(slice % heads) * stride.head;
}
TN_TILE_DEVICE tn_cuda_bf16 *tn_bwd_slice(void *x, const tn_la_strides &stride, uint32_t heads, uint32_t slice) {
    return const_cast<tn_cuda_bf16 *>(tn_bwd_slice((const void *)x, stride, heads, slice));
}

/* Sends for the rows of a tile; those beyond `rows` become zero. */
template <int W> TN_TILE_DEVICE void tn_bwd_fetch(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int rows, int width, bool rotate) {
    constexpr int per_row = W / 8, step = TN_BWD_THREADS / per_row;
    const int row = (int)threadIdx.x / per_row, chunk = (int)threadIdx.x % per_row;
    const bool inside = chunk * 8 < width;
    const tn_cuda_bf16 *at = from + row * stride + tn_slot_chunk(rotate, width, chunk) * 8;
#pragma unroll
    for (int i = 0; i < TN_BWD_TOKENS / step; i++) {
        bool there = inside && row + i * step < rows;
        tn_tile_fetch(to + tn_tile_chunk(TN_BWD_TOKENS, row + i * step, chunk), there ? at : from, there);
        at += step * stride;
    }
}

/* Writes what this warp owns of a tile to memory; the warp has just written it. */
template <int W> TN_TILE_DEVICE void tn_bwd_store(uint32_t from, const tn_bwd_place &place, tn_cuda_bf16 *to, int64_t stride, int rows, int width, bool rotate) {
    constexpr int per_row = W / 16, step = 32 / per_row;
    __syncwarp();
    const int chunk = place.group * per_row + place.lane % per_row, row = 16 * place.warp + place.lane / per_row;
    tn_cuda_bf16 *at = to + row * stride + tn_slot_chunk(rotate, width, chunk) * 8;
    const bool inside = chunk * 8 < width;
#pragma unroll
    for (int i = 0; i < 16 / step; i++) {
        uint4 x = tn_tile_read(from + tn_tile_chunk(TN_BWD_TOKENS, row + i * step, chunk));
        if (inside && row + i * step < rows)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" : : "l"(at + i * step * stride), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
    }
    __syncwarp();
}

/* A state (f32 [d'][e], dense) times `scale` as a bf16 tile, rows in the order of slots. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_load_state(uint32_t to, const float *state, float scale, int d, int e, bool rotate) {
    constexpr int per_row = Z::W / 8;
#pragma unroll 4
    for (int at = threadIdx.x; at < Z::F * per_row; at += TN_BWD_THREADS) {
        int slot = at / per_row, chunk = at % per_row, feature = tn_bwd_feature<Z>(rotate, d, slot);
        uint4 words = make_uint4(0, 0, 0, 0);
        if (feature >= 0 && chunk * 8 < e) {
            const float4 *from = reinterpret_cast<const float4 *>(state + feature * e + chunk * 8);
            float4 a = from[0], b = from[1];
            words = make_uint4(tn_pair_of(scale * a.x, scale * a.y), tn_pair_of(scale * a.z, scale * a.w), tn_pair_of(scale * b.x, scale * b.y),
                               tn_pair_of(scale * b.z, scale * b.w));
        }
        tn_tile_write(to + tn_tile_chunk(Z::F, slot, chunk), words);
    }
}

/* ---- products ---- */

#define TN_BWD_C4(c, j) "+f"((c)[j][0]), "+f"((c)[j][1]), "+f"((c)[j][2]), "+f"((c)[j][3])

/* c [64 x 8 N] (+)= a b, both in shared memory. A by rows: its rows are k. */
template <bool ARows, bool BRows> TN_TILE_DEVICE void tn_bwd_wgmma(float (&c)[8][4], uint64_t a, uint64_t b, int add) {
#if TN_TILE_WGMMA
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, add, 1, 1, %35, %36;\n}"
                 : TN_BWD_C4(c, 0), TN_BWD_C4(c, 1), TN_BWD_C4(c, 2), TN_BWD_C4(c, 3), TN_BWD_C4(c, 4), TN_BWD_C4(c, 5), TN_BWD_C4(c, 6), TN_BWD_C4(c, 7)
                 : "l"(a), "l"(b), "r"(add), "n"(ARows ? 1 : 0), "n"(BRows ? 1 : 0));
#endif
}
template <bool ARows, bool BRows> TN_TILE_DEVICE void tn_bwd_wgmma(float (&c)[16][4], uint64_t a, uint64_t b, int add) {
#if TN_TILE_WGMMA
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, add, 1, 1, %67, %68;\n}"
                 : TN_BWD_C4(c, 0), TN_BWD_C4(c, 1), TN_BWD_C4(c, 2), TN_BWD_C4(c, 3), TN_BWD_C4(c, 4), TN_BWD_C4(c, 5), TN_BWD_C4(c, 6), TN_BWD_C4(c, 7),
                   TN_BWD_C4(c, 8), TN_BWD_C4(c, 9), TN_BWD_C4(c, 10), TN_BWD_C4(c, 11), TN_BWD_C4(c, 12), TN_BWD_C4(c, 13), TN_BWD_C4(c, 14),
                   TN_BWD_C4(c, 15)
                 : "l"(a), "l"(b), "r"(add), "n"(ARows ? 1 : 0), "n"(BRows ? 1 : 0));
#endif
}
template <int N> TN_TILE_DEVICE void tn_bwd_clear(float (&c)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
}

/* c = a (64 x F, encoded) state: this warp's rows, this group's half of the W columns. wgmma: to be awaited. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_times_state(float (&c)[Z::N][4], uint32_t a, uint32_t state, const tn_bwd_place &at) {
    if constexpr (Z::wgmma) {
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < Z::F / 16; k++)
            tn_bwd_wgmma<false, true>(c, tn_wgmma_columns(a + (k >> 2) * TN_BWD_PANEL + (k & 3) * 32),
                                      tn_wgmma_rows(state + at.group * Z::F * 128 + k * 2048, Z::F * 128), k != 0);
        tn_wgmma_commit();
    } else {
        tn_bwd_clear(c);
#pragma unroll 2
        for (int k = 0; k < Z::F / 16; k++) {
            uint32_t left[4], right[4];
            tn_fragment_a(left, a, TN_BWD_TOKENS, 16 * at.warp, 2 * k, 2 * k + 1);
#pragma unroll
            for (int j = 0; j < Z::N; j += 2) {
                tn_fragment_b(right, state, Z::F, 16 * k, at.group * Z::N + j);
                tn_mma(c[j], left, right[0], right[1]);
                tn_mma(c[j + 1], left, right[2], right[3]);
            }
        }
    }
}

/* c = a (64 x W) state': this warp's rows, the slots of its group. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_times_state_transposed(float (&c)[Z::X][4], uint32_t a, uint32_t state, const tn_bwd_place &at) {
    if constexpr (Z::wgmma) {
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < Z::W / 16; k++)
            tn_bwd_wgmma<false, false>(c, tn_wgmma_columns(a + (k >> 2) * TN_BWD_PANEL + (k & 3) * 32),
                                       tn_wgmma_columns(state + (k >> 2) * Z::F * 128 + at.group * 8 * Z::X * 128 + (k & 3) * 32), k != 0);
        tn_wgmma_commit();
    } else {
        tn_bwd_clear(c);
#pragma unroll 2
        for (int k = 0; k < Z::W / 16; k++) {
            uint32_t left[4], right[4];
            tn_fragment_a(left, a, TN_BWD_TOKENS, 16 * at.warp, 2 * k, 2 * k + 1);
#pragma unroll
            for (int j = 0; j < Z::X; j += 2) {
                tn_fragment_b_transposed(right, state, Z::F, 8 * (at.group * Z::X + j), 2 * k);
                tn_mma(c[j], left, right[0], right[1]);
                tn_mma(c[j + 1], left, right[2], right[3]);
            }
        }
    }
}

/* c += a' b, a encoded and b W wide, both of 64 tokens. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_add_outer(float (&c)[Z::M][Z::C][4], uint32_t a, uint32_t b, const tn_bwd_place &at) {
    if constexpr (Z::wgmma) {
        tn_wgmma_begin();
#pragma unroll
        for (int i = 0; i < Z::M; i++)
#pragma unroll
            for (int k = 0; k < TN_BWD_TOKENS / 16; k++)
                tn_bwd_wgmma<true, true>(c[i], tn_wgmma_rows(a + (at.group * Z::M + i) * TN_BWD_PANEL + k * 2048, TN_BWD_PANEL),
                                         tn_wgmma_rows(b + k * 2048, TN_BWD_PANEL), 1);
        tn_wgmma_commit();
    } else {
        const int chunk = Z::by_rows ? 0 : at.group * Z::C;
#pragma unroll
        for (int i = 0; i < Z::M; i++) {
            const int slots = ((Z::by_rows ? at.group * Z::M + i : 0) * 64 + 16 * at.warp) / 8;
#pragma unroll 1
            for (int k = 0; k < TN_BWD_TOKENS / 16; k++) {
                uint32_t left[4], right[4];
                tn_fragment_a_transposed(left, a, TN_BWD_TOKENS, 16 * k, slots, slots + 1);
#pragma unroll
                for (int j = 0; j < Z::C; j += 2) {
                    tn_fragment_b(right, b, TN_BWD_TOKENS, 16 * k, chunk + j);
                    tn_mma(c[i][j], left, right[0], right[1]);
                    tn_mma(c[i][j + 1], left, right[2], right[3]);
                }
            }
        }
    }
}

/* ---- activations ---- */

#define TN_BWD_EACH _Pragma("unroll") for (int i = 0; i < N; i++)

/* x becomes act(x), slope act'(x), for values of bf16 precision; the branch is the same for the whole grid. */
template <int N> TN_TILE_DEVICE void tn_bwd_activate(float (&x)[N], float (&slope)[N], int act) {
    if (act == TN_NONE) {
        TN_BWD_EACH slope[i] = 1;
    } else if (act == TN_SILU) {
        TN_BWD_EACH {
            float s = fmaf(0.5f, tn_tanh_quick(0.5f * x[i]), 0.5f);
            x[i] *= s;
            slope[i] = fmaf(x[i], 1 - s, s);
        }
    } else if (act == TN_RELU) {
        TN_BWD_EACH {
            slope[i] = x[i] > 0 ? 1.0f : 0.0f;
            x[i] = x[i] > 0 || x[i] != x[i] ? x[i] : 0.0f;
        }
    } else if (act == TN_SIGMOID) {
        TN_BWD_EACH {
            x[i] = fmaf(0.5f, tn_tanh_quick(0.5f * x[i]), 0.5f);
            slope[i] = x[i] * (1 - x[i]);
        }
    } else if (act == TN_TANH) {
        TN_BWD_EACH {
            x[i] = tn_tanh_quick(x[i]);
            slope[i] = fmaf(-x[i], x[i], 1.0f);
        }
    } else {
        /* gelu; erfc(y) = t p(t) e^(-y y) with t = 1 / (1 + 0.3275911 y), right to 1.5e-7 (Abramowitz and Stegun 7.1.26). */
        TN_BWD_EACH {
            float y = 0.70710678f * fabsf(x[i]), t = __fdividef(1.0f, fmaf(0.3275911f, y, 1.0f)), bell = __expf(-y * y);
            float p = fmaf(1.061405429f, t, -1.453152027f);
            p = fmaf(p, t, 1.421413741f);
            p = fmaf(p, t, -0.284496736f);
            p = 0.5f * t * fmaf(p, t, 0.254829592f) * bell;
            float below = x[i] > 0 ? 1 - p : p;
            slope[i] = fmaf(0.39894228f * x[i], bell, below);
            x[i] *= below;
        }
    }
}

/* Code for an activation known when compiled, none or silu, or for any. */
enum { TN_BWD_ANY_ACT = -1 };

/* An operand's activation, as a tile needs it. Softmax over the sequence has a column's maximum, 1 / sum, and the sum of p dp that its
 * backward takes away in `columns`; softmax over the features keeps the same of its two rows here. */
struct tn_bwd_act {
    int act;
    bool over_sequence, over_features;
    const float4 *columns;
    float maximum[2], scale[2];

    __device__ __forceinline__ tn_bwd_act(int kind, bool sequence, const float4 *statistics)
        : act(kind), over_sequence(kind == TN_SOFTMAX && sequence), over_features(kind == TN_SOFTMAX && !sequence), columns(statistics) {
        maximum[0] = maximum[1] = scale[0] = scale[1] = 0;
    }

    /* x of a group becomes act(x), slope act'(x) or, with softmax, p. */
    template <int Act> __device__ __forceinline__ void apply(float (&x)[8], float (&slope)[8], int column) const {
        if constexpr (Act != TN_BWD_ANY_ACT) {
            tn_bwd_activate(x, slope, Act);
        } else if (act != TN_SOFTMAX) {
            tn_bwd_activate(x, slope, act);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float4 of = make_float4(0, 0, 0, 0);
                if (over_sequence) of = columns[column + 8 * (k >> 1) + (k & 1)];
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    const int i = 2 * ((k >> 1) * 2 + row) + (k & 1);
                    x[i] = over_sequence ? __expf(x[i] - of.x) * of.y : __expf(x[i] - maximum[row]) * scale[row];
                    slope[i] = x[i];
                }
            }
        }
    }
};

/* ---- sums over the rows of a tile, which two warps share ---- */

struct tn_bwd_exchange {
    float2 *room; /* [2][2][64] */
    int turn;

    /* (a, b) of this thread's row r, already summed over its quad, and the other warp's. All threads of the block call it. */
    __device__ __forceinline__ void swap(const tn_bwd_place &at, const float2 (&mine)[2], float2 (&other)[2]) {
        float2 *now = room + turn * 2 * TN_BWD_TOKENS;
        turn ^= 1;
        if ((at.lane & 3) == 0) {
            now[at.group * TN_BWD_TOKENS + at.row] = mine[0];
            now[at.group * TN_BWD_TOKENS + at.row + 8] = mine[1];
        }
        __syncthreads();
        other[0] = now[(at.group ^ 1) * TN_BWD_TOKENS + at.row];
        other[1] = now[(at.group ^ 1) * TN_BWD_TOKENS + at.row + 8];
    }
};

/* Both rows' sums. */
TN_TILE_DEVICE void tn_bwd_row_sums(tn_bwd_exchange &exchange, const tn_bwd_place &at, float (&sum)[2]) {
    float2 mine[2], other[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
        mine[row] = make_float2(sum[row], 0);
    }
    exchange.swap(at, mine, other);
#pragma unroll
    for (int row = 0; row < 2; row++) sum[row] = at.group ? other[row].x + sum[row] : sum[row] + other[row].x;
}

/* Softmax over the features: maximum and 1 / sum of a raw tile's rows. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_row_softmax(tn_bwd_act &act, tn_bwd_exchange &exchange, const tn_bwd_place &at, uint32_t raw, int width) {
    uint32_t words[Z::G][4];
    float2 mine[2], other[2];
    float most[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 };
#pragma unroll
    for (int j = 0; j < Z::G; j++) tn_bwd_read(words[j], raw, at, at.group * Z::N + 2 * j);
#pragma unroll
    for (int j = 0; j < Z::G; j++)
        if (at.group * (Z::W / 2) + 16 * j < width)
#pragma unroll
            for (int r = 0; r < 4; r++) most[r & 1] = fmaxf(most[r & 1], fmaxf(tn_pair_low(words[j][r]), tn_pair_high(words[j][r])));
#pragma unroll
    for (int row = 0; row < 2; row++) {
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xffffffffu, most[row], 1));
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xffffffffu, most[row], 2));
    }
#pragma unroll
    for (int j = 0; j < Z::G; j++)
        if (at.group * (Z::W / 2) + 16 * j < width)
#pragma unroll
            for (int r = 0; r < 4; r++) sum[r & 1] += __expf(tn_pair_low(words[j][r]) - most[r & 1]) + __expf(tn_pair_high(words[j][r]) - most[r & 1]);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
        mine[row] = make_float2(most[row], sum[row]);
    }
    exchange.swap(at, mine, other);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float top = fmaxf(most[row], other[row].x);
        /* A half without features has sum 0 and maximum -inf: e^-inf = 0. */
        act.maximum[row] = top;
        act.scale[row] = __fdividef(1.0f, sum[row] * __expf(most[row] - top) + other[row].y * __expf(other[row].x - top));
    }
}

/* ---- LRPE ---- */

/* What an angle of the head turns by: theta in turns, in two parts, and cos and sin of 8 theta. */
struct tn_bwd_speed {
    tn_tile_rate rate;
    float c8, s8;
};

/* The angles of a thread's two rows. Where the rows' coordinates are 8 apart, as they are with one axis beyond the leading tokens, the second
 * row's angle is the first's, turned on. */
struct tn_bwd_turn {
    const tn_bwd_speed *speed;    /* [angle] */
    const unsigned char *axis;    /* [angle] */
    const float *coordinates;     /* [axis][64] */
    bool straight;
    float at, there[2];           /* straight: the first row's coordinate; is the row one of the tensor's? */

    /* cos and sin of an angle in both rows, and its coordinates, 0 where there is no row. */
    template <bool Straight> __device__ __forceinline__ void angles(int angle, int row, float (&c)[2], float (&s)[2], float (&weight)[2]) const {
        const tn_bwd_speed of = speed[angle];
        if (Straight) {
            tn_turn_of(at, of.rate, c[0], s[0]);
            c[1] = c[0], s[1] = s[0];
            tn_turn_on(c[1], s[1], of.c8, of.s8);
            weight[0] = at * there[0], weight[1] = (at + 8) * there[1];
        } else {
            const float *from = coordinates + axis[angle] * TN_BWD_TOKENS + row;
            tn_turn_of(from[0], of.rate, c[0], s[0]);
            tn_turn_of(from[8], of.rate, c[1], s[1]);
            weight[0] = from[0] * there[0], weight[1] = from[8] * there[1];
        }
    }
};

/* A head's angles. All threads of the block call it; a barrier has to follow. */
template <int W> TN_TILE_DEVICE void tn_bwd_load_speeds(tn_bwd_speed *speed, unsigned char *axes, const tn_lrpe_grid &grid, const float *theta, uint32_t head) {
    for (int i = threadIdx.x; i < W; i += TN_BWD_THREADS) {
        int axis = i < grid.angles ? tn_lrpe_axis(&grid, i) : -1;
        float of = axis < 0 ? 0.0f : theta[(grid.theta_heads == 1 ? 0 : head) * grid.theta_width + tn_lrpe_theta_column(&grid, i)];
        tn_bwd_speed result;
        result.rate = tn_tile_rate_of(of);
        tn_turn_of(8.0f, result.rate, result.c8, result.s8);
        speed[i] = result;
        axes[i] = (unsigned char)(axis < 0 ? 0 : axis);
    }
}

/* The coordinates of a tile's rows, where they are not straight. A barrier has to follow. */
TN_TILE_DEVICE void tn_bwd_load_coordinates(float *to, const tn_lrpe_grid &grid, int64_t first) {
    for (int i = threadIdx.x; i < grid.axes * TN_BWD_TOKENS; i += TN_BWD_THREADS)
        to[i] = (float)tn_lrpe_coordinate(&grid, first + i % TN_BWD_TOKENS, i / TN_BWD_TOKENS);
}

/* ---- encode, decode ---- */

template <typename Z, int Act, bool Straight>
TN_TILE_DEVICE void tn_bwd_encode_as(uint32_t encoded, uint32_t raw, const tn_bwd_place &at, const tn_bwd_act &act, const tn_bwd_turn &turn, int width, int how) {
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * (Z::W / 2) + 16 * j, chunk = column / 8;
        uint32_t words[4], more[4];
        float x[8], y[8];
        tn_bwd_read(words, raw, at, chunk);
        tn_bwd_unpack(x, words);
        act.template apply<Act>(x, y, column + at.pair);
        if (Act == TN_BWD_ANY_ACT && column >= width)
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = 0;
        if constexpr (Z::cosine) {
            const int to = at.group * Z::X + 2 * j;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float c[2], s[2], weight[2];
                turn.template angles<Straight>(column + 8 * (k >> 1) + at.pair + (k & 1), at.row, c, s, weight);
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    const int i = 2 * ((k >> 1) * 2 + row) + (k & 1);
                    y[i] = x[i] * s[row];
                    x[i] *= c[row];
                }
            }
            tn_bwd_pack(more, y);
            tn_bwd_write(encoded, at, to + Z::N, more);
            tn_bwd_pack(words, x);
            tn_bwd_write(encoded, at, to, words);
        } else {
            if (how == TN_BWD_ROTATE)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    float c[2], s[2], weight[2];
                    turn.template angles<Straight>(column / 2 + at.pair + k, at.row, c, s, weight);
#pragma unroll
                    for (int row = 0; row < 2; row++) {
                        float first = x[2 * row + k], second = x[4 + 2 * row + k];
                        x[2 * row + k] = fmaf(first, c[row], -second * s[row]);
                        x[4 + 2 * row + k] = fmaf(first, s[row], second * c[row]);
                    }
                }
            tn_bwd_pack(words, x);
            tn_bwd_write(encoded, at, chunk, words);
        }
    }
}

template <typename Z, int Act, bool Straight, typename Sums>
TN_TILE_DEVICE void tn_bwd_decode_as(uint32_t to, uint32_t raw, float (&dx)[Z::X][4], const tn_bwd_place &at, const tn_bwd_act &act,
                                  const tn_bwd_turn &turn, tn_bwd_exchange &exchange, int width, int how, int what, Sums &sums) {
    float both[2] = { 0, 0 };
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * (Z::W / 2) + 16 * j, chunk = column / 8;
        uint32_t words[4];
        float x[8], slope[8], d[8];
        tn_bwd_read(words, raw, at, chunk);
        tn_bwd_unpack(x, words);
        act.template apply<Act>(x, slope, column + at.pair);
        float part[4] = { 0, 0, 0, 0 };
        if constexpr (Z::cosine) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float c[2], s[2], weight[2];
                turn.template angles<Straight>(column + 8 * (k >> 1) + at.pair + (k & 1), at.row, c, s, weight);
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    const int r = (k >> 1) * 2 + row, i = 2 * r + (k & 1);
                    float first = TN_BWD_AT(dx, j, r, k & 1), second = dx[Z::X / 2 + 2 * j + (r >> 1)][(r & 1) * 2 + (k & 1)];
                    d[i] = fmaf(first, c[row], second * s[row]);
                    part[k] = fmaf(weight[row] * x[i], fmaf(c[row], second, -s[row] * first), part[k]);
                }
            }
        } else {
#pragma unroll
            for (int r = 0; r < 4; r++) d[2 * r] = TN_BWD_AT(dx, j, r, 0), d[2 * r + 1] = TN_BWD_AT(dx, j, r, 1);
            if (how == TN_BWD_ROTATE)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    float c[2], s[2], weight[2];
                    turn.template angles<Straight>(column / 2 + at.pair + k, at.row, c, s, weight);
#pragma unroll
                    for (int row = 0; row < 2; row++) {
                        float first = d[2 * row + k], second = d[4 + 2 * row + k];
                        d[2 * row + k] = fmaf(first, c[row], second * s[row]);
                        d[4 + 2 * row + k] = fmaf(second, c[row], -first * s[row]);
                        part[k] = fmaf(weight[row], x[2 * row + k] * d[4 + 2 * row + k] - x[4 + 2 * row + k] * d[2 * row + k], part[k]);
                    }
                }
        }
        if (Act == TN_BWD_ANY_ACT && what == TN_BWD_SUMS_SOFTMAX)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int i = 4 * (k >> 1) + (k & 1);
                part[k] = x[i] * d[i] * turn.there[0] + x[i + 2] * d[i + 2] * turn.there[1];
            }
        if (what != TN_BWD_NO_SUMS) sums.add(j, part);
        if (Act == TN_BWD_ANY_ACT && act.over_features) {
            /* Not before the rows' sums are known: kept where dx was. */
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (column < width) both[i >> 1 & 1] += x[i] * d[i];
                TN_BWD_AT(dx, j, i >> 1, i & 1) = d[i];
            }
            continue;
        }
        if (Act == TN_BWD_ANY_ACT && act.over_sequence)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int i = 4 * (k >> 1) + (k & 1);
                float off = act.columns[column + 8 * (k >> 1) + at.pair + (k & 1)].z;
                d[i] -= off, d[i + 2] -= off;
            }
#pragma unroll
        for (int i = 0; i < 8; i++) d[i] *= slope[i];
        tn_bwd_pack(words, d);
        tn_bwd_write(to, at, chunk, words);
    }
    if (Act != TN_BWD_ANY_ACT || !act.over_features) return;
    tn_bwd_row_sums(exchange, at, both);
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * (Z::W / 2) + 16 * j, chunk = column / 8;
        uint32_t words[4];
        float x[8], slope[8];
        tn_bwd_read(words, raw, at, chunk);
        tn_bwd_unpack(x, words);
        act.template apply<Act>(x, slope, column + at.pair);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] *= TN_BWD_AT(dx, j, i >> 1, i & 1) - both[i >> 1 & 1];
        tn_bwd_pack(words, x);
        tn_bwd_write(to, at, chunk, words);
    }
}

/* Calls f<Act, Straight>: the common ways have code without branches. */
#define TN_BWD_AS(act, turn, f)                                            \
    do {                                                                   \
        if (!(turn).straight) f(TN_BWD_ANY_ACT, false);                    \
        else if ((act).act == TN_SILU) f(TN_SILU, true);                   \
        else if ((act).act == TN_NONE) f(TN_NONE, true);                   \
        else f(TN_BWD_ANY_ACT, true);                                      \
    } while (0)

/* encoded = lrpe(act(raw)), each thread its own elements. `how`: TN_BWD_*. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_encode(uint32_t encoded, uint32_t raw, const tn_bwd_place &at, const tn_bwd_act &act, const tn_bwd_turn &turn, int width, int how) {
#define TN_BWD_F(Act, Straight) tn_bwd_encode_as<Z, Act, Straight>(encoded, raw, at, act, turn, width, how)
    TN_BWD_AS(act, turn, TN_BWD_F);
#undef TN_BWD_F
}

/* From dx, the gradient of the encoded tile in accumulators, to that of the raw tile, written to `to`. `sums` takes what is summed over all
 * tokens of a head: for each group of columns, of its columns k (pair, pair + 1, pair + 8, pair + 9), coordinate x dA (rotate: k < 2) or p dp. */
template <typename Z, typename Sums>
TN_TILE_DEVICE void tn_bwd_decode(uint32_t to, uint32_t raw, float (&dx)[Z::X][4], const tn_bwd_place &at, const tn_bwd_act &act,
                                  const tn_bwd_turn &turn, tn_bwd_exchange &exchange, int width, int how, int what, Sums &sums) {
#define TN_BWD_F(Act, Straight) tn_bwd_decode_as<Z, Act, Straight>(to, raw, dx, at, act, turn, exchange, width, how, what, sums)
    TN_BWD_AS(act, turn, TN_BWD_F);
#undef TN_BWD_F
}

/* Sums over a head in registers. */
template <typename Z> struct tn_bwd_sums {
    float at[Z::G][4];

    __device__ __forceinline__ void clear() { tn_bwd_clear(at); }
    __device__ __forceinline__ void add(int j, const float (&part)[4]) {
#pragma unroll
        for (int k = 0; k < 4; k++) at[j][k] += part[k];
    }
    __device__ __forceinline__ float4 get(int j) const { return make_float4(at[j][0], at[j][1], at[j][2], at[j][3]); }
};
/* Or in shared memory, where registers are short. */
template <typename Z> struct tn_bwd_sums_shared {
    float4 *room; /* [G][threads] */

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < Z::G; j++) room[j * TN_BWD_THREADS + threadIdx.x] = make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void add(int j, const float (&part)[4]) {
        float4 sum = room[j * TN_BWD_THREADS + threadIdx.x];
        sum.x += part[0], sum.y += part[1], sum.z += part[2], sum.w += part[3];
        room[j * TN_BWD_THREADS + threadIdx.x] = sum;
    }
    __device__ __forceinline__ float4 get(int j) const { return room[j * TN_BWD_THREADS + threadIdx.x]; }
};

/* Adds what the threads of a column have, in a fixed order: to[slot] of W. `room` is for [G][threads] float4. Barriers before and after it
 * are the caller's. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_add_up(float *to, const float4 *room) {
    for (int slot = threadIdx.x; slot < Z::W; slot += TN_BWD_THREADS) {
        int group = slot / (Z::W / 2), j = slot % (Z::W / 2) / 16, in = slot % 16, k = 2 * (in >> 3) + (in & 1);
        float sum = 0;
        for (int row = 0; row < 32; row++) {
            const float4 *from = room + j * TN_BWD_THREADS + (group * 4 + row / 8) * 32 + row % 8 * 4 + (in % 8) / 2;
            sum += reinterpret_cast<const float *>(from)[k];
        }
        to[slot] = sum;
    }
}

/* ---- which tiles a block has ---- */

TN_TILE_DEVICE uint32_t tn_bwd_first(const tn_bwd_deal &deal, uint32_t block) { return (uint32_t)((uint64_t)deal.all * block / deal.blocks); }
TN_TILE_DEVICE uint32_t tn_bwd_owner(const tn_bwd_deal &deal, uint32_t tile) { return (uint32_t)((((uint64_t)tile + 1) * deal.blocks - 1) / deal.all); }

#endif
