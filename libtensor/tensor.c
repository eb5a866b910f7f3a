#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "allocator_internal.h"
#include "bf16.h"
#include "context_internal.h"
#include "graph.h"

/* ---- dtypes ---- */

static const struct {
    const char *name;
    size_t size;
} dtypes[TN_DTYPE_COUNT] = {
    [TN_F64] = { "f64", 8 }, [TN_F32] = { "f32", 4 }, [TN_BF16] = { "bf16", 2 }, [TN_I64] = { "i64", 8 },
    [TN_I32] = { "i32", 4 }, [TN_U8] = { "u8", 1 },   [TN_BOOL] = { "bool", 1 },
};

size_t tn_dtype_size(tn_dtype dtype) { return (unsigned)dtype < TN_DTYPE_COUNT ? dtypes[dtype].size : 0; }
const char *tn_dtype_name(tn_dtype dtype) { return (unsigned)dtype < TN_DTYPE_COUNT ? dtypes[dtype].name : "no dtype"; }
bool tn_dtype_is_float(tn_dtype dtype) { return dtype == TN_F64 || dtype == TN_F32 || dtype == TN_BF16; }

bool tn_dtype_parse(const char *name, tn_dtype *dtype) {
    for (int i = 0; name && i < TN_DTYPE_COUNT; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            *dtype = (tn_dtype)i;
            return true;
        }
    return false;
}

/* The enum lists each kind from wide to narrow, floats first, so the lower value wins. */
tn_dtype tn_dtype_promote(tn_dtype a, tn_dtype b) { return a < b ? a : b; }

/* ---- shapes ---- */

int64_t tn_shape_numel(const tn_shape *shape) {
    if (shape->axes < 0 || shape->axes > TN_MAX_AXES) return -1;
    int64_t numel = 1;
    bool empty = false;
    for (int i = 0; i < shape->axes; i++) {
        if (shape->size[i] < 0) return -1;
        if (shape->size[i] == 0) empty = true;
        else if (__builtin_mul_overflow(numel, shape->size[i], &numel)) return -1;
    }
    /* Eight bytes an element at most, so that byte counts fit as well. */
    if (numel > INT64_MAX / 16) return -1;
    return empty ? 0 : numel;
}

tn_shape tn_shape_of(const tn_tensor *t) {
    tn_shape shape = { 0 };
    if (!t) return shape;
    shape.axes = t->axes;
    memcpy(shape.size, t->shape, sizeof shape.size);
    return shape;
}

