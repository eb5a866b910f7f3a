/* matmul and linear on CUDA: which products and kernels a call is. */
#include "../../libtensor/cuda_primitives.h"
#include "../op_support.h"
#include "matmul_internal.h"

/* ---- matmul ---- */

/* The two gradients are made one after the other in the same scratch. */
size_t tn_matmul_workspace_cuda(const tn_op_call *call, bool backward) {
    if (!backward) {
        tn_product product = tn_matmul_product(call);
        return tn_product_workspace_cuda(&product);
    }
    size_t most = 0;
    for (int i = 0; i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = tn_matmul_gradient_product(call, i);
        size_t bytes = tn_product_workspace_cuda(&product);
        if (bytes > most) most = bytes;
    }
    return most;
}

tn_status tn_matmul_forward_cuda(tn_op_call *call) {
    tn_product product = tn_matmul_product(call);
    return tn_product_run_cuda(&product, call->device, call->workspace, call->stream);
}

tn_status tn_matmul_backward_cuda(tn_op_call *call) {
    tn_status status = TN_OK;
    for (int i = 0; status == TN_OK && i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = tn_matmul_gradient_product(call, i);
        status = tn_product_run_cuda(&product, call->device, call->workspace, call->stream);
    }
    return status;
}

/* ---- linear, forward ---- */

/* What backward reads of the sum before the activation, if anything. */
static tn_tensor *sum_of(const tn_op_call *call) {
    const tn_linear_args *args = call->args;
    return tn_linear_saves_sum(args->act) && call->aux[0] ? call->aux[0] : call->out[0];
}

/* Every row of `sum` := bias. */
static tn_status put_bias(const tn_op_call *call, tn_tensor *sum, const tn_tensor *bias) {
    tn_tensor rows = *sum;
    rows.data = bias->data;
    for (int axis = 0; axis < rows.axes; axis++) rows.stride[axis] = axis == rows.axes - 1 ? bias->stride[0] : 0;
    return tn_cuda_said(call->device, tn_cuda_copy(sum, &rows, call->stream), "linear bias");
}

/* sum = x weight' + bias, where GEMM adds the bias to its sum before it rounds, and cuts at 0, if it is `fused`; else the bias is put into
 * the sum first. *relu: o is done. */
static tn_status make_sum(const tn_op_call *call, tn_tensor *sum, bool fused, bool *relu) {
    const tn_linear_args *args = call->args;
    const tn_tensor *bias = call->in[2];
    tn_product product = tn_linear_product(call, sum);
    tn_status status = TN_OK;
    fused = fused && product.k > 0;
    *relu = product.relu = fused && args->act == TN_RELU;
    if (bias && fused && (uintptr_t)bias->data % 16 == 0) {
        product.bias = bias->data;
    } else if (bias) {
        product.beta = 1;
        status = put_bias(call, sum, bias);
    }
    return status == TN_OK ? tn_product_run_cuda(&product, call->device, call->workspace, call->stream) : status;
}

tn_status tn_linear_forward_cuda(tn_op_call *call) {
    const tn_linear_args *args = call->args;
    tn_tensor *o = call->out[0], *sum = sum_of(call);
    bool relu, fused = o->dtype != TN_F64 && (call->in[2] || args->act == TN_RELU);
    if (o->numel == 0) return TN_OK;
    tn_status status = make_sum(call, sum, fused, &relu);
    if (status == TN_ERR_UNSUPPORTED && fused) status = make_sum(call, sum, false, &relu); /* not every product has such an epilogue */
    if (status != TN_OK || args->act == TN_NONE || relu) return status;
    return tn_linear_activate_cuda(call, args->act, sum, o);
}

/* ---- linear, backward ---- */

/* Backward's scratch: dsum, the parts of dbias, and what the products need, one after the other. */
typedef struct tn_linear_scratch {
    size_t dsum, parts, product;
} tn_linear_scratch;

static size_t whole_lines(size_t bytes) { return (bytes + 511) / 512 * 512; }

static int64_t row_length(const tn_tensor *dout) { return dout->shape[dout->axes - 1]; }

static int64_t row_count(const tn_tensor *dout) {
    int64_t rows = 1;
    for (int axis = 0; axis < dout->axes - 1; axis++) rows *= dout->shape[axis];
    return rows;
}

static tn_linear_scratch backward_scratch(const tn_op_call *call) {
    const tn_linear_args *args = call->args;
    const tn_tensor *dout = call->dout[0];
    tn_linear_scratch scratch = { 0 };
    if (args->act != TN_NONE) scratch.dsum = whole_lines(tn_bytes(dout));
    if (call->din[2]) scratch.parts = whole_lines(tn_linear_parts_bytes(dout->dtype, row_count(dout), row_length(dout)));
    for (int i = 0; i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = tn_linear_gradient_product(call, i, dout->data);
        size_t bytes = tn_product_workspace_cuda(&product);
        if (bytes > scratch.product) scratch.product = bytes;
    }
    return scratch;
}

size_t tn_linear_workspace_cuda(const tn_op_call *call, bool backward) {
    if (backward) {
        tn_linear_scratch scratch = backward_scratch(call);
        return scratch.dsum + scratch.parts + scratch.product;
    }
    tn_product product = tn_linear_product(call, sum_of(call));
    return tn_product_workspace_cuda(&product);
}

tn_status tn_linear_backward_cuda(tn_op_call *call) {
    const tn_linear_args *args = call->args;
    const tn_tensor *dout = call->dout[0];
    tn_linear_scratch scratch = backward_scratch(call);
    char *workspace = call->workspace;
    tn_linear_slopes slopes = { .act = args->act, .rows = row_count(dout), .n = row_length(dout), .dout = dout, .dbias = call->din[2] };
    const void *dsum = dout->data;
    if (args->act != TN_NONE) {
        slopes.saved = tn_linear_saves_sum(args->act) ? call->aux[0]->data : call->out[0]->data;
        dsum = slopes.dsum = workspace;
    }
    if (scratch.parts) slopes.parts = workspace + scratch.dsum;
    tn_status status = slopes.dsum || slopes.dbias ? tn_linear_slopes_cuda(call, &slopes) : TN_OK;
    void *for_product = scratch.product ? workspace + scratch.dsum + scratch.parts : NULL;
    for (int i = 0; status == TN_OK && i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = tn_linear_gradient_product(call, i, dsum);
        status = tn_product_run_cuda(&product, call->device, for_product, call->stream);
    }
    return status;
}
