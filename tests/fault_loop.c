#include "fault_loop.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "libtensor/host_memory.h"

char fault_folder[TN_TEST_FOLDER_BYTES];
int64_t fault_points[FAULT_KINDS];

/* ---- what must hold after every failure ---- */

static int64_t bytes_in_use(const tn_context *cx) {
    tn_memory_stats stats;
    TN_TEST_WANT(tn_memory_stats_get(cx, &stats), "no statistics");
    return stats.all.requested.current;
}

int64_t fault_entries_of(const char *path) {
    DIR *entries = opendir(path);
    int64_t n = 0;
    TN_TEST_WANT(entries, "can't list %s", path);
    while (readdir(entries)) n++;
    closedir(entries);
    return n;
}

/* A product, its square's sum, and the way back: small whole numbers, so exact. */
static void want_working(tn_context *cx, bool computes) {
    static const float x[] = { 1, 2, 3, 4 }, w[] = { 1, 0, 2, 1 }, expected[] = { 20, 28, 68, 96 };
    float gradient[4], loss = 0;
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *weight = tn_require_grad(tn_from_data(cx, TN_F32, TN_SHAPE(2, 2), w), true);
    tn_tensor *y = tn_linear(tn_from_data(cx, TN_F32, TN_SHAPE(2, 2), x), weight, NULL);
    tn_tensor *sum = tn_sum(tn_mul(y, y));
    tn_backward(sum);
    tn_to_data(sum, &loss, sizeof loss);
    tn_to_data(tn_grad(weight), gradient, sizeof gradient);
    tn_test_ok(cx);
    if (!computes) loss = 126, memcpy(gradient, expected, sizeof gradient);
    TN_TEST_WANT(loss == 126 && memcmp(gradient, expected, sizeof gradient) == 0, "the context computes %g, %g %g %g %g", (double)loss,
                 (double)gradient[0], (double)gradient[1], (double)gradient[2], (double)gradient[3]);
    tn_scope_end(scope);
}

static void want_reason(const fault_world *w, fault_kind kind) {
    static const tn_status expected[FAULT_KINDS] = {
        TN_ERR_HOST_MEMORY, TN_ERR_MEMORY, TN_ERR_MEMORY, TN_ERR_IO, TN_ERR_IO, TN_ERR_DEVICE
    };
    if (w->reason) {
        TN_TEST_WANT(*w->reason, "failed without a reason");
        return;
    }
    TN_TEST_WANT(w->cx || kind == FAULT_HOST, "no context");
    if (!w->cx) return;
    TN_TEST_WANT(tn_failed(w->cx), "failed without an error");
    tn_status got = tn_error_status(w->cx);
    bool full = kind == FAULT_CUDA && strstr(tn_error(w->cx), "cudaErrorMemoryAllocation");
    TN_TEST_WANT(got == (full ? TN_ERR_MEMORY : expected[kind]), "after a failing %s: %s", fault_last(), tn_error(w->cx));
    TN_TEST_WANT(strlen(tn_error(w->cx)) > 20, "a meagre reason: %s", tn_error(w->cx));
    tn_clear_error(w->cx);
}

/* ---- failing, one after the other ---- */

tn_context *fault_open_context(const char *device) {
    tn_context *cx = tn_open(&(tn_options){ .device = device, .seed = 7, .threads = 2 });
    tn_test_ok(cx);
    return cx;
}

static bool is_stand_in(const fault_world *w) { return w->on_cuda && strcmp(tn_test_device(), "cuda") != 0; }

static void begin(const fault_scenario *s, fault_world *w) {
    w->computes = !is_stand_in(w);
    snprintf(w->path, sizeof w->path, "%s/file", fault_folder);
    w->kind = s->kind;
    if (!w->opens) w->cx = fault_open_context(w->on_cuda ? "cuda" : "cpu");
    if (s->set_up) s->set_up(w);
    if (!w->opens) tn_test_ok(w->cx);
    w->n_files = fault_entries_of(fault_folder);
}

