/* Sums over any set of axes of a strided tensor on CUDA, for every family; other reductions use the kernels in reduction_cuda.cuh. */
#ifndef TENON_REDUCTION_CUDA_H
#define TENON_REDUCTION_CUDA_H

#include "../libtensor/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Scratch of tn_cuda_sum for a tensor of x's dtype, shape and strides. `axes` has a bit for each reduced axis. */
size_t tn_cuda_sum_bytes(const tn_tensor *x, uint32_t axes);

/* o := the sum of x over `axes`, divided by `divisor` for floats. o is dense over the kept axes in order, in x's dtype; integers and
 * bool are summed into i64 modulo 2^64. Returns a cudaError_t. */
int tn_cuda_sum(tn_device *device, const tn_tensor *x, uint32_t axes, double divisor, void *o, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
