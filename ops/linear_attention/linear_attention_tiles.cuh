/* Tiles of tokens in shared memory, and products of them on tensor cores: what the forward and backward kernels are made of.
 *
 * A tile is [rows][width] bf16, width 64 or 128, in panels of 64 columns. A row of a panel is 128 bytes, eight chunks of 16, and chunk c of
 * row r lies at place c ^ (r & 7). So 16-byte stores of rows, ldmatrix of 8 x 8 blocks (straight or transposed) and wgmma descriptors with
 * a 128-byte swizzle all meet the same tile without bank conflicts. A tile begins at a multiple of 1024 bytes. f32 numbers become three of
 * bf16 (x = x0 + x1 + x2, all 24 bits), and a product of f32 matrices six products of bf16 ones: those whose planes add up to 2 or less.
 *
 *     panel 0: row 0  | c0 c1 c2 c3 c4 c5 c6 c7 |    panel 1: row 0 | c8 c9 ...
 *              row 1  | c1 c0 c3 c2 c5 c4 c7 c6 |
 *              row 2  | c2 c3 c0 c1 c6 c7 c4 c5 |
 *
 * A thread is lane 4 g + t of its warp (g below 8, t below 4). A fragment A (16 x 16, four registers of two bf16) holds
 *     a[0]: row g,     columns 2t, 2t+1      a[2]: row g,     columns 2t+8, 2t+9
 *     a[1]: row g + 8, columns 2t, 2t+1      a[3]: row g + 8, columns 2t+8, 2t+9
 * a fragment B (16 x 8): b[0]: rows 2t, 2t+1 of column g; b[1]: rows 2t+8, 2t+9; an accumulator (16 x 8, f32): c[0], c[1]: row g, columns
 * 2t, 2t+1; c[2], c[3]: row g + 8. wgmma has the same A and the same accumulators, for each of its four warps. */
#ifndef TENON_LINEAR_ATTENTION_TILES_CUH
#define TENON_LINEAR_ATTENTION_TILES_CUH

#include "../activation_cuda.cuh"
#include "../lrpe_grid.h"

/* wgmma exists in code for sm_90a only. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TN_TILE_WGMMA 1
#else
#define TN_TILE_WGMMA 0
#endif

#define TN_TILE_DEVICE static __device__ __forceinline__

/* ---- addresses ---- */

TN_TILE_DEVICE uint32_t tn_tile_address(const void *shared) { return (uint32_t)__cvta_generic_to_shared(shared); }

/* Where a chunk (8 columns) of a row lies, in bytes from the tile's begin. `rows`: of the whole tile. */
TN_TILE_DEVICE uint32_t tn_tile_chunk(int rows, int row, int chunk) {
    return (uint32_t)((chunk >> 3) * rows * 128 + row * 128 + (((chunk ^ row) & 7) << 4));
}
/* Where an even column of a row lies: two bf16. */
TN_TILE_DEVICE uint32_t tn_tile_pair(int rows, int row, int column) {
    return tn_tile_chunk(rows, row, column >> 3) + (uint32_t)(column & 7) * 2;
}

/* ---- global to shared, without waiting ---- */

