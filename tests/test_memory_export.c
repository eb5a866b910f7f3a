/* The timeline and the files made of it: they agree with the allocator, and other programs can read them. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "libtensor/allocator_internal.h"
#include "libtensor/context_internal.h"
#include "ops/tenon.h"

#ifdef TN_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

static char path[] = "/tmp/tenon-memory-XXXXXX";

/* A few steps of something with parameters, saved tensors and labels that want quoting. */
static void run_steps(tn_context *cx) {
    tn_tensor *w = tn_fill_xavier_normal(tn_parameter(cx, TN_F32, TN_SHAPE(64, 64)), 1);
    for (int step = 0; step < 3; step++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_label_push(cx, "layer \"0\", </script>");
        tn_tensor *x = tn_randn(cx, TN_F32, TN_SHAPE(32, 64));
        tn_tensor *o = tn_act(tn_linear(x, w, NULL), TN_ACT(.act = TN_SILU));
        tn_label_pop(cx);
        tn_backward(tn_mean(tn_mul(o, o)));
        if (step < 2) tn_scope_end(scope);
    }
    tn_test_ok(cx);
}

static tn_context *run_something(int64_t history_events) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1, .history_events = history_events });
    run_steps(cx);
    return cx;
}

/* What the allocator says itself, event after event. */
typedef struct replay {
    const tn_memory_timeline *timeline;
    int64_t event, sum, by_category[TN_CATEGORY_COUNT];
} replay;

static void check_event(void *user, const tn_memory_event *event) {
    replay *r = user;
    if (event->kind == TN_EVENT_ALLOC) r->sum += event->allocated_bytes;
    if (event->kind == TN_EVENT_FREE_REQUESTED) r->sum -= event->allocated_bytes;
    int64_t sum = 0;
    for (int64_t i = 0; i < r->timeline->n_lives; i++)
        if (tn_memory_lives_at(&r->timeline->lives[i], r->event)) sum += r->timeline->lives[i].allocated_bytes;
    TN_TEST_WANT(sum == r->sum, "behind event %lld %lld bytes live, and %lld are allocated", (long long)r->event, (long long)sum,
                 (long long)r->sum);
    r->event++;
}

static void test_timeline(void **unused) {
    (void)unused;
    tn_context *cx = run_something(0);
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    tn_memory_timeline *t = tn_memory_timeline_new(cx);
    tn_test_ok(cx);
    replay r = { .timeline = t };
    TN_TEST_WANT(tn_memory_visit_history(cx, check_event, &r) == 0 && r.event == t->n_events && t->n_lost == 0, "every event is told of");
    TN_TEST_WANT(t->peak_bytes == stats.all.allocated.peak, "the peak is %lld, and was %lld", (long long)t->peak_bytes,
                 (long long)stats.all.allocated.peak);
    int64_t by_category[TN_CATEGORY_COUNT] = { 0 };
    for (int64_t i = 0; i < t->n_lives; i++)
        if (t->lives[i].end_ns == UINT64_MAX) by_category[t->lives[i].category] += t->lives[i].allocated_bytes;
    for (int c = 0; c < TN_CATEGORY_COUNT; c++)
        TN_TEST_WANT(by_category[c] == stats.category[c].current, "%s: %lld bytes, and %lld are counted", tn_category_name((tn_category)c),
                     (long long)by_category[c], (long long)stats.category[c].current);
    tn_memory_timeline_free(t);
    tn_close(cx);
}

/* ---- the allocator's own figures, event by event ---- */

/* In debug mode the allocator has the device fill each block that comes or goes, between two events: there its figures are taken. */
typedef struct reading {
    int64_t n_events, allocated, requested, by_category[TN_CATEGORY_COUNT];
} reading;

static struct {
    tn_device_interface interface;
    tn_status (*fill_bytes)(tn_device *device, void *to, unsigned char byte, size_t bytes, tn_stream stream);
    const tn_context *cx;
    reading *reading;
    int64_t n, capacity;
} watch;

