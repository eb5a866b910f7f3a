/* Every call of the CUDA runtime and of cuBLASLt, every allocation on the host and every one on the device fails, on a GPU or on the
 * stand-in of cuda_calls.h. */
#include "fault_loop.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda_calls.h"
#include "libtensor/context_internal.h"
#include "libtensor/graph.h"

static void fail_cuda(const fault_scenario *s, fault_world start) {
    static const fault_kind kinds[] = { FAULT_CUDA, FAULT_HOST, FAULT_DEVICE };
    start.on_cuda = true;
    for (int64_t i = 0; i < COUNT(kinds); i++) {
        if (start.opens && kinds[i] == FAULT_DEVICE) continue;
        /* On a GPU opening contexts takes most of the time: one for all points of a scenario will do. */
        for (int for_ever = cuda_calls_real() && !fault_wants_all(); for_ever < 2; for_ever++) {
            int64_t live = cuda_calls_live();
            fault_everywhere(s, start, kinds[i], for_ever);
            TN_TEST_WANT(cuda_calls_live() == live, "%lld of the runtime's things stay", (long long)(cuda_calls_live() - live));
        }
    }
}

static void fail_op_cuda(const tn_op_def *op, const tn_sample *sample, bool all) {
    static const tn_dtype dtypes[] = { TN_F32, TN_BF16, TN_F64 };
    for (int64_t i = cuda_calls_real() && !all; i < (all ? COUNT(dtypes) : 2); i++) {
        tn_dtype dtype = fault_dtype_for("cuda", op, sample, dtypes[i]);
        if (i > 0 && dtype != dtypes[i] && !(cuda_calls_real() && !all)) continue;
        const fault_scenario s = { op->name, fault_make_inputs, fault_forward_and_backward, NULL, sample->name, false };
        fail_cuda(&s, (fault_world){ .op = op, .sample = sample, .dtype = dtype });
    }
}

static void every_op(void **state) {
    (void)state;
    int64_t launches = cuda_calls_launches();
    fault_for_each_op(fail_op_cuda);
    TN_TEST_WANT(cuda_calls_launches() > launches + tn_op_count(), "hardly anything was launched");
}

static void training(void **state) {
    (void)state;
    const fault_scenario step = { "a training step", fault_make_model, fault_train_step, fault_step_again, NULL, true };
    fail_cuda(&step, (fault_world){ .opens = false });
}

/* Small ones, and ones through pinned memory. */
static bool copy_both_ways(fault_world *w) {
    enum { MANY = 3 << 20 };
    static float values[MANY];
    tn_tensor *small = tn_from_data(w->cx, TN_F32, TN_SHAPE(4), values), *large = tn_from_data(w->cx, TN_F32, TN_SHAPE(MANY), values);
    bool done = tn_to_data(small, values, 4 * sizeof *values) && tn_to_data(large, values, sizeof values) &&
                tn_fill(tn_empty(w->cx, TN_I64, TN_SHAPE(3)), 1) && tn_arange(w->cx, TN_I64, 5) && tn_synchronize(w->cx);
    return done && !tn_failed(w->cx);
}

static bool debug_and_anomaly(fault_world *w) {
    w->cx = tn_open(&(tn_options){ .device = "cuda", .debug = true, .anomaly = true, .tf32 = true });
    if (!w->cx || tn_failed(w->cx)) return false;
    tn_scope *scope = tn_scope_begin(w->cx);
    tn_tensor *x = tn_require_grad(tn_full(w->cx, TN_F32, TN_SHAPE(3, 5), 1), true);
    bool done = tn_backward(tn_sum(tn_exp(x))) && tn_memory_check(w->cx);
    tn_scope_end(scope);
    return done && !tn_failed(w->cx);
}

static bool record_and_replay(fault_world *w) {
    tn_tensor *x = tn_full(w->cx, TN_F32, TN_SHAPE(3, 5), 1);
    bool begun = tn_graph_begin(w->cx);
    tn_tensor *y = tn_exp(tn_exp(x));
    tn_graph *graph = begun ? tn_graph_end(w->cx) : NULL;
    bool done = y && tn_graph_replay(graph) && tn_synchronize(w->cx);
    tn_graph_free(graph);
    return done;
}

static bool two_streams(fault_world *w) {
    tn_device *device = w->cx->device;
    const tn_device_interface *use = device->interface;
    tn_device_event first, second;
    tn_stream other;
    bool done = false;
    tn_status status = use->stream_create(device, &other);
    if (status == TN_OK) status = use->stream_wait(device, other, 0);
    if (status == TN_OK) status = use->event_record(device, other, &first);
    if (status == TN_OK) {
        status = use->event_record(device, 0, &second);
        if (status == TN_OK) status = use->event_wait(device, second);
        tn_status asked = TN_OK;
        for (int i = 0; i < 1000000 && !done; i++) {
            tn_status said = use->event_done(device, first, &done);
            if (asked == TN_OK) asked = said;
        }
        if (!done) use->event_wait(device, first); /* which is its end, whatever it says */
        if (status == TN_OK) status = asked;
    }
    if (status != TN_OK) tn_fail_device(w->cx, status, "two_streams", __FILE__, __LINE__);
    return status == TN_OK;
}

static void rest(void **state) {
    (void)state;
    const fault_scenario copies = { "copies", NULL, copy_both_ways, NULL, NULL, false };
    const fault_scenario debug = { "debug mode", NULL, debug_and_anomaly, NULL, NULL, true };
    const fault_scenario graph = { "a graph", NULL, record_and_replay, NULL, NULL, false };
    const fault_scenario streams = { "streams", NULL, two_streams, NULL, NULL, false };
    fail_cuda(&copies, (fault_world){ .opens = false });
    fail_cuda(&debug, (fault_world){ .opens = true });
    fail_cuda(&graph, (fault_world){ .opens = false });
    fail_cuda(&streams, (fault_world){ .opens = false });
}

/* The GPU is looked for once in a process, so each failure has one of its own. */
static void not_found(void **state) {
    (void)state;
    for (int64_t n = 1; n <= 2; n++) {
        pid_t child = fork();
        if (child == 0) {
            fault_arm(FAULT_CUDA, n, false);
            tn_context *cx = tn_open(&(tn_options){ .device = "cuda" });
            bool said = fault_disarm() == 1 && tn_error_status(cx) == TN_ERR_DEVICE && strlen(tn_error(cx)) > 20;
            tn_close(cx);
            cx = tn_open(&(tn_options){ .device = "auto" });
            bool works = !tn_failed(cx) && strcmp(tn_device_name(cx), "cpu") == 0;
            tn_close(cx);
            _exit(said && works ? 0 : 1);
        }
        int status = 1;
        TN_TEST_WANT(child > 0 && waitpid(child, &status, 0) == child && status == 0, "CUDA call %lld failed and went unseen",
                     (long long)n);
        fault_points[FAULT_CUDA]++;
    }
}

#define CASE(function) \
    { #function, function, NULL, NULL, NULL }

static const struct CMUnitTest cases[] = { CASE(not_found), CASE(every_op), CASE(training), CASE(rest) };

int main(int argc, char **argv) { return fault_main("test_cuda_faults", cases, sizeof cases / sizeof *cases, argc, argv); }
