/* The steps back from gradients of what was activated and encoded, written out as in linear_attention_plain.cuh, to those of the inputs. */
#ifndef TENON_LINEAR_ATTENTION_PLAIN_BACK_CUH
#define TENON_LINEAR_ATTENTION_PLAIN_BACK_CUH

#include "linear_attention_plain.cuh"

/* dg = act'(do * y), then y becomes do * gb. */
template <typename T>
__global__ void tn_la_plain_gate_back(tn_la_run run, tn_la_operand g, bool has_gate, int64_t n, int64_t e, tn_la_strides o_stride,
                                      const T *d_o, T *dg, tn_wide<T> *y) {
    using W = tn_wide<T>;
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    int64_t slice = run.first + blockIdx.y;
    for (int64_t token = blockIdx.x; token < n; token += gridDim.x) {
        const T *from = d_o + tn_la_row(o_stride, run.heads, slice, token);
        W *row = y + (blockIdx.y * n + token) * e;
        if (!has_gate) {
            for (int64_t j = threadIdx.x; j < e; j += blockDim.x) row[j] = tn_widen(from[j]);
            continue;
        }
        int64_t at = tn_la_row(g.stride, run.heads, slice, token);
        const T *x = (const T *)g.x + at;
        W maximum = 0, sum = 1, both = 0;
        bool softmax = g.act == TN_SOFTMAX;
        if (softmax) {
            tn_la_softmax_row(x, e, &maximum, &sum, scratch);
            for (int64_t j = threadIdx.x; j < e; j += blockDim.x)
                both += tn_exp_of(tn_widen(x[j]) - maximum) / sum * tn_widen(from[j]) * row[j];
            both = tn_block_sum(both, scratch);
        }
        for (int64_t j = threadIdx.x; j < e; j += blockDim.x) {
            W raw = tn_widen(x[j]), gb = tn_la_activated(g, raw, slice, j, maximum, sum), d = tn_widen(from[j]);
            if (dg) dg[at + j] = tn_narrow<T>(softmax ? gb * (d * row[j] - both) : d * row[j] * tn_la_act_slope(g.act, raw));
            row[j] = d * gb;
        }
    }
}

/* The part of theta's gradient that one slice's q or k gives to one column: the sum of coordinate * dA over its tokens and features, with
 * dA = x1 dx2 - x2 dx1, x1 and x2 the two halves of the encoded row. */
template <typename W>
__global__ void tn_la_plain_theta_part(tn_la_run run, tn_la_starts starts, tn_lrpe_grid grid, int64_t tokens, int64_t width, const W *x,
                                       const W *dx, W *part) {
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    int64_t half = width / 2;
    for (int64_t column = blockIdx.x; column < grid.theta_width; column += gridDim.x) {
        W sum = 0;
        for (int64_t token = threadIdx.x; token < tokens; token += blockDim.x) {
            int64_t row = (blockIdx.y * tokens + token) * width, position = tn_la_position(starts, token);
            for (int64_t i = column; i < grid.angles; i += grid.theta_width) {
                int axis = tn_lrpe_axis(&grid, i);
                if (axis < 0) break;
                W turned = x[row + i] * dx[row + half + i] - x[row + half + i] * dx[row + i];
                sum += (W)tn_lrpe_coordinate(&grid, position, axis) * turned;
            }
        }
        sum = tn_block_sum(sum, scratch);
        if (threadIdx.x == 0) part[(run.first + blockIdx.y) * grid.theta_width + column] = sum;
    }
}

/* dtheta[head][column] = the sum of the parts of q and of k over its slices, in order. */
template <typename W> __global__ void tn_la_plain_theta_sum(int64_t slices, int64_t heads, tn_lrpe_grid grid, const W *part, W *dtheta) {
    int64_t n = grid.theta_heads * grid.theta_width;
    for (int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; at < n; at += (int64_t)gridDim.x * blockDim.x) {
        int64_t head = at / grid.theta_width, column = at % grid.theta_width, step = grid.theta_heads == 1 ? 1 : heads;
        W sum = 0;
        for (int64_t slice = head; slice < slices; slice += step)
            sum += part[slice * grid.theta_width + column] + part[(slices + slice) * grid.theta_width + column];
        dtheta[at] = sum;
    }
}

/* dx of encoded features becomes, in the first d columns of its rows, the gradient of the activated x: scaled and turned back. */
template <typename W>
__global__ void tn_la_plain_turn_back(tn_la_run run, tn_la_starts starts, tn_la_operand operand, bool cosine, const W *theta, W scale,
                                      int64_t width, W *dx) {
    int64_t slice = run.first + blockIdx.y, half = operand.encoded ? width / 2 : width, n = operand.tokens * half;
    for (int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; at < n; at += (int64_t)gridDim.x * blockDim.x) {
        int64_t token = at / half, i = at % half;
        W *row = dx + (blockIdx.y * operand.tokens + token) * width, first = scale * row[i], c, s;
        if (!operand.encoded) {
            row[i] = first;
            continue;
        }
        W second = scale * row[half + i];
        tn_la_turn(operand.grid, theta, slice % run.heads, tn_la_position(starts, token), i, &c, &s);
        row[i] = first * c + second * s;
        if (!cosine) row[half + i] = second * c - first * s;
    }
}

