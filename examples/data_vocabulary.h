/* The texts behind tokens: to encode a prompt, and to print what a model says. */
#ifndef TENON_DATA_VOCABULARY_H
#define TENON_DATA_VOCABULARY_H

#include <jansson.h>

#include "libtensor/tensor.h"

typedef struct tn_vocabulary tn_vocabulary;

/* A token for each of the 256 bytes. */
tn_vocabulary *tn_vocabulary_bytes(tn_context *cx);
/* A token for each distinct code point of a UTF-8 text, in order of their numbers. An error where the text is not UTF-8. */
tn_vocabulary *tn_vocabulary_characters(tn_context *cx, const char *text, size_t n_bytes);
/* llm.c's tokenizer file (gpt2_tokenizer.bin). */
tn_vocabulary *tn_vocabulary_tokenizer(tn_context *cx, const char *path);
/* nanoGPT's meta.pkl: the pickle of a dict with vocab_size, itos and stoi. Nothing else is read from a pickle, and nothing is run. */
tn_vocabulary *tn_vocabulary_nanogpt(tn_context *cx, const char *path);
void tn_vocabulary_free(tn_vocabulary *vocabulary);

int64_t tn_vocabulary_count(const tn_vocabulary *vocabulary);
/* The bytes of a token; not ended by a zero. NULL outside the vocabulary. */
const char *tn_vocabulary_text(const tn_vocabulary *vocabulary, int64_t token, size_t *n_bytes);
/* The end-of-text token, -1 where there is none. */
int64_t tn_vocabulary_end(const tn_vocabulary *vocabulary);

/* Encodes a text into *ids, for free(). -1 with an error on cx where a character has no token, or without memory. Tokenizer files are
 * encoded as GPT-2 does it: the text is cut into words, and in each the pair of neighbours with the lowest number is joined first. */
int64_t tn_vocabulary_encode(tn_context *cx, const tn_vocabulary *vocabulary, const char *text, size_t n_bytes, int64_t **ids);

/* To and from JSON, for checkpoints. json_decref what the first gives; NULL without memory. */
json_t *tn_vocabulary_json(const tn_vocabulary *vocabulary);
tn_vocabulary *tn_vocabulary_from_json(tn_context *cx, const json_t *json, const char *path);
/* The same from a file. */
tn_vocabulary *tn_vocabulary_load(tn_context *cx, const char *path);

#endif
