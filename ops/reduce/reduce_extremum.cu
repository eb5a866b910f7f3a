/* max, min and argmax: value and place of the first winner, by the same integer keys as on the CPU. */
#include "reduce_internal.h"

#include "../op_support.h"
#include "../reduction_cuda.cuh"

/* ---- keys: the largest wins, NaN above all, equal elements have one key; `flip` turns the order of all but NaN round ---- */

__device__ __forceinline__ int32_t key_of(float x, bool flip) {
    int32_t bits = __float_as_int(x + 0.0f) ^ (flip ? INT32_MIN : 0); /* the sum makes -0 into 0 */
    return x != x ? INT32_MAX : bits ^ ((bits >> 31) & INT32_MAX);
}
__device__ __forceinline__ int64_t key_of(double x, bool flip) {
    int64_t bits = __double_as_longlong(x + 0.0) ^ (flip ? INT64_MIN : 0);
    return x != x ? INT64_MAX : bits ^ ((bits >> 63) & INT64_MAX);
}
__device__ __forceinline__ int64_t key_of(int64_t x, bool flip) { return flip ? ~x : x; }

__device__ __forceinline__ float number_of(int32_t key, bool flip) {
    int32_t bits = key ^ ((key >> 31) & INT32_MAX);
    float x = __int_as_float(key == INT32_MAX ? key : bits ^ (flip ? INT32_MIN : 0));
    return x == 0 ? 0 : x;
}
__device__ __forceinline__ double number_of(int64_t key, bool flip) {
    int64_t bits = key ^ ((key >> 63) & INT64_MAX);
    double x = __longlong_as_double(key == INT64_MAX ? key : bits ^ (flip ? INT64_MIN : 0));
    return x == 0 ? 0 : x;
}

template <typename W> struct key_type { typedef int64_t type; };
template <> struct key_type<float> { typedef int32_t type; };

__device__ __forceinline__ int32_t lowest_key(int32_t) { return INT32_MIN; }
__device__ __forceinline__ int64_t lowest_key(int64_t) { return INT64_MIN; }
__device__ __forceinline__ int32_t exchanged(int32_t x, int step) { return __shfl_xor_sync(0xffffffffu, x, step); }
__device__ __forceinline__ int64_t exchanged(int64_t x, int step) { return __shfl_xor_sync(0xffffffffu, (long long)x, step); }

/* The largest (smallest) of some numbers, a NaN before all others, by an instruction each. */
template <int U, int N> __device__ __forceinline__ float best_of(const float (&v)[U][N], bool flip) {
    float x = v[0][0];
    if (flip) {
#pragma unroll
        for (int k = 1; k < U * N; k++) asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(v[k / N][k % N]));
    } else {
#pragma unroll
        for (int k = 1; k < U * N; k++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(v[k / N][k % N]));
    }
    return x;
}

/* The first of the numbers that is x, or a NaN where x is one. */
template <int U, int N> __device__ __forceinline__ int first_of(const float (&v)[U][N], float x) {
    int at = 0;
#pragma unroll
    for (int k = U * N - 1; k >= 0; k--) at = v[k / N][k % N] == x ? k : at;
    if (x != x)
#pragma unroll
        for (int k = U * N - 1; k >= 0; k--) at = v[k / N][k % N] != v[k / N][k % N] ? k : at;
    return at;
}

/* ---- the reducer ---- */

template <typename K> struct winner {
    K key;
    int64_t place;
};

