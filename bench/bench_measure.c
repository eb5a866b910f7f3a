/* Measuring one cell: device time or peak memory. */
#include <stdlib.h>
#include <string.h>

#include "bench_run.h"

#define N_TRIALS 3          /* calls that tell how many fit into the budget */
#define SLOW_SHARE 0.1      /* a call that takes ten budgets is repeated no more often than that */
#define LONG_CALL_MS 2000.0 /* and one as long as this is timed once, after the first */
#define SHORT_CALL_MS 1.0
#define FLUSHES_AHEAD 200 /* of a GPU, some 40 ms */
#define HOST_ROUNDS 25

const char *bench_unit(bench_kind kind) { return kind == BENCH_HOST ? "ns" : bench_is_memory(kind) ? "MiB" : "ms"; }

/* ---- statistics ---- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *sorted, int n, double share) {
    double at = share * (n - 1);
    int below = (int)at;
    return below + 1 < n ? sorted[below] + (at - below) * (sorted[below + 1] - sorted[below]) : sorted[n - 1];
}

void bench_summarise(double *samples, int n, bench_result *result) {
    qsort(samples, (size_t)n, sizeof *samples, ascending);
    result->p20 = percentile(samples, n, 0.2);
    result->median = percentile(samples, n, 0.5);
    result->p80 = percentile(samples, n, 0.8);
    result->repeats = n;
}

void bench_flush(bench_run *run) {
    tn_fill(run->flush, 1);
    if (!run->flush_reads) return;
    tn_scope *scope = tn_scope_begin(run->cx);
    tn_sum(run->flush);
    tn_scope_end(scope);
}

/* ---- speed ---- */

/* What is called again and again. Several sets lie in memory, so that successive calls touch different bytes. */
typedef struct speed_job {
    bench_set sets[BENCH_MAX_SETS];
    tn_tensor *out[BENCH_MAX_SETS], *upstream[BENCH_MAX_SETS]; /* backward: the graph stands before the clock starts */
    int n_sets;
    bool backward;
} speed_job;

static bool time_call(bench_run *run, speed_job *job, int call, int slot) {
    int s = call % job->n_sets;
    bench_set *set = &job->sets[s];
    bench_flush(run);
    if (job->backward) bench_set_clear_grads(set);
    tn_scope *scope = tn_scope_begin(run->cx);
    bool fine = run->timer->start(run->timer, slot);
    if (job->backward) fine = fine && tn_backward_with(job->out[s], TN_BACKWARD(.grad = job->upstream[s], .retain = true));
    else fine = fine && bench_set_forward(set);
    fine = fine && run->timer->stop(run->timer, slot);
    tn_scope_end(scope);
    return fine && !tn_failed(run->cx);
}

static int repeats_for(const bench_run *run, double ms) {
    double n = run->budget_ms / (ms > 1e-4 ? ms : 1e-4);
    if (n < SLOW_SHARE) return N_TRIALS;
    return n < run->min_repeats ? run->min_repeats : n > run->max_repeats ? run->max_repeats : (int)n;
}

/* A GPU that was idle (while the CPU checked the cell) may have lowered its clock: short calls are timed after some work. */
static void wake_up(bench_run *run, double ms) {
    bool gpu = run->flush_reads; /* only a GPU's flush does */
    for (int i = 0; gpu && ms < SHORT_CALL_MS && i < FLUSHES_AHEAD; i++) bench_flush(run);
}

static bool time_job(bench_run *run, speed_job *job, bench_result *result) {
    double ms[BENCH_MAX_REPEATS];
    int n_warm = job->n_sets > N_TRIALS ? job->n_sets : N_TRIALS, call = 1;
    if (!time_call(run, job, 0, 0) || !run->timer->read(run->timer, 1, ms)) return false;
    if (ms[0] >= LONG_CALL_MS) {
        if (!time_call(run, job, 1, 0) || !run->timer->read(run->timer, 1, ms)) return false;
        bench_summarise(ms, 1, result);
        return true;
    }
    for (int i = 0; i < n_warm; i++)
        if (!time_call(run, job, call++, i % N_TRIALS)) return false;
    if (!run->timer->read(run->timer, N_TRIALS, ms)) return false;
    bench_summarise(ms, N_TRIALS, result);
    int n = repeats_for(run, result->median);
    wake_up(run, result->median);
    for (int i = 0; i < n; i++)
        if (!time_call(run, job, call++, i)) return false;
    if (!run->timer->read(run->timer, n, ms)) return false;
    bench_summarise(ms, n, result);
    return true;
}

