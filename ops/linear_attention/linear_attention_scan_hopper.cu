/* The scan on Hopper's tensor cores: wgmma with states of 128 x 128, operands as they come. With warpgroups as in
 * linear_attention_scan_hopper.cuh,
 *
 *     P  = mask (x y')        [ 64 x 64 ]      by the first, while the others are at the chunk before; x, y from shared memory
 *     o' = S' x' + z' P'      [ 64 x 64 ]      by the others: A = S' rounded, from registers; x, z, P from shared memory
 *     S' = S' + z' y          [ 64 x 128 ]     A = z', each token by its factor, from registers; y from shared memory
 *
 *     first     fetch i + 2 | P of i + 1                        rings:  x, y, z    three chunks
 *     second    o' of i, S' of i, o' out (columns 0 .. 63)              P          two
 *     third     o' of i, S' of i, o' out (columns 64 .. 127)            o          two; what it is multiplied by comes in where it goes out
 *
 * Decay as in linear_attention_scan.cu, but tokens stay in their order: c includes a token's own in reverse too, and there the factors of
 * reading and entering change places. */
#include "linear_attention_scan_hopper.cuh"

namespace {

constexpr int CHUNK = TN_HOPPER_CHUNK, WIDTH = TN_HOPPER_WIDTH, PANEL = TN_HOPPER_PANEL, TILE = TN_HOPPER_TILE, STAGES = 3;

/* DOTS: <o_t, raw_t> too; SUM, SUM_OF_DOTS: a segment's own S alone, where no dots will be made with it, and where they will. */
enum mode { OUTPUT, DOTS, SUM, SUM_OF_DOTS };
template <int Mode> constexpr bool makes_output = Mode < SUM;

struct scan : tn_hopper_scan {
    tn_hopper_operand x, y, z, beside; /* beside: the gate, or what dots are made with */
    int gate_act;
    bool has_gate;
    __nv_bfloat16 *o;
    tn_hopper_operand o_place;
    float *sums, *totals;
};

/* Shared memory, from a multiple of 1024 bytes on. */
struct room {
    static constexpr int stage = 3 * TILE, p = STAGES * stage, out = p + 2 * PANEL, decay = out + 4 * PANEL,
                         diagonal = decay + STAGES * TN_HOPPER_DECAY_BYTES, parts = diagonal + 2 * CHUNK * 4,
                         full = parts + 2 * 2 * 4 * CHUNK * 4, empty = full + STAGES * 8, p_full = empty + STAGES * 8,
                         bytes = p_full + 2 * 8;
};

/* ---- the first warpgroup ---- */

template <bool Reverse, int Mode>
__device__ __forceinline__ void make_pairs(const scan &a, uint32_t base, unsigned char *shared, uint32_t tiles, const float *logs,
                                           int turn) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, pair = 2 * (lane % 4);
    const bool decays = a.log_decay != nullptr;
    float p[8][4];
    tn_hopper_start_pairs(p, tiles, tiles + TILE);
    tn_wgmma_await<0>();
    tn_wgmma_hold(p);
    const float scale = a.read_scale * a.write_scale;
    const uint32_t p_tile = base + room::p + turn * PANEL;
    float *diagonal = reinterpret_cast<float *>(shared + room::diagonal) + turn * CHUNK;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int row = warp * 16 + quad + 8 * half, column = j * 8 + pair;
            const float2 w = tn_hopper_pair_weight<Reverse>(logs, decays, scale, row, column);
            float v0 = p[j][2 * half] * w.x, v1 = p[j][2 * half + 1] * w.y;
            /* Dots leave a token's own pair out: it is in those of q as in those of k, and under strong decay little else is. */
            if (Mode == DOTS) {
                if (column == row) diagonal[row] = v0, v0 = 0;
                if (column + 1 == row) diagonal[row] = v1, v1 = 0;
            }
            tn_tile_write_word(p_tile + tn_tile_pair(CHUNK, row, column), tn_pair_of(v0, v1));
        }
    tn_wgmma_publish();
    tn_hopper_arrive(base + room::p_full + turn * 8);
}

