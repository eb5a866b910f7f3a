/* Softmax over the tokens, in two ways. A column is a feature of a head of a batch.
 *
 * Streaming (any number of tokens): statistics of the columns first, by slices of the tokens: a thread walks every eighth token of a slice
 * with a running maximum and sum of its pack of columns, the eight of a block are merged, then a second kernel merges the slices in order.
 * After that forward and backward run as for any act, with exp(x - max) / sum as act(x). Forward reads x twice (3T, cosine 4T), backward x
 * and do twice (5T, cosine 7T): its statistic is the sum of act(x) times its gradient.
 *
 * On chip (Hopper): the columns of a pack (rotate: two packs half a row apart) stay in the shared memory of a cluster of blocks from the
 * one read to the one write, so 2T (3T) and 3T (4T). A block has a run of the tokens, a thread every so manyth of them:
 *
 *     cluster           tokens ->   | block 0        | block 1        | ...  up to 16 |
 *     shared memory     [part of a row][k][thread] packs of 16 bytes, each thread's own: it copies them in, it alone reads them
 *     statistics        thread -> lanes of a warp -> warps of a block -> blocks of the cluster, each in a fixed order
 *
 * While one block waits for its packs or for its cluster, the other blocks of the multiprocessor write theirs. */
#include "lrpe_cuda.cuh"

#include <cuda_fp16.h>

#define COLUMN_UNITS 32
#define COLUMN_SLOTS (LRPE_THREADS / COLUMN_UNITS)
#define SLAB_COLUMNS 64 /* of a block, at most: two parts of 4 packs of bf16 */

namespace {

/* ---- streaming ---- */

/* Maxima of packs, number by number, as they lie in memory. */
template <typename T> __device__ __forceinline__ uint4 lowest_pack() {
    const uint32_t word = sizeof(T) == 4 ? 0xff800000u : 0xff80ff80u;
    return make_uint4(word, word, word, word);
}
template <typename T> __device__ __forceinline__ uint32_t max_word(uint32_t a, uint32_t b) {
    if (sizeof(T) == 4) return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
    __nv_bfloat162 most = __hmax2(*reinterpret_cast<__nv_bfloat162 *>(&a), *reinterpret_cast<__nv_bfloat162 *>(&b));
    return *reinterpret_cast<uint32_t *>(&most);
}
template <typename T> __device__ __forceinline__ uint4 max_pack(const uint4 &a, const uint4 &b) {
    return make_uint4(max_word<T>(a.x, b.x), max_word<T>(a.y, b.y), max_word<T>(a.z, b.z), max_word<T>(a.w, b.w));
}
template <typename T> __device__ __forceinline__ uint4 max_lanes(uint4 pack, int packs) {
    for (int step = TN_WARP / 2; step >= packs; step /= 2)
        pack = max_pack<T>(pack, make_uint4(__shfl_xor_sync(0xffffffffu, pack.x, step), __shfl_xor_sync(0xffffffffu, pack.y, step),
                                            __shfl_xor_sync(0xffffffffu, pack.z, step), __shfl_xor_sync(0xffffffffu, pack.w, step)));
    return pack;
}

__device__ __forceinline__ float weight_of(float max, float shift) { return max == -INFINITY ? 0.0f : expf(max - shift); }

/* exp(x - max) / sum of N columns; for bf16 the sum is part of the shift, and a weight is one product and one exponential. */
template <typename T, int N> struct column_weights {
    float shift[N], scale[N];

    __device__ __forceinline__ void set(int j, float max, float sum) {
        shift[j] = sizeof(T) == 4 ? max : lrpe_column_shift(max, sum);
        scale[j] = 1.0f / sum;
    }
    __device__ __forceinline__ void apply(float *x) const {
#pragma unroll
        for (int j = 0; j < N; j++) x[j] = lrpe_weight<T>(x[j], shift[j]) * (sizeof(T) == 4 ? scale[j] : 1.0f);
    }
};

/* The head and first feature of a unit, N features of `units` per head; and the tokens of this block's slice. */
struct column_place {
    lrpe_place at;
    int64_t b;
    uint32_t slice, begin, end, first;

