#include "optim_internal.h"

#include <math.h>

#include "../family.h"
#include "../op_support.h"

/* Optimizers change tensors in place and are no ops; the family is here for its folder and header. */
const tn_op_family tn_family_optim = { NULL, 0 };

static const tn_optim_kernels *const kernels[TN_DEVICE_KIND_COUNT] = {
    [TN_DEVICE_CPU] = &tn_optim_kernels_cpu, [TN_DEVICE_CUDA] = TN_CUDA_KERNEL(&tn_optim_kernels_cuda)
};

static const tn_optim_kernels *kernels_of(tn_context *cx, const char *call) {
    const tn_optim_kernels *found = kernels[cx->device->kind];
    return found ? found : tn_fail(cx, TN_ERR_UNSUPPORTED, call, "no kernels for the device %s", cx->device->name);
}

/* ---- making and freeing ---- */

static void free_optimizer(void *user) {
    tn_optimizer *opt = user;
    for (int64_t i = 0; i < opt->n_states; i++) tn_optimizer_drop_state(&opt->states[i]);
    tn_unreference(opt->schedule);
    tn_host_free(opt->states);
    tn_host_free(opt->tensors);
    tn_host_free(opt->groups);
    tn_host_free(opt);
}

static bool wants_number(tn_context *cx, const char *call, const char *name, double value, double below) {
    if (value >= 0 && value < below) return true;
    if (isinf(below)) tn_fail(cx, TN_ERR_ARGUMENT, call, "%s = %g: wanted a finite number, not below 0", name, value);
    else tn_fail(cx, TN_ERR_ARGUMENT, call, "%s = %g: wanted 0 <= %s < %g", name, value, name, below);
    return false;
}

static tn_optimizer *new_optimizer(tn_params *params, const tn_optimizer *like) {
    tn_context *cx = tn_params_context(params);
    tn_optimizer *opt = tn_host_alloc(sizeof *opt);
    if (opt) {
        *opt = *like;
        opt->cx = cx;
        opt->params = params;
        if (tn_context_on_close(cx, free_optimizer, opt)) return opt;
    }
    tn_host_free(opt);
    return tn_fail(cx, TN_ERR_HOST_MEMORY, like->name, "the host has no memory left");
}

tn_optimizer *tn_adamw_new(tn_params *params, tn_adamw_args args) {
    tn_context *cx = tn_params_context(params);
    const char *call = "tn_adamw_new";
    if (!tn_ready(cx) || !wants_number(cx, call, "lr", args.lr, INFINITY) || !wants_number(cx, call, "beta1", args.beta1, 1) ||
        !wants_number(cx, call, "beta2", args.beta2, 1) || !wants_number(cx, call, "eps", args.eps, INFINITY) ||
        !wants_number(cx, call, "weight_decay", args.weight_decay, INFINITY))
        return NULL;
    return new_optimizer(params, &(tn_optimizer){ .kind = TN_OPTIMIZER_ADAMW, .name = "adamw", .adamw = args, .lr = args.lr });
}

tn_optimizer *tn_sgd_new(tn_params *params, tn_sgd_args args) {
    tn_context *cx = tn_params_context(params);
    const char *call = "tn_sgd_new";
    if (!tn_ready(cx) || !wants_number(cx, call, "lr", args.lr, INFINITY) || !wants_number(cx, call, "momentum", args.momentum, 1) ||
        !wants_number(cx, call, "weight_decay", args.weight_decay, INFINITY))
        return NULL;
    if (args.nesterov && args.momentum == 0) return tn_fail(cx, TN_ERR_ARGUMENT, call, "nesterov without momentum");
    return new_optimizer(params, &(tn_optimizer){ .kind = TN_OPTIMIZER_SGD, .name = "sgd", .sgd = args, .lr = args.lr });
}

void tn_optimizer_free(tn_optimizer *opt) {
    if (!opt) return;
    tn_context_forget_close(opt->cx, opt);
    free_optimizer(opt);
}

/* ---- settings ---- */

static tn_optim_group *find_group(const tn_optimizer *opt, int group) {
    for (int i = 0; i < opt->n_groups; i++)
        if (opt->groups[i].group == group) return &opt->groups[i];
    return NULL;
}

