/* An optimizer's state in a file. */
#include <stdio.h>
#include <string.h>

#include "../../libtensor/safetensors.h"
#include "optim_internal.h"

#define MOST_PARTS 4 /* three tensors and the step count */
#define NAME_BYTES 160
#define KIND_KEY "optimizer"
#define STEP_SUFFIX "step"

typedef struct tn_state_name {
    char text[NAME_BYTES];
} tn_state_name;

static tn_state_name state_name(const tn_optimizer *opt, int64_t index, const char *suffix) {
    tn_state_name name;
    snprintf(name.text, sizeof name.text, "%s.%s", tn_params_name(opt->params, index), suffix);
    return name;
}

static bool has_state(const tn_optimizer *opt, int64_t index) { return index < opt->n_states && opt->states[index].steps > 0; }

/* ---- saving ---- */

typedef struct tn_state_list {
    tn_named_tensor *tensors;
    tn_state_name *names;
    int64_t n;
} tn_state_list;

static void add_to_list(tn_state_list *list, const tn_optimizer *opt, int64_t index, const char *suffix, const tn_tensor *t) {
    list->names[list->n] = state_name(opt, index, suffix);
    list->tensors[list->n] = (tn_named_tensor){ list->names[list->n].text, t };
    list->n++;
}

static bool list_state(const tn_optimizer *opt, tn_state_list *list) {
    for (int64_t i = 0; i < opt->n_states; i++) {
        tn_optim_part parts[3];
        if (!has_state(opt, i)) continue;
        int n = tn_optimizer_parts(opt, tn_params_at(opt->params, i)->dtype, parts);
        for (int part = 0; part < n; part++)
            add_to_list(list, opt, i, parts[part].suffix, *tn_optim_part_of(&opt->states[i], &parts[part]));
        tn_tensor *step = tn_from_data(opt->cx, TN_I64, TN_SCALAR, &opt->states[i].steps);
        if (!step) return false;
        add_to_list(list, opt, i, STEP_SUFFIX, step);
    }
    return true;
}

bool tn_optimizer_save(const tn_optimizer *opt, const char *path) {
    const char *call = "tn_optimizer_save";
    if (!opt || !tn_ready(opt->cx)) return false;
    if (!path) return tn_fail(opt->cx, TN_ERR_ARGUMENT, call, "no path given");
    size_t most = (size_t)(opt->n_states + 1) * MOST_PARTS;
    tn_state_list list = { .tensors = tn_host_alloc(most * sizeof *list.tensors), .names = tn_host_alloc(most * sizeof *list.names) };
    bool fine = list.tensors && list.names;
    if (!fine) tn_fail(opt->cx, TN_ERR_HOST_MEMORY, call, "the host has no memory left");
    tn_scope *scope = fine ? tn_scope_begin(opt->cx) : NULL;
    tn_named_text kind = { KIND_KEY, opt->name };
    fine = scope && list_state(opt, &list) && tn_file_save(opt->cx, path, list.tensors, list.n, &kind, 1);
    tn_scope_end(scope);
    tn_host_free(list.names);
    tn_host_free(list.tensors);
    return fine;
}

/* ---- loading ---- */

static bool same_shape(const tn_file_entry *entry, const tn_tensor *p) {
    bool same = entry->shape.axes == p->axes;
    for (int axis = 0; same && axis < p->axes; axis++) same = entry->shape.size[axis] == p->shape[axis];
    return same;
}

static bool refuse_entry(const tn_optimizer *opt, const char *path, const char *name, const char *why) {
    tn_fail(opt->cx, TN_ERR_FORMAT, "tn_optimizer_load", "%s: %s %s", path, name, why);
    return false;
}

/* Everything the file must hold for one parameter, if it holds anything for it; counts the entries. */
static bool check_parameter(const tn_optimizer *opt, const tn_file *file, const char *path, int64_t index, int64_t *n_known) {
    const tn_tensor *p = tn_params_at(opt->params, index);
    tn_state_name name = state_name(opt, index, STEP_SUFFIX);
    const tn_file_entry *step = tn_file_find(file, name.text);
    int64_t steps = 0;
    if (!step) return true;
    if (step->dtype != TN_I64 || step->n_bytes != sizeof steps) return refuse_entry(opt, path, name.text, "is no i64 scalar");
    memcpy(&steps, step->data, sizeof steps);
    if (steps < 1) return refuse_entry(opt, path, name.text, "is below 1");
    tn_optim_part parts[3];
    int n = tn_optimizer_parts(opt, p->dtype, parts);
    for (int part = 0; part < n; part++) {
        name = state_name(opt, index, parts[part].suffix);
        const tn_file_entry *entry = tn_file_find(file, name.text);
        if (!entry) return refuse_entry(opt, path, name.text, "is missing");
        if (entry->dtype != parts[part].dtype || !same_shape(entry, p))
            return refuse_entry(opt, path, name.text, "has another dtype or shape than here");
    }
    *n_known += 1 + n;
    return true;
}

static bool check_file(const tn_optimizer *opt, const tn_file *file, const char *path) {
    const char *kind = tn_file_metadata(file, KIND_KEY);
    if (!kind || strcmp(kind, opt->name) != 0) {
        tn_fail(opt->cx, TN_ERR_FORMAT, "tn_optimizer_load", "%s holds the state of %s, wanted %s", path, kind ? kind : "no optimizer",
                opt->name);
        return false;
    }
    int64_t n_known = 0;
    for (int64_t i = 0; i < opt->n_states; i++)
        if (!opt->states[i].repeated && !check_parameter(opt, file, path, i, &n_known)) return false;
    if (n_known == tn_file_count(file)) return true;
    tn_fail(opt->cx, TN_ERR_FORMAT, "tn_optimizer_load", "%s holds %lld tensors, of which %lld belong to parameters here", path,
            (long long)tn_file_count(file), (long long)n_known);
    return false;
}

static bool load_parameter(tn_optimizer *opt, const tn_file *file, int64_t index, const tn_file_entry *step) {
    tn_optim_state *state = &opt->states[index];
    tn_optim_part parts[3];
    int n = tn_optimizer_parts(opt, tn_params_at(opt->params, index)->dtype, parts);
    for (int part = 0; part < n; part++) {
        const tn_file_entry *entry = tn_file_find(file, state_name(opt, index, parts[part].suffix).text);
        if (!tn_set_data(*tn_optim_part_of(state, &parts[part]), entry->data, entry->n_bytes)) return false;
    }
    memcpy(&state->steps, step->data, sizeof state->steps);
    return true;
}

/* First all memory, then the changes. */
static bool load_file(tn_optimizer *opt, const tn_file *file) {
    bool fine = true;
    for (int64_t i = 0; fine && i < opt->n_states; i++)
        if (tn_file_find(file, state_name(opt, i, STEP_SUFFIX).text))
            fine = tn_optimizer_make_state(opt, &opt->states[i], tn_params_at(opt->params, i));
    for (int64_t i = 0; fine && i < opt->n_states; i++) {
        const tn_file_entry *step = tn_file_find(file, state_name(opt, i, STEP_SUFFIX).text);
        if (step) fine = load_parameter(opt, file, i, step);
        else tn_optimizer_drop_state(&opt->states[i]);
    }
    return fine;
}

bool tn_optimizer_load(tn_optimizer *opt, const char *path) {
    if (!opt || !tn_ready(opt->cx)) return false;
    tn_file *file = tn_file_open(opt->cx, path);
    if (!file) return false;
    bool fine = tn_optimizer_grow(opt) && check_file(opt, file, path) && load_file(opt, file);
    tn_file_close(file);
    return fine;
}
