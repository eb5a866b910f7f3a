/* A whole file mapped for reading, and the token streams made of such files. */
#ifndef TENON_DATA_FILE_H
#define TENON_DATA_FILE_H

#include "libtensor/tensor.h"

typedef struct tn_data_map {
    char *path;
    const unsigned char *bytes;
    size_t n_bytes;
} tn_data_map;

/* `op` is the call an error is reported under. An empty file is an error. */
bool tn_data_map_open(tn_context *cx, const char *op, const char *path, tn_data_map *map);
void tn_data_map_close(tn_data_map *map);

static inline uint32_t tn_data_u32(const unsigned char *bytes) {
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* The code point that a UTF-8 text begins with and its length in bytes; 0 where it is not UTF-8. */
size_t tn_data_code_point(const unsigned char *text, size_t n_bytes, uint32_t *code);
/* Writes a code point as UTF-8 and returns its length. */
size_t tn_data_put_code_point(uint32_t code, char text[4]);

/* Tokens one after the other, over one or several files. */
typedef struct tn_data_segment {
    tn_data_map map;
    uint16_t *own;               /* tokens made from a text; NULL where they are read from the map */
    const unsigned char *tokens; /* little-endian, `width` bytes each */
    int width;
    int64_t first, n;
} tn_data_segment;

typedef struct tn_data_stream {
    tn_data_segment *segments;
    int64_t n_segments;
    int64_t n_tokens;
} tn_data_stream;

/* Opens files of uint16 tokens: plain ones, or (with `shards`) llm.c's, whose headers are checked. `pattern` may be a glob. */
bool tn_data_stream_open(tn_context *cx, const char *pattern, bool shards, tn_data_stream *stream);
/* The bytes of one file as tokens. */
bool tn_data_stream_bytes(tn_context *cx, const char *path, tn_data_stream *stream);
void tn_data_stream_close(tn_data_stream *stream);
/* Does the file begin with llm.c's magic number? False, without an error, also where it can't be read. */
bool tn_data_is_shard(const char *path);

/* Tokens at .. at + n - 1, which the stream must have. An error where one is not below vocab. */
bool tn_data_stream_read(tn_context *cx, const tn_data_stream *stream, int64_t at, int64_t n, int64_t vocab, int64_t *tokens);

#endif
