/* The plain causal kernels: any dtype, width and alignment. They return a cudaError_t. quick: f32 may keep S in
 * registers, where widths let it. */
#ifndef TENON_LINEAR_ATTENTION_CAUSAL_PLAIN_H
#define TENON_LINEAR_ATTENTION_CAUSAL_PLAIN_H

#include "linear_attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

size_t tn_la_causal_forward_plain_workspace(const tn_la_problem *problem);
int tn_la_causal_forward_plain(const tn_la_problem *problem, bool quick, void *workspace, void *stream);
size_t tn_la_causal_backward_plain_workspace(const tn_la_problem *problem);
int tn_la_causal_backward_plain(const tn_la_problem *problem, bool quick, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
