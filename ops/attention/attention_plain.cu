/* Attention in readable steps, for any dtype, width and alignment: q, k, v, the scores and their gradients are written out in the wide
 * dtype,
 * [slice][token][..], for a run of slices at a time; a slice is one (batch, head of q). */
#include "../../libtensor/cuda_common.cuh"
#include "attention_plain.h"

namespace {

constexpr int THREADS = 128;
constexpr int64_t ROOM = (int64_t)256 << 20; /* bytes that a run of slices may take, unless one alone needs more */

struct run_of {
    int64_t first, count; /* slices first .. first + count - 1 */
};

int64_t slice_elements(const tn_at_problem *p, bool backward) {
    int64_t forward = p->n * p->d + p->m * (p->d + p->e) + p->n * p->e + p->n * p->m + p->n;
    return backward ? 2 * forward : forward;
}

/* What is summed over heads: [b, tokens, ranks or heads of k, width]. */
int64_t sum_elements(const tn_at_problem *p, const tn_at_operand *x) {
    return p->b * x->tokens * (x->rank ? x->rank : x->heads) * x->width;
}

int64_t slices_of_run(const tn_at_problem *p, bool backward) {
    int64_t all = p->b * p->h, one = slice_elements(p, backward) * (int64_t)tn_dtype_size(p->wide), fit = ROOM / (one > 0 ? one : 1);
    fit = fit > 32768 ? 32768 : fit < 1 ? 1 : fit;
    return fit < all ? fit : all;
}

dim3 grid_of(const run_of &run, int64_t blocks_of_one) {
    const int64_t most = 0x7fffffff;
    return dim3((unsigned)(blocks_of_one < 1 ? 1 : blocks_of_one > most ? most : blocks_of_one), (unsigned)run.count);
}

/* Tokens of a batch that an operand has: keys and values end with the batch's length, what lies behind it may be anything. */
__device__ __forceinline__ int64_t tokens_there(const tn_at_problem &p, int64_t batch, bool keys) {
    if (!keys) return p.n;
    return p.seqlens ? tn_at_within(p.seqlens[batch], 0, p.m) : p.m;
}

/* to[slice][token] = q, k or v of the slice; a block takes a token. */
template <typename T> __global__ void make(run_of run, tn_at_problem p, tn_at_operand x, bool keys, tn_wide<T> *to) {
    using W = tn_wide<T>;
    int64_t slice = run.first + blockIdx.y, batch = slice / p.h, head = slice % p.h / (p.h / x.heads), there = tokens_there(p, batch, keys);
    const T *from = (const T *)x.x, *a = (const T *)x.a;
    for (int64_t token = blockIdx.x; token < x.tokens; token += gridDim.x) {
        int64_t at = batch * x.tokens + token;
        W *row = to + (blockIdx.y * x.tokens + token) * x.width;
        for (int64_t j = threadIdx.x; j < x.width; j += blockDim.x) {
            W sum = 0;
            if (token < there && !x.rank) sum = tn_widen(from[(at * x.heads + head) * x.width + j]);
            for (int64_t r = 0; token < there && r < x.rank; r++)
                sum += tn_widen(a[(at * x.heads + head) * x.rank + r]) * tn_widen(from[(at * x.rank + r) * x.width + j]);
            row[j] = (W)x.factor * sum;
        }
    }
}

/* ---- products ---- */

/* A matrix per slice: element (i, j) of slice z is at[z * slice + i * row + j * column]. */
template <typename W> struct matrix {
    const W *at;
    int64_t slice, row, column;
};
template <typename W> matrix<W> rows_of(const W *at, int64_t rows, int64_t columns) { return { at, rows * columns, columns, 1 }; }
template <typename W> matrix<W> transposed(matrix<W> m) { return { m.at, m.slice, m.column, m.row }; }

constexpr int TILE = 64, DEPTH = 16;

/* to [rows x columns] of each slice = a [rows x depth] b [depth x columns]. 16 x 16 threads make a tile of 64 x 64, 4 x 4 each, from
 * slabs 16
 * deep in shared memory. */
template <typename W>
__global__ void __launch_bounds__(256) product(int64_t rows, int64_t columns, int64_t depth, matrix<W> a, matrix<W> b, W *to) {
    __shared__ W left[DEPTH][TILE + 1], right[DEPTH][TILE + 1];
    int64_t across = (columns + TILE - 1) / TILE, tiles = across * ((rows + TILE - 1) / TILE), slice = blockIdx.y;
    int y = threadIdx.x / 16, x = threadIdx.x % 16;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t row0 = tile / across * TILE, column0 = tile % across * TILE;
        W sum[4][4] = {};
        for (int64_t k0 = 0; k0 < depth; k0 += DEPTH) {
            for (int at = threadIdx.x; at < DEPTH * TILE; at += 256) {
                /* Neighbouring threads along whichever axis is dense. */
                int k = a.column == 1 ? at % DEPTH : at / TILE, i = a.column == 1 ? at / DEPTH : at % TILE;
                left[k][i] = k0 + k < depth && row0 + i < rows ? a.at[slice * a.slice + (row0 + i) * a.row + (k0 + k) * a.column] : (W)0;
                k = b.row == 1 ? at % DEPTH : at / TILE, i = b.row == 1 ? at / DEPTH : at % TILE;
                right[k][i] =
                    k0 + k < depth && column0 + i < columns ? b.at[slice * b.slice + (k0 + k) * b.row + (column0 + i) * b.column] : (W)0;
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < DEPTH; k++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[i][j] += left[k][y + 16 * i] * right[k][x + 16 * j];
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int64_t row = row0 + y + 16 * i, column = column0 + x + 16 * j;
                if (row < rows && column < columns) to[(slice * rows + row) * columns + column] = sum[i][j];
            }
    }
}

template <typename W>
void multiply(const run_of &run, int64_t rows, int64_t columns, int64_t depth, matrix<W> a, matrix<W> b, W *to, cudaStream_t stream) {
    int64_t tiles = ((rows + TILE - 1) / TILE) * ((columns + TILE - 1) / TILE);
    if (tiles > 0) product<W><<<grid_of(run, tiles), 256, 0, stream>>>(rows, columns, depth, a, b, to);
}

/* ---- softmax ---- */

/* Keys [begin, end) that query t of a batch sees. */
__device__ __forceinline__ void keys_seen(const tn_at_problem &p, int64_t batch, int64_t t, int64_t *begin, int64_t *end) {
    *begin = *end = 0;
    if (p.cu_seqlens && p.sequences < 1) return;
    tn_at_span span = tn_at_span_of(&p, p.cu_seqlens ? tn_at_sequence_of(&p, t) : batch);
    if (t < span.q_begin || t >= span.q_end) return;
    *begin = span.k_begin;
    *end = tn_at_seen(&p, &span, t);
}

/* s := softmax over the keys seen, 0 elsewhere; a block takes a query. */
template <typename W> __global__ void soften(run_of run, tn_at_problem p, W *s) {
    __shared__ W scratch[THREADS / TN_WARP];
    int64_t slice = run.first + blockIdx.y, batch = slice / p.h, begin, end;
    for (int64_t t = blockIdx.x; t < p.n; t += gridDim.x) {
        W *row = s + (blockIdx.y * p.n + t) * p.m, most = (W)-INFINITY, sum = 0;
        keys_seen(p, batch, t, &begin, &end);
        for (int64_t j = begin + threadIdx.x; j < end; j += THREADS) most = max(most, row[j]);
        most = tn_block_max(most, (W)-INFINITY, scratch);
        for (int64_t j = begin + threadIdx.x; j < end; j += THREADS) sum += exp(row[j] - most);
        sum = tn_block_sum(sum, scratch);
        for (int64_t j = threadIdx.x; j < p.m; j += THREADS) row[j] = j >= begin && j < end ? exp(row[j] - most) / sum : (W)0;
        if (p.lse && threadIdx.x == 0) ((W *)p.lse)[slice * p.n + t] = begin < end ? most + log(sum) : (W)-INFINITY;
    }
}

/* s := exp(s - lse) where seen, 0 elsewhere. */
template <typename W> __global__ void weigh(run_of run, tn_at_problem p, W *s) {
    int64_t slice = run.first + blockIdx.y, begin, end;
    for (int64_t t = blockIdx.x; t < p.n; t += gridDim.x) {
        W *row = s + (blockIdx.y * p.n + t) * p.m, whole = ((const W *)p.lse)[slice * p.n + t];
        keys_seen(p, slice / p.h, t, &begin, &end);
        for (int64_t j = threadIdx.x; j < p.m; j += THREADS) row[j] = j >= begin && j < end ? exp(row[j] - whole) : (W)0;
    }
}

/* dp := s (dp - <do, o>): the gradient of the scores. */
template <typename T> __global__ void slope(run_of run, tn_at_problem p, const tn_wide<T> *s, tn_wide<T> *dp) {
    using W = tn_wide<T>;
    __shared__ W scratch[THREADS / TN_WARP];
    int64_t slice = run.first + blockIdx.y;
    for (int64_t t = blockIdx.x; t < p.n; t += gridDim.x) {
        int64_t row = blockIdx.y * p.n + t, at = ((slice / p.h * p.n + t) * p.h + slice % p.h) * p.e;
        const T *o = (const T *)p.o + at, *d_o = (const T *)p.d_o + at;
        W sum = 0;
        for (int64_t j = threadIdx.x; j < p.e; j += THREADS) sum += tn_widen(o[j]) * tn_widen(d_o[j]);
        sum = tn_block_sum(sum, scratch);
        for (int64_t j = threadIdx.x; j < p.m; j += THREADS) dp[row * p.m + j] = s[row * p.m + j] * (dp[row * p.m + j] - sum);
    }
}

/* o [b,n,h,e] from [slice][n][e]. */
template <typename T> __global__ void write_out(run_of run, tn_at_problem p, const tn_wide<T> *from) {
    int64_t slice = run.first + blockIdx.y;
    for (int64_t t = blockIdx.x; t < p.n; t += gridDim.x) {
        T *to = (T *)p.o + ((slice / p.h * p.n + t) * p.h + slice % p.h) * p.e;
        for (int64_t j = threadIdx.x; j < p.e; j += THREADS) to[j] = tn_narrow<T>(from[(blockIdx.y * p.n + t) * p.e + j]);
    }
}

/* ---- gradients of what q, k and v are made from ---- */

/* da of a slice, from d, the gradient of what was made; a warp takes a (token, r). */
template <typename T> __global__ void back_to_a(run_of run, tn_at_problem p, tn_at_operand x, const tn_wide<T> *d) {
    using W = tn_wide<T>;
    int64_t slice = run.first + blockIdx.y, batch = slice / p.h, head = slice % p.h;
    int lane = threadIdx.x % TN_WARP, warps = blockDim.x / TN_WARP;
    for (int64_t i = blockIdx.x * (int64_t)warps + threadIdx.x / TN_WARP; i < x.tokens * x.rank; i += (int64_t)gridDim.x * warps) {
        int64_t token = i / x.rank, r = i % x.rank, at = batch * x.tokens + token;
        const T *other = (const T *)x.x + (at * x.rank + r) * x.width;
        const W *row = d + (blockIdx.y * x.tokens + token) * x.width;
        W sum = 0;
        for (int64_t j = lane; j < x.width; j += TN_WARP) sum += row[j] == 0 ? (W)0 : row[j] * tn_widen(other[j]);
        sum = tn_warp_sum(sum);
        if (lane == 0) ((T *)x.da)[(at * x.heads + head) * x.rank + r] = tn_narrow<T>((W)x.factor * sum);
    }
}

/* sums[batch][token][c][j] += what the run's slices have for it, head by head: c is a rank of a factor, which all heads share, or a head
 * of k,
 * which p.h / x.heads of them do. */
template <typename T> __global__ void add_heads(run_of run, tn_at_problem p, tn_at_operand x, const tn_wide<T> *d, tn_wide<T> *sums) {
    using W = tn_wide<T>;
    int64_t columns = x.rank ? x.rank : x.heads, group = p.h / x.heads, first_batch = run.first / p.h;
    int64_t batches = (run.first + run.count - 1) / p.h - first_batch + 1, all = batches * x.tokens * columns * x.width;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < all; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t j = i % x.width, c = i / x.width % columns, token = i / x.width / columns % x.tokens;
        int64_t batch = first_batch + i / x.width / columns / x.tokens, begin = batch * p.h, end = begin + p.h;
        if (!x.rank) begin += c * group, end = begin + group;
        if (begin < run.first) begin = run.first;
        if (end > run.first + run.count) end = run.first + run.count;
        W *to = sums + ((batch * x.tokens + token) * columns + c) * x.width + j, sum = *to;
        for (int64_t slice = begin; slice < end; slice++) {
            W value = d[((slice - run.first) * x.tokens + token) * x.width + j];
            if (x.rank && value != 0)
                value *= tn_widen(((const T *)x.a)[((batch * x.tokens + token) * x.heads + slice % p.h) * x.rank + c]);
            sum += value;
        }
        *to = sum;
    }
}

