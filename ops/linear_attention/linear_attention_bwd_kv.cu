/* Second pass of the backward of non-causal linear attention: reads k and v, writes dk and dv.
 *
 * A block keeps dS (bf16) in shared memory. Per tile of 64 tokens:
 *
 *     kb = lrpe(act(k)), vb = act(v)     not where that is k or v itself
 *     dvb = kb dS, dkb = vb dS'
 *     dv = act'(dvb), dk = act'(lrpe'(dkb))
 *
 *     barriers:   tile is there | kb, vb are there | (all done with the tile) */
#include "linear_attention_bwd_passes.cuh"

namespace {

template <typename Z> __global__ void __launch_bounds__(Z::threads, 1) pass_kv(const __grid_constant__ tn_bwd_pass p) {
    if constexpr (!tn_bwd_has_code<Z>) return;
    using L = tn_bwd_layout_kv<Z>;
    extern __shared__ __align__(1024) char shared[];
    tn_bwd_worker<L> w(shared);
    tn_bwd_sums<Z> sums;

    tn_bwd_walk here(p.deal, blockIdx.x), next = here;
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++) {
        if (next.left) tn_bwd_fetch_kv<Z>(p, w.raw(i), next.slice, next.token), next.move(p.x.tokens);
        tn_tile_fetched();
    }
    /* k and v are older than the kernel before. */
    tn_bwd_let_next_start();
    tn_bwd_await_previous();
    while (here.left) {
        const uint32_t slice = here.slice;
        /* The block is done with the last slice's state. */
        __syncthreads();
        tn_bwd_load_state<Z>(w.state(), p.state + (int64_t)slice * (Z::cosine ? 2 * p.d : p.d) * p.e, 1.0f, p.d, p.e,
                             p.how == TN_BWD_ROTATE);
        w.load_tables(p, slice);
        sums.clear();
        do {
            const int rows = tn_bwd_rows_left(p.x.tokens, here.token);
            w.await_tile(p, here.token, rows);
            if (next.left) tn_bwd_fetch_kv<Z>(p, w.freed(), next.slice, next.token), next.move(p.x.tokens);
            tn_tile_fetched();
            tn_bwd_tile_kv<L>(p, w, w.base + L::values, slice, here.token, rows, sums);
            here.move(p.x.tokens);
        } while (here.left && here.slice == slice);
        if (p.what != TN_BWD_NO_SUMS) {
            /* Where kb and vb were, and no one needs them any more. */
            static_assert(Z::G * Z::threads * 16 <= L::raw - L::encoded, "room for the sums");
            float4 *room = reinterpret_cast<float4 *>(shared + L::encoded);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < Z::G; j++) room[j * Z::threads + threadIdx.x] = sums.get(j);
            __syncthreads();
            tn_bwd_add_up<Z>(p.sums + ((int64_t)blockIdx.x + slice) * Z::W, room);
        }
    }
    tn_tile_await<0>();
}

template <typename Z> int launch(const tn_bwd_pass *pass, cudaStream_t stream) {
    if (pass->follows)
        return (int)tn_bwd_launch_early(pass_kv<Z>, dim3(pass->deal.blocks), Z::threads, tn_bwd_layout_kv<Z>::bytes, stream, *pass);
    pass_kv<Z><<<pass->deal.blocks, Z::threads, tn_bwd_layout_kv<Z>::bytes, stream>>>(*pass);
    return (int)cudaGetLastError();
}

template <typename Z> int shared_bytes() {
    static int known;
    return tn_bwd_ready(pass_kv<Z>, tn_bwd_layout_kv<Z>::bytes, Z::wgmma, &known);
}

} // namespace

int tn_bwd_run_kv(const tn_bwd_pass *pass, int width, bool wgmma, void *stream) {
    const bool cosine = pass->how == TN_BWD_COSINE;
#define LAUNCH(...) launch<__VA_ARGS__>(pass, (cudaStream_t)stream)
    if (wgmma) return cosine ? LAUNCH(tn_bwd_shape<128, true, true>) : LAUNCH(tn_bwd_shape<128, false, true>);
    if (width == 128) return cosine ? LAUNCH(tn_bwd_shape<128, true, false>) : LAUNCH(tn_bwd_shape<128, false, false>);
    return cosine ? LAUNCH(tn_bwd_shape<64, true, false>) : LAUNCH(tn_bwd_shape<64, false, false>);
}

int tn_bwd_shared_kv(int width, bool cosine, bool wgmma) {
    if (wgmma) return cosine ? shared_bytes<tn_bwd_shape<128, true, true>>() : shared_bytes<tn_bwd_shape<128, false, true>>();
    if (width == 128) return cosine ? shared_bytes<tn_bwd_shape<128, true, false>>() : shared_bytes<tn_bwd_shape<128, false, false>>();
    return cosine ? shared_bytes<tn_bwd_shape<64, true, false>>() : shared_bytes<tn_bwd_shape<64, false, false>>();
}
