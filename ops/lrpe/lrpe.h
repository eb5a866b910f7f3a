/* lrpe: a linearised relative position encoding, with an activation of x before it.
 *
 *     tn_tensor *q = tn_lrpe(x, theta, NULL, TN_LRPE(.kind = TN_ROTATE, .act = TN_SILU));
 *     tn_tensor *k = tn_lrpe(x, theta, NULL, TN_LRPE(.kind = TN_COSINE, .shape = TN_DIMS(16, 16), .l = 1, .layout = TN_BHND));
 *
 * x is [b, n, h, d] or, with layout TN_BHND, [b, h, n, d], of any strides. Token t >= l has a place in the grid `shape` (last axis fastest;
 * without shape: one axis of all tokens after l), token t < l has angle 0; with one axis the coordinate is t - l + offset + offset_t. A
 * feature's angle is its coordinate times its theta:
 *     rotate  [x1, x2] -> [x1 cos A - x2 sin A, x1 sin A + x2 cos A]    halves, W = d / 2 angles, o has width d
 *     cosine  x        -> [x cos A, x sin A]                            W = d angles, o has width 2d
 * theta [h, w] or [1, w] is f32 (f64 beside f64) and serves the axes one after the other, w features each, cut to W in all; features that
 * no axis reaches do not turn. w = 1 gives every axis ceil(W / axes) features of the same theta. offset_t, a scalar i64 tensor or NULL, is
 * read by the kernels on the device, so that a recorded step can be replayed further along.
 *
 * Saved for backward, in bytes, with `wide` = 4 (8 for f64):
 *     x      numel x element size, if act is not none or theta wants a gradient
 *     theta  numel x wide, unless cache
 *     cache  n x (h or 1, as theta) x 2 W x wide: the cosines and sines
 *     softmax over the sequence: maximum and sum of every column, 2 x b h d x wide
 *     offset_t 8, unless cache and theta wants no gradient */
#ifndef TENON_LRPE_H
#define TENON_LRPE_H

#include "../../autograd/op.h"
#include "../activation.h"
#include "../layout.h"
#include "../lrpe_grid.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_lrpe_args {
    int kind;          /* tn_lrpe_kind; required */
    int act;           /* tn_activation of x, before it is encoded; none */
    int64_t dim;       /* softmax only: the axis of features or that of tokens; -1 */
    tn_int_list shape; /* the grid; without axes: one axis, all tokens after l */
    int64_t l;         /* leading tokens, which have angle 0; 0 */
    int64_t offset;    /* of the coordinate, one axis only; 0 */
    bool cache;        /* keep cosines and sines for backward instead of computing them again; false */
    int layout;        /* tn_layout; TN_BNHD */
} tn_lrpe_args;
#define TN_LRPE(...) ((tn_lrpe_args){ .kind = -1, .act = TN_NONE, .dim = -1, __VA_ARGS__ })

/* offset_t may be NULL. */
TN_API tn_tensor *tn_lrpe(tn_tensor *x, tn_tensor *theta, tn_tensor *offset_t, tn_lrpe_args args);

#ifdef __cplusplus
}
#endif
#endif
