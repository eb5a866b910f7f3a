/* Softmax along an axis that is not the last: the tensor is [outer, axis, inner], neighbours in memory belong to different sums.
 *
 * Slabs. A slab is a few packs of columns (`wide`, 8 or more: 128 bytes) of one outer index, the whole axis long. A block holds it in
 * shared memory, or a group of blocks that have a run of the axis each (act_softmax_cuda.cuh): x is read once and o written once.
 *
 *             wide packs of 16 bytes
 *     block 0 | t0 t1 .. | t(wide) ..          thread t: pack t % wide of rows t / wide + k HELD_THREADS / wide
 *             | ..       |
 *     block 1 | ..       |
 *
 *     axis up to       96   192   384   768 | 1536   3072   8448   16896   more
 *     wide packs       64   32    16    8   | 8      8      8      8       8       (backward: half the axis)
 *     blocks           1    1     1     1   | 2      4      11     22
 *
 * Maximum and sum are made over lanes, warps and blocks, in this order. Hopper has groups of its own (act_softmax_flow.cuh): here what a
 * slab's blocks wait for each other costs 5 to 20%.
 *
 * Plain (f64, any width and alignment, slabs the GPU can't hold): a block of 32 x 8 threads owns 32 neighbouring columns and walks them
 * twice. */
#ifndef TENON_ACT_SOFTMAX_COLUMNS_CUH
#define TENON_ACT_SOFTMAX_COLUMNS_CUH

#include "act_softmax_flow.cuh"

