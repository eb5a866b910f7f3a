#include "train_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tenon.h"
#include "train_recompute.h"

static const char *const formats[] = { "auto", "char", "byte", "bin", "shards", NULL };
static const char *const tasks[] = { "none", "recall", "copy", "induction", "shapes", "uniform", NULL };
static const char *const schedules[] = { "cosine", "linear", "constant", "wsd", NULL };
static const char *const decays[] = { "none", "constant", "data", NULL };
static const char *const lrpes[] = { "none", "fixed", "learned", NULL };
static const char *const acts[] = TN_POINTWISE_ACTIVATION_NAMES;
static const char *const dtypes[] = { "f32", "bf16", NULL };
static const char *const no_yes[] = { "false", "true", NULL };
static const char *const mixer_names[] = { "linear", "tpa", "softmax", NULL };

/* ---- the table ---- */

typedef struct train_key {
    const char *name;
    tn_cli_type type;
    size_t offset;
    bool fixed; /* a resumed run can't change it */
    const char *const *choices;
    double low, high;    /* of numbers, both included */
    const char *initial; /* as on the command line */
    const char *argument, *doc;
} train_key;

#define AT(field) .name = #field, .offset = offsetof(train_config, field)
#define TEXT(field, fixes, first, what, about) \
    { AT(field), .type = TN_CLI_TEXT, .fixed = fixes, .initial = first, .argument = what, .doc = about }
#define INT(field, fixes, first, from, to, about) \
    { AT(field), .type = TN_CLI_INT, .fixed = fixes, .initial = first, .low = from, .high = to, .argument = "N", .doc = about }
#define NUMBER(field, fixes, first, from, to, about) \
    { AT(field), .type = TN_CLI_NUMBER, .fixed = fixes, .initial = first, .low = from, .high = to, .argument = "X", .doc = about }
#define CHOICE(field, fixes, first, of, about) \
    { AT(field), .type = TN_CLI_CHOICE, .fixed = fixes, .initial = first, .choices = of, .doc = about }

