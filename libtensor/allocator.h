/* The caching allocator: segments from the device, cut into blocks, kept for reuse.
 *
 * It handles addresses only and never touches device memory itself (debug fills go through the device), so the
 * same code serves the CPU, CUDA and the dry run. Rules, after PyTorch's CUDACachingAllocator:
 * - sizes are rounded up to 512 B; requested and allocated bytes are counted apart;
 * - requests <= 1 MiB come from 2 MiB segments of the small pool, larger ones from the large pool: 20 MiB segments
 *   below 10 MiB, else a segment of the size rounded up to 2 MiB;
 * - best fit (lowest address among equals), split when the rest is worth keeping (small: >= 512 B, large: > 1 MiB),
 *   neighbours coalesce on free;
 * - when the device or the limit refuses: release wholly free cached segments, retry, at last with a segment just large enough,
 *   then fail with a report;
 * - free lists are kept per (private pool, stream); a block used on other streams is not reused until their events are done. */
#ifndef TENON_ALLOCATOR_H
#define TENON_ALLOCATOR_H

#include "device.h"
#include "memory.h"

typedef struct tn_allocator tn_allocator;
typedef struct tn_block tn_block;

typedef struct tn_allocator_options {
    size_t limit;           /* reserved bytes; 0: none */
    int64_t history_events; /* ring size; <= 0: off */
    bool debug;             /* 512 B red zones before and after, NaN poison (0xFF) on allocation and on free */
} tn_allocator_options;

/* NULL when the host has no memory. The device must outlive the allocator. */
tn_allocator *tn_allocator_open(tn_device *device, const tn_allocator_options *options);
void tn_allocator_close(tn_allocator *allocator); /* frees every segment, live blocks included */

/* `bytes` may be 0: such a block occupies 512 B like any small one. On failure returns NULL and leaves a report in
 * tn_allocator_error. The owner's strings must live as long as the allocator. */
tn_block *tn_allocator_take(tn_allocator *allocator, size_t bytes, tn_stream stream, tn_category category, const tn_owner *owner);
/* Returns false if debug mode found a red zone overwritten; the block is freed all the same and tn_allocator_error names its owner. */
bool tn_allocator_give(tn_allocator *allocator, tn_block *block);

/* The block was (also) used on `stream`; must be called before the free. Returns TN_ERR_HOST_MEMORY if that can't be noted. */
tn_status tn_allocator_used_on(tn_allocator *allocator, tn_block *block, tn_stream stream);

/* Private pools, for graph capture: between begin and end every allocation comes from the pool `id` (> 0, made by begin when it is 0).
 * Its segments are not shared nor returned until the pool is released. */
tn_status tn_allocator_pool_begin(tn_allocator *allocator, int *id);
void tn_allocator_pool_end(tn_allocator *allocator);
void tn_allocator_pool_release(tn_allocator *allocator, int id); /* its cached segments become ordinary */

/* A block over memory that is not the allocator's: counted as foreign and nothing else. Giving it back tells `release`, if one was named,
 * once the device has finished with it. */
tn_block *tn_allocator_adopt(tn_allocator *allocator, void *data, size_t bytes, tn_category category, const tn_owner *owner);
void tn_block_release_to(tn_block *block, void (*release)(void *user), void *user);
void tn_allocator_part(tn_allocator *allocator, tn_block *block); /* what tn_allocator_give does with such a block */

void *tn_block_data(const tn_block *block);
size_t tn_block_requested(const tn_block *block);
tn_category tn_block_category(const tn_block *block);
const tn_owner *tn_block_owner(const tn_block *block);
void tn_allocator_retag(tn_allocator *allocator, tn_block *block, tn_category category);

const char *tn_allocator_error(const tn_allocator *allocator);      /* text of the last failure */
tn_status tn_allocator_error_status(const tn_allocator *allocator); /* its kind */
void tn_allocator_stats(const tn_allocator *allocator, tn_memory_stats *stats);
void tn_allocator_reset_peak(tn_allocator *allocator);
void tn_allocator_reset_totals(tn_allocator *allocator);
void tn_allocator_release_cache(tn_allocator *allocator); /* frees every wholly free segment, waiting for pending events */
void tn_allocator_set_limit(tn_allocator *allocator, size_t bytes);
bool tn_allocator_check(tn_allocator *allocator); /* red zones of all live blocks */
void tn_allocator_visit_blocks(const tn_allocator *allocator, void (*visit)(void *user, const tn_block_info *block), void *user);
int64_t tn_allocator_visit_history(const tn_allocator *allocator, void (*visit)(void *user, const tn_memory_event *event), void *user);
void tn_allocator_clear_history(tn_allocator *allocator);

#endif
