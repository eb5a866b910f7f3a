/* Maps: every element of the outputs comes from one element of each operand. Forward is one, and so are gradients of operands that were
 * not repeated; two gradients are made together, so that what both need is read once.
 *
 * Packed: a block takes THREADS x Op::groups groups; a thread's groups lie THREADS apart, and all are asked for before the first is used. */
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

/* An op is a type with n_in, n_out, groups, cond (the operand that is bytes, or -1), out<T>, and value<k>(in, numbers) for output k. */
template <typename Op, typename T, int k> using element_type = typename std::conditional<k == Op::cond, uint8_t, T>::type;

template <typename Op, typename T, int k> __device__ __forceinline__ void store_output(const map_args &args, int64_t i, const float (*in)[MAX_IN], const float *numbers) {
    if (Op::n_out > 1 && !args.out[k]) return;
    typedef typename Op::template out<T> Out;
    const int n = tn_pack<T>::n;
    group<Out, n> values;
#pragma unroll
    for (int j = 0; j < n; j++) values.at[j] = narrowed<Out>(Op::template value<k>(in[j], numbers));
    if constexpr (sizeof values == 16) *((uint4 *)args.out[k] + i) = *reinterpret_cast<const uint4 *>(&values);
    else ((group<Out, n> *)args.out[k])[i] = values;
}

template <typename Op, typename T> __device__ __forceinline__ void map_tail(const map_args &args, const float *numbers) {
    typedef typename Op::template out<T> Out;
    const int n = tn_pack<T>::n;
    int64_t i = args.nest.numel * n + threadIdx.x;
    float in[MAX_IN];
    if (Op::n_in > 0 && !args.in[0].absent) in[0] = widened(((const element_type<Op, T, 0> *)args.in[0].data)[args.in[0].splat ? 0 : i]);
    if (Op::n_in > 1 && !args.in[1].absent) in[1] = widened(((const element_type<Op, T, 1> *)args.in[1].data)[args.in[1].splat ? 0 : i]);
    if (Op::n_in > 2 && !args.in[2].absent) in[2] = widened(((const element_type<Op, T, 2> *)args.in[2].data)[args.in[2].splat ? 0 : i]);
    if (args.out[0]) ((Out *)args.out[0])[i] = narrowed<Out>(Op::template value<0>(in, numbers));
    if constexpr (Op::n_out > 1)
        if (args.out[1]) ((Out *)args.out[1])[i] = narrowed<Out>(Op::template value<1>(in, numbers));
}

template <typename Op, typename T> __global__ void __launch_bounds__(THREADS) map_groups(map_args args) {
    const int n = tn_pack<T>::n;
    const float numbers[2] = {(float)args.numbers[0], (float)args.numbers[1]};
    uint4 raw[Op::groups][Op::n_in];
    int64_t first = (int64_t)blockIdx.x * (THREADS * Op::groups) + threadIdx.x;
#pragma unroll
    for (int u = 0; u < Op::groups; u++) {
        int64_t i = first + u * THREADS, offset[Op::n_in];
        if (i >= args.nest.numel) break;
        offsets_of_group<Op::n_in>(args.nest, i, offset);
        load_group<Op, T>(args.in, offset, raw[u]);
    }
#pragma unroll
    for (int u = 0; u < Op::groups; u++) {
        int64_t i = first + u * THREADS;
        if (i >= args.nest.numel) break;
        float in[n][MAX_IN];
        widen_group<Op, T>(args.in, raw[u], in);
        store_output<Op, T, 0>(args, i, in, numbers);
        if constexpr (Op::n_out > 1) store_output<Op, T, 1>(args, i, in, numbers);
    }
    if (blockIdx.x == 0 && threadIdx.x < args.tail) map_tail<Op, T>(args, numbers);
}

}

#endif
