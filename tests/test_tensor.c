/* Tensors: dtypes, shapes, making, reading, writing, random numbers, printing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "ops/tenon.h"

static tn_context *open(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 7, .debug = true });
    tn_test_ok(cx);
    return cx;
}

static void dtypes_have_names_sizes_and_promotion(void **state) {
    (void)state;
    for (int i = 0; i < TN_DTYPE_COUNT; i++) {
        tn_dtype parsed;
        assert_true(tn_dtype_parse(tn_dtype_name((tn_dtype)i), &parsed) && parsed == (tn_dtype)i);
        assert_true(tn_dtype_size((tn_dtype)i) > 0);
        assert_int_equal(tn_dtype_promote((tn_dtype)i, (tn_dtype)i), i);
    }
    tn_dtype parsed;
    assert_false(tn_dtype_parse("f16", &parsed));
    assert_int_equal(tn_dtype_promote(TN_BF16, TN_F32), TN_F32);
    assert_int_equal(tn_dtype_promote(TN_I64, TN_BF16), TN_BF16);
    assert_int_equal(tn_dtype_promote(TN_BOOL, TN_U8), TN_U8);
    assert_int_equal(tn_dtype_promote(TN_I32, TN_I64), TN_I64);
}

static void every_dtype_round_trips(void **state) {
    (void)state;
    tn_context *cx = open();
    for (int i = 0; i < TN_DTYPE_COUNT; i++) {
        tn_tensor *t = tn_full(cx, (tn_dtype)i, TN_SHAPE(3, 5), 1);
        char bytes[3 * 5 * 8], back[sizeof bytes];
        size_t n = tn_bytes(t);
        assert_true(tn_to_data(t, bytes, n));
        tn_tensor *copy = tn_from_data(cx, (tn_dtype)i, TN_SHAPE(3, 5), bytes);
        assert_true(tn_to_data(copy, back, n));
        assert_memory_equal(bytes, back, n);
        assert_true(tn_item_at(copy, TN_SHAPE(2, 4)) == 1);
    }
    tn_test_ok(cx);
    tn_close(cx);
}

static void bad_shapes_are_refused(void **state) {
    (void)state;
    tn_context *cx = open();
    assert_null(tn_zeros(cx, TN_F32, TN_SHAPE(2, -3)));
    tn_test_error(cx, TN_ERR_SHAPE, "-3");
    tn_shape nine = { .axes = 9 };
    assert_null(tn_zeros(cx, TN_F32, nine));
    tn_test_error(cx, TN_ERR_SHAPE, "9 axes");
    assert_null(tn_zeros(cx, (tn_dtype)77, TN_SHAPE(2)));
    tn_test_error(cx, TN_ERR_DTYPE, "77");
    assert_null(tn_zeros(cx, TN_F32, TN_SHAPE(1LL << 32, 1LL << 32)));
    tn_test_error(cx, TN_ERR_SHAPE, NULL);
    assert_null(tn_from_data(cx, TN_F32, TN_SHAPE(3), NULL));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no data");
    tn_close(cx);
}

static void scalars_and_empty_tensors_work(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *scalar = tn_full(cx, TN_F64, TN_SCALAR, 2.5);
    assert_true(tn_item(scalar) == 2.5);
    tn_tensor *empty = tn_zeros(cx, TN_F32, TN_SHAPE(3, 0, 2));
    assert_true(empty->numel == 0 && tn_bytes(empty) == 0 && tn_is_contiguous(empty));
    assert_true(tn_to_data(empty, NULL, 0));
    assert_non_null(tn_fill(empty, 1));
    tn_item(empty);
    tn_test_error(cx, TN_ERR_SHAPE, "one element");
    tn_close(cx);
}

static void aliases_share_and_stay_inside(void **state) {
    (void)state;
    tn_context *cx = open();
    double values[12];
    for (int i = 0; i < 12; i++) values[i] = i;
    tn_tensor *t = tn_from_data(cx, TN_F64, TN_SHAPE(3, 4), values);
    tn_tensor *transposed = tn_alias(t, TN_SHAPE(4, 3), (int64_t[]){ 1, 4 }, 0);
    assert_false(tn_is_contiguous(transposed));
    double got[12];
    assert_true(tn_to_data(transposed, got, sizeof got));
    for (int i = 0; i < 12; i++) assert_true(got[i] == (i % 3) * 4 + i / 3);
    tn_fill(tn_alias(t, TN_SHAPE(3), (int64_t[]){ 4 }, 1), -1);
    assert_true(tn_item_at(t, TN_SHAPE(2, 1)) == -1 && tn_item_at(t, TN_SHAPE(2, 2)) == 10);
    assert_true(tn_version_of(t) == 1);
    assert_null(tn_alias(t, TN_SHAPE(13), (int64_t[]){ 1 }, 0));
    tn_test_error(cx, TN_ERR_SHAPE, "12");
    assert_null(tn_alias(t, TN_SHAPE(2), (int64_t[]){ -1 }, 0));
    tn_test_error(cx, TN_ERR_SHAPE, NULL);
    assert_null(tn_alias(t, TN_SHAPE(2, 3), (int64_t[]){ INT64_MAX, INT64_MAX }, 0));
    tn_test_error(cx, TN_ERR_SHAPE, NULL);
    tn_tensor *wide = tn_alias(t, TN_SHAPE(5, 4), (int64_t[]){ 0, 1 }, 0);
    assert_true(tn_item_at(wide, TN_SHAPE(4, 3)) == 3);
    assert_null(tn_fill(wide, 1));
    tn_test_error(cx, TN_ERR_ARGUMENT, "broadcast");
    tn_close(cx);
}

static void assign_broadcasts_and_converts(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *to = tn_zeros(cx, TN_BF16, TN_SHAPE(2, 3));
    tn_tensor *row = tn_arange(cx, TN_I64, 3);
    assert_non_null(tn_assign(to, row));
    assert_true(tn_item_at(to, TN_SHAPE(1, 2)) == 2);
    assert_null(tn_assign(to, tn_zeros(cx, TN_F32, TN_SHAPE(2))));
    tn_test_error(cx, TN_ERR_SHAPE, "bf16[2,3]");
    assert_null(tn_assign(row, to));
    tn_test_error(cx, TN_ERR_SHAPE, NULL);
    tn_close(cx);
}

/* Long enough to be cut into chunks, which must not read what another has written. */
static void assign_between_views_of_one_storage(void **state) {
    (void)state;
    enum { N = 100000 };
    tn_context *cx = open();
    tn_tensor *t = tn_arange(cx, TN_F64, N);
    tn_tensor *to = tn_alias(t, TN_SHAPE(N - 1), (int64_t[]){ 1 }, 1), *from = tn_alias(t, TN_SHAPE(N - 1), (int64_t[]){ 1 }, 0);
    assert_non_null(tn_assign(to, from));
    double *values = tn_test_doubles(t);
    for (int i = 0; i < N; i++) TN_TEST_WANT(values[i] == (i ? i - 1 : 0), "element %d is %g", i, values[i]);
    free(values);
    t = tn_arange(cx, TN_F64, 6);
    tn_tensor *square = tn_alias(t, TN_SHAPE(2, 2), (int64_t[]){ 2, 1 }, 1);
    assert_non_null(tn_assign(square, tn_alias(square, TN_SHAPE(2, 2), (int64_t[]){ 1, 2 }, 0)));
    values = tn_test_doubles(t);
    tn_test_close(((double[]){ 0, 1, 3, 2, 4, 5 }), values, 6, 0, "transposed in place");
    free(values);
    tn_close(cx);
}

