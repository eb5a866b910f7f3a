/* What the tests of data share: a context, a folder of files, and main(). */
#ifndef TENON_DATA_FOLDER_H
#define TENON_DATA_FOLDER_H

#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "examples/data_source.h"

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof(array)[0]))

static char folder[TN_TEST_FOLDER_BYTES];
static tn_context *cx;

static inline const char *path_of(const char *name) {
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static inline const char *write_file(const char *name, const void *bytes, size_t n_bytes) {
    const char *path = path_of(name);
    remove(path); /* some file systems flush a file that is written over */
    FILE *stream = fopen(path, "wb");
    TN_TEST_WANT(stream && fwrite(bytes, 1, n_bytes, stream) == n_bytes && fclose(stream) == 0, "can't write %s", path);
    return path;
}

static inline int set_up(void **state) {
    (void)state;
    cx = tn_open(&(tn_options){ .device = "cpu", .seed = 1 });
    return cx == NULL;
}

static inline int tear_down(void **state) {
    (void)state;
    tn_close(cx);
    return 0;
}

static inline tn_data *open_kind(tn_data_kind kind, const char *path) {
    return tn_data_open(cx, &(tn_data_options){ .kind = kind, .path = path, .seed = 7 });
}

/* The text of tokens, in a buffer that the next call overwrites. */
static inline const char *text_of(const tn_vocabulary *vocabulary, const int64_t *ids, int64_t n) {
    static char text[4096];
    size_t at = 0, n_bytes;
    for (int64_t i = 0; i < n; i++) {
        const char *piece = tn_vocabulary_text(vocabulary, ids[i], &n_bytes);
        TN_TEST_WANT(piece && at + n_bytes < sizeof text, "token %lld has no text", (long long)ids[i]);
        memcpy(text + at, piece, n_bytes);
        at += n_bytes;
    }
    text[at] = '\0';
    return text;
}

static inline void put_u32(unsigned char *bytes, uint32_t value) {
    for (int i = 0; i < 4; i++) bytes[i] = (unsigned char)(value >> 8 * i);
}

#define CASE(function) \
    { #function, function, set_up, tear_down, NULL }

static inline int run_in_folder(const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc, char **argv) {
    return tn_test_main_in_folder(folder, name, cases, n_cases, argc, argv);
}

#endif
