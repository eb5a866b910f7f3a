/* What the two passes of the backward of non-causal linear attention share: places of threads, products of tiles, and the way from a raw
 * tile of q, k, v or g to what is multiplied (encode) and from a gradient back to the raw one (decode).
 *
 * A block has two or four groups of four warps and walks tiles of 64 tokens. Warp w of a group has rows 16 w .. 16 w + 15, and the groups
 * share the columns evenly, so that every element of a raw tile, of what it becomes and of its gradient belongs to one thread, in the order
 * of accumulators. With two groups:
 *
 *     raw (W wide)      | group 0        | group 1        |
 *     encoded, rotate   | group 0        | group 1        |                      slots: pairs stand 8 columns apart
 *     encoded, cosine   | group 0: cos, sin  | group 1: cos, sin   |             2 W wide, 32 cosines and 32 sines in turn
 *
 * A column of such an order is a slot; tn_bwd_feature says which feature it is. Features beyond the width are zero. */
#ifndef TENON_LINEAR_ATTENTION_BWD_TILES_CUH
#define TENON_LINEAR_ATTENTION_BWD_TILES_CUH

#include "linear_attention_bwd.h"
#include "linear_attention_tiles.cuh"

#define TN_BWD_PANEL (TN_BWD_TOKENS * 128) /* bytes of 64 columns of a tile of tokens */

/* W: padded width. */
template <int W_, bool Cosine_, bool Wgmma_, int Groups_ = 2> struct tn_bwd_shape {
    static constexpr int W = W_, F = Cosine_ ? 2 * W : W; /* raw and encoded width */
    static constexpr bool cosine = Cosine_, wgmma = Wgmma_;
    static constexpr int groups = Groups_, threads = 128 * groups;
    static constexpr int share = W / groups;               /* raw columns of a group .. */
    static constexpr int G = share / 16, N = share / 8;    /* in sixteens and in blocks of 8, .. */
    static constexpr int X = F / groups / 8;               /* and encoded, in blocks of 8: */
    static constexpr int H = X > 8 ? X / 8 : 1, P = X / H; /* H parts, so that a thread never holds the gradient of more than P blocks */
    static constexpr int run = 32;                         /* cosine: of so many features the cosines, then of these the sines, .. */
    static constexpr int raw_bytes = TN_BWD_TOKENS * W * 2, encoded_bytes = TN_BWD_TOKENS * F * 2, state_bytes = F * W * 2;
    /* dS: a group has M times 64 rows and 8 C columns; where there are less 64s of rows than groups, `parts` groups part the columns. */
    static constexpr int M = F / 64 > groups ? F / 64 / groups : 1, parts = F / 64 < groups ? groups * 64 / F : 1, C = W / 8 / parts;
};

/* Is there code for this shape? Kernels of others are left empty for this architecture, and are not asked for. */
template <typename Z> constexpr bool tn_bwd_has_code = !Z::wgmma || TN_TILE_WGMMA;

/* The feature of slot s of the encoded width, or -1. `d`: raw width; rotate: pairs. */
template <typename Z> TN_TILE_DEVICE int tn_bwd_feature(bool rotate, int d, int slot) {
    if (!Z::cosine) return slot < d ? tn_slot_feature(rotate, d, slot) : -1;
    int half = slot / Z::run, feature = (half >> 1) * Z::run + slot % Z::run;
    return feature < d ? (half & 1) * d + feature : -1;
}

/* ---- kernels that follow each other ---- */

/* The next kernel of the stream may come while this one still runs, .. */
TN_TILE_DEVICE void tn_bwd_let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}
/* .. and waits here until this one is done and its results are seen. */
TN_TILE_DEVICE void tn_bwd_await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
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
    __device__ __forceinline__ uint32_t block(int chunk) const {
        return (chunk >> 3) * TN_BWD_PANEL + of_row + (swizzle ^ (chunk & 6) << 4);
    }
};

/* 16 x 16 of this warp: register r holds rows row + 8 (r & 1), columns 8 (r >> 1) + pair, + 1. */
TN_TILE_DEVICE void tn_bwd_read(uint32_t (&x)[4], uint32_t tile, const tn_bwd_place &at, int chunk) {
    tn_tile_blocks(x, tile + at.block(chunk));
}
/* All that a thread has of a tile W wide. Its loads go out together, before anything is computed. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_read_all(uint32_t (&x)[Z::G][4], uint32_t tile, const tn_bwd_place &at) {
#pragma unroll
    for (int j = 0; j < Z::G; j++) tn_bwd_read(x[j], tile, at, at.group * Z::N + 2 * j);
}
TN_TILE_DEVICE void tn_bwd_write(uint32_t tile, const tn_bwd_place &at, int chunk, const uint32_t (&x)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(tile + at.block(chunk)), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
#else
#pragma unroll
    for (int r = 0; r < 4; r++)
        tn_tile_write_word(tile + tn_tile_pair(TN_BWD_TOKENS, at.row + 8 * (r & 1), 8 * (chunk + (r >> 1)) + at.pair), x[r]);
#endif
}
template <typename Z> TN_TILE_DEVICE void tn_bwd_write_all(uint32_t tile, const tn_bwd_place &at, const uint32_t (&x)[Z::G][4]) {
#pragma unroll
    for (int j = 0; j < Z::G; j++) tn_bwd_write(tile, at, at.group * Z::N + 2 * j, x[j]);
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
#define TN_BWD_AT(c, j, r, i) (c)[2 * (j) + ((r) >> 1)][((r)&1) * 2 + (i)]

/* ---- rows of the tensors ---- */

