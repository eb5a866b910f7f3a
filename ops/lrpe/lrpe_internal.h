#ifndef TENON_LRPE_INTERNAL_H
#define TENON_LRPE_INTERNAL_H

#include "../../autograd/op.h"
#include "lrpe.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TN_LRPE_X, TN_LRPE_THETA, TN_LRPE_OFFSET };

extern const tn_sample tn_lrpe_samples[];

/* In elements. o and dx are dense, and so is the table; x and do are as they come: any stride, 0 included, features too. */
typedef struct tn_lrpe_strides {
    int64_t batch, token, head, feature;
} tn_lrpe_strides;

typedef enum tn_lrpe_softmax { TN_LRPE_NO_SOFTMAX, TN_LRPE_SOFTMAX_FEATURES, TN_LRPE_SOFTMAX_TOKENS } tn_lrpe_softmax;

/* All there is to know of a call, of either pass; tn_lrpe_plan fills it in from inputs that check() has passed.
 * Which pointers are there: forward has x, theta, o; backward do, and of the others what was saved. */
typedef struct tn_lrpe_call {
    tn_lrpe_grid grid; /* tokens, and which angle turns which feature; grid.angles is W */
    tn_lrpe_kind kind;
    tn_dtype dtype; /* of x, o, do, dx; `wide` of all else: f64 if it is f64, else f32 */
    tn_dtype wide;
    int act; /* tn_activation; TN_SOFTMAX together with softmax */
    tn_lrpe_softmax softmax;
    int layout;                             /* tn_layout */
    int64_t batch, heads, width, out_width; /* width: d; out_width: d or 2d */

    tn_lrpe_strides x_stride, do_stride; /* of what is there */
    tn_lrpe_strides o_stride, dx_stride;

    const void *x;           /* backward: NULL if act is none and theta wants no gradient */
    const void *theta;       /* dense [theta_heads, theta_width]; backward: NULL with a table */
    const int64_t *offset_t; /* one number on the device, to be added to grid.offset; or NULL */
    void *o;                 /* forward */
    const void *d;           /* backward: do */
    void *dx, *dtheta;       /* backward: NULL where not wanted; dtheta [theta_heads, theta_width] */

    /* Statistics of softmax over the tokens, [b, h, d] each in either layout. NULL for any other act and, forward, where nothing
     * is recorded: then they are the kernel's own scratch, if it wants them. Sums are of exp(x - max). */
    void *max, *sum;
    /* cache: [token][theta head] (bhnd: [theta head][token]) of rows of 2W: W cosines, then W sines. Forward writes it unless it
     * is NULL, backward reads it instead of theta. Angles of leading tokens and of features that do not turn are in it, as 0. */
    void *table;
    tn_lrpe_strides table_stride; /* token and head; head 0 where all share; batch 0 */
} tn_lrpe_call;

void tn_lrpe_plan(tn_lrpe_call *lrpe, const tn_op_call *call, bool backward);

tn_status tn_lrpe_forward_cpu(tn_op_call *call);
tn_status tn_lrpe_backward_cpu(tn_op_call *call);
size_t tn_lrpe_workspace_cpu(const tn_op_call *call, bool backward);

tn_status tn_lrpe_forward_cuda(tn_op_call *call);
tn_status tn_lrpe_backward_cuda(tn_op_call *call);
/* Called once all of the call is there but the workspace. */
size_t tn_lrpe_workspace_cuda(const tn_op_call *call, bool backward);

#ifdef __cplusplus
}
#endif
#endif
