/* Rows of a table by index, and the sums of rows that belong to the same row of the table.
 *
 * Forward copies: a group of lanes takes a place, each lane up to 4 packs of 16 bytes before it writes them.
 *
 * Backward sorts the places by row (index_sort.cu) and marks where each row's run begins and ends. Then
 *
 *     runs of at most 32 places     a warp per row of the table and panel of columns adds them in order; rows without places get zeros
 *     longer runs                   the sorted places are cut every 32; a warp sums what a long run has in a piece. A piece holds the end
 *                                   of one long run and the beginning of another at most, hence two rows of partial sums:
 *
 *                                       | a a a b b c c c | c c c c c c c c | c c d d e e e e |
 *                                         ..        [1]c    [0]c              [0]c      [1]e
 *
 *                                   and a block per long run adds its partial sums in order
 *
 * Every row of the table is written once, no sum depends on the order in which threads run, and one word that fills the whole batch is
 * still spread over all multiprocessors. Bytes: do and the table once, the index a few times, partial sums of long runs (2 / 32 of do
 * in f32 at most, written and read). */
#include "index_cuda.h"

#include "../../libtensor/cuda_common.cuh"
#include "../op_support.h"

#define THREADS 256
#define PIECE 32   /* sorted places, at most as many as a warp has lanes */
#define COPIES 4   /* loads of a lane in forward */
#define PANEL 2    /* loads of a lane from one place in backward */
#define TOGETHER 4 /* places whose loads are on their way together */

__device__ __forceinline__ int64_t index_at(const void *index, bool wide, int64_t at) {
    return wide ? ((const int64_t *)index)[at] : (int64_t)((const int32_t *)index)[at];
}

/* ---- forward ---- */

/* Rows of `width` units; `bad` fills a row whose index lies outside. A place has 2^log_lanes lanes. */
template <typename Unit>
__global__ void __launch_bounds__(THREADS)
    copy_rows(Unit *o, const Unit *table, const void *index, bool wide, int64_t n, int64_t n_rows, int64_t width, int log_lanes, Unit bad) {
    int lanes = 1 << log_lanes, lane = threadIdx.x & (lanes - 1);
    int64_t per_block = THREADS >> log_lanes;
    for (int64_t i = blockIdx.x * per_block + (threadIdx.x >> log_lanes); i < n; i += gridDim.x * per_block) {
        int64_t row = index_at(index, wide, i);
        bool inside = (uint64_t)row < (uint64_t)n_rows;
        const Unit *from = table + (inside ? row : 0) * width;
        for (int64_t column = lane; column < width; column += COPIES * lanes) {
            Unit unit[COPIES];
#pragma unroll
            for (int p = 0; p < COPIES; p++) {
                unit[p] = bad;
                if (inside && column + p * lanes < width) unit[p] = from[column + p * lanes];
            }
#pragma unroll
            for (int p = 0; p < COPIES; p++)
                if (column + p * lanes < width) o[i * width + column + p * lanes] = unit[p];
        }
    }
}

template <typename Unit> static void start_copy(const tn_op_call *call, size_t row_bytes, Unit bad) {
    const tn_tensor *weight = call->in[0], *index = call->in[1];
    int64_t width = (int64_t)(row_bytes / sizeof(Unit));
    int log_lanes = 0;
    while (log_lanes < 5 && (int64_t)COPIES << log_lanes < width) log_lanes++;
    copy_rows<<<tn_blocks(index->numel, THREADS >> log_lanes), THREADS, 0, (cudaStream_t)call->stream>>>(
        (Unit *)call->out[0]->data, (const Unit *)weight->data, index->data, index->dtype == TN_I64, index->numel, weight->shape[0], width,
        log_lanes, bad);
}

