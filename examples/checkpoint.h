/* Checkpoints of a training run: whole or not there at all, and checked before anything is taken from them.
 *
 *     out/step-00001000/model.safetensors       parameters by name
 *                       optimizer.safetensors   moments, masters, step counts
 *                       vocabulary.json         texts of the tokens, where there are any
 *                       state.json              step, random stream, data position, config, threads; size and CRC-32C of the others
 *                       COMPLETE                CRC-32C of state.json
 *     out/best/                                 the same; kept apart from the last few
 *
 * A checkpoint is written in out/.step-00001000.partial.PID, every file and the folder are synced, and the folder is renamed: a run killed
 * at any moment leaves the checkpoints before it, and perhaps a partial folder that nobody reads and the next save removes. Older
 * checkpoints are removed only when the newer one is complete. Loading reads; it changes nothing on the disk.
 *
 * Errors are the context's. */
#ifndef TENON_CHECKPOINT_H
#define TENON_CHECKPOINT_H

#include "data_vocabulary.h"
#include "ops/optim/optim.h"

typedef struct run_checkpoint_state {
    int64_t step;        /* finished steps: training goes on with this one, counted from 0 */
    tn_rng_state random; /* the context's stream; saving takes it from the context */
    int64_t data_row;    /* the first row of data not yet drawn */
    int threads;         /* CPU threads, which the last bits may depend on; saving takes them from the context */
    const char *device;  /* "cpu", "cuda"; likewise */
    double best_loss;    /* lowest validation loss so far; NAN: not evaluated yet */
    json_t *config;      /* an object: everything that is needed to build the model again */
    json_t *more;        /* an object for what else the program wants to keep, or NULL */
} run_checkpoint_state;

typedef struct run_checkpoint_args {
    const char *folder; /* the run's; made if need be */
    const tn_params *params;
    const tn_optimizer *optimizer;     /* NULL: none is kept */
    const tn_vocabulary *vocabulary;   /* NULL: none is kept */
    const run_checkpoint_state *state; /* config and more stay the caller's */
    int keep;                          /* the last so many step folders are kept; 0: all */
    bool best;                         /* write out/best instead of out/step-..., in place of the one before */
} run_checkpoint_args;

bool run_checkpoint_save(tn_context *cx, const run_checkpoint_args *args);

typedef struct run_checkpoint run_checkpoint;

/* Opens the checkpoint in `path`: either one itself, or a run's folder, of which the newest is taken. Sizes, checksums and all of
 * state.json are verified. Where the newest is damaged that is the error; an older one is not taken silently. */
run_checkpoint *run_checkpoint_open(tn_context *cx, const char *path);
void run_checkpoint_close(run_checkpoint *checkpoint);
/* Is there anything in this run's folder to resume from? No error in either case. */
bool run_checkpoint_exists(const char *folder);

/* Valid until the checkpoint is closed. */
const run_checkpoint_state *run_checkpoint_state_of(const run_checkpoint *checkpoint);
const tn_vocabulary *run_checkpoint_vocabulary(const run_checkpoint *checkpoint); /* NULL: none was kept */
const char *run_checkpoint_path(const run_checkpoint *checkpoint);                /* the step's own folder */

/* Parameters, then (optimizer may be NULL) the optimizer's state; each is checked whole, names, shapes and dtypes, before it changes. */
bool run_checkpoint_load(const run_checkpoint *checkpoint, tn_params *params, tn_optimizer *optimizer);
/* Sets the context's random stream to the one saved. */
bool run_checkpoint_restore_random(const run_checkpoint *checkpoint, tn_context *cx);

#endif
