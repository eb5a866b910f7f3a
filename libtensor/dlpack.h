/* DLPack: tensors to and from other libraries in the same process, without a copy. The ABI is that of DLPack 1.0, declared here under
 * Tenon's own names; a DLManagedTensor * or DLManagedTensorVersioned * from elsewhere can be cast to them.
 *
 * Who owns what:
 * - An exported tensor keeps its storage alive until the consumer calls the deleter, on the thread that uses the context. Writes of either
 *   side are seen by the other; Tenon does not learn of the consumer's (tn_mark_written says so). When the context is closed first the
 *   memory goes with it, and the deleter, which must still be called, frees what is left.
 * - An imported tensor is given back, by a call of its deleter, when the last tensor over its storage is gone and the device has finished
 *   with it. Until then the bytes are counted as `foreign` in tn_memory_stats and in no category, pool or limit: they are not ours.
 * - Where an import fails, nothing was taken: the deleter is still the caller's to call.
 *
 * Nothing here waits for another library's stream: on CUDA the producer's work must be done, or ordered before the context's stream
 * (tn_native_stream), when the tensor changes hands. */
#ifndef TENON_DLPACK_H
#define TENON_DLPACK_H

#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TN_DL_MAJOR 1
#define TN_DL_MINOR 0
#define TN_DL_READ_ONLY ((uint64_t)1) /* flags: the consumer must not write */
#define TN_DL_COPIED ((uint64_t)2)    /* flags: the producer made a copy for this */

enum { TN_DL_CPU = 1, TN_DL_CUDA = 2, TN_DL_CUDA_HOST = 3, TN_DL_CUDA_MANAGED = 13 };      /* device types */
enum { TN_DL_INT = 0, TN_DL_UINT = 1, TN_DL_FLOAT = 2, TN_DL_BFLOAT = 4, TN_DL_BOOL = 6 }; /* type codes */

typedef struct tn_dl_device {
    int32_t type, id;
} tn_dl_device;

typedef struct tn_dl_dtype {
    uint8_t code, bits;
    uint16_t lanes;
} tn_dl_dtype;

typedef struct tn_dl_tensor {
    void *data;
    tn_dl_device device;
    int32_t axes;
    tn_dl_dtype dtype;
    int64_t *shape;
    int64_t *stride; /* in elements; NULL: row-major without gaps */
    uint64_t byte_offset;
} tn_dl_tensor;

/* DLManagedTensor: what a capsule named "dltensor" holds. */
typedef struct tn_dl_managed {
    tn_dl_tensor tensor;
    void *manager;
    void (*deleter)(struct tn_dl_managed *self); /* may be NULL */
} tn_dl_managed;

/* DLManagedTensorVersioned: what a capsule named "dltensor_versioned" holds. */
typedef struct tn_dl_managed_versioned {
    struct {
        uint32_t major, minor;
    } version;
    void *manager;
    void (*deleter)(struct tn_dl_managed_versioned *self); /* may be NULL */
    uint64_t flags;
    tn_dl_tensor tensor;
} tn_dl_managed_versioned;

/* t's storage for another library, with t's shape and strides. NULL on error. */
TN_API tn_dl_managed *tn_to_dlpack(tn_tensor *t);
TN_API tn_dl_managed_versioned *tn_to_dlpack_versioned(tn_tensor *t);

/* A tensor in the innermost scope over the other library's memory, which must be on the context's device: plain or pinned host memory, or
 * the context's GPU. Of the versioned kind, one that must not be written to is copied and given back at once. */
TN_API tn_tensor *tn_from_dlpack(tn_context *cx, tn_dl_managed *managed);
TN_API tn_tensor *tn_from_dlpack_versioned(tn_context *cx, tn_dl_managed_versioned *managed);

#ifdef __cplusplus
}
#endif
#endif
