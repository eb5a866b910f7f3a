#include "lrpe_internal.h"

/* Beside relu's kink. */
static const double off_kink[] = { -2.5, 0.75, -0.4, 1.6, -1.1, 0.3, 2.2 };
static const double huge[] = { -1e4, 1e4, 0, 9999, -3, 1e4, 2, -1e4, 0.5 };

#define SHAPE TN_SAMPLE_SHAPE
#define LIST(list, ...)                                                                                                  \
    {                                                                                                                    \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_LIST, .values = list, \
        .n_values = TN_COUNT(list)                                                                                       \
    }
#define EMPTY(...)                                                                \
    {                                                                             \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } } \
    }
/* offset_t */
#define AT(value) \
    { .present = true, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_CONSTANT, .a = value, .b = value }

/* Every act under a kind; those with a softmax along either axis below. Half of them with a kept table. */
#define ACTS(kind, w)                                                                                                                     \
    { .name = kind "-none", .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) }, .attrs = "{\"kind\": \"" kind "\"}" },                              \
        { .name = kind "-relu",                                                                                                           \
          .in = { LIST(off_kink, 2, 5, 3, 6), SHAPE(3, w) },                                                                              \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"relu\"}" },                                                                       \
        { .name = kind "-sigmoid", .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) }, .attrs = "{\"kind\": \"" kind "\", \"act\": \"sigmoid\"}" }, \
        { .name = kind "-silu", .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) }, .attrs = "{\"kind\": \"" kind "\", \"act\": \"silu\"}" },       \
        { .name = kind "-gelu",                                                                                                           \
          .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) },                                                                                       \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"gelu\", \"cache\": true}" },                                                      \
        { .name = kind "-tanh",                                                                                                           \
          .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) },                                                                                       \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"tanh\", \"cache\": true}" },                                                      \
        { .name = kind "-none-cache", .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) }, .attrs = "{\"kind\": \"" kind "\", \"cache\": true}" },   \
        { .name = kind "-none-bhnd",                                                                                                      \
          .in = { SHAPE(2, 3, 5, 6), SHAPE(3, w) },                                                                                       \
          .attrs = "{\"kind\": \"" kind "\", \"layout\": \"bhnd\"}" },                                                                    \
        { .name = kind "-relu-bhnd",                                                                                                      \
          .in = { LIST(off_kink, 2, 3, 5, 6), SHAPE(3, w) },                                                                              \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"relu\", \"layout\": \"bhnd\", \"cache\": true}" },                                \
        { .name = kind "-sigmoid-bhnd",                                                                                                   \
          .in = { SHAPE(2, 3, 5, 6), SHAPE(3, w) },                                                                                       \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"sigmoid\", \"layout\": \"bhnd\", \"cache\": true}" },                             \
        { .name = kind "-silu-bhnd",                                                                                                      \
          .in = { SHAPE(2, 3, 5, 6), SHAPE(3, w) },                                                                                       \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"silu\", \"layout\": \"bhnd\", \"cache\": true}" },                                \
        { .name = kind "-gelu-bhnd",                                                                                                      \
          .in = { SHAPE(2, 3, 5, 6), SHAPE(3, w) },                                                                                       \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"gelu\", \"layout\": \"bhnd\"}" },                                                 \
    {                                                                                                                                     \
        .name = kind "-tanh-bhnd", .in = { SHAPE(2, 3, 5, 6), SHAPE(3, w) },                                                              \
        .attrs = "{\"kind\": \"" kind "\", \"act\": \"tanh\", \"layout\": \"bhnd\"}"                                                      \
    }

