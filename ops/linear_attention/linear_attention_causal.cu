/* Causal linear attention as scans: one forward; backward one for each of dg, dq, dk and dv that is wanted.
 *
 *     o  = gb * scan(qb, kb, vb)                      dq = back(scan(dy, vb, kb))              dy = do * gb
 *     dg = back(do * scan(qb, kb, vb))                dk = back(reverse scan(vb, dy, qb))      state: dstate_out
 *     (back: through LRPE and the activation)         dv = back(reverse scan(kb, qb, dy))      its last state: dstate
 *
 * The state of the second and third is transposed. Where linear_attention_sweep_hopper.cu can, dk and dv are one sweep. Bytes: each scan
 * reads three tensors (four with a gate, or where it needs what came in to go back through an activation) and writes one, the sweep reads
 * four and writes two; nothing is saved but the inputs. log_decay's gradient needs <dq_t, q_t> - <dk_t, k_t> of every token, which the
 * scans leave in f32 before they round, and theta's a part of every block; both are summed in a fixed order.
 *
 * The sum over all later tokens of <dq_u, q_u> - <dk_u, k_u> is small beside what is added up, and over a long sequence the rounding of
 * bf16 products would drown it. But at any token it equals <decay S_{t-1}, dS_t>, so every 2048 tokens both states are kept for a moment
 * (1/8 of the bytes of a tensor each) and the sum begins afresh from their product. */
#include "../activation_cuda.cuh"
#include "linear_attention_causal.h"
#include "linear_attention_causal_plain.h"
#include "linear_attention_scan.h"
#include "linear_attention_step.h"

