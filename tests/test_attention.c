/* attention and tpa_attention where samples do not reach: forms that must agree, a cache that grows, memory behind a sequence's end, huge
 * scores. */
#include <math.h>
#include <stdlib.h>

#include "harness.h"
#include "ops/tenon.h"

enum { AQ, BQ, AK, BK, AV, BV, N_FACTORS };
enum { BATCHES = 2, TOKENS = 150, RANK_Q = 16 };

static const struct {
    tn_dtype dtype;
    double tolerance;
} precisions[] = { { TN_F64, 1e-9 }, { TN_F32, 3e-5 }, { TN_BF16, 2.5e-2 } };

/* Factors of n queries and TOKENS keys of rank rk, as bf16 can hold them, so that every dtype has the same. */
static void make_factors(tn_context *cx, tn_dtype dtype, int64_t n, int64_t h, int64_t rk, int64_t d, tn_tensor *factors[N_FACTORS]) {
    tn_rng_set(cx, (tn_rng_state){ 7, 0 });
    for (int i = 0; i < N_FACTORS; i++) {
        int64_t tokens = i < AK ? n : TOKENS, rank = i < AK ? RANK_Q : rk;
        tn_shape shape = i % 2 ? TN_SHAPE(BATCHES, tokens, rank, d) : TN_SHAPE(BATCHES, tokens, h, rank);
        tn_tensor *coarse = tn_assign(tn_empty(cx, TN_BF16, shape), tn_randn(cx, TN_F32, shape));
        factors[i] = tn_assign(tn_empty(cx, dtype, shape), coarse);
    }
}

static tn_tensor *attend(tn_tensor *const f[N_FACTORS], tn_tpa_attention_args args) {
    return tn_tpa_attention(f[AQ], f[BQ], f[AK], f[BK], f[AV], f[BV], args);
}

static tn_context *open_on(const char *device) {
    tn_context *cx = tn_open(&(tn_options){ .device = device, .seed = 7 });
    tn_test_ok(cx);
    return cx;
}

/* o, and the six gradients where they are asked for, in f64 on the host. */
typedef struct results {
    double *o, *grad[N_FACTORS];
    int64_t n_o, n_grad[N_FACTORS];
} results;

static void keep(results *r, tn_tensor *o, tn_tensor *const factors[N_FACTORS]) {
    r->o = tn_test_doubles(o);
    r->n_o = o->numel;
    for (int i = 0; i < N_FACTORS; i++) {
        r->n_grad[i] = factors[i]->numel;
        r->grad[i] = tn_grad(factors[i]) ? tn_test_doubles(tn_grad(factors[i])) : NULL;
    }
}

static void drop(results *r) {
    free(r->o);
    for (int i = 0; i < N_FACTORS; i++) free(r->grad[i]);
}

static void compare(const results *expected, const results *actual, double tolerance, const char *what) {
    tn_test_close(expected->o, actual->o, expected->n_o, tolerance, what);
    for (int i = 0; i < N_FACTORS; i++)
        if (expected->grad[i] && actual->grad[i]) tn_test_close(expected->grad[i], actual->grad[i], expected->n_grad[i], tolerance, what);
}

/* ---- memory behind a sequence's end ---- */

/* Everything of keys and values from the batch's length on becomes NaN. */
static void poison(tn_tensor *const factors[N_FACTORS], const int64_t *lengths) {
    for (int i = AK; i < N_FACTORS; i++)
        for (int b = 0; b < BATCHES; b++)
            tn_fill(tn_narrow(tn_narrow(factors[i], 0, b, 1), 1, lengths[b], TOKENS - lengths[b]), (double)NAN);
}

static results run_with_lengths(const char *device, tn_dtype dtype, int64_t n, int64_t h, int64_t rk, int64_t d, bool poisoned, int algo) {
    static const int64_t lengths[BATCHES] = { 70, 131 };
    results r;
    tn_tensor *factors[N_FACTORS];
    tn_context *cx = open_on(device);
    make_factors(cx, dtype, n, h, rk, d, factors);
    if (poisoned) poison(factors, lengths);
    for (int i = 0; i < N_FACTORS; i++) tn_require_grad(factors[i], true);
    tn_tensor *seqlens = tn_from_data(cx, TN_I64, TN_SHAPE(BATCHES), lengths);
    tn_tensor *o = attend(factors, TN_TPA_ATTENTION(.seqlens = seqlens, .causal = true, .algo = algo));
    tn_backward(tn_sum(tn_mul(o, o)));
    tn_test_ok(cx);
    keep(&r, o, factors);
    tn_close(cx);
    return r;
}

