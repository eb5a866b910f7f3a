/* Contexts: opening, sticky errors, scopes, labels, categories, the dry run. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "libtensor/context_internal.h"
#include "ops/tenon.h"

static int64_t allocated(tn_context *cx) {
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    return stats.all.allocated.current;
}

static void opens_with_defaults(void **state) {
    (void)state;
    tn_context *cx = tn_open(NULL);
    tn_test_ok(cx);
    assert_true(tn_threads(cx) >= 1);
    assert_true(strlen(tn_device_detail(cx)) > 0);
    assert_string_equal(tn_error(cx), "");
    tn_close(cx);
    tn_close(NULL);
}

static void a_wrong_number_of_threads_is_refused(void **state) {
    (void)state;
    static const char *const devices[] = { "cpu", "dry-run", "auto" };
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        tn_context *cx = tn_open(&(tn_options){ .device = devices[i], .threads = i % 2 ? 4097 : -1 });
        tn_test_error(cx, TN_ERR_ARGUMENT, "0 (all) to 4096 threads");
        tn_close(cx);
    }
}

static void an_unknown_device_is_an_error_on_the_context(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = "abacus" });
    assert_non_null(cx);
    assert_null(tn_zeros(cx, TN_F32, TN_SHAPE(2)));
    assert_non_null(strstr(tn_error(cx), "abacus"));
    tn_close(cx);
}

static void cuda_says_why_it_is_off_or_works(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = "cuda" });
    const char *reason = tn_cuda_unavailable_reason();
    if (tn_failed(cx)) assert_non_null(strstr(tn_error(cx), reason));
    else assert_string_equal(reason, "");
    tn_close(cx);
}

static void the_first_error_stands(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_label_push(cx, "layer.3");
    tn_label_push(cx, "attn");
    tn_tensor *a = tn_zeros(cx, TN_F32, TN_SHAPE(2, 3));
    assert_null(tn_act(a, TN_ACT(.act = TN_SOFTMAX, .dim = 5)));
    char *first = strdup(tn_error(cx));
    assert_non_null(strstr(first, "act: "));
    assert_non_null(strstr(first, "dim 5"));
    assert_non_null(strstr(first, "f32[2,3]"));
    assert_non_null(strstr(first, "act.c:"));
    assert_non_null(strstr(first, "layer.3/attn"));
    assert_string_equal(tn_error_op(cx), "act");
    assert_null(tn_zeros(cx, TN_F32, TN_SHAPE(-1)));
    assert_null(tn_act(a, TN_ACT(.act = TN_SILU)));
    assert_null(tn_fill(a, 7));
    assert_string_equal(tn_error(cx), first);
    free(first);
    tn_clear_error(cx);
    assert_false(tn_failed(cx));
    assert_non_null(tn_act(a, TN_ACT(.act = TN_SILU)));
    assert_true(tn_item_at(a, TN_SHAPE(0, 0)) == 0);
    tn_test_ok(cx);
    tn_close(cx);
}

static void null_in_null_out(void **state) {
    (void)state;
    assert_null(tn_act(NULL, TN_ACT(.act = TN_SILU)));
    assert_null(tn_zeros(NULL, TN_F32, TN_SCALAR));
    assert_false(tn_backward(NULL));
    assert_null(tn_grad(NULL));
    assert_null(tn_retain(NULL));
    tn_release(NULL);
    tn_scope_end(NULL);
    tn_label_pop(NULL);
    assert_true(tn_item(NULL) == 0);
    assert_true(tn_failed(NULL));
    assert_true(strlen(tn_error(NULL)) > 0);
}

static void scopes_free_what_they_own(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .debug = true });
    int64_t before = allocated(cx);
    tn_scope *outer = tn_scope_begin(cx);
    tn_zeros(cx, TN_F32, TN_SHAPE(100));
    tn_scope *inner = tn_scope_begin(cx);
    tn_tensor *kept = tn_full(cx, TN_F32, TN_SHAPE(100), 3);
    tn_tensor *retained = tn_retain(tn_full(cx, TN_F32, TN_SHAPE(100), 4));
    tn_zeros(cx, TN_F32, TN_SHAPE(100));
    int64_t four = allocated(cx);
    assert_ptr_equal(tn_scope_return(inner, kept), kept);
    assert_true(allocated(cx) < four);
    assert_true(tn_item_at(kept, TN_SHAPE(99)) == 3);
    tn_scope_end(outer);
    assert_true(tn_item_at(retained, TN_SHAPE(99)) == 4);
    assert_true(allocated(cx) > before);
    tn_release(retained);
    assert_true(allocated(cx) == before);
    tn_test_ok(cx);
    tn_close(cx);
}

static void keeping_never_shortens_a_life(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .debug = true });
    tn_scope *outer = tn_scope_begin(cx);
    tn_tensor *t = tn_full(cx, TN_F32, TN_SHAPE(100), 3);
    tn_scope *middle = tn_scope_begin(cx), *inner = tn_scope_begin(cx);
    tn_scope_keep(inner, t);
    tn_scope_end(inner);
    tn_scope_end(middle);
    assert_true(tn_item_at(t, TN_SHAPE(99)) == 3);
    tn_scope_end(outer);
    tn_test_ok(cx);
    tn_close(cx);
}

static void ending_an_outer_scope_ends_the_inner_ones(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    int64_t before = allocated(cx);
    tn_scope *outer = tn_scope_begin(cx);
    tn_scope_begin(cx);
    tn_zeros(cx, TN_F32, TN_SHAPE(10));
    tn_scope_begin(cx);
    tn_zeros(cx, TN_F32, TN_SHAPE(10));
    tn_scope_end(outer);
    assert_true(allocated(cx) == before);
    tn_close(cx);
}

static void release_frees_a_temporary_early(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    int64_t before = allocated(cx);
    tn_scope *scope = tn_scope_begin(cx);
    tn_release(tn_zeros(cx, TN_F32, TN_SHAPE(1000)));
    assert_true(allocated(cx) == before);
    tn_tensor *root = tn_zeros(cx, TN_F32, TN_SHAPE(1000));
    tn_tensor *view = tn_alias(root, TN_SHAPE(10), (int64_t[]){ 1 }, 5);
    tn_release(root);
    assert_true(allocated(cx) > before);
    assert_true(tn_item_at(view, TN_SHAPE(9)) == 0);
    tn_scope_end(scope);
    assert_true(allocated(cx) == before);
    tn_close(cx);
}

static void closing_frees_what_was_forgotten(void **state) {
    (void)state;
    int64_t blocks = tn_host_live_blocks();
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_params *params = tn_params_new(cx);
    tn_tensor *w = tn_params_add(params, tn_parameter(cx, TN_F32, TN_SHAPE(3)), 0, "w");
    tn_scope *scope = tn_scope_begin(cx);
    tn_retain(tn_retain(tn_silu(w)));
    tn_tensor *loose = tn_retain(tn_silu(tn_silu(w)));
    tn_scope_end(scope);
    tn_scope_begin(cx);
    tn_silu(loose);
    tn_label_push(cx, "never popped");
    tn_test_ok(cx);
    tn_close(cx);
    assert_true(tn_host_live_blocks() == blocks);
}

static void labels_join(void **state) {
    (void)state;
    tn_context *cx = tn_open(NULL);
    assert_string_equal(tn_label(cx), "");
    tn_label_push(cx, "layer.0");
    tn_label_push(cx, "mlp");
    const char *path = tn_label(cx);
    assert_string_equal(path, "layer.0/mlp");
    tn_label_pop(cx);
    tn_label_pop(cx);
    tn_label_pop(cx);
    assert_string_equal(tn_label(cx), "");
    tn_label_push(cx, "layer.0");
    tn_label_push(cx, "mlp");
    assert_ptr_equal(tn_label(cx), path);
    tn_close(cx);
}

static void labels_stay_paired_across_an_error(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_label_push(cx, "layer");
    tn_zeros(cx, TN_F32, TN_SHAPE(-1));
    tn_label_push(cx, "attn");
    tn_test_error(cx, TN_ERR_SHAPE, "label layer");
    tn_label_push(cx, "head");
    tn_label_pop(cx);
    tn_label_pop(cx);
    assert_string_equal(tn_label(cx), "layer");
    tn_label_push(cx, "mlp");
    assert_string_equal(tn_label(cx), "layer/mlp");
    tn_close(cx);
}

static void categories_and_owners_are_kept(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_tensor *w = tn_parameter(cx, TN_F32, TN_SHAPE(256));
    assert_int_equal(tn_memory_category_of(w), TN_CATEGORY_PARAMETER);
    tn_scope *scope = tn_scope_begin(cx);
    tn_label_push(cx, "block");
    tn_tensor *o = tn_sigmoid(w); /* saves o */
    assert_int_equal(tn_memory_category_of(o), TN_CATEGORY_SAVED);
    assert_int_equal(tn_memory_category_of(w), TN_CATEGORY_PARAMETER);
    const tn_owner *owner = tn_block_owner(tn_impl_of(o)->storage->block);
    assert_string_equal(owner->op, "act");
    assert_string_equal(owner->label, "block");
    assert_int_equal(owner->pass, TN_PASS_FORWARD);
    tn_label_pop(cx);
    assert_true(tn_backward_with(o, TN_BACKWARD(.grad = tn_full(cx, TN_F32, TN_SHAPE(256), 1))));
    assert_int_equal(tn_memory_category_of(o), TN_CATEGORY_TEMPORARY);
    assert_int_equal(tn_memory_category_of(tn_grad(w)), TN_CATEGORY_GRADIENT);
    owner = tn_block_owner(tn_impl_of(tn_grad(w))->storage->block);
    assert_string_equal(owner->label, "block");
    assert_int_equal(owner->pass, TN_PASS_BACKWARD);
    tn_scope_end(scope);
    tn_test_ok(cx);
    tn_close(cx);
}

