/* From events to the lives of blocks. */
#include <stdlib.h>
#include <string.h>

#include "context_internal.h"
#include "host_memory.h"
#include "memory_export.h"

/* Which life an address is living: open addressing over a power of two. */
typedef struct address_slot {
    uint64_t address; /* 0: free */
    int64_t life;     /* -1: none now */
} address_slot;

typedef struct builder {
    tn_memory_timeline *timeline;
    int64_t capacity;
    address_slot *slots;
    uint64_t n_slots;
    int64_t event;
} builder;

static address_slot *slot_of(builder *b, uint64_t address) {
    uint64_t at = (address >> 9) * 0x9e3779b97f4a7c15u;
    for (at >>= 20; b->slots[at & (b->n_slots - 1)].address; at++)
        if (b->slots[at & (b->n_slots - 1)].address == address) return &b->slots[at & (b->n_slots - 1)];
    address_slot *slot = &b->slots[at & (b->n_slots - 1)];
    *slot = (address_slot){ address, -1 };
    return slot;
}

static tn_memory_life *add_life(builder *b, address_slot *slot, const tn_memory_event *event, tn_category category) {
    slot->life = b->timeline->n_lives;
    tn_memory_life *life = &b->timeline->lives[b->timeline->n_lives++];
    *life = (tn_memory_life){ .address = event->address,
                              .allocated_bytes = event->allocated_bytes,
                              .requested_bytes = event->requested_bytes,
                              .begin_ns = event->time_ns,
                              .end_ns = UINT64_MAX,
                              .begin_event = b->event,
                              .end_event = INT64_MAX,
                              .category = category,
                              .owner = event->owner,
                              .form = event->form,
                              .first = true };
    return life;
}

/* A block whose beginning the ring has forgotten lived from the start. */
static tn_memory_life *life_of(builder *b, const tn_memory_event *event, tn_category category) {
    address_slot *slot = slot_of(b, event->address);
    if (slot->life >= 0) return &b->timeline->lives[slot->life];
    tn_memory_life *life = add_life(b, slot, event, category);
    life->begin_ns = 0;
    life->begin_event = -1;
    return life;
}

static void end_life(builder *b, const tn_memory_event *event, tn_memory_life *life) {
    life->end_ns = event->time_ns;
    life->end_event = b->event;
    slot_of(b, event->address)->life = -1;
}

/* What a block was before it became this, where no event says so. */
static tn_category category_before(tn_category now) { return now == TN_CATEGORY_TEMPORARY ? TN_CATEGORY_SAVED : TN_CATEGORY_TEMPORARY; }

static void take_event(void *user, const tn_memory_event *event) {
    builder *b = user;
    b->timeline->end_ns = event->time_ns;
    if (event->kind == TN_EVENT_ALLOC) {
        add_life(b, slot_of(b, event->address), event, event->category);
    } else if (event->kind == TN_EVENT_FREE_REQUESTED) {
        end_life(b, event, life_of(b, event, event->category));
    } else if (event->kind == TN_EVENT_RETAG) {
        tn_memory_life *before = life_of(b, event, category_before(event->category));
        tn_owner owner = before->owner;
        end_life(b, event, before);
        tn_memory_life *life = add_life(b, slot_of(b, event->address), event, event->category);
        life->owner = owner;
        life->first = false;
    }
    b->event++;
}

/* What lives and was in no event lived all the time. */
static void take_block(void *user, const tn_block_info *block) {
    builder *b = user;
    if (block->state != TN_BLOCK_ACTIVE) return;
    life_of(b,
            &(tn_memory_event){ .address = block->address,
                                .allocated_bytes = block->allocated_bytes,
                                .requested_bytes = block->requested_bytes,
                                .owner = block->owner,
                                .form = block->form },
            block->category);
}

static void count_event(void *user, const tn_memory_event *event) {
    (void)event;
    ++*(int64_t *)user;
}

static void count_block(void *user, const tn_block_info *block) {
    (void)block;
    ++*(int64_t *)user;
}

static int by_beginning(const void *a, const void *b) {
    const tn_memory_life *x = a, *y = b;
    if (x->begin_event != y->begin_event) return x->begin_event < y->begin_event ? -1 : 1;
    return x->address < y->address ? -1 : x->address > y->address;
}

/* Bytes that came and went with each event, summed up. */
static bool find_peak(tn_memory_timeline *t) {
    int64_t *change = tn_host_calloc((size_t)(t->n_events + 1) * sizeof *change);
    if (!change) return false;
    for (int64_t i = 0; i < t->n_lives; i++) {
        change[t->lives[i].begin_event + 1] += t->lives[i].allocated_bytes;
        if (t->lives[i].end_event < t->n_events) change[t->lives[i].end_event + 1] -= t->lives[i].allocated_bytes;
    }
    int64_t sum = 0;
    t->peak_bytes = -1;
    for (int64_t i = 0; i <= t->n_events; i++) {
        sum += change[i];
        if (sum <= t->peak_bytes) continue;
        t->peak_bytes = sum;
        t->peak_event = i - 1;
    }
    for (int64_t i = 0; i < t->n_lives; i++)
        if (t->lives[i].begin_event == t->peak_event) t->peak_ns = t->lives[i].begin_ns;
    tn_host_free(change);
    return true;
}

static bool build(tn_context *cx, builder *b) {
    tn_memory_timeline *t = b->timeline;
    int64_t n_events = 0, n_blocks = 0;
    t->n_lost = tn_memory_visit_history(cx, count_event, &n_events);
    tn_memory_visit_blocks(cx, count_block, &n_blocks);
    t->lives = tn_host_alloc((size_t)(2 * n_events + n_blocks + 1) * sizeof *t->lives);
    for (b->n_slots = 64; b->n_slots < 2 * (uint64_t)(n_events + n_blocks);) b->n_slots *= 2;
    b->slots = tn_host_calloc(b->n_slots * sizeof *b->slots);
    if (!t->lives || !b->slots) return false;
    tn_memory_visit_history(cx, take_event, b);
    t->n_events = b->event;
    tn_memory_visit_blocks(cx, take_block, b);
    for (int64_t i = 0; i < t->n_lives; i++)
        if (t->lives[i].end_event == INT64_MAX) t->lives[i].end_event = t->n_events;
    qsort(t->lives, (size_t)t->n_lives, sizeof *t->lives, by_beginning);
    return find_peak(t);
}

tn_memory_timeline *tn_memory_timeline_new(tn_context *cx) {
    if (!cx) return NULL;
    builder b = { .timeline = tn_host_calloc(sizeof *b.timeline) };
    bool built = b.timeline && build(cx, &b);
    tn_host_free(b.slots);
    if (built) return b.timeline;
    tn_memory_timeline_free(b.timeline);
    return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_memory_timeline", "the host has no memory left");
}

void tn_memory_timeline_free(tn_memory_timeline *timeline) {
    if (!timeline) return;
    tn_host_free(timeline->lives);
    tn_host_free(timeline);
}
