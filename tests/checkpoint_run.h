/* What the tests of checkpoints share: a little training, the folder its checkpoints go to, and main(). */
#ifndef TENON_CHECKPOINT_RUN_H
#define TENON_CHECKPOINT_RUN_H

#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "examples/checkpoint.h"
#include "examples/checkpoint_files.h"
#include "ops/tenon.h"

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof(array)[0]))

static char folder[TN_TEST_FOLDER_BYTES], run[80];

/* A little model with its optimizer, and the data position that goes with it. */
typedef struct training {
    tn_context *cx;
    tn_params *params;
    tn_tensor *weight, *bias;
    tn_adamw *opt;
    tn_vocabulary *vocabulary;
    json_t *config;
    run_checkpoint_state state;
} training;

/* One thread: a process that has started more can't go on in a fork. */
static inline training begin(uint64_t seed) {
    training t = { .cx = tn_open(&(tn_options){ .device = "cpu", .seed = seed, .threads = 1 }) };
    t.params = tn_params_new(t.cx);
    t.weight = tn_params_add(t.params, tn_fill_xavier_uniform(tn_parameter(t.cx, TN_F32, TN_SHAPE(3, 4)), 1), 0, "weight");
    t.bias = tn_params_add(t.params, tn_fill_uniform(tn_parameter(t.cx, TN_BF16, TN_SHAPE(3)), -1, 1), 1, "bias");
    t.opt = tn_adamw_new(t.params, TN_ADAMW(.lr = 0.01));
    t.vocabulary = tn_vocabulary_characters(t.cx, "a z\xc3\xa4\n", 6);
    t.config = json_pack("{s:s, s:i, s:f}", "model", "linear", "layers", 4, "lr", 0.1 + 0.2);
    t.state = (run_checkpoint_state){ .best_loss = NAN, .config = t.config };
    tn_test_ok(t.cx);
    return t;
}

static inline void end(training *t) {
    tn_vocabulary_free(t->vocabulary);
    json_decref(t->config);
    tn_close(t->cx);
}

/* A step whose input comes from the context's random stream. */
static inline void step(training *t) {
    tn_scope *scope = tn_scope_begin(t->cx);
    tn_tensor *y = tn_add(tn_linear(tn_randn(t->cx, TN_F32, TN_SHAPE(5, 4)), t->weight, NULL), tn_cast(t->bias, TN_F32));
    tn_backward(tn_mean(tn_mul(y, y)));
    tn_adamw_step(t->opt);
    tn_zero_grad(t->opt);
    tn_scope_end(scope);
    tn_test_ok(t->cx);
    t->state.step++;
    t->state.data_row += 5;
}

static inline bool save(training *t, int keep, bool best) {
    return run_checkpoint_save(t->cx, &(run_checkpoint_args){ .folder = run,
                                                              .params = t->params,
                                                              .optimizer = t->opt,
                                                              .vocabulary = t->vocabulary,
                                                              .state = &t->state,
                                                              .keep = keep,
                                                              .best = best });
}

static inline bool resume(training *t, const char *path) {
    run_checkpoint *checkpoint = run_checkpoint_open(t->cx, path);
    bool fine = run_checkpoint_load(checkpoint, t->params, t->opt) && run_checkpoint_restore_random(checkpoint, t->cx);
    if (fine) {
        t->state.step = run_checkpoint_state_of(checkpoint)->step;
        t->state.data_row = run_checkpoint_state_of(checkpoint)->data_row;
    }
    run_checkpoint_close(checkpoint);
    return fine;
}

static inline void same_weights(const training *a, const training *b) {
    for (int64_t i = 0; i < tn_params_count(a->params); i++) {
        unsigned char x[64], y[64];
        size_t n_bytes = tn_bytes(tn_params_at(a->params, i));
        assert_true(tn_to_data(tn_params_at(a->params, i), x, n_bytes) && tn_to_data(tn_params_at(b->params, i), y, n_bytes));
        assert_memory_equal(x, y, n_bytes);
    }
}

/* ---- the folder ---- */

static inline void command(const char *format) {
    char text[512];
    snprintf(text, sizeof text, format, run);
    TN_TEST_WANT(system(text) == 0, "%s", text);
}

static inline int set_up(void **state) {
    (void)state;
    snprintf(run, sizeof run, "%s/run", folder);
    command("rm -rf '%s'");
    return 0;
}

static inline const char *in_run(const char *name) {
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", run, name);
    return path;
}

static inline int compare_names(const void *a, const void *b) { return strcmp(a, b); }

static inline void add_name(void *user, const char *name) {
    char(*names)[32] = user;
    for (int i = 0; i < 16; i++)
        if (!names[i][0]) {
            snprintf(names[i], sizeof names[i], "%s", name);
            return;
        }
}

/* The names in the run's folder in order, with spaces between. */
static inline const char *listed(void) {
    static char all[512];
    char names[16][32] = { "" };
    tn_folder_visit(run, add_name, names);
    int n = 0;
    while (n < 16 && names[n][0]) n++;
    qsort(names, (size_t)n, sizeof names[0], compare_names);
    all[0] = '\0';
    for (int i = 0; i < n; i++) snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? " " : "", names[i]);
    return all;
}

static inline unsigned char *read_all(const char *path, size_t *n_bytes) {
    FILE *stream = fopen(path, "rb");
    unsigned char *bytes = malloc(1 << 16);
    TN_TEST_WANT(stream && bytes, "can't read %s", path);
    *n_bytes = fread(bytes, 1, 1 << 16, stream);
    fclose(stream);
    return bytes;
}

static inline void write_all(const char *path, const void *bytes, size_t n_bytes) {
    remove(path); /* some file systems flush a file that is written over */
    FILE *stream = fopen(path, "wb");
    TN_TEST_WANT(stream && fwrite(bytes, 1, n_bytes, stream) == n_bytes && fclose(stream) == 0, "can't write %s", path);
}

#define CASE(function) \
    { #function, function, set_up, NULL, NULL }

static inline int run_in_folder(const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc, char **argv) {
    return tn_test_main_in_folder(folder, name, cases, n_cases, argc, argv);
}

#endif
