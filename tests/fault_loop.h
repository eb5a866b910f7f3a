/* The loop of the fault tests: does one thing again and again, each time with another call failing (fault_calls.h), and looks whether all
 * is well afterwards. Each time there must be an error with a reason or the right result; nothing leaks, files on the disk are whole, and
 * the context works.
 *
 * TENON_TEST_FAULTS=all: every sample of every op. */
#ifndef TENON_FAULT_LOOP_H
#define TENON_FAULT_LOOP_H

#include "harness.h"

#include "examples/checkpoint.h"
#include "fault_calls.h"
#include "op_runs.h"
#include "ops/tenon.h"

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof(array)[0]))

extern char fault_folder[TN_TEST_FOLDER_BYTES]; /* for files, empty at the start */
extern int64_t fault_points[FAULT_KINDS];       /* calls that were made to fail */

/* What a scenario has at hand. */
typedef struct fault_world {
    tn_context *cx;
    tn_scope *scope;
    char path[160];
    int64_t n_files;
    const char *reason; /* for what says why without a context */
    char reason_text[256];
    bool opens;    /* the scenario opens the context itself */
    bool on_cuda;  /* on a GPU or its stand-in, else on the CPU */
    bool computes; /* the device computes; false for a stand-in */

    const tn_op_def *op;
    const tn_sample *sample;
    tn_dtype dtype;
    tn_tensor *in[TN_OP_MAX_INPUTS];
    int n_in;
    tn_op_args_buffer args;

    tn_params *params;
    tn_tensor *weight, *bias, *tensor;
    tn_adamw *opt;
    tn_vocabulary *vocabulary;
    run_checkpoint_state state;
    const char *kind;
} fault_world;

typedef struct fault_scenario {
    const char *name;
    void (*set_up)(fault_world *w);
    bool (*act)(fault_world *w);
    void (*check)(fault_world *w, bool done); /* files, results; what act() made is freed here */
    const char *kind;
    bool lasts; /* act() leaves tensors that were not there before */
} fault_scenario;

/* Fails the first call of a kind, the second, ... until there is none left; once each, or that one and all after it. */
void fault_everywhere(const fault_scenario *s, fault_world start, fault_kind kind, bool for_ever);
/* All kinds but CUDA's, once and for ever. */
void fault_all_kinds(const fault_scenario *s, fault_world start);

bool fault_wants_all(void);
int64_t fault_entries_of(const char *folder);
tn_context *fault_open_context(const char *device);

/* ---- for scenarios ---- */

/* The sample that a world names, and a call of its op. */
void fault_make_inputs(fault_world *w);
bool fault_forward_and_backward(fault_world *w);
/* The dtype that a sample runs in: `wish`, or one that it can. */
tn_dtype fault_dtype_for(const char *device, const tn_op_def *op, const tn_sample *sample, tn_dtype wish);
/* The first sample of each op, or all; `all` tells which. */
void fault_for_each_op(void (*body)(const tn_op_def *op, const tn_sample *sample, bool all));

/* A little model with its optimizer, a step, and the step after one that failed. w->kind: with recomputation. */
void fault_make_model(fault_world *w);
bool fault_train_step(fault_world *w);
void fault_step_again(fault_world *w, bool done);

/* tn_test_main() with a folder; says how many points there were. */
int fault_main(const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc, char **argv);

#endif
