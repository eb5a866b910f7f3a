#include "tape_internal.h"

#include <stdlib.h>
#include <string.h>

static void tensor_freed(tn_context *cx, tn_impl *t);
static void tape_closed(tn_context *cx);

tn_tape *tn_tape_of(tn_context *cx) {
    if (cx->tape) return cx->tape;
    tn_tape *tape = tn_host_calloc(sizeof *tape);
    if (!tape) return tn_fail(cx, TN_ERR_HOST_MEMORY, "tape", "the host has no memory left");
    cx->tape = tape;
    cx->tape_tensor_freed = tensor_freed;
    cx->tape_closed = tape_closed;
    return tape;
}

static void tape_closed(tn_context *cx) {
    tn_offload_close(cx, ((tn_tape *)cx->tape)->offload);
    tn_host_free(cx->tape);
    cx->tape = NULL;
}

/* ---- links ---- */

static tn_link *new_link(tn_tensor *t) {
    tn_context *cx = t->cx;
    if (!tn_tape_of(cx)) return NULL;
    tn_link *link = tn_host_pool_take(&cx->pool, sizeof *link);
    if (!link) return tn_fail(cx, TN_ERR_HOST_MEMORY, "tape", "the host has no memory left");
    *link = (tn_link){ 0 };
    tn_impl_of(t)->tape = link;
    return link;
}

static void tensor_freed(tn_context *cx, tn_impl *t) {
    tn_link *link = t->tape;
    t->tape = NULL;
    tn_unreference(link->grad);
    if (link->node) tn_node_unreference(link->node);
    tn_host_pool_give(&cx->pool, link, sizeof *link);
}

/* ---- nodes ---- */

static void save(tn_saved *slot, tn_tensor *t) {
    tn_storage *storage = tn_impl_of(t)->storage;
    slot->tensor = t;
    slot->version = storage->version;
    if (storage->n_saved++ == 0 && tn_block_category(storage->block) == TN_CATEGORY_TEMPORARY)
        tn_allocator_retag(t->cx->allocator, storage->block, TN_CATEGORY_SAVED);
}

static void unsave(tn_saved *slot) {
    tn_tensor *t = slot->tensor;
    if (!t) return;
    tn_storage *storage = tn_impl_of(t)->storage;
    if (--storage->n_saved == 0 && tn_block_category(storage->block) == TN_CATEGORY_SAVED)
        tn_allocator_retag(t->cx->allocator, storage->block, TN_CATEGORY_TEMPORARY);
    slot->tensor = NULL;
    tn_unreference(t);
}

void tn_node_reference(tn_node *node) { node->references++; }

void tn_node_release(tn_node *node) {
    for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++) unsave(&node->saved[i]);
    for (int i = 0; i < node->n_in; i++) {
        tn_edge edge = node->edges[i];
        node->edges[i] = (tn_edge){ 0 };
        if (edge.node) tn_node_unreference(edge.node);
        tn_unreference(edge.leaf);
    }
    node->released = true;
}

static void free_node(tn_node *node) {
    tn_context *cx = node->cx;
    tn_tape *tape = cx->tape;
    tn_node_release(node);
    for (int i = 0; i < node->n_out; i++) tn_unreference(node->dout[i]);
    if (node->newer) node->newer->older = node->older;
    else tape->newest = node->older;
    if (node->older) node->older->newer = node->newer;
    tn_host_pool_give(&cx->pool, node, node->bytes);
}

/* Freeing a node can free the node before it, and so on through a long chain: a list instead of recursion. */
void tn_node_unreference(tn_node *node) {
    if (--node->references) return;
    tn_tape *tape = node->cx->tape;
    node->next_to_free = tape->to_free;
    tape->to_free = node;
    if (tape->freeing) return;
    tape->freeing = true;
    while (tape->to_free) {
        tn_node *next = tape->to_free;
        tape->to_free = next->next_to_free;
        free_node(next);
    }
    tape->freeing = false;
}

static size_t aligned(size_t bytes) { return (bytes + 15) & ~(size_t)15; }

