/* linear_attention_step.cu: a causal call of one token. */
#ifndef TENON_LINEAR_ATTENTION_STEP_H
#define TENON_LINEAR_ATTENTION_STEP_H

#include "linear_attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether it is f32 or bf16, and of what width it takes. */
bool tn_la_step_fits(const tn_la_problem *problem);
/* Returns a cudaError_t. */
int tn_la_step(const tn_op_call *call, const tn_la_problem *problem);

#ifdef __cplusplus
}
#endif
#endif
