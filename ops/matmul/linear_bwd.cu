/* linear's dsum = dout act'(saved) and dbias = the column sums of dsum, in one pass.
 *
 * A block of 32 x 8 threads owns a panel of 32 packs of columns in a run of `grain` rows. A thread always has the same columns: it takes
 * every eighth row, four at a time so that enough loads are on their way, and adds them up in registers. The eight threads of a column
 * are added in order, and so are, by a second small kernel, the runs.
 *
 *              32 packs of 16 B
 *     row 0   | y = 0: 512 B of one row a warp      |
 *     row 1   | y = 1                               |      parts[run][n], f32 (f64 for f64)
 *      ..     |  ..                                 |
 *     row 8   | y = 0 again                         |
 *
 * Bytes: dout and saved read once, dsum written once. The grain depends on the shape alone, and so do the sums. */
#include "matmul_internal.h"

#include "../activation_cuda.cuh"

#define PANEL_LANES 32
#define PANEL_ROWS 8
#define PANEL_UNROLL 4
#define WANTED_BLOCKS 2048
#define RUNTIME_ACT -1

/* act' from what linear saves: the sum for silu and gelu, o for the others. */
template <int Act, typename W> __device__ __forceinline__ W known_slope(W saved) {
    return Act == TN_SILU || Act == TN_GELU ? tn_act_slope<Act, W>(saved) : tn_act_slope_at_output<Act, W>(saved);
}
template <int Act, typename W> __device__ __forceinline__ W slope_at(int act, W saved) {
    if (Act != RUNTIME_ACT) return known_slope < Act == RUNTIME_ACT ? (int)TN_NONE : Act, W > (saved);
    W slope = 1;
    TN_WITH_ACT(act, Known, slope = (known_slope<Known, W>(saved)));
    return slope;
}

/* Neighbouring columns that a thread takes at once. */
template <typename T, bool Packed> struct column_group {
    static constexpr int n = Packed ? tn_pack<T>::n : 1;
    T at[n];

    __device__ __forceinline__ void load(const T *from) {
        if (Packed) {
            tn_pack<T> pack = tn_load_pack(from);
#pragma unroll
            for (int j = 0; j < n; j++) at[j] = pack.at[j];
        } else {
            at[0] = from[0];
        }
    }
    __device__ __forceinline__ void store(T *to) const {
        if (Packed) {
            tn_pack<T> pack;
#pragma unroll
            for (int j = 0; j < n; j++) pack.at[j] = at[j];
            tn_store_pack(to, pack);
        } else {
            to[0] = at[0];
        }
    }
};

template <typename T, int Act, bool Packed>
__global__ void __launch_bounds__(PANEL_LANES *PANEL_ROWS) linear_slopes(T *dsum, tn_wide<T> *parts, const T *dout, const T *saved, int act,
                                                                         int64_t rows, int64_t n, int64_t grain, int64_t panels) {
    typedef tn_wide<T> W;
    typedef column_group<T, Packed> group;
    __shared__ W of_row[PANEL_ROWS][group::n][PANEL_LANES];
    int64_t run = blockIdx.x / panels, column = (blockIdx.x % panels * PANEL_LANES + threadIdx.x) * group::n;
    int64_t begin = run * grain, end = begin + grain < rows ? begin + grain : rows;
    W sum[group::n];
#pragma unroll
    for (int j = 0; j < group::n; j++) sum[j] = 0;
    if (column >= n) end = begin; /* beyond the rows' end: adds nothing, but waits with the others below */
    for (int64_t row = begin + threadIdx.y; row < end; row += PANEL_ROWS * PANEL_UNROLL) {
        group d[PANEL_UNROLL], s[PANEL_UNROLL];
#pragma unroll
        for (int u = 0; u < PANEL_UNROLL; u++) {
            if (row + u * PANEL_ROWS >= end) break;
            int64_t at = (row + u * PANEL_ROWS) * n + column;
            d[u].load(dout + at);
            if (Act != TN_NONE) s[u].load(saved + at);
        }
#pragma unroll
        for (int u = 0; u < PANEL_UNROLL; u++) {
            if (row + u * PANEL_ROWS >= end) break;
#pragma unroll
            for (int j = 0; j < group::n; j++) {
                W value = tn_widen(d[u].at[j]);
                if (Act != TN_NONE) value *= slope_at<Act, W>(act, tn_widen(s[u].at[j]));
                sum[j] += value;
                d[u].at[j] = tn_narrow<T>(value);
            }
            if (Act != TN_NONE) d[u].store(dsum + (row + u * PANEL_ROWS) * n + column);
        }
    }
    if (!parts) return;
#pragma unroll
    for (int j = 0; j < group::n; j++) of_row[threadIdx.y][j][threadIdx.x] = sum[j];
    __syncthreads();
    if (threadIdx.y > 0 || column >= n) return;
#pragma unroll
    for (int j = 0; j < group::n; j++) {
        W total = 0;
        for (int y = 0; y < PANEL_ROWS; y++) total += of_row[y][j][threadIdx.x];
        parts[run * n + column + j] = total;
    }
}

