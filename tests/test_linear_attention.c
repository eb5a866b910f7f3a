/* linear_attention against the formula written as a plain recurrence, and the forms of it that must agree: any chunk, token by token,
 * piece by piece, composed of nodes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "ops/registry.h"
#include "ops/sample_inputs.h"
#include "ops/tenon.h"

/* ---- the oracle: f64, one token after the other, nothing shared with the op but its attributes ---- */

typedef struct oracle {
    const tn_linear_attention_args *args;
    tn_tensor *const *in; /* q, k, v, g, theta, log_decay, state, cu_seqlens */
    double *value[8];     /* of them; NULL: absent */
    int64_t b, h, n, m, d, e, rows;
} oracle;

enum { Q, K, V, G, THETA, DECAY, STATE, SEQUENCES };

static int64_t at(const oracle *w, int input, int64_t b, int64_t t, int64_t h, int64_t j) {
    const tn_tensor *x = w->in[input];
    return w->args->layout == TN_BHND ? ((b * x->shape[1] + h) * x->shape[2] + t) * x->shape[3] + j
                                      : ((b * x->shape[1] + t) * x->shape[2] + h) * x->shape[3] + j;
}

static double pointwise(int act, double x) {
    switch (act) {
    case TN_RELU: return x > 0 ? x : 0;
    case TN_SIGMOID: return 1 / (1 + exp(-x));
    case TN_SILU: return x / (1 + exp(-x));
    case TN_GELU: return 0.5 * x * (1 + erf(x / sqrt(2)));
    case TN_TANH: return tanh(x);
    default: return x;
    }
}

static int act_of(const oracle *w, int input) {
    const int acts[] = { w->args->q_act, w->args->k_act, w->args->v_act, w->args->g_act };
    return acts[input];
}

static bool over_tokens(const oracle *w, int input) {
    const int64_t dims[] = { w->args->q_dim, w->args->k_dim, w->args->v_dim, w->args->g_dim };
    return dims[input] != -1 && dims[input] != 3;
}

/* act(x) at one element. */
static double activated(const oracle *w, int input, int64_t b, int64_t t, int64_t h, int64_t j) {
    const double *x = w->value[input];
    int64_t here = at(w, input, b, t, h, j);
    if (act_of(w, input) != TN_SOFTMAX) return pointwise(act_of(w, input), x[here]);
    bool tokens = over_tokens(w, input);
    int64_t width = w->in[input]->shape[3], count = tokens ? (input == Q ? w->n : w->m) : width;
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < count; i++) most = fmax(most, x[tokens ? at(w, input, b, i, h, j) : at(w, input, b, t, h, i)]);
    for (int64_t i = 0; i < count; i++) sum += exp(x[tokens ? at(w, input, b, i, h, j) : at(w, input, b, t, h, i)] - most);
    return exp(x[here] - most) / sum;
}

/* The angle of a feature: cut from concat(s_1 theta, .., s_k theta). `t` counts from the sequence's start. */
static double angle(const oracle *w, int64_t h, int64_t t, int64_t feature, int64_t offset) {
    const tn_linear_attention_args *args = w->args;
    const tn_tensor *theta = w->in[THETA];
    int axes = args->shape.axes ? args->shape.axes : 1;
    int64_t place = t - args->l, angles = args->kind == TN_COSINE ? w->d : w->d / 2;
    int64_t each = theta->shape[1] == 1 ? (angles + axes - 1) / axes : theta->shape[1], axis = feature / each;
    if (place < 0 || axis >= axes) return 0;
    int64_t inner = 1;
    for (int i = axes - 1; i > axis; i--) inner *= args->shape.size[i];
    int64_t coordinate = axes == 1 ? place + offset : place / inner % args->shape.size[axis];
    int64_t row = theta->shape[0] == 1 ? 0 : h, column = theta->shape[1] == 1 ? 0 : feature % each;
    return (double)coordinate * w->value[THETA][row * theta->shape[1] + column];
}

