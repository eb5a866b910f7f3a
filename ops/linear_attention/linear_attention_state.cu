/* S = state + kb' vb of every head: one read of k and v.
 *
 * The (head, tile of 64 tokens) list is cut into equal runs, one for each block that fits on the GPU at once, so that every multiprocessor
 * moves the same bytes whatever b h and m are. A block walks its run through a ring of tiles in shared memory, keeps S of the head it is in as
 * accumulators and writes them when the head or the run ends: to S itself where the head lies in one run, else to a part of its own
 * ([run + head]: unique, since from one to the next meeting at least one of the two goes up by one). A second kernel adds a head's parts in order.
 *
 *     k tile [64 tokens][d]  --ldmatrix, transposed-->  A fragments: warp w has slots 16 w .. 16 w + 15 of all tokens,
 *                            turned by LRPE in registers (cosine: one fragment becomes two); no element is encoded twice
 *     v tile [64 tokens][e]  --ldmatrix or wgmma--->    B
 *     accumulators           warp w: rows 16 w .. of S (cosine: and those of the sines) x all columns, f32
 *
 * Turning: a thread has 2 slots x 4 tokens of every 16. Their cosines and sines are computed at the begin of every fourth tile and turned on by
 * 16 tokens in between (four multiply-adds), as long as tokens stand on one axis; else they are computed for every token.
 * f32: blocks take 64 columns of v each, k is read once for each of them, and products run as three bf16 ones. */
#include "linear_attention_fwd.cuh"

#define TILE 64
#define EXACT_EVERY 4 /* tiles */
#define MAX_STAGES 4

