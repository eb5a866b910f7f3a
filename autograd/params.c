#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "../libtensor/safetensors.h"
#include "tape_internal.h"

#define NAME_BYTES 128

typedef struct tn_param {
    tn_tensor *tensor; /* referenced */
    int group;
    char name[NAME_BYTES];
} tn_param;

struct tn_params {
    tn_context *cx;
    tn_param *list;
    int64_t n, capacity;
};

static void free_params(void *params) {
    tn_params *p = params;
    for (int64_t i = 0; i < p->n; i++) tn_unreference(p->list[i].tensor);
    tn_host_free(p->list);
    tn_host_free(p);
}

tn_params *tn_params_new(tn_context *cx) {
    if (!tn_ready(cx)) return NULL;
    tn_params *params = tn_host_calloc(sizeof *params);
    if (params) params->cx = cx;
    if (params && tn_context_on_close(cx, free_params, params)) return params;
    tn_host_free(params);
    return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_params_new", "the host has no memory left");
}

void tn_params_free(tn_params *params) {
    if (!params) return;
    tn_context_forget_close(params->cx, params);
    free_params(params);
}

static bool grow(tn_params *params) {
    if (params->n < params->capacity) return true;
    int64_t capacity = params->capacity ? 2 * params->capacity : 16;
    tn_param *list = tn_host_realloc(params->list, (size_t)capacity * sizeof *list);
    if (!list) return false;
    params->list = list;
    params->capacity = capacity;
    return true;
}

tn_tensor *tn_params_add(tn_params *params, tn_tensor *t, int group, const char *name_format, ...) {
    if (!params || !t || !tn_ready(params->cx)) return NULL;
    tn_context *cx = params->cx;
    if (!name_format) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_params_add", "no name given");
    char name[NAME_BYTES];
    va_list list;
    va_start(list, name_format);
    int n = vsnprintf(name, sizeof name, name_format, list);
    va_end(list);
    if (n < 1 || n >= NAME_BYTES)
        return tn_fail(cx, TN_ERR_ARGUMENT, "tn_params_add", "a name has 1 to %d bytes, this one %d", NAME_BYTES - 1, n);
    if (t->cx != cx) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_params_add", "%s belongs to another context", name);
    if (group < 0) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_params_add", "%s: group %d, wanted 0 or more", name, group);
    if (tn_params_find(params, name)) return tn_fail(cx, TN_ERR_ARGUMENT, "tn_params_add", "there is a parameter called %s already", name);
    if (!grow(params)) return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_params_add", "the host has no memory left");
    tn_param *param = &params->list[params->n++];
    param->tensor = tn_reference(t);
    param->group = group;
    memcpy(param->name, name, (size_t)n + 1);
    return t;
}

tn_context *tn_params_context(const tn_params *params) { return params ? params->cx : NULL; }
int64_t tn_params_count(const tn_params *params) { return params ? params->n : 0; }

static const tn_param *param_at(const tn_params *params, int64_t index) {
    return params && index >= 0 && index < params->n ? &params->list[index] : NULL;
}

tn_tensor *tn_params_at(const tn_params *params, int64_t index) {
    const tn_param *param = param_at(params, index);
    return param ? param->tensor : NULL;
}

const char *tn_params_name(const tn_params *params, int64_t index) {
    const tn_param *param = param_at(params, index);
    return param ? param->name : "";
}

int tn_params_group(const tn_params *params, int64_t index) {
    const tn_param *param = param_at(params, index);
    return param ? param->group : 0;
}

tn_tensor *tn_params_find(const tn_params *params, const char *name) {
    for (int64_t i = 0; params && name && i < params->n; i++)
        if (strcmp(params->list[i].name, name) == 0) return params->list[i].tensor;
    return NULL;
}

void tn_zero_grad(const tn_params *params) {
    for (int64_t i = 0; params && i < params->n; i++) tn_clear_grad(params->list[i].tensor);
}

bool tn_params_save(const tn_params *params, const char *path) {
    if (!params || !tn_ready(params->cx)) return false;
    tn_named_tensor *tensors = tn_host_alloc((size_t)(params->n ? params->n : 1) * sizeof *tensors);
    if (!tensors) {
        tn_fail(params->cx, TN_ERR_HOST_MEMORY, "tn_params_save", "the host has no memory left");
        return false;
    }
    for (int64_t i = 0; i < params->n; i++) tensors[i] = (tn_named_tensor){ params->list[i].name, params->list[i].tensor };
    bool fine = tn_file_save(params->cx, path, tensors, params->n, NULL, 0);
    tn_host_free(tensors);
    return fine;
}

static bool fits_file(const tn_params *params, const tn_file *file, const char *path) {
    tn_context *cx = params->cx;
    for (int64_t i = 0; i < params->n; i++) {
        const tn_param *param = &params->list[i];
        const tn_file_entry *entry = tn_file_find(file, param->name);
        if (!entry) return tn_fail(cx, TN_ERR_FORMAT, "tn_params_load", "%s has no tensor %s", path, param->name);
        bool same = entry->dtype == param->tensor->dtype && entry->shape.axes == param->tensor->axes;
        for (int axis = 0; same && axis < entry->shape.axes; axis++) same = entry->shape.size[axis] == param->tensor->shape[axis];
        char text[128];
        if (!same)
            return tn_fail(cx, TN_ERR_FORMAT, "tn_params_load", "%s: %s there has another dtype or shape than the parameter %s", path,
                           param->name, tn_describe(param->tensor, text, sizeof text));
    }
    for (int64_t i = 0; i < tn_file_count(file); i++) {
        const char *name = tn_file_entry_at(file, i)->name;
        if (!tn_params_find(params, name))
            return tn_fail(cx, TN_ERR_FORMAT, "tn_params_load", "%s holds %s, which is no parameter here", path, name);
    }
    return true;
}

bool tn_params_load(const tn_params *params, const char *path) {
    if (!params || !tn_ready(params->cx)) return false;
    tn_file *file = tn_file_open(params->cx, path);
    bool fine = file && fits_file(params, file, path);
    for (int64_t i = 0; fine && i < params->n; i++) {
        const tn_file_entry *entry = tn_file_find(file, params->list[i].name);
        fine = tn_set_data(params->list[i].tensor, entry->data, entry->n_bytes);
    }
    tn_file_close(file);
    return fine;
}
