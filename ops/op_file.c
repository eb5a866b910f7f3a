#include "op_file.h"

#include <stdio.h>
#include <string.h>

#include "../autograd/autograd.h"
#include "../libtensor/context_internal.h"

static const tn_input_def *input_def(const tn_op_def *op, int i) { return &op->inputs[i < op->n_inputs ? i : op->n_inputs - 1]; }

static bool repeats(const tn_op_def *op) { return op->inputs[op->n_inputs - 1].flags & TN_INPUT_VARIADIC; }

const char *tn_op_file_input_name(const tn_op_def *op, int i, char buffer[TN_OP_NAME_BYTES]) {
    const char *name = input_def(op, i)->name;
    if (repeats(op) && i >= op->n_inputs - 1) snprintf(buffer, TN_OP_NAME_BYTES, "%s.%d", name, i - (op->n_inputs - 1));
    else snprintf(buffer, TN_OP_NAME_BYTES, "%s", name);
    return buffer;
}

/* ---- does everything in the file have a place? ---- */

static bool is_input(const tn_op_def *op, const char *name) {
    char known[TN_OP_NAME_BYTES];
    int n = repeats(op) ? TN_OP_MAX_INPUTS : op->n_inputs;
    for (int i = 0; i < n; i++)
        if (strcmp(tn_op_file_input_name(op, i, known), name) == 0) return true;
    return false;
}

static bool is_output(const tn_op_def *op, const char *name) {
    for (int i = 0; i < op->n_outputs; i++)
        if (strcmp(op->outputs[i].name, name) == 0) return true;
    return false;
}

static const char *after(const char *text, const char *start) {
    size_t n = strlen(start);
    return strncmp(text, start, n) == 0 ? text + n : NULL;
}

static bool has_place(const tn_op_def *op, const char *name) {
    const char *rest;
    if ((rest = after(name, "out.")) || (rest = after(name, "grad_out."))) return is_output(op, rest);
    if ((rest = after(name, "grad."))) return is_input(op, rest);
    return is_input(op, name);
}

static const char *input_names(const tn_op_def *op, char *buffer, size_t n_bytes) {
    size_t at = 0;
    buffer[0] = '\0';
    for (int i = 0; i < op->n_inputs && at < n_bytes; i++)
        at += (size_t)snprintf(buffer + at, n_bytes - at, "%s%s%s", i ? ", " : "", op->inputs[i].name,
                               op->inputs[i].flags & TN_INPUT_VARIADIC ? ".0, .1, .." : "");
    return buffer;
}

static bool all_have_places(tn_context *cx, const tn_file *file, const tn_op_def *op) {
    char names[512];
    for (int64_t i = 0; i < tn_file_count(file); i++) {
        const char *name = tn_file_entry_at(file, i)->name;
        if (has_place(op, name)) continue;
        tn_fail(cx, TN_ERR_FORMAT, op->name, "the file holds '%s'; %s has the inputs %s", name, op->name,
                input_names(op, names, sizeof names));
        return false;
    }
    return true;
}

/* ---- loading ---- */

static tn_tensor *load_as(const tn_file *file, const char *name, tn_dtype dtype) {
    tn_tensor *t = tn_file_load(file, name);
    if (!t || t->dtype == dtype) return t;
    tn_tensor *converted = tn_assign(tn_empty(t->cx, dtype, tn_shape_of(t)), t);
    tn_release(t);
    return converted;
}

static tn_dtype wanted_dtype(const tn_input_def *def, tn_dtype stored, const tn_dtype *dtype) {
    if (!dtype || !tn_dtype_is_float(stored)) return stored;
    if (def->flags & TN_INPUT_WIDE) return *dtype == TN_F64 ? TN_F64 : TN_F32;
    return def->dtypes && !(def->dtypes & TN_MASK(*dtype)) ? stored : *dtype;
}

static int count_inputs(const tn_file *file, const tn_op_def *op) {
    char name[TN_OP_NAME_BYTES];
    int n = op->n_inputs;
    while (repeats(op) && n < TN_OP_MAX_INPUTS && tn_file_find(file, tn_op_file_input_name(op, n, name))) n++;
    return n;
}

bool tn_op_file_inputs(tn_context *cx, const tn_file *file, const tn_op_def *op, const tn_dtype *dtype, bool requires_grad,
                       tn_tensor *in[TN_OP_MAX_INPUTS], int *n_in) {
    memset(in, 0, TN_OP_MAX_INPUTS * sizeof *in);
    if (!file || !tn_ready(cx) || !all_have_places(cx, file, op)) return false;
    *n_in = count_inputs(file, op);
    for (int i = 0; i < *n_in; i++) {
        char name[TN_OP_NAME_BYTES];
        const tn_input_def *def = input_def(op, i);
        const tn_file_entry *entry = tn_file_find(file, tn_op_file_input_name(op, i, name));
        if (!entry && def->flags & TN_INPUT_OPTIONAL) continue;
        if (!entry) {
            tn_fail(cx, TN_ERR_FORMAT, op->name, "the file has no tensor '%s', an input that %s needs", name, op->name);
            return false;
        }
        in[i] = load_as(file, name, wanted_dtype(def, entry->dtype, dtype));
        if (!in[i]) return false;
        bool differentiable =
            tn_dtype_is_float(in[i]->dtype) && !(op->flags & TN_OP_NOT_DIFFERENTIABLE) && !(def->flags & TN_INPUT_NO_GRADIENT);
        if (requires_grad && differentiable && !tn_require_grad(in[i], true)) return false;
    }
    return true;
}

static bool entry_fits(const tn_file_entry *entry, const tn_tensor *t) {
    bool fits = entry->shape.axes == t->axes;
    for (int i = 0; fits && i < t->axes; i++) fits = entry->shape.size[i] == t->shape[i];
    return fits;
}

static tn_tensor *upstream(const tn_file *file, const tn_op_def *op, int output, const tn_tensor *out) {
    char name[TN_OP_NAME_BYTES], text[128];
    snprintf(name, sizeof name, "grad_out.%s", op->outputs[output].name);
    const tn_file_entry *entry = tn_file_find(file, name);
    if (!entry) return tn_full(out->cx, out->dtype, tn_shape_of(out), 1);
    if (entry_fits(entry, out)) return load_as(file, name, out->dtype);
    return tn_fail(out->cx, TN_ERR_SHAPE, op->name, "'%s' has another shape than the output %s", name, tn_describe(out, text, sizeof text));
}

bool tn_op_file_backward(const tn_file *file, const tn_op_def *op, tn_tensor *const *out) {
    tn_tensor *roots[TN_OP_MAX_OUTPUTS], *gradients[TN_OP_MAX_OUTPUTS];
    int n_roots = 0;
    if (!file || !out[0] || !tn_ready(out[0]->cx)) return false;
    for (int i = 0; i < op->n_outputs; i++) {
        if (!out[i] || !tn_requires_grad(out[i])) continue;
        roots[n_roots] = out[i];
        gradients[n_roots] = upstream(file, op, i, out[i]);
        if (!gradients[n_roots++]) return false;
    }
    if (n_roots) return tn_backward_many(roots, gradients, n_roots, false);
    tn_fail(out[0]->cx, TN_ERR_UNSUPPORTED, op->name, "no gradient flows to these inputs of %s", op->name);
    return false;
}
