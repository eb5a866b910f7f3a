/* The CPU as a device. Work is done when the call returns, so streams are names and events are always past. */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>

#include "cpu_primitives.h"
#include "device_immediate.h"
#include "host_memory.h"
#include "parallel.h"

#define HUGE_PAGE ((size_t)2 << 20)

static size_t whole_pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

static tn_status no_segment(tn_device *device, size_t bytes) {
    snprintf(device->failure, sizeof device->failure, "the system has no %zu bytes of memory left to give", bytes);
    return TN_ERR_MEMORY;
}

/* Large segments begin at a huge page: mapped with room to spare, of which both ends are given back. */
static tn_status segment_alloc(tn_device *device, size_t bytes, void **memory) {
    size_t size = whole_pages(bytes), spare = size >= HUGE_PAGE ? HUGE_PAGE : 0;
    if (bytes == 0 || bytes > SIZE_MAX / 4) return no_segment(device, bytes);
    char *mapped = (char *)mmap(NULL, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return no_segment(device, bytes);
    size_t before = spare ? (HUGE_PAGE - (uintptr_t)mapped % HUGE_PAGE) % HUGE_PAGE : 0;
    if (before) munmap(mapped, before);
    if (spare - before) munmap(mapped + before + size, spare - before);
#ifdef MADV_HUGEPAGE
    if (spare) madvise(mapped + before, size, MADV_HUGEPAGE);
#endif
    *memory = mapped + before;
    return TN_OK;
}

static void segment_free(tn_device *device, void *memory, size_t bytes) {
    (void)device;
    if (memory) munmap(memory, whole_pages(bytes));
}

static tn_status copy_from_host(tn_device *device, void *to, const void *host, size_t bytes, tn_stream stream) {
    (void)stream;
    tn_cpu_copy_bytes(to, host, bytes, device->threads);
    return TN_OK;
}
static tn_status copy_to_host(tn_device *device, void *host, const void *from, size_t bytes, tn_stream stream) {
    (void)stream;
    tn_cpu_copy_bytes(host, from, bytes, device->threads);
    return TN_OK;
}
static tn_status fill_bytes(tn_device *device, void *to, unsigned char byte, size_t bytes, tn_stream stream) {
    (void)stream;
    tn_cpu_fill_bytes(to, byte, bytes, device->threads);
    return TN_OK;
}
static tn_status find_other_byte(tn_device *device, const void *from, unsigned char byte, size_t bytes, size_t *at) {
    (void)device;
    const unsigned char *p = (const unsigned char *)from;
    *at = 0;
    /* All alike: the first is `byte` and each equals its neighbour. */
    if (bytes > 0 && p[0] == byte && memcmp(p, p + 1, bytes - 1) == 0) *at = bytes;
    while (*at < bytes && p[*at] == byte) ++*at;
    return TN_OK;
}

static tn_status fill(tn_device *device, tn_tensor *to, double value, tn_stream stream) {
    (void)stream;
    return tn_cpu_fill(to, value, device->threads);
}
static tn_status copy(tn_device *device, tn_tensor *to, const tn_tensor *from, tn_stream stream) {
    (void)stream;
    return tn_cpu_copy(to, from, device->threads);
}
static tn_status accumulate(tn_device *device, tn_tensor *to, const tn_tensor *from, tn_stream stream) {
    (void)stream;
    tn_status status = tn_cpu_accumulate(to, from, device->threads);
    if (status != TN_OK)
        snprintf(device->failure, sizeof device->failure, "accumulate wants two tensors of one floating dtype, got %s += %s",
                 tn_dtype_name(to->dtype), tn_dtype_name(from->dtype));
    return status;
}
static tn_status random_numbers(tn_device *device, tn_tensor *to, const tn_random_spec *spec, tn_stream stream) {
    (void)stream;
    tn_status status = tn_cpu_random(to, spec, device->threads);
    if (status != TN_OK)
        snprintf(device->failure, sizeof device->failure, "random integers want low < high, got [%lld, %lld)", (long long)spec->low,
                 (long long)spec->high);
    return status;
}
static tn_status arange(tn_device *device, tn_tensor *to, tn_stream stream) {
    (void)stream;
    return tn_cpu_arange(to, device->threads);
}
static tn_status find_nonfinite(tn_device *device, const tn_tensor *t, int64_t *at, tn_stream stream) {
    (void)stream;
    *at = tn_cpu_find_nonfinite(t, device->threads);
    return TN_OK;
}

static const tn_device_interface cpu_interface = {
    .segment_alloc = segment_alloc,
    .segment_free = segment_free,
    TN_IMMEDIATE_QUEUE,
    .copy_from_host = copy_from_host,
    .copy_to_host = copy_to_host,
    .fill_bytes = fill_bytes,
    .find_other_byte = find_other_byte,
    .fill = fill,
    .copy = copy,
    .accumulate = accumulate,
    .random = random_numbers,
    .arange = arange,
    .find_nonfinite = find_nonfinite,
};

/* ---- what the processor is ---- */

static const char *instruction_set(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return "AVX-512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "AVX2";
    return "SSE2";
#elif defined(__aarch64__)
    return "NEON";
#else
    return "portable code";
#endif
}

/* The "model name" line of /proc/cpuinfo, or the machine's name where there is none. */
static void processor_name(char *name, size_t n_bytes) {
    struct utsname system;
    snprintf(name, n_bytes, "%s", uname(&system) == 0 ? system.machine : "unknown processor");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file) return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        char *text = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !text) continue;
        text += strspn(text, ": \t");
        text[strcspn(text, "\n")] = 0;
        snprintf(name, n_bytes, "%s", text);
        break;
    }
    fclose(file);
}

tn_device *tn_device_open_cpu(int threads, char *reason, size_t n_bytes) {
    tn_immediate_device *cpu = (tn_immediate_device *)tn_host_calloc(sizeof *cpu);
    if (!cpu) {
        snprintf(reason, n_bytes, "no host memory for the device");
        return NULL;
    }
    cpu->base.interface = &cpu_interface;
    cpu->base.kind = TN_DEVICE_CPU;
    cpu->base.name = "cpu";
    cpu->base.threads = threads ? threads : tn_parallel_threads();
    char name[96];
    processor_name(name, sizeof name);
    snprintf(cpu->base.detail, sizeof cpu->base.detail, "%s, %d thread%s, %s", name, cpu->base.threads, cpu->base.threads == 1 ? "" : "s",
             instruction_set());
    return &cpu->base;
}