static void compare_poisoned(int64_t n, int64_t h, int64_t rk, int64_t d, int algo) {
    results expected = run_with_lengths("cpu", TN_F64, n, h, rk, d, false, TN_TPA_AUTO);
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
        tn_test_note("n %lld, h %lld, rk %lld, d %lld, algo %d, %s", (long long)n, (long long)h, (long long)rk, (long long)d, algo,
                     tn_dtype_name(precisions[i].dtype));
        results actual = run_with_lengths(tn_test_device(), precisions[i].dtype, n, h, rk, d, true, algo);
        compare(&expected, &actual, precisions[i].tolerance, "beside NaN");
        drop(&actual);
    }
    drop(&expected);
}

static void test_nothing_behind_the_end_is_read(void **unused) {
    (void)unused;
    compare_poisoned(5, 8, 1, 64, TN_TPA_AUTO);
    compare_poisoned(5, 3, 2, 20, TN_TPA_AUTO);
}

static void test_algorithms_agree(void **unused) {
    (void)unused;
    for (int algo = TN_TPA_AUTO; algo <= TN_TPA_NAIVE; algo++) {
        compare_poisoned(1, 24, 1, 64, algo);
        compare_poisoned(1, 32, 1, 128, algo);
        compare_poisoned(1, 5, 2, 20, algo);
    }
}

/* ---- a cache that grows ---- */

/* Causal attention over all tokens at once, and query by query against a cache of which ever more is there. */
static void test_step_by_step(void **unused) {
    (void)unused;
    enum { H = 8, D = 64 };
    tn_context *cx = open_on(tn_test_device());
    tn_tensor *f[N_FACTORS];
    make_factors(cx, TN_F32, TOKENS, H, 1, D, f);
    tn_tensor *whole = attend(f, TN_TPA_ATTENTION(.causal = true));
    for (int64_t t = 0; t < TOKENS; t += 29) {
        const int64_t lengths[BATCHES] = { t + 1, t + 1 };
        tn_tensor *step[N_FACTORS] = { tn_narrow(f[AQ], 1, t, 1), tn_narrow(f[BQ], 1, t, 1), f[AK], f[BK], f[AV], f[BV] };
        tn_tensor *o = attend(step, TN_TPA_ATTENTION(.seqlens = tn_from_data(cx, TN_I64, TN_SHAPE(BATCHES), lengths)));
        tn_test_ok(cx);
        double *expected = tn_test_doubles(tn_narrow(whole, 1, t, 1)), *actual = tn_test_doubles(o);
        tn_test_note("token %lld", (long long)t);
        tn_test_close(expected, actual, o->numel, 3e-5, "a step");
        free(expected);
        free(actual);
    }
    tn_close(cx);
}

/* ---- one query ---- */

/* What one query sees is what each of two that are alike sees. */
static void compare_one_with_two(int64_t h, int64_t hk, int64_t m, int64_t d) {
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
        tn_context *cx = open_on(tn_test_device());
        tn_dtype dtype = precisions[i].dtype;
        tn_tensor *k = tn_randn(cx, dtype, TN_SHAPE(BATCHES, m, hk, d)), *v = tn_randn(cx, dtype, TN_SHAPE(BATCHES, m, hk, d));
        tn_tensor *q = tn_randn(cx, dtype, TN_SHAPE(BATCHES, 1, h, d)), *twice[] = { q, q };
        const int64_t lengths[BATCHES] = { m, m - 90 };
        tn_tensor *seqlens = tn_from_data(cx, TN_I64, TN_SHAPE(BATCHES), lengths);
        tn_tensor *one = tn_attention(q, k, v, TN_ATTENTION(.seqlens = seqlens, .causal = true));
        tn_tensor *two = tn_attention(tn_concat(twice, 2, 1), k, v, TN_ATTENTION(.seqlens = seqlens));
        tn_test_ok(cx);
        double *expected = tn_test_doubles(tn_narrow(two, 1, 1, 1)), *actual = tn_test_doubles(one);
        tn_test_note("%s, %lld heads of %lld", tn_dtype_name(dtype), (long long)h, (long long)hk);
        tn_test_close(expected, actual, one->numel, precisions[i].tolerance, "one query");
        free(expected);
        free(actual);
        tn_close(cx);
    }
}

