/* Work recorded once and replayed: everything that calls put on a CUDA context's stream between begin and end, as one CUDA graph.
 *
 *     train_step(..);                                once or twice as usual, so that everything lasting is made
 *     tn_graph_begin(cx);
 *     train_step(..);                                runs nothing, is recorded
 *     tn_graph *graph = tn_graph_end(cx);
 *     for (..) { tn_set_data(tokens, ..); tn_graph_replay(graph); }
 *     tn_graph_free(graph);
 *
 * A replay does the same to the same addresses; what is to differ from replay to replay must be read from the device's memory: tensors
 * written before it, tn_rng_from for random numbers, tn_optimizer_prepare for learning rate and step count. Memory taken while recording
 * comes from a pool of the graph's own and is not handed out to others while the graph lives. Nothing may be read back while recording. */
#ifndef TENON_GRAPH_H
#define TENON_GRAPH_H

#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_graph tn_graph;

/* Whether this context can record: CUDA can, the others run each call as it comes. */
TN_API bool tn_graph_possible(const tn_context *cx);
TN_API bool tn_graph_begin(tn_context *cx);
/* NULL, with the error, where a call failed meanwhile; recording has ended in either case. */
TN_API tn_graph *tn_graph_end(tn_context *cx);
TN_API bool tn_graph_replay(tn_graph *graph);
/* Waits for what was put on the device. Before tn_close. */
TN_API void tn_graph_free(tn_graph *graph);

/* From here on dropout adds *place, an i64 scalar on the device and an even number, to where the context's random stream stands when it is
 * called: so a replayed step draws new numbers. NULL: no longer. The context does not keep the tensor alive. */
TN_API void tn_rng_from(tn_context *cx, tn_tensor *place);

#ifdef __cplusplus
}
#endif
#endif
