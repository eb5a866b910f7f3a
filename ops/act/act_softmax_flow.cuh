/* Slabs (act_softmax_columns.cuh) that take several blocks, on Hopper: what blocks wait for each other is hidden behind memory's work.
 *
 * A group of blocks takes every so manyth slab; each block has a run of the axis, the same of every slab. One block fills a
 * multiprocessor, and each of its warps has one part of the work. Loaders, summers and writers go through the runs chunk by chunk, in a
 * ring of shared memory:
 *
 *     2 warps  loaders   memory -> chunk, once summers and writers are through with what was there
 *     8        summers   chunks -> maximum and sum of each column, of each warp
 *     2        tellers   these -> the block's numbers, on the board
 *     8 or 2   hearers   the board: the numbers of all blocks of the group, always in the same order -> the slab's numbers
 *     8        writers   chunks, the slab's numbers -> memory
 *
 *     axis up to      768   1152  ..  8448   16896   33792   50688   101376   (132 multiprocessors; 384 to 768 rows a block)
 *     blocks            2      3        22      44      44      66      132
 *
 * Each waits for what it needs at an mbarrier, at which every lane of those before it arrives. So later chunks are loaded and summed while
 * hearers wait for the group's slowest block, until the ring is full. Of 384 rows it holds the next slab too, so that this one is told
 * before the last is written; of 768 it holds one, and memory stands still for 10% of the time.
 *
 * A number on the board carries the number of its slab, as those of tn_group do, and is moved with it by one access. Every block reads all
 * the others' numbers itself: merging by turns, a share of the columns each, is a second way through L2 and costs 2 to 5%; looking before
 * the block itself has told, another 1 to 4%. Hearers ask until the last number is there, and all the asking slows what they wait for:
 * backward, 2 warps that hear a sixth of the GPU and then the next are 2 to 3% quicker than 8; forward, with twice the columns, 8 are.
 * Boards are cleared while the first chunks are on their way. */
#ifndef TENON_ACT_SOFTMAX_FLOW_CUH
#define TENON_ACT_SOFTMAX_FLOW_CUH

#include <cooperative_groups.h>
#include <limits.h>

#include "act_softmax_cuda.cuh"

namespace {

#define FLOW_TEAM 256 /* summers; writers */
#define FLOW_HEARERS(backward) ((backward) ? 64 : 256)
#define FLOW_TELLERS 64
#define FLOW_LOADERS 64
#define FLOW_THREADS(backward) (2 * FLOW_TEAM + FLOW_HEARERS(backward) + FLOW_TELLERS + FLOW_LOADERS)
#define FLOW_WARPS (FLOW_TEAM / TN_WARP)
#define FLOW_CHUNK(backward) ((backward) ? 512 : 1024) /* packs; backward half of either tensor */
#define FLOW_WIDE(backward) ((backward) ? 8 : 16)      /* packs: 256 bytes of a row, or 128 of either tensor's */
#define FLOW_RUN_ROWS 384                              /* 96 KiB: less is not worth a block */
#define FLOW_MOST_ROWS 768                             /* nearly all the ring holds */
#define FLOW_GROUPS 3 /* at once, where runs are between the two: of larger groups every block reads too many numbers */
#define FLOW_HEARD(backward) ((backward) ? 22 : 44) /* blocks of which a hearer asks for all numbers at once */
#define FLOW_ASKED(backward) ((backward) ? 6 : 3)   /* chunks on their way: 48 KiB. More stand in the way of what blocks tell each other */
#define FLOW_RESULTS 4                              /* slabs whose numbers have been heard and are not written yet */
#define FLOW_TOLD 16                                /* more slabs than a ring holds */
#define FLOW_LOWEST -3.0e38f

/* ---- mbarriers ---- */

__device__ __forceinline__ uint32_t flow_address(const void *shared) { return (uint32_t)__cvta_generic_to_shared(shared); }
__device__ __forceinline__ void flow_make(uint64_t *barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(flow_address(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void flow_arrive(uint64_t *barrier) {
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}" : : "r"(flow_address(barrier)) : "memory");
}
/* Arrives once this thread's copies so far are there. */
__device__ __forceinline__ void flow_arrive_with_copies(uint64_t *barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" : : "r"(flow_address(barrier)) : "memory");
}
__device__ __forceinline__ void flow_await(uint64_t *barrier, int phase) {
    uint32_t there;
    do {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\tselp.b32 %0, 1, 0, p;\n\t}"
#else
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n\tselp.b32 %0, 1, 0, p;\n\t}"
#endif
                     : "=r"(there)
                     : "r"(flow_address(barrier)), "r"(phase)
                     : "memory");
    } while (!there);
}

