#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint_internal.h"

#define OP "run_checkpoint_open"
#define STATE_CAP ((size_t)64 << 20)

struct run_checkpoint {
    tn_context *cx;
    char path[RUN_CHECKPOINT_PATH_BYTES];
    run_checkpoint_state state;
    run_checkpoint_files files;
    tn_vocabulary *vocabulary;
};

#define FAIL(checkpoint, ...) tn_fail((checkpoint)->cx, TN_ERR_FORMAT, OP, __VA_ARGS__)

void run_checkpoint_seal(const char *state_text, size_t n_bytes, char seal[TN_SEAL_BYTES]) {
    snprintf(seal, TN_SEAL_BYTES, "tenon checkpoint 1\n" TN_STATE_NAME " %zu 0x%08" PRIx32 "\n", n_bytes,
             tn_crc32c(0, state_text, n_bytes));
}

/* ---- finding one ---- */

static bool has_seal(const char *folder) {
    char path[RUN_CHECKPOINT_PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/" TN_SEAL_NAME, folder);
    return length < (int)sizeof path && access(path, F_OK) == 0;
}

typedef struct step_list {
    const char *folder;
    int64_t *steps, n, room;
    bool no_memory;
} step_list;

static bool parse_step(const char *name, int64_t *step) {
    const char *digits = name + strlen("step-");
    if (strncmp(name, "step-", strlen("step-")) != 0 || strlen(digits) < 8 || strlen(digits) > 18) return false;
    if (strspn(digits, "0123456789") != strlen(digits)) return false;
    *step = strtoll(digits, NULL, 10);
    return true;
}

static void add_step(void *user, const char *name) {
    step_list *list = user;
    char path[RUN_CHECKPOINT_PATH_BYTES];
    int64_t step = 0;
    int length = snprintf(path, sizeof path, "%s/%s", list->folder, name);
    if (length >= (int)sizeof path || !parse_step(name, &step) || !has_seal(path)) return;
    if (list->n == list->room) {
        int64_t room = list->room ? 2 * list->room : 16, *steps = realloc(list->steps, (size_t)room * sizeof *steps);
        list->no_memory |= steps == NULL;
        if (!steps) return;
        list->steps = steps;
        list->room = room;
    }
    list->steps[list->n++] = step;
}

static int compare_steps(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int64_t run_checkpoint_steps(tn_context *cx, const char *op, const char *folder, int64_t **steps) {
    step_list list = { .folder = folder };
    bool fine = tn_folder_visit(folder, add_step, &list) || tn_fail(cx, TN_ERR_IO, op, "%s: the folder can't be read", folder);
    if (list.no_memory) fine = tn_fail(cx, TN_ERR_HOST_MEMORY, op, "%s: no host memory", folder);
    *steps = fine ? list.steps : NULL;
    if (!fine) free(list.steps);
    if (fine && list.n) qsort(list.steps, (size_t)list.n, sizeof *list.steps, compare_steps);
    return fine ? list.n : -1;
}

bool run_checkpoint_exists(const char *folder) {
    step_list list = { .folder = folder };
    if (!folder || !tn_folder_visit(folder, add_step, &list)) return false;
    free(list.steps);
    return list.n > 0 || list.no_memory;
}

/* `path` itself where it is a checkpoint, else the newest within. */
static bool find_checkpoint(run_checkpoint *checkpoint, const char *path) {
    tn_context *cx = checkpoint->cx;
    char state[RUN_CHECKPOINT_PATH_BYTES], name[32];
    if (!tn_folder_exists(path)) return tn_fail(cx, TN_ERR_IO, OP, "%s: there is no such folder", path);
    if (!tn_path_join(cx, OP, path, TN_STATE_NAME, state)) return false;
    if (has_seal(path) || access(state, F_OK) == 0) {
        strcpy(checkpoint->path, path);
        return true;
    }
    int64_t *steps = NULL, n = run_checkpoint_steps(cx, OP, path, &steps);
    if (n > 0) snprintf(name, sizeof name, "step-%08" PRId64, steps[n - 1]);
    free(steps);
    if (n == 0) tn_fail(cx, TN_ERR_IO, OP, "%s: there is no complete checkpoint in this folder", path);
    return n > 0 && tn_path_join(cx, OP, path, name, checkpoint->path);
}

/* ---- checking it ---- */

static bool check_seal(const run_checkpoint *checkpoint, const char *text, size_t n_bytes) {
    char path[RUN_CHECKPOINT_PATH_BYTES], wanted[TN_SEAL_BYTES];
    size_t seal_bytes = 0;
    if (!has_seal(checkpoint->path))
        return FAIL(checkpoint, "%s: not a complete checkpoint: it has no file " TN_SEAL_NAME, checkpoint->path);
    if (!tn_path_join(checkpoint->cx, OP, checkpoint->path, TN_SEAL_NAME, path)) return false;
    char *seal = tn_text_read(checkpoint->cx, OP, path, TN_SEAL_BYTES, &seal_bytes);
    if (!seal) return false;
    run_checkpoint_seal(text, n_bytes, wanted);
    bool same = seal_bytes == strlen(wanted) && memcmp(seal, wanted, seal_bytes) == 0;
    free(seal);
    return same ||
           FAIL(checkpoint, "%s: damaged: " TN_STATE_NAME " is not the one that " TN_SEAL_NAME " was written for", checkpoint->path);
}

static bool read_state(run_checkpoint *checkpoint) {
    char path[RUN_CHECKPOINT_PATH_BYTES];
    size_t n_bytes = 0;
    if (!tn_path_join(checkpoint->cx, OP, checkpoint->path, TN_STATE_NAME, path)) return false;
    char *text = tn_text_read(checkpoint->cx, OP, path, STATE_CAP, &n_bytes);
    bool fine = text && check_seal(checkpoint, text, n_bytes) &&
                run_checkpoint_state_parse(checkpoint->cx, path, text, n_bytes, &checkpoint->state, &checkpoint->files);
    free(text);
    return fine;
}

static bool check_file(const run_checkpoint *checkpoint, int which, const char *path) {
    const tn_file_sum *wanted = &checkpoint->files.sum[which];
    tn_file_sum sum;
    if (!tn_file_sum_of(checkpoint->cx, OP, path, &sum)) return false;
    if (sum.n_bytes != wanted->n_bytes)
        return FAIL(checkpoint, "%s: %s: %lld bytes, " TN_STATE_NAME " says %lld", path,
                    sum.n_bytes < wanted->n_bytes ? "truncated" : "damaged", (long long)sum.n_bytes, (long long)wanted->n_bytes);
    if (sum.crc != wanted->crc)
        return FAIL(checkpoint, "%s: damaged: its CRC-32C is 0x%08" PRIx32 ", " TN_STATE_NAME " says 0x%08" PRIx32, path, sum.crc,
                    wanted->crc);
    return true;
}

static bool check_files(run_checkpoint *checkpoint) {
    for (int i = 0; i < RUN_CHECKPOINT_FILES; i++) {
        char path[RUN_CHECKPOINT_PATH_BYTES];
        if (!checkpoint->files.present[i]) continue;
        if (!tn_path_join(checkpoint->cx, OP, checkpoint->path, run_checkpoint_file_names[i], path) || !check_file(checkpoint, i, path))
            return false;
        if (i == TN_FILE_VOCABULARY && !(checkpoint->vocabulary = tn_vocabulary_load(checkpoint->cx, path))) return false;
    }
    return true;
}

/* ---- the interface ---- */

run_checkpoint *run_checkpoint_open(tn_context *cx, const char *path) {
    if (!cx || tn_failed(cx)) return NULL;
    if (!path || !*path) return tn_fail(cx, TN_ERR_ARGUMENT, OP, "no path");
    run_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint) return tn_fail(cx, TN_ERR_HOST_MEMORY, OP, "%s: no host memory", path);
    checkpoint->cx = cx;
    if (find_checkpoint(checkpoint, path) && read_state(checkpoint) && check_files(checkpoint)) return checkpoint;
    run_checkpoint_close(checkpoint);
    return NULL;
}

void run_checkpoint_close(run_checkpoint *checkpoint) {
    if (!checkpoint) return;
    run_checkpoint_state_free(&checkpoint->state);
    tn_vocabulary_free(checkpoint->vocabulary);
    free(checkpoint);
}

const run_checkpoint_state *run_checkpoint_state_of(const run_checkpoint *checkpoint) { return checkpoint ? &checkpoint->state : NULL; }
const tn_vocabulary *run_checkpoint_vocabulary(const run_checkpoint *checkpoint) { return checkpoint ? checkpoint->vocabulary : NULL; }
const char *run_checkpoint_path(const run_checkpoint *checkpoint) { return checkpoint ? checkpoint->path : ""; }

bool run_checkpoint_load(const run_checkpoint *checkpoint, tn_params *params, tn_optimizer *optimizer) {
    if (!checkpoint || tn_failed(checkpoint->cx) || !params) return false;
    tn_context *cx = checkpoint->cx;
    char model[RUN_CHECKPOINT_PATH_BYTES], moments[RUN_CHECKPOINT_PATH_BYTES];
    if (!tn_path_join(cx, "run_checkpoint_load", checkpoint->path, run_checkpoint_file_names[TN_FILE_MODEL], model) ||
        !tn_path_join(cx, "run_checkpoint_load", checkpoint->path, run_checkpoint_file_names[TN_FILE_OPTIMIZER], moments))
        return false;
    if (optimizer && !checkpoint->files.present[TN_FILE_OPTIMIZER])
        return tn_fail(cx, TN_ERR_FORMAT, "run_checkpoint_load", "%s: it was saved without an optimizer", checkpoint->path);
    return tn_params_load(params, model) && (!optimizer || tn_optimizer_load(optimizer, moments));
}

bool run_checkpoint_restore_random(const run_checkpoint *checkpoint, tn_context *cx) {
    if (!checkpoint || !cx || tn_failed(cx)) return false;
    tn_rng_set(cx, checkpoint->state.random);
    return true;
}
