#include "norm_cuda.cuh"

#define LONG_THREADS 512
#define RING_BYTES (96 * 1024)
#define MOST_STAGES 4
/* Blocks of a backward at most: what 132 multiprocessors hold, and fixed, so that sums come in the same order on every GPU. */
#define MOST_BLOCKS 264

namespace {

/* ---- packed: dx, dg and this block's part of dweight and dbias ---- */

/* Rows of a lane that are on their way. */
template <typename T, int NUMBERS, int Kind, bool Long> __host__ __device__ constexpr int ring_stages() {
    int bytes = (norm_gated(Kind) ? 3 : 2) * NUMBERS * (int)sizeof(T) * (Long ? LONG_THREADS : NORM_THREADS),
        stages = (Long ? 2 : 1) * RING_BYTES / bytes;
    return stages < 1 ? 1 : stages > MOST_STAGES ? MOST_STAGES : stages;
}

/* Writes this block's sum of every column: the teams' sums, added in the order of the teams. */
template <int NUMBERS, int n>
__device__ __forceinline__ void put_part(const float (&own)[NUMBERS], float *part, float *shared, int64_t d, const tn_team &team) {
    int teams = team.teams(), mine = team.mine();
    __syncthreads();
#pragma unroll
    for (int p = 0; p < NUMBERS / n; p++) {
        int64_t column = (int64_t)(p * team.lanes + team.lane) * n;
        if (column >= d) continue;
        float *to = teams > 1 ? shared + mine * d + column : part + column;
#pragma unroll
        for (int j = 0; j < n; j += 4)
            *(float4 *)(to + j) = make_float4(own[p * n + j], own[p * n + j + 1], own[p * n + j + 2], own[p * n + j + 3]);
    }
    __syncthreads();
    for (int64_t column = threadIdx.x; teams > 1 && column < d; column += blockDim.x) {
        float total = 0;
        for (int t = 0; t < teams; t++) total += shared[t * d + column];
        part[column] = total;
    }
}

template <typename T, int NUMBERS, int Kind, bool Long>
__global__ void __launch_bounds__(Long ? LONG_THREADS : NORM_THREADS, Long ? 1 : 2) norm_backward_packed(tn_norm_rows job, int lanes) {
    constexpr int n = tn_pack<T>::n, PACKS = NUMBERS / n, STAGES = ring_stages<T, NUMBERS, Kind, Long>();
    constexpr bool Layer = Kind == NORM_LAYER, Gated = norm_gated(Kind);
    constexpr int STREAMS = Gated ? 3 : 2, X = 0, DOUT = 1, G = 2;
    extern __shared__ uint4 ring[]; /* [stage][x, dout, g][pack][thread], [stage][rstd, mean][thread], weight */
    __shared__ float scratch[TN_TEAM_SCRATCH];
    const int threads = blockDim.x;
    tn_team team(lanes, scratch);
    uint4 *mine = ring + threadIdx.x, *weights = ring + STAGES * STREAMS * PACKS * threads + STAGES * 2 * threads / 4;
    float *statistics = (float *)(ring + STAGES * STREAMS * PACKS * threads) + threadIdx.x;
    const int first_column = team.lane * n, step = lanes * n;
    const int64_t apart = (int64_t)gridDim.x * team.teams();
    int64_t row = (int64_t)blockIdx.x * team.teams() + team.mine();

    auto ask = [&](int stage, int p, int64_t of) {
        int64_t column = first_column + p * step, at = of * job.d + column;
        bool wanted = of < job.rows && column < job.d;
        if (!wanted) at = 0;
        uint4 *to = mine + (stage * STREAMS * PACKS + p) * threads;
        tn_copy_async(to + X * PACKS * threads, (const T *)job.x + at, wanted);
        tn_copy_async(to + DOUT * PACKS * threads, (const T *)job.dout + at, wanted);
        if (Gated) tn_copy_async(to + G * PACKS * threads, (const T *)job.g + at, wanted);
    };
    auto ask_statistics = [&](int stage, int64_t of) {
        bool wanted = of < job.rows && job.rstd;
        const float *anywhere = (const float *)job.dout;
        tn_copy_async_float(statistics + stage * 2 * threads, wanted ? (const float *)job.rstd + of : anywhere, wanted);
        if (Layer) tn_copy_async_float(statistics + (stage * 2 + 1) * threads, wanted ? (const float *)job.mean + of : anywhere, wanted);
    };
    auto weight_of = [&](int p) {
        int64_t column = first_column + p * step;
        if (!Long) return weights[p * lanes + team.lane];
        return column < job.d && job.weight ? *(const uint4 *)((const T *)job.weight + column) : make_uint4(0, 0, 0, 0);
    };

#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
#pragma unroll
        for (int p = 0; p < PACKS; p++) ask(stage, p, row + stage * apart);
        ask_statistics(stage, row + stage * apart);
        tn_copy_async_close();
    }
    if (!Long) {
        for (int i = threadIdx.x; i < PACKS * lanes; i += threads) {
            bool wanted = (int64_t)i * n < job.d && job.weight;
            weights[i] = wanted ? *(const uint4 *)((const T *)job.weight + (int64_t)i * n) : make_uint4(0, 0, 0, 0);
        }
        __syncthreads();
    }

