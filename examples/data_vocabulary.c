#include "data_vocabulary.h"

#include <stdlib.h>
#include <string.h>

#include "data_file.h"
#include "data_vocabulary_internal.h"

/* ---- making one ---- */

tn_vocabulary *tn_vocabulary_new(tn_context *cx, tn_vocabulary_kind kind, int64_t n, size_t n_bytes) {
    uint64_t n_buckets = 16;
    while (n_buckets < 2 * (uint64_t)n) n_buckets *= 2;
    tn_vocabulary *vocabulary = calloc(1, sizeof *vocabulary);
    if (vocabulary) {
        *vocabulary = (tn_vocabulary){ .kind = kind, .end = -1, .mask = n_buckets - 1 };
        vocabulary->bytes = malloc(n_bytes + 1);
        vocabulary->begin = calloc((size_t)n + 1, sizeof *vocabulary->begin);
        vocabulary->buckets = malloc(n_buckets * sizeof *vocabulary->buckets);
        if (vocabulary->bytes && vocabulary->begin && vocabulary->buckets) return vocabulary;
    }
    tn_vocabulary_free(vocabulary);
    return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_vocabulary", "no host memory for %lld tokens", (long long)n);
}

void tn_vocabulary_free(tn_vocabulary *vocabulary) {
    if (!vocabulary) return;
    free(vocabulary->bytes);
    free(vocabulary->begin);
    free(vocabulary->buckets);
    free(vocabulary);
}

void tn_vocabulary_put(tn_vocabulary *vocabulary, const char *text, size_t n_bytes) {
    uint32_t begin = vocabulary->begin[vocabulary->n];
    memcpy(vocabulary->bytes + begin, text, n_bytes);
    vocabulary->begin[++vocabulary->n] = begin + (uint32_t)n_bytes;
}

/* FNV-1a. */
static uint64_t hash_of(const char *text, size_t n_bytes) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n_bytes; i++) hash = (hash ^ (unsigned char)text[i]) * UINT64_C(0x100000001b3);
    return hash ^ hash >> 29;
}

/* The bucket that holds the text's token, or the empty one where it would go. */
static int64_t *bucket_of(const tn_vocabulary *vocabulary, const char *text, size_t n_bytes) {
    uint64_t at = hash_of(text, n_bytes) & vocabulary->mask;
    for (;; at = (at + 1) & vocabulary->mask) {
        int64_t token = vocabulary->buckets[at];
        if (token < 0) break;
        const uint32_t *begin = &vocabulary->begin[token];
        if (begin[1] - begin[0] == n_bytes && memcmp(vocabulary->bytes + begin[0], text, n_bytes) == 0) break;
    }
    return &vocabulary->buckets[at];
}

bool tn_vocabulary_index(tn_vocabulary *vocabulary) {
    bool distinct = true;
    for (uint64_t i = 0; i <= vocabulary->mask; i++) vocabulary->buckets[i] = -1;
    for (int64_t token = 0; token < vocabulary->n; token++) {
        const uint32_t *begin = &vocabulary->begin[token];
        int64_t *bucket = bucket_of(vocabulary, vocabulary->bytes + begin[0], begin[1] - begin[0]);
        if (*bucket < 0) *bucket = token;
        else distinct = false;
    }
    return distinct;
}

int64_t tn_vocabulary_find(const tn_vocabulary *vocabulary, const char *text, size_t n_bytes) {
    return *bucket_of(vocabulary, text, n_bytes);
}

tn_vocabulary *tn_vocabulary_bytes(tn_context *cx) {
    if (!cx || tn_failed(cx)) return NULL;
    tn_vocabulary *vocabulary = tn_vocabulary_new(cx, TN_VOCABULARY_BYTE, 256, 256);
    for (int byte = 0; vocabulary && byte < 256; byte++) tn_vocabulary_put(vocabulary, &(char){ (char)byte }, 1);
    if (vocabulary) tn_vocabulary_index(vocabulary);
    return vocabulary;
}

/* One bit for each code point there can be. */
#define N_CODE_WORDS (0x110000 / 64)

static bool mark_codes(tn_context *cx, const char *text, size_t n_bytes, uint64_t *seen) {
    size_t length;
    for (size_t at = 0; at < n_bytes; at += length) {
        uint32_t code = 0;
        length = tn_data_code_point((const unsigned char *)text + at, n_bytes - at, &code);
        if (length == 0)
            return tn_fail(cx, TN_ERR_FORMAT, "tn_vocabulary_characters",
                           "byte %zu (0x%02x) is not UTF-8 text; train on bytes instead (data kind \"byte\")", at, (unsigned char)text[at]);
        seen[code / 64] |= UINT64_C(1) << code % 64;
    }
    return true;
}

static void put_codes(tn_vocabulary *vocabulary, const uint64_t *seen) {
    for (uint32_t word = 0; word < N_CODE_WORDS; word++)
        for (uint64_t left = seen[word]; left; left &= left - 1) {
            char bytes[4] = "";
            size_t length = tn_data_put_code_point(64 * word + (uint32_t)__builtin_ctzll(left), bytes);
            tn_vocabulary_put(vocabulary, bytes, length);
        }
}

tn_vocabulary *tn_vocabulary_characters(tn_context *cx, const char *text, size_t n_bytes) {
    if (!cx || tn_failed(cx)) return NULL;
    uint64_t *seen = calloc(N_CODE_WORDS, sizeof *seen);
    if (!seen) return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_vocabulary_characters", "no host memory");
    tn_vocabulary *vocabulary = NULL;
    if (mark_codes(cx, text, n_bytes, seen)) {
        int64_t n = 0;
        for (int word = 0; word < N_CODE_WORDS; word++) n += __builtin_popcountll(seen[word]);
        vocabulary = tn_vocabulary_new(cx, TN_VOCABULARY_CHARACTERS, n, 4 * (size_t)n);
    }
    if (vocabulary) {
        put_codes(vocabulary, seen);
        tn_vocabulary_index(vocabulary);
    }
    free(seen);
    return vocabulary;
}

/* ---- reading one ---- */

int64_t tn_vocabulary_count(const tn_vocabulary *vocabulary) { return vocabulary ? vocabulary->n : 0; }
int64_t tn_vocabulary_end(const tn_vocabulary *vocabulary) { return vocabulary ? vocabulary->end : -1; }

const char *tn_vocabulary_text(const tn_vocabulary *vocabulary, int64_t token, size_t *n_bytes) {
    if (!vocabulary || token < 0 || token >= vocabulary->n) return NULL;
    *n_bytes = vocabulary->begin[token + 1] - vocabulary->begin[token];
    return vocabulary->bytes + vocabulary->begin[token];
}
