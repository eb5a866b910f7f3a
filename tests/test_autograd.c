/* The tape: what flows, what is saved and released, and what is refused. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "ops/tenon.h"

static tn_context *open(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 3, .debug = true });
    tn_test_ok(cx);
    return cx;
}

static tn_tensor *leaf(tn_context *cx, double value) { return tn_fill(tn_parameter(cx, TN_F64, TN_SCALAR), value); }

static void want_grad(const tn_tensor *t, double expected) {
    double got = tn_item(tn_grad(t));
    TN_TEST_WANT(fabs(got - expected) <= 1e-12 * (1 + fabs(expected)), "gradient %.17g, wanted %.17g", got, expected);
}

static void gradients_flow_and_add(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *a = leaf(cx, 3), *b = leaf(cx, 4);
    for (int round = 1; round <= 2; round++) {
        tn_scope *s = tn_scope_begin(cx);
        tn_tensor *y = tn_add(tn_mul(a, b), tn_mul(a, a));
        assert_true(tn_backward(y));
        tn_scope_end(s);
        want_grad(a, round * (4 + 6));
        want_grad(b, round * 3);
    }
    tn_clear_grad(a);
    assert_null(tn_grad(a));
    tn_test_ok(cx);
    tn_close(cx);
}

/* The gradients of matrices seen transposed, or of copies of what is seen, into one leaf each; bit 0: a, bit 1: b. */
static void transposed_product(tn_context *cx, tn_tensor *a, tn_tensor *b, int transposed, bool copied, double **da, double **db) {
    tn_scope *s = tn_scope_begin(cx);
    tn_tensor *left = transposed & 1 ? tn_transpose(a, -1, -2) : a, *right = transposed & 2 ? tn_transpose(b, -1, -2) : b;
    if (copied) left = tn_contiguous(left), right = tn_contiguous(right);
    tn_tensor *o = tn_matmul(left, right);
    tn_clear_grad(a);
    tn_clear_grad(b);
    assert_true(tn_backward_with(tn_sum(tn_mul(o, o)), TN_BACKWARD(.retain = true)));
    assert_true(tn_backward(tn_sum(tn_matmul(left, right)))); /* adds to what is there */
    tn_scope_end(s);
    *da = tn_test_doubles(tn_grad(a));
    *db = tn_test_doubles(tn_grad(b));
}

static void gradients_of_transposed_matrices_are_those_of_copies(void **state) {
    (void)state;
    tn_context *cx = open();
    for (int batch = 0; batch < 3; batch++) /* of neither, of a, of both */
        for (int transposed = 0; transposed < 4; transposed++) {
            int64_t m = 5, k = 4, n = 3, n_batch = 6, a0 = transposed & 1 ? k : m, a1 = transposed & 1 ? m : k;
            int64_t b0 = transposed & 2 ? n : k, b1 = transposed & 2 ? k : n;
            tn_tensor *a = tn_randn(cx, TN_F64, batch ? TN_SHAPE(n_batch, a0, a1) : TN_SHAPE(a0, a1));
            tn_tensor *b = tn_randn(cx, TN_F64, batch == 2 ? TN_SHAPE(n_batch, b0, b1) : TN_SHAPE(b0, b1));
            double *seen[2], *copied[2];
            tn_require_grad(a, true);
            tn_require_grad(b, true);
            tn_test_note("batch %d, transposed %d", batch, transposed);
            transposed_product(cx, a, b, transposed, false, &seen[0], &seen[1]);
            transposed_product(cx, a, b, transposed, true, &copied[0], &copied[1]);
            tn_test_close(copied[0], seen[0], a->numel, 1e-13, "da");
            tn_test_close(copied[1], seen[1], b->numel, 1e-13, "db");
            for (int i = 0; i < 2; i++) free(seen[i]), free(copied[i]);
        }
    tn_test_ok(cx);
    tn_close(cx);
}

static void a_diamond_counts_every_path(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 2), *y = x;
    for (int i = 0; i < 20; i++) y = tn_add(y, y);
    assert_true(tn_backward(y));
    want_grad(x, 1 << 20);
    tn_close(cx);
}

static void a_gradient_passed_on_twice_is_not_shared(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *a = leaf(cx, 1), *b = leaf(cx, 1);
    assert_true(tn_backward(tn_add(a, b)));
    assert_true(tn_backward(tn_mul(a, a)));
    want_grad(a, 3);
    want_grad(b, 1);
    tn_tensor *upstream = tn_full(cx, TN_F64, TN_SCALAR, 5);
    tn_clear_grad(a);
    tn_clear_grad(b);
    assert_true(tn_backward_with(tn_add(a, b), TN_BACKWARD(.grad = upstream)));
    assert_true(tn_backward(tn_add(a, a)));
    want_grad(a, 7);
    want_grad(b, 5);
    assert_true(tn_item(upstream) == 5);
    tn_close(cx);
}

