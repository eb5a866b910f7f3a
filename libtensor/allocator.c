#include "allocator.h"

#include <string.h>

#include "allocator_bins.h"
#include "allocator_internal.h"

#define MIB ((size_t)1 << 20)
#define SMALL_REQUEST_LIMIT MIB /* up to here from the small pool */
#define SMALL_SEGMENT (2 * MIB)
#define LARGE_REQUEST_LIMIT (10 * MIB) /* below this from segments that several requests share */
#define LARGE_SEGMENT (20 * MIB)
#define SEGMENT_STEP (2 * MIB)
#define LARGE_SPLIT_REST MIB /* a rest up to here stays with its large block */

/* More than any machine can address (memory viewers keep addresses in doubles); keeps every sum far from overflow. */
#define LARGEST_REQUEST ((size_t)1 << 53)

static const tn_owner nobody = { "", "", TN_PASS_NONE };

typedef struct request {
    size_t bytes, size; /* as asked, and with red zones and rounding */
    uint32_t bin;
    bool small;
    tn_arena *arena;
    tn_bins *bins;
    tn_category category;
    tn_owner owner;
} request;

static size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

static tn_bins *bins_of(const tn_segment *segment) { return segment->small ? &segment->arena->small_bins : &segment->arena->large_bins; }

/* ---- inactive blocks ---- */

static bool is_whole_segment(const tn_block *block) { return block->size == block->segment->bytes; }

static inline void shelve(tn_allocator *allocator, tn_block *block) {
    tn_segment *segment = block->segment;
    block->state = TN_BLOCK_INACTIVE;
    tn_bins_insert(bins_of(segment), tn_bin_of(segment->small, block->size), block);
    if (is_whole_segment(block)) return;
    tn_pool_stats *all = &allocator->stats.all, *pool = tn_stats_of_pool(allocator, segment->small);
    int64_t size = (int64_t)block->size;
    tn_stat_add(&all->inactive_split, size);
    tn_stat_add(&pool->inactive_split, size);
    tn_stat_add(&all->n_inactive_splits, 1);
    tn_stat_add(&pool->n_inactive_splits, 1);
}

static inline void unshelve(tn_allocator *allocator, tn_block *block) {
    tn_segment *segment = block->segment;
    tn_bins_remove(bins_of(segment), tn_bin_of(segment->small, block->size), block);
    if (is_whole_segment(block)) return;
    tn_pool_stats *all = &allocator->stats.all, *pool = tn_stats_of_pool(allocator, segment->small);
    int64_t size = (int64_t)block->size;
    tn_stat_subtract(&all->inactive_split, size);
    tn_stat_subtract(&pool->inactive_split, size);
    tn_stat_subtract(&all->n_inactive_splits, 1);
    tn_stat_subtract(&pool->n_inactive_splits, 1);
}

static tn_block *block_new(tn_allocator *allocator) {
    tn_block *block = tn_host_pool_take(&allocator->host_pool, sizeof *block);
    if (!block) return NULL;
    uint32_t random = allocator->random;
    random ^= random << 13;
    random ^= random >> 17;
    random ^= random << 5;
    block->priority = allocator->random = random;
    block->uses = NULL;
    return block;
}

static void block_free(tn_allocator *allocator, tn_block *block) { tn_host_pool_give(&allocator->host_pool, block, sizeof *block); }

/* Joins `block` with what follows it, which is no longer needed. */
static inline void absorb_next(tn_allocator *allocator, tn_block *block) {
    tn_block *next = block->after;
    block->size += next->size;
    block->after = next->after;
    if (next->after) next->after->before = block;
    next->state = TN_BLOCK_INACTIVE; /* so that a second free of it is noticed */
    block_free(allocator, next);
}

static inline void coalesce_and_shelve(tn_allocator *allocator, tn_block *block) {
    if (block->after && block->after->state == TN_BLOCK_INACTIVE) {
        unshelve(allocator, block->after);
        absorb_next(allocator, block);
    }
    if (block->before && block->before->state == TN_BLOCK_INACTIVE) {
        block = block->before;
        unshelve(allocator, block);
        absorb_next(allocator, block);
    }
    shelve(allocator, block);
}

