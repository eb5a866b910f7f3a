/* The rows' losses on CUDA, in one pass over the logits, and their mean.
 *
 * A lane keeps the largest logit m it has met and the sum of exp(z - m); where a group of packs brings a larger one, the sum is scaled to
 * it. The lanes' pairs are merged at the end of the row. Bytes: the logits and targets once, three numbers a row. */
#include "cross_entropy_rows.cuh"

#include <float.h>

template <typename W> __device__ __forceinline__ W below_all();
template <> __device__ __forceinline__ double below_all<double>() { return -DBL_MAX; }
template <> __device__ __forceinline__ float below_all<float>() { return -FLT_MAX; }

__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }

/* m starts finite, so that logits of minus infinity count as nothing; it passes over a NaN, but the sum does not. */
template <typename W> struct running {
    W max, sum;

    __device__ __forceinline__ running() : max(below_all<W>()), sum(0) {}
    __device__ __forceinline__ void raise(W to) {
        if (to > max) {
            sum *= entropy_exp(max - to);
            max = to;
        }
    }
    template <int M, int N> __device__ __forceinline__ void take(const W (&z)[M][N]) {
        W most = z[0][0];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++) most = larger(z[i][j], most);
        raise(most);
#pragma unroll
        for (int i = 0; i < M; i++) {
            W part = 0;
#pragma unroll
            for (int j = 0; j < N; j++) part += entropy_exp(z[i][j] - max);
            sum += part;
        }
    }
};

template <typename T, int N>
__device__ __forceinline__ void run_over(running<tn_wide<T>> &state, const T *logits, int64_t v, int lane, int team) {
    typedef tn_wide<T> W;
    entropy_cut<N> cut(logits, v);
    int64_t pack = lane;
    for (; pack + (ENTROPY_UNROLL - 1) * team < cut.packs; pack += ENTROPY_UNROLL * team) {
        W z[ENTROPY_UNROLL][N];
#pragma unroll
        for (int u = 0; u < ENTROPY_UNROLL; u++) entropy_load<T, N>(logits + cut.column(pack + u * team), z[u]);
        state.take(z);
    }
    for (; pack < cut.packs; pack += team) {
        W z[1][N];
        entropy_load<T, N>(logits + cut.column(pack), z[0]);
        state.take(z);
    }
    if (N == 1) return;
    W single[1][1];
    if (lane < cut.head) {
        single[0][0] = tn_widen(logits[lane]);
        state.take(single);
    }
    if (cut.tail() + lane < v) {
        single[0][0] = tn_widen(logits[cut.tail() + lane]);
        state.take(single);
    }
}

template <typename T, bool Packed, bool OneWarp> __global__ void entropy_losses(tn_entropy_rows_cuda job) {
    typedef tn_wide<T> W;
    typedef entropy_team<OneWarp> team;
    __shared__ W scratch[TN_WARP];
    constexpr int n = Packed ? tn_pack<T>::n : 1;
    for (int64_t row = team::first_row(); row < job.rows; row += team::row_step()) {
        int64_t target = job.target[row];
        running<W> state;
        W max = 0, log_sum = 0, loss = 0;
        if (target != job.ignore_index) { /* the whole team goes the same way */
            const T *logits = (const T *)job.logits + row * job.row;
            run_over<T, n>(state, logits, job.v, team::lane(), team::size());
            max = OneWarp ? tn_warp_max(state.max) : tn_block_max(state.max, below_all<W>(), scratch);
            W sum = state.sum * entropy_exp(state.max - max);
            log_sum = entropy_log(OneWarp ? tn_warp_sum(sum) : tn_block_sum(sum, scratch));
            loss = target >= 0 && target < job.v ? (max - tn_widen(logits[target])) + log_sum : entropy_nan((W)0);
        }
        if (team::lane() > 0) continue;
        ((W *)job.loss)[row] = loss;
        if (job.max) ((W *)job.max)[row] = max;
        if (job.log_sum) ((W *)job.log_sum)[row] = log_sum;
    }
}

template <typename T, bool Packed> static void launch_losses(const tn_entropy_rows_cuda &job, cudaStream_t stream) {
    unsigned threads = entropy_threads(job.v, Packed ? tn_pack<T>::n : 1), blocks = entropy_blocks(job.rows, job.v);
    if (job.v <= ENTROPY_WARP_ROW) entropy_losses<T, Packed, true><<<blocks, threads, 0, stream>>>(job);
    else entropy_losses<T, Packed, false><<<blocks, threads, 0, stream>>>(job);
}

extern "C" tn_status tn_entropy_losses_cuda(tn_device *device, const tn_entropy_rows_cuda *job, void *stream) {
    cudaStream_t s = (cudaStream_t)stream;
    if (job->rows == 0) return TN_OK;
    if (device->cuda_path != TN_CUDA_PLAIN && job->dtype == TN_BF16) launch_losses<tn_cuda_bf16, true>(*job, s);
    else if (device->cuda_path != TN_CUDA_PLAIN && job->dtype == TN_F32) launch_losses<float, true>(*job, s);
    else TN_WITH_FLOAT(job->dtype, T, (launch_losses<T, false>(*job, s)));
    return tn_cuda_said(device, (int)cudaGetLastError(), "cross_entropy forward");
}

