/* What saving and loading checkpoints agree on. */
#ifndef TENON_CHECKPOINT_INTERNAL_H
#define TENON_CHECKPOINT_INTERNAL_H

#include "checkpoint_state.h"

#define TN_STATE_NAME "state.json"
#define TN_SEAL_NAME "COMPLETE"
#define TN_SEAL_BYTES 96

/* The text of COMPLETE for this state.json. */
void run_checkpoint_seal(const char *state_text, size_t n_bytes, char seal[TN_SEAL_BYTES]);

/* The steps of the complete checkpoints in a run's folder in rising order, for free(). How many, or -1 on error. */
int64_t run_checkpoint_steps(tn_context *cx, const char *op, const char *folder, int64_t **steps);

#endif
