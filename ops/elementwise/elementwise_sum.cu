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
#include "elementwise_cuda.cuh"

#define SUM_GROUPS 4       /* a thread has in flight of each operand */
#define SUM_BLOCKS 512     /* from which on the GPU is filled, and items are not shared among more blocks */
#define LEAST_ITEMS 8      /* of a thread, where items are shared among blocks */
#define NARROWEST_OUTPUTS 32

namespace {

struct sum_args {
    operand in[MAX_IN];
    void *to; /* the gradient, or partial sums [segments, outputs] */
    int to_dtype;
    void *other; /* packed: the other operand's gradient, dense as d is; or NULL */
    tn_nest kept, summed; /* packed: the one that holds the innermost axis is of groups */
    bool along;           /* the innermost axis is summed */
    int k;                /* which of the two gradients is summed */
    int lanes;
    int64_t strips, segments; /* blocks: strips of outputs x segments of items */
    double numbers[2];
    int op;
};

/* What a thread is to do. */
struct sum_part {
    int lane, step; /* the distance between lanes, in threads */
    int64_t output, item;
};

__device__ __forceinline__ sum_part part_of(const sum_args &args) {
    int thread = threadIdx.x, outputs = THREADS / args.lanes;
    int64_t strip = blockIdx.x % args.strips, segment = blockIdx.x / args.strips;
    sum_part part;
    part.lane = args.along ? thread % args.lanes : thread / outputs;
    part.step = args.along ? 1 : outputs;
    part.output = strip * outputs + (args.along ? thread / args.lanes : thread % outputs);
    part.item = segment * args.lanes + part.lane;
    return part;
}

/* Adds the lanes' sums and stores them: n of neighbouring outputs, or one. */
template <typename W, int n> __device__ __forceinline__ void store_sums(const sum_args &args, const sum_part &part, W *sum) {
    __shared__ W shared[n][THREADS];
    int values = args.along ? 1 : n;
    if (args.along)
#pragma unroll
        for (int j = 1; j < n; j++) sum[0] += sum[j];
#pragma unroll
    for (int j = 0; j < n; j++) shared[j][threadIdx.x] = sum[j];
    for (int lanes = args.lanes / 2; lanes > 0; lanes /= 2) {
        __syncthreads();
        if (part.lane >= lanes) continue;
        for (int j = 0; j < values; j++) shared[j][threadIdx.x] += shared[j][threadIdx.x + lanes * part.step];
    }
    if (part.lane != 0 || part.output >= args.kept.numel) return;
    int64_t segment = blockIdx.x / args.strips, at = (segment * args.kept.numel + part.output) * values;
    for (int j = 0; j < values; j++) store_any<W>(args.to, args.to_dtype, at + j, shared[j][threadIdx.x]);
}

template <typename Op, typename T> __global__ void __launch_bounds__(THREADS) sum_groups(sum_args args) {
    const int n = tn_pack<T>::n;
    const float numbers[2] = {(float)args.numbers[0], (float)args.numbers[1]};
    sum_part part = part_of(args);
    float sum[n];
#pragma unroll
    for (int j = 0; j < n; j++) sum[j] = 0;
    if (part.output < args.kept.numel) {
        int64_t base[Op::n_in], step = args.segments * args.lanes;
        offsets_of_group<Op::n_in>(args.kept, part.output, base);
        for (int64_t first = part.item; first < args.summed.numel; first += SUM_GROUPS * step) {
            uint4 raw[SUM_GROUPS][Op::n_in];
            int64_t d_at[SUM_GROUPS];
#pragma unroll
            for (int u = 0; u < SUM_GROUPS; u++) {
                int64_t item = first + u * step, offset[Op::n_in];
                if (item >= args.summed.numel) break;
                offsets_of_group<Op::n_in>(args.summed, item, offset);
#pragma unroll
                for (int i = 0; i < Op::n_in; i++) offset[i] += base[i];
                load_groups<Op, T>(args.in, offset, raw[u]);
                d_at[u] = offset[0];
            }
#pragma unroll
            for (int u = 0; u < SUM_GROUPS; u++) {
                if (first + u * step >= args.summed.numel) break;
                group<T, n> other;
#pragma unroll
                for (int j = 0; j < n; j++) {
                    float in[Op::n_in], gradient[2] = {0, 0};
                    elements_of<Op, T>(args.in, raw[u], j, in);
                    if (args.other || args.k == 0) gradient[0] = Op::template value<0>(in, numbers);
                    if (args.other || args.k == 1) gradient[1] = Op::template value<1>(in, numbers);
                    sum[j] += args.k == 0 ? gradient[0] : gradient[1];
                    other.at[j] = narrowed<T>(args.k == 0 ? gradient[1] : gradient[0]);
                }
                if (args.other) store_group((T *)args.other, d_at[u] / n, other);
            }
        }
    }
    store_sums<float, n>(args, part, sum);
}

template <typename W> __global__ void __launch_bounds__(THREADS) sum_elements(sum_args args) {
    const W numbers[2] = {(W)args.numbers[0], (W)args.numbers[1]};
    sum_part part = part_of(args);
    W sum = 0;
    if (part.output < args.kept.numel) {
        int64_t base[MAX_IN], offset[MAX_IN];
        offsets_of_element<MAX_IN>(args.kept, part.output, base);
        for (int64_t item = part.item; item < args.summed.numel; item += args.segments * args.lanes) {
            W in[MAX_IN];
            offsets_of_element<MAX_IN>(args.summed, item, offset);
#pragma unroll
            for (int i = 0; i < MAX_IN; i++) in[i] = args.in[i].absent ? (W)0 : load_any<W>(args.in[i], base[i] + offset[i]);
            sum += pair_gradient(args.op, args.k, in, numbers);
        }
    }
    store_sums<W, 1>(args, part, &sum);
}

/* The segments' sums: a block adds those of `width` outputs, THREADS / width segments side by side. */
template <typename W>
__global__ void __launch_bounds__(THREADS) add_segments(void *to, int dtype, const W *sums, int64_t outputs, int64_t segments, int width) {
    __shared__ W shared[THREADS];
    int slices = THREADS / width, slice = threadIdx.x / width;
    int64_t output = (int64_t)blockIdx.x * width + threadIdx.x % width;
    W sum = 0;
    if (output < outputs)
        for (int64_t segment = slice; segment < segments; segment += slices) sum += sums[segment * outputs + output];
    shared[threadIdx.x] = sum;
    for (int half = slices / 2; half > 0; half /= 2) {
        __syncthreads();
        if (slice < half) shared[threadIdx.x] += shared[threadIdx.x + half * width];
    }
    if (slice == 0 && output < outputs) store_any<W>(to, dtype, output, shared[threadIdx.x]);
}

/* ---- launches ---- */

template <typename Op, typename T> void launch(const sum_args &args, cudaStream_t stream) {
    sum_groups<Op, T><<<(unsigned)(args.strips * args.segments), THREADS, 0, stream>>>(args);
}

#define SUM_CASE(name, ...) case TN_INDEX_##name: return launch<name##_gradients, T>(args, stream);
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
    int axes[2] = {0, 0};
    for (int axis = 0; axis < nest.axes; axis++) {
        int part = nest.stride[MAX_IN][axis] == 0;
        shape[part][axes[part]] = nest.shape[axis];
        for (int i = 0; i < MAX_IN; i++) stride[part][i][axes[part]] = nest.stride[i][axis];
        axes[part]++;
    }
    const int64_t *kept[MAX_IN] = {stride[0][0], stride[0][1], stride[0][2]}, *summed[MAX_IN] = {stride[1][0], stride[1][1], stride[1][2]};
    args->kept = tn_make_nest(axes[0], shape[0], MAX_IN, kept);
    args->summed = tn_make_nest(axes[1], shape[1], MAX_IN, summed);
    args->along = nest.stride[MAX_IN][nest.axes - 1] == 0;
}