/* Takes an inactive block out of its bin, cut to the request's size where the rest is worth keeping. */
static inline bool carve(tn_allocator *allocator, tn_block *block, const request *wanted) {
    size_t rest_size = block->size - wanted->size;
    if (wanted->small ? rest_size == 0 : rest_size <= LARGE_SPLIT_REST) {
        unshelve(allocator, block);
        return true;
    }
    tn_block *rest = block_new(allocator);
    if (!rest) return false;
    unshelve(allocator, block);
    block->size = wanted->size;
    rest->base = block->base + wanted->size;
    rest->size = rest_size;
    rest->segment = block->segment;
    rest->before = block;
    rest->after = block->after;
    if (rest->after) rest->after->before = rest;
    block->after = rest;
    shelve(allocator, rest);
    return true;
}

/* ---- segments ---- */

static void record_segment_event(tn_allocator *allocator, tn_event_kind kind, const tn_segment *segment, const request *wanted) {
    if (!allocator->events) return;
    const tn_owner *owner = wanted ? &wanted->owner : &nobody;
    tn_record_event(allocator, kind, tn_ticks(),
                    &(tn_event_record){ .address = (uint64_t)(uintptr_t)segment->memory,
                                        .allocated = (int64_t)segment->bytes,
                                        .requested = (int64_t)segment->bytes,
                                        .op = owner->op,
                                        .label = owner->label,
                                        .stream = segment->arena->stream,
                                        .category = (uint8_t)(wanted ? wanted->category : TN_CATEGORY_TEMPORARY),
                                        .pass = (uint8_t)owner->pass });
}

static void link_segment(tn_allocator *allocator, tn_segment *segment) {
    tn_segment *previous = NULL, *next = allocator->segments;
    while (next && next->memory < segment->memory) {
        previous = next;
        next = next->next;
    }
    segment->previous = previous;
    segment->next = next;
    if (next) next->previous = segment;
    if (previous) previous->next = segment;
    else allocator->segments = segment;
}

static void count_segment(tn_allocator *allocator, const tn_segment *segment, void (*change)(tn_stat *stat, int64_t n)) {
    tn_pool_stats *counted[] = { &allocator->stats.all, tn_stats_of_pool(allocator, segment->small) };
    for (int i = 0; i < 2; i++) {
        change(&counted[i]->reserved, (int64_t)segment->bytes);
        change(&counted[i]->n_segments, 1);
    }
}

typedef enum refusal { REFUSED_BY_NOBODY, REFUSED_BY_HOST, REFUSED_BY_LIMIT, REFUSED_BY_DEVICE } refusal;

/* Gets a segment from the device and shelves it as one block. */
static tn_block *segment_new(tn_allocator *allocator, const request *wanted, size_t bytes, refusal *why) {
    size_t reserved = (size_t)allocator->stats.all.reserved.current;
    if (allocator->limit && (bytes > allocator->limit || reserved > allocator->limit - bytes)) {
        *why = REFUSED_BY_LIMIT;
        return NULL;
    }
    tn_segment *segment = tn_host_alloc(sizeof *segment);
    tn_block *block = block_new(allocator);
    void *memory = NULL;
    *why = segment && block ? REFUSED_BY_NOBODY : REFUSED_BY_HOST;
    tn_device *device = allocator->device;
    if (*why == REFUSED_BY_NOBODY && (device->interface->segment_alloc(device, bytes, &memory) != TN_OK || !memory))
        *why = REFUSED_BY_DEVICE;
    if (*why != REFUSED_BY_NOBODY) {
        tn_host_free(segment);
        if (block) block_free(allocator, block);
        return NULL;
    }
    *segment = (tn_segment){ .memory = memory, .bytes = bytes, .first = block, .arena = wanted->arena, .small = wanted->small };
    block->base = memory;
    block->size = bytes;
    block->before = block->after = NULL;
    block->segment = segment;
    link_segment(allocator, segment);
    count_segment(allocator, segment, tn_stat_add);
    record_segment_event(allocator, TN_EVENT_SEGMENT_ALLOC, segment, wanted);
    shelve(allocator, block);
    return block;
}

