/* What the CPU's sweeps share: the job of a pass, a thread's tiles, products of tiles. */
#ifndef TENON_ATTENTION_CPU_H
#define TENON_ATTENTION_CPU_H

#include "attention_tile_cpu.h"

/* A thread's scratch: rows of queries are a block of tokens times the heads that share one of k and v. */
typedef struct tn_at_frame {
    void *q, *dq;                /* [rows, d] */
    void *o, *d_o;               /* [rows, e] */
    void *k, *dk;                /* [keys, d] */
    void *v, *dv;                /* [keys, e] */
    void *s, *dp;                /* [rows, keys] */
    void *maximum, *sum, *scale; /* [rows] */
    int64_t *seen;               /* [rows] */
    void *dx, *dy;               /* backward of factors: [tokens, rank, width], of q or k and of v */
} tn_at_frame;

typedef struct tn_at_job {
    tn_at_problem p;
    const tn_at_tile_ops *tile;
    int threads;
    int64_t group;              /* heads of q to one of k and v */
    int64_t tokens, rows, keys; /* of a tile of queries; rows = tokens * group */
    int64_t ld_d, ld_e, ld_s;
    char *frames;
    size_t frame_bytes;

    /* one query (see attention_cpu_decode.c) */
    bool decode;
    int64_t heads, parts, part_keys; /* heads to an item, parts of the keys and their length */
    int64_t ld_k, ld_v;              /* of the products with bk and bv */
    char *partial;                   /* [b, h / heads, parts] of o [heads, e], maximum [heads], sum [heads] */
    size_t partial_bytes;            /* of one */
} tn_at_job;

/* Memory: the same walk counts bytes and hands out places. */
typedef struct tn_at_carver {
    char *base; /* NULL: counting */
    size_t used;
} tn_at_carver;
void *tn_at_carve(tn_at_carver *c, int64_t count, int64_t size);

/* Elements from row to row of a tile, so that rows do not fall into one set of a cache. */
int64_t tn_at_padded(int64_t width);

/* C [m,n] = op(A) op(B) + beta C, on the calling thread. */
void tn_at_product(const tn_at_job *job, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc);

char *tn_at_thread_frame(const tn_at_job *job);

/* o as an operand: whole, of q's tokens and heads. */
tn_at_operand tn_at_result(const tn_at_problem *p, const void *x);

/* attention_cpu_decode.c */
bool tn_at_decodes(const tn_at_problem *p);
void tn_at_decode_plan(tn_at_job *job, tn_at_carver *c);
void tn_at_decode(const tn_at_job *job);

#endif