#define SOFTMAXES(kind, w)                                                                                                 \
    { .name = kind "-softmax-features",                                                                                    \
      .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) },                                                                            \
      .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\"}" },                                                         \
        { .name = kind "-softmax-features-cache",                                                                          \
          .in = { SHAPE(2, 5, 3, 6), SHAPE(1, w) },                                                                        \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"dim\": 3, \"cache\": true}" },                        \
        { .name = kind "-softmax-features-bhnd",                                                                           \
          .in = { SHAPE(2, 3, 5, 6), SHAPE(3, w) },                                                                        \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"layout\": \"bhnd\"}" },                               \
        { .name = kind "-softmax-tokens",                                                                                  \
          .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) },                                                                        \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"dim\": 1}" },                                         \
        { .name = kind "-softmax-tokens-cache",                                                                            \
          .in = { SHAPE(2, 5, 3, 6), SHAPE(3, w) },                                                                        \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"dim\": -3, \"cache\": true}" },                       \
        { .name = kind "-softmax-tokens-bhnd",                                                                             \
          .in = { SHAPE(2, 3, 5, 6), SHAPE(3, w) },                                                                        \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"dim\": 2, \"layout\": \"bhnd\"}" },                   \
        { .name = kind "-softmax-tokens-bhnd-cache",                                                                       \
          .in = { SHAPE(2, 3, 5, 6), SHAPE(1, 1) },                                                                        \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"dim\": -2, \"layout\": \"bhnd\", \"cache\": true}" }, \
        { .name = kind "-softmax-tokens-l",                                                                                \
          .in = { SHAPE(2, 7, 2, 6), SHAPE(2, 2) },                                                                        \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"dim\": 1, \"shape\": [2, 2], \"l\": 3}" },            \
        { .name = kind "-softmax-huge",                                                                                    \
          .in = { LIST(huge, 1, 7, 2, 4), SHAPE(2, 2) },                                                                   \
          .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\"}",                                                       \
          .no_gradcheck = true },                                                                                          \
    {                                                                                                                      \
        .name = kind "-softmax-tokens-huge", .in = { LIST(huge, 1, 7, 2, 4), SHAPE(2, 2) },                                \
        .attrs = "{\"kind\": \"" kind "\", \"act\": \"softmax\", \"dim\": 1}", .no_gradcheck = true                        \
    }

/* One to four axes, with and without leading tokens, under every form of theta: one per head, shared, a scalar per head, one scalar, and
 * too short or too long for W (w_short, w_long). */
#define GRIDS(kind, layout_name, cache, one, two, three, four, w1, w2, w3, w_short, w_long)                                                \
    { .name = kind "-1d-l0-" layout_name, .in = { one(6), SHAPE(2, w1) }, .attrs = GRID(kind, layout_name, cache, "6", "0") },             \
        { .name = kind "-1d-l3-" layout_name, .in = { one(9), SHAPE(2, w1) }, .attrs = GRID(kind, layout_name, cache, "6", "3") },         \
        { .name = kind "-1d-shared-" layout_name, .in = { one(6), SHAPE(1, w1) }, .attrs = GRID(kind, layout_name, cache, "6", "0") },     \
        { .name = kind "-1d-scalars-" layout_name, .in = { one(8), SHAPE(2, 1) }, .attrs = GRID(kind, layout_name, cache, "6", "2") },     \
        { .name = kind "-1d-scalar-" layout_name, .in = { one(8), SHAPE(1, 1) }, .attrs = GRID(kind, layout_name, cache, "6", "2") },      \
        { .name = kind "-1d-short-" layout_name, .in = { one(7), SHAPE(2, w_short) }, .attrs = GRID(kind, layout_name, cache, "6", "1") }, \
        { .name = kind "-1d-long-" layout_name, .in = { one(7), SHAPE(2, w_long) }, .attrs = GRID(kind, layout_name, cache, "6", "1") },   \
        { .name = kind "-2d-l0-" layout_name, .in = { two(6), SHAPE(2, w2) }, .attrs = GRID(kind, layout_name, cache, "2, 3", "0") },      \
        { .name = kind "-2d-l3-" layout_name, .in = { two(9), SHAPE(2, w2) }, .attrs = GRID(kind, layout_name, cache, "2, 3", "3") },      \
        { .name = kind "-2d-shared-" layout_name, .in = { two(9), SHAPE(1, w2) }, .attrs = GRID(kind, layout_name, cache, "3, 2", "3") },  \
        { .name = kind "-2d-scalars-" layout_name, .in = { two(6), SHAPE(2, 1) }, .attrs = GRID(kind, layout_name, cache, "3, 2", "0") },  \
        { .name = kind "-2d-short-" layout_name, .in = { two(6), SHAPE(2, 2) }, .attrs = GRID(kind, layout_name, cache, "3, 2", "0") },    \
        { .name = kind "-2d-long-" layout_name,                                                                                            \
          .in = { two(7), SHAPE(2, w_long) },                                                                                              \
          .attrs = GRID(kind, layout_name, cache, "3, 2", "1") },                                                                          \
        { .name = kind "-3d-l0-" layout_name,                                                                                              \
          .in = { three(12), SHAPE(2, w3) },                                                                                               \
          .attrs = GRID(kind, layout_name, cache, "2, 3, 2", "0") },                                                                       \
        { .name = kind "-3d-l5-" layout_name,                                                                                              \
          .in = { three(17), SHAPE(1, w3) },                                                                                               \
          .attrs = GRID(kind, layout_name, cache, "2, 3, 2", "5") },                                                                       \
        { .name = kind "-3d-scalar-" layout_name,                                                                                          \
          .in = { three(12), SHAPE(1, 1) },                                                                                                \
          .attrs = GRID(kind, layout_name, cache, "2, 2, 3", "0") },                                                                       \
    {                                                                                                                                      \
        .name = kind "-4d-" layout_name, .in = { four(18), SHAPE(2, 2) }, .attrs = GRID(kind, layout_name, cache, "2, 2, 2, 2", "2")       \
    }