bool tn_same_shape(const tn_tensor *a, const tn_tensor *b) {
    if (!a || !b || a->axes != b->axes) return false;
    for (int i = 0; i < a->axes; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

bool tn_is_contiguous(const tn_tensor *t) {
    if (!t) return false;
    int64_t expected = 1;
    for (int i = t->axes - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != expected && t->numel > 0) return false;
        expected *= t->shape[i];
    }
    return true;
}

size_t tn_bytes(const tn_tensor *t) { return t ? (size_t)t->numel * tn_dtype_size(t->dtype) : 0; }

const char *tn_describe(const tn_tensor *t, char *buffer, size_t n_bytes) {
    if (!n_bytes) return buffer;
    if (!t) {
        snprintf(buffer, n_bytes, "none");
        return buffer;
    }
    size_t at = (size_t)snprintf(buffer, n_bytes, "%s[", tn_dtype_name(t->dtype));
    for (int i = 0; i < t->axes && at < n_bytes; i++)
        at += (size_t)snprintf(buffer + at, n_bytes - at, "%s%" PRId64, i ? "," : "", t->shape[i]);
    if (at < n_bytes) snprintf(buffer + at, n_bytes - at, "]");
    return buffer;
}

static void describe_shape(const tn_shape *shape, char *buffer, size_t n_bytes) {
    size_t at = (size_t)snprintf(buffer, n_bytes, "[");
    for (int i = 0; i < shape->axes && i < TN_MAX_AXES && at < n_bytes; i++)
        at += (size_t)snprintf(buffer + at, n_bytes - at, "%s%" PRId64, i ? "," : "", shape->size[i]);
    if (at < n_bytes) snprintf(buffer + at, n_bytes - at, "]");
}

/* ---- storage and tensors ---- */

static tn_owner owner_now(const tn_context *cx, const char *otherwise) {
    return (tn_owner){ cx->op ? cx->op : otherwise, tn_label_path(cx->label), cx->pass };
}

static tn_storage *new_storage(tn_context *cx, tn_dtype dtype, const tn_shape *shape, int64_t numel) {
    tn_storage *storage = tn_host_pool_take(&cx->pool, sizeof *storage);
    if (!storage) return tn_fail(cx, TN_ERR_HOST_MEMORY, cx->op ? cx->op : "tensor", "the host has no memory left");
    tn_owner owner = owner_now(cx, "tensor");
    tn_allocator_next_form(cx->allocator, dtype, shape, numel);
    storage->block = tn_allocator_take(cx->allocator, (size_t)numel * dtypes[dtype].size, cx->stream, cx->category, &owner);
    if (!storage->block) {
        tn_host_pool_give(&cx->pool, storage, sizeof *storage);
        return tn_fail(cx, tn_allocator_error_status(cx->allocator), owner.op, "%s", tn_allocator_error(cx->allocator));
    }
    storage->version = 0;
    storage->references = 1;
    storage->n_saved = 0;
    return storage;
}

static void drop_storage(tn_context *cx, tn_storage *storage) {
    if (--storage->references) return;
    const char *op = cx->debug ? tn_block_owner(storage->block)->op : NULL;
    if (!tn_allocator_give(cx->allocator, storage->block))
        tn_fail(cx, tn_allocator_error_status(cx->allocator), op ? op : "tensor", "%s", tn_allocator_error(cx->allocator));
    tn_host_pool_give(&cx->pool, storage, sizeof *storage);
}

/* Takes over the caller's reference to storage, on failure too. */
static tn_impl *new_impl(tn_context *cx, tn_storage *storage, bool loose) {
    tn_impl *t = tn_host_pool_take(&cx->pool, sizeof *t);
    if (!t) {
        drop_storage(cx, storage);
        return tn_fail(cx, TN_ERR_HOST_MEMORY, cx->op ? cx->op : "tensor", "the host has no memory left");
    }
    t->pub.cx = cx;
    t->storage = storage;
    t->previous = t->next = NULL;
    t->scope = NULL;
    t->references = 1;
    t->user_references = 0;
    t->tape = NULL;
    if (!loose) tn_scope_adopt(&t->pub);
    return t;
}

tn_tensor *tn_tensor_new(tn_context *cx, tn_dtype dtype, const tn_shape *shape, bool loose) {
    if (!tn_ready(cx)) return NULL;
    const char *call = cx->op ? cx->op : "tensor";
    if ((unsigned)dtype >= TN_DTYPE_COUNT) return tn_fail(cx, TN_ERR_DTYPE, call, "%d is no dtype", (int)dtype);
    int64_t numel = tn_shape_numel(shape);
    if (numel < 0) {
        char text[256];
        describe_shape(shape, text, sizeof text);
        return tn_fail(cx, TN_ERR_SHAPE, call, "shape %s (%d axes): wanted 0 to %d axes, no size below 0 and fewer than 2^59 elements",
                       text, shape->axes, TN_MAX_AXES);
    }
    tn_storage *storage = new_storage(cx, dtype, shape, numel);
    if (!storage) return NULL;
    tn_impl *t = new_impl(cx, storage, loose);
    if (!t) return NULL;
    t->pub.data = tn_block_data(storage->block);
    t->pub.numel = numel;
    t->pub.dtype = dtype;
    t->pub.axes = shape->axes;
    int64_t stride = 1;
    for (int i = shape->axes - 1; i >= 0; i--) {
        t->pub.shape[i] = shape->size[i];
        t->pub.stride[i] = stride;
        stride *= shape->size[i];
    }
    return &t->pub;
}

tn_tensor *tn_tensor_over(tn_context *cx, tn_block *block, tn_dtype dtype, const tn_shape *shape, const int64_t *stride, int64_t offset) {
    tn_storage *storage = tn_host_pool_take(&cx->pool, sizeof *storage);
    if (!storage) {
        tn_fail(cx, TN_ERR_HOST_MEMORY, tn_block_owner(block)->op, "the host has no memory left");
        tn_allocator_give(cx->allocator, block);
        return NULL;
    }
    *storage = (tn_storage){ .block = block, .references = 1 };
    tn_impl *t = new_impl(cx, storage, false);
    if (!t) return NULL;
    t->pub.data = (char *)tn_block_data(block) + offset;
    t->pub.dtype = dtype;
    t->pub.axes = shape->axes;
    t->pub.numel = tn_shape_numel(shape);
    for (int i = 0; i < shape->axes; i++) {
        t->pub.shape[i] = shape->size[i];
        t->pub.stride[i] = stride[i];
    }
    return &t->pub;
}

tn_tensor *tn_tensor_alias_new(tn_tensor *like, int axes, const int64_t *shape, const int64_t *stride, int64_t offset, bool loose) {
    tn_context *cx = like->cx;
    if (!tn_ready(cx)) return NULL;
    tn_storage *storage = tn_impl_of(like)->storage;
    storage->references++;
    tn_impl *t = new_impl(cx, storage, loose);
    if (!t) return NULL;
    t->pub.data = (char *)like->data + offset * (int64_t)dtypes[like->dtype].size;
    t->pub.dtype = like->dtype;
    t->pub.axes = axes;
    t->pub.numel = 1;
    for (int i = 0; i < axes; i++) {
        t->pub.shape[i] = shape[i];
        t->pub.stride[i] = stride[i];
        t->pub.numel *= shape[i];
    }
    return &t->pub;
}

void tn_tensor_free(tn_impl *t) {
    tn_context *cx = t->pub.cx;
    tn_scope_disown(&t->pub);
    if (t->tape) cx->tape_tensor_freed(cx, t);
    drop_storage(cx, t->storage);
    tn_host_pool_give(&cx->pool, t, sizeof *t);
}

tn_tensor *tn_retain(tn_tensor *t) {
    if (!t) return NULL;
    tn_impl_of(t)->user_references++;
    tn_scope_hold(t);
    return tn_reference(t);
}

void tn_release(tn_tensor *t) {
    if (!t) return;
    tn_impl *impl = tn_impl_of(t);
    if (impl->user_references > 0) {
        if (--impl->user_references == 0 && !tn_scope_owns(impl)) tn_scope_disown(t);
        tn_unreference(t);
    } else if (tn_scope_owns(impl)) {
        tn_scope_disown(t);
        tn_unreference(t);
    }
}

tn_tensor *tn_alias(tn_tensor *t, tn_shape shape, const int64_t *stride, int64_t offset) {
    if (!t || !tn_ready(t->cx)) return NULL;
    int64_t numel = tn_shape_numel(&shape);
    if (numel < 0) return tn_fail(t->cx, TN_ERR_SHAPE, "tn_alias", "not a shape: %d axes or a size out of range", shape.axes);
    if (!stride && shape.axes > 0) return tn_fail(t->cx, TN_ERR_ARGUMENT, "tn_alias", "no strides given");
    const tn_storage *storage = tn_impl_of(t)->storage;
    int64_t size = (int64_t)dtypes[t->dtype].size;
    int64_t first;
    if (__builtin_add_overflow(((char *)t->data - (char *)tn_block_data(storage->block)) / size, offset, &first))
        return tn_fail(t->cx, TN_ERR_ARGUMENT, "tn_alias", "offset %" PRId64 " lies outside the storage", offset);
    int64_t low = first, high = first;
    for (int i = 0; i < shape.axes && numel > 0; i++) {
        int64_t span;
        if (__builtin_mul_overflow(stride[i], shape.size[i] - 1, &span) ||
            (span > 0 ? __builtin_add_overflow(high, span, &high) : __builtin_add_overflow(low, span, &low)))
            return tn_fail(t->cx, TN_ERR_SHAPE, "tn_alias", "the strides overflow");
    }
    int64_t n_stored = (int64_t)tn_block_requested(storage->block) / size;
    if (first < 0 || first > n_stored || (numel > 0 && (low < 0 || high >= n_stored)))
        return tn_fail(t->cx, TN_ERR_SHAPE, "tn_alias", "elements %" PRId64 " to %" PRId64 " of a storage of %" PRId64, low, high,
                       n_stored);
    return tn_tensor_alias_new(t, shape.axes, shape.size, stride, offset, false);
}

/* ---- making tensors ---- */

/* Names the call as the owner of what it allocates, unless an op is running it. */
static const char *enter_call(tn_context *cx, const char *name) {
    const char *before = cx->op;
    if (!before) cx->op = name;
    return before;
}

static tn_tensor *new_named(tn_context *cx, const char *call, tn_dtype dtype, tn_shape shape) {
    if (!tn_ready(cx)) return NULL;
    const char *before = enter_call(cx, call);
    tn_tensor *t = tn_tensor_new(cx, dtype, &shape, false);
    cx->op = before;
    return t;
}

/* After a device call on a tensor just made: the tensor, or NULL with the error and the tensor gone. */
static tn_tensor *made(tn_tensor *t, tn_status status, const char *call) {
    if (status == TN_OK) return t;
    tn_context *cx = t->cx;
    tn_release(t);
    return TN_FAIL_DEVICE(cx, status, call);
}

tn_tensor *tn_empty(tn_context *cx, tn_dtype dtype, tn_shape shape) { return new_named(cx, "tn_empty", dtype, shape); }

tn_tensor *tn_full(tn_context *cx, tn_dtype dtype, tn_shape shape, double value) {
    tn_tensor *t = new_named(cx, "tn_full", dtype, shape);
    return t ? made(t, cx->device->interface->fill(cx->device, t, value, cx->stream), "tn_full") : NULL;
}

tn_tensor *tn_zeros(tn_context *cx, tn_dtype dtype, tn_shape shape) {
    tn_tensor *t = new_named(cx, "tn_zeros", dtype, shape);
    return t ? made(t, cx->device->interface->fill(cx->device, t, 0, cx->stream), "tn_zeros") : NULL;
}

/* Can dtype hold the integers low .. last? Floats may round them. */
static bool holds_integers(tn_context *cx, const char *call, tn_dtype dtype, int64_t low, int64_t last) {
    static const struct {
        int64_t low, last;
    } ranges[TN_DTYPE_COUNT] = { [TN_I32] = { INT32_MIN, INT32_MAX }, [TN_U8] = { 0, UINT8_MAX }, [TN_BOOL] = { 0, 1 } };
    if (dtype != TN_I32 && dtype != TN_U8 && dtype != TN_BOOL) return true;
    if (low >= ranges[dtype].low && last <= ranges[dtype].last) return true;
    return tn_fail(cx, TN_ERR_ARGUMENT, call, "%s can't hold the numbers from %" PRId64 " to %" PRId64, tn_dtype_name(dtype), low, last);
}

tn_tensor *tn_arange(tn_context *cx, tn_dtype dtype, int64_t n) {
    if (!tn_ready(cx) || (n > 0 && !holds_integers(cx, "tn_arange", dtype, 0, n - 1))) return NULL;
    tn_tensor *t = new_named(cx, "tn_arange", dtype, TN_SHAPE(n));
    return t ? made(t, cx->device->interface->arange(cx->device, t, cx->stream), "tn_arange") : NULL;
}

tn_tensor *tn_from_data(tn_context *cx, tn_dtype dtype, tn_shape shape, const void *host_data) {
    if (!tn_ready(cx)) return NULL;
    if (!host_data && tn_shape_numel(&shape) > 0) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_from_data", "no data given");
    tn_tensor *t = new_named(cx, "tn_from_data", dtype, shape);
    if (!t || t->numel == 0) return t;
    return made(t, cx->device->interface->copy_from_host(cx->device, t->data, host_data, tn_bytes(t), cx->stream), "tn_from_data");
}

tn_tensor *tn_dense(tn_tensor *t, tn_dtype dtype) {
    return t->dtype == dtype && tn_is_contiguous(t) ? tn_reference(t) : tn_dense_copy(t, dtype);
}

tn_tensor *tn_dense_copy(tn_tensor *t, tn_dtype dtype) {
    tn_context *cx = t->cx;
    tn_shape shape = tn_shape_of(t);
    tn_tensor *copy = tn_tensor_new(cx, dtype, &shape, true);
    if (!copy) return NULL;
    tn_status status = cx->device->interface->copy(cx->device, copy, t, cx->stream);
    if (status == TN_OK) return copy;
    tn_unreference(copy);
    return TN_FAIL_DEVICE(cx, status, cx->op ? cx->op : "copy");
}

/* ---- random numbers ---- */

tn_rng_state tn_rng_get(const tn_context *cx) { return cx ? cx->rng : (tn_rng_state){ 0, 0 }; }
void tn_rng_set(tn_context *cx, tn_rng_state state) {
    if (cx) cx->rng = state;
}

void tn_rng_from(tn_context *cx, tn_tensor *place) {
    if (!cx) return;
    bool fine = !place || (place->cx == cx && place->dtype == TN_I64 && place->numel == 1);
    if (!fine) tn_fail(cx, TN_ERR_ARGUMENT, "tn_rng_from", "wanted an i64 scalar of this context");
    cx->rng_place = fine ? place : NULL;
}

/* Fills t with fresh draws; every element takes one draw, so the stream moves on by numel. */
static tn_tensor *draw(tn_tensor *t, const char *call, tn_random_spec spec) {
    tn_context *cx = t->cx;
    spec.seed = cx->rng.seed;
    spec.counter = cx->rng.counter;
    tn_tensor *dense = t;
    if (!tn_is_contiguous(t)) {
        tn_shape shape = tn_shape_of(t);
        dense = tn_tensor_new(cx, t->dtype, &shape, true);
        if (!dense) return NULL;
    }
    tn_status status = cx->device->interface->random(cx->device, dense, &spec, cx->stream);
    if (dense != t) {
        if (status == TN_OK) status = cx->device->interface->copy(cx->device, t, dense, cx->stream);
        tn_unreference(dense);
    }
    if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, call);
    cx->rng.counter += (uint64_t)t->numel;
    return t;
}

