/* Choosing from scores and probabilities: the k largest, and draws.
 *
 *     tn_tensor *index, *values = tn_topk(logits, TN_TOPK(.k = 50), &index);
 *     tn_tensor *token = tn_multinomial(tn_softmax(values, -1), TN_MULTINOMIAL(.n_samples = 1));
 *
 * Saved for backward: topk's indices, outputs x 8 bytes. */
#ifndef TENON_SAMPLING_H
#define TENON_SAMPLING_H

#include "../../autograd/op.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_topk_args {
    int64_t k;    /* required; at most the axis's size */
    int64_t dim;  /* -1 */
    bool largest; /* true; false: the smallest */
} tn_topk_args;
#define TN_TOPK(...) ((tn_topk_args){ .dim = -1, .largest = true, __VA_ARGS__ })
/* The k largest elements along an axis, largest first, equal ones in the order of their places; NaN counts as larger than any number.
 * Returns the values; their places (i64) go to *index unless index is NULL. The values carry a gradient. */
TN_API tn_tensor *tn_topk(tn_tensor *x, tn_topk_args args, tn_tensor **index);

typedef struct tn_multinomial_args {
    int64_t n_samples;      /* 1 */
    bool replacement;       /* true; false: no place is drawn twice from one row */
    uint64_t seed, counter; /* the random stream, filled in by tn_multinomial */
} tn_multinomial_args;
#define TN_MULTINOMIAL(...) ((tn_multinomial_args){ .n_samples = 1, .replacement = true, __VA_ARGS__ })
/* Draws places from rows of weights [.., v], which need not sum to 1: i64 [.., n_samples]. Weights must be finite and not negative, with
 * one above 0 in every row (n_samples of them without replacement); on CUDA a row that has not gives -1 but in debug contexts, where it
 * is the error it is on the CPU. Each sample takes one draw of the context's random stream. */
TN_API tn_tensor *tn_multinomial(tn_tensor *weights, tn_multinomial_args args);

#ifdef __cplusplus
}
#endif
#endif
