/* The cache of generation: what comes out token by token is what attention over the whole sequence gives. */
#include <stdlib.h>

#include "harness.h"
#include "ops/tenon.h"

enum { BATCHES = 2, TOKENS = 23, HEADS = 8, RANK_Q = 16, WIDTH = 64 };

static tn_context *open_here(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 3 });
    tn_test_ok(cx);
    return cx;
}

static tn_tensor *part(tn_tensor *t, int64_t sequence, int64_t token, int64_t tokens) {
    return t ? tn_narrow(tn_narrow(t, 0, sequence, 1), 1, token, tokens) : NULL;
}

/* A model's factors, or its queries, keys and values (no ranks). */
typedef struct material {
    tn_tensor *aq, *bq, *ak, *bk, *av, *bv;
} material;

static material make_material(tn_context *cx, tn_dtype dtype, int64_t batches, int64_t kv_heads, int64_t rank) {
    material m = { 0 };
    if (rank == 0) {
        m.bq = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, HEADS, WIDTH));
        m.bk = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, kv_heads, WIDTH));
        m.bv = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, kv_heads, WIDTH));
        return m;
    }
    m.aq = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, HEADS, RANK_Q)),
    m.bq = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, RANK_Q, WIDTH));
    m.ak = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, HEADS, rank)), m.bk = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, rank, WIDTH));
    m.av = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, HEADS, rank)), m.bv = tn_randn(cx, dtype, TN_SHAPE(batches, TOKENS, rank, WIDTH));
    return m;
}

static tn_tensor *attend_whole(const material *m) {
    if (!m->aq) return tn_attention(m->bq, m->bk, m->bv, TN_ATTENTION(.causal = true));
    return tn_tpa_attention(m->aq, m->bq, m->ak, m->bk, m->av, m->bv, TN_TPA_ATTENTION(.causal = true));
}

static tn_tensor *span(tn_tensor *t, int64_t token, int64_t tokens) { return t ? tn_narrow(t, 1, token, tokens) : NULL; }

static bool append(tn_attention_cache *cache, const material *m, int64_t token, int64_t tokens) {
    return tn_attention_cache_append(cache, span(m->ak, token, tokens), span(m->bk, token, tokens), span(m->av, token, tokens),
                                     span(m->bv, token, tokens));
}

static tn_tensor *attend(tn_attention_cache *cache, const material *m, int64_t token, int64_t tokens) {
    return tn_attention_cache_attend(cache, span(m->aq, token, tokens), span(m->bq, token, tokens), TN_TPA_ATTENTION(.causal = true));
}

static void check_close(tn_tensor *expected, tn_tensor *actual, double tolerance, const char *what) {
    TN_TEST_WANT(expected && actual, "%s: nothing came", what);
    double *a = tn_test_doubles(expected), *b = tn_test_doubles(actual);
    tn_test_close(a, b, expected->numel, tolerance, what);
    free(a);
    free(b);
}

static tn_attention_cache_shape shape_of(int64_t batches, int64_t kv_heads, int64_t rank) {
    return (tn_attention_cache_shape){ .batch = batches,
                                       .capacity = TOKENS + 4,
                                       .heads = rank ? HEADS : kv_heads,
                                       .key_width = WIDTH,
                                       .value_width = WIDTH,
                                       .key_rank = rank,
                                       .value_rank = rank };
}

/* A prompt at once, then token by token. */
static void generate(tn_dtype dtype, double tolerance, int64_t batches, int64_t kv_heads, int64_t rank) {
    enum { PROMPT = 9 };
    tn_context *cx = open_here();
    material m = make_material(cx, dtype, batches, kv_heads, rank);
    tn_tensor *whole = attend_whole(&m);
    tn_attention_cache *cache = tn_attention_cache_new(cx, dtype, shape_of(batches, kv_heads, rank));
    tn_test_note("%s, %lld sequences, %lld heads, rank %lld", tn_dtype_name(dtype), (long long)batches, (long long)kv_heads,
                 (long long)rank);
    append(cache, &m, 0, PROMPT);
    check_close(span(whole, 0, PROMPT), attend(cache, &m, 0, PROMPT), tolerance, "the prompt");
    for (int64_t t = PROMPT; t < TOKENS; t++) {
        append(cache, &m, t, 1);
        check_close(span(whole, t, 1), attend(cache, &m, t, 1), tolerance, "a token");
    }
    tn_test_ok(cx);
    TN_TEST_WANT(tn_attention_cache_length(cache, batches - 1) == TOKENS, "the cache counts its tokens");
    tn_attention_cache_free(cache);
    tn_close(cx);
}

static void test_generation(void **unused) {
    (void)unused;
    for (int64_t batches = 1; batches <= BATCHES; batches++) {
        generate(TN_F32, 3e-5, batches, HEADS, 0);
        generate(TN_F32, 3e-5, batches, 2, 0);
        generate(TN_F32, 3e-5, batches, HEADS, 2);
        generate(TN_BF16, 2.5e-2, batches, HEADS, 1);
    }
}

