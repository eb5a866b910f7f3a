/* One bf16 query against factored keys and values of rank 1, by mma.sync (attention_decode.cu; attention_decode_short.cu for few keys), and
 * by GEMMs (attention_composed.cu). */
#ifndef TENON_ATTENTION_DECODE_H
#define TENON_ATTENTION_DECODE_H

#include "attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How the keys of a sequence are spread: `splits` blocks take `chunk` keys each, `cluster` of them merge through each other's shared
 * memory, and what is left of more than one cluster is merged by a second kernel. */
typedef struct tn_at_split {
    int splits, cluster;
    int64_t chunk;
    int sharers; /* of the kernel of few keys: clusters that share the columns of o; 0: the other kernel */
} tn_at_split;

/* Does the problem fit these kernels? */
bool tn_at_decode_fits(const tn_at_problem *problem, const tn_device *device);
size_t tn_at_decode_workspace(const tn_at_problem *problem, const tn_device *device);
/* Returns a cudaError_t. */
int tn_at_decode_forward(const tn_at_problem *problem, const tn_device *device, void *workspace, void *stream);

/* What stands between the GEMMs, for any ranks, widths and dtype: q made of its factors, [b,h,d] of the data's dtype; t [b,h,m * rk] wide
 * -> the weights of bv [b,h,m * rv]. */
int tn_at_composed_query(const tn_at_problem *problem, void *q, void *stream);
int tn_at_composed_soften(const tn_at_problem *problem, void *t, void *weights, void *stream);

#ifdef __cplusplus
}
#endif
#endif