/* So many heads that a block of a kernel takes keys for several turns of its ring, and so many keys that they are cut in many parts. */
static void test_one_query(void **unused) {
    (void)unused;
    compare_one_with_two(80, 80, 420, 128);
    compare_one_with_two(140, 70, 850, 64);
    compare_one_with_two(1260, 70, 420, 128);
    compare_one_with_two(5, 1, 4230, 64);
}

/* ---- tensor product attention is attention ---- */

/* scale * sum over ranks of a b, by other ops. */
static tn_tensor *product_of(tn_tensor *a, tn_tensor *b) { return tn_mul_scalar(tn_matmul(a, b), 1.0 / (double)a->shape[3]); }

static void test_factors_and_whole_agree(void **unused) {
    (void)unused;
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
        tn_context *cx = open_on(tn_test_device());
        tn_tensor *f[N_FACTORS];
        make_factors(cx, precisions[i].dtype, TOKENS, 16, 1, 64, f);
        tn_tensor *one = attend(f, TN_TPA_ATTENTION(.causal = true));
        tn_tensor *other =
            tn_attention(product_of(f[AQ], f[BQ]), product_of(f[AK], f[BK]), product_of(f[AV], f[BV]), TN_ATTENTION(.causal = true));
        tn_test_ok(cx);
        double *expected = tn_test_doubles(other), *actual = tn_test_doubles(one);
        tn_test_note("%s", tn_dtype_name(precisions[i].dtype));
        tn_test_close(expected, actual, one->numel, precisions[i].tolerance, "from factors");
        free(expected);
        free(actual);
        tn_close(cx);
    }
}

/* ---- huge scores ---- */

/* Key 0 scores 1e4, key 1 likewise, all others -1e4: o is the mean of two values, and nothing overflows. */
static void test_huge_scores(void **unused) {
    (void)unused;
    enum { M = 70, D = 64 };
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
        tn_context *cx = open_on(tn_test_device());
        tn_dtype dtype = precisions[i].dtype;
        tn_tensor *q = tn_full(cx, dtype, TN_SHAPE(1, 3, 1, D), 1), *k = tn_full(cx, dtype, TN_SHAPE(1, M, 1, D), -1e4 / D);
        tn_tensor *v = tn_randn(cx, dtype, TN_SHAPE(1, M, 1, D));
        tn_fill(tn_narrow(k, 1, 0, 2), 1e4 / D);
        tn_tensor *leaves[] = { q, k, v };
        for (int j = 0; j < 3; j++) tn_require_grad(leaves[j], true);
        tn_tensor *o = tn_attention(q, k, v, TN_ATTENTION(.scale = 1));
        tn_backward(tn_sum(o));
        tn_test_ok(cx);
        double *actual = tn_test_doubles(o), *values = tn_test_doubles(v), *dv = tn_test_doubles(tn_grad(v)), expected[3 * D],
               d_expected[M * D];
        for (int j = 0; j < 3 * D; j++) expected[j] = (values[j % D] + values[D + j % D]) / 2;
        for (int j = 0; j < M * D; j++) d_expected[j] = j < 2 * D ? 1.5 : 0;
        tn_test_close(expected, actual, 3 * D, precisions[i].tolerance, "o");
        /* The log-sum-exp that backward makes the weights from is f32 beside f32: near 1e4 its neighbours lie 2^-10 apart. */
        double coarse = dtype == TN_F32 ? 0x1p-11 : 0;
        tn_test_close(d_expected, dv, M * D, fmax(precisions[i].tolerance, coarse), "dv");
        free(actual);
        free(values);
        free(dv);
        tn_close(cx);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_behind_the_end_is_read),
        cmocka_unit_test(test_algorithms_agree),
        cmocka_unit_test(test_step_by_step),
        cmocka_unit_test(test_one_query),
        cmocka_unit_test(test_factors_and_whole_agree),
        cmocka_unit_test(test_huge_scores),
    };
    return tn_test_main("test_attention", tests, sizeof tests / sizeof *tests, argc, argv);
}
