#include "elementwise_internal.h"

#define AXES(...)                                   \
    {                                               \
        TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } \
    }
#define BETWEEN(low, high, ...) \
    { .present = true, .shape = AXES(__VA_ARGS__), .fill = TN_FILL_UNIFORM, .a = low, .b = high }
#define SCALAR_BETWEEN(low, high) \
    { .present = true, .fill = TN_FILL_UNIFORM, .a = low, .b = high }
#define CONSTANT(value, ...) \
    { .present = true, .shape = AXES(__VA_ARGS__), .fill = TN_FILL_CONSTANT, .a = value }
#define INTEGERS(...) \
    { .present = true, .shape = AXES(__VA_ARGS__), .fill = TN_FILL_INTEGER, .a = -6, .b = 7 }
#define SMALL_INTEGERS(...) \
    { .present = true, .shape = AXES(__VA_ARGS__), .fill = TN_FILL_INTEGER, .a = 0, .b = 5 }
#define LISTED(list, ...) \
    { .present = true, .shape = AXES(__VA_ARGS__), .fill = TN_FILL_LIST, .values = list, .n_values = TN_COUNT(list) }
/* 0 and 1 in a dtype of their own. */
#define OF(given, ...) \
    { .present = true, .shape = AXES(__VA_ARGS__), .fill = TN_FILL_INTEGER, .b = 2, .other_dtype = true, .dtype = given }

#define NO_INTEGERS(attributes) \
    { .name = "integers", .in = { OF(TN_I64, 4) }, .attrs = attributes, .error = TN_ERR_DTYPE, .message = "i64" }

/* Of one tensor: values in [low, high), and a list of points worth looking at. */
#define UNARY_SAMPLES(op_name, low, high, points)                         \
    const tn_sample tn_elementwise_##op_name##_samples[] = {              \
        { .name = "plain", .in = { BETWEEN(low, high, 3, 5, 7) } },       \
        { .name = "points", .in = { LISTED(points, TN_COUNT(points)) } }, \
        { .name = "wide", .in = { BETWEEN(low, high, 131) } },            \
        { .name = "scalar", .in = { SCALAR_BETWEEN(low, high) } },        \
        { .name = "empty", .in = { BETWEEN(low, high, 2, 0) } },          \
        NO_INTEGERS(NULL),                                                \
        { .name = NULL },                                                 \
    }

static const double spread[] = { -20, -3, -1, -0.25, 0.125, 0.5, 1, 2.75, 9 };
static const double positive[] = { 0.001, 0.125, 0.5, 1, 1.5, 2.75, 9, 1000 };
static const double above_minus_one[] = { -0.99, -0.5, -0.001, 0.0009765625, 0.5, 1, 8, 1000 };
static const double angles[] = { -100, -3.140625, -0.5, 0.0009765625, 1.5703125, 3, 6.28125, 1000 };
static const double tails[] = { -100, -20, -3, -0.5, 0.125, 1, 5, 20, 100 };

UNARY_SAMPLES(neg, -3, 3, spread);
UNARY_SAMPLES(abs, -3, 3, spread);
UNARY_SAMPLES(exp, -3, 3, spread);
UNARY_SAMPLES(log, 0.25, 4, positive);
UNARY_SAMPLES(log1p, -0.75, 4, above_minus_one);
UNARY_SAMPLES(sqrt, 0.25, 4, positive);
UNARY_SAMPLES(rsqrt, 0.25, 4, positive);
UNARY_SAMPLES(sin, -3, 3, angles);
UNARY_SAMPLES(cos, -3, 3, angles);
UNARY_SAMPLES(softplus, -3, 3, tails);
UNARY_SAMPLES(logsigmoid, -3, 3, tails);

