/* matmul: matrix products, batched and broadcast like numpy's, and linear: x weight' + bias with an activation.
 *
 *     tn_tensor *scores = tn_matmul(q, tn_transpose(k, -1, -2));          [.., n, d] [.., d, m] -> [.., n, m]
 *     tn_tensor *h = tn_linear_with(x, weight, bias, TN_LINEAR(.act = TN_GELU));
 *
 * matmul: a [.., m, k], b [.., k, n] -> o [.., m, n]. The axes before the last two broadcast. A vector as a stands for one row, as b for
 * one column, and o has no axis for it. Transposed and sliced views whose rows or columns lie densely are read where they are.
 * Saved for backward: a where b wants a gradient, b where a does.
 *
 * linear: x [.., in], weight [out, in], bias [out] (may be NULL) -> o [.., out]. Saved for backward: x where weight wants a gradient,
 * weight where x does, and with an activation numel(o) elements besides: o for relu, sigmoid and tanh, the sum before the activation
 * for silu and gelu. */
#ifndef TENON_MATMUL_H
#define TENON_MATMUL_H

#include "../../libtensor/tensor.h"
#include "../activation.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_linear_args {
    int act; /* tn_activation, not softmax; none */
} tn_linear_args;
#define TN_LINEAR(...) ((tn_linear_args){ .act = TN_NONE, __VA_ARGS__ })

TN_API tn_tensor *tn_matmul(tn_tensor *a, tn_tensor *b);
TN_API tn_tensor *tn_linear(tn_tensor *x, tn_tensor *weight, tn_tensor *bias);
TN_API tn_tensor *tn_linear_with(tn_tensor *x, tn_tensor *weight, tn_tensor *bias, tn_linear_args args);

#ifdef __cplusplus
}
#endif
#endif
