/* The dry run: hands out addresses, launches nothing, and so tells what a run would need without running it. */
#include <stdio.h>
#include <string.h>

#include "device_immediate.h"
#include "host_memory.h"

/* Addresses start high, so that none looks like a small number, and stay exact in a double. */
#define FIRST_ADDRESS (UINT64_C(1) << 40)
#define LAST_ADDRESS (UINT64_C(1) << 53)
#define ALIGNMENT (UINT64_C(2) << 20)

/* The GPU that a dry run as on CUDA imitates where there is none: an H100 or H200. */
static const tn_cuda_gpu h100 = { .best = TN_CUDA_HOPPER, .multiprocessors = 132, .shared_bytes = (size_t)227 << 10 };

typedef struct dry_device {
    tn_immediate_device immediate;
    uint64_t next_address;
} dry_device;

static tn_status segment_alloc(tn_device *device, size_t bytes, void **memory) {
    dry_device *dry = (dry_device *)device;
    if (bytes == 0 || bytes > LAST_ADDRESS - ALIGNMENT - dry->next_address) {
        snprintf(device->failure, sizeof device->failure, "the dry run has no %zu bytes of addresses left", bytes);
        return TN_ERR_MEMORY;
    }
    *memory = (void *)(uintptr_t)dry->next_address;
    dry->next_address += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return TN_OK;
}
static void segment_free(tn_device *device, void *memory, size_t bytes) { (void)device, (void)memory, (void)bytes; }

static tn_status copy_from_host(tn_device *device, void *to, const void *host, size_t bytes, tn_stream stream) {
    (void)device, (void)to, (void)host, (void)bytes, (void)stream;
    return TN_OK;
}
static tn_status copy_to_host(tn_device *device, void *host, const void *from, size_t bytes, tn_stream stream) {
    (void)host, (void)from, (void)bytes, (void)stream;
    snprintf(device->failure, sizeof device->failure, "a dry run computes nothing, so there is no data to read back");
    return TN_ERR_UNSUPPORTED;
}
static tn_status fill_bytes(tn_device *device, void *to, unsigned char byte, size_t bytes, tn_stream stream) {
    (void)device, (void)to, (void)byte, (void)bytes, (void)stream;
    return TN_OK;
}
/* The library's own checks find nothing wrong. */
static tn_status find_other_byte(tn_device *device, const void *from, unsigned char byte, size_t bytes, size_t *at) {
    (void)device, (void)from, (void)byte;
    *at = bytes;
    return TN_OK;
}
static tn_status find_nonfinite(tn_device *device, const tn_tensor *t, int64_t *at, tn_stream stream) {
    (void)device, (void)t, (void)stream;
    *at = -1;
    return TN_OK;
}

static tn_status fill(tn_device *device, tn_tensor *to, double value, tn_stream stream) {
    (void)device, (void)to, (void)value, (void)stream;
    return TN_OK;
}
static tn_status copy(tn_device *device, tn_tensor *to, const tn_tensor *from, tn_stream stream) {
    (void)device, (void)to, (void)from, (void)stream;
    return TN_OK;
}
static tn_status random_numbers(tn_device *device, tn_tensor *to, const tn_random_spec *spec, tn_stream stream) {
    (void)device, (void)to, (void)spec, (void)stream;
    return TN_OK;
}
static tn_status arange(tn_device *device, tn_tensor *to, tn_stream stream) {
    (void)device, (void)to, (void)stream;
    return TN_OK;
}

static const tn_device_interface dry_run_interface = {
    .segment_alloc = segment_alloc,
    .segment_free = segment_free,
    TN_IMMEDIATE_QUEUE,
    .copy_from_host = copy_from_host,
    .copy_to_host = copy_to_host,
    .fill_bytes = fill_bytes,
    .find_other_byte = find_other_byte,
    .fill = fill,
    .copy = copy,
    .accumulate = copy,
    .random = random_numbers,
    .arange = arange,
    .find_nonfinite = find_nonfinite,
};

tn_device *tn_device_open_dry_run(tn_device_kind imitated, char *reason, size_t n_bytes) {
    if (imitated < 0 || imitated >= TN_DEVICE_KIND_COUNT) {
        snprintf(reason, n_bytes, "no such device to imitate");
        return NULL;
    }
    dry_device *dry = (dry_device *)tn_host_calloc(sizeof *dry);
    if (!dry) {
        snprintf(reason, n_bytes, "no host memory for the device");
        return NULL;
    }
    tn_device *device = &dry->immediate.base;
    device->interface = &dry_run_interface;
    device->kind = imitated;
    device->dry_run = true;
    device->name = "dry-run";
    device->threads = 1;
    dry->next_address = FIRST_ADDRESS;
    if (imitated == TN_DEVICE_CUDA) {
        tn_cuda_gpu gpu;
        if (!tn_cuda_gpu_find(&gpu)) gpu = h100;
        if (!tn_cuda_path_choose(gpu.best, &device->cuda_path, reason, n_bytes)) {
            tn_host_free(dry);
            return NULL;
        }
        device->multiprocessors = gpu.multiprocessors;
        device->shared_bytes = gpu.shared_bytes;
    }
    snprintf(device->detail, sizeof device->detail, "records memory as on %s, computes nothing",
             imitated == TN_DEVICE_CUDA ? "cuda" : "cpu");
    return device;
}