    float dweight[NUMBERS], dbias[Layer ? NUMBERS : 1];
#pragma unroll
    for (int i = 0; i < NUMBERS; i++) dweight[i] = dbias[Layer ? i : 0] = 0;
    const float inverse_d = 1.0f / (float)job.d;
    int stage = 0;
    for (; row - team.mine() < job.rows; row += apart) {
        tn_copy_async_wait<STAGES - 1>();
        const uint4 *at = mine + stage * STREAMS * PACKS * threads;
        float rstd = statistics[stage * 2 * threads], mean = Layer ? statistics[(stage * 2 + 1) * threads] : 0.0f;
        float sums[Layer ? 2 : 1]; /* of u xh / rstd, of u; u is the gradient that reaches xh */
        sums[0] = sums[Layer ? 1 : 0] = 0;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            float x[n], dout[n], g[n], weight[n];
            tn_open_pack<T>(at[(X * PACKS + p) * threads], x);
            tn_open_pack<T>(at[(DOUT * PACKS + p) * threads], dout);
            if (Gated) tn_open_pack<T>(at[(G * PACKS + p) * threads], g);
            tn_open_pack<T>(weight_of(p), weight);
#pragma unroll
            for (int j = 0; j < n; j++) {
                float centred = Layer ? x[j] - mean : x[j], d = dout[j], u = tn_product_of(d, weight[j]);
                if (Layer) dbias[Layer ? p * n + j : 0] += d;
                if (Gated) {
                    float gate = norm_gate_of<Kind>(job.g_act, g[j]), weighted = u;
                    g[j] = weighted * (centred * rstd) * norm_gate_slope_of<Kind>(job.g_act, g[j]);
                    d *= gate;
                    u = tn_product_of(weighted, gate);
                }
                dweight[p * n + j] += d * rstd * centred;
                sums[0] += u * centred;
                if (Layer) sums[Layer ? 1 : 0] += u;
            }
            int64_t column = first_column + p * step;
            if (Gated && job.dg && row < job.rows && column < job.d) tn_put_pack((T *)job.dg + row * job.d + column, g);
        }
        team.sum(sums);
        float along = sums[0] * inverse_d * rstd * rstd, across = Layer ? sums[Layer ? 1 : 0] * inverse_d : 0.0f;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            float x[n], dout[n], g[n], weight[n];
            tn_open_pack<T>(at[(X * PACKS + p) * threads], x);
            tn_open_pack<T>(at[(DOUT * PACKS + p) * threads], dout);
            if (Gated) tn_open_pack<T>(at[(G * PACKS + p) * threads], g);
            tn_open_pack<T>(weight_of(p), weight);
#pragma unroll
            for (int j = 0; j < n; j++) {
                float centred = Layer ? x[j] - mean : x[j], u = tn_product_of(dout[j], weight[j]);
                if (Gated) u = tn_product_of(u, norm_gate_of<Kind>(job.g_act, g[j]));
                x[j] = rstd * (u - across - centred * along);
            }
            int64_t column = first_column + p * step;
            if (job.dx && row < job.rows && column < job.d) tn_put_pack((T *)job.dx + row * job.d + column, x);
            ask(stage, p, row + STAGES * apart);
        }
        ask_statistics(stage, row + STAGES * apart);
        tn_copy_async_close();
        stage = stage + 1 < STAGES ? stage + 1 : 0;
    }

    tn_copy_async_wait<0>();
    float *part = (float *)job.scratch + (int64_t)blockIdx.x * 2 * job.d;
    if (job.wants_weight) put_part<NUMBERS, n>(dweight, part, (float *)ring, job.d, team);
    if constexpr (Layer)
        if (job.wants_bias) put_part<NUMBERS, n>(dbias, part + job.d, (float *)ring, job.d, team);
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

