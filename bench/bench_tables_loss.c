/* cross_entropy-*, reduce-*, embedding-*: the ends of a model, and sums. */
#include "bench_table.h"

#define VOCABULARY 50304
#define MODEL_WIDTH 768
#define BASIC_DTYPES (TN_MASK(TN_BF16) | TN_MASK(TN_F32))

static bench_input tokens_of(const bench_cell *cell) {
    return (bench_input){
        .shape = TN_SHAPE(cell->n), .fill = TN_FILL_INTEGER, .b = VOCABULARY, .other_dtype = true, .dtype = TN_I64, .slice = { 1, 0 }
    };
}

/* ---- cross_entropy ---- */

static void cross_entropy_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, VOCABULARY), .gradient = true, .slice = { 1, 0 } };
    inputs->in[1] = tokens_of(cell);
    inputs->n = 2;
    inputs->mean = true;
}

static void linear_cross_entropy_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, MODEL_WIDTH), .gradient = true, .slice = { 1, 0 } };
    inputs->in[1] = (bench_input){ .shape = TN_SHAPE(VOCABULARY, MODEL_WIDTH), .b = 0.05, .gradient = true };
    inputs->in[2] = tokens_of(cell);
    inputs->n = 3;
    inputs->mean = true;
}

/* The logits and, with them, both gradients: backward only scales these. */
static double linear_cross_entropy_flops(const bench_cell *cell) { return 6.0 * (double)cell->n * VOCABULARY * MODEL_WIDTH; }

/* Both passes, since they share the work unevenly: the gradients are made in forward. */
static tn_tensor *loss_and_gradients(bench_set *set) {
    tn_clear_grad(set->in[0]);
    tn_clear_grad(set->in[1]);
    tn_backward(tn_linear_cross_entropy(set->in[0], set->in[1], set->in[2], TN_CROSS_ENTROPY()));
    return tn_grad(set->in[0]);
}

static int64_t loss_and_gradients_floor(const bench_set *set, bool backward) {
    (void)backward;
    return 2 * (int64_t)(tn_bytes(set->in[0]) + tn_bytes(set->in[1]));
}

static const bench_column cross_entropy_columns[] = { { .name = "cross_entropy", .op = "cross_entropy" } };
static const bench_column linear_cross_entropy_columns[] = {
    { .name = "linear_cross_entropy", .op = "linear_cross_entropy", .flops = linear_cross_entropy_flops, .kinds = BENCH_FWD },
    { .name = "linear_cross_entropy", .op = "linear_cross_entropy", .kinds = BENCH_BWD },
    { .name = "both_passes",
      .call = loss_and_gradients,
      .flops = linear_cross_entropy_flops,
      .floor_bytes = loss_and_gradients_floor,
      .kinds = BENCH_BIT(BENCH_SPEED_STEP) },
};

static const bench_table loss_tables[] = {
    {
        .family = "cross_entropy",
        .setting = "v50304",
        .doc = "logits [n,50304]",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = cross_entropy_columns,
        .n_columns = TN_COUNT(cross_entropy_columns),
        .rows = { 1024, 4096, 16384, 32768 },
        .cpu_rows = { 128 },
        .inputs = cross_entropy_inputs,
        .gate_rows = 64,
    },
    {
        .family = "cross_entropy",
        .setting = "linear-d768-v50304",
        .doc = "x [n,768], weight [50304,768]: the head and the loss, logits never whole",
        .kinds = BENCH_FWD | BENCH_BWD | BENCH_BIT(BENCH_SPEED_STEP),
        .dtypes = BASIC_DTYPES,
        .columns = linear_cross_entropy_columns,
        .n_columns = TN_COUNT(linear_cross_entropy_columns),
        .rows = { 4096, 32768 },
        .cpu_rows = { 64 },
        .inputs = linear_cross_entropy_inputs,
        .gate_rows = 64,
    },
};

/* ---- embedding ---- */

static void embedding_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(VOCABULARY, MODEL_WIDTH), .gradient = true };
    inputs->in[1] = tokens_of(cell);
    inputs->n = 2;
    inputs->out_slice[0] = 1;
}

static const bench_column embedding_columns[] = { { .name = "embedding", .op = "embedding" } };

/* ---- reductions of x [n, width] ---- */

#define WIDTH 4096

/* Columns' size: the axis of the rows or columns that are reduced each by itself, from 1; 0: all is reduced to one. */
static void reduce_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, WIDTH), .gradient = true, .slice = { (int)cell->column->size[0], 0 } };
    /* A sum of numbers around 0 would be rounding and little else. */
    inputs->in[0].a = 1;
    inputs->in[0].b = 1;
    inputs->n = 1;
    inputs->out_slice[0] = cell->column->size[0] ? 1 : 0;
}

static const bench_column reduce_columns[] = {
    { .name = "sum", .op = "sum" },
    { .name = "sum_last", .op = "sum", .attrs = "{\"dims\": [-1]}", .size = { 1 } },
    { .name = "sum_first", .op = "sum", .attrs = "{\"dims\": [0]}", .size = { 2 } },
    { .name = "max_last", .op = "max", .attrs = "{\"dims\": [-1]}", .size = { 1 } },
    { .name = "logsumexp_last", .op = "logsumexp", .attrs = "{\"dims\": [-1]}", .size = { 1 } },
};

static const bench_table reduce_tables[] = {
    {
        .family = "reduce",
        .doc = "x [n,4096]: all of it, along the last axis, along the first",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD),
        .dtypes = BASIC_DTYPES,
        .columns = reduce_columns,
        .n_columns = TN_COUNT(reduce_columns),
        .rows = { 1024, 8192, 32768, 65536 },
        .cpu_rows = { 2048 },
        .inputs = reduce_inputs,
    },
    {
        .family = "embedding",
        .setting = "d768-v50304",
        .doc = "rows of a table [50304,768] by n indices; backward writes the gradient of the whole table",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = embedding_columns,
        .n_columns = TN_COUNT(embedding_columns),
        .rows = { 4096, 32768, 131072 },
        .cpu_rows = { 1024 },
        .inputs = embedding_inputs,
    },
};

const bench_table_list bench_loss_tables = { loss_tables, TN_COUNT(loss_tables) };
const bench_table_list bench_reduce_tables = { reduce_tables, TN_COUNT(reduce_tables) };
