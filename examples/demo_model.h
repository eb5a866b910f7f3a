/* A character-level language model with causal linear attention, composed from plain ops on the tape.
 *
 *     x = embedding[token]
 *     per layer: x += out(norm(decayed linear attention(silu q, silu k, v)) * silu(g)),  x += down(swiglu(up(norm(x))))
 *     logits = norm(x) embedding'                                   (the head is tied to the embedding) */
#ifndef TENON_DEMO_MODEL_H
#define TENON_DEMO_MODEL_H

#include "tenon.h"

typedef struct demo_config {
    int64_t n_tokens, layers, heads, width, context, hidden;
} demo_config;

typedef struct demo_layer {
    tn_tensor *norm_attention, *qkvg, *norm_head, *out;
    tn_tensor *norm_mlp, *up, *down;
} demo_layer;

#define DEMO_MAX_LAYERS 16

typedef struct demo_model {
    tn_context *cx;
    demo_config config;
    tn_params *params; /* group 0: matrices; group 1: norms, which get no weight decay */
    tn_tensor *embedding, *norm;
    tn_tensor *decay; /* [heads, context, context]: decay^(i - j) for j <= i, else 0 */
    demo_layer layer[DEMO_MAX_LAYERS];
} demo_model;

/* Makes the parameters on cx; errors stay on cx. */
void demo_model_init(demo_model *model, tn_context *cx, demo_config config);
/* Logits [b, n, tokens] for tokens [b, n], n <= context. */
tn_tensor *demo_model_forward(demo_model *model, tn_tensor *tokens);
int64_t demo_model_parameters(const demo_model *model);

#endif
