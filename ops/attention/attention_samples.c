#include "attention_internal.h"

/* Sizes are small and differ, so that no two axes can be mistaken for one another. */
#define INPUT(i, ...) [i] = TN_SAMPLE_SHAPE(__VA_ARGS__)
#define LENGTHS(i, list)                                    \
    [i] = { .present = true,                                \
            .shape = { 1, { sizeof list / sizeof *list } }, \
            .fill = TN_FILL_LIST,                           \
            .values = list,                                 \
            .n_values = (int)(sizeof list / sizeof *list),  \
            .other_dtype = true,                            \
            .dtype = TN_I64 }
#define ATTRS(...) .attrs = "{" __VA_ARGS__ "}"
#define CAUSAL "\"causal\": true"
#define REFUSED(name_text, status, words) .name = name_text, .error = status, .message = words

static const double some_keys[] = { 3, 7 };
static const double none_and_all[] = { 0, 5 };
static const double fewer_than_queries[] = { 2, 6 };
static const double one_key[] = { 1, 9 };
static const double three_lengths[] = { 3, 7, 1 };
static const double none_some_all[] = { 0, 70, 130 };
static const double none_most[] = { 0, 257 };
static const double too_long[] = { 3, 8 };
static const double negative[] = { -1, 3 };
static const double two_sequences[] = { 0, 5, 11 };
static const double with_empty[] = { 0, 0, 4, 4, 5, 11, 11 };
static const double no_sequences[] = { 0 };
static const double long_sequences[] = { 0, 3, 70, 70, 150 };
static const double falling[] = { 0, 6, 4, 11 };
static const double too_short[] = { 0, 5, 10 };

/* ---- attention ---- */

#define Q(...) INPUT(TN_AT_Q, __VA_ARGS__)
#define K(...) INPUT(TN_AT_K, __VA_ARGS__)
#define V(...) INPUT(TN_AT_V, __VA_ARGS__)
#define SEQLENS(list) LENGTHS(TN_AT_SEQLENS, list)
#define PACKED(list) LENGTHS(TN_AT_CU_SEQLENS, list)

#define DECODE_CACHE(what, b, m, h, hk, width) \
    { .name = "decode-cache-" what, .in = { Q(b, 1, h, width), K(b, m, hk, width), V(b, m, hk, width) }, .no_gradcheck = true }

