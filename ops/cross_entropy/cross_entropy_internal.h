#ifndef TENON_CROSS_ENTROPY_INTERNAL_H
#define TENON_CROSS_ENTROPY_INTERNAL_H

#include "../../autograd/op.h"
#include "cross_entropy.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_op_def tn_linear_cross_entropy_def;
extern const tn_attr_def tn_cross_entropy_attrs[2];
extern const tn_sample tn_cross_entropy_samples[];
extern const tn_sample tn_linear_cross_entropy_samples[];

tn_status tn_cross_entropy_forward_cpu(tn_op_call *call);
tn_status tn_cross_entropy_backward_cpu(tn_op_call *call);
tn_status tn_linear_cross_entropy_forward_cpu(tn_op_call *call);
tn_status tn_linear_cross_entropy_backward_cpu(tn_op_call *call);
size_t tn_linear_cross_entropy_workspace_cpu(const tn_op_call *call, bool backward);

tn_status tn_cross_entropy_forward_cuda(tn_op_call *call);
tn_status tn_cross_entropy_backward_cuda(tn_op_call *call);
size_t tn_cross_entropy_workspace_cuda(const tn_op_call *call, bool backward);
tn_status tn_linear_cross_entropy_forward_cuda(tn_op_call *call);
tn_status tn_linear_cross_entropy_backward_cuda(tn_op_call *call);
size_t tn_linear_cross_entropy_workspace_cuda(const tn_op_call *call, bool backward);

/* target has one number for every row of `rows`. */
bool tn_cross_entropy_check_target(tn_op_call *call, const tn_tensor *rows, const tn_tensor *target);

#define TN_CROSS_ENTROPY_PARTS 64

/* Rows of logits, their targets and statistics. */
typedef struct tn_entropy_rows {
    tn_dtype dtype; /* of the logits */
    int64_t rows, v, ignore_index;
    const void *logits;
    const int64_t *target;
    void *max, *log_sum;                 /* [rows], f32 (f64 for f64): the row's maximum m, and log sum exp(logits - m); NULL: not wanted */
    int64_t grain;                       /* rows of a chunk, from the shape alone */
    double part[TN_CROSS_ENTROPY_PARTS]; /* the loss of each chunk */

    void *dlogits; /* may be the logits themselves */
    double scale;  /* the gradient of one row's loss */
} tn_entropy_rows;

/* How many targets count; where one is out of range the call is refused and *status says so. */
int64_t tn_cross_entropy_count(tn_op_call *call, const tn_tensor *target, int64_t v, tn_status *status);
/* The sum of the rows' losses; fills the statistics. */
double tn_cross_entropy_sum(tn_entropy_rows *rows, int threads);
/* Fills dlogits from logits and statistics. */
void tn_cross_entropy_gradient(tn_entropy_rows *rows, int threads);
void tn_cross_entropy_store(tn_tensor *scalar, double value);
double tn_cross_entropy_load(const tn_tensor *scalar);

#ifdef __cplusplus
}
#endif
#endif
