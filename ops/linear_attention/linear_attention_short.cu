/* Short heads: S and o of a head by one block, in one launch; S never comes back from memory. Hopper, bf16, tokens on one axis.
 *
 * A block walks the tiles of k and v as a block of linear_attention_state.cu does, leaves S in memory for backward and as bf16 in shared
 * memory, and goes on as a block of linear_attention_out.cu. Its stages serve all of that:
 *
 *     stage 0          tiles 0, 3, ..    then q and g of warps 0 .. 3, fetched as soon as no tile needs the place
 *     stage 1          tiles 1, 4, ..    then q and g of warps 4 .. 7
 *     the one or two   tiles 2, 5, ..    then S
 *     after them
 *
 * Without turns three blocks of 64 columns of v, g and o share a multiprocessor, so that a few more heads than multiprocessors do not take twice
 * as long; k and q are read once for each, the second time from L2. With rotate two blocks fit, with cosine one. */
#include "linear_attention_out.cuh"
#include "linear_attention_state.cuh"

int tn_la_short_limit = 512, tn_la_short_wide = 0;
namespace {

template <int Kind, int Columns> struct short_shape {
    static constexpr int columns = Columns, stages = Kind == TN_LA_COSINE ? 4 : 3;
    static constexpr int blocks = Kind == TN_LA_UNTURNED && columns == 64 ? 3 : Kind != TN_LA_COSINE ? 2 : 1; /* on a multiprocessor */
    typedef state_layout<tn_cuda_bf16, 128, columns> of_state;
    typedef out_layout<tn_cuda_bf16, 128, columns, Kind, true> of_out;
    static constexpr int tables = stages * of_state::stage, bytes = tables + of_out::tables + 1024;
    static_assert(of_out::s <= (stages - 2) * of_state::stage, "S lies in the stages after the first two");
    static_assert(of_out::warps / 2 * of_out::ring(1) <= of_state::stage, "the rings of four warps lie in a stage");
    static_assert(blocks * (bytes + 1024) <= 227 * 1024, "so many blocks fit");
};

template <int Kind, int Columns, int ActK, int ActQ> __global__ void __launch_bounds__(256, short_shape<Kind, Columns>::blocks) short_kernel(const __grid_constant__ tn_la_forward f) {
    if (!TN_TILE_WGMMA) return;
    typedef short_shape<Kind, Columns> shared;
    typedef tn_cuda_bf16 T;
    constexpr int E = shared::columns, stages = shared::stages;
    extern __shared__ char memory[];
    const uint32_t begin = tn_tile_address(memory), ring = (begin + 1023) & ~1023u, s_tile = ring + 2 * shared::of_state::stage;
    const int head = blockIdx.x, warp = threadIdx.x >> 5, half = warp >> 2, slot = warp * 16, column = blockIdx.y * E, n = f.state_runs.per_head;
    const int chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, slot >> 3), other_chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, (slot >> 3) + 1);
    /* A warp's ring lies in the stage of its half. */
    const uint32_t rings = ring + half * (shared::of_state::stage - shared::of_out::warps / 2 * shared::of_out::ring(1));
    out_block<T, 128, E, Kind, ActQ, true> out(f, s_tile, rings, 1, memory + (ring + shared::tables - begin));
    place now = { head, 0 };
    out_place unit = { head, 0 };
    {
        reader<T, 128, E> coming = { now, n, 0, NULL, NULL };
        coming.find(f);
        for (int i = 0; i < stages; i++) coming.fetch(ring, f);
        out.find(head);
        out.find_next(head);
        out.take_turns(head);
        state_block<T, 128, E, Kind, ActK, true> state;
        state.clear();
        if (Kind != TN_LA_UNTURNED) state.turn.begin(f, head % f.h, slot + (threadIdx.x >> 2 & 7));
        bool fetched = false;
        for (int i = 0, stage = 0; i < n; i++, now.tile++) {
            const uint32_t k_tile = ring + stage * shared::of_state::stage, v_tile = k_tile + shared::of_state::stage_v;
            if (i == 0) tn_tile_await<stages - 1>();
            else tn_tile_await<stages - 2>();
            if constexpr (ActK == TN_LA_SETTLED) settle<T, 128, E>(k_tile, v_tile, f, now, column);
            tn_wgmma_publish();
            __syncthreads();
            /* The stage of the tile before this one is free: for the next tile, or else for q and g. */
            if (i && i + stages - 1 >= n && half == (stage + stages - 1) % stages) {
                out.fetch(0, unit);
                fetched = true;
            }
            if (i) coming.fetch(ring, f);
            state.tile(k_tile, v_tile, chunk, other_chunk, i % TN_LA_EXACT_EVERY == 0, false, NULL, i * TN_LA_TILE_TOKENS + (int)f.k_grid.offset);
            stage = stage + 1 == stages ? 0 : stage + 1;
        }
        const int64_t size = (int64_t)f.state_rows * f.e;
        __syncthreads();
        if (!fetched) out.fetch(0, unit);
        tn_tile_fetched();
        if (f.state) state.add(f.state + head * size, f, slot, column);
        state.keep(s_tile, slot);
        state.write(f.s + head * size, f, slot, column);
    }
    tn_wgmma_publish();
    __syncthreads();
    const int units = (int)((f.q.tokens + out.tokens - 1) / out.tokens);
    for (; unit.unit < units; unit.unit++) {
        tn_tile_await<0>();
        out.unit(0, unit);
        out_place following = { head, unit.unit + 1 };
        if (following.unit < units) out.fetch(0, following);
        tn_tile_fetched();
    }
}

