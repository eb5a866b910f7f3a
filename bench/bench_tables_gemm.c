/* gemm-*: matrix products, square and in the shapes of a training step of a 12-layer model of width 768. */
#include "bench_table.h"

/* Columns' size: input width, output width. */
#define IN 0
#define OUT 1

#define BASIC_DTYPES (TN_MASK(TN_BF16) | TN_MASK(TN_F32))

/* ---- linear: x [n, in] weight' [in, out] ---- */

static double linear_flops(const bench_cell *cell) {
    return 2.0 * (double)cell->n * (double)cell->column->size[IN] * (double)cell->column->size[OUT];
}

static void linear_inputs(const bench_cell *cell, bench_inputs *inputs, bool dx, bool dw, bool bias) {
    int64_t in = cell->column->size[IN], out = cell->column->size[OUT];
    /* Rows of x and rows of the weight are on their own, but each gradient sums over the other's. */
    bool cut_x = dx || !bench_is_backward(cell->kind), cut_w = dw || !bench_is_backward(cell->kind);
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, in), .gradient = dx, .slice = { cut_x ? 1 : 0, 0 } };
    inputs->in[1] = (bench_input){ .shape = TN_SHAPE(out, in), .b = 0.05, .gradient = dw, .slice = { 0, cut_w ? 1 : 0 } };
    inputs->in[2] = (bench_input){ .shape = TN_SHAPE(out), .absent = !bias, .slice = { 0, cut_w ? 1 : 0 } };
    inputs->n = 3;
    inputs->out_slice[0] = cut_x ? 1 : 0;
    inputs->out_slice[1] = cut_w ? 2 : 0;
}

static void train_inputs(const bench_cell *cell, bench_inputs *inputs) { linear_inputs(cell, inputs, false, false, false); }
static void train_dx_inputs(const bench_cell *cell, bench_inputs *inputs) { linear_inputs(cell, inputs, true, false, false); }
static void train_dw_inputs(const bench_cell *cell, bench_inputs *inputs) { linear_inputs(cell, inputs, false, true, false); }
static void epilogue_inputs(const bench_cell *cell, bench_inputs *inputs) {
    linear_inputs(cell, inputs, false, false, cell->column->size[2]);
}

static const bench_column train_columns[] = {
    { .name = "qkvg", .op = "linear", .flops = linear_flops, .size = { 768, 3072 } },
    { .name = "out", .op = "linear", .flops = linear_flops, .size = { 768, 768 } },
    { .name = "up", .op = "linear", .flops = linear_flops, .size = { 768, 4096 } },
    { .name = "down", .op = "linear", .flops = linear_flops, .size = { 2048, 768 } },
    { .name = "head", .op = "linear", .flops = linear_flops, .size = { 768, 50304 } },
};

static const bench_column epilogue_columns[] = {
    { .name = "plain", .op = "linear", .flops = linear_flops, .size = { 768, 3072, 0 } },
    { .name = "bias", .op = "linear", .flops = linear_flops, .size = { 768, 3072, 1 } },
    { .name = "bias_relu", .op = "linear", .attrs = "{\"act\": \"relu\"}", .flops = linear_flops, .size = { 768, 3072, 1 } },
    { .name = "bias_gelu", .op = "linear", .attrs = "{\"act\": \"gelu\"}", .flops = linear_flops, .size = { 768, 3072, 1 } },
    { .name = "bias_silu", .op = "linear", .attrs = "{\"act\": \"silu\"}", .flops = linear_flops, .size = { 768, 3072, 1 } },
};

/* ---- square: a [n, n] b [n, n], either of them transposed ---- */

static tn_tensor *nn(bench_set *set) { return tn_matmul(set->in[0], set->in[1]); }
static tn_tensor *nt(bench_set *set) { return tn_matmul(set->in[0], tn_transpose(set->in[1], 0, 1)); }
static tn_tensor *transposed_a(bench_set *set) { return tn_matmul(tn_transpose(set->in[0], 0, 1), set->in[1]); }

static double square_flops(const bench_cell *cell) {
    double n = (double)cell->n;
    return (bench_is_backward(cell->kind) ? 4 : 2) * n * n * n;
}

static int64_t square_floor(const bench_set *set, bool backward) { return (backward ? 5 : 3) * (int64_t)tn_bytes(set->in[0]); }

/* Columns' size: the axes of a's rows and of b's columns, from 1. */
static void square_inputs(const bench_cell *cell, bench_inputs *inputs) {
    bool backward = bench_is_backward(cell->kind);
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(cell->n, cell->n), .gradient = true, .slice = { (int)cell->column->size[0], 0 } };
    inputs->in[1] =
        (bench_input){ .shape = TN_SHAPE(cell->n, cell->n), .gradient = true, .slice = { 0, backward ? 0 : (int)cell->column->size[1] } };
    inputs->n = 2;
    inputs->out_slice[0] = 1;
    inputs->out_slice[1] = backward ? 0 : 2;
}