namespace {

tn_la_scan_operand operand_of(const tn_la_operand &x) { return { x.x, x.stride, x.width, x.act, x.encoded, x.grid.offset }; }
tn_la_scan_operand bare(const void *x, tn_la_strides stride, int64_t width) { return { x, stride, width, TN_NONE, false, 0 }; }

/* What all scans of a problem share. */
tn_la_scan scan_of(const tn_la_problem *p) {
    tn_la_scan s = {};
    s.cosine = p->encoded && p->kind == TN_COSINE;
    s.grid = p->q.grid;
    s.theta = (const float *)p->theta;
    s.batches = p->b, s.heads = p->h, s.tokens = p->n, s.sequences = p->sequences;
    s.cu_seqlens = p->cu_seqlens;
    s.decay = p->decay;
    s.log_decay = (const float *)p->log_decay;
    s.read_scale = s.write_scale = 1;
    return s;
}

/* Rows of the state are those of S, or its columns. */
void straight(tn_la_scan *s, const tn_la_problem *p) {
    s->inner = p->state_rows, s->outer = p->e;
    s->state_row = p->e, s->state_column = 1;
}
void transposed(tn_la_scan *s, const tn_la_problem *p) {
    s->inner = p->e, s->outer = p->state_rows;
    s->state_row = 1, s->state_column = p->e;
}

tn_la_scan output_scan(const tn_la_problem *p) {
    tn_la_scan s = scan_of(p);
    s.x = operand_of(p->q), s.y = operand_of(p->k), s.z = operand_of(p->v);
    s.read_scale = (float)p->scale;
    s.state = (const float *)p->state;
    straight(&s, p);
    return s;
}

tn_la_scan forward_scan(const tn_la_problem *p) {
    tn_la_scan s = output_scan(p);
    s.o = p->o, s.o_stride = p->o_stride;
    if (p->has_gate) s.gate = operand_of(p->g);
    s.state_out = (float *)p->state_out;
    return s;
}

void multiply_by_gate(tn_la_scan *s, const tn_la_problem *p, tn_la_scan_factor which) {
    if (!p->has_gate) return;
    s->factor_of = which;
    s->factor = operand_of(p->g);
}

bool needs_decode(const tn_la_operand &x) { return x.act != TN_NONE || x.encoded; }

tn_la_scan gate_scan(const tn_la_problem *p) {
    tn_la_scan s = output_scan(p);
    s.o = p->dg, s.o_stride = p->g.stride;
    s.decode = true;
    s.raw = operand_of(p->g);
    s.times = bare(p->d_o, p->o_stride, p->e);
    /* Decoding has no room beside the widest states: there dg is act'(g) do first (see slopes), and what gates y then. */
    if (s.inner > 128 && p->g.act != TN_SOFTMAX) {
        s.decode = false;
        s.raw = s.times = {};
        s.gate = bare(p->g.act == TN_NONE ? p->d_o : p->dg, p->o_stride, p->e);
    }
    return s;
}

tn_la_scan query_scan(const tn_la_problem *p) {
    tn_la_scan s = scan_of(p);
    s.x = bare(p->d_o, p->o_stride, p->e), s.y = operand_of(p->v), s.z = operand_of(p->k);
    multiply_by_gate(&s, p, TN_LA_FACTOR_X);
    s.read_scale = (float)p->scale;
    s.state = (const float *)p->state;
    transposed(&s, p);
    s.o = p->dq, s.o_stride = p->q.stride;
    s.decode = needs_decode(p->q) || (p->dlog_decay && p->e > 128);
    s.raw = operand_of(p->q);
    return s;
}

tn_la_scan key_scan(const tn_la_problem *p) {
    tn_la_scan s = scan_of(p);
    s.x = operand_of(p->v), s.y = bare(p->d_o, p->o_stride, p->e), s.z = operand_of(p->q);
    multiply_by_gate(&s, p, TN_LA_FACTOR_Y);
    s.reverse = true;
    s.write_scale = (float)p->scale;
    s.state = (const float *)p->dstate_out;
    transposed(&s, p);
    s.o = p->dk, s.o_stride = p->k.stride;
    s.decode = needs_decode(p->k) || (p->dlog_decay && p->e > 128);
    s.raw = operand_of(p->k);
    return s;
}

tn_la_scan value_scan(const tn_la_problem *p) {
    tn_la_scan s = scan_of(p);
    s.x = operand_of(p->k), s.y = operand_of(p->q), s.z = bare(p->d_o, p->o_stride, p->e);
    multiply_by_gate(&s, p, TN_LA_FACTOR_Z);
    s.reverse = true;
    s.write_scale = (float)p->scale;
    s.state = (const float *)p->dstate_out;
    straight(&s, p);
    s.state_out = (float *)p->dstate;
    s.o = p->dv, s.o_stride = p->v.stride;
    s.decode = needs_decode(p->v);
    s.raw = operand_of(p->v);
    return s;
}

/* Tokens of the batch that no sequence has, where cu_seqlens is not what it should be, read as zeros. */
struct uncovered_tensor {
    uint32_t *x;                /* NULL: not there */
    int64_t token, head, width; /* words */
};
struct uncovered_tensors {
    uncovered_tensor all[5];
};

__global__ void clear_uncovered(int64_t sequences, const int64_t *cu, int64_t tokens, int64_t heads,
                                const __grid_constant__ uncovered_tensors tensors) {
    int64_t first = tokens, last = 0;
    for (int64_t i = 0; i <= sequences; i++) first = min(first, cu[i]), last = max(last, cu[i]);
    first = max(first, (int64_t)0), last = max(min(last, tokens), first);
    const int64_t n = (first + tokens - last) * heads;
    for (int i = 0; i < 5; i++) {
        const uncovered_tensor &t = tensors.all[i];
        for (int64_t row = blockIdx.x; t.x && row < n; row += gridDim.x) {
            const int64_t at = row / heads, token = at < first ? at : last + at - first;
            for (int64_t j = threadIdx.x; j < t.width; j += blockDim.x) t.x[token * t.token + row % heads * t.head + j] = 0;
        }
    }
}

/* q, k, v and g (or o) alike, and a number for each token and head. */
void clear_packed(const tn_la_problem *p, void *const (&x)[4], float *per_token, cudaStream_t stream) {
    if (!p->cu_seqlens) return;
    const tn_la_operand *const like[] = { &p->q, &p->k, &p->v, &p->g };
    uncovered_tensors tensors = {};
    for (int i = 0; i < 4; i++) {
        const tn_la_strides stride = i == 3 ? p->o_stride : like[i]->stride;
        tensors.all[i] = { (uint32_t *)x[i], stride.token / 2, stride.head / 2, (i < 2 ? p->d : p->e) / 2 };
    }
    tensors.all[4] = { (uint32_t *)per_token, p->h, 1, 1 };
    clear_uncovered<<<64, 64, 0, stream>>>(p->sequences, p->cu_seqlens, p->n, p->h, tensors);
}

bool wants_fast(const tn_op_call *call, const tn_la_problem *p) {
    return p->dtype == TN_BF16 && call->device->cuda_path != TN_CUDA_PLAIN && p->n > 0 && p->sequences > 0 && p->h > 0;
}
bool forward_is_fast(const tn_op_call *call, const tn_la_problem *p) {
    tn_la_scan s = forward_scan(p);
    return wants_fast(call, p) && tn_la_scan_fits(&s, call->device);
}

/* ---- backward ---- */

/* Which scans there are, and what of the workspace is whose, in bytes from its begin. */
struct backward_plan {
    bool gate, query, key, value;
    size_t dots, key_dots, anchors, key_anchors, theta, key_theta, last_state, decay_parts, scan, all;
    int64_t pieces; /* that log_decay's sums are cut into */
    int query_parts, key_parts, query_segments, key_segments;
};

size_t take(size_t *at, size_t bytes) {
    size_t here = *at;
    *at += (bytes + 511) & ~(size_t)511;
    return here;
}
size_t more(size_t a, size_t b) { return a > b ? a : b; }

backward_plan plan_of(const tn_la_problem *p, const tn_device *device) {
    backward_plan plan = {};
    const tn_la_scan query = query_scan(p), key = key_scan(p), value = value_scan(p), gate = gate_scan(p);
    plan.gate = p->has_gate && p->dg;
    plan.query = p->dq || p->dtheta || p->dlog_decay;
    plan.key = p->dk || p->dtheta || p->dlog_decay;
    plan.value = p->dv || p->dstate;
    plan.query_parts = tn_la_scan_parts(&query, device), plan.key_parts = tn_la_scan_parts(&key, device);
    plan.query_segments = tn_la_scan_segments(&query, device), plan.key_segments = tn_la_scan_segments(&key, device);
    const size_t rows = (size_t)(p->b * p->h * p->n), slices = (size_t)(p->sequences * p->h), f32 = sizeof(float);
    size_t at = 0;
    if (p->dlog_decay) {
        plan.dots = take(&at, plan.query_parts * rows * f32);
        plan.key_dots = take(&at, plan.key_parts * rows * f32);
        plan.last_state = take(&at, p->dstate_out ? slices * (size_t)(p->state_rows * p->e) * f32 : 0);
        plan.pieces = (p->n + TN_LA_ANCHOR_TOKENS - 1) / TN_LA_ANCHOR_TOKENS;
        plan.decay_parts = take(&at, slices * (size_t)plan.pieces * sizeof(double));
        if (plan.pieces > 1) {
            const size_t anchors = (size_t)(p->b * p->h * (p->n / TN_LA_ANCHOR_TOKENS + 1) * p->state_rows * p->e) * f32;
            plan.anchors = take(&at, anchors);
            plan.key_anchors = take(&at, anchors);
        }
    }
    if (p->dtheta) {
        plan.theta = take(&at, slices * plan.query_segments * (size_t)p->q.grid.angles * f32);
        plan.key_theta = take(&at, slices * plan.key_segments * (size_t)p->q.grid.angles * f32);
    }
    size_t scans = 0;
    if (plan.gate) scans = more(scans, tn_la_scan_workspace(&gate, device));
    if (plan.query) scans = more(scans, tn_la_scan_workspace(&query, device));
    if (plan.key) scans = more(scans, tn_la_scan_workspace(&key, device));
    if (plan.value) scans = more(scans, tn_la_scan_workspace(&value, device));
    plan.scan = take(&at, scans);
    plan.all = at;
    return plan;
}

/* Whether an output's gradient came is known in both the query and the pass; pointers may be absent in the query. */
bool backward_is_fast(const tn_op_call *call, const tn_la_problem *p) {
    if (!wants_fast(call, p)) return false;
    const tn_la_scan query = query_scan(p), key = key_scan(p), value = value_scan(p), gate = gate_scan(p);
    if ((p->dq || p->dtheta || p->dlog_decay) && !tn_la_scan_fits(&query, call->device)) return false;
    if ((p->dk || p->dtheta || p->dlog_decay) && !tn_la_scan_fits(&key, call->device)) return false;
    if ((p->dv || p->dstate) && !tn_la_scan_fits(&value, call->device)) return false;
    return !(p->has_gate && p->dg) || tn_la_scan_fits(&gate, call->device);
}

/* act'(g) do, eight numbers a thread; all three lie alike. */
__global__ void slopes(int64_t packs, int act, const uint4 *g, const uint4 *d_o, uint4 *to) {
    for (int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; at < packs; at += (int64_t)gridDim.x * blockDim.x) {
        const uint4 x = g[at], d = d_o[at];
        uint32_t made[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float low = tn_raw_element<tn_cuda_bf16>(x, 2 * i), high = tn_raw_element<tn_cuda_bf16>(x, 2 * i + 1);
            TN_WITH_ACT(act, Act, low = tn_act_slope<Act>(low); high = tn_act_slope<Act>(high));
            const __nv_bfloat162 pair =
                __floats2bfloat162_rn(low * tn_raw_element<tn_cuda_bf16>(d, 2 * i), high * tn_raw_element<tn_cuda_bf16>(d, 2 * i + 1));
            made[i] = *reinterpret_cast<const uint32_t *>(&pair);
        }
        to[at] = make_uint4(made[0], made[1], made[2], made[3]);
    }
}

/* dtheta[head][column]: the parts of its features, slices and segments, in order. */
__global__ void sum_theta(int64_t slices, int64_t heads, int query_segments, int key_segments, tn_lrpe_grid grid, const float *query,
                          const float *key, float *dtheta) {
    int64_t n = grid.theta_heads * grid.theta_width, at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (at >= n) return;
    int64_t head = at / grid.theta_width, column = at % grid.theta_width, step = grid.theta_heads == 1 ? 1 : heads;
    double sum = 0;
    for (int64_t slice = head; slice < slices; slice += step)
        for (int64_t i = column; i < grid.angles && tn_lrpe_axis(&grid, i) >= 0; i += grid.theta_width) {
            for (int segment = 0; segment < query_segments; segment++) sum += query[(slice * query_segments + segment) * grid.angles + i];
            for (int segment = 0; segment < key_segments; segment++) sum += key[(slice * key_segments + segment) * grid.angles + i];
        }
    dtheta[at] = (float)sum;
}

constexpr int DECAY_THREADS = 256, DECAY_TOKENS = TN_LA_ANCHOR_TOKENS / DECAY_THREADS; /* of a thread */

struct decay_sums {
    int64_t heads, tokens, rows, state_numel, slots;
    const int64_t *cu_seqlens;
    int query_parts, key_parts;
    const float *query, *key, *last_state, *dstate_out, *anchors, *key_anchors;
    float *dlog_decay;
    double *parts; /* NULL: every token has its own */
};

__device__ int64_t within(int64_t at, int64_t tokens) { return min(max(at, (int64_t)0), tokens); }

__device__ double dot_of_states(const float *a, const float *b, int64_t n, double *scratch) {
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += DECAY_THREADS) sum += (double)a[i] * (double)b[i];
    return tn_block_sum(sum, scratch);
}

