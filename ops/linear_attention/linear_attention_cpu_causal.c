/* Causal, chunk after chunk: within a chunk as a masked product of queries and keys, from chunk to chunk through the state. Decay enters
 * as exp of a difference of logs summed from the chunk's start, and of differences that are <= 0 only. */
#include <math.h>

#include "linear_attention_cpu.h"

/* Below this a decay is 0 in every dtype; it keeps differences of -inf from arising. */
#define LEAST_LOG (-1e4)

/* The tokens of an item. */
typedef struct run_of_tokens {
    int64_t batch, head, begin, end; /* tokens [begin, end) of the batch */
} run_of_tokens;

static run_of_tokens tokens_of(const tn_la_problem *p, int64_t item) {
    int64_t sequence = item / p->h;
    run_of_tokens run = { .batch = sequence, .head = item % p->h, .begin = 0, .end = p->n };
    if (p->cu_seqlens) run = (run_of_tokens){ 0, item % p->h, p->cu_seqlens[sequence], p->cu_seqlens[sequence + 1] };
    return run;
}

static tn_la_place place_at(const tn_la_job *job, const run_of_tokens *run, int64_t first) {
    int64_t left = run->end - first;
    return (tn_la_place){
        .batch = run->batch, .head = run->head, .first = first, .count = left < job->rows ? left : job->rows, .position = first - run->begin
    };
}

/* log[i]: the decays of the chunk's tokens 0 .. i, summed. NULL: no decay. */
static const double *sum_logs(const tn_la_problem *p, const tn_la_place *at, double *log) {
    if (p->decay == TN_LA_NO_DECAY) return NULL;
    double sum = 0;
    for (int64_t i = 0; i < at->count; i++) {
        int64_t from = p->decay == TN_LA_CONSTANT_DECAY ? at->head : (at->batch * p->n + at->first + i) * p->h + at->head;
        double one = p->wide == TN_F64 ? ((const double *)p->log_decay)[from] : (double)((const float *)p->log_decay)[from];
        log[i] = sum += one < LEAST_LOG ? LEAST_LOG : one;
    }
    return log;
}

/* A chunk on its way through a sweep. */
typedef struct chunk {
    const tn_la_job *job;
    const tn_la_frame *f;
    tn_la_place at;
    const double *log; /* NULL: no decay */
    bool has_state;    /* f->s is not all zeros */
} chunk;

static double whole(const chunk *c) { return c->log ? c->log[c->at.count - 1] : 0; }

/* A := q k' with decay, of the pairs in which the key is not later. Then B likewise from dy v'. */
static void pair_up(const chunk *c, const void *left, const void *right, int64_t width, int64_t ld, void *to) {
    tn_la_product(c->job, false, true, c->at.count, c->at.count, width, left, ld, right, ld, 0, to, c->job->ld_a);
    c->job->tile->mask(c->at.count, c->log, to, c->job->ld_a);
}

/* The tile with each row decayed from the chunk's start to its token, or from its token to the chunk's end. */
static const void *from_start(const chunk *c, const void *tile) {
    if (!c->log) return tile;
    c->job->tile->decay_rows(c->at.count, c->job->p.state_rows, c->log, 0, false, tile, c->f->moved, c->job->ld_d);
    return c->f->moved;
}
static const void *to_end(const chunk *c, const void *tile) {
    if (!c->log) return tile;
    c->job->tile->decay_rows(c->at.count, c->job->p.state_rows, c->log, whole(c), true, tile, c->f->moved, c->job->ld_d);
    return c->f->moved;
}

static void prepare_queries(const chunk *c) {
    const tn_la_problem *p = &c->job->p;
    c->job->tile->prepare(p, &p->q, &c->at, p->scale, c->f->q, c->job->ld_d, c->f->q_turn);
}
static void prepare_keys(const chunk *c) {
    const tn_la_problem *p = &c->job->p;
    c->job->tile->prepare(p, &p->k, &c->at, 1, c->f->k, c->job->ld_d, c->f->k_turn);
}
static void prepare_values(const chunk *c) {
    const tn_la_problem *p = &c->job->p;
    c->job->tile->prepare(p, &p->v, &c->at, 1, c->f->v, c->job->ld_e, c->f->k_turn);
}
static const void *prepare_gate(const chunk *c) {
    const tn_la_problem *p = &c->job->p;
    if (!p->has_gate) return NULL;
    c->job->tile->prepare(p, &p->g, &c->at, 1, c->f->gate, c->job->ld_e, c->f->q_turn);
    return c->f->gate;
}

