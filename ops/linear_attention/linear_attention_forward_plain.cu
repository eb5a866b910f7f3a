/* The plain forward: every step written out (linear_attention_plain.cuh), for f64, odd widths and alignments; and the statistics of softmax
 * over the sequence, for this path and the tiled one. */
#include "linear_attention_forward_plain.h"

#include "linear_attention_plain.cuh"

namespace {

/* ---- softmax over the sequence: maximum and sum of every (slice, feature) ---- */

#define FEATURES 32
#define LANES 8      /* token lanes of a block */
#define AHEAD 4      /* tokens that a lane loads at once */
#define SHORTEST 512 /* tokens worth a block */

template <typename W> __device__ __forceinline__ W weight(W x, W most) { return x == most ? (W)1 : tn_exp_of(x - most); }

/* Joins (max, sum) of other tokens. */
template <typename W> __device__ __forceinline__ void join(W &most, W &sum, W other_most, W other_sum) {
    W above = other_most > most ? other_most : most;
    sum = sum * weight(most, above) + other_sum * weight(other_most, above);
    most = above;
}

/* to: [part][2][slices x width]; block (x: features, y: slice, z: part of the tokens). */
template <typename T>
__global__ void __launch_bounds__(FEATURES *LANES)
    statistics_of_part(tn_la_operand operand, int64_t heads, int64_t slices, tn_wide<T> *to) {
    using W = tn_wide<T>;
    __shared__ W all_most[LANES][FEATURES], all_sum[LANES][FEATURES];
    int64_t feature = (int64_t)blockIdx.x * FEATURES + threadIdx.x, length = (operand.tokens + gridDim.z - 1) / gridDim.z;
    int64_t begin = blockIdx.z * length, end = begin + length < operand.tokens ? begin + length : operand.tokens;
    bool inside = feature < operand.width;
    for (int64_t slice = blockIdx.y; slice < slices; slice += gridDim.y) {
        const T *x = (const T *)operand.x + tn_la_row(operand.stride, heads, slice, 0) + (inside ? feature : 0);
        W most = (W)-INFINITY, sum = 0;
        for (int64_t token = begin + threadIdx.y; token < end; token += LANES * AHEAD) {
            W value[AHEAD], above = most;
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                value[i] = token + i * LANES < end ? tn_widen(x[(token + i * LANES) * operand.stride.token]) : (W)-INFINITY;
#pragma unroll
            for (int i = 0; i < AHEAD; i++) above = value[i] > above ? value[i] : above;
            sum *= weight(most, above);
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                if (token + i * LANES < end) sum += weight(value[i], above);
            most = above;
        }
        all_most[threadIdx.y][threadIdx.x] = most, all_sum[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && inside) {
            for (int lane = 1; lane < LANES; lane++) join(most, sum, all_most[lane][threadIdx.x], all_sum[lane][threadIdx.x]);
            W *part = to + (int64_t)blockIdx.z * 2 * slices * operand.width + slice * operand.width + feature;
            part[0] = most, part[slices * operand.width] = sum;
        }
        __syncthreads();
    }
}

template <typename W> __global__ void join_statistics(const W *parts, int n_parts, int64_t numel, W *maximum, W *sum) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= numel) return;
    W most = parts[i], total = parts[numel + i];
    for (int part = 1; part < n_parts; part++) join(most, total, parts[(2 * part) * numel + i], parts[(2 * part + 1) * numel + i]);
    maximum[i] = most, sum[i] = total;
}

int parts_of(const tn_la_problem *problem, const tn_la_operand *operand, const tn_device *device) {
    int64_t blocks = problem->b * problem->h * ((operand->width + FEATURES - 1) / FEATURES), wanted = (int64_t)device->multiprocessors * 8;
    int64_t parts = blocks > 0 ? (wanted + blocks - 1) / blocks : 1, most = (operand->tokens + SHORTEST - 1) / SHORTEST;
    parts = parts < most ? parts : most;
    return (int)(parts < 1 ? 1 : parts > 256 ? 256 : parts);
}

} // namespace

size_t tn_la_statistics_workspace(const tn_la_problem *problem, const tn_la_operand *operand, const tn_device *device) {
    return (size_t)(2 * parts_of(problem, operand, device) * problem->b * problem->h * operand->width) * tn_dtype_size(problem->wide);
}