static void wrong_sizes_and_indices_are_refused(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *t = tn_zeros(cx, TN_F32, TN_SHAPE(2, 2));
    float values[5] = { 0 };
    assert_false(tn_to_data(t, values, sizeof values));
    tn_test_error(cx, TN_ERR_ARGUMENT, "20 bytes");
    assert_false(tn_set_data(t, values, 8));
    tn_test_error(cx, TN_ERR_ARGUMENT, "8 bytes");
    tn_item_at(t, TN_SHAPE(0, 2));
    tn_test_error(cx, TN_ERR_ARGUMENT, "[0,2]");
    tn_item_at(t, TN_SHAPE(0));
    tn_test_error(cx, TN_ERR_ARGUMENT, NULL);
    tn_close(cx);
}

static void what_a_caller_can_get_wrong_is_said(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *t = tn_zeros(cx, TN_F32, TN_SHAPE(4));
    assert_false(tn_to_data(t, NULL, 16));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no buffer");
    assert_false(tn_set_data(t, NULL, 16));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no buffer");
    assert_null(tn_alias(t, TN_SHAPE(2), NULL, 0));
    tn_test_error(cx, TN_ERR_ARGUMENT, "strides");
    tn_tensor *last = tn_alias(t, TN_SHAPE(1), (int64_t[]){ 1 }, 3);
    assert_null(tn_alias(last, TN_SHAPE(1), (int64_t[]){ 1 }, INT64_MAX));
    tn_test_error(cx, TN_ERR_ARGUMENT, "outside");
    assert_null(tn_randint(cx, TN_U8, TN_SHAPE(4), 0, 257));
    tn_test_error(cx, TN_ERR_ARGUMENT, "u8");
    assert_null(tn_arange(cx, TN_BOOL, 3));
    tn_test_error(cx, TN_ERR_ARGUMENT, "bool");
    assert_non_null(tn_randint(cx, TN_U8, TN_SHAPE(4), 0, 256));
    assert_non_null(tn_arange(cx, TN_U8, 0));
    tn_close(cx);
}

