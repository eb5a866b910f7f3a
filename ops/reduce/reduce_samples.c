#include "reduce_internal.h"

/* Distinct, in no order, and exact in every dtype. */
static const double scattered[] = {
    -21, 16,  -11, 26,  -1,  -28, 9,   -18, 19,  -8,  29, 2,   -25, 12,  -15, 22,  -5,  -32, 5,   -22, 15, -12,
    25,  -2,  -29, 8,   -19, 18,  -9,  28,  1,   -26, 11, -16, 21,  -6,  31,  4,   -23, 14,  -13, 24,  -3, -30,
    7,   -20, 17,  -10, 27,  0,   -27, 10,  -17, 20,  -7, 30,  3,   -24, 13,  -14, 23,  -4,  -31, 6,
};
static const double ties[] = { 1, 3, -2, 3, 0, 3, 1 };
static const double huge[] = { -9984, 9984, 0, 9920, -3, 9984 }; /* exact in bf16 */
static const double infinite[] = { -INFINITY };
static const double some_infinite[] = { -INFINITY, 1, -INFINITY, 0.5, -2 };

#define LISTED(list, ...)                                                                                                \
    {                                                                                                                    \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_LIST, .values = list, \
        .n_values = TN_COUNT(list)                                                                                       \
    }
#define NUMBERS(...) TN_SAMPLE_SHAPE(__VA_ARGS__)
#define SCATTERED(...) LISTED(scattered, __VA_ARGS__)

/* The same shapes for all of them; NEW makes an input of a shape. */
#define REDUCTIONS(NEW)                                                                                                        \
    { .name = "all", .in = { NEW(3, 5, 2) } }, { .name = "last", .in = { NEW(4, 7) }, .attrs = "{\"dims\": [-1]}" },           \
        { .name = "last-keep", .in = { NEW(4, 7) }, .attrs = "{\"dims\": [-1], \"keep\": true}" },                             \
        { .name = "first", .in = { NEW(17, 3) }, .attrs = "{\"dims\": [0]}" },                                                 \
        { .name = "first-wide", .in = { NEW(5, 131) }, .attrs = "{\"dims\": [0]}" },                                           \
        { .name = "middle", .in = { NEW(3, 5, 7) }, .attrs = "{\"dims\": [1]}" },                                              \
        { .name = "two-apart", .in = { NEW(3, 4, 5) }, .attrs = "{\"dims\": [0, 2]}" },                                        \
        { .name = "two-apart-keep", .in = { NEW(2, 3, 2, 5) }, .attrs = "{\"dims\": [-2, 0], \"keep\": true}" },               \
        { .name = "alternating", .in = { NEW(2, 3, 2, 3, 2) }, .attrs = "{\"dims\": [0, 2, 4]}" },                             \
        { .name = "all-keep", .in = { NEW(3, 4) }, .attrs = "{\"keep\": true}" }, { .name = "one-element", .in = { NEW(1) } }, \
        { .name = "axis-of-one", .in = { NEW(3, 1, 5) }, .attrs = "{\"dims\": [1]}" },                                         \
        { .name = "scalar", .in = { { .present = true, .fill = TN_FILL_CONSTANT, .a = 2 } } }, {                               \
        .name = "no-outputs", .in = { NEW(0, 5) }, .attrs = "{\"dims\": [1]}"                                                  \
    }

#define REFUSED                                                                                                                           \
    { .name = "bad-dim", .in = { NUMBERS(2, 3) }, .attrs = "{\"dims\": [2]}", .error = TN_ERR_ARGUMENT, .message = "axis 2" },            \
        { .name = "dim-twice",                                                                                                            \
          .in = { NUMBERS(2, 3) },                                                                                                        \
          .attrs = "{\"dims\": [1, -1]}",                                                                                                 \
          .error = TN_ERR_ARGUMENT,                                                                                                       \
          .message = "axis 1 twice" },                                                                                                    \
    {                                                                                                                                     \
        .name = "dim-of-scalar", .in = { { .present = true } }, .attrs = "{\"dims\": [0]}", .error = TN_ERR_ARGUMENT, .message = "axis 0" \
    }

#define OF_NOTHING \
    { .name = "of-nothing", .in = { NUMBERS(3, 0) }, .attrs = "{\"dims\": [1]}", .error = TN_ERR_SHAPE, .message = "of nothing" }
#define INTEGERS_REFUSED                                                                                                \
    {                                                                                                                   \
        .name = "integers", .in = { { .present = true, .shape = { 1, { 4 } }, .other_dtype = true, .dtype = TN_I64 } }, \
        .error = TN_ERR_DTYPE, .message = "i64"                                                                         \
    }