    __device__ __forceinline__ column_place(const lrpe_job &job, uint32_t units, uint32_t slices, uint32_t n) {
        uint32_t groups = (job.heads * units + COLUMN_UNITS - 1) / COLUMN_UNITS,
                 unit = blockIdx.x % groups * COLUMN_UNITS + threadIdx.x % COLUMN_UNITS;
        uint32_t length = (job.tokens + slices - 1) / slices;
        b = blockIdx.x / groups;
        slice = blockIdx.y;
        at.inside = unit < job.heads * units;
        at.head = at.inside ? unit / units : 0;
        at.feature = at.inside ? (unit - at.head * units) * n : 0;
        begin = slice * length;
        end = begin + length < job.tokens ? begin + length : job.tokens;
        at.token = begin + threadIdx.x / COLUMN_UNITS; /* of this thread, then every COLUMN_SLOTS further on */
        if (!at.inside) at.token = end;
        first = at.token;
    }
    __device__ __forceinline__ int64_t column_of(const lrpe_job &job, uint32_t slices) const {
        return ((b * slices + slice) * job.heads + at.head) * job.call.width + at.feature;
    }
};

template <typename T>
__global__ void __launch_bounds__(LRPE_THREADS, 2) column_slices(const __grid_constant__ lrpe_job job, float *max_parts, float *sum_parts) {
    constexpr int N = tn_pack<T>::n, Group = 4, Ahead = 2 * Group; /* a group shares one look for a new maximum; one more is under way */
    __shared__ float all_max[COLUMN_SLOTS][COLUMN_UNITS][N], all_sum[COLUMN_SLOTS][COLUMN_UNITS][N];
    const column_place place(job, (uint32_t)(job.call.width / N), gridDim.y, N);
    const uint32_t unit = threadIdx.x % COLUMN_UNITS, slot = threadIdx.x / COLUMN_UNITS;
    const int64_t step = job.call.x_stride.token * COLUMN_SLOTS;
    const T *x = (const T *)job.call.x + place.b * job.call.x_stride.batch + lrpe_offset(job.call.x_stride, place.at);
    uint4 raw[Ahead];
    float max[N], sum[N];
#pragma unroll
    for (int a = 0; a < Ahead; a++) raw[a] = tn_ask_pack(x + a * step, place.at.token + a * COLUMN_SLOTS < place.end);
#pragma unroll
    for (int j = 0; j < N; j++) max[j] = -INFINITY, sum[j] = 0;
    for (uint32_t token = place.at.token; token < place.end; token += Ahead * COLUMN_SLOTS) {
        float value[N], shift[N];
        x += Ahead * step;
#pragma unroll
        for (int a = 0; a < Ahead; a++) {
            if (token + a * COLUMN_SLOTS >= place.end) break;
            if (a % Group == 0) {
                uint4 most = raw[a];
#pragma unroll
                for (int i = 1; i < Group; i++)
                    if (token + (a + i) * COLUMN_SLOTS < place.end) most = max_pack<T>(most, raw[a + i]);
                tn_open_pack<T>(most, value);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    float above = fmaxf(max[j], value[j]);
                    shift[j] = above == -INFINITY ? 0.0f : lrpe_shift<T>(above);
                    sum[j] *= lrpe_weight<T>(max[j], shift[j]);
                    max[j] = above;
                }
            }
            tn_open_pack<T>(raw[a], value);
            raw[a] = tn_ask_pack(x + a * step, token + (a + Ahead) * COLUMN_SLOTS < place.end);
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += lrpe_weight<T>(value[j], shift[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < N; j++) all_max[slot][unit][j] = max[j], all_sum[slot][unit][j] = sum[j];
    __syncthreads();
    if (slot != 0 || !place.at.inside) return;
    int64_t column = place.column_of(job, gridDim.y);
#pragma unroll
    for (int j = 0; j < N; j++) {
        float most = all_max[0][unit][j], total = 0;
        for (int s = 1; s < COLUMN_SLOTS; s++) most = fmaxf(most, all_max[s][unit][j]);
        for (int s = 0; s < COLUMN_SLOTS; s++) total += all_sum[s][unit][j] * weight_of(all_max[s][unit][j], most);
        max_parts[column + j] = most;
        sum_parts[column + j] = total;
    }
}

/* Sum over a slice of act(x) times its gradient. */
template <typename T, int Kind>
__global__ void __launch_bounds__(LRPE_THREADS, 2) column_products(const __grid_constant__ lrpe_job job, float *parts) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1, Ahead = 2;
    __shared__ float all[COLUMN_SLOTS][COLUMN_UNITS][Parts * N];
    column_place place(job, job.packs, gridDim.y, N);
    const uint32_t unit = threadIdx.x % COLUMN_UNITS, slot = threadIdx.x / COLUMN_UNITS;
    const int64_t x_step = job.call.x_stride.token * COLUMN_SLOTS, d_step = job.call.do_stride.token * COLUMN_SLOTS,
                  angles = job.call.grid.angles;
    const T *x = (const T *)job.call.x + place.b * job.call.x_stride.batch + lrpe_offset(job.call.x_stride, place.at);
    const T *d = (const T *)job.call.d + place.b * job.call.do_stride.batch + lrpe_offset(job.call.do_stride, place.at);
    uint4 raw_x[Ahead][Parts], raw_d[Ahead][2];
#pragma unroll
    for (int a = 0; a < Ahead; a++) {
        bool wanted = place.at.token + a * COLUMN_SLOTS < place.end;
#pragma unroll
        for (int part = 0; part < Parts; part++) raw_x[a][part] = tn_ask_pack(x + a * x_step + part * angles, wanted);
#pragma unroll
        for (int part = 0; part < 2; part++) raw_d[a][part] = tn_ask_pack(d + a * d_step + part * angles, wanted);
    }
    x += Ahead * x_step;
    d += Ahead * d_step;
    lrpe_walk<T, N> walk(job, place.at, COLUMN_SLOTS);
    column_weights<T, Parts * N> weights;
    float dot[Parts * N];
#pragma unroll
    for (int j = 0; j < Parts * N; j++) {
        int64_t column = lrpe_column(job, place.b, place.at) + j / N * angles + j % N;
        weights.set(j, job.column_max[column], job.column_sum[column]);
        dot[j] = 0;
    }
    for (uint32_t token = place.at.token; token < place.end; token += Ahead * COLUMN_SLOTS) {
#pragma unroll
        for (int a = 0; a < Ahead; a++) {
            place.at.token = token + a * COLUMN_SLOTS;
            if (place.at.token >= place.end) break;
            bool more = place.at.token + Ahead * COLUMN_SLOTS < place.end;
            float value[Parts * N], upstream[2 * N], back[Parts * N];
            if (job.call.table) lrpe_table_load<N>(job, place.at, walk.sine, walk.cosine);
            else if (place.at.token != place.first) walk.to(job, place.at, false);
#pragma unroll
            for (int part = 0; part < Parts; part++) {
                tn_open_pack<T>(raw_x[a][part], value + part * N);
                raw_x[a][part] = tn_ask_pack(x + part * angles, more);
            }
#pragma unroll
            for (int part = 0; part < 2; part++) {
                tn_open_pack<T>(raw_d[a][part], upstream + part * N);
                raw_d[a][part] = tn_ask_pack(d + part * angles, more);
            }
            x += x_step;
            d += d_step;
            weights.apply(value);
            lrpe_turn_back<Kind, N>(upstream, walk.sine, walk.cosine, back);
#pragma unroll
            for (int j = 0; j < Parts * N; j++) dot[j] += value[j] * back[j];
        }
    }
#pragma unroll
    for (int j = 0; j < Parts * N; j++) all[slot][unit][j] = dot[j];
    __syncthreads();
    if (slot != 0 || !place.at.inside) return;
    float *part_of = parts + place.column_of(job, gridDim.y);
#pragma unroll
    for (int j = 0; j < Parts * N; j++) {
        float total = 0;
        for (int s = 0; s < COLUMN_SLOTS; s++) total += all[s][unit][j];
        part_of[j / N * angles + j % N] = total;
    }
}

/* A thread a column, of which a batch has `per_batch`. */
__global__ void __launch_bounds__(LRPE_THREADS) merge_statistics(const float *max_parts, const float *sum_parts, int64_t slices,
                                                                 int64_t per_batch, int64_t columns, float *max, float *sum, float *shift) {
    int64_t i = (int64_t)blockIdx.x * LRPE_THREADS + threadIdx.x, from = i / per_batch * slices * per_batch + i % per_batch;
    if (i >= columns) return;
    float most = -INFINITY, total = 0;
    for (int64_t s = 0; s < slices; s++) most = fmaxf(most, max_parts[from + s * per_batch]);
    for (int64_t s = 0; s < slices; s++) total += sum_parts[from + s * per_batch] * weight_of(max_parts[from + s * per_batch], most);
    max[i] = most;
    sum[i] = total;
    shift[i] = lrpe_column_shift(most, total);
}

__global__ void __launch_bounds__(LRPE_THREADS) merge_products(const float *parts, const float *max, const float *sum, int64_t slices,
                                                               int64_t per_batch, int64_t columns, float *shift, float *dots) {
    int64_t i = (int64_t)blockIdx.x * LRPE_THREADS + threadIdx.x, from = i / per_batch * slices * per_batch + i % per_batch;
    if (i >= columns) return;
    float total = 0;
    for (int64_t s = 0; s < slices; s++) total += parts[from + s * per_batch];
    shift[i] = lrpe_column_shift(max[i], sum[i]);
    dots[i] = total;
}

dim3 slice_blocks(const lrpe_job &job, int64_t units, int64_t slices) {
    return dim3((unsigned)((job.heads * units + COLUMN_UNITS - 1) / COLUMN_UNITS * job.call.batch), (unsigned)slices);
}

/* ---- on chip ---- */

/* What a thread of a slab works on: pack `at.feature` of tokens at.token, + step, .. below end: `count` of them. */
struct slab_place {
    lrpe_place at;
    int64_t b;
    uint32_t end, step, count, kept, pack, rank;

    __device__ __forceinline__ slab_place(const lrpe_job &job, const lrpe_slab &slab, uint32_t n) {
        uint32_t group = blockIdx.x / slab.blocks, groups = job.packs / slab.packs, row = group / groups;
        rank = blockIdx.x - group * slab.blocks;
        pack = threadIdx.x % slab.packs;
        at.feature = (group % groups * slab.packs + pack) * n;
        at.head = row % job.heads;
        b = row / job.heads;
        uint32_t begin = rank * slab.tokens;
        end = begin + slab.tokens < job.tokens ? begin + slab.tokens : job.tokens;
        step = LRPE_SLAB_THREADS / slab.packs;
        kept = (slab.tokens + step - 1) / step;
        at.token = begin + threadIdx.x / slab.packs;
        at.inside = true;
        count = at.token < end ? (end - at.token + step - 1) / step : 0;
    }
    /* Columns of a block are [part][pack][n]; this thread's first of a part. */
    template <int N> __device__ __forceinline__ int column(const lrpe_slab &slab, int part) const {
        return (part * slab.packs + (int)pack) * N;
    }
};

/* As tn_copy_async, and the 128 bytes around come into L2 with it: the neighbouring clusters want them at about the same time. */
__device__ __forceinline__ void copy_pack(uint4 *shared, const void *from, bool wanted) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0)
                 : "memory");
}