static tn_status fill_and_read(tn_device *device, void *to, unsigned char byte, size_t bytes, tn_stream stream) {
    tn_memory_stats stats;
    tn_memory_stats_get(watch.cx, &stats);
    if (watch.n < watch.capacity) {
        reading *r = &watch.reading[watch.n++];
        *r = (reading){ (int64_t)watch.cx->allocator->n_events, stats.all.allocated.current, stats.all.requested.current, { 0 } };
        for (int c = 0; c < TN_CATEGORY_COUNT; c++) r->by_category[c] = stats.category[c].current;
    }
    return watch.fill_bytes(device, to, byte, bytes, stream);
}

static void watch_fills(tn_context *cx, reading *readings, int64_t capacity) {
    watch.interface = *cx->device->interface;
    watch.fill_bytes = watch.interface.fill_bytes;
    watch.interface.fill_bytes = fill_and_read;
    watch.cx = cx;
    watch.reading = readings;
    watch.capacity = capacity;
    watch.n = 0;
    cx->device->interface = &watch.interface;
}

static void compare_reading(const tn_memory_timeline *t, const reading *r) {
    int64_t by_category[TN_CATEGORY_COUNT] = { 0 }, all = 0, counted = 0, requested = 0;
    for (int64_t i = 0; i < t->n_lives; i++) {
        if (!tn_memory_lives_at(&t->lives[i], r->n_events - 1)) continue;
        by_category[t->lives[i].category] += t->lives[i].allocated_bytes;
        requested += t->lives[i].requested_bytes;
    }
    for (int c = 0; c < TN_CATEGORY_COUNT; c++) {
        all += by_category[c];
        counted += r->by_category[c];
        TN_TEST_WANT(by_category[c] == r->by_category[c], "behind event %lld the history has %lld bytes %s, and the allocator counts %lld",
                     (long long)r->n_events, (long long)by_category[c], tn_category_name((tn_category)c), (long long)r->by_category[c]);
    }
    TN_TEST_WANT(all == r->allocated && counted == r->allocated && requested == r->requested,
                 "behind event %lld categories add up to %lld and %lld bytes, and %lld are allocated", (long long)r->n_events,
                 (long long)all, (long long)counted, (long long)r->allocated);
}

static void test_every_event(void **unused) {
    (void)unused;
    static reading readings[4096];
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1, .debug = true });
    const tn_device_interface *own = cx->device->interface;
    watch_fills(cx, readings, 4096);
    run_steps(cx);
    cx->device->interface = own;
    tn_memory_timeline *t = tn_memory_timeline_new(cx);
    tn_test_ok(cx);
    int64_t last = 0, longest = 0;
    for (int64_t i = 0; i < watch.n; i++) {
        compare_reading(t, &readings[i]);
        longest = readings[i].n_events - last > longest ? readings[i].n_events - last : longest;
        last = readings[i].n_events;
    }
    TN_TEST_WANT(watch.n > t->n_events / 2 && watch.n < watch.capacity && longest < 8, "%lld readings for %lld events, %lld events unread",
                 (long long)watch.n, (long long)t->n_events, (long long)longest);
    tn_memory_timeline_free(t);
    tn_close(cx);
}

/* ---- what the driver says ---- */

#ifdef TN_WITH_CUDA
/* The driver hands memory out in pages of 2 MiB, and in larger ones where much is asked for. */
#define DRIVER_PAGE (INT64_C(2) << 20)

static int64_t driver_used(tn_context *cx) {
    size_t idle = 0, all = 0;
    tn_synchronize(cx);
    TN_TEST_WANT(cudaMemGetInfo(&idle, &all) == cudaSuccess, "the driver doesn't say what is free");
    return (int64_t)(all - idle);
}

