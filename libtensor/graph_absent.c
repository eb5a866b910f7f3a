/* Stands in for recording where the build has no CUDA. */
#include "graph.h"

#include "context_internal.h"

bool tn_graph_possible(const tn_context *cx) {
    (void)cx;
    return false;
}

bool tn_graph_begin(tn_context *cx) {
    if (tn_ready(cx)) tn_fail(cx, TN_ERR_UNSUPPORTED, "tn_graph_begin", "the device %s can't record", tn_device_name(cx));
    return false;
}

tn_graph *tn_graph_end(tn_context *cx) {
    (void)cx;
    return NULL;
}

bool tn_graph_replay(tn_graph *graph) {
    (void)graph;
    return false;
}

void tn_graph_free(tn_graph *graph) { (void)graph; }
