#include "train_budget.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "train_step.h"

bool train_step_measured(train_stepper *s, int64_t step, int64_t *bytes) {
    tn_memory_stats before, after;
    tn_memory_stats_get(s->cx, &before);
    tn_memory_reset_peak(s->cx);
    bool fine = train_step(s, step);
    tn_memory_stats_get(s->cx, &after);
    *bytes = after.all.allocated.peak - before.all.allocated.current;
    return fine;
}

typedef struct trial {
    train_config config;
    const tn_data *data;
    train_budget *result;
} trial;

/* The first step makes what lasts: gradients, the optimizer's moments. */
static bool two_steps(tn_context *cx, void *user) {
    trial *t = user;
    model made;
    train_stepper stepper;
    tn_data_info info = tn_data_info_of(t->data);
    model_init(&made, cx, &t->config, &info);
    bool fine =
        train_stepper_init(&stepper, &made, t->data) && train_step(&stepper, 0) && train_step_measured(&stepper, 1, &t->result->bytes);
    int64_t tokens = stepper.batch.rows * stepper.context;
    if (fine) t->result->more_work = model_again_flops(&made, tokens, stepper.context) / model_step_flops(&made, tokens, stepper.context);
    train_stepper_free(&stepper);
    return fine;
}

bool train_budget_predict(const train_config *config, const tn_data *data, const char *recompute, train_budget *result, char *reason,
                          size_t n_bytes) {
    trial t = { .config = *config, .data = data, .result = result };
    tn_memory_stats stats;
    *result = (train_budget){ 0 };
    snprintf(result->recompute, sizeof result->recompute, "%s", recompute);
    t.config.recompute = result->recompute;
    tn_options options = { .device = config->device, .seed = (uint64_t)config->seed, .threads = (int)config->threads };
    return tn_predict_memory(&options, two_steps, &t, &stats, reason, n_bytes);
}

/* Takes over `tried` where it is within the bound and less work. */
static void keep_better(const train_config *config, const train_budget *tried, train_budget *best) {
    bool first = !best->recompute[0], fits = tried->bytes <= config->activation_budget, fitted = best->bytes <= config->activation_budget;
    if (first || (fits && !fitted) || (fits && tried->more_work < best->more_work) || (!fits && !fitted && tried->bytes < best->bytes))
        *best = *tried;
}

/* The fewest layers from the first that suffice; the others do what `rest` says. */
static bool try_layers(const train_config *config, const tn_data *data, const char *part, const char *rest, train_budget *best,
                       char *reason, size_t n_bytes) {
    for (int64_t n = 1; n <= config->layers; n++) {
        train_budget tried;
        char text[TRAIN_RECOMPUTE_TEXT];
        if (n < config->layers) snprintf(text, sizeof text, "%s:%" PRId64 "%s", part, n, rest);
        else snprintf(text, sizeof text, "%s", part);
        if (!train_budget_predict(config, data, text, &tried, reason, n_bytes)) return false;
        keep_better(config, &tried, best);
        if (tried.bytes <= config->activation_budget) break;
    }
    return true;
}

static bool try_groups(const train_config *config, const tn_data *data, train_budget *best, char *reason, size_t n_bytes) {
    for (int64_t every = 2; best->bytes > config->activation_budget && every <= config->layers; every++) {
        train_budget tried;
        char text[TRAIN_RECOMPUTE_TEXT];
        snprintf(text, sizeof text, "every-%" PRId64, every);
        if (!train_budget_predict(config, data, text, &tried, reason, n_bytes)) return false;
        keep_better(config, &tried, best);
    }
    return true;
}

bool train_budget_choose(const train_config *config, const tn_data *data, train_budget *chosen, char *reason, size_t n_bytes) {
    static const char *const sets[][2] = {
        { "attention", "" }, { "mlp", "" }, { "block", "" }, { "block", "+attention" }, { "block", "+mlp" }
    };
    train_budget best;
    if (!train_budget_predict(config, data, "none", &best, reason, n_bytes)) return false;
    int64_t without = best.bytes;
    for (size_t i = 0; without > config->activation_budget && i < sizeof sets / sizeof *sets; i++)
        if (!try_layers(config, data, sets[i][0], sets[i][1], &best, reason, n_bytes)) return false;
    if (!try_groups(config, data, &best, reason, n_bytes)) return false;
    *chosen = best;
    chosen->bytes_without = without;
    if (best.bytes <= config->activation_budget) return true;
    snprintf(reason, n_bytes, "activation_budget: a step takes %" PRId64 " bytes at least, with recompute=%s", best.bytes, best.recompute);
    return false;
}
