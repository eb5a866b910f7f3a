#include "fuzz_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libtensor/context.h"

static tn_context *cx;
static tn_scope *scope;

void fuzz_want_at(bool condition, const char *text, const char *file, int line) {
    if (condition) return;
    fprintf(stderr, "%s:%d: wanted %s\n", file, line, text);
    if (cx) fprintf(stderr, "the context says: %s\n", tn_error(cx));
    abort();
}

tn_context *fuzz_begin(void) {
    if (!cx)
        cx = tn_open(&(tn_options){ .device = "cpu", .seed = 1, .threads = 1, .memory_limit = (size_t)64 << 20, .history_events = -1 });
    fuzz_want(cx != NULL);
    tn_clear_error(cx);
    scope = tn_scope_begin(cx);
    fuzz_want(scope != NULL);
    return cx;
}

void fuzz_end(void) {
    tn_clear_error(cx);
    tn_scope_end(scope);
}

const char *fuzz_file(const uint8_t *data, size_t n_bytes) {
    static int descriptor = -1;
    static char path[64];
    if (descriptor >= 0) close(descriptor);
    descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    fuzz_want(descriptor >= 0);
    fuzz_want(write(descriptor, data, n_bytes) == (ssize_t)n_bytes);
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    return path;
}

uint8_t fuzz_byte(fuzz_bytes *bytes) {
    if (bytes->n == 0) return 0;
    bytes->n--;
    return *bytes->at++;
}
