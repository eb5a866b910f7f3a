/* The scan on tensor cores, bf16 data, f32 state that never leaves the chip.
 *
 * A block owns one head of one sequence (or a segment of it) and `Outer` columns of S, and walks its tokens in chunks of 64. Each of its
 * Outer / 16 warps keeps 16 columns of S, transposed, as f32 accumulators: 16 x Inner. Their layout, rounded to bf16, is that of the second
 * operand of x S, so S is never written out to be read:
 *
 *                      Inner                     tokens 64                Outer: 16 columns a warp
 *     chunk of x   [ 64 x Inner ]   P = mask (x y')  [ 64 x 64 ]     o = x S  + P z    [ 64 x 16 ] a warp
 *     chunk of y   [ 64 x Inner ]                                    S' = S' + z' y    [ 16 x Inner ] a warp
 *     chunk of z   [ 64 x Outer ]
 *
 * P is computed once by all warps together and shared as bf16. Chunks arrive by cp.async, two ahead; the thread that fetched a chunk of 16
 * bytes activates, turns or multiplies it in place before the barrier that publishes it (`settle`). Bytes: x, y, z (and the gate) read
 * once, o written once; nothing per chunk.
 *
 * In reverse chunks are taken from the last one on, and a chunk's tokens lie in its tiles upside down: row r holds token 63 - r, so that
 * either way rows follow each other in the scan's order.
 *
 * Decay: within a chunk only as exp2 of differences of cumulated logarithms, all <= 0. With c the sums of the chunk over rows, row i
 * included, row i reads S times e^c_i, row j enters S times e^(c_all - c_j), P_ij carries e^(c_i - c_j); in reverse a row's own decay
 * comes after it, and c leaves it out.
 *
 * Where heads are too few to fill the device a sequence is cut into segments: first every segment's own S is summed up, then a small
 * kernel chains them to the states that segments begin with, then all segments run at once. */
#include "linear_attention_scan.h"
#include "linear_attention_scan_hopper.h"
#include "linear_attention_tiles.cuh"

namespace {

constexpr int CHUNK = 64;

struct operand {
    const __nv_bfloat16 *x;
    int64_t batch, token, head;
    int width, act;
    bool encoded;
    int64_t offset;
};

struct scan {
    operand xyz[3], factor, gate, raw, times;
    bool settles; /* any of x, y, z is activated, encoded or multiplied */
    int factor_of;
    int inner, outer;
    __nv_bfloat16 *o;
    int64_t o_batch, o_token, o_head;
    float *dots, *theta_parts, *anchors;
    int anchor_every;     /* chunks */
    int64_t anchor_slots; /* of a head */
    bool cosine, reverse, per_token;
    tn_lrpe_grid grid;
    const float *theta, *log_decay;
    int64_t heads, tokens;
    const int64_t *cu_seqlens;
    float read_scale, write_scale;
    const float *state; /* of each segment, or of each sequence where there is one segment */
    float *state_out, *sums, *totals;
    int64_t state_row, state_column;
    int segments;
    int64_t slices; /* sequences x heads */
};

/* Where the pieces of shared memory lie. */
template <int Inner, int Outer, bool Decode> struct room {
    static constexpr int x = CHUNK * Inner * 2, z = CHUNK * Outer * 2;
    static constexpr int p = CHUNK * CHUNK * 2, decay = (6 * CHUNK + 4) * 4, rates = 128 * 8, parts = (2 * (Outer / 16) + 1) * CHUNK * 4;
    static constexpr int staged = Decode ? CHUNK * (Outer + 4) * 4 : 0;
    static constexpr int fixed = p + decay + rates + parts + staged + 1024;
    static constexpr int stage(bool with_factor, int factor_of) {
        return 2 * x + z + (!with_factor ? 0 : factor_of == TN_LA_FACTOR_Z ? z : x);
    }
    static int stages(int stage, int shared_bytes) { return (shared_bytes - fixed) / stage >= 3 ? 3 : 2; }
};

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- tiles of [64][Width], by items of two chunks: c and c + Width / 16 of a row, the two that rotate turns together ---- */

template <int Width, int Threads> struct items { static constexpr int per_row = Width / 16, n = CHUNK * per_row / Threads; };

/* Which columns of an operand the two halves of a tile hold: `first` of them from the first on, `second` from `at` on. What rotate turns
 * together must lie half a tile apart, however narrow the operand is. */
struct halves {
    int first, second, at;
};
__device__ __forceinline__ halves halves_of(int tile, int columns, bool rotates) {
    if (rotates && columns < tile) return { columns / 2, columns / 2, columns / 2 };
    return { min(columns, tile / 2), columns - tile / 2, tile / 2 };
}

/* tokens: how many the chunk has; row r is for token r ^ flip of it. first_half_only: before encoding by cosine and sine. */
template <int Width, int Threads>
__device__ __forceinline__ void fetch(uint32_t tile, const operand &x, const __nv_bfloat16 *from, int tokens, int flip, halves columns,
                                      bool first_half_only) {
    constexpr int per_row = items<Width, Threads>::per_row;
    const int c = threadIdx.x % per_row;
#pragma unroll
    for (int i = 0; i < items<Width, Threads>::n; i++) {
        int row = (i * Threads + threadIdx.x) / per_row, token = row ^ flip;
        bool there = token < tokens;
        const __nv_bfloat16 *at = from + (there ? token : 0) * x.token;
        bool first = there && c * 8 < columns.first;
        tn_tile_fetch(tile + tn_tile_chunk(CHUNK, row, c), first ? at + c * 8 : from, first);
        if (first_half_only) continue;
        bool second = there && c * 8 < columns.second;
        tn_tile_fetch(tile + tn_tile_chunk(CHUNK, row, c + per_row), second ? at + columns.at + c * 8 : from, second);
    }
}

__device__ __forceinline__ void unpack(float *x, uint4 words) {
    x[0] = tn_pair_low(words.x), x[1] = tn_pair_high(words.x), x[2] = tn_pair_low(words.y), x[3] = tn_pair_high(words.y);
    x[4] = tn_pair_low(words.z), x[5] = tn_pair_high(words.z), x[6] = tn_pair_low(words.w), x[7] = tn_pair_high(words.w);
}
__device__ __forceinline__ uint4 pack(const float *x) {
    return make_uint4(tn_pair_of(x[0], x[1]), tn_pair_of(x[2], x[3]), tn_pair_of(x[4], x[5]), tn_pair_of(x[6], x[7]));
}

/* Over the values that `lanes` neighbours hold. */
template <int Lanes> __device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
template <int Lanes> __device__ __forceinline__ float max_of_lanes(float x) {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

/* As tn_act_by_call. */
__device__ __noinline__ float slope_by_call(int act, float x) {
    TN_WITH_ACT(act, Act, return tn_act_slope<Act>(x));
    return 1.0f;
}

/* act of a row's item; first and second say which of its halves exist. */
template <int PerRow> __device__ __forceinline__ void activate(float (&x)[16], int act, bool first, bool second) {
    if (act == TN_NONE) return;
    if (act == TN_SOFTMAX) {
        float most = -INFINITY, sum = 0;
#pragma unroll
        for (int j = 0; j < 16; j++)
            if (j < 8 ? first : second) most = fmaxf(most, x[j]);
        most = max_of_lanes<PerRow>(most);
#pragma unroll
        for (int j = 0; j < 16; j++) sum += x[j] = (j < 8 ? first : second) ? __expf(x[j] - most) : 0.0f;
        float scale = __frcp_rn(sum_of_lanes<PerRow>(sum));
#pragma unroll
        for (int j = 0; j < 16; j++) x[j] *= scale;
        return;
    }
    if (act == TN_SILU) {
#pragma unroll
        for (int j = 0; j < 16; j++) x[j] = tn_silu_quick(x[j]);
        return;
    }
#pragma unroll
    for (int j = 0; j < 16; j++) x[j] = tn_act_by_call(act, x[j]);
}

/* A token's coordinate on a grid of several axes. */
__device__ __noinline__ float place_on_grid(const tn_lrpe_grid *grid, int64_t at, int feature) {
    int axis = tn_lrpe_axis(grid, feature);
    return axis < 0 ? 0.0f : (float)tn_lrpe_coordinate(grid, at, axis);
}
/* What the eight features from `feature` on turn by at token `at` (from the sequence's begin): their coordinates. */
__device__ __forceinline__ void places_of(float (&place)[8], const tn_lrpe_grid *grid, int64_t at, int64_t offset, int feature) {
    const float line = at < grid->leading ? 0.0f : (float)(at - grid->leading + offset);
#pragma unroll
    for (int j = 0; j < 8; j++) place[j] = line;
    if (grid->axes == 1 || at < grid->leading) return;
#pragma unroll
    for (int j = 0; j < 8; j++) place[j] = place_on_grid(grid, at, feature + j);
}
__device__ __forceinline__ void turn(float place, float2 rate, float &c, float &s) {
    tn_turn_of(place, tn_tile_rate{ rate.x, rate.y }, c, s);
}

/* Brings what this thread fetched to the form the products want, in place. With a factor: x * act(factor), x itself bare. feature0: of the
 * tile's first column. */
template <int Width, int Threads>
__device__ __forceinline__ void settle(const scan &a, const operand &x, uint32_t tile, bool with_factor, uint32_t factor_tile,
                                       const float2 *rates, int64_t at, int tokens, int flip, halves columns, int feature0) {
    const int act = with_factor ? a.factor.act : x.act;
    if (act == TN_NONE && !x.encoded && !with_factor) return;
    constexpr int per_row = items<Width, Threads>::per_row;
    const int c = threadIdx.x % per_row;
    const uint32_t from = with_factor ? factor_tile - tile : 0;
    const bool cosine = x.encoded && a.cosine, first_there = c * 8 < columns.first, second_there = !cosine && c * 8 < columns.second;
#pragma unroll 1
    for (int i = 0; i < items<Width, Threads>::n; i++) {
        int row = (i * Threads + threadIdx.x) / per_row, token = row ^ flip;
        uint32_t first = tile + tn_tile_chunk(CHUNK, row, c), second = tile + tn_tile_chunk(CHUNK, row, c + per_row);
        float v[16];
        unpack(v, tn_tile_read(first + from));
        unpack(v + 8, cosine ? make_uint4(0, 0, 0, 0) : tn_tile_read(second + from));
        activate<per_row>(v, act, first_there, second_there);
        if (x.encoded) {
            float place[8];
            places_of(place, &a.grid, at + token, x.offset, feature0 + c * 8);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float cos, sin;
                turn(place[j], rates[feature0 + c * 8 + j], cos, sin);
                float one = v[j], two = v[8 + j];
                v[j] = cosine ? one * cos : one * cos - two * sin;
                v[8 + j] = cosine ? one * sin : one * sin + two * cos;
            }
        }
        if (with_factor) {
            float bare[16];
            unpack(bare, tn_tile_read(first));
            unpack(bare + 8, tn_tile_read(second));
#pragma unroll
            for (int j = 0; j < 16; j++) v[j] *= bare[j];
        }
        if (token >= tokens) { /* zeros; of what cosine makes two halves of, fetch brought the first */
            if (cosine) tn_tile_write(second, make_uint4(0, 0, 0, 0));
            continue;
        }
        if (first_there) tn_tile_write(first, pack(v));
        if (second_there || cosine) tn_tile_write(second, pack(v + 8));
    }
}

/* ---- the kernel ---- */

/* Loads that stay where they are written, ahead of the products that cover their latency. */
__device__ __forceinline__ uint32_t early_word(const void *from) {
    uint32_t x;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(from));
    return x;
}
__device__ __forceinline__ uint4 early_words(const void *from) {
    uint4 x;
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return x;
}
/* What rounding a pair to bf16 leaves, as a pair of bf16. */
__device__ __forceinline__ uint32_t rest_of(float low, float high) {
    uint32_t pair = tn_pair_of(low, high);
    return tn_pair_of(low - tn_pair_low(pair), high - tn_pair_high(pair));
}
__device__ __forceinline__ void write_half(uint32_t to, uint16_t x) {
    asm volatile("st.shared.b16 [%0], %1;" : : "r"(to), "h"(x) : "memory");
}

