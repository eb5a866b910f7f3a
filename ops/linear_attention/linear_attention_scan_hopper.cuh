/* What the two Hopper kernels of causal linear attention share. A block has three warpgroups: the first brings chunks of 64 tokens by
 * cp.async, cumulates their decay and makes the masked products of pairs of tokens; the other two keep half of S each, transposed, 64 x 128
 * in accumulators, and make what comes out. What is full and what is free again is said by mbarriers. */
#ifndef TENON_LINEAR_ATTENTION_SCAN_HOPPER_CUH
#define TENON_LINEAR_ATTENTION_SCAN_HOPPER_CUH

#include "linear_attention_scan_hopper.h"
#include "linear_attention_tiles.cuh"

#define TN_HOPPER_CHUNK 64
#define TN_HOPPER_WIDTH 128
#define TN_HOPPER_GROUP 128 /* threads */
#define TN_HOPPER_THREADS (3 * TN_HOPPER_GROUP)
#define TN_HOPPER_PANEL (TN_HOPPER_CHUNK * 128) /* bytes of 64 columns of a chunk */
#define TN_HOPPER_TILE (2 * TN_HOPPER_PANEL)
#define TN_HOPPER_DECAY_BYTES (3 * TN_HOPPER_CHUNK * 4)
#define TN_HOPPER_STATE (TN_HOPPER_WIDTH * TN_HOPPER_WIDTH)

struct tn_hopper_operand {
    const __nv_bfloat16 *x;
    int64_t batch, token, head;
};
static inline tn_hopper_operand tn_hopper_operand_of(const tn_la_scan_operand &x) {
    return { (const __nv_bfloat16 *)x.x, x.stride.batch, x.stride.token, x.stride.head };
}

/* What every scan has. */
struct tn_hopper_scan {
    bool per_token;
    const float *log_decay; /* NULL: none */
    int64_t heads, tokens;
    const int64_t *cu_seqlens;
    float read_scale, write_scale;
    const float *state; /* of each segment, dense, or of each sequence where there is one segment */
    float *state_out, *dots, *anchors;
    int anchor_every;     /* chunks */
    int64_t anchor_slots; /* of a head */
    int64_t state_row, state_column;
    int segments;
    int64_t slices; /* sequences x heads */
};
static inline tn_hopper_scan tn_hopper_scan_of(const tn_la_scan *s, int segments, const float *sums) {
    tn_hopper_scan a = {};
    a.per_token = s->decay == TN_LA_SCALAR_DECAY;
    a.log_decay = s->decay == TN_LA_NO_DECAY ? NULL : s->log_decay;
    a.heads = s->heads, a.tokens = s->tokens, a.cu_seqlens = s->cu_seqlens;
    a.read_scale = s->read_scale, a.write_scale = s->write_scale;
    a.state = segments > 1 ? sums : s->state;
    a.state_out = s->state_out, a.dots = s->dots, a.anchors = s->anchors;
    a.anchor_every = TN_LA_ANCHOR_TOKENS / TN_HOPPER_CHUNK, a.anchor_slots = s->tokens / TN_LA_ANCHOR_TOKENS + 1;
    a.state_row = s->state_row, a.state_column = s->state_column;
    a.segments = segments, a.slices = s->sequences * s->heads;
    return a;
}

/* ---- barriers ---- */

