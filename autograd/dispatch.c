#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tape_internal.h"

/* ---- refusing a call ---- */

static const char *input_name(const tn_op_def *op, int i) { return op->inputs[i < op->n_inputs ? i : op->n_inputs - 1].name; }

bool tn_refuse_at(tn_op_call *call, tn_status status, const char *file, int line, const char *format, ...) {
    char wanted[512], got[768];
    va_list list;
    va_start(list, format);
    vsnprintf(wanted, sizeof wanted, format, list);
    va_end(list);
    size_t at = 0;
    got[0] = '\0';
    for (int i = 0; i < call->n_in && at < sizeof got; i++) {
        char text[128];
        if (!call->in[i]) continue;
        at += (size_t)snprintf(got + at, sizeof got - at, "%s%s %s", at ? ", " : "", input_name(call->op, i),
                               tn_describe(call->in[i], text, sizeof text));
    }
    tn_fail_at(call->cx, status, call->op->name, file, line, "%s; got %s", wanted, at ? got : "no tensors");
    return false;
}

static const char *mask_text(unsigned mask, char *buffer, size_t n_bytes) {
    size_t at = 0;
    buffer[0] = '\0';
    for (int i = 0; i < TN_DTYPE_COUNT && at < n_bytes; i++)
        if (mask >> i & 1) at += (size_t)snprintf(buffer + at, n_bytes - at, "%s%s", at ? ", " : "", tn_dtype_name((tn_dtype)i));
    return buffer;
}

/* ---- before check(): what holds for every op ---- */

static const tn_input_def *input_def(const tn_op_def *op, int i) { return &op->inputs[i < op->n_inputs ? i : op->n_inputs - 1]; }

static bool arity_fits(tn_op_call *call) {
    const tn_op_def *op = call->op;
    bool variadic = op->n_inputs && op->inputs[op->n_inputs - 1].flags & TN_INPUT_VARIADIC;
    if (call->n_in == op->n_inputs || (variadic && call->n_in >= op->n_inputs)) return true;
    tn_fail(call->cx, TN_ERR_ARGUMENT, op->name, "got %d inputs, wanted %d%s", call->n_in, op->n_inputs, variadic ? " or more" : "");
    return false;
}

static tn_dtype wide_dtype(tn_dtype data) { return data == TN_F64 ? TN_F64 : TN_F32; }

static bool dtypes_fit(tn_op_call *call) {
    tn_dtype first = call->in[0] ? call->in[0]->dtype : TN_F32;
    for (int i = 0; i < call->n_in; i++) {
        const tn_tensor *t = call->in[i];
        const tn_input_def *def = input_def(call->op, i);
        char text[64];
        if (!t) continue;
        if (t->cx != call->cx) return tn_refuse(call, TN_ERR_ARGUMENT, "%s belongs to another context", def->name);
        if (def->flags & TN_INPUT_WIDE && t->dtype != wide_dtype(first))
            return tn_refuse(call, TN_ERR_DTYPE, "wanted %s of dtype %s beside %s data", def->name, tn_dtype_name(wide_dtype(first)),
                             tn_dtype_name(first));
        if (def->dtypes && !(def->dtypes >> t->dtype & 1))
            return tn_refuse(call, TN_ERR_DTYPE, "wanted %s of dtype %s", def->name, mask_text(def->dtypes, text, sizeof text));
        if (!def->dtypes && !(def->flags & TN_INPUT_WIDE) && t->dtype != first)
            return tn_refuse(call, TN_ERR_DTYPE, "wanted %s of the same dtype as %s", def->name, input_name(call->op, 0));
    }
    return true;
}

