/* tenon-op --list: the registry as text or JSON. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op_program.h"

static const char *const type_names[] = { "bool", "int", "float", "enum", "int list", "dtype" };
static const char *const kind_names[TN_DEVICE_KIND_COUNT] = { "cpu", "cuda" };

static const tn_op_def **ops_by_name(int *n);

unsigned tn_op_input_dtypes(const tn_op_def *op, int i) {
    if (op->inputs[i].flags & TN_INPUT_WIDE) return TN_MASK(TN_F64) | TN_MASK(TN_F32);
    return op->inputs[i].dtypes ? op->inputs[i].dtypes : i == 0 ? TN_ANY_DTYPE : 0;
}

static bool differentiable(const tn_op_def *op) { return !(op->flags & TN_OP_NOT_DIFFERENTIABLE); }

/* A view moves no data; gradients made of other calls follow forward. */
unsigned tn_op_forward_dtypes(const tn_op_def *op, int kind) {
    if (op->flags & TN_OP_VIEW) return tn_op_input_dtypes(op, 0);
    return op->forward[kind] ? op->forward_dtypes[kind] & tn_op_input_dtypes(op, 0) : 0;
}

unsigned tn_op_backward_dtypes(const tn_op_def *op, int kind) {
    if (!differentiable(op)) return 0;
    unsigned mask = op->backward_tensors ? tn_op_forward_dtypes(op, kind)
                    : op->backward[kind] ? op->backward_dtypes[kind] & tn_op_input_dtypes(op, 0)
                                         : 0;
    /* A first input that is no float is a condition or an index: what has the gradient comes after it. */
    return mask & TN_FLOATS ? mask & TN_FLOATS : mask;
}

/* ---- text ---- */

static void print_dtypes(unsigned mask) {
    const char *separator = "";
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        if (mask >> i & 1) {
            printf("%s%s", separator, tn_dtype_name((tn_dtype)i));
            separator = " ";
        }
}

static void print_input(const tn_op_def *op, int i) {
    const tn_input_def *input = &op->inputs[i];
    printf("  %-8s %s (", i ? "" : "in", input->name);
    if (tn_op_input_dtypes(op, i)) print_dtypes(tn_op_input_dtypes(op, i));
    else printf("like %s", op->inputs[0].name);
    printf("%s%s%s%s)%s%s\n", input->flags & TN_INPUT_WIDE ? ", f64 for f64 data else f32" : "",
           input->flags & TN_INPUT_OPTIONAL ? ", optional" : "", input->flags & TN_INPUT_VARIADIC ? ", repeated" : "",
           differentiable(op) && input->flags & TN_INPUT_NO_GRADIENT ? ", no gradient" : "", input->doc ? ": " : "",
           input->doc ? input->doc : "");
}

static void print_attr(const tn_op_def *op, int i) {
    const tn_attr_def *attr = &op->attrs[i];
    printf("  %-8s %s ", i ? "" : "set", attr->name);
    if (attr->type == TN_ATTR_ENUM)
        for (int k = 0; attr->names[k]; k++) printf("%s%s", k ? "|" : "= ", attr->names[k]);
    else printf("= %s", type_names[attr->type]);
    if (!attr->default_text) printf(" (required)");
    else printf(" (%s)", attr->default_text[0] ? attr->default_text : "empty");
    printf("%s%s\n", attr->doc ? ": " : "", attr->doc ? attr->doc : "");
}

static void print_op(const tn_op_def *op) {
    printf("%s: %s%s\n", op->name, op->doc, differentiable(op) ? "" : " (no gradient)");
    for (int i = 0; i < op->n_inputs; i++) print_input(op, i);
    for (int i = 0; i < op->n_outputs; i++)
        printf("  %-8s %s%s%s\n", i ? "" : "out", op->outputs[i].name, op->outputs[i].doc ? ": " : "",
               op->outputs[i].doc ? op->outputs[i].doc : "");
    for (int i = 0; i < op->n_attrs; i++) print_attr(op, i);
    for (int kind = 0; kind < TN_DEVICE_KIND_COUNT; kind++) {
        if (!tn_op_forward_dtypes(op, kind)) continue;
        printf("  %-8s forward ", kind_names[kind]);
        print_dtypes(tn_op_forward_dtypes(op, kind));
        if (tn_op_backward_dtypes(op, kind)) {
            printf("; backward ");
            print_dtypes(tn_op_backward_dtypes(op, kind));
        }
        printf("\n");
    }
}

int tn_op_list_text(void) {
    int n;
    const tn_op_def **ops = ops_by_name(&n);
    tn_context *cpu = tn_open(&(tn_options){ .device = "cpu", .history_events = -1 });
    const char *reason = tn_cuda_unavailable_reason();
    if (!ops || !cpu) {
        fprintf(stderr, "tenon-op: the host has no memory left\n");
        free(ops);
        tn_close(cpu);
        return TN_CLI_FAILED;
    }
    printf("%d ops. Devices: cpu (%s); cuda%s%s\n", n, tn_device_detail(cpu), *reason ? " is off: " : "", reason);
    for (int i = 0; i < n; i++) {
        printf("\n");
        print_op(ops[i]);
    }
    free(ops);
    tn_close(cpu);
    return TN_CLI_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const tn_op_def *const *)a)->name, (*(const tn_op_def *const *)b)->name);
}

static const tn_op_def **ops_by_name(int *n) {
    *n = tn_op_count();
    const tn_op_def **ops = malloc((size_t)(*n + 1) * sizeof *ops);
    for (int i = 0; ops && i < *n; i++) ops[i] = tn_op_at(i);
    if (ops) qsort(ops, (size_t)*n, sizeof *ops, by_name);
    return ops;
}

/* ---- JSON ---- */

