/* dx = act'(x) * turned back do, and dtheta. Reads do (and x, where there is an act or dtheta is wanted) once, writes dx once: rotate 2T or
 * 3T, cosine 3T or 4T; softmax over the tokens as lrpe_softmax_seq.cu says.
 *
 * With dtheta a block stays with one head and walks a run of its tokens; a thread adds s * dA of its features up in f32, the rows of the
 * block are added in order, and lrpe_sum_parts adds what the blocks have left, [run and batches][head][W]. */
#include "lrpe_cuda.cuh"

namespace {

/* One row's features of all of the block's batches. `angle` gets dA summed over them where Wants. With Early the next batch's packs are
 * asked for before this one's are worked on, which pays where that takes long, and takes registers. */
template <typename T, int Kind, int Act, bool Early, bool Wants>
__device__ __forceinline__ void backward_row(const lrpe_job &job, const lrpe_place &at, int64_t begin, int64_t end, float *position,
                                             float *angle) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1;
    constexpr bool NeedsX = Act != TN_NONE || Wants;
    const int64_t angles = job.call.grid.angles;
    const int lanes = 1 << job.lanes_log2;
    const T *x = (const T *)job.call.x, *d = (const T *)job.call.d + lrpe_offset(job.call.do_stride, at) + begin * job.call.do_stride.batch;
    T *dx = (T *)job.call.dx;
    if (NeedsX) x += lrpe_offset(job.call.x_stride, at) + begin * job.call.x_stride.batch;
    if (dx) dx += lrpe_offset(job.call.dx_stride, at) + begin * job.call.dx_stride.batch;

    uint4 raw[2], raw_x[Parts];
    auto ask = [&](bool wanted) {
#pragma unroll
        for (int part = 0; part < 2; part++) raw[part] = tn_ask_pack(d + part * angles, wanted);
#pragma unroll
        for (int part = 0; NeedsX && part < Parts; part++) raw_x[part] = tn_ask_pack(x + part * angles, wanted);
        d += job.call.do_stride.batch;
        if (NeedsX) x += job.call.x_stride.batch;
    };
    ask(at.inside);

    float sine[N], cosine[N];
    if (job.call.table) lrpe_table_load<N>(job, at, sine, cosine);
    if (Wants || !job.call.table) {
        const lrpe_features<N> features(job, at);
        const lrpe_reach reach(job, features, at.token);
        if (!job.call.table) lrpe_sincos<T, N>(reach, features.theta, sine, cosine);
#pragma unroll
        for (int j = 0; Wants && j < N; j++) position[j] = (float)reach[j].whole;
    }
#pragma unroll
    for (int j = 0; Wants && j < N; j++) angle[j] = 0;

    for (int64_t b = begin; b < end; b++) {
        float upstream[2 * N], value[Parts * N], out[Parts * N], scale = 1;
#pragma unroll
        for (int part = 0; NeedsX && part < Parts; part++) tn_open_pack<T>(raw_x[part], value + part * N);
        if (Act == TN_SOFTMAX) {
            scale = lrpe_softmax_weights<T, Parts * N>(value, at.inside, lanes);
#pragma unroll
            for (int part = 0; part < 2; part++) tn_forget_pack(raw[part]); /* or their numbers would take registers from here on */
        }
#pragma unroll
        for (int part = 0; part < 2; part++) tn_open_pack<T>(raw[part], upstream + part * N);
        if (Early) ask(at.inside && b + 1 < end);
        lrpe_turn_back<Kind, N>(upstream, sine, cosine, out);
        if (Wants) {
            float acted[Parts * N];
#pragma unroll
            for (int j = 0; j < Parts * N; j++) acted[j] = value[j] * scale;
            if (Act != TN_SOFTMAX) lrpe_apply<T, Act, Parts, N>(job, b, at, acted);
#pragma unroll
            for (int j = 0; j < N; j++)
                angle[j] += Kind == TN_ROTATE ? acted[j] * out[Parts * N - N + j] - acted[Parts * N - N + j] * out[j]
                                              : acted[j] * (upstream[N + j] * cosine[j] - upstream[j] * sine[j]);
        }
        if (Act == TN_SOFTMAX) lrpe_softmax_slope<Parts * N>(value, scale, at.inside, lanes, out);
        else if (Act != TN_NONE && dx) lrpe_apply_slope<T, Act, Parts, N>(job, b, at, value, out);
        if (at.inside && dx) {
#pragma unroll
            for (int part = 0; part < Parts; part++) tn_put_pack(dx + part * angles, out + part * N);
        }
        if (dx) dx += job.call.dx_stride.batch;
        if (!Early && b + 1 < end) ask(at.inside);
    }
}

