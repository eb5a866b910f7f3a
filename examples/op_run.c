/* tenon-op OP: runs one op on the tensors of a file. */
#include <stdio.h>
#include <string.h>

#include "op_file.h"
#include "op_program.h"
#include "sample_inputs.h"

#define MAX_RESULTS (TN_OP_MAX_OUTPUTS + TN_OP_MAX_INPUTS)

typedef struct results {
    char names[MAX_RESULTS][TN_OP_NAME_BYTES + 8];
    tn_named_tensor tensors[MAX_RESULTS];
    int n;
} results;

static void add_result(results *all, const char *kind, const char *name, const tn_tensor *t) {
    if (!t) return;
    snprintf(all->names[all->n], sizeof all->names[0], "%s.%s", kind, name);
    all->tensors[all->n] = (tn_named_tensor){ all->names[all->n], t };
    all->n++;
}

static bool read_settings(const op_request *request, const tn_op_def *op, void *args) {
    uint64_t required = tn_op_default_args(op, args);
    for (int i = 0; i < request->settings.n; i++) {
        const char *text = request->settings.text[i], *equals = strchr(text, '=');
        char name[128], reason[256];
        if (!equals || (size_t)(equals - text) >= sizeof name) {
            tn_cli_refuse(request->cli, "--set wants KEY=VALUE, got '%s'", text);
            return false;
        }
        snprintf(name, sizeof name, "%.*s", (int)(equals - text), text);
        if (!tn_op_set_attr(op, args, name, equals + 1, reason, sizeof reason)) {
            tn_cli_refuse(request->cli, "--set %s", reason);
            return false;
        }
        for (int k = 0; k < op->n_attrs; k++)
            if (strcmp(op->attrs[k].name, name) == 0) required &= ~(UINT64_C(1) << k);
    }
    for (int k = 0; k < op->n_attrs; k++)
        if (required >> k & 1) {
            tn_cli_refuse(request->cli, "%s needs --set %s=...", op->name, op->attrs[k].name);
            return false;
        }
    return true;
}

static bool run_op(const op_request *request, tn_context *cx, const tn_file *file, const tn_op_def *op, const void *args, results *all) {
    tn_tensor *in[TN_OP_MAX_INPUTS], *out[TN_OP_MAX_OUTPUTS];
    int n_in;
    if (!tn_op_file_inputs(cx, file, op, request->dtype, request->backward, in, &n_in)) return false;
    if (!tn_apply(op, in, n_in, args, out)) return false;
    if (request->backward && !tn_op_file_backward(file, op, out)) return false;
    for (int i = 0; i < op->n_outputs; i++) add_result(all, "out", op->outputs[i].name, out[i]);
    for (int i = 0; i < n_in; i++) {
        char name[TN_OP_NAME_BYTES];
        if (in[i]) add_result(all, "grad", tn_op_file_input_name(op, i, name), tn_grad(in[i]));
    }
    return true;
}

static int run_and_save(const op_request *request, tn_context *cx, const tn_op_def *op, const void *args) {
    results all = { .n = 0 };
    tn_file *file = tn_file_open(cx, request->in);
    bool ran = file && run_op(request, cx, file, op, args, &all);
    tn_file_close(file);
    if (!ran) {
        tn_cli_refuse(request->cli, "%s: %s", request->in, tn_error(cx));
        return tn_error_status(cx) == TN_ERR_MEMORY || tn_error_status(cx) == TN_ERR_HOST_MEMORY ? TN_CLI_FAILED : TN_CLI_USAGE;
    }
    if (tn_file_save(cx, request->out, all.tensors, all.n, &(tn_named_text){ "op", op->name }, 1)) return TN_CLI_OK;
    tn_cli_refuse(request->cli, "%s", tn_error(cx));
    return TN_CLI_FAILED;
}

int tn_op_run_file(const op_request *request, const char *op_name) {
    tn_op_args_buffer args;
    const tn_op_def *op = tn_op_find(op_name);
    if (!op) return tn_cli_refuse(request->cli, "there is no op '%s'; --list shows them", op_name);
    if (!request->in || !request->out) return tn_cli_refuse(request->cli, "%s wants --%s FILE", op->name, request->in ? "out" : "in");
    if (!read_settings(request, op, &args)) return TN_CLI_USAGE;
    tn_context *cx = tn_open(&(tn_options){ .device = request->device, .history_events = -1 });
    int code = tn_failed(cx) ? tn_cli_refuse(request->cli, "--device: %s", tn_error(cx)) : run_and_save(request, cx, op, &args);
    tn_close(cx);
    return code;
}
