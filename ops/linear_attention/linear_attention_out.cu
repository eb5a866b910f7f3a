/* o = gb * (qb S): one read of q and g, one write of o.
 *
 * A block of 8 warps walks units of 128 tokens, as many as any other block (tn_la_deal). S of the head it is in lies in shared
 * memory as bf16 (f32: high and low) and is read again only when the head changes. Within that a warp is on its own: it has 16 tokens of
 * every unit, fetches their rows of q and g through its own ring, and meets nobody but its warpgroup (at wgmma).
 *
 *     q tile [16 tokens][d]  --ldmatrix-->  A fragments of 16 tokens x 16 slots, turned in registers
 *     S      [d'][e]         --ldmatrix, transposed, or wgmma-->  B
 *     accumulators           16 tokens x all columns, f32; times scale and act(g), whose place in shared memory o takes, to leave in
 *                            16-byte stores of whole rows
 *
 * Turning: a thread has tokens g and g + 8 of a unit; cosine and sine of the first are computed, and turned on by 8 tokens for the
 * second. */
#include "linear_attention_out.cuh"

#define MAX_STAGES 4

namespace {

template <typename T, int W, int E, int Kind, int Act, bool Wgmma>
__global__ void __launch_bounds__(out_layout<T, W, E, Kind, Wgmma>::warps * 32, 1) out_kernel(const __grid_constant__ tn_la_forward f) {
    if (Wgmma && !TN_TILE_WGMMA) return;
    extern __shared__ char memory[];
    typedef out_layout<T, W, E, Kind, Wgmma> shared;
    const uint32_t begin = tn_tile_address(memory), s_tile = (begin + 1023) & ~1023u, rings = s_tile + shared::s;
    out_block<T, W, E, Kind, Act, Wgmma> block(f, s_tile, rings, f.stages,
                                               memory + (rings + shared::warps * shared::ring(f.stages) - begin), blockIdx.y * E);
    tn_la_place now = tn_la_first_place(f.out_deal, blockIdx.x), coming = now;
    tn_la_slot slot = block.look_up(now.head);
    block.find_next(coming);
    auto fetch = [&](int into) {
        if (coming.left > 0) {
            block.fetch(into, coming);
            if (tn_la_next_place(f.out_deal, blockIdx.x, coming)) block.find_next(coming);
        }
        tn_tile_fetched();
    };
    /* d above 128 leaves room for one stage: q's place is filled again while o is made of c, and g's while the next q is multiplied. */
    auto fetch_g = [&] {
        if (coming.left > 0) {
            block.fetch_g(0, coming);
            if (tn_la_next_place(f.out_deal, blockIdx.x, coming)) block.find_next(coming);
        }
        tn_tile_fetched();
    };
    constexpr bool by_turns = Kind == TN_LA_BROAD;
    if (by_turns) {
        if (coming.left > 0) block.fetch_q(0, coming);
        tn_tile_fetched();
        fetch_g();
    } else {
        for (int i = 0; i < f.stages; i++) fetch(i);
    }
    tn_la_await_previous();
    int head = -1, stage = 0;
    while (now.left > 0) {
        if (now.head != head) {
            if (head >= 0) {
                slot = block.look_up(now.head);
                __syncthreads(); /* all are done with the last S */
            }
            head = now.head;
            block.find(head);
            block.take_turns(slot);
            block.take_state(head);
            if (Wgmma) tn_wgmma_publish();
            __syncthreads();
        }
        if (by_turns) {
            tn_tile_await<1>();
            block.multiply_unit(0, now);
            __syncwarp();
            if (coming.left > 0) block.fetch_q(0, coming);
            tn_tile_fetched();
            tn_tile_await<1>();
            block.finish_unit(0, now);
            fetch_g();
        } else {
            tn_tile_await_at_most(f.stages - 1);
            block.unit(stage, now);
            fetch(stage);
            stage = stage + 1 == f.stages ? 0 : stage + 1;
        }
        tn_la_next_place(f.out_deal, blockIdx.x, now);
    }
}

template <typename T, int W, int E, int Kind, bool Wgmma> bool plan_for(tn_la_forward *f, const tn_device *device) {
    typedef out_layout<T, W, E, Kind, Wgmma> shared;
    f->stages = MAX_STAGES;
    while (f->stages > 1 && shared::bytes(f->stages) > (int)device->shared_bytes) f->stages--;
    const int slices = (f->e + E - 1) / E, tokens = TN_LA_WARP_TOKENS * shared::warps, resident = device->multiprocessors / slices;
    tn_la_deal_out(&f->out_deal, f->heads, (f->q.tokens + tokens - 1) / tokens, resident > 0 ? resident : 1);
    return shared::bytes(f->stages) <= (int)device->shared_bytes;
}
template <typename T, int W, int E, bool Wgmma> bool plan(tn_la_forward *f, const tn_device *device) {
    if constexpr (W == 128 && sizeof(T) == 2)
        if (f->kind == TN_LA_BROAD) return plan_for<T, W, E, TN_LA_BROAD, Wgmma>(f, device);
    if (f->kind == TN_LA_UNTURNED) return plan_for<T, W, E, TN_LA_UNTURNED, Wgmma>(f, device);
    if (f->kind == TN_LA_ROTATED) return plan_for<T, W, E, TN_LA_ROTATED, Wgmma>(f, device);
    return plan_for<T, W, E, TN_LA_COSINE, Wgmma>(f, device);
}

template <typename T, int W, int E, int Kind, int Act, bool Wgmma> cudaError_t launch_for(const tn_la_forward &f, cudaStream_t stream) {
    dim3 grid((unsigned)f.out_deal.blocks, (unsigned)((f.e + E - 1) / E));
    typedef out_layout<T, W, E, Kind, Wgmma> shared;
    return tn_la_launch(out_kernel<T, W, E, Kind, Act, Wgmma>, grid, shared::warps * 32, (size_t)shared::bytes(f.stages), stream, f.early,
                        f);
}
template <typename T, int W, int E, int Act, bool Wgmma> cudaError_t launch_with(const tn_la_forward &f, cudaStream_t stream) {
    if constexpr (Act == TN_LA_SETTLED && W == 128 && sizeof(T) == 2)
        if (f.kind == TN_LA_BROAD) return launch_for<T, W, E, TN_LA_BROAD, Act, Wgmma>(f, stream);
    if (f.kind == TN_LA_UNTURNED) return launch_for<T, W, E, TN_LA_UNTURNED, Act, Wgmma>(f, stream);
    if (f.kind == TN_LA_ROTATED) return launch_for<T, W, E, TN_LA_ROTATED, Act, Wgmma>(f, stream);
    return launch_for<T, W, E, TN_LA_COSINE, Act, Wgmma>(f, stream);
}
template <typename T, int W, int E, bool Wgmma> cudaError_t launch(const tn_la_forward &f, cudaStream_t stream) {
    bool quick_gate = !f.g.x || f.g.act == TN_NONE || f.g.act == TN_SILU;
    if constexpr (Wgmma && sizeof(T) == 2) {
        if (f.kind == TN_LA_BROAD) return launch_with<T, W, E, TN_LA_SETTLED, true>(f, stream);
        if (quick_gate && f.q.act == TN_NONE) return launch_with<T, W, E, TN_NONE, true>(f, stream);
        if (quick_gate && f.q.act == TN_SILU) return launch_with<T, W, E, TN_SILU, true>(f, stream);
        if (quick_gate && f.q.act == TN_SOFTMAX && !f.q.over_sequence) return launch_with<T, W, E, TN_SOFTMAX, true>(f, stream);
    }
    return launch_with<T, W, E, TN_LA_SETTLED, Wgmma>(f, stream);
}

} // namespace

bool tn_la_plan_out(tn_la_forward *f, const tn_device *device, tn_dtype dtype, tn_la_product product) {
    if (dtype == TN_F32 && product == TN_LA_WGMMA) return plan<float, 128, 64, true>(f, device);
    if (dtype == TN_F32) return plan<float, 128, 64, false>(f, device);
    if (tn_la_width(*f) == 64) return plan<tn_cuda_bf16, 64, 64, false>(f, device);
    return plan<tn_cuda_bf16, 128, 128, false>(f, device);
}

cudaError_t tn_la_launch_out(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream) {
    if (dtype == TN_F32 && product == TN_LA_WGMMA) return launch<float, 128, 64, true>(f, stream);
    if (dtype == TN_F32) return launch<float, 128, 64, false>(f, stream);
    if (tn_la_width(f) == 64) return launch<tn_cuda_bf16, 64, 64, false>(f, stream);
    if (product == TN_LA_WGMMA) return launch<tn_cuda_bf16, 128, 128, true>(f, stream);
    return launch<tn_cuda_bf16, 128, 128, false>(f, stream);
}