/* lrpe(act(x)) of a token, [rows]. */
static void encoded(const oracle *w, int input, int64_t b, int64_t t, int64_t h, int64_t start, double *out) {
    int64_t offset = input == Q ? w->args->q_offset : w->args->k_offset, half = w->d / 2;
    for (int64_t j = 0; j < w->d; j++) out[j] = activated(w, input, b, t, h, j);
    if (!w->in[THETA]) return;
    if (w->args->kind == TN_COSINE) {
        for (int64_t j = 0; j < w->d; j++) {
            double a = angle(w, h, t - start, j, offset), x = out[j];
            out[j] = x * cos(a);
            out[w->d + j] = x * sin(a);
        }
        return;
    }
    for (int64_t j = 0; j < half; j++) {
        double a = angle(w, h, t - start, j, offset), x = out[j], y = out[half + j];
        out[j] = x * cos(a) - y * sin(a);
        out[half + j] = x * sin(a) + y * cos(a);
    }
}

static double decay_of(const oracle *w, int64_t b, int64_t t, int64_t h) {
    if (!w->in[DECAY]) return 1;
    return exp(w->value[DECAY][w->in[DECAY]->axes == 1 ? h : (b * w->n + t) * w->h + h]);
}

static void take_key(const oracle *w, int64_t b, int64_t t, int64_t h, int64_t start, double decay, double *s) {
    double k[256], v[256];
    encoded(w, K, b, t, h, start, k);
    for (int64_t j = 0; j < w->e; j++) v[j] = activated(w, V, b, t, h, j);
    for (int64_t i = 0; i < w->rows; i++)
        for (int64_t j = 0; j < w->e; j++) s[i * w->e + j] = decay * s[i * w->e + j] + k[i] * v[j];
}

static void read_query(const oracle *w, int64_t b, int64_t t, int64_t h, int64_t start, const double *s, double *o) {
    double q[256];
    encoded(w, Q, b, t, h, start, q);
    for (int64_t j = 0; j < w->e; j++) {
        double sum = 0;
        for (int64_t i = 0; i < w->rows; i++) sum += w->args->scale * q[i] * s[i * w->e + j];
        /* o lies as g would; q's place gives b, t, h. */
        int64_t row = at(w, Q, b, t, h, 0) / w->d;
        o[row * w->e + j] = w->in[G] ? sum * activated(w, G, b, t, h, j) : sum;
    }
}

/* o [b,n,h,e] and the last states. */
static void run_oracle(const oracle *w, double *o, double *states) {
    int64_t sequences = w->in[SEQUENCES] ? w->in[SEQUENCES]->numel - 1 : w->b, numbers = w->rows * w->e;
    for (int64_t item = 0; item < sequences * w->h; item++) {
        int64_t sequence = item / w->h, h = item % w->h, b = w->in[SEQUENCES] ? 0 : sequence;
        int64_t first = w->in[SEQUENCES] ? (int64_t)w->value[SEQUENCES][sequence] : 0;
        int64_t keys = w->in[SEQUENCES] ? (int64_t)w->value[SEQUENCES][sequence + 1] : w->m;
        double *s = states + item * numbers;
        for (int64_t i = 0; i < numbers; i++) s[i] = w->in[STATE] ? w->value[STATE][item * numbers + i] : 0;
        for (int64_t t = first; t < keys; t++) {
            take_key(w, b, t, h, first, decay_of(w, b, t, h), s);
            if (w->args->causal) read_query(w, b, t, h, first, s, o);
        }
        for (int64_t t = 0; !w->args->causal && t < w->n; t++) read_query(w, b, t, h, 0, s, o);
    }
}

static oracle oracle_of(const tn_linear_attention_args *args, tn_tensor *const *in) {
    int token = args->layout == TN_BHND ? 2 : 1, head = 3 - token;
    oracle w = { .args = args,
                 .in = in,
                 .b = in[Q]->shape[0],
                 .h = in[Q]->shape[head],
                 .n = in[Q]->shape[token],
                 .m = in[K]->shape[token],
                 .d = in[Q]->shape[3],
                 .e = in[V]->shape[3] };
    w.rows = in[THETA] && args->kind == TN_COSINE ? 2 * w.d : w.d;
    for (int i = 0; i < 8; i++) w.value[i] = in[i] ? tn_test_doubles(in[i]) : NULL;
    return w;
}

