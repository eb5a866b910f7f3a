/* The caching allocator and the host memory under it, on a fake device. The random walk is in test_allocator_random.c. */
#include "harness.h"

#include <time.h>

#include "fake_device.h"
#include "libtensor/host_memory.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define GIB ((size_t)1 << 30)

static const tn_owner owner = { "matmul", "layer.3", TN_PASS_FORWARD };

typedef struct fixture {
    fake_device fake;
    tn_allocator *a;
    int64_t host_blocks_before;
} fixture;

static void open_with(fixture *b, const tn_allocator_options *options) {
    fake_open(&b->fake);
    b->host_blocks_before = tn_host_live_blocks();
    b->a = tn_allocator_open(&b->fake.device, options);
    assert_non_null(b->a);
}

static void open_plain(fixture *b) { open_with(b, &(tn_allocator_options){ .history_events = 64 }); }

static void close_fixture(fixture *b) {
    tn_allocator_close(b->a);
    assert_int_equal(b->fake.n_segments, 0);
    assert_int_equal(b->fake.reserved, 0);
    assert_int_equal(b->fake.n_live_events, 0);
    assert_int_equal(tn_host_live_blocks(), b->host_blocks_before);
}

static tn_memory_stats stats_of(const fixture *b) {
    tn_memory_stats stats;
    tn_allocator_stats(b->a, &stats);
    return stats;
}

static tn_block *take_on(fixture *b, size_t bytes, tn_stream stream) {
    tn_block *block = tn_allocator_take(b->a, bytes, stream, TN_CATEGORY_TEMPORARY, &owner);
    assert_non_null(block);
    return block;
}

static tn_block *take(fixture *b, size_t bytes) { return take_on(b, bytes, 0); }
static void give(fixture *b, tn_block *block) { assert_true(tn_allocator_give(b->a, block)); }

static void assert_error_has(const fixture *b, const char *words) {
    TN_TEST_WANT(strstr(tn_allocator_error(b->a), words), "'%s' is not in '%s'", words, tn_allocator_error(b->a));
}

/* ---- sizes ---- */

static void sizes_are_rounded(void **state) {
    (void)state;
    static const struct {
        size_t bytes, allocated, segment;
    } cases[] = {
        { 0, 512, 2 * MIB },
        { 1, 512, 2 * MIB },
        { 512, 512, 2 * MIB },
        { 513, 1024, 2 * MIB },
        { MIB, MIB, 2 * MIB },
        { MIB + 1, MIB + 512, 20 * MIB },
        { 10 * MIB - 1, 10 * MIB, 10 * MIB },
        { 10 * MIB - 512, 10 * MIB - 512, 20 * MIB },
        { 10 * MIB, 10 * MIB, 10 * MIB },
        { 10 * MIB + 1, 10 * MIB + 512, 12 * MIB },
        { 15 * MIB, 16 * MIB, 16 * MIB }, /* a rest of up to 1 MiB stays with a large block */
        { 100 * MIB, 100 * MIB, 100 * MIB },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_test_note("%zu bytes", cases[i].bytes);
        fixture b;
        open_plain(&b);
        tn_block *block = take(&b, cases[i].bytes);
        tn_memory_stats stats = stats_of(&b);
        assert_int_equal(stats.all.allocated.current, cases[i].allocated);
        assert_int_equal(stats.all.requested.current, cases[i].bytes);
        assert_int_equal(stats.all.reserved.current, cases[i].segment);
        assert_int_equal(tn_block_requested(block), cases[i].bytes);
        assert_int_equal((uintptr_t)tn_block_data(block) % 512, 0);
        bool small = cases[i].bytes <= MIB;
        const tn_pool_stats *pool = small ? &stats.small_pool : &stats.large_pool;
        assert_memory_equal(pool, &stats.all, sizeof *pool);
        give(&b, block);
        close_fixture(&b);
    }
}

static void large_rest_is_kept(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block = take(&b, 11 * MIB); /* of a 12 MiB segment: 1 MiB is not worth keeping */
    assert_int_equal(stats_of(&b).all.allocated.current, 12 * MIB);
    assert_int_equal(stats_of(&b).all.n_inactive_splits.current, 0);
    give(&b, block);
    block = take(&b, 11 * MIB - 512);
    assert_int_equal(stats_of(&b).all.allocated.current, 11 * MIB - 512);
    assert_int_equal(stats_of(&b).all.inactive_split.current, MIB + 512);
    give(&b, block);
    assert_int_equal(stats_of(&b).all.inactive_split.current, 0);
    close_fixture(&b);
}

static void impossible_sizes_fail_cleanly(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block = take(&b, 100);
    static const size_t sizes[] = { SIZE_MAX,         SIZE_MAX - 511,  SIZE_MAX - 2 * MIB,   SIZE_MAX / 2,
                                    SIZE_MAX / 2 + 1, (size_t)1 << 53, ((size_t)1 << 53) + 1 };
    int64_t n = sizeof sizes / sizeof *sizes;
    for (int64_t i = 0; i < n; i++) {
        assert_null(tn_allocator_take(b.a, sizes[i], 0, TN_CATEGORY_SAVED, &owner));
        assert_int_equal(tn_allocator_error_status(b.a), TN_ERR_MEMORY);
        assert_error_has(&b, "out of memory: tried to allocate ");
    }
    assert_int_equal(stats_of(&b).n_out_of_memory, n);
    assert_int_equal(stats_of(&b).all.allocated.current, 512);
    give(&b, block);
    close_fixture(&b);
}