template <typename T>
static void statistics(const tn_la_problem *problem, const tn_la_operand *operand, const tn_device *device, void *workspace,
                       cudaStream_t stream) {
    using W = tn_wide<T>;
    int64_t slices = problem->b * problem->h, numel = slices * operand->width;
    int parts = parts_of(problem, operand, device);
    dim3 grid((unsigned)((operand->width + FEATURES - 1) / FEATURES), (unsigned)(slices < 65535 ? slices : 65535), (unsigned)parts);
    statistics_of_part<T><<<grid, dim3(FEATURES, LANES), 0, stream>>>(*operand, problem->h, slices, (W *)workspace);
    join_statistics<W>
        <<<tn_blocks(numel, 256), 256, 0, stream>>>((const W *)workspace, parts, numel, (W *)operand->maximum, (W *)operand->sum);
}

void tn_la_statistics(const tn_la_problem *problem, const tn_la_operand *operand, const tn_device *device, void *workspace,
                      cudaStream_t stream) {
    if (problem->b * problem->h == 0 || operand->tokens == 0) return;
    TN_WITH_FLOAT(problem->dtype, T, (statistics<T>(problem, operand, device, workspace, stream)));
}

/* ---- the passes ---- */

/* o = act(g) * y; a block takes a token. */
template <typename T>
static __global__ void gate(tn_la_run run, tn_la_operand g, bool has_gate, const tn_wide<T> *y, T *o, tn_la_strides o_stride,
                            int64_t tokens, int64_t e) {
    using W = tn_wide<T>;
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    int64_t local = blockIdx.y, slice = run.first + local;
    for (int64_t token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T *x = has_gate ? (const T *)g.x + tn_la_row(g.stride, run.heads, slice, token) : NULL;
        T *to = o + tn_la_row(o_stride, run.heads, slice, token);
        W maximum = 0, sum = 1;
        if (has_gate && g.act == TN_SOFTMAX) tn_la_softmax_row(x, e, &maximum, &sum, scratch);
        for (int64_t i = threadIdx.x; i < e; i += blockDim.x) {
            W value = y[(local * tokens + token) * e + i];
            if (has_gate) value *= tn_la_activated(g, tn_widen(x[i]), slice, i, maximum, sum);
            to[i] = tn_narrow<T>(value);
        }
    }
}

/* Numbers of one slice: qb, kb, vb, y. */
static int64_t numbers_of_one(const tn_la_problem *p) { return (p->n + p->m) * p->state_rows + (p->m + p->n) * p->e; }

size_t tn_la_forward_plain_workspace(const tn_la_problem *problem) {
    int64_t one = numbers_of_one(problem) * (int64_t)tn_dtype_size(problem->wide);
    return (size_t)(one * tn_la_plain_slices(problem, one));
}

template <typename T> static void forward(const tn_la_problem *p, void *workspace, cudaStream_t stream) {
    using W = tn_wide<T>;
    int64_t slices = p->b * p->h, at_once = tn_la_plain_slices(p, numbers_of_one(p) * (int64_t)sizeof(W)), size = p->state_rows * p->e;
    W *qb = (W *)workspace, *kb = qb + at_once * p->n * p->state_rows, *vb = kb + at_once * p->m * p->state_rows,
      *y = vb + at_once * p->m * p->e;
    for (int64_t first = 0; first < slices; first += at_once) {
        tn_la_run run = { first, slices - first < at_once ? slices - first : at_once, p->h };
        W *s = (W *)p->s + first * size;
        tn_la_plain_encode_run<T>(p, &p->k, 1, run, kb, stream);
        tn_la_plain_encode_run<T>(p, &p->v, 1, run, vb, stream);
        tn_la_plain_product_run<W>(run, p->state_rows, p->e, p->m, tn_la_transposed(tn_la_rows<W>(kb, p->m, p->state_rows)),
                                   tn_la_rows<W>(vb, p->m, p->e), p->state ? (const W *)p->state + first * size : NULL, s, stream);
        if (p->n == 0) continue;
        tn_la_plain_encode_run<T>(p, &p->q, p->scale, run, qb, stream);
        tn_la_plain_product_run<W>(run, p->n, p->e, p->state_rows, tn_la_rows<W>(qb, p->n, p->state_rows),
                                   tn_la_rows<W>(s, p->state_rows, p->e), NULL, y, stream);
        gate<T><<<tn_la_plain_grid(run, p->n), TN_LA_PLAIN_THREADS, 0, stream>>>(run, p->g, p->has_gate, y, (T *)p->o, p->o_stride, p->n,
                                                                                 p->e);
    }
}

void tn_la_forward_plain(const tn_la_problem *problem, void *workspace, cudaStream_t stream) {
    TN_WITH_FLOAT(problem->dtype, T, (forward<T>(problem, workspace, stream)));
}