static void compare_with_oracle(const tn_linear_attention_args *args, tn_tensor *const *in, tn_tensor *const *out) {
    oracle w = oracle_of(args, in);
    int64_t sequences = in[SEQUENCES] ? in[SEQUENCES]->numel - 1 : w.b;
    double *o = calloc((size_t)out[0]->numel + 1, sizeof *o), *s = calloc((size_t)(sequences * w.h * w.rows * w.e) + 1, sizeof *s);
    run_oracle(&w, o, s);
    double *got = tn_test_doubles(out[0]);
    tn_test_close(o, got, out[0]->numel, 1e-11, "o");
    free(got);
    if (out[1]) {
        got = tn_test_doubles(out[1]);
        tn_test_close(s, got, out[1]->numel, 1e-11, "state_out");
        free(got);
    }
    for (int i = 0; i < 8; i++) free(w.value[i]);
    free(o);
    free(s);
}

static tn_context *open_context(void) {
    const tn_op_def *op = tn_op_find("linear_attention");
    if (strcmp(tn_test_device(), "cuda") == 0 && !op->forward[TN_DEVICE_CUDA]) skip();
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 7 });
    tn_test_ok(cx);
    return cx;
}

static void test_every_sample_is_the_recurrence(void **unused) {
    (void)unused;
    const tn_op_def *op = tn_op_find("linear_attention");
    tn_context *cx = open_context();
    for (const tn_sample *sample = op->samples; sample->name; sample++) {
        tn_tensor *in[TN_OP_MAX_INPUTS], *out[TN_OP_MAX_OUTPUTS];
        tn_op_args_buffer args;
        int n_in;
        if (sample->error) continue;
        tn_test_note("sample %s", sample->name);
        tn_scope *scope = tn_scope_begin(cx);
        tn_sample_make(cx, op, sample, TN_F64, 11, false, in, &n_in, &args);
        tn_apply(op, in, n_in, &args, out);
        tn_test_ok(cx);
        compare_with_oracle((const tn_linear_attention_args *)(const void *)&args, in, out);
        tn_scope_end(scope);
    }
    tn_close(cx);
}

/* ---- forms that agree ---- */

static tn_tensor *leaf(tn_context *cx, tn_shape shape) { return tn_require_grad(tn_randn(cx, TN_F64, shape), true); }

static void want_equal(const tn_tensor *wanted, const tn_tensor *got, double tolerance, const char *what) {
    TN_TEST_WANT(wanted && got, "%s is missing", what);
    double *a = tn_test_doubles(wanted), *b = tn_test_doubles(got);
    TN_TEST_WANT(wanted->numel == got->numel, "%s has another size", what);
    tn_test_close(a, b, wanted->numel, tolerance, what);
    free(a);
    free(b);
}

/* Leaves of a call, whose gradients are kept from one form of it to be compared with the next. */
typedef struct leaves {
    tn_tensor *x[8], *first[8], *o;
    int n;
} leaves;

static void compare_forms(leaves *l, tn_tensor *o, tn_tensor *upstream, double tolerance, const char *what) {
    tn_backward_with(o, TN_BACKWARD(.grad = upstream));
    tn_test_ok(o->cx);
    if (l->o) want_equal(l->o, o, tolerance, what);
    else l->o = o;
    for (int i = 0; i < l->n; i++) {
        if (l->first[i]) want_equal(l->first[i], tn_grad(l->x[i]), tolerance, what);
        else l->first[i] = tn_clone(tn_grad(l->x[i]));
        tn_clear_grad(l->x[i]);
    }
}