static void out_of_memory_is_an_error_like_any_other(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .memory_limit = 64 << 20 });
    tn_label_push(cx, "big");
    assert_null(tn_zeros(cx, TN_F32, TN_SHAPE(1 << 30)));
    assert_int_equal(tn_error_status(cx), TN_ERR_MEMORY);
    assert_non_null(strstr(tn_error(cx), "tn_zeros"));
    assert_non_null(strstr(tn_error(cx), "big"));
    tn_clear_error(cx);
    assert_null(tn_zeros(cx, TN_F64, TN_SHAPE(INT64_MAX / 64, 2)));
    tn_clear_error(cx);
    assert_null(tn_zeros(cx, TN_F64, TN_SHAPE(INT64_MAX, 8)));
    assert_int_equal(tn_error_status(cx), TN_ERR_SHAPE);
    tn_clear_error(cx);
    assert_non_null(tn_zeros(cx, TN_F32, TN_SHAPE(1 << 20)));
    tn_test_ok(cx);
    tn_close(cx);
}

static void a_device_that_is_really_full_is_survived(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    assert_null(tn_empty(cx, TN_F64, TN_SHAPE(INT64_C(1) << 44)));
    tn_test_error(cx, TN_ERR_MEMORY, "allocated");
    tn_tensor *small = tn_full(cx, TN_F32, TN_SHAPE(1000), 2);
    assert_true(tn_item_at(small, TN_SHAPE(999)) == 2);
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    assert_true(stats.n_out_of_memory == 1);
    tn_close(cx);
}

