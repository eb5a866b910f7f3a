/* Which kernels run the backward of non-causal linear attention, and the small ones between the two passes: they add up, in the order of
 * pieces, what the blocks have left. */
#include "linear_attention_bwd_tiles.cuh"

namespace {

struct order {
    int how, width, d; /* width: padded */

    /* The slot of an encoded feature, of a raw one, of an angle. */
    __device__ __forceinline__ int of_raw(int feature) const {
        if (how != TN_BWD_ROTATE) return feature;
        int chunk = feature >> 3, half = chunk >= d >> 4;
        return (2 * (chunk - half * (d >> 4)) + half) * 8 + (feature & 7);
    }
    __device__ __forceinline__ int of_encoded(int feature) const {
        if (how != TN_BWD_COSINE) return of_raw(feature);
        int half = feature >= d, of = feature - half * d, run = tn_bwd_shape<64, true, false>::run;
        return of / run * 2 * run + half * run + of % run;
    }
    __device__ __forceinline__ int of_angle(int angle) const { return how == TN_BWD_ROTATE ? (angle >> 3) * 16 + (angle & 7) : angle; }
};

/* ds = the parts of dS (+ begin), four columns a thread. Where a slice has many parts, runs of threads add up every Runs-th of them, then
 * these. */
template <int Runs>
__global__ void __launch_bounds__(256)
    state_sum(tn_bwd_deal deal, order slots, int rows, int e, const float *parts, const float *begin, float *ds) {
    constexpr int items = 256 / Runs;
    __shared__ float4 of_runs[Runs > 1 ? Runs : 1][items];
    const int64_t slice = blockIdx.y,
                  padded = (int64_t)(slots.how == TN_BWD_COSINE || slots.how == TN_BWD_BROAD ? 2 : 1) * slots.width * slots.width;
    const int per_row = e / 4, item = (int)threadIdx.x % items, run = (int)threadIdx.x / items, at = (int)blockIdx.x * items + item;
    const bool there = at < rows * per_row;
    const int row = at / per_row, column = at % per_row * 4;
    const int64_t to = (slice * rows + row) * e + column;
    tn_bwd_let_next_start();
    tn_bwd_await_previous();
    float4 sum = make_float4(0, 0, 0, 0);
    if (there) {
        if (begin && run == 0) sum = *reinterpret_cast<const float4 *>(begin + to);
        uint32_t block = 1, last = 0;
        if (deal.all)
            block = tn_bwd_owner(deal, (uint32_t)slice * deal.tiles), last = tn_bwd_owner(deal, ((uint32_t)slice + 1) * deal.tiles - 1);
        const float *from = parts + slots.of_encoded(row) * slots.width + column;
#pragma unroll 4
        for (uint32_t b = block + run; b <= last; b += Runs) {
            float4 part = *reinterpret_cast<const float4 *>(from + ((int64_t)b + slice) * padded);
            sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
    }
    if (Runs > 1) {
        of_runs[run][item] = sum;
        __syncthreads();
        if (run != 0) return;
#pragma unroll
        for (int other = 1; other < Runs; other++) {
            const float4 part = of_runs[other][item];
            sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
        }
    }
    if (there) *reinterpret_cast<float4 *>(ds + to) = sum;
}

/* Every `step`-th piece from `begin` on. */
__device__ __forceinline__ float pieces_sum(const tn_bwd_deal &deal, int64_t slice, int width, int slot, const float *sums, uint32_t begin,
                                            uint32_t step) {
    if (!deal.tiles) return 0;
    float sum = 0;
    const uint32_t last = tn_bwd_owner(deal, ((uint32_t)slice + 1) * deal.tiles - 1);
#pragma unroll 4
    for (uint32_t block = tn_bwd_owner(deal, (uint32_t)slice * deal.tiles) + begin; block <= last; block += step)
        sum += sums[((int64_t)block + slice) * width + slot];
    return sum;
}

/* off[slice][slot] = the sum of p dp. */
__global__ void off_sum(tn_bwd_deal deal, int64_t slices, int width, const float *sums, float *off) {
    for (int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; at < slices * width; at += (int64_t)gridDim.x * blockDim.x)
        off[at] = pieces_sum(deal, at / width, width, (int)(at % width), sums, 0, 1);
}

enum { THETA_RUNS = 16 };

/* dtheta[head][column]: a block has 32 columns of a head, and for each of them runs: of the head's slices every `slice_runs`-th, and of
 * their pieces every THETA_RUNS / slice_runs-th; then the runs are added. */
__global__ void __launch_bounds__(32 * THETA_RUNS, 1)
    theta_sum(tn_bwd_deal of_q, tn_bwd_deal of_k, tn_lrpe_grid grid, order slots, int64_t slices, int64_t heads, int slice_runs,
              const float *q_sums, const float *k_sums, float *dtheta) {
    __shared__ float runs[THETA_RUNS][32];
    const int64_t head = blockIdx.y, column = (int64_t)blockIdx.x * 32 + threadIdx.x % 32, step = grid.theta_heads == 1 ? 1 : heads;
    const int run = (int)threadIdx.x / 32, piece_runs = THETA_RUNS / slice_runs;
    const uint32_t piece = (uint32_t)(run / slice_runs);
    float sum = 0;
    tn_bwd_await_previous();
    if (column < grid.theta_width)
        for (int64_t slice = head + run % slice_runs * step; slice < slices; slice += slice_runs * step)
            for (int64_t angle = column; angle < grid.angles && tn_lrpe_axis(&grid, angle) >= 0; angle += grid.theta_width) {
                const int slot = slots.of_angle((int)angle);
                sum += pieces_sum(of_q, slice, slots.width, slot, q_sums, piece, piece_runs) +
                       pieces_sum(of_k, slice, slots.width, slot, k_sums, piece, piece_runs);
            }
    runs[run][threadIdx.x % 32] = sum;
    __syncthreads();
    if (run != 0 || column >= grid.theta_width) return;
#pragma unroll
    for (int other = 1; other < THETA_RUNS; other++) sum += runs[other][threadIdx.x];
    dtheta[head * grid.theta_width + column] = sum;
}

/* ---- the host's side ---- */

struct plan {
    bool tiles, wgmma;        /* tiles false: the plain kernels */
    bool broad;               /* d above 128 */
    bool cosine_q, cosine_kv; /* the pass has a kernel of its own */
    bool one_launch;          /* both passes in one kernel */
    bool by_parts;            /* the second pass adds up dS's parts itself */
    int width;                /* padded */
    tn_bwd_deal q, k;
    /* In the workspace, in floats. */
    size_t parts, ds, q_sums, k_sums, q_off, k_off, total;
};

tn_bwd_deal make_deal(const tn_la_problem *p, int64_t tokens, int multiprocessors) {
    tn_bwd_deal deal;
    deal.tiles = (uint32_t)((tokens + TN_BWD_TOKENS - 1) / TN_BWD_TOKENS);
    deal.all = deal.tiles * (uint32_t)(p->b * p->h);
    deal.blocks = deal.all < (uint32_t)multiprocessors ? deal.all : (uint32_t)multiprocessors;
    deal.heads = (uint32_t)p->h;
    return deal;
}

bool aligned(const void *x) { return ((uintptr_t)x & 15) == 0; }
bool strides_fit(const tn_la_strides &stride) { return stride.batch % 8 == 0 && stride.token % 8 == 0 && stride.head % 8 == 0; }
bool operand_fits(const tn_la_operand &operand, int64_t widest) {
    const tn_lrpe_grid &grid = operand.grid;
    const int64_t far = (int64_t)1 << 24;
    if (!aligned(operand.x) || !strides_fit(operand.stride) || operand.width % 16 || operand.width > widest) return false;
    return !operand.encoded || (operand.tokens < far / 2 && grid.offset < far / 2 && grid.offset > -far / 2);
}

/* Do the kernels for 129 to 256 features have all that is asked for? */
bool is_broad(const tn_la_problem *p) {
    return p->d > 128 && !p->encoded && p->q.act == TN_NONE && p->k.act == TN_NONE && p->v.act == TN_NONE;
}

/* Can the kernels of tiles take it? */
bool takes_tiles(const tn_op_call *call, const tn_la_problem *p) {
    const tn_device *device = call->device;
    if (p->dtype != TN_BF16 || device->cuda_path == TN_CUDA_PLAIN) return false;
    const int64_t widest = is_broad(p) ? 256 : 128;
    if (!operand_fits(p->q, widest) || !operand_fits(p->k, widest) || !operand_fits(p->v, 128) || (p->has_gate && !operand_fits(p->g, 128)))
        return false;
    if (!strides_fit(p->o_stride) || !aligned(p->d_o) || !aligned(p->dstate_out) || !aligned(p->s) || !aligned(p->dstate)) return false;
    if (!aligned(p->dq) || !aligned(p->dk) || !aligned(p->dv) || !aligned(p->dg)) return false;
    const int64_t slices = p->b * p->h, tokens = p->n > p->m ? p->n : p->m;
    return slices <= 65535 && slices * (tokens / TN_BWD_TOKENS + 1) < (int64_t)1 << 31;
}

bool fits(const tn_device *device, int shared_bytes) { return shared_bytes >= 0 && (size_t)shared_bytes <= device->shared_bytes; }

/* Are the heads so short, or short and so many that one each fills the GPU, that a launch less is worth more than equal shares? */
bool is_short(const tn_la_problem *p, int multiprocessors) {
    const int64_t longest = 512;
    const int64_t most = p->n > p->m ? p->n : p->m, least = p->n < p->m ? p->n : p->m;
    return p->d_o && least > 0 && (most <= 3 * TN_BWD_TOKENS || (most <= longest && 4 * p->b * p->h >= 3 * multiprocessors));
}
/* And are q, k, v and g, all of them, used as they are? */
bool is_bare(const tn_la_problem *p) {
    return !p->encoded && p->has_gate && p->d == 128 && p->e == 128 && p->q.act == TN_NONE && p->k.act == TN_NONE && p->v.act == TN_NONE &&
           p->g.act == TN_NONE;
}

/* Have the cosine kernels of full tiles all that the operands ask for? */
bool cosine_fits(const tn_la_operand &encoded, const tn_la_operand &other) {
    const bool act_fits = encoded.act == TN_NONE || encoded.act == TN_SILU || (encoded.act == TN_SOFTMAX && !encoded.over_sequence);
    return act_fits && encoded.width == 128 && other.width == 128 && encoded.grid.axes == 1 && encoded.grid.leading == 0 &&
           encoded.grid.angles == 128 && (other.act == TN_NONE || other.act == TN_SILU);
}

size_t place(size_t *total, size_t floats) {
    size_t at = *total;
    *total += (floats + 31) / 32 * 32;
    return at;
}

plan make_plan(const tn_op_call *call, const tn_la_problem *p) {
    const tn_device *device = call->device;
    plan l = {};
    if (!takes_tiles(call, p)) return l;
    const bool cosine = p->encoded && p->kind == TN_COSINE;
    l.width = p->d <= 64 && p->e <= 64 ? 64 : 128;
    l.wgmma = device->cuda_path == TN_CUDA_HOPPER && l.width == 128;
    l.broad = p->d > 128;
    if (l.broad && !device->dry_run) {
        l.wgmma = l.wgmma && fits(device, tn_bwd_shared_broad(true));
        if (!l.wgmma && !fits(device, tn_bwd_shared_broad(false))) return l;
    } else if (!device->dry_run) {
        l.wgmma = l.wgmma && fits(device, tn_bwd_shared_q(128, cosine, true)) && fits(device, tn_bwd_shared_kv(128, cosine, true));
        if (!l.wgmma && !(fits(device, tn_bwd_shared_q(l.width, cosine, false)) && fits(device, tn_bwd_shared_kv(l.width, cosine, false))))
            return l;
    }
    l.tiles = true;
    l.cosine_q = l.wgmma && cosine && p->has_gate && cosine_fits(p->q, p->g) && (device->dry_run || fits(device, tn_bwd_shared_q_cosine()));
    l.cosine_kv =
        l.wgmma && cosine && cosine_fits(p->k, p->v) && p->v.act == TN_NONE && (device->dry_run || fits(device, tn_bwd_shared_kv_cosine()));
    const int multiprocessors = device->multiprocessors > 0 ? device->multiprocessors : 132;
    const int64_t slices = p->b * p->h, n = p->d_o ? p->n : 0;
    l.q = make_deal(p, n, multiprocessors);
    l.k = make_deal(p, p->m, multiprocessors);
    l.one_launch = l.wgmma && is_short(p, multiprocessors) && is_bare(p) && (device->dry_run || fits(device, tn_bwd_shared_short()));
    if (l.one_launch) return l;
    const size_t width = (size_t)l.width;
    const bool q_sums = p->dtheta || p->q.over_sequence, k_sums = p->dtheta || p->k.over_sequence;
    l.parts = place(&l.total, l.q.all ? (l.q.blocks + (size_t)slices) * width * width * (cosine || l.broad ? 2 : 1) : 0);
    /* Where a slice has few. */
    l.by_parts = l.cosine_q && l.cosine_kv && l.q.all && !p->dstate && !p->dstate_out && l.q.blocks <= 2 * (uint64_t)slices;
    l.ds = place(&l.total, p->dstate || l.by_parts ? 0 : (size_t)slices * (size_t)(p->state_rows * p->e));
    l.q_sums = place(&l.total, q_sums && l.q.tiles ? (l.q.blocks + (size_t)slices) * width : 0);
    l.k_sums = place(&l.total, k_sums && l.k.tiles ? (l.k.blocks + (size_t)slices) * width : 0);
    l.q_off = place(&l.total, p->q.over_sequence ? (size_t)slices * width : 0);
    l.k_off = place(&l.total, p->k.over_sequence ? (size_t)slices * width : 0);
    return l;
}

/* A pass and, before it where softmax runs over the sequence, the same for the sum of p dp alone. */
int run_pass(tn_bwd_pass pass, const plan &l, int64_t slices, float *off, int (*run)(const tn_bwd_pass *, int, bool, void *),
             cudaStream_t stream) {
    if (pass.x.over_sequence && pass.dx) {
        tn_bwd_pass first = pass;
        first.dx = first.dz = NULL;
        first.state_parts = NULL;
        first.what = TN_BWD_SUMS_SOFTMAX;
        int error = run(&first, l.width, l.wgmma, stream);
        if (error) return error;
        off_sum<<<(unsigned)((slices * l.width + 255) / 256), 256, 0, stream>>>(pass.deal, slices, l.width, pass.sums, off);
        pass.off = off;
    }
    return run(&pass, l.width, l.wgmma, stream);
}

template <int Runs>
int sum_state(const tn_la_problem *p, const plan &l, const order &slots, const float *parts, float *ds, bool early, cudaStream_t stream) {
    const int rows = (int)p->state_rows, e = (int)p->e, items = rows * e / 4, of_block = 256 / Runs;
    const float *begin = (const float *)p->dstate_out;
    const dim3 grid((unsigned)((items + of_block - 1) / of_block), (unsigned)(p->b * p->h));
    if (early) return (int)tn_bwd_launch_early(state_sum<Runs>, grid, 256, 0, stream, l.q, slots, rows, e, parts, begin, ds);
    state_sum<Runs><<<grid, 256, 0, stream>>>(l.q, slots, rows, e, parts, begin, ds);
    return (int)cudaGetLastError();
}

int sum_theta(const tn_la_problem *p, const plan &l, const order &slots, const float *q_sums, const float *k_sums, bool early,
              cudaStream_t stream) {
    const tn_lrpe_grid &grid = p->q.grid;
    const dim3 blocks((unsigned)((grid.theta_width + 31) / 32), (unsigned)grid.theta_heads);
    const int64_t slices = p->b * p->h, of_head = slices / grid.theta_heads;
    int slice_runs = 1;
    while (slice_runs < THETA_RUNS && 2 * slice_runs <= of_head) slice_runs *= 2;
    float *dtheta = (float *)p->dtheta;
    if (early)
        return (int)tn_bwd_launch_early(theta_sum, blocks, 32 * THETA_RUNS, 0, stream, l.q, l.k, grid, slots, slices, p->h, slice_runs,
                                        q_sums, k_sums, dtheta);
    theta_sum<<<blocks, 32 * THETA_RUNS, 0, stream>>>(l.q, l.k, grid, slots, slices, p->h, slice_runs, q_sums, k_sums, dtheta);
    return (int)cudaGetLastError();
}

int run_tiles(const tn_la_problem *p, const plan &l, float *workspace, cudaStream_t stream) {
    const int64_t slices = p->b * p->h;
    if (slices == 0) return 0;
    const order slots = { l.broad                ? TN_BWD_BROAD
                          : !p->encoded          ? TN_BWD_PLAIN
                          : p->kind == TN_COSINE ? TN_BWD_COSINE
                                                 : TN_BWD_ROTATE,
                          l.width, (int)p->d };
    float *ds = p->dstate ? (float *)p->dstate : workspace + l.ds;
    const bool of_keys = l.k.tiles && (p->dk || p->dv || p->dtheta), of_state = of_keys || p->dstate;
    tn_bwd_pass q = {};
    q.theta = (const float *)p->theta;
    q.d = (int)p->d;
    q.e = (int)p->e;
    q.how = slots.how;
    q.what = p->dtheta ? TN_BWD_SUMS_THETA : TN_BWD_NO_SUMS;
    tn_bwd_pass k = q;
    q.deal = l.q;
    q.x = p->q;
    q.z = p->g;
    q.has_gate = p->has_gate;
    q.d_o = p->d_o;
    q.o_stride = p->o_stride;
    q.dx = p->dq;
    q.dz = p->has_gate ? p->dg : NULL;
    q.state = (const float *)p->s;
    q.scale = (float)p->scale;
    q.state_parts = of_state ? workspace + l.parts : NULL;
    q.sums = workspace + l.q_sums;
    k.deal = l.k;
    k.x = p->k;
    k.z = p->v;
    k.dx = p->dk;
    k.dz = p->dv;
    k.state = ds;
    k.scale = 1;
    k.dealt = l.q;
    k.state_parts = l.by_parts ? q.state_parts : NULL;
    /* Only after a kernel of ours that was launched in the ordinary way: then inputs are complete. */
    const bool early = l.wgmma && l.q.tiles;
    k.follows = early;
    k.sums = workspace + l.k_sums;
    int error = 0;
    if (l.one_launch) {
        tn_bwd_short both = { q, k, (uint32_t)slices, (const float *)p->dstate_out, (float *)p->dstate };
        return tn_bwd_run_short(&both, stream);
    }
    if (l.q.all && (of_state || p->dq || p->dg || p->dtheta)) {
        error = l.cosine_q ? tn_bwd_run_q_cosine(&q, stream)
                           : run_pass(q, l, slices, workspace + l.q_off, l.broad ? tn_bwd_run_q_broad : tn_bwd_run_q, stream);
    }
    if (error) return error;
    if (of_state && !l.by_parts) {
        error = (l.q.blocks > 8 * (uint64_t)slices ? sum_state<8> : sum_state<1>)(p, l, slots, workspace + l.parts, ds, early, stream);
        if (error) return error;
    }
    if (of_keys) {
        error = l.cosine_kv ? tn_bwd_run_kv_cosine(&k, stream)
                            : run_pass(k, l, slices, workspace + l.k_off, l.broad ? tn_bwd_run_kv_broad : tn_bwd_run_kv, stream);
        if (error) return error;
    }
    if (p->dtheta) return sum_theta(p, l, slots, q.sums, k.sums, early, stream);
    return (int)cudaGetLastError();
}

} // namespace

extern "C" size_t tn_la_backward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem) {
    const plan l = make_plan(call, problem);
    return l.tiles ? l.total * sizeof(float) : tn_la_backward_plain_workspace(problem);
}

extern "C" tn_status tn_la_backward_cuda(tn_op_call *call, const tn_la_problem *problem) {
    cudaStream_t stream = (cudaStream_t)call->stream;
    const size_t element = tn_dtype_size(problem->dtype), queries = (size_t)(problem->b * problem->h * problem->n);
    if (!problem->d_o && queries) {
        if (problem->dq) cudaMemsetAsync(problem->dq, 0, queries * (size_t)problem->d * element, stream);
        if (problem->dg) cudaMemsetAsync(problem->dg, 0, queries * (size_t)problem->e * element, stream);
    }
    const plan l = make_plan(call, problem);
    int error = 0;
    if (l.tiles) error = run_tiles(problem, l, (float *)call->workspace, stream);
    else tn_la_backward_plain(problem, call->workspace, stream);
    return tn_cuda_said(call->device, error ? error : (int)cudaGetLastError(), "linear attention backward");
}
