#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "context_internal.h"
#include "file_map.h"
#include "host_memory.h"
#include "safetensors_format.h"

struct tn_file {
    tn_context *cx;
    char *path;
    tn_file_map map;
    const unsigned char *data; /* after the header */
    uint64_t data_bytes;
    json_t *header;         /* owns the names and the metadata's texts */
    tn_file_entry *entries; /* in order of their data */
    const tn_file_entry **by_name;
    int64_t n_entries;
    tn_named_text *metadata; /* by key */
    int64_t n_metadata;
};

#define FAIL(file, status, ...) tn_fail((file)->cx, (status), "tn_file_open", __VA_ARGS__)
#define TENSOR "%s: tensor '%s': "
#define NAMED(file, name) (file)->path, tn_show(name).text

/* ---- the file ---- */

static bool map_file(tn_file *file) {
    if (!tn_file_map_open(file->cx, "tn_file_open", file->path, &file->map)) return false;
    if (file->map.n_bytes >= TN_HEADER_LENGTH_BYTES) return true;
    return FAIL(file, TN_ERR_FORMAT, "%s: %zu bytes is too short for a safetensors file", file->path, file->map.n_bytes);
}

static bool parse_header(tn_file *file) {
    uint64_t length;
    memcpy(&length, file->map.bytes, sizeof length);
    uint64_t rest = file->map.n_bytes - TN_HEADER_LENGTH_BYTES;
    if (length > TN_HEADER_CAP_BYTES)
        return FAIL(file, TN_ERR_FORMAT, "%s: header length %llu is over the cap of %llu bytes", file->path, (unsigned long long)length,
                    (unsigned long long)TN_HEADER_CAP_BYTES);
    if (length > rest)
        return FAIL(file, TN_ERR_FORMAT, "%s: truncated: header length %llu, but only %llu bytes follow", file->path,
                    (unsigned long long)length, (unsigned long long)rest);
    const char *text = (const char *)file->map.bytes + TN_HEADER_LENGTH_BYTES;
    if (length == 0 || text[0] != '{') return FAIL(file, TN_ERR_FORMAT, "%s: the header does not begin with '{'", file->path);

    json_error_t error;
    file->header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!file->header) {
        /* Where jansson can't even begin it says nothing. */
        bool no_memory = json_error_code(&error) == json_error_out_of_memory || !error.text[0];
        return FAIL(file, no_memory ? TN_ERR_HOST_MEMORY : TN_ERR_FORMAT, "%s: header is not valid JSON: %s (byte %d)", file->path,
                    no_memory ? "the host has no memory left" : tn_show(error.text).text, error.position);
    }
    file->data = file->map.bytes + TN_HEADER_LENGTH_BYTES + length;
    file->data_bytes = rest - length;
    return true;
}

/* ---- metadata ---- */

static int compare_text(const void *a, const void *b) { return strcmp(((const tn_named_text *)a)->key, ((const tn_named_text *)b)->key); }

static bool read_metadata(tn_file *file, json_t *metadata) {
    if (!json_is_object(metadata)) return FAIL(file, TN_ERR_FORMAT, "%s: " TN_METADATA_NAME " is not an object", file->path);
    file->metadata = tn_host_alloc(json_object_size(metadata) * sizeof *file->metadata + 1);
    if (!file->metadata) return FAIL(file, TN_ERR_HOST_MEMORY, "%s: no host memory for its metadata", file->path);
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return FAIL(file, TN_ERR_FORMAT, "%s: " TN_METADATA_NAME " '%s' is not a string", file->path, tn_show(key).text);
        file->metadata[file->n_metadata++] = (tn_named_text){ key, json_string_value(value) };
    }
    qsort(file->metadata, (size_t)file->n_metadata, sizeof *file->metadata, compare_text);
    return true;
}

/* ---- tensors ---- */

static bool read_dtype(tn_file *file, const char *name, const json_t *field, tn_dtype *dtype) {
    static const char *const others[] = { "F16",     "I16",         "U16",         "U32", "U64", "I8",      "F8_E4M3", "F8_E5M2",
                                          "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "F4",  "F6_E2M3", "F6_E3M2" };
    const char *text = json_string_value(field);
    if (!text) return FAIL(file, TN_ERR_FORMAT, TENSOR "dtype is not a string", NAMED(file, name));
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        if (strcmp(text, tn_format_dtype_names[i]) == 0) {
            *dtype = (tn_dtype)i;
            return true;
        }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(text, others[i]) == 0)
            return FAIL(file, TN_ERR_DTYPE, TENSOR "dtype %s is not supported (F64, F32, BF16, I64, I32, U8 and BOOL are)",
                        NAMED(file, name), text);
    return FAIL(file, TN_ERR_FORMAT, TENSOR "'%s' is no dtype of the format", NAMED(file, name), tn_show(text).text);
}