static void test_any_chunk(void **unused) {
    (void)unused;
    tn_context *cx = open_context();
    tn_scope *scope = tn_scope_begin(cx);
    const int64_t chunks[] = { 0, 1, 2, 3, 8, 36, 37, 38, 1000 };
    leaves l = { .x = { leaf(cx, TN_SHAPE(2, 37, 3, 4)), leaf(cx, TN_SHAPE(2, 37, 3, 4)), leaf(cx, TN_SHAPE(2, 37, 3, 5)),
                        leaf(cx, TN_SHAPE(2, 37, 3, 5)), tn_require_grad(tn_rand(cx, TN_F64, TN_SHAPE(2, 37, 3), -1, 0), true),
                        leaf(cx, TN_SHAPE(2, 3, 4, 5)) },
                 .n = 6 };
    tn_tensor *upstream = tn_randn(cx, TN_F64, TN_SHAPE(2, 37, 3, 5));
    for (int i = 0; i < TN_COUNT(chunks); i++) {
        tn_test_note("chunk %lld", (long long)chunks[i]);
        tn_tensor *o = tn_linear_attention(
            l.x[0], l.x[1], l.x[2],
            TN_LINEAR_ATTENTION(.g = l.x[3], .log_decay = l.x[4], .state = l.x[5], .causal = true, .chunk = chunks[i], .g_act = TN_SILU));
        compare_forms(&l, o, upstream, 1e-11, "another chunk");
    }
    tn_scope_end(scope);
    tn_close(cx);
}

static void test_piece_by_piece(void **unused) {
    (void)unused;
    tn_context *cx = open_context();
    tn_scope *scope = tn_scope_begin(cx);
    leaves l = { .x = { leaf(cx, TN_SHAPE(2, 21, 3, 4)), leaf(cx, TN_SHAPE(2, 21, 3, 4)), leaf(cx, TN_SHAPE(2, 21, 3, 5)),
                        tn_require_grad(tn_rand(cx, TN_F64, TN_SHAPE(3), -1, 0), true), leaf(cx, TN_SHAPE(3, 2)) },
                 .n = 5 };
    tn_tensor *upstream = tn_randn(cx, TN_F64, TN_SHAPE(2, 21, 3, 5));
    tn_linear_attention_args args = TN_LINEAR_ATTENTION(.log_decay = l.x[3], .theta = l.x[4], .kind = TN_ROTATE, .causal = true);
    compare_forms(&l, tn_linear_attention(l.x[0], l.x[1], l.x[2], args), upstream, 0, "the whole");

    const int64_t lengths[] = { 8, 1, 12 };
    tn_tensor *part[3], *state = NULL;
    for (int64_t i = 0, start = 0; i < 3; start += lengths[i++]) {
        args.state = state;
        args.state_out = &state;
        args.q_offset = args.k_offset = start;
        part[i] = tn_linear_attention(tn_narrow(l.x[0], 1, start, lengths[i]), tn_narrow(l.x[1], 1, start, lengths[i]),
                                      tn_narrow(l.x[2], 1, start, lengths[i]), args);
    }
    compare_forms(&l, tn_concat(part, 3, 1), upstream, 1e-11, "in pieces");
    tn_scope_end(scope);
    tn_close(cx);
}