static void inner_scopes_do_not_free_what_backward_needs(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 0.5), *y = x;
    tn_scope *outer = tn_scope_begin(cx);
    for (int i = 0; i < 5; i++) {
        tn_scope *s = tn_scope_begin(cx);
        y = tn_scope_return(s, tn_mul(tn_exp(y), tn_tanh(y)));
    }
    assert_true(tn_backward(y));
    double v = 0.5, d = 1;
    for (int i = 0; i < 5; i++) {
        d *= exp(v) * tanh(v) + exp(v) * (1 - tanh(v) * tanh(v));
        v = exp(v) * tanh(v);
    }
    want_grad(x, d);
    tn_scope_end(outer);
    tn_test_ok(cx);
    tn_close(cx);
}

static void saved_tensors_go_with_backward(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = tn_parameter(cx, TN_F32, TN_SHAPE(1000));
    tn_scope *outer = tn_scope_begin(cx);
    tn_tensor *y = x;
    tn_memory_stats stats;
    for (int i = 0; i < 4; i++) {
        tn_scope *s = tn_scope_begin(cx);
        y = tn_scope_return(s, tn_sigmoid(y));
    }
    tn_saved_summary summary;
    assert_true(tn_saved_summary_get(cx, &summary));
    assert_true(summary.n_entries == 4 && summary.ledger_bytes == 16000 && summary.unique_bytes == 16000 &&
                summary.pinned_extra_bytes == 0);
    tn_memory_stats_get(cx, &stats);
    assert_true(stats.category[TN_CATEGORY_SAVED].current > 0);
    assert_true(tn_backward_with(y, TN_BACKWARD(.grad = tn_full(cx, TN_F32, TN_SHAPE(1000), 1))));
    tn_saved_summary_get(cx, &summary);
    assert_true(summary.n_entries == 0 && summary.ledger_bytes == 0);
    tn_memory_stats_get(cx, &stats);
    assert_true(stats.category[TN_CATEGORY_SAVED].current == 0);
    tn_scope_end(outer);
    tn_test_ok(cx);
    tn_close(cx);
}

static void a_saved_view_pins_its_storage(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = tn_require_grad(tn_zeros(cx, TN_F32, TN_SHAPE(10, 100)), true);
    tn_silu(tn_narrow(x, 0, 2, 2)); /* saves the slice */
    tn_silu(tn_narrow(x, 0, 3, 2));
    tn_saved_summary summary;
    assert_true(tn_saved_summary_get(cx, &summary));
    assert_true(summary.ledger_bytes == 1600 && summary.unique_bytes == 4000 && summary.pinned_extra_bytes == 4000 - 1200);
    tn_test_ok(cx);
    tn_close(cx);
}

static void a_second_backward_needs_retain(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 2);
    tn_tensor *y = tn_mul(x, x);
    assert_true(tn_backward_with(y, TN_BACKWARD(.retain = true)));
    assert_true(tn_backward(y));
    want_grad(x, 8);
    assert_false(tn_backward(y));
    tn_test_error(cx, TN_ERR_GRAPH, "retain");
    tn_tensor *z = tn_add(y, x); /* y's past is gone */
    assert_false(tn_backward(z));
    tn_test_error(cx, TN_ERR_GRAPH, "mul");
    want_grad(x, 8); /* nothing was added */
    tn_close(cx);
}

static void an_overwritten_saved_tensor_is_an_error(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 2);
    tn_tensor *h = tn_exp(x);
    tn_tensor *y = tn_mul(h, h);
    tn_fill(h, 1);
    assert_false(tn_backward(y));
    tn_test_error(cx, TN_ERR_GRAPH, "overwritten");
    assert_null(tn_grad(x));
    tn_tensor *w = tn_sigmoid(x);
    tn_mark_written(w);
    assert_false(tn_backward(w));
    tn_test_error(cx, TN_ERR_GRAPH, "version");
    tn_close(cx);
}

static void an_overwritten_result_has_no_past(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = tn_fill(tn_parameter(cx, TN_F64, TN_SHAPE(2, 3)), 5);
    tn_tensor *y = tn_mul_scalar(x, 2), *row = tn_select(y, 0, 0);
    tn_fill(row, 3);
    assert_null(tn_mul(y, y));
    tn_test_error(cx, TN_ERR_GRAPH, "overwritten");
    assert_null(tn_sum(row));
    tn_test_error(cx, TN_ERR_GRAPH, "tn_detach");
    assert_true(tn_item(tn_sum(tn_detach(row))) == 9);
    /* A view of a leaf stays one: only its values are new. */
    tn_tensor *part = tn_select(x, 0, 1);
    tn_fill(x, 7);
    assert_true(tn_backward(tn_sum(tn_mul(part, part))));
    assert_true(tn_item_at(tn_grad(x), TN_SHAPE(1, 2)) == 14);
    assert_true(tn_item_at(tn_grad(x), TN_SHAPE(0, 2)) == 0);
    tn_test_ok(cx);
    tn_close(cx);
}

