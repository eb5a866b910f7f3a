/* The gate: no time is taken of a wrong result. The same numbers go through the same column on the CPU in f64. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_run.h"

#define GATE_ROWS 512 /* unless the table says otherwise */
#define N_SAMPLES 3   /* slices compared: the first, the last and one between */
#define LONG_AXIS 256 /* an axis longer than this is compared SLICE_LENGTH places at a time, shorter ones place by place */
#define SLICE_LENGTH 8

/* A part of the work: places start .. start + length - 1 of each slice dimension; length 0: the whole of it. */
typedef struct gate_piece {
    int64_t start[BENCH_SLICE_DIMS], length[BENCH_SLICE_DIMS], size[BENCH_SLICE_DIMS];
} gate_piece;

/* The part of t that belongs to the piece, sharing its storage. By the tensors' own means: the ops are what is in question. */
static tn_tensor *part_of(tn_tensor *t, const int *slice, const gate_piece *piece) {
    if (!t) return NULL;
    tn_shape shape = tn_shape_of(t);
    int64_t offset = 0;
    for (int s = 0; piece && s < BENCH_SLICE_DIMS; s++)
        if (slice[s] && piece->length[s]) {
            shape.size[slice[s] - 1] = piece->length[s];
            offset += piece->start[s] * t->stride[slice[s] - 1];
        }
    return tn_alias(t, shape, t->stride, offset);
}

/* Does every dimension that is cut appear in the tensor? If not, its gradient is a sum over what was left out. */
static bool cut_by_all(const int *slice, const gate_piece *piece) {
    for (int s = 0; piece && s < BENCH_SLICE_DIMS; s++)
        if (piece->length[s] && !slice[s]) return false;
    return true;
}

/* The numbers of a tensor on the host: floats as f64, integers as they are. NULL with an error on its context. Freed by the caller. */
static void *read_numbers(tn_tensor *t) {
    if (!t) return NULL;
    tn_context *cx = t->cx;
    tn_scope *scope = tn_scope_begin(cx);
    tn_no_grad_begin(cx);
    tn_tensor *wide = tn_dtype_is_float(t->dtype) ? tn_assign(tn_empty(cx, TN_F64, tn_shape_of(t)), t) : t;
    void *host = wide ? malloc(tn_bytes(wide) + 1) : NULL;
    if (wide && !host) tn_fail(cx, TN_ERR_HOST_MEMORY, "bench_gate", "the host has no memory left");
    if (host && !tn_to_data(wide, host, tn_bytes(wide))) {
        free(host);
        host = NULL;
    }
    tn_no_grad_end(cx);
    tn_scope_end(scope);
    return host;
}

/* t's part, in f64, on the reference context. */
static tn_tensor *to_reference(bench_run *run, tn_tensor *t, const int *slice, const gate_piece *piece) {
    tn_scope *scope = tn_scope_begin(run->cx);
    tn_no_grad_begin(run->cx);
    tn_tensor *part = part_of(t, slice, piece), *copy = NULL;
    void *numbers = read_numbers(part);
    if (numbers) copy = tn_from_data(run->reference, tn_dtype_is_float(part->dtype) ? TN_F64 : part->dtype, tn_shape_of(part), numbers);
    free(numbers);
    tn_no_grad_end(run->cx);
    tn_scope_end(scope);
    return copy;
}

static bool make_reference_set(bench_run *run, const bench_cell *cell, const bench_set *set, const gate_piece *piece,
                               bench_set *reference) {
    memset(reference, 0, sizeof *reference);
    reference->cell = cell;
    reference->cx = run->reference;
    reference->spec = set->spec;
    for (int i = 0; i < set->spec.n; i++) {
        if (!set->in[i]) continue;
        reference->in[i] = to_reference(run, set->in[i], set->spec.in[i].slice, piece);
        if (set->spec.in[i].gradient) tn_require_grad(reference->in[i], true);
    }
    return !tn_failed(run->cx) && !tn_failed(run->reference);
}

/* ---- comparing ---- */

static double tolerance_of(tn_dtype dtype) { return dtype == TN_F64 ? 1e-9 : dtype == TN_F32 ? 3e-5 : 2.5e-2; }