TN_TILE_DEVICE void tn_hopper_start(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(arrivals) : "memory");
}
TN_TILE_DEVICE void tn_hopper_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}
/* Until the barrier has turned over `times` + 1 times. */
TN_TILE_DEVICE void tn_hopper_await(uint32_t barrier, int times) {
#if TN_TILE_WGMMA
    asm volatile(
        "{\n\t.reg .pred there;\nwaiting:\n\tmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n\t@!there bra waiting;\n\t}"
        :
        : "r"(barrier), "r"((uint32_t)(times & 1))
        : "memory");
#endif
}
/* Whether it has, without waiting. */
TN_TILE_DEVICE bool tn_hopper_turned(uint32_t barrier, int times) {
    uint32_t done = 1;
#if TN_TILE_WGMMA
    asm volatile("{\n\t.reg .pred there;\n\tmbarrier.test_wait.parity.shared::cta.b64 there, [%1], %2;\n\tselp.b32 %0, 1, 0, there;\n\t}"
                 : "=r"(done)
                 : "r"(barrier), "r"((uint32_t)(times & 1))
                 : "memory");
#endif
    return done != 0;
}
/* The threads of the second or the third warpgroup, or of both. */
TN_TILE_DEVICE void tn_hopper_meet(int group) {
    if (group == 0) asm volatile("bar.sync 1, 128;" : : : "memory");
    else asm volatile("bar.sync 2, 128;" : : : "memory");
}
TN_TILE_DEVICE void tn_hopper_meet_both() { asm volatile("bar.sync 3, 256;" : : : "memory"); }

/* The first warpgroup leaves registers, the others take them; 504 for all three. */
template <int Registers> TN_TILE_DEVICE void tn_hopper_leave_registers() {
#if TN_TILE_WGMMA
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(Registers));
#endif
}
template <int Registers> TN_TILE_DEVICE void tn_hopper_take_registers() {
#if TN_TILE_WGMMA
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(Registers));
#endif
}

/* ---- products ---- */

/* c [64 x 64] += a b, both from shared memory; AByRows: rows of a's tile are k (tn_wgmma_rows), else m (tn_wgmma_columns); b likewise with
 * n. */
template <bool AByRows, bool BByRows> TN_TILE_DEVICE void tn_hopper_product(float (&c)[8][4], uint64_t a, uint64_t b) {
#if TN_TILE_WGMMA
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, 1, 1, 1, %34, %35;"
                 : TN_WGMMA_C4(c, 0), TN_WGMMA_C4(c, 1), TN_WGMMA_C4(c, 2), TN_WGMMA_C4(c, 3), TN_WGMMA_C4(c, 4), TN_WGMMA_C4(c, 5),
                   TN_WGMMA_C4(c, 6), TN_WGMMA_C4(c, 7)
                 : "l"(a), "l"(b), "n"(AByRows ? 1 : 0), "n"(BByRows ? 1 : 0));
#endif
}
template <int N> TN_TILE_DEVICE void tn_hopper_clear(float (&c)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
}
/* Step k of 16: of a tile's columns, of its rows. */
TN_TILE_DEVICE uint64_t tn_hopper_columns(uint32_t tile, int k) {
    return tn_wgmma_columns(tile + (k >> 2) * TN_HOPPER_PANEL + (k & 3) * 32);
}
TN_TILE_DEVICE uint64_t tn_hopper_rows(uint32_t tile, int k) { return tn_wgmma_rows(tile + k * 16 * 128, TN_HOPPER_PANEL); }

TN_TILE_DEVICE float tn_hopper_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- 16 x 16 blocks of a panel, transposed on their way: A of a wgmma, or accumulators whose columns are tokens ---- */

TN_TILE_DEVICE uint32_t tn_hopper_across(int lane) {
    return (uint32_t)(((lane & 7) + (lane & 16) / 2) * 128 + (((lane >> 3 & 1) ^ (lane & 7)) << 4));
}
/* Rows 16 k .., columns from an even chunk on; the lane's part of the address is in it already. */
TN_TILE_DEVICE uint32_t tn_hopper_spot(uint32_t panel_and_lane, int k, int chunk) {
    return (panel_and_lane ^ (uint32_t)(chunk << 4)) + (uint32_t)(k * 16 * 128);
}
TN_TILE_DEVICE void tn_hopper_write_transposed(uint32_t to, uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3) {
#if TN_TILE_WGMMA
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(to), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
                 : "memory");
#endif
}
TN_TILE_DEVICE void tn_hopper_write(uint32_t to, uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3) {
#if TN_TILE_WGMMA
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(to), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
                 : "memory");
#endif
}

/* ---- what threads know of their block: (slice, segment) ---- */