template <bool Reverse, int Mode>
__device__ __forceinline__ void feed(const scan &a, const tn_hopper_place &at, uint32_t base, unsigned char *shared) {
    const int warp = threadIdx.x / 32;
    const __nv_bfloat16 *x = a.x.x + tn_hopper_offset(at, a.x), *y = a.y.x + tn_hopper_offset(at, a.y),
                        *z = a.z.x + tn_hopper_offset(at, a.z);
    tn_hopper_decay<Reverse> decay(a, at);
    const bool cumulates = a.log_decay && warp == 0;

    auto issue = [&](int i) {
        if (i < at.chunks) {
            const int64_t t0 = tn_hopper_chunk<Reverse>(at, i) * CHUNK;
            const int rows = tn_hopper_rows_of(at, t0);
            const uint32_t to = base + i % STAGES * room::stage;
            if (cumulates) decay.fetch(at, i, base + room::decay + i % STAGES * TN_HOPPER_DECAY_BYTES);
            if (makes_output<Mode>) tn_hopper_fetch<WIDTH>(to, x + t0 * a.x.token, a.x.token, rows);
            tn_hopper_fetch<WIDTH>(to + TILE, y + t0 * a.y.token, a.y.token, rows);
            tn_hopper_fetch<WIDTH>(to + 2 * TILE, z + t0 * a.z.token, a.z.token, rows);
        }
        tn_tile_fetched();
    };

    issue(0);
    issue(1);
    for (int i = 0; i < at.chunks; i++) {
        const int stage = i % STAGES;
        float *logs = reinterpret_cast<float *>(shared + room::decay + stage * TN_HOPPER_DECAY_BYTES);
        tn_tile_await<1>();
        tn_wgmma_publish();
        if (cumulates) decay.cumulate(logs);
        tn_hopper_arrive(base + room::full + stage * 8);
        if (makes_output<Mode>) {
            tn_hopper_await(base + room::full + stage * 8, i / STAGES);
            make_pairs<Reverse, Mode>(a, base, shared, base + stage * room::stage, logs, i & 1);
        }
        if (i >= 1 && i + 1 < at.chunks) tn_hopper_await(base + room::empty + (i - 1) % STAGES * 8, (i - 1) / STAGES);
        issue(i + 2);
    }
    tn_tile_await<0>();
}

/* ---- the other two ---- */

