/* S = state + kb' vb of every head: one read of k and v.
 *
 * Every block that fits on the GPU at once gets the same number of tiles of 64 tokens (tn_la_deal), so that every multiprocessor moves the
 * same bytes whatever b h and m are: whole heads first, then a run of the tiles of the heads that are left over. It walks them through a
 * ring of tiles in shared memory, keeps S of the head it is in as accumulators and writes them when the head or the run ends: to S itself
 * where it has had all of the head, else to a part of its own ([block + head left over]: unique, since from one to the next meeting of a
 * block and a head at least one of the two goes up by one). A second kernel adds a head's parts in order.
 *
 *     k tile [64 tokens][d]  --ldmatrix, transposed-->  A fragments: warp w has slots 16 w .. 16 w + 15 of all tokens,
 *                            turned by LRPE in registers (cosine: one fragment becomes two); no element is encoded twice
 *     v tile [64 tokens][e]  --ldmatrix or wgmma--->    B
 *     accumulators           warp w: rows 16 w .. of S (cosine: and those of the sines; d above 128: and 128 + 16 w ..) x all columns, f32
 *
 * Turning: a thread has 2 slots x 4 tokens of every 16. Their cosines and sines are computed at the begin of every fourth tile and turned
 * on by 16 tokens in between (four multiply-adds), as long as tokens stand on one axis; else they are computed for every token. f32: blocks
 * take 64 columns of v each, k is read once for each of them, and products run as six bf16 ones. */
#include "linear_attention_state.cuh"

#define MAX_STAGES 4
/* Where there are fewer heads than blocks, a block gets so many tiles at least: the part that it leaves is as many bytes to write and read
 * again. */
#define LEAST_TILES 4

namespace {

template <typename T, int W, int E, int Kind, int Act, bool Wgmma>
__global__ void __launch_bounds__(2 * W, Kind == TN_LA_UNTURNED && sizeof(T) == 2 ? 2 : 1)
    state_kernel(const __grid_constant__ tn_la_forward f) {
    if (Wgmma && !TN_TILE_WGMMA) return;
    constexpr bool wide = sizeof(T) == 4, turned = tn_la_turns(Kind);
    constexpr int D = Kind == TN_LA_BROAD ? 2 * W : W;
    typedef state_layout<T, W, E, D> shared;
    extern __shared__ char memory[];
    const uint32_t base = (tn_tile_address(memory) + 1023) & ~1023u;
    float *const coordinates = reinterpret_cast<float *>(memory + (base - tn_tile_address(memory)) + shared::places(f.stages));
    const int column = blockIdx.y * E, slot = (threadIdx.x >> 5) * 16;
    const bool one_axis = f.k_grid.axes == 1;
    const int chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, slot >> 3),
              other_chunk = tn_slot_chunk(Kind == TN_LA_ROTATED, f.d, (slot >> 3) + 1);

    tn_la_let_next_begin();
    tn_la_place now = tn_la_first_place(f.state_deal, blockIdx.x);
    typedef turns<Kind, wide> turns_of_kind;
    typename turns_of_kind::slots slots = turns_of_kind::look_up(f, now.head, slot);
    reader<T, W, E, D> coming(f, now);
    for (int i = 0; i < f.stages - 1; i++) coming.fetch(base, f);
    int stage = 0;

