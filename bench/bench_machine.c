/* What a run says about the machine it ran on. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "bench_machine.h"

/* The value after "NAME : " in a file such as /proc/cpuinfo. */
static void read_line(const char *path, const char *name, char *value, size_t n_bytes) {
    FILE *file = fopen(path, "r");
    char line[512];
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, name, strlen(name)) != 0 || !colon) continue;
        colon += 1 + strspn(colon + 1, " \t");
        snprintf(value, n_bytes, "%.*s", (int)strcspn(colon, "\n"), colon);
        break;
    }
    fclose(file);
}

/* ---- NVIDIA's management library, through dlopen: it comes with the driver, and its header is not needed ---- */

typedef struct nvml {
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_bus)(const char *bus, void **device);
    int (*driver)(char *text, unsigned n_bytes);
    int (*clock)(void *device, int which, unsigned *mhz);
    int (*max_clock)(void *device, int which, unsigned *mhz);
} nvml;
enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEMORY = 2 };

static bool find_symbol(void *library, const char *name, void *pointer) {
    void *symbol = dlsym(library, name);
    memcpy(pointer, &symbol, sizeof symbol); /* ISO C has no cast from data to function pointers */
    return symbol != NULL;
}

static bool load(void *library, nvml *nv) {
    return find_symbol(library, "nvmlInit_v2", &nv->init) && find_symbol(library, "nvmlShutdown", &nv->shutdown) &&
           find_symbol(library, "nvmlDeviceGetHandleByPciBusId_v2", &nv->by_bus) &&
           find_symbol(library, "nvmlSystemGetDriverVersion", &nv->driver) && find_symbol(library, "nvmlDeviceGetClockInfo", &nv->clock) &&
           find_symbol(library, "nvmlDeviceGetMaxClockInfo", &nv->max_clock);
}

static int clock_of(int (*ask)(void *device, int which, unsigned *mhz), void *device, int which) {
    unsigned mhz = 0;
    return ask(device, which, &mhz) == 0 ? (int)mhz : 0;
}

void bench_machine_ask_nvml(bench_machine *machine, const char *bus) {
    nvml nv;
    void *device = NULL, *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    if (load(library, &nv) && nv.init() == 0) {
        if (nv.driver(machine->driver, sizeof machine->driver) != 0) machine->driver[0] = '\0';
        if (nv.by_bus(bus, &device) == 0) {
            machine->clock_mhz = clock_of(nv.clock, device, NVML_CLOCK_SM);
            machine->max_clock_mhz = clock_of(nv.max_clock, device, NVML_CLOCK_SM);
            machine->memory_clock_mhz = clock_of(nv.clock, device, NVML_CLOCK_MEMORY);
            machine->max_memory_clock_mhz = clock_of(nv.max_clock, device, NVML_CLOCK_MEMORY);
        }
        nv.shutdown();
    }
    dlclose(library);
}

void bench_machine_describe(bench_machine *machine, bench_timer *timer) {
    struct utsname system;
    memset(machine, 0, sizeof *machine);
    read_line("/proc/cpuinfo", "model name", machine->processor, sizeof machine->processor);
    snprintf(machine->device, sizeof machine->device, "%s: %s", tn_device_name(timer->cx), tn_device_detail(timer->cx));
    /* What a distribution or a host adds to the release says nothing here. */
    if (uname(&system) == 0)
        snprintf(machine->system, sizeof machine->system, "%.40s %.*s", system.sysname, (int)strspn(system.release, "0123456789."),
                 system.release);
    machine->threads = tn_threads(timer->cx);
    timer->describe(timer, machine);
}
