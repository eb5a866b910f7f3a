#include "pinned.h"

#include <string.h>

#include "host_memory.h"

static bool on_cuda(const tn_device *device) { return device->kind == TN_DEVICE_CUDA && !device->dry_run; }

tn_status tn_pinned_take(tn_device *device, size_t bytes, void **memory) {
    if (on_cuda(device)) return tn_cuda_pinned_take(device, bytes, memory);
    *memory = tn_host_alloc(device->dry_run ? 1 : bytes);
    return *memory ? TN_OK : TN_ERR_HOST_MEMORY;
}

void tn_pinned_give(tn_device *device, void *memory) {
    if (on_cuda(device)) tn_cuda_pinned_give(device, memory);
    else tn_host_free(memory);
}

static tn_status copy(tn_device *device, void *to, const void *from, size_t bytes, tn_stream stream) {
    if (on_cuda(device)) return tn_cuda_pinned_copy(device, to, from, bytes, stream);
    if (!device->dry_run) memcpy(to, from, bytes);
    return TN_OK;
}

tn_status tn_pinned_copy_out(tn_device *device, void *host, const void *from, size_t bytes, tn_stream stream) {
    return copy(device, host, from, bytes, stream);
}

tn_status tn_pinned_copy_in(tn_device *device, void *to, const void *host, size_t bytes, tn_stream stream) {
    return copy(device, to, host, bytes, stream);
}
