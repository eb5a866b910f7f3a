/* The k first of each line, in order.
 *
 * An element's rank is its key (an unsigned integer in whose order the largest comes first, NaN above all; `largest` false turns it
 * round), and among equal keys its place. No two ranks are equal, so whatever order threads run in, the result is one.
 *
 *     lines of at most 256 elements    a warp keeps the line in registers and takes the best of what is left, k times
 *     longer ones, dense, k <= 256     a block reads the line once for the best key of each of its 512 threads. The k-th of these bests is a
 *                                      bound: at least k elements reach it, and of numbers in no order few more do (for k = 50 of 50000
 *                                      some 53). A second reading, from L2, collects those that do, and they are sorted
 *     all others, and lines in which   a block finds the rank of the k-th by its digits, 8 bits at a time from the highest on: it counts
 *     more than 1024 reach the bound   the digits of the elements that may still be it, and goes on in the digit where the k-th falls,
 *                                      until exactly k elements are above; the k are collected and sorted. About five readings */
#include "sampling_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../op_support.h"

#define THREADS 512
#define WARP_THREADS 256
#define WARP_LINE 256 /* elements a warp keeps */
#define OWN (WARP_LINE / TN_WARP)
#define DIGITS 256
#define ROOM 1024                /* candidates that fit into shared memory; more are sorted in scratch */
#define BOUND_MOST (THREADS / 2) /* k up to which a bound is looked for */
#define DEPTH 4                  /* packs that a thread asks for at once */
#define MOST_BLOCKS 256          /* of those with scratch */

template <typename T> struct key_type { typedef uint32_t type; };
template <> struct key_type<double> { typedef uint64_t type; };

__device__ __forceinline__ uint32_t key_of(float x, bool largest) {
    uint32_t bits = __float_as_uint(x + 0.0f); /* the sum makes -0 into 0 */
    uint32_t key = x != x ? UINT32_MAX : bits >> 31 ? ~bits : bits | 0x80000000u;
    return largest ? key : ~key;
}
__device__ __forceinline__ uint64_t key_of(double x, bool largest) {
    uint64_t bits = (uint64_t)__double_as_longlong(x + 0.0);
    uint64_t key = x != x ? UINT64_MAX : bits >> 63 ? ~bits : bits | 0x8000000000000000u;
    return largest ? key : ~key;
}

template <typename K> struct candidate {
    K key;
    uint32_t place;
};
template <typename K> __device__ __forceinline__ bool before(const candidate<K> &a, const candidate<K> &b) {
    return a.key > b.key || (a.key == b.key && a.place < b.place);
}
__device__ __forceinline__ uint32_t from_lane(uint32_t x, int step) { return __shfl_xor_sync(0xffffffffu, x, step); }
__device__ __forceinline__ uint64_t from_lane(uint64_t x, int step) { return __shfl_xor_sync(0xffffffffu, (unsigned long long)x, step); }

template <typename T> struct topk_lines {
    const T *x;
    T *values;
    int64_t *indices;
    int64_t outer, axis, inner, k;
    bool largest, packed; /* packed: lines are dense and consist of whole packs */

    __device__ __forceinline__ const T *line(int64_t i) const { return x + i / inner * axis * inner + i % inner; }
    __device__ __forceinline__ void put(int64_t i, int64_t rank, const T *from, uint32_t place) const {
        int64_t to = (i / inner * k + rank) * inner + i % inner;
        values[to] = from[place * inner];
        indices[to] = place;
    }
};

/* ---- a warp per line ---- */