/* Sends for the rows of a tile; those beyond `rows` become zero. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_fetch(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int rows, int width, bool rotate) {
    constexpr int per_row = Z::W / 8, step = Z::threads / per_row;
    static_assert(step % 8 == 0, "rows of a thread are swizzled alike");
    const int row = (int)threadIdx.x / per_row, chunk = (int)threadIdx.x % per_row;
    if (chunk * 8 >= width) rows = 0;
    from += row * stride + tn_slot_chunk(rotate, width, chunk) * 8;
    to += tn_tile_chunk(TN_BWD_TOKENS, row, chunk);
#pragma unroll
    for (int i = 0; i < TN_BWD_TOKENS / step; i++) {
        tn_tile_fetch(to + i * step * 128, from, row + i * step < rows);
        from += step * stride;
    }
}

/* Writes what this warp owns of a tile to memory; the warp has just written it. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_store(uint32_t from, const tn_bwd_place &place, tn_cuda_bf16 *to, int64_t stride, int rows, int width,
                                 bool rotate) {
    constexpr int per_row = Z::share / 8, step = 32 / per_row;
    __syncwarp();
    const int chunk = place.group * per_row + place.lane % per_row, row = 16 * place.warp + place.lane / per_row;
    if (chunk * 8 >= width) rows = 0;
    to += row * stride + tn_slot_chunk(rotate, width, chunk) * 8;
    from += (chunk >> 3) * TN_BWD_PANEL + row * 128;
    const uint32_t swizzle = ((chunk ^ row) & 7) << 4;
    uint4 x[16 / step];
#pragma unroll
    for (int i = 0; i < 16 / step; i++) x[i] = tn_tile_read(from + i * step * 128 + (swizzle ^ (i * step & 7) << 4));
#pragma unroll
    for (int i = 0; i < 16 / step; i++) {
        if (row + i * step < rows)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                         :
                         : "l"(to), "r"(x[i].x), "r"(x[i].y), "r"(x[i].z), "r"(x[i].w)
                         : "memory");
        to += step * stride;
    }
    __syncwarp();
}

/* A state (f32 [d'][e], dense) times `scale` as a bf16 tile, rows in the order of slots. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_load_state(uint32_t to, const float *state, float scale, int d, int e, bool rotate) {
    constexpr int per_row = Z::W / 8;
#pragma unroll 4
    for (int at = threadIdx.x; at < Z::F * per_row; at += Z::threads) {
        int slot = at / per_row, chunk = at % per_row, feature = tn_bwd_feature<Z>(rotate, d, slot);
        uint4 words = make_uint4(0, 0, 0, 0);
        if (feature >= 0 && chunk * 8 < e) {
            const float4 *from = reinterpret_cast<const float4 *>(state + feature * e + chunk * 8);
            float4 a = from[0], b = from[1];
            words = make_uint4(tn_pair_of(scale * a.x, scale * a.y), tn_pair_of(scale * a.z, scale * a.w),
                               tn_pair_of(scale * b.x, scale * b.y), tn_pair_of(scale * b.z, scale * b.w));
        }
        tn_tile_write(to + tn_tile_chunk(Z::F, slot, chunk), words);
    }
}

/* ---- products ---- */

#define TN_BWD_C4(c, j) "+f"((c)[j][0]), "+f"((c)[j][1]), "+f"((c)[j][2]), "+f"((c)[j][3])

/* The low half of a wgmma descriptor for an operand whose rows are k (a panel apart from the next 64 columns), or whose columns are k; it
 * moves on by bytes / 16. The high half: groups of 8 rows are 1024 bytes apart, 128-byte swizzle. */
TN_TILE_DEVICE uint32_t tn_bwd_rows_from(uint32_t from, uint32_t panel) { return from >> 4 | (panel >> 4) << 16; }
TN_TILE_DEVICE uint32_t tn_bwd_columns_from(uint32_t from) { return from >> 4 | 1u << 16; }
TN_TILE_DEVICE uint64_t tn_bwd_descriptor(uint32_t low) { return (uint64_t)low | (uint64_t)(1024 >> 4 | 1u << 30) << 32; }
/* The same for k-th 16 columns. */
#define TN_BWD_COLUMNS(k, panel) (((k) >> 2) * ((panel) >> 4) + ((k)&3) * 2)