struct tn_hopper_place {
    int64_t slice, head, batch, first_token, length;
    int all_chunks, chunk0, chunks, segment;
    int64_t kept_rows; /* whose rows of what is kept per token or anchor these are */
};
TN_TILE_DEVICE int64_t tn_hopper_within(int64_t at, int64_t tokens) { return at < 0 ? 0 : at < tokens ? at : tokens; }
TN_TILE_DEVICE tn_hopper_place tn_hopper_place_of_block(const tn_hopper_scan &a) {
    tn_hopper_place p;
    const int64_t sequence = blockIdx.x / a.heads;
    p.slice = blockIdx.x, p.head = blockIdx.x % a.heads, p.segment = blockIdx.y;
    p.batch = a.cu_seqlens ? 0 : sequence;
    p.first_token = a.cu_seqlens ? tn_hopper_within(a.cu_seqlens[sequence], a.tokens) : 0;
    p.length = a.cu_seqlens ? tn_hopper_within(a.cu_seqlens[sequence + 1], a.tokens) - p.first_token : a.tokens;
    p.all_chunks = p.length > 0 ? (int)((p.length + TN_HOPPER_CHUNK - 1) / TN_HOPPER_CHUNK) : 0;
    const int per_segment = (p.all_chunks + a.segments - 1) / a.segments;
    p.chunk0 = min(p.all_chunks, p.segment * per_segment);
    p.chunks = min(p.all_chunks, p.chunk0 + per_segment) - p.chunk0;
    p.kept_rows = a.cu_seqlens ? p.head : p.slice;
    return p;
}
/* Segments are counted in the scan's order, chunks always from the sequence's begin. */
template <bool Reverse> TN_TILE_DEVICE int64_t tn_hopper_chunk(const tn_hopper_place &p, int i) {
    return Reverse ? p.all_chunks - 1 - (p.chunk0 + i) : p.chunk0 + i;
}
TN_TILE_DEVICE int64_t tn_hopper_offset(const tn_hopper_place &p, const tn_hopper_operand &x) {
    return p.batch * x.batch + p.first_token * x.token + p.head * x.head;
}
TN_TILE_DEVICE int tn_hopper_rows_of(const tn_hopper_place &p, int64_t t0) { return (int)min((int64_t)TN_HOPPER_CHUNK, p.length - t0); }

/* ---- tiles to and from device memory ---- */

/* A tile of 64 tokens, or a panel of it, by one warpgroup; rows beyond are zero. */
template <int Width> TN_TILE_DEVICE void tn_hopper_fetch(uint32_t tile, const __nv_bfloat16 *from, int64_t stride, int rows) {
    constexpr int per_row = Width / 8, step = TN_HOPPER_GROUP / per_row;
    const int thread = threadIdx.x % TN_HOPPER_GROUP, c = thread % per_row, row0 = thread / per_row;
    const uint32_t to = tile + tn_tile_chunk(TN_HOPPER_CHUNK, row0, c);
    from += row0 * stride + c * 8;
#pragma unroll
    for (int i = 0; i < TN_HOPPER_CHUNK / step; i++) {
        tn_tile_fetch(to + i * step * 128, from, row0 + step * i < rows);
        from += step * stride;
    }
}
TN_TILE_DEVICE void tn_hopper_store_panel(uint32_t panel, __nv_bfloat16 *to, int64_t stride, int rows) {
    const int thread = threadIdx.x % TN_HOPPER_GROUP, c = thread % 8, row0 = thread / 8;
    const uint32_t from = panel + tn_tile_chunk(TN_HOPPER_CHUNK, row0, c);
    to += row0 * stride + c * 8;
#pragma unroll
    for (int i = 0; i < TN_HOPPER_CHUNK / 16; i++) {
        uint4 x = tn_tile_read(from + i * 2048);
        if (row0 + 16 * i < rows)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" : : "l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
        to += 16 * stride;
    }
}

/* ---- decay: a warp takes two tokens a lane ---- */

TN_TILE_DEVICE void tn_hopper_fetch_word(uint32_t to, const float *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(to), "l"(from), "r"(there ? 4 : 0) : "memory");
}

