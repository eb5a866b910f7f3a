#include <stdlib.h>
#include <string.h>

#include "data_internal.h"

#define FAIL(data, op, ...) tn_fail((data)->cx, TN_ERR_ARGUMENT, (op), __VA_ARGS__)

static bool check_draw(const tn_data *data, const char *op, const tn_data_draw *draw) {
    if ((unsigned)draw->split >= TN_DATA_SPLIT_COUNT) return FAIL(data, op, "no split has number %d", draw->split);
    if (draw->first_row < 0 || draw->n_rows < 0 || draw->first_row > INT64_MAX - draw->n_rows)
        return FAIL(data, op, "rows from %lld, %lld of them", (long long)draw->first_row, (long long)draw->n_rows);
    return true;
}

/* A row needs one token more than its length: the last target. */
int64_t tn_data_row_count(const tn_data *data, tn_data_split split, int64_t length) {
    if (!data || (unsigned)split >= TN_DATA_SPLIT_COUNT || length < 1 || tn_data_is_task(data->info.kind)) return 0;
    int64_t n = data->info.n_tokens[split];
    return n > 0 ? (n - 1) / length : 0;
}

static bool token_row(const tn_data *data, const tn_data_draw *draw, int64_t row, int64_t *ids, int64_t *targets) {
    const tn_data_part *part = &data->parts[draw->split];
    int64_t length = draw->length, n_rows = tn_data_row_count(data, draw->split, length), at;
    if (n_rows < 1)
        return FAIL(data, "tn_data_rows", "the %s split has %lld tokens, too few for a row of %lld and the token after it",
                    draw->split == TN_DATA_TRAIN ? "training" : "validation", (long long)part->n, (long long)length);
    tn_data_random random = tn_data_random_of(data->seed, draw->split, row);
    if (draw->order == TN_DATA_SEQUENTIAL) at = row % n_rows * length;
    else at = tn_data_below(&random, part->n - length);
    if (!tn_data_stream_read(data->cx, part->stream, part->first + at, length, data->info.vocab, ids)) return false;
    memcpy(targets, ids + 1, (size_t)(length - 1) * sizeof *targets);
    return tn_data_stream_read(data->cx, part->stream, part->first + at + length, 1, data->info.vocab, targets + length - 1);
}

static bool task_rows(const tn_data *data, const tn_data_draw *draw, int64_t *ids, int64_t *targets) {
    int64_t *scratch = malloc((size_t)tn_data_task_scratch(data) * sizeof *scratch);
    if (!scratch) return tn_fail(data->cx, TN_ERR_HOST_MEMORY, "tn_data_rows", "no host memory");
    for (int64_t i = 0; i < draw->n_rows; i++) {
        tn_data_random random = tn_data_random_of(data->seed, draw->split, draw->first_row + i);
        tn_data_task_row(data, random, scratch, ids + i * draw->length, targets + i * draw->length);
    }
    free(scratch);
    return true;
}

bool tn_data_rows(const tn_data *data, const tn_data_draw *draw, int64_t *ids, int64_t *targets) {
    if (!data || tn_failed(data->cx)) return false;
    if (!draw || !ids || !targets) return FAIL(data, "tn_data_rows", "NULL where to draw or to write");
    if (!check_draw(data, "tn_data_rows", draw)) return false;
    if (draw->length < 1) return FAIL(data, "tn_data_rows", "a length of %lld", (long long)draw->length);
    if (data->info.kind == TN_DATA_SHAPES) return FAIL(data, "tn_data_rows", "shapes are images; see tn_data_images");
    if (tn_data_is_task(data->info.kind)) {
        if (draw->length != data->info.length)
            return FAIL(data, "tn_data_rows", "the task's rows have a length of %lld, asked for %lld", (long long)data->info.length,
                        (long long)draw->length);
        return task_rows(data, draw, ids, targets);
    }
    for (int64_t i = 0; i < draw->n_rows; i++)
        if (!token_row(data, draw, draw->first_row + i, ids + i * draw->length, targets + i * draw->length)) return false;
    return true;
}

bool tn_data_images(const tn_data *data, const tn_data_draw *draw, float *patches, int64_t *labels) {
    if (!data || tn_failed(data->cx)) return false;
    if (!draw || !patches || !labels) return FAIL(data, "tn_data_images", "NULL where to draw or to write");
    if (data->info.kind != TN_DATA_SHAPES) return FAIL(data, "tn_data_images", "%s is not images", tn_data_kind_name(data->info.kind));
    if (!check_draw(data, "tn_data_images", draw)) return false;
    int64_t n_pixels = (int64_t)TN_SHAPES_SIDE * TN_SHAPES_SIDE;
    for (int64_t i = 0; i < draw->n_rows; i++)
        tn_data_shape_row(data, tn_data_random_of(data->seed, draw->split, draw->first_row + i), patches + i * n_pixels, &labels[i]);
    return true;
}
