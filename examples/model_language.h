/* A model of the layers in model_layers.h: tokens (or image patches) in, logits out.
 *
 *     text     x = embedding[token], layers, norm, logits = x head'            (the head may be the embedding)
 *     images   x = patch embed', layers over the grid of patches, norm, mean over the patches, logits = x head' */
#ifndef TENON_MODEL_LANGUAGE_H
#define TENON_MODEL_LANGUAGE_H

#include "model_layers.h"

struct model;

/* Layers that run one after the other as one. */
typedef struct model_group {
    const struct model *model;
    int first, count;
} model_group;

typedef struct model {
    tn_context *cx;
    const train_config *config;
    tn_params *params; /* group 0: matrices; group 1: norms and biases */
    int64_t n_tokens;  /* or classes */
    tn_int_list grid;  /* of image patches */
    tn_tensor *embedding, *norm, *head, *rope;
    model_layer layer[TRAIN_MAX_LAYERS];
    model_call training; /* what layers are called with in training, in backward too */
    model_group group[TRAIN_MAX_LAYERS];
} model;

/* Makes the parameters on cx, drawn from its random stream; errors stay on cx. `config` must live as long as the
 * model, and the model must stay where it is while the tape holds a step of it. */
void model_init(model *m, tn_context *cx, const train_config *config, const tn_data_info *info);
int64_t model_parameter_count(const model *m);
/* Multiplications and additions of a training step over `tokens`: 6 for each weight in a product and token, and the attention's own. */
double model_step_flops(const model *m, int64_t tokens, int64_t context);
/* Of those, what runs a second time in backward. */
double model_again_flops(const model *m, int64_t tokens, int64_t context);

/* The mean loss of inputs (ids [b, n], or patches [b, rows, columns, features]) against targets ([b, n], or labels [b]). */
tn_tensor *model_loss(const model *m, tn_tensor *inputs, tn_tensor *targets, bool training);
/* How many of the targets the model's first choice hits, of those that count; -1 on error. Waits for the device. */
int64_t model_hits(const model *m, tn_tensor *inputs, const int64_t *targets, int64_t *n_counted);
/* Generation: logits [b, tokens] after ids [b, n], which stand at `position`; caches has one per layer, of which
 * only `room` is set at first. */
tn_tensor *model_next_logits(const model *m, tn_tensor *ids, int64_t position, model_cache *caches);

#endif
