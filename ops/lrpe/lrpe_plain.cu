/* The plain kernels: f64, and whatever has no packs. A block takes a row (one token of one head of one batch) at a time, its threads the
 * features. Softmax over the tokens first finds maximum, sum and, backward, sum of o * do of every column, a thread each.
 *
 * dtheta: a block walks the rows of a run of tokens of one head and adds s * dA of its features to its own row of parts [run][head][W];
 * a second kernel adds the parts in order, in f64. */
#include "lrpe_cuda.cuh"

#define PLAIN_THREADS 128
#define SUM_THREADS 256

namespace {

template <typename W> struct turn {
    W cosine, sine;
    int64_t coordinate;
};

template <typename T>
__device__ turn<tn_wide<T>> turn_of(const tn_lrpe_call &call, int64_t token, int64_t head, int64_t feature, bool from_table) {
    typedef tn_wide<T> W;
    turn<W> t = { 1, 0, 0 };
    int axis = tn_lrpe_axis(&call.grid, feature);
    if (axis >= 0) {
        t.coordinate = tn_lrpe_coordinate(&call.grid, token, axis);
        if (call.offset_t && token >= call.grid.leading) t.coordinate += *call.offset_t;
    }
    if (from_table) {
        const W *row = (const W *)call.table + token * call.table_stride.token + head * call.table_stride.head + feature;
        t.cosine = row[0];
        t.sine = row[call.grid.angles];
    } else if (axis >= 0) {
        const W *theta = (const W *)call.theta + (call.grid.theta_heads == 1 ? 0 : head * call.grid.theta_width);
        tn_lrpe_sincos<T>(tn_lrpe_position(t.coordinate), theta[tn_lrpe_theta_column(&call.grid, feature)], &t.sine, &t.cosine);
    }
    return t;
}

/* What a softmax needs to know of a row or of its columns. */
template <typename W> struct statistics {
    W max, sum, dot; /* over the features */
    const W *column_max, *column_sum, *column_dots;
};

template <typename T> __device__ const T *row_of(const void *data, const tn_lrpe_strides &stride, int64_t b, int64_t token, int64_t head) {
    return (const T *)data + b * stride.batch + token * stride.token + head * stride.head;
}

/* act(x) of a feature. */
template <typename T>
__device__ tn_wide<T> value_of(const tn_lrpe_call &call, const statistics<tn_wide<T>> &of, const T *x, int64_t feature) {
    typedef tn_wide<T> W;
    W value = tn_widen(x[feature * call.x_stride.feature]);
    if (call.softmax == TN_LRPE_SOFTMAX_FEATURES) return tn_exp_of(value - of.max) / of.sum;
    if (call.softmax == TN_LRPE_SOFTMAX_TOKENS) return tn_exp_of(value - of.column_max[feature]) / of.column_sum[feature];
    TN_WITH_ACT(call.act, Act, value = (tn_act_value<Act, W>(value)));
    return value;
}

/* Gradient of x from that of act(x). */
template <typename T>
__device__ tn_wide<T> slope_of(const tn_lrpe_call &call, const statistics<tn_wide<T>> &of, const T *x, int64_t feature, tn_wide<T> d) {
    typedef tn_wide<T> W;
    if (call.softmax == TN_LRPE_SOFTMAX_FEATURES) return value_of<T>(call, of, x, feature) * (d - of.dot);
    if (call.softmax == TN_LRPE_SOFTMAX_TOKENS) return value_of<T>(call, of, x, feature) * (d - of.column_dots[feature]);
    if (call.act == TN_NONE) return d;
    W value = tn_widen(x[feature * call.x_stride.feature]), slope = 1;
    TN_WITH_ACT(call.act, Act, slope = (tn_act_slope<Act, W>(value)));
    return d * slope;
}

/* The gradient of act(x) of a feature. */
template <typename T>
__device__ tn_wide<T> turned_back(const tn_lrpe_call &call, const T *d, int64_t token, int64_t head, int64_t feature) {
    int64_t angles = call.grid.angles, step = call.do_stride.feature;
    bool second = feature >= angles;
    int64_t f = second ? feature - angles : feature;
    turn<tn_wide<T>> t = turn_of<T>(call, token, head, f, call.table != NULL);
    tn_wide<T> d1 = tn_widen(d[f * step]), d2 = tn_widen(d[(f + angles) * step]);
    return second ? d2 * t.cosine - d1 * t.sine : d1 * t.cosine + d2 * t.sine;
}

/* Maximum and sum of a row for a softmax over its features. */
template <typename T>
__device__ void row_statistics(const tn_lrpe_call &call, const T *x, statistics<tn_wide<T>> *of, tn_wide<T> *scratch) {
    typedef tn_wide<T> W;
    W max = (W)-INFINITY, sum = 0;
    for (int64_t f = threadIdx.x; f < call.width; f += PLAIN_THREADS) {
        W value = tn_widen(x[f * call.x_stride.feature]);
        max = value > max ? value : max;
    }
    of->max = tn_block_max(max, (W)-INFINITY, scratch);
    for (int64_t f = threadIdx.x; f < call.width; f += PLAIN_THREADS) sum += tn_exp_of(tn_widen(x[f * call.x_stride.feature]) - of->max);
    of->sum = tn_block_sum(sum, scratch);
}

template <typename W>
__device__ void point_at_columns(const tn_lrpe_call &call, statistics<W> *of, int64_t b, int64_t head, const W *max, const W *sum,
                                 const W *dots) {
    int64_t at = (b * call.heads + head) * call.width;
    of->column_max = max + at;
    of->column_sum = sum + at;
    of->column_dots = dots + at;
}

/* ---- columns of a softmax over the tokens: a thread each ---- */

template <typename T> __global__ void __launch_bounds__(PLAIN_THREADS) plain_columns(tn_lrpe_call call, tn_wide<T> *max, tn_wide<T> *sum) {
    typedef tn_wide<T> W;
    int64_t i = (int64_t)blockIdx.x * PLAIN_THREADS + threadIdx.x, feature = i % call.width, row = i / call.width;
    if (row >= call.batch * call.heads) return;
    const T *x = row_of<T>(call.x, call.x_stride, row / call.heads, 0, row % call.heads) + feature * call.x_stride.feature;
    W most = (W)-INFINITY, total = 0;
    for (int64_t t = 0; t < call.grid.tokens; t++) {
        W value = tn_widen(x[t * call.x_stride.token]);
        most = value > most ? value : most;
    }
    for (int64_t t = 0; t < call.grid.tokens; t++) total += tn_exp_of(tn_widen(x[t * call.x_stride.token]) - most);
    max[i] = most;
    sum[i] = total;
}

template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS)
    plain_column_products(tn_lrpe_call call, const tn_wide<T> *max, const tn_wide<T> *sum, tn_wide<T> *dots) {
    typedef tn_wide<T> W;
    int64_t i = (int64_t)blockIdx.x * PLAIN_THREADS + threadIdx.x, feature = i % call.width, row = i / call.width;
    if (row >= call.batch * call.heads) return;
    int64_t b = row / call.heads, head = row % call.heads;
    statistics<W> of = {};
    point_at_columns<W>(call, &of, b, head, max, sum, dots);
    W dot = 0;
    for (int64_t t = 0; t < call.grid.tokens; t++)
        dot += value_of<T>(call, of, row_of<T>(call.x, call.x_stride, b, t, head), feature) *
               turned_back<T>(call, row_of<T>(call.d, call.do_stride, b, t, head), t, head, feature);
    dots[i] = dot;
}