/* Starts the copies of this thread's tokens [first, last): Parts packs of each, half a row apart, `kept` of each part in a row. */
template <typename T, int Parts>
__device__ __forceinline__ void copy_in(const slab_place &place, uint32_t first, uint32_t last, uint4 *to, const T *from, int64_t half,
                                        int64_t token_stride) {
    const int64_t step = place.step * token_stride;
    const uint32_t part_packs = place.kept * LRPE_SLAB_THREADS;
    to += first * LRPE_SLAB_THREADS;
    from += first * step;
#pragma unroll 4
    for (uint32_t k = first; k < last; k++) {
#pragma unroll
        for (int part = 0; part < Parts; part++) copy_pack(to + part * part_packs, from + part * half, k < place.count);
        to += LRPE_SLAB_THREADS;
        from += step;
    }
}

/* Sums of N numbers over the lanes of a warp that have the same pack. */
template <int N> __device__ __forceinline__ void sum_lanes(float *x, int packs) {
    for (int step = TN_WARP / 2; step >= packs; step /= 2)
#pragma unroll
        for (int j = 0; j < N; j++) x[j] += __shfl_xor_sync(0xffffffffu, x[j], step);
}

struct slab_scratch {
    float of_warp[LRPE_SLAB_THREADS / TN_WARP][SLAB_COLUMNS];
    float of_block[SLAB_COLUMNS];
    float2 of_cluster[LRPE_SLAB_BLOCKS][SLAB_COLUMNS]; /* written by all blocks of the cluster */
    float result[SLAB_COLUMNS];                        /* of a column, for all threads */
    uint64_t arrived;                                  /* mbarrier: of_cluster is there */
};

