#include "norm_cuda.cuh"

#define LONG_THREADS 1024
#define LONG_NUMBERS(T) (sizeof(T) == 2 ? 32 : 16) /* what fits 64 registers */

namespace {

/* Of a multiprocessor: what the raw packs leave room for. */
template <typename T, int Kind, bool Long> __host__ __device__ constexpr int resident_blocks() {
    return Long ? 1 : sizeof(T) == 2 && !norm_gated(Kind) ? 3 : 2;
}

/* A team does ROWS rows at a time, `rounds` times. Long: blocks of more than NORM_THREADS, which read weight and bias anew each time. */
template <typename T, int NUMBERS, int Kind, bool Long>
__global__ void __launch_bounds__(Long ? LONG_THREADS : NORM_THREADS, resident_blocks<T, Kind, Long>())
    norm_forward_packed(tn_norm_rows job, int lanes, int rounds) {
    constexpr int n = tn_pack<T>::n, PACKS = NUMBERS / n, ROWS = Long ? 1 : 32 / NUMBERS;
    constexpr bool Layer = Kind == NORM_LAYER, Gated = norm_gated(Kind);
    __shared__ float scratch[TN_TEAM_SCRATCH];
    tn_team team(lanes, scratch);
    const int first_column = team.lane * n, step = lanes * n, teams = team.teams();
    const float inverse_d = 1.0f / (float)job.d;

    uint4 raw_x[ROWS][PACKS], raw_g[ROWS][PACKS], raw_weight[PACKS], raw_bias[PACKS];
    int64_t row = (int64_t)blockIdx.x * rounds * ROWS * teams + team.mine();
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = first_column + p * step, at = (row + r * teams) * job.d + column;
            bool wanted = column < job.d && row + r * teams < job.rows;
            raw_x[r][p] = tn_ask_pack((const T *)job.x + at, wanted);
            if (Gated) raw_g[r][p] = tn_ask_pack((const T *)job.g + at, wanted);
        }
#pragma unroll
    for (int p = 0; p < PACKS && !Long; p++) {
        int64_t column = first_column + p * step;
        raw_weight[p] = tn_ask_kept_pack((const T *)job.weight + column, column < job.d);
        if (Layer) raw_bias[p] = tn_ask_kept_pack((const T *)job.bias + column, column < job.d);
    }

