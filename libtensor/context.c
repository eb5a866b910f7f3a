#include "context_internal.h"
#include "parallel.h"
#ifdef TN_WITH_CUDA
#include "gemm_cuda.h"
#endif

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_BYTES 2048
#define MAX_THREADS 4096

const char *tn_version(void) { return TN_VERSION_TEXT; }

/* ---- opening and closing ---- */

/* As many threads as the real device would have: kernels size their scratch memory by them. */
static tn_device *open_dry_cpu(int threads, char *reason, size_t n_bytes) {
    tn_device *device = tn_device_open_dry_run(TN_DEVICE_CPU, reason, n_bytes);
    if (device) device->threads = threads > 0 ? threads : tn_parallel_threads();
    return device;
}

static tn_device *open_device(const char *name, int threads, tn_status *status, char *reason, size_t n_bytes) {
    if (threads < 0 || threads > MAX_THREADS) {
        *status = TN_ERR_ARGUMENT;
        snprintf(reason, n_bytes, "wanted 0 (all) to %d threads, got %d", MAX_THREADS, threads);
        return NULL;
    }
    if (!name || strcmp(name, "auto") == 0) {
        tn_device *device = tn_device_open_cuda(status, reason, n_bytes);
        if (device) return device;
        name = "cpu";
    }
    if (strcmp(name, "cuda") == 0) return tn_device_open_cuda(status, reason, n_bytes);
    *status = TN_ERR_HOST_MEMORY; /* all that the CPU and dry runs can lack */
    if (strcmp(name, "cpu") == 0) return tn_device_open_cpu(threads, reason, n_bytes);
    if (strcmp(name, "dry-run") == 0 || strcmp(name, "dry-run:cpu") == 0) return open_dry_cpu(threads, reason, n_bytes);
    if (strcmp(name, "dry-run:cuda") == 0) return tn_device_open_dry_run(TN_DEVICE_CUDA, reason, n_bytes);
    *status = TN_ERR_DEVICE;
    snprintf(reason, n_bytes, "no device is called '%s'; there are auto, cpu, cuda, dry-run, dry-run:cpu and dry-run:cuda", name);
    return NULL;
}

static bool allow_tf32(tn_device *device) {
#ifdef TN_WITH_CUDA
    if (device->kind == TN_DEVICE_CUDA && !device->dry_run) return tn_gemm_cuda_allow_tf32(device, true) == TN_OK;
#endif
    return device != NULL;
}

static tn_allocator *open_allocator(tn_device *device, const tn_options *options) {
    const int64_t default_events = 65536;
    return tn_allocator_open(device, &(tn_allocator_options){
                                         .limit = options->memory_limit,
                                         .history_events = options->history_events == 0 ? default_events : options->history_events,
                                         .debug = options->debug,
                                     });
}

static void close_devices(tn_context *cx) {
    if (cx->allocator) tn_allocator_close(cx->allocator);
    if (cx->device) cx->device->interface->close(cx->device);
    cx->allocator = NULL;
    cx->device = NULL;
}

tn_context *tn_open(const tn_options *options) {
    static const tn_options defaults;
    if (!options) options = &defaults;
    tn_context *cx = tn_host_calloc(sizeof *cx);
    char *message = tn_host_calloc(MESSAGE_BYTES);
    if (!cx || !message) goto no_memory;
    cx->message = message;
    cx->root.cx = cx;
    cx->root.root = true;
    cx->retained.cx = cx;
    cx->scope = &cx->root;
    cx->label = &cx->label_root;
    cx->label_root.path = "";
    cx->rng.seed = options->seed;
    cx->debug = options->debug;
    cx->anomaly = options->anomaly;

    char reason[512] = "";
    tn_status status;
    cx->device = open_device(options->device, options->threads, &status, reason, sizeof reason);
    if (cx->device) {
        if (options->tf32 && !allow_tf32(cx->device)) goto no_memory;
        cx->allocator = open_allocator(cx->device, options);
        if (!cx->allocator) goto no_memory;
        return cx;
    }
    /* The context must answer every later call, so it gets a device that records and computes nothing. */
    char ignored[64];
    cx->device = tn_device_open_dry_run(TN_DEVICE_CPU, ignored, sizeof ignored);
    if (!cx->device) goto no_memory;
    cx->allocator = open_allocator(cx->device, options);
    if (!cx->allocator) goto no_memory;
    tn_fail(cx, status, "tn_open", "%s", reason);
    return cx;

no_memory:
    if (cx) close_devices(cx);
    tn_host_free(message);
    tn_host_free(cx);
    return NULL;
}

