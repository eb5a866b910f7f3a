#include "act_internal.h"

#include "../activation_cuda.cuh"
#include "../pointwise_cuda.cuh"

namespace {

/* Of x where backward reads x, of o where it reads o. */
template <int Act> struct slope_of {
    template <typename W> __device__ __forceinline__ W operator()(W d, W saved) const {
        return d * (Act == TN_SILU || Act == TN_GELU ? tn_act_slope<Act, W>(saved) : tn_act_slope_at_output<Act, W>(saved));
    }
};

} // namespace

extern "C" tn_status tn_act_backward_cuda(tn_op_call *call) {
    const tn_act_args *args = (const tn_act_args *)call->args;
    if (args->act == TN_SOFTMAX) return tn_softmax_backward_cuda(call);
    const tn_tensor *d = call->dout[0], *saved = NULL;
    if (tn_act_saves_output(args->act)) saved = call->out[0];
    else if (tn_act_saves_input(args->act)) saved = call->in[0];
    const void *x_or_o = saved ? saved->data : NULL;
    bool plain = call->device->cuda_path == TN_CUDA_PLAIN || d->dtype == TN_F64;
    cudaError_t error = cudaSuccess;
    TN_WITH_FLOAT(d->dtype, T, TN_WITH_ACT(args->act, Act, {
                      error = tn_pointwise<T>(plain, (T *)call->din[0]->data, (const T *)d->data, (const T *)x_or_o, d->numel,
                                              slope_of<Act>(), call->stream);
                  }));
    return tn_cuda_said(call->device, (int)error, "act backward");
}