/* False: another process, whose memory the driver counts too, came or went meanwhile; or we count wrongly. */
static bool driver_agrees(tn_context *cx, int64_t used_before, int64_t reserved_before) {
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    int64_t reserved = stats.all.reserved.current - reserved_before, used = driver_used(cx) - used_before;
    int64_t overhead = DRIVER_PAGE * (stats.all.n_segments.current + 1);
    if (reserved <= used + DRIVER_PAGE && used <= reserved + overhead) return true;
    printf("%lld bytes are reserved, and the driver counts %lld; %lld apart would be well\n", (long long)reserved, (long long)used,
           (long long)overhead);
    return false;
}

static bool driver_agrees_all_along(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = "cuda", .seed = 1 });
    run_steps(cx); /* loads the kernels, which take memory of their own */
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    int64_t used = driver_used(cx), reserved = stats.all.reserved.current;
    static const int64_t sizes[] = { 1000, 300000, 1500000, 9000000, 11000000, 33000001, 700000000 };
    bool agrees = true;
    for (int i = 0; i < 7 && agrees; i++)
        for (int n = 0; n < 5 && agrees; n++) {
            tn_empty(cx, TN_U8, TN_SHAPE(sizes[i] + 4096 * n));
            tn_test_ok(cx);
            agrees = driver_agrees(cx, used, reserved);
        }
    tn_close(cx);
    return agrees;
}

static void test_driver(void **unused) {
    (void)unused;
    if (strcmp(tn_test_device(), "cuda") != 0) skip();
    bool agrees = false;
    for (int attempt = 0; attempt < 10 && !agrees; attempt++) agrees = driver_agrees_all_along();
    TN_TEST_WANT(agrees, "what is reserved is not what the driver counts, ten times");
}
#else
static void test_driver(void **unused) {
    (void)unused;
    skip();
}
#endif

/* ---- what blocks were made for ---- */

static void want_form(const tn_memory_life *life, const char *wanted) {
    char text[192];
    TN_TEST_WANT(strcmp(tn_tensor_form_text(life->form, text, sizeof text), wanted) == 0, "a block is of '%s', wanted '%s'", text, wanted);
}

static void test_forms(void **unused) {
    (void)unused;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1 });
    const tn_tensor *made[] = { tn_empty(cx, TN_BF16, TN_SHAPE(3, 0, 5)), tn_empty(cx, TN_F64, TN_SCALAR),
                                tn_empty(cx, TN_I64, TN_SHAPE(1, 2, 3, 4, 5, 6, 7, 8)), tn_empty(cx, TN_BF16, TN_SHAPE(3, 0, 5)) };
    TN_TEST_WANT(made[0] && made[1] && made[2] && made[3], "%s", tn_error(cx));
    tn_workspace_give(cx, tn_workspace_take(cx, 100));
    tn_memory_timeline *t = tn_memory_timeline_new(cx);
    TN_TEST_WANT(t->n_lives == 5 && t->lives[0].form == t->lives[3].form, "forms that are alike are one");
    want_form(&t->lives[0], "bf16 [3,0,5]");
    want_form(&t->lives[1], "f64 []");
    want_form(&t->lives[2], "i64 [1,2,3,4,5,6,7,8]");
    want_form(&t->lives[4], "");
    tn_memory_timeline_free(t);
    char small[6];
    TN_TEST_WANT(strcmp(tn_tensor_form_text(&(tn_tensor_form){ TN_F32, TN_SHAPE(128, 64) }, small, sizeof small), "f32 [") == 0,
                 "cut short");
    TN_TEST_WANT(strcmp(tn_tensor_form_text(NULL, small, sizeof small), "") == 0, "no form");
    tn_close(cx);
}