/* Leaves the sums of the logarithms, then what a row that reads S is multiplied by, then what a row that enters S is. */
template <bool Reverse> struct tn_hopper_decay {
    const float *log_decay;
    int64_t step;

    __device__ __forceinline__ tn_hopper_decay(const tn_hopper_scan &a, const tn_hopper_place &at) {
        step = a.per_token ? a.heads : 0;
        log_decay = !a.log_decay ? nullptr : a.log_decay + (a.per_token ? (at.batch * a.tokens + at.first_token) * a.heads : 0) + at.head;
    }
    /* The logarithms of chunk i on their way to where cumulate will read them, with the tiles. */
    __device__ __forceinline__ void fetch(const tn_hopper_place &at, int i, uint32_t to) const {
        const int64_t token = tn_hopper_chunk<Reverse>(at, i) * TN_HOPPER_CHUNK + 2 * (threadIdx.x & 31);
        const float *from = log_decay + token * step;
        to += 8 * (threadIdx.x & 31);
        tn_hopper_fetch_word(to, from, token < at.length);
        tn_hopper_fetch_word(to + 4, from + step, token + 1 < at.length);
    }
    __device__ __forceinline__ void cumulate(float *to) const {
        const float log2e = 1.4426950408889634f;
        const int lane = threadIdx.x & 31;
        const float2 logs = *reinterpret_cast<const float2 *>(to + 2 * lane);
        float second = logs.y * log2e, sum = fmaf(logs.x, log2e, second);
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            float below = __shfl_up_sync(0xffffffffu, sum, step);
            if (lane >= step) sum += below;
        }
        float all = __shfl_sync(0xffffffffu, sum, 31), first = sum - second;
        float2 since = make_float2(tn_hopper_exp2(first), tn_hopper_exp2(sum)),
               until = make_float2(tn_hopper_exp2(all - first), tn_hopper_exp2(all - sum));
        *reinterpret_cast<float2 *>(to + 2 * lane) = make_float2(first, sum);
        *reinterpret_cast<float2 *>(to + TN_HOPPER_CHUNK + 2 * lane) = Reverse ? until : since;
        *reinterpret_cast<float2 *>(to + 2 * TN_HOPPER_CHUNK + 2 * lane) = Reverse ? since : until;
    }
};

/* ---- pairs of tokens ---- */

/* p = x y' of two tiles, under way. */
TN_TILE_DEVICE void tn_hopper_start_pairs(float (&p)[8][4], uint32_t x, uint32_t y) {
    tn_hopper_clear(p);
    tn_wgmma_begin();
#pragma unroll
    for (int k = 0; k < TN_HOPPER_WIDTH / 16; k++) tn_hopper_product<false, false>(p, tn_hopper_columns(x, k), tn_hopper_columns(y, k));
    tn_wgmma_commit();
}
/* What the pairs (row, column) and (row, column + 1) are multiplied by: decay, and 0 where column is yet to come. */
template <bool Reverse> TN_TILE_DEVICE float2 tn_hopper_pair_weight(const float *logs, bool decays, float scale, int row, int column) {
    float2 w = make_float2(scale, scale);
    if (decays) {
        const float here = logs[row];
        const float2 there = *reinterpret_cast<const float2 *>(logs + column);
        const float d0 = here - there.x, d1 = here - there.y;
        w.x *= tn_hopper_exp2(fminf(Reverse ? -d0 : d0, 0.0f));
        w.y *= tn_hopper_exp2(fminf(Reverse ? -d1 : d1, 0.0f));
    }
    if (Reverse ? column < row : column > row) w.x = 0;
    if (Reverse ? column + 1 < row : column + 1 > row) w.y = 0;
    return w;
}

/* ---- S' of a warpgroup: rows of its accumulators are columns of S ---- */