static tn_tensor *draw_new(tn_tensor *t, const char *call, tn_random_spec spec) {
    if (!t) return NULL;
    if (draw(t, call, spec)) return t;
    tn_release(t);
    return NULL;
}

static bool wants_float(tn_context *cx, const char *call, tn_dtype dtype) {
    if (!tn_ready(cx)) return false;
    if (tn_dtype_is_float(dtype)) return true;
    tn_fail(cx, TN_ERR_DTYPE, call, "got %s, wanted f64, f32 or bf16", tn_dtype_name(dtype));
    return false;
}

tn_tensor *tn_rand(tn_context *cx, tn_dtype dtype, tn_shape shape, double low, double high) {
    if (!wants_float(cx, "tn_rand", dtype)) return NULL;
    return draw_new(new_named(cx, "tn_rand", dtype, shape), "tn_rand", (tn_random_spec){ .kind = TN_RANDOM_UNIFORM, .a = low, .b = high });
}

tn_tensor *tn_randn(tn_context *cx, tn_dtype dtype, tn_shape shape) {
    if (!wants_float(cx, "tn_randn", dtype)) return NULL;
    return draw_new(new_named(cx, "tn_randn", dtype, shape), "tn_randn", (tn_random_spec){ .kind = TN_RANDOM_NORMAL, .a = 0, .b = 1 });
}

