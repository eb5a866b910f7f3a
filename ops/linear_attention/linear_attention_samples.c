#include "linear_attention_internal.h"

/* Inputs by name; the sizes are small and all different, so that no two axes can be mistaken for one another. */
#define Q(...) [TN_LA_Q] = TN_SAMPLE_SHAPE(__VA_ARGS__)
#define K(...) [TN_LA_K] = TN_SAMPLE_SHAPE(__VA_ARGS__)
#define V(...) [TN_LA_V] = TN_SAMPLE_SHAPE(__VA_ARGS__)
#define G(...) [TN_LA_G] = TN_SAMPLE_SHAPE(__VA_ARGS__)
#define STATE(...) [TN_LA_STATE] = TN_SAMPLE_SHAPE(__VA_ARGS__)
#define FILLED(filling, low, high, ...) \
    { .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = filling, .a = low, .b = high }
#define THETA(...) [TN_LA_THETA] = FILLED(TN_FILL_UNIFORM, -1.5, 1.5, __VA_ARGS__)
#define DECAY(...) [TN_LA_LOG_DECAY] = FILLED(TN_FILL_UNIFORM, -1.2, -0.01, __VA_ARGS__)
#define SLOW_DECAY(...) [TN_LA_LOG_DECAY] = FILLED(TN_FILL_UNIFORM, -0.02, -0.001, __VA_ARGS__)
#define LISTED(list, ...)                                                                                                \
    {                                                                                                                    \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } }, .fill = TN_FILL_LIST, .values = list, \
        .n_values = (int)(sizeof list / sizeof *list)                                                                    \
    }
#define DECAY_OF(list, ...) [TN_LA_LOG_DECAY] = LISTED(list, __VA_ARGS__)
#define SEQUENCES(list)                                                    \
    [TN_LA_CU_SEQLENS] = { .present = true,                                \
                           .shape = { 1, { sizeof list / sizeof *list } }, \
                           .fill = TN_FILL_LIST,                           \
                           .values = list,                                 \
                           .n_values = (int)(sizeof list / sizeof *list),  \
                           .other_dtype = true,                            \
                           .dtype = TN_I64 }

static const double two_sequences[] = { 0, 5, 11 };
static const double with_empty[] = { 0, 0, 4, 4, 5, 11, 11 };
static const double around_chunks[] = { 0, 64, 129, 130, 193 };
static const double no_sequences[] = { 0 };
static const double falling[] = { 0, 6, 4, 11 };
static const double too_short[] = { 0, 5, 10 };
/* Forgetting everything at once, nothing at all, and what lies between. */
static const double extreme[] = { -20, 0, 0, -0.5, -20, -20, -1e-4, 0 };
static const double never[] = { 0 };
static const double at_once[] = { -20 };
static const double beyond_f32[] = { -200, 0, -900, -1e-3 };
/* Beside relu's kink. */
static const double away_from_0[] = { -1.5, 0.75, -0.25, 0.5, 1.25, -0.625, 2 };
static const double tall[] = { -1e4, 1e4, 0, 9999, -3, 1e4, 9998 };

#define CAUSAL "\"causal\": true"
#define ATTRS(...) .attrs = "{" __VA_ARGS__ "}"
#define ONE_ACT(name_text, operand, act) \
    { .name = name_text, .in = { Q(1, 3, 2, 4), K(1, 5, 2, 4), V(1, 5, 2, 3), G(1, 3, 2, 3) }, ATTRS("\"" operand "_act\": \"" act "\"") }
/* n tokens by chunks of four. */
#define CHUNKS(name_text, n)                                                                                                        \
    {                                                                                                                               \
        .name = name_text, .in = { Q(1, n, 2, 3), K(1, n, 2, 3), V(1, n, 2, 5), G(1, n, 2, 5), DECAY(1, n, 2), STATE(1, 2, 3, 5) }, \
        ATTRS(CAUSAL ", \"chunk\": 4, \"return_state\": true, \"scale\": 0.5")                                                      \
    }

