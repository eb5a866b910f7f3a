/* Elements along an axis by index, over any strides.
 *
 * Forward: a thread per output, or per 16 bytes of outputs where the index repeats along x's innermost axis (index_select).
 *
 * Backward, deterministic without atomics on numbers, in one of three ways. A line is what shares all places but the gathered axis's.
 *
 *     one index for all lines     rows of a table (index_select along the first axis): embedding's backward
 *     short lines of the index    a thread per element of do; the first that names a place of dx adds all later ones of its line
 *     long ones                   elements are sorted by the place of dx they belong to (index_sort.cu); the first of each run of equal
 *                                 places adds the run, a warp together where it is long */
#include "index_cuda.h"

#include "../../libtensor/cuda_common.cuh"
#include "../op_support.h"

#define THREADS 256
#define LONG_LINE 128 /* elements of the index in a line from which sorting pays */
#define LONG_RUN 32

__device__ __forceinline__ int64_t index_at(const void *index, bool wide, int64_t at) {
    return wide ? ((const int64_t *)index)[at] : (int64_t)((const int32_t *)index)[at];
}

static int axis_of(const tn_op_call *call, int axes) { return tn_axis_of(((const tn_gather_args *)call->args)->dim, axes); }

/* ---- forward ---- */

/* Operand 0 of the nest is the index, 1 is x at index 0. */
template <typename Unit, typename Index>
__global__ void __launch_bounds__(THREADS)
    read_elements(Unit *o, const Unit *x, const void *index, bool wide, tn_nest nest, int64_t limit, int64_t axis_stride, Unit bad) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * THREADS) {
        int64_t offset[2];
        tn_nest_offsets<2, Index>(nest, (Index)i, offset);
        int64_t at = index_at(index, wide, offset[0]);
        o[i] = (uint64_t)at < (uint64_t)limit ? x[offset[1] + at * axis_stride] : bad;
    }
}

/* Index and x side by side over the index's shape. */
static tn_nest forward_nest(const tn_tensor *index, const tn_tensor *x, int axis) {
    int64_t x_stride[TN_MAX_AXES];
    for (int i = 0; i < x->axes; i++) x_stride[i] = i == axis ? 0 : x->stride[i];
    const int64_t *strides[2] = { index->stride, x_stride };
    return tn_make_nest(index->axes, index->shape, 2, strides);
}

/* The same in units of 16 bytes, where innermost elements lie side by side and share their index. */
static bool widen(tn_nest *nest, int64_t *axis_stride, size_t element_bytes) {
    int last = nest->axes - 1;
    int64_t n = 16 / (int64_t)element_bytes;
    if (nest->stride[0][last] != 0 || nest->stride[1][last] != 1 || nest->shape[last] % n || *axis_stride % n) return false;
    for (int i = 0; i < last; i++)
        if (nest->stride[1][i] % n) return false;
    for (int i = 0; i < last; i++) nest->stride[1][i] /= n;
    nest->shape[last] /= n;
    nest->numel /= n;
    *axis_stride /= n;
    return true;
}

template <typename Unit>
static void start_reading(const tn_op_call *call, const tn_nest &nest, int64_t limit, int64_t axis_stride, Unit bad) {
    const tn_tensor *x = call->in[0], *index = call->in[1];
    unsigned blocks = tn_blocks(nest.numel, THREADS);
    Unit *o = (Unit *)call->out[0]->data;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (nest.numel <= INT32_MAX)
        read_elements<Unit, uint32_t>
            <<<blocks, THREADS, 0, stream>>>(o, (const Unit *)x->data, index->data, index->dtype == TN_I64, nest, limit, axis_stride, bad);
    else
        read_elements<Unit, int64_t>
            <<<blocks, THREADS, 0, stream>>>(o, (const Unit *)x->data, index->data, index->dtype == TN_I64, nest, limit, axis_stride, bad);
}

