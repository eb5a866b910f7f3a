/* Writing a file whole or not at all: a temporary file beside it, synced, then renamed over it. */
#ifndef TENON_FILE_WRITE_H
#define TENON_FILE_WRITE_H

#include "tensor.h"

typedef struct tn_file_writer {
    tn_context *cx;
    const char *op, *path;       /* the call and the file that errors name */
    char *temporary, *directory; /* paths */
    int descriptor;              /* of the temporary file; -1: there is none */
} tn_file_writer;

/* Errors are cx's, in the name of `op`; `op` and `path` must live until the end. Whatever is returned, _finish must follow. */
bool tn_file_writer_begin(tn_file_writer *w, tn_context *cx, const char *op, const char *path);
bool tn_file_writer_bytes(tn_file_writer *w, const void *bytes, size_t n_bytes);
/* The elements in row-major order; `name` is for messages. */
bool tn_file_writer_tensor(tn_file_writer *w, const tn_tensor *t, const char *name);
/* Puts the file in its place if all is well so far, or leaves what is there alone. Returns whether it is in its place. */
bool tn_file_writer_finish(tn_file_writer *w, bool well);

#endif
