/* A whole file mapped for reading. */
#ifndef TENON_FILE_MAP_H
#define TENON_FILE_MAP_H

#include "context.h"

typedef struct tn_file_map {
    const unsigned char *bytes; /* NULL: not open, or empty */
    size_t n_bytes;
} tn_file_map;

/* An error on cx, in the name of `op`, for what is not a regular file that can be read. */
bool tn_file_map_open(tn_context *cx, const char *op, const char *path, tn_file_map *map);
void tn_file_map_close(tn_file_map *map);

#endif
