/* Stands in for pinned memory where the build has no CUDA: nobody calls it. */
#include "pinned.h"

tn_status tn_cuda_pinned_take(tn_device *device, size_t bytes, void **memory) {
    (void)device, (void)bytes, (void)memory;
    return TN_ERR_UNSUPPORTED;
}

void tn_cuda_pinned_give(tn_device *device, void *memory) { (void)device, (void)memory; }

tn_status tn_cuda_pinned_copy(tn_device *device, void *to, const void *from, size_t bytes, tn_stream stream) {
    (void)device, (void)to, (void)from, (void)bytes, (void)stream;
    return TN_ERR_UNSUPPORTED;
}