/* The n-th call fails. False: there was no n-th call. */
static bool fail_at(const fault_scenario *s, fault_world *w, fault_kind kind, int64_t n, bool for_ever) {
    int64_t before = w->cx ? bytes_in_use(w->cx) : 0;
    if (kind == FAULT_SEGMENT) tn_memory_release_cache(w->cx);
    tn_scope *scope = tn_scope_begin(w->cx);
    fault_arm(kind, n, for_ever);
    bool done = s->act(w);
    int64_t failed = fault_disarm();
    tn_test_note("%s %s, %s %lld failing %s (%s)", s->name, s->kind ? s->kind : "", fault_name(kind), (long long)n,
                 for_ever ? "for ever" : "once", fault_last());
    if (done) tn_test_ok(w->cx);
    else TN_TEST_WANT(failed > 0, "failed where nothing was made to fail: %s", tn_error(w->cx));
    if (!done) want_reason(w, kind);
    tn_scope_end(scope);
    if (s->check) s->check(w, done);
    if (w->cx && (done || !w->opens)) {
        for (int i = 0; i < w->n_in; i++) tn_clear_grad(w->in[i]);
        want_working(w->cx, w->computes);
        if (!s->lasts)
            TN_TEST_WANT(w->opens || bytes_in_use(w->cx) == before, "%lld bytes stay", (long long)(bytes_in_use(w->cx) - before));
    }
    fault_points[kind] += failed > 0;
    return failed > 0;
}

static void end(fault_world *w) {
    if (w->scope) tn_scope_end(w->scope);
    tn_vocabulary_free(w->vocabulary);
    json_decref(w->state.config);
    tn_close(w->cx);
}

/* Each time on a context of its own if only one call fails, so that everything is made anew; on one that goes on if all do. */
void fault_everywhere(const fault_scenario *s, fault_world start, fault_kind kind, bool for_ever) {
    int64_t blocks = tn_host_live_blocks(), files = fault_entries_of("/proc/self/fd");
    bool anew = start.opens || !for_ever, struck = true;
    fault_world w = start;
    if (!anew) begin(s, &w);
    for (int64_t n = 1; struck; n++) {
        if (anew) {
            w = start;
            begin(s, &w);
        }
        struck = fail_at(s, &w, kind, n, for_ever);
        TN_TEST_WANT(n < 20000, "it never ends");
        if (!anew) continue;
        end(&w);
        TN_TEST_WANT(tn_host_live_blocks() == blocks, "%lld host blocks stay", (long long)(tn_host_live_blocks() - blocks));
    }
    if (!anew) end(&w);
    TN_TEST_WANT(tn_host_live_blocks() == blocks, "%lld host blocks stay at the end", (long long)(tn_host_live_blocks() - blocks));
    TN_TEST_WANT(fault_entries_of("/proc/self/fd") == files, "a file stays open");
}

void fault_all_kinds(const fault_scenario *s, fault_world start) {
    static const fault_kind kinds[] = { FAULT_HOST, FAULT_DEVICE, FAULT_SEGMENT, FAULT_FILE, FAULT_SHORT };
    for (int64_t i = 0; i < COUNT(kinds); i++) {
        if (start.opens && (kinds[i] == FAULT_DEVICE || kinds[i] == FAULT_SEGMENT)) continue;
        fault_everywhere(s, start, kinds[i], false);
        fault_everywhere(s, start, kinds[i], true);
    }
}

/* ---- ops ---- */

void fault_make_inputs(fault_world *w) {
    w->scope = tn_scope_begin(w->cx);
    tn_sample_make(w->cx, w->op, w->sample, w->dtype, TN_TEST_SEED, true, w->in, &w->n_in, &w->args);
}

