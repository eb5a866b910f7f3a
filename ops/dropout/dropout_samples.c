#include "dropout_internal.h"

const tn_sample tn_dropout_samples[] = {
    { .name = "default", .in = { TN_SAMPLE_SHAPE(3, 5, 7) } },
    { .name = "tenth", .in = { TN_SAMPLE_SHAPE(4, 33) }, .attrs = "{\"p\": 0.1}" },
    { .name = "most", .in = { TN_SAMPLE_SHAPE(131) }, .attrs = "{\"p\": 0.9}" },
    { .name = "none", .in = { TN_SAMPLE_SHAPE(17) }, .attrs = "{\"p\": 0}" },
    { .name = "all", .in = { TN_SAMPLE_SHAPE(17) }, .attrs = "{\"p\": 1}" },
    { .name = "one", .in = { TN_SAMPLE_SHAPE(1) }, .attrs = "{\"p\": 0.25}" },
    { .name = "scalar", .in = { { .present = true } }, .attrs = "{\"p\": 0.25}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(2, 0) } },
    { .name = "too-likely", .in = { TN_SAMPLE_SHAPE(3) }, .attrs = "{\"p\": 1.5}", .error = TN_ERR_ARGUMENT, .message = "from 0 to 1" },
    { .name = "negative", .in = { TN_SAMPLE_SHAPE(3) }, .attrs = "{\"p\": -0.5}", .error = TN_ERR_ARGUMENT, .message = "from 0 to 1" },
    { .name = "integers",
      .in = { { .present = true, .shape = { 1, { 4 } }, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_INTEGER, .b = 4 } },
      .error = TN_ERR_DTYPE,
      .message = "i64" },
    { .name = NULL },
};
