/* sum and mean, and the division in mean's backward. */
#include "reduce_internal.h"

#include "../op_support.h"
#include "../pointwise_cuda.cuh"
#include "../reduction_cuda.h"

extern "C" size_t tn_sum_workspace_cuda(const tn_op_call *call, bool backward) {
    const tn_tensor *x = call->in[0];
    return backward ? 0 : tn_cuda_sum_bytes(x, tn_reduced_axes((const tn_reduce_args *)call->args, x->axes));
}

static tn_status sum_over(tn_op_call *call, double divisor) {
    const tn_tensor *x = call->in[0];
    uint32_t axes = tn_reduced_axes((const tn_reduce_args *)call->args, x->axes);
    return tn_cuda_said(call->device, tn_cuda_sum(call->device, x, axes, divisor, call->out[0]->data, call->workspace, call->stream),
                        "sum");
}

extern "C" tn_status tn_sum_forward_cuda(tn_op_call *call) { return sum_over(call, 1); }

extern "C" tn_status tn_mean_forward_cuda(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    uint32_t axes = tn_reduced_axes((const tn_reduce_args *)call->args, x->axes);
    double count = 1;
    for (int i = 0; i < x->axes; i++)
        if (axes >> i & 1) count *= (double)x->shape[i];
    return sum_over(call, count);
}

struct divided {
    double count;
    template <typename W> __device__ __forceinline__ W operator()(W x, W) const { return (W)((double)x / count); }
};

extern "C" tn_status tn_divide_forward_cuda(tn_op_call *call) {
    const tn_tensor *g = call->in[0];
    divided by = { (double)*(const int64_t *)call->args };
    bool plain = call->device->cuda_path == TN_CUDA_PLAIN || g->dtype == TN_F64;
    cudaError_t error = cudaSuccess;
    TN_WITH_FLOAT(
        g->dtype, T,
        (error = tn_pointwise<T>(plain, (T *)call->out[0]->data, (const T *)g->data, (const T *)NULL, g->numel, by, call->stream)));
    return tn_cuda_said(call->device, (int)error, "mean backward");
}