static const train_key keys[] = {
    TEXT(data, false, NULL, "FILE", "text or token file to learn from; a glob for shards"),
    TEXT(validation_data, false, NULL, "FILE", "what to evaluate on (default: the last tenth of --data)"),
    TEXT(tokenizer, false, NULL, "FILE", "llm.c's tokenizer file or nanoGPT's meta.pkl"),
    CHOICE(format, true, "auto", formats, "of --data: characters, bytes, nanoGPT's .bin or llm.c's shards"),
    CHOICE(task, true, "none", tasks, "learn a task drawn on the fly instead of --data; uniform: random tokens, for timing"),
    INT(task_vocab, true, "0", 0, 1 << 20, "tokens of the task (0: the task's own)"),
    INT(task_length, true, "0", 0, 1 << 20, "tokens of a row (0: the task's own)"),
    INT(task_pairs, true, "0", 0, 1 << 16, "recall: keys that have a value (0: 64)"),
    INT(task_queries, true, "0", 0, 1 << 16, "recall: keys asked for (0: all)"),
    INT(task_copies, true, "0", 0, 1 << 16, "copy: tokens to remember (0: 16)"),
    NUMBER(task_noise, true, "0", -1, 10, "shapes: deviation of the noise (0: 0.1; negative: none)"),

    TEXT(model, true, "linear", "LIST", "linear, tpa or softmax, or a list such as linear,linear,softmax that is repeated over the layers"),
    INT(layers, true, "4", 1, TRAIN_MAX_LAYERS, "layers, each a mixer and an MLP"),
    INT(heads, true, "4", 1, 1024, "heads of a mixer"),
    INT(width, true, "128", 2, 65536, "features of a token"),
    INT(hidden, true, "0", 0, 1 << 20, "width inside the MLP (0: 8/3 of width, rounded up to 32)"),
    INT(context, true, "64", 1, 1 << 24, "tokens of a row of text; tasks have their own"),
    INT(vocab, true, "0", 0, 1 << 24, "tokens there are (0: what the data says)"),
    CHOICE(tied, true, "true", no_yes, "the head is the embedding"),
    CHOICE(decay, true, "constant", decays, "linear: how the state fades: not, by a constant of each head, or as the data says"),
    NUMBER(decay_from, true, "5", 0, 30, "linear: head i of h keeps 1 - 2^-p of its state a token, with p = from + (to - from) i / h"),
    NUMBER(decay_to, true, "12", 0, 30, "see decay_from"),
    CHOICE(shift, true, "false", no_yes, "linear: k is made from the token and the one before it, mixed feature by feature"),
    CHOICE(lrpe, true, "fixed", lrpes, "linear: rotation of q and k by position"),
    CHOICE(qk_act, true, "silu", acts, "linear: activation of q and k"),
    CHOICE(dtype, true, "f32", dtypes, "of weights and activations; bf16 keeps f32 masters"),
    NUMBER(rope_base, true, "10000", 1, 1e12, "rotation: the slowest feature turns by 1/base a token"),
    NUMBER(init_std, true, "0", 0, 10, "deviation of the initial weights (0: 0.5 / sqrt(width))"),
    NUMBER(dropout, false, "0", 0, 0.99, "share of activations dropped while training"),
    INT(rank_q, true, "6", 1, 64, "tpa: factors of q"),
    INT(rank_k, true, "2", 1, 64, "tpa: factors of k"),
    INT(rank_v, true, "2", 1, 64, "tpa: factors of v"),

    INT(steps, false, "1000", 1, 1e12, "steps in all"),
    INT(stop_after, false, "0", 0, 1e12, "leave after so many of them, with a checkpoint to resume from (0: never)"),
    INT(batch, true, "16", 1, 1 << 20, "rows of a step, or of a part of it where --accumulate is above 1"),
    INT(accumulate, true, "1", 1, 4096, "parts of a step, whose gradients are averaged"),
    INT(warmup, false, "100", 0, 1e12, "steps in which the learning rate rises from 0"),
    INT(seed, true, "1337", 0, 9e18, "of weights, data and dropout"),
    CHOICE(schedule, false, "cosine", schedules, "of the learning rate after --warmup; wsd: stable, then linearly down"),
    NUMBER(lr, false, "1e-3", 0, 100, "highest learning rate"),
    NUMBER(min_lr, false, "1e-4", 0, 100, "the last step's"),
    NUMBER(stable, false, "0.8", 0, 1, "wsd: share of the steps after which the learning rate falls"),
    NUMBER(beta1, false, "0.9", 0, 0.999999, "AdamW"),
    NUMBER(beta2, false, "0.99", 0, 0.99999999, "AdamW"),
    NUMBER(eps, false, "1e-8", 0, 1, "AdamW"),
    NUMBER(weight_decay, false, "0.1", 0, 100, "AdamW, of matrices alone: norms and biases have none"),
    NUMBER(clip, false, "1", 0, 1e30, "largest norm of the gradients (0: any)"),

    TEXT(recompute, false, "none", "WHAT",
         "instead of keeping activations: none, attention, mlp, block or every-K (these run again in backward) or offload (to the host); "
         ":N behind it is of the first N layers, + what the others do: block:3+attention"),
    INT(activation_budget, false, "0", 0, 9e18,
        "bytes a step may take beside what stays from step to step; sets --recompute to what costs least within it (0: no bound)"),

    TEXT(out, false, "out", "DIR", "log, plot and checkpoints go here"),
    TEXT(device, false, "auto", "D", "auto, cpu or cuda"),
    INT(threads, false, "0", 0, 4096, "CPU threads (0: all)"),
    INT(log_every, false, "10", 1, 1e9, "steps between two lines of the log"),
    INT(eval_every, false, "250", 0, 1e9, "steps between two evaluations (0: none)"),
    INT(eval_batches, false, "0", 0, 1e9, "batches of an evaluation (0: everything there is; tasks: 16)"),
    INT(checkpoint_every, false, "0", -1, 1e9, "steps between two checkpoints, and one after the last (0: as --eval_every; -1: none)"),
    INT(keep, false, "2", 0, 1e6, "checkpoints kept beside the best (0: all)"),
    CHOICE(graph, false, "true", no_yes, "cuda: record a step once and replay it"),
};
enum { N_KEYS = sizeof keys / sizeof *keys };