static void test_token_by_token(void **unused) {
    (void)unused;
    tn_context *cx = open_context();
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *q = tn_randn(cx, TN_F64, TN_SHAPE(2, 9, 3, 4)), *k = tn_randn(cx, TN_F64, TN_SHAPE(2, 9, 3, 4)),
              *v = tn_randn(cx, TN_F64, TN_SHAPE(2, 9, 3, 5)), *g = tn_randn(cx, TN_F64, TN_SHAPE(2, 9, 3, 5)),
              *theta = tn_randn(cx, TN_F64, TN_SHAPE(3, 4)), *decay = tn_rand(cx, TN_F64, TN_SHAPE(2, 9, 3), -1, 0),
              *state = tn_zeros(cx, TN_F64, TN_SHAPE(2, 3, 8, 5)), *last = NULL, *part[6];
    tn_linear_attention_args args = TN_LINEAR_ATTENTION(.g = g, .theta = theta, .kind = TN_COSINE, .log_decay = decay, .causal = true,
                                                        .q_act = TN_SILU, .g_act = TN_SIGMOID, .scale = 0.5, .state_out = &last);
    tn_tensor *whole = tn_linear_attention(q, k, v, args);
    args.state_out = NULL;
    args.state = state;
    const int64_t lengths[] = { 1, 1, 1, 4, 1, 1 };
    for (int64_t i = 0, start = 0; i < 6; start += lengths[i++]) {
        args.g = tn_narrow(g, 1, start, lengths[i]);
        args.log_decay = tn_narrow(decay, 1, start, lengths[i]);
        args.q_offset = args.k_offset = start;
        uint64_t version = tn_version_of(state);
        part[i] = tn_linear_attention_step(tn_narrow(q, 1, start, lengths[i]), tn_narrow(k, 1, start, lengths[i]),
                                           tn_narrow(v, 1, start, lengths[i]), args);
        TN_TEST_WANT(tn_version_of(state) > version, "a step did not count as a write");
    }
    tn_test_ok(cx);
    want_equal(whole, tn_concat(part, 6, 1), 1e-12, "o");
    want_equal(last, state, 1e-12, "the state");
    tn_scope_end(scope);
    tn_close(cx);
}

static void test_step_refuses(void **unused) {
    (void)unused;
    tn_context *cx = open_context();
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *q = leaf(cx, TN_SHAPE(1, 1, 2, 4)), *state = leaf(cx, TN_SHAPE(1, 2, 4, 4)), *o;
    assert_null(tn_linear_attention_step(q, q, q, TN_LINEAR_ATTENTION()));
    tn_test_error(cx, TN_ERR_ARGUMENT, "dense state");
    assert_null(tn_linear_attention_step(q, q, q, TN_LINEAR_ATTENTION(.state = tn_transpose(state, 2, 3))));
    tn_test_error(cx, TN_ERR_ARGUMENT, "dense state");
    assert_null(tn_linear_attention_step(q, q, q, TN_LINEAR_ATTENTION(.state = state, .state_out = &o)));
    tn_test_error(cx, TN_ERR_ARGUMENT, "one of the two");
    assert_null(o);
    assert_null(tn_linear_attention(q, q, q, TN_LINEAR_ATTENTION(.state = state, .causal = true, .in_place = true)));
    tn_test_error(cx, TN_ERR_GRAPH, "no gradient");

    /* What an earlier call saved is not overwritten in silence. */
    o = tn_linear_attention(q, q, q, TN_LINEAR_ATTENTION(.state = state, .causal = true));
    tn_linear_attention_step(q, q, q, TN_LINEAR_ATTENTION(.state = state));
    tn_test_ok(cx);
    tn_backward_with(o, TN_BACKWARD(.grad = tn_full(cx, TN_F64, tn_shape_of(o), 1)));
    tn_test_error(cx, TN_ERR_GRAPH, "overwritten");
    tn_scope_end(scope);
    tn_close(cx);
}

static void compare_with_lao(int layout, bool theta, bool state) {
    tn_context *cx = open_context();
    tn_scope *scope = tn_scope_begin(cx);
    int64_t rows = theta ? 8 : 4;
    bool head_first = layout == TN_BHND;
    leaves l = { .x = { leaf(cx, head_first ? TN_SHAPE(2, 3, 7, 4) : TN_SHAPE(2, 7, 3, 4)),
                        leaf(cx, head_first ? TN_SHAPE(2, 3, 9, 4) : TN_SHAPE(2, 9, 3, 4)),
                        leaf(cx, head_first ? TN_SHAPE(2, 3, 9, 5) : TN_SHAPE(2, 9, 3, 5)),
                        leaf(cx, head_first ? TN_SHAPE(2, 3, 7, 5) : TN_SHAPE(2, 7, 3, 5)) },
                 .n = 4 };
    tn_linear_attention_args args = TN_LINEAR_ATTENTION(.g = l.x[3], .q_act = TN_SOFTMAX, .q_dim = head_first ? 2 : 1, .k_act = TN_SILU,
                                                        .v_act = TN_TANH, .g_act = TN_SIGMOID, .scale = 2, .layout = layout);
    if (theta) l.x[l.n++] = args.theta = leaf(cx, TN_SHAPE(3, 4)), args.kind = TN_COSINE, args.q_offset = 3, args.l = 1;
    if (state) l.x[l.n++] = args.state = leaf(cx, TN_SHAPE(2, 3, rows, 5));
    tn_test_note("layout %d, theta %d, state %d", layout, theta, state);
    tn_tensor *upstream = tn_randn(cx, TN_F64, tn_shape_of(l.x[3])), *composed_state = NULL, *fused_state = NULL;
    args.state_out = &composed_state;
    compare_forms(&l, tn_lao(l.x[0], l.x[1], l.x[2], args), upstream, 0, "lao");
    args.state_out = &fused_state;
    compare_forms(&l, tn_linear_attention(l.x[0], l.x[1], l.x[2], args), upstream, 1e-11, "fused");
    want_equal(composed_state, fused_state, 1e-12, "the state");
    tn_scope_end(scope);
    tn_close(cx);
}

