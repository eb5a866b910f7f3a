/* The calls that stand around the ops: views by another name, joins, selections, reductions, scalars. The ops themselves are the registry's
 * matter (test_registry); here it is what the calls make of their arguments, and what they refuse. */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libtensor/context_internal.h"
#include "libtensor/graph.h"
#include "ops/sample_inputs.h"
#include "ops/tenon.h"

static tn_context *cx;
static tn_scope *scope;

static int set_up(void **state) {
    (void)state;
    cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 5 });
    scope = tn_scope_begin(cx);
    return scope == NULL;
}

static int tear_down(void **state) {
    (void)state;
    tn_scope_end(scope);
    tn_close(cx);
    return 0;
}

/* t has this shape and these elements. */
#define WANT(t, shape, ...) \
    want((t), (shape), (const double[]){ __VA_ARGS__ }, sizeof((double[]){ __VA_ARGS__ }) / sizeof(double), __LINE__)
static void want(tn_tensor *t, tn_shape shape, const double *expected, size_t n, int line) {
    tn_test_ok_at(__FILE__, line, cx);
    if (!t || t->axes != shape.axes || memcmp(t->shape, shape.size, (size_t)shape.axes * sizeof *t->shape) != 0 || t->numel != (int64_t)n)
        tn_test_fail(__FILE__, line, "another shape");
    double *values = tn_test_doubles(t);
    tn_test_near_at(__FILE__, line, expected, values, t->numel, 1e-6, 1e-6, "values");
    free(values);
}

#define REFUSED(call, status, words)          \
    do {                                      \
        assert_false(call);                   \
        tn_test_error(cx, (status), (words)); \
    } while (0)

/* 0, 1, 2, ... in f32 */
static tn_tensor *counted(tn_shape shape) {
    int64_t n = 1;
    for (int i = 0; i < shape.axes; i++) n *= shape.size[i];
    return tn_reshape(tn_cast(tn_arange(cx, TN_I64, n), TN_F32), shape);
}

static void views(void **state) {
    (void)state;
    tn_tensor *x = counted(TN_SHAPE(2, 1, 3)), *parts[3];
    WANT(tn_flatten(x, 0, -1), TN_SHAPE(6), 0, 1, 2, 3, 4, 5);
    WANT(tn_flatten(x, 1, 2), TN_SHAPE(2, 3), 0, 1, 2, 3, 4, 5);
    WANT(tn_flatten(tn_sum(x), 0, 0), TN_SHAPE(1), 15);
    WANT(tn_squeeze(x, 1), TN_SHAPE(2, 3), 0, 1, 2, 3, 4, 5);
    WANT(tn_unsqueeze(tn_squeeze(x, -2), -1), TN_SHAPE(2, 3, 1), 0, 1, 2, 3, 4, 5);
    WANT(tn_transpose(x, 0, -1), TN_SHAPE(3, 1, 2), 0, 3, 1, 4, 2, 5);
    WANT(tn_narrow(x, 2, 1, 2), TN_SHAPE(2, 1, 2), 1, 2, 4, 5);
    WANT(tn_select(x, 0, -1), TN_SHAPE(1, 3), 3, 4, 5);
    WANT(tn_expand(x, TN_DIMS(-1, 2, -1)), TN_SHAPE(2, 2, 3), 0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5);
    assert_true(tn_split(x, 2, 3, parts));
    WANT(parts[0], TN_SHAPE(2, 1, 1), 0, 3);
    WANT(parts[2], TN_SHAPE(2, 1, 1), 2, 5);
    REFUSED(tn_flatten(x, 0, 3), TN_ERR_ARGUMENT, "dim 3");
    REFUSED(tn_flatten(x, 2, 1), TN_ERR_ARGUMENT, "comes after");
    REFUSED(tn_squeeze(x, 0), TN_ERR_SHAPE, "wanted 1");
    REFUSED(tn_squeeze(x, 5), TN_ERR_ARGUMENT, "dim 5");
    REFUSED(tn_unsqueeze(x, 7), TN_ERR_ARGUMENT, "dim 7");
    REFUSED(tn_unsqueeze(counted(TN_SHAPE(1, 1, 1, 1, 1, 1, 1, 1)), 0), TN_ERR_SHAPE, "the most");
    REFUSED(tn_transpose(x, 0, 3), TN_ERR_ARGUMENT, "dim 3");
    REFUSED(tn_narrow(x, 2, 2, 2), TN_ERR_ARGUMENT, "2 elements from 2 on");
    REFUSED(tn_narrow(x, 4, 0, 1), TN_ERR_ARGUMENT, "dim 4");
    REFUSED(tn_select(x, 2, 3), TN_ERR_ARGUMENT, "element 3");
    REFUSED(tn_select(x, 3, 0), TN_ERR_ARGUMENT, "dim 3");
    REFUSED(tn_split(x, 2, 2, parts), TN_ERR_ARGUMENT, "into 2 parts");
    REFUSED(tn_split(x, 3, 3, parts), TN_ERR_ARGUMENT, "dim 3");
    assert_false(tn_flatten(NULL, 0, 0) || tn_squeeze(NULL, 0) || tn_unsqueeze(NULL, 0) || tn_transpose(NULL, 0, 1) ||
                 tn_narrow(NULL, 0, 0, 0) || tn_select(NULL, 0, 0) || tn_split(NULL, 0, 1, parts));
    tn_test_ok(cx);
}

