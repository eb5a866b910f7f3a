/* Sizes one beyond what the CPU kernels do in one piece, so that the last piece is the smallest there is and sums go over more than one.
 * Each is checked in f64 against differences of the function, and in f32 and bf16 against f64: kernels that share a cut share its
 * mistakes. */
#include "harness.h"

#include <string.h>

#include "op_cases.h"
#include "op_comparisons.h"
#include "ops/registry.h"

#define SHAPE(...) TN_SAMPLE_SHAPE(__VA_ARGS__)
#define INDEX(below, ...)                                                                                               \
    {                                                                                                                   \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_INTEGER, .b = below, \
        .other_dtype = true, .dtype = TN_I64                                                                            \
    }

#define CONSTANT(value, ...)                                                                                             \
    {                                                                                                                    \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_CONSTANT, .a = value, \
        .other_dtype = true, .dtype = TN_I64                                                                             \
    }

typedef struct edge {
    const char *op;
    tn_sample sample;
} edge;

/* clang-format off */
static const edge edges[] = {
    /* softmax: rows of more than 64, 4096 and 65536, panels of 128 columns, pieces of 65536 of a column */
    { "act", { .name = "rows", .in = { SHAPE(3, 4097) }, .attrs = "{\"act\": \"softmax\"}" } },
    { "act", { .name = "long-row", .in = { SHAPE(1, 65537) }, .attrs = "{\"act\": \"softmax\"}" } },
    { "act", { .name = "columns", .in = { SHAPE(257, 129) }, .attrs = "{\"act\": \"softmax\", \"dim\": 0}" } },
    { "act", { .name = "long-column", .in = { SHAPE(65537, 2) }, .attrs = "{\"act\": \"softmax\", \"dim\": 0}" } },
    { "act", { .name = "elements", .in = { SHAPE(16385) }, .attrs = "{\"act\": \"gelu\"}" } },
    { "swiglu", { .name = "rows", .in = { SHAPE(129, 130), SHAPE(129, 130) } } },
    /* tiles of 64 queries and 128 keys */
    { "attention", { .name = "tiles", .in = { SHAPE(1, 65, 1, 3), SHAPE(1, 129, 1, 3), SHAPE(1, 129, 1, 2) } } },
    { "attention", { .name = "two-heads", .in = { SHAPE(1, 33, 2, 3), SHAPE(1, 257, 1, 3), SHAPE(1, 257, 1, 2) } } },
    { "attention", { .name = "causal", .in = { SHAPE(1, 129, 1, 3), SHAPE(1, 129, 1, 3), SHAPE(1, 129, 1, 2) }, .attrs = "{\"causal\": true}" } },
    { "attention", { .name = "causal-last", .in = { SHAPE(1, 40, 1, 3), SHAPE(1, 140, 1, 3), SHAPE(1, 140, 1, 2) }, .attrs = "{\"causal\": true}" } },
    { "attention", { .name = "causal-first", .in = { SHAPE(1, 140, 1, 3), SHAPE(1, 40, 1, 3), SHAPE(1, 40, 1, 2) }, .attrs = "{\"causal\": true}" } },
    { "tpa_attention", { .name = "tiles", .in = { SHAPE(1, 65, 2, 2), SHAPE(1, 65, 2, 3), SHAPE(1, 129, 2, 2), SHAPE(1, 129, 2, 3), SHAPE(1, 129, 2, 2), SHAPE(1, 129, 2, 2) } } },
    { "tpa_attention", { .name = "causal", .in = { SHAPE(1, 129, 2, 2), SHAPE(1, 129, 2, 3), SHAPE(1, 129, 2, 2), SHAPE(1, 129, 2, 3), SHAPE(1, 129, 2, 2), SHAPE(1, 129, 2, 2) }, .attrs = "{\"causal\": true}" } },
    /* a query against parts of 2048 keys */
    { "attention", { .name = "one-query", .in = { SHAPE(1, 1, 4, 2), SHAPE(1, 2051, 2, 2), SHAPE(1, 2051, 2, 1) } } },
    { "tpa_attention", { .name = "parts", .in = { SHAPE(1, 1, 2, 2), SHAPE(1, 1, 2, 3), SHAPE(1, 2049, 2, 2), SHAPE(1, 2049, 2, 3), SHAPE(1, 2049, 2, 2), SHAPE(1, 2049, 2, 2) } } },
    /* chunks of at most 1024 rows, as even as can be; panels of weights, in bf16, of 2^20 elements */
    { "linear_cross_entropy", { .name = "chunks", .in = { SHAPE(2051, 3), SHAPE(11, 3), INDEX(11, 2051) } } },
    { "linear_cross_entropy", { .name = "panels", .in = { SHAPE(2, 15), SHAPE(65601, 15), CONSTANT(65600, 2) }, .dtypes = TN_MASK(TN_BF16) } },
    { "cross_entropy", { .name = "rows", .in = { SHAPE(1030, 17), INDEX(17, 1030) } } },
    /* panels of 256 columns, blocks of 64 rows, sums of 256 places */
    { "embedding", { .name = "blocks", .in = { SHAPE(65, 257), INDEX(65, 70) } } },
    { "embedding", { .name = "many-places", .in = { SHAPE(2, 257), INDEX(2, 1100) } } },
    { "gather", { .name = "rows", .in = { SHAPE(129, 130), INDEX(129, 200, 130) }, .attrs = "{\"dim\": 0}" } },
    { "gather", { .name = "columns", .in = { SHAPE(130, 129), INDEX(129, 130, 200) }, .attrs = "{\"dim\": 1}" } },
    { "gather", { .name = "many-slices", .in = { SHAPE(9000, 33), INDEX(33, 9000, 100) }, .attrs = "{\"dim\": 1}" } },
    { "gather", { .name = "four-axes", .in = { SHAPE(3, 4, 5, 7), INDEX(3, 5, 3, 4, 6) }, .attrs = "{\"dim\": 0}" } },
    { "gather", { .name = "four-axes-second", .in = { SHAPE(3, 4, 5, 7), INDEX(4, 3, 6, 4, 6) }, .attrs = "{\"dim\": 1}" } },
    { "gather", { .name = "four-axes-third", .in = { SHAPE(3, 4, 5, 7), INDEX(5, 3, 4, 6, 6) }, .attrs = "{\"dim\": 2}" } },
    { "slice", { .name = "first-alone", .in = { SHAPE(65, 129) }, .attrs = "{\"end\": 1}" } },
    { "topk", { .name = "rows", .in = { SHAPE(130, 257) }, .attrs = "{\"k\": 5}" } },
    /* chunks of rows with 16384 elements, 64 of them at most */
    { "rms_norm", { .name = "chunks", .in = { SHAPE(1825, 17), SHAPE(17) } } },
    { "rms_norm", { .name = "gate", .in = { SHAPE(1825, 17), SHAPE(17), SHAPE(1825, 17) }, .attrs = "{\"g_act\": \"silu\"}" } },
    { "layer_norm", { .name = "chunks", .in = { SHAPE(1825, 17), SHAPE(17), SHAPE(17) } } },
    { "linear", { .name = "chunks", .in = { SHAPE(1825, 3), SHAPE(17, 3), SHAPE(17) } } },
    { "linear", { .name = "chunks-act", .in = { SHAPE(1825, 3), SHAPE(17, 3), SHAPE(17) }, .attrs = "{\"act\": \"gelu\"}" } },
    { "matmul", { .name = "odd", .in = { SHAPE(3, 65, 33), SHAPE(3, 33, 129) } } },
    { "matmul", { .name = "single-rows", .in = { SHAPE(3, 1, 33), SHAPE(33, 129) } } },
    /* rows that are cut into 4096s, columns side by side */
    { "logsumexp", { .name = "rows", .in = { SHAPE(3, 1025) }, .attrs = "{\"dims\": [1]}" } },
    { "logsumexp", { .name = "long-row", .in = { SHAPE(1, 32769) }, .attrs = "{\"dims\": [1]}" } },
    { "logsumexp", { .name = "cut-row", .in = { SHAPE(1, 12288) }, .attrs = "{\"dims\": [1]}" } },
    { "logsumexp", { .name = "columns", .in = { SHAPE(257, 129) }, .attrs = "{\"dims\": [0]}" } },
    { "logsumexp", { .name = "middle", .in = { SHAPE(3, 17, 17) }, .attrs = "{\"dims\": [1]}" } },
    { "logsumexp", { .name = "outside", .in = { SHAPE(17, 5, 65) }, .attrs = "{\"dims\": [0, 2]}" } },
    { "max", { .name = "rows", .in = { SHAPE(3, 1025) }, .attrs = "{\"dims\": [1]}" } },
    { "max", { .name = "large", .in = { SHAPE(3, 70001) }, .attrs = "{\"dims\": [1]}", .dtypes = TN_MASK(TN_F32) } },
    { "max", { .name = "columns", .in = { SHAPE(257, 129) }, .attrs = "{\"dims\": [0]}" } },
    { "sum", { .name = "columns", .in = { SHAPE(257, 129) }, .attrs = "{\"dims\": [0]}" } },
    { "mean", { .name = "all", .in = { SHAPE(257, 129) } } },
    { "cumsum", { .name = "rows", .in = { SHAPE(9, 300) }, .attrs = "{\"dim\": 1}" } },
    { "cumsum", { .name = "columns", .in = { SHAPE(30, 257) }, .attrs = "{\"dim\": 0, \"reverse\": true}" } },
    { "cumsum", { .name = "planes", .in = { SHAPE(3, 20, 257) }, .attrs = "{\"dim\": 1, \"exclusive\": true}" } },
    /* sums of the gradient of what was repeated: all of it, rows, columns, both */
    { "mul", { .name = "scalar", .in = { SHAPE(65537), SHAPE(1) } } },
    { "mul", { .name = "row", .in = { SHAPE(257, 300), SHAPE(300) } } },
    { "mul", { .name = "column", .in = { SHAPE(257, 300), SHAPE(257, 1) } } },
    { "mul", { .name = "middle", .in = { SHAPE(33, 5, 401), SHAPE(5, 1) } } },
    { "mul", { .name = "both", .in = { SHAPE(257, 1), SHAPE(1, 300) } } },
    { "add", { .name = "row", .in = { SHAPE(513, 300), SHAPE(300) } } },
    { "add", { .name = "scalar", .in = { SHAPE(1), SHAPE(65537) } } },
    { "expand", { .name = "rows", .in = { SHAPE(1, 129) }, .attrs = "{\"shape\": [513, 129]}" } },
    { "expand", { .name = "columns", .in = { SHAPE(513, 1) }, .attrs = "{\"shape\": [513, 129]}" } },
    /* chunks of at least 16 tokens, 64 of them at most; columns in pieces of 256; 4 rows in 144 KiB of stack */
    { "lrpe", { .name = "wide", .in = { SHAPE(1, 3, 1, 9218), SHAPE(1, 4609) }, .attrs = "{\"kind\": \"rotate\"}" } },
    { "lrpe", { .name = "rotate", .in = { SHAPE(1, 1030, 2, 4), SHAPE(2, 2) }, .attrs = "{\"kind\": \"rotate\"}" } },
    { "lrpe", { .name = "cosine-shared", .in = { SHAPE(2, 1030, 3, 4), SHAPE(1, 4) }, .attrs = "{\"kind\": \"cosine\"}" } },
    { "lrpe", { .name = "softmax-tokens", .in = { SHAPE(1, 1030, 2, 4), SHAPE(2, 2) }, .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1}" } },
    /* chunks of 64 tokens */
    { "linear_attention", { .name = "causal", .in = { SHAPE(1, 129, 1, 3), SHAPE(1, 129, 1, 3), SHAPE(1, 129, 1, 2) }, .attrs = "{\"causal\": true}" } },
    { "linear_attention", { .name = "full", .in = { SHAPE(1, 257, 1, 3), SHAPE(1, 257, 1, 3), SHAPE(1, 257, 1, 2) } } },
};
/* clang-format on */

static void check(const edge *e, const tn_op_def *op) {
    static const tn_dtype dtypes[] = { TN_F32, TN_BF16 };
    tn_gradcheck_result result;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .history_events = -1 });
    /* debug: nothing is written outside, and nothing left unwritten */
    run_how how = { .op = op, .sample = &e->sample, .dtype = TN_F64, .debug = true };
    tn_run_note(&how, "one beyond");
    if (tn_sample_has_gradcheck(cx, op, &e->sample)) {
        tn_gradcheck_options options = TN_GRADCHECK(.seed = TN_TEST_SEED, .full_limit = 1, .n_projections = 3);
        TN_TEST_WANT(tn_sample_gradcheck(cx, op, &e->sample, options, &result), "the check could not be made: %s", tn_error(cx));
        TN_TEST_WANT(result.passed, "d output %d / d input %d: backward says %.12g, differences %.12g, %.3g of the tolerance",
                     result.output, result.input, result.analytic, result.numeric, result.worst_share);
    }
    tn_close(cx);
    for (int i = 0; i < TN_COUNT(dtypes); i++) {
        how.dtype = dtypes[i];
        if (e->sample.dtypes && !(e->sample.dtypes >> dtypes[i] & 1)) continue;
        tn_run_note(&how, "one beyond");
        tn_compare_with_f64(&how);
    }
}

static void test_edges(void **state) {
    const op_case *c = *state;
    for (int i = 0; i < TN_COUNT(edges); i++)
        if (strcmp(edges[i].op, c->op->name) == 0) check(&edges[i], c->op);
}

static bool has_edges(const tn_op_def *op) {
    for (int i = 0; i < TN_COUNT(edges); i++)
        if (strcmp(edges[i].op, op->name) == 0) return true;
    return false;
}

static void test_all_there(void **state) {
    (void)state;
    for (int i = 0; i < TN_COUNT(edges); i++) TN_TEST_WANT(tn_op_find(edges[i].op), "there is no op %s", edges[i].op);
}

static const op_kind kinds[] = { { "edges", test_edges, has_edges, TN_F64 } };
static const struct CMUnitTest more[] = { { .name = "all/there", .test_func = test_all_there } };

int main(int argc, char **argv) { return tn_op_cases_main("test_chunk_edges", kinds, TN_COUNT(kinds), more, TN_COUNT(more), argc, argv); }