/* Clusters are of sm_90; elsewhere these kernels do not run. A block pushes its two numbers of a column into the shared memory of all, and
 * an mbarrier there counts the bytes: no barrier over the cluster but the first, which says that all mbarriers are ready. */
__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void cluster_open(slab_scratch *scratch, const lrpe_slab &slab, int n_columns) {
#if __CUDA_ARCH__ >= 900
    if (slab.blocks == 1) return;
    const uint32_t bytes = slab.blocks * n_columns * (uint32_t)sizeof(float2);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;"
                     :
                     : "r"(shared_address(&scratch->arrived))
                     : "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                     :
                     : "r"(shared_address(&scratch->arrived)), "r"(bytes)
                     : "memory");
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
/* Once, by all threads, before the first push. */
__device__ __forceinline__ void cluster_ready(const lrpe_slab &slab) {
#if __CUDA_ARCH__ >= 900
    if (slab.blocks > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_push(slab_scratch *scratch, uint32_t rank, int column, uint32_t to, float a, float b) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .b32 slot, bar;\n\tmapa.shared::cluster.u32 slot, %0, %2;\n\tmapa.shared::cluster.u32 bar, %1, %2;\n\t"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [slot], {%3, %4}, [bar];\n\t}"
                 :
                 : "r"(shared_address(&scratch->of_cluster[rank][column])), "r"(shared_address(&scratch->arrived)), "r"(to), "f"(a), "f"(b)
                 : "memory");
#endif
}
__device__ __forceinline__ void cluster_receive(slab_scratch *scratch) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n\t.reg .pred there;\nwaiting:\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 there, [%0], 0;\n\t"
                 "@!there bra waiting;\n\t}"
                 :
                 : "r"(shared_address(&scratch->arrived))
                 : "memory");