/* The gradient of x from that of act(x), d, whose rows are `width` long. */
template <typename T>
__global__ void tn_la_plain_act_back(tn_la_run run, tn_la_operand operand, const tn_wide<T> *d, int64_t width, T *dx) {
    using W = tn_wide<T>;
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    int64_t slice = run.first + blockIdx.y;
    for (int64_t token = blockIdx.x; token < operand.tokens; token += gridDim.x) {
        int64_t at = tn_la_row(operand.stride, run.heads, slice, token);
        const T *x = (const T *)operand.x + at;
        const W *row = d + (blockIdx.y * operand.tokens + token) * width;
        W maximum = 0, sum = 1, both = 0;
        bool softmax = operand.act == TN_SOFTMAX;
        if (softmax) {
            tn_la_softmax_row(x, operand.width, &maximum, &sum, scratch);
            for (int64_t i = threadIdx.x; i < operand.width; i += blockDim.x) both += tn_exp_of(tn_widen(x[i]) - maximum) / sum * row[i];
            both = tn_block_sum(both, scratch);
        }
        for (int64_t i = threadIdx.x; i < operand.width; i += blockDim.x) {
            W raw = tn_widen(x[i]);
            W value = softmax ? tn_la_activated(operand, raw, slice, i, maximum, sum) * (row[i] - both)
                              : row[i] * tn_la_act_slope(operand.act, raw);
            dx[at + i] = tn_narrow<T>(value);
        }
    }
}

/* The same where act is softmax over the sequence; a block takes a feature. */
template <typename T>
__global__ void tn_la_plain_act_back_over_sequence(tn_la_run run, tn_la_operand operand, const tn_wide<T> *d, int64_t width, T *dx) {
    using W = tn_wide<T>;
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    int64_t slice = run.first + blockIdx.y;
    const W *rows = d + blockIdx.y * operand.tokens * width;
    for (int64_t i = blockIdx.x; i < operand.width; i += gridDim.x) {
        W both = 0;
        for (int64_t token = threadIdx.x; token < operand.tokens; token += blockDim.x) {
            W raw = tn_widen(((const T *)operand.x)[tn_la_row(operand.stride, run.heads, slice, token) + i]);
            both += tn_la_activated(operand, raw, slice, i, (W)0, (W)1) * rows[token * width + i];
        }
        both = tn_block_sum(both, scratch);
        for (int64_t token = threadIdx.x; token < operand.tokens; token += blockDim.x) {
            int64_t at = tn_la_row(operand.stride, run.heads, slice, token) + i;
            W p = tn_la_activated(operand, tn_widen(((const T *)operand.x)[at]), slice, i, (W)0, (W)1);
            dx[at] = tn_narrow<T>(p * (rows[token * width + i] - both));
        }
    }
}

/* From the encoded rows x and their gradient dx to the gradient of q or k, and theta's part of it. */
template <typename T>
static inline void tn_la_plain_decode(const tn_la_problem *p, const tn_la_run &run, const tn_la_operand *operand, double scale,
                                      const tn_wide<T> *x, tn_wide<T> *dx, tn_wide<T> *theta_parts, void *gradient, cudaStream_t stream) {
    using W = tn_wide<T>;
    int64_t width = p->state_rows, tokens = operand->tokens;
    const int threads = TN_LA_PLAIN_THREADS;
    if (theta_parts)
        tn_la_plain_theta_part<W><<<tn_la_plain_grid(run, operand->grid.theta_width), threads, 0, stream>>>(
            run, tn_la_starts_of(p), operand->grid, tokens, width, x, dx, theta_parts);
    if (!gradient || tokens == 0) return;
    tn_la_plain_turn_back<W><<<tn_la_plain_grid(run, (tokens * width + threads - 1) / threads), threads, 0, stream>>>(
        run, tn_la_starts_of(p), *operand, p->kind == TN_COSINE, (const W *)p->theta, (W)scale, width, dx);
    if (operand->act == TN_SOFTMAX && operand->over_sequence)
        tn_la_plain_act_back_over_sequence<T>
            <<<tn_la_plain_grid(run, operand->width), threads, 0, stream>>>(run, *operand, dx, width, (T *)gradient);
    else tn_la_plain_act_back<T><<<tn_la_plain_grid(run, tokens), threads, 0, stream>>>(run, *operand, dx, width, (T *)gradient);
}

#endif
