#include <math.h>
#include <string.h>

#include "data_internal.h"

/* Sequence tasks that a model with a memory can do and others can't:
 *
 * recall     multi-query associative recall, as in Arora et al. (Zoology, 2023): first `pairs` keys with their values, k v k v ..; later
 *            some of the keys come again, soon rather than late, among random fillers, and the target there is the key's value.
 *            Keys are below vocab / 2, values above; no key and no value comes twice.
 * copy       selective copying, as in Gu and Dao (Mamba, 2023): `copies` tokens scattered among blanks (0), then as many markers
 *            (vocab - 1), at which they are to be said in their order.
 * induction  induction heads (ibid.): random tokens; a special one (vocab - 1) comes once within them and again as the last, and the
 *            target there is the token that followed it. */

#define FAIL(data, ...) tn_fail((data)->cx, TN_ERR_ARGUMENT, "tn_data_open", __VA_ARGS__)

static int64_t or_default(int64_t value, int64_t otherwise) { return value == 0 ? otherwise : value; }

/* Zoology's queries stand at even distances from the end of the pairs, where there is room for one and a step between. */
static int64_t query_places(const tn_data_task *task) { return (task->length - 2 * task->pairs) / 2; }

static bool prepare_recall(tn_data *data, tn_data_task *task) {
    task->vocab = or_default(task->vocab, 8192);
    task->pairs = or_default(task->pairs, 64);
    task->queries = or_default(task->queries, task->pairs);
    task->length = or_default(task->length, 4 * task->pairs);
    if (task->pairs < 1 || task->queries < 1 || task->queries > task->pairs)
        return FAIL(data, "recall: %lld queries of %lld pairs", (long long)task->queries, (long long)task->pairs);
    if (task->vocab / 2 - 1 < task->pairs)
        return FAIL(data, "recall: %lld pairs want a vocab of %lld at least, got %lld", (long long)task->pairs,
                    (long long)(2 * task->pairs + 2), (long long)task->vocab);
    if (query_places(task) < task->queries)
        return FAIL(data, "recall: %lld pairs and %lld queries want a length of %lld at least, got %lld", (long long)task->pairs,
                    (long long)task->queries, (long long)(2 * task->pairs + 2 * task->queries), (long long)task->length);
    return true;
}

static bool prepare_copy(tn_data *data, tn_data_task *task) {
    task->vocab = or_default(task->vocab, 16);
    task->copies = or_default(task->copies, 16);
    task->length = or_default(task->length, 256);
    if (task->vocab < 3) return FAIL(data, "copy: a vocab of %lld, wanted 3 or more", (long long)task->vocab);
    if (task->copies < 1 || task->length / 2 < task->copies)
        return FAIL(data, "copy: %lld copies want a length of twice that at least, got %lld", (long long)task->copies,
                    (long long)task->length);
    return true;
}

static bool prepare_induction(tn_data *data, tn_data_task *task) {
    task->vocab = or_default(task->vocab, 16);
    task->length = or_default(task->length, 256);
    if (task->vocab < 3 || task->length < 3)
        return FAIL(data, "induction: a vocab of %lld and a length of %lld, wanted 3 or more of both", (long long)task->vocab,
                    (long long)task->length);
    return true;
}

static bool prepare_uniform(tn_data *data, tn_data_task *task) {
    (void)data;
    task->vocab = or_default(task->vocab, 50304);
    task->length = or_default(task->length, 1024);
    return true;
}

static bool prepare_shapes(tn_data *data, tn_data_task *task) {
    task->vocab = or_default(task->vocab, TN_SHAPES_CLASSES);
    task->noise = task->noise == 0 ? 0.1 : task->noise < 0 ? 0 : task->noise;
    if (task->vocab < 2 || task->vocab > TN_SHAPES_CLASSES)
        return FAIL(data, "shapes: %lld classes, wanted 2 to %d", (long long)task->vocab, TN_SHAPES_CLASSES);
    if (!isfinite(task->noise)) return FAIL(data, "shapes: noise is not a number");
    data->info.grid_rows = data->info.grid_columns = TN_SHAPES_SIDE / TN_SHAPES_PATCH;
    data->info.n_features = TN_SHAPES_PATCH * TN_SHAPES_PATCH;
    task->length = data->info.grid_rows * data->info.grid_columns;
    return true;
}

bool tn_data_task_prepare(tn_data *data) {
    tn_data_task *task = &data->task;
    static bool (*const prepare[TN_DATA_KIND_COUNT])(tn_data *, tn_data_task *) = {
        [TN_DATA_RECALL] = prepare_recall, [TN_DATA_COPY] = prepare_copy,       [TN_DATA_INDUCTION] = prepare_induction,
        [TN_DATA_SHAPES] = prepare_shapes, [TN_DATA_UNIFORM] = prepare_uniform,
    };
    const int64_t sizes[] = { task->vocab, task->length, task->pairs, task->queries, task->copies };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] < 0 || sizes[i] > (int64_t)1 << 24)
            return FAIL(data, "%s: a size of %lld, wanted 0 to 2^24", tn_data_kind_name(data->info.kind), (long long)sizes[i]);
    if (!prepare[data->info.kind](data, task)) return false;
    data->info.vocab = task->vocab;
    data->info.length = task->length;
    return true;
}

