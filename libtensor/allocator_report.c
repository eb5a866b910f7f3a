#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "allocator_internal.h"

/* ---- failures ---- */

typedef struct size_text {
    char text[24];
} size_text;

static size_text size_as_text(uint64_t bytes) {
    static const char *const unit[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    size_text result;
    if (bytes < 1024) {
        snprintf(result.text, sizeof result.text, "%u B", (unsigned)bytes);
        return result;
    }
    double value = (double)bytes / 1024;
    size_t at = 0;
    for (; value >= 1024 && at < 5; at++) value /= 1024;
    snprintf(result.text, sizeof result.text, "%.2f %s", value, unit[at]);
    return result;
}

static void append(char *text, size_t n_bytes, const char *format, ...) TN_PRINTF(3, 4);
static void append(char *text, size_t n_bytes, const char *format, ...) {
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, n_bytes - used, format, arguments);
    va_end(arguments);
}

static void append_owner(char *text, size_t n_bytes, const tn_owner *owner) {
    if (owner->op[0]) append(text, n_bytes, ", op %s", owner->op);
    if (owner->label[0]) append(text, n_bytes, ", label %s", owner->label);
}

void tn_allocator_fail(tn_allocator *allocator, tn_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(allocator->error, sizeof allocator->error, format, arguments);
    va_end(arguments);
    allocator->error_status = status;
}

void *tn_allocator_fail_host_memory(tn_allocator *allocator, size_t bytes, const tn_owner *owner) {
    tn_allocator_fail(allocator, TN_ERR_HOST_MEMORY, "out of host memory while keeping books for an allocation of %s",
                      size_as_text(bytes).text);
    append_owner(allocator->error, sizeof allocator->error, owner);
    return NULL;
}

void *tn_allocator_fail_out_of_memory(tn_allocator *allocator, size_t bytes, const tn_owner *owner, const char *reason,
                                      const char *detail) {
    const tn_pool_stats *all = &allocator->stats.all;
    tn_allocator_fail(allocator, TN_ERR_MEMORY, "out of memory: tried to allocate %s; %s allocated, %s reserved and free",
                      size_as_text(bytes).text, size_as_text((uint64_t)all->allocated.current).text,
                      size_as_text((uint64_t)(all->reserved.current - all->active.current)).text);
    int64_t waiting = all->active.current - all->allocated.current;
    char *text = allocator->error;
    size_t n_bytes = sizeof allocator->error;
    if (waiting) append(text, n_bytes, ", %s waiting for other streams", size_as_text((uint64_t)waiting).text);
    if (allocator->limit) append(text, n_bytes, ", limit %s", size_as_text(allocator->limit).text);
    else append(text, n_bytes, ", no limit");
    append(text, n_bytes, " (%s%s%s)", reason, detail[0] ? ": " : "", detail);
    append_owner(text, n_bytes, owner);
    return NULL;
}

const char *tn_allocator_error(const tn_allocator *allocator) { return allocator->error; }
tn_status tn_allocator_error_status(const tn_allocator *allocator) { return allocator->error_status; }

/* ---- red zones ---- */

static bool zone_intact(tn_allocator *allocator, const tn_block *block, const char *from, const char *end) {
    tn_device *device = allocator->device;
    size_t bytes = (size_t)(end - from), at = bytes;
    tn_status status = device->interface->find_other_byte(device, from, TN_RED_ZONE_BYTE, bytes, &at);
    if (status == TN_OK && at >= bytes) return true;
    size_text size = size_as_text(block->requested);
    if (status != TN_OK) {
        tn_allocator_fail(allocator, status, "the red zones of a block of %s could not be read: %s", size.text, device->failure);
    } else if (from == block->base) {
        tn_allocator_fail(allocator, TN_ERR_CORRUPTION,
                          "the red zone before a block of %s was overwritten, first %zu bytes before its start", size.text, bytes - at);
    } else {
        tn_allocator_fail(allocator, TN_ERR_CORRUPTION, "the red zone after a block of %s was overwritten, first %zu bytes past its end",
                          size.text, at);
    }
    append_owner(allocator->error, sizeof allocator->error, &block->owner);
    return false;
}

bool tn_allocator_zones_intact(tn_allocator *allocator, const tn_block *block) {
    const char *data = block->base + block->front;
    return zone_intact(allocator, block, block->base, data) &&
           zone_intact(allocator, block, data + block->requested, block->base + block->size);
}

bool tn_allocator_check(tn_allocator *allocator) {
    if (!allocator->fills) return true;
    for (const tn_segment *segment = allocator->segments; segment; segment = segment->next)
        for (const tn_block *block = segment->first; block; block = block->after)
            if (block->state == TN_BLOCK_ACTIVE && !tn_allocator_zones_intact(allocator, block)) return false;
    return true;
}

/* ---- statistics ---- */

void tn_allocator_stats(const tn_allocator *allocator, tn_memory_stats *stats) {
    *stats = allocator->stats;
    stats->limit = allocator->limit;
}