extern "C" tn_status tn_gather_forward_cuda(tn_op_call *call) {
    const tn_tensor *x = call->in[0], *index = call->in[1], *o = call->out[0];
    int axis = axis_of(call, x->axes);
    tn_status status = tn_index_check_cuda(call, x->shape[axis]);
    if (status != TN_OK || o->numel == 0) return status;
    size_t element = tn_dtype_size(x->dtype);
    tn_nest nest = forward_nest(index, x, axis);
    int64_t axis_stride = x->stride[axis], limit = x->shape[axis];
    bool packs =
        call->device->cuda_path != TN_CUDA_PLAIN && tn_aligned16(x->data) && tn_aligned16(o->data) && widen(&nest, &axis_stride, element);
    /* What an index outside gives: NaN, or 0 for integers. */
    const uint32_t f64_high = 0x7ff80000, f32 = 0x7fc00000, bf16 = 0x7fc07fc0;
    bool is_float = tn_dtype_is_float(x->dtype);
    uint32_t low = !is_float || element == 8 ? 0 : element == 4 ? f32 : bf16, high = is_float && element == 8 ? f64_high : low;
    if (packs) start_reading<uint4>(call, nest, limit, axis_stride, make_uint4(low, high, low, high));
    else if (element == 8) start_reading<uint64_t>(call, nest, limit, axis_stride, (uint64_t)high << 32 | low);
    else if (element == 4) start_reading<uint32_t>(call, nest, limit, axis_stride, low);
    else if (element == 2) start_reading<uint16_t>(call, nest, limit, axis_stride, (uint16_t)low);
    else start_reading<uint8_t>(call, nest, limit, axis_stride, (uint8_t)0);
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "gather forward");
}

/* ---- backward: short lines ---- */

typedef struct gather_lines {
    tn_nest nest; /* over the lines; operands: index, do, dx */
    const void *index;
    bool wide, neighbours_in_line; /* do's neighbours lie in one line: they go to neighbouring threads */
    int64_t length, index_step, dout_step, dx_step, limit;
} gather_lines;

template <typename T> __global__ void __launch_bounds__(THREADS) add_short_lines(T *dx, const T *d, gather_lines g) {
    for (int64_t task = (int64_t)blockIdx.x * THREADS + threadIdx.x; task < g.nest.numel * g.length; task += (int64_t)gridDim.x * THREADS) {
        int64_t line = g.neighbours_in_line ? task / g.length : task % g.nest.numel,
                i = g.neighbours_in_line ? task - line * g.length : task / g.nest.numel;
        int64_t offset[3];
        tn_nest_offsets<3, int64_t>(g.nest, line, offset);
        int64_t own = index_at(g.index, g.wide, offset[0] + i * g.index_step);
        if ((uint64_t)own >= (uint64_t)g.limit) continue;
        bool first = true;
        for (int64_t k = 0; first && k < i; k++) first = index_at(g.index, g.wide, offset[0] + k * g.index_step) != own;
        if (!first) continue;
        tn_wide<T> sum = tn_widen(d[offset[1] + i * g.dout_step]);
        for (int64_t k = i + 1; k < g.length; k++)
            if (index_at(g.index, g.wide, offset[0] + k * g.index_step) == own) sum += tn_widen(d[offset[1] + k * g.dout_step]);
        dx[offset[2] + own * g.dx_step] = tn_narrow<T>(sum);
    }
}

static gather_lines lines_of(const tn_op_call *call, int axis) {
    const tn_tensor *index = call->in[1], *dout = call->dout[0], *dx = call->din[0];
    int64_t shape[TN_MAX_AXES], step[3][TN_MAX_AXES];
    int n = 0;
    for (int i = 0; i < index->axes; i++) {
        if (i == axis) continue;
        shape[n] = index->shape[i];
        step[0][n] = index->stride[i];
        step[1][n] = dout->stride[i];
        step[2][n++] = dx->stride[i];
    }
    const int64_t *strides[3] = { step[0], step[1], step[2] };
    gather_lines g;
    g.nest = tn_make_nest(n, shape, 3, strides);
    g.index = index->data;
    g.wide = index->dtype == TN_I64;
    g.neighbours_in_line = dout->stride[axis] == 1;
    g.length = index->shape[axis];
    g.index_step = index->stride[axis];
    g.dout_step = dout->stride[axis];
    g.dx_step = dx->stride[axis];
    g.limit = dx->shape[axis];
    return g;
}