template <typename T> __global__ void __launch_bounds__(WARP_THREADS) topk_short_lines(topk_lines<T> t) {
    typedef typename key_type<T>::type K;
    int lane = threadIdx.x % TN_WARP;
    int64_t n_lines = t.outer * t.inner, step = (int64_t)gridDim.x * (WARP_THREADS / TN_WARP);
    for (int64_t i = ((int64_t)blockIdx.x * WARP_THREADS + threadIdx.x) / TN_WARP; i < n_lines; i += step) {
        const T *line = t.line(i);
        K key[OWN];
        uint32_t left = 0; /* bit r: element r * 32 + lane is there and not taken */
#pragma unroll
        for (int r = 0; r < OWN; r++) {
            int64_t place = r * TN_WARP + lane;
            key[r] = 0;
            if (place >= t.axis) continue;
            key[r] = key_of(tn_widen(line[place * t.inner]), t.largest);
            left |= 1u << r;
        }
        uint32_t mine = 0; /* the winner of round `lane` of each 32 */
        for (int64_t round = 0; round < t.k; round++) {
            candidate<K> best = { 0, UINT32_MAX };
#pragma unroll
            for (int r = 0; r < OWN; r++) {
                candidate<K> own = { key[r], (uint32_t)(r * TN_WARP + lane) };
                if (left >> r & 1 && before(own, best)) best = own;
            }
#pragma unroll
            for (int half = TN_WARP / 2; half > 0; half /= 2) {
                candidate<K> other = { from_lane(best.key, half), from_lane(best.place, half) };
                if (before(other, best)) best = other;
            }
            if (best.place % TN_WARP == (uint32_t)lane) left &= ~(1u << best.place / TN_WARP);
            if (round % TN_WARP == lane) mine = best.place;
            bool full = round % TN_WARP == TN_WARP - 1, last = round == t.k - 1;
            if ((full || last) && lane <= round % TN_WARP) t.put(i, round - round % TN_WARP + lane, line, mine);
        }
    }
}

/* ---- a block per line: by a bound ---- */

