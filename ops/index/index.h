/* Reading by index: rows of a table, elements along an axis.
 *
 *     tn_tensor *h = tn_embedding(table, tokens);            table [v,d], tokens [b,n] -> [b,n,d]
 *     tn_tensor *p = tn_gather(logits, target, -1);          logits [b,v], target [b,1] -> [b,1]
 *
 * An index is i64 or i32 and is not differentiable; one that is negative or too large is an error that names it and its place. On CUDA
 * it is so in debug contexts; in others it gives NaN (0 for integers) and no gradient.
 * Gradients of places read several times are summed in f32 (f64 for f64) in the order of the index, and rounded once.
 * Saved for backward: the index, numel x 8 bytes (4 for i32). */
#ifndef TENON_INDEX_H
#define TENON_INDEX_H

#include "../../autograd/op.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Row index[..] of weight [v, d]: o has the index's shape with d behind it. */
TN_API tn_tensor *tn_embedding(tn_tensor *weight, tn_tensor *index);

typedef struct tn_gather_args {
    int64_t dim; /* required */
} tn_gather_args;
/* o has the index's shape, and o[.., i, ..] = x[.., index[.., i, ..], ..] with the index in place dim. x and index have as many axes,
 * and no other axis of the index is longer than x's. */
TN_API tn_tensor *tn_gather(tn_tensor *x, tn_tensor *index, int64_t dim);
/* Elements index[0], index[1], ... of one axis: the index has one axis, o has its length in place dim. */
TN_API tn_tensor *tn_index_select(tn_tensor *x, int64_t dim, tn_tensor *index);

#ifdef __cplusplus
}
#endif
#endif