tn_tensor *tn_randint(tn_context *cx, tn_dtype dtype, tn_shape shape, int64_t low, int64_t high) {
    if (!tn_ready(cx)) return NULL;
    if (low >= high) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_randint", "low %" PRId64 " is not below high %" PRId64, low, high);
    if (!holds_integers(cx, "tn_randint", dtype, low, high - 1)) return NULL;
    return draw_new(new_named(cx, "tn_randint", dtype, shape), "tn_randint",
                    (tn_random_spec){ .kind = TN_RANDOM_INTEGER, .low = low, .high = high });
}

/* ---- in-place writes ---- */

uint64_t tn_version_of(const tn_tensor *t) { return t ? tn_impl_of(t)->storage->version : 0; }
void tn_mark_written(tn_tensor *t) {
    if (t) tn_impl_of(t)->storage->version++;
}

/* Two axes that share elements make a write ambiguous. */
static bool writable(tn_tensor *t, const char *call) {
    if (!t || !tn_ready(t->cx)) return false;
    for (int i = 0; t->numel > 0 && i < t->axes; i++)
        if (t->stride[i] == 0 && t->shape[i] > 1) {
            tn_fail(t->cx, TN_ERR_ARGUMENT, call, "axis %d is broadcast (stride 0): several elements share one place", i);
            return false;
        }
    return true;
}