static void free_labels(tn_label_node *node) {
    while (node) {
        tn_label_node *sibling = node->sibling;
        free_labels(node->children);
        tn_host_free(node->path);
        tn_host_free(node->name);
        tn_host_free(node);
        node = sibling;
    }
}

bool tn_context_on_close(tn_context *cx, void (*close)(void *user), void *user) {
    tn_close_hook *hook = tn_host_alloc(sizeof *hook);
    if (!hook) return false;
    *hook = (tn_close_hook){ cx->close_hooks, close, user };
    cx->close_hooks = hook;
    return true;
}

void tn_context_forget_close(tn_context *cx, const void *user) {
    for (tn_close_hook **at = &cx->close_hooks; *at; at = &(*at)->next)
        if ((*at)->user == user) {
            tn_close_hook *hook = *at;
            *at = hook->next;
            tn_host_free(hook);
            return;
        }
}

static void run_close_hooks(tn_context *cx) {
    while (cx->close_hooks) {
        tn_close_hook *hook = cx->close_hooks;
        cx->close_hooks = hook->next;
        hook->close(hook->user);
        tn_host_free(hook);
    }
}

static void end_one_scope(tn_scope *scope);
static void free_retained(tn_context *cx);

void tn_close(tn_context *cx) {
    if (!cx) return;
    cx->device->interface->synchronize(cx->device);
    run_close_hooks(cx);
    while (cx->scope != &cx->root) end_one_scope(cx->scope);
    end_one_scope(&cx->root);
    free_retained(cx);
    if (cx->tape_closed) cx->tape_closed(cx);
    close_devices(cx);
    free_labels(cx->label_root.children);
    tn_host_pool_free(&cx->pool);
    tn_host_free(cx->message);
    tn_host_free(cx);
}

/* ---- errors ---- */

bool tn_failed(const tn_context *cx) { return !cx || cx->status != TN_OK; }
tn_status tn_error_status(const tn_context *cx) { return cx ? cx->status : TN_ERR_HOST_MEMORY; }
const char *tn_error(const tn_context *cx) { return !cx ? "no context: the host has no memory left" : cx->status ? cx->message : ""; }
const char *tn_error_op(const tn_context *cx) { return cx && cx->status ? cx->failed_op_text : ""; }

void tn_clear_error(tn_context *cx) {
    if (!cx) return;
    cx->status = TN_OK;
    cx->message[0] = '\0';
}

/* The place as the project's tree names it, without the builder's own directories. */
static const char *short_file(const char *file) {
    static const char *const folders[] = { "libtensor/", "autograd/", "ops/" };
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        const char *found = strstr(file, folders[i]);
        if (found) return found;
    }
    return file;
}

void *tn_fail_at(tn_context *cx, tn_status status, const char *op, const char *file, int line, const char *format, ...) {
    if (!cx || cx->status != TN_OK) return NULL;
    cx->status = status ? status : TN_ERR_ARGUMENT;
    snprintf(cx->failed_op_text, sizeof cx->failed_op_text, "%s", op ? op : "");
    char *at = cx->message, *end = cx->message + MESSAGE_BYTES;
    int n = snprintf(at, (size_t)(end - at), "%s: ", cx->failed_op_text);
    at += n;
    va_list list;
    va_start(list, format);
    n = vsnprintf(at, (size_t)(end - at), format, list);
    va_end(list);
    at = n < end - at ? at + n : end - 1;
    const char *label = tn_label_path(cx->label);
    snprintf(at, (size_t)(end - at), " [%s, %s:%d%s%s]", tn_status_name(cx->status), short_file(file), line, *label ? ", label " : "",
             label);
    return NULL;
}