bool fault_forward_and_backward(fault_world *w) {
    tn_tensor *out[TN_OP_MAX_OUTPUTS], *roots[TN_OP_MAX_OUTPUTS], *upstream[TN_OP_MAX_OUTPUTS];
    int n_roots = 0;
    if (!tn_apply(w->op, w->in, w->n_in, &w->args, out)) return false;
    for (int i = 0; i < w->op->n_outputs; i++) {
        if (!out[i] || !tn_requires_grad(out[i])) continue;
        roots[n_roots] = out[i];
        upstream[n_roots++] = tn_full(w->cx, out[i]->dtype, tn_shape_of(out[i]), 1);
    }
    return !tn_failed(w->cx) && (n_roots == 0 || tn_backward_many(roots, upstream, n_roots, false));
}

tn_dtype fault_dtype_for(const char *device, const tn_op_def *op, const tn_sample *sample, tn_dtype wish) {
    tn_context *cx = fault_open_context(device);
    unsigned mask = tn_sample_dtypes(cx, op, sample);
    tn_close(cx);
    tn_dtype dtype = mask >> wish & 1 ? wish : TN_F64;
    while (dtype < TN_BOOL && !(mask >> dtype & 1)) dtype++;
    return dtype;
}

bool fault_wants_all(void) {
    const char *wish = getenv("TENON_TEST_FAULTS");
    return wish && strcmp(wish, "all") == 0;
}

void fault_for_each_op(void (*body)(const tn_op_def *op, const tn_sample *sample, bool all)) {
    bool all = fault_wants_all();
    for (int i = 0; i < tn_op_count(); i++) {
        const tn_sample *sample = tn_op_at(i)->samples;
        for (bool more = true; more && sample->name; sample++) {
            if (sample->error != TN_OK) continue;
            body(tn_op_at(i), sample, all);
            more = all;
        }
    }
}

/* ---- training ---- */

void fault_make_model(fault_world *w) {
    w->params = tn_params_new(w->cx);
    w->weight = tn_params_add(w->params, tn_fill_xavier_uniform(tn_parameter(w->cx, TN_F32, TN_SHAPE(5, 4)), 1), 0, "layer.%d.weight", 0);
    w->bias = tn_params_add(w->params, tn_fill_uniform(tn_parameter(w->cx, TN_BF16, TN_SHAPE(5)), -1, 1), 1, "bias");
    w->opt = tn_adamw_new(w->params, TN_ADAMW(.lr = 0.01));
    tn_adamw_group(w->opt, 1, 1, 0);
}

static tn_tensor *block(void *user, tn_tensor *const *in, int n_in) {
    const fault_world *w = user;
    (void)n_in;
    return tn_add(tn_linear(tn_gelu(in[0]), w->weight, NULL), tn_cast(w->bias, TN_F32));
}

bool fault_train_step(fault_world *w) {
    tn_tensor *x = tn_randn(w->cx, TN_F32, TN_SHAPE(6, 4)), *target = tn_randint(w->cx, TN_I64, TN_SHAPE(6), 0, 5);
    tn_tensor *logits = w->kind ? tn_checkpoint(w->cx, block, w, &x, 1) : block(w, &x, 1);
    tn_tensor *loss = tn_cross_entropy(logits, target, TN_CROSS_ENTROPY());
    tn_backward(loss);
    tn_clip_grad_norm(w->params, 1);
    bool done = tn_adamw_step(w->opt) && isfinite(tn_item(loss));
    tn_zero_grad(w->opt);
    return done && !tn_failed(w->cx);
}

void fault_step_again(fault_world *w, bool done) {
    (void)done;
    tn_scope *scope = tn_scope_begin(w->cx);
    tn_zero_grad(w->opt);
    TN_TEST_WANT(fault_train_step(w), "no step after the error: %s", tn_error(w->cx));
    tn_scope_end(scope);
}

/* ---- main ---- */

int fault_main(const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc, char **argv) {
    int code = tn_test_main_in_folder(fault_folder, name, cases, n_cases, argc, argv);
    for (int i = 0; i < FAULT_KINDS; i++)
        if (fault_points[i]) printf("%lld %s failed\n", (long long)fault_points[i], fault_name((fault_kind)i));
    return code;
}
