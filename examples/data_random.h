/* The draws behind a row of data: a stream of its own for each (seed, split, row), so that a row never depends on those before it. */
#ifndef TENON_DATA_RANDOM_H
#define TENON_DATA_RANDOM_H

#include <stdint.h>

typedef struct tn_data_random {
    uint64_t state;
} tn_data_random;

#define TN_DATA_GOLDEN UINT64_C(0x9e3779b97f4a7c15)

/* The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). */
static inline uint64_t tn_data_mix(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline tn_data_random tn_data_random_of(uint64_t seed, int split, int64_t row) {
    uint64_t state = tn_data_mix(seed + TN_DATA_GOLDEN);
    state = tn_data_mix(state + TN_DATA_GOLDEN * (uint64_t)(split + 1));
    return (tn_data_random){ tn_data_mix(state + TN_DATA_GOLDEN * ((uint64_t)row + 1)) };
}

static inline uint64_t tn_data_bits(tn_data_random *random) { return tn_data_mix(random->state += TN_DATA_GOLDEN); }

/* An integer in [0, n), n > 0: the upper half of bits x n. */
static inline int64_t tn_data_below(tn_data_random *random, int64_t n) {
    return (int64_t)((unsigned __int128)tn_data_bits(random) * (uint64_t)n >> 64);
}

/* In [0, 1). */
static inline double tn_data_uniform(tn_data_random *random) { return (double)(tn_data_bits(random) >> 11) * 0x1p-53; }

#endif
