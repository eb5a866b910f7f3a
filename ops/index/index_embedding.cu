/* Rows of a table by index, and the sums of rows that belong to the same row of the table.
 *
 * Forward copies: a group of lanes takes a place, each lane up to 4 packs of 16 bytes before it writes them.
 *
 * Backward lists the places of each row (index_lists.cu), and then
 *
 *     rows of at most 32 places     a warp has a few rows and a panel of columns and adds their places in rising order: what comes next is
 *                                   the least of those that lanes still hold. Rows without places get zeros
 *     rows of more                  blocks beside those bring their places in order; then they are cut every 32, a warp sums a piece,
 *                                   and a block adds the pieces' sums in order
 *
 *         a | 5 . . |      b | . . . |      c | 0 1 2 .. 31 | 32 33 .. 63 | 64 .. |
 *
 * Every row of the table is written once, no sum depends on the order in which threads run, and one word that fills the whole batch is
 * still spread over all multiprocessors. Bytes: do and the table once, the index and the lists (about 40 bytes a place), sums of pieces
 * (2 / 32 of do in f32 at most, written and read). */
#include "index_cuda.h"
#include "index_lists.cuh"

#include "../../libtensor/cuda_common.cuh"
#include "../op_support.h"

#define THREADS 256
#define PIECE TN_INDEX_PIECE /* places, as many as a warp has lanes */
#define COPIES 4             /* loads of a lane in forward */
#define PIECE_PANEL 2        /* loads of a lane from one place in a piece */
#define ROWS 4               /* of a warp */
#define SORT_BLOCKS 132      /* that bring places in order, beside those that sum short rows */
#define WINDOW_WORDS 4096    /* places are sorted as bits, so many words at a time */
#define PARTS_COLUMNS 32
#define PARTS_SLICES 8

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

template <typename T> struct row_sums {
    const T *rows;
    T *table;
    tn_wide<T> *parts; /* [piece][width] */
    tn_index_lists lists;
    int64_t n, n_rows, width, n_panels;
    bool hopper;
};

/* Places as bits of a window over all n: in order by themselves. A block has a row. */
__device__ __forceinline__ void sort_long_rows(const tn_index_lists &lists, int64_t n, uint32_t n_blocks) {
    __shared__ uint32_t present[WINDOW_WORDS], of_warp[THREADS / TN_WARP];
    const int own_words = WINDOW_WORDS / THREADS;
    int lane = threadIdx.x % TN_WARP, warp = threadIdx.x / TN_WARP;
    for (uint32_t r = blockIdx.x; r < lists.totals[TN_INDEX_LONG_ROWS]; r += n_blocks) {
        tn_index_long_row row = lists.long_rows[r];
        uint32_t done = 0;
        for (int64_t base = 0; base < n && done < row.count; base += 32 * WINDOW_WORDS) {
            for (int w = threadIdx.x; w < WINDOW_WORDS; w += THREADS) present[w] = 0;
            __syncthreads();
            for (uint32_t k = threadIdx.x; k < row.count; k += THREADS) {
                int64_t at = (int64_t)lists.places[row.begin + k] - base;
                if (at >= 0 && at < 32 * WINDOW_WORDS) atomicOr(&present[at / 32], 1u << at % 32);
            }
            __syncthreads();
            uint32_t own = 0;
            for (int w = 0; w < own_words; w++) own += __popc(present[threadIdx.x * own_words + w]);
            uint32_t upto = own;
            for (int step = 1; step < TN_WARP; step *= 2) {
                uint32_t below = __shfl_up_sync(0xffffffffu, upto, step);
                if (lane >= step) upto += below;
            }
            if (lane == TN_WARP - 1) of_warp[warp] = upto;
            __syncthreads();
            uint32_t to = row.begin + done + upto - own;
            for (int w = 0; w < THREADS / TN_WARP; w++) {
                if (w < warp) to += of_warp[w];
                done += of_warp[w];
            }
            for (int w = 0; w < own_words; w++)
                for (uint32_t bits = present[threadIdx.x * own_words + w]; bits; bits &= bits - 1)
                    lists.sorted[to++] = (uint32_t)(base + (threadIdx.x * own_words + w) * 32 + __ffs(bits) - 1);
            __syncthreads();
        }
        for (uint32_t k = threadIdx.x; k * TN_INDEX_PIECE < row.count; k += THREADS) lists.piece_of[row.first_piece + k] = r;
    }
}

