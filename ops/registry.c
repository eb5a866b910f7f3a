#include "registry.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "family.h"

#define TN_FAMILY(name) extern const tn_op_family tn_family_##name;
#include "op_list.def"
#undef TN_FAMILY

static const struct {
    const char *name;
    const tn_op_family *family;
} families[] = {
#define TN_FAMILY(name) { #name, &tn_family_##name },
#include "op_list.def"
#undef TN_FAMILY
};

#define MAX_OUTSIDE_OPS 256
static const tn_op_def *outside[MAX_OUTSIDE_OPS];
static int n_outside;
static pthread_mutex_t outside_lock = PTHREAD_MUTEX_INITIALIZER;

static int inside_count(void) {
    int n = 0;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) n += families[i].family->n_ops;
    return n;
}

int tn_op_count(void) {
    pthread_mutex_lock(&outside_lock);
    int n = inside_count() + n_outside;
    pthread_mutex_unlock(&outside_lock);
    return n;
}

const tn_op_def *tn_op_at(int index) {
    if (index < 0) return NULL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (index < families[i].family->n_ops) return families[i].family->ops[index];
        index -= families[i].family->n_ops;
    }
    pthread_mutex_lock(&outside_lock);
    const tn_op_def *def = index < n_outside ? outside[index] : NULL;
    pthread_mutex_unlock(&outside_lock);
    return def;
}

const tn_op_def *tn_op_find(const char *name) {
    int n = name ? tn_op_count() : 0;
    for (int i = 0; i < n; i++) {
        const tn_op_def *def = tn_op_at(i);
        if (strcmp(def->name, name) == 0) return def;
    }
    return NULL;
}

static bool has_samples_of(const tn_op_def *def, bool bad) {
    for (const tn_sample *sample = def->samples; sample && sample->name; sample++)
        if ((sample->error != TN_OK) == bad) return true;
    return false;
}

const char *tn_op_incomplete(const tn_op_def *def) {
    bool view = def->flags & TN_OP_VIEW;
    bool differentiable = !(def->flags & TN_OP_NOT_DIFFERENTIABLE);
    if (!def->name || !def->name[0]) return "a name";
    if (!def->doc || !def->doc[0]) return "a one-line doc";
    if (!def->inputs || def->n_inputs < 1 || def->n_inputs > TN_OP_MAX_INPUTS) return "named inputs";
    if (!def->outputs || def->n_outputs < 1 || def->n_outputs > TN_OP_MAX_OUTPUTS) return "named outputs";
    if (def->args_bytes > TN_OP_MAX_ARGS_BYTES) return "an args struct of at most 256 bytes";
    if (!def->check) return "check()";
    if (view ? !def->view : !def->forward[TN_DEVICE_CPU]) return view ? "view()" : "a CPU reference";
    if (differentiable && !def->backward_tensors && !def->backward[TN_DEVICE_CPU]) return "a backward on the CPU";
    if (!def->saved_bytes && differentiable) return "a saved-bytes formula";
    if (!def->floor_bytes && !view) return "a floor-bytes formula";
    if (!has_samples_of(def, false)) return "samples";
    if (!has_samples_of(def, true)) return "error samples";
    return NULL;
}

bool tn_op_register(tn_context *cx, const tn_op_def *def) {
    const char *missing = def ? tn_op_incomplete(def) : "a description";
    if (missing) {
        tn_fail(cx, TN_ERR_ARGUMENT, "tn_op_register", "the op %s lacks %s", def && def->name ? def->name : "(unnamed)", missing);
        return false;
    }
    if (tn_op_find(def->name)) {
        tn_fail(cx, TN_ERR_ARGUMENT, "tn_op_register", "there is an op called %s already", def->name);
        return false;
    }
    pthread_mutex_lock(&outside_lock);
    bool room = n_outside < MAX_OUTSIDE_OPS;
    if (room) outside[n_outside++] = def;
    pthread_mutex_unlock(&outside_lock);
    if (!room)
        tn_fail(cx, TN_ERR_ARGUMENT, "tn_op_register", "there is room for %d ops from outside, and %s is one more", MAX_OUTSIDE_OPS,
                def->name);
    return room;
}
