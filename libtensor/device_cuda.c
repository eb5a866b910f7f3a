/* The CUDA device: memory, streams, events and copies through the runtime; kernels are in cuda_primitives.cu. */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_primitives.h"
#include "device.h"
#include "device_cuda.h"
#include "gemm_cuda.h"
#include "host_memory.h"

#define MAX_STREAMS 32
/* Copies from and to the host go through pinned pieces, so that the host's own memory may be pageable and the copy engine runs at full
 * speed. Pinning costs milliseconds, so the pieces are made by the first copy that is worth it; small ones the driver stages itself. */
#define PINNED_PIECE_BYTES ((size_t)4 << 20)
#define PINNED_PIECES 2
#define SMALL_COPY_BYTES ((size_t)64 << 10)

typedef struct tn_cuda_device {
    tn_device base;
    int ordinal;
    cudaStream_t streams[MAX_STREAMS];
    int n_streams;
    void *pinned[PINNED_PIECES];
    cudaEvent_t pinned_free[PINNED_PIECES]; /* recorded when the copy out of the piece was put on a stream */
    int next_piece;
    int64_t *found; /* device memory for one index, made when first looked for, from the driver: the allocator stands on this device */
} tn_cuda_device;

static tn_cuda_device *cuda_of(tn_device *device) { return (tn_cuda_device *)device; }
int tn_cuda_ordinal(tn_device *device) { return cuda_of(device)->ordinal; }

tn_status tn_cuda_said(tn_device *device, int cuda_error, const char *call) {
    cudaError_t error = (cudaError_t)cuda_error;
    if (error == cudaSuccess) return TN_OK;
    cudaGetLastError(); /* a launch error stays until it is read */
    snprintf(device->failure, sizeof device->failure, "%s: %s (%s)", call, cudaGetErrorString(error), cudaGetErrorName(error));
    return error == cudaErrorMemoryAllocation ? TN_ERR_MEMORY : TN_ERR_DEVICE;
}

#define SAID(device, expression, call) tn_cuda_said((device), (int)(expression), (call))
#define RETURN_UNLESS_OK(expression)    \
    do {                                \
        tn_status said = (expression);  \
        if (said != TN_OK) return said; \
    } while (0)

static cudaStream_t stream_of(tn_device *device, tn_stream stream) { return cuda_of(device)->streams[stream]; }

/* ---- segments ---- */

static tn_status segment_alloc(tn_device *device, size_t bytes, void **memory) {
    return SAID(device, cudaMalloc(memory, bytes), "cudaMalloc");
}

static void segment_free(tn_device *device, void *memory, size_t bytes) {
    (void)bytes;
    tn_cuda_said(device, (int)cudaFree(memory), "cudaFree");
}

/* ---- streams and events ---- */

static tn_status stream_create(tn_device *device, tn_stream *stream) {
    tn_cuda_device *cuda = cuda_of(device);
    if (cuda->n_streams == MAX_STREAMS) {
        snprintf(device->failure, sizeof device->failure, "a context has at most %d streams", MAX_STREAMS);
        return TN_ERR_ARGUMENT;
    }
    RETURN_UNLESS_OK(SAID(device, cudaStreamCreateWithFlags(&cuda->streams[cuda->n_streams], cudaStreamNonBlocking), "cudaStreamCreate"));
    *stream = cuda->n_streams++;
    return TN_OK;
}

static cudaEvent_t event_of(tn_device_event event) { return (cudaEvent_t)(uintptr_t)event.handle; }

/* Nobody could do anything about a failure, and the next launch is not to answer for it. */
static void destroy(cudaEvent_t event) {
    cudaEventDestroy(event);
    cudaGetLastError();
}

static tn_status event_record(tn_device *device, tn_stream stream, tn_device_event *event) {
    cudaEvent_t recorded;
    RETURN_UNLESS_OK(SAID(device, cudaEventCreateWithFlags(&recorded, cudaEventDisableTiming), "cudaEventCreate"));
    tn_status status = SAID(device, cudaEventRecord(recorded, stream_of(device, stream)), "cudaEventRecord");
    if (status != TN_OK) destroy(recorded);
    event->handle = (uint64_t)(uintptr_t)recorded;
    return status;
}

static tn_status event_done(tn_device *device, tn_device_event event, bool *done) {
    cudaError_t error = cudaEventQuery(event_of(event));
    *done = error == cudaSuccess;
    if (error == cudaErrorNotReady) {
        cudaGetLastError();
        return TN_OK;
    }
    RETURN_UNLESS_OK(SAID(device, error, "cudaEventQuery"));
    destroy(event_of(event));
    return TN_OK;
}