/* Sixteen bytes, or zeros where there is nothing: then `from` is not looked at. */
TN_TILE_DEVICE void tn_tile_fetch(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
TN_TILE_DEVICE void tn_tile_fetched() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int Pending> TN_TILE_DEVICE void tn_tile_await() { asm volatile("cp.async.wait_group %0;" : : "n"(Pending) : "memory"); }
/* Until at most `pending` groups of this thread are under way. */
TN_TILE_DEVICE void tn_tile_await_at_most(int pending) {
    switch (pending) {
    case 0: tn_tile_await<0>(); break;
    case 1: tn_tile_await<1>(); break;
    case 2: tn_tile_await<2>(); break;
    case 3: tn_tile_await<3>(); break;
    default: tn_tile_await<4>(); break;
    }
}

/* ---- shared memory by address ---- */

TN_TILE_DEVICE uint4 tn_tile_read(uint32_t from) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}
TN_TILE_DEVICE void tn_tile_write(uint32_t to, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" : : "r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
TN_TILE_DEVICE uint32_t tn_tile_read_word(uint32_t from) {
    uint32_t x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
    return x;
}
TN_TILE_DEVICE void tn_tile_write_word(uint32_t to, uint32_t x) { asm volatile("st.shared.b32 [%0], %1;" : : "r"(to), "r"(x) : "memory"); }

/* ---- pairs of bf16 ---- */

TN_TILE_DEVICE uint32_t tn_pair_of(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
TN_TILE_DEVICE float tn_pair_low(uint32_t pair) { return __uint_as_float(pair << 16); }
TN_TILE_DEVICE float tn_pair_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
/* Two f32 as three pairs that add up to them. */
TN_TILE_DEVICE void tn_pairs_of(uint32_t (&pair)[3], float low, float high) {
#pragma unroll
    for (int p = 0; p < 3; p++) {
        pair[p] = tn_pair_of(low, high);
        low -= tn_pair_low(pair[p]), high -= tn_pair_high(pair[p]);
    }
}
/* The product p of the six: which plane of a and of b, small ones first. */
TN_TILE_DEVICE constexpr int tn_plane_of_a(int p) { return p == 0 ? 2 : p == 2 || p == 3 ? 1 : 0; }
TN_TILE_DEVICE constexpr int tn_plane_of_b(int p) { return p == 1 ? 2 : p == 2 || p == 4 ? 1 : 0; }

/* ---- fragments ---- */

/* Four 8 x 8 blocks; lane l gives the address of row l % 8 of block l / 8. */
TN_TILE_DEVICE void tn_tile_blocks(uint32_t (&to)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}
TN_TILE_DEVICE void tn_tile_blocks_transposed(uint32_t (&to)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

/* A = 16 rows x columns of two chunks. The two chunks need not be neighbours: rotate pairs one of each half. */
TN_TILE_DEVICE void tn_fragment_a(uint32_t (&a)[4], uint32_t tile, int rows, int row, int chunk, int other_chunk) {
    int lane = threadIdx.x & 31;
    tn_tile_blocks(a, tile + tn_tile_chunk(rows, row + (lane & 15), lane & 16 ? other_chunk : chunk));
}
/* A = transposed: rows are the columns of two chunks, columns are 16 rows of the tile. */
TN_TILE_DEVICE void tn_fragment_a_transposed(uint32_t (&a)[4], uint32_t tile, int rows, int row, int chunk, int other_chunk) {
    int lane = threadIdx.x & 31;
    tn_tile_blocks_transposed(a, tile + tn_tile_chunk(rows, row + (lane & 7) + (lane & 16) / 2, lane & 8 ? other_chunk : chunk));
}
/* Two B's, k = 16 rows of the tile, n = its columns: b[0], b[1] of chunk, b[2], b[3] of chunk + 1. */
TN_TILE_DEVICE void tn_fragment_b(uint32_t (&b)[4], uint32_t tile, int rows, int row, int chunk) {
    int lane = threadIdx.x & 31;
    tn_tile_blocks_transposed(b, tile + tn_tile_chunk(rows, row + (lane & 15), chunk + (lane >> 4)));
}
/* Two B's of the tile transposed: n = its rows, k = the 16 columns of chunk and chunk + 1; b[0], b[1] of rows row.., b[2], b[3] of row +
 * 8... */
TN_TILE_DEVICE void tn_fragment_b_transposed(uint32_t (&b)[4], uint32_t tile, int rows, int row, int chunk) {
    int lane = threadIdx.x & 31;
    tn_tile_blocks(b, tile + tn_tile_chunk(rows, row + (lane & 7) + (lane & 16) / 2, chunk + (lane >> 3 & 1)));
}

/* c += a b, 16 x 8 x 16. */
TN_TILE_DEVICE void tn_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* c [16 x 8 N] += a (16 rows of the tile, from `row`: k) x (its columns: n). */
template <int N> TN_TILE_DEVICE void tn_mma_rows(float (&c)[N][4], const uint32_t (&a)[4], uint32_t tile, int rows, int row) {
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        uint32_t b[4];
        tn_fragment_b(b, tile, rows, row, j);
        tn_mma(c[j], a, b[0], b[1]);
        tn_mma(c[j + 1], a, b[2], b[3]);
    }
}

/* ---- wgmma: a warpgroup's 64 x n product, A in registers, B in shared memory; runs by itself until awaited ---- */

/* B = rows of a tile are k, columns n: `from` is the address of the first of 16 rows (a multiple of 8), `panel` the bytes of a panel. */
TN_TILE_DEVICE uint64_t tn_wgmma_rows(uint32_t from, uint32_t panel) {
    return (uint64_t)((from & 0x3ffff) >> 4) | (uint64_t)(panel >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
/* B = rows of a tile are n, 16 columns of a panel are k: `from` is the address of chunk 0, 2, 4 or 6 of row 0 of the panel (+ 32 bytes for
 * each 16 columns; the hardware swizzles). */
TN_TILE_DEVICE uint64_t tn_wgmma_columns(uint32_t from) {
    return (uint64_t)((from & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* Before the first of a batch, and before registers that a batch uses are touched again: */
TN_TILE_DEVICE void tn_wgmma_begin() {
#if TN_TILE_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
#endif
}
TN_TILE_DEVICE void tn_wgmma_commit() {
#if TN_TILE_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
#endif
}
template <int Pending> TN_TILE_DEVICE void tn_wgmma_await() {
#if TN_TILE_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(Pending) : "memory");
#endif
}
/* Ordinary writes to shared memory of this thread become visible to wgmma, once a barrier has been passed too. */
TN_TILE_DEVICE void tn_wgmma_publish() {
#if TN_TILE_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
#endif
}
/* The compiler must keep accumulators in place while wgmma works on them. */
template <int N> TN_TILE_DEVICE void tn_wgmma_hold(float (&c)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++) asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3]) : : "memory");
}

#define TN_WGMMA_C4(c, j) "+f"((c)[j][0]), "+f"((c)[j][1]), "+f"((c)[j][2]), "+f"((c)[j][3])

/* c [64 x 8 N] += a b; ByRows: b by tn_wgmma_rows, else by tn_wgmma_columns. N: 8 or 16. */
template <bool ByRows> TN_TILE_DEVICE void tn_wgmma(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
#if TN_TILE_WGMMA
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                 : TN_WGMMA_C4(c, 0), TN_WGMMA_C4(c, 1), TN_WGMMA_C4(c, 2), TN_WGMMA_C4(c, 3), TN_WGMMA_C4(c, 4), TN_WGMMA_C4(c, 5),
                   TN_WGMMA_C4(c, 6), TN_WGMMA_C4(c, 7)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ByRows ? 1 : 0));
#endif
}
template <bool ByRows> TN_TILE_DEVICE void tn_wgmma(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) {
#if TN_TILE_WGMMA
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, %69;"
                 : TN_WGMMA_C4(c, 0), TN_WGMMA_C4(c, 1), TN_WGMMA_C4(c, 2), TN_WGMMA_C4(c, 3), TN_WGMMA_C4(c, 4), TN_WGMMA_C4(c, 5),
                   TN_WGMMA_C4(c, 6), TN_WGMMA_C4(c, 7), TN_WGMMA_C4(c, 8), TN_WGMMA_C4(c, 9), TN_WGMMA_C4(c, 10), TN_WGMMA_C4(c, 11),
                   TN_WGMMA_C4(c, 12), TN_WGMMA_C4(c, 13), TN_WGMMA_C4(c, 14), TN_WGMMA_C4(c, 15)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ByRows ? 1 : 0));
