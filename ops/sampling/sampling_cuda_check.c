#include "sampling_internal.h"

#include "../../libtensor/context_internal.h"

static tn_status refuse_undrawn(tn_op_call *call, const int64_t *index) {
    const tn_multinomial_args *args = call->args;
    for (int64_t i = 0; i < call->out[0]->numel; i++) {
        if (index[i] >= 0) continue;
        tn_refuse(call, TN_ERR_ARGUMENT, "row %lld of the weights: wanted finite weights of at least 0, %lld of them above 0",
                  (long long)(i / args->n_samples), (long long)(args->replacement ? 1 : args->n_samples));
        return TN_ERR_ARGUMENT;
    }
    return TN_OK;
}

tn_status tn_multinomial_check_cuda(tn_op_call *call) {
    tn_context *cx = call->cx;
    const tn_tensor *o = call->out[0];
    if (!cx->debug) return TN_OK;
    int64_t *index = tn_host_alloc(tn_bytes(o));
    if (!index) return TN_ERR_HOST_MEMORY;
    tn_status status = call->device->interface->copy_to_host(call->device, index, o->data, tn_bytes(o), cx->stream);
    if (status == TN_OK) status = refuse_undrawn(call, index);
    tn_host_free(index);
    return status;
}
