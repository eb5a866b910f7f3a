/* Optimizers against their formulas in f64, and what they promise besides: state in files, groups, clipping, memory, errors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "libtensor/host_memory.h"
#include "ops/tenon.h"

#define N_PARAMS 3
#define LR 1e-2
#define DECAY 0.1
#define SLOW_GROUP 1 /* half the learning rate, no decay */

/* More than one chunk of the kernels, less than one vector, and in between. */
static const int64_t sizes[N_PARAMS] = { 5, 40000, 17 };
static const tn_dtype dtypes[] = { TN_F64, TN_F32, TN_BF16 };

typedef enum rule { RULE_ADAMW, RULE_SGD, RULE_MOMENTUM, RULE_NESTEROV, RULE_COUNT } rule;

typedef struct trained {
    tn_context *cx;
    tn_params *params;
    tn_tensor *p[N_PARAMS];
    tn_optimizer *opt;
} trained;

static tn_optimizer *new_optimizer(tn_params *params, rule r) {
    if (r == RULE_ADAMW) return tn_adamw_new(params, TN_ADAMW(.lr = LR, .weight_decay = DECAY));
    return tn_sgd_new(params, TN_SGD(.lr = LR, .weight_decay = DECAY, .momentum = r == RULE_SGD ? 0 : 0.9, .nesterov = r == RULE_NESTEROV));
}

static trained start(tn_dtype dtype, rule r, uint64_t seed, int threads) {
    trained t = { .cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = seed, .threads = threads, .debug = true }) };
    tn_test_ok(t.cx);
    t.params = tn_params_new(t.cx);
    for (int i = 0; i < N_PARAMS; i++) {
        t.p[i] = tn_fill_normal(tn_parameter(t.cx, dtype, TN_SHAPE(sizes[i])), 0, 1);
        tn_params_add(t.params, t.p[i], i == 2 ? SLOW_GROUP : 0, "p.%d", i);
    }
    tn_params_add(t.params, tn_parameter(t.cx, dtype, TN_SHAPE(4)), 0, "without-gradient");
    tn_params_add(t.params, t.p[1], 0, "listed-twice");
    t.opt = new_optimizer(t.params, r);
    tn_optimizer_group(t.opt, SLOW_GROUP, 0.5, 0);
    tn_test_ok(t.cx);
    return t;
}

/* Gives p the gradient of a dot product with random numbers. */
static void give_gradient(tn_tensor *p, uint64_t seed) {
    tn_context *cx = p->cx;
    tn_scope *scope = tn_scope_begin(cx);
    tn_rng_set(cx, (tn_rng_state){ seed, 0 });
    tn_backward(tn_matmul(tn_randn(cx, p->dtype, tn_shape_of(p)), p));
    tn_scope_end(scope);
    tn_test_ok(cx);
}

/* In every other step the last parameter has no gradient. */
static bool has_gradient(int i, int step) { return i != 2 || step % 2 == 0; }

static void give_gradients(const trained *t, int step) {
    for (int i = 0; i < N_PARAMS; i++)
        if (has_gradient(i, step)) give_gradient(t->p[i], (uint64_t)(step * 10 + i));
}

static void run_step(const trained *t, int step) {
    give_gradients(t, step);
    assert_true(tn_optimizer_step(t->opt));
    tn_zero_grad(t->opt);
}

/* ---- the formulas ---- */

typedef struct reference {
    double *p, *first, *second;
    int steps;
} reference;

static void reference_step(reference *ref, const double *g, int64_t n, rule r, bool slow) {
    double lr = slow ? LR / 2 : LR, decay = slow ? 0 : DECAY;
    ref->steps++;
    for (int64_t i = 0; i < n; i++) {
        if (r == RULE_ADAMW) {
            ref->first[i] = 0.9 * ref->first[i] + 0.1 * g[i];
            ref->second[i] = 0.999 * ref->second[i] + 0.001 * g[i] * g[i];
            double m = ref->first[i] / (1 - pow(0.9, ref->steps)), v = ref->second[i] / (1 - pow(0.999, ref->steps));
            ref->p[i] = ref->p[i] * (1 - lr * decay) - lr * m / (sqrt(v) + 1e-8);
            continue;
        }
        double d = g[i] + decay * ref->p[i];
        ref->first[i] = 0.9 * ref->first[i] + d;
        ref->p[i] -= lr * (r == RULE_SGD ? d : r == RULE_MOMENTUM ? ref->first[i] : d + 0.9 * ref->first[i]);
    }
}