/* A sequence that starts over while the other goes on. */
static void test_unequal_lengths(void **unused) {
    (void)unused;
    tn_context *cx = open_here();
    material m = make_material(cx, TN_F32, BATCHES, HEADS, 1);
    tn_attention_cache *cache = tn_attention_cache_new(cx, TN_F32, shape_of(BATCHES, HEADS, 1));
    append(cache, &m, 0, 7);
    TN_TEST_WANT(tn_attention_cache_cut(cache, 1, 0), "a sequence can be cut");
    append(cache, &m, 7, 3);
    tn_tensor *o = attend(cache, &m, 9, 1);
    for (int64_t i = 0; i < BATCHES; i++) {
        int64_t from = i ? 7 : 0;
        tn_tensor *alone =
            tn_tpa_attention(part(m.aq, i, 9, 1), part(m.bq, i, 9, 1), part(m.ak, i, from, 10 - from), part(m.bk, i, from, 10 - from),
                             part(m.av, i, from, 10 - from), part(m.bv, i, from, 10 - from), TN_TPA_ATTENTION(.causal = true));
        check_close(alone, tn_narrow(o, 0, i, 1), 3e-5, "a sequence of its own length");
    }
    tn_test_ok(cx);
    tn_attention_cache_free(cache);
    tn_close(cx);
}

static void test_bytes_of_a_token(void **unused) {
    (void)unused;
    tn_attention_cache_shape s = { .batch = 1, .capacity = 1, .heads = 32, .key_width = 128, .value_width = 128 };
    TN_TEST_WANT(tn_attention_cache_shape_bytes(TN_BF16, s) == 16384, "multi-head");
    s.heads = 8;
    TN_TEST_WANT(tn_attention_cache_shape_bytes(TN_BF16, s) == 4096, "grouped");
    s.heads = 1;
    TN_TEST_WANT(tn_attention_cache_shape_bytes(TN_BF16, s) == 512, "multi-query");
    s.heads = 32, s.key_rank = s.value_rank = 1;
    TN_TEST_WANT(tn_attention_cache_shape_bytes(TN_BF16, s) == 640, "factors");
    tn_context *cx = open_here();
    tn_attention_cache *cache = tn_attention_cache_new(cx, TN_BF16, s);
    TN_TEST_WANT(tn_attention_cache_token_bytes(cache) == 640, "a cache that is there");
    tn_attention_cache_free(cache);
    tn_close(cx);
}

static void test_errors(void **unused) {
    (void)unused;
    tn_context *cx = open_here();
    tn_attention_cache_shape s = shape_of(1, HEADS, 1);
    TN_TEST_WANT(!tn_attention_cache_new(cx, TN_I64, s), "a cache of integers");
    tn_test_error(cx, TN_ERR_DTYPE, "floating-point");
    s.value_rank = 0;
    TN_TEST_WANT(!tn_attention_cache_new(cx, TN_F32, s), "half a cache");
    tn_test_error(cx, TN_ERR_SHAPE, "ranks");
    material m = make_material(cx, TN_F32, 1, HEADS, 1);
    tn_attention_cache *cache = tn_attention_cache_new(cx, TN_F32, shape_of(1, HEADS, 1));
    TN_TEST_WANT(append(cache, &m, 0, TOKENS) && !append(cache, &m, 0, 5), "a full cache takes no more");
    tn_test_error(cx, TN_ERR_SHAPE, "no room");
    TN_TEST_WANT(tn_attention_cache_length(cache, 0) == TOKENS, "nothing was appended");
    TN_TEST_WANT(!tn_attention_cache_append(cache, m.ak, m.bk, m.av, tn_narrow(m.bv, 1, 0, 2)), "parts of different length");
    tn_test_error(cx, TN_ERR_SHAPE, "bv");
    TN_TEST_WANT(!tn_attention_cache_append(cache, NULL, m.bk, m.av, m.bv), "a missing part");
    tn_test_error(cx, TN_ERR_ARGUMENT, "ak");
    TN_TEST_WANT(!tn_attention_cache_cut(cache, 0, TOKENS + 1), "cut to more than there is");
    tn_test_error(cx, TN_ERR_ARGUMENT, "cut");
    TN_TEST_WANT(!tn_attention_cache_attend(cache, NULL, m.bq, TN_TPA_ATTENTION()), "a query without its other factor");
    tn_test_error(cx, TN_ERR_ARGUMENT, "aq");
    tn_attention_cache_free(cache);
    tn_attention_cache_free(NULL);
    tn_close(cx);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_unequal_lengths),
        cmocka_unit_test(test_bytes_of_a_token),
        cmocka_unit_test(test_errors),
    };
    return tn_test_main("attention_cache", tests, sizeof tests / sizeof *tests, argc, argv);
}
