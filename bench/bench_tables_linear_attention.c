/* flao-*, flao_fal-*: d = e = 128, bhnd; b = h = 12 as in the tables of the ops' origin, where theta wants no gradient, and one sequence
 * of few heads. causal-*: with decay. */
#include "bench_table.h"

#define WIDTH 128
#define FULL_ROWS .rows = { 256, 512, 1024, 2048, 4096, 8192, 16384, 32768 }, .cpu_rows = { 256 }
#define LONG_ROWS .rows = { 4096, 65536 }, .cpu_rows = { 2048 }
#define BOTH_KINDS .kinds = BENCH_FWD | BENCH_BWD, .dtypes = TN_MASK(TN_BF16)
#define SPEED_ALONE .kinds = BENCH_BIT(BENCH_SPEED_FWD) | BENCH_BIT(BENCH_SPEED_BWD), .dtypes = TN_MASK(TN_BF16)

/* The op's inputs by place. */
enum { Q, K, V, G, THETA, LOG_DECAY, STATE, CU_SEQLENS, N_INPUTS };

static void start_inputs(bench_inputs *inputs) {
    for (int i = 0; i < N_INPUTS; i++) inputs->in[i] = (bench_input){ .absent = true };
    inputs->n = N_INPUTS;
}

/* ---- flao: o = g (q (k' v)). A table's size: b, h, the activation of q ---- */

/* Every batch and every head is on its own. */
static void flao_inputs(const bench_cell *cell, bench_inputs *inputs) {
    int64_t b = cell->table->size[0], h = cell->table->size[1];
    start_inputs(inputs);
    for (int i = Q; i <= G; i++)
        inputs->in[i] = (bench_input){ .shape = TN_SHAPE(b, h, cell->n, WIDTH), .gradient = true, .slice = { 1, 2 } };
    inputs->out_slice[0] = 1;
    inputs->out_slice[1] = 2;
}

static tn_tensor *lao(bench_set *set) {
    return tn_lao(set->in[Q], set->in[K], set->in[V], TN_LINEAR_ATTENTION(.g = set->in[G], .layout = TN_BHND));
}

static const bench_column flao_columns[] = {
    { .name = "lao", .call = lao, .floor_like = "flao" },
    { .name = "flao", .op = "linear_attention", .attrs = "{\"layout\": \"bhnd\"}" },
};

#define FLAO_TABLE(b, h)                                                                                    \
    .family = "flao", .setting = "batch" #b "-head" #h "-dim128",                                           \
    .doc = "q, k, v, g [" #b "," #h ",n,128]: composed of nodes, and as one node", .columns = flao_columns, \
    .n_columns = TN_COUNT(flao_columns), .inputs = flao_inputs, .size = { b, h }

static const bench_table flao_tables[] = {
    { FLAO_TABLE(12, 12), BOTH_KINDS, FULL_ROWS, .upstream_resident = true },
    { FLAO_TABLE(1, 4), SPEED_ALONE, LONG_ROWS }, /* far fewer heads than multiprocessors */
};

/* ---- fal: activations and LRPE before it ---- */

static void fal_inputs(const bench_cell *cell, bench_inputs *inputs) {
    flao_inputs(cell, inputs);
    inputs->in[THETA] = (bench_input){ .shape = TN_SHAPE(cell->table->size[1], WIDTH), .wide = true, .slice = { 0, 1 } };
}

/* The fused node on what nodes of their own have activated and encoded. */
static tn_tensor *flao_al(bench_set *set) {
    tn_linear_attention_args encoding = TN_LINEAR_ATTENTION(.theta = set->in[THETA], .kind = TN_COSINE, .layout = TN_BHND);
    tn_tensor *q = tn_lao_encode(set->in[Q], (int)set->cell->table->size[2], -1, 0, encoding);
    tn_tensor *k = tn_lao_encode(set->in[K], TN_SILU, -1, 0, encoding);
    return tn_linear_attention(q, k, set->in[V], TN_LINEAR_ATTENTION(.g = tn_silu(set->in[G]), .layout = TN_BHND));
}

#define FAL_ATTRS(q_act) "{\"layout\": \"bhnd\", \"kind\": \"cosine\", \"q_act\": \"" q_act "\", \"k_act\": \"silu\", \"g_act\": \"silu\"}"
#define FAL_COLUMNS(q_act)                                                     \
    {                                                                          \
        { .name = "flao_al", .call = flao_al, .floor_like = "fal" }, {         \
            .name = "fal", .op = "linear_attention", .attrs = FAL_ATTRS(q_act) \
        }                                                                      \
    }
static const bench_column fal_silu_columns[] = FAL_COLUMNS("silu");
static const bench_column fal_softmax_columns[] = FAL_COLUMNS("softmax");

#define FAL_TABLE(b, h, fal_setting, fal_columns, q_act, what)                                                                  \
    .family = "flao_fal", .setting = "batch" #b "-head" #h "-dim128-dim128" fal_setting,                                        \
    .doc = "q, k, v, g [" #b "," #h ",n,128], theta [" #h ",128], cosine; " what ": by nodes before flao, and inside the node", \
    .columns = fal_columns, .n_columns = TN_COUNT(fal_columns), .inputs = fal_inputs, .size = { b, h, q_act }
