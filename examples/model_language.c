#include "model_language.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- making ---- */

static void push_layer(tn_context *cx, int index) {
    char label[32];
    snprintf(label, sizeof label, "layer.%d", index);
    tn_label_push(cx, label);
}

/* Which layers run again in backward, alone or in groups. */
static void plan_recompute(model *m) {
    const train_config *c = m->config;
    train_recompute plan;
    if (!train_recompute_read(c->recompute, c->layers, &plan)) plan = (train_recompute){ 0 };
    for (int i = 0; i < c->layers; i++) {
        m->layer[i].training = &m->training;
        m->layer[i].again = plan.part[i];
    }
    for (int i = 0, count; i < c->layers; i += count) {
        for (count = 1; count < plan.every && i + count < c->layers;) {
            if (plan.part[i] != TRAIN_AGAIN_EVERY || plan.part[i + count] != TRAIN_AGAIN_EVERY) break;
            count++;
        }
        m->group[i] = (model_group){ m, i, count };
    }
}

void model_init(model *m, tn_context *cx, const train_config *c, const tn_data_info *info) {
    train_mixer mixers[TRAIN_MAX_LAYERS];
    bool image = info->n_features > 0;
    *m = (model){ .cx = cx, .config = c, .params = tn_params_new(cx), .n_tokens = c->vocab ? c->vocab : info->vocab };
    if (image) m->grid = TN_DIMS(info->grid_rows, info->grid_columns);
    tn_shape embedding = image ? TN_SHAPE(c->width, info->n_features) : TN_SHAPE(m->n_tokens, c->width);
    tn_label_push(cx, "embedding");
    m->embedding = model_parameter(m->params, model_dtype(c), embedding, image ? 0.25 : model_deviation(c), 0, "embedding");
    tn_label_pop(cx);
    train_config_mixers(c, mixers);
    for (int i = 0; i < c->layers; i++) {
        push_layer(cx, i);
        model_layer_init(&m->layer[i], m->params, c, mixers[i], i, image);
        tn_label_pop(cx);
    }
    tn_label_push(cx, "head");
    m->norm = model_parameter(m->params, model_dtype(c), TN_SHAPE(c->width), 0, 1, "norm");
    if (c->tied && !image) m->head = m->embedding;
    else m->head = model_parameter(m->params, model_dtype(c), TN_SHAPE(m->n_tokens, c->width), model_deviation(c), 0, "head");
    tn_label_pop(cx);
    m->rope = model_frequencies(cx, model_angles(c, image), c->rope_base);
    m->training = (model_call){ .cx = cx, .training = true, .config = c, .rope = m->rope, .grid = m->grid, .dropout = c->dropout };
    plan_recompute(m);
}

int64_t model_parameter_count(const model *m) {
    int64_t n = 0;
    for (int64_t i = 0; i < tn_params_count(m->params); i++) n += tn_params_at(m->params, i)->numel;
    return n;
}

/* The state's update and its reading, or half of all pairs of tokens; forward alone. */
static double attention_flops(const model *m, int layer, int64_t tokens, int64_t context) {
    const train_config *c = m->config;
    bool linear = m->layer[layer].mixer == TRAIN_MIXER_LINEAR;
    return (double)tokens * (double)c->width * (linear ? 4.0 * (double)(c->width / c->heads) : 2.0 * (double)context);
}

double model_step_flops(const model *m, int64_t tokens, int64_t context) {
    int64_t weights = m->head->numel;
    for (int64_t i = 0; i < tn_params_count(m->params); i++) {
        const tn_tensor *p = tn_params_at(m->params, i);
        if (p->axes == 2 && p != m->embedding && p != m->head) weights += p->numel;
    }
    double flops = 6.0 * (double)weights * (double)tokens;
    for (int i = 0; i < m->config->layers; i++) flops += 3.0 * attention_flops(m, i, tokens, context); /* backward takes twice forward's */
    return flops;
}

/* Weights in the products of a layer's mixer, and of its MLP. */
static void count_weights(const model *m, int layer, int64_t *mixer, int64_t *mlp) {
    char prefix[32];
    size_t n = (size_t)snprintf(prefix, sizeof prefix, "layer.%d.", layer);
    *mlp = m->layer[layer].up->numel + m->layer[layer].down->numel;
    *mixer = -*mlp;
    for (int64_t i = 0; i < tn_params_count(m->params); i++) {
        const tn_tensor *p = tn_params_at(m->params, i);
        if (p->axes == 2 && strncmp(tn_params_name(m->params, i), prefix, n) == 0) *mixer += p->numel;
    }
}

double model_again_flops(const model *m, int64_t tokens, int64_t context) {
    double flops = 0;
    for (int i = 0; i < m->config->layers; i++) {
        train_recompute_part part = m->layer[i].again;
        bool all = part == TRAIN_AGAIN_LAYER || part == TRAIN_AGAIN_EVERY;
        int64_t mixer, mlp;
        count_weights(m, i, &mixer, &mlp);
        if (all || part == TRAIN_AGAIN_MIXER) flops += 2.0 * (double)mixer * (double)tokens + attention_flops(m, i, tokens, context);
        if (all || part == TRAIN_AGAIN_MLP) flops += 2.0 * (double)mlp * (double)tokens;
    }
    return flops;
}