const tn_sample tn_linear_attention_samples[] = {
    /* ---- non-causal ---- */
    { .name = "plain", .in = { Q(2, 5, 3, 4), K(2, 7, 3, 4), V(2, 7, 3, 6) } },
    { .name = "gate", .in = { Q(2, 5, 3, 4), K(2, 7, 3, 4), V(2, 7, 3, 6), G(2, 5, 3, 6) }, ATTRS("\"scale\": 0.25") },
    { .name = "gate-bhnd", .in = { Q(2, 3, 5, 4), K(2, 3, 7, 4), V(2, 3, 7, 6), G(2, 3, 5, 6) }, ATTRS("\"layout\": \"bhnd\"") },
    { .name = "state",
      .in = { Q(2, 4, 3, 5), K(2, 3, 3, 5), V(2, 3, 3, 2), G(2, 4, 3, 2), STATE(2, 3, 5, 2) },
      ATTRS("\"return_state\": true, \"scale\": 2") },
    { .name = "state-in", .in = { Q(1, 4, 2, 3), K(1, 3, 2, 3), V(1, 3, 2, 5), STATE(1, 2, 3, 5) }, ATTRS("\"layout\": \"bnhd\"") },
    { .name = "state-out", .in = { Q(1, 2, 4, 3), K(1, 2, 3, 3), V(1, 2, 3, 5) }, ATTRS("\"return_state\": true, \"layout\": \"bhnd\"") },
    { .name = "wide", .in = { Q(1, 3, 1, 37), K(1, 4, 1, 37), V(1, 4, 1, 19), G(1, 3, 1, 19) }, ATTRS("\"q_act\": \"silu\"") },
    { .name = "sixteens",
      .in = { Q(1, 2, 18, 32), K(1, 2, 18, 32), V(1, 2, 18, 16), G(1, 2, 18, 16) },
      ATTRS("\"layout\": \"bhnd\""),
      .no_gradcheck = true },
    { .name = "long",
      .in = { Q(1, 1, 131, 16), K(1, 1, 259, 16), V(1, 1, 259, 8), G(1, 1, 131, 8), THETA(1, 8) },
      ATTRS("\"layout\": \"bhnd\", \"kind\": \"rotate\", \"q_act\": \"softmax\", \"k_act\": \"softmax\", \"k_dim\": 2, \"scale\": 4"),
      .no_gradcheck = true },
    { .name = "one-token", .in = { Q(2, 1, 2, 4), K(2, 1, 2, 4), V(2, 1, 2, 3), G(2, 1, 2, 3) } },
    { .name = "width-one",
      .in = { Q(1, 3, 2, 1), K(1, 4, 2, 1), V(1, 4, 2, 1), G(1, 3, 2, 1), THETA(2, 1) },
      ATTRS("\"kind\": \"cosine\"") },
    { .name = "no-keys", .in = { Q(1, 3, 2, 4), K(1, 0, 2, 4), V(1, 0, 2, 3), STATE(1, 2, 4, 3) }, ATTRS("\"return_state\": true") },
    { .name = "no-queries", .in = { Q(1, 0, 2, 4), K(1, 3, 2, 4), V(1, 3, 2, 3), G(1, 0, 2, 3) }, ATTRS("\"return_state\": true") },
    { .name = "no-batch", .in = { Q(0, 3, 2, 4), K(0, 3, 2, 4), V(0, 3, 2, 3), THETA(2, 2) }, ATTRS("\"kind\": \"rotate\"") },

    /* ---- activations ---- */
    ONE_ACT("q-silu", "q", "silu"),
    ONE_ACT("q-sigmoid", "q", "sigmoid"),
    ONE_ACT("q-gelu", "q", "gelu"),
    ONE_ACT("q-tanh", "q", "tanh"),
    ONE_ACT("q-softmax", "q", "softmax"),
    ONE_ACT("k-silu", "k", "silu"),
    ONE_ACT("k-gelu", "k", "gelu"),
    ONE_ACT("k-softmax", "k", "softmax"),
    ONE_ACT("v-silu", "v", "silu"),
    ONE_ACT("v-sigmoid", "v", "sigmoid"),
    ONE_ACT("v-softmax", "v", "softmax"),
    ONE_ACT("g-silu", "g", "silu"),
    ONE_ACT("g-sigmoid", "g", "sigmoid"),
    ONE_ACT("g-tanh", "g", "tanh"),
    ONE_ACT("g-softmax", "g", "softmax"),
    { .name = "relu",
      .in = { [TN_LA_Q] = LISTED(away_from_0, 1, 4, 2, 3),
              [TN_LA_K] = LISTED(away_from_0, 1, 5, 2, 3),
              [TN_LA_V] = LISTED(away_from_0, 1, 5, 2, 2),
              [TN_LA_G] = LISTED(away_from_0, 1, 4, 2, 2) },
      ATTRS("\"q_act\": \"relu\", \"k_act\": \"relu\", \"v_act\": \"relu\", \"g_act\": \"relu\"") },
    { .name = "act-without-gate", .in = { Q(1, 3, 2, 4), K(1, 3, 2, 4), V(1, 3, 2, 2) }, ATTRS("\"g_act\": \"silu\"") },
    { .name = "softmax-sequence",
      .in = { Q(2, 5, 2, 3), K(2, 4, 2, 3), V(2, 4, 2, 2), G(2, 5, 2, 2) },
      ATTRS("\"q_act\": \"softmax\", \"q_dim\": 1, \"k_act\": \"softmax\", \"k_dim\": -3, \"scale\": 3") },
    { .name = "softmax-sequence-bhnd",
      .in = { Q(1, 2, 5, 4), K(1, 2, 6, 4), V(1, 2, 6, 3), G(1, 2, 5, 3), THETA(2, 2), STATE(1, 2, 4, 3) },
      ATTRS("\"q_act\": \"softmax\", \"k_act\": \"softmax\", \"q_dim\": 2, \"k_dim\": -2, \"g_act\": \"silu\", \"layout\": \"bhnd\", "
            "\"kind\": \"rotate\", \"l\": 1, \"return_state\": true") },
    { .name = "softmax-huge",
      .in = { [TN_LA_Q] = LISTED(tall, 1, 4, 2, 3), [TN_LA_K] = LISTED(tall, 1, 5, 2, 3), V(1, 5, 2, 2) },
      ATTRS("\"q_act\": \"softmax\", \"k_act\": \"softmax\", \"k_dim\": 1"),
      .no_gradcheck = true },

    /* ---- LRPE ---- */
    { .name = "fal-silu",
      .in = { Q(2, 2, 5, 4), K(2, 2, 5, 4), V(2, 2, 5, 3), G(2, 2, 5, 3), THETA(2, 4) },
      ATTRS("\"kind\": \"cosine\", \"q_act\": \"silu\", \"k_act\": \"silu\", \"g_act\": \"silu\", \"layout\": \"bhnd\"") },
    { .name = "fal-softmax",
      .in = { Q(2, 2, 5, 4), K(2, 2, 5, 4), V(2, 2, 5, 3), G(2, 2, 5, 3), THETA(2, 4) },
      ATTRS("\"kind\": \"cosine\", \"q_act\": \"softmax\", \"k_act\": \"silu\", \"g_act\": \"silu\", \"layout\": \"bhnd\"") },
    { .name = "rotate",
      .in = { Q(1, 5, 2, 6), K(1, 4, 2, 6), V(1, 4, 2, 3), THETA(2, 3) },
      ATTRS("\"kind\": \"rotate\", \"q_offset\": 3") },
    { .name = "rotate-shared",
      .in = { Q(2, 5, 2, 6), K(2, 4, 2, 6), V(2, 4, 2, 3), G(2, 5, 2, 3), THETA(1, 3), STATE(2, 2, 6, 3) },
      ATTRS("\"kind\": \"rotate\", \"k_offset\": -2, \"return_state\": true") },
    { .name = "rotate-short-theta",
      .in = { Q(1, 4, 2, 6), K(1, 4, 2, 6), V(1, 4, 2, 3), THETA(2, 2) },
      ATTRS("\"kind\": \"rotate\", \"l\": 1") },
    { .name = "cosine-scalar-theta",
      .in = { Q(1, 2, 6, 5), K(1, 2, 6, 5), V(1, 2, 6, 3), G(1, 2, 6, 3), THETA(2, 1), STATE(1, 2, 10, 3) },
      ATTRS("\"kind\": \"cosine\", \"shape\": [2, 3], \"layout\": \"bhnd\", \"return_state\": true") },
    { .name = "cosine-2d-l2",
      .in = { Q(1, 8, 2, 5), K(1, 8, 2, 5), V(1, 8, 2, 3), G(1, 8, 2, 3), THETA(2, 3) },
      ATTRS("\"kind\": \"cosine\", \"shape\": [3, 2], \"l\": 2, \"q_act\": \"silu\", \"g_act\": \"sigmoid\"") },
    { .name = "rotate-3d-wide-theta",
      .in = { Q(1, 9, 1, 8), K(1, 9, 1, 8), V(1, 9, 1, 2), THETA(1, 7) },
      ATTRS("\"kind\": \"rotate\", \"shape\": [2, 2, 2], \"l\": 1, \"k_act\": \"silu\"") },
    /* Of queries and keys that are both far out theta's gradient is a small difference of large numbers, which f32 does not have. */
    { .name = "far",
      .in = { Q(1, 3, 1, 4), K(1, 3, 1, 4), V(1, 3, 1, 2), THETA(1, 2) },
      ATTRS("\"kind\": \"rotate\", \"q_offset\": 1000000"),
      .no_gradcheck = true },

    /* ---- causal ---- */
    { .name = "causal", .in = { Q(2, 6, 3, 4), K(2, 6, 3, 4), V(2, 6, 3, 5) }, ATTRS(CAUSAL) },
    { .name = "causal-gate",
      .in = { Q(1, 2, 7, 4), K(1, 2, 7, 4), V(1, 2, 7, 3), G(1, 2, 7, 3) },
      ATTRS(CAUSAL
            ", \"layout\": \"bhnd\", \"chunk\": 3, \"q_act\": \"silu\", \"k_act\": \"silu\", \"v_act\": \"tanh\", \"g_act\": \"silu\"") },
    { .name = "causal-constant", .in = { Q(2, 7, 3, 4), K(2, 7, 3, 4), V(2, 7, 3, 2), DECAY(3) }, ATTRS(CAUSAL ", \"chunk\": 3") },
    { .name = "causal-scalar",
      .in = { Q(2, 7, 2, 3), K(2, 7, 2, 3), V(2, 7, 2, 4), G(2, 7, 2, 4), DECAY(2, 7, 2) },
      ATTRS(CAUSAL ", \"chunk\": 3, \"g_act\": \"silu\"") },
    { .name = "causal-scalar-bhnd",
      .in = { Q(2, 3, 5, 4), K(2, 3, 5, 4), V(2, 3, 5, 2), DECAY(2, 5, 3), STATE(2, 3, 4, 2) },
      ATTRS(CAUSAL ", \"layout\": \"bhnd\", \"chunk\": 2, \"return_state\": true") },
    { .name = "causal-constant-state",
      .in = { Q(1, 5, 2, 4), K(1, 5, 2, 4), V(1, 5, 2, 3), G(1, 5, 2, 3), DECAY(2), STATE(1, 2, 4, 3) },
      ATTRS(CAUSAL ", \"chunk\": 2, \"return_state\": true, \"scale\": 0.5") },
    { .name = "causal-state", .in = { Q(1, 5, 2, 4), K(1, 5, 2, 4), V(1, 5, 2, 3), STATE(1, 2, 4, 3) }, ATTRS(CAUSAL ", \"chunk\": 2") },
    { .name = "causal-no-state-in",
      .in = { Q(1, 5, 2, 4), K(1, 5, 2, 4), V(1, 5, 2, 3), DECAY(1, 5, 2) },
      ATTRS(CAUSAL ", \"chunk\": 2, \"return_state\": true") },
    { .name = "causal-rotate",
      .in = { Q(1, 6, 2, 4), K(1, 6, 2, 4), V(1, 6, 2, 3), G(1, 6, 2, 3), THETA(2, 2), DECAY(1, 6, 2) },
      ATTRS(CAUSAL
            ", \"chunk\": 4, \"kind\": \"rotate\", \"q_act\": \"softmax\", \"k_act\": \"softmax\", \"q_offset\": 7, \"k_offset\": 7") },
    { .name = "causal-cosine",
      .in = { Q(1, 2, 6, 3), K(1, 2, 6, 3), V(1, 2, 6, 4), G(1, 2, 6, 4), THETA(1, 3), DECAY(2), STATE(1, 2, 6, 4) },
      ATTRS(CAUSAL ", \"chunk\": 4, \"kind\": \"cosine\", \"layout\": \"bhnd\", \"return_state\": true, \"k_act\": \"silu\"") },
    { .name = "causal-2d",
      .in = { Q(1, 7, 1, 4), K(1, 7, 1, 4), V(1, 7, 1, 2), THETA(1, 2), DECAY(1) },
      ATTRS(CAUSAL ", \"kind\": \"cosine\", \"shape\": [2, 3], \"l\": 1, \"chunk\": 3") },
    CHUNKS("chunk-one", 1),
    CHUNKS("chunk-less-1", 3),
    CHUNKS("chunk", 4),
    CHUNKS("chunk-plus-1", 5),
    CHUNKS("chunks", 13),
    { .name = "chunk-of-one", .in = { Q(1, 4, 1, 3), K(1, 4, 1, 3), V(1, 4, 1, 2), DECAY(1, 4, 1) }, ATTRS(CAUSAL ", \"chunk\": 1") },
    { .name = "causal-odd",
      .in = { Q(1, 70, 1, 37), K(1, 70, 1, 37), V(1, 70, 1, 19), G(1, 70, 1, 19), DECAY(1, 70, 1) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "causal-long",
      .in = { Q(1, 1, 193, 16), K(1, 1, 193, 16), V(1, 1, 193, 16), G(1, 1, 193, 16), STATE(1, 1, 16, 16), SLOW_DECAY(1) },
      ATTRS(CAUSAL ", \"layout\": \"bhnd\", \"return_state\": true, \"scale\": 0.25"),
      .no_gradcheck = true },
    { .name = "decay-extreme",
      .in = { Q(1, 9, 2, 3), K(1, 9, 2, 3), V(1, 9, 2, 2), DECAY_OF(extreme, 1, 9, 2), STATE(1, 2, 3, 2) },
      ATTRS(CAUSAL ", \"chunk\": 4, \"return_state\": true") },
    { .name = "decay-none", .in = { Q(1, 9, 2, 3), K(1, 9, 2, 3), V(1, 9, 2, 2), DECAY_OF(never, 2) }, ATTRS(CAUSAL ", \"chunk\": 4") },
    { .name = "decay-at-once",
      .in = { Q(1, 150, 1, 3), K(1, 150, 1, 3), V(1, 150, 1, 2), DECAY_OF(at_once, 1) },
      ATTRS(CAUSAL),
      .no_gradcheck = true },
    { .name = "decay-beyond-f32",
      .in = { Q(1, 9, 2, 3), K(1, 9, 2, 3), V(1, 9, 2, 2), DECAY_OF(beyond_f32, 1, 9, 2) },
      ATTRS(CAUSAL ", \"return_state\": true"),
      .no_gradcheck = true },
    { .name = "causal-empty",
      .in = { Q(2, 0, 2, 3), K(2, 0, 2, 3), V(2, 0, 2, 2), DECAY(2), STATE(2, 2, 3, 2) },
      ATTRS(CAUSAL ", \"return_state\": true") },

    /* ---- packed sequences ---- */
    { .name = "packed",
      .in = { Q(1, 11, 2, 4), K(1, 11, 2, 4), V(1, 11, 2, 3), G(1, 11, 2, 3), THETA(2, 2), DECAY(1, 11, 2), STATE(2, 2, 4, 3),
              SEQUENCES(two_sequences) },
      ATTRS(CAUSAL ", \"chunk\": 4, \"kind\": \"rotate\", \"return_state\": true, \"l\": 1") },
    { .name = "packed-empty",
      .in = { Q(1, 2, 11, 3), K(1, 2, 11, 3), V(1, 2, 11, 2), DECAY(2), STATE(6, 2, 3, 2), SEQUENCES(with_empty) },
      ATTRS(CAUSAL ", \"chunk\": 4, \"layout\": \"bhnd\", \"return_state\": true") },
    { .name = "packed-plain", .in = { Q(1, 11, 2, 3), K(1, 11, 2, 3), V(1, 11, 2, 2), SEQUENCES(two_sequences) }, ATTRS(CAUSAL) },
    { .name = "packed-none",
      .in = { Q(1, 0, 2, 3), K(1, 0, 2, 3), V(1, 0, 2, 2), SEQUENCES(no_sequences) },
      ATTRS(CAUSAL ", \"return_state\": true") },

/* ---- widths and lengths of a tile and about: what devices have fast kernels for ---- */
#define HEADS_FIRST(x, tokens, width) x(1, 2, tokens, width)
#define TOKENS_FIRST(x, tokens, width) x(1, tokens, 2, width)
#define MANY_HEADS(x, tokens, width) x(7, 19, tokens, width) /* more than a GPU has multiprocessors, by a few */
#define TILED(name_text, layout_of, n, m, d, e, ...)                                                                          \
    .name = name_text, .in = { layout_of(Q, n, d), layout_of(K, m, d), layout_of(V, m, e), layout_of(G, n, e), __VA_ARGS__ }, \
    .no_gradcheck = true
    { TILED("tile-flao", HEADS_FIRST, 65, 129, 128, 128, STATE(1, 2, 128, 128)), ATTRS("\"layout\": \"bhnd\", \"scale\": 0.125") },
    { TILED("tile-flao-64", TOKENS_FIRST, 64, 63, 64, 64, STATE(1, 2, 64, 64)), ATTRS("\"return_state\": true") },
    { TILED("tile-widths", TOKENS_FIRST, 33, 70, 48, 80, STATE(1, 2, 48, 80)), ATTRS("\"q_act\": \"silu\", \"v_act\": \"silu\"") },
    { TILED("tile-eights", HEADS_FIRST, 40, 65, 72, 40, THETA(2, 72), STATE(1, 2, 144, 40)),
      ATTRS("\"layout\": \"bhnd\", \"kind\": \"cosine\", \"q_act\": \"softmax\", \"k_act\": \"silu\"") },
    { TILED("tile-broad", HEADS_FIRST, 70, 65, 256, 128, STATE(1, 2, 256, 128)),
      ATTRS("\"layout\": \"bhnd\", \"g_act\": \"silu\", \"scale\": 0.0625, \"return_state\": true") },
    { TILED("tile-broad-softmax", TOKENS_FIRST, 33, 70, 144, 48, [TN_LA_STATE] = { .present = false }),
      ATTRS("\"q_act\": \"softmax\", \"k_act\": \"gelu\", \"v_act\": \"tanh\"") },
    { TILED("tile-fal-silu", HEADS_FIRST, 130, 130, 128, 128, THETA(2, 128)),
      ATTRS(
          "\"layout\": \"bhnd\", \"kind\": \"cosine\", \"q_act\": \"silu\", \"k_act\": \"silu\", \"g_act\": \"silu\", \"scale\": 0.125") },
    { TILED("tile-fal-softmax", TOKENS_FIRST, 97, 97, 64, 64, THETA(2, 64)),
      ATTRS("\"kind\": \"cosine\", \"q_act\": \"softmax\", \"k_act\": \"softmax\", \"v_act\": \"softmax\", \"g_act\": \"softmax\"") },
    { TILED("tile-rotate", HEADS_FIRST, 65, 97, 64, 128, THETA(1, 32), STATE(1, 2, 64, 128)),
      ATTRS("\"layout\": \"bhnd\", \"kind\": \"rotate\", \"q_act\": \"gelu\", \"k_act\": \"tanh\", \"g_act\": \"sigmoid\", "
            "\"return_state\": true, \"q_offset\": 5, \"l\": 3, \"scale\": 0.125") },
    { TILED("tile-sequence", TOKENS_FIRST, 70, 131, 32, 64, THETA(2, 16)),
      ATTRS("\"kind\": \"rotate\", \"q_act\": \"softmax\", \"q_dim\": 1, \"k_act\": \"softmax\", \"k_dim\": 1, \"g_act\": \"silu\", "
            "\"scale\": 16") },
    { TILED("tile-many", MANY_HEADS, 3, 4, 8, 72), ATTRS("\"layout\": \"bhnd\", \"g_act\": \"silu\"") },
    { TILED("tile-many-cosine", MANY_HEADS, 4, 3, 72, 8, THETA(19, 72)),
      ATTRS("\"kind\": \"cosine\", \"layout\": \"bhnd\", \"q_act\": \"silu\", \"k_act\": \"silu\"") },
    { TILED("tile-2d", HEADS_FIRST, 66, 66, 32, 32, THETA(2, 16)),
      ATTRS("\"layout\": \"bhnd\", \"kind\": \"cosine\", \"shape\": [8, 8], \"l\": 2, \"k_act\": \"sigmoid\"") },
    { TILED("tile-causal", TOKENS_FIRST, 193, 193, 128, 128, STATE(1, 2, 128, 128), SLOW_DECAY(2)),
      ATTRS(CAUSAL ", \"return_state\": true, \"scale\": 0.125") },
    { TILED("tile-causal-scalar", HEADS_FIRST, 129, 129, 64, 64, SLOW_DECAY(1, 129, 2), THETA(2, 32)),
      ATTRS(CAUSAL ", \"layout\": \"bhnd\", \"kind\": \"rotate\", \"q_act\": \"silu\", \"k_act\": \"silu\", \"g_act\": \"silu\"") },
    { TILED("tile-causal-cosine", TOKENS_FIRST, 128, 128, 64, 32, SLOW_DECAY(2), THETA(2, 64), STATE(1, 2, 128, 32)),
      ATTRS(CAUSAL ", \"kind\": \"cosine\", \"q_act\": \"softmax\", \"k_act\": \"softmax\"") },
    { TILED("tile-causal-cosine-rest", TOKENS_FIRST, 131, 131, 64, 32, SLOW_DECAY(2), THETA(2, 64), STATE(1, 2, 128, 32)),
      ATTRS(CAUSAL ", \"kind\": \"cosine\", \"q_act\": \"softmax\", \"k_act\": \"silu\"") },
    { TILED("tile-causal-bare", HEADS_FIRST, 200, 200, 128, 128, [TN_LA_G] = { .present = false }, SLOW_DECAY(1, 200, 2),
            STATE(1, 2, 128, 128)),
      ATTRS(CAUSAL ", \"layout\": \"bhnd\", \"return_state\": true, \"scale\": 0.125") },
    { TILED("tile-packed-bare", TOKENS_FIRST, 193, 193, 128, 128, [TN_LA_G] = { .present = false }, SLOW_DECAY(1, 193, 2),
            STATE(4, 2, 128, 128), SEQUENCES(around_chunks)),
      ATTRS(CAUSAL) },
    { TILED("tile-causal-plain", TOKENS_FIRST, 65, 65, 32, 16, [TN_LA_STATE] = { .present = false }), ATTRS(CAUSAL) },
    { TILED("tile-packed", TOKENS_FIRST, 193, 193, 64, 64, SLOW_DECAY(1, 193, 2), THETA(2, 32), STATE(4, 2, 64, 64),
            SEQUENCES(around_chunks)),
      ATTRS(CAUSAL ", \"kind\": \"rotate\", \"return_state\": true, \"g_act\": \"silu\"") },

/* ---- errors ---- */
#define REFUSED(name_text, status, words) .name = name_text, .error = status, .message = words
    { REFUSED("three-axes", TN_ERR_SHAPE, "four axes"), .in = { Q(2, 5, 4), K(2, 5, 4), V(2, 5, 4) } },
    { REFUSED("other-heads", TN_ERR_SHAPE, "b and h"), .in = { Q(2, 5, 3, 4), K(2, 5, 2, 4), V(2, 5, 3, 4) } },
    { REFUSED("other-heads-bhnd", TN_ERR_SHAPE, "b and h"), .in = { Q(2, 5, 3, 4), K(2, 4, 3, 4), V(2, 4, 3, 4) },
      ATTRS("\"layout\": \"bhnd\"") },
    { REFUSED("other-width", TN_ERR_SHAPE, "width 4"), .in = { Q(2, 5, 3, 4), K(2, 5, 3, 5), V(2, 5, 3, 4) } },
    { REFUSED("other-tokens", TN_ERR_SHAPE, "tokens in v"), .in = { Q(2, 5, 3, 4), K(2, 5, 3, 4), V(2, 6, 3, 4) } },
    { REFUSED("no-width", TN_ERR_SHAPE, "at least 1"), .in = { Q(2, 5, 3, 0), K(2, 5, 3, 0), V(2, 5, 3, 4) } },
    { REFUSED("gate-like-v", TN_ERR_SHAPE, "wanted g"), .in = { Q(2, 5, 3, 4), K(2, 6, 3, 4), V(2, 6, 3, 7), G(2, 6, 3, 7) } },
    { REFUSED("kind-missing", TN_ERR_ARGUMENT, "kind is required"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4), THETA(3, 4) } },
    { REFUSED("theta-missing", TN_ERR_ARGUMENT, "kind without theta"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4) },
      ATTRS("\"kind\": \"cosine\"") },
    { REFUSED("offset-without-theta", TN_ERR_ARGUMENT, "theta and kind"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4) },
      ATTRS("\"q_offset\": 3") },
    { REFUSED("theta-shape", TN_ERR_SHAPE, "theta"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4), THETA(2, 4) },
      ATTRS("\"kind\": \"cosine\"") },
    { REFUSED("rotate-odd", TN_ERR_SHAPE, "even"), .in = { Q(1, 5, 3, 5), K(1, 5, 3, 5), V(1, 5, 3, 4), THETA(3, 2) },
      ATTRS("\"kind\": \"rotate\"") },
    { REFUSED("shape-product", TN_ERR_SHAPE, "product of shape"), .in = { Q(1, 7, 3, 4), K(1, 7, 3, 4), V(1, 7, 3, 4), THETA(3, 4) },
      ATTRS("\"kind\": \"cosine\", \"shape\": [2, 3]") },
    { REFUSED("shape-of-keys", TN_ERR_SHAPE, "LRPE of k"), .in = { Q(1, 6, 3, 4), K(1, 7, 3, 4), V(1, 7, 3, 4), THETA(3, 4) },
      ATTRS("\"kind\": \"cosine\", \"shape\": [2, 3]") },
    { REFUSED("shape-with-offset", TN_ERR_ARGUMENT, "offset"), .in = { Q(1, 6, 3, 4), K(1, 6, 3, 4), V(1, 6, 3, 4), THETA(3, 4) },
      ATTRS("\"kind\": \"cosine\", \"shape\": [2, 3], \"q_offset\": 1") },
    { REFUSED("dim-of-heads", TN_ERR_ARGUMENT, "q_dim"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4) },
      ATTRS("\"q_act\": \"softmax\", \"q_dim\": 2") },
    { REFUSED("sequence-of-values", TN_ERR_UNSUPPORTED, "not for v"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4) },
      ATTRS("\"v_act\": \"softmax\", \"v_dim\": 1") },
    { REFUSED("sequence-of-gates", TN_ERR_UNSUPPORTED, "not for g"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4), G(1, 5, 3, 4) },
      ATTRS("\"g_act\": \"softmax\", \"g_dim\": 1") },
    { REFUSED("causal-sequence", TN_ERR_UNSUPPORTED, "later tokens"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4) },
      ATTRS(CAUSAL ", \"k_act\": \"softmax\", \"k_dim\": 1") },
    { REFUSED("causal-other-tokens", TN_ERR_SHAPE, "as many queries as keys"), .in = { Q(1, 5, 3, 4), K(1, 6, 3, 4), V(1, 6, 3, 4) },
      ATTRS(CAUSAL) },
    { REFUSED("decay-not-causal", TN_ERR_ARGUMENT, "log_decay goes with causal"),
      .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4), DECAY(3) } },
    { REFUSED("decay-shape", TN_ERR_SHAPE, "wanted log_decay"), .in = { Q(1, 3, 5, 4), K(1, 3, 5, 4), V(1, 3, 5, 4), DECAY(1, 3, 5) },
      ATTRS(CAUSAL ", \"layout\": \"bhnd\"") },
    { REFUSED("packed-not-causal", TN_ERR_ARGUMENT, "cu_seqlens goes with causal"),
      .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), SEQUENCES(two_sequences) } },
    { REFUSED("packed-batches", TN_ERR_SHAPE, "b = 1"), .in = { Q(2, 11, 3, 4), K(2, 11, 3, 4), V(2, 11, 3, 4), SEQUENCES(two_sequences) },
      ATTRS(CAUSAL) },
    { REFUSED("packed-shape", TN_ERR_ARGUMENT, "no shape with cu_seqlens"),
      .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), THETA(3, 4), SEQUENCES(two_sequences) },
      ATTRS(CAUSAL ", \"kind\": \"cosine\", \"shape\": [11]") },
    { REFUSED("packed-falling", TN_ERR_ARGUMENT, "rise from 0"),
      .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), SEQUENCES(falling) }, ATTRS(CAUSAL), .in_data = true },
    { REFUSED("packed-too-short", TN_ERR_ARGUMENT, "rise from 0"),
      .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 4), SEQUENCES(too_short) }, ATTRS(CAUSAL), .in_data = true },
    { REFUSED("state-shape", TN_ERR_SHAPE, "wanted state [1,3,8,2]"),
      .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 2), THETA(3, 4), STATE(1, 3, 4, 2) }, ATTRS("\"kind\": \"cosine\"") },
    { REFUSED("state-of-batch", TN_ERR_SHAPE, "(sequences,"),
      .in = { Q(1, 11, 3, 4), K(1, 11, 3, 4), V(1, 11, 3, 2), STATE(1, 3, 4, 2), SEQUENCES(two_sequences) }, ATTRS(CAUSAL) },
    { REFUSED("negative-chunk", TN_ERR_ARGUMENT, "chunk"), .in = { Q(1, 5, 3, 4), K(1, 5, 3, 4), V(1, 5, 3, 4) },
      ATTRS(CAUSAL ", \"chunk\": -1") },
    { .name = NULL },
};
