/* NumPy's .npy files: one array each, versions 1.0, 2.0 and 3.0. */
#ifndef TENON_NPY_H
#define TENON_NPY_H

#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A copy of the array on cx. Read are '<f8', '<f4', '<i8', '<i4', '|u1', '|b1', and '<f2', which becomes f32; an array in Fortran order
 * keeps that order as the tensor's strides. An error names the file and says what is wrong with it: no other dtype and no big-endian
 * one is read, the header's dict holds descr, fortran_order and shape and nothing else, and the file ends where the data ends. */
TN_API tn_tensor *tn_npy_load(tn_context *cx, const char *path);

/* Writes t in row-major order as version 1.0, to a temporary file that is synced and renamed over `path`. The format has no bf16:
 * that is an error, and tn_cast to f32 the way around it. */
TN_API bool tn_npy_save(const tn_tensor *t, const char *path);

#ifdef __cplusplus
}
#endif
#endif