/* One set more: inputs with the first set's numbers and, for backward, its graph. */
static bool add_set(bench_run *run, const bench_cell *cell, speed_job *job) {
    int s = job->n_sets;
    bench_set *set = &job->sets[s];
    if (!bench_set_make(set, run->cx, cell, s > 0 ? &job->sets[0] : NULL) || !bench_set_open(set)) {
        bench_set_close(set);
        return false;
    }
    if (job->backward) {
        job->out[s] = bench_set_forward(set);
        job->upstream[s] = bench_upstream(job->out[s]);
    }
    if (tn_failed(run->cx)) {
        bench_set_close(set);
        return false;
    }
    job->n_sets++;
    return true;
}

static int sets_wanted(const bench_run *run, const bench_set *first) {
    int64_t bytes = bench_set_bytes(first), n = bytes > 0 ? run->n_rotated_bytes / bytes + 1 : 1;
    return n < 2 ? 2 : n > BENCH_MAX_SETS ? BENCH_MAX_SETS : (int)n;
}

/* Large cells need no more than two; where even that is too much memory, one has to do. */
static bool rotate_sets(bench_run *run, const bench_cell *cell, speed_job *job) {
    int wanted = sets_wanted(run, &job->sets[0]);
    while (job->n_sets < wanted)
        if (!add_set(run, cell, job)) {
            bool short_of_memory = tn_error_status(run->cx) == TN_ERR_MEMORY;
            if (short_of_memory) tn_clear_error(run->cx);
            return short_of_memory;
        }
    return true;
}

/* The row's sets, opened for the cell's column. */
static bool take_row_sets(const bench_run *run, const bench_cell *cell, speed_job *job) {
    for (; job->n_sets < run->n_row_sets; job->n_sets++) {
        bench_set *set = &job->sets[job->n_sets];
        *set = run->row_sets[job->n_sets];
        set->cell = cell;
        if (!bench_set_open(set)) return false;
    }
    return true;
}

static void measure_speed(bench_run *run, const bench_cell *cell, bench_result *result) {
    static speed_job job; /* too large for the stack to be taken for granted */
    memset(&job, 0, sizeof job);
    job.backward = cell->kind == BENCH_SPEED_BWD;
    bool shared = run->n_row_sets > 0;
    if (shared ? take_row_sets(run, cell, &job) : add_set(run, cell, &job)) {
        result->floor_bytes = bench_floor_bytes(&job.sets[0]);
        if (!bench_gate(run, cell, &job.sets[0], result->note, sizeof result->note)) result->status = BENCH_WRONG;
        else if (!tn_failed(run->cx) && (shared || rotate_sets(run, cell, &job))) time_job(run, &job, result);
    }
    for (int s = 0; s < job.n_sets; s++) bench_set_close(&job.sets[s]);
    if (cell->column->flops) result->flops = cell->column->flops(cell);
}

static void work_out_shares(const bench_run *run, bench_result *result) {
    if (result->status != BENCH_OK || result->median <= 0) return;
    result->floor_ms = (double)result->floor_bytes / run->copy_bytes_per_s * 1e3;
    result->share = result->floor_ms / result->median;
    result->tflops = result->flops / result->median * 1e-9;
}

/* ---- memory ---- */

static int64_t allocated(const tn_context *cx, bool peak) {
    tn_memory_stats stats;
    if (!tn_memory_stats_get(cx, &stats)) return 0;
    return peak ? stats.all.allocated.peak : stats.all.allocated.current;
}