static tn_status event_wait(tn_device *device, tn_device_event event) {
    tn_status status = SAID(device, cudaEventSynchronize(event_of(event)), "cudaEventSynchronize");
    destroy(event_of(event));
    return status;
}

static tn_status stream_wait(tn_device *device, tn_stream waiting, tn_stream awaited) {
    cudaEvent_t event;
    RETURN_UNLESS_OK(SAID(device, cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
    tn_status status = SAID(device, cudaEventRecord(event, stream_of(device, awaited)), "cudaEventRecord");
    if (status == TN_OK) status = SAID(device, cudaStreamWaitEvent(stream_of(device, waiting), event, 0), "cudaStreamWaitEvent");
    destroy(event); /* the wait that was put on the stream keeps what it needs */
    return status;
}

static tn_status synchronize(tn_device *device) { return SAID(device, cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

static void *native_stream(tn_device *device, tn_stream stream) { return stream_of(device, stream); }

/* ---- bytes ---- */

static tn_status pin_pieces(tn_device *device) {
    tn_cuda_device *cuda = cuda_of(device);
    for (int i = 0; i < PINNED_PIECES; i++) {
        if (!cuda->pinned_free[i])
            RETURN_UNLESS_OK(SAID(device, cudaEventCreateWithFlags(&cuda->pinned_free[i], cudaEventDisableTiming), "cudaEventCreate"));
        if (!cuda->pinned[i]) RETURN_UNLESS_OK(SAID(device, cudaMallocHost(&cuda->pinned[i], PINNED_PIECE_BYTES), "cudaMallocHost"));
    }
    return TN_OK;
}

/* From pageable memory the call returns once the driver has taken the bytes; to it, once they are there. */
static tn_status copy_small(tn_device *device, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, tn_stream stream) {
    RETURN_UNLESS_OK(SAID(device, cudaMemcpyAsync(to, from, bytes, kind, stream_of(device, stream)), "cudaMemcpyAsync"));
    if (kind == cudaMemcpyHostToDevice) return TN_OK;
    return SAID(device, cudaStreamSynchronize(stream_of(device, stream)), "cudaStreamSynchronize");
}

static tn_status copy_from_host(tn_device *device, void *to, const void *host, size_t bytes, tn_stream stream) {
    tn_cuda_device *cuda = cuda_of(device);
    if (bytes <= SMALL_COPY_BYTES) return copy_small(device, to, host, bytes, cudaMemcpyHostToDevice, stream);
    RETURN_UNLESS_OK(pin_pieces(device));
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at < PINNED_PIECE_BYTES ? bytes - at : PINNED_PIECE_BYTES;
        int piece = cuda->next_piece;
        cuda->next_piece = (piece + 1) % PINNED_PIECES;
        RETURN_UNLESS_OK(SAID(device, cudaEventSynchronize(cuda->pinned_free[piece]), "cudaEventSynchronize"));
        memcpy(cuda->pinned[piece], (const char *)host + at, n);
        RETURN_UNLESS_OK(SAID(device,
                              cudaMemcpyAsync((char *)to + at, cuda->pinned[piece], n, cudaMemcpyHostToDevice, stream_of(device, stream)),
                              "cudaMemcpyAsync to the device"));
        RETURN_UNLESS_OK(SAID(device, cudaEventRecord(cuda->pinned_free[piece], stream_of(device, stream)), "cudaEventRecord"));
        at += n;
    }
    return TN_OK;
}

/* While one piece is copied out by the host, the next is on its way. */
static tn_status copy_to_host(tn_device *device, void *host, const void *from, size_t bytes, tn_stream stream) {
    tn_cuda_device *cuda = cuda_of(device);
    if (bytes <= SMALL_COPY_BYTES) return copy_small(device, host, from, bytes, cudaMemcpyDeviceToHost, stream);
    RETURN_UNLESS_OK(pin_pieces(device));
    size_t n_pieces = (bytes + PINNED_PIECE_BYTES - 1) / PINNED_PIECE_BYTES;
    for (size_t i = 0; i <= n_pieces; i++) {
        if (i < n_pieces) {
            size_t at = i * PINNED_PIECE_BYTES, n = bytes - at < PINNED_PIECE_BYTES ? bytes - at : PINNED_PIECE_BYTES;
            int piece = (int)(i % PINNED_PIECES);
            if (i < PINNED_PIECES) RETURN_UNLESS_OK(SAID(device, cudaEventSynchronize(cuda->pinned_free[piece]), "cudaEventSynchronize"));
            RETURN_UNLESS_OK(SAID(
                device, cudaMemcpyAsync(cuda->pinned[piece], (const char *)from + at, n, cudaMemcpyDeviceToHost, stream_of(device, stream)),
                "cudaMemcpyAsync from the device"));
            RETURN_UNLESS_OK(SAID(device, cudaEventRecord(cuda->pinned_free[piece], stream_of(device, stream)), "cudaEventRecord"));
        }
        if (i > 0) {
            size_t at = (i - 1) * PINNED_PIECE_BYTES, n = bytes - at < PINNED_PIECE_BYTES ? bytes - at : PINNED_PIECE_BYTES;
            int piece = (int)((i - 1) % PINNED_PIECES);
            RETURN_UNLESS_OK(SAID(device, cudaEventSynchronize(cuda->pinned_free[piece]), "cudaEventSynchronize"));
            memcpy((char *)host + at, cuda->pinned[piece], n);
        }
    }
    return TN_OK;
}

static tn_status fill_bytes(tn_device *device, void *to, unsigned char byte, size_t bytes, tn_stream stream) {
    return SAID(device, cudaMemsetAsync(to, byte, bytes, stream_of(device, stream)), "cudaMemsetAsync");
}

static tn_status need_found(tn_device *device) {
    tn_cuda_device *cuda = cuda_of(device);
    return cuda->found ? TN_OK : SAID(device, cudaMalloc((void **)&cuda->found, sizeof *cuda->found), "cudaMalloc");
}

static tn_status read_found(tn_device *device, tn_stream stream, int64_t *at) {
    tn_cuda_device *cuda = cuda_of(device);
    RETURN_UNLESS_OK(
        SAID(device, cudaMemcpyAsync(at, cuda->found, sizeof *at, cudaMemcpyDeviceToHost, stream_of(device, stream)), "cudaMemcpyAsync"));
    return SAID(device, cudaStreamSynchronize(stream_of(device, stream)), "cudaStreamSynchronize");
}

static tn_status find_other_byte(tn_device *device, const void *from, unsigned char byte, size_t bytes, size_t *at) {
    int64_t found = -1;
    RETURN_UNLESS_OK(need_found(device));
    RETURN_UNLESS_OK(
        SAID(device, tn_cuda_find_other_byte(from, byte, bytes, cuda_of(device)->found, stream_of(device, 0)), "find_other_byte"));
    RETURN_UNLESS_OK(read_found(device, 0, &found));
    *at = found < 0 ? bytes : (size_t)found;
    return TN_OK;
}

/* ---- kernels ---- */

static tn_status fill(tn_device *device, tn_tensor *to, double value, tn_stream stream) {
    return SAID(device, tn_cuda_fill(to, value, stream_of(device, stream)), "fill");
}

static tn_status copy(tn_device *device, tn_tensor *to, const tn_tensor *from, tn_stream stream) {
    return SAID(device, tn_cuda_copy(to, from, stream_of(device, stream)), "copy");
}

static tn_status accumulate(tn_device *device, tn_tensor *to, const tn_tensor *from, tn_stream stream) {
    return SAID(device, tn_cuda_accumulate(to, from, stream_of(device, stream)), "accumulate");
}

static tn_status random_fill(tn_device *device, tn_tensor *to, const tn_random_spec *spec, tn_stream stream) {
    return SAID(device, tn_cuda_random(to, spec, stream_of(device, stream)), "random");
}

static tn_status arange(tn_device *device, tn_tensor *to, tn_stream stream) {
    return SAID(device, tn_cuda_arange(to, stream_of(device, stream)), "arange");
}

static tn_status find_nonfinite(tn_device *device, const tn_tensor *t, int64_t *at, tn_stream stream) {
    RETURN_UNLESS_OK(need_found(device));
    RETURN_UNLESS_OK(SAID(device, tn_cuda_find_nonfinite(t, cuda_of(device)->found, stream_of(device, stream)), "find_nonfinite"));
    return read_found(device, stream, at);
}

/* ---- opening and closing ---- */

static void close_cuda(tn_device *device) {
    tn_cuda_device *cuda = cuda_of(device);
    cudaDeviceSynchronize();
    tn_gemm_cuda_close(device);
    for (int i = 0; i < cuda->n_streams; i++) cudaStreamDestroy(cuda->streams[i]);
    for (int i = 0; i < PINNED_PIECES; i++) {
        if (cuda->pinned_free[i]) cudaEventDestroy(cuda->pinned_free[i]);
        if (cuda->pinned[i]) cudaFreeHost(cuda->pinned[i]);
    }
    if (cuda->found) cudaFree(cuda->found);
    cudaGetLastError();
    tn_host_free(cuda);
}

static const tn_device_interface cuda_interface = {
    .segment_alloc = segment_alloc,
    .segment_free = segment_free,
    .stream_create = stream_create,
    .event_record = event_record,
    .event_done = event_done,
    .event_wait = event_wait,
    .stream_wait = stream_wait,
    .synchronize = synchronize,
    .native_stream = native_stream,
    .copy_from_host = copy_from_host,
    .copy_to_host = copy_to_host,
    .fill_bytes = fill_bytes,
    .find_other_byte = find_other_byte,
    .fill = fill,
    .copy = copy,
    .accumulate = accumulate,
    .random = random_fill,
    .arange = arange,
    .find_nonfinite = find_nonfinite,
    .close = close_cuda,
};

/* The GPU that is used, looked for once: asking for all properties takes milliseconds. */
static struct {
    pthread_once_t once;
    int ordinal; /* -1: there is none, for this reason */
    struct cudaDeviceProp properties;
    char reason[256];
} gpu = { .once = PTHREAD_ONCE_INIT };

static void find_gpu(void) {
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    gpu.ordinal = -1;
    if (error != cudaSuccess || n == 0) {
        cudaGetLastError();
        snprintf(gpu.reason, sizeof gpu.reason, "no usable CUDA device: %s",
                 error != cudaSuccess ? cudaGetErrorString(error) : "none is installed");
        return;
    }
    for (int i = 0; i < n && gpu.ordinal < 0; i++)
        if (cudaGetDeviceProperties(&gpu.properties, i) == cudaSuccess && gpu.properties.major >= 8) gpu.ordinal = i;
    cudaGetLastError();
    snprintf(gpu.reason, sizeof gpu.reason, "the CUDA device is %.96s with compute capability %d.%d; wanted 8.0 or higher",
             gpu.properties.name, gpu.properties.major, gpu.properties.minor);
}

bool tn_cuda_gpu_find(tn_cuda_gpu *found) {
    pthread_once(&gpu.once, find_gpu);
    if (gpu.ordinal < 0) return false;
    *found = (tn_cuda_gpu){ .best = gpu.properties.major == 9 ? TN_CUDA_HOPPER : TN_CUDA_BASE,
                            .multiprocessors = gpu.properties.multiProcessorCount,
                            .shared_bytes = gpu.properties.sharedMemPerBlockOptin };
    return true;
}

static tn_status acquire(tn_cuda_device *cuda) {
    tn_device *device = &cuda->base;
    tn_stream first;
    RETURN_UNLESS_OK(SAID(device, cudaSetDevice(cuda->ordinal), "cudaSetDevice"));
    return stream_create(device, &first);
}

tn_device *tn_device_open_cuda(tn_status *status, char *reason, size_t n_bytes) {
    tn_cuda_gpu found;
    *status = TN_ERR_DEVICE;
    if (!tn_cuda_gpu_find(&found)) {
        snprintf(reason, n_bytes, "%s", gpu.reason);
        return NULL;
    }
    const struct cudaDeviceProp *properties = &gpu.properties;
    tn_cuda_path path;
    if (!tn_cuda_path_choose(found.best, &path, reason, n_bytes)) return NULL;
    tn_cuda_device *cuda = tn_host_calloc(sizeof *cuda);
    if (!cuda) {
        *status = TN_ERR_HOST_MEMORY;
        snprintf(reason, n_bytes, "no host memory for the device");
        return NULL;
    }
    cuda->base = (tn_device){ .interface = &cuda_interface,
                              .kind = TN_DEVICE_CUDA,
                              .name = "cuda",
                              .threads = 1,
                              .cuda_path = path,
                              .multiprocessors = found.multiprocessors,
                              .shared_bytes = found.shared_bytes };
    cuda->ordinal = gpu.ordinal;
    snprintf(cuda->base.detail, sizeof cuda->base.detail, "%.96s, %d multiprocessors, %.0f GiB", properties->name,
             properties->multiProcessorCount, (double)properties->totalGlobalMem / (double)(1 << 30));
    if (acquire(cuda) == TN_OK) return &cuda->base;
    snprintf(reason, n_bytes, "%s", cuda->base.failure);
    close_cuda(&cuda->base);
    return NULL;
}
