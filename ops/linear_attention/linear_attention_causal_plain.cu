/* Causal linear attention, readable: for f64, odd widths, any alignment, and where the plain path is asked for.
 *
 * Everything goes token by token, and all four products with the state are the same walk: a matrix X grows by an outer product at each
 * token and is read before it does, so that what a token has from itself comes extra (see add_own).
 *     y   forward    X = decay X, y_t  = X q_t,  X += v_t k_t'       + (q_t k_t) v_t
 *     dq  forward    X = decay X, dq_t = X dy_t, X += k_t v_t'       + (dy_t v_t) k_t
 *     dk  backward                dk_t = X v_t,  X += q_t dy_t', X = decay X   + (dy_t v_t) q_t
 *     dv  backward                dv_t = X k_t,  X += dy_t q_t', X = decay X   + (q_t k_t) dy_t
 * X starts from the state, or dstate_out, and ends as state_out, or dstate. */
#include "linear_attention_causal_plain.h"

#include "linear_attention_plain_back.cuh"

namespace {

/* Tokens [begin, end) of a slice's sequence; packed sequences are kept within the tokens there are, whatever cu_seqlens says. */
struct sequences {
    tn_la_starts starts;
    int64_t per_slice;
};

__device__ __forceinline__ void bounds(const sequences &all, int64_t sequence, int64_t *begin, int64_t *end) {
    *begin = 0;
    *end = all.starts.tokens;
    if (!all.starts.cu) return;
    *begin = tn_la_start(all.starts, sequence);
    *end = tn_la_start(all.starts, sequence + 1);
    if (*end < *begin) *end = *begin;
}

sequences sequences_of(const tn_la_problem *p) { return { tn_la_starts_of(p), p->cu_seqlens ? p->sequences : 1 }; }

template <typename W> struct decays {
    tn_la_decay kind;
    const W *log;
    int64_t n, heads;

    __device__ __forceinline__ W at(int64_t slice, int64_t token) const {
        if (kind == TN_LA_NO_DECAY) return (W)1;
        int64_t head = slice % heads, from = kind == TN_LA_CONSTANT_DECAY ? head : (slice / heads * n + token) * heads + head;
        return tn_exp_of(log[from]);
    }
};

template <typename W> decays<W> decays_of(const tn_la_problem *p) { return { p->decay, (const W *)p->log_decay, p->n, p->h }; }

/* One of the walks above. A thread owns a row of X, X [owned][across], whose place in `room` is column by column, so that neighbouring
 * threads read neighbouring numbers. */
template <typename W> struct walk {
    bool back;
    int64_t owned, across;
    const W *grow, *by, *read; /* [slice of the run][token][owned, across, across] */
    W *out;                    /* [slice of the run][token][owned] */
    W *room;                   /* [slice of the run][across][owned] */
    const W *begin;            /* states [item][d'][e]; NULL: zeros */
    W *end;                    /* NULL: not wanted */
    bool owns_rows;            /* a row of X is a row of the state; otherwise a column */

    __device__ __forceinline__ int64_t in_state(int64_t item, int64_t own, int64_t i) const {
        return item * owned * across + (owns_rows ? own * across + i : i * owned + own);
    }
};

template <typename W> __global__ void run_walk(tn_la_run run, sequences all, decays<W> decay, walk<W> w) {
    int64_t own = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, slice = run.first + blockIdx.y, n = all.starts.tokens;
    if (own >= w.owned) return;
    W *x = w.room + blockIdx.y * w.owned * w.across + own;
    for (int64_t sequence = 0; sequence < all.per_slice; sequence++) {
        int64_t begin, end, item = all.starts.cu ? sequence * run.heads + slice : slice;
        bounds(all, sequence, &begin, &end);
        for (int64_t i = 0; i < w.across; i++) x[i * w.owned] = w.begin ? w.begin[w.in_state(item, own, i)] : (W)0;
        for (int64_t step = 0; step < end - begin; step++) {
            int64_t token = w.back ? end - 1 - step : begin + step, at = blockIdx.y * n + token;
            W factor = decay.at(slice, token), mine = w.grow[at * w.owned + own], sum = 0;
            const W *by = w.by + at * w.across, *read = w.read + at * w.across;
            for (int64_t i = 0; i < w.across; i++) {
                W before = w.back ? x[i * w.owned] : factor * x[i * w.owned];
                sum += before * read[i];
                W after = before + mine * by[i];
                x[i * w.owned] = w.back ? factor * after : after;
            }
            w.out[at * w.owned + own] = sum;
        }
        for (int64_t i = 0; w.end && i < w.across; i++) w.end[w.in_state(item, own, i)] = x[i * w.owned];
    }
}

/* The same in f32 with X in registers: a thread has 4 rows and, of every 32 columns, 4; eight neighbours have whole rows. What tokens bring
 * is in shared memory, TOGETHER tokens at a time, the next ones under way. Widths are multiples of 4, `across` at most 8 Columns. */
constexpr int TOGETHER = 8, QUICK_ROWS = 64;

template <int Columns> struct batch_of_tokens {
    float by[TOGETHER][8 * Columns], read[TOGETHER][8 * Columns], grow[TOGETHER][QUICK_ROWS], factor[TOGETHER];
};

__device__ __forceinline__ void fetch_four(float *to, const float *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

template <int Columns>
__global__ void __launch_bounds__(TN_LA_PLAIN_THREADS) run_walk_quick(tn_la_run run, sequences all, decays<float> decay, walk<float> w) {
    __shared__ __align__(16) batch_of_tokens<Columns> batches[2];
    const int lane = threadIdx.x % 8, group = threadIdx.x / 8;
    const int64_t row0 = blockIdx.x * (int64_t)QUICK_ROWS, slice = run.first + blockIdx.y, n = all.starts.tokens;
    for (int64_t sequence = 0; sequence < all.per_slice; sequence++) {
        int64_t begin, end, item = all.starts.cu ? sequence * run.heads + slice : slice;
        bounds(all, sequence, &begin, &end);
        float x[4][Columns];
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < Columns; c++) {
                int64_t own = row0 + group * 4 + r, i = c / 4 * 32 + lane * 4 + c % 4;
                x[r][c] = w.begin && own < w.owned && i < w.across ? w.begin[w.in_state(item, own, i)] : 0.0f;
            }

        auto token_of = [&](int64_t step) { return w.back ? end - 1 - step : begin + step; };
        auto fetch = [&](int64_t first) {
            batch_of_tokens<Columns> &to = batches[first / TOGETHER & 1];
            for (int at = threadIdx.x; at < TOGETHER * 2 * Columns; at += TN_LA_PLAIN_THREADS) {
                int step = at / (2 * Columns), i = at % (2 * Columns) * 4;
                bool there = first + step < end - begin && i < w.across;
                int64_t from = there ? (blockIdx.y * n + token_of(first + step)) * w.across + i : 0;
                fetch_four(&to.by[step][i], w.by + from, there);
                fetch_four(&to.read[step][i], w.read + from, there);
            }
            int step = threadIdx.x / (QUICK_ROWS / 4), i = threadIdx.x % (QUICK_ROWS / 4) * 4;
            bool there = first + step < end - begin && row0 + i < w.owned;
            fetch_four(&to.grow[step][i], w.grow + (there ? (blockIdx.y * n + token_of(first + step)) * w.owned + row0 + i : 0), there);
            if (threadIdx.x < TOGETHER && first + threadIdx.x < end - begin)
                to.factor[threadIdx.x] = decay.at(slice, token_of(first + threadIdx.x));
            asm volatile("cp.async.commit_group;" : : : "memory");
        };

        fetch(0);
        for (int64_t first = 0; first < end - begin; first += TOGETHER) {
            const batch_of_tokens<Columns> &here = batches[first / TOGETHER & 1];
            fetch(first + TOGETHER);
            asm volatile("cp.async.wait_group 1;" : : : "memory");
            __syncthreads();
            const int steps = (int)min((int64_t)TOGETHER, end - begin - first);
#pragma unroll 2
            for (int step = 0; step < steps; step++) {
                const float factor = here.factor[step], before = w.back ? 1.0f : factor, after = w.back ? factor : 1.0f;
                const float4 four = *reinterpret_cast<const float4 *>(&here.grow[step][group * 4]);
                const float mine[4] = { four.x * after, four.y * after, four.z * after, four.w * after };
                float sum[4] = {};
#pragma unroll
                for (int c = 0; c < Columns; c += 4) {
                    const float4 by4 = *reinterpret_cast<const float4 *>(&here.by[step][c * 8 + lane * 4]);
                    const float4 read4 = *reinterpret_cast<const float4 *>(&here.read[step][c * 8 + lane * 4]);
                    const float by[4] = { by4.x, by4.y, by4.z, by4.w }, read[4] = { read4.x, read4.y, read4.z, read4.w };
#pragma unroll
                    for (int r = 0; r < 4; r++)
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            sum[r] = fmaf(x[r][c + j], read[j], sum[r]);
                            x[r][c + j] = fmaf(x[r][c + j], factor, mine[r] * by[j]);
                        }
                }
                /* Eight lanes' parts of four rows: two lanes are left with the sum of one. */
                const bool upper = lane & 4, odd = lane & 2;
                float a = (upper ? sum[2] : sum[0]) + __shfl_xor_sync(0xffffffffu, upper ? sum[0] : sum[2], 4);
                float b = (upper ? sum[3] : sum[1]) + __shfl_xor_sync(0xffffffffu, upper ? sum[1] : sum[3], 4);
                float whole = (odd ? b : a) + __shfl_xor_sync(0xffffffffu, odd ? a : b, 2);
                whole += __shfl_xor_sync(0xffffffffu, whole, 1);
                const int64_t own = row0 + group * 4 + (upper ? 2 : 0) + (odd ? 1 : 0);
                if (!(lane & 1) && own < w.owned) w.out[(blockIdx.y * n + token_of(first + step)) * w.owned + own] = whole * before;
            }
            __syncthreads();
        }
        asm volatile("cp.async.wait_group 0;" : : : "memory");
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < Columns; c++) {
                int64_t own = row0 + group * 4 + r, i = c / 4 * 32 + lane * 4 + c % 4;
                if (w.end && own < w.owned && i < w.across) w.end[w.in_state(item, own, i)] = x[r][c];
            }
    }
}

