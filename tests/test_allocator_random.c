/* The caching allocator against a model of it, over long random walks: every block where best fit puts it, contents
 * untouched, every statistic exact after every step, and all of it back in whole segments at the end. */
#include "harness.h"

#include "fake_device.h"
#include "libtensor/host_memory.h"

#define MIB ((size_t)1 << 20)
#define SLOTS 250
#define POOLS 3
#define SEGMENTS 4096
#define SURVEY 4096

typedef enum slot_state { SLOT_EMPTY, SLOT_LIVE, SLOT_PENDING } slot_state;

typedef struct slot {
    slot_state state;
    tn_block *block;
    size_t bytes, size; /* asked for, got */
    tn_category category;
    tn_stream stream;
    bool small;
    unsigned uses;                /* bit per other stream */
    uint64_t event[FAKE_STREAMS]; /* when pending: what has to be through; 0: none or not recorded yet */
} slot;

typedef struct segment_note {
    char *memory;
    int pool;
} segment_note;

typedef struct walk {
    fake_device fake;
    tn_allocator *a;
    bool debug;
    size_t largest;
    uint64_t random;
    slot slot[SLOTS];
    tn_memory_stats want; /* all but the inactive splits, which the survey counts */
    int pool[POOLS], active_pool;
    segment_note segment[SEGMENTS];
    int n_segments;
    bool taking_small;
    tn_block_info block[SURVEY];
    int n_blocks;
} walk;

/* A block's label says whose it is. */
static char label[SLOTS][16];

static uint64_t draw(walk *w, uint64_t n) {
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (w->random >> 11) % n;
}

/* ---- the model ---- */

static void add(tn_stat *stat, int64_t n) {
    stat->current += n;
    if (n > 0) stat->total_in += n;
    else stat->total_out -= n;
    if (stat->current > stat->peak) stat->peak = stat->current;
}

static tn_pool_stats *pool_of(walk *w, bool small) { return small ? &w->want.small_pool : &w->want.large_pool; }

#define ADD_BOTH(w, small, stat, n)                      \
    do {                                                 \
        add(&(w)->want.all.stat, (int64_t)(n));          \
        add(&pool_of((w), (small))->stat, (int64_t)(n)); \
    } while (0)

static void model_active(walk *w, const slot *s, int sign) {
    ADD_BOTH(w, s->small, active, sign * (int64_t)s->size);
    ADD_BOTH(w, s->small, n_active_blocks, sign);
}

static void model_allocated(walk *w, const slot *s, int sign) {
    ADD_BOTH(w, s->small, requested, sign * (int64_t)s->bytes);
    ADD_BOTH(w, s->small, allocated, sign * (int64_t)s->size);
    ADD_BOTH(w, s->small, n_allocations, sign);
    add(&w->want.category[s->category], sign * (int64_t)s->size);
}

static bool through(const walk *w, const slot *s) {
    for (int stream = 0; stream < FAKE_STREAMS; stream++)
        if ((s->uses >> stream & 1) && (s->event[stream] == 0 || s->event[stream] > w->fake.done[stream])) return false;
    return true;
}

/* The allocator has looked at its pending blocks. */
static void model_settle(walk *w) {
    if (w->active_pool) return;
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &w->slot[i];
        if (s->state != SLOT_PENDING) continue;
        for (int stream = 0; stream < FAKE_STREAMS; stream++)
            if ((s->uses >> stream & 1) && s->event[stream] == 0) s->event[stream] = w->fake.recorded[stream];
        if (!through(w, s)) continue;
        model_active(w, s, -1);
        s->state = SLOT_EMPTY;
    }
}

static walk *walk_of(tn_device *device) { return (walk *)device; }

static tn_status walk_segment_alloc(tn_device *device, size_t bytes, void **memory) {
    walk *w = walk_of(device);
    tn_status status = fake_segment_alloc(device, bytes, memory);
    if (status != TN_OK) return status;
    assert_in_range(w->n_segments, 0, SEGMENTS - 1);
    w->segment[w->n_segments++] = (segment_note){ *memory, w->active_pool };
    ADD_BOTH(w, w->taking_small, reserved, bytes);
    ADD_BOTH(w, w->taking_small, n_segments, 1);
    return TN_OK;
}