    for (int round = 0; round < rounds && row - team.mine() < job.rows; round++, row += ROWS * teams) {
        float mean[ROWS], rstd[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) mean[r] = rstd[r] = 0;
        if (Layer) {
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int p = 0; p < PACKS; p++) {
                    float x[n];
                    tn_open_pack<T>(raw_x[r][p], x);
#pragma unroll
                    for (int j = 0; j < n; j++) mean[r] += x[j];
                }
            team.sum(mean);
            tn_forget_packs(raw_x);
#pragma unroll
            for (int r = 0; r < ROWS; r++) mean[r] *= inverse_d;
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                bool used = first_column + p * step < job.d;
                float x[n];
                tn_open_pack<T>(raw_x[r][p], x);
#pragma unroll
                for (int j = 0; j < n; j++) {
                    float centred = Layer ? used ? x[j] - mean[r] : 0.0f : x[j];
                    rstd[r] += centred * centred;
                }
            }
        team.sum(rstd);
        tn_forget_packs(raw_x);
#pragma unroll
        for (int r = 0; r < ROWS; r++) rstd[r] = norm_rsqrt(rstd[r] * inverse_d + (float)job.eps);

#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = first_column + p * step;
            bool used = column < job.d;
            float weight[n], bias[n];
            if (Long) {
                raw_weight[p] = raw_bias[p] = make_uint4(0, 0, 0, 0);
                if (used) raw_weight[p] = *(const uint4 *)((const T *)job.weight + column);
                if (Layer && used) raw_bias[p] = *(const uint4 *)((const T *)job.bias + column);
            }
            tn_forget_pack(raw_weight[p]);
            tn_open_pack<T>(raw_weight[p], weight);
            if (Layer) {
                tn_forget_pack(raw_bias[p]);
                tn_open_pack<T>(raw_bias[p], bias);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int64_t here = row + r * teams, next = here + ROWS * teams;
                float x[n], g[n];
                tn_open_pack<T>(raw_x[r][p], x);
                if (Gated) tn_open_pack<T>(raw_g[r][p], g);
#pragma unroll
                for (int j = 0; j < n; j++) {
                    float o = (x[j] - mean[r]) * rstd[r] * weight[j];
                    if (Gated) o *= norm_gate_of<Kind>(job.g_act, g[j]);
                    x[j] = Layer ? o + bias[j] : o;
                }
                if (used && here < job.rows) tn_put_pack((T *)job.o + here * job.d + column, x);
                bool wanted = used && next < job.rows && round + 1 < rounds;
                raw_x[r][p] = tn_ask_pack((const T *)job.x + next * job.d + column, wanted);
                if (Gated) raw_g[r][p] = tn_ask_pack((const T *)job.g + next * job.d + column, wanted);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int64_t here = row + r * teams;
            if (team.lane > 0 || here >= job.rows) continue;
            if (job.rstd) ((float *)job.rstd)[here] = rstd[r];
            if (job.mean) ((float *)job.mean)[here] = mean[r];
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

/* One round as a rule, since blocks that come and go keep the multiprocessors equally busy. Short rows of bf16 that need more than x and
 * weight would fetch as much for all rows as for each, so they take some. Long blocks are alone on a multiprocessor. */
#define SHORT_ROUNDS 3

template <typename T, int NUMBERS, int Kind, bool Long = false>
void launch(const tn_norm_rows &job, norm_shape shape, int multiprocessors, cudaStream_t stream) {
    int64_t at_once = (int64_t)(shape.threads / shape.lanes) * (Long ? 1 : 32 / NUMBERS), rounds = 1;
    if (Long) rounds = (job.rows + multiprocessors - 1) / multiprocessors;
    else if (sizeof(T) == 2 && Kind != NORM_RMS && shape.lanes <= TN_WARP && job.rows > at_once * multiprocessors * 8 * SHORT_ROUNDS)
        rounds = SHORT_ROUNDS;
    unsigned blocks = tn_blocks(job.rows, at_once * rounds);
    norm_forward_packed<T, NUMBERS, Kind, Long><<<blocks, shape.threads, 0, stream>>>(job, shape.lanes, (int)rounds);
}

template <typename T, int Kind> void launch_kind(const tn_norm_rows &job, norm_shape shape, int multiprocessors, cudaStream_t stream) {
    if (shape.threads > NORM_THREADS) return launch<T, LONG_NUMBERS(T), Kind, true>(job, shape, multiprocessors, stream);
    if (shape.numbers == 32) return launch<T, 32, Kind>(job, shape, multiprocessors, stream);
    if constexpr (Kind != NORM_RMS_G_ANY) {
        if (shape.numbers == 8) launch<T, 8, Kind>(job, shape, multiprocessors, stream);
        else if (shape.numbers == 16) launch<T, 16, Kind>(job, shape, multiprocessors, stream);
        else launch<T, 24, Kind>(job, shape, multiprocessors, stream);
    }
}

/* False where a row is too long for a block's registers. */
template <typename T> bool launch_packed(const tn_norm_rows &job, int multiprocessors, cudaStream_t stream) {
    norm_kind kind = norm_kind_of(&job);
    norm_shape shape = norm_shape_of(job.d, kind == NORM_RMS_G_ANY ? 32 : 8, LONG_NUMBERS(T), LONG_THREADS);
    if (shape.numbers == 0) return false;
    switch (kind) {
    case NORM_RMS: launch_kind<T, NORM_RMS>(job, shape, multiprocessors, stream); break;
    case NORM_RMS_G: launch_kind<T, NORM_RMS_G>(job, shape, multiprocessors, stream); break;
    case NORM_RMS_G_SILU: launch_kind<T, NORM_RMS_G_SILU>(job, shape, multiprocessors, stream); break;
    case NORM_RMS_G_ANY: launch_kind<T, NORM_RMS_G_ANY>(job, shape, multiprocessors, stream); break;
    case NORM_LAYER: launch_kind<T, NORM_LAYER>(job, shape, multiprocessors, stream); break;
    }
    return true;
}

tn_status forward(tn_op_call *call, const tn_norm_rows &job) {
    tn_dtype dtype = call->in[0]->dtype;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (call->in[0]->numel == 0) return TN_OK;
    int multiprocessors = call->device->multiprocessors;
    bool done = norm_can_pack(&job, dtype, call->device) && (dtype == TN_F32 ? launch_packed<float>(job, multiprocessors, stream)
                                                                             : launch_packed<tn_cuda_bf16>(job, multiprocessors, stream));
    if (!done) TN_WITH_FLOAT(dtype, T, (norm_forward_plain<T><<<tn_blocks(job.rows, 1), NORM_PLAIN_THREADS, 0, stream>>>(job)));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "norm forward");
}

tn_norm_rows rows_of(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    tn_norm_rows job = {};
    job.d = x->shape[x->axes - 1];
    job.rows = job.d ? x->numel / job.d : 0;
    job.x = x->data;
    job.weight = call->in[1]->data;
    job.o = call->out[0]->data;
    return job;
}

} // namespace

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
