#include "model_layers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- parameters ---- */

tn_tensor *model_parameter(tn_params *params, tn_dtype dtype, tn_shape shape, double deviation, int group, const char *name) {
    tn_tensor *t = tn_parameter(tn_params_context(params), dtype, shape);
    return tn_params_add(params, deviation > 0 ? tn_fill_normal(t, 0, deviation) : tn_fill(t, 1), group, "%s", name);
}

typedef struct layer_maker {
    tn_params *params;
    const train_config *config;
    int index;
} layer_maker;

static tn_tensor *make(const layer_maker *m, tn_dtype dtype, tn_shape shape, double deviation, int group, const char *part) {
    char name[64];
    snprintf(name, sizeof name, "layer.%d.%s", m->index, part);
    return model_parameter(m->params, dtype, shape, deviation, group, name);
}

static tn_tensor *matrix(const layer_maker *m, int64_t rows, int64_t columns, const char *part) {
    return make(m, model_dtype(m->config), TN_SHAPE(rows, columns), model_deviation(m->config), 0, part);
}

/* What is added to the stream starts smaller, the more layers add to it. */
static tn_tensor *into_stream(const layer_maker *m, int64_t columns, const char *part) {
    double deviation = model_deviation(m->config) / sqrt(2.0 * (double)m->config->layers);
    return make(m, model_dtype(m->config), TN_SHAPE(m->config->width, columns), deviation, 0, part);
}

static tn_tensor *norm(const layer_maker *m, int64_t width, const char *part) {
    return make(m, model_dtype(m->config), TN_SHAPE(width), 0, 1, part);
}

tn_tensor *model_frequencies(tn_context *cx, int64_t count, double base) {
    float *values = malloc((size_t)count * sizeof *values);
    if (!values) return tn_fail(cx, TN_ERR_HOST_MEMORY, "model", "the host has no memory left");
    for (int64_t i = 0; i < count; i++) values[i] = (float)pow(base, -(double)i / (double)count);
    tn_tensor *t = tn_from_data(cx, TN_F32, TN_SHAPE(1, count), values);
    free(values);
    return t;
}

/* Each head forgets at its own pace: head i keeps 1 - 2^-p, and this is log of that, or its logit. */
static tn_tensor *decay_of_heads(tn_context *cx, const train_config *c, bool logit) {
    float values[1024];
    for (int64_t i = 0; i < c->heads; i++) {
        double lost = exp2(-(c->decay_from + (c->decay_to - c->decay_from) * (double)i / (double)c->heads));
        values[i] = (float)(logit ? log1p(-lost) - log(lost) : log1p(-lost));
    }
    return tn_from_data(cx, TN_F32, TN_SHAPE(c->heads), values);
}

static void linear_init(model_linear *l, const layer_maker *m, bool image) {
    const train_config *c = m->config;
    tn_context *cx = tn_params_context(m->params);
    int64_t d = c->width / c->heads;
    *l = (model_linear){ .q = matrix(m, c->width, c->width, "q"),
                         .k = matrix(m, c->width, c->width, "k"),
                         .v = matrix(m, c->width, c->width, "v"),
                         .g = matrix(m, c->width, c->width, "g"),
                         .norm_head = norm(m, d, "norm_head") };
    if (c->shift && !image) {
        l->shift = make(m, model_dtype(c), TN_SHAPE(c->width), 0, 1, "shift");
        tn_fill(l->shift, 0.5);
    }
    int64_t angles = model_angles(c, image);
    if (c->lrpe == TRAIN_LRPE_FIXED) {
        l->theta = model_frequencies(cx, angles, c->rope_base);
    } else if (c->lrpe == TRAIN_LRPE_LEARNED) {
        l->theta = make(m, TN_F32, TN_SHAPE(1, angles), 0, 1, "theta");
        tn_scope *scope = tn_scope_begin(cx);
        tn_assign(l->theta, model_frequencies(cx, angles, c->rope_base));
        tn_scope_end(scope);
    }
    if (image || c->decay == TRAIN_DECAY_NONE) return;
    if (c->decay == TRAIN_DECAY_CONSTANT) {
        l->log_decay = decay_of_heads(cx, c, false);
        return;
    }
    l->decay = matrix(m, c->heads, c->width, "decay");
    l->decay_bias = make(m, TN_F32, TN_SHAPE(c->heads), 0, 1, "decay_bias");
    tn_scope *scope = tn_scope_begin(cx);
    tn_assign(l->decay_bias, decay_of_heads(cx, c, true));
    tn_scope_end(scope);
}