/* ---- reuse ---- */

static void best_fit_takes_smallest_then_lowest(void **state) {
    (void)state;
    for (size_t unit = 512; unit <= 2 * MIB; unit = unit == 512 ? 2 * MIB : unit * 2) {
        fixture b;
        open_plain(&b);
        /* Holes of 3, 2, 2 and 1 units between live blocks; with a large unit they are in several segments. */
        tn_block *hole[4], *wall[4];
        static const size_t units[4] = { 3, 2, 2, 1 };
        for (int i = 0; i < 4; i++) {
            hole[i] = take(&b, units[i] * unit);
            wall[i] = take(&b, unit);
        }
        void *at[4];
        for (int i = 0; i < 4; i++) at[i] = tn_block_data(hole[i]);
        for (int i = 3; i >= 0; i--) give(&b, hole[i]);
        void *lower = at[1] < at[2] ? at[1] : at[2], *higher = at[1] < at[2] ? at[2] : at[1];
        void *expected[] = { lower, higher, at[0] };
        tn_block *got[3];
        for (int i = 0; i < 3; i++) {
            got[i] = take(&b, 2 * unit);
            assert_ptr_equal(tn_block_data(got[i]), expected[i]);
        }
        tn_block *one = take(&b, unit);
        assert_true(tn_block_data(one) == at[3] || tn_block_data(one) == (char *)at[0] + 2 * unit);
        give(&b, one);
        for (int i = 0; i < 3; i++) give(&b, got[i]);
        for (int i = 0; i < 4; i++) give(&b, wall[i]);
        close_fixture(&b);
    }
}

static void neighbours_coalesce(void **state) {
    (void)state;
    static const int order[][4] = { { 0, 1, 2, 3 }, { 3, 2, 1, 0 }, { 0, 2, 1, 3 }, { 1, 3, 2, 0 } };
    for (size_t o = 0; o < sizeof order / sizeof *order; o++) {
        fixture b;
        open_plain(&b);
        tn_block *block[4];
        for (int i = 0; i < 4; i++) block[i] = take(&b, 512 * KIB);
        assert_int_equal(stats_of(&b).all.n_inactive_splits.current, 0);
        for (int i = 0; i < 4; i++) give(&b, block[order[o][i]]);
        assert_int_equal(stats_of(&b).all.n_inactive_splits.current, 0);
        assert_int_equal(stats_of(&b).all.n_segments.current, 1);
        tn_allocator_release_cache(b.a);
        assert_int_equal(b.fake.n_segments, 0);
        assert_int_equal(stats_of(&b).all.reserved.current, 0);
        close_fixture(&b);
    }
}

static void cache_serves_again(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    void *at = NULL;
    for (int i = 0; i < 100; i++) {
        tn_block *block = take(&b, 3 * MIB);
        assert_true(!at || at == tn_block_data(block));
        at = tn_block_data(block);
        give(&b, block);
    }
    assert_int_equal(b.fake.n_segment_allocs, 1);
    assert_true(tn_allocator_give(b.a, NULL));
    close_fixture(&b);
}

static void misuse_is_refused(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block = take(&b, 10);
    assert_int_equal(tn_allocator_used_on(b.a, NULL, 1), TN_ERR_ARGUMENT);
    assert_int_equal(tn_allocator_used_on(b.a, block, 1), TN_OK);
    give(&b, block);
    assert_false(tn_allocator_give(b.a, block)); /* still waiting for stream 1 */
    assert_error_has(&b, "twice");
    assert_int_equal(tn_allocator_used_on(b.a, block, 2), TN_ERR_ARGUMENT);
    assert_int_equal(stats_of(&b).all.allocated.current, 0);
    close_fixture(&b);
}

/* ---- streams ---- */

static void streams_do_not_share(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *first = take_on(&b, 100, 0);
    void *at = tn_block_data(first);
    give(&b, first);
    tn_block *other = take_on(&b, 100, 1);
    assert_int_equal(b.fake.n_segments, 2);
    assert_ptr_not_equal(tn_block_data(other), at);
    first = take_on(&b, 100, 0);
    assert_ptr_equal(tn_block_data(first), at);
    assert_int_equal(b.fake.n_segments, 2);
    give(&b, first);
    give(&b, other);
    close_fixture(&b);
}

static void free_waits_for_other_streams(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block = take(&b, 4000);
    void *at = tn_block_data(block);
    assert_int_equal(tn_allocator_used_on(b.a, block, 0), TN_OK); /* its own stream: nothing to wait for */
    assert_int_equal(tn_allocator_used_on(b.a, block, 1), TN_OK);
    assert_int_equal(tn_allocator_used_on(b.a, block, 1), TN_OK);
    assert_int_equal(tn_allocator_used_on(b.a, block, 2), TN_OK);
    assert_int_equal(b.fake.n_recorded, 0);
    give(&b, block);
    assert_int_equal(b.fake.n_recorded, 2);
    tn_memory_stats stats = stats_of(&b);
    assert_int_equal(stats.all.allocated.current, 0);
    assert_int_equal(stats.all.active.current, 4096);
    assert_int_equal(stats.all.n_active_blocks.current, 1);
    assert_int_equal(stats.all.n_allocations.current, 0);

    tn_block *next = take(&b, 4000);
    assert_ptr_not_equal(tn_block_data(next), at);
    fake_finish(&b.fake, 1);
    tn_block *third = take(&b, 4000); /* stream 2 still works on it */
    assert_ptr_not_equal(tn_block_data(third), at);
    fake_finish(&b.fake, 2);
    tn_block *fourth = take(&b, 4000);
    assert_ptr_equal(tn_block_data(fourth), at);
    assert_int_equal(stats_of(&b).all.active.current, 3 * 4096);
    give(&b, next);
    give(&b, third);
    give(&b, fourth);
    close_fixture(&b);
}

