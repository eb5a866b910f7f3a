/* Random graphs: the input is a program of leaves, op calls with any attributes, scopes, views, in-place writes and backward passes, run
 * in f64 and in f32 side by side. Both must agree on what is an error, and, where every op is smooth, on the gradients. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "autograd/autograd.h"
#include "fuzz_input.h"
#include "ops/registry.h"
#include "ops/sample_inputs.h"

#define MAX_VALUES 32
#define MAX_STEPS 48
#define MAX_ELEMENTS 2048
#define MAX_SCOPES 4

enum { WIDE, NARROW, BOTH }; /* the f64 graph and the f32 one */

typedef struct pair {
    tn_tensor *t[BOTH];
    int depth; /* of the scope it lives in */
    bool leaf;
} pair;

typedef struct program {
    tn_context *cx;
    fuzz_bytes bytes;
    pair values[MAX_VALUES];
    int n_values;
    tn_scope *scopes[MAX_SCOPES];
    int depth;
    bool smooth; /* so far nothing was done that tells f32 from f64 by more than rounding */
    bool over;   /* no more room */
} program;

static int take(program *p, int n) { return fuzz_byte(&p->bytes) % n; }

/* Keeps a pair that both graphs made; one that only one of them made is a disagreement. */
static void keep(program *p, tn_tensor *wide, tn_tensor *narrow, bool leaf) {
    if (p->smooth) fuzz_want((wide == NULL) == (narrow == NULL));
    bool usable = wide && narrow && wide->numel <= MAX_ELEMENTS && narrow->numel <= MAX_ELEMENTS;
    if (!usable || p->n_values == MAX_VALUES) return;
    p->values[p->n_values++] = (pair){ { wide, narrow }, p->depth, leaf };
}

/* ---- leaves ---- */

static tn_shape take_shape(program *p) {
    tn_shape shape = { .axes = take(p, 5) };
    for (int i = 0; i < shape.axes; i++) shape.size[i] = take(p, 6);
    return shape;
}

/* Numbers in (-1, 1) that f32 holds, or small integers that serve as indices. */
static void make_leaf(program *p) {
    tn_shape shape = take_shape(p);
    bool integers = take(p, 6) == 0, wanted = take(p, 4) != 0;
    double values[625];
    int64_t indices[625], n = 1;
    unsigned state = (unsigned)fuzz_byte(&p->bytes) + 1;
    for (int i = 0; i < shape.axes; i++) n *= shape.size[i];
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = (double)(int)(state >> 16 & 0xfff) / 2048 - 1;
        indices[i] = state >> 24 & 3;
    }
    if (integers) {
        tn_tensor *t = tn_from_data(p->cx, TN_I64, shape, indices);
        keep(p, t, t, false);
        return;
    }
    tn_tensor *wide = tn_from_data(p->cx, TN_F64, shape, values), *narrow = tn_zeros(p->cx, TN_F32, shape);
    tn_assign(narrow, wide);
    tn_require_grad(wide, wanted);
    tn_require_grad(narrow, wanted);
    keep(p, wide, narrow, wanted);
}

/* ---- calls ---- */

static bool is_smooth(const tn_op_def *op, const void *args) {
    static const char *const names[] = { "add",     "affine",     "concat", "contiguous", "copy",     "cos",     "cumsum",
                                         "expand",  "layer_norm", "linear", "matmul",     "mean",     "mul",     "permute",
                                         "reshape", "rms_norm",   "sin",    "slice",      "square",   "squeeze", "sub",
                                         "sum",     "swiglu",     "tanh",   "transpose",  "unsqueeze" };
    (void)args;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(op->name, names[i]) == 0) return true;
    return false;
}