/* Which of a ring's places comes next, and how often, modulo 2, it has been gone round. */
struct flow_turn {
    int at, phase;

    __device__ __forceinline__ flow_turn() : at(0), phase(0) {}
    __device__ __forceinline__ void next(int places) {
        if (++at == places) at = 0, phase ^= 1;
    }
};

/* ---- what is written on the board ---- */

/* Eight bytes: the slab's number and a sum. Of bf16 a column's maximum, times log2 e, is known by the sixteen bits of the element. */
template <typename T, bool Max> struct flow_word {
    typedef unsigned long long word;

    static __device__ __forceinline__ void put(word *to, uint32_t slab, float max, float sum) {
        uint32_t high = Max ? slab << 16 | __bfloat16_as_ushort(__float2bfloat16(max / LOG2_E)) : slab;
        asm volatile("st.relaxed.gpu.global.b64 [%0], %1;"
                     :
                     : "l"(__cvta_generic_to_global(to)), "l"((word)high << 32 | __float_as_uint(sum))
                     : "memory");
    }
    static __device__ __forceinline__ word look(const word *from) {
        word all;
        asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(all) : "l"(__cvta_generic_to_global(from)) : "memory");
        return all;
    }
    static __device__ __forceinline__ bool is_of(word all, uint32_t slab) {
        return Max ? (uint32_t)(all >> 48) == (slab & 0xffffu) : (uint32_t)(all >> 32) == slab;
    }
    static __device__ __forceinline__ float max_of(word all) { return Max ? __uint_as_float((uint32_t)(all >> 32) << 16) * LOG2_E : 0.0f; }
    static __device__ __forceinline__ float sum_of(word all) { return __uint_as_float((uint32_t)all); }
};
/* Sixteen bytes, each half with the slab's number. */
template <> struct flow_word<float, true> {
    typedef ulonglong2 word;

    static __device__ __forceinline__ void put(word *to, uint32_t slab, float max, float sum) {
        unsigned long long tag = (unsigned long long)slab << 32;
        asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};"
                     :
                     : "l"(__cvta_generic_to_global(to)), "l"(tag | __float_as_uint(sum)), "l"(tag | __float_as_uint(max))
                     : "memory");
    }
    static __device__ __forceinline__ word look(const word *from) {
        word all;
        asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                     : "=l"(all.x), "=l"(all.y)
                     : "l"(__cvta_generic_to_global(from))
                     : "memory");
        return all;
    }
    static __device__ __forceinline__ bool is_of(const word &all, uint32_t slab) { return all.x >> 32 == slab && all.y >> 32 == slab; }
    static __device__ __forceinline__ float max_of(const word &all) { return __uint_as_float((uint32_t)all.y); }
    static __device__ __forceinline__ float sum_of(const word &all) { return __uint_as_float((uint32_t)all.x); }
};

/* ---- plan ---- */

typedef struct flow_plan {
    int blocks, rows, chunks, slots, sides; /* of a group; of a chunk; of a run; of the ring; of the board */
    int64_t run, groups, n_slabs;           /* rows of a block; slabs of an outer index; of all */
    size_t shared;
} flow_plan;

