/* tenon-op --reference: every op as Markdown, from what its description and its samples say. docs/reference.md is this. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op_program.h"
#include "sample_inputs.h"

#define MAX_LINES 12
#define LINE_BYTES 512

/* Lines that differ, in the order they came. */
typedef struct line_list {
    char key[MAX_LINES][LINE_BYTES], text[MAX_LINES][LINE_BYTES];
    int n, n_more;
} line_list;

static void add_line(line_list *list, const char *key, const char *text) {
    for (int i = 0; i < list->n; i++)
        if (strcmp(list->key[i], key) == 0) return;
    if (list->n == MAX_LINES) {
        list->n_more++;
        return;
    }
    snprintf(list->key[list->n], LINE_BYTES, "%s", key);
    snprintf(list->text[list->n++], LINE_BYTES, "%s", text);
}

static void append(char text[LINE_BYTES], const char *format, ...) TN_PRINTF(2, 3);
static void append(char text[LINE_BYTES], const char *format, ...) {
    size_t at = strlen(text);
    va_list list;
    va_start(list, format);
    vsnprintf(text + at, LINE_BYTES - at, format, list);
    va_end(list);
}

/* Markdown takes a | for the end of a cell. */
static void print_cell(const char *text) {
    for (; text && *text; text++) printf(*text == '|' ? "\\|" : "%c", *text);
}

/* ---- tables ---- */

static void append_dtypes(char text[LINE_BYTES], unsigned mask) {
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        if (mask >> i & 1) append(text, "%s%s", text[0] && text[strlen(text) - 1] != ' ' ? " " : "", tn_dtype_name((tn_dtype)i));
}

static void print_inputs(const tn_op_def *op) {
    printf("| input | dtype | | |\n| --- | --- | --- | --- |\n");
    for (int i = 0; i < op->n_inputs; i++) {
        const tn_input_def *input = &op->inputs[i];
        char dtypes[LINE_BYTES] = "";
        unsigned mask = tn_op_input_dtypes(op, i);
        if (input->flags & TN_INPUT_WIDE) append(dtypes, "f64 beside f64, else f32");
        else if (mask) append_dtypes(dtypes, mask);
        else append(dtypes, "as %s", op->inputs[0].name);
        bool no_gradient = input->flags & TN_INPUT_NO_GRADIENT && !(op->flags & TN_OP_NOT_DIFFERENTIABLE);
        printf("| `%s` | %s | %s%s%s| ", input->name, dtypes, input->flags & TN_INPUT_OPTIONAL ? "optional " : "",
               input->flags & TN_INPUT_VARIADIC ? "repeated " : "", no_gradient ? "no gradient " : "");
        print_cell(input->doc);
        printf(" |\n");
    }
}

static void print_outputs(const tn_op_def *op) {
    printf("\n| output | |\n| --- | --- |\n");
    for (int i = 0; i < op->n_outputs; i++) {
        printf("| `%s` | ", op->outputs[i].name);
        print_cell(op->outputs[i].doc);
        printf(" |\n");
    }
}

static void print_attrs(const tn_op_def *op) {
    static const char *const types[] = { "true, false", "integer", "number", "", "integers", "a dtype" };
    if (op->n_attrs) printf("\n| attribute | values | default | |\n| --- | --- | --- | --- |\n");
    for (int i = 0; i < op->n_attrs; i++) {
        const tn_attr_def *attr = &op->attrs[i];
        printf("| `%s` | %s", attr->name, types[attr->type]);
        if (attr->type == TN_ATTR_ENUM)
            for (int k = 0; attr->names[k]; k++) printf("%s%s", k ? ", " : "", attr->names[k]);
        if (!attr->default_text) printf(" | required | ");
        else printf(" | %s | ", attr->default_text[0] ? attr->default_text : "empty");
        print_cell(attr->doc);
        printf(" |\n");
    }
}

static void print_devices(const tn_op_def *op) {
    static const char *const names[TN_DEVICE_KIND_COUNT] = { "CPU", "CUDA" };
    for (int kind = 0; kind < TN_DEVICE_KIND_COUNT; kind++) {
        char forward[LINE_BYTES] = "", backward[LINE_BYTES] = "";
        append_dtypes(forward, tn_op_forward_dtypes(op, kind));
        append_dtypes(backward, tn_op_backward_dtypes(op, kind));
        /* A line for each device: a build without CUDA has all but the second. */
        if (forward[0]) printf("\n%s: forward %s%s%s.\n", names[kind], forward, backward[0] ? "; backward " : "", backward);
    }
}

/* ---- what samples show ---- */

static tn_dtype shown_dtype(const tn_context *cx, const tn_op_def *op, const tn_sample *sample) {
    unsigned mask = tn_sample_dtypes(cx, op, sample);
    int dtype = TN_F32;
    for (int i = 0; i < TN_DTYPE_COUNT && !(mask >> dtype & 1); i++) dtype = i;
    return (tn_dtype)dtype;
}