/* The gradient of every token's log_decay: sums of <dq, q> - <dk, k> from the token to the next anchor or the sequence's end, and <S,
 * dS> there. With constant decay the sum over the piece goes to parts. A block takes a piece of a head of a sequence; f64, since much
 * cancels. */
__global__ void __launch_bounds__(DECAY_THREADS) sum_decay(const __grid_constant__ decay_sums a) {
    __shared__ double scratch[DECAY_THREADS / TN_WARP], warps[DECAY_THREADS / TN_WARP];
    const int64_t slice = blockIdx.x, sequence = slice / a.heads, head = slice % a.heads;
    const int64_t first = a.cu_seqlens ? within(a.cu_seqlens[sequence], a.tokens) : 0;
    const int64_t length = a.cu_seqlens ? max(within(a.cu_seqlens[sequence + 1], a.tokens) - first, (int64_t)0) : a.tokens;
    const int64_t own = a.cu_seqlens ? head : slice, row0 = own * a.tokens, out0 = a.cu_seqlens ? 0 : sequence * a.tokens;
    const int64_t begin = first + blockIdx.y * (int64_t)TN_LA_ANCHOR_TOKENS, end = min(begin + TN_LA_ANCHOR_TOKENS, first + length);
    const int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP;
    double after = 0, total = 0;
    if (begin < end && end < first + length) {
        const int64_t at = (own * a.slots + first / TN_LA_ANCHOR_TOKENS + blockIdx.y + 1) * a.state_numel;
        after = dot_of_states(a.anchors + at, a.key_anchors + at, a.state_numel, scratch);
    } else if (begin < end && a.last_state) {
        after = dot_of_states(a.last_state + slice * a.state_numel, a.dstate_out + slice * a.state_numel, a.state_numel, scratch);
    }
    const int64_t last = end - 1 - threadIdx.x * DECAY_TOKENS;
    double sums[DECAY_TOKENS] = {};
    auto add = [&](const float *x, int parts, double sign) {
        for (int part = 0; part < parts; part++)
#pragma unroll
            for (int j = 0; j < DECAY_TOKENS; j++)
                if (last - j >= begin) sums[j] += sign * x[part * a.rows + row0 + last - j];
    };
    add(a.query, a.query_parts, 1);
    add(a.key, a.key_parts, -1);
#pragma unroll
    for (int j = 1; j < DECAY_TOKENS; j++) sums[j] += sums[j - 1];
    const double own_sum = sums[DECAY_TOKENS - 1];
    double up_to = own_sum;
#pragma unroll
    for (int step = 1; step < TN_WARP; step *= 2) {
        double before = __shfl_up_sync(0xffffffffu, up_to, step);
        if (lane >= step) up_to += before;
    }
    if (lane == TN_WARP - 1) warps[warp] = up_to;
    __syncthreads();
    after += up_to - own_sum;
    for (int w = 0; w < warp; w++) after += warps[w];
#pragma unroll
    for (int j = 0; j < DECAY_TOKENS; j++)
        if (last - j >= begin) {
            if (!a.parts) a.dlog_decay[(out0 + last - j) * a.heads + head] = (float)(after + sums[j]);
            total += after + sums[j];
        }
    if (!a.parts) return;
    total = tn_block_sum(total, scratch);
    if (threadIdx.x == 0) a.parts[slice * gridDim.y + blockIdx.y] = total;
}

