/* Several contexts in several threads at once: the same numbers as one after the other, and nothing they share breaks. And one context in
 * two threads, which debug mode refuses. */
#include "harness.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "libtensor/memory_export.h"
#include "libtensor/safetensors.h"
#include "ops/tenon.h"
#include "outside_op.h"

enum { THREADS = 4, STEPS = 12, N_WEIGHTS = 7 * 8, ROUNDS = 8 };

typedef struct training {
    pthread_t thread;
    uint64_t seed;
    int threads;
    float weights[N_WEIGHTS];
    char error[256];
} training;

static tn_tensor *mixed(tn_tensor *x, tn_tensor *w) {
    tn_tensor *q = tn_reshape(tn_linear(x, w, NULL), TN_SHAPE(2, 9, 1, 7));
    tn_tensor *o = tn_linear_attention(q, q, q, TN_LINEAR_ATTENTION(.causal = true, .q_act = TN_SILU, .k_act = TN_SILU));
    tn_tensor *a = tn_attention(q, q, o, TN_ATTENTION(.causal = true));
    return tn_mean(tn_mul(a, a));
}

/* Opens, trains and closes. */
static void *train(void *user) {
    training *t = user;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = t->seed, .threads = t->threads });
    tn_params *params = tn_params_new(cx);
    tn_tensor *w = tn_params_add(params, tn_fill_xavier_uniform(tn_parameter(cx, TN_F32, TN_SHAPE(7, 8)), 1), 0, "w");
    tn_adamw *opt = tn_adamw_new(params, TN_ADAMW(.lr = 0.01));
    for (int step = 0; step < STEPS; step++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_label_push(cx, "step");
        tn_backward(mixed(tn_dropout(tn_randn(cx, TN_F32, TN_SHAPE(2, 9, 8)), TN_DROPOUT(.p = 0.1)), w));
        tn_adamw_step(opt);
        tn_zero_grad(opt);
        tn_label_pop(cx);
        tn_scope_end(scope);
    }
    tn_to_data(w, t->weights, sizeof t->weights);
    snprintf(t->error, sizeof t->error, "%s", tn_error(cx));
    tn_close(cx);
    return NULL;
}

static void same_as_alone(int threads) {
    training beside[THREADS], alone[THREADS];
    for (int i = 0; i < THREADS; i++) {
        beside[i] = alone[i] = (training){ .seed = (uint64_t)(i + 1), .threads = threads };
        TN_TEST_WANT(pthread_create(&beside[i].thread, NULL, train, &beside[i]) == 0, "no thread");
    }
    for (int i = 0; i < THREADS; i++) pthread_join(beside[i].thread, NULL);
    for (int i = 0; i < THREADS; i++) {
        train(&alone[i]);
        TN_TEST_WANT(!*beside[i].error && !*alone[i].error, "%s%s", beside[i].error, alone[i].error);
        assert_memory_equal(beside[i].weights, alone[i].weights, sizeof alone[i].weights);
        TN_TEST_WANT(i == 0 || memcmp(alone[i].weights, alone[0].weights, sizeof alone[i].weights) != 0, "seeds don't matter");
    }
}

/* The first case: what is loaded at first use is loaded by several at once. */
static void contexts_side_by_side(void **state) {
    (void)state;
    same_as_alone(1);
}

static void contexts_of_two_threads_each(void **state) {
    (void)state;
    same_as_alone(2);
}

/* Opening, failing, reporting and closing, again and again. */
static void *live(void *user) {
    char *error = user;
    for (int round = 0; round < ROUNDS && !*error; round++) {
        tn_context *cx = tn_open(&(tn_options){ .device = round % 2 ? "dry-run" : tn_test_device(), .debug = true, .threads = 1 });
        tn_tensor *t = tn_full(cx, TN_F32, TN_SHAPE(3, 4), 2), *wrong = tn_add(t, tn_full(cx, TN_F32, TN_SHAPE(5), 1));
        if (wrong || tn_error_status(cx) != TN_ERR_SHAPE || !strstr(tn_error(cx), "add"))
            snprintf(error, 256, "not refused: %s", tn_error(cx));
        tn_clear_error(cx);
        tn_memory_timeline_free(tn_memory_timeline_new(cx));
        if (tn_failed(cx) || !tn_op_find("add") || !tn_cuda_unavailable_reason()) snprintf(error, 256, "failed: %s", tn_error(cx));
        tn_close(cx);
    }
    return NULL;
}

static void opened_and_closed_side_by_side(void **state) {
    (void)state;
    pthread_t threads[THREADS];
    static char errors[THREADS][256];
    for (int i = 0; i < THREADS; i++) TN_TEST_WANT(pthread_create(&threads[i], NULL, live, errors[i]) == 0, "no thread");
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        TN_TEST_WANT(!*errors[i], "%s", errors[i]);
    }
}

/* ---- one context ---- */

static pthread_barrier_t inside, may_go_on;

static tn_status wait_in_forward(tn_op_call *call) {
    memcpy(call->out[0]->data, call->in[0]->data, tn_bytes(call->in[0]));
    pthread_barrier_wait(&inside);
    pthread_barrier_wait(&may_go_on);
    return TN_OK;
}

static void *call_op_that_waits(void *user) {
    tn_op_def waiting = tn_outside_op;
    tn_tensor *x = user, *out[1];
    const double factor = 1;
    waiting.forward[TN_DEVICE_CPU] = wait_in_forward;
    return tn_apply(&waiting, &x, 1, &factor, out);
}

/* While one thread is in an op, another asks for an op, a backward pass and a scope. */
static void one_context_in_two_threads(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu", .debug = true });
    pthread_t thread;
    void *o;
    pthread_barrier_init(&inside, NULL, 2);
    pthread_barrier_init(&may_go_on, NULL, 2);
    tn_tensor *x = tn_full(cx, TN_F32, TN_SHAPE(3), 2), *root = tn_sum(tn_require_grad(tn_full(cx, TN_F32, TN_SHAPE(3), 1), true));
    tn_test_ok(cx);
    pthread_create(&thread, NULL, call_op_that_waits, x);
    pthread_barrier_wait(&inside);
    assert_null(tn_scope_begin(cx));
    assert_false(tn_backward(root));
    assert_null(tn_add(x, x));
    assert_int_equal(tn_error_status(cx), TN_OK);
    pthread_barrier_wait(&may_go_on);
    pthread_join(thread, &o);
    assert_non_null(o);
    tn_test_error(cx, TN_ERR_ARGUMENT, "add: called while another thread uses the context");
    /* One after the other is fine. */
    assert_true(tn_backward(root));
    assert_non_null(tn_add(x, o));
    tn_test_ok(cx);
    tn_close(cx);
    pthread_barrier_destroy(&inside);
    pthread_barrier_destroy(&may_go_on);
}

#define CASE(function) \
    { #function, function, NULL, NULL, NULL }

static const struct CMUnitTest cases[] = { CASE(contexts_side_by_side), CASE(contexts_of_two_threads_each),
                                           CASE(opened_and_closed_side_by_side), CASE(one_context_in_two_threads) };

TN_TEST_MAIN("test_threads", cases)
