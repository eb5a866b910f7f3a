/* act: an activation, element by element, or softmax along any axis.
 *
 *     tn_tensor *o = tn_act(x, TN_ACT(.act = TN_SILU));
 *     tn_tensor *p = tn_act(scores, TN_ACT(.act = TN_SOFTMAX, .dim = 1));
 *
 * Saved for backward: o for relu, sigmoid, tanh and softmax, x for silu and gelu, nothing for none:
 * numel x element size bytes, or 0. */
#ifndef TENON_ACT_H
#define TENON_ACT_H

#include "../../libtensor/tensor.h"
#include "../activation.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_act_args {
    int act;     /* tn_activation; none */
    int64_t dim; /* softmax only; -1 */
} tn_act_args;
#define TN_ACT(...) ((tn_act_args){ .act = TN_NONE, .dim = -1, __VA_ARGS__ })

TN_API tn_tensor *tn_act(tn_tensor *x, tn_act_args args);

/* The same by name. */
TN_API tn_tensor *tn_relu(tn_tensor *x);
TN_API tn_tensor *tn_sigmoid(tn_tensor *x);
TN_API tn_tensor *tn_silu(tn_tensor *x);
TN_API tn_tensor *tn_gelu(tn_tensor *x);
TN_API tn_tensor *tn_tanh(tn_tensor *x);
TN_API tn_tensor *tn_softmax(tn_tensor *x, int64_t dim);

#ifdef __cplusplus
}
#endif
#endif