#endif
}

/* Leaves this block's numbers of a column in of_cluster of all, and waits for theirs. */
__device__ __forceinline__ void cluster_exchange(slab_scratch *scratch, const lrpe_slab &slab, uint32_t rank, int column, float a,
                                                 float b) {
    if (slab.blocks == 1) {
        scratch->of_cluster[0][column] = make_float2(a, b);
        return;
    }
    for (int to = 0; to < slab.blocks; to++) cluster_push(scratch, rank, column, to, a, b);
    cluster_receive(scratch);
}

/* Leaves the warps' numbers of all columns in scratch. */
template <int Parts, int N>
__device__ __forceinline__ void put_warp(slab_scratch *scratch, const lrpe_slab &slab, const slab_place &place, const float *x) {
    if (threadIdx.x % TN_WARP < slab.packs) {
#pragma unroll
        for (int part = 0; part < Parts; part++)
#pragma unroll
            for (int j = 0; j < N; j++) scratch->of_warp[threadIdx.x / TN_WARP][place.column<N>(slab, part) + j] = x[part * N + j];
    }
    __syncthreads();
}
__device__ __forceinline__ float sum_warps(const slab_scratch *scratch, int column) {
    float total = 0;
    for (uint32_t warp = 0; warp < LRPE_SLAB_THREADS / TN_WARP; warp++) total += scratch->of_warp[warp][column];
    return total;
}

/* An exponential is made once: of a slab in bf16 it takes x's place in shared memory, times 2^14 in f16, which has three bits more than
 * bf16 down to 4e-9 of the largest and as many down to 5e-10. In f32 it is made anew. */
template <typename T> struct slab_weight {
    static constexpr float scale = sizeof(T) == 4 ? 1.0f : 0x1p14f, back = 1.0f / scale;

    static __device__ __forceinline__ float shift(float max) { return sizeof(T) == 4 ? max : fmaf(max, LRPE_LOG2_E, -14.0f); }
    template <int N> static __device__ __forceinline__ void keep(uint4 *place, const float *weight) {
        if constexpr (sizeof(T) == 2) {
            __half2 pair[N / 2];
#pragma unroll
            for (int j = 0; j < N; j += 2) pair[j / 2] = __floats2half2_rn(weight[j], weight[j + 1]);
            *place = *reinterpret_cast<uint4 *>(pair);
        }
    }
    /* What keep() left, or of f32 the exponential of x. */
    template <int N> static __device__ __forceinline__ void open(const uint4 &place, const float *shift, float *weight) {
        if constexpr (sizeof(T) == 2) {
            const uint4 raw = place;
            const __half2 *pair = reinterpret_cast<const __half2 *>(&raw);
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                float2 both = __half22float2(pair[j / 2]);
                weight[j] = both.x, weight[j + 1] = both.y;
            }
        } else {
            tn_open_pack<T>(place, weight);
#pragma unroll
            for (int j = 0; j < N; j++) weight[j] = lrpe_weight<T>(weight[j], shift[j]);
        }
    }
};

/* Where the statistics of column `i` of a block lie. */
template <int N>
__device__ __forceinline__ int64_t slab_column(const lrpe_job &job, const lrpe_slab &slab, const slab_place &place, int i) {
    int part = i / (slab.packs * N);
    return lrpe_column(job, place.b, place.at) - place.pack * N + (i - part * slab.packs * N) + part * job.call.grid.angles;
}