const tn_sample tn_elementwise_affine_samples[] = {
    { .name = "default", .in = { TN_SAMPLE_SHAPE(3, 5, 7) } },
    { .name = "scale", .in = { TN_SAMPLE_SHAPE(3, 5, 7) }, .attrs = "{\"scale\": -2.5}" },
    { .name = "shift", .in = { TN_SAMPLE_SHAPE(131) }, .attrs = "{\"shift\": 0.75}" },
    { .name = "both", .in = { TN_SAMPLE_SHAPE(17) }, .attrs = "{\"scale\": 0.5, \"shift\": -1}" },
    { .name = "nothing", .in = { TN_SAMPLE_SHAPE(5) }, .attrs = "{\"scale\": 0}" },
    { .name = "scalar", .in = { { .present = true } }, .attrs = "{\"scale\": 3}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(0) }, .attrs = "{\"scale\": 3}" },
    NO_INTEGERS(NULL),
    { .name = NULL },
};

static const double beside_bounds[] = { -3, -1.25, -0.75, -0.25, 0.125, 0.375, 0.625, 2 };
const tn_sample tn_elementwise_clamp_samples[] = {
    { .name = "default", .in = { TN_SAMPLE_SHAPE(3, 5, 7) } },
    { .name = "both", .in = { LISTED(beside_bounds, 19) }, .attrs = "{\"low\": -1, \"high\": 0.5}" },
    { .name = "low", .in = { LISTED(beside_bounds, 4, 2) }, .attrs = "{\"low\": -1}" },
    { .name = "high", .in = { LISTED(beside_bounds, 4, 2) }, .attrs = "{\"high\": 0.5}" },
    { .name = "one-value", .in = { LISTED(beside_bounds, 8) }, .attrs = "{\"low\": 0.5, \"high\": 0.5}" },
    { .name = "scalar", .in = { { .present = true } }, .attrs = "{\"low\": -8, \"high\": 8}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(0, 3) }, .attrs = "{\"low\": 0}" },
    { .name = "crossed",
      .in = { TN_SAMPLE_SHAPE(3) },
      .attrs = "{\"low\": 1, \"high\": 0}",
      .error = TN_ERR_ARGUMENT,
      .message = "low <= high" },
    NO_INTEGERS(NULL),
    { .name = NULL },
};

const tn_sample tn_elementwise_pow_scalar_samples[] = {
    { .name = "square", .in = { TN_SAMPLE_SHAPE(3, 5, 7) }, .attrs = "{\"exponent\": 2}" },
    { .name = "cube", .in = { TN_SAMPLE_SHAPE(17) }, .attrs = "{\"exponent\": 3}" },
    { .name = "one", .in = { TN_SAMPLE_SHAPE(17) }, .attrs = "{\"exponent\": 1}" },
    { .name = "zero", .in = { TN_SAMPLE_SHAPE(17) }, .attrs = "{\"exponent\": 0}" },
    { .name = "root", .in = { BETWEEN(0.25, 4, 131) }, .attrs = "{\"exponent\": 0.5}" },
    { .name = "inverse-root", .in = { BETWEEN(0.25, 4, 7) }, .attrs = "{\"exponent\": -0.5}" },
    { .name = "inverse", .in = { BETWEEN(0.25, 4, 7) }, .attrs = "{\"exponent\": -1}" },
    { .name = "any", .in = { BETWEEN(0.25, 4, 5, 7) }, .attrs = "{\"exponent\": 1.75}" },
    { .name = "scalar", .in = { SCALAR_BETWEEN(0.25, 4) }, .attrs = "{\"exponent\": 2}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(0) }, .attrs = "{\"exponent\": 2}" },
    NO_INTEGERS("{\"exponent\": 2}"),
    { .name = NULL },
};

/* Of two tensors: every way to broadcast. */
#define BROADCASTS(low, high)                                                                                           \
    { .name = "same", .in = { BETWEEN(low, high, 3, 5, 7), BETWEEN(low, high, 3, 5, 7) }, .dtypes = TN_FLOATS },        \
        { .name = "row", .in = { BETWEEN(low, high, 3, 5, 7), BETWEEN(low, high, 7) }, .dtypes = TN_FLOATS },           \
        { .name = "column", .in = { BETWEEN(low, high, 3, 5, 7), BETWEEN(low, high, 3, 5, 1) }, .dtypes = TN_FLOATS },  \
        { .name = "middle", .in = { BETWEEN(low, high, 3, 5, 7), BETWEEN(low, high, 3, 1, 7) }, .dtypes = TN_FLOATS },  \
        { .name = "outer", .in = { BETWEEN(low, high, 17, 1), BETWEEN(low, high, 19) }, .dtypes = TN_FLOATS },          \
        { .name = "both", .in = { BETWEEN(low, high, 3, 1, 5, 1), BETWEEN(low, high, 4, 1, 2) }, .dtypes = TN_FLOATS }, \
        { .name = "scalar", .in = { SCALAR_BETWEEN(low, high), BETWEEN(low, high, 131) }, .dtypes = TN_FLOATS },        \
        { .name = "scalars", .in = { SCALAR_BETWEEN(low, high), SCALAR_BETWEEN(low, high) }, .dtypes = TN_FLOATS },     \
        { .name = "one", .in = { BETWEEN(low, high, 1), BETWEEN(low, high, 1, 1) }, .dtypes = TN_FLOATS }, {            \
        .name = "empty", .in = { BETWEEN(low, high, 2, 0), BETWEEN(low, high, 2, 1) }, .dtypes = TN_FLOATS              \
    }

#define MISFITS                                                                                                               \
    {                                                                                                                         \
        .name = "misfit", .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(3) }, .error = TN_ERR_SHAPE, .message = "broadcast", \
        .dtypes = TN_FLOATS                                                                                                   \
    }
#define NO_BOOLS \
    { .name = "bools", .in = { OF(TN_BOOL, 3), OF(TN_BOOL, 3) }, .error = TN_ERR_DTYPE, .message = "bool", .dtypes = TN_FLOATS }
#define MIXED                                                                                                               \
    { .name = "with-integers", .in = { BETWEEN(1, 2, 5, 3), OF(TN_I64, 3) }, .dtypes = TN_FLOATS, .no_gradcheck = true }, { \
        .name = "with-f32", .in = { BETWEEN(1, 2, 5, 3), OF(TN_F32, 3) }, .dtypes = TN_FLOATS, .no_gradcheck = true         \
    }
#define INTEGER_SAMPLES                                                                                           \
    { .name = "integers", .in = { INTEGERS(5, 7), INTEGERS(7) }, .dtypes = TN_MASK(TN_I64) | TN_MASK(TN_I32) }, { \
        .name = "bytes", .in = { SMALL_INTEGERS(5, 7), SMALL_INTEGERS(5, 1) }, .dtypes = TN_MASK(TN_U8)           \
    }

#define BINARY_SAMPLES(op_name, low, high)                                                                                     \
    const tn_sample tn_elementwise_##op_name##_samples[] = { BROADCASTS(low, high), MIXED, INTEGER_SAMPLES, MISFITS, NO_BOOLS, \
                                                             { .name = NULL } }

BINARY_SAMPLES(add, -3, 3);
BINARY_SAMPLES(sub, -3, 3);
BINARY_SAMPLES(div, 0.5, 3);
BINARY_SAMPLES(maximum, -3, 3);
BINARY_SAMPLES(minimum, -3, 3);

const tn_sample tn_elementwise_mul_samples[] = {
    BROADCASTS(-3, 3),
    /* Long enough that the sums over rows are cut into segments. */
    { .name = "long-row", .in = { TN_SAMPLE_SHAPE(1100, 67), TN_SAMPLE_SHAPE(67) }, .dtypes = TN_FLOATS },
    { .name = "long-column", .in = { TN_SAMPLE_SHAPE(67, 1100), TN_SAMPLE_SHAPE(67, 1) }, .dtypes = TN_FLOATS },
    { .name = "long-scalar", .in = { TN_SAMPLE_SHAPE(71000), { .present = true } }, .dtypes = TN_FLOATS },
    MIXED,
    INTEGER_SAMPLES,
    MISFITS,
    NO_BOOLS,
    { .name = NULL },
};

static const double bases[] = { 0.25, 0.5, 1, 2, 3.5 }, exponents[] = { -2, -0.5, 0.5, 1, 2, 3, 1.25 };
const tn_sample tn_elementwise_pow_samples[] = {
    BROADCASTS(0.5, 2),
    { .name = "listed", .in = { LISTED(bases, 5, 1), LISTED(exponents, 7) }, .dtypes = TN_FLOATS },
    /* The exponent's gradient is 0 here by definition, and central differences are NaN. */
    { .name = "negative-base", .in = { CONSTANT(-1.5, 5), CONSTANT(3, 5) }, .dtypes = TN_FLOATS, .no_gradcheck = true },
    MIXED,
    MISFITS,
    { .name = "integers", .in = { OF(TN_I64, 3), OF(TN_I64, 3) }, .error = TN_ERR_DTYPE, .message = "f64", .dtypes = TN_FLOATS },
    { .name = NULL },
};

#define COMPARED                                                                                                          \
    { .name = "same", .in = { INTEGERS(3, 5, 7), INTEGERS(3, 5, 7) }, .dtypes = TN_FLOATS | TN_MASK(TN_I64) },            \
        { .name = "row", .in = { INTEGERS(33, 7), INTEGERS(7) }, .dtypes = TN_FLOATS },                                   \
        { .name = "column", .in = { SMALL_INTEGERS(9, 1), SMALL_INTEGERS(9, 5) }, .dtypes = TN_FLOATS | TN_MASK(TN_U8) }, \
        { .name = "scalar", .in = { INTEGERS(131), SCALAR_BETWEEN(-1, 1) }, .dtypes = TN_FLOATS },                        \
        { .name = "empty", .in = { INTEGERS(0), INTEGERS(1) }, .dtypes = TN_FLOATS }, MISFITS

#define ORDER_SAMPLES(op_name) const tn_sample tn_elementwise_##op_name##_samples[] = { COMPARED, NO_BOOLS, { .name = NULL } }
#define EQUALITY_SAMPLES(op_name)                                                                                      \
    const tn_sample tn_elementwise_##op_name##_samples[] = {                                                           \
        COMPARED, { .name = "bools", .in = { OF(TN_BOOL, 7), OF(TN_BOOL, 7) }, .dtypes = TN_FLOATS }, { .name = NULL } \
    }

