/* o = gb * (qb S): one read of q and g, one write of o.
 *
 * A block of 8 warps (f32: 4) walks a run of (head, 128 tokens) units, equally long for all blocks. S of the head it is in lies in shared
 * memory as bf16 (f32: high and low) and is read again only when the head changes. Within that a warp is on its own: it has 16 tokens of
 * every unit, fetches their rows of q and g through its own ring, and meets nobody but its warpgroup (at wgmma).
 *
 *     q tile [16 tokens][d]  --ldmatrix-->  A fragments of 16 tokens x 16 slots, turned in registers
 *     S      [d'][e]         --ldmatrix, transposed, or wgmma-->  B
 *     accumulators           16 tokens x all columns, f32; times scale and act(g), whose place in shared memory o takes, to leave in
 *                            16-byte stores of whole rows
 *
 * Turning: a thread has tokens g and g + 8 of a unit; cosine and sine of the first are computed, and turned on by 8 tokens for the second. */
#include "linear_attention_fwd.cuh"

#define ROWS 16 /* tokens of a warp */
#define MAX_STAGES 4

namespace {

/* What turns a slot: its rate, and the cosine and sine of eight tokens' turn. */
struct slot_turn {
    tn_tile_rate rate;
    float step_c, step_s;
};

/* Shared memory of one block: S | turns of the slots | their axes | the warps' coordinates | the warps' rings. */
template <typename T, int W, int E, int Kind> struct layout {
    typedef tn_tile_share<T, ROWS, W, 32> share_q;
    typedef tn_tile_share<T, ROWS, E, 32> share_g;
    static constexpr bool split = share_q::split;
    static constexpr int warps = split ? 4 : 8, state_rows = Kind == TN_LA_COSINE ? 2 * W : W;
    static constexpr int s_tile = state_rows * E * 2, s = s_tile * share_q::planes;
    static constexpr int stage = split ? share_q::raw_bytes : share_q::tile_bytes + share_g::tile_bytes;
    static constexpr int tiles = split ? share_q::tile_bytes * 2 : 0; /* f32: q once it is split */
    static constexpr int turns = Kind == TN_LA_UNTURNED ? 0 : W * (int)sizeof(slot_turn), axes = Kind == TN_LA_UNTURNED ? 0 : W * 4;
    static constexpr int coordinates = Kind == TN_LA_UNTURNED ? 0 : TN_LRPE_MAX_AXES * ROWS * 4;
    static __host__ __device__ int ring(int stages) { return stages * stage + tiles; }
    static __host__ __device__ int bytes(int stages) { return s + warps * ring(stages) + turns + axes + warps * coordinates + 1024; }
};

struct place {
    int head, unit; /* unit: within the head */
};
__device__ __forceinline__ void next(place &at, int per_head) {
    if (++at.unit == per_head) at.unit = 0, at.head++;
}

template <typename T, int W, int E, int Kind, int Act, bool Wgmma> struct out_block {
    typedef layout<T, W, E, Kind> shared;
    static constexpr bool split = shared::split;
    static constexpr int planes = split ? 2 : 1, fragments = Kind == TN_LA_COSINE ? 2 : 1, N = E / 8, tokens = ROWS * shared::warps;

    const tn_la_forward &f;
    const int warp, lane, column;
    uint32_t s, ring;           /* addresses */
    slot_turn *turns;
    int *axes;
    float *coordinates;         /* [axis][ROWS] of this warp */
    const T *next_q, *next_g, *g;
    T *o;
    float c[N][4];
    float row_scale[2];         /* of c's rows g and g + 8 */

    __device__ __forceinline__ out_block(const tn_la_forward &f, char *memory) : f(f), warp(threadIdx.x >> 5), lane(threadIdx.x & 31), column(blockIdx.y * E) {
        uint32_t begin = tn_tile_address(memory);
        s = (begin + 1023) & ~1023u;
        uint32_t tables = s + shared::s + shared::warps * shared::ring(f.stages);
        ring = s + shared::s + warp * shared::ring(f.stages);
        turns = reinterpret_cast<slot_turn *>(memory + (tables - begin));
        axes = reinterpret_cast<int *>(memory + (tables - begin) + shared::turns);
        coordinates = reinterpret_cast<float *>(memory + (tables - begin) + shared::turns + shared::axes + warp * shared::coordinates);
    }

    __device__ __forceinline__ int64_t first_token(const place &at) const { return (int64_t)at.unit * tokens + warp * ROWS; }
    __device__ __forceinline__ int rows_at(const place &at) const {
        int64_t left = f.q.tokens - first_token(at);
        return left < 0 ? 0 : left < ROWS ? (int)left : ROWS;
    }
    __device__ __forceinline__ uint32_t stage_at(int stage) const { return ring + shared::tiles + stage * shared::stage; }

    /* Where q, g and o of a head begin (found only when the head changes: divisions are slow). */
    __device__ __forceinline__ void find_next(int head) {
        const int64_t b = head / f.h, h = head % f.h;
        next_q = (const T *)f.q.x + b * f.q.batch + h * f.q.head;
        next_g = (const T *)f.g.x + b * f.g.batch + h * f.g.head + column;
    }
    __device__ __forceinline__ void find(int head) {
        const int64_t b = head / f.h, h = head % f.h;
        o = (T *)f.o + b * f.o_batch + h * f.o_head + column;
        g = (const T *)f.g.x + b * f.g.batch + h * f.g.head + column;
    }

    __device__ __forceinline__ void fetch(int stage, const place &at) {
        const int64_t first = first_token(at);
        const int rows = rows_at(at);
        shared::share_q::fetch(stage_at(stage), next_q + first * f.q.token, f.q.token, rows, f.d, lane);
        if (!split && f.g.x)
            shared::share_g::fetch(stage_at(stage) + shared::share_q::tile_bytes, next_g + first * f.g.token, f.g.token, rows, f.e - column, lane);
    }

    /* S of a head and the turns of its slots, by the whole block. */
    __device__ __forceinline__ void take_head(int head) {
        const float *from = f.s + (int64_t)head * f.state_rows * f.e + column;
#pragma unroll 4
        for (int i = threadIdx.x; i < shared::state_rows * (E / 8); i += shared::warps * 32) {
            int row = i / (E / 8), chunk = i % (E / 8), slot = Kind == TN_LA_COSINE && row >= W ? row - W : row;
            float4 low = make_float4(0, 0, 0, 0), high = low;
            if (slot < f.d && column + chunk * 8 < f.e) {
                int feature = tn_slot_feature(Kind == TN_LA_ROTATED, f.d, slot) + (row == slot ? 0 : f.d);
                const float4 *at = reinterpret_cast<const float4 *>(from + (int64_t)feature * f.e + chunk * 8);
                low = at[0], high = at[1];
            }
            uint4 words = make_uint4(tn_pair_of(low.x, low.y), tn_pair_of(low.z, low.w), tn_pair_of(high.x, high.y), tn_pair_of(high.z, high.w));
            uint32_t to = s + tn_tile_chunk(shared::state_rows, row, chunk);
            tn_tile_write(to, words);
            if (split)
                tn_tile_write(to + shared::s_tile, make_uint4(tn_pair_rest(words.x, low.x, low.y), tn_pair_rest(words.y, low.z, low.w),
                                                              tn_pair_rest(words.z, high.x, high.y), tn_pair_rest(words.w, high.z, high.w)));
        }
        if (Kind != TN_LA_UNTURNED && threadIdx.x < W) {
            tn_la_slot slot = tn_la_slot_of(f, f.q_grid, head % f.h, threadIdx.x);
            slot_turn turn;
            turn.rate = slot.rate;
            tn_turn_of(8.0f, slot.rate, turn.step_c, turn.step_s);
            turns[threadIdx.x] = turn;
            axes[threadIdx.x] = slot.axis;
        }
    }

    /* Softmax over the features takes the maximum before, and the sum of what it gives afterwards: o is linear in qb. */
    float most[2], sum[2];
    __device__ __forceinline__ void find_most(const uint32_t (&raw)[W / 16][4]) {
        __nv_bfloat162 of_row[2];
#pragma unroll
        for (int step = 0; step < W / 16; step++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                __nv_bfloat162 pair = *reinterpret_cast<const __nv_bfloat162 *>(&raw[step][r]);
                if (step == 0 && r < 2) of_row[r] = pair;
                else if (step == 0 || step * 16 < f.d) of_row[r & 1] = __hmax2(of_row[r & 1], pair);
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

    __device__ __forceinline__ void activate(float (&x)[4][2], int step) {
        if constexpr (Act == TN_SILU || Act == TN_SOFTMAX) {
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    if (Act == TN_SILU) {
                        x[r][p] = tn_silu_quick(x[r][p]);
                    } else {
                        x[r][p] = step * 16 < f.d ? __expf(x[r][p] - most[r & 1]) : 0.0f;
                        sum[r & 1] += x[r][p];
                    }
                }
        }
    }

    /* A fragment of 16 slots. coordinate: of token g of the warp, on one axis. */
    __device__ __forceinline__ void encode(uint32_t (&a)[planes][fragments][4], int step, float coordinate, bool off_axis) {
        float x[4][2], second[4][2];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            x[r][0] = tn_pair_low(a[0][0][r]), x[r][1] = tn_pair_high(a[0][0][r]);
            if (split) x[r][0] += tn_pair_low(a[planes - 1][0][r]), x[r][1] += tn_pair_high(a[planes - 1][0][r]);
        }
        activate(x, step);
#pragma unroll
        for (int part = 0; part < (Kind == TN_LA_UNTURNED ? 0 : fragments); part++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                int slot = step * 16 + part * 8 + (lane & 3) * 2 + p;
                slot_turn turn = turns[slot];
                float c0, s0, c1, s1;
                if (!Wgmma && off_axis) {
                    const float *of_axis = coordinates + axes[slot] * ROWS + (lane >> 2);
                    tn_turn_of(of_axis[0], turn.rate, c0, s0);
                    tn_turn_of(of_axis[8], turn.rate, c1, s1);
                } else {
                    tn_turn_of(coordinate, turn.rate, c0, s0);
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
#pragma unroll
        for (int r = 0; r < 4; r++) {
            a[0][0][r] = tn_pair_of(x[r][0], x[r][1]);
            if (split) a[planes - 1][0][r] = tn_pair_rest(a[0][0][r], x[r][0], x[r][1]);
            if (Kind == TN_LA_COSINE) {
                a[0][fragments - 1][r] = tn_pair_of(second[r][0], second[r][1]);
                if (split) a[planes - 1][fragments - 1][r] = tn_pair_rest(a[0][fragments - 1][r], second[r][0], second[r][1]);
            }
        }
    }

    __device__ __forceinline__ void multiply(const uint32_t (&a)[planes][fragments][4], int step) {
#pragma unroll
        for (int i = 0; i < fragments; i++) {
            const int row = i * W + step * 16;
            if constexpr (Wgmma) {
                tn_wgmma<true>(c, a[0][i], tn_wgmma_rows(s + row * 128, shared::state_rows * 128));
            } else {
                tn_mma_rows(c, a[0][i], s, shared::state_rows, row);
                if (split) {
                    tn_mma_rows(c, a[planes - 1][i], s, shared::state_rows, row);
                    tn_mma_rows(c, a[0][i], s + shared::s_tile, shared::state_rows, row);
                }
            }
        }
    }

    __device__ __forceinline__ void read(uint32_t (&a)[4], uint32_t q_tile, int step) {
        tn_fragment_a(a, q_tile, ROWS, 0, tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, step * 2), tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, step * 2 + 1));
    }

    /* c = qb S of the warp's tokens, from q settled at q_tile. */
    __device__ __forceinline__ void product(uint32_t q_tile, const place &at) {
        const int64_t first = first_token(at);
        const bool off_axis = !Wgmma && Kind != TN_LA_UNTURNED && (f.q_grid.axes > 1 || first < f.q_grid.leading);
        const float coordinate = (float)(first + (lane >> 2) - f.q_grid.leading + f.q_grid.offset);
#pragma unroll
        for (int j = 0; j < N; j++) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
        uint32_t raw[W / 16][4];
        if constexpr (Act == TN_SOFTMAX) {
#pragma unroll
            for (int step = 0; step < W / 16; step++) read(raw[step], q_tile, step);
            find_most(raw);
        }
#pragma unroll
        for (int step = 0; step < W / 16; step++) {
            uint32_t a[planes][fragments][4];
#pragma unroll
            for (int p = 0; p < planes; p++) {
                if constexpr (Act == TN_SOFTMAX) a[0][0][0] = raw[step][0], a[0][0][1] = raw[step][1], a[0][0][2] = raw[step][2], a[0][0][3] = raw[step][3];
                else read(a[p][0], q_tile + p * shared::share_q::tile_bytes, step);
            }
            if constexpr (Kind != TN_LA_UNTURNED || Act == TN_SILU || Act == TN_SOFTMAX) encode(a, step, coordinate, off_axis);
            if constexpr (Wgmma) {
                if (step == 0) tn_wgmma_hold(c);
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
                for (int j = 0; j < N; j++) words[j] = tn_tile_read_word(row + (j >> 3) * ROWS * 128 + (((j ^ g) & 7) << 4));
            }
#pragma unroll
            for (int j = 0; j < N; j++) {
                float low = c[j][half * 2] * row_scale[half], high = c[j][half * 2 + 1] * row_scale[half];
                if (Gate == GATED) low *= tn_pair_low(words[j]), high *= tn_pair_high(words[j]);
                if (Gate == GATED_BY_SILU) low *= tn_silu_quick(tn_pair_low(words[j])), high *= tn_silu_quick(tn_pair_high(words[j]));
                words[j] = tn_pair_of(low, high);
            }
#pragma unroll
            for (int j = 0; j < N; j++) tn_tile_write_word(row + (j >> 3) * ROWS * 128 + (((j ^ g) & 7) << 4), words[j]);
        }
    }
    /* bf16: gated in shared memory, then rows leave in 16-byte stores. */
    __device__ __forceinline__ void finish_in_place(uint32_t g_tile, T *o, int rows) {
        if (!f.g.x) gate<UNGATED>(g_tile);
        else if (f.g.act == TN_SILU) gate<GATED_BY_SILU>(g_tile);
        else gate<GATED>(g_tile);
        __syncwarp();
        constexpr int per_row = E / 8, row_step = 32 / per_row, n = ROWS / row_step;
        const int first = lane / per_row, chunk = lane % per_row;
        uint4 words[n];
#pragma unroll
        for (int i = 0; i < n; i++) words[i] = tn_tile_read(g_tile + tn_tile_chunk(ROWS, first + i * row_step, chunk));
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
                *reinterpret_cast<float2 *>(o + row * f.o_token + col) = make_float2(x[0] * (c[j][half * 2] * row_scale[half]), x[1] * (c[j][half * 2 + 1] * row_scale[half]));
            }
        }
    }

    __device__ __forceinline__ void unit(int stage, const place &at) {
        const uint32_t here = stage_at(stage), q_tile = split ? ring : here, g_tile = here + shared::share_q::tile_bytes;
        const int rows = rows_at(at);
        const int64_t first = first_token(at);
        if (!Wgmma && Kind != TN_LA_UNTURNED && (f.q_grid.axes > 1 || first < f.q_grid.leading))
            for (int i = lane; i < f.q_grid.axes * ROWS; i += 32) coordinates[i] = (float)tn_lrpe_coordinate(&f.q_grid, first + i % ROWS, i / ROWS);
        if constexpr (Act == TN_LA_SETTLED) {
            shared::share_q::settle(here, q_tile, f.q, f.q.act, at.head, 0, rows, f.d, lane);
            if (!split && f.g.x && f.g.act != TN_SILU) shared::share_g::settle(0, g_tile, f.g, f.g.act, at.head, column, rows, f.e - column, lane);
        }
        __syncwarp();
        product(q_tile, at);
        if constexpr (split) finish_in_pairs(g + first * f.g.token, o + first * f.o_token, rows);
        else finish_in_place(g_tile, o + first * f.o_token, rows);
        if (split) __syncwarp();
    }
};

