/* The tape: what was computed, so that gradients can flow back. */
#ifndef TENON_AUTOGRAD_H
#define TENON_AUTOGRAD_H

#include "../libtensor/memory.h"
#include "../libtensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A leaf that wants a gradient, owned by the context, counted as a parameter. Zero at first; see tn_fill_*. */
TN_API tn_tensor *tn_parameter(tn_context *cx, tn_dtype dtype, tn_shape shape);
/* Makes a leaf want a gradient (or no longer). An error on a tensor that an op made, and on integers. Returns t. */
TN_API tn_tensor *tn_require_grad(tn_tensor *t, bool wanted);
/* Does a gradient flow through t? */
TN_API bool tn_requires_grad(const tn_tensor *t);
/* The gradient gathered so far: NULL before the first backward. It lives as long as t, or until tn_clear_grad. */
TN_API tn_tensor *tn_grad(const tn_tensor *t);
TN_API void tn_clear_grad(tn_tensor *t);
/* The same values without a past. Shares storage. */
TN_API tn_tensor *tn_detach(tn_tensor *t);

/* Between the two nothing is recorded. They nest. */
TN_API void tn_no_grad_begin(tn_context *cx);
TN_API void tn_no_grad_end(tn_context *cx);
TN_API bool tn_grad_enabled(const tn_context *cx);

typedef struct tn_backward_args {
    tn_tensor *grad; /* upstream gradient of `root`; NULL: ones, and then root must have one element */
    bool retain;     /* keep what the tape saved, for another backward through the same graph */
} tn_backward_args;
#define TN_BACKWARD(...) ((tn_backward_args){ .grad = NULL, __VA_ARGS__ })

/* Adds (+=) the gradient of root to .grad of every leaf it depends on. Each saved tensor is released as soon as its
 * last use has run; a second backward through the graph is then an error. */
TN_API bool tn_backward(tn_tensor *root);
TN_API bool tn_backward_with(tn_tensor *root, tn_backward_args args);
/* Several roots at once (outputs of one graph), each with its upstream gradient (NULL only for one-element roots). */
TN_API bool tn_backward_many(tn_tensor *const *roots, tn_tensor *const *grads, int n_roots, bool retain);

/* ---- activations made again instead of kept ---- */

/* A block of a model: makes its output of `in` by calls of the library. Run twice on the same input it must do the same; random numbers
 * are the same both times. */
typedef tn_tensor *(*tn_checkpoint_fn)(void *user, tn_tensor *const *in, int n_in);

/* run(user, in, n_in), of which the tape keeps nothing but `in`: backward runs it again, then back. Gradients of inputs, and of the
 * parameters that the block uses, are those without tn_checkpoint to the bit. `user`, and what it points to, must be there until backward.
 * At most 15 inputs; blocks may lie within blocks. */
TN_API tn_tensor *tn_checkpoint(tn_context *cx, tn_checkpoint_fn run, void *user, tn_tensor *const *in, int n_in);

/* run(user, in, n_in), and what the tape saves for it goes to (pinned) host memory, to come back when backward has reached the block after
 * it. Copies go on a stream of their own beside the next block's work; the last block's activations stay. Gradients are the same to the
 * bit. What something else than the tape still holds (an input, the output) stays where it is. */
TN_API tn_tensor *tn_offload_block(tn_context *cx, tn_checkpoint_fn run, void *user, tn_tensor *const *in, int n_in);

/* ---- what a step will take ---- */

/* Runs step(cx, user) on a context of its own whose device records memory and computes nothing, and says what was allocated at most.
 * `options` are those of the real run; its device says which one is imitated (cpu, cuda or auto). False, with the reason, where the step
 * failed: under options->memory_limit that is how it would run out. */
TN_API bool tn_predict_memory(const tn_options *options, bool (*step)(tn_context *cx, void *user), void *user, tn_memory_stats *stats,
                              char *reason, size_t n_bytes);

/* ---- what the tape holds ---- */

typedef struct tn_saved_entry {
    const char *op, *label;
    const char *tensor; /* "x", "o", "aux0": the op's name for it */
    int64_t n_bytes;    /* elements x size */
    uint64_t storage;   /* identity of the storage it lies in */
    tn_category category;
} tn_saved_entry;

typedef struct tn_saved_summary {
    int64_t n_entries;
    int64_t ledger_bytes;       /* sum over (op, tensor) */
    int64_t unique_bytes;       /* each storage once, whole; nothing for what tn_offload_block has put aside */
    int64_t pinned_extra_bytes; /* of that, bytes no saved tensor covers: kept alive only because a saved view lies in the storage */
} tn_saved_summary;

TN_API bool tn_saved_summary_get(const tn_context *cx, tn_saved_summary *summary);
TN_API void tn_saved_visit(const tn_context *cx, void (*visit)(void *user, const tn_saved_entry *entry), void *user);

/* One recorded call: what the tape holds for it, and what the op's formula says it should (-1 where an op has none). */
typedef struct tn_tape_entry {
    const char *op, *label;
    int64_t saved_bytes, formula_bytes;
} tn_tape_entry;
/* Newest first. */
TN_API void tn_tape_visit(const tn_context *cx, void (*visit)(void *user, const tn_tape_entry *entry), void *user);
/* Saved bytes of the node that made t (0 for a leaf). */
TN_API int64_t tn_saved_bytes_of(const tn_tensor *t);

/* ---- named parameters ---- */

typedef struct tn_params tn_params;

/* A list of (name, tensor) that optimizers, saving and loading work on. Freed with its context or by tn_params_free. */
TN_API tn_params *tn_params_new(tn_context *cx);
TN_API void tn_params_free(tn_params *params);
/* Adds t under a name formed like printf; a name twice is an error. Groups are for optimizers: 0 unless said. Returns t. */
TN_API tn_tensor *tn_params_add(tn_params *params, tn_tensor *t, int group, const char *name_format, ...) TN_PRINTF(4, 5);
TN_API tn_context *tn_params_context(const tn_params *params);
TN_API int64_t tn_params_count(const tn_params *params);
TN_API tn_tensor *tn_params_at(const tn_params *params, int64_t index);
TN_API const char *tn_params_name(const tn_params *params, int64_t index);
TN_API int tn_params_group(const tn_params *params, int64_t index);
TN_API tn_tensor *tn_params_find(const tn_params *params, const char *name); /* NULL, and no error, if absent */
TN_API void tn_zero_grad(const tn_params *params);
/* All parameters to and from a safetensors file, by name. Loading checks names, shapes and dtypes before it changes anything. */
TN_API bool tn_params_save(const tn_params *params, const char *path);
TN_API bool tn_params_load(const tn_params *params, const char *path);

#ifdef __cplusplus
}
#endif
#endif
