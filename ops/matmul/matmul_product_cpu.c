/* Products on the CPU: operands that GEMM can't read are packed matrix by matrix. */
#include <string.h>

#include "../../libtensor/bf16.h"
#include "../../libtensor/gemm_cpu.h"
#include "../../libtensor/parallel.h"
#include "matmul_product.h"

/* ---- how it will run ---- */

typedef struct tn_product_plan {
    tn_product p; /* simplified; its axes are run one by one */
    tn_panel a, b;
    bool wide; /* bf16 whose products are summed in f32: everything is packed as f32 and rounded at the end */
    int64_t n_batch, stride_a, stride_b, stride_c; /* the axis that one call runs over */
    size_t at_a, at_b, at_c, bytes;                /* the packed copies in the workspace, behind GEMM's own */
} tn_product_plan;

static void choose_batch_axis(tn_product_plan *plan) {
    tn_product *p = &plan->p;
    int best = tn_product_longest_axis(p);
    plan->n_batch = 1;
    if (best < 0 || plan->a.packed || plan->b.packed) return;
    plan->n_batch = p->size[best];
    plan->stride_a = p->a.stride[best];
    plan->stride_b = p->b.stride[best];
    plan->stride_c = p->c.stride[best];
    tn_product_remove_axis(p, best);
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
    if (!tn_product_simplify(p)) return false;
    plan->a = tn_panel_of(p->m, p->k, &p->a);
    plan->b = tn_panel_of(p->k, p->n, &p->b);
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

size_t tn_product_workspace_cpu(const tn_product *product, int threads) {
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

static tn_status run_one(const tn_product_plan *plan, tn_product_offsets at, double beta, int threads, char *workspace) {
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
static tn_status run_sum(const tn_product_plan *plan, tn_product_offsets at, int threads, char *workspace) {
    const tn_product *p = &plan->p;
    int64_t n_summed = tn_product_axes_numel(p, true);
    char *c = (char *)p->c.data + at.c * (int64_t)tn_dtype_size(p->dtype);
    tn_packing narrow = { place_in(workspace, plan->at_c), c, p->n, p->n, 1, p->m == 1 ? p->n : p->c.row, TN_F32, TN_BF16 };
    tn_packing widen = { c, place_in(workspace, plan->at_c), p->n, narrow.to_row, 1, p->n, TN_BF16, TN_F32 };
    if (plan->wide && p->beta != 0) pack(p->m, &widen, threads);
    for (int64_t i = 0; i < n_summed; i++) {
        tn_status status = run_one(plan, tn_product_offsets_at(p, true, i, at), i == 0 ? p->beta : 1, threads, workspace);
        if (status != TN_OK) return status;
    }
    if (plan->wide) pack(p->m, &narrow, threads);
    return TN_OK;
}

tn_status tn_product_run_cpu(const tn_product *product, int threads, void *workspace) {
    tn_product_plan plan;
    if (!make_plan(product, threads, &plan)) return TN_OK;
    if (plan.bytes > 0 && !workspace) return TN_ERR_ARGUMENT;
    int64_t n = tn_product_axes_numel(&plan.p, false);
    for (int64_t i = 0; i < n; i++) {
        tn_status status = run_sum(&plan, tn_product_offsets_at(&plan.p, false, i, (tn_product_offsets){ 0 }), threads, workspace);
        if (status != TN_OK) return status;
    }
    return TN_OK;
}
