/* Maps: every element of the outputs comes from one element of each operand. Forward is one, and so are gradients of operands that were
 * not repeated; two gradients are made together, so that what both need is read once.
 *
 * Packed: a block takes Op::groups x THREADS groups; a thread's groups lie THREADS apart, and all are asked for before the first is
 * used. */
#ifndef TENON_ELEMENTWISE_MAP_CUDA_CUH
#define TENON_ELEMENTWISE_MAP_CUDA_CUH

#include "elementwise_cuda.cuh"

namespace {

struct map_args {
    operand in[MAX_IN];
    void *out[MAX_OUT]; /* dense, in the order of the nest; NULL: not wanted */
    int out_dtype[MAX_OUT];
    tn_nest nest; /* packed: of groups */
    int64_t tail; /* packed: elements after the last group */
    double numbers[2];
    int op;
};

template <typename Op, typename T, int k>
__device__ __forceinline__ void store_output(const map_args &args, int64_t i, const uint4 *raw, const float *numbers) {
    typedef typename Op::template out<T> Out;
    if (Op::n_out > 1 && !args.out[k]) return;
    group<Out, tn_pack<T>::n> values;
#pragma unroll
    for (int j = 0; j < tn_pack<T>::n; j++) {
        float in[Op::n_in];
        elements_of<Op, T>(args.in, raw, j, in);
        values.at[j] = narrowed<Out>(Op::template value<k>(in, numbers));
    }
    store_group((Out *)args.out[k], i, values);
}

template <typename Op, typename T, int k>
__device__ __forceinline__ void store_tail(const map_args &args, int64_t i, const float *in, const float *numbers) {
    typedef typename Op::template out<T> Out;
    if (Op::n_out == 1 || args.out[k]) ((Out *)args.out[k])[i] = narrowed<Out>(Op::template value<k>(in, numbers));
}

template <typename Op, typename T> __global__ void __launch_bounds__(THREADS) map_groups(map_args args) {
    const float numbers[2] = {(float)args.numbers[0], (float)args.numbers[1]};
    uint4 raw[Op::groups][Op::n_in];
    int64_t first = (int64_t)blockIdx.x * (THREADS * Op::groups) + threadIdx.x;
#pragma unroll
    for (int u = 0; u < Op::groups; u++) {
        int64_t i = first + u * THREADS, offset[Op::n_in];
        if (i >= args.nest.numel) break;
        offsets_of_group<Op::n_in>(args.nest, i, offset);
        load_groups<Op, T>(args.in, offset, raw[u]);
    }
#pragma unroll
    for (int u = 0; u < Op::groups; u++) {
        int64_t i = first + u * THREADS;
        if (i >= args.nest.numel) break;
        store_output<Op, T, 0>(args, i, raw[u], numbers);
        if constexpr (Op::n_out > 1) store_output<Op, T, 1>(args, i, raw[u], numbers);
    }
    if (blockIdx.x == 0 && threadIdx.x < args.tail) {
        int64_t i = args.nest.numel * tn_pack<T>::n + threadIdx.x;
        float in[Op::n_in];
#pragma unroll
        for (int k = 0; k < Op::n_in; k++) {
            if (args.in[k].absent) continue;
            int64_t at = args.in[k].splat ? 0 : i;
            in[k] = k == Op::cond ? widened(((const uint8_t *)args.in[k].data)[at]) : widened(((const T *)args.in[k].data)[at]);
        }
        store_tail<Op, T, 0>(args, i, in, numbers);
        if constexpr (Op::n_out > 1) store_tail<Op, T, 1>(args, i, in, numbers);
    }
}

/* Op::value(op, k, in, numbers) is output k of op number `op`. */
template <typename Op, typename W> __global__ void __launch_bounds__(THREADS) map_elements(map_args args) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, offset[MAX_IN];
    if (i >= args.nest.numel) return;
    const W numbers[2] = {(W)args.numbers[0], (W)args.numbers[1]};
    offsets_of_element<MAX_IN>(args.nest, i, offset);
    W in[MAX_IN];
#pragma unroll
    for (int k = 0; k < MAX_IN; k++) in[k] = args.in[k].absent ? (W)0 : load_any<W>(args.in[k], offset[k]);
#pragma unroll 1
    for (int k = 0; k < MAX_OUT; k++)
        if (args.out[k]) store_any<W>(args.out[k], args.out_dtype[k], i, Op::value(args.op, k, in, numbers));
}

template <typename Op, typename T> static void launch_groups(const map_args &args, cudaStream_t stream) {
    map_groups<Op, T><<<tn_blocks(args.nest.numel, THREADS * Op::groups), THREADS, 0, stream>>>(args);
}
template <typename Op, typename W> static void launch_elements(const map_args &args, cudaStream_t stream) {
    map_elements<Op, W><<<tn_blocks(args.nest.numel, THREADS), THREADS, 0, stream>>>(args);
}

/* Whether the packed kernels can run: then the nest is turned into one of groups. */
static inline bool map_in_groups(const tn_op_call *call, map_args *args, tn_dtype dtype, int cond) {
    if (!packs_allowed(call, dtype)) return false;
    for (int k = 0; k < MAX_OUT; k++)
        if (args->out[k] && (!tn_aligned16(args->out[k]) || (args->out_dtype[k] != dtype && args->out_dtype[k] != TN_BOOL))) return false;
    return make_groups(&args->nest, NULL, args->in, MAX_IN, dtype, cond, &args->tail);
}

}  // namespace

#endif
