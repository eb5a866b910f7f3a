#include "attention_internal.h"

#include "../family.h"
#include "../op_support.h"

/* ---- the problem ---- */

static tn_spec input_spec(const tn_op_call *call, int i) {
    if (call->in_spec) return call->in_spec[i];
    return call->in[i] ? tn_spec_like(call->in[i]) : (tn_spec){ TN_F32, TN_SCALAR };
}

static const void *data_of(const tn_tensor *t) { return t ? t->data : NULL; }
static void *place_of(tn_tensor *t) { return t ? t->data : NULL; }
static double given_or(double given, double otherwise) { return given == given ? given : otherwise; }

static tn_at_operand whole_operand(const tn_op_call *call, int x) {
    tn_spec spec = input_spec(call, x);
    const int64_t *size = spec.shape.size;
    return (tn_at_operand){ .x = data_of(call->in[x]), .tokens = size[1], .heads = size[2], .width = size[3], .factor = 1 };
}

static tn_at_operand factored_operand(const tn_op_call *call, int a, double scale) {
    tn_spec of_a = input_spec(call, a), of_x = input_spec(call, a + 1);
    const int64_t *size = of_a.shape.size;
    return (tn_at_operand){ .x = data_of(call->in[a + 1]),
                            .a = data_of(call->in[a]),
                            .tokens = size[1],
                            .heads = size[2],
                            .width = of_x.shape.size[3],
                            .rank = size[3],
                            .factor = given_or(scale, 1 / (double)size[3]) };
}

static bool is_factored(const tn_op_call *call) { return call->n_in == TN_TPA_INPUTS; }

static void sizes_of(const tn_op_call *call, tn_at_problem *p) {
    tn_spec q = input_spec(call, 0);
    p->dtype = q.dtype;
    p->wide = tn_wide_dtype(q.dtype);
    p->b = q.shape.size[0];
    p->n = p->q.tokens;
    p->m = p->k.tokens;
    p->h = p->q.heads;
    p->hk = p->k.heads;
    p->d = p->q.width;
    p->e = p->v.width;
}

static void sequences_of(const tn_op_call *call, int seqlens, int cu_seqlens, tn_at_problem *p) {
    p->seqlens = data_of(call->in[seqlens]);
    p->cu_seqlens = data_of(call->in[cu_seqlens]);
    tn_spec cu = input_spec(call, cu_seqlens);
    p->sequences = cu.shape.axes == 1 ? cu.shape.size[0] - 1 : p->b;
}

static void gradients_of(const tn_op_call *call, tn_at_problem *p) {
    tn_at_operand *operands[] = { &p->q, &p->k, &p->v };
    bool factored = is_factored(call);
    for (int i = 0; i < 3; i++) {
        operands[i]->dx = place_of(call->din[factored ? 2 * i + 1 : i]);
        operands[i]->da = factored ? place_of(call->din[2 * i]) : NULL;
    }
    p->d_o = data_of(call->dout[0]);
}

void tn_at_problem_of(const tn_op_call *call, bool backward, tn_at_problem *p) {
    *p = (tn_at_problem){ .algo = TN_TPA_AUTO };
    double scale;
    if (is_factored(call)) {
        const tn_tpa_attention_args *args = call->args;
        p->q = factored_operand(call, TN_TPA_AQ, args->scale_q);
        p->k = factored_operand(call, TN_TPA_AK, args->scale_k);
        p->v = factored_operand(call, TN_TPA_AV, args->scale_v);
        p->algo = (tn_tpa_algo)args->algo;
        p->causal = args->causal;
        scale = args->scale;
    } else {
        const tn_attention_args *args = call->args;
        p->q = whole_operand(call, TN_AT_Q);
        p->k = whole_operand(call, TN_AT_K);
        p->v = whole_operand(call, TN_AT_V);
        p->causal = args->causal;
        scale = args->scale;
    }
    sizes_of(call, p);
    sequences_of(call, call->n_in - 2, call->n_in - 1, p);
    p->q.factor *= given_or(scale, 1 / sqrt((double)p->d));
    p->o = place_of(call->out[0]);
    p->lse = place_of(call->aux[0]);
    if (backward) gradients_of(call, p);
}

/* ---- check ---- */

