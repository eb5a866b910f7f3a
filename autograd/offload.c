/* Activations put aside: what the tape saved for a block lies in host memory from the next block's end until backward needs it.
 *
 * Behind a block stands a node through which its output goes. When the next such block has run, the first one's copies to the host, made
 * meanwhile on a stream of their own, are waited for and its memory is given back; a block's tensors then lie over blocks of no bytes. In
 * backward the node asks for its block's bytes, which the node before it has already sent for, and sends for those of the block that comes
 * after it. All waiting is among streams, so that the whole can be recorded. */
#include <stdlib.h>

#include "../libtensor/pinned.h"
#include "tape_internal.h"

typedef struct host_buffer {
    struct host_buffer *next;
    void *memory;
    size_t bytes;
} host_buffer;

typedef enum aside_state { ASIDE_LEAVING, ASIDE_AWAY, ASIDE_COMING, ASIDE_BACK } aside_state;

typedef struct aside_storage {
    tn_storage *storage;
    host_buffer *buffer;
    size_t bytes;
    tn_owner owner;
    int64_t first, n; /* of aside.tensors: those that lie in it */
} aside_storage;

typedef struct aside {
    struct aside *older, *newer;
    tn_context *cx;
    aside_state state;
    int64_t n_storages, n_tensors;
    aside_storage *storages;
    tn_tensor **tensors; /* referenced, neighbours where they share a storage */
} aside;

struct tn_offload {
    tn_stream stream; /* of the copies */
    host_buffer *unused;
    aside *newest;
};

/* Less is not worth a copy: a block of no bytes takes 512 too. */
#define LEAST_BYTES ((size_t)1024)

/* ---- host memory and streams ---- */

static tn_offload *offload_of(tn_context *cx) {
    tn_tape *tape = tn_tape_of(cx);
    if (!tape) return NULL;
    if (tape->offload) return tape->offload;
    tn_offload *offload = tn_host_calloc(sizeof *offload);
    if (!offload) return tn_fail(cx, TN_ERR_HOST_MEMORY, "offload", "the host has no memory left");
    tn_status status = cx->device->interface->stream_create(cx->device, &offload->stream);
    if (status == TN_OK) return tape->offload = offload;
    tn_host_free(offload);
    return TN_FAIL_DEVICE(cx, status, "offload");
}

void tn_offload_close(tn_context *cx, tn_offload *offload) {
    if (!offload) return;
    while (offload->unused) {
        host_buffer *buffer = offload->unused;
        offload->unused = buffer->next;
        tn_pinned_give(cx->device, buffer->memory);
        tn_host_free(buffer);
    }
    tn_host_free(offload);
}

/* A step wants the same sizes as the one before. */
static host_buffer *buffer_take(tn_context *cx, tn_offload *offload, size_t bytes) {
    for (host_buffer **at = &offload->unused; *at; at = &(*at)->next) {
        host_buffer *buffer = *at;
        if (buffer->bytes != bytes) continue;
        *at = buffer->next;
        return buffer;
    }
    host_buffer *buffer = tn_host_alloc(sizeof *buffer);
    if (!buffer) return tn_fail(cx, TN_ERR_HOST_MEMORY, "offload", "the host has no memory left");
    *buffer = (host_buffer){ .bytes = bytes };
    tn_status status = tn_pinned_take(cx->device, bytes, &buffer->memory);
    if (status == TN_OK) return buffer;
    tn_host_free(buffer);
    return tn_fail(cx, status, "offload", "the host has no %zu bytes left", bytes);
}

/* All copies are on one stream: the next use of the memory comes after this one's. */
static void buffers_give(tn_offload *offload, aside *a) {
    for (int64_t i = 0; i < a->n_storages; i++) {
        host_buffer *buffer = a->storages[i].buffer;
        if (!buffer) continue;
        buffer->next = offload->unused;
        offload->unused = buffer;
        a->storages[i].buffer = NULL;
    }
}