static void every_host_allocation_may_fail(void **state) {
    (void)state;
    int64_t blocks = tn_host_live_blocks();
    bool done = false;
    for (int n = 1; !done; n++) {
        for (int for_ever = 0; for_ever < 2; for_ever++) {
            tn_host_fail_after(n, for_ever);
            tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
            tn_scope *scope = tn_scope_begin(cx);
            tn_label_push(cx, "a");
            tn_params *params = tn_params_new(cx);
            tn_tensor *w = tn_params_add(params, tn_parameter(cx, TN_F32, TN_SHAPE(8)), 0, "w");
            tn_tensor *o = tn_silu(tn_sigmoid(w));
            tn_tensor *g = tn_full(cx, TN_F32, TN_SHAPE(8), 1);
            bool fine = tn_backward_with(o, TN_BACKWARD(.grad = g));
            tn_scope_end(scope);
            tn_host_fail_after(0, false);
            if (cx) {
                assert_true(fine == !tn_failed(cx));
                if (!fine) assert_int_equal(tn_error_status(cx), cx->status);
                tn_clear_error(cx);
                assert_non_null(tn_zeros(cx, TN_F32, TN_SHAPE(8)));
            }
            done = fine;
            tn_close(cx);
            tn_test_note("allocation %d failing", n);
            TN_TEST_WANT(tn_host_live_blocks() == blocks, "%lld host blocks leaked", (long long)(tn_host_live_blocks() - blocks));
        }
        assert_true(n < 10000);
    }
}

