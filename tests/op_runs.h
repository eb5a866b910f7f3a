/* Runs one sample of an op in one of many ways and keeps what came out as doubles, for tests that compare ways. */
#ifndef TENON_OP_RUNS_H
#define TENON_OP_RUNS_H

#include "autograd/op.h"
#include "ops/sample_inputs.h"

#define TN_TEST_SEED 20240229

typedef enum run_layout {
    LAYOUT_DENSE,
    LAYOUT_OFFSET,   /* dense, but not at the start of its storage */
    LAYOUT_PADDED,   /* a gap after each row */
    LAYOUT_STRIDED,  /* every second element */
    LAYOUT_PERMUTED, /* axes stored in reverse order */
    LAYOUT_COUNT
} run_layout;

typedef struct run_how {
    const tn_op_def *op;
    const tn_sample *sample;
    tn_context *cx;     /* that all runs share; NULL: each opens one of its own, by these: */
    const char *device; /* NULL: the tests' device */
    int threads;
    bool debug;
    tn_dtype dtype;
    bool wide_reference;   /* the inputs of `dtype`, but computed in f64 */
    uint32_t without;      /* bits of inputs that want no gradient */
    uint32_t mute_outputs; /* bits of outputs that get no upstream gradient */
    run_layout layout;     /* of the inputs in `laid_out` */
    uint32_t laid_out;
    run_layout upstream_layout;
    int broadcast_input;  /* 1 + input whose first axis is a repetition of one slice; 0: none */
    bool broadcast_dense; /* the same values, but stored */
} run_how;

typedef struct run_values {
    bool present;
    tn_dtype dtype;
    tn_shape shape;
    int64_t n;
    double *v;
} run_values;

typedef struct run_results {
    run_values out[TN_OP_MAX_OUTPUTS], grad[TN_OP_MAX_INPUTS];
    bool backward; /* some input had a gradient */
} run_results;

/* Opens a context for `how`; fails the case if that can't be done. */
tn_context *tn_run_open(const run_how *how);

/* Makes the inputs, applies the op and goes backward, all in the innermost scope of cx; fails the case on any error. */
typedef struct run_call {
    tn_tensor *in[TN_OP_MAX_INPUTS], *out[TN_OP_MAX_OUTPUTS];
    int n_in;
    tn_op_args_buffer args;
    bool backward;
} run_call;
void tn_run_forward(tn_context *cx, const run_how *how, run_call *call);
void tn_run_backward(tn_context *cx, const run_how *how, run_call *call);

/* All of it, in how->cx or a context of its own. */
run_results tn_run(const run_how *how);
void tn_run_free(run_results *results);

/* Fails the case unless both have the same tensors and each is within its tolerance of relative L2 error;
 * tolerance < 0: equal bits. */
void tn_run_compare(const run_how *how, const run_results *expected, const run_results *actual, double tolerance, const char *what);

/* How many inputs the sample gives, absent ones in between included. */
int tn_sample_inputs_given(const tn_sample *sample);

/* Says what runs in failing lines. */
void tn_run_note(const run_how *how, const char *what);

#endif