/* ---- the mean: at most PARTS runs of rows, each added by a block, then the runs in order ---- */

#define PARTS 256
#define PART_ROWS 2048 /* rows below which one more block is not worth it */
#define PART_THREADS 256

static int64_t part_rows(int64_t rows) {
    int64_t even = (rows + PARTS - 1) / PARTS;
    return even < PART_ROWS ? PART_ROWS : even;
}
static int64_t part_count(int64_t rows) { return (rows + part_rows(rows) - 1) / part_rows(rows); }

extern "C" size_t tn_entropy_mean_bytes_cuda(int64_t rows) { return (size_t)part_count(rows) * 2 * sizeof(double); }

/* parts[run] = the sum of the losses that count, and how many they are. */
template <typename W>
__global__ void __launch_bounds__(PART_THREADS)
    sum_losses(double *parts, const W *loss, const int64_t *target, int64_t rows, int64_t grain, int64_t ignore_index) {
    __shared__ double scratch[TN_WARP];
    int64_t begin = blockIdx.x * grain, end = begin + grain < rows ? begin + grain : rows;
    double sum = 0, count = 0;
    for (int64_t row = begin + threadIdx.x; row < end; row += PART_THREADS) {
        if (target[row] == ignore_index) continue;
        if (loss) sum += loss[row];
        count += 1;
    }
    sum = tn_block_sum(sum, scratch);
    count = tn_block_sum(count, scratch);
    if (threadIdx.x > 0) return;
    parts[2 * blockIdx.x] = sum;
    parts[2 * blockIdx.x + 1] = count;
}

__device__ __forceinline__ void put_number(double *to, double value) { *to = value; }
__device__ __forceinline__ void put_number(float *to, double value) { *to = (float)value; }
__device__ __forceinline__ void put_number(tn_cuda_bf16 *to, double value) { *to = __double2bfloat16(value); }

/* do, of the logits' dtype or f32; NULL stands for 1. */
struct upstream_scalar {
    const void *data;
    tn_dtype dtype;
};
__device__ __forceinline__ double value_of(upstream_scalar dout) {
    if (!dout.data) return 1;
    if (dout.dtype == TN_F64) return *(const double *)dout.data;
    return dout.dtype == TN_F32 ? *(const float *)dout.data : tn_widen(*(const tn_cuda_bf16 *)dout.data);
}

/* *to = the sum, or with `by_sum` not set dout, by the count. */
template <typename To>
__global__ void __launch_bounds__(PART_THREADS)
    divide_by_count(To *to, bool by_sum, upstream_scalar dout, const double *parts, int64_t n_parts) {
    __shared__ double scratch[TN_WARP];
    double sum = 0, count = 0;
    for (int64_t part = threadIdx.x; part < n_parts; part += PART_THREADS) {
        sum += parts[2 * part];
        count += parts[2 * part + 1];
    }
    sum = tn_block_sum(sum, scratch);
    count = tn_block_sum(count, scratch);
    if (threadIdx.x > 0) return;
    double shared = by_sum ? sum : value_of(dout);
    put_number(to, count > 0 ? shared / count : 0.0);
}

template <typename W>
static void launch_sums(double *parts, const W *loss, const int64_t *target, int64_t rows, int64_t ignore_index, cudaStream_t stream) {
    if (rows > 0)
        sum_losses<W><<<(unsigned)part_count(rows), PART_THREADS, 0, stream>>>(parts, loss, target, rows, part_rows(rows), ignore_index);
}

extern "C" tn_status tn_entropy_mean_cuda(tn_device *device, const void *loss, const int64_t *target, int64_t rows, int64_t ignore_index,
                                          tn_tensor *o, void *scratch, void *stream) {
    cudaStream_t s = (cudaStream_t)stream;
    TN_WITH_FLOAT(o->dtype, T, {
        launch_sums<tn_wide<T>>((double *)scratch, (const tn_wide<T> *)loss, target, rows, ignore_index, s);
        divide_by_count<T>
            <<<1, PART_THREADS, 0, s>>>((T *)o->data, true, upstream_scalar{ NULL, TN_F32 }, (const double *)scratch, part_count(rows));
    });
    return tn_cuda_said(device, (int)cudaGetLastError(), "cross_entropy mean");
}

extern "C" tn_status tn_entropy_scale_cuda(tn_device *device, tn_dtype dtype, const tn_tensor *dout, const int64_t *target, int64_t rows,
                                           int64_t ignore_index, void *scale, void *scratch, void *stream) {
    cudaStream_t s = (cudaStream_t)stream;
    upstream_scalar by = { dout ? dout->data : NULL, dout ? dout->dtype : TN_F32 };
    TN_WITH_FLOAT(dtype, T, {
        launch_sums<float>((double *)scratch, NULL, target, rows, ignore_index, s);
        divide_by_count<tn_wide<T>><<<1, PART_THREADS, 0, s>>>((tn_wide<T> *)scale, false, by, (const double *)scratch, part_count(rows));
    });
    return tn_cuda_said(device, (int)cudaGetLastError(), "cross_entropy scale");
}