__global__ void sum_decay_parts(int64_t sequences, int64_t heads, int64_t pieces, const double *parts, float *dlog_decay) {
    int64_t head = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (head >= heads) return;
    double sum = 0;
    for (int64_t sequence = 0; sequence < sequences; sequence++)
        for (int64_t piece = 0; piece < pieces; piece++) sum += parts[(sequence * heads + head) * pieces + piece];
    dlog_decay[head] = (float)sum;
}

cudaError_t backward(const tn_la_problem *p, const tn_device *device, char *workspace, cudaStream_t stream) {
    const backward_plan plan = plan_of(p, device);
    void *const gradients[] = { p->dq, p->dk, p->dv, p->has_gate ? p->dg : NULL };
    clear_packed(p, gradients, p->decay == TN_LA_SCALAR_DECAY ? (float *)p->dlog_decay : NULL, stream);
    const int64_t rows = p->b * p->h * p->n, slices = p->sequences * p->h;
    void *room = workspace + plan.scan;
    cudaError_t said = cudaSuccess;
    if (plan.gate) {
        const tn_la_scan s = gate_scan(p);
        const int64_t packs = rows * p->e / 8;
        if (s.gate.x && s.gate.x == p->dg)
            slopes<<<tn_blocks(packs, 256), 256, 0, stream>>>(packs, p->g.act, (const uint4 *)p->g.x, (const uint4 *)p->d_o,
                                                              (uint4 *)p->dg);
        said = tn_la_scan_run(&s, device, room, stream);
    }
    if (plan.query && said == cudaSuccess) {
        tn_la_scan s = query_scan(p);
        if (p->dlog_decay) s.dots = (float *)(workspace + plan.dots);
        if (p->dlog_decay && plan.pieces > 1) s.anchors = (float *)(workspace + plan.anchors);
        if (p->dlog_decay && p->dstate_out) s.state_out = (float *)(workspace + plan.last_state);
        if (p->dtheta) s.theta_parts = (float *)(workspace + plan.theta);
        said = tn_la_scan_run(&s, device, room, stream);
    }
    if (said != cudaSuccess) return said;
    tn_la_scan key = key_scan(p);
    if (p->dlog_decay) key.dots = (float *)(workspace + plan.key_dots);
    if (p->dlog_decay && plan.pieces > 1) key.anchors = (float *)(workspace + plan.key_anchors);
    if (p->dtheta) key.theta_parts = (float *)(workspace + plan.key_theta);
    const tn_la_scan value = value_scan(p);
    if (plan.key && plan.value && tn_la_scan_pair_fits(&key, &value, device)) {
        said = tn_la_scan_pair_run(&key, &value, device, room, stream);
    } else {
        if (plan.key) said = tn_la_scan_run(&key, device, room, stream);
        if (plan.value && said == cudaSuccess) said = tn_la_scan_run(&value, device, room, stream);
    }
    if (said != cudaSuccess) return said;
    if (p->dtheta) {
        const tn_lrpe_grid &grid = p->q.grid;
        sum_theta<<<tn_blocks(grid.theta_heads * grid.theta_width, 128), 128, 0, stream>>>(
            slices, p->h, plan.query_segments, plan.key_segments, grid, (const float *)(workspace + plan.theta),
            (const float *)(workspace + plan.key_theta), (float *)p->dtheta);
    }
    if (p->dlog_decay) {
        const bool constant = p->decay == TN_LA_CONSTANT_DECAY;
        decay_sums sums = {};
        sums.heads = p->h, sums.tokens = p->n, sums.rows = rows, sums.state_numel = p->state_rows * p->e;
        sums.slots = p->n / TN_LA_ANCHOR_TOKENS + 1;
        sums.cu_seqlens = p->cu_seqlens;
        sums.query_parts = plan.query_parts, sums.key_parts = plan.key_parts;
        sums.query = (const float *)(workspace + plan.dots), sums.key = (const float *)(workspace + plan.key_dots);
        if (p->dstate_out) sums.last_state = (const float *)(workspace + plan.last_state), sums.dstate_out = (const float *)p->dstate_out;
        sums.anchors = (const float *)(workspace + plan.anchors), sums.key_anchors = (const float *)(workspace + plan.key_anchors);
        sums.dlog_decay = (float *)p->dlog_decay;
        sums.parts = constant ? (double *)(workspace + plan.decay_parts) : NULL;
        sum_decay<<<dim3((unsigned)slices, (unsigned)plan.pieces), DECAY_THREADS, 0, stream>>>(sums);
        if (constant)
            sum_decay_parts<<<tn_blocks(p->h, 128), 128, 0, stream>>>(p->sequences, p->h, plan.pieces, sums.parts, (float *)p->dlog_decay);
    }
    return cudaGetLastError();
}

} // namespace