/* ---- rows ---- */

/* The first n of a shuffled first, first + 1, .. first + count - 1, by Fisher and Yates; `list` has room for count. */
static void draw_distinct(tn_data_random *random, int64_t first, int64_t count, int64_t n, int64_t *list) {
    for (int64_t i = 0; i < count; i++) list[i] = first + i;
    for (int64_t i = 0; i < n; i++) {
        int64_t other = i + tn_data_below(random, count - i), kept = list[i];
        list[i] = list[other];
        list[other] = kept;
    }
}

/* n distinct places of 0 .. count - 1, place x with a chance in proportion to (x + 1)^-0.99 as in Zoology: most come soon. A uniform u
 * gives the place (count + 1)^u - 1 of nearly that density; a place that is taken passes on to the next free one. */
static void draw_soon(tn_data_random *random, int64_t count, int64_t n, int64_t *places, int64_t *taken) {
    memset(taken, 0, (size_t)count * sizeof *taken);
    for (int64_t i = 0; i < n; i++) {
        int64_t place = (int64_t)(pow((double)count + 1, tn_data_uniform(random)) - 1);
        if (place >= count) place = count - 1;
        while (taken[place]) place = (place + 1) % count;
        taken[place] = 1;
        places[i] = place;
    }
}

static void recall_row(const tn_data_task *task, tn_data_random *random, int64_t *scratch, int64_t *ids, int64_t *targets) {
    int64_t half = task->vocab / 2, context = 2 * task->pairs, n_places = query_places(task);
    int64_t *keys = scratch, *values = keys + task->vocab, *places = values + task->vocab, *taken = places + task->length;
    draw_distinct(random, 1, half - 1, task->pairs, keys);
    draw_distinct(random, half, task->vocab - half, task->pairs, values);
    for (int64_t i = 0; i < task->pairs; i++) ids[2 * i] = keys[i], ids[2 * i + 1] = values[i];
    for (int64_t i = context; i < task->length; i++) ids[i] = tn_data_below(random, task->vocab);
    draw_soon(random, n_places, task->queries, places, taken);
    for (int64_t i = 0; i < task->queries; i++) {
        int64_t at = context + 2 * places[i];
        ids[at] = keys[i];
        targets[at] = values[i];
    }
}

static void copy_row(const tn_data_task *task, tn_data_random *random, int64_t *scratch, int64_t *ids, int64_t *targets) {
    int64_t context = task->length - task->copies, n = 0;
    draw_distinct(random, 0, context, task->copies, scratch);
    memset(ids, 0, (size_t)context * sizeof *ids);
    for (int64_t i = 0; i < task->copies; i++) ids[scratch[i]] = 1 + tn_data_below(random, task->vocab - 2);
    for (int64_t i = 0; i < context; i++)
        if (ids[i]) targets[context + n++] = ids[i];
    for (int64_t i = context; i < task->length; i++) ids[i] = task->vocab - 1;
}

static void induction_row(const tn_data_task *task, tn_data_random *random, int64_t *ids, int64_t *targets) {
    int64_t special = task->vocab - 1, last = task->length - 1, at = tn_data_below(random, last - 1);
    for (int64_t i = 0; i < last; i++) ids[i] = tn_data_below(random, special);
    ids[at] = ids[last] = special;
    targets[last] = ids[at + 1];
}

static void uniform_row(const tn_data_task *task, tn_data_random *random, int64_t *ids, int64_t *targets) {
    for (int64_t i = 0; i < task->length; i++) ids[i] = tn_data_below(random, task->vocab);
    for (int64_t i = 0; i < task->length; i++) targets[i] = i + 1 < task->length ? ids[i + 1] : tn_data_below(random, task->vocab);
}

int64_t tn_data_task_scratch(const tn_data *data) { return 2 * (data->task.vocab + data->task.length); }

void tn_data_task_row(const tn_data *data, tn_data_random random, int64_t *scratch, int64_t *ids, int64_t *targets) {
    const tn_data_task *task = &data->task;
    for (int64_t i = 0; i < task->length; i++) targets[i] = TN_DATA_IGNORE;
    if (data->info.kind == TN_DATA_RECALL) recall_row(task, &random, scratch, ids, targets);
    if (data->info.kind == TN_DATA_COPY) copy_row(task, &random, scratch, ids, targets);
    if (data->info.kind == TN_DATA_INDUCTION) induction_row(task, &random, ids, targets);
    if (data->info.kind == TN_DATA_UNIFORM) uniform_row(task, &random, ids, targets);
}