template <int Kind, int ActK, int ActQ, int Columns = Kind == TN_LA_UNTURNED ? 64 : 128> cudaError_t launch(const tn_la_forward &f, cudaStream_t stream) {
    typedef short_shape<Kind, Columns> shared;
    dim3 grid((unsigned)f.heads, (unsigned)((f.e + shared::columns - 1) / shared::columns));
    tn_la_forward through_stages = f;
    through_stages.stages = shared::stages;
    return tn_la_launch(short_kernel<Kind, Columns, ActK, ActQ>, grid, 256, (size_t)shared::bytes, stream, false, through_stages);
}
template <int Kind> cudaError_t launch_of(const tn_la_forward &f, cudaStream_t stream) {
    const bool in_fragments = f.v.act == TN_NONE && (!f.g.x || f.g.act == TN_NONE || f.g.act == TN_SILU);
    if (in_fragments && f.k.act == TN_NONE && f.q.act == TN_NONE && Kind == TN_LA_UNTURNED && tn_la_short_wide) return launch<TN_LA_UNTURNED, TN_NONE, TN_NONE, 128>(f, stream);
    if (in_fragments && f.k.act == TN_NONE && f.q.act == TN_NONE) return launch<Kind, TN_NONE, TN_NONE>(f, stream);
    if (in_fragments && f.k.act == TN_SILU && f.q.act == TN_SILU) return launch<Kind, TN_SILU, TN_SILU>(f, stream);
    if (in_fragments && f.k.act == TN_SILU && f.q.act == TN_SOFTMAX && !f.q.over_sequence) return launch<Kind, TN_SILU, TN_SOFTMAX>(f, stream);
    return launch<Kind, TN_LA_SETTLED, TN_LA_SETTLED>(f, stream);
}

} // namespace

bool tn_la_is_short(const tn_la_forward &f) {
    /* 64 columns of a row of v or g are not enough for softmax over the row. */
    if (f.kind == TN_LA_UNTURNED && f.e > 64 && (f.v.act == TN_SOFTMAX || f.g.act == TN_SOFTMAX)) return false;
    return f.k.tokens <= tn_la_short_limit && f.q.tokens <= tn_la_short_limit;
}

cudaError_t tn_la_launch_short(const tn_la_forward &f, cudaStream_t stream) {
    if (f.kind == TN_LA_UNTURNED) return launch_of<TN_LA_UNTURNED>(f, stream);
    if (f.kind == TN_LA_ROTATED) return launch_of<TN_LA_ROTATED>(f, stream);
    return launch_of<TN_LA_COSINE>(f, stream);
}
