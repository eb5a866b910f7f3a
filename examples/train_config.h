/* Everything a training run can be told: one table of keys that JSON files, --key=value, --help and checkpoints share. */
#ifndef TENON_TRAIN_CONFIG_H
#define TENON_TRAIN_CONFIG_H

#include <jansson.h>

#include "cli.h"
#include "data_source.h"

typedef enum train_schedule { TRAIN_COSINE, TRAIN_LINEAR, TRAIN_CONSTANT, TRAIN_WSD } train_schedule;
typedef enum train_decay { TRAIN_DECAY_NONE, TRAIN_DECAY_CONSTANT, TRAIN_DECAY_DATA } train_decay;
typedef enum train_lrpe { TRAIN_LRPE_NONE, TRAIN_LRPE_FIXED, TRAIN_LRPE_LEARNED } train_lrpe;
typedef enum train_task {
    TRAIN_TASK_NONE,
    TRAIN_TASK_RECALL,
    TRAIN_TASK_COPY,
    TRAIN_TASK_INDUCTION,
    TRAIN_TASK_SHAPES,
    TRAIN_TASK_UNIFORM
} train_task;

/* What a layer mixes tokens with. */
typedef enum train_mixer { TRAIN_MIXER_LINEAR, TRAIN_MIXER_TPA, TRAIN_MIXER_SOFTMAX } train_mixer;
#define TRAIN_MAX_LAYERS 64

/* Choices are ints, and so are yes and no, as the command line and JSON read them. */
typedef struct train_config {
    const char *data, *validation_data, *tokenizer;
    int format, task;
    int64_t task_vocab, task_length, task_pairs, task_queries, task_copies;
    double task_noise;

    const char *model;
    int64_t layers, heads, width, hidden, context, vocab;
    int tied, decay, shift, lrpe, qk_act, dtype;
    double decay_from, decay_to, rope_base, init_std, dropout;
    int64_t rank_q, rank_k, rank_v;

    int64_t steps, stop_after, batch, accumulate, warmup, seed;
    int schedule;
    double lr, min_lr, stable, beta1, beta2, eps, weight_decay, clip;

    const char *out, *device;
    const char *recompute;
    int64_t activation_budget;
    int64_t threads, log_every, eval_every, eval_batches, checkpoint_every, keep;
    int graph;

    json_t *text_owner; /* the texts that were read from JSON */
} train_config;

void train_config_defaults(train_config *config);
void train_config_free(train_config *config);

/* Sets what the object says. On an unknown key or a wrong value: false, and `reason` names the key. */
bool train_config_from_json(train_config *config, const json_t *object, char *reason, size_t n_bytes);
/* The same from a file; `reason` names the file too. */
bool train_config_from_file(train_config *config, const char *path, char *reason, size_t n_bytes);
/* Every key with its value; NULL without memory. */
json_t *train_config_to_json(const train_config *config);
/* The first key that a resumed run may not change and in which the two differ, or NULL. */
const char *train_config_fixed_difference(const train_config *a, const train_config *b);

/* The keys as options of a command line, after the program's own (which end with one without a name). Ends likewise; for free(). */
tn_cli_option *train_config_options(train_config *config, const tn_cli_option *own);
/* Whether the values go together; `reason` names the keys that don't. */
bool train_config_check(const train_config *config, char *reason, size_t n_bytes);

/* Reads "linear", or a pattern such as "linear,linear,softmax" that is repeated over the layers. False: no such mixer. */
bool train_config_mixers(const train_config *config, train_mixer mixers[TRAIN_MAX_LAYERS]);
const char *train_mixer_name(train_mixer mixer);
/* hidden, or where that is 0, 8/3 of the width rounded up to a multiple of 32. */
int64_t train_config_hidden(const train_config *config);
double train_config_lr(const train_config *config, int64_t step);
tn_data_options train_config_data(const train_config *config);

#endif