/* c [64 x 8 N] (+)= a b, both in shared memory. A by rows: its rows are k. */
template <bool ARows, bool BRows> TN_TILE_DEVICE void tn_bwd_wgmma(float (&c)[4][4], uint64_t a, uint64_t b, int add) {
#if TN_TILE_WGMMA
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %18, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, add, 1, 1, %19, %20;\n}"
                 : TN_BWD_C4(c, 0), TN_BWD_C4(c, 1), TN_BWD_C4(c, 2), TN_BWD_C4(c, 3)
                 : "l"(a), "l"(b), "r"(add), "n"(ARows ? 1 : 0), "n"(BRows ? 1 : 0));
#endif
}
template <bool ARows, bool BRows> TN_TILE_DEVICE void tn_bwd_wgmma(float (&c)[8][4], uint64_t a, uint64_t b, int add) {
#if TN_TILE_WGMMA
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, add, 1, 1, %35, %36;\n}"
                 : TN_BWD_C4(c, 0), TN_BWD_C4(c, 1), TN_BWD_C4(c, 2), TN_BWD_C4(c, 3), TN_BWD_C4(c, 4), TN_BWD_C4(c, 5), TN_BWD_C4(c, 6),
                   TN_BWD_C4(c, 7)
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
                 : TN_BWD_C4(c, 0), TN_BWD_C4(c, 1), TN_BWD_C4(c, 2), TN_BWD_C4(c, 3), TN_BWD_C4(c, 4), TN_BWD_C4(c, 5), TN_BWD_C4(c, 6),
                   TN_BWD_C4(c, 7), TN_BWD_C4(c, 8), TN_BWD_C4(c, 9), TN_BWD_C4(c, 10), TN_BWD_C4(c, 11), TN_BWD_C4(c, 12),
                   TN_BWD_C4(c, 13), TN_BWD_C4(c, 14), TN_BWD_C4(c, 15)
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
        const uint32_t left = tn_bwd_columns_from(a),
                       right = tn_bwd_rows_from(state + tn_tile_pair(Z::F, 0, at.group * Z::share), Z::F * 128);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < Z::F / 16; k++)
            tn_bwd_wgmma<false, true>(c, tn_bwd_descriptor(left + TN_BWD_COLUMNS(k, TN_BWD_PANEL)), tn_bwd_descriptor(right + k * 128),
                                      k != 0);
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

/* c = a (64 x W) state': this warp's rows, a part of the slots of its group. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_times_state_transposed(float (&c)[Z::P][4], uint32_t a, uint32_t state, int part, const tn_bwd_place &at) {
    const int slot = 8 * (at.group * Z::X + part * Z::P);
    if constexpr (Z::wgmma) {
        const uint32_t left = tn_bwd_columns_from(a), right = tn_bwd_columns_from(state + slot * 128);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < Z::W / 16; k++)
            tn_bwd_wgmma<false, false>(c, tn_bwd_descriptor(left + TN_BWD_COLUMNS(k, TN_BWD_PANEL)),
                                       tn_bwd_descriptor(right + TN_BWD_COLUMNS(k, Z::F * 128)), k != 0);
        tn_wgmma_commit();
    } else {
        tn_bwd_clear(c);
#pragma unroll 2
        for (int k = 0; k < Z::W / 16; k++) {
            uint32_t left[4], right[4];
            tn_fragment_a(left, a, TN_BWD_TOKENS, 16 * at.warp, 2 * k, 2 * k + 1);
#pragma unroll
            for (int j = 0; j < Z::P; j += 2) {
                tn_fragment_b_transposed(right, state, Z::F, slot + 8 * j, 2 * k);
                tn_mma(c[j], left, right[0], right[1]);
                tn_mma(c[j + 1], left, right[2], right[3]);
            }
        }
    }
}

/* c += a' b, a encoded and b W wide, both of 64 tokens; those 64s of rows that go with a part. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_add_outer(float (&c)[Z::M][Z::C][4], uint32_t a, uint32_t b, int part, const tn_bwd_place &at) {
    if constexpr (Z::wgmma) {
        const uint32_t left = tn_bwd_rows_from(a + at.group / Z::parts * Z::M * TN_BWD_PANEL, TN_BWD_PANEL);
        const uint32_t right = tn_bwd_rows_from(b + tn_tile_pair(TN_BWD_TOKENS, 0, at.group % Z::parts * Z::C * 8), TN_BWD_PANEL);
        tn_wgmma_begin();
#pragma unroll
        for (int i = part * Z::M / Z::H; i < (part + 1) * Z::M / Z::H; i++)
#pragma unroll
            for (int k = 0; k < TN_BWD_TOKENS / 16; k++)
                tn_bwd_wgmma<true, true>(c[i], tn_bwd_descriptor(left + i * (TN_BWD_PANEL >> 4) + k * 128),
                                         tn_bwd_descriptor(right + k * 128), 1);
        tn_wgmma_commit();
    } else {
        const int chunk = at.group % Z::parts * Z::C;
#pragma unroll
        for (int i = part * Z::M / Z::H; i < (part + 1) * Z::M / Z::H; i++) {
            const int slots = ((at.group / Z::parts * Z::M + i) * 64 + 16 * at.warp) / 8;
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

/* Code for an activation known when compiled - none, silu, softmax over the features - or for any, told apart when it runs. */
enum { TN_BWD_ANY_ACT = -1 };

