/* One bf16 query for each sequence against keys and values as they are, by mma.sync (attention_decode_kv.cu). */
#ifndef TENON_ATTENTION_DECODE_KV_H
#define TENON_ATTENTION_DECODE_KV_H

#include "attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

bool tn_at_decode_kv_fits(const tn_at_problem *problem, const tn_device *device);
size_t tn_at_decode_kv_workspace(const tn_at_problem *problem, const tn_device *device);
/* Returns a cudaError_t. */
int tn_at_decode_kv_forward(const tn_at_problem *problem, const tn_device *device, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