static void release_cache_waits(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block[20];
    for (int i = 0; i < 20; i++) {
        block[i] = take(&b, 3 * MIB);
        assert_int_equal(tn_allocator_used_on(b.a, block[i], 1 + i % 3), TN_OK);
    }
    for (int i = 0; i < 20; i++) give(&b, block[i]);
    assert_int_equal(stats_of(&b).all.n_active_blocks.current, 20);
    tn_allocator_release_cache(b.a);
    assert_true(b.fake.n_waits > 0);
    assert_int_equal(b.fake.n_segments, 0);
    assert_int_equal(stats_of(&b).all.active.current, 0);
    close_fixture(&b);
}

static void device_failures_keep_memory_safe(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block = take(&b, 4000);
    void *at = tn_block_data(block);
    assert_int_equal(tn_allocator_used_on(b.a, block, 1), TN_OK);
    b.fake.record_fails = true;
    give(&b, block);
    tn_block *next = take(&b, 4000);
    assert_ptr_not_equal(tn_block_data(next), at);
    b.fake.record_fails = false;
    tn_block *third = take(&b, 4000); /* the event is recorded now, and not done */
    assert_ptr_not_equal(tn_block_data(third), at);
    assert_int_equal(b.fake.n_recorded, 1);

    b.fake.wait_fails = b.fake.sync_fails = true;
    tn_allocator_release_cache(b.a);
    assert_int_equal(stats_of(&b).all.active.current, 3 * 4096); /* still waiting */
    b.fake.sync_fails = false;
    tn_allocator_release_cache(b.a);
    assert_int_equal(stats_of(&b).all.active.current, 2 * 4096);
    give(&b, next);
    give(&b, third);
    close_fixture(&b);
}

/* ---- private pools ---- */

static void private_pool_is_private(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *ordinary = take(&b, 100);
    void *ordinary_at = tn_block_data(ordinary);
    give(&b, ordinary);

    int id = 0, second = 0, unknown = 77, negative = -1;
    assert_int_equal(tn_allocator_pool_begin(b.a, &unknown), TN_ERR_ARGUMENT);
    assert_int_equal(tn_allocator_pool_begin(b.a, &negative), TN_ERR_ARGUMENT);
    assert_int_equal(tn_allocator_pool_begin(b.a, NULL), TN_ERR_ARGUMENT);
    assert_int_equal(tn_allocator_pool_begin(b.a, &id), TN_OK);
    assert_true(id > 0);
    assert_int_equal(tn_allocator_pool_begin(b.a, &second), TN_ERR_ARGUMENT);
    tn_block *inside = take(&b, 100), *kept = take(&b, 3 * MIB);
    void *inside_at = tn_block_data(inside);
    assert_ptr_not_equal(inside_at, ordinary_at);
    give(&b, inside);
    inside = take(&b, 100);
    assert_ptr_equal(tn_block_data(inside), inside_at);
    tn_allocator_pool_end(b.a);

    give(&b, inside); /* goes back to its pool, not to the ordinary blocks */
    tn_block *outside = take(&b, 100);
    assert_ptr_equal(tn_block_data(outside), ordinary_at);
    give(&b, outside);
    tn_allocator_release_cache(b.a);
    assert_int_equal(b.fake.n_segments, 2);

    assert_int_equal(tn_allocator_pool_begin(b.a, &id), TN_OK);
    inside = take(&b, 100);
    assert_ptr_equal(tn_block_data(inside), inside_at);
    give(&b, inside);
    tn_allocator_pool_end(b.a);

    tn_allocator_pool_release(b.a, id);
    tn_allocator_pool_release(b.a, id);
    assert_int_equal(tn_allocator_pool_begin(b.a, &id), TN_ERR_ARGUMENT);
    outside = take(&b, 100);
    assert_ptr_equal(tn_block_data(outside), inside_at);
    give(&b, outside);
    tn_allocator_release_cache(b.a);
    assert_int_equal(b.fake.n_segments, 1); /* the one with the live block */
    give(&b, kept);
    tn_allocator_release_cache(b.a);
    assert_int_equal(b.fake.n_segments, 0);
    close_fixture(&b);
}

static void capture_asks_no_events(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    int id = 0;
    tn_block *before = take(&b, 100);
    assert_int_equal(tn_allocator_used_on(b.a, before, 1), TN_OK);
    assert_int_equal(tn_allocator_pool_begin(b.a, &id), TN_OK);
    tn_block *inside = take(&b, 100);
    assert_int_equal(tn_allocator_used_on(b.a, inside, 1), TN_OK);
    give(&b, inside);
    give(&b, before);
    tn_allocator_release_cache(b.a);
    assert_int_equal(b.fake.n_recorded, 0);
    assert_int_equal(b.fake.n_waits + b.fake.n_syncs, 0);
    assert_int_equal(stats_of(&b).all.n_active_blocks.current, 2);
    tn_allocator_pool_end(b.a);
    assert_int_equal(b.fake.n_recorded, 2);
    fake_finish(&b.fake, 1);
    tn_allocator_pool_release(b.a, id);
    tn_allocator_release_cache(b.a);
    assert_int_equal(b.fake.n_segments, 0);
    close_fixture(&b);
}

