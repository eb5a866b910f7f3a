#include "act_internal.h"

#include "../activation_cuda.cuh"
#include "../pointwise_cuda.cuh"

namespace {

template <int Act> struct act_of {
    template <typename W> __device__ __forceinline__ W operator()(W x) const { return tn_act_value<Act, W>(x); }
};

} // namespace

extern "C" tn_status tn_act_forward_cuda(tn_op_call *call) {
    const tn_act_args *args = (const tn_act_args *)call->args;
    if (args->act == TN_SOFTMAX) return tn_softmax_forward_cuda(call);
    const tn_tensor *x = call->in[0];
    bool plain = call->device->cuda_path == TN_CUDA_PLAIN || x->dtype == TN_F64;
    cudaError_t error = cudaSuccess;
    TN_WITH_FLOAT(x->dtype, T, TN_WITH_ACT(args->act, Act, {
                      error = tn_pointwise<T>(plain, (T *)call->out[0]->data, (const T *)x->data, x->numel, act_of<Act>(), call->stream);
                  }));
    return tn_cuda_said(call->device, (int)error, "act forward");
}
