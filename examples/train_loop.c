#include "train_loop.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "train_budget.h"
#include "train_log.h"
#include "train_step.h"

typedef struct train_state {
    const train_config *config;
    train_config planned; /* the same with recompute as the budget wants it */
    train_budget budget;
    int64_t step_bytes, peak; /* of the second step; of all that came before it */
    tn_context *cx;
    tn_data *data;
    model model;
    train_stepper stepper;
    train_log log;
    int64_t first_step;
    double best_loss;
    int64_t best_step;

    /* Since the last line of the log, without evaluations and checkpoints. */
    double seconds, started;
    int64_t logged_step;
} train_state;

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#define MIB (1.0 / 1048576)

/* ---- checkpoints ---- */

static bool save(train_state *t, int64_t step, bool best) {
    json_t *config = train_config_to_json(t->config),
           *more = json_pack("{s:I, s:I}", "best_step", (json_int_t)t->best_step, "n_tokens", (json_int_t)t->model.n_tokens);
    if (!config || !more) return tn_fail(t->cx, TN_ERR_HOST_MEMORY, "checkpoint", "the host has no memory left");
    run_checkpoint_state state = {
        .step = step, .data_row = step * t->stepper.batch.rows, .best_loss = t->best_loss, .config = config, .more = more
    };
    bool fine = run_checkpoint_save(t->cx, &(run_checkpoint_args){ .folder = t->config->out,
                                                                   .params = t->model.params,
                                                                   .optimizer = best ? NULL : t->stepper.optimizer,
                                                                   .vocabulary = tn_data_vocabulary(t->data),
                                                                   .state = &state,
                                                                   .keep = (int)t->config->keep,
                                                                   .best = best });
    json_decref(config);
    json_decref(more);
    return fine;
}

static bool restore(train_state *t, const run_checkpoint *from) {
    const run_checkpoint_state *state = run_checkpoint_state_of(from);
    t->first_step = state->step;
    t->best_loss = state->best_loss;
    t->best_step = json_integer_value(json_object_get(state->more, "best_step"));
    if (state->data_row != state->step * t->stepper.batch.rows)
        return tn_fail(t->cx, TN_ERR_FORMAT, "resume", "%s: data row %" PRId64 " does not belong to step %" PRId64,
                       run_checkpoint_path(from), state->data_row, state->step);
    if (strcmp(state->device, tn_device_name(t->cx)) != 0 || state->threads != tn_threads(t->cx))
        fprintf(stderr, "tenon-train: begun on %s with %d threads, goes on on %s with %d: the last bits may differ\n", state->device,
                state->threads, tn_device_name(t->cx), tn_threads(t->cx));
    return run_checkpoint_load(from, t->model.params, t->stepper.optimizer) && run_checkpoint_restore_random(from, t->cx);
}

/* ---- steps ---- */

static bool is_due(int64_t step, int64_t every, int64_t steps) { return every > 0 && (step % every == 0 || step == steps); }

static void stop_clock(train_state *t) { t->seconds += seconds_now() - t->started; }
static void start_clock(train_state *t) { t->started = seconds_now(); }

static bool evaluate(train_state *t, int64_t step, train_record *record) {
    train_score score;
    if (!train_evaluate(&t->stepper, &score)) return false;
    record->val_loss = score.loss;
    record->val_accuracy = score.accuracy;
    if (!(isnan(t->best_loss) || score.loss < t->best_loss)) return true;
    t->best_loss = score.loss;
    t->best_step = step;
    return t->config->checkpoint_every < 0 || save(t, step, true);
}

/* After `step` steps: what is due. Waits for the device. */
static bool report(train_state *t, int64_t step) {
    const train_config *c = t->config;
    train_record record = { .step = step, .lr = train_config_lr(c, step - 1), .val_loss = NAN, .val_accuracy = NAN };
    bool fine = train_step_results(&t->stepper, &record.loss, &record.grad_norm);
    stop_clock(t);
    double per_step = t->seconds / (double)(step - t->logged_step);
    record.ms = 1e3 * per_step;
    record.tok_s = (double)(t->stepper.batch.rows * t->stepper.batch.length) / per_step;
    if (fine && !isfinite(record.loss))
        fine = tn_fail(t->cx, TN_ERR_NUMERIC, "train", "the loss of step %" PRId64 " is %g", step, record.loss) != NULL;
    bool evaluates = is_due(step, c->eval_every, c->steps);
    if (fine && evaluates) fine = evaluate(t, step, &record);
    if (fine) fine = train_log_add(&t->log, &record) && (!evaluates || train_log_plot(&t->log));
    t->seconds = 0;
    t->logged_step = step;
    start_clock(t);
    return fine;
}

static int64_t peak_of(const train_state *t) {
    tn_memory_stats memory = { 0 };
    tn_memory_stats_get(t->cx, &memory);
    return memory.all.allocated.peak > t->peak ? memory.all.allocated.peak : t->peak;
}

/* By the second step everything that lasts is there. */
static bool measured_step(train_state *t, int64_t step) {
    t->peak = peak_of(t);
    if (!train_step_measured(&t->stepper, step, &t->step_bytes)) return false;
    if (t->config->activation_budget && t->step_bytes > t->config->activation_budget)
        fprintf(stderr, "tenon-train: a step takes %" PRId64 " bytes, not %" PRId64 " as predicted\n", t->step_bytes, t->budget.bytes);
    return true;
}

