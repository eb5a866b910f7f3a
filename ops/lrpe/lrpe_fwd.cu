/* o = turn(act(x)). Reads x and writes o once (rotate 2T, cosine 3T); softmax over the tokens as lrpe_softmax_seq.cu says. */
#include "lrpe_cuda.cuh"

namespace {

/* Blocks: of a multiprocessor, at least. */
template <typename T, int Kind, int Act, int Blocks>
__global__ void __launch_bounds__(LRPE_THREADS, Blocks) lrpe_forward_packs(const __grid_constant__ lrpe_job job) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1;
    const lrpe_place at = lrpe_place_of(job, N);
    const int64_t angles = job.call.grid.angles, begin = blockIdx.y * job.batch_step;
    const int64_t end = begin + job.batch_step < job.call.batch ? begin + job.batch_step : job.call.batch;
    const T *x = (const T *)job.call.x + lrpe_offset(job.call.x_stride, at) + begin * job.call.x_stride.batch;
    T *o = (T *)job.call.o + lrpe_offset(job.call.o_stride, at) + begin * job.call.o_stride.batch;
    uint4 raw[Parts];
#pragma unroll
    for (int part = 0; part < Parts; part++) raw[part] = tn_ask_pack(x + part * angles, at.inside);

    float sine[N], cosine[N];
    const lrpe_features<N> features(job, at);
    lrpe_sincos<T, N>(lrpe_reach(job, features, at.token), features.theta, sine, cosine);
    if (job.call.table && blockIdx.y == 0) lrpe_table_store<N>(job, at, sine, cosine);

    for (int64_t b = begin; b < end; b++) {
        float value[Parts * N], out[2 * N];
        x += job.call.x_stride.batch;
#pragma unroll
        for (int part = 0; part < Parts; part++) {
            tn_open_pack<T>(raw[part], value + part * N);
            raw[part] = tn_ask_pack(x + part * angles, at.inside && b + 1 < end);
        }
        lrpe_apply<T, Act, Parts, N>(job, b, at, value);
        lrpe_turn<Kind, N>(value, sine, cosine, out);
        if (at.inside) {
            tn_put_pack(o, out);
            tn_put_pack(o + angles, out + N);
        }
        o += job.call.o_stride.batch;
    }
}

template <typename T, int Kind, int Act> void launch(const lrpe_job &job, dim3 grid, cudaStream_t stream) {
    constexpr int Blocks = Act == LRPE_SOFTMAX_TOKENS ? 3 : 4;
    lrpe_forward_packs<T, Kind, Act, Blocks><<<grid, LRPE_THREADS, 0, stream>>>(job);
}

template <typename T, int Kind> void launch_act(const lrpe_job &job, dim3 grid, cudaStream_t stream) {
    if (job.call.softmax == TN_LRPE_SOFTMAX_TOKENS) launch<T, Kind, LRPE_SOFTMAX_TOKENS>(job, grid, stream);
    else if (job.call.act == TN_SOFTMAX) launch<T, Kind, TN_SOFTMAX>(job, grid, stream);
    else if (job.call.act == TN_NONE) launch<T, Kind, TN_NONE>(job, grid, stream);
    else if (job.call.act == TN_SILU && sizeof(T) == 2) launch<T, Kind, sizeof(T) == 2 ? (int)TN_SILU : LRPE_ANY_ACT>(job, grid, stream);
    else launch<T, Kind, LRPE_ANY_ACT>(job, grid, stream);
}

void forward_packs(const lrpe_job &job, cudaStream_t stream) {
    dim3 grid = lrpe_row_blocks(job);
    bool rotate = job.call.kind == TN_ROTATE;
    if (job.call.dtype == TN_F32)
        rotate ? launch_act<float, TN_ROTATE>(job, grid, stream) : launch_act<float, TN_COSINE>(job, grid, stream);
    else rotate ? launch_act<tn_cuda_bf16, TN_ROTATE>(job, grid, stream) : launch_act<tn_cuda_bf16, TN_COSINE>(job, grid, stream);
}

} // namespace

extern "C" tn_status tn_lrpe_forward_cuda(tn_op_call *call) {
    tn_lrpe_call lrpe;
    tn_lrpe_plan(&lrpe, call, false);
    if (lrpe.batch * lrpe.heads * lrpe.grid.tokens * lrpe.width == 0) return TN_OK;
    cudaStream_t stream = (cudaStream_t)call->stream;
    lrpe_scratch scratch = lrpe_scratch_of(&lrpe, call->device, false);
    lrpe_job job;
    lrpe_slab slab;
    cudaError_t error = cudaSuccess;
    if (!lrpe_can_pack(&lrpe, call->device, &job)) {
        error = lrpe_forward_plain(&lrpe, scratch, call->workspace, stream);
    } else if (lrpe.softmax != TN_LRPE_SOFTMAX_TOKENS) {
        forward_packs(job, stream);
    } else if ((slab = lrpe_slab_of(job, call->device, false)).blocks) {
        error = lrpe_forward_on_chip(job, slab, stream);
    } else {
        float *space = (float *)call->workspace, *max = lrpe.max ? (float *)lrpe.max : space + scratch.max;
        float *sum = lrpe.sum ? (float *)lrpe.sum : space + scratch.sum;
        error = lrpe_column_statistics(job, scratch.slices, space + scratch.partials, max, sum, space + scratch.shift, stream);
        job.column_max = max;
        job.column_sum = sum;
        job.column_shift = space + scratch.shift;
        forward_packs(job, stream);
    }
    if (error == cudaSuccess) error = cudaGetLastError();
    return tn_cuda_said(call->device, (int)error, "lrpe forward");
}
