/* A training step captured as a CUDA graph: what it uses lies in a private pool, which stays as it is while the graph lives, so that the
 * graph may be replayed on new inputs while ordinary work goes on beside it. */
#include <stdlib.h>

#include "harness.h"
#include "libtensor/context_internal.h"
#include "ops/tenon.h"

enum { VOCABULARY = 50, TOKENS = 96, WIDTH = 64, CLASSES = 72, N_PARAMETERS = 5, N_RESULTS = N_PARAMETERS + 1 };

/* What the step reads and what it leaves. */
typedef struct step {
    tn_context *cx;
    tn_tensor *tokens, *targets;
    tn_tensor *table, *gain, *weight, *bias, *head;
    tn_tensor *loss;
} step;

static tn_tensor *leaf(tn_tensor *t) { return tn_require_grad(t, true); }

static void make_inputs(step *s, tn_context *cx, tn_dtype dtype) {
    *s = (step){ .cx = cx };
    s->tokens = tn_randint(cx, TN_I64, TN_SHAPE(TOKENS), 0, VOCABULARY);
    s->targets = tn_randint(cx, TN_I64, TN_SHAPE(TOKENS), 0, CLASSES);
    s->table = leaf(tn_randn(cx, dtype, TN_SHAPE(VOCABULARY, WIDTH)));
    s->gain = leaf(tn_rand(cx, dtype, TN_SHAPE(WIDTH), 0.5, 1.5));
    s->weight = leaf(tn_randn(cx, dtype, TN_SHAPE(WIDTH, WIDTH)));
    s->bias = leaf(tn_randn(cx, dtype, TN_SHAPE(WIDTH)));
    s->head = leaf(tn_randn(cx, dtype, TN_SHAPE(CLASSES, WIDTH)));
    tn_test_ok(cx);
}

static tn_tensor *parameter(const step *s, int i) { return (tn_tensor *[]){ s->table, s->gain, s->weight, s->bias, s->head }[i]; }

#ifdef TN_WITH_CUDA
#include <cuda_runtime_api.h>

static void run_step(step *s) {
    for (int i = 0; i < N_PARAMETERS; i++) tn_clear_grad(parameter(s, i));
    tn_tensor *x = tn_embedding(s->table, s->tokens);
    tn_tensor *h = tn_linear_with(tn_rms_norm(x, s->gain, NULL, TN_RMS_NORM()), s->weight, s->bias, TN_LINEAR(.act = TN_GELU));
    tn_tensor *scores = tn_matmul(h, tn_transpose(h, 0, 1));
    tn_tensor *mixed = tn_add(tn_matmul(tn_softmax(scores, -1), h), x);
    s->loss = tn_linear_cross_entropy(mixed, s->head, s->targets, TN_CROSS_ENTROPY());
    tn_backward(s->loss);
}

/* The loss and every gradient, on the host. */
static void read_results(const step *s, double *results[N_RESULTS]) {
    results[N_PARAMETERS] = tn_test_doubles(s->loss);
    for (int i = 0; i < N_PARAMETERS; i++) results[i] = tn_test_doubles(tn_grad(parameter(s, i)));
}

static void want_equal(const step *s, double *wanted[N_RESULTS], double *got[N_RESULTS]) {
    static const char *const names[N_RESULTS] = { "table", "gain", "weight", "bias", "head", "the loss" };
    for (int i = 0; i < N_RESULTS; i++) {
        int64_t n = i < N_PARAMETERS ? parameter(s, i)->numel : 1;
        for (int64_t k = 0; k < n; k++)
            TN_TEST_WANT(wanted[i][k] == got[i][k], "%s, element %lld: %.9g replayed, wanted %.9g", names[i], (long long)k, got[i][k],
                         wanted[i][k]);
        free(wanted[i]);
        free(got[i]);
    }
}

static void want_cuda(cudaError_t error, const char *call) {
    TN_TEST_WANT(error == cudaSuccess, "%s: %s", call, cudaGetErrorString(error));
}