/* What is the same for floats and integers: W is what keys are made of. */
template <typename W> struct extremum {
    typedef W value;
    typedef typename key_type<W>::type K;
    typedef winner<K> fold, state;
    void *o, *index; /* each may be NULL */
    bool flip, wide_index;

    __device__ fold start() const { return fold{ lowest_key((K)0), INT64_MAX }; }
    __device__ state settle(fold w) const { return w; }
    __device__ __forceinline__ state merge(state a, state b) const {
        return b.key > a.key || (b.key == a.key && b.place < a.place) ? b : a;
    }
    __device__ __forceinline__ state shuffle(state s, int step) const { return state{ exchanged(s.key, step), exchanged(s.place, step) }; }

    /* The winner of this batch first, by its number k = u N + j alone; places only where it beats what came before. Where places do not
     * rise with u the items are taken one by one. */
    template <bool Rising, int U, int N>
    __device__ __forceinline__ void take(fold &best, value (&v)[U][N], const int64_t (&place)[U], int64_t step) const {
        if constexpr (!Rising && U > 1) {
#pragma unroll
            for (int u = 0; u < U; u++) {
                value one[1][N];
                const int64_t of_one[1] = { place[u] };
#pragma unroll
                for (int j = 0; j < N; j++) one[0][j] = v[u][j];
                take<true>(best, one, of_one, step);
            }
            return;
        }
        K key;
        int at = 0;
        if constexpr (sizeof(W) == 4) {
            /* A key for each number would take as long as the memory does. */
            value x = best_of(v, flip);
            key = key_of(x, flip);
            if (key < best.key) return;
            at = first_of(v, x);
        } else {
            key = key_of(v[0][0], flip);
#pragma unroll
            for (int k = 1; k < U * N; k++) {
                K other = key_of(v[k / N][k % N], flip);
                at = other > key ? k : at;
                key = other > key ? other : key;
            }
            if (key < best.key) return;
        }
        int64_t here = place[0];
#pragma unroll
        for (int u = 1; u < U; u++) here = at >= u * N ? place[u] : here;
        best = merge(best, state{ key, here + at % N * step });
    }

    __device__ __forceinline__ void put_place(int64_t place, int64_t to) const {
        if (!index) return;
        if (wide_index) ((int64_t *)index)[to] = place;
        else ((int32_t *)index)[to] = (int32_t)place;
    }
};

template <typename T> struct extremum_of : extremum<tn_wide<T>> {
    typedef T element;
    typedef tn_wide<T> W;
    static constexpr bool packable = sizeof(T) < 8;

    __host__ __device__ size_t element_bytes() const { return sizeof(T); }
    __device__ W at(const void *data, int64_t i) const { return tn_widen(((const T *)data)[i]); }
    /* Its key may be that of a NaN in another element's place only if it stands before it, and what is absent stands behind. */
    __device__ W neutral() const { return this->flip ? (W)INFINITY : (W)-INFINITY; }
    __device__ void finish(const winner<typename key_type<W>::type> &s, int64_t to) const {
        this->put_place(s.place, to);
        if (this->o) ((T *)this->o)[to] = tn_narrow<T>(number_of(s.key, this->flip));
    }
};

struct extremum_of_integers : extremum<int64_t> {
    typedef int64_t element;
    static constexpr bool packable = false;
    tn_dtype dtype;

    __host__ __device__ size_t element_bytes() const { return dtype == TN_I64 ? 8 : dtype == TN_I32 ? 4 : 1; }
    __device__ int64_t at(const void *data, int64_t i) const { return tn_integer_at(dtype, data, i); }
    __device__ int64_t neutral() const { return flip ? INT64_MAX : INT64_MIN; }
    __device__ void finish(const winner<int64_t> &s, int64_t to) const {
        int64_t x = flip ? ~s.key : s.key;
        put_place(s.place, to);
        if (!o) return;
        if (dtype == TN_I64) ((int64_t *)o)[to] = x;
        else if (dtype == TN_I32) ((int32_t *)o)[to] = (int32_t)x;
        else ((uint8_t *)o)[to] = (uint8_t)x;
    }
};

/* ---- forward ---- */

static tn_reduce_plan plan_of(const tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    return tn_reduce_make_plan(x, tn_reduced_axes((const tn_reduce_args *)call->args, x->axes), true);
}

extern "C" size_t tn_extremum_workspace_cuda(const tn_op_call *call, bool backward) {
    return backward ? 0 : tn_reduce_parts_bytes(plan_of(call), tn_dtype_size(call->in[0]->dtype), sizeof(winner<int64_t>));
}

