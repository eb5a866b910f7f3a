#include "norm_cuda.cuh"

template <typename T, int PACKS, bool Gated, int THREADS> __global__ void __launch_bounds__(THREADS) norm_forward_packed(tn_norm_rows job, int team) {
    __shared__ float scratch[TN_WARP];
    int lanes = team ? team : blockDim.x, per_block = blockDim.x / lanes;
    norm_team members = {team, (int)threadIdx.x % lanes, scratch};
    norm_part<T, PACKS> weight, bias;
    weight.load((const T *)job.weight, job.d, members.lane, lanes);
    if (job.bias) bias.load((const T *)job.bias, job.d, members.lane, lanes);
    float inverse_d = 1.0f / (float)job.d;
    /* Every lane of a warp goes round equally often, so that the shuffles meet; rows beyond the last are not written. */
    for (int64_t first = (int64_t)blockIdx.x * per_block; first < job.rows; first += (int64_t)gridDim.x * per_block) {
        int64_t row = first + threadIdx.x / lanes;
        bool inside = row < job.rows;
        int64_t at = (inside ? row : job.rows - 1) * job.d;
        norm_part<T, PACKS> x, g;
        x.load((const T *)job.x + at, job.d, members.lane, lanes);
        if (Gated) g.load((const T *)job.g + at, job.d, members.lane, lanes);
        float mean = 0, square = 0;
        if (job.center) {
#pragma unroll
            for (int p = 0; p < PACKS; p++)
#pragma unroll
                for (int j = 0; j < x.n; j++) mean += x.at[p][j];
            mean = members.sum(mean) * inverse_d;
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            bool used = (int64_t)(p * lanes + members.lane) * x.n < job.d;
#pragma unroll
            for (int j = 0; j < x.n; j++) {
                x.at[p][j] -= mean;
                square += used ? x.at[p][j] * x.at[p][j] : 0.0f;
            }
        }
        float rstd = norm_rsqrt(members.sum(square) * inverse_d + (float)job.eps);
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < x.n; j++) {
                float o = x.at[p][j] * rstd * weight.at[p][j];
                if (Gated) o *= norm_gate(job.g_act, g.at[p][j]);
                x.at[p][j] = job.bias ? o + bias.at[p][j] : o;
            }
        if (!inside) continue;
        x.store((T *)job.o + at, job.d, members.lane, lanes);
        if (members.lane == 0) {
            if (job.rstd) ((float *)job.rstd)[row] = rstd;
            if (job.mean) ((float *)job.mean)[row] = mean;
        }
    }
}

template <typename T> __global__ void norm_forward_plain(tn_norm_rows job) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    for (int64_t row = blockIdx.x; row < job.rows; row += gridDim.x) {
        const T *x = (const T *)job.x + row * job.d, *g = job.g ? (const T *)job.g + row * job.d : NULL;
        T *o = (T *)job.o + row * job.d;
        W mean = 0, square = 0;
        for (int64_t i = threadIdx.x; job.center && i < job.d; i += blockDim.x) mean += tn_widen(x[i]);
        if (job.center) mean = tn_block_sum(mean, scratch) / (W)job.d;
        for (int64_t i = threadIdx.x; i < job.d; i += blockDim.x) square += (tn_widen(x[i]) - mean) * (tn_widen(x[i]) - mean);
        W rstd = norm_rsqrt(tn_block_sum(square, scratch) / (W)job.d + (W)job.eps);
        for (int64_t i = threadIdx.x; i < job.d; i += blockDim.x) {
            W value = (tn_widen(x[i]) - mean) * rstd * tn_widen(((const T *)job.weight)[i]);
            if (g) value *= norm_gate(job.g_act, (W)tn_widen(g[i]));
            if (job.bias) value += tn_widen(((const T *)job.bias)[i]);
            o[i] = tn_narrow<T>(value);
        }
        if (threadIdx.x == 0) {
            if (job.rstd) ((W *)job.rstd)[row] = rstd;
            if (job.mean) ((W *)job.mean)[row] = mean;
        }
    }
}

template <typename T, int PACKS, int THREADS = NORM_THREADS> static void launch_packed(const tn_norm_rows &job, norm_shape shape, cudaStream_t stream) {
    int per_block = shape.team ? THREADS / shape.team : 1;
    unsigned blocks = tn_blocks(job.rows, per_block * (shape.team ? 2 : 1)); /* two rounds each, so that weight is read less often */
    if (job.g) norm_forward_packed<T, PACKS, true, THREADS><<<blocks, THREADS, 0, stream>>>(job, shape.team);
    else norm_forward_packed<T, PACKS, false, THREADS><<<blocks, THREADS, 0, stream>>>(job, shape.team);
}

template <typename T> static void launch_forward(const tn_norm_rows &job, cudaStream_t stream) {
    norm_shape shape = norm_shape_of(job.d / tn_pack<T>::n);
    if (shape.packs == 1) launch_packed<T, 1>(job, shape, stream);
    else if (shape.packs == 2) launch_packed<T, 2>(job, shape, stream);
    else if (shape.threads == NORM_THREADS) launch_packed<T, 4>(job, shape, stream);
    else launch_packed<T, 4, NORM_LONG_THREADS>(job, shape, stream);
}

static tn_status forward(tn_op_call *call, const tn_norm_rows &job) {
    tn_dtype dtype = call->in[0]->dtype;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (call->in[0]->numel == 0) return TN_OK;
    if (!norm_can_pack(&job, dtype, call->device))
        TN_WITH_FLOAT(dtype, T, (norm_forward_plain<T><<<tn_blocks(job.rows, 1), NORM_PLAIN_THREADS, 0, stream>>>(job)));
    else if (dtype == TN_F32) launch_forward<float>(job, stream);
    else launch_forward<tn_cuda_bf16>(job, stream);
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "norm forward");
}

static tn_norm_rows rows_of(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    tn_norm_rows job = {};
    job.d = x->shape[x->axes - 1];
    job.rows = job.d ? x->numel / job.d : 0;
    job.x = x->data;
    job.weight = call->in[1]->data;
    job.o = call->out[0]->data;
    return job;
}

extern "C" tn_status tn_rms_norm_forward_cuda(tn_op_call *call) {
    const tn_rms_norm_args *args = (const tn_rms_norm_args *)call->args;
    tn_norm_rows job = rows_of(call);
    job.eps = args->eps;
    job.g_act = args->g_act;
    job.g = call->in[2] ? call->in[2]->data : NULL;
    job.rstd = call->aux[0] ? call->aux[0]->data : NULL;
    return forward(call, job);
}

extern "C" tn_status tn_layer_norm_forward_cuda(tn_op_call *call) {
    const tn_layer_norm_args *args = (const tn_layer_norm_args *)call->args;
    tn_norm_rows job = rows_of(call);
    job.eps = args->eps;
    job.center = true;
    job.bias = call->in[2]->data;
    job.rstd = call->aux[0] ? call->aux[0]->data : NULL;
    job.mean = call->aux[1] ? call->aux[1]->data : NULL;
    return forward(call, job);
}