static void released_while_active(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    int id = 0;
    assert_int_equal(tn_allocator_pool_begin(b.a, &id), TN_OK);
    tn_block *block = take_on(&b, 100, 3);
    tn_allocator_pool_release(b.a, id);
    void *at = tn_block_data(block);
    give(&b, block);
    block = take_on(&b, 100, 3);
    assert_ptr_equal(tn_block_data(block), at);
    give(&b, block);
    close_fixture(&b);
}

/* ---- limits and the ladder ---- */

static void limit_counts_reserved_bytes(void **state) {
    (void)state;
    fixture b;
    open_with(&b, &(tn_allocator_options){ .limit = 4 * MIB, .history_events = 64 });
    tn_block *small = take(&b, 100);
    tn_block *large = take(&b, 2 * MIB); /* no room for a shared 20 MiB segment, but for itself */
    assert_int_equal(stats_of(&b).all.reserved.current, 4 * MIB);
    assert_null(tn_allocator_take(b.a, 2 * MIB, 0, TN_CATEGORY_SAVED, &owner));
    assert_error_has(&b, "out of memory: tried to allocate 2.00 MiB; 2.00 MiB allocated, 2.00 MiB reserved and free, "
                         "limit 4.00 MiB (limit reached), op matmul, label layer.3");
    assert_int_equal(stats_of(&b).limit, 4 * MIB);
    tn_allocator_set_limit(b.a, 0);
    tn_block *more = take(&b, 2 * MIB);
    assert_int_equal(stats_of(&b).all.reserved.current, 24 * MIB);
    give(&b, more);
    tn_allocator_set_limit(b.a, 5 * MIB); /* what is cached beyond it goes back at once */
    assert_int_equal(stats_of(&b).all.reserved.current, 4 * MIB);
    give(&b, small);
    give(&b, large);
    tn_allocator_set_limit(b.a, 1);
    assert_int_equal(stats_of(&b).all.reserved.current, 0);
    assert_null(tn_allocator_take(b.a, 1, 0, TN_CATEGORY_SAVED, &owner));
    close_fixture(&b);
}

static void count_oom(void *user, const tn_memory_event *event) {
    if (event->kind != TN_EVENT_OUT_OF_MEMORY) return;
    ++*(int *)user;
    assert_string_equal(event->owner.op, "matmul");
    assert_string_equal(event->owner.label, "layer.3");
    assert_int_equal(event->category, TN_CATEGORY_SAVED);
    assert_int_equal(event->requested_bytes, 30 * MIB + 1);
}

static void ladder_releases_then_fails(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    b.fake.capacity = 40 * MIB;
    tn_block *block = take(&b, 24 * MIB);
    give(&b, block);
    block = take(&b, 30 * MIB); /* only fits once the 24 MiB have gone back */
    assert_int_equal(stats_of(&b).n_retries, 1);
    assert_int_equal(stats_of(&b).n_out_of_memory, 0);
    assert_int_equal(b.fake.n_segments, 1);

    assert_null(tn_allocator_take(b.a, 30 * MIB + 1, 0, TN_CATEGORY_SAVED, &owner));
    assert_error_has(&b, "no limit (device refused: fake memory is full), op matmul, label layer.3");
    assert_int_equal(stats_of(&b).n_out_of_memory, 1);
    int n_events = 0;
    tn_allocator_visit_history(b.a, count_oom, &n_events);
    assert_int_equal(n_events, 1);

    give(&b, block);
    block = take(&b, 40 * MIB);
    give(&b, block);
    b.fake.refuses = true;
    block = take(&b, 40 * MIB); /* from the cache */
    give(&b, block);
    tn_allocator_reset_totals(b.a);
    assert_int_equal(stats_of(&b).n_out_of_memory, 0);
    assert_int_equal(stats_of(&b).n_retries, 0);
    close_fixture(&b);
}

static void ladder_waits_for_pending(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    b.fake.capacity = 22 * MIB;
    tn_block *wall = take(&b, 3 * MIB), *block = take(&b, 10 * MIB);
    void *at = tn_block_data(block);
    assert_int_equal(tn_allocator_used_on(b.a, block, 1), TN_OK);
    give(&b, block);
    block = take(&b, 10 * MIB);
    assert_true(at == tn_block_data(block) && b.fake.n_waits == 1);
    give(&b, block);
    give(&b, wall);
    close_fixture(&b);
}

static void text_fits_its_buffer(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    char label[4000];
    memset(label, 'x', sizeof label);
    label[sizeof label - 1] = 0;
    b.fake.refuses = true;
    assert_null(tn_allocator_take(b.a, 1, 0, TN_CATEGORY_SAVED, &(tn_owner){ label, label, TN_PASS_NONE }));
    assert_true(strlen(tn_allocator_error(b.a)) < 2000);
    assert_null(tn_allocator_take(b.a, 1, 0, TN_CATEGORY_SAVED, NULL));
    assert_null(tn_allocator_take(b.a, 1, 0, TN_CATEGORY_SAVED, &(tn_owner){ NULL, NULL, TN_PASS_NONE }));
    close_fixture(&b);
}

/* ---- host memory failing ---- */