template <typename T, int W, int E, int Kind, int Act, bool Wgmma>
__global__ void __launch_bounds__(layout<T, W, E, Kind>::warps * 32, 1) out_kernel(const __grid_constant__ tn_la_forward f) {
    if (Wgmma && !TN_TILE_WGMMA) return;
    extern __shared__ char memory[];
    out_block<T, W, E, Kind, Act, Wgmma> block(f, memory);
    const int64_t first = tn_la_run_begin(f.out_runs, blockIdx.x);
    const int n = (int)(tn_la_run_begin(f.out_runs, blockIdx.x + 1) - first), per_head = (int)f.out_runs.per_head;
    place now = { (int)(first / per_head), (int)(first % per_head) }, coming = now;
    int to_come = n, head = -1, stage = 0;
    block.find_next(coming.head);
    for (int i = 0; i < f.stages; i++) {
        if (to_come-- > 0) {
            block.fetch(i, coming);
            next(coming, per_head);
            if (coming.unit == 0) block.find_next(coming.head);
        }
        tn_tile_fetched();
    }
    tn_la_await_previous();
    for (int i = 0; i < n; i++) {
        if (now.head != head) {
            if (head >= 0) __syncthreads(); /* all are done with the last S */
            head = now.head;
            block.find(head);
            block.take_head(head);
            if (Wgmma) tn_wgmma_publish();
            __syncthreads();
        }
        tn_tile_await_at_most(f.stages - 1);
        block.unit(stage, now);
        if (to_come-- > 0) {
            block.fetch(stage, coming);
            next(coming, per_head);
            if (coming.unit == 0) block.find_next(coming.head);
        }
        tn_tile_fetched();
        next(now, per_head);
        stage = stage + 1 == f.stages ? 0 : stage + 1;
    }
}