static tn_node *new_node(const tn_op_call *call) {
    tn_context *cx = call->cx;
    size_t n_in = (size_t)call->n_in, n_out = (size_t)call->n_out, n_saved = n_in + n_out + (size_t)call->n_aux;
    size_t at_dout = aligned(sizeof(tn_node)), at_edges = aligned(at_dout + n_out * sizeof(tn_tensor *));
    size_t at_saved = aligned(at_edges + n_in * sizeof(tn_edge)), at_spec = aligned(at_saved + n_saved * sizeof(tn_saved));
    size_t at_args = aligned(at_spec + n_in * sizeof(tn_spec)), bytes = at_args + call->op->args_bytes;
    char *memory = tn_host_pool_take(&cx->pool, bytes);
    if (!memory) return tn_fail(cx, TN_ERR_HOST_MEMORY, call->op->name, "the host has no memory left for the tape");
    memset(memory, 0, at_spec);
    tn_node *node = (tn_node *)memory;
    node->op = call->op;
    node->cx = cx;
    node->label = cx->label;
    node->n_in = (int16_t)call->n_in;
    node->n_out = (int16_t)call->n_out;
    node->n_aux = (int16_t)call->n_aux;
    node->wants = call->wants;
    node->bytes = (uint32_t)bytes;
    node->dout = (tn_tensor **)(memory + at_dout);
    node->edges = (tn_edge *)(memory + at_edges);
    node->saved = (tn_saved *)(memory + at_saved);
    node->in_spec = (tn_spec *)(memory + at_spec);
    node->args = memory + at_args;
    if (call->op->args_bytes) memcpy(node->args, call->args, call->op->args_bytes);
    return node;
}

/* Is t a dense matrix, or dense batch of them, seen transposed? */
static bool lies_transposed(const tn_tensor *t) {
    int n = t->axes;
    int64_t dense = 1;
    if (n < 2 || t->shape[n - 1] < 2 || t->shape[n - 2] < 2) return false;
    for (int i = n - 1; i >= 0; i--) {
        int axis = i == n - 1 ? n - 2 : i == n - 2 ? n - 1 : i;
        if (t->shape[axis] != 1 && t->stride[axis] != dense) return false;
        dense *= t->shape[axis];
    }
    return true;
}

static void describe_inputs(tn_node *node, const tn_op_call *call) {
    for (int i = 0; i < call->n_in; i++) {
        const tn_tensor *t = call->in[i];
        tn_spec *spec = &node->in_spec[i];
        spec->shape.axes = t ? t->axes : 0;
        spec->dtype = t ? t->dtype : TN_F32;
        if (call->op->flags & TN_OP_TRANSPOSED_DIN && call->wants >> i & 1 && lies_transposed(t)) node->transposed |= 1u << i;
        for (int axis = 0; axis < spec->shape.axes; axis++) spec->shape.size[axis] = t->shape[axis];
    }
}

static void connect(tn_node *node, const tn_op_call *call) {
    for (int i = 0; i < call->n_in; i++) {
        if (!(call->wants >> i & 1)) continue;
        tn_link *link = tn_link_of(call->in[i]);
        tn_edge *edge = &node->edges[i];
        edge->output = link->output;
        edge->node = link->node;
        if (link->node) tn_node_reference(link->node);
        else edge->leaf = tn_reference(call->in[i]);
    }
}

/* An output is saved as an alias without a past: saved itself it would hold the node that holds it. */
static bool save_all(tn_node *node, tn_op_call *call) {
    for (int i = 0; i < call->n_in; i++)
        if (call->save_in >> i & 1 && call->in[i]) save(&node->saved[i], tn_reference(call->in[i]));
    for (int i = 0; i < call->n_out; i++) {
        if (!(call->save_out >> i & 1)) continue;
        tn_tensor *o = call->out[i];
        tn_tensor *alias = tn_tensor_alias_new(o, o->axes, o->shape, o->stride, 0, true);
        if (!alias) return false;
        save(&node->saved[call->n_in + i], alias);
    }
    for (int i = 0; i < call->n_aux; i++) {
        if (!call->aux[i]) continue;
        save(&node->saved[call->n_in + call->n_out + i], call->aux[i]);
        call->aux[i] = NULL;
    }
    return true;
}

/* A view of a leaf is what it is whatever the leaf holds; other views are as old as what they look at. */
static uint64_t version_of_output(const tn_op_call *call, int output) {
    if (!(call->op->flags & TN_OP_VIEW)) return tn_version_of(call->out[output]);
    const tn_link *link = tn_link_of(call->in[0]);
    return link && link->node ? link->version : TN_ANY_VERSION;
}