static const bench_column square_columns[] = {
    { .name = "nn", .call = nn, .flops = square_flops, .floor_bytes = square_floor, .size = { 1, 2 } },
    { .name = "nt", .call = nt, .flops = square_flops, .floor_bytes = square_floor, .size = { 1, 1 } },
    { .name = "tn", .call = transposed_a, .flops = square_flops, .floor_bytes = square_floor, .size = { 2, 2 } },
};

/* ---- batched, as in linear attention: 12 sequences of 12 heads of width 128 ---- */

#define BATCH 144
#define WIDTH 128

static tn_tensor *state_of(bench_set *set) { return tn_matmul(tn_transpose(set->in[0], 1, 2), set->in[1]); } /* k' v */

static double batched_flops(const bench_cell *cell) {
    return (bench_is_backward(cell->kind) ? 4.0 : 2.0) * BATCH * (double)cell->n * WIDTH * WIDTH;
}

static int64_t state_floor(const bench_set *set, bool backward) {
    int64_t tokens = (int64_t)tn_bytes(set->in[0]), states = tokens / set->in[0]->shape[1] * WIDTH;
    return (backward ? 4 : 2) * tokens + states;
}

/* Columns' size: is the second input a state [d, d] rather than tokens [n, d]? */
static void batched_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(BATCH, cell->n, WIDTH), .gradient = true, .slice = { 1, 0 } };
    inputs->in[1] = inputs->in[0];
    if (cell->column->size[0]) inputs->in[1].shape = TN_SHAPE(BATCH, WIDTH, WIDTH);
    inputs->n = 2;
    inputs->out_slice[0] = 1;
}

static const bench_column batched_columns[] = {
    { .name = "q_state", .op = "matmul", .flops = batched_flops, .size = { 1 } },
    { .name = "kt_v", .call = state_of, .flops = batched_flops, .floor_bytes = state_floor, .size = { 0 } },
};

#define TRAIN_ROWS .rows = { 4096, 32768 }, .cpu_rows = { 128 }

static const bench_table tables[] = {
    {
        .family = "gemm",
        .setting = "square",
        .doc = "a [n,n] b [n,n]; nt, tn: b, a a transposed view; backward: both gradients",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = square_columns,
        .n_columns = TN_COUNT(square_columns),
        .rows = { 1024, 2048, 4096, 8192 },
        .cpu_rows = { 256, 768 },
        .inputs = square_inputs,
        .gate_rows = 256,
    },
    {
        .family = "gemm",
        .setting = "train",
        .doc = "x [n,in] weight' [in,out] at d 768, 6 heads of 128, SwiGLU 2048, vocabulary 50304",
        .kinds = BENCH_FWD,
        .dtypes = BASIC_DTYPES,
        .columns = train_columns,
        .n_columns = TN_COUNT(train_columns),
        TRAIN_ROWS,
        .inputs = train_inputs,
        .gate_rows = 128,
    },
    {
        .family = "gemm",
        .setting = "train_dx",
        .doc = "do [n,out] weight [out,in]: the gradient of x alone",
        .kinds = BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = train_columns,
        .n_columns = TN_COUNT(train_columns),
        TRAIN_ROWS,
        .inputs = train_dx_inputs,
        .gate_rows = 128,
    },
    {
        .family = "gemm",
        .setting = "train_dw",
        .doc = "do' [out,n] x [n,in]: the gradient of the weight alone",
        .kinds = BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = train_columns,
        .n_columns = TN_COUNT(train_columns),
        TRAIN_ROWS,
        .inputs = train_dw_inputs,
        .gate_rows = 128,
    },
    {
        .family = "gemm",
        .setting = "epilogue",
        .doc = "act(x [n,768] weight' [768,3072] + bias)",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD),
        .dtypes = BASIC_DTYPES,
        .columns = epilogue_columns,
        .n_columns = TN_COUNT(epilogue_columns),
        TRAIN_ROWS,
        .inputs = epilogue_inputs,
        .gate_rows = 128,
    },
    {
        .family = "gemm",
        .setting = "batch12-head12-dim128",
        .doc = "q_state: q [144,n,128] state [144,128,128]; kt_v: k' [144,128,n] v [144,n,128]; backward: both gradients",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = batched_columns,
        .n_columns = TN_COUNT(batched_columns),
        .rows = { 1024, 8192, 32768 },
        .cpu_rows = { 128 },
        .inputs = batched_inputs,
        .gate_rows = 128,
    },
};

const bench_table_list bench_gemm_tables = { tables, TN_COUNT(tables) };
