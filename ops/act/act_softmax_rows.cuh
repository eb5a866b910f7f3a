/* Softmax along the last axis.
 *
 * Up to 8192 columns a row belongs to a team of 1 to 32 lanes or to a whole block, which holds it in registers: x is read once and o
 * written once (2T; backward reads o and do and writes dx, 3T).
 *
 *     packs of a row (16 bytes)    up to 32 | 64 | 128 | 256 | 512 | 1024 | f32: 2048
 *     threads of a row             1 to 32  | 32 | 32  | 256 | 256 | 256  | 512
 *     packs of a thread            1        | 2  | 4   | 1   | 2   | 4    | 4          (f32: 1 up to 512 packs, 2 up to 1024)
 *     rows at a time               4        | 2  | 1   | 4   | 2   | 1    | 1
 *
 * That is 64 bytes a thread; twice as many made the forward a tenth slower.
 *
 * Longer rows are held in shared memory, by a group of blocks if need be (act_softmax_cuda.cuh): 96 KiB a block, 25 MB the whole GPU.
 * Plain (f64, any width and alignment, still longer rows): a warp or a block a row, in three walks. */
#ifndef TENON_ACT_SOFTMAX_ROWS_CUH
#define TENON_ACT_SOFTMAX_ROWS_CUH

#include "act_softmax_cuda.cuh"

#define ROW_THREADS 256 /* where teams are lanes of a warp */
#define ROW_LONGEST 8192
#define ROW_PACKS 4
#define ROW_MOST_THREADS(T) (ROW_LONGEST / ROW_PACKS / tn_pack<T>::n)
#define PLAIN_LONG_THREADS 1024

namespace {

/* ---- rows in registers ---- */

/* Team t of all has rows t * ROWS ... The blocks do one round each: with several the multiprocessors would not be done at the same time. */
template <typename T, int PACKS>
__global__ void __launch_bounds__(ROW_MOST_THREADS(T), sizeof(T) == 2 ? 3 : 2)
    softmax_rows(T *o, const T *x, int64_t rows, int64_t columns, int lanes) {
    constexpr int n = tn_pack<T>::n, NUMBERS = PACKS * n, ROWS = ROW_PACKS / PACKS;
    __shared__ float scratch[TN_TEAM_SCRATCH];
    tn_team team(lanes, scratch);
    const int first_column = team.lane * n, step = lanes * n;
    int64_t row = ((int64_t)blockIdx.x * team.teams() + team.mine()) * ROWS;
    uint4 raw[ROWS][PACKS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = first_column + p * step;
            raw[r][p] = tn_ask_pack(x + (row + r) * columns + column, column < columns && row + r < rows);
        }
    float e[ROWS][NUMBERS], both[2 * ROWS], max[ROWS], sum[ROWS], scale[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        max[r] = -INFINITY, sum[r] = 0;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            tn_open_pack<T>(raw[r][p], e[r] + p * n);
            bool used = first_column + p * step < columns;
#pragma unroll
            for (int j = 0; j < n; j++) {
                if (!used) e[r][p * n + j] = -INFINITY;
                max[r] = fmaxf(max[r], e[r][p * n + j]);
            }
        }
    }
    team.max_in_warp(max);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) {
            e[r][i] = softmax_exp(e[r][i] - base_of(max[r]));
            sum[r] += e[r][i];
        }
    team.sum_in_warp(sum);
#pragma unroll
    for (int r = 0; r < ROWS; r++) scale[r] = 1.0f / sum[r];
    if (!team.size) { /* each warp has its own maximum and sum */
#pragma unroll
        for (int r = 0; r < ROWS; r++) both[r] = max[r], both[ROWS + r] = sum[r];
        const float *shared = team.exchange(both);
        int lane = threadIdx.x % TN_WARP;
        bool inside = lane < (int)blockDim.x / TN_WARP;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float part = inside ? shared[r * TN_WARP + lane] : -INFINITY, above = tn_warp_max(part);
            float total = tn_warp_sum(inside ? shared[(ROWS + r) * TN_WARP + lane] * part_weight(part, above) : 0.0f);
            scale[r] = part_weight(max[r], above) / total;
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = first_column + p * step;
#pragma unroll
            for (int j = 0; j < n; j++) e[r][p * n + j] *= scale[r];
            if (column < columns && row + r < rows) tn_put_pack(o + (row + r) * columns + column, e[r] + p * n);
        }
}

