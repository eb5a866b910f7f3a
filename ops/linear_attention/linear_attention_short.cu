/* Short heads: S and o of a head in one launch; S never comes back from memory. Hopper, bf16, tokens on one axis.
 *
 * 256 threads walk the tiles of k and v as a block of linear_attention_state.cu does, leave S in memory for backward and as bf16 in shared
 * memory, and go on as a block of linear_attention_out.cu. Slots of shared memory serve all of that, what comes next takes the one that is
 * free:
 *
 *     tiles            k and v of 64 tokens each, one a slot
 *     units            q and g of 128 tokens each: warps 0 .. 3 have theirs in one slot, warps 4 .. 7 in the next
 *     S                the last slots, where the last tiles were
 *
 * A few more heads than multiprocessors would take twice as long. They are cut into quarters instead, half of the columns and half of the
 * units each, and 256 threads more in a block take a quarter beside its head. The quarters of a head read the same k, and two and two the
 * same half of v and of q; they do so at the same time, so that it comes from memory once.
 *
 *     132 multiprocessors, 144 heads:   | head 0           | .. | head 47           | head 48 | .. | head 131 |
 *                                       | quarter of 132   | .. | quarter of 143    |
 *
 * Where they are too many to be cut, or all quarters would have to do much to k, two blocks of a head each share a multiprocessor; with
 * cosine S fills the registers, and there is one. */
#include "linear_attention_out.cuh"
#include "linear_attention_state.cuh"

#define LONGEST 512 /* tokens: beyond, equal shares of two kernels are worth more than a launch */

