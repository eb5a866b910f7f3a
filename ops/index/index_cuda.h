/* What embedding and gather do on CUDA: rows summed by index, and a stable sort of places by key. */
#ifndef TENON_INDEX_CUDA_H
#define TENON_INDEX_CUDA_H

#include "index_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Keys in [0, limit]. */
typedef struct tn_index_sort {
    int64_t n; /* below 2^31 */
    uint32_t limit;
    uint32_t *keys;
} tn_index_sort;

/* The places 0 .. n-1 ordered by key, equal keys by place: both lie in the scratch. */
typedef struct tn_index_order {
    const uint32_t *keys, *places;
} tn_index_order;

size_t tn_index_sort_bytes(int64_t n);
tn_index_order tn_index_sorted(const tn_index_sort *sort, void *scratch, void *stream);

/* table[r, :] := the sum of rows[i, :] over all i with index[i * stride] = r. */
typedef struct tn_row_sums {
    tn_dtype dtype;
    int multiprocessors;
    const void *index;
    bool wide_index, plain, hopper; /* hopper: kernels start behind each other */
    int64_t stride, n;              /* of the index */
    int64_t n_rows, width;          /* of the table */
    const void *rows;
    void *table;
} tn_row_sums;

size_t tn_row_sums_bytes(tn_dtype dtype, int64_t n, int64_t n_rows, int64_t width);
int tn_row_sums_cuda(const tn_row_sums *sums, void *scratch, void *stream); /* a cudaError_t */

/* Indices outside [0, limit) can't be an error without waiting for the device; only in debug contexts they are looked for on the host,
 * and are the error they are on the CPU. */
tn_status tn_index_check_cuda(tn_op_call *call, int64_t limit);

/* More places than a sort can count, or more keys. */
static inline bool tn_index_sortable(int64_t n, int64_t n_keys) { return n <= INT32_MAX && n_keys < UINT32_MAX; }

#ifdef __cplusplus
}
#endif
#endif