template <typename T, int PACKS>
__global__ void __launch_bounds__(ROW_MOST_THREADS(T), sizeof(T) == 2 ? 3 : 2)
    softmax_rows_backward(T *dx, const T *o, const T *d, int64_t rows, int64_t columns, int lanes) {
    constexpr int n = tn_pack<T>::n, ROWS = ROW_PACKS / PACKS;
    __shared__ float scratch[TN_TEAM_SCRATCH];
    tn_team team(lanes, scratch);
    const int first_column = team.lane * n, step = lanes * n;
    int64_t row = ((int64_t)blockIdx.x * team.teams() + team.mine()) * ROWS;
    uint4 raw_o[ROWS][PACKS], raw_d[ROWS][PACKS];
    float dot[ROWS], at[n], up[n];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = first_column + p * step, place = (row + r) * columns + column;
            bool wanted = column < columns && row + r < rows;
            raw_o[r][p] = tn_ask_pack(o + place, wanted);
            raw_d[r][p] = tn_ask_pack(d + place, wanted);
        }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        dot[r] = 0;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            tn_open_pack<T>(raw_o[r][p], at);
            tn_open_pack<T>(raw_d[r][p], up);
#pragma unroll
            for (int j = 0; j < n; j++) dot[r] += at[j] * up[j];
        }
    }
    team.sum(dot);
    tn_forget_packs(raw_o);
    tn_forget_packs(raw_d);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int64_t column = first_column + p * step;
            tn_open_pack<T>(raw_o[r][p], at);
            tn_open_pack<T>(raw_d[r][p], up);
#pragma unroll
            for (int j = 0; j < n; j++) at[j] *= up[j] - dot[r];
            if (column < columns && row + r < rows) tn_put_pack(dx + (row + r) * columns + column, at);
        }
}

/* ---- rows in the shared memory of a group of blocks ---- */

template <typename T, bool Backward>
__global__ void __launch_bounds__(HELD_THREADS, HELD_PER_MULTIPROCESSOR)
    softmax_held_rows(T *to, const T *from, const T *d, int64_t rows, int64_t columns, int packs, tn_group group) {
    constexpr int n = tn_pack<T>::n;
    extern __shared__ uint4 held[]; /* [from, d][pack][thread] */
    __shared__ float scratch[TN_WARP];
    int64_t row = held_join(group), n_groups = gridDim.x / group.size;
    uint4 *slots = held + threadIdx.x, *slots_d = slots + packs * HELD_THREADS;
    /* This thread's packs are HELD_THREADS apart from the first on. */
    int64_t run = (columns / n + group.size - 1) / group.size, first = run * group.rank + threadIdx.x;
    int64_t end = run * (group.rank + 1) < columns / n ? run * (group.rank + 1) : columns / n;
    const int mine = first < end ? (int)((end - first + HELD_THREADS - 1) / HELD_THREADS) : 0;
    auto place = [&](int64_t of, int k) { return of * columns + (first + (int64_t)k * HELD_THREADS) * n; };
    auto ask = [&](int k, int64_t of) {
        bool wanted = of < rows;
        tn_copy_async(slots + k * HELD_THREADS, from + (wanted ? place(of, k) : 0), wanted);
        if (Backward) tn_copy_async(slots_d + k * HELD_THREADS, d + (wanted ? place(of, k) : 0), wanted);
    };
    for (int k = 0; k < mine; k++) ask(k, row);
    tn_copy_async_close();

    for (; row < rows; row += n_groups) {
        float at[n], up[n], max = -INFINITY, sum = 0;
        tn_copy_async_wait<0>();
#pragma unroll 4
        for (int k = 0; k < mine; k++) {
            tn_open_pack<T>(slots[k * HELD_THREADS], at);
            if (Backward) tn_open_pack<T>(slots_d[k * HELD_THREADS], up);
#pragma unroll
            for (int j = 0; j < n; j++) {
                if (Backward) sum += at[j] * up[j];
                else max = fmaxf(max, at[j]);
            }
        }
        if (!Backward) {
            max = tn_block_max(max, -INFINITY, scratch);
#pragma unroll 4
            for (int k = 0; k < mine; k++) {
                tn_open_pack<T>(slots[k * HELD_THREADS], at);
#pragma unroll
                for (int j = 0; j < n; j++) sum += softmax_exp(at[j] - base_of(max));
            }
        }
        sum = tn_block_sum(sum, scratch);
        if (group.size > 1) {
            float part = 0, part_max = -INFINITY;
            group.next_round();
            if (threadIdx.x == 0) group.write(0, sum, max);
            group.read(0, threadIdx.x, HELD_THREADS, [&](float a, float b) { part = a, part_max = b; });
            if (!Backward) {
                max = tn_block_max(part_max, -INFINITY, scratch);
                part *= part_weight(part_max, max);
            }
            sum = tn_block_sum(part, scratch);
        }
        float scale = 1.0f / sum;
#pragma unroll 2
        for (int k = 0; k < mine; k++) {
            tn_open_pack<T>(slots[k * HELD_THREADS], at);
            if (Backward) tn_open_pack<T>(slots_d[k * HELD_THREADS], up);
#pragma unroll
            for (int j = 0; j < n; j++) at[j] = Backward ? at[j] * (up[j] - sum) : softmax_exp(at[j] - max) * scale;
            tn_put_pack(to + place(row, k), at);
            ask(k, row + n_groups);
        }
        tn_copy_async_close();
    }
    tn_copy_async_wait<0>();
}

