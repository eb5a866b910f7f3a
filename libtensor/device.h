/* The device interface: what a processor must offer for the allocator, the tape and the ops to run on it.
 *
 * A device never decides; it does what it is told on the stream it is told. It carries several streams with
 * events (for stream-safe frees), and private pools are the allocator's matter, so a graph capture needs no
 * more than an allocator call. The dry-run device hands out addresses, records and launches nothing. */
#ifndef TENON_DEVICE_H
#define TENON_DEVICE_H

#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_device tn_device;
typedef int tn_stream; /* 0 is the default stream */
typedef struct {
    uint64_t handle;
} tn_device_event;

/* Devices an op can have kernels for; tn_device_kind indexes tn_op_def's tables. */
typedef enum tn_device_kind { TN_DEVICE_CPU, TN_DEVICE_CUDA, TN_DEVICE_KIND_COUNT } tn_device_kind;

/* Three sets of CUDA kernels: readable ones for any width and f64; mma.sync and cp.async for sm_80 and up; TMA and wgmma for Hopper.
 * The best the GPU can run is taken, or what TENON_CUDA_PATH names. A kernel that does not exist on a path is taken from the one before. */
typedef enum tn_cuda_path { TN_CUDA_PLAIN, TN_CUDA_BASE, TN_CUDA_HOPPER, TN_CUDA_PATH_COUNT } tn_cuda_path;

typedef enum tn_random_kind { TN_RANDOM_UNIFORM, TN_RANDOM_NORMAL, TN_RANDOM_INTEGER } tn_random_kind;

typedef struct tn_random_spec {
    tn_random_kind kind;
    double a, b;            /* low and high, or mean and deviation */
    int64_t low, high;      /* integers in [low, high) */
    uint64_t seed, counter; /* element i takes draw i of the stream that starts at `counter` */
} tn_random_spec;

typedef struct tn_device_interface {
    /* Memory for whole segments, 512-byte aligned; the only place that asks the system or the driver for it. */
    tn_status (*segment_alloc)(tn_device *device, size_t bytes, void **memory);
    void (*segment_free)(tn_device *device, void *memory, size_t bytes);

    /* Streams and events. Work put on one stream runs in order. */
    tn_status (*stream_create)(tn_device *device, tn_stream *stream);
    tn_status (*event_record)(tn_device *device, tn_stream stream, tn_device_event *event);
    tn_status (*event_done)(tn_device *device, tn_device_event event, bool *done); /* destroys the event once done */
    tn_status (*event_wait)(tn_device *device, tn_device_event event);             /* blocks the host; destroys the event */
    tn_status (*stream_wait)(tn_device *device, tn_stream waiting, tn_stream awaited);
    tn_status (*synchronize)(tn_device *device);
    void *(*native_stream)(tn_device *device, tn_stream stream);

    /* Bytes. Host memory is pageable; the call returns when the host side may be reused. */
    tn_status (*copy_from_host)(tn_device *device, void *to, const void *host, size_t bytes, tn_stream stream);
    tn_status (*copy_to_host)(tn_device *device, void *host, const void *from, size_t bytes, tn_stream stream);
    tn_status (*fill_bytes)(tn_device *device, void *to, unsigned char byte, size_t bytes, tn_stream stream);
    /* Index of the first byte that differs from `byte`, or `bytes` if none does. Waits. */
    tn_status (*find_other_byte)(tn_device *device, const void *from, unsigned char byte, size_t bytes, size_t *at);

    /* The few kernels tensors themselves need, over any strides and dtypes. */
    tn_status (*fill)(tn_device *device, tn_tensor *to, double value, tn_stream stream);
    tn_status (*copy)(tn_device *device, tn_tensor *to, const tn_tensor *from, tn_stream stream); /* same shape; converts dtype */
    tn_status (*accumulate)(tn_device *device, tn_tensor *to, const tn_tensor *from,
                            tn_stream stream); /* to += from, floats, same shape and dtype */
    tn_status (*random)(tn_device *device, tn_tensor *to, const tn_random_spec *spec, tn_stream stream); /* contiguous */
    tn_status (*arange)(tn_device *device, tn_tensor *to, tn_stream stream);                             /* contiguous, one axis */
    /* Row-major index of the first NaN or Inf, or -1. Waits. */
    tn_status (*find_nonfinite)(tn_device *device, const tn_tensor *t, int64_t *at, tn_stream stream);

    void (*close)(tn_device *device);
} tn_device_interface;

struct tn_device {
    const tn_device_interface *interface;
    tn_device_kind kind; /* whose kernels run (or, on a dry run, would run) */
    bool dry_run;        /* nothing is computed and no data can be read back */
    const char *name;    /* "cpu", "cuda", "dry-run" */
    char detail[160];
    char failure[256]; /* what the last failing call said */
    int threads;
    tn_cuda_path cuda_path; /* CUDA: which kernels to prefer */
    int multiprocessors;    /* CUDA */
    size_t shared_bytes;    /* CUDA: shared memory a block can have */
    void *gemm;             /* CUDA: what gemm_cuda.c keeps */
};

/* Opens devices; NULL with a reason when it can't be done. The CPU and dry runs can lack nothing but host memory; CUDA sets *status to what
 * it lacks. */
tn_device *tn_device_open_cpu(int threads, char *reason, size_t n_bytes);
tn_device *tn_device_open_dry_run(tn_device_kind imitated, char *reason, size_t n_bytes);
tn_device *tn_device_open_cuda(tn_status *status, char *reason, size_t n_bytes);
/* What the kernels ask about the GPU that is used. False where there is none. */
typedef struct tn_cuda_gpu {
    tn_cuda_path best;
    int multiprocessors;
    size_t shared_bytes;
} tn_cuda_gpu;
bool tn_cuda_gpu_find(tn_cuda_gpu *found);
/* The best path, unless TENON_CUDA_PATH asks for a lesser one. False, with a reason: it asks for what there is not. */
bool tn_cuda_path_choose(tn_cuda_path best, tn_cuda_path *path, char *reason, size_t n_bytes);

/* For kernels and library calls on CUDA: the status of a cudaError_t (0 is TN_OK), with the call's name kept as the device's failure. */
TN_API tn_status tn_cuda_said(tn_device *device, int cuda_error, const char *call);

#ifdef __cplusplus
}
#endif
#endif
