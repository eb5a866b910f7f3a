/* The program the library was designed around: written unchecked, checked once at the end. */
#include "harness.h"

#include <math.h>
#include <stdio.h>

#include "tenon.h"

typedef struct model {
    tn_params *params;
    tn_tensor *wq, *wk, *wv, *wg, *theta;
    tn_adamw *opt;
} model;

static tn_tensor *weight(tn_params *params, tn_context *cx, const char *name) {
    return tn_params_add(params, tn_fill_xavier_normal(tn_parameter(cx, TN_F32, TN_SHAPE(64, 64)), 1.0), 0, "%s", name);
}

static double train_step(tn_context *cx, const model *m) {
    tn_scope *s = tn_scope_begin(cx);
    tn_tensor *x = tn_randn(cx, TN_F32, TN_SHAPE(8, 32, 64));
    tn_tensor *q = tn_reshape(tn_linear(x, m->wq, NULL), TN_SHAPE(8, 32, 4, 16));
    tn_tensor *k = tn_reshape(tn_linear(x, m->wk, NULL), TN_SHAPE(8, 32, 4, 16));
    tn_tensor *v = tn_reshape(tn_linear(x, m->wv, NULL), TN_SHAPE(8, 32, 4, 16));
    tn_tensor *g = tn_reshape(tn_linear(x, m->wg, NULL), TN_SHAPE(8, 32, 4, 16));
    tn_tensor *o = tn_linear_attention(q, k, v,
                                       TN_LINEAR_ATTENTION(.g = g, .theta = m->theta, .kind = TN_ROTATE, .causal = true, .q_act = TN_SILU,
                                                           .k_act = TN_SILU, .g_act = TN_SIGMOID));
    tn_tensor *loss = tn_mean(tn_mul(o, o));
    tn_backward(loss);
    tn_adamw_step(m->opt);
    tn_zero_grad(m->params);
    double value = tn_item(loss);
    tn_scope_end(s);
    return value;
}

static model build(tn_context *cx) {
    tn_params *params = tn_params_new(cx);
    model m = { .params = params };
    m.wq = weight(params, cx, "q");
    m.wk = weight(params, cx, "k");
    m.wv = weight(params, cx, "v");
    m.wg = weight(params, cx, "g");
    m.theta = tn_params_add(params, tn_fill_uniform(tn_parameter(cx, TN_F32, TN_SHAPE(4, 8)), 0, 1), 0, "theta");
    m.opt = tn_adamw_new(params, TN_ADAMW(.lr = 1e-2));
    return m;
}

static int64_t allocated(const tn_context *cx) {
    tn_memory_stats stats;
    TN_TEST_WANT(tn_memory_stats_get(cx, &stats), "no statistics");
    return stats.all.requested.current;
}

static void test_learns(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1337 });
    model m = build(cx);
    double first = train_step(cx, &m), last = first;
    int64_t after_first = allocated(cx);
    for (int step = 1; step < 40; step++) last = train_step(cx, &m);
    tn_test_ok(cx);
    TN_TEST_WANT(last < 0.5 * first, "the loss went from %g to %g", first, last);
    TN_TEST_WANT(allocated(cx) == after_first, "memory grew by %lld bytes", (long long)(allocated(cx) - after_first));
    tn_close(cx);
}

/* One wrong shape in the middle: nothing crashes, nothing is printed, the first error is kept, and the context goes on after it. */
static void test_one_wrong_shape(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1337 });
    model m = build(cx), wrong = m;
    train_step(cx, &m);
    int64_t before = allocated(cx);
    wrong.wk = tn_parameter(cx, TN_F32, TN_SHAPE(64, 63));
    TN_TEST_WANT(train_step(cx, &wrong) == 0 && tn_failed(cx), "a weight that does not fit passed");
    TN_TEST_WANT(train_step(cx, &m) == 0, "a step ran beside a standing error");
    tn_test_error(cx, TN_ERR_SHAPE, "f32[64,63]");
    tn_release(wrong.wk);
    TN_TEST_WANT(allocated(cx) == before, "%lld bytes stay after the error", (long long)(allocated(cx) - before));
    train_step(cx, &m);
    tn_test_ok(cx);
    tn_close(cx);
}

static const struct CMUnitTest cases[] = { cmocka_unit_test(test_learns), cmocka_unit_test(test_one_wrong_shape) };
TN_TEST_MAIN("test_design_program", cases)
