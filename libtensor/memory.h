/* Where the bytes are: statistics, categories, owners and history of a context's caching allocator. */
#ifndef TENON_MEMORY_H
#define TENON_MEMORY_H

#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_category {
    TN_CATEGORY_TEMPORARY,
    TN_CATEGORY_PARAMETER,
    TN_CATEGORY_GRADIENT,
    TN_CATEGORY_OPTIMIZER,
    TN_CATEGORY_SAVED, /* saved for backward */
    TN_CATEGORY_WORKSPACE,
    TN_CATEGORY_IO,
    TN_CATEGORY_COUNT
} tn_category;
TN_API const char *tn_category_name(tn_category category);

typedef enum tn_pass { TN_PASS_NONE, TN_PASS_FORWARD, TN_PASS_BACKWARD, TN_PASS_OPTIMIZER, TN_PASS_COUNT } tn_pass;
TN_API const char *tn_pass_name(tn_pass pass);

/* Who asked for an allocation. Strings live as long as the context. */
typedef struct tn_owner {
    const char *op;    /* "matmul", "tn_randn", ... */
    const char *label; /* "layer.3/attn" or "" */
    tn_pass pass;
} tn_owner;

/* What a block was first made for. */
typedef struct tn_tensor_form {
    tn_dtype dtype;
    tn_shape shape;
} tn_tensor_form;
/* As text, "f32 [32,64]"; "" for NULL. Returns buffer. */
TN_API const char *tn_tensor_form_text(const tn_tensor_form *form, char *buffer, size_t n_bytes);

typedef struct tn_stat {
    int64_t current, peak, total_in, total_out; /* total_in - total_out = current, until totals are reset */
} tn_stat;

/* Bytes and counts. "requested" is what callers asked for, "allocated" after rounding, "active" also blocks whose
 * free waits for another stream, "inactive_split" free parts of segments in use, "reserved" whole segments. */
typedef struct tn_pool_stats {
    tn_stat requested, allocated, active, inactive_split, reserved;        /* bytes */
    tn_stat n_allocations, n_active_blocks, n_inactive_splits, n_segments; /* counts */
} tn_pool_stats;

typedef struct tn_memory_stats {
    tn_pool_stats all, small_pool, large_pool;
    tn_stat category[TN_CATEGORY_COUNT]; /* allocated bytes of each category */
    tn_stat foreign;                     /* bytes of other libraries' memory (see dlpack.h): not ours, so in none of the others */
    int64_t n_retries;                   /* allocations that had to release the cache first */
    int64_t n_out_of_memory;
    size_t limit; /* 0: none */
} tn_memory_stats;

TN_API bool tn_memory_stats_get(const tn_context *cx, tn_memory_stats *stats);
TN_API void tn_memory_reset_peak(tn_context *cx);   /* peak := current */
TN_API void tn_memory_reset_totals(tn_context *cx); /* totals and counters := 0 */
TN_API void tn_memory_release_cache(tn_context *cx);
TN_API void tn_memory_set_limit(tn_context *cx, size_t bytes); /* 0: none */
/* Checks the red zones of every live block (debug mode); false and an error naming the owner if one was overwritten. */
TN_API bool tn_memory_check(tn_context *cx);

typedef enum tn_block_state { TN_BLOCK_ACTIVE, TN_BLOCK_PENDING_FREE, TN_BLOCK_INACTIVE } tn_block_state;

typedef struct tn_block_info {
    uint64_t address, segment_address;
    int64_t allocated_bytes, requested_bytes, segment_bytes;
    tn_block_state state;
    tn_category category;
    tn_owner owner;
    const tn_tensor_form *form; /* as long as the context; NULL: no tensor's, or the history is off */
    int stream;
    bool small_pool;
} tn_block_info;

/* Calls visit for every block, segment by segment in address order; blocks tile their segment. */
TN_API void tn_memory_visit_blocks(const tn_context *cx, void (*visit)(void *user, const tn_block_info *block), void *user);

typedef enum tn_event_kind {
    TN_EVENT_ALLOC,
    TN_EVENT_FREE_REQUESTED,
    TN_EVENT_FREE_COMPLETED,
    TN_EVENT_SEGMENT_ALLOC,
    TN_EVENT_SEGMENT_FREE,
    TN_EVENT_RETAG, /* the block changed its category, e.g. temporary -> saved */
    TN_EVENT_OUT_OF_MEMORY
} tn_event_kind;

typedef struct tn_memory_event {
    uint64_t time_ns; /* since the context was opened */
    uint64_t address;
    int64_t allocated_bytes, requested_bytes;
    tn_event_kind kind;
    tn_category category;
    tn_owner owner;
    const tn_tensor_form *form; /* as long as the context; NULL: of no tensor */
    int stream;
} tn_memory_event;

/* Events still in the ring, oldest first; returns how many were lost before them. */
TN_API int64_t tn_memory_visit_history(const tn_context *cx, void (*visit)(void *user, const tn_memory_event *event), void *user);
TN_API void tn_memory_clear_history(tn_context *cx);

/* The category new tensors get from here on (TN_CATEGORY_TEMPORARY at first); returns the one before. */
TN_API tn_category tn_memory_set_category(tn_context *cx, tn_category category);
/* Changes the category of t's storage. */
TN_API void tn_memory_retag(tn_tensor *t, tn_category category);
TN_API tn_category tn_memory_category_of(const tn_tensor *t);

#ifdef __cplusplus
}
#endif
#endif
