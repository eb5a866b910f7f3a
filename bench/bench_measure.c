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

static bench_status status_of(tn_status status) {
    return status == TN_ERR_MEMORY ? BENCH_OUT_OF_MEMORY : status == TN_ERR_UNSUPPORTED ? BENCH_UNSUPPORTED : BENCH_FAILED;
}

static void set_error(const bench_run *run, bench_result *result) {
    result->status = status_of(tn_error_status(run->cx));
    snprintf(result->note, sizeof result->note, "%s", tn_error(run->cx));
}

/* An error of the context becomes the cell's. */
static bool note_error(bench_run *run, bench_result *result) {
    if (!tn_failed(run->cx)) return false;
    set_error(run, result);
    tn_clear_error(run->cx);
    return true;
}

/* ---- speed ---- */

/* What is called again and again. Several sets lie in memory, so that successive calls touch different bytes. */
typedef struct speed_job {
    bench_set sets[BENCH_MAX_SETS];
    tn_tensor *out[BENCH_MAX_SETS], *upstream[BENCH_MAX_SETS]; /* backward: the graph stands before the clock starts */
    int n_sets;
    bool backward;
    bench_result *result;
    int n_calls, n_wanted, n_timed; /* n_calls: all that were made */
    double ms[BENCH_MAX_REPEATS];
} speed_job;

