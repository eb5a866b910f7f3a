/* The readable CUDA kernels, for any dtype, width and alignment: workspace bytes of a pass, and the pass. They return a cudaError_t. */
#ifndef TENON_ATTENTION_PLAIN_H
#define TENON_ATTENTION_PLAIN_H

#include "attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

size_t tn_at_plain_workspace(const tn_at_problem *problem, bool backward);
int tn_at_plain_forward(const tn_at_problem *problem, void *workspace, void *stream);
int tn_at_plain_backward(const tn_at_problem *problem, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