namespace {

enum { WHOLE = 128, HALF = 64 /* columns of v, g and o that 256 threads take */, TOKENS = 128 /* of a unit */ };

template <int Kind, int E> struct short_shape {
    typedef state_layout<tn_cuda_bf16, 128, E> of_state;
    typedef typename of_state::share_k of_k;
    typedef typename of_state::share_v of_v;
    typedef out_layout<tn_cuda_bf16, 128, E, Kind, true> of_out;
    static constexpr int slot = of_state::stage, places = Kind == TN_LA_COSINE ? 2 : 1; /* for units of q and g */
    static constexpr int s = 2 * places * slot, slots = 2 * places + (E == WHOLE ? of_out::s / slot : 0);
    static constexpr int tables = s + of_out::s, bytes = tables + of_out::tables;
    static_assert(of_out::warps * TN_LA_WARP_TOKENS == TOKENS, "a unit is what eight warps take");
    static_assert(of_out::warps / 2 * of_out::ring(1) == slot, "q and g of four warps are a slot");
};

/* The first `whole` heads are a block's each, the others are cut into `parts`, one a block. */
struct short_deal {
    int whole, parts;
};

/* What 256 threads have of a head: columns of v, g and o from `column` on, units from `first` to `end`; do they write S? */
struct short_share {
    int head, column, first, end;
    bool writes;
};

template <int E> __device__ __forceinline__ void meet() { asm volatile("bar.sync %0, 256;" : : "n"(E == WHOLE ? 1 : 2) : "memory"); }

template <int Kind, int ActK, int ActQ, int E>
__device__ __forceinline__ void take_share(const tn_la_forward &f, const short_share &share, char *memory) {
    typedef short_shape<Kind, E> shared;
    typedef tn_cuda_bf16 T;
    constexpr int W = 128, slots = shared::slots, places = shared::places;
    const uint32_t ring = tn_tile_address(memory), s_tile = ring + shared::s;
    const int head = share.head, warp = threadIdx.x >> 5, half = warp >> 2, slot = warp * 16, n = f.state_deal.per_head;
    const int chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, slot >> 3),
              other_chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, (slot >> 3) + 1);
    const int begin = (slots - n % slots) % slots; /* the first tile's place: the first unit has places 0 and 1 */
    out_block<T, W, E, Kind, ActQ, true> out(f, s_tile, ring, 1, memory + shared::tables, share.column, 2 * shared::slot);
    tn_la_place now = { head, 0, n, 0 }, unit = { head, share.first, 1, 0 };
    {
        typedef turns<Kind, false> turns_of_kind;
        const typename turns_of_kind::slots turned = turns_of_kind::look_up(f, head, slot);
        const tn_la_slot out_slot = out.look_up(head);
        const int64_t b = head / f.h, h = head % f.h;
        const T *k = (const T *)f.k.x + b * f.k.batch + h * f.k.head + shared::of_k::offset(f.k.token, threadIdx.x);
        const T *v = (const T *)f.v.x + b * f.v.batch + h * f.v.head + shared::of_v::offset(f.v.token, threadIdx.x) + share.column;
        uint32_t to = ring + begin * shared::slot;
        int next = 0, rows = (int)f.k.tokens;
        /* The next tile or the next four warps' q and g. */
        auto fetch = [&] {
            const int place = (next - n) >> 1;
            if (next < n) {
                shared::of_k::fetch(to, k, f.k.token, rows, f.d, threadIdx.x);
                shared::of_v::fetch(to + shared::of_state::stage_v, v, f.v.token, rows, f.e - share.column, threadIdx.x);
                k += TN_LA_TILE_TOKENS * f.k.token, v += TN_LA_TILE_TOKENS * f.v.token, rows -= TN_LA_TILE_TOKENS;
                to = to + shared::slot == ring + slots * shared::slot ? ring : to + shared::slot;
            } else {
                if (((next - n) & 1) == half && place < places && share.first + place < share.end)
                    out.fetch(place, tn_la_place{ head, share.first + place, 1, 0 });
            }
            tn_tile_fetched();
            next++;
        };
        while (next < slots && next < n) fetch();
        out.find(head);
        out.find_next(unit);
        while (next < slots) fetch();
        out.take_turns(out_slot);
        state_block<T, W, E, Kind, ActK, true> state;
        state.clear();
        if (tn_la_turns(Kind)) state.turn.begin(turned);
        for (int i = 0, at = begin; i < n; i++, now.piece++) {
            const uint32_t k_tile = ring + at * shared::slot, v_tile = k_tile + shared::of_state::stage_v;
            if (i == 0) tn_tile_await<slots - 1>();
            else tn_tile_await<slots - 2>();
            if constexpr (ActK == TN_LA_SETTLED) settle<T, W, E>(k_tile, v_tile, f, now, share.column);
            tn_wgmma_publish();
            meet<E>();
            if (i) fetch();
            state.tile(k_tile, v_tile, chunk, other_chunk, i % TN_LA_EXACT_EVERY == 0, false, NULL,
                       i * TN_LA_TILE_TOKENS + (int)f.k_grid.offset);
            at = at + 1 == slots ? 0 : at + 1;
        }
        const int64_t size = (int64_t)f.state_rows * f.e;
        meet<E>();
        while (next < n + 2 * places) fetch();
        if (f.state) state.add(f.state + head * size, f, slot, share.column);
        state.keep(s_tile, slot);
        if (f.s && share.writes) state.write(f.s + head * size, f, slot, share.column);
    }
    tn_wgmma_publish();
    meet<E>();
    if (places == 1) tn_tile_fetched(); /* as if the first g were a group of its own */
    for (int place = 0; unit.piece < share.end; unit.piece++, place ^= places - 1) {
        const tn_la_place following = { head, unit.piece + places, 1, 0 };
        tn_tile_await<places>();
        out.multiply_unit(place, unit);
        __syncwarp();
        if (following.piece < share.end) out.fetch_q(place, following);
        tn_tile_fetched();
        if (places == 1) tn_tile_await<1>();
        out.finish_unit(place, unit);
        if (following.piece < share.end) out.fetch_g(place, following);
        tn_tile_fetched();
    }
}

/* May parts of heads stand beside a head? */
template <int Kind, int ActK> constexpr bool beside = Kind == TN_LA_UNTURNED &&ActK != TN_LA_SETTLED;