/* Returns a segment that is one inactive block. */
static void segment_free(tn_allocator *allocator, tn_segment *segment) {
    unshelve(allocator, segment->first);
    block_free(allocator, segment->first);
    if (segment->next) segment->next->previous = segment->previous;
    if (segment->previous) segment->previous->next = segment->next;
    else allocator->segments = segment->next;
    count_segment(allocator, segment, tn_stat_subtract);
    record_segment_event(allocator, TN_EVENT_SEGMENT_FREE, segment, NULL);
    allocator->device->interface->segment_free(allocator->device, segment->memory, segment->bytes);
    tn_host_free(segment);
}

/* ---- frees, and what they wait for ---- */

static void complete_free(tn_allocator *allocator, tn_block *block, uint64_t ticks) {
    tn_device *device = allocator->device;
    tn_segment *segment = block->segment;
    /* The poison only helps to see mistakes: a device that fails here says so at its next real call. */
    if (allocator->fills) device->interface->fill_bytes(device, block->base, TN_POISON_BYTE, block->size, segment->arena->stream);
    tn_record_block_event(allocator, TN_EVENT_FREE_COMPLETED, ticks, block);
    tn_pool_stats *all = &allocator->stats.all, *pool = tn_stats_of_pool(allocator, segment->small);
    int64_t size = (int64_t)block->size;
    tn_stat_subtract(&all->active, size);
    tn_stat_subtract(&pool->active, size);
    tn_stat_subtract(&all->n_active_blocks, 1);
    tn_stat_subtract(&pool->n_active_blocks, 1);
    coalesce_and_shelve(allocator, block);
}

static void drop_first_use(tn_allocator *allocator, tn_block *block) {
    tn_block_use *use = block->uses;
    block->uses = use->next;
    tn_host_pool_give(&allocator->host_pool, use, sizeof *use);
}

/* A use whose event can't be recorded now (or not during a capture) is recorded when it is looked at again: later, and so still safe. */
static void record_uses(tn_allocator *allocator, tn_block *block) {
    tn_device *device = allocator->device;
    for (tn_block_use *use = block->uses; use; use = use->next)
        if (!use->recorded) use->recorded = device->interface->event_record(device, use->stream, &use->event) == TN_OK;
}

/* `busy` has a bit for each stream found unfinished: later events of it needn't be asked. */
static bool uses_are_done(tn_allocator *allocator, tn_block *block, uint64_t *busy) {
    tn_device *device = allocator->device;
    record_uses(allocator, block);
    while (block->uses) {
        tn_block_use *use = block->uses;
        uint64_t bit = use->stream >= 0 && use->stream < 64 ? (uint64_t)1 << use->stream : 0;
        if (!use->recorded || (*busy & bit)) return false;
        bool done = false;
        if (device->interface->event_done(device, use->event, &done) != TN_OK || !done) {
            *busy |= bit;
            return false;
        }
        drop_first_use(allocator, block);
    }
    return true;
}

static bool wait_for_uses(tn_allocator *allocator, tn_block *block) {
    tn_device *device = allocator->device;
    record_uses(allocator, block);
    while (block->uses) {
        tn_block_use *use = block->uses;
        bool done = use->recorded && device->interface->event_wait(device, use->event) == TN_OK;
        use->recorded = false; /* the event is gone either way */
        if (!done && device->interface->synchronize(device) != TN_OK) return false;
        drop_first_use(allocator, block);
    }
    return true;
}

/* Completes the frees whose other streams are done, or waits for them all. */
static void settle_pending(tn_allocator *allocator, bool wait) {
    if (allocator->active_pool) return; /* a capturing stream may be asked nothing */
    uint64_t busy = 0;
    tn_block **link = &allocator->pending;
    while (*link) {
        tn_block *block = *link;
        bool done = wait ? wait_for_uses(allocator, block) : uses_are_done(allocator, block, &busy);
        if (done) {
            *link = block->next_pending;
            complete_free(allocator, block, allocator->events ? tn_ticks() : 0);
        } else {
            link = &block->next_pending;
        }
    }
    allocator->pending_end = link;
}

