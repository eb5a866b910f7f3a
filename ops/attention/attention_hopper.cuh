/* What Hopper has beyond attention_tiles.cuh: wgmma, barriers in shared memory, warpgroups with registers of their own.
 *
 * A tile of width D lies in D / 64 panels of 64 columns, a row of a panel takes 128 bytes, its pieces of 16 bytes permuted as wgmma's
 * 128-byte swizzle wants them. */
#ifndef TENON_ATTENTION_HOPPER_CUH
#define TENON_ATTENTION_HOPPER_CUH

#include "attention_core.cuh"

/* wgmma exists in code for sm_90a only. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TN_AT_WGMMA 1
#else
#define TN_AT_WGMMA 0
#endif

/* A block: a warpgroup that fetches and two that multiply, 64 rows each. */
constexpr int TN_AT_GROUP = 128, TN_AT_BLOCK = 3 * TN_AT_GROUP;
constexpr int TN_AT_READERS = 2 * TN_AT_GROUP;

#if TN_AT_WGMMA

/* ---- tiles ---- */

/* Shared memory from a multiple of 1024 on, as the swizzle wants it. */
__device__ __forceinline__ unsigned char *tn_at_aligned_memory() {
    extern __shared__ unsigned char memory[];
    return memory + ((1024 - tn_at_shared(memory) % 1024) & 1023);
}

template <int ROWS> __device__ __forceinline__ int tn_at_panel_piece(int row, int piece) {
    return piece / 8 * ROWS * 128 + row * 128 + (piece % 8 ^ (row & 7)) * 16;
}

/* By one warpgroup: ROWS rows of width D, `stride` elements apart, of which the first `there` exist; the others are 0. */
template <int ROWS, int D>
__device__ __forceinline__ void tn_at_fetch_panels(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int64_t there) {
    constexpr int PIECES = D / 8, STEP = TN_AT_GROUP / PIECES; /* a multiple of 8: a thread's pieces lie alike in their rows */
    int row = threadIdx.x % TN_AT_GROUP / PIECES, piece = threadIdx.x % PIECES;
    to += tn_at_panel_piece<ROWS>(row, piece);
    const tn_cuda_bf16 *at = from + row * stride + piece * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        bool here = row + i * STEP < there;
        tn_at_copy_16(to + i * STEP * 128, here ? at : from, here);
        at += STEP * stride;
        asm volatile("" : "+l"(at)); /* one pointer, not one for every row kept all along */
    }
}

