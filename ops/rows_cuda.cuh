/* What kernels share that read rows once at memory speed: raw packs, sums over the threads of a row, copies into shared memory that
 * run on their own, and blocks that work together.
 *
 * A pack stays the 16 bytes it was in memory until it is used: where it is taken apart at once, nvcc waits for each before it asks for
 * the next. A thread that has used a pack asks for the same pack of its next row into the same registers or the same piece of shared
 * memory, so that reads are under way while it computes and stores:
 *
 *     ask row 0 | sums | store 0, ask row 1 | sums | store 1, ask row 2 | ...
 *
 * 3 TB/s x 1 us / 132 multiprocessors wants 23 KiB of reads and writes in flight on each. */
#ifndef TENON_ROWS_CUDA_CUH
#define TENON_ROWS_CUDA_CUH

#include "../libtensor/cuda_common.cuh"

/* ---- packs ---- */

/* Sixteen bytes that are read once; zero bytes where `wanted` is false. No branch, so that several stand in a row. */
__device__ __forceinline__ uint4 tn_ask_pack(const void *from, bool wanted) {
    uint4 raw;
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.s32 p, %5, 0;\n\tmov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
                 "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "=&r"(raw.x), "=&r"(raw.y), "=&r"(raw.z), "=&r"(raw.w)
                 : "l"(__cvta_generic_to_global(from)), "r"((int)wanted)
                 : "memory");
    return raw;
}

/* Likewise of what other blocks of the multiprocessor will read too. */
__device__ __forceinline__ uint4 tn_ask_kept_pack(const void *from, bool wanted) {
    uint4 raw;
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.s32 p, %5, 0;\n\tmov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
                 "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "=&r"(raw.x), "=&r"(raw.y), "=&r"(raw.z), "=&r"(raw.w)
                 : "l"(__cvta_generic_to_global(from)), "r"((int)wanted));
    return raw;
}

template <typename T> __device__ __forceinline__ void tn_open_pack(const uint4 &raw, float *at) {
#pragma unroll
    for (int j = 0; j < tn_pack<T>::n; j++) at[j] = tn_raw_element<T>(raw, j);
}
/* From here on nvcc does not know what a pack holds: it opens it again instead of keeping the numbers in registers. */
__device__ __forceinline__ void tn_forget_pack(uint4 &raw) { asm volatile("" : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w)); }

template <int ROWS, int PACKS> __device__ __forceinline__ void tn_forget_packs(uint4 (&raw)[ROWS][PACKS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) tn_forget_pack(raw[r][p]);
}

template <typename T> __device__ __forceinline__ void tn_put_pack(T *to, const float *at) {
    tn_pack<T> pack;
#pragma unroll
    for (int j = 0; j < tn_pack<T>::n; j++) pack.at[j] = tn_narrow<T>(at[j]);
    tn_store_pack(to, pack);
}

/* ---- the threads of a row ---- */

/* A team is 1 to 32 neighbouring lanes of a warp (a power of two), or the whole block. Its sums come in a fixed order. */
struct tn_team {
    int lanes, lane; /* threads that share a row, and which of them this is */
    int size;        /* lanes, or 0 for the whole block */
    float *scratch;  /* of a block: tn_team_scratch floats */
    int turn;        /* which half of scratch the next sum uses, so that one barrier is enough */

    __device__ __forceinline__ tn_team(int wanted, float *space)
        : lanes(wanted), size(wanted > TN_WARP || wanted == (int)blockDim.x ? 0 : wanted), scratch(space), turn(0) {
        lane = size ? threadIdx.x % lanes : threadIdx.x;
    }
    __device__ __forceinline__ int mine() const { return size ? threadIdx.x / lanes : 0; }
    __device__ __forceinline__ int teams() const { return size ? blockDim.x / lanes : 1; }