static void take_text(program *p, const tn_attr_def *attr, char *text, size_t n_bytes) {
    static const char *const numbers[] = { "0", "1", "0.5", "-1", "1e-5", "2", "-0.25", "nan" };
    int n = 0, at = 0;
    switch (attr->type) {
    case TN_ATTR_BOOL: snprintf(text, n_bytes, "%s", take(p, 2) ? "true" : "false"); break;
    case TN_ATTR_INT: snprintf(text, n_bytes, "%d", take(p, 11) - 5); break;
    case TN_ATTR_FLOAT: snprintf(text, n_bytes, "%s", numbers[take(p, 8)]); break;
    case TN_ATTR_DTYPE: snprintf(text, n_bytes, "%s", tn_dtype_name((tn_dtype)take(p, TN_DTYPE_COUNT))); break;
    case TN_ATTR_ENUM:
        while (attr->names[n]) n++;
        snprintf(text, n_bytes, "%s", attr->names[take(p, n)]);
        break;
    case TN_ATTR_INT_LIST:
        text[0] = '\0';
        for (n = take(p, 5); n > 0; n--) at += snprintf(text + at, n_bytes - (size_t)at, "%s%d", at ? "," : "", take(p, 9) - 2);
        break;
    }
}

static void take_args(program *p, const tn_op_def *op, void *args) {
    char text[64], reason[256];
    uint64_t required = tn_op_default_args(op, args);
    for (int i = 0; i < op->n_attrs; i++) {
        if (!(required >> i & 1) && take(p, 3)) continue;
        take_text(p, &op->attrs[i], text, sizeof text);
        fuzz_want(tn_op_set_attr(op, args, op->attrs[i].name, text, reason, sizeof reason));
        if (strcmp(text, "nan") == 0) p->smooth = false;
    }
}

/* Which of the values an input takes, -1: it is left out. */
static int take_inputs(program *p, const tn_op_def *op, int chosen[TN_OP_MAX_INPUTS]) {
    int n = op->n_inputs;
    if (n && op->inputs[n - 1].flags & TN_INPUT_VARIADIC) n += take(p, 3);
    for (int i = 0; i < n; i++) {
        const tn_input_def *input = &op->inputs[i < op->n_inputs ? i : op->n_inputs - 1];
        bool absent = input->flags & TN_INPUT_OPTIONAL && take(p, 2);
        /* The newest values half of the time, so that graphs grow deep. */
        int pick = take(p, 2 * p->n_values);
        chosen[i] = absent ? -1 : pick < p->n_values ? pick : p->n_values - 1 - (pick - p->n_values) % 2 % p->n_values;
    }
    return n;
}

static void call(program *p, const tn_op_def *op) {
    tn_op_args_buffer args = { .bytes = "" };
    int chosen[TN_OP_MAX_INPUTS];
    tn_tensor *out[BOTH][TN_OP_MAX_OUTPUTS];
    tn_status status[BOTH];
    if (p->n_values == 0 || op->flags & TN_OP_RANDOM) return;
    take_args(p, op, &args);
    int n = take_inputs(p, op, chosen);
    if (!is_smooth(op, &args)) p->smooth = false;
    for (int side = 0; side < BOTH; side++) {
        tn_tensor *in[TN_OP_MAX_INPUTS];
        for (int i = 0; i < n; i++) in[i] = chosen[i] < 0 ? NULL : p->values[chosen[i]].t[side];
        tn_tensor *first = tn_apply(op, in, n, &args, out[side]);
        fuzz_want((first == NULL) == tn_failed(p->cx));
        status[side] = tn_error_status(p->cx);
        tn_clear_error(p->cx);
    }
    if (p->smooth) fuzz_want(status[WIDE] == status[NARROW]);
    if (status[WIDE] == TN_OK && status[NARROW] == TN_OK)
        for (int i = 0; i < op->n_outputs; i++) keep(p, out[WIDE][i], out[NARROW][i], false);
}

/* The newest value that has this shape and these dtypes, NULL if none has. */
static const pair *find_value(const program *p, const tn_tensor *wide, const tn_tensor *narrow) {
    for (int i = p->n_values - 1; i >= 0; i--) {
        const pair *value = &p->values[i];
        if (tn_same_shape(value->t[WIDE], wide) && value->t[WIDE]->dtype == wide->dtype && value->t[NARROW]->dtype == narrow->dtype)
            return value;
    }
    return NULL;
}

