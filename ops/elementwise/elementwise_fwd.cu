#include "elementwise_map_cuda.cuh"

namespace {

/* ---- packed ---- */

#define FORWARD_OP(name, inputs, groups_in_flight, cond_at, out_type)                                                         \
    struct name##_forward {                                                                                                   \
        static constexpr int n_in = inputs, n_out = 1, groups = groups_of(TN_INDEX_##name, groups_in_flight), cond = cond_at; \
        template <typename T> using out = out_type;                                                                           \
        template <int> static __device__ __forceinline__ float value(const float *in, const float *numbers) {                 \
            return name##_value(in, numbers);                                                                                 \
        }                                                                                                                     \
    };
#define FORWARD_CASE(name, ...) \
    case TN_INDEX_##name: return launch_groups<name##_forward, T>(args, stream);

#define UNARY_FORWARD_OP(name, doc, how, ...) FORWARD_OP(name, 1, GROUPS_##how, -1, T)
#define BINARY_FORWARD_OP(name, doc, how, ...) FORWARD_OP(name, 2, GROUPS_##how, -1, T)
#define COMPARISON_FORWARD_OP(name, ...) FORWARD_OP(name, 2, GROUPS_loop, -1, uint8_t)
#define CHOICE_FORWARD_OP(name, ...) FORWARD_OP(name, 3, GROUPS_loop, 0, T)
TN_UNARY_OPS(UNARY_FORWARD_OP)
TN_UNARY_OPS_WITH_NUMBERS(UNARY_FORWARD_OP)
TN_BINARY_OPS(BINARY_FORWARD_OP)
TN_COMPARISON_OPS(COMPARISON_FORWARD_OP)
TN_CHOICE_OPS(CHOICE_FORWARD_OP)

template <typename T> void launch_forward(const map_args &args, cudaStream_t stream) {
    switch (args.op) {
        TN_UNARY_OPS(FORWARD_CASE)
        TN_UNARY_OPS_WITH_NUMBERS(FORWARD_CASE)
        TN_BINARY_OPS(FORWARD_CASE)
        TN_COMPARISON_OPS(FORWARD_CASE)
        TN_CHOICE_OPS(FORWARD_CASE)
    }
}

/* ---- plain: all of them ---- */

#define VALUE_CASE(name, ...) \
    case TN_INDEX_##name: return name##_value(in, numbers);
#define INTEGER_CASE(name, ...) \
    case TN_INDEX_##name: return name##_value_of_integers(in, numbers);

struct any_op {
    template <typename W> static __device__ __forceinline__ W value(int op, int, const W *in, const W *numbers) {
        if constexpr (std::is_floating_point<W>::value) {
            switch (op) {
                TN_UNARY_OPS(VALUE_CASE)
                TN_UNARY_OPS_WITH_NUMBERS(VALUE_CASE)
                TN_BINARY_OPS(VALUE_CASE)
                TN_COMPARISON_OPS(VALUE_CASE)
                TN_CHOICE_OPS(VALUE_CASE)
            }
        } else {
            switch (op) {
                TN_BINARY_OPS(INTEGER_CASE)
                TN_COMPARISON_OPS(INTEGER_CASE)
                TN_CHOICE_OPS(INTEGER_CASE)
            }
        }
        return 0;
    }
};

/* The dtype the operands meet in: the output's, but for comparisons. */
tn_dtype meeting_dtype(const tn_op_call *call) {
    if (tn_elementwise_of(call)->kind != TN_ELEMENTWISE_COMPARISON) return call->out[0]->dtype;
    return tn_dtype_promote(call->in[0]->dtype, call->in[1]->dtype);
}

} // namespace

extern "C" tn_status tn_elementwise_forward_cuda(tn_op_call *call) {
    tn_tensor *o = call->out[0];
    if (o->numel == 0) return TN_OK;
    tn_dtype dtype = meeting_dtype(call);
    tn_shape shape = tn_shape_of(o);
    const tn_tensor *in[MAX_IN];
    map_args args = {};
    for (int k = 0; k < MAX_IN; k++) {
        in[k] = k < call->n_in ? call->in[k] : NULL;
        args.in[k] = operand_of(in[k], dtype);
    }
    args.out[0] = o->data;
    args.out_dtype[0] = o->dtype;
    args.nest = nest_within(&shape, in, MAX_IN);
    args.op = tn_elementwise_of(call)->index;
    read_numbers(call, args.numbers);
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (map_in_groups(call, &args, dtype, cond_place(call, false))) {
        if (dtype == TN_F32) launch_forward<float>(args, stream);
        else launch_forward<tn_cuda_bf16>(args, stream);
    } else if (dtype == TN_F64) {
        launch_elements<any_op, double>(args, stream);
    } else if (dtype == TN_F32 || dtype == TN_BF16) {
        launch_elements<any_op, float>(args, stream);
    } else {
        launch_elements<any_op, int64_t>(args, stream);
    }
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "elementwise forward");
}
