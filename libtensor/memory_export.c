/* The allocator's memory in the formats of other programs: PyTorch's memory viewer, Chrome's trace viewer and Perfetto, and CSV. */
#include "memory_export.h"

#include <inttypes.h>
#include <string.h>

#include "context_internal.h"
#include "host_memory.h"
#include "text_writer.h"

/* The viewer takes numbers beyond 2^53 for their neighbours. Addresses keep their order and distances. */
static uint64_t shown_address(uint64_t address) { return address & ((UINT64_C(1) << 52) - 1); }

/* A dtype and shape as text. */
typedef struct form_buffer {
    char text[192];
} form_buffer;

/* ---- PyTorch's snapshot ---- */

static const char *form_text(const tn_tensor_form *form, form_buffer *buffer) {
    return tn_tensor_form_text(form, buffer->text, sizeof buffer->text);
}

static void write_frame(tn_text_writer *w, const char *between, const char *filename, const char *name) {
    tn_text(w, "%s{\"filename\":", between);
    tn_text_json(w, filename);
    tn_text(w, ",\"line\":0,\"name\":");
    tn_text_json(w, name);
    tn_text(w, "}");
}

/* An owner as a stack of calls, innermost first: the tensor, the op that made it, the labels around it. */
static void write_frames(tn_text_writer *w, const tn_owner *owner, const tn_tensor_form *form) {
    form_buffer text;
    tn_text(w, "\"frames\":[");
    if (owner->op && *owner->op) {
        if (form) write_frame(w, "", "tensor", form_text(form, &text));
        write_frame(w, form ? "," : "", tn_pass_name(owner->pass), owner->op);
        if (owner->label && *owner->label) write_frame(w, ",", "label", owner->label);
    }
    tn_text(w, "]");
}

/* What a segment's blocks hold together. */
typedef struct segment_totals {
    uint64_t address;
    int64_t allocated, active, requested;
} segment_totals;

static void count_block(void *user, const tn_block_info *block) {
    segment_totals *totals = user;
    if (block->segment_address != totals->address || block->state == TN_BLOCK_INACTIVE) return;
    if (block->state == TN_BLOCK_ACTIVE) totals->allocated += block->allocated_bytes;
    totals->active += block->allocated_bytes;
    totals->requested += block->requested_bytes;
}

static void write_block(tn_text_writer *w, const tn_block_info *block) {
    static const char *const states[] = { "active_allocated", "active_pending_free", "inactive" };
    tn_text(w, "{\"address\":%" PRIu64 ",\"size\":%" PRId64 ",\"requested_size\":%" PRId64 ",\"state\":\"%s\",",
            shown_address(block->address), block->allocated_bytes, block->requested_bytes, states[block->state]);
    write_frames(w, &block->owner, block->form);
    tn_text(w, "}");
}

typedef struct snapshot_blocks {
    tn_text_writer *w;
    tn_context *cx;
    uint64_t segment;
    bool any;
} snapshot_blocks;

static void begin_segment(snapshot_blocks *s, const tn_block_info *block) {
    segment_totals totals = { .address = block->segment_address };
    tn_memory_visit_blocks(s->cx, count_block, &totals);
    if (s->any) tn_text(s->w, "]},\n");
    tn_text(s->w,
            "{\"device\":0,\"address\":%" PRIu64 ",\"total_size\":%" PRId64 ",\"allocated_size\":%" PRId64 ",\"active_size\":%" PRId64
            ",\"requested_size\":%" PRId64 ",\"stream\":%d,\"segment_type\":\"%s\",\"segment_pool_id\":[0,0],\"is_expandable\":false,"
            "\"frames\":[],\"blocks\":[\n",
            shown_address(block->segment_address), block->segment_bytes, totals.allocated, totals.active, totals.requested, block->stream,
            block->small_pool ? "small" : "large");
}

static void snapshot_block(void *user, const tn_block_info *block) {
    snapshot_blocks *s = user;
    bool begins = !s->any || block->segment_address != s->segment;
    if (begins) begin_segment(s, block);
    else tn_text(s->w, ",\n");
    s->segment = block->segment_address;
    s->any = true;
    write_block(s->w, block);
}

typedef struct snapshot_events {
    tn_text_writer *w;
    const uint8_t *category; /* of each event */
    uint64_t time_ns;
    int64_t at, n;
} snapshot_events;

/* The viewer colours a block by the category it was allocated in, but tensors become what they are later: saved, or a gradient. So each
 * event gets the first category of its block's life that says more than temporary. */
typedef struct block_life {
    int64_t allocated_by; /* event; -1: before the first */
    uint8_t category;
} block_life;

