/* Draws from rows of weights: sample s of row r takes draw r * n_samples + s of the random stream and finds the first place whose running
 * sum lies above draw * total, as on the CPU. Sums are in f64 there and here; only their order differs.
 *
 *     row      | chunk 0 | chunk 1 | ...             |   at most 256, each of `strips` strips, summed by a warp
 *     strip    | lane 0: 16 bytes | lane 1 | ... | 31 |
 *
 * A block has a row. The sums of its chunks are added up in order, so that running sums never fall: the chunk that a draw falls into has
 * weight. Then a warp per sample finds the chunk, in it the lane, and the lane the place. Without replacement the samples come one after
 * the other: a place that was drawn is marked, and its chunk's sum is made anew. A row is read once, but for the chunks that draws fall
 * into.
 *
 * A row that can't be drawn from (a weight that is negative or not finite, too few above 0) gives places of -1. */
#include "sampling_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../../libtensor/philox.h"
#include "../op_support.h"

#define THREADS 256
#define WARPS (THREADS / TN_WARP)
#define CHUNKS 256 /* at most */
#define DEPTH 4    /* chunks that a warp asks for at once */

template <typename T> struct weight_rows {
    const T *weights;
    int64_t *index;
    uint32_t *drawn; /* a bit for each place of each row; NULL: with replacement */
    int64_t n_rows, size, n_samples, words, strips;
    bool packed; /* every row begins at 16 bytes and consists of whole packs */
    uint64_t seed, counter;
};

/* A row as the block sees it. */
template <typename T> struct weight_row {
    static constexpr int own = tn_pack<T>::n, strip = own * TN_WARP; /* own: of a lane in each strip */
    const T *weights;
    const uint32_t *drawn;
    int64_t size, strips;
    bool packed;

    __device__ __forceinline__ int chunks() const { return (int)((size + strips * strip - 1) / (strips * strip)); }
    __device__ __forceinline__ int64_t own_begin(int chunk, int64_t at) const {
        return (chunk * strips + at) * strip + threadIdx.x % TN_WARP * own;
    }
    /* The lane's weights of a strip; those past the row's end are 0. */
    __device__ __forceinline__ tn_pack<T> read(int64_t begin) const {
        tn_pack<T> pack;
        if (packed && begin < size) return tn_load_pack(weights + begin);
#pragma unroll
        for (int i = 0; i < own; i++) pack.at[i] = begin + i < size ? weights[begin + i] : tn_narrow<T>(0);
        return pack;
    }
    __device__ __forceinline__ double weight(const tn_pack<T> &pack, int64_t begin, int i) const {
        return drawn && begin + i < size && drawn[(begin + i) / 32] >> (begin + i) % 32 & 1 ? 0 : (double)tn_widen(pack.at[i]);
    }
    __device__ __forceinline__ double own_sum(const tn_pack<T> &pack, int64_t begin) const {
        double sum = 0;
#pragma unroll
        for (int i = 0; i < own; i++) sum += weight(pack, begin, i);
        return sum;
    }
    /* In every lane. */
    __device__ double sum_of(int chunk) const {
        double sum = 0;
        for (int64_t at = 0; at < strips; at++) sum += own_sum(read(own_begin(chunk, at)), own_begin(chunk, at));
        return tn_warp_sum(sum);
    }
    /* The lane's first place at which the running sum, from `sum` on, lies above the target; where rounding denies it, its last that has
     * any weight. */
    __device__ int64_t own_place(const tn_pack<T> &pack, int64_t begin, double sum, double target) const {
        int64_t place = -1;
#pragma unroll
        for (int i = 0; i < own; i++) {
            double w = weight(pack, begin, i);
            if (!(w > 0) || (place >= 0 && sum > target)) continue;
            place = begin + i;
            sum += w;
        }
        return place;
    }
    /* The same of a whole chunk, in every lane. */
    __device__ int64_t place_above(int chunk, double sum, double target) const {
        int64_t last = -1;
        for (int64_t at = 0; at < strips; at++) {
            int64_t begin = own_begin(chunk, at);
            tn_pack<T> pack = read(begin);
            double mine = own_sum(pack, begin), upto = mine;
#pragma unroll
            for (int step = 1; step < TN_WARP; step *= 2) {
                double before = __shfl_up_sync(0xffffffffu, upto, step);
                if (threadIdx.x % TN_WARP >= step) upto += before;
            }
            uint32_t weighty = __ballot_sync(0xffffffffu, mine > 0), above = weighty & __ballot_sync(0xffffffffu, sum + upto > target);
            int64_t place = weighty ? own_place(pack, begin, sum + (upto - mine), target) : -1;
            if (above) return __shfl_sync(0xffffffffu, place, __ffs(above) - 1);
            if (weighty) last = __shfl_sync(0xffffffffu, place, 31 - __clz(weighty));
            sum += __shfl_sync(0xffffffffu, upto, TN_WARP - 1);
        }
        return last;
    }
};

/* upto[i] := the sum of chunks 0 .. i, from `first` on. */
__device__ void add_up(const double *sums, double *upto, int first, int n) {
    double sum = first ? upto[first - 1] : 0;
#pragma unroll 8
    for (int i = first; i < n; i++) upto[i] = sum += sums[i];
}

/* By a warp. */
template <typename T>
__device__ int64_t draw_place(const weight_row<T> &row, const double *upto, int n_chunks, uint64_t seed, uint64_t at) {
    double total = upto[n_chunks - 1], target = tn_philox_uniform_f64(tn_philox_bits(seed, at)) * total;
    if (target >= total) target = nextafter(total, 0.0);
    int low = 0, high = n_chunks - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (upto[middle] > target) high = middle;
        else low = middle + 1;
    }
    return row.place_above(low, low ? upto[low - 1] : 0.0, target);
}