/* Where a lane reads its row of an 8 x 8 block, as part of an address to which a tile, a row and an even chunk are then added by `spot`:
 * blocks side by side after blocks below each other (along), or the other way round (across). See tn_fragment_a and
 * tn_fragment_b_transposed. */
__device__ __forceinline__ uint32_t lane_along(int lane) { return (uint32_t)((lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4)); }
__device__ __forceinline__ uint32_t lane_across(int lane) {
    return (uint32_t)(((lane & 7) + (lane & 16) / 2) * 128 + (((lane >> 3 & 1) ^ (lane & 7)) << 4));
}
/* row: a multiple of 8. The lane's part of the swizzle and the chunk's meet in one exclusive or. */
__device__ __forceinline__ uint32_t spot(uint32_t tile_and_lane, int row, int chunk) {
    return (tile_and_lane ^ (uint32_t)((chunk & 7) << 4)) + (uint32_t)(row * 128 + (chunk >> 3) * CHUNK * 128);
}

/* Packed sequences are kept within the tokens there are. */
__device__ __forceinline__ int64_t token_within(int64_t at, int64_t tokens) { return at < 0 ? 0 : at < tokens ? at : tokens; }

/* Sum: only a segment's own S is wanted. */
template <int Inner, int Outer, bool Decode, bool Sum>
__global__ void __launch_bounds__(Outer * 2, 1) walk(const __grid_constant__ scan a, int stages, int stage_bytes) {
    constexpr int Threads = Outer * 2, Warps = Outer / 16;
    const bool reverse = a.reverse;
    const int flip = reverse ? CHUNK - 1 : 0;
    using R = room<Inner, Outer, Decode>;
    extern __shared__ unsigned char raw_shared[];
    const uint32_t begin_of_shared = tn_tile_address(raw_shared), base = (begin_of_shared + 1023) & ~1023u;
    unsigned char *shared = raw_shared + (base - begin_of_shared);
    const uint32_t p_tile = base + stages * stage_bytes;
    unsigned char *fixed = shared + stages * stage_bytes + R::p;
    float *cumulated = reinterpret_cast<float *>(fixed);
    float2 *rates = reinterpret_cast<float2 *>(fixed + R::decay);
    float *dot_parts = reinterpret_cast<float *>(fixed + R::decay + R::rates); /* [2][Warps][CHUNK] */
    float *diagonal = dot_parts + 2 * Warps * CHUNK, *staged = diagonal + CHUNK;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, pair = 2 * (lane % 4);
    /* Row quad + 8 r of a chunk holds token first_of_quad + r * eight. */
    const int first_of_quad = quad ^ flip, eight = reverse ? -8 : 8;
    const uint32_t along = lane_along(lane), across = lane_across(lane);
    const int64_t slice = blockIdx.x, sequence = slice / a.heads, head = slice % a.heads;
    const int segment = blockIdx.z;
    const bool z_cosine = a.xyz[2].encoded && a.cosine;
    /* Columns of this block: Outer neighbours or, where z is encoded by cosines, Outer / 2 features' cosines, then their sines. */
    const int z0 = blockIdx.y * (z_cosine ? Outer / 2 : Outer), z_columns = min(z_cosine ? Outer / 2 : Outer, a.xyz[2].width - z0);
    const bool xy_rotates = a.xyz[0].encoded && !a.cosine;
    const halves xy_halves = halves_of(Inner, a.xyz[0].width, xy_rotates),
                 z_halves = halves_of(Outer, z_columns, a.xyz[2].encoded && !a.cosine);
    auto column_of = [&](int j) { return j < Outer / 2 ? z0 + j : (z_cosine ? a.xyz[2].width : z_halves.at) + z0 + j - Outer / 2; };
    auto column_there = [&](int j) {
        return j < Outer / 2 ? j < z_halves.first : j - Outer / 2 < (z_cosine ? z_halves.first : z_halves.second);
    };
    auto row_of = [&](int i) { return xy_rotates && i >= Inner / 2 ? i - Inner / 2 + xy_halves.at : i; };
    auto row_there = [&](int i) { return xy_rotates ? (i & (Inner / 2 - 1)) < xy_halves.first : i < a.inner; };

    const int64_t batch = a.cu_seqlens ? 0 : sequence, first_token = a.cu_seqlens ? token_within(a.cu_seqlens[sequence], a.tokens) : 0;
    const int64_t length = a.cu_seqlens ? max(token_within(a.cu_seqlens[sequence + 1], a.tokens) - first_token, (int64_t)0) : a.tokens;
    const int64_t all_chunks = (length + CHUNK - 1) / CHUNK, per_segment = (all_chunks + a.segments - 1) / a.segments;
    /* Segments are counted in the scan's order, chunks always from the sequence's begin. */
    const int64_t chunk0 = min(all_chunks, segment * per_segment), chunks = min(all_chunks, chunk0 + per_segment) - chunk0;
    auto chunk_at = [&](int64_t i) { return reverse ? all_chunks - 1 - (chunk0 + i) : chunk0 + i; };

    const int64_t x_base = batch * a.xyz[0].batch + first_token * a.xyz[0].token + head * a.xyz[0].head;
    const int64_t y_base = batch * a.xyz[1].batch + first_token * a.xyz[1].token + head * a.xyz[1].head;
    const int64_t z_base = batch * a.xyz[2].batch + first_token * a.xyz[2].token + head * a.xyz[2].head + z0;
    const int64_t factor_base =
        batch * a.factor.batch + first_token * a.factor.token + head * a.factor.head + (a.factor_of == TN_LA_FACTOR_Z ? z0 : 0);
    const float *log_decay = !a.log_decay  ? nullptr
                             : a.per_token ? a.log_decay + (batch * a.tokens + first_token) * a.heads + head
                                           : a.log_decay + head;

    if (a.xyz[0].encoded || a.xyz[1].encoded || a.xyz[2].encoded || (Decode && a.raw.encoded)) {
        for (int f = threadIdx.x; f < 128; f += Threads) {
            float theta = 0;
            if (f < a.grid.angles && tn_lrpe_axis(&a.grid, f) >= 0)
                theta = a.theta[(a.grid.theta_heads == 1 ? 0 : head) * a.grid.theta_width + tn_lrpe_theta_column(&a.grid, f)];
            tn_tile_rate rate = tn_tile_rate_of(theta);
            rates[f] = make_float2(rate.high, rate.low);
        }
        __syncthreads();
    }

    float s[Inner / 8][4];
#pragma unroll
    for (int i = 0; i < Inner / 8; i++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int row = i * 8 + pair + (r & 1), column = warp * 16 + quad + (r & 2) * 4;
            bool there = !Sum && a.state && row_there(row) && column_there(column);
            /* Segments' states lie dense. */
            const float *from = a.state + (a.segments > 1 ? (segment * a.slices + slice) : slice) * (int64_t)a.inner * a.outer;
            int64_t at = a.segments > 1 ? (int64_t)row_of(row) * a.outer + column_of(column)
                                        : row_of(row) * a.state_row + column_of(column) * a.state_column;
            s[i][r] = there ? from[at] : 0.0f;
        }

    int stage_in = 0; /* where the next chunk goes */
    auto issue = [&](int64_t i) {
        if (i < chunks) {
            int64_t t0 = chunk_at(i) * CHUNK;
            int tokens = (int)min((int64_t)CHUNK, length - t0);
            uint32_t at = base + stage_in * stage_bytes;
            stage_in = stage_in + 1 == stages ? 0 : stage_in + 1;
            if (!Sum)
                fetch<Inner, Threads>(at, a.xyz[0], a.xyz[0].x + x_base + t0 * a.xyz[0].token, tokens, flip, xy_halves,
                                      a.xyz[0].encoded && a.cosine);
            fetch<Inner, Threads>(at + R::x, a.xyz[1], a.xyz[1].x + y_base + t0 * a.xyz[1].token, tokens, flip, xy_halves,
                                  a.xyz[1].encoded && a.cosine);
            fetch<Outer, Threads>(at + 2 * R::x, a.xyz[2], a.xyz[2].x + z_base + t0 * a.xyz[2].token, tokens, flip, z_halves, z_cosine);
            const __nv_bfloat16 *factor = a.factor.x + factor_base + t0 * a.factor.token;
            if (a.factor_of == TN_LA_FACTOR_Z) fetch<Outer, Threads>(at + 2 * R::x + R::z, a.factor, factor, tokens, flip, z_halves, false);
            else if (a.factor_of != TN_LA_FACTOR_NONE && !(Sum && a.factor_of == TN_LA_FACTOR_X))
                fetch<Inner, Threads>(at + 2 * R::x + R::z, a.factor, factor, tokens, flip, xy_halves, false);
        }
        tn_tile_fetched();
    };

    /* Warp 0 cumulates the logarithms of the decay one chunk ahead, two rows a lane, and leaves the sums, then what a row that reads S
     * is multiplied by, then what a row that enters S is; and the sum of all. */
    float log0 = 0, log1 = 0;
    auto fetch_decay = [&](int64_t i) {
        log0 = log1 = 0;
        if (i >= chunks) return;
        int64_t t0 = chunk_at(i) * CHUNK, step = a.per_token ? a.heads : 0;
        const float *from = log_decay + t0 * step;
        const int first = 2 * lane ^ flip, second = (2 * lane + 1) ^ flip;
        if (t0 + first < length) log0 = from[first * step];
        if (t0 + second < length) log1 = from[second * step];
    };
    auto cumulate_decay = [&](int64_t i) {
        const float log2e = 1.4426950408889634f;
        float *to = cumulated + (int)(i & 1) * 3 * CHUNK;
        log0 *= log2e;
        log1 *= log2e;
        float sum = log0 + log1;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            float below = __shfl_up_sync(0xffffffffu, sum, step);
            if (lane >= step) sum += below;
        }
        const float all = __shfl_sync(0xffffffffu, sum, 31);
        float first = sum - log1, second = sum;
        if (reverse) {
            const float before = __shfl_up_sync(0xffffffffu, sum, 1);
            second = first, first = lane > 0 ? before : 0.0f;
        }
        *reinterpret_cast<float2 *>(to + 2 * lane) = make_float2(first, second);
        *reinterpret_cast<float2 *>(to + CHUNK + 2 * lane) = make_float2(exp2_of(first), exp2_of(second));
        *reinterpret_cast<float2 *>(to + 2 * CHUNK + 2 * lane) = make_float2(exp2_of(all - first), exp2_of(all - second));
        if (lane == 0) cumulated[6 * CHUNK + (int)(i & 1)] = all;
    };

    for (int i = 0; i < stages - 1; i++) issue(i);
    if (log_decay && warp == 0) {
        fetch_decay(0);
        cumulate_decay(0);
    }
    float segment_total = 0, theta_sum[8] = {};
    const int64_t own_rows = a.cu_seqlens ? head : slice; /* of what is kept per token or anchor */
    const bool wants_dots = a.dots != nullptr;
    const bool dots_of_warps = !Decode && !Sum && Inner <= 128 && wants_dots; /* wider: through decode */
    auto add_dots = [&](int64_t i) {
        const int64_t token = chunk_at(i) * CHUNK + threadIdx.x;
        if (threadIdx.x >= CHUNK || token >= length) return;
        const float *part = dot_parts + (int)(i & 1) * Warps * CHUNK + (threadIdx.x ^ flip);
        float sum = 0;
#pragma unroll
        for (int w = 0; w < Warps; w++) sum += part[w * CHUNK];
        a.dots[(blockIdx.y * (a.cu_seqlens ? a.heads : a.slices) + own_rows) * a.tokens + first_token + token] = sum;
    };

    int stage = 0;
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t t0 = chunk_at(i) * CHUNK;
        const int tokens = (int)min((int64_t)CHUNK, length - t0);
        const uint32_t x_tile = base + stage * stage_bytes, y_tile = x_tile + R::x, z_tile = y_tile + R::x, factor_tile = z_tile + R::z;
        stage = stage + 1 == stages ? 0 : stage + 1;
        if (stages == 3) tn_tile_await<1>();
        else tn_tile_await<0>();
        /* One copy of the code for x, y and z, where their tiles are alike. */
        if (a.settles) {
#pragma unroll 1
            for (int which = Sum ? 1 : 0; which < (Inner == Outer ? 3 : 2); which++) {
                const operand &x = a.xyz[which];
                settle<Inner, Threads>(a, x, x_tile + which * R::x, a.factor_of == which + 1, factor_tile, rates, t0, tokens, flip,
                                       which == 2 ? z_halves : xy_halves, which == 2 ? z0 : 0);
            }
            if (Inner != Outer)
                settle<Outer, Threads>(a, a.xyz[2], z_tile, a.factor_of == TN_LA_FACTOR_Z, factor_tile, rates, t0, tokens, flip, z_halves,
                                       z0);
        }
        __syncthreads();
        issue(i + stages - 1);
        const float *logs = cumulated + (int)(i & 1) * 3 * CHUNK, *reads = logs + CHUNK, *enters = reads + CHUNK;
        const float total = log_decay ? cumulated[6 * CHUNK + (int)(i & 1)] : 0.0f;
        if (dots_of_warps && i > 0) add_dots(i - 1);
        /* A constant decay's sums are the same for all whole chunks. */
        const bool renews = log_decay && (a.per_token || i < 2 || (i + 1 < chunks && length - chunk_at(i + 1) * CHUNK < CHUNK));
        if (renews && warp == 0) fetch_decay(i + 1);

        float o[4][2][4];
        if (!Sum) {
            /* P: a warp takes 16 rows and Columns columns. */
            constexpr int Columns = Warps >= 8 ? 32 : 64, Across = CHUNK / Columns;
            const int row0 = 16 * (warp / Across), column0 = Columns * (warp % Across);
            float p[Columns / 8][4];
#pragma unroll
            for (int j = 0; j < Columns / 8; j++) p[j][0] = p[j][1] = p[j][2] = p[j][3] = 0;
            if (column0 <= row0 + 15) {
#pragma unroll
                for (int k = 0; k < Inner / 16; k++) {
                    uint32_t fa[4];
                    tn_tile_blocks(fa, spot(x_tile + along, row0, 2 * k));
#pragma unroll
                    for (int j = 0; j < Columns / 16; j++) {
                        uint32_t fb[4];
                        tn_tile_blocks(fb, spot(y_tile + across, column0 + j * 16, 2 * k));
                        tn_mma(p[2 * j], fa, fb[0], fb[1]);
                        tn_mma(p[2 * j + 1], fa, fb[2], fb[3]);
                    }
                }
            }
            const float scale = a.read_scale * a.write_scale;
#pragma unroll
            for (int j = 0; j < Columns / 8; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int row = row0 + quad + 8 * half, column = column0 + j * 8 + pair;
                    float v0 = p[j][2 * half] * scale, v1 = p[j][2 * half + 1] * scale;
                    if (log_decay) {
                        float here = logs[row], d0 = here - logs[column], d1 = here - logs[column + 1];
                        v0 *= exp2_of(fminf(d0, 0.0f));
                        v1 *= exp2_of(fminf(d1, 0.0f));
                    }
                    if (column > row) v0 = 0;
                    if (column + 1 > row) v1 = 0;
                    tn_tile_write_word(p_tile + tn_tile_pair(CHUNK, row, column), tn_pair_of(v0, v1));
                }

            /* Dots leave a token's own pair out: it is in those of q as in those of k, and under strong decay little else is. */
            if (wants_dots) {
#pragma unroll
                for (int j = 0; j < Columns / 8; j++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int row = row0 + quad + 8 * half, column = column0 + j * 8 + pair;
                        if (column != row && column + 1 != row) continue;
                        diagonal[row] = (column == row ? p[j][2 * half] : p[j][2 * half + 1]) * scale;
                        write_half(p_tile + tn_tile_pair(CHUNK, row, column) + (column == row ? 0 : 2), 0);
                    }
            }

            /* o = x S, of before the chunk. */
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int r = 0; r < 8; r++) o[m][r / 4][r % 4] = 0;
#pragma unroll
            for (int k = 0; k < Inner / 16; k++) {
                uint32_t b00 = tn_pair_of(s[2 * k][0], s[2 * k][1]), b01 = tn_pair_of(s[2 * k + 1][0], s[2 * k + 1][1]);
                uint32_t b10 = tn_pair_of(s[2 * k][2], s[2 * k][3]), b11 = tn_pair_of(s[2 * k + 1][2], s[2 * k + 1][3]);
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    uint32_t fa[4];
                    tn_tile_blocks(fa, spot(x_tile + along, m * 16, 2 * k));
                    tn_mma(o[m][0], fa, b00, b01);
                    tn_mma(o[m][1], fa, b10, b11);
                }
            }
            /* Dots cancel over a sequence: what rounding S has left counts there. */
            if (wants_dots) {
#pragma unroll
                for (int k = 0; k < Inner / 16; k++) {
                    uint32_t b[4];
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        const float *two = &s[2 * k + (r & 1)][r & 2];
                        b[r] = rest_of(two[0], two[1]);
                    }
#pragma unroll
                    for (int m = 0; m < 4; m++) {
                        uint32_t fa[4];
                        tn_tile_blocks(fa, spot(x_tile + along, m * 16, 2 * k));
                        tn_mma(o[m][0], fa, b[0], b[1]);
                        tn_mma(o[m][1], fa, b[2], b[3]);
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
                float f0 = a.read_scale, f1 = a.read_scale;
                if (log_decay) {
                    f0 *= reads[m * 16 + quad];
                    f1 *= reads[m * 16 + quad + 8];
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    o[m][j][0] *= f0;
                    o[m][j][1] *= f0;
                    o[m][j][2] *= f1;
                    o[m][j][3] *= f1;
                }
            }
        }
        if (!Sum) {
            __syncthreads(); /* P is there */
#pragma unroll
            for (int k = 0; k < 4; k++) {
                uint32_t fb[4];
                tn_tile_blocks_transposed(fb, spot(z_tile + along, k * 16, warp * 2));
#pragma unroll
                for (int m = k; m < 4; m++) {
                    uint32_t fa[4];
                    tn_tile_blocks(fa, spot(p_tile + along, m * 16, 2 * k));
                    tn_mma(o[m][0], fa, fb[0], fb[1]);
                    tn_mma(o[m][1], fa, fb[2], fb[3]);
                }
            }
        }

        if (renews && warp == 0) cumulate_decay(i + 1);

        /* What o is multiplied by, gate or for dots, or decoded with, on its way while S is brought up to date. */
        constexpr int Items = items<Outer, Threads>::n, PerRow = items<Outer, Threads>::per_row;
        uint32_t beside[4][2][2];
        uint4 raw_words[Items][2];
        if (!Decode && !Sum && (a.gate.x || dots_of_warps)) {
            const operand &with = a.gate.x ? a.gate : a.raw;
            const __nv_bfloat16 *from = with.x + batch * with.batch + (first_token + t0 + first_of_quad) * with.token + head * with.head;
            const int64_t apart = eight * with.token;
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const int r = 2 * m + half, column = warp * 16 + j * 8 + pair;
                        bool there = first_of_quad + r * eight < tokens && column_there(column);
                        beside[m][half][j] = there ? early_word(from + r * apart + column_of(column)) : 0;
                    }
        }
        if (Decode) {
            const bool cosine = a.raw.encoded && a.cosine;
            const int c = threadIdx.x % PerRow;
            const __nv_bfloat16 *raw = a.raw.x + batch * a.raw.batch + (first_token + t0) * a.raw.token + head * a.raw.head + z0;
#pragma unroll
            for (int item = 0; item < Items; item++) {
                const int token = (item * Threads + threadIdx.x) / PerRow ^ flip;
                const uint4 zero = make_uint4(0, 0, 0, 0);
                const bool first = token < tokens && c * 8 < z_halves.first, second = token < tokens && !cosine && c * 8 < z_halves.second;
                raw_words[item][0] = first ? early_words(raw + token * a.raw.token + c * 8) : zero;
                raw_words[item][1] = second ? early_words(raw + token * a.raw.token + z_halves.at + c * 8) : zero;
            }
        }

        /* S' = decay S' + (z, each row by its factor)' y */
        if (log_decay) {
            float f = exp2_of(total);
            segment_total += total;
#pragma unroll
            for (int j = 0; j < Inner / 8; j++) s[j][0] *= f, s[j][1] *= f, s[j][2] *= f, s[j][3] *= f;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t fa[4], rest[4] = {};
            tn_tile_blocks_transposed(fa, spot(z_tile + across, k * 16, warp * 2));
            if (log_decay || a.write_scale != 1.0f) {
                float2 near = make_float2(a.write_scale, a.write_scale), far = near;
                if (log_decay) {
                    float2 n = *reinterpret_cast<const float2 *>(enters + k * 16 + pair),
                           f = *reinterpret_cast<const float2 *>(enters + k * 16 + pair + 8);
                    near.x *= n.x, near.y *= n.y, far.x *= f.x, far.y *= f.y;
                }
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const float2 w = r < 2 ? near : far;
                    float low = tn_pair_low(fa[r]) * w.x, high = tn_pair_high(fa[r]) * w.y;
                    fa[r] = tn_pair_of(low, high);
                    rest[r] = rest_of(low, high);
                }
            }
