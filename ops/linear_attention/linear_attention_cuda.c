/* linear_attention on CUDA: which kernels a call is. */
#include "../op_support.h"
#include "linear_attention_causal.h"
#include "linear_attention_internal.h"

size_t tn_linear_attention_workspace_cuda(const tn_op_call *call, bool backward) {
    tn_la_problem problem;
    tn_la_problem_of(call, backward, &problem);
    if (problem.causal) return (backward ? tn_la_causal_backward_workspace_cuda : tn_la_causal_forward_workspace_cuda)(call, &problem);
    return (backward ? tn_la_backward_workspace_cuda : tn_la_forward_workspace_cuda)(call, &problem);
}

tn_status tn_linear_attention_forward_cuda(tn_op_call *call) {
    tn_la_problem problem;
    tn_la_problem_of(call, false, &problem);
    if (!problem.causal) return tn_la_forward_cuda(call, &problem);
    return tn_la_causal_forward_cuda(call, &problem);
}

tn_status tn_linear_attention_backward_cuda(tn_op_call *call) {
    tn_la_problem problem;
    tn_la_problem_of(call, true, &problem);
    if (!problem.causal) return tn_la_backward_cuda(call, &problem);
    return tn_la_causal_backward_cuda(call, &problem);
}