namespace {

/* Shared memory of one block, in bytes from its begin. */
template <typename T, int W, int E> struct layout {
    typedef tn_tile_share<T, TILE, W, 2 * W> share_k;
    typedef tn_tile_share<T, TILE, E, 2 * W> share_v;
    static constexpr int k_tile = share_k::tile_bytes * share_k::planes, v_tile = share_v::tile_bytes * share_v::planes;
    /* bf16: a stage is the tiles themselves. f32: it is what waits to be split into the one pair of tiles after the ring. */
    static constexpr int stage = share_k::split ? share_k::raw_bytes + share_v::raw_bytes : k_tile + v_tile;
    static constexpr int stage_v = share_k::split ? share_k::raw_bytes : k_tile;
    static constexpr int coordinates = 2 * TN_LRPE_MAX_AXES * TILE * 4;
    static __host__ __device__ int tiles(int stages) { return stages * stage; }
    static __host__ __device__ int places(int stages) { return stages * stage + (share_k::split ? k_tile + v_tile : 0); }
    static __host__ __device__ int bytes(int stages) { return places(stages) + coordinates + 1024; }
};

/* Where a block is in the list. */
struct place {
    int head, tile; /* tile: within the head */
};
__device__ __forceinline__ void next(place &at, int per_head) {
    if (++at.tile == per_head) at.tile = 0, at.head++;
}

/* Two slots x four tokens of a thread: cosine and sine. With rotate both slots are one pair and only the first is kept. */
template <int Kind> struct turns {
    static constexpr int n = Kind == TN_LA_COSINE ? 2 : 1;
    tn_tile_rate rate[n];
    int axis[n];
    float c[n][4], s[n][4], step_c[n], step_s[n];

    __device__ __forceinline__ void begin(const tn_la_forward &f, int head_in_batch, int slot) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            tn_la_slot turn = tn_la_slot_of(f, f.k_grid, head_in_batch, slot + 8 * i);
            rate[i] = turn.rate, axis[i] = turn.axis;
            tn_turn_of(16.0f, rate[i], step_c[i], step_s[i]);
        }
    }
    /* coordinates: [axis][TILE] */
    __device__ __forceinline__ void exact(const float *coordinates, int token) {
#pragma unroll
        for (int i = 0; i < n; i++)
#pragma unroll
            for (int u = 0; u < 4; u++) tn_turn_of(coordinates[axis[i] * TILE + token + (u & 1) + (u >> 1) * 8], rate[i], c[i][u], s[i][u]);
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
    typedef layout<T, W, E> shared;
    static constexpr bool split = shared::share_k::split;
    static constexpr int planes = split ? 2 : 1, fragments = Kind == TN_LA_COSINE ? 2 : 1, N = E / 8;

    float c[fragments][N][4];
    turns<Kind> turn;

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < fragments; i++)
#pragma unroll
            for (int j = 0; j < N; j++) c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0;
    }

    /* Raw fragment(s) of 16 tokens into the A's of the products: [plane][fragment]. */
    __device__ __forceinline__ void encode(uint32_t (&a)[planes][fragments][4]) {
        float x[4][2], first[4][2], second[4][2];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            x[r][0] = tn_pair_low(a[0][0][r]), x[r][1] = tn_pair_high(a[0][0][r]);
            if (split) x[r][0] += tn_pair_low(a[planes - 1][0][r]), x[r][1] += tn_pair_high(a[planes - 1][0][r]);
        }
        if constexpr (Act == TN_SILU) {
#pragma unroll
            for (int r = 0; r < 4; r++) x[r][0] = tn_silu_quick(x[r][0]), x[r][1] = tn_silu_quick(x[r][1]);
        }
        turn.encode(x, first, second);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            a[0][0][r] = tn_pair_of(first[r][0], first[r][1]);
            if (Kind == TN_LA_COSINE) a[0][fragments - 1][r] = tn_pair_of(second[r][0], second[r][1]);
            if (split) {
                a[planes - 1][0][r] = tn_pair_rest(a[0][0][r], first[r][0], first[r][1]);
                if (Kind == TN_LA_COSINE) a[planes - 1][fragments - 1][r] = tn_pair_rest(a[0][fragments - 1][r], second[r][0], second[r][1]);
            }
        }
    }

    __device__ __forceinline__ void multiply(const uint32_t (&a)[planes][fragments][4], uint32_t v_tile, int row) {
        if constexpr (Wgmma) {
            tn_wgmma_begin();
#pragma unroll
            for (int p = 0; p < (split ? 3 : 1); p++) {
                uint64_t b = tn_wgmma_rows(v_tile + (p == 1 ? shared::share_v::tile_bytes : 0) + row * 128, TILE * 128);
#pragma unroll
                for (int i = 0; i < fragments; i++) tn_wgmma<true>(c[i], a[p == 2 ? planes - 1 : 0][i], b);
            }
            tn_wgmma_commit();
        } else {
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                /* f32: tensor cores cut off what they add to a large sum, so 16 tokens are summed by themselves. */
                float sum[fragments][2][4] = {};
#pragma unroll
                for (int p = 0; p < planes; p++) {
                    uint32_t b[4];
                    tn_fragment_b(b, v_tile + p * shared::share_v::tile_bytes, TILE, row, j);
#pragma unroll
                    for (int i = 0; i < fragments; i++)
#pragma unroll
                        for (int other = 0; other < 2; other++) {
                            float(&to)[4] = split ? sum[i][other] : c[i][j + other];
                            tn_mma(to, a[0][i], b[2 * other], b[2 * other + 1]);
                            if (split && p == 0) tn_mma(to, a[planes - 1][i], b[2 * other], b[2 * other + 1]);
                        }
                }
#pragma unroll
                for (int i = 0; i < fragments && split; i++)
#pragma unroll
                    for (int at = 0; at < 8; at++) c[i][j + at / 4][at % 4] += sum[i][at / 4][at % 4];
            }
        }
    }

    /* The tile's share of S. Angles are computed for the first 16 tokens if `exact`, for all if `off_axis` (never with wgmma: it runs on
     * while the next 16 tokens are turned, and nothing may branch meanwhile). */
    __device__ __forceinline__ void tile(uint32_t k_tile, uint32_t v_tile, int chunk, int other_chunk, bool exact, bool off_axis, const float *coordinates) {
#pragma unroll
        for (int row = 0; row < TILE; row += 16) {
            uint32_t a[planes][fragments][4];
            if constexpr (Kind != TN_LA_UNTURNED) {
                if ((row == 0 && exact) || (!Wgmma && off_axis)) turn.exact(coordinates, row + (threadIdx.x & 3) * 2);
                else turn.on();
            }
#pragma unroll
            for (int p = 0; p < planes; p++)
                tn_fragment_a_transposed(a[p][0], k_tile + p * shared::share_k::tile_bytes, TILE, row, chunk, other_chunk);
            if constexpr (Kind != TN_LA_UNTURNED || Act == TN_SILU) encode(a);
            multiply(a, v_tile, row);
            if (Wgmma) tn_wgmma_await<1>(); /* the fragments before these are free */
        }
        finish();
    }

    __device__ __forceinline__ void finish() {
        if (!Wgmma) return;
        tn_wgmma_await<0>();
#pragma unroll
        for (int i = 0; i < fragments; i++) tn_wgmma_hold(c[i]);
    }

    /* to: [state_rows][e] of the head; from: state to be added, or NULL. */
    __device__ __forceinline__ void write(float *to, const float *from, const tn_la_forward &f, int slot, int column) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int i = 0; i < fragments; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int at = slot + (lane >> 2) + half * 8;
                if (at >= f.d) continue;
                int64_t row = (int64_t)(tn_slot_feature(Kind == TN_LA_ROTATED, f.d, at) + i * f.d) * f.e;
