#include "file_map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool map_descriptor(tn_context *cx, const char *op, const char *path, int descriptor, tn_file_map *map) {
    struct stat info;
    if (fstat(descriptor, &info) != 0) return tn_fail(cx, TN_ERR_IO, op, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return tn_fail(cx, TN_ERR_IO, op, "%s: not a regular file", path);
    if (info.st_size == 0) return true;
    void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (bytes == MAP_FAILED) return tn_fail(cx, TN_ERR_IO, op, "%s: mmap: %s", path, strerror(errno));
    map->bytes = bytes;
    map->n_bytes = (size_t)info.st_size;
    return true;
}

bool tn_file_map_open(tn_context *cx, const char *op, const char *path, tn_file_map *map) {
    *map = (tn_file_map){ 0 };
    /* Not blocking, so that a FIFO is refused rather than waited for. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return tn_fail(cx, TN_ERR_IO, op, "%s: %s", path, strerror(errno));
    bool mapped = map_descriptor(cx, op, path, descriptor, map);
    close(descriptor);
    return mapped;
}

void tn_file_map_close(tn_file_map *map) {
    if (map->bytes) munmap((void *)map->bytes, map->n_bytes);
    *map = (tn_file_map){ 0 };
}
