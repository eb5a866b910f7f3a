#ifndef TENON_NORM_INTERNAL_H
#define TENON_NORM_INTERNAL_H

#include "../../autograd/op.h"
#include "norm.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_sample tn_rms_norm_samples[];
extern const tn_sample tn_layer_norm_samples[];

tn_status tn_rms_norm_forward_cpu(tn_op_call *call);
tn_status tn_rms_norm_backward_cpu(tn_op_call *call);
tn_status tn_layer_norm_forward_cpu(tn_op_call *call);
tn_status tn_layer_norm_backward_cpu(tn_op_call *call);
size_t tn_norm_workspace_cpu(const tn_op_call *call, bool backward);

#define TN_NORM_SCRATCH_ROWS 3

/* Both norms as one: o = (x - mean) * rstd * weight * act(g) + bias, where rms_norm has no mean and no bias and layer_norm no g.
 * Pointers are NULL where the op has no such tensor or nobody wants it. */
typedef struct tn_norm_rows {
    int64_t rows, d;
    double eps;
    bool center; /* layer_norm: subtract the mean */
    int g_act;
    const void *x, *weight, *bias, *g, *dout;
    void *o, *dx, *dg;
    void *rstd, *mean; /* [rows], f32 (f64 for f64) */

    /* Backward: rows are cut into chunks of `grain`. Each has scratch for TN_NORM_SCRATCH_ROWS rows of d: its parts of dweight and of
     * dbias, and what a row needs between its two looks. */
    int64_t grain;
    void *scratch;
    bool wants_weight, wants_bias;
} tn_norm_rows;

void tn_norm_forward_f32(void *rows, int64_t begin, int64_t end);
void tn_norm_forward_bf16(void *rows, int64_t begin, int64_t end);
void tn_norm_backward_f32(void *rows, int64_t begin, int64_t end);
void tn_norm_backward_bf16(void *rows, int64_t begin, int64_t end);

tn_status tn_rms_norm_forward_cuda(tn_op_call *call);
tn_status tn_rms_norm_backward_cuda(tn_op_call *call);
tn_status tn_layer_norm_forward_cuda(tn_op_call *call);
tn_status tn_layer_norm_backward_cuda(tn_op_call *call);
size_t tn_norm_workspace_cuda(const tn_op_call *call, bool backward);

#ifdef __cplusplus
}
#endif

#endif
