/* What a run does about activations besides keeping them: making them again in backward, or putting them aside in host memory.
 *
 *     none                every layer keeps what its backward needs
 *     attention, mlp      that half of a layer keeps its input alone and runs again in backward
 *     block               a whole layer does
 *     every-K             K layers at a time do
 *     offload             a layer's activations go to the host after it has run and come back before its backward
 *
 * "block:3" is of the first 3 layers alone: their backward comes last, when the others' activations are gone. "block:3+attention": the
 * other layers do what comes behind the +. */
#ifndef TENON_TRAIN_RECOMPUTE_H
#define TENON_TRAIN_RECOMPUTE_H

#include "train_config.h"

typedef enum train_recompute_part {
    TRAIN_KEEP_ALL,
    TRAIN_AGAIN_MIXER,
    TRAIN_AGAIN_MLP,
    TRAIN_AGAIN_LAYER,
    TRAIN_AGAIN_EVERY,
    TRAIN_OFFLOAD
} train_recompute_part;

typedef struct train_recompute {
    train_recompute_part part[TRAIN_MAX_LAYERS]; /* of each layer */
    int64_t every;                               /* TRAIN_AGAIN_EVERY: how many layers run again together */
} train_recompute;

/* False where the text is none of the above. */
bool train_recompute_read(const char *text, int64_t layers, train_recompute *recompute);

#endif
