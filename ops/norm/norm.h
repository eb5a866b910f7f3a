/* norm: rms_norm and layer_norm over the last axis.
 *
 *     tn_tensor *o = tn_rms_norm(x, weight, NULL, TN_RMS_NORM());
 *     tn_tensor *o = tn_rms_norm(x, weight, g, TN_RMS_NORM(.g_act = TN_SILU));      x / rms(x) * weight * silu(g)
 *     tn_tensor *o = tn_layer_norm(x, weight, bias, TN_LAYER_NORM(.eps = 1e-6));
 *
 * x [.., d], weight [d], bias [d], g like x; all of one dtype. In bytes, with rows = numel(x) / d and statistics of 4 bytes
 * (8 for f64), saved for backward are
 *     rms_norm    x, weight, g if given, and 1/rms of every row: (numel(x) + d + numel(g)) x element size + rows x statistic
 *     layer_norm  x, weight, mean and 1/deviation of every row: (numel(x) + d) x element size + 2 x rows x statistic
 * where the gradient of bias alone needs nothing saved. */
#ifndef TENON_NORM_H
#define TENON_NORM_H

#include "../../libtensor/tensor.h"
#include "../activation.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_rms_norm_args {
    double eps; /* added to the mean square; 1e-6 */
    int g_act;  /* tn_activation, not softmax; none */
} tn_rms_norm_args;
#define TN_RMS_NORM(...) ((tn_rms_norm_args){ .eps = 1e-6, .g_act = TN_NONE, __VA_ARGS__ })

typedef struct tn_layer_norm_args {
    double eps; /* added to the variance; 1e-5 */
} tn_layer_norm_args;
#define TN_LAYER_NORM(...) ((tn_layer_norm_args){ .eps = 1e-5, __VA_ARGS__ })

/* g may be NULL: no gate. */
TN_API tn_tensor *tn_rms_norm(tn_tensor *x, tn_tensor *weight, tn_tensor *g, tn_rms_norm_args args);
TN_API tn_tensor *tn_layer_norm(tn_tensor *x, tn_tensor *weight, tn_tensor *bias, tn_layer_norm_args args);

#ifdef __cplusplus
}
#endif
#endif
