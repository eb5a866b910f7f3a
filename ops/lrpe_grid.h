/* Where a token stands and by which angle a feature turns: the geometry of LRPE, for every family that encodes.
 *
 * Tokens are a leading run of `leading` (angle 0), then a grid of extent[0] x .. x extent[axes-1], last axis fastest; with one axis a
 * token's coordinate is token - leading + offset. A feature below `angles` belongs to axis feature / span and turns by
 * coordinate(axis) * theta[feature % span], or by theta[0] where theta is a scalar; features that no axis reaches do not turn. */
#ifndef TENON_LRPE_GRID_H
#define TENON_LRPE_GRID_H

#include "../libtensor/tensor.h"

#ifdef __CUDACC__
#define TN_LRPE_INLINE static __host__ __device__ __forceinline__
#else
#define TN_LRPE_INLINE static inline
#endif

#define TN_LRPE_MAX_AXES 8

typedef enum tn_lrpe_kind { TN_ROTATE, TN_COSINE } tn_lrpe_kind;
#define TN_LRPE_KIND_NAMES \
    { "rotate", "cosine", NULL }

typedef struct tn_lrpe_grid {
    int64_t tokens, leading, offset;
    int axes;
    int64_t extent[TN_LRPE_MAX_AXES];
    int64_t angles;      /* W: d for cosine, d / 2 for rotate */
    int64_t theta_heads; /* 1: shared by all heads */
    int64_t theta_width; /* 1: a scalar */
    int64_t span;        /* features of one axis: theta_width, or ceil(angles / axes) for a scalar */
} tn_lrpe_grid;

/* The axis a feature belongs to, or -1 where it does not turn. */
TN_LRPE_INLINE int tn_lrpe_axis(const tn_lrpe_grid *grid, int64_t feature) {
    int64_t axis = feature / grid->span;
    return axis < grid->axes ? (int)axis : -1;
}

/* The column of theta that turns a feature which has an axis. */
TN_LRPE_INLINE int64_t tn_lrpe_theta_column(const tn_lrpe_grid *grid, int64_t feature) {
    return grid->theta_width == 1 ? 0 : feature % grid->span;
}

/* A token's coordinate along an axis; 0 for leading tokens. */
TN_LRPE_INLINE int64_t tn_lrpe_coordinate(const tn_lrpe_grid *grid, int64_t token, int axis) {
    int64_t at = token - grid->leading;
    if (at < 0) return 0;
    if (grid->axes == 1) return at + grid->offset;
    for (int inner = grid->axes - 1; inner > axis; inner--) at /= grid->extent[inner];
    return at % grid->extent[axis];
}

#ifdef __cplusplus
extern "C" {
#endif

/* What a caller says of the geometry; check() turns it into a grid. */
typedef struct tn_lrpe_request {
    int kind;                     /* tn_lrpe_kind */
    int64_t tokens, heads, width; /* width: d */
    tn_shape shape;               /* without axes: one axis, all tokens after the leading ones */
    int64_t leading, offset;
    bool moves; /* an offset that only the device knows comes on top */
    const tn_shape *theta;
} tn_lrpe_request;

/* TN_OK, or what the request is refused with, and what was wanted in `reason`. */
tn_status tn_lrpe_grid_make(tn_lrpe_grid *grid, const tn_lrpe_request *request, char *reason, size_t n_bytes);

#ifdef __cplusplus
}
#endif
#endif
