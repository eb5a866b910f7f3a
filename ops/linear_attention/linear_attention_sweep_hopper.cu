/* dk and dv in one sweep back over the tokens, for states of 128 x 128: dS is brought up to date once and read in both directions. With
 * warpgroups as in linear_attention_scan_hopper.cuh, x = v, y = dy, z = q, w = k and S = dS' [e x d],
 *
 *     P1 = mask (x y'), P2 = mask (w z')       [ 64 x 64 ]     by the first; all from shared memory
 *     dk' = S' x' + z' P1'                     [ 64 x 64 ]     by the others: A = S' rounded, from registers; x, z, P1 from shared memory
 *     dv  = w S' + P2 y                        [ 64 x 64 ]     S' rounded from shared memory too, where both warpgroups leave their halves
 *     S'  = S' + z' y                          [ 64 x 128 ]    A = z', each token by its factor, from registers
 *
 * Chunks come two ahead. Bytes: q, k, v, dy read once, dk, dv written once. */
#include "linear_attention_scan_hopper.cuh"

namespace {

constexpr int CHUNK = TN_HOPPER_CHUNK, WIDTH = TN_HOPPER_WIDTH, PANEL = TN_HOPPER_PANEL, TILE = TN_HOPPER_TILE, STAGES = 2;
constexpr int COPY_PANEL = WIDTH * 128;

struct sweep : tn_hopper_scan {
    tn_hopper_operand x, y, z, w, dk_place, dv_place;
    __nv_bfloat16 *dk, *dv;
};

/* Shared memory, from a multiple of 1024 bytes on. */
struct room {
    static constexpr int stage = 4 * TILE, copy = STAGES * stage, p = copy + 2 * COPY_PANEL, out = p + 2 * PANEL, decay = out + 4 * PANEL,
                         diagonal = decay + STAGES * TN_HOPPER_DECAY_BYTES, parts = diagonal + CHUNK * 4, full = parts + 2 * 4 * CHUNK * 4,
                         empty = full + STAGES * 8, p_full = empty + STAGES * 8, bytes = p_full + 8;
};

/* ---- the first warpgroup ---- */

/* Products of pairs, by their weights, to where the others read them. */
template <bool Reverse, bool Dots>
__device__ __forceinline__ void publish_pairs(const sweep &a, uint32_t base, unsigned char *shared, const float *logs,
                                              const float (&p1)[8][4], const float (&p2)[8][4]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, pair = 2 * (lane % 4);
    const bool decays = a.log_decay != nullptr;
    const float scale = a.read_scale * a.write_scale;
    const uint32_t p_tile = base + room::p;
    float *diagonal = reinterpret_cast<float *>(shared + room::diagonal);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int row = warp * 16 + quad + 8 * half, column = j * 8 + pair;
            const float2 w = tn_hopper_pair_weight<Reverse>(logs, decays, scale, row, column);
            const uint32_t to = p_tile + tn_tile_pair(CHUNK, row, column);
            float v0 = p1[j][2 * half] * w.x, v1 = p1[j][2 * half + 1] * w.y;
            /* Dots leave a token's own pair out: it is in those of q as in those of k, and under strong decay little else is. */
            if (Dots) {
                if (column == row) diagonal[row] = v0, v0 = 0;
                if (column + 1 == row) diagonal[row] = v1, v1 = 0;
            }
            tn_tile_write_word(to, tn_pair_of(v0, v1));
            tn_tile_write_word(to + PANEL, tn_pair_of(p2[j][2 * half] * w.x, p2[j][2 * half + 1] * w.y));
        }
    tn_wgmma_publish();
    tn_hopper_arrive(base + room::p_full);
}