bool tn_optimizer_group(tn_optimizer *opt, int group, double lr_scale, double weight_decay) {
    const char *call = "tn_optimizer_group";
    if (!opt || !tn_ready(opt->cx) || !wants_number(opt->cx, call, "lr_scale", lr_scale, INFINITY) ||
        !wants_number(opt->cx, call, "weight_decay", weight_decay, INFINITY))
        return false;
    tn_optim_group *found = find_group(opt, group);
    if (!found) {
        tn_optim_group *groups = tn_host_realloc(opt->groups, (size_t)(opt->n_groups + 1) * sizeof *groups);
        if (!groups) return tn_fail(opt->cx, TN_ERR_HOST_MEMORY, call, "the host has no memory left");
        opt->groups = groups;
        found = &groups[opt->n_groups++];
    }
    *found = (tn_optim_group){ group, lr_scale, weight_decay };
    return true;
}

bool tn_optimizer_set_lr(tn_optimizer *opt, double lr) {
    if (!opt || !tn_ready(opt->cx) || !wants_number(opt->cx, "tn_optimizer_set_lr", "lr", lr, INFINITY)) return false;
    opt->lr = lr;
    return true;
}

double tn_optimizer_lr(const tn_optimizer *opt) { return opt ? opt->lr : 0; }

void tn_optimizer_zero_grad(const tn_optimizer *opt) {
    if (opt) tn_zero_grad(opt->params);
}

/* A tensor may be listed under two names; only the first place counts. */
static bool listed_before(const tn_params *params, int64_t index) {
    const tn_tensor *p = tn_params_at(params, index);
    for (int64_t i = 0; i < index; i++)
        if (tn_params_at(params, i) == p) return true;
    return false;
}

/* ---- state ---- */

int tn_optimizer_parts(const tn_optimizer *opt, tn_dtype dtype, tn_optim_part parts[3]) {
    int n = 0;
    tn_dtype wide = tn_wide_dtype(dtype);
    if (opt->kind == TN_OPTIMIZER_ADAMW) {
        parts[n++] = (tn_optim_part){ "m", wide, offsetof(tn_optim_state, first) };
        parts[n++] = (tn_optim_part){ "v", wide, offsetof(tn_optim_state, second) };
    } else if (opt->sgd.momentum > 0) {
        parts[n++] = (tn_optim_part){ "momentum", wide, offsetof(tn_optim_state, first) };
    }
    if (dtype == TN_BF16) parts[n++] = (tn_optim_part){ "master", TN_F32, offsetof(tn_optim_state, master) };
    return n;
}

bool tn_optimizer_grow(tn_optimizer *opt) {
    int64_t n = tn_params_count(opt->params);
    if (n <= opt->n_states) return true;
    tn_optim_state *states = tn_host_realloc(opt->states, (size_t)n * sizeof *states);
    if (states) opt->states = states;
    tn_optim_tensor *tensors = states ? tn_host_realloc(opt->tensors, (size_t)n * sizeof *tensors) : NULL;
    if (!tensors) return tn_fail(opt->cx, TN_ERR_HOST_MEMORY, opt->name, "the host has no memory left");
    opt->tensors = tensors;
    for (; opt->n_states < n; opt->n_states++)
        states[opt->n_states] = (tn_optim_state){ .repeated = listed_before(opt->params, opt->n_states) };
    return true;
}

static tn_tensor *new_state_tensor(tn_context *cx, tn_dtype dtype, const tn_tensor *p) {
    tn_shape shape = tn_shape_of(p);
    tn_category before = tn_memory_set_category(cx, TN_CATEGORY_OPTIMIZER);
    tn_tensor *t = tn_tensor_new(cx, dtype, &shape, true);
    tn_memory_set_category(cx, before);
    if (!t) return NULL;
    tn_status status = cx->device->interface->fill(cx->device, t, 0, cx->stream);
    if (status == TN_OK) return t;
    tn_unreference(t);
    return TN_FAIL_DEVICE(cx, status, "optimizer");
}

bool tn_optimizer_make_state(tn_optimizer *opt, tn_optim_state *state, const tn_tensor *p) {
    tn_optim_part parts[3];
    int n = tn_optimizer_parts(opt, p->dtype, parts);
    for (int i = 0; i < n; i++) {
        tn_tensor **t = tn_optim_part_of(state, &parts[i]);
        if (!*t && !(*t = new_state_tensor(opt->cx, parts[i].dtype, p))) return false;
    }
    return true;
}

void tn_optimizer_drop_state(tn_optim_state *state) {
    tn_unreference(state->first);
    tn_unreference(state->second);
    tn_unreference(state->master);
    *state = (tn_optim_state){ .repeated = state->repeated };
}