template <bool Reverse, int Mode>
__device__ __forceinline__ void walk(const scan &a, const tn_hopper_place &at, uint32_t base, unsigned char *shared) {
    const int group = threadIdx.x / TN_HOPPER_GROUP - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, quad = lane / 4,
              pair = 2 * (lane % 4);
    const uint32_t across = tn_hopper_across(lane);
    const bool decays = a.log_decay != nullptr, brings = makes_output<Mode> && (Mode == DOTS || a.has_gate);
    const int column = group * 64 + warp * 16 + quad;
    float s[WIDTH / 8][4];
    if (!makes_output<Mode>) tn_hopper_clear(s);
    else tn_hopper_begin_state(s, a, at, column, pair);

    const __nv_bfloat16 *beside = brings ? a.beside.x + tn_hopper_offset(at, a.beside) + group * 64 : nullptr;
    __nv_bfloat16 *o = makes_output<Mode> && a.o ? a.o + tn_hopper_offset(at, a.o_place) + group * 64 : nullptr;
    const uint32_t out = base + room::out + group * 2 * PANEL;
    auto bring = [&](int i) {
        if (i < at.chunks) {
            const int64_t t0 = tn_hopper_chunk<Reverse>(at, i) * CHUNK;
            tn_hopper_fetch<64>(out + (i & 1) * PANEL, beside + t0 * a.beside.token, a.beside.token, tn_hopper_rows_of(at, t0));
        }
        tn_tile_fetched();
    };
    if (brings) bring(0);

    float all_of_segment = 0;
    for (int i = 0; i < at.chunks; i++) {
        const int stage = i % STAGES, turn = i & 1;
        const uint32_t x_tile = base + stage * room::stage, y_tile = x_tile + TILE, z_panel = y_tile + TILE + group * PANEL,
                       p_tile = base + room::p + turn * PANEL;
        const float *logs = reinterpret_cast<const float *>(shared + room::decay + stage * TN_HOPPER_DECAY_BYTES), *reads = logs + CHUNK,
                    *enters = reads + CHUNK;
        tn_hopper_await(base + room::full + stage * 8, i / STAGES);

        float o_sum[8][4];
        uint32_t rounded[WIDTH / 16][4], rest[WIDTH / 16][4], entering[CHUNK / 16][4], entering_rest[CHUNK / 16][4];
        if (makes_output<Mode>) {
            tn_hopper_round(rounded, s);
            tn_hopper_clear(o_sum);
        }
        auto read_state = [&](const uint32_t(&a_of_state)[WIDTH / 16][4]) {
            tn_wgmma_begin();
#pragma unroll
            for (int k = 0; k < WIDTH / 16; k++) tn_wgmma<false>(o_sum, a_of_state[k], tn_hopper_columns(x_tile, k));
            tn_wgmma_commit();
        };
        /* Dots cancel over a sequence: what rounding has left of S counts there. */
        if (Mode == DOTS) {
            tn_wgmma_hold(o_sum);
            read_state(rounded);
            tn_wgmma_await<1>(); /* nothing to wait for, but the compiler wants to see it before S is read */
            tn_hopper_rests(rest, rounded, s);
            tn_hopper_made(rest);
            read_state(rest);
            tn_wgmma_await<1>(); /* for registers */
        }
        if (decays) {
            const float all = logs[CHUNK - 1], f = tn_hopper_exp2(all);
            all_of_segment += all;
#pragma unroll
            for (int j = 0; j < WIDTH / 8; j++) s[j][0] *= f, s[j][1] *= f, s[j][2] *= f, s[j][3] *= f;
        }
        if (Mode == OUTPUT) read_state(rounded);
        constexpr bool fine = Mode == DOTS || Mode == SUM_OF_DOTS;
        tn_hopper_entering<fine>(entering, entering_rest, z_panel + across, warp * 2, enters, decays, a.write_scale, pair);
        if (fine) {
            tn_hopper_made(entering);
            tn_hopper_made(entering_rest);
            tn_wgmma_hold(s);
        }
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++) tn_wgmma<true>(s, entering[k], tn_hopper_rows(y_tile, k));
        if (fine) {
#pragma unroll
            for (int k = 0; k < CHUNK / 16; k++) tn_wgmma<true>(s, entering_rest[k], tn_hopper_rows(y_tile, k));
        }
        tn_wgmma_commit();

        if (!makes_output<Mode>) {
            tn_wgmma_await<0>();
            tn_wgmma_hold(s);
            tn_hopper_arrive(base + room::empty + stage * 8);
            continue;
        }

        tn_wgmma_await<1>();
        tn_wgmma_hold(o_sum);
        tn_hopper_read_factor(o_sum, reads, decays, a.read_scale, pair);
        tn_hopper_await(base + room::p_full + turn * 8, i / 2);
        tn_wgmma_hold(o_sum);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
            tn_hopper_product<true, false>(o_sum, tn_hopper_rows(z_panel, k), tn_hopper_columns(p_tile, k));
        tn_wgmma_commit();
        tn_wgmma_await<0>();
        tn_wgmma_hold(o_sum);
        tn_wgmma_hold(s);

        const uint32_t panel = out + turn * PANEL;
        float *parts = reinterpret_cast<float *>(shared + room::parts) + (group * 2 + turn) * 4 * CHUNK;
        if (brings) {
            tn_tile_await<0>();
            tn_hopper_meet(group);
        }
        if (Mode == DOTS) {
            const float *diagonal = reinterpret_cast<const float *>(shared + room::diagonal) + turn * CHUNK;
            tn_hopper_dots(o_sum, panel + across, z_panel + across, warp * 2, diagonal, parts + warp * CHUNK, lane, pair);
        }
        tn_hopper_arrive(base + room::empty + stage * 8);

        const int64_t t0 = tn_hopper_chunk<Reverse>(at, i) * CHUNK;
        const int rows = tn_hopper_rows_of(at, t0);
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++) {
            const uint32_t where = tn_hopper_spot(panel + across, k, warp * 2);
            if (Mode == OUTPUT && a.has_gate) {
                uint32_t raw[4];
                float g[8];
                tn_tile_blocks_transposed(raw, where);
#pragma unroll
                for (int r = 0; r < 4; r++) g[2 * r] = tn_pair_low(raw[r]), g[2 * r + 1] = tn_pair_high(raw[r]);
                tn_activate<true>(g, a.gate_act);
#pragma unroll
                for (int r = 0; r < 8; r++) o_sum[2 * k + r / 4][r % 4] *= g[r];
            }
            const float *v = o_sum[2 * k], *w = o_sum[2 * k + 1];
            tn_hopper_write_transposed(where, tn_pair_of(v[0], v[1]), tn_pair_of(v[2], v[3]), tn_pair_of(w[0], w[1]),
                                       tn_pair_of(w[2], w[3]));
        }
        tn_hopper_meet(group);
        if (Mode == DOTS) tn_hopper_keep_dots(a, at, t0, rows, group, parts);
        if (brings) bring(i + 1);
        if (o) tn_hopper_store_panel(panel, o + t0 * a.o_place.token, a.o_place.token, rows);
        if (Mode == DOTS) tn_hopper_keep_anchor<Reverse>(s, a, at, i, column, pair);
    }

    if (!makes_output<Mode>) {
        if (threadIdx.x == TN_HOPPER_GROUP) a.totals[at.segment * a.slices + at.slice] = all_of_segment;
        tn_hopper_store_state(s, a.sums + (at.segment * a.slices + at.slice) * TN_HOPPER_STATE, WIDTH, 1, column, pair);
    } else if (a.state_out && at.segment == a.segments - 1) {
        tn_hopper_store_state(s, a.state_out + at.slice * TN_HOPPER_STATE, a.state_row, a.state_column, column, pair);
    }
}