#define TN_BWD_LOG2_E 1.44269504088896341f
TN_TILE_DEVICE float tn_bwd_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
TN_TILE_DEVICE float tn_bwd_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* An operand's activation, as a tile needs it. Softmax over the sequence has a column's maximum, 1 / sum, and the sum of p dp that its
 * backward takes away in `columns`; softmax over the features keeps maximum and log2 of the sum of its two rows here. */
struct tn_bwd_act {
    int act;
    bool over_sequence, over_features;
    const float4 *columns;
    float maximum[2], log_sum[2];

    __device__ __forceinline__ tn_bwd_act(int kind, bool sequence, const float4 *statistics)
        : act(kind), over_sequence(kind == TN_SOFTMAX && sequence), over_features(kind == TN_SOFTMAX && !sequence), columns(statistics) {
        maximum[0] = maximum[1] = log_sum[0] = log_sum[1] = 0;
    }

    /* The rows' statistics put aside in `columns`, which softmax over the features leaves free, and taken back. */
    __device__ __forceinline__ void put_aside(const tn_bwd_place &at) const {
        float4 *to = const_cast<float4 *>(columns);
        if (at.group != 0 || (at.lane & 3) != 0) return;
        to[at.row] = make_float4(maximum[0], log_sum[0], 0, 0);
        to[at.row + 8] = make_float4(maximum[1], log_sum[1], 0, 0);
    }
    __device__ __forceinline__ void take_back(const tn_bwd_place &at) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const float4 from = columns[at.row + 8 * row];
            maximum[row] = from.x, log_sum[row] = from.y;
        }
    }

    /* x of a group becomes act(x), slope act'(x) or, with softmax, p. */
    template <int Act> __device__ __forceinline__ void apply(float (&x)[8], float (&slope)[8], int column) const {
        if constexpr (Act != TN_BWD_ANY_ACT && Act != TN_SOFTMAX) {
            tn_bwd_activate(x, slope, Act);
        } else if (Act == TN_SOFTMAX || over_features) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                slope[i] = x[i] = tn_bwd_exp2(fmaf(x[i] - maximum[i >> 1 & 1], TN_BWD_LOG2_E, -log_sum[i >> 1 & 1]));
        } else if (!over_sequence) {
            tn_bwd_activate(x, slope, act);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float4 of = columns[column + 8 * (k >> 1) + (k & 1)];
                const int i = 4 * (k >> 1) + (k & 1);
                slope[i] = x[i] = __expf(x[i] - of.x) * of.y;
                slope[i + 2] = x[i + 2] = __expf(x[i + 2] - of.x) * of.y;
            }
        }
    }
};

/* ---- sums over the rows of a tile, which one warp of each group shares ---- */

template <int Groups> struct tn_bwd_exchange {
    float2 *room; /* [2][Groups][64] */
    int turn;

    /* From (a, b) of this thread's two rows, already summed over its quad, to those of every group. All threads of the block call it. */
    __device__ __forceinline__ void share(const tn_bwd_place &at, const float2 (&mine)[2], float2 (&all)[2][Groups]) {
        float2 *now = room + turn * Groups * TN_BWD_TOKENS;
        turn ^= 1;
        if ((at.lane & 3) == 0) {
            now[at.group * TN_BWD_TOKENS + at.row] = mine[0];
            now[at.group * TN_BWD_TOKENS + at.row + 8] = mine[1];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < Groups; i++) {
            all[0][i] = now[i * TN_BWD_TOKENS + at.row];
            all[1][i] = now[i * TN_BWD_TOKENS + at.row + 8];
        }
    }
};

/* Both rows' sums. */
template <int Groups> TN_TILE_DEVICE void tn_bwd_row_sums(tn_bwd_exchange<Groups> &exchange, const tn_bwd_place &at, float (&sum)[2]) {
    float2 mine[2], all[2][Groups];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
        mine[row] = make_float2(sum[row], 0);
    }
    exchange.share(at, mine, all);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        sum[row] = 0;
#pragma unroll
        for (int i = 0; i < Groups; i++) sum[row] += all[row][i].x;
    }
}