static void release_cached_segments(tn_allocator *allocator) {
    settle_pending(allocator, true);
    for (tn_segment *segment = allocator->segments, *next; segment; segment = next) {
        next = segment->next;
        bool whole = segment->first->state == TN_BLOCK_INACTIVE && is_whole_segment(segment->first);
        if (whole && segment->arena->pool_id == 0) segment_free(allocator, segment);
    }
}

/* ---- taking ---- */

static tn_arena *find_arena(const tn_allocator *allocator, int pool_id, tn_stream stream) {
    tn_arena *arena = allocator->arenas;
    while (arena && (arena->pool_id != pool_id || arena->stream != stream)) arena = arena->next;
    return arena;
}

static tn_arena *find_or_make_arena(tn_allocator *allocator, int pool_id, tn_stream stream) {
    tn_arena *arena = find_arena(allocator, pool_id, stream);
    if (arena) return arena;
    /* A private pool's segments become ordinary one day, in a call that can't fail: so their new home must stand before. */
    if (pool_id != 0 && !find_or_make_arena(allocator, 0, stream)) return NULL;
    arena = tn_host_calloc(sizeof *arena);
    if (!arena) return NULL;
    arena->pool_id = pool_id;
    arena->stream = stream;
    arena->next = allocator->arenas;
    return allocator->arenas = arena;
}

static tn_block *refuse(tn_allocator *allocator, const request *wanted, const char *reason, const char *detail) {
    allocator->stats.n_out_of_memory++;
    if (allocator->events) {
        int64_t bytes = wanted->bytes > INT64_MAX ? INT64_MAX : (int64_t)wanted->bytes;
        int64_t size = wanted->size ? (int64_t)wanted->size : bytes;
        tn_record_event(allocator, TN_EVENT_OUT_OF_MEMORY, tn_ticks(),
                        &(tn_event_record){ .allocated = size,
                                            .requested = bytes,
                                            .op = wanted->owner.op,
                                            .label = wanted->owner.label,
                                            .stream = wanted->arena ? wanted->arena->stream : 0,
                                            .category = (uint8_t)wanted->category,
                                            .pass = (uint8_t)wanted->owner.pass });
    }
    return tn_allocator_fail_out_of_memory(allocator, wanted->bytes, &wanted->owner, reason, detail);
}

/* The ladder of a request the cache can't serve. Its last rung, a segment without room to share, serves
 * requests that fit under a limit where a shared segment does not. */
static tn_block *grow(tn_allocator *allocator, const request *wanted) {
    size_t least = wanted->small ? SMALL_SEGMENT : round_up(wanted->size, SEGMENT_STEP);
    size_t usual = !wanted->small && wanted->size < LARGE_REQUEST_LIMIT ? LARGE_SEGMENT : least;
    refusal why;
    tn_block *block = segment_new(allocator, wanted, usual, &why);
    if (!block && why != REFUSED_BY_HOST) {
        allocator->stats.n_retries++;
        release_cached_segments(allocator);
        block = tn_bins_find(wanted->bins, wanted->bin, wanted->size); /* pending frees may have come in */
        if (!block) block = segment_new(allocator, wanted, usual, &why);
        if (!block && why != REFUSED_BY_HOST && least < usual) block = segment_new(allocator, wanted, least, &why);
    }
    if (block) return block;
    if (why == REFUSED_BY_HOST) return tn_allocator_fail_host_memory(allocator, wanted->bytes, &wanted->owner);
    if (why == REFUSED_BY_LIMIT) return refuse(allocator, wanted, "limit reached", "");
    return refuse(allocator, wanted, "device refused", allocator->device->failure);
}

static bool fill_new_block(tn_allocator *allocator, const tn_block *block) {
    tn_device *device = allocator->device;
    const tn_device_interface *does = device->interface;
    tn_stream stream = block->segment->arena->stream;
    char *data = block->base + block->front, *end = data + block->requested;
    size_t after = (size_t)(block->base + block->size - end);
    tn_status status = does->fill_bytes(device, block->base, TN_RED_ZONE_BYTE, block->front, stream);
    if (status == TN_OK && block->requested) status = does->fill_bytes(device, data, TN_POISON_BYTE, block->requested, stream);
    if (status == TN_OK) status = does->fill_bytes(device, end, TN_RED_ZONE_BYTE, after, stream);
    if (status == TN_OK) return true;
    tn_allocator_fail(allocator, status, "a new block could not be filled for debug mode: %s", device->failure);
    return false;
}

