/* Running sums along any axis, carried in f64 for every float dtype and modulo 2^64 for integers.
 *
 * Last axis: a group of 1 to 32 lanes, or a block, walks a row tile by tile. In a tile each warp has 4 runs of 32 packs:
 *
 *     pack sums -> scan over the lanes -> run after run -> warp after warp (shared memory) -> tile after tile (the carry)
 *
 * Another axis: a thread owns a pack of neighbouring lines and walks down. x is read once and o written once. Where lines are too few
 * for all multiprocessors they are cut into chunks: a first sweep leaves the sum of each chunk, a second kernel turns these into what
 * comes before a chunk, and the sweep proper starts from there (x is then read twice). Cuts depend on the shape alone. */
#include "reduce_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../op_support.h"
#include "../reduction_cuda.cuh"

#define THREADS 256
#define WARPS (THREADS / TN_WARP)
#define SCAN_THREADS 1024
#define ROW_BLOCK_BYTES 16384 /* a longer row has a block of its own */
#define ROW_BLOCKS 2048       /* fewer rows than that are cut */
#define ROW_CHUNK_BYTES 32768
#define COLUMN_THREADS 131072 /* fewer packs of columns than that are cut */
#define COLUMN_CHUNK 64

/* ---- what is summed ---- */

template <typename T> struct floats {
    typedef T element, result;
    typedef tn_wide<T> value;
    typedef double total;
    static constexpr bool packable = sizeof(T) < 8;
    __device__ value at(const void *data, int64_t i) const { return tn_widen(((const T *)data)[i]); }
    __device__ result put(value x) const { return tn_narrow<T>(x); }
};
struct integers {
    typedef int64_t element, result;
    typedef uint64_t value, total;
    static constexpr bool packable = false;
    tn_dtype dtype;
    __device__ value at(const void *data, int64_t i) const { return (uint64_t)tn_integer_at(dtype, data, i); }
    __device__ result put(value x) const { return (int64_t)x; }
};

__device__ __forceinline__ double from_below(double x, int step, int width) { return __shfl_up_sync(0xffffffffu, x, step, width); }
__device__ __forceinline__ uint64_t from_below(uint64_t x, int step, int width) {
    return __shfl_up_sync(0xffffffffu, (unsigned long long)x, step, width);
}
__device__ __forceinline__ double from_last(double x, int width) { return __shfl_sync(0xffffffffu, x, width - 1, width); }
__device__ __forceinline__ uint64_t from_last(uint64_t x, int width) {
    return __shfl_sync(0xffffffffu, (unsigned long long)x, width - 1, width);
}

typedef struct scan_shape {
    int64_t outer, axis, inner, n_chunks;
    bool reverse, exclusive, sums_only; /* sums_only: parts := the sum of each chunk */
} scan_shape;

/* N elements from memory or to it, turned round where the sum runs from the end. */
template <typename Op, int N>
__device__ __forceinline__ void load_run(const Op &op, const void *x, int64_t at, bool reverse, typename Op::value (&v)[N]) {
    if constexpr (N > 1) {
        tn_pack<typename Op::element> pack = tn_load_pack((const typename Op::element *)x + at);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = tn_widen(reverse ? pack.at[N - 1 - j] : pack.at[j]);
    } else {
        v[0] = op.at(x, at);
    }
}
template <typename Op, int N>
__device__ __forceinline__ void store_run(const Op &op, typename Op::result *o, int64_t at, bool reverse,
                                          const typename Op::value (&v)[N]) {
    if constexpr (N > 1) {
        tn_pack<typename Op::result> pack;
#pragma unroll
        for (int j = 0; j < N; j++) pack.at[j] = op.put(reverse ? v[N - 1 - j] : v[j]);
        tn_store_pack(o + at, pack);
    } else {
        o[at] = op.put(v[0]);
    }
}

/* ---- rows ---- */