static bool wait(tn_context *cx, tn_stream waiting, tn_stream awaited) {
    tn_status status = cx->device->interface->stream_wait(cx->device, waiting, awaited);
    if (status != TN_OK) TN_FAIL_DEVICE(cx, status, "offload");
    return status == TN_OK;
}

/* ---- away and back ---- */

/* The storage lies in `block` from now on; what was there is given back. */
static void move_storage(const aside *a, const aside_storage *s, tn_block *block) {
    char *from = tn_block_data(s->storage->block), *to = tn_block_data(block);
    for (int64_t i = s->first; i < s->first + s->n; i++) a->tensors[i]->data = to + ((char *)a->tensors[i]->data - from);
    tn_allocator_give(a->cx->allocator, s->storage->block);
    s->storage->block = block;
}

static bool block_for(const aside *a, const aside_storage *s, size_t bytes, tn_block **block) {
    tn_context *cx = a->cx;
    *block = tn_allocator_take(cx->allocator, bytes, cx->stream, TN_CATEGORY_SAVED, &s->owner);
    return *block || tn_fail(cx, tn_allocator_error_status(cx->allocator), "offload", "%s", tn_allocator_error(cx->allocator));
}

static bool begin_leaving(tn_offload *offload, aside *a) {
    tn_context *cx = a->cx;
    if (!wait(cx, offload->stream, cx->stream)) return false;
    for (int64_t i = 0; i < a->n_storages; i++) {
        aside_storage *s = &a->storages[i];
        if (!(s->buffer = buffer_take(cx, offload, s->bytes))) return false;
        tn_status status = tn_pinned_copy_out(cx->device, s->buffer->memory, tn_block_data(s->storage->block), s->bytes, offload->stream);
        if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, "offload");
    }
    return true;
}

static bool finish_leaving(tn_offload *offload, aside *a) {
    if (!a || a->state != ASIDE_LEAVING) return true;
    if (!wait(a->cx, a->cx->stream, offload->stream)) return false;
    a->state = ASIDE_AWAY;
    for (int64_t i = 0; i < a->n_storages; i++) {
        tn_block *nothing;
        if (!block_for(a, &a->storages[i], 0, &nothing)) return false;
        move_storage(a, &a->storages[i], nothing);
    }
    return true;
}

static bool begin_coming(tn_offload *offload, aside *a) {
    tn_context *cx = a->cx;
    a->state = ASIDE_COMING;
    for (int64_t i = 0; i < a->n_storages; i++) {
        tn_block *block;
        if (!block_for(a, &a->storages[i], a->storages[i].bytes, &block)) return false;
        move_storage(a, &a->storages[i], block);
    }
    if (!wait(cx, offload->stream, cx->stream)) return false; /* for those who had this memory before */
    for (int64_t i = 0; i < a->n_storages; i++) {
        const aside_storage *s = &a->storages[i];
        tn_status status = tn_pinned_copy_in(cx->device, tn_block_data(s->storage->block), s->buffer->memory, s->bytes, offload->stream);
        if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, "offload");
    }
    return true;
}

static bool bring_back(tn_offload *offload, aside *a) {
    if (a->state == ASIDE_BACK) return true;
    if (a->state == ASIDE_AWAY && !begin_coming(offload, a)) return false;
    if (!wait(a->cx, a->cx->stream, offload->stream)) return false;
    a->state = ASIDE_BACK;
    buffers_give(offload, a);
    return true;
}

/* ---- what is put aside ---- */