static bool check_sequences(tn_op_call *call) {
    const tn_tensor *seqlens = call->in[call->n_in - 2], *cu = call->in[call->n_in - 1], *q = call->in[0];
    tn_spec key = input_spec(call, is_factored(call) ? TN_TPA_AK : TN_AT_K);
    TN_WANT(!seqlens || !cu, call, TN_ERR_ARGUMENT,
            "seqlens goes with one sequence to a batch, cu_seqlens with packed ones: wanted one of them");
    if (seqlens)
        TN_WANT(seqlens->axes == 1 && seqlens->shape[0] == q->shape[0], call, TN_ERR_SHAPE, "wanted seqlens [b] = [%lld]",
                (long long)q->shape[0]);
    if (!cu) return true;
    TN_WANT(cu->axes == 1 && cu->shape[0] >= 1, call, TN_ERR_SHAPE, "wanted cu_seqlens [s+1]: where each sequence begins, and the end");
    TN_WANT(q->shape[0] == 1, call, TN_ERR_SHAPE, "packed sequences lie in one batch: wanted b = 1 with cu_seqlens, not %lld",
            (long long)q->shape[0]);
    TN_WANT(q->shape[1] == key.shape.size[1], call, TN_ERR_SHAPE, "packed sequences wanted as many queries as keys, not %lld and %lld",
            (long long)q->shape[1], (long long)key.shape.size[1]);
    return true;
}

static bool check_scale(tn_op_call *call, const char *name, double scale) {
    TN_WANT(!isinf(scale), call, TN_ERR_ARGUMENT, "%s is infinite", name);
    return true;
}

/* o, and the log-sum-exp beside it. */
static bool plan(tn_op_call *call) {
    tn_at_problem p;
    tn_at_problem_of(call, false, &p);
    call->out_spec[0] = (tn_spec){ p.dtype, TN_SHAPE(p.b, p.n, p.h, p.e) };
    call->aux_spec[call->n_aux++] = (tn_spec){ p.wide, TN_SHAPE(p.b, p.h, p.n) };
    call->save_in = (1u << call->n_in) - 1;
    call->save_out = 1;
    return true;
}

static bool attention_check(tn_op_call *call) {
    const tn_attention_args *args = call->args;
    const tn_tensor *q = call->in[TN_AT_Q], *k = call->in[TN_AT_K], *v = call->in[TN_AT_V];
    TN_WANT(q->axes == 4 && k->axes == 4 && v->axes == 4, call, TN_ERR_SHAPE, "wanted q [b,n,h,d], k [b,m,hk,d], v [b,m,hk,e]");
    TN_WANT(k->shape[0] == q->shape[0] && v->shape[0] == q->shape[0], call, TN_ERR_SHAPE, "wanted the same b in q, k and v");
    TN_WANT(k->shape[3] == q->shape[3], call, TN_ERR_SHAPE, "wanted k of q's width %lld", (long long)q->shape[3]);
    TN_WANT(v->shape[1] == k->shape[1] && v->shape[2] == k->shape[2], call, TN_ERR_SHAPE, "wanted as many tokens and heads in v as in k");
    TN_WANT(q->shape[2] > 0 && k->shape[2] > 0 && q->shape[3] > 0 && v->shape[3] > 0, call, TN_ERR_SHAPE,
            "wanted heads h and hk and widths d and e of at least 1");
    TN_WANT(q->shape[2] % k->shape[2] == 0, call, TN_ERR_SHAPE, "wanted heads of q in groups of equal size: %lld is no multiple of %lld",
            (long long)q->shape[2], (long long)k->shape[2]);
    return check_scale(call, "scale", args->scale) && check_sequences(call) && plan(call);
}

static bool check_factors(tn_op_call *call, int at, const char *letter) {
    const tn_tensor *a = call->in[at], *x = call->in[at + 1];
    const tn_tensor *aq = call->in[TN_TPA_AQ];
    TN_WANT(a->axes == 4 && x->axes == 4, call, TN_ERR_SHAPE, "wanted a%s [b,tokens,h,rank] and b%s [b,tokens,rank,width]", letter, letter);
    TN_WANT(a->shape[0] == aq->shape[0] && a->shape[2] == aq->shape[2], call, TN_ERR_SHAPE, "wanted the same b and h in aq, ak and av");
    TN_WANT(x->shape[0] == a->shape[0] && x->shape[1] == a->shape[1], call, TN_ERR_SHAPE, "wanted b and tokens of a%s in b%s", letter,
            letter);
    TN_WANT(a->shape[3] > 0 && x->shape[2] == a->shape[3], call, TN_ERR_SHAPE, "wanted the same rank, at least 1, in a%s and b%s", letter,
            letter);
    TN_WANT(a->shape[2] > 0 && x->shape[3] > 0, call, TN_ERR_SHAPE, "wanted heads and widths of at least 1");
    return true;
}