/* Relative L2 distance of n numbers, the first scaled. */
static double distance(const double *got, double scale, const double *wanted, int64_t n) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = got[i] * scale - wanted[i];
        error += d * d;
        norm += wanted[i] * wanted[i];
    }
    return norm > 0 ? sqrt(error / norm) : sqrt(error);
}

typedef struct gate_comparison {
    bench_run *run;
    const bench_cell *cell;
    const gate_piece *piece; /* NULL: whole */
    char *why;
    size_t n_bytes;
} gate_comparison;

/* Is the part of `got` the whole of `wanted`? NaN is never near; integers must be equal. */
static bool near(const gate_comparison *c, tn_tensor *got, const int *slice, double scale, tn_tensor *wanted, const char *name) {
    if (!got || !wanted) return true; /* an error stands on a context */
    tn_scope *scope = tn_scope_begin(c->run->cx);
    tn_no_grad_begin(c->run->cx);
    tn_tensor *part = part_of(got, slice, c->piece);
    double *mine = read_numbers(part), *theirs = read_numbers(wanted);
    bool fine = true;
    if (mine && theirs && part->numel == wanted->numel && !tn_dtype_is_float(got->dtype)) {
        fine = memcmp(mine, theirs, tn_bytes(wanted)) == 0;
        if (!fine) snprintf(c->why, c->n_bytes, "%s is not the CPU's", name);
    } else if (mine && theirs) {
        bool same_size = part->numel == wanted->numel;
        double error = same_size ? distance(mine, scale, theirs, wanted->numel) : INFINITY;
        fine = error <= tolerance_of(c->cell->dtype);
        if (!fine)
            snprintf(c->why, c->n_bytes, "%s is off by %.3g (relative L2, wanted <= %.1g) from the CPU's f64, %s", name, error,
                     tolerance_of(c->cell->dtype), c->piece ? "in a slice" : "compared whole");
    }
    free(mine);
    free(theirs);
    tn_no_grad_end(c->run->cx);
    tn_scope_end(scope);
    return fine;
}

static bool gradients_near(const gate_comparison *c, const bench_set *set, const bench_set *reference) {
    bool fine = true;
    double scale = c->piece && set->spec.mean ? (double)c->piece->size[0] / (double)c->piece->length[0] : 1;
    for (int i = 0; fine && i < set->spec.n; i++) {
        const bench_input *input = &set->spec.in[i];
        char name[64];
        if (!input->gradient || !cut_by_all(input->slice, c->piece)) continue;
        snprintf(name, sizeof name, "the gradient of input %d", i);
        fine = near(c, tn_grad(set->in[i]), input->slice, scale, tn_grad(reference->in[i]), name);
    }
    return fine;
}

/* An error of the CPU's run is told as one of the cell. */
static void pass_error_on(bench_run *run) {
    if (!tn_failed(run->reference)) return;
    if (!tn_failed(run->cx))
        tn_fail(run->cx, tn_error_status(run->reference), "bench_gate", "the CPU's f64 run: %s", tn_error(run->reference));
    tn_clear_error(run->reference);
}

/* What the device made of the set: o, and the gradients in the leaves. */
typedef struct gate_result {
    tn_tensor *out, *upstream;
} gate_result;

static gate_result run_on_device(const bench_cell *cell, bench_set *set) {
    gate_result result = { .out = bench_set_forward(set) };
    if (bench_is_backward(cell->kind)) {
        bench_set_clear_grads(set);
        result.upstream = bench_upstream(result.out);
        tn_backward_with(result.out, TN_BACKWARD(.grad = result.upstream));
    }
    return result;
}

static bool compare(const gate_comparison *c, bench_set *set, const gate_result *result, bench_set *reference) {
    const bench_inputs *spec = &set->spec;
    tn_tensor *out = bench_set_forward(reference);
    bool fine = !out || !cut_by_all(spec->out_slice, c->piece) || near(c, result->out, spec->out_slice, 1, out, "the output");
    if (result->upstream) {
        tn_tensor *upstream = to_reference(c->run, result->upstream, spec->out_slice, c->piece);
        if (!tn_failed(c->run->cx) && tn_backward_with(out, TN_BACKWARD(.grad = upstream)) && fine)
            fine = gradients_near(c, set, reference);
    }
    return fine;
}

