#include <inttypes.h>
#include <string.h>

#include "tape_internal.h"

/* ---- gradients on their way ---- */

/* May `t` be written without anybody noticing? */
static bool sole_owner(const tn_tensor *t) {
    const tn_impl *impl = tn_impl_of(t);
    return impl->references == 1 && impl->storage->references == 1 && tn_is_contiguous(t);
}

/* *sum += g, where *sum may be NULL. Takes over the caller's reference to g. */
static bool add_gradient(tn_tensor **sum, tn_tensor *g) {
    tn_context *cx = g->cx;
    if (!*sum) {
        *sum = g;
        return true;
    }
    if (!sole_owner(*sum)) {
        /* Addition commutes, so the other one may serve as the place for the sum. */
        if (sole_owner(g)) {
            tn_tensor *swap = *sum;
            *sum = g;
            g = swap;
        } else {
            tn_shape shape = tn_shape_of(g);
            tn_tensor *copy = tn_tensor_new(cx, g->dtype, &shape, true);
            tn_status status = copy ? cx->device->interface->copy(cx->device, copy, *sum, cx->stream) : TN_OK;
            if (!copy || status != TN_OK) {
                TN_FAIL_DEVICE(cx, status, "tn_backward");
                tn_unreference(copy);
                tn_unreference(g);
                return false;
            }
            tn_unreference(*sum);
            *sum = copy;
        }
    }
    tn_status status = cx->device->interface->accumulate(cx->device, *sum, g, cx->stream);
    tn_unreference(g);
    TN_FAIL_DEVICE(cx, status, "tn_backward");
    return status == TN_OK;
}

/* leaf.grad += g. A gradient that something else shares is copied first, so that .grad is the leaf's alone. */
static bool add_to_leaf(tn_tensor *leaf, tn_tensor *g) {
    tn_link *link = tn_link_of(leaf);
    if (!link->grad && !sole_owner(g)) {
        tn_shape shape = tn_shape_of(g);
        tn_context *cx = g->cx;
        tn_tensor *own = tn_tensor_new(cx, g->dtype, &shape, true);
        tn_status status = own ? cx->device->interface->copy(cx->device, own, g, cx->stream) : TN_OK;
        tn_unreference(g);
        if (!own) return false;
        if (status != TN_OK) {
            tn_unreference(own);
            return TN_FAIL_DEVICE(cx, status, "tn_backward");
        }
        g = own;
    }
    bool first = !link->grad;
    if (first) {
        link->grad = g;
        tn_memory_retag(g, TN_CATEGORY_GRADIENT);
        return true;
    }
    tn_context *cx = g->cx;
    tn_status status = cx->device->interface->accumulate(cx->device, link->grad, g, cx->stream);
    tn_unreference(g);
    if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, "tn_backward");
    tn_mark_written(link->grad);
    return true;
}

typedef struct tn_sweep {
    tn_context *cx;
    int64_t n_pending; /* nodes in which a gradient waits */
    bool retain;
} tn_sweep;

static bool arrive(tn_sweep *sweep, tn_node *node, int output, tn_tensor *g) {
    if (node->released) {
        tn_fail(sweep->cx, TN_ERR_GRAPH, "tn_backward",
                "a second backward through %s, whose saved tensors the first one released; ask the first for .retain = true",
                node->op->name);
        tn_unreference(g);
        return false;
    }
    if (!node->pending) {
        node->pending = true;
        tn_node_reference(node);
        sweep->n_pending++;
    }
    return add_gradient(&node->dout[output], g);
}

/* ---- one node ---- */

static const char *input_name(const tn_node *node, int i) {
    return node->op->inputs[i < node->op->n_inputs ? i : node->op->n_inputs - 1].name;
}

static bool still_as_saved(const tn_node *node) {
    for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++) {
        const tn_saved *saved = &node->saved[i];
        if (!saved->tensor || tn_impl_of(saved->tensor)->storage->version == saved->version) continue;
        const char *name = i < node->n_in                 ? input_name(node, i)
                           : i < node->n_in + node->n_out ? node->op->outputs[i - node->n_in].name
                                                          : "a statistic";
        char text[128];
        tn_fail(node->cx, TN_ERR_GRAPH, node->op->name,
                "%s %s was saved for backward at version %" PRIu64 " and has been overwritten since (version %" PRIu64 ")", name,
                tn_describe(saved->tensor, text, sizeof text), saved->version, tn_impl_of(saved->tensor)->storage->version);
        return false;
    }
    return true;
}

