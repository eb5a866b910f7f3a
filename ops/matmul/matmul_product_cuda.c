/* Products on CUDA: cuBLASLt on the operands as they lie where that is possible, else on dense copies of them.
 *
 * A launch costs microseconds and a copy little beside a product, so an operand is copied whole, all matrices at once, and laid out so
 * that the axes fold: a as [own batch axes][m][summed axes][k], b as [own batch axes][summed axes][k][n]. Every sum over batch axes so
 * becomes a longer k of one call, is made in f32 (f64) inside of it, and rounded once. */
#include "../../libtensor/cuda_primitives.h"
#include "../../libtensor/gemm_cuda.h"
#include "matmul_product.h"

#define MOST_CALLS 16 /* where more would be left, copying is worth it too */
#define MOST_ROUNDS 3 /* a copy of one operand can let axes fold that make the other one need a copy */
#define ALIGNMENT 512

typedef struct tn_product_copy {
    bool wanted;
    tn_tensor from, to; /* views; their data is known when the product runs */
    size_t at;          /* in the workspace */
} tn_product_copy;

typedef struct tn_product_plan {
    tn_product p; /* simplified; its axes are run one by one */
    tn_product_copy copy_a, copy_b;
    tn_panel a, b;
    int64_t n_batch, stride_a, stride_b, stride_c; /* the axis that one call runs over */
    size_t gemm_bytes, bytes;
} tn_product_plan;

/* ---- which operands are copied ---- */

/* The axes that a copy of the operand has: its own, and those that are summed. */
static bool is_copied(const tn_product *p, const tn_product_operand *operand, int axis) {
    return tn_product_is_summed(p, axis) || operand->stride[axis] != 0;
}

/* The strides of a copy. `left` is the operand a: there the rows stand before the summed axes. */
static tn_product_operand dense_copy(const tn_product *p, const tn_product_operand *operand, bool left) {
    tn_product_operand copy = { .column = 1, .row = p->n };
    int64_t step = left ? p->k : p->k * p->n;
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (!tn_product_is_summed(p, axis)) continue;
        copy.stride[axis] = step;
        step *= p->size[axis];
    }
    if (left) {
        copy.row = step;
        step *= p->m;
    }
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (tn_product_is_summed(p, axis) || operand->stride[axis] == 0) continue;
        copy.stride[axis] = step;
        step *= p->size[axis];
    }
    return copy;
}

/* Do the summed axes lie before k as if they were its outer part? */
static bool summed_continue_k(const tn_product *p, const tn_product_operand *operand, int64_t k_stride) {
    bool any = p->k > 1;
    int64_t step = p->k * k_stride;
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (!tn_product_is_summed(p, axis)) continue;
        if (operand->stride[axis] == 0 || (any && operand->stride[axis] != step)) return false;
        any = true;
        step = operand->stride[axis] * p->size[axis];
    }
    return true;
}

static bool is_dense(const tn_product *p, const tn_product_operand *operand, const tn_product_operand *dense) {
    for (int axis = 0; axis < p->axes; axis++)
        if (operand->stride[axis] != dense->stride[axis]) return false;
    return true;
}

static bool many_calls(const tn_product *p) {
    int longest = tn_product_longest_axis(p);
    return longest >= 0 && tn_product_axes_numel(p, false) / p->size[longest] > MOST_CALLS;
}

static bool needs_copy(const tn_product *p, bool left, const tn_product_operand *dense) {
    const tn_product_operand *operand = left ? &p->a : &p->b;
    tn_panel panel = left ? tn_panel_of(p->m, p->k, operand) : tn_panel_of(p->k, p->n, operand);
    return panel.packed || !summed_continue_k(p, operand, left ? operand->column : operand->row) ||
           (many_calls(p) && !is_dense(p, operand, dense));
}

static void add_axis(tn_product_copy *copy, int64_t size, int64_t from, int64_t to) {
    int at = copy->from.axes++;
    copy->from.shape[at] = size;
    copy->from.stride[at] = from;
    copy->to.stride[at] = to;
    copy->from.numel *= size;
}

static void add_axes(const tn_product *p, tn_product_copy *copy, const tn_product_operand *operand, const tn_product_operand *dense,
                     bool summed) {
    for (int axis = 0; axis < p->axes; axis++)
        if (tn_product_is_summed(p, axis) == summed && is_copied(p, operand, axis))
            add_axis(copy, p->size[axis], operand->stride[axis], dense->stride[axis]);
}