const tn_sample tn_attention_samples[] = {
    { .name = "multi-head", .in = { Q(2, 5, 3, 4), K(2, 7, 3, 4), V(2, 7, 3, 6) } },
    { .name = "causal", .in = { Q(2, 6, 3, 5), K(2, 6, 3, 5), V(2, 6, 3, 4) }, ATTRS(CAUSAL) },
    { .name = "grouped", .in = { Q(1, 5, 6, 4), K(1, 7, 3, 4), V(1, 7, 3, 2) }, ATTRS(CAUSAL ", \"scale\": 0.75") },
    { .name = "multi-query", .in = { Q(2, 3, 4, 3), K(2, 5, 1, 3), V(2, 5, 1, 2) } },
    { .name = "multi-query-causal", .in = { Q(1, 5, 4, 3), K(1, 5, 1, 3), V(1, 5, 1, 2) }, ATTRS(CAUSAL) },
    { .name = "scale-0", .in = { Q(1, 3, 2, 4), K(1, 5, 2, 4), V(1, 5, 2, 3) }, ATTRS("\"scale\": 0") },
    { .name = "scale-negative", .in = { Q(1, 3, 2, 4), K(1, 5, 2, 4), V(1, 5, 2, 3) }, ATTRS("\"scale\": -0.5") },
    { .name = "one-token", .in = { Q(1, 1, 1, 1), K(1, 1, 1, 1), V(1, 1, 1, 1) }, ATTRS(CAUSAL) },
    { .name = "decode", .in = { Q(2, 1, 4, 5), K(2, 9, 2, 5), V(2, 9, 2, 3) } },
    { .name = "decode-seqlens", .in = { Q(2, 1, 4, 5), K(2, 9, 2, 5), V(2, 9, 2, 3), SEQLENS(one_key) }, ATTRS(CAUSAL) },
    { .name = "seqlens", .in = { Q(2, 3, 2, 4), K(2, 7, 2, 4), V(2, 7, 2, 3), SEQLENS(some_keys) } },
    { .name = "seqlens-causal", .in = { Q(2, 3, 2, 4), K(2, 7, 2, 4), V(2, 7, 2, 3), SEQLENS(some_keys) }, ATTRS(CAUSAL) },
    { .name = "seqlens-0", .in = { Q(2, 3, 2, 4), K(2, 5, 2, 4), V(2, 5, 2, 3), SEQLENS(none_and_all) } },
    { .name = "no-visible-key", .in = { Q(2, 4, 2, 3), K(2, 6, 2, 3), V(2, 6, 2, 4), SEQLENS(fewer_than_queries) }, ATTRS(CAUSAL) },
    { .name = "more-queries", .in = { Q(1, 6, 2, 3), K(1, 4, 2, 3), V(1, 4, 2, 5) }, ATTRS(CAUSAL) },
    { .name = "packed", .in = { Q(1, 11, 2, 4), K(1, 11, 2, 4), V(1, 11, 2, 3), PACKED(two_sequences) } },
    { .name = "packed-causal", .in = { Q(1, 11, 4, 3), K(1, 11, 2, 3), V(1, 11, 2, 2), PACKED(with_empty) }, ATTRS(CAUSAL) },
    { .name = "packed-none", .in = { Q(1, 0, 2, 4), K(1, 0, 2, 4), V(1, 0, 2, 3), PACKED(no_sequences) }, ATTRS(CAUSAL) },
    { .name = "no-keys", .in = { Q(1, 3, 2, 4), K(1, 0, 2, 4), V(1, 0, 2, 3) } },
    { .name = "no-queries", .in = { Q(1, 0, 2, 4), K(1, 3, 2, 4), V(1, 3, 2, 3) } },
    { .name = "no-batch", .in = { Q(0, 3, 2, 4), K(0, 3, 2, 4), V(0, 3, 2, 3) }, ATTRS(CAUSAL) },
    { .name = "long", .in = { Q(1, 67, 2, 17), K(1, 131, 1, 17), V(1, 131, 1, 9) }, ATTRS(CAUSAL), .no_gradcheck = true },
    { .name = "sixteens", .in = { Q(1, 130, 2, 32), K(1, 130, 2, 32), V(1, 130, 2, 16) }, ATTRS(CAUSAL), .no_gradcheck = true },

    /* Widths that kernels are made for: several tiles, ends within one, a warp's rows on both sides of a length. */
    { .name = "tiles", .in = { Q(1, 135, 2, 64), K(1, 135, 1, 64), V(1, 135, 1, 64) }, ATTRS(CAUSAL), .no_gradcheck = true },
    { .name = "tiles-128", .in = { Q(2, 9, 2, 128), K(2, 70, 2, 128), V(2, 70, 2, 128) }, .no_gradcheck = true },
    { .name = "tiles-32", .in = { Q(1, 70, 3, 32), K(1, 130, 3, 32), V(1, 130, 3, 32) }, ATTRS(CAUSAL), .no_gradcheck = true },
    { .name = "tiles-96", .in = { Q(2, 70, 4, 96), K(2, 66, 2, 96), V(2, 66, 2, 96) }, ATTRS(CAUSAL), .no_gradcheck = true },
    { .name = "tiles-seqlens",
      .in = { Q(2, 9, 2, 64), K(2, 9, 2, 64), V(2, 9, 2, 64), SEQLENS(some_keys) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-packed",
      .in = { Q(1, 150, 1, 64), K(1, 150, 1, 64), V(1, 150, 1, 64), PACKED(long_sequences) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-decode", .in = { Q(2, 1, 4, 64), K(2, 70, 2, 64), V(2, 70, 2, 64) }, .no_gradcheck = true },
    /* One query: heads that share a key are rows of a tile of 16, or of more than one; keys in one part, or in several. */
    DECODE_CACHE("multi-head", 1, 130, 3, 3, 64),
    DECODE_CACHE("grouped", 1, 150, 8, 2, 128),
    DECODE_CACHE("groups-of-5", 1, 520, 5, 1, 64),
    DECODE_CACHE("multi-query", 1, 300, 20, 1, 64),
    DECODE_CACHE("two-tiles", 2, 33, 17, 1, 64),
    DECODE_CACHE("three-tiles", 1, 70, 40, 1, 128),
    { .name = "decode-cache-seqlens",
      .in = { Q(3, 1, 6, 64), K(3, 130, 1, 64), V(3, 130, 1, 64), SEQLENS(none_some_all) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "decode-cache-seqlens-128",
      .in = { Q(2, 1, 18, 128), K(2, 260, 1, 128), V(2, 260, 1, 128), SEQLENS(none_most) },
      .no_gradcheck = true },
    /* Tiles that take the place of others in a ring of stages. */
    { .name = "tiles-many-keys", .in = { Q(1, 2, 1, 128), K(1, 400, 1, 128), V(1, 400, 1, 128) }, ATTRS(CAUSAL), .no_gradcheck = true },
    { .name = "tiles-many-queries", .in = { Q(1, 400, 1, 128), K(1, 3, 1, 128), V(1, 3, 1, 128) }, .no_gradcheck = true },

    { REFUSED("three-axes", TN_ERR_SHAPE, "wanted q"), .in = { Q(2, 5, 4), K(2, 5, 4), V(2, 5, 4) } },
    { REFUSED("other-batch", TN_ERR_SHAPE, "same b"), .in = { Q(2, 5, 3, 4), K(1, 5, 3, 4), V(2, 5, 3, 4) } },
    { REFUSED("other-width", TN_ERR_SHAPE, "width 4"), .in = { Q(2, 5, 3, 4), K(2, 5, 3, 5), V(2, 5, 3, 4) } },
    { REFUSED("other-tokens", TN_ERR_SHAPE, "tokens and heads"), .in = { Q(2, 5, 3, 4), K(2, 5, 3, 4), V(2, 6, 3, 4) } },
    { REFUSED("no-width", TN_ERR_SHAPE, "at least 1"), .in = { Q(2, 5, 3, 0), K(2, 5, 3, 0), V(2, 5, 3, 4) } },
    { REFUSED("no-multiple", TN_ERR_SHAPE, "no multiple"), .in = { Q(2, 5, 3, 4), K(2, 5, 2, 4), V(2, 5, 2, 4) } },
    { REFUSED("seqlens-shape", TN_ERR_SHAPE, "seqlens [b]"),
      .in = { Q(2, 5, 3, 4), K(2, 7, 3, 4), V(2, 7, 3, 4), SEQLENS(three_lengths) } },
    { REFUSED("seqlens-too-long", TN_ERR_ARGUMENT, "seqlens: wanted"),
      .in = { Q(2, 5, 3, 4), K(2, 7, 3, 4), V(2, 7, 3, 4), SEQLENS(too_long) }, .in_data = true },
    { REFUSED("seqlens-negative", TN_ERR_ARGUMENT, "seqlens: wanted"),
      .in = { Q(2, 5, 3, 4), K(2, 7, 3, 4), V(2, 7, 3, 4), SEQLENS(negative) }, .in_data = true },
    { REFUSED("both-lengths", TN_ERR_ARGUMENT, "one of them"),
      .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), SEQLENS(no_sequences), PACKED(two_sequences) } },
    { REFUSED("packed-batches", TN_ERR_SHAPE, "b = 1"), .in = { Q(2, 11, 3, 4), K(2, 11, 3, 4), V(2, 11, 3, 4), PACKED(two_sequences) } },
    { REFUSED("packed-other-tokens", TN_ERR_SHAPE, "as many queries as keys"),
      .in = { Q(1, 10, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), PACKED(two_sequences) } },
    { REFUSED("packed-falling", TN_ERR_ARGUMENT, "rise from 0"), .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), PACKED(falling) },
      .in_data = true },
    { REFUSED("packed-too-short", TN_ERR_ARGUMENT, "rise from 0"),
      .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), PACKED(too_short) }, .in_data = true },
    { .name = NULL },
};