#pragma unroll
            for (int j = 0; j < Inner / 16; j++) {
                uint32_t fb[4];
                tn_tile_blocks_transposed(fb, spot(y_tile + along, k * 16, 2 * j));
                tn_mma(s[2 * j], fa, fb[0], fb[1]);
                tn_mma(s[2 * j + 1], fa, fb[2], fb[3]);
            }
            if (wants_dots) {
#pragma unroll
                for (int j = 0; j < Inner / 16; j++) {
                    uint32_t fb[4];
                    tn_tile_blocks_transposed(fb, spot(y_tile + along, k * 16, 2 * j));
                    tn_mma(s[2 * j], rest, fb[0], fb[1]);
                    tn_mma(s[2 * j + 1], rest, fb[2], fb[3]);
                }
            }
        }
        if (Sum) continue;

        if (a.anchors) {
            const int64_t chunk = chunk_at(i), after = reverse ? chunk : chunk + 1;
            if (after % a.anchor_every == 0 && after > 0 && after < all_chunks) {
                const int64_t slot = first_token / ((int64_t)a.anchor_every * CHUNK) + after / a.anchor_every;
                float *to = a.anchors + (own_rows * a.anchor_slots + slot) * (int64_t)a.inner * a.outer;
#pragma unroll
                for (int j = 0; j < Inner / 8; j++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        int row = j * 8 + pair + (r & 1), column = warp * 16 + quad + (r & 2) * 4;
                        if (row_there(row) && column_there(column))
                            to[row_of(row) * a.state_row + column_of(column) * a.state_column] = s[j][r];
                    }
            }
        }

        const int64_t o_base = batch * a.o_batch + (first_token + t0) * a.o_token + head * a.o_head;
        if (!Decode) {
            if (a.gate.x) {
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    float g[8];
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            uint32_t word = beside[m][half][j];
                            g[4 * half + 2 * j] = tn_pair_low(word);
                            g[4 * half + 2 * j + 1] = tn_pair_high(word);
                        }
                    if (a.gate.act == TN_SILU) {
#pragma unroll
                        for (int r = 0; r < 8; r++) g[r] = tn_silu_quick(g[r]);
                    } else if (a.gate.act != TN_NONE) {
#pragma unroll
                        for (int r = 0; r < 8; r++) g[r] = tn_act_by_call(a.gate.act, g[r]);
                    }
#pragma unroll
                    for (int r = 0; r < 8; r++) o[m][r / 2 % 2][r / 4 * 2 + r % 2] *= g[r];
                }
            }
            if (dots_of_warps) {
#pragma unroll
                for (int m = 0; m < 4; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float dot = 0;
#pragma unroll
                        for (int j = 0; j < 2; j++)
                            dot = fmaf(o[m][j][2 * half], tn_pair_low(beside[m][half][j]),
                                       fmaf(o[m][j][2 * half + 1], tn_pair_high(beside[m][half][j]), dot));
                        dot = sum_of_lanes<4>(dot);
                        const int row = m * 16 + quad + 8 * half;
                        if (pair == 0) dot_parts[((int)(i & 1) * Warps + warp) * CHUNK + row] = dot;
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            uint32_t word = tn_tile_read_word(z_tile + tn_tile_pair(CHUNK, row, warp * 16 + j * 8 + pair));
                            o[m][j][2 * half] = fmaf(diagonal[row], tn_pair_low(word), o[m][j][2 * half]);
                            o[m][j][2 * half + 1] = fmaf(diagonal[row], tn_pair_high(word), o[m][j][2 * half + 1]);
                        }
                    }
            }
            /* Neighbours swap halves, so that a lane holds four adjacent columns and four lanes a whole sector. */
            const bool odd = lane & 1;
            __nv_bfloat16 *to = a.o + o_base + first_of_quad * a.o_token;
            const int64_t apart = eight * a.o_token;
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t low = tn_pair_of(o[m][0][2 * half], o[m][0][2 * half + 1]),
                             high = tn_pair_of(o[m][1][2 * half], o[m][1][2 * half + 1]);
                    uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
                    const int r = 2 * m + half, column = warp * 16 + (odd ? 8 : 0) + lane % 4 / 2 * 4;
                    if (a.o && first_of_quad + r * eight < tokens && column_there(column))
                        *reinterpret_cast<uint2 *>(to + r * apart + column_of(column)) = odd ? make_uint2(got, high) : make_uint2(low, got);
                }
            continue;
        }

        /* Decode: through shared memory to items of a row, as they are fetched. */
        constexpr int per_row = PerRow, pitch = Outer + 4;
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    *reinterpret_cast<float2 *>(staged + (m * 16 + quad + 8 * half) * pitch + warp * 16 + j * 8 + pair) =
                        make_float2(o[m][j][2 * half], o[m][j][2 * half + 1]);
        __syncthreads();
        const bool cosine = a.raw.encoded && a.cosine;
        const int c = threadIdx.x % per_row;
        const bool first_there = c * 8 < z_halves.first, second_there = !cosine && c * 8 < z_halves.second;
