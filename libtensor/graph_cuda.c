#include "graph.h"

#include <cuda_runtime_api.h>

#include "context_internal.h"

struct tn_graph {
    tn_context *cx;
    cudaGraphExec_t executable;
    int pool;
};

bool tn_graph_possible(const tn_context *cx) { return cx && cx->device->kind == TN_DEVICE_CUDA && !cx->device->dry_run; }

static bool said(tn_context *cx, cudaError_t error, const char *call) {
    tn_status status = tn_cuda_said(cx->device, (int)error, call);
    if (status == TN_OK) return true;
    TN_FAIL_DEVICE(cx, status, call);
    return false;
}

bool tn_graph_begin(tn_context *cx) {
    const char *call = "tn_graph_begin";
    if (!tn_ready(cx)) return false;
    if (!tn_graph_possible(cx)) return tn_fail(cx, TN_ERR_UNSUPPORTED, call, "the device %s can't record", tn_device_name(cx));
    if (cx->recording) return tn_fail(cx, TN_ERR_ARGUMENT, call, "a recording has not ended");
    tn_graph *graph = tn_host_alloc(sizeof *graph);
    if (!graph) return tn_fail(cx, TN_ERR_HOST_MEMORY, call, "the host has no memory left");
    *graph = (tn_graph){ .cx = cx };
    tn_status status = tn_allocator_pool_begin(cx->allocator, &graph->pool);
    if (status != TN_OK) tn_fail(cx, status, call, "%s", tn_allocator_error(cx->allocator));
    /* Relaxed: the pool's segments are made while recording. */
    else if (said(cx, cudaStreamBeginCapture(tn_native_stream(cx), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture"))
        cx->recording = graph;
    if (cx->recording) return true;
    if (status == TN_OK) tn_allocator_pool_release(cx->allocator, graph->pool);
    tn_host_free(graph);
    return false;
}

tn_graph *tn_graph_end(tn_context *cx) {
    tn_graph *graph = cx ? cx->recording : NULL;
    cudaGraph_t recorded = NULL;
    if (!graph) return NULL;
    cx->recording = NULL;
    cudaError_t error = cudaStreamEndCapture(tn_native_stream(cx), &recorded);
    tn_allocator_pool_end(cx->allocator);
    bool fine = tn_ready(cx) && said(cx, error, "cudaStreamEndCapture") &&
                said(cx, cudaGraphInstantiate(&graph->executable, recorded, 0), "cudaGraphInstantiate");
    if (recorded) cudaGraphDestroy(recorded);
    cudaGetLastError(); /* of a capture that was broken off: the stream is as before. Nor is the next launch to answer for this. */
    if (fine) return graph;
    tn_graph_free(graph);
    return NULL;
}

bool tn_graph_replay(tn_graph *graph) {
    if (!graph || !tn_ready(graph->cx)) return false;
    return said(graph->cx, cudaGraphLaunch(graph->executable, tn_native_stream(graph->cx)), "cudaGraphLaunch");
}

void tn_graph_free(tn_graph *graph) {
    if (!graph) return;
    cudaStreamSynchronize(tn_native_stream(graph->cx));
    if (graph->executable) cudaGraphExecDestroy(graph->executable);
    cudaGetLastError(); /* the next launch is not to answer for these */
    tn_allocator_pool_release(graph->cx->allocator, graph->pool);
    tn_host_free(graph);
}