static void follow_reference(tn_dtype dtype, rule r) {
    trained t = start(dtype, r, 3, 0);
    reference ref[N_PARAMS];
    for (int i = 0; i < N_PARAMS; i++)
        ref[i] =
            (reference){ tn_test_doubles(t.p[i]), calloc((size_t)sizes[i], sizeof(double)), calloc((size_t)sizes[i], sizeof(double)), 0 };
    for (int step = 1; step <= 6; step++) {
        give_gradients(&t, step);
        for (int i = 0; i < N_PARAMS; i++) {
            if (!has_gradient(i, step)) continue;
            double *g = tn_test_doubles(tn_grad(t.p[i]));
            reference_step(&ref[i], g, sizes[i], r, i == 2);
            free(g);
        }
        uint64_t version = tn_version_of(t.p[0]);
        assert_true(tn_optimizer_step(t.opt));
        assert_true(tn_version_of(t.p[0]) == version + 1);
        tn_zero_grad(t.opt);
        assert_null(tn_grad(t.p[0]));
    }
    for (int i = 0; i < N_PARAMS; i++) {
        double *p = tn_test_doubles(t.p[i]);
        /* bf16: the master is f32, the parameter its rounding. */
        tn_test_close(ref[i].p, p, sizes[i], dtype == TN_F64 ? 1e-13 : dtype == TN_F32 ? 1e-6 : 3e-3, tn_params_name(t.params, i));
        free(p);
        free(ref[i].p);
        free(ref[i].first);
        free(ref[i].second);
    }
    tn_test_ok(t.cx);
    assert_true(tn_memory_check(t.cx));
    tn_close(t.cx);
}

static void steps_follow_the_formulas(void **state) {
    (void)state;
    int64_t blocks = tn_host_live_blocks();
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (int r = 0; r < RULE_COUNT; r++) {
            tn_test_note("%s, rule %d", tn_dtype_name(dtypes[d]), r);
            follow_reference(dtypes[d], (rule)r);
        }
    assert_true(tn_host_live_blocks() == blocks); /* nobody freed the optimizers: their contexts did */
}

/* ---- files ---- */

static void resume(tn_dtype dtype, rule r) {
    const char *folder = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char params_path[256], state_path[256];
    snprintf(params_path, sizeof params_path, "%s/tenon-test-optim-%d-p.safetensors", folder, (int)getpid());
    snprintf(state_path, sizeof state_path, "%s/tenon-test-optim-%d-s.safetensors", folder, (int)getpid());
    trained a = start(dtype, r, 3, 0), b = start(dtype, r, 99, 1);
    for (int step = 1; step <= 3; step++) run_step(&a, step);
    /* The list for files names every tensor once. */
    tn_params *saved = tn_params_new(a.cx), *loaded = tn_params_new(b.cx);
    for (int i = 0; i < N_PARAMS; i++) {
        tn_params_add(saved, a.p[i], 0, "p.%d", i);
        tn_params_add(loaded, b.p[i], 0, "p.%d", i);
    }
    assert_true(tn_params_save(saved, params_path) && tn_optimizer_save(a.opt, state_path));
    assert_true(tn_params_load(loaded, params_path) && tn_optimizer_load(b.opt, state_path));
    for (int step = 4; step <= 6; step++) {
        run_step(&a, step);
        run_step(&b, step);
    }
    for (int i = 0; i < N_PARAMS; i++) {
        double *from_a = tn_test_doubles(a.p[i]), *from_b = tn_test_doubles(b.p[i]);
        assert_memory_equal(from_a, from_b, (size_t)sizes[i] * sizeof(double));
        free(from_a);
        free(from_b);
    }
    tn_optimizer *other = new_optimizer(b.params, r == RULE_ADAMW ? RULE_SGD : RULE_ADAMW);
    assert_false(tn_optimizer_load(other, state_path));
    tn_test_error(b.cx, TN_ERR_FORMAT, "state of");
    assert_false(tn_optimizer_load(b.opt, params_path));
    tn_test_error(b.cx, TN_ERR_FORMAT, "no optimizer");
    unlink(params_path);
    unlink(state_path);
    tn_close(a.cx);
    tn_close(b.cx);
}

