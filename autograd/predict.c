/* Predicting memory: the step runs where allocations are recorded and nothing is launched. */
#include <stdio.h>
#include <string.h>

#include "tape_internal.h"

/* "auto" is what it would be here. */
static const char *imitation_of(const char *device) {
    bool cuda = device && strcmp(device, "cuda") == 0;
    if (!device || strcmp(device, "auto") == 0) cuda = tn_cuda_unavailable_reason()[0] == '\0';
    return cuda ? "dry-run:cuda" : "dry-run:cpu";
}

bool tn_predict_memory(const tn_options *options, bool (*step)(tn_context *cx, void *user), void *user, tn_memory_stats *stats,
                       char *reason, size_t n_bytes) {
    tn_options dry = options ? *options : (tn_options){ 0 };
    dry.device = imitation_of(dry.device);
    tn_context *cx = tn_open(&dry);
    bool fine = cx && !tn_failed(cx) && step(cx, user) && !tn_failed(cx);
    if (fine || cx) tn_memory_stats_get(cx, stats);
    if (reason && n_bytes)
        snprintf(reason, n_bytes, "%s",
                 fine            ? ""
                 : !cx           ? "the host has no memory left"
                 : tn_failed(cx) ? tn_error(cx)
                                 : "the step said so");
    tn_close(cx);
    return fine;
}