/* Blocks: of a multiprocessor, at least. */
template <typename T, int Kind, int Act, bool Early, int Blocks>
__global__ void __launch_bounds__(LRPE_THREADS, Blocks) lrpe_backward_packs(const __grid_constant__ lrpe_job job) {
    int64_t begin = blockIdx.y * job.batch_step, end = begin + job.batch_step < job.call.batch ? begin + job.batch_step : job.call.batch;
    backward_row<T, Kind, Act, Early, false>(job, lrpe_place_of(job, tn_pack<T>::n), begin, end, NULL, NULL);
}

/* Block (run of tokens, head), batches. */
template <typename T, int Kind, int Act>
__global__ void __launch_bounds__(LRPE_THREADS) lrpe_backward_theta(const __grid_constant__ lrpe_job job) {
    constexpr int N = tn_pack<T>::n;
    extern __shared__ float sums[]; /* [row of the block][lanes * N] */
    int64_t begin = blockIdx.y * job.batch_step, end = begin + job.batch_step < job.call.batch ? begin + job.batch_step : job.call.batch;
    uint32_t lane = threadIdx.x & ((1u << job.lanes_log2) - 1), slot = threadIdx.x >> job.lanes_log2,
             slots = LRPE_THREADS >> job.lanes_log2;
    uint32_t run = blockIdx.x / job.heads, runs = gridDim.x / job.heads, length = (job.tokens + runs - 1) / runs;
    uint32_t first = run * length, last = first + length < job.tokens ? first + length : job.tokens;
    lrpe_place at = { 0, blockIdx.x - run * job.heads, lane < job.packs ? lane * N : 0, false };
    float total[N], position[N], angle[N];
#pragma unroll
    for (int j = 0; j < N; j++) total[j] = 0;
    for (uint32_t token = first; token < last; token += slots) {
        at.inside = lane < job.packs && token + slot < last;
        at.token = at.inside ? token + slot : first;
        backward_row<T, Kind, Act, true, true>(job, at, begin, end, position, angle);
#pragma unroll
        for (int j = 0; j < N; j++) total[j] += at.inside ? position[j] * angle[j] : 0.0f;
    }
    uint32_t columns = N << job.lanes_log2;
#pragma unroll
    for (int j = 0; j < N; j++) sums[slot * columns + lane * N + j] = total[j];
    __syncthreads();
    float *part = job.parts + ((int64_t)(blockIdx.y * runs + run) * job.heads + at.head) * job.call.grid.angles;
    for (uint32_t column = threadIdx.x; column < job.call.grid.angles; column += LRPE_THREADS) {
        double sum = 0;
        for (uint32_t s = 0; s < slots; s++) sum += (double)sums[s * columns + column];
        part[column] = (float)sum;
    }
}

template <typename T, int Kind, int Act> void launch(const lrpe_job &job, dim3 grid, cudaStream_t stream) {
    constexpr bool Early = Act == TN_SOFTMAX || Act == LRPE_SOFTMAX_TOKENS;
    constexpr int Blocks = Act == LRPE_SOFTMAX_TOKENS ? 2 : Early ? 3 : 4;
    lrpe_backward_packs<T, Kind, Act, Early, Blocks><<<grid, LRPE_THREADS, 0, stream>>>(job);
}

template <typename T, int Kind> void launch_act(const lrpe_job &job, dim3 grid, cudaStream_t stream) {
    if (job.call.softmax == TN_LRPE_SOFTMAX_TOKENS) launch<T, Kind, LRPE_SOFTMAX_TOKENS>(job, grid, stream);
    else if (job.call.act == TN_SOFTMAX) launch<T, Kind, TN_SOFTMAX>(job, grid, stream);
    else if (job.call.act == TN_NONE) launch<T, Kind, TN_NONE>(job, grid, stream);
    else if (job.call.act == TN_SILU && sizeof(T) == 2) launch<T, Kind, sizeof(T) == 2 ? (int)TN_SILU : LRPE_ANY_ACT>(job, grid, stream);
    else launch<T, Kind, LRPE_ANY_ACT>(job, grid, stream);
}

