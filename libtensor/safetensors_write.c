#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "context_internal.h"
#include "host_memory.h"
#include "safetensors_format.h"

#define CHUNK_BYTES ((size_t)4 << 20)

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
    char *temporary, *directory; /* paths */
    int descriptor;              /* of the temporary file; -1: there is none */
} writer;

#define FAIL(w, status, ...) tn_fail((w)->cx, (status), "tn_file_save", __VA_ARGS__)
#define FAIL_SYSTEM(w, what) FAIL(w, TN_ERR_IO, "%s: %s: %s", (w)->path, what, strerror(errno))

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

static bool write_bytes(writer *w, const unsigned char *bytes, size_t n_bytes) {
    while (n_bytes > 0) {
        ssize_t written = write(w->descriptor, bytes, n_bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return FAIL_SYSTEM(w, "write");
        bytes += written;
        n_bytes -= (size_t)written;
    }
    return true;
}

static bool write_dense(writer *w, const tn_tensor *t, unsigned char *chunk) {
    tn_device *device = w->cx->device;
    size_t n_bytes = tn_bytes(t);
    for (size_t at = 0; at < n_bytes; at += CHUNK_BYTES) {
        size_t part = n_bytes - at < CHUNK_BYTES ? n_bytes - at : CHUNK_BYTES;
        tn_status status = device->interface->copy_to_host(device, chunk, (const char *)t->data + at, part, w->cx->stream);
        if (status != TN_OK) return TN_FAIL_DEVICE(w->cx, status, "tn_file_save");
        if (!write_bytes(w, chunk, part)) return false;
    }
    return true;
}

static bool write_strided(writer *w, const tn_named_tensor *tensor) {
    size_t n_bytes = tn_bytes(tensor->tensor);
    unsigned char *bytes = tn_host_alloc(n_bytes + 1);
    if (!bytes) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for tensor '%s'", w->path, tn_show(tensor->name).text);
    bool written = tn_to_data(tensor->tensor, bytes, n_bytes) && write_bytes(w, bytes, n_bytes);
    tn_host_free(bytes);
    return written;
}

static bool write_contents(writer *w) {
    if (!write_bytes(w, w->header, w->header_bytes)) return false;
    unsigned char *chunk = tn_host_alloc(CHUNK_BYTES);
    if (!chunk) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory to write through", w->path);
    bool written = true;
    for (int64_t i = 0; written && i < w->n_tensors; i++) {
        const tn_tensor *t = w->tensors[i]->tensor;
        written = tn_is_contiguous(t) ? write_dense(w, t, chunk) : write_strided(w, w->tensors[i]);
    }
    tn_host_free(chunk);
    return written;
}

static bool make_paths(writer *w) {
    size_t length = strlen(w->path), room = length + 48;
    w->temporary = tn_host_alloc(room);
    w->directory = tn_host_strdup(w->path);
    if (!w->temporary || !w->directory) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for its path", w->path);
    char *slash = strrchr(w->directory, '/');
    if (slash) slash[slash == w->directory] = '\0';
    else strcpy(w->directory, ".");
    return true;
}

static bool open_temporary(writer *w) {
    static atomic_uint counter;
    struct stat info;
    /* Renaming over a device or a pipe would replace it. */
    if (stat(w->path, &info) == 0 && !S_ISREG(info.st_mode)) return FAIL(w, TN_ERR_IO, "%s: exists and is not a regular file", w->path);
    for (int attempt = 0; attempt < 100; attempt++) {
        snprintf(w->temporary, strlen(w->path) + 48, "%s.tmp.%ld.%u", w->path, (long)getpid(), atomic_fetch_add(&counter, 1u));
        w->descriptor = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->descriptor >= 0) return true;
        if (errno != EEXIST) break;
    }
    return FAIL_SYSTEM(w, "a temporary file beside it can't be made");
}

/* After this the new name is on the disk too. A file system that can't do that for directories is not an error. */
static bool sync_directory(writer *w) {
    int directory = open(w->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return true;
    bool failed = fsync(directory) != 0 && errno != EINVAL && errno != ENOTSUP;
    int error = errno;
    close(directory);
    errno = error;
    return !failed || FAIL_SYSTEM(w, "written, but fsync of its directory failed");
}

static bool close_temporary(writer *w) {
    int descriptor = w->descriptor;
    w->descriptor = -1;
    return close(descriptor) == 0 || FAIL_SYSTEM(w, "close");
}

static bool write_file(writer *w) {
    if (!make_paths(w) || !open_temporary(w)) return false;
    bool written = write_contents(w) && (fsync(w->descriptor) == 0 || FAIL_SYSTEM(w, "fsync"));
    written = written && close_temporary(w) && (rename(w->temporary, w->path) == 0 || FAIL_SYSTEM(w, "rename"));
    if (!written) {
        if (w->descriptor >= 0) close(w->descriptor);
        unlink(w->temporary);
        return false;
    }
    return sync_directory(w);
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
    writer w = { .cx = cx, .path = path, .n_tensors = n_tensors, .n_metadata = n_metadata, .descriptor = -1 };
    bool saved = save(&w, tensors, metadata);
    json_decref(w.json);
    tn_host_free(w.header);
    tn_host_free(w.temporary);
    tn_host_free(w.directory);
    tn_host_free(w.tensors);
    tn_host_free(w.metadata);
    return saved;
}
