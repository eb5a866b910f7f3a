/* What the allocator remembers, put together for people and for other programs.
 *
 *     tn_memory_write_page(cx, "memory.html");        a page to look at: the timeline by category, and what lived at any moment
 *     tn_memory_write_snapshot(cx, "memory.json");    for PyTorch's memory viewer (pytorch.org/memory_viz)
 *     tn_memory_write_trace(cx, "memory.trace.json"); for Perfetto and chrome://tracing: a counter for each category
 *     tn_memory_write_csv(cx, "memory.csv");          the events as they are
 *
 * All show what the ring of events still holds (tn_options.history_events); with the history off, what lives now. Files are written aside
 * and renamed. */
#ifndef TENON_MEMORY_EXPORT_H
#define TENON_MEMORY_EXPORT_H

#include "memory.h"

#ifdef __cplusplus
extern "C" {
#endif

TN_API bool tn_memory_write_page(tn_context *cx, const char *path);
TN_API bool tn_memory_write_snapshot(tn_context *cx, const char *path);
TN_API bool tn_memory_write_trace(tn_context *cx, const char *path);
TN_API bool tn_memory_write_csv(tn_context *cx, const char *path);

/* A stretch of a block's life in one category: saving a tensor for backward, or letting it go again, ends one and begins another. */
typedef struct tn_memory_life {
    uint64_t address;
    int64_t allocated_bytes, requested_bytes;
    uint64_t begin_ns, end_ns;      /* since the context was opened; end_ns is UINT64_MAX for what lives on */
    int64_t begin_event, end_event; /* in the order of events: -1 where it began before, the number of events where it lives on */
    tn_category category;
    tn_owner owner;
    const tn_tensor_form *form; /* the tensor it was made for; NULL: none */
    bool first;                 /* is it the block's first stretch? */
} tn_memory_life;

typedef struct tn_memory_timeline {
    tn_memory_life *lives; /* in the order of their beginning */
    int64_t n_lives;
    int64_t n_events;   /* that are told of */
    int64_t n_lost;     /* events that the ring forgot before them */
    int64_t peak_bytes; /* the most that was allocated within the events */
    int64_t peak_event; /* and the event behind which it was; -1: before the first */
    uint64_t peak_ns, end_ns;
} tn_memory_timeline;

/* NULL with an error where the host has no memory. Names in it live as long as the context. */
TN_API tn_memory_timeline *tn_memory_timeline_new(tn_context *cx);
TN_API void tn_memory_timeline_free(tn_memory_timeline *timeline);
/* Did it live behind that event? */
static inline bool tn_memory_lives_at(const tn_memory_life *life, int64_t event) {
    return life->begin_event <= event && event < life->end_event;
}

#ifdef __cplusplus
}
#endif
#endif
