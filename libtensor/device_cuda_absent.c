/* Stands in for the CUDA device where the build has none. */
#include <stdio.h>

#include "device.h"
#include "device_cuda.h"

tn_device *tn_device_open_cuda(tn_status *status, char *reason, size_t n_bytes) {
    *status = TN_ERR_DEVICE;
    snprintf(reason, n_bytes, "built without CUDA");
    return NULL;
}

bool tn_cuda_gpu_find(tn_cuda_gpu *found) {
    (void)found;
    return false;
}

tn_status tn_cuda_said(tn_device *device, int cuda_error, const char *call) {
    if (cuda_error == 0) return TN_OK;
    snprintf(device->failure, sizeof device->failure, "%s: built without CUDA", call);
    return TN_ERR_UNSUPPORTED;
}

int tn_cuda_ordinal(tn_device *device) {
    (void)device;
    return 0;
}
