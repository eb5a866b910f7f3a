/* One query for each sequence. Against factored keys and values all heads share bk and bv, so the heads are the rows of two products:
 *
 *     t [heads, keys x rk] = q bk',  s = scale_k * sum_r ak t;      o = (scale_v * av softmax(s)) bv
 *
 * and no key or value is ever made. Keys and values themselves are read once, from one end to the other, and never copied. The keys are
 * worked off in parts, which are merged in order by their sums of exponentials. */
#include "attention_cpu.h"

#include <string.h>

#include "../../libtensor/parallel.h"

#define DECODE_KEYS 256 /* of a tile */
#define PART_KEYS 2048  /* of a part, where the keys are split */
#define ITEMS 4         /* for a thread, where heads do not share what is read */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t pieces(int64_t n, int64_t of) { return (n + of - 1) / of; }

/* A thread's scratch, and a part's result; rows are heads. */
typedef struct decode_frame {
    void *q, *bk, *bv; /* [heads, d], [keys * rk, d], [keys * rv, e] */
    void *t, *s, *w;   /* [heads, keys * rk], [heads, keys], [heads, keys * rv] */
    void *scale;
    int64_t *seen;
} decode_frame;

typedef struct decode_part {
    void *o, *maximum, *sum;
} decode_part;

bool tn_at_decodes(const tn_at_problem *p) { return p->n == 1 && !p->cu_seqlens && p->algo != TN_TPA_NAIVE; }

static decode_frame carve_frame(const tn_at_job *job, tn_at_carver *c) {
    const tn_at_problem *p = &job->p;
    int64_t size = job->tile->size;
    return (decode_frame){ .q = tn_at_carve(c, job->heads * job->ld_d, size),
                           .bk = tn_at_carve(c, job->keys * p->k.rank * p->d, size),
                           .bv = tn_at_carve(c, job->keys * p->v.rank * p->e, size),
                           .t = tn_at_carve(c, job->heads * job->ld_k, size),
                           .s = tn_at_carve(c, job->heads * job->ld_s, size),
                           .w = tn_at_carve(c, job->heads * job->ld_v, size),
                           .scale = tn_at_carve(c, job->heads, size),
                           .seen = tn_at_carve(c, job->heads, sizeof(int64_t)) };
}

static decode_part carve_part(const tn_at_job *job, tn_at_carver *c) {
    return (decode_part){ .o = tn_at_carve(c, job->heads * job->p.e, job->tile->size),
                          .maximum = tn_at_carve(c, job->heads, job->tile->size),
                          .sum = tn_at_carve(c, job->heads, job->tile->size) };
}

static decode_part part_at(const tn_at_job *job, int64_t index) {
    tn_at_carver c = { .base = job->partial + (size_t)index * job->partial_bytes };
    return carve_part(job, &c);
}

void tn_at_decode_plan(tn_at_job *job, tn_at_carver *c) {
    const tn_at_problem *p = &job->p;
    int64_t m = p->m > 0 ? p->m : 1;
    bool split = p->algo == TN_TPA_BN || p->algo == TN_TPA_AUTO;
    job->heads = p->algo == TN_TPA_BH ? 1 : p->h;
    /* Whole groups of heads, as many as leave something to do for every thread. */
    while (!p->k.rank && job->heads % (2 * job->group) == 0 && p->b * (p->h / job->heads) * pieces(m, PART_KEYS) < ITEMS * job->threads)
        job->heads /= 2;
    job->keys = p->algo == TN_TPA_COMPOSED ? m : smaller(DECODE_KEYS, m);
    job->part_keys = split ? smaller(PART_KEYS, m) : m;
    job->parts = pieces(m, job->part_keys);
    job->ld_s = tn_at_padded(job->keys);
    job->ld_k = tn_at_padded(job->keys * p->k.rank);
    job->ld_v = tn_at_padded(job->keys * p->v.rank);
    tn_at_carver frame = { 0 }, part = { 0 };
    carve_frame(job, &frame);
    carve_part(job, &part);
    job->frame_bytes = frame.used;
    job->frames = tn_at_carve(c, job->threads, (int64_t)frame.used);
    job->partial_bytes = part.used;
    job->partial = tn_at_carve(c, p->b * (p->h / job->heads) * job->parts, (int64_t)part.used);
}

static const void *rows_of(const tn_at_job *job, const tn_at_operand *x, const tn_at_place *at, void *room) {
    tn_dtype dtype = job->p.dtype;
    int64_t row = x->rank * x->width;
    const char *from = (const char *)x->x + (at->batch * x->tokens + at->first) * row * (int64_t)tn_dtype_size(dtype);
    if (dtype != TN_BF16) return from;
    job->tile->widen(dtype, at->count * row, from, room);
    return room;
}