template <bool Reverse, bool Dots>
__device__ __forceinline__ void feed(const sweep &a, const tn_hopper_place &at, uint32_t base, unsigned char *shared) {
    const int warp = threadIdx.x / 32;
    tn_hopper_decay<Reverse> decay(a, at);
    const bool cumulates = a.log_decay && warp == 0;
    auto issue = [&](int i) {
        if (i < at.chunks) {
            const int64_t t0 = tn_hopper_chunk<Reverse>(at, i) * CHUNK;
            const int rows = tn_hopper_rows_of(at, t0);
            const uint32_t to = base + i % STAGES * room::stage;
            if (cumulates) decay.fetch(at, i, base + room::decay + i % STAGES * TN_HOPPER_DECAY_BYTES);
            const tn_hopper_operand *const all[] = { &a.x, &a.y, &a.z, &a.w };
#pragma unroll
            for (int j = 0; j < 4; j++)
                tn_hopper_fetch<WIDTH>(to + j * TILE, all[j]->x + tn_hopper_offset(at, *all[j]) + t0 * all[j]->token, all[j]->token, rows);
        }
        tn_tile_fetched();
    };

    issue(0);
    for (int i = 0; i < at.chunks; i++) {
        const int stage = i % STAGES;
        const uint32_t last_empty = base + room::empty + (i - 1) % STAGES * 8;
        float *logs = reinterpret_cast<float *>(shared + room::decay + stage * TN_HOPPER_DECAY_BYTES);
        /* Where the others are still at the last chunk, this one has come, most likely, and its pairs can be multiplied meanwhile. */
        const bool room_now = i == 0 || __shfl_sync(0xffffffffu, (int)tn_hopper_turned(last_empty, (i - 1) / STAGES), 0);
        if (room_now) {
            issue(i + 1);
            tn_tile_await<1>();
        } else {
            tn_tile_await<0>();
        }
        tn_wgmma_publish();
        if (cumulates) decay.cumulate(logs);
        tn_hopper_arrive(base + room::full + stage * 8);
        tn_hopper_await(base + room::full + stage * 8, i / STAGES);
        float p1[8][4], p2[8][4];
        const uint32_t tiles = base + stage * room::stage;
        tn_hopper_start_pairs(p1, tiles, tiles + TILE);
        tn_hopper_start_pairs(p2, tiles + 3 * TILE, tiles + 2 * TILE);
        tn_wgmma_await<0>();
        tn_wgmma_hold(p1);
        tn_wgmma_hold(p2);
        if (i >= 1) tn_hopper_await(last_empty, (i - 1) / STAGES);
        if (!room_now) issue(i + 1);
        publish_pairs<Reverse, Dots>(a, base, shared, logs, p1, p2);
    }
    tn_tile_await<0>();
}

/* ---- the other two ---- */

