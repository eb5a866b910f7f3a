#include "cuda_calls.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "fault_calls.h"

static _Thread_local cudaError_t last_error;
static _Atomic int64_t n_live, n_launches;

bool cuda_calls_real(void) {
    const char *device = getenv("TENON_TEST_DEVICE");
    return device && strcmp(device, "cuda") == 0;
}
int64_t cuda_calls_live(void) { return n_live; }
int64_t cuda_calls_launches(void) { return n_launches; }

/* As the runtime does, the error is also kept until it is asked for. */
static bool strikes(const char *name, cudaError_t error) {
    if (!fault_strikes(FAULT_CUDA, name)) return false;
    last_error = error;
    return true;
}

/* The runtime is linked in, so its own calls of malloc and calloc come to fault_calls.c too. It does not look at what they return: with all
 * of them failing cudaGetDeviceCount ends in SIGSEGV where there is a driver. Those of the library alone are to fail. */
static cudaError_t unfailing(cudaError_t said) {
    fault_resume();
    return said;
}
#define UNFAILING(call) (fault_pause(), unfailing(call))

/* A call that makes (change 1), destroys (-1) or neither; `fake` stands for it where there is no GPU. One that destroys does so even if it
 * is made to say otherwise. */
#define CALL(name, error, change, parameters, arguments, fake)                            \
    cudaError_t __real_##name parameters;                                                 \
    cudaError_t __wrap_##name parameters;                                                 \
    cudaError_t __wrap_##name parameters {                                                \
        bool fails = strikes(#name, error);                                               \
        if (fails && (change) >= 0) return error;                                         \
        cudaError_t said = UNFAILING(cuda_calls_real() ? __real_##name arguments : fake); \
        if (said == cudaSuccess) n_live += (change);                                      \
        return fails ? error : said;                                                      \
    }

static cudaError_t made(void **place) {
    *place = malloc(1);
    return *place ? cudaSuccess : cudaErrorMemoryAllocation;
}
static cudaError_t freed(void *place) {
    free(place);
    return cudaSuccess;
}
/* What kernels would write there is not written: zeros, but -1, for "nowhere", where there is only room for an index. */
static cudaError_t taken(void **memory, size_t bytes) {
    *memory = bytes < (size_t)1 << 40 ? aligned_alloc(512, (bytes + 511) / 512 * 512) : NULL;
    if (*memory) memset(*memory, bytes == sizeof(int64_t) ? 0xff : 0, bytes);
    else last_error = cudaErrorMemoryAllocation;
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
static cudaError_t copied(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
    return cudaSuccess;
}
static cudaError_t filled(void *to, int byte, size_t bytes) {
    memset(to, byte, bytes);
    return cudaSuccess;
}
static cudaError_t number(int *place, int value) {
    *place = value;
    return cudaSuccess;
}
static cudaError_t described(struct cudaDeviceProp *p) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "a GPU that computes nothing");
    p->major = 9;
    p->multiProcessorCount = 132;
    p->sharedMemPerBlockOptin = 232448;
    p->totalGlobalMem = (size_t)1 << 36;
    return cudaSuccess;
}
static cudaError_t attributes(struct cudaFuncAttributes *a) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 64;
    return cudaSuccess;
}

CALL(cudaGetDeviceCount, cudaErrorNoDevice, 0, (int *n), (n), number(n, 1))
CALL(cudaGetDeviceProperties, cudaErrorInvalidDevice, 0, (struct cudaDeviceProp * p, int device), (p, device), described(p))
CALL(cudaSetDevice, cudaErrorDevicesUnavailable, 0, (int device), (device), cudaSuccess)
CALL(cudaDeviceSynchronize, cudaErrorUnknown, 0, (void), (), cudaSuccess)
CALL(cudaMalloc, cudaErrorMemoryAllocation, 1, (void **memory, size_t bytes), (memory, bytes), taken(memory, bytes))
CALL(cudaFree, cudaErrorUnknown, -1, (void *memory), (memory), freed(memory))
CALL(cudaMallocHost, cudaErrorMemoryAllocation, 1, (void **memory, size_t bytes), (memory, bytes), taken(memory, bytes))
CALL(cudaFreeHost, cudaErrorUnknown, -1, (void *memory), (memory), freed(memory))
CALL(cudaMemcpyAsync, cudaErrorUnknown, 0, (void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream),
     (to, from, bytes, kind, stream), copied(to, from, bytes))
CALL(cudaMemsetAsync, cudaErrorUnknown, 0, (void *to, int byte, size_t bytes, cudaStream_t stream), (to, byte, bytes, stream),
     filled(to, byte, bytes))
CALL(cudaStreamCreateWithFlags, cudaErrorUnknown, 1, (cudaStream_t * stream, unsigned flags), (stream, flags), made((void **)stream))
CALL(cudaStreamDestroy, cudaErrorUnknown, -1, (cudaStream_t stream), (stream), freed(stream))
CALL(cudaStreamSynchronize, cudaErrorUnknown, 0, (cudaStream_t stream), (stream), cudaSuccess)
CALL(cudaStreamWaitEvent, cudaErrorUnknown, 0, (cudaStream_t stream, cudaEvent_t event, unsigned flags), (stream, event, flags),
     cudaSuccess)