static void test_lao_agrees(void **unused) {
    (void)unused;
    for (int layout = TN_BNHD; layout <= TN_BHND; layout++)
        for (int choice = 0; choice < 4; choice++) compare_with_lao(layout, choice & 1, choice & 2);
}

static void test_lao_refuses_causal(void **unused) {
    (void)unused;
    tn_context *cx = open_context();
    tn_tensor *q = tn_randn(cx, TN_F64, TN_SHAPE(1, 3, 2, 4));
    assert_null(tn_lao(q, q, q, TN_LINEAR_ATTENTION(.causal = true)));
    tn_test_error(cx, TN_ERR_UNSUPPORTED, "non-causal");
    assert_null(tn_lao(NULL, q, q, TN_LINEAR_ATTENTION()));
    tn_test_ok(cx);
    tn_close(cx);
}

/* ---- causal, in the data's own precision: lengths about a chunk, any chunk, decay from none to e^-20 a token ---- */

typedef enum decay_fill { DECAY_NONE, DECAY_MILD, DECAY_STRONG, DECAY_MIXED, DECAY_ZERO, DECAY_CONSTANT } decay_fill;

/* Logarithms in f64, [b,n,h]: 0, down to -20, or runs of 0 with a few -20 between; or [h]. */
static tn_tensor *decays(tn_context *cx, decay_fill fill, int64_t n) {
    tn_shape shape = TN_SHAPE(1, n, 2);
    if (fill == DECAY_NONE) return NULL;
    if (fill == DECAY_ZERO) return tn_zeros(cx, TN_F64, shape);
    if (fill == DECAY_CONSTANT) return tn_rand(cx, TN_F64, TN_SHAPE(2), -0.2, -0.02);
    if (fill == DECAY_MILD) return tn_rand(cx, TN_F64, shape, -0.1, 0);
    if (fill == DECAY_STRONG) return tn_rand(cx, TN_F64, shape, -20, -10);
    tn_tensor *choice = tn_rand(cx, TN_F64, shape, 0, 1);
    return tn_where(tn_lt(choice, tn_full(cx, TN_F64, shape, 0.1)), tn_full(cx, TN_F64, shape, -20), tn_zeros(cx, TN_F64, shape));
}

enum { O, STATE_OUT, GRADIENTS, RESULTS = GRADIENTS + SEQUENCES };

/* The data of a call and what it gives: o, the last state and every gradient. */
typedef struct causal_case {
    tn_tensor *x[SEQUENCES], *upstream, *upstream_state; /* f64, of numbers that the dtype can hold; no theta */
} causal_case;

