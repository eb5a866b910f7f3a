/* Tiles on the CPU: a few tokens of one head, widened, activated and encoded, as long as a block of the sweep lasts. Rows lie `ld`
 * elements apart. Everything is there for f32 (data f32 or bf16) and f64; `void *` is of that type, which is the problem's wide one. */
#ifndef TENON_LINEAR_ATTENTION_TILE_CPU_H
#define TENON_LINEAR_ATTENTION_TILE_CPU_H

#include "linear_attention_internal.h"

/* Tokens first .. first + count - 1 of a (batch, head); the first one stands at `position` in its sequence. */
typedef struct tn_la_place {
    int64_t batch, head, first, count, position;
} tn_la_place;

/* Cosines and sines of a tile's tokens, a row of grid.angles each. */
typedef struct tn_la_turn {
    void *cosine, *sine;
} tn_la_turn;

typedef struct tn_la_tile_ops {
    int64_t size; /* bytes of an element */

    /* tile := x, as it is. */
    void (*load)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, void *tile, int64_t ld);
    /* tile := scale * lrpe(act(x)); fills turn where x is encoded. */
    void (*prepare)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, double scale, void *tile, int64_t ld,
                    tn_la_turn turn);
    /* d, the gradient of tile = prepare(x), becomes that of act(x). turned[i], unless NULL, gains coordinate * gradient of feature i's
     * angle. */
    void (*turn_back)(const tn_la_operand *x, const tn_la_place *at, double scale, const void *tile, void *d, int64_t ld, tn_la_turn turn,
                      double *turned);
    /* dx := the gradient of x for d, that of act(x). `row` is room for one row; `sums` as sequence_sums leaves them. */
    void (*store_gradient)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, const void *d, int64_t ld,
                           const double *sums, void *dx, void *row);
    /* sums[j] += sum over tokens of act(x)_j d_j, for softmax over the sequence. */
    void (*sequence_sums)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, const void *d, int64_t ld, double *sums,
                          void *row);
    /* Takes the tile's tokens into maximum and sum [width] of exp(x - maximum); they start as -inf and 0. */
    void (*statistics)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, void *maximum, void *sum, void *row);

    /* o := y, or gate * y where gate is not NULL. */
    void (*store)(const tn_la_problem *p, const tn_la_operand *like, const tn_la_place *at, const void *y, const void *gate, int64_t ld,
                  void *o);
    /* (d, y) := (d * gate, d * y) */
    void (*gate_back)(int64_t count, int64_t width, void *d, void *y, const void *gate, int64_t ld);

    /* d *= gate */
    void (*multiply)(int64_t count, int64_t width, void *d, const void *gate, int64_t ld);
    /* One token: to := factor * from + k' v, y := q to. from may be NULL (zeros) or equal to. Dense rows of `width`. */
    void (*recur)(int64_t rows, int64_t width, double factor, const void *q, const void *k, const void *v, const void *from, void *to,
                  void *y);

    /* a[i][j] *= exp(log[i] - log[j]) for j <= i, 0 above; log falls. NULL: no decay. */
    void (*mask)(int64_t count, const double *log, void *a, int64_t ld);
    /* Moves the diagonal of a out of it. */
    void (*take_diagonal)(int64_t count, void *a, int64_t ld, double *diagonal);
    /* to[i] += factor[i] * from[i] */
    void (*add_rows)(int64_t count, int64_t width, const double *factor, const void *from, void *to, int64_t ld);
    /* to[i] := from[i] * exp(from_log[i] - whole), or with minus exp(whole - log[i]); both exponents <= 0. */
    void (*decay_rows)(int64_t count, int64_t width, const double *log, double whole, bool minus, const void *from, void *to, int64_t ld);
    /* sums[i] += sign * <a[i], b[i]> */
    void (*dots)(int64_t count, int64_t width, const void *a, const void *b, int64_t ld, double sign, double *sums);
    /* x[0 .. n) *= factor */
    void (*scale)(int64_t n, double factor, void *x);
    double (*dot)(int64_t n, const void *a, const void *b);
} tn_la_tile_ops;

extern const tn_la_tile_ops tn_la_tiles_f32, tn_la_tiles_f64;

#endif