CALL(cudaEventCreateWithFlags, cudaErrorUnknown, 1, (cudaEvent_t * event, unsigned flags), (event, flags), made((void **)event))
CALL(cudaEventDestroy, cudaErrorUnknown, -1, (cudaEvent_t event), (event), freed(event))
CALL(cudaEventRecord, cudaErrorUnknown, 0, (cudaEvent_t event, cudaStream_t stream), (event, stream), cudaSuccess)
CALL(cudaEventQuery, cudaErrorUnknown, 0, (cudaEvent_t event), (event), cudaSuccess)
CALL(cudaEventSynchronize, cudaErrorUnknown, 0, (cudaEvent_t event), (event), cudaSuccess)
CALL(cudaStreamBeginCapture, cudaErrorUnknown, 0, (cudaStream_t stream, enum cudaStreamCaptureMode mode), (stream, mode), cudaSuccess)
CALL(cudaGraphInstantiate, cudaErrorUnknown, 1, (cudaGraphExec_t * executable, cudaGraph_t graph, unsigned long long flags),
     (executable, graph, flags), made((void **)executable))
CALL(cudaGraphLaunch, cudaErrorUnknown, 0, (cudaGraphExec_t executable, cudaStream_t stream), (executable, stream), cudaSuccess)
CALL(cudaGraphExecDestroy, cudaErrorUnknown, -1, (cudaGraphExec_t executable), (executable), freed(executable))
CALL(cudaGraphDestroy, cudaErrorUnknown, -1, (cudaGraph_t graph), (graph), freed(graph))
CALL(cudaFuncSetAttribute, cudaErrorInvalidValue, 0, (const void *function, enum cudaFuncAttribute attribute, int value),
     (function, attribute, value), cudaSuccess)
CALL(cudaFuncGetAttributes, cudaErrorInvalidValue, 0, (struct cudaFuncAttributes * a, const void *function), (a, function), attributes(a))
CALL(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, cudaErrorInvalidValue, 0,
     (int *n, const void *function, int threads, size_t shared, unsigned flags), (n, function, threads, shared, flags), number(n, 2))

/* A capture that fails at its end gives no graph, and ends all the same. */
cudaError_t __real_cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t __wrap_cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t __wrap_cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    bool fails = strikes("cudaStreamEndCapture", cudaErrorStreamCaptureInvalidated);
    cudaError_t said = UNFAILING(cuda_calls_real() ? __real_cudaStreamEndCapture(stream, graph) : made((void **)graph));
    if (said == cudaSuccess) n_live++;
    if (!fails) return said;
    if (said == cudaSuccess) __wrap_cudaGraphDestroy(*graph);
    *graph = NULL;
    return cudaErrorStreamCaptureInvalidated;
}

cudaError_t __real_cudaGetLastError(void);
cudaError_t __wrap_cudaGetLastError(void);
cudaError_t __wrap_cudaGetLastError(void) {
    cudaError_t said = last_error;
    last_error = cudaSuccess;
    if (said != cudaSuccess) return said;
    return cuda_calls_real() ? UNFAILING(__real_cudaGetLastError()) : cudaSuccess;
}

/* ---- launches ---- */

