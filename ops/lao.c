#include "lao.h"

#include "../libtensor/context.h"
#include "act/act.h"
#include "elementwise/elementwise.h"
#include "lrpe/lrpe.h"
#include "matmul/matmul.h"
#include "view/view.h"

static tn_tensor *activated(tn_tensor *x, int act, int64_t dim) { return act == TN_NONE ? x : tn_act(x, TN_ACT(.act = act, .dim = dim)); }

tn_tensor *tn_lao_encode(tn_tensor *x, int act, int64_t dim, int64_t offset, tn_linear_attention_args args) {
    if (!args.theta) return activated(x, act, dim);
    return tn_lrpe(
        x, args.theta, NULL,
        TN_LRPE(.kind = args.kind, .act = act, .dim = dim, .shape = args.shape, .l = args.l, .offset = offset, .layout = args.layout));
}

/* As [b,h,n,.], or back. */
static tn_tensor *heads_first(tn_tensor *x, const tn_linear_attention_args *args) {
    return args->layout == TN_BHND ? x : tn_transpose(x, 1, 2);
}

static tn_tensor *sum_state(tn_tensor *k, tn_tensor *v, const tn_linear_attention_args *args) {
    tn_tensor *s = tn_matmul(tn_transpose(heads_first(k, args), -1, -2), heads_first(v, args));
    bool wide = args->state || args->state_out;
    if (wide && s && s->dtype == TN_BF16) s = tn_cast(s, TN_F32);
    return args->state ? tn_add(s, args->state) : s;
}

tn_tensor *tn_lao(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_linear_attention_args args) {
    if (!q || !k || !v) return NULL;
    if (args.causal || args.log_decay || args.cu_seqlens)
        return tn_fail(q->cx, TN_ERR_UNSUPPORTED, "lao", "lao is non-causal: wanted neither causal nor log_decay nor cu_seqlens");
    q = tn_lao_encode(q, args.q_act, args.q_dim, args.q_offset, args);
    k = tn_lao_encode(k, args.k_act, args.k_dim, args.k_offset, args);
    v = activated(v, args.v_act, args.v_dim);
    tn_tensor *s = sum_state(k, v, &args), *scaled = args.scale == 1 ? s : tn_mul_scalar(s, args.scale);
    if (args.state_out) *args.state_out = s;
    if (scaled && q && scaled->dtype != q->dtype) scaled = tn_cast(scaled, q->dtype);
    tn_tensor *y = heads_first(tn_matmul(heads_first(q, &args), scaled), &args);
    return args.g ? tn_mul(activated(args.g, args.g_act, args.g_dim), y) : y;
}