template <typename T> __global__ void write_sums(int64_t n, double factor, const tn_wide<T> *sums, T *to) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
        to[i] = tn_narrow<T>((tn_wide<T>)factor * sums[i]);
}

template <typename T>
void give_back(const tn_at_problem *p, const run_of &run, const tn_at_operand *x, const tn_wide<T> *d, tn_wide<T> *sums,
               cudaStream_t stream) {
    if (x->tokens == 0) return;
    if (x->da) back_to_a<T><<<grid_of(run, (x->tokens * x->rank + 3) / 4), THREADS, 0, stream>>>(run, *p, *x, d);
    if (x->dx) {
        int64_t batches = run.count / p->h + 2, all = batches * x->tokens * (x->rank ? x->rank : x->heads) * x->width;
        add_heads<T><<<tn_blocks(all, THREADS), THREADS, 0, stream>>>(run, *p, *x, d, sums);
    }
}

/* ---- the passes ---- */

template <typename W> W *take(W **at, int64_t elements) {
    W *place = *at;
    *at += elements;
    return place;
}

template <typename T> struct room {
    using W = tn_wide<T>;
    W *q, *k, *v, *y, *s; /* y: o, or do */
    W *dq, *dk, *dv, *dp;
    W *sum_q, *sum_k, *sum_v;
};