static void joins_and_copies(void **state) {
    (void)state;
    tn_tensor *many[20], *x = counted(TN_SHAPE(2, 2));
    for (int i = 0; i < 20; i++) many[i] = tn_full(cx, TN_F32, TN_SHAPE(1), i);
    WANT(tn_concat(many, 20, 0), TN_SHAPE(20), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
    WANT(tn_stack((tn_tensor *[]){ x, x }, 2, 0), TN_SHAPE(2, 2, 2), 0, 1, 2, 3, 0, 1, 2, 3);
    WANT(tn_stack((tn_tensor *[]){ x, x }, 2, -1), TN_SHAPE(2, 2, 2), 0, 0, 1, 1, 2, 2, 3, 3);
    assert_false(tn_stack(NULL, 2, 0) || tn_concat(NULL, 1, 0) || tn_concat(&x, 0, 0));
    REFUSED(tn_stack((tn_tensor *[]){ x, x }, 2, 4), TN_ERR_ARGUMENT, "dim 4");
    assert_ptr_equal(tn_contiguous(x), x);
    assert_ptr_equal(tn_cast(x, TN_F32), x);
    WANT(tn_contiguous(tn_transpose(x, 0, 1)), TN_SHAPE(2, 2), 0, 2, 1, 3);
    tn_tensor *copy = tn_clone(x);
    tn_fill(x, 9);
    WANT(copy, TN_SHAPE(2, 2), 0, 1, 2, 3);
    /* Written through a view. */
    const float two[] = { 7, 8 };
    assert_true(tn_set_data(tn_select(copy, 1, 0), two, sizeof two));
    WANT(copy, TN_SHAPE(2, 2), 7, 1, 8, 3);
}

static void selections(void **state) {
    (void)state;
    const int64_t places[] = { 2, 0, 2 };
    tn_tensor *x = counted(TN_SHAPE(2, 3)), *index = tn_from_data(cx, TN_I64, TN_SHAPE(3), places), *which;
    WANT(tn_index_select(x, 1, index), TN_SHAPE(2, 3), 2, 0, 2, 5, 3, 5);
    WANT(tn_index_select(x, 0, tn_narrow(index, 0, 1, 1)), TN_SHAPE(1, 3), 0, 1, 2);
    WANT(tn_embedding(x, tn_narrow(index, 0, 1, 1)), TN_SHAPE(1, 3), 0, 1, 2);
    WANT(tn_gather(x, tn_reshape(tn_narrow(index, 0, 0, 2), TN_SHAPE(2, 1)), 1), TN_SHAPE(2, 1), 2, 3);
    REFUSED(tn_index_select(x, 2, index), TN_ERR_ARGUMENT, "dim 2");
    REFUSED(tn_index_select(x, 1, tn_unsqueeze(index, 0)), TN_ERR_SHAPE, "2 axes");
    assert_null(tn_index_select(x, 0, NULL));
    WANT(tn_topk(x, TN_TOPK(.k = 2), &which), TN_SHAPE(2, 2), 2, 1, 5, 4);
    WANT(which, TN_SHAPE(2, 2), 2, 1, 2, 1);
    WANT(tn_topk(x, TN_TOPK(.k = 1, .largest = false), NULL), TN_SHAPE(2, 1), 0, 3);
    tn_tensor *weights = tn_cast(tn_from_data(cx, TN_I64, TN_SHAPE(3), (const int64_t[]){ 0, 1, 0 }), TN_F32);
    uint64_t before = tn_rng_get(cx).counter;
    WANT(tn_multinomial(weights, TN_MULTINOMIAL(.n_samples = 2, .replacement = true)), TN_SHAPE(2), 1, 1);
    assert_true(tn_rng_get(cx).counter == before + 2);
    assert_null(tn_multinomial(NULL, TN_MULTINOMIAL(.n_samples = 1)));
    REFUSED(tn_multinomial(weights, TN_MULTINOMIAL(.n_samples = -1)), TN_ERR_ARGUMENT, NULL);
    assert_true(tn_rng_get(cx).counter == before + 2);
}

static void reductions(void **state) {
    (void)state;
    tn_tensor *x = counted(TN_SHAPE(2, 3));
    const tn_reduce_args rows = { .dims = TN_DIMS(1) };
    WANT(tn_sum(x), TN_SHAPE(), 15);
    WANT(tn_mean(x), TN_SHAPE(), 2.5);
    WANT(tn_max(x), TN_SHAPE(), 5);
    WANT(tn_min(x), TN_SHAPE(), 0);
    WANT(tn_argmax(x), TN_SHAPE(), 5);
    WANT(tn_logsumexp(tn_mul_scalar(x, 0)), TN_SHAPE(), log(6));
    WANT(tn_sum(tn_arange(cx, TN_I64, 100000)), TN_SHAPE(), 4999950000.0);
    WANT(tn_sum_over(x, rows), TN_SHAPE(2), 3, 12);
    WANT(tn_mean_over(x, rows), TN_SHAPE(2), 1, 4);
    WANT(tn_max_over(x, rows), TN_SHAPE(2), 2, 5);
    WANT(tn_min_over(x, rows), TN_SHAPE(2), 0, 3);
    WANT(tn_argmax_over(x, rows), TN_SHAPE(2), 2, 2);
    WANT(tn_logsumexp_over(tn_mul_scalar(x, 0), rows), TN_SHAPE(2), log(3), log(3));
    WANT(tn_cumsum(x, (tn_cumsum_args){ .dim = 1 }), TN_SHAPE(2, 3), 0, 1, 3, 3, 7, 12);
}

static void one_by_one(void **state) {
    (void)state;
    tn_tensor *x = tn_add_scalar(counted(TN_SHAPE(4)), -1);
    WANT(x, TN_SHAPE(4), -1, 0, 1, 2);
    WANT(tn_mul_scalar(x, 3), TN_SHAPE(4), -3, 0, 3, 6);
    WANT(tn_clamp(x, TN_CLAMP(.low = 0, .high = 1)), TN_SHAPE(4), 0, 0, 1, 1);
    WANT(tn_pow_scalar(x, 2), TN_SHAPE(4), 1, 0, 1, 4);
    WANT(tn_where(tn_gt(x, tn_mul_scalar(x, 0)), x, tn_add_scalar(x, 10)), TN_SHAPE(4), 9, 10, 1, 2);
    WANT(tn_relu(x), TN_SHAPE(4), 0, 0, 1, 2);
    WANT(tn_tanh(x), TN_SHAPE(4), tanh(-1), 0, tanh(1), tanh(2));
    WANT(tn_softmax(tn_mul_scalar(x, 0), -1), TN_SHAPE(4), 0.25, 0.25, 0.25, 0.25);
    WANT(tn_layer_norm(tn_narrow(x, 0, 1, 2), tn_full(cx, TN_F32, TN_SHAPE(2), 2), tn_full(cx, TN_F32, TN_SHAPE(2), 1),
                       TN_LAYER_NORM(.eps = 0)),
         TN_SHAPE(2), -1, 3);
    WANT(tn_swiglu(x), TN_SHAPE(2), -1 / (1 + exp(1)) * 1, 0);
}

static bool never_called(void *user, tn_tensor *const *in, int n_in, tn_tensor **out, int n_out) {
    (void)user, (void)in, (void)n_in, (void)out, (void)n_out;
    return false;
}

/* What only a mistake of the caller leads to. */
static void mistakes(void **state) {
    (void)state;
    const tn_op_def *op = tn_op_find("sum");
    tn_op_args_buffer args = { .bytes = "" };
    tn_gradcheck_result result;
    char reason[256], text[32];
    const char *const bad[][2] = { { "[1]", "not a JSON object" },
                                   { "{\"dims\": ", "not a JSON object" },
                                   { "{\"dims\": true}", "wrong kind" },
                                   { "{\"dims\": [0.5]}", "wrong kind" },
                                   { "{\"dime\": [0]}", "dime" } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        reason[0] = '\0';
        TN_TEST_WANT(!tn_op_set_attrs_json(op, &args, bad[i][0], reason, sizeof reason) && strstr(reason, bad[i][1]), "%s: %s", bad[i][0],
                     reason);
    }
    tn_tensor *x = counted(TN_SHAPE(2, 3));
    REFUSED(tn_gradcheck(never_called, NULL, &x, 1, 0, TN_GRADCHECK(), &result), TN_ERR_ARGUMENT, "0 outputs");
    REFUSED(tn_attention_cache_new(cx, TN_F32, (tn_attention_cache_shape){ .batch = 1, .capacity = 0, .heads = 1 }), TN_ERR_SHAPE,
            "at least 1");
    tn_params *params = tn_params_new(cx);
    tn_tensor *turned = tn_require_grad(tn_transpose(x, 0, 1), true);
    tn_params_add(params, turned, 0, "turned");
    assert_true(tn_backward(tn_sum(turned)));
    REFUSED(tn_adamw_step(tn_adamw_new(params, TN_ADAMW())), TN_ERR_ARGUMENT, "not contiguous");
    tn_params_free(params);
    tn_params_free(NULL);
    assert_string_equal(tn_describe(NULL, text, sizeof text), "none");
}

/* TENON_CUDA_PATH may ask for less than the GPU has, not for more. */
static void paths(void **state) {
    (void)state;
    const char *before = getenv("TENON_CUDA_PATH");
    char reason[256] = "", kept[32] = "";
    tn_cuda_path path;
    if (before) snprintf(kept, sizeof kept, "%s", before);
    setenv("TENON_CUDA_PATH", "plain", 1);
    bool lesser = tn_cuda_path_choose(TN_CUDA_HOPPER, &path, reason, sizeof reason) && path == TN_CUDA_PLAIN;
    setenv("TENON_CUDA_PATH", "hopper", 1);
    bool more = tn_cuda_path_choose(TN_CUDA_BASE, &path, reason, sizeof reason);
    bool told = strstr(reason, "at most the base path") != NULL;
    setenv("TENON_CUDA_PATH", "fast", 1);
    bool unknown = tn_cuda_path_choose(TN_CUDA_HOPPER, &path, reason, sizeof reason);
    if (before) setenv("TENON_CUDA_PATH", kept, 1);
    else unsetenv("TENON_CUDA_PATH");
    assert_true(lesser && !more && told && !unknown && strstr(reason, "plain, base or hopper"));
}

/* A dry run, and a build or a device without graphs, answer everything. */
static void stand_ins(void **state) {
    (void)state;
    tn_context *dry = tn_open(&(tn_options){ .device = "dry-run", .debug = true, .anomaly = true });
    tn_device *device = dry->device;
    const tn_device_interface *use = device->interface;
    tn_device_event event;
    tn_stream stream;
    bool done = false;
    assert_int_equal(use->stream_create(device, &stream), TN_OK);
    assert_int_equal(use->event_record(device, stream, &event), TN_OK);
    assert_true(use->event_done(device, event, &done) == TN_OK && done);
    assert_true(use->event_wait(device, event) == TN_OK && use->stream_wait(device, stream, 0) == TN_OK);
    tn_tensor *x = tn_require_grad(tn_randn(dry, TN_F32, TN_SHAPE(3)), true);
    assert_true(tn_backward(tn_sum(tn_exp(tn_add(x, tn_cast(tn_arange(dry, TN_I64, 3), TN_F32))))) && tn_memory_check(dry) &&
                tn_synchronize(dry));
    assert_null(tn_native_stream(dry));
    assert_false(tn_graph_possible(dry) || tn_graph_begin(dry));
    tn_test_error(dry, TN_ERR_UNSUPPORTED, "can't record");
    assert_null(tn_graph_end(dry));
    assert_false(tn_graph_replay(NULL));
    tn_graph_free(NULL);
    tn_rng_from(dry, x);
    tn_test_error(dry, TN_ERR_ARGUMENT, "i64 scalar");
    tn_rng_from(dry, NULL);
    assert_true(strcmp(tn_device_name(dry), "dry-run") == 0 && tn_device_detail(dry) && tn_threads(dry) > 0);
    tn_close(dry);
    assert_true(tn_failed(NULL) && *tn_error(NULL) && strcmp(tn_device_name(NULL), "") == 0 && tn_threads(NULL) == 0 &&
                !tn_native_stream(NULL));
}

/* The CPU's streams are there for the interface: work is done when the call returns. */
static void streams_of_the_cpu(void **state) {
    (void)state;
    tn_context *cpu = tn_open(&(tn_options){ .device = "cpu" });
    const tn_device_interface *use = cpu->device->interface;
    tn_device_event event;
    tn_stream stream;
    bool done = false;
    assert_int_equal(use->stream_create(cpu->device, &stream), TN_OK);
    assert_int_equal(use->event_record(cpu->device, stream, &event), TN_OK);
    assert_true(use->event_done(cpu->device, event, &done) == TN_OK && done);
    assert_true(use->event_wait(cpu->device, event) == TN_OK && use->stream_wait(cpu->device, stream, 0) == TN_OK);
    assert_null(tn_native_stream(cpu));
    tn_close(cpu);
}

/* Kernels count a line's elements in 32 bits, and say so before anything is allocated: a dry run says it too. */
static void long_lines(void **state) {
    static const char *const devices[] = { "dry-run:cpu", "dry-run:cuda" };
    (void)state;
    for (int i = 0; i < 4; i++) {
        bool cuda = i % 2;
        tn_context *dry = tn_open(&(tn_options){ .device = devices[i % 2] });
        tn_scope *inside = tn_scope_begin(dry);
        tn_tensor *x = tn_empty(dry, TN_BF16, TN_SHAPE(1LL << 31));
        if (i < 2) tn_topk(x, TN_TOPK(.k = 3), NULL);
        else tn_multinomial(x, TN_MULTINOMIAL());
        TN_TEST_WANT(tn_error_status(dry) == (cuda ? TN_ERR_UNSUPPORTED : TN_OK), "on %s: %s", devices[i % 2], tn_error(dry));
#ifdef TN_WITH_CUDA
        TN_TEST_WANT(!cuda || strstr(tn_error(dry), "2^31"), "it does not say how long lines may be: %s", tn_error(dry));
#endif
        tn_scope_end(inside);
        tn_close(dry);
    }
}

#define CASE(function) \
    { #function, function, set_up, tear_down, NULL }

static const struct CMUnitTest cases[] = { CASE(views),      CASE(joins_and_copies), CASE(selections), CASE(reductions),
                                           CASE(one_by_one), CASE(mistakes),         CASE(stand_ins),  CASE(streams_of_the_cpu),
                                           CASE(paths),      CASE(long_lines) };

TN_TEST_MAIN("test_calls", cases)