/* ---- the blocks' sums, in order ---- */

#define SUM_COLUMNS 32
#define SUM_SLICES 32

/* Slice y of a block adds every SUM_SLICES-th part of a column, then the slices are added. blockIdx.y: dweight (0) or dbias (1). */
template <typename T>
__global__ void __launch_bounds__(SUM_COLUMNS *SUM_SLICES)
    norm_sum_parts(const tn_wide<T> *parts, int64_t n_parts, int64_t d, T *dweight, T *dbias) {
    typedef tn_wide<T> W;
    __shared__ W slices[SUM_SLICES][SUM_COLUMNS];
    int64_t column = (int64_t)blockIdx.x * SUM_COLUMNS + threadIdx.x;
    T *to = blockIdx.y == 0 ? dweight : dbias;
    if (!to) return;
    W total = 0;
    for (int64_t part = threadIdx.y; part < n_parts && column < d; part += SUM_SLICES) total += parts[(part * 2 + blockIdx.y) * d + column];
    slices[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y > 0 || column >= d) return;
    for (int i = 1; i < SUM_SLICES; i++) total += slices[i][threadIdx.x];
    to[column] = tn_narrow<T>(total);
}

/* ---- choice ---- */

int64_t chunk_rows(int64_t rows) {
    int64_t grain = (rows + MOST_BLOCKS - 1) / MOST_BLOCKS;
    return grain < 16 ? 16 : grain;
}
int64_t chunk_count(int64_t rows) { return (rows + chunk_rows(rows) - 1) / chunk_rows(rows); }

/* Two rows a team at least, so that the parts are not more than what they sum. */
int64_t packed_blocks(int64_t rows, norm_shape shape, int64_t most) {
    int64_t at_once = 2 * (shape.threads / shape.lanes), blocks = (rows + at_once - 1) / at_once;
    return blocks < most ? blocks : most;
}

/* The kernels' launches tell how many parts they left, 0 where a row is too long for them. */
template <typename T, int NUMBERS, int Kind, bool Long = false>
cudaError_t launch(const tn_norm_rows &job, norm_shape shape, size_t most_shared, cudaStream_t stream, int64_t *n_parts) {
    constexpr int PACKS = NUMBERS / tn_pack<T>::n;
    size_t stage = ((norm_gated(Kind) ? 3 : 2) * PACKS * sizeof(uint4) + 2 * sizeof(float)) * (size_t)shape.threads;
    size_t shared = ring_stages<T, NUMBERS, Kind, Long>() * stage + (Long ? 0 : PACKS * shape.lanes * sizeof(uint4));
    if (shared + TN_TEAM_SCRATCH * sizeof(float) > most_shared) return cudaSuccess;
    auto kernel = norm_backward_packed<T, NUMBERS, Kind, Long>;
    if (shared > 48 * 1024) {
        cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (error != cudaSuccess) return error;
    }
    *n_parts = packed_blocks(job.rows, shape, Long ? MOST_BLOCKS / 2 : MOST_BLOCKS);
    kernel<<<(unsigned)*n_parts, shape.threads, shared, stream>>>(job, shape.lanes);
    return cudaGetLastError();
}

template <typename T, int Kind>
cudaError_t launch_kind(const tn_norm_rows &job, size_t most_shared, cudaStream_t stream, int64_t *n_parts) {
    norm_shape shape = norm_shape_of(job.d, Kind == NORM_RMS_G_ANY ? 32 : 8, 32, LONG_THREADS);
    if (shape.numbers == 0) return cudaSuccess;
    if (shape.threads > NORM_THREADS) return launch<T, 32, Kind, true>(job, shape, most_shared, stream, n_parts);
    if constexpr (Kind != NORM_RMS_G_ANY) {
        if (shape.numbers == 8) return launch<T, 8, Kind>(job, shape, most_shared, stream, n_parts);
        if (shape.numbers == 16) return launch<T, 16, Kind>(job, shape, most_shared, stream, n_parts);
        if (shape.numbers == 24) return launch<T, 24, Kind>(job, shape, most_shared, stream, n_parts);
    }
    return launch<T, 32, Kind>(job, shape, most_shared, stream, n_parts);
}