static void walk_segment_free(tn_device *device, void *memory, size_t bytes) {
    walk *w = walk_of(device);
    int i = 0;
    while (w->segment[i].memory != memory) i++;
    assert_int_equal(w->segment[i].pool, 0);
    w->segment[i] = w->segment[--w->n_segments];
    bool small = bytes == 2 * MIB;
    for (int b = 0; b < w->n_blocks; b++)
        if (w->block[b].segment_address == (uint64_t)(uintptr_t)memory) small = w->block[b].small_pool;
    ADD_BOTH(w, small, reserved, -(int64_t)bytes);
    ADD_BOTH(w, small, n_segments, -1);
    fake_segment_free(device, memory, bytes);
}

/* ---- looking at the allocator ---- */

static void note_block(void *user, const tn_block_info *block) {
    walk *w = user;
    assert_in_range(w->n_blocks, 0, SURVEY - 1);
    w->block[w->n_blocks++] = *block;
}

static bool ends_its_segment(const tn_block_info *block) {
    return block->address + (uint64_t)block->allocated_bytes == block->segment_address + (uint64_t)block->segment_bytes;
}

static void check_tiling(const walk *w) {
    for (int i = 0; i < w->n_blocks; i++) {
        const tn_block_info *block = &w->block[i], *before = i ? block - 1 : NULL;
        assert_int_equal(block->address % 512, 0);
        assert_int_equal(block->allocated_bytes % 512, 0);
        assert_true(block->allocated_bytes > 0);
        if (!before || before->segment_address != block->segment_address) {
            assert_int_equal(block->address, block->segment_address);
            assert_true(!before || (ends_its_segment(before) && before->segment_address < block->segment_address));
        } else {
            assert_int_equal(block->address, before->address + (uint64_t)before->allocated_bytes);
            assert_false(block->state == TN_BLOCK_INACTIVE && before->state == TN_BLOCK_INACTIVE);
        }
    }
    assert_true(w->n_blocks == 0 || ends_its_segment(&w->block[w->n_blocks - 1]));
}

static void check_owner(const walk *w, const tn_block_info *block) {
    size_t at = (size_t)((const char *)block->owner.label - label[0]) / sizeof label[0];
    assert_in_range(at, 0, SLOTS - 1);
    const slot *s = &w->slot[at];
    assert_int_equal(s->state, block->state == TN_BLOCK_ACTIVE ? SLOT_LIVE : SLOT_PENDING);
    assert_int_equal(block->address + (w->debug ? 512 : 0), (uint64_t)(uintptr_t)tn_block_data(s->block));
    assert_int_equal(block->allocated_bytes, s->size);
    assert_int_equal(block->requested_bytes, s->bytes);
    assert_int_equal(block->category, s->category);
    assert_int_equal(block->stream, s->stream);
    assert_int_equal(block->small_pool, s->small);
}

/* Every statistic, against the model and against what the blocks say. */
static void check_stats(walk *w) {
    tn_memory_stats got, *want = &w->want;
    tn_allocator_stats(w->a, &got);
    tn_pool_stats *gots[] = { &got.all, &got.small_pool, &got.large_pool };
    tn_pool_stats *wants[] = { &want->all, &want->small_pool, &want->large_pool };
    for (int p = 0; p < 3; p++) {
        int64_t splits = 0, split_bytes = 0, reserved = 0, active = 0, n_held = 0;
        for (int i = 0; i < w->n_blocks; i++) {
            const tn_block_info *block = &w->block[i];
            if (p && block->small_pool != (p == 1)) continue;
            if (block->address == block->segment_address) reserved += block->segment_bytes;
            if (block->state != TN_BLOCK_INACTIVE) {
                active += block->allocated_bytes;
                n_held++;
            } else if (block->allocated_bytes != block->segment_bytes) {
                splits++;
                split_bytes += block->allocated_bytes;
            }
        }
        assert_int_equal(gots[p]->n_inactive_splits.current, splits);
        assert_int_equal(gots[p]->inactive_split.current, split_bytes);
        assert_true(gots[p]->inactive_split.peak >= split_bytes);
        assert_int_equal(gots[p]->reserved.current, reserved);
        assert_int_equal(gots[p]->active.current, active);
        assert_int_equal(gots[p]->n_active_blocks.current, n_held);
        wants[p]->inactive_split = gots[p]->inactive_split;
        wants[p]->n_inactive_splits = gots[p]->n_inactive_splits;
    }
    int64_t by_category = 0;
    for (int c = 0; c < TN_CATEGORY_COUNT; c++) by_category += got.category[c].current;
    assert_int_equal(by_category, got.all.allocated.current);
    assert_int_equal(got.all.reserved.current, w->fake.reserved);
    want->n_retries = got.n_retries;
    assert_memory_equal(&got, want, sizeof got);
}

