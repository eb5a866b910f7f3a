#include "bench_run.h"

#include <string.h>
#include <time.h>

#include "libtensor/context_internal.h"

#define MIB ((int64_t)1 << 20)
#define COPY_REPEATS 21
#define COPY_WARM_UP 5
#define WIPED_PER_S 2.5e11 /* bytes; an H100 was seen to wipe 3.7e11 */

static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

static bool is_cuda(const bench_run *run) { return strcmp(tn_device_name(run->cx), "cuda") == 0; }

/* ---- the plain copy ---- */

static bool time_copies(bench_run *run, int64_t n_bytes) {
    double ms[COPY_REPEATS];
    bench_result result = { 0 };
    tn_scope *scope = tn_scope_begin(run->cx);
    tn_tensor *from = tn_rand(run->cx, TN_F32, TN_SHAPE(n_bytes / 4), 0, 1);
    tn_tensor *to = from ? tn_zeros(run->cx, TN_F32, TN_SHAPE(n_bytes / 4)) : NULL;
    bool fine = to != NULL;
    for (int i = 0; fine && i < COPY_WARM_UP + COPY_REPEATS; i++) {
        int slot = i < COPY_WARM_UP ? 0 : i - COPY_WARM_UP;
        fine = run->timer->start(run->timer, slot) && run->timer->copy(run->timer, to->data, from->data, (size_t)n_bytes) &&
               run->timer->stop(run->timer, slot);
    }
    fine = fine && run->timer->read(run->timer, COPY_REPEATS, ms);
    tn_scope_end(scope);
    if (!fine) return false;
    bench_summarise(ms, COPY_REPEATS, &result);
    run->copy_bytes_per_s = 2 * (double)n_bytes / result.median * 1e3;
    return true;
}

static bool measure_copy(bench_run *run) {
    for (int64_t n_bytes = is_cuda(run) ? 1024 * MIB : 128 * MIB; n_bytes >= 16 * MIB; n_bytes /= 2) {
        if (time_copies(run, n_bytes)) return true;
        if (tn_error_status(run->cx) != TN_ERR_MEMORY) return false;
        tn_clear_error(run->cx);
    }
    return false;
}

/* ---- opening ---- */

/* A device without a sum for the flush can still overwrite. */
static bool make_flush(bench_run *run) {
    int64_t cache = run->machine.cache_bytes;
    int64_t n_bytes = is_cuda(run) ? at_least(4 * cache, 256 * MIB) : at_most(at_least(cache, 16 * MIB), 32 * MIB);
    run->flush = tn_empty(run->cx, TN_F32, TN_SHAPE(n_bytes / 4));
    run->flush_reads = is_cuda(run);
    bench_flush(run);
    if (run->flush && run->flush_reads && !tn_synchronize(run->cx)) {
        tn_clear_error(run->cx);
        run->flush_reads = false;
        bench_flush(run);
    }
    return !tn_failed(run->cx);
}

static void set_budget(bench_run *run) {
    bool cuda = is_cuda(run);
    run->n_rotated_bytes = cuda ? 256 * MIB : 32 * MIB;
    run->budget_ms = (cuda ? 60 : 30) / (run->quick ? 4.0 : 1.0);
    run->min_repeats = cuda ? 11 : run->quick ? 3 : 5;
    run->max_repeats = cuda ? 100 : 25;
    run->random = UINT64_C(88172645463325252);
}

bool bench_run_open(bench_run *run, const char *device, bool quick, const char **error) {
    memset(run, 0, sizeof *run);
    run->quick = quick;
    *error = "the host has no memory left";
    run->cx = tn_open(&(tn_options){ .device = device, .seed = 1337 });
    run->reference = tn_open(&(tn_options){ .device = "cpu", .seed = 1337, .history_events = -1 });
    if (!run->cx || !run->reference) return false;
    if (!tn_failed(run->cx) && run->cx->device->dry_run) {
        *error = "wanted cpu, cuda or auto: a dry run has nothing to measure";
        return false;
    }
    if (!tn_failed(run->cx) && tn_failed(run->reference)) {
        *error = tn_error(run->reference);
        return false;
    }
    run->timer = tn_failed(run->cx) ? NULL : bench_timer_open(run->cx);
    if (run->timer) set_budget(run);
    bool fine = run->timer && measure_copy(run);
    if (fine) bench_machine_describe(&run->machine, run->timer); /* after some work, so that the clocks are those of work */
    fine = fine && make_flush(run);
    *error = tn_error(run->cx);
    return fine;
}

void bench_run_close(bench_run *run) {
    if (run->timer) run->timer->close(run->timer);
    tn_close(run->cx);
    tn_close(run->reference);
}

void bench_begin_table(bench_run *run) { run->gated = 0; }

static int64_t reserved_bytes(const tn_context *cx) {
    tn_memory_stats stats;
    return tn_memory_stats_get(cx, &stats) ? stats.all.reserved.current : 0;
}

void bench_release_memory(bench_run *run) {
    int64_t before = reserved_bytes(run->cx);
    tn_memory_release_cache(run->cx);
    double seconds = is_cuda(run) ? (double)(before - reserved_bytes(run->cx)) / WIPED_PER_S : 0;
    struct timespec wait = { .tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };
    nanosleep(&wait, NULL);
}
