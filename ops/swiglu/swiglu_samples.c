#include "swiglu_internal.h"

static const double spread[] = { -30, 2, -1, 0.25, 3, -0.125, 0.5, 25, -8.5, 1, 0 };

const tn_sample tn_swiglu_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(2, 3, 10) } },
    { .name = "odd", .in = { TN_SAMPLE_SHAPE(5, 34) } },
    { .name = "wide", .in = { TN_SAMPLE_SHAPE(3, 262) } },
    { .name = "row", .in = { TN_SAMPLE_SHAPE(64) } },
    { .name = "one", .in = { TN_SAMPLE_SHAPE(4, 2) } },
    { .name = "tails", .in = { { .present = true, .shape = { 2, { 3, 22 } }, .fill = TN_FILL_LIST, .values = spread, .n_values = 11 } } },
    { .name = "no-rows", .in = { TN_SAMPLE_SHAPE(0, 6) } },
    { .name = "no-width", .in = { TN_SAMPLE_SHAPE(3, 0) } },
    { .name = "halves", .in = { TN_SAMPLE_SHAPE(3, 5) }, .error = TN_ERR_SHAPE, .message = "even" },
    { .name = "scalar", .in = { { .present = true } }, .error = TN_ERR_SHAPE, .message = "last axis" },
    { .name = "integers",
      .in = { { .present = true, .shape = { 1, { 4 } }, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_INTEGER, .b = 4 } },
      .error = TN_ERR_DTYPE,
      .message = "i64" },
    { .name = NULL },
};
