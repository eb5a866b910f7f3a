/* attention and tpa_attention: softmax attention, of queries, keys and values as they are or as products of factors.
 *
 *     tn_tensor *o = tn_attention(q, k, v, TN_ATTENTION(.causal = true));
 *     tn_tensor *o = tn_attention(q, k_cache, v_cache, TN_ATTENTION(.seqlens = lengths));
 *     tn_tensor *o = tn_tpa_attention(aq, bq, ak, bk, av, bv, TN_TPA_ATTENTION(.causal = true));
 *     tn_tensor *o = tn_tpa_attention(aq, bq, ak, bk, av, bv, TN_TPA_ATTENTION(.seqlens = lengths, .algo = TN_TPA_BN));
 *
 * q [b,n,h,d], k [b,m,hk,d], v [b,m,hk,e] -> o [b,n,h,e]; h is a multiple of hk: head i of q goes with head i / (h / hk) of k and v.
 * aq [b,n,h,rq], bq [b,n,rq,d], ak [b,m,h,rk], bk [b,m,rk,d], av [b,m,h,rv], bv [b,m,rv,e] stand for
 *     q = scale_q * sum_r aq[..,r] bq[r,..],  k and v likewise;      o = softmax(scale * q k') v
 *
 * The queries are the last n of the seqlens[i] tokens of batch i (default m): query t stands at seqlens[i] - n + t and, when causal, sees
 * the keys up to its own. Keys at and after seqlens[i] are not there, whatever their memory holds. cu_seqlens [s+1] instead says where
 * packed sequences begin, and the end: b = 1 and n = m then, and a sequence sees itself alone. A query that sees no key gives o = 0 and no
 * gradient.
 *
 * Saved for backward: every input, o, and the logarithm of each query's sum of exponentials [b,h,n], f32 (f64 beside f64):
 *     bytes(inputs) + bytes(o) + b h n w,     w = 4 (8 for f64) */
#ifndef TENON_ATTENTION_H
#define TENON_ATTENTION_H

#include <math.h>

#include "../../autograd/op.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A scale that is not given: 1 / sqrt(d), or 1 / rank. */
#define TN_ATTENTION_SCALE ((double)NAN)

typedef struct tn_attention_args {
    tn_tensor *seqlens, *cu_seqlens; /* i64 [b], [s+1]; may be left out */
    double scale;                    /* of q k'; 1 / sqrt(d) */
    bool causal;                     /* false */
} tn_attention_args;
#define TN_ATTENTION(...) ((tn_attention_args){ .scale = TN_ATTENTION_SCALE, __VA_ARGS__ })

TN_API tn_tensor *tn_attention(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_attention_args args);

/* How a step of generation (n = 1) is spread over the device. All give the same result but for rounding. */
typedef enum tn_tpa_algo {
    TN_TPA_AUTO,     /* by shape and device */
    TN_TPA_B,        /* one block of work per sequence */
    TN_TPA_BH,       /* per sequence and head */
    TN_TPA_BN,       /* per sequence and part of the keys; parts are merged by their sums of exponentials */
    TN_TPA_COMPOSED, /* products with the factors, each whole */
    TN_TPA_NAIVE     /* q, k and v made from their factors first */
} tn_tpa_algo;
#define TN_TPA_ALGO_NAMES \
    { "auto", "b", "bh", "bn", "composed", "naive", NULL }

typedef struct tn_tpa_attention_args {
    tn_tensor *seqlens, *cu_seqlens;
    double scale;                     /* 1 / sqrt(d) */
    double scale_q, scale_k, scale_v; /* 1 / rank */
    int algo;                         /* tn_tpa_algo; anything but auto goes with n = 1 and without cu_seqlens */
    bool causal;
} tn_tpa_attention_args;
#define TN_TPA_ATTENTION(...)                                \
    ((tn_tpa_attention_args){ .scale = TN_ATTENTION_SCALE,   \
                              .scale_q = TN_ATTENTION_SCALE, \
                              .scale_k = TN_ATTENTION_SCALE, \
                              .scale_v = TN_ATTENTION_SCALE, \
                              .algo = TN_TPA_AUTO,           \
                              __VA_ARGS__ })

TN_API tn_tensor *tn_tpa_attention(tn_tensor *aq, tn_tensor *bq, tn_tensor *ak, tn_tensor *bk, tn_tensor *av, tn_tensor *bv,
                                   tn_tpa_attention_args args);

#ifdef __cplusplus
}
#endif
#endif