static tn_tensor *written(tn_tensor *t, tn_status status, const char *call) {
    if (status != TN_OK) return TN_FAIL_DEVICE(t->cx, status, call);
    tn_mark_written(t);
    return t;
}

tn_tensor *tn_fill(tn_tensor *t, double value) {
    if (!writable(t, "tn_fill")) return NULL;
    return written(t, t->cx->device->interface->fill(t->cx->device, t, value, t->cx->stream), "tn_fill");
}

/* For two views of one storage: what is read must not have been written a moment before. */
static tn_tensor *assign_through_copy(tn_tensor *destination, const tn_tensor *source) {
    tn_context *cx = destination->cx;
    tn_shape shape = tn_shape_of(source);
    tn_tensor *copy = tn_tensor_new(cx, source->dtype, &shape, true);
    if (!copy) return NULL;
    tn_status status = cx->device->interface->copy(cx->device, copy, source, cx->stream);
    tn_tensor *result = status == TN_OK ? tn_assign(destination, copy) : TN_FAIL_DEVICE(cx, status, "tn_assign");
    tn_unreference(copy);
    return result;
}

tn_tensor *tn_assign(tn_tensor *destination, const tn_tensor *source) {
    if (!source || !writable(destination, "tn_assign")) return NULL;
    tn_context *cx = destination->cx;
    char to[128], from[128];
    if (source->cx != cx) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_assign", "the tensors belong to two contexts");
    if (tn_impl_of(source)->storage == tn_impl_of(destination)->storage) return assign_through_copy(destination, source);
    tn_tensor view = *source;
    int missing = destination->axes - source->axes;
    bool fits = missing >= 0;
    for (int i = destination->axes - 1; fits && i >= 0; i--) {
        int64_t size = i >= missing ? source->shape[i - missing] : 1;
        view.stride[i] = size == 1 ? 0 : source->stride[i - missing];
        fits = size == destination->shape[i] || size == 1;
    }
    if (!fits)
        return tn_fail(cx, TN_ERR_SHAPE, "tn_assign", "got %s into %s, wanted shapes that broadcast",
                       tn_describe(source, from, sizeof from), tn_describe(destination, to, sizeof to));
    view.axes = destination->axes;
    view.numel = destination->numel;
    memcpy(view.shape, destination->shape, sizeof view.shape);
    return written(destination, cx->device->interface->copy(cx->device, destination, &view, cx->stream), "tn_assign");
}