/* ---- whole ---- */

static bool gate_whole(gate_comparison *c) {
    bench_run *run = c->run;
    tn_scope *scope = tn_scope_begin(run->cx), *reference_scope = tn_scope_begin(run->reference);
    bench_set set, reference = { .cell = c->cell };
    bool fine = true;
    /* The reference takes the numbers before open has run, since open may change them. */
    if (bench_set_make(&set, run->cx, c->cell, NULL) && make_reference_set(run, c->cell, &set, NULL, &reference) && bench_set_open(&set) &&
        bench_set_open(&reference)) {
        gate_result result = run_on_device(c->cell, &set);
        if (!tn_failed(run->cx)) fine = compare(c, &set, &result, &reference);
    }
    bench_set_close(&set);
    bench_set_close(&reference);
    pass_error_on(run);
    tn_scope_end(reference_scope);
    tn_scope_end(scope);
    return fine;
}

/* ---- slices ---- */

static int64_t axis_size(const bench_inputs *spec, int s) {
    for (int i = 0; i < spec->n; i++)
        if (spec->in[i].slice[s]) return spec->in[i].shape.size[spec->in[i].slice[s] - 1];
    return 0;
}

static uint64_t next_random(bench_run *run) {
    run->random ^= run->random << 13;
    run->random ^= run->random >> 7;
    run->random ^= run->random << 17;
    return run->random;
}

/* The sample-th piece; false where the cell can't be taken apart. */
static bool choose_piece(bench_run *run, const bench_inputs *spec, int sample, gate_piece *piece) {
    bool cut = false;
    for (int s = 0; s < BENCH_SLICE_DIMS; s++) {
        int64_t size = axis_size(spec, s), length = size > LONG_AXIS ? SLICE_LENGTH : size > 0 ? 1 : 0;
        int64_t last = size - length, between = last > 0 ? (int64_t)(next_random(run) % (uint64_t)(last + 1)) : 0;
        piece->size[s] = size;
        piece->length[s] = length;
        piece->start[s] = sample == 0 ? 0 : sample == 1 ? last : between;
        cut = cut || length > 0;
    }
    return cut;
}

static bool gate_slices(const gate_comparison *of_whole, bench_set *set) {
    bench_run *run = of_whole->run;
    tn_scope *scope = tn_scope_begin(run->cx);
    gate_piece piece;
    gate_comparison c = *of_whole;
    c.piece = &piece;
    bool fine = true;
    if (choose_piece(run, &set->spec, 0, &piece)) {
        gate_result result = run_on_device(c.cell, set);
        for (int sample = 0; fine && sample < N_SAMPLES && !tn_failed(run->cx); sample++) {
            bench_set reference = { .cell = c.cell };
            choose_piece(run, &set->spec, sample, &piece);
            tn_scope *reference_scope = tn_scope_begin(run->reference);
            if (make_reference_set(run, c.cell, set, &piece, &reference) && bench_set_open(&reference))
                fine = compare(&c, set, &result, &reference);
            bench_set_close(&reference);
            pass_error_on(run);
            tn_scope_end(reference_scope);
        }
        bench_set_clear_grads(set);
    }
    tn_scope_end(scope);
    return fine;
}

bool bench_gate(bench_run *run, const bench_cell *cell, bench_set *timed, char *why, size_t n_bytes) {
    int64_t rows = cell->table->gate_rows ? cell->table->gate_rows : GATE_ROWS;
    uint32_t bit = UINT32_C(1) << (cell->column - cell->table->columns);
    bench_cell small = *cell;
    gate_comparison comparison = { .run = run, .cell = &small, .why = why, .n_bytes = n_bytes };
    if (small.n > rows) small.n = rows;
    if (cell->n <= rows || !(run->gated & bit)) {
        if (!gate_whole(&comparison)) return false;
        if (cell->n >= rows && !tn_failed(run->cx)) run->gated |= bit;
    }
    if (tn_failed(run->cx) || cell->n <= rows || cell->kind == BENCH_SPEED_STEP) return true;
    comparison.cell = cell;
    return gate_slices(&comparison, timed);
}
