/* Fused bf16 attention: which calls, workspace bytes, and the passes (attention_fused.c). */
#ifndef TENON_ATTENTION_FUSED_H
#define TENON_ATTENTION_FUSED_H

#include "attention_internal.h"

bool tn_at_fused_fits(const tn_at_problem *problem, const tn_device *device, bool backward);
size_t tn_at_fused_workspace(const tn_at_problem *problem, const tn_device *device, bool backward);
/* Return a cudaError_t. */
int tn_at_fused_forward(const tn_at_problem *problem, const tn_device *device, void *workspace, void *stream);
int tn_at_fused_backward(const tn_at_problem *problem, const tn_device *device, void *workspace, void *stream);

#endif
