#include "norm_internal.h"

/* Beside relu's kink. */
static const double off_kink[] = { -2.5, 0.75, -0.4, 1.6, -1.1, 0.3, 2.2 };
static const double mixed[] = { 1e4, -1e4, 3, 0.5, 9999 };

#define ROWS_OF_G(act_name)                                                                                     \
    {                                                                                                           \
        .name = "g-" act_name, .in = { TN_SAMPLE_SHAPE(3, 5, 7), TN_SAMPLE_SHAPE(7), LIST(off_kink, 3, 5, 7) }, \
        .attrs = "{\"g_act\": \"" act_name "\"}"                                                                \
    }
#define LIST(list, ...)                                                                                                  \
    {                                                                                                                    \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_LIST, .values = list, \
        .n_values = TN_COUNT(list)                                                                                       \
    }
#define EMPTY                                     \
    {                                             \
        .present = true, .shape = { 2, { 0, 5 } } \
    }
#define INTEGERS \
    { .present = true, .shape = { 1, { 4 } }, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_INTEGER, .b = 4 }

const tn_sample tn_rms_norm_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(4, 3, 17), TN_SAMPLE_SHAPE(17) } },
    { .name = "wide", .in = { TN_SAMPLE_SHAPE(3, 131), TN_SAMPLE_SHAPE(131) } },
    { .name = "many-rows", .in = { TN_SAMPLE_SHAPE(70, 9, 3), TN_SAMPLE_SHAPE(3) } },
    { .name = "one-row", .in = { TN_SAMPLE_SHAPE(64), TN_SAMPLE_SHAPE(64) } },
    { .name = "one-column", .in = { LIST(off_kink, 5, 1), TN_SAMPLE_SHAPE(1) }, .attrs = "{\"eps\": 0.5}" },
    { .name = "large-eps", .in = { TN_SAMPLE_SHAPE(2, 33), TN_SAMPLE_SHAPE(33) }, .attrs = "{\"eps\": 1.0}" },
    { .name = "no-eps", .in = { TN_SAMPLE_SHAPE(2, 16), TN_SAMPLE_SHAPE(16) }, .attrs = "{\"eps\": 0}" },
    { .name = "large-values", .in = { LIST(mixed, 3, 5), TN_SAMPLE_SHAPE(5) }, .no_gradcheck = true },
    { .name = "empty", .in = { EMPTY, TN_SAMPLE_SHAPE(5) } },
    ROWS_OF_G("none"),
    ROWS_OF_G("relu"),
    ROWS_OF_G("sigmoid"),
    ROWS_OF_G("silu"),
    ROWS_OF_G("gelu"),
    ROWS_OF_G("tanh"),
    { .name = "wide-g",
      .in = { TN_SAMPLE_SHAPE(2, 2, 80), TN_SAMPLE_SHAPE(80), TN_SAMPLE_SHAPE(2, 2, 80) },
      .attrs = "{\"g_act\": \"silu\"}" },
    /* CUDA takes a block for a row. */
    { .name = "block", .in = { TN_SAMPLE_SHAPE(5, 2048), TN_SAMPLE_SHAPE(2048) }, .no_gradcheck = true },
    { .name = "block-g",
      .in = { TN_SAMPLE_SHAPE(5, 1536), TN_SAMPLE_SHAPE(1536), TN_SAMPLE_SHAPE(5, 1536) },
      .attrs = "{\"g_act\": \"silu\"}",
      .no_gradcheck = true },
    { .name = "weight-too-short", .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(4) }, .error = TN_ERR_SHAPE, .message = "weight [5]" },
    { .name = "weight-with-two-axes",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(1, 5) },
      .error = TN_ERR_SHAPE,
      .message = "weight [5]" },
    { .name = "scalar", .in = { { .present = true }, TN_SAMPLE_SHAPE(1) }, .error = TN_ERR_SHAPE, .message = "at least one axis" },
    { .name = "g-of-other-shape",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(5), TN_SAMPLE_SHAPE(3, 1) },
      .error = TN_ERR_SHAPE,
      .message = "g of x's shape" },
    { .name = "g_act-without-g",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(5) },
      .attrs = "{\"g_act\": \"silu\"}",
      .error = TN_ERR_ARGUMENT,
      .message = "g_act" },
    { .name = "negative-eps",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(5) },
      .attrs = "{\"eps\": -1}",
      .error = TN_ERR_ARGUMENT,
      .message = "eps = -1" },
    { .name = "integers", .in = { INTEGERS, TN_SAMPLE_SHAPE(4) }, .error = TN_ERR_DTYPE, .message = "i64" },
    { .name = NULL },
};

const tn_sample tn_layer_norm_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(4, 3, 17), TN_SAMPLE_SHAPE(17), TN_SAMPLE_SHAPE(17) } },
    { .name = "wide", .in = { TN_SAMPLE_SHAPE(3, 131), TN_SAMPLE_SHAPE(131), TN_SAMPLE_SHAPE(131) } },
    { .name = "many-rows", .in = { TN_SAMPLE_SHAPE(70, 9, 3), TN_SAMPLE_SHAPE(3), TN_SAMPLE_SHAPE(3) }, .attrs = "{\"eps\": 0.1}" },
    { .name = "one-row", .in = { TN_SAMPLE_SHAPE(64), TN_SAMPLE_SHAPE(64), TN_SAMPLE_SHAPE(64) } },
    { .name = "one-column", .in = { TN_SAMPLE_SHAPE(5, 1), TN_SAMPLE_SHAPE(1), TN_SAMPLE_SHAPE(1) } },
    { .name = "large-eps", .in = { TN_SAMPLE_SHAPE(2, 33), TN_SAMPLE_SHAPE(33), TN_SAMPLE_SHAPE(33) }, .attrs = "{\"eps\": 1.0}" },
    { .name = "equal-numbers",
      .in = { { .present = true, .shape = { 2, { 3, 20 } }, .fill = TN_FILL_CONSTANT, .a = 2 }, TN_SAMPLE_SHAPE(20), TN_SAMPLE_SHAPE(20) },
      .no_gradcheck = true },
    { .name = "large-values", .in = { LIST(mixed, 3, 5), TN_SAMPLE_SHAPE(5), TN_SAMPLE_SHAPE(5) }, .no_gradcheck = true },
    { .name = "block", .in = { TN_SAMPLE_SHAPE(5, 2048), TN_SAMPLE_SHAPE(2048), TN_SAMPLE_SHAPE(2048) }, .no_gradcheck = true },
    { .name = "empty", .in = { EMPTY, TN_SAMPLE_SHAPE(5), TN_SAMPLE_SHAPE(5) } },
    { .name = "weight-too-short",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(4), TN_SAMPLE_SHAPE(5) },
      .error = TN_ERR_SHAPE,
      .message = "weight [5]" },
    { .name = "bias-too-short",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(5), TN_SAMPLE_SHAPE(4) },
      .error = TN_ERR_SHAPE,
      .message = "bias" },
    { .name = "scalar",
      .in = { { .present = true }, TN_SAMPLE_SHAPE(1), TN_SAMPLE_SHAPE(1) },
      .error = TN_ERR_SHAPE,
      .message = "at least one axis" },
    { .name = "negative-eps",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(5), TN_SAMPLE_SHAPE(5) },
      .attrs = "{\"eps\": -1}",
      .error = TN_ERR_ARGUMENT,
      .message = "eps = -1" },
    { .name = "integers", .in = { INTEGERS, TN_SAMPLE_SHAPE(4), TN_SAMPLE_SHAPE(4) }, .error = TN_ERR_DTYPE, .message = "i64" },
    { .name = NULL },
};