static inline int64_t flow_groups_at_once(const flow_plan &plan, const tn_device *device) {
    int64_t groups = device->multiprocessors / plan.blocks;
    return groups < plan.n_slabs ? groups : plan.n_slabs;
}
/* Places of a group's board. Who tells of slab i has heard all of slab i - S, S being the slabs that a ring can hold; so all have told of
 * that one, have heard i - 2 S, and need its side no more. */
static __host__ __device__ inline int64_t flow_board(const flow_plan &plan, int columns) {
    return (int64_t)plan.sides * plan.blocks * columns;
}
static inline size_t flow_workspace(const flow_plan &plan, int columns, const tn_device *device) {
    return (size_t)(flow_groups_at_once(plan, device) * flow_board(plan, columns)) * sizeof(ulonglong2);
}

static int flow_blocks(int64_t axis, const tn_device *device) {
    int64_t most = device->multiprocessors, blocks = (axis + FLOW_RUN_ROWS - 1) / FLOW_RUN_ROWS;
    if (blocks > most / FLOW_GROUPS) blocks = most / FLOW_GROUPS;
    if (blocks * FLOW_MOST_ROWS < axis) blocks = (axis + FLOW_MOST_ROWS - 1) / FLOW_MOST_ROWS;
    if (blocks < 1 || blocks > most) return 0;
    return (int)(most / (most / blocks)); /* as many groups, and no multiprocessor idle that one of them could use */
}

/* False where a slab is not for this kernel. */
static bool plan_flow(const softmax_shape &s, int n, bool backward, const tn_device *device, flow_plan *plan) {
    int blocks = device->cuda_path == TN_CUDA_HOPPER ? flow_blocks(s.axis, device) : 0, wide = FLOW_WIDE(backward), columns = wide * n;
    if (blocks < 2) return false;
    plan->run = (s.axis + blocks - 1) / blocks;
    plan->blocks = (int)((s.axis + plan->run - 1) / plan->run);
    plan->groups = (s.inner / n + wide - 1) / wide;
    plan->n_slabs = s.outer * plan->groups;
    size_t rest = (size_t)2 * (FLOW_WARPS + FLOW_RESULTS) * columns * sizeof(float) + (2 + FLOW_TOLD + 2 * FLOW_RESULTS) * sizeof(uint64_t);
    size_t slot = FLOW_CHUNK(backward) * sizeof(uint4) + 2 * sizeof(uint64_t);
    if (rest + slot > device->shared_bytes) return false;
    plan->slots = (int)((device->shared_bytes - rest) / slot);
    plan->shared = plan->slots * slot + rest;
    int most_rows = FLOW_CHUNK(backward) / (backward ? 2 : 1) / wide;
    plan->chunks = (int)((plan->run + most_rows - 1) / most_rows);
    if (plan->chunks > plan->slots) return false;
    plan->rows = (int)((plan->run + plan->chunks - 1) / plan->chunks);
    plan->sides = 2 * ((plan->slots + plan->chunks - 1) / plan->chunks) + 1;
    return true;
}

/* ---- kernel ---- */

/* Maxima are kept times log2 e, and are FLOW_LOWEST at least, so that none is infinitely far from another. Both lanes get the
 * same. */
template <bool Max> __device__ __forceinline__ void flow_merge_lanes(float *max, float *sum, int apart) {
    if (Max) {
        float above = fmaxf(*max, __shfl_xor_sync(0xffffffffu, *max, apart));
        *sum *= power_of_2(*max - above);
        *max = above;
    }
    *sum += __shfl_xor_sync(0xffffffffu, *sum, apart);
}

/* Where the loaders are. */
struct flow_loader {
    int slab, chunk, asked;
    flow_turn slot, coming; /* the next; the first that is on its way */
};

