#include <stdlib.h>
#include <string.h>

#include "data_file.h"
#include "data_vocabulary_internal.h"

static bool encode_characters(tn_context *cx, const tn_vocabulary *vocabulary, const char *text, size_t n_bytes, int64_t *ids, int64_t *n) {
    size_t length;
    for (size_t at = 0; at < n_bytes; at += length) {
        uint32_t code = 0;
        length = tn_data_code_point((const unsigned char *)text + at, n_bytes - at, &code);
        if (length == 0) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_vocabulary_encode", "byte %zu of the text is not UTF-8", at);
        ids[*n] = tn_vocabulary_find(vocabulary, text + at, length);
        if (ids[*n] < 0)
            return tn_fail(cx, TN_ERR_ARGUMENT, "tn_vocabulary_encode", "'%.*s' (U+%04X) is not among the %lld characters known",
                           (int)(code < 0x20 ? 0 : length), text + at, code, (long long)vocabulary->n);
        ++*n;
    }
    return true;
}

/* ---- byte pairs ---- */

typedef enum class { SPACE, LETTER, DIGIT, OTHER } class;

/* The class of the character a text begins with. Beyond ASCII what is not known as space or punctuation counts as a letter. */
static class class_of(const char *text, size_t n_bytes, size_t *length) {
    uint32_t code = 0;
    *length = tn_data_code_point((const unsigned char *)text, n_bytes, &code);
    if (*length == 0) {
        *length = 1;
        return OTHER;
    }
    if (code == ' ' || (code >= '\t' && code <= '\r') || code == 0x85 || code == 0xa0 || (code >= 0x2000 && code <= 0x200a) ||
        code == 0x2028 || code == 0x2029 || code == 0x3000)
        return SPACE;
    if (code >= '0' && code <= '9') return DIGIT;
    if ((code | 0x20) >= 'a' && (code | 0x20) <= 'z' && code < 0x80) return LETTER;
    bool punctuation =
        code < 0xaa || code == 0xd7 || code == 0xf7 || (code >= 0x2010 && code < 0x2c00) || (code >= 0x3001 && code < 0x3020);
    return punctuation || code >= 0x1f000 ? OTHER : LETTER;
}

static size_t run_length(const char *text, size_t n_bytes, class wanted, size_t *last) {
    size_t at = 0, length;
    while (at < n_bytes && class_of(text + at, n_bytes - at, &length) == wanted) {
        *last = at;
        at += length;
    }
    return at;
}

/* The next word as GPT-2 cuts them: 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?others|spaces, less the one before a word. */
static size_t word_length(const char *text, size_t n_bytes) {
    static const char *const endings[] = { "'s", "'t", "'re", "'ve", "'m", "'ll", "'d" };
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t length = strlen(endings[i]);
        if (length <= n_bytes && memcmp(text, endings[i], length) == 0) return length;
    }
    size_t lead = text[0] == ' ' && n_bytes > 1, length, last = 0;
    class kind = class_of(text + lead, n_bytes - lead, &length);
    if (kind != SPACE) return lead + run_length(text + lead, n_bytes - lead, kind, &last);
    length = run_length(text, n_bytes, SPACE, &last);
    return length < n_bytes && last > 0 ? last : length;
}

typedef struct piece {
    size_t begin, end;
    int64_t joined; /* the token of this piece and the next together, -1: none */
} piece;

static void look_up(const tn_vocabulary *vocabulary, const char *word, piece *pieces, size_t n, size_t i) {
    pieces[i].joined = i + 1 < n ? tn_vocabulary_find(vocabulary, word + pieces[i].begin, pieces[i + 1].end - pieces[i].begin) : -1;
}

/* Joins the pair whose token has the lowest number until no pair is a token: numbers were given in the order pairs were learnt. */
static size_t join_pairs(const tn_vocabulary *vocabulary, const char *word, size_t n, piece *pieces) {
    for (size_t i = 0; i < n; i++) pieces[i] = (piece){ .begin = i, .end = i + 1 };
    for (size_t i = 0; i < n; i++) look_up(vocabulary, word, pieces, n, i);
    for (;;) {
        size_t best = n;
        for (size_t i = 0; i + 1 < n; i++)
            if (pieces[i].joined >= 0 && (best == n || pieces[i].joined < pieces[best].joined)) best = i;
        if (best == n) return n;
        pieces[best].end = pieces[best + 1].end;
        memmove(&pieces[best + 1], &pieces[best + 2], (n - best - 2) * sizeof *pieces);
        n--;
        look_up(vocabulary, word, pieces, n, best);
        if (best > 0) look_up(vocabulary, word, pieces, n, best - 1);
    }
}

/* Longer words are cut, so that the time a text takes stays in proportion to its length. */
#define WORD_MAX ((size_t)256)

static bool encode_pairs(tn_context *cx, const tn_vocabulary *vocabulary, const char *text, size_t n_bytes, int64_t *ids, int64_t *n) {
    piece pieces[WORD_MAX];
    size_t length;
    for (size_t at = 0; at < n_bytes; at += length) {
        size_t rest = n_bytes - at;
        length = word_length(text + at, rest < WORD_MAX ? rest : WORD_MAX);
        size_t n_pieces = join_pairs(vocabulary, text + at, length, pieces);
        for (size_t i = 0; i < n_pieces; i++) {
            size_t begin = at + pieces[i].begin;
            ids[*n] = tn_vocabulary_find(vocabulary, text + begin, pieces[i].end - pieces[i].begin);
            if (ids[*n] < 0)
                return tn_fail(cx, TN_ERR_ARGUMENT, "tn_vocabulary_encode", "byte 0x%02x of the text has no token",
                               (unsigned char)text[begin]);
            ++*n;
        }
    }
    return true;
}

/* ---- the interface ---- */

int64_t tn_vocabulary_encode(tn_context *cx, const tn_vocabulary *vocabulary, const char *text, size_t n_bytes, int64_t **ids) {
    *ids = NULL;
    if (!cx || tn_failed(cx) || !vocabulary) return -1;
    int64_t *list = malloc((n_bytes + 1) * sizeof *list), n = 0;
    if (!list) {
        tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_vocabulary_encode", "no host memory for %zu bytes of text", n_bytes);
        return -1;
    }
    bool fine = true;
    if (vocabulary->kind == TN_VOCABULARY_CHARACTERS) fine = encode_characters(cx, vocabulary, text, n_bytes, list, &n);
    else if (vocabulary->kind == TN_VOCABULARY_TOKENIZER) fine = encode_pairs(cx, vocabulary, text, n_bytes, list, &n);
    else
        for (; n < (int64_t)n_bytes; n++) list[n] = (unsigned char)text[n];
    if (!fine) {
        free(list);
        return -1;
    }
    *ids = list;
    return n;
}
