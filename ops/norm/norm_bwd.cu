#include "norm_cuda.cuh"

/* ---- packed: dx, dg and this block's part of dweight and dbias ---- */

/* Writes this block's sum of every column: the teams' sums, added in the order of the teams. */
template <typename T, int PACKS> __device__ __forceinline__ void norm_put_part(const norm_part<T, PACKS> &own, float *part, float *shared, int64_t d, int lane, int lanes) {
    int teams = blockDim.x / lanes, mine = threadIdx.x / lanes;
    __syncthreads();
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int64_t column = (int64_t)(p * lanes + lane) * own.n;
        if (column >= d) continue;
#pragma unroll
        for (int j = 0; j < own.n; j++) {
            if (teams > 1) shared[(int64_t)mine * d + column + j] = own.at[p][j];
            else part[column + j] = own.at[p][j];
        }
    }
    __syncthreads();
    for (int64_t column = threadIdx.x; teams > 1 && column < d; column += blockDim.x) {
        float total = 0;
        for (int t = 0; t < teams; t++) total += shared[(int64_t)t * d + column];
        part[column] = total;
    }
}

/* layer_norm has a bias, rms_norm may be gated; never both. */
template <typename T, int PACKS, bool Gated, bool Biased, int THREADS> __global__ void __launch_bounds__(THREADS) norm_backward_packed(tn_norm_rows job, int team) {
    extern __shared__ float shared[]; /* one row of sums per team, where there are several */
    __shared__ float scratch[TN_WARP];
    int lanes = team ? team : blockDim.x, teams = blockDim.x / lanes, mine = threadIdx.x / lanes;
    norm_team members = {team, (int)threadIdx.x % lanes, scratch};
    norm_part<T, PACKS> dweight, dbias;
    tn_pack<T> weight[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int64_t column = (int64_t)(p * lanes + members.lane) * dweight.n;
        if (job.weight && column < job.d) weight[p] = tn_load_pack((const T *)job.weight + column);
#pragma unroll
        for (int j = 0; j < dweight.n; j++) {
            dweight.at[p][j] = dbias.at[p][j] = 0;
            if (!job.weight || column >= job.d) weight[p].at[j] = tn_narrow<T>(0.0f);
        }
    }

    int64_t begin = (int64_t)blockIdx.x * job.grain, end = begin + job.grain < job.rows ? begin + job.grain : job.rows;
    float inverse_d = 1.0f / (float)job.d;
    for (int64_t first = begin; first < end; first += teams) {
        int64_t row = first + mine;
        bool inside = row < end;
        int64_t at = (inside ? row : end - 1) * job.d;
        norm_part<T, PACKS> dout, x, g;
        dout.load((const T *)job.dout + at, job.d, members.lane, lanes);
        if (Biased && job.wants_bias && inside) {
#pragma unroll
            for (int p = 0; p < PACKS; p++)
#pragma unroll
                for (int j = 0; j < dout.n; j++) dbias.at[p][j] += dout.at[p][j];
        }
        if (!job.x) continue;
        x.load((const T *)job.x + at, job.d, members.lane, lanes);
        if (Gated) g.load((const T *)job.g + at, job.d, members.lane, lanes);
        float rstd = ((const float *)job.rstd)[inside ? row : end - 1], mean = job.mean ? ((const float *)job.mean)[inside ? row : end - 1] : 0.0f;
        float sum = 0, dot = 0;
        /* x becomes the normalised row, dout the gradient u that reaches it, g the gradient of the gate. */
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < x.n; j++) {
                float normal = (x.at[p][j] - mean) * rstd, gate = 1, d = dout.at[p][j], weighted = tn_product_of(d, tn_widen(weight[p].at[j]));
                if (Gated) {
                    gate = norm_gate(job.g_act, g.at[p][j]);
                    g.at[p][j] = weighted * normal * norm_gate_slope(job.g_act, g.at[p][j]);
                }
                if (inside) dweight.at[p][j] += d * normal * gate;
                x.at[p][j] = normal;
                dout.at[p][j] = tn_product_of(weighted, gate);
                sum += dout.at[p][j];
                dot += dout.at[p][j] * normal;
            }
        if (Gated && job.dg && inside) g.store((T *)job.dg + at, job.d, members.lane, lanes);
        if (!job.dx) continue;
        sum = job.center ? members.sum(sum) * inverse_d : 0.0f;
        dot = members.sum(dot) * inverse_d;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < x.n; j++) x.at[p][j] = rstd * (dout.at[p][j] - sum - x.at[p][j] * dot);
        if (inside) x.store((T *)job.dx + at, job.d, members.lane, lanes);
    }

    float *part = (float *)job.scratch + (int64_t)blockIdx.x * 2 * job.d;
    if (job.wants_weight) norm_put_part(dweight, part, shared, job.d, members.lane, lanes);
    if (Biased && job.wants_bias) norm_put_part(dbias, part + job.d, shared, job.d, members.lane, lanes);
}