static void tpa_init(model_tpa *t, const layer_maker *m) {
    const train_config *c = m->config;
    int64_t h = c->heads, d = c->width / h;
    *t = (model_tpa){ .aq = matrix(m, h * c->rank_q, c->width, "aq"),
                      .bq = matrix(m, c->rank_q * d, c->width, "bq"),
                      .ak = matrix(m, h * c->rank_k, c->width, "ak"),
                      .bk = matrix(m, c->rank_k * d, c->width, "bk"),
                      .av = matrix(m, h * c->rank_v, c->width, "av"),
                      .bv = matrix(m, c->rank_v * d, c->width, "bv") };
}

void model_layer_init(model_layer *layer, tn_params *params, const train_config *c, train_mixer mixer, int index, bool image) {
    layer_maker m = { params, c, index };
    int64_t hidden = train_config_hidden(c);
    *layer = (model_layer){ .mixer = mixer, .norm_mixer = norm(&m, c->width, "norm_mixer") };
    if (mixer == TRAIN_MIXER_LINEAR) linear_init(&layer->linear, &m, image);
    else if (mixer == TRAIN_MIXER_TPA) tpa_init(&layer->tpa, &m);
    else
        layer->softmax = (model_softmax){ matrix(&m, c->width, c->width, "q"), matrix(&m, c->width, c->width, "k"),
                                          matrix(&m, c->width, c->width, "v") };
    layer->out = into_stream(&m, c->width, "out");
    layer->norm_mlp = norm(&m, c->width, "norm_mlp");
    layer->up = matrix(&m, 2 * hidden, c->width, "up");
    layer->down = into_stream(&m, hidden, "down");
}

/* ---- caches ---- */

void model_cache_free(model_cache *cache) {
    tn_release(cache->last);
    tn_release(cache->state);
    tn_attention_cache_free(cache->kept);
    *cache = (model_cache){ 0 };
}

/* The cache of a layer that keeps tokens, made by the first of them; ranks of 0: keys and values. */
static tn_attention_cache *kept_of(model_cache *cache, const model_call *call, const tn_tensor *x, int64_t rank_k, int64_t rank_v) {
    int64_t h = call->config->heads, d = call->config->width / h;
    tn_attention_cache_shape shape = { .batch = x->shape[0],
                                       .capacity = cache->room,
                                       .heads = h,
                                       .key_width = d,
                                       .value_width = d,
                                       .key_rank = rank_k,
                                       .value_rank = rank_v };
    if (!cache->kept) cache->kept = tn_attention_cache_new(call->cx, x->dtype, shape);
    return cache->kept;
}

/* ---- mixers: the normed stream [b, n, width] -> [b, n, width] before `out` ---- */

/* x w' as `count` rows of equal width for each token. */
static tn_tensor *rows_of(tn_tensor *x, tn_tensor *w, int64_t count) {
    if (!x || !w) return NULL;
    return tn_reshape(tn_linear(x, w, NULL), TN_SHAPE(x->shape[0], x->shape[1], count, w->shape[0] / count));
}

static tn_tensor *joined(tn_tensor *o) { return o ? tn_reshape(o, TN_SHAPE(o->shape[0], o->shape[1], o->shape[2] * o->shape[3])) : NULL; }