/* What this thread has written to shared memory becomes visible to wgmma, once a barrier has been passed too. */
__device__ __forceinline__ void tn_at_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Two products of bf16, rounded. */
__device__ __forceinline__ uint32_t tn_at_pair_product(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

/* ---- barriers ---- */

__device__ __forceinline__ void tn_at_barrier_make(uint32_t at, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void tn_at_arrive(uint32_t at) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(at) : "memory");
}
__device__ __forceinline__ void tn_at_await(uint32_t at, int phase) {
    asm volatile(
        "{\n.reg .pred there;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n@there bra DONE;\nbra AGAIN;\nDONE:\n}" ::
            "r"(at),
        "r"(phase)
        : "memory");
}
/* All threads of one warpgroup. */
__device__ __forceinline__ void tn_at_group_barrier(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

/* A ring of stages: `full` when the fetching warpgroup's threads have all arrived, `empty` when the readers' have, each for what it has
 * read itself. */
template <int STAGES> struct tn_at_ring {
    uint32_t at; /* 2 x STAGES barriers */
    int stage, phase;

    __device__ __forceinline__ void make() {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                tn_at_barrier_make(at + i * 8, TN_AT_GROUP);
                tn_at_barrier_make(at + (STAGES + i) * 8, TN_AT_READERS);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        stage = phase = 0;
    }
    __device__ __forceinline__ void step() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    __device__ __forceinline__ uint32_t full() const { return at + stage * 8; }
    __device__ __forceinline__ void await_full() const { tn_at_await(at + stage * 8, phase); }
    __device__ __forceinline__ void await_empty() const { tn_at_await(at + (STAGES + stage) * 8, phase ^ 1); }
    /* The fetching warpgroup, after the copies of tile number `index`: hands over what has come, and goes on. Only the first tile is left
     * on its way while the second is asked for; later ones have the time that the readers take for the tile before. */
    __device__ __forceinline__ void deliver(int index, bool last) {
        tn_at_copy_commit();
        if (index > 0 || last) {
            if (index == 1) {
                tn_at_copy_wait<1>();
                tn_at_publish();
                tn_at_arrive(at);
            }
            tn_at_copy_wait<0>();
            tn_at_publish();
            tn_at_arrive(at + stage * 8);
        }
        step();
    }
    __device__ __forceinline__ void say_empty(int which) const { tn_at_arrive(at + (STAGES + which) * 8); }
};

/* The fetching warpgroup hands a tile over when it has asked for the next: who reads must not need the one to let the other be asked
 * for. */
struct tn_at_handing_over {
    uint32_t pending;

    __device__ __forceinline__ void asked_for(uint32_t full) {
        tn_at_copy_commit();
        if (pending) {
            tn_at_copy_wait<1>();
            tn_at_publish();
            tn_at_arrive(pending);
        }
        pending = full;
    }
    __device__ __forceinline__ void finish() {
        tn_at_copy_wait<0>();
        tn_at_publish();
        tn_at_arrive(pending);
    }
};

template <int N> __device__ __forceinline__ void tn_at_more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void tn_at_fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

/* ---- wgmma ---- */

/* A side whose rows are those of the tile, 16 columns of a panel the depth: the address of the first row of the panel, + 32 bytes for each
 * 16 columns. */
__device__ __forceinline__ uint64_t tn_at_rows(uint32_t from) {
    return (uint64_t)((from & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
/* The right side with the tile's rows for the depth: the address of the first of 16 rows, the bytes of a panel. */
__device__ __forceinline__ uint64_t tn_at_columns(uint32_t from, uint32_t panel) {
    return (uint64_t)((from & 0x3ffff) >> 4) | (uint64_t)(panel >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* Before the first of a batch, and before registers that a batch uses are touched again: */
__device__ __forceinline__ void tn_at_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void tn_at_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void tn_at_finish() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/* The compiler must keep accumulators in place while wgmma works on them. */
template <int N> __device__ __forceinline__ void tn_at_hold(float (&c)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++) asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])::"memory");
}
template <int N> __device__ __forceinline__ void tn_at_hold(uint32_t (&a)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++) asm volatile("" : "+r"(a[j][0]), "+r"(a[j][1]), "+r"(a[j][2]), "+r"(a[j][3])::"memory");
}

#define TN_AT_C4(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define TN_AT_C32 TN_AT_C4(0), TN_AT_C4(1), TN_AT_C4(2), TN_AT_C4(3), TN_AT_C4(4), TN_AT_C4(5), TN_AT_C4(6), TN_AT_C4(7)
#define TN_AT_C64 TN_AT_C32, TN_AT_C4(8), TN_AT_C4(9), TN_AT_C4(10), TN_AT_C4(11), TN_AT_C4(12), TN_AT_C4(13), TN_AT_C4(14), TN_AT_C4(15)
#define TN_AT_R32                                                            \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TN_AT_R64                                                                                  \
    TN_AT_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
              "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/* c [64 x 8 N] = or += a b', both tiles by rows. N: 8 or 16. */
#define TN_AT_FRESH(j) "=f"(c[j][0]), "=f"(c[j][1]), "=f"(c[j][2]), "=f"(c[j][3])
#define TN_AT_FRESH32 \
    TN_AT_FRESH(0), TN_AT_FRESH(1), TN_AT_FRESH(2), TN_AT_FRESH(3), TN_AT_FRESH(4), TN_AT_FRESH(5), TN_AT_FRESH(6), TN_AT_FRESH(7)
#define TN_AT_FRESH64                                                                                                                   \
    TN_AT_FRESH32, TN_AT_FRESH(8), TN_AT_FRESH(9), TN_AT_FRESH(10), TN_AT_FRESH(11), TN_AT_FRESH(12), TN_AT_FRESH(13), TN_AT_FRESH(14), \
        TN_AT_FRESH(15)
__device__ __forceinline__ void tn_at_rows_by_rows_first(float (&c)[8][4], uint64_t a, uint64_t b) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TN_AT_R32
                 "}, %32, %33, add, 1, 1, 0, 0;\n}"
                 : TN_AT_FRESH32
                 : "l"(a), "l"(b), "r"(0));
}
__device__ __forceinline__ void tn_at_rows_by_rows_first(float (&c)[16][4], uint64_t a, uint64_t b) {
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TN_AT_R64
                 "}, %64, %65, add, 1, 1, 0, 0;\n}"
                 : TN_AT_FRESH64
                 : "l"(a), "l"(b), "r"(0));
}
__device__ __forceinline__ void tn_at_rows_by_rows(float (&c)[8][4], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TN_AT_R32 "}, %32, %33, 1, 1, 1, 0, 0;"
                 : TN_AT_C32
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void tn_at_rows_by_rows(float (&c)[16][4], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TN_AT_R64 "}, %64, %65, 1, 1, 1, 0, 0;"
                 : TN_AT_C64
                 : "l"(a), "l"(b));
}
/* c [64 x 8 N] += a b, a in registers as accumulators lie, b by columns. */
__device__ __forceinline__ void tn_at_by_columns(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TN_AT_R32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : TN_AT_C32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void tn_at_by_columns(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TN_AT_R64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : TN_AT_C64
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* s [64 x 8 N] = rows of a times rows of b, tiles of width D with A_ROWS and 8 N rows; to be awaited. */
template <int D, int A_ROWS, int N> __device__ __forceinline__ void tn_at_scores(float (&s)[N][4], uint32_t a, uint32_t b) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint64_t left = tn_at_rows(a + k / 4 * A_ROWS * 128 + k % 4 * 32), right = tn_at_rows(b + k / 4 * N * 8 * 128 + k % 4 * 32);
        if (k == 0) tn_at_rows_by_rows_first(s, left, right);
        else tn_at_rows_by_rows(s, left, right);
    }
    tn_at_commit();
}
/* sum [64 x D] += p [64 x 16 K] times the tile b of 16 K rows; to be awaited. */
template <int K, int D8> __device__ __forceinline__ void tn_at_add_values(float (&sum)[D8][4], const uint32_t (&p)[K][4], uint32_t b) {
#pragma unroll
    for (int k = 0; k < K; k++) tn_at_by_columns(sum, p[k], tn_at_columns(b + k * 2048, K * 16 * 128));
    tn_at_commit();
}

#endif
#endif