    /* Over the lanes of a team that are in one warp, for several numbers at a time. */
    template <int N> __device__ __forceinline__ void sum_in_warp(float (&x)[N]) const {
        for (int step = (size ? size : TN_WARP) / 2; step > 0; step /= 2)
#pragma unroll
            for (int i = 0; i < N; i++) x[i] += __shfl_xor_sync(0xffffffffu, x[i], step);
    }
    template <int N> __device__ __forceinline__ void max_in_warp(float (&x)[N]) const {
        for (int step = (size ? size : TN_WARP) / 2; step > 0; step /= 2)
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = fmaxf(x[i], __shfl_xor_sync(0xffffffffu, x[i], step));
    }
    /* Every thread gets the sum of its team. */
    template <int N> __device__ __forceinline__ void sum(float (&x)[N]) {
        sum_in_warp(x);
        if (size) return;
        int warps = blockDim.x / TN_WARP;
        float *shared = exchange<N>(x);
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] = threadIdx.x % TN_WARP < warps ? shared[i * TN_WARP + threadIdx.x % TN_WARP] : 0.0f;
            x[i] = tn_warp_sum(x[i]);
        }
    }
    /* Puts a number of each warp where all warps see it. */
    template <int N> __device__ __forceinline__ float *exchange(const float (&x)[N]) {
        float *shared = scratch + turn;
        turn = scratch_half - turn;
        if (threadIdx.x % TN_WARP == 0)
#pragma unroll
            for (int i = 0; i < N; i++) shared[i * TN_WARP + threadIdx.x / TN_WARP] = x[i];
        __syncthreads();
        return shared;
    }
    static constexpr int most = 8, scratch_half = most * TN_WARP; /* numbers at a time */
};
#define TN_TEAM_SCRATCH (2 * tn_team::scratch_half)

/* ---- copies into shared memory that run on their own ---- */

/* Sixteen bytes (of which `wanted` is false: zeros) from global to shared memory. Each thread reads only what it copied itself, so that
 * waiting for its own copies is enough. */
__device__ __forceinline__ void tn_copy_async(void *shared, const void *from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void tn_copy_async_float(float *shared, const float *from, bool wanted) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 4 : 0)
                 : "memory");
}
__device__ __forceinline__ void tn_copy_async_close() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until all but the last N groups are there. */
template <int N> __device__ __forceinline__ void tn_copy_async_wait() { asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory"); }

/* ---- groups of blocks that hold one row or slab together ---- */

/* Blocks write pairs of numbers to a board in global memory, and read what the others wrote. Each number carries the round it belongs to
 * and is moved with it by one access, so that nobody waits for anything but the numbers themselves. All blocks of a group have to run at
 * once: they are launched cooperatively. The board starts as zeros, and has two sides [round % 2][block][pair], and on each a row more for
 * what one block has merged for all: who has read all of a round knows that everyone has read the round before, so that he may write over
 * it. */
struct tn_group {
    int size, rank, pairs;
    uint32_t round; /* from 1 on */
    ulonglong2 *board;

    static __host__ __device__ int64_t board_pairs(int size, int pairs) { return 2 * ((int64_t)size + 1) * pairs; }
    __device__ __forceinline__ ulonglong2 *place(int block, int i) const {
        return board + ((round & 1) * ((int64_t)size + 1) + block) * pairs + i;
    }
    __device__ __forceinline__ void next_round() { round++; }
    __device__ __forceinline__ void write(int i, float a, float b) const { put(rank, i, a, b); }
    __device__ __forceinline__ void put(int block, int i, float a, float b) const {
        unsigned long long tag = (unsigned long long)round << 32;
        asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};"
                     :
                     : "l"(__cvta_generic_to_global(place(block, i))), "l"(tag | __float_as_uint(a)), "l"(tag | __float_as_uint(b))
                     : "memory");
    }
    /* Pair i of blocks first, first + step, .. in this order. */
    template <typename F> __device__ __forceinline__ void read(int i, int first, int step, F use) const {
        constexpr int AT_ONCE = 4;
        for (int block = first; block < size; block += AT_ONCE * step) {
            ulonglong2 pair[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (block + k * step < size) pair[k] = look(block + k * step, i);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                if (block + k * step >= size) break;
                while (pair[k].x >> 32 != round || pair[k].y >> 32 != round) pair[k] = look(block + k * step, i);
                use(__uint_as_float((uint32_t)pair[k].x), __uint_as_float((uint32_t)pair[k].y));
            }
        }
    }

    /* Pair i of one block, or (block = size) of what has been merged. */
    __device__ __forceinline__ void get(int block, int i, float *a, float *b) const {
        ulonglong2 pair = look(block, i);
        while (pair.x >> 32 != round || pair.y >> 32 != round) pair = look(block, i);
        *a = __uint_as_float((uint32_t)pair.x), *b = __uint_as_float((uint32_t)pair.y);
    }

    __device__ __forceinline__ ulonglong2 look(int block, int i) const {
        ulonglong2 pair;
        asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                     : "=l"(pair.x), "=l"(pair.y)
                     : "l"(__cvta_generic_to_global(place(block, i)))
                     : "memory");
        return pair;
    }
};

#endif