/* ---- lists for kernels ---- */

static void *data_of(const tn_tensor *t) { return t ? t->data : NULL; }

static void append(tn_optim_list *list, const tn_optim_tensor *tensor) {
    if (tensor->n == 0) return;
    list->tensors[list->n_tensors] = *tensor;
    list->tensors[list->n_tensors++].first_chunk = list->n_chunks;
    list->n_chunks += (tensor->n - 1) / TN_OPTIM_CHUNK + 1;
}

static tn_optim_list new_list(tn_context *cx, tn_optim_tensor *tensors) {
    return (tn_optim_list){ .tensors = tensors,
                            .device = cx->device,
                            .threads = cx->device->threads,
                            .stream = cx->device->interface->native_stream(cx->device, cx->stream) };
}

static bool is_dense(const tn_params *params, int64_t index, const char *call) {
    const tn_tensor *p = tn_params_at(params, index);
    if (tn_is_contiguous(p)) return true;
    char text[128];
    tn_fail(p->cx, TN_ERR_ARGUMENT, call, "the parameter %s %s is not contiguous", tn_params_name(params, index),
            tn_describe(p, text, sizeof text));
    return false;
}

/* ---- a step ---- */

static void set_rates(const tn_optimizer *opt, int64_t index, int64_t step, tn_optim_tensor *tensor) {
    const tn_optim_group *group = find_group(opt, tn_params_group(opt->params, index));
    double lr = opt->lr * (group ? group->lr_scale : 1);
    if (opt->kind == TN_OPTIMIZER_SGD) {
        tensor->rate = lr;
        tensor->decay = group ? group->weight_decay : opt->sgd.weight_decay;
        return;
    }
    double decay = group ? group->weight_decay : opt->adamw.weight_decay;
    tensor->lr_scale = group ? group->lr_scale : 1;
    tensor->decay = decay;
    tensor->keep = 1 - lr * decay;
    tensor->rate = lr / (1 - pow(opt->adamw.beta1, (double)step));
    tensor->root_scale = 1 / sqrt(1 - pow(opt->adamw.beta2, (double)step));
}

static bool list_parameters(tn_optimizer *opt, tn_optim_list *list) {
    for (int64_t i = 0; i < opt->n_states; i++) {
        tn_tensor *p = tn_params_at(opt->params, i), *g = tn_grad(p);
        tn_optim_state *state = &opt->states[i];
        if (!g || state->repeated) continue;
        if (!is_dense(opt->params, i, opt->name) || !tn_optimizer_make_state(opt, state, p)) return false;
        tn_optim_tensor tensor = { .dtype = p->dtype,
                                   .n = p->numel,
                                   .p = p->data,
                                   .g = g->data,
                                   .master = data_of(state->master),
                                   .first = data_of(state->first),
                                   .second = data_of(state->second) };
        set_rates(opt, i, opt->prepared ? opt->prepared : state->steps + 1, &tensor);
        append(list, &tensor);
    }
    return true;
}

static bool run_step(tn_optimizer *opt) {
    tn_context *cx = opt->cx;
    const tn_optim_kernels *kernel = kernels_of(cx, opt->name);
    if (!kernel || !tn_optimizer_grow(opt)) return false;
    tn_optim_list list = new_list(cx, opt->tensors);
    list.schedule = opt->prepared ? data_of(opt->schedule) : NULL;
    if (!list_parameters(opt, &list)) return false;
    tn_status status = TN_OK;
    if (list.n_tensors > 0 && !cx->device->dry_run)
        status = opt->kind == TN_OPTIMIZER_ADAMW ? kernel->adamw(&list, &opt->adamw) : kernel->sgd(&list, &opt->sgd);
    if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, opt->name);
    for (int64_t i = 0; i < opt->n_states; i++) {
        tn_tensor *p = tn_params_at(opt->params, i);
        if (!tn_grad(p) || opt->states[i].repeated) continue;
        opt->states[i].steps = opt->prepared ? opt->prepared : opt->states[i].steps + 1;
        tn_mark_written(p);
    }
    return true;
}

/* Allocations from here on are the optimizer's. */
typedef struct tn_owned {
    const char *op;
    tn_pass pass;
} tn_owned;

static tn_owned enter(tn_context *cx, const char *name) {
    tn_owned before = { cx->op, cx->pass };
    cx->op = name;
    cx->pass = TN_PASS_OPTIMIZER;
    return before;
}