/* Softmax over the features: maximum and log2 of the sum of a raw tile's rows. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_row_softmax(tn_bwd_act &act, tn_bwd_exchange<Z::groups> &exchange, const tn_bwd_place &at, uint32_t raw,
                                       int width) {
    uint32_t words[Z::G][4];
    float2 mine[2], all[2][Z::groups];
    float most[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 };
    tn_bwd_read_all<Z>(words, raw, at);
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const bool there = at.group * Z::share + 16 * j < width;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float more = fmaxf(tn_pair_low(words[j][r]), tn_pair_high(words[j][r]));
            most[r & 1] = fmaxf(most[r & 1], there ? more : -INFINITY);
        }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xffffffffu, most[row], 1));
        most[row] = fmaxf(most[row], __shfl_xor_sync(0xffffffffu, most[row], 2));
    }
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const bool there = at.group * Z::share + 16 * j < width;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float of = tn_bwd_exp2((tn_pair_low(words[j][r]) - most[r & 1]) * TN_BWD_LOG2_E);
            of += tn_bwd_exp2((tn_pair_high(words[j][r]) - most[r & 1]) * TN_BWD_LOG2_E);
            sum[r & 1] += there ? of : 0.0f;
        }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 1);
        sum[row] += __shfl_xor_sync(0xffffffffu, sum[row], 2);
        mine[row] = make_float2(most[row], sum[row]);
    }
    exchange.share(at, mine, all);
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float top = -INFINITY, of_row = 0;
#pragma unroll
        for (int i = 0; i < Z::groups; i++) top = fmaxf(top, all[row][i].x);
            /* A group without features has sum 0 and maximum -inf: 2^-inf = 0. */
#pragma unroll
        for (int i = 0; i < Z::groups; i++) of_row = fmaf(all[row][i].y, tn_bwd_exp2((all[row][i].x - top) * TN_BWD_LOG2_E), of_row);
        act.maximum[row] = top;
        act.log_sum[row] = tn_bwd_log2(of_row);
    }
}

/* ---- LRPE ---- */

/* Where a head's angles are kept, for a tile that is `straight`: with one axis, beyond the leading tokens, the coordinates of rows follow
 * each other. Row 16 w + g of a tile turns by the angle of row 16 w, then g theta; row 16 w + g + 8 by another 8 theta: but for the first,
 * which a warp computes for its rows and columns at every tile, all come from a table of the head. */
template <typename Z> struct tn_bwd_angles {
    static constexpr int angles = Z::W, row = angles + 8; /* 8: rows of the table begin in different banks */
    tn_tile_rate rate[angles];
    float2 steps[9][row]; /* cos and sin of g theta */
    union {
        float2 first[Z::groups][4][Z::share];                  /* of a warp's first row, by the angle's place among the warp's own */
        float coordinates[2][TN_LRPE_MAX_AXES][TN_BWD_TOKENS]; /* a tile that is not straight: of its rows */
    };
    unsigned char axis[angles];
};

/* How a tile's features turn: not at all, straight (see above), or with coordinates from a table. Code is for one of the first two, or for
 * any way. */
enum { TN_BWD_STILL, TN_BWD_STRAIGHT, TN_BWD_BENT, TN_BWD_ANY_WAY };

/* The angles of a tile. */
template <typename Z> struct tn_bwd_turn {
    tn_bwd_angles<Z> *of;
    const float (*coordinates)[TN_BWD_TOKENS];
    int way;
    int rows;    /* that there are */
    float first; /* straight: the first row's coordinate */

    __device__ __forceinline__ float there(int row) const { return row < rows ? 1.0f : 0.0f; }

    /* cos and sin of two neighbouring angles in a thread's two rows, and the rows' coordinates there, 0 where there is no row. `place`: the
     * first angle's among the warp's own. */
    template <int Turn>
    __device__ __forceinline__ void angles(int angle, int place, const tn_bwd_place &where, float (&c)[2][2], float (&s)[2][2],
                                           float (&weight)[2][2]) const {
        if (Turn == TN_BWD_STRAIGHT || way == TN_BWD_STRAIGHT) {
            const float4 a = *reinterpret_cast<const float4 *>(&of->first[where.group][where.warp][place]);
            const float4 b = *reinterpret_cast<const float4 *>(&of->steps[where.lane >> 2][angle]);
            const float4 eight = *reinterpret_cast<const float4 *>(&of->steps[8][angle]);
            c[0][0] = a.x, s[0][0] = a.y, c[1][0] = a.z, s[1][0] = a.w;
            tn_turn_on(c[0][0], s[0][0], b.x, b.y);
            tn_turn_on(c[1][0], s[1][0], b.z, b.w);
            c[0][1] = c[0][0], s[0][1] = s[0][0], c[1][1] = c[1][0], s[1][1] = s[1][0];
            tn_turn_on(c[0][1], s[0][1], eight.x, eight.y);
            tn_turn_on(c[1][1], s[1][1], eight.z, eight.w);
#pragma unroll
            for (int row = 0; row < 2; row++)
                weight[0][row] = weight[1][row] = there(where.row + 8 * row) * (first + (float)(where.row + 8 * row));
        } else {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const float *from = coordinates[of->axis[angle + k]] + where.row;
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    tn_turn_of(from[8 * row], of->rate[angle + k], c[k][row], s[k][row]);
                    weight[k][row] = from[8 * row] * there(where.row + 8 * row);
                }
            }
        }
    }
};

