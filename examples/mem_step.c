#include "mem_step.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ops/sample_inputs.h"

tn_options mem_options(const train_config *config, const char *device) {
    return (tn_options){ .device = device, .seed = (uint64_t)config->seed, .threads = (int)config->threads, .history_events = 1 << 20 };
}

/* ---- what is saved ---- */

static mem_saved *row_of(mem_report *report, const char *label, const char *op) {
    for (int64_t i = 0; i < report->n_table; i++)
        if (strcmp(report->table[i].label, label) == 0 && strcmp(report->table[i].op, op) == 0) return &report->table[i];
    mem_saved *grown = realloc(report->table, (size_t)(report->n_table + 1) * sizeof *grown);
    if (!grown) return NULL;
    report->table = grown;
    grown[report->n_table] = (mem_saved){ .label = label, .op = op };
    return &grown[report->n_table++];
}

static void add_call(void *user, const tn_tape_entry *entry) {
    mem_saved *row = row_of(user, entry->label, entry->op);
    if (!row) return;
    row->n_calls++;
    row->saved_bytes += entry->saved_bytes;
    row->formula_bytes += entry->formula_bytes;
}

/* The tape has the newest call first; people read from the first layer on. */
static void keep_saved(tn_context *cx, mem_report *report) {
    tn_saved_summary_get(cx, &report->saved);
    tn_tape_visit(cx, add_call, report);
    for (int64_t i = 0, j = report->n_table - 1; i < j; i++, j--) {
        mem_saved swap = report->table[i];
        report->table[i] = report->table[j];
        report->table[j] = swap;
    }
}

static bool keep_memory(tn_context *cx, const mem_files *files, mem_report *report) {
    if (tn_failed(cx)) return false;
    tn_memory_stats_get(cx, &report->stats);
    report->timeline = tn_memory_timeline_new(cx);
    if (!files) return report->timeline != NULL;
    return report->timeline && (!files->snapshot || tn_memory_write_snapshot(cx, files->snapshot)) &&
           (!files->trace || tn_memory_write_trace(cx, files->trace)) && (!files->csv || tn_memory_write_csv(cx, files->csv)) &&
           (!files->html || tn_memory_write_page(cx, files->html));
}

/* What comes before is there from the start; only what follows is looked at. */
static void look_from_here(tn_context *cx) {
    tn_memory_reset_peak(cx);
    tn_memory_clear_history(cx);
}

/* ---- a training step ---- */

typedef struct step_run {
    train_config config;
    tn_data *data;
    model model;
    train_stepper stepper;
} step_run;

static bool open_run(step_run *run, tn_context *cx, const train_config *config) {
    *run = (step_run){ .config = *config };
    run->config.graph = 0; /* a replayed graph allocates nothing that could be seen */
    tn_data_options options = train_config_data(config);
    run->data = tn_data_open(cx, &options);
    if (!run->data) return false;
    tn_data_info info = tn_data_info_of(run->data);
    model_init(&run->model, cx, &run->config, &info);
    return train_stepper_init(&run->stepper, &run->model, run->data);
}

