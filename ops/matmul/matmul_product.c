#include "matmul_product.h"

#include <string.h>

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

void tn_product_remove_axis(tn_product *p, int axis) {
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
    if (axis + 1 >= p->axes || tn_product_is_summed(p, axis) != tn_product_is_summed(p, axis + 1)) return false;
    const tn_product_operand *operands[] = { &p->a, &p->b, &p->c };
    for (int i = 0; i < 3; i++)
        if (operands[i]->stride[axis] != operands[i]->stride[axis + 1] * p->size[axis + 1]) return false;
    p->size[axis + 1] *= p->size[axis];
    return true;
}

/* A summed axis that continues both operands' k makes one product with a longer k. */
static bool fold_into_k(tn_product *p, int axis) {
    int64_t a = p->a.stride[axis], b = p->b.stride[axis];
    if (!tn_product_is_summed(p, axis) || (p->k != 1 && (a != p->k * p->a.column || b != p->k * p->b.row))) return false;
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
    if (tn_product_is_summed(p, axis) || p->b.stride[axis] != 0 || (p->m != 1 && (a != p->m * p->a.row || c != p->m * p->c.row)))
        return false;
    if (p->m == 1) {
        p->a.row = a;
        p->c.row = c;
    }
    p->m *= p->size[axis];
    return true;
}

/* c' = b' a' where c has dense columns: GEMM writes dense rows. */
static void give_c_dense_rows(tn_product *p) {
    if (p->c.column == 1 || p->n < 2) return;
    tn_product_operand a = p->a;
    int64_t m = p->m;
    p->a = tn_product_transposed(p->b);
    p->b = tn_product_transposed(a);
    p->c = tn_product_transposed(p->c);
    p->m = p->n;
    p->n = m;
}

bool tn_product_simplify(tn_product *p) {
    if (p->m == 0 || p->n == 0) return false;
    give_c_dense_rows(p);
    for (int axis = 0; axis < p->axes;) {
        if (p->size[axis] == 0 && !tn_product_is_summed(p, axis)) return false;
        if (p->size[axis] == 0) p->k = 0;
        if (p->size[axis] < 2) tn_product_remove_axis(p, axis);
        else axis++;
    }
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (p->k == 0 && tn_product_is_summed(p, axis)) tn_product_remove_axis(p, axis);
        else if (merge_with_next(p, axis) || fold_into_k(p, axis) || fold_into_m(p, axis)) tn_product_remove_axis(p, axis);
        else continue;
        axis = p->axes;
    }
    return true;
}

/* ---- what is left ---- */

tn_panel tn_panel_of(int64_t rows, int64_t columns, const tn_product_operand *operand) {
    if ((columns <= 1 || operand->column == 1) && (rows <= 1 || operand->row >= columns))
        return (tn_panel){ .leading = rows <= 1 ? columns : operand->row };
    if ((rows <= 1 || operand->row == 1) && (columns <= 1 || operand->column >= rows))
        return (tn_panel){ .transposed = true, .leading = columns <= 1 ? rows : operand->column };
    return (tn_panel){ .packed = true, .leading = columns };
}

int tn_product_longest_axis(const tn_product *p) {
    int longest = -1;
    for (int axis = 0; axis < p->axes; axis++)
        if (!tn_product_is_summed(p, axis) && (longest < 0 || p->size[axis] > p->size[longest])) longest = axis;
    return longest;
}

tn_product_offsets tn_product_offsets_at(const tn_product *p, bool summed, int64_t at, tn_product_offsets from) {
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (tn_product_is_summed(p, axis) != summed) continue;
        int64_t i = at % p->size[axis];
        at /= p->size[axis];
        from.a += i * p->a.stride[axis];
        from.b += i * p->b.stride[axis];
        if (!summed) from.c += i * p->c.stride[axis];
    }
    return from;
}

int64_t tn_product_axes_numel(const tn_product *p, bool summed) {
    int64_t numel = 1;
    for (int axis = 0; axis < p->axes; axis++)
        if (tn_product_is_summed(p, axis) == summed) numel *= p->size[axis];
    return numel;
}
