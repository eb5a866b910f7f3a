/* A block of a model whose activations are not kept: one node stands for it on the tape, saves its inputs, and runs it again in
 * backward. */
#include "tape_internal.h"

typedef struct block_args {
    tn_checkpoint_fn run;
    void *user;
    tn_rng_state rng; /* as it was when the block first ran */
} block_args;

static bool never_planned(tn_op_call *call) { return tn_refuse(call, TN_ERR_UNSUPPORTED, "wanted tn_checkpoint"); }

static int64_t saved_bytes(const tn_op_call *call) {
    int64_t bytes = 0;
    for (int i = 0; i < call->n_in; i++)
        if (call->save_in >> i & 1) bytes += (int64_t)tn_bytes(call->in[i]);
    return bytes;
}

/* ---- backward ---- */

/* The saved inputs as leaves, so that the block's own little tape ends in them. */
static bool make_leaves(const tn_op_call *call, tn_tensor **leaf) {
    for (int i = 0; i < call->n_in; i++) {
        leaf[i] = call->in[i] ? tn_detach(call->in[i]) : NULL;
        if (call->in[i] && !leaf[i]) return false;
        if (leaf[i] && call->wants >> i & 1 && !tn_require_grad(leaf[i], true)) return false;
    }
    return true;
}

/* Behind the block's own inputs, all of which are saved, may come the opener (add_opener). */
static int block_inputs(const tn_op_call *call) {
    int n = 0;
    while (n < call->n_in && call->in[n]) n++;
    return n;
}

static tn_tensor *run_block(tn_context *cx, const block_args *block, tn_tensor *const *in, int n_in) {
    tn_rng_state now = tn_rng_get(cx);
    tn_rng_set(cx, block->rng);
    tn_tensor *o = block->run(block->user, in, n_in);
    tn_rng_set(cx, now);
    return o;
}

static bool same_as_before(tn_op_call *call, const tn_tensor *o) {
    const tn_tensor *g = call->dout[0];
    if (o->dtype == g->dtype && tn_same_shape(o, g)) return true;
    char text[128];
    return tn_refuse(call, TN_ERR_GRAPH, "run again the block made %s: wanted what it made the first time",
                     tn_describe(o, text, sizeof text));
}

static bool hand_over(tn_op_call *call, tn_tensor *const *leaf) {
    for (int i = 0; i < call->n_in; i++) {
        if (!leaf[i] || !(call->wants >> i & 1)) continue;
        tn_tensor *g = tn_grad(leaf[i]);
        if (g) tn_memory_retag(g, TN_CATEGORY_TEMPORARY);
        else g = tn_zeros(call->cx, leaf[i]->dtype, tn_shape_of(leaf[i]));
        call->din[i] = tn_retain(g);
        if (!g) return false;
    }
    return true;
}

/* The tape is off while backward computes; the block is to be recorded all the same. */
static bool run_again(tn_op_call *call) {
    tn_tensor *leaf[TN_OP_MAX_INPUTS];
    tn_tape *tape = call->cx->tape;
    int off = tape->no_grad;
    tape->no_grad = 0;
    bool fine = make_leaves(call, leaf);
    tn_tensor *o = fine ? run_block(call->cx, call->args, leaf, block_inputs(call)) : NULL;
    fine = o && same_as_before(call, o);
    if (fine && tn_requires_grad(o)) fine = tn_backward_many(&o, &call->dout[0], 1, false);
    tape->no_grad = off;
    return fine && hand_over(call, leaf);
}

/* ---- forward ---- */

static const tn_input_def block_inputs_def[] = { { .name = "in", .flags = TN_INPUT_VARIADIC | TN_INPUT_STRIDED, .dtypes = TN_ANY_DTYPE } };
static const tn_output_def block_outputs_def[] = { { .name = "o" } };
static const tn_op_def block_def = {
    .name = "checkpoint",
    .doc = "a block that runs again in backward instead of keeping its activations",
    .n_inputs = 1,
    .n_outputs = 1,
    .inputs = block_inputs_def,
    .outputs = block_outputs_def,
    .args_bytes = sizeof(block_args),
    .check = never_planned,
    .backward_tensors = run_again,
    .saved_bytes = saved_bytes,
};

/* Without an input that wants a gradient no gradient would come this way, and the block's parameters would get none: one element that wants
 * it, and that nobody sees, keeps the way open. */
static bool add_opener(tn_op_call *call) {
    tn_tensor *opener = tn_require_grad(tn_empty(call->cx, TN_F32, TN_SHAPE(1)), true);
    if (!opener) return false;
    call->in[call->n_in] = opener;
    call->wants |= 1u << call->n_in++;
    return true;
}

static bool record(tn_context *cx, const block_args *block, tn_tensor *const *in, int n_in, tn_tensor *o) {
    tn_op_call call = { .op = &block_def, .cx = cx, .args = block, .n_in = n_in, .n_out = 1, .out = { o } };
    for (int i = 0; i < n_in; i++) {
        call.in[i] = in[i];
        call.save_in |= 1u << i;
        if (!tn_requires_grad(in[i])) continue;
        if (tn_link_stale(in[i]))
            return tn_refuse(&call, TN_ERR_GRAPH, "an input was overwritten since it was made: no gradient can flow back through it");
        call.wants |= 1u << i;
    }
    tn_scope *scope = tn_scope_begin(cx);
    bool fine = (call.wants || add_opener(&call)) && tn_tape_record(&call);
    tn_scope_end(scope);
    return fine;
}

/* What the block made, as a tensor without a past: it may have handed on an input, or a view of one. */
static tn_tensor *run_unrecorded(tn_context *cx, const block_args *block, tn_tensor *const *in, int n_in) {
    tn_scope *scope = tn_scope_begin(cx);
    tn_no_grad_begin(cx);
    tn_tensor *o = block->run(block->user, in, n_in);
    tn_no_grad_end(cx);
    bool handed_on = o && tn_link_of(o);
    for (int i = 0; o && i < n_in; i++) handed_on = handed_on || o == in[i];
    return tn_scope_return(scope, handed_on ? tn_detach(o) : o);
}

tn_tensor *tn_checkpoint(tn_context *cx, tn_checkpoint_fn run, void *user, tn_tensor *const *in, int n_in) {
    if (!tn_ready(cx)) return NULL;
    if (!run || n_in < 0 || n_in >= TN_OP_MAX_INPUTS)
        return tn_fail(cx, TN_ERR_ARGUMENT, "checkpoint", "got %d inputs and %s, wanted a function and at most %d inputs", n_in,
                       run ? "a function" : "no function", TN_OP_MAX_INPUTS - 1);
    for (int i = 0; i < n_in; i++)
        if (!in[i]) return NULL;
    if (!tn_grad_enabled(cx)) return run(user, in, n_in);
    block_args block = { run, user, tn_rng_get(cx) };
    tn_tensor *o = run_unrecorded(cx, &block, in, n_in);
    if (!o || !tn_dtype_is_float(o->dtype)) return o;
    return record(cx, &block, in, n_in, o) ? o : NULL;
}