/* ---- rows ---- */

template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_forward(tn_lrpe_call call, const tn_wide<T> *max, const tn_wide<T> *sum) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    for (int64_t row = blockIdx.x; row < call.batch * call.grid.tokens * call.heads; row += gridDim.x) {
        int64_t head = row % call.heads, token = row / call.heads % call.grid.tokens, b = row / call.heads / call.grid.tokens;
        const T *x = row_of<T>(call.x, call.x_stride, b, token, head);
        T *o = (T *)row_of<T>(call.o, call.o_stride, b, token, head);
        statistics<W> of = {};
        if (call.softmax == TN_LRPE_SOFTMAX_FEATURES) row_statistics<T>(call, x, &of, scratch);
        if (call.softmax == TN_LRPE_SOFTMAX_TOKENS) point_at_columns<W>(call, &of, b, head, max, sum, sum);
        bool keeps = call.table && b == 0 && (head == 0 || call.grid.theta_heads > 1);
        W *kept = (W *)call.table + token * call.table_stride.token + head * call.table_stride.head;
        for (int64_t f = threadIdx.x; f < call.grid.angles; f += PLAIN_THREADS) {
            turn<W> t = turn_of<T>(call, token, head, f, false);
            W x1 = value_of<T>(call, of, x, f), x2 = call.kind == TN_ROTATE ? value_of<T>(call, of, x, f + call.grid.angles) : (W)0;
            o[f] = tn_narrow<T>(x1 * t.cosine - x2 * t.sine);
            o[f + call.grid.angles] = tn_narrow<T>(x1 * t.sine + x2 * t.cosine);
            if (keeps) kept[f] = t.cosine, kept[f + call.grid.angles] = t.sine;
        }
    }
}