template <typename T, int Kind>
__global__ void __launch_bounds__(LRPE_SLAB_THREADS, 5)
    slab_forward(const __grid_constant__ lrpe_job job, const __grid_constant__ lrpe_slab slab) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1;
    extern __shared__ uint4 space[];
    __shared__ slab_scratch scratch;
    slab_place place(job, slab, N);
    const int64_t angles = job.call.grid.angles;
    const int n_columns = Parts * slab.packs * N, mine = (int)threadIdx.x;
    constexpr uint32_t threads = LRPE_SLAB_THREADS;
    const uint32_t part_packs = place.kept * threads;
    uint4 *own = space + mine;
    const T *x = (const T *)job.call.x + place.b * job.call.x_stride.batch + lrpe_offset(job.call.x_stride, place.at);
    copy_in<T, Parts>(place, 0, place.kept, own, x, angles, job.call.x_stride.token);
    tn_copy_async_close();
    cluster_open(&scratch, slab, n_columns);
    lrpe_walk<T, N> walk(job, place.at, place.step);
    tn_copy_async_wait<0>();

    float max[Parts * N], sum[Parts * N], value[Parts * N];
    uint4 most[Parts];
#pragma unroll
    for (int part = 0; part < Parts; part++) most[part] = lowest_pack<T>();
    for (uint32_t k = 0; k < place.count; k++)
#pragma unroll
        for (int part = 0; part < Parts; part++) most[part] = max_pack<T>(most[part], own[part * part_packs + k * threads]);
#pragma unroll
    for (int part = 0; part < Parts; part++) tn_open_pack<T>(max_lanes<T>(most[part], slab.packs), max + part * N);
    put_warp<Parts, N>(&scratch, slab, place, max);
    if (mine < n_columns) {
        float above = -INFINITY;
        for (uint32_t warp = 0; warp < LRPE_SLAB_THREADS / TN_WARP; warp++) above = fmaxf(above, scratch.of_warp[warp][mine]);
        scratch.of_block[mine] = above;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < Parts * N; j++) {
        float above = scratch.of_block[place.column<N>(slab, j / N) + j % N];
        max[j] = slab_weight<T>::shift(above == -INFINITY ? 0.0f : above);
        sum[j] = 0;
    }
    for (uint32_t k = 0; k < place.count; k++) {
#pragma unroll
        for (int part = 0; part < Parts; part++) {
            uint4 *pack = own + part * part_packs + k * threads;
            tn_open_pack<T>(*pack, value);
#pragma unroll
            for (int j = 0; j < N; j++) {
                value[j] = lrpe_weight<T>(value[j], max[part * N + j]);
                sum[part * N + j] += value[j];
            }
            slab_weight<T>::template keep<N>(pack, value);
        }
    }
    sum_lanes<Parts * N>(sum, slab.packs);
    put_warp<Parts, N>(&scratch, slab, place, sum);
    cluster_ready(slab);
    if (mine < n_columns) {
        const float own_max = scratch.of_block[mine];
        float total = sum_warps(&scratch, mine) * slab_weight<T>::back;
        cluster_exchange(&scratch, slab, place.rank, mine, own_max, total);
        float above = -INFINITY;
        for (int rank = 0; rank < slab.blocks; rank++) above = fmaxf(above, scratch.of_cluster[rank][mine].x);
        total = 0;
        for (int rank = 0; rank < slab.blocks; rank++)
            total += scratch.of_cluster[rank][mine].y * weight_of(scratch.of_cluster[rank][mine].x, above);
        scratch.result[mine] = slab_weight<T>::back * weight_of(own_max, above) / total;
        if (job.call.max && place.rank == 0) { /* kept for backward */
            int64_t column = slab_column<N>(job, slab, place, mine);
            ((float *)job.call.max)[column] = above;
            ((float *)job.call.sum)[column] = total;
        }
    }
    __syncthreads();

#pragma unroll
    for (int j = 0; j < Parts * N; j++) sum[j] = scratch.result[place.column<N>(slab, j / N) + j % N];
    T *o = (T *)job.call.o + place.b * job.call.o_stride.batch + lrpe_offset(job.call.o_stride, place.at);
    for (uint32_t k = 0; k < place.count; k++) {
        float out[2 * N];
#pragma unroll
        for (int part = 0; part < Parts; part++)
            slab_weight<T>::template open<N>(own[part * part_packs + k * threads], max + part * N, value + part * N);
#pragma unroll
        for (int j = 0; j < Parts * N; j++) value[j] *= sum[j];
        if (k) walk.to(job, place.at, false);
        if (job.call.table && place.b == 0) lrpe_table_store<N>(job, place.at, walk.sine, walk.cosine);
        lrpe_turn<Kind, N>(value, walk.sine, walk.cosine, out);
        tn_put_pack(o, out);
        tn_put_pack(o + angles, out + N);
        o += place.step * job.call.o_stride.token;
        place.at.token += place.step;
    }
}