static void the_random_stream_repeats_and_moves_on(void **state) {
    (void)state;
    enum { N = 1001 };
    static float a[N], b[N], c[N];
    tn_context *cx = open();
    tn_rng_state start = tn_rng_get(cx);
    assert_true(tn_to_data(tn_randn(cx, TN_F32, TN_SHAPE(N)), a, sizeof a));
    assert_true(tn_to_data(tn_randn(cx, TN_F32, TN_SHAPE(N)), b, sizeof b));
    assert_memory_not_equal(a, b, sizeof a);
    tn_rng_set(cx, start);
    assert_true(tn_to_data(tn_randn(cx, TN_F32, TN_SHAPE(7, 11, 13)), c, sizeof c));
    assert_memory_equal(a, c, sizeof a);
    /* A strided fill draws what a dense one draws. */
    tn_rng_set(cx, start);
    tn_tensor *dense = tn_zeros(cx, TN_F32, TN_SHAPE(13, 77));
    tn_fill_normal(tn_alias(dense, TN_SHAPE(77, 13), (int64_t[]){ 1, 77 }, 0), 0, 1);
    assert_true(tn_item_at(dense, TN_SHAPE(2, 5)) == (double)a[5 * 13 + 2]);
    tn_test_ok(cx);
    tn_close(cx);
}

/* Trivially true on the CPU; on another device it compares that one's bits with the CPU's. */
static void random_numbers_are_the_same_on_every_device(void **state) {
    (void)state;
    enum { N = 10007 };
    static char here[N * 8], there[N * 8];
    static const tn_dtype floats[] = { TN_F64, TN_F32, TN_BF16 };
    for (int kind = 0; kind < 3; kind++)
        for (int d = 0; d < 3; d++) {
            const char *devices[] = { tn_test_device(), "cpu" };
            for (int i = 0; i < 2; i++) {
                tn_context *cx = tn_open(&(tn_options){ .device = devices[i], .seed = 99 });
                tn_randn(cx, TN_F32, TN_SHAPE(3)); /* an odd start */
                tn_dtype dtype = kind == 2 ? TN_I64 : floats[d];
                tn_tensor *t = kind == 0   ? tn_randn(cx, dtype, TN_SHAPE(N))
                               : kind == 1 ? tn_rand(cx, dtype, TN_SHAPE(N), -3, 0.7)
                                           : tn_randint(cx, dtype, TN_SHAPE(N), -5, INT64_C(1) << 40);
                assert_true(tn_to_data(t, i ? there : here, tn_bytes(t)));
                if (i)
                    TN_TEST_WANT(memcmp(here, there, tn_bytes(t)) == 0, "kind %d in %s differs from the CPU's", kind, tn_dtype_name(dtype));
                tn_close(cx);
            }
        }
}

