/* What the softmax kernels share: exponentials, and blocks that keep a piece of a row or slab in shared memory.
 *
 * A held row (or slab) is cut into as many runs as it takes blocks to hold it; these form a group. Two blocks fit on a multiprocessor, so
 * that one computes while the other moves bytes. Each group takes every so many-th row, and each thread reads only what it copied itself;
 * while a pack is stored, the same pack of the next row is asked for.
 *
 *     group 0: [run 0 | run 1 | ..] of row 0, then of row n_groups, ..      maxima and sums go over the board of tn_group
 *     group 1: [run 0 | run 1 | ..] of row 1, ..
 *
 * In a backward a block holds o and do, so that its runs are half as long. */
#ifndef TENON_ACT_SOFTMAX_CUDA_CUH
#define TENON_ACT_SOFTMAX_CUDA_CUH

#include "act_internal.h"

#include "../activation_cuda.cuh"
#include "../op_support.h"
#include "../rows_cuda.cuh"

#define HELD_THREADS 512
#define HELD_PACKS 12 /* of a thread; backward half as many of either tensor */
#define HELD_PER_MULTIPROCESSOR 2

typedef struct softmax_shape {
    int64_t outer, axis, inner;
} softmax_shape;

typedef struct softmax_job {
    softmax_shape shape;
    void *to;         /* o, or dx */
    const void *from; /* x, or o */
    const void *d;    /* NULL: forward */
    const tn_device *device;
    void *workspace;
    cudaStream_t stream;
} softmax_job;

/* How a row or slab is held. */
typedef struct held_plan {
    int blocks, packs, pairs; /* of a group; of a thread, at most; on the board */
    size_t shared;
} held_plan;

static inline int held_packs(bool backward) { return backward ? HELD_PACKS / 2 : HELD_PACKS; }
static inline int held_blocks(const tn_device *device) { return device->multiprocessors * HELD_PER_MULTIPROCESSOR; }

static inline size_t held_workspace(const held_plan &plan, const tn_device *device) {
    if (plan.blocks == 1) return 0;
    return (size_t)(held_blocks(device) / plan.blocks) * tn_group::board_pairs(plan.blocks, plan.pairs) * sizeof(ulonglong2);
}

#define LOG2_E 1.44269504088896340736f

__device__ __forceinline__ float power_of_2(float x) {
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x));
    return e;
}
/* e^x for x <= 0, to 1e-7 |x|. */
__device__ __forceinline__ float softmax_exp(float x) { return power_of_2(x * LOG2_E); }
/* What exponentials are taken above: the maximum, or anything where there is none, since every exponential is 0 then. */
__device__ __forceinline__ float base_of(float max) { return max == -INFINITY ? 0.0f : max; }
/* A part's sum weighs this much in the whole. Equal infinities are no distance apart. */
__device__ __forceinline__ float part_weight(float max, float above) { return max == above ? 1.0f : softmax_exp(max - above); }

/* The larger of each two numbers. */
__device__ __forceinline__ uint32_t larger_two(uint32_t a, uint32_t b) {
    uint32_t larger;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
template <typename T> __device__ __forceinline__ uint4 larger_pack(const uint4 &a, const uint4 &b) {
    if (sizeof(T) == 2) return make_uint4(larger_two(a.x, b.x), larger_two(a.y, b.y), larger_two(a.z, b.z), larger_two(a.w, b.w));
    return make_uint4(__float_as_uint(fmaxf(__uint_as_float(a.x), __uint_as_float(b.x))),
                      __float_as_uint(fmaxf(__uint_as_float(a.y), __uint_as_float(b.y))),
                      __float_as_uint(fmaxf(__uint_as_float(a.z), __uint_as_float(b.z))),
                      __float_as_uint(fmaxf(__uint_as_float(a.w), __uint_as_float(b.w))));
}
template <typename T> __device__ __forceinline__ uint4 lowest_pack() {
    uint32_t word = sizeof(T) == 2 ? 0xff80ff80u : 0xff800000u;
    return make_uint4(word, word, word, word);
}

/* This block's place in its group: blocks with neighbouring numbers, so that the two of a multiprocessor belong to different groups. */
__device__ __forceinline__ int held_join(tn_group &group) {
    int which = blockIdx.x / group.size;
    group.rank = blockIdx.x % group.size;
    group.board += which * tn_group::board_pairs(group.size, group.pairs);
    return which;
}

/* Starts as many groups as run at once, for `pieces` rows or slabs; the kernel takes args, then the group. Falls short with
 * cudaErrorInvalidConfiguration where not even one group fits. */
template <typename Kernel, typename... Args>
static cudaError_t launch_held(Kernel kernel, const softmax_job &job, const held_plan &plan, int64_t pieces, Args... args) {
    int per_multiprocessor = 0, most = held_blocks(job.device);
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)plan.shared);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, HELD_THREADS, plan.shared);
    if (error != cudaSuccess) return error;
    int64_t blocks = (int64_t)per_multiprocessor * job.device->multiprocessors;
    if (plan.blocks > 1 && blocks > most) blocks = most;
    int64_t groups = blocks / plan.blocks < pieces ? blocks / plan.blocks : pieces;
    if (groups < 1) return cudaErrorInvalidConfiguration;
    tn_group group = { plan.blocks, 0, plan.pairs, 0, (ulonglong2 *)job.workspace };
    if (plan.blocks > 1) error = cudaMemsetAsync(job.workspace, 0, held_workspace(plan, job.device), job.stream);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute cooperative;
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(groups * plan.blocks));
    config.blockDim = dim3(HELD_THREADS);
    config.dynamicSmemBytes = plan.shared;
    config.stream = job.stream;
    config.attrs = &cooperative;
    config.numAttrs = plan.blocks > 1 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, args..., group);
}

#endif