TN_TILE_DEVICE void tn_hopper_load_state(float (&s)[16][4], const float *from, int64_t row_step, int64_t column_step, int column,
                                         int pair) {
#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            s[j][r] = from ? from[(j * 8 + pair + (r & 1)) * row_step + (column + (r & 2) * 4) * column_step] : 0.0f;
}
TN_TILE_DEVICE void tn_hopper_store_state(const float (&s)[16][4], float *to, int64_t row_step, int64_t column_step, int column, int pair) {
#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) to[(j * 8 + pair + (r & 1)) * row_step + (column + (r & 2) * 4) * column_step] = s[j][r];
}
/* Before wgmma reads it from registers: the compiler must have made it. */
template <int N> TN_TILE_DEVICE void tn_hopper_made(uint32_t (&a)[N][4]) {
#pragma unroll
    for (int k = 0; k < N; k++) asm volatile("" : "+r"(a[k][0]), "+r"(a[k][1]), "+r"(a[k][2]), "+r"(a[k][3]) : : "memory");
}
/* What rounding two numbers to `pair` has left. */
TN_TILE_DEVICE uint32_t tn_hopper_rest(uint32_t pair, float low, float high) {
    return tn_pair_of(low - tn_pair_low(pair), high - tn_pair_high(pair));
}

/* S before the block's first chunk. */
TN_TILE_DEVICE void tn_hopper_begin_state(float (&s)[16][4], const tn_hopper_scan &a, const tn_hopper_place &at, int column, int pair) {
    const bool dense = a.segments > 1;
    const float *from = !a.state ? nullptr : a.state + (dense ? at.segment * a.slices + at.slice : at.slice) * TN_HOPPER_STATE;
    tn_hopper_load_state(s, from, dense ? TN_HOPPER_WIDTH : a.state_row, dense ? 1 : a.state_column, column, pair);
}
/* S after chunk i, where an anchor is. */
template <bool Reverse>
TN_TILE_DEVICE void tn_hopper_keep_anchor(const float (&s)[16][4], const tn_hopper_scan &a, const tn_hopper_place &at, int i, int column,
                                          int pair) {
    const int64_t chunk = tn_hopper_chunk<Reverse>(at, i), after = Reverse ? chunk : chunk + 1;
    if (!a.anchors || after % a.anchor_every != 0 || after == 0 || after >= at.all_chunks) return;
    const int64_t slot = at.first_token / TN_LA_ANCHOR_TOKENS + after / a.anchor_every;
    tn_hopper_store_state(s, a.anchors + (at.kept_rows * a.anchor_slots + slot) * TN_HOPPER_STATE, a.state_row, a.state_column, column,
                          pair);
}
/* z', each token by what it enters S with: A of the products that bring S up to date. rest: what rounding has left, where it is wanted. */
template <bool Rest>
TN_TILE_DEVICE void tn_hopper_entering(uint32_t (&to)[4][4], uint32_t (&rest)[4][4], uint32_t panel_and_lane, int chunk,
                                       const float *enters, bool decays, float scale, int pair) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        tn_tile_blocks_transposed(to[k], tn_hopper_spot(panel_and_lane, k, chunk));
        if (!decays && scale == 1.0f) {
            if (Rest) rest[k][0] = rest[k][1] = rest[k][2] = rest[k][3] = 0;
            continue;
        }
        float2 near = make_float2(scale, scale), far = near;
        if (decays) {
            const float2 n = *reinterpret_cast<const float2 *>(enters + k * 16 + pair),
                         f = *reinterpret_cast<const float2 *>(enters + k * 16 + pair + 8);
            near.x *= n.x, near.y *= n.y, far.x *= f.x, far.y *= f.y;
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float2 w = r < 2 ? near : far;
            const float low = tn_pair_low(to[k][r]) * w.x, high = tn_pair_high(to[k][r]) * w.y;
            to[k][r] = tn_pair_of(low, high);
            if (Rest) rest[k][r] = tn_hopper_rest(to[k][r], low, high);
        }
    }
}
/* S' rounded, as A, and what that has left. */
TN_TILE_DEVICE void tn_hopper_round(uint32_t (&to)[8][4], const float (&s)[16][4]) {
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int r = 0; r < 4; r++) to[k][r] = tn_pair_of(s[2 * k + r / 2][r % 2 * 2], s[2 * k + r / 2][r % 2 * 2 + 1]);
}
TN_TILE_DEVICE void tn_hopper_rests(uint32_t (&to)[8][4], const uint32_t (&rounded)[8][4], const float (&s)[16][4]) {
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int r = 0; r < 4; r++) to[k][r] = tn_hopper_rest(rounded[k][r], s[2 * k + r / 2][r % 2 * 2], s[2 * k + r / 2][r % 2 * 2 + 1]);
}
/* o', whose columns are tokens, by what they read S with. */
TN_TILE_DEVICE void tn_hopper_read_factor(float (&o)[8][4], const float *reads, bool decays, float scale, int pair) {
    if (!decays && scale == 1.0f) return;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float2 f = make_float2(scale, scale);
        if (decays) {
            const float2 r = *reinterpret_cast<const float2 *>(reads + j * 8 + pair);
            f.x *= r.x, f.y *= r.y;
        }
        o[j][0] *= f.x, o[j][1] *= f.y, o[j][2] *= f.x, o[j][3] *= f.y;
    }
}