/* ---- running ---- */

static tn_tensor *layer_in_training(void *layer, tn_tensor *const *x, int n) {
    (void)n;
    return model_layer_forward(layer, ((const model_layer *)layer)->training, NULL, x[0]);
}

static tn_tensor *run_layers(const model_group *group, const model_call *call, model_cache *caches, tn_tensor *x) {
    const model *m = group->model;
    for (int i = group->first; i < group->first + group->count; i++) {
        push_layer(m->cx, i);
        tn_scope *scope = tn_scope_begin(m->cx);
        bool offloads = call->training && m->layer[i].again == TRAIN_OFFLOAD;
        x = tn_scope_return(scope, offloads ? tn_offload_block(m->cx, layer_in_training, (void *)&m->layer[i], &x, 1)
                                            : model_layer_forward(&m->layer[i], call, caches ? &caches[i] : NULL, x));
        tn_label_pop(m->cx);
    }
    return x;
}

static tn_tensor *group_in_training(void *group, tn_tensor *const *x, int n) {
    (void)n;
    return run_layers(group, &((const model_group *)group)->model->training, NULL, x[0]);
}

/* The normed features [b, n, width] of inputs. */
static tn_tensor *features(const model *m, tn_tensor *inputs, const model_call *call, model_cache *caches) {
    bool image = call->grid.axes > 0;
    if (!inputs) return NULL;
    tn_tensor *x = image ? tn_linear(tn_reshape(inputs, TN_SHAPE(inputs->shape[0], -1, inputs->shape[3])), m->embedding, NULL)
                         : tn_embedding(m->embedding, inputs);
    if (call->dropout > 0) x = tn_dropout(x, TN_DROPOUT(.p = call->dropout));
    for (int i = 0; i < m->config->layers; i += m->group[i].count) {
        const model_group *group = &m->group[i];
        x = call->training && group->count > 1 ? tn_checkpoint(m->cx, group_in_training, (void *)group, &x, 1)
                                               : run_layers(group, call, caches, x);
    }
    return tn_rms_norm(x, m->norm, NULL, TN_RMS_NORM());
}

static model_call call_of(const model *m) { return (model_call){ .cx = m->cx, .config = m->config, .rope = m->rope, .grid = m->grid }; }

/* What the head reads: every token's features, or an image's mean. */
static tn_tensor *head_inputs(const model *m, tn_tensor *inputs, bool training) {
    model_call call = call_of(m);
    tn_tensor *x = features(m, inputs, training ? &m->training : &call, NULL);
    return call.grid.axes ? tn_mean_over(x, TN_REDUCE(.dims = TN_DIMS(1))) : x;
}

tn_tensor *model_loss(const model *m, tn_tensor *inputs, tn_tensor *targets, bool training) {
    tn_tensor *x = head_inputs(m, inputs, training);
    tn_label_push(m->cx, "head");
    tn_tensor *loss = tn_linear_cross_entropy(x, m->head, targets, TN_CROSS_ENTROPY(.ignore_index = TN_DATA_IGNORE, .wide_loss = true));
    tn_label_pop(m->cx);
    return loss;
}

/* Rows of logits that exist at a time. */
#define LOGIT_ROWS 2048

int64_t model_hits(const model *m, tn_tensor *inputs, const int64_t *targets, int64_t *n_counted) {
    int64_t hits = 0, choice[LOGIT_ROWS];
    tn_scope *outer = tn_scope_begin(m->cx);
    tn_tensor *x = head_inputs(m, inputs, false);
    if (x) x = tn_reshape(x, TN_SHAPE(-1, m->config->width));
    for (int64_t row = 0; x && row < x->shape[0]; row += LOGIT_ROWS) {
        int64_t n = x->shape[0] - row < LOGIT_ROWS ? x->shape[0] - row : LOGIT_ROWS;
        tn_scope *scope = tn_scope_begin(m->cx);
        tn_tensor *best = tn_argmax_over(tn_linear(tn_narrow(x, 0, row, n), m->head, NULL), TN_REDUCE(.dims = TN_DIMS(-1)));
        if (!tn_to_data(best, choice, (size_t)n * sizeof *choice)) hits = -1;
        tn_scope_end(scope);
        for (int64_t i = 0; hits >= 0 && i < n; i++) {
            if (targets[row + i] == TN_DATA_IGNORE) continue;
            hits += choice[i] == targets[row + i];
            ++*n_counted;
        }
        if (hits < 0) break;
    }
    tn_scope_end(outer);
    return tn_failed(m->cx) ? -1 : hits;
}

tn_tensor *model_next_logits(const model *m, tn_tensor *ids, int64_t position, model_cache *caches) {
    model_call call = call_of(m);
    call.position = position;
    tn_tensor *x = features(m, ids, &call, caches);
    return x ? tn_linear(tn_select(x, 1, -1), m->head, NULL) : NULL;
}