static bool time_call(bench_run *run, speed_job *job, int slot) {
    int s = job->n_calls++ % job->n_sets;
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

/* Warms the job up and finds how often it is to be timed. */
static bool try_job(bench_run *run, speed_job *job) {
    int n_warm = job->n_sets > N_TRIALS ? job->n_sets : N_TRIALS;
    if (!time_call(run, job, 0) || !run->timer->read(run->timer, 1, job->ms)) return false;
    if (job->ms[0] >= LONG_CALL_MS) {
        bench_summarise(job->ms, 1, job->result);
        job->n_wanted = 1;
        return true;
    }
    for (int i = 0; i < n_warm; i++)
        if (!time_call(run, job, i % N_TRIALS)) return false;
    if (!run->timer->read(run->timer, N_TRIALS, job->ms)) return false;
    bench_summarise(job->ms, N_TRIALS, job->result);
    job->n_wanted = repeats_for(run, job->result->median);
    return true;
}

/* Times that can't be read are lost to all of the jobs. */
static void read_times(bench_run *run, speed_job *const *owners, int n) {
    double ms[BENCH_MAX_REPEATS];
    bool fine = run->timer->read(run->timer, n, ms);
    for (int i = 0; i < n; i++) {
        if (fine) owners[i]->ms[owners[i]->n_timed++] = ms[i];
        else set_error(run, owners[i]->result), owners[i]->n_wanted = 0;
    }
    if (!fine) tn_clear_error(run->cx);
}

/* Times jobs in turns, a call of each, so that what slows the device down for a while falls on all of them. */
static void time_jobs(bench_run *run, speed_job *jobs, int n_jobs) {
    speed_job *owners[BENCH_MAX_REPEATS] = { NULL }; /* of the timer's slots */
    int n_rounds = 0, n_slots = 0;
    double shortest = LONG_CALL_MS;
    for (int j = 0; j < n_jobs; j++) {
        if (jobs[j].n_wanted > n_rounds) n_rounds = jobs[j].n_wanted;
        if (jobs[j].n_wanted > 0 && jobs[j].result->median < shortest) shortest = jobs[j].result->median;
    }
    wake_up(run, shortest);
    for (int round = 0; round < n_rounds; round++)
        for (int j = 0; j < n_jobs; j++) {
            if (round >= jobs[j].n_wanted) continue;
            if (time_call(run, &jobs[j], n_slots)) {
                owners[n_slots++] = &jobs[j];
            } else {
                note_error(run, jobs[j].result);
                jobs[j].n_wanted = 0;
            }
            if (n_slots == BENCH_MAX_REPEATS) {
                read_times(run, owners, n_slots);
                n_slots = 0;
            }
        }
    read_times(run, owners, n_slots);
    for (int j = 0; j < n_jobs; j++)
        if (jobs[j].n_wanted > 0) bench_summarise(jobs[j].ms, jobs[j].n_timed, jobs[j].result);
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

/* Checks the cell and warms it up. */
static void begin_job(bench_run *run, const bench_cell *cell, speed_job *job, bench_result *result) {
    memset(job, 0, sizeof *job);
    job->result = result;
    job->backward = cell->kind == BENCH_SPEED_BWD;
    bool shared = run->n_row_sets > 0;
    if (shared ? take_row_sets(run, cell, job) : add_set(run, cell, job)) {
        result->floor_bytes = bench_floor_bytes(&job->sets[0]);
        if (!bench_gate(run, cell, &job->sets[0], result->note, sizeof result->note)) result->status = BENCH_WRONG;
        else if (!tn_failed(run->cx) && (shared || rotate_sets(run, cell, job))) try_job(run, job);
    }
    if (cell->column->flops) result->flops = cell->column->flops(cell);
    if (note_error(run, result)) job->n_wanted = 0;
}

static void end_job(speed_job *job) {
    for (int s = 0; s < job->n_sets; s++) bench_set_close(&job->sets[s]);
}

static void measure_speed(bench_run *run, const bench_cell *cell, bench_result *result) {
    static speed_job job; /* too large for the stack to be taken for granted */
    begin_job(run, cell, &job, result);
    time_jobs(run, &job, 1);
    end_job(&job);
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

static void finish(bench_run *run, const bench_cell *cell, bench_result *result) {
    tn_synchronize(run->cx);
    note_error(run, result);
    if (!bench_is_memory(cell->kind) && cell->kind != BENCH_HOST) work_out_shares(run, result);
}

static void measure_cell(bench_run *run, const bench_cell *cell, bench_result *result) {
    start_afresh(run);
    tn_scope *scope = tn_scope_begin(run->cx);
    if (cell->kind == BENCH_HOST) measure_host(run, cell, result);
    else if (bench_is_memory(cell->kind)) measure_memory(run, cell, result);
    else measure_speed(run, cell, result);
    finish(run, cell, result);
    tn_scope_end(scope);
}

bool bench_in_turns(const bench_cell *cell) { return cell->table->one_input && cell->kind == BENCH_SPEED_FWD; }

/* Inputs for all columns of a row. False where there is no memory for one set of them. */
static bool make_row_sets(bench_run *run, const bench_cell *cell) {
    bench_set *sets = run->row_sets;
    for (int wanted = 1; run->n_row_sets < wanted; wanted = sets_wanted(run, sets)) {
        int n = run->n_row_sets;
        if (!bench_set_make(&sets[n], run->cx, cell, n > 0 ? &sets[0] : NULL)) break;
        run->n_row_sets++;
    }
    tn_clear_error(run->cx);
    return run->n_row_sets > 0;
}

static void measure_in_turns(bench_run *run, const bench_cell *cells, int n_cells, speed_job *jobs, bench_result *results) {
    for (int c = 0; c < n_cells; c++) begin_job(run, &cells[c], &jobs[c], &results[c]);
    time_jobs(run, jobs, n_cells);
    for (int c = 0; c < n_cells; c++) {
        end_job(&jobs[c]);
        finish(run, &cells[c], &results[c]);
    }
}

void bench_measure_cells(bench_run *run, const bench_cell *cells, int n_cells, bench_result *results) {
    memset(results, 0, (size_t)n_cells * sizeof *results);
    speed_job *jobs = n_cells > 1 ? malloc((size_t)n_cells * sizeof *jobs) : NULL;
    bool done = false;
    if (jobs) {
        start_afresh(run);
        tn_scope *scope = tn_scope_begin(run->cx);
        done = make_row_sets(run, &cells[0]);
        if (done) measure_in_turns(run, cells, n_cells, jobs, results);
        run->n_row_sets = 0;
        tn_scope_end(scope);
    }
    free(jobs);
    /* Too little memory for one set of inputs: each cell says so by itself. */
    for (int c = 0; !done && c < n_cells; c++) measure_cell(run, &cells[c], &results[c]);
}
