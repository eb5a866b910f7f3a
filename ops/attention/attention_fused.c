/* Fused bf16 attention on CUDA: the work cut into runs of (batch, head) slices, whose q, k and v lie in the workspace where the call has
 * factors. */
#include "attention_fused.h"

#include <stdint.h>

#include "attention_core.h"

#define ALIGNMENT 512
#define ROOM ((int64_t)256 << 20) /* bytes that a run's slices may take, unless one alone needs more */
#define ENOUGH_BLOCKS 1024        /* of 64 keys: what a group's heads are cut up for */

static bool is_aligned(const void *at) { return ((uintptr_t)at & 15) == 0; }
static bool operand_is_aligned(const tn_at_operand *x) { return is_aligned(x->x) && is_aligned(x->dx); }

bool tn_at_fused_fits(const tn_at_problem *p, const tn_device *device, bool backward) {
    if (device->cuda_path == TN_CUDA_PLAIN || p->dtype != TN_BF16 || p->d != p->e) return false;
    if (p->d != 32 && p->d != 64 && p->d != 96 && p->d != 128) return false;
    bool small = p->m < 1 << 30 && p->n < 1 << 30 && p->b < 65536 && p->h < 65536;
    if (!small || p->b == 0 || p->n == 0 || (backward && p->m == 0)) return false;
    return operand_is_aligned(&p->q) && operand_is_aligned(&p->k) && operand_is_aligned(&p->v) && is_aligned(p->q.a) &&
           is_aligned(p->k.a) && is_aligned(p->v.a) && is_aligned(p->o) && is_aligned(p->d_o);
}

/* Forward needs no k or v where all heads share them but for a number. */
static bool is_shared(const tn_at_problem *p) { return p->k.rank == 1 && p->v.rank == 1 && p->h % 8 == 0 && (p->d == 64 || p->d == 128); }