#pragma unroll 1
        for (int item = 0; item < Items; item++) {
            int row = (item * Threads + threadIdx.x) / per_row, token = row ^ flip;
            bool there = token < tokens;
            float x[16], d[16];
            const uint4 zero = make_uint4(0, 0, 0, 0);
            /* No index that is not constant: the words are in registers. */
            uint4 first_words = raw_words[0][0], second_words = raw_words[0][1];
#pragma unroll
            for (int u = 1; u < Items; u++)
                if (item == u) first_words = raw_words[u][0], second_words = raw_words[u][1];
            unpack(x, first_words);
            unpack(x + 8, second_words);
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int j = 0; j < 8; j += 4) {
                    float4 v = *reinterpret_cast<const float4 *>(staged + row * pitch + (c + half * per_row) * 8 + j);
                    d[half * 8 + j] = v.x, d[half * 8 + j + 1] = v.y, d[half * 8 + j + 2] = v.z, d[half * 8 + j + 3] = v.w;
                }
            float act[16];
#pragma unroll
            for (int j = 0; j < 16; j++) act[j] = x[j];
            activate<per_row>(act, a.raw.act, first_there, second_there);
            float encoded_dot = 0, own[16]; /* own: what a token's own pair adds */
            if (wants_dots) {
                unpack(own, tn_tile_read(z_tile + tn_tile_chunk(CHUNK, row, c)));
                unpack(own + 8, tn_tile_read(z_tile + tn_tile_chunk(CHUNK, row, c + per_row)));
#pragma unroll
                for (int j = 0; j < 16; j++) own[j] *= diagonal[row];
            } else {
#pragma unroll
                for (int j = 0; j < 16; j++) own[j] = 0;
            }
            if (a.raw.encoded) {
                float place[8];
                places_of(place, &a.grid, t0 + token, a.raw.offset, z0 + c * 8);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    float cos, sin;
                    turn(place[j], rates[z0 + c * 8 + j], cos, sin);
                    float one = d[j], two = d[8 + j], own_one = own[j], own_two = own[8 + j], turned;
                    if (wants_dots) {
                        /* With what the other scan has of this token, which is rounded: then pairs of tokens cancel. */
                        uint32_t both = cosine ? tn_pair_of(act[j] * cos, act[j] * sin)
                                               : tn_pair_of(act[j] * cos - act[8 + j] * sin, act[j] * sin + act[8 + j] * cos);
                        encoded_dot = fmaf(one, tn_pair_low(both), fmaf(two, tn_pair_high(both), encoded_dot));
                    }
                    d[j] = one * cos + two * sin;
                    own[j] = own_one * cos + own_two * sin;
                    if (cosine) {
                        turned = act[j] * ((two + own_two) * cos - (one + own_one) * sin);
                        d[8 + j] = own[8 + j] = 0;
                    } else {
                        d[8 + j] = two * cos - one * sin;
                        own[8 + j] = own_two * cos - own_one * sin;
                        turned = act[j] * (d[8 + j] + own[8 + j]) - act[8 + j] * (d[j] + own[j]);
                    }
                    if (a.theta_parts && there) theta_sum[j] += place[j] * turned;
                }
            }
            if (a.times.x) {
                const __nv_bfloat16 *times = a.times.x + batch * a.times.batch + (first_token + t0) * a.times.token + head * a.times.head +
                                             z0 + token * a.times.token;
                float f[16];
                unpack(f, there && first_there ? *reinterpret_cast<const uint4 *>(times + c * 8) : zero);
                unpack(f + 8, there && second_there ? *reinterpret_cast<const uint4 *>(times + z_halves.at + c * 8) : zero);
#pragma unroll
                for (int j = 0; j < 16; j++) d[j] *= f[j];
            }
            float dot = 0;
            auto add_to_dot = [&](const float *with) {
#pragma unroll
                for (int j = 0; j < 16; j++)
                    if (j < 8 ? first_there : second_there) dot = fmaf(act[j], with[j], dot);
            };
            if (wants_dots) {
                if (!a.raw.encoded) {
#pragma unroll
                    for (int j = 0; j < 16; j++)
                        if (j < 8 ? first_there : second_there)
                            encoded_dot = fmaf(tn_widen(__float2bfloat16_rn(act[j])), d[j], encoded_dot);
                }
                float sum = sum_of_lanes<per_row>(encoded_dot);
                add_to_dot(d);
                if (there && c == 0)
                    a.dots[(blockIdx.y * (a.cu_seqlens ? a.heads : a.slices) + own_rows) * a.tokens + first_token + t0 + token] = sum;
                add_to_dot(own);
#pragma unroll
                for (int j = 0; j < 16; j++) d[j] += own[j];
            } else {
                add_to_dot(d);
            }
            if (a.raw.act == TN_SOFTMAX) dot = sum_of_lanes<per_row>(dot);
            if (a.raw.act == TN_SOFTMAX) {
#pragma unroll
                for (int j = 0; j < 16; j++) d[j] = act[j] * (d[j] - dot);
            } else if (a.raw.act != TN_NONE) {
                if (a.raw.act == TN_SILU) {
#pragma unroll
                    for (int j = 0; j < 16; j++) d[j] *= tn_act_slope<TN_SILU>(x[j]);
                } else {
#pragma unroll
                    for (int j = 0; j < 16; j++) d[j] *= slope_by_call(a.raw.act, x[j]);
                }
            }
            if (!there || !a.o) continue;
            __nv_bfloat16 *to = a.o + o_base + token * a.o_token + z0;
            if (first_there) *reinterpret_cast<uint4 *>(to + c * 8) = pack(d);
            if (second_there) *reinterpret_cast<uint4 *>(to + z_halves.at + c * 8) = pack(d + 8);
        }
    }
    tn_tile_await<0>();
    if (dots_of_warps && chunks > 0) {
        __syncthreads();
        add_dots(chunks - 1);
    }

    if (Sum) {
        if (threadIdx.x == 0 && blockIdx.y == 0) a.totals[segment * a.slices + slice] = segment_total;
        float *to = a.sums + (segment * a.slices + slice) * (int64_t)a.inner * a.outer;
#pragma unroll
        for (int i = 0; i < Inner / 8; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                int row = i * 8 + pair + (r & 1), column = warp * 16 + quad + (r & 2) * 4;
                if (row_there(row) && column_there(column)) to[(int64_t)row_of(row) * a.outer + column_of(column)] = s[i][r];
            }
        return;
    }
    if (a.state_out && segment == a.segments - 1) {
        float *to = a.state_out + slice * (int64_t)a.inner * a.outer;
#pragma unroll
        for (int i = 0; i < Inner / 8; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                int row = i * 8 + pair + (r & 1), column = warp * 16 + quad + (r & 2) * 4;
                if (row_there(row) && column_there(column)) to[row_of(row) * a.state_row + column_of(column) * a.state_column] = s[i][r];
            }
    }
    if (Decode && a.theta_parts) {
        constexpr int per_row = items<Outer, Threads>::per_row;
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 8; j++) staged[threadIdx.x * 8 + j] = theta_sum[j];
        __syncthreads();
        int feature = threadIdx.x;
        if (feature < Outer / 2 && z0 + feature < a.grid.angles) {
            float sum = 0;
            for (int t = feature / 8; t < Threads; t += per_row) sum += staged[t * 8 + feature % 8];
            a.theta_parts[(slice * a.segments + segment) * a.grid.angles + z0 + feature] = sum;
        }
    }
}

