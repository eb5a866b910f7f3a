#include "matmul_internal.h"

/* A shape with an axis of 0, which TN_SAMPLE_SHAPE takes too; named so that it is seen. */
#define EMPTY TN_SAMPLE_SHAPE
#define SCALAR \
    { .present = true }

const tn_sample tn_matmul_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(5, 7), TN_SAMPLE_SHAPE(7, 3) } },
    { .name = "larger", .in = { TN_SAMPLE_SHAPE(33, 65), TN_SAMPLE_SHAPE(65, 31) } },
    { .name = "ones", .in = { TN_SAMPLE_SHAPE(1, 1), TN_SAMPLE_SHAPE(1, 1) } },
    { .name = "outer", .in = { TN_SAMPLE_SHAPE(5, 1), TN_SAMPLE_SHAPE(1, 17) } },
    { .name = "row-times-matrix", .in = { TN_SAMPLE_SHAPE(7), TN_SAMPLE_SHAPE(7, 3) } },
    { .name = "matrix-times-column", .in = { TN_SAMPLE_SHAPE(5, 7), TN_SAMPLE_SHAPE(7) } },
    { .name = "dot", .in = { TN_SAMPLE_SHAPE(17), TN_SAMPLE_SHAPE(17) } },
    { .name = "batch", .in = { TN_SAMPLE_SHAPE(2, 3, 5, 7), TN_SAMPLE_SHAPE(2, 3, 7, 4) } },
    { .name = "batch-times-matrix", .in = { TN_SAMPLE_SHAPE(2, 3, 5, 7), TN_SAMPLE_SHAPE(7, 4) } },
    { .name = "matrix-times-batch", .in = { TN_SAMPLE_SHAPE(5, 7), TN_SAMPLE_SHAPE(3, 2, 7, 4) } },
    { .name = "batch-of-ones", .in = { TN_SAMPLE_SHAPE(3, 1, 5, 7), TN_SAMPLE_SHAPE(2, 7, 4) } },
    { .name = "both-broadcast", .in = { TN_SAMPLE_SHAPE(2, 1, 3, 5, 7), TN_SAMPLE_SHAPE(4, 1, 7, 3) } },
    { .name = "batch-times-column", .in = { TN_SAMPLE_SHAPE(2, 3, 5, 7), TN_SAMPLE_SHAPE(7) } },
    { .name = "row-times-batch", .in = { TN_SAMPLE_SHAPE(7), TN_SAMPLE_SHAPE(2, 3, 7, 5) } },
    { .name = "one-row-each", .in = { TN_SAMPLE_SHAPE(6, 1, 9), TN_SAMPLE_SHAPE(6, 9, 4) } },
    { .name = "no-k", .in = { EMPTY(3, 0), EMPTY(0, 4) } },
    { .name = "no-rows", .in = { EMPTY(0, 5), TN_SAMPLE_SHAPE(5, 4) } },
    { .name = "no-batch", .in = { EMPTY(0, 3, 5), TN_SAMPLE_SHAPE(5, 4) } },
    { .name = "scalar", .in = { SCALAR, TN_SAMPLE_SHAPE(3) }, .error = TN_ERR_SHAPE, .message = "at least one axis" },
    { .name = "other-k",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(4, 5) },
      .error = TN_ERR_SHAPE,
      .message = "k is 5 in a and 4 in b" },
    { .name = "batch-mismatch",
      .in = { TN_SAMPLE_SHAPE(2, 3, 5), TN_SAMPLE_SHAPE(3, 5, 4) },
      .error = TN_ERR_SHAPE,
      .message = "broadcast" },
    { .name = "integers",
      .in = { { .present = true, .shape = { 2, { 3, 4 } }, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_INTEGER, .b = 4 },
              TN_SAMPLE_SHAPE(4, 2) },
      .error = TN_ERR_DTYPE,
      .message = "i64" },
    { .name = "two-dtypes",
      .in = { TN_SAMPLE_SHAPE(3, 4), { .present = true, .shape = { 2, { 4, 2 } }, .other_dtype = true, .dtype = TN_I32 } },
      .error = TN_ERR_DTYPE,
      .message = "same dtype" },
    { .name = NULL },
};

#define WITH_ACT(act_name)                                                                                                           \
    { .name = act_name,                                                                                                              \
      .in = { TN_SAMPLE_SHAPE(3, 5, 12), TN_SAMPLE_SHAPE(7, 12), TN_SAMPLE_SHAPE(7) },                                               \
      .attrs = "{\"act\": \"" act_name "\"}" },                                                                                      \
    {                                                                                                                                \
        .name = act_name "-no-bias", .in = { TN_SAMPLE_SHAPE(4, 9), TN_SAMPLE_SHAPE(17, 9) }, .attrs = "{\"act\": \"" act_name "\"}" \
    }

const tn_sample tn_linear_samples[] = {
    WITH_ACT("none"),
    WITH_ACT("relu"),
    WITH_ACT("sigmoid"),
    WITH_ACT("silu"),
    WITH_ACT("gelu"),
    WITH_ACT("tanh"),
    { .name = "one-row", .in = { TN_SAMPLE_SHAPE(5), TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(3) } },
    { .name = "one-feature", .in = { TN_SAMPLE_SHAPE(6, 1), TN_SAMPLE_SHAPE(1, 1), TN_SAMPLE_SHAPE(1) } },
    { .name = "many-rows",
      .in = { TN_SAMPLE_SHAPE(2, 70, 3), TN_SAMPLE_SHAPE(33, 3), TN_SAMPLE_SHAPE(33) },
      .attrs = "{\"act\": \"silu\"}" },
    { .name = "four-axes", .in = { TN_SAMPLE_SHAPE(2, 3, 2, 5), TN_SAMPLE_SHAPE(4, 5), TN_SAMPLE_SHAPE(4) } },
    { .name = "no-rows", .in = { EMPTY(2, 0, 5), TN_SAMPLE_SHAPE(4, 5), TN_SAMPLE_SHAPE(4) }, .attrs = "{\"act\": \"gelu\"}" },
    { .name = "no-features", .in = { EMPTY(3, 0), EMPTY(4, 0), TN_SAMPLE_SHAPE(4) } },
    { .name = "scalar", .in = { SCALAR, TN_SAMPLE_SHAPE(4, 5) }, .error = TN_ERR_SHAPE, .message = "at least one axis" },
    { .name = "weight-not-fitting",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(5, 4) },
      .error = TN_ERR_SHAPE,
      .message = "weight [out, 5]" },
    { .name = "weight-with-one-axis",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(5) },
      .error = TN_ERR_SHAPE,
      .message = "weight [out, 5]" },
    { .name = "bias-not-fitting",
      .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(4, 5), TN_SAMPLE_SHAPE(5) },
      .error = TN_ERR_SHAPE,
      .message = "bias [4]" },
    { .name = "integers",
      .in = { { .present = true, .shape = { 2, { 3, 4 } }, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_INTEGER, .b = 4 },
              TN_SAMPLE_SHAPE(2, 4) },
      .error = TN_ERR_DTYPE,
      .message = "i64" },
    { .name = NULL },
};