/* act(x) and its gradient of one token. */
template <typename T, int Kind, int N, int Parts>
__device__ __forceinline__ void slab_token(const uint4 *own, uint32_t part_packs, const column_weights<T, Parts * N> &weights,
                                           const float *sine, const float *cosine, float *value, float *back) {
    float upstream[2 * N];
#pragma unroll
    for (int part = 0; part < Parts; part++) tn_open_pack<T>(own[part * part_packs], value + part * N);
#pragma unroll
    for (int part = 0; part < 2; part++) tn_open_pack<T>(own[(Parts + part) * part_packs], upstream + part * N);
    weights.apply(value);
    lrpe_turn_back<Kind, N>(upstream, sine, cosine, back);
}

/* First the sums, with the tokens in order; then dx, back from the last. */
template <typename T, int Kind, int Resident>
__global__ void __launch_bounds__(LRPE_SLAB_THREADS, Resident)
    slab_backward(const __grid_constant__ lrpe_job job, const __grid_constant__ lrpe_slab slab) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1;
    extern __shared__ uint4 space[];
    __shared__ slab_scratch scratch;
    slab_place place(job, slab, N);
    const int64_t angles = job.call.grid.angles, column = lrpe_column(job, place.b, place.at);
    const int n_columns = Parts * slab.packs * N, mine = (int)threadIdx.x;
    constexpr uint32_t threads = LRPE_SLAB_THREADS;
    const uint32_t part_packs = place.kept * threads;
    uint4 *own = space + mine;
    const T *x = (const T *)job.call.x + place.b * job.call.x_stride.batch + lrpe_offset(job.call.x_stride, place.at);
    const T *d = (const T *)job.call.d + place.b * job.call.do_stride.batch + lrpe_offset(job.call.do_stride, place.at);
    const uint32_t half = (place.kept + 1) / 2; /* the first half of the tokens is worked on while the second is under way */
#pragma unroll 1
    for (int which = 0; which < 2; which++) {
        uint32_t from = which ? half : 0, to = which ? place.kept : half;
        copy_in<T, Parts>(place, from, to, own, x, angles, job.call.x_stride.token);
        copy_in<T, 2>(place, from, to, own + Parts * part_packs, d, angles, job.call.do_stride.token);
        tn_copy_async_close();
    }
    cluster_open(&scratch, slab, n_columns);
    column_weights<T, Parts * N> weights;
#pragma unroll
    for (int part = 0; part < Parts; part++)
#pragma unroll
        for (int j = 0; j < N; j += 4) {
            float max[4], sum[4];
            tn_open_pack<float>(tn_ask_pack(job.column_max + column + part * angles + j, true), max);
            tn_open_pack<float>(tn_ask_pack(job.column_sum + column + part * angles + j, true), sum);
#pragma unroll
            for (int i = 0; i < 4; i++) weights.set(part * N + j + i, max[i], sum[i]);
        }
    lrpe_walk<T, N> walk(job, place.at, place.step);
    tn_copy_async_wait<1>();

    float dot[Parts * N], value[Parts * N], back[Parts * N];
#pragma unroll
    for (int j = 0; j < Parts * N; j++) dot[j] = 0;
    for (uint32_t k = 0; k < place.count; k++) {
        if (k == half) tn_copy_async_wait<0>();
        if (job.call.table) lrpe_table_load<N>(job, place.at, walk.sine, walk.cosine);
        else if (k) walk.to(job, place.at, false);
        slab_token<T, Kind, N, Parts>(own + k * threads, part_packs, weights, walk.sine, walk.cosine, value, back);
#pragma unroll
        for (int j = 0; j < Parts * N; j++) dot[j] += value[j] * back[j];
        place.at.token += place.step;
    }
    tn_copy_async_wait<0>(); /* of threads without a token in the second half, too */
    sum_lanes<Parts * N>(dot, slab.packs);
    put_warp<Parts, N>(&scratch, slab, place, dot);
    cluster_ready(slab);
    if (mine < n_columns) {
        float total = sum_warps(&scratch, mine);
        cluster_exchange(&scratch, slab, place.rank, mine, total, 0);
        total = 0;
        for (int rank = 0; rank < slab.blocks; rank++) total += scratch.of_cluster[rank][mine].x;
        scratch.result[mine] = total;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < Parts * N; j++) dot[j] = scratch.result[place.column<N>(slab, j / N) + j % N];

    place.at.token -= place.step; /* of the last token, where there is one */
    T *dx = (T *)job.call.dx + place.b * job.call.dx_stride.batch + lrpe_offset(job.call.dx_stride, place.at);
    for (uint32_t k = place.count; k-- > 0;) {
        if (k + 1 < place.count) {
            if (job.call.table) lrpe_table_load<N>(job, place.at, walk.sine, walk.cosine);
            else walk.to(job, place.at, true);
        }
        slab_token<T, Kind, N, Parts>(own + k * threads, part_packs, weights, walk.sine, walk.cosine, value, back);
#pragma unroll
        for (int j = 0; j < Parts * N; j++) back[j] = value[j] * (back[j] - dot[j]);
#pragma unroll
        for (int part = 0; part < Parts; part++) tn_put_pack(dx + part * angles, back + part * N);
        dx -= place.step * job.call.dx_stride.token;
        place.at.token -= place.step;
    }
}