/* y := what the queries read, from their chunk and from the state before it. */
static void read_out(const chunk *c) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    int64_t count = c->at.count;
    pair_up(c, c->f->q, c->f->k, p->state_rows, job->ld_d, c->f->a);
    tn_la_product(job, false, false, count, p->e, count, c->f->a, job->ld_a, c->f->v, job->ld_e, 0, c->f->y, job->ld_e);
    if (c->has_state)
        tn_la_product(job, false, false, count, p->e, p->state_rows, from_start(c, c->f->q), job->ld_d, c->f->s, p->e, 1, c->f->y,
                      job->ld_e);
}

/* S := the state after the chunk. */
static void advance_state(chunk *c) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    if (c->has_state && c->log) job->tile->scale(p->state_rows * p->e, exp(whole(c)), c->f->s);
    tn_la_product(job, true, false, p->state_rows, p->e, c->at.count, to_end(c, c->f->k), job->ld_d, c->f->v, job->ld_e,
                  c->has_state ? 1 : 0, c->f->s, p->e);
    c->has_state = true;
}

/* ---- forward ---- */

/* A sequence of one token, as in generation: state in and out in one go. */
static void forward_token(chunk *c, int64_t item) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    const void *from = tn_la_state_at(job, p->state, item);
    void *to = p->state_out ? tn_la_state_at(job, p->state_out, item) : c->f->s;
    prepare_queries(c);
    prepare_keys(c);
    prepare_values(c);
    const void *gate = prepare_gate(c);
    c->log = sum_logs(p, &c->at, c->f->log);
    job->tile->recur(p->state_rows, p->e, exp(whole(c)), c->f->q, c->f->k, c->f->v, from, to, c->f->y);
    job->tile->store(p, &p->g, &c->at, c->f->y, gate, job->ld_e, p->o);
}

static void forward_item(const tn_la_job *job, const tn_la_frame *frame, int64_t item) {
    const tn_la_problem *p = &job->p;
    run_of_tokens run = tokens_of(p, item);
    chunk c = { .job = job, .f = frame, .at = place_at(job, &run, run.begin), .has_state = p->state != NULL };
    if (run.end - run.begin == 1) {
        forward_token(&c, item);
        return;
    }
    if (c.has_state || run.begin == run.end) tn_la_state_copy(job, frame->s, tn_la_state_at(job, p->state, item));
    for (int64_t t = run.begin; t < run.end; t += job->rows) {
        c.at = place_at(job, &run, t);
        c.log = sum_logs(p, &c.at, frame->log);
        prepare_queries(&c);
        prepare_keys(&c);
        prepare_values(&c);
        const void *gate = prepare_gate(&c);
        read_out(&c);
        job->tile->store(p, &p->g, &c.at, frame->y, gate, job->ld_e, p->o);
        if (p->state_out || t + job->rows < run.end) advance_state(&c);
    }
    if (p->state_out) tn_la_state_copy(job, tn_la_state_at(job, p->state_out, item), frame->s);
}

void tn_la_causal_forward(void *user, int64_t begin, int64_t end) {
    const tn_la_job *job = user;
    tn_la_frame frame = tn_la_frame_of(job);
    for (int64_t item = begin; item < end; item++) forward_item(job, &frame, item);
}

/* ---- backward ---- */

typedef struct back_job {
    const tn_la_job *job;
    run_of_tokens run;
    double *turned, *weight; /* NULL: not wanted */
    bool needs_dq, needs_dk;
} back_job;

/* dy := do * gate. */
static void prepare_upstream(const chunk *c) {
    const void *gate = prepare_gate(c);
    tn_la_load_upstream(c->job, &c->at, c->f->dy);
    if (gate) c->job->tile->multiply(c->at.count, c->job->p.e, c->f->dy, gate, c->job->ld_e);
}

/* dy := do * gate, and dg. */
static void back_through_gate(const chunk *c) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    read_out(c);
    prepare_gate(c);
    tn_la_load_upstream(job, &c->at, c->f->dy);
    job->tile->gate_back(c->at.count, p->e, c->f->dy, c->f->y, c->f->gate, job->ld_e);
    tn_la_finish(job, c->f, &c->at, &(tn_la_back){ .x = &p->g, .scale = 1, .ld = job->ld_e, .dx = p->dg }, c->f->y);
}

