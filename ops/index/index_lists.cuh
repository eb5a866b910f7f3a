/* Which places of an index belong to which row, without sorting all of them: every row's places lie side by side, in any order. Rows with
 * more than TN_INDEX_PIECE places are listed apart and have theirs sorted besides. */
#ifndef TENON_INDEX_LISTS_CUH
#define TENON_INDEX_LISTS_CUH

#include "../../libtensor/cuda_common.cuh"

#define TN_INDEX_PIECE 32

/* Kernels in a row on Hopper: the next one's blocks may take their places when all of this one's have said so, and wait there. */
__device__ __forceinline__ void tn_let_next_start(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void tn_wait_for_last(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Place i belongs to row index[i * stride]; what is not in [0, n_rows) belongs nowhere. */
struct tn_index_source {
    const void *index;
    bool wide;
    int64_t stride, n; /* n below 2^31 */
    uint32_t n_rows;

    __device__ __forceinline__ uint32_t row(int64_t i) const {
        int64_t row = wide ? ((const int64_t *)index)[i * stride] : (int64_t)((const int32_t *)index)[i * stride];
        return (uint64_t)row < n_rows ? (uint32_t)row : UINT32_MAX;
    }
};

struct tn_index_long_row {
    uint32_t row, begin, count;
    uint32_t first_piece; /* its places are cut into pieces, numbered over all long rows */
};

enum { TN_INDEX_PLACES, TN_INDEX_LONG_ROWS, TN_INDEX_PIECES, TN_INDEX_TOTALS };

struct tn_index_lists {
    uint32_t *totals;       /* [TN_INDEX_TOTALS] */
    uint32_t *count, *begin; /* [n_rows]: row r has places[begin[r] .. begin[r] + count[r]) */
    uint32_t *rank;         /* [n]: a place's number among its row's */
    uint32_t *places;       /* [n] */
    uint32_t *sorted;       /* [n]: long rows only, where their places lie */
    tn_index_long_row *long_rows;
    uint32_t *piece_of; /* [pieces]: the number of its long row */
};

/* At most; a long row has at least one place more than a piece. */
static inline int64_t tn_index_most_long_rows(int64_t n) { return n / (TN_INDEX_PIECE + 1); }
static inline int64_t tn_index_most_pieces(int64_t n) { return n / TN_INDEX_PIECE + tn_index_most_long_rows(n); }

size_t tn_index_lists_bytes(int64_t n, int64_t n_rows);
tn_index_lists tn_index_lists_in(void *scratch, int64_t n, int64_t n_rows);
/* A cudaError_t. The long rows are not sorted yet. */
int tn_index_list_places(const tn_index_source *source, const tn_index_lists *lists, int multiprocessors, void *stream);

#endif
