#include "bench_table.h"

#include <stdlib.h>

/* First what the library is about, then what a model needs besides. */
static const bench_table_list *const lists[] = {
    &bench_flao_tables, &bench_fal_tables,    &bench_lrpe_tables,  &bench_md_lrpe_tables, &bench_attention_tables,   &bench_causal_tables,
    &bench_copy_tables, &bench_gemm_tables,   &bench_norm_tables,  &bench_softmax_tables, &bench_elementwise_tables, &bench_reduce_tables,
    &bench_loss_tables, &bench_random_tables, &bench_optim_tables, &bench_host_tables,
};

static const char *const kind_names[BENCH_KIND_COUNT] = { "speed-fwd", "speed-bwd", "speed-step", "memory-fwd", "memory-bwd", "host" };

const char *bench_kind_name(bench_kind kind) { return kind_names[kind]; }

static void write_name(bench_choice *choice) {
    const bench_table *table = choice->table;
    const char *parts[] = { table->family, choice->kind == BENCH_HOST ? NULL : kind_names[choice->kind], table->setting,
                            table->dtypes ? tn_dtype_name(choice->dtype) : NULL, table->variant };
    int at = 0;
    for (int i = 0; i < TN_COUNT(parts); i++)
        if (parts[i]) at += snprintf(choice->name + at, sizeof choice->name - (size_t)at, "%s%s", at ? "-" : "", parts[i]);
}

/* The dtypes to run a table in, in the order of their size. */
static unsigned dtypes_of(const bench_table *table, const tn_dtype *wanted) {
    if (!table->dtypes) return TN_MASK(TN_F32);
    return wanted ? TN_MASK(*wanted) : table->dtypes;
}

static int list_one(const bench_table *table, const tn_dtype *dtype, bench_choice *choices) {
    int n = 0;
    for (int d = TN_DTYPE_COUNT - 1; d >= 0; d--)
        for (int kind = 0; kind < BENCH_KIND_COUNT; kind++) {
            if (!(dtypes_of(table, dtype) >> d & 1) || !(table->kinds >> kind & 1)) continue;
            choices[n] = (bench_choice){ .table = table, .kind = (bench_kind)kind, .dtype = (tn_dtype)d };
            write_name(&choices[n++]);
        }
    return n;
}

bench_choice *bench_list_tables(const tn_dtype *dtype, int *n_choices) {
    int n_tables = 0;
    for (int l = 0; l < TN_COUNT(lists); l++) n_tables += lists[l]->n;
    bench_choice *choices = malloc((size_t)n_tables * BENCH_KIND_COUNT * TN_DTYPE_COUNT * sizeof *choices);
    *n_choices = 0;
    if (!choices) return NULL;
    for (int l = 0; l < TN_COUNT(lists); l++)
        for (int t = 0; t < lists[l]->n; t++) *n_choices += list_one(&lists[l]->tables[t], dtype, choices + *n_choices);
    return choices;
}

int bench_columns_of(const bench_table *table, bench_kind kind, const bench_column *columns[BENCH_MAX_COLUMNS]) {
    int n = 0;
    for (int i = 0; i < table->n_columns && n < BENCH_MAX_COLUMNS; i++)
        if (!table->columns[i].kinds || table->columns[i].kinds >> kind & 1) columns[n++] = &table->columns[i];
    return n;
}
