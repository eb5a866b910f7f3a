/* Attention of many queries as the bf16 kernels see it: q, k, v of width 32 to 128 written out, be it by the caller or from factors. */
#ifndef TENON_ATTENTION_CORE_H
#define TENON_ATTENTION_CORE_H

#include "attention_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Element (batch, token, head, j), counted from the first batch and head of a run:
 * at[batch * .batch + token * .token + head * .head + j] */
typedef struct tn_at_view {
    void *at;
    int64_t batch, token, head;
} tn_at_view;

/* A run of (batch, head) slices: heads first_head .. of batches first_batch .., all at once. */
typedef struct tn_at_core {
    tn_at_problem p;
    int64_t first_batch, batches, first_head, heads; /* heads of q; with `group` of them to a head of k and v */
    int64_t group, parts;                            /* a group's share of dk and dv is summed in so many parts */
    tn_at_view q, k, v, o, d_o;
    tn_at_view dq, dk, dv;    /* at: NULL where not wanted */
    float *dk_part, *dv_part; /* parts > 1: [parts][batches][m][heads / group][width], instead of dk and dv */
    float scale, scale_v;     /* s = scale q k', o = scale_v p v */
    void *rows;               /* float2 [b][h][padded]: lse in powers of 2 (+inf: sees nothing), <do, o> */
    void *bounds;             /* int2 [b][padded]: the keys that a query sees */
    int64_t padded;           /* n up to a whole tile */
} tn_at_core;

#define TN_AT_ROWS 128 /* what `padded` is a multiple of */

/* All return a cudaError_t. Forward with q.at NULL: straight from factors, k and v of rank 1. */
int tn_at_core_forward(const tn_at_core *core, void *stream);
int tn_at_core_rows(const tn_at_core *core, void *stream); /* rows and bounds, of every batch and head */
int tn_at_core_dq(const tn_at_core *core, void *stream);
int tn_at_core_dkv(const tn_at_core *core, void *stream);
/* The same by wgmma, for widths of 64 and 128. */
int tn_at_hopper_forward(const tn_at_core *core, void *stream);
int tn_at_hopper_dq(const tn_at_core *core, void *stream);
int tn_at_hopper_dkv(const tn_at_core *core, void *stream);
/* dk and dv from their parts, where there are several. */
int tn_at_core_add_parts(const tn_at_core *core, void *stream);

/* Of factors (attention_factors.cu): to = sum_r a x for the run's heads, without the operand's factor, and back: da, and dx, summed over
 * the run's heads on top of sums (f32 [tokens,rank,width] of one batch; NULL: all heads are in the run). */
int tn_at_expand(const tn_at_core *core, const tn_at_operand *x, tn_at_view to, void *stream);
int tn_at_contract(const tn_at_core *core, const tn_at_operand *x, bool keys, tn_at_view d, float *sums, void *stream);

#ifdef __cplusplus
}
#endif
#endif
