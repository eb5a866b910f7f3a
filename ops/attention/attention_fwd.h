/* Fused bf16 attention by mma.sync (attention_fwd.cu): nothing of n x m, and no q, k or v made of factors, leaves the chip. */
#ifndef TENON_ATTENTION_FWD_H
#define TENON_ATTENTION_FWD_H

#include "attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

bool tn_at_fused_fits(const tn_at_problem *problem, const tn_device *device);
/* Returns a cudaError_t. */
int tn_at_fused_forward(const tn_at_problem *problem, void *stream);

#ifdef __cplusplus
}
#endif
#endif
