/* Clocks: the device's own time of single calls, and the plain copy that floors are measured in. */
#ifndef TENON_BENCH_TIMER_H
#define TENON_BENCH_TIMER_H

#include "ops/tenon.h"

#define BENCH_MAX_REPEATS 256

/* What a run should say about where it ran. Empty or 0: not known. */
typedef struct bench_machine {
    char processor[128], device[192], driver[64], cuda_runtime[32], system[128];
    int threads;
    int clock_mhz, max_clock_mhz, memory_clock_mhz, max_memory_clock_mhz;
    int64_t cache_bytes; /* the largest cache on the way to memory */
} bench_machine;

typedef struct bench_timer bench_timer;

/* All return false with an error on the timer's context. Slot numbers lie in [0, BENCH_MAX_REPEATS). */
struct bench_timer {
    tn_context *cx;
    bool (*start)(bench_timer *timer, int slot);
    bool (*stop)(bench_timer *timer, int slot);
    /* Waits for the device and reads the first n slots, in milliseconds. */
    bool (*read)(bench_timer *timer, int n, double *ms);
    /* A copy by the means of the platform rather than the library's: what floors are compared with. */
    bool (*copy)(bench_timer *timer, void *to, const void *from, size_t bytes);
    void (*describe)(bench_timer *timer, bench_machine *machine);
    void (*close)(bench_timer *timer);
};

/* For the context's device; NULL with an error on cx. */
bench_timer *bench_timer_open(tn_context *cx);
bench_timer *bench_timer_open_cpu(tn_context *cx);
bench_timer *bench_timer_open_cuda(tn_context *cx);

double bench_now_ns(void);

#endif
