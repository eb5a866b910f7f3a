/* expand's gradient: the sum over the repeats. */
#include "view_internal.h"

#include "../reduction_cpu.h"

/* A reduction that makes dx from do. */
static tn_reduction repeats_of(const tn_op_call *call) {
    const tn_tensor *dout = call->dout[0];
    const tn_shape *own = &call->in_spec[0].shape;
    int added = dout->axes - own->axes;
    uint32_t repeated = 0;
    for (int i = 0; i < dout->axes; i++)
        if (i < added || own->size[i - added] != dout->shape[i]) repeated |= 1u << i;
    return (tn_reduction){
        .reducer = tn_reducer_sum(dout->dtype),
        .in = dout,
        .axes = repeated,
        .divisor = 1,
        .out_dtype = dout->dtype,
        .threads = call->threads,
        .workspace = call->workspace,
    };
}

size_t tn_expand_workspace(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    tn_reduction r = repeats_of(call);
    return tn_reduce_workspace_bytes(&r);
}

tn_status tn_expand_backward_cpu(tn_op_call *call) {
    tn_reduction r = repeats_of(call);
    r.out = call->din[0]->data;
    tn_reduce_run(&r);
    return TN_OK;
}