void *tn_fail_device(tn_context *cx, tn_status status, const char *op, const char *file, int line) {
    if (status == TN_OK) return NULL;
    const char *said = cx->device->failure[0] ? cx->device->failure : "the device refused";
    return tn_fail_at(cx, status, op, file, line, "%s", said);
}

/* ---- one thread at a time ---- */

/* An address that only this thread has. */
static uintptr_t this_thread(void) {
    static _Thread_local char place;
    return (uintptr_t)&place;
}

bool tn_context_claim(tn_context *cx, const char *call) {
    uintptr_t user = 0;
    if (!__atomic_compare_exchange_n(&cx->user_thread, &user, this_thread(), false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED) &&
        user != this_thread()) {
        __atomic_store_n(&cx->intruder, call, __ATOMIC_RELAXED);
        return false;
    }
    cx->user_depth++;
    return true;
}

/* The error is stored by the thread that may: the other one is not to touch the context. */
void tn_context_yield(tn_context *cx) {
    const char *intruder = __atomic_exchange_n(&cx->intruder, NULL, __ATOMIC_RELAXED);
    if (intruder) tn_fail(cx, TN_ERR_ARGUMENT, intruder, "called while another thread uses the context: one thread at a time");
    if (--cx->user_depth == 0) __atomic_store_n(&cx->user_thread, 0, __ATOMIC_RELEASE);
}

/* ---- scopes ---- */

tn_scope *tn_scope_begin(tn_context *cx) {
    if (!tn_ready(cx) || !tn_enter(cx, "tn_scope_begin")) return NULL;
    tn_scope *scope = tn_host_pool_take(&cx->pool, sizeof *scope);
    if (scope) {
        *scope = (tn_scope){ .cx = cx, .outer = cx->scope };
        cx->scope = scope;
    } else {
        tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_scope_begin", "the host has no memory left");
    }
    tn_leave(cx);
    return scope;
}

static void enter(tn_scope *scope, tn_impl *t) {
    t->scope = scope;
    t->previous = NULL;
    t->next = scope->first;
    if (scope->first) scope->first->previous = t;
    scope->first = t;
}

static void leave(tn_impl *t) {
    if (t->previous) t->previous->next = t->next;
    else t->scope->first = t->next;
    if (t->next) t->next->previous = t->previous;
    t->scope = NULL;
    t->previous = t->next = NULL;
}

static void end_one_scope(tn_scope *scope) {
    while (scope->first) {
        tn_impl *t = scope->first;
        leave(t);
        if (t->user_references > 0) enter(&scope->cx->retained, t);
        tn_unreference(&t->pub);
    }
    if (scope->root) return;
    scope->cx->scope = scope->outer;
    tn_host_pool_give(&scope->cx->pool, scope, sizeof *scope);
}

/* At the end the context takes back what the caller still holds. */
static void free_retained(tn_context *cx) {
    while (cx->retained.first) {
        tn_impl *t = cx->retained.first;
        t->references -= t->user_references - 1;
        t->user_references = 0;
        leave(t);
        tn_unreference(&t->pub);
    }
}

void tn_scope_end(tn_scope *scope) {
    if (!scope) return;
    tn_context *cx = scope->cx;
    if (!tn_enter(cx, "tn_scope_end")) return;
    while (cx->scope != scope) end_one_scope(cx->scope);
    end_one_scope(scope);
    tn_leave(cx);
}