template <typename T> room<T> room_in(const tn_at_problem *p, void *workspace, bool backward) {
    using W = tn_wide<T>;
    int64_t slices = slices_of_run(p, backward);
    W *at = (W *)workspace;
    room<T> r = {};
    r.q = take(&at, slices * p->n * p->d), r.k = take(&at, slices * p->m * p->d), r.v = take(&at, slices * p->m * p->e);
    r.y = take(&at, slices * p->n * p->e), r.s = take(&at, slices * p->n * p->m);
    if (!backward) return r;
    r.dq = take(&at, slices * p->n * p->d), r.dk = take(&at, slices * p->m * p->d), r.dv = take(&at, slices * p->m * p->e);
    r.dp = take(&at, slices * p->n * p->m);
    if (p->q.dx) r.sum_q = take(&at, sum_elements(p, &p->q));
    if (p->k.dx) r.sum_k = take(&at, sum_elements(p, &p->k));
    if (p->v.dx) r.sum_v = take(&at, sum_elements(p, &p->v));
    return r;
}

template <typename T>
void make_run(const tn_at_problem *p, const run_of &run, const tn_at_operand &x, bool keys, tn_wide<T> *to, cudaStream_t stream) {
    if (x.tokens > 0) make<T><<<grid_of(run, x.tokens), THREADS, 0, stream>>>(run, *p, x, keys, to);
}

