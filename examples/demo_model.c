#include "demo_model.h"

#include <math.h>
#include <stdlib.h>

static tn_tensor *matrix(demo_model *model, int64_t rows, int64_t columns, double deviation, const char *name, int layer) {
    tn_tensor *w = tn_fill_normal(tn_parameter(model->cx, TN_F32, TN_SHAPE(rows, columns)), 0, deviation);
    return tn_params_add(model->params, w, 0, "layer.%d.%s", layer, name);
}

static tn_tensor *norm_weight(demo_model *model, int64_t width, const char *name, int layer) {
    return tn_params_add(model->params, tn_fill(tn_parameter(model->cx, TN_F32, TN_SHAPE(width)), 1), 1, "layer.%d.%s", layer, name);
}

/* Each head forgets at its own pace: from a window of a few characters to the whole context. */
static tn_tensor *decay_mask(tn_context *cx, int64_t heads, int64_t n) {
    float *mask = calloc((size_t)(heads * n * n), sizeof *mask);
    if (!mask) return NULL;
    for (int64_t h = 0; h < heads; h++) {
        double log_decay = log1p(-pow(2, -2 - 5.0 * (double)h / (double)heads));
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j <= i; j++) mask[(h * n + i) * n + j] = (float)exp(log_decay * (double)(i - j));
    }
    tn_tensor *t = tn_from_data(cx, TN_F32, TN_SHAPE(heads, n, n), mask);
    free(mask);
    return t;
}

void demo_model_init(demo_model *model, tn_context *cx, demo_config c) {
    *model = (demo_model){ .cx = cx, .config = c, .params = tn_params_new(cx) };
    double deviation = 0.5 / sqrt((double)c.width), into_stream = deviation / sqrt(2.0 * (double)c.layers);
    model->embedding =
        tn_params_add(model->params, tn_fill_normal(tn_parameter(cx, TN_F32, TN_SHAPE(c.n_tokens, c.width)), 0, 0.05), 0, "embedding");
    for (int i = 0; i < c.layers; i++)
        model->layer[i] = (demo_layer){
            .norm_attention = norm_weight(model, c.width, "norm_attention", i),
            .qkvg = matrix(model, 4 * c.width, c.width, deviation, "qkvg", i),
            .norm_head = norm_weight(model, c.width / c.heads, "norm_head", i),
            .out = matrix(model, c.width, c.width, into_stream, "out", i),
            .norm_mlp = norm_weight(model, c.width, "norm_mlp", i),
            .up = matrix(model, 2 * c.hidden, c.width, deviation, "up", i),
            .down = matrix(model, c.width, c.hidden, into_stream, "down", i),
        };
    model->norm = tn_params_add(model->params, tn_fill(tn_parameter(cx, TN_F32, TN_SHAPE(c.width)), 1), 1, "norm");
    model->decay = decay_mask(cx, c.heads, c.context);
}

int64_t demo_model_parameters(const demo_model *model) {
    int64_t n = 0;
    for (int64_t i = 0; i < tn_params_count(model->params); i++) n += tn_params_at(model->params, i)->numel;
    return n;
}

/* Part `index` of [b, n, 4, heads, d] as [b, heads, n, d]: a view. */
static tn_tensor *part(tn_tensor *qkvg, int64_t index) { return tn_transpose(tn_select(qkvg, 2, index), 1, 2); }

/* o_i = sum over j <= i of decay^(i - j) <q_i, k_j> v_j: linear attention written out with its decay mask. */
static tn_tensor *attention(demo_model *model, const demo_layer *layer, tn_tensor *x) {
    const demo_config *c = &model->config;
    int64_t b = x->shape[0], n = x->shape[1], d = c->width / c->heads;
    tn_tensor *qkvg = tn_reshape(tn_linear(tn_rms_norm(x, layer->norm_attention, NULL, TN_RMS_NORM()), layer->qkvg, NULL),
                                 TN_SHAPE(b, n, 4, c->heads, d));
    tn_tensor *q = tn_silu(part(qkvg, 0)), *k = tn_silu(part(qkvg, 1)), *v = part(qkvg, 2);
    tn_tensor *decay = tn_narrow(tn_narrow(model->decay, 1, 0, n), 2, 0, n);
    tn_tensor *scores = tn_mul(tn_matmul(q, tn_transpose(k, 2, 3)), decay);
    tn_tensor *o = tn_transpose(tn_matmul(scores, v), 1, 2); /* [b, n, heads, d] */
    o = tn_rms_norm(o, layer->norm_head, tn_select(qkvg, 2, 3), TN_RMS_NORM(.g_act = TN_SILU));
    return tn_linear(tn_reshape(o, TN_SHAPE(b, n, c->width)), layer->out, NULL);
}

static tn_tensor *mlp(const demo_layer *layer, tn_tensor *x) {
    return tn_linear(tn_swiglu(tn_linear(tn_rms_norm(x, layer->norm_mlp, NULL, TN_RMS_NORM()), layer->up, NULL)), layer->down, NULL);
}

tn_tensor *demo_model_forward(demo_model *model, tn_tensor *tokens) {
    tn_tensor *x = tn_embedding(model->embedding, tokens);
    for (int i = 0; i < model->config.layers; i++) {
        const demo_layer *layer = &model->layer[i];
        char label[32];
        snprintf(label, sizeof label, "layer.%d", i);
        tn_label_push(model->cx, label);
        tn_scope *scope = tn_scope_begin(model->cx);
        x = tn_add(x, attention(model, layer, x));
        x = tn_scope_return(scope, tn_add(x, mlp(layer, x)));
        tn_label_pop(model->cx);
    }
    return tn_linear(tn_rms_norm(x, model->norm, NULL, TN_RMS_NORM()), model->embedding, NULL);
}