static bool tpa_attention_check(tn_op_call *call) {
    const tn_tpa_attention_args *args = call->args;
    if (!check_factors(call, TN_TPA_AQ, "q") || !check_factors(call, TN_TPA_AK, "k") || !check_factors(call, TN_TPA_AV, "v")) return false;
    int64_t n = call->in[TN_TPA_AQ]->shape[1], d = call->in[TN_TPA_BQ]->shape[3];
    TN_WANT(call->in[TN_TPA_BK]->shape[3] == d, call, TN_ERR_SHAPE, "wanted bk of bq's width %lld", (long long)d);
    TN_WANT(call->in[TN_TPA_AV]->shape[1] == call->in[TN_TPA_AK]->shape[1], call, TN_ERR_SHAPE, "wanted as many tokens in av as in ak");
    TN_WANT(args->algo >= TN_TPA_AUTO && args->algo <= TN_TPA_NAIVE, call, TN_ERR_ARGUMENT, "algo = %d is none", args->algo);
    TN_WANT(args->algo == TN_TPA_AUTO || (n == 1 && !call->in[TN_TPA_CU_SEQLENS]), call, TN_ERR_UNSUPPORTED,
            "algo says how one query is answered: wanted n = 1 without cu_seqlens, or auto");
    return check_scale(call, "scale", args->scale) && check_scale(call, "scale_q", args->scale_q) &&
           check_scale(call, "scale_k", args->scale_k) && check_scale(call, "scale_v", args->scale_v) && check_sequences(call) &&
           plan(call);
}

/* ---- formulas ---- */

static int64_t saved_bytes(const tn_op_call *call) {
    tn_at_problem p;
    tn_at_problem_of(call, false, &p);
    return tn_call_in_bytes(call) + tn_call_out_bytes(call) + p.b * p.h * p.n * (int64_t)tn_dtype_size(p.wide);
}

/* Forward reads every input and writes o; backward reads what was saved and do, and writes a gradient for every input but the lengths. */
static int64_t floor_bytes(const tn_op_call *call, bool backward) {
    int64_t in = tn_call_in_bytes(call), out = tn_call_out_bytes(call);
    if (!backward) return in + out;
    for (int i = call->n_in - 2; i < call->n_in; i++) in -= call->in[i] ? (int64_t)tn_bytes(call->in[i]) : 0;
    return saved_bytes(call) + out + in;
}

/* ---- the entries ---- */

#define LENGTHS(seqlens, cu_seqlens)                                                          \
    [seqlens] = { .name = "seqlens",                                                          \
                  .flags = TN_INPUT_OPTIONAL | TN_INPUT_NO_GRADIENT,                          \
                  .dtypes = TN_MASK(TN_I64),                                                  \
                  .doc = "[b], tokens of each batch, of which the queries are the last; m" }, \
    [cu_seqlens] = { .name = "cu_seqlens",                                                    \
                     .flags = TN_INPUT_OPTIONAL | TN_INPUT_NO_GRADIENT,                       \
                     .dtypes = TN_MASK(TN_I64),                                               \
                     .doc = "[s+1], where packed sequences begin, and the end; b = 1, n = m" }

static const tn_input_def attention_inputs[] = {
    [TN_AT_Q] = { .name = "q", .dtypes = TN_FLOATS, .doc = "[b,n,h,d]" },
    [TN_AT_K] = { .name = "k", .doc = "[b,m,hk,d], h a multiple of hk" },
    [TN_AT_V] = { .name = "v", .doc = "[b,m,hk,e]" },
    LENGTHS(TN_AT_SEQLENS, TN_AT_CU_SEQLENS),
};
static const tn_input_def tpa_attention_inputs[] = {
    [TN_TPA_AQ] = { .name = "aq", .dtypes = TN_FLOATS, .doc = "[b,n,h,rq]" },
    [TN_TPA_BQ] = { .name = "bq", .doc = "[b,n,rq,d]" },
    [TN_TPA_AK] = { .name = "ak", .doc = "[b,m,h,rk]" },
    [TN_TPA_BK] = { .name = "bk", .doc = "[b,m,rk,d]" },
    [TN_TPA_AV] = { .name = "av", .doc = "[b,m,h,rv]" },
    [TN_TPA_BV] = { .name = "bv", .doc = "[b,m,rv,e]" },
    LENGTHS(TN_TPA_SEQLENS, TN_TPA_CU_SEQLENS),
};
static const tn_output_def outputs[] = { { "o", "[b,n,h,e]" } };