/* From segments' own sums to the states they begin with, in place, and on to the last. */
__global__ void chain(int64_t slices, int segments, int64_t inner, int64_t outer, const float *state, int64_t row_step, int64_t column_step,
                      float *sums, const float *totals) {
    int64_t n = inner * outer, slice = blockIdx.y;
    for (int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; at < n; at += (int64_t)gridDim.x * blockDim.x) {
        float run = state ? state[slice * n + at / outer * row_step + at % outer * column_step] : 0.0f;
        for (int segment = 0; segment < segments; segment++) {
            float *here = sums + (segment * slices + slice) * n + at, own = segment + 1 < segments ? *here : 0.0f;
            *here = run;
            run = run * exp2_of(totals[segment * slices + slice]) + own;
        }
    }
}

operand operand_of(const tn_la_scan_operand &x) {
    return { (const __nv_bfloat16 *)x.x, x.stride.batch, x.stride.token, x.stride.head, (int)x.width, x.act, x.encoded, x.offset };
}

bool fits_packs(const tn_la_scan_operand &x) {
    return !x.x || (tn_aligned16(x.x) && x.width % 8 == 0 && x.stride.token % 8 == 0 && x.stride.head % 8 == 0 && x.stride.batch % 8 == 0);
}

template <int Inner, int Outer, bool Decode> cudaError_t launch(const scan &a, dim3 grid, int shared_bytes, cudaStream_t stream) {
    using R = room<Inner, Outer, Decode>;
    const int stage = R::stage(a.factor_of != TN_LA_FACTOR_NONE, a.factor_of), stages = R::stages(stage, shared_bytes),
              bytes = R::fixed + stages * stage;
    cudaFuncSetAttribute(walk<Inner, Outer, Decode, false>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (a.segments > 1) {
        using S = room<Inner, Outer, false>;
        const int sum_bytes = S::fixed + stages * stage;
        scan own = a;
        own.state = NULL;
        cudaFuncSetAttribute(walk<Inner, Outer, false, true>, cudaFuncAttributeMaxDynamicSharedMemorySize, sum_bytes);
        walk<Inner, Outer, false, true><<<dim3(grid.x, grid.y, grid.z - 1), Outer * 2, sum_bytes, stream>>>(own, stages, stage);
        chain<<<dim3((unsigned)((a.inner * a.outer + 255) / 256), grid.x), 256, 0, stream>>>(
            a.slices, a.segments, a.inner, a.outer, a.state, a.state_row, a.state_column, a.sums, a.totals);
        scan rest = a;
        rest.state = a.sums;
        walk<Inner, Outer, Decode, false><<<grid, Outer * 2, bytes, stream>>>(rest, stages, stage);
    } else {
        walk<Inner, Outer, Decode, false><<<grid, Outer * 2, bytes, stream>>>(a, stages, stage);
    }
    return cudaGetLastError();
}

struct shape_of_launch {
    int inner, outer, blocks, segments;
};

/* Widths are padded to 64 x 64, 128 x 128 or 256 x 128; tokens are split where heads alone don't fill the device. */
shape_of_launch choose(const tn_la_scan *s, int multiprocessors) {
    shape_of_launch l;
    const bool z_cosine = s->z.encoded && s->cosine;
    const int64_t slices = s->sequences * s->heads;
    const int64_t outer = z_cosine ? 2 * s->z.width : s->outer;
    l.outer = s->inner > 64 || outer > 64 ? 128 : 64;
    l.inner = s->inner > 128 ? 256 : l.outer;
    l.blocks = (int)((outer + l.outer - 1) / l.outer);
    int64_t chunks = (s->tokens / (s->cu_seqlens ? s->sequences : 1) + CHUNK - 1) / CHUNK, running = slices * l.blocks;
    l.segments = 1;
    if (running * 2 <= multiprocessors && chunks >= 16) {
        int64_t want = multiprocessors / running, most = chunks / 8;
        l.segments = (int)(want < most ? want : most);
        if (l.segments < 1) l.segments = 1;
    }
    return l;
}

/* Bytes of shared memory with two stages. */
int64_t least_room(const tn_la_scan *s) {
    const shape_of_launch l = choose(s, 1);
    const int64_t x = CHUNK * 2 * (int64_t)l.inner, z = CHUNK * 2 * (int64_t)l.outer,
                  staged = s->decode ? CHUNK * 4 * (int64_t)(l.outer + 4) : 0;
    const int64_t factor = s->factor_of == TN_LA_FACTOR_NONE ? 0 : s->factor_of == TN_LA_FACTOR_Z ? z : x;
    return room<64, 64, false>::fixed + staged + 2 * (2 * x + z + factor);
}

} // namespace