template <typename T> cudaError_t launch_packed(const tn_norm_rows &job, size_t most_shared, cudaStream_t stream, int64_t *n_parts) {
    switch (norm_kind_of(&job)) {
    case NORM_RMS: return launch_kind<T, NORM_RMS>(job, most_shared, stream, n_parts);
    case NORM_RMS_G: return launch_kind<T, NORM_RMS_G>(job, most_shared, stream, n_parts);
    case NORM_RMS_G_SILU: return launch_kind<T, NORM_RMS_G_SILU>(job, most_shared, stream, n_parts);
    case NORM_RMS_G_ANY: return launch_kind<T, NORM_RMS_G_ANY>(job, most_shared, stream, n_parts);
    default: return launch_kind<T, NORM_LAYER>(job, most_shared, stream, n_parts);
    }
}

template <typename T> cudaError_t launch_plain(const tn_norm_rows &job, cudaStream_t stream) {
    if (job.dx || job.dg) norm_backward_plain_rows<T><<<tn_blocks(job.rows, 1), NORM_PLAIN_THREADS, 0, stream>>>(job);
    dim3 grid(tn_blocks(job.d, NORM_PLAIN_THREADS), (unsigned)chunk_count(job.rows));
    if (job.wants_weight || job.wants_bias) norm_backward_plain_columns<T><<<grid, NORM_PLAIN_THREADS, 0, stream>>>(job);
    return cudaGetLastError();
}

void *data_of(const tn_tensor *t) { return t ? t->data : NULL; }

template <typename T> void sum_parts(const tn_norm_rows &job, int64_t n_parts, tn_tensor *dweight, tn_tensor *dbias, cudaStream_t stream) {
    dim3 grid(tn_blocks(job.d, SUM_COLUMNS), dbias ? 2 : 1);
    norm_sum_parts<T><<<grid, dim3(SUM_COLUMNS, SUM_SLICES), 0, stream>>>((const tn_wide<T> *)job.scratch, n_parts, job.d,
                                                                          (T *)data_of(dweight), (T *)data_of(dbias));
}

tn_status backward(tn_op_call *call, tn_norm_rows job, tn_tensor *dweight, tn_tensor *dbias) {
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
    int64_t n_parts = 0;
    if (job.rows > 0) {
        if (norm_can_pack(&job, dout->dtype, call->device)) {
            tn_norm_rows packed = job;
            if (!job.x) packed.x = job.dout; /* dbias alone is wanted: what is made of x is thrown away */
            size_t most_shared = call->device->shared_bytes;
            error = dout->dtype == TN_F32 ? launch_packed<float>(packed, most_shared, stream, &n_parts)
                                          : launch_packed<tn_cuda_bf16>(packed, most_shared, stream, &n_parts);
        }
        if (error == cudaSuccess && n_parts == 0) {
            TN_WITH_FLOAT(dout->dtype, T, error = launch_plain<T>(job, stream));
            n_parts = chunk_count(job.rows);
        }
    }
    if (error == cudaSuccess && (dweight || dbias)) TN_WITH_FLOAT(dout->dtype, T, (sum_parts<T>(job, n_parts, dweight, dbias, stream)));
    return tn_cuda_said(call->device, (int)(error == cudaSuccess ? cudaGetLastError() : error), "norm backward");
}

} // namespace

extern "C" size_t tn_norm_workspace_cuda(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    const tn_tensor *dout = call->dout[0];
    int64_t d = dout->shape[dout->axes - 1], rows = d ? dout->numel / d : 0, parts = rows < MOST_BLOCKS ? rows : MOST_BLOCKS;
    return (size_t)(parts * 2 * d) * (dout->dtype == TN_F64 ? sizeof(double) : sizeof(float));
}

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