static void find_categories(const tn_memory_timeline *t, uint8_t *category, block_life *until) {
    for (int64_t i = 0; i < t->n_lives; i++) {
        const tn_memory_life *life = &t->lives[i];
        block_life whole = { life->begin_event, (uint8_t)life->category };
        if (!life->first) {
            whole = until[life->begin_event];
            if (whole.category == TN_CATEGORY_TEMPORARY) whole.category = (uint8_t)life->category;
        }
        if (whole.allocated_by >= 0) category[whole.allocated_by] = whole.category;
        if (life->end_event >= t->n_events) continue;
        until[life->end_event] = whole;
        category[life->end_event] = whole.category;
    }
}

/* One for each event; NULL without host memory. */
static uint8_t *categories_of_events(tn_context *cx) {
    tn_memory_timeline *t = tn_memory_timeline_new(cx);
    if (!t) return NULL;
    uint8_t *category = tn_host_calloc((size_t)t->n_events + 1);
    block_life *until = tn_host_calloc(((size_t)t->n_events + 1) * sizeof *until);
    if (category && until) find_categories(t, category, until);
    else tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_memory_write_snapshot", "the host has no memory left");
    bool fine = category && until;
    tn_host_free(until);
    tn_memory_timeline_free(t);
    if (fine) return category;
    tn_host_free(category);
    return NULL;
}

/* What the viewer has no word for, a change of category, is left out. */
static const char *action_of(tn_event_kind kind) {
    switch (kind) {
    case TN_EVENT_ALLOC: return "alloc";
    case TN_EVENT_FREE_REQUESTED: return "free_requested";
    case TN_EVENT_FREE_COMPLETED: return "free_completed";
    case TN_EVENT_SEGMENT_ALLOC: return "segment_alloc";
    case TN_EVENT_SEGMENT_FREE: return "segment_free";
    case TN_EVENT_OUT_OF_MEMORY: return "oom";
    default: return NULL;
    }
}

static void snapshot_event(void *user, const tn_memory_event *event) {
    snapshot_events *s = user;
    const char *action = action_of(event->kind);
    tn_category category = (tn_category)s->category[s->at++];
    s->time_ns = event->time_ns;
    if (!action) return;
    tn_text(s->w, "%s{\"action\":\"%s\",\"%s\":%" PRIu64 ",\"size\":%" PRId64 ",\"stream\":%d,\"time_us\":%" PRIu64 ",\"category\":",
            s->n++ ? ",\n" : "", action, event->kind == TN_EVENT_OUT_OF_MEMORY ? "device_free" : "addr", shown_address(event->address),
            event->allocated_bytes, event->stream, event->time_ns / 1000);
    tn_text_json(s->w, tn_category_name(category));
    tn_text(s->w, ",");
    write_frames(s->w, &event->owner, event->form);
    tn_text(s->w, "}");
}

/* The viewer wants at least one event of the category "unknown": the last says that the snapshot was taken. */
static bool write_snapshot(tn_context *cx, tn_text_writer *w) {
    uint8_t *category = categories_of_events(cx);
    if (!category) return false;
    snapshot_blocks blocks = { .w = w, .cx = cx };
    snapshot_events events = { .w = w, .category = category };
    tn_text(w, "{\"segments\":[\n");
    tn_memory_visit_blocks(cx, snapshot_block, &blocks);
    tn_text(w, "%s],\n\"device_traces\":[[\n", blocks.any ? "]}\n" : "");
    tn_memory_visit_history(cx, snapshot_event, &events);
    tn_text(w,
            "%s{\"action\":\"snapshot\",\"addr\":0,\"size\":0,\"stream\":0,\"time_us\":%" PRIu64
            ",\"category\":\"unknown\",\"frames\":[]}\n]],\n",
            events.n ? ",\n" : "", events.time_ns / 1000);
    tn_text(w, "\"allocator_settings\":{\"PYTORCH_CUDA_ALLOC_CONF\":\"\"},\"external_annotations\":[]}\n");
    tn_host_free(category);
    return true;
}

bool tn_memory_write_snapshot(tn_context *cx, const char *path) {
    tn_text_writer *w = tn_text_open(cx, "tn_memory_write_snapshot", path);
    if (!w) return false;
    if (w->well && !write_snapshot(cx, w)) w->well = false;
    return tn_text_close(w);
}

/* ---- Chrome's trace ---- */

typedef struct change {
    int64_t bytes[TN_CATEGORY_COUNT];
    uint64_t time_ns;
    bool any;
} change;

static void write_counter(tn_text_writer *w, uint64_t time_ns, const int64_t sums[TN_CATEGORY_COUNT]) {
    tn_text(w, ",\n{\"ph\":\"C\",\"pid\":1,\"tid\":0,\"name\":\"allocated bytes\",\"ts\":%.3f,\"args\":{", (double)time_ns / 1000);
    for (int i = 0; i < TN_CATEGORY_COUNT; i++) tn_text(w, "%s\"%s\":%" PRId64, i ? "," : "", tn_category_name((tn_category)i), sums[i]);
    tn_text(w, "}}");
}

