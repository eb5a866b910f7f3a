/* What the CPU's sweeps share: the job of a pass, a thread's tiles, products of tiles. */
#ifndef TENON_LINEAR_ATTENTION_CPU_H
#define TENON_LINEAR_ATTENTION_CPU_H

#include "linear_attention_tile_cpu.h"

/* A thread's scratch. Tiles of d' and of e columns have rows ld_d and ld_e apart, tiles of tokens by tokens ld_a. */
typedef struct tn_la_frame {
    void *q, *k, *dx, *moved;  /* [rows, d'] */
    void *v, *gate, *y, *dy;   /* [rows, e] */
    void *a, *b;               /* [rows, rows], causal */
    void *s, *ds;              /* [d', e], dense */
    tn_la_turn q_turn, k_turn; /* [rows, W] */
    void *row;                 /* [max(d, e)] */
    double *log, *diagonal;    /* [rows] */
    double *sums;              /* [d] */
} tn_la_frame;

typedef struct tn_la_job {
    tn_la_problem p;
    const tn_la_tile_ops *tile;
    int threads;   /* of a product that is called outside a parallel loop */
    int64_t items; /* (sequence, head) */
    int64_t rows;  /* tokens of a tile */
    int64_t ld_d, ld_e, ld_a;
    char *frames;
    size_t frame_bytes;
    double *turned;  /* backward with dtheta: [items, W], what an item adds to the gradient of its angles' thetas */
    double *weight;  /* backward with dlog_decay: [b, h, n], <dqb, qb> - <dkb, kb> of a token, less what both have */
    double *decayed; /* the same: [items], what an item adds to the gradient of a constant decay */
} tn_la_job;

tn_la_frame tn_la_frame_of(const tn_la_job *job);

/* C [m,n] = op(A) op(B) + beta C */
void tn_la_product(const tn_la_job *job, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc);

/* [d', e] matrices: the item-th of `all`; to := from, or zeros where from is NULL. */
void *tn_la_state_at(const tn_la_job *job, const void *all, int64_t item);
void tn_la_state_copy(const tn_la_job *job, void *to, const void *from);

/* The gradient tile d of prepare(x) becomes dx. With softmax over the sequence this is done twice: `summing` only gathers. */
typedef struct tn_la_back {
    const tn_la_operand *x;
    double scale;
    const void *tile; /* prepare(x) */
    tn_la_turn turn;
    int64_t ld;
    void *dx; /* NULL: not wanted */
    double *turned;
    bool summing;
} tn_la_back;
void tn_la_finish(const tn_la_job *job, const tn_la_frame *frame, const tn_la_place *at, const tn_la_back *back, void *d);

/* dy := do, or 0 where none came. */
void tn_la_load_upstream(const tn_la_job *job, const tn_la_place *at, void *dy);

/* Bodies of the loops over items. */
void tn_la_full_forward(void *job, int64_t begin, int64_t end);
void tn_la_full_backward(void *job, int64_t begin, int64_t end);
void tn_la_causal_forward(void *job, int64_t begin, int64_t end);
void tn_la_causal_backward(void *job, int64_t begin, int64_t end);

#endif