/* From here on the operand is its copy. */
static void plan_copy(tn_product_plan *plan, bool left, const tn_product_operand *dense) {
    tn_product *p = &plan->p;
    tn_product_copy *copy = left ? &plan->copy_a : &plan->copy_b;
    tn_product_operand *operand = left ? &p->a : &p->b;
    copy->wanted = true;
    copy->from = (tn_tensor){ .data = (void *)operand->data, .dtype = p->dtype, .numel = 1 };
    add_axes(p, copy, operand, dense, false);
    if (left) add_axis(copy, p->m, operand->row, dense->row);
    add_axes(p, copy, operand, dense, true);
    if (!left) add_axis(copy, p->k, operand->row, dense->row);
    add_axis(copy, left ? p->k : p->n, operand->column, dense->column);
    copy->to.dtype = copy->from.dtype;
    copy->to.axes = copy->from.axes;
    copy->to.numel = copy->from.numel;
    for (int axis = 0; axis < copy->to.axes; axis++) copy->to.shape[axis] = copy->from.shape[axis];
    copy->at = plan->bytes;
    plan->bytes += ((size_t)copy->from.numel * tn_dtype_size(p->dtype) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    *operand = *dense;
}

/* ---- the plan ---- */

static bool copy_and_simplify(tn_product_plan *plan) {
    tn_product *p = &plan->p;
    for (int round = 0; round < MOST_ROUNDS; round++) {
        if (!tn_product_simplify(p)) return false;
        if (p->k == 0) return true;
        tn_product_operand a = dense_copy(p, &p->a, true), b = dense_copy(p, &p->b, false);
        bool copy_a = !plan->copy_a.wanted && needs_copy(p, true, &a), copy_b = !plan->copy_b.wanted && needs_copy(p, false, &b);
        if (copy_a) plan_copy(plan, true, &a);
        if (copy_b) plan_copy(plan, false, &b);
        if (!copy_a && !copy_b) return true;
    }
    return tn_product_simplify(p);
}

/* False where c has no elements. */
static bool make_plan(const tn_product *product, tn_product_plan *plan) {
    *plan = (tn_product_plan){ .p = *product, .n_batch = 1 };
    tn_product *p = &plan->p;
    if (!copy_and_simplify(plan)) return false;
    plan->a = tn_panel_of(p->m, p->k, &p->a);
    plan->b = tn_panel_of(p->k, p->n, &p->b);
    int longest = tn_product_longest_axis(p);
    if (longest >= 0) {
        plan->n_batch = p->size[longest];
        plan->stride_a = p->a.stride[longest];
        plan->stride_b = p->b.stride[longest];
        plan->stride_c = p->c.stride[longest];
        tn_product_remove_axis(p, longest);
    }
    plan->gemm_bytes = p->k > 0 ? tn_gemm_cuda_workspace_bytes(plan->n_batch, p->m, p->n) : 0;
    return true;
}

/* The copies come first, then what GEMM wants. */
size_t tn_product_workspace_cuda(const tn_product *product) {
    tn_product_plan plan;
    return make_plan(product, &plan) ? plan.bytes + plan.gemm_bytes : 0;
}

/* ---- running ---- */

static tn_status run_copy(tn_product_copy *copy, tn_product_operand *operand, tn_device *device, char *workspace, void *stream) {
    if (!copy->wanted) return TN_OK;
    operand->data = copy->to.data = workspace + copy->at;
    return tn_cuda_said(device, tn_cuda_copy(&copy->to, &copy->from, stream), "copy of an operand");
}

static tn_gemm_cuda_product gemm_of(const tn_product_plan *plan, tn_product_offsets at) {
    const tn_product *p = &plan->p;
    const int64_t size = (int64_t)tn_dtype_size(p->dtype);
    return (tn_gemm_cuda_product){ .dtype = p->dtype,
                                   .c_dtype = p->dtype,
                                   .transpose_a = plan->a.transposed,
                                   .transpose_b = plan->b.transposed,
                                   .relu = p->relu,
                                   .m = p->m,
                                   .n = p->n,
                                   .k = p->k,
                                   .lda = plan->a.leading,
                                   .ldb = plan->b.leading,
                                   .ldc = p->m == 1 ? p->n : p->c.row,
                                   .n_batch = plan->n_batch,
                                   .batch_a = plan->stride_a,
                                   .batch_b = plan->stride_b,
                                   .batch_c = plan->stride_c,
                                   .a = (const char *)p->a.data + at.a * size,
                                   .b = (const char *)p->b.data + at.b * size,
                                   .bias = p->bias,
                                   .c = (char *)p->c.data + at.c * size,
                                   .alpha = 1,
                                   .beta = p->beta };
}

tn_status tn_product_run_cuda(const tn_product *product, tn_device *device, void *workspace, void *stream) {
    tn_product_plan plan;
    if (!make_plan(product, &plan)) return TN_OK;
    if (plan.p.k > 0 && (plan.p.summed || plan.a.packed || plan.b.packed)) return TN_ERR_UNSUPPORTED; /* what make_plan rules out */
    tn_status status = run_copy(&plan.copy_a, &plan.p.a, device, workspace, stream);
    if (status == TN_OK) status = run_copy(&plan.copy_b, &plan.p.b, device, workspace, stream);
    void *for_gemm = workspace ? (char *)workspace + plan.bytes : NULL;
    int64_t n_calls = tn_product_axes_numel(&plan.p, false);
    for (int64_t i = 0; status == TN_OK && i < n_calls; i++) {
        tn_gemm_cuda_product gemm = gemm_of(&plan, tn_product_offsets_at(&plan.p, false, i, (tn_product_offsets){ 0 }));
        status = tn_gemm_cuda(device, &gemm, for_gemm, plan.gemm_bytes, stream);
    }
    return status;
}