static void a_dry_run_records_and_computes_nothing(void **state) {
    (void)state;
    int64_t peaks[2];
    static const char *const devices[] = { "cpu", "dry-run" };
    for (int i = 0; i < 2; i++) {
        tn_context *cx = tn_open(&(tn_options){ .device = devices[i] });
        tn_tensor *w = tn_parameter(cx, TN_F32, TN_SHAPE(1000));
        tn_scope *scope = tn_scope_begin(cx);
        tn_tensor *o = tn_silu(tn_sigmoid(w));
        assert_true(tn_backward_with(o, TN_BACKWARD(.grad = tn_full(cx, TN_F32, TN_SHAPE(1000), 1))));
        tn_scope_end(scope);
        tn_memory_stats stats;
        tn_memory_stats_get(cx, &stats);
        peaks[i] = stats.all.allocated.peak;
        tn_test_ok(cx);
        if (i == 1) {
            float values[1000];
            assert_false(tn_to_data(w, values, sizeof values));
            tn_test_error(cx, TN_ERR_UNSUPPORTED, "dry");
        }
        tn_close(cx);
    }
    assert_true(peaks[0] == peaks[1]);
}

static void red_zones_catch_a_kernel_that_writes_too_far(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu", .debug = true });
    tn_label_push(cx, "culprit");
    tn_tensor *t = tn_empty(cx, TN_F32, TN_SHAPE(5));
    assert_true(((float *)t->data)[0] != ((float *)t->data)[0]);
    assert_true(tn_memory_check(cx));
    float before = ((float *)t->data)[5];
    ((float *)t->data)[5] = 1;
    assert_false(tn_memory_check(cx));
    tn_test_error(cx, TN_ERR_CORRUPTION, "culprit");
    tn_release(t);
    tn_test_error(cx, TN_ERR_CORRUPTION, "tn_empty");
    (void)before;
    tn_close(cx);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(opens_with_defaults),
    cmocka_unit_test(a_wrong_number_of_threads_is_refused),
    cmocka_unit_test(an_unknown_device_is_an_error_on_the_context),
    cmocka_unit_test(cuda_says_why_it_is_off_or_works),
    cmocka_unit_test(the_first_error_stands),
    cmocka_unit_test(null_in_null_out),
    cmocka_unit_test(scopes_free_what_they_own),
    cmocka_unit_test(keeping_never_shortens_a_life),
    cmocka_unit_test(ending_an_outer_scope_ends_the_inner_ones),
    cmocka_unit_test(release_frees_a_temporary_early),
    cmocka_unit_test(closing_frees_what_was_forgotten),
    cmocka_unit_test(labels_join),
    cmocka_unit_test(labels_stay_paired_across_an_error),
    cmocka_unit_test(categories_and_owners_are_kept),
    cmocka_unit_test(out_of_memory_is_an_error_like_any_other),
    cmocka_unit_test(a_device_that_is_really_full_is_survived),
    cmocka_unit_test(every_host_allocation_may_fail),
    cmocka_unit_test(a_dry_run_records_and_computes_nothing),
    cmocka_unit_test(red_zones_catch_a_kernel_that_writes_too_far),
};
TN_TEST_MAIN("context", cases)