/* parts[row][chunk]. A group of 2^log_group threads (at most a warp, or the block) has a chunk of a row. */
template <typename Op, bool Packed>
__global__ void __launch_bounds__(THREADS)
    cumsum_rows(Op op, typename Op::result *o, const void *x, scan_shape s, int log_group, typename Op::total *parts) {
    typedef typename Op::value V;
    typedef typename Op::total S;
    constexpr int N = Packed ? 16 / (int)sizeof(typename Op::element) : 1, U = 4;
    __shared__ S of_warp[WARPS];
    int group = 1 << log_group, width = group < TN_WARP ? group : TN_WARP, thread = threadIdx.x & (group - 1), lane = thread & (width - 1);
    int warp = group > TN_WARP ? threadIdx.x / TN_WARP : 0;
    int64_t n_items = s.axis / N, n_tasks = s.outer * s.n_chunks,
            n_blocks = (n_tasks + (THREADS >> log_group) - 1) / (THREADS >> log_group);
    for (int64_t block = blockIdx.x; block < n_blocks; block += gridDim.x) {
        int64_t task = block * (THREADS >> log_group) + (threadIdx.x >> log_group), row = task / s.n_chunks,
                chunk = task - row * s.n_chunks;
        /* Idle groups go through the same loops, for the lanes beside them. */
        bool idle = row >= s.outer;
        int64_t first = n_items * chunk / s.n_chunks, last = n_items * (chunk + 1) / s.n_chunks;
        S carry = parts && !s.sums_only && !idle ? parts[task] : (S)0;
        for (int64_t tile = first; tile < last; tile += (int64_t)U * group) {
            V v[U][N];
            S before[U], running = 0;
            int64_t at[U];
            bool here[U];
#pragma unroll
            for (int u = 0; u < U; u++) {
                int64_t item = tile + (warp * U + u) * width + lane;
                here[u] = item < last && !idle;
                at[u] = row * s.axis + (s.reverse ? n_items - 1 - item : item) * N;
#pragma unroll
                for (int j = 0; j < N; j++) v[u][j] = 0;
                if (here[u]) load_run<Op, N>(op, x, at[u], s.reverse, v[u]);
            }
#pragma unroll
            for (int u = 0; u < U; u++) {
                V sum = 0;
#pragma unroll
                for (int j = 0; j < N; j++) sum += v[u][j];
                S upto = (S)sum;
                for (int step = 1; step < width; step *= 2) {
                    S below = from_below(upto, step, width);
                    if (lane >= step) upto += below;
                }
                S below = from_below(upto, 1, width);
                before[u] = running + (lane ? below : (S)0);
                running += from_last(upto, width);
            }
            S start = carry;
            if (group > TN_WARP) {
                if (lane == 0) of_warp[warp] = running;
                __syncthreads();
                for (int w = 0; w < WARPS; w++) {
                    if (w == warp) start = carry;
                    carry += of_warp[w];
                }
                __syncthreads();
            } else {
                carry += running;
            }
            if (s.sums_only) continue;
#pragma unroll
            for (int u = 0; u < U; u++) {
                V sum = (V)(start + before[u]), result[N];
#pragma unroll
                for (int j = 0; j < N; j++) {
                    V next = sum + v[u][j];
                    result[j] = s.exclusive ? sum : next;
                    sum = next;
                }
                if (here[u]) store_run<Op, N>(op, o, at[u], s.reverse, result);
            }
        }
        if (s.sums_only && thread == 0 && !idle) parts[task] = carry;
    }
}

/* ---- columns ---- */