#pragma unroll
                for (int j = 0; j < N; j++) {
                    int col = column + j * 8 + (lane & 3) * 2;
                    if (col >= f.e) continue;
                    float2 x = make_float2(c[i][j][half * 2], c[i][j][half * 2 + 1]);
                    if (from) {
                        float2 y = *reinterpret_cast<const float2 *>(from + row + col);
                        x.x += y.x, x.y += y.y;
                    }
                    *reinterpret_cast<float2 *>(to + row + col) = x;
                }
            }
    }
};

/* What is fetched next: the tile, and where its head's k and v begin (found anew only when the head changes: divisions are slow). */
template <typename T, int W, int E> struct reader {
    typedef layout<T, W, E> shared;
    place at;
    int left, stage;
    const T *k, *v;

    __device__ __forceinline__ void find(const tn_la_forward &f) {
        const int64_t b = at.head / f.h, h = at.head % f.h;
        k = (const T *)f.k.x + b * f.k.batch + h * f.k.head;
        v = (const T *)f.v.x + b * f.v.batch + h * f.v.head + blockIdx.y * E;
    }
    /* One tile into the next stage of the ring at `ring`, if there is one left; the group is closed in any case. */
    __device__ __forceinline__ void fetch(uint32_t ring, const tn_la_forward &f) {
        if (left > 0) {
            const int64_t first = (int64_t)at.tile * TILE, tokens = f.k.tokens - first;
            const int rows = tokens < TILE ? (int)tokens : TILE;
            const uint32_t to = ring + stage * shared::stage;
            shared::share_k::fetch(to, k + first * f.k.token, f.k.token, rows, f.d, threadIdx.x);
            shared::share_v::fetch(to + shared::stage_v, v + first * f.v.token, f.v.token, rows, f.e - blockIdx.y * E, threadIdx.x);
            left--;
            next(at, (int)f.state_runs.per_head);
            if (at.tile == 0) find(f);
        }
        tn_tile_fetched();
        stage = stage + 1 == f.stages ? 0 : stage + 1;
    }
};

template <typename T, int W, int E> __device__ __forceinline__ void settle(uint32_t stage, uint32_t k_tile, uint32_t v_tile, const tn_la_forward &f, const place &at, int column) {
    typedef layout<T, W, E> shared;
    const int64_t left = f.k.tokens - (int64_t)at.tile * TILE;
    int rows = left < TILE ? (int)left : TILE;
    shared::share_k::settle(stage, k_tile, f.k, f.k.act, at.head, 0, rows, f.d, threadIdx.x);
    shared::share_v::settle(stage + shared::stage_v, v_tile, f.v, f.v.act, at.head, column, rows, f.e - column, threadIdx.x);
}

