#ifndef TENON_SAMPLING_INTERNAL_H
#define TENON_SAMPLING_INTERNAL_H

#include "sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_sample tn_topk_samples[], tn_multinomial_samples[];

tn_status tn_topk_forward_cpu(tn_op_call *call);
tn_status tn_topk_backward_cpu(tn_op_call *call);
size_t tn_topk_workspace(const tn_op_call *call, bool backward);
tn_status tn_multinomial_forward_cpu(tn_op_call *call);
size_t tn_multinomial_workspace(const tn_op_call *call, bool backward);

tn_status tn_topk_forward_cuda(tn_op_call *call);
tn_status tn_topk_backward_cuda(tn_op_call *call);
size_t tn_topk_workspace_cuda(const tn_op_call *call, bool backward);
tn_status tn_multinomial_forward_cuda(tn_op_call *call);
size_t tn_multinomial_workspace_cuda(const tn_op_call *call, bool backward);
/* Rows that can't be drawn from give -1 there; only in debug contexts they are looked for on the host, and are the error they are on
 * the CPU. */
tn_status tn_multinomial_check_cuda(tn_op_call *call);

#ifdef __cplusplus
}
#endif
#endif
