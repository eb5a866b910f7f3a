/* The parts a data source is put together from. */
#ifndef TENON_DATA_INTERNAL_H
#define TENON_DATA_INTERNAL_H

#include "data_file.h"
#include "data_random.h"
#include "data_source.h"

typedef struct tn_data_part {
    const tn_data_stream *stream;
    int64_t first, n; /* the split's tokens within the stream */
} tn_data_part;

struct tn_data {
    tn_context *cx;
    tn_data_info info;
    uint64_t seed;
    tn_data_task task; /* defaults filled in */
    tn_vocabulary *vocabulary;
    tn_data_stream streams[TN_DATA_SPLIT_COUNT]; /* the second only where validation has files of its own */
    tn_data_part parts[TN_DATA_SPLIT_COUNT];
};

static inline bool tn_data_is_task(tn_data_kind kind) { return kind >= TN_DATA_RECALL && kind < TN_DATA_KIND_COUNT; }

/* Fills in the task's defaults, its length and its vocabulary; an error where the sizes don't fit each other. */
bool tn_data_task_prepare(tn_data *data);
/* One row of a task, `scratch` has room for tn_data_task_scratch(data) numbers. */
void tn_data_task_row(const tn_data *data, tn_data_random random, int64_t *scratch, int64_t *ids, int64_t *targets);
int64_t tn_data_task_scratch(const tn_data *data);

#define TN_SHAPES_SIDE 32
#define TN_SHAPES_PATCH 4
/* One image in patches, and its label. */
void tn_data_shape_row(const tn_data *data, tn_data_random random, float *patches, int64_t *label);

#endif
