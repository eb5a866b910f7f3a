/* Both passes of the backward of non-causal linear attention for heads of 129 to 256 features that are neither activated nor encoded in the
 * node: q and k that come encoded by cosine LRPE, mostly. Twice the state leaves no room for more, and nothing more is needed.
 *
 * As in pass_q and pass_kv, but q and k are multiplied as they come, and a tile's gradients take the places of what they are gradients of:
 *
 *     q pass   y = q S;  dg = do y act'(g), dy = do act(g)  |  dq = dy S', dS += q' dy   dq comes where q was, once a group is done with it
 *     k pass   dv = k dS, dk = v dS'                        |  dv, dk come where v and k were, once all are done with them
 *
 * Rows of S and dS are in the order of features. */
#include "linear_attention_bwd_passes.cuh"

namespace {

template <bool Wgmma> struct broad_shape : tn_bwd_shape<128, true, Wgmma> {
    static constexpr bool cosine = false;
    using rows = tn_bwd_shape<256, false, Wgmma>; /* of q and k */
};

/* A block's shared memory: the state, stages of q or k and Others tiles behind it, room for what groups tell each other. sm_80 has room for
 * one stage. */
template <typename Z_, int Others, int Stages> struct broad_layout {
    using Z = Z_;
    static constexpr int stages = Z::wgmma ? Stages : 1, stage_bytes = Z::encoded_bytes + Others * Z::raw_bytes;
    static constexpr int raw = Z::state_bytes, rows = raw + stages * stage_bytes, bytes = rows + 2 * Z::groups * TN_BWD_TOKENS * 8;
};
template <typename Z> using broad_layout_q = broad_layout<Z, 2, 2>;
template <typename Z> using broad_layout_kv = broad_layout<Z, 1, 3>;

template <typename Z> __device__ __forceinline__ void fetch_q(const tn_bwd_pass &p, uint32_t to, uint32_t slice, int64_t token) {
    const int rows = tn_bwd_rows_left(p.x.tokens, token);
    const uint32_t g = to + Z::encoded_bytes, d_o = g + Z::raw_bytes;
    tn_bwd_fetch<typename Z::rows>(to, tn_bwd_rows(p.x.x, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, false);
    if (p.has_gate) tn_bwd_fetch<Z>(g, tn_bwd_rows(p.z.x, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
    tn_bwd_fetch<Z>(d_o, tn_bwd_rows(p.d_o, p.o_stride, p.deal, slice, token), p.o_stride.token, rows, p.e, false);
}
template <typename Z> __device__ __forceinline__ void fetch_kv(const tn_bwd_pass &p, uint32_t to, uint32_t slice, int64_t token) {
    const int rows = tn_bwd_rows_left(p.x.tokens, token);
    tn_bwd_fetch<typename Z::rows>(to, tn_bwd_rows(p.x.x, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, false);
    tn_bwd_fetch<Z>(to + Z::encoded_bytes, tn_bwd_rows(p.z.x, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
}

/* Part `part` of dq or dk, from accumulators to the place of its columns. */
template <typename Z> __device__ __forceinline__ void put_part(uint32_t to, const tn_bwd_place &at, int part, const float (&d)[Z::P][4]) {
#pragma unroll
    for (int j = 0; j < Z::P / 2; j++) {
        float x[8];
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = TN_BWD_AT(d, j, i >> 1, i & 1);
        tn_bwd_pack(words, x);
        tn_bwd_write(to, at, at.group * Z::X + part * Z::P + 2 * j, words);
    }
}

/* The four warps of a group wait for each other. */
__device__ __forceinline__ void await_group(const tn_bwd_place &at) { asm volatile("bar.sync %0, 128;" : : "r"(1 + at.group) : "memory"); }

template <typename Z>
__device__ __forceinline__ void tile_q(const tn_bwd_pass &p, uint32_t q, uint32_t state, tn_bwd_exchange<Z::groups> &exchange,
                                       const tn_bwd_place &at, float (&ds)[Z::M][Z::C][4], uint32_t slice, int64_t token, int rows) {
    const uint32_t g = q + Z::encoded_bytes, d_o = g + Z::raw_bytes;
    if (p.has_gate) {
        float y[Z::N][4];
        tn_bwd_times_state<Z>(y, q, state, at);
        tn_bwd_act act(p.z.act, false, NULL);
        if (act.over_features) tn_bwd_row_softmax<Z>(act, exchange, at, g, p.e);
        tn_bwd_gate<Z>(p, g, d_o, y, at, act, exchange);
        tn_wgmma_publish();
        __syncthreads();
    }
    float dq[Z::H][Z::P][4];
#pragma unroll
    for (int part = 0; part < Z::H; part++) {
        tn_bwd_times_state_transposed<Z>(dq[part], d_o, state, part, at);
        tn_bwd_add_outer<Z>(ds, q, d_o, part, at);
    }
    if (p.has_gate && p.dz) tn_bwd_store<Z>(g, at, tn_bwd_rows(p.dz, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
    tn_wgmma_await<0>();
#pragma unroll
    for (int i = 0; i < Z::M; i++) tn_wgmma_hold(ds[i]);
#pragma unroll
    for (int part = 0; part < Z::H; part++) tn_wgmma_hold(dq[part]);
    if (!p.dx) return;
    await_group(at);
#pragma unroll
    for (int part = 0; part < Z::H; part++) put_part<Z>(q, at, part, dq[part]);
    tn_bwd_store<typename Z::rows>(q, at, tn_bwd_rows(p.dx, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, false);
}

template <typename Z>
__device__ __forceinline__ void tile_kv(const tn_bwd_pass &p, uint32_t k, uint32_t state, const tn_bwd_place &at, uint32_t slice,
                                        int64_t token, int rows) {
    const uint32_t v = k + Z::encoded_bytes;
    float dv[Z::N][4], dk[Z::H][Z::P][4];
    tn_bwd_times_state<Z>(dv, k, state, at);
#pragma unroll
    for (int part = 0; part < Z::H; part++) tn_bwd_times_state_transposed<Z>(dk[part], v, state, part, at);
    tn_wgmma_await<0>();
    tn_wgmma_hold(dv);
#pragma unroll
    for (int part = 0; part < Z::H; part++) tn_wgmma_hold(dk[part]);
    __syncthreads();
    if (p.dz) {
        uint32_t words[Z::G][4];
#pragma unroll
        for (int j = 0; j < Z::G; j++) {
            float x[8];
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = TN_BWD_AT(dv, j, i >> 1, i & 1);
            tn_bwd_pack(words[j], x);
        }
        tn_bwd_write_all<Z>(v, at, words);
        tn_bwd_store<Z>(v, at, tn_bwd_rows(p.dz, p.z.stride, p.deal, slice, token), p.z.stride.token, rows, p.e, false);
    }
    if (p.dx) {
#pragma unroll
        for (int part = 0; part < Z::H; part++) put_part<Z>(k, at, part, dk[part]);
        tn_bwd_store<typename Z::rows>(k, at, tn_bwd_rows(p.dx, p.x.stride, p.deal, slice, token), p.x.stride.token, rows, p.d, false);
    }
}

/* A block's walk: `fetch` sends for a tile, `begin` comes before the first tile of a slice, `tile` has one, `end` comes after the last. */
template <typename L, typename Fetch, typename Begin, typename Tile, typename End>
__device__ __forceinline__ void walk_tiles(const tn_bwd_pass &p, uint32_t base, bool follows, Fetch fetch, Begin begin, Tile tile,
                                           End end) {
    tn_bwd_walk here(p.deal, blockIdx.x), next = here;
    auto send = [&](int stage) {
        if (next.left) fetch(base + L::raw + stage * L::stage_bytes, next.slice, next.token), next.move(p.x.tokens);
        tn_tile_fetched();
    };
    int stage = 0;
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++) send(i);
    tn_bwd_let_next_start();
    if (follows) tn_bwd_await_previous();
    while (here.left) {
        const uint32_t slice = here.slice;
        __syncthreads(); /* the block is done with the last slice's state */
        begin(slice);
        do {
            const int before = stage == 0 ? L::stages - 1 : stage - 1;
            if (L::stages == 1) {
                __syncthreads();
                send(0);
            }
            tn_tile_await<(L::stages > 1 ? L::stages - 2 : 0)>();
            tn_wgmma_publish();
            __syncthreads();
            if (L::stages > 1) send(before);
            tile(base + L::raw + stage * L::stage_bytes, slice, here.token, tn_bwd_rows_left(p.x.tokens, here.token));
            stage = stage + 1 == L::stages ? 0 : stage + 1;
            here.move(p.x.tokens);
        } while (here.left && here.slice == slice);
        end(slice);
    }
    tn_tile_await<0>();
}

template <typename Z> __global__ void __launch_bounds__(Z::threads, 1) broad_q(const __grid_constant__ tn_bwd_pass p) {
    if constexpr (!tn_bwd_has_code<Z>) return;
    using L = broad_layout_q<Z>;
    extern __shared__ __align__(1024) char shared[];
    const uint32_t base = tn_tile_address(shared);
    const tn_bwd_place at;
    tn_bwd_exchange<Z::groups> exchange = { reinterpret_cast<float2 *>(shared + L::rows), 0 };
    float ds[Z::M][Z::C][4];
#pragma unroll
    for (int i = 0; i < Z::M; i++) tn_bwd_clear(ds[i]);
    walk_tiles<L>(
        p, base, false, [&](uint32_t to, uint32_t slice, int64_t token) { fetch_q<Z>(p, to, slice, token); },
        [&](uint32_t slice) { tn_bwd_load_state<Z>(base, p.state + (int64_t)slice * p.d * p.e, p.scale, p.d, p.e, false); },
        [&](uint32_t q, uint32_t slice, int64_t token, int rows) { tile_q<Z>(p, q, base, exchange, at, ds, slice, token, rows); },
        [&](uint32_t slice) {
            if (p.state_parts) tn_bwd_leave_state<Z>(p.state_parts + ((int64_t)blockIdx.x + slice) * (Z::F * Z::W), p.scale, ds, at);
        });
}

template <typename Z> __global__ void __launch_bounds__(Z::threads, 1) broad_kv(const __grid_constant__ tn_bwd_pass p) {
    if constexpr (!tn_bwd_has_code<Z>) return;
    using L = broad_layout_kv<Z>;
    extern __shared__ __align__(1024) char shared[];
    const uint32_t base = tn_tile_address(shared);
    const tn_bwd_place at;
    walk_tiles<L>(
        p, base, true, [&](uint32_t to, uint32_t slice, int64_t token) { fetch_kv<Z>(p, to, slice, token); },
        [&](uint32_t slice) { tn_bwd_load_state<Z>(base, p.state + (int64_t)slice * p.d * p.e, 1.0f, p.d, p.e, false); },
        [&](uint32_t k, uint32_t slice, int64_t token, int rows) { tile_kv<Z>(p, k, base, at, slice, token, rows); }, [](uint32_t) {});
}

template <bool Wgmma> int launch_q(const tn_bwd_pass *pass, cudaStream_t stream) {
    using Z = broad_shape<Wgmma>;
    broad_q<Z><<<pass->deal.blocks, Z::threads, broad_layout_q<Z>::bytes, stream>>>(*pass);
    return (int)cudaGetLastError();
}
template <bool Wgmma> int launch_kv(const tn_bwd_pass *pass, cudaStream_t stream) {
    using Z = broad_shape<Wgmma>;
    if (pass->follows)
        return (int)tn_bwd_launch_early(broad_kv<Z>, dim3(pass->deal.blocks), Z::threads, broad_layout_kv<Z>::bytes, stream, *pass);
    broad_kv<Z><<<pass->deal.blocks, Z::threads, broad_layout_kv<Z>::bytes, stream>>>(*pass);
    return (int)cudaGetLastError();
}

template <bool Wgmma> int shared_bytes() {
    using Z = broad_shape<Wgmma>;
    static int of_q, of_kv;
    const int q = tn_bwd_ready(broad_q<Z>, broad_layout_q<Z>::bytes, Wgmma, &of_q);
    const int kv = tn_bwd_ready(broad_kv<Z>, broad_layout_kv<Z>::bytes, Wgmma, &of_kv);
    return q < 0 || kv < 0 ? -1 : q > kv ? q : kv;
}

} // namespace

int tn_bwd_run_q_broad(const tn_bwd_pass *pass, int width, bool wgmma, void *stream) {
    (void)width;
    return wgmma ? launch_q<true>(pass, (cudaStream_t)stream) : launch_q<false>(pass, (cudaStream_t)stream);
}
int tn_bwd_run_kv_broad(const tn_bwd_pass *pass, int width, bool wgmma, void *stream) {
    (void)width;
    return wgmma ? launch_kv<true>(pass, (cudaStream_t)stream) : launch_kv<false>(pass, (cudaStream_t)stream);
}
int tn_bwd_shared_broad(bool wgmma) { return wgmma ? shared_bytes<true>() : shared_bytes<false>(); }