/* One row of backward; dA of feature f times its coordinate is added to part[f], unless part is NULL. */
template <typename T>
__device__ void backward_row(const tn_lrpe_call &call, const statistics<tn_wide<T>> &of, int64_t b, int64_t token, int64_t head,
                             tn_wide<T> *part) {
    typedef tn_wide<T> W;
    const T *d = row_of<T>(call.d, call.do_stride, b, token, head), *x = call.x ? row_of<T>(call.x, call.x_stride, b, token, head) : NULL;
    T *dx = call.dx ? (T *)row_of<T>(call.dx, call.dx_stride, b, token, head) : NULL;
    int64_t angles = call.grid.angles, step = call.do_stride.feature;
    for (int64_t f = threadIdx.x; f < angles; f += PLAIN_THREADS) {
        turn<W> t = turn_of<T>(call, token, head, f, call.table != NULL);
        W d1 = tn_widen(d[f * step]), d2 = tn_widen(d[(f + angles) * step]), dx1 = d1 * t.cosine + d2 * t.sine,
          across = d2 * t.cosine - d1 * t.sine;
        if (dx) dx[f] = tn_narrow<T>(slope_of<T>(call, of, x, f, dx1));
        if (dx && call.kind == TN_ROTATE) dx[f + angles] = tn_narrow<T>(slope_of<T>(call, of, x, f + angles, across));
        if (!part) continue;
        W angle = value_of<T>(call, of, x, f) * across;
        if (call.kind == TN_ROTATE) angle -= value_of<T>(call, of, x, f + angles) * dx1;
        part[f] += (W)t.coordinate * angle;
    }
}

/* Block: a run of tokens of one head, all batches. */
template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_backward(tn_lrpe_call call, int64_t runs, const tn_wide<T> *max,
                                                                const tn_wide<T> *sum, const tn_wide<T> *dots, tn_wide<T> *parts) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    int64_t head = blockIdx.x % call.heads, run = blockIdx.x / call.heads, length = (call.grid.tokens + runs - 1) / runs;
    int64_t begin = run * length, end = begin + length < call.grid.tokens ? begin + length : call.grid.tokens;
    W *part = call.dtheta ? parts + (run * call.heads + head) * call.grid.angles : NULL;
    for (int64_t f = threadIdx.x; part && f < call.grid.angles; f += PLAIN_THREADS) part[f] = 0;
    for (int64_t token = begin; token < end; token++)
        for (int64_t b = 0; b < call.batch; b++) {
            statistics<W> of = {};
            if (call.softmax == TN_LRPE_SOFTMAX_TOKENS) point_at_columns<W>(call, &of, b, head, max, sum, dots);
            if (call.softmax == TN_LRPE_SOFTMAX_FEATURES) {
                const T *d = row_of<T>(call.d, call.do_stride, b, token, head), *x = row_of<T>(call.x, call.x_stride, b, token, head);
                row_statistics<T>(call, x, &of, scratch);
                W dot = 0;
                for (int64_t f = threadIdx.x; f < call.width; f += PLAIN_THREADS)
                    dot += value_of<T>(call, of, x, f) * turned_back<T>(call, d, token, head, f);
                of.dot = tn_block_sum(dot, scratch);
            }
            backward_row<T>(call, of, b, token, head, part);
        }
}

/* ---- dtheta from its parts: a block for each of its elements ---- */

