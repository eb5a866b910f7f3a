#include <stdlib.h>
#include <string.h>

#include "data_file.h"
#include "data_vocabulary_internal.h"

/* nanoGPT's meta.pkl is the pickle of {'vocab_size': n, 'itos': {0: '\n', ..}, 'stoi': {'\n': 0, ..}}. Dicts, integers, texts and the memo
 * are all that such a pickle needs, so every other instruction is refused. */

typedef enum value_kind { VALUE_MARK, VALUE_INTEGER, VALUE_TEXT, VALUE_DICT } value_kind;

typedef struct value {
    value_kind kind;
    int64_t number; /* an integer, or which dict */
    const char *text;
    size_t length;
} value;

typedef struct pair {
    int64_t dict;
    value key, value;
} pair;

/* Everything an instruction can make takes at least one byte of the file, so arrays of that many entries suffice. */
typedef struct reader {
    tn_context *cx;
    const tn_data_map *map;
    size_t at;
    value *stack, *memo;
    pair *pairs;
    size_t n_stack, n_memo, n_pairs;
    int64_t n_dicts;
} reader;

#define MAX_BYTES ((size_t)16 << 20)

static bool fail_at(const reader *r, const char *what) {
    return tn_fail(r->cx, TN_ERR_FORMAT, "tn_vocabulary_nanogpt", "%s: byte %zu: %s", r->map->path, r->at, what);
}

/* ---- instructions ---- */

/* The next n bytes; NULL, with an error, where there are not so many. */
static const unsigned char *take(reader *r, size_t n) {
    if (n > r->map->n_bytes - r->at) {
        fail_at(r, "truncated");
        return NULL;
    }
    r->at += n;
    return r->map->bytes + r->at - n;
}

/* Little-endian, n at most 8. */
static bool take_number(reader *r, size_t n, uint64_t *number) {
    const unsigned char *bytes = take(r, n);
    *number = 0;
    for (size_t i = 0; bytes && i < n; i++) *number |= (uint64_t)bytes[i] << 8 * i;
    return bytes != NULL;
}

static bool push(reader *r, value v) {
    r->stack[r->n_stack++] = v;
    return true;
}

static bool push_integer(reader *r, size_t n) {
    uint64_t number;
    if (!take_number(r, n, &number)) return false;
    return push(r, (value){ .kind = VALUE_INTEGER, .number = n == 4 ? (int32_t)(uint32_t)number : (int64_t)number });
}

static bool push_text(reader *r, size_t n_length) {
    uint64_t length;
    if (!take_number(r, n_length, &length)) return false;
    const unsigned char *bytes = take(r, length);
    if (!bytes) return false;
    return push(r, (value){ .kind = VALUE_TEXT, .text = (const char *)bytes, .length = length });
}

static bool push_memo(reader *r, size_t n) {
    uint64_t index;
    if (!take_number(r, n, &index)) return false;
    return index < r->n_memo ? push(r, r->memo[index]) : fail_at(r, "a memo that was never set");
}

/* Older pickles say where in the memo; they do so in order. */
static bool remember(reader *r, size_t n) {
    uint64_t index = r->n_memo;
    if (n > 0 && !take_number(r, n, &index)) return false;
    if (index != r->n_memo) return fail_at(r, "a memo out of order");
    if (r->n_stack == 0) return fail_at(r, "nothing on the stack");
    r->memo[r->n_memo++] = r->stack[r->n_stack - 1];
    return true;
}

/* The n values on top of the stack are keys and values of the dict below them (and below the mark, if there is one). */
static bool set_items(reader *r, size_t n, bool mark) {
    size_t first = r->n_stack - n, below = first - mark;
    if (n % 2 || below == 0 || r->stack[below - 1].kind != VALUE_DICT) return fail_at(r, "items without a dict");
    for (size_t i = first; i < r->n_stack; i += 2) {
        if (r->stack[i].kind == VALUE_MARK || r->stack[i + 1].kind == VALUE_MARK) return fail_at(r, "a mark among items");
        r->pairs[r->n_pairs++] = (pair){ r->stack[below - 1].number, r->stack[i], r->stack[i + 1] };
    }
    r->n_stack = below;
    return true;
}

static bool set_items_to_mark(reader *r) {
    size_t n = 0;
    while (n < r->n_stack && r->stack[r->n_stack - 1 - n].kind != VALUE_MARK) n++;
    return n < r->n_stack ? set_items(r, n, true) : fail_at(r, "items without a mark");
}

