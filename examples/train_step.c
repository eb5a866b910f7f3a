#include "train_step.h"

#include <math.h>
#include <stdlib.h>

/* ---- batches ---- */

static bool batch_init(train_batch *batch, const train_stepper *s, int64_t rows) {
    const tn_data_info *info = &s->info;
    int64_t patches = info->grid_rows * info->grid_columns;
    bool image = info->n_features > 0;
    *batch = (train_batch){ .rows = rows, .length = image ? 1 : s->context };
    size_t n = (size_t)(rows * batch->length);
    batch->goals = malloc(n * sizeof *batch->goals);
    if (image) batch->patches = malloc((size_t)(rows * patches * info->n_features) * sizeof *batch->patches);
    else batch->ids = malloc(n * sizeof *batch->ids);
    if (!batch->goals || (image ? !batch->patches : !batch->ids))
        return tn_fail(s->cx, TN_ERR_HOST_MEMORY, "train", "no memory for a batch");
    tn_category before = tn_memory_set_category(s->cx, TN_CATEGORY_IO);
    batch->inputs = image ? tn_empty(s->cx, TN_F32, TN_SHAPE(rows, info->grid_rows, info->grid_columns, info->n_features))
                          : tn_empty(s->cx, TN_I64, TN_SHAPE(rows, batch->length));
    batch->targets = tn_empty(s->cx, TN_I64, image ? TN_SHAPE(rows) : TN_SHAPE(rows, batch->length));
    tn_memory_set_category(s->cx, before);
    tn_retain(batch->inputs);
    return tn_retain(batch->targets) != NULL;
}

static void batch_free(train_batch *batch) {
    free(batch->ids);
    free(batch->goals);
    free(batch->patches);
    tn_release(batch->inputs);
    tn_release(batch->targets);
    *batch = (train_batch){ 0 };
}

static bool batch_fill(train_batch *batch, const train_stepper *s, tn_data_draw draw) {
    draw.n_rows = batch->rows;
    draw.length = batch->length;
    bool drawn = batch->patches ? tn_data_images(s->data, &draw, batch->patches, batch->goals)
                                : tn_data_rows(s->data, &draw, batch->ids, batch->goals);
    const void *inputs = batch->patches ? (const void *)batch->patches : batch->ids;
    return drawn && tn_set_data(batch->inputs, inputs, tn_bytes(batch->inputs)) &&
           tn_set_data(batch->targets, batch->goals, tn_bytes(batch->targets));
}

/* Images are drawn in f32 and read in the model's dtype. */
static tn_tensor *as_read(const train_stepper *s, tn_tensor *inputs) {
    return s->batch.patches ? tn_cast(inputs, model_dtype(s->config)) : inputs;
}

/* ---- a step ---- */

bool train_stepper_init(train_stepper *s, model *m, const tn_data *data) {
    const train_config *c = m->config;
    *s = (train_stepper){ .cx = m->cx, .config = c, .data = data, .info = tn_data_info_of(data), .model = m };
    s->context = s->info.length ? s->info.length : c->context;
    s->optimizer = tn_adamw_new(
        m->params, TN_ADAMW(.lr = c->lr, .beta1 = c->beta1, .beta2 = c->beta2, .eps = c->eps, .weight_decay = c->weight_decay));
    s->loss = tn_retain(tn_zeros(s->cx, TN_F64, TN_SCALAR));
    s->norm = tn_retain(tn_zeros(s->cx, TN_F64, TN_SCALAR));
    if (c->graph && tn_graph_possible(s->cx)) s->random_place = tn_retain(tn_zeros(s->cx, TN_I64, TN_SCALAR));
    return tn_adamw_group(s->optimizer, 1, 1.0, 0.0) && batch_init(&s->batch, s, c->batch * c->accumulate);
}

void train_stepper_free(train_stepper *s) {
    tn_graph_free(s->graph);
    tn_release(s->random_place);
    batch_free(&s->batch);
    tn_release(s->loss);
    tn_release(s->norm);
    tn_adamw_free(s->optimizer);
    *s = (train_stepper){ 0 };
}

/* The gradients of one part, and its loss added to s->loss. */
static bool run_part(train_stepper *s, int64_t part) {
    int64_t rows = s->config->batch, parts = s->config->accumulate;
    tn_scope *scope = tn_scope_begin(s->cx);
    tn_tensor *inputs = tn_narrow(s->batch.inputs, 0, part * rows, rows), *targets = tn_narrow(s->batch.targets, 0, part * rows, rows);
    tn_tensor *loss = model_loss(s->model, as_read(s, inputs), targets, true);
    if (parts > 1) loss = tn_mul(loss, tn_full(s->cx, TN_F32, TN_SCALAR, 1.0 / (double)parts));
    tn_backward(loss);
    if (part == 0) tn_assign(s->loss, tn_detach(loss));
    else tn_assign(s->loss, tn_add(s->loss, tn_cast(tn_detach(loss), TN_F64)));
    tn_scope_end(scope);
    return !tn_failed(s->cx);
}

