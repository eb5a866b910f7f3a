/* log sum exp in one sweep: a running maximum m and the sum s of exp(x - m), rescaled when a batch brings a larger maximum. A thread
 * takes 4 packs at a time: their maximum first, then one exponential per element and one for the rescaling.
 *
 * Where m is infinite the exponentials are taken as they are: all -inf gives s = 0, a +inf gives s = inf. A NaN is lost from the
 * maximum and comes through in the sum. */
#include "reduce_internal.h"

#include "../../libtensor/cuda_primitives.h"
#include "../activation_cuda.cuh"
#include "../op_support.h"
#include "../reduction_cuda.cuh"

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

template <typename W> __device__ __forceinline__ W shift_of(W maximum) {
    return maximum < (W)INFINITY && maximum > (W)-INFINITY ? maximum : (W)0;
}
/* What a sum of exp(x - from) is multiplied by to become one of exp(x - to). Nothing was summed where from is -inf. */
template <typename W> __device__ __forceinline__ W rescale(W from, W to) {
    return from == (W)-INFINITY ? (W)0 : tn_exp_of(shift_of(from) - shift_of(to));
}

template <typename W> struct exponentials { W m, s; };

template <typename T> struct logsumexp_of {
    typedef T element;
    typedef tn_wide<T> value;
    typedef exponentials<value> fold, state;
    static constexpr bool packable = sizeof(T) < 8;
    T *o;
    value *m, *log_s; /* both or neither */

    __host__ __device__ size_t element_bytes() const { return sizeof(T); }
    __device__ value at(const void *data, int64_t i) const { return tn_widen(((const T *)data)[i]); }
    __device__ value neutral() const { return (value)-INFINITY; }
    __device__ fold start() const { return fold{ (value)-INFINITY, 0 }; }
    template <bool Rising, int U, int N>
    __device__ __forceinline__ void take(fold &sum, value (&v)[U][N], const int64_t (&)[U], int64_t) const {
        value now = sum.m, flat[U * N];
#pragma unroll
        for (int k = 0; k < U * N; k++) now = larger(now, v[k / N][k % N]);
        value shift = shift_of(now);
#pragma unroll
        for (int k = 0; k < U * N; k++) flat[k] = tn_exp_of(v[k / N][k % N] - shift);
        sum.s = sum.s * rescale(sum.m, now) + tn_tree_sum(flat);
        sum.m = now;
    }
    __device__ state settle(fold sum) const { return sum; }
    __device__ __forceinline__ state merge(state a, state b) const {
        value now = larger(a.m, b.m);
        return state{ now, a.s * rescale(a.m, now) + b.s * rescale(b.m, now) };
    }
    __device__ __forceinline__ state shuffle(state s, int step) const {
        return state{ __shfl_xor_sync(0xffffffffu, s.m, step), __shfl_xor_sync(0xffffffffu, s.s, step) };
    }
    /* m and log s are saved apart: their sum has lost what tells x - o from x - m where m is large. */
    __device__ void finish(state sum, int64_t to) const {
        value log_of_sum = tn_log_of(sum.s);
        o[to] = tn_narrow<T>(shift_of(sum.m) + log_of_sum);
        if (!m) return;
        m[to] = sum.m;
        log_s[to] = log_of_sum;
    }
};

static uint32_t axes_of(const tn_op_call *call, int axes) { return tn_reduced_axes((const tn_reduce_args *)call->args, axes); }

extern "C" size_t tn_logsumexp_workspace_cuda(const tn_op_call *call, bool backward) {
    const tn_tensor *x = call->in[0];
    if (backward) return 0;
    return tn_reduce_parts_bytes(tn_reduce_make_plan(x, axes_of(call, x->axes), false), tn_dtype_size(x->dtype),
                                 2 * tn_dtype_size(tn_wide_dtype(x->dtype)));
}