static void fill_call(tn_op_call *call, tn_node *node) {
    call->op = node->op;
    call->cx = node->cx;
    call->args = node->args;
    call->n_in = node->n_in;
    call->n_out = node->n_out;
    call->n_aux = node->n_aux;
    call->wants = node->wants;
    call->transposed = node->transposed;
    call->in_spec = node->in_spec;
    call->save_in = call->save_out = 0;
    for (int i = 0; i < node->n_in; i++) {
        call->in[i] = node->saved[i].tensor;
        call->din[i] = NULL;
    }
    for (int i = 0; i < node->n_out; i++) {
        call->out[i] = node->saved[node->n_in + i].tensor;
        call->dout[i] = node->dout[i];
    }
    for (int i = 0; i < node->n_aux; i++) call->aux[i] = node->saved[node->n_in + node->n_out + i].tensor;
}

static bool gradients_finite(tn_op_call *call) {
    tn_context *cx = call->cx;
    for (int i = 0; i < call->n_in; i++) {
        int64_t at = -1;
        if (!call->din[i]) continue;
        tn_status status = cx->device->interface->find_nonfinite(cx->device, call->din[i], &at, cx->stream);
        if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, call->op->name);
        if (at >= 0)
            return tn_refuse(call, TN_ERR_NUMERIC, "backward made a NaN or Inf: element %" PRId64 " of the gradient of %s", at,
                             call->op->inputs[i < call->op->n_inputs ? i : call->op->n_inputs - 1].name);
    }
    return true;
}

static bool fits_input(const tn_op_call *call, int i) {
    const tn_tensor *g = call->din[i];
    const tn_spec *spec = &call->in_spec[i];
    bool fits = g->dtype == spec->dtype && g->axes == spec->shape.axes;
    for (int axis = 0; fits && axis < g->axes; axis++) fits = g->shape[axis] == spec->shape.size[axis];
    char text[128];
    if (!fits)
        tn_fail(call->cx, TN_ERR_SHAPE, call->op->name, "backward made a gradient %s for %s that does not fit the input",
                tn_describe(g, text, sizeof text), call->op->inputs[i < call->op->n_inputs ? i : call->op->n_inputs - 1].name);
    return fits;
}

/* The reference an op took with tn_retain becomes the sweep's. */
static void take_over(tn_tensor *t) {
    tn_impl *impl = tn_impl_of(t);
    if (!t || impl->user_references == 0) return;
    if (--impl->user_references == 0 && !tn_scope_owns(impl)) tn_scope_disown(t);
}

static bool compute_gradients(tn_node *node, tn_op_call *call) {
    if (!still_as_saved(node)) return false;
    bool fine;
    if (node->op->backward_tensors) {
        /* Its calls are the gradient's arithmetic, not part of a graph. */
        tn_no_grad_begin(node->cx);
        tn_scope *scope = tn_scope_begin(node->cx);
        fine = scope && node->op->backward_tensors(call) && tn_ready(node->cx);
        tn_scope_end(scope);
        tn_no_grad_end(node->cx);
        for (int i = 0; i < node->n_in; i++) take_over(call->din[i]);
    } else {
        fine = tn_run_backward_kernel(call);
    }
    return fine && (!node->cx->anomaly || node->cx->device->dry_run || gradients_finite(call));
}

static bool run_node(tn_sweep *sweep, tn_node *node) {
    tn_op_call call;
    tn_context *cx = node->cx;
    fill_call(&call, node);
    const char *op_before = cx->op;
    tn_label_node *label_before = cx->label;
    tn_pass pass_before = cx->pass;
    cx->op = node->op->name;
    cx->label = node->label;
    cx->pass = TN_PASS_BACKWARD;

    bool fine = compute_gradients(node, &call);
    for (int i = 0; i < node->n_out; i++) {
        tn_unreference(node->dout[i]);
        node->dout[i] = NULL;
    }
    for (int i = 0; i < node->n_in; i++) {
        tn_tensor *g = call.din[i];
        if (!g) continue;
        tn_edge *edge = &node->edges[i];
        if (!fine || !(node->wants >> i & 1) || !(fine = fits_input(&call, i))) tn_unreference(g);
        else fine = edge->node ? arrive(sweep, edge->node, edge->output, g) : add_to_leaf(edge->leaf, g);
    }
    cx->op = op_before;
    cx->label = label_before;
    cx->pass = pass_before;
    return fine;
}