template <typename T, int N> struct alignas(N * sizeof(T)) column_group { T at[N]; };

/* What a lane has of the sum of some places: columns lane, lane + 32, ... of a panel, in groups of N. */
template <typename T, int N, int Panel> struct panel_sum {
    typedef tn_wide<T> W;
    typedef column_group<T, N> group;
    static constexpr int together = Panel > 2 ? 2 : 4; /* places whose loads are on their way together */
    W at[Panel][N];

    /* Of n places, at most a warp's size: a lane holds one, or UINT32_MAX. In rising order, whoever holds them. */
    __device__ __forceinline__ void add(const row_sums<T> &s, uint32_t held, int n, int64_t column) {
        const T *from = s.rows + column;
        bool inside[Panel];
#pragma unroll
        for (int p = 0; p < Panel; p++) {
            inside[p] = column + p * TN_WARP * N < s.width;
#pragma unroll
            for (int j = 0; j < N; j++) at[p][j] = 0;
        }
#pragma unroll 1
        for (int first = 0; first < n; first += together) {
            union raw {
                group values;
                uint4 bits;
            } read[together][Panel];
#pragma unroll
            for (int k = 0; k < together; k++) {
                uint32_t place = __reduce_min_sync(0xffffffffu, held);
                if (held == place) held = UINT32_MAX;
#pragma unroll
                for (int p = 0; p < Panel; p++) {
                    read[k][p].bits = make_uint4(0, 0, 0, 0);
                    if (inside[p] && first + k < n) read[k][p].values = *(const group *)(from + (int64_t)place * s.width + p * TN_WARP * N);
                }
            }
#pragma unroll
            for (int k = 0; k < together; k++)
#pragma unroll
                for (int p = 0; p < Panel; p++)
#pragma unroll
                    for (int j = 0; j < N; j++) at[p][j] += tn_widen(read[k][p].values.at[j]);
        }
    }
    __device__ __forceinline__ void store(const row_sums<T> &s, int64_t row, int64_t column) const {
#pragma unroll
        for (int p = 0; p < Panel; p++) {
            int64_t c = column + p * TN_WARP * N;
            if (c >= s.width) continue;
            if constexpr (N > 1) {
                tn_pack<T> result;
#pragma unroll
                for (int j = 0; j < N; j++) result.at[j] = tn_narrow<T>(at[p][j]);
                tn_store_pack(s.table + row * s.width + c, result);
            } else {
                s.table[row * s.width + c] = tn_narrow<T>(at[p][0]);
            }
        }
    }
};

/* The first blocks sort the places of long rows. The places of a warp's next row are read while it sums one. */
template <typename T, int N, int Panel> __global__ void __launch_bounds__(THREADS, Panel > 2 ? 2 : 3) sum_short_rows(row_sums<T> s) {
    tn_let_next_start();
    tn_wait_for_last();
    if (blockIdx.x < SORT_BLOCKS) {
        sort_long_rows(s.lists, s.n, SORT_BLOCKS);
        return;
    }
    int lane = threadIdx.x % TN_WARP;
    int64_t task = ((int64_t)(blockIdx.x - SORT_BLOCKS) * THREADS + threadIdx.x) / TN_WARP, rows = task / s.n_panels * ROWS;
    int64_t column = (task % s.n_panels * Panel * TN_WARP + lane) * N;
    bool has_row = lane < ROWS && rows + lane < s.n_rows;
    uint32_t count = has_row ? s.lists.count[rows + lane] : UINT32_MAX, begin = has_row ? s.lists.begin[rows + lane] : 0;
    uint32_t next = 0;
#pragma unroll 1
    for (int r = -1; r < ROWS; r++) {
        uint32_t held = next;
        if (r + 1 < ROWS) {
            uint32_t n = __shfl_sync(0xffffffffu, count, r + 1), at = __shfl_sync(0xffffffffu, begin, r + 1);
            next = n <= PIECE && (uint32_t)lane < n ? s.lists.places[at + lane] : UINT32_MAX;
        }
        uint32_t n = __shfl_sync(0xffffffffu, count, r < 0 ? 0 : r);
        if (r < 0 || n > PIECE) continue; /* a long row, or none */
        panel_sum<T, N, Panel> sum;
        sum.add(s, held, (int)n, column);
        sum.store(s, rows + r, column);
    }
}