/* parts[outer][chunk][inner]. A thread has a pack of columns of a chunk. */
template <typename Op, bool Packed>
__global__ void __launch_bounds__(THREADS)
    cumsum_columns(Op op, typename Op::result *o, const void *x, scan_shape s, typename Op::total *parts) {
    typedef typename Op::value V;
    typedef typename Op::total S;
    constexpr int N = Packed ? 16 / (int)sizeof(typename Op::element) : 1, U = Packed ? 4 : 8;
    int64_t packs = s.inner / N, n_tasks = s.outer * s.n_chunks * packs;
    for (int64_t task = (int64_t)blockIdx.x * THREADS + threadIdx.x; task < n_tasks; task += (int64_t)gridDim.x * THREADS) {
        int64_t unit = task / packs, column = (task - unit * packs) * N, outer = unit / s.n_chunks, chunk = unit - outer * s.n_chunks;
        int64_t first = s.axis * chunk / s.n_chunks, last = s.axis * (chunk + 1) / s.n_chunks, base = outer * s.axis * s.inner + column;
        S sum[N];
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] = parts && !s.sums_only ? parts[unit * s.inner + column + j] : (S)0;
        for (int64_t i = first; i < last; i += U) {
            V v[U][N];
#pragma unroll
            for (int u = 0; u < U; u++)
                if (i + u < last) load_run<Op, N>(op, x, base + (s.reverse ? s.axis - 1 - i - u : i + u) * s.inner, false, v[u]);
#pragma unroll
            for (int u = 0; u < U; u++) {
                if (i + u >= last) break;
                V result[N];
#pragma unroll
                for (int j = 0; j < N; j++) {
                    S next = sum[j] + (S)v[u][j];
                    result[j] = (V)(s.exclusive ? sum[j] : next);
                    sum[j] = next;
                }
                if (!s.sums_only) store_run<Op, N>(op, o, base + (s.reverse ? s.axis - 1 - i - u : i + u) * s.inner, false, result);
            }
        }
        if (!s.sums_only) continue;
#pragma unroll
        for (int j = 0; j < N; j++) parts[unit * s.inner + column + j] = sum[j];
    }
}

/* ---- between the sweeps: sums of chunks become sums of all chunks before ---- */

/* A block has blockDim.x lines; each of its blockDim.y slices takes a run of chunks. */
template <typename S>
__global__ void __launch_bounds__(SCAN_THREADS) sums_before_chunks(S *parts, int64_t n_lines, int64_t inner, int64_t n_chunks) {
    __shared__ S of_slice[2][SCAN_THREADS];
    int x = threadIdx.x, y = threadIdx.y, slices = blockDim.y;
    int64_t length = (n_chunks + slices - 1) / slices, begin = y * length, end = begin + length < n_chunks ? begin + length : n_chunks;
    for (int64_t first = (int64_t)blockIdx.x * blockDim.x; first < n_lines; first += (int64_t)gridDim.x * blockDim.x) {
        int64_t line = first + x, outer = line / inner;
        bool idle = line >= n_lines;
        S *own = parts + outer * n_chunks * inner + (line - outer * inner), sum = 0;
        for (int64_t chunk = begin; chunk < end && !idle; chunk++) sum += own[chunk * inner];
        int from = 0;
        of_slice[0][y * blockDim.x + x] = sum;
        __syncthreads();
        for (int step = 1; step < slices; step *= 2, from = !from) {
            S upto = of_slice[from][y * blockDim.x + x];
            if (y >= step) upto += of_slice[from][(y - step) * blockDim.x + x];
            of_slice[!from][y * blockDim.x + x] = upto;
            __syncthreads();
        }
        sum = y ? of_slice[from][(y - 1) * blockDim.x + x] : (S)0;
        for (int64_t chunk = begin; chunk < end && !idle; chunk++) {
            S of_chunk = own[chunk * inner];
            own[chunk * inner] = sum;
            sum += of_chunk;
        }
        __syncthreads();
    }
}

/* ---- launches ---- */

static int64_t limited(int64_t x, int64_t most) { return x < 1 || most < 1 ? 1 : x < most ? x : most; }

static int64_t chunks_of(const tn_around &around, size_t element_bytes) {
    int64_t row_bytes = around.axis * (int64_t)element_bytes, pack = 16 / (int64_t)element_bytes;
    if (around.outer * around.inner == 0) return 1;
    if (around.inner == 1) return row_bytes <= ROW_BLOCK_BYTES ? 1 : limited(ROW_BLOCKS / around.outer, row_bytes / ROW_CHUNK_BYTES);
    int64_t threads = around.outer * (around.inner % pack ? around.inner : around.inner / pack);
    return limited(COLUMN_THREADS / threads, around.axis / COLUMN_CHUNK);
}

static tn_around around_of(const tn_op_call *call) {
    const tn_shape *shape = call->in_spec ? &call->in_spec[0].shape : &call->out_spec[0].shape;
    return tn_around_axis(shape->size, shape->axes, tn_axis_of(((const tn_cumsum_args *)call->args)->dim, shape->axes));
}

