/* dropout-*, sampling-*: what a random stream decides, and the k best of many. The same numbers come on every device, so that the gate can
 * compare them; a row's draws depend on where it lies, so that cells are compared whole or not at all. */
#include "bench_table.h"

#define WIDTH 4096
#define VOCABULARY 50304
#define BASIC_DTYPES (TN_MASK(TN_BF16) | TN_MASK(TN_F32))

static void dropout_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, WIDTH), .gradient = true };
    inputs->in[1] = (bench_input){ .absent = true };
    inputs->n = 2;
}

/* Size 1: weights to draw by, which take no gradient. */
static void sampling_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, VOCABULARY), .gradient = true };
    if (cell->column->size[0]) inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, VOCABULARY), .fill = TN_FILL_UNIFORM, .b = 1 };
    inputs->n = 1;
}

static const bench_column dropout_columns[] = { { .name = "dropout", .op = "dropout", .attrs = "{\"p\": 0.1}" } };

static const bench_column sampling_columns[] = {
    { .name = "topk_50", .op = "topk", .attrs = "{\"k\": 50}" },
    { .name = "multinomial", .op = "multinomial", .kinds = BENCH_FWD, .size = { 1 } },
};

static const bench_table random_tables[] = {
    {
        .family = "dropout",
        .doc = "x [n,4096], p = 0.1; backward makes the mask again",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = dropout_columns,
        .n_columns = TN_COUNT(dropout_columns),
        .rows = { 1024, 8192, 32768, 65536 },
        .cpu_rows = { 2048 },
        .inputs = dropout_inputs,
    },
    {
        .family = "sampling",
        .setting = "v50304",
        .doc = "rows of 50304 logits or weights: the 50 largest in order, with their places; one draw",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = sampling_columns,
        .n_columns = TN_COUNT(sampling_columns),
        .rows = { 1, 32, 1024, 4096 },
        .cpu_rows = { 32 },
        .inputs = sampling_inputs,
        .gate_rows = 64,
    },
};

const bench_table_list bench_random_tables = { random_tables, TN_COUNT(random_tables) };
