/* The plain forward of non-causal linear attention on CUDA, and the statistics of softmax over the sequence. */
#ifndef TENON_LINEAR_ATTENTION_FORWARD_PLAIN_H
#define TENON_LINEAR_ATTENTION_FORWARD_PLAIN_H

#include <cuda_runtime.h>

#include "linear_attention_internal.h"

/* operand is q or k with over_sequence; maximum and sum are written. */
size_t tn_la_statistics_workspace(const tn_la_problem *problem, const tn_la_operand *operand, const tn_device *device);
void tn_la_statistics(const tn_la_problem *problem, const tn_la_operand *operand, const tn_device *device, void *workspace,
                      cudaStream_t stream);

/* s, and maximum and sum where softmax runs over the sequence, have to be there, the latter filled in. Errors: cudaGetLastError. */
size_t tn_la_forward_plain_workspace(const tn_la_problem *problem);
void tn_la_forward_plain(const tn_la_problem *problem, void *workspace, cudaStream_t stream);

#endif