extern "C" tn_status tn_embedding_forward_cuda(tn_op_call *call) {
    const tn_tensor *weight = call->in[0], *o = call->out[0];
    tn_status status = tn_index_check_cuda(call, weight->shape[0]);
    if (status != TN_OK || o->numel == 0) return status;
    size_t element = tn_dtype_size(weight->dtype), row_bytes = (size_t)weight->shape[1] * element;
    bool packs = call->device->cuda_path != TN_CUDA_PLAIN && row_bytes % 16 == 0 && tn_aligned16(weight->data) && tn_aligned16(o->data);
    /* NaN in every element. */
    const uint32_t f64_high = 0x7ff80000, f32 = 0x7fc00000, bf16 = 0x7fc07fc0;
    uint32_t low = element == 8 ? 0 : element == 4 ? f32 : bf16, high = element == 8 ? f64_high : low;
    if (packs) start_copy<uint4>(call, row_bytes, make_uint4(low, high, low, high));
    else if (element == 8) start_copy<uint64_t>(call, row_bytes, (uint64_t)high << 32 | low);
    else if (element == 4) start_copy<uint32_t>(call, row_bytes, low);
    else start_copy<uint16_t>(call, row_bytes, (uint16_t)low);
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "embedding forward");
}

/* ---- sums of rows ---- */

/* Where the places of a row lie among the sorted ones; both 0 where there are none. */
struct run_bounds {
    uint32_t begin, end;
};

__global__ void __launch_bounds__(THREADS) mark_runs(run_bounds *runs, const uint32_t *keys, int64_t n, int64_t n_rows) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        uint32_t key = keys[i];
        if (key >= n_rows) continue;
        if (i == 0 || keys[i - 1] != key) runs[key].begin = (uint32_t)i;
        if (i == n - 1 || keys[i + 1] != key) runs[key].end = (uint32_t)i + 1;
    }
}

__device__ __forceinline__ bool is_long(const run_bounds &run) { return run.end - run.begin > PIECE; }

template <typename T> struct row_sums {
    const T *rows;
    T *table;
    tn_wide<T> *parts; /* [piece][2][width] */
    const run_bounds *runs;
    const uint32_t *keys, *places;
    int64_t n, n_rows, width, n_panels, n_pieces;
};

/* What a lane has of the sum of some rows: columns lane, lane + 32, ... of a panel, in packs of N. */
template <typename T, int N> struct panel_sum {
    typedef tn_wide<T> W;
    struct alignas(N * sizeof(T)) group {
        T at[N];
    };
    W at[PANEL][N];

    /* Of at most a warp's size of places; every lane knows one. */
    __device__ __forceinline__ void add(const row_sums<T> &s, uint32_t begin, uint32_t end, int64_t column) {
        int n = (int)(end - begin), lane = threadIdx.x % TN_WARP;
        uint32_t place = lane < n ? s.places[begin + lane] : 0;
        const T *from = s.rows + column;
        bool inside[PANEL];
#pragma unroll
        for (int p = 0; p < PANEL; p++) {
            inside[p] = column + p * TN_WARP * N < s.width;
#pragma unroll
            for (int j = 0; j < N; j++) at[p][j] = 0;
        }
#pragma unroll 1
        for (int first = 0; first < n; first += TOGETHER) {
            union raw {
                group values;
                uint4 bits;
            } read[TOGETHER][PANEL];
#pragma unroll
            for (int k = 0; k < TOGETHER; k++) {
                const T *row = from + __shfl_sync(0xffffffffu, place, (first + k) % TN_WARP) * s.width;
#pragma unroll
                for (int p = 0; p < PANEL; p++) {
                    read[k][p].bits = make_uint4(0, 0, 0, 0);
                    if (inside[p] && first + k < n) read[k][p].values = *(const group *)(row + p * TN_WARP * N);
                }
            }
#pragma unroll
            for (int k = 0; k < TOGETHER; k++)
#pragma unroll
                for (int p = 0; p < PANEL; p++)
#pragma unroll
                    for (int j = 0; j < N; j++) at[p][j] += tn_widen(read[k][p].values.at[j]);
        }
    }
};