template <typename T, int W, int E, int Kind, int Act, bool Wgmma>
__global__ void __launch_bounds__(2 * W, Kind == TN_LA_UNTURNED && sizeof(T) == 2 ? 2 : 1) state_kernel(const __grid_constant__ tn_la_forward f) {
    if (Wgmma && !TN_TILE_WGMMA) return;
    typedef layout<T, W, E> shared;
    constexpr bool split = sizeof(T) == 4;
    extern __shared__ char memory[];
    const uint32_t base = (tn_tile_address(memory) + 1023) & ~1023u;
    float *const coordinates = reinterpret_cast<float *>(memory + (base - tn_tile_address(memory)) + shared::places(f.stages));
    const int64_t first = tn_la_run_begin(f.state_runs, blockIdx.x);
    const int n = (int)(tn_la_run_begin(f.state_runs, blockIdx.x + 1) - first), per_head = (int)f.state_runs.per_head;
    const int column = blockIdx.y * E, slot = (threadIdx.x >> 5) * 16;
    const bool one_axis = f.k_grid.axes == 1;
    const int chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, slot >> 3), other_chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, (slot >> 3) + 1);

    tn_la_let_next_begin();
    place now = { (int)(first / per_head), (int)(first % per_head) };
    reader<T, W, E> coming = { now, n, 0, NULL, NULL };
    coming.find(f);
    for (int i = 0; i < (split ? f.stages : f.stages - 1); i++) coming.fetch(base, f);
    int stage = 0;

    state_block<T, W, E, Kind, Act, Wgmma> block;
    block.clear();
    bool head_begins = true, stale = true;
    for (int i = 0; i < n; i++) {
        const uint32_t here = base + stage * shared::stage;
        const uint32_t k_tile = split ? base + shared::tiles(f.stages) : here, v_tile = k_tile + shared::k_tile;
        float *const at_axes = coordinates + (i & 1) * TN_LRPE_MAX_AXES * TILE;
        if (Kind != TN_LA_UNTURNED) {
            for (int t = threadIdx.x; t < f.k_grid.axes * TILE; t += 2 * W)
                at_axes[t] = (float)tn_lrpe_coordinate(&f.k_grid, (int64_t)now.tile * TILE + t % TILE, t / TILE);
            if (head_begins) block.turn.begin(f, now.head % f.h, slot + (threadIdx.x >> 2 & 7));
        }
        tn_tile_await_at_most(split ? f.stages - 1 : f.stages - 2);
        if (split) __syncthreads(); /* the last products have read the tiles */
        if constexpr (Act == TN_LA_SETTLED) settle<T, W, E>(here, k_tile, v_tile, f, now, column);
        if (Wgmma) tn_wgmma_publish();
        __syncthreads();
        coming.fetch(base, f);
        stage = stage + 1 == f.stages ? 0 : stage + 1;

        const bool off_axis = Kind != TN_LA_UNTURNED && (!one_axis || (int64_t)now.tile * TILE < f.k_grid.leading);
        block.tile(k_tile, v_tile, chunk, other_chunk, stale || now.tile % EXACT_EVERY == 0, off_axis, at_axes);
        stale = off_axis, head_begins = false;

        if (now.tile + 1 == per_head || i + 1 == n) {
            int64_t run_first = tn_la_run_of(f.state_runs, now.head * f.state_runs.per_head);
            int64_t run_last = tn_la_run_of(f.state_runs, (now.head + 1) * f.state_runs.per_head - 1);
            int64_t size = (int64_t)f.state_rows * f.e;
            bool whole = run_first == run_last;
            float *to = whole ? f.s + now.head * size : f.parts + ((int64_t)blockIdx.x + now.head) * size;
            block.write(to, whole && f.state ? f.state + now.head * size : NULL, f, slot, column);
            block.clear();
            head_begins = stale = true;
        }
        next(now, per_head);
    }
}

