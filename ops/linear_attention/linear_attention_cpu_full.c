/* Non-causal: one sweep over the keys builds S, one over the queries uses it; backward goes the other way round. */
#include <math.h>
#include <string.h>

#include "linear_attention_cpu.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The tile of tokens that starts at `first` of an item's `tokens`. */
static tn_la_place place_at(const tn_la_job *job, int64_t item, int64_t first, int64_t tokens) {
    return (tn_la_place){
        .batch = item / job->p.h, .head = item % job->p.h, .first = first, .count = smaller(job->rows, tokens - first), .position = first
    };
}

/* ---- forward ---- */

static void gather_statistics(const tn_la_job *job, const tn_la_frame *frame, const tn_la_operand *x, int64_t item) {
    if (!x->over_sequence) return;
    int64_t size = job->tile->size, d = job->p.d;
    char *maximum = (char *)x->maximum + item * d * size, *sum = (char *)x->sum + item * d * size;
    for (int64_t j = 0; j < d; j++) {
        if (size == 8) ((double *)maximum)[j] = -(double)INFINITY, ((double *)sum)[j] = 0;
        else ((float *)maximum)[j] = -INFINITY, ((float *)sum)[j] = 0;
    }
    for (int64_t t = 0; t < x->tokens; t += job->rows) {
        tn_la_place at = place_at(job, item, t, x->tokens);
        job->tile->statistics(&job->p, x, &at, maximum, sum, frame->row);
    }
}

static void sum_state(const tn_la_job *job, const tn_la_frame *frame, int64_t item, void *s) {
    const tn_la_problem *p = &job->p;
    tn_la_state_copy(job, s, tn_la_state_at(job, p->state, item));
    for (int64_t t = 0; t < p->m; t += job->rows) {
        tn_la_place at = place_at(job, item, t, p->m);
        job->tile->prepare(p, &p->k, &at, 1, frame->k, job->ld_d, frame->k_turn);
        job->tile->prepare(p, &p->v, &at, 1, frame->v, job->ld_e, frame->k_turn);
        tn_la_product(job, true, false, p->state_rows, p->e, at.count, frame->k, job->ld_d, frame->v, job->ld_e, 1, s, p->e);
    }
}

static void forward_item(const tn_la_job *job, const tn_la_frame *frame, int64_t item) {
    const tn_la_problem *p = &job->p;
    void *s = p->s ? tn_la_state_at(job, p->s, item) : frame->s;
    gather_statistics(job, frame, &p->q, item);
    gather_statistics(job, frame, &p->k, item);
    sum_state(job, frame, item, s);
    for (int64_t t = 0; t < p->n; t += job->rows) {
        tn_la_place at = place_at(job, item, t, p->n);
        job->tile->prepare(p, &p->q, &at, p->scale, frame->q, job->ld_d, frame->q_turn);
        if (p->has_gate) job->tile->prepare(p, &p->g, &at, 1, frame->gate, job->ld_e, frame->q_turn);
        tn_la_product(job, false, false, at.count, p->e, p->state_rows, frame->q, job->ld_d, s, p->e, 0, frame->y, job->ld_e);
        job->tile->store(p, &p->g, &at, frame->y, p->has_gate ? frame->gate : NULL, job->ld_e, p->o);
    }
}

void tn_la_full_forward(void *user, int64_t begin, int64_t end) {
    const tn_la_job *job = user;
    tn_la_frame frame = tn_la_frame_of(job);
    for (int64_t item = begin; item < end; item++) forward_item(job, &frame, item);
}

/* ---- backward ---- */

typedef struct tn_la_full_back {
    const tn_la_job *job;
    const tn_la_frame *frame;
    const void *s;
    double *turned;
    bool needs_dq, needs_dk, needs_ds;
} tn_la_full_back;