template <typename T, int Kind> void launch_theta(const lrpe_job &job, dim3 grid, cudaStream_t stream) {
    size_t shared = LRPE_THREADS * tn_pack<T>::n * sizeof(float);
    if (job.call.softmax == TN_LRPE_SOFTMAX_TOKENS)
        lrpe_backward_theta<T, Kind, LRPE_SOFTMAX_TOKENS><<<grid, LRPE_THREADS, shared, stream>>>(job);
    else if (job.call.act == TN_SOFTMAX) lrpe_backward_theta<T, Kind, TN_SOFTMAX><<<grid, LRPE_THREADS, shared, stream>>>(job);
    else lrpe_backward_theta<T, Kind, LRPE_ANY_ACT><<<grid, LRPE_THREADS, shared, stream>>>(job);
}

template <typename T, int Kind> void launch_any(const lrpe_job &job, int64_t n_parts, cudaStream_t stream) {
    dim3 rows = lrpe_row_blocks(job);
    if (job.call.dtheta) launch_theta<T, Kind>(job, dim3((unsigned)(n_parts / rows.y * job.heads), rows.y), stream);
    else launch_act<T, Kind>(job, rows, stream);
}

void backward_packs(const lrpe_job &job, int64_t n_parts, cudaStream_t stream) {
    bool rotate = job.call.kind == TN_ROTATE;
    if (job.call.dtype == TN_F32)
        rotate ? launch_any<float, TN_ROTATE>(job, n_parts, stream) : launch_any<float, TN_COSINE>(job, n_parts, stream);
    else rotate ? launch_any<tn_cuda_bf16, TN_ROTATE>(job, n_parts, stream) : launch_any<tn_cuda_bf16, TN_COSINE>(job, n_parts, stream);
}

cudaError_t backward(const tn_lrpe_call *lrpe, const tn_op_call *call, const lrpe_scratch &scratch, cudaStream_t stream) {
    lrpe_job job;
    float *space = (float *)call->workspace;
    if (!lrpe_can_pack(lrpe, call->device, &job)) return lrpe_backward_plain(lrpe, scratch, space, stream);
    bool over_tokens = lrpe->softmax == TN_LRPE_SOFTMAX_TOKENS;
    if (over_tokens) {
        job.column_max = (const float *)lrpe->max;
        job.column_sum = (const float *)lrpe->sum;
        job.column_shift = space + scratch.shift;
        job.column_dots = space + scratch.dots;
        lrpe_slab slab = lrpe_slab_of(job, call->device, true);
        if (slab.blocks) return lrpe_backward_on_chip(job, slab, stream);
        cudaError_t error =
            lrpe_column_products(job, scratch.slices, space + scratch.partials, space + scratch.shift, space + scratch.dots, stream);
        if (error != cudaSuccess) return error;
    }
    job.parts = space + scratch.parts;
    backward_packs(job, scratch.n_parts, stream);
    return cudaGetLastError();
}

} // namespace

extern "C" tn_status tn_lrpe_backward_cuda(tn_op_call *call) {
    tn_lrpe_call lrpe;
    tn_lrpe_plan(&lrpe, call, true);
    cudaStream_t stream = (cudaStream_t)call->stream;
    lrpe_scratch scratch = lrpe_scratch_of(&lrpe, call->device, true);
    bool empty = lrpe.batch * lrpe.heads * lrpe.grid.tokens * lrpe.width == 0;
    cudaError_t error = empty ? cudaSuccess : backward(&lrpe, call, scratch, stream);
    if (error == cudaSuccess && lrpe.dtheta) {
        void *parts = (char *)call->workspace + scratch.parts * (int64_t)tn_dtype_size(lrpe.wide);
        error = lrpe_sum_parts(&lrpe, empty ? 0 : scratch.n_parts, parts, stream);
    }
    return tn_cuda_said(call->device, (int)error, "lrpe backward");
}

extern "C" size_t tn_lrpe_workspace_cuda(const tn_op_call *call, bool backward) {
    tn_lrpe_call lrpe;
    tn_lrpe_plan(&lrpe, call, backward);
    return (size_t)lrpe_scratch_of(&lrpe, call->device, backward).total * tn_dtype_size(lrpe.wide);
}