static void a_retained_gradient_outlives_its_leaf(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 3), *other = leaf(cx, 1);
    assert_true(tn_backward(tn_mul(x, tn_mul(x, other))));
    tn_tensor *g = tn_retain(tn_grad(x));
    tn_retain(tn_grad(other)); /* never released: tn_close sees to it */
    tn_clear_grad(x);
    assert_true(tn_item(g) == 6);
    tn_release(g);
    tn_test_ok(cx);
    tn_close(cx);
}

static void no_grad_and_detach_cut_the_past(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 2);
    tn_no_grad_begin(cx);
    tn_no_grad_begin(cx);
    tn_no_grad_end(cx);
    assert_false(tn_grad_enabled(cx));
    tn_tensor *y = tn_mul(x, x);
    tn_no_grad_end(cx);
    assert_true(tn_grad_enabled(cx));
    assert_false(tn_requires_grad(y));
    assert_false(tn_backward(y));
    tn_test_error(cx, TN_ERR_GRAPH, "nothing");
    tn_tensor *z = tn_mul(x, tn_detach(tn_mul(x, x)));
    assert_true(tn_backward(z));
    want_grad(x, 4);
    assert_null(tn_require_grad(z, true));
    tn_test_error(cx, TN_ERR_GRAPH, "leaves");
    assert_null(tn_require_grad(tn_arange(cx, TN_I64, 3), true));
    tn_test_error(cx, TN_ERR_DTYPE, "i64");
    tn_close(cx);
}

static void roots_need_one_element_or_an_upstream_gradient(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = tn_parameter(cx, TN_F32, TN_SHAPE(3));
    tn_tensor *y = tn_exp(x);
    assert_false(tn_backward(y));
    tn_test_error(cx, TN_ERR_SHAPE, "f32[3]");
    assert_false(tn_backward_with(y, TN_BACKWARD(.grad = tn_zeros(cx, TN_F32, TN_SHAPE(4)))));
    tn_test_error(cx, TN_ERR_SHAPE, "f32[4]");
    assert_false(tn_backward_with(y, TN_BACKWARD(.grad = tn_zeros(cx, TN_F64, TN_SHAPE(3)))));
    tn_test_error(cx, TN_ERR_SHAPE, "f64[3]");
    assert_true(tn_backward_with(y, TN_BACKWARD(.grad = tn_full(cx, TN_F32, TN_SHAPE(3), 1))));
    tn_test_ok(cx);
    tn_close(cx);
}

static void long_chains_neither_recurse_nor_leak(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 0);
    for (int run = 0; run < 2; run++) {
        tn_scope *s = tn_scope_begin(cx);
        tn_tensor *y = x;
        for (int i = 0; i < 200000; i++) {
            tn_tensor *next = tn_add(y, x);
            if (y != x) tn_release(y);
            y = next;
        }
        if (run == 0) assert_true(tn_backward(y));
        tn_scope_end(s); /* the second time the chain goes unused */
    }
    want_grad(x, 200001);
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    assert_true(stats.all.n_allocations.current == 2);
    tn_close(cx);
}

static void anomaly_mode_names_who_made_the_first_nan(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .anomaly = true });
    tn_tensor *x = leaf(cx, -1);
    tn_label_push(cx, "layer.7");
    assert_null(tn_log(x));
    tn_test_error(cx, TN_ERR_NUMERIC, "layer.7");
    tn_fill(x, 0);
    tn_tensor *y = tn_sqrt(x); /* finite, but its slope is not */
    tn_label_pop(cx);
    assert_false(tn_backward(y));
    assert_non_null(strstr(tn_error(cx), "sqrt"));
    tn_test_error(cx, TN_ERR_NUMERIC, "layer.7");
    tn_close(cx);
}

static void failing_backwards_leave_the_context_usable(void **state) {
    (void)state;
    tn_context *cx = open();
    tn_tensor *x = leaf(cx, 2);
    tn_scope *s = tn_scope_begin(cx);
    tn_tensor *h = tn_exp(x);
    tn_tensor *y = tn_mul(tn_exp(tn_exp(h)), h);
    tn_mark_written(h);
    assert_false(tn_backward(y));
    tn_clear_error(cx);
    tn_scope_end(s);
    tn_clear_grad(x);
    assert_true(tn_backward(tn_mul(x, x)));
    want_grad(x, 4);
    tn_test_ok(cx);
    tn_close(cx);
}

