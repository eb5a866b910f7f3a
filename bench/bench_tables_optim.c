/* adamw-*: a step over all parameters of a model, and clipping their gradients. */
#include "bench_table.h"

#include <math.h>
#include <stdlib.h>

#define LAYERS 12
#define MODEL_WIDTH 768
#define N_PARAMETERS (2 * LAYERS) /* of each layer a matrix and a vector */

/* Input 2 i is a parameter, input 2 i + 1 its gradient; n elements in all. */
static void step_inputs(const bench_cell *cell, bench_inputs *inputs) {
    int64_t out = cell->n / (LAYERS * MODEL_WIDTH) - 1;
    for (int i = 0; i < N_PARAMETERS; i++) {
        tn_shape shape = i % 2 ? TN_SHAPE(MODEL_WIDTH) : TN_SHAPE(out > 0 ? out : 1, MODEL_WIDTH);
        inputs->in[2 * i] = (bench_input){ .shape = shape, .gradient = true };
        inputs->in[2 * i + 1] = (bench_input){ .shape = shape };
    }
    inputs->n = 2 * N_PARAMETERS;
}

static int64_t n_elements(const bench_set *set) {
    int64_t n = 0;
    for (int i = 0; i < N_PARAMETERS; i++) n += set->in[2 * i]->numel;
    return n;
}

typedef struct step_state {
    tn_params *params;
    tn_adamw *optimizer;
    double max_norm;
} step_state;

static bool open_params(bench_set *set) {
    step_state *state = calloc(1, sizeof *state);
    if (!state) return tn_fail(set->cx, TN_ERR_HOST_MEMORY, "bench", "the host has no memory left");
    set->state = state;
    state->params = tn_params_new(set->cx);
    for (int i = 0; i < N_PARAMETERS; i++) {
        tn_params_add(state->params, set->in[2 * i], 0, "p.%d", i);
        tn_backward_with(set->in[2 * i], TN_BACKWARD(.grad = set->in[2 * i + 1]));
    }
    state->max_norm = 1;
    return !tn_failed(set->cx);
}

/* The first step makes the moments; what is timed are later ones. The rate is high, so that a wrong step can't hide in the parameter. */
static bool open_adamw(bench_set *set) {
    if (!open_params(set)) return false;
    step_state *state = set->state;
    state->optimizer = tn_adamw_new(state->params, TN_ADAMW(.lr = 0.3, .weight_decay = 0.1));
    return state->optimizer && tn_adamw_step(state->optimizer);
}

static void close_params(bench_set *set) {
    step_state *state = set->state;
    if (state->optimizer) tn_adamw_free(state->optimizer);
    tn_params_free(state->params);
    free(state);
}

static tn_tensor *step_adamw(bench_set *set) {
    const step_state *state = set->state;
    return tn_adamw_step(state->optimizer) ? set->in[0] : NULL;
}

/* Each call asks for a little less, so that each has to scale. */
static tn_tensor *clip(bench_set *set) {
    step_state *state = set->state;
    state->max_norm *= 0.999;
    return tn_clip_grad_norm(state->params, state->max_norm) ? tn_grad(set->in[0]) : NULL;
}

static tn_tensor *norm(bench_set *set) {
    const step_state *state = set->state;
    return tn_clip_grad_norm(state->params, INFINITY);
}

/* Gradient and both moments are read, moments and parameter written; beside bf16 stands an f32 master that is read and written. */
static int64_t adamw_floor(const bench_set *set, bool backward) {
    (void)backward;
    int64_t size = (int64_t)tn_dtype_size(set->cell->dtype), wide = set->cell->dtype == TN_F64 ? 8 : 4;
    int64_t parameter = set->cell->dtype == TN_BF16 ? size + 2 * wide : 2 * size;
    return n_elements(set) * (size + 4 * wide + parameter);
}

static int64_t clip_floor(const bench_set *set, bool backward) {
    (void)backward;
    return 3 * n_elements(set) * (int64_t)tn_dtype_size(set->cell->dtype);
}

static int64_t norm_floor(const bench_set *set, bool backward) {
    (void)backward;
    return n_elements(set) * (int64_t)tn_dtype_size(set->cell->dtype);
}

static const bench_column columns[] = {
    { .name = "adamw", .open = open_adamw, .call = step_adamw, .close = close_params, .floor_bytes = adamw_floor },
    { .name = "clip", .open = open_params, .call = clip, .close = close_params, .floor_bytes = clip_floor },
    { .name = "norm", .open = open_params, .call = norm, .close = close_params, .floor_bytes = norm_floor },
};

static const bench_table tables[] = {
    {
        .family = "adamw",
        .doc = "n parameters in 24 tensors: a step, clipping that scales, the norm alone",
        .kinds = BENCH_BIT(BENCH_SPEED_STEP),
        .dtypes = TN_MASK(TN_BF16) | TN_MASK(TN_F32),
        .columns = columns,
        .n_columns = TN_COUNT(columns),
        .rows = { 1 << 20, 1 << 24, 1 << 27 },
        .cpu_rows = { 1 << 18, 1 << 22 },
        .inputs = step_inputs,
        .gate_rows = 1 << 18,
    },
};

const bench_table_list bench_optim_tables = { tables, TN_COUNT(tables) };