#undef SEQLENS
#undef PACKED

/* ---- tpa_attention ---- */

#define FACTORS_Q(b, n, h, rq, d) INPUT(TN_TPA_AQ, b, n, h, rq), INPUT(TN_TPA_BQ, b, n, rq, d)
#define FACTORS_K(b, m, h, rk, d) INPUT(TN_TPA_AK, b, m, h, rk), INPUT(TN_TPA_BK, b, m, rk, d)
#define FACTORS_V(b, m, h, rv, e) INPUT(TN_TPA_AV, b, m, h, rv), INPUT(TN_TPA_BV, b, m, rv, e)
#define SEQLENS(list) LENGTHS(TN_TPA_SEQLENS, list)
#define PACKED(list) LENGTHS(TN_TPA_CU_SEQLENS, list)
/* One query by each way: rank 1, and higher ranks with lengths. */
#define DECODE(algo)                                                                                              \
    { .name = "decode-" algo,                                                                                     \
      .in = { FACTORS_Q(2, 1, 3, 4, 5), FACTORS_K(2, 7, 3, 1, 5), FACTORS_V(2, 7, 3, 1, 6) },                     \
      ATTRS("\"algo\": \"" algo "\"") },                                                                          \
    {                                                                                                             \
        .name = "decode-ranks-" algo,                                                                             \
        .in = { FACTORS_Q(2, 1, 3, 2, 4), FACTORS_K(2, 9, 3, 2, 4), FACTORS_V(2, 9, 3, 3, 2), SEQLENS(one_key) }, \
        ATTRS("\"algo\": \"" algo "\", \"scale_q\": 0.5, \"scale_k\": 2, \"scale_v\": -1")                        \
    }