/* A file of another model's optimizer. */
static void foreign_state_is_refused(void **state) {
    (void)state;
    const int64_t saved = 4, others[] = { 3, 4 }; /* elements of p.0; the file also holds p.1 */
    const char *const words[] = { "another dtype or shape", "of which 2 belong" };
    char path[256];
    snprintf(path, sizeof path, "%s/tenon-test-optim-%d-f.safetensors", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp", (int)getpid());
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 8 });
    tn_params *params = tn_params_new(cx);
    for (int i = 0; i < 2; i++) give_gradient(tn_params_add(params, tn_parameter(cx, TN_F32, TN_SHAPE(saved)), 0, "p.%d", i), 1);
    tn_optimizer *opt = new_optimizer(params, RULE_MOMENTUM);
    assert_true(tn_optimizer_step(opt) && tn_optimizer_save(opt, path));
    for (int i = 0; i < 2; i++) {
        tn_params *here = tn_params_new(cx);
        tn_params_add(here, tn_parameter(cx, TN_F32, TN_SHAPE(others[i])), 0, "p.0");
        assert_false(tn_optimizer_load(new_optimizer(here, RULE_MOMENTUM), path));
        tn_test_error(cx, TN_ERR_FORMAT, words[i]);
    }
    unlink(path);
    tn_close(cx);
}

static void training_resumes_bit_for_bit(void **state) {
    (void)state;
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (int r = 0; r < RULE_COUNT; r++) {
            tn_test_note("%s, rule %d", tn_dtype_name(dtypes[d]), r);
            resume(dtypes[d], (rule)r);
        }
}

/* ---- clipping ---- */

static void clipping_bounds_the_norm(void **state) {
    (void)state;
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        trained t = start(dtypes[d], RULE_SGD, 5, 0);
        double square = 0;
        give_gradients(&t, 2);
        for (int i = 0; i < N_PARAMS; i++) {
            double *g = tn_test_doubles(tn_grad(t.p[i]));
            for (int64_t j = 0; j < sizes[i]; j++) square += g[j] * g[j];
            free(g);
        }
        tn_scope *scope = tn_scope_begin(t.cx);
        double measured = tn_item(tn_clip_grad_norm(t.params, INFINITY)), before = tn_item(tn_clip_grad_norm(t.params, 1));
        double after = tn_item(tn_clip_grad_norm(t.params, 2)), unchanged = tn_item(tn_clip_grad_norm(t.params, INFINITY));
        tn_scope_end(scope);
        TN_TEST_WANT(fabs(measured - sqrt(square)) <= 1e-12 * measured && before == measured, "%.17g and %.17g for %.17g", measured, before,
                     sqrt(square));
        TN_TEST_WANT(fabs(after - 1) < (dtypes[d] == TN_BF16 ? 1e-3 : 1e-5) && unchanged == after, "%g, then %g", after, unchanged);
        assert_null(tn_clip_grad_norm(t.params, -1));
        tn_test_error(t.cx, TN_ERR_ARGUMENT, "max_norm = -1");
        tn_close(t.cx);
    }
}

static void clipping_has_the_same_bits_for_any_threads(void **state) {
    (void)state;
    double norm[3];
    for (int threads = 1; threads <= 3; threads++) {
        trained t = start(TN_F32, RULE_SGD, 5, threads);
        give_gradients(&t, 2);
        norm[threads - 1] = tn_item(tn_clip_grad_norm(t.params, 1));
        tn_test_ok(t.cx);
        tn_close(t.cx);
    }
    assert_true(norm[0] == norm[1] && norm[0] == norm[2]);
}

/* ---- the rest ---- */

