/* A whole run: steps, evaluations, checkpoints, log. */
#ifndef TENON_TRAIN_LOOP_H
#define TENON_TRAIN_LOOP_H

#include "checkpoint.h"
#include "train_config.h"

/* Runs the steps that are left. `from`: the checkpoint to go on from, or NULL. Returns the program's exit code; unless it is 0, `reason`
 * says why. */
int train_run(const train_config *config, tn_context *cx, const run_checkpoint *from, char *reason, size_t n_bytes);

#endif
