#include "cross_entropy_cuda.h"

#include "../../libtensor/context_internal.h"
#include "../op_support.h"

tn_status tn_entropy_check_targets_cuda(tn_op_call *call, const tn_tensor *target, int64_t v) {
    tn_context *cx = call->cx;
    if (!cx->debug || target->numel == 0) return TN_OK;
    tn_tensor copy = *target;
    copy.data = tn_host_alloc(tn_bytes(target));
    if (!copy.data) return TN_ERR_HOST_MEMORY;
    tn_status status = call->device->interface->copy_to_host(call->device, copy.data, target->data, tn_bytes(target), cx->stream);
    if (status == TN_OK) tn_cross_entropy_count(call, &copy, v, &status);
    tn_host_free(copy.data);
    return status;
}

/* Scratch: forward the rows' losses, backward the scale of the gradient; then what the mean needs. */
static size_t first_bytes(const tn_tensor *target, tn_dtype dtype, bool backward) {
    size_t bytes = (backward ? 1 : (size_t)target->numel) * tn_dtype_size(tn_wide_dtype(dtype));
    return (bytes + 511) / 512 * 512;
}

size_t tn_cross_entropy_workspace_cuda(const tn_op_call *call, bool backward) {
    const tn_tensor *target = call->in[1];
    return first_bytes(target, call->in[0]->dtype, backward) + tn_entropy_mean_bytes_cuda(target->numel);
}

static tn_entropy_rows_cuda rows_of(const tn_op_call *call) {
    const tn_cross_entropy_args *args = call->args;
    const tn_tensor *logits = call->in[0], *target = call->in[1];
    int64_t v = logits->shape[logits->axes - 1];
    return (tn_entropy_rows_cuda){ .dtype = logits->dtype,
                                   .rows = target->numel,
                                   .v = v,
                                   .ignore_index = args->ignore_index,
                                   .row = v,
                                   .drow = v,
                                   .logits = logits->data,
                                   .target = target->data,
                                   .max = call->aux[0] ? call->aux[0]->data : NULL,
                                   .log_sum = call->aux[1] ? call->aux[1]->data : NULL };
}

tn_status tn_cross_entropy_forward_cuda(tn_op_call *call) {
    tn_entropy_rows_cuda rows = rows_of(call);
    tn_status status = tn_entropy_check_targets_cuda(call, call->in[1], rows.v);
    if (status != TN_OK) return status;
    rows.loss = call->workspace;
    void *scratch = (char *)call->workspace + first_bytes(call->in[1], rows.dtype, false);
    status = tn_entropy_losses_cuda(call->device, &rows, call->stream);
    if (status != TN_OK) return status;
    return tn_entropy_mean_cuda(call->device, rows.loss, rows.target, rows.rows, rows.ignore_index, call->out[0], scratch, call->stream);
}

tn_status tn_cross_entropy_backward_cuda(tn_op_call *call) {
    tn_entropy_rows_cuda rows = rows_of(call);
    void *scratch = (char *)call->workspace + first_bytes(call->in[1], rows.dtype, true);
    tn_status status = tn_entropy_scale_cuda(call->device, rows.dtype, call->dout[0], rows.target, rows.rows, rows.ignore_index,
                                             call->workspace, scratch, call->stream);
    if (status != TN_OK) return status;
    rows.scale = call->workspace;
    rows.ddtype = rows.dtype;
    rows.dlogits = call->din[0]->data;
    return tn_entropy_gradients_cuda(call->device, &rows, call->stream);
}
