/* Attributes of an op: the first byte names the op and the second one of its samples; the rest is a JSON object of attributes, or lines
 * of NAME=VALUE. What is accepted is then run on that sample's inputs, where the op may still refuse it. */
#include <string.h>

#include "fuzz_input.h"
#include "ops/registry.h"
#include "ops/sample_inputs.h"

#define MAX_ELEMENTS 4096

/* One line of the text at a time; false where one is not accepted. */
static bool set_lines(const tn_op_def *op, void *args, char *text) {
    char reason[256] = "";
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char *equals = strchr(line, '=');
        if (!equals) return false;
        *equals = '\0';
        if (!tn_op_set_attr(op, args, line, equals + 1, reason, sizeof reason)) {
            fuzz_want(reason[0] != '\0');
            return false;
        }
    }
    return true;
}

static bool set_attrs(const tn_op_def *op, void *args, fuzz_bytes *bytes) {
    char text[1024], reason[256] = "";
    size_t n = bytes->n < sizeof text - 1 ? bytes->n : sizeof text - 1;
    memcpy(text, bytes->at, n);
    text[n] = '\0';
    uint64_t required = tn_op_default_args(op, args);
    if (text[0] != '{') return required == 0 && set_lines(op, args, text);
    bool set = tn_op_set_attrs_json(op, args, text, reason, sizeof reason);
    fuzz_want(set || reason[0] != '\0');
    return set;
}

static bool is_small(tn_tensor *const *in, int n_in) {
    int64_t n = 0;
    for (int i = 0; i < n_in; i++) n += in[i] ? in[i]->numel : 0;
    return n <= MAX_ELEMENTS;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    fuzz_bytes bytes = { data, n_bytes };
    tn_context *cx = fuzz_begin();
    const tn_op_def *op = tn_op_at(fuzz_byte(&bytes) % tn_op_count());
    int n_samples = 0, n_in = 0;
    while (op->samples[n_samples].name) n_samples++;
    const tn_sample *sample = &op->samples[fuzz_byte(&bytes) % n_samples];
    tn_op_args_buffer args = { .bytes = "" }, sample_args;
    tn_tensor *in[TN_OP_MAX_INPUTS], *out[TN_OP_MAX_OUTPUTS];
    if (set_attrs(op, &args, &bytes) && tn_sample_make(cx, op, sample, TN_F32, 1, true, in, &n_in, &sample_args) && is_small(in, n_in)) {
        tn_tensor *first = tn_apply(op, in, n_in, &args, out);
        fuzz_want((first == NULL) == tn_failed(cx));
    }
    fuzz_end();
    return 0;
}
