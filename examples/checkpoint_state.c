#include "checkpoint_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "tenon-checkpoint"
#define VERSION 1

/* ---- writing ---- */

/* 64 bits do not fit into the integers of JSON readers, so they stand as text. */
static json_t *hex_json(uint64_t value, int digits) { return json_sprintf("0x%0*" PRIx64, digits, value); }

static json_t *files_json(const run_checkpoint_files *files) {
    json_t *object = json_object();
    for (int i = 0; i < RUN_CHECKPOINT_FILES; i++) {
        if (!files->present[i]) continue;
        json_t *sum = json_pack("{s:I, s:o}", "bytes", (json_int_t)files->sum[i].n_bytes, "crc32c", hex_json(files->sum[i].crc, 8));
        if (json_object_set_new(object, run_checkpoint_file_names[i], sum) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

char *run_checkpoint_state_text(tn_context *cx, const run_checkpoint_state *state, const run_checkpoint_files *files) {
    json_t *random = json_pack("{s:o, s:o}", "seed", hex_json(state->random.seed, 16), "counter", hex_json(state->random.counter, 16));
    json_t *best_loss = isfinite(state->best_loss) ? json_real(state->best_loss) : json_null();
    json_t *json = json_pack("{s:s, s:i, s:s, s:I, s:I, s:o, s:i, s:s, s:o, s:o, s:O, s:O?}", "format", FORMAT, "version", VERSION,
                             "made_by", tn_version(), "step", (json_int_t)state->step, "data_row", (json_int_t)state->data_row, "random",
                             random, "threads", state->threads, "device", state->device, "best_loss", best_loss, "files", files_json(files),
                             "config", state->config, "more", state->more);
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(json);
    if (!text)
        return tn_fail(cx, TN_ERR_HOST_MEMORY, "run_checkpoint_save", "state.json can't be made: no host memory, or a NaN in the config");
    return text;
}

/* ---- reading ---- */

typedef struct parser {
    tn_context *cx;
    const char *path;
    run_checkpoint_state *state;
    run_checkpoint_files *files;
} parser;

#define FAIL(p, ...) tn_fail((p)->cx, TN_ERR_FORMAT, "run_checkpoint_open", __VA_ARGS__)

static bool read_hex(const json_t *json, uint64_t *value) {
    const char *text = json_string_value(json);
    if (!text || strncmp(text, "0x", 2) != 0 || strlen(text) < 3 || strlen(text) > 18) return false;
    if (strspn(text + 2, "0123456789abcdef") != strlen(text) - 2) return false;
    *value = strtoull(text + 2, NULL, 16);
    return true;
}

static bool read_count(const parser *p, const json_t *json, const char *name, int64_t *count) {
    const json_t *number = json_object_get(json, name);
    if (!json_is_integer(number) || json_integer_value(number) < 0) return FAIL(p, "%s: %s is not an integer of 0 or more", p->path, name);
    *count = json_integer_value(number);
    return true;
}

static bool read_random(const parser *p, const json_t *random) {
    if (json_object_size(random) == 2 && read_hex(json_object_get(random, "seed"), &p->state->random.seed) &&
        read_hex(json_object_get(random, "counter"), &p->state->random.counter))
        return true;
    return FAIL(p, "%s: random is not a seed and a counter", p->path);
}

static bool read_file(const parser *p, const char *name, const json_t *sum) {
    int which = 0;
    while (which < RUN_CHECKPOINT_FILES && strcmp(name, run_checkpoint_file_names[which]) != 0) which++;
    if (which == RUN_CHECKPOINT_FILES) return FAIL(p, "%s: '%.64s' is no file of a checkpoint", p->path, name);
    uint64_t crc = 0;
    const json_t *n_bytes = json_object_get(sum, "bytes");
    if (json_object_size(sum) != 2 || !json_is_integer(n_bytes) || !read_hex(json_object_get(sum, "crc32c"), &crc) || crc > UINT32_MAX)
        return FAIL(p, "%s: %s lacks its bytes or its crc32c", p->path, name);
    p->files->present[which] = true;
    p->files->sum[which] = (tn_file_sum){ json_integer_value(n_bytes), (uint32_t)crc };
    return true;
}

static bool read_files(const parser *p, json_t *files) {
    if (!json_is_object(files)) return FAIL(p, "%s: files is not an object", p->path);
    const char *name;
    json_t *sum;
    json_object_foreach(files, name, sum)
        if (!read_file(p, name, sum)) return false;
    return p->files->present[TN_FILE_MODEL] || FAIL(p, "%s: files has no %s", p->path, run_checkpoint_file_names[TN_FILE_MODEL]);
}

static bool check_format(const parser *p, const json_t *json) {
    static const char *const known[] = { "format",  "version", "made_by",   "step",  "data_row", "random",
                                         "threads", "device",  "best_loss", "files", "config",   "more" };
    const char *format = json_string_value(json_object_get(json, "format"));
    if (!format || strcmp(format, FORMAT) != 0)
        return FAIL(p, "%s: not the state of a Tenon checkpoint: its format is not \"" FORMAT "\"", p->path);
    if (json_integer_value(json_object_get(json, "version")) != VERSION)
        return FAIL(p, "%s: version is not %d, the only one known", p->path, VERSION);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!json_object_get(json, known[i])) return FAIL(p, "%s: %s is missing", p->path, known[i]);
    if (json_object_size(json) != sizeof known / sizeof *known) return FAIL(p, "%s: it has members that are not known", p->path);
    return true;
}

static bool read_state(const parser *p, const json_t *json) {
    run_checkpoint_state *state = p->state;
    int64_t threads = 0;
    if (!check_format(p, json) || !read_count(p, json, "step", &state->step) || !read_count(p, json, "data_row", &state->data_row) ||
        !read_count(p, json, "threads", &threads) || !read_random(p, json_object_get(json, "random")) ||
        !read_files(p, json_object_get(json, "files")))
        return false;
    if (threads > INT32_MAX) return FAIL(p, "%s: %lld threads", p->path, (long long)threads);
    state->threads = (int)threads;
    const char *device = json_string_value(json_object_get(json, "device"));
    json_t *best_loss = json_object_get(json, "best_loss"), *config = json_object_get(json, "config"),
           *more = json_object_get(json, "more");
    if (!device || !(json_is_number(best_loss) || json_is_null(best_loss)) || !json_is_object(config) ||
        !(json_is_object(more) || json_is_null(more)))
        return FAIL(p, "%s: device, best_loss, config or more has another type than it should", p->path);
    state->best_loss = json_is_null(best_loss) ? NAN : json_number_value(best_loss);
    state->config = json_incref(config);
    state->more = json_is_null(more) ? NULL : json_incref(more);
    state->device = strdup(device);
    return state->device || tn_fail(p->cx, TN_ERR_HOST_MEMORY, "run_checkpoint_open", "%s: no host memory", p->path);
}

bool run_checkpoint_state_parse(tn_context *cx, const char *path, const char *text, size_t n_bytes, run_checkpoint_state *state,
                                run_checkpoint_files *files) {
    parser p = { cx, path, state, files };
    *state = (run_checkpoint_state){ 0 };
    *files = (run_checkpoint_files){ 0 };
    json_error_t error;
    json_t *json = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!json) return FAIL(&p, "%s: not valid JSON: line %d: %s", path, error.line, error.text);
    bool fine = json_is_object(json) ? read_state(&p, json) : (bool)FAIL(&p, "%s: not a JSON object", path);
    json_decref(json);
    if (!fine) run_checkpoint_state_free(state);
    return fine;
}

void run_checkpoint_state_free(run_checkpoint_state *state) {
    json_decref(state->config);
    json_decref(state->more);
    free((char *)state->device);
    *state = (run_checkpoint_state){ 0 };
}