static void *place_of(const train_config *config, const train_key *key) { return (char *)config + key->offset; }
#define INT_AT(config, key) (*(int64_t *)place_of(config, key))
#define NUMBER_AT(config, key) (*(double *)place_of(config, key))
#define CHOICE_AT(config, key) (*(int *)place_of(config, key))
#define TEXT_AT(config, key) (*(const char **)place_of(config, key))

static int choice_of(const train_key *key, const char *text) {
    for (int i = 0; text && key->choices[i]; i++)
        if (strcmp(key->choices[i], text) == 0) return i;
    return -1;
}

void train_config_defaults(train_config *config) {
    *config = (train_config){ 0 };
    for (int i = 0; i < N_KEYS; i++) {
        const train_key *key = &keys[i];
        if (key->type == TN_CLI_TEXT) TEXT_AT(config, key) = key->initial;
        else if (key->type == TN_CLI_INT) INT_AT(config, key) = strtoll(key->initial, NULL, 10);
        else if (key->type == TN_CLI_NUMBER) NUMBER_AT(config, key) = strtod(key->initial, NULL);
        else CHOICE_AT(config, key) = choice_of(key, key->initial);
    }
}

void train_config_free(train_config *config) {
    json_decref(config->text_owner);
    config->text_owner = NULL;
}

/* ---- JSON ---- */

static bool refuse(char *reason, size_t n_bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
static bool refuse(char *reason, size_t n_bytes, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(reason, n_bytes, format, list);
    va_end(list);
    return false;
}

static const char *wanted_text(const train_key *key, char *buffer, size_t n_bytes) {
    static const char *const names[] = { [TN_CLI_TEXT] = "a text", [TN_CLI_INT] = "a whole number", [TN_CLI_NUMBER] = "a number" };
    if (key->type != TN_CLI_CHOICE) return names[key->type];
    if (key->choices == no_yes) return "true or false";
    size_t at = (size_t)snprintf(buffer, n_bytes, "one of");
    for (int i = 0; key->choices[i] && at < n_bytes; i++)
        at += (size_t)snprintf(buffer + at, n_bytes - at, "%s \"%s\"", i ? "," : "", key->choices[i]);
    return buffer;
}

static bool keep_text(train_config *config, json_t *value) {
    if (!config->text_owner) config->text_owner = json_array();
    return json_array_append(config->text_owner, value) == 0;
}

static bool set_key(train_config *config, const train_key *key, json_t *value) {
    switch (key->type) {
    case TN_CLI_TEXT:
        if (json_is_null(value) && !key->initial) TEXT_AT(config, key) = NULL;
        else if (json_is_string(value) && keep_text(config, value)) TEXT_AT(config, key) = json_string_value(value);
        else return false;
        return true;
    case TN_CLI_INT: INT_AT(config, key) = json_integer_value(value); return json_is_integer(value);
    case TN_CLI_NUMBER: NUMBER_AT(config, key) = json_number_value(value); return json_is_number(value);
    default: break;
    }
    int choice = key->choices == no_yes ? (json_is_boolean(value) ? json_is_true(value) : -1) : choice_of(key, json_string_value(value));
    if (choice >= 0) CHOICE_AT(config, key) = choice;
    return choice >= 0;
}

bool train_config_from_json(train_config *config, const json_t *object, char *reason, size_t n_bytes) {
    const char *name;
    json_t *value;
    if (!json_is_object(object)) return refuse(reason, n_bytes, "wanted a JSON object");
    json_object_foreach((json_t *)object, name, value) {
        int i = 0;
        while (i < N_KEYS && strcmp(keys[i].name, name) != 0) i++;
        if (i == N_KEYS) return refuse(reason, n_bytes, "unknown key \"%s\"", name);
        if (set_key(config, &keys[i], value)) continue;
        char wanted[256], *got = json_dumps(value, JSON_ENCODE_ANY);
        refuse(reason, n_bytes, "\"%s\" wants %s, got %s", name, wanted_text(&keys[i], wanted, sizeof wanted), got ? got : "?");
        free(got);
        return false;
    }
    return true;
}

bool train_config_from_file(train_config *config, const char *path, char *reason, size_t n_bytes) {
    json_error_t error;
    char inner[512];
    json_t *object = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!object && error.line < 0) return refuse(reason, n_bytes, "%s", error.text);
    if (!object) return refuse(reason, n_bytes, "%s:%d: %s", path, error.line, error.text);
    bool fine = train_config_from_json(config, object, inner, sizeof inner) || refuse(reason, n_bytes, "%s: %s", path, inner);
    json_decref(object);
    return fine;
}