static causal_case make_causal(tn_context *cx, tn_dtype dtype, int64_t n, int64_t d, decay_fill fill, bool gate) {
    tn_shape data = TN_SHAPE(1, n, 2, d), state = TN_SHAPE(1, 2, d, d);
    causal_case w = { .x = { [DECAY] = decays(cx, fill, n), [STATE] = tn_randn(cx, TN_F64, state) } };
    for (int i = 0; i < (gate ? 4 : 3); i++) w.x[i] = tn_cast(tn_cast(tn_randn(cx, TN_F64, data), dtype), TN_F64);
    w.upstream = tn_cast(tn_cast(tn_randn(cx, TN_F64, data), dtype), TN_F64);
    /* Under strong decay the last token is all there is in state_out, and what log_decay's gradient has of it is rounding. */
    if (fill != DECAY_STRONG) w.upstream_state = tn_cast(tn_cast(tn_randn(cx, TN_F64, state), TN_F32), TN_F64);
    for (int i = DECAY; i <= STATE; i++)
        if (w.x[i]) w.x[i] = tn_cast(tn_cast(w.x[i], TN_F32), TN_F64);
    return w;
}

static void run_causal(const causal_case *w, tn_dtype dtype, int64_t chunk, double *result[RESULTS], int64_t numel[RESULTS]) {
    tn_tensor *x[SEQUENCES] = { 0 }, *state_out = NULL;
    for (int i = 0; i < SEQUENCES; i++)
        if (w->x[i]) x[i] = tn_require_grad(tn_clone(tn_cast(w->x[i], i >= DECAY && dtype == TN_BF16 ? TN_F32 : dtype)), true);
    tn_tensor *o = tn_linear_attention(x[Q], x[K], x[V],
                                       TN_LINEAR_ATTENTION(.g = x[G], .log_decay = x[DECAY], .state = x[STATE], .causal = true,
                                                           .scale = 0.25, .chunk = chunk, .state_out = &state_out));
    tn_tensor *loss = tn_sum(tn_mul(tn_cast(o, TN_F64), w->upstream));
    if (w->upstream_state) loss = tn_add(loss, tn_sum(tn_mul(tn_cast(state_out, TN_F64), w->upstream_state)));
    tn_backward(loss);
    tn_test_ok(o->cx);
    const tn_tensor *all[RESULTS] = { o, state_out };
    for (int i = 0; i < SEQUENCES; i++) all[GRADIENTS + i] = x[i] ? tn_grad(x[i]) : NULL;
    for (int i = 0; i < RESULTS; i++) {
        result[i] = all[i] ? tn_test_doubles(all[i]) : NULL;
        numel[i] = all[i] ? all[i]->numel : 0;
    }
}

/* Against f64; several chunks where asked. */
static void check_causal_in(tn_dtype dtype, int64_t n, int64_t d, decay_fill fill, bool gate, const int64_t *chunks, int n_chunks) {
    static const char *const what[RESULTS] = { "o", "state_out", "dq", "dk", "dv", "dg", "dtheta", "dlog_decay", "dstate" };
    tn_context *cx = open_context();
    tn_scope *scope = tn_scope_begin(cx);
    causal_case w = make_causal(cx, dtype, n, d, fill, gate);
    double *expected[RESULTS], *got[RESULTS];
    int64_t numel[RESULTS];
    run_causal(&w, TN_F64, 0, expected, numel);
    for (int c = 0; c < n_chunks; c++) {
        run_causal(&w, dtype, chunks[c], got, numel);
        for (int r = 0; r < RESULTS; r++) {
            if (!got[r]) continue;
            tn_test_note("%s, n %lld, d %lld, decay %d, gate %d, chunk %lld: %s", tn_dtype_name(dtype), (long long)n, (long long)d,
                         (int)fill, gate, (long long)chunks[c], what[r]);
            for (int64_t j = 0; j < numel[r]; j++) TN_TEST_WANT(isfinite(got[r][j]), "number %lld is %g", (long long)j, got[r][j]);
            tn_test_close(expected[r], got[r], numel[r], dtype == TN_F32 ? 3e-5 : 2.5e-2, what[r]);
            free(got[r]);
        }
    }
    for (int r = 0; r < RESULTS; r++) free(expected[r]);
    tn_scope_end(scope);
    tn_close(cx);
}
static void check_causal(int64_t n, int64_t d, decay_fill fill, bool gate, const int64_t *chunks, int n_chunks) {
    check_causal_in(TN_F32, n, d, fill, gate, chunks, n_chunks);
    check_causal_in(TN_BF16, n, d, fill, gate, chunks, n_chunks);
}

