/* The reference vectors: results made outside this code base, one case per file and dtype. A file of an op that is not
 * registered is skipped. */
#include "harness.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "autograd/autograd.h"
#include "ops/op_file.h"
#include "ops/registry.h"
#include "ops/sample_inputs.h"

static const struct {
    tn_dtype dtype;
    double tolerance;
} precisions[] = { { TN_F64, 1e-9 }, { TN_F32, 3e-5 }, { TN_BF16, 2.5e-2 } };
enum { N_PRECISIONS = sizeof precisions / sizeof *precisions };

typedef struct vector_case {
    const char *path;
    int precision;
    char name[160];
} vector_case;

static int n_compared;

static void compare(const tn_file *file, const char *kind, const char *name, const tn_tensor *actual, double tolerance) {
    char full_name[TN_OP_NAME_BYTES + 8];
    snprintf(full_name, sizeof full_name, "%s.%s", kind, name);
    const tn_file_entry *entry = tn_file_find(file, full_name);
    if (!entry) return;
    TN_TEST_WANT(actual, "%s was not made", full_name);
    tn_tensor *stored = tn_file_load(file, full_name);
    TN_TEST_WANT(stored && tn_same_shape(stored, actual), "%s has another shape than the file's", full_name);
    double *expected = tn_test_doubles(stored), *got = tn_test_doubles(actual);
    tn_test_close(expected, got, actual->numel, tolerance, full_name);
    for (int64_t i = 0; i < actual->numel; i++)
        TN_TEST_WANT(got[i] - got[i] == 0, "%s: element %lld is %g", full_name, (long long)i, got[i]);
    free(expected);
    free(got);
    n_compared++;
}

static void run_file(tn_context *cx, const tn_file *file, const tn_op_def *op, const vector_case *c) {
    tn_tensor *in[TN_OP_MAX_INPUTS], *out[TN_OP_MAX_OUTPUTS];
    tn_op_args_buffer args;
    char reason[256];
    int n_in;
    double tolerance = precisions[c->precision].tolerance;
    TN_TEST_WANT(tn_op_set_attrs_json(op, &args, tn_file_metadata(file, "attrs"), reason, sizeof reason), "attrs: %s", reason);
    tn_op_file_inputs(cx, file, op, &precisions[c->precision].dtype, true, in, &n_in);
    tn_test_ok(cx);
    tn_apply(op, in, n_in, &args, out);
    tn_test_ok(cx);
    tn_op_file_backward(file, op, out);
    tn_test_ok(cx);
    for (int i = 0; i < op->n_outputs; i++) compare(file, "out", op->outputs[i].name, out[i], tolerance);
    for (int i = 0; i < n_in; i++) {
        char name[TN_OP_NAME_BYTES];
        if (in[i]) compare(file, "grad", tn_op_file_input_name(op, i, name), tn_grad(in[i]), tolerance);
    }
}

static int64_t count_expected(const tn_file *file) {
    int64_t n = 0;
    for (int64_t i = 0; i < tn_file_count(file); i++) {
        const char *name = tn_file_entry_at(file, i)->name;
        n += strncmp(name, "out.", 4) == 0 || strncmp(name, "grad.", 5) == 0;
    }
    return n;
}

static void test_vector(void **state) {
    const vector_case *c = *state;
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_test_ok(cx);
    tn_file *file = tn_file_open(cx, c->path);
    tn_test_ok(cx);
    const char *op_name = tn_file_metadata(file, "op");
    TN_TEST_WANT(op_name, "%s names no op", c->path);
    const tn_op_def *op = tn_op_find(op_name);
    tn_test_note("%s, attrs %s", c->path, tn_file_metadata(file, "attrs"));
    n_compared = 0;
    if (op) {
        run_file(cx, file, op, c);
        TN_TEST_WANT(n_compared == count_expected(file), "%d of %lld expected results were compared", n_compared,
                     (long long)count_expected(file));
    }
    tn_file_close(file);
    tn_close(cx);
    if (!op) skip();
}

int main(int argc, char **argv) {
    glob_t files;
    const char *pattern = TN_TEST_SOURCES "/tests/vectors/*.safetensors";
    if (glob(pattern, 0, NULL, &files) != 0) {
        fprintf(stderr, "test_vectors: no file is called %s\n", pattern);
        return EXIT_FAILURE;
    }
    size_t n = files.gl_pathc * N_PRECISIONS;
    vector_case *cases = calloc(n, sizeof *cases);
    struct CMUnitTest *tests = calloc(n, sizeof *tests);
    if (!cases || !tests) return EXIT_FAILURE;
    for (size_t i = 0; i < n; i++) {
        vector_case *c = &cases[i];
        *c = (vector_case){ .path = files.gl_pathv[i / N_PRECISIONS], .precision = (int)(i % N_PRECISIONS) };
        const char *base = strrchr(c->path, '/') + 1;
        snprintf(c->name, sizeof c->name, "%.*s/%s", (int)strcspn(base, "."), base, tn_dtype_name(precisions[c->precision].dtype));
        tests[i] = (struct CMUnitTest){ .name = c->name, .test_func = test_vector, .initial_state = c };
    }
    int code = tn_test_main("test_vectors", tests, n, argc, argv);
    free(tests);
    free(cases);
    globfree(&files);
    return code;
}
