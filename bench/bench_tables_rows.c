/* copy-*, elementwise-*, softmax-*, norm-*, swiglu-*: ops whose rows are on their own. x is [n, width]. */
#include "bench_table.h"

#define WIDTH 4096 /* of copies and elementwise ops: n rows of it are n x 8 KiB in bf16 */
#define BASIC_DTYPES (TN_MASK(TN_BF16) | TN_MASK(TN_F32))
#define WIDE_ROWS .rows = { 1024, 8192, 32768, 65536 }, .cpu_rows = { 2048 }

/* n rows, each a piece of the work. */
static bench_input rows_of(const bench_cell *cell, int64_t width) {
    return (bench_input){ .shape = TN_SHAPE(cell->n, width), .gradient = true, .slice = { 1, 0 } };
}

static bench_input weight_of(int64_t width) { return (bench_input){ .shape = TN_SHAPE(width), .a = 1, .b = 0.1, .gradient = true }; }

/* ---- copy ---- */

static tn_tensor *transposed_copy(bench_set *set) { return tn_contiguous(tn_transpose(set->in[0], 0, 1)); }
static tn_tensor *other_dtype(bench_set *set) { return tn_cast(set->in[0], set->cell->dtype == TN_F32 ? TN_BF16 : TN_F32); }

static int64_t copy_floor(const bench_set *set, bool backward) {
    (void)backward;
    return 2 * (int64_t)tn_bytes(set->in[0]);
}

static int64_t cast_floor(const bench_set *set, bool backward) {
    (void)backward;
    return set->in[0]->numel * (int64_t)(tn_dtype_size(set->in[0]->dtype) + tn_dtype_size(set->cell->dtype == TN_F32 ? TN_BF16 : TN_F32));
}

/* Columns' size: the output's axis that goes with the rows. */
static void copy_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = rows_of(cell, WIDTH);
    inputs->n = 1;
    inputs->out_slice[0] = (int)cell->column->size[0];
}

static const bench_column copy_columns[] = {
    { .name = "copy", .op = "copy", .size = { 1 } },
    { .name = "transpose", .call = transposed_copy, .floor_bytes = copy_floor, .size = { 2 } },
    { .name = "cast", .call = other_dtype, .floor_bytes = cast_floor, .size = { 1 } },
};

static const bench_table copy_tables[] = {
    {
        .family = "copy",
        .doc = "x [n,4096]: a dense copy, a dense copy of the transposed, a cast between f32 and bf16",
        .kinds = BENCH_FWD,
        .dtypes = BASIC_DTYPES,
        .columns = copy_columns,
        .n_columns = TN_COUNT(copy_columns),
        WIDE_ROWS,
        .inputs = copy_inputs,
    },
};

/* ---- elementwise ---- */

/* Sizes: of the table, how many inputs; of a column, 1: it wants positive numbers. */
static void elementwise_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->n = (int)cell->table->size[0];
    for (int i = 0; i < inputs->n; i++) {
        inputs->in[i] = rows_of(cell, WIDTH);
        if (cell->column->size[0]) inputs->in[i].fill = TN_FILL_UNIFORM, inputs->in[i].a = 0.5, inputs->in[i].b = 2;
    }
    inputs->out_slice[0] = 1;
}

/* add hands its gradient on and has no backward to time. */
static const bench_column binary_columns[] = {
    { .name = "add", .op = "add", .kinds = BENCH_FWD },
    { .name = "mul", .op = "mul" },
    { .name = "div", .op = "div", .size = { 1 } },
    { .name = "maximum", .op = "maximum" },
};

static const bench_column unary_columns[] = {
    { .name = "exp", .op = "exp" },
    { .name = "sqrt", .op = "sqrt", .size = { 1 } },
    { .name = "sin", .op = "sin" },
    { .name = "relu", .op = "act", .attrs = "{\"act\": \"relu\"}" },
    { .name = "silu", .op = "act", .attrs = "{\"act\": \"silu\"}" },
    { .name = "gelu", .op = "act", .attrs = "{\"act\": \"gelu\"}" },
    { .name = "tanh", .op = "act", .attrs = "{\"act\": \"tanh\"}" },
};

static void swiglu_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = rows_of(cell, WIDTH);
    inputs->n = 1;
    inputs->out_slice[0] = 1;
}

static const bench_column swiglu_columns[] = { { .name = "swiglu", .op = "swiglu" } };

/* Size 1: a takes no gradient. add would hand it the caller's own do, which has to be copied: 2T beside the one T that the row's takes. */
static void broadcast_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = rows_of(cell, WIDTH);
    inputs->in[0].gradient = !cell->column->size[0];
    inputs->in[1] = weight_of(WIDTH);
    inputs->n = 2;
    inputs->out_slice[0] = 1;
}

static const bench_column broadcast_columns[] = {
    { .name = "add_row", .op = "add", .size = { 1 } },
    { .name = "mul_row", .op = "mul" },
};