static bool run_one(reader *r, unsigned char instruction) {
    switch (instruction) {
    case 0x80: return take(r, 1) != NULL; /* PROTO */
    case 0x95: return take(r, 8) != NULL; /* FRAME */
    case '}': return push(r, (value){ .kind = VALUE_DICT, .number = r->n_dicts++ });
    case '(': return push(r, (value){ .kind = VALUE_MARK });
    case 'K': return push_integer(r, 1);
    case 'M': return push_integer(r, 2);
    case 'J': return push_integer(r, 4);
    case 0x8c: return push_text(r, 1);
    case 'X': return push_text(r, 4);
    case 0x94: return remember(r, 0); /* MEMOIZE */
    case 'q': return remember(r, 1);
    case 'r': return remember(r, 4);
    case 'h': return push_memo(r, 1);
    case 'j': return push_memo(r, 4);
    case 's': return r->n_stack >= 2 ? set_items(r, 2, false) : fail_at(r, "an item without a dict");
    case 'u': return set_items_to_mark(r);
    default: return fail_at(r, "an instruction that the pickle of nanoGPT's meta does not need");
    }
}

static bool run(reader *r) {
    const unsigned char *instruction;
    while ((instruction = take(r, 1)) && *instruction != '.')
        if (!run_one(r, *instruction)) return false;
    if (!instruction) return false;
    if (r->at != r->map->n_bytes) return fail_at(r, "bytes after the pickle's end");
    if (r->n_stack != 1 || r->stack[0].kind != VALUE_DICT) return fail_at(r, "the pickle is not one dict");
    return true;
}

/* ---- the vocabulary in it ---- */

static const value *item(const reader *r, const char *name, value_kind kind) {
    for (size_t i = r->n_pairs; i-- > 0;) {
        const pair *p = &r->pairs[i];
        if (p->dict == r->stack[0].number && p->key.kind == VALUE_TEXT && p->key.length == strlen(name) &&
            memcmp(p->key.text, name, p->key.length) == 0)
            return p->value.kind == kind ? &p->value : NULL;
    }
    return NULL;
}

static bool fill_texts(const reader *r, int64_t itos, int64_t n, const value **texts, size_t *n_bytes) {
    for (size_t i = 0; i < r->n_pairs; i++) {
        const pair *p = &r->pairs[i];
        if (p->dict != itos) continue;
        uint32_t code;
        bool one = p->value.kind == VALUE_TEXT &&
                   tn_data_code_point((const unsigned char *)p->value.text, p->value.length, &code) == p->value.length;
        if (!one || p->value.length == 0 || p->key.kind != VALUE_INTEGER || p->key.number < 0 || p->key.number >= n || texts[p->key.number])
            return fail_at(r, "itos does not give each of vocab_size tokens one character");
        texts[p->key.number] = &p->value;
        *n_bytes += p->value.length;
    }
    for (int64_t token = 0; token < n; token++)
        if (!texts[token]) return fail_at(r, "itos lacks a token");
    return true;
}

static tn_vocabulary *make_vocabulary(const reader *r) {
    const value *size = item(r, "vocab_size", VALUE_INTEGER), *itos = item(r, "itos", VALUE_DICT);
    if (!size || !itos || size->number < 1 || size->number > (int64_t)r->n_pairs) {
        fail_at(r, "it lacks a usable vocab_size or itos");
        return NULL;
    }
    size_t n_bytes = 0;
    const value **texts = calloc((size_t)size->number, sizeof *texts);
    if (!texts) return tn_fail(r->cx, TN_ERR_HOST_MEMORY, "tn_vocabulary_nanogpt", "%s: no host memory", r->map->path);
    tn_vocabulary *vocabulary = NULL;
    if (fill_texts(r, itos->number, size->number, texts, &n_bytes))
        vocabulary = tn_vocabulary_new(r->cx, TN_VOCABULARY_CHARACTERS, size->number, n_bytes);
    for (int64_t token = 0; vocabulary && token < size->number; token++)
        tn_vocabulary_put(vocabulary, texts[token]->text, texts[token]->length);
    if (vocabulary && !tn_vocabulary_index(vocabulary)) {
        fail_at(r, "itos gives two tokens one character");
        tn_vocabulary_free(vocabulary);
        vocabulary = NULL;
    }
    free(texts);
    return vocabulary;
}

tn_vocabulary *tn_vocabulary_nanogpt(tn_context *cx, const char *path) {
    if (!cx || tn_failed(cx)) return NULL;
    tn_data_map map;
    if (!tn_data_map_open(cx, "tn_vocabulary_nanogpt", path, &map)) return NULL;
    reader r = { .cx = cx, .map = &map };
    tn_vocabulary *vocabulary = NULL;
    if (map.n_bytes > MAX_BYTES) {
        fail_at(&r, "the file is larger than the pickle of any set of characters");
    } else {
        r.stack = malloc(map.n_bytes * sizeof *r.stack);
        r.memo = malloc(map.n_bytes * sizeof *r.memo);
        r.pairs = malloc(map.n_bytes * sizeof *r.pairs);
        if (!r.stack || !r.memo || !r.pairs) tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_vocabulary_nanogpt", "%s: no host memory", path);
        else if (run(&r)) vocabulary = make_vocabulary(&r);
    }
    free(r.stack);
    free(r.memo);
    free(r.pairs);
    tn_data_map_close(&map);
    return vocabulary;
}
