/* tenon-op --check: reruns files that hold expected results. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op_file.h"
#include "op_program.h"
#include "sample_inputs.h"

static double tolerance_of(tn_dtype dtype) { return dtype == TN_F64 ? 1e-9 : dtype == TN_F32 ? 3e-5 : 2.5e-2; }

typedef struct checking {
    const char *path;
    const tn_file *file;
    tn_context *cx;
    const tn_op_def *op;
    tn_dtype dtype; /* of the data: decides the tolerance */
    int n_compared, n_wrong;
} checking;

/* ---- comparing ---- */

static double *read_doubles(const tn_tensor *t) {
    tn_tensor *wide = tn_assign(tn_empty(t->cx, TN_F64, tn_shape_of(t)), t);
    double *values = wide ? malloc(tn_bytes(wide) + 1) : NULL;
    if (values && tn_to_data(wide, values, tn_bytes(wide))) return values;
    free(values);
    return NULL;
}

/* ||actual - expected|| / ||expected||, or the plain difference where nothing is expected but zeros. NaN and Inf anywhere give NaN. */
static double relative_error(const double *expected, const double *actual, int64_t n) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = actual[i] - expected[i];
        error += d * d;
        norm += expected[i] * expected[i];
    }
    return norm > 0 ? sqrt(error / norm) : sqrt(error);
}

static void print_line(checking *check, const char *name, double error, const char *problem) {
    bool within = !problem && error <= tolerance_of(check->dtype);
    check->n_compared++;
    check->n_wrong += !within;
    printf("%s %s %s ", check->path, name, tn_dtype_name(check->dtype));
    if (problem) printf("- FAILED: %s\n", problem);
    else if (within) printf("%.3e ok\n", error);
    else printf("%.3e FAILED: more than %.1e\n", error, tolerance_of(check->dtype));
}

/* Compares one result with what the file expects; fine where it expects nothing. False if something could not be read. */
static bool compare(checking *check, const char *kind, const char *name, const tn_tensor *actual) {
    char full_name[TN_OP_NAME_BYTES + 8];
    snprintf(full_name, sizeof full_name, "%s.%s", kind, name);
    if (!tn_file_find(check->file, full_name)) return true;
    tn_tensor *expected = tn_file_load(check->file, full_name);
    if (!expected) return false;
    if (!actual || !tn_same_shape(expected, actual)) {
        char text[128];
        print_line(check, full_name, 0, actual ? tn_describe(actual, text, sizeof text) : "the op did not make it");
        return true;
    }
    double *wanted = read_doubles(expected), *got = read_doubles(actual);
    bool read = wanted && got;
    if (read) print_line(check, full_name, relative_error(wanted, got, actual->numel), NULL);
    free(wanted);
    free(got);
    return read;
}

/* ---- one file ---- */

static bool expects_gradients(const checking *check) {
    for (int64_t i = 0; i < tn_file_count(check->file); i++) {
        const char *name = tn_file_entry_at(check->file, i)->name;
        if (strncmp(name, "grad.", 5) == 0) return true;
    }
    return false;
}

static bool run_and_compare(const op_request *request, checking *check, const void *args) {
    tn_tensor *in[TN_OP_MAX_INPUTS], *out[TN_OP_MAX_OUTPUTS];
    const tn_op_def *op = check->op;
    bool backward = expects_gradients(check);
    int n_in;
    if (!tn_op_file_inputs(check->cx, check->file, op, request->dtype, backward, in, &n_in)) return false;
    check->dtype = request->dtype ? *request->dtype : in[0] ? in[0]->dtype : TN_F64;
    for (int i = 0; i < n_in && !request->dtype; i++)
        if (in[i] && tn_dtype_is_float(in[i]->dtype) && tn_dtype_size(in[i]->dtype) < tn_dtype_size(check->dtype))
            check->dtype = in[i]->dtype;
    if (!tn_apply(op, in, n_in, args, out) || (backward && !tn_op_file_backward(check->file, op, out))) return false;
    bool read = true;
    for (int i = 0; read && i < op->n_outputs; i++) read = compare(check, "out", op->outputs[i].name, out[i]);
    for (int i = 0; read && i < n_in; i++) {
        char name[TN_OP_NAME_BYTES];
        read = compare(check, "grad", tn_op_file_input_name(op, i, name), tn_grad(in[i]));
    }
    return read;
}

static int check_open_file(const op_request *request, checking *check) {
    tn_op_args_buffer args;
    char reason[256];
    const char *op_name = tn_file_metadata(check->file, "op"), *attrs = tn_file_metadata(check->file, "attrs");
    if (!op_name) return tn_cli_refuse(request->cli, "%s: the metadata names no op", check->path);
    check->op = tn_op_find(op_name);
    if (!check->op) return tn_cli_refuse(request->cli, "%s: there is no op '%s'; --list shows them", check->path, op_name);
    if (!tn_op_set_attrs_json(check->op, &args, attrs, reason, sizeof reason))
        return tn_cli_refuse(request->cli, "%s: attrs: %s", check->path, reason);
    tn_scope *scope = tn_scope_begin(check->cx);
    bool fine = run_and_compare(request, check, &args);
    tn_scope_end(scope);
    if (!fine) return tn_cli_refuse(request->cli, "%s: %s", check->path, tn_error(check->cx));
    if (check->n_compared == 0) return tn_cli_refuse(request->cli, "%s: expects nothing: no out.NAME, no grad.INPUT", check->path);
    return check->n_wrong ? TN_CLI_FAILED : TN_CLI_OK;
}

int tn_op_check_files(const op_request *request, char *const *paths, int n_paths) {
    tn_context *cx = tn_open(&(tn_options){ .device = request->device, .history_events = -1 });
    int worst = TN_CLI_OK;
    if (tn_failed(cx)) worst = tn_cli_refuse(request->cli, "--device: %s", tn_error(cx));
    bool usable = worst == TN_CLI_OK;
    for (int i = 0; usable && i < n_paths; i++) {
        checking check = { .path = paths[i], .cx = cx, .file = tn_file_open(cx, paths[i]) };
        int code = check.file ? check_open_file(request, &check) : tn_cli_refuse(request->cli, "%s", tn_error(cx));
        tn_file_close((tn_file *)check.file);
        tn_clear_error(cx);
        if (code > worst) worst = code;
    }
    tn_close(cx);
    return worst;
}
