/* dlogits = scale (exp(z - m - log sum) - [target]) on CUDA. At the target the difference is expm1(z - m - log sum), which keeps its
 * digits where the model is sure. Bytes: the logits read once, dlogits written once; rows that do not count are written only. */
#include "cross_entropy_rows.cuh"

/* What the elements of one row have in common. */
template <typename W> struct entropy_slope {
    W max, log_sum, scale;
    int64_t target;

    template <int N> __device__ __forceinline__ void apply(W (&z)[N], int64_t column) const {
        const bool here = target >= column && target < column + N; /* in one group of the whole row */
        const int at = here ? (int)(target - column) : 0;
        W at_target = 0;
        if (here) {
            W logit = z[0];
#pragma unroll
            for (int j = 1; j < N; j++) logit = j == at ? z[j] : logit;
            at_target = entropy_expm1(logit - max - log_sum) * scale;
        }
#pragma unroll
        for (int j = 0; j < N; j++) z[j] = entropy_exp(z[j] - max - log_sum) * scale;
        if (here) {
#pragma unroll
            for (int j = 0; j < N; j++) z[j] = j == at ? at_target : z[j];
        }
    }
};

template <typename From, typename To, int N>
__device__ __forceinline__ void slope_row(To *dlogits, const From *logits, int64_t v, const entropy_slope<tn_wide<From>> &slope, int lane,
                                          int team) {
    typedef tn_wide<From> W;
    entropy_cut<N> cut(dlogits, v);
    int64_t pack = lane;
    for (; pack + (ENTROPY_UNROLL - 1) * team < cut.packs; pack += ENTROPY_UNROLL * team) {
        W z[ENTROPY_UNROLL][N];
#pragma unroll
        for (int u = 0; u < ENTROPY_UNROLL; u++) entropy_load<From, N>(logits + cut.column(pack + u * team), z[u]);
#pragma unroll
        for (int u = 0; u < ENTROPY_UNROLL; u++) {
            slope.apply(z[u], cut.column(pack + u * team));
            entropy_store<To, N>(dlogits + cut.column(pack + u * team), z[u]);
        }
    }
    for (; pack < cut.packs; pack += team) {
        W z[N];
        entropy_load<From, N>(logits + cut.column(pack), z);
        slope.apply(z, cut.column(pack));
        entropy_store<To, N>(dlogits + cut.column(pack), z);
    }
    if (N == 1) return;
    const int64_t single[2] = { lane < cut.head ? lane : v, cut.tail() + lane };
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (single[i] >= v) continue;
        W z[1] = { tn_widen(logits[single[i]]) };
        slope.apply(z, single[i]);
        dlogits[single[i]] = tn_narrow<To>(z[0]);
    }
}

template <typename To, int N> __device__ __forceinline__ void clear_row(To *dlogits, int64_t v, int lane, int team) {
    entropy_cut<N> cut(dlogits, v);
    tn_wide<To> zero[N];
#pragma unroll
    for (int j = 0; j < N; j++) zero[j] = 0;
    for (int64_t pack = lane; pack < cut.packs; pack += team) entropy_store<To, N>(dlogits + cut.column(pack), zero);
    if (lane < cut.head) dlogits[lane] = tn_narrow<To>((tn_wide<To>)0);
    if (cut.tail() + lane < v) dlogits[cut.tail() + lane] = tn_narrow<To>((tn_wide<To>)0);
}

template <typename From, typename To, bool Packed, bool OneWarp> __global__ void entropy_gradients(tn_entropy_rows_cuda job) {
    typedef tn_wide<From> W;
    typedef entropy_team<OneWarp> team;
    constexpr int n = Packed ? tn_pack<To>::n : 1;
    W scale = *(const W *)job.scale;
    for (int64_t row = team::first_row(); row < job.rows; row += team::row_step()) {
        int64_t target = job.target[row];
        To *dlogits = (To *)job.dlogits + row * job.drow;
        if (target == job.ignore_index || target < 0 || target >= job.v) {
            clear_row<To, n>(dlogits, job.v, team::lane(), team::size());
            continue;
        }
        entropy_slope<W> slope = { ((const W *)job.max)[row], ((const W *)job.log_sum)[row], scale, target };
        slope_row<From, To, n>(dlogits, (const From *)job.logits + row * job.row, job.v, slope, team::lane(), team::size());
    }
}

template <typename From, typename To, bool Packed> static void launch_gradients(const tn_entropy_rows_cuda &job, cudaStream_t stream) {
    unsigned threads = entropy_threads(job.v, Packed ? tn_pack<To>::n : 1), blocks = entropy_blocks(job.rows, job.v);
    if (job.v <= ENTROPY_WARP_ROW) entropy_gradients<From, To, Packed, true><<<blocks, threads, 0, stream>>>(job);
    else entropy_gradients<From, To, Packed, false><<<blocks, threads, 0, stream>>>(job);
}

/* Do logits and dlogits reach a multiple of 16 bytes at the same column of every row? */
static bool cut_alike(const tn_entropy_rows_cuda &job) {
    int64_t size = (int64_t)tn_dtype_size(job.dtype), dsize = (int64_t)tn_dtype_size(job.ddtype);
    if (job.dtype == job.ddtype) return job.row == job.drow && (((uintptr_t)job.logits ^ (uintptr_t)job.dlogits) & 15) == 0;
    return tn_aligned16(job.logits) && tn_aligned16(job.dlogits) && job.row * size % 16 == 0 && job.drow * dsize % 16 == 0;
}

extern "C" tn_status tn_entropy_gradients_cuda(tn_device *device, const tn_entropy_rows_cuda *job, void *stream) {
    cudaStream_t s = (cudaStream_t)stream;
    bool packed = device->cuda_path != TN_CUDA_PLAIN && cut_alike(*job), narrowing = job->dtype == TN_F32 && job->ddtype == TN_BF16;
    if (job->rows == 0 || job->v == 0) return TN_OK;
    if (packed && narrowing) launch_gradients<float, tn_cuda_bf16, true>(*job, s);
    else if (packed && job->dtype == TN_F32) launch_gradients<float, float, true>(*job, s);
    else if (packed && job->dtype == TN_BF16) launch_gradients<tn_cuda_bf16, tn_cuda_bf16, true>(*job, s);
    else if (narrowing) launch_gradients<float, tn_cuda_bf16, false>(*job, s);
    else TN_WITH_FLOAT(job->dtype, T, (launch_gradients<T, T, false>(*job, s)));
    return tn_cuda_said(device, (int)cudaGetLastError(), "cross_entropy backward");
}
