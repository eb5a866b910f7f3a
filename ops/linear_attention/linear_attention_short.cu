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
 * Two blocks share a multiprocessor, so that a few more heads than multiprocessors do not take twice as long. With cosine only one fits; it has two
 * stages more, for the first q and g, which so come with the first tiles. */
#include "linear_attention_out.cuh"
#include "linear_attention_state.cuh"

#define LONGEST 512 /* tokens: beyond, equal shares of two kernels are worth more than a launch */

namespace {

template <int Kind> struct short_shape {
    static constexpr int stages = Kind == TN_LA_COSINE ? 4 : 3;
    static constexpr int blocks = Kind == TN_LA_COSINE ? 1 : 2; /* on a multiprocessor */
    typedef state_layout<tn_cuda_bf16, 128, 128> of_state;
    typedef out_layout<tn_cuda_bf16, 128, 128, Kind, true> of_out;
    static constexpr int places = Kind == TN_LA_COSINE ? 2 : 1; /* for units of q and g: the first one's own stages, then stages 0 and 1 */
    static constexpr int own = stages * of_state::stage, tables = own + (places - 1) * 2 * of_state::stage,
                         bytes = tables + of_out::tables + 1024;
    static_assert(of_out::s <= (stages - 2) * of_state::stage, "S lies in the stages after the first two");
    static_assert(of_out::warps / 2 * of_out::ring(1) == of_state::stage, "the rings of four warps are a stage");
    static_assert(blocks * (bytes + 1024) <= 227 * 1024, "so many blocks fit");
};

template <int Kind, int ActK, int ActQ>
__global__ void __launch_bounds__(256, short_shape<Kind>::blocks) short_kernel(const __grid_constant__ tn_la_forward f) {
    if (!TN_TILE_WGMMA) return;
    typedef short_shape<Kind> shared;
    typedef tn_cuda_bf16 T;
    constexpr int W = 128, stages = shared::stages;
    extern __shared__ char memory[];
    const uint32_t begin = tn_tile_address(memory), ring = (begin + 1023) & ~1023u, s_tile = ring + 2 * shared::of_state::stage;
    const int head = blockIdx.x, warp = threadIdx.x >> 5, half = warp >> 2, slot = warp * 16, n = f.state_deal.per_head;
    const int chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, slot >> 3),
              other_chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, (slot >> 3) + 1);
    const uint32_t first_place = shared::places == 2 ? ring + shared::own : ring;
    out_block<T, W, W, Kind, ActQ, true> out(f, s_tile, first_place, 1, memory + (ring + shared::tables - begin), ring - first_place);
    const int units = (int)((f.q.tokens + out.tokens - 1) / out.tokens);
    tn_la_place now = { head, 0, f.state_deal.per_head, 0 }, unit = { head, 0, 1, 0 };
    constexpr int last_place = shared::places - 1;
    const tn_la_place in_stages = { head, last_place, 1, 0 }; /* the unit that comes where tiles were */
    {
        typedef turns<Kind, false> turns_of_kind;
        const typename turns_of_kind::slots slots = turns_of_kind::look_up(f, head, slot);
        const tn_la_slot out_slot = out.look_up(head);
        reader<T, W, W> coming(f, now);
        for (int i = 0; i < stages; i++) coming.fetch(ring, f);
        out.find(head);
        out.find_next(unit);
        if (shared::places == 2) {
            out.fetch(0, unit);
            tn_tile_fetched();
        }
        out.take_turns(out_slot);
        state_block<T, W, W, Kind, ActK, true> state;
        state.clear();
        if (tn_la_turns(Kind)) state.turn.begin(slots);
        bool fetched = last_place >= units;
        for (int i = 0, stage = 0; i < n; i++, now.piece++) {
            const uint32_t k_tile = ring + stage * shared::of_state::stage, v_tile = k_tile + shared::of_state::stage_v;
            /* In flight may be all groups after the tile's: the first q and g come after tile stages - 1. */
            if (i == 0) tn_tile_await<stages - 1 + last_place>();
            else if (i < stages) tn_tile_await<stages - 2 + last_place>();
            else tn_tile_await<stages - 2>();
            if constexpr (ActK == TN_LA_SETTLED) settle<T, W, W>(k_tile, v_tile, f, now, 0);
            tn_wgmma_publish();
            __syncthreads();
            /* The stage of the tile before this one is free: for the next tile, or else for q and g. */
            if (!fetched && i && i + stages - 1 >= n && half == (stage + stages - 1) % stages) {
                out.fetch(last_place, in_stages);
                fetched = true;
            }
            if (i) coming.fetch(ring, f);
            state.tile(k_tile, v_tile, chunk, other_chunk, i % TN_LA_EXACT_EVERY == 0, false, NULL,
                       i * TN_LA_TILE_TOKENS + (int)f.k_grid.offset);
            stage = stage + 1 == stages ? 0 : stage + 1;
        }
        const int64_t size = (int64_t)f.state_rows * f.e;
        __syncthreads();
        if (!fetched) out.fetch(last_place, in_stages);
        tn_tile_fetched();
        if (f.state) state.add(f.state + head * size, f, slot, 0);
        state.keep(s_tile, slot);
        if (f.s) state.write(f.s + head * size, f, slot, 0);
    }
    tn_wgmma_publish();
    __syncthreads();
    if (shared::places == 1) tn_tile_fetched(); /* as if the first g were a group of its own */
    for (int place = 0; unit.piece < units; unit.piece++, place ^= last_place) {
        const tn_la_place following = { head, unit.piece + shared::places, 1, 0 };
        if (shared::places == 1 || unit.piece == 0) tn_tile_await<1>();
        else tn_tile_await<2>();
        out.multiply_unit(place, unit);
        __syncwarp();
        if (following.piece < units) out.fetch_q(place, following);
        tn_tile_fetched();
        if (shared::places == 1) tn_tile_await<1>();
        out.finish_unit(place, unit);
        if (following.piece < units) out.fetch_g(place, following);
        tn_tile_fetched();
    }
}

