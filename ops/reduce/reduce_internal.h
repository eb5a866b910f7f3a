#ifndef TENON_REDUCE_INTERNAL_H
#define TENON_REDUCE_INTERNAL_H

#include "reduce.h"
#ifndef __cplusplus
#include "../reduction_cpu.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_sample tn_sum_samples[], tn_mean_samples[], tn_max_samples[], tn_min_samples[], tn_argmax_samples[], tn_logsumexp_samples[],
    tn_cumsum_samples[];

/* The reduced axes as bits; the dims have been checked. */
static inline uint32_t tn_reduced_axes(const tn_reduce_args *args, int axes) {
    uint32_t bits = 0;
    for (int i = 0; i < args->dims.axes; i++) bits |= 1u << (args->dims.size[i] + (args->dims.size[i] < 0 ? axes : 0));
    return args->dims.axes ? bits : (1u << axes) - 1;
}

/* forward, and scratch for it */
tn_status tn_sum_forward_cpu(tn_op_call *call);
tn_status tn_mean_forward_cpu(tn_op_call *call);
tn_status tn_max_forward_cpu(tn_op_call *call);
tn_status tn_min_forward_cpu(tn_op_call *call);
tn_status tn_argmax_forward_cpu(tn_op_call *call);
tn_status tn_logsumexp_forward_cpu(tn_op_call *call);
tn_status tn_cumsum_forward_cpu(tn_op_call *call);
size_t tn_sum_workspace(const tn_op_call *call, bool backward);
size_t tn_extremum_workspace(const tn_op_call *call, bool backward);
size_t tn_logsumexp_workspace(const tn_op_call *call, bool backward);

/* max and min */
tn_status tn_extremum_backward_cpu(tn_op_call *call);
tn_status tn_logsumexp_backward_cpu(tn_op_call *call);
tn_status tn_cumsum_backward_cpu(tn_op_call *call);
/* o = x / count, where args is the count: the gradient of mean before it is broadcast */
tn_status tn_divide_forward_cpu(tn_op_call *call);

#ifndef __cplusplus
const tn_reducer *tn_reducer_extremum(tn_dtype dtype); /* value and place, each written where wanted */
const tn_reducer *tn_reducer_logsumexp(tn_dtype dtype);
#endif

tn_status tn_sum_forward_cuda(tn_op_call *call);
tn_status tn_mean_forward_cuda(tn_op_call *call);
tn_status tn_max_forward_cuda(tn_op_call *call);
tn_status tn_min_forward_cuda(tn_op_call *call);
tn_status tn_argmax_forward_cuda(tn_op_call *call);
tn_status tn_logsumexp_forward_cuda(tn_op_call *call);
tn_status tn_cumsum_forward_cuda(tn_op_call *call);
size_t tn_sum_workspace_cuda(const tn_op_call *call, bool backward);
size_t tn_extremum_workspace_cuda(const tn_op_call *call, bool backward);
size_t tn_logsumexp_workspace_cuda(const tn_op_call *call, bool backward);
size_t tn_cumsum_workspace_cuda(const tn_op_call *call, bool backward);

tn_status tn_extremum_backward_cuda(tn_op_call *call);
tn_status tn_logsumexp_backward_cuda(tn_op_call *call);
tn_status tn_cumsum_backward_cuda(tn_op_call *call);
tn_status tn_divide_forward_cuda(tn_op_call *call);

#ifdef __cplusplus
}
#endif

#endif
