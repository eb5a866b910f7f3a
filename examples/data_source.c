#include "data_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data_internal.h"
#include "data_vocabulary_internal.h"

static const char *const kind_names[TN_DATA_KIND_COUNT] = { "auto",   "char", "byte",      "bin",    "shards",
                                                            "recall", "copy", "induction", "shapes", "uniform" };

const char *tn_data_kind_name(tn_data_kind kind) { return (unsigned)kind < TN_DATA_KIND_COUNT ? kind_names[kind] : NULL; }

bool tn_data_kind_parse(const char *name, tn_data_kind *kind) {
    for (int i = 0; name && i < TN_DATA_KIND_COUNT; i++)
        if (strcmp(name, kind_names[i]) == 0) {
            *kind = (tn_data_kind)i;
            return true;
        }
    return false;
}

#define FAIL(cx, status, ...) tn_fail((cx), (status), "tn_data_open", __VA_ARGS__)

/* ---- files ---- */

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), n = strlen(ending);
    return length >= n && strcmp(text + length - n, ending) == 0;
}

static tn_data_kind guess_kind(const char *path) {
    bool glob = strpbrk(path, "*?[") != NULL && access(path, F_OK) != 0;
    if (glob || tn_data_is_shard(path)) return TN_DATA_SHARDS;
    return ends_with(path, ".bin") ? TN_DATA_BIN : TN_DATA_CHAR;
}

/* Turns a stream of a text's bytes into one of its characters. */
static bool to_characters(tn_context *cx, const tn_vocabulary *vocabulary, tn_data_stream *stream) {
    tn_data_segment *segment = stream->segments;
    const char *text = (const char *)segment->tokens;
    size_t n_bytes = (size_t)segment->n, at = 0, length;
    segment->own = malloc(n_bytes * sizeof *segment->own);
    if (!segment->own) return FAIL(cx, TN_ERR_HOST_MEMORY, "%s: no host memory for its tokens", segment->map.path);
    for (segment->n = 0; at < n_bytes; segment->n++, at += length) {
        uint32_t code = 0;
        length = tn_data_code_point((const unsigned char *)text + at, n_bytes - at, &code);
        if (length == 0) return FAIL(cx, TN_ERR_FORMAT, "%s: byte %zu is not UTF-8 text", segment->map.path, at);
        int64_t token = tn_vocabulary_find(vocabulary, text + at, length);
        if (token < 0)
            return FAIL(cx, TN_ERR_FORMAT, "%s: byte %zu: U+%04X does not occur in the training text", segment->map.path, at, code);
        segment->own[segment->n] = (uint16_t)token;
    }
    segment->tokens = (const unsigned char *)segment->own;
    segment->width = 2;
    stream->n_tokens = segment->n;
    return true;
}

static bool open_text(tn_data *data, const char *path, int which) {
    tn_data_stream *stream = &data->streams[which];
    if (!tn_data_stream_bytes(data->cx, path, stream)) return false;
    if (data->info.kind == TN_DATA_BYTE) {
        if (!data->vocabulary) data->vocabulary = tn_vocabulary_bytes(data->cx);
        return data->vocabulary != NULL;
    }
    if (!data->vocabulary)
        data->vocabulary = tn_vocabulary_characters(data->cx, (const char *)stream->segments->tokens, (size_t)stream->n_tokens);
    if (!data->vocabulary) return false;
    if (tn_vocabulary_count(data->vocabulary) > UINT16_MAX + 1)
        return FAIL(data->cx, TN_ERR_FORMAT, "%s: %lld distinct characters, more than 65536", path,
                    (long long)tn_vocabulary_count(data->vocabulary));
    return to_characters(data->cx, data->vocabulary, stream);
}

/* The tokenizer named, or nanoGPT's meta.pkl beside the tokens where there is one. */
static bool open_tokenizer(tn_data *data, const tn_data_options *options) {
    if (options->tokenizer) {
        bool pickle = ends_with(options->tokenizer, ".pkl");
        data->vocabulary =
            pickle ? tn_vocabulary_nanogpt(data->cx, options->tokenizer) : tn_vocabulary_tokenizer(data->cx, options->tokenizer);
        return data->vocabulary != NULL;
    }
    const char *slash = strrchr(options->path, '/');
    char meta[4096];
    int folder_bytes = slash ? (int)(slash + 1 - options->path) : 0;
    if (data->info.kind != TN_DATA_BIN || folder_bytes > (int)sizeof meta - 16) return true;
    snprintf(meta, sizeof meta, "%.*smeta.pkl", folder_bytes, options->path);
    if (access(meta, F_OK) != 0) return true;
    data->vocabulary = tn_vocabulary_nanogpt(data->cx, meta);
    return data->vocabulary != NULL;
}

