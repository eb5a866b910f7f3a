#include "index_cuda.h"

#include "../../libtensor/context_internal.h"

static tn_status refuse_bad(tn_op_call *call, const tn_tensor *index, int64_t limit) {
    for (int64_t i = 0; i < index->numel; i++) {
        int64_t at = tn_index_at(index, i);
        if ((uint64_t)at < (uint64_t)limit) continue;
        tn_refuse(call, TN_ERR_ARGUMENT, "index %lld at position %lld: wanted 0 to %lld", (long long)at, (long long)i,
                  (long long)limit - 1);
        return TN_ERR_ARGUMENT;
    }
    return TN_OK;
}

tn_status tn_index_check_cuda(tn_op_call *call, int64_t limit) {
    tn_context *cx = call->cx;
    if (!cx->debug || call->in[1]->numel == 0) return TN_OK;
    tn_tensor *dense = tn_dense(call->in[1], call->in[1]->dtype);
    if (!dense) return cx->status;
    tn_tensor copy = *dense;
    copy.data = tn_host_alloc(tn_bytes(dense));
    tn_status status = TN_ERR_HOST_MEMORY;
    if (copy.data) status = call->device->interface->copy_to_host(call->device, copy.data, dense->data, tn_bytes(dense), cx->stream);
    tn_unreference(dense);
    if (status == TN_OK) status = refuse_bad(call, &copy, limit);
    tn_host_free(copy.data);
    return status;
}
