/* Small helpers that op families share in their check() and formulas. */
#ifndef TENON_OP_SUPPORT_H
#define TENON_OP_SUPPORT_H

#include "../autograd/op.h"

/* A CUDA kernel in a tn_op_def: NULL in a build without CUDA. */
#ifdef TN_WITH_CUDA
#define TN_CUDA_KERNEL(function) function
#else
#define TN_CUDA_KERNEL(function) NULL
#endif

static inline tn_spec tn_spec_like(const tn_tensor *t) { return (tn_spec){ t->dtype, tn_shape_of(t) }; }

static inline int64_t tn_spec_numel(const tn_spec *spec) {
    int64_t numel = 1;
    for (int i = 0; i < spec->shape.axes; i++) numel *= spec->shape.size[i];
    return numel;
}

static inline int64_t tn_spec_bytes(const tn_spec *spec) { return tn_spec_numel(spec) * (int64_t)tn_dtype_size(spec->dtype); }

/* Bytes of all inputs, or of all outputs, each once. */
static inline int64_t tn_call_in_bytes(const tn_op_call *call) {
    int64_t bytes = 0;
    for (int i = 0; i < call->n_in; i++) bytes += (int64_t)tn_bytes(call->in[i]);
    return bytes;
}

static inline int64_t tn_call_out_bytes(const tn_op_call *call) {
    int64_t bytes = 0;
    for (int i = 0; i < call->n_out; i++) bytes += tn_spec_bytes(&call->out_spec[i]);
    return bytes;
}

/* The dtype sums and statistics run in: f64 for f64 data, else f32. */
static inline tn_dtype tn_wide_dtype(tn_dtype data) { return data == TN_F64 ? TN_F64 : TN_F32; }

/* dim in [-axes, axes) as an axis in [0, axes), or -1 where it lies outside. */
static inline int tn_axis_of(int64_t dim, int axes) {
    if (dim < -axes || dim >= axes) return -1;
    return (int)(dim < 0 ? dim + axes : dim);
}

static inline bool tn_wants(const tn_op_call *call, int input) { return call->wants >> input & 1; }

/* A shape seen as [outer, axis, inner] around one axis. */
typedef struct tn_around {
    int64_t outer, axis, inner;
} tn_around;

static inline tn_around tn_around_axis(const int64_t *shape, int axes, int axis) {
    tn_around around = { 1, axes ? shape[axis] : 1, 1 };
    for (int i = 0; i < axis; i++) around.outer *= shape[i];
    for (int i = axis + 1; i < axes; i++) around.inner *= shape[i];
    return around;
}

#endif
