/* A stable sort of places by key, 8 bits at a time from the lowest on: as many passes as the largest key has bytes.
 *
 * A pass: every block counts the digits of its tile; one block sums these counts over digits and tiles, which says where each tile's run
 * of each digit begins; then every block places its keys. Inside a tile the warps own consecutive pieces, and a lane's place among equal
 * digits of its warp follows from the lanes before it, so that the order of equal keys never changes. Atomics only count. */
#include "index_cuda.h"

#include "../../libtensor/cuda_common.cuh"

#define THREADS 256
#define WARPS (THREADS / TN_WARP)
#define DIGITS 256 /* as many as a block has threads */
#define SCAN_THREADS 1024
#define FEW_KEYS (1 << 18)

/* Keys of a lane: few where there are few keys, so that many multiprocessors have some. */
static int rounds_for(int64_t n) { return n <= FEW_KEYS ? 8 : 32; }
static int64_t tiles_for(int64_t n) { return (n + (int64_t)rounds_for(n) * THREADS - 1) / ((int64_t)rounds_for(n) * THREADS); }

struct sort_keys {
    const uint32_t *keys, *places; /* places NULL: in order */
    __device__ __forceinline__ uint32_t key(int64_t i) const { return keys[i]; }
    __device__ __forceinline__ uint32_t place(int64_t i) const { return places ? places[i] : (uint32_t)i; }
};

__global__ void __launch_bounds__(THREADS)
    count_digits(sort_keys source, int64_t n, int rounds, int shift, uint32_t *counts, int64_t n_tiles) {
    __shared__ uint32_t count[DIGITS];
    count[threadIdx.x] = 0;
    __syncthreads();
    int64_t tile = blockIdx.x, begin = tile * rounds * THREADS;
    for (int r = 0; r < rounds; r++) {
        int64_t i = begin + r * THREADS + threadIdx.x;
        if (i < n) atomicAdd(&count[source.key(i) >> shift & (DIGITS - 1)], 1u);
    }
    __syncthreads();
    counts[threadIdx.x * n_tiles + tile] = count[threadIdx.x];
}

/* counts[i] := the sum of those before i; one block. */
__global__ void __launch_bounds__(SCAN_THREADS) sum_before(uint32_t *counts, int64_t n) {
    __shared__ uint32_t of_warp[TN_WARP];
    int lane = threadIdx.x % TN_WARP, warp = threadIdx.x / TN_WARP;
    uint32_t carry = 0;
    for (int64_t first = 0; first < n; first += SCAN_THREADS * 4) {
        int64_t at = first + threadIdx.x * 4;
        uint32_t own[4], sum = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            own[j] = at + j < n ? counts[at + j] : 0;
            sum += own[j];
        }
        uint32_t upto = sum;
        for (int step = 1; step < TN_WARP; step *= 2) {
            uint32_t below = __shfl_up_sync(0xffffffffu, upto, step);
            if (lane >= step) upto += below;
        }
        if (lane == TN_WARP - 1) of_warp[warp] = upto;
        __syncthreads();
        uint32_t before = carry + upto - sum;
        for (int w = 0; w < SCAN_THREADS / TN_WARP; w++) {
            if (w < warp) before += of_warp[w];
            carry += of_warp[w];
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (at + j < n) counts[at + j] = before;
            before += own[j];
        }
    }
}

__global__ void __launch_bounds__(THREADS) place_keys(sort_keys source, int64_t n, int rounds, int shift, const uint32_t *begins,
                                                      int64_t n_tiles, uint32_t *keys, uint32_t *places) {
    __shared__ uint32_t next[WARPS][DIGITS]; /* where a warp's next key of a digit goes */
    int lane = threadIdx.x % TN_WARP, warp = threadIdx.x / TN_WARP;
    int64_t tile = blockIdx.x, begin = (tile * THREADS + warp * TN_WARP) * rounds;
    for (int w = 0; w < WARPS; w++) next[w][threadIdx.x] = 0;
    __syncthreads();
    for (int r = 0; r < rounds; r++) {
        int64_t i = begin + r * TN_WARP + lane;
        if (i < n) atomicAdd(&next[warp][source.key(i) >> shift & (DIGITS - 1)], 1u);
    }
    __syncthreads();
    uint32_t at = begins[threadIdx.x * n_tiles + tile];
    for (int w = 0; w < WARPS; w++) {
        uint32_t count = next[w][threadIdx.x];
        next[w][threadIdx.x] = at;
        at += count;
    }
    __syncthreads();
    for (int r = 0; r < rounds; r++) {
        int64_t i = begin + r * TN_WARP + lane;
        bool here = i < n;
        uint32_t key = here ? source.key(i) : 0, digit = here ? key >> shift & (DIGITS - 1) : DIGITS;
        uint32_t equals = __match_any_sync(0xffffffffu, digit), before = equals & ((1u << lane) - 1);
        uint32_t to = here ? next[warp][digit] + __popc(before) : 0;
        __syncwarp();
        if (here && before == 0) next[warp][digit] += __popc(equals);
        __syncwarp();
        if (!here) continue;
        keys[to] = key;
        places[to] = source.place(i);
    }
}

/* ---- the passes ---- */

extern "C" size_t tn_index_sort_bytes(int64_t n) { return (size_t)(4 * n + DIGITS * tiles_for(n)) * sizeof(uint32_t); }

static void pass(const sort_keys &source, const tn_index_sort *sort, int shift, uint32_t *counts, uint32_t *keys, uint32_t *places,
                 cudaStream_t stream) {
    int rounds = rounds_for(sort->n);
    int64_t n_tiles = tiles_for(sort->n);
    unsigned blocks = (unsigned)n_tiles;
    count_digits<<<blocks, THREADS, 0, stream>>>(source, sort->n, rounds, shift, counts, n_tiles);
    sum_before<<<1, SCAN_THREADS, 0, stream>>>(counts, DIGITS * n_tiles);
    place_keys<<<blocks, THREADS, 0, stream>>>(source, sort->n, rounds, shift, counts, n_tiles, keys, places);
}

extern "C" tn_index_order tn_index_sorted(const tn_index_sort *sort, void *scratch, void *stream) {
    uint32_t *keys[2] = { (uint32_t *)scratch, (uint32_t *)scratch + sort->n }, *places[2] = { keys[1] + sort->n, keys[1] + 2 * sort->n };
    uint32_t *counts = places[1] + sort->n;
    sort_keys from = { sort->keys, NULL };
    int to = 0;
    for (int shift = 0; shift < 32 && (shift == 0 || sort->limit >> shift); shift += 8, to = !to) {
        pass(from, sort, shift, counts, keys[to], places[to], (cudaStream_t)stream);
        from = { keys[to], places[to] };
    }
    return tn_index_order{ from.keys, from.places };
}
