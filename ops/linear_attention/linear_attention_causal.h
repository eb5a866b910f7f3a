/* Causal linear attention on CUDA: four scans in all, of which this says what goes in and comes out. */
#ifndef TENON_LINEAR_ATTENTION_CAUSAL_H
#define TENON_LINEAR_ATTENTION_CAUSAL_H

#include "linear_attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

tn_status tn_la_causal_forward_cuda(tn_op_call *call, const tn_la_problem *problem);
tn_status tn_la_causal_backward_cuda(tn_op_call *call, const tn_la_problem *problem);
size_t tn_la_causal_forward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem);
size_t tn_la_causal_backward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem);

#ifdef __cplusplus
}
#endif
#endif