template <typename T, int W, int E, int Kind> void plan_for(tn_la_forward *f, const tn_device *device) {
    int stages = MAX_STAGES;
    while (stages > 1 && layout<T, W, E, Kind>::bytes(stages) > (int)device->shared_bytes) stages--;
    f->stages = stages;
    const int slices = (f->e + E - 1) / E, tokens = ROWS * layout<T, W, E, Kind>::warps;
    int64_t resident = device->multiprocessors / slices;
    if (resident < 1) resident = 1;
    tn_la_runs *runs = &f->out_runs;
    runs->per_head = (f->q.tokens + tokens - 1) / tokens;
    runs->units = runs->per_head * f->heads;
    runs->blocks = (int)(runs->units < resident ? runs->units : resident);
}
template <typename T, int W, int E> void plan(tn_la_forward *f, const tn_device *device) {
    if (f->kind == TN_LA_UNTURNED) plan_for<T, W, E, TN_LA_UNTURNED>(f, device);
    else if (f->kind == TN_LA_ROTATED) plan_for<T, W, E, TN_LA_ROTATED>(f, device);
    else plan_for<T, W, E, TN_LA_COSINE>(f, device);
}

template <typename T, int W, int E, int Kind, int Act, bool Wgmma> cudaError_t launch_for(const tn_la_forward &f, cudaStream_t stream) {
    dim3 grid((unsigned)f.out_runs.blocks, (unsigned)((f.e + E - 1) / E));
    typedef layout<T, W, E, Kind> shared;
    return tn_la_launch(out_kernel<T, W, E, Kind, Act, Wgmma>, grid, shared::warps * 32, (size_t)shared::bytes(f.stages), stream, f.early, f);
}
template <typename T, int W, int E, int Act, bool Wgmma> cudaError_t launch_with(const tn_la_forward &f, cudaStream_t stream) {
    if (f.kind == TN_LA_UNTURNED) return launch_for<T, W, E, TN_LA_UNTURNED, Act, Wgmma>(f, stream);
    if (f.kind == TN_LA_ROTATED) return launch_for<T, W, E, TN_LA_ROTATED, Act, Wgmma>(f, stream);
    return launch_for<T, W, E, TN_LA_COSINE, Act, Wgmma>(f, stream);
}
template <typename T, int W, int E, bool Wgmma> cudaError_t launch(const tn_la_forward &f, cudaStream_t stream) {
    bool quick_gate = !f.g.x || f.g.act == TN_NONE || f.g.act == TN_SILU;
    if constexpr (Wgmma) {
        if (quick_gate && f.q.act == TN_NONE) return launch_with<T, W, E, TN_NONE, true>(f, stream);
        if (quick_gate && f.q.act == TN_SILU) return launch_with<T, W, E, TN_SILU, true>(f, stream);
        if (quick_gate && f.q.act == TN_SOFTMAX && !f.q.over_sequence) return launch_with<T, W, E, TN_SOFTMAX, true>(f, stream);
    }
    return launch_with<T, W, E, TN_LA_SETTLED, Wgmma>(f, stream);
}

} // namespace

void tn_la_plan_out(tn_la_forward *f, const tn_device *device, tn_dtype dtype) {
    if (dtype == TN_F32) plan<float, 128, 64>(f, device);
    else if (tn_la_width(*f) == 64) plan<tn_cuda_bf16, 64, 64>(f, device);
    else plan<tn_cuda_bf16, 128, 128>(f, device);
}

cudaError_t tn_la_launch_out(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream) {
    if (dtype == TN_F32) return launch<float, 128, 64, false>(f, stream);
    if (tn_la_width(f) == 64) return launch<tn_cuda_bf16, 64, 64, false>(f, stream);
    if (product == TN_LA_WGMMA) return launch<tn_cuda_bf16, 128, 128, true>(f, stream);
    return launch<tn_cuda_bf16, 128, 128, false>(f, stream);
}
