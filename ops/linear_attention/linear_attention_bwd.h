/* What the parts of the CUDA backward of non-causal linear attention know of each other. */
#ifndef TENON_LINEAR_ATTENTION_BWD_H
#define TENON_LINEAR_ATTENTION_BWD_H

#include "linear_attention_internal.h"

/* linear_attention_bwd_plain.cu: any dtype, width and alignment. */
size_t tn_la_backward_plain_workspace(const tn_la_problem *problem);
void tn_la_backward_plain(const tn_la_problem *problem, void *workspace, void *stream);

/* The two passes over tiles of 64 tokens, for bf16. */

/* Tiles of all slices in a row are dealt out in even, contiguous ranges; block x has first(x) .. first(x + 1) - 1. A piece is what a block
 * has of one slice; it leaves what it sums at place block + slice, which no other piece has. */
typedef struct tn_bwd_deal {
    uint32_t tiles, all, blocks, heads; /* tiles of a slice, of all slices, blocks of the grid, heads of a batch */
} tn_bwd_deal;

enum { TN_BWD_TOKENS = 64 };

typedef struct tn_bwd_pass {
    tn_bwd_deal deal;
    tn_la_operand x, z;             /* q and g, or k and v */
    const void *d_o;                /* first pass */
    tn_la_strides o_stride;
    void *dx, *dz;                  /* gradients of x and z, NULL where not wanted */
    const float *state;             /* S, or dS: [slices][d'][e] */
    const float *theta;
    const float *off;               /* softmax over the sequence: the sum of p dp, [slices][padded width]; NULL: not known yet */
    float *state_parts;             /* first pass: dS by pieces [d' padded][e padded], NULL: not wanted */
    int what;                       /* what a head's tokens are summed up for: TN_BWD_*SUMS* */
    float *sums;                    /* by pieces [padded width] */
    float scale;
    int d, e;
    int how;                        /* which LRPE: TN_BWD_* */
    bool has_gate;
} tn_bwd_pass;

enum { TN_BWD_PLAIN, TN_BWD_ROTATE, TN_BWD_COSINE };
enum { TN_BWD_NO_SUMS, TN_BWD_SUMS_THETA, TN_BWD_SUMS_SOFTMAX /* of p dp */ };

/* Which instance of the kernels: padded widths 64 or 128; wgmma or mma.sync. Return a cudaError_t. */
int tn_bwd_run_q(const tn_bwd_pass *pass, int width, bool wgmma, void *stream);
int tn_bwd_run_kv(const tn_bwd_pass *pass, int width, bool wgmma, void *stream);
/* Shared memory that a block needs; -1 where this library has no such code for the GPU. */
int tn_bwd_shared_q(int width, bool cosine, bool wgmma);
int tn_bwd_shared_kv(int width, bool cosine, bool wgmma);

#endif
