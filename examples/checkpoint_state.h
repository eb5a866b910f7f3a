/* state.json: what a checkpoint says about itself and its files. */
#ifndef TENON_CHECKPOINT_STATE_H
#define TENON_CHECKPOINT_STATE_H

#include "checkpoint.h"
#include "checkpoint_files.h"

typedef enum run_checkpoint_file { TN_FILE_MODEL, TN_FILE_OPTIMIZER, TN_FILE_VOCABULARY, RUN_CHECKPOINT_FILES } run_checkpoint_file;

static const char *const run_checkpoint_file_names[RUN_CHECKPOINT_FILES] = { "model.safetensors", "optimizer.safetensors",
                                                                             "vocabulary.json" };

/* Which files a checkpoint has, and their sums. */
typedef struct run_checkpoint_files {
    bool present[RUN_CHECKPOINT_FILES];
    tn_file_sum sum[RUN_CHECKPOINT_FILES];
} run_checkpoint_files;

/* The text of state.json, for free(). NULL on error. */
char *run_checkpoint_state_text(tn_context *cx, const run_checkpoint_state *state, const run_checkpoint_files *files);
/* Reads it back; `path` is for messages. config, more and device are then owned by the state: see run_checkpoint_state_free. */
bool run_checkpoint_state_parse(tn_context *cx, const char *path, const char *text, size_t n_bytes, run_checkpoint_state *state,
                                run_checkpoint_files *files);
void run_checkpoint_state_free(run_checkpoint_state *state);

#endif
