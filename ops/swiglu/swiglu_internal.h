#ifndef TENON_SWIGLU_INTERNAL_H
#define TENON_SWIGLU_INTERNAL_H

#include "../../autograd/op.h"
#include "swiglu.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_sample tn_swiglu_samples[];

tn_status tn_swiglu_forward_cpu(tn_op_call *call);
tn_status tn_swiglu_backward_cpu(tn_op_call *call);

tn_status tn_swiglu_forward_cuda(tn_op_call *call);
tn_status tn_swiglu_backward_cuda(tn_op_call *call);

#ifdef __cplusplus
}
#endif
#endif
