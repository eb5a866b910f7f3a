/* Matrix products over strided operands and broadcast batch axes, brought down to as few GEMM calls as their strides allow. */
#ifndef TENON_MATMUL_PRODUCT_H
#define TENON_MATMUL_PRODUCT_H

#include "../../autograd/op.h"

typedef struct tn_product_operand {
    const void *data;
    int64_t row, column;         /* strides of the matrix, in elements */
    int64_t stride[TN_MAX_AXES]; /* of the batch axes; 0 where broadcast */
} tn_product_operand;

/* c = a b + beta c for every index of the batch axes, and summed, in order, over those whose bit is set in `summed`. */
typedef struct tn_product {
    tn_dtype dtype;
    int axes;
    int64_t size[TN_MAX_AXES];
    uint32_t summed;
    int64_t m, n, k;
    tn_product_operand a, b, c; /* [m,k], [k,n], [m,n]; c has dense rows */
    double beta;
} tn_product;

/* t with its matrix in the last axes; where it has no axis for rows or for columns it has one. The axes before them are laid
 * against the batch axes `size` from the right, like numpy. */
tn_product_operand tn_product_operand_of(const tn_tensor *t, bool has_rows, bool has_columns, int axes, const int64_t *size);
tn_product_operand tn_product_transposed(tn_product_operand operand);
/* The batch axes `size` over which t, with its matrix in its last `matrix_axes` axes, is broadcast. */
uint32_t tn_product_broadcast_axes(const tn_shape *shape, int matrix_axes, int axes, const int64_t *size);

/* Products of dense f32 and f64 tensors need none: known without a look at the product. */
static inline bool tn_product_needs_workspace(const tn_tensor *a, const tn_tensor *b) {
    return a->dtype == TN_BF16 || !tn_is_contiguous(a) || !tn_is_contiguous(b);
}
size_t tn_product_workspace(const tn_product *product, int threads);
tn_status tn_product_run(const tn_product *product, int threads, void *workspace);

#endif