/* dq and dg of a tile, and what it adds to dS; in a second pass over the queries dq alone. */
static void back_through_queries(const tn_la_full_back *w, const tn_la_place *at, bool summing, bool again) {
    const tn_la_job *job = w->job;
    const tn_la_problem *p = &job->p;
    const tn_la_frame *f = w->frame;
    job->tile->prepare(p, &p->q, at, p->scale, f->q, job->ld_d, f->q_turn);
    tn_la_load_upstream(job, at, f->dy);
    if (p->has_gate) job->tile->prepare(p, &p->g, at, 1, f->gate, job->ld_e, f->q_turn);
    if (p->dg && !again) {
        tn_la_product(job, false, false, at->count, p->e, p->state_rows, f->q, job->ld_d, w->s, p->e, 0, f->y, job->ld_e);
        job->tile->gate_back(at->count, p->e, f->dy, f->y, f->gate, job->ld_e);
        tn_la_finish(job, f, at, &(tn_la_back){ .x = &p->g, .scale = 1, .ld = job->ld_e, .dx = p->dg }, f->y);
    } else if (p->has_gate) {
        job->tile->multiply(at->count, p->e, f->dy, f->gate, job->ld_e);
    }
    if (w->needs_ds && !again)
        tn_la_product(job, true, false, p->state_rows, p->e, at->count, f->q, job->ld_d, f->dy, job->ld_e, 1, f->ds, p->e);
    if (!w->needs_dq) return;
    tn_la_product(job, false, true, at->count, p->state_rows, p->e, f->dy, job->ld_e, w->s, p->e, 0, f->dx, job->ld_d);
    tn_la_back back = { .x = &p->q,
                        .scale = p->scale,
                        .tile = f->q,
                        .turn = f->q_turn,
                        .ld = job->ld_d,
                        .dx = p->dq,
                        .turned = again ? NULL : w->turned,
                        .summing = summing };
    tn_la_finish(job, f, at, &back, f->dx);
}

static void back_through_keys(const tn_la_full_back *w, const tn_la_place *at, bool summing, bool again) {
    const tn_la_job *job = w->job;
    const tn_la_problem *p = &job->p;
    const tn_la_frame *f = w->frame;
    job->tile->prepare(p, &p->k, at, 1, f->k, job->ld_d, f->k_turn);
    if (p->dv && !again) {
        tn_la_product(job, false, false, at->count, p->e, p->state_rows, f->k, job->ld_d, f->ds, p->e, 0, f->y, job->ld_e);
        tn_la_finish(job, f, at, &(tn_la_back){ .x = &p->v, .scale = 1, .ld = job->ld_e, .dx = p->dv }, f->y);
    }
    if (!w->needs_dk) return;
    job->tile->prepare(p, &p->v, at, 1, f->v, job->ld_e, f->k_turn);
    tn_la_product(job, false, true, at->count, p->state_rows, p->e, f->v, job->ld_e, f->ds, p->e, 0, f->dx, job->ld_d);
    tn_la_back back = { .x = &p->k,
                        .scale = 1,
                        .tile = f->k,
                        .turn = f->k_turn,
                        .ld = job->ld_d,
                        .dx = p->dk,
                        .turned = again ? NULL : w->turned,
                        .summing = summing };
    tn_la_finish(job, f, at, &back, f->dx);
}

/* Softmax over the sequence needs sums over all tokens before the first gradient: then the tokens are gone through twice. */
static void sweep(const tn_la_full_back *w, int64_t item, const tn_la_operand *x, bool wanted,
                  void (*back)(const tn_la_full_back *, const tn_la_place *, bool, bool)) {
    bool twice = x->over_sequence && wanted;
    if (twice) memset(w->frame->sums, 0, (size_t)x->width * sizeof *w->frame->sums);
    for (int pass = 0; pass < (twice ? 2 : 1); pass++)
        for (int64_t t = 0; t < x->tokens; t += w->job->rows) {
            tn_la_place at = place_at(w->job, item, t, x->tokens);
            back(w, &at, twice && pass == 0, pass == 1);
        }
}

void tn_la_full_backward(void *user, int64_t begin, int64_t end) {
    const tn_la_job *job = user;
    const tn_la_problem *p = &job->p;
    tn_la_frame frame = tn_la_frame_of(job);
    for (int64_t item = begin; item < end; item++) {
        tn_la_full_back w = { .job = job, .frame = &frame, .s = tn_la_state_at(job, p->s, item) };
        if (job->turned) w.turned = job->turned + item * p->q.grid.angles;
        w.needs_dq = p->dq || w.turned;
        w.needs_dk = p->dk || w.turned;
        w.needs_ds = w.needs_dk || p->dv || p->dstate;
        tn_la_state_copy(job, frame.ds, tn_la_state_at(job, p->dstate_out, item));
        if (w.needs_dq || p->dg || w.needs_ds) sweep(&w, item, &p->q, p->dq != NULL, back_through_queries);
        if (w.needs_dk || p->dv) sweep(&w, item, &p->k, p->dk != NULL, back_through_keys);
        if (p->dstate) tn_la_state_copy(job, tn_la_state_at(job, p->dstate, item), frame.ds);
    }
}