/* The tokens' weights gain sign * <dx, own>. What a token has from itself no decay stands in: it is the same in both products and, where
 * decay is strong, far larger than their difference, so it is left out of them and comes into dx only then; also where nobody wants the
 * weights, so that dx is the same. */
static void weigh(const back_job *w, const chunk *c, const void *own, double sign, const void *other) {
    const tn_la_job *job = c->job;
    int64_t count = c->at.count, width = job->p.state_rows;
    if (w->weight) job->tile->dots(count, width, c->f->dx, own, job->ld_d, sign, w->weight + c->at.first);
    job->tile->add_rows(count, width, c->f->diagonal, other, c->f->dx, job->ld_d);
}

/* The gradient of the queries: of the keys of their chunk, B k, and of the state before it, exp(log) dy S'. */
static void back_through_queries(const back_job *w, const chunk *c) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    const tn_la_frame *f = c->f;
    int64_t count = c->at.count;
    if (c->has_state) {
        tn_la_product(job, false, true, count, p->state_rows, p->e, f->dy, job->ld_e, f->s, p->e, 0, f->dx, job->ld_d);
        if (c->log) job->tile->decay_rows(count, p->state_rows, c->log, 0, false, f->dx, f->dx, job->ld_d);
    }
    pair_up(c, f->dy, f->v, p->e, job->ld_e, f->b);
    if (c->log) job->tile->take_diagonal(count, f->b, job->ld_a, f->diagonal);
    tn_la_product(job, false, false, count, p->state_rows, count, f->b, job->ld_a, f->k, job->ld_d, c->has_state ? 1 : 0, f->dx, job->ld_d);
    if (c->log) weigh(w, c, f->q, 1, f->k);
    tn_la_back back = { .x = &p->q, .scale = p->scale, .tile = f->q, .turn = f->q_turn, .ld = job->ld_d, .dx = p->dq, .turned = w->turned };
    tn_la_finish(job, f, &c->at, &back, f->dx);
}

static void sweep_forward(const back_job *w, chunk *c, int64_t t) {
    const tn_la_problem *p = &c->job->p;
    bool needs_q = p->dg || w->turned || w->weight || p->q.encoded;
    c->at = place_at(c->job, &w->run, t);
    c->log = sum_logs(p, &c->at, c->f->log);
    prepare_keys(c);
    prepare_values(c);
    if (needs_q) prepare_queries(c);
    if (p->dg) back_through_gate(c);
    else prepare_upstream(c);
    if (w->needs_dq) back_through_queries(w, c);
}

/* dk: of the queries of the chunk, B' q, and of the state after it, exp(whole - log) v dS'. */
static void back_through_keys(const back_job *w, const chunk *c, bool has_ds) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    const tn_la_frame *f = c->f;
    int64_t count = c->at.count;
    if (has_ds) {
        tn_la_product(job, false, true, count, p->state_rows, p->e, f->v, job->ld_e, f->ds, p->e, 0, f->dx, job->ld_d);
        if (c->log) job->tile->decay_rows(count, p->state_rows, c->log, whole(c), true, f->dx, f->dx, job->ld_d);
    }
    pair_up(c, f->dy, f->v, p->e, job->ld_e, f->b);
    if (c->log) job->tile->take_diagonal(count, f->b, job->ld_a, f->diagonal);
    tn_la_product(job, true, false, count, p->state_rows, count, f->b, job->ld_a, f->q, job->ld_d, has_ds ? 1 : 0, f->dx, job->ld_d);
    if (c->log) weigh(w, c, f->k, -1, f->q);
    tn_la_back back = { .x = &p->k, .scale = 1, .tile = f->k, .turn = f->k_turn, .ld = job->ld_d, .dx = p->dk, .turned = w->turned };
    tn_la_finish(job, f, &c->at, &back, f->dx);
}

/* dv: A' dy, and exp(whole - log) k dS. */
static void back_through_values(const chunk *c, bool has_ds) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    const tn_la_frame *f = c->f;
    int64_t count = c->at.count;
    if (has_ds) tn_la_product(job, false, false, count, p->e, p->state_rows, to_end(c, f->k), job->ld_d, f->ds, p->e, 0, f->y, job->ld_e);
    pair_up(c, f->q, f->k, p->state_rows, job->ld_d, f->a);
    tn_la_product(job, true, false, count, p->e, count, f->a, job->ld_a, f->dy, job->ld_e, has_ds ? 1 : 0, f->y, job->ld_e);
    tn_la_finish(job, f, &c->at, &(tn_la_back){ .x = &p->v, .scale = 1, .ld = job->ld_e, .dx = p->dv }, f->y);
}