static void short_scenario(fixture *b) {
    int id = 0;
    tn_block *block[8] = { 0 };
    block[0] = tn_allocator_take(b->a, 100, 0, TN_CATEGORY_TEMPORARY, &owner);
    block[1] = tn_allocator_take(b->a, 3 * MIB, 0, TN_CATEGORY_TEMPORARY, &owner);
    block[2] = tn_allocator_take(b->a, 100, 1, TN_CATEGORY_TEMPORARY, &owner);
    if (tn_allocator_pool_begin(b->a, &id) == TN_OK) {
        block[3] = tn_allocator_take(b->a, 1000, 2, TN_CATEGORY_TEMPORARY, &owner);
        block[4] = tn_allocator_take(b->a, 1000, 0, TN_CATEGORY_TEMPORARY, &owner);
        tn_allocator_pool_end(b->a);
    }
    for (int i = 0; i < 5; i++)
        if (block[i] && tn_allocator_used_on(b->a, block[i], 5) != TN_OK) assert_error_has(b, "out of host memory");
    tn_allocator_give(b->a, block[1]);
    block[1] = tn_allocator_take(b->a, 30 * MIB, 0, TN_CATEGORY_TEMPORARY, &owner);
    for (int i = 0; i < 5; i++) tn_allocator_give(b->a, block[i]);
    tn_allocator_pool_release(b->a, id);
    tn_memory_stats stats = stats_of(b);
    assert_int_equal(stats.all.allocated.current, 0);
    assert_int_equal(stats.all.reserved.current, b->fake.reserved);
    tn_allocator_release_cache(b->a);
    assert_int_equal(stats_of(b).all.reserved.current, 0);
    assert_int_equal(b->fake.n_segments, 0);
}

static void host_failures_leave_a_clean_state(void **state) {
    (void)state;
    for (int for_ever = 0; for_ever < 2; for_ever++) {
        for (int64_t n = 1; n <= 60; n++) {
            tn_test_note("allocation %lld fails%s", (long long)n, for_ever ? " and all after it" : "");
            fixture b;
            fake_open(&b.fake);
            b.host_blocks_before = tn_host_live_blocks();
            tn_host_fail_after(n, for_ever);
            b.a = tn_allocator_open(&b.fake.device, &(tn_allocator_options){ .history_events = 16 });
            if (b.a) short_scenario(&b);
            tn_host_fail_after(0, false);
            if (b.a) {
                short_scenario(&b); /* usable afterwards */
                give(&b, take(&b, 5 * MIB));
            }
            close_fixture(&b);
        }
    }
}

static void host_failure_says_so(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_host_fail_after(1, true);
    assert_null(tn_allocator_take(b.a, 3000, 0, TN_CATEGORY_SAVED, &owner));
    tn_host_fail_after(0, false);
    assert_int_equal(tn_allocator_error_status(b.a), TN_ERR_HOST_MEMORY);
    assert_error_has(&b, "out of host memory");
    assert_error_has(&b, "op matmul, label layer.3");
    assert_int_equal(stats_of(&b).all.reserved.current, 0);
    close_fixture(&b);
    tn_host_fail_after(1, false);
    assert_null(tn_allocator_open(&b.fake.device, NULL));
    assert_null(tn_allocator_open(&b.fake.device, &(tn_allocator_options){ .history_events = INT64_MAX }));
    tn_allocator_close(NULL);
}

/* ---- debug mode ---- */

static void blocks_are_poisoned(void **state) {
    (void)state;
    fixture b;
    open_with(&b, &(tn_allocator_options){ .debug = true });
    for (size_t bytes = 0; bytes < 3000; bytes += 299) {
        tn_block *block = take(&b, bytes);
        unsigned char *data = tn_block_data(block);
        for (size_t i = 0; i < bytes; i++) assert_int_equal(data[i], 0xFF);
        for (size_t i = 1; i <= 512; i++) assert_int_equal(data[-(ptrdiff_t)i], 0xA5);
        size_t end = (bytes + 511) / 512 * 512 + 512;
        for (size_t i = bytes; i < end; i++) assert_int_equal(data[i], 0xA5);
        assert_int_equal(stats_of(&b).all.allocated.current, end + 512);
        assert_int_equal((uintptr_t)data % 512, 0);
        memset(data, 7, bytes);
        assert_true(tn_allocator_check(b.a));
        give(&b, block);
        for (size_t i = 0; i < end; i++) assert_int_equal(data[i], 0xFF);
    }
    close_fixture(&b);
}

