#include "bench_timer.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libtensor/parallel.h"

#define COPY_CHUNK_BYTES ((int64_t)4 << 20)

typedef struct cpu_timer {
    bench_timer base;
    double begin[BENCH_MAX_REPEATS], end[BENCH_MAX_REPEATS]; /* ns */
} cpu_timer;

double bench_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static bool start(bench_timer *timer, int slot) {
    ((cpu_timer *)timer)->begin[slot] = bench_now_ns();
    return true;
}

static bool stop(bench_timer *timer, int slot) {
    ((cpu_timer *)timer)->end[slot] = bench_now_ns();
    return true;
}

static bool read_slots(bench_timer *timer, int n, double *ms) {
    const cpu_timer *cpu = (const cpu_timer *)timer;
    for (int i = 0; i < n; i++) ms[i] = (cpu->end[i] - cpu->begin[i]) * 1e-6;
    return true;
}

typedef struct copy_job {
    char *to;
    const char *from;
} copy_job;

static void copy_range(void *user, int64_t begin, int64_t end) {
    const copy_job *job = user;
    memcpy(job->to + begin, job->from + begin, (size_t)(end - begin));
}

static bool copy(bench_timer *timer, void *to, const void *from, size_t bytes) {
    copy_job job = { to, from };
    tn_parallel_for((int64_t)bytes, COPY_CHUNK_BYTES, copy_range, &job, tn_threads(timer->cx));
    return true;
}

static void describe(bench_timer *timer, bench_machine *machine) {
    long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE), l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    (void)timer;
    machine->cache_bytes = l3 > 0 ? l3 : l2 > 0 ? l2 : 0;
}

static void close_timer(bench_timer *timer) { free(timer); }

bench_timer *bench_timer_open_cpu(tn_context *cx) {
    cpu_timer *timer = calloc(1, sizeof *timer);
    if (!timer) return tn_fail(cx, TN_ERR_HOST_MEMORY, "bench_timer", "the host has no memory left");
    timer->base = (bench_timer){
        .cx = cx, .start = start, .stop = stop, .read = read_slots, .copy = copy, .describe = describe, .close = close_timer
    };
    return &timer->base;
}

bench_timer *bench_timer_open(tn_context *cx) {
#ifdef TN_WITH_CUDA
    if (strcmp(tn_device_name(cx), "cuda") == 0) return bench_timer_open_cuda(cx);
#endif
    return bench_timer_open_cpu(cx);
}
