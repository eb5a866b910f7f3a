#include "op_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/registry.h"
#include "outside_op.h"

bool tn_any_op(const tn_op_def *op) { return op != NULL; }
bool tn_op_has_gradient(const tn_op_def *op) { return !(op->flags & TN_OP_NOT_DIFFERENTIABLE); }
bool tn_op_takes_integers(const tn_op_def *op) {
    unsigned dtypes = op->flags & TN_OP_VIEW ? TN_ANY_DTYPE : op->forward_dtypes[TN_DEVICE_CPU];
    return (dtypes & TN_INTS) != 0;
}

void tn_for_each_run(const tn_op_def *op, unsigned dtypes, void (*body)(run_how *how)) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .history_events = -1 });
    tn_test_ok(cx);
    for (const tn_sample *sample = op->samples; sample->name; sample++) {
        unsigned mask = sample->error == TN_OK ? tn_sample_dtypes(cx, op, sample) & dtypes : 0;
        for (int dtype = 0; dtype < TN_DTYPE_COUNT; dtype++) {
            if (!(mask >> dtype & 1)) continue;
            run_how how = { .op = op, .sample = sample, .dtype = (tn_dtype)dtype };
            tn_run_note(&how, NULL);
            body(&how);
        }
    }
    tn_close(cx);
}

/* An op from outside may have kernels for the CPU alone. */
static bool runs_here(const tn_op_def *op) {
    return strcmp(tn_test_device(), "cuda") != 0 || op->flags & TN_OP_VIEW || op->forward[TN_DEVICE_CUDA];
}

static int make_cases(const op_kind *kinds, int n_kinds, op_case *cases, struct CMUnitTest *tests) {
    int n = 0;
    for (int i = 0; i < tn_op_count(); i++)
        for (int k = 0; k < n_kinds; k++) {
            const tn_op_def *op = tn_op_at(i);
            if (!runs_here(op) || !kinds[k].applies(op)) continue;
            cases[n] = (op_case){ .op = op, .dtype = kinds[k].dtype };
            snprintf(cases[n].name, sizeof cases[n].name, "%s/%s", op->name, kinds[k].name);
            tests[n] = (struct CMUnitTest){ .name = cases[n].name, .test_func = kinds[k].test, .initial_state = &cases[n] };
            n++;
        }
    return n;
}

static bool register_outside_op(const char *name) {
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    bool registered = tn_op_register(cx, &tn_outside_op);
    if (!registered) fprintf(stderr, "%s: %s\n", name, tn_error(cx));
    tn_close(cx);
    return registered;
}

int tn_op_cases_main(const char *name, const op_kind *kinds, int n_kinds, const struct CMUnitTest *more, int n_more, int argc,
                     char **argv) {
    if (!register_outside_op(name)) return EXIT_FAILURE;
    size_t most = (size_t)(tn_op_count() * n_kinds + n_more);
    op_case *cases = calloc(most, sizeof *cases);
    struct CMUnitTest *tests = calloc(most, sizeof *tests);
    int code = EXIT_FAILURE;
    if (cases && tests) {
        for (int i = 0; i < n_more; i++) tests[i] = more[i];
        int n = n_more + make_cases(kinds, n_kinds, cases, tests + n_more);
        code = tn_test_main(name, tests, (size_t)n, argc, argv);
    }
    free(tests);
    free(cases);
    return code;
}