static bool call_once(bench_set *set, tn_tensor *out, tn_tensor *upstream) {
    if (out) return tn_backward_with(out, TN_BACKWARD(.grad = upstream, .retain = true));
    return bench_set_forward(set) != NULL;
}

/* The peak over one call, less what lay there before the cell: resident are the inputs, for backward also what was saved, o and do. */
static void measure_memory(bench_run *run, const bench_cell *cell, bench_result *result) {
    bench_set set;
    int64_t before = allocated(run->cx, false), peak = 0;
    if (!bench_set_make(&set, run->cx, cell, NULL) || !bench_set_open(&set)) return;
    tn_tensor *out = bench_is_backward(cell->kind) ? bench_set_forward(&set) : NULL;
    tn_tensor *upstream = out ? bench_upstream(out) : NULL;
    if (!out && cell->table->upstream_resident) {
        tn_scope *scope = tn_scope_begin(run->cx); /* o itself goes again */
        tn_scope_return(scope, bench_upstream(bench_set_forward(&set)));
    }
    for (int call = 0; call < 2 && !tn_failed(run->cx); call++) { /* the first finds algorithms and fills caches */
        bench_set_clear_grads(&set);
        tn_memory_reset_peak(run->cx);
        tn_scope *scope = tn_scope_begin(run->cx);
        call_once(&set, out, upstream);
        peak = allocated(run->cx, true);
        tn_scope_end(scope);
    }
    bench_set_close(&set);
    result->median = result->p20 = result->p80 = (double)(peak - before) / (1 << 20);
    result->repeats = 1;
}

/* ---- host ---- */

static void measure_host(bench_run *run, const bench_cell *cell, bench_result *result) {
    double ns[HOST_ROUNDS];
    if (cell->column->host(run, cell, ns, HOST_ROUNDS)) bench_summarise(ns, HOST_ROUNDS, result);
}

/* ---- one row, one cell ---- */

/* With all memory free and the numbers that every cell begins with. */
static void start_afresh(bench_run *run) {
    bench_release_memory(run);
    tn_rng_set(run->cx, (tn_rng_state){ .seed = 1337 });
}

void bench_begin_row(bench_run *run, const bench_cell *cell) {
    if (!cell->table->one_input || cell->kind != BENCH_SPEED_FWD) return;
    start_afresh(run);
    run->row_scope = tn_scope_begin(run->cx);
    do {
        bench_set *sets = run->row_sets;
        int n = run->n_row_sets;
        if (!bench_set_make(&sets[n], run->cx, cell, n > 0 ? &sets[0] : NULL)) break;
        run->n_row_sets++;
    } while (run->n_row_sets < sets_wanted(run, &run->row_sets[0]));
    tn_clear_error(run->cx); /* too little memory for one set: its cells will say so */
}

void bench_end_row(bench_run *run) {
    if (run->row_scope) tn_scope_end(run->row_scope);
    run->row_scope = NULL;
    run->n_row_sets = 0;
}

static bench_status status_of(tn_status status) {
    return status == TN_ERR_MEMORY ? BENCH_OUT_OF_MEMORY : status == TN_ERR_UNSUPPORTED ? BENCH_UNSUPPORTED : BENCH_FAILED;
}

void bench_measure_cell(bench_run *run, const bench_cell *cell, bench_result *result) {
    memset(result, 0, sizeof *result);
    if (run->n_row_sets == 0) start_afresh(run);
    tn_scope *scope = tn_scope_begin(run->cx);
    if (cell->kind == BENCH_HOST) measure_host(run, cell, result);
    else if (bench_is_memory(cell->kind)) measure_memory(run, cell, result);
    else measure_speed(run, cell, result);
    tn_synchronize(run->cx);
    if (tn_failed(run->cx)) {
        result->status = status_of(tn_error_status(run->cx));
        snprintf(result->note, sizeof result->note, "%s", tn_error(run->cx));
    }
    tn_scope_end(scope);
    tn_clear_error(run->cx);
    if (!bench_is_memory(cell->kind) && cell->kind != BENCH_HOST) work_out_shares(run, result);
}
