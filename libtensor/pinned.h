/* Host memory that the device copies to and from by itself, on any of its streams, while host and device go on. */
#ifndef TENON_PINNED_H
#define TENON_PINNED_H

#include "device.h"

/* On CUDA pinned; taking it costs milliseconds and may wait for the device, so it is for keeping. A dry run has no bytes behind it. */
tn_status tn_pinned_take(tn_device *device, size_t bytes, void **memory);
void tn_pinned_give(tn_device *device, void *memory);
/* Puts the copy on the stream and returns. */
tn_status tn_pinned_copy_out(tn_device *device, void *host, const void *from, size_t bytes, tn_stream stream);
tn_status tn_pinned_copy_in(tn_device *device, void *to, const void *host, size_t bytes, tn_stream stream);

/* The same for CUDA devices alone. */
tn_status tn_cuda_pinned_take(tn_device *device, size_t bytes, void **memory);
void tn_cuda_pinned_give(tn_device *device, void *memory);
tn_status tn_cuda_pinned_copy(tn_device *device, void *to, const void *from, size_t bytes, tn_stream stream);

#endif