/* Fills sums. False where a weight is negative or not finite; *positive: how many of the thread's are above 0. */
template <typename T> __device__ __forceinline__ bool sum_chunks(const weight_row<T> &row, double *sums, int *positive) {
    constexpr int own = weight_row<T>::own;
    int warp = threadIdx.x / TN_WARP, n_chunks = row.chunks();
    bool valid = true;
    *positive = 0;
    for (int first = warp; first < n_chunks; first += DEPTH * WARPS) {
        double sum[DEPTH] = {};
        for (int64_t at = 0; at < row.strips; at++) {
            tn_pack<T> pack[DEPTH];
#pragma unroll
            for (int d = 0; d < DEPTH; d++) pack[d] = row.read(row.own_begin(first + d * WARPS, at));
#pragma unroll
            for (int d = 0; d < DEPTH; d++)
#pragma unroll
                for (int i = 0; i < own; i++) {
                    double w = (double)tn_widen(pack[d].at[i]);
                    valid = valid && w >= 0 && w < (double)INFINITY;
                    *positive += w > 0;
                    sum[d] += w;
                }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            double of_chunk = tn_warp_sum(sum[d]);
            if (threadIdx.x % TN_WARP == 0 && first + d * WARPS < n_chunks) sums[first + d * WARPS] = of_chunk;
        }
    }
    return valid;
}

template <typename T> __global__ void __launch_bounds__(THREADS) draw_rows(weight_rows<T> all) {
    __shared__ double sums[CHUNKS], upto[CHUNKS];
    __shared__ int positive;
    int warp = threadIdx.x / TN_WARP, lane = threadIdx.x % TN_WARP;
    for (int64_t r = blockIdx.x; r < all.n_rows; r += gridDim.x) {
        uint32_t *drawn = all.drawn ? all.drawn + r * all.words : NULL;
        weight_row<T> row = { all.weights + r * all.size, drawn, all.size, all.strips, all.packed };
        int n_chunks = row.chunks(), own_positive;
        int64_t *index = all.index + r * all.n_samples;
        uint64_t first_draw = all.counter + (uint64_t)(r * all.n_samples);
        for (int64_t i = threadIdx.x; drawn && i < all.words; i += THREADS) drawn[i] = 0;
        if (threadIdx.x == 0) positive = 0;
        bool valid = __syncthreads_and(sum_chunks(row, sums, &own_positive));
        /* Integers add up to the same in any order. */
        if (own_positive) atomicAdd(&positive, own_positive);
        if (threadIdx.x == 0) add_up(sums, upto, 0, n_chunks);
        __syncthreads();
        bool drawable = valid && positive >= (drawn ? all.n_samples : 1) && upto[n_chunks - 1] < (double)INFINITY;
        __syncthreads(); /* all have read the total before the first warp makes the sums anew */
        if (!drawable) {
            for (int64_t s = threadIdx.x; s < all.n_samples; s += THREADS) index[s] = -1;
        } else if (!drawn) {
            for (int64_t s = warp; s < all.n_samples; s += WARPS) {
                int64_t place = draw_place(row, upto, n_chunks, all.seed, first_draw + (uint64_t)s);
                if (lane == 0) index[s] = place;
            }
        } else if (warp == 0) {
            for (int64_t s = 0; s < all.n_samples; s++) {
                int64_t place = draw_place(row, upto, n_chunks, all.seed, first_draw + (uint64_t)s);
                int chunk = (int)(place / (all.strips * weight_row<T>::strip));
                if (lane == 0) index[s] = place, drawn[place / 32] |= 1u << place % 32;
                __syncwarp();
                double sum = row.sum_of(chunk);
                if (lane == 0) sums[chunk] = sum, add_up(sums, upto, chunk, n_chunks);
                __syncwarp();
            }
        }
        __syncthreads();
    }
}

static int64_t words_of(const tn_tensor *x) { return (x->shape[x->axes - 1] + 31) / 32; }

template <typename T> static int64_t strips_of(int64_t size) {
    int64_t strips = (size + weight_row<T>::strip - 1) / weight_row<T>::strip;
    return (strips + CHUNKS - 1) / CHUNKS;
}

extern "C" size_t tn_multinomial_workspace_cuda(const tn_op_call *call, bool backward) {
    const tn_tensor *x = call->in[0];
    if (backward || ((const tn_multinomial_args *)call->args)->replacement || tn_spec_numel(&call->out_spec[0]) == 0) return 0;
    return (size_t)(x->numel / x->shape[x->axes - 1] * words_of(x)) * sizeof(uint32_t);
}

extern "C" tn_status tn_multinomial_forward_cuda(tn_op_call *call) {
    const tn_multinomial_args *args = (const tn_multinomial_args *)call->args;
    const tn_tensor *x = call->in[0];
    if (call->out[0]->numel == 0) return TN_OK;
    int64_t size = x->shape[x->axes - 1], n_rows = x->numel / size;
    TN_WITH_FLOAT(x->dtype, T, {
        weight_rows<T> all = { (const T *)x->data,
                               (int64_t *)call->out[0]->data,
                               args->replacement ? NULL : (uint32_t *)call->workspace,
                               n_rows,
                               size,
                               args->n_samples,
                               words_of(x),
                               strips_of<T>(size),
                               tn_aligned16(x->data) && size % tn_pack<T>::n == 0,
                               args->seed,
                               args->counter };
        draw_rows<T><<<tn_blocks(n_rows, 1), THREADS, 0, (cudaStream_t)call->stream>>>(all);
    });
    tn_status status = tn_cuda_said(call->device, (int)cudaGetLastError(), "multinomial forward");
    return status == TN_OK ? tn_multinomial_check_cuda(call) : status;
}
