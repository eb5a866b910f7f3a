#include "data_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool map_descriptor(tn_context *cx, const char *op, int descriptor, tn_data_map *map) {
    struct stat info;
    if (fstat(descriptor, &info) != 0) return tn_fail(cx, TN_ERR_IO, op, "%s: %s", map->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return tn_fail(cx, TN_ERR_IO, op, "%s: not a regular file", map->path);
    if (info.st_size == 0) return tn_fail(cx, TN_ERR_FORMAT, op, "%s: the file is empty", map->path);
    void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (bytes == MAP_FAILED) return tn_fail(cx, TN_ERR_IO, op, "%s: mmap: %s", map->path, strerror(errno));
    map->bytes = bytes;
    map->n_bytes = (size_t)info.st_size;
    return true;
}

bool tn_data_map_open(tn_context *cx, const char *op, const char *path, tn_data_map *map) {
    *map = (tn_data_map){ .path = strdup(path) };
    if (!map->path) return tn_fail(cx, TN_ERR_HOST_MEMORY, op, "%s: no host memory", path);
    /* Not blocking, so that a FIFO is refused rather than waited for. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) tn_fail(cx, TN_ERR_IO, op, "%s: %s", path, strerror(errno));
    bool mapped = descriptor >= 0 && map_descriptor(cx, op, descriptor, map);
    if (descriptor >= 0) close(descriptor);
    if (!mapped) tn_data_map_close(map);
    return mapped;
}

void tn_data_map_close(tn_data_map *map) {
    if (map->bytes) munmap((void *)map->bytes, map->n_bytes);
    free(map->path);
    *map = (tn_data_map){ 0 };
}

size_t tn_data_code_point(const unsigned char *text, size_t n_bytes, uint32_t *code) {
    static const uint32_t smallest[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    if (n_bytes == 0) return 0;
    if (text[0] < 0x80) {
        *code = text[0];
        return 1;
    }
    size_t length = text[0] >= 0xf0 && text[0] < 0xf5   ? 4
                    : text[0] >= 0xe0 && text[0] < 0xf0 ? 3
                    : text[0] >= 0xc2 && text[0] < 0xe0 ? 2
                                                        : 0;
    if (length == 0 || length > n_bytes) return 0;
    uint32_t value = text[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) return 0;
        value = value << 6 | (text[i] & 0x3f);
    }
    if (value < smallest[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return 0;
    *code = value;
    return length;
}

size_t tn_data_put_code_point(uint32_t code, char text[4]) {
    size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (size_t i = length; i-- > 1; code >>= 6) text[i] = (char)(0x80 | (code & 0x3f));
    text[0] = (char)(lead[length] | code);
    return length;
}
