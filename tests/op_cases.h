/* One CMocka case per op and kind of test, made from the registry. */
#ifndef TENON_OP_CASES_H
#define TENON_OP_CASES_H

#include "harness.h"
#include "op_runs.h"

/* What a case finds in *state. */
typedef struct op_case {
    const tn_op_def *op;
    tn_dtype dtype;
    char name[128];
} op_case;

typedef struct op_kind {
    const char *name;
    CMUnitTestFunction test;
    bool (*applies)(const tn_op_def *op);
    tn_dtype dtype;
} op_kind;

/* For `applies`. */
bool tn_any_op(const tn_op_def *op);
bool tn_op_has_gradient(const tn_op_def *op);
bool tn_op_takes_integers(const tn_op_def *op);

/* Calls body for every sample that is to succeed, in every dtype it runs in that is in `dtypes`. */
void tn_for_each_run(const tn_op_def *op, unsigned dtypes, void (*body)(run_how *how));

/* Registers the op from outside, makes the cases (and `more`), and runs them as the command line says. */
int tn_op_cases_main(const char *name, const op_kind *kinds, int n_kinds, const struct CMUnitTest *more, int n_more, int argc, char **argv);

#endif
