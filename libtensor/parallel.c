#include "parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Of the loops here alone: in a parallel region of the caller's own each thread is the first and only one of its loops. */
static _Thread_local int own_index;

static void run_chunks(int64_t first, int64_t last, int64_t n, int64_t grain, tn_range_body body, void *user) {
    for (int64_t chunk = first; chunk < last; chunk++) {
        int64_t begin = chunk * grain;
        body(user, begin, n - begin > grain ? begin + grain : n);
    }
}

void tn_parallel_for(int64_t n, int64_t grain, tn_range_body body, void *user, int threads) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    if (n <= grain) {
        body(user, 0, n);
        return;
    }
    int64_t chunks = tn_chunk_count(n, grain);
#ifdef _OPENMP
    if (threads > 1 && !omp_in_parallel()) {
        int team = chunks < threads ? (int)chunks : threads;
#pragma omp parallel num_threads(team)
        {
            int64_t size = omp_get_num_threads(), at = omp_get_thread_num();
            int64_t share = chunks / size, more = chunks % size;
            int64_t first = at * share + (at < more ? at : more);
            own_index = (int)at;
            run_chunks(first, first + share + (at < more), n, grain, body, user);
            own_index = 0;
        }
        return;
    }
#else
    (void)threads;
#endif
    run_chunks(0, chunks, n, grain, body, user);
}

int64_t tn_even_grain(int64_t n, int64_t smallest, int64_t multiple, int threads) {
    if (multiple < 1) multiple = 1;
    int64_t grain = n / (4 * (int64_t)(threads > 1 ? threads : 1)) + 1;
    if (grain < smallest) grain = smallest;
    return (grain + multiple - 1) / multiple * multiple;
}

int tn_parallel_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

bool tn_parallel_inside(void) {
#ifdef _OPENMP
    return omp_in_parallel();
#else
    return false;
#endif
}

int tn_parallel_index(void) { return own_index; }