    state_block<T, W, E, Kind, Act, Wgmma> block;
    block.clear();
    bool head_begins = true, stale = true;
    for (int i = 0; now.left > 0; i++) {
        const uint32_t k_tile = base + stage * shared::stage, v_tile = wide ? base + shared::tiles(f.stages) : k_tile + shared::stage_v;
        float *const at_axes = coordinates + (i & 1) * TN_LRPE_MAX_AXES * TN_LA_TILE_TOKENS;
        if (turned && !Wgmma)
            for (int t = threadIdx.x; t < f.k_grid.axes * TN_LA_TILE_TOKENS; t += 2 * W)
                at_axes[t] = (float)tn_lrpe_coordinate(&f.k_grid, (int64_t)now.piece * TN_LA_TILE_TOKENS + t % TN_LA_TILE_TOKENS,
                                                       t / TN_LA_TILE_TOKENS);
        if (turned && head_begins) block.turn.begin(slots);
        if (wide) {
            __syncthreads(); /* the planes and the stage before this one have been read */
            coming.fetch(base, f);
        }
        tn_tile_await_at_most(wide ? f.stages - 1 : f.stages - 2);
        if constexpr (Act == TN_LA_SETTLED) settle<T, W, E, D>(k_tile, v_tile, f, now, column);
        if (Wgmma) tn_wgmma_publish();
        __syncthreads();
        if (!wide) coming.fetch(base, f);
        stage = stage + 1 == f.stages ? 0 : stage + 1;

        const bool off_axis = turned && (!one_axis || (int64_t)now.piece * TN_LA_TILE_TOKENS < f.k_grid.leading);
        block.tile(k_tile, v_tile, chunk, other_chunk, stale || wide || now.piece % TN_LA_EXACT_EVERY == 0, off_axis, at_axes,
                   now.piece * TN_LA_TILE_TOKENS + (int)f.k_grid.offset);
        stale = off_axis, head_begins = false;

        if (now.left == 1) {
            const int64_t size = (int64_t)f.state_rows * f.e;
            const int left_over = now.head - f.state_deal.whole * f.state_deal.blocks;
            const bool whole = left_over < 0 || (tn_la_rest_begin(f.state_deal, blockIdx.x) <= left_over * f.state_deal.per_head &&
                                                 tn_la_rest_begin(f.state_deal, blockIdx.x + 1) >= (left_over + 1) * f.state_deal.per_head);
            if (whole && f.state) block.add(f.state + now.head * size, f, slot, column);
            block.write(whole ? f.s + now.head * size : f.parts + ((int64_t)blockIdx.x + left_over) * size, f, slot, column);
            block.clear();
            head_begins = stale = true;
        }
        if (tn_la_next_place(f.state_deal, blockIdx.x, now) && now.left > 0) slots = turns_of_kind::look_up(f, now.head, slot);
    }
}