/* S of the heads that runs cut: state, then the parts in order. A block has 1024 numbers of one head. */
__global__ void __launch_bounds__(256) sum_parts(const __grid_constant__ tn_la_forward f) {
    tn_la_let_next_begin();
    int64_t size = (int64_t)f.state_rows * f.e, head = blockIdx.y;
    for (; head < f.heads; head += gridDim.y) {
        int64_t first = tn_la_run_of(f.state_runs, head * f.state_runs.per_head), last = tn_la_run_of(f.state_runs, (head + 1) * f.state_runs.per_head - 1);
        int64_t at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 4;
        if (first == last || at >= size) continue;
        float4 sum = f.state ? *reinterpret_cast<const float4 *>(f.state + head * size + at) : make_float4(0, 0, 0, 0);
        tn_la_await_previous();
#pragma unroll 4
        for (int64_t run = first; run <= last; run++) {
            float4 part = *reinterpret_cast<const float4 *>(f.parts + (run + head) * size + at);
            sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
        *reinterpret_cast<float4 *>(f.s + head * size + at) = sum;
    }
    tn_la_await_previous(); /* all that came before is done when this kernel is, also where it had nothing to add */
}

template <typename T, int W, int E> void plan(tn_la_forward *f, const tn_device *device) {
    const bool two_blocks = f->kind == TN_LA_UNTURNED && sizeof(T) == 2;
    const int slices = (f->e + E - 1) / E;
    int room = (int)device->shared_bytes, stages = MAX_STAGES, most = sizeof(T) == 4 ? 2 : MAX_STAGES;
    if (two_blocks) room /= 2;
    if (stages > most) stages = most;
    while (stages > 1 && layout<T, W, E>::bytes(stages) > room) stages--;
    f->stages = stages;
    int64_t resident = (int64_t)device->multiprocessors * (two_blocks ? 2 : 1) / slices;
    if (resident < 1) resident = 1;
    tn_la_runs *runs = &f->state_runs;
    runs->per_head = (f->k.tokens + TILE - 1) / TILE;
    runs->units = runs->per_head * f->heads;
    /* Runs of whole heads need no parts: where there are about as many heads as blocks, or heads are short. */
    bool whole_heads = runs->per_head <= 16 && f->heads * 2 >= resident;
    if (f->heads <= resident && f->heads * 16 >= resident * 15) whole_heads = true;
    if (whole_heads) runs->blocks = (int)f->heads;
    else runs->blocks = (int)(runs->units < resident ? runs->units : resident);
}

template <typename T, int W, int E, int Act, bool Wgmma> cudaError_t launch_with(const tn_la_forward &f, cudaStream_t stream) {
    dim3 grid((unsigned)f.state_runs.blocks, (unsigned)((f.e + E - 1) / E));
    size_t shared = (size_t)layout<T, W, E>::bytes(f.stages);
    if (f.kind == TN_LA_UNTURNED) return tn_la_launch(state_kernel<T, W, E, TN_LA_UNTURNED, Act, Wgmma>, grid, 2 * W, shared, stream, false, f);
    if (f.kind == TN_LA_ROTATED) return tn_la_launch(state_kernel<T, W, E, TN_LA_ROTATED, Act, Wgmma>, grid, 2 * W, shared, stream, false, f);
    return tn_la_launch(state_kernel<T, W, E, TN_LA_COSINE, Act, Wgmma>, grid, 2 * W, shared, stream, false, f);
}
template <typename T, int W, int E, bool Wgmma> cudaError_t launch(const tn_la_forward &f, cudaStream_t stream) {
    if constexpr (Wgmma) {
        if (f.v.act == TN_NONE && f.k.act == TN_NONE) return launch_with<T, W, E, TN_NONE, true>(f, stream);
        if (f.v.act == TN_NONE && f.k.act == TN_SILU) return launch_with<T, W, E, TN_SILU, true>(f, stream);
    }
    return launch_with<T, W, E, TN_LA_SETTLED, Wgmma>(f, stream);
}

} // namespace

void tn_la_plan_state(tn_la_forward *f, const tn_device *device, tn_dtype dtype) {
    if (dtype == TN_F32) plan<float, 128, 64>(f, device);
    else if (tn_la_width(*f) == 64) plan<tn_cuda_bf16, 64, 64>(f, device);
    else plan<tn_cuda_bf16, 128, 128>(f, device);
}

cudaError_t tn_la_launch_state(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream) {
    cudaError_t error;
    if (dtype == TN_F32) error = launch<float, 128, 64, false>(f, stream);
    else if (tn_la_width(f) == 64) error = launch<tn_cuda_bf16, 64, 64, false>(f, stream);
    else if (product == TN_LA_WGMMA) error = launch<tn_cuda_bf16, 128, 128, true>(f, stream);
    else error = launch<tn_cuda_bf16, 128, 128, false>(f, stream);
    if (error != cudaSuccess || !tn_la_runs_cut_heads(f.state_runs)) return error;
    int64_t size = (int64_t)f.state_rows * f.e;
    dim3 grid((unsigned)((size + 1023) / 1024), (unsigned)(f.heads < 65535 ? f.heads : 65535));
    return tn_la_launch(sum_parts, grid, 256, 0, stream, f.early, f);
}