/* ---- plain: dx and dg by rows; dweight and dbias by columns ---- */

template <typename T> __global__ void norm_backward_plain_rows(tn_norm_rows job) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    for (int64_t row = blockIdx.x; row < job.rows; row += gridDim.x) {
        const T *x = (const T *)job.x + row * job.d, *dout = (const T *)job.dout + row * job.d, *weight = (const T *)job.weight;
        const T *g = job.g ? (const T *)job.g + row * job.d : NULL;
        W rstd = ((const W *)job.rstd)[row], mean = job.mean ? ((const W *)job.mean)[row] : (W)0, sum = 0, dot = 0;
        for (int64_t i = threadIdx.x; i < job.d; i += blockDim.x) {
            W normal = (tn_widen(x[i]) - mean) * rstd, weighted = tn_product_of(tn_widen(dout[i]), tn_widen(weight[i]));
            W u = g ? tn_product_of(weighted, norm_gate(job.g_act, (W)tn_widen(g[i]))) : weighted;
            sum += u;
            dot += u * normal;
            if (job.dg) ((T *)job.dg)[row * job.d + i] = tn_narrow<T>(weighted * normal * norm_gate_slope(job.g_act, (W)tn_widen(g[i])));
        }
        if (!job.dx) continue;
        sum = job.center ? tn_block_sum(sum, scratch) / (W)job.d : (W)0;
        dot = tn_block_sum(dot, scratch) / (W)job.d;
        for (int64_t i = threadIdx.x; i < job.d; i += blockDim.x) {
            W normal = (tn_widen(x[i]) - mean) * rstd, u = tn_product_of(tn_widen(dout[i]), tn_widen(weight[i]));
            if (g) u = tn_product_of(u, norm_gate(job.g_act, (W)tn_widen(g[i])));
            ((T *)job.dx)[row * job.d + i] = tn_narrow<T>(rstd * (u - sum - normal * dot));
        }
    }
}

/* Block (i, chunk): NORM_PLAIN_THREADS columns, the rows of one chunk in order. */
template <typename T> __global__ void norm_backward_plain_columns(tn_norm_rows job) {
    typedef tn_wide<T> W;
    W *part = (W *)job.scratch + (int64_t)blockIdx.y * 2 * job.d;
    int64_t begin = (int64_t)blockIdx.y * job.grain, end = begin + job.grain < job.rows ? begin + job.grain : job.rows;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.d; i += (int64_t)gridDim.x * blockDim.x) {
        W dweight = 0, dbias = 0;
        for (int64_t row = begin; row < end; row++) {
            W d = tn_widen(((const T *)job.dout)[row * job.d + i]);
            dbias += d;
            if (!job.wants_weight) continue;
            W mean = job.mean ? ((const W *)job.mean)[row] : (W)0;
            W normal = (tn_widen(((const T *)job.x)[row * job.d + i]) - mean) * ((const W *)job.rstd)[row];
            dweight += d * normal * (job.g ? norm_gate(job.g_act, (W)tn_widen(((const T *)job.g)[row * job.d + i])) : (W)1);
        }
        part[i] = dweight;
        part[job.d + i] = dbias;
    }
}

/* ---- the chunks' sums, in order ---- */

#define SUM_COLUMNS 32
#define SUM_SLICES 8

template <typename T> __global__ void norm_sum_chunks(const tn_wide<T> *parts, int64_t n_chunks, int64_t d, int which, T *to) {
    typedef tn_wide<T> W;
    __shared__ W slices[SUM_SLICES][SUM_COLUMNS];
    int64_t column = (int64_t)blockIdx.x * SUM_COLUMNS + threadIdx.x, slice = (n_chunks + SUM_SLICES - 1) / SUM_SLICES;
    int64_t begin = threadIdx.y * slice, end = begin + slice < n_chunks ? begin + slice : n_chunks;
    W total = 0;
    for (int64_t chunk = begin; chunk < end && column < d; chunk++) total += parts[(chunk * 2 + which) * d + column];
    slices[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y > 0 || column >= d) return;
    for (int i = 1; i < SUM_SLICES; i++) total += slices[i][threadIdx.x];
    to[column] = tn_narrow<T>(total);
}

/* ---- choice ---- */

static int64_t chunk_rows(int64_t rows) {
    int64_t grain = (rows + NORM_CHUNKS - 1) / NORM_CHUNKS;
    return grain < 16 ? 16 : grain;
}
static int64_t chunk_count(int64_t rows) { return (rows + chunk_rows(rows) - 1) / chunk_rows(rows); }

extern "C" size_t tn_norm_workspace_cuda(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    const tn_tensor *dout = call->dout[0];
    int64_t d = dout->shape[dout->axes - 1], rows = d ? dout->numel / d : 0;
    return (size_t)(chunk_count(rows) * 2 * d) * (dout->dtype == TN_F64 ? sizeof(double) : sizeof(float));
}

