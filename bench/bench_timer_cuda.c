/* Device time by a pair of events around each call, on the context's stream. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "bench_machine.h"

typedef struct cuda_timer {
    bench_timer base;
    cudaStream_t stream;
    cudaEvent_t begin[BENCH_MAX_REPEATS], end[BENCH_MAX_REPEATS];
} cuda_timer;

static cuda_timer *cuda_of(bench_timer *timer) { return (cuda_timer *)timer; }

static bool said(bench_timer *timer, cudaError_t error, const char *call) {
    if (error == cudaSuccess) return true;
    cudaGetLastError();
    tn_fail(timer->cx, TN_ERR_DEVICE, "bench_timer", "%s: %s", call, cudaGetErrorString(error));
    return false;
}

static bool start(bench_timer *timer, int slot) {
    return said(timer, cudaEventRecord(cuda_of(timer)->begin[slot], cuda_of(timer)->stream), "cudaEventRecord");
}

static bool stop(bench_timer *timer, int slot) {
    return said(timer, cudaEventRecord(cuda_of(timer)->end[slot], cuda_of(timer)->stream), "cudaEventRecord");
}

static bool read_slots(bench_timer *timer, int n, double *ms) {
    cuda_timer *cuda = cuda_of(timer);
    bool fine = said(timer, cudaStreamSynchronize(cuda->stream), "cudaStreamSynchronize");
    for (int i = 0; fine && i < n; i++) {
        float elapsed = 0;
        fine = said(timer, cudaEventElapsedTime(&elapsed, cuda->begin[i], cuda->end[i]), "cudaEventElapsedTime");
        ms[i] = elapsed;
    }
    return fine;
}

static bool copy(bench_timer *timer, void *to, const void *from, size_t bytes) {
    return said(timer, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_of(timer)->stream), "cudaMemcpyAsync");
}

static void describe(bench_timer *timer, bench_machine *machine) {
    int device = 0, cache_bytes = 0, version = 0;
    char bus[32] = "";
    (void)timer;
    if (cudaGetDevice(&device) != cudaSuccess) return;
    if (cudaDeviceGetAttribute(&cache_bytes, cudaDevAttrL2CacheSize, device) == cudaSuccess) machine->cache_bytes = cache_bytes;
    if (cudaRuntimeGetVersion(&version) == cudaSuccess)
        snprintf(machine->cuda_runtime, sizeof machine->cuda_runtime, "%d.%d", version / 1000, version % 1000 / 10);
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, device) == cudaSuccess) bench_machine_ask_nvml(machine, bus);
}

static void close_timer(bench_timer *timer) {
    cuda_timer *cuda = cuda_of(timer);
    for (int i = 0; i < BENCH_MAX_REPEATS; i++) {
        if (cuda->begin[i]) cudaEventDestroy(cuda->begin[i]);
        if (cuda->end[i]) cudaEventDestroy(cuda->end[i]);
    }
    free(cuda);
}

bench_timer *bench_timer_open_cuda(tn_context *cx) {
    cuda_timer *cuda = calloc(1, sizeof *cuda);
    if (!cuda) return tn_fail(cx, TN_ERR_HOST_MEMORY, "bench_timer", "the host has no memory left");
    cuda->base = (bench_timer){
        .cx = cx, .start = start, .stop = stop, .read = read_slots, .copy = copy, .describe = describe, .close = close_timer
    };
    cuda->stream = tn_native_stream(cx);
    bool fine = true;
    for (int i = 0; fine && i < BENCH_MAX_REPEATS; i++)
        fine = said(&cuda->base, cudaEventCreate(&cuda->begin[i]), "cudaEventCreate") &&
               said(&cuda->base, cudaEventCreate(&cuda->end[i]), "cudaEventCreate");
    if (fine) return &cuda->base;
    close_timer(&cuda->base);
    return NULL;
}
