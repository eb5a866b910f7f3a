/* Square blocks of one vector a row, transposed in registers. */
#ifndef TENON_TRANSPOSE_H
#define TENON_TRANSPOSE_H

#include "simd.h"

/* The lanes `...` of a followed by b. */
#ifdef TN_HAS_SHUFFLEVECTOR
#define TN_INTERLEAVE_(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
/* Older GCC: the lanes come as a vector of integers as wide as the elements. */
typedef int8_t tn_lanes_1_ __attribute__((vector_size(16)));
typedef int16_t tn_lanes_2_ __attribute__((vector_size(16)));
typedef int32_t tn_lanes_4_ __attribute__((vector_size(16)));
typedef int64_t tn_lanes_8_ __attribute__((vector_size(16)));
#define TN_LANES_OF_(v)                                                \
    __typeof__(__builtin_choose_expr(                                  \
        sizeof((v)[0]) == 1, (tn_lanes_1_){ 0 },                       \
        __builtin_choose_expr(sizeof((v)[0]) == 2, (tn_lanes_2_){ 0 }, \
                              __builtin_choose_expr(sizeof((v)[0]) == 4, (tn_lanes_4_){ 0 }, (tn_lanes_8_){ 0 }))))
#define TN_INTERLEAVE_(a, b, ...) __builtin_shuffle(a, b, (TN_LANES_OF_(a)){ __VA_ARGS__ })
#endif
#define TN_LOW_2_ 0, 2
#define TN_HIGH_2_ 1, 3
#define TN_LOW_4_ 0, 4, 1, 5
#define TN_HIGH_4_ 2, 6, 3, 7
#define TN_LOW_8_ 0, 8, 1, 9, 2, 10, 3, 11
#define TN_HIGH_8_ 4, 12, 5, 13, 6, 14, 7, 15
#define TN_LOW_16_ 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define TN_HIGH_16_ 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

/* row[lanes]: vectors of `lanes` (2, 4, 8 or 16) elements, transposed in place; mixed[lanes] is scratch. Interleaving the first half of
 * the rows with the second, log2(lanes) times, does it. */
#define TN_TRANSPOSE(row, mixed, lanes)                                                             \
    for (int stage_ = 1; stage_ < (lanes); stage_ *= 2) {                                           \
        for (int r_ = 0; r_ < (lanes) / 2; r_++) {                                                  \
            mixed[2 * r_] = TN_INTERLEAVE_(row[r_], row[r_ + (lanes) / 2], TN_LOW_##lanes##_);      \
            mixed[2 * r_ + 1] = TN_INTERLEAVE_(row[r_], row[r_ + (lanes) / 2], TN_HIGH_##lanes##_); \
        }                                                                                           \
        memcpy(row, mixed, sizeof row);                                                             \
    }

#endif