template <int Kind, int ActK, int ActQ> cudaError_t launch(const tn_la_forward &f, cudaStream_t stream) {
    typedef short_shape<Kind> shared;
    tn_la_forward through_stages = f;
    through_stages.stages = shared::stages;
    return tn_la_launch(short_kernel<Kind, ActK, ActQ>, dim3((unsigned)f.heads), 256, (size_t)shared::bytes, stream, false, through_stages);
}
template <int Kind> cudaError_t launch_of(const tn_la_forward &f, cudaStream_t stream) {
    const bool in_fragments = f.v.act == TN_NONE && (!f.g.x || f.g.act == TN_NONE || f.g.act == TN_SILU);
    if (in_fragments && f.k.act == TN_NONE && f.q.act == TN_NONE) return launch<Kind, TN_NONE, TN_NONE>(f, stream);
    if (in_fragments && f.k.act == TN_SILU && f.q.act == TN_SILU) return launch<Kind, TN_SILU, TN_SILU>(f, stream);
    if (in_fragments && f.k.act == TN_SILU && f.q.act == TN_SOFTMAX && !f.q.over_sequence)
        return launch<Kind, TN_SILU, TN_SOFTMAX>(f, stream);
    return launch<Kind, TN_LA_SETTLED, TN_LA_SETTLED>(f, stream);
}

} // namespace

bool tn_la_is_short(const tn_la_forward &f) {
    return f.kind != TN_LA_BROAD && f.e <= 128 && f.k.tokens <= LONGEST && f.q.tokens <= LONGEST;
}

cudaError_t tn_la_launch_short(const tn_la_forward &f, cudaStream_t stream) {
    if (f.kind == TN_LA_UNTURNED) return launch_of<TN_LA_UNTURNED>(f, stream);
    if (f.kind == TN_LA_ROTATED) return launch_of<TN_LA_ROTATED>(f, stream);
    return launch_of<TN_LA_COSINE>(f, stream);
}
