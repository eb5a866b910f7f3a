/* tpa_decode-*: one query for each sequence, as in the tables of the ops' origin. tpa_train-*: causal, b and n fixed. attention-*: the
 * softmax baseline, causal and decoding. */
#include "bench_table.h"

#define HEADS 32
#define WIDTH 128

static void start_inputs(bench_inputs *inputs, int n) {
    for (int i = 0; i < n; i++) inputs->in[i] = (bench_input){ .absent = true };
    inputs->n = n;
    inputs->out_slice[0] = 1;
    inputs->out_slice[1] = 3;
}

/* ---- tpa_attention; a table's size: b, ranks of q and of k and v ---- */

enum { AQ, BQ, AK, BK, AV, BV, N_FACTORS, N_TPA_INPUTS = N_FACTORS + 2 };

static void tpa_inputs(const bench_cell *cell, int64_t n, int64_t m, bool gradient, bench_inputs *inputs) {
    int64_t b = cell->table->size[0], rq = cell->table->size[1], rk = cell->table->size[2];
    start_inputs(inputs, N_TPA_INPUTS);
    /* Heads are on their own; what they share is not cut by head. */
    for (int i = AQ; i <= BV; i += 2) {
        int64_t tokens = i == AQ ? n : m, rank = i == AQ ? rq : rk;
        inputs->in[i] = (bench_input){ .shape = TN_SHAPE(b, tokens, HEADS, rank), .gradient = gradient, .slice = { 1, 3 } };
        inputs->in[i + 1] = (bench_input){ .shape = TN_SHAPE(b, tokens, rank, WIDTH), .gradient = gradient, .slice = { 1, 0 } };
    }
}

static void decode_inputs(const bench_cell *cell, bench_inputs *inputs) { tpa_inputs(cell, 1, cell->n, false, inputs); }
static void train_inputs(const bench_cell *cell, bench_inputs *inputs) { tpa_inputs(cell, cell->n, cell->n, true, inputs); }

#define ALGO(algo_name) \
    { .name = algo_name, .op = "tpa_attention", .attrs = "{\"algo\": \"" algo_name "\"}" }
static const bench_column decode_columns[] = { ALGO("b"), ALGO("bh"), ALGO("bn"), ALGO("composed"), ALGO("naive"), ALGO("auto") };

#define DECODE_TABLE(batch, batch_text)                                                                                   \
    {                                                                                                                     \
        .family = "tpa_decode", .setting = "batch" batch_text "-head32-dim128-rank16",                                    \
        .doc = "one query of rank 16 for each sequence, against n tokens' keys and values of rank 1", .kinds = BENCH_FWD, \
        .dtypes = TN_MASK(TN_BF16), .columns = decode_columns, .n_columns = TN_COUNT(decode_columns),                     \
        .rows = { 256, 512, 1024, 2048, 4096, 8192, 16384, 32768 }, .cpu_rows = { 256, 2048 }, .inputs = decode_inputs,   \
        .size = { batch, 16, 1 }, .one_input = true,                                                                      \
    }

/* Of the products that attention itself is made of, the half that a causal mask leaves: two forward, five backward. */
static double causal_flops(int64_t b, int64_t n, bool backward) {
    return (backward ? 5.0 : 2.0) * (double)b * (double)n * (double)n * HEADS * WIDTH;
}
static double train_flops(const bench_cell *cell) { return causal_flops(cell->table->size[0], cell->n, bench_is_backward(cell->kind)); }

static const bench_column train_columns[] = {
    { .name = "tenon", .op = "tpa_attention", .attrs = "{\"causal\": true}", .flops = train_flops },
};

#define TRAIN_TABLE(batch, batch_text, n, rank_text, rq, rk)                                                                            \
    {                                                                                                                                   \
        .family = "tpa_train", .setting = "batch" batch_text "-head32-dim128-rank" rank_text,                                           \
        .doc = "causal, from factors; the tape holds factors, o and log-sum-exp", .kinds = BENCH_FWD | BENCH_BWD,                       \
        .dtypes = TN_MASK(TN_BF16), .columns = train_columns, .n_columns = TN_COUNT(train_columns), .rows = { n }, .cpu_rows = { 256 }, \
        .inputs = train_inputs, .size = { batch, rq, rk },                                                                              \
    }

