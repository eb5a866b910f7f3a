#include "matmul_product.h"

#include <string.h>

#include "../../libtensor/bf16.h"
#include "../../libtensor/gemm_cpu.h"
#include "../../libtensor/parallel.h"

/* ---- operands ---- */

tn_product_operand tn_product_operand_of(const tn_tensor *t, bool has_rows, bool has_columns, int axes, const int64_t *size) {
    tn_product_operand operand = { .data = t->data };
    int last = t->axes;
    if (has_columns) operand.column = t->stride[--last];
    if (has_rows) operand.row = t->stride[--last];
    for (int axis = axes - 1; axis >= 0 && last > 0; axis--) {
        last--;
        operand.stride[axis] = t->shape[last] == size[axis] ? t->stride[last] : 0;
    }
    return operand;
}

tn_product_operand tn_product_transposed(tn_product_operand operand) {
    int64_t row = operand.row;
    operand.row = operand.column;
    operand.column = row;
    return operand;
}

uint32_t tn_product_broadcast_axes(const tn_shape *shape, int matrix_axes, int axes, const int64_t *size) {
    uint32_t broadcast = 0;
    int missing = axes - (shape->axes - matrix_axes);
    for (int axis = 0; axis < axes; axis++)
        if (axis < missing || shape->size[axis - missing] != size[axis]) broadcast |= 1u << axis;
    return broadcast;
}

/* ---- fewer, larger products ---- */

static bool is_summed(const tn_product *p, int axis) { return p->summed >> axis & 1; }

static void remove_axis(tn_product *p, int axis) {
    size_t after = (size_t)(p->axes - axis - 1) * sizeof(int64_t);
    memmove(&p->size[axis], &p->size[axis + 1], after);
    tn_product_operand *operands[] = { &p->a, &p->b, &p->c };
    for (int i = 0; i < 3; i++) memmove(&operands[i]->stride[axis], &operands[i]->stride[axis + 1], after);
    uint32_t below = (1u << axis) - 1;
    p->summed = (p->summed & below) | (p->summed >> 1 & ~below);
    p->axes--;
}

/* Two neighbouring axes that every operand walks as one. */
static bool merge_with_next(tn_product *p, int axis) {
    if (axis + 1 >= p->axes || is_summed(p, axis) != is_summed(p, axis + 1)) return false;
    const tn_product_operand *operands[] = { &p->a, &p->b, &p->c };
    for (int i = 0; i < 3; i++)
        if (operands[i]->stride[axis] != operands[i]->stride[axis + 1] * p->size[axis + 1]) return false;
    p->size[axis + 1] *= p->size[axis];
    return true;
}

/* A summed axis that continues both operands' k makes one product with a longer k. */
static bool fold_into_k(tn_product *p, int axis) {
    int64_t a = p->a.stride[axis], b = p->b.stride[axis];
    if (!is_summed(p, axis) || (p->k != 1 && (a != p->k * p->a.column || b != p->k * p->b.row))) return false;
    if (p->k == 1) {
        p->a.column = a;
        p->b.row = b;
    }
    p->k *= p->size[axis];
    return true;
}

/* An axis that b does not have and that continues the rows of a and c makes one product with more rows. */
static bool fold_into_m(tn_product *p, int axis) {
    int64_t a = p->a.stride[axis], c = p->c.stride[axis];
    if (is_summed(p, axis) || p->b.stride[axis] != 0 || (p->m != 1 && (a != p->m * p->a.row || c != p->m * p->c.row))) return false;
    if (p->m == 1) {
        p->a.row = a;
        p->c.row = c;
    }
    p->m *= p->size[axis];
    return true;
}

/* False where c has no elements. */
static bool simplify(tn_product *p) {
    if (p->m == 0 || p->n == 0) return false;
    for (int axis = 0; axis < p->axes;) {
        if (p->size[axis] == 0 && !is_summed(p, axis)) return false;
        if (p->size[axis] == 0) p->k = 0;
        if (p->size[axis] < 2) remove_axis(p, axis);
        else axis++;
    }
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (p->k == 0 && is_summed(p, axis)) remove_axis(p, axis);
        else if (merge_with_next(p, axis) || fold_into_k(p, axis) || fold_into_m(p, axis)) remove_axis(p, axis);
        else continue;
        axis = p->axes;
    }
    return true;
}

/* ---- how it will run ---- */

typedef struct tn_panel {
    bool transposed, packed;
    int64_t leading;
} tn_panel;