template <typename T, bool Backward> struct softmax_flow_block {
    static constexpr bool Max = !Backward;
    static constexpr int n = tn_pack<T>::n, WIDE = FLOW_WIDE(Backward), columns = WIDE * n;
    static constexpr int CHUNK = FLOW_CHUNK(Backward), HEARERS = FLOW_HEARERS(Backward);
    static constexpr int PLANE = CHUNK / (Backward ? 2 : 1), PACKS = PLANE / FLOW_TEAM; /* of a tensor; of a thread of a team */
    typedef flow_word<T, Max> on_board;
    typedef typename on_board::word word;

    const softmax_shape &s;
    const flow_plan &plan;
    int rank, n_groups, n_mine, rows; /* my slabs, and rows of each */
    int64_t outer, group, first;      /* of the slab at hand; my first row */
    uint4 *ring;                      /* [slot][from, d][pack] */
    float *parts, *result;            /* [max, sum][warp][column]; [max, 1 / sum or sum][place][column] */
    uint64_t *full, *empty;           /* of a slot */
    uint64_t *parts_full, *parts_empty;
    uint64_t *told; /* one after the other */
    uint64_t *result_full, *result_empty;
    word *board; /* [side][block][column] */

    __device__ __forceinline__ softmax_flow_block(const softmax_shape &shape, const flow_plan &how, uint4 *shared, void *boards)
        : s(shape), plan(how), rank(blockIdx.x % how.blocks), n_groups(gridDim.x / how.blocks), ring(shared) {
        int which = blockIdx.x / plan.blocks;
        n_mine = (int)((plan.n_slabs - which + n_groups - 1) / n_groups);
        outer = which / plan.groups, group = which % plan.groups;
        first = plan.run * rank;
        rows = (int)(first + plan.run < s.axis ? plan.run : s.axis - first);
        parts = (float *)(ring + plan.slots * CHUNK);
        result = parts + 2 * FLOW_WARPS * columns;
        full = (uint64_t *)(result + 2 * FLOW_RESULTS * columns), empty = full + plan.slots;
        parts_full = empty + plan.slots, parts_empty = parts_full + 1, told = parts_empty + 1;
        result_full = told + FLOW_TOLD, result_empty = result_full + FLOW_RESULTS;
        board = (word *)boards + which * flow_board(plan, columns);
    }
    __device__ __forceinline__ void make_barriers() const {
        for (int i = 0; i < plan.slots; i++) flow_make(full + i, FLOW_LOADERS), flow_make(empty + i, 2 * FLOW_TEAM);
        flow_make(parts_full, FLOW_TEAM), flow_make(parts_empty, FLOW_TELLERS);
        for (int i = 0; i < FLOW_TOLD; i++) flow_make(told + i, FLOW_TELLERS);
        for (int i = 0; i < FLOW_RESULTS; i++) flow_make(result_full + i, HEARERS), flow_make(result_empty + i, FLOW_TEAM);
    }
    /* My numbers on the board are of no slab. */
    __device__ __forceinline__ void clear_board() const {
        for (int i = threadIdx.x; i < plan.sides * columns; i += FLOW_THREADS(Backward))
            board[(int64_t)(i / columns * plan.blocks + rank) * columns + i % columns] = word{};
    }
    __device__ __forceinline__ void next_slab() {
        group += n_groups;
        while (group >= plan.groups) group -= plan.groups, outer++;
    }
    /* Of `threads`, thread t has pack t % WIDE of rows t / WIDE + k threads / WIDE. */
    __device__ __forceinline__ int64_t place(int t) const {
        return (outer * s.axis + first + t / WIDE) * s.inner + (group * WIDE + t % WIDE) * n;
    }
    /* What remains of chunk c from the row of thread t on. */
    __device__ __forceinline__ int rows_left(int c, int t) const {
        if ((group * WIDE + t % WIDE) * n >= s.inner) return 0;
        int left = rows - c * plan.rows;
        return (left < plan.rows ? left : plan.rows) - t / WIDE;
    }

    /* The chunks from the loader's place on, `most` of them. */
    __device__ __forceinline__ void load(const T *from, const T *d, int t, flow_loader *at, int most) {
        const int64_t step = FLOW_LOADERS / WIDE * s.inner;
        for (; most > 0 && at->slab < n_mine; most--) {
            const int left = rows_left(at->chunk, t);
            const int64_t first_pack = place(t) + at->chunk * plan.rows * s.inner;
            uint4 *packs = ring + at->slot.at * CHUNK + t;
            flow_await(empty + at->slot.at, at->slot.phase ^ 1);
            if (at->asked == FLOW_ASKED(Backward)) {
                flow_await(full + at->coming.at, at->coming.phase);
                at->coming.next(plan.slots);
            } else {
                at->asked++;
            }
#pragma unroll 4
            for (int k = 0; k < PLANE / FLOW_LOADERS; k++)
                if (k * (FLOW_LOADERS / WIDE) < left) {
                    tn_copy_async(packs + k * FLOW_LOADERS, from + first_pack + k * step, true);
                    if (Backward) tn_copy_async(packs + k * FLOW_LOADERS + PLANE, d + first_pack + k * step, true);
                }
            flow_arrive_with_copies(full + at->slot.at);
            at->slot.next(plan.slots);
            if (++at->chunk == plan.chunks) at->chunk = 0, at->slab++, next_slab();
        }
    }
    /* A thread's packs of a chunk; where there is none, what changes neither maximum nor sum. */
    __device__ __forceinline__ void take(flow_turn *slot, int c, int t, uint4 (&raw)[PACKS], uint4 (&raw_d)[PACKS]) const {
        const int left = rows_left(c, t);
        const uint4 *packs = ring + slot->at * CHUNK + t;
        flow_await(full + slot->at, slot->phase);
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            raw[k] = raw_d[k] = Backward ? make_uint4(0, 0, 0, 0) : lowest_pack<T>();
            if (k * (FLOW_TEAM / WIDE) < left) {
                raw[k] = packs[k * FLOW_TEAM];
                if (Backward) raw_d[k] = packs[k * FLOW_TEAM + PLANE];
            }
        }
        flow_arrive(empty + slot->at);
        slot->next(plan.slots);
    }
    static __device__ __forceinline__ void add(const uint4 (&raw)[PACKS], const uint4 (&raw_d)[PACKS], float (&max)[n], float (&sum)[n]) {
        float at[n], up[n];
        if (Max) {
            uint4 largest = raw[0];
#pragma unroll
            for (int k = 1; k < PACKS; k++) largest = larger_pack<T>(largest, raw[k]);
            tn_open_pack<T>(largest, at);
#pragma unroll
            for (int j = 0; j < n; j++) {
                float above = fmaxf(max[j], at[j] * LOG2_E);
                sum[j] *= power_of_2(max[j] - above);
                max[j] = above;
            }
        }
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            tn_open_pack<T>(raw[k], at);
            if (Backward) tn_open_pack<T>(raw_d[k], up);
#pragma unroll
            for (int j = 0; j < n; j++) sum[j] = Backward ? fmaf(at[j], up[j], sum[j]) : sum[j] + power_of_2(fmaf(at[j], LOG2_E, -max[j]));
        }
    }
    __device__ __forceinline__ void sum_up(int t) {
        const int at = t / TN_WARP * columns + t % WIDE * n;
        flow_turn slot, part;
        for (int i = 0; i < n_mine; i++, next_slab()) {
            float max[n], sum[n];
#pragma unroll
            for (int j = 0; j < n; j++) max[j] = FLOW_LOWEST, sum[j] = 0;
            for (int c = 0; c < plan.chunks; c++) {
                uint4 raw[PACKS], raw_d[PACKS];
                take(&slot, c, t, raw, raw_d);
                add(raw, raw_d, max, sum);
            }
#pragma unroll
            for (int apart = WIDE; apart < TN_WARP; apart *= 2)
#pragma unroll
                for (int j = 0; j < n; j++) flow_merge_lanes<Max>(max + j, sum + j, apart);
            flow_await(parts_empty, part.phase ^ 1);
            if (t % TN_WARP < WIDE)
#pragma unroll
                for (int j = 0; j < n; j += 4) {
                    if (Max) *(float4 *)(parts + at + j) = *(float4 *)(max + j);
                    *(float4 *)(parts + FLOW_WARPS * columns + at + j) = *(float4 *)(sum + j);
                }
            flow_arrive(parts_full);
            part.next(1);
        }
    }
    __device__ __forceinline__ void tell(int t) const {
        for (int i = 0, side = 0; i < n_mine; i++) {
            flow_await(parts_full, i % 2);
#pragma unroll
            for (int column = t; column < columns; column += FLOW_TELLERS) {
                float max = FLOW_LOWEST, sum = 0;
                if (Max)
#pragma unroll
                    for (int w = 0; w < FLOW_WARPS; w++) max = fmaxf(max, parts[w * columns + column]);
#pragma unroll
                for (int w = 0; w < FLOW_WARPS; w++) {
                    float part = parts[(FLOW_WARPS + w) * columns + column];
                    sum += Max ? part * power_of_2(parts[w * columns + column] - max) : part;
                }
                on_board::put(board + (int64_t)(side * plan.blocks + rank) * columns + column, i + 1, max, sum);
            }
            flow_arrive(parts_empty), flow_arrive(told + i % FLOW_TOLD);
            if (++side == plan.sides) side = 0;
        }
    }
    /* The numbers of one column, of blocks LANES apart, MANY of them or the `left` that remain. Late ones are asked for all at once: each
     * would take a way to L2 and back. */
    template <int LANES, int MANY>
    static __device__ __forceinline__ void hear_blocks(const word *from, int left, uint32_t slab, float *max, float *sum) {
        word seen[MANY];
        for (bool asked = false, late = true; late; asked = true) {
            late = false;
#pragma unroll
            for (int k = 0; k < MANY; k++)
                if (k * LANES < left && !(asked && on_board::is_of(seen[k], slab))) {
                    seen[k] = on_board::look(from + k * LANES * columns);
                    late = true;
                }
        }
        float above = *max;
        if (Max) {
#pragma unroll
            for (int k = 0; k < MANY; k++)
                if (k * LANES < left) above = fmaxf(above, on_board::max_of(seen[k]));
            *sum *= power_of_2(*max - above);
            *max = above;
        }
#pragma unroll
        for (int k = 0; k < MANY; k++)
            if (k * LANES < left)
                *sum += Max ? on_board::sum_of(seen[k]) * power_of_2(on_board::max_of(seen[k]) - above) : on_board::sum_of(seen[k]);
    }
    /* A column has neighbouring lanes, of which each merges every so manyth block. */
    __device__ __forceinline__ void hear(int t) const {
        constexpr int LANES = HEARERS / columns < TN_WARP ? HEARERS / columns : TN_WARP, MANY = (FLOW_HEARD(Backward) + LANES - 1) / LANES;
        const int lane = t % LANES, column = t / LANES;
        for (int i = 0, side = 0; i < n_mine; i++) {
            const int place = i % FLOW_RESULTS;
            const word *all = board + (int64_t)side * plan.blocks * columns + column;
            float max = FLOW_LOWEST, sum = 0;
            flow_await(told + i % FLOW_TOLD, i / FLOW_TOLD % 2); /* looking earlier would only take time from memory */
            for (int block = lane; block < plan.blocks && column < columns; block += MANY * LANES)
                hear_blocks<LANES, MANY>(all + block * columns, plan.blocks - block, i + 1, &max, &sum);
            __syncwarp();
#pragma unroll
            for (int apart = 1; apart < LANES; apart *= 2) flow_merge_lanes<Max>(&max, &sum, apart);
            flow_await(result_empty + place, i / FLOW_RESULTS % 2 ^ 1);
            if (lane == 0 && column < columns) {
                if (Max) result[place * columns + column] = max;
                result[(FLOW_RESULTS + place) * columns + column] = Max ? 1.0f / sum : sum;
            }
            flow_arrive(result_full + place);
            if (++side == plan.sides) side = 0;
        }
    }
    __device__ __forceinline__ void write(T *to, int t) {
        const int column = t % WIDE * n;
        const int64_t step = FLOW_TEAM / WIDE * s.inner;
        flow_turn slot, heard;
        for (int i = 0; i < n_mine; i++, next_slab()) {
            float max[n], scale[n];
            flow_await(result_full + heard.at, heard.phase);
#pragma unroll
            for (int j = 0; j < n; j += 4) {
                if (Max) *(float4 *)(max + j) = *(const float4 *)(result + heard.at * columns + column + j);
                *(float4 *)(scale + j) = *(const float4 *)(result + (FLOW_RESULTS + heard.at) * columns + column + j);
            }
            flow_arrive(result_empty + heard.at);
            heard.next(FLOW_RESULTS);
            T *there = to + place(t);
            for (int c = 0; c < plan.chunks; c++, there += plan.rows * s.inner) {
                const int left = rows_left(c, t);
                uint4 raw[PACKS], raw_d[PACKS];
                take(&slot, c, t, raw, raw_d);
#pragma unroll
                for (int k = 0; k < PACKS; k++) {
                    if (k * (FLOW_TEAM / WIDE) >= left) break;
                    float at[n], up[n];
                    tn_open_pack<T>(raw[k], at);
                    if (Backward) tn_open_pack<T>(raw_d[k], up);
#pragma unroll
                    for (int j = 0; j < n; j++)
                        at[j] = Backward ? at[j] * (up[j] - scale[j]) : power_of_2(fmaf(at[j], LOG2_E, -max[j])) * scale[j];
                    tn_put_pack(there + k * step, at);
                }
            }
        }
    }
};

