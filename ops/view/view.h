/* Views share their input's storage and move no byte; copies make a dense tensor of their own. Both carry gradients, take any dtype
 * and any strides, and save nothing for backward. Axes (dim, dims) may be negative, counted from the end.
 *
 *     tn_tensor *q = tn_transpose(tn_reshape(x, TN_SHAPE(8, -1, 4, 16)), 1, 2);
 *     tn_tensor *row = tn_select(x, 0, -1);
 *     tn_tensor *both = tn_concat((tn_tensor *[]){a, b}, 2, -1);
 *
 * A write through a view changes the tensor it shows, and counts there as a new version. */
#ifndef TENON_VIEW_H
#define TENON_VIEW_H

#include "../../autograd/op.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- views ---- */

typedef struct tn_reshape_args {
    tn_int_list shape; /* required; one size may be -1: whatever is left */
} tn_reshape_args;
/* The same elements in row-major order in another shape: a view where x's strides allow it, else of a dense copy. */
TN_API tn_tensor *tn_reshape(tn_tensor *x, tn_int_list shape);
/* Joins the axes first to last (both included) into one. */
TN_API tn_tensor *tn_flatten(tn_tensor *x, int64_t first, int64_t last);
/* Takes away an axis, which must have size 1, and puts one in. */
TN_API tn_tensor *tn_squeeze(tn_tensor *x, int64_t dim);
TN_API tn_tensor *tn_unsqueeze(tn_tensor *x, int64_t dim);

typedef struct tn_permute_args {
    tn_int_list dims; /* required; each axis of x once: axis i of o is axis dims[i] of x */
} tn_permute_args;
TN_API tn_tensor *tn_permute(tn_tensor *x, tn_int_list dims);
/* Swaps two axes. */
TN_API tn_tensor *tn_transpose(tn_tensor *x, int64_t dim_a, int64_t dim_b);

typedef struct tn_slice_args {
    int64_t dim;   /* 0 */
    int64_t start; /* 0; as in Python: negative from the end, beyond the end cut off */
    int64_t end;   /* INT64_MAX; the first element left out */
    int64_t step;  /* 1; > 0 */
} tn_slice_args;
#define TN_SLICE(...) ((tn_slice_args){ .dim = 0, .start = 0, .end = INT64_MAX, .step = 1, __VA_ARGS__ })
/* Elements start, start + step, ... of an axis. */
TN_API tn_tensor *tn_slice(tn_tensor *x, tn_slice_args args);
/* Elements start .. start + length - 1 of an axis, all of which must be there. */
TN_API tn_tensor *tn_narrow(tn_tensor *x, int64_t dim, int64_t start, int64_t length);
/* Element `index` (negative from the end) of an axis, and the axis gone. */
TN_API tn_tensor *tn_select(tn_tensor *x, int64_t dim, int64_t index);
/* Cuts an axis into n equal parts, written to parts[0..n); its size must be a multiple of n. On failure all are NULL. */
TN_API bool tn_split(tn_tensor *x, int64_t dim, int n, tn_tensor **parts);

typedef struct tn_expand_args {
    tn_int_list shape; /* required; -1 keeps x's size */
} tn_expand_args;
/* Repeats axes of size 1, with stride 0, and puts new axes in front. Its gradient is the sum over the repeats. */
TN_API tn_tensor *tn_expand(tn_tensor *x, tn_int_list shape);

/* ---- copies ---- */

/* x itself where it is dense already, else a dense copy. */
TN_API tn_tensor *tn_contiguous(tn_tensor *x);
/* A dense copy. */
TN_API tn_tensor *tn_clone(tn_tensor *x);

typedef struct tn_cast_args {
    tn_dtype dtype; /* required */
} tn_cast_args;
/* x in another dtype; x itself where it has that dtype already. The gradient is cast back; integers and bool end it. */
TN_API tn_tensor *tn_cast(tn_tensor *x, tn_dtype dtype);

typedef struct tn_concat_args {
    int64_t dim; /* 0 */
} tn_concat_args;
/* n >= 1 tensors one after the other along an axis; their other sizes and their dtype must be the same. */
TN_API tn_tensor *tn_concat(tn_tensor *const *x, int n, int64_t dim);
/* n >= 1 tensors of one shape side by side along a new axis. */
TN_API tn_tensor *tn_stack(tn_tensor *const *x, int n, int64_t dim);

#ifdef __cplusplus
}
#endif
#endif
