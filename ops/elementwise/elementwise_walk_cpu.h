/* Walks tensors of any strides and dtypes in step and hands a kernel panels that are dense, short enough for the first-level
 * cache and of one dtype; what the kernel makes of them is stored, or summed over the axes along which the destination
 * does not move. */
#ifndef TENON_ELEMENTWISE_WALK_CPU_H
#define TENON_ELEMENTWISE_WALK_CPU_H

#include "../../autograd/op.h"

#define TN_WALK_MAX_IN 4

/* What kernels compute in. */
typedef enum tn_compute { TN_COMPUTE_F64, TN_COMPUTE_F32, TN_COMPUTE_I64, TN_COMPUTE_COUNT } tn_compute;

static inline tn_compute tn_compute_for(tn_dtype dtype) {
    return dtype == TN_F64 ? TN_COMPUTE_F64 : dtype == TN_F32 || dtype == TN_BF16 ? TN_COMPUTE_F32 : TN_COMPUTE_I64;
}

typedef struct tn_panel {
    int64_t n;
    void *to;
    const void *in[TN_WALK_MAX_IN];
    const double *numbers; /* the op's args */
} tn_panel;
typedef void (*tn_panel_function)(const tn_panel *panel);

typedef struct tn_walk_operand {
    char *data;
    tn_dtype dtype;
    int64_t stride[TN_MAX_AXES];
} tn_walk_operand;

typedef struct tn_walk {
    tn_compute compute;
    tn_panel_function function;
    const double *numbers;
    int axes, n_in;
    int64_t size[TN_MAX_AXES];
    tn_walk_operand in[TN_WALK_MAX_IN], to;
    double *partials; /* tn_walk_partial_bytes(), only needed where the walk sums */

    /* Found when it runs: the axes are cut into boxes of rows x columns of the last two. */
    bool summed[TN_MAX_AXES];
    int64_t boxes[TN_MAX_AXES];
    int64_t rows, columns;
    int64_t units, steps; /* boxes along the kept axes, and along the summed ones */
    int64_t segments;     /* pieces the steps of a unit are cut into */
} tn_walk;

/* A walk over `shape`, the shape all operands broadcast to: begun, told what it reads and last what it writes, then run. */
void tn_walk_begin(tn_walk *walk, const tn_shape *shape, tn_compute compute, tn_panel_function function, const double *numbers);
void tn_walk_read(tn_walk *walk, const tn_tensor *t);
void tn_walk_write(tn_walk *walk, const tn_tensor *to);
/* Runs n walks over one shape. */
void tn_walk_run(tn_walk *walks, int n, int threads);

/* Scratch for a sum from n elements down to n_to. */
size_t tn_walk_partial_bytes(int64_t n, int64_t n_to);

#endif
