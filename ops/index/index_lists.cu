/* Lists of the places of each row, by one kernel whose blocks wait for each other three times:
 *
 *     clear     the rows' counts
 *     count     every place takes the next number of its row; equal rows of a warp go together, so that one row that has them all does not
 *               make the atomics wait for each other
 *     give      every row gets room for its places; a block adds up those of its rows and takes as much at once
 *     place     every place goes to its row's room, by its number
 *
 * Numbers and rooms depend on how threads run, so the order within a row means nothing, and nothing else depends on them. */
#include "index_lists.cuh"

#include <cooperative_groups.h>

#define LIST_THREADS 1024 /* a block for each multiprocessor: the fewer wait for each other, the sooner they go on */

static size_t up_to_16(size_t bytes) { return (bytes + 15) & ~(size_t)15; }

static char *take(char *&at, size_t bytes) {
    char *taken = at;
    at += up_to_16(bytes);
    return taken;
}

tn_index_lists tn_index_lists_in(void *scratch, int64_t n, int64_t n_rows) {
    const size_t word = sizeof(uint32_t);
    char *at = (char *)scratch;
    tn_index_lists lists;
    lists.totals = (uint32_t *)take(at, TN_INDEX_TOTALS * word);
    lists.count = (uint32_t *)take(at, (size_t)n_rows * word);
    lists.begin = (uint32_t *)take(at, (size_t)n_rows * word);
    lists.rank = (uint32_t *)take(at, (size_t)n * word);
    lists.places = (uint32_t *)take(at, (size_t)n * word);
    lists.sorted = (uint32_t *)take(at, (size_t)n * word);
    lists.long_rows = (tn_index_long_row *)take(at, (size_t)tn_index_most_long_rows(n) * sizeof(tn_index_long_row));
    lists.piece_of = (uint32_t *)take(at, (size_t)tn_index_most_pieces(n) * word);
    return lists;
}

size_t tn_index_lists_bytes(int64_t n, int64_t n_rows) {
    tn_index_lists lists = tn_index_lists_in(NULL, n, n_rows);
    return up_to_16((size_t)((uintptr_t)lists.piece_of + (size_t)tn_index_most_pieces(n) * sizeof(uint32_t)));
}

/* The sum over the threads before this one; *total that over all. */
__device__ __forceinline__ uint32_t sum_before(uint32_t own, uint32_t *total) {
    __shared__ uint32_t of_warp[LIST_THREADS / TN_WARP];
    int lane = threadIdx.x % TN_WARP, warp = threadIdx.x / TN_WARP;
    uint32_t upto = own;
#pragma unroll
    for (int step = 1; step < TN_WARP; step *= 2) {
        uint32_t below = __shfl_up_sync(0xffffffffu, upto, step);
        if (lane >= step) upto += below;
    }
    if (lane == TN_WARP - 1) of_warp[warp] = upto;
    __syncthreads();
    uint32_t before = upto - own;
    *total = 0;
#pragma unroll
    for (int w = 0; w < LIST_THREADS / TN_WARP; w++) {
        if (w < warp) before += of_warp[w];
        *total += of_warp[w];
    }
    __syncthreads();
    return before;
}

__device__ __forceinline__ void note_long_row(const tn_index_lists &lists, uint32_t row, uint32_t begin, uint32_t count) {
    uint32_t pieces = (count + TN_INDEX_PIECE - 1) / TN_INDEX_PIECE, first = atomicAdd(&lists.totals[TN_INDEX_PIECES], pieces);
    lists.long_rows[atomicAdd(&lists.totals[TN_INDEX_LONG_ROWS], 1u)] = { row, begin, count, first };
}

__global__ void __launch_bounds__(LIST_THREADS) list_places(tn_index_source source, tn_index_lists lists) {
    __shared__ uint32_t room;
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    int64_t first = (int64_t)blockIdx.x * LIST_THREADS, step = (int64_t)gridDim.x * LIST_THREADS;
    for (int64_t row = first + threadIdx.x; row < source.n_rows; row += step) lists.count[row] = 0;
    if (blockIdx.x == 0 && threadIdx.x < TN_INDEX_TOTALS) lists.totals[threadIdx.x] = 0;
    grid.sync();

    int lane = threadIdx.x % TN_WARP;
    for (int64_t from = first; from < source.n; from += step) { /* whole warps */
        int64_t i = from + threadIdx.x;
        uint32_t row = i < source.n ? source.row(i) : UINT32_MAX, equals = __match_any_sync(0xffffffffu, row);
        int leader = __ffs(equals) - 1;
        uint32_t number = 0;
        if (lane == leader && row != UINT32_MAX) number = atomicAdd(&lists.count[row], (uint32_t)__popc(equals));
        number = __shfl_sync(0xffffffffu, number, leader) + (uint32_t)__popc(equals & ((1u << lane) - 1));
        if (i < source.n) lists.rank[i] = number;
    }
    grid.sync();

    for (int64_t from = first; from < source.n_rows; from += step) { /* whole blocks */
        int64_t row = from + threadIdx.x;
        uint32_t count = row < source.n_rows ? lists.count[row] : 0, total;
        uint32_t before = sum_before(count, &total);
        if (threadIdx.x == 0) room = atomicAdd(&lists.totals[TN_INDEX_PLACES], total);
        __syncthreads();
        uint32_t begin = room + before;
        if (row < source.n_rows) lists.begin[row] = begin;
        if (count > TN_INDEX_PIECE) note_long_row(lists, (uint32_t)row, begin, count);
        __syncthreads();
    }
    grid.sync();

    tn_let_next_start();
    for (int64_t i = first + threadIdx.x; i < source.n; i += step) {
        uint32_t row = source.row(i);
        if (row != UINT32_MAX) lists.places[lists.begin[row] + lists.rank[i]] = (uint32_t)i;
    }
}

int tn_index_list_places(const tn_index_source *source, const tn_index_lists *lists, int multiprocessors, void *stream) {
    int64_t items = source->n > source->n_rows ? source->n : source->n_rows, blocks = (items + LIST_THREADS - 1) / LIST_THREADS;
    tn_index_source by = *source;
    tn_index_lists in = *lists;
    void *arguments[] = { &by, &in };
    return (int)cudaLaunchCooperativeKernel((const void *)list_places,
                                            dim3((unsigned)(blocks < multiprocessors ? blocks : multiprocessors)), dim3(LIST_THREADS),
                                            arguments, 0, (cudaStream_t)stream);
}