static void leave(tn_context *cx, tn_owned before) {
    cx->op = before.op;
    cx->pass = before.pass;
}

bool tn_optimizer_step(tn_optimizer *opt) {
    if (!opt || !tn_ready(opt->cx)) return false;
    tn_owned before = enter(opt->cx, opt->name);
    bool fine = run_step(opt);
    leave(opt->cx, before);
    return fine;
}

/* ---- a step that is replayed ---- */

static bool write_schedule(tn_optimizer *opt) {
    tn_context *cx = opt->cx;
    double values[TN_SCHEDULE_COUNT] = { [TN_SCHEDULE_LR] = opt->lr,
                                         [TN_SCHEDULE_BIAS1] = 1 - pow(opt->adamw.beta1, (double)opt->prepared),
                                         [TN_SCHEDULE_BIAS2] = 1 - pow(opt->adamw.beta2, (double)opt->prepared) };
    if (!opt->schedule) {
        tn_category before = tn_memory_set_category(cx, TN_CATEGORY_OPTIMIZER);
        opt->schedule = tn_tensor_new(cx, TN_F64, &(tn_shape){ 1, { TN_SCHEDULE_COUNT } }, true);
        tn_memory_set_category(cx, before);
    }
    return opt->schedule && tn_set_data(opt->schedule, values, sizeof values);
}

bool tn_optimizer_prepare(tn_optimizer *opt) {
    if (!opt || !tn_ready(opt->cx)) return false;
    if (opt->kind != TN_OPTIMIZER_ADAMW)
        return tn_fail(opt->cx, TN_ERR_UNSUPPORTED, "tn_optimizer_prepare", "%s has no such step", opt->name);
    int64_t steps = 0;
    for (int64_t i = 0; i < opt->n_states; i++)
        if (opt->states[i].steps > steps) steps = opt->states[i].steps;
    opt->prepared = steps + 1;
    tn_owned before = enter(opt->cx, opt->name);
    bool fine = write_schedule(opt);
    leave(opt->cx, before);
    for (int64_t i = 0; fine && i < opt->n_states; i++)
        if (opt->states[i].steps > 0) opt->states[i].steps = opt->prepared;
    return fine;
}

/* ---- clipping ---- */

static bool run_clip(tn_context *cx, const tn_params *params, tn_optim_list *list, double max_norm, tn_tensor *norm) {
    const char *call = "tn_clip_grad_norm";
    const tn_optim_kernels *kernel = kernels_of(cx, call);
    if (!kernel) return false;
    for (int64_t i = 0; i < tn_params_count(params); i++) {
        tn_tensor *g = tn_grad(tn_params_at(params, i));
        if (!g || listed_before(params, i)) continue;
        append(list, &(tn_optim_tensor){ .dtype = g->dtype, .n = g->numel, .g = g->data });
    }
    tn_block *parts = tn_workspace_take(cx, (size_t)list->n_chunks * sizeof(double));
    if (!parts) return false;
    tn_status status = cx->device->dry_run ? TN_OK : kernel->clip(list, max_norm, norm->data, tn_block_data(parts));
    tn_workspace_give(cx, parts);
    if (status != TN_OK) return TN_FAIL_DEVICE(cx, status, call);
    for (int64_t i = 0; i < tn_params_count(params); i++) tn_mark_written(tn_grad(tn_params_at(params, i)));
    return tn_ready(cx);
}

tn_tensor *tn_clip_grad_norm(const tn_params *params, double max_norm) {
    tn_context *cx = tn_params_context(params);
    const char *call = "tn_clip_grad_norm";
    if (!tn_ready(cx)) return NULL;
    if (!(max_norm >= 0)) return tn_fail(cx, TN_ERR_ARGUMENT, call, "max_norm = %g: wanted a number not below 0", max_norm);
    size_t n = (size_t)tn_params_count(params) + 1;
    tn_optim_tensor *tensors = tn_host_alloc(n * sizeof *tensors);
    if (!tensors) return tn_fail(cx, TN_ERR_HOST_MEMORY, call, "the host has no memory left");
    tn_owned before = enter(cx, call);
    tn_optim_list list = new_list(cx, tensors);
    tn_tensor *norm = tn_tensor_new(cx, TN_F64, &TN_SCALAR, true);
    bool fine = norm && run_clip(cx, params, &list, max_norm, norm);
    leave(cx, before);
    tn_host_free(tensors);
    if (fine) return tn_scope_adopt(norm);
    tn_unreference(norm);
    return NULL;
}
