#ifndef TENON_SWIGLU_INTERNAL_H
#define TENON_SWIGLU_INTERNAL_H

#include "swiglu.h"
#include "../../autograd/op.h"

extern const tn_sample tn_swiglu_samples[];

tn_status tn_swiglu_forward_cpu(tn_op_call *call);
tn_status tn_swiglu_backward_cpu(tn_op_call *call);

#endif