template <typename T, int PACKS, int THREADS = NORM_THREADS> static cudaError_t launch_packed(const tn_norm_rows &job, norm_shape shape, cudaStream_t stream) {
    int teams = shape.team ? THREADS / shape.team : 1;
    size_t shared = teams > 1 ? (size_t)(teams * job.d) * sizeof(float) : 0;
    auto kernel = job.g           ? norm_backward_packed<T, PACKS, true, false, THREADS>
                  : job.center ? norm_backward_packed<T, PACKS, false, true, THREADS>
                               : norm_backward_packed<T, PACKS, false, false, THREADS>;
    if (shared > 48 * 1024) {
        cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (error != cudaSuccess) return error;
    }
    kernel<<<(unsigned)chunk_count(job.rows), THREADS, shared, stream>>>(job, shape.team);
    return cudaGetLastError();
}

template <typename T> static cudaError_t launch_backward(const tn_norm_rows &job, cudaStream_t stream) {
    norm_shape shape = norm_shape_of(job.d / tn_pack<T>::n);
    if (shape.packs == 1) return launch_packed<T, 1>(job, shape, stream);
    if (shape.packs == 2) return launch_packed<T, 2>(job, shape, stream);
    if (shape.threads == NORM_THREADS) return launch_packed<T, 4>(job, shape, stream);
    return launch_packed<T, 4, NORM_LONG_THREADS>(job, shape, stream);
}

template <typename T> static cudaError_t launch_plain(const tn_norm_rows &job, cudaStream_t stream) {
    if (job.dx || job.dg) norm_backward_plain_rows<T><<<tn_blocks(job.rows, 1), NORM_PLAIN_THREADS, 0, stream>>>(job);
    dim3 grid(tn_blocks(job.d, NORM_PLAIN_THREADS), (unsigned)chunk_count(job.rows));
    if (job.wants_weight || job.wants_bias) norm_backward_plain_columns<T><<<grid, NORM_PLAIN_THREADS, 0, stream>>>(job);
    return cudaGetLastError();
}

template <typename T> static void sum_chunks(const tn_norm_rows &job, int which, tn_tensor *to, cudaStream_t stream) {
    norm_sum_chunks<T><<<tn_blocks(job.d, SUM_COLUMNS), dim3(SUM_COLUMNS, SUM_SLICES), 0, stream>>>((const tn_wide<T> *)job.scratch, chunk_count(job.rows), job.d,
                                                                                                 which, (T *)to->data);
}

static tn_status backward(tn_op_call *call, tn_norm_rows job, tn_tensor *dweight, tn_tensor *dbias) {
    const tn_tensor *dout = call->dout[0];
    cudaStream_t stream = (cudaStream_t)call->stream;
    job.d = dout->shape[dout->axes - 1];
    job.rows = job.d ? dout->numel / job.d : 0;
    job.grain = chunk_rows(job.rows);
    job.scratch = call->workspace;
    job.dout = dout->data;
    job.wants_weight = dweight != NULL;
    job.wants_bias = dbias != NULL;
    if (job.d == 0) return TN_OK;
    cudaError_t error = cudaSuccess;
    if (job.rows > 0) {
        if (!norm_can_pack(&job, dout->dtype, call->device)) TN_WITH_FLOAT(dout->dtype, T, error = launch_plain<T>(job, stream));
        else error = dout->dtype == TN_F32 ? launch_backward<float>(job, stream) : launch_backward<tn_cuda_bf16>(job, stream);
    }
    if (error == cudaSuccess && dweight) TN_WITH_FLOAT(dout->dtype, T, (sum_chunks<T>(job, 0, dweight, stream)));
    if (error == cudaSuccess && dbias) TN_WITH_FLOAT(dout->dtype, T, (sum_chunks<T>(job, 1, dbias, stream)));
    return tn_cuda_said(call->device, (int)(error == cudaSuccess ? cudaGetLastError() : error), "norm backward");
}

static void *data_of(const tn_tensor *t) { return t ? t->data : NULL; }

extern "C" tn_status tn_rms_norm_backward_cuda(tn_op_call *call) {
    const tn_rms_norm_args *args = (const tn_rms_norm_args *)call->args;
    tn_norm_rows job = {};
    job.g_act = args->g_act;
    job.x = data_of(call->in[0]);
    job.weight = data_of(call->in[1]);
    job.g = data_of(call->in[2]);
    job.rstd = data_of(call->aux[0]);
    job.dx = data_of(call->din[0]);
    job.dg = data_of(call->din[2]);
    return backward(call, job, call->din[1], NULL);
}

extern "C" tn_status tn_layer_norm_backward_cuda(tn_op_call *call) {
    tn_norm_rows job = {};
    job.center = true;
    job.x = data_of(call->in[0]);
    job.weight = data_of(call->in[1]);
    job.rstd = call->n_aux ? data_of(call->aux[0]) : NULL;
    job.mean = call->n_aux ? data_of(call->aux[1]) : NULL;
    job.dx = data_of(call->din[0]);
    return backward(call, job, call->din[1], call->din[2]);
}