#endif
}

/* ---- activations on values of bf16 precision: one instruction of the special function unit each ---- */

TN_TILE_DEVICE float tn_tanh_quick(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
TN_TILE_DEVICE float tn_silu_quick(float x) {
    float half = 0.5f * x;
    return fmaf(half, tn_tanh_quick(half), half);
}

TN_TILE_DEVICE float tn_exp_quick(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
}

/* Activations that are not worth their place in a loop, in full precision. */
template <typename W> static __device__ __noinline__ W tn_act_by_call(int act, W x) {
    TN_WITH_ACT(act, Act, return tn_act_value<Act>(x));
    return x;
}

/* act(x) of N values, none to tanh; the branch is the same for the whole grid. Quick: bf16's precision is enough. */
template <bool Quick, int N> TN_TILE_DEVICE void tn_activate(float (&x)[N], int act) {
#define TN_EACH(value) _Pragma("unroll") for (int i = 0; i < N; i++) x[i] = value
    if (act == TN_NONE) return;
    if (act == TN_SILU) TN_EACH(Quick ? tn_silu_quick(x[i]) : tn_act_value<TN_SILU>(x[i]));
    else if (act == TN_RELU) TN_EACH(tn_act_value<TN_RELU>(x[i]));
    else if (!Quick) TN_EACH(tn_act_by_call(act, x[i]));
    else if (act == TN_SIGMOID) TN_EACH(fmaf(0.5f, tn_tanh_quick(0.5f * x[i]), 0.5f));
    else if (act == TN_GELU) TN_EACH(tn_act_value<TN_GELU>(x[i]));
    else if (act == TN_TANH) TN_EACH(tn_tanh_quick(x[i]));
#undef TN_EACH
}

/* ---- LRPE ---- */

/* theta in turns per token, in two parts: their product with a coordinate loses its whole turns exactly, by fma. */
struct tn_tile_rate {
    float high, low;
};
TN_TILE_DEVICE tn_tile_rate tn_tile_rate_of(float theta) {
    double rate = (double)theta * 0.15915494309189533577;
    float high = (float)rate;
    return tn_tile_rate{ high, (float)(rate - (double)high) };
}
/* cos and sin of coordinate x theta, right to 5e-7 (Fine: 2e-7) for coordinates to 2^24. Whole turns are found by adding and taking away
 * 1.5 x 2^23: rounding instructions are four times as slow. */
template <bool Fine = false> TN_TILE_DEVICE void tn_turn_of(float coordinate, tn_tile_rate rate, float &c, float &s) {
    float whole = __fadd_rn(__fmul_rn(coordinate, rate.high), 12582912.0f);
    whole = __fadd_rn(whole, -12582912.0f);
    float turn = fmaf(coordinate, rate.low, fmaf(coordinate, rate.high, -whole));
    if (Fine) {
        sincospif(2.0f * turn, &s, &c);
    } else {
        c = __cosf(turn * 6.2831853071795865f);
        s = __sinf(turn * 6.2831853071795865f);
    }
}
/* (c, s) turned on by (dc, ds). */
TN_TILE_DEVICE void tn_turn_on(float &c, float &s, float dc, float ds) {
    float on = fmaf(c, dc, -s * ds);
    s = fmaf(s, dc, c * ds);
    c = on;
}

/* Slots: the order in which fragments take features. With rotate, the two features of a pair are 8 slots apart, so that one thread has
 * both: slots 16 i .. 16 i + 7 are features 8 i .. and slots 16 i + 8 .. are features d / 2 + 8 i ... Otherwise slot = feature. d % 16 ==
 * 0. The chunk (8 features) of a chunk of slots: */
TN_TILE_DEVICE int tn_slot_chunk(bool rotate, int d, int slot_chunk) {
    return rotate && slot_chunk < d >> 3 ? (slot_chunk >> 1) + (slot_chunk & 1) * (d >> 4) : slot_chunk;
}
/* The feature of a slot. */
TN_TILE_DEVICE int tn_slot_feature(bool rotate, int d, int slot) { return tn_slot_chunk(rotate, d, slot >> 3) * 8 + (slot & 7); }

/* ---- whole tiles: fetched, then settled ---- */

/* q, k, v, g or a gradient as kernels see it. */
struct tn_tile_operand {
    const void *x;              /* NULL: not there */
    int64_t batch, token, head; /* strides in elements; features are adjacent */
    int64_t tokens;
    int width, act;
    bool over_sequence;         /* softmax over the tokens: */
    const float *maximum, *sum; /* [b,h,width] */
};

/* What one of `Threads` threads does for a tile of Rows x Width of T. It fetches chunks of 8 numbers and, once they have come
 * (tn_tile_await: no barrier is needed to see one's own), settles them in place: activation, softmax over the features, softmax over the
 * tokens from its statistics. Then a barrier, and everyone may use the tile. Neighbouring threads have neighbouring chunks of a row, so a
 * row's softmax is a few shuffles. What lies beyond the operand's rows and columns is zero and stays zero whatever the activation.
 * f32 data stay f32 here: rows of 4 Width bytes, whose chunks of 32 bytes are swizzled by two bits of the row, from bit Swizzle on. */
template <typename T, int Rows, int Width, int Threads, int Swizzle = 0> struct tn_tile_share {
    static constexpr bool wide = sizeof(T) == 4;
    static constexpr int per_row = Width / 8, row_step = Threads / per_row, n = Rows / row_step;
    static constexpr int bytes = Rows * Width * (int)sizeof(T), plane_bytes = Rows * Width * 2;

    /* Where a chunk of f32 lies. */
    static __device__ __forceinline__ uint32_t wide_chunk(uint32_t tile, int row, int chunk) {
        return tile + row * (Width * 4) + ((chunk ^ (row >> Swizzle & 3)) << 5);
    }
    /* Where the thread's i-th chunk of bf16 lies; its row is i row_step further than its first one. */
    static __device__ __forceinline__ uint32_t chunk_at(uint32_t tile, int i, int thread) {
        const int row = thread / per_row, chunk = thread % per_row;
        uint32_t swizzled = (uint32_t)((chunk ^ row) & 7) << 4, turn = (uint32_t)((i * row_step) & 7) << 4;
        return tile + (chunk >> 3) * Rows * 128 + row * 128 + i * row_step * 128 + (swizzled ^ turn);
    }
    static __device__ __forceinline__ uint32_t own_chunk(uint32_t tile, int i, int thread) {
        if (wide) return wide_chunk(tile, thread / per_row + i * row_step, thread % per_row);
        return chunk_at(tile, i, thread);
    }

    /* Where the thread's first chunk is, from the tile's first element on. */
    static __device__ __forceinline__ int64_t offset(int64_t stride, int thread) {
        return thread / per_row * stride + thread % per_row * 8;
    }
    /* at: the thread's first chunk; rows, columns: how many the tile has (any number; none below 1). */
    static __device__ __forceinline__ void fetch(uint32_t to, const T *at, int64_t stride, int rows, int columns, int thread) {
        const int row = thread / per_row, chunk = thread % per_row;
        if (chunk * 8 >= columns) rows = 0;
#pragma unroll
        for (int i = 0; i < n; i++) {
            bool there = row + i * row_step < rows;
            const uint32_t place = own_chunk(to, i, thread);
            tn_tile_fetch(place, at, there);
            if (wide) tn_tile_fetch(place + 16, at + 4, there);
            at += row_step * stride;
        }
    }

    static __device__ __forceinline__ void read(float (&x)[8], uint32_t tile, int i, int thread) {
        const uint32_t from = own_chunk(tile, i, thread);
        uint4 words = tn_tile_read(from);
        if (wide) {
            uint4 more = tn_tile_read(from + 16);
            x[0] = __uint_as_float(words.x), x[1] = __uint_as_float(words.y), x[2] = __uint_as_float(words.z),
            x[3] = __uint_as_float(words.w);
            x[4] = __uint_as_float(more.x), x[5] = __uint_as_float(more.y), x[6] = __uint_as_float(more.z), x[7] = __uint_as_float(more.w);
        } else {
            x[0] = tn_pair_low(words.x), x[1] = tn_pair_high(words.x), x[2] = tn_pair_low(words.y), x[3] = tn_pair_high(words.y);
            x[4] = tn_pair_low(words.z), x[5] = tn_pair_high(words.z), x[6] = tn_pair_low(words.w), x[7] = tn_pair_high(words.w);
        }
    }
    static __device__ __forceinline__ void write(const float (&x)[8], uint32_t tile, int i, int thread) {
        const uint32_t to = own_chunk(tile, i, thread);
        if (wide) {
            tn_tile_write(to, make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])));
            tn_tile_write(to + 16, make_uint4(__float_as_uint(x[4]), __float_as_uint(x[5]), __float_as_uint(x[6]), __float_as_uint(x[7])));
        } else {
            tn_tile_write(to, make_uint4(tn_pair_of(x[0], x[1]), tn_pair_of(x[2], x[3]), tn_pair_of(x[4], x[5]), tn_pair_of(x[6], x[7])));
        }
    }
    /* f32 as three tiles of bf16, plane_bytes apart. */
    static __device__ __forceinline__ void write_planes(uint32_t planes, uint32_t tile, int thread) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            float x[8];
            uint32_t pairs[4][3];
            read(x, tile, i, thread);