/* ---- attention; a table's size: b; a column's: heads of k and v ---- */

enum { Q, K, V, N_ATTENTION_INPUTS = V + 3 };

static void attention_inputs(const bench_cell *cell, int64_t n, int64_t m, bool gradient, bench_inputs *inputs) {
    int64_t b = cell->table->size[0], hk = cell->column->size[0];
    start_inputs(inputs, N_ATTENTION_INPUTS);
    inputs->in[Q] = (bench_input){ .shape = TN_SHAPE(b, n, HEADS, WIDTH), .gradient = gradient };
    for (int i = K; i <= V; i++) inputs->in[i] = (bench_input){ .shape = TN_SHAPE(b, m, hk, WIDTH), .gradient = gradient };
    bool by_head = hk == HEADS;
    if (!by_head) inputs->out_slice[0] = inputs->out_slice[1] = 0;
    for (int i = Q; by_head && i <= V; i++) {
        inputs->in[i].slice[0] = 1;
        inputs->in[i].slice[1] = 3;
    }
}

static void causal_inputs(const bench_cell *cell, bench_inputs *inputs) { attention_inputs(cell, cell->n, cell->n, true, inputs); }
static void cache_inputs(const bench_cell *cell, bench_inputs *inputs) { attention_inputs(cell, 1, cell->n, false, inputs); }

#define GROUPED(column_name, kv_heads)                                                                                    \
    {                                                                                                                     \
        .name = column_name, .op = "attention", .attrs = "{\"causal\": true}", .flops = train_flops, .size = { kv_heads } \
    }
static const bench_column causal_columns[] = { GROUPED("multi-head", HEADS), GROUPED("grouped-8", 8), GROUPED("multi-query", 1) };
#undef GROUPED
#define GROUPED(column_name, kv_heads)                               \
    {                                                                \
        .name = column_name, .op = "attention", .size = { kv_heads } \
    }
static const bench_column cache_columns[] = { GROUPED("multi-head", HEADS), GROUPED("grouped-8", 8), GROUPED("multi-query", 1) };

static const bench_table attention_tables[] = {
    DECODE_TABLE(8, "8"),
    DECODE_TABLE(32, "32"),
    TRAIN_TABLE(4, "4", 2048, "6_2", 6, 2),
    TRAIN_TABLE(4, "4", 2048, "16_1", 16, 1),
    TRAIN_TABLE(2, "2", 8192, "6_2", 6, 2),
    TRAIN_TABLE(2, "2", 8192, "16_1", 16, 1),
    {
        .family = "attention",
        .setting = "batch2-head32-dim128",
        .doc = "causal softmax attention; k and v with 32, 8 and 1 heads",
        .kinds = BENCH_FWD | BENCH_BWD,
        .dtypes = TN_MASK(TN_BF16),
        .columns = causal_columns,
        .n_columns = TN_COUNT(causal_columns),
        .rows = { 1024, 2048, 4096, 8192 },
        .cpu_rows = { 256 },
        .inputs = causal_inputs,
        .size = { 2 },
    },
    {
        .family = "attention",
        .setting = "decode-batch8-head32-dim128",
        .doc = "one query for each sequence, against a cache of n keys and values with 32, 8 and 1 heads",
        .kinds = BENCH_FWD,
        .dtypes = TN_MASK(TN_BF16),
        .columns = cache_columns,
        .n_columns = TN_COUNT(cache_columns),
        .rows = { 256, 1024, 4096, 16384 },
        .cpu_rows = { 256 },
        .inputs = cache_inputs,
        .size = { 8 },
    },
};

const bench_table_list bench_attention_tables = { attention_tables, TN_COUNT(attention_tables) };
