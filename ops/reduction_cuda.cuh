/* Reductions over any set of axes of a strided tensor on CUDA: the kernels, which a reducer makes into a sum, a maximum, ...
 *
 * The axes are sorted by stride and merged where several form one. Then there are two ways to walk:
 *
 *     rows      the reduced elements lie side by side. A group of 1 to 32 lanes, or a block, takes one output:
 *               lane 0 1 2 3 0 1 2 3 ...    every lane loads 4 packs of 16 bytes before it folds them in
 *     columns   the outputs lie side by side. A block of x lanes by y slices owns x packs of neighbouring outputs, slice s folds
 *               rows s, s + y, s + 2y, ...; then the slices are merged through shared memory
 *
 * What has no unit stride, does not come out even in packs, or is f64 or integer, goes the same ways one element at a time. Where
 * outputs are too few for all multiprocessors, the reduced elements are cut into chunks; each leaves a state per output in scratch,
 * and a second kernel merges these. Cuts follow from shape and strides alone and merges have a fixed order: equal inputs, equal bits. */
#ifndef TENON_REDUCTION_CUDA_CUH
#define TENON_REDUCTION_CUDA_CUH

#include "../libtensor/cuda_common.cuh"
#include "reduction_cuda.h"

#define TN_REDUCE_THREADS 256
#define TN_REDUCE_MERGE_THREADS 1024

/* Axes that are walked as one, innermost first. A mark is a step in the output for kept axes, and for reduced ones a step of the place
 * among an output's elements in row-major order. */
struct tn_reduce_walk {
    int n;
    int64_t size[TN_MAX_AXES], in[TN_MAX_AXES], mark[TN_MAX_AXES];
};

struct tn_reduce_plan {
    int64_t n_out, n_reduced; /* outputs, and elements that go into each */
    bool columns;
    tn_reduce_walk kept, reduced;
    int64_t across, across_in, across_out; /* of columns: the innermost kept axis, which `kept` then lacks */
};

/* How a plan is spread over threads; a unit is an output (rows) or a panel of x packs of outputs (columns). */
struct tn_reduce_cut {
    int x, y, z, log_x; /* a group has x threads (rows, a power of 2) or x by y (columns); z groups make a block */
    int64_t n_panels, n_units, n_chunks, n_blocks;
};

/* ---- host side, in reduction_cuda.cu ---- */

/* `ordered`: the reducer needs places. */
tn_reduce_plan tn_reduce_make_plan(const tn_tensor *t, uint32_t axes, bool ordered);
/* `pack` elements are moved at a time. */
tn_reduce_cut tn_reduce_make_cut(const tn_reduce_plan &plan, size_t element_bytes, int pack);
/* Can this be read in packs of 16 bytes? */
bool tn_reduce_comes_in_packs(const tn_reduce_plan &plan, const void *data, size_t element_bytes);
/* Scratch for states of this size, whichever way is taken. */
size_t tn_reduce_parts_bytes(const tn_reduce_plan &plan, size_t element_bytes, size_t state_bytes);

/* ---- a reducer ----
 *
 *     element, packable             what memory holds; may it be read in packs?
 *     value, at(data, i)            an element as numbers are computed with, and how one is read; neutral() changes nothing
 *     fold, start(), take(...)      what a thread keeps of one output; take() folds U x N values in, of which value (u, j) has place
 *                                   place[u] + j * step; value (0, 0) is there, others may be neutral.
 *                                   take<true>: places rise with u
 *     state, settle(fold)           what threads exchange
 *     merge(a, b), shuffle(s, step) of two states; a lane's of the lane `step` away
 *     finish(s, at)                 writes output `at`                                                                           */

/* Element and mark offsets of item i. */
__device__ __forceinline__ void tn_reduce_locate(const tn_reduce_walk &walk, int64_t i, int64_t *in, int64_t *mark) {
    int64_t in_sum = 0, mark_sum = 0;
    int last = walk.n - 1;
#pragma unroll 1
    for (int axis = 0; axis < last; axis++) {
        int64_t outer = i / walk.size[axis], at = i - outer * walk.size[axis];
        in_sum += at * walk.in[axis];
        mark_sum += at * walk.mark[axis];
        i = outer;
    }
    if (last >= 0) {
        in_sum += i * walk.in[last];
        mark_sum += i * walk.mark[last];
    }
    *in = in_sum;
    *mark = mark_sum;
}

