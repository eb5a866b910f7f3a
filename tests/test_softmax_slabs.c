/* Softmax along an axis that is not the last, where the blocks of a GPU work on several slabs one after the other: of a GPU of a few
 * multiprocessors, small tensors have more slabs than go round. */
#include <math.h>
#include <stdlib.h>

#include "harness.h"
#include "libtensor/context_internal.h"
#include "ops/tenon.h"

typedef struct slab_case {
    int multiprocessors;
    int64_t outer, axis, inner;
} slab_case;

/* One group of two blocks with more slabs than any ring has places, two groups, and one of three blocks. */
static const slab_case cases_of_slabs[] = { { 2, 18, 780, 40 }, { 4, 3, 800, 72 }, { 4, 2, 1600, 40 } };

static double *softmax_of(const slab_case *c, const double *x) {
    double *o = malloc((size_t)(c->outer * c->axis * c->inner) * sizeof *o);
    for (int64_t column = 0; column < c->outer * c->inner; column++) {
        int64_t first = column / c->inner * c->axis * c->inner + column % c->inner, end = first + c->axis * c->inner;
        double max = -INFINITY, sum = 0;
        for (int64_t i = first; i < end; i += c->inner) max = fmax(max, x[i]);
        for (int64_t i = first; i < end; i += c->inner) sum += o[i] = exp(x[i] - max);
        for (int64_t i = first; i < end; i += c->inner) o[i] /= sum;
    }
    return o;
}

static double *gradient_of(const slab_case *c, const double *o, const double *d) {
    double *dx = malloc((size_t)(c->outer * c->axis * c->inner) * sizeof *dx);
    for (int64_t column = 0; column < c->outer * c->inner; column++) {
        int64_t first = column / c->inner * c->axis * c->inner + column % c->inner, end = first + c->axis * c->inner;
        double sum = 0;
        for (int64_t i = first; i < end; i += c->inner) sum += o[i] * d[i];
        for (int64_t i = first; i < end; i += c->inner) dx[i] = o[i] * (d[i] - sum);
    }
    return dx;
}

static void compare(tn_context *cx, int multiprocessors, const slab_case *c, tn_dtype dtype) {
    const double tolerance = dtype == TN_F32 ? 3e-5 : 2.5e-2;
    const int64_t numel = c->outer * c->axis * c->inner;
    tn_test_note("%lld x %lld x %lld, %s", (long long)c->outer, (long long)c->axis, (long long)c->inner, tn_dtype_name(dtype));
    cx->device->multiprocessors = c->multiprocessors < multiprocessors ? c->multiprocessors : multiprocessors;
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *x = tn_require_grad(tn_randn(cx, dtype, TN_SHAPE(c->outer, c->axis, c->inner)), true);
    tn_tensor *d = tn_randn(cx, dtype, TN_SHAPE(c->outer, c->axis, c->inner)), *o = tn_softmax(x, 1);
    tn_backward_with(o, TN_BACKWARD(.grad = d));
    tn_test_ok(cx);
    double *from = tn_test_doubles(x), *up = tn_test_doubles(d), *got = tn_test_doubles(o), *got_dx = tn_test_doubles(tn_grad(x));
    double *wanted = softmax_of(c, from), *wanted_dx = gradient_of(c, got, up);
    tn_test_close(wanted, got, numel, tolerance, "o");
    tn_test_close(wanted_dx, got_dx, numel, tolerance, "dx");
    double *all[] = { from, up, got, got_dx, wanted, wanted_dx };
    for (int i = 0; i < 6; i++) free(all[i]);
    tn_scope_end(scope);
}

static void compare_all(tn_dtype dtype) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_test_ok(cx);
    const int multiprocessors = cx->device->multiprocessors;
    for (size_t i = 0; i < sizeof cases_of_slabs / sizeof *cases_of_slabs; i++) compare(cx, multiprocessors, cases_of_slabs + i, dtype);
    tn_close(cx);
}

static void f32(void **state) {
    (void)state;
    compare_all(TN_F32);
}

static void bf16(void **state) {
    (void)state;
    compare_all(TN_BF16);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(f32),
    cmocka_unit_test(bf16),
};

TN_TEST_MAIN("test_softmax_slabs", cases)