static const int64_t own_chunk[] = { 0 };

static void test_lengths_about_a_chunk(void **unused) {
    (void)unused;
    const int64_t lengths[] = { 1, 2, 63, 64, 65, 127, 128, 129 };
    for (int i = 0; i < TN_COUNT(lengths); i++) {
        check_causal(lengths[i], 128, DECAY_MILD, false, own_chunk, 1);
        check_causal(lengths[i], 64, DECAY_MILD, true, own_chunk, 1);
    }
    check_causal(65, 32, DECAY_NONE, false, own_chunk, 1);
}

static void test_any_decay(void **unused) {
    (void)unused;
    for (int fill = DECAY_NONE; fill <= DECAY_ZERO; fill++) {
        check_causal(200, 128, (decay_fill)fill, false, own_chunk, 1);
        check_causal(200, 32, (decay_fill)fill, true, own_chunk, 1);
    }
}

/* The gradient of a decay [h] adds up what cancels over all tokens, and bf16 products must not drown it. */
static void test_constant_decay_of_many_tokens(void **unused) {
    (void)unused;
    check_causal(150, 128, DECAY_CONSTANT, false, own_chunk, 1);
    check_causal_in(TN_BF16, 2200, 128, DECAY_CONSTANT, false, own_chunk, 1);
}

static void test_any_chunk_in_every_precision(void **unused) {
    (void)unused;
    const int64_t chunks[] = { 1, 16, 64, 100, 1000 };
    check_causal(150, 128, DECAY_MIXED, false, chunks, TN_COUNT(chunks));
    check_causal(150, 64, DECAY_MILD, true, chunks, TN_COUNT(chunks));
}

/* Beside what goes in and comes out nothing is kept for backward, whatever the chunks. */
static void test_nothing_kept_by_chunk(void **unused) {
    (void)unused;
    const int64_t lengths[] = { 64, 640, 640 }, chunks[] = { 0, 0, 16 };
    for (int i = 0; i < TN_COUNT(lengths); i++) {
        tn_context *cx = open_context();
        tn_scope *scope = tn_scope_begin(cx);
        tn_tensor *x[3], *decay = tn_require_grad(tn_rand(cx, TN_F32, TN_SHAPE(1, lengths[i], 2), -1, 0), true);
        for (int j = 0; j < 3; j++) x[j] = tn_require_grad(tn_randn(cx, TN_BF16, TN_SHAPE(1, lengths[i], 2, 64)), true);
        tn_memory_stats before, after;
        tn_memory_stats_get(cx, &before);
        tn_tensor *o = tn_linear_attention(x[0], x[1], x[2], TN_LINEAR_ATTENTION(.log_decay = decay, .causal = true, .chunk = chunks[i]));
        tn_test_ok(cx);
        tn_memory_stats_get(cx, &after);
        int64_t kept = after.all.requested.current - before.all.requested.current - o->numel * 2;
        TN_TEST_WANT(kept == 0, "%lld bytes are kept at n = %lld", (long long)kept, (long long)lengths[i]);
        tn_scope_end(scope);
        tn_close(cx);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_sample_is_the_recurrence),
        cmocka_unit_test(test_any_chunk),
        cmocka_unit_test(test_piece_by_piece),
        cmocka_unit_test(test_token_by_token),
        cmocka_unit_test(test_step_refuses),
        cmocka_unit_test(test_lao_agrees),
        cmocka_unit_test(test_lao_refuses_causal),
        cmocka_unit_test(test_lengths_about_a_chunk),
        cmocka_unit_test(test_any_decay),
        cmocka_unit_test(test_constant_decay_of_many_tokens),
        cmocka_unit_test(test_any_chunk_in_every_precision),
        cmocka_unit_test(test_nothing_kept_by_chunk),
    };
    return tn_test_main("test_linear_attention", tests, sizeof tests / sizeof *tests, argc, argv);
}
