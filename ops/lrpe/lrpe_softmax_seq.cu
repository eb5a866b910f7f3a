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

#define COLUMN_UNITS 32
#define COLUMN_SLOTS (LRPE_THREADS / COLUMN_UNITS)
#define SLAB_MOST_THREADS 512
#define SLAB_MOST_COLUMNS 64 /* of a block: two parts of up to 4 packs of bf16 */

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
        float log2_sum;
        asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2_sum) : "f"(sum));
        shift[j] = sizeof(T) == 4 ? max : fmaf(max, LRPE_LOG2_E, log2_sum);
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
    int64_t b, first_column;
    uint32_t slice, begin, end;

    __device__ __forceinline__ column_place(const lrpe_job &job, uint32_t units, uint32_t slices, uint32_t n) {
        uint32_t groups = (job.heads * units + COLUMN_UNITS - 1) / COLUMN_UNITS, unit = blockIdx.x % groups * COLUMN_UNITS + threadIdx.x % COLUMN_UNITS;
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
    }
    __device__ __forceinline__ int64_t column_of(const lrpe_job &job, uint32_t slices) const {
        return ((b * slices + slice) * job.heads + at.head) * job.call.width + at.feature;
    }
};

template <typename T> __global__ void __launch_bounds__(LRPE_THREADS, 3) column_slices(const __grid_constant__ lrpe_job job, float *max_parts, float *sum_parts) {
    constexpr int N = tn_pack<T>::n, Ahead = 4;
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
        float value[N];
        x += Ahead * step;
        uint4 most = lowest_pack<T>();
#pragma unroll
        for (int a = 0; a < Ahead; a++)
            if (token + a * COLUMN_SLOTS < place.end) most = max_pack<T>(most, raw[a]);
        tn_open_pack<T>(most, value);
        float shift[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            float above = fmaxf(max[j], value[j]);
            shift[j] = above == -INFINITY ? 0.0f : lrpe_shift<T>(above);
            if (above > max[j]) sum[j] *= lrpe_weight<T>(max[j], shift[j]);
            max[j] = above;
        }
#pragma unroll
        for (int a = 0; a < Ahead; a++) {
            if (token + a * COLUMN_SLOTS >= place.end) break;
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
template <typename T, int Kind> __global__ void __launch_bounds__(LRPE_THREADS, 2) column_products(const __grid_constant__ lrpe_job job, float *parts) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1, Ahead = 2;
    __shared__ float all[COLUMN_SLOTS][COLUMN_UNITS][Parts * N];
    column_place place(job, job.packs, gridDim.y, N);
    const uint32_t unit = threadIdx.x % COLUMN_UNITS, slot = threadIdx.x / COLUMN_UNITS;
    const int64_t x_step = job.call.x_stride.token * COLUMN_SLOTS, d_step = job.call.do_stride.token * COLUMN_SLOTS, angles = job.call.grid.angles;
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
            else walk.reach(job, place.at);
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

/* A thread a column; `per_batch` columns. */
__global__ void __launch_bounds__(LRPE_THREADS)
    merge_statistics(const float *max_parts, const float *sum_parts, int64_t slices, int64_t per_batch, int64_t columns, float *max, float *sum) {
    int64_t i = (int64_t)blockIdx.x * LRPE_THREADS + threadIdx.x, from = i / per_batch * slices * per_batch + i % per_batch;
    if (i >= columns) return;
    float most = -INFINITY, total = 0;
    for (int64_t s = 0; s < slices; s++) most = fmaxf(most, max_parts[from + s * per_batch]);
    for (int64_t s = 0; s < slices; s++) total += sum_parts[from + s * per_batch] * weight_of(max_parts[from + s * per_batch], most);
    max[i] = most;
    sum[i] = total;
}

__global__ void __launch_bounds__(LRPE_THREADS) merge_products(const float *parts, int64_t slices, int64_t per_batch, int64_t columns, float *dots) {
    int64_t i = (int64_t)blockIdx.x * LRPE_THREADS + threadIdx.x, from = i / per_batch * slices * per_batch + i % per_batch;
    if (i >= columns) return;
    float total = 0;
    for (int64_t s = 0; s < slices; s++) total += parts[from + s * per_batch];
    dots[i] = total;
}

dim3 slice_blocks(const lrpe_job &job, int64_t units, int64_t slices) {
    return dim3((unsigned)((job.heads * units + COLUMN_UNITS - 1) / COLUMN_UNITS * job.call.batch), (unsigned)slices);
}

/* ---- on chip ---- */

/* Clusters of blocks (sm_90); where there are none these kernels do not run. */
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}
/* What the cluster's threads wrote to shared memory before they arrived is seen after the wait. */
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/* What lies at `shared` in the block of that rank. */
__device__ __forceinline__ float cluster_read(const float *shared, uint32_t rank) {
    float x = 0;
#if __CUDA_ARCH__ >= 900
    uint32_t at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((uint32_t)__cvta_generic_to_shared(shared)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
#endif
    return x;
}

/* What a thread of a slab works on: pack `at.feature` of tokens at.token, + step, .. below end. */
struct slab_place {
    lrpe_place at;
    int64_t b;
    uint32_t begin, end, step, kept, pack, rank;

    __device__ __forceinline__ slab_place(const lrpe_job &job, const lrpe_slab &slab, uint32_t n) {
        rank = cluster_rank();
        uint32_t group = blockIdx.x / slab.blocks, groups = job.packs / slab.packs, row = group / groups;
        pack = threadIdx.x % slab.packs;
        at.feature = (group % groups * slab.packs + pack) * n;
        at.head = row % job.heads;
        b = row / job.heads;
        begin = rank * slab.tokens;
        end = begin + slab.tokens < job.tokens ? begin + slab.tokens : job.tokens;
        step = slab.threads / slab.packs;
        kept = (slab.tokens + step - 1) / step;
        at.token = begin + threadIdx.x / slab.packs;
        at.inside = true;
    }
};

/* Starts the copies of this thread's tokens: Parts packs of each, half a row apart, `kept` of each part in a row. */
template <typename T, int Parts>
__device__ __forceinline__ void copy_in(const slab_place &place, uint4 *to, const T *from, int64_t half, int64_t token_stride) {
    const int64_t step = place.step * token_stride;
    const uint32_t part_packs = place.kept * blockDim.x;
    uint32_t token = place.at.token;
#pragma unroll 4
    for (uint32_t k = 0; k < place.kept; k++) {
#pragma unroll
        for (int part = 0; part < Parts; part++) tn_copy_async(to + part * part_packs, from + part * half, token < place.end);
        to += blockDim.x;
        from += step;
        token += place.step;
    }
}

/* Sums of N numbers over the lanes of a warp that have the same pack. */
template <int N> __device__ __forceinline__ void sum_lanes(float *x, int packs) {
    for (int step = TN_WARP / 2; step >= packs; step /= 2)
#pragma unroll
        for (int j = 0; j < N; j++) x[j] += __shfl_xor_sync(0xffffffffu, x[j], step);
}
/* Columns of a block, [part][pack][N]; this thread's first of a part. */
template <int N> __device__ __forceinline__ int slab_column(const lrpe_slab &slab, const slab_place &place, int part) {
    return (part * slab.packs + (int)place.pack) * N;
}

struct slab_scratch {
    float of_warp[SLAB_MOST_THREADS / TN_WARP][SLAB_MOST_COLUMNS];
    float of_block[2][SLAB_MOST_COLUMNS]; /* read by the other blocks of the cluster */
    float result[2][SLAB_MOST_COLUMNS];
};

/* Leaves the warps' numbers of all columns in scratch. */
template <int Parts, int N> __device__ __forceinline__ void put_warp(slab_scratch *scratch, const lrpe_slab &slab, const slab_place &place, const float *x) {
    __syncthreads();
    if (threadIdx.x % TN_WARP < slab.packs) {
#pragma unroll
        for (int part = 0; part < Parts; part++)
#pragma unroll
            for (int j = 0; j < N; j++) scratch->of_warp[threadIdx.x / TN_WARP][slab_column<N>(slab, place, part) + j] = x[part * N + j];
    }
    __syncthreads();
}

/* Maximum and sum over the cluster, into result[0] and result[1]; rank 0 keeps them for backward. */
__device__ void merge_slab(slab_scratch *scratch, const lrpe_slab &slab, int column, int n_columns, float *kept_max, float *kept_sum) {
    cluster_arrive();
    cluster_wait();
    if (column < n_columns) {
        float max[16], sum[16], most = -INFINITY, total = 0;
#pragma unroll
        for (int rank = 0; rank < 16; rank++) {
            bool there = rank < slab.blocks;
            max[rank] = there ? cluster_read(&scratch->of_block[0][column], rank) : -INFINITY;
            sum[rank] = there ? cluster_read(&scratch->of_block[1][column], rank) : 0.0f;
            most = fmaxf(most, max[rank]);
        }
#pragma unroll
        for (int rank = 0; rank < 16; rank++) total += sum[rank] * weight_of(max[rank], most);
        scratch->result[0][column] = most;
        scratch->result[1][column] = total;
        if (kept_max) *kept_max = most, *kept_sum = total;
    }
    __syncthreads();
    cluster_arrive(); /* of_block may go */
}

template <typename T, int Kind, int Threads, int Blocks>
__global__ void __launch_bounds__(Threads, Blocks) slab_forward(const __grid_constant__ lrpe_job job, const __grid_constant__ lrpe_slab slab) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1;
    extern __shared__ uint4 space[];
    __shared__ slab_scratch scratch;
    slab_place place(job, slab, N);
    const int64_t angles = job.call.grid.angles;
    const int n_columns = Parts * slab.packs * N;
    const T *x = (const T *)job.call.x + place.b * job.call.x_stride.batch + lrpe_offset(job.call.x_stride, place.at);
    uint4 *own = space + threadIdx.x;
    const uint32_t part_packs = place.kept * blockDim.x;
    copy_in<T, Parts>(place, own, x, angles, job.call.x_stride.token);
    tn_copy_async_close();
    const uint32_t first = place.at.token;
    tn_copy_async_wait<0>();

    float max[Parts * N], value[Parts * N];
#pragma unroll
    for (int part = 0; part < Parts; part++) {
        uint4 most = lowest_pack<T>();
        for (uint32_t k = 0, token = first; token < place.end; k++, token += place.step) most = max_pack<T>(most, own[part * part_packs + k * blockDim.x]);
        tn_open_pack<T>(max_lanes<T>(most, slab.packs), max + part * N);
    }
    put_warp<Parts, N>(&scratch, slab, place, max);
    if ((int)threadIdx.x < n_columns) {
        float most = -INFINITY;
        for (uint32_t warp = 0; warp < blockDim.x / TN_WARP; warp++) most = fmaxf(most, scratch.of_warp[warp][threadIdx.x]);
        scratch.of_block[0][threadIdx.x] = most;
    }
    __syncthreads();
    float sum[Parts * N];
#pragma unroll
    for (int j = 0; j < Parts * N; j++) {
        float most = scratch.of_block[0][slab_column<N>(slab, place, j / N) + j % N];
        max[j] = most == -INFINITY ? 0.0f : lrpe_shift<T>(most);
        sum[j] = 0;
    }
    for (uint32_t k = 0, token = first; token < place.end; k++, token += place.step) {
#pragma unroll
        for (int part = 0; part < Parts; part++) tn_open_pack<T>(own[part * part_packs + k * blockDim.x], value + part * N);
#pragma unroll
        for (int j = 0; j < Parts * N; j++) sum[j] += lrpe_weight<T>(value[j], max[j]);
    }
    sum_lanes<Parts * N>(sum, slab.packs);
    put_warp<Parts, N>(&scratch, slab, place, sum);
    int mine = (int)threadIdx.x;
    float *kept_max = NULL, *kept_sum = NULL;
    if (mine < n_columns) {
        float total = 0;
        for (uint32_t warp = 0; warp < blockDim.x / TN_WARP; warp++) total += scratch.of_warp[warp][mine];
        scratch.of_block[1][mine] = total;
        if (job.call.max && place.rank == 0) {
            int in_part = mine % (slab.packs * N);
            int64_t column = (place.b * job.heads + place.at.head) * job.call.width + (place.at.feature - place.pack * N) + in_part + mine / (slab.packs * N) * angles;
            kept_max = (float *)job.call.max + column;
            kept_sum = (float *)job.call.sum + column;
        }
    }
    merge_slab(&scratch, slab, mine, n_columns, kept_max, kept_sum);

    column_weights<T, Parts * N> weights;
#pragma unroll
    for (int j = 0; j < Parts * N; j++) {
        int column = slab_column<N>(slab, place, j / N) + j % N;
        weights.set(j, scratch.result[0][column], scratch.result[1][column]);
    }
    T *o = (T *)job.call.o + place.b * job.call.o_stride.batch + lrpe_offset(job.call.o_stride, place.at);
    lrpe_walk<T, N> walk(job, place.at, place.step);
    for (uint32_t k = 0; place.at.token < place.end; k++, place.at.token += place.step) {
        float out[2 * N];
#pragma unroll
        for (int part = 0; part < Parts; part++) tn_open_pack<T>(own[part * part_packs + k * blockDim.x], value + part * N);
        weights.apply(value);
        walk.reach(job, place.at);
        if (job.call.table && place.b == 0) lrpe_table_store<N>(job, place.at, walk.sine, walk.cosine);
        lrpe_turn<Kind, N>(value, walk.sine, walk.cosine, out);
        tn_put_pack(o, out);
        tn_put_pack(o + angles, out + N);
        o += place.step * job.call.o_stride.token;
    }
    cluster_wait(); /* others may still be reading of_block */
}

template <typename T, int Kind, int Threads, int Blocks>
__global__ void __launch_bounds__(Threads, Blocks) slab_backward(const __grid_constant__ lrpe_job job, const __grid_constant__ lrpe_slab slab) {
    constexpr int N = tn_pack<T>::n, Parts = Kind == TN_ROTATE ? 2 : 1;
    extern __shared__ uint4 space[];
    __shared__ slab_scratch scratch;
    slab_place place(job, slab, N);
    const int64_t angles = job.call.grid.angles;
    const int n_columns = Parts * slab.packs * N;
    const T *x = (const T *)job.call.x + place.b * job.call.x_stride.batch + lrpe_offset(job.call.x_stride, place.at);
    const T *d = (const T *)job.call.d + place.b * job.call.do_stride.batch + lrpe_offset(job.call.do_stride, place.at);
    uint4 *own = space + threadIdx.x;
    const uint32_t part_packs = place.kept * blockDim.x, first = place.at.token;
    copy_in<T, Parts>(place, own, x, angles, job.call.x_stride.token);
    copy_in<T, 2>(place, own + Parts * part_packs, d, angles, job.call.do_stride.token);
    tn_copy_async_close();
    column_weights<T, Parts * N> weights;
    const int64_t column = lrpe_column(job, place.b, place.at);
#pragma unroll
    for (int j = 0; j < Parts * N; j++) weights.set(j, job.column_max[column + j / N * angles + j % N], job.column_sum[column + j / N * angles + j % N]);
    tn_copy_async_wait<0>();

    float dot[Parts * N], value[Parts * N], back[Parts * N];
#pragma unroll
    for (int j = 0; j < Parts * N; j++) dot[j] = 0;
    T *dx = (T *)job.call.dx + place.b * job.call.dx_stride.batch + lrpe_offset(job.call.dx_stride, place.at);
    /* First the sums, then, with them, dx. */
    lrpe_walk<T, N> walk(job, place.at, place.step);
    for (int pass = 0; pass < 2; pass++) {
        place.at.token = first;
        for (uint32_t k = 0; place.at.token < place.end; k++, place.at.token += place.step) {
            float upstream[2 * N];
#pragma unroll
            for (int part = 0; part < Parts; part++) tn_open_pack<T>(own[part * part_packs + k * blockDim.x], value + part * N);
#pragma unroll
            for (int part = 0; part < 2; part++) tn_open_pack<T>(own[(Parts + part) * part_packs + k * blockDim.x], upstream + part * N);
            weights.apply(value);
            if (job.call.table) lrpe_table_load<N>(job, place.at, walk.sine, walk.cosine);
            else walk.reach(job, place.at);
            lrpe_turn_back<Kind, N>(upstream, walk.sine, walk.cosine, back);
            if (pass == 0) {
#pragma unroll
                for (int j = 0; j < Parts * N; j++) dot[j] += value[j] * back[j];
            } else {
#pragma unroll
                for (int j = 0; j < Parts * N; j++) back[j] = value[j] * (back[j] - dot[j]);
#pragma unroll
                for (int part = 0; part < Parts; part++) tn_put_pack(dx + part * angles, back + part * N);
                dx += place.step * job.call.dx_stride.token;
            }
        }
        if (pass == 1) break;
        sum_lanes<Parts * N>(dot, slab.packs);
        put_warp<Parts, N>(&scratch, slab, place, dot);
        if ((int)threadIdx.x < n_columns) {
            float total = 0;
            for (uint32_t warp = 0; warp < blockDim.x / TN_WARP; warp++) total += scratch.of_warp[warp][threadIdx.x];
            scratch.of_block[0][threadIdx.x] = total;
        }
        cluster_arrive();
        cluster_wait();
        if ((int)threadIdx.x < n_columns) {
            float total = 0;
#pragma unroll
            for (int rank = 0; rank < 16; rank++) total += rank < slab.blocks ? cluster_read(&scratch.of_block[0][threadIdx.x], rank) : 0.0f;
            scratch.result[0][threadIdx.x] = total;
        }
        __syncthreads();
        cluster_arrive(); /* of_block may go */
#pragma unroll
        for (int j = 0; j < Parts * N; j++) dot[j] = scratch.result[0][slab_column<N>(slab, place, j / N) + j % N];
    }
    cluster_wait();
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
    config.blockDim = dim3((unsigned)slab.threads);
    config.dynamicSmemBytes = slab.bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, job, slab);
}

}  // namespace