static const tn_attr_def attention_attrs[] = {
    TN_ATTR(tn_attention_args, scale, TN_ATTR_FLOAT, "nan", "of q k'; nan: 1/sqrt(d)"),
    TN_ATTR(tn_attention_args, causal, TN_ATTR_BOOL, "false", "a query sees keys up to its own"),
};
static const char *const algo_names[] = TN_TPA_ALGO_NAMES;
static const tn_attr_def tpa_attention_attrs[] = {
    TN_ATTR(tn_tpa_attention_args, scale, TN_ATTR_FLOAT, "nan", "of q k'; nan: 1/sqrt(d)"),
    TN_ATTR(tn_tpa_attention_args, scale_q, TN_ATTR_FLOAT, "nan", "of q; nan: 1/rq"),
    TN_ATTR(tn_tpa_attention_args, scale_k, TN_ATTR_FLOAT, "nan", "of k; nan: 1/rk"),
    TN_ATTR(tn_tpa_attention_args, scale_v, TN_ATTR_FLOAT, "nan", "of v; nan: 1/rv"),
    TN_ATTR(tn_tpa_attention_args, causal, TN_ATTR_BOOL, "false", "a query sees keys up to its own"),
    TN_ATTR_OF(tn_tpa_attention_args, algo, algo_names, "auto", "how one query (n = 1) is answered"),
};

#define COMMON                                                                                                                            \
    .family = "attention", .flags = TN_OP_THREADS_MATTER, .outputs = outputs, .n_outputs = TN_COUNT(outputs), .saved_bytes = saved_bytes, \
    .floor_bytes = floor_bytes, .forward[TN_DEVICE_CPU] = tn_attention_forward_cpu, .backward[TN_DEVICE_CPU] = tn_attention_backward_cpu, \
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS, .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,                                              \
    .workspace[TN_DEVICE_CPU] = tn_attention_workspace_cpu, .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_attention_forward_cuda),         \
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_attention_backward_cuda), .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,                  \
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS, .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_attention_workspace_cuda)

static const tn_op_def attention_def = {
    .name = "attention",
    .doc = "softmax attention (multi-head, grouped, multi-query), causal or not, over whole or packed sequences or a cache",
    .inputs = attention_inputs,
    .n_inputs = TN_COUNT(attention_inputs),
    .attrs = attention_attrs,
    .n_attrs = TN_COUNT(attention_attrs),
    .args_bytes = sizeof(tn_attention_args),
    .samples = tn_attention_samples,
    .check = attention_check,
    COMMON,
};

static const tn_op_def tpa_attention_def = {
    .name = "tpa_attention",
    .doc = "tensor product attention: softmax attention of queries, keys and values given by their factors",
    .inputs = tpa_attention_inputs,
    .n_inputs = TN_COUNT(tpa_attention_inputs),
    .attrs = tpa_attention_attrs,
    .n_attrs = TN_COUNT(tpa_attention_attrs),
    .args_bytes = sizeof(tn_tpa_attention_args),
    .samples = tn_tpa_attention_samples,
    .check = tpa_attention_check,
    COMMON,
};

static const tn_op_def *const attention_ops[] = { &tpa_attention_def, &attention_def };
const tn_op_family tn_family_attention = { attention_ops, TN_COUNT(attention_ops) };

tn_tensor *tn_attention(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_attention_args args) {
    tn_tensor *out[1], *in[TN_AT_INPUTS] = { q, k, v, args.seqlens, args.cu_seqlens };
    args.seqlens = args.cu_seqlens = NULL; /* the tape keeps args */
    return tn_apply(&attention_def, in, TN_AT_INPUTS, &args, out);
}

tn_tensor *tn_tpa_attention(tn_tensor *aq, tn_tensor *bq, tn_tensor *ak, tn_tensor *bk, tn_tensor *av, tn_tensor *bv,
                            tn_tpa_attention_args args) {
    tn_tensor *out[1], *in[TN_TPA_INPUTS] = { aq, bq, ak, bk, av, bv, args.seqlens, args.cu_seqlens };
    args.seqlens = args.cu_seqlens = NULL;
    return tn_apply(&tpa_attention_def, in, TN_TPA_INPUTS, &args, out);
}
