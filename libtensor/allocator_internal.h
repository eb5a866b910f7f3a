/* The insides of the caching allocator, shared by allocator.c (what it does), allocator_report.c (what it tells) and tensor.c. */
#ifndef TENON_ALLOCATOR_INTERNAL_H
#define TENON_ALLOCATOR_INTERNAL_H

#include <stdalign.h>
#include <time.h>

#include "allocator.h"
#include "host_memory.h"
#include "memory_forms.h"

#define TN_BLOCK_STEP ((size_t)512) /* sizes are multiples of it; also the width of a red zone */
#define TN_RED_ZONE_BYTE 0xA5
#define TN_POISON_BYTE 0xFF

typedef struct tn_segment tn_segment;

/* The block is (also) used on this stream; from its free on the event says when that use is over. */
typedef struct tn_block_use {
    struct tn_block_use *next;
    tn_device_event event;
    tn_stream stream;
    bool recorded;
} tn_block_use;

/* A part of a segment. Two cache lines: the first is what finding, splitting and coalescing need. */
struct tn_block {
    char *base;
    size_t size;
    tn_block *before, *after; /* neighbours in the segment */
    tn_block *left, *right;   /* in the tree of its bin, while inactive */
    tn_segment *segment;
    uint32_t priority; /* in that tree */
    uint8_t state;     /* tn_block_state */
    uint8_t category;
    uint16_t front; /* width of the red zone before the data */

    size_t requested;
    tn_owner owner;
    const tn_tensor_form *form; /* what it was made for; NULL: not noted */
    tn_block_use *uses;
    tn_block *next_pending;
};

/* Inactive blocks by size. Bins are coarse enough to be found by two bitmap look-ups; inside a bin a treap in the order
 * of (size, address) makes best fit exact however many blocks there are. */
#define TN_BIN_COUNT 4096
typedef struct tn_bins {
    uint64_t filled_words;
    uint64_t filled[TN_BIN_COUNT / 64];
    tn_block *root[TN_BIN_COUNT];
} tn_bins;

/* What may be reused for one another: same private pool (0: none), same stream. */
typedef struct tn_arena {
    struct tn_arena *next;
    int pool_id;
    tn_stream stream;
    tn_bins small_bins, large_bins;
} tn_arena;

struct tn_segment {
    tn_segment *previous, *next; /* all segments in address order */
    char *memory;
    size_t bytes;
    tn_block *first;
    tn_arena *arena;
    bool small;
};

typedef struct tn_private_pool {
    struct tn_private_pool *next;
    int id;
} tn_private_pool;

/* One line of the history: a cache line. */
typedef struct tn_event_record {
    alignas(64) uint64_t ticks;
    uint64_t address;
    int64_t allocated, requested;
    const char *op, *label;
    const tn_tensor_form *form;
    int32_t stream;
    uint8_t kind, category, pass;
} tn_event_record;

struct tn_allocator {
    tn_device *device;
    size_t limit;
    size_t red_zone; /* TN_BLOCK_STEP in debug mode, else 0 */
    bool fills;      /* debug mode on a device that has memory to fill */

    tn_segment *segments;
    tn_arena *arenas;
    tn_arena *last_arena; /* the one the previous request used */
    tn_block *pending, **pending_end;
    tn_private_pool *private_pools;
    tn_block *foreign; /* blocks of other libraries' memory; they have no segment */
    int active_pool, last_pool_id;
    uint32_t random;
    tn_host_pool host_pool; /* block and use structs */

    tn_memory_stats stats;

    tn_event_record *events; /* NULL: history is off */
    void *events_memory;
    uint64_t event_capacity, event_at, n_events; /* n_events counts lost ones too */
    tn_form_book forms;
    const tn_tensor_form *next_form; /* of the tensor that the next block is for */
    uint64_t opened_ticks, opened_ns;

    tn_status error_status;
    char error[1024]; /* fixed, so that running out of memory can always be reported */
};

static inline tn_pool_stats *tn_stats_of_pool(tn_allocator *allocator, bool small) {
    return small ? &allocator->stats.small_pool : &allocator->stats.large_pool;
}

static inline void tn_stat_add(tn_stat *stat, int64_t n) {
    stat->current += n;
    stat->total_in += n;
    if (stat->current > stat->peak) stat->peak = stat->current;
}

static inline void tn_stat_subtract(tn_stat *stat, int64_t n) {
    stat->current -= n;
    stat->total_out += n;
}

static inline uint64_t tn_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The cheapest steady clock there is; turned into nanoseconds when the history is read. */
static inline uint64_t tn_ticks(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return tn_clock_ns();
#endif
}

static inline void tn_record_event(tn_allocator *allocator, tn_event_kind kind, uint64_t ticks, const tn_event_record *what) {
    tn_event_record *to = &allocator->events[allocator->event_at];
    *to = *what;
    to->ticks = ticks;
    to->kind = (uint8_t)kind;
    allocator->n_events++;
    if (++allocator->event_at == allocator->event_capacity) allocator->event_at = 0;
}

static inline void tn_record_block_event(tn_allocator *allocator, tn_event_kind kind, uint64_t ticks, const tn_block *block) {
    if (!allocator->events) return;
    tn_record_event(allocator, kind, ticks,
                    &(tn_event_record){ .address = (uint64_t)(uintptr_t)block->base,
                                        .allocated = (int64_t)block->size,
                                        .requested = (int64_t)block->requested,
                                        .op = block->owner.op,
                                        .label = block->owner.label,
                                        .form = block->form,
                                        .stream = block->segment->arena->stream,
                                        .category = block->category,
                                        .pass = (uint8_t)block->owner.pass });
}

/* Says what tensor the next block is for. */
static inline void tn_allocator_next_form(tn_allocator *allocator, tn_dtype dtype, const tn_shape *shape, int64_t numel) {
    if (allocator->events) allocator->next_form = tn_form_book_find(&allocator->forms, dtype, shape, numel);
}

/* Failures: each stores the text and the status. Those with a pointer return NULL. */
void tn_allocator_fail(tn_allocator *allocator, tn_status status, const char *format, ...) TN_PRINTF(3, 4);
void *tn_allocator_fail_host_memory(tn_allocator *allocator, size_t bytes, const tn_owner *owner);
void *tn_allocator_fail_out_of_memory(tn_allocator *allocator, size_t bytes, const tn_owner *owner, const char *reason, const char *detail);
/* True if the red zones of a live block are whole; else the error names its owner. */
bool tn_allocator_zones_intact(tn_allocator *allocator, const tn_block *block);

/* Room for the history ring; false when the host has no memory. */
bool tn_allocator_history_open(tn_allocator *allocator, int64_t n_events);

#endif