#define GRID(kind, layout, cache, shape, l) \
    "{\"kind\": \"" kind "\", \"layout\": \"" layout "\", \"cache\": " cache ", \"shape\": [" shape "], \"l\": " l "}"
#define BNHD_8(n) SHAPE(2, n, 2, 8)
#define BNHD_10(n) SHAPE(1, n, 2, 10)
#define BNHD_16(n) SHAPE(1, n, 2, 16)
#define BHND_8(n) SHAPE(2, 2, n, 8)
#define BHND_7(n) SHAPE(1, 2, n, 7)
#define BHND_10(n) SHAPE(1, 2, n, 10)
#define BHND_16(n) SHAPE(1, 2, n, 16)

#define ROTATE "{\"kind\": \"rotate\"}"
#define COSINE "{\"kind\": \"cosine\"}"

const tn_sample tn_lrpe_samples[] = {
    ACTS("rotate", 3),
    ACTS("cosine", 6),
    SOFTMAXES("rotate", 3),
    SOFTMAXES("cosine", 6),
    GRIDS("rotate", "bnhd", "false", BNHD_8, BNHD_10, BNHD_10, BNHD_16, 4, 3, 2, 3, 9),
    GRIDS("rotate", "bhnd", "true", BHND_8, BHND_10, BHND_10, BHND_16, 4, 3, 2, 3, 9),
    GRIDS("cosine", "bnhd", "true", BNHD_8, BNHD_10, BNHD_10, BNHD_16, 8, 5, 4, 5, 13),
    GRIDS("cosine", "bhnd", "false", BHND_8, BHND_7, BHND_10, BHND_16, 8, 4, 4, 5, 13),

    /* offsets */
    { .name = "offset", .in = { SHAPE(2, 5, 2, 6), SHAPE(2, 3) }, .attrs = "{\"kind\": \"rotate\", \"offset\": 40}" },
    { .name = "offset-below-0",
      .in = { SHAPE(2, 5, 2, 6), SHAPE(2, 6) },
      .attrs = "{\"kind\": \"cosine\", \"offset\": -3, \"cache\": true}" },
    { .name = "offset-l",
      .in = { SHAPE(2, 2, 5, 6), SHAPE(1, 3) },
      .attrs = "{\"kind\": \"rotate\", \"offset\": 7, \"l\": 2, \"layout\": \"bhnd\", \"act\": \"silu\"}" },
    { .name = "offset_t", .in = { SHAPE(2, 5, 2, 6), SHAPE(2, 3), AT(11) }, .attrs = ROTATE },
    { .name = "offset_t-cosine",
      .in = { SHAPE(2, 2, 5, 6), SHAPE(2, 6), AT(-4) },
      .attrs = "{\"kind\": \"cosine\", \"layout\": \"bhnd\"}" },
    { .name = "offset_t-and-offset",
      .in = { SHAPE(2, 5, 2, 6), SHAPE(1, 1), AT(11) },
      .attrs = "{\"kind\": \"rotate\", \"offset\": 5, \"l\": 1, \"act\": \"silu\"}" },
    { .name = "offset_t-cache", .in = { SHAPE(2, 5, 2, 6), SHAPE(2, 3), AT(11) }, .attrs = "{\"kind\": \"rotate\", \"cache\": true}" },
    { .name = "offset_t-softmax",
      .in = { SHAPE(2, 5, 2, 6), SHAPE(2, 3), AT(3) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1, \"shape\": [4], \"l\": 1}" },

    /* Far out: a derivative by differences would need smaller steps. */
    { .name = "position-1e6",
      .in = { SHAPE(2, 9, 3, 32), SHAPE(3, 16) },
      .attrs = "{\"kind\": \"rotate\", \"offset\": 1000000}",
      .no_gradcheck = true },
    { .name = "position-1e6-cosine",
      .in = { SHAPE(2, 3, 9, 32), SHAPE(1, 32), AT(999990) },
      .attrs = "{\"kind\": \"cosine\", \"act\": \"silu\", \"layout\": \"bhnd\"}",
      .no_gradcheck = true },
    { .name = "position-1e6-cache",
      .in = { SHAPE(2, 9, 3, 32), SHAPE(3, 16) },
      .attrs = "{\"kind\": \"rotate\", \"offset\": -1000000, \"act\": \"softmax\", \"cache\": true}",
      .no_gradcheck = true },
    { .name = "position-2e7",
      .in = { SHAPE(1, 4, 2, 20), SHAPE(2, 10) },
      .attrs = "{\"kind\": \"rotate\", \"offset\": 20000001}",
      .no_gradcheck = true },
    { .name = "position-3e8",
      .in = { SHAPE(1, 4, 2, 20), SHAPE(2, 20) },
      .attrs = "{\"kind\": \"cosine\", \"offset\": 300000001}",
      .no_gradcheck = true },

    /* edges: one of everything, a decode step, rows that no vector fits, rows that fit several */
    { .name = "one", .in = { SHAPE(1, 1, 1, 1), SHAPE(1, 1) }, .attrs = COSINE },
    { .name = "one-pair", .in = { SHAPE(1, 1, 1, 2), SHAPE(1, 1) }, .attrs = ROTATE },
    { .name = "decode", .in = { SHAPE(3, 1, 4, 16), SHAPE(4, 8) }, .attrs = "{\"kind\": \"rotate\", \"offset\": 77, \"act\": \"silu\"}" },
    { .name = "all-leading", .in = { SHAPE(2, 4, 2, 6), SHAPE(2, 3) }, .attrs = "{\"kind\": \"rotate\", \"l\": 4}" },
    { .name = "odd-width", .in = { SHAPE(2, 5, 2, 7), SHAPE(2, 7) }, .attrs = COSINE },
    { .name = "odd-pairs", .in = { SHAPE(2, 5, 2, 34), SHAPE(2, 17) }, .attrs = "{\"kind\": \"rotate\", \"act\": \"silu\"}" },
    { .name = "width-33", .in = { SHAPE(1, 3, 2, 33), SHAPE(2, 33) }, .attrs = "{\"kind\": \"cosine\", \"act\": \"softmax\"}" },
    { .name = "width-131",
      .in = { SHAPE(1, 3, 1, 131), SHAPE(1, 131) },
      .attrs = "{\"kind\": \"cosine\", \"act\": \"softmax\", \"dim\": 1}" },
    { .name = "width-128", .in = { SHAPE(2, 3, 2, 128), SHAPE(2, 64) }, .attrs = ROTATE },
    { .name = "width-128-cosine",
      .in = { SHAPE(2, 2, 3, 128), SHAPE(2, 43) },
      .attrs = "{\"kind\": \"cosine\", \"shape\": [1, 1, 3], \"layout\": \"bhnd\"}" },
    { .name = "width-64-silu",
      .in = { SHAPE(2, 3, 2, 64), SHAPE(1, 32) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"silu\", \"cache\": true}" },
    { .name = "width-64-softmax",
      .in = { SHAPE(2, 5, 2, 64), SHAPE(2, 32) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1}" },
    { .name = "no-turn",
      .in = { SHAPE(1, 5, 2, 12), { .present = true, .shape = { 2, { 2, 6 } }, .fill = TN_FILL_CONSTANT } },
      .attrs = ROTATE },
    { .name = "long",
      .in = { SHAPE(1, 700, 2, 8), SHAPE(2, 4) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"silu\"}",
      .no_gradcheck = true },
    { .name = "long-shared",
      .in = { SHAPE(2, 3, 700, 8), SHAPE(1, 8) },
      .attrs = "{\"kind\": \"cosine\", \"layout\": \"bhnd\"}",
      .no_gradcheck = true },
    { .name = "long-softmax",
      .in = { SHAPE(1, 700, 2, 8), SHAPE(2, 4) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1}",
      .no_gradcheck = true },
    { .name = "long-softmax-bhnd",
      .in = { SHAPE(1, 2, 700, 8), SHAPE(1, 1) },
      .attrs = "{\"kind\": \"cosine\", \"act\": \"softmax\", \"dim\": 2, \"layout\": \"bhnd\", \"cache\": true}",
      .no_gradcheck = true },
    { .name = "long-2d",
      .in = { SHAPE(1, 2, 626, 16), SHAPE(2, 8) },
      .attrs = "{\"kind\": \"cosine\", \"shape\": [25, 25], \"l\": 1, \"layout\": \"bhnd\"}",
      .no_gradcheck = true },
    { .name = "many-batches", .in = { SHAPE(70, 2, 1, 4), SHAPE(1, 2) }, .attrs = ROTATE },
    { .name = "many-heads", .in = { SHAPE(1, 2, 70, 4), SHAPE(70, 2) }, .attrs = ROTATE },
    { .name = "many-heads-shared", .in = { SHAPE(1, 70, 2, 4), SHAPE(1, 4) }, .attrs = "{\"kind\": \"cosine\", \"layout\": \"bhnd\"}" },
    { .name = "no-tokens", .in = { EMPTY(2, 0, 2, 6), SHAPE(2, 3) }, .attrs = ROTATE },
    { .name = "no-tokens-softmax",
      .in = { EMPTY(2, 0, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1}" },
    { .name = "no-batch", .in = { EMPTY(0, 3, 2, 6), SHAPE(2, 3) }, .attrs = "{\"kind\": \"rotate\", \"cache\": true}" },
    { .name = "no-width", .in = { EMPTY(2, 3, 2, 0), SHAPE(2, 3) }, .attrs = ROTATE },

    /* whole packs of 16 bytes, also three of them, and an axis that ends inside one */
    { .name = "packs", .in = { SHAPE(2, 5, 3, 48), SHAPE(3, 24) }, .attrs = ROTATE },
    { .name = "packs-offset_t", .in = { SHAPE(2, 5, 3, 48), SHAPE(1, 1), AT(5) }, .attrs = ROTATE },
    { .name = "packs-silu-2d",
      .in = { SHAPE(2, 3, 8, 48), SHAPE(3, 12) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"silu\", \"shape\": [2, 3], \"l\": 2, \"layout\": \"bhnd\", \"cache\": true}" },
    { .name = "packs-gelu-cosine", .in = { SHAPE(3, 5, 2, 24), SHAPE(1, 24) }, .attrs = "{\"kind\": \"cosine\", \"act\": \"gelu\"}" },
    { .name = "packs-softmax", .in = { SHAPE(2, 5, 3, 48), SHAPE(3, 24) }, .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\"}" },
    { .name = "packs-softmax-2d-cosine",
      .in = { SHAPE(2, 2, 6, 24), SHAPE(2, 9) },
      .attrs = "{\"kind\": \"cosine\", \"act\": \"softmax\", \"shape\": [2, 3], \"layout\": \"bhnd\"}" },
    { .name = "packs-softmax-tokens",
      .in = { SHAPE(2, 9, 2, 48), SHAPE(2, 24) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1, \"l\": 3}" },
    { .name = "packs-softmax-tokens-3d-cosine",
      .in = { SHAPE(1, 2, 29, 24), SHAPE(1, 9) },
      .attrs = "{\"kind\": \"cosine\", \"act\": \"softmax\", \"dim\": 2, \"shape\": [3, 3, 3], \"l\": 2, \"layout\": \"bhnd\", "
               "\"cache\": true}" },
    { .name = "packs-softmax-tokens-long",
      .in = { SHAPE(1, 1500, 2, 64), SHAPE(2, 32) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1, \"l\": 100}",
      .no_gradcheck = true },
    { .name = "packs-softmax-tokens-huge",
      .in = { LIST(huge, 1, 7, 2, 32), SHAPE(2, 16) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 1}",
      .no_gradcheck = true },

    /* errors */
    { .name = "kind-missing", .in = { SHAPE(2, 3, 2, 6), SHAPE(2, 3) }, .error = TN_ERR_ARGUMENT, .message = "kind" },
    { .name = "three-axes", .in = { SHAPE(3, 2, 6), SHAPE(2, 3) }, .attrs = ROTATE, .error = TN_ERR_SHAPE, .message = "four axes" },
    { .name = "rotate-odd-width",
      .in = { SHAPE(2, 3, 2, 7), SHAPE(2, 3) },
      .attrs = ROTATE,
      .error = TN_ERR_SHAPE,
      .message = "even width" },
    { .name = "shape-too-small",
      .in = { SHAPE(2, 7, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"shape\": [2, 3]}",
      .error = TN_ERR_SHAPE,
      .message = "product of shape" },
    { .name = "shape-and-l-too-large",
      .in = { SHAPE(2, 7, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"shape\": [2, 3], \"l\": 2}",
      .error = TN_ERR_SHAPE,
      .message = "product of shape" },
    { .name = "shape-negative",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"shape\": [-2, -3]}",
      .error = TN_ERR_ARGUMENT,
      .message = "axis of -2" },
    { .name = "shape-overflow",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"shape\": [4294967296, 4294967296, 6]}",
      .error = TN_ERR_SHAPE,
      .message = "product of shape" },
    { .name = "l-negative",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"l\": -1}",
      .error = TN_ERR_ARGUMENT,
      .message = "l = -1" },
    { .name = "l-beyond-tokens",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"l\": 7}",
      .error = TN_ERR_ARGUMENT,
      .message = "l = 7" },
    { .name = "offset-of-two-axes",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"shape\": [2, 3], \"offset\": 1}",
      .error = TN_ERR_ARGUMENT,
      .message = "offset" },
    { .name = "offset_t-of-two-axes",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3), AT(1) },
      .attrs = "{\"kind\": \"rotate\", \"shape\": [2, 3]}",
      .error = TN_ERR_ARGUMENT,
      .message = "offset" },
    { .name = "offset_t-of-two",
      .in = { SHAPE(2, 6, 2, 6),
              SHAPE(2, 3),
              { .present = true, .shape = { 1, { 2 } }, .other_dtype = true, .dtype = TN_I64, .fill = TN_FILL_CONSTANT } },
      .attrs = ROTATE,
      .error = TN_ERR_SHAPE,
      .message = "one element" },
    { .name = "offset_t-of-floats",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3), { .present = true, .shape = { 1, { 1 } }, .other_dtype = true, .dtype = TN_F32 } },
      .attrs = ROTATE,
      .error = TN_ERR_DTYPE,
      .message = "i64" },
    { .name = "offset-out-of-reach",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"offset\": 9007199254740992}",
      .error = TN_ERR_ARGUMENT,
      .message = "offset" },
    { .name = "theta-of-other-heads",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(3, 3) },
      .attrs = ROTATE,
      .error = TN_ERR_SHAPE,
      .message = "theta [2, w]" },
    { .name = "theta-empty", .in = { SHAPE(2, 6, 2, 6), EMPTY(2, 0) }, .attrs = ROTATE, .error = TN_ERR_SHAPE, .message = "w >= 1" },
    { .name = "theta-of-one-axis", .in = { SHAPE(2, 6, 2, 6), SHAPE(3) }, .attrs = ROTATE, .error = TN_ERR_SHAPE, .message = "theta" },
    { .name = "theta-half",
      .in = { SHAPE(2, 6, 2, 6), { .present = true, .shape = { 2, { 2, 3 } }, .other_dtype = true, .dtype = TN_BF16 } },
      .attrs = ROTATE,
      .error = TN_ERR_DTYPE,
      .message = "theta" },
    { .name = "softmax-over-heads",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 2}",
      .error = TN_ERR_ARGUMENT,
      .message = "dim 2" },
    { .name = "softmax-dim-beyond",
      .in = { SHAPE(2, 6, 2, 6), SHAPE(2, 3) },
      .attrs = "{\"kind\": \"rotate\", \"act\": \"softmax\", \"dim\": 4}",
      .error = TN_ERR_ARGUMENT,
      .message = "dim 4" },
    { .name = NULL },
};
