/* The kernels of elementwise_sum.cu, which says what they do. */
#ifndef TENON_ELEMENTWISE_SUM_CUDA_CUH
#define TENON_ELEMENTWISE_SUM_CUDA_CUH

#include "elementwise_cuda.cuh"

#define SUM_GROUPS 4 /* a thread has in flight */

namespace {

struct sum_args {
    operand in[MAX_IN];
    void *to; /* the gradient, or partial sums [segments, outputs] */
    int to_dtype;
    void *other;          /* packed: the other operand's gradient, dense as d is; or NULL */
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
    sum_part part;
    part.lane = args.along ? thread % args.lanes : thread / outputs;
    part.step = args.along ? 1 : outputs;
    part.output = (int64_t)blockIdx.x * outputs + (args.along ? thread / args.lanes : thread % outputs);
    part.item = (int64_t)blockIdx.y * args.lanes + part.lane;
    return part;
}

/* Adds the sums of the lanes of one output, which are neighbours; lane 0 has the result. */
template <typename W> __device__ __forceinline__ W sum_of_neighbours(W sum, int lanes, W *shared) {
    for (int step = (lanes < TN_WARP ? lanes : TN_WARP) / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lanes <= TN_WARP) return sum;
    int warp = threadIdx.x / TN_WARP;
    if (threadIdx.x % TN_WARP == 0) shared[warp] = sum;
    __syncthreads();
    if (threadIdx.x % lanes == 0)
        for (int other = 1; other < lanes / TN_WARP; other++) sum += shared[warp + other];
    return sum;
}

/* The same of n sums each of lanes that are `step` threads apart. */
template <typename W, int n>
__device__ __forceinline__ void add_distant_lanes(W *sum, const sum_part &part, int lanes, W (*shared)[THREADS]) {
#pragma unroll
    for (int j = 0; j < n; j++) shared[j][threadIdx.x] = sum[j];
    for (lanes /= 2; lanes > 0; lanes /= 2) {
        __syncthreads();
        if (part.lane >= lanes) continue;
#pragma unroll
        for (int j = 0; j < n; j++) shared[j][threadIdx.x] = sum[j] += shared[j][threadIdx.x + lanes * part.step];
    }
}

/* Adds the lanes' sums and stores them: n of neighbouring outputs, or one. */
template <typename W, int n> __device__ __forceinline__ void store_sums(const sum_args &args, const sum_part &part, W *sum) {
    __shared__ W shared[n][THREADS];
    if (args.along) {
#pragma unroll
        for (int j = 1; j < n; j++) sum[0] += sum[j];
        sum[0] = sum_of_neighbours(sum[0], args.lanes, shared[0]);
    } else {
        add_distant_lanes<W, n>(sum, part, args.lanes, shared);
    }
    if (part.lane != 0 || part.output >= args.kept.numel) return;
    int64_t first = (int64_t)blockIdx.y * args.kept.numel + part.output;
    if (args.along) return store_any<W>(args.to, args.to_dtype, first, sum[0]);
#pragma unroll
    for (int j = 0; j < n; j++) store_any<W>(args.to, args.to_dtype, first * n + j, sum[j]);
}

/* ---- straight: the summed axes are one of at most 2^30 items, and d and the other operand are contiguous along the innermost axis ----
 *
 * So an item lies one step after the other, the repeated operand's elements are the same for all items of an output, and what is read
 * is known when the kernel is compiled. */

/* How many blocks a multiprocessor is to hold: where both gradients of eight numbers a pack are made, registers allow three. */
constexpr int resident_blocks(size_t element_bytes, bool both) { return both && element_bytes == 2 ? 3 : 4; }

/* What gradient k alone, or both, read. */
template <typename Op, int k, bool Both> constexpr bool reads_place(int place) {
    return (Op::places(k) | (Both ? Op::places(1 - k) : 0u)) >> place & 1;
}

template <typename T> __device__ __forceinline__ uint4 splat_of(uint32_t bits) {
    if (sizeof(T) == 2) bits |= bits << 16;
    return make_uint4(bits, bits, bits, bits);
}

template <typename Op, typename T, int k, bool Both> struct straight_sum {
    static constexpr int n = tn_pack<T>::n, own = k + 1, full = 2 - k;
    static constexpr bool reads_own = reads_place<Op, k, Both>(own), reads_full = reads_place<Op, k, Both>(full);
    static constexpr int groups = reads_full ? SUM_GROUPS / 2 : SUM_GROUPS;
    static constexpr int resident = resident_blocks(sizeof(T), Both);

    float numbers[2], sum[n];
    uint4 raw_own;
    const T *d, *saved;
    T *other;
    int64_t d_step, saved_step; /* from a thread's item to its next */

    /* The next `count` items, at most `groups`. */
    __device__ __forceinline__ void take(int count) {
        uint4 raw_d[groups], raw_saved[groups];
#pragma unroll
        for (int u = 0; u < groups; u++) {
            if (u < count) raw_d[u] = tn_load_raw(d + u * d_step);
            if (reads_full && u < count) raw_saved[u] = tn_load_raw(saved + u * saved_step);
        }
#pragma unroll
        for (int u = 0; u < groups; u++) {
            if (u >= count) break;
            tn_pack<T> gradients;
#pragma unroll
            for (int j = 0; j < n; j++) {
                float in[3];
                in[0] = tn_raw_element<T>(raw_d[u], j);
                in[own] = reads_own ? tn_raw_element<T>(raw_own, j) : 0.0f;
                in[full] = reads_full ? tn_raw_element<T>(raw_saved[u], j) : 0.0f;
                sum[j] += Op::template value<k>(in, numbers);
                if (Both) gradients.at[j] = tn_narrow<T>(Op::template value<1 - k>(in, numbers));
            }
            if (Both) tn_store_pack(other + u * d_step, gradients);
        }
        d += groups * d_step;
        if (reads_full) saved += groups * saved_step;
        if (Both) other += groups * d_step;
    }
};

template <typename Op, typename T, int k, bool Both>
__global__ void __launch_bounds__(THREADS, straight_sum<Op, T, k, Both>::resident) sum_straight(sum_args args) {
    typedef straight_sum<Op, T, k, Both> walk;
    walk w;
    sum_part part = part_of(args);
#pragma unroll
    for (int j = 0; j < walk::n; j++) w.sum[j] = 0;
    if (part.output < args.kept.numel && part.item < args.summed.numel) {
        int64_t base[3], step = args.segments * args.lanes;
        int count = (int)((uint32_t)(args.summed.numel - part.item + step - 1) / (uint32_t)step);
        offsets_of_group<3>(args.kept, part.output, base);
        w.numbers[0] = (float)args.numbers[0], w.numbers[1] = (float)args.numbers[1];
        if (walk::reads_own) {
            w.raw_own = load_raw<T, walk::n>(args.in[walk::own], base[walk::own]);
            if (args.in[walk::own].splat) w.raw_own = splat_of<T>(w.raw_own.x);
        }
        int64_t d_at = base[0] + part.item * args.summed.stride[0][0];
        w.d_step = step * args.summed.stride[0][0];
        w.d = (const T *)args.in[0].data + d_at;
        w.other = Both ? (T *)args.other + d_at : NULL;
        w.saved_step = step * args.summed.stride[walk::full][0];
        w.saved = (const T *)args.in[walk::full].data + base[walk::full] + part.item * args.summed.stride[walk::full][0];
        for (; count > walk::groups; count -= walk::groups) w.take(walk::groups);
        w.take(count);
    }
    store_sums<float, walk::n>(args, part, w.sum);
}

/* ---- any nests: the operands read and the gradients made are chosen at run time ---- */

template <typename Op, typename T> __global__ void __launch_bounds__(THREADS) sum_groups(sum_args args) {
    const int n = tn_pack<T>::n;
    const float numbers[2] = { (float)args.numbers[0], (float)args.numbers[1] };
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
                    float in[Op::n_in], gradient[2] = { 0, 0 };
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
    const W numbers[2] = { (W)args.numbers[0], (W)args.numbers[1] };
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
#pragma unroll 4
        for (int64_t segment = slice; segment < segments; segment += slices) sum += sums[segment * outputs + output];
    shared[threadIdx.x] = sum;
    for (int half = slices / 2; half > 0; half /= 2) {
        __syncthreads();
        if (slice < half) shared[threadIdx.x] += shared[threadIdx.x + half * width];
    }
    if (slice == 0 && output < outputs) store_any<W>(to, dtype, output, shared[threadIdx.x]);
}

} // namespace

#endif