/* ---- backward: long lines ---- */

/* The place in dx of each element of do, which is dense; `nowhere` where the index lies outside. Operands: index, dx at index 0. */
__global__ void __launch_bounds__(THREADS)
    find_places(uint32_t *keys, tn_nest nest, const void *index, bool wide, int64_t limit, int64_t dx_step, uint32_t nowhere) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * THREADS) {
        int64_t offset[2];
        tn_nest_offsets<2, int64_t>(nest, i, offset);
        int64_t at = index_at(index, wide, offset[0]);
        keys[i] = (uint64_t)at < (uint64_t)limit ? (uint32_t)(offset[1] + at * dx_step) : nowhere;
    }
}

/* The end of the run of `key`, of which the element before `from` is one. */
__device__ __forceinline__ int64_t end_of_run(const uint32_t *keys, int64_t from, int64_t n, uint32_t key) {
    int64_t low = from, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (keys[middle] == key) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* A thread looks at one sorted element. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    add_runs(T *dx, const T *d, const uint32_t *keys, const uint32_t *places, int64_t n, uint32_t nowhere) {
    typedef tn_wide<T> W;
    int lane = threadIdx.x % TN_WARP;
    for (int64_t first = (int64_t)blockIdx.x * THREADS; first < n; first += (int64_t)gridDim.x * THREADS) {
        int64_t i = first + threadIdx.x;
        uint32_t key = i < n ? keys[i] : nowhere;
        bool heads = key != nowhere && (i == 0 || keys[i - 1] != key), is_long = false;
        if (heads) {
            W sum = tn_widen(d[places[i]]);
            int k = 1;
            for (; k < LONG_RUN && i + k < n && keys[i + k] == key; k++) sum += tn_widen(d[places[i + k]]);
            is_long = k == LONG_RUN && i + k < n && keys[i + k] == key;
            if (!is_long) dx[key] = tn_narrow<T>(sum);
        }
        for (uint32_t waiting = __ballot_sync(0xffffffffu, is_long); waiting; waiting &= waiting - 1) {
            int head = __ffs(waiting) - 1;
            int64_t begin = i - lane + head;
            uint32_t of_run = __shfl_sync(0xffffffffu, key, head);
            int64_t end = end_of_run(keys, begin + LONG_RUN, n, of_run);
            W sum = 0;
#pragma unroll 4
            for (int64_t k = begin + lane; k < end; k += TN_WARP) sum += tn_widen(d[places[k]]);
            sum = tn_warp_sum(sum);
            if (lane == 0) dx[of_run] = tn_narrow<T>(sum);
        }
    }
}

/* ---- backward ---- */

typedef enum gather_way { AS_TABLE, SHORT_LINES, LONG_LINES } gather_way;

static gather_way way_of(const tn_op_call *call, int axis) {
    const tn_tensor *index = call->in[1];
    const tn_shape *shape = &call->in_spec[0].shape;
    int64_t length = index->shape[axis], n_places = 1;
    bool as_table = axis == 0 && index->axes > 1;
    for (int i = 0; i < shape->axes; i++) {
        n_places *= shape->size[i];
        if (i > 0) as_table = as_table && (index->stride[i] == 0 || index->shape[i] == 1) && index->shape[i] == shape->size[i];
    }
    if (as_table && tn_index_sortable(length, shape->size[0])) return AS_TABLE;
    return length <= LONG_LINE || !tn_index_sortable(index->numel, n_places) ? SHORT_LINES : LONG_LINES;
}

static int64_t table_width(const tn_shape *shape) {
    int64_t width = 1;
    for (int i = 1; i < shape->axes; i++) width *= shape->size[i];
    return width;
}

extern "C" size_t tn_gather_workspace_cuda(const tn_op_call *call, bool backward) {
    if (!backward) return 0;
    const tn_tensor *index = call->in[1];
    const tn_shape *shape = &call->in_spec[0].shape;
    int axis = axis_of(call, shape->axes);
    if (index->numel == 0) return 0;
    switch (way_of(call, axis)) {
    case AS_TABLE: return tn_row_sums_bytes(call->in_spec[0].dtype, index->shape[0], shape->size[0], table_width(shape));
    case LONG_LINES: return tn_index_sort_bytes(index->numel);
    default: return 0;
    }
}

static cudaError_t add_as_table(const tn_op_call *call, cudaStream_t stream) {
    const tn_tensor *dx = call->din[0], *index = call->in[1];
    tn_row_sums sums = {};
    sums.dtype = dx->dtype;
    sums.index = index->data;
    sums.wide_index = index->dtype == TN_I64;
    sums.plain = call->device->cuda_path == TN_CUDA_PLAIN || dx->dtype == TN_F64;
    sums.multiprocessors = call->device->multiprocessors;
    sums.hopper = call->device->cuda_path == TN_CUDA_HOPPER;
    sums.stride = index->stride[0];
    sums.n = index->shape[0];
    sums.n_rows = dx->shape[0];
    sums.width = table_width(&call->in_spec[0].shape);
    sums.rows = call->dout[0]->data;
    sums.table = dx->data;
    return (cudaError_t)tn_row_sums_cuda(&sums, call->workspace, stream);
}

static void add_sorted(const tn_op_call *call, int axis, cudaStream_t stream) {
    const tn_tensor *dx = call->din[0], *index = call->in[1], *dout = call->dout[0];
    tn_nest nest = forward_nest(index, dx, axis);
    tn_index_sort sort = {};
    sort.n = index->numel;
    sort.limit = (uint32_t)dx->numel;
    /* The second quarter of the scratch: the first pass of the sort writes elsewhere, the second overwrites them. */
    sort.keys = (uint32_t *)call->workspace + sort.n;
    find_places<<<tn_blocks(sort.n, THREADS), THREADS, 0, stream>>>(sort.keys, nest, index->data, index->dtype == TN_I64, dx->shape[axis],
                                                                    dx->stride[axis], sort.limit);
    tn_index_order order = tn_index_sorted(&sort, call->workspace, stream);
    TN_WITH_FLOAT(dx->dtype, T, {
        add_runs<T><<<tn_blocks(sort.n, THREADS), THREADS, 0, stream>>>((T *)dx->data, (const T *)dout->data, order.keys, order.places,
                                                                        sort.n, sort.limit);
    });
}

static void add_lines(const tn_op_call *call, int axis, cudaStream_t stream) {
    const tn_tensor *dx = call->din[0], *dout = call->dout[0];
    gather_lines g = lines_of(call, axis);
    TN_WITH_FLOAT(dx->dtype, T, {
        add_short_lines<T><<<tn_blocks(dout->numel, THREADS), THREADS, 0, stream>>>((T *)dx->data, (const T *)dout->data, g);
    });
}

extern "C" tn_status tn_gather_backward_cuda(tn_op_call *call) {
    const tn_tensor *dx = call->din[0], *index = call->in[1];
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (dx->numel == 0) return TN_OK;
    int axis = axis_of(call, dx->axes);
    gather_way way = way_of(call, axis);
    cudaError_t error = cudaSuccess;
    if (way == AS_TABLE && index->numel > 0) {
        error = add_as_table(call, stream);
    } else {
        error = cudaMemsetAsync(dx->data, 0, tn_bytes(dx), stream);
        if (error == cudaSuccess && index->numel > 0) {
            if (way == LONG_LINES) add_sorted(call, axis, stream);
            else add_lines(call, axis, stream);
            error = cudaGetLastError();
        }
    }
    return tn_cuda_said(call->device, (int)error, "gather backward");
}
