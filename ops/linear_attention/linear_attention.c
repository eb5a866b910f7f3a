#include "linear_attention_internal.h"

#include "../../autograd/autograd.h"
#include "../family.h"
#include "../op_support.h"

/* ---- shapes ---- */

static tn_spec input_spec(const tn_op_call *call, int i) {
    if (call->in_spec) return call->in_spec[i];
    return call->in[i] ? tn_spec_like(call->in[i]) : (tn_spec){ TN_F32, TN_SCALAR };
}

/* Every input of this op has an axis, so one without is absent. */
static bool is_given(const tn_spec *spec) { return spec->shape.axes > 0; }

static int token_axis(const tn_linear_attention_args *args) { return args->layout == TN_BHND ? 2 : 1; }
static int head_axis(const tn_linear_attention_args *args) { return args->layout == TN_BHND ? 1 : 2; }

static bool over_sequence(const tn_linear_attention_args *args, int act, int64_t dim) {
    return act == TN_SOFTMAX && tn_axis_of(dim, 4) == token_axis(args);
}

static bool is_shape(const tn_spec *spec, int axes, const int64_t *size) {
    bool same = spec->shape.axes == axes;
    for (int i = 0; same && i < axes; i++) same = spec->shape.size[i] == size[i];
    return same;
}

/* ---- the problem ---- */

static tn_la_strides strides_of(const tn_linear_attention_args *args, int64_t tokens, int64_t heads, int64_t width) {
    bool head_first = args->layout == TN_BHND;
    return (tn_la_strides){ .batch = tokens * heads * width,
                            .token = head_first ? width : heads * width,
                            .head = head_first ? tokens * width : width };
}

static tn_lrpe_request request_of(const tn_linear_attention_args *args, const tn_shape *theta, int64_t tokens, int64_t heads, int64_t width,
                                  int64_t offset) {
    return (tn_lrpe_request){ .kind = args->kind,
                              .tokens = tokens,
                              .heads = heads,
                              .width = width,
                              .shape = args->shape,
                              .leading = args->l,
                              .offset = offset,
                              .theta = theta };
}

static void encode(tn_la_operand *operand, const tn_linear_attention_args *args, const tn_shape *theta, int64_t heads, int64_t offset) {
    tn_lrpe_request request = request_of(args, theta, operand->tokens, heads, operand->width, offset);
    char reason[16];
    operand->encoded = true;
    tn_lrpe_grid_make(&operand->grid, &request, reason, sizeof reason);
}

static const void *data_of(const tn_tensor *t) { return t ? t->data : NULL; }
static void *place_of(tn_tensor *t) { return t ? t->data : NULL; }

static tn_la_operand operand_of(const tn_op_call *call, int input, const tn_la_problem *p, int64_t tokens, int64_t width, int act,
                                int64_t dim) {
    const tn_linear_attention_args *args = call->args;
    return (tn_la_operand){ .x = data_of(call->in[input]),
                            .stride = strides_of(args, tokens, p->h, width),
                            .tokens = tokens,
                            .width = width,
                            .act = act,
                            .over_sequence = over_sequence(args, act, dim) };
}

static void operands_of(const tn_op_call *call, const tn_spec *theta, tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    p->q = operand_of(call, TN_LA_Q, p, p->n, p->d, args->q_act, args->q_dim);
    p->k = operand_of(call, TN_LA_K, p, p->m, p->d, args->k_act, args->k_dim);
    p->v = operand_of(call, TN_LA_V, p, p->m, p->e, args->v_act, args->v_dim);
    p->g = operand_of(call, TN_LA_G, p, p->n, p->e, args->g_act, args->g_dim);
    p->o_stride = p->g.stride;
    if (!p->encoded) return;
    encode(&p->q, args, &theta->shape, p->h, args->q_offset);
    encode(&p->k, args, &theta->shape, p->h, args->k_offset);
}

/* S and the statistics, in the order in which check() laid them out. */
static void kept_of(const tn_op_call *call, tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    int at = 0;
    if (!p->causal) p->s = args->return_state ? place_of(call->out[TN_LA_STATE_OUT]) : place_of(call->aux[at++]);
    tn_la_operand *operands[] = { &p->q, &p->k };
    for (int i = 0; i < 2; i++) {
        if (!operands[i]->over_sequence) continue;
        char *statistics = place_of(call->aux[at++]);
        operands[i]->maximum = statistics;
        if (statistics) operands[i]->sum = statistics + (size_t)(p->b * p->h * p->d) * tn_dtype_size(p->wide);
    }
}