bool tn_la_scan_fits(const tn_la_scan *s, const tn_device *device) {
    const shape_of_launch l = choose(s, 1);
    const tn_la_scan_operand *all[] = { &s->x, &s->y, &s->z, &s->factor, &s->gate, &s->raw, &s->times };
    for (int i = 0; i < 7; i++) {
        if (!fits_packs(*all[i])) return false;
        if (all[i]->x && all[i]->encoded) {
            int64_t d = all[i]->width, reach = s->tokens + (all[i]->offset < 0 ? -all[i]->offset : all[i]->offset);
            if (reach >= (int64_t)1 << 24) return false;
            int64_t tile = i == 2 ? l.outer : i < 2 ? l.inner : 0;
            if (d > 128 || (tile && (s->cosine ? 2 * d % tile || (i < 2 && 2 * d != tile) : d > tile || d % 16))) return false;
        }
    }
    if (s->decode && s->raw.act == TN_SOFTMAX && s->raw.width > (s->raw.encoded && s->cosine ? 64 : 128)) return false;
    if (s->inner > 256 || s->outer > 256 || s->sequences * s->heads > 0x7fffffff) return false;
    if (least_room(s) > (int64_t)device->shared_bytes || (s->decode && s->inner > 128)) return false;
    if (s->gate.x && s->gate.act == TN_SOFTMAX) return false;
    /* A softmax needs its whole row in one block. */
    const int64_t block = s->z.encoded && s->cosine ? 64 : 128;
    if (s->z.act == TN_SOFTMAX && s->z.width > block) return false;
    if (s->factor_of == TN_LA_FACTOR_Z && s->factor.act == TN_SOFTMAX && s->factor.width > 128) return false;
    if (s->o && (!tn_aligned16(s->o) || s->o_stride.token % 8 || s->o_stride.head % 8 || s->o_stride.batch % 8)) return false;
    return true;
}