cudaError_t launch_slab(void (*kernel)(lrpe_job, lrpe_slab), const lrpe_job &job, const lrpe_slab &slab, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)slab.bytes);
    if (error == cudaSuccess && slab.blocks > 8) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)slab.blocks;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(job.call.batch * job.heads * (job.packs / slab.packs) * slab.blocks));
    config.blockDim = dim3(LRPE_SLAB_THREADS);
    config.dynamicSmemBytes = slab.bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = slab.blocks > 1 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, job, slab);
}

} // namespace

cudaError_t lrpe_column_statistics(const lrpe_job &job, int64_t slices, float *partials, float *max, float *sum, float *shift,
                                   cudaStream_t stream) {
    int64_t per_batch = (int64_t)job.heads * job.call.width, columns = job.call.batch * per_batch;
    float *sum_parts = partials + slices * columns;
    auto kernel = job.call.dtype == TN_F32 ? column_slices<float> : column_slices<tn_cuda_bf16>;
    dim3 blocks = slice_blocks(job, job.call.width / (job.call.dtype == TN_F32 ? 4 : 8), slices);
    kernel<<<blocks, LRPE_THREADS, 0, stream>>>(job, partials, sum_parts);
    merge_statistics<<<tn_blocks(columns, LRPE_THREADS), LRPE_THREADS, 0, stream>>>(partials, sum_parts, slices, per_batch, columns, max,
                                                                                    sum, shift);
    return cudaGetLastError();
}

cudaError_t lrpe_column_products(const lrpe_job &job, int64_t slices, float *partials, float *shift, float *dots, cudaStream_t stream) {
    int64_t per_batch = (int64_t)job.heads * job.call.width, columns = job.call.batch * per_batch;
    bool rotate = job.call.kind == TN_ROTATE, f32 = job.call.dtype == TN_F32;
    auto kernel = f32 ? (rotate ? column_products<float, TN_ROTATE> : column_products<float, TN_COSINE>)
                      : (rotate ? column_products<tn_cuda_bf16, TN_ROTATE> : column_products<tn_cuda_bf16, TN_COSINE>);
    kernel<<<slice_blocks(job, job.packs, slices), LRPE_THREADS, 0, stream>>>(job, partials);
    merge_products<<<tn_blocks(columns, LRPE_THREADS), LRPE_THREADS, 0, stream>>>(partials, job.column_max, job.column_sum, slices,
                                                                                  per_batch, columns, shift, dots);
    return cudaGetLastError();
}

cudaError_t lrpe_forward_on_chip(const lrpe_job &job, const lrpe_slab &slab, cudaStream_t stream) {
    bool rotate = job.call.kind == TN_ROTATE;
    if (job.call.dtype == TN_F32)
        return launch_slab(rotate ? slab_forward<float, TN_ROTATE> : slab_forward<float, TN_COSINE>, job, slab, stream);
    return launch_slab(rotate ? slab_forward<tn_cuda_bf16, TN_ROTATE> : slab_forward<tn_cuda_bf16, TN_COSINE>, job, slab, stream);
}

cudaError_t lrpe_backward_on_chip(const lrpe_job &job, const lrpe_slab &slab, cudaStream_t stream) {
    bool rotate = job.call.kind == TN_ROTATE;
    if (job.call.dtype == TN_F32)
        return launch_slab(rotate ? slab_backward<float, TN_ROTATE, 4> : slab_backward<float, TN_COSINE, 4>, job, slab, stream);
    if (slab.crowded) return launch_slab(slab_backward<tn_cuda_bf16, TN_ROTATE, 5>, job, slab, stream);
    return launch_slab(rotate ? slab_backward<tn_cuda_bf16, TN_ROTATE, 4> : slab_backward<tn_cuda_bf16, TN_COSINE, 4>, job, slab, stream);
}
