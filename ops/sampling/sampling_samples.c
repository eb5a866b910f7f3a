#include "sampling_internal.h"

#include <math.h>

/* Distinct, in no order, and exact in every dtype. */
static const double scattered[] = { 3, -7, 12, 0, 5, -1, 9, 2, -4, 8, -12, 6, 1, 11, -3, 7, -9, 4, 10, -6, -2 };
static const double ties[] = { 1, 3, -2, 3, 0, 3, 1 };
static const double uneven[] = { 0, 1, 0, 3, 0.5, 0 };
static const double negative[] = { 1, 0.5, -1 };
static const double zero_row[] = { 0, 0, 1, 0, 0, 0 };
/* 37 of them: no pack of a line is like another. */
static const double special[] = { 3,  -7, 12, 0, NAN, -1, 9,  -0.0, -4,  INFINITY, -12, 6,  1,   11,  -3, 7,   -INFINITY, 4,  10,
                                  -6, -2, 5,  2, 8,   -9, -5, -8,   -10, -11,      13,  14, -13, -14, 15, -15, 16,        -16 };
static const double infinite[] = { 1, INFINITY, 2 };

#define LISTED(list, ...)                                                                                                \
    {                                                                                                                    \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_LIST, .values = list, \
        .n_values = TN_COUNT(list)                                                                                       \
    }
#define WEIGHTS(...) \
    { .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_UNIFORM, .b = 1 }

const tn_sample tn_topk_samples[] = {
    { .name = "three", .in = { LISTED(scattered, 3, 7) }, .attrs = "{\"k\": 3}" },
    { .name = "one", .in = { LISTED(scattered, 17) }, .attrs = "{\"k\": 1}" },
    { .name = "sorted", .in = { LISTED(scattered, 2, 17) }, .attrs = "{\"k\": 17}" },
    { .name = "smallest", .in = { LISTED(scattered, 3, 7) }, .attrs = "{\"k\": 2, \"largest\": false}" },
    { .name = "first", .in = { LISTED(scattered, 5, 3) }, .attrs = "{\"k\": 2, \"dim\": 0}" },
    { .name = "middle", .in = { LISTED(scattered, 2, 5, 2) }, .attrs = "{\"k\": 4, \"dim\": 1}" },
    { .name = "long", .in = { WEIGHTS(3, 300) }, .attrs = "{\"k\": 5}" },
    { .name = "long-smallest", .in = { WEIGHTS(2, 421) }, .attrs = "{\"k\": 70, \"largest\": false}" },
    { .name = "long-packs", .in = { WEIGHTS(3, 1200) }, .attrs = "{\"k\": 50}" },
    { .name = "longer", .in = { WEIGHTS(1, 20000) }, .attrs = "{\"k\": 50}", .no_gradcheck = true },
    { .name = "long-special", .in = { LISTED(special, 2, 1100) }, .attrs = "{\"k\": 40}", .no_gradcheck = true },
    { .name = "long-special-smallest",
      .in = { LISTED(special, 2, 1100) },
      .attrs = "{\"k\": 200, \"largest\": false}",
      .no_gradcheck = true },
    { .name = "long-equal",
      .in = { { .present = true, .shape = { 2, { 2, 1200 } }, .fill = TN_FILL_CONSTANT, .a = 0.5 } },
      .attrs = "{\"k\": 3}",
      .no_gradcheck = true },
    { .name = "ties", .in = { LISTED(ties, 2, 7) }, .attrs = "{\"k\": 4}", .no_gradcheck = true },
    { .name = "none", .in = { LISTED(scattered, 3, 7) }, .attrs = "{\"k\": 0}" },
    { .name = "empty", .in = { LISTED(scattered, 0, 7) }, .attrs = "{\"k\": 2}" },
    { .name = "too-many", .in = { LISTED(scattered, 3, 7) }, .attrs = "{\"k\": 8}", .error = TN_ERR_ARGUMENT, .message = "k 8" },
    { .name = "bad-dim",
      .in = { LISTED(scattered, 3, 7) },
      .attrs = "{\"k\": 1, \"dim\": 2}",
      .error = TN_ERR_ARGUMENT,
      .message = "dim 2" },
    { .name = "scalar", .in = { { .present = true } }, .attrs = "{\"k\": 1}", .error = TN_ERR_ARGUMENT, .message = "axis" },
    { .name = NULL },
};

const tn_sample tn_multinomial_samples[] = {
    { .name = "one", .in = { WEIGHTS(3, 7) } },
    { .name = "vector", .in = { WEIGHTS(17) }, .attrs = "{\"n_samples\": 5}" },
    { .name = "many", .in = { LISTED(uneven, 2, 2, 6) }, .attrs = "{\"n_samples\": 131}" },
    { .name = "no-replacement", .in = { WEIGHTS(3, 7) }, .attrs = "{\"n_samples\": 7, \"replacement\": false}" },
    { .name = "no-replacement-uneven", .in = { LISTED(uneven, 2, 6) }, .attrs = "{\"n_samples\": 3, \"replacement\": false}" },
    { .name = "long", .in = { WEIGHTS(3, 5000) }, .attrs = "{\"n_samples\": 9}" },
    { .name = "no-replacement-long", .in = { WEIGHTS(2, 1031) }, .attrs = "{\"n_samples\": 5, \"replacement\": false}" },
    { .name = "longer", .in = { WEIGHTS(1, 70001) }, .attrs = "{\"n_samples\": 3}" },
    { .name = "no-replacement-longer", .in = { WEIGHTS(1, 70001) }, .attrs = "{\"n_samples\": 3, \"replacement\": false}" },
    { .name = "only-one-place", .in = { WEIGHTS(5, 1) } },
    { .name = "no-rows", .in = { WEIGHTS(0, 7) } },
    { .name = "no-samples", .in = { WEIGHTS(3, 7) }, .attrs = "{\"n_samples\": 0}" },
    { .name = "negative", .in = { LISTED(negative, 2, 3) }, .error = TN_ERR_ARGUMENT, .in_data = true, .message = "row 0" },
    { .name = "infinite", .in = { LISTED(infinite, 1, 3) }, .error = TN_ERR_ARGUMENT, .in_data = true, .message = "finite" },
    { .name = "zero-row", .in = { LISTED(zero_row, 2, 3) }, .error = TN_ERR_ARGUMENT, .in_data = true, .message = "row 1" },
    { .name = "too-few-positive",
      .in = { LISTED(uneven, 1, 6) },
      .attrs = "{\"n_samples\": 4, \"replacement\": false}",
      .in_data = true,
      .error = TN_ERR_ARGUMENT,
      .in_data = true,
      .message = "4 of them" },
    { .name = "too-many",
      .in = { WEIGHTS(2, 3) },
      .attrs = "{\"n_samples\": 4, \"replacement\": false}",
      .error = TN_ERR_ARGUMENT,
      .message = "4 samples of 3" },
    { .name = "of-nothing", .in = { WEIGHTS(2, 0) }, .error = TN_ERR_SHAPE, .message = "no places" },
    { .name = "scalar", .in = { { .present = true } }, .error = TN_ERR_SHAPE, .message = "[.., v]" },
    { .name = NULL },
};