static void outputs_of(const tn_op_call *call, tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    p->o = place_of(call->out[TN_LA_O]);
    if (args->return_state) p->state_out = place_of(call->out[TN_LA_STATE_OUT]);
    if (args->in_place) p->state_out = place_of(call->in[TN_LA_STATE]);
}

static void gradients_of(const tn_op_call *call, tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    p->d_o = data_of(call->dout[TN_LA_O]);
    p->dstate_out = args->return_state ? data_of(call->dout[TN_LA_STATE_OUT]) : NULL;
    p->dq = place_of(call->din[TN_LA_Q]);
    p->dk = place_of(call->din[TN_LA_K]);
    p->dv = place_of(call->din[TN_LA_V]);
    p->dg = place_of(call->din[TN_LA_G]);
    p->dtheta = place_of(call->din[TN_LA_THETA]);
    p->dlog_decay = place_of(call->din[TN_LA_LOG_DECAY]);
    p->dstate = place_of(call->din[TN_LA_STATE]);
}

void tn_la_problem_of(const tn_op_call *call, bool backward, tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    tn_spec q = input_spec(call, TN_LA_Q), k = input_spec(call, TN_LA_K), v = input_spec(call, TN_LA_V), g = input_spec(call, TN_LA_G),
            theta = input_spec(call, TN_LA_THETA), decay = input_spec(call, TN_LA_LOG_DECAY), cu = input_spec(call, TN_LA_CU_SEQLENS);
    *p = (tn_la_problem){ .dtype = q.dtype,
                          .wide = tn_wide_dtype(q.dtype),
                          .b = q.shape.size[0],
                          .h = q.shape.size[head_axis(args)],
                          .n = q.shape.size[token_axis(args)],
                          .m = k.shape.size[token_axis(args)],
                          .d = q.shape.size[3],
                          .e = v.shape.size[3],
                          .causal = args->causal,
                          .scale = args->scale,
                          .layout = args->layout,
                          .encoded = is_given(&theta),
                          .has_gate = is_given(&g),
                          .chunk = args->chunk };
    if (p->encoded) p->kind = (tn_lrpe_kind)args->kind;
    p->state_rows = p->encoded && p->kind == TN_COSINE ? 2 * p->d : p->d;
    p->decay = !is_given(&decay) ? TN_LA_NO_DECAY : decay.shape.axes == 1 ? TN_LA_CONSTANT_DECAY : TN_LA_SCALAR_DECAY;
    p->sequences = is_given(&cu) ? cu.shape.size[0] - 1 : p->b;
    operands_of(call, &theta, p);
    p->theta = data_of(call->in[TN_LA_THETA]);
    p->log_decay = data_of(call->in[TN_LA_LOG_DECAY]);
    p->state = data_of(call->in[TN_LA_STATE]);
    p->cu_seqlens = data_of(call->in[TN_LA_CU_SEQLENS]);
    kept_of(call, p);
    if (backward) gradients_of(call, p);
    else outputs_of(call, p);
}

/* ---- check ---- */

static bool check_acts(tn_op_call *call) {
    const tn_linear_attention_args *args = call->args;
    const struct {
        const char *name;
        int act;
        int64_t dim;
    } acts[] = { { "q", args->q_act, args->q_dim },
                 { "k", args->k_act, args->k_dim },
                 { "v", args->v_act, args->v_dim },
                 { "g", args->g_act, args->g_dim } };
    for (int i = 0; i < 4; i++) {
        const char *name = acts[i].name;
        TN_WANT(acts[i].act >= TN_NONE && acts[i].act <= TN_SOFTMAX, call, TN_ERR_ARGUMENT, "%s_act = %d is no activation", name,
                acts[i].act);
        if (acts[i].act != TN_SOFTMAX) continue;
        bool sequence = over_sequence(args, acts[i].act, acts[i].dim);
        TN_WANT(sequence || tn_axis_of(acts[i].dim, 4) == 3, call, TN_ERR_ARGUMENT,
                "softmax along %s_dim = %lld: wanted the axis of features (-1) or of tokens (%d)", name, (long long)acts[i].dim,
                token_axis(args));
        TN_WANT(!sequence || i < 2, call, TN_ERR_UNSUPPORTED, "softmax over the sequence is for q and k, not for %s", name);
        TN_WANT(!sequence || !args->causal, call, TN_ERR_UNSUPPORTED,
                "causal attention can't have softmax over the sequence on %s: it would see later tokens", name);
    }
    return true;
}

