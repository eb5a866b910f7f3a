/* Cosines and sines of LRPE on the CPU, one token and head at a time, for every family that encodes.
 *
 * The f32 ones form angles in f64: a coordinate below 2^29 times an f32 is exact there, and what a reduction by pi/2 leaves of it is
 * rounded to f32 only then. So they are right to about 1e-7 wherever the token stands, and no instruction set has to have a fused
 * multiply-add for that. Angles beyond TN_SINCOS_MAX go by libm. */
#ifndef TENON_LRPE_ANGLE_CPU_H
#define TENON_LRPE_ANGLE_CPU_H

#include "../libtensor/simd.h"
#include "lrpe_grid.h"

/* The coordinate of a token, with an offset from the device on top. */
TN_INLINE int64_t tn_lrpe_moved_coordinate(const tn_lrpe_grid *grid, int64_t token, int axis, int64_t moved) {
    return tn_lrpe_coordinate(grid, token, axis) + (token >= grid->leading ? moved : 0);
}

/* Features first .. last - 1 that belong to an axis. */
typedef struct tn_lrpe_features {
    int64_t first, last;
} tn_lrpe_features;
TN_INLINE tn_lrpe_features tn_lrpe_features_of(const tn_lrpe_grid *grid, int axis) {
    int64_t first = axis * grid->span, last = first + grid->span;
    if (first > grid->angles) first = grid->angles;
    return (tn_lrpe_features){ first, last < grid->angles ? last : grid->angles };
}

/* The largest |theta| of a head's row; NaN if one is. */
TN_INLINE float tn_lrpe_largest_theta(const tn_lrpe_grid *grid, const float *theta) {
    float most = 0;
    for (int64_t i = 0; i < grid->theta_width; i++) most = fabsf(theta[i]) > most || theta[i] != theta[i] ? fabsf(theta[i]) : most;
    return most;
}

static __attribute__((noinline, unused)) void tn_lrpe_far_(const float *theta, double coordinate, float *sine, float *cosine) {
    for (int i = 0; i < TN_VF_LANES; i++) {
        double angle = coordinate * (double)theta[i];
        sine[i] = (float)sin(angle);
        cosine[i] = (float)cos(angle);
    }
}
TN_INLINE void tn_lrpe_sincos_(tn_vf theta, double coordinate, bool far, tn_vf *sine, tn_vf *cosine) {
    if (!far) {
        tn_vf_sincos_f64(tn_vd16_from_vf(theta) * coordinate, sine, cosine);
        return;
    }
    float in[TN_VF_LANES], s[TN_VF_LANES], c[TN_VF_LANES];
    tn_vf_store(in, theta);
    tn_lrpe_far_(in, coordinate, s, c);
    *sine = tn_vf_load(s);
    *cosine = tn_vf_load(c);
}

/* Writes grid->angles cosines and as many sines of a token; theta is the head's row, `largest` its tn_lrpe_largest_theta. For use within a
 * TN_SIMD_CLONES function. */
TN_INLINE void tn_lrpe_angles_f32(const tn_lrpe_grid *grid, const float *theta, float largest, int64_t token, int64_t moved, float *cosine,
                                  float *sine) {
    int64_t i = 0;
    for (int axis = 0; axis < grid->axes && i < grid->angles; axis++) {
        tn_lrpe_features at = tn_lrpe_features_of(grid, axis);
        double coordinate = (double)tn_lrpe_moved_coordinate(grid, token, axis, moved);
        bool far = !(fabs(coordinate) * largest <= TN_SINCOS_MAX), scalar = grid->theta_width == 1;
        tn_vf s = tn_vf_zero(), c = tn_vf_zero();
        for (; i < at.last; i += TN_VF_LANES) {
            if (!scalar || i == at.first) {
                tn_vf row = scalar ? tn_vf_set(theta[0]) : tn_vf_load_part(theta + (i - at.first), at.last - i);
                tn_lrpe_sincos_(row, coordinate, far, &s, &c);
            }
            tn_vf_store_part(sine + i, s, at.last - i);
            tn_vf_store_part(cosine + i, c, at.last - i);
        }
        i = at.last;
    }
    for (; i < grid->angles; i++) cosine[i] = 1, sine[i] = 0;
}

/* The same in f64, by libm. */
static inline void tn_lrpe_angles_f64(const tn_lrpe_grid *grid, const double *theta, int64_t token, int64_t moved, double *cosine,
                                      double *sine) {
    for (int64_t i = 0; i < grid->angles; i++) {
        int axis = tn_lrpe_axis(grid, i);
        double angle = axis < 0 ? 0 : (double)tn_lrpe_moved_coordinate(grid, token, axis, moved) * theta[tn_lrpe_theta_column(grid, i)];
        cosine[i] = cos(angle);
        sine[i] = sin(angle);
    }
}

#endif
