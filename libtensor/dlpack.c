#include "dlpack.h"

#include <inttypes.h>
#include <string.h>

#include "context_internal.h"
#include "device_cuda.h"

static const tn_dl_dtype dtypes[TN_DTYPE_COUNT] = {
    [TN_F64] = { TN_DL_FLOAT, 64, 1 }, [TN_F32] = { TN_DL_FLOAT, 32, 1 }, [TN_BF16] = { TN_DL_BFLOAT, 16, 1 },
    [TN_I64] = { TN_DL_INT, 64, 1 },   [TN_I32] = { TN_DL_INT, 32, 1 },   [TN_U8] = { TN_DL_UINT, 8, 1 },
    [TN_BOOL] = { TN_DL_BOOL, 8, 1 },
};

/* ---- export ---- */

/* What the consumer holds. Its memory is the process's, not the context's: it may outlive the context. */
typedef struct tn_dl_export {
    union {
        tn_dl_managed plain;
        tn_dl_managed_versioned versioned;
    } as;
    tn_context *cx; /* NULL once the context is closed */
    tn_tensor *t;   /* referenced */
    int64_t shape[TN_MAX_AXES], stride[TN_MAX_AXES];
} tn_dl_export;

static void context_closed(void *user) {
    tn_dl_export *export = user;
    tn_unreference(export->t);
    export->cx = NULL;
}

static void end_export(tn_dl_export *export) {
    if (export->cx) {
        tn_context_forget_close(export->cx, export);
        tn_unreference(export->t);
    }
    tn_host_free(export);
}

static void delete_plain(tn_dl_managed *self) { end_export(self->manager); }
static void delete_versioned(tn_dl_managed_versioned *self) { end_export(self->manager); }

static tn_dl_device device_of(tn_context *cx) {
    bool cuda = cx->device->kind == TN_DEVICE_CUDA;
    return (tn_dl_device){ cuda ? TN_DL_CUDA : TN_DL_CPU, cuda ? tn_cuda_ordinal(cx->device) : 0 };
}

static tn_dl_export *begin_export(tn_tensor *t, const char *op, tn_dl_tensor **to) {
    if (!t || !tn_ready(t->cx)) return NULL;
    tn_context *cx = t->cx;
    if (cx->device->dry_run) return tn_fail(cx, TN_ERR_UNSUPPORTED, op, "a dry run has no memory that others could read");
    tn_dl_export *export = tn_host_calloc(sizeof *export);
    if (!export || !tn_context_on_close(cx, context_closed, export)) {
        tn_host_free(export);
        return tn_fail(cx, TN_ERR_HOST_MEMORY, op, "the host has no memory left");
    }
    export->cx = cx;
    export->t = tn_reference(t);
    memcpy(export->shape, t->shape, sizeof export->shape);
    memcpy(export->stride, t->stride, sizeof export->stride);
    *to = strcmp(op, "tn_to_dlpack") == 0 ? &export->as.plain.tensor : &export->as.versioned.tensor;
    **to = (tn_dl_tensor){ .data = t->data,
                           .device = device_of(cx),
                           .axes = t->axes,
                           .dtype = dtypes[t->dtype],
                           .shape = export->shape,
                           .stride = export->stride };
    return export;
}

tn_dl_managed *tn_to_dlpack(tn_tensor *t) {
    tn_dl_tensor *to;
    tn_dl_export *export = begin_export(t, "tn_to_dlpack", &to);
    if (!export) return NULL;
    export->as.plain.manager = export;
    export->as.plain.deleter = delete_plain;
    return &export->as.plain;
}

tn_dl_managed_versioned *tn_to_dlpack_versioned(tn_tensor *t) {
    tn_dl_tensor *to;
    tn_dl_export *export = begin_export(t, "tn_to_dlpack_versioned", &to);
    if (!export) return NULL;
    export->as.versioned.version.major = TN_DL_MAJOR;
    export->as.versioned.version.minor = TN_DL_MINOR;
    export->as.versioned.manager = export;
    export->as.versioned.deleter = delete_versioned;
    return &export->as.versioned;
}

/* ---- import ---- */

typedef struct tn_dl_import {
    tn_dtype dtype;
    tn_shape shape;
    int64_t stride[TN_MAX_AXES];
    int64_t low, high; /* the elements it reaches lie in [low, high) of data */
    char *data;
} tn_dl_import;

static bool check_device(tn_context *cx, const char *op, tn_dl_device device) {
    if (cx->device->dry_run) return tn_fail(cx, TN_ERR_UNSUPPORTED, op, "a dry run has no memory of its own to put beside other memory");
    tn_dl_device wanted = device_of(cx);
    bool same = wanted.type == TN_DL_CPU ? device.type == TN_DL_CPU || device.type == TN_DL_CUDA_HOST
                                         : (device.type == TN_DL_CUDA && device.id == wanted.id) || device.type == TN_DL_CUDA_MANAGED;
    return same || tn_fail(cx, TN_ERR_UNSUPPORTED, op, "memory of device type %d, number %d; the context's device is type %d, number %d",
                           (int)device.type, (int)device.id, (int)wanted.type, (int)wanted.id);
}

static bool read_dtype(tn_context *cx, const char *op, tn_dl_dtype dtype, tn_dtype *found) {
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        if (dtypes[i].code == dtype.code && dtypes[i].bits == dtype.bits && dtypes[i].lanes == dtype.lanes) {
            *found = (tn_dtype)i;
            return true;
        }
    return tn_fail(cx, TN_ERR_DTYPE, op, "type code %d of %d bits and %d lanes, wanted one of f64 f32 bf16 i64 i32 u8 bool", dtype.code,
                   dtype.bits, dtype.lanes);
}

