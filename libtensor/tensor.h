/* Tensors: a dtype, up to eight axes with strides, and storage from the context's allocator.
 *
 * What is here knows nothing of gradients; the differentiable versions (reshape, cast, ...) live in ops. */
#ifndef TENON_TENSOR_H
#define TENON_TENSOR_H

#include <stdio.h>

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TN_MAX_AXES 8

typedef enum tn_dtype { TN_F64, TN_F32, TN_BF16, TN_I64, TN_I32, TN_U8, TN_BOOL, TN_DTYPE_COUNT } tn_dtype;

TN_API size_t tn_dtype_size(tn_dtype dtype);      /* bytes of one element; 0 for no dtype */
TN_API const char *tn_dtype_name(tn_dtype dtype); /* "f64", "f32", "bf16", "i64", "i32", "u8", "bool" */
TN_API bool tn_dtype_parse(const char *name, tn_dtype *dtype);
TN_API bool tn_dtype_is_float(tn_dtype dtype);
/* The dtype two operands meet in. Floats win over integers, integers over bool; among floats and among
 * integers the wider wins (f64 > f32 > bf16, i64 > i32 > u8). So bf16 with f32 gives f32, i64 with bf16 gives bf16. */
TN_API tn_dtype tn_dtype_promote(tn_dtype a, tn_dtype b);

typedef struct tn_shape {
    int axes;
    int64_t size[TN_MAX_AXES];
} tn_shape;

#define TN_COUNT_ARGS(...) ((int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)))
/* TN_SHAPE(8, 128, 64): a shape by value. TN_SCALAR: the shape without axes. */
#define TN_SHAPE(...) ((tn_shape){ TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } })
#define TN_SCALAR ((tn_shape){ 0, { 0 } })

/* The readable part of a tensor: to be read by anyone, written by the library alone. */
struct tn_tensor {
    tn_context *cx;
    void *data; /* first element, on the context's device */
    int64_t numel;
    int64_t shape[TN_MAX_AXES];
    int64_t stride[TN_MAX_AXES]; /* in elements; 0 where an axis is broadcast */
    int axes;
    tn_dtype dtype;
};

TN_API tn_shape tn_shape_of(const tn_tensor *t);
TN_API bool tn_same_shape(const tn_tensor *a, const tn_tensor *b);
TN_API bool tn_is_contiguous(const tn_tensor *t);
TN_API size_t tn_bytes(const tn_tensor *t); /* numel x element size */

/* ---- making tensors (in the innermost scope) ---- */

TN_API tn_tensor *tn_empty(tn_context *cx, tn_dtype dtype, tn_shape shape); /* contents undefined */
TN_API tn_tensor *tn_zeros(tn_context *cx, tn_dtype dtype, tn_shape shape);
TN_API tn_tensor *tn_full(tn_context *cx, tn_dtype dtype, tn_shape shape, double value);
TN_API tn_tensor *tn_arange(tn_context *cx, tn_dtype dtype, int64_t n); /* 0, 1, .. n-1, which an integer dtype must be able to hold */
TN_API tn_tensor *tn_from_data(tn_context *cx, tn_dtype dtype, tn_shape shape, const void *host_data); /* copies */

/* Random numbers come from the context's Philox counter: the same seed gives the same numbers on every device. */
TN_API tn_tensor *tn_rand(tn_context *cx, tn_dtype dtype, tn_shape shape, double low, double high);      /* uniform in [low, high) */
TN_API tn_tensor *tn_randn(tn_context *cx, tn_dtype dtype, tn_shape shape);                              /* normal, mean 0, deviation 1 */
TN_API tn_tensor *tn_randint(tn_context *cx, tn_dtype dtype, tn_shape shape, int64_t low, int64_t high); /* low .. high-1, likewise */

/* A tensor that shares `t`'s storage, `offset` elements after t's first, with one stride an axis. Every reachable element must lie in the
 * storage. */
TN_API tn_tensor *tn_alias(tn_tensor *t, tn_shape shape, const int64_t *stride, int64_t offset);

/* ---- ownership ---- */

/* Takes a reference of the caller's own, so that t outlives its scope. Returns t. */
TN_API tn_tensor *tn_retain(tn_tensor *t);
/* Gives back a retained reference or, where the caller holds none, the scope's: the tensor is gone early. */
TN_API void tn_release(tn_tensor *t);

/* ---- moving data ---- */

TN_API bool tn_to_data(const tn_tensor *t, void *host_data, size_t n_bytes); /* n_bytes must be tn_bytes(t); row-major order */
TN_API bool tn_set_data(tn_tensor *t, const void *host_data, size_t n_bytes);
TN_API double tn_item(const tn_tensor *t); /* the one element of t as a double; 0 on error */
TN_API double tn_item_at(const tn_tensor *t, tn_shape index);

/* In-place writes. They count as a new version: a backward that needs the old values will say so, and so will an op that is
 * to go onto the tape with an input that an earlier op made and that was overwritten since. */
TN_API tn_tensor *tn_fill(tn_tensor *t, double value);
TN_API tn_tensor *tn_assign(tn_tensor *destination, const tn_tensor *source); /* broadcasts, converts dtype */
TN_API tn_tensor *tn_fill_uniform(tn_tensor *t, double low, double high);
TN_API tn_tensor *tn_fill_normal(tn_tensor *t, double mean, double deviation);
/* Initialisers for weights [out, in]: fan_in is the last axis, fan_out the first (a vector has both equal). */
TN_API tn_tensor *tn_fill_xavier_uniform(tn_tensor *t, double gain);
TN_API tn_tensor *tn_fill_xavier_normal(tn_tensor *t, double gain);
TN_API tn_tensor *tn_fill_kaiming_uniform(tn_tensor *t, double gain);
TN_API tn_tensor *tn_fill_kaiming_normal(tn_tensor *t, double gain);
/* How often t's storage was written since it was made. */
TN_API uint64_t tn_version_of(const tn_tensor *t);
/* Say so after writing to t->data by hand. */
TN_API void tn_mark_written(tn_tensor *t);

/* ---- the random stream ---- */

typedef struct tn_rng_state {
    uint64_t seed, counter; /* a checkpoint of both restarts the stream bit for bit */
} tn_rng_state;
TN_API tn_rng_state tn_rng_get(const tn_context *cx);
TN_API void tn_rng_set(tn_context *cx, tn_rng_state state);

/* ---- reading ---- */

/* Writes dtype, shape and values (long axes shortened) as text. */
TN_API bool tn_print(FILE *stream, const tn_tensor *t);
/* "f32[8,128,64]" into buffer; returns buffer. */
TN_API const char *tn_describe(const tn_tensor *t, char *buffer, size_t n_bytes);

#ifdef __cplusplus
}
#endif
#endif