/* A program may go through any number of shapes: at some time new ones are no longer noted, and all else goes on. */
static void test_many_forms(void **unused) {
    (void)unused;
    enum { MANY = 70000 };
    tn_context *cx = tn_open(&(tn_options){ .device = "dry-run", .seed = 1, .history_events = 16 });
    for (int i = 0; i < MANY; i++) {
        tn_scope *scope = tn_scope_begin(cx);
        tn_empty(cx, TN_U8, TN_SHAPE(i, 2));
        tn_scope_end(scope);
    }
    tn_empty(cx, TN_U8, TN_SHAPE(MANY - 1, 2));
    tn_empty(cx, TN_U8, TN_SHAPE(77, 2));
    tn_test_ok(cx);
    tn_memory_timeline *t = tn_memory_timeline_new(cx);
    TN_TEST_WANT(cx->allocator->forms.n < MANY, "%llu forms are kept", (unsigned long long)cx->allocator->forms.n);
    want_form(&t->lives[t->n_lives - 2], "");
    want_form(&t->lives[t->n_lives - 1], "u8 [77,2]");
    tn_memory_timeline_free(t);
    tn_close(cx);
    cx = tn_open(&(tn_options){ .device = tn_test_device(), .history_events = -1 });
    tn_empty(cx, TN_U8, TN_SHAPE(5));
    TN_TEST_WANT(cx->allocator->forms.n == 0 && !cx->allocator->events, "without a history nothing is noted");
    tn_close(cx);
}

/* With a ring too small for all, and with none, what lives is still all there. */
static void test_forgotten_events(void **unused) {
    (void)unused;
    for (int64_t size = -1; size <= 7; size += 8) {
        tn_context *cx = run_something(size);
        tn_memory_stats stats;
        tn_memory_stats_get(cx, &stats);
        tn_memory_timeline *t = tn_memory_timeline_new(cx);
        int64_t alive = 0;
        for (int64_t i = 0; i < t->n_lives; i++)
            if (t->lives[i].end_ns == UINT64_MAX) alive += t->lives[i].allocated_bytes;
        TN_TEST_WANT(alive == stats.all.allocated.current, "%lld bytes live of %lld", (long long)alive,
                     (long long)stats.all.allocated.current);
        TN_TEST_WANT(size < 0 ? t->n_events == 0 : t->n_lost > 0, "the ring is as small as was asked");
        tn_memory_timeline_free(t);
        TN_TEST_WANT(tn_memory_write_snapshot(cx, path) && tn_memory_write_trace(cx, path) && tn_memory_write_page(cx, path), "files");
        tn_test_ok(cx);
        tn_close(cx);
    }
}

static json_t *read_json(void) {
    json_error_t error;
    json_t *json = json_load_file(path, 0, &error);
    TN_TEST_WANT(json, "line %d: %s", error.line, error.text);
    return json;
}

static int64_t number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    TN_TEST_WANT(json_is_integer(value), "%s is missing", key);
    return json_integer_value(value);
}

static void check_segment(const json_t *segment) {
    int64_t at = number(segment, "address"), end = at + number(segment, "total_size"), active = 0;
    size_t i;
    json_t *block;
    json_array_foreach(json_object_get(segment, "blocks"), i, block) {
        TN_TEST_WANT(number(block, "address") == at, "blocks tile their segment");
        at += number(block, "size");
        if (strcmp(json_string_value(json_object_get(block, "state")), "inactive")) active += number(block, "size");
    }
    TN_TEST_WANT(at == end && active == number(segment, "active_size") && end < INT64_C(1) << 53, "a segment adds up");
}

static void test_snapshot(void **unused) {
    (void)unused;
    tn_context *cx = run_something(0);
    TN_TEST_WANT(tn_memory_write_snapshot(cx, path), "%s", tn_error(cx));
    json_t *snapshot = read_json(), *segment, *event;
    size_t i;
    json_array_foreach(json_object_get(snapshot, "segments"), i, segment) {
        check_segment(segment);
    }
    TN_TEST_WANT(i > 0, "there are segments");
    int64_t requested = 0, completed = 0, unknown = 0;
    json_array_foreach(json_array_get(json_object_get(snapshot, "device_traces"), 0), i, event) {
        const char *action = json_string_value(json_object_get(event, "action"));
        requested += !strcmp(action, "free_requested");
        completed += !strcmp(action, "free_completed");
        unknown += !strcmp(json_string_value(json_object_get(event, "category")), "unknown");
        TN_TEST_WANT(json_is_array(json_object_get(event, "frames")), "every event has frames");
    }
    TN_TEST_WANT(requested > 0 && requested == completed && unknown > 0, "%lld frees asked for, %lld done", (long long)requested,
                 (long long)completed);
    json_decref(snapshot);
    tn_close(cx);
}