/* "x, o, 1 statistic", or "nothing". */
static void append_kept(char text[LINE_BYTES], const tn_op_call *call) {
    const tn_op_def *op = call->op;
    bool repeated = false;
    for (int i = 0; i < call->n_in; i++) {
        const tn_input_def *input = &op->inputs[i < op->n_inputs ? i : op->n_inputs - 1];
        if (!(call->save_in >> i & 1) || !call->in[i] || repeated) continue;
        repeated = input->flags & TN_INPUT_VARIADIC;
        append(text, "%s`%s`", text[0] ? ", " : "", input->name);
    }
    for (int i = 0; i < call->n_out; i++)
        if (call->save_out >> i & 1) append(text, "%s`%s`", text[0] ? ", " : "", op->outputs[i].name);
    if (call->n_aux) append(text, "%s%d made for it", text[0] ? ", " : "", call->n_aux);
    if (!text[0]) append(text, "nothing");
}

/* "x f32[2,3], weight f32[3]; act=silu" */
static void append_example(char text[LINE_BYTES], const tn_op_call *call, const tn_sample *sample) {
    const tn_op_def *op = call->op;
    char buffer[128];
    const char *separator = "";
    for (int i = 0; i < call->n_in; i++) {
        if (!call->in[i]) continue;
        append(text, "%s%s %s", separator, op->inputs[i < op->n_inputs ? i : op->n_inputs - 1].name,
               tn_describe(call->in[i], buffer, sizeof buffer));
        separator = ", ";
    }
    if (sample->attrs) append(text, ", %s", sample->attrs);
}

static void note_kept(line_list *list, const tn_op_call *call, const tn_sample *sample) {
    char key[LINE_BYTES] = "", text[LINE_BYTES] = "";
    append_kept(key, call);
    append(text, "%s: %" PRId64 " bytes for `", key, call->op->saved_bytes(call));
    append_example(text, call, sample);
    append(text, "`");
    add_line(list, key, text);
}

/* An error without the name of the op, what it got, and the place in the source. */
static void note_refusal(line_list *list, const tn_op_def *op, const char *message) {
    char text[LINE_BYTES];
    size_t n = strlen(op->name);
    if (strncmp(message, op->name, n) == 0 && message[n] == ':') message += n + 2;
    snprintf(text, sizeof text, "%s", message);
    char *end = strstr(text, "; got ");
    if (!end) end = strstr(text, " [TN_ERR_");
    if (end) *end = '\0';
    /* Dtypes stand in the table of inputs. */
    if (text[0] && !strstr(text, " of dtype ")) add_line(list, text, text);
}

static void plan_sample(tn_context *cx, const tn_op_def *op, const tn_sample *sample, line_list *kept, line_list *refused) {
    tn_tensor *in[TN_OP_MAX_INPUTS];
    tn_op_args_buffer args;
    tn_op_call call;
    int n_in;
    tn_scope *scope = tn_scope_begin(cx);
    bool planned =
        tn_sample_make(cx, op, sample, shown_dtype(cx, op, sample), 1, true, in, &n_in, &args) && tn_op_plan(op, in, n_in, &args, &call);
    if (!planned) note_refusal(refused, op, tn_error(cx));
    else if (sample->error == TN_OK && call.wants && op->saved_bytes) note_kept(kept, &call, sample);
    tn_clear_error(cx);
    tn_scope_end(scope);
}

static void print_lines(const char *title, const line_list *list, const char *more) {
    if (!list->n) return;
    printf("\n%s\n\n", title);
    for (int i = 0; i < list->n; i++) printf("- %s\n", list->text[i]);
    if (list->n_more) printf("- %s\n", more);
}

static bool print_samples(const tn_op_def *op) {
    tn_context *cx = tn_open(&(tn_options){ .device = "cpu", .history_events = -1 });
    line_list *lists = calloc(2, sizeof *lists);
    bool fine = cx && lists;
    for (const tn_sample *sample = op->samples; fine && sample->name; sample++) plan_sample(cx, op, sample, &lists[0], &lists[1]);
    if (fine) {
        print_lines("Kept for backward, by inputs and attributes:", &lists[0], "and so on with other attributes");
        print_lines("Refused:", &lists[1], "and more");
    }
    free(lists);
    tn_close(cx);
    return fine;
}

/* ---- the page ---- */

static bool print_reference(const tn_op_def *op) {
    printf("\n### %s\n\n%s%s\n\n", op->name, op->doc, op->flags & TN_OP_NOT_DIFFERENTIABLE ? "; has no gradient" : "");
    print_inputs(op);
    print_outputs(op);
    print_attrs(op);
    print_devices(op);
    return print_samples(op);
}

int tn_op_list_reference(void) {
    printf("# The ops\n\nWritten by `tenon-op --reference` from the registry; a test compares. The maths of a family is in the README of "
           "its folder,\n"
           "the calls in C in its header. Shapes and bytes below are those of the op's own samples.\n");
    const char *family = "";
    bool fine = true;
    for (int i = 0; fine && i < tn_op_count(); i++) {
        const tn_op_def *op = tn_op_at(i);
        if (strcmp(family, op->family) != 0) printf("\n## [%s](../ops/%s/README.md)\n", op->family, op->family);
        family = op->family;
        fine = print_reference(op);
    }
    if (!fine) fprintf(stderr, "tenon-op: the host has no memory left\n");
    return fine ? TN_CLI_OK : TN_CLI_FAILED;
}
