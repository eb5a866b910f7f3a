/* The context: one device, one allocator, one random stream, one error, one stack of scopes.
 *
 *     tn_context *cx = tn_open(&(tn_options){ .device = "auto", .seed = 1337 });
 *     ... calls that need no checking ...
 *     if (tn_failed(cx)) fprintf(stderr, "%s\n", tn_error(cx));
 *     tn_close(cx);
 *
 * Errors are sticky. The first failing call records what went wrong and returns NULL (or false, or 0);
 * until tn_clear_error every further call on that context, and every call given NULL, returns NULL and
 * changes nothing. Nothing in the library aborts, exits or prints.
 *
 * A context is used by one thread at a time; two contexts may be used by two threads at once. A context opened with .debug refuses ops,
 * backward passes and scopes that a second thread asks for while a first is in one: NULL there, and an error that names the call. */
#ifndef TENON_CONTEXT_H
#define TENON_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_context tn_context;
typedef struct tn_tensor tn_tensor;
typedef struct tn_scope tn_scope;

typedef struct tn_options {
    const char *device;     /* "auto" (also NULL), "cpu", "cuda", "dry-run" (records memory, computes nothing) */
    uint64_t seed;          /* of the context's random stream; 0 is a seed like any other */
    size_t memory_limit;    /* bytes the allocator may reserve; 0: no limit */
    int threads;            /* CPU threads; 0: all the process may use */
    bool debug;             /* red zones and NaN poison around and in every allocation; a second thread at the same time is refused */
    bool anomaly;           /* stop at the first NaN or Inf and name the op and label that made it */
    int64_t history_events; /* size of the allocator's event ring; 0: the default (65536), negative: off */
    bool tf32;              /* f32 matrix products on CUDA may round their inputs to tf32 */
} tn_options;

/* Opens a context; options may be NULL. Returns NULL only when the host has no memory left. Where the
 * device asked for is not usable the context is returned with that error set. */
TN_API tn_context *tn_open(const tn_options *options);

/* Frees the context and every tensor made on it. NULL is fine. */
TN_API void tn_close(tn_context *cx);

/* ---- errors ---- */

TN_API bool tn_failed(const tn_context *cx);
TN_API tn_status tn_error_status(const tn_context *cx);
/* The whole message: op, what it got, what it wanted, the place in the source and the label. "" when all is well. */
TN_API const char *tn_error(const tn_context *cx);
/* The op (or call) that failed, "" when none did. */
TN_API const char *tn_error_op(const tn_context *cx);
TN_API void tn_clear_error(tn_context *cx);

/* Records an error as the library does; for ops registered from outside. Keeps the first. Always returns NULL. */
TN_API void *tn_fail_at(tn_context *cx, tn_status status, const char *op, const char *file, int line, const char *format, ...)
    TN_PRINTF(6, 7);
#define tn_fail(cx, status, op, ...) tn_fail_at((cx), (status), (op), __FILE__, __LINE__, __VA_ARGS__)

/* ---- scopes: who owns temporaries ----
 *
 * A tensor belongs to the scope that was innermost when it was made and lives until that scope ends, or
 * longer if the tape saved it for backward, it was kept, or the caller retained it. Tensors made outside
 * every scope live until tn_release or tn_close. */

TN_API tn_scope *tn_scope_begin(tn_context *cx);
/* Ends `scope` (and any scope still open inside it). After that there is no such scope: ending it once more is the caller's error, and
 * unlike others is not looked for. */
TN_API void tn_scope_end(tn_scope *scope);
/* Moves `t` to the scope around `scope`, so that it can be returned from it; returns t. */
TN_API tn_tensor *tn_scope_keep(tn_scope *scope, tn_tensor *t);
/* Ends `scope`, keeping `result` for the scope around it; returns result. */
TN_API tn_tensor *tn_scope_return(tn_scope *scope, tn_tensor *result);

/* ---- labels: who an allocation or an error belongs to, e.g. layer.3/attn ---- */

TN_API void tn_label_push(tn_context *cx, const char *label);
TN_API void tn_label_pop(tn_context *cx);
/* The labels in force joined by '/', "" when none. The pointer stays valid as long as the context. */
TN_API const char *tn_label(const tn_context *cx);

/* ---- the device behind the context ---- */

TN_API const char *tn_device_name(const tn_context *cx);   /* "cpu", "cuda", "dry-run" */
TN_API const char *tn_device_detail(const tn_context *cx); /* e.g. the processor and its threads */
/* Why CUDA is not usable in this process: "" when it is. */
TN_API const char *tn_cuda_unavailable_reason(void);
/* The stream work is put on; a cudaStream_t on CUDA, NULL elsewhere. Lets a user's own kernel join in. */
TN_API void *tn_native_stream(const tn_context *cx);
/* Waits until everything put on the device is done and reports what failed there. */
TN_API bool tn_synchronize(tn_context *cx);
TN_API int tn_threads(const tn_context *cx);

TN_API const char *tn_version(void);

#ifdef __cplusplus
}
#endif
#endif