/* A slice for every life, on the track of its category: nested or not, async slices may overlap. */
static void write_life(tn_text_writer *w, const tn_memory_life *life, int64_t id, uint64_t end_ns) {
    const char *category = tn_category_name(life->category);
    form_buffer form;
    double ts = (double)life->begin_ns / 1000, end = (double)(life->end_ns == UINT64_MAX ? end_ns : life->end_ns) / 1000;
    for (int end_of = 0; end_of < 2; end_of++) {
        tn_text(w, ",\n{\"ph\":\"%c\",\"pid\":1,\"tid\":0,\"cat\":\"%s\",\"id\":%" PRId64 ",\"ts\":%.3f,\"name\":", end_of ? 'e' : 'b',
                category, id, end_of ? end : ts);
        tn_text_json(w, life->owner.op && *life->owner.op ? life->owner.op : "(no op)");
        if (!end_of) {
            tn_text(w, ",\"args\":{\"bytes\":%" PRId64 ",\"requested\":%" PRId64 ",\"pass\":\"%s\",\"label\":", life->allocated_bytes,
                    life->requested_bytes, tn_pass_name(life->owner.pass));
            tn_text_json(w, life->owner.label);
            tn_text(w, ",\"tensor\":");
            tn_text_json(w, form_text(life->form, &form));
            tn_text(w, "}");
        }
        tn_text(w, "}");
    }
}

static bool write_trace(tn_text_writer *w, tn_context *cx, const tn_memory_timeline *t) {
    change *changes = tn_host_calloc((size_t)(t->n_events + 2) * sizeof *changes);
    if (!changes) return tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_memory_write_trace", "the host has no memory left"), false;
    for (int64_t i = 0; i < t->n_lives; i++) {
        const tn_memory_life *life = &t->lives[i];
        change *begin = &changes[life->begin_event + 1], *end = &changes[life->end_event + 1];
        begin->bytes[life->category] += life->allocated_bytes;
        begin->time_ns = life->begin_ns;
        begin->any = true;
        if (life->end_ns == UINT64_MAX) continue;
        end->bytes[life->category] -= life->allocated_bytes;
        end->time_ns = life->end_ns;
        end->any = true;
    }
    int64_t sums[TN_CATEGORY_COUNT] = { 0 };
    tn_text(w,
            "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{\"ph\":\"M\",\"pid\":1,\"tid\":0,\"name\":\"process_name\",\"args\":{\"name\":"
            "\"tenon\"}}");
    for (int64_t i = 0; i <= t->n_events; i++) {
        if (!changes[i].any) continue;
        for (int c = 0; c < TN_CATEGORY_COUNT; c++) sums[c] += changes[i].bytes[c];
        write_counter(w, changes[i].time_ns, sums);
    }
    for (int64_t i = 0; i < t->n_lives; i++) write_life(w, &t->lives[i], i, t->end_ns);
    tn_text(w, "\n]}\n");
    tn_host_free(changes);
    return true;
}

bool tn_memory_write_trace(tn_context *cx, const char *path) {
    tn_text_writer *w = tn_text_open(cx, "tn_memory_write_trace", path);
    if (!w) return false;
    tn_memory_timeline *timeline = w->well ? tn_memory_timeline_new(cx) : NULL;
    if (!timeline || !write_trace(w, cx, timeline)) w->well = false;
    tn_memory_timeline_free(timeline);
    return tn_text_close(w);
}

/* ---- CSV ---- */

static void csv_event(void *user, const tn_memory_event *event) {
    static const char *const kinds[] = { "alloc",        "free_requested", "free_completed", "segment_alloc",
                                         "segment_free", "retag",          "out_of_memory" };
    tn_text_writer *w = user;
    form_buffer form;
    tn_text(w, "%" PRIu64 ",%s,0x%" PRIx64 ",%" PRId64 ",%" PRId64 ",%s,%s,", event->time_ns, kinds[event->kind], event->address,
            event->allocated_bytes, event->requested_bytes, tn_category_name(event->category), tn_pass_name(event->owner.pass));
    tn_text_csv(w, event->owner.op);
    tn_text(w, ",");
    tn_text_csv(w, event->owner.label);
    tn_text(w, ",");
    tn_text_csv(w, form_text(event->form, &form));
    tn_text(w, ",%d\n", event->stream);
}

bool tn_memory_write_csv(tn_context *cx, const char *path) {
    tn_text_writer *w = tn_text_open(cx, "tn_memory_write_csv", path);
    if (!w) return false;
    if (w->well) {
        tn_text(w, "time_ns,event,address,allocated_bytes,requested_bytes,category,pass,op,label,tensor,stream\n");
        tn_memory_visit_history(cx, csv_event, w);
    }
    return tn_text_close(w);
}
