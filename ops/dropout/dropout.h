/* dropout: each element is zeroed with probability p, and what is left is scaled by 1 / (1 - p).
 *
 *     tn_tensor *o = tn_dropout(x, TN_DROPOUT(.p = 0.1));
 *
 * Which elements go is decided by the context's random stream, in the same way on every device; the call moves the
 * stream on, except where p is 0 (o = x) or 1 (o = 0).
 * Saved for backward: nothing, 0 bytes; 8 where tn_rng_from is in force. The mask is made again from where the stream stood. */
#ifndef TENON_DROPOUT_H
#define TENON_DROPOUT_H

#include "../../libtensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_dropout_args {
    double p;               /* in [0, 1]; 0.5 */
    uint64_t seed, counter; /* where the random stream stands; tn_dropout sets them */
} tn_dropout_args;
#define TN_DROPOUT(...) ((tn_dropout_args){ .p = 0.5, __VA_ARGS__ })

TN_API tn_tensor *tn_dropout(tn_tensor *x, tn_dropout_args args);

#ifdef __cplusplus
}
#endif
#endif