tn_tensor *tn_scope_keep(tn_scope *scope, tn_tensor *t) {
    if (!scope || !t) return NULL;
    tn_impl *impl = tn_impl_of(t);
    /* A tensor of a scope further out would live shorter there, not longer. */
    const tn_scope *inside = impl->scope;
    while (inside && inside != scope) inside = inside->outer;
    if (inside) {
        leave(impl);
        enter(scope->outer, impl);
    }
    return t;
}

tn_tensor *tn_scope_return(tn_scope *scope, tn_tensor *result) {
    tn_scope_keep(scope, result);
    tn_scope_end(scope);
    return result;
}

tn_tensor *tn_scope_adopt(tn_tensor *t) {
    if (t) enter(t->cx->scope, tn_impl_of(tn_scope_disown(t)));
    return t;
}

void tn_scope_hold(tn_tensor *t) {
    if (!tn_impl_of(t)->scope) enter(&t->cx->retained, tn_impl_of(t));
}

tn_tensor *tn_scope_disown(tn_tensor *t) {
    if (t && tn_impl_of(t)->scope) leave(tn_impl_of(t));
    return t;
}

bool tn_scope_owns(const tn_impl *t) { return t->scope && t->scope != &t->pub.cx->retained; }

/* ---- labels ---- */

const char *tn_label_path(const tn_label_node *label) { return label->path; }
const char *tn_label(const tn_context *cx) { return cx ? tn_label_path(cx->label) : ""; }

static tn_label_node *new_label(tn_label_node *parent, const char *name) {
    tn_label_node *node = tn_host_calloc(sizeof *node);
    size_t n_parent = strlen(parent->path), n_name = strlen(name), n_path = n_parent + n_name + 2;
    char *path = tn_host_alloc(n_path), *own_name = tn_host_strdup(name);
    if (!node || !path || !own_name) {
        tn_host_free(node);
        tn_host_free(path);
        tn_host_free(own_name);
        return NULL;
    }
    snprintf(path, n_path, "%s%s%s", parent->path, n_parent ? "/" : "", name);
    *node = (tn_label_node){ .parent = parent, .sibling = parent->children, .path = path, .name = own_name };
    parent->children = node;
    return node;
}

static tn_label_node *find_or_make_label(tn_context *cx, const char *name) {
    tn_label_node *node = cx->label->children;
    while (node && strcmp(node->name, name) != 0) node = node->sibling;
    if (!node) node = new_label(cx->label, name);
    return node ? node : tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_label_push", "the host has no memory left");
}

void tn_label_push(tn_context *cx, const char *label) {
    if (!cx) return;
    bool pushed = label && tn_ready(cx) && !cx->labels_skipped;
    tn_label_node *node = pushed ? find_or_make_label(cx, label) : NULL;
    if (node) cx->label = node;
    else cx->labels_skipped++;
}

void tn_label_pop(tn_context *cx) {
    if (!cx) return;
    if (cx->labels_skipped) cx->labels_skipped--;
    else if (cx->label->parent) cx->label = cx->label->parent;
}

/* ---- the device ---- */

const char *tn_device_name(const tn_context *cx) { return cx ? cx->device->name : ""; }
const char *tn_device_detail(const tn_context *cx) { return cx ? cx->device->detail : ""; }
int tn_threads(const tn_context *cx) { return cx ? cx->device->threads : 0; }
void *tn_native_stream(const tn_context *cx) { return cx ? cx->device->interface->native_stream(cx->device, cx->stream) : NULL; }

const char *tn_cuda_unavailable_reason(void) {
    static _Thread_local char reason[256];
    reason[0] = '\0';
    tn_status status;
    tn_device *device = tn_device_open_cuda(&status, reason, sizeof reason);
    if (device) {
        device->interface->close(device);
        return "";
    }
    return reason;
}

bool tn_synchronize(tn_context *cx) {
    if (!tn_ready(cx)) return false;
    TN_FAIL_DEVICE(cx, cx->device->interface->synchronize(cx->device), "tn_synchronize");
    return cx->status == TN_OK;
}

