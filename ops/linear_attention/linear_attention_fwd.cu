/* Which kernels run the forward of non-causal linear attention, and where they work. */
#include "linear_attention_forward_plain.h"
#include "linear_attention_fwd.cuh"

/* Hands out the workspace piece by piece; without a base it only counts. */
struct pieces {
    char *base;
    size_t used;
};
static void *take(pieces *all, size_t n_bytes) {
    void *piece = all->base ? all->base + all->used : NULL;
    all->used += (n_bytes + 511) / 512 * 512;
    return piece;
}

/* Coordinates that f32 holds. */
static bool coordinates_fit(const tn_la_operand *x) {
    const int64_t most = INT64_C(1) << 24, offset = x->grid.offset < 0 ? -x->grid.offset : x->grid.offset;
    return !x->encoded || (offset < most && x->tokens + offset < most);
}

static bool rows_fit(const tn_la_problem *p, const void *x, const tn_la_strides *stride) {
    int64_t pack = 16 / (int64_t)tn_dtype_size(p->dtype);
    return tn_aligned16(x) && stride->batch % pack == 0 && stride->token % pack == 0 && stride->head % pack == 0;
}

/* Do the tiled kernels take it? */
static bool is_tiled(const tn_op_call *call, const tn_la_problem *p) {
    if (call->device->cuda_path == TN_CUDA_PLAIN || p->dtype == TN_F64) return false;
    const bool rotated = p->encoded && p->kind == TN_ROTATE, broad = p->dtype == TN_BF16 && !p->encoded;
    if (p->d % (rotated ? 16 : 8) || p->e % 8 || p->d > (broad ? 256 : 128) || p->e > 256 || p->b * p->h > INT32_MAX / 2) return false;
    if (p->e > 128 && (p->v.act == TN_SOFTMAX || (p->has_gate && p->g.act == TN_SOFTMAX)))
        return false; /* a row by pieces of 128 columns */
    if (p->b * p->h * ((p->m > p->n ? p->m : p->n) / 16 + 1) > INT32_MAX) return false;
    if (!rows_fit(p, p->q.x, &p->q.stride) || !rows_fit(p, p->k.x, &p->k.stride) || !rows_fit(p, p->v.x, &p->v.stride)) return false;
    if ((p->has_gate && !rows_fit(p, p->g.x, &p->g.stride)) || !rows_fit(p, p->o, &p->o_stride)) return false;
    if (!tn_aligned16(p->state) || !tn_aligned16(p->s)) return false;
    /* f32 goes by 64 columns of v, and softmax over those of g never has a row together. */
    if (p->dtype == TN_F32 && ((p->v.act == TN_SOFTMAX && p->e > 64) || (p->has_gate && p->g.act == TN_SOFTMAX))) return false;
    return coordinates_fit(&p->q) && coordinates_fit(&p->k);
}

static tn_tile_operand operand_of(const tn_la_operand *x) {
    tn_tile_operand operand = { x->x,          x->stride.batch, x->stride.token,  x->stride.head, x->tokens,
                                (int)x->width, x->act,          x->over_sequence, NULL,           NULL };
    operand.maximum = (const float *)x->maximum;
    operand.sum = (const float *)x->sum;
    return operand;
}

static tn_la_forward tiled_of(const tn_la_problem *p) {
    tn_la_forward f = {};
    f.q = operand_of(&p->q), f.k = operand_of(&p->k), f.v = operand_of(&p->v);
    if (p->has_gate) f.g = operand_of(&p->g);
    f.q_grid = p->q.grid, f.k_grid = p->k.grid;
    f.theta = p->encoded ? (const float *)p->theta : NULL;
    f.kind = !p->encoded ? p->d > 128 ? TN_LA_BROAD : TN_LA_UNTURNED : p->kind == TN_ROTATE ? TN_LA_ROTATED : TN_LA_COSINE;
    f.h = (int)p->h, f.d = (int)p->d, f.e = (int)p->e, f.state_rows = (int)p->state_rows;
    f.heads = p->b * p->h;
    f.scale = (float)p->scale;
    f.state = (const float *)p->state, f.s = (float *)p->s;
    f.o = p->o, f.o_batch = p->o_stride.batch, f.o_token = p->o_stride.token, f.o_head = p->o_stride.head;
    return f;
}

/* wgmma where tokens stand on one axis from the first on: it can't wait for other angles. */
static tn_la_product product_for(const tn_op_call *call, const tn_la_problem *p, const tn_la_operand *x) {
    bool on_axis = !x->encoded || (x->grid.axes == 1 && x->grid.leading == 0);
    bool wide = p->dtype == TN_F32 || p->d > 64 || p->e > 64;
    return call->device->cuda_path == TN_CUDA_HOPPER && wide && on_axis ? TN_LA_WGMMA : TN_LA_MMA;
}

