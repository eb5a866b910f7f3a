#include <string.h>

#include "data_file.h"
#include "data_vocabulary_internal.h"

/* llm.c's file: 256 uint32 (magic, version, number of tokens, end of text), then for each token a byte of length and its bytes. */
#define HEADER_BYTES ((size_t)256 * 4)
#define MAGIC 20240328u
#define GPT2_END 50256 /* version 1 does not say it */

#define FAIL(...) tn_fail(cx, TN_ERR_FORMAT, "tn_vocabulary_tokenizer", __VA_ARGS__)

static bool check_header(tn_context *cx, const tn_data_map *map, int64_t *n, int64_t *end) {
    if (map->n_bytes < HEADER_BYTES)
        return FAIL("%s: truncated: %zu bytes, a tokenizer's header alone has %zu", map->path, map->n_bytes, HEADER_BYTES);
    uint32_t magic = tn_data_u32(map->bytes), version = tn_data_u32(map->bytes + 4);
    if (magic != MAGIC) return FAIL("%s: not a tokenizer file: its magic number is %u, wanted %u", map->path, magic, MAGIC);
    if (version != 1 && version != 2) return FAIL("%s: a tokenizer of version %u, only 1 and 2 are known", map->path, version);
    *n = tn_data_u32(map->bytes + 8);
    *end = version == 2 ? (int64_t)tn_data_u32(map->bytes + 12) : GPT2_END;
    if (*n < 1 || *n > TN_VOCABULARY_MAX) return FAIL("%s: its header claims %lld tokens", map->path, (long long)*n);
    if (*n > (int64_t)(map->n_bytes - HEADER_BYTES) / 2)
        return FAIL("%s: truncated: %lld tokens do not fit into its %zu bytes", map->path, (long long)*n, map->n_bytes);
    if (*end >= *n) return FAIL("%s: the end-of-text token %lld is not among the %lld tokens", map->path, (long long)*end, (long long)*n);
    return true;
}

static bool read_tokens(tn_context *cx, const tn_data_map *map, int64_t n, tn_vocabulary *vocabulary) {
    size_t at = HEADER_BYTES;
    for (int64_t token = 0; token < n; token++) {
        size_t rest = map->n_bytes - at, length = rest ? map->bytes[at] : 0;
        if (rest == 0 || length + 1 > rest)
            return FAIL("%s: truncated: it ends within token %lld of %lld", map->path, (long long)token, (long long)n);
        if (length == 0) return FAIL("%s: token %lld is empty", map->path, (long long)token);
        tn_vocabulary_put(vocabulary, (const char *)map->bytes + at + 1, length);
        at += length + 1;
    }
    if (at != map->n_bytes) return FAIL("%s: %zu bytes after the last token", map->path, map->n_bytes - at);
    return true;
}

tn_vocabulary *tn_vocabulary_tokenizer(tn_context *cx, const char *path) {
    if (!cx || tn_failed(cx)) return NULL;
    tn_data_map map;
    int64_t n = 0, end = 0;
    if (!tn_data_map_open(cx, "tn_vocabulary_tokenizer", path, &map)) return NULL;
    tn_vocabulary *vocabulary = NULL;
    if (check_header(cx, &map, &n, &end)) vocabulary = tn_vocabulary_new(cx, TN_VOCABULARY_TOKENIZER, n, map.n_bytes);
    if (vocabulary && read_tokens(cx, &map, n, vocabulary)) {
        vocabulary->end = end;
        tn_vocabulary_index(vocabulary);
    } else {
        tn_vocabulary_free(vocabulary);
        vocabulary = NULL;
    }
    tn_data_map_close(&map);
    return vocabulary;
}
