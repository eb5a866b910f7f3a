#include "host_memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define POOL_RECYCLES 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POOL_RECYCLES 0
#endif
#endif
#ifndef POOL_RECYCLES
#define POOL_RECYCLES 1
#endif

#define POOL_CHUNK_BYTES ((size_t)64 << 10)

static _Atomic int64_t live_blocks;
static _Atomic int64_t allocations_until_failure; /* 0: the hook is off */
static atomic_bool failing_for_ever;

static bool hook_says_fail(void) {
    int64_t left = atomic_load_explicit(&allocations_until_failure, memory_order_relaxed);
    int64_t next;
    do {
        if (left == 0) return false;
        next = left > 1 ? left - 1 : (int64_t)atomic_load(&failing_for_ever);
    } while (!atomic_compare_exchange_weak(&allocations_until_failure, &left, next));
    return left == 1;
}

static void *counted(void *memory) {
    if (memory) atomic_fetch_add_explicit(&live_blocks, 1, memory_order_relaxed);
    return memory;
}

void *tn_host_alloc(size_t bytes) { return hook_says_fail() ? NULL : counted(malloc(bytes ? bytes : 1)); }

void *tn_host_calloc(size_t bytes) { return hook_says_fail() ? NULL : counted(calloc(1, bytes ? bytes : 1)); }

void *tn_host_realloc(void *memory, size_t bytes) {
    if (!memory) return tn_host_alloc(bytes);
    return hook_says_fail() ? NULL : realloc(memory, bytes ? bytes : 1);
}

void tn_host_free(void *memory) {
    if (!memory) return;
    atomic_fetch_sub_explicit(&live_blocks, 1, memory_order_relaxed);
    free(memory);
}

char *tn_host_strdup(const char *text) {
    if (!text) return NULL;
    size_t bytes = strlen(text) + 1;
    char *copy = tn_host_alloc(bytes);
    return copy ? memcpy(copy, text, bytes) : NULL;
}

void tn_host_fail_after(int64_t n, bool for_ever) {
    atomic_store(&failing_for_ever, for_ever);
    atomic_store(&allocations_until_failure, n > 0 ? n : 0);
}

int64_t tn_host_live_blocks(void) { return atomic_load(&live_blocks); }

static size_t class_of(size_t bytes) { return bytes ? (bytes - 1) / TN_HOST_POOL_STEP : 0; }

/* Cuts a new chunk into items of one class. Items start on a cache line, lowest address first in the list. */
static bool pool_grow(tn_host_pool *pool, size_t class) {
    struct tn_host_pool_chunk *chunk = tn_host_alloc(POOL_CHUNK_BYTES);
    if (!chunk) return false;
    chunk->next = pool->chunks;
    pool->chunks = chunk;
    size_t item_bytes = (class + 1) * TN_HOST_POOL_STEP;
    uintptr_t end = (uintptr_t)chunk + POOL_CHUNK_BYTES;
    uintptr_t at = ((uintptr_t)(chunk + 1) + TN_HOST_POOL_STEP - 1) & ~(uintptr_t)(TN_HOST_POOL_STEP - 1);
    struct tn_host_pool_item **link = &pool->free_list[class];
    for (; at + item_bytes <= end; at += item_bytes) {
        struct tn_host_pool_item *item = (struct tn_host_pool_item *)at;
        *link = item;
        link = &item->next;
    }
    *link = NULL;
    return true;
}

void *tn_host_pool_take(tn_host_pool *pool, size_t bytes) {
    size_t class = class_of(bytes);
    if (!POOL_RECYCLES || class >= TN_HOST_POOL_CLASSES) return tn_host_alloc(bytes);
    if (!pool->free_list[class] && !pool_grow(pool, class)) return NULL;
    struct tn_host_pool_item *item = pool->free_list[class];
    pool->free_list[class] = item->next;
    return item;
}

void tn_host_pool_give(tn_host_pool *pool, void *memory, size_t bytes) {
    size_t class = class_of(bytes);
    if (!POOL_RECYCLES || class >= TN_HOST_POOL_CLASSES) {
        tn_host_free(memory);
        return;
    }
    struct tn_host_pool_item *item = memory;
    if (!item) return;
    item->next = pool->free_list[class];
    pool->free_list[class] = item;
}

void tn_host_pool_free(tn_host_pool *pool) {
    while (pool->chunks) {
        struct tn_host_pool_chunk *chunk = pool->chunks;
        pool->chunks = chunk->next;
        tn_host_free(chunk);
    }
    memset(pool, 0, sizeof *pool);
}
