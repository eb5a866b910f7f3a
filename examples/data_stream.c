#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data_file.h"

#define OPEN_OP "tn_data_open"

/* llm.c's shards: 256 int32, of which three say something, then uint16 tokens. */
#define SHARD_HEADER_BYTES ((size_t)256 * 4)
#define SHARD_MAGIC 20240520u
#define SHARD_VERSION 1u

static bool read_shard_header(tn_context *cx, tn_data_segment *segment) {
    const tn_data_map *map = &segment->map;
    if (map->n_bytes < SHARD_HEADER_BYTES)
        return tn_fail(cx, TN_ERR_FORMAT, OPEN_OP, "%s: truncated: %zu bytes, a shard's header alone has %zu", map->path, map->n_bytes,
                       SHARD_HEADER_BYTES);
    uint32_t magic = tn_data_u32(map->bytes), version = tn_data_u32(map->bytes + 4), n_tokens = tn_data_u32(map->bytes + 8);
    if (magic != SHARD_MAGIC)
        return tn_fail(cx, TN_ERR_FORMAT, OPEN_OP, "%s: not a token shard: its magic number is %u, wanted %u", map->path, magic,
                       SHARD_MAGIC);
    if (version != SHARD_VERSION)
        return tn_fail(cx, TN_ERR_FORMAT, OPEN_OP, "%s: a shard of version %u, only version %u is known", map->path, version,
                       SHARD_VERSION);
    if ((int32_t)n_tokens <= 0)
        return tn_fail(cx, TN_ERR_FORMAT, OPEN_OP, "%s: its header claims %d tokens", map->path, (int)(int32_t)n_tokens);
    size_t n_bytes = SHARD_HEADER_BYTES + (size_t)n_tokens * 2;
    if (map->n_bytes != n_bytes)
        return tn_fail(cx, TN_ERR_FORMAT, OPEN_OP, "%s: %s: %u tokens make a file of %zu bytes, it has %zu", map->path,
                       map->n_bytes < n_bytes ? "truncated" : "too long", n_tokens, n_bytes, map->n_bytes);
    segment->tokens = map->bytes + SHARD_HEADER_BYTES;
    segment->n = (int64_t)n_tokens;
    return true;
}

static bool read_plain(tn_context *cx, tn_data_segment *segment) {
    const tn_data_map *map = &segment->map;
    if (map->n_bytes % 2)
        return tn_fail(cx, TN_ERR_FORMAT, OPEN_OP, "%s: %zu bytes are no whole number of uint16 tokens", map->path, map->n_bytes);
    segment->tokens = map->bytes;
    segment->n = (int64_t)(map->n_bytes / 2);
    return true;
}

static bool add_file(tn_context *cx, const char *path, bool shards, tn_data_stream *stream) {
    tn_data_segment *segment = &stream->segments[stream->n_segments];
    if (!tn_data_map_open(cx, OPEN_OP, path, &segment->map)) return false;
    stream->n_segments++;
    segment->width = 2;
    segment->first = stream->n_tokens;
    if (!(shards ? read_shard_header(cx, segment) : read_plain(cx, segment))) return false;
    stream->n_tokens += segment->n;
    return true;
}

bool tn_data_stream_open(tn_context *cx, const char *pattern, bool shards, tn_data_stream *stream) {
    *stream = (tn_data_stream){ 0 };
    glob_t found = { 0 };
    /* A name with no wildcard stays as it is, so that opening it says what is wrong with it. */
    int code = glob(pattern, GLOB_NOMAGIC, NULL, &found);
    bool fine = true;
    if (code == GLOB_NOMATCH || (code == 0 && found.gl_pathc == 0)) fine = tn_fail(cx, TN_ERR_IO, OPEN_OP, "%s: no file matches", pattern);
    else if (code == GLOB_NOSPACE) fine = tn_fail(cx, TN_ERR_HOST_MEMORY, OPEN_OP, "%s: no host memory", pattern);
    else if (code != 0) fine = tn_fail(cx, TN_ERR_IO, OPEN_OP, "%s: a folder can't be read", pattern);
    if (fine && !(stream->segments = calloc(found.gl_pathc, sizeof *stream->segments)))
        fine = tn_fail(cx, TN_ERR_HOST_MEMORY, OPEN_OP, "%s: no host memory", pattern);
    for (size_t i = 0; fine && i < found.gl_pathc; i++) fine = add_file(cx, found.gl_pathv[i], shards, stream);
    globfree(&found);
    if (!fine) tn_data_stream_close(stream);
    return fine;
}

bool tn_data_stream_bytes(tn_context *cx, const char *path, tn_data_stream *stream) {
    *stream = (tn_data_stream){ .segments = calloc(1, sizeof *stream->segments) };
    if (!stream->segments) return tn_fail(cx, TN_ERR_HOST_MEMORY, OPEN_OP, "%s: no host memory", path);
    tn_data_segment *segment = stream->segments;
    if (!tn_data_map_open(cx, OPEN_OP, path, &segment->map)) {
        tn_data_stream_close(stream);
        return false;
    }
    segment->width = 1;
    segment->tokens = segment->map.bytes;
    stream->n_segments = 1;
    stream->n_tokens = segment->n = (int64_t)segment->map.n_bytes;
    return true;
}

void tn_data_stream_close(tn_data_stream *stream) {
    for (int64_t i = 0; i < stream->n_segments; i++) {
        tn_data_map_close(&stream->segments[i].map);
        free(stream->segments[i].own);
    }
    free(stream->segments);
    *stream = (tn_data_stream){ 0 };
}

bool tn_data_is_shard(const char *path) {
    unsigned char magic[4];
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return false;
    bool is_shard = read(descriptor, magic, sizeof magic) == (ssize_t)sizeof magic && tn_data_u32(magic) == SHARD_MAGIC;
    close(descriptor);
    return is_shard;
}

/* The segment that holds token `at`. */
static const tn_data_segment *segment_of(const tn_data_stream *stream, int64_t at) {
    int64_t low = 0, high = stream->n_segments;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (stream->segments[middle].first <= at) low = middle;
        else high = middle;
    }
    return &stream->segments[low];
}

bool tn_data_stream_read(tn_context *cx, const tn_data_stream *stream, int64_t at, int64_t n, int64_t vocab, int64_t *tokens) {
    while (n > 0) {
        const tn_data_segment *segment = segment_of(stream, at);
        int64_t from = at - segment->first, part = segment->n - from < n ? segment->n - from : n;
        for (int64_t i = 0; i < part; i++) {
            const unsigned char *token = segment->tokens + (from + i) * segment->width;
            tokens[i] = segment->width == 1 ? token[0] : token[0] | token[1] << 8;
            if (tokens[i] >= vocab)
                return tn_fail(cx, TN_ERR_FORMAT, "tn_data_rows", "%s: token %lld is %lld, but there are only %lld tokens (0 to %lld)",
                               segment->map.path, (long long)(from + i), (long long)tokens[i], (long long)vocab, (long long)(vocab - 1));
        }
        at += part, n -= part, tokens += part;
    }
    return true;
}