template <typename W> struct quick_walks {
    static bool start(const tn_la_problem *, const tn_la_run &, const walk<W> &, cudaStream_t) { return false; }
};
template <> struct quick_walks<float> {
    static bool start(const tn_la_problem *p, const tn_la_run &run, const walk<float> &w, cudaStream_t stream) {
        if (w.owned % 4 || w.across % 4 || w.across > 256) return false;
        const dim3 grid = tn_la_plain_grid(run, (w.owned + QUICK_ROWS - 1) / QUICK_ROWS);
        const sequences all = sequences_of(p);
        const decays<float> decay = decays_of<float>(p);
        if (w.across <= 64) run_walk_quick<8><<<grid, TN_LA_PLAIN_THREADS, 0, stream>>>(run, all, decay, w);
        else if (w.across <= 128) run_walk_quick<16><<<grid, TN_LA_PLAIN_THREADS, 0, stream>>>(run, all, decay, w);
        else run_walk_quick<32><<<grid, TN_LA_PLAIN_THREADS, 0, stream>>>(run, all, decay, w);
        return true;
    }
};

template <typename W> void start_walk(const tn_la_problem *p, bool quick, const tn_la_run &run, const walk<W> &w, cudaStream_t stream) {
    const int threads = TN_LA_PLAIN_THREADS;
    if (quick && quick_walks<W>::start(p, run, w, stream)) return;
    run_walk<W><<<tn_la_plain_grid(run, (w.owned + threads - 1) / threads), threads, 0, stream>>>(run, sequences_of(p), decays_of<W>(p), w);
}