/* Wide enough for kernels that work on tiles: more than one block of keys, heads that do not fill one. */
#define DECODE_WIDE(algo, h, m)                                                                                                     \
    {                                                                                                                               \
        .name = "decode-wide-" algo, .in = { FACTORS_Q(1, 1, h, 16, 128), FACTORS_K(1, m, h, 1, 128), FACTORS_V(1, m, h, 1, 128) }, \
        ATTRS("\"algo\": \"" algo "\""), .no_gradcheck = true                                                                       \
    }
/* Few keys, by the size of the cluster and the keys of a block, for few sequences and many; heads that do not fill a block, ranks that do
 * not fill a tile. */
#define DECODE_SHORT(what, b, h, m, rank, width)                                                                                    \
    {                                                                                                                               \
        .name = "decode-short-" what,                                                                                               \
        .in = { FACTORS_Q(b, 1, h, rank, width), FACTORS_K(b, m, h, 1, width), FACTORS_V(b, m, h, 1, width) }, .no_gradcheck = true \
    }

const tn_sample tn_tpa_attention_samples[] = {
    { .name = "plain", .in = { FACTORS_Q(2, 5, 3, 4, 6), FACTORS_K(2, 7, 3, 2, 6), FACTORS_V(2, 7, 3, 1, 8) } },
    { .name = "causal", .in = { FACTORS_Q(2, 6, 3, 2, 5), FACTORS_K(2, 6, 3, 1, 5), FACTORS_V(2, 6, 3, 2, 4) }, ATTRS(CAUSAL) },
    { .name = "scales",
      .in = { FACTORS_Q(1, 3, 2, 3, 4), FACTORS_K(1, 5, 2, 2, 4), FACTORS_V(1, 5, 2, 3, 2) },
      ATTRS("\"scale\": 0.75, \"scale_q\": 1.5, \"scale_k\": -0.5, \"scale_v\": 2") },
    { .name = "scale-0", .in = { FACTORS_Q(1, 3, 2, 3, 4), FACTORS_K(1, 5, 2, 2, 4), FACTORS_V(1, 5, 2, 1, 2) }, ATTRS("\"scale_q\": 0") },
    { .name = "ranks", .in = { FACTORS_Q(1, 2, 2, 7, 3), FACTORS_K(1, 3, 2, 5, 3), FACTORS_V(1, 3, 2, 4, 2) } },
    { .name = "one-of-all", .in = { FACTORS_Q(1, 1, 1, 1, 1), FACTORS_K(1, 1, 1, 1, 1), FACTORS_V(1, 1, 1, 1, 1) }, ATTRS(CAUSAL) },
    { .name = "seqlens", .in = { FACTORS_Q(2, 3, 2, 2, 4), FACTORS_K(2, 7, 2, 1, 4), FACTORS_V(2, 7, 2, 1, 3), SEQLENS(some_keys) } },
    { .name = "seqlens-causal",
      .in = { FACTORS_Q(2, 3, 2, 2, 4), FACTORS_K(2, 7, 2, 2, 4), FACTORS_V(2, 7, 2, 1, 3), SEQLENS(some_keys) },
      ATTRS(CAUSAL) },
    { .name = "seqlens-0", .in = { FACTORS_Q(2, 3, 2, 2, 4), FACTORS_K(2, 5, 2, 1, 4), FACTORS_V(2, 5, 2, 1, 3), SEQLENS(none_and_all) } },
    { .name = "no-visible-key",
      .in = { FACTORS_Q(2, 4, 2, 3, 4), FACTORS_K(2, 6, 2, 1, 4), FACTORS_V(2, 6, 2, 1, 3), SEQLENS(fewer_than_queries) },
      ATTRS(CAUSAL) },
    { .name = "more-queries", .in = { FACTORS_Q(1, 6, 2, 1, 3), FACTORS_K(1, 4, 2, 1, 3), FACTORS_V(1, 4, 2, 2, 5) }, ATTRS(CAUSAL) },
    { .name = "packed", .in = { FACTORS_Q(1, 11, 2, 2, 4), FACTORS_K(1, 11, 2, 1, 4), FACTORS_V(1, 11, 2, 1, 3), PACKED(two_sequences) } },
    { .name = "packed-causal",
      .in = { FACTORS_Q(1, 11, 2, 2, 3), FACTORS_K(1, 11, 2, 2, 3), FACTORS_V(1, 11, 2, 2, 2), PACKED(with_empty) },
      ATTRS(CAUSAL) },
    { .name = "packed-none",
      .in = { FACTORS_Q(1, 0, 2, 2, 4), FACTORS_K(1, 0, 2, 1, 4), FACTORS_V(1, 0, 2, 1, 3), PACKED(no_sequences) },
      ATTRS(CAUSAL) },
    DECODE("auto"),
    DECODE("b"),
    DECODE("bh"),
    DECODE("bn"),
    DECODE("composed"),
    DECODE("naive"),
    { .name = "decode-seqlens-0",
      .in = { FACTORS_Q(2, 1, 3, 2, 4), FACTORS_K(2, 5, 3, 1, 4), FACTORS_V(2, 5, 3, 1, 2), SEQLENS(none_and_all) },
      ATTRS("\"algo\": \"bn\"") },
    { .name = "decode-no-keys", .in = { FACTORS_Q(1, 1, 3, 2, 4), FACTORS_K(1, 0, 3, 1, 4), FACTORS_V(1, 0, 3, 1, 2) } },
    { .name = "no-keys", .in = { FACTORS_Q(1, 3, 2, 2, 4), FACTORS_K(1, 0, 2, 1, 4), FACTORS_V(1, 0, 2, 1, 3) } },
    { .name = "no-queries", .in = { FACTORS_Q(1, 0, 2, 2, 4), FACTORS_K(1, 3, 2, 1, 4), FACTORS_V(1, 3, 2, 1, 3) } },
    { .name = "no-batch", .in = { FACTORS_Q(0, 3, 2, 2, 4), FACTORS_K(0, 3, 2, 1, 4), FACTORS_V(0, 3, 2, 1, 3) }, ATTRS(CAUSAL) },
    { .name = "long",
      .in = { FACTORS_Q(1, 67, 2, 3, 17), FACTORS_K(1, 131, 2, 2, 17), FACTORS_V(1, 131, 2, 1, 9) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "sixteens",
      .in = { FACTORS_Q(1, 130, 2, 16, 32), FACTORS_K(1, 130, 2, 1, 32), FACTORS_V(1, 130, 2, 1, 16) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    DECODE_WIDE("auto", 32, 300),
    DECODE_WIDE("b", 5, 97),
    DECODE_WIDE("bh", 17, 64),
    DECODE_WIDE("bn", 32, 700),
    DECODE_WIDE("composed", 5, 65),
    DECODE_WIDE("naive", 5, 65),
    DECODE_SHORT("1", 2, 40, 60, 4, 64),
    DECODE_SHORT("2", 1, 24, 120, 16, 128),
    DECODE_SHORT("2-long", 13, 40, 250, 8, 128),
    DECODE_SHORT("2-longest", 13, 40, 300, 16, 64),
    DECODE_SHORT("4", 2, 24, 250, 12, 128),
    DECODE_SHORT("4-long", 1, 40, 500, 16, 128),
    DECODE_SHORT("many-1", 17, 40, 20, 16, 128),
    DECODE_SHORT("many-2-long", 17, 40, 130, 4, 64),
    DECODE_SHORT("many-2-longest", 17, 40, 257, 4, 64),
    { .name = "decode-short-seqlens",
      .in = { FACTORS_Q(3, 1, 24, 16, 64), FACTORS_K(3, 130, 24, 1, 64), FACTORS_V(3, 130, 24, 1, 64), SEQLENS(none_some_all) },
      .no_gradcheck = true },
    DECODE_SHORT("many-ranks", 1, 24, 120, 33, 128),
    { .name = "decode-odd-ranks-seqlens",
      .in = { FACTORS_Q(3, 1, 24, 5, 64), FACTORS_K(3, 130, 24, 1, 64), FACTORS_V(3, 130, 24, 1, 64), SEQLENS(none_some_all) },
      .no_gradcheck = true },

    { .name = "tiles",
      .in = { FACTORS_Q(1, 75, 16, 16, 64), FACTORS_K(1, 75, 16, 1, 64), FACTORS_V(1, 75, 16, 1, 64) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-128",
      .in = { FACTORS_Q(2, 3, 24, 6, 128), FACTORS_K(2, 70, 24, 1, 128), FACTORS_V(2, 70, 24, 1, 128) },
      .no_gradcheck = true },
    { .name = "tiles-many-keys",
      .in = { FACTORS_Q(1, 2, 8, 2, 128), FACTORS_K(1, 400, 8, 1, 128), FACTORS_V(1, 400, 8, 1, 128) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-many-queries",
      .in = { FACTORS_Q(1, 400, 2, 2, 128), FACTORS_K(1, 3, 2, 1, 128), FACTORS_V(1, 3, 2, 1, 128) },
      .no_gradcheck = true },
    { .name = "tiles-32",
      .in = { FACTORS_Q(1, 70, 5, 3, 32), FACTORS_K(1, 130, 5, 1, 32), FACTORS_V(1, 130, 5, 1, 32) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-96-ranks",
      .in = { FACTORS_Q(2, 66, 3, 17, 96), FACTORS_K(2, 66, 3, 2, 96), FACTORS_V(2, 66, 3, 8, 96), SEQLENS(some_keys) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-128-ranks",
      .in = { FACTORS_Q(1, 135, 18, 6, 128), FACTORS_K(1, 135, 18, 2, 128), FACTORS_V(1, 135, 18, 2, 128) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-seqlens",
      .in = { FACTORS_Q(2, 9, 8, 3, 64), FACTORS_K(2, 9, 8, 1, 64), FACTORS_V(2, 9, 8, 1, 64), SEQLENS(some_keys) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "tiles-packed",
      .in = { FACTORS_Q(1, 150, 8, 2, 64), FACTORS_K(1, 150, 8, 1, 64), FACTORS_V(1, 150, 8, 1, 64), PACKED(long_sequences) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },

    { REFUSED("three-axes", TN_ERR_SHAPE, "wanted aq"),
      .in = { INPUT(TN_TPA_AQ, 2, 5, 3), INPUT(TN_TPA_BQ, 2, 5, 4), FACTORS_K(2, 5, 3, 1, 4), FACTORS_V(2, 5, 3, 1, 4) } },
    { REFUSED("other-heads", TN_ERR_SHAPE, "b and h"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), FACTORS_K(2, 5, 2, 1, 4), FACTORS_V(2, 5, 3, 1, 4) } },
    { REFUSED("other-batch", TN_ERR_SHAPE, "b and h"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), FACTORS_K(2, 5, 3, 1, 4), FACTORS_V(1, 5, 3, 1, 4) } },
    { REFUSED("other-rank", TN_ERR_SHAPE, "same rank"),
      .in = { INPUT(TN_TPA_AQ, 2, 5, 3, 2), INPUT(TN_TPA_BQ, 2, 5, 3, 4), FACTORS_K(2, 5, 3, 1, 4), FACTORS_V(2, 5, 3, 1, 4) } },
    { REFUSED("no-rank", TN_ERR_SHAPE, "at least 1"),
      .in = { FACTORS_Q(2, 5, 3, 0, 4), FACTORS_K(2, 5, 3, 1, 4), FACTORS_V(2, 5, 3, 1, 4) } },
    { REFUSED("factor-tokens", TN_ERR_SHAPE, "in bk"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), INPUT(TN_TPA_AK, 2, 5, 3, 1), INPUT(TN_TPA_BK, 2, 6, 1, 4), FACTORS_V(2, 5, 3, 1, 4) } },
    { REFUSED("other-width", TN_ERR_SHAPE, "width 4"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), FACTORS_K(2, 5, 3, 1, 5), FACTORS_V(2, 5, 3, 1, 4) } },
    { REFUSED("other-tokens", TN_ERR_SHAPE, "in av"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), FACTORS_K(2, 5, 3, 1, 4), FACTORS_V(2, 6, 3, 1, 4) } },
    { REFUSED("no-width", TN_ERR_SHAPE, "at least 1"),
      .in = { FACTORS_Q(2, 5, 3, 2, 0), FACTORS_K(2, 5, 3, 1, 0), FACTORS_V(2, 5, 3, 1, 4) } },
    { REFUSED("algo-of-many", TN_ERR_UNSUPPORTED, "n = 1"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), FACTORS_K(2, 5, 3, 1, 4), FACTORS_V(2, 5, 3, 1, 4) }, ATTRS("\"algo\": \"bn\"") },
    { REFUSED("seqlens-shape", TN_ERR_SHAPE, "seqlens [b]"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), FACTORS_K(2, 7, 3, 1, 4), FACTORS_V(2, 7, 3, 1, 4), SEQLENS(three_lengths) } },
    { REFUSED("seqlens-too-long", TN_ERR_ARGUMENT, "seqlens: wanted"),
      .in = { FACTORS_Q(2, 1, 3, 2, 4), FACTORS_K(2, 7, 3, 1, 4), FACTORS_V(2, 7, 3, 1, 4), SEQLENS(too_long) }, .in_data = true },
    { REFUSED("seqlens-negative", TN_ERR_ARGUMENT, "seqlens: wanted"),
      .in = { FACTORS_Q(2, 5, 3, 2, 4), FACTORS_K(2, 7, 3, 1, 4), FACTORS_V(2, 7, 3, 1, 4), SEQLENS(negative) }, .in_data = true },
    { REFUSED("both-lengths", TN_ERR_ARGUMENT, "one of them"),
      .in = { FACTORS_Q(1, 11, 3, 2, 4), FACTORS_K(1, 11, 3, 1, 4), FACTORS_V(1, 11, 3, 1, 4), SEQLENS(no_sequences),
              PACKED(two_sequences) } },
    { REFUSED("packed-batches", TN_ERR_SHAPE, "b = 1"),
      .in = { FACTORS_Q(2, 11, 3, 2, 4), FACTORS_K(2, 11, 3, 1, 4), FACTORS_V(2, 11, 3, 1, 4), PACKED(two_sequences) } },
    { REFUSED("packed-other-tokens", TN_ERR_SHAPE, "as many queries as keys"),
      .in = { FACTORS_Q(1, 10, 3, 2, 4), FACTORS_K(1, 11, 3, 1, 4), FACTORS_V(1, 11, 3, 1, 4), PACKED(two_sequences) } },
    { REFUSED("packed-falling", TN_ERR_ARGUMENT, "rise from 0"),
      .in = { FACTORS_Q(1, 11, 3, 2, 4), FACTORS_K(1, 11, 3, 1, 4), FACTORS_V(1, 11, 3, 1, 4), PACKED(falling) }, .in_data = true },
    { .name = NULL },
};