extern "C" tn_status tn_logsumexp_forward_cuda(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    tn_reduce_plan plan = tn_reduce_make_plan(x, axes_of(call, x->axes), false);
    cudaError_t error = cudaSuccess;
    TN_WITH_FLOAT(x->dtype, T, {
        logsumexp_of<T> op = { (T *)call->out[0]->data, NULL, NULL };
        if (call->aux[0]) {
            op.m = (tn_wide<T> *)call->aux[0]->data;
            op.log_s = (tn_wide<T> *)call->aux[1]->data;
        }
        error = tn_reduce_run(call->device, op, x->data, plan, call->workspace, (cudaStream_t)call->stream);
    });
    return tn_cuda_said(call->device, (int)error, "logsumexp forward");
}

/* ---- backward: dx = do exp(x - m - log s), 0 where m is -inf. The forward's plan, where a group keeps the statistics of its outputs
 * in registers and writes what it reads; x lies as dx does, or is dx. ---- */

template <typename T> struct lse_gradient {
    typedef tn_wide<T> W;
    T *dx;
    const T *x, *d;
    const W *m, *log_s;

    __device__ __forceinline__ T of(T value, W maximum, W log_of_sum, W upstream) const {
        return tn_narrow<T>(maximum == (W)-INFINITY ? (W)0 : upstream * tn_exp_of((tn_widen(value) - maximum) - log_of_sum));
    }
};

template <typename T, bool Packed, bool Nested>
__global__ void __launch_bounds__(TN_REDUCE_THREADS)
    lse_rows_backward(lse_gradient<T> g, const tn_reduce_plan plan, const tn_reduce_cut cut) {
    typedef tn_wide<T> W;
    constexpr int N = Packed ? tn_pack<T>::n : 1, U = Packed ? 4 : tn_reduce_singly<W>::loads;
    int thread = threadIdx.x & (cut.x - 1);
    int64_t n_items = plan.n_reduced / N;
    for (int64_t block = blockIdx.x; block < cut.n_blocks; block += gridDim.x) {
        int64_t task = block * cut.z + (threadIdx.x >> cut.log_x), unit = task / cut.n_chunks, chunk = task - unit * cut.n_chunks, in, out;
        if (unit >= cut.n_units) continue;
        int64_t first = n_items * chunk / cut.n_chunks, last = n_items * (chunk + 1) / cut.n_chunks;
        tn_reduce_locate(plan.kept, unit, &in, &out);
        W m = g.m[out], log_s = g.log_s[out], d = tn_widen(g.d[out]);
        const T *x = g.x + in;
        T *dx = g.dx + in;
#pragma unroll 1
        for (int64_t i = first + thread; i < last; i += U * cut.x) {
            struct alignas(Packed ? 16 : sizeof(T)) group {
                T at[N];
            } raw[U];
            tn_reduce_items<U, Nested> items;
            items.find(plan.reduced, i, cut.x, last, N);
#pragma unroll
            for (int u = 0; u < U; u++)
                if (items.here[u]) raw[u] = *(const group *)(x + items.offset[u]);
#pragma unroll
            for (int u = 0; u < U; u++) {
                if (!items.here[u]) continue;
#pragma unroll
                for (int j = 0; j < N; j++) raw[u].at[j] = g.of(raw[u].at[j], m, log_s, d);
                *(group *)(dx + items.offset[u]) = raw[u];
            }
        }
    }
}

