#ifndef TENON_SAMPLING_INTERNAL_H
#define TENON_SAMPLING_INTERNAL_H

#include "sampling.h"

extern const tn_sample tn_topk_samples[], tn_multinomial_samples[];

tn_status tn_topk_forward_cpu(tn_op_call *call);
tn_status tn_topk_backward_cpu(tn_op_call *call);
size_t tn_topk_workspace(const tn_op_call *call, bool backward);
tn_status tn_multinomial_forward_cpu(tn_op_call *call);
size_t tn_multinomial_workspace(const tn_op_call *call, bool backward);

#endif
