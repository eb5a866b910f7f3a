#include "harness.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

enum { EXIT_USAGE = 2, EXIT_SKIPPED = 77 };

static const int crash_signals[] = { SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGSYS };
#define N_CRASH_SIGNALS (sizeof crash_signals / sizeof *crash_signals)

typedef struct running_case {
    const struct CMUnitTest *test;
    void *state;
    bool passed, skipped;
} running_case;

static struct {
    const char *program;
    running_case *running;
    char note[512];
    struct sigaction crash_actions[N_CRASH_SIGNALS]; /* those in force before CMocka's */
} now;

/* ---- running ---- */

static int set_up_case(void **state) {
    running_case *running = *state;
    now.running = running;
    now.note[0] = '\0';
    running->state = running->test->initial_state;
    return running->test->setup_func ? running->test->setup_func(&running->state) : 0;
}

static void run_case(void **state) {
    running_case *running = *state;
#if defined(__SANITIZE_ADDRESS__)
    /* CMocka catches crashes to go on with the next case; the sanitizer's report is worth more. */
    for (size_t i = 0; i < N_CRASH_SIGNALS; i++) sigaction(crash_signals[i], &now.crash_actions[i], NULL);
#endif
    running->test->test_func(&running->state);
    running->passed = true;
}

/* CMocka comes here however the case ended, after a crash too. */
static int tear_down_case(void **state) {
    running_case *running = *state;
    if (!running->passed && !running->skipped) {
        if (now.note[0]) print_error("at the time: %s\n", now.note);
        print_error("rerun: %s --filter '%s'\n", now.program, running->test->name);
    }
    return running->test->teardown_func ? running->test->teardown_func(&running->state) : 0;
}

static void append_counts(size_t passed, size_t failed, size_t skipped) {
    const char *path = getenv("TENON_TEST_COUNTS");
    if (!path || !*path) return;
    const char *slash = strrchr(now.program, '/'), *name = slash ? slash + 1 : now.program;
    char text[256];
    int length = snprintf(text, sizeof text, "%.128s %zu %zu %zu\n", name, passed, failed, skipped);
    /* One write to a file opened for appending: lines of programs that run at once don't mix. */
    int descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0 || write(descriptor, text, (size_t)length) != length) fprintf(stderr, "%s: can't write %s\n", name, path);
    if (descriptor >= 0) close(descriptor);
}

static int run_selected(const char *name, const struct CMUnitTest *selected, running_case *running, size_t n) {
    for (size_t i = 0; i < N_CRASH_SIGNALS; i++) sigaction(crash_signals[i], NULL, &now.crash_actions[i]);
    int result = _cmocka_run_group_tests(name, selected, n, NULL, NULL);
    size_t failed = result < 0 ? n : (size_t)result, skipped = 0;
    for (size_t i = 0; i < n; i++) skipped += running[i].skipped;
    size_t passed = failed + skipped < n ? n - failed - skipped : 0;
#if defined(__SANITIZE_ADDRESS__)
    /* A case that failed had no chance to free what it held. */
    if (failed == 0 && __lsan_do_recoverable_leak_check()) failed++;
#endif
    append_counts(passed, failed, skipped);
    return failed ? EXIT_FAILURE : passed == 0 && skipped > 0 ? EXIT_SKIPPED : EXIT_SUCCESS;
}

static int run_matching(const char *name, const struct CMUnitTest *cases, size_t n_cases, const char *filter) {
    struct CMUnitTest *selected = calloc(n_cases + 1, sizeof *selected);
    running_case *running = calloc(n_cases + 1, sizeof *running);
    size_t n = 0;
    int code = EXIT_FAILURE;
    for (size_t i = 0; selected && running && i < n_cases; i++) {
        if (filter && fnmatch(filter, cases[i].name, 0) != 0) continue;
        running[n].test = &cases[i];
        selected[n] = (struct CMUnitTest){ cases[i].name, run_case, set_up_case, tear_down_case, &running[n] };
        n++;
    }
    if (!selected || !running) fprintf(stderr, "%s: no memory for %zu cases\n", name, n_cases);
    else if (n == 0) fprintf(stderr, "%s: no case matches '%s'\n", name, filter ? filter : "*"), code = EXIT_USAGE;
    else code = run_selected(name, selected, running, n);
    free(selected);
    free(running);
    return code;
}

int tn_test_main(const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc, char **argv) {
    now.program = argv[0];
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < n_cases; i++) puts(cases[i].name);
        return EXIT_SUCCESS;
    }
    if (argc == 3 && strcmp(argv[1], "--filter") == 0) return run_matching(name, cases, n_cases, argv[2]);
    if (argc == 1) return run_matching(name, cases, n_cases, NULL);
    fprintf(stderr, "%s: unknown arguments from '%s' on; usage: %s [--list | --filter GLOB]\n", name, argv[1], argv[0]);
    return EXIT_USAGE;
}

int tn_test_main_in_folder(char folder[TN_TEST_FOLDER_BYTES], const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc,
                           char **argv) {
    char command[TN_TEST_FOLDER_BYTES + 16];
    snprintf(folder, TN_TEST_FOLDER_BYTES, "/tmp/tenon-test.XXXXXX");
    if (!mkdtemp(folder)) return perror(folder), 1;
    int code = tn_test_main(name, cases, n_cases, argc, argv);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command) == 0 ? code : 1;
}

