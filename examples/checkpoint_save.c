#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint_internal.h"

#define OP "run_checkpoint_save"

typedef struct saving {
    tn_context *cx;
    const run_checkpoint_args *args;
    run_checkpoint_state state; /* the caller's, with what is the context's filled in */
    run_checkpoint_files files;
    char name[32];                            /* step-00001000 or best */
    char partial[RUN_CHECKPOINT_PATH_BYTES];  /* folder it is written in */
    char complete[RUN_CHECKPOINT_PATH_BYTES]; /* folder it becomes */
    int stage;
} saving;

/* Tests kill the process here: TENON_TEST_KILL_CHECKPOINT=3 stops it for good at the fourth stage of a save. */
static void reach_stage(saving *s) {
    const char *wanted = getenv("TENON_TEST_KILL_CHECKPOINT");
    if (wanted && atoi(wanted) == s->stage) kill(getpid(), SIGKILL);
    s->stage++;
}

/* ---- what a killed run left ---- */

/* Is this ".NAME.partial.PID" or ".NAME.removed.PID" of a process that is no more, or of this one? */
static bool is_leftover(const char *name) {
    const char *mark = strstr(name, ".partial.");
    if (!mark) mark = strstr(name, ".removed.");
    if (name[0] != '.' || !mark) return false;
    char *end;
    long pid = strtol(mark + strlen(".partial."), &end, 10);
    if (*end || pid <= 0) return false;
    return pid == (long)getpid() || (kill((pid_t)pid, 0) != 0 && errno == ESRCH);
}