/* The step once outside of the capture, so that modules are loaded, products planned and the pool filled, then captured. */
static cudaGraphExec_t capture(step *s, int *pool) {
    cudaStream_t stream = tn_native_stream(s->cx);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    assert_int_equal(tn_allocator_pool_begin(s->cx->allocator, pool), TN_OK);
    tn_scope *warm_up = tn_scope_begin(s->cx);
    run_step(s);
    tn_scope_end(warm_up);
    for (int i = 0; i < N_PARAMETERS; i++) tn_clear_grad(parameter(s, i));
    tn_test_ok(s->cx);
    want_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    run_step(s);
    want_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    tn_allocator_pool_end(s->cx->allocator);
    tn_test_ok(s->cx);
    want_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
    return executable;
}

/* New numbers in the same places. */
static void change_inputs(step *s, step *twin) {
    tn_assign(s->tokens, twin->tokens);
    tn_assign(s->targets, twin->targets);
    for (int i = 0; i < N_PARAMETERS; i++) tn_assign(parameter(s, i), parameter(twin, i));
    tn_test_ok(s->cx);
}

static void replay_and_compare(step *captured, cudaGraphExec_t executable) {
    double *wanted[N_RESULTS], *got[N_RESULTS];
    tn_context *cx = captured->cx;
    step twin;
    tn_scope *scope = tn_scope_begin(cx);
    make_inputs(&twin, cx, captured->table->dtype);
    change_inputs(captured, &twin);
    want_cuda(cudaGraphLaunch(executable, tn_native_stream(cx)), "cudaGraphLaunch");
    run_step(&twin); /* beside the graph, in ordinary memory */
    tn_test_ok(cx);
    read_results(&twin, wanted);
    read_results(captured, got);
    want_equal(captured, wanted, got);
    tn_scope_end(scope);
}

static void a_captured_step_is_replayed(tn_dtype dtype) {
    if (*tn_cuda_unavailable_reason()) skip();
    tn_context *cx = tn_open(&(tn_options){ .device = "cuda", .seed = 11 });
    tn_test_ok(cx);
    step captured;
    int pool = 0;
    make_inputs(&captured, cx, dtype);
    cudaGraphExec_t executable = capture(&captured, &pool);
    for (int round = 0; round < 3; round++) replay_and_compare(&captured, executable);
    tn_memory_release_cache(cx); /* takes nothing from the pool */
    replay_and_compare(&captured, executable);
    cudaGraphExecDestroy(executable);
    tn_synchronize(cx);
    tn_allocator_pool_release(cx->allocator, pool);
    tn_test_ok(cx);
    tn_close(cx);
}
#else
static void a_captured_step_is_replayed(tn_dtype dtype) {
    (void)dtype;
    skip();
}
#endif

static void a_captured_step_is_replayed_f32(void **state) {
    (void)state;
    a_captured_step_is_replayed(TN_F32);
}

static void a_captured_step_is_replayed_bf16(void **state) {
    (void)state;
    a_captured_step_is_replayed(TN_BF16);
}

/* ---- a whole training step: dropout, clipping and AdamW too, which read from the device what changes from step to step ---- */

typedef struct trainer {
    step s;
    tn_params *params;
    tn_adamw *optimizer;
    tn_tensor *place, *loss;
} trainer;

static trainer new_trainer(tn_dtype dtype) {
    trainer t = { 0 };
    tn_context *cx = tn_open(&(tn_options){ .device = "cuda", .seed = 12 });
    tn_test_ok(cx);
    make_inputs(&t.s, cx, dtype);
    t.params = tn_params_new(cx);
    for (int i = 0; i < N_PARAMETERS; i++) tn_params_add(t.params, parameter(&t.s, i), 0, "p%d", i);
    t.optimizer = tn_adamw_new(t.params, TN_ADAMW(.lr = 1e-2));
    t.place = tn_zeros(cx, TN_I64, TN_SCALAR);
    t.loss = tn_zeros(cx, TN_F64, TN_SCALAR);
    tn_test_ok(cx);
    return t;
}