static tn_tensor *rotated(const model_call *call, tn_tensor *x) {
    return tn_lrpe(x, call->rope, NULL, TN_LRPE(.kind = TN_ROTATE, .shape = call->grid, .offset = call->position));
}

/* log decay [b, n, h] that follows the data: log sigmoid(x decay' + bias). */
static tn_tensor *decay_of_data(const model_linear *l, tn_tensor *x) {
    return tn_logsigmoid(tn_add(tn_cast(tn_linear(x, l->decay, NULL), TN_F32), l->decay_bias));
}

static tn_tensor *first_state(const model_call *call, const tn_tensor *x) {
    int64_t h = call->config->heads, d = call->config->width / h;
    return tn_retain(tn_zeros(call->cx, TN_F32, TN_SHAPE(x->shape[0], h, d, d)));
}

/* x with some of the token before in each token; before the first there is nothing. */
static tn_tensor *shifted(const model_linear *l, model_cache *cache, tn_tensor *x) {
    if (!l->shift) return x;
    int64_t n = x->shape[1];
    tn_tensor *first = cache && cache->last ? cache->last : tn_zeros(x->cx, x->dtype, TN_SHAPE(x->shape[0], 1, x->shape[2]));
    tn_tensor *before[] = { first, n > 1 ? tn_narrow(x, 1, 0, n - 1) : NULL };
    tn_tensor *previous = tn_concat(before, n > 1 ? 2 : 1, 1);
    if (cache) {
        tn_release(cache->last);
        cache->last = tn_retain(tn_clone(tn_narrow(x, 1, n - 1, 1)));
    }
    return tn_add(x, tn_mul(tn_sub(previous, x), l->shift));
}

static tn_tensor *mix_linear(const model_linear *l, const model_call *call, model_cache *cache, tn_tensor *x) {
    const train_config *c = call->config;
    tn_tensor *q = rows_of(x, l->q, c->heads), *k = rows_of(shifted(l, cache, x), l->k, c->heads), *v = rows_of(x, l->v, c->heads);
    bool image = call->grid.axes > 0;
    tn_linear_attention_args args =
        TN_LINEAR_ATTENTION(.theta = l->theta, .kind = l->theta ? TN_ROTATE : TN_NO_LRPE, .q_act = c->qk_act, .k_act = c->qk_act,
                            .causal = !image, .log_decay = l->decay ? decay_of_data(l, x) : l->log_decay);
    if (image && l->theta) args.shape = call->grid;
    if (!x) return NULL;
    if (cache) {
        if (!cache->state) cache->state = first_state(call, x);
        args.state = cache->state;
        if (l->theta) args.q_offset = args.k_offset = call->position;
    }
    tn_tensor *o = cache ? tn_linear_attention_step(q, k, v, args) : tn_linear_attention(q, k, v, args);
    return joined(tn_rms_norm(o, l->norm_head, rows_of(x, l->g, c->heads), TN_RMS_NORM(.g_act = TN_SILU)));
}

static tn_tensor *mix_tpa(const model_tpa *t, const model_call *call, model_cache *cache, tn_tensor *x) {
    const train_config *c = call->config;
    tn_tensor *aq = rows_of(x, t->aq, c->heads), *bq = rotated(call, rows_of(x, t->bq, c->rank_q));
    tn_tensor *ak = rows_of(x, t->ak, c->heads), *bk = rotated(call, rows_of(x, t->bk, c->rank_k));
    tn_tensor *av = rows_of(x, t->av, c->heads), *bv = rows_of(x, t->bv, c->rank_v);
    tn_tpa_attention_args args = TN_TPA_ATTENTION(.causal = !call->grid.axes);
    if (!cache) return joined(tn_tpa_attention(aq, bq, ak, bk, av, bv, args));
    tn_attention_cache *kept = kept_of(cache, call, x, c->rank_k, c->rank_v);
    return tn_attention_cache_append(kept, ak, bk, av, bv) ? joined(tn_attention_cache_attend(kept, aq, bq, args)) : NULL;
}

