/* Tiles on the CPU: rows of one head (or of the heads that share one of k and v), widened, `ld` elements apart, as long as a block of a
 * sweep lasts. Everything is there for f32 (data f32 or bf16) and f64; `void *` is of that type, which is the problem's wide one. */
#ifndef TENON_ATTENTION_TILE_CPU_H
#define TENON_ATTENTION_TILE_CPU_H

#include "attention_internal.h"

/* Tokens first .. first + count - 1 of a batch, heads head .. head + heads - 1: row i * heads + g is of token first + i and head + g. Of
 * factored operands heads is 1. */
typedef struct tn_at_place {
    int64_t batch, first, count, head, heads;
} tn_at_place;

typedef struct tn_at_tile_ops {
    int64_t size; /* bytes of an element */

    /* tile := factor * x, or factor * sum_r a x */
    void (*load)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, void *tile, int64_t ld);
    /* x := scale[row] * tile (scale NULL: the operand's factor), x not factored. */
    void (*store)(tn_dtype dtype, const tn_at_operand *x, void *to, const tn_at_place *at, const void *scale, const void *tile, int64_t ld);
    /* d is the gradient of the tile that load made: da := its part for a (where wanted), dx[i,r] += its part for x,
     * [count, rank, width]. */
    void (*back)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *d, int64_t ld, void *dx);
    /* n neighbouring numbers to the data's dtype, and from it. */
    void (*narrow)(tn_dtype dtype, int64_t n, const void *from, void *to);
    void (*widen)(tn_dtype dtype, int64_t n, const void *from, void *to);

    /* Scores s [rows, keys], of which row i counts the first seen[i], become exp(s - maximum[i]) (0 where not seen) for the maximum so far,
     * which with the sum takes them in; the rows of o [rows, width] are brought to the new maximum. */
    void (*soften)(int64_t rows, int64_t keys, const int64_t *seen, void *s, int64_t ld_s, void *maximum, void *sum, int64_t width, void *o,
                   int64_t ld_o);
    /* scale[i] := 1 / sum[i] and lse[i] := maximum[i] + log(sum[i]); 0 and -inf where no key was seen. lse may be NULL. */
    void (*finish)(int64_t rows, const void *maximum, const void *sum, void *scale, void *lse);
    /* s := exp(s - lse[i]), 0 where not seen. */
    void (*weights)(int64_t rows, int64_t keys, const int64_t *seen, const void *lse, void *s, int64_t ld_s);
    /* dp := s * (dp - delta[i]) */
    void (*slopes)(int64_t rows, int64_t keys, const void *delta, const void *s, void *dp, int64_t ld_s);
    /* sums[i] := <a[i], b[i]> */
    void (*dots)(int64_t rows, int64_t width, const void *a, const void *b, int64_t ld, void *sums);

    /* Decoding: t [heads, keys * rank] are products with the factor x, a [keys, head stride .., rank] the other factor.
     * s[g][j] := factor * sum_r a[j,g,r] t[g][j,r] */
    void (*contract)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *t, int64_t ld_t, void *s, int64_t ld_s);
    /* t[g][j,r] := factor * a[j,g,r] s[g][j] */
    void (*expand)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *s, int64_t ld_s, void *t, int64_t ld_t);
    /* Without factors: at->heads of q share them out among those of x, `group` to each. s[g][j] := factor * <q[g], x[j, its head]> */
    void (*scores)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, int64_t group, const void *q, int64_t ld_q, void *s,
                   int64_t ld_s);
    /* o[g] += factor * sum_j s[g][j] x[j, its head] */
    void (*blend)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, int64_t group, const void *s, int64_t ld_s, void *o,
                  int64_t ld_o);
    /* Takes part (o [rows, width], maximum, sum) into the whole. */
    void (*merge)(int64_t rows, int64_t width, const void *part, const void *part_maximum, const void *part_sum, void *o, void *maximum,
                  void *sum);
    void (*start)(int64_t rows, int64_t width, void *o, int64_t ld, void *maximum, void *sum); /* nothing seen */
} tn_at_tile_ops;

extern const tn_at_tile_ops tn_at_tiles_f32, tn_at_tiles_f64;

#endif