static bool device_fits(tn_op_call *call) {
    const tn_op_def *op = call->op;
    const tn_device *device = call->cx->device;
    if (op->flags & TN_OP_VIEW) return true;
    tn_dtype dtype = call->in[0] ? call->in[0]->dtype : TN_F32;
    static const char *const kinds[TN_DEVICE_KIND_COUNT] = { "cpu", "cuda" };
    char text[64];
    if (!op->forward[device->kind]) return tn_refuse(call, TN_ERR_UNSUPPORTED, "no forward on %s", kinds[device->kind]);
    if (!(op->forward_dtypes[device->kind] >> dtype & 1))
        return tn_refuse(call, TN_ERR_DTYPE, "forward on %s wanted %s", kinds[device->kind],
                         mask_text(op->forward_dtypes[device->kind], text, sizeof text));
    if (call->wants && !op->backward_tensors && (!op->backward[device->kind] || !(op->backward_dtypes[device->kind] >> dtype & 1)))
        return tn_refuse(call, TN_ERR_UNSUPPORTED, "no backward for %s on %s", tn_dtype_name(dtype), kinds[device->kind]);
    return true;
}

static uint32_t wanted_gradients(const tn_op_call *call) {
    if (call->op->flags & TN_OP_NOT_DIFFERENTIABLE || !tn_recording(call->cx)) return 0;
    uint32_t wants = 0;
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i] && !(input_def(call->op, i)->flags & TN_INPUT_NO_GRADIENT) && tn_link_wants(tn_link_of(call->in[i])))
            wants |= 1u << i;
    return wants;
}

static bool still_as_made(tn_op_call *call) {
    for (int i = 0; i < call->n_in; i++)
        if (call->wants >> i & 1 && tn_link_stale(call->in[i]))
            return tn_refuse(
                call, TN_ERR_GRAPH,
                "%s was made by %s and has been overwritten since: no gradient can flow back through it; wanted tn_detach of it",
                input_name(call->op, i), tn_link_of(call->in[i])->node->op->name);
    return true;
}

/* ---- running a kernel ---- */

static bool is_unaligned(const tn_tensor *t) { return t->cx->device->kind == TN_DEVICE_CUDA && (uintptr_t)t->data % 16 != 0; }

/* What the kernel can't take as it is gets a dense copy for the length of the call. */
static bool make_dense(tn_tensor **tensors, int n, unsigned flags, tn_tensor **copies) {
    for (int i = 0; i < n; i++) {
        copies[i] = NULL;
        tn_tensor *t = tensors[i];
        if (!t || flags & TN_INPUT_STRIDED) continue;
        if (tn_is_contiguous(t) && !(flags & TN_INPUT_ALIGNED && is_unaligned(t))) continue;
        copies[i] = tn_dense_copy(t, t->dtype);
        if (!copies[i]) return false;
        tensors[i] = copies[i];
    }
    return true;
}

static void drop_copies(tn_tensor **copies, int n) {
    for (int i = 0; i < n; i++) tn_unreference(copies[i]);
}

static bool kernel_said(tn_op_call *call, tn_status status, const char *pass) {
    tn_context *cx = call->cx;
    if (status == TN_OK) return tn_ready(cx);
    if (tn_ready(cx))
        tn_fail(cx, status, call->op->name, "the %s kernel failed%s%s", pass, cx->device->failure[0] ? ": " : "", cx->device->failure);
    return false;
}

static bool launch(tn_op_call *call, tn_kernel kernel, bool backward) {
    tn_context *cx = call->cx;
    tn_block *block = NULL;
    call->workspace = NULL;
    call->device = cx->device;
    call->threads = cx->device->threads;
    size_t (*workspace)(const tn_op_call *, bool) = call->op->workspace[cx->device->kind];
    call->workspace_bytes = workspace ? workspace(call, backward) : 0;
    if (call->workspace_bytes) {
        block = tn_workspace_take(cx, call->workspace_bytes);
        if (!block) return false;
        call->workspace = tn_block_data(block);
    }
    bool fine = true;
    if (!cx->device->dry_run) {
        call->stream = cx->device->interface->native_stream(cx->device, cx->stream);
        fine = kernel_said(call, kernel(call), backward ? "backward" : "forward");
    }
    tn_workspace_give(cx, block);
    return fine && tn_ready(cx);
}

