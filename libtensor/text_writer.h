/* Text into a file that is written whole or not at all, piece by piece. */
#ifndef TENON_TEXT_WRITER_H
#define TENON_TEXT_WRITER_H

#include "file_write.h"

typedef struct tn_text_writer {
    tn_file_writer file;
    bool well;
    size_t used;
    char buffer[1 << 14];
} tn_text_writer;

/* NULL, with an error, without a path or memory; on a context that has failed NULL alone. Errors of the file show in `well`. */
tn_text_writer *tn_text_open(tn_context *cx, const char *op, const char *path);
/* At most 4096 bytes at a time. */
void tn_text(tn_text_writer *w, const char *format, ...) TN_PRINTF(2, 3);
void tn_text_bytes(tn_text_writer *w, const char *text, size_t n_bytes);
/* A string of JSON with its quotes, which is also safe within a page's script. */
void tn_text_json(tn_text_writer *w, const char *text);
/* A field of CSV, quoted where that is needed. */
void tn_text_csv(tn_text_writer *w, const char *text);
/* Ends the file, and the writer. Whether the file is in its place. */
bool tn_text_close(tn_text_writer *w);

#endif
