/* Reductions over all axes or any set of them, and the running sum.
 *
 *     tn_tensor *loss = tn_mean(x);                                                       every element: a scalar
 *     tn_tensor *s = tn_sum_over(x, TN_REDUCE(.dims = TN_DIMS(0, -1)));                   [a,b,c] -> [b]
 *     tn_tensor *m = tn_max_over(x, TN_REDUCE(.dims = TN_DIMS(-1), .keep = true));        [a,b] -> [a,1]
 *
 * Sums run in f32 within blocks and in f64 from block to block (f64 throughout for f64), in an order that depends on shape and
 * strides alone. Inputs may have any strides. Saved for backward: nothing for sum, mean and cumsum; for max and min
 * the place of each winner, outputs x 4 bytes (8 where 2^31 or more elements are reduced to one); for logsumexp
 * x, and per output its maximum and the log of its sum, 2 x 4 bytes (2 x 8 for f64). */
#ifndef TENON_REDUCE_H
#define TENON_REDUCE_H

#include "../../autograd/op.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_reduce_args {
    tn_int_list dims; /* axes to reduce, negative ones from the end; none: all */
    bool keep;        /* reduced axes stay, with size 1; false */
} tn_reduce_args;
#define TN_REDUCE(...) ((tn_reduce_args){ .keep = false, __VA_ARGS__ })

/* Over all axes. */
TN_API tn_tensor *tn_sum(tn_tensor *x);
TN_API tn_tensor *tn_mean(tn_tensor *x);
TN_API tn_tensor *tn_max(tn_tensor *x);
TN_API tn_tensor *tn_min(tn_tensor *x);
TN_API tn_tensor *tn_argmax(tn_tensor *x);
TN_API tn_tensor *tn_logsumexp(tn_tensor *x);

/* Over args.dims. The sum of nothing is 0. Integers and bool are summed into i64. */
TN_API tn_tensor *tn_sum_over(tn_tensor *x, tn_reduce_args args);
/* Floats only; the mean of nothing is an error. */
TN_API tn_tensor *tn_mean_over(tn_tensor *x, tn_reduce_args args);
/* Any dtype. NaN wins over every number; the gradient goes to the first of equals. The maximum of nothing is an error. */
TN_API tn_tensor *tn_max_over(tn_tensor *x, tn_reduce_args args);
TN_API tn_tensor *tn_min_over(tn_tensor *x, tn_reduce_args args);
/* i64: where the maximum stands among the reduced elements in row-major order; the first of equals. Not differentiable. */
TN_API tn_tensor *tn_argmax_over(tn_tensor *x, tn_reduce_args args);
/* log sum exp(x), without overflow. -inf, with zero gradient, where every element is -inf or there is none. */
TN_API tn_tensor *tn_logsumexp_over(tn_tensor *x, tn_reduce_args args);

typedef struct tn_cumsum_args {
    int64_t dim;    /* required */
    bool reverse;   /* from the end; false */
    bool exclusive; /* without the element itself, so that the first is 0; false */
} tn_cumsum_args;
#define TN_CUMSUM(...) ((tn_cumsum_args){ .reverse = false, .exclusive = false, __VA_ARGS__ })

/* Running sum along an axis. Integers and bool give i64. */
TN_API tn_tensor *tn_cumsum(tn_tensor *x, tn_cumsum_args args);

#ifdef __cplusplus
}
#endif
#endif