const tn_sample tn_sum_samples[] = {
    REDUCTIONS(NUMBERS),
    { .name = "long", .in = { NUMBERS(3, 4099) }, .attrs = "{\"dims\": [1]}" },
    { .name = "tall", .in = { NUMBERS(4099, 3) }, .attrs = "{\"dims\": [0]}" },
    { .name = "of-nothing", .in = { NUMBERS(3, 0) }, .attrs = "{\"dims\": [1]}" },
    REFUSED,
    { .name = NULL },
};

const tn_sample tn_mean_samples[] = {
    REDUCTIONS(NUMBERS), { .name = "long", .in = { NUMBERS(3, 4099) }, .attrs = "{\"dims\": [1]}" }, REFUSED, OF_NOTHING, INTEGERS_REFUSED,
    { .name = NULL },
};

#define EXTREMA                                                                                                                        \
    REDUCTIONS(SCATTERED), { .name = "ties", .in = { LISTED(ties, 2, 7) }, .attrs = "{\"dims\": [1]}", .no_gradcheck = true },         \
        { .name = "ties-first", .in = { LISTED(ties, 5, 37) }, .attrs = "{\"dims\": [0]}", .no_gradcheck = true },                     \
        { .name = "ties-long", .in = { LISTED(scattered, 3, 4099) }, .attrs = "{\"dims\": [1]}", .no_gradcheck = true },               \
        { .name = "lowest", .in = { LISTED(infinite, 2, 3) }, .attrs = "{\"dims\": [1]}", .dtypes = TN_FLOATS, .no_gradcheck = true }, \
        REFUSED, OF_NOTHING, {                                                                                                         \
        .name = NULL                                                                                                                   \
    }

const tn_sample tn_max_samples[] = { EXTREMA };
const tn_sample tn_min_samples[] = { EXTREMA };
const tn_sample tn_argmax_samples[] = { EXTREMA };

const tn_sample tn_logsumexp_samples[] = {
    REDUCTIONS(NUMBERS),
    { .name = "long", .in = { NUMBERS(3, 4099) }, .attrs = "{\"dims\": [1]}" },
    { .name = "tall", .in = { NUMBERS(131, 17) }, .attrs = "{\"dims\": [0]}" },
    { .name = "huge", .in = { LISTED(huge, 3, 6) }, .attrs = "{\"dims\": [1]}", .no_gradcheck = true },
    { .name = "huge-first", .in = { LISTED(huge, 5, 7) }, .attrs = "{\"dims\": [0]}", .no_gradcheck = true },
    { .name = "all-infinite", .in = { LISTED(infinite, 2, 5) }, .attrs = "{\"dims\": [1]}", .no_gradcheck = true },
    { .name = "some-infinite", .in = { LISTED(some_infinite, 2, 5) }, .attrs = "{\"dims\": [1]}", .no_gradcheck = true },
    { .name = "of-nothing", .in = { NUMBERS(3, 0) }, .attrs = "{\"dims\": [1]}" },
    REFUSED,
    INTEGERS_REFUSED,
    { .name = NULL },
};

const tn_sample tn_cumsum_samples[] = {
    { .name = "last", .in = { NUMBERS(3, 7) }, .attrs = "{\"dim\": -1}" },
    { .name = "first", .in = { NUMBERS(5, 2, 3) }, .attrs = "{\"dim\": 0}" },
    { .name = "middle", .in = { NUMBERS(2, 17, 3) }, .attrs = "{\"dim\": 1}" },
    { .name = "reverse", .in = { NUMBERS(3, 7) }, .attrs = "{\"dim\": 1, \"reverse\": true}" },
    { .name = "exclusive", .in = { NUMBERS(3, 7) }, .attrs = "{\"dim\": 1, \"exclusive\": true}" },
    { .name = "reverse-exclusive", .in = { NUMBERS(4, 5) }, .attrs = "{\"dim\": 0, \"reverse\": true, \"exclusive\": true}" },
    { .name = "wide", .in = { NUMBERS(3, 301) }, .attrs = "{\"dim\": 0}" },
    { .name = "long", .in = { NUMBERS(1031) }, .attrs = "{\"dim\": 0}" },
    { .name = "one", .in = { NUMBERS(1) }, .attrs = "{\"dim\": 0}" },
    { .name = "empty", .in = { NUMBERS(3, 0) }, .attrs = "{\"dim\": 1}" },
    { .name = "bad-dim", .in = { NUMBERS(2, 3) }, .attrs = "{\"dim\": 2}", .error = TN_ERR_ARGUMENT, .message = "dim 2" },
    { .name = "scalar", .in = { { .present = true } }, .attrs = "{\"dim\": 0}", .error = TN_ERR_ARGUMENT, .message = "axis" },
    { .name = NULL },
};