static bool is_small(const tn_sample *sample) {
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++) {
        int64_t n = 1;
        for (int axis = 0; sample->in[i].present && axis < sample->in[i].shape.axes; axis++) n *= sample->in[i].shape.size[axis];
        if (n > MAX_ELEMENTS) return false;
    }
    return true;
}

/* A call on inputs that fit, those of one of the op's samples, some of them replaced by values of the graph. */
static void call_sample(program *p, const tn_op_def *op) {
    tn_tensor *in[BOTH][TN_OP_MAX_INPUTS], *out[BOTH][TN_OP_MAX_OUTPUTS];
    tn_op_args_buffer args;
    int n_samples = 0, n = 0;
    while (op->samples[n_samples].name) n_samples++;
    const tn_sample *sample = &op->samples[take(p, n_samples)];
    unsigned dtypes = tn_sample_dtypes(p->cx, op, sample);
    if (op->flags & TN_OP_RANDOM || !is_small(sample) || !(dtypes & TN_MASK(TN_F64)) || !(dtypes & TN_MASK(TN_F32))) return;
    for (int side = 0; side < BOTH; side++)
        if (!tn_sample_make(p->cx, op, sample, side == WIDE ? TN_F64 : TN_F32, 1, true, in[side], &n, &args)) return;
    for (int i = 0; i < n; i++) {
        const pair *value = in[WIDE][i] && take(p, 2) ? find_value(p, in[WIDE][i], in[NARROW][i]) : NULL;
        for (int side = 0; value && side < BOTH; side++) in[side][i] = value->t[side];
    }
    p->smooth = false;
    tn_tensor *wide = tn_apply(op, in[WIDE], n, &args, out[WIDE]);
    fuzz_want((wide == NULL) == tn_failed(p->cx));
    tn_clear_error(p->cx);
    tn_tensor *narrow = tn_apply(op, in[NARROW], n, &args, out[NARROW]);
    fuzz_want((narrow == NULL) == tn_failed(p->cx));
    for (int i = 0; wide && narrow && i < op->n_outputs; i++) keep(p, out[WIDE][i], out[NARROW][i], false);
}

/* ---- scopes, writes, backward ---- */

static void begin_scope(program *p) {
    if (p->depth < MAX_SCOPES) p->scopes[p->depth++] = tn_scope_begin(p->cx);
}

/* Ends the innermost scope; the newest value is kept, sometimes. */
static void end_scope(program *p) {
    if (p->depth == 0) return;
    tn_scope *scope = p->scopes[--p->depth];
    bool keeps = take(p, 2) && p->n_values && p->values[p->n_values - 1].depth > p->depth;
    int n = 0;
    if (keeps) {
        pair *last = &p->values[p->n_values - 1];
        for (int side = 0; side < BOTH; side++)
            if (side == WIDE || last->t[NARROW] != last->t[WIDE]) tn_scope_keep(scope, last->t[side]);
        last->depth = p->depth;
    }
    tn_scope_end(scope);
    for (int i = 0; i < p->n_values; i++)
        if (p->values[i].depth <= p->depth) p->values[n++] = p->values[i];
    p->n_values = n;
}

static void write_in_place(program *p) {
    if (p->n_values == 0) return;
    pair *value = &p->values[take(p, p->n_values)];
    double number = (take(p, 9) - 4) / 4.0;
    for (int side = 0; side < BOTH; side++) tn_fill(value->t[side], number);
    tn_clear_error(p->cx);
}

