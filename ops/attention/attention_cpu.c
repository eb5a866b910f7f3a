#include "attention_cpu.h"

#include <string.h>

#include "../../libtensor/gemm_kernel.h"
#include "../../libtensor/parallel.h"

#define TILE_ROWS 64  /* queries of a tile, over the heads that share keys */
#define TILE_KEYS 128 /* keys of a tile */
#define PAD 16
#define ALIGNMENT 64

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t pieces(int64_t n, int64_t of) { return (n + of - 1) / of; }

/* ---- memory ---- */

void *tn_at_carve(tn_at_carver *c, int64_t count, int64_t size) {
    void *place = c->base ? c->base + c->used : NULL;
    c->used += ((size_t)(count * size) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return place;
}

int64_t tn_at_padded(int64_t width) { return pieces(width, PAD) * PAD + PAD; }

static int64_t factor_room(const tn_at_operand *x, int64_t tokens) { return tokens * x->rank * x->width; }

static tn_at_frame carve_frame(const tn_at_job *job, bool backward, tn_at_carver *c) {
    const tn_at_problem *p = &job->p;
    int64_t size = job->tile->size, q_room = factor_room(&p->q, job->tokens), k_room = factor_room(&p->k, job->keys);
    tn_at_frame f = { .q = tn_at_carve(c, job->rows * job->ld_d, size),
                      .o = tn_at_carve(c, job->rows * job->ld_e, size),
                      .k = tn_at_carve(c, job->keys * job->ld_d, size),
                      .v = tn_at_carve(c, job->keys * job->ld_e, size),
                      .s = tn_at_carve(c, job->rows * job->ld_s, size),
                      .maximum = tn_at_carve(c, job->rows, size),
                      .sum = tn_at_carve(c, job->rows, size),
                      .scale = tn_at_carve(c, job->rows, size),
                      .seen = tn_at_carve(c, job->rows, sizeof(int64_t)) };
    if (!backward) return f;
    f.d_o = tn_at_carve(c, job->rows * job->ld_e, size);
    f.dp = tn_at_carve(c, job->rows * job->ld_s, size);
    f.dq = tn_at_carve(c, job->rows * job->ld_d, size);
    f.dk = tn_at_carve(c, job->keys * job->ld_d, size);
    f.dv = tn_at_carve(c, job->keys * job->ld_e, size);
    f.dx = tn_at_carve(c, larger(q_room, k_room), size);
    f.dy = tn_at_carve(c, factor_room(&p->v, job->keys), size);
    return f;
}

char *tn_at_thread_frame(const tn_at_job *job) { return job->frames + (size_t)tn_parallel_index() * job->frame_bytes; }

static tn_at_frame frame_of(const tn_at_job *job, bool backward) {
    tn_at_carver c = { .base = tn_at_thread_frame(job) };
    return carve_frame(job, backward, &c);
}

/* Readies a job in the call's workspace, or counts the bytes it takes where there is none. */
static size_t plan_job(const tn_op_call *call, bool backward, tn_at_job *job) {
    *job = (tn_at_job){ .threads = call->threads > 1 ? call->threads : 1 };
    tn_at_problem *p = &job->p;
    tn_at_problem_of(call, backward, p);
    job->tile = p->wide == TN_F64 ? &tn_at_tiles_f64 : &tn_at_tiles_f32;
    job->group = p->h / p->hk;
    job->tokens = larger(1, smaller(larger(1, TILE_ROWS / job->group), p->n));
    job->rows = job->tokens * job->group;
    job->keys = larger(1, smaller(TILE_KEYS, p->m));
    job->ld_d = tn_at_padded(p->d);
    job->ld_e = tn_at_padded(p->e);
    job->ld_s = tn_at_padded(job->keys);
    job->decode = !backward && tn_at_decodes(p);
    tn_at_carver c = { .base = call->workspace };
    if (job->decode) {
        tn_at_decode_plan(job, &c);
        return c.used;
    }
    tn_at_carver frame = { 0 };
    carve_frame(job, backward, &frame);
    job->frame_bytes = frame.used;
    job->frames = tn_at_carve(&c, job->threads, (int64_t)frame.used);
    return c.used;
}

size_t tn_attention_workspace_cpu(const tn_op_call *call, bool backward) {
    tn_op_call counting = *call;
    tn_at_job job;
    counting.workspace = NULL;
    return plan_job(&counting, backward, &job);
}

/* ---- pieces of the sweeps ---- */

void tn_at_product(const tn_at_job *job, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc) {
    tn_gemm_alone(job->p.wide, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

tn_at_operand tn_at_result(const tn_at_problem *p, const void *x) {
    return (tn_at_operand){ .x = x, .tokens = p->n, .heads = p->h, .width = p->e, .factor = 1 };
}

/* A tile of queries of one sequence and head of k: where it lies, and what the sweep over the keys needs. */
typedef struct query_tile {
    tn_at_place at;
    int64_t rows;
    int64_t k_end; /* no row sees a key from here on */
} query_tile;

static query_tile query_tile_of(const tn_at_job *job, const tn_at_span *span, int64_t head, int64_t first, int64_t end) {
    query_tile t = { .at = { span->batch, first, end - first, head * job->group, job->group } };
    t.rows = t.at.count * job->group;
    t.k_end = tn_at_seen(&job->p, span, end - 1);
    return t;
}

/* How many of the keys first .. first + count - 1 each row sees. */
static void count_seen(const tn_at_job *job, const tn_at_span *span, const query_tile *t, int64_t first, int64_t count, int64_t *seen) {
    for (int64_t i = 0; i < t->at.count; i++) {
        int64_t n = tn_at_within(tn_at_seen(&job->p, span, t->at.first + i) - first, 0, count);
        for (int64_t g = 0; g < job->group; g++) seen[i * job->group + g] = n;
    }
}

static tn_at_place keys_at(const tn_at_span *span, int64_t head, int64_t first, int64_t count) {
    return (tn_at_place){ span->batch, first, count, head, 1 };
}

/* lse of a tile's rows; [b,h,n]. */
static char *lse_at(const tn_at_job *job, const query_tile *t, int64_t row) {
    int64_t token = t->at.first + row / job->group, head = t->at.head + row % job->group;
    return (char *)job->p.lse + ((t->at.batch * job->p.h + head) * job->p.n + token) * job->tile->size;
}

/* ---- items: (batch, heads of k, block of tokens); packed sequences are met within a block ---- */

typedef struct block_walk {
    int64_t sequence, first, last, end; /* tokens first .. last - 1 of this sequence; the block ends at `end` */
} block_walk;

static block_walk start_walk(const tn_at_problem *p, int64_t batch, int64_t first, int64_t end) {
    block_walk w = { .sequence = batch, .first = first, .last = first, .end = end };
    if (p->cu_seqlens) w.sequence = tn_at_sequence_of(p, first);
    w.sequence--;
    return w;
}

/* The next sequence that has tokens in the block. */
static bool next_walk(const tn_at_problem *p, block_walk *w) {
    do {
        if (w->last >= w->end) return false;
        w->sequence++;
        w->first = w->last;
        w->last = p->cu_seqlens ? smaller(p->cu_seqlens[w->sequence + 1], w->end) : w->end;
    } while (w->last <= w->first);
    return true;
}

/* Blocks in the order first, last, second, last but one, ...: neighbours go to one thread, and causal ones grow along the sequence. */
static int64_t folded(int64_t i, int64_t n) { return i % 2 ? n - 1 - i / 2 : i / 2; }

/* ---- forward ---- */

static void forward_tile(const tn_at_job *job, const tn_at_frame *f, const tn_at_span *span, int64_t head, const query_tile *t) {
    const tn_at_problem *p = &job->p;
    const tn_at_tile_ops *tile = job->tile;
    tile->load(p->dtype, &p->q, &t->at, f->q, job->ld_d);
    tile->start(t->rows, p->e, f->o, job->ld_e, f->maximum, f->sum);
    for (int64_t key = span->k_begin; key < t->k_end; key += job->keys) {
        tn_at_place at = keys_at(span, head, key, smaller(job->keys, t->k_end - key));
        tile->load(p->dtype, &p->k, &at, f->k, job->ld_d);
        tn_at_product(job, false, true, t->rows, at.count, p->d, f->q, job->ld_d, f->k, job->ld_d, 0, f->s, job->ld_s);
        count_seen(job, span, t, key, at.count, f->seen);
        tile->soften(t->rows, at.count, f->seen, f->s, job->ld_s, f->maximum, f->sum, p->e, f->o, job->ld_e);
        tile->load(p->dtype, &p->v, &at, f->v, job->ld_e);
        tn_at_product(job, false, false, t->rows, p->e, at.count, f->s, job->ld_s, f->v, job->ld_e, 1, f->o, job->ld_e);
    }
    /* q is done with: its tile holds the rows' log-sum-exp. */
    tile->finish(t->rows, f->maximum, f->sum, f->scale, p->lse ? f->q : NULL);
    tn_at_operand o = tn_at_result(p, NULL);
    tile->store(p->dtype, &o, p->o, &t->at, f->scale, f->o, job->ld_e);
    for (int64_t row = 0; p->lse && row < t->rows; row++) memcpy(lse_at(job, t, row), (char *)f->q + row * tile->size, (size_t)tile->size);
}

static void forward_items(void *user, int64_t begin, int64_t end) {
    const tn_at_job *job = user;
    const tn_at_problem *p = &job->p;
    tn_at_frame frame = frame_of(job, false);
    int64_t blocks = pieces(p->n, job->tokens);
    for (int64_t item = begin; item < end; item++) {
        int64_t block = folded(item % blocks, blocks), head = item / blocks % p->hk, batch = item / blocks / p->hk;
        block_walk w = start_walk(p, batch, block * job->tokens, smaller((block + 1) * job->tokens, p->n));
        while (next_walk(p, &w)) {
            tn_at_span span = tn_at_span_of(p, w.sequence);
            query_tile t = query_tile_of(job, &span, head, w.first, w.last);
            forward_tile(job, &frame, &span, head, &t);
        }
    }
}

static bool lengths_fit(tn_op_call *call, const tn_at_problem *p) {
    const int64_t *cu = p->cu_seqlens;
    for (int64_t i = 0; p->seqlens && i < p->b; i++)
        if (p->seqlens[i] < 0 || p->seqlens[i] > p->m)
            return tn_refuse(call, TN_ERR_ARGUMENT, "seqlens: wanted numbers of tokens from 0 to %lld, but [%lld] is %lld", (long long)p->m,
                             (long long)i, (long long)p->seqlens[i]);
    if (!cu) return true;
    bool rising = cu[0] == 0 && cu[p->sequences] == p->n;
    for (int64_t i = 0; i < p->sequences; i++) rising = rising && cu[i] <= cu[i + 1];
    if (rising) return true;
    return tn_refuse(call, TN_ERR_ARGUMENT, "cu_seqlens: wanted numbers that rise from 0 to the %lld tokens there are", (long long)p->n);
}

tn_status tn_attention_forward_cpu(tn_op_call *call) {
    tn_at_job job;
    plan_job(call, false, &job);
    if (!lengths_fit(call, &job.p)) return TN_ERR_ARGUMENT;
    if (job.decode) tn_at_decode(&job);
    else tn_parallel_for(job.p.b * job.p.hk * pieces(job.p.n, job.tokens), 1, forward_items, &job, job.threads);
    return TN_OK;
}

/* ---- backward: one pass over blocks of queries makes dq, one over blocks of keys dk and dv. Each makes the weights again, and no two
 * items add to the same gradient. With factors an item goes through all heads in order, so that it owns what is summed over them. ---- */

/* Everything of a tile of queries that does not change along the keys. */
static void load_queries(const tn_at_job *job, const tn_at_frame *f, const query_tile *t) {
    const tn_at_problem *p = &job->p;
    const tn_at_tile_ops *tile = job->tile;
    tn_at_operand o = tn_at_result(p, p->o), d_o = tn_at_result(p, p->d_o);
    tile->load(p->dtype, &p->q, &t->at, f->q, job->ld_d);
    tile->load(p->dtype, &o, &t->at, f->o, job->ld_e);
    tile->load(p->dtype, &d_o, &t->at, f->d_o, job->ld_e);
    tile->dots(t->rows, p->e, f->o, f->d_o, job->ld_e, f->sum);
    for (int64_t row = 0; row < t->rows; row++) memcpy((char *)f->maximum + row * tile->size, lse_at(job, t, row), (size_t)tile->size);
}

/* s := the weights of a tile of queries and keys, dp := the gradient of its scores (scale * q k'). */
static void weigh(const tn_at_job *job, const tn_at_frame *f, const tn_at_span *span, const query_tile *t, const tn_at_place *keys,
                  bool slopes) {
    const tn_at_problem *p = &job->p;
    tn_at_product(job, false, true, t->rows, keys->count, p->d, f->q, job->ld_d, f->k, job->ld_d, 0, f->s, job->ld_s);
    count_seen(job, span, t, keys->first, keys->count, f->seen);
    job->tile->weights(t->rows, keys->count, f->seen, f->maximum, f->s, job->ld_s);
    if (!slopes) return;
    tn_at_product(job, false, true, t->rows, keys->count, p->e, f->d_o, job->ld_e, f->v, job->ld_e, 0, f->dp, job->ld_s);
    job->tile->slopes(t->rows, keys->count, f->sum, f->s, f->dp, job->ld_s);
}

static void load_keys(const tn_at_job *job, const tn_at_frame *f, const tn_at_place *at) {
    job->tile->load(job->p.dtype, &job->p.k, at, f->k, job->ld_d);
    job->tile->load(job->p.dtype, &job->p.v, at, f->v, job->ld_e);
}

static void *element_of(const tn_at_job *job, void *base, int64_t i) { return (char *)base + i * (int64_t)tn_dtype_size(job->p.dtype); }

/* The gradient tile d of x's tile: stored, or, with factors, taken into dx. */
static void give_back(const tn_at_job *job, const tn_at_operand *x, const tn_at_place *at, const void *d, int64_t ld, void *dx) {
    if (x->rank) job->tile->back(job->p.dtype, x, at, d, ld, x->dx ? dx : NULL);
    else if (x->dx) job->tile->store(job->p.dtype, x, x->dx, at, NULL, d, ld);
}
static void clear_factor(const tn_at_job *job, const tn_at_operand *x, int64_t count, void *dx) {
    if (x->rank) memset(dx, 0, (size_t)(factor_room(x, count) * job->tile->size));
}
static void give_factor(const tn_at_job *job, const tn_at_operand *x, int64_t batch, int64_t first, int64_t count, const void *dx) {
    if (x->rank && x->dx)
        job->tile->narrow(job->p.dtype, factor_room(x, count), dx,
                          element_of(job, x->dx, (batch * x->tokens + first) * x->rank * x->width));
}

/* da of the tokens from `from` on, of which nothing is read. */
static void clear_a(const tn_at_job *job, const tn_at_operand *x, const tn_at_place *at, int64_t from) {
    for (int64_t i = from; x->da && i < at->count; i++) {
        int64_t row = ((at->batch * x->tokens + at->first + i) * x->heads + at->head) * x->rank;
        memset(element_of(job, x->da, row), 0, (size_t)x->rank * tn_dtype_size(job->p.dtype));
    }
}

static void clear_rows(const tn_at_job *job, void *tile, int64_t rows, int64_t ld) {
    memset(tile, 0, (size_t)(rows * ld * job->tile->size));
}

static void back_to_queries(const tn_at_job *job, const tn_at_frame *f, const tn_at_span *span, int64_t head, int64_t first, int64_t last) {
    const tn_at_problem *p = &job->p;
    query_tile t = query_tile_of(job, span, head, first, last);
    load_queries(job, f, &t);
    clear_rows(job, f->dq, t.rows, job->ld_d);
    for (int64_t key = span->k_begin; key < t.k_end; key += job->keys) {
        tn_at_place at = keys_at(span, head, key, smaller(job->keys, t.k_end - key));
        load_keys(job, f, &at);
        weigh(job, f, span, &t, &at, true);
        tn_at_product(job, false, false, t.rows, p->d, at.count, f->dp, job->ld_s, f->k, job->ld_d, 1, f->dq, job->ld_d);
    }
    give_back(job, &p->q, &t.at, f->dq, job->ld_d, f->dx);
}

/* How many heads of k an item goes through, and how many items there are to a batch and block. */
static int64_t heads_of_item(const tn_at_problem *p) { return p->k.rank ? p->hk : 1; }

static void query_items(void *user, int64_t begin, int64_t end) {
    const tn_at_job *job = user;
    const tn_at_problem *p = &job->p;
    tn_at_frame frame = frame_of(job, true);
    int64_t blocks = pieces(p->n, job->tokens), heads = heads_of_item(p), sets = p->hk / heads;
    for (int64_t item = begin; item < end; item++) {
        int64_t block = folded(item % blocks, blocks), set = item / blocks % sets, batch = item / blocks / sets;
        block_walk w = start_walk(p, batch, block * job->tokens, smaller((block + 1) * job->tokens, p->n));
        while (next_walk(p, &w)) {
            tn_at_span span = tn_at_span_of(p, w.sequence);
            clear_factor(job, &p->q, w.last - w.first, frame.dx);
            for (int64_t head = set * heads; head < (set + 1) * heads; head++) back_to_queries(job, &frame, &span, head, w.first, w.last);
            give_factor(job, &p->q, span.batch, w.first, w.last - w.first, frame.dx);
        }
    }
}

/* The first query that sees key `key`; those after it do as well. */
static int64_t first_query(const tn_at_problem *p, const tn_at_span *span, int64_t key) {
    return p->causal ? tn_at_within(key - span->shift, span->q_begin, span->q_end) : span->q_begin;
}

static void back_to_keys(const tn_at_job *job, const tn_at_frame *f, const tn_at_span *span, int64_t head, const tn_at_place *at) {
    const tn_at_problem *p = &job->p;
    bool slopes = p->k.dx || p->k.da;
    clear_rows(job, f->dk, at->count, job->ld_d);
    clear_rows(job, f->dv, at->count, job->ld_e);
    /* Keys that are not there may hold anything. */
    tn_at_place there = *at;
    there.count = tn_at_within(span->k_end - at->first, 0, at->count);
    if (there.count > 0) load_keys(job, f, &there);
    for (int64_t q = there.count > 0 ? first_query(p, span, at->first) : span->q_end; q < span->q_end; q += job->tokens) {
        query_tile t = query_tile_of(job, span, head, q, smaller(q + job->tokens, span->q_end));
        load_queries(job, f, &t);
        weigh(job, f, span, &t, &there, slopes);
        tn_at_product(job, true, false, there.count, p->e, t.rows, f->s, job->ld_s, f->d_o, job->ld_e, 1, f->dv, job->ld_e);
        if (slopes) tn_at_product(job, true, false, there.count, p->d, t.rows, f->dp, job->ld_s, f->q, job->ld_d, 1, f->dk, job->ld_d);
    }
    give_back(job, &p->k, p->k.rank ? &there : at, f->dk, job->ld_d, f->dx);
    give_back(job, &p->v, p->v.rank ? &there : at, f->dv, job->ld_e, f->dy);
    clear_a(job, &p->k, at, there.count);
    clear_a(job, &p->v, at, there.count);
}

static void key_items(void *user, int64_t begin, int64_t end) {
    const tn_at_job *job = user;
    const tn_at_problem *p = &job->p;
    tn_at_frame frame = frame_of(job, true);
    int64_t blocks = pieces(p->m, job->keys), heads = heads_of_item(p), sets = p->hk / heads;
    for (int64_t item = begin; item < end; item++) {
        int64_t block = folded(item % blocks, blocks), set = item / blocks % sets, batch = item / blocks / sets;
        block_walk w = start_walk(p, batch, block * job->keys, smaller((block + 1) * job->keys, p->m));
        while (next_walk(p, &w)) {
            tn_at_span span = tn_at_span_of(p, w.sequence);
            clear_factor(job, &p->k, w.last - w.first, frame.dx);
            clear_factor(job, &p->v, w.last - w.first, frame.dy);
            for (int64_t head = set * heads; head < (set + 1) * heads; head++) {
                tn_at_place at = keys_at(&span, head, w.first, w.last - w.first);
                back_to_keys(job, &frame, &span, head, &at);
            }
            give_factor(job, &p->k, span.batch, w.first, w.last - w.first, frame.dx);
            give_factor(job, &p->v, span.batch, w.first, w.last - w.first, frame.dy);
        }
    }
}

tn_status tn_attention_backward_cpu(tn_op_call *call) {
    tn_at_job job;
    plan_job(call, true, &job);
    const tn_at_problem *p = &job.p;
    int64_t sets = p->b * (p->hk / heads_of_item(p));
    if (p->q.dx || p->q.da) tn_parallel_for(sets * pieces(p->n, job.tokens), 1, query_items, &job, job.threads);
    if (p->k.dx || p->k.da || p->v.dx || p->v.da) tn_parallel_for(sets * pieces(p->m, job.keys), 1, key_items, &job, job.threads);
    return TN_OK;
}
