/* Best fit among the inactive blocks of one arena and pool: bins found by bitmap, each bin a treap by (size, address). */
#ifndef TENON_ALLOCATOR_BINS_H
#define TENON_ALLOCATOR_BINS_H

#include "allocator_internal.h"

/* Small segments have 2 MiB, so every size has a bin of its own. */
static inline uint32_t tn_small_bin(size_t size) { return (uint32_t)(size / TN_BLOCK_STEP - 1); }

/* Large blocks have more than 1 MiB: 64 bins to each power of two from there. */
#define TN_LARGE_FIRST_BIT 20
#define TN_LARGE_SUB_BITS 6
static inline uint32_t tn_large_bin(size_t size) {
    uint32_t bit = 63u - (uint32_t)__builtin_clzll(size);
    uint32_t sub = (uint32_t)(size >> (bit - TN_LARGE_SUB_BITS)) & ((1u << TN_LARGE_SUB_BITS) - 1);
    return ((bit - TN_LARGE_FIRST_BIT) << TN_LARGE_SUB_BITS) | sub;
}

static inline uint32_t tn_bin_of(bool small, size_t size) { return small ? tn_small_bin(size) : tn_large_bin(size); }

static inline bool tn_block_less(const tn_block *a, const tn_block *b) {
    return a->size != b->size ? a->size < b->size : a->base < b->base;
}

static inline void tn_tree_insert(tn_block **at, tn_block *block) {
    while (*at && (*at)->priority >= block->priority) at = tn_block_less(block, *at) ? &(*at)->left : &(*at)->right;
    tn_block *rest = *at;
    *at = block;
    tn_block **less = &block->left, **greater = &block->right;
    while (rest) {
        if (tn_block_less(rest, block)) {
            *less = rest;
            less = &rest->right;
            rest = rest->right;
        } else {
            *greater = rest;
            greater = &rest->left;
            rest = rest->left;
        }
    }
    *less = *greater = NULL;
}

static inline void tn_tree_remove(tn_block **at, const tn_block *block) {
    while (*at != block) at = tn_block_less(block, *at) ? &(*at)->left : &(*at)->right;
    tn_block *less = block->left, *greater = block->right;
    while (less && greater) {
        if (less->priority >= greater->priority) {
            *at = less;
            at = &less->right;
            less = less->right;
        } else {
            *at = greater;
            at = &greater->left;
            greater = greater->left;
        }
    }
    *at = less ? less : greater;
}

/* The first block of at least `size`, or NULL. */
static inline tn_block *tn_tree_at_least(tn_block *root, size_t size) {
    tn_block *best = NULL;
    while (root) {
        if (root->size >= size) {
            best = root;
            root = root->left;
        } else {
            root = root->right;
        }
    }
    return best;
}

static inline void tn_bins_insert(tn_bins *bins, uint32_t bin, tn_block *block) {
    tn_tree_insert(&bins->root[bin], block);
    bins->filled[bin / 64] |= (uint64_t)1 << bin % 64;
    bins->filled_words |= (uint64_t)1 << bin / 64;
}

static inline void tn_bins_remove(tn_bins *bins, uint32_t bin, const tn_block *block) {
    tn_tree_remove(&bins->root[bin], block);
    if (bins->root[bin]) return;
    bins->filled[bin / 64] &= ~((uint64_t)1 << bin % 64);
    if (!bins->filled[bin / 64]) bins->filled_words &= ~((uint64_t)1 << bin / 64);
}

/* The first filled bin from `bin` on, or TN_BIN_COUNT. */
static inline uint32_t tn_bins_next(const tn_bins *bins, uint32_t bin) {
    if (bin >= TN_BIN_COUNT) return TN_BIN_COUNT;
    uint32_t word = bin / 64;
    uint64_t bits = bins->filled[word] & (~(uint64_t)0 << bin % 64);
    if (!bits) {
        uint64_t words = word == 63 ? 0 : bins->filled_words & (~(uint64_t)0 << (word + 1));
        if (!words) return TN_BIN_COUNT;
        word = (uint32_t)__builtin_ctzll(words);
        bits = bins->filled[word];
    }
    return word * 64 + (uint32_t)__builtin_ctzll(bits);
}

/* The smallest block of at least `size` (whose bin is `bin`), the lowest address among equals. */
static inline tn_block *tn_bins_find(const tn_bins *bins, uint32_t bin, size_t size) {
    for (bin = tn_bins_next(bins, bin); bin < TN_BIN_COUNT; bin = tn_bins_next(bins, bin + 1)) {
        tn_block *found = tn_tree_at_least(bins->root[bin], size);
        if (found) return found;
    }
    return NULL;
}

#endif
