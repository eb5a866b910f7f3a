#ifndef TENON_DROPOUT_INTERNAL_H
#define TENON_DROPOUT_INTERNAL_H

#include "../../autograd/op.h"
#include "dropout.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TN_DROPOUT_X, TN_DROPOUT_PLACE };

extern const tn_sample tn_dropout_samples[];

/* Serves both passes: do goes through the same mask as x. */
tn_status tn_dropout_cpu(tn_op_call *call);
tn_status tn_dropout_cuda(tn_op_call *call);

#ifdef __cplusplus
}
#endif

/* The mask, on every device: elements come in groups of 64, and element e of group g is kept if word e / 16 of the Philox
 * block (counter + place) / 2 + 16 g + e % 16 is at least p 2^32. */
#define TN_DROPOUT_GROUP 64
#define TN_DROPOUT_BLOCKS 16

static inline uint32_t tn_dropout_threshold(double p) {
    double scaled = p * 4294967296.0;
    return (uint32_t)(scaled > 4294967295.0 ? 4294967295.0 : scaled);
}

#endif
