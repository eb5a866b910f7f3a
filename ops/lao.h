/* lao: linear attention composed from nodes of the tape, one for each step of the formula, as one would write it down:
 *
 *     kb = lrpe(act(k)), S = state + kb' act(v), y = lrpe(act(q)) (scale S), o = act(g) * y
 *
 * The arguments are tn_linear_attention's (ops/linear_attention/linear_attention.h), non-causal ones. It is what the fused op is measured
 * against, in time and in what stays in memory for backward: encoded q and k, S and y, beside what each node saves. */
#ifndef TENON_LAO_H
#define TENON_LAO_H

#include "linear_attention/linear_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

TN_API tn_tensor *tn_lao(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_linear_attention_args args);

/* x activated and, where args has theta, encoded, by nodes of their own: what `flao` reads that does neither itself. */
TN_API tn_tensor *tn_lao_encode(tn_tensor *x, int act, int64_t dim, int64_t offset, tn_linear_attention_args args);

#ifdef __cplusplus
}
#endif
#endif
