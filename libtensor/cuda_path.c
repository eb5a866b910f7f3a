/* Which of the kernels a GPU runs: the best it can, or what TENON_CUDA_PATH asks for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

bool tn_cuda_path_choose(tn_cuda_path best, tn_cuda_path *path, char *reason, size_t n_bytes) {
    static const char *const names[TN_CUDA_PATH_COUNT] = { "plain", "base", "hopper" };
    const char *wanted = getenv("TENON_CUDA_PATH");
    *path = best;
    if (!wanted || !*wanted) return true;
    for (int i = 0; i < TN_CUDA_PATH_COUNT; i++)
        if (strcmp(wanted, names[i]) == 0) {
            *path = (tn_cuda_path)i;
            if (*path <= best) return true;
            snprintf(reason, n_bytes, "TENON_CUDA_PATH=%s, but this GPU runs at most the %s path", wanted, names[best]);
            return false;
        }
    snprintf(reason, n_bytes, "TENON_CUDA_PATH=%s: wanted plain, base or hopper", wanted);
    return false;
}