static void go_backward(program *p, bool retain) {
    if (p->n_values == 0) return;
    pair *root = &p->values[p->n_values - 1 - take(p, 2) % p->n_values];
    bool done[BOTH];
    tn_status status[BOTH];
    if (root->t[WIDE] == root->t[NARROW]) return;
    for (int side = 0; side < BOTH; side++) {
        tn_tensor *ones = tn_full(p->cx, root->t[side]->dtype, tn_shape_of(root->t[side]), 1);
        done[side] = tn_backward_with(root->t[side], (tn_backward_args){ .grad = ones, .retain = retain });
        fuzz_want(done[side] != tn_failed(p->cx));
        status[side] = tn_error_status(p->cx);
        tn_clear_error(p->cx);
    }
    if (p->smooth) fuzz_want(status[WIDE] == status[NARROW]);
}

/* ---- comparing ---- */

/* The largest magnitude; infinite where something is not finite. */
static double largest(const double *values, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i])) return INFINITY;
        else if (fabs(values[i]) > most) most = fabs(values[i]);
    return most;
}

/* Reads t as doubles; false where it is too large or not finite. */
static bool read_values(const tn_tensor *t, double *values) {
    float narrow[MAX_ELEMENTS] = { 0 };
    if (t->dtype == TN_F64) fuzz_want(tn_to_data(t, values, tn_bytes(t)));
    else fuzz_want(tn_to_data(t, narrow, tn_bytes(t)));
    for (int64_t i = 0; t->dtype == TN_F32 && i < t->numel; i++) values[i] = narrow[i];
    return largest(values, t->numel) < 1e3;
}

/* f32 rounding of numbers below a thousand, some steps deep, against errors of a wrong formula or a wrong place. */
#define TOLERANCE 0.03

static void compare(const tn_tensor *wide, const tn_tensor *narrow) {
    static double a[MAX_ELEMENTS], b[MAX_ELEMENTS];
    fuzz_want(tn_same_shape(wide, narrow));
    if (wide->dtype != TN_F64 || narrow->dtype != TN_F32 || wide->numel > MAX_ELEMENTS) return;
    if (!read_values(wide, a) || !read_values(narrow, b)) return;
    double scale = fmax(1, largest(a, wide->numel));
    for (int64_t i = 0; i < wide->numel; i++) fuzz_want(fabs(a[i] - b[i]) <= TOLERANCE * scale);
}

static bool all_tame(const program *p) {
    static double values[MAX_ELEMENTS];
    for (int i = 0; i < p->n_values; i++) {
        const tn_tensor *t = p->values[i].t[WIDE];
        if (t->dtype == TN_F64 && !read_values(t, values)) return false;
    }
    return true;
}

static void check_results(const program *p) {
    if (!p->smooth || !all_tame(p)) return;
    for (int i = 0; i < p->n_values; i++) {
        const pair *value = &p->values[i];
        compare(value->t[WIDE], value->t[NARROW]);
        const tn_tensor *wide = value->leaf ? tn_grad(value->t[WIDE]) : NULL, *narrow = value->leaf ? tn_grad(value->t[NARROW]) : NULL;
        fuzz_want((wide == NULL) == (narrow == NULL));
        if (wide) compare(wide, narrow);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    program p = { .bytes = { data, n_bytes }, .smooth = true };
    p.cx = fuzz_begin();
    for (int steps = 0; p.bytes.n > 0 && steps < MAX_STEPS; steps++) {
        int what = fuzz_byte(&p.bytes);
        if (what < 40) make_leaf(&p);
        else if (what < 52) begin_scope(&p);
        else if (what < 62) end_scope(&p);
        else if (what < 68) write_in_place(&p);
        else if (what < 80) go_backward(&p, what % 2);
        else if (what < 110) call_sample(&p, tn_op_at(fuzz_byte(&p.bytes) % tn_op_count()));
        else call(&p, tn_op_at((what - 110 + 146 * take(&p, 2)) % tn_op_count()));
        tn_clear_error(p.cx);
    }
    go_backward(&p, false);
    check_results(&p);
    while (p.depth > 0) end_scope(&p);
    fuzz_end();
    return 0;
}