static const bench_table elementwise_tables[] = {
    {
        .family = "elementwise",
        .setting = "binary",
        .doc = "a, b [n,4096]",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = binary_columns,
        .n_columns = TN_COUNT(binary_columns),
        WIDE_ROWS,
        .inputs = elementwise_inputs,
        .size = { 2 },
    },
    {
        .family = "elementwise",
        .setting = "unary",
        .doc = "x [n,4096]",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = unary_columns,
        .n_columns = TN_COUNT(unary_columns),
        WIDE_ROWS,
        .inputs = elementwise_inputs,
        .size = { 1 },
    },
    {
        .family = "elementwise",
        .setting = "row",
        .doc = "a [n,4096], b [4096] repeated along n; backward sums b's gradient over the rows (add_row: b's alone)",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = broadcast_columns,
        .n_columns = TN_COUNT(broadcast_columns),
        WIDE_ROWS,
        .inputs = broadcast_inputs,
    },
    {
        .family = "elementwise",
        .setting = "swiglu_2048",
        .doc = "x [n,2 x 2048]: silu(first half) * second half",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = swiglu_columns,
        .n_columns = TN_COUNT(swiglu_columns),
        WIDE_ROWS,
        .inputs = swiglu_inputs,
    },
};

/* ---- softmax ---- */

static void softmax_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = rows_of(cell, cell->table->size[0]);
    inputs->n = 1;
    inputs->out_slice[0] = 1;
}

#define SEQUENCES 12

static void softmax_sequence_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(SEQUENCES, cell->n, 1536), .gradient = true, .slice = { 1, 0 } };
    inputs->n = 1;
    inputs->out_slice[0] = 1;
}

static const bench_column softmax_columns[] = { { .name = "softmax", .op = "act", .attrs = "{\"act\": \"softmax\"}" } };
static const bench_column softmax_sequence_columns[] = {
    { .name = "softmax", .op = "act", .attrs = "{\"act\": \"softmax\", \"dim\": 1}" },
};

static const bench_table softmax_tables[] = {
    {
        .family = "softmax",
        .setting = "d128",
        .doc = "x [n,128] over the last axis",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = softmax_columns,
        .n_columns = TN_COUNT(softmax_columns),
        .rows = { 32768, 262144, 1048576, 2097152 },
        .cpu_rows = { 65536 },
        .inputs = softmax_inputs,
        .size = { 128 },
    },
    {
        .family = "softmax",
        .setting = "d1024",
        .doc = "x [n,1024] over the last axis",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = softmax_columns,
        .n_columns = TN_COUNT(softmax_columns),
        .rows = { 4096, 32768, 131072, 262144 },
        .cpu_rows = { 8192 },
        .inputs = softmax_inputs,
        .size = { 1024 },
    },
    {
        .family = "softmax",
        .setting = "d32768",
        .doc = "x [n,32768] over the last axis",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = softmax_columns,
        .n_columns = TN_COUNT(softmax_columns),
        .rows = { 128, 1024, 4096, 8192 },
        .cpu_rows = { 256 },
        .inputs = softmax_inputs,
        .gate_rows = 64,
        .size = { 32768 },
    },
    {
        .family = "softmax",
        .setting = "batch12-d1536-dim1",
        .doc = "x [12,n,1536] over the sequence",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = softmax_sequence_columns,
        .n_columns = TN_COUNT(softmax_sequence_columns),
        .rows = { 1024, 8192, 16384 },
        .cpu_rows = { 256 },
        .inputs = softmax_sequence_inputs,
        .gate_rows = 64,
    },
};

/* ---- norm ---- */

/* Sizes: of the table, the width; of a column, 1: weight and gate, 2: weight and bias. */
static void norm_inputs(const bench_cell *cell, bench_inputs *inputs) {
    int64_t width = cell->table->size[0];
    inputs->in[0] = rows_of(cell, width);
    inputs->in[1] = weight_of(width);
    if (cell->column->size[0] == 2) inputs->in[2] = weight_of(width);
    else inputs->in[2] = rows_of(cell, width);
    inputs->in[2].absent = cell->column->size[0] == 0;
    if (inputs->in[2].absent) inputs->in[2].gradient = false;
    inputs->n = 3;
    inputs->out_slice[0] = 1;
}

static const bench_column norm_columns[] = {
    { .name = "rms_norm", .op = "rms_norm" },
    { .name = "rms_norm_gated", .op = "rms_norm", .attrs = "{\"g_act\": \"silu\"}", .size = { 1 } },
    { .name = "layer_norm", .op = "layer_norm", .size = { 2 } },
};

static const bench_table norm_tables[] = {
    {
        .family = "norm",
        .setting = "d768",
        .doc = "x [n,768], weight [768]; gated: times silu(g), g [n,768]; layer_norm: with bias",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = BASIC_DTYPES,
        .columns = norm_columns,
        .n_columns = TN_COUNT(norm_columns),
        .rows = { 4096, 32768, 174848, 349696 },
        .cpu_rows = { 8192 },
        .inputs = norm_inputs,
        .size = { 768 },
    },
    {
        .family = "norm",
        .setting = "d4096",
        .doc = "x [n,4096], weight [4096]; gated: times silu(g), g [n,4096]; layer_norm: with bias",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD),
        .dtypes = BASIC_DTYPES,
        .columns = norm_columns,
        .n_columns = TN_COUNT(norm_columns),
        .rows = { 1024, 8192, 32768, 65536 },
        .cpu_rows = { 2048 },
        .inputs = norm_inputs,
        .size = { 4096 },
    },
};

const bench_table_list bench_copy_tables = { copy_tables, TN_COUNT(copy_tables) };
const bench_table_list bench_elementwise_tables = { elementwise_tables, TN_COUNT(elementwise_tables) };
const bench_table_list bench_softmax_tables = { softmax_tables, TN_COUNT(softmax_tables) };
const bench_table_list bench_norm_tables = { norm_tables, TN_COUNT(norm_tables) };