/* S of the heads that were cut: state, then the parts in order. A block has 1024 numbers of one head. */
__global__ void __launch_bounds__(256) sum_parts(const __grid_constant__ tn_la_forward f) {
    tn_la_let_next_begin();
    const int64_t size = (int64_t)f.state_rows * f.e, at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 4;
    const int heads_left = tn_la_heads_left(f.state_deal), per_head = f.state_deal.per_head;
    for (int left_over = blockIdx.y; left_over < heads_left && at < size; left_over += gridDim.y) {
        const int64_t head = f.state_deal.heads - heads_left + left_over;
        const int first = tn_la_rest_of(f.state_deal, left_over * per_head),
                  last = tn_la_rest_of(f.state_deal, (left_over + 1) * per_head - 1);
        if (first == last) continue;
        float4 sum = f.state ? *reinterpret_cast<const float4 *>(f.state + head * size + at) : make_float4(0, 0, 0, 0);
        tn_la_await_previous();
#pragma unroll 4
        for (int run = first; run <= last; run++) {
            float4 part = *reinterpret_cast<const float4 *>(f.parts + ((int64_t)run + left_over) * size + at);
            sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
        *reinterpret_cast<float4 *>(f.s + head * size + at) = sum;
    }
    tn_la_await_previous(); /* all that came before is done when this kernel is, also where it had nothing to add */
}

template <typename T, int W, int E, int D = W> bool plan(tn_la_forward *f, const tn_device *device) {
    const bool two_blocks = f->kind == TN_LA_UNTURNED && sizeof(T) == 2;
    const int slices = (f->e + E - 1) / E;
    int room = (int)device->shared_bytes, stages = MAX_STAGES, most = sizeof(T) == 4 ? 2 : MAX_STAGES;
    if (two_blocks) room /= 2;
    if (stages > most) stages = most;
    while (stages > 2 && state_layout<T, W, E, D>::bytes(stages) > room) stages--;
    f->stages = stages;
    int64_t resident = (int64_t)device->multiprocessors * (two_blocks ? 2 : 1) / slices;
    if (resident < 1) resident = 1;
    /* A block for each head, so that none is cut: where they fill the blocks that fit, or wait for memory alone (some multiprocessors have
     * two, some one), or where heads are so short that parts would cost more than a gap. */
    const int64_t per_head = (f->k.tokens + TN_LA_TILE_TOKENS - 1) / TN_LA_TILE_TOKENS, waves = (f->heads + resident - 1) / resident,
                  runs = f->heads * per_head / LEAST_TILES;
    bool filled = f->heads * 100 >= waves * resident * 90, shared_out = two_blocks && f->heads * 2 >= resident && per_head <= 64;
    bool uncut = filled || shared_out || per_head <= LEAST_TILES;
    tn_la_deal_out(&f->state_deal, f->heads, per_head, uncut ? f->heads : resident < runs ? resident : runs);
    return state_layout<T, W, E, D>::bytes(stages) <= room;
}

template <typename T, int W, int E, int Act, bool Wgmma> cudaError_t launch_with(const tn_la_forward &f, cudaStream_t stream) {
    dim3 grid((unsigned)f.state_deal.blocks, (unsigned)((f.e + E - 1) / E));
    size_t shared = (size_t)state_layout<T, W, E>::bytes(f.stages);
    if constexpr (Act == TN_LA_SETTLED && W == 128 && sizeof(T) == 2) {
        shared = (size_t)state_layout<T, W, E, 2 * W>::bytes(f.stages);
        if (f.kind == TN_LA_BROAD)
            return tn_la_launch(state_kernel<T, W, E, TN_LA_BROAD, Act, Wgmma>, grid, 2 * W, shared, stream, false, f);
        shared = (size_t)state_layout<T, W, E>::bytes(f.stages);
    }
    if (f.kind == TN_LA_UNTURNED)
        return tn_la_launch(state_kernel<T, W, E, TN_LA_UNTURNED, Act, Wgmma>, grid, 2 * W, shared, stream, false, f);
    if (f.kind == TN_LA_ROTATED)
        return tn_la_launch(state_kernel<T, W, E, TN_LA_ROTATED, Act, Wgmma>, grid, 2 * W, shared, stream, false, f);
    return tn_la_launch(state_kernel<T, W, E, TN_LA_COSINE, Act, Wgmma>, grid, 2 * W, shared, stream, false, f);
}
template <typename T, int W, int E, bool Wgmma> cudaError_t launch(const tn_la_forward &f, cudaStream_t stream) {
    if constexpr (Wgmma && sizeof(T) == 2) {
        if (f.kind == TN_LA_BROAD) return launch_with<T, W, E, TN_LA_SETTLED, true>(f, stream);
        if (f.v.act == TN_NONE && f.k.act == TN_NONE) return launch_with<T, W, E, TN_NONE, true>(f, stream);
        if (f.v.act == TN_NONE && f.k.act == TN_SILU) return launch_with<T, W, E, TN_SILU, true>(f, stream);
    }
    return launch_with<T, W, E, TN_LA_SETTLED, Wgmma>(f, stream);
}

} // namespace

bool tn_la_plan_state(tn_la_forward *f, const tn_device *device, tn_dtype dtype) {
    if (dtype == TN_F32) return plan<float, 128, 64>(f, device);
    if (f->kind == TN_LA_BROAD) return plan<tn_cuda_bf16, 128, 128, 256>(f, device);
    if (tn_la_width(*f) == 64) return plan<tn_cuda_bf16, 64, 64>(f, device);
    return plan<tn_cuda_bf16, 128, 128>(f, device);
}

cudaError_t tn_la_launch_state(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream) {
    cudaError_t error;
    if (dtype == TN_F32 && product == TN_LA_WGMMA) error = launch<float, 128, 64, true>(f, stream);
    else if (dtype == TN_F32) error = launch<float, 128, 64, false>(f, stream);
    else if (tn_la_width(f) == 64) error = launch<tn_cuda_bf16, 64, 64, false>(f, stream);
    else if (product == TN_LA_WGMMA) error = launch<tn_cuda_bf16, 128, 128, true>(f, stream);
    else error = launch<tn_cuda_bf16, 128, 128, false>(f, stream);
    if (error != cudaSuccess || !tn_la_heads_left(f.state_deal)) return error;
    int64_t size = (int64_t)f.state_rows * f.e;
    const int heads_left = tn_la_heads_left(f.state_deal);
    dim3 grid((unsigned)((size + 1023) / 1024), (unsigned)(heads_left < 65535 ? heads_left : 65535));
    return tn_la_launch(sum_parts, grid, 256, 0, stream, f.early, f);
}