static json_t *dtypes_json(unsigned mask) {
    json_t *list = json_array();
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        if (mask >> i & 1) json_array_append_new(list, json_string(tn_dtype_name((tn_dtype)i)));
    return list;
}

static void set_text(json_t *object, const char *key, const char *text) {
    json_object_set_new(object, key, text ? json_string(text) : json_null());
}

static json_t *input_json(const tn_op_def *op, int i) {
    const tn_input_def *input = &op->inputs[i];
    unsigned mask = tn_op_input_dtypes(op, i);
    json_t *object = json_object();
    set_text(object, "name", input->name);
    json_object_set_new(object, "optional", json_boolean(input->flags & TN_INPUT_OPTIONAL));
    json_object_set_new(object, "repeated", json_boolean(input->flags & TN_INPUT_VARIADIC));
    json_object_set_new(object, "wide", json_boolean(input->flags & TN_INPUT_WIDE));
    json_object_set_new(object, "gradient", json_boolean(differentiable(op) && !(input->flags & TN_INPUT_NO_GRADIENT)));
    json_object_set_new(object, "dtypes", mask ? dtypes_json(mask) : json_null()); /* null: those of the first input */
    set_text(object, "doc", input->doc);
    return object;
}

static json_t *default_json(const tn_attr_def *attr) {
    char list[256];
    if (!attr->default_text) return json_null();
    switch (attr->type) {
    case TN_ATTR_BOOL:
    case TN_ATTR_INT:
    case TN_ATTR_FLOAT: return json_loads(attr->default_text, JSON_DECODE_ANY, NULL);
    case TN_ATTR_INT_LIST: snprintf(list, sizeof list, "[%s]", attr->default_text); return json_loads(list, 0, NULL);
    default: return json_string(attr->default_text);
    }
}

static json_t *attr_json(const tn_attr_def *attr) {
    json_t *object = json_object();
    set_text(object, "name", attr->name);
    set_text(object, "type", type_names[attr->type]);
    json_object_set_new(object, "required", json_boolean(!attr->default_text));
    /* A default JSON can't say as a number, such as inf, is said as text. */
    json_t *value = default_json(attr);
    json_object_set_new(object, "default", value ? value : json_string(attr->default_text));
    if (attr->type == TN_ATTR_ENUM) {
        json_t *names = json_array();
        for (int i = 0; attr->names[i]; i++) json_array_append_new(names, json_string(attr->names[i]));
        json_object_set_new(object, "values", names);
    }
    set_text(object, "doc", attr->doc);
    return object;
}

static json_t *op_json(const tn_op_def *op) {
    json_t *object = json_object(), *inputs = json_array(), *outputs = json_array(), *attrs = json_array(), *devices = json_object();
    for (int i = 0; i < op->n_inputs; i++) json_array_append_new(inputs, input_json(op, i));
    for (int i = 0; i < op->n_outputs; i++) {
        json_t *output = json_object();
        set_text(output, "name", op->outputs[i].name);
        set_text(output, "doc", op->outputs[i].doc);
        json_array_append_new(outputs, output);
    }
    for (int i = 0; i < op->n_attrs; i++) json_array_append_new(attrs, attr_json(&op->attrs[i]));
    for (int kind = 0; kind < TN_DEVICE_KIND_COUNT; kind++) {
        if (!tn_op_forward_dtypes(op, kind)) continue;
        json_t *device = json_object();
        json_object_set_new(device, "forward", dtypes_json(tn_op_forward_dtypes(op, kind)));
        json_object_set_new(device, "backward", dtypes_json(tn_op_backward_dtypes(op, kind)));
        json_object_set_new(devices, kind_names[kind], device);
    }
    set_text(object, "name", op->name);
    set_text(object, "family", op->family);
    set_text(object, "doc", op->doc);
    json_object_set_new(object, "differentiable", json_boolean(differentiable(op)));
    json_object_set_new(object, "inputs", inputs);
    json_object_set_new(object, "outputs", outputs);
    json_object_set_new(object, "attributes", attrs);
    json_object_set_new(object, "devices", devices);
    return object;
}

static json_t *device_json(const char *name, const char *detail, const char *reason) {
    json_t *object = json_object();
    set_text(object, "name", name);
    json_object_set_new(object, "usable", json_boolean(!*reason));
    set_text(object, *reason ? "reason" : "detail", *reason ? reason : detail);
    return object;
}

static json_t *devices_json(void) {
    json_t *list = json_array();
    tn_context *cpu = tn_open(&(tn_options){ .device = "cpu", .history_events = -1 });
    json_array_append_new(list, device_json("cpu", tn_device_detail(cpu), ""));
    tn_close(cpu);
    char reason[512], detail[256] = "";
    snprintf(reason, sizeof reason, "%s", tn_cuda_unavailable_reason());
    if (!*reason) {
        tn_context *cuda = tn_open(&(tn_options){ .device = "cuda", .history_events = -1 });
        snprintf(detail, sizeof detail, "%s", tn_device_detail(cuda));
        tn_close(cuda);
    }
    json_array_append_new(list, device_json("cuda", detail, reason));
    return list;
}

int tn_op_list_json(void) {
    int n;
    const tn_op_def **ops = ops_by_name(&n);
    json_t *root = json_object(), *list = json_array();
    for (int i = 0; ops && i < n; i++) json_array_append_new(list, op_json(ops[i]));
    free(ops);
    set_text(root, "version", tn_version());
    json_object_set_new(root, "devices", devices_json());
    json_object_set_new(root, "ops", list);
    bool written = root && json_dumpf(root, stdout, JSON_INDENT(2)) == 0;
    printf("\n");
    json_decref(root);
    return written ? TN_CLI_OK : TN_CLI_FAILED;
}