static void remove_leftover(void *user, const char *name) {
    const saving *s = user;
    char path[RUN_CHECKPOINT_PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/%s", s->args->folder, name);
    if (length < (int)sizeof path && is_leftover(name)) tn_folder_remove(path);
}

/* ---- writing ---- */

static bool write_vocabulary(saving *s, const char *path) {
    json_t *json = tn_vocabulary_json(s->args->vocabulary);
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (!text) return tn_fail(s->cx, TN_ERR_HOST_MEMORY, OP, "%s: no host memory", path);
    bool fine = tn_text_write(s->cx, OP, path, text, strlen(text));
    free(text);
    return fine;
}

static bool write_one(saving *s, run_checkpoint_file which, const char *path) {
    if (which == TN_FILE_MODEL) return tn_params_save(s->args->params, path);
    return which == TN_FILE_OPTIMIZER ? tn_optimizer_save(s->args->optimizer, path) : write_vocabulary(s, path);
}

static bool write_files(saving *s) {
    const bool wanted[RUN_CHECKPOINT_FILES] = { true, s->args->optimizer != NULL, s->args->vocabulary != NULL };
    for (int i = 0; i < RUN_CHECKPOINT_FILES; i++) {
        char path[RUN_CHECKPOINT_PATH_BYTES];
        reach_stage(s);
        s->files.present[i] = wanted[i];
        if (!wanted[i]) continue;
        if (!tn_path_join(s->cx, OP, s->partial, run_checkpoint_file_names[i], path) || !write_one(s, (run_checkpoint_file)i, path) ||
            !tn_file_sum_of(s->cx, OP, path, &s->files.sum[i]))
            return false;
    }
    return true;
}

static bool write_state(saving *s) {
    char path[RUN_CHECKPOINT_PATH_BYTES], seal[TN_SEAL_BYTES];
    char *text = run_checkpoint_state_text(s->cx, &s->state, &s->files);
    if (!text) return false;
    size_t n_bytes = strlen(text);
    bool fine = tn_path_join(s->cx, OP, s->partial, TN_STATE_NAME, path) && tn_text_write(s->cx, OP, path, text, n_bytes);
    run_checkpoint_seal(text, n_bytes, seal);
    free(text);
    if (!fine) return false;
    reach_stage(s);
    return tn_path_join(s->cx, OP, s->partial, TN_SEAL_NAME, path) && tn_text_write(s->cx, OP, path, seal, strlen(seal));
}

static bool write_checkpoint(saving *s) {
    if (mkdir(s->partial, 0777) != 0) return tn_fail(s->cx, TN_ERR_IO, OP, "%s: %s", s->partial, strerror(errno));
    bool fine = write_files(s);
    if (fine) reach_stage(s);
    fine = fine && write_state(s);
    if (fine) reach_stage(s);
    fine = fine && tn_folder_sync(s->cx, OP, s->partial);
    if (fine) reach_stage(s);
    fine = fine && tn_folder_replace(s->cx, OP, s->partial, s->complete);
    if (fine) reach_stage(s);
    fine = fine && tn_folder_sync(s->cx, OP, s->args->folder);
    /* Either what could not be finished or, after an exchange, the checkpoint that had the name before. */
    tn_folder_remove(s->partial);
    return fine;
}

/* ---- the last few ---- */

/* Takes the name away first, so that what is half removed is no checkpoint. */
static void remove_step(const saving *s, int64_t step) {
    char from[RUN_CHECKPOINT_PATH_BYTES], to[RUN_CHECKPOINT_PATH_BYTES];
    int length = snprintf(from, sizeof from, "%s/step-%08" PRId64, s->args->folder, step);
    int longer = snprintf(to, sizeof to, "%s/.step-%08" PRId64 ".removed.%ld", s->args->folder, step, (long)getpid());
    if (length < (int)sizeof from && longer < (int)sizeof to && rename(from, to) == 0) tn_folder_remove(to);
}

/* Steps after this one are another run's future and stay. */
static bool remove_old(saving *s) {
    int64_t *steps = NULL, n = run_checkpoint_steps(s->cx, OP, s->args->folder, &steps), here = 0;
    if (n < 0) return false;
    while (here < n && steps[here] <= s->state.step) here++;
    for (int64_t i = 0; i < here - s->args->keep; i++) {
        remove_step(s, steps[i]);
        reach_stage(s);
    }
    free(steps);
    return true;
}

/* ---- the interface ---- */

static bool check_args(tn_context *cx, const run_checkpoint_args *args) {
    if (!args || !args->folder || !*args->folder || !args->params || !args->state)
        return tn_fail(cx, TN_ERR_ARGUMENT, OP, "no folder, no parameters or no state");
    if (tn_params_context(args->params) != cx) return tn_fail(cx, TN_ERR_ARGUMENT, OP, "the parameters belong to another context");
    if (!json_is_object(args->state->config) || (args->state->more && !json_is_object(args->state->more)))
        return tn_fail(cx, TN_ERR_ARGUMENT, OP, "config and more are to be JSON objects");
    if (args->state->step < 0 || args->state->data_row < 0 || args->keep < 0)
        return tn_fail(cx, TN_ERR_ARGUMENT, OP, "a negative step, data row or number to keep");
    return true;
}

static bool make_names(saving *s) {
    char partial[96];
    if (s->args->best) snprintf(s->name, sizeof s->name, "best");
    else snprintf(s->name, sizeof s->name, "step-%08" PRId64, s->state.step);
    snprintf(partial, sizeof partial, ".%s.partial.%ld", s->name, (long)getpid());
    return tn_path_join(s->cx, OP, s->args->folder, s->name, s->complete) && tn_path_join(s->cx, OP, s->args->folder, partial, s->partial);
}

bool run_checkpoint_save(tn_context *cx, const run_checkpoint_args *args) {
    if (!cx || tn_failed(cx) || !check_args(cx, args)) return false;
    saving s = { .cx = cx, .args = args, .state = *args->state };
    s.state.random = tn_rng_get(cx);
    s.state.threads = tn_threads(cx);
    s.state.device = tn_device_name(cx);
    if (!make_names(&s) || !tn_folder_make(cx, OP, args->folder)) return false;
    tn_folder_visit(args->folder, remove_leftover, &s);
    reach_stage(&s);
    if (!write_checkpoint(&s)) return false;
    return args->best || args->keep == 0 || remove_old(&s);
}
