#include <stdlib.h>
#include <string.h>

#include "data_file.h"
#include "data_vocabulary_internal.h"

/* {"kind": "characters", "end": -1, "tokens": ["\n", " ", "!", ..]}. The bytes of a tokenizer's token need not be UTF-8, so there each
 * byte stands as the code point of the same number. */

static const char *const kind_names[] = {
    [TN_VOCABULARY_BYTE] = "byte",
    [TN_VOCABULARY_CHARACTERS] = "characters",
    [TN_VOCABULARY_TOKENIZER] = "tokenizer",
};

static json_t *token_json(const tn_vocabulary *vocabulary, int64_t token) {
    size_t n_bytes = 0, length = 0;
    const char *text = tn_vocabulary_text(vocabulary, token, &n_bytes);
    if (vocabulary->kind == TN_VOCABULARY_CHARACTERS) return json_stringn(text, n_bytes);
    char *widened = malloc(2 * n_bytes + 4);
    if (!widened) return NULL;
    for (size_t i = 0; i < n_bytes; i++) length += tn_data_put_code_point((unsigned char)text[i], widened + length);
    json_t *json = json_stringn(widened, length);
    free(widened);
    return json;
}

json_t *tn_vocabulary_json(const tn_vocabulary *vocabulary) {
    if (!vocabulary) return NULL;
    json_t *tokens = json_array();
    bool fine = tokens != NULL;
    for (int64_t token = 0; fine && vocabulary->kind != TN_VOCABULARY_BYTE && token < vocabulary->n; token++)
        fine = json_array_append_new(tokens, token_json(vocabulary, token)) == 0;
    json_t *json =
        fine ? json_pack("{s:s, s:I, s:O}", "kind", kind_names[vocabulary->kind], "end", (json_int_t)vocabulary->end, "tokens", tokens)
             : NULL;
    json_decref(tokens);
    return json;
}

/* ---- back ---- */

#define FAIL(...) tn_fail(cx, TN_ERR_FORMAT, "tn_vocabulary_from_json", __VA_ARGS__)

/* Appends the token's bytes; false where the text is not what its kind wants. */
static bool put_token(tn_vocabulary *vocabulary, const json_t *text) {
    const unsigned char *bytes = (const unsigned char *)json_string_value(text);
    size_t n_bytes = json_string_length(text), length;
    if (!bytes || n_bytes == 0) return false;
    uint32_t code = 0;
    if (vocabulary->kind == TN_VOCABULARY_CHARACTERS) {
        if (tn_data_code_point(bytes, n_bytes, &code) != n_bytes) return false;
        tn_vocabulary_put(vocabulary, (const char *)bytes, n_bytes);
        return true;
    }
    char narrow[256];
    size_t n_narrow = 0;
    for (size_t at = 0; at < n_bytes; at += length) {
        length = tn_data_code_point(bytes + at, n_bytes - at, &code);
        if (length == 0 || code > 0xff || n_narrow == sizeof narrow) return false;
        narrow[n_narrow++] = (char)code;
    }
    tn_vocabulary_put(vocabulary, narrow, n_narrow);
    return true;
}

static bool put_tokens(tn_context *cx, tn_vocabulary *vocabulary, const json_t *tokens, const char *path) {
    size_t index;
    json_t *text;
    json_array_foreach(tokens, index, text) {
        if (!put_token(vocabulary, text))
            return FAIL("%s: token %zu is not %s", path, index,
                        vocabulary->kind == TN_VOCABULARY_CHARACTERS ? "one character" : "a text of 1 to 256 bytes");
    }
    bool distinct = tn_vocabulary_index(vocabulary);
    if (!distinct && vocabulary->kind == TN_VOCABULARY_CHARACTERS) return FAIL("%s: a character stands twice", path);
    return true;
}

static size_t text_bytes(const json_t *tokens) {
    size_t index, n_bytes = 0;
    json_t *text;
    json_array_foreach(tokens, index, text) n_bytes += json_string_length(text);
    return n_bytes;
}

static bool check_json(tn_context *cx, const json_t *json, const char *path) {
    static const char *const wanted[] = { "kind", "end", "tokens" };
    if (!json_is_object(json) || json_object_size(json) != 3) return FAIL("%s: not an object with kind, end and tokens alone", path);
    for (size_t i = 0; i < 3; i++)
        if (!json_object_get(json, wanted[i])) return FAIL("%s: %s is missing", path, wanted[i]);
    const json_t *tokens = json_object_get(json, "tokens");
    if (!json_is_array(tokens) || (int64_t)json_array_size(tokens) > TN_VOCABULARY_MAX || text_bytes(tokens) > UINT32_MAX)
        return FAIL("%s: tokens is not an array, or too long", path);
    if (!json_is_integer(json_object_get(json, "end"))) return FAIL("%s: end is not an integer", path);
    return true;
}

tn_vocabulary *tn_vocabulary_from_json(tn_context *cx, const json_t *json, const char *path) {
    if (!cx || tn_failed(cx) || !check_json(cx, json, path)) return NULL;
    const char *name = json_string_value(json_object_get(json, "kind"));
    const json_t *tokens = json_object_get(json, "tokens");
    int kind = TN_VOCABULARY_TOKENIZER;
    while (kind >= 0 && (!name || strcmp(name, kind_names[kind]) != 0)) kind--;
    if (kind < 0) return FAIL("%s: kind is none of byte, characters and tokenizer", path);
    if ((kind == TN_VOCABULARY_BYTE) != (json_array_size(tokens) == 0))
        return FAIL("%s: %zu tokens for kind %s", path, json_array_size(tokens), name);
    if (kind == TN_VOCABULARY_BYTE) return tn_vocabulary_bytes(cx);
    tn_vocabulary *vocabulary = tn_vocabulary_new(cx, (tn_vocabulary_kind)kind, (int64_t)json_array_size(tokens), text_bytes(tokens));
    if (!vocabulary) return NULL;
    bool fine = put_tokens(cx, vocabulary, tokens, path);
    vocabulary->end = json_integer_value(json_object_get(json, "end"));
    if (fine && (vocabulary->end < -1 || vocabulary->end >= vocabulary->n))
        fine = FAIL("%s: end is %lld, there are %lld tokens", path, (long long)vocabulary->end, (long long)vocabulary->n);
    if (fine) return vocabulary;
    tn_vocabulary_free(vocabulary);
    return NULL;
}

tn_vocabulary *tn_vocabulary_load(tn_context *cx, const char *path) {
    if (!cx || tn_failed(cx)) return NULL;
    tn_data_map map;
    if (!tn_data_map_open(cx, "tn_vocabulary_load", path, &map)) return NULL;
    json_error_t error;
    json_t *json = json_loadb((const char *)map.bytes, map.n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    tn_vocabulary *vocabulary = NULL;
    if (json) vocabulary = tn_vocabulary_from_json(cx, json, path);
    else tn_fail(cx, TN_ERR_FORMAT, "tn_vocabulary_load", "%s: not valid JSON: line %d: %s", path, error.line, error.text);
    json_decref(json);
    tn_data_map_close(&map);
    return vocabulary;
}