/* A head's angles. All threads of the block call it; a barrier has to follow. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_load_angles(tn_bwd_angles<Z> *to, const tn_lrpe_grid &grid, const float *theta, uint32_t head) {
    for (int at = threadIdx.x; at < 9 * Z::W; at += Z::threads) {
        const int i = at % Z::W, step = at / Z::W;
        const int axis = i < grid.angles ? tn_lrpe_axis(&grid, i) : -1;
        const float of = axis < 0 ? 0.0f : theta[(grid.theta_heads == 1 ? 0 : head) * grid.theta_width + tn_lrpe_theta_column(&grid, i)];
        const tn_tile_rate rate = tn_tile_rate_of(of);
        float2 turned;
        tn_turn_of((float)step, rate, turned.x, turned.y);
        to->steps[step][i] = turned;
        if (step == 0) {
            to->rate[i] = rate;
            to->axis[i] = (unsigned char)(axis < 0 ? 0 : axis);
        }
    }
}

/* A warp's first angles for a tile that is straight; `at`: the coordinate of the warp's first row. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_load_first(tn_bwd_angles<Z> *to, const tn_bwd_place &where, float at) {
    constexpr int n = Z::cosine ? Z::share : Z::share / 2;
    __syncwarp();
#pragma unroll
    for (int i = where.lane; i < n; i += 32) {
        float2 turned;
        tn_turn_of(at, to->rate[where.group * n + i], turned.x, turned.y);
        to->first[where.group][where.warp][i] = turned;
    }
    __syncwarp();
}

/* The coordinates of a tile's rows, where they are not straight. A barrier has to follow. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_load_coordinates(float (*to)[TN_BWD_TOKENS], const tn_lrpe_grid &grid, int64_t first) {
    for (int i = threadIdx.x; i < grid.axes * TN_BWD_TOKENS; i += Z::threads)
        to[i / TN_BWD_TOKENS][i % TN_BWD_TOKENS] = (float)tn_lrpe_coordinate(&grid, first + i % TN_BWD_TOKENS, i / TN_BWD_TOKENS);
}

/* ---- encode, decode ---- */

template <typename Z, int Act, int Turn>
TN_TILE_DEVICE void tn_bwd_encode_as(uint32_t encoded, uint32_t raw, const tn_bwd_place &at, const tn_bwd_act &act,
                                     const tn_bwd_turn<Z> &turn, int width) {
    uint32_t words[Z::G][4], more[Z::G][4];
    tn_bwd_read_all<Z>(words, raw, at);
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        const int column = at.group * Z::share + 16 * j;
        float x[8], y[8];
        tn_bwd_unpack(x, words[j]);
        act.template apply<Act>(x, y, column + at.pair);
        if ((Act == TN_BWD_ANY_ACT || Act == TN_SOFTMAX) && column >= width)
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = 0;
        if constexpr (Z::cosine) {
#pragma unroll
            for (int two = 0; two < 2; two++) {
                float c[2][2], s[2][2], weight[2][2];
                turn.template angles<Turn>(column + 8 * two + at.pair, 16 * j + 8 * two + at.pair, at, c, s, weight);
#pragma unroll
                for (int row = 0; row < 2; row++)
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const int i = 2 * (two * 2 + row) + k;
                        y[i] = x[i] * s[k][row];
                        x[i] *= c[k][row];
                    }
            }
            tn_bwd_pack(more[j], y);
        } else if (Turn != TN_BWD_STILL && turn.way != TN_BWD_STILL) {
            float c[2][2], s[2][2], weight[2][2];
            turn.template angles<Turn>(column / 2 + at.pair, 8 * j + at.pair, at, c, s, weight);
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    float first = x[2 * row + k], second = x[4 + 2 * row + k];
                    x[2 * row + k] = fmaf(first, c[k][row], -second * s[k][row]);
                    x[4 + 2 * row + k] = fmaf(first, s[k][row], second * c[k][row]);
                }
        }
        tn_bwd_pack(words[j], x);
    }
#pragma unroll
    for (int j = 0; j < Z::G; j++) {
        if constexpr (Z::cosine) {
            constexpr int of_run = Z::run / 16;
            const int chunk = at.group * Z::X + (j / of_run * 2 * of_run + j % of_run) * 2;
            tn_bwd_write(encoded, at, chunk, words[j]);
            tn_bwd_write(encoded, at, chunk + Z::run / 8, more[j]);
        } else {
            tn_bwd_write(encoded, at, at.group * Z::X + 2 * j, words[j]);
        }
    }
}

/* One of H parts of a tile. Softmax needs the rows' sums of all parts before it can finish any: until then the gradient stays where dx was
 * or, of parts before the last, at `aside`, 2 KiB of shared memory of the warp's own. */