/* Items first, first + step, ... before `last`: where U of them lie. What is absent gets a place behind all others. */
template <int U, bool Nested> struct tn_reduce_items {
    bool here[U];
    int64_t offset[U], place[U];

    __device__ __forceinline__ void find(const tn_reduce_walk &walk, int64_t first, int64_t step, int64_t last, int elements) {
#pragma unroll
        for (int u = 0; u < U; u++) {
            int64_t item = first + u * step;
            here[u] = item < last;
            offset[u] = item * elements * walk.in[0];
            place[u] = item * elements * walk.mark[0];
            if (Nested && here[u]) tn_reduce_locate(walk, item * elements, &offset[u], &place[u]);
            if (!here[u]) place[u] = INT64_MAX / 2;
        }
    }
};

/* What was read of U items of N elements; loads first, numbers when they are wanted. */
template <typename Op, int U, int N> struct tn_reduce_raw {
    typedef typename Op::element E;
    typedef typename Op::value V;
    tn_pack<E> pack[N > 1 ? U : 1];
    V one[N > 1 ? 1 : U];

    template <bool Nested> __device__ __forceinline__ void load(const Op &op, const void *data, const tn_reduce_items<U, Nested> &items) {
#pragma unroll
        for (int u = 0; u < U; u++) {
            if constexpr (N > 1) {
                if (items.here[u]) pack[u] = tn_load_pack((const E *)data + items.offset[u]);
            } else {
                one[u] = items.here[u] ? op.at(data, items.offset[u]) : op.neutral();
            }
        }
    }
    __device__ __forceinline__ V number(const Op &op, bool here, int u, int j) const {
        if constexpr (N > 1) return here ? tn_widen(pack[u].at[j]) : op.neutral();
        else return one[u];
    }
};

/* Loads of a thread at a time of what is read singly. */
template <typename Value> struct tn_reduce_singly { static constexpr int loads = sizeof(Value) == 8 ? 2 : 8; };

/* Elements of a load, loads at a time, and how many of these a row folds in at once: 16 numbers, or all read singly. */
template <typename Op, bool Packed> struct tn_reduce_batch {
    static constexpr int n = Packed ? 16 / (int)sizeof(typename Op::element) : 1,
                         loads = Packed ? 4 : tn_reduce_singly<typename Op::value>::loads, folded = Packed ? 16 / n : loads;
};

/* Over the lanes of a group of at most a warp; the result is the first lane's. */
template <typename Op> __device__ __forceinline__ typename Op::state tn_reduce_lanes(const Op &op, typename Op::state s, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) s = op.merge(s, op.shuffle(s, step));
    return s;
}

template <typename Op, bool Packed, bool Nested>
__global__ void __launch_bounds__(TN_REDUCE_THREADS, 3)
    tn_reduce_rows(Op op, const void *data, const tn_reduce_plan plan, const tn_reduce_cut cut, typename Op::state *parts) {
    constexpr int N = tn_reduce_batch<Op, Packed>::n, U = tn_reduce_batch<Op, Packed>::loads, F = tn_reduce_batch<Op, Packed>::folded;
    constexpr int WARPS = TN_REDUCE_THREADS / TN_WARP;
    __shared__ typename Op::state scratch[WARPS];
    int thread = threadIdx.x & (cut.x - 1), warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP;
    int64_t n_items = plan.n_reduced / N, step = plan.reduced.n ? plan.reduced.mark[0] : 0;
    for (int64_t block = blockIdx.x; block < cut.n_blocks; block += gridDim.x) {
        int64_t task = block * cut.z + (threadIdx.x >> cut.log_x), unit = task, chunk = 0, first = 0, last = n_items;
        if (cut.n_chunks > 1) {
            unit = task / cut.n_chunks;
            chunk = task - unit * cut.n_chunks;
            first = n_items * chunk / cut.n_chunks;
            last = n_items * (chunk + 1) / cut.n_chunks;
        }
        bool idle = unit >= cut.n_units;
        if (idle) last = first;
        int64_t in, out;
        tn_reduce_locate(plan.kept, idle ? 0 : unit, &in, &out);
        const void *from = (const char *)data + in * (int64_t)op.element_bytes();
        typename Op::fold fold = op.start();
#pragma unroll 1
        for (int64_t i = first + thread; i < last; i += U * cut.x) {
            tn_reduce_items<U, Nested> items;
            tn_reduce_raw<Op, U, N> raw;
            items.find(plan.reduced, i, cut.x, last, N);
            raw.load(op, from, items);
#pragma unroll
            for (int u = 0; u < U; u += F) {
                typename Op::value v[F][N];
                int64_t place[F];
#pragma unroll
                for (int f = 0; f < F; f++) {
                    place[f] = items.place[u + f];
#pragma unroll
                    for (int j = 0; j < N; j++) v[f][j] = raw.number(op, items.here[u + f], u + f, j);
                }
                if (items.here[u]) op.template take<!Nested>(fold, v, place, step);
            }
        }
        typename Op::state s = tn_reduce_lanes(op, op.settle(fold), cut.x < TN_WARP ? cut.x : TN_WARP);
        if (cut.x > TN_WARP) {
            if (lane == 0) scratch[warp] = s;
            __syncthreads();
            if (warp == 0) s = tn_reduce_lanes(op, lane < WARPS ? scratch[lane] : op.settle(op.start()), WARPS);
            __syncthreads();
        }
        if (thread != 0 || idle) continue;
        if (parts) parts[chunk * plan.n_out + out] = s;
        else op.finish(s, out);
    }
}