/* What a token has from itself: out_t += <a_t, b_t> row_t. Before that weight_t += sign <out_t, x_t>, for the gradient of the decay, in
 * which a token's own part has no share. */
template <typename W> struct own {
    int64_t n, width, pair; /* widths of out, row and x; of a and b */
    const W *a, *b, *row;
    W *out;
    const W *x;
    W sign, *weight; /* [slice of the run][token]; NULL: not wanted */
};

template <typename W> __global__ void add_own(own<W> o) {
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    for (int64_t token = blockIdx.x; token < o.n; token += gridDim.x) {
        int64_t at = blockIdx.y * o.n + token;
        const W *a = o.a + at * o.pair, *b = o.b + at * o.pair, *row = o.row + at * o.width;
        W *out = o.out + at * o.width, product = 0, weight = 0;
        for (int64_t i = threadIdx.x; i < o.pair; i += blockDim.x) product += a[i] * b[i];
        product = tn_block_sum(product, scratch);
        for (int64_t i = threadIdx.x; o.weight && i < o.width; i += blockDim.x) weight += out[i] * o.x[at * o.width + i];
        if (o.weight) weight = tn_block_sum(weight, scratch);
        if (o.weight && threadIdx.x == 0) o.weight[at] += o.sign * weight;
        for (int64_t i = threadIdx.x; i < o.width; i += blockDim.x) out[i] += product * row[i];
    }
}

