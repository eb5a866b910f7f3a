/* Blocks that run again in backward, or whose activations are put aside until then: the same gradients to the bit, less kept, the same
 * random numbers, and errors that leave nothing behind. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "libtensor/host_memory.h"
#include "ops/tenon.h"

enum { ROWS = 12, WIDTH = 16, LAYERS = 3 };

typedef struct layer {
    tn_tensor *up, *down, *norm;
} layer;

typedef struct model {
    tn_context *cx;
    layer layers[LAYERS];
    tn_tensor *x;
} model;

static model open_model(void) {
    model m = { .cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 5 }) };
    tn_test_ok(m.cx);
    for (int i = 0; i < LAYERS; i++) {
        layer *l = &m.layers[i];
        l->up = tn_fill_xavier_normal(tn_parameter(m.cx, TN_F32, TN_SHAPE(2 * WIDTH, WIDTH)), 1);
        l->down = tn_fill_xavier_normal(tn_parameter(m.cx, TN_F32, TN_SHAPE(WIDTH, 2 * WIDTH)), 1);
        l->norm = tn_fill(tn_parameter(m.cx, TN_F32, TN_SHAPE(WIDTH)), 1);
    }
    m.x = tn_require_grad(tn_randn(m.cx, TN_F32, TN_SHAPE(ROWS, WIDTH)), true);
    return m;
}

static tn_tensor *run_layer(void *user, tn_tensor *const *in, int n_in) {
    layer *l = user;
    (void)n_in;
    tn_tensor *x = tn_rms_norm(in[0], l->norm, NULL, TN_RMS_NORM());
    x = tn_linear(tn_dropout(tn_act(tn_linear(x, l->up, NULL), TN_ACT(.act = TN_GELU)), TN_DROPOUT(.p = 0.3)), l->down, NULL);
    return tn_add(in[0], x);
}

typedef enum manner { WHOLE, EACH_LAYER, NESTED, ASIDE } manner;

static tn_tensor *run_from(model *m, int first, manner how, tn_tensor *x);

typedef struct rest {
    model *model;
    int first;
} rest;

static tn_tensor *run_rest(void *user, tn_tensor *const *in, int n_in) {
    rest *r = user;
    (void)n_in;
    return run_from(r->model, r->first, EACH_LAYER, in[0]);
}

static tn_tensor *run_from(model *m, int first, manner how, tn_tensor *x) {
    static rest behind[LAYERS + 1];
    for (int i = first; i < LAYERS; i++) {
        if (how == NESTED && i == 1) {
            behind[i] = (rest){ m, i };
            return tn_checkpoint(m->cx, run_rest, &behind[i], &x, 1);
        }
        layer *l = &m->layers[i];
        if (how == ASIDE) x = tn_offload_block(m->cx, run_layer, l, &x, 1);
        else x = how == WHOLE ? run_layer(l, &x, 1) : tn_checkpoint(m->cx, run_layer, l, &x, 1);
    }
    return x;
}

enum { N_RESULTS = 3 * LAYERS + 2 };

typedef struct result {
    double *values[N_RESULTS];
    int64_t n[N_RESULTS], saved;
} result;

static void keep(result *r, int i, const tn_tensor *t) {
    TN_TEST_WANT(t, "result %d is missing", i);
    r->values[i] = tn_test_doubles(t);
    r->n[i] = t->numel;
}

static result run(manner how, bool input_wants) {
    model m = open_model();
    result r = { 0 };
    tn_saved_summary saved;
    tn_require_grad(m.x, input_wants);
    tn_scope *scope = tn_scope_begin(m.cx);
    tn_tensor *o = run_from(&m, 0, how, m.x);
    tn_saved_summary_get(m.cx, &saved);
    r.saved = saved.ledger_bytes;
    tn_tensor *later = tn_randn(m.cx, TN_F32, TN_SHAPE(ROWS, WIDTH)); /* drawn behind the blocks, whose second run must not move it */
    tn_backward(tn_sum(tn_mul(o, later)));
    tn_test_ok(m.cx);
    keep(&r, 0, tn_mul(o, tn_randn(m.cx, TN_F32, TN_SHAPE(ROWS, WIDTH))));
    if (input_wants) keep(&r, 1, tn_grad(m.x));
    for (int i = 0; i < LAYERS; i++) {
        keep(&r, 2 + 3 * i, tn_grad(m.layers[i].up));
        keep(&r, 3 + 3 * i, tn_grad(m.layers[i].down));
        keep(&r, 4 + 3 * i, tn_grad(m.layers[i].norm));
    }
    tn_scope_end(scope);
    tn_saved_summary_get(m.cx, &saved);
    TN_TEST_WANT(saved.n_entries == 0, "%lld tensors are saved behind backward", (long long)saved.n_entries);
    tn_close(m.cx);
    return r;
}