static tn_tensor *mix_softmax(const model_softmax *s, const model_call *call, model_cache *cache, tn_tensor *x) {
    const train_config *c = call->config;
    tn_tensor *q = rotated(call, rows_of(x, s->q, c->heads)), *k = rotated(call, rows_of(x, s->k, c->heads));
    tn_tensor *v = rows_of(x, s->v, c->heads);
    if (!cache) return joined(tn_attention(q, k, v, TN_ATTENTION(.causal = !call->grid.axes)));
    tn_attention_cache *kept = kept_of(cache, call, x, 0, 0);
    return tn_attention_cache_append(kept, NULL, k, NULL, v)
               ? joined(tn_attention_cache_attend(kept, NULL, q, TN_TPA_ATTENTION(.causal = true)))
               : NULL;
}

/* ---- a layer ---- */

static tn_tensor *mix(const model_layer *layer, const model_call *call, model_cache *cache, tn_tensor *x) {
    if (!x) return NULL;
    switch (layer->mixer) {
    case TRAIN_MIXER_LINEAR: return mix_linear(&layer->linear, call, cache, x);
    case TRAIN_MIXER_TPA: return mix_tpa(&layer->tpa, call, cache, x);
    case TRAIN_MIXER_SOFTMAX: return mix_softmax(&layer->softmax, call, cache, x);
    }
    return NULL;
}

static tn_tensor *add_branch(const model_call *call, tn_tensor *x, tn_tensor *branch) {
    return tn_add(x, call->dropout > 0 ? tn_dropout(branch, TN_DROPOUT(.p = call->dropout)) : branch);
}

static tn_tensor *mixer_half(const model_layer *layer, const model_call *call, model_cache *cache, tn_tensor *x) {
    tn_label_push(call->cx, train_mixer_name(layer->mixer));
    tn_tensor *mixed = mix(layer, call, cache, tn_rms_norm(x, layer->norm_mixer, NULL, TN_RMS_NORM()));
    x = add_branch(call, x, tn_linear(mixed, layer->out, NULL));
    tn_label_pop(call->cx);
    return x;
}

static tn_tensor *mlp_half(const model_layer *layer, const model_call *call, tn_tensor *x) {
    tn_label_push(call->cx, "mlp");
    tn_tensor *up = tn_linear(tn_rms_norm(x, layer->norm_mlp, NULL, TN_RMS_NORM()), layer->up, NULL);
    x = add_branch(call, x, tn_linear(tn_swiglu(up), layer->down, NULL));
    tn_label_pop(call->cx);
    return x;
}

/* What runs in training and again in backward. */
static tn_tensor *mixer_in_training(void *layer, tn_tensor *const *x, int n) {
    (void)n;
    return mixer_half(layer, ((const model_layer *)layer)->training, NULL, x[0]);
}

static tn_tensor *mlp_in_training(void *layer, tn_tensor *const *x, int n) {
    (void)n;
    return mlp_half(layer, ((const model_layer *)layer)->training, x[0]);
}

static tn_tensor *layer_in_training(void *layer, tn_tensor *const *x, int n) {
    tn_tensor *middle = mixer_in_training(layer, x, n);
    return mlp_in_training(layer, &middle, 1);
}

static tn_tensor *again(const model_layer *layer, tn_checkpoint_fn part, tn_tensor *x) {
    return tn_checkpoint(layer->training->cx, part, (void *)layer, &x, 1);
}

tn_tensor *model_layer_forward(const model_layer *layer, const model_call *call, model_cache *cache, tn_tensor *x) {
    train_recompute_part part = call->training ? layer->again : TRAIN_KEEP_ALL;
    if (part == TRAIN_AGAIN_LAYER) return again(layer, layer_in_training, x);
    x = part == TRAIN_AGAIN_MIXER ? again(layer, mixer_in_training, x) : mixer_half(layer, call, cache, x);
    return part == TRAIN_AGAIN_MLP ? again(layer, mlp_in_training, x) : mlp_half(layer, call, x);
}
