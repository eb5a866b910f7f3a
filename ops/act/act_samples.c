#include "act_internal.h"

/* Points beside relu's kink, the tails of every function, and zero. */
static const double spread[] = { -30, -8.5, -3, -1, -0.25, 0.125, 0.5, 1, 2.75, 9, 25 };
static const double huge[] = { -1e4, 1e4, 0, 9999, -3, 1e4 };

#define POINTWISE(act_name)                                                                                            \
    { .name = act_name, .in = { TN_SAMPLE_SHAPE(3, 5, 7) }, .attrs = "{\"act\": \"" act_name "\"}" }, {                \
        .name = act_name "-tails",                                                                                     \
        .in = { { .present = true, .shape = { 1, { 33 } }, .fill = TN_FILL_LIST, .values = spread, .n_values = 11 } }, \
        .attrs = "{\"act\": \"" act_name "\"}"                                                                         \
    }

const tn_sample tn_act_samples[] = {
    POINTWISE("none"),
    POINTWISE("relu"),
    POINTWISE("sigmoid"),
    POINTWISE("silu"),
    POINTWISE("gelu"),
    POINTWISE("tanh"),
    { .name = "softmax-last", .in = { TN_SAMPLE_SHAPE(2, 9, 3, 8) }, .attrs = "{\"act\": \"softmax\"}" },
    { .name = "softmax-wide", .in = { TN_SAMPLE_SHAPE(3, 131) }, .attrs = "{\"act\": \"softmax\"}" },
    { .name = "softmax-sequence", .in = { TN_SAMPLE_SHAPE(2, 9, 3, 8) }, .attrs = "{\"act\": \"softmax\", \"dim\": 1}" },
    { .name = "softmax-first", .in = { TN_SAMPLE_SHAPE(17, 2, 19) }, .attrs = "{\"act\": \"softmax\", \"dim\": 0}" },
    { .name = "softmax-one", .in = { TN_SAMPLE_SHAPE(4, 1) }, .attrs = "{\"act\": \"softmax\"}" },
    /* Too long to be handled as a whole. */
    { .name = "softmax-long", .in = { TN_SAMPLE_SHAPE(2, 70001) }, .attrs = "{\"act\": \"softmax\"}", .no_gradcheck = true },
    { .name = "softmax-tall", .in = { TN_SAMPLE_SHAPE(66001, 3) }, .attrs = "{\"act\": \"softmax\", \"dim\": 0}", .no_gradcheck = true },
    /* CUDA takes a block, one with more memory, or several blocks for a row, and several for a column. */
    { .name = "softmax-block", .in = { TN_SAMPLE_SHAPE(3, 2048) }, .attrs = "{\"act\": \"softmax\"}", .no_gradcheck = true },
    { .name = "softmax-large-block", .in = { TN_SAMPLE_SHAPE(2, 9000) }, .attrs = "{\"act\": \"softmax\"}", .no_gradcheck = true },
    { .name = "softmax-blocks", .in = { TN_SAMPLE_SHAPE(1, 40000) }, .attrs = "{\"act\": \"softmax\"}", .no_gradcheck = true },
    { .name = "softmax-deep", .in = { TN_SAMPLE_SHAPE(5000, 16) }, .attrs = "{\"act\": \"softmax\", \"dim\": 0}", .no_gradcheck = true },
    { .name = "softmax-deeper", .in = { TN_SAMPLE_SHAPE(17000, 16) }, .attrs = "{\"act\": \"softmax\", \"dim\": 0}", .no_gradcheck = true },
    { .name = "softmax-deepest", .in = { TN_SAMPLE_SHAPE(60000, 8) }, .attrs = "{\"act\": \"softmax\", \"dim\": 0}", .no_gradcheck = true },
    { .name = "softmax-huge",
      .in = { { .present = true, .shape = { 2, { 3, 6 } }, .fill = TN_FILL_LIST, .values = huge, .n_values = 6 } },
      .attrs = "{\"act\": \"softmax\"}",
      .no_gradcheck = true },
    { .name = "scalar", .in = { { .present = true } }, .attrs = "{\"act\": \"silu\"}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(3, 0, 2) }, .attrs = "{\"act\": \"softmax\", \"dim\": 1}" },
    { .name = "bad-dim",
      .in = { TN_SAMPLE_SHAPE(2, 3) },
      .attrs = "{\"act\": \"softmax\", \"dim\": 2}",
      .error = TN_ERR_ARGUMENT,
      .message = "dim 2" },
    { .name = "softmax-of-scalar",
      .in = { { .present = true } },
      .attrs = "{\"act\": \"softmax\"}",
      .error = TN_ERR_ARGUMENT,
      .message = "axis" },
    { .name = "integers",
      .in = { { .present = true, .shape = { 1, { 4 } }, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_INTEGER, .b = 4 } },
      .error = TN_ERR_DTYPE,
      .message = "i64" },
    { .name = NULL },
};