template <typename Op, bool Packed, bool Nested>
__global__ void __launch_bounds__(TN_REDUCE_THREADS, 3)
    tn_reduce_columns(Op op, const void *data, const tn_reduce_plan plan, const tn_reduce_cut cut, typename Op::state *parts) {
    constexpr int N = tn_reduce_batch<Op, Packed>::n, U = tn_reduce_batch<Op, Packed>::loads;
    __shared__ typename Op::state scratch[TN_REDUCE_THREADS * N]; /* group, slice, column in its pack, pack: no two lanes meet in a bank */
    __shared__ int64_t group_out[TN_REDUCE_THREADS], group_column[TN_REDUCE_THREADS];
    int x = threadIdx.x, y = threadIdx.y % cut.y, z = threadIdx.y / cut.y, thread = threadIdx.y * cut.x + x,
        n_threads = cut.x * cut.y * cut.z;
    int width = cut.x * N; /* columns of a panel */
    for (int64_t block = blockIdx.x; block < cut.n_blocks; block += gridDim.x) {
        int64_t task = block * cut.z + z, unit = task, chunk = 0, first = 0, last = plan.n_reduced;
        if (cut.n_chunks > 1) {
            unit = task / cut.n_chunks;
            chunk = task - unit * cut.n_chunks;
            first = plan.n_reduced * chunk / cut.n_chunks;
            last = plan.n_reduced * (chunk + 1) / cut.n_chunks;
        }
        bool idle = unit >= cut.n_units;
        int64_t rest = unit / cut.n_panels, panel = unit - rest * cut.n_panels, column = panel * width + x * N, in, out;
        tn_reduce_locate(plan.kept, idle ? 0 : rest, &in, &out);
        if (x == 0 && y == 0) {
            group_out[z] = (parts ? chunk * plan.n_out : 0) + out;
            group_column[z] = idle ? plan.across : panel * width;
        }
        if (idle || column >= plan.across) last = first;
        const void *from = (const char *)data + (in + column * plan.across_in) * (int64_t)op.element_bytes();
        typename Op::fold fold[N];
#pragma unroll
        for (int j = 0; j < N; j++) fold[j] = op.start();
#pragma unroll 1
        for (int64_t i = first + y; i < last; i += U * cut.y) {
            tn_reduce_items<U, Nested> items;
            tn_reduce_raw<Op, U, N> raw;
            items.find(plan.reduced, i, cut.y, last, 1);
            raw.load(op, from, items);
#pragma unroll
            for (int j = 0; j < N; j++) {
                typename Op::value v[U][1];
#pragma unroll
                for (int u = 0; u < U; u++) v[u][0] = raw.number(op, items.here[u], u, j);
                op.template take<!Nested>(fold[j], v, items.place, 0);
            }
        }
        typename Op::state *own = scratch + (z * cut.y + y) * width + x;
#pragma unroll
        for (int j = 0; j < N; j++) own[j * cut.x] = op.settle(fold[j]);
#pragma unroll 1
        for (int half = TN_REDUCE_THREADS / 2; half > 0; half /= 2) {
            if (half >= cut.y) continue;
            __syncthreads();
            if (y < half && y + half < cut.y) {
#pragma unroll
                for (int j = 0; j < N; j++) own[j * cut.x] = op.merge(own[j * cut.x], own[half * width + j * cut.x]);
            }
        }
        __syncthreads();
        for (int t = thread; t < cut.z * width; t += n_threads) {
            int group = t / width, c = t - group * width;
            int64_t to = group_column[group] + c;
            if (to >= plan.across) continue;
            typename Op::state s = scratch[group * cut.y * width + c % N * cut.x + c / N];
            to = group_out[group] + to * plan.across_out;
            if (parts) parts[to] = s;
            else op.finish(s, to);
        }
        __syncthreads();
    }
}

