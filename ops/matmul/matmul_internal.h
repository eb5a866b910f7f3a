#ifndef TENON_MATMUL_INTERNAL_H
#define TENON_MATMUL_INTERNAL_H

#include "../../autograd/op.h"
#include "matmul.h"
#include "matmul_product.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_op_def tn_linear_def;
extern const tn_sample tn_matmul_samples[];
extern const tn_sample tn_linear_samples[];

tn_status tn_matmul_forward_cpu(tn_op_call *call);
tn_status tn_matmul_backward_cpu(tn_op_call *call);
size_t tn_matmul_workspace_cpu(const tn_op_call *call, bool backward);
tn_status tn_linear_forward_cpu(tn_op_call *call);
tn_status tn_linear_backward_cpu(tn_op_call *call);
size_t tn_linear_workspace_cpu(const tn_op_call *call, bool backward);

tn_status tn_matmul_forward_cuda(tn_op_call *call);
tn_status tn_matmul_backward_cuda(tn_op_call *call);
size_t tn_matmul_workspace_cuda(const tn_op_call *call, bool backward);
tn_status tn_linear_forward_cuda(tn_op_call *call);
tn_status tn_linear_backward_cuda(tn_op_call *call);
size_t tn_linear_workspace_cuda(const tn_op_call *call, bool backward);

/* The products these calls are made of; `input` is the one whose gradient is made, din[input]. */
tn_product tn_matmul_product(const tn_op_call *call);
tn_product tn_matmul_gradient_product(const tn_op_call *call, int input);
/* sum = x weight', without the bias; dx = dsum weight or dweight = dsum' x. */
tn_product tn_linear_product(const tn_op_call *call, const tn_tensor *sum);
tn_product tn_linear_gradient_product(const tn_op_call *call, int input, const void *dsum);

/* CUDA: o = act(sum) over numel elements; o may be sum. */
tn_status tn_linear_activate_cuda(const tn_op_call *call, int act, const tn_tensor *sum, tn_tensor *o);
/* CUDA: dsum = dout act'(saved) (dsum NULL: act is none) and dbias = the sums of its columns (dbias NULL: not wanted). */
typedef struct tn_linear_slopes {
    int act;
    int64_t rows, n;
    const tn_tensor *dout;
    const void *saved;
    void *dsum;
    tn_tensor *dbias;
    void *parts; /* scratch, tn_linear_parts_bytes */
} tn_linear_slopes;
size_t tn_linear_parts_bytes(tn_dtype dtype, int64_t rows, int64_t n);
tn_status tn_linear_slopes_cuda(const tn_op_call *call, const tn_linear_slopes *job);

#ifdef __cplusplus
}
#endif

/* Backward of silu and gelu reads the sum before the activation; of the other activations it reads o. */
static inline bool tn_linear_saves_sum(int act) { return act == TN_SILU || act == TN_GELU; }
static inline bool tn_linear_saves_output(int act) { return act != TN_NONE && !tn_linear_saves_sum(act); }

#endif