static inline void activate(tn_allocator *allocator, tn_block *block) {
    block->state = TN_BLOCK_ACTIVE;
    tn_pool_stats *counted[] = { &allocator->stats.all, tn_stats_of_pool(allocator, block->segment->small) };
    int64_t size = (int64_t)block->size;
    for (int i = 0; i < 2; i++) {
        tn_stat_add(&counted[i]->requested, (int64_t)block->requested);
        tn_stat_add(&counted[i]->allocated, size);
        tn_stat_add(&counted[i]->active, size);
        tn_stat_add(&counted[i]->n_allocations, 1);
        tn_stat_add(&counted[i]->n_active_blocks, 1);
    }
    tn_stat_add(&allocator->stats.category[block->category], size);
    if (allocator->events) tn_record_block_event(allocator, TN_EVENT_ALLOC, tn_ticks(), block);
}

static bool complete_request(tn_allocator *allocator, request *wanted, tn_stream stream) {
    if (wanted->bytes > LARGEST_REQUEST) return refuse(allocator, wanted, "more than any device has", "") != NULL;
    size_t zones = 2 * allocator->red_zone;
    wanted->size = wanted->bytes + zones ? round_up(wanted->bytes + zones, TN_BLOCK_STEP) : TN_BLOCK_STEP;
    wanted->small = wanted->size <= SMALL_REQUEST_LIMIT;
    wanted->bin = tn_bin_of(wanted->small, wanted->size);
    tn_arena *arena = allocator->last_arena;
    if (!arena || arena->stream != stream || arena->pool_id != allocator->active_pool) {
        arena = find_or_make_arena(allocator, allocator->active_pool, stream);
        if (!arena) return tn_allocator_fail_host_memory(allocator, wanted->bytes, &wanted->owner) != NULL;
        allocator->last_arena = arena;
    }
    wanted->arena = arena;
    wanted->bins = wanted->small ? &arena->small_bins : &arena->large_bins;
    return true;
}

tn_block *tn_allocator_take(tn_allocator *allocator, size_t bytes, tn_stream stream, tn_category category, const tn_owner *owner) {
    request wanted = { .bytes = bytes, .category = (unsigned)category < TN_CATEGORY_COUNT ? category : TN_CATEGORY_TEMPORARY };
    const tn_tensor_form *form = allocator->next_form;
    allocator->next_form = NULL;
    wanted.owner = owner ? *owner : nobody;
    if (!wanted.owner.op) wanted.owner.op = "";
    if (!wanted.owner.label) wanted.owner.label = "";
    if (!complete_request(allocator, &wanted, stream)) return NULL;
    if (allocator->pending) settle_pending(allocator, false);

    tn_block *block = tn_bins_find(wanted.bins, wanted.bin, wanted.size);
    if (!block) block = grow(allocator, &wanted);
    if (!block) return NULL;
    if (!carve(allocator, block, &wanted)) return tn_allocator_fail_host_memory(allocator, bytes, &wanted.owner);
    block->front = (uint16_t)allocator->red_zone;
    block->requested = bytes;
    block->owner = wanted.owner;
    block->form = form;
    block->category = (uint8_t)wanted.category;
    if (allocator->fills && !fill_new_block(allocator, block)) {
        coalesce_and_shelve(allocator, block);
        return NULL;
    }
    activate(allocator, block);
    return block;
}

/* ---- giving back ---- */