static json_t *value_of(const train_config *config, const train_key *key) {
    if (key->type == TN_CLI_TEXT) return TEXT_AT(config, key) ? json_string(TEXT_AT(config, key)) : json_null();
    if (key->type == TN_CLI_INT) return json_integer(INT_AT(config, key));
    if (key->type == TN_CLI_NUMBER) return json_real(NUMBER_AT(config, key));
    if (key->choices == no_yes) return json_boolean(CHOICE_AT(config, key));
    return json_string(key->choices[CHOICE_AT(config, key)]);
}

json_t *train_config_to_json(const train_config *config) {
    json_t *object = json_object();
    for (int i = 0; i < N_KEYS; i++)
        if (json_object_set_new(object, keys[i].name, value_of(config, &keys[i])) != 0) {
            json_decref(object);
            return NULL;
        }
    return object;
}

const char *train_config_fixed_difference(const train_config *a, const train_config *b) {
    for (int i = 0; i < N_KEYS; i++) {
        if (!keys[i].fixed) continue;
        json_t *left = value_of(a, &keys[i]), *right = value_of(b, &keys[i]);
        bool same = json_equal(left, right);
        json_decref(left);
        json_decref(right);
        if (!same) return keys[i].name;
    }
    return NULL;
}

/* ---- the command line ---- */

tn_cli_option *train_config_options(train_config *config, const tn_cli_option *own) {
    int n = 0;
    while (own[n].name) n++;
    tn_cli_option *options = calloc((size_t)(n + N_KEYS + 1), sizeof *options);
    if (!options) return NULL;
    memcpy(options, own, (size_t)n * sizeof *options);
    for (int i = 0; i < N_KEYS; i++)
        options[n + i] =
            (tn_cli_option){ keys[i].name, keys[i].type, place_of(config, &keys[i]), keys[i].argument, keys[i].doc, keys[i].choices };
    return options;
}

/* ---- what goes together ---- */

static bool check_range(const train_config *config, const train_key *key, char *reason, size_t n_bytes) {
    if (key->type != TN_CLI_INT && key->type != TN_CLI_NUMBER) return true;
    double value = key->type == TN_CLI_INT ? (double)INT_AT(config, key) : NUMBER_AT(config, key);
    return (value >= key->low && value <= key->high) ||
           refuse(reason, n_bytes, "%s = %g: wanted %g to %g", key->name, value, key->low, key->high);
}