template <typename W> void start_own(const tn_la_run &run, const own<W> &o, cudaStream_t stream) {
    add_own<W><<<tn_la_plain_grid(run, o.n), TN_LA_PLAIN_THREADS, 0, stream>>>(o);
}

/* o = act(g) * y */
template <typename T>
__global__ void write_out(tn_la_run run, tn_la_operand g, bool has_gate, int64_t n, int64_t e, tn_la_strides stride, const tn_wide<T> *y,
                          T *o) {
    using W = tn_wide<T>;
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    int64_t slice = run.first + blockIdx.y;
    for (int64_t token = blockIdx.x; token < n; token += gridDim.x) {
        const W *row = y + (blockIdx.y * n + token) * e;
        int64_t to = tn_la_row(stride, run.heads, slice, token);
        const T *x = has_gate ? (const T *)g.x + tn_la_row(g.stride, run.heads, slice, token) : NULL;
        W maximum = 0, sum = 1;
        if (has_gate && g.act == TN_SOFTMAX) tn_la_softmax_row(x, e, &maximum, &sum, scratch);
        for (int64_t j = threadIdx.x; j < e; j += blockDim.x)
            o[to + j] = tn_narrow<T>(has_gate ? row[j] * tn_la_activated(g, tn_widen(x[j]), slice, j, maximum, sum) : row[j]);
    }
}

