/* linear_attention: attention without softmax, as a state of d' x e numbers per head, with an output gate; activations and LRPE inside.
 *
 *     tn_tensor *o = tn_linear_attention(q, k, v, TN_LINEAR_ATTENTION(.g = g));
 *     tn_tensor *o = tn_linear_attention(q, k, v, TN_LINEAR_ATTENTION(.g = g, .theta = theta, .kind = TN_COSINE, .q_act = TN_SILU,
 *                                                                     .k_act = TN_SILU, .g_act = TN_SILU, .layout = TN_BHND));
 *     tn_tensor *o = tn_linear_attention(q, k, v, TN_LINEAR_ATTENTION(.causal = true, .log_decay = ld, .state = s, .state_out = &s));
 *
 * q [b,n,h,d], k [b,m,h,d], v [b,m,h,e]; optional g [b,n,h,e], theta [h or 1, w] (LRPE on q and k), log_decay [h] or [b,n,h] (causal only,
 * <= 0), state [b,h,d',e] (d' = 2d with cosine, else d), cu_seqlens i64 [s+1] (causal, b = 1; state and state_out are [s,h,d',e] then)
 * -> o [b,n,h,e]. q, k, v, g and o lie as `layout` says; log_decay and state keep their shape in both layouts. theta, log_decay and
 * state are f32 beside f32 and bf16, f64 beside f64.
 *
 *     qb = scale * lrpe(act(q)), kb = lrpe(act(k)), vb = act(v), gb = act(g)
 *     non-causal: S = state + kb' vb;                     o = gb * (qb S)
 *     causal:     S_t = exp(ld_t) S_{t-1} + kb_t' vb_t;   o_t = gb_t * (qb_t S_t)
 *
 * Softmax runs over the features (dim -1) or, non-causally and for q and k alone, over the sequence. With `shape` or `l` the first l tokens
 * are not turned; with `shape` n = m = prod(shape) + l. In packed sequences state and positions restart with each sequence.
 *
 * Saved for backward, with w = 4 bytes (8 for f64): every input given except a non-causal state; non-causally S: b h d' e w; and for
 * softmax over the sequence 2 b h d w for each of q and k. So
 *     bytes(q, k, v, g, theta, log_decay, cu_seqlens) + (causal ? bytes(state) : b h d' e w) + 2 b h d w x (q, k over the sequence) */
#ifndef TENON_LINEAR_ATTENTION_H
#define TENON_LINEAR_ATTENTION_H

#include "../../autograd/op.h"
#include "../activation.h"
#include "../layout.h"
#include "../lrpe_grid.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `kind` of a call without theta. */
#define TN_NO_LRPE 2

typedef struct tn_linear_attention_args {
    /* Tensors that may be left out. */
    tn_tensor *g, *theta, *log_decay, *state, *cu_seqlens;
    tn_tensor **state_out; /* receives the last S; sets return_state */

    int q_act, k_act, v_act, g_act;     /* tn_activation; none */
    int kind;                           /* tn_lrpe_kind, required with theta */
    int layout;                         /* tn_layout; bnhd */
    int64_t q_dim, k_dim, v_dim, g_dim; /* axis of softmax; -1 */
    tn_int_list shape;                  /* the grid of tokens; one axis */
    int64_t l;                          /* leading tokens that are not turned; 0 */
    int64_t q_offset, k_offset;         /* position of the first token, one axis only; 0 */
    double scale;                       /* of q; 1 */
    int64_t chunk;                      /* causal: tokens handled at a time, a hint that changes rounding alone; 0: chosen */
    bool causal, return_state;          /* false */
    bool in_place;                      /* causal, without gradients: the last S replaces `state`, as tn_linear_attention_step asks */
} tn_linear_attention_args;
#define TN_LINEAR_ATTENTION(...)                     \
    ((tn_linear_attention_args){ .q_act = TN_NONE,   \
                                 .k_act = TN_NONE,   \
                                 .v_act = TN_NONE,   \
                                 .g_act = TN_NONE,   \
                                 .kind = TN_NO_LRPE, \
                                 .layout = TN_BNHD,  \
                                 .q_dim = -1,        \
                                 .k_dim = -1,        \
                                 .v_dim = -1,        \
                                 .g_dim = -1,        \
                                 .scale = 1,         \
                                 __VA_ARGS__ })

TN_API tn_tensor *tn_linear_attention(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_linear_attention_args args);

/* A step of generation: causal, over the next tokens of every sequence (one, usually), and args.state, which must be dense, is overwritten
 * with the state after them. No gradients. Positions go on where the caller says: .q_offset = position, .k_offset = position. */
TN_API tn_tensor *tn_linear_attention_step(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_linear_attention_args args);

#ifdef __cplusplus
}
#endif
#endif