static bool read_shape(tn_context *cx, const char *op, const tn_dl_tensor *from, tn_dl_import *import, int64_t *numel) {
    if (from->axes < 0 || from->axes > TN_MAX_AXES || (from->axes > 0 && !from->shape))
        return tn_fail(cx, TN_ERR_SHAPE, op, "%d axes, wanted 0 to %d and a shape", (int)from->axes, TN_MAX_AXES);
    import->shape.axes = from->axes;
    if (from->axes) memcpy(import->shape.size, from->shape, (size_t)from->axes * sizeof *from->shape);
    *numel = tn_shape_numel(&import->shape);
    if (*numel < 0) return tn_fail(cx, TN_ERR_SHAPE, op, "a shape with a size below 0, or that overflows");
    return true;
}

/* Strides, and how far they reach to both sides of the first element. */
static bool read_strides(tn_context *cx, const char *op, const tn_dl_tensor *from, tn_dl_import *import, int64_t numel) {
    int64_t next = 1, size = (int64_t)tn_dtype_size(import->dtype);
    for (int i = import->shape.axes - 1; i >= 0; i--) {
        import->stride[i] = from->stride ? from->stride[i] : next;
        if (numel > 0) next *= import->shape.size[i];
    }
    if (numel == 0) return true;
    import->high = 1;
    for (int i = 0; i < import->shape.axes; i++) {
        int64_t span;
        bool over = __builtin_mul_overflow(import->stride[i], import->shape.size[i] - 1, &span) ||
                    (span > 0 ? __builtin_add_overflow(import->high, span, &import->high)
                              : __builtin_add_overflow(import->low, span, &import->low));
        if (over || import->high > INT64_MAX / 16 || import->low < -INT64_MAX / 16)
            return tn_fail(cx, TN_ERR_SHAPE, op, "the strides overflow");
    }
    if (!from->data) return tn_fail(cx, TN_ERR_ARGUMENT, op, "NULL where %" PRId64 " elements should be", numel);
    import->data = (char *)from->data + from->byte_offset;
    if ((uintptr_t)import->data % (uintptr_t)size)
        return tn_fail(cx, TN_ERR_ARGUMENT, op, "the first element is not aligned to its %d bytes", (int)size);
    return true;
}

/* Once there is a tensor `release` will get `user` back. */
static tn_tensor *import_tensor(tn_context *cx, const char *op, const tn_dl_tensor *from, void (*release)(void *), void *user) {
    tn_dl_import import = { 0 };
    int64_t numel = 0;
    if (!check_device(cx, op, from->device) || !read_dtype(cx, op, from->dtype, &import.dtype) ||
        !read_shape(cx, op, from, &import, &numel) || !read_strides(cx, op, from, &import, numel))
        return NULL;
    int64_t size = (int64_t)tn_dtype_size(import.dtype);
    tn_owner owner = { op, tn_label_path(cx->label), cx->pass };
    tn_block *block = tn_allocator_adopt(cx->allocator, import.data ? import.data + import.low * size : NULL,
                                         (size_t)((import.high - import.low) * size), cx->category, &owner);
    if (!block) return tn_fail(cx, tn_allocator_error_status(cx->allocator), op, "%s", tn_allocator_error(cx->allocator));
    tn_tensor *t = tn_tensor_over(cx, block, import.dtype, &import.shape, import.stride, -import.low * size);
    if (t) tn_block_release_to(block, release, user);
    return t;
}

static void release_plain(void *user) {
    tn_dl_managed *managed = user;
    if (managed->deleter) managed->deleter(managed);
}

static void release_versioned(void *user) {
    tn_dl_managed_versioned *managed = user;
    if (managed->deleter) managed->deleter(managed);
}

tn_tensor *tn_from_dlpack(tn_context *cx, tn_dl_managed *managed) {
    if (!tn_ready(cx) || !managed) return NULL;
    return import_tensor(cx, "tn_from_dlpack", &managed->tensor, release_plain, managed);
}

/* A tensor can always be written to, so what must not be is copied. */
static tn_tensor *copy_read_only(tn_context *cx, tn_dl_managed_versioned *managed) {
    tn_tensor *view = import_tensor(cx, "tn_from_dlpack_versioned", &managed->tensor, NULL, NULL);
    if (!view) return NULL;
    tn_tensor *t = tn_dense_copy(view, view->dtype);
    tn_release(view); /* waits until the copy is made */
    if (t) release_versioned(managed);
    return t ? tn_scope_adopt(t) : NULL;
}

tn_tensor *tn_from_dlpack_versioned(tn_context *cx, tn_dl_managed_versioned *managed) {
    if (!tn_ready(cx) || !managed) return NULL;
    if (managed->version.major != TN_DL_MAJOR)
        return tn_fail(cx, TN_ERR_UNSUPPORTED, "tn_from_dlpack_versioned", "DLPack %u.%u, only %d.x is known", managed->version.major,
                       managed->version.minor, TN_DL_MAJOR);
    if (managed->flags & TN_DL_READ_ONLY) return copy_read_only(cx, managed);
    return import_tensor(cx, "tn_from_dlpack_versioned", &managed->tensor, release_versioned, managed);
}