static size_t aligned(int64_t bytes) { return ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* ---- the plan: what a run is, and where things lie in the workspace ---- */

typedef struct plan {
    int64_t batches, heads, parts, padded;
    bool split; /* a batch's heads are in several runs */
    size_t rows, bounds, q, k, v, dq, dk_part, dv_part, sum_q, sum_k, sum_v, all;
} plan;

static size_t take(plan *w, int64_t bytes) {
    size_t at = w->all;
    w->all += aligned(bytes);
    return at;
}

static int64_t parts_of(const tn_at_problem *p) {
    int64_t group = p->h / p->hk, blocks = p->b * p->hk * ((p->m + 63) / 64), parts = 1;
    while (parts < group && (blocks * parts < ENOUGH_BLOCKS || group % parts)) parts++;
    return parts;
}

static void cut_into_runs(const tn_at_problem *p, bool backward, plan *w) {
    w->batches = p->b, w->heads = p->h;
    if (!p->q.rank) return;
    int64_t slice = (backward ? 2 * (p->n + p->m) : p->n + 2 * p->m) * p->d * 2, fit = ROOM / slice;
    if (fit >= p->h) {
        w->batches = fit / p->h < p->b ? fit / p->h : p->b;
    } else {
        w->batches = 1;
        w->heads = fit >= 8 ? fit / 8 * 8 : fit < 1 ? 1 : fit;
    }
    w->split = w->heads < p->h;
}

static plan plan_of(const tn_at_problem *p, bool backward) {
    plan w = { .parts = 1, .padded = (p->n + TN_AT_ROWS - 1) / TN_AT_ROWS * TN_AT_ROWS };
    cut_into_runs(p, backward, &w);
    int64_t slices = w.batches * w.heads;
    if (backward) {
        w.rows = take(&w, p->b * p->h * w.padded * 8);
        w.bounds = take(&w, p->b * w.padded * 8);
    }
    if (p->q.rank) {
        if (!backward && is_shared(p)) return w;
        w.q = take(&w, slices * p->n * p->d * 2);
        w.k = take(&w, slices * p->m * p->d * 2);
        w.v = take(&w, slices * p->m * p->d * 2);
        if (!backward) return w;
        w.dq = take(&w, slices * p->n * p->d * 2);
        if (!w.split) return w;
        w.sum_q = take(&w, p->n * p->q.rank * p->d * 4);
        w.sum_k = take(&w, p->m * p->k.rank * p->d * 4);
        w.sum_v = take(&w, p->m * p->v.rank * p->d * 4);
    } else if (backward) {
        w.parts = parts_of(p);
        if (w.parts == 1) return w;
        w.dk_part = take(&w, w.parts * p->b * p->m * p->hk * p->d * 4);
        w.dv_part = take(&w, w.parts * p->b * p->m * p->hk * p->d * 4);
    }
    return w;
}

/* ---- views ---- */

/* [b, tokens, heads, width], as the caller's tensors are. */
static tn_at_view whole_view(const void *at, int64_t tokens, int64_t heads, int64_t width, int64_t batch, int64_t head) {
    tn_at_view view = { .batch = tokens * heads * width, .token = heads * width, .head = width };
    if (at) view.at = (char *)(uintptr_t)at + 2 * (batch * view.batch + head * view.head);
    return view;
}

/* [batches, heads, tokens, width] of a run, in the workspace. */
static tn_at_view run_view(char *at, int64_t tokens, int64_t heads, int64_t width) {
    return (tn_at_view){ .at = at, .batch = heads * tokens * width, .token = width, .head = tokens * width };
}

static tn_at_core core_of(const tn_at_problem *p, const plan *w, char *workspace, int64_t batch, int64_t head) {
    tn_at_core c = { .p = *p, .first_batch = batch, .first_head = head, .group = p->h / p->hk, .parts = w->parts, .padded = w->padded };
    c.batches = w->batches < p->b - batch ? w->batches : p->b - batch;
    c.heads = w->heads < p->h - head ? w->heads : p->h - head;
    c.scale = (float)(p->q.factor * p->k.factor);
    c.scale_v = (float)p->v.factor;
    c.o = whole_view(p->o, p->n, p->h, p->e, batch, head);
    c.d_o = whole_view(p->d_o, p->n, p->h, p->e, batch, head);
    c.rows = workspace + w->rows;
    c.bounds = workspace + w->bounds;
    return c;
}

static void see_whole(const tn_at_problem *p, const plan *w, char *workspace, tn_at_core *c) {
    c->q = whole_view(p->q.x, p->n, p->h, p->d, 0, 0);
    c->k = whole_view(p->k.x, p->m, p->hk, p->d, 0, 0);
    c->v = whole_view(p->v.x, p->m, p->hk, p->e, 0, 0);
    c->dq = whole_view(p->q.dx, p->n, p->h, p->d, 0, 0);
    c->dk = whole_view(p->k.dx, p->m, p->hk, p->d, 0, 0);
    c->dv = whole_view(p->v.dx, p->m, p->hk, p->e, 0, 0);
    c->dk_part = (float *)(void *)(workspace + w->dk_part);
    c->dv_part = (float *)(void *)(workspace + w->dv_part);
}

/* dk and dv take the place of k and v: a block reads its own keys before it writes, and nobody else's. */
static void see_run(const tn_at_problem *p, const plan *w, char *workspace, tn_at_core *c) {
    c->q = run_view(workspace + w->q, p->n, c->heads, p->d);
    c->k = c->dk = run_view(workspace + w->k, p->m, c->heads, p->d);
    c->v = c->dv = run_view(workspace + w->v, p->m, c->heads, p->e);
    c->dq = run_view(workspace + w->dq, p->n, c->heads, p->d);
}

static int expand_all(const tn_at_core *c, void *stream) {
    int error = tn_at_expand(c, &c->p.q, c->q, stream);
    if (!error) error = tn_at_expand(c, &c->p.k, c->k, stream);
    if (!error) error = tn_at_expand(c, &c->p.v, c->v, stream);
    return error;
}

/* ---- the passes ---- */

typedef struct way {
    int (*forward)(const tn_at_core *, void *), (*dq)(const tn_at_core *, void *), (*dkv)(const tn_at_core *, void *);
} way;

static way way_of(const tn_at_problem *p, const tn_device *device) {
    if (device->cuda_path == TN_CUDA_HOPPER && (p->d == 64 || p->d == 128))
        return (way){ tn_at_hopper_forward, tn_at_hopper_dq, tn_at_hopper_dkv };
    return (way){ tn_at_core_forward, tn_at_core_dq, tn_at_core_dkv };
}

size_t tn_at_fused_workspace(const tn_at_problem *p, const tn_device *device, bool backward) {
    (void)device;
    return plan_of(p, backward).all;
}

int tn_at_fused_forward(const tn_at_problem *p, const tn_device *device, void *workspace, void *stream) {
    way by = way_of(p, device);
    plan w = plan_of(p, false);
    if (!p->q.rank || is_shared(p)) {
        w.batches = p->b, w.heads = p->h;
        tn_at_core c = core_of(p, &w, workspace, 0, 0);
        if (!p->q.rank) see_whole(p, &w, workspace, &c);
        return by.forward(&c, stream);
    }
    int error = 0;
    for (int64_t batch = 0; batch < p->b && !error; batch += w.batches)
        for (int64_t head = 0; head < p->h && !error; head += w.heads) {
            tn_at_core c = core_of(p, &w, workspace, batch, head);
            see_run(p, &w, workspace, &c);
            error = expand_all(&c, stream);
            if (!error) error = by.forward(&c, stream);
        }
    return error;
}

static bool wants(const tn_at_operand *x) { return x->dx || x->da; }

static int gradients_of_run(const tn_at_core *c, way by, void *stream) {
    int error = wants(&c->p.q) ? by.dq(c, stream) : 0;
    if (error || (!wants(&c->p.k) && !wants(&c->p.v))) return error;
    error = by.dkv(c, stream);
    if (!error) error = tn_at_core_add_parts(c, stream);
    return error;
}

static int contract_all(const tn_at_core *c, const plan *w, char *workspace, void *stream) {
    float *sum_q = w->split ? (float *)(void *)(workspace + w->sum_q) : NULL,
          *sum_k = w->split ? (float *)(void *)(workspace + w->sum_k) : NULL,
          *sum_v = w->split ? (float *)(void *)(workspace + w->sum_v) : NULL;
    int error = tn_at_contract(c, &c->p.q, false, c->dq, sum_q, stream);
    if (!error) error = tn_at_contract(c, &c->p.k, true, c->dk, sum_k, stream);
    if (!error) error = tn_at_contract(c, &c->p.v, true, c->dv, sum_v, stream);
    return error;
}

int tn_at_fused_backward(const tn_at_problem *p, const tn_device *device, void *workspace, void *stream) {
    way by = way_of(p, device);
    plan w = plan_of(p, true);
    tn_at_core whole = core_of(p, &w, workspace, 0, 0);
    int error = tn_at_core_rows(&whole, stream);
    if (!p->q.rank) {
        see_whole(p, &w, workspace, &whole);
        return error ? error : gradients_of_run(&whole, by, stream);
    }
    for (int64_t batch = 0; batch < p->b && !error; batch += w.batches)
        for (int64_t head = 0; head < p->h && !error; head += w.heads) {
            tn_at_core c = core_of(p, &w, workspace, batch, head);
            see_run(p, &w, workspace, &c);
            error = expand_all(&c, stream);
            if (!error) error = gradients_of_run(&c, by, stream);
            if (!error) error = contract_all(&c, &w, workspace, stream);
        }
    return error;
}