/* A warp has a piece of a long row and a panel. */
template <typename T, int N> __global__ void __launch_bounds__(THREADS, 3) sum_pieces(row_sums<T> s) {
    tn_let_next_start();
    tn_wait_for_last();
    int lane = threadIdx.x % TN_WARP;
    int64_t n_tasks = s.lists.totals[TN_INDEX_PIECES] * s.n_panels, step = (int64_t)gridDim.x * (THREADS / TN_WARP);
    for (int64_t task = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / TN_WARP; task < n_tasks; task += step) {
        int64_t piece = task / s.n_panels, column = ((task - piece * s.n_panels) * PIECE_PANEL * TN_WARP + lane) * N;
        tn_index_long_row row = s.lists.long_rows[s.lists.piece_of[piece]];
        uint32_t from = (uint32_t)(piece - row.first_piece) * PIECE, left = row.count - from, n = left < PIECE ? left : PIECE;
        uint32_t held = (uint32_t)lane < n ? s.lists.sorted[row.begin + from + lane] : UINT32_MAX;
        panel_sum<T, N, PIECE_PANEL> sum;
        sum.add(s, held, (int)n, column);
#pragma unroll
        for (int p = 0; p < PIECE_PANEL; p++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                int64_t c = column + p * TN_WARP * N + j;
                if (c < s.width) s.parts[piece * s.width + c] = sum.at[p][j];
            }
    }
}

/* A block adds the pieces' sums of a long row in 32 columns: eight slices of the pieces, each in order, then the slices in order; in
 * f64. */
template <typename T> __global__ void __launch_bounds__(PARTS_COLUMNS *PARTS_SLICES) sum_parts(row_sums<T> s) {
    __shared__ double of_slice[PARTS_SLICES][PARTS_COLUMNS];
    tn_wait_for_last();
    int64_t groups = (s.width + PARTS_COLUMNS - 1) / PARTS_COLUMNS, n_tasks = s.lists.totals[TN_INDEX_LONG_ROWS] * groups;
    for (int64_t task = blockIdx.x; task < n_tasks; task += gridDim.x) {
        tn_index_long_row row = s.lists.long_rows[task / groups];
        int64_t c = task % groups * PARTS_COLUMNS + threadIdx.x, n = (row.count + PIECE - 1) / PIECE;
        int64_t slice = (n + PARTS_SLICES - 1) / PARTS_SLICES, begin = threadIdx.y * slice, end = begin + slice < n ? begin + slice : n;
        const tn_wide<T> *parts = s.parts + (int64_t)row.first_piece * s.width + c;
        double sum = 0;
        if (c < s.width) {
#pragma unroll 8
            for (int64_t i = begin; i < end; i++) sum += parts[i * s.width];
        }
        of_slice[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && c < s.width) {
            for (int i = 1; i < PARTS_SLICES; i++) sum += of_slice[i][threadIdx.x];
            s.table[(int64_t)row.row * s.width + c] = tn_narrow<T>((tn_wide<T>)sum);
        }
        __syncthreads();
    }
}

/* ---- launches ---- */

static size_t parts_bytes(tn_dtype dtype, int64_t n, int64_t width) {
    return (size_t)(tn_index_most_pieces(n) * width) * (dtype == TN_F64 ? sizeof(double) : sizeof(float));
}

extern "C" size_t tn_row_sums_bytes(tn_dtype dtype, int64_t n, int64_t n_rows, int64_t width) {
    if (n == 0 || width == 0 || n_rows == 0) return 0;
    return tn_index_lists_bytes(n, n_rows) + parts_bytes(dtype, n, width);
}