static bool run_forward_kernel(tn_op_call *call) {
    tn_tensor *given[TN_OP_MAX_INPUTS], *copies[TN_OP_MAX_INPUTS];
    int n_dense = 0;
    bool fine = true;
    for (int i = 0; fine && i < call->n_in; i++, n_dense++) {
        given[i] = call->in[i];
        fine = make_dense(&call->in[i], 1, input_def(call->op, i)->flags, &copies[i]);
    }
    fine = fine && launch(call, call->op->forward[call->cx->device->kind], false);
    drop_copies(copies, n_dense);
    memcpy(call->in, given, (size_t)n_dense * sizeof *given);
    return fine;
}

/* A gradient's place: dense, or with the last two axes swapped in memory. */
static tn_tensor *new_gradient(const tn_op_call *call, int i) {
    tn_shape shape = call->in_spec[i].shape;
    int last = shape.axes - 1;
    bool transposed = call->transposed >> i & 1;
    if (transposed) {
        shape.size[last] = call->in_spec[i].shape.size[last - 1];
        shape.size[last - 1] = call->in_spec[i].shape.size[last];
    }
    tn_tensor *t = tn_tensor_new(call->cx, call->in_spec[i].dtype, &shape, true);
    if (!t || !transposed) return t;
    t->stride[last] = t->shape[last];
    t->stride[last - 1] = 1;
    t->shape[last] = shape.size[last - 1];
    t->shape[last - 1] = shape.size[last];
    return t;
}

static bool compute_backward(tn_op_call *call) {
    tn_tensor *given[TN_OP_MAX_INPUTS], *in_copies[TN_OP_MAX_INPUTS], *dout_copies[TN_OP_MAX_OUTPUTS];
    int n_dense = 0;
    bool fine = true;
    for (int i = 0; fine && i < call->n_in; i++, n_dense++) {
        given[i] = call->in[i];
        fine = make_dense(&call->in[i], 1, input_def(call->op, i)->flags, &in_copies[i]);
    }
    memset(dout_copies, 0, sizeof dout_copies);
    fine = fine && make_dense(call->dout, call->n_out,
                              call->op->flags & TN_OP_STRIDED_DOUT ? TN_INPUT_STRIDED : input_def(call->op, 0)->flags & TN_INPUT_ALIGNED,
                              dout_copies);
    for (int i = 0; fine && i < call->n_in; i++) {
        if (!(call->wants >> i & 1)) continue;
        call->din[i] = new_gradient(call, i);
        fine = call->din[i] != NULL;
    }
    fine = fine && launch(call, call->op->backward[call->cx->device->kind], true);
    drop_copies(in_copies, n_dense);
    drop_copies(dout_copies, call->n_out);
    memcpy(call->in, given, (size_t)n_dense * sizeof *given);
    return fine;
}

/* Hands dout on where it already is the gradient; what is left is the kernel's. */
bool tn_run_backward_kernel(tn_op_call *call) {
    uint32_t wants = call->wants, passed = 0;
    if (call->op->passes_gradient)
        for (int i = 0; i < call->n_in; i++)
            if (wants >> i & 1 && call->op->passes_gradient(call, i)) passed |= 1u << i;
    call->wants = wants & ~passed;
    bool fine = !call->wants || compute_backward(call);
    call->wants = wants;
    for (int i = 0; fine && passed >> i; i++)
        if (passed >> i & 1) call->din[i] = tn_reference(call->dout[0]);
    return fine;
}

/* ---- forward ---- */

static bool allocate(tn_op_call *call) {
    for (int i = 0; i < call->n_out; i++) {
        call->out[i] = tn_tensor_new(call->cx, call->out_spec[i].dtype, &call->out_spec[i].shape, true);
        if (!call->out[i]) return false;
    }
    for (int i = 0; call->wants && i < call->n_aux; i++) {
        call->aux[i] = tn_tensor_new(call->cx, call->aux_spec[i].dtype, &call->aux_spec[i].shape, true);
        if (!call->aux[i]) return false;
    }
    return true;
}

