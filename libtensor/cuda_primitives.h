/* Launchers of the kernels that tensors themselves need on CUDA. Each returns a cudaError_t as an int: 0 is success. */
#ifndef TENON_CUDA_PRIMITIVES_H
#define TENON_CUDA_PRIMITIVES_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

int tn_cuda_fill(tn_tensor *to, double value, void *stream);
int tn_cuda_copy(tn_tensor *to, const tn_tensor *from, void *stream);
int tn_cuda_accumulate(tn_tensor *to, const tn_tensor *from, void *stream);
int tn_cuda_random(tn_tensor *to, const tn_random_spec *spec, void *stream);
int tn_cuda_arange(tn_tensor *to, void *stream);
/* *found (on the device) := the first index, or -1. */
int tn_cuda_find_nonfinite(const tn_tensor *t, int64_t *found, void *stream);
int tn_cuda_find_other_byte(const void *from, unsigned char byte, size_t bytes, int64_t *found, void *stream);

#ifdef __cplusplus
}
#endif
#endif