extern "C" size_t tn_cumsum_workspace_cuda(const tn_op_call *call, bool backward) {
    tn_around around = around_of(call);
    int64_t n_chunks = chunks_of(around, tn_dtype_size(backward ? call->in_spec[0].dtype : call->in[0]->dtype));
    return n_chunks > 1 ? (size_t)(around.outer * n_chunks * around.inner) * 8 : 0;
}

template <typename Op, bool Packed>
static void sweep(const Op &op, void *o, const void *x, const scan_shape &s, size_t element_bytes, void *parts, cudaStream_t stream) {
    typedef typename Op::result R;
    typedef typename Op::total S;
    const int pack = Packed ? 16 / (int)sizeof(typename Op::element) : 1;
    if (s.inner > 1) {
        unsigned blocks = tn_blocks(s.outer * s.n_chunks * (s.inner / pack), THREADS);
        cumsum_columns<Op, Packed><<<blocks, THREADS, 0, stream>>>(op, (R *)o, x, s, (S *)parts);
        return;
    }
    int log_group = 0;
    while (log_group < 5 && (int64_t)4 * pack << log_group < s.axis) log_group++;
    if (s.axis * (int64_t)element_bytes > ROW_BLOCK_BYTES) log_group = 8;
    unsigned blocks = tn_blocks(s.outer * s.n_chunks, THREADS >> log_group);
    cumsum_rows<Op, Packed><<<blocks, THREADS, 0, stream>>>(op, (R *)o, x, s, log_group, (S *)parts);
}

template <typename Op>
static void sweep_any(const Op &op, bool packed, void *o, const void *x, const scan_shape &s, size_t element_bytes, void *parts,
                      cudaStream_t stream) {
    if constexpr (Op::packable) {
        if (packed) return sweep<Op, true>(op, o, x, s, element_bytes, parts, stream);
    }
    sweep<Op, false>(op, o, x, s, element_bytes, parts, stream);
}

template <typename Op> static void launch(const Op &op, const tn_op_call *call, const tn_tensor *x, void *o, bool reverse) {
    typedef typename Op::total S;
    tn_around around = around_of(call);
    size_t element_bytes = tn_dtype_size(x->dtype);
    cudaStream_t stream = (cudaStream_t)call->stream;
    scan_shape s = { around.outer, around.axis,
                     around.inner, chunks_of(around, element_bytes),
                     reverse,      ((const tn_cumsum_args *)call->args)->exclusive,
                     false };
    int64_t contiguous = s.inner > 1 ? s.inner : s.axis;
    bool packed = call->device->cuda_path != TN_CUDA_PLAIN && contiguous % (16 / (int64_t)element_bytes) == 0 && tn_aligned16(x->data) &&
                  tn_aligned16(o);
    void *parts = s.n_chunks > 1 ? call->workspace : NULL;
    if (parts) {
        scan_shape sums = s;
        sums.sums_only = true;
        sweep_any(op, packed, o, x->data, sums, element_bytes, parts, stream);
        int64_t n_lines = s.outer * s.inner;
        int width = 1;
        while (width < TN_WARP && width < n_lines) width *= 2;
        sums_before_chunks<<<tn_blocks(n_lines, width), dim3(width, SCAN_THREADS / width), 0, stream>>>((S *)parts, n_lines, s.inner,
                                                                                                        s.n_chunks);
    }
    sweep_any(op, packed, o, x->data, s, element_bytes, parts, stream);
}

static tn_status run(tn_op_call *call, const tn_tensor *x, tn_tensor *o, bool reverse, const char *pass) {
    if (x->numel == 0) return TN_OK;
    if (!tn_dtype_is_float(x->dtype)) launch(integers{ x->dtype }, call, x, o->data, reverse);
    else TN_WITH_FLOAT(x->dtype, T, launch(floats<T>(), call, x, o->data, reverse));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), pass);
}

extern "C" tn_status tn_cumsum_forward_cuda(tn_op_call *call) {
    return run(call, call->in[0], call->out[0], ((const tn_cumsum_args *)call->args)->reverse, "cumsum forward");
}

/* dx_i is the sum of do over the outputs that x_i went into: the same sum from the other end. */
extern "C" tn_status tn_cumsum_backward_cuda(tn_op_call *call) {
    return run(call, call->dout[0], call->din[0], !((const tn_cumsum_args *)call->args)->reverse, "cumsum backward");
}
