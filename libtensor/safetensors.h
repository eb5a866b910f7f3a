/* The safetensors file format: 8-byte little-endian header length, a JSON header, then the tensors' bytes. */
#ifndef TENON_SAFETENSORS_H
#define TENON_SAFETENSORS_H

#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_file tn_file;

typedef struct tn_file_entry {
    const char *name;
    tn_dtype dtype;
    tn_shape shape;
    const void *data; /* little-endian, row-major, in the mapped file */
    size_t n_bytes;
} tn_file_entry;

/* Opens and checks the whole header: size within the cap (16 MiB), no duplicate or unknown field, shape x dtype = bytes without
 * overflow, tensors tiling the data exactly. Anything else is an error on cx that names the file and the tensor. */
TN_API tn_file *tn_file_open(tn_context *cx, const char *path);
TN_API void tn_file_close(tn_file *file);

TN_API int64_t tn_file_count(const tn_file *file);
TN_API const tn_file_entry *tn_file_entry_at(const tn_file *file, int64_t index); /* in order of their data */
TN_API const tn_file_entry *tn_file_find(const tn_file *file, const char *name);  /* NULL, and no error, if absent */
TN_API const char *tn_file_metadata(const tn_file *file, const char *key);        /* NULL, and no error, if absent */
TN_API int64_t tn_file_metadata_count(const tn_file *file);
TN_API bool tn_file_metadata_at(const tn_file *file, int64_t index, const char **key, const char **value);

/* A copy of the entry on cx; an error if there is none of that name. */
TN_API tn_tensor *tn_file_load(const tn_file *file, const char *name);

typedef struct tn_named_tensor {
    const char *name;
    const tn_tensor *tensor;
} tn_named_tensor;

typedef struct tn_named_text {
    const char *key, *value;
} tn_named_text;

/* Writes to a temporary file beside `path`, fsyncs it and renames it over `path`: a reader sees the old file or the whole new one.
 * The same tensors and metadata in any order give the same bytes (widest dtype first, then by name; metadata by key). */
TN_API bool tn_file_save(tn_context *cx, const char *path, const tn_named_tensor *tensors, int64_t n_tensors, const tn_named_text *metadata,
                         int64_t n_metadata);

#ifdef __cplusplus
}
#endif
#endif