/* take(key, place) for the thread's share of a dense line. */
template <typename T, typename Take> __device__ __forceinline__ void for_own(const topk_lines<T> &t, const T *line, Take take) {
    constexpr int PACK = tn_pack<T>::n;
    if (!t.packed) {
        for (int64_t place = threadIdx.x; place < t.axis; place += THREADS) take(key_of(tn_widen(line[place]), t.largest), (uint32_t)place);
        return;
    }
    for (int64_t first = (int64_t)threadIdx.x * PACK; first < t.axis; first += DEPTH * THREADS * PACK) {
        uint4 raw[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (first + d * THREADS * PACK < t.axis) raw[d] = tn_load_raw(line + first + d * THREADS * PACK);
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (first + d * THREADS * PACK < t.axis)
#pragma unroll
                for (int j = 0; j < PACK; j++)
                    take(key_of(tn_raw_element<T>(raw[d], j), t.largest), (uint32_t)(first + d * THREADS * PACK + j));
    }
}

/* The highest key that the bests of at least k threads reach. A bf16's lower bits are all alike. */
template <typename T, typename K> __device__ __forceinline__ K bound_of(const topk_lines<T> &t, const T *line) {
    constexpr int BITS = 8 * (int)sizeof(K), LAST = sizeof(T) == 2 ? 16 : 0;
    K best = 0, bound = 0;
    for_own(t, line, [&](K key, uint32_t) { best = key > best ? key : best; });
    for (int bit = BITS - 1; bit >= LAST; bit--) {
        K trial = bound | (K)1 << bit;
        if (__syncthreads_count(best >= trial) >= t.k) bound = trial;
    }
    return bound;
}

/* ---- a block per line: by digits ---- */

/* Digit d of a rank from the highest on: those of the key, then those of the place, of which smaller ones come first. */
template <typename K> __device__ __forceinline__ uint32_t digit_of(K key, uint32_t place, int d) {
    constexpr int OF_KEY = (int)sizeof(K);
    return d < OF_KEY ? (uint32_t)(key >> 8 * (OF_KEY - 1 - d)) & 255 : ~place >> 8 * (OF_KEY + 3 - d) & 255;
}
/* The first n digits as a number with the rest cut off, in two parts. */
template <typename K> __device__ __forceinline__ candidate<K> first_digits(K key, uint32_t place, int n) {
    constexpr int OF_KEY = (int)sizeof(K);
    if (n == 0) return candidate<K>{ 0, 0 };
    if (n <= OF_KEY) return candidate<K>{ (K)(key >> 8 * (OF_KEY - n)), 0 };
    return candidate<K>{ key, ~place >> 8 * (OF_KEY + 4 - n) };
}

/* The rank from which on there are exactly k elements: its first *n digits. */
template <typename T, typename K> __device__ candidate<K> find_threshold(const topk_lines<T> &t, const T *line, uint32_t *count, int *n) {
    __shared__ uint32_t chosen, remaining;
    K key_so_far = 0;
    uint32_t place_so_far = 0, wanted = (uint32_t)t.k;
    int n_digits = (int)sizeof(K) + 4;
    for (int d = 0; d < n_digits; d++) {
        if (threadIdx.x < DIGITS) count[threadIdx.x] = 0;
        __syncthreads();
        for (int64_t first = 0; first < t.axis; first += THREADS) {
            int64_t place = first + threadIdx.x;
            K key = place < t.axis ? key_of(tn_widen(line[place * t.inner]), t.largest) : 0;
            candidate<K> digits = first_digits(key, (uint32_t)place, d);
            bool counts = place < t.axis && digits.key == key_so_far && digits.place == place_so_far;
            /* Most elements of a warp share their first digits: one of each kind counts for all. */
            uint32_t digit = counts ? digit_of(key, (uint32_t)place, d) : DIGITS, equals = __match_any_sync(0xffffffffu, digit);
            if (counts && (equals & ((1u << threadIdx.x % TN_WARP) - 1)) == 0) atomicAdd(&count[digit], (uint32_t)__popc(equals));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t above = 0;
            int digit = DIGITS - 1;
            while (above + count[digit] < wanted) above += count[digit--];
            chosen = (uint32_t)digit | (count[digit] == wanted - above ? DIGITS : 0);
            remaining = wanted - above;
        }
        __syncthreads();
        uint32_t digit = chosen & (DIGITS - 1);
        bool exact = chosen & DIGITS;
        wanted = remaining;
        if (d < (int)sizeof(K)) key_so_far = key_so_far << 8 | digit;
        else place_so_far = place_so_far << 8 | digit;
        __syncthreads();
        *n = d + 1;
        if (exact) break;
    }
    return candidate<K>{ key_so_far, place_so_far };
}

/* Bitonic: `size` is a power of 2, the first comes first. */
template <typename K> __device__ void sort_candidates(candidate<K> *list, int64_t size) {
    for (int64_t run = 2; run <= size; run *= 2)
        for (int64_t apart = run / 2; apart > 0; apart /= 2) {
            for (int64_t i = threadIdx.x; i < size; i += THREADS) {
                int64_t other = i ^ apart;
                if (other < i) continue;
                bool in_order = (i & run) == 0;
                if (before(list[other], list[i]) == in_order) {
                    candidate<K> swap = list[i];
                    list[i] = list[other];
                    list[other] = swap;
                }
            }
            __syncthreads();
        }
}

static __host__ __device__ __forceinline__ int64_t power_from(int64_t k) {
    int64_t size = 1;
    while (size < k) size *= 2;
    return size;
}

/* False where so many reach the bound that there is no room for them. */
template <typename T, typename K>
__device__ bool put_by_bound(const topk_lines<T> &t, int64_t i, const T *line, candidate<K> *room, uint32_t *n_found) {
    if (threadIdx.x == 0) *n_found = 0;
    K bound = bound_of<T, K>(t, line);
    for_own(t, line, [&](K key, uint32_t place) {
        if (key < bound) return;
        uint32_t at = atomicAdd(n_found, 1u);
        if (at < ROOM) room[at] = candidate<K>{ key, place };
    });
    __syncthreads();
    uint32_t found = *n_found;
    if (found <= ROOM) {
        uint32_t size = (uint32_t)power_from(found);
        for (uint32_t at = found + threadIdx.x; at < size; at += THREADS) room[at] = candidate<K>{ 0, UINT32_MAX };
        __syncthreads();
        sort_candidates(room, size);
        for (int64_t rank = threadIdx.x; rank < t.k; rank += THREADS) t.put(i, rank, line, room[rank].place);
    }
    __syncthreads();
    return found <= ROOM;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) topk_long_lines(topk_lines<T> t, candidate<typename key_type<T>::type> *scratch) {
    typedef typename key_type<T>::type K;
    __shared__ uint32_t count[DIGITS];
    __shared__ candidate<K> room[ROOM];
    __shared__ uint32_t n_found;
    bool bounded = t.inner == 1 && t.k <= BOUND_MOST;
    int64_t size = power_from(t.k);
    candidate<K> *list = scratch ? scratch + blockIdx.x * size : room;
    for (int64_t i = blockIdx.x; i < t.outer * t.inner; i += gridDim.x) {
        const T *line = t.line(i);
        if (bounded && put_by_bound<T, K>(t, i, line, room, &n_found)) continue;
        int n;
        candidate<K> threshold = find_threshold<T, K>(t, line, count, &n);
        if (threadIdx.x == 0) n_found = 0;
        for (int64_t at = threadIdx.x; at < size; at += THREADS) list[at] = candidate<K>{ 0, UINT32_MAX };
        __syncthreads();
        for (int64_t place = threadIdx.x; place < t.axis; place += THREADS) {
            K key = key_of(tn_widen(line[place * t.inner]), t.largest);
            candidate<K> digits = first_digits(key, (uint32_t)place, n);
            if (digits.key < threshold.key || (digits.key == threshold.key && digits.place < threshold.place)) continue;
            list[atomicAdd(&n_found, 1u)] = candidate<K>{ key, (uint32_t)place };
        }
        __syncthreads();
        sort_candidates(list, size);
        for (int64_t rank = threadIdx.x; rank < t.k; rank += THREADS) t.put(i, rank, line, list[rank].place);
        __syncthreads();
    }
}

/* ---- backward: the gradient of each value to its place ---- */

template <typename T>
__global__ void __launch_bounds__(THREADS)
    topk_backward(T *dx, const T *d, const int64_t *indices, int64_t n, int64_t axis, int64_t inner, int64_t k) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        int64_t line = i / inner, outer = line / k;
        dx[(outer * axis + indices[i]) * inner + (i - line * inner)] = d[i];
    }
}

