#ifndef TENON_ACT_INTERNAL_H
#define TENON_ACT_INTERNAL_H

#include "../../autograd/op.h"
#include "act.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_sample tn_act_samples[];

tn_status tn_act_forward_cpu(tn_op_call *call);
tn_status tn_act_backward_cpu(tn_op_call *call);
tn_status tn_softmax_forward_cpu(tn_op_call *call);
tn_status tn_softmax_backward_cpu(tn_op_call *call);
size_t tn_softmax_workspace(const tn_op_call *call, bool backward);

tn_status tn_act_forward_cuda(tn_op_call *call);
tn_status tn_act_backward_cuda(tn_op_call *call);
tn_status tn_softmax_forward_cuda(tn_op_call *call);
tn_status tn_softmax_backward_cuda(tn_op_call *call);
size_t tn_softmax_workspace_cuda(const tn_op_call *call, bool backward);

#ifdef __cplusplus
}
#endif

/* Backward of these reads o; of silu and gelu it reads x. */
static inline bool tn_act_saves_output(int act) { return act == TN_RELU || act == TN_SIGMOID || act == TN_TANH || act == TN_SOFTMAX; }
static inline bool tn_act_saves_input(int act) { return act == TN_SILU || act == TN_GELU; }

#endif
