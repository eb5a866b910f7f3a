/* tenon-op, tenon-gradcheck, tenon-mem and hello as a user runs them: exit codes, what they say and where they say it. */
#include "harness.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libtensor/safetensors.h"
#include "ops/registry.h"

#define TENON_OP TN_TEST_BUILD "/examples/tenon-op"
#define TENON_GRADCHECK TN_TEST_BUILD "/examples/tenon-gradcheck"
#define TENON_MEM TN_TEST_BUILD "/examples/tenon-mem"
#define HELLO TN_TEST_BUILD "/examples/hello"
#define VECTORS TN_TEST_SOURCES "/tests/vectors/"

static char folder[64];
static char *out_text, *err_text;

/* ---- running a program ---- */

static char *read_all(const char *path) {
    FILE *stream = fopen(path, "rb");
    TN_TEST_WANT(stream, "can't read %s", path);
    fseek(stream, 0, SEEK_END);
    size_t n = (size_t)ftell(stream);
    rewind(stream);
    char *text = malloc(n + 1);
    TN_TEST_WANT(text && fread(text, 1, n, stream) == n, "can't read %s", path);
    text[n] = '\0';
    fclose(stream);
    return text;
}

static const char *const file_names[] = { "stdout", "stderr", "in.safetensors", "out.safetensors", "bad.safetensors" };
enum { N_FILES = sizeof file_names / sizeof *file_names };

/* One of file_names in the case's own folder. */
static const char *path_of(const char *name) {
    static char paths[N_FILES][128];
    int i = 0;
    while (i < N_FILES - 1 && strcmp(file_names[i], name) != 0) i++;
    snprintf(paths[i], sizeof paths[i], "%s/%s", folder, name);
    return paths[i];
}