static void compare(result *a, result *b, const char *what) {
    for (int i = 0; i < N_RESULTS; i++) {
        TN_TEST_WANT(a->n[i] == b->n[i] && (!a->n[i] || !memcmp(a->values[i], b->values[i], (size_t)a->n[i] * sizeof(double))),
                     "%s: result %d differs", what, i);
        free(b->values[i]);
    }
}

static void test_same_gradients(void **unused) {
    (void)unused;
    for (int wants = 0; wants < 2; wants++) {
        result whole = run(WHOLE, wants), each = run(EACH_LAYER, wants), nested = run(NESTED, wants);
        TN_TEST_WANT(each.saved == LAYERS * ROWS * WIDTH * 4, "%lld bytes are saved, wanted each layer's input", (long long)each.saved);
        TN_TEST_WANT(nested.saved == 2 * ROWS * WIDTH * 4, "%lld bytes are saved, wanted two inputs", (long long)nested.saved);
        TN_TEST_WANT(each.saved * 4 < whole.saved, "%lld bytes are saved of %lld", (long long)each.saved, (long long)whole.saved);
        compare(&whole, &each, "each layer");
        compare(&whole, &nested, "layers within a block");
        for (int i = 0; i < N_RESULTS; i++) free(whole.values[i]);
    }
}

static int64_t saved_on_device(const model *m) {
    tn_memory_stats stats;
    tn_memory_stats_get(m->cx, &stats);
    return stats.category[TN_CATEGORY_SAVED].current;
}

static void test_put_aside(void **unused) {
    (void)unused;
    int64_t bytes[2];
    for (int wants = 0; wants < 2; wants++) {
        result whole = run(WHOLE, wants), aside = run(ASIDE, wants);
        TN_TEST_WANT(whole.saved == aside.saved, "%lld bytes are saved, wanted %lld", (long long)aside.saved, (long long)whole.saved);
        compare(&whole, &aside, "put aside");
        for (int i = 0; i < N_RESULTS; i++) free(whole.values[i]);
    }
    for (int aside = 0; aside < 2; aside++) {
        model m = open_model();
        tn_tensor *o = tn_sum(run_from(&m, 0, aside ? ASIDE : WHOLE, m.x));
        bytes[aside] = saved_on_device(&m);
        tn_saved_summary saved;
        tn_saved_summary_get(m.cx, &saved);
        TN_TEST_WANT(saved.pinned_extra_bytes >= 0, "%lld extra bytes", (long long)saved.pinned_extra_bytes);
        tn_backward_with(o, TN_BACKWARD(.retain = true));
        double *once = tn_test_doubles(tn_grad(m.x)), *twice;
        tn_backward(o);
        twice = tn_test_doubles(tn_grad(m.x));
        for (int i = 0; i < ROWS * WIDTH; i++) once[i] *= 2;
        tn_test_close(once, twice, ROWS * WIDTH, 1e-6, "twice");
        free(once);
        free(twice);
        tn_test_ok(m.cx);
        tn_close(m.cx);
    }
    TN_TEST_WANT(bytes[1] < bytes[0], "%lld bytes on the device, %lld otherwise", (long long)bytes[1], (long long)bytes[0]);
}

/* Without backward, and without host memory: nothing stays behind. */
static void test_put_aside_and_dropped(void **unused) {
    (void)unused;
    int64_t before = tn_host_live_blocks();
    bool done = false;
    for (int64_t n = 0; !done; n++) {
        model m = open_model();
        tn_scope *scope = tn_scope_begin(m.cx);
        if (n) tn_host_fail_after(n, true);
        tn_tensor *o = run_from(&m, 0, ASIDE, m.x);
        if (n % 2) tn_backward(tn_sum(o));
        tn_host_fail_after(0, false);
        done = n && !tn_failed(m.cx) && n % 2;
        TN_TEST_WANT(n < 2000 && (!tn_failed(m.cx) || tn_error_status(m.cx) == TN_ERR_HOST_MEMORY), "%s", tn_error(m.cx));
        tn_clear_error(m.cx);
        tn_scope_end(scope);
        TN_TEST_WANT(n || saved_on_device(&m) == 0, "%lld bytes are saved", (long long)saved_on_device(&m));
        tn_close(m.cx);
        TN_TEST_WANT(tn_host_live_blocks() == before, "%lld host blocks stay", (long long)(tn_host_live_blocks() - before));
    }
}

