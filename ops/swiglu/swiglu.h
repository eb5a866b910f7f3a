/* swiglu: a gated linear unit with silu, as in the feed-forward layers of language models.
 *
 *     tn_tensor *o = tn_swiglu(tn_linear(x, w, NULL));      x w' [.., 2f] -> o [.., f]
 *
 * o = silu(u) * v, where u is the first half of the last axis and v the second.
 * Saved for backward: x, numel x element size bytes. */
#ifndef TENON_SWIGLU_H
#define TENON_SWIGLU_H

#include "../../libtensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

TN_API tn_tensor *tn_swiglu(tn_tensor *x);

#ifdef __cplusplus
}
#endif
#endif
