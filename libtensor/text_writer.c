#include "text_writer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "context_internal.h"
#include "host_memory.h"

enum { LONGEST = 4096 };

/* A writer's buffer is too large for the stack of a thread of unknown size. */
tn_text_writer *tn_text_open(tn_context *cx, const char *op, const char *path) {
    if (!tn_ready(cx)) return NULL;
    if (!path) return tn_fail(cx, TN_ERR_ARGUMENT, op, "no path");
    tn_text_writer *w = tn_host_alloc(sizeof *w);
    if (!w) return tn_fail(cx, TN_ERR_HOST_MEMORY, op, "the host has no memory left");
    w->used = 0;
    w->well = tn_file_writer_begin(&w->file, cx, op, path);
    return w;
}

static void flush(tn_text_writer *w) {
    if (w->well && w->used) w->well = tn_file_writer_bytes(&w->file, w->buffer, w->used);
    w->used = 0;
}

void tn_text_bytes(tn_text_writer *w, const char *text, size_t n_bytes) {
    while (n_bytes > 0) {
        if (w->used == sizeof w->buffer) flush(w);
        size_t room = sizeof w->buffer - w->used, n = n_bytes < room ? n_bytes : room;
        memcpy(w->buffer + w->used, text, n);
        w->used += n;
        text += n;
        n_bytes -= n;
    }
}

void tn_text(tn_text_writer *w, const char *format, ...) {
    if (sizeof w->buffer - w->used < LONGEST) flush(w);
    va_list list;
    va_start(list, format);
    int n = vsnprintf(w->buffer + w->used, LONGEST, format, list);
    va_end(list);
    if (n > 0) w->used += n < LONGEST ? (size_t)n : LONGEST - 1;
}

void tn_text_json(tn_text_writer *w, const char *text) {
    tn_text_bytes(w, "\"", 1);
    for (const unsigned char *c = (const unsigned char *)(text ? text : ""); *c; c++) {
        if (*c < 0x20 || *c == '"' || *c == '\\' || *c == '<' || *c == '>' || *c == '&') tn_text(w, "\\u%04x", *c);
        else tn_text_bytes(w, (const char *)c, 1);
    }
    tn_text_bytes(w, "\"", 1);
}

void tn_text_csv(tn_text_writer *w, const char *text) {
    text = text ? text : "";
    if (!strpbrk(text, ",\"\r\n")) {
        tn_text_bytes(w, text, strlen(text));
        return;
    }
    tn_text_bytes(w, "\"", 1);
    for (; *text; text++) tn_text_bytes(w, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    tn_text_bytes(w, "\"", 1);
}

bool tn_text_close(tn_text_writer *w) {
    flush(w);
    bool placed = tn_file_writer_finish(&w->file, w->well) && w->well;
    tn_host_free(w);
    return placed;
}
