/* One query for each sequence through GEMMs with the factors, each whole: what stands between them. For any dtype and rank.
 *
 *     q = scale_q aq bq      t [h, m rk] = q bk'  (GEMM)      w [h, m rv] = scale_v av softmax(scale_k sum_r ak t)      o = w bv  (GEMM) */
#include "../../libtensor/cuda_common.cuh"
#include "attention_decode.h"

namespace {

constexpr int THREADS = 256;

/* q [b,h,d]; a block takes a head. */
template <typename T> __global__ void make_query(tn_at_problem p, T *q) {
    for (int64_t at = blockIdx.x; at < p.b * p.h; at += gridDim.x) {
        const T *a = (const T *)p.q.a + at * p.q.rank, *x = (const T *)p.q.x + at / p.h * p.q.rank * p.d;
        for (int64_t j = threadIdx.x; j < p.d; j += THREADS) {
            tn_wide<T> sum = 0;
            for (int64_t r = 0; r < p.q.rank; r++) sum += tn_widen(a[r]) * tn_widen(x[r * p.d + j]);
            q[at * p.d + j] = tn_narrow<T>((tn_wide<T>)p.q.factor * sum);
        }
    }
}

/* The score of key j of a head. */
template <typename T> __device__ __forceinline__ tn_wide<T> score(const tn_at_problem &p, const T *a, const tn_wide<T> *t, int64_t j) {
    tn_wide<T> sum = 0;
    for (int64_t r = 0; r < p.k.rank; r++) sum += tn_widen(a[j * p.h * p.k.rank + r]) * t[j * p.k.rank + r];
    return (tn_wide<T>)p.k.factor * sum;
}

/* A block takes a head. */
template <typename T> __global__ void __launch_bounds__(THREADS) soften(tn_at_problem p, const tn_wide<T> *t, T *weights) {
    using W = tn_wide<T>;
    __shared__ W scratch[THREADS / TN_WARP];
    for (int64_t at = blockIdx.x; at < p.b * p.h; at += gridDim.x) {
        int64_t batch = at / p.h, head = at % p.h;
        const T *ak = (const T *)p.k.a + (batch * p.m * p.h + head) * p.k.rank,
                *av = (const T *)p.v.a + (batch * p.m * p.h + head) * p.v.rank;
        const W *row = t + at * p.m * p.k.rank;
        W most = (W)-INFINITY, sum = 0;
        for (int64_t j = threadIdx.x; j < p.m; j += THREADS) most = max(most, score<T>(p, ak, row, j));
        most = tn_block_max(most, (W)-INFINITY, scratch);
        for (int64_t j = threadIdx.x; j < p.m; j += THREADS) sum += exp(score<T>(p, ak, row, j) - most);
        sum = tn_block_sum(sum, scratch);
        for (int64_t j = threadIdx.x; j < p.m; j += THREADS) {
            W share = (W)p.v.factor * exp(score<T>(p, ak, row, j) - most) / sum;
            for (int64_t r = 0; r < p.v.rank; r++)
                weights[(at * p.m + j) * p.v.rank + r] = tn_narrow<T>(share * tn_widen(av[j * p.h * p.v.rank + r]));
        }
        if (p.lse && threadIdx.x == 0) ((W *)p.lse)[at] = p.m > 0 ? most + log(sum) : (W)-INFINITY;
    }
}

} // namespace

int tn_at_composed_query(const tn_at_problem *p, void *q, void *stream) {
    if (p->b * p->h > 0)
        TN_WITH_FLOAT(p->dtype, T, make_query<T><<<tn_blocks(p->b * p->h, 1), THREADS, 0, (cudaStream_t)stream>>>(*p, (T *)q));
    return (int)cudaGetLastError();
}

int tn_at_composed_soften(const tn_at_problem *p, void *t, void *weights, void *stream) {
    if (p->b * p->h > 0)
        TN_WITH_FLOAT(p->dtype, T,
                      soften<T><<<tn_blocks(p->b * p->h, 1), THREADS, 0, (cudaStream_t)stream>>>(*p, (const tn_wide<T> *)t, (T *)weights));
    return (int)cudaGetLastError();
}