template <bool Reverse, bool Dots>
__device__ __forceinline__ void walk(const sweep &a, const tn_hopper_place &at, uint32_t base, unsigned char *shared) {
    const int group = threadIdx.x / TN_HOPPER_GROUP - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, quad = lane / 4,
              pair = 2 * (lane % 4);
    const uint32_t across = tn_hopper_across(lane), along = (uint32_t)((lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4));
    const bool decays = a.log_decay != nullptr;
    const int column = group * 64 + warp * 16 + quad;
    float s[WIDTH / 8][4];
    tn_hopper_begin_state(s, a, at, column, pair);

    __nv_bfloat16 *const dk = a.dk + tn_hopper_offset(at, a.dk_place) + group * 64, *const dv = a.dv + tn_hopper_offset(at, a.dv_place) +
                                                                                                group * 64;
    const uint32_t dk_panel = base + room::out + group * 2 * PANEL, dv_panel = dk_panel + PANEL, copy = base + room::copy;
    const uint32_t copy_at = copy + (group * 64 + warp * 16) * 128 + along, own_copy = copy + group * COPY_PANEL, p_tile = base + room::p;
    float *parts = reinterpret_cast<float *>(shared + room::parts) + group * 4 * CHUNK;

    for (int i = 0; i < at.chunks; i++) {
        const int stage = i % STAGES;
        const uint32_t x_tile = base + stage * room::stage, y_tile = x_tile + TILE, z_panel = y_tile + TILE + group * PANEL,
                       w_tile = y_tile + 2 * TILE;
        const float *logs = reinterpret_cast<const float *>(shared + room::decay + stage * TN_HOPPER_DECAY_BYTES), *reads = logs + CHUNK,
                    *enters = reads + CHUNK;
        tn_hopper_await(base + room::full + stage * 8, i / STAGES);

        /* What wgmma has under way, in order: S x (hi, then what rounding left), S brought up to date, w S, pairs of dk, pairs of dv. */
        float k_sum[8][4], v_sum[8][4];
        uint32_t rounded[WIDTH / 16][4], rest[WIDTH / 16][4], entering[CHUNK / 16][4], entering_rest[CHUNK / 16][4];
        tn_hopper_round(rounded, s);
        tn_hopper_meet_both(); /* the last chunk's copy has been read */
#pragma unroll
        for (int k = 0; k < WIDTH / 16; k++)
            tn_hopper_write((copy_at ^ (uint32_t)((2 * k & 7) << 4)) + (k >> 2) * COPY_PANEL, rounded[k][0], rounded[k][1], rounded[k][2],
                            rounded[k][3]);
        tn_wgmma_publish();
        tn_hopper_clear(k_sum);
        tn_wgmma_hold(k_sum);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < WIDTH / 16; k++) tn_wgmma<false>(k_sum, rounded[k], tn_hopper_columns(x_tile, k));
        tn_wgmma_commit();
        /* Dots cancel over a sequence: what rounding has left of S counts there. */
        if (Dots) {
            tn_wgmma_await<1>(); /* nothing to wait for, but the compiler wants to see it before S is read */
            tn_hopper_rests(rest, rounded, s);
            tn_hopper_made(rest);
            tn_wgmma_begin();
#pragma unroll
            for (int k = 0; k < WIDTH / 16; k++) tn_wgmma<false>(k_sum, rest[k], tn_hopper_columns(x_tile, k));
            tn_wgmma_commit();
            tn_wgmma_await<1>(); /* for registers */
        } else {
            tn_wgmma_await<0>();
        }
        if (decays) {
            const float f = tn_hopper_exp2(logs[CHUNK - 1]);
#pragma unroll
            for (int j = 0; j < WIDTH / 8; j++) s[j][0] *= f, s[j][1] *= f, s[j][2] *= f, s[j][3] *= f;
        }
        tn_hopper_entering<Dots>(entering, entering_rest, z_panel + across, warp * 2, enters, decays, a.write_scale, pair);
        tn_hopper_made(entering);
        if (Dots) tn_hopper_made(entering_rest);
        tn_wgmma_hold(s);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++) tn_wgmma<true>(s, entering[k], tn_hopper_rows(y_tile, k));
        if (Dots) {
#pragma unroll
            for (int k = 0; k < CHUNK / 16; k++) tn_wgmma<true>(s, entering_rest[k], tn_hopper_rows(y_tile, k));
        }
        tn_wgmma_commit();
        tn_hopper_meet_both(); /* and this one's is there */
        tn_wgmma_await<1>();
        tn_wgmma_hold(k_sum);
        tn_hopper_clear(v_sum);
        tn_wgmma_hold(v_sum);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < WIDTH / 16; k++)
            tn_hopper_product<false, true>(v_sum, tn_hopper_columns(w_tile, k), tn_wgmma_rows(own_copy + k * 16 * 128, COPY_PANEL));
        tn_wgmma_commit();
        tn_hopper_read_factor(k_sum, reads, decays, a.read_scale, pair);
        tn_hopper_await(base + room::p_full, i);
        tn_wgmma_hold(k_sum);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
            tn_hopper_product<true, false>(k_sum, tn_hopper_rows(z_panel, k), tn_hopper_columns(p_tile, k));
        tn_wgmma_commit();
        tn_wgmma_await<1>();
        tn_wgmma_hold(v_sum);
        {
            const float f0 = decays ? a.read_scale * reads[warp * 16 + quad] : a.read_scale,
                        f1 = decays ? a.read_scale * reads[warp * 16 + quad + 8] : a.read_scale;
#pragma unroll
            for (int j = 0; j < 8; j++) v_sum[j][0] *= f0, v_sum[j][1] *= f0, v_sum[j][2] *= f1, v_sum[j][3] *= f1;
        }
        tn_wgmma_hold(v_sum);
        tn_wgmma_begin();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
            tn_hopper_product<false, true>(v_sum, tn_hopper_columns(p_tile + PANEL, k), tn_hopper_rows(y_tile + group * PANEL, k));
        tn_wgmma_commit();
        tn_wgmma_await<1>();
        tn_wgmma_hold(k_sum);
        tn_wgmma_hold(s);
        if (Dots) {
            const float *diagonal = reinterpret_cast<const float *>(shared + room::diagonal);
            tn_hopper_dots(k_sum, w_tile + group * PANEL + across, z_panel + across, warp * 2, diagonal, parts + warp * CHUNK, lane, pair);
        }
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++) {
            const float *v = k_sum[2 * k], *w = k_sum[2 * k + 1];
            tn_hopper_write_transposed(tn_hopper_spot(dk_panel + across, k, warp * 2), tn_pair_of(v[0], v[1]), tn_pair_of(v[2], v[3]),
                                       tn_pair_of(w[0], w[1]), tn_pair_of(w[2], w[3]));
        }
        tn_wgmma_await<0>();
        tn_wgmma_hold(v_sum);
        tn_hopper_arrive(base + room::empty + stage * 8);
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++) {
            const float *v = v_sum[2 * k], *w = v_sum[2 * k + 1];
            tn_hopper_write(((dv_panel + warp * 16 * 128 + along) ^ (uint32_t)(2 * k << 4)), tn_pair_of(v[0], v[1]), tn_pair_of(v[2], v[3]),
                            tn_pair_of(w[0], w[1]), tn_pair_of(w[2], w[3]));
        }
        tn_hopper_meet(group);
        const int64_t t0 = tn_hopper_chunk<Reverse>(at, i) * CHUNK;
        const int rows = tn_hopper_rows_of(at, t0);
        tn_hopper_store_panel(dk_panel, dk + t0 * a.dk_place.token, a.dk_place.token, rows);
        tn_hopper_store_panel(dv_panel, dv + t0 * a.dv_place.token, a.dv_place.token, rows);
        if (Dots) {
            tn_hopper_keep_dots(a, at, t0, rows, group, parts);
            tn_hopper_keep_anchor<Reverse>(s, a, at, i, column, pair);
        }
    }
    if (a.state_out && at.segment == a.segments - 1)
        tn_hopper_store_state(s, a.state_out + at.slice * TN_HOPPER_STATE, a.state_row, a.state_column, column, pair);
}