static void test_trace(void **unused) {
    (void)unused;
    tn_context *cx = run_something(0);
    TN_TEST_WANT(tn_memory_write_trace(cx, path), "%s", tn_error(cx));
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    json_t *trace = read_json(), *event, *last = NULL;
    size_t i;
    double before = 0;
    int64_t open = 0;
    json_array_foreach(json_object_get(trace, "traceEvents"), i, event) {
        const char *phase = json_string_value(json_object_get(event, "ph"));
        open += !strcmp(phase, "b");
        open -= !strcmp(phase, "e");
        if (strcmp(phase, "C")) continue;
        double ts = json_number_value(json_object_get(event, "ts"));
        TN_TEST_WANT(ts >= before, "time goes forward");
        before = ts;
        last = json_object_get(event, "args");
    }
    TN_TEST_WANT(open == 0 && last, "every slice that begins ends");
    for (int c = 0; c < TN_CATEGORY_COUNT; c++)
        TN_TEST_WANT(number(last, tn_category_name((tn_category)c)) == stats.category[c].current, "the last counter is what is now");
    json_decref(trace);
    tn_close(cx);
}

static void test_csv_and_page(void **unused) {
    (void)unused;
    static char text[1 << 20];
    tn_context *cx = run_something(0);
    TN_TEST_WANT(tn_memory_write_csv(cx, path), "%s", tn_error(cx));
    FILE *file = fopen(path, "r");
    int64_t lines = 0;
    while (fgets(text, sizeof text, file)) lines++;
    fclose(file);
    tn_memory_timeline *t = tn_memory_timeline_new(cx);
    TN_TEST_WANT(lines == t->n_events + 1, "%lld lines for %lld events", (long long)lines, (long long)t->n_events);
    tn_memory_timeline_free(t);
    TN_TEST_WANT(tn_memory_write_page(cx, path), "%s", tn_error(cx));
    file = fopen(path, "r");
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    TN_TEST_WANT(n > 10000 && strstr(text, "\"lives\":[") && !strstr(text, "/*DATA*/"), "the page holds its data");
    char *script = strstr(text, "<script>"), *end = strstr(text, "</script>");
    TN_TEST_WANT(script && end && strstr(end + 1, "</script>") == NULL, "no label ends the script");
    tn_close(cx);
}

static void test_errors(void **unused) {
    (void)unused;
    tn_context *cx = run_something(0);
    TN_TEST_WANT(!tn_memory_write_page(cx, "/nowhere/at/all.html"), "a folder that is not there");
    tn_test_error(cx, TN_ERR_IO, "/nowhere");
    TN_TEST_WANT(!tn_memory_write_csv(cx, NULL), "no path");
    tn_test_error(cx, TN_ERR_ARGUMENT, "path");
    TN_TEST_WANT(!tn_memory_timeline_new(NULL), "no context");
    tn_close(cx);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_event), cmocka_unit_test(test_driver),     cmocka_unit_test(test_timeline),
        cmocka_unit_test(test_forms),       cmocka_unit_test(test_many_forms), cmocka_unit_test(test_forgotten_events),
        cmocka_unit_test(test_snapshot),    cmocka_unit_test(test_trace),      cmocka_unit_test(test_csv_and_page),
        cmocka_unit_test(test_errors),
    };
    int descriptor = mkstemp(path);
    if (descriptor >= 0) close(descriptor);
    int failed = tn_test_main("memory_export", tests, sizeof tests / sizeof *tests, argc, argv);
    remove(path);
    return failed;
}