template <typename T, bool Packed, bool Nested>
__global__ void __launch_bounds__(TN_REDUCE_THREADS)
    lse_columns_backward(lse_gradient<T> g, const tn_reduce_plan plan, const tn_reduce_cut cut) {
    typedef tn_wide<T> W;
    constexpr int N = Packed ? tn_pack<T>::n : 1, U = Packed ? 4 : tn_reduce_singly<W>::loads;
    int y = threadIdx.y % cut.y, z = threadIdx.y / cut.y;
    for (int64_t block = blockIdx.x; block < cut.n_blocks; block += gridDim.x) {
        int64_t task = block * cut.z + z, unit = task / cut.n_chunks, chunk = task - unit * cut.n_chunks;
        int64_t rest = unit / cut.n_panels, column = ((unit - rest * cut.n_panels) * cut.x + threadIdx.x) * N, in, out;
        if (unit >= cut.n_units || column >= plan.across) continue;
        int64_t first = plan.n_reduced * chunk / cut.n_chunks, last = plan.n_reduced * (chunk + 1) / cut.n_chunks;
        tn_reduce_locate(plan.kept, rest, &in, &out);
        in += column * plan.across_in;
        W m[N], log_s[N], d[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            int64_t at = out + (column + j) * plan.across_out;
            m[j] = g.m[at];
            log_s[j] = g.log_s[at];
            d[j] = tn_widen(g.d[at]);
        }
        const T *x = g.x + in;
        T *dx = g.dx + in;
#pragma unroll 1
        for (int64_t i = first + y; i < last; i += U * cut.y) {
            struct alignas(Packed ? 16 : sizeof(T)) group {
                T at[N];
            } raw[U];
            tn_reduce_items<U, Nested> items;
            items.find(plan.reduced, i, cut.y, last, 1);
#pragma unroll
            for (int u = 0; u < U; u++)
                if (items.here[u]) raw[u] = *(const group *)(x + items.offset[u]);
#pragma unroll
            for (int u = 0; u < U; u++) {
                if (!items.here[u]) continue;
#pragma unroll
                for (int j = 0; j < N; j++) raw[u].at[j] = g.of(raw[u].at[j], m[j], log_s[j], d[j]);
                *(group *)(dx + items.offset[u]) = raw[u];
            }
        }
    }
}

template <typename T, bool Packed, bool Nested>
static void start_backward(const lse_gradient<T> &g, const tn_reduce_plan &plan, cudaStream_t stream) {
    tn_reduce_cut cut = tn_reduce_make_cut(plan, sizeof(T), Packed ? tn_pack<T>::n : 1);
    unsigned blocks = tn_blocks(cut.n_blocks, 1);
    if (plan.columns) lse_columns_backward<T, Packed, Nested><<<blocks, dim3(cut.x, cut.y * cut.z), 0, stream>>>(g, plan, cut);
    else lse_rows_backward<T, Packed, Nested><<<blocks, TN_REDUCE_THREADS, 0, stream>>>(g, plan, cut);
}

template <typename T> static void run_backward(const tn_op_call *call, const lse_gradient<T> &g, const tn_reduce_plan &plan) {
    cudaStream_t stream = (cudaStream_t)call->stream;
    if constexpr (sizeof(T) < 8) {
        bool packed = call->device->cuda_path != TN_CUDA_PLAIN && tn_reduce_comes_in_packs(plan, g.dx, sizeof(T)) && tn_aligned16(g.x);
        if (packed && plan.reduced.n == 1) return start_backward<T, true, false>(g, plan, stream);
        if (packed) return start_backward<T, true, true>(g, plan, stream);
    }
    start_backward<T, false, true>(g, plan, stream);
}

extern "C" tn_status tn_logsumexp_backward_cuda(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    tn_tensor *dx = call->din[0];
    if (dx->numel == 0) return TN_OK;
    /* What has other strides than dx is laid out in dx first and then worked on in place. */
    if (!tn_is_contiguous(x)) {
        tn_status status = tn_cuda_said(call->device, tn_cuda_copy(dx, x, call->stream), "logsumexp backward");
        if (status != TN_OK) return status;
        x = dx;
    }
    tn_reduce_plan plan = tn_reduce_make_plan(dx, axes_of(call, dx->axes), false);
    TN_WITH_FLOAT(dx->dtype, T, {
        typedef tn_wide<T> W;
        lse_gradient<T> g = { (T *)dx->data, (const T *)x->data, (const T *)call->dout[0]->data, (const W *)call->aux[0]->data,
                              (const W *)call->aux[1]->data };
        run_backward(call, g, plan);
    });
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "logsumexp backward");
}