/* sums[item] = <a, b> of its states. */
template <typename W> __global__ void state_dots(int64_t numbers, const W *a, const W *b, W *sums) {
    __shared__ W scratch[TN_LA_PLAIN_THREADS / TN_WARP];
    W sum = 0;
    for (int64_t i = threadIdx.x; i < numbers; i += blockDim.x) sum += a[blockIdx.x * numbers + i] * b[blockIdx.x * numbers + i];
    sum = tn_block_sum(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/* dlog_decay_t = the weights from t to the sequence's end, and <S, dS> there; its sum over the tokens too. A thread takes an item. */
template <typename W>
__global__ void sum_decay(int64_t items, int64_t heads, sequences all, const W *weight, const W *at_end, bool scalar, W *dlog, W *sums) {
    int64_t item = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, n = all.starts.tokens;
    if (item >= items) return;
    int64_t sequence = item / heads, head = item % heads, slice = all.starts.cu ? head : item, begin, end;
    bounds(all, sequence, &begin, &end);
    double sum = at_end ? (double)at_end[item] : 0, whole = 0;
    for (int64_t token = end - 1; token >= begin; token--) {
        sum += (double)weight[slice * n + token];
        whole += sum;
        if (scalar) dlog[(slice / heads * n + token) * heads + head] = (W)sum;
    }
    sums[item] = (W)whole;
}

template <typename W> __global__ void sum_constant_decay(int64_t items, int64_t heads, const W *sums, W *dlog) {
    int64_t head = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (head >= heads) return;
    W sum = 0;
    for (int64_t item = head; item < items; item += heads) sum += sums[item];
    dlog[head] = sum;
}

/* ---- workspace: pieces one after the other, in elements ---- */

struct room {
    int64_t slices;                                  /* of a run */
    int64_t q, k, v, y, dx, dv, x;                   /* of a run: encoded inputs, results, the walk's matrix */
    int64_t weight, state, at_end, sums, theta, all; /* of the whole call */
};

room make_room(const tn_la_problem *p, bool backward) {
    int64_t by_d = p->n * p->state_rows, by_e = p->n * p->e, numbers = p->state_rows * p->e, items = p->sequences * p->h;
    room r = {};
    r.slices = tn_la_plain_slices(p, ((backward ? 3 : 2) * by_d + (backward ? 3 : 2) * by_e + numbers) * (int64_t)tn_dtype_size(p->wide));
    r.q = r.k = r.slices * by_d;
    r.v = r.y = r.slices * by_e;
    r.x = r.slices * numbers;
    if (backward) {
        bool decay = p->dlog_decay != NULL;
        r.dx = r.slices * by_d;
        r.dv = r.slices * by_e;
        r.weight = decay ? p->b * p->h * p->n : 0;
        r.state = decay && p->dstate_out ? items * numbers : 0;
        r.at_end = r.sums = decay ? items : 0;
        r.theta = p->dtheta ? 2 * p->b * p->h * p->q.grid.theta_width : 0;
    }
    r.all = r.q + r.k + r.v + r.y + r.dx + r.dv + r.x + r.weight + r.state + r.at_end + r.sums + r.theta;
    return r;
}

template <typename W> W *take(W **at, int64_t elements) {
    W *piece = *at;
    *at += elements;
    return piece;
}

/* Tokens that no sequence has, where cu_seqlens is not what it should be, read as zeros. */
template <typename W> void clear(const tn_la_problem *p, W *to, int64_t elements, cudaStream_t stream) {
    if (p->cu_seqlens && elements) cudaMemsetAsync(to, 0, (size_t)elements * sizeof(W), stream);
}

/* ---- forward ---- */

template <typename T> void forward(const tn_la_problem *p, bool quick, void *workspace, cudaStream_t stream) {
    using W = tn_wide<T>;
    const room r = make_room(p, false);
    const int64_t slices = p->b * p->h, rows = p->state_rows, e = p->e, n = p->n;
    W *at = (W *)workspace, *q = take(&at, r.q), *k = take(&at, r.k), *v = take(&at, r.v), *y = take(&at, r.y), *x = take(&at, r.x);
    for (int64_t first = 0; first < slices; first += r.slices) {
        const tn_la_run run = { first, r.slices < slices - first ? r.slices : slices - first, p->h };
        tn_la_plain_encode_run<T>(p, &p->q, p->scale, run, q, stream);
        tn_la_plain_encode_run<T>(p, &p->k, 1, run, k, stream);
        tn_la_plain_encode_run<T>(p, &p->v, 1, run, v, stream);
        clear(p, y, r.y, stream);
        start_walk<W>(p, quick, run, { false, e, rows, v, k, q, y, x, (const W *)p->state, (W *)p->state_out, false }, stream);
        if (n == 0) continue;
        start_own<W>(run, { n, e, rows, q, k, v, y, NULL, 0, NULL }, stream);
        write_out<T><<<tn_la_plain_grid(run, n), TN_LA_PLAIN_THREADS, 0, stream>>>(run, p->g, p->has_gate, n, e, p->o_stride, y, (T *)p->o);
    }
}

/* ---- backward ---- */

template <typename T> struct back {
    using W = tn_wide<T>;
    const tn_la_problem *p;
    bool quick;
    room r;
    cudaStream_t stream;
    W *q, *k, *v, *y, *dx, *dv, *x, *weight, *state, *at_end, *sums, *theta;
};

template <typename T> back<T> make_back(const tn_la_problem *p, bool quick, void *workspace, cudaStream_t stream) {
    using W = tn_wide<T>;
    back<T> w = { p, quick, make_room(p, true), stream };
    W *at = (W *)workspace;
    w.q = take(&at, w.r.q), w.k = take(&at, w.r.k), w.v = take(&at, w.r.v), w.y = take(&at, w.r.y);
    w.dx = take(&at, w.r.dx), w.dv = take(&at, w.r.dv), w.x = take(&at, w.r.x);
    w.weight = take(&at, w.r.weight), w.state = take(&at, w.r.state), w.at_end = take(&at, w.r.at_end);
    w.sums = take(&at, w.r.sums), w.theta = take(&at, w.r.theta);
    return w;
}

/* y := dy = do * gb, and dg. */
template <typename T> void upstream(const back<T> &w, const tn_la_run &run) {
    using W = tn_wide<T>;
    const tn_la_problem *p = w.p;
    if (!p->d_o) {
        cudaMemsetAsync(w.y, 0, (size_t)w.r.y * sizeof(W), w.stream);
        return;
    }
    if (p->dg) {
        clear(p, w.y, w.r.y, w.stream);
        start_walk<W>(p, w.quick, run, { false, p->e, p->state_rows, w.v, w.k, w.q, w.y, w.x, (const W *)p->state, NULL, false }, w.stream);
        start_own<W>(run, { p->n, p->e, p->state_rows, w.q, w.k, w.v, w.y, NULL, 0, NULL }, w.stream);
    }
    tn_la_plain_gate_back<T><<<tn_la_plain_grid(run, p->n), TN_LA_PLAIN_THREADS, 0, w.stream>>>(
        run, p->g, p->has_gate, p->n, p->e, p->o_stride, (const T *)p->d_o, (T *)p->dg, w.y);
}

template <typename T> void back_run(const back<T> &w, const tn_la_run &run) {
    using W = tn_wide<T>;
    const tn_la_problem *p = w.p;
    const int64_t rows = p->state_rows, e = p->e, n = p->n;
    W *weight = p->dlog_decay ? w.weight + run.first * n : NULL;
    tn_la_plain_encode_run<T>(p, &p->q, p->scale, run, w.q, w.stream);
    tn_la_plain_encode_run<T>(p, &p->k, 1, run, w.k, w.stream);
    tn_la_plain_encode_run<T>(p, &p->v, 1, run, w.v, w.stream);
    if (n > 0) upstream(w, run);
    if (p->dq || p->dtheta || p->dlog_decay) {
        clear(p, w.dx, w.r.dx, w.stream);
        start_walk<W>(p, w.quick, run, { false, rows, e, w.k, w.v, w.y, w.dx, w.x, (const W *)p->state, w.r.state ? w.state : NULL, true },
                      w.stream);
        if (n > 0) start_own<W>(run, { n, rows, e, w.y, w.v, w.k, w.dx, w.q, 1, weight }, w.stream);
        tn_la_plain_decode<T>(p, run, &p->q, p->scale, w.q, w.dx, p->dtheta ? w.theta : NULL, p->dq, w.stream);
    }
    if (p->dk || p->dtheta || p->dlog_decay || p->dstate) {
        clear(p, w.dx, w.r.dx, w.stream);
        start_walk<W>(p, w.quick, run, { true, rows, e, w.q, w.y, w.v, w.dx, w.x, (const W *)p->dstate_out, (W *)p->dstate, true },
                      w.stream);
        if (n > 0) start_own<W>(run, { n, rows, e, w.y, w.v, w.q, w.dx, w.k, -1, weight }, w.stream);
        tn_la_plain_decode<T>(p, run, &p->k, 1, w.k, w.dx, p->dtheta ? w.theta + w.r.theta / 2 : NULL, p->dk, w.stream);
    }
    if (p->dv && n > 0) {
        clear(p, w.dv, w.r.dv, w.stream);
        start_walk<W>(p, w.quick, run, { true, e, rows, w.y, w.q, w.k, w.dv, w.x, (const W *)p->dstate_out, NULL, false }, w.stream);
        start_own<W>(run, { n, e, rows, w.q, w.k, w.y, w.dv, NULL, 0, NULL }, w.stream);
        tn_la_plain_act_back<T><<<tn_la_plain_grid(run, n), TN_LA_PLAIN_THREADS, 0, w.stream>>>(run, p->v, w.dv, e, (T *)p->dv);
    }
}

template <typename W, typename T> void decay_gradient(const back<T> &w) {
    const tn_la_problem *p = w.p;
    const int64_t items = p->sequences * p->h;
    if (items == 0 && p->decay == TN_LA_SCALAR_DECAY) return;
    if (w.r.state)
        state_dots<W>
            <<<(unsigned)items, TN_LA_PLAIN_THREADS, 0, w.stream>>>(p->state_rows * p->e, w.state, (const W *)p->dstate_out, w.at_end);
    if (items > 0)
        sum_decay<W><<<tn_blocks(items, 128), 128, 0, w.stream>>>(items, p->h, sequences_of(p), w.weight, w.r.state ? w.at_end : NULL,
                                                                  p->decay == TN_LA_SCALAR_DECAY, (W *)p->dlog_decay, w.sums);
    if (p->decay == TN_LA_CONSTANT_DECAY && p->h > 0)
        sum_constant_decay<W><<<tn_blocks(p->h, 128), 128, 0, w.stream>>>(items, p->h, w.sums, (W *)p->dlog_decay);
}

template <typename T> void backward(const tn_la_problem *p, bool quick, void *workspace, cudaStream_t stream) {
    using W = tn_wide<T>;
    const back<T> w = make_back<T>(p, quick, workspace, stream);
    const int64_t slices = p->b * p->h;
    if (w.r.weight) cudaMemsetAsync(w.weight, 0, (size_t)w.r.weight * sizeof(W), stream);
    if (w.r.theta) cudaMemsetAsync(w.theta, 0, (size_t)w.r.theta * sizeof(W), stream);
    if (p->dg && !p->d_o) cudaMemsetAsync(p->dg, 0, (size_t)(slices * p->n * p->e) * sizeof(T), stream);
    if (p->dlog_decay && p->decay == TN_LA_SCALAR_DECAY) clear(p, (W *)p->dlog_decay, slices * p->n, stream);
    for (int64_t first = 0; first < slices; first += w.r.slices)
        back_run<T>(w, { first, w.r.slices < slices - first ? w.r.slices : slices - first, p->h });
    if (p->dlog_decay) decay_gradient<W>(w);
    if (p->dtheta) {
        int64_t columns = p->q.grid.theta_heads * p->q.grid.theta_width;
        tn_la_plain_theta_sum<W><<<tn_blocks(columns, 128), 128, 0, stream>>>(slices, p->h, p->q.grid, w.theta, (W *)p->dtheta);
    }
}

} // namespace

size_t tn_la_causal_forward_plain_workspace(const tn_la_problem *problem) {
    return (size_t)make_room(problem, false).all * tn_dtype_size(problem->wide);
}
int tn_la_causal_forward_plain(const tn_la_problem *problem, bool quick, void *workspace, void *stream) {
    TN_WITH_FLOAT(problem->dtype, T, forward<T>(problem, quick, workspace, (cudaStream_t)stream));
    return (int)cudaGetLastError();
}
size_t tn_la_causal_backward_plain_workspace(const tn_la_problem *problem) {
    return (size_t)make_room(problem, true).all * tn_dtype_size(problem->wide);
}
int tn_la_causal_backward_plain(const tn_la_problem *problem, bool quick, void *workspace, void *stream) {
    TN_WITH_FLOAT(problem->dtype, T, backward<T>(problem, quick, workspace, (cudaStream_t)stream));
    return (int)cudaGetLastError();
}