int tn_la_scan_parts(const tn_la_scan *s, const tn_device *device) {
    return tn_la_scan_hopper_fits(s, device) ? TN_LA_SCAN_HOPPER_PARTS : choose(s, device->multiprocessors).blocks;
}
int tn_la_scan_segments(const tn_la_scan *s, const tn_device *device) { return choose(s, device->multiprocessors).segments; }

size_t tn_la_scan_workspace(const tn_la_scan *s, const tn_device *device) {
    const int64_t segments = choose(s, device->multiprocessors).segments, slices = s->sequences * s->heads;
    return segments > 1 ? (size_t)(segments * slices * (s->inner * s->outer + 1)) * sizeof(float) : 0;
}

/* With `value`: s and that in one sweep. */
static cudaError_t run_on_hopper(const tn_la_scan *s, const tn_la_scan *value, int segments, float *sums, cudaStream_t stream) {
    const int64_t slices = s->sequences * s->heads;
    if (segments == 1)
        return value ? tn_la_sweep_hopper_run(s, value, 1, NULL, stream) : tn_la_scan_hopper_run(s, 1, NULL, NULL, false, stream);
    float *totals = sums + segments * slices * s->inner * s->outer;
    cudaError_t said = tn_la_scan_hopper_run(s, segments, sums, totals, true, stream);
    if (said != cudaSuccess) return said;
    chain<<<dim3((unsigned)((s->inner * s->outer + 255) / 256), (unsigned)slices), 256, 0, stream>>>(
        slices, segments, s->inner, s->outer, s->state, s->state_row, s->state_column, sums, totals);
    return value ? tn_la_sweep_hopper_run(s, value, segments, sums, stream)
                 : tn_la_scan_hopper_run(s, segments, sums, totals, false, stream);
}