static void train(trainer *t) {
    tn_context *cx = t->s.cx;
    tn_scope *scope = tn_scope_begin(cx);
    tn_rng_set(cx, (tn_rng_state){ 12, 0 });
    tn_rng_from(cx, t->place);
    tn_tensor *x = tn_dropout(tn_embedding(t->s.table, t->s.tokens), TN_DROPOUT(.p = 0.3));
    tn_tensor *h = tn_linear(tn_rms_norm(x, t->s.gain, NULL, TN_RMS_NORM()), t->s.weight, t->s.bias);
    tn_tensor *loss = tn_linear_cross_entropy(tn_dropout(h, TN_DROPOUT(.p = 0.1)), t->s.head, t->s.targets, TN_CROSS_ENTROPY());
    tn_backward(loss);
    tn_assign(t->loss, tn_detach(loss));
    tn_clip_grad_norm(t->params, 1.0);
    tn_adamw_step(t->optimizer);
    tn_zero_grad(t->params);
    tn_rng_from(cx, NULL);
    tn_scope_end(scope);
}

static double next_step(trainer *t, tn_graph *graph, int number) {
    int64_t place = 4096 * (int64_t)number;
    tn_set_data(t->place, &place, sizeof place);
    tn_adamw_set_lr(t->optimizer, 1e-2 / (number + 1));
    tn_optimizer_prepare(t->optimizer);
    if (graph) tn_graph_replay(graph);
    else train(t);
    double loss = tn_item(t->loss);
    tn_test_ok(t->s.cx);
    return loss;
}

static void a_training_step_is_replayed(void **state) {
    (void)state;
    if (*tn_cuda_unavailable_reason()) skip();
    static const tn_dtype dtypes[] = { TN_F32, TN_BF16 };
    for (int i = 0; i < 2; i++) {
        trainer plain = new_trainer(dtypes[i]), replayed = new_trainer(dtypes[i]);
        tn_graph *graph = NULL;
        for (int number = 0; number < 6; number++) {
            if (number == 2) {
                assert_true(tn_graph_begin(replayed.s.cx));
                train(&replayed);
                graph = tn_graph_end(replayed.s.cx);
                tn_test_ok(replayed.s.cx);
            }
            double wanted = next_step(&plain, NULL, number), got = next_step(&replayed, graph, number);
            TN_TEST_WANT(wanted == got, "%s, step %d: loss %.9g replayed, wanted %.9g", tn_dtype_name(dtypes[i]), number, got, wanted);
        }
        for (int k = 0; k < N_PARAMETERS; k++) {
            double *wanted = tn_test_doubles(parameter(&plain.s, k)), *got = tn_test_doubles(parameter(&replayed.s, k));
            tn_test_near(wanted, got, parameter(&plain.s, k)->numel, 0, 0, "a parameter after six steps");
            free(wanted);
            free(got);
        }
        tn_graph_free(graph);
        tn_close(plain.s.cx);
        tn_close(replayed.s.cx);
    }
}

static void a_recording_that_fails_is_given_up(void **state) {
    (void)state;
    if (*tn_cuda_unavailable_reason()) skip();
    tn_context *cx = tn_open(&(tn_options){ .device = "cuda", .seed = 12 });
    tn_tensor *x = tn_zeros(cx, TN_F32, TN_SHAPE(8));
    assert_true(tn_graph_begin(cx));
    tn_matmul(x, tn_zeros(cx, TN_F32, TN_SHAPE(9)));
    assert_null(tn_graph_end(cx));
    assert_true(tn_failed(cx));
    tn_clear_error(cx);
    assert_true(tn_item(tn_sum(x)) == 0);
    tn_test_ok(cx);
    tn_close(cx);
}

static void the_cpu_records_nothing(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    assert_false(tn_graph_possible(cx));
    assert_false(tn_graph_begin(cx));
    assert_int_equal(tn_error_status(cx), TN_ERR_UNSUPPORTED);
    assert_null(tn_graph_end(cx));
    tn_close(cx);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(a_captured_step_is_replayed_f32), cmocka_unit_test(a_captured_step_is_replayed_bf16),
    cmocka_unit_test(a_training_step_is_replayed),     cmocka_unit_test(a_recording_that_fails_is_given_up),
    cmocka_unit_test(the_cpu_records_nothing),
};
TN_TEST_MAIN("cuda_graph", cases)
