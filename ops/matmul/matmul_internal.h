#ifndef TENON_MATMUL_INTERNAL_H
#define TENON_MATMUL_INTERNAL_H

#include "../../autograd/op.h"
#include "matmul.h"

extern const tn_op_def tn_linear_def;
extern const tn_sample tn_matmul_samples[];
extern const tn_sample tn_linear_samples[];

tn_status tn_matmul_forward_cpu(tn_op_call *call);
tn_status tn_matmul_backward_cpu(tn_op_call *call);
size_t tn_matmul_workspace_cpu(const tn_op_call *call, bool backward);
tn_status tn_linear_forward_cpu(tn_op_call *call);
tn_status tn_linear_backward_cpu(tn_op_call *call);
size_t tn_linear_workspace_cpu(const tn_op_call *call, bool backward);

/* Backward of silu and gelu reads the sum before the activation; of the other activations it reads o. */
static inline bool tn_linear_saves_sum(int act) { return act == TN_SILU || act == TN_GELU; }
static inline bool tn_linear_saves_output(int act) { return act != TN_NONE && !tn_linear_saves_sum(act); }

#endif
