/* One training step, and evaluation: batches from the data, loss, gradients, clipping, AdamW. */
#ifndef TENON_TRAIN_STEP_H
#define TENON_TRAIN_STEP_H

#include "model_language.h"

/* Rows on the host and on the device. */
typedef struct train_batch {
    int64_t rows, length;
    int64_t *ids, *goals;
    float *patches; /* instead of ids, for images */
    tn_tensor *inputs, *targets;
} train_batch;

typedef struct train_stepper {
    tn_context *cx;
    const train_config *config;
    const tn_data *data;
    tn_data_info info;
    model *model;
    int64_t context; /* tokens of a row: the task's, or the config's */
    tn_adamw *optimizer;
    train_batch batch;      /* all parts of a step */
    tn_tensor *loss, *norm; /* f64 scalars on the device, of the last step */

    /* On a device that can record: a step is run a few times, then recorded and replayed. */
    tn_graph *graph;
    tn_tensor *random_place; /* i64: where a step's random numbers begin */
    uint64_t n_random;       /* how many it draws */
    int64_t n_run;           /* steps run so far, replays included */
} train_stepper;

/* Errors stay on the context. */
bool train_stepper_init(train_stepper *s, model *m, const tn_data *data);
void train_stepper_free(train_stepper *s);

/* Step `step`, counted from 0. Puts the work on the device and does not wait for it. */
bool train_step(train_stepper *s, int64_t step);
/* The last step's loss and norm of the gradients before clipping. Waits. */
bool train_step_results(const train_stepper *s, double *loss, double *norm);

typedef struct train_score {
    double loss;     /* mean over the batches */
    double accuracy; /* of tasks: share of answers that are right; NAN for text */
} train_score;
bool train_evaluate(train_stepper *s, train_score *score);

#endif