static void aside_free(void *user) {
    aside *a = user;
    tn_offload *offload = ((tn_tape *)a->cx->tape)->offload;
    if (a->state != ASIDE_AWAY && a->state != ASIDE_BACK) /* the copies read or write what may be freed now */
        a->cx->device->interface->stream_wait(a->cx->device, a->cx->stream, offload->stream);
    buffers_give(offload, a);
    if (a->newer) a->newer->older = a->older;
    else if (offload->newest == a) offload->newest = a->older;
    if (a->older) a->older->newer = a->newer;
    for (int64_t i = 0; i < a->n_tensors; i++) tn_unreference(a->tensors[i]);
    tn_host_free(a->storages);
    tn_host_free(a->tensors);
    tn_host_free(a);
}

static int by_storage(const void *x, const void *y) {
    const tn_impl *a = tn_impl_of(*(tn_tensor *const *)x), *b = tn_impl_of(*(tn_tensor *const *)y);
    if (a->storage != b->storage) return (uintptr_t)a->storage < (uintptr_t)b->storage ? -1 : 1;
    return (uintptr_t)a < (uintptr_t)b ? -1 : a != b;
}

static bool worth_moving(const tn_tensor *t) {
    const tn_block *block = tn_impl_of(t)->storage->block;
    return tn_block_category(block) == TN_CATEGORY_SAVED && tn_block_requested(block) >= LEAST_BYTES;
}

/* What the nodes newer than `before` saved, once for each time. */
static int64_t list_saved(const tn_tape *tape, const tn_node *before, tn_tensor **list) {
    int64_t n = 0;
    for (const tn_node *node = tape->newest; node && node != before; node = node->older)
        for (int i = 0; i < node->n_in + node->n_out + node->n_aux; i++) {
            tn_tensor *t = node->saved[i].tensor;
            if (!t || !worth_moving(t)) continue;
            if (list) list[n] = t;
            n++;
        }
    return n;
}

/* Takes over the storage of the sorted list's first n tensors, if nobody but the tape has a tensor in it. */
static void add_storage(aside *a, tn_tensor *const *list, int64_t n) {
    tn_storage *storage = tn_impl_of(list[0])->storage;
    int64_t first = a->n_tensors, references = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i > 0 && list[i] == list[i - 1]) continue;
        a->tensors[a->n_tensors++] = list[i];
        references += tn_impl_of(list[i])->references;
    }
    int64_t distinct = a->n_tensors - first;
    if (references != n || storage->references != distinct) {
        a->n_tensors = first;
        return;
    }
    for (int64_t i = first; i < a->n_tensors; i++) tn_reference(a->tensors[i]);
    a->storages[a->n_storages++] = (aside_storage){ .storage = storage,
                                                    .bytes = tn_block_requested(storage->block),
                                                    .owner = *tn_block_owner(storage->block),
                                                    .first = first,
                                                    .n = distinct };
}

static aside *aside_new(tn_context *cx, const tn_node *before) {
    const tn_tape *tape = cx->tape;
    int64_t n = list_saved(tape, before, NULL);
    aside *a = tn_host_calloc(sizeof *a);
    tn_tensor **list = tn_host_alloc((size_t)(n + 1) * sizeof *list);
    if (a) {
        *a = (aside){ .cx = cx, .state = ASIDE_BACK };
        a->tensors = tn_host_alloc((size_t)(n + 1) * sizeof *a->tensors);
        a->storages = tn_host_alloc((size_t)(n + 1) * sizeof *a->storages);
    }
    if (!a || !list || !a->tensors || !a->storages) {
        if (a) aside_free(a);
        tn_host_free(list);
        return tn_fail(cx, TN_ERR_HOST_MEMORY, "offload", "the host has no memory left");
    }
    list_saved(tape, before, list);
    qsort(list, (size_t)n, sizeof *list, by_storage);
    for (int64_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && tn_impl_of(list[end])->storage == tn_impl_of(list[i])->storage;) end++;
        add_storage(a, list + i, end - i);
    }
    tn_host_free(list);
    return a;
}

/* ---- the node ---- */

typedef struct offload_args {
    aside *aside;
} offload_args;

static bool never_planned(tn_op_call *call) { return tn_refuse(call, TN_ERR_UNSUPPORTED, "wanted tn_offload"); }