static bool cube(void *user, tn_tensor *const *in, int n_in, tn_tensor **out, int n_out) {
    (void)n_in, (void)n_out;
    out[0] = tn_mul(in[0], tn_mul(in[0], in[1]));
    if (*(bool *)user) out[0] = tn_mul(out[0], tn_detach(in[0])); /* a wrong gradient on purpose */
    return out[0] != NULL;
}

static void gradcheck_tells_right_from_wrong(void **state) {
    (void)state;
    tn_context *cx = open();
    for (int wrong = 0; wrong < 2; wrong++)
        for (int projected = 0; projected < 2; projected++) {
            bool is_wrong = wrong;
            tn_tensor *in[] = { tn_fill_normal(tn_parameter(cx, TN_F64, TN_SHAPE(3, 4)), 0, 1),
                                tn_fill_normal(tn_parameter(cx, TN_F64, TN_SHAPE(4)), 0, 1) };
            tn_gradcheck_result result;
            assert_true(tn_gradcheck(cube, &is_wrong, in, 2, 1, TN_GRADCHECK(.full_limit = projected ? 1 : 0), &result));
            assert_true(result.full == !projected);
            assert_true(result.passed == !wrong);
            assert_true(result.n_compared > 0);
        }
    tn_tensor *half = tn_parameter(cx, TN_F32, TN_SHAPE(2));
    tn_gradcheck_result result;
    bool is_wrong = false;
    tn_tensor *in[] = { half, half };
    assert_false(tn_gradcheck(cube, &is_wrong, in, 2, 1, TN_GRADCHECK(.seed = 0), &result));
    tn_test_error(cx, TN_ERR_DTYPE, "f32");
    tn_close(cx);
}

static void parameters_have_names_and_files(void **state) {
    (void)state;
    tn_context *cx = open();
    char path[] = "/tmp/tenon-params-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    tn_params *params = tn_params_new(cx);
    tn_tensor *w = tn_params_add(params, tn_fill_normal(tn_parameter(cx, TN_F32, TN_SHAPE(3, 4)), 0, 1), 0, "layer.%d.w", 2);
    tn_params_add(params, tn_parameter(cx, TN_BF16, TN_SHAPE(5)), 1, "norm");
    assert_null(tn_params_add(params, w, 0, "norm"));
    tn_test_error(cx, TN_ERR_ARGUMENT, "norm");
    assert_true(tn_params_count(params) == 2 && tn_params_find(params, "layer.2.w") == w && tn_params_group(params, 1) == 1);
    assert_null(tn_params_find(params, "absent"));
    double *before = tn_test_doubles(w);
    assert_true(tn_params_save(params, path));
    tn_fill(w, 9);
    assert_true(tn_params_load(params, path));
    double *after = tn_test_doubles(w);
    assert_memory_equal(before, after, 12 * sizeof(double));
    tn_params *other = tn_params_new(cx);
    tn_params_add(other, w, 0, "layer.2.w");
    assert_false(tn_params_load(other, path));
    tn_test_error(cx, TN_ERR_FORMAT, "norm");
    tn_params_add(other, tn_parameter(cx, TN_F32, TN_SHAPE(5)), 0, "norm");
    assert_false(tn_params_load(other, path));
    tn_test_error(cx, TN_ERR_FORMAT, "norm");
    assert_true(tn_backward(tn_mean(tn_mul(w, w))));
    assert_non_null(tn_grad(w));
    tn_zero_grad(params);
    assert_null(tn_grad(w));
    free(before);
    free(after);
    remove(path);
    tn_close(cx);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(gradients_flow_and_add),
    cmocka_unit_test(gradients_of_transposed_matrices_are_those_of_copies),
    cmocka_unit_test(a_diamond_counts_every_path),
    cmocka_unit_test(a_gradient_passed_on_twice_is_not_shared),
    cmocka_unit_test(inner_scopes_do_not_free_what_backward_needs),
    cmocka_unit_test(saved_tensors_go_with_backward),
    cmocka_unit_test(a_saved_view_pins_its_storage),
    cmocka_unit_test(a_second_backward_needs_retain),
    cmocka_unit_test(an_overwritten_saved_tensor_is_an_error),
    cmocka_unit_test(an_overwritten_result_has_no_past),
    cmocka_unit_test(a_retained_gradient_outlives_its_leaf),
    cmocka_unit_test(no_grad_and_detach_cut_the_past),
    cmocka_unit_test(roots_need_one_element_or_an_upstream_gradient),
    cmocka_unit_test(long_chains_neither_recurse_nor_leak),
    cmocka_unit_test(anomaly_mode_names_who_made_the_first_nan),
    cmocka_unit_test(failing_backwards_leave_the_context_usable),
    cmocka_unit_test(gradcheck_tells_right_from_wrong),
    cmocka_unit_test(parameters_have_names_and_files),
};
TN_TEST_MAIN("autograd", cases)