#pragma unroll
            for (int j = 0; j < 4; j++) tn_pairs_of(pairs[j], x[2 * j], x[2 * j + 1]);
#pragma unroll
            for (int p = 0; p < 3; p++)
                tn_tile_write(chunk_at(planes, i, thread) + p * plane_bytes,
                              make_uint4(pairs[0][p], pairs[1][p], pairs[2][p], pairs[3][p]));
        }
    }

    static __device__ __forceinline__ float exp_of(float x) { return wide ? expf(x) : tn_exp_quick(x); }

    /* Over the rows that per_row neighbouring threads hold, several side by side since shuffles take long; a chunk that is not there takes
     * no part. */
    static constexpr int together = Threads == 32 ? 4 : 1;
    static __device__ __forceinline__ void softmax(float (&x)[together][8], bool inside) {
        float most[together], sum[together];
#pragma unroll
        for (int i = 0; i < together; i++) {
            most[i] =
                fmaxf(fmaxf(fmaxf(x[i][0], x[i][1]), fmaxf(x[i][2], x[i][3])), fmaxf(fmaxf(x[i][4], x[i][5]), fmaxf(x[i][6], x[i][7])));
            if (!inside) most[i] = -INFINITY;
        }
#pragma unroll
        for (int step = per_row / 2; step > 0; step /= 2)
#pragma unroll
            for (int i = 0; i < together; i++) most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], step));