/* ---- launches ---- */

static tn_around around_of(const tn_op_call *call, const tn_shape *shape) {
    return tn_around_axis(shape->size, shape->axes, tn_axis_of(((const tn_topk_args *)call->args)->dim, shape->axes));
}

static int64_t scratch_blocks(const tn_around &around) {
    int64_t n_lines = around.outer * around.inner;
    return n_lines < MOST_BLOCKS ? n_lines : MOST_BLOCKS;
}

static bool needs_scratch(const tn_around &around, int64_t k) { return around.axis > WARP_LINE && k > ROOM; }

extern "C" size_t tn_topk_workspace_cuda(const tn_op_call *call, bool backward) {
    const tn_topk_args *args = (const tn_topk_args *)call->args;
    if (backward) return 0;
    const tn_shape shape = tn_shape_of(call->in[0]);
    tn_around around = around_of(call, &shape);
    return needs_scratch(around, args->k) ? (size_t)(scratch_blocks(around) * power_from(args->k)) * sizeof(candidate<uint64_t>) : 0;
}

template <typename T> static void start(const tn_op_call *call, const tn_around &around, bool in_scratch) {
    const tn_topk_args *args = (const tn_topk_args *)call->args;
    typedef candidate<typename key_type<T>::type> C;
    topk_lines<T> t = { (const T *)call->in[0]->data,
                        (T *)call->out[0]->data,
                        (int64_t *)call->out[1]->data,
                        around.outer,
                        around.axis,
                        around.inner,
                        args->k,
                        args->largest,
                        around.inner == 1 && tn_aligned16(call->in[0]->data) && around.axis % tn_pack<T>::n == 0 };
    int64_t n_lines = around.outer * around.inner;
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (around.axis <= WARP_LINE) topk_short_lines<T><<<tn_blocks(n_lines, WARP_THREADS / TN_WARP), WARP_THREADS, 0, stream>>>(t);
    else if (in_scratch) topk_long_lines<T><<<tn_blocks(scratch_blocks(around), 1), THREADS, 0, stream>>>(t, (C *)call->workspace);
    else topk_long_lines<T><<<tn_blocks(n_lines, 1), THREADS, 0, stream>>>(t, (C *)NULL);
}

extern "C" tn_status tn_topk_forward_cuda(tn_op_call *call) {
    const tn_topk_args *args = (const tn_topk_args *)call->args;
    const tn_tensor *x = call->in[0];
    const tn_shape shape = tn_shape_of(x);
    if (call->out[0]->numel == 0) return TN_OK;
    tn_around around = around_of(call, &shape);
    TN_WITH_FLOAT(x->dtype, T, start<T>(call, around, needs_scratch(around, args->k)));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "topk forward");
}

extern "C" tn_status tn_topk_backward_cuda(tn_op_call *call) {
    const tn_tensor *dx = call->din[0], *d = call->dout[0];
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (dx->numel == 0) return TN_OK;
    tn_status status = tn_cuda_said(call->device, (int)cudaMemsetAsync(dx->data, 0, tn_bytes(dx), stream), "cudaMemsetAsync");
    if (status != TN_OK || !d || d->numel == 0) return status;
    tn_around around = around_of(call, &call->in_spec[0].shape);
    const int64_t *indices = (const int64_t *)call->out[1]->data;
    TN_WITH_FLOAT(dx->dtype, T, {
        topk_backward<T><<<tn_blocks(d->numel, THREADS), THREADS, 0, stream>>>(
            (T *)dx->data, (const T *)d->data, indices, d->numel, around.axis, around.inner, ((const tn_topk_args *)call->args)->k);
    });
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "topk backward");
}
