/* How a pass is cut up on the CPU, and the kernels that do the parts: lrpe_cpu.c cuts, lrpe_cpu_rows.c (f32, bf16) and
 * lrpe_cpu_f64.c (plain) compute.
 *
 * A task is a chunk of tokens and some heads, with the whole batch. It goes block by block: the block's cosines and sines are made
 * once, then every batch element is taken through them. What is summed over tasks is kept apart for each chunk and added in order. All cuts
 * follow from the shapes, never from the number of threads, and so do the bits. */
#ifndef TENON_LRPE_CPU_H
#define TENON_LRPE_CPU_H

#include "../../libtensor/parallel.h"
#include "lrpe_internal.h"

typedef struct tn_lrpe_kernels tn_lrpe_kernels;

typedef struct tn_lrpe_work {
    tn_lrpe_call call;
    const tn_lrpe_kernels *kernels;
    int64_t moved; /* *offset_t */

    int64_t chunks, chunk_tokens, head_groups, group_heads, block_tokens;
    bool heads_outside; /* the layout has tokens within heads */

    /* Softmax over the tokens: maxima, sums and (backward) sums of p dp over a column, [b, h, d], all `wide`. First they are made in
     * pieces, [piece][b, h, d]: of tokens forward, of chunks backward. */
    int64_t pieces, piece_tokens;
    void *max, *sum, *dot;
    void *piece_max, *piece_sum, *chunk_dot;

    double *dtheta; /* [chunk][head, or head group where theta is shared][W], f64 */
    int64_t dtheta_rows;

    /* One a thread: a block's cosines and sines, its sums of dA, and rows. NULL where the stack has room for them. */
    int threads;
    char *scratch;
    size_t scratch_bytes, table_bytes, turn_bytes, row_bytes;
} tn_lrpe_work;

#define TN_LRPE_PANEL 512 /* columns of tokens that are reduced together, at most */
#define TN_LRPE_ROWS 4    /* scratch rows of max(d, o's width) wide elements */

typedef struct tn_lrpe_block {
    int64_t token, tokens, head, heads;
    int64_t chunk;
    void *table;                     /* the row of (token, head) */
    int64_t table_token, table_head; /* its strides */
    void *turn;                      /* dA summed over the batch: rows of W; NULL where dtheta is not wanted */
    int64_t turn_token, turn_head;
    double *dtheta; /* the row of `head` in this chunk; NULL likewise */
    void *row[TN_LRPE_ROWS];
} tn_lrpe_block;

/* Columns of tokens, neighbours in memory: tokens [token, token + tokens) of `width` columns. */
typedef struct tn_lrpe_columns {
    const void *x; /* of the first */
    int64_t tokens, token_stride, width, feature_stride;
    void *max, *sum; /* to be written */
} tn_lrpe_columns;

struct tn_lrpe_kernels {
    void (*angles)(const tn_lrpe_work *work, const tn_lrpe_block *block); /* writes block->table */
    void (*forward)(const tn_lrpe_work *work, const tn_lrpe_block *block);
    void (*dots)(const tn_lrpe_work *work, const tn_lrpe_block *block); /* adds to this chunk's dots */
    void (*backward)(const tn_lrpe_work *work, const tn_lrpe_block *block);
    void (*columns)(const tn_lrpe_columns *columns, tn_dtype dtype);
    /* Over the pieces of columns [begin, end): the pieces' maxima and sums to one of each; sums alone. */
    void (*merge_columns)(const tn_lrpe_work *work, int64_t begin, int64_t end);
    void (*merge_dots)(const tn_lrpe_work *work, int64_t begin, int64_t end);
};

extern const tn_lrpe_kernels tn_lrpe_kernels_rows, tn_lrpe_kernels_f64;

/* Where a row (one token, head and batch element) starts. */
static inline int64_t tn_lrpe_at(const tn_lrpe_strides *stride, int64_t batch, int64_t token, int64_t head) {
    return batch * stride->batch + token * stride->token + head * stride->head;
}

/* One row of a block, and where it stands in the block's tables. */
typedef struct tn_lrpe_row {
    int64_t batch, token, head;
    int64_t table, turn; /* elements from block->table and block->turn */
} tn_lrpe_row;
typedef void (*tn_lrpe_row_body)(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row);

/* Calls body, which is inlined, on the rows of a block as they lie in memory: tokens and heads in the layout's order. */
static inline __attribute__((always_inline)) void tn_lrpe_for_rows(const tn_lrpe_work *work, const tn_lrpe_block *block,
                                                                   tn_lrpe_row_body body) {
    int64_t outer = work->heads_outside ? block->heads : block->tokens, inner = work->heads_outside ? block->tokens : block->heads;
    for (int64_t b = 0; b < work->call.batch; b++)
        for (int64_t i = 0; i < outer; i++)
            for (int64_t j = 0; j < inner; j++) {
                int64_t token = work->heads_outside ? j : i, head = work->heads_outside ? i : j;
                tn_lrpe_row row = { b, block->token + token, block->head + head, token * block->table_token + head * block->table_head,
                                    token * block->turn_token + head * block->turn_head };
                body(work, block, &row);
            }
}

#endif
