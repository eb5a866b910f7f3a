#ifndef TENON_VIEW_INTERNAL_H
#define TENON_VIEW_INTERNAL_H

#include "view.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_sample tn_reshape_samples[], tn_permute_samples[], tn_slice_samples[], tn_expand_samples[], tn_contiguous_samples[],
    tn_cast_samples[], tn_copy_samples[], tn_concat_samples[];
extern const tn_op_def tn_reshape_def, tn_permute_def, tn_slice_def, tn_expand_def, tn_contiguous_def, tn_cast_def, tn_copy_def,
    tn_concat_def;

/* Elements start + i * step, i < count, of an axis. */
typedef struct tn_slice_range {
    int axis;
    int64_t start, step, count;
} tn_slice_range;
/* The range a slice picks from x's shape; its dim and step have been checked. */
tn_slice_range tn_slice_range_of(const tn_slice_args *args, const tn_shape *shape);

/* n places from `start` along an axis, `step` apart, of a tensor: for kernels only, not to be kept. */
tn_tensor tn_part_of(const tn_tensor *t, int axis, int64_t start, int64_t step, int64_t n);

/* Copying goes through the device's own copy, so these serve every device. */
tn_status tn_copy_forward(tn_op_call *call); /* contiguous, copy, cast */
tn_status tn_cast_backward(tn_op_call *call);
tn_status tn_concat_forward(tn_op_call *call);
tn_status tn_slice_backward(tn_op_call *call);

tn_status tn_expand_backward_cpu(tn_op_call *call);
size_t tn_expand_workspace(const tn_op_call *call, bool backward);
tn_status tn_expand_backward_cuda(tn_op_call *call);
size_t tn_expand_workspace_cuda(const tn_op_call *call, bool backward);

#ifdef __cplusplus
}
#endif
#endif