static bool check_data_shapes(tn_op_call *call) {
    const tn_linear_attention_args *args = call->args;
    const tn_tensor *q = call->in[TN_LA_Q], *k = call->in[TN_LA_K], *v = call->in[TN_LA_V], *g = call->in[TN_LA_G];
    const char *axes = args->layout == TN_BHND ? "b,h,n,d" : "b,n,h,d";
    int token = token_axis(args), head = head_axis(args);
    TN_WANT(q->axes == 4 && k->axes == 4 && v->axes == 4 && (!g || g->axes == 4), call, TN_ERR_SHAPE,
            "wanted q, k, v and g of four axes [%s]", axes);
    bool same =
        k->shape[0] == q->shape[0] && v->shape[0] == q->shape[0] && k->shape[head] == q->shape[head] && v->shape[head] == q->shape[head];
    TN_WANT(same, call, TN_ERR_SHAPE, "wanted the same b and h in q, k and v, layout [%s]", axes);
    TN_WANT(k->shape[3] == q->shape[3], call, TN_ERR_SHAPE, "wanted k of q's width %lld", (long long)q->shape[3]);
    TN_WANT(v->shape[token] == k->shape[token], call, TN_ERR_SHAPE, "wanted as many tokens in v as in k, layout [%s]", axes);
    TN_WANT(q->shape[3] > 0 && v->shape[3] > 0, call, TN_ERR_SHAPE, "wanted widths d and e of at least 1");
    if (!g) return true;
    same = g->shape[0] == q->shape[0] && g->shape[1] == q->shape[1] && g->shape[2] == q->shape[2] && g->shape[3] == v->shape[3];
    TN_WANT(same, call, TN_ERR_SHAPE, "wanted g [b, h and n of q, e of v], layout [%s]", axes);
    return true;
}

static bool check_encoding(tn_op_call *call, const tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    const tn_tensor *theta = call->in[TN_LA_THETA];
    bool known = args->kind == TN_ROTATE || args->kind == TN_COSINE;
    TN_WANT(known || args->kind == TN_NO_LRPE, call, TN_ERR_ARGUMENT, "kind = %d is neither rotate nor cosine", args->kind);
    if (!theta) {
        TN_WANT(args->kind == TN_NO_LRPE, call, TN_ERR_ARGUMENT, "kind without theta: wanted theta, or no kind");
        bool plain = !args->shape.axes && !args->l && !args->q_offset && !args->k_offset;
        TN_WANT(plain, call, TN_ERR_ARGUMENT, "shape, l, q_offset and k_offset say where LRPE stands: wanted theta and kind with them");
        return true;
    }
    TN_WANT(known, call, TN_ERR_ARGUMENT, "kind is required with theta: rotate or cosine");
    TN_WANT(!p->cu_seqlens || !args->shape.axes, call, TN_ERR_ARGUMENT,
            "packed sequences have one axis of positions: wanted no shape with cu_seqlens");
    tn_shape shape = tn_shape_of(theta);
    const int64_t tokens[] = { p->n, p->m }, offset[] = { args->q_offset, args->k_offset };
    for (int i = 0; i < 2; i++) {
        tn_lrpe_request request = request_of(args, &shape, tokens[i], p->h, p->d, offset[i]);
        tn_lrpe_grid grid;
        char reason[256];
        tn_status status = tn_lrpe_grid_make(&grid, &request, reason, sizeof reason);
        if (status != TN_OK) return tn_refuse(call, status, "LRPE of %s: %s", i ? "k" : "q", reason);
    }
    return true;
}

