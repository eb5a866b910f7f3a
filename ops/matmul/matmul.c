#include "matmul_internal.h"

#include "../family.h"
#include "../op_support.h"

static int batch_axes_of(const tn_tensor *t) { return t->axes > 2 ? t->axes - 2 : 0; }

/* The batch axes of o: those of a and b laid over each other from the right. */
static bool broadcast_batch(tn_op_call *call, tn_shape *o) {
    const tn_tensor *a = call->in[0], *b = call->in[1];
    int n_a = batch_axes_of(a), n_b = batch_axes_of(b);
    o->axes = n_a > n_b ? n_a : n_b;
    for (int axis = 0; axis < o->axes; axis++) {
        int at_a = axis - (o->axes - n_a), at_b = axis - (o->axes - n_b);
        int64_t size_a = at_a >= 0 ? a->shape[at_a] : 1, size_b = at_b >= 0 ? b->shape[at_b] : 1;
        TN_WANT(size_a == size_b || size_a == 1 || size_b == 1, call, TN_ERR_SHAPE, "the batch axes do not broadcast (%lld beside %lld)",
                (long long)size_a, (long long)size_b);
        o->size[axis] = size_a == 1 ? size_b : size_a;
    }
    return true;
}

static bool matmul_check(tn_op_call *call) {
    const tn_tensor *a = call->in[0], *b = call->in[1];
    TN_WANT(a->axes >= 1 && b->axes >= 1, call, TN_ERR_SHAPE, "wanted a and b with at least one axis each");
    int64_t k_a = a->shape[a->axes - 1], k_b = b->shape[b->axes > 1 ? b->axes - 2 : 0];
    TN_WANT(k_a == k_b, call, TN_ERR_SHAPE, "wanted a [.., m, k] and b [.., k, n], but k is %lld in a and %lld in b", (long long)k_a,
            (long long)k_b);
    tn_spec *o = &call->out_spec[0];
    o->dtype = a->dtype;
    if (!broadcast_batch(call, &o->shape)) return false;
    if (a->axes > 1) o->shape.size[o->shape.axes++] = a->shape[a->axes - 2];
    if (b->axes > 1) o->shape.size[o->shape.axes++] = b->shape[b->axes - 1];
    call->save_in = (tn_wants(call, 0) ? 2 : 0) | (tn_wants(call, 1) ? 1 : 0);
    return true;
}

static int64_t matmul_saved_bytes(const tn_op_call *call) {
    return (tn_wants(call, 0) ? (int64_t)tn_bytes(call->in[1]) : 0) + (tn_wants(call, 1) ? (int64_t)tn_bytes(call->in[0]) : 0);
}

/* Forward reads a and b and writes o; backward reads do, a and b and writes da and db. */
static int64_t matmul_floor_bytes(const tn_op_call *call, bool backward) {
    return tn_call_in_bytes(call) * (backward ? 2 : 1) + tn_call_out_bytes(call);
}

static const tn_input_def matmul_inputs[] = {
    { .name = "a", .flags = TN_INPUT_STRIDED, .dtypes = TN_FLOATS, .doc = "[.., m, k]; [k] is one row" },
    { .name = "b", .flags = TN_INPUT_STRIDED, .doc = "[.., k, n]; [k] is one column" },
};
static const tn_output_def matmul_outputs[] = { { "o", "[.., m, n]" } };

static const tn_op_def matmul_def = {
    .name = "matmul",
    .family = "matmul",
    .doc = "matrix product with broadcast batch axes",
    .flags = TN_OP_THREADS_MATTER | TN_OP_STRIDED_DOUT | TN_OP_TRANSPOSED_DIN,
    .inputs = matmul_inputs,
    .n_inputs = TN_COUNT(matmul_inputs),
    .outputs = matmul_outputs,
    .n_outputs = TN_COUNT(matmul_outputs),
    .samples = tn_matmul_samples,
    .check = matmul_check,
    .forward[TN_DEVICE_CPU] = tn_matmul_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_matmul_backward_cpu,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_matmul_workspace_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_matmul_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_matmul_backward_cuda),
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_matmul_workspace_cuda),
    .saved_bytes = matmul_saved_bytes,
    .floor_bytes = matmul_floor_bytes,
};

static const tn_op_def *const matmul_ops[] = { &matmul_def, &tn_linear_def };
const tn_op_family tn_family_matmul = { matmul_ops, TN_COUNT(matmul_ops) };

tn_tensor *tn_matmul(tn_tensor *a, tn_tensor *b) {
    tn_tensor *o, *in[] = { a, b };
    return tn_apply(&matmul_def, in, TN_COUNT(in), NULL, &o);
}