#define SUM_COLUMNS 32
#define SUM_SLICES 8

template <typename T> __global__ void linear_sum_parts(T *dbias, const tn_wide<T> *parts, int64_t runs, int64_t n) {
    typedef tn_wide<T> W;
    __shared__ W slices[SUM_SLICES][SUM_COLUMNS];
    int64_t column = (int64_t)blockIdx.x * SUM_COLUMNS + threadIdx.x, slice = (runs + SUM_SLICES - 1) / SUM_SLICES;
    int64_t begin = threadIdx.y * slice, end = begin + slice < runs ? begin + slice : runs;
    W total = 0;
    for (int64_t run = begin; run < end && column < n; run++) total += parts[run * n + column];
    slices[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y > 0 || column >= n) return;
    for (int i = 1; i < SUM_SLICES; i++) total += slices[i][threadIdx.x];
    dbias[column] = tn_narrow<T>(total);
}

/* ---- choice ---- */

static int64_t panel_count(int64_t n, int64_t group) { return (n + PANEL_LANES * group - 1) / (PANEL_LANES * group); }

/* Rows of a run: so many runs that the panels of all of them fill a GPU, but none shorter than a step of the loop. */
static int64_t run_rows(tn_dtype dtype, int64_t rows, int64_t n) {
    const int64_t step = PANEL_ROWS * PANEL_UNROLL;
    int64_t panels = panel_count(n, 16 / (int64_t)tn_dtype_size(dtype)), wanted = WANTED_BLOCKS / (panels > 0 ? panels : 1) + 1;
    int64_t grain = ((rows + wanted - 1) / wanted + step - 1) / step * step;
    return grain < step ? step : grain;
}
static int64_t run_count(tn_dtype dtype, int64_t rows, int64_t n) {
    int64_t grain = run_rows(dtype, rows, n);
    return (rows + grain - 1) / grain;
}

extern "C" size_t tn_linear_parts_bytes(tn_dtype dtype, int64_t rows, int64_t n) {
    return (size_t)(run_count(dtype, rows, n) * n) * (dtype == TN_F64 ? sizeof(double) : sizeof(float));
}

template <typename T, int Act, bool Packed> static void launch(const tn_linear_slopes &job, cudaStream_t stream) {
    int64_t panels = panel_count(job.n, column_group<T, Packed>::n), runs = run_count(job.dout->dtype, job.rows, job.n);
    linear_slopes<T, Act, Packed><<<tn_blocks(runs * panels, 1), dim3(PANEL_LANES, PANEL_ROWS), 0, stream>>>(
        (T *)job.dsum, (tn_wide<T> *)(job.dbias ? job.parts : NULL), (const T *)job.dout->data, (const T *)job.saved, job.act, job.rows,
        job.n, run_rows(job.dout->dtype, job.rows, job.n), panels);
}

template <typename T> static bool can_pack(const tn_op_call *call, const tn_linear_slopes &job) {
    return call->device->cuda_path != TN_CUDA_PLAIN && sizeof(T) < 8 && job.n % tn_pack<T>::n == 0 && tn_aligned16(job.dout->data) &&
           tn_aligned16(job.saved) && tn_aligned16(job.dsum);
}

static void launch_for_dtype(const tn_op_call *call, const tn_linear_slopes &job, cudaStream_t stream) {
    if (job.dout->dtype == TN_BF16 && can_pack<tn_cuda_bf16>(call, job))
        TN_WITH_ACT(job.act, Act, (launch<tn_cuda_bf16, Act, true>(job, stream)))
    else if (job.dout->dtype == TN_F32 && can_pack<float>(call, job)) TN_WITH_ACT(job.act, Act, (launch<float, Act, true>(job, stream)))
    else if (job.act == TN_NONE) TN_WITH_FLOAT(job.dout->dtype, T, (launch<T, TN_NONE, false>(job, stream)));
    else TN_WITH_FLOAT(job.dout->dtype, T, (launch<T, RUNTIME_ACT, false>(job, stream)));
}

extern "C" tn_status tn_linear_slopes_cuda(const tn_op_call *call, const tn_linear_slopes *job) {
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (job->n == 0) return TN_OK;
    if (job->rows > 0) launch_for_dtype(call, *job, stream);
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess && job->dbias) {
        TN_WITH_FLOAT(job->dout->dtype, T,
                      (linear_sum_parts<T><<<tn_blocks(job->n, SUM_COLUMNS), dim3(SUM_COLUMNS, SUM_SLICES), 0, stream>>>(
                          (T *)job->dbias->data, (const tn_wide<T> *)job->parts, run_count(job->dout->dtype, job->rows, job->n), job->n)));
        error = cudaGetLastError();
    }
    return tn_cuda_said(call->device, (int)error, "linear backward");
}