bool tn_allocator_give(tn_allocator *allocator, tn_block *block) {
    if (!block) return true;
    if (block->state != TN_BLOCK_ACTIVE) {
        tn_allocator_fail(allocator, TN_ERR_ARGUMENT, "a block was freed twice");
        return false;
    }
    if (!block->segment) {
        tn_allocator_part(allocator, block);
        return true;
    }
    bool intact = !allocator->fills || tn_allocator_zones_intact(allocator, block);
    tn_pool_stats *counted[] = { &allocator->stats.all, tn_stats_of_pool(allocator, block->segment->small) };
    for (int i = 0; i < 2; i++) {
        tn_stat_subtract(&counted[i]->requested, (int64_t)block->requested);
        tn_stat_subtract(&counted[i]->allocated, (int64_t)block->size);
        tn_stat_subtract(&counted[i]->n_allocations, 1);
    }
    tn_stat_subtract(&allocator->stats.category[block->category], (int64_t)block->size);
    uint64_t ticks = allocator->events ? tn_ticks() : 0;
    tn_record_block_event(allocator, TN_EVENT_FREE_REQUESTED, ticks, block);
    if (!block->uses) {
        complete_free(allocator, block, ticks);
    } else {
        block->state = TN_BLOCK_PENDING_FREE;
        block->next_pending = NULL;
        *allocator->pending_end = block;
        allocator->pending_end = &block->next_pending;
        if (!allocator->active_pool) record_uses(allocator, block);
    }
    if (allocator->pending) settle_pending(allocator, false);
    return intact;
}

tn_status tn_allocator_used_on(tn_allocator *allocator, tn_block *block, tn_stream stream) {
    if (!block || block->state != TN_BLOCK_ACTIVE) {
        tn_allocator_fail(allocator, TN_ERR_ARGUMENT, "a use was noted for a block that is not live");
        return TN_ERR_ARGUMENT;
    }
    if (!block->segment || stream == block->segment->arena->stream) return TN_OK;
    for (const tn_block_use *use = block->uses; use; use = use->next)
        if (use->stream == stream) return TN_OK;
    tn_block_use *use = tn_host_pool_take(&allocator->host_pool, sizeof *use);
    if (!use) {
        tn_allocator_fail_host_memory(allocator, block->requested, &block->owner);
        return TN_ERR_HOST_MEMORY;
    }
    *use = (tn_block_use){ .next = block->uses, .stream = stream };
    block->uses = use;
    return TN_OK;
}

void tn_allocator_retag(tn_allocator *allocator, tn_block *block, tn_category category) {
    if (!block || block->state != TN_BLOCK_ACTIVE || (unsigned)category >= TN_CATEGORY_COUNT || block->category == category) return;
    if (!block->segment) {
        block->category = (uint8_t)category;
        return;
    }
    tn_stat_subtract(&allocator->stats.category[block->category], (int64_t)block->size);
    block->category = (uint8_t)category;
    tn_stat_add(&allocator->stats.category[category], (int64_t)block->size);
    if (allocator->events) tn_record_block_event(allocator, TN_EVENT_RETAG, tn_ticks(), block);
}

/* ---- private pools ---- */

static tn_private_pool **find_private_pool(tn_allocator *allocator, int id) {
    tn_private_pool **at = &allocator->private_pools;
    while (*at && (*at)->id != id) at = &(*at)->next;
    return at;
}

tn_status tn_allocator_pool_begin(tn_allocator *allocator, int *id) {
    const char *wrong = allocator->active_pool                           ? "another one has not ended"
                        : !id || *id < 0                                 ? "its id is not one"
                        : *id > 0 && !*find_private_pool(allocator, *id) ? "it is unknown or was released"
                                                                         : NULL;
    if (wrong) {
        tn_allocator_fail(allocator, TN_ERR_ARGUMENT, "a private pool can't begin: %s", wrong);
        return TN_ERR_ARGUMENT;
    }
    if (*id == 0) {
        tn_private_pool *pool = tn_host_alloc(sizeof *pool);
        if (!pool) {
            tn_allocator_fail(allocator, TN_ERR_HOST_MEMORY, "out of host memory while making a private pool");
            return TN_ERR_HOST_MEMORY;
        }
        *id = pool->id = ++allocator->last_pool_id;
        pool->next = allocator->private_pools;
        allocator->private_pools = pool;
    }
    settle_pending(allocator, false);
    allocator->active_pool = *id;
    return TN_OK;
}

void tn_allocator_pool_end(tn_allocator *allocator) {
    allocator->active_pool = 0;
    settle_pending(allocator, false);
}

