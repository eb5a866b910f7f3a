#include "checkpoint_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FAIL_SYSTEM(path, what) tn_fail(cx, TN_ERR_IO, op, "%s: %s: %s", (path), (what), strerror(errno))

/* ---- files ---- */

#define PIECE_BYTES ((size_t)1 << 20)

static bool sum_descriptor(tn_context *cx, const char *op, const char *path, int descriptor, tn_file_sum *sum) {
    unsigned char *piece = malloc(PIECE_BYTES);
    if (!piece) return tn_fail(cx, TN_ERR_HOST_MEMORY, op, "%s: no host memory", path);
    *sum = (tn_file_sum){ 0 };
    ssize_t n;
    while ((n = read(descriptor, piece, PIECE_BYTES)) > 0 || (n < 0 && errno == EINTR)) {
        if (n < 0) continue;
        sum->crc = tn_crc32c(sum->crc, piece, (size_t)n);
        sum->n_bytes += n;
    }
    free(piece);
    return n == 0 || FAIL_SYSTEM(path, "read");
}

/* Not blocking, so that a FIFO is refused rather than waited for. */
static int open_file(tn_context *cx, const char *op, const char *path) {
    struct stat info;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        FAIL_SYSTEM(path, "open");
    } else if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
        tn_fail(cx, TN_ERR_IO, op, "%s: not a regular file", path);
        close(descriptor);
        descriptor = -1;
    }
    return descriptor;
}

bool tn_file_sum_of(tn_context *cx, const char *op, const char *path, tn_file_sum *sum) {
    int descriptor = open_file(cx, op, path);
    if (descriptor < 0) return false;
    bool fine = sum_descriptor(cx, op, path, descriptor, sum);
    close(descriptor);
    return fine;
}

bool tn_path_join(tn_context *cx, const char *op, const char *folder, const char *name, char path[RUN_CHECKPOINT_PATH_BYTES]) {
    int length = snprintf(path, RUN_CHECKPOINT_PATH_BYTES, "%s/%s", folder, name);
    if (length > 0 && length < RUN_CHECKPOINT_PATH_BYTES) return true;
    return tn_fail(cx, TN_ERR_ARGUMENT, op, "%.40s...: the path is too long", folder);
}

static bool write_all(int descriptor, const char *text, size_t n_bytes) {
    while (n_bytes > 0) {
        ssize_t n = write(descriptor, text, n_bytes);
        if (n < 0 && errno != EINTR) return false;
        if (n > 0) text += n, n_bytes -= (size_t)n;
    }
    return true;
}

bool tn_text_write(tn_context *cx, const char *op, const char *path, const char *text, size_t n_bytes) {
    int descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) return FAIL_SYSTEM(path, "open");
    bool fine = write_all(descriptor, text, n_bytes) || FAIL_SYSTEM(path, "write");
    fine = fine && (fsync(descriptor) == 0 || FAIL_SYSTEM(path, "fsync"));
    return (close(descriptor) == 0 || FAIL_SYSTEM(path, "close")) && fine;
}

char *tn_text_read(tn_context *cx, const char *op, const char *path, size_t cap, size_t *n_bytes) {
    int descriptor = open_file(cx, op, path);
    if (descriptor < 0) return NULL;
    struct stat info;
    char *text = NULL;
    ssize_t n = 0;
    *n_bytes = 0;
    if (fstat(descriptor, &info) != 0) FAIL_SYSTEM(path, "fstat");
    else if ((uint64_t)info.st_size > cap)
        tn_fail(cx, TN_ERR_FORMAT, op, "%s: %lld bytes, more than it can have", path, (long long)info.st_size);
    else if (!(text = malloc((size_t)info.st_size + 1))) tn_fail(cx, TN_ERR_HOST_MEMORY, op, "%s: no host memory", path);
    while (text && (n = read(descriptor, text + *n_bytes, (size_t)info.st_size - *n_bytes)) > 0) *n_bytes += (size_t)n;
    if (text && n < 0) {
        FAIL_SYSTEM(path, "read");
        free(text);
        text = NULL;
    }
    if (text) text[*n_bytes] = '\0';
    close(descriptor);
    return text;
}

/* ---- folders ---- */

bool tn_folder_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool tn_folder_make(tn_context *cx, const char *op, const char *path) {
    char part[RUN_CHECKPOINT_PATH_BYTES];
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof part) return tn_fail(cx, TN_ERR_ARGUMENT, op, "a folder's path of %zu bytes", length);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST) return FAIL_SYSTEM(part, "the folder can't be made");
    }
    return tn_folder_exists(path) || tn_fail(cx, TN_ERR_IO, op, "%s: not a folder", path);
}

/* A file system that can't sync folders is not an error. */
bool tn_folder_sync(tn_context *cx, const char *op, const char *path) {
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return FAIL_SYSTEM(path, "open");
    bool fine = fsync(descriptor) == 0 || errno == EINVAL || errno == ENOTSUP || FAIL_SYSTEM(path, "fsync");
    close(descriptor);
    return fine;
}

bool tn_folder_replace(tn_context *cx, const char *op, const char *from, const char *to) {
    if (rename(from, to) == 0) return true;
    if (errno != ENOTEMPTY && errno != EEXIST) return FAIL_SYSTEM(to, "rename");
#ifdef RENAME_EXCHANGE
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0) return true;
#endif
    char aside[RUN_CHECKPOINT_PATH_BYTES];
    int length = snprintf(aside, sizeof aside, "%s.aside", from);
    if (length >= (int)sizeof aside) return tn_fail(cx, TN_ERR_ARGUMENT, op, "%s: the path is too long", from);
    if (rename(to, aside) != 0) return FAIL_SYSTEM(to, "rename");
    if (rename(from, to) != 0) {
        FAIL_SYSTEM(to, "rename");
        return rename(aside, to) == 0 && false;
    }
    return rename(aside, from) == 0 || FAIL_SYSTEM(aside, "rename");
}

typedef struct removal {
    const char *folder;
    bool fine;
} removal;

static void remove_file(void *user, const char *name) {
    removal *r = user;
    char path[RUN_CHECKPOINT_PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/%s", r->folder, name);
    r->fine = r->fine && length < (int)sizeof path && unlink(path) == 0;
}

bool tn_folder_remove(const char *path) {
    removal r = { path, true };
    return tn_folder_visit(path, remove_file, &r) && r.fine && rmdir(path) == 0;
}

bool tn_folder_visit(const char *path, void (*visit)(void *user, const char *name), void *user) {
    DIR *folder = opendir(path);
    if (!folder) return false;
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) visit(user, entry->d_name);
    closedir(folder);
    return true;
}
