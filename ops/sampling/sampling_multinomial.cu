/* Draws from rows of weights: sample s of row r takes draw r * n_samples + s of the random stream and finds the first place whose running
 * sum lies above draw * total, as on the CPU. Sums are in f64 there and here; only their order differs.
 *
 * A block has a row and cuts it into as many segments as it has threads. The sums of the segments are added up in order, so that running
 * sums never fall; then a thread per sample finds the segment and walks it. Without replacement the samples come one after the other: a
 * place that was drawn is marked, and its segment's sum is made anew.
 *
 * A row that can't be drawn from (a weight that is negative or not finite, too few above 0) gives places of -1. */
#include "sampling_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../../libtensor/philox.h"
#include "../op_support.h"

#define THREADS 256

template <typename T> struct weight_rows {
    const T *weights;
    int64_t *index;
    uint32_t *drawn; /* a bit for each place of each row; NULL: with replacement */
    int64_t n_rows, size, n_samples, words;
    uint64_t seed, counter;
};

/* A row as the block sees it; segment i is [i * length, (i + 1) * length). */
template <typename T> struct weight_row {
    const T *weights;
    const uint32_t *drawn;
    int64_t size, length;

    __device__ __forceinline__ int64_t begin(int segment) const { return segment * length < size ? segment * length : size; }
    __device__ __forceinline__ double weight(int64_t i) const {
        return drawn && drawn[i / 32] >> i % 32 & 1 ? 0 : (double)tn_widen(weights[i]);
    }
    __device__ double sum_of(int segment) const {
        double sum = 0;
        for (int64_t i = begin(segment), end = begin(segment + 1); i < end; i++) sum += weight(i);
        return sum;
    }
    /* The first place of the segment at which the running sum, from `sum` on, lies above the target; where rounding denies it, the
     * last that has any weight. */
    __device__ int64_t place_above(int segment, double sum, double target) const {
        int64_t place = -1;
        for (int64_t i = begin(segment), end = begin(segment + 1); i < end; i++) {
            double w = weight(i);
            if (!(w > 0)) continue;
            place = i;
            sum += w;
            if (sum > target) break;
        }
        return place;
    }
};

/* upto[i] := the sum of segments 0 .. i. */
__device__ void add_up(const double *sums, double *upto) {
    double sum = 0;
    for (int i = 0; i < THREADS; i++) upto[i] = sum += sums[i];
}

template <typename T> __device__ int64_t draw_place(const weight_row<T> &row, const double *upto, uint64_t seed, uint64_t at) {
    double total = upto[THREADS - 1], target = tn_philox_uniform_f64(tn_philox_bits(seed, at)) * total;
    if (target >= total) target = nextafter(total, 0.0);
    int low = 0, high = THREADS - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (upto[middle] > target) high = middle;
        else low = middle + 1;
    }
    return row.place_above(low, low ? upto[low - 1] : 0.0, target);
}

/* Every thread learns whether the row can be drawn from. */
template <typename T> __device__ bool is_drawable(const weight_rows<T> &all, const weight_row<T> &row, double own_sum, int *positive) {
    int n = 0;
    bool valid = own_sum < (double)INFINITY;
    if (threadIdx.x == 0) *positive = 0;
    __syncthreads();
    for (int64_t i = row.begin(threadIdx.x), end = row.begin(threadIdx.x + 1); i < end; i++) {
        double w = (double)tn_widen(row.weights[i]);
        valid = valid && w >= 0 && w < (double)INFINITY;
        n += w > 0;
    }
    /* Integers add up to the same in any order. */
    if (n) atomicAdd(positive, n);
    valid = __syncthreads_and(valid);
    return valid && *positive >= (all.drawn ? all.n_samples : 1);
}

template <typename T> __global__ void __launch_bounds__(THREADS) draw_rows(weight_rows<T> all) {
    __shared__ double sums[THREADS], upto[THREADS];
    __shared__ int positive;
    for (int64_t r = blockIdx.x; r < all.n_rows; r += gridDim.x) {
        uint32_t *drawn = all.drawn ? all.drawn + r * all.words : NULL;
        weight_row<T> row = { all.weights + r * all.size, drawn, all.size, (all.size + THREADS - 1) / THREADS };
        int64_t *index = all.index + r * all.n_samples;
        uint64_t first_draw = all.counter + (uint64_t)(r * all.n_samples);
        for (int64_t i = threadIdx.x; drawn && i < all.words; i += THREADS) drawn[i] = 0;
        __syncthreads();
        sums[threadIdx.x] = row.sum_of(threadIdx.x);
        bool drawable = is_drawable(all, row, sums[threadIdx.x], &positive);
        if (threadIdx.x == 0) add_up(sums, upto);
        __syncthreads();
        drawable = drawable && upto[THREADS - 1] < (double)INFINITY;
        __syncthreads(); /* all have read the total before the first thread makes the sums anew */
        if (!drawable || !drawn) {
            for (int64_t s = threadIdx.x; s < all.n_samples; s += THREADS)
                index[s] = drawable ? draw_place(row, upto, all.seed, first_draw + (uint64_t)s) : -1;
        } else if (threadIdx.x == 0) {
            for (int64_t s = 0; s < all.n_samples; s++) {
                int64_t place = draw_place(row, upto, all.seed, first_draw + (uint64_t)s);
                index[s] = place;
                if (place < 0) continue;
                drawn[place / 32] |= 1u << place % 32;
                int segment = (int)(place / row.length);
                sums[segment] = row.sum_of(segment);
                add_up(sums, upto);
            }
        }
        __syncthreads();
    }
}

static int64_t words_of(const tn_tensor *x) { return (x->shape[x->axes - 1] + 31) / 32; }

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
                               args->seed,
                               args->counter };
        draw_rows<T><<<tn_blocks(n_rows, 1), THREADS, 0, (cudaStream_t)call->stream>>>(all);
    });
    tn_status status = tn_cuda_said(call->device, (int)cudaGetLastError(), "multinomial forward");
    return status == TN_OK ? tn_multinomial_check_cuda(call) : status;
}