/* A matrix as GEMM takes it: dense rows, or dense columns of its transposed, or else a packed copy. */
static tn_panel panel_of(int64_t rows, int64_t columns, const tn_product_operand *operand) {
    if ((columns <= 1 || operand->column == 1) && (rows <= 1 || operand->row >= columns))
        return (tn_panel){ .leading = rows <= 1 ? columns : operand->row };
    if ((rows <= 1 || operand->row == 1) && (columns <= 1 || operand->column >= rows))
        return (tn_panel){ .transposed = true, .leading = columns <= 1 ? rows : operand->column };
    return (tn_panel){ .packed = true, .leading = columns };
}

typedef struct tn_product_plan {
    tn_product p; /* simplified; its axes are run one by one */
    tn_panel a, b;
    bool wide; /* bf16 whose products are summed in f32: everything is packed as f32 and rounded at the end */
    int64_t n_batch, stride_a, stride_b, stride_c; /* the axis that one call runs over */
    size_t at_a, at_b, at_c, bytes;                /* the packed copies in the workspace, behind GEMM's own */
} tn_product_plan;

static void choose_batch_axis(tn_product_plan *plan) {
    tn_product *p = &plan->p;
    int best = -1;
    plan->n_batch = 1;
    for (int axis = 0; axis < p->axes; axis++)
        if (!is_summed(p, axis) && (best < 0 || p->size[axis] > p->size[best])) best = axis;
    if (best < 0 || plan->a.packed || plan->b.packed) return;
    plan->n_batch = p->size[best];
    plan->stride_a = p->a.stride[best];
    plan->stride_b = p->b.stride[best];
    plan->stride_c = p->c.stride[best];
    remove_axis(p, best);
}

static size_t reserve(tn_product_plan *plan, int64_t elements, size_t element) {
    const size_t line = 64;
    size_t at = plan->bytes;
    plan->bytes += ((size_t)elements * element + line - 1) / line * line;
    return at;
}

static bool make_plan(const tn_product *product, int threads, tn_product_plan *plan) {
    *plan = (tn_product_plan){ .p = *product };
    tn_product *p = &plan->p;
    if (!simplify(p)) return false;
    plan->a = panel_of(p->m, p->k, &p->a);
    plan->b = panel_of(p->k, p->n, &p->b);
    plan->wide = p->dtype == TN_BF16 && p->summed;
    if (plan->wide) {
        plan->a = (tn_panel){ .packed = true, .leading = p->k };
        plan->b = (tn_panel){ .packed = true, .leading = p->n };
    }
    choose_batch_axis(plan);
    tn_dtype dtype = plan->wide ? TN_F32 : p->dtype;
    size_t element = tn_dtype_size(dtype);
    reserve(plan, (int64_t)tn_gemm_workspace_bytes(dtype, plan->n_batch, p->m, p->n, p->k, threads), 1);
    if (plan->a.packed) plan->at_a = reserve(plan, p->m * p->k, element);
    if (plan->b.packed) plan->at_b = reserve(plan, p->k * p->n, element);
    if (plan->wide) plan->at_c = reserve(plan, p->m * p->n, element);
    return true;
}

size_t tn_product_workspace(const tn_product *product, int threads) {
    tn_product_plan plan;
    return make_plan(product, threads, &plan) ? plan.bytes : 0;
}

/* ---- packing ---- */

typedef struct tn_packing {
    const char *from;
    char *to;
    int64_t columns, from_row, from_column, to_row;
    tn_dtype from_dtype, to_dtype;
} tn_packing;

static void pack_rows(void *user, int64_t begin, int64_t end) {
    const tn_packing *pack = user;
    size_t from_size = tn_dtype_size(pack->from_dtype), to_size = tn_dtype_size(pack->to_dtype);
    for (int64_t row = begin; row < end; row++) {
        const char *from = pack->from + row * pack->from_row * (int64_t)from_size;
        char *to = pack->to + row * pack->to_row * (int64_t)to_size;
        for (int64_t i = 0; i < pack->columns; i++, from += pack->from_column * (int64_t)from_size, to += to_size) {
            if (pack->from_dtype == pack->to_dtype) memcpy(to, from, to_size);
            else if (pack->to_dtype == TN_F32) *(float *)to = tn_bf16_to_f32(*(const tn_bf16 *)from);
            else *(tn_bf16 *)to = tn_f32_to_bf16(*(const float *)from);
        }
    }
}

static void pack(int64_t rows, const tn_packing *packing, int threads) {
    tn_packing own = *packing;
    tn_parallel_for(rows, 16384 / (own.columns + 1) + 1, pack_rows, &own, threads);
}