#define GPT2_TOKENS 50257

static bool choose_vocab(tn_data *data, const tn_data_options *options) {
    int64_t known = tn_vocabulary_count(data->vocabulary), vocab = options->vocab;
    if (vocab < 0 || vocab > UINT16_MAX + 1)
        return FAIL(data->cx, TN_ERR_ARGUMENT, "a vocab of %lld, wanted 1 to 65536: tokens are uint16", (long long)vocab);
    if (!vocab) vocab = known ? known : data->info.kind == TN_DATA_SHARDS ? GPT2_TOKENS : 0;
    if (!vocab)
        return FAIL(data->cx, TN_ERR_ARGUMENT, "%s: plain tokens: say how many there are (vocab), or name a tokenizer", options->path);
    data->info.vocab = vocab;
    return true;
}

static bool open_tokens(tn_data *data, const tn_data_options *options) {
    bool shards = data->info.kind == TN_DATA_SHARDS;
    return open_tokenizer(data, options) && choose_vocab(data, options) &&
           tn_data_stream_open(data->cx, options->path, shards, &data->streams[0]) &&
           (!options->validation_path || tn_data_stream_open(data->cx, options->validation_path, shards, &data->streams[1]));
}

static bool open_texts(tn_data *data, const tn_data_options *options) {
    if (!open_text(data, options->path, 0) || (options->validation_path && !open_text(data, options->validation_path, 1))) return false;
    data->info.vocab = tn_vocabulary_count(data->vocabulary);
    return true;
}

/* Nine tenths of one stream for training and the rest for validation, or a stream for each. */
static void split(tn_data *data) {
    int64_t n = data->streams[0].n_tokens, n_train = n / 10 * 9 + n % 10 * 9 / 10;
    bool own = data->streams[1].n_tokens > 0;
    data->parts[TN_DATA_TRAIN] = (tn_data_part){ &data->streams[0], 0, own ? n : n_train };
    data->parts[TN_DATA_VALIDATION] =
        own ? (tn_data_part){ &data->streams[1], 0, data->streams[1].n_tokens } : (tn_data_part){ &data->streams[0], n_train, n - n_train };
    for (int i = 0; i < TN_DATA_SPLIT_COUNT; i++) data->info.n_tokens[i] = data->parts[i].n;
}

static bool open_data(tn_data *data, const tn_data_options *options) {
    if ((unsigned)options->kind >= TN_DATA_KIND_COUNT)
        return FAIL(data->cx, TN_ERR_ARGUMENT, "no kind of data has number %d", options->kind);
    if (tn_data_is_task(options->kind)) return tn_data_task_prepare(data);
    if (!options->path || !*options->path)
        return FAIL(data->cx, TN_ERR_ARGUMENT, "no path, which data of kind %s needs", kind_names[options->kind]);
    if (options->kind == TN_DATA_AUTO) data->info.kind = guess_kind(options->path);
    bool text = data->info.kind == TN_DATA_CHAR || data->info.kind == TN_DATA_BYTE;
    if (!(text ? open_texts(data, options) : open_tokens(data, options))) return false;
    split(data);
    return true;
}

tn_data *tn_data_open(tn_context *cx, const tn_data_options *options) {
    if (!cx || tn_failed(cx)) return NULL;
    if (!options) return FAIL(cx, TN_ERR_ARGUMENT, "no options");
    tn_data *data = calloc(1, sizeof *data);
    if (!data) return FAIL(cx, TN_ERR_HOST_MEMORY, "no host memory");
    *data = (tn_data){ .cx = cx, .info.kind = options->kind, .seed = options->seed, .task = options->task };
    if (open_data(data, options)) return data;
    tn_data_close(data);
    return NULL;
}

void tn_data_close(tn_data *data) {
    if (!data) return;
    for (int i = 0; i < TN_DATA_SPLIT_COUNT; i++) tn_data_stream_close(&data->streams[i]);
    tn_vocabulary_free(data->vocabulary);
    free(data);
}

tn_data_info tn_data_info_of(const tn_data *data) { return data ? data->info : (tn_data_info){ 0 }; }
const tn_vocabulary *tn_data_vocabulary(const tn_data *data) { return data ? data->vocabulary : NULL; }