/* Merges the chunks' states of blockDim.x outputs, which lie n_out apart. */
template <typename Op>
__global__ void __launch_bounds__(TN_REDUCE_MERGE_THREADS)
    tn_reduce_merge(Op op, const typename Op::state *parts, int64_t n_out, int64_t n_chunks) {
    __shared__ typename Op::state scratch[TN_REDUCE_MERGE_THREADS];
    int x = threadIdx.x, y = threadIdx.y, slices = blockDim.y;
    typename Op::state *own = scratch + y * blockDim.x + x;
    for (int64_t first = (int64_t)blockIdx.x * blockDim.x; first < n_out; first += (int64_t)gridDim.x * blockDim.x) {
        int64_t out = first + x;
        typename Op::state s = op.settle(op.start());
#pragma unroll 4
        for (int64_t chunk = y; chunk < n_chunks && out < n_out; chunk += slices) s = op.merge(s, parts[chunk * n_out + out]);
        *own = s;
        for (int half = slices / 2; half > 0; half /= 2) {
            __syncthreads();
            if (y < half) *own = op.merge(*own, own[half * blockDim.x]);
        }
        __syncthreads();
        if (y == 0 && out < n_out) op.finish(*own, out);
    }
}

template <typename Op, bool Packed, bool Nested>
static void tn_reduce_start(const Op &op, const void *data, const tn_reduce_plan &plan, const tn_reduce_cut &cut, typename Op::state *parts,
                            cudaStream_t stream) {
    unsigned blocks = tn_blocks(cut.n_blocks, 1);
    if (plan.columns) tn_reduce_columns<Op, Packed, Nested><<<blocks, dim3(cut.x, cut.y * cut.z), 0, stream>>>(op, data, plan, cut, parts);
    else tn_reduce_rows<Op, Packed, Nested><<<blocks, TN_REDUCE_THREADS, 0, stream>>>(op, data, plan, cut, parts);
}

/* `workspace` has tn_reduce_parts_bytes for Op::state. */
template <typename Op>
static cudaError_t tn_reduce_run(tn_device *device, const Op &op, const void *data, const tn_reduce_plan &plan, void *workspace,
                                 cudaStream_t stream) {
    if (plan.n_out == 0) return cudaSuccess;
    size_t size = op.element_bytes();
    bool packed = Op::packable && device->cuda_path != TN_CUDA_PLAIN && tn_reduce_comes_in_packs(plan, data, size);
    tn_reduce_cut cut = tn_reduce_make_cut(plan, size, packed ? 16 / (int)size : 1);
    typename Op::state *parts = cut.n_chunks > 1 ? (typename Op::state *)workspace : NULL;
    if constexpr (Op::packable) {
        if (packed && plan.reduced.n == 1) tn_reduce_start<Op, true, false>(op, data, plan, cut, parts, stream);
        else if (packed) tn_reduce_start<Op, true, true>(op, data, plan, cut, parts, stream);
        else tn_reduce_start<Op, false, true>(op, data, plan, cut, parts, stream);
    } else {
        tn_reduce_start<Op, false, true>(op, data, plan, cut, parts, stream);
    }
    if (parts) {
        int x = 1;
        while (x < TN_WARP && x < plan.n_out) x *= 2;
        tn_reduce_merge<<<tn_blocks(plan.n_out, x), dim3(x, TN_REDUCE_MERGE_THREADS / x), 0, stream>>>(op, parts, plan.n_out, cut.n_chunks);
    }
    return cudaGetLastError();
}

/* ---- for reducers ---- */

/* The sum of K numbers as a tree: K / 2 of them may be added at once, and errors grow with log K. Destroys v. */
template <typename V, int K> __device__ __forceinline__ V tn_tree_sum(V (&v)[K]) {
#pragma unroll
    for (int width = 1; width < K; width *= 2)
#pragma unroll
        for (int k = 0; k + width < K; k += 2 * width) v[k] += v[k + width];
    return v[0];
}

__device__ __forceinline__ int64_t tn_integer_at(tn_dtype dtype, const void *data, int64_t i) {
    switch (dtype) {
    case TN_I64: return ((const int64_t *)data)[i];
    case TN_I32: return ((const int32_t *)data)[i];
    case TN_BOOL: return ((const uint8_t *)data)[i] != 0;
    default: return ((const uint8_t *)data)[i];
    }
}

#endif