namespace {

/* Blocks of a group that may read all the others' numbers themselves: more of them would read too much. */
#define DIRECT_BLOCKS 64

/* ---- the columns of a block ---- */

/* part_weight of maxima times log2 e. */
__device__ __forceinline__ float scaled_weight(float max, float above) { return max == above ? 1.0f : power_of_2(max - above); }

/* Threads with equal t % wide have the same n columns. What they add up goes over lanes, then over parts: a warp's lanes (wide < 32) or a
 * row of threads. Scratch is parts [part][column], then result [column]. */
template <int n> struct column_team {
    int wide, lane, n_parts, columns; /* columns of the block: wide * n, at most as many as threads */
    float *parts, *result;

    static __host__ __device__ int parts_of(int wide, int threads) { return wide < TN_WARP ? threads / TN_WARP : threads / wide; }
    static size_t scratch_bytes(int wide, int threads) { return ((size_t)parts_numbers(wide, threads) + wide * n) * sizeof(float); }
    /* At least two numbers a thread, for merge_all. */
    static __host__ __device__ int parts_numbers(int wide, int threads) {
        int numbers = parts_of(wide, threads) * wide * n;
        return numbers < 2 * threads ? 2 * threads : numbers;
    }

    __device__ __forceinline__ column_team(int packs, float *scratch)
        : wide(packs), lane(threadIdx.x % TN_WARP), n_parts(parts_of(packs, blockDim.x)), columns(packs * n), parts(scratch),
          result(scratch + parts_numbers(packs, blockDim.x)) {}
    __device__ __forceinline__ int pack() const { return threadIdx.x % wide; }
    __device__ __forceinline__ int first_row() const { return threadIdx.x / wide; }
    __device__ __forceinline__ int rows_apart() const { return blockDim.x / wide; }
    __device__ __forceinline__ bool has_column() const { return (int)threadIdx.x < columns; }

    /* The block's maximum or sum of column threadIdx.x, for threads that have one. */
    template <bool Max> __device__ __forceinline__ float gather(float (&x)[n]) const {
        for (int step = wide; step < TN_WARP; step *= 2)
#pragma unroll
            for (int j = 0; j < n; j++) {
                float other = __shfl_xor_sync(0xffffffffu, x[j], step);
                x[j] = Max ? fmaxf(x[j], other) : x[j] + other;
            }
        int part = wide < TN_WARP ? threadIdx.x / TN_WARP : threadIdx.x / wide;
        if (wide >= TN_WARP || lane < wide)
#pragma unroll
            for (int j = 0; j < n; j++) parts[part * columns + pack() * n + j] = x[j];
        __syncthreads();
        float total = Max ? -INFINITY : 0.0f;
        if (has_column())
#pragma unroll 4
            for (int i = 0; i < n_parts; i++) {
                float other = parts[i * columns + threadIdx.x];
                total = Max ? fmaxf(total, other) : total + other;
            }
        return total;
    }
    /* Every thread gets what the threads that have its columns say. */
    __device__ __forceinline__ void spread(float mine, float (&x)[n]) const {
        if (has_column()) result[threadIdx.x] = mine;
        __syncthreads();
#pragma unroll
        for (int j = 0; j < n; j++) x[j] = result[pack() * n + j];
        __syncthreads();
    }
    /* Maximum and sum (or, without a maximum, the sum) of each column over the blocks of a group, always merged in the same order. */
    template <bool Max, bool Direct> __device__ __forceinline__ void exchange(tn_group &group, float *max, float *sum) const {
        group.next_round();
        if (has_column()) group.write(threadIdx.x, *sum, *max);
        if (Direct && group.size <= DIRECT_BLOCKS) merge_all<Max>(group, max, sum);
        else merge_share<Max>(group, max, sum);
    }
    /* Every block merges all columns: threads with the same t % columns read every so many-th block. */
    template <bool Max> __device__ __forceinline__ void merge_all(const tn_group &group, float *max, float *sum) const {
        const int column = threadIdx.x % columns, share = threadIdx.x / columns, shares = blockDim.x / columns;
        float above = -INFINITY, total = 0;
        if (share < shares)
            group.read(column, share, shares, [&](float part, float part_max) { merge<Max>(&above, &total, part_max, part); });
        __syncthreads();
        parts[threadIdx.x] = total;
        parts[blockDim.x + threadIdx.x] = above;
        __syncthreads();
        if (!has_column()) return;
        *max = -INFINITY, *sum = 0;
        for (int i = 0; i < shares; i++)
            merge<Max>(max, sum, parts[blockDim.x + i * columns + threadIdx.x], parts[i * columns + threadIdx.x]);
    }
    /* A block merges its share of the columns and writes them down for all: a warp has a column, a lane every 32nd block. */
    template <bool Max> __device__ __forceinline__ void merge_share(const tn_group &group, float *max, float *sum) const {
        const int share = (columns + group.size - 1) / group.size, first = group.rank * share;
        for (int column = first + threadIdx.x / TN_WARP; column < first + share && column < columns; column += blockDim.x / TN_WARP) {
            float above = -INFINITY, total = 0;
            for (int block = 0; block < group.size; block += TN_WARP) {
                float part = 0, part_max = -INFINITY;
                if (block + lane < group.size) group.get(block + lane, column, &part, &part_max);
                __syncwarp();
                float most = Max ? tn_warp_max(part_max) : 0.0f;
                merge<Max>(&above, &total, most, tn_warp_sum(Max ? part * scaled_weight(part_max, most) : part));
            }
            if (lane == 0) group.put(group.size, column, total, above);
        }
        __syncwarp();
        if (has_column()) group.get(group.size, threadIdx.x, sum, max);
    }
    template <bool Max> static __device__ __forceinline__ void merge(float *max, float *sum, float part_max, float part) {
        if (!Max) {
            *sum += part;
            return;
        }
        float above = fmaxf(*max, part_max);
        *sum = *sum * scaled_weight(*max, above) + part * scaled_weight(part_max, above);
        *max = above;
    }
};

/* ---- slabs ---- */

#define SLAB_WIDEST 64
#define SLAB_WIDE 8 /* of groups: 128 bytes. Half of that costs a quarter; twice as much gives memory 4% and makes groups twice as large */

typedef struct slab_plan {
    held_plan held;
    int wide;
    int64_t groups, n_slabs, run; /* slabs of an outer index; of all; rows of a block */
} slab_plan;

/* False where the GPU can't hold a slab. */
static bool plan_slabs(const softmax_shape &s, int64_t inner_packs, int n, bool backward, const tn_device *device, slab_plan *plan) {
    const int most = held_packs(backward);
    int64_t blocks;
    plan->wide = 1;
    while (plan->wide < SLAB_WIDEST && plan->wide < inner_packs) plan->wide *= 2;
    for (;; plan->wide /= 2) {
        int64_t rows = (int64_t)most * (HELD_THREADS / plan->wide);
        blocks = (s.axis + rows - 1) / rows;
        if (blocks == 1 || (plan->wide <= SLAB_WIDE && blocks <= held_blocks(device))) break;
        if (plan->wide == 1) return false;
    }
    plan->run = (s.axis + blocks - 1) / blocks;
    plan->groups = (inner_packs + plan->wide - 1) / plan->wide;
    plan->n_slabs = s.outer * plan->groups;
    int rows_apart = HELD_THREADS / plan->wide, packs = (int)((plan->run + rows_apart - 1) / rows_apart);
    size_t scratch =
        n == 8 ? column_team<8>::scratch_bytes(plan->wide, HELD_THREADS) : column_team<4>::scratch_bytes(plan->wide, HELD_THREADS);
    plan->held =
        held_plan{ (int)blocks, packs, plan->wide * n, (size_t)packs * (backward ? 2 : 1) * HELD_THREADS * sizeof(uint4) + scratch };
    return plan->held.shared <= device->shared_bytes;
}

/* Where a thread's packs of a slab lie. */
template <int n> struct slab_place {
    int64_t at, apart; /* of pack 0, and from one to the next */
    int packs;         /* that lie inside */

    __device__ __forceinline__ slab_place(const softmax_shape &s, const column_team<n> &team, const slab_plan &plan, int64_t slab,
                                          int rank) {
        int64_t column = (slab % plan.groups * team.wide + team.pack()) * n, first = plan.run * rank, row = first + team.first_row();
        int64_t end = first + plan.run < s.axis ? first + plan.run : s.axis;
        at = (slab / plan.groups * s.axis + row) * s.inner + column;
        apart = team.rows_apart() * s.inner;
        packs = slab < plan.n_slabs && column < s.inner && row < end ? (int)((end - row + team.rows_apart() - 1) / team.rows_apart()) : 0;
    }
};

/* A thread's packs come in batches, each of which is used as soon as it is there. */
#define SLAB_BATCHES(backward) ((backward) ? 2 : 3)
#define SLAB_BATCH(backward) (HELD_PACKS / ((backward) ? 2 : 1) / SLAB_BATCHES(backward))

/* Maxima are kept times log2 e, so that an exponential is one multiply-add and one power. */
template <typename T, bool Backward>
__global__ void __launch_bounds__(HELD_THREADS, HELD_PER_MULTIPROCESSOR)
    softmax_slabs(T *to, const T *from, const T *d, softmax_shape s, slab_plan plan, tn_group group) {
    constexpr int n = tn_pack<T>::n, BATCHES = SLAB_BATCHES(Backward), BATCH = SLAB_BATCH(Backward);
    constexpr bool Direct = Backward == (sizeof(T) == 2); /* as measured: 5 to 10% one way or the other */
    extern __shared__ uint4 held[];                       /* [from, d][pack][thread], scratch */
    const int planes = plan.held.packs * HELD_THREADS;
    uint4 *slots = held + threadIdx.x, *slots_d = slots + planes;
    column_team<n> team(plan.wide, (float *)(held + (Backward ? 2 : 1) * planes));
    int64_t slab = held_join(group), n_groups = gridDim.x / group.size;
    slab_place<n> place(s, team, plan, slab, group.rank);
    auto ask = [&](int k, const slab_place<n> &of) {
        if (k >= of.packs) return;
        tn_copy_async(slots + k * HELD_THREADS, from + of.at + k * of.apart, true);
        if (Backward) tn_copy_async(slots_d + k * HELD_THREADS, d + of.at + k * of.apart, true);
    };
    for (int batch = 0; batch < BATCHES; batch++) {
        for (int k = batch * BATCH; k < (batch + 1) * BATCH; k++) ask(k, place);
        tn_copy_async_close();
    }

    for (; slab < plan.n_slabs; slab += n_groups) {
        slab_place<n> next(s, team, plan, slab + n_groups, group.rank);
        float at[n], up[n], max[n], sum[n], column_max = -INFINITY, column_sum;
#pragma unroll
        for (int j = 0; j < n; j++) max[j] = -INFINITY, sum[j] = 0;
#pragma unroll
        for (int batch = 0; batch < BATCHES; batch++) {
            if (batch == 0) tn_copy_async_wait<BATCHES - 1>();
            if (batch == 1) tn_copy_async_wait<BATCHES - 2>();
            if (batch == 2) tn_copy_async_wait<0>();
            if (!Backward) {
                uint4 largest = lowest_pack<T>();
#pragma unroll
                for (int k = batch * BATCH; k < (batch + 1) * BATCH; k++)
                    if (k < place.packs) largest = larger_pack<T>(largest, slots[k * HELD_THREADS]);
                tn_open_pack<T>(largest, at);
#pragma unroll
                for (int j = 0; j < n; j++) {
                    float above = fmaxf(max[j], at[j] * LOG2_E);
                    sum[j] *= scaled_weight(max[j], above);
                    max[j] = above;
                }
            }
#pragma unroll
            for (int k = batch * BATCH; k < (batch + 1) * BATCH; k++)
                if (k < place.packs) {
                    tn_open_pack<T>(slots[k * HELD_THREADS], at);
                    if (Backward) tn_open_pack<T>(slots_d[k * HELD_THREADS], up);
#pragma unroll
                    for (int j = 0; j < n; j++)
                        sum[j] = Backward ? fmaf(at[j], up[j], sum[j]) : sum[j] + power_of_2(fmaf(at[j], LOG2_E, -base_of(max[j])));
                }
        }
        if (!Backward) {
            float above[n];
#pragma unroll
            for (int j = 0; j < n; j++) above[j] = max[j];
            column_max = team.template gather<true>(above);
            team.spread(column_max, above);
#pragma unroll
            for (int j = 0; j < n; j++) sum[j] *= scaled_weight(max[j], above[j]);
        }
        column_sum = team.template gather<false>(sum);
        if (group.size > 1) team.template exchange<!Backward, Direct>(group, &column_max, &column_sum);
        if (!Backward) team.spread(column_max, max);
        team.spread(Backward ? column_sum : 1.0f / column_sum, sum);
#pragma unroll
        for (int batch = 0; batch < BATCHES; batch++) {
#pragma unroll 2
            for (int k = batch * BATCH; k < (batch + 1) * BATCH; k++) {
                if (k < place.packs) {
                    tn_open_pack<T>(slots[k * HELD_THREADS], at);
                    if (Backward) tn_open_pack<T>(slots_d[k * HELD_THREADS], up);
#pragma unroll
                    for (int j = 0; j < n; j++)
                        at[j] = Backward ? at[j] * (up[j] - sum[j]) : power_of_2(fmaf(at[j], LOG2_E, -max[j])) * sum[j];
                    tn_put_pack(to + place.at + k * place.apart, at);
                }
                ask(k, next);
            }
            tn_copy_async_close();
        }
        place = next;
    }
    tn_copy_async_wait<0>();
}

/* ---- plain ---- */

#define PLAIN_COLUMNS 32
#define PLAIN_SLICES 8

template <typename T> __global__ void softmax_plain_columns(T *to, const T *from, const T *d, softmax_shape s) {
    typedef tn_wide<T> W;
    __shared__ W all_max[PLAIN_SLICES][PLAIN_COLUMNS], all_sums[PLAIN_SLICES][PLAIN_COLUMNS];
    int64_t groups = (s.inner + PLAIN_COLUMNS - 1) / PLAIN_COLUMNS, slice = (s.axis + PLAIN_SLICES - 1) / PLAIN_SLICES;
    int64_t begin = threadIdx.y * slice, end = begin + slice < s.axis ? begin + slice : s.axis;
    for (int64_t block = blockIdx.x; block < s.outer * groups; block += gridDim.x) {
        int64_t column = block % groups * PLAIN_COLUMNS + threadIdx.x, base = block / groups * s.axis * s.inner + column;
        W max = -INFINITY, sum = 0, above = -INFINITY, total = 0;
        if (column >= s.inner) begin = end;
        for (int64_t i = begin; i < end && !d; i++)
            max = tn_widen(from[base + i * s.inner]) > max ? tn_widen(from[base + i * s.inner]) : max;
        for (int64_t i = begin; i < end; i++) {
            W value = tn_widen(from[base + i * s.inner]);
            sum += d ? value * tn_widen(d[base + i * s.inner]) : value == max ? (W)1 : tn_exp_of(value - max);
        }
        all_max[threadIdx.y][threadIdx.x] = max, all_sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        for (int y = 0; y < PLAIN_SLICES; y++) above = all_max[y][threadIdx.x] > above ? all_max[y][threadIdx.x] : above;
        for (int y = 0; y < PLAIN_SLICES; y++) {
            W part = all_max[y][threadIdx.x];
            total += d || part == above ? all_sums[y][threadIdx.x] : all_sums[y][threadIdx.x] * tn_exp_of(part - above);
        }
        for (int64_t i = begin; i < end; i++) {
            int64_t at = base + i * s.inner;
            W value = tn_widen(from[at]);
            to[at] = tn_narrow<T>(d ? value * (tn_widen(d[at]) - total) : tn_exp_of(value - above) / total);
        }
        begin = threadIdx.y * slice;
        __syncthreads();
    }
}

template <typename T> void launch_plain_columns(const softmax_job &job) {
    unsigned blocks = tn_blocks(job.shape.outer * ((job.shape.inner + PLAIN_COLUMNS - 1) / PLAIN_COLUMNS), 1);
    softmax_plain_columns<T>
        <<<blocks, dim3(PLAIN_COLUMNS, PLAIN_SLICES), 0, job.stream>>>((T *)job.to, (const T *)job.from, (const T *)job.d, job.shape);
}

/* ---- choice ---- */

/* What holds a slab: one block, a group on Hopper, a group, or nothing. */
typedef enum column_kernel { COLUMNS_HELD, COLUMNS_FLOW, COLUMNS_PLAIN } column_kernel;

static column_kernel plan_columns(const softmax_shape &s, int n, bool backward, const tn_device *device, slab_plan *slabs,
                                  flow_plan *flow) {
    bool held = plan_slabs(s, s.inner / n, n, backward, device, slabs);
    if (held && slabs->held.blocks == 1) return COLUMNS_HELD;
    if (plan_flow(s, n, backward, device, flow)) return COLUMNS_FLOW;
    return held ? COLUMNS_HELD : COLUMNS_PLAIN;
}

static size_t columns_workspace(const softmax_shape &s, tn_dtype dtype, const tn_device *device, bool backward) {
    int n = 16 / (int)tn_dtype_size(dtype);
    slab_plan slabs;
    flow_plan flow;
    if (device->cuda_path == TN_CUDA_PLAIN || s.inner % n != 0) return 0;
    switch (plan_columns(s, n, backward, device, &slabs, &flow)) {
    case COLUMNS_HELD: return held_workspace(slabs.held, device);
    case COLUMNS_FLOW: return flow_workspace(flow, FLOW_WIDE(backward) * n, device);
    default: return 0;
    }
}

template <typename T> cudaError_t launch_columns(const softmax_job &job) {
    T *to = (T *)job.to;
    const T *from = (const T *)job.from, *d = (const T *)job.d;
    slab_plan slabs;
    flow_plan flow;
    switch (plan_columns(job.shape, tn_pack<T>::n, d, job.device, &slabs, &flow)) {
    case COLUMNS_HELD:
        return d ? launch_held(softmax_slabs<T, true>, job, slabs.held, slabs.n_slabs, to, from, d, job.shape, slabs)
                 : launch_held(softmax_slabs<T, false>, job, slabs.held, slabs.n_slabs, to, from, d, job.shape, slabs);
    case COLUMNS_FLOW: return d ? launch_flow<T, true>(job, flow) : launch_flow<T, false>(job, flow);
    default: launch_plain_columns<T>(job); return cudaGetLastError();
    }
}

} // namespace

#endif
