/* The insides of contexts and tensors, for libtensor, autograd and the ops. */
#ifndef TENON_CONTEXT_INTERNAL_H
#define TENON_CONTEXT_INTERNAL_H

#include "allocator.h"
#include "device.h"
#include "host_memory.h"
#include "memory.h"
#include "tensor.h"

typedef struct tn_storage {
    tn_block *block;
    uint64_t version;
    int32_t references;
    int32_t n_saved; /* how many times the tape holds it for backward */
} tn_storage;

/* A tensor with its private part. The public part comes first, so that a tn_tensor * is a tn_impl *. */
typedef struct tn_impl {
    tn_tensor pub;
    tn_storage *storage;
    struct tn_impl *previous, *next; /* neighbours in the scope that owns it */
    tn_scope *scope;                 /* NULL: owned by nobody but its references */
    int32_t references;              /* the scope's, the caller's and the library's */
    int32_t user_references;         /* those of tn_retain */
    void *tape;                      /* autograd's link; NULL for a tensor without one */
} tn_impl;

static inline tn_impl *tn_impl_of(const tn_tensor *t) { return (tn_impl *)t; }

struct tn_scope {
    tn_context *cx;
    tn_scope *outer;
    tn_impl *first;
    bool root;
};

typedef struct tn_label_node {
    struct tn_label_node *parent, *children, *sibling;
    char *path; /* the joined labels down to here */
    char *name;
} tn_label_node;

typedef struct tn_close_hook {
    struct tn_close_hook *next;
    void (*close)(void *user);
    void *user;
} tn_close_hook;

struct tn_context {
    tn_device *device;
    tn_allocator *allocator;
    tn_stream stream;
    tn_host_pool pool;

    tn_status status;
    char *message; /* of the first error */
    char failed_op_text[64];

    tn_scope root;
    tn_scope retained; /* what only tn_retain keeps alive; holds no references itself */
    tn_scope *scope;   /* the innermost */
    tn_label_node label_root;
    tn_label_node *label;
    int labels_skipped; /* pushed in vain, e.g. while an error stood: their pops must not take others */

    tn_rng_state rng;
    tn_tensor *rng_place; /* added to rng.counter by those who can read it on the device; NULL: nothing is */
    struct tn_graph *recording;
    bool debug, anomaly;
    uintptr_t user_thread; /* debug: the thread that is in a call; 0: none */
    int user_depth;        /* how many calls within each other */
    const char *intruder;  /* a call another thread wanted meanwhile */

    /* Under whose name allocations are made just now. */
    const char *op;
    tn_pass pass;
    tn_category category;

    tn_close_hook *close_hooks; /* newest first */

    /* autograd's state and its hooks; NULL until it is used. */
    void *tape;
    void (*tape_tensor_freed)(tn_context *cx, tn_impl *t);
    void (*tape_closed)(tn_context *cx);
};

/* Fails quietly into NULL: no tensor, another context's error, or an error standing. */
static inline bool tn_ready(const tn_context *cx) { return cx != NULL && cx->status == TN_OK; }

/* Around what only one thread may do at a time, checked in debug mode. False: another thread is in the context; there is nothing to
 * leave. */
bool tn_context_claim(tn_context *cx, const char *call);
void tn_context_yield(tn_context *cx);
static inline bool tn_enter(tn_context *cx, const char *call) { return !cx->debug || tn_context_claim(cx, call); }
static inline void tn_leave(tn_context *cx) {
    if (cx->debug) tn_context_yield(cx);
}

/* `close(user)` runs when the context closes, before its tensors go, the last one asked for first. False without host memory. */
bool tn_context_on_close(tn_context *cx, void (*close)(void *user), void *user);
void tn_context_forget_close(tn_context *cx, const void *user);

/* Stores the error a device call left. */
void *tn_fail_device(tn_context *cx, tn_status status, const char *op, const char *file, int line);
#define TN_FAIL_DEVICE(cx, status, op) tn_fail_device((cx), (status), (op), __FILE__, __LINE__)

/* Checks a shape: axes and sizes in range, element count within int64. -1 on error, else the number of elements. */
int64_t tn_shape_numel(const tn_shape *shape);

/* A new tensor over new storage, or over `like`'s; it belongs to the innermost scope unless `loose`, where the caller
 * holds its one reference. */
tn_tensor *tn_tensor_new(tn_context *cx, tn_dtype dtype, const tn_shape *shape, bool loose);
/* A tensor over a block that it takes over, on failure too; `offset` in bytes from the block's first. It belongs to the innermost scope. */
tn_tensor *tn_tensor_over(tn_context *cx, tn_block *block, tn_dtype dtype, const tn_shape *shape, const int64_t *stride, int64_t offset);
tn_tensor *tn_tensor_alias_new(tn_tensor *like, int axes, const int64_t *shape, const int64_t *stride, int64_t offset, bool loose);

static inline tn_tensor *tn_reference(tn_tensor *t) {
    if (t) tn_impl_of(t)->references++;
    return t;
}
void tn_tensor_free(tn_impl *t);
static inline void tn_unreference(tn_tensor *t) {
    if (t && --tn_impl_of(t)->references == 0) tn_tensor_free(tn_impl_of(t));
}
/* Gives a loose tensor to the innermost scope. */
tn_tensor *tn_scope_adopt(tn_tensor *t);
/* Makes a scope's tensor loose: its scope's reference becomes the caller's. */
tn_tensor *tn_scope_disown(tn_tensor *t);
/* Puts a tensor that no scope owns, and that the caller retained, where tn_close will find it. */
void tn_scope_hold(tn_tensor *t);
/* Does a scope hold a reference to t? */
bool tn_scope_owns(const tn_impl *t);

/* Raw device memory for a kernel's scratch, counted as workspace. */
tn_block *tn_workspace_take(tn_context *cx, size_t bytes);
void tn_workspace_give(tn_context *cx, tn_block *block);

/* t as a dense tensor of dtype: t itself (with a new reference) where it is one, else a loose copy. */
tn_tensor *tn_dense(tn_tensor *t, tn_dtype dtype);
/* The same, a copy in any case. */
tn_tensor *tn_dense_copy(tn_tensor *t, tn_dtype dtype);

const char *tn_label_path(const tn_label_node *label);

#endif