template <typename T, bool Backward>
__global__ void __launch_bounds__(FLOW_THREADS(Backward), 1)
    softmax_flow(T *to, const T *from, const T *d, const __grid_constant__ softmax_shape s, const __grid_constant__ flow_plan plan,
                 void *boards) {
    extern __shared__ uint4 flow_shared[];
    softmax_flow_block<T, Backward> block(s, plan, flow_shared, boards);
    flow_loader loader = {};
    int t = threadIdx.x;
    const int t_loader = t - (FLOW_THREADS(Backward) - FLOW_LOADERS);
    if (t == 0) block.make_barriers();
    block.clear_board();
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    cooperative_groups::grid_group::arrival_token here = grid.barrier_arrive();
    if (t_loader >= 0) block.load(from, d, t_loader, &loader, FLOW_ASKED(Backward));
    grid.barrier_wait(static_cast<cooperative_groups::grid_group::arrival_token &&>(here)); /* all boards are clear */
    if (t_loader >= 0) {
        block.load(from, d, t_loader, &loader, INT_MAX);
        tn_copy_async_close();
        tn_copy_async_wait<0>();
        return;
    }
    if (t < FLOW_TEAM) return block.sum_up(t);
    if ((t -= FLOW_TEAM) < FLOW_TEAM) return block.write(to, t);
    if ((t -= FLOW_TEAM) < FLOW_HEARERS(Backward)) return block.hear(t);
    block.tell(t - FLOW_HEARERS(Backward));
}

template <typename T, bool Backward> cudaError_t launch_flow(const softmax_job &job, const flow_plan &plan) {
    constexpr int columns = FLOW_WIDE(Backward) * tn_pack<T>::n;
    cudaError_t error = cudaFuncSetAttribute(softmax_flow<T, Backward>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)plan.shared);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute cooperative;
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(flow_groups_at_once(plan, job.device) * plan.blocks));
    config.blockDim = dim3(FLOW_THREADS(Backward));
    config.dynamicSmemBytes = plan.shared;
    config.stream = job.stream;
    config.attrs = &cooperative;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, softmax_flow<T, Backward>, (T *)job.to, (const T *)job.from, (const T *)job.d, job.shape, plan,
                              job.workspace);
}

} // namespace

#endif
