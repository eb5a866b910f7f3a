/* The tape's insides. A node is one recorded call; edges lead from it to what made its inputs.
 *
 * Nodes are chained in the order they were made, which is a topological order: backward walks the chain from the
 * newest root towards older nodes and runs those that a gradient has reached. A node is referenced by the links of its
 * output tensors, by the edges of its consumers and, while a gradient waits in it, by backward itself. */
#ifndef TENON_TAPE_INTERNAL_H
#define TENON_TAPE_INTERNAL_H

#include "../libtensor/context_internal.h"
#include "autograd.h"
#include "op.h"

typedef struct tn_node tn_node;

typedef struct tn_saved {
    tn_tensor *tensor; /* referenced; NULL where nothing was saved */
    uint64_t version;  /* of its storage when it was saved */
} tn_saved;

typedef struct tn_edge {
    tn_node *node;   /* made the input, */
    tn_tensor *leaf; /* or the input is this leaf; both NULL where no gradient is wanted */
    int output;
} tn_edge;

struct tn_node {
    const tn_op_def *op;
    tn_context *cx;
    tn_label_node *label;
    tn_node *older, *newer;
    tn_node *next_to_free;
    int32_t references;
    int16_t n_in, n_out, n_aux;
    bool released, pending;
    uint32_t wants;
    uint32_t transposed; /* as in tn_op_call */
    uint32_t bytes;      /* of this allocation */
    tn_tensor **dout;    /* n_out gradients that have arrived so far */
    tn_edge *edges;      /* n_in */
    tn_saved *saved;     /* n_in inputs, n_out outputs, n_aux statistics */
    tn_spec *in_spec;    /* n_in */
    void *args;
    int64_t formula_bytes; /* what the op says it saves; -1: it does not say */
};

/* What a tensor with a past (or a wish for a gradient) carries. */
typedef struct tn_link {
    tn_node *node; /* NULL for a leaf */
    int output;
    bool wanted;
    uint64_t version; /* of the storage when the node made the values; TN_ANY_VERSION for a view of a leaf */
    tn_tensor *grad;
} tn_link;

#define TN_ANY_VERSION UINT64_MAX

typedef struct tn_offload tn_offload; /* what tn_offload_block keeps between calls */
void tn_offload_close(tn_context *cx, tn_offload *offload);

typedef struct tn_tape {
    tn_offload *offload; /* NULL until it is used */
    tn_node *newest;
    tn_node *to_free;
    bool freeing;
    int no_grad;
} tn_tape;

/* The context's tape, made at first use; NULL with an error when the host has no memory. */
tn_tape *tn_tape_of(tn_context *cx);

static inline tn_link *tn_link_of(const tn_tensor *t) { return tn_impl_of(t)->tape; }
/* Has t been overwritten since an op made it? What the tape knows of it is then another tensor's past. */
static inline bool tn_link_stale(const tn_tensor *t) {
    const tn_link *link = tn_link_of(t);
    return link->node && link->version != tn_impl_of(t)->storage->version && link->version != TN_ANY_VERSION;
}
static inline bool tn_link_wants(const tn_link *link) { return link && (link->node || link->wanted); }
static inline bool tn_recording(const tn_context *cx) { return !cx->tape || ((const tn_tape *)cx->tape)->no_grad == 0; }

/* Puts a node for a finished call onto the tape and links its outputs to it. */
bool tn_tape_record(tn_op_call *call);
void tn_node_reference(tn_node *node);
void tn_node_unreference(tn_node *node);
/* Lets go of what the node saved and of the nodes before it. */
void tn_node_release(tn_node *node);

/* Runs forward's and backward's common part: device kernel with dense inputs and workspace. */
bool tn_run_backward_kernel(tn_op_call *call);

#endif
