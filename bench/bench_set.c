/* Sets: the inputs of a cell, built on any context, and the call itself. */
#include <string.h>

#include "bench_run.h"

static tn_dtype dtype_of(const bench_input *input, tn_dtype data) {
    if (input->other_dtype) return input->dtype;
    return input->wide && data != TN_F64 ? TN_F32 : data;
}

static tn_tensor *fill(tn_context *cx, const bench_input *input, tn_dtype dtype) {
    if (input->fill == TN_FILL_INTEGER) return tn_randint(cx, dtype, input->shape, (int64_t)input->a, (int64_t)input->b);
    tn_tensor *t = tn_empty(cx, dtype, input->shape);
    if (input->fill == TN_FILL_UNIFORM) return tn_fill_uniform(t, input->a, input->b);
    if (input->fill == TN_FILL_CONSTANT) return tn_fill(t, input->a);
    return tn_fill_normal(t, input->a, input->b == 0 ? 1 : input->b);
}

bool bench_set_make(bench_set *set, tn_context *cx, const bench_cell *cell, const bench_set *like) {
    memset(set, 0, sizeof *set);
    set->cell = cell;
    set->cx = cx;
    cell->table->inputs(cell, &set->spec);
    for (int i = 0; i < set->spec.n; i++) {
        const bench_input *input = &set->spec.in[i];
        tn_dtype dtype = dtype_of(input, cell->dtype);
        if (input->absent) continue;
        set->in[i] = like ? tn_assign(tn_empty(cx, dtype, input->shape), like->in[i]) : fill(cx, input, dtype);
        if (input->gradient) tn_require_grad(set->in[i], true);
    }
    return !tn_failed(cx);
}

bool bench_set_open(bench_set *set) {
    const bench_column *column = set->cell->column;
    const tn_op_def *op = column->op ? tn_op_find(column->op) : NULL;
    char json[256] = "", reason[256];
    if (column->op && !op) return tn_fail(set->cx, TN_ERR_UNSUPPORTED, column->op, "this build has no such op");
    if (column->write_attrs) column->write_attrs(set->cell, json, sizeof json);
    if (op && !tn_op_set_attrs_json(op, &set->args, json[0] ? json : column->attrs, reason, sizeof reason))
        return tn_fail(set->cx, TN_ERR_ARGUMENT, column->op, "%s", reason);
    return !column->open || column->open(set);
}

void bench_set_close(bench_set *set) {
    if (set->state && set->cell->column->close) set->cell->column->close(set);
    set->state = NULL;
}

tn_tensor *bench_set_forward(bench_set *set) {
    const bench_column *column = set->cell->column;
    tn_tensor *out[TN_OP_MAX_OUTPUTS];
    return column->call ? column->call(set) : tn_apply(tn_op_find(column->op), set->in, set->spec.n, &set->args, out);
}

tn_tensor *bench_upstream(tn_tensor *o) {
    if (!o) return NULL;
    return o->numel == 1 ? tn_full(o->cx, o->dtype, tn_shape_of(o), 1) : tn_randn(o->cx, o->dtype, tn_shape_of(o));
}

void bench_set_clear_grads(bench_set *set) {
    for (int i = 0; i < set->spec.n; i++)
        if (set->spec.in[i].gradient) tn_clear_grad(set->in[i]);
}

int64_t bench_set_bytes(const bench_set *set) {
    int64_t bytes = 0;
    for (int i = 0; i < set->spec.n; i++) bytes += set->in[i] ? (int64_t)tn_bytes(set->in[i]) : 0;
    return bytes;
}

static const bench_column *column_named(const bench_table *table, const char *name) {
    for (int i = 0; i < table->n_columns; i++)
        if (strcmp(table->columns[i].name, name) == 0) return &table->columns[i];
    return NULL;
}

static int64_t floor_of_op(const bench_set *set, bool backward) {
    const tn_op_def *op = set->cell->column->op ? tn_op_find(set->cell->column->op) : NULL;
    tn_op_call call;
    if (!op || !op->floor_bytes || !tn_op_plan(op, set->in, set->spec.n, &set->args, &call)) return 0;
    return op->floor_bytes(&call, backward);
}

int64_t bench_floor_bytes(const bench_set *set) {
    const bench_column *column = set->cell->column;
    bool backward = bench_is_backward(set->cell->kind);
    if (column->floor_bytes) return column->floor_bytes(set, backward);
    if (!column->floor_like) return floor_of_op(set, backward);

    /* The other column on the same inputs; it takes the same ones in the same order. */
    bench_set other = *set;
    bench_cell cell = *set->cell;
    cell.column = column_named(cell.table, column->floor_like);
    other.cell = &cell;
    other.state = NULL;
    if (!cell.column || tn_failed(set->cx)) return 0;
    if (cell.column->floor_bytes) return cell.column->floor_bytes(&other, backward);
    int64_t bytes = !cell.column->open && bench_set_open(&other) ? floor_of_op(&other, backward) : 0;
    tn_clear_error(set->cx);
    return bytes;
}
