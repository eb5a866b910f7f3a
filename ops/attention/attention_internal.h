/* One call of attention or tpa_attention as its kernels see it, the same on every device. */
#ifndef TENON_ATTENTION_INTERNAL_H
#define TENON_ATTENTION_INTERNAL_H

#include "../../autograd/op.h"
#include "../../libtensor/bf16.h"
#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { TN_AT_Q, TN_AT_K, TN_AT_V, TN_AT_SEQLENS, TN_AT_CU_SEQLENS, TN_AT_INPUTS };
enum { TN_TPA_AQ, TN_TPA_BQ, TN_TPA_AK, TN_TPA_BK, TN_TPA_AV, TN_TPA_BV, TN_TPA_SEQLENS, TN_TPA_CU_SEQLENS, TN_TPA_INPUTS };

/* q, k or v, with `factor` in it: element (batch, token, head, j) is
 *     rank 0: factor * x[batch,token,head,j]                                    x [b,tokens,heads,width]
 *     else    factor * sum_r a[batch,token,head,r] x[batch,token,r,j]           a [b,tokens,heads,rank], x [b,tokens,rank,width]
 * Everything is dense and of the data's dtype. Gradients lie as what they are of; NULL: not wanted. */
typedef struct tn_at_operand {
    const void *x, *a;
    int64_t tokens, heads, width, rank;
    double factor;
    void *dx, *da;
} tn_at_operand;

typedef struct tn_at_problem {
    tn_dtype dtype, wide; /* of the data; of the log-sum-exp (f64 for f64, else f32) */
    int64_t b, h, hk, n, m, d, e;
    bool causal;
    tn_tpa_algo algo;      /* auto where n > 1 */
    tn_at_operand q, k, v; /* q.factor holds the scale of q k' as well */

    const int64_t *seqlens;    /* on the device, [b]; NULL: m */
    const int64_t *cu_seqlens; /* on the device, [sequences + 1]; NULL: every batch is one sequence */
    int64_t sequences;

    void *o;   /* [b,n,h,e]; read in backward */
    void *lse; /* wide [b,h,n]; forward: NULL where nothing keeps it */

    /* backward */
    const void *d_o;
} tn_at_problem;

/* From a call that check() has passed. */
void tn_at_problem_of(const tn_op_call *call, bool backward, tn_at_problem *problem);

/* The tokens of a sequence, counted within its batch: queries [q_begin, q_end), keys [k_begin, k_end), and, when causal, query t sees the
 * keys up to t + shift. Kept within the tokens there are, whatever the lengths say. */
typedef struct tn_at_span {
    int64_t batch, q_begin, q_end, k_begin, k_end, shift;
} tn_at_span;

TN_HOST_DEVICE int64_t tn_at_within(int64_t x, int64_t low, int64_t high) { return x < low ? low : x < high ? x : high; }

TN_HOST_DEVICE tn_at_span tn_at_span_of(const tn_at_problem *p, int64_t sequence) {
    tn_at_span s;
    s.batch = p->cu_seqlens ? 0 : sequence;
    s.q_begin = s.k_begin = 0;
    s.q_end = p->n;
    s.k_end = p->m;
    if (p->cu_seqlens) {
        s.q_begin = s.k_begin = tn_at_within(p->cu_seqlens[sequence], 0, p->n);
        s.q_end = s.k_end = tn_at_within(p->cu_seqlens[sequence + 1], s.q_begin, p->n);
        s.shift = 0;
    } else {
        if (p->seqlens) s.k_end = tn_at_within(p->seqlens[sequence], 0, p->m);
        s.shift = s.k_end - p->n;
    }
    return s;
}

/* Query t of the sequence sees its keys before this one. */
TN_HOST_DEVICE int64_t tn_at_seen(const tn_at_problem *p, const tn_at_span *s, int64_t t) {
    return p->causal ? tn_at_within(t + s->shift + 1, s->k_begin, s->k_end) : s->k_end;
}

/* The sequence that holds token t of the packed ones: the last that begins at or before t. There must be one. */
TN_HOST_DEVICE int64_t tn_at_sequence_of(const tn_at_problem *p, int64_t t) {
    int64_t low = 0, high = p->sequences;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (p->cu_seqlens[middle] <= t) low = middle;
        else high = middle;
    }
    return low;
}

extern const tn_sample tn_attention_samples[], tn_tpa_attention_samples[];

tn_status tn_attention_forward_cpu(tn_op_call *call);
tn_status tn_attention_backward_cpu(tn_op_call *call);
size_t tn_attention_workspace_cpu(const tn_op_call *call, bool backward);

tn_status tn_attention_forward_cuda(tn_op_call *call);
tn_status tn_attention_backward_cuda(tn_op_call *call);
size_t tn_attention_workspace_cuda(const tn_op_call *call, bool backward);

#ifdef __cplusplus
}
#endif

#endif