static bool check_causal(tn_op_call *call, const tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    const tn_tensor *decay = call->in[TN_LA_LOG_DECAY], *cu = call->in[TN_LA_CU_SEQLENS];
    TN_WANT(args->causal || !decay, call, TN_ERR_ARGUMENT, "log_decay goes with causal");
    TN_WANT(args->causal || !cu, call, TN_ERR_ARGUMENT, "cu_seqlens goes with causal");
    TN_WANT(args->causal || !args->chunk, call, TN_ERR_ARGUMENT, "chunk goes with causal");
    TN_WANT(args->chunk >= 0, call, TN_ERR_ARGUMENT, "chunk = %lld: wanted a number of tokens, or 0", (long long)args->chunk);
    TN_WANT(!args->in_place || args->causal, call, TN_ERR_ARGUMENT, "a state is updated in place when causal alone");
    if (!args->causal) return true;
    TN_WANT(p->n == p->m, call, TN_ERR_SHAPE, "causal attention wanted as many queries as keys, not %lld and %lld", (long long)p->n,
            (long long)p->m);
    if (decay) {
        tn_spec spec = tn_spec_like(decay);
        const int64_t per_token[] = { p->b, p->n, p->h };
        TN_WANT(is_shape(&spec, 1, &p->h) || is_shape(&spec, 3, per_token), call, TN_ERR_SHAPE,
                "wanted log_decay [h] = [%lld] or [b,n,h] = [%lld,%lld,%lld] (in both layouts)", (long long)p->h, (long long)p->b,
                (long long)p->n, (long long)p->h);
    }
    if (cu) {
        TN_WANT(cu->axes == 1 && cu->shape[0] >= 1, call, TN_ERR_SHAPE, "wanted cu_seqlens [s+1]: where each sequence begins, and the end");
        TN_WANT(p->b == 1, call, TN_ERR_SHAPE, "packed sequences lie in one batch: wanted b = 1 with cu_seqlens, not %lld",
                (long long)p->b);
    }
    return true;
}

static bool check_state(tn_op_call *call, const tn_la_problem *p) {
    const tn_linear_attention_args *args = call->args;
    const tn_tensor *state = call->in[TN_LA_STATE];
    if (state) {
        tn_spec spec = tn_spec_like(state);
        const int64_t wanted[] = { p->sequences, p->h, p->state_rows, p->e };
        TN_WANT(is_shape(&spec, 4, wanted), call, TN_ERR_SHAPE, "wanted state [%lld,%lld,%lld,%lld] (%s, h, d', e; in both layouts)",
                (long long)wanted[0], (long long)wanted[1], (long long)wanted[2], (long long)wanted[3], p->cu_seqlens ? "sequences" : "b");
    }
    if (!args->in_place) return true;
    TN_WANT(state && tn_is_contiguous(state), call, TN_ERR_ARGUMENT, "wanted a dense state to update in place");
    TN_WANT(!args->return_state, call, TN_ERR_ARGUMENT, "a state updated in place is not returned as well: wanted one of the two");
    TN_WANT(!call->wants, call, TN_ERR_GRAPH, "no gradient can flow through a state that is overwritten: wanted a no-grad region");
    return true;
}

/* S in the way check() and the tape see it. */
static tn_spec state_spec(const tn_la_problem *p) { return (tn_spec){ p->wide, TN_SHAPE(p->sequences, p->h, p->state_rows, p->e) }; }

static bool linear_attention_check(tn_op_call *call) {
    const tn_linear_attention_args *args = call->args;
    TN_WANT(args->layout == TN_BNHD || args->layout == TN_BHND, call, TN_ERR_ARGUMENT, "layout = %d is neither bnhd nor bhnd",
            args->layout);
    TN_WANT(args->scale == args->scale, call, TN_ERR_ARGUMENT, "scale is not a number");
    if (!check_data_shapes(call) || !check_acts(call)) return false;
    tn_la_problem p;
    tn_la_problem_of(call, false, &p);
    if (!check_causal(call, &p) || !check_encoding(call, &p)) return false;
    if (!check_state(call, &p)) return false;

    call->out_spec[TN_LA_O] = tn_spec_like(call->in[TN_LA_Q]);
    call->out_spec[TN_LA_O].shape.size[3] = p.e;
    call->out_spec[TN_LA_STATE_OUT] = state_spec(&p);
    call->n_out = args->return_state ? 2 : 1;
    uint32_t state = 1u << TN_LA_STATE;
    call->save_in = ((1u << TN_LA_INPUTS) - 1) & ~(p.causal ? 0 : state);
    if (!p.causal && args->return_state) call->save_out = 1u << TN_LA_STATE_OUT;
    if (!p.causal && !args->return_state) call->aux_spec[call->n_aux++] = state_spec(&p);
    tn_spec statistics = { p.wide, TN_SHAPE(2, p.b, p.h, p.d) };
    if (p.q.over_sequence) call->aux_spec[call->n_aux++] = statistics;
    if (p.k.over_sequence) call->aux_spec[call->n_aux++] = statistics;
    return true;
}

