#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "context_internal.h"
#include "file_write.h"
#include "host_memory.h"
#include "safetensors_format.h"

/* The place of each dtype in a file: widest first, so that every tensor is aligned, and equal widths as other writers have them. */
static const int dtype_place[TN_DTYPE_COUNT] = {
    [TN_I64] = 0, [TN_F64] = 1, [TN_F32] = 2, [TN_I32] = 3, [TN_BF16] = 4, [TN_U8] = 5, [TN_BOOL] = 6,
};

typedef struct writer {
    tn_context *cx;
    const char *path;
    const tn_named_tensor **tensors; /* in the file's order */
    int64_t n_tensors;
    const tn_named_text **metadata;
    int64_t n_metadata;
    json_t *json;
    unsigned char *header; /* with its length before it and its padding behind */
    size_t header_bytes;
} writer;

#define FAIL(w, status, ...) tn_fail((w)->cx, (status), "tn_file_save", __VA_ARGS__)

/* ---- what to write ---- */

static int compare_tensors(const void *a, const void *b) {
    const tn_named_tensor *x = *(const tn_named_tensor *const *)a, *y = *(const tn_named_tensor *const *)b;
    int by_dtype = dtype_place[x->tensor->dtype] - dtype_place[y->tensor->dtype];
    return by_dtype ? by_dtype : strcmp(x->name, y->name);
}

static int compare_metadata(const void *a, const void *b) {
    return strcmp((*(const tn_named_text *const *)a)->key, (*(const tn_named_text *const *)b)->key);
}

static bool check_tensors(writer *w, const tn_named_tensor *tensors) {
    for (int64_t i = 0; i < w->n_tensors; i++) {
        const char *name = tensors[i].name;
        if (!name) return FAIL(w, TN_ERR_ARGUMENT, "%s: tensor %lld has no name", w->path, (long long)i);
        if (strcmp(name, TN_METADATA_NAME) == 0)
            return FAIL(w, TN_ERR_ARGUMENT, "%s: " TN_METADATA_NAME " can't be the name of a tensor", w->path);
        if (!tensors[i].tensor) return FAIL(w, TN_ERR_ARGUMENT, "%s: tensor '%s' is NULL", w->path, tn_show(name).text);
        if (tensors[i].tensor->cx != w->cx)
            return FAIL(w, TN_ERR_ARGUMENT, "%s: tensor '%s' is of another context", w->path, tn_show(name).text);
        w->tensors[i] = &tensors[i];
    }
    qsort(w->tensors, (size_t)w->n_tensors, sizeof *w->tensors, compare_tensors);
    return true;
}

static bool check_metadata(writer *w, const tn_named_text *metadata) {
    for (int64_t i = 0; i < w->n_metadata; i++) {
        if (!metadata[i].key || !metadata[i].value)
            return FAIL(w, TN_ERR_ARGUMENT, "%s: metadata %lld lacks its key or its value", w->path, (long long)i);
        w->metadata[i] = &metadata[i];
    }
    qsort(w->metadata, (size_t)w->n_metadata, sizeof *w->metadata, compare_metadata);
    return true;
}

/* ---- the header ---- */

/* Says why jansson refused `text`: it is not UTF-8, or else memory ran out. */
static bool fail_text(writer *w, const char *what, const char *text) {
    json_t *checked = json_string(text), *unchecked = json_string_nocheck(text);
    bool bad_text = !checked && unchecked;
    json_decref(checked);
    json_decref(unchecked);
    if (bad_text) return FAIL(w, TN_ERR_ARGUMENT, "%s: %s '%s' is not UTF-8", w->path, what, tn_show(text).text);
    return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for the header", w->path);
}

static bool describe_metadata(writer *w) {
    if (w->n_metadata == 0) return true;
    json_t *object = json_object();
    if (json_object_set_new(w->json, TN_METADATA_NAME, object) != 0) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory", w->path);
    for (int64_t i = 0; i < w->n_metadata; i++) {
        const char *key = w->metadata[i]->key, *value = w->metadata[i]->value;
        if (json_object_get(object, key)) return FAIL(w, TN_ERR_ARGUMENT, "%s: metadata '%s' given twice", w->path, tn_show(key).text);
        json_t *text = json_string(value);
        if (!text) return fail_text(w, "the metadata value", value);
        if (json_object_set_new(object, key, text) != 0) return fail_text(w, "the metadata key", key);
    }
    return true;
}