static bool run_steps(train_state *t) {
    const train_config *c = t->config;
    int64_t save_every = c->checkpoint_every ? c->checkpoint_every : c->eval_every;
    int64_t last = c->stop_after && c->stop_after < c->steps - t->first_step ? t->first_step + c->stop_after : c->steps;
    t->logged_step = t->first_step;
    start_clock(t);
    for (int64_t step = t->first_step; step < last; step++) {
        if (!(step == t->first_step + 1 ? measured_step(t, step) : train_step(&t->stepper, step))) return false;
        int64_t done = step + 1;
        bool reports = done % c->log_every == 0 || done == 1 || done == last || is_due(done, c->eval_every, c->steps);
        if (reports && !report(t, done)) return false;
        if (c->checkpoint_every < 0 || (done != last && !is_due(done, save_every, c->steps))) continue;
        stop_clock(t);
        if (!save(t, done, false)) return false;
        start_clock(t);
    }
    return true;
}

/* ---- a run ---- */

/* Peak of dense products, in f32 accumulators, of the GPU a detail line names. 0: not known. */
static double peak_flops(const tn_context *cx, tn_dtype dtype) {
    static const struct {
        const char *name;
        double bf16, f32;
    } known[] = { { "H100 PCIe", 756e12, 51e12 }, { "H100", 989e12, 67e12 }, { "H200", 989e12, 67e12 }, { "A100", 312e12, 19.5e12 } };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(tn_device_detail(cx), known[i].name)) return dtype == TN_BF16 ? known[i].bf16 : known[i].f32;
    return 0;
}

static void tell_start(const train_state *t) {
    fprintf(stderr, "%s: %.3f M parameters, %" PRId64 " tokens of vocabulary; %s (%s)\n", t->config->model,
            1e-6 * (double)model_parameter_count(&t->model), t->model.n_tokens, tn_device_name(t->cx), tn_device_detail(t->cx));
    if (t->config->activation_budget)
        fprintf(stderr, "activations: recompute=%s, predicted %.2f MiB a step of %.2f allowed (none: %.2f), about %.0f%% more time\n",
                t->budget.recompute, MIB * (double)t->budget.bytes, MIB * (double)t->config->activation_budget,
                MIB * (double)t->budget.bytes_without, 100 * t->budget.more_work);
    if (t->first_step > 0) fprintf(stderr, "goes on after step %" PRId64 " of %" PRId64 "\n", t->first_step, t->config->steps);
}

static void tell_end(const train_state *t) {
    tn_memory_stats memory = { 0 };
    tn_memory_stats_get(t->cx, &memory);
    const train_record *last = t->log.n_records > 0 ? &t->log.records[t->log.n_records - 1] : NULL;
    printf("steps %" PRId64, last ? last->step : t->first_step);
    if (last) printf("  loss %.4f  tok_s %.0f", last->loss, last->tok_s);
    if (!isnan(t->best_loss)) printf("  best_val_loss %.4f  best_step %" PRId64, t->best_loss, t->best_step);
    printf("  peak_MiB %.1f  step_MiB %.1f  saved_MiB %.1f\n", MIB * (double)peak_of(t), MIB * (double)t->step_bytes,
           MIB * (double)memory.category[TN_CATEGORY_SAVED].peak);
}

static bool make_folders(const char *path) {
    char part[4096];
    for (size_t i = 1; path[i - 1]; i++) {
        if ((path[i] && path[i] != '/') || i >= sizeof part) continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST) return false;
    }
    return true;
}

static bool plan(train_state *t) {
    char reason[1024];
    t->planned = *t->config;
    if (!t->config->activation_budget) return true;
    if (!train_budget_choose(t->config, t->data, &t->budget, reason, sizeof reason))
        return tn_fail(t->cx, TN_ERR_MEMORY, "train", "%s", reason);
    t->planned.recompute = t->budget.recompute;
    return true;
}

static bool train(train_state *t, const run_checkpoint *from) {
    tn_data_options options = train_config_data(t->config);
    t->data = tn_data_open(t->cx, &options);
    if (!t->data) return false;
    tn_data_info info = tn_data_info_of(t->data);
    if (t->config->vocab && t->config->vocab < info.vocab)
        return tn_fail(t->cx, TN_ERR_ARGUMENT, "vocab", "%" PRId64 ", but the data has %" PRId64 " tokens", t->config->vocab, info.vocab);
    if (!plan(t)) return false;
    model_init(&t->model, t->cx, &t->planned, &info);
    if (!train_stepper_init(&t->stepper, &t->model, t->data) || (from && !restore(t, from))) return false;
    if (!train_log_open(&t->log, t->config->out, t->first_step)) return false;
    t->log.steps = t->config->steps;
    t->log.flops = model_step_flops(&t->model, t->stepper.batch.rows * t->stepper.batch.length, t->stepper.context);
    t->log.peak = peak_flops(t->cx, model_dtype(t->config));
    tell_start(t);
    if (!run_steps(t) || !train_log_plot(&t->log)) return false;
    tell_end(t);
    return true;
}

int train_run(const train_config *config, tn_context *cx, const run_checkpoint *from, char *reason, size_t n_bytes) {
    train_state t = { .config = config, .cx = cx, .best_loss = NAN };
    if (!make_folders(config->out)) {
        snprintf(reason, n_bytes, "out %s: %s", config->out, strerror(errno));
        return TN_CLI_USAGE;
    }
    bool fine = train(&t, from);
    if (!fine) snprintf(reason, n_bytes, "%s", tn_failed(cx) ? tn_error(cx) : t.log.failure);
    int code = fine ? TN_CLI_OK : t.data ? TN_CLI_FAILED : TN_CLI_USAGE;
    train_stepper_free(&t.stepper);
    train_log_close(&t.log);
    tn_data_close(t.data);
    return code;
}
