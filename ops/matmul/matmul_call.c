/* Which products matmul and linear are, forward and backward, on every device. */
#include "matmul_internal.h"

/* ---- matmul ---- */

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

tn_product tn_matmul_product(const tn_op_call *call) {
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

tn_product tn_matmul_gradient_product(const tn_op_call *call, int input) { return input == 0 ? a_gradient(call) : b_gradient(call); }

/* ---- linear ---- */

static tn_product rows_product(const tn_tensor *rows) {
    tn_product product = { .dtype = rows->dtype, .axes = rows->axes > 2 ? rows->axes - 2 : 0 };
    for (int axis = 0; axis < product.axes; axis++) product.size[axis] = rows->shape[axis];
    return product;
}

/* A tensor [.., features] as [.., rows, features]. */
static tn_product_operand rows_of(const tn_tensor *t, const tn_product *product) {
    return tn_product_operand_of(t, t->axes > 1, true, product->axes, product->size);
}

static int64_t row_axis_size(const tn_tensor *t) { return t->axes > 1 ? t->shape[t->axes - 2] : 1; }

tn_product tn_linear_product(const tn_op_call *call, const tn_tensor *sum) {
    const tn_tensor *x = call->in[0], *weight = call->in[1];
    tn_product product = rows_product(x);
    product.m = row_axis_size(x);
    product.n = weight->shape[0];
    product.k = weight->shape[1];
    product.a = rows_of(x, &product);
    product.b = tn_product_transposed(tn_product_operand_of(weight, true, true, 0, NULL));
    product.c = rows_of(sum, &product);
    return product;
}

/* dx = dsum weight */
static tn_product linear_x_gradient(const tn_op_call *call, const void *dsum) {
    const tn_tensor *dout = call->dout[0], *weight = call->in[1];
    tn_product product = rows_product(dout);
    product.m = row_axis_size(dout);
    product.n = weight->shape[1];
    product.k = weight->shape[0];
    product.a = rows_of(dout, &product);
    product.a.data = dsum;
    product.b = tn_product_operand_of(weight, true, true, 0, NULL);
    product.c = rows_of(call->din[0], &product);
    return product;
}

/* dweight = dsum' x, summed over all axes before the rows too */
static tn_product linear_weight_gradient(const tn_op_call *call, const void *dsum) {
    const tn_tensor *dout = call->dout[0], *x = call->in[0];
    tn_product product = rows_product(dout);
    product.m = call->din[1]->shape[0];
    product.n = call->din[1]->shape[1];
    product.k = row_axis_size(dout);
    product.a = tn_product_transposed(rows_of(dout, &product));
    product.a.data = dsum;
    product.b = rows_of(x, &product);
    product.c = tn_product_operand_of(call->din[1], true, true, 0, NULL);
    product.summed = (1u << product.axes) - 1;
    return product;
}

tn_product tn_linear_gradient_product(const tn_op_call *call, int input, const void *dsum) {
    return input == 0 ? linear_x_gradient(call, dsum) : linear_weight_gradient(call, dsum);
}
