/* expand's gradient: the sum over the repeats. Everything else in this family goes through the device's own copy and fill. */
#include "view_internal.h"

#include "../reduction_cuda.h"

/* The axes of do along which x was repeated. */
static uint32_t repeated_axes(const tn_op_call *call) {
    const tn_tensor *dout = call->dout[0];
    const tn_shape *own = &call->in_spec[0].shape;
    int added = dout->axes - own->axes;
    uint32_t repeated = 0;
    for (int i = 0; i < dout->axes; i++)
        if (i < added || own->size[i - added] != dout->shape[i]) repeated |= 1u << i;
    return repeated;
}

extern "C" size_t tn_expand_workspace_cuda(const tn_op_call *call, bool backward) {
    return backward ? tn_cuda_sum_bytes(call->dout[0], repeated_axes(call)) : 0;
}

extern "C" tn_status tn_expand_backward_cuda(tn_op_call *call) {
    int error = tn_cuda_sum(call->device, call->dout[0], repeated_axes(call), 1, call->din[0]->data, call->workspace, call->stream);
    return tn_cuda_said(call->device, error, "expand backward");
}
