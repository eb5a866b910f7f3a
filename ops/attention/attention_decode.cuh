/* What the kernels for one query against factors of rank 1 are given, and the one of few keys as the other sees it. */
#ifndef TENON_ATTENTION_DECODE_CUH
#define TENON_ATTENTION_DECODE_CUH

#include "attention_decode.h"
#include "attention_tiles.cuh"

struct tn_at_decode_args {
    const tn_cuda_bf16 *aq, *bq, *ak, *bk, *av, *bv;
    tn_cuda_bf16 *o;
    float *lse;   /* NULL: nobody keeps it */
    float *parts; /* NULL: one part, which is o. [b][part][h][E], then maximum and sum [b][part][h][2] */
    const int64_t *seqlens;
    int64_t m, chunk;
    int b, h, rq, n_parts;
    int head_step;        /* heads that a block writes */
    int stages;           /* that a block has room for: all, or one for each of its tiles and one for the query's factors */
    float scale, scale_v; /* of t ak, in powers of 2 */
    bool hopper;
};

/* Few keys (attention_decode_short.cu): all of a sequence's in a cluster of blocks, a chunk of 64, 128 or 256 for each. The first says
 * whether it takes so many ranks of the query; the other returns a cudaError_t. */
bool tn_at_decode_short_fits(int64_t ranks);
int tn_at_decode_short(const tn_at_decode_args *a, int64_t width, const tn_at_split *split, int64_t head_groups, cudaStream_t stream);

#endif