#pragma unroll
        for (int i = 0; i < together; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) x[i][j] = exp_of(x[i][j] - most[i]);
            sum[i] = ((x[i][0] + x[i][1]) + (x[i][2] + x[i][3])) + ((x[i][4] + x[i][5]) + (x[i][6] + x[i][7]));
            if (!inside) sum[i] = 0;
        }
#pragma unroll
        for (int step = per_row / 2; step > 0; step /= 2)
#pragma unroll
            for (int i = 0; i < together; i++) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
#pragma unroll
        for (int i = 0; i < together; i++) {
            float scale = wide ? 1.0f / sum[i] : __fdividef(1.0f, sum[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) x[i][j] *= scale;
        }
    }

    /* column: of the tile's first one in the operand; head: of all b h. `act`: operand.act or, where that is done elsewhere, TN_NONE. */
    static __device__ __forceinline__ void settle(uint32_t tile, const tn_tile_operand &operand, int act, int64_t head, int column,
                                                  int rows, int columns, int thread) {
        if (act == TN_NONE) return;
        if (!wide && act == TN_SILU) { /* the common one: zeros stay zeros, so nothing is asked */
#pragma unroll
            for (int i = 0; i < n; i++) {
                float x[8];
                read(x, tile, i, thread);
#pragma unroll
                for (int j = 0; j < 8; j++) x[j] = tn_silu_quick(x[j]);
                write(x, tile, i, thread);
            }
            return;
        }
        const int row = thread / per_row, chunk = thread % per_row;
        const bool inside = chunk * 8 < columns;
        if (act == TN_SOFTMAX && !operand.over_sequence) {
#pragma unroll 1
            for (int first = 0; first < n; first += together) {
                float x[together][8];
#pragma unroll
                for (int i = 0; i < together; i++) read(x[i], tile, first + i, thread);
                softmax(x, inside);
#pragma unroll
                for (int i = 0; i < together; i++)
                    if (inside && row + (first + i) * row_step < rows) write(x[i], tile, first + i, thread);
            }
            return;
        }
        float most[8], scale[8];
        if (act == TN_SOFTMAX) {
            int64_t at = head * operand.width + column + (inside ? chunk * 8 : 0);
#pragma unroll
            for (int j = 0; j < 8; j++) most[j] = operand.maximum[at + j], scale[j] = 1.0f / operand.sum[at + j];
        }
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            float x[8];
            read(x, tile, i, thread);
            if (act == TN_SOFTMAX) {
#pragma unroll
                for (int j = 0; j < 8; j++) x[j] = exp_of(x[j] - most[j]) * scale[j];
            } else {
                tn_activate<!wide>(x, act);
            }
            if (inside && row + i * row_step < rows) write(x, tile, i, thread);
        }
    }
};

#endif