template <typename Z, int Part, int Act, int Turn, typename Sums>
TN_TILE_DEVICE void tn_bwd_decode_as(uint32_t to, uint32_t raw, uint32_t aside, float (&dx)[Z::P][4], const tn_bwd_place &at,
                                     const tn_bwd_act &act, const tn_bwd_turn<Z> &turn, tn_bwd_exchange<Z::groups> &exchange, int width,
                                     int what, Sums &sums, float (&both)[2]) {
    constexpr int of_part = Z::G / Z::H, begin = Part * of_part, end = begin + of_part;
    const bool softmax = Act == TN_SOFTMAX || (Act == TN_BWD_ANY_ACT && act.over_features);
    uint32_t words[4], ahead[4];
    tn_bwd_read(ahead, raw, at, at.group * Z::N + 2 * begin);
#pragma unroll
    for (int j = begin; j < end; j++) {
        const int column = at.group * Z::share + 16 * j;
#pragma unroll
        for (int r = 0; r < 4; r++) words[r] = ahead[r];
        if (j + 1 < end) tn_bwd_read(ahead, raw, at, column / 8 + 2);
        float x[8], slope[8], d[8];
        tn_bwd_unpack(x, words);
        act.template apply<Act>(x, slope, column + at.pair);
        float part[4] = { 0, 0, 0, 0 };
        if constexpr (Z::cosine) {
#pragma unroll
            for (int two = 0; two < 2; two++) {
                float c[2][2], s[2][2], weight[2][2];
                turn.template angles<Turn>(column + 8 * two + at.pair, 16 * j + 8 * two + at.pair, at, c, s, weight);
#pragma unroll
                for (int row = 0; row < 2; row++)
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const int r = 2 * two + row, i = 2 * r + k;
                        float first = TN_BWD_AT(dx, j - begin, r, k), second = TN_BWD_AT(dx, Z::P / 4 + j - begin, r, k);
                        d[i] = fmaf(first, c[k][row], second * s[k][row]);
                        part[2 * two + k] = fmaf(weight[k][row] * x[i], fmaf(c[k][row], second, -s[k][row] * first), part[2 * two + k]);
                    }
            }
        } else {
#pragma unroll
            for (int r = 0; r < 4; r++) d[2 * r] = TN_BWD_AT(dx, j - begin, r, 0), d[2 * r + 1] = TN_BWD_AT(dx, j - begin, r, 1);
            if (Turn != TN_BWD_STILL && turn.way != TN_BWD_STILL) {
                float c[2][2], s[2][2], weight[2][2];
                turn.template angles<Turn>(column / 2 + at.pair, 8 * j + at.pair, at, c, s, weight);
#pragma unroll
                for (int k = 0; k < 2; k++)
#pragma unroll
                    for (int row = 0; row < 2; row++) {
                        float first = d[2 * row + k], second = d[4 + 2 * row + k];
                        d[2 * row + k] = fmaf(first, c[k][row], second * s[k][row]);
                        d[4 + 2 * row + k] = fmaf(second, c[k][row], -first * s[k][row]);
                        part[k] = fmaf(weight[k][row], x[2 * row + k] * d[4 + 2 * row + k] - x[4 + 2 * row + k] * d[2 * row + k], part[k]);
                    }
            }
        }
        if constexpr (Act == TN_BWD_ANY_ACT) {
            if (what == TN_BWD_SUMS_SOFTMAX)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int i = 4 * (k >> 1) + (k & 1);
                    part[k] = x[i] * d[i] * turn.there(at.row) + x[i + 2] * d[i + 2] * turn.there(at.row + 8);
                }
            if (act.over_sequence)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int i = 4 * (k >> 1) + (k & 1);
                    float off = act.columns[column + 8 * (k >> 1) + at.pair + (k & 1)].z;
                    d[i] -= off, d[i + 2] -= off;
                }
        }
        if (what != TN_BWD_NO_SUMS) sums.add(j, part);
        if (softmax) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                both[i >> 1 & 1] += column < width ? x[i] * d[i] : 0.0f;
                if constexpr (Part + 1 < Z::H) tn_tile_write_word(aside + (8 * (j - begin) + i) * 128 + at.lane * 4, __float_as_uint(d[i]));
                else TN_BWD_AT(dx, j - begin, i >> 1, i & 1) = d[i];
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) d[i] *= slope[i];
            tn_bwd_pack(words, d);
            tn_bwd_write(to, at, column / 8, words);
        }
    }
    if (softmax && Part + 1 == Z::H) {
        tn_bwd_row_sums(exchange, at, both);
#pragma unroll
        for (int j = 0; j < Z::G; j++) {
            const int column = at.group * Z::share + 16 * j;
            float x[8], slope[8];
            tn_bwd_read(words, raw, at, column / 8);
            tn_bwd_unpack(x, words);
            act.template apply<Act>(x, slope, column + at.pair);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float d;
                if (j < begin) d = __uint_as_float(tn_tile_read_word(aside + (8 * j + i) * 128 + at.lane * 4));
                else d = TN_BWD_AT(dx, (j - begin) & (of_part - 1), i >> 1, i & 1);
                x[i] *= d - both[i >> 1 & 1];
            }
            tn_bwd_pack(words, x);
            tn_bwd_write(to, at, column / 8, words);
        }
    }
}