static bool outputs_finite(tn_op_call *call) {
    tn_context *cx = call->cx;
    for (int i = 0; i < call->n_out; i++) {
        int64_t at = -1;
        if (!tn_dtype_is_float(call->out[i]->dtype)) continue;
        tn_status status = cx->device->interface->find_nonfinite(cx->device, call->out[i], &at, cx->stream);
        if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, call->op->name);
        if (at >= 0)
            return tn_refuse(call, TN_ERR_NUMERIC, "forward made a NaN or Inf: element %" PRId64 " of output %s", at,
                             call->op->outputs[i].name);
    }
    return true;
}

static bool plan(tn_op_call *call) {
    if (!arity_fits(call) || !dtypes_fit(call)) return false;
    call->wants = wanted_gradients(call);
    return still_as_made(call) && device_fits(call) && call->op->check(call);
}

static bool run_forward(tn_op_call *call) {
    if (!plan(call)) return false;
    if (call->op->flags & TN_OP_VIEW) {
        if (!call->op->view(call)) return false;
        tn_scope_disown(call->out[0]);
    } else if (!allocate(call) || !run_forward_kernel(call)) {
        return false;
    }
    if (call->cx->anomaly && !call->cx->device->dry_run && !outputs_finite(call)) return false;
    return !call->wants || tn_tape_record(call);
}

/* The first tensor decides the context; a required input that is missing makes the call a quiet NULL. */
static tn_context *context_of(const tn_op_def *op, tn_tensor *const *in, int n_in) {
    tn_context *cx = NULL;
    for (int i = 0; i < n_in; i++) {
        if (in[i] && !cx) cx = in[i]->cx;
        if (!in[i] && !(input_def(op, i)->flags & TN_INPUT_OPTIONAL)) return NULL;
    }
    return cx;
}

/* Readies a call; false where it is to be a quiet NULL. Beyond what is set here the call stays uninitialised on purpose:
 * clearing it would cost more than the smallest op. */
static bool prepare(const tn_op_def *op, tn_tensor *const *in, int n_in, const void *args, tn_op_call *call) {
    if (n_in > TN_OP_MAX_INPUTS && in[0])
        tn_fail(in[0]->cx, TN_ERR_ARGUMENT, op->name, "got %d inputs, wanted at most %d", n_in, TN_OP_MAX_INPUTS);
    tn_context *cx = n_in > 0 && n_in <= TN_OP_MAX_INPUTS ? context_of(op, in, n_in) : NULL;
    if (!tn_ready(cx)) return false;
    call->op = op;
    call->cx = cx;
    call->args = args;
    call->n_in = n_in;
    call->n_out = op->n_outputs;
    call->n_aux = 0;
    call->save_in = call->save_out = 0;
    call->in_spec = NULL;
    call->wants = 0;
    memcpy(call->in, in, (size_t)n_in * sizeof *in);
    memset(call->out, 0, sizeof call->out);
    memset(call->aux, 0, sizeof call->aux);
    return true;
}

bool tn_op_plan(const tn_op_def *op, tn_tensor *const *in, int n_in, const void *args, tn_op_call *call) {
    return prepare(op, in, n_in, args, call) && plan(call);
}

tn_tensor *tn_apply(const tn_op_def *op, tn_tensor *const *in, int n_in, const void *args, tn_tensor **out) {
    for (int i = 0; i < op->n_outputs; i++) out[i] = NULL;
    tn_op_call call;
    if (!prepare(op, in, n_in, args, &call) || !tn_enter(call.cx, op->name)) return NULL;

    tn_context *cx = call.cx;
    const char *op_before = cx->op;
    tn_pass pass_before = cx->pass;
    cx->op = op->name;
    if (cx->pass != TN_PASS_BACKWARD) cx->pass = TN_PASS_FORWARD; /* calls that backward makes are backward's */
    bool fine = run_forward(&call);
    cx->op = op_before;
    cx->pass = pass_before;

    for (int i = 0; i < TN_OP_MAX_AUX; i++) tn_unreference(call.aux[i]);
    for (int i = 0; i < call.n_out; i++) {
        if (fine) out[i] = tn_scope_adopt(call.out[i]);
        else tn_unreference(call.out[i]);
    }
    tn_leave(cx);
    return fine ? out[0] : NULL;
}
