/* Matrix products on CUDA through cuBLASLt: row-major, batched, with bias and relu in the epilogue.
 *
 * The algorithm comes from cuBLASLt's heuristic by a fixed rule, never from timing, so that runs repeat; it and the descriptors are kept
 * per shape. */
#ifndef TENON_GEMM_CUDA_H
#define TENON_GEMM_CUDA_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* c[m, n] = relu(alpha * op(a) op(b) + beta * c + bias), op(a) [m, k], op(b) [k, n]; row-major with leading dimensions in elements. Only
 * elements need be aligned, but rows of whole 16 bytes are read faster. Sums run in f32 (f64 for f64) over all of k and are rounded once.
 * With beta = 0 c is not read. With k = 0 neither a nor b is read, beta must be 0 or 1, and there can be neither bias nor relu. */
typedef struct tn_gemm_cuda_product {
    tn_dtype dtype;   /* of a, b and c: f64, f32, bf16 */
    tn_dtype c_dtype; /* of c: the same, or f32 for bf16 data */
    bool transpose_a, transpose_b;
    bool relu;
    int64_t m, n, k, lda, ldb, ldc;
    int64_t n_batch, batch_a, batch_b, batch_c; /* items and their strides in elements; 0: shared (a and b) */
    const void *a, *b;
    const void *bias; /* [n], c's dtype, or NULL */
    void *c;
    double alpha, beta;
} tn_gemm_cuda_product;

/* Scratch that a product does well with: as much as cuBLAS itself would take, less where c is small. From the shape alone, so that a dry
 * run knows it. Allocate it through the op's workspace(). */
size_t tn_gemm_cuda_workspace_bytes(int64_t n_batch, int64_t m, int64_t n);
/* `workspace` is aligned to 256 bytes. TN_ERR_UNSUPPORTED: cuBLASLt is not there, or has no algorithm for the product. */
tn_status tn_gemm_cuda(tn_device *device, const tn_gemm_cuda_product *product, void *workspace, size_t workspace_bytes, void *stream);

/* f32 products may round their inputs to tf32 (off unless asked for). */
tn_status tn_gemm_cuda_allow_tf32(tn_device *device, bool allowed);
/* Frees what tn_gemm_cuda keeps for the device. */
void tn_gemm_cuda_close(tn_device *device);

#ifdef __cplusplus
}
#endif
#endif