/* Calls f(Act, Turn): the common ways have code without branches, all others share one. */
#define TN_BWD_AS(act, turn, f)                                                        \
    do {                                                                               \
        const int act_ = (act).over_sequence ? (int)TN_BWD_ANY_ACT : (act).act;        \
        const bool common_ = act_ == TN_NONE || act_ == TN_SILU || act_ == TN_SOFTMAX; \
        if (!common_ || (turn).way == TN_BWD_BENT) {                                   \
            f(TN_BWD_ANY_ACT, TN_BWD_ANY_WAY);                                         \
        } else if (Z::cosine || (turn).way == TN_BWD_STRAIGHT) {                       \
            if (act_ == TN_SILU) f(TN_SILU, TN_BWD_STRAIGHT);                          \
            else if (act_ == TN_NONE) f(TN_NONE, TN_BWD_STRAIGHT);                     \
            else f(TN_SOFTMAX, TN_BWD_STRAIGHT);                                       \
        } else if constexpr (!Z::cosine) {                                             \
            if (act_ == TN_NONE) f(TN_NONE, TN_BWD_STILL);                             \
            else if (act_ == TN_SILU) f(TN_SILU, TN_BWD_STILL);                        \
            else f(TN_SOFTMAX, TN_BWD_STILL);                                          \
        }                                                                              \
    } while (0)

/* encoded = lrpe(act(raw)), each thread its own elements. */
template <typename Z>
TN_TILE_DEVICE void tn_bwd_encode(uint32_t encoded, uint32_t raw, const tn_bwd_place &at, const tn_bwd_act &act, const tn_bwd_turn<Z> &turn,
                                  int width) {
#define TN_BWD_F(Act, Turn) tn_bwd_encode_as<Z, Act, Turn>(encoded, raw, at, act, turn, width)
    TN_BWD_AS(act, turn, TN_BWD_F);
#undef TN_BWD_F
}

/* From dx, a part of the gradient of the encoded tile in accumulators, to that of the raw tile, written to `to`. `sums` takes what is
 * summed over all tokens of a head: for each group of columns, of its columns k (pair, pair + 1, pair + 8, pair + 9), coordinate x dA
 * (rotate: k < 2) or p dp. */
template <typename Z, int Part, typename Sums>
TN_TILE_DEVICE void tn_bwd_decode(uint32_t to, uint32_t raw, uint32_t aside, float (&dx)[Z::P][4], const tn_bwd_place &at,
                                  const tn_bwd_act &act, const tn_bwd_turn<Z> &turn, tn_bwd_exchange<Z::groups> &exchange, int width,
                                  int what, Sums &sums, float (&both)[2]) {
#define TN_BWD_F(Act, Turn) tn_bwd_decode_as<Z, Part, Act, Turn>(to, raw, aside, dx, at, act, turn, exchange, width, what, sums, both)
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
        for (int j = 0; j < Z::G; j++) room[j * Z::threads + threadIdx.x] = make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void add(int j, const float (&part)[4]) {
        float4 sum = room[j * Z::threads + threadIdx.x];
        sum.x += part[0], sum.y += part[1], sum.z += part[2], sum.w += part[3];
        room[j * Z::threads + threadIdx.x] = sum;
    }
    __device__ __forceinline__ float4 get(int j) const { return room[j * Z::threads + threadIdx.x]; }
};

/* Adds what the threads of a column have, in a fixed order: to[slot] of W. `room` is for [G][threads] float4. Barriers before and after it
 * are the caller's. */
template <typename Z> TN_TILE_DEVICE void tn_bwd_add_up(float *to, const float4 *room) {
    for (int slot = threadIdx.x; slot < Z::W; slot += Z::threads) {
        int group = slot / Z::share, j = slot % Z::share / 16, in = slot % 16, k = 2 * (in >> 3) + (in & 1);
        float sum = 0;
        for (int row = 0; row < 32; row++) {
            const float4 *from = room + j * Z::threads + (group * 4 + row / 8) * 32 + row % 8 * 4 + (in % 8) / 2;
            sum += reinterpret_cast<const float *>(from)[k];
        }
        to[slot] = sum;
    }
}

/* ---- which tiles a block has ---- */

TN_TILE_DEVICE uint32_t tn_bwd_first(const tn_bwd_deal &deal, uint32_t block) {
    return (uint32_t)((uint64_t)deal.all * block / deal.blocks);
}
TN_TILE_DEVICE uint32_t tn_bwd_owner(const tn_bwd_deal &deal, uint32_t tile) {
    return (uint32_t)((((uint64_t)tile + 1) * deal.blocks - 1) / deal.all);
}

#endif