cudaError_t lrpe_column_statistics(const lrpe_job &job, int64_t slices, float *partials, float *max, float *sum, cudaStream_t stream) {
    int64_t per_batch = (int64_t)job.heads * job.call.width, columns = job.call.batch * per_batch;
    float *sum_parts = partials + slices * columns;
    if (job.call.dtype == TN_F32) column_slices<float><<<slice_blocks(job, job.call.width / 4, slices), LRPE_THREADS, 0, stream>>>(job, partials, sum_parts);
    else column_slices<tn_cuda_bf16><<<slice_blocks(job, job.call.width / 8, slices), LRPE_THREADS, 0, stream>>>(job, partials, sum_parts);
    merge_statistics<<<tn_blocks(columns, LRPE_THREADS), LRPE_THREADS, 0, stream>>>(partials, sum_parts, slices, per_batch, columns, max, sum);
    return cudaGetLastError();
}

cudaError_t lrpe_column_products(const lrpe_job &job, int64_t slices, float *partials, float *dots, cudaStream_t stream) {
    int64_t per_batch = (int64_t)job.heads * job.call.width, columns = job.call.batch * per_batch;
    bool rotate = job.call.kind == TN_ROTATE, f32 = job.call.dtype == TN_F32;
    dim3 blocks = slice_blocks(job, job.packs, slices);
    auto kernel = f32 ? (rotate ? column_products<float, TN_ROTATE> : column_products<float, TN_COSINE>)
                      : (rotate ? column_products<tn_cuda_bf16, TN_ROTATE> : column_products<tn_cuda_bf16, TN_COSINE>);
    kernel<<<blocks, LRPE_THREADS, 0, stream>>>(job, partials);
    merge_products<<<tn_blocks(columns, LRPE_THREADS), LRPE_THREADS, 0, stream>>>(partials, slices, per_batch, columns, dots);
    return cudaGetLastError();
}