template <typename W> __global__ void __launch_bounds__(SUM_THREADS) sum_parts(tn_lrpe_call call, int64_t n_parts, const W *parts) {
    __shared__ double scratch[TN_WARP];
    const tn_lrpe_grid &grid = call.grid;
    int64_t column = blockIdx.x % grid.theta_width, theta_head = blockIdx.x / grid.theta_width;
    int64_t heads = grid.theta_heads == 1 ? call.heads : 1, first_head = grid.theta_heads == 1 ? 0 : theta_head;
    double total = 0;
    for (int64_t i = threadIdx.x; i < n_parts * heads; i += SUM_THREADS) {
        const W *part = parts + (i / heads * call.heads + first_head + i % heads) * grid.angles;
        if (grid.theta_width == 1)
            for (int64_t f = 0; f < grid.angles && f < grid.axes * grid.span; f++) total += (double)part[f];
        else
            for (int64_t f = column; f < grid.angles && f < grid.axes * grid.span; f += grid.span) total += (double)part[f];
    }
    total = tn_block_sum(total, scratch);
    if (threadIdx.x == 0) ((W *)call.dtheta)[blockIdx.x] = (W)total;
}

/* ---- launches ---- */

unsigned column_blocks(const tn_lrpe_call *lrpe) { return tn_blocks(lrpe->batch * lrpe->heads * lrpe->width, PLAIN_THREADS); }

template <typename T> void forward(const tn_lrpe_call &lrpe, const lrpe_scratch &scratch, tn_wide<T> *workspace, cudaStream_t stream) {
    typedef tn_wide<T> W;
    W *max = lrpe.max ? (W *)lrpe.max : workspace + scratch.max, *sum = lrpe.sum ? (W *)lrpe.sum : workspace + scratch.sum;
    if (lrpe.softmax == TN_LRPE_SOFTMAX_TOKENS) plain_columns<T><<<column_blocks(&lrpe), PLAIN_THREADS, 0, stream>>>(lrpe, max, sum);
    plain_forward<T><<<tn_blocks(lrpe.batch * lrpe.grid.tokens * lrpe.heads, 1), PLAIN_THREADS, 0, stream>>>(lrpe, max, sum);
}

template <typename T> void backward(const tn_lrpe_call &lrpe, const lrpe_scratch &scratch, tn_wide<T> *workspace, cudaStream_t stream) {
    typedef tn_wide<T> W;
    const W *max = (const W *)lrpe.max, *sum = (const W *)lrpe.sum;
    W *dots = workspace + scratch.dots, *parts = workspace + scratch.parts;
    if (lrpe.softmax == TN_LRPE_SOFTMAX_TOKENS)
        plain_column_products<T><<<column_blocks(&lrpe), PLAIN_THREADS, 0, stream>>>(lrpe, max, sum, dots);
    plain_backward<T><<<(unsigned)(scratch.n_parts * lrpe.heads), PLAIN_THREADS, 0, stream>>>(lrpe, scratch.n_parts, max, sum, dots, parts);
}

} // namespace

cudaError_t lrpe_forward_plain(const tn_lrpe_call *lrpe, const lrpe_scratch &scratch, void *workspace, cudaStream_t stream) {
    TN_WITH_FLOAT(lrpe->dtype, T, (forward<T>(*lrpe, scratch, (tn_wide<T> *)workspace, stream)));
    return cudaGetLastError();
}

cudaError_t lrpe_backward_plain(const tn_lrpe_call *lrpe, const lrpe_scratch &scratch, void *workspace, cudaStream_t stream) {
    TN_WITH_FLOAT(lrpe->dtype, T, (backward<T>(*lrpe, scratch, (tn_wide<T> *)workspace, stream)));
    return cudaGetLastError();
}

cudaError_t lrpe_sum_parts(const tn_lrpe_call *lrpe, int64_t n_parts, const void *parts, cudaStream_t stream) {
    unsigned n_theta = (unsigned)(lrpe->grid.theta_heads * lrpe->grid.theta_width);
    if (n_theta == 0) return cudaSuccess;
    if (lrpe->wide == TN_F64) sum_parts<double><<<n_theta, SUM_THREADS, 0, stream>>>(*lrpe, n_parts, (const double *)parts);
    else sum_parts<float><<<n_theta, SUM_THREADS, 0, stream>>>(*lrpe, n_parts, (const float *)parts);
    return cudaGetLastError();
}