static void overwritten_zones_are_found(void **state) {
    (void)state;
    static const struct {
        ptrdiff_t at;
        const char *text;
    } cases[] = {
        { -1, "the red zone before a block of 1000 B was overwritten, first 1 bytes before its start, op matmul, label layer.3" },
        { -512, "before a block of 1000 B was overwritten, first 512 bytes" },
        { 1000, "the red zone after a block of 1000 B was overwritten, first 0 bytes past its end, op matmul, label layer.3" },
        { 1023, "first 23 bytes past its end" },
        { 1535, "first 535 bytes past its end" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture b;
        open_with(&b, &(tn_allocator_options){ .debug = true });
        tn_block *good = take(&b, 1000), *bad = take(&b, 1000), *also_good = take(&b, 2 * MIB);
        memset(tn_block_data(good), 1, 1000);
        memset(tn_block_data(also_good), 1, 2 * MIB);
        assert_true(tn_allocator_check(b.a));
        ((char *)tn_block_data(bad))[cases[i].at] = 3;
        assert_false(tn_allocator_check(b.a));
        assert_error_has(&b, cases[i].text);
        assert_false(tn_allocator_give(b.a, bad));
        assert_error_has(&b, cases[i].text);
        assert_int_equal(tn_allocator_error_status(b.a), TN_ERR_CORRUPTION);
        assert_true(tn_allocator_check(b.a)); /* it is gone all the same */
        give(&b, good);
        give(&b, also_good);
        tn_allocator_release_cache(b.a);
        assert_int_equal(b.fake.n_segments, 0);
        close_fixture(&b);
    }
}

static void slack_of_large_blocks_is_guarded(void **state) {
    (void)state;
    fixture b;
    open_with(&b, &(tn_allocator_options){ .debug = true });
    tn_block *block = take(&b, 12 * MIB - 100 * KIB); /* the segment's last 99 KiB stay with the block */
    assert_int_equal(stats_of(&b).all.allocated.current, 12 * MIB);
    char *data = tn_block_data(block);
    data[12 * MIB - 513] = 0;
    assert_false(tn_allocator_give(b.a, block));
    close_fixture(&b);
}

static void poison_waits_for_other_streams(void **state) {
    (void)state;
    fixture b;
    open_with(&b, &(tn_allocator_options){ .debug = true });
    tn_block *block = take(&b, 64);
    char *data = tn_block_data(block);
    memset(data, 5, 64);
    assert_int_equal(tn_allocator_used_on(b.a, block, 1), TN_OK);
    give(&b, block);
    assert_int_equal(data[63], 5);
    fake_finish(&b.fake, 1);
    give(&b, take(&b, MIB));
    assert_int_equal((unsigned char)data[63], 0xFF);
    close_fixture(&b);
}

static void dry_run_fills_nothing(void **state) {
    (void)state;
    fixture b;
    open_with(&b, &(tn_allocator_options){ .debug = true });
    tn_allocator_close(b.a);
    b.fake.device.dry_run = true;
    b.a = tn_allocator_open(&b.fake.device, &(tn_allocator_options){ .debug = true });
    assert_non_null(b.a);
    tn_block *block = take(&b, 1000);
    assert_int_equal(stats_of(&b).all.allocated.current, 2048); /* predicts what debug mode takes */
    assert_true(tn_allocator_check(b.a));
    give(&b, block);
    assert_int_equal(b.fake.n_fills + b.fake.n_finds, 0);
    close_fixture(&b);
}

static void failing_fills_are_clean(void **state) {
    (void)state;
    fixture b;
    open_with(&b, &(tn_allocator_options){ .debug = true });
    tn_block *block = take(&b, 1000);
    b.fake.fill_fails = true;
    assert_null(tn_allocator_take(b.a, 1000, 0, TN_CATEGORY_SAVED, &owner));
    assert_int_equal(tn_allocator_error_status(b.a), TN_ERR_DEVICE);
    assert_int_equal(stats_of(&b).all.allocated.current, 2048);
    b.fake.fill_fails = false;
    b.fake.find_fails = true;
    assert_false(tn_allocator_check(b.a));
    assert_error_has(&b, "could not be read");
    assert_false(tn_allocator_give(b.a, block));
    tn_allocator_release_cache(b.a);
    assert_int_equal(b.fake.n_segments, 0);
    close_fixture(&b);
}

/* ---- statistics, categories, history ---- */

static void retag_moves_bytes(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block = take(&b, 1000);
    assert_int_equal(tn_block_category(block), TN_CATEGORY_TEMPORARY);
    assert_string_equal(tn_block_owner(block)->op, "matmul");
    tn_allocator_retag(b.a, block, TN_CATEGORY_SAVED);
    tn_allocator_retag(b.a, block, TN_CATEGORY_SAVED);
    tn_allocator_retag(b.a, block, TN_CATEGORY_COUNT);
    tn_allocator_retag(b.a, NULL, TN_CATEGORY_SAVED);
    tn_memory_stats stats = stats_of(&b);
    assert_int_equal(tn_block_category(block), TN_CATEGORY_SAVED);
    assert_int_equal(stats.category[TN_CATEGORY_TEMPORARY].current, 0);
    assert_int_equal(stats.category[TN_CATEGORY_TEMPORARY].peak, 1024);
    assert_int_equal(stats.category[TN_CATEGORY_SAVED].current, 1024);
    assert_int_equal(stats.category[TN_CATEGORY_SAVED].total_in, 1024);
    assert_int_equal(stats.all.allocated.total_in, 1024);
    give(&b, block);
    assert_int_equal(stats_of(&b).category[TN_CATEGORY_SAVED].current, 0);
    close_fixture(&b);
}

static void peaks_and_totals_reset_apart(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *one = take(&b, 1000), *two = take(&b, 3000);
    give(&b, two);
    tn_memory_stats stats = stats_of(&b);
    assert_int_equal(stats.all.requested.current, 1000);
    assert_int_equal(stats.all.requested.peak, 4000);
    assert_int_equal(stats.all.requested.total_in, 4000);
    assert_int_equal(stats.all.requested.total_out, 3000);
    assert_int_equal(stats.all.allocated.peak, 4096);
    assert_int_equal(stats.category[TN_CATEGORY_TEMPORARY].peak, 4096);
    tn_allocator_reset_peak(b.a);
    stats = stats_of(&b);
    assert_int_equal(stats.all.requested.peak, 1000);
    assert_int_equal(stats.small_pool.allocated.peak, 1024);
    assert_int_equal(stats.all.requested.total_in, 4000);
    tn_allocator_reset_totals(b.a);
    stats = stats_of(&b);
    assert_int_equal(stats.all.requested.total_in, 0);
    assert_int_equal(stats.all.requested.total_out, 0);
    assert_int_equal(stats.all.requested.current, 1000);
    assert_int_equal(stats.all.requested.peak, 1000);
    give(&b, one);
    assert_int_equal(stats_of(&b).all.requested.total_out, 1000);
    close_fixture(&b);
}

typedef struct seen {
    tn_memory_event event[64];
    int n;
} seen;

static void see(void *user, const tn_memory_event *event) {
    seen *s = user;
    assert_in_range(s->n, 0, 63);
    s->event[s->n++] = *event;
}

static void history_tells_what_happened(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block = take(&b, 1000);
    uint64_t at = (uint64_t)(uintptr_t)tn_block_data(block);
    tn_allocator_retag(b.a, block, TN_CATEGORY_SAVED);
    assert_int_equal(tn_allocator_used_on(b.a, block, 1), TN_OK);
    struct timespec pause = { .tv_nsec = 3000000 };
    nanosleep(&pause, NULL);
    give(&b, block);
    fake_finish(&b.fake, 1);
    tn_allocator_release_cache(b.a);
    static const tn_event_kind kinds[] = { TN_EVENT_SEGMENT_ALLOC,  TN_EVENT_ALLOC,          TN_EVENT_RETAG,
                                           TN_EVENT_FREE_REQUESTED, TN_EVENT_FREE_COMPLETED, TN_EVENT_SEGMENT_FREE };
    seen s = { .n = 0 };
    assert_int_equal(tn_allocator_visit_history(b.a, see, &s), 0);
    assert_int_equal(s.n, 6);
    for (int i = 0; i < 6; i++) {
        const tn_memory_event *event = &s.event[i];
        bool segment = event->kind == TN_EVENT_SEGMENT_ALLOC || event->kind == TN_EVENT_SEGMENT_FREE;
        assert_int_equal(event->kind, kinds[i]);
        assert_int_equal(event->address, at);
        assert_int_equal(event->allocated_bytes, segment ? 2 * MIB : 1024);
        assert_int_equal(event->requested_bytes, segment ? 2 * MIB : 1000);
        assert_true(i == 0 || event->time_ns >= s.event[i - 1].time_ns);
        assert_string_equal(event->owner.op, kinds[i] == TN_EVENT_SEGMENT_FREE ? "" : "matmul");
        if (!segment) assert_int_equal(event->category, i == 1 ? TN_CATEGORY_TEMPORARY : TN_CATEGORY_SAVED);
    }
    uint64_t slept = s.event[3].time_ns - s.event[2].time_ns;
    TN_TEST_WANT(slept >= 2900000 && s.event[5].time_ns < 60000000000u, "3 ms of sleep look like %llu ns", (unsigned long long)slept);
    tn_allocator_clear_history(b.a);
    s.n = 0;
    assert_int_equal(tn_allocator_visit_history(b.a, see, &s), 0);
    assert_int_equal(s.n, 0);
    close_fixture(&b);
}

static void history_ring_wraps(void **state) {
    (void)state;
    for (int64_t capacity = 1; capacity <= 9; capacity += 4) {
        fixture b;
        open_with(&b, &(tn_allocator_options){ .history_events = capacity });
        for (size_t i = 1; i <= 20; i++) give(&b, take(&b, i)); /* 1 + 60 events */
        seen s = { .n = 0 };
        assert_int_equal(tn_allocator_visit_history(b.a, see, &s), 61 - capacity);
        assert_int_equal(s.n, capacity);
        for (int i = 0; i < s.n; i++) {
            int number = 60 - (int)capacity + i; /* of the events after the segment's */
            assert_int_equal(s.event[i].requested_bytes, number / 3 + 1);
            assert_int_equal(s.event[i].kind, number % 3);
        }
        close_fixture(&b);
    }
    fixture b;
    open_with(&b, &(tn_allocator_options){ .history_events = -1 });
    give(&b, take(&b, 1));
    seen s = { .n = 0 };
    assert_int_equal(tn_allocator_visit_history(b.a, see, &s), 0);
    assert_int_equal(s.n, 0);
    tn_allocator_clear_history(b.a);
    close_fixture(&b);
}

typedef struct walk {
    uint64_t end_of_block, end_of_segment, segment;
    int n[3];
} walk;

static void step(void *user, const tn_block_info *block) {
    walk *w = user;
    if (block->segment_address != w->segment) {
        assert_int_equal(w->end_of_block, w->end_of_segment);
        assert_true(block->segment_address > w->segment);
        assert_int_equal(block->address, block->segment_address);
        w->segment = block->segment_address;
        w->end_of_segment = block->segment_address + (uint64_t)block->segment_bytes;
    } else {
        assert_int_equal(block->address, w->end_of_block);
    }
    w->end_of_block = block->address + (uint64_t)block->allocated_bytes;
    w->n[block->state]++;
    bool inactive = block->state == TN_BLOCK_INACTIVE;
    assert_string_equal(block->owner.op, inactive ? "" : "matmul");
    assert_true(inactive ? block->requested_bytes == 0 : block->requested_bytes > 0);
}

static void blocks_tile_segments(void **state) {
    (void)state;
    fixture b;
    open_plain(&b);
    tn_block *block[12];
    for (int i = 0; i < 12; i++) block[i] = take_on(&b, i % 2 ? 1000 : 3 * MIB, i % 3);
    assert_int_equal(tn_allocator_used_on(b.a, block[4], 7), TN_OK);
    for (int i = 0; i < 12; i += 2) give(&b, block[i]);
    walk w = { 0 };
    tn_allocator_visit_blocks(b.a, step, &w);
    assert_int_equal(w.end_of_block, w.end_of_segment);
    assert_int_equal(w.n[TN_BLOCK_ACTIVE], 6);
    assert_int_equal(w.n[TN_BLOCK_PENDING_FREE], 1);
    assert_true(w.n[TN_BLOCK_INACTIVE] > 0);
    int id = 0;
    assert_int_equal(tn_allocator_pool_begin(b.a, &id), TN_OK);
    take(&b, 1);
    close_fixture(&b); /* with live and pending blocks and a private pool left */
}

/* ---- host memory ---- */

static void host_blocks_are_counted(void **state) {
    (void)state;
    int64_t before = tn_host_live_blocks();
    char *zeroed = tn_host_calloc(100), *text = tn_host_strdup("text"), *nothing = tn_host_alloc(0), *grown = tn_host_realloc(NULL, 4);
    assert_true(zeroed && text && nothing && grown);
    assert_int_equal(tn_host_live_blocks(), before + 4);
    for (int i = 0; i < 100; i++) assert_int_equal(zeroed[i], 0);
    assert_string_equal(text, "text");
    assert_null(tn_host_strdup(NULL));
    memcpy(grown, "abc", 4);
    grown = tn_host_realloc(grown, 100000);
    assert_string_equal(grown, "abc");
    tn_host_fail_after(1, false);
    assert_null(tn_host_realloc(grown, 200000));
    assert_string_equal(grown, "abc");
    assert_int_equal(tn_host_live_blocks(), before + 4);
    tn_host_free(zeroed);
    tn_host_free(text);
    tn_host_free(nothing);
    tn_host_free(grown);
    tn_host_free(NULL);
    assert_int_equal(tn_host_live_blocks(), before);
}

static void hook_fails_the_nth(void **state) {
    (void)state;
    for (int for_ever = 0; for_ever < 2; for_ever++) {
        tn_host_fail_after(3, for_ever);
        for (int i = 1; i <= 6; i++) {
            void *memory = tn_host_alloc(8);
            bool fails = i == 3 || (for_ever && i > 3);
            assert_int_equal(memory == NULL, fails);
            tn_host_free(memory);
        }
        tn_host_fail_after(0, for_ever);
        void *memory = tn_host_calloc(8);
        assert_non_null(memory);
        tn_host_free(memory);
    }
}

static void pool_items_are_apart(void **state) {
    (void)state;
    enum { ITEMS = 3000 };
    static unsigned char *item[ITEMS];
    static size_t bytes[ITEMS];
    int64_t before = tn_host_live_blocks();
    tn_host_pool pool = { 0 };
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < ITEMS; i++) {
            bytes[i] = (size_t)(i * 37) % 2000;
            item[i] = tn_host_pool_take(&pool, bytes[i]);
            assert_non_null(item[i]);
            memset(item[i], i & 255, bytes[i]);
        }
        for (int i = 0; i < ITEMS; i++) {
            for (size_t k = 0; k < bytes[i]; k++) assert_int_equal(item[i][k], i & 255);
            tn_host_pool_give(&pool, item[i], bytes[i]);
        }
    }
    tn_host_pool_give(&pool, NULL, 10);
    tn_host_pool_free(&pool);
    assert_int_equal(tn_host_live_blocks(), before);
    tn_host_fail_after(1, false);
    assert_null(tn_host_pool_take(&pool, 10));
    void *again = tn_host_pool_take(&pool, 10);
    assert_non_null(again);
    tn_host_pool_give(&pool, again, 10);
    tn_host_pool_free(&pool);
    assert_int_equal(tn_host_live_blocks(), before);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(sizes_are_rounded),
    cmocka_unit_test(large_rest_is_kept),
    cmocka_unit_test(impossible_sizes_fail_cleanly),
    cmocka_unit_test(best_fit_takes_smallest_then_lowest),
    cmocka_unit_test(neighbours_coalesce),
    cmocka_unit_test(cache_serves_again),
    cmocka_unit_test(misuse_is_refused),
    cmocka_unit_test(streams_do_not_share),
    cmocka_unit_test(free_waits_for_other_streams),
    cmocka_unit_test(release_cache_waits),
    cmocka_unit_test(device_failures_keep_memory_safe),
    cmocka_unit_test(private_pool_is_private),
    cmocka_unit_test(capture_asks_no_events),
    cmocka_unit_test(released_while_active),
    cmocka_unit_test(limit_counts_reserved_bytes),
    cmocka_unit_test(ladder_releases_then_fails),
    cmocka_unit_test(ladder_waits_for_pending),
    cmocka_unit_test(text_fits_its_buffer),
    cmocka_unit_test(host_failures_leave_a_clean_state),
    cmocka_unit_test(host_failure_says_so),
    cmocka_unit_test(blocks_are_poisoned),
    cmocka_unit_test(overwritten_zones_are_found),
    cmocka_unit_test(slack_of_large_blocks_is_guarded),
    cmocka_unit_test(poison_waits_for_other_streams),
    cmocka_unit_test(dry_run_fills_nothing),
    cmocka_unit_test(failing_fills_are_clean),
    cmocka_unit_test(retag_moves_bytes),
    cmocka_unit_test(peaks_and_totals_reset_apart),
    cmocka_unit_test(history_tells_what_happened),
    cmocka_unit_test(history_ring_wraps),
    cmocka_unit_test(blocks_tile_segments),
    cmocka_unit_test(host_blocks_are_counted),
    cmocka_unit_test(hook_fails_the_nth),
    cmocka_unit_test(pool_items_are_apart),
};

TN_TEST_MAIN("allocator", cases)
