/* Matrix products over strided operands and broadcast batch axes, brought down to as few GEMM calls as their strides allow. What the
 * products are and how their axes fold is the same on every device; how the rest is run is not. */
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
    tn_product_operand a, b, c; /* [m,k], [k,n], [m,n]; c has dense rows, or dense columns */
    double beta;
    const void *bias; /* CUDA: [n], added to every row of c, and the larger of the result and 0 */
    bool relu;
} tn_product;

/* t with its matrix in the last axes; where it has no axis for rows or for columns it has one. The axes before them are laid
 * against the batch axes `size` from the right, like numpy. */
tn_product_operand tn_product_operand_of(const tn_tensor *t, bool has_rows, bool has_columns, int axes, const int64_t *size);
tn_product_operand tn_product_transposed(tn_product_operand operand);
/* The batch axes `size` over which t, with its matrix in its last `matrix_axes` axes, is broadcast. */
uint32_t tn_product_broadcast_axes(const tn_shape *shape, int matrix_axes, int axes, const int64_t *size);

/* ---- fewer, larger products ---- */

/* Folds batch axes into each other, into k and into m, as far as the strides allow. False where c has no elements. */
bool tn_product_simplify(tn_product *product);
void tn_product_remove_axis(tn_product *product, int axis);
static inline bool tn_product_is_summed(const tn_product *product, int axis) { return product->summed >> axis & 1; }

/* A matrix as GEMM takes it: dense rows, or dense columns of its transposed; any other must be copied. */
typedef struct tn_panel {
    bool transposed, packed;
    int64_t leading;
} tn_panel;
tn_panel tn_panel_of(int64_t rows, int64_t columns, const tn_product_operand *operand);

/* The longest axis that is not summed, for a batched call; -1: there is none. */
int tn_product_longest_axis(const tn_product *product);
/* Elements of the axes that are summed, or of the others. */
int64_t tn_product_axes_numel(const tn_product *product, bool summed);

typedef struct tn_product_offsets {
    int64_t a, b, c;
} tn_product_offsets;

/* Moves to index `at` of the summed (or of the other) axes, the last axis fastest. */
tn_product_offsets tn_product_offsets_at(const tn_product *product, bool summed, int64_t at, tn_product_offsets from);

/* ---- running ---- */

/* Products of dense f32 and f64 tensors need none on the CPU: known without a look at the product. */
static inline bool tn_product_needs_workspace_cpu(const tn_tensor *a, const tn_tensor *b) {
    return a->dtype == TN_BF16 || !tn_is_contiguous(a) || !tn_is_contiguous(b);
}
size_t tn_product_workspace_cpu(const tn_product *product, int threads);
tn_status tn_product_run_cpu(const tn_product *product, int threads, void *workspace);

size_t tn_product_workspace_cuda(const tn_product *product);
tn_status tn_product_run_cuda(const tn_product *product, tn_device *device, void *workspace, void *stream);

#endif