static void a_parameter_written_by_others_counts(void **state) {
    (void)state;
    trained t = start(TN_BF16, RULE_ADAMW, 5, 0);
    run_step(&t, 2);
    tn_fill(t.p[0], 2.5);
    tn_optimizer_set_lr(t.opt, 0);
    run_step(&t, 4);
    assert_true(tn_item_at(t.p[0], TN_SHAPE(4)) == 2.5);
    tn_test_ok(t.cx);
    tn_close(t.cx);
}

static void a_bf16_master_keeps_small_steps(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_params *params = tn_params_new(cx);
    tn_tensor *p = tn_params_add(params, tn_fill(tn_parameter(cx, TN_BF16, TN_SHAPE(1)), 1), 0, "p");
    tn_tensor *one = tn_full(cx, TN_BF16, TN_SHAPE(1), 1);
    tn_sgd *opt = tn_sgd_new(params, TN_SGD(.lr = 1e-4));
    for (int step = 0; step < 1000; step++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_backward(tn_matmul(p, one));
        tn_sgd_step(opt);
        tn_zero_grad(params);
        tn_scope_end(scope);
    }
    TN_TEST_WANT(fabs(tn_item(p) - 0.9) < 0.004, "1000 steps of 1e-4 from 1 led to %g", tn_item(p));
    tn_sgd_free(opt);
    tn_test_ok(cx);
    tn_close(cx);
}

static void state_is_counted_as_the_optimizers(void **state) {
    (void)state;
    trained t = start(TN_BF16, RULE_ADAMW, 5, 0);
    tn_memory_stats stats;
    tn_memory_stats_get(t.cx, &stats);
    assert_true(stats.category[TN_CATEGORY_OPTIMIZER].current == 0);
    run_step(&t, 2);
    tn_memory_stats_get(t.cx, &stats);
    int64_t elements = sizes[0] + sizes[1] + sizes[2];
    assert_true(stats.category[TN_CATEGORY_OPTIMIZER].current >= elements * 12);
    tn_optimizer_free(t.opt);
    tn_memory_stats_get(t.cx, &stats);
    assert_true(stats.category[TN_CATEGORY_OPTIMIZER].current == 0);
    tn_close(t.cx);
}

static void nothing_changes_while_an_error_stands(void **state) {
    (void)state;
    trained t = start(TN_F32, RULE_ADAMW, 5, 0);
    run_step(&t, 2);
    give_gradients(&t, 4);
    uint64_t version = tn_version_of(t.p[0]);
    tn_fail(t.cx, TN_ERR_ARGUMENT, "test", "an error");
    assert_false(tn_optimizer_step(t.opt) || tn_optimizer_set_lr(t.opt, 1) || tn_clip_grad_norm(t.params, 1));
    assert_true(tn_version_of(t.p[0]) == version && tn_optimizer_lr(t.opt) == LR);
    tn_test_error(t.cx, TN_ERR_ARGUMENT, "an error");
    assert_true(tn_optimizer_step(t.opt));
    tn_close(t.cx);
}

static void host_memory_running_out_leaves_parameters_alone(void **state) {
    (void)state;
    trained t = start(TN_F32, RULE_ADAMW, 5, 0);
    give_gradients(&t, 2);
    uint64_t version = tn_version_of(t.p[1]);
    tn_host_fail_after(1, true);
    assert_false(tn_optimizer_step(t.opt));
    tn_host_fail_after(0, false);
    tn_test_error(t.cx, TN_ERR_HOST_MEMORY, NULL);
    assert_true(tn_version_of(t.p[1]) == version);
    assert_true(tn_optimizer_step(t.opt));
    tn_test_ok(t.cx);
    tn_close(t.cx);
}

static void device_memory_running_out_leaves_parameters_alone(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_params *params = tn_params_new(cx);
    tn_tensor *p = tn_params_add(params, tn_fill(tn_parameter(cx, TN_F32, TN_SHAPE(1 << 22)), 1), 0, "p");
    tn_adamw *opt = tn_adamw_new(params, TN_ADAMW());
    give_gradient(p, 1);
    tn_memory_release_cache(cx);
    tn_memory_set_limit(cx, 1);
    uint64_t version = tn_version_of(p);
    assert_false(tn_adamw_step(opt));
    tn_test_error(cx, TN_ERR_MEMORY, "adamw");
    assert_true(tn_version_of(p) == version && tn_item_at(p, TN_SHAPE(7)) == 1);
    tn_memory_set_limit(cx, 0);
    assert_true(tn_adamw_step(opt));
    tn_test_ok(cx);
    tn_close(cx);
}

