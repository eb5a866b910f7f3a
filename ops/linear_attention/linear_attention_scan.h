/* The scan that causal linear attention consists of, forward and backward:
 *
 *     S_t = decay_t S_{t-1} + write_scale y_t' z_t,    o_t = read_scale x_t S_t          tokens in order, or in reverse order with
 *     S_t = decay_{t+1} S_{t+1} + write_scale y_t' z_t                                   decay_{t+1} of the token after
 *
 * for every head of every sequence, x and y [tokens, inner], z and o [tokens, outer], S [inner, outer]. Forward is one scan of q, k, v;
 * the gradients are three more: dq from (dy, v, k), dk from (v, dy, q) and dv from (k, q, dy), the last two in reverse. */
#ifndef TENON_LINEAR_ATTENTION_SCAN_H
#define TENON_LINEAR_ATTENTION_SCAN_H

#include "linear_attention_internal.h"

/* Tokens of a head with what is done to them on the way: o = lrpe(act(x)) or x * act(factor). */
typedef struct tn_la_scan_operand {
    const void *x;
    tn_la_strides stride;
    int64_t width; /* of x itself */
    int act;
    bool encoded;
    int64_t offset; /* of its positions */
} tn_la_scan_operand;

#define TN_LA_ANCHOR_TOKENS 2048

typedef enum tn_la_scan_factor { TN_LA_FACTOR_NONE, TN_LA_FACTOR_X, TN_LA_FACTOR_Y, TN_LA_FACTOR_Z } tn_la_scan_factor;

typedef struct tn_la_scan {
    tn_la_scan_operand x, y, z;
    tn_la_scan_factor factor_of; /* the operand that `factor` multiplies: do becomes dy = do * act(g) */
    tn_la_scan_operand factor;
    int64_t inner, outer; /* widths after encoding */

    /* What becomes of o: multiplied by act(gate); or, with decode, multiplied by `times` and, being the gradient of lrpe(act(raw)), turned
     * into that of raw. NULL: o itself is not wanted. */
    void *o;
    tn_la_strides o_stride;
    tn_la_scan_operand gate; /* x NULL: none */
    bool decode;
    tn_la_scan_operand raw, times; /* times.x NULL: 1 */
    float *dots;                   /* <o_t, lrpe(act(raw_t))>, [parts][b h][n]; without decode of bare raw; NULL: not wanted */
    float *theta_parts;            /* decode: [sequences h][segments][angles]: sums of coordinate * dA; NULL: not wanted */

    bool cosine;
    tn_lrpe_grid grid; /* of encoded operands, but for the offset */
    const float *theta;

    int64_t batches, heads, tokens, sequences;
    const int64_t *cu_seqlens;
    bool reverse;
    tn_la_decay decay;
    const float *log_decay;
    float read_scale, write_scale;

    const float *state; /* S before the first token (in the scan's order) of each sequence and head; NULL: zeros */
    float *state_out;   /* and after the last; NULL: not wanted */
    /* Every TN_LA_ANCHOR_TOKENS tokens S once more, as it is between that token and the one before it: [b h][tokens / .. + 1] of them, of
     * which one at a distance of k times as many from the begin f of its sequence is number f / .. + k. NULL: not wanted. */
    float *anchors;
    int64_t state_row, state_column; /* elements from one row or column of S to the next; a state has inner x outer of them */
} tn_la_scan;

#ifdef __CUDACC__
#include <cuda_runtime.h>

/* linear_attention_scan.cu: bf16 on tensor cores, for what fits (widths, alignment, positions). The number of multiprocessors decides how
 * many segments a sequence is cut into, and that the order of sums. */
bool tn_la_scan_fits(const tn_la_scan *scan, const tn_device *device);
int tn_la_scan_parts(const tn_la_scan *scan, const tn_device *device);    /* of columns: dots has as many */
int tn_la_scan_segments(const tn_la_scan *scan, const tn_device *device); /* theta_parts likewise */
size_t tn_la_scan_workspace(const tn_la_scan *scan, const tn_device *device);
cudaError_t tn_la_scan_run(const tn_la_scan *scan, const tn_device *device, void *workspace, cudaStream_t stream);
/* The scans of dk and dv together, with the workspace of the first. */
bool tn_la_scan_pair_fits(const tn_la_scan *key, const tn_la_scan *value, const tn_device *device);
cudaError_t tn_la_scan_pair_run(const tn_la_scan *key, const tn_la_scan *value, const tn_device *device, void *workspace,
                                cudaStream_t stream);
#endif

#endif
