/* The language model's layers: a mixer of tokens and an MLP, each added to the stream of features.
 *
 *     x += out(mixer(norm(x)))                 linear   RMSNorm over each head of causal linear attention, times silu(g)
 *     x += down(swiglu(up(norm(x))))           tpa      tensor product attention, its factors bq and bk rotated by position
 *                                              softmax  attention, q and k rotated by position
 *
 * A mixer given a cache goes on from the tokens in it and keeps what the next ones need: linear a state of fixed size, tpa its factors
 * ak, bk, av, bv, softmax k and v. */
#ifndef TENON_MODEL_LAYERS_H
#define TENON_MODEL_LAYERS_H

#include "tenon.h"
#include "train_config.h"
#include "train_recompute.h"

typedef struct model_linear {
    tn_tensor *q, *k, *v, *g;
    tn_tensor *theta;     /* [1, w], f32; NULL without LRPE */
    tn_tensor *log_decay; /* [h], f32, constant; NULL where there is none, or the data says */
    tn_tensor *decay;     /* [h, width]: what the data says, and [h], f32 */
    tn_tensor *decay_bias;
    tn_tensor *shift;     /* [width]: how much of the token before goes into k; NULL: nothing */
    tn_tensor *norm_head; /* [d] */
} model_linear;

typedef struct model_tpa {
    tn_tensor *aq, *bq, *ak, *bk, *av, *bv;
} model_tpa;

typedef struct model_softmax {
    tn_tensor *q, *k, *v;
} model_softmax;

struct model_call;
typedef struct model_layer {
    train_mixer mixer;
    train_recompute_part again; /* of this layer, in training; TRAIN_AGAIN_EVERY and TRAIN_OFFLOAD are above layers */
    const struct model_call *training;
    tn_tensor *norm_mixer, *out, *norm_mlp, *up, *down;
    model_linear linear;
    model_tpa tpa;
    model_softmax softmax;
} model_layer;

/* What a layer keeps of the tokens so far; zeroed at first. */
typedef struct model_cache {
    int64_t room;             /* tokens that tpa and softmax shall have room for */
    tn_tensor *last;          /* linear with shift: the last token's features */
    tn_tensor *state;         /* linear: [b, h, d, d], f32 */
    tn_attention_cache *kept; /* tpa, softmax */
} model_cache;

/* What all layers share in one call. */
typedef struct model_call {
    tn_context *cx;
    bool training;
    const train_config *config;
    tn_tensor *rope;  /* [1, model_angles], f32 */
    tn_int_list grid; /* of image patches: not causal; no axes for text */
    double dropout;   /* 0 but for training */
    int64_t position; /* of the first token, where there are caches */
} model_call;

/* Makes a layer's parameters, with names that begin with layer.INDEX. Group 0: matrices; group 1: norms and biases. */
void model_layer_init(model_layer *layer, tn_params *params, const train_config *config, train_mixer mixer, int index, bool image);
/* [b, n, width] -> the same. `cache` may be NULL. */
tn_tensor *model_layer_forward(const model_layer *layer, const model_call *call, model_cache *cache, tn_tensor *x);

/* Frequencies base^(-i / count), i < count: [1, count], f32. */
tn_tensor *model_frequencies(tn_context *cx, int64_t count, double base);
/* Angles of a head's rotation: an image's rows and columns share them. */
static inline int64_t model_angles(const train_config *config, bool image) {
    int64_t pairs = config->width / config->heads / 2;
    return image ? (pairs + 1) / 2 : pairs;
}
/* A parameter with normal entries, deviation 0: ones. */
tn_tensor *model_parameter(tn_params *params, tn_dtype dtype, tn_shape shape, double deviation, int group, const char *name);
static inline tn_dtype model_dtype(const train_config *config) { return config->dtype ? TN_BF16 : TN_F32; }
static inline double model_deviation(const train_config *config) {
    return config->init_std > 0 ? config->init_std : 0.5 / sqrt((double)config->width);
}
void model_cache_free(model_cache *cache);

#endif