/* ---- dots ---- */

template <int N> TN_TILE_DEVICE void tn_hopper_fold(float (&v)[16], int lane) {
    const bool upper = lane & 2 * N;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float keep = upper ? v[N + i] : v[i], send = upper ? v[i] : v[N + i];
        v[i] = keep + __shfl_xor_sync(0xffffffffu, send, 2 * N);
    }
}
/* The warp's part of <o_t, raw_t> for its 16 features to parts[64]; then to o' what a token has from itself, which dots leave out. raw and
 * z: panels with the lane's part of the address. */
TN_TILE_DEVICE void tn_hopper_dots(float (&o)[8][4], uint32_t raw_panel, uint32_t z_panel, int chunk, const float *diagonal, float *parts,
                                   int lane, int pair) {
    float dots[16];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t raw[4], own[4];
        tn_tile_blocks_transposed(raw, tn_hopper_spot(raw_panel, k, chunk));
        tn_tile_blocks_transposed(own, tn_hopper_spot(z_panel, k, chunk));
#pragma unroll
        for (int b = 0; b < 2; b++) {
            float *v = o[2 * k + b];
            dots[4 * k + 2 * b] = fmaf(v[0], tn_pair_low(raw[2 * b]), v[2] * tn_pair_low(raw[2 * b + 1]));
            dots[4 * k + 2 * b + 1] = fmaf(v[1], tn_pair_high(raw[2 * b]), v[3] * tn_pair_high(raw[2 * b + 1]));
            const float2 d = *reinterpret_cast<const float2 *>(diagonal + k * 16 + b * 8 + pair);
            v[0] = fmaf(d.x, tn_pair_low(own[2 * b]), v[0]), v[1] = fmaf(d.y, tn_pair_high(own[2 * b]), v[1]);
            v[2] = fmaf(d.x, tn_pair_low(own[2 * b + 1]), v[2]), v[3] = fmaf(d.y, tn_pair_high(own[2 * b + 1]), v[3]);
        }
    }
    /* dots[2 j], dots[2 j + 1] are of tokens 8 j + pair, + 1; of eight lanes that share them each is left with one j. */
    tn_hopper_fold<8>(dots, lane);
    tn_hopper_fold<4>(dots, lane);
    tn_hopper_fold<2>(dots, lane);
    const int j = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
    *reinterpret_cast<float2 *>(parts + j * 8 + pair) = make_float2(dots[0], dots[1]);
}
/* Four warps' parts of 64 tokens, added up by the warpgroup that made them. */
TN_TILE_DEVICE void tn_hopper_keep_dots(const tn_hopper_scan &a, const tn_hopper_place &at, int64_t t0, int rows, int group,
                                        const float *parts) {
    const int thread = threadIdx.x % TN_HOPPER_GROUP;
    if (thread >= rows) return;
    const int64_t row = group * (a.cu_seqlens ? a.heads : a.slices) + at.kept_rows;
    a.dots[row * a.tokens + at.first_token + t0 + thread] =
        (parts[thread] + parts[TN_HOPPER_CHUNK + thread]) + (parts[2 * TN_HOPPER_CHUNK + thread] + parts[3 * TN_HOPPER_CHUNK + thread]);
}

#endif
