/* matmul on the CPU: which products forward and backward are. */
#include "../op_support.h"
#include "matmul_internal.h"
#include "matmul_product.h"

/* What a, b and o look like together, from tensors or from the tape's notes of them. */
typedef struct tn_matmul_shape {
    int axes; /* of the batch */
    int64_t size[TN_MAX_AXES];
    int64_t m, n, k;
    bool rows, columns; /* a has an axis for rows, b one for columns */
} tn_matmul_shape;

static tn_matmul_shape matmul_shape(const tn_shape *a, const tn_shape *b, const tn_shape *o) {
    tn_matmul_shape shape = { .rows = a->axes > 1, .columns = b->axes > 1, .k = a->size[a->axes - 1] };
    shape.m = shape.rows ? a->size[a->axes - 2] : 1;
    shape.n = shape.columns ? b->size[b->axes - 1] : 1;
    shape.axes = o->axes - shape.rows - shape.columns;
    for (int axis = 0; axis < shape.axes; axis++) shape.size[axis] = o->size[axis];
    return shape;
}

static tn_product product_of(const tn_matmul_shape *shape, tn_dtype dtype) {
    tn_product product = { .dtype = dtype, .axes = shape->axes };
    for (int axis = 0; axis < shape->axes; axis++) product.size[axis] = shape->size[axis];
    return product;
}

static tn_product_operand operand_a(const tn_tensor *t, const tn_matmul_shape *s) {
    return tn_product_operand_of(t, s->rows, true, s->axes, s->size);
}
static tn_product_operand operand_b(const tn_tensor *t, const tn_matmul_shape *s) {
    return tn_product_operand_of(t, true, s->columns, s->axes, s->size);
}
static tn_product_operand operand_o(const tn_tensor *t, const tn_matmul_shape *s) {
    return tn_product_operand_of(t, s->rows, s->columns, s->axes, s->size);
}

static tn_product forward_product(const tn_op_call *call) {
    tn_shape a = tn_shape_of(call->in[0]), b = tn_shape_of(call->in[1]), o = tn_shape_of(call->out[0]);
    tn_matmul_shape s = matmul_shape(&a, &b, &o);
    tn_product product = product_of(&s, call->in[0]->dtype);
    product.m = s.m;
    product.n = s.n;
    product.k = s.k;
    product.a = operand_a(call->in[0], &s);
    product.b = operand_b(call->in[1], &s);
    product.c = operand_o(call->out[0], &s);
    return product;
}

static tn_matmul_shape backward_shape(const tn_op_call *call) {
    tn_shape o = tn_shape_of(call->dout[0]);
    return matmul_shape(&call->in_spec[0].shape, &call->in_spec[1].shape, &o);
}

/* da = do b' */
static tn_product a_gradient(const tn_op_call *call) {
    tn_matmul_shape s = backward_shape(call);
    tn_product product = product_of(&s, call->in_spec[0].dtype);
    product.m = s.m;
    product.n = s.k;
    product.k = s.n;
    product.a = operand_o(call->dout[0], &s);
    product.b = tn_product_transposed(operand_b(call->in[1], &s));
    product.c = operand_a(call->din[0], &s);
    product.summed = tn_product_broadcast_axes(&call->in_spec[0].shape, s.rows ? 2 : 1, s.axes, s.size);
    return product;
}

/* db = a' do */
static tn_product b_gradient(const tn_op_call *call) {
    tn_matmul_shape s = backward_shape(call);
    tn_product product = product_of(&s, call->in_spec[0].dtype);
    product.m = s.k;
    product.n = s.n;
    product.k = s.m;
    product.a = tn_product_transposed(operand_a(call->in[0], &s));
    product.b = operand_o(call->dout[0], &s);
    product.c = operand_b(call->din[1], &s);
    product.summed = tn_product_broadcast_axes(&call->in_spec[1].shape, s.columns ? 2 : 1, s.axes, s.size);
    return product;
}

/* The two gradients are made one after the other in the same scratch. */
size_t tn_matmul_workspace_cpu(const tn_op_call *call, bool backward) {
    int threads = tn_threads(call->cx);
    const tn_tensor *a = call->in[0], *b = call->in[1];
    if (!tn_product_needs_workspace(a ? a : b, b ? b : a)) return 0;
    if (!backward) {
        tn_product product = forward_product(call);
        return tn_product_workspace(&product, threads);
    }
    size_t most = 0;
    for (int i = 0; i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = i == 0 ? a_gradient(call) : b_gradient(call);
        size_t bytes = tn_product_workspace(&product, threads);
        if (bytes > most) most = bytes;
    }
    return most;
}

tn_status tn_matmul_forward_cpu(tn_op_call *call) {
    tn_product product = forward_product(call);
    return tn_product_run(&product, call->threads, call->workspace);
}

tn_status tn_matmul_backward_cpu(tn_op_call *call) {
    tn_status status = TN_OK;
    for (int i = 0; status == TN_OK && i < 2; i++) {
        if (!call->din[i]) continue;
        tn_product product = i == 0 ? a_gradient(call) : b_gradient(call);
        status = tn_product_run(&product, call->threads, call->workspace);
    }
    return status;
}
