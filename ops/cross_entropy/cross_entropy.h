/* cross_entropy: the mean of -log softmax(logits)[target] over rows, and linear_cross_entropy: the same of x weight', whose logits
 * exist a few rows at a time only: while they do, forward makes the gradients from them too, and backward scales these by do.
 *
 *     tn_tensor *loss = tn_cross_entropy(logits, target, TN_CROSS_ENTROPY());
 *     tn_tensor *loss = tn_linear_cross_entropy(x, weight, target, TN_CROSS_ENTROPY(.ignore_index = 0));
 *
 * logits [.., v], target i64 [..]; x [.., d], weight [v, d]. The loss is a scalar of the logits' (x's) dtype, or f32 beside bf16 with
 * wide_loss: the mean over the targets that are not ignore_index, and 0 with zero gradients where none is left. Any other target outside 0
 * .. v-1 is an error; on CUDA, which is not waited for, it makes the loss NaN, and an error only in debug contexts. Saved for backward,
 * with s = 4 bytes (8 for f64): logits, target and two statistics a row: bytes(logits) + rows x (8 + 2s); linear_cross_entropy: the
 * gradients for do = 1, of those that are wanted: bytes(x) + bytes(weight). */
#ifndef TENON_CROSS_ENTROPY_H
#define TENON_CROSS_ENTROPY_H

#include "../../libtensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_cross_entropy_args {
    int64_t ignore_index; /* rows with this target do not count; -100 */
    bool wide_loss;       /* beside bf16 the loss is f32, so that it does not end after three digits; false */
} tn_cross_entropy_args;
#define TN_CROSS_ENTROPY(...) ((tn_cross_entropy_args){ .ignore_index = -100, __VA_ARGS__ })

TN_API tn_tensor *tn_cross_entropy(tn_tensor *logits, tn_tensor *target, tn_cross_entropy_args args);
TN_API tn_tensor *tn_linear_cross_entropy(tn_tensor *x, tn_tensor *weight, tn_tensor *target, tn_cross_entropy_args args);

#ifdef __cplusplus
}
#endif
#endif
