/* Choosing what runs again in backward, so that a step stays within a bound of memory. */
#ifndef TENON_TRAIN_BUDGET_H
#define TENON_TRAIN_BUDGET_H

#include "tenon.h"
#include "train_config.h"

#define TRAIN_RECOMPUTE_TEXT 64

typedef struct train_budget {
    char recompute[TRAIN_RECOMPUTE_TEXT]; /* what was chosen */
    int64_t bytes;                        /* that a step takes with it, beside what stays from step to step */
    int64_t bytes_without;                /* that it would take with recompute=none */
    double more_work;                     /* products run again, as a share of a step's: about how much longer it takes */
} train_budget;

/* What a step would take with `recompute`, found by running it on a device that computes nothing. `data` gives the batches. */
bool train_budget_predict(const train_config *config, const tn_data *data, const char *recompute, train_budget *result, char *reason,
                          size_t n_bytes);
/* Of what stays within config->activation_budget, what takes the least work: attention, mlp or block of the first layers, with attention or
 * mlp of the others, or every-K. False, with the reason, where nothing does. */
bool train_budget_choose(const train_config *config, const tn_data *data, train_budget *chosen, char *reason, size_t n_bytes);

/* Runs step `step` and measures it: the most bytes allocated during it beyond those that were there before. */
struct train_stepper;
bool train_step_measured(struct train_stepper *s, int64_t step, int64_t *bytes);

#endif