template <typename T> void forward(const tn_at_problem *p, void *workspace, cudaStream_t stream) {
    using W = tn_wide<T>;
    room<T> r = room_in<T>(p, workspace, false);
    int64_t slices = p->b * p->h, at_once = slices_of_run(p, false), n = p->n, m = p->m, d = p->d, e = p->e;
    for (int64_t first = 0; n > 0 && first < slices; first += at_once) {
        run_of run = { first, at_once < slices - first ? at_once : slices - first };
        make_run<T>(p, run, p->q, false, r.q, stream);
        make_run<T>(p, run, p->k, true, r.k, stream);
        make_run<T>(p, run, p->v, true, r.v, stream);
        multiply<W>(run, n, m, d, rows_of(r.q, n, d), transposed(rows_of(r.k, m, d)), r.s, stream);
        soften<W><<<grid_of(run, n), THREADS, 0, stream>>>(run, *p, r.s);
        multiply<W>(run, n, e, m, rows_of(r.s, n, m), rows_of(r.v, m, e), r.y, stream);
        write_out<T><<<grid_of(run, n), THREADS, 0, stream>>>(run, *p, r.y);
    }
}

template <typename T> void backward_run(const tn_at_problem *p, const room<T> &r, const run_of &run, cudaStream_t stream) {
    using W = tn_wide<T>;
    int64_t n = p->n, m = p->m, d = p->d, e = p->e;
    if (n > 0) {
        tn_at_operand upstream = {};
        upstream.x = p->d_o, upstream.tokens = n, upstream.heads = p->h, upstream.width = e, upstream.factor = 1;
        make_run<T>(p, run, p->q, false, r.q, stream);
        make_run<T>(p, run, p->k, true, r.k, stream);
        make_run<T>(p, run, p->v, true, r.v, stream);
        make_run<T>(p, run, upstream, false, r.y, stream);
        multiply<W>(run, n, m, d, rows_of(r.q, n, d), transposed(rows_of(r.k, m, d)), r.s, stream);
        weigh<W><<<grid_of(run, n), THREADS, 0, stream>>>(run, *p, r.s);
        multiply<W>(run, n, m, e, rows_of(r.y, n, e), transposed(rows_of(r.v, m, e)), r.dp, stream);
        slope<T><<<grid_of(run, n), THREADS, 0, stream>>>(run, *p, r.s, r.dp);
    }
    multiply<W>(run, n, d, m, rows_of(r.dp, n, m), rows_of(r.k, m, d), r.dq, stream);
    multiply<W>(run, m, d, n, transposed(rows_of(r.dp, n, m)), rows_of(r.q, n, d), r.dk, stream);
    multiply<W>(run, m, e, n, transposed(rows_of(r.s, n, m)), rows_of(r.y, n, e), r.dv, stream);
    give_back<T>(p, run, &p->q, r.dq, r.sum_q, stream);
    give_back<T>(p, run, &p->k, r.dk, r.sum_k, stream);
    give_back<T>(p, run, &p->v, r.dv, r.sum_v, stream);
}