static void survey(walk *w) {
    w->n_blocks = 0;
    tn_allocator_visit_blocks(w->a, note_block, w);
    check_tiling(w);
    int n_held = 0, n_slots = 0;
    for (int i = 0; i < w->n_blocks; i++) {
        if (w->block[i].state == TN_BLOCK_INACTIVE) continue;
        check_owner(w, &w->block[i]);
        n_held++;
    }
    for (int i = 0; i < SLOTS; i++) n_slots += w->slot[i].state != SLOT_EMPTY;
    assert_int_equal(n_held, n_slots);
    check_stats(w);
}

/* ---- contents ---- */

static unsigned char tag_of(const walk *w, const slot *s) { return (unsigned char)(1 + (s - w->slot) % 127); }

static size_t edge_of(const slot *s) { return s->bytes < 4096 ? s->bytes : 64; }

static void write_tag(const walk *w, const slot *s) {
    char *data = tn_block_data(s->block);
    memset(data, tag_of(w, s), edge_of(s));
    memset(data + s->bytes - edge_of(s), tag_of(w, s), edge_of(s));
}

static void check_tag(const walk *w, const slot *s) {
    const unsigned char *data = tn_block_data(s->block);
    for (size_t i = 0; i < edge_of(s); i++) assert_true(data[i] == tag_of(w, s) && data[s->bytes - 1 - i] == tag_of(w, s));
}

/* ---- steps ---- */

static int pool_of_segment(const walk *w, uint64_t segment) {
    for (int i = 0; i < w->n_segments; i++)
        if ((uint64_t)(uintptr_t)w->segment[i].memory == segment) return w->segment[i].pool;
    return -1;
}

/* Whether an inactive block would have served the slot's request better than one of `size` at `address`. */
static bool better_fit_exists(const walk *w, const slot *s, size_t wanted, int64_t size, uint64_t address) {
    for (int i = 0; i < w->n_blocks; i++) {
        const tn_block_info *block = &w->block[i];
        if (block->state != TN_BLOCK_INACTIVE || block->stream != s->stream || block->small_pool != s->small) continue;
        if (block->allocated_bytes < (int64_t)wanted || pool_of_segment(w, block->segment_address) != w->active_pool) continue;
        if (block->allocated_bytes < size || (block->allocated_bytes == size && block->address < address)) return true;
    }
    return false;
}