/* A prepared step takes learning rate and step count from the device's memory, and is the step that they say. */
static void prepared_steps_have_the_same_bits(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        trained plain = start(dtypes[i], RULE_ADAMW, 9, 0), prepared = start(dtypes[i], RULE_ADAMW, 9, 0);
        for (int step = 0; step < 6; step += 2) { /* with every gradient there */
            give_gradients(&plain, step);
            give_gradients(&prepared, step);
            tn_optimizer_set_lr(plain.opt, LR / (step + 1));
            tn_optimizer_set_lr(prepared.opt, LR / (step + 1));
            assert_true(tn_optimizer_step(plain.opt));
            assert_true(tn_optimizer_prepare(prepared.opt));
            assert_true(tn_optimizer_step(prepared.opt));
            tn_zero_grad(plain.opt);
            tn_zero_grad(prepared.opt);
        }
        for (int k = 0; k < N_PARAMS; k++) {
            double *wanted = tn_test_doubles(plain.p[k]), *got = tn_test_doubles(prepared.p[k]);
            tn_test_near(wanted, got, sizes[k], 0, 0, tn_dtype_name(dtypes[i]));
            free(wanted);
            free(got);
        }
        tn_close(plain.cx);
        tn_close(prepared.cx);
    }
    trained sgd = start(TN_F32, RULE_SGD, 9, 0);
    assert_false(tn_optimizer_prepare(sgd.opt));
    tn_test_error(sgd.cx, TN_ERR_UNSUPPORTED, "sgd");
    tn_close(sgd.cx);
}

static void bad_settings_are_refused(void **state) {
    (void)state;
    trained t = start(TN_F32, RULE_ADAMW, 5, 0);
    assert_null(tn_adamw_new(NULL, TN_ADAMW()));
    assert_null(tn_adamw_new(t.params, TN_ADAMW(.beta1 = 1)));
    tn_test_error(t.cx, TN_ERR_ARGUMENT, "beta1 = 1");
    assert_null(tn_adamw_new(t.params, TN_ADAMW(.lr = NAN)));
    tn_test_error(t.cx, TN_ERR_ARGUMENT, "lr = ");
    assert_null(tn_adamw_new(t.params, TN_ADAMW(.weight_decay = -1)));
    tn_test_error(t.cx, TN_ERR_ARGUMENT, "weight_decay = -1");
    assert_null(tn_sgd_new(t.params, TN_SGD(.nesterov = true)));
    tn_test_error(t.cx, TN_ERR_ARGUMENT, "nesterov");
    assert_false(tn_optimizer_group(t.opt, 0, INFINITY, 0));
    tn_test_error(t.cx, TN_ERR_ARGUMENT, "lr_scale = inf");
    assert_false(tn_optimizer_load(t.opt, "/nowhere/at-all.safetensors"));
    tn_test_error(t.cx, TN_ERR_IO, "nowhere");
    assert_false(tn_optimizer_step(NULL));
    tn_close(t.cx);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(steps_follow_the_formulas),
    cmocka_unit_test(training_resumes_bit_for_bit),
    cmocka_unit_test(foreign_state_is_refused),
    cmocka_unit_test(clipping_bounds_the_norm),
    cmocka_unit_test(clipping_has_the_same_bits_for_any_threads),
    cmocka_unit_test(a_parameter_written_by_others_counts),
    cmocka_unit_test(a_bf16_master_keeps_small_steps),
    cmocka_unit_test(state_is_counted_as_the_optimizers),
    cmocka_unit_test(nothing_changes_while_an_error_stands),
    cmocka_unit_test(host_memory_running_out_leaves_parameters_alone),
    cmocka_unit_test(device_memory_running_out_leaves_parameters_alone),
    cmocka_unit_test(prepared_steps_have_the_same_bits),
    cmocka_unit_test(bad_settings_are_refused),
};
TN_TEST_MAIN("optim", cases)
