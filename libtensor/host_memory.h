/* The library's own bookkeeping memory: every malloc goes through here, so that tests can make the n-th one fail. */
#ifndef TENON_HOST_MEMORY_H
#define TENON_HOST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

void *tn_host_alloc(size_t bytes);                 /* NULL on failure; contents undefined */
void *tn_host_calloc(size_t bytes);                /* zeroed */
void *tn_host_realloc(void *memory, size_t bytes); /* memory stays valid on failure */
void tn_host_free(void *memory);
char *tn_host_strdup(const char *text);

/* Test hook: the n-th allocation from now (1 = next) fails, and all after it too if `for_ever`. n = 0: off. */
void tn_host_fail_after(int64_t n, bool for_ever);
/* Blocks handed out and not yet freed, process-wide. */
int64_t tn_host_live_blocks(void);

/* Small objects of few sizes, recycled within one context: tensors, storages, tape nodes.
 * Under AddressSanitizer nothing is recycled, so that use after free is seen. */
#define TN_HOST_POOL_STEP 64
#define TN_HOST_POOL_CLASSES 24
typedef struct tn_host_pool {
    struct tn_host_pool_item {
        struct tn_host_pool_item *next;
    } * free_list[TN_HOST_POOL_CLASSES];
    struct tn_host_pool_chunk {
        struct tn_host_pool_chunk *next;
    } * chunks;
} tn_host_pool;
void *tn_host_pool_take(tn_host_pool *pool, size_t bytes); /* contents undefined */
void tn_host_pool_give(tn_host_pool *pool, void *item, size_t bytes);
void tn_host_pool_free(tn_host_pool *pool);

#endif
