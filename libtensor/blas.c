#include "blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#ifndef TN_OPENBLAS_PATH
#define TN_OPENBLAS_PATH ""
#endif

static tn_blas loaded;
static bool usable;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- which kernels OpenBLAS is to use ----
 *
 * It looks at the processor's model, not at its features, and does not know recent ones: those get slow kernels. And it believes
 * OPENBLAS_CORETYPE without checking, so that a wrong value ends in an illegal instruction. Both are settled here from cpuid. */

static bool has_avx512(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

static bool has_avx2(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

static bool named(const char *name, const char *const *names) {
    for (; *names; names++)
        if (strcasecmp(name, *names) == 0) return true;
    return false;
}

static const char *const avx512_cores[] = { "SkylakeX", "Cooperlake", "SapphireRapids", NULL };

/* What OPENBLAS_CORETYPE should be while the library loads; NULL: as the user has it. */
static const char *core_type(const char *wanted) {
#if defined(__x86_64__)
    static const char *const avx2[] = { "Haswell", "Zen", NULL };
    static const char *const avx[] = { "Sandybridge", NULL };
    static const char *const fma4[] = { "Bulldozer", "Piledriver", "Steamroller", "Excavator", NULL };
    const char *best = has_avx512() ? "SkylakeX" : has_avx2() ? "Haswell" : NULL;
    if (!wanted || !*wanted) return best;
    if (named(wanted, avx512_cores) && !has_avx512()) return best ? best : "Core2";
    /* These two have instructions beyond what was checked. */
    if (named(wanted, avx512_cores + 1)) return __builtin_cpu_supports("avx512bf16") ? NULL : best;
    if (named(wanted, avx2) && !has_avx2()) return "Core2";
    if (named(wanted, avx) && !__builtin_cpu_supports("avx")) return "Core2";
    if (named(wanted, fma4) && !__builtin_cpu_supports("fma4")) return best ? best : "Core2";
#else
    (void)wanted;
#endif
    return NULL;
}

/* ---- finding it ---- */

#if defined(__x86_64__)
#define MULTIARCH "x86_64-linux-gnu"
#elif defined(__aarch64__)
#define MULTIARCH "aarch64-linux-gnu"
#elif defined(__powerpc64__)
#define MULTIARCH "powerpc64le-linux-gnu"
#elif defined(__riscv)
#define MULTIARCH "riscv64-linux-gnu"
#else
#define MULTIARCH "linux-gnu"
#endif

static void *open_library(const char **path) {
    static const char *const places[] = {
        TN_OPENBLAS_PATH,
        "/usr/lib/" MULTIARCH "/openblas-openmp/libopenblas.so.0",
        "/usr/lib64/libopenblaso.so.0",
        "libopenblas.so.0",
        "libopenblas.so",
        "libopenblas.dylib",
    };
    const char *chosen = getenv("TENON_BLAS");
    if (chosen && strcmp(chosen, "none") == 0) return NULL;
    if (chosen && *chosen) {
        *path = chosen;
        return dlopen(chosen, RTLD_NOW | RTLD_LOCAL);
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        *path = places[i];
        void *library = *places[i] ? dlopen(places[i], RTLD_NOW | RTLD_LOCAL) : NULL;
        if (library) return library;
    }
    return NULL;
}

/* dlsym's void * as a function pointer, the way POSIX writes it. */
#define FIND(library, field, name) (*(void **)&(field) = dlsym((library), (name)))

static void describe(void *library, const char *path) {
    char *(*config)(void) = NULL, *(*core)(void) = NULL;
    FIND(library, config, "openblas_get_config");
    FIND(library, core, "openblas_get_corename");
    char version[32] = "OpenBLAS";
    const char *text = config ? config() : "";
    if (strncmp(text, "OpenBLAS ", 9) == 0) snprintf(version, sizeof version, "OpenBLAS %.*s", (int)strcspn(text + 9, " "), text + 9);
    loaded.avx512 = has_avx512();
    loaded.narrow = core && loaded.avx512 && !named(core(), avx512_cores);
    snprintf(loaded.description, sizeof loaded.description, "%s %s (%s)", version, core ? core() : "", path);
}

static void load(void) {
    const char *wanted = getenv("OPENBLAS_CORETYPE"), *path = NULL;
    char before[64] = "";
    const char *core = core_type(wanted);
    if (wanted) snprintf(before, sizeof before, "%s", wanted);
    if (core) setenv("OPENBLAS_CORETYPE", core, 1);
    void *library = open_library(&path);
    /* Its constructor has read it; what we start later shall see the user's own. */
    if (core && wanted) setenv("OPENBLAS_CORETYPE", before, 1);
    if (core && !wanted) unsetenv("OPENBLAS_CORETYPE");
    if (!library) return;
    FIND(library, loaded.sgemm, "cblas_sgemm");
    FIND(library, loaded.dgemm, "cblas_dgemm");
    FIND(library, loaded.set_threads, "openblas_set_num_threads");
    int (*parallel)(void) = NULL;
    FIND(library, parallel, "openblas_get_parallel");
    if (parallel && parallel() == 2) { /* built with OpenMP: it takes the number of threads from there at every call */
        FIND(library, loaded.omp_set_threads, "omp_set_num_threads");
        FIND(library, loaded.omp_threads, "omp_get_max_threads");
    }
    usable = loaded.sgemm && loaded.dgemm;
    if (usable) describe(library, path);
}

const tn_blas *tn_blas_get(void) {
    pthread_once(&once, load);
    return usable ? &loaded : NULL;
}

int tn_blas_begin(const tn_blas *blas, int threads) {
    static _Atomic int current = 0;
    if (blas->omp_set_threads && blas->omp_threads) {
        int before = blas->omp_threads();
        if (before != threads) blas->omp_set_threads(threads);
        return before;
    }
    if (blas->set_threads && atomic_exchange(&current, threads) != threads) blas->set_threads(threads);
    return threads;
}

void tn_blas_end(const tn_blas *blas, int before) {
    if (blas->omp_set_threads && blas->omp_threads && blas->omp_threads() != before) blas->omp_set_threads(before);
}