template <bool Reverse, bool Dots> __global__ void __launch_bounds__(TN_HOPPER_THREADS, 1) sweep_kernel(const __grid_constant__ sweep a) {
#if TN_TILE_WGMMA
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t base = tn_tile_address(shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            tn_hopper_start(base + room::full + i * 8, TN_HOPPER_GROUP);
            tn_hopper_start(base + room::empty + i * 8, 2 * TN_HOPPER_GROUP);
        }
        tn_hopper_start(base + room::p_full, TN_HOPPER_GROUP);
    }
    __syncthreads();
    const tn_hopper_place at = tn_hopper_place_of_block(a);
    if (threadIdx.x < TN_HOPPER_GROUP) {
        tn_hopper_leave_registers<120>();
        feed<Reverse, Dots>(a, at, base, shared);
    } else {
        tn_hopper_take_registers<192>();
        walk<Reverse, Dots>(a, at, base, shared);
    }
#endif
}

template <bool Dots> void launch(const sweep &a, cudaStream_t stream) {
    cudaFuncSetAttribute(sweep_kernel<true, Dots>, cudaFuncAttributeMaxDynamicSharedMemorySize, room::bytes);
    sweep_kernel<true, Dots><<<dim3((unsigned)a.slices, (unsigned)a.segments), TN_HOPPER_THREADS, room::bytes, stream>>>(a);
}

} // namespace

bool tn_la_sweep_hopper_fits(const tn_la_scan *key, const tn_la_scan *value, const tn_device *device) {
    return tn_la_scan_hopper_fits(key, device) && tn_la_scan_hopper_fits(value, device) && key->o && value->o &&
           device->shared_bytes >= (size_t)room::bytes;
}

cudaError_t tn_la_sweep_hopper_run(const tn_la_scan *key, const tn_la_scan *value, int segments, const float *sums, cudaStream_t stream) {
    sweep a = {};
    (tn_hopper_scan &)a = tn_hopper_scan_of(key, segments, sums);
    a.state_out = value->state_out; /* dS lies as S does, whichever of the two scans writes it */
    a.x = tn_hopper_operand_of(key->x), a.y = tn_hopper_operand_of(key->y), a.z = tn_hopper_operand_of(key->z),
    a.w = tn_hopper_operand_of(value->x);
    a.dk = (__nv_bfloat16 *)key->o, a.dv = (__nv_bfloat16 *)value->o;
    a.dk_place = { NULL, key->o_stride.batch, key->o_stride.token, key->o_stride.head };
    a.dv_place = { NULL, value->o_stride.batch, value->o_stride.token, value->o_stride.head };
    a.dots ? launch<true>(a, stream) : launch<false>(a, stream);
    return cudaGetLastError();
}