/* ---- formulas ---- */

static int64_t given_bytes(const tn_op_call *call, int input) { return call->in[input] ? (int64_t)tn_bytes(call->in[input]) : 0; }

static int64_t linear_attention_saved_bytes(const tn_op_call *call) {
    tn_la_problem p;
    tn_la_problem_of(call, false, &p);
    int64_t wide = (int64_t)tn_dtype_size(p.wide), bytes = 0;
    for (int i = 0; i < TN_LA_INPUTS; i++)
        if (i != TN_LA_STATE) bytes += given_bytes(call, i);
    bytes += p.causal ? given_bytes(call, TN_LA_STATE) : p.b * p.h * p.state_rows * p.e * wide;
    return bytes + (p.q.over_sequence + p.k.over_sequence) * 2 * p.b * p.h * p.d * wide;
}

/* Forward reads every input and writes o (and state_out); backward reads what was saved and what arrives, and writes a gradient for
 * every input that can have one. */
static int64_t linear_attention_floor_bytes(const tn_op_call *call, bool backward) {
    int64_t in = 0, out = tn_call_out_bytes(call);
    for (int i = 0; i < TN_LA_INPUTS; i++) in += given_bytes(call, i);
    if (!backward) return in + out;
    return linear_attention_saved_bytes(call) + out + in - given_bytes(call, TN_LA_CU_SEQLENS);
}

/* ---- the entry ---- */

static const char *const act_names[] = TN_ACTIVATION_NAMES;
static const char *const kind_names[] = { "rotate", "cosine", "none", NULL };
static const char *const layout_names[] = TN_LAYOUT_NAMES;