template <int Kind, int ActK, int ActQ>
__global__ void __launch_bounds__(beside<Kind, ActK> ? 512 : 256, beside<Kind, ActK> || Kind == TN_LA_COSINE ? 1 : 2)
    short_kernel(const __grid_constant__ tn_la_forward f, const __grid_constant__ short_deal deal) {
    if (!TN_TILE_WGMMA) return;
    extern __shared__ char memory[];
    char *const tiles = memory + (-tn_tile_address(memory) & 1023);
    const int block = blockIdx.x, units = (int)((f.q.tokens + TOKENS - 1) / TOKENS);
    const int role = __shfl_sync(0xffffffffu, (int)threadIdx.y, 0); /* the same for the warp: the compiler sees it */
    if (role == 0) {
        if (block < deal.whole) take_share<Kind, ActK, ActQ, WHOLE>(f, short_share{ block, 0, 0, units, true }, tiles);
    } else if constexpr (beside<Kind, ActK>) {
        if (block >= ((int)f.heads - deal.whole) * deal.parts) return;
        const int part = block % deal.parts, columns = f.e > HALF ? 2 : 1, runs = deal.parts / columns, run = part / columns;
        const int first = run * (units + runs - 1) / runs, end = run + 1 == runs ? units : (run + 1) * (units + runs - 1) / runs;
        const bool writes = runs == 1 || (int)(threadIdx.x >> 7) == run;
        take_share<Kind, ActK, ActQ, HALF>(f, short_share{ deal.whole + block / deal.parts, part % columns * HALF, first, end, writes },
                                           tiles + short_shape<Kind, WHOLE>::bytes);
    }
}

template <int Kind, int ActK, int ActQ> cudaError_t launch(const tn_la_forward &f, int multiprocessors, cudaStream_t stream) {
    const int heads = (int)f.heads, left = heads % multiprocessors, parts = (f.e > HALF ? 2 : 1) * (f.q.tokens > TOKENS ? 2 : 1);
    const bool cut = beside<Kind, ActK> && left && left * parts <= multiprocessors && heads < 2 * multiprocessors;
    const short_deal deal = { cut ? heads - left : heads, parts };
    const int blocks = cut && deal.whole == 0 ? left * parts : deal.whole;
    const size_t bytes = 1024 + short_shape<Kind, WHOLE>::bytes + (cut ? short_shape<Kind, HALF>::bytes : 0);
    return tn_la_launch(short_kernel<Kind, ActK, ActQ>, dim3((unsigned)blocks), dim3(256, cut ? 2 : 1), bytes, stream, false, f, deal);
}
template <int Kind> cudaError_t launch_of(const tn_la_forward &f, int multiprocessors, cudaStream_t stream) {
    const bool in_fragments = f.v.act == TN_NONE && (!f.g.x || f.g.act == TN_NONE || f.g.act == TN_SILU);
    if (in_fragments && f.k.act == TN_NONE && f.q.act == TN_NONE) return launch<Kind, TN_NONE, TN_NONE>(f, multiprocessors, stream);
    if (in_fragments && f.k.act == TN_SILU && f.q.act == TN_SILU) return launch<Kind, TN_SILU, TN_SILU>(f, multiprocessors, stream);
    if (in_fragments && f.k.act == TN_SILU && f.q.act == TN_SOFTMAX && !f.q.over_sequence)
        return launch<Kind, TN_SILU, TN_SOFTMAX>(f, multiprocessors, stream);
    return launch<Kind, TN_LA_SETTLED, TN_LA_SETTLED>(f, multiprocessors, stream);
}

} // namespace

bool tn_la_is_short(const tn_la_forward &f) {
    return f.kind != TN_LA_BROAD && f.e <= 128 && f.k.tokens <= LONGEST && f.q.tokens <= LONGEST;
}

cudaError_t tn_la_launch_short(const tn_la_forward &f, int multiprocessors, cudaStream_t stream) {
    if (f.kind == TN_LA_UNTURNED) return launch_of<TN_LA_UNTURNED>(f, multiprocessors, stream);
    if (f.kind == TN_LA_ROTATED) return launch_of<TN_LA_ROTATED>(f, multiprocessors, stream);
    return launch_of<TN_LA_COSINE>(f, multiprocessors, stream);
}