void share_out(sum_args *args) {
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
    args->segments = least(SUM_BLOCKS / args->strips, items / (args->lanes * LEAST_ITEMS));
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
    if (!packs_allowed(call, dtype)) return false;
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

}  // namespace

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
    share_out(&args);
    bool whole = args.segments == 1;
    args.to = whole ? to->data : call->workspace;
    args.to_dtype = whole ? (int)to->dtype : d->dtype == TN_F64 ? TN_F64 : TN_F32;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (groups && other >= 0) {
        args.other = call->din[other]->data;
        *made = 1u << other;
    }
    if (groups && d->dtype == TN_F32) launch_groups<float>(args, stream);
    else if (groups) launch_groups<tn_cuda_bf16>(args, stream);
    else if (d->dtype == TN_F64) sum_elements<double><<<(unsigned)(args.strips * args.segments), THREADS, 0, stream>>>(args);
    else sum_elements<float><<<(unsigned)(args.strips * args.segments), THREADS, 0, stream>>>(args);
    if (d->dtype == TN_F64) finish_segments<double>(args, to, stream);
    else finish_segments<float>(args, to, stream);
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "elementwise backward, sums");
}

/* Segments are more than one only where blocks are at most SUM_BLOCKS, each of at most 256 sums, and every thread has LEAST_ITEMS items. */
extern "C" size_t tn_elementwise_workspace_cuda(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    const tn_tensor *d = call->dout[0];
    int64_t sums = 0;
    for (int i = 0; i < call->n_in; i++)
        if (call->wants >> i & 1 && call->din[i]->numel != d->numel) sums = least((int64_t)SUM_BLOCKS * THREADS, d->numel / LEAST_ITEMS);
    return (size_t)sums * (d->dtype == TN_F64 ? sizeof(double) : sizeof(float));
}