static tn_tensor *fill_random(tn_tensor *t, const char *call, tn_random_kind kind, double a, double b) {
    if (!t || !wants_float(t->cx, call, t->dtype) || !writable(t, call)) return NULL;
    const char *before = enter_call(t->cx, call);
    tn_tensor *result = draw(t, call, (tn_random_spec){ .kind = kind, .a = a, .b = b });
    t->cx->op = before;
    if (result) tn_mark_written(t);
    return result;
}

tn_tensor *tn_fill_uniform(tn_tensor *t, double low, double high) {
    return fill_random(t, "tn_fill_uniform", TN_RANDOM_UNIFORM, low, high);
}
tn_tensor *tn_fill_normal(tn_tensor *t, double mean, double deviation) {
    return fill_random(t, "tn_fill_normal", TN_RANDOM_NORMAL, mean, deviation);
}

static double fan_in(const tn_tensor *t) { return t->axes ? (double)t->shape[t->axes - 1] : 1; }
static double fan_out(const tn_tensor *t) { return t->axes ? (double)t->shape[0] : 1; }

tn_tensor *tn_fill_xavier_uniform(tn_tensor *t, double gain) {
    if (!t) return NULL;
    double bound = gain * sqrt(6.0 / (fan_in(t) + fan_out(t)));
    return tn_fill_uniform(t, -bound, bound);
}
tn_tensor *tn_fill_xavier_normal(tn_tensor *t, double gain) {
    return t ? tn_fill_normal(t, 0, gain * sqrt(2.0 / (fan_in(t) + fan_out(t)))) : NULL;
}
tn_tensor *tn_fill_kaiming_uniform(tn_tensor *t, double gain) {
    if (!t) return NULL;
    double bound = gain * sqrt(3.0 / fan_in(t));
    return tn_fill_uniform(t, -bound, bound);
}
tn_tensor *tn_fill_kaiming_normal(tn_tensor *t, double gain) { return t ? tn_fill_normal(t, 0, gain / sqrt(fan_in(t))) : NULL; }

