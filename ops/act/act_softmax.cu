/* Softmax along any axis, forward and backward: the choice of kernels. Those along the last axis are in act_softmax_rows.cuh, those along
 * another in act_softmax_columns.cuh. */
#include "act_softmax_columns.cuh"
#include "act_softmax_rows.cuh"

namespace {

softmax_shape shape_of(const tn_op_call *call, const tn_tensor *like) {
    const tn_act_args *args = (const tn_act_args *)call->args;
    tn_around around = tn_around_axis(like->shape, like->axes, tn_axis_of(args->dim, like->axes));
    return softmax_shape{ around.outer, around.axis, around.inner };
}

bool packs_fit(const tn_op_call *call, tn_dtype dtype, int64_t contiguous, const void *a, const void *b, const void *c) {
    return call->device->cuda_path != TN_CUDA_PLAIN && dtype != TN_F64 && contiguous * tn_dtype_size(dtype) % 16 == 0 && tn_aligned16(a) &&
           tn_aligned16(b) && tn_aligned16(c);
}

/* Backward where d is given: o is its result then, and `to` takes dx. */
cudaError_t run(tn_op_call *call, const softmax_shape &s, tn_dtype dtype, void *to, const void *from, const void *d) {
    softmax_job job = { s, to, from, d, call->device, call->workspace, (cudaStream_t)call->stream };
    bool last = s.inner == 1;
    if (packs_fit(call, dtype, last ? s.axis : s.inner, to, from, d ? d : from)) {
        if (dtype == TN_F32) return last ? launch_rows<float>(job) : launch_columns<float>(job);
        return last ? launch_rows<tn_cuda_bf16>(job) : launch_columns<tn_cuda_bf16>(job);
    }
    TN_WITH_FLOAT(dtype, T, if (last) launch_plain_rows<T>(job); else launch_plain_columns<T>(job));
    return cudaGetLastError();
}

} // namespace

extern "C" size_t tn_softmax_workspace_cuda(const tn_op_call *call, bool backward) {
    const tn_act_args *args = (const tn_act_args *)call->args;
    const tn_tensor *like = backward ? call->dout[0] : call->in[0];
    if (args->act != TN_SOFTMAX || like->numel == 0 || like->dtype == TN_F64) return 0;
    softmax_shape s = shape_of(call, like);
    return s.inner == 1 ? rows_workspace(s, like->dtype, call->device, backward)
                        : columns_workspace(s, like->dtype, call->device, backward);
}

extern "C" tn_status tn_softmax_forward_cuda(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    if (x->numel == 0) return TN_OK;
    return tn_cuda_said(call->device, (int)run(call, shape_of(call, x), x->dtype, call->out[0]->data, x->data, NULL), "softmax forward");
}

extern "C" tn_status tn_softmax_backward_cuda(tn_op_call *call) {
    const tn_tensor *o = call->out[0];
    if (o->numel == 0) return TN_OK;
    return tn_cuda_said(call->device, (int)run(call, shape_of(call, o), o->dtype, call->din[0]->data, o->data, call->dout[0]->data),
                        "softmax backward");
}