static void make_ordinary(tn_allocator *allocator, tn_segment *segment) {
    tn_arena *home = find_arena(allocator, 0, segment->arena->stream);
    for (tn_block *block = segment->first; block; block = block->after)
        if (block->state == TN_BLOCK_INACTIVE) tn_bins_remove(bins_of(segment), tn_bin_of(segment->small, block->size), block);
    segment->arena = home;
    for (tn_block *block = segment->first; block; block = block->after)
        if (block->state == TN_BLOCK_INACTIVE) tn_bins_insert(bins_of(segment), tn_bin_of(segment->small, block->size), block);
}

void tn_allocator_pool_release(tn_allocator *allocator, int id) {
    tn_private_pool **at = find_private_pool(allocator, id), *pool = *at;
    if (!pool) return;
    if (allocator->active_pool == id) tn_allocator_pool_end(allocator);
    *at = pool->next;
    tn_host_free(pool);
    for (tn_segment *segment = allocator->segments; segment; segment = segment->next)
        if (segment->arena->pool_id == id) make_ordinary(allocator, segment);
    allocator->last_arena = NULL;
    for (tn_arena **link = &allocator->arenas; *link;) {
        tn_arena *arena = *link;
        if (arena->pool_id == id) {
            *link = arena->next;
            tn_host_free(arena);
        } else {
            link = &arena->next;
        }
    }
}

/* ---- the whole ---- */

tn_allocator *tn_allocator_open(tn_device *device, const tn_allocator_options *options) {
    tn_allocator *allocator = tn_host_calloc(sizeof *allocator);
    if (!allocator) return NULL;
    if (!tn_allocator_history_open(allocator, options ? options->history_events : 0)) {
        tn_form_book_free(&allocator->forms);
        tn_host_free(allocator->events_memory);
        tn_host_free(allocator);
        return NULL;
    }
    allocator->device = device;
    allocator->random = 2463534242u; /* any seed but 0: it shapes trees, never results */
    allocator->pending_end = &allocator->pending;
    if (!options) return allocator;
    allocator->limit = options->limit;
    allocator->red_zone = options->debug ? TN_BLOCK_STEP : 0;
    allocator->fills = options->debug && !device->dry_run;
    return allocator;
}

static void discard_segment(tn_allocator *allocator, tn_segment *segment) {
    for (tn_block *block = segment->first, *next; block; block = next) {
        next = block->after;
        while (block->uses) drop_first_use(allocator, block);
        block_free(allocator, block);
    }
    allocator->device->interface->segment_free(allocator->device, segment->memory, segment->bytes);
    tn_host_free(segment);
}

void tn_allocator_close(tn_allocator *allocator) {
    if (!allocator) return;
    allocator->active_pool = 0;
    settle_pending(allocator, true);
    while (allocator->foreign) tn_allocator_part(allocator, allocator->foreign);
    while (allocator->segments) {
        tn_segment *segment = allocator->segments;
        allocator->segments = segment->next;
        discard_segment(allocator, segment);
    }
    while (allocator->arenas) {
        tn_arena *arena = allocator->arenas;
        allocator->arenas = arena->next;
        tn_host_free(arena);
    }
    while (allocator->private_pools) {
        tn_private_pool *pool = allocator->private_pools;
        allocator->private_pools = pool->next;
        tn_host_free(pool);
    }
    tn_host_pool_free(&allocator->host_pool);
    tn_host_free(allocator->events_memory);
    tn_form_book_free(&allocator->forms);
    tn_host_free(allocator);
}

void *tn_block_data(const tn_block *block) { return block->base + block->front; }
size_t tn_block_requested(const tn_block *block) { return block->requested; }
tn_category tn_block_category(const tn_block *block) { return (tn_category)block->category; }
const tn_owner *tn_block_owner(const tn_block *block) { return &block->owner; }

void tn_allocator_release_cache(tn_allocator *allocator) { release_cached_segments(allocator); }

void tn_allocator_set_limit(tn_allocator *allocator, size_t bytes) {
    allocator->limit = bytes;
    if (bytes && (size_t)allocator->stats.all.reserved.current > bytes) release_cached_segments(allocator);
}
