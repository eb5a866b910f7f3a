/* What a cached allocation and its free cost: nanoseconds per pair, best of several rounds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libtensor/allocator.h"

#define ROUNDS 7
#define PAIRS 1000000
#define MIXED_LIVE 256

/* A device whose memory is never touched: what is timed is the allocator alone. */
static uint64_t next_address = (uint64_t)1 << 32;

static tn_status bench_segment_alloc(tn_device *device, size_t bytes, void **memory) {
    (void)device;
    *memory = (void *)(uintptr_t)next_address;
    next_address += bytes;
    return TN_OK;
}

static void bench_segment_free(tn_device *device, void *memory, size_t bytes) {
    (void)device;
    (void)memory;
    (void)bytes;
}

static const tn_device_interface bench_interface = { .segment_alloc = bench_segment_alloc, .segment_free = bench_segment_free };
static const tn_owner bench_owner = { "bench", "layer.0/attn", TN_PASS_FORWARD };

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static bool same_size(tn_allocator *allocator, size_t bytes) {
    for (int i = 0; i < PAIRS; i++) {
        tn_block *block = tn_allocator_take(allocator, bytes, 0, TN_CATEGORY_TEMPORARY, &bench_owner);
        if (!block) return false;
        tn_allocator_give(allocator, block);
    }
    return true;
}

static bool small_once(tn_allocator *allocator) { return same_size(allocator, 4000); }
static bool large_once(tn_allocator *allocator) { return same_size(allocator, (size_t)3 << 20); }

/* Sizes from 1 B to 16 MiB, evenly in their logarithm, replacing a random one of the live blocks. */
static bool mix(tn_allocator *allocator, unsigned bits) {
    tn_block *live[MIXED_LIVE] = { 0 };
    uint64_t random = 88172645463325252u;
    bool fine = true;
    for (int i = 0; i < PAIRS && fine; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        size_t bytes = ((size_t)1 << (random >> 8) % bits) + ((random >> 16) & 511);
        tn_block **slot = &live[random % MIXED_LIVE];
        tn_allocator_give(allocator, *slot);
        *slot = tn_allocator_take(allocator, bytes, 0, (tn_category)(random >> 40) % TN_CATEGORY_COUNT, &bench_owner);
        fine = *slot != NULL;
    }
    for (int i = 0; i < MIXED_LIVE; i++) tn_allocator_give(allocator, live[i]);
    return fine;
}

static bool mix_small(tn_allocator *allocator) { return mix(allocator, 20); }
static bool mix_all(tn_allocator *allocator) { return mix(allocator, 25); }

static double best_of(tn_allocator *allocator, bool (*run)(tn_allocator *allocator)) {
    double best = 1e30;
    for (int round = 0; round <= ROUNDS; round++) {
        double start = now_ns();
        if (!run(allocator)) return -1;
        double ns = (now_ns() - start) / PAIRS;
        if (round > 0 && ns < best) best = ns; /* the first round fills the cache */
    }
    return best;
}

int main(void) {
    static const struct {
        const char *name;
        bool (*run)(tn_allocator *allocator);
    } cases[] = { { "same size, 4000 B", small_once },
                  { "same size, 3 MiB", large_once },
                  { "mix 1 B .. 512 KiB, 256 live", mix_small },
                  { "mix 1 B .. 16 MiB, 256 live", mix_all } };
    static const int64_t history[] = { 0, 65536 };
    tn_device device = { .interface = &bench_interface, .name = "bench" };
    printf("%-32s %12s %12s\n", "ns per cached alloc + free", "history off", "history on");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        printf("%-32s", cases[i].name);
        for (int h = 0; h < 2; h++) {
            tn_allocator *allocator = tn_allocator_open(&device, &(tn_allocator_options){ .history_events = history[h] });
            double ns = allocator ? best_of(allocator, cases[i].run) : -1;
            tn_allocator_close(allocator);
            if (ns < 0) {
                fprintf(stderr, "bench_allocator: out of memory\n");
                return 1;
            }
            printf(" %12.1f", ns);
        }
        printf("\n");
    }
    return 0;
}