static bool run_step(train_stepper *s) {
    const train_config *c = s->config;
    tn_scope *scope = tn_scope_begin(s->cx);
    for (int64_t part = 0; part < c->accumulate; part++) run_part(s, part);
    tn_assign(s->norm, tn_clip_grad_norm(s->model->params, c->clip > 0 ? c->clip : INFINITY));
    tn_adamw_step(s->optimizer);
    tn_zero_grad(s->model->params);
    tn_scope_end(scope);
    return !tn_failed(s->cx);
}

/* Steps before one is recorded: by then everything lasting has been made. */
#define STEPS_BEFORE_RECORDING 2

/* The step with its random numbers counted from what lies in random_place. */
static bool run_placed(train_stepper *s) {
    tn_rng_set(s->cx, (tn_rng_state){ tn_rng_get(s->cx).seed, 0 });
    tn_rng_from(s->cx, s->random_place);
    bool fine = run_step(s);
    tn_rng_from(s->cx, NULL);
    s->n_random = tn_rng_get(s->cx).counter;
    return fine;
}

static bool record(train_stepper *s) {
    tn_memory_release_cache(s->cx);
    if (!tn_graph_begin(s->cx)) return false;
    run_placed(s);
    s->graph = tn_graph_end(s->cx);
    return s->graph != NULL;
}

static bool run_or_replay(train_stepper *s) {
    tn_rng_state random = tn_rng_get(s->cx);
    random.counter += random.counter & 1;
    int64_t place = (int64_t)random.counter;
    if (!tn_set_data(s->random_place, &place, sizeof place)) return false;
    bool fine = s->graph || s->n_run < STEPS_BEFORE_RECORDING || record(s);
    fine = fine && (s->graph ? tn_graph_replay(s->graph) : run_placed(s));
    random.counter += s->n_random;
    tn_rng_set(s->cx, random);
    s->n_run++;
    return fine;
}

bool train_step(train_stepper *s, int64_t step) {
    tn_data_draw draw = { .split = TN_DATA_TRAIN, .order = TN_DATA_RANDOM, .first_row = step * s->batch.rows };
    return batch_fill(&s->batch, s, draw) && tn_adamw_set_lr(s->optimizer, train_config_lr(s->config, step)) &&
           tn_optimizer_prepare(s->optimizer) && (s->random_place ? run_or_replay(s) : run_step(s));
}

bool train_step_results(const train_stepper *s, double *loss, double *norm) {
    *loss = tn_item(s->loss);
    *norm = tn_item(s->norm);
    return !tn_failed(s->cx);
}

/* ---- evaluation ---- */

#define TASK_BATCHES 16

/* Text: the whole split in order, unless fewer batches are asked for; those are drawn, always the same. */
static int64_t evaluation_batches(const train_stepper *s, tn_data_draw *draw) {
    int64_t rows = tn_data_row_count(s->data, TN_DATA_VALIDATION, s->context), asked = s->config->eval_batches;
    bool whole = rows >= s->config->batch && (asked == 0 || asked >= rows / s->config->batch);
    *draw = (tn_data_draw){ .split = TN_DATA_VALIDATION, .order = whole ? TN_DATA_SEQUENTIAL : TN_DATA_RANDOM };
    return whole ? rows / s->config->batch : asked ? asked : TASK_BATCHES;
}

static bool score_batch(train_stepper *s, train_batch *batch, train_score *sum, int64_t *n_counted) {
    tn_scope *scope = tn_scope_begin(s->cx);
    tn_tensor *inputs = as_read(s, batch->inputs);
    sum->loss += tn_item(model_loss(s->model, inputs, batch->targets, false));
    if (s->config->task != TRAIN_TASK_NONE && s->config->task != TRAIN_TASK_UNIFORM)
        sum->accuracy += (double)model_hits(s->model, inputs, batch->goals, n_counted);
    tn_scope_end(scope);
    return !tn_failed(s->cx);
}

bool train_evaluate(train_stepper *s, train_score *score) {
    train_batch batch;
    tn_data_draw draw;
    int64_t n_batches = evaluation_batches(s, &draw), n_counted = 0;
    train_score sum = { 0 };
    tn_no_grad_begin(s->cx);
    bool fine = batch_init(&batch, s, s->config->batch);
    for (int64_t i = 0; fine && i < n_batches; i++) {
        draw.first_row = i * batch.rows;
        fine = batch_fill(&batch, s, draw) && score_batch(s, &batch, &sum, &n_counted);
    }
    batch_free(&batch);
    tn_no_grad_end(s->cx);
    *score = (train_score){ sum.loss / (double)n_batches, n_counted ? sum.accuracy / (double)n_counted : NAN };
    return fine;
}