template <typename T, bool Packed> __global__ void __launch_bounds__(THREADS, 3) sum_short_runs(row_sums<T> s) {
    constexpr int N = Packed ? tn_pack<T>::n : 1;
    int lane = threadIdx.x % TN_WARP;
    int64_t n_tasks = s.n_rows * s.n_panels, step = (int64_t)gridDim.x * (THREADS / TN_WARP);
    for (int64_t task = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / TN_WARP; task < n_tasks; task += step) {
        int64_t row = task / s.n_panels, column = ((task - row * s.n_panels) * PANEL * TN_WARP + lane) * N;
        run_bounds run = s.runs[row];
        if (is_long(run)) continue;
        panel_sum<T, N> sum;
        sum.add(s, run.begin, run.end, column);
#pragma unroll
        for (int p = 0; p < PANEL; p++) {
            int64_t c = column + p * TN_WARP * N;
            if (c >= s.width) continue;
            typename panel_sum<T, N>::group result;
#pragma unroll
            for (int j = 0; j < N; j++) result.at[j] = tn_narrow<T>(sum.at[p][j]);
            *(typename panel_sum<T, N>::group *)(s.table + row * s.width + c) = result;
        }
    }
}

/* A warp has a piece and a panel. Slot 0 is for the run the piece begins with, slot 1 for another that it ends with. */
template <typename T, bool Packed> __global__ void __launch_bounds__(THREADS, 3) sum_pieces(row_sums<T> s) {
    constexpr int N = Packed ? tn_pack<T>::n : 1;
    int lane = threadIdx.x % TN_WARP;
    int64_t n_tasks = s.n_pieces * s.n_panels, step = (int64_t)gridDim.x * (THREADS / TN_WARP);
    for (int64_t task = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / TN_WARP; task < n_tasks; task += step) {
        int64_t piece = task / s.n_panels, column = ((task - piece * s.n_panels) * PANEL * TN_WARP + lane) * N;
        uint32_t begin = (uint32_t)(piece * PIECE), end = s.n - begin < PIECE ? (uint32_t)s.n : begin + PIECE;
        uint32_t row[2] = { s.keys[begin], s.keys[end - 1] };
        for (int slot = 0; slot < 2; slot++) {
            if (row[slot] >= s.n_rows || (slot == 1 && row[1] == row[0])) continue;
            run_bounds run = s.runs[row[slot]];
            if (!is_long(run)) continue;
            panel_sum<T, N> sum;
            sum.add(s, run.begin > begin ? run.begin : begin, run.end < end ? run.end : end, column);
            tn_wide<T> *part = s.parts + (2 * piece + slot) * s.width;
#pragma unroll
            for (int p = 0; p < PANEL; p++)
#pragma unroll
                for (int j = 0; j < N; j++) {
                    int64_t c = column + p * TN_WARP * N + j;
                    if (c < s.width) part[c] = sum.at[p][j];
                }
        }
    }
}

/* A block looks at the one long run that may begin in its piece and adds the run's partial sums, in f64. */
template <typename T> __global__ void __launch_bounds__(THREADS) sum_parts(row_sums<T> s) {
    for (int64_t piece = blockIdx.x; piece < s.n_pieces; piece += gridDim.x) {
        uint32_t begin = (uint32_t)(piece * PIECE), end = s.n - begin < PIECE ? (uint32_t)s.n : begin + PIECE;
        uint32_t row = s.keys[end - 1];
        if (row >= s.n_rows) continue;
        run_bounds run = s.runs[row];
        if (!is_long(run) || run.begin < begin) continue;
        int64_t last = (run.end - 1) / PIECE;
        const tn_wide<T> *first_part = s.parts + (2 * piece + (run.begin > begin ? 1 : 0)) * s.width;
        for (int64_t c = threadIdx.x; c < s.width; c += THREADS) {
            double sum = first_part[c];
#pragma unroll 8
            for (int64_t next = piece + 1; next <= last; next++) sum += s.parts[2 * next * s.width + c];
            s.table[row * s.width + c] = tn_narrow<T>((tn_wide<T>)sum);
        }
    }
}

static int64_t pieces_of(int64_t n) { return (n + PIECE - 1) / PIECE; }
static size_t up_to_16(size_t bytes) { return (bytes + 15) & ~(size_t)15; }

extern "C" size_t tn_row_sums_bytes(tn_dtype dtype, int64_t n, int64_t n_rows, int64_t width) {
    if (n == 0 || width == 0 || n_rows == 0) return 0;
    size_t wide = dtype == TN_F64 ? sizeof(double) : sizeof(float);
    return up_to_16(tn_index_sort_bytes(n)) + up_to_16((size_t)n_rows * sizeof(run_bounds)) + (size_t)(2 * pieces_of(n) * width) * wide;
}