/* Starts a kernel that waits for the one before by itself; the launch is over by then. */
template <typename T>
static void start_behind(void (*kernel)(row_sums<T>), unsigned blocks, dim3 threads, const row_sums<T> &s, cudaStream_t stream) {
    cudaLaunchAttribute early;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = threads;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = s.hopper ? 1 : 0;
    cudaLaunchKernelEx(&config, kernel, s);
}

template <typename T, int N, int Panel> static void start_short(row_sums<T> s, cudaStream_t stream) {
    int64_t panel = (int64_t)Panel * TN_WARP * N;
    s.n_panels = (s.width + panel - 1) / panel;
    unsigned blocks = tn_blocks((s.n_rows + ROWS - 1) / ROWS * s.n_panels, THREADS / TN_WARP);
    start_behind(sum_short_rows<T, N, Panel>, SORT_BLOCKS + blocks, dim3(THREADS), s, stream);
}

template <typename T, int N> static void start_sums(row_sums<T> s, cudaStream_t stream) {
    int64_t lines = (s.width + TN_WARP * N - 1) / (TN_WARP * N), piece_panel = (int64_t)PIECE_PANEL * TN_WARP * N;
    if (lines == 1) {
        start_short<T, N, 1>(s, stream);
    } else if constexpr (N > 1) {
        if (lines % 4 != 0 && lines % 3 == 0) start_short<T, N, 3>(s, stream);
        else if (lines > 2) start_short<T, N, 4>(s, stream);
        else start_short<T, N, 2>(s, stream);
    } else {
        start_short<T, N, 2>(s, stream);
    }
    s.n_panels = (s.width + piece_panel - 1) / piece_panel;
    /* How many there are only the device knows; most often none. */
    unsigned most = 4 * SORT_BLOCKS, wanted = tn_blocks(tn_index_most_pieces(s.n) * s.n_panels, THREADS / TN_WARP);
    unsigned blocks = wanted < most ? wanted : most;
    start_behind(sum_pieces<T, N>, blocks, dim3(THREADS), s, stream);
    start_behind(sum_parts<T>, blocks, dim3(PARTS_COLUMNS, PARTS_SLICES), s, stream);
}

template <typename T> static void choose_width(const tn_row_sums *sums, const row_sums<T> &s, cudaStream_t stream) {
    constexpr int pack = sizeof(T) < 8 ? tn_pack<T>::n : 1;
    bool packed = !sums->plain && sums->width % pack == 0 && tn_aligned16(sums->rows) && tn_aligned16(sums->table);
    if (packed && pack > 1) start_sums<T, pack>(s, stream);
    else start_sums<T, 1>(s, stream);
}

extern "C" int tn_row_sums_cuda(const tn_row_sums *sums, void *scratch, void *stream) {
    cudaStream_t on = (cudaStream_t)stream;
    size_t table_bytes = (size_t)(sums->n_rows * sums->width) * tn_dtype_size(sums->dtype);
    if (table_bytes == 0) return 0;
    if (sums->n == 0) return (int)cudaMemsetAsync(sums->table, 0, table_bytes, on);
    tn_index_lists lists = tn_index_lists_in(scratch, sums->n, sums->n_rows);
    tn_index_source source = { sums->index, sums->wide_index, sums->stride, sums->n, (uint32_t)sums->n_rows };
    cudaError_t error = (cudaError_t)tn_index_list_places(&source, &lists, sums->multiprocessors, stream);
    if (error != cudaSuccess) return (int)error;
    void *parts = (char *)scratch + tn_index_lists_bytes(sums->n, sums->n_rows);
    TN_WITH_FLOAT(sums->dtype, T, {
        row_sums<T> s = { (const T *)sums->rows, (T *)sums->table, (tn_wide<T> *)parts, lists, sums->n, sums->n_rows, sums->width, 0,
                          sums->hopper };
        choose_width<T>(sums, s, on);
    });
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
    sums.multiprocessors = call->device->multiprocessors;
    sums.hopper = call->device->cuda_path == TN_CUDA_HOPPER;
    sums.rows = call->dout[0]->data;
    sums.table = dweight->data;
    return tn_cuda_said(call->device, tn_row_sums_cuda(&sums, call->workspace, call->stream), "embedding backward");
}