#define FAL_SILU(b, h) FAL_TABLE(b, h, "", fal_silu_columns, TN_SILU, "silu on q, k, g")
#define FAL_SOFTMAX(b, h) FAL_TABLE(b, h, SOFTMAX_SETTING, fal_softmax_columns, TN_SOFTMAX, "softmax on q, silu on k and g")
#define SOFTMAX_SETTING "-qact_softmax_-1-kact_silu_None-vact_none_None-gact_silu_None"

static const bench_table fal_tables[] = {
    { FAL_SILU(12, 12), BOTH_KINDS, FULL_ROWS, .upstream_resident = true },
    { FAL_SOFTMAX(12, 12), BOTH_KINDS, FULL_ROWS, .upstream_resident = true },
    { FAL_SILU(1, 4), SPEED_ALONE, LONG_ROWS },
    { FAL_SOFTMAX(1, 4), SPEED_ALONE, LONG_ROWS },
};

/* ---- causal: q, k, v [b,n,h,128]. A table's size: b, h; a column's: 1 where the decay is of each token ---- */

static void causal_inputs(const bench_cell *cell, bench_inputs *inputs) {
    int64_t b = cell->table->size[0], h = cell->table->size[1];
    start_inputs(inputs);
    for (int i = Q; i <= V; i++)
        inputs->in[i] = (bench_input){ .shape = TN_SHAPE(b, cell->n, h, WIDTH), .gradient = true, .slice = { 1, 3 } };
    bench_input decay = { .shape = TN_SHAPE(h), .slice = { 0, 1 } };
    if (cell->column->size[0]) decay = (bench_input){ .shape = TN_SHAPE(b, cell->n, h), .gradient = true, .slice = { 1, 3 } };
    decay.fill = TN_FILL_UNIFORM;
    decay.a = -0.1;
    decay.b = -0.001;
    decay.wide = true;
    inputs->in[LOG_DECAY] = decay;
    inputs->out_slice[0] = 1;
    inputs->out_slice[1] = 3;
}

static const bench_column causal_columns[] = {
    { .name = "constant", .op = "linear_attention", .attrs = "{\"causal\": true}" },
    { .name = "scalar", .op = "linear_attention", .attrs = "{\"causal\": true}", .size = { 1 } },
};

/* A step of generation for n sequences, each [h,128,128] of state read and written. */
static void decode_inputs(const bench_cell *cell, bench_inputs *inputs) {
    int64_t h = cell->table->size[1];
    start_inputs(inputs);
    for (int i = Q; i <= V; i++) inputs->in[i] = (bench_input){ .shape = TN_SHAPE(cell->n, 1, h, WIDTH), .slice = { 1, 3 } };
    inputs->in[LOG_DECAY] =
        (bench_input){ .shape = TN_SHAPE(h), .fill = TN_FILL_UNIFORM, .a = -0.1, .b = -0.001, .wide = true, .slice = { 0, 1 } };
    inputs->in[STATE] = (bench_input){ .shape = TN_SHAPE(cell->n, h, WIDTH, WIDTH), .wide = true, .slice = { 1, 2 } };
    inputs->out_slice[0] = 1;
    inputs->out_slice[1] = 3;
}

static tn_tensor *decode_step(bench_set *set) {
    return tn_linear_attention_step(set->in[Q], set->in[K], set->in[V],
                                    TN_LINEAR_ATTENTION(.log_decay = set->in[LOG_DECAY], .state = set->in[STATE]));
}

static int64_t decode_floor(const bench_set *set, bool backward) {
    (void)backward;
    return (int64_t)(4 * tn_bytes(set->in[V]) + tn_bytes(set->in[LOG_DECAY]) + 2 * tn_bytes(set->in[STATE]));
}

static const bench_column decode_columns[] = { { .name = "step", .call = decode_step, .floor_bytes = decode_floor } };

#define CAUSAL_ROWS .rows = { 2048, 4096, 8192, 16384, 32768 }, .cpu_rows = { 512 }
static const bench_table causal_tables[] = {
    {
        .family = "causal",
        .setting = "batch4-head32-dim128",
        .doc = "q, k, v [4,n,32,128], log_decay [32] or [4,n,32] (with a gradient)",
        BOTH_KINDS,
        .columns = causal_columns,
        .n_columns = TN_COUNT(causal_columns),
        CAUSAL_ROWS,
        .inputs = causal_inputs,
        .size = { 4, 32 },
    },
    {
        .family = "causal",
        .setting = "batch1-head8-dim128",
        .doc = "q, k, v [1,n,8,128]: fewer heads than multiprocessors",
        BOTH_KINDS,
        .columns = causal_columns,
        .n_columns = TN_COUNT(causal_columns),
        .rows = { 65536 },
        .cpu_rows = { 2048 },
        .inputs = causal_inputs,
        .size = { 1, 8 },
    },
    {
        .family = "causal",
        .setting = "decode-head32-dim128",
        .doc = "a step of generation of n sequences, the state [n,32,128,128] updated in place",
        .kinds = BENCH_BIT(BENCH_SPEED_FWD),
        .dtypes = TN_MASK(TN_BF16),
        .columns = decode_columns,
        .n_columns = TN_COUNT(decode_columns),
        .rows = { 1, 8, 32, 128 },
        .cpu_rows = { 1, 8 },
        .inputs = decode_inputs,
        .size = { 0, 32 },
    },
};

const bench_table_list bench_flao_tables = { flao_tables, TN_COUNT(flao_tables) };
const bench_table_list bench_fal_tables = { fal_tables, TN_COUNT(fal_tables) };
const bench_table_list bench_causal_tables = { causal_tables, TN_COUNT(causal_tables) };