static void check_placement(walk *w, const slot *s, size_t wanted, bool new_segment, bool retried) {
    int at = 0;
    while (w->block[at].address + (w->debug ? 512 : 0) != (uint64_t)(uintptr_t)tn_block_data(s->block)) at++;
    tn_block_info *block = &w->block[at], *rest = block + 1;
    /* No two inactive blocks are neighbours: what is free after the block was one with it. */
    bool split = !ends_its_segment(block) && rest->state == TN_BLOCK_INACTIVE;
    int64_t rest_size = split ? rest->allocated_bytes : 0;
    assert_int_equal(pool_of_segment(w, block->segment_address), w->active_pool);
    if (s->small) assert_int_equal(s->size, wanted);
    else assert_true(split ? s->size == wanted && rest_size > (int64_t)MIB : s->size - wanted <= MIB);
    if (split) rest->state = TN_BLOCK_ACTIVE;                                    /* no candidate itself */
    int64_t found_size = new_segment ? INT64_MAX : (int64_t)s->size + rest_size; /* a new segment only where nothing fits */
    assert_false(better_fit_exists(w, s, wanted, found_size, block->address));
    if (!new_segment) return;
    size_t least = s->small ? 2 * MIB : (wanted + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
    size_t usual = !s->small && wanted < 10 * MIB ? 20 * MIB : least;
    assert_true((size_t)block->segment_bytes == usual || (retried && (size_t)block->segment_bytes == least));
}

static size_t draw_size(walk *w) {
    size_t kind = draw(w, 10);
    if (kind == 0) return draw(w, 3) * 512;
    if (kind < 7) return draw(w, (size_t)1 << (1 + draw(w, 20)));
    return draw(w, w->largest);
}

/* What the block really got: only the survey can say how much of a large block's rest stayed with it. */
static size_t size_got(walk *w, const slot *s) {
    w->n_blocks = 0;
    tn_allocator_visit_blocks(w->a, note_block, w);
    for (int i = 0; i < w->n_blocks; i++)
        if (w->block[i].owner.label == label[s - w->slot]) return (size_t)w->block[i].allocated_bytes;
    return 0;
}

static void step_take(walk *w, slot *s) {
    size_t bytes = draw_size(w), red_zones = w->debug ? 1024 : 0;
    size_t wanted = bytes + red_zones ? (bytes + red_zones + 511) / 512 * 512 : 512;
    *s = (slot){ .bytes = bytes, .small = wanted <= MIB };
    s->category = (tn_category)draw(w, TN_CATEGORY_COUNT);
    s->stream = (tn_stream)draw(w, 3);
    w->taking_small = s->small;
    int64_t retries = w->want.n_retries, segments = w->fake.n_segment_allocs;

    tn_owner owner = { "walk", label[s - w->slot], TN_PASS_BACKWARD };
    s->block = tn_allocator_take(w->a, bytes, s->stream, s->category, &owner);
    model_settle(w);
    if (s->block) {
        s->state = SLOT_LIVE;
        s->size = size_got(w, s);
        model_active(w, s, 1);
        model_allocated(w, s, 1);
        write_tag(w, s);
    } else {
        w->want.n_out_of_memory++;
    }
    survey(w);
    bool retried = w->want.n_retries > retries;
    if (s->block) {
        assert_int_equal((uintptr_t)tn_block_data(s->block) % 512, 0);
        check_placement(w, s, wanted, w->fake.n_segment_allocs > segments, retried);
        return;
    }
    assert_true(retried);
    assert_true(w->fake.reserved + wanted > w->fake.capacity - 2 * MIB);
    assert_false(better_fit_exists(w, s, wanted, INT64_MAX, 0));
}

static void step_give(walk *w, slot *s) {
    check_tag(w, s);
    assert_true(tn_allocator_give(w->a, s->block));
    model_allocated(w, s, -1);
    if (s->uses) {
        s->state = SLOT_PENDING;
        for (int stream = 0; stream < FAKE_STREAMS && !w->active_pool; stream++)
            if (s->uses >> stream & 1) s->event[stream] = w->fake.recorded[stream];
    } else {
        model_active(w, s, -1);
        s->state = SLOT_EMPTY;
    }
    model_settle(w);
}

static void step_used_on(walk *w, slot *s) {
    tn_stream stream = (tn_stream)draw(w, 5);
    assert_int_equal(tn_allocator_used_on(w->a, s->block, stream), TN_OK);
    if (stream != s->stream) s->uses |= 1u << stream;
}

static void step_pool(walk *w) {
    int *id = &w->pool[draw(w, POOLS)];
    if (w->active_pool && draw(w, 4)) {
        tn_allocator_pool_end(w->a);
        w->active_pool = 0;
        model_settle(w);
    } else if (*id && draw(w, 2)) {
        tn_allocator_pool_release(w->a, *id);
        if (w->active_pool == *id) w->active_pool = 0;
        for (int i = 0; i < w->n_segments; i++)
            if (w->segment[i].pool == *id) w->segment[i].pool = 0;
        *id = 0;
        if (!w->active_pool) {
            tn_allocator_pool_end(w->a); /* harmless without one; looks at what is pending */
            model_settle(w);
        }
    } else if (!w->active_pool) {
        assert_int_equal(tn_allocator_pool_begin(w->a, id), TN_OK);
        model_settle(w);
        w->active_pool = *id;
    }
}

static void reset_stats(tn_stat *stats, size_t n, bool peak) {
    for (size_t i = 0; i < n; i++) {
        if (peak) stats[i].peak = stats[i].current;
        else stats[i].total_in = stats[i].total_out = 0;
    }
}

static void step_reset(walk *w) {
    bool peak = draw(w, 2);
    if (peak) tn_allocator_reset_peak(w->a);
    else tn_allocator_reset_totals(w->a);
    if (!peak) w->want.n_out_of_memory = w->want.n_retries = 0;
    reset_stats((tn_stat *)&w->want.all, 3 * sizeof(tn_pool_stats) / sizeof(tn_stat), peak);
    reset_stats(w->want.category, TN_CATEGORY_COUNT, peak);
}

static void step_retag(walk *w, slot *s) {
    tn_category category = (tn_category)draw(w, TN_CATEGORY_COUNT);
    tn_allocator_retag(w->a, s->block, category);
    if (category == s->category) return;
    add(&w->want.category[s->category], -(int64_t)s->size);
    add(&w->want.category[category], (int64_t)s->size);
    s->category = category;
}

static void random_step(walk *w) {
    slot *s = &w->slot[draw(w, SLOTS)];
    uint64_t kind = draw(w, 1000);
    if (kind < 3) {
        tn_allocator_release_cache(w->a);
        model_settle(w);
    } else if (kind < 23) {
        step_pool(w);
    } else if (kind < 123) {
        fake_finish(&w->fake, (tn_stream)draw(w, 5));
    } else if (kind < 125) {
        step_reset(w);
    } else if (s->state == SLOT_EMPTY) {
        step_take(w, s);
        return;
    } else if (s->state == SLOT_LIVE) {
        if (kind < 250) step_retag(w, s);
        else if (kind < 400) step_used_on(w, s);
        else step_give(w, s);
    }
    if (draw(w, 8) == 0) survey(w);
}

static void give_all_back(walk *w) {
    for (int i = 0; i < SLOTS; i++)
        if (w->slot[i].state == SLOT_LIVE) step_give(w, &w->slot[i]);
    tn_allocator_pool_end(w->a);
    w->active_pool = 0;
    model_settle(w);
    for (int i = 0; i < POOLS; i++)
        if (w->pool[i]) tn_allocator_pool_release(w->a, w->pool[i]);
    for (int i = 0; i < w->n_segments; i++) w->segment[i].pool = 0;
    for (int stream = 0; stream < FAKE_STREAMS; stream++) fake_finish(&w->fake, stream);
    tn_allocator_pool_end(w->a);
    model_settle(w);
    survey(w);
    assert_int_equal(w->n_blocks, w->want.all.n_segments.current); /* whole segments again */
    tn_allocator_release_cache(w->a);
    survey(w);
    assert_int_equal(w->n_blocks, 0);
    assert_int_equal(w->want.all.reserved.current, 0);
    assert_int_equal(w->want.all.allocated.current, 0);
}

static void walk_randomly(uint64_t seed, int n_steps, bool debug, size_t largest, size_t capacity) {
    static walk w;
    tn_test_note("seed %llu, %d steps", (unsigned long long)seed, n_steps);
    for (int i = 0; i < SLOTS; i++) snprintf(label[i], sizeof label[i], "%d", i);
    int64_t host_blocks = tn_host_live_blocks();
    memset(&w, 0, sizeof w);
    fake_open(&w.fake);
    tn_device_interface interface = *w.fake.device.interface;
    interface.segment_alloc = walk_segment_alloc;
    interface.segment_free = walk_segment_free;
    w.fake.device.interface = &interface;
    w.fake.capacity = capacity;
    w.random = seed * 0x9E3779B97F4A7C15u + 1;
    w.debug = debug;
    w.largest = largest;
    w.a = tn_allocator_open(&w.fake.device, &(tn_allocator_options){ .debug = debug, .history_events = 1000 });
    assert_non_null(w.a);
    for (int step = 0; step < n_steps; step++) random_step(&w);
    give_all_back(&w);
    tn_allocator_close(w.a);
    assert_int_equal(w.fake.n_segments, 0);
    assert_int_equal(w.fake.n_live_events, 0);
    assert_int_equal(tn_host_live_blocks(), host_blocks);
}

static void many_small(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) walk_randomly(seed, 25000, false, 3 * MIB, 600 * MIB);
}

static void large_and_running_out(void **state) {
    (void)state;
    for (uint64_t seed = 11; seed <= 13; seed++) walk_randomly(seed, 25000, false, 24 * MIB, 400 * MIB);
}

static void in_debug_mode(void **state) {
    (void)state;
    walk_randomly(21, 3000, true, 2 * MIB, 100 * MIB);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(many_small),
    cmocka_unit_test(large_and_running_out),
    cmocka_unit_test(in_debug_mode),
};

TN_TEST_MAIN("allocator_random", cases)