static json_t *tensor_json(const tn_tensor *t, int64_t begin, int64_t end) {
    json_t *shape = json_array();
    for (int i = 0; i < t->axes; i++) json_array_append_new(shape, json_integer(t->shape[i]));
    json_t *json = json_pack("{s:s, s:o, s:[I, I]}", "dtype", tn_format_dtype_names[t->dtype], "shape", shape, "data_offsets",
                             (json_int_t)begin, (json_int_t)end);
    if (json && json_array_size(shape) == (size_t)t->axes) return json;
    json_decref(json);
    return NULL;
}

static bool describe_tensors(writer *w) {
    int64_t begin = 0, end;
    for (int64_t i = 0; i < w->n_tensors; i++, begin = end) {
        const char *name = w->tensors[i]->name;
        if (json_object_get(w->json, name)) return FAIL(w, TN_ERR_ARGUMENT, "%s: tensor '%s' given twice", w->path, tn_show(name).text);
        if (__builtin_add_overflow(begin, tn_bytes(w->tensors[i]->tensor), &end))
            return FAIL(w, TN_ERR_ARGUMENT, "%s: tensor '%s' makes the file too large", w->path, tn_show(name).text);
        json_t *json = tensor_json(w->tensors[i]->tensor, begin, end);
        if (!json) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for the header", w->path);
        if (json_object_set_new(w->json, name, json) != 0) return fail_text(w, "the tensor name", name);
    }
    return true;
}

static bool make_header(writer *w) {
    w->json = json_object();
    if (!w->json) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for the header", w->path);
    if (!describe_metadata(w) || !describe_tensors(w)) return false;
    size_t text_bytes = json_dumpb(w->json, NULL, 0, JSON_COMPACT);
    uint64_t length = (text_bytes + 7) / 8 * 8;
    if (length > TN_HEADER_CAP_BYTES)
        return FAIL(w, TN_ERR_ARGUMENT, "%s: a header of %llu bytes is over the cap of %llu", w->path, (unsigned long long)length,
                    (unsigned long long)TN_HEADER_CAP_BYTES);
    w->header_bytes = TN_HEADER_LENGTH_BYTES + (size_t)length;
    w->header = tn_host_alloc(w->header_bytes);
    if (text_bytes == 0 || !w->header) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for the header", w->path);
    memcpy(w->header, &length, sizeof length);
    memset(w->header + TN_HEADER_LENGTH_BYTES, ' ', (size_t)length);
    if (json_dumpb(w->json, (char *)w->header + TN_HEADER_LENGTH_BYTES, text_bytes, JSON_COMPACT) != text_bytes)
        return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for the header", w->path);
    return true;
}

/* ---- the file ---- */

static bool write_file(writer *w) {
    tn_file_writer file;
    bool written = tn_file_writer_begin(&file, w->cx, "tn_file_save", w->path) && tn_file_writer_bytes(&file, w->header, w->header_bytes);
    for (int64_t i = 0; written && i < w->n_tensors; i++)
        written = tn_file_writer_tensor(&file, w->tensors[i]->tensor, w->tensors[i]->name);
    return tn_file_writer_finish(&file, written);
}

static bool save(writer *w, const tn_named_tensor *tensors, const tn_named_text *metadata) {
    w->tensors = tn_host_alloc((size_t)w->n_tensors * sizeof *w->tensors + 1);
    w->metadata = tn_host_alloc((size_t)w->n_metadata * sizeof *w->metadata + 1);
    if (!w->tensors || !w->metadata) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for the list of tensors", w->path);
    return check_tensors(w, tensors) && check_metadata(w, metadata) && make_header(w) && write_file(w);
}

bool tn_file_save(tn_context *cx, const char *path, const tn_named_tensor *tensors, int64_t n_tensors, const tn_named_text *metadata,
                  int64_t n_metadata) {
    if (!tn_ready(cx)) return false;
    if (!path || !*path) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_file_save", "no path");
    if (n_tensors < 0 || n_metadata < 0 || (n_tensors && !tensors) || (n_metadata && !metadata))
        return tn_fail(cx, TN_ERR_ARGUMENT, "tn_file_save", "%s: a negative count, or NULL for a list that is not empty", path);
    if (cx->device->dry_run) return tn_fail(cx, TN_ERR_UNSUPPORTED, "tn_file_save", "%s: a dry run has no data to write", path);
    writer w = { .cx = cx, .path = path, .n_tensors = n_tensors, .n_metadata = n_metadata };
    bool saved = save(&w, tensors, metadata);
    json_decref(w.json);
    tn_host_free(w.header);
    tn_host_free(w.tensors);
    tn_host_free(w.metadata);
    return saved;
}
