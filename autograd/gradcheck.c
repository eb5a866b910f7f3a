#include "gradcheck.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "tape_internal.h"

#define MAX_TENSORS 32

/* Philox-free and small: directions only need to be spread, and the same on every run. */
static double next_uniform(uint64_t *state) {
    *state += UINT64_C(0x9E3779B97F4A7C15);
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

typedef struct tn_check {
    tn_context *cx;
    tn_gradcheck_function function;
    void *user;
    tn_tensor *const *in;
    int n_in, n_out;
    tn_gradcheck_options options;
    tn_gradcheck_result *result;
    int64_t n_in_elements, n_out_elements;
    double *values;       /* inputs, all in a row */
    double *plus, *minus; /* outputs, all in a row */
    double *analytic;     /* full: out x in; projected: in */
} tn_check;

static bool checked(const tn_tensor *t) { return t && tn_requires_grad(t); }
static bool counts(const tn_tensor *o) { return o && o->dtype == TN_F64; }

static bool write_inputs(const tn_check *check, const double *values) {
    for (int i = 0; i < check->n_in; i++) {
        tn_tensor *t = check->in[i];
        if (!checked(t)) continue;
        if (!tn_set_data(t, values, tn_bytes(t))) return false;
        values += t->numel;
    }
    return true;
}

static bool read_inputs(const tn_check *check) {
    double *values = check->values;
    for (int i = 0; i < check->n_in; i++) {
        const tn_tensor *t = check->in[i];
        if (!checked(t)) continue;
        if (!tn_to_data(t, values, tn_bytes(t))) return false;
        values += t->numel;
    }
    return true;
}

/* One evaluation without a tape. */
static bool evaluate(const tn_check *check, double *to) {
    tn_context *cx = check->cx;
    tn_tensor *out[MAX_TENSORS] = { NULL };
    tn_scope *scope = tn_scope_begin(cx);
    tn_no_grad_begin(cx);
    bool fine = scope && check->function(check->user, check->in, check->n_in, out, check->n_out);
    for (int i = 0; fine && i < check->n_out; i++) {
        if (!counts(out[i])) continue;
        fine = tn_to_data(out[i], to, tn_bytes(out[i]));
        to += out[i]->numel;
    }
    tn_no_grad_end(cx);
    tn_scope_end(scope);
    return fine;
}

static bool read_gradients(const tn_check *check, double *to) {
    for (int i = 0; i < check->n_in; i++) {
        tn_tensor *t = check->in[i];
        if (!checked(t)) continue;
        tn_tensor *g = tn_grad(t);
        if (g) {
            if (!tn_to_data(g, to, tn_bytes(g))) return false;
        } else {
            memset(to, 0, tn_bytes(t));
        }
        to += t->numel;
        tn_clear_grad(t);
    }
    return true;
}

/* Backward with `upstream` (all outputs in a row) through a graph that is kept. */
static bool pull_back(const tn_check *check, tn_tensor *const *out, const double *upstream, double *to) {
    tn_tensor *roots[MAX_TENSORS], *grads[MAX_TENSORS];
    int n = 0;
    for (int i = 0; i < check->n_out; i++) {
        if (!counts(out[i])) continue;
        if (tn_requires_grad(out[i])) {
            roots[n] = out[i];
            grads[n] = tn_from_data(check->cx, TN_F64, tn_shape_of(out[i]), upstream);
            if (!grads[n++]) return false;
        }
        upstream += out[i]->numel;
    }
    if (n && !tn_backward_many(roots, grads, n, true)) return false;
    return read_gradients(check, to);
}

static void compare(tn_check *check, double analytic, double numeric, int64_t in_index, int64_t out_index) {
    tn_gradcheck_result *result = check->result;
    double share = fabs(analytic - numeric) / (check->options.atol + check->options.rtol * fabs(numeric));
    result->n_compared++;
    if (share <= result->worst_share) return;
    result->worst_share = isnan(share) ? INFINITY : share;
    result->analytic = analytic;
    result->numeric = numeric;
    result->input_index = in_index;
    result->output_index = out_index;
}

static bool compare_full(tn_check *check) {
    double eps = check->options.eps;
    for (int64_t i = 0; i < check->n_in_elements; i++) {
        double before = check->values[i];
        check->values[i] = before + eps;
        bool fine = write_inputs(check, check->values) && evaluate(check, check->plus);
        check->values[i] = before - eps;
        fine = fine && write_inputs(check, check->values) && evaluate(check, check->minus);
        check->values[i] = before;
        if (!fine) return false;
        for (int64_t j = 0; j < check->n_out_elements; j++)
            compare(check, check->analytic[j * check->n_in_elements + i], (check->plus[j] - check->minus[j]) / (2 * eps), i, j);
    }
    return write_inputs(check, check->values);
}

static bool analytic_full(tn_check *check, tn_tensor *const *out) {
    double *one = check->plus;
    memset(one, 0, (size_t)check->n_out_elements * sizeof *one);
    for (int64_t j = 0; j < check->n_out_elements; j++) {
        tn_scope *scope = tn_scope_begin(check->cx);
        one[j] = 1;
        bool fine = scope && pull_back(check, out, one, check->analytic + j * check->n_in_elements);
        one[j] = 0;
        tn_scope_end(scope);
        if (!fine) return false;
    }
    return true;
}

/* <v, J u> from two evaluations against <J'v, u> from one backward. Directions have entries in [-1, 1), so sums stay of order 1
 * relative to a step of eps / sqrt(elements). */
static bool compare_projected(tn_check *check, const double *v, uint64_t *state) {
    int64_t n = check->n_in_elements;
    double *u = check->analytic + n, *moved = u + n;
    double slope = 0, difference = 0, eps = check->options.eps;
    for (int64_t i = 0; i < n; i++) {
        u[i] = next_uniform(state);
        slope += check->analytic[i] * u[i];
        moved[i] = check->values[i] + eps * u[i];
    }
    if (!write_inputs(check, moved) || !evaluate(check, check->plus)) return false;
    for (int64_t i = 0; i < n; i++) moved[i] = check->values[i] - eps * u[i];
    if (!write_inputs(check, moved) || !evaluate(check, check->minus)) return false;
    for (int64_t j = 0; j < check->n_out_elements; j++) difference += v[j] * (check->plus[j] - check->minus[j]);
    compare(check, slope, difference / (2 * eps), -1, -1);
    return write_inputs(check, check->values);
}

static bool check_projected(tn_check *check) {
    uint64_t state = check->options.seed;
    double *v = check->analytic + 3 * check->n_in_elements;
    for (int round = 0; round < check->options.n_projections; round++) {
        tn_tensor *out[MAX_TENSORS] = { NULL };
        for (int64_t j = 0; j < check->n_out_elements; j++) v[j] = next_uniform(&state);
        tn_scope *scope = tn_scope_begin(check->cx);
        bool fine =
            scope && check->function(check->user, check->in, check->n_in, out, check->n_out) && pull_back(check, out, v, check->analytic);
        tn_scope_end(scope);
        if (!fine || !compare_projected(check, v, &state)) return false;
    }
    return true;
}

static bool check_full(tn_check *check) {
    tn_tensor *out[MAX_TENSORS] = { NULL };
    tn_scope *scope = tn_scope_begin(check->cx);
    bool fine = scope && check->function(check->user, check->in, check->n_in, out, check->n_out) && analytic_full(check, out);
    tn_scope_end(scope);
    return fine && compare_full(check);
}

/* How many elements go in and come out; also refuses what can't be checked. */
static bool measure(tn_check *check) {
    tn_context *cx = check->cx;
    for (int i = 0; i < check->n_in; i++) {
        const tn_tensor *t = check->in[i];
        if (!checked(t)) continue;
        if (t->dtype != TN_F64) {
            tn_fail(cx, TN_ERR_DTYPE, "tn_gradcheck", "input %d is %s, wanted f64", i, tn_dtype_name(t->dtype));
            return false;
        }
        tn_clear_grad(check->in[i]);
        check->n_in_elements += t->numel;
    }
    tn_tensor *out[MAX_TENSORS] = { NULL };
    tn_scope *scope = tn_scope_begin(cx);
    tn_no_grad_begin(cx);
    bool fine = scope && check->function(check->user, check->in, check->n_in, out, check->n_out);
    for (int i = 0; fine && i < check->n_out; i++)
        if (counts(out[i])) check->n_out_elements += out[i]->numel;
    tn_no_grad_end(cx);
    tn_scope_end(scope);
    if (!fine) tn_fail(cx, TN_ERR_ARGUMENT, "tn_gradcheck", "the function itself failed");
    return fine;
}

static bool run(tn_check *check, bool full) {
    size_t in = (size_t)check->n_in_elements, out = (size_t)check->n_out_elements;
    size_t n_analytic = full ? in * out : 3 * in + out;
    double *memory = tn_host_alloc((in + 2 * out + n_analytic + 1) * sizeof *memory);
    if (!memory) return tn_fail(check->cx, TN_ERR_HOST_MEMORY, "tn_gradcheck", "the host has no memory left");
    check->values = memory;
    check->plus = memory + in;
    check->minus = check->plus + out;
    check->analytic = check->minus + out;
    bool fine = read_inputs(check) && (full ? check_full(check) : check_projected(check));
    tn_host_free(memory);
    return fine;
}

/* From a position among all inputs (or outputs) to the tensor and the position in it. */
static void locate(tn_check *check) {
    tn_gradcheck_result *result = check->result;
    for (int i = 0; i < check->n_in && result->input_index >= 0; i++) {
        if (!checked(check->in[i])) continue;
        result->input = i;
        if (result->input_index < check->in[i]->numel) break;
        result->input_index -= check->in[i]->numel;
    }
}

bool tn_gradcheck(tn_gradcheck_function function, void *user, tn_tensor *const *in, int n_in, int n_out, tn_gradcheck_options options,
                  tn_gradcheck_result *result) {
    const int64_t default_full_limit = 20000;
    const int default_projections = 8;
    if (!result) return false;
    *result = (tn_gradcheck_result){ .input_index = -1, .output_index = -1 };
    tn_context *cx = NULL;
    for (int i = 0; i < n_in && !cx; i++) cx = in[i] ? in[i]->cx : NULL;
    if (!tn_ready(cx)) return false;
    if (!function) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_gradcheck", "no function given");
    if (n_out < 1 || n_out > MAX_TENSORS)
        return tn_fail(cx, TN_ERR_ARGUMENT, "tn_gradcheck", "%d outputs, wanted 1 to %d", n_out, MAX_TENSORS);
    if (options.full_limit == 0) options.full_limit = default_full_limit;
    if (options.n_projections == 0) options.n_projections = default_projections;
    tn_check check = {
        .cx = cx, .function = function, .user = user, .in = in, .n_in = n_in, .n_out = n_out, .options = options, .result = result
    };
    if (!measure(&check)) return false;
    int64_t pairs;
    result->full = !__builtin_mul_overflow(check.n_in_elements, check.n_out_elements, &pairs) && pairs <= options.full_limit;
    /* Nothing to compare: no matter how many inputs there are. */
    if (check.n_in_elements > 0 && check.n_out_elements > 0 && !run(&check, result->full)) return false;
    locate(&check);
    result->passed = result->worst_share <= 1;
    return tn_ready(cx);
}
