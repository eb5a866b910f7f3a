/* First pass of the backward of non-causal linear attention: reads q, g and do, writes dq and dg, sums up dS.
 *
 * A block keeps S (bf16) in shared memory and dS (f32) in registers. Per tile of 64 tokens:
 *
 *     qb = lrpe(act(q))            raw tile -> encoded tile, not where it is q itself
 *     y = qb S                     products 1;   dg = do y act'(g), dy = do act(g), in place of g and do
 *     dqb = dy S', dS += qb' dy    products 2 and 3, together
 *     dq = act'(lrpe'(dqb))        in place of q
 *
 *     barriers:   tile is there | qb is there | dy is there | (all done with the tile)
 *
 * The tiles to come are fetched by cp.async into `stages` places meanwhile. */
#include "linear_attention_bwd_passes.cuh"

namespace {

template <typename Z> __global__ void __launch_bounds__(Z::threads, 1) pass_q(const __grid_constant__ tn_bwd_pass p) {
    if constexpr (!tn_bwd_has_code<Z>) return;
    using L = tn_bwd_layout_q<Z>;
    extern __shared__ __align__(1024) char shared[];
    tn_bwd_worker<L> w(shared);
    tn_bwd_sums_shared<Z> sums = { reinterpret_cast<float4 *>(shared + L::sums) };
    float ds[Z::M][Z::C][4];
#pragma unroll
    for (int i = 0; i < Z::M; i++) tn_bwd_clear(ds[i]);

    tn_bwd_let_next_start();
    tn_bwd_walk here(p.deal, blockIdx.x), next = here;
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++) {
        if (next.left) tn_bwd_fetch_q<Z>(p, w.raw(i), next.slice, next.token), next.move(p.x.tokens);
        tn_tile_fetched();
    }
    while (here.left) {
        const uint32_t slice = here.slice;
        /* The block is done with the last slice's state. */
        __syncthreads();
        tn_bwd_load_state<Z>(w.state(), p.state + (int64_t)slice * (Z::cosine ? 2 * p.d : p.d) * p.e, p.scale, p.d, p.e,
                             p.how == TN_BWD_ROTATE);
        w.load_tables(p, slice);
        if (p.what != TN_BWD_NO_SUMS) sums.clear();
        do {
            const int rows = tn_bwd_rows_left(p.x.tokens, here.token);
            w.await_tile(p, here.token, rows);
            if (next.left) tn_bwd_fetch_q<Z>(p, w.freed(), next.slice, next.token), next.move(p.x.tokens);
            tn_tile_fetched();
            tn_bwd_tile_q<L>(p, w, slice, here.token, rows, sums, ds);
            here.move(p.x.tokens);
        } while (here.left && here.slice == slice);
        const int64_t piece = (int64_t)blockIdx.x + slice;
        if (p.state_parts) tn_bwd_leave_state<Z>(p.state_parts + piece * (Z::F * Z::W), p.scale, ds, w.at);
        if (p.what != TN_BWD_NO_SUMS) {
            __syncthreads();
            tn_bwd_add_up<Z>(p.sums + piece * Z::W, sums.room);
        }
    }
    tn_tile_await<0>();
}

template <typename Z> int launch(const tn_bwd_pass *pass, cudaStream_t stream) {
    pass_q<Z><<<pass->deal.blocks, Z::threads, tn_bwd_layout_q<Z>::bytes, stream>>>(*pass);
    return (int)cudaGetLastError();
}

template <typename Z> int shared_bytes() {
    static int known;
    return tn_bwd_ready(pass_q<Z>, tn_bwd_layout_q<Z>::bytes, Z::wgmma, &known);
}

} // namespace

int tn_bwd_run_q(const tn_bwd_pass *pass, int width, bool wgmma, void *stream) {
    const bool cosine = pass->how == TN_BWD_COSINE;
#define LAUNCH(...) launch<__VA_ARGS__>(pass, (cudaStream_t)stream)
    if (wgmma) return cosine ? LAUNCH(tn_bwd_shape<128, true, true>) : LAUNCH(tn_bwd_shape<128, false, true>);
    if (width == 128) return cosine ? LAUNCH(tn_bwd_shape<128, true, false>) : LAUNCH(tn_bwd_shape<128, false, false>);
    return cosine ? LAUNCH(tn_bwd_shape<64, true, false>) : LAUNCH(tn_bwd_shape<64, false, false>);
}

int tn_bwd_shared_q(int width, bool cosine, bool wgmma) {
    if (wgmma) return cosine ? shared_bytes<tn_bwd_shape<128, true, true>>() : shared_bytes<tn_bwd_shape<128, false, true>>();
    if (width == 128) return cosine ? shared_bytes<tn_bwd_shape<128, true, false>>() : shared_bytes<tn_bwd_shape<128, false, false>>();
    return cosine ? shared_bytes<tn_bwd_shape<64, true, false>>() : shared_bytes<tn_bwd_shape<64, false, false>>();
}