static const tn_input_def linear_attention_inputs[] = {
    [TN_LA_Q] = { .name = "q", .flags = TN_INPUT_ALIGNED, .dtypes = TN_FLOATS, .doc = "[b,n,h,d]" },
    [TN_LA_K] = { .name = "k", .flags = TN_INPUT_ALIGNED, .doc = "[b,m,h,d]" },
    [TN_LA_V] = { .name = "v", .flags = TN_INPUT_ALIGNED, .doc = "[b,m,h,e]" },
    [TN_LA_G] = { .name = "g", .flags = TN_INPUT_OPTIONAL | TN_INPUT_ALIGNED, .doc = "[b,n,h,e], the output gate" },
    [TN_LA_THETA] = { .name = "theta", .flags = TN_INPUT_OPTIONAL | TN_INPUT_WIDE, .doc = "[h or 1, w], LRPE on q and k" },
    [TN_LA_LOG_DECAY] = { .name = "log_decay", .flags = TN_INPUT_OPTIONAL | TN_INPUT_WIDE, .doc = "[h] or [b,n,h], <= 0; causal" },
    [TN_LA_STATE] = { .name = "state", .flags = TN_INPUT_OPTIONAL | TN_INPUT_WIDE, .doc = "[b,h,d',e], S before the first token" },
    [TN_LA_CU_SEQLENS] = { .name = "cu_seqlens",
                           .flags = TN_INPUT_OPTIONAL | TN_INPUT_NO_GRADIENT,
                           .dtypes = TN_MASK(TN_I64),
                           .doc = "[s+1], where packed sequences begin, and the end; causal, b = 1" },
};
static const tn_output_def linear_attention_outputs[] = {
    [TN_LA_O] = { "o", "[b,n,h,e]" },
    [TN_LA_STATE_OUT] = { "state_out", "[b,h,d',e], the last S, with return_state" },
};
#define ACT_OF(x)                                                                          \
    TN_ATTR_OF(tn_linear_attention_args, x##_act, act_names, "none", "activation of " #x), \
        TN_ATTR(tn_linear_attention_args, x##_dim, TN_ATTR_INT, "-1", "axis of softmax on " #x)
static const tn_attr_def linear_attention_attrs[] = {
    ACT_OF(q),
    ACT_OF(k),
    ACT_OF(v),
    ACT_OF(g),
    TN_ATTR_OF(tn_linear_attention_args, kind, kind_names, "none", "of LRPE; required with theta"),
    TN_ATTR(tn_linear_attention_args, shape, TN_ATTR_INT_LIST, "", "the grid of tokens after the first l; one axis"),
    TN_ATTR(tn_linear_attention_args, l, TN_ATTR_INT, "0", "leading tokens that are not turned"),
    TN_ATTR(tn_linear_attention_args, q_offset, TN_ATTR_INT, "0", "position of the first query, one axis only"),
    TN_ATTR(tn_linear_attention_args, k_offset, TN_ATTR_INT, "0", "position of the first key, one axis only"),
    TN_ATTR(tn_linear_attention_args, causal, TN_ATTR_BOOL, "false", "a query sees keys up to its own"),
    TN_ATTR(tn_linear_attention_args, scale, TN_ATTR_FLOAT, "1", "of q"),
    TN_ATTR(tn_linear_attention_args, return_state, TN_ATTR_BOOL, "false", "return the last S as state_out"),
    TN_ATTR_OF(tn_linear_attention_args, layout, layout_names, "bnhd", "order of the axes of q, k, v, g, o"),
    TN_ATTR(tn_linear_attention_args, chunk, TN_ATTR_INT, "0", "causal: tokens handled at a time, a hint; 0: chosen"),
};

static const tn_op_def linear_attention_def = {
    .name = "linear_attention",
    .family = "linear_attention",
    .doc = "linear attention with output gate, activations and LRPE inside; non-causal, or causal with decay",
    .flags = TN_OP_THREADS_MATTER,
    .inputs = linear_attention_inputs,
    .n_inputs = TN_COUNT(linear_attention_inputs),
    .outputs = linear_attention_outputs,
    .n_outputs = TN_COUNT(linear_attention_outputs),
    .attrs = linear_attention_attrs,
    .n_attrs = TN_COUNT(linear_attention_attrs),
    .args_bytes = sizeof(tn_linear_attention_args),
    .samples = tn_linear_attention_samples,
    .check = linear_attention_check,
    .forward[TN_DEVICE_CPU] = tn_linear_attention_forward_cpu,
    .backward[TN_DEVICE_CPU] = tn_linear_attention_backward_cpu,
    .forward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CPU] = TN_FLOATS,
    .workspace[TN_DEVICE_CPU] = tn_linear_attention_workspace_cpu,
    .forward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_attention_forward_cuda),
    .backward[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_attention_backward_cuda),
    .forward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .backward_dtypes[TN_DEVICE_CUDA] = TN_FLOATS,
    .workspace[TN_DEVICE_CUDA] = TN_CUDA_KERNEL(tn_linear_attention_workspace_cuda),
    .saved_bytes = linear_attention_saved_bytes,
    .floor_bytes = linear_attention_floor_bytes,
};

static const tn_op_def *const linear_attention_ops[] = { &linear_attention_def };
const tn_op_family tn_family_linear_attention = { linear_attention_ops, TN_COUNT(linear_attention_ops) };

tn_tensor *tn_linear_attention(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_linear_attention_args args) {
    tn_tensor *out[TN_LA_OUTPUTS], *in[TN_LA_INPUTS] = { q, k, v, args.g, args.theta, args.log_decay, args.state, args.cu_seqlens };
    tn_tensor **state_out = args.state_out;
    if (state_out) args.return_state = true;
    args.g = args.theta = args.log_decay = args.state = args.cu_seqlens = NULL; /* the tape keeps args */
    args.state_out = NULL;
    tn_tensor *o = tn_apply(&linear_attention_def, in, TN_LA_INPUTS, &args, out);
    if (state_out) *state_out = o ? out[TN_LA_STATE_OUT] : NULL;
    return o;
}

tn_tensor *tn_linear_attention_step(tn_tensor *q, tn_tensor *k, tn_tensor *v, tn_linear_attention_args args) {
    tn_tensor *state = args.state;
    if (!q) return NULL;
    args.causal = args.in_place = true;
    tn_no_grad_begin(q->cx);
    tn_tensor *o = tn_linear_attention(q, k, v, args);
    tn_no_grad_end(q->cx);
    if (o) tn_mark_written(state);
    return o;
}