static void close_run(step_run *run) {
    train_stepper_free(&run->stepper);
    tn_data_close(run->data);
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* One that makes what lasts, then those that are looked at. */
static bool run_steps(step_run *run, tn_context *cx, int64_t n_steps, double *fastest) {
    if (!train_step(&run->stepper, 0) || !tn_synchronize(cx)) return false;
    look_from_here(cx);
    *fastest = INFINITY;
    for (int64_t i = 1; i <= n_steps; i++) {
        double start = seconds_now();
        if (!train_step(&run->stepper, i) || !tn_synchronize(cx)) return false;
        *fastest = fmin(*fastest, seconds_now() - start);
    }
    return true;
}

/* Forward alone once more, to look at the tape before backward takes it down. */
static bool look_at_tape(step_run *run, tn_context *cx, mem_report *report) {
    tn_scope *scope = tn_scope_begin(cx);
    const train_batch *batch = &run->stepper.batch;
    tn_tensor *inputs = tn_narrow(batch->inputs, 0, 0, run->config.batch), *targets = tn_narrow(batch->targets, 0, 0, run->config.batch);
    if (batch->patches) inputs = tn_cast(inputs, model_dtype(&run->config));
    model_loss(&run->model, inputs, targets, true);
    keep_saved(cx, report);
    tn_scope_end(scope);
    return !tn_failed(cx);
}

bool mem_measure_step(tn_context *cx, const train_config *config, int64_t n_steps, const mem_files *files, mem_report *report) {
    step_run run;
    *report = (mem_report){ 0 };
    bool fine = open_run(&run, cx, config) && run_steps(&run, cx, n_steps, &report->seconds) && keep_memory(cx, files, report) &&
                look_at_tape(&run, cx, report);
    if (fine) {
        report->n_parameters = model_parameter_count(&run.model);
        report->length = run.stepper.context;
        report->n_tokens = run.stepper.batch.rows * run.stepper.context;
    }
    close_run(&run);
    return fine;
}

bool mem_plan(tn_context *cx, train_config *config, train_budget *budget) {
    char reason[1024];
    *budget = (train_budget){ 0 };
    if (!config->activation_budget) return true;
    tn_data_options options = train_config_data(config);
    tn_data *data = tn_data_open(cx, &options);
    if (!data) return false;
    bool chosen = train_budget_choose(config, data, budget, reason, sizeof reason);
    tn_data_close(data);
    if (!chosen) return tn_fail(cx, TN_ERR_MEMORY, "train", "%s", reason), false;
    config->recompute = budget->recompute;
    config->activation_budget = 0;
    return true;
}

static bool predicted_step(tn_context *cx, void *user) {
    step_run run;
    double seconds;
    bool fine = open_run(&run, cx, user) && run_steps(&run, cx, 1, &seconds);
    close_run(&run);
    return fine;
}

bool mem_predict_step(const train_config *config, tn_memory_stats *stats, char *reason, size_t n_bytes) {
    tn_options options = mem_options(config, config->device);
    train_config copy = *config;
    return tn_predict_memory(&options, predicted_step, &copy, stats, reason, n_bytes);
}

/* ---- one op ---- */

static bool set_attributes(tn_context *cx, const tn_op_def *op, const tn_cli_texts *settings, void *args) {
    for (int i = 0; i < settings->n; i++) {
        char name[128], reason[256];
        const char *equals = strchr(settings->text[i], '=');
        size_t n = equals ? (size_t)(equals - settings->text[i]) : sizeof name;
        if (n >= sizeof name) return tn_fail(cx, TN_ERR_ARGUMENT, op->name, "--set wants KEY=VALUE, got '%s'", settings->text[i]), false;
        memcpy(name, settings->text[i], n);
        name[n] = '\0';
        if (!tn_op_set_attr(op, args, name, equals + 1, reason, sizeof reason))
            return tn_fail(cx, TN_ERR_ARGUMENT, op->name, "--set %s", reason), false;
    }
    return true;
}

static bool backward_of(tn_tensor *const *out, int n_out) {
    tn_tensor *roots[TN_OP_MAX_OUTPUTS], *grads[TN_OP_MAX_OUTPUTS];
    int n = 0;
    for (int i = 0; i < n_out; i++) {
        if (!tn_requires_grad(out[i])) continue;
        roots[n] = out[i];
        grads[n++] = tn_full(out[i]->cx, out[i]->dtype, tn_shape_of(out[i]), 1);
    }
    return n == 0 || tn_backward_many(roots, grads, n, false);
}

typedef struct op_inputs {
    tn_tensor *in[TN_OP_MAX_INPUTS];
    tn_op_args_buffer args;
    int n_in;
} op_inputs;

static bool is_asked_for(tn_context *cx, const tn_op_def *op, const tn_sample *sample, const char *name, tn_dtype dtype) {
    if (name) return strcmp(sample->name, name) == 0;
    return sample->error == TN_OK && tn_sample_dtypes(cx, op, sample) >> dtype & 1;
}

/* The inputs of the first sample that goes with the attributes, or of the one asked for: in a scope that ends with the one around it. */
static bool make_inputs(tn_context *cx, const tn_op_def *op, const char *name, const tn_cli_texts *settings, tn_dtype dtype,
                        op_inputs *made) {
    char refusal[1024] = "it has none for that dtype";
    if (name) snprintf(refusal, sizeof refusal, "it has none called %s", name);
    for (const tn_sample *sample = op->samples; sample && sample->name; sample++) {
        tn_op_call planned;
        if (!is_asked_for(cx, op, sample, name, dtype)) continue;
        tn_scope *scope = tn_scope_begin(cx);
        if (!tn_sample_make(cx, op, sample, dtype, 1, true, made->in, &made->n_in, &made->args) ||
            !set_attributes(cx, op, settings, &made->args))
            return false;
        if (tn_op_plan(op, made->in, made->n_in, &made->args, &planned)) return true;
        snprintf(refusal, sizeof refusal, "%s", tn_error(cx));
        tn_clear_error(cx);
        tn_scope_end(scope);
    }
    return tn_fail(cx, TN_ERR_ARGUMENT, op->name, "no sample can be used: %s", refusal), false;
}

bool mem_measure_op(tn_context *cx, const char *name, const char *sample_name, const tn_cli_texts *settings, tn_dtype dtype,
                    const mem_files *files, mem_report *report) {
    *report = (mem_report){ 0 };
    const tn_op_def *op = tn_op_find(name);
    if (!op) return tn_fail(cx, TN_ERR_ARGUMENT, "op", "there is no op called '%s'", name), false;
    tn_tensor *out[TN_OP_MAX_OUTPUTS];
    op_inputs made;
    tn_scope *scope = tn_scope_begin(cx);
    bool fine = make_inputs(cx, op, sample_name, settings, dtype, &made);
    if (fine) look_from_here(cx);
    fine = fine && tn_apply(op, made.in, made.n_in, &made.args, out);
    if (fine) keep_saved(cx, report);
    fine = fine && backward_of(out, op->n_outputs) && keep_memory(cx, files, report);
    tn_scope_end(scope);
    return fine;
}

void mem_report_free(mem_report *report) {
    tn_memory_timeline_free(report->timeline);
    free(report->table);
    *report = (mem_report){ 0 };
}
