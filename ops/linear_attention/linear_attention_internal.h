/* One call of linear_attention as its kernels see it, the same on every device. */
#ifndef TENON_LINEAR_ATTENTION_INTERNAL_H
#define TENON_LINEAR_ATTENTION_INTERNAL_H

#include "../../autograd/op.h"
#include "linear_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TN_LA_Q, TN_LA_K, TN_LA_V, TN_LA_G, TN_LA_THETA, TN_LA_LOG_DECAY, TN_LA_STATE, TN_LA_CU_SEQLENS, TN_LA_INPUTS };
enum { TN_LA_O, TN_LA_STATE_OUT, TN_LA_OUTPUTS };
/* What forward keeps for backward beside inputs, in this order and only where there is such a thing (see tn_la_problem_of):
 * S [b,h,d',e], non-causally and unless state_out is returned, which then is S and saved as an output;
 * [2,b,h,d]: maximum and sum of exp(x - maximum) of q, then of k, where softmax runs over the sequence. All of the wide dtype. */

typedef enum tn_la_decay { TN_LA_NO_DECAY, TN_LA_CONSTANT_DECAY /* [h] */, TN_LA_SCALAR_DECAY /* [b,n,h] */ } tn_la_decay;

/* Elements from one batch, token, head to the next; features are adjacent. */
typedef struct tn_la_strides {
    int64_t batch, token, head;
} tn_la_strides;

/* q, k, v or g with what is done to it before it is used. */
typedef struct tn_la_operand {
    const void *x; /* the data's dtype; NULL: no g (or, in backward of a planned call, no data) */
    tn_la_strides stride;
    int64_t tokens, width; /* n or m, d or e */
    int act;               /* tn_activation */
    bool over_sequence;    /* act is softmax over the tokens of a (batch, head, feature); q and k of a non-causal call only */
    void *maximum, *sum;   /* over_sequence: [b,h,d] of the wide dtype, forward writes them, backward reads them; forward without
                              gradients: NULL, then they are workspace of the kernels' own */
    bool encoded;          /* LRPE after the activation, by `grid`: q and k where theta is given */
    tn_lrpe_grid grid;     /* of q or k; with cu_seqlens `tokens` is not its size: positions count from the sequence's first token */
} tn_la_operand;

typedef struct tn_la_problem {
    tn_dtype dtype, wide; /* of the data; of theta, log_decay, states, S and statistics (f64 for f64, else f32) */
    int64_t b, h, n, m, d, e;
    int64_t state_rows; /* d': 2d with cosine, else d */
    bool causal;
    double scale; /* of q, after activation and LRPE */
    tn_lrpe_kind kind;
    bool encoded; /* theta is given */
    tn_layout layout;
    tn_la_operand q, k, v, g; /* g.x is NULL and has_gate false where there is no gate */
    bool has_gate;
    const void *theta; /* wide, dense [grid.theta_heads, grid.theta_width] */

    /* causal */
    int64_t chunk; /* asked for; 0: the kernels choose */
    tn_la_decay decay;
    const void *log_decay;     /* wide, [h] or [b,n,h], dense in both layouts */
    int64_t sequences;         /* how many states there are: b, or s of cu_seqlens */
    const int64_t *cu_seqlens; /* on the device; [sequences + 1], NULL: every batch is one sequence */

    const void *state; /* wide, [sequences,h,d',e] dense; NULL: zeros. In backward of a non-causal call NULL: S holds it */
    void *s;           /* non-causal: [b,h,d',e] wide, written by forward, read by backward; state_out where that is returned.
                          NULL in forward where nothing keeps it: workspace of the kernels' own. Causal: NULL */

    /* forward */
    void *o;         /* the strides of o are those of g: see tn_la_o_strides */
    void *state_out; /* NULL: not returned. Non-causal: equals s. Causal: may equal state */
    tn_la_strides o_stride;

    /* backward: do, dstate_out come in (dstate_out NULL: none reached it; d_o NULL likewise), the others go out, NULL where not wanted.
     * Gradients lie as their inputs do. */
    const void *d_o, *dstate_out;
    void *dq, *dk, *dv, *dg;
    void *dtheta, *dlog_decay, *dstate; /* wide */
} tn_la_problem;

/* From a call that check() has passed. */
void tn_la_problem_of(const tn_op_call *call, bool backward, tn_la_problem *problem);

extern const tn_sample tn_linear_attention_samples[];

tn_status tn_linear_attention_forward_cpu(tn_op_call *call);
tn_status tn_linear_attention_backward_cpu(tn_op_call *call);
size_t tn_linear_attention_workspace_cpu(const tn_op_call *call, bool backward);

/* linear_attention_cuda.c: each goes to the non-causal or the causal kernels below. */
tn_status tn_linear_attention_forward_cuda(tn_op_call *call);
tn_status tn_linear_attention_backward_cuda(tn_op_call *call);
size_t tn_linear_attention_workspace_cuda(const tn_op_call *call, bool backward);

/* The kernels. call gives device, stream, workspace (of the bytes that the third asks for; 512-byte aligned). tn_la_problem is without
 * pointers into a call's args, so it can be handed to a kernel by value. */
tn_status tn_la_forward_cuda(tn_op_call *call, const tn_la_problem *problem);
tn_status tn_la_backward_cuda(tn_op_call *call, const tn_la_problem *problem);
size_t tn_la_forward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem);
size_t tn_la_backward_workspace_cuda(const tn_op_call *call, const tn_la_problem *problem);

#ifdef __cplusplus
}
#endif

#endif