#define LAUNCH(name, parameters, arguments)                                                      \
    cudaError_t __real_##name parameters;                                                        \
    cudaError_t __wrap_##name parameters;                                                        \
    cudaError_t __wrap_##name parameters {                                                       \
        if (strikes(#name, cudaErrorLaunchOutOfResources)) return cudaErrorLaunchOutOfResources; \
        n_launches++;                                                                            \
        return cuda_calls_real() ? UNFAILING(__real_##name arguments) : cudaSuccess;             \
    }

LAUNCH(__cudaLaunchKernel, (cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream),
       (kernel, grid, block, arguments, shared, stream))
LAUNCH(cudaLaunchKernelExC, (const cudaLaunchConfig_t *config, const void *function, void **arguments), (config, function, arguments))
LAUNCH(cudaLaunchCooperativeKernel, (const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream),
       (function, grid, block, arguments, shared, stream))

/* nvcc asks for the kernel at each launch; without a driver there is none. */
cudaError_t __real___cudaGetKernel(cudaKernel_t *kernel, const void *function);
cudaError_t __wrap___cudaGetKernel(cudaKernel_t *kernel, const void *function);
cudaError_t __wrap___cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    if (cuda_calls_real()) return UNFAILING(__real___cudaGetKernel(kernel, function));
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

/* ---- cuBLASLt, which is loaded by name ---- */

static cublasStatus_t blas_strikes(const char *name) {
    return fault_strikes(FAULT_CUDA, name) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

#define BLAS(name, parameters, arguments, fake)         \
    static cublasStatus_t(*real_##name) parameters;     \
    static cublasStatus_t our_##name parameters {       \
        cublasStatus_t said = blas_strikes(#name);      \
        if (said != CUBLAS_STATUS_SUCCESS) return said; \
        if (real_##name) return real_##name arguments;  \
        fake;                                           \
        return CUBLAS_STATUS_SUCCESS;                   \
    }

BLAS(cublasLtCreate, (cublasLtHandle_t * handle), (handle), *handle = (cublasLtHandle_t)&n_live)
BLAS(cublasLtMatmulDescInit_internal, (cublasLtMatmulDesc_t d, size_t size, cublasComputeType_t compute, cudaDataType_t type),
     (d, size, compute, type), (memset(d, 0, size), (void)compute, (void)type))
BLAS(cublasLtMatmulDescSetAttribute, (cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t size),
     (d, attribute, value, size), ((void)d, (void)attribute, (void)value, (void)size))
BLAS(cublasLtMatrixLayoutInit_internal,
     (cublasLtMatrixLayout_t l, size_t size, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld),
     (l, size, type, rows, columns, ld), (memset(l, 0, size), (void)type, (void)rows, (void)columns, (void)ld))
BLAS(cublasLtMatrixLayoutSetAttribute,
     (cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t attribute, const void *value, size_t size), (l, attribute, value, size),
     ((void)l, (void)attribute, (void)value, (void)size))
BLAS(cublasLtMatmulPreferenceInit_internal, (cublasLtMatmulPreference_t p, size_t size), (p, size), memset(p, 0, size))
BLAS(cublasLtMatmulPreferenceSetAttribute,
     (cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t size),
     (p, attribute, value, size), ((void)p, (void)attribute, (void)value, (void)size))
BLAS(cublasLtMatmulAlgoGetHeuristic,
     (cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
      cublasLtMatrixLayout_t e, cublasLtMatmulPreference_t p, int most, cublasLtMatmulHeuristicResult_t *results, int *n),
     (h, d, a, b, c, e, p, most, results, n),
     (memset(results, 0, sizeof *results), *n = 1, (void)h, (void)d, (void)a, (void)b, (void)c, (void)e, (void)p, (void)most))
BLAS(cublasLtMatmulAlgoConfigGetAttribute,
     (const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute, void *value, size_t size, size_t *written),
     (algorithm, attribute, value, size, written), ((void)algorithm, (void)attribute, memset(value, 0, size), *written = size))
BLAS(cublasLtMatmul,
     (cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *a, cublasLtMatrixLayout_t la, const void *b,
      cublasLtMatrixLayout_t lb, const void *beta, const void *c, cublasLtMatrixLayout_t lc, void *o, cublasLtMatrixLayout_t lo,
      const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t bytes, cudaStream_t stream),
     (h, d, alpha, a, la, b, lb, beta, c, lc, o, lo, algorithm, workspace, bytes, stream),
     ((void)h, (void)d, (void)alpha, (void)a, (void)la, (void)b, (void)lb, (void)beta, (void)c, (void)lc, (void)o, (void)lo,
      (void)algorithm, (void)workspace, (void)bytes, (void)stream))

static const char *(*real_cublasLtGetStatusName)(cublasStatus_t status);
static const char *our_cublasLtGetStatusName(cublasStatus_t status) {
    return real_cublasLtGetStatusName ? real_cublasLtGetStatusName(status) : "CUBLAS_STATUS_EXECUTION_FAILED";
}

#define ENTRY(name) \
    { #name, (void (*)(void))our_##name, (void (**)(void)) & real_##name }
static const struct {
    const char *name;
    void (*ours)(void);
    void (**real)(void);
} blas[] = {
    ENTRY(cublasLtCreate),
    ENTRY(cublasLtMatmulDescInit_internal),
    ENTRY(cublasLtMatmulDescSetAttribute),
    ENTRY(cublasLtMatrixLayoutInit_internal),
    ENTRY(cublasLtMatrixLayoutSetAttribute),
    ENTRY(cublasLtMatmulPreferenceInit_internal),
    ENTRY(cublasLtMatmulPreferenceSetAttribute),
    ENTRY(cublasLtMatmulAlgoGetHeuristic),
    ENTRY(cublasLtMatmulAlgoConfigGetAttribute),
    ENTRY(cublasLtMatmul),
    ENTRY(cublasLtGetStatusName),
};

void *__real_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags);
void *__wrap_dlopen(const char *name, int flags) {
    if (name && strstr(name, "cublasLt") && !cuda_calls_real()) return (void *)&n_live;
    return __real_dlopen(name, flags);
}

void *__real_dlsym(void *library, const char *name);
void *__wrap_dlsym(void *library, const char *name);
void *__wrap_dlsym(void *library, const char *name) {
    for (size_t i = 0; i < sizeof blas / sizeof *blas; i++) {
        if (strcmp(name, blas[i].name) != 0) continue;
        void *found = library == (void *)&n_live ? NULL : __real_dlsym(library, name), *ours;
        memcpy(blas[i].real, &found, sizeof found);
        memcpy(&ours, &blas[i].ours, sizeof ours);
        return ours;
    }
    return __real_dlsym(library, name);
}
