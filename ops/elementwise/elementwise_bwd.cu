/* Backward: gradients of operands that were not repeated are a map (elementwise_map_cuda.cuh); those of repeated operands are sums
 * (elementwise_sum.cu), which make the other operand's gradient on their way where they can. */
#include "elementwise_map_cuda.cuh"

namespace {

/* ---- packed ---- */

#define GRADIENT_OP(name, doc, how, forward, reads, how_gradient, ...)                                                   \
    struct name##_backward {                                                                                             \
        static constexpr int n_in = 2, n_out = 1, groups = groups_of(TN_INDEX_##name, GROUPS_##how_gradient), cond = -1; \
        template <typename T> using out = T;                                                                             \
        template <int> static __device__ __forceinline__ float value(const float *in, const float *numbers) {            \
            return name##_gradient(in, numbers);                                                                         \
        }                                                                                                                \
    };
TN_UNARY_OPS(GRADIENT_OP)
TN_UNARY_OPS_WITH_NUMBERS(GRADIENT_OP)

#define GRADIENT_CASE(name, ...) \
    case TN_INDEX_##name: return launch_groups<name##_backward, T>(args, stream);
#define GRADIENTS_CASE(name, ...) \
    case TN_INDEX_##name: return launch_groups<name##_gradients, T>(args, stream);

template <typename T> void launch_backward(const map_args &args, cudaStream_t stream) {
    switch (args.op) {
        TN_UNARY_OPS(GRADIENT_CASE)
        TN_UNARY_OPS_WITH_NUMBERS(GRADIENT_CASE)
        TN_BINARY_OPS(GRADIENTS_CASE)
        TN_CHOICE_OPS(GRADIENTS_CASE)
    }
}

/* ---- plain ---- */

#define UNARY_GRADIENT_CASE(name, ...) \
    case TN_INDEX_##name: return name##_gradient(in, numbers);

struct any_gradient {
    template <typename W> static __device__ __forceinline__ W value(int op, int k, const W *in, const W *numbers) {
        switch (op) {
            TN_UNARY_OPS(UNARY_GRADIENT_CASE)
            TN_UNARY_OPS_WITH_NUMBERS(UNARY_GRADIENT_CASE)
        }
        return pair_gradient(op, k, in, numbers);
    }
};

/* ---- which input's gradient is made how ---- */

/* The gradients of the inputs in `inputs`, none of which was repeated. */
tn_status map_gradients(tn_op_call *call, unsigned inputs) {
    const tn_tensor *d = call->dout[0], *in[MAX_IN];
    map_args args = {};
    gradient_operands(call, inputs, in, args.in);
    for (int i = 0; i < call->n_in; i++) {
        if (!(inputs >> i & 1)) continue;
        args.out[gradient_place(call, i)] = call->din[i]->data;
        args.out_dtype[gradient_place(call, i)] = call->din[i]->dtype;
    }
    tn_shape shape = tn_shape_of(d);
    args.nest = nest_within(&shape, in, MAX_IN);
    args.op = tn_elementwise_of(call)->index;
    read_numbers(call, args.numbers);
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (map_in_groups(call, &args, d->dtype, cond_place(call, true))) {
        if (d->dtype == TN_F32) launch_backward<float>(args, stream);
        else launch_backward<tn_cuda_bf16>(args, stream);
    } else if (d->dtype == TN_F64) {
        launch_elements<any_gradient, double>(args, stream);
    } else {
        launch_elements<any_gradient, float>(args, stream);
    }
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "elementwise backward");
}

tn_status clear(tn_op_call *call, tn_tensor *t) {
    return tn_cuda_said(call->device, (int)cudaMemsetAsync(t->data, 0, tn_bytes(t), (cudaStream_t)call->stream), "cudaMemsetAsync");
}

} // namespace

extern "C" tn_status tn_elementwise_backward_cuda(tn_op_call *call) {
    int64_t numel = call->dout[0]->numel;
    unsigned mapped = 0, summed = 0;
    for (int i = 0; i < call->n_in; i++) {
        if (!(call->wants >> i & 1) || call->din[i]->numel == 0) continue;
        if (numel == 0) {
            tn_status status = clear(call, call->din[i]);
            if (status != TN_OK) return status;
        } else {
            *(call->din[i]->numel == numel ? &mapped : &summed) |= 1u << i;
        }
    }
    for (int i = 0; i < call->n_in; i++) {
        if (!(summed >> i & 1)) continue;
        unsigned made = 0;
        tn_status status = tn_elementwise_sum_gradient_cuda(call, i, mapped, &made);
        if (status != TN_OK) return status;
        mapped &= ~made;
    }
    return mapped ? map_gradients(call, mapped) : TN_OK;
}