template <typename Op> static void set_results(Op *op, void *o, const tn_tensor *index, bool flip) {
    op->o = o;
    op->index = index ? index->data : NULL;
    op->flip = flip;
    op->wide_index = index && index->dtype == TN_I64;
}

static tn_status run(tn_op_call *call, void *o, const tn_tensor *index, bool flip) {
    const tn_tensor *x = call->in[0];
    tn_reduce_plan plan = plan_of(call);
    cudaStream_t stream = (cudaStream_t)call->stream;
    cudaError_t error = cudaSuccess;
    if (tn_dtype_is_float(x->dtype)) {
        TN_WITH_FLOAT(x->dtype, T, {
            extremum_of<T> op;
            set_results(&op, o, index, flip);
            error = tn_reduce_run(call->device, op, x->data, plan, call->workspace, stream);
        });
    } else {
        extremum_of_integers op;
        set_results(&op, o, index, flip);
        op.dtype = x->dtype;
        error = tn_reduce_run(call->device, op, x->data, plan, call->workspace, stream);
    }
    return tn_cuda_said(call->device, (int)error, "max, min or argmax");
}

extern "C" tn_status tn_max_forward_cuda(tn_op_call *call) { return run(call, call->out[0]->data, call->aux[0], false); }
extern "C" tn_status tn_min_forward_cuda(tn_op_call *call) { return run(call, call->out[0]->data, call->aux[0], true); }
extern "C" tn_status tn_argmax_forward_cuda(tn_op_call *call) { return run(call, NULL, call->out[0], false); }

/* ---- backward: the gradient goes to the winner's place, all else is 0 ---- */

/* kept leads from an output to the start of its elements in dx, reduced from a place to its element. */
template <typename T>
__global__ void __launch_bounds__(TN_REDUCE_THREADS) scatter_winners(T *dx, const T *d, const void *index, bool wide_index, int64_t n_out,
                                                                     const tn_reduce_walk kept, const tn_reduce_walk reduced) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n_out; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t place = wide_index ? ((const int64_t *)index)[i] : ((const int32_t *)index)[i], start, within, none;
        tn_reduce_locate(kept, i, &start, &none);
        tn_reduce_locate(reduced, place, &within, &none);
        dx[start + within] = d[i];
    }
}

/* Axes innermost first, in their own order; neighbours that are one stretch become one. */
static tn_reduce_walk walk_over(const tn_tensor *dx, uint32_t axes) {
    tn_reduce_walk walk = {};
    for (int i = dx->axes - 1; i >= 0; i--) {
        if (!(axes >> i & 1) || dx->shape[i] == 1) continue;
        int last = walk.n - 1;
        if (last >= 0 && dx->stride[i] == walk.size[last] * walk.in[last]) {
            walk.size[last] *= dx->shape[i];
            continue;
        }
        walk.size[walk.n] = dx->shape[i];
        walk.in[walk.n++] = dx->stride[i];
    }
    return walk;
}

extern "C" tn_status tn_extremum_backward_cuda(tn_op_call *call) {
    const tn_tensor *dx = call->din[0], *d = call->dout[0], *index = call->aux[0];
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (dx->numel == 0) return TN_OK;
    uint32_t reduced = tn_reduced_axes((const tn_reduce_args *)call->args, dx->axes);
    tn_status status = tn_cuda_said(call->device, (int)cudaMemsetAsync(dx->data, 0, tn_bytes(dx), stream), "cudaMemsetAsync");
    if (status != TN_OK) return status;
    TN_WITH_FLOAT(dx->dtype, T, {
        scatter_winners<T><<<tn_blocks(d->numel, TN_REDUCE_THREADS), TN_REDUCE_THREADS, 0, stream>>>(
            (T *)dx->data, (const T *)d->data, index->data, index->dtype == TN_I64, d->numel, walk_over(dx, ~reduced),
            walk_over(dx, reduced));
    });
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "max or min backward");
}