static void random_numbers_have_their_moments(void **state) {
    (void)state;
    enum { N = 200000 };
    tn_context *cx = open();
    double *u = tn_test_doubles(tn_rand(cx, TN_F64, TN_SHAPE(N), -1, 3));
    double *z = tn_test_doubles(tn_randn(cx, TN_F64, TN_SHAPE(N)));
    double *k = tn_test_doubles(tn_randint(cx, TN_I64, TN_SHAPE(N), -2, 3));
    double mean_u = 0, mean_z = 0, square_z = 0;
    int counts[5] = { 0 };
    for (int i = 0; i < N; i++) {
        assert_true(u[i] >= -1 && u[i] < 3);
        mean_u += u[i] / N;
        mean_z += z[i] / N;
        square_z += z[i] * z[i] / N;
        assert_true(k[i] >= -2 && k[i] < 3);
        counts[(int)k[i] + 2]++;
    }
    assert_true(fabs(mean_u - 1) < 0.02 && fabs(mean_z) < 0.01 && fabs(square_z - 1) < 0.02);
    for (int i = 0; i < 5; i++) assert_true(abs(counts[i] - N / 5) < N / 100);
    free(u);
    free(z);
    free(k);
    assert_null(tn_rand(cx, TN_I64, TN_SHAPE(3), 0, 1));
    tn_test_error(cx, TN_ERR_DTYPE, "i64");
    assert_null(tn_randint(cx, TN_I64, TN_SHAPE(3), 5, 5));
    tn_test_error(cx, TN_ERR_ARGUMENT, "5");
    tn_close(cx);
}

static void initialisers_have_their_spread(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *w = tn_zeros(cx, TN_F32, TN_SHAPE(200, 400));
    static const struct {
        tn_tensor *(*fill)(tn_tensor *, double);
        double variance;
    } fills[] = { { tn_fill_xavier_uniform, 2.0 / 600 },
                  { tn_fill_xavier_normal, 2.0 / 600 },
                  { tn_fill_kaiming_uniform, 1.0 / 400 },
                  { tn_fill_kaiming_normal, 1.0 / 400 } };
    for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
        double *values = tn_test_doubles(fills[f].fill(w, 1)), square = 0;
        for (int i = 0; i < 80000; i++) square += values[i] * values[i] / 80000;
        assert_true(fabs(square / fills[f].variance - 1) < 0.05);
        free(values);
    }
    tn_close(cx);
}

static void print_shows_values(void **state) {
    (void)state;
    tn_context *cx = open();
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);
    tn_print(stream, tn_full(cx, TN_BF16, TN_SHAPE(2, 2), 1.5));
    tn_print(stream, tn_arange(cx, TN_I64, 100));
    tn_print(stream, tn_full(cx, TN_F32, TN_SCALAR, 3));
    tn_print(stream, tn_from_data(cx, TN_I64, TN_SHAPE(1), &(int64_t){ INT64_C(9007199254740993) })); /* no double */
    fclose(stream);
    assert_non_null(strstr(text, "bf16[2,2] [[1.5, 1.5],\n [1.5, 1.5]]\n"));
    assert_non_null(strstr(text, "i64[100] [0, 1, 2, ..., 97, 98, 99]\n"));
    assert_non_null(strstr(text, "f32[] 3\n"));
    assert_non_null(strstr(text, "i64[1] [9007199254740993]\n"));
    free(text);
    tn_close(cx);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(dtypes_have_names_sizes_and_promotion),
    cmocka_unit_test(every_dtype_round_trips),
    cmocka_unit_test(bad_shapes_are_refused),
    cmocka_unit_test(scalars_and_empty_tensors_work),
    cmocka_unit_test(aliases_share_and_stay_inside),
    cmocka_unit_test(assign_broadcasts_and_converts),
    cmocka_unit_test(assign_between_views_of_one_storage),
    cmocka_unit_test(wrong_sizes_and_indices_are_refused),
    cmocka_unit_test(what_a_caller_can_get_wrong_is_said),
    cmocka_unit_test(the_random_stream_repeats_and_moves_on),
    cmocka_unit_test(random_numbers_are_the_same_on_every_device),
    cmocka_unit_test(random_numbers_have_their_moments),
    cmocka_unit_test(initialisers_have_their_spread),
    cmocka_unit_test(print_shows_values),
};
TN_TEST_MAIN("tensor", cases)