static bool read_shape(tn_file *file, const char *name, const json_t *field, tn_shape *shape) {
    if (!json_is_array(field)) return FAIL(file, TN_ERR_FORMAT, TENSOR "shape is not an array", NAMED(file, name));
    size_t axes = json_array_size(field);
    if (axes > TN_MAX_AXES)
        return FAIL(file, TN_ERR_SHAPE, TENSOR "%zu axes, more than the %d supported", NAMED(file, name), axes, TN_MAX_AXES);
    shape->axes = (int)axes;
    for (size_t i = 0; i < axes; i++) {
        const json_t *size = json_array_get(field, i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return FAIL(file, TN_ERR_FORMAT, TENSOR "shape[%zu] is not a non-negative integer", NAMED(file, name), i);
        shape->size[i] = json_integer_value(size);
    }
    return true;
}

static bool read_offsets(tn_file *file, const char *name, const json_t *field, uint64_t *begin, uint64_t *end) {
    const json_t *first = json_array_get(field, 0), *second = json_array_get(field, 1);
    if (json_array_size(field) != 2 || !json_is_integer(first) || !json_is_integer(second) || json_integer_value(first) < 0 ||
        json_integer_value(second) < 0)
        return FAIL(file, TN_ERR_FORMAT, TENSOR "data_offsets is not an array of two non-negative integers", NAMED(file, name));
    *begin = (uint64_t)json_integer_value(first);
    *end = (uint64_t)json_integer_value(second);
    if (*begin > *end)
        return FAIL(file, TN_ERR_FORMAT, TENSOR "data_offsets run backwards, from %llu to %llu", NAMED(file, name),
                    (unsigned long long)*begin, (unsigned long long)*end);
    if (*end > file->data_bytes)
        return FAIL(file, TN_ERR_FORMAT, TENSOR "truncated: its data ends at byte %llu, but the file holds only %llu", NAMED(file, name),
                    (unsigned long long)*end, (unsigned long long)file->data_bytes);
    return true;
}

static bool check_fields(tn_file *file, const char *name, json_t *fields) {
    static const char *const wanted[] = { "dtype", "shape", "data_offsets" };
    if (!json_is_object(fields)) return FAIL(file, TN_ERR_FORMAT, TENSOR "its entry is not an object", NAMED(file, name));
    for (size_t i = 0; i < 3; i++)
        if (!json_object_get(fields, wanted[i])) return FAIL(file, TN_ERR_FORMAT, TENSOR "%s is missing", NAMED(file, name), wanted[i]);
    const char *key;
    json_t *value;
    json_object_foreach(fields, key, value)
        if (strcmp(key, wanted[0]) != 0 && strcmp(key, wanted[1]) != 0 && strcmp(key, wanted[2]) != 0)
            return FAIL(file, TN_ERR_FORMAT, TENSOR "unknown field '%s'", NAMED(file, name), tn_show(key).text);
    return true;
}

static bool read_entry(tn_file *file, const char *name, json_t *fields, tn_file_entry *entry) {
    uint64_t begin = 0, end = 0;
    entry->name = name;
    if (!check_fields(file, name, fields) || !read_dtype(file, name, json_object_get(fields, "dtype"), &entry->dtype) ||
        !read_shape(file, name, json_object_get(fields, "shape"), &entry->shape) ||
        !read_offsets(file, name, json_object_get(fields, "data_offsets"), &begin, &end))
        return false;
    int64_t numel = tn_shape_numel(&entry->shape);
    uint64_t n_bytes;
    if (numel < 0 || __builtin_mul_overflow((uint64_t)numel, tn_dtype_size(entry->dtype), &n_bytes))
        return FAIL(file, TN_ERR_FORMAT, TENSOR "its shape overflows", NAMED(file, name));
    if (n_bytes != end - begin)
        return FAIL(file, TN_ERR_FORMAT, TENSOR "shape and dtype make %llu bytes, but data_offsets span %llu", NAMED(file, name),
                    (unsigned long long)n_bytes, (unsigned long long)(end - begin));
    entry->data = file->data + begin;
    entry->n_bytes = (size_t)n_bytes;
    return true;
}

/* Empty tensors come before the one that begins where they do. */
static int compare_place(const void *a, const void *b) {
    const tn_file_entry *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    if (x->n_bytes != y->n_bytes) return x->n_bytes < y->n_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_name(const void *a, const void *b) {
    return strcmp((*(const tn_file_entry *const *)a)->name, (*(const tn_file_entry *const *)b)->name);
}

static bool check_tiling(tn_file *file) {
    const unsigned char *at = file->data;
    for (int64_t i = 0; i < file->n_entries; i++) {
        const tn_file_entry *entry = &file->entries[i];
        const unsigned char *begin = entry->data;
        if (begin != at)
            return FAIL(file, TN_ERR_FORMAT, TENSOR "its data begins at byte %lld, %s; the data before it ends at %lld",
                        NAMED(file, entry->name), (long long)(begin - file->data),
                        begin < at ? "overlapping another tensor" : "leaving a gap", (long long)(at - file->data));
        at += entry->n_bytes;
    }
    uint64_t used = (uint64_t)(at - file->data);
    if (used == file->data_bytes) return true;
    return FAIL(file, TN_ERR_FORMAT, "%s: %llu bytes after the last tensor belong to none", file->path,
                (unsigned long long)(file->data_bytes - used));
}

static bool read_header(tn_file *file) {
    size_t room = json_object_size(file->header) + 1;
    file->entries = tn_host_calloc(room * sizeof *file->entries);
    file->by_name = tn_host_alloc(room * sizeof *file->by_name);
    if (!file->entries || !file->by_name)
        return FAIL(file, TN_ERR_HOST_MEMORY, "%s: no host memory for its %zu entries", file->path, room - 1);
    const char *name;
    json_t *fields;
    json_object_foreach(file->header, name, fields) {
        bool is_metadata = strcmp(name, TN_METADATA_NAME) == 0;
        if (!(is_metadata ? read_metadata(file, fields) : read_entry(file, name, fields, &file->entries[file->n_entries]))) return false;
        if (!is_metadata) file->n_entries++;
    }
    qsort(file->entries, (size_t)file->n_entries, sizeof *file->entries, compare_place);
    for (int64_t i = 0; i < file->n_entries; i++) file->by_name[i] = &file->entries[i];
    qsort(file->by_name, (size_t)file->n_entries, sizeof *file->by_name, compare_name);
    return check_tiling(file);
}

/* ---- the interface ---- */

tn_file *tn_file_open(tn_context *cx, const char *path) {
    if (!tn_ready(cx)) return NULL;
    if (!path || !*path) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_file_open", "no path");
    tn_file *file = tn_host_calloc(sizeof *file);
    if (!file || !(file->path = tn_host_strdup(path))) {
        tn_file_close(file);
        return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_file_open", "%s: no host memory", path);
    }
    file->cx = cx;
    if (map_file(file) && parse_header(file) && read_header(file)) return file;
    tn_file_close(file);
    return NULL;
}

void tn_file_close(tn_file *file) {
    if (!file) return;
    tn_file_map_close(&file->map);
    json_decref(file->header);
    tn_host_free(file->entries);
    tn_host_free(file->by_name);
    tn_host_free(file->metadata);
    tn_host_free(file->path);
    tn_host_free(file);
}

int64_t tn_file_count(const tn_file *file) { return file ? file->n_entries : 0; }

const tn_file_entry *tn_file_entry_at(const tn_file *file, int64_t index) {
    return file && index >= 0 && index < file->n_entries ? &file->entries[index] : NULL;
}

const tn_file_entry *tn_file_find(const tn_file *file, const char *name) {
    if (!file || !name) return NULL;
    const tn_file_entry key = { .name = name }, *key_at = &key;
    const tn_file_entry **found = bsearch(&key_at, file->by_name, (size_t)file->n_entries, sizeof *file->by_name, compare_name);
    return found ? *found : NULL;
}

const char *tn_file_metadata(const tn_file *file, const char *key) {
    if (!file || !key || !file->n_metadata) return NULL;
    const tn_named_text wanted = { .key = key };
    const tn_named_text *found = bsearch(&wanted, file->metadata, (size_t)file->n_metadata, sizeof wanted, compare_text);
    return found ? found->value : NULL;
}

int64_t tn_file_metadata_count(const tn_file *file) { return file ? file->n_metadata : 0; }

bool tn_file_metadata_at(const tn_file *file, int64_t index, const char **key, const char **value) {
    if (!file || index < 0 || index >= file->n_metadata) return false;
    if (key) *key = file->metadata[index].key;
    if (value) *value = file->metadata[index].value;
    return true;
}

tn_tensor *tn_file_load(const tn_file *file, const char *name) {
    if (!file || !name || !tn_ready(file->cx)) return NULL;
    const tn_file_entry *entry = tn_file_find(file, name);
    if (!entry) return tn_fail(file->cx, TN_ERR_ARGUMENT, "tn_file_load", "%s: there is no tensor '%s'", file->path, tn_show(name).text);
    const unsigned char *bytes = entry->data;
    for (size_t i = 0; entry->dtype == TN_BOOL && i < entry->n_bytes; i++)
        if (bytes[i] > 1)
            return tn_fail(file->cx, TN_ERR_FORMAT, "tn_file_load", "%s: tensor '%s': BOOL element %zu is %d, neither 0 nor 1", file->path,
                           tn_show(name).text, i, bytes[i]);
    return tn_from_data(file->cx, entry->dtype, entry->shape, entry->data);
}
