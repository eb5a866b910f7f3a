/* linear's activations that GEMM does not make itself: one pass over the sums. */
#include "matmul_internal.h"

#include "../activation_cuda.cuh"
#include "../pointwise_cuda.cuh"

template <int Act> struct linear_act_of {
    template <typename W> __device__ __forceinline__ W operator()(W x, W) const { return tn_act_value<Act, W>(x); }
};

extern "C" tn_status tn_linear_activate_cuda(const tn_op_call *call, int act, const tn_tensor *sum, tn_tensor *o) {
    bool plain = call->device->cuda_path == TN_CUDA_PLAIN || o->dtype == TN_F64;
    cudaError_t error = cudaSuccess;
    TN_WITH_FLOAT(o->dtype, T, TN_WITH_ACT(act, Act, {
        error = tn_pointwise<T>(plain, (T *)o->data, (const T *)sum->data, (const T *)NULL, o->numel, linear_act_of<Act>(), call->stream);
    }));
    return tn_cuda_said(call->device, (int)error, "linear activation");
}