bool tn_la_scan_pair_fits(const tn_la_scan *key, const tn_la_scan *value, const tn_device *device) {
    return tn_la_sweep_hopper_fits(key, value, device);
}
cudaError_t tn_la_scan_pair_run(const tn_la_scan *key, const tn_la_scan *value, const tn_device *device, void *workspace,
                                cudaStream_t stream) {
    if (key->sequences * key->heads == 0) return cudaSuccess;
    return run_on_hopper(key, value, choose(key, device->multiprocessors).segments, (float *)workspace, stream);
}

cudaError_t tn_la_scan_run(const tn_la_scan *s, const tn_device *device, void *workspace, cudaStream_t stream) {
    const shape_of_launch l = choose(s, device->multiprocessors);
    if (s->sequences * s->heads == 0) return cudaSuccess;
    if (tn_la_scan_hopper_fits(s, device)) return run_on_hopper(s, NULL, l.segments, (float *)workspace, stream);
    scan a;
    a.xyz[0] = operand_of(s->x), a.xyz[1] = operand_of(s->y), a.xyz[2] = operand_of(s->z), a.factor = operand_of(s->factor),
    a.gate = operand_of(s->gate), a.raw = operand_of(s->raw), a.times = operand_of(s->times);
    a.factor_of = s->factor_of;
    a.settles = s->factor_of != TN_LA_FACTOR_NONE;
    for (int i = 0; i < 3; i++) a.settles |= a.xyz[i].act != TN_NONE || a.xyz[i].encoded;
    a.inner = (int)s->inner, a.outer = (int)s->outer;
    a.o = (__nv_bfloat16 *)s->o;
    a.o_batch = s->o_stride.batch, a.o_token = s->o_stride.token, a.o_head = s->o_stride.head;
    a.dots = s->dots, a.theta_parts = s->theta_parts;
    a.anchors = s->anchors, a.anchor_every = (int)(TN_LA_ANCHOR_TOKENS / CHUNK), a.anchor_slots = s->tokens / TN_LA_ANCHOR_TOKENS + 1;
    a.cosine = s->cosine, a.reverse = s->reverse, a.per_token = s->decay == TN_LA_SCALAR_DECAY;
    a.grid = s->grid, a.theta = s->theta, a.log_decay = s->decay == TN_LA_NO_DECAY ? NULL : s->log_decay;
    a.heads = s->heads, a.tokens = s->tokens, a.cu_seqlens = s->cu_seqlens;
    a.read_scale = s->read_scale, a.write_scale = s->write_scale;
    a.state = s->state, a.state_out = s->state_out, a.state_row = s->state_row, a.state_column = s->state_column;
    a.segments = l.segments, a.slices = s->sequences * s->heads;
    a.sums = (float *)workspace;
    a.totals = a.sums + (l.segments > 1 ? l.segments * a.slices * s->inner * s->outer : 0);
    const int shared_bytes = (int)device->shared_bytes;
    const dim3 grid((unsigned)a.slices, (unsigned)l.blocks, (unsigned)l.segments);
    if (l.inner == 256) return launch<256, 128, false>(a, grid, shared_bytes, stream);
    if (l.inner == 64)
        return s->decode ? launch<64, 64, true>(a, grid, shared_bytes, stream) : launch<64, 64, false>(a, grid, shared_bytes, stream);
    return s->decode ? launch<128, 128, true>(a, grid, shared_bytes, stream) : launch<128, 128, false>(a, grid, shared_bytes, stream);
}