/* Where the parts of a pass lie: what the call has no room for, then what this path needs. */
struct forward_plan {
    tn_la_problem problem;
    tn_la_forward tiled;
    void *q_statistics, *k_statistics, *plain;
    bool is_tiled, is_short;
};
static size_t plan_forward(forward_plan *plan, const tn_op_call *call, const tn_la_problem *given, void *workspace) {
    pieces all = { (char *)workspace, 0 };
    plan->problem = *given;
    tn_la_problem *p = &plan->problem;
    const size_t wide = tn_dtype_size(p->wide), heads = (size_t)(p->b * p->h);
    tn_la_operand *turned[] = { &p->q, &p->k };
    void **statistics[] = { &plan->q_statistics, &plan->k_statistics };
    for (int i = 0; i < 2; i++) {
        if (!turned[i]->over_sequence) continue;
        if (!turned[i]->maximum) {
            turned[i]->maximum = take(&all, heads * (size_t)p->d * wide);
            turned[i]->sum = take(&all, heads * (size_t)p->d * wide);
        }
        *statistics[i] = take(&all, tn_la_statistics_workspace(p, turned[i], call->device));
    }
    tn_la_forward *f = &plan->tiled;
    *f = tiled_of(p);
    plan->is_tiled = is_tiled(call, given) && tn_la_plan_out(f, call->device, p->dtype, product_for(call, p, &p->q)) &&
                     tn_la_plan_state(f, call->device, p->dtype);
    plan->is_short = plan->is_tiled && p->dtype == TN_BF16 && p->m && p->n && product_for(call, p, &p->q) == TN_LA_WGMMA &&
                     product_for(call, p, &p->k) == TN_LA_WGMMA && tn_la_is_short(*f);
    if (plan->is_short) return all.used;
    if (!p->s) f->s = (float *)(p->s = take(&all, heads * (size_t)(p->state_rows * p->e) * wide));
    if (plan->is_tiled) {
        const size_t left = (size_t)tn_la_heads_left(f->state_deal);
        if (left) f->parts = (float *)take(&all, ((size_t)f->state_deal.blocks + left) * (size_t)(p->state_rows * p->e) * sizeof(float));
    } else {
        plan->plain = take(&all, tn_la_forward_plain_workspace(p));
    }
    return all.used;
}

extern "C" size_t tn_la_forward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem) {
    forward_plan plan;
    return plan_forward(&plan, call, problem, NULL);
}

/* No keys: S is the state, or zero. */
static cudaError_t keep_state(const tn_la_problem *p, cudaStream_t stream) {
    size_t n_bytes = (size_t)(p->b * p->h * p->state_rows * p->e) * tn_dtype_size(p->wide);
    if (!p->state) return cudaMemsetAsync(p->s, 0, n_bytes, stream);
    return cudaMemcpyAsync(p->s, p->state, n_bytes, cudaMemcpyDeviceToDevice, stream);
}

static cudaError_t run_tiled(forward_plan *plan, const tn_op_call *call, cudaStream_t stream) {
    const tn_la_problem *p = &plan->problem;
    tn_la_forward *f = &plan->tiled;
    if (plan->is_short) return tn_la_launch_short(*f, call->device->multiprocessors, stream);
    f->early = call->device->cuda_path == TN_CUDA_HOPPER && p->m > 0;
    cudaError_t error = p->m ? tn_la_launch_state(*f, p->dtype, product_for(call, p, &p->k), stream) : keep_state(p, stream);
    if (error != cudaSuccess || p->n == 0) return error;
    tn_la_plan_out(f, call->device, p->dtype, product_for(call, p, &p->q));
    return tn_la_launch_out(*f, p->dtype, product_for(call, p, &p->q), stream);
}

extern "C" tn_status tn_la_forward_cuda(tn_op_call *call, const tn_la_problem *problem) {
    forward_plan plan = {};
    cudaStream_t stream = (cudaStream_t)call->stream;
    plan_forward(&plan, call, problem, call->workspace);
    const tn_la_problem *p = &plan.problem;
    if (p->b * p->h == 0) return TN_OK;
    if (p->q.over_sequence) tn_la_statistics(p, &p->q, call->device, plan.q_statistics, stream);
    if (p->k.over_sequence) tn_la_statistics(p, &p->k, call->device, plan.k_statistics, stream);
    cudaError_t error = cudaSuccess;
    if (plan.is_tiled) error = run_tiled(&plan, call, stream);
    else tn_la_forward_plain(p, plan.plain, stream);
    if (error == cudaSuccess) error = cudaGetLastError();
    return tn_cuda_said(call->device, (int)error, "linear attention forward");
}