cudaError_t lrpe_forward_on_chip(const lrpe_job &job, const lrpe_slab &slab, cudaStream_t stream) {
    bool rotate = job.call.kind == TN_ROTATE;
    if (job.call.dtype == TN_F32) return launch_slab(rotate ? slab_forward<float, TN_ROTATE, LRPE_THREADS, 2> : slab_forward<float, TN_COSINE, LRPE_THREADS, 2>, job, slab, stream);
    return launch_slab(rotate ? slab_forward<tn_cuda_bf16, TN_ROTATE, LRPE_THREADS, 2> : slab_forward<tn_cuda_bf16, TN_COSINE, LRPE_THREADS, 2>, job, slab, stream);
}

cudaError_t lrpe_backward_on_chip(const lrpe_job &job, const lrpe_slab &slab, cudaStream_t stream) {
    bool rotate = job.call.kind == TN_ROTATE;
    if (job.call.dtype == TN_F32) return launch_slab(rotate ? slab_backward<float, TN_ROTATE, LRPE_THREADS, 2> : slab_backward<float, TN_COSINE, LRPE_THREADS, 2>, job, slab, stream);
    return launch_slab(rotate ? slab_backward<tn_cuda_bf16, TN_ROTATE, LRPE_THREADS, 2> : slab_backward<tn_cuda_bf16, TN_COSINE, LRPE_THREADS, 2>, job, slab, stream);
}
