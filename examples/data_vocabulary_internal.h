/* How a vocabulary is laid out, for the files that make one. */
#ifndef TENON_DATA_VOCABULARY_INTERNAL_H
#define TENON_DATA_VOCABULARY_INTERNAL_H

#include "data_vocabulary.h"

typedef enum tn_vocabulary_kind { TN_VOCABULARY_BYTE, TN_VOCABULARY_CHARACTERS, TN_VOCABULARY_TOKENIZER } tn_vocabulary_kind;

struct tn_vocabulary {
    tn_vocabulary_kind kind;
    int64_t n, end;
    char *bytes;      /* the texts one after the other */
    uint32_t *begin;  /* [n + 1] into bytes */
    int64_t *buckets; /* hash table from text to token, -1: empty */
    uint64_t mask;    /* number of buckets - 1 */
};

/* A vocabulary with room for n tokens of n_bytes together, to be filled by _put in order and finished by _index. NULL without memory. */
tn_vocabulary *tn_vocabulary_new(tn_context *cx, tn_vocabulary_kind kind, int64_t n, size_t n_bytes);
void tn_vocabulary_put(tn_vocabulary *vocabulary, const char *text, size_t n_bytes);
/* Of two tokens with one text the first is found, and the call returns false. */
bool tn_vocabulary_index(tn_vocabulary *vocabulary);
/* The token with this text, -1 if there is none. */
int64_t tn_vocabulary_find(const tn_vocabulary *vocabulary, const char *text, size_t n_bytes);

#define TN_VOCABULARY_MAX ((int64_t)1 << 21)

#endif
