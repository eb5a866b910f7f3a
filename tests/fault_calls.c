#include "fault_calls.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "libtensor/allocator.h"

static struct {
    _Atomic int armed; /* 1 + kind; 0: nothing fails */
    _Atomic int64_t left, failed;
    atomic_bool for_ever;
    const char *_Atomic last;
} faults;
static _Thread_local int pauses;

const char *fault_name(fault_kind kind) {
    static const char *const names[FAULT_KINDS] = { "host allocations", "device allocations",     "segments",
                                                    "file calls",       "short reads and writes", "CUDA calls" };
    return names[kind];
}

void fault_arm(fault_kind kind, int64_t n, bool for_ever) {
    faults.left = n;
    faults.failed = 0;
    faults.for_ever = for_ever;
    faults.last = "";
    faults.armed = 1 + (int)kind;
}

int64_t fault_disarm(void) {
    faults.armed = 0;
    return faults.failed;
}

void fault_pause(void) { pauses++; }
void fault_resume(void) { pauses--; }

bool fault_strikes(fault_kind kind, const char *what) {
    if (pauses || faults.armed != 1 + (int)kind) return false;
    int64_t left = atomic_fetch_sub(&faults.left, 1);
    if (left > 1 || (left < 1 && !faults.for_ever)) return false;
    faults.failed++;
    faults.last = what;
    return true;
}

const char *fault_last(void) { return faults.last; }

/* ---- host memory ---- */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);

void *__wrap_malloc(size_t bytes) { return fault_strikes(FAULT_HOST, "malloc") ? NULL : __real_malloc(bytes); }
void *__wrap_calloc(size_t n, size_t bytes) { return fault_strikes(FAULT_HOST, "calloc") ? NULL : __real_calloc(n, bytes); }
void *__wrap_realloc(void *memory, size_t bytes) { return fault_strikes(FAULT_HOST, "realloc") ? NULL : __real_realloc(memory, bytes); }

char *__real_strdup(const char *text);
char *__wrap_strdup(const char *text);
char *__wrap_strdup(const char *text) { return fault_strikes(FAULT_HOST, "strdup") ? NULL : __real_strdup(text); }

/* ---- device memory ---- */

tn_block *__real_tn_allocator_take(tn_allocator *a, size_t bytes, tn_stream stream, tn_category category, const tn_owner *owner);
tn_block *__wrap_tn_allocator_take(tn_allocator *a, size_t bytes, tn_stream stream, tn_category category, const tn_owner *owner);

/* More than any device has: the allocator fails in its own way. */
tn_block *__wrap_tn_allocator_take(tn_allocator *a, size_t bytes, tn_stream stream, tn_category category, const tn_owner *owner) {
    return __real_tn_allocator_take(a, fault_strikes(FAULT_DEVICE, "tn_allocator_take") ? (size_t)1 << 56 : bytes, stream, category, owner);
}

/* ---- files ---- */

#define FAILS(what) (fault_strikes(FAULT_FILE, what) && (errno = EIO, true))

/* Names with 64: what the C library calls the functions for large files, which the whole tree is compiled for. Reals and wraps of a
 * function that says -1 or NULL on failure. */
#define WRAPPED(result, name, failed, parameters, arguments) \
    result __real_##name parameters;                         \
    result __wrap_##name parameters;                         \
    result __wrap_##name parameters { return FAILS(#name) ? failed : __real_##name arguments; }

WRAPPED(int, rename, -1, (const char *from, const char *to), (from, to))
WRAPPED(int, renameat2, -1, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
WRAPPED(int, glob64, GLOB_ABORTED, (const char *pattern, int flags, int (*failed)(const char *, int), glob_t *found),
        (pattern, flags, failed, found))
WRAPPED(int, mkdir, -1, (const char *path, mode_t mode), (path, mode))
WRAPPED(int, rmdir, -1, (const char *path), (path))
WRAPPED(int, unlink, -1, (const char *path), (path))
WRAPPED(int, stat64, -1, (const char *path, struct stat *info), (path, info))
WRAPPED(int, fstat64, -1, (int descriptor, struct stat *info), (descriptor, info))
WRAPPED(DIR *, opendir, NULL, (const char *path), (path))
WRAPPED(struct dirent *, readdir64, NULL, (DIR * folder), (folder))
WRAPPED(FILE *, fopen64, NULL, (const char *path, const char *mode), (path, mode))
WRAPPED(size_t, fread, 0, (void *to, size_t size, size_t n, FILE *stream), (to, size, n, stream))
WRAPPED(size_t, fwrite, 0, (const void *from, size_t size, size_t n, FILE *stream), (from, size, n, stream))
WRAPPED(int, fflush, EOF, (FILE * stream), (stream))

/* Nobody takes the disk's power away here. */
int __wrap_fsync(int descriptor);
int __wrap_fsync(int descriptor) {
    (void)descriptor;
    return FAILS("fsync") ? -1 : 0;
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    int mode = flags & O_CREAT ? va_arg(list, int) : 0;
    va_end(list);
    return FAILS("open") ? -1 : __real_open64(path, flags, mode);
}

/* A close that fails has closed. */
int __real_close(int descriptor);
int __wrap_close(int descriptor);
int __wrap_close(int descriptor) {
    bool fails = fault_strikes(FAULT_FILE, "close");
    int code = __real_close(descriptor);
    return fails ? (errno = EIO, -1) : code;
}
int __real_fclose(FILE *stream);
int __wrap_fclose(FILE *stream);
int __wrap_fclose(FILE *stream) {
    bool fails = fault_strikes(FAULT_FILE, "fclose");
    int code = __real_fclose(stream);
    return fails ? (errno = EIO, EOF) : code;
}

/* The first that is struck is interrupted, the next does half of what was asked. */
static ssize_t part_of(size_t n_bytes) {
    if (!fault_strikes(FAULT_SHORT, "short")) return (ssize_t)n_bytes;
    return faults.failed % 2 ? -1 : n_bytes > 1 ? (ssize_t)(n_bytes / 2) : (ssize_t)n_bytes;
}
ssize_t __real_read(int descriptor, void *to, size_t n_bytes);
ssize_t __wrap_read(int descriptor, void *to, size_t n_bytes);
ssize_t __wrap_read(int descriptor, void *to, size_t n_bytes) {
    if (FAILS("read")) return -1;
    ssize_t part = part_of(n_bytes);
    return part < 0 ? (errno = EINTR, -1) : __real_read(descriptor, to, (size_t)part);
}
ssize_t __real_write(int descriptor, const void *from, size_t n_bytes);
ssize_t __wrap_write(int descriptor, const void *from, size_t n_bytes);
ssize_t __wrap_write(int descriptor, const void *from, size_t n_bytes) {
    if (fault_strikes(FAULT_FILE, "write")) return errno = ENOSPC, -1;
    ssize_t part = part_of(n_bytes);
    return part < 0 ? (errno = EINTR, -1) : __real_write(descriptor, from, (size_t)part);
}

/* Of a file, or memory for the CPU's segments. */
void *__real_mmap64(void *at, size_t n_bytes, int protection, int flags, int descriptor, off_t offset);
void *__wrap_mmap64(void *at, size_t n_bytes, int protection, int flags, int descriptor, off_t offset);
void *__wrap_mmap64(void *at, size_t n_bytes, int protection, int flags, int descriptor, off_t offset) {
    if (fault_strikes(descriptor >= 0 ? FAULT_FILE : FAULT_SEGMENT, "mmap")) return errno = ENOMEM, MAP_FAILED;
    return __real_mmap64(at, n_bytes, protection, flags, descriptor, offset);
}
