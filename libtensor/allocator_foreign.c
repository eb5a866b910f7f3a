#include "allocator_internal.h"

/* Memory of other libraries, as blocks that lie in no segment: counted apart from everything that is the allocator's own. */

typedef struct tn_foreign_block {
    tn_block block;              /* before and after: the other foreign blocks */
    void (*release)(void *user); /* NULL: nobody is told */
    void *user;
} tn_foreign_block;

tn_block *tn_allocator_adopt(tn_allocator *allocator, void *data, size_t bytes, tn_category category, const tn_owner *owner) {
    tn_foreign_block *foreign = tn_host_calloc(sizeof *foreign);
    if (!foreign) return tn_allocator_fail_host_memory(allocator, bytes, owner);
    tn_block *block = &foreign->block;
    block->base = data;
    block->size = block->requested = bytes;
    block->state = TN_BLOCK_ACTIVE;
    block->category = (uint8_t)category;
    block->owner = *owner;
    block->after = allocator->foreign;
    if (block->after) block->after->before = block;
    allocator->foreign = block;
    tn_stat_add(&allocator->stats.foreign, (int64_t)bytes);
    return block;
}

void tn_block_release_to(tn_block *block, void (*release)(void *user), void *user) {
    tn_foreign_block *foreign = (tn_foreign_block *)block;
    foreign->release = release;
    foreign->user = user;
}

void tn_allocator_part(tn_allocator *allocator, tn_block *block) {
    tn_foreign_block *foreign = (tn_foreign_block *)block;
    if (block->before) block->before->after = block->after;
    else allocator->foreign = block->after;
    if (block->after) block->after->before = block->before;
    tn_stat_subtract(&allocator->stats.foreign, (int64_t)block->size);
    /* Whoever gets the memory back, if it is any, may write to it at once. */
    if (block->size) allocator->device->interface->synchronize(allocator->device);
    if (foreign->release) foreign->release(foreign->user);
    tn_host_free(foreign);
}