/* dS := the gradient of the state before the chunk, from that of the state after it. */
static void back_through_state(const chunk *c, bool has_ds) {
    const tn_la_job *job = c->job;
    const tn_la_problem *p = &job->p;
    if (has_ds && c->log) job->tile->scale(p->state_rows * p->e, exp(whole(c)), c->f->ds);
    tn_la_product(job, true, false, p->state_rows, p->e, c->at.count, from_start(c, c->f->q), job->ld_d, c->f->dy, job->ld_e,
                  has_ds ? 1 : 0, c->f->ds, p->e);
}

static void sweep_back(const back_job *w, chunk *c, int64_t t, bool has_ds) {
    const tn_la_problem *p = &c->job->p;
    c->at = place_at(c->job, &w->run, t);
    c->log = sum_logs(p, &c->at, c->f->log);
    prepare_queries(c);
    prepare_keys(c);
    prepare_upstream(c);
    if (p->dv) back_through_values(c, has_ds);
    if (w->needs_dk) {
        prepare_values(c);
        back_through_keys(w, c, has_ds);
    }
    if (t > w->run.begin || p->dstate) back_through_state(c, has_ds);
}

/* dlog_decay_t: the tokens' weights from t on, and <S, dS> at the end, which every decay stands in. */
static void sum_decay(const back_job *w, int64_t item, double at_end) {
    const tn_la_job *job = w->job;
    const tn_la_problem *p = &job->p;
    double sum = at_end, all = 0;
    for (int64_t t = w->run.end - 1; t >= w->run.begin; t--) {
        sum += w->weight[t];
        all += sum;
        if (p->decay != TN_LA_SCALAR_DECAY) continue;
        int64_t to = (w->run.batch * p->n + t) * p->h + w->run.head;
        if (p->wide == TN_F64) ((double *)p->dlog_decay)[to] = sum;
        else ((float *)p->dlog_decay)[to] = (float)sum;
    }
    job->decayed[item] = all;
}

static back_job back_job_of(const tn_la_job *job, int64_t item) {
    const tn_la_problem *p = &job->p;
    back_job w = { .job = job, .run = tokens_of(p, item) };
    if (job->turned) w.turned = job->turned + item * p->q.grid.angles;
    if (job->weight) w.weight = job->weight + (w.run.batch * p->h + w.run.head) * p->n;
    for (int64_t t = w.run.begin; w.weight && t < w.run.end; t++) w.weight[t] = 0;
    w.needs_dq = p->dq || w.turned || w.weight;
    w.needs_dk = p->dk || w.turned || w.weight;
    return w;
}

static void backward_item(const tn_la_job *job, const tn_la_frame *frame, int64_t item) {
    const tn_la_problem *p = &job->p;
    back_job w = back_job_of(job, item);
    chunk c = { .job = job, .f = frame, .has_state = p->state != NULL };
    const void *dstate_out = tn_la_state_at(job, p->dstate_out, item);
    bool needs_end = w.weight && dstate_out, has_ds = dstate_out != NULL;
    if (p->state) tn_la_state_copy(job, frame->s, tn_la_state_at(job, p->state, item));
    if (w.needs_dq || p->dg)
        for (int64_t t = w.run.begin; t < w.run.end; t += job->rows) {
            sweep_forward(&w, &c, t);
            if (needs_end || t + job->rows < w.run.end) advance_state(&c);
        }
    double at_end = needs_end && c.has_state ? job->tile->dot(p->state_rows * p->e, frame->s, dstate_out) : 0;

    int64_t length = w.run.end - w.run.begin, chunks = length > 0 ? (length - 1) / job->rows + 1 : 0;
    tn_la_state_copy(job, frame->ds, dstate_out);
    if (w.needs_dk || p->dv || p->dstate)
        for (int64_t i = chunks - 1; i >= 0; i--) {
            sweep_back(&w, &c, w.run.begin + i * job->rows, has_ds);
            has_ds = true;
        }
    if (p->dstate) tn_la_state_copy(job, tn_la_state_at(job, p->dstate, item), frame->ds);
    if (w.weight) sum_decay(&w, item, at_end);
}

void tn_la_causal_backward(void *user, int64_t begin, int64_t end) {
    const tn_la_job *job = user;
    tn_la_frame frame = tn_la_frame_of(job);
    for (int64_t item = begin; item < end; item++) backward_item(job, &frame, item);
}