static tn_tensor *hand_on(void *user, tn_tensor *const *in, int n_in) {
    (void)user, (void)n_in;
    return tn_reshape(in[0], TN_SHAPE(WIDTH, ROWS));
}

/* A block that only looks at its input. */
static void test_view(void **unused) {
    (void)unused;
    model m = open_model();
    tn_tensor *o = tn_checkpoint(m.cx, hand_on, NULL, &m.x, 1);
    tn_backward(tn_sum(tn_mul(o, o)));
    tn_test_ok(m.cx);
    double *x = tn_test_doubles(m.x), *dx = tn_test_doubles(tn_grad(m.x));
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] *= 2;
    tn_test_close(x, dx, ROWS * WIDTH, 1e-6, "the gradient of a view");
    free(x);
    free(dx);
    tn_close(m.cx);
}

/* Kept for a second backward, the block runs a third time; else the second backward is an error. */
static void test_backward_twice(void **unused) {
    (void)unused;
    model m = open_model();
    tn_tensor *o = tn_sum(run_from(&m, 0, EACH_LAYER, m.x));
    tn_backward_with(o, TN_BACKWARD(.retain = true));
    double *once = tn_test_doubles(tn_grad(m.x)), *twice;
    tn_backward(o);
    tn_test_ok(m.cx);
    twice = tn_test_doubles(tn_grad(m.x));
    for (int i = 0; i < ROWS * WIDTH; i++) once[i] *= 2;
    tn_test_close(once, twice, ROWS * WIDTH, 1e-6, "twice");
    free(once);
    free(twice);
    TN_TEST_WANT(!tn_backward(o), "a third backward");
    tn_test_error(m.cx, TN_ERR_GRAPH, "second backward");
    tn_close(m.cx);
}

typedef struct moody {
    int runs, fails_at;
} moody;

static tn_tensor *run_moody(void *user, tn_tensor *const *in, int n_in) {
    moody *mood = user;
    (void)n_in;
    if (mood->runs++ == mood->fails_at) return tn_matmul(in[0], in[0]);
    return mood->fails_at < 0 && mood->runs == 2 ? tn_narrow(in[0], 0, 0, 1) : tn_mul(in[0], in[0]);
}

static void test_errors(void **unused) {
    (void)unused;
    model m = open_model();
    moody first = { .fails_at = 0 }, second = { .fails_at = 1 }, other = { .fails_at = -1 };
    TN_TEST_WANT(!tn_checkpoint(m.cx, run_moody, &first, &m.x, 1), "a block that fails");
    tn_test_error(m.cx, TN_ERR_SHAPE, "matmul");
    TN_TEST_WANT(!tn_backward(tn_sum(tn_checkpoint(m.cx, run_moody, &second, &m.x, 1))), "a block that fails when it runs again");
    tn_test_error(m.cx, TN_ERR_SHAPE, "matmul");
    TN_TEST_WANT(!tn_backward(tn_sum(tn_checkpoint(m.cx, run_moody, &other, &m.x, 1))), "a block that makes something else");
    tn_test_error(m.cx, TN_ERR_GRAPH, "run again");
    TN_TEST_WANT(!tn_checkpoint(m.cx, NULL, NULL, &m.x, 1), "no block");
    tn_test_error(m.cx, TN_ERR_ARGUMENT, "function");
    TN_TEST_WANT(!tn_offload_block(m.cx, NULL, NULL, &m.x, 1), "no block");
    tn_test_error(m.cx, TN_ERR_ARGUMENT, "function");
    first.runs = 0;
    TN_TEST_WANT(!tn_offload_block(m.cx, run_moody, &first, &m.x, 1), "a block that fails");
    tn_test_error(m.cx, TN_ERR_SHAPE, "matmul");
    tn_tensor *none = NULL;
    TN_TEST_WANT(!tn_checkpoint(m.cx, run_moody, &first, &none, 1) && !tn_failed(m.cx), "NULL in, NULL out");
    TN_TEST_WANT(tn_grad_enabled(m.cx), "the tape is on again");
    tn_close(m.cx);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_gradients), cmocka_unit_test(test_put_aside),      cmocka_unit_test(test_put_aside_and_dropped),
        cmocka_unit_test(test_view),           cmocka_unit_test(test_backward_twice), cmocka_unit_test(test_errors),
    };
    return tn_test_main("recompute", tests, sizeof tests / sizeof *tests, argc, argv);
}
