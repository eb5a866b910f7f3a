/* Gradients of operands that were repeated: sums over the axes along which they were.
 *
 * The axes of d fall into those the operand has (kept) and those it lacks (summed); the innermost axis, along which elements are taken in
 * groups, is one or the other. A block of 256 threads is `outputs` x `lanes`: every output (a group of them, where the innermost axis is
 * kept) has `lanes` threads, which take turns at the items of the sum. Shown for d [rows, columns]:
 *
 *     kept innermost: o [columns]               summed innermost: o [rows, 1]
 *     output 0  output 1  output 2 ..           lane 0    lane 1    lane 2 ..
 *     +-------+ +-------+ +-------+             +-------+ +-------+ +-------+
 *     | 16 B  | |       | |       | lane 0      | 16 B  | |       | |       | output 0
 *     +-------+ +-------+ +-------+             +-------+ +-------+ +-------+
 *     |       | |       | |       | lane 1      |       | |       | |       | output 1
 *     +-------+ +-------+ +-------+             +-------+ +-------+ +-------+
 *
 * Either way neighbouring threads read neighbouring addresses. The lanes' sums are added in shared memory, as a tree. Where there are few
 * outputs, several blocks (segments) share the items in turns; their sums go to workspace and a second kernel adds them. The order of
 * every sum follows from the shapes alone.
 *
 * Where the other operand was not repeated, its gradient is written on the way, so that d and what was saved are read once. */
#include "elementwise_sum_cuda.cuh"

#define MULTIPROCESSORS 128 /* or a few more: items are not shared among more blocks than these hold */
#define LEAST_ITEMS 8       /* of a thread, where items are shared among blocks */
#define NARROWEST_OUTPUTS 32