/* Runs it and keeps its output in out_text and err_text; its exit code, or 128 + signal. */
static int run_to(const char *stdout_path, const char *const *arguments) {
    const char *err_path = path_of("stderr");
    pid_t child = fork();
    if (child == 0) {
        int out = open(stdout_path, O_WRONLY | O_CREAT | O_TRUNC, 0600), err = open(err_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(out, STDOUT_FILENO);
        dup2(err, STDERR_FILENO);
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    int status = 0;
    TN_TEST_WANT(child > 0 && waitpid(child, &status, 0) == child, "can't run %s", arguments[0]);
    free(out_text);
    free(err_text);
    out_text = strncmp(stdout_path, "/dev/", 5) == 0 ? strdup("") : read_all(stdout_path);
    err_text = read_all(err_path);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
#define RUN(...) run_to(path_of("stdout"), (const char *const[]){ __VA_ARGS__, NULL })
#define WANT_CODE(code, ...)                                                                                    \
    do {                                                                                                        \
        int got = RUN(__VA_ARGS__);                                                                             \
        TN_TEST_WANT(got == (code), "exit code %d, wanted %d; it said: %s%s", got, (code), err_text, out_text); \
    } while (0)
#define WANT_REFUSAL(words, ...)                                                                          \
    do {                                                                                                  \
        WANT_CODE(2, __VA_ARGS__);                                                                        \
        TN_TEST_WANT(strstr(err_text, words), "wanted '%s' on standard error, got: %s", words, err_text); \
        TN_TEST_WANT(!out_text[0], "an error on standard output: %s", out_text);                          \
    } while (0)

static void want_text(const char *text, const char *words) { TN_TEST_WANT(strstr(text, words), "wanted '%s' in: %.600s", words, text); }

static int count_lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

static int set_up(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/tenon-programs-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    for (int i = 0; i < N_FILES; i++) remove(path_of(file_names[i]));
    free(out_text);
    free(err_text);
    out_text = err_text = NULL;
    return rmdir(folder);
}

/* ---- what every program does ---- */

static void test_help_and_version(void **state) {
    (void)state;
    static const char *const programs[] = { TENON_OP, TENON_GRADCHECK };
    for (int i = 0; i < 2; i++) {
        WANT_CODE(0, programs[i], "--help");
        want_text(out_text, "usage: ");
        want_text(out_text, "--device");
        TN_TEST_WANT(!err_text[0], "help on standard error: %s", err_text);
        WANT_CODE(0, programs[i], "--version");
        want_text(out_text, tn_version());
    }
}

static void test_options(void **state) {
    (void)state;
    WANT_REFUSAL("'--frobnicate'", TENON_OP, "--frobnicate");
    WANT_REFUSAL("'--frobnicate'", TENON_OP, "--frobnicate=3");
    WANT_REFUSAL("'-x'", TENON_OP, "-x");
    WANT_REFUSAL("--json", TENON_OP, "--list", "--json=yes");
    WANT_REFUSAL("--json", TENON_OP, "--json");
    WANT_REFUSAL("--in", TENON_OP, "act", "--out", "o", "--in");
    WANT_REFUSAL("--dtype", TENON_OP, "--check", VECTORS "swiglu.safetensors", "--dtype", "f16");
    WANT_REFUSAL("f64, f32, bf16", TENON_OP, "--check", VECTORS "swiglu.safetensors", "--dtype=f16");
    WANT_REFUSAL("no device is called 'tpu'", TENON_OP, "--check", VECTORS "swiglu.safetensors", "--device", "tpu");
    WANT_REFUSAL("which op", TENON_OP);
    WANT_REFUSAL("'act'", TENON_OP, "--list", "act");
    WANT_REFUSAL("--list", TENON_OP, "--list", "--in", "x");
    WANT_REFUSAL("'relu'", TENON_OP, "act", "relu", "--in", "x", "--out", "y");
    WANT_REFUSAL("'--frobnicate'", TENON_GRADCHECK, "--frobnicate");
    WANT_REFUSAL("--seed", TENON_GRADCHECK, "--seed", "many");
    WANT_REFUSAL("no device is called 'tpu'", TENON_GRADCHECK, "--device", "tpu");
}

static void test_full_disk(void **state) {
    (void)state;
    if (access("/dev/full", W_OK) != 0) skip();
    int code = run_to("/dev/full", (const char *const[]){ TENON_OP, "--list", NULL });
    TN_TEST_WANT(code == 1, "exit code %d for output that could not be written", code);
    want_text(err_text, "standard output");
}

/* ---- tenon-op --list ---- */

static void test_list(void **state) {
    (void)state;
    WANT_CODE(0, TENON_OP, "--list");
    want_text(out_text, "cuda");
    want_text(out_text, "\nact: ");
    want_text(out_text, "act = none|relu|sigmoid|silu|gelu|tanh|softmax (none)");
    if (*tn_cuda_unavailable_reason()) {
        want_text(out_text, "cuda is off: ");
        want_text(out_text, tn_cuda_unavailable_reason());
    }
}

static void test_list_json(void **state) {
    (void)state;
    json_error_t error;
    WANT_CODE(0, TENON_OP, "--list", "--json");
    json_t *root = json_loads(out_text, JSON_REJECT_DUPLICATES, &error);
    TN_TEST_WANT(root, "not JSON: %s in line %d", error.text, error.line);
    const json_t *ops = json_object_get(root, "ops");
    TN_TEST_WANT((int)json_array_size(ops) == tn_op_count(), "%d ops, wanted %d", (int)json_array_size(ops), tn_op_count());
    for (size_t i = 0; i < json_array_size(ops); i++) {
        const json_t *op = json_array_get(ops, i);
        const tn_op_def *def = tn_op_find(json_string_value(json_object_get(op, "name")));
        TN_TEST_WANT(def, "op %d of the list is not registered", (int)i);
        TN_TEST_WANT((int)json_array_size(json_object_get(op, "inputs")) == def->n_inputs, "%s has other inputs", def->name);
        TN_TEST_WANT((int)json_array_size(json_object_get(op, "attributes")) == def->n_attrs, "%s has other attributes", def->name);
        TN_TEST_WANT(json_object_get(json_object_get(op, "devices"), "cpu"), "%s does not run on the CPU", def->name);
    }
    const json_t *cuda = json_array_get(json_object_get(root, "devices"), 1);
    bool usable = !*tn_cuda_unavailable_reason();
    TN_TEST_WANT(json_boolean_value(json_object_get(cuda, "usable")) == usable, "cuda is said to be %s", usable ? "off" : "usable");
    if (!usable) TN_TEST_WANT(json_string_length(json_object_get(cuda, "reason")) > 0, "no reason why cuda is off");
    json_decref(root);
}

/* ---- tenon-op OP ---- */

static double *load(tn_context *cx, const char *path, const char *name, int64_t *n) {
    tn_file *file = tn_file_open(cx, path);
    tn_tensor *t = tn_file_load(file, name);
    tn_test_ok(cx);
    double *values = tn_test_doubles(t);
    *n = t->numel;
    tn_file_close(file);
    return values;
}

static void want_same(tn_context *cx, const char *expected_path, const char *expected_name, const char *actual_path,
                      const char *actual_name, double tolerance) {
    int64_t n_expected, n_actual;
    double *expected = load(cx, expected_path, expected_name, &n_expected), *actual = load(cx, actual_path, actual_name, &n_actual);
    TN_TEST_WANT(n_expected == n_actual, "%s has %lld elements, wanted %lld", actual_name, (long long)n_actual, (long long)n_expected);
    tn_test_close(expected, actual, n_actual, tolerance, actual_name);
    free(expected);
    free(actual);
}

static void test_run(void **state) {
    (void)state;
    const char *vector = VECTORS "act_silu.safetensors", *out = path_of("out.safetensors");
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    WANT_CODE(0, TENON_OP, "act", "--in", vector, "--out", out, "--set", "act=silu", "--backward", "--device", "cpu");
    want_same(cx, vector, "out.o", out, "out.o", 1e-9);
    want_same(cx, vector, "grad.x", out, "grad.x", 1e-9);
    WANT_CODE(0, TENON_OP, "act", "--in", vector, "--out", out, "--set", "act=silu", "--dtype", "f32");
    want_same(cx, vector, "out.o", out, "out.o", 3e-5);
    tn_file *file = tn_file_open(cx, out);
    TN_TEST_WANT(file && tn_file_count(file) == 1, "without --backward there are %lld tensors", (long long)tn_file_count(file));
    TN_TEST_WANT(tn_file_entry_at(file, 0)->dtype == TN_F32, "--dtype f32 gave %s", tn_dtype_name(tn_file_entry_at(file, 0)->dtype));
    tn_file_close(file);
    tn_close(cx);
}

/* Without grad_out.o in the file the upstream gradient is ones. */
static void test_run_with_ones(void **state) {
    (void)state;
    const char *in = path_of("in.safetensors"), *out = path_of("out.safetensors");
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    tn_tensor *x = tn_from_data(cx, TN_F64, TN_SHAPE(4), (const double[]){ -1, 0.5, 2, -3 });
    TN_TEST_WANT(tn_file_save(cx, in, &(tn_named_tensor){ "x", x }, 1, NULL, 0), "%s", tn_error(cx));
    WANT_CODE(0, TENON_OP, "act", "--in", in, "--out", out, "--set=act=relu", "--backward");
    int64_t n;
    double *gradient = load(cx, out, "grad.x", &n);
    const double expected[] = { 0, 1, 1, 0 };
    tn_test_near(expected, gradient, 4, 0, 0, "grad.x");
    free(gradient);
    tn_close(cx);
}

static void test_run_repeated_input(void **state) {
    (void)state;
    const char *in = path_of("in.safetensors"), *out = path_of("out.safetensors");
    const double ones[] = { 1, 1 }, expected[] = { -1, 0.5, 2, -3 };
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    tn_tensor *first = tn_from_data(cx, TN_F64, TN_SHAPE(2), expected), *second = tn_from_data(cx, TN_F64, TN_SHAPE(2), expected + 2);
    const tn_named_tensor tensors[] = { { "x.1", second }, { "x.0", first } };
    TN_TEST_WANT(tn_file_save(cx, in, tensors, 2, NULL, 0), "%s", tn_error(cx));
    WANT_CODE(0, TENON_OP, "concat", "--in", in, "--out", out, "--backward");
    int64_t n;
    double *o = load(cx, out, "out.o", &n), *gradient = load(cx, out, "grad.x.1", &n);
    tn_test_near(expected, o, 4, 0, 0, "out.o");
    tn_test_near(ones, gradient, 2, 0, 0, "grad.x.1");
    free(o);
    free(gradient);
    tn_close(cx);
}

/* Integers stay what they are, floats take the dtype asked for, and what has no gradient says so. */
static void test_run_mixed_inputs(void **state) {
    (void)state;
    const char *in = path_of("in.safetensors"), *out = path_of("out.safetensors");
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    const tn_named_tensor tensors[] = { { "weight", tn_full(cx, TN_F64, TN_SHAPE(4, 3), 2) },
                                        { "index", tn_from_data(cx, TN_I64, TN_SHAPE(2), (const int64_t[]){ 3, 0 }) } };
    TN_TEST_WANT(tn_file_save(cx, in, tensors, 2, NULL, 0), "%s", tn_error(cx));
    WANT_CODE(0, TENON_OP, "embedding", "--in", in, "--out", out, "--backward", "--dtype", "bf16");
    tn_file *file = tn_file_open(cx, out);
    tn_test_ok(cx);
    const tn_file_entry *gradient = tn_file_find(file, "grad.weight");
    TN_TEST_WANT(tn_file_count(file) == 2 && gradient && gradient->dtype == TN_BF16, "wanted out.o and a bf16 grad.weight");
    tn_file_close(file);
    TN_TEST_WANT(tn_file_save(cx, in, &(tn_named_tensor){ "x", tensors[0].tensor }, 1, NULL, 0), "%s", tn_error(cx));
    WANT_REFUSAL("gradient", TENON_OP, "argmax", "--in", in, "--out", out, "--backward");
    tn_close(cx);
}

static void test_run_refusals(void **state) {
    (void)state;
    const char *vector = VECTORS "act_silu.safetensors", *out = path_of("out.safetensors"), *bad = path_of("bad.safetensors");
    WANT_REFUSAL("no op 'frobnicate'", TENON_OP, "frobnicate", "--in", vector, "--out", out);
    WANT_REFUSAL("--out", TENON_OP, "act", "--in", vector);
    WANT_REFUSAL("--in", TENON_OP, "act", "--out", out);
    WANT_REFUSAL("no attribute 'frobnicate'", TENON_OP, "act", "--in", vector, "--out", out, "--set", "frobnicate=1");
    WANT_REFUSAL("KEY=VALUE", TENON_OP, "act", "--in", vector, "--out", out, "--set", "act");
    WANT_REFUSAL("softmax", TENON_OP, "act", "--in", vector, "--out", out, "--set", "act=frobnicate");
    WANT_REFUSAL("dim", TENON_OP, "act", "--in", vector, "--out", out, "--set", "act=softmax", "--set", "dim=7");
    WANT_REFUSAL("a whole number", TENON_OP, "act", "--in", vector, "--out", out, "--set", "dim=1.5");
    WANT_REFUSAL("nowhere", TENON_OP, "act", "--in", "/nowhere/x.safetensors", "--out", out);
    WANT_REFUSAL("act has the inputs x", TENON_OP, "act", "--in", VECTORS "cross_entropy.safetensors", "--out", out);
    TN_TEST_WANT(access(out, F_OK) != 0, "a failed run left %s", out);

    FILE *stream = fopen(bad, "wb");
    TN_TEST_WANT(stream && fputs("this is no safetensors file", stream) >= 0 && fclose(stream) == 0, "can't write %s", bad);
    WANT_REFUSAL("bad.safetensors", TENON_OP, "act", "--in", bad, "--out", out);
    WANT_REFUSAL("bad.safetensors", TENON_OP, "--check", bad);
    WANT_CODE(1, TENON_OP, "act", "--in", vector, "--out", "/nowhere/y.safetensors");
    want_text(err_text, "nowhere");
}

/* ---- tenon-op --check ---- */

static void test_check(void **state) {
    (void)state;
    static const char *const dtypes[] = { "f64", "f32", "bf16" };
    for (int i = 0; i < 3; i++) {
        WANT_CODE(0, TENON_OP, "--check", VECTORS "act_gelu.safetensors", VECTORS "act_softmax_1.safetensors", "--dtype", dtypes[i]);
        TN_TEST_WANT(count_lines(out_text) == 4, "wanted a line for each of 4 tensors, got: %s", out_text);
        want_text(out_text, "out.o");
        want_text(out_text, "grad.x");
        want_text(out_text, dtypes[i]);
    }
    WANT_CODE(0, TENON_OP, "--check", VECTORS "act_gelu.safetensors");
    want_text(out_text, "f64");
}

/* A copy of act_relu with out.o replaced; its exit code under --check. */
static int check_with_output(tn_context *cx, double first, bool zeros, const char *op_name) {
    const char *path = path_of("in.safetensors");
    tn_file *file = tn_file_open(cx, VECTORS "act_relu.safetensors");
    tn_tensor *x = tn_file_load(file, "x"), *o = tn_file_load(file, "out.o");
    tn_file_close(file);
    double *values = tn_test_doubles(o);
    for (int64_t i = 0; i < o->numel && zeros; i++) values[i] = 0;
    values[0] = first;
    if (zeros) tn_fill(x, -1);
    tn_set_data(o, values, tn_bytes(o));
    free(values);
    const tn_named_tensor tensors[] = { { "x", x }, { "out.o", o } };
    const tn_named_text metadata[] = { { "op", op_name }, { "attrs", "{\"act\": \"relu\"}" } };
    TN_TEST_WANT(tn_file_save(cx, path, tensors, 2, metadata, op_name ? 2 : 0), "%s", tn_error(cx));
    return RUN(TENON_OP, "--check", path);
}

static void test_check_judges(void **state) {
    (void)state;
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu" });
    TN_TEST_WANT(check_with_output(cx, 1e-3, false, "act") == 1, "a wrong value passed: %s", out_text);
    want_text(out_text, "FAILED");
    TN_TEST_WANT(check_with_output(cx, (double)NAN, false, "act") == 1, "a NaN passed: %s", out_text);
    TN_TEST_WANT(check_with_output(cx, (double)INFINITY, false, "act") == 1, "an Inf passed: %s", out_text);
    TN_TEST_WANT(check_with_output(cx, 0, true, "act") == 0, "zeros where zeros are expected failed: %s%s", out_text, err_text);
    TN_TEST_WANT(check_with_output(cx, 1e-8, true, "act") == 1, "1e-8 beside an expected norm of 1e-8 passed: %s", out_text);
    TN_TEST_WANT(check_with_output(cx, 1, false, "frobnicate") == 2, "an unknown op was not refused: %s", out_text);
    want_text(err_text, "no op 'frobnicate'");
    TN_TEST_WANT(check_with_output(cx, 1, false, NULL) == 2, "a file without an op was not refused: %s", out_text);
    tn_close(cx);
}

static void test_check_goes_on(void **state) {
    (void)state;
    WANT_CODE(2, TENON_OP, "--check", "/nowhere/x.safetensors", VECTORS "act_relu.safetensors");
    want_text(err_text, "/nowhere/x.safetensors");
    TN_TEST_WANT(count_lines(out_text) == 2, "the file after the bad one was not checked: %s", out_text);
    WANT_REFUSAL("at least one file", TENON_OP, "--check");
}

/* ---- tenon-gradcheck ---- */

static void test_gradcheck(void **state) {
    (void)state;
    WANT_CODE(0, TENON_GRADCHECK, "--list", "act");
    want_text(out_text, "act/softmax-last\n");
    TN_TEST_WANT(!strstr(out_text, "bad-dim"), "an error sample is listed: %s", out_text);
    WANT_CODE(0, TENON_GRADCHECK, "act/silu", "act/soft*-last", "--device", "cpu");
    want_text(out_text, "act/silu full");
    want_text(out_text, "act/softmax-last projected");
    want_text(out_text, "2 passed, 0 failed\n");
    WANT_REFUSAL("'frobnicate'", TENON_GRADCHECK, "frobnicate");
}

/* ---- tenon-mem ---- */

static void test_mem(void **state) {
    (void)state;
    WANT_CODE(0, TENON_MEM, "--device=cpu", "--task=uniform", "--layers=2", "--width=32", "--heads=2", "--context=32", "--batch=2",
              "--rows=3");
    want_text(out_text, "differences: 0 bytes");
    want_text(out_text, ": +0.000%");
    want_text(out_text, "layer.1/");
    want_text(out_text, "largest owners first (3 of");
    want_text(out_text, "how the peak grows");
    WANT_CODE(0, TENON_MEM, "--device=cpu", "--op", "rms_norm", "--set", "eps=0.01", "--csv", path_of("out.safetensors"));
    want_text(out_text, "differences: 0 bytes");
    char *events = read_all(path_of("out.safetensors"));
    want_text(events, "time_ns,event,");
    free(events);
    WANT_REFUSAL("'frobnicate'", TENON_MEM, "--device=cpu", "--op=frobnicate");
    WANT_REFUSAL("--repeat", TENON_MEM, "--device=cpu", "--repeat=0");
    WANT_REFUSAL("--set", TENON_MEM, "--device=cpu", "--op=rms_norm", "--set", "frob=1");
}

/* ---- hello ---- */

static void test_hello(void **state) {
    (void)state;
    double first = 0, last = 0;
    int n = 0;
    WANT_CODE(0, HELLO);
    for (const char *at = out_text; (at = strstr(at, "loss ")); at += 5) {
        last = strtod(at + 5, NULL);
        if (n++ == 0) first = last;
    }
    TN_TEST_WANT(n >= 2 && last < 0.1 * first && last >= 0, "the loss went from %g to %g in: %s", first, last, out_text);
}

int main(int argc, char **argv) {
#define CASE(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest cases[] = {
        CASE(test_help_and_version), CASE(test_options),      CASE(test_full_disk),     CASE(test_list),
        CASE(test_list_json),        CASE(test_run),          CASE(test_run_with_ones), CASE(test_run_repeated_input),
        CASE(test_run_mixed_inputs), CASE(test_run_refusals), CASE(test_check),         CASE(test_check_judges),
        CASE(test_check_goes_on),    CASE(test_gradcheck),    CASE(test_mem),           CASE(test_hello),
    };
    return tn_test_main("test_programs", cases, sizeof cases / sizeof *cases, argc, argv);
}