static int64_t saved_bytes(const tn_op_call *call) {
    (void)call;
    return 0;
}

static bool run_backward(tn_op_call *call) {
    aside *a = ((const offload_args *)call->args)->aside;
    tn_offload *offload = ((tn_tape *)call->cx->tape)->offload;
    if (!bring_back(offload, a)) return false;
    if (a->older && a->older->state == ASIDE_AWAY && !begin_coming(offload, a->older)) return false;
    call->din[0] = tn_retain(call->dout[0]);
    return true;
}

static const tn_input_def offload_inputs[] = { { .name = "in", .flags = TN_INPUT_VARIADIC | TN_INPUT_STRIDED, .dtypes = TN_ANY_DTYPE } };
static const tn_output_def offload_outputs[] = { { .name = "o" } };
static const tn_op_def offload_def = {
    .name = "offload",
    .doc = "what a block saved lies in host memory until its backward",
    .n_inputs = 1,
    .n_outputs = 1,
    .inputs = offload_inputs,
    .outputs = offload_outputs,
    .args_bytes = sizeof(offload_args),
    .check = never_planned,
    .backward_tensors = run_backward,
    .saved_bytes = saved_bytes,
};

/* A tensor of no bytes that the node saves: when the node lets go of it, what was put aside is no longer wanted. */
static tn_tensor *token_of(aside *a) {
    tn_context *cx = a->cx;
    const tn_owner owner = { .op = "offload", .label = tn_label_path(cx->label), .pass = cx->pass };
    tn_block *block = tn_allocator_adopt(cx->allocator, NULL, 0, TN_CATEGORY_TEMPORARY, &owner);
    if (!block) {
        aside_free(a);
        return tn_fail(cx, TN_ERR_HOST_MEMORY, "offload", "the host has no memory left");
    }
    tn_block_release_to(block, aside_free, a);
    return tn_tensor_over(cx, block, TN_U8, &TN_SHAPE(0), (const int64_t[]){ 1 }, 0);
}

static tn_tensor *put_aside(tn_context *cx, tn_offload *offload, tn_tensor *o, const tn_node *before) {
    aside *a = aside_new(cx, before);
    if (!a) return NULL;
    a->older = offload->newest;
    if (a->older) a->older->newer = a;
    offload->newest = a;
    tn_tensor *token = token_of(a), *behind = token ? tn_tensor_alias_new(o, o->axes, o->shape, o->stride, 0, false) : NULL;
    if (!behind || !finish_leaving(offload, a->older)) return NULL;
    a->state = ASIDE_LEAVING;
    if (!begin_leaving(offload, a)) return NULL;
    offload_args args = { a };
    tn_op_call call = { .op = &offload_def, .cx = cx, .args = &args, .n_in = 2, .n_out = 1, .in = { o, token }, .out = { behind } };
    call.wants = 1;
    call.save_in = 2;
    return tn_tape_record(&call) ? behind : NULL;
}

tn_tensor *tn_offload_block(tn_context *cx, tn_checkpoint_fn run, void *user, tn_tensor *const *in, int n_in) {
    if (!tn_ready(cx)) return NULL;
    if (!run) return tn_fail(cx, TN_ERR_ARGUMENT, "offload", "got no function");
    tn_offload *offload = tn_grad_enabled(cx) ? offload_of(cx) : NULL;
    if (!offload) return tn_ready(cx) ? run(user, in, n_in) : NULL;
    tn_node *before = ((tn_tape *)cx->tape)->newest;
    if (before) tn_node_reference(before);
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *o = tn_scope_return(scope, run(user, in, n_in));
    if (o && tn_requires_grad(o)) {
        scope = tn_scope_begin(cx);
        o = tn_scope_return(scope, put_aside(cx, offload, o, before));
    }
    if (before) tn_node_unreference(before);
    return o;
}
