#include "matmul_internal.h"

/* The two gradients are made one after the other in the same scratch. */
size_t tn_matmul_workspace_cpu(const tn_op_call *call, bool backward) {
    int threads = tn_threads(call->cx);
    const tn_tensor *a = call->in[0] ? call->in[0] : call->in[1], *b = call->in[1] ? call->in[1] : call->in[0];
    bool strided = backward && (call->transposed || !tn_is_contiguous(call->dout[0]));
    if (!strided && !tn_product_needs_workspace_cpu(a, b)) return 0;
    if (!backward) {
        tn_product product = tn_matmul_product(call);
        return tn_product_workspace_cpu(&product, threads);
    }
    size_t most = 0;
    for (int i = 0; i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = tn_matmul_gradient_product(call, i);
        size_t bytes = tn_product_workspace_cpu(&product, threads);
        if (bytes > most) most = bytes;
    }
    return most;
}

tn_status tn_matmul_forward_cpu(tn_op_call *call) {
    tn_product product = tn_matmul_product(call);
    return tn_product_run_cpu(&product, call->threads, call->workspace);
}

tn_status tn_matmul_backward_cpu(tn_op_call *call) {
    tn_status status = TN_OK;
    for (int i = 0; status == TN_OK && i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = tn_matmul_gradient_product(call, i);
        status = tn_product_run_cpu(&product, call->threads, call->workspace);
    }
    return status;
}
