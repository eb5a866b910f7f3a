/* What a training step, or a call of one op, takes: measured on a device, or predicted without one. */
#ifndef TENON_MEM_STEP_H
#define TENON_MEM_STEP_H

#include "train_budget.h"
#include "train_step.h"

/* What the calls of an op under a label keep for backward once forward is done. */
typedef struct mem_saved {
    const char *label, *op; /* as long as the context */
    int64_t n_calls, saved_bytes, formula_bytes;
} mem_saved;

typedef struct mem_report {
    tn_memory_stats stats; /* its peaks are those of the step */
    tn_memory_timeline *timeline;
    tn_saved_summary saved;
    mem_saved *table;
    int64_t n_table;
    double seconds;                         /* of the fastest step */
    int64_t n_parameters, n_tokens, length; /* of the model, of a step, and of a row */
} mem_report;

/* A context for it: a long history, so that no event of a step is forgotten. */
tn_options mem_options(const train_config *config, const char *device);
/* Runs a step of the config that makes what lasts, and then n_steps that are looked at. Files are written as `files` says (NULL: none). */
typedef struct mem_files {
    const char *snapshot, *trace, *csv, *html;
} mem_files;
bool mem_measure_step(tn_context *cx, const train_config *config, int64_t n_steps, const mem_files *files, mem_report *report);
/* Forward and backward of one op on one of its samples (NULL: the first that goes with them), with attributes set on top. */
bool mem_measure_op(tn_context *cx, const char *op, const char *sample, const tn_cli_texts *settings, tn_dtype dtype,
                    const mem_files *files, mem_report *report);
void mem_report_free(mem_report *report);

/* Where the config has an activation_budget: what it chooses takes the place of recompute. `budget` must live as long as the config. */
bool mem_plan(tn_context *cx, train_config *config, train_budget *budget);
/* What a step that is not run would take; false, with the reason. */
bool mem_predict_step(const train_config *config, tn_memory_stats *stats, char *reason, size_t n_bytes);

#endif