bool tn_tape_record(tn_op_call *call) {
    tn_context *cx = call->cx;
    tn_tape *tape = tn_tape_of(cx);
    tn_node *node = tape ? new_node(call) : NULL;
    if (!node) return false;
    node->older = tape->newest;
    if (tape->newest) tape->newest->newer = node;
    tape->newest = node;
    node->references = 1; /* this function's own */
    describe_inputs(node, call);
    connect(node, call);
    node->formula_bytes = call->op->saved_bytes ? call->op->saved_bytes(call) : -1;
    bool fine = save_all(node, call);
    for (int i = 0; fine && i < call->n_out; i++) {
        tn_link *link = tn_dtype_is_float(call->out[i]->dtype) ? new_link(call->out[i]) : NULL;
        if (link) {
            link->node = node;
            link->output = i;
            link->version = version_of_output(call, i);
            tn_node_reference(node);
        }
        fine = link || tn_ready(cx);
    }
    tn_node_unreference(node);
    return fine;
}

/* ---- leaves ---- */

tn_tensor *tn_require_grad(tn_tensor *t, bool wanted) {
    if (!t || !tn_ready(t->cx)) return NULL;
    tn_link *link = tn_link_of(t);
    if (link && link->node)
        return tn_fail(t->cx, TN_ERR_GRAPH, "tn_require_grad", "the tensor was made by %s: only leaves can be asked", link->node->op->name);
    if (!tn_dtype_is_float(t->dtype))
        return tn_fail(t->cx, TN_ERR_DTYPE, "tn_require_grad", "got %s, wanted f64, f32 or bf16", tn_dtype_name(t->dtype));
    if (!link && !wanted) return t;
    if (!link) link = new_link(t);
    if (!link) return NULL;
    link->wanted = wanted;
    return t;
}

tn_tensor *tn_parameter(tn_context *cx, tn_dtype dtype, tn_shape shape) {
    if (!tn_ready(cx)) return NULL;
    if (!tn_dtype_is_float(dtype))
        return tn_fail(cx, TN_ERR_DTYPE, "tn_parameter", "got %s, wanted f64, f32 or bf16", tn_dtype_name(dtype));
    tn_category before = tn_memory_set_category(cx, TN_CATEGORY_PARAMETER);
    tn_scope *scope = cx->scope;
    const char *op_before = cx->op;
    cx->scope = &cx->root;
    cx->op = "tn_parameter";
    tn_tensor *t = tn_zeros(cx, dtype, shape);
    cx->op = op_before;
    cx->scope = scope;
    tn_memory_set_category(cx, before);
    if (t && !tn_require_grad(t, true)) {
        tn_release(t);
        return NULL;
    }
    return t;
}

bool tn_requires_grad(const tn_tensor *t) { return t && tn_link_wants(tn_link_of(t)); }

tn_tensor *tn_grad(const tn_tensor *t) {
    tn_link *link = t ? tn_link_of(t) : NULL;
    return link ? link->grad : NULL;
}

void tn_clear_grad(tn_tensor *t) {
    tn_link *link = t ? tn_link_of(t) : NULL;
    if (!link) return;
    tn_unreference(link->grad);
    link->grad = NULL;
}

tn_tensor *tn_detach(tn_tensor *t) { return t && tn_ready(t->cx) ? tn_tensor_alias_new(t, t->axes, t->shape, t->stride, 0, false) : NULL; }

void tn_no_grad_begin(tn_context *cx) {
    tn_tape *tape = cx ? tn_tape_of(cx) : NULL;
    if (tape) tape->no_grad++;
}

void tn_no_grad_end(tn_context *cx) {
    tn_tape *tape = cx ? cx->tape : NULL;
    if (tape && tape->no_grad > 0) tape->no_grad--;
}

bool tn_grad_enabled(const tn_context *cx) { return cx && tn_recording(cx); }

/* ---- what is saved ---- */

static const char *saved_name(const tn_node *node, int slot) {
    static const char *const aux_names[TN_OP_MAX_AUX] = { "aux0", "aux1", "aux2", "aux3" };
    if (slot < node->n_in) return node->op->inputs[slot < node->op->n_inputs ? slot : node->op->n_inputs - 1].name;
    if (slot < node->n_in + node->n_out) return node->op->outputs[slot - node->n_in].name;
    return aux_names[slot - node->n_in - node->n_out];
}