const char *tn_test_device(void) {
    const char *device = getenv("TENON_TEST_DEVICE");
    return device && *device ? device : "cpu";
}

void tn_test_skip(const char *file, int line) {
    now.running->skipped = true;
    _skip(file, line);
    abort(); /* not reached; CMocka does not say so */
}

/* ---- failing ---- */

void tn_test_note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(now.note, sizeof now.note, format, arguments);
    va_end(arguments);
}

void tn_test_fail(const char *file, int line, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    print_error("%s:%d: %s%s%s\n", file, line, text, now.note[0] ? "; " : "", now.note);
    now.note[0] = '\0';
    _fail(file, line);
    abort(); /* not reached */
}

void tn_test_ok_at(const char *file, int line, const tn_context *cx) {
    if (!cx) tn_test_fail(file, line, "there is no context");
    else if (tn_failed(cx)) tn_test_fail(file, line, "unexpected error: %s", tn_error(cx));
}

void tn_test_error_at(const char *file, int line, tn_context *cx, tn_status status, const char *words) {
    if (tn_error_status(cx) != status)
        tn_test_fail(file, line, "wanted %s, got %s: %s", tn_status_name(status), tn_status_name(tn_error_status(cx)), tn_error(cx));
    if (words && !strstr(tn_error(cx), words)) tn_test_fail(file, line, "wanted '%s' in the error, got: %s", words, tn_error(cx));
    tn_clear_error(cx);
}

/* ---- comparing ---- */

/* 0 for equal values, NaN meets NaN included; infinite where only one of them is finite. */
static double difference(double expected, double actual) {
    if (expected == actual || (isnan(expected) && isnan(actual))) return 0;
    double d = fabs(actual - expected);
    return isnan(d) ? INFINITY : d;
}

double tn_test_relative_l2(const double *expected, const double *actual, int64_t n) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = difference(expected[i], actual[i]);
        error += d * d;
        if (isfinite(expected[i])) norm += expected[i] * expected[i];
    }
    return norm > 0 ? sqrt(error / norm) : sqrt(error);
}

void tn_test_close_at(const char *file, int line, const double *expected, const double *actual, int64_t n, double tolerance,
                      const char *what) {
    double relative = tn_test_relative_l2(expected, actual, n);
    if (relative <= tolerance) return;
    int64_t worst = 0;
    for (int64_t i = 0; i < n; i++)
        if (difference(expected[i], actual[i]) > difference(expected[worst], actual[worst])) worst = i;
    tn_test_fail(file, line,
                 "%s: relative L2 error %.3g of %lld elements is %.3g times the tolerance %.3g; worst at %lld: got %.17g, wanted %.17g",
                 what, relative, (long long)n, relative / tolerance, tolerance, (long long)worst, actual[worst], expected[worst]);
}

static double share_of_tolerance(double expected, double actual, double atol, double rtol) {
    double d = difference(expected, actual);
    if (d == 0) return 0;
    double allowed = atol + rtol * (isfinite(expected) ? fabs(expected) : 0);
    return allowed > 0 ? d / allowed : INFINITY;
}

void tn_test_near_at(const char *file, int line, const double *expected, const double *actual, int64_t n, double atol, double rtol,
                     const char *what) {
    int64_t worst = -1, n_wrong = 0;
    double worst_share = 1;
    for (int64_t i = 0; i < n; i++) {
        double share = share_of_tolerance(expected[i], actual[i], atol, rtol);
        n_wrong += share > 1;
        if (share > worst_share) worst_share = share, worst = i;
    }
    if (worst < 0) return;
    tn_test_fail(
        file, line,
        "%s: %lld of %lld elements are off; worst at %lld, %.3g times the tolerance: got %.17g, wanted %.17g (atol %.3g, rtol %.3g)", what,
        (long long)n_wrong, (long long)n, (long long)worst, worst_share, actual[worst], expected[worst], atol, rtol);
}

static double element_as_double(const unsigned char *bytes, tn_dtype dtype, int64_t i) {
    union {
        double f64;
        float f32;
        uint32_t bits;
        int64_t i64;
        int32_t i32;
        unsigned char u8;
    } value = { .i64 = 0 };
    size_t size = tn_dtype_size(dtype);
    memcpy(&value, bytes + (size_t)i * size, size);
    switch (dtype) {
    case TN_F64: return value.f64;
    case TN_F32: return (double)value.f32;
    case TN_BF16: value.bits <<= 16; return (double)value.f32;
    case TN_I64: return (double)value.i64;
    case TN_I32: return value.i32;
    default: return value.u8;
    }
}

double *tn_test_doubles(const tn_tensor *t) {
    if (!t) tn_test_fail(__FILE__, __LINE__, "there is no tensor to read");
    size_t n_bytes = tn_bytes(t);
    unsigned char *bytes = malloc(n_bytes + 1);
    double *values = malloc((size_t)t->numel * sizeof *values + 1);
    bool read = bytes && values && tn_to_data(t, bytes, n_bytes);
    for (int64_t i = 0; read && i < t->numel; i++) values[i] = element_as_double(bytes, t->dtype, i);
    free(bytes);
    if (read) return values;
    free(values);
    tn_test_fail(__FILE__, __LINE__, "a tensor can't be read: %s", tn_error(t->cx));
}