/* ---- running ---- */

typedef struct tn_offsets {
    int64_t a, b, c;
} tn_offsets;

/* Moves to index `at` of the summed (or of the other) axes, the last axis fastest. */
static tn_offsets offsets_at(const tn_product *p, bool summed, int64_t at, tn_offsets from) {
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (is_summed(p, axis) != summed) continue;
        int64_t i = at % p->size[axis];
        at /= p->size[axis];
        from.a += i * p->a.stride[axis];
        from.b += i * p->b.stride[axis];
        if (!summed) from.c += i * p->c.stride[axis];
    }
    return from;
}

static int64_t axes_numel(const tn_product *p, bool summed) {
    int64_t numel = 1;
    for (int axis = 0; axis < p->axes; axis++)
        if (is_summed(p, axis) == summed) numel *= p->size[axis];
    return numel;
}

static const void *operand_at(const tn_product_plan *plan, const tn_product_operand *operand, int64_t offset, const tn_panel *panel,
                              int64_t rows, void *copy, int threads) {
    tn_dtype dtype = plan->p.dtype;
    const char *data = (const char *)operand->data + offset * (int64_t)tn_dtype_size(dtype);
    if (!panel->packed) return data;
    pack(rows,
         &(tn_packing){ data, copy, panel->leading, operand->row, operand->column, panel->leading, dtype, plan->wide ? TN_F32 : dtype },
         threads);
    return copy;
}

static void *place_in(char *workspace, size_t at) { return workspace ? workspace + at : NULL; }

static tn_status run_one(const tn_product_plan *plan, tn_offsets at, double beta, int threads, char *workspace) {
    const tn_product *p = &plan->p;
    char *c = (char *)p->c.data + at.c * (int64_t)tn_dtype_size(p->dtype);
    tn_gemm_batch gemm = { .dtype = plan->wide ? TN_F32 : p->dtype,
                           .ta = plan->a.transposed,
                           .tb = plan->b.transposed,
                           .n_batch = plan->n_batch,
                           .m = p->m,
                           .n = p->n,
                           .k = p->k,
                           .alpha = 1,
                           .beta = beta,
                           .a = operand_at(plan, &p->a, at.a, &plan->a, p->m, place_in(workspace, plan->at_a), threads),
                           .b = operand_at(plan, &p->b, at.b, &plan->b, p->k, place_in(workspace, plan->at_b), threads),
                           .c = plan->wide ? place_in(workspace, plan->at_c) : c,
                           .lda = plan->a.leading,
                           .ldb = plan->b.leading,
                           .ldc = plan->wide || p->m == 1 ? p->n : p->c.row,
                           .stride_a = plan->stride_a,
                           .stride_b = plan->stride_b,
                           .stride_c = plan->stride_c,
                           .threads = threads,
                           .workspace = workspace };
    return tn_gemm_batched(&gemm);
}

/* One matrix (or batch of them) of c: every product that is summed into it. */
static tn_status run_sum(const tn_product_plan *plan, tn_offsets at, int threads, char *workspace) {
    const tn_product *p = &plan->p;
    int64_t n_summed = axes_numel(p, true);
    char *c = (char *)p->c.data + at.c * (int64_t)tn_dtype_size(p->dtype);
    tn_packing narrow = { place_in(workspace, plan->at_c), c, p->n, p->n, 1, p->m == 1 ? p->n : p->c.row, TN_F32, TN_BF16 };
    tn_packing widen = { c, place_in(workspace, plan->at_c), p->n, narrow.to_row, 1, p->n, TN_BF16, TN_F32 };
    if (plan->wide && p->beta != 0) pack(p->m, &widen, threads);
    for (int64_t i = 0; i < n_summed; i++) {
        tn_status status = run_one(plan, offsets_at(p, true, i, at), i == 0 ? p->beta : 1, threads, workspace);
        if (status != TN_OK) return status;
    }
    if (plan->wide) pack(p->m, &narrow, threads);
    return TN_OK;
}

tn_status tn_product_run(const tn_product *product, int threads, void *workspace) {
    tn_product_plan plan;
    if (!make_plan(product, threads, &plan)) return TN_OK;
    if (plan.bytes > 0 && !workspace) return TN_ERR_ARGUMENT;
    int64_t n = axes_numel(&plan.p, false);
    for (int64_t i = 0; i < n; i++) {
        tn_status status = run_sum(&plan, offsets_at(&plan.p, false, i, (tn_offsets){ 0 }), threads, workspace);
        if (status != TN_OK) return status;
    }
    return TN_OK;
}