extern "C" size_t tn_la_causal_forward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem) {
    const tn_la_scan s = forward_scan(problem);
    size_t fast = wants_fast(call, problem) ? tn_la_scan_workspace(&s, call->device) : 0;
    return forward_is_fast(call, problem) ? fast : more(fast, tn_la_causal_forward_plain_workspace(problem));
}
extern "C" size_t tn_la_causal_backward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem) {
    size_t fast = wants_fast(call, problem) ? plan_of(problem, call->device).all : 0;
    return problem->d_o && backward_is_fast(call, problem) ? fast : more(fast, tn_la_causal_backward_plain_workspace(problem));
}

extern "C" tn_status tn_la_causal_forward_cuda(tn_op_call *call, const tn_la_problem *problem) {
    int said;
    if (call->device->cuda_path != TN_CUDA_PLAIN && tn_la_step_fits(problem)) {
        said = tn_la_step(call, problem);
    } else if (forward_is_fast(call, problem)) {
        const tn_la_scan s = forward_scan(problem);
        void *const outputs[] = { NULL, NULL, NULL, problem->o };
        clear_packed(problem, outputs, NULL, (cudaStream_t)call->stream);
        said = (int)tn_la_scan_run(&s, call->device, call->workspace, (cudaStream_t)call->stream);
    } else {
        said = tn_la_causal_forward_plain(problem, call->device->cuda_path != TN_CUDA_PLAIN, call->workspace, call->stream);
    }
    return tn_cuda_said(call->device, said, "causal linear attention forward");
}

extern "C" tn_status tn_la_causal_backward_cuda(tn_op_call *call, const tn_la_problem *problem) {
    int said;
    if (problem->d_o && backward_is_fast(call, problem))
        said = (int)backward(problem, call->device, (char *)call->workspace, (cudaStream_t)call->stream);
    else said = tn_la_causal_backward_plain(problem, call->device->cuda_path != TN_CUDA_PLAIN, call->workspace, call->stream);
    return tn_cuda_said(call->device, said, "causal linear attention backward");
}