template <bool Reverse, int Mode> __global__ void __launch_bounds__(TN_HOPPER_THREADS, 1) scan_kernel(const __grid_constant__ scan a) {
#if TN_TILE_WGMMA
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = tn_tile_address(shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            tn_hopper_start(base + room::full + i * 8, TN_HOPPER_GROUP);
            tn_hopper_start(base + room::empty + i * 8, 2 * TN_HOPPER_GROUP);
        }
        for (int i = 0; i < 2; i++) tn_hopper_start(base + room::p_full + i * 8, TN_HOPPER_GROUP);
    }
    __syncthreads();
    const tn_hopper_place at = tn_hopper_place_of_block(a);
    if (threadIdx.x < TN_HOPPER_GROUP) {
        tn_hopper_leave_registers<104>();
        feed<Reverse, Mode>(a, at, base, shared);
    } else {
        tn_hopper_take_registers<200>();
        walk<Reverse, Mode>(a, at, base, shared);
    }
#endif
}

template <bool Reverse, int Mode> void launch(const scan &a, unsigned segments, cudaStream_t stream) {
    cudaFuncSetAttribute(scan_kernel<Reverse, Mode>, cudaFuncAttributeMaxDynamicSharedMemorySize, room::bytes);
    scan_kernel<Reverse, Mode><<<dim3((unsigned)a.slices, segments), TN_HOPPER_THREADS, room::bytes, stream>>>(a);
}

bool bare(const tn_la_scan_operand &x) { return x.act == TN_NONE && !x.encoded && x.width == WIDTH; }

} // namespace

bool tn_la_scan_hopper_fits(const tn_la_scan *s, const tn_device *device) {
    return device->cuda_path == TN_CUDA_HOPPER && device->shared_bytes >= (size_t)room::bytes && s->inner == WIDTH && s->outer == WIDTH &&
           bare(s->x) && bare(s->y) && bare(s->z) && s->factor_of == TN_LA_FACTOR_NONE && !s->decode &&
           !(s->dots && (s->gate.x || !bare(s->raw)));
}

cudaError_t tn_la_scan_hopper_run(const tn_la_scan *s, int segments, float *sums, float *totals, bool sum, cudaStream_t stream) {
    scan a = {};
    (tn_hopper_scan &)a = tn_hopper_scan_of(s, segments, sums);
    a.x = tn_hopper_operand_of(s->x), a.y = tn_hopper_operand_of(s->y), a.z = tn_hopper_operand_of(s->z);
    a.has_gate = s->gate.x != NULL;
    a.gate_act = s->gate.act;
    a.beside = tn_hopper_operand_of(a.has_gate ? s->gate : s->raw);
    a.o = (__nv_bfloat16 *)s->o;
    a.o_place = { NULL, s->o_stride.batch, s->o_stride.token, s->o_stride.head };
    a.sums = sums, a.totals = totals;
    if (sum) {
        if (s->dots)
            s->reverse ? launch<true, SUM_OF_DOTS>(a, (unsigned)segments - 1, stream)
                       : launch<false, SUM_OF_DOTS>(a, (unsigned)segments - 1, stream);
        else s->reverse ? launch<true, SUM>(a, (unsigned)segments - 1, stream) : launch<false, SUM>(a, (unsigned)segments - 1, stream);
    } else if (s->dots) {
        s->reverse ? launch<true, DOTS>(a, (unsigned)segments, stream) : launch<false, DOTS>(a, (unsigned)segments, stream);
    } else {
        s->reverse ? launch<true, OUTPUT>(a, (unsigned)segments, stream) : launch<false, OUTPUT>(a, (unsigned)segments, stream);
    }
    return cudaGetLastError();
}