/* ---- the sweep ---- */

static void finish_node(tn_sweep *sweep, tn_node *node, bool fine) {
    for (int i = 0; i < node->n_out; i++) {
        tn_unreference(node->dout[i]);
        node->dout[i] = NULL;
    }
    if (fine && !sweep->retain) tn_node_release(node);
    node->pending = false;
    sweep->n_pending--;
    tn_node_unreference(node);
}

/* Runs every node a gradient has reached, newest first; after a failure only clears what waits. The node the walk
 * stands on is held, since finishing one can free others. */
static bool sweep_tape(tn_sweep *sweep, bool fine) {
    tn_node *node = ((tn_tape *)sweep->cx->tape)->newest;
    if (node) tn_node_reference(node);
    while (node) {
        if (node->pending) {
            if (fine) fine = run_node(sweep, node);
            finish_node(sweep, node, fine);
        }
        tn_node *older = sweep->n_pending > 0 ? node->older : NULL;
        if (older) tn_node_reference(older);
        tn_node_unreference(node);
        node = older;
    }
    return fine;
}

static tn_tensor *upstream(tn_tensor *root, tn_tensor *given) {
    tn_context *cx = root->cx;
    char r[128], g[128];
    if (given) {
        if (given->cx == cx && given->dtype == root->dtype && tn_same_shape(given, root)) return tn_reference(given);
        return tn_fail(cx, TN_ERR_SHAPE, "tn_backward", "the upstream gradient is %s, wanted one like the root %s",
                       tn_describe(given, g, sizeof g), tn_describe(root, r, sizeof r));
    }
    if (root->numel != 1)
        return tn_fail(cx, TN_ERR_SHAPE, "tn_backward", "the root is %s, wanted one element or an upstream gradient",
                       tn_describe(root, r, sizeof r));
    tn_shape shape = tn_shape_of(root);
    tn_tensor *one = tn_tensor_new(cx, root->dtype, &shape, true);
    if (!one) return NULL;
    tn_status status = cx->device->interface->fill(cx->device, one, 1, cx->stream);
    if (status == TN_OK) return one;
    tn_unreference(one);
    return TN_FAIL_DEVICE(cx, status, "tn_backward");
}

static bool start(tn_sweep *sweep, tn_tensor *root, tn_tensor *given) {
    tn_link *link = tn_link_of(root);
    char text[128];
    if (!tn_link_wants(link)) {
        tn_fail(sweep->cx, TN_ERR_GRAPH, "tn_backward", "the root %s depends on nothing that wants a gradient",
                tn_describe(root, text, sizeof text));
        return false;
    }
    tn_tensor *g = upstream(root, given);
    if (!g) return false;
    return link->node ? arrive(sweep, link->node, link->output, g) : add_to_leaf(root, g);
}

bool tn_backward_many(tn_tensor *const *roots, tn_tensor *const *grads, int n_roots, bool retain) {
    if (n_roots <= 0 || !roots) return false;
    for (int i = 0; i < n_roots; i++)
        if (!roots[i] || !tn_ready(roots[i]->cx)) return false;
    tn_context *cx = roots[0]->cx;
    for (int i = 1; i < n_roots; i++)
        if (roots[i]->cx != cx) {
            tn_fail(cx, TN_ERR_ARGUMENT, "tn_backward", "the roots belong to two contexts");
            return false;
        }
    if (!tn_tape_of(cx) || !tn_enter(cx, "tn_backward")) return false;
    tn_sweep sweep = { .cx = cx, .retain = retain };
    bool fine = true;
    tn_pass pass_before = cx->pass;
    cx->pass = TN_PASS_BACKWARD;
    for (int i = 0; fine && i < n_roots; i++) fine = start(&sweep, roots[i], grads ? grads[i] : NULL);
    fine = sweep_tape(&sweep, fine);
    cx->pass = pass_before;
    tn_leave(cx);
    return fine;
}

bool tn_backward_with(tn_tensor *root, tn_backward_args args) { return tn_backward_many(&root, &args.grad, 1, args.retain); }
bool tn_backward(tn_tensor *root) { return tn_backward_with(root, TN_BACKWARD(.grad = NULL)); }
