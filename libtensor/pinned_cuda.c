#include <cuda_runtime_api.h>

#include "pinned.h"

tn_status tn_cuda_pinned_take(tn_device *device, size_t bytes, void **memory) {
    tn_status status = tn_cuda_said(device, (int)cudaMallocHost(memory, bytes), "cudaMallocHost");
    return status == TN_ERR_MEMORY ? TN_ERR_HOST_MEMORY : status;
}

void tn_cuda_pinned_give(tn_device *device, void *memory) { tn_cuda_said(device, (int)cudaFreeHost(memory), "cudaFreeHost"); }

tn_status tn_cuda_pinned_copy(tn_device *device, void *to, const void *from, size_t bytes, tn_stream stream) {
    cudaStream_t native = device->interface->native_stream(device, stream);
    return tn_cuda_said(device, (int)cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native), "cudaMemcpyAsync");
}
