#include "cross_entropy_internal.h"

static const double targets[] = { 3, 0, 6, 2, 5 };
static const double with_ignored[] = { 3, -100, 6, -100, 1 };
static const double all_ignored[] = { -100 };
static const double ignored_six[] = { 6, 2, 6, 4 };
static const double too_large[] = { 0, 7, 1 };
static const double negative[] = { 0, 1, -1 };
static const double huge[] = { -1e4, 1e4, 0, 9999, -3, 1e4, 12 };

#define TARGETS(list, ...)                                                                                               \
    {                                                                                                                    \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_LIST, .values = list, \
        .n_values = TN_COUNT(list), .other_dtype = true, .dtype = TN_I64                                                 \
    }
#define TARGET \
    { .present = true, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_CONSTANT, .a = 2 }
#define FLOATS \
    { .present = true, .shape = { 1, { 5 } }, .other_dtype = true, .dtype = TN_F32 }
#define SCALAR \
    { .present = true }

const tn_sample tn_cross_entropy_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(5, 7), TARGETS(targets, 5) } },
    { .name = "three-axes", .in = { TN_SAMPLE_SHAPE(2, 3, 7), TARGETS(targets, 2, 3) } },
    { .name = "one-row", .in = { TN_SAMPLE_SHAPE(7), TARGET } },
    { .name = "one-class", .in = { TN_SAMPLE_SHAPE(3, 1), TARGETS(((const double[]){ 0 }), 3) } },
    { .name = "wide", .in = { TN_SAMPLE_SHAPE(3, 131), TARGETS(targets, 3) } },
    { .name = "many-rows", .in = { TN_SAMPLE_SHAPE(150, 17), TARGETS(targets, 150) } },
    { .name = "some-ignored", .in = { TN_SAMPLE_SHAPE(5, 7), TARGETS(with_ignored, 5) } },
    { .name = "all-ignored", .in = { TN_SAMPLE_SHAPE(4, 7), TARGETS(all_ignored, 4) } },
    { .name = "ignore-a-class", .in = { TN_SAMPLE_SHAPE(4, 7), TARGETS(ignored_six, 4) }, .attrs = "{\"ignore_index\": 6}" },
    { .name = "wide-loss", .in = { TN_SAMPLE_SHAPE(5, 7), TARGETS(with_ignored, 5) }, .attrs = "{\"wide_loss\": true}" },
    { .name = "huge",
      .in = { { .present = true, .shape = { 2, { 4, 7 } }, .fill = TN_FILL_LIST, .values = huge, .n_values = 7 }, TARGETS(targets, 4) },
      .no_gradcheck = true },
    { .name = "no-rows", .in = { TN_SAMPLE_SHAPE(0, 7), TARGETS(targets, 0) } },
    { .name = "target-too-large",
      .in = { TN_SAMPLE_SHAPE(3, 7), TARGETS(too_large, 3) },
      .error = TN_ERR_ARGUMENT,
      .in_data = true,
      .message = "target number 1 is 7" },
    { .name = "target-negative",
      .in = { TN_SAMPLE_SHAPE(3, 7), TARGETS(negative, 3) },
      .error = TN_ERR_ARGUMENT,
      .in_data = true,
      .message = "target number 2 is -1" },
    { .name = "target-of-other-shape",
      .in = { TN_SAMPLE_SHAPE(5, 7), TARGETS(targets, 4) },
      .error = TN_ERR_SHAPE,
      .message = "without the last axis" },
    { .name = "target-with-all-axes",
      .in = { TN_SAMPLE_SHAPE(5, 7), TARGETS(targets, 5, 7) },
      .error = TN_ERR_SHAPE,
      .message = "without the last axis" },
    { .name = "scalar", .in = { SCALAR, TARGET }, .error = TN_ERR_SHAPE, .message = "at least one axis" },
    { .name = "float-target", .in = { TN_SAMPLE_SHAPE(5, 7), FLOATS }, .error = TN_ERR_DTYPE, .message = "i64" },
    { .name = NULL },
};

const tn_sample tn_linear_cross_entropy_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(5, 4), TN_SAMPLE_SHAPE(7, 4), TARGETS(targets, 5) } },
    { .name = "three-axes", .in = { TN_SAMPLE_SHAPE(2, 3, 5), TN_SAMPLE_SHAPE(7, 5), TARGETS(targets, 2, 3) } },
    { .name = "one-row", .in = { TN_SAMPLE_SHAPE(5), TN_SAMPLE_SHAPE(7, 5), TARGET } },
    { .name = "wide", .in = { TN_SAMPLE_SHAPE(3, 17), TN_SAMPLE_SHAPE(131, 17), TARGETS(targets, 3) } },
    { .name = "two-chunks", .in = { TN_SAMPLE_SHAPE(1030, 2), TN_SAMPLE_SHAPE(7, 2), TARGETS(with_ignored, 1030) } },
    { .name = "some-ignored", .in = { TN_SAMPLE_SHAPE(5, 4), TN_SAMPLE_SHAPE(7, 4), TARGETS(with_ignored, 5) } },
    { .name = "all-ignored", .in = { TN_SAMPLE_SHAPE(4, 3), TN_SAMPLE_SHAPE(7, 3), TARGETS(all_ignored, 4) } },
    { .name = "ignore-a-class",
      .in = { TN_SAMPLE_SHAPE(4, 3), TN_SAMPLE_SHAPE(7, 3), TARGETS(ignored_six, 4) },
      .attrs = "{\"ignore_index\": 6}" },
    { .name = "wide-loss",
      .in = { TN_SAMPLE_SHAPE(5, 4), TN_SAMPLE_SHAPE(7, 4), TARGETS(with_ignored, 5) },
      .attrs = "{\"wide_loss\": true}" },
    { .name = "no-rows", .in = { TN_SAMPLE_SHAPE(0, 4), TN_SAMPLE_SHAPE(7, 4), TARGETS(targets, 0) } },
    { .name = "target-too-large",
      .in = { TN_SAMPLE_SHAPE(3, 4), TN_SAMPLE_SHAPE(7, 4), TARGETS(too_large, 3) },
      .error = TN_ERR_ARGUMENT,
      .in_data = true,
      .message = "target number 1 is 7" },
    { .name = "weight-not-fitting",
      .in = { TN_SAMPLE_SHAPE(5, 4), TN_SAMPLE_SHAPE(4, 7), TARGETS(targets, 5) },
      .error = TN_ERR_SHAPE,
      .message = "weight [v, 4]" },
    { .name = "target-of-other-shape",
      .in = { TN_SAMPLE_SHAPE(5, 4), TN_SAMPLE_SHAPE(7, 4), TARGETS(targets, 4) },
      .error = TN_ERR_SHAPE,
      .message = "without the last axis" },
    { .name = "scalar", .in = { SCALAR, TN_SAMPLE_SHAPE(7, 4), TARGET }, .error = TN_ERR_SHAPE, .message = "at least one axis" },
    { .name = "float-target", .in = { TN_SAMPLE_SHAPE(5, 4), TN_SAMPLE_SHAPE(7, 4), FLOATS }, .error = TN_ERR_DTYPE, .message = "i64" },
    { .name = NULL },
};