EQUALITY_SAMPLES(eq);
EQUALITY_SAMPLES(ne);
ORDER_SAMPLES(lt);
ORDER_SAMPLES(le);
ORDER_SAMPLES(gt);
ORDER_SAMPLES(ge);

const tn_sample tn_elementwise_where_samples[] = {
    { .name = "same", .in = { OF(TN_BOOL, 3, 5, 7), TN_SAMPLE_SHAPE(3, 5, 7), TN_SAMPLE_SHAPE(3, 5, 7) }, .dtypes = TN_FLOATS },
    { .name = "bytes", .in = { OF(TN_U8, 5, 7), TN_SAMPLE_SHAPE(5, 7), TN_SAMPLE_SHAPE(5, 7) }, .dtypes = TN_FLOATS },
    { .name = "row-cond", .in = { OF(TN_BOOL, 7), TN_SAMPLE_SHAPE(3, 5, 7), TN_SAMPLE_SHAPE(5, 1) }, .dtypes = TN_FLOATS },
    { .name = "scalar-else", .in = { OF(TN_BOOL, 5, 7), TN_SAMPLE_SHAPE(5, 7), { .present = true } }, .dtypes = TN_FLOATS },
    { .name = "wide-cond", .in = { OF(TN_BOOL, 131, 3), TN_SAMPLE_SHAPE(3), { .present = true } }, .dtypes = TN_FLOATS },
    { .name = "integers", .in = { OF(TN_BOOL, 7), INTEGERS(7), INTEGERS(1) }, .dtypes = TN_MASK(TN_I64) | TN_MASK(TN_I32) },
    { .name = "empty", .in = { OF(TN_BOOL, 0), TN_SAMPLE_SHAPE(1), TN_SAMPLE_SHAPE(0) }, .dtypes = TN_FLOATS },
    { .name = "misfit",
      .in = { OF(TN_BOOL, 4), TN_SAMPLE_SHAPE(3), TN_SAMPLE_SHAPE(3) },
      .error = TN_ERR_SHAPE,
      .message = "broadcast",
      .dtypes = TN_FLOATS },
    { .name = "float-cond",
      .in = { OF(TN_F32, 3), TN_SAMPLE_SHAPE(3), TN_SAMPLE_SHAPE(3) },
      .error = TN_ERR_DTYPE,
      .message = "cond",
      .dtypes = TN_FLOATS },
    { .name = NULL },
};