template <typename T>
static void start_sums(const tn_row_sums *sums, char *runs, char *parts, const tn_index_order &order, cudaStream_t stream) {
    const int pack = tn_pack<T>::n, warps = THREADS / TN_WARP;
    bool packed = !sums->plain && sums->width % pack == 0 && tn_aligned16(sums->rows) && tn_aligned16(sums->table);
    int64_t panel = (int64_t)PANEL * TN_WARP * (packed ? pack : 1);
    row_sums<T> s = { (const T *)sums->rows,
                      (T *)sums->table,
                      (tn_wide<T> *)parts,
                      (const run_bounds *)runs,
                      order.keys,
                      order.places,
                      sums->n,
                      sums->n_rows,
                      sums->width,
                      (sums->width + panel - 1) / panel,
                      pieces_of(sums->n) };
    unsigned short_blocks = tn_blocks(s.n_rows * s.n_panels, warps), piece_blocks = tn_blocks(s.n_pieces * s.n_panels, warps);
    mark_runs<<<tn_blocks(s.n, THREADS), THREADS, 0, stream>>>((run_bounds *)runs, order.keys, s.n, s.n_rows);
    if (packed) {
        sum_short_runs<T, true><<<short_blocks, THREADS, 0, stream>>>(s);
        sum_pieces<T, true><<<piece_blocks, THREADS, 0, stream>>>(s);
    } else {
        sum_short_runs<T, false><<<short_blocks, THREADS, 0, stream>>>(s);
        sum_pieces<T, false><<<piece_blocks, THREADS, 0, stream>>>(s);
    }
    sum_parts<T><<<tn_blocks(s.n_pieces, 1), THREADS, 0, stream>>>(s);
}

extern "C" int tn_row_sums_cuda(const tn_row_sums *sums, void *scratch, void *stream) {
    cudaStream_t on = (cudaStream_t)stream;
    size_t table_bytes = (size_t)(sums->n_rows * sums->width) * tn_dtype_size(sums->dtype);
    if (table_bytes == 0) return 0;
    if (sums->n == 0) return (int)cudaMemsetAsync(sums->table, 0, table_bytes, on);
    char *runs = (char *)scratch + up_to_16(tn_index_sort_bytes(sums->n)),
         *parts = runs + up_to_16((size_t)sums->n_rows * sizeof(run_bounds));
    tn_index_sort sort = {};
    sort.n = sums->n;
    sort.limit = (uint32_t)sums->n_rows;
    sort.index = sums->index;
    sort.wide_index = sums->wide_index;
    sort.stride = sums->stride;
    sort.clear = (uint32_t *)runs;
    sort.n_clear = 2 * sums->n_rows;
    tn_index_order order = tn_index_sorted(&sort, scratch, stream);
    TN_WITH_FLOAT(sums->dtype, T, start_sums<T>(sums, runs, parts, order, on));
    return (int)cudaGetLastError();
}

/* ---- backward ---- */

extern "C" size_t tn_embedding_workspace_cuda(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    const tn_shape *shape = &call->in_spec[0].shape;
    return tn_row_sums_bytes(call->in_spec[0].dtype, call->in[1]->numel, shape->size[0], shape->size[1]);
}

extern "C" tn_status tn_embedding_backward_cuda(tn_op_call *call) {
    const tn_tensor *dweight = call->din[0], *index = call->in[1];
    if (!tn_index_sortable(index->numel, dweight->shape[0])) {
        tn_refuse(call, TN_ERR_UNSUPPORTED, "backward on cuda wanted fewer than 2^31 indices and 2^32 rows");
        return TN_ERR_UNSUPPORTED;
    }
    tn_row_sums sums = {};
    sums.dtype = dweight->dtype;
    sums.index = index->data;
    sums.wide_index = index->dtype == TN_I64;
    sums.plain = call->device->cuda_path == TN_CUDA_PLAIN || dweight->dtype == TN_F64;
    sums.stride = 1;
    sums.n = index->numel;
    sums.n_rows = dweight->shape[0];
    sums.width = dweight->shape[1];
    sums.rows = call->dout[0]->data;
    sums.table = dweight->data;
    return tn_cuda_said(call->device, tn_row_sums_cuda(&sums, call->workspace, call->stream), "embedding backward");
}
