/* Loops over all cores. */
#ifndef TENON_PARALLEL_H
#define TENON_PARALLEL_H

#include <stdbool.h>
#include <stdint.h>

typedef void (*tn_range_body)(void *user, int64_t begin, int64_t end);

/* Calls body on [0, n) cut into chunks of `grain` (the last may be shorter): chunk c is [c * grain, min(n, (c + 1) * grain)).
 * The cut depends on n and grain alone, so a reduction that keeps one partial per chunk and adds them in order has the same
 * bits for every number of threads. Neighbouring chunks go to the same thread. With one chunk, one thread or inside another
 * parallel loop everything runs on the calling thread. n <= 0 calls nothing; grain < 1 counts as 1. */
void tn_parallel_for(int64_t n, int64_t grain, tn_range_body body, void *user, int threads);

static inline int64_t tn_chunk_count(int64_t n, int64_t grain) {
    if (grain < 1) grain = 1;
    return n <= 0 ? 0 : (n - 1) / grain + 1;
}

/* A grain for loops whose results do not depend on the cut: about four chunks a thread, none smaller than `smallest`, each a
 * multiple of `multiple`. */
int64_t tn_even_grain(int64_t n, int64_t smallest, int64_t multiple, int threads);

/* Threads the process may use: those of its CPU affinity, or fewer where OMP_NUM_THREADS says so. 1 in a build without OpenMP. */
int tn_parallel_threads(void);

/* True on every thread that runs a part of a parallel loop shared by several. */
bool tn_parallel_inside(void);

/* The calling thread's place in the tn_parallel_for it runs in, from 0; 0 outside, in a parallel region of the caller's own too. */
int tn_parallel_index(void);

#endif