static void for_each_stat(tn_memory_stats *stats, void (*change)(tn_stat *stat)) {
    tn_pool_stats *pool[] = { &stats->all, &stats->small_pool, &stats->large_pool };
    for (int p = 0; p < 3; p++) {
        tn_stat *in_pool[] = { &pool[p]->requested,       &pool[p]->allocated,         &pool[p]->active,
                               &pool[p]->inactive_split,  &pool[p]->reserved,          &pool[p]->n_allocations,
                               &pool[p]->n_active_blocks, &pool[p]->n_inactive_splits, &pool[p]->n_segments };
        for (size_t i = 0; i < sizeof in_pool / sizeof *in_pool; i++) change(in_pool[i]);
    }
    for (int category = 0; category < TN_CATEGORY_COUNT; category++) change(&stats->category[category]);
    change(&stats->foreign);
}

static void peak_to_current(tn_stat *stat) { stat->peak = stat->current; }
static void totals_to_zero(tn_stat *stat) { stat->total_in = stat->total_out = 0; }

void tn_allocator_reset_peak(tn_allocator *allocator) { for_each_stat(&allocator->stats, peak_to_current); }

void tn_allocator_reset_totals(tn_allocator *allocator) {
    for_each_stat(&allocator->stats, totals_to_zero);
    allocator->stats.n_retries = allocator->stats.n_out_of_memory = 0;
}

/* ---- blocks ---- */

void tn_allocator_visit_blocks(const tn_allocator *allocator, void (*visit)(void *user, const tn_block_info *block), void *user) {
    for (const tn_segment *segment = allocator->segments; segment; segment = segment->next) {
        for (const tn_block *block = segment->first; block; block = block->after) {
            bool inactive = block->state == TN_BLOCK_INACTIVE;
            tn_block_info info = {
                .address = (uint64_t)(uintptr_t)block->base,
                .segment_address = (uint64_t)(uintptr_t)segment->memory,
                .allocated_bytes = (int64_t)block->size,
                .requested_bytes = inactive ? 0 : (int64_t)block->requested,
                .segment_bytes = (int64_t)segment->bytes,
                .state = (tn_block_state)block->state,
                .category = inactive ? TN_CATEGORY_TEMPORARY : (tn_category)block->category,
                .owner = inactive ? (tn_owner){ "", "", TN_PASS_NONE } : block->owner,
                .form = inactive ? NULL : block->form,
                .stream = segment->arena->stream,
                .small_pool = segment->small,
            };
            visit(user, &info);
        }
    }
}

/* ---- history ---- */

bool tn_allocator_history_open(tn_allocator *allocator, int64_t n_events) {
    allocator->opened_ns = tn_clock_ns();
    allocator->opened_ticks = tn_ticks();
    if (n_events <= 0) return true;
    const size_t line = alignof(tn_event_record);
    if ((uint64_t)n_events > (SIZE_MAX - line) / sizeof(tn_event_record)) return false;
    allocator->events_memory = tn_host_alloc((size_t)n_events * sizeof(tn_event_record) + line);
    if (!allocator->events_memory || !tn_form_book_open(&allocator->forms)) return false;
    allocator->events = (tn_event_record *)(((uintptr_t)allocator->events_memory + line - 1) & ~(uintptr_t)(line - 1));
    allocator->event_capacity = (uint64_t)n_events;
    return true;
}

/* What ticks mean, by two readings of both clocks: at open and now. */
static double ns_per_tick(const tn_allocator *allocator) {
    uint64_t ticks = tn_ticks() - allocator->opened_ticks;
    uint64_t ns = tn_clock_ns() - allocator->opened_ns;
    return ticks ? (double)ns / (double)ticks : 1.0;
}

int64_t tn_allocator_visit_history(const tn_allocator *allocator, void (*visit)(void *user, const tn_memory_event *event), void *user) {
    uint64_t capacity = allocator->event_capacity;
    uint64_t n_kept = allocator->n_events < capacity ? allocator->n_events : capacity;
    uint64_t at = allocator->event_at >= n_kept ? allocator->event_at - n_kept : allocator->event_at + capacity - n_kept;
    double ns = ns_per_tick(allocator);
    uint64_t time_ns = 0;
    for (uint64_t i = 0; i < n_kept; i++) {
        const tn_event_record *record = &allocator->events[at];
        if (++at == capacity) at = 0;
        /* Counters of two cores may differ by a little; time never runs backwards here. */
        int64_t ticks = (int64_t)(record->ticks - allocator->opened_ticks);
        uint64_t then = ticks > 0 ? (uint64_t)((double)ticks * ns) : 0;
        if (then > time_ns) time_ns = then;
        tn_memory_event event = {
            .time_ns = time_ns,
            .address = record->address,
            .allocated_bytes = record->allocated,
            .requested_bytes = record->requested,
            .kind = (tn_event_kind)record->kind,
            .category = (tn_category)record->category,
            .owner = { record->op, record->label, (tn_pass)record->pass },
            .form = record->form,
            .stream = record->stream,
        };
        visit(user, &event);
    }
    return (int64_t)(allocator->n_events - n_kept);
}

void tn_allocator_clear_history(tn_allocator *allocator) { allocator->n_events = allocator->event_at = 0; }