void tn_saved_visit(const tn_context *cx, void (*visit)(void *user, const tn_saved_entry *entry), void *user) {
    if (!cx || !cx->tape || !visit) return;
    for (const tn_node *node = ((const tn_tape *)cx->tape)->newest; node; node = node->older)
        for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++) {
            tn_tensor *t = node->saved[i].tensor;
            if (!t) continue;
            visit(user, &(tn_saved_entry){
                            .op = node->op->name,
                            .label = tn_label_path(node->label),
                            .tensor = saved_name(node, i),
                            .n_bytes = (int64_t)tn_bytes(t),
                            .storage = (uint64_t)(uintptr_t)tn_impl_of(t)->storage,
                            .category = tn_memory_category_of(t),
                        });
        }
}

static int64_t ledger_bytes(const tn_node *node) {
    int64_t bytes = 0;
    for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++) bytes += (int64_t)tn_bytes(node->saved[i].tensor);
    return bytes;
}

void tn_tape_visit(const tn_context *cx, void (*visit)(void *user, const tn_tape_entry *entry), void *user) {
    if (!cx || !cx->tape || !visit) return;
    for (const tn_node *node = ((const tn_tape *)cx->tape)->newest; node; node = node->older)
        if (!node->released)
            visit(user, &(tn_tape_entry){ .op = node->op->name,
                                          .label = tn_label_path(node->label),
                                          .saved_bytes = ledger_bytes(node),
                                          .formula_bytes = node->formula_bytes });
}

int64_t tn_saved_bytes_of(const tn_tensor *t) {
    const tn_link *link = t ? tn_link_of(t) : NULL;
    return link && link->node ? ledger_bytes(link->node) : 0;
}

/* Bytes [begin, end) that one saved tensor spans within its storage. */
typedef struct tn_extent {
    const tn_storage *storage;
    int64_t begin, end;
} tn_extent;

static tn_extent extent_of(const tn_tensor *t) {
    const tn_storage *storage = tn_impl_of(t)->storage;
    int64_t size = (int64_t)tn_dtype_size(t->dtype);
    int64_t low = (char *)t->data - (char *)tn_block_data(storage->block), high = low + size;
    for (int i = 0; i < t->axes; i++) {
        int64_t span = t->stride[i] * (t->shape[i] - 1) * size;
        if (span > 0) high += span;
        else low += span;
    }
    return (tn_extent){ storage, low, t->numel ? high : low };
}

static int by_storage_then_begin(const void *a, const void *b) {
    const tn_extent *x = a, *y = b;
    if (x->storage != y->storage) return x->storage < y->storage ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static int64_t count_saved(const tn_tape *tape) {
    int64_t n = 0;
    for (const tn_node *node = tape->newest; node; node = node->older)
        for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++) n += node->saved[i].tensor != NULL;
    return n;
}

static void collect_extents(const tn_tape *tape, tn_extent *extents) {
    for (const tn_node *node = tape->newest; node; node = node->older)
        for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++)
            if (node->saved[i].tensor) *extents++ = extent_of(node->saved[i].tensor);
}

bool tn_saved_summary_get(const tn_context *cx, tn_saved_summary *summary) {
    if (!summary) return false;
    *summary = (tn_saved_summary){ 0 };
    if (!cx) return false;
    const tn_tape *tape = cx->tape;
    summary->n_entries = tape ? count_saved(tape) : 0;
    if (!summary->n_entries) return true;
    tn_extent *extents = tn_host_alloc((size_t)summary->n_entries * sizeof *extents);
    if (!extents) return false;
    collect_extents(tape, extents);
    for (const tn_node *node = tape->newest; node; node = node->older)
        for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++) summary->ledger_bytes += (int64_t)tn_bytes(node->saved[i].tensor);
    qsort(extents, (size_t)summary->n_entries, sizeof *extents, by_storage_then_begin);
    int64_t covered = 0, covered_to = 0;
    for (int64_t i = 0; i < summary->n_entries; i++) {
        int64_t whole = (int64_t)tn_block_requested(extents[i].storage->block); /* 0 of what is put aside */
        if (i == 0 || extents[i].storage != extents[i - 1].storage) {
            summary->unique_bytes += whole;
            covered_to = 0;
        }
        int64_t from = extents[i].begin > covered_to ? extents[i].begin : covered_to, end = extents[i].end < whole ? extents[i].end : whole;
        if (end > from) {
            covered += end - from;
            covered_to = end;
        }
    }
    summary->pinned_extra_bytes = summary->unique_bytes - covered;
    tn_host_free(extents);
    return true;
}