static void decode_tile(const tn_at_job *job, const decode_frame *f, const tn_at_place *at, const decode_part *part) {
    const tn_at_problem *p = &job->p;
    const tn_at_tile_ops *tile = job->tile;
    int64_t heads = job->heads, by_k = at->count * p->k.rank, by_v = at->count * p->v.rank;
    for (int64_t g = 0; g < heads; g++) f->seen[g] = at->count;
    if (!p->k.rank) {
        tile->scores(p->dtype, &p->k, at, job->group, f->q, job->ld_d, f->s, job->ld_s);
        tile->soften(heads, at->count, f->seen, f->s, job->ld_s, part->maximum, part->sum, p->e, part->o, p->e);
        tile->blend(p->dtype, &p->v, at, job->group, f->s, job->ld_s, part->o, p->e);
        return;
    }
    const void *bk = rows_of(job, &p->k, at, f->bk);
    tn_at_product(job, false, true, heads, by_k, p->d, f->q, job->ld_d, bk, p->d, 0, f->t, job->ld_k);
    tile->contract(p->dtype, &p->k, at, f->t, job->ld_k, f->s, job->ld_s);
    tile->soften(heads, at->count, f->seen, f->s, job->ld_s, part->maximum, part->sum, p->e, part->o, p->e);
    tile->expand(p->dtype, &p->v, at, f->s, job->ld_s, f->w, job->ld_v);
    const void *bv = rows_of(job, &p->v, at, f->bv);
    tn_at_product(job, false, false, heads, p->e, by_v, f->w, job->ld_v, bv, p->e, 1, part->o, p->e);
}

static void decode_items(void *user, int64_t begin, int64_t end) {
    const tn_at_job *job = user;
    const tn_at_problem *p = &job->p;
    tn_at_carver c = { .base = tn_at_thread_frame(job) };
    decode_frame f = carve_frame(job, &c);
    int64_t sets = p->h / job->heads;
    for (int64_t item = begin; item < end; item++) {
        int64_t part = item % job->parts, set = item / job->parts % sets, batch = item / job->parts / sets;
        tn_at_span span = tn_at_span_of(p, batch);
        int64_t stop = smaller((part + 1) * job->part_keys, tn_at_seen(p, &span, 0));
        decode_part result = part_at(job, item);
        job->tile->start(job->heads, p->e, result.o, p->e, result.maximum, result.sum);
        for (int64_t g = 0; g < job->heads; g++) {
            tn_at_place query = { batch, 0, 1, set * job->heads + g, 1 };
            job->tile->load(p->dtype, &p->q, &query, (char *)f.q + g * job->ld_d * job->tile->size, job->ld_d);
        }
        for (int64_t key = part * job->part_keys; key < stop; key += job->keys) {
            tn_at_place at = { batch, key, smaller(job->keys, stop - key), set * job->heads, job->heads };
            decode_tile(job, &f, &at, &result);
        }
    }
}

static void merge_parts(void *user, int64_t begin, int64_t end) {
    const tn_at_job *job = user;
    const tn_at_problem *p = &job->p;
    tn_at_carver c = { .base = tn_at_thread_frame(job) };
    decode_frame f = carve_frame(job, &c);
    int64_t sets = p->h / job->heads;
    for (int64_t set = begin; set < end; set++) {
        decode_part whole = part_at(job, set * job->parts);
        for (int64_t i = 1; i < job->parts; i++) {
            decode_part part = part_at(job, set * job->parts + i);
            job->tile->merge(job->heads, p->e, part.o, part.maximum, part.sum, whole.o, whole.maximum, whole.sum);
        }
        int64_t batch = set / sets, head = set % sets * job->heads;
        tn_at_place at = { batch, 0, 1, head, job->heads };
        tn_at_operand o = tn_at_result(p, NULL);
        char *lse = p->lse ? (char *)p->lse + (batch * p->h + head) * job->tile->size : NULL;
        job->tile->finish(job->heads, whole.maximum, whole.sum, f.scale, lse);
        job->tile->store(p->dtype, &o, p->o, &at, f.scale, whole.o, p->e);
    }
}

void tn_at_decode(const tn_at_job *job) {
    int64_t sets = job->p.b * (job->p.h / job->heads);
    tn_parallel_for(sets * job->parts, 1, decode_items, (void *)job, job->threads);
    tn_parallel_for(sets, 1, merge_parts, (void *)job, job->threads);
}
