/* Backward of non-causal linear attention for short sequences, both passes in one kernel: a block takes whole slices, so that their dS never
 * leaves the multiprocessor and S is read once.
 *
 * Of `slices` slices every block owns slices / blocks. The first pass over the few that are left is dealt out by tiles as in pass_q and comes
 * first; what remains of these is done by state_sum and pass_kv.
 *
 *     block:   its tiles of shared slices: q, g, do  |  own slice: q, g, do .. | dS: registers -> S's place | k, v ..  |  next own slice */
#include "linear_attention_bwd_passes.cuh"

namespace {

/* The same walk as tn_bwd_walk, then on over the block's own slices. */
struct walk {
    tn_bwd_walk shared;
    uint32_t slice, end; /* own slices, this one included .. */
    int64_t token;
    bool keys; /* of an own slice: is it k and v now? */

    __device__ __forceinline__ explicit walk(const tn_bwd_whole &p)
        : shared(p.q.deal, blockIdx.x), slice(blockIdx.x * p.own), end((blockIdx.x + 1) * p.own), token(0), keys(false) {}
    __device__ __forceinline__ bool goes_on() const { return shared.left || slice < end; }
    __device__ __forceinline__ void move(const tn_bwd_whole &p) {
        if (shared.left) {
            shared.move(p.q.x.tokens);
            return;
        }
        token += TN_BWD_TOKENS;
        if (token < (keys ? p.k.x.tokens : p.q.x.tokens)) return;
        token = 0;
        if (keys) slice++;
        keys = !keys;
    }
};

template <typename Z> __device__ __forceinline__ void fetch(const tn_bwd_whole &p, uint32_t to, walk &next) {
    if (next.goes_on()) {
        if (next.shared.left) tn_bwd_fetch_q<Z>(p.q, to, next.shared.slice, next.shared.token);
        else if (!next.keys) tn_bwd_fetch_q<Z>(p.q, to, next.slice, next.token);
        else tn_bwd_fetch_kv<Z>(p.k, to, next.slice, next.token);
        next.move(p);
    }
    tn_tile_fetched();
}

/* dS (+ begin) to `ds` where that is wanted, and as a bf16 tile to S's place; then it begins anew. */
template <typename Z>
__device__ __forceinline__ void keep_state(uint32_t to, const tn_bwd_whole &p, uint32_t slice, float (&ds)[Z::M][Z::C][4],
                                           const tn_bwd_place &at) {
    const int d = p.q.d, e = p.q.e;
    const int64_t from = (int64_t)slice * (Z::cosine ? 2 * d : d) * e;
#pragma unroll
    for (int i = 0; i < Z::M; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = tn_bwd_state_row<Z>(at, i) + 8 * half, feature = tn_bwd_feature<Z>(p.q.how == TN_BWD_ROTATE, d, row);
#pragma unroll
            for (int j = 0; j < Z::C; j++) {
                const int column = tn_bwd_state_column<Z>(at, j);
                const bool there = feature >= 0 && column < e;
                float2 x = make_float2(p.q.scale * ds[i][j][2 * half], p.q.scale * ds[i][j][2 * half + 1]);
                if (there && p.begin) {
                    float2 more = *reinterpret_cast<const float2 *>(p.begin + from + feature * e + column);
                    x.x += more.x, x.y += more.y;
                }
                if (there && p.ds) *reinterpret_cast<float2 *>(p.ds + from + feature * e + column) = x;
                tn_tile_write_word(to + tn_tile_pair(Z::F, row, column), there ? tn_pair_of(x.x, x.y) : 0);
            }
        }
        tn_bwd_clear(ds[i]);
    }
}

template <typename Z> __global__ void __launch_bounds__(Z::threads, 1) pass_whole(const __grid_constant__ tn_bwd_whole p) {
    if constexpr (!tn_bwd_has_code<Z>) return;
    using L = tn_bwd_layout_q<Z>;
    extern __shared__ __align__(1024) char shared[];
    tn_bwd_worker<L> w(shared);
    tn_bwd_sums_shared<Z> sums = { reinterpret_cast<float4 *>(shared + L::sums) };
    const bool sums_up = p.q.what != TN_BWD_NO_SUMS;
    float ds[Z::M][Z::C][4];
#pragma unroll
    for (int i = 0; i < Z::M; i++) tn_bwd_clear(ds[i]);

    tn_bwd_let_next_start();
    walk here(p), next = here;
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++) fetch<Z>(p, w.raw(i), next);
    while (here.goes_on()) {
        const bool own = !here.shared.left;
        const uint32_t slice = own ? here.slice : here.shared.slice;
        /* The block is done with the last slice's state. */
        __syncthreads();
        tn_bwd_load_state<Z>(w.state(), p.q.state + (int64_t)(slice - p.q.state_from) * (Z::cosine ? 2 * p.q.d : p.q.d) * p.q.e, p.q.scale,
                             p.q.d, p.q.e, p.q.how == TN_BWD_ROTATE);
        w.load_tables(p.q, slice);
        if (sums_up) sums.clear();
        bool more;
        do {
            const int64_t token = own ? here.token : here.shared.token;
            const int rows = tn_bwd_rows_left(p.q.x.tokens, token);
            w.await_tile(p.q, token, rows);
            fetch<Z>(p, w.freed(), next);
            tn_bwd_tile_q<L>(p.q, w, slice, token, rows, sums, ds);
            here.move(p);
            more = own ? !here.keys : here.shared.left && here.shared.slice == slice;
        } while (more);
        /* A slice of one's own is a single piece, and its place is the slice. */
        const int64_t piece = own ? slice : (int64_t)blockIdx.x + slice;
        if (sums_up) {
            __syncthreads();
            tn_bwd_add_up<Z>(p.q.sums + piece * Z::W, sums.room);
        }
        if (!own) {
            tn_bwd_leave_state<Z>(p.q.state_parts + (piece - p.q.deal.from) * (Z::F * Z::W), p.q.scale, ds, w.at);
            continue;
        }
        __syncthreads();
        keep_state<Z>(w.state(), p, slice, ds, w.at);
        if (sums_up) sums.clear();
        while (here.goes_on() && here.keys) {
            const int rows = tn_bwd_rows_left(p.k.x.tokens, here.token);
            w.await_tile(p.k, here.token, rows);
            fetch<Z>(p, w.freed(), next);
            tn_bwd_tile_kv<L>(p.k, w, w.raw(w.stage) + 2 * Z::raw_bytes, slice, here.token, rows, sums);
            here.move(p);
        }
        if (sums_up) {
            __syncthreads();
            tn_bwd_add_up<Z>(p.k.sums + piece * Z::W, sums.room);
        }
    }
    tn_tile_await<0>();
}

template <typename Z> int launch(const tn_bwd_whole *pass, cudaStream_t stream) {
    pass_whole<Z><<<pass->blocks, Z::threads, tn_bwd_layout_q<Z>::bytes, stream>>>(*pass);
    return (int)cudaGetLastError();
}

template <typename Z> int shared_bytes() {
    static int known;
    return tn_bwd_ready(pass_whole<Z>, tn_bwd_layout_q<Z>::bytes, Z::wgmma, &known);
}

} // namespace

int tn_bwd_run_whole(const tn_bwd_whole *pass, void *stream) { return launch<tn_bwd_shape<128, false, true>>(pass, (cudaStream_t)stream); }

int tn_bwd_shared_whole(void) { return shared_bytes<tn_bwd_shape<128, false, true>>(); }
