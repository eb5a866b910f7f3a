#include "file_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "context_internal.h"
#include "host_memory.h"
#include "safetensors_format.h"

#define CHUNK_BYTES ((size_t)4 << 20)
#define SUFFIX_BYTES 48

#define FAIL(w, status, ...) tn_fail((w)->cx, (status), (w)->op, __VA_ARGS__)
#define FAIL_SYSTEM(w, what) FAIL(w, TN_ERR_IO, "%s: %s: %s", (w)->path, what, strerror(errno))

/* ---- beginning ---- */

static bool make_paths(tn_file_writer *w) {
    w->temporary = tn_host_alloc(strlen(w->path) + SUFFIX_BYTES);
    w->directory = tn_host_strdup(w->path);
    if (!w->temporary || !w->directory) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for its path", w->path);
    char *slash = strrchr(w->directory, '/');
    if (slash) slash[slash == w->directory] = '\0';
    else strcpy(w->directory, ".");
    return true;
}

static bool open_temporary(tn_file_writer *w) {
    static atomic_uint counter;
    struct stat info;
    /* Renaming over a device or a pipe would replace it. */
    if (stat(w->path, &info) == 0 && !S_ISREG(info.st_mode)) return FAIL(w, TN_ERR_IO, "%s: exists and is not a regular file", w->path);
    for (int attempt = 0; attempt < 100; attempt++) {
        snprintf(w->temporary, strlen(w->path) + SUFFIX_BYTES, "%s.tmp.%ld.%u", w->path, (long)getpid(), atomic_fetch_add(&counter, 1u));
        w->descriptor = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->descriptor >= 0) return true;
        if (errno != EEXIST) break;
    }
    return FAIL_SYSTEM(w, "a temporary file beside it can't be made");
}

bool tn_file_writer_begin(tn_file_writer *w, tn_context *cx, const char *op, const char *path) {
    *w = (tn_file_writer){ .cx = cx, .op = op, .path = path, .descriptor = -1 };
    return make_paths(w) && open_temporary(w);
}

/* ---- contents ---- */

bool tn_file_writer_bytes(tn_file_writer *w, const void *bytes, size_t n_bytes) {
    const char *at = bytes;
    while (n_bytes > 0) {
        ssize_t written = write(w->descriptor, at, n_bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return FAIL_SYSTEM(w, "write");
        at += written;
        n_bytes -= (size_t)written;
    }
    return true;
}

static bool write_dense(tn_file_writer *w, const tn_tensor *t, unsigned char *chunk) {
    tn_device *device = w->cx->device;
    size_t n_bytes = tn_bytes(t);
    for (size_t at = 0; at < n_bytes; at += CHUNK_BYTES) {
        size_t part = n_bytes - at < CHUNK_BYTES ? n_bytes - at : CHUNK_BYTES;
        tn_status status = device->interface->copy_to_host(device, chunk, (const char *)t->data + at, part, w->cx->stream);
        if (status != TN_OK) return TN_FAIL_DEVICE(w->cx, status, w->op);
        if (!tn_file_writer_bytes(w, chunk, part)) return false;
    }
    return true;
}

bool tn_file_writer_tensor(tn_file_writer *w, const tn_tensor *t, const char *name) {
    bool dense = tn_is_contiguous(t);
    size_t n_bytes = tn_bytes(t), room = dense && n_bytes > CHUNK_BYTES ? CHUNK_BYTES : n_bytes + 1;
    unsigned char *bytes = tn_host_alloc(room);
    if (!bytes) return FAIL(w, TN_ERR_HOST_MEMORY, "%s: no host memory for tensor '%s'", w->path, tn_show(name).text);
    bool written = dense ? write_dense(w, t, bytes) : tn_to_data(t, bytes, n_bytes) && tn_file_writer_bytes(w, bytes, n_bytes);
    tn_host_free(bytes);
    return written;
}

/* ---- the end ---- */

/* After this the new name is on the disk too. A file system that can't do that for directories is not an error. */
static bool sync_directory(tn_file_writer *w) {
    int directory = open(w->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return true;
    bool failed = fsync(directory) != 0 && errno != EINVAL && errno != ENOTSUP;
    int error = errno;
    close(directory);
    errno = error;
    return !failed || FAIL_SYSTEM(w, "written, but fsync of its directory failed");
}

static bool close_temporary(tn_file_writer *w) {
    int descriptor = w->descriptor;
    w->descriptor = -1;
    return close(descriptor) == 0 || FAIL_SYSTEM(w, "close");
}

static bool put_in_place(tn_file_writer *w) {
    if (fsync(w->descriptor) != 0) return FAIL_SYSTEM(w, "fsync");
    return close_temporary(w) && (rename(w->temporary, w->path) == 0 || FAIL_SYSTEM(w, "rename"));
}

bool tn_file_writer_finish(tn_file_writer *w, bool well) {
    bool made = w->descriptor >= 0;
    bool written = well && made && put_in_place(w);
    if (w->descriptor >= 0) close(w->descriptor);
    if (made && !written) unlink(w->temporary);
    written = written && sync_directory(w);
    tn_host_free(w->temporary);
    tn_host_free(w->directory);
    return written;
}