bool train_config_check(const train_config *c, char *reason, size_t n_bytes) {
    train_mixer mixers[TRAIN_MAX_LAYERS];
    train_recompute recompute;
    for (int i = 0; i < N_KEYS; i++)
        if (!check_range(c, &keys[i], reason, n_bytes)) return false;
    if (!train_config_mixers(c, mixers))
        return refuse(reason, n_bytes, "model = %s: wanted linear, tpa or softmax, or a list of them", c->model ? c->model : "null");
    if (c->width % c->heads || c->width / c->heads % 2)
        return refuse(reason, n_bytes, "width = %" PRId64 " with heads = %" PRId64 ": wanted an even number of features a head", c->width,
                      c->heads);
    if (!train_recompute_read(c->recompute, c->layers, &recompute))
        return refuse(
            reason, n_bytes,
            "recompute = %s: wanted none, attention, mlp, block, every-K or offload, :N behind it for the first N layers, + for the others",
            c->recompute ? c->recompute : "null");
    if (c->activation_budget && strcmp(c->recompute, "none") != 0)
        return refuse(reason, n_bytes, "recompute and activation_budget: wanted one of them");
    if (c->task == TRAIN_TASK_NONE && !c->data) return refuse(reason, n_bytes, "nothing to learn from: wanted data (a file) or task");
    if (c->task != TRAIN_TASK_NONE && c->data) return refuse(reason, n_bytes, "data and task: wanted one of them");
    return true;
}

static bool mixer_named(const char *name, size_t n, train_mixer *mixer) {
    for (int i = 0; mixer_names[i]; i++)
        if (strlen(mixer_names[i]) == n && strncmp(mixer_names[i], name, n) == 0) return *mixer = (train_mixer)i, true;
    return false;
}

bool train_config_mixers(const train_config *config, train_mixer mixers[TRAIN_MAX_LAYERS]) {
    int n = 0;
    for (const char *at = config->model; at && n < TRAIN_MAX_LAYERS;) {
        size_t length = strcspn(at, ",");
        if (!mixer_named(at, length, &mixers[n++])) return false;
        at = at[length] ? at + length + 1 : NULL;
    }
    for (int i = n; n > 0 && i < TRAIN_MAX_LAYERS; i++) mixers[i] = mixers[i - n];
    return n > 0;
}

const char *train_mixer_name(train_mixer mixer) { return mixer_names[mixer]; }

/* ---- what follows from the values ---- */

int64_t train_config_hidden(const train_config *c) { return c->hidden ? c->hidden : (c->width * 8 / 3 + 31) / 32 * 32; }

double train_config_lr(const train_config *c, int64_t step) {
    const double pi = 3.141592653589793;
    if (step < c->warmup) return c->lr * ((double)step + 1) / ((double)c->warmup + 1);
    double progress = fmin(1, (double)(step - c->warmup) / fmax(1, (double)(c->steps - c->warmup)));
    double fallen = 0; /* from lr (0) to min_lr (1) */
    switch ((train_schedule)c->schedule) {
    case TRAIN_COSINE: fallen = 0.5 * (1 - cos(pi * progress)); break;
    case TRAIN_LINEAR: fallen = progress; break;
    case TRAIN_CONSTANT: break;
    case TRAIN_WSD: fallen = progress <= c->stable ? 0 : (progress - c->stable) / (1 - c->stable); break;
    }
    return c->lr + fallen * (c->min_lr - c->lr);
}

tn_data_options train_config_data(const train_config *c) {
    static const tn_data_kind of_task[] = { [TRAIN_TASK_RECALL] = TN_DATA_RECALL,
                                            [TRAIN_TASK_COPY] = TN_DATA_COPY,
                                            [TRAIN_TASK_INDUCTION] = TN_DATA_INDUCTION,
                                            [TRAIN_TASK_SHAPES] = TN_DATA_SHAPES,
                                            [TRAIN_TASK_UNIFORM] = TN_DATA_UNIFORM };
    static const tn_data_kind of_format[] = { TN_DATA_AUTO, TN_DATA_CHAR, TN_DATA_BYTE, TN_DATA_BIN, TN_DATA_SHARDS };
    return (tn_data_options){ .kind = c->task == TRAIN_TASK_NONE ? of_format[c->format] : of_task[c->task],
                              .path = c->data,
                              .validation_path = c->validation_data,
                              .tokenizer = c->tokenizer,
                              .vocab = c->vocab,
                              .seed = (uint64_t)c->seed,
                              .task = { .vocab = c->task_vocab,
                                        .length = c->task_length,
                                        .pairs = c->task_pairs,
                                        .queries = c->task_queries,
                                        .copies = c->task_copies,
                                        .noise = c->task_noise } };
}
