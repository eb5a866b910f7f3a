#include "index_internal.h"

#define SHAPED(...) .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .other_dtype = true
#define INDEX(limit, ...) \
    { SHAPED(__VA_ARGS__), .dtype = TN_I64, .fill = TN_FILL_INTEGER, .b = limit }
#define INDEX_32(limit, ...) \
    { SHAPED(__VA_ARGS__), .dtype = TN_I32, .fill = TN_FILL_INTEGER, .b = limit }
#define LISTED(list, ...) \
    { SHAPED(__VA_ARGS__), .dtype = TN_I64, .fill = TN_FILL_LIST, .values = list, .n_values = TN_COUNT(list) }
#define ARGUMENT(words) .error = TN_ERR_ARGUMENT, .message = words
#define SHAPE(words) .error = TN_ERR_SHAPE, .message = words

static const double repeated[] = { 2, 2, 0, 2 };
static const double too_large[] = { 0, 3, 5 };
static const double negative[] = { 1, -1, 0 };

const tn_sample tn_embedding_samples[] = {
    { .name = "tokens", .in = { TN_SAMPLE_SHAPE(7, 5), INDEX(7, 2, 9) } },
    { .name = "i32", .in = { TN_SAMPLE_SHAPE(7, 5), INDEX_32(7, 3) } },
    { .name = "repeated", .in = { TN_SAMPLE_SHAPE(4, 17), LISTED(repeated, 11) } },
    { .name = "one-row", .in = { TN_SAMPLE_SHAPE(1, 3), INDEX(1, 5) } },
    { .name = "one-column", .in = { TN_SAMPLE_SHAPE(5, 1), INDEX(5, 3) } },
    { .name = "wide", .in = { TN_SAMPLE_SHAPE(3, 301), INDEX(3, 700) }, .dtypes = TN_MASK(TN_F32) | TN_MASK(TN_BF16) },
    { .name = "packed", .in = { TN_SAMPLE_SHAPE(7, 264), INDEX(5, 300) }, .dtypes = TN_MASK(TN_F32) | TN_MASK(TN_BF16) },
    { .name = "scalar-index",
      .in = { TN_SAMPLE_SHAPE(7, 5), { .present = true, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_CONSTANT, .a = 3 } } },
    { .name = "empty-index", .in = { TN_SAMPLE_SHAPE(7, 5), INDEX(7, 0) } },
    { .name = "no-columns", .in = { TN_SAMPLE_SHAPE(7, 0), INDEX(7, 2) } },
    { .name = "too-large", .in = { TN_SAMPLE_SHAPE(5, 2), LISTED(too_large, 3) }, .in_data = true, ARGUMENT("index 5 at position 2") },
    { .name = "negative", .in = { TN_SAMPLE_SHAPE(5, 2), LISTED(negative, 3) }, .in_data = true, ARGUMENT("index -1 at position 1") },
    { .name = "flat-weight", .in = { TN_SAMPLE_SHAPE(5), INDEX(5, 3) }, SHAPE("[v, d]") },
    { .name = "float-index",
      .in = { TN_SAMPLE_SHAPE(5, 2), { .present = true, .shape = { 1, { 3 } }, .other_dtype = true, .dtype = TN_F32 } },
      .error = TN_ERR_DTYPE,
      .message = "index" },
    { .name = NULL },
};

const tn_sample tn_gather_samples[] = {
    { .name = "last", .in = { TN_SAMPLE_SHAPE(3, 7), INDEX(7, 3, 5) }, .attrs = "{\"dim\": -1}" },
    { .name = "first", .in = { TN_SAMPLE_SHAPE(7, 3), INDEX(7, 5, 3) }, .attrs = "{\"dim\": 0}" },
    { .name = "middle", .in = { TN_SAMPLE_SHAPE(2, 5, 3), INDEX(5, 2, 17, 3) }, .attrs = "{\"dim\": 1}" },
    { .name = "target", .in = { TN_SAMPLE_SHAPE(9, 17), INDEX(17, 9, 1) }, .attrs = "{\"dim\": 1}" },
    { .name = "i32", .in = { TN_SAMPLE_SHAPE(3, 7), INDEX_32(7, 3, 2) }, .attrs = "{\"dim\": 1}" },
    { .name = "shorter-index", .in = { TN_SAMPLE_SHAPE(4, 7, 5), INDEX(7, 2, 3, 4) }, .attrs = "{\"dim\": 1}" },
    { .name = "shorter-first", .in = { TN_SAMPLE_SHAPE(7, 3, 5), INDEX(7, 9, 2, 3) }, .attrs = "{\"dim\": 0}" },
    { .name = "repeated", .in = { TN_SAMPLE_SHAPE(3), LISTED(repeated, 11) }, .attrs = "{\"dim\": 0}" },
    { .name = "wide-first", .in = { TN_SAMPLE_SHAPE(3, 131), INDEX(3, 5, 131) }, .attrs = "{\"dim\": 0}" },
    { .name = "empty-index", .in = { TN_SAMPLE_SHAPE(3, 7), INDEX(7, 3, 0) }, .attrs = "{\"dim\": 1}" },
    { .name = "too-large",
      .in = { TN_SAMPLE_SHAPE(4), LISTED(too_large, 3) },
      .attrs = "{\"dim\": 0}",
      .in_data = true,
      ARGUMENT("index 5 at position 2") },
    { .name = "negative",
      .in = { TN_SAMPLE_SHAPE(1, 4), LISTED(negative, 1, 3) },
      .attrs = "{\"dim\": 1}",
      .in_data = true,
      ARGUMENT("index -1 at position 1") },
    { .name = "bad-dim", .in = { TN_SAMPLE_SHAPE(3, 4), INDEX(3, 3, 4) }, .attrs = "{\"dim\": 2}", ARGUMENT("dim 2") },
    { .name = "axes-misfit", .in = { TN_SAMPLE_SHAPE(3, 4), INDEX(3, 3) }, .attrs = "{\"dim\": 0}", SHAPE("2 axes") },
    { .name = "longer-index", .in = { TN_SAMPLE_SHAPE(3, 4), INDEX(4, 5, 4) }, .attrs = "{\"dim\": 1}", SHAPE("axis 0") },
    { .name = NULL },
};