/* ---- moving data ---- */

static bool buffer_fits(const tn_tensor *t, const void *host_data, size_t n_bytes, const char *call) {
    if (n_bytes != tn_bytes(t))
        return tn_fail(t->cx, TN_ERR_ARGUMENT, call, "the buffer has %zu bytes, the tensor %zu", n_bytes, tn_bytes(t));
    return host_data || n_bytes == 0 || tn_fail(t->cx, TN_ERR_ARGUMENT, call, "no buffer given");
}

bool tn_to_data(const tn_tensor *t, void *host_data, size_t n_bytes) {
    if (!t || !tn_ready(t->cx) || !buffer_fits(t, host_data, n_bytes, "tn_to_data")) return false;
    tn_context *cx = t->cx;
    if (n_bytes == 0) return true;
    tn_tensor *dense = tn_dense((tn_tensor *)t, t->dtype);
    if (!dense) return false;
    tn_status status = cx->device->interface->copy_to_host(cx->device, host_data, dense->data, n_bytes, cx->stream);
    tn_unreference(dense);
    TN_FAIL_DEVICE(cx, status, "tn_to_data");
    return status == TN_OK;
}

bool tn_set_data(tn_tensor *t, const void *host_data, size_t n_bytes) {
    if (!writable(t, "tn_set_data") || !buffer_fits(t, host_data, n_bytes, "tn_set_data")) return false;
    tn_context *cx = t->cx;
    if (n_bytes == 0) return true;
    if (!tn_is_contiguous(t)) {
        tn_tensor *dense = tn_from_data(cx, t->dtype, tn_shape_of(t), host_data);
        bool fine = dense && tn_assign(t, dense);
        tn_release(dense);
        return fine;
    }
    return written(t, cx->device->interface->copy_from_host(cx->device, t->data, host_data, n_bytes, cx->stream), "tn_set_data") != NULL;
}

static double element_as_double(tn_dtype dtype, const void *element) {
    switch (dtype) {
    case TN_F64: return *(const double *)element;
    case TN_F32: return (double)*(const float *)element;
    case TN_BF16: return (double)tn_bf16_to_f32(*(const tn_bf16 *)element);
    case TN_I64: return (double)*(const int64_t *)element;
    case TN_I32: return (double)*(const int32_t *)element;
    case TN_U8: return (double)*(const uint8_t *)element;
    case TN_BOOL: return *(const uint8_t *)element ? 1 : 0;
    default: return 0;
    }
}