/* ---- plain ---- */

template <typename W> struct row_threads {
    bool warp;
    W *scratch;
    __device__ __forceinline__ W sum(W x) const { return warp ? tn_warp_sum(x) : tn_block_sum(x, scratch); }
    __device__ __forceinline__ W max(W x) const { return warp ? tn_warp_max(x) : tn_block_max(x, (W)-INFINITY, scratch); }
};

/* A row for each warp of a block, or for the block. */
template <typename T>
__global__ void __launch_bounds__(PLAIN_LONG_THREADS)
    softmax_plain_rows(T *to, const T *from, const T *d, int64_t rows, int64_t columns, bool by_warp) {
    typedef tn_wide<T> W;
    __shared__ W scratch[TN_WARP];
    row_threads<W> team = { by_warp, scratch };
    int threads = by_warp ? TN_WARP : blockDim.x, thread = threadIdx.x % threads, teams = blockDim.x / threads;
    for (int64_t row = (int64_t)blockIdx.x * teams + threadIdx.x / threads; row < rows; row += (int64_t)gridDim.x * teams) {
        const T *x = from + row * columns, *up = d ? d + row * columns : NULL;
        T *o = to + row * columns;
        W max = -INFINITY, sum = 0;
        if (up) {
            for (int64_t i = thread; i < columns; i += threads) sum += tn_widen(x[i]) * tn_widen(up[i]);
            sum = team.sum(sum);
            for (int64_t i = thread; i < columns; i += threads) o[i] = tn_narrow<T>(tn_widen(x[i]) * (tn_widen(up[i]) - sum));
            continue;
        }
        for (int64_t i = thread; i < columns; i += threads) max = tn_widen(x[i]) > max ? tn_widen(x[i]) : max;
        max = team.max(max);
        for (int64_t i = thread; i < columns; i += threads) sum += tn_exp_of(tn_widen(x[i]) - max);
        W scale = (W)1 / team.sum(sum);
        for (int64_t i = thread; i < columns; i += threads) o[i] = tn_narrow<T>(tn_exp_of(tn_widen(x[i]) - max) * scale);
    }
}

/* ---- choice ---- */

