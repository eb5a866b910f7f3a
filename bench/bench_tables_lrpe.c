/* lrpe_rotate-* and md_lrpe_cosine-*: b = h = 12, d = 128. theta wants no gradient, as in the tables of the ops' origin. */
#include <math.h>

#include "bench_table.h"

#define BATCH 12
#define HEADS 12
#define WIDTH 128
#define LRPE_ROWS .rows = { 256, 512, 1024, 2048, 4096, 8192, 16384, 32768 }, .cpu_rows = { 256, 1024 }

/* ---- rotate: x [b, n, h, d] ---- */

static void rotate_inputs(const bench_cell *cell, bench_inputs *inputs) {
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(BATCH, cell->n, HEADS, WIDTH), .gradient = true, .slice = { 1, 3 } };
    inputs->in[1] = (bench_input){ .shape = TN_SHAPE(HEADS, WIDTH / 2), .wide = true, .slice = { 0, 1 } };
    inputs->in[2] = (bench_input){ .absent = true };
    inputs->n = 3;
    inputs->out_slice[0] = 1;
    inputs->out_slice[1] = 3;
}

static const bench_column none_columns[] = { { .name = "tenon", .op = "lrpe", .attrs = "{\"kind\": \"rotate\"}" } };
static const bench_column silu_columns[] = { { .name = "tenon", .op = "lrpe", .attrs = "{\"kind\": \"rotate\", \"act\": \"silu\"}" } };
static const bench_column softmax_features_columns[] = {
    { .name = "tenon", .op = "lrpe", .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": -1}" },
};
static const bench_column softmax_tokens_columns[] = {
    { .name = "tenon", .op = "lrpe", .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1}" },
};

#define ROTATE_TABLE(act_setting, act_columns)                                                                                             \
    {                                                                                                                                      \
        .family = "lrpe_rotate", .setting = "batch12-head12-dim128-act_" act_setting, .doc = "x [12,n,12,128], theta [12,64]",             \
        .kinds = BENCH_FWD | BENCH_BWD, .dtypes = TN_MASK(TN_BF16), .columns = act_columns, .n_columns = TN_COUNT(act_columns), LRPE_ROWS, \
        .inputs = rotate_inputs,                                                                                                           \
    }

static const bench_table rotate_tables[] = {
    ROTATE_TABLE("none", none_columns),
    ROTATE_TABLE("silu", silu_columns),
    ROTATE_TABLE("softmax-dim_-1", softmax_features_columns),
    ROTATE_TABLE("softmax-dim_1", softmax_tokens_columns),
};

/* ---- cosine over grids: x [b, h, n + l, d], n about as the row says: the nearest square or cube ---- */

/* A table's sizes: axes, l. */
static int64_t side_of(const bench_cell *cell) { return llround(pow((double)cell->n, 1.0 / (double)cell->table->size[0])); }

static void grid_inputs(const bench_cell *cell, bench_inputs *inputs) {
    int64_t axes = cell->table->size[0], tokens = cell->table->size[1];
    int64_t side = side_of(cell), grid = 1;
    for (int64_t i = 0; i < axes; i++) grid *= side;
    tokens += grid;
    inputs->in[0] = (bench_input){ .shape = TN_SHAPE(BATCH, HEADS, tokens, WIDTH), .gradient = true, .slice = { 1, 2 } };
    inputs->in[1] = (bench_input){ .shape = TN_SHAPE(HEADS, (WIDTH + axes - 1) / axes), .wide = true, .slice = { 0, 1 } };
    inputs->in[2] = (bench_input){ .absent = true };
    inputs->n = 3;
    inputs->out_slice[0] = 1;
    inputs->out_slice[1] = 2;
}

static void write_grid(const bench_cell *cell, char *json, size_t n_bytes) {
    char shape[64] = "";
    int at = 0;
    for (int64_t i = 0; i < cell->table->size[0]; i++)
        at += snprintf(shape + at, sizeof shape - (size_t)at, "%s%lld", i ? ", " : "", (long long)side_of(cell));
    snprintf(json, n_bytes, "{\"kind\": \"cosine\", \"layout\": \"bhnd\", \"shape\": [%s], \"l\": %lld, \"cache\": %s}", shape,
             (long long)cell->table->size[1], cell->column->size[0] ? "true" : "false");
}

/* A column's size: 1 keeps cosines and sines. */
static const bench_column grid_columns[] = {
    { .name = "direct", .op = "lrpe", .write_attrs = write_grid },
    { .name = "cache", .op = "lrpe", .write_attrs = write_grid, .floor_like = "direct", .size = { 1 } },
};

#define GRID_TABLE(axes, axes_name, leading, leading_name, ...)                                                                       \
    {                                                                                                                                 \
        .family = "md_lrpe_cosine", .setting = "batch12-head12-dim128", .variant = axes_name "-" leading_name,                        \
        .doc = "x [12,12,n+l,128], theta [12,ceil(128/axes)]; n: the tokens of the grid", .kinds = BENCH_FWD | BENCH_BWD,             \
        .dtypes = TN_MASK(TN_BF16), .columns = grid_columns, .n_columns = TN_COUNT(grid_columns), __VA_ARGS__, .inputs = grid_inputs, \
        .size = { axes, leading },                                                                                                    \
    }
#define SQUARES .rows = { 256, 1024, 4096, 16384 }, .cpu_rows = { 256, 1024 }
#define CUBES .rows = { 64, 512, 4096, 32768 }, .cpu_rows = { 64, 1000 }

static const bench_table grid_tables[] = {
    GRID_TABLE(1, "1d", 0, "l0", LRPE_ROWS), GRID_TABLE(1, "1d", 10, "l10", LRPE_ROWS), GRID_TABLE(2, "2d", 0, "l0", SQUARES),
    GRID_TABLE(2, "2d", 10, "l10", SQUARES), GRID_TABLE(3, "3d", 0, "l0", CUBES),       GRID_TABLE(3, "3d", 10, "l10", CUBES),
};

const bench_table_list bench_lrpe_tables = { rotate_tables, TN_COUNT(rotate_tables) };
const bench_table_list bench_md_lrpe_tables = { grid_tables, TN_COUNT(grid_tables) };