static double read_element(const tn_tensor *t, int64_t offset, const char *call) {
    tn_context *cx = t->cx;
    size_t size = dtypes[t->dtype].size;
    union {
        double f64;
        char bytes[8];
    } element;
    tn_status status =
        cx->device->interface->copy_to_host(cx->device, element.bytes, (const char *)t->data + offset * (int64_t)size, size, cx->stream);
    if (status == TN_OK) return element_as_double(t->dtype, element.bytes);
    TN_FAIL_DEVICE(cx, status, call);
    return 0;
}

double tn_item(const tn_tensor *t) {
    if (!t || !tn_ready(t->cx)) return 0;
    if (t->numel == 1) return read_element(t, 0, "tn_item");
    char text[128];
    tn_fail(t->cx, TN_ERR_SHAPE, "tn_item", "got %s, wanted one element", tn_describe(t, text, sizeof text));
    return 0;
}

double tn_item_at(const tn_tensor *t, tn_shape index) {
    if (!t || !tn_ready(t->cx)) return 0;
    int64_t offset = 0;
    bool inside = index.axes == t->axes;
    for (int i = 0; inside && i < t->axes; i++) {
        inside = index.size[i] >= 0 && index.size[i] < t->shape[i];
        offset += index.size[i] * t->stride[i];
    }
    if (inside) return read_element(t, offset, "tn_item_at");
    char at[128], text[128];
    describe_shape(&index, at, sizeof at);
    tn_fail(t->cx, TN_ERR_ARGUMENT, "tn_item_at", "index %s lies outside %s", at, tn_describe(t, text, sizeof text));
    return 0;
}

/* ---- printing ---- */

#define PRINT_EDGE 3
#define PRINT_WHOLE 8

static void print_element(FILE *stream, tn_dtype dtype, const void *element) {
    if (dtype == TN_I64) fprintf(stream, "%" PRId64, *(const int64_t *)element); /* not every one is a double */
    else fprintf(stream, tn_dtype_is_float(dtype) ? "%.5g" : "%.0f", element_as_double(dtype, element));
}

static void print_axis(FILE *stream, const tn_tensor *t, const char *values, int axis, int64_t offset) {
    if (axis == t->axes) {
        print_element(stream, t->dtype, values + offset * (int64_t)dtypes[t->dtype].size);
        return;
    }
    int64_t inner = 1;
    for (int i = axis + 1; i < t->axes; i++) inner *= t->shape[i];
    bool last = axis == t->axes - 1;
    fputc('[', stream);
    for (int64_t i = 0; i < t->shape[axis]; i++) {
        if (i > 0) fprintf(stream, last ? ", " : ",\n%*s", last ? 0 : axis + 1, "");
        if (t->shape[axis] > PRINT_WHOLE && i == PRINT_EDGE) {
            fputs("...", stream);
            i = t->shape[axis] - PRINT_EDGE - 1;
            continue;
        }
        print_axis(stream, t, values, axis + 1, offset + i * inner);
    }
    fputc(']', stream);
}

bool tn_print(FILE *stream, const tn_tensor *t) {
    if (!stream || !t || !tn_ready(t->cx)) return false;
    char text[128];
    size_t n_bytes = tn_bytes(t);
    char *values = tn_host_alloc(n_bytes ? n_bytes : 1);
    if (!values) return tn_fail(t->cx, TN_ERR_HOST_MEMORY, "tn_print", "the host has no memory left");
    bool fine = tn_to_data(t, values, n_bytes);
    if (fine) {
        fprintf(stream, "%s ", tn_describe(t, text, sizeof text));
        print_axis(stream, t, values, 0, 0);
        fputc('\n', stream);
    }
    tn_host_free(values);
    return fine;
}

/* ---- categories ---- */

void tn_memory_retag(tn_tensor *t, tn_category category) {
    if (t && (unsigned)category < TN_CATEGORY_COUNT) tn_allocator_retag(t->cx->allocator, tn_impl_of(t)->storage->block, category);
}

tn_category tn_memory_category_of(const tn_tensor *t) {
    return t ? tn_block_category(tn_impl_of(t)->storage->block) : TN_CATEGORY_TEMPORARY;
}