template <typename T> void backward(const tn_at_problem *p, void *workspace, cudaStream_t stream) {
    using W = tn_wide<T>;
    room<T> r = room_in<T>(p, workspace, true);
    int64_t slices = p->b * p->h, at_once = slices_of_run(p, true);
    const tn_at_operand *operands[] = { &p->q, &p->k, &p->v };
    W *sums[] = { r.sum_q, r.sum_k, r.sum_v };
    for (int i = 0; i < 3; i++)
        if (operands[i]->dx && sum_elements(p, operands[i]) > 0)
            cudaMemsetAsync(sums[i], 0, (size_t)sum_elements(p, operands[i]) * sizeof(W), stream);
    for (int64_t first = 0; first < slices; first += at_once)
        backward_run<T>(p, r, { first, at_once < slices - first ? at_once : slices - first }, stream);
    for (int i = 0; i < 3; i++) {
        int64_t all = sum_elements(p, operands[i]);
        if (operands[i]->dx && all > 0)
            write_sums<T><<<tn_blocks(all, THREADS), THREADS, 0, stream>>>(all, operands[i]->factor, sums[i], (T *)operands[i]->dx);
    }
}

} // namespace

size_t tn_at_plain_workspace(const tn_at_problem *p, bool backward) {
    int64_t elements = slices_of_run(p, backward) * slice_elements(p, backward);
    const tn_at_operand *operands[] = { &p->q, &p->k, &p->v };
    for (int i = 0; backward && i < 3; i++)
        if (operands[i]->dx) elements += sum_elements(p, operands[i]);
    return (size_t)elements * tn_dtype_size(p->wide);
}

int tn_at_plain_forward(const tn_at_problem *problem, void *workspace, void *stream) {
    TN_WITH_FLOAT(problem->dtype, T, forward<T>(problem, workspace, (cudaStream_t)stream));
    return (int)cudaGetLastError();
}

int tn_at_plain_backward(const tn_at_problem *problem, void *workspace, void *stream) {
    TN_WITH_FLOAT(problem->dtype, T, backward<T>(problem, workspace, (cudaStream_t)stream));
    return (int)cudaGetLastError();
}