/* ---- memory, as the context's user sees it ---- */

bool tn_memory_stats_get(const tn_context *cx, tn_memory_stats *stats) {
    if (!cx || !stats) return false;
    tn_allocator_stats(cx->allocator, stats);
    return true;
}

void tn_memory_reset_peak(tn_context *cx) {
    if (cx) tn_allocator_reset_peak(cx->allocator);
}
void tn_memory_reset_totals(tn_context *cx) {
    if (cx) tn_allocator_reset_totals(cx->allocator);
}
void tn_memory_release_cache(tn_context *cx) {
    if (cx) tn_allocator_release_cache(cx->allocator);
}
void tn_memory_set_limit(tn_context *cx, size_t bytes) {
    if (cx) tn_allocator_set_limit(cx->allocator, bytes);
}

bool tn_memory_check(tn_context *cx) {
    if (!tn_ready(cx)) return false;
    if (tn_allocator_check(cx->allocator)) return true;
    tn_fail(cx, tn_allocator_error_status(cx->allocator), "tn_memory_check", "%s", tn_allocator_error(cx->allocator));
    return false;
}

void tn_memory_visit_blocks(const tn_context *cx, void (*visit)(void *user, const tn_block_info *block), void *user) {
    if (cx && visit) tn_allocator_visit_blocks(cx->allocator, visit, user);
}

int64_t tn_memory_visit_history(const tn_context *cx, void (*visit)(void *user, const tn_memory_event *event), void *user) {
    return cx && visit ? tn_allocator_visit_history(cx->allocator, visit, user) : 0;
}

void tn_memory_clear_history(tn_context *cx) {
    if (cx) tn_allocator_clear_history(cx->allocator);
}

tn_category tn_memory_set_category(tn_context *cx, tn_category category) {
    if (!cx || (unsigned)category >= TN_CATEGORY_COUNT) return TN_CATEGORY_TEMPORARY;
    tn_category before = cx->category;
    cx->category = category;
    return before;
}

const char *tn_category_name(tn_category category) {
    static const char *const names[TN_CATEGORY_COUNT] = {
        [TN_CATEGORY_TEMPORARY] = "temporary",
        [TN_CATEGORY_PARAMETER] = "parameter",
        [TN_CATEGORY_GRADIENT] = "gradient",
        [TN_CATEGORY_OPTIMIZER] = "optimizer",
        [TN_CATEGORY_SAVED] = "saved",
        [TN_CATEGORY_WORKSPACE] = "workspace",
        [TN_CATEGORY_IO] = "io",
    };
    return (unsigned)category < TN_CATEGORY_COUNT ? names[category] : "unknown";
}

const char *tn_pass_name(tn_pass pass) {
    static const char *const names[TN_PASS_COUNT] = {
        [TN_PASS_NONE] = "none", [TN_PASS_FORWARD] = "forward", [TN_PASS_BACKWARD] = "backward", [TN_PASS_OPTIMIZER] = "optimizer"
    };
    return (unsigned)pass < TN_PASS_COUNT ? names[pass] : "unknown";
}

tn_block *tn_workspace_take(tn_context *cx, size_t bytes) {
    tn_owner owner = { cx->op ? cx->op : "workspace", tn_label_path(cx->label), cx->pass };
    tn_block *block = tn_allocator_take(cx->allocator, bytes, cx->stream, TN_CATEGORY_WORKSPACE, &owner);
    if (!block) tn_fail(cx, tn_allocator_error_status(cx->allocator), owner.op, "%s", tn_allocator_error(cx->allocator));
    return block;
}

void tn_workspace_give(tn_context *cx, tn_block *block) {
    if (block && !tn_allocator_give(cx->allocator, block))
        tn_fail(cx, tn_allocator_error_status(cx->allocator), cx->op ? cx->op : "workspace", "%s", tn_allocator_error(cx->allocator));
}