namespace {

/* ---- launches ---- */

dim3 blocks_of(const sum_args &args) { return dim3((unsigned)args.strips, (unsigned)args.segments); }

/* Which ops' sums are often wanted over straight items. */
template <typename Op> constexpr bool is_frequent() {
    return std::is_same<Op, add_gradients>::value || std::is_same<Op, sub_gradients>::value || std::is_same<Op, mul_gradients>::value ||
           std::is_same<Op, div_gradients>::value;
}

template <typename Op, typename T, int k> void launch_straight(const sum_args &args, cudaStream_t stream) {
    if (args.other) sum_straight<Op, T, k, true><<<blocks_of(args), THREADS, 0, stream>>>(args);
    else sum_straight<Op, T, k, false><<<blocks_of(args), THREADS, 0, stream>>>(args);
}

template <typename Op, typename T> void launch(const sum_args &args, cudaStream_t stream) {
    const operand &full = args.in[2 - args.k];
    if constexpr (is_frequent<Op>())
        if (args.summed.axes == 1 && args.summed.numel <= 1 << 30 && !args.in[0].splat && (full.absent || !full.splat)) {
            constexpr int second = std::is_same<Op, add_gradients>::value ? 0 : 1; /* both gradients of a sum are d */
            return args.k == 0 ? launch_straight<Op, T, 0>(args, stream) : launch_straight<Op, T, second>(args, stream);
        }
    sum_groups<Op, T><<<blocks_of(args), THREADS, 0, stream>>>(args);
}

/* pow's arithmetic takes longer than reading does, element by element too. */
#define SUM_CASE(name, ...)                                                                       \
    case TN_INDEX_##name:                                                                         \
        if constexpr (TN_INDEX_##name != TN_INDEX_pow) launch<name##_gradients, T>(args, stream); \
        return;
template <typename T> void launch_groups(const sum_args &args, cudaStream_t stream) {
    switch (args.op) {
        TN_BINARY_OPS(SUM_CASE)
        TN_CHOICE_OPS(SUM_CASE)
    }
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

int power_of_two_from(int64_t n, int most) {
    int power = 1;
    while (power < n && power < most) power *= 2;
    return power;
}

/* Splits d's axes, as all operands and the gradient walk them, into kept and summed ones. */
void split_axes(const tn_nest &nest, sum_args *args) {
    int64_t shape[2][TN_MAX_AXES], stride[2][MAX_IN][TN_MAX_AXES];
    int axes[2] = { 0, 0 };
    for (int axis = 0; axis < nest.axes; axis++) {
        int part = nest.stride[MAX_IN][axis] == 0;
        shape[part][axes[part]] = nest.shape[axis];
        for (int i = 0; i < MAX_IN; i++) stride[part][i][axes[part]] = nest.stride[i][axis];
        axes[part]++;
    }
    const int64_t *kept[MAX_IN] = { stride[0][0], stride[0][1], stride[0][2] },
                  *summed[MAX_IN] = { stride[1][0], stride[1][1], stride[1][2] };
    args->kept = tn_make_nest(axes[0], shape[0], MAX_IN, kept);
    args->summed = tn_make_nest(axes[1], shape[1], MAX_IN, summed);
    args->along = nest.stride[MAX_IN][nest.axes - 1] == 0;
}

void share_out(sum_args *args, int64_t most_blocks) {
    int64_t outputs = args->kept.numel, items = args->summed.numel;
    if (args->along) {
        int coalesced = power_of_two_from(items, TN_WARP), whole = power_of_two_from((items + SUM_GROUPS - 1) / SUM_GROUPS, THREADS);
        args->lanes = coalesced > whole ? coalesced : whole;
    } else {
        args->lanes = THREADS / power_of_two_from(outputs, NARROWEST_OUTPUTS);
        while (args->lanes > 1 && args->lanes * SUM_GROUPS > items) args->lanes /= 2;
    }
    int64_t per_block = THREADS / args->lanes;
    args->strips = (outputs + per_block - 1) / per_block;
    args->segments = least(most_blocks / args->strips, items / (args->lanes * LEAST_ITEMS));
    if (args->segments < 1) args->segments = 1;
}

/* Where d lies as the other gradient will, one input of `others` is served on the way. */
int served_input(const tn_op_call *call, int i, unsigned others) {
    const tn_tensor *d = call->dout[0];
    for (int other = 0; other < call->n_in; other++)
        if (other != i && others >> other & 1 && tn_is_contiguous(d) && call->din[other]->dtype == d->dtype &&
            tn_aligned16(call->din[other]->data))
            return other;
    return -1;
}

/* Which kernels run, and on what. */
bool plan_groups(const tn_op_call *call, sum_args *args, const tn_nest &nest) {
    tn_dtype dtype = call->dout[0]->dtype;
    split_axes(nest, args);
    if (!packs_allowed(call, dtype) || tn_elementwise_of(call)->index == TN_INDEX_pow) return false;
    sum_args packed = *args;
    tn_nest *inner = args->along ? &packed.summed : &packed.kept, *outer = args->along ? &packed.kept : &packed.summed;
    if (!make_groups(inner, outer, packed.in, MAX_IN, dtype, cond_place(call, true), NULL)) return false;
    *args = packed;
    return true;
}

template <typename W> void finish_segments(const sum_args &args, const tn_tensor *to, cudaStream_t stream) {
    if (args.segments == 1) return;
    int width = power_of_two_from(to->numel, TN_WARP);
    unsigned blocks = tn_blocks(to->numel, width);
    add_segments<W><<<blocks, THREADS, 0, stream>>>(to->data, to->dtype, (const W *)args.to, to->numel, args.segments, width);
}

} // namespace

extern "C" tn_status tn_elementwise_sum_gradient_cuda(tn_op_call *call, int i, unsigned others, unsigned *made) {
    tn_tensor *d = call->dout[0], *to = call->din[i];
    const tn_tensor *in[MAX_IN + 1];
    sum_args args = {};
    int other = served_input(call, i, others);
    gradient_operands(call, 1u << i | (other >= 0 ? 1u << other : 0), in, args.in);
    in[MAX_IN] = to;
    tn_shape shape = tn_shape_of(d);
    tn_nest nest = nest_within(&shape, in, MAX_IN + 1);
    bool groups = plan_groups(call, &args, nest);
    args.k = gradient_place(call, i);
    args.op = tn_elementwise_of(call)->index;
    read_numbers(call, args.numbers);
    if (groups && other >= 0) args.other = call->din[other]->data;
    share_out(&args, MULTIPROCESSORS * resident_blocks(tn_dtype_size(d->dtype), args.other != NULL));
    bool whole = args.segments == 1;
    args.to = whole ? to->data : call->workspace;
    args.to_dtype = whole ? (int)to->dtype : d->dtype == TN_F64 ? TN_F64 : TN_F32;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (args.other) *made = 1u << other;
    if (groups && d->dtype == TN_F32) launch_groups<float>(args, stream);
    else if (groups) launch_groups<tn_cuda_bf16>(args, stream);
    else if (d->dtype == TN_F64) sum_elements<double><<<blocks_of(args), THREADS, 0, stream>>>(args);
    else sum_elements<float><<<blocks_of(args), THREADS, 0, stream>>>(args);
    if (d->dtype == TN_F64) finish_segments<double>(args, to, stream);
    else finish_segments<float>(args, to, stream);
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "elementwise backward, sums");
}

/* Segments are more than one only where share_out was free to make them: of at most 256 sums each, and LEAST_ITEMS items a thread. */
extern "C" size_t tn_elementwise_workspace_cuda(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    const tn_tensor *d = call->dout[0];
    int64_t sums = 0;
    for (int i = 0; i < call->n_in; i++)
        if (call->wants >> i & 1 && call->din[i]->numel != d->numel)
            sums = least((int64_t)MULTIPROCESSORS * resident_blocks(8, false) * THREADS, d->numel / LEAST_ITEMS);
    return (size_t)sums * (d->dtype == TN_F64 ? sizeof(double) : sizeof(float));
}
