#ifndef TENON_ELEMENTWISE_INTERNAL_H
#define TENON_ELEMENTWISE_INTERNAL_H

#include "../../autograd/op.h"
#include "elementwise.h"
#include "elementwise_list.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TN_ELEMENTWISE_MAX_IN 3

/* Operands that a gradient reads beside d. */
enum { TN_READS_IN0 = 1, TN_READS_IN1 = 2, TN_READS_IN2 = 4, TN_READS_OUT = 8 };

typedef enum tn_elementwise_kind {
    TN_ELEMENTWISE_UNARY,
    TN_ELEMENTWISE_BINARY,
    TN_ELEMENTWISE_COMPARISON,
    TN_ELEMENTWISE_CHOICE
} tn_elementwise_kind;

/* Beside its tn_op_def, an op of this family is (tn_op_def.own points here): */
typedef struct tn_elementwise_op {
    int index; /* in the kernel tables */
    tn_elementwise_kind kind;
    int n_numbers;                         /* doubles in the args struct */
    unsigned reads[TN_ELEMENTWISE_MAX_IN]; /* what the gradient of input i needs */
    bool passes[TN_ELEMENTWISE_MAX_IN];    /* that gradient is d itself, summed where the input was repeated */
} tn_elementwise_op;

/* The ops' places in tables. */
#define TN_INDEX_OF(name, ...) TN_INDEX_##name,
enum {
    TN_UNARY_OPS(TN_INDEX_OF) TN_UNARY_OPS_WITH_NUMBERS(TN_INDEX_OF) TN_BINARY_OPS(TN_INDEX_OF) TN_COMPARISON_OPS(TN_INDEX_OF)
        TN_CHOICE_OPS(TN_INDEX_OF) TN_ELEMENTWISE_COUNT
};
#undef TN_INDEX_OF

static inline const tn_elementwise_op *tn_elementwise_of(const tn_op_call *call) { return (const tn_elementwise_op *)call->op->own; }

tn_status tn_elementwise_forward_cpu(tn_op_call *call);
tn_status tn_elementwise_backward_cpu(tn_op_call *call);
size_t tn_elementwise_workspace(const tn_op_call *call, bool backward);

tn_status tn_elementwise_forward_cuda(tn_op_call *call);
tn_status tn_elementwise_backward_cuda(tn_op_call *call);
size_t tn_elementwise_workspace_cuda(const tn_op_call *call, bool backward);
/* The gradient of input i, which was repeated. Of the inputs in `others`, which were not, *made says whose gradients came with it. */
tn_status tn_elementwise_sum_gradient_cuda(tn_op_call *call, int i, unsigned others, unsigned *made);

#define TN_SAMPLES_OF(name, ...) extern const tn_sample tn_elementwise_##name##_samples[];
TN_UNARY_OPS(TN_SAMPLES_OF)
TN_UNARY_OPS_WITH_NUMBERS(TN_SAMPLES_OF) TN_BINARY_OPS(TN_SAMPLES_OF) TN_COMPARISON_OPS(TN_SAMPLES_OF) TN_CHOICE_OPS(TN_SAMPLES_OF)
#undef TN_SAMPLES_OF

#ifdef __cplusplus
}
#endif
#endif
