/* Tiles of bf16 in shared memory and the instructions that read and multiply them, from sm_80 on.
 *
 * A tile's rows are cut into pieces of 16 bytes, which are permuted so that ldmatrix, and cp.async, meet no bank twice. */
#ifndef TENON_ATTENTION_TILES_CUH
#define TENON_ATTENTION_TILES_CUH

#include "../../libtensor/cuda_common.cuh"

/* ---- instructions ---- */

__device__ __forceinline__ uint32_t tn_at_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void tn_at_copy_16(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void tn_at_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void tn_at_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ __forceinline__ void tn_at_load(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void tn_at_load_transposed(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
/* c [16 x 8] += a [16 x 16] b [16 x 8] */
__device__ __forceinline__ void tn_at_multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ float tn_at_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float tn_at_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ uint32_t tn_at_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ float tn_at_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- tiles ---- */

/* Bytes from a row's piece of 16 bytes to the tile's start: eight neighbouring rows have their piece c in eight different places of 128
 * bytes. */
template <int ROW_BYTES> __device__ __forceinline__ int tn_at_piece(int row, int piece) {
    constexpr int PIECES = ROW_BYTES / 16;
    if (PIECES >= 8) return row * ROW_BYTES + (piece ^ (row & 7)) * 16;
    constexpr int ROWS_OF_128 = 8 / (PIECES < 8 ? PIECES : 8);
    return row * ROW_BYTES + (piece ^ (row / ROWS_OF_128 % (PIECES < 8 ? PIECES : 8))) * 16;
}

/* rows x ROW_BYTES of a matrix with `stride` elements between rows, of which the first `there` rows and `pieces` pieces exist. */
template <int THREADS, int ROWS, int ROW_BYTES>
__device__ __forceinline__ void tn_at_fetch(uint32_t to, const tn_cuda_bf16 *from, int64_t stride, int pieces, int there) {
    if (pieces == ROW_BYTES / 16) {
#pragma unroll
        for (int i = threadIdx.x; i < ROWS * (ROW_BYTES / 16); i += THREADS) {
            int row = i / (ROW_BYTES / 16), piece = i % (ROW_BYTES / 16);
            bool here = row < there;
            tn_at_copy_16(to + tn_at_piece<ROW_BYTES>(row, piece), from + (here ? row : 0) * stride + piece * 8, here);
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * pieces; i += THREADS) {
            int row = i / pieces, piece = i % pieces;
            bool here = row < there;
            tn_at_copy_16(to + tn_at_piece<ROW_BYTES>(row, piece), from + (here ? row : 0) * stride + piece * 8, here);
        }
    }
}

#endif