template <typename T, int PACKS> cudaError_t launch_rows_of(const softmax_job &job, int threads, int lanes) {
    int64_t rows = job.shape.outer;
    unsigned blocks = tn_blocks(rows, (int64_t)(threads / lanes) * (ROW_PACKS / PACKS));
    T *to = (T *)job.to;
    const T *from = (const T *)job.from, *d = (const T *)job.d;
    if (d) softmax_rows_backward<T, PACKS><<<blocks, threads, 0, job.stream>>>(to, from, d, rows, job.shape.axis, lanes);
    else softmax_rows<T, PACKS><<<blocks, threads, 0, job.stream>>>(to, from, rows, job.shape.axis, lanes);
    return cudaGetLastError();
}

/* False where the GPU can't hold a row. */
bool plan_held_row(int64_t columns, int n, bool backward, const tn_device *device, held_plan *plan) {
    int64_t packs = columns / n, most = (int64_t)held_packs(backward) * HELD_THREADS, blocks = (packs + most - 1) / most;
    if (blocks > held_blocks(device)) return false;
    plan->blocks = (int)blocks;
    plan->packs = (int)(((packs + blocks - 1) / blocks + HELD_THREADS - 1) / HELD_THREADS);
    plan->pairs = 1;
    plan->shared = (size_t)plan->packs * (backward ? 2 : 1) * HELD_THREADS * sizeof(uint4);
    return plan->shared + TN_WARP * sizeof(float) <= device->shared_bytes;
}

static size_t rows_workspace(const softmax_shape &s, tn_dtype dtype, const tn_device *device, bool backward) {
    int n = 16 / (int)tn_dtype_size(dtype);
    held_plan plan;
    if (device->cuda_path == TN_CUDA_PLAIN || s.axis % n != 0 || s.axis <= ROW_LONGEST) return 0;
    return plan_held_row(s.axis, n, backward, device, &plan) ? held_workspace(plan, device) : 0;
}

template <typename T> void launch_plain_rows(const softmax_job &job) {
    bool by_warp = job.shape.axis <= 1024;
    int threads = job.shape.axis <= 8192 ? ROW_THREADS : PLAIN_LONG_THREADS;
    unsigned blocks = tn_blocks(job.shape.outer, by_warp ? ROW_THREADS / TN_WARP : 1);
    softmax_plain_rows<T>
        <<<blocks, threads, 0, job.stream>>>((T *)job.to, (const T *)job.from, (const T *)job.d, job.shape.outer, job.shape.axis, by_warp);
}

template <typename T> cudaError_t launch_held_rows(const softmax_job &job) {
    held_plan plan;
    if (!plan_held_row(job.shape.axis, tn_pack<T>::n, job.d, job.device, &plan)) {
        launch_plain_rows<T>(job);
        return cudaGetLastError();
    }
    T *to = (T *)job.to;
    const T *from = (const T *)job.from, *d = (const T *)job.d;
    int64_t rows = job.shape.outer, columns = job.shape.axis;
    return d ? launch_held(softmax_held_rows<T, true>, job, plan, rows, to, from, d, rows, columns, plan.packs)
             : launch_held(softmax_held_rows<T, false>, job, plan, rows, to, from, d, rows, columns, plan.packs);
}

template <typename T> cudaError_t launch_rows(const softmax_job &job) {
    if (job.shape.axis > ROW_LONGEST) return launch_held_rows<T>(job);
    int n_packs = (int)job.shape.axis / tn_pack<T>::n, lanes = 1, packs = 1;
    bool by_warp = n_packs <= ROW_PACKS * TN_WARP;
    int most = by_warp ? TN_WARP : ROW_MOST_THREADS(T);
    while (packs * most < n_packs) packs *= 2;
    if (by_warp)
        while (lanes * packs < n_packs) lanes *= 2;
    else lanes = (n_packs + packs * TN_WARP - 1) / (packs * TN_WARP) * TN_WARP;
    int threads = by_warp ? ROW_THREADS : lanes;
    return packs == 1   ? launch_rows_of<T, 1>(job, threads, lanes)
           : packs == 2 ? launch_rows_of<T, 2>(job, threads, lanes)
                        : launch_rows_of<T, 4>(job, threads, lanes);
}

} // namespace

#endif
