/* Reductions over any set of axes of a strided tensor on the CPU, without transposing.
 *
 * The axes are merged and cut into panels of neighbouring outputs ("across") and segments of reduced elements ("along"); a tn_reducer
 * folds one such block at a time into the panel's states. Panels run on all cores. Where there are few of them the reduced elements
 * are cut into chunks as well, whose states are merged in order. Every cut follows from the shape and the strides alone, so the
 * bits do not depend on the number of threads. */
#ifndef TENON_REDUCTION_CPU_H
#define TENON_REDUCTION_CPU_H

#include "../libtensor/simd.h"
#include "../libtensor/tensor.h"

#define TN_REDUCE_PANEL 512 /* outputs in a panel at most */

typedef struct tn_reduction tn_reduction;

/* Element (a, l), a < across, l < along, lies at a * across_stride + l * along_stride. */
typedef struct tn_reduce_block {
    const void *data;
    int64_t across, along, across_stride, along_stride;
    int64_t index, index_step; /* place of (a, 0), and from l to l + 1, among an output's elements in row-major order */
    bool flip;                 /* order from large to small */
} tn_reduce_block;

typedef struct tn_reducer tn_reducer;
struct tn_reducer {
    tn_dtype dtype;            /* of the elements in a block */
    const tn_reducer *widened; /* takes blocks that had to be gathered, with the same states; NULL: this one does */
    bool ordered;              /* needs index and index_step */
    int state_bytes;           /* of one output */
    int64_t column_rows;       /* along of a block for columns(), at most */
    int64_t short_row;         /* below so many elements rows are better turned into columns; 0: never */
    /* States of n <= TN_REDUCE_PANEL outputs: arrays of n, 64-byte aligned. */
    void (*start)(void *state, int64_t n);
    void (*rows)(void *state, const tn_reduce_block *block);    /* along_stride is 1 */
    void (*columns)(void *state, const tn_reduce_block *block); /* across_stride is 1 */
    void (*merge)(void *state, const void *later, int64_t n);
    /* Writes n outputs, the first at element `at`, `stride` apart. */
    void (*finish)(const tn_reduction *reduction, const void *state, int64_t n, int64_t at, int64_t stride);
};

struct tn_reduction {
    const tn_reducer *reducer;
    const tn_tensor *in;
    uint32_t axes; /* bit per reduced axis */
    bool flip;
    void *out; /* dense, over the kept axes in order */
    tn_dtype out_dtype;
    double divisor;       /* of sums */
    void *index;          /* dense like out, or NULL */
    tn_dtype index_dtype; /* i32 or i64 */
    void *statistics[2];  /* what else a reducer writes, dense like out, or NULL */
    int threads;
    void *workspace; /* tn_reduce_workspace_bytes */
};

/* Scratch of the reduction of a tensor of this shape and these strides. */
size_t tn_reduce_workspace_bytes(const tn_reduction *reduction);
void tn_reduce_run(const tn_reduction *reduction);

/* Sums of any dtype: floats into floats, integers and bool into i64 (modulo 2^64). */
const tn_reducer *tn_reducer_sum(tn_dtype dtype);

static inline int64_t tn_reduced_count(const int64_t *shape, int axes, uint32_t reduced) {
    int64_t count = 1;
    for (int i = 0; i < axes; i++)
        if (reduced >> i & 1) count *= shape[i];
    return count;
}

/* Element i of f32 or bf16 data. */
TN_INLINE float tn_element_load(tn_dtype dtype, const void *p, int64_t i) {
    return dtype == TN_F32 ? ((const float *)p)[i] : tn_bf16_to_f32(((const tn_bf16 *)p)[i]);
}

#endif
