#include "op_comparisons.h"

#include <stdio.h>
#include <stdlib.h>

#include "harness.h"
#include "libtensor/memory.h"

/* ---- numbers ---- */

static double accuracy_of(tn_dtype dtype) { return dtype == TN_F64 ? 1e-9 : dtype == TN_F32 ? 3e-5 : 2.5e-2; }

static void note_error(FILE *file, const run_how *how, const char *kind, const run_values *expected, const run_values *actual) {
    if (!actual->present || actual->dtype != how->dtype || !expected->present || expected->n != actual->n) return;
    fprintf(file, "%s %s %s %.3e\n", how->op->name, tn_dtype_name(how->dtype), kind,
            tn_test_relative_l2(expected->v, actual->v, actual->n));
}

/* Lines "op dtype out|grad error" are added to the file named by TENON_TEST_ACCURACY, for docs/accuracy.py. */
static void note_errors(const run_how *how, const run_results *expected, const run_results *actual) {
    const char *path = getenv("TENON_TEST_ACCURACY");
    FILE *file = path && *path ? fopen(path, "a") : NULL;
    if (!file) return;
    for (int i = 0; i < TN_OP_MAX_OUTPUTS; i++) note_error(file, how, "out", &expected->out[i], &actual->out[i]);
    for (int i = 0; i < TN_OP_MAX_INPUTS; i++) note_error(file, how, "grad", &expected->grad[i], &actual->grad[i]);
    fclose(file);
}

/* Against f64 computed from the same inputs, on the CPU; each output's gradient alone too, where there are several. */
void tn_compare_with_f64(run_how *how) {
    int n_out = how->op->n_outputs;
    for (int alone = n_out > 1 ? -1 : 0; alone < (n_out > 1 ? n_out : 1); alone++) {
        run_how wide = *how;
        wide.wide_reference = true;
        wide.device = "cpu";
        wide.mute_outputs = how->mute_outputs = n_out > 1 && alone >= 0 ? ~(1u << alone) : 0;
        run_results expected = tn_run(&wide), actual = tn_run(how);
        note_errors(how, &expected, &actual);
        tn_run_compare(how, &expected, &actual, accuracy_of(how->dtype), "against f64");
        tn_run_free(&expected);
        tn_run_free(&actual);
    }
}

void tn_compare_threads(run_how *how) {
    double tolerance = how->op->flags & TN_OP_THREADS_MATTER ? tn_same_kernel_tolerance(how->dtype) : -1;
    how->threads = 1;
    run_results one = tn_run(how);
    for (how->threads = 2; how->threads <= 3; how->threads++) {
        run_results several = tn_run(how);
        tn_run_compare(how, &one, &several, tolerance, how->threads == 2 ? "1 against 2 threads" : "1 against 3 threads");
        tn_run_free(&several);
    }
    tn_run_free(&one);
}

/* ---- layouts ---- */

double tn_same_kernel_tolerance(tn_dtype dtype) { return dtype == TN_F64 ? 1e-12 : dtype == TN_F32 ? 3e-6 : dtype == TN_BF16 ? 5e-3 : 0; }

void tn_compare_layout(const run_how *how, const run_results *dense, const char *what) {
    tn_run_note(how, what);
    run_results results = tn_run(how);
    tn_run_compare(how, dense, &results, tn_same_kernel_tolerance(how->dtype), what);
    tn_run_free(&results);
}

void tn_compare_layouts(run_how *how) {
    static const char *const names[LAYOUT_COUNT] = { "dense", "offset", "padded", "strided", "permuted" };
    char what[128];
    how->cx = tn_run_open(how); /* to open one for each of some hundred runs takes longer than they do */
    run_results dense = tn_run(how);
    int n_in = tn_sample_inputs_given(how->sample);
    for (int layout = LAYOUT_OFFSET; layout < LAYOUT_COUNT; layout++) {
        how->layout = (run_layout)layout;
        for (int i = 0; i < n_in; i++) {
            if (!how->sample->in[i].present) continue;
            how->laid_out = 1u << i;
            snprintf(what, sizeof what, "input %d %s", i, names[layout]);
            tn_compare_layout(how, &dense, what);
        }
        how->laid_out = ~0u;
        how->upstream_layout = (run_layout)layout;
        snprintf(what, sizeof what, "inputs and upstream gradients %s", names[layout]);
        tn_compare_layout(how, &dense, what);
        how->upstream_layout = LAYOUT_DENSE;
    }
    tn_run_free(&dense);
    tn_close(how->cx);
    how->cx = NULL;
}

/* ---- a dry run ---- */

typedef struct traffic {
    int64_t n_events, peak;
    uint64_t hash; /* of kind, bytes, category and pass of every event in order */
} traffic;

static void add_event(void *user, const tn_memory_event *event) {
    traffic *t = user;
    const uint64_t facts[] = { event->kind, (uint64_t)event->requested_bytes, event->category, event->owner.pass };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) t->hash = (t->hash ^ facts[i]) * UINT64_C(0x100000001b3);
    t->n_events++;
}

static traffic record_traffic(const run_how *how) {
    traffic t = { .hash = UINT64_C(0xcbf29ce484222325) };
    tn_memory_stats stats;
    run_call call;
    tn_context *cx = tn_run_open(how);
    tn_scope *scope = tn_scope_begin(cx);
    tn_run_forward(cx, how, &call);
    tn_run_backward(cx, how, &call);
    tn_scope_end(scope);
    tn_test_ok(cx);
    TN_TEST_WANT(tn_memory_stats_get(cx, &stats), "no statistics");
    t.peak = stats.all.allocated.peak;
    tn_memory_visit_history(cx, add_event, &t);
    tn_close(cx);
    return t;
}

void tn_compare_with_dry_run(run_how *how) {
    char device[64];
    traffic real = record_traffic(how);
    snprintf(device, sizeof device, "dry-run:%s", tn_test_device());
    how->device = device;
    traffic dry = record_traffic(how);
    TN_TEST_WANT(dry.peak == real.peak, "the dry run peaks at %lld bytes, the real one at %lld", (long long)dry.peak, (long long)real.peak);
    TN_TEST_WANT(dry.n_events == real.n_events && dry.hash == real.hash, "the dry run has %lld memory events, the real one %lld, or others",
                 (long long)dry.n_events, (long long)real.n_events);
}
