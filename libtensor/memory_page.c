/* The page: memory_page.html with this context's memory as data in its place. */
#include <inttypes.h>
#include <string.h>

#include "context_internal.h"
#include "host_memory.h"
#include "memory_export.h"
#include "memory_page_html.h"
#include "text_writer.h"

static const char data_mark[] = "/*DATA*/";

/* Owners and labels by number: pointers are unique within a context. */
typedef struct names {
    const char **text;
    int64_t n;
} names;

static int64_t number_of(names *all, const char *text) {
    for (int64_t i = all->n - 1; i >= 0; i--)
        if (all->text[i] == text || strcmp(all->text[i], text) == 0) return i;
    all->text[all->n] = text;
    return all->n++;
}

/* Forms likewise, the last number first: neighbours in time are often alike. -1: none. */
typedef struct form_list {
    const tn_tensor_form **form;
    int64_t n;
} form_list;

static int64_t number_of_form(form_list *all, const tn_tensor_form *form) {
    if (!form) return -1;
    for (int64_t i = all->n - 1; i >= 0; i--)
        if (all->form[i] == form) return i;
    all->form[all->n] = form;
    return all->n++;
}

static const char *shown(const char *text) { return text ? text : ""; }

static void write_life(tn_text_writer *w, const tn_memory_life *life, names *known, form_list *forms) {
    int64_t op = number_of(known, shown(life->owner.op)), label = number_of(known, shown(life->owner.label));
    int64_t form = number_of_form(forms, life->form);
    tn_text(w, "[%" PRId64 ",%" PRId64 ",%" PRIu64 ",%" PRId64 ",%" PRId64 ",%d,%d,%" PRId64 ",%" PRId64 ",%d,%" PRId64 "]",
            life->begin_event, life->end_event, life->begin_ns / 1000, life->allocated_bytes, life->requested_bytes, (int)life->category,
            (int)life->owner.pass, op, label, life->first, form);
}

static void write_stats(tn_text_writer *w, const tn_context *cx) {
    tn_memory_stats stats;
    tn_memory_stats_get(cx, &stats);
    tn_text(w, "\"stats\":{\"device\":");
    tn_text_json(w, tn_device_detail(cx));
    tn_text(w,
            ",\"allocated\":%" PRId64 ",\"allocatedPeak\":%" PRId64 ",\"reserved\":%" PRId64 ",\"reservedPeak\":%" PRId64
            ",\"requested\":%" PRId64 ",\"inactiveSplit\":%" PRId64 ",\"retries\":%" PRId64 ",\"outOfMemory\":%" PRId64 "},\n",
            stats.all.allocated.current, stats.all.allocated.peak, stats.all.reserved.current, stats.all.reserved.peak,
            stats.all.requested.current, stats.all.inactive_split.current, stats.n_retries, stats.n_out_of_memory);
}

static void write_words(tn_text_writer *w, const char *key, const char *(*name)(int), int n) {
    tn_text(w, "\"%s\":[", key);
    for (int i = 0; i < n; i++) {
        if (i) tn_text(w, ",");
        tn_text_json(w, name(i));
    }
    tn_text(w, "],\n");
}

static const char *category_name(int i) { return tn_category_name((tn_category)i); }
static const char *pass_name(int i) { return tn_pass_name((tn_pass)i); }

static void write_data(tn_text_writer *w, const tn_context *cx, const tn_memory_timeline *t, names *known, form_list *forms) {
    tn_text(w, "{\n");
    write_stats(w, cx);
    write_words(w, "categories", category_name, TN_CATEGORY_COUNT);
    write_words(w, "passes", pass_name, TN_PASS_COUNT);
    tn_text(w, "\"events\":%" PRId64 ",\"lost\":%" PRId64 ",\"peakEvent\":%" PRId64 ",\"endUs\":%" PRIu64 ",\n\"lives\":[\n", t->n_events,
            t->n_lost, t->peak_event, t->end_ns / 1000);
    for (int64_t i = 0; i < t->n_lives; i++) {
        if (i) tn_text(w, ",\n");
        write_life(w, &t->lives[i], known, forms);
    }
    tn_text(w, "],\n\"names\":[");
    for (int64_t i = 0; i < known->n; i++) {
        if (i) tn_text(w, ",");
        tn_text_json(w, known->text[i]);
    }
    tn_text(w, "],\n\"forms\":[");
    for (int64_t i = 0; i < forms->n; i++) {
        char text[192];
        if (i) tn_text(w, ",");
        tn_text_json(w, tn_tensor_form_text(forms->form[i], text, sizeof text));
    }
    tn_text(w, "]}");
}

static bool number_and_write(tn_text_writer *w, tn_context *cx, const tn_memory_timeline *t) {
    names known = { .text = tn_host_alloc((size_t)(2 * t->n_lives + 1) * sizeof *known.text) };
    form_list forms = { .form = tn_host_alloc((size_t)(t->n_lives + 1) * sizeof *forms.form) };
    bool fine = known.text && forms.form;
    if (fine) write_data(w, cx, t, &known, &forms);
    else tn_fail(cx, TN_ERR_HOST_MEMORY, "tn_memory_write_page", "the host has no memory left");
    tn_host_free(known.text);
    tn_host_free(forms.form);
    return fine;
}

static bool write_page(tn_text_writer *w, tn_context *cx) {
    tn_memory_timeline *timeline = tn_memory_timeline_new(cx);
    if (!timeline) return false;
    const char *page = (const char *)tn_memory_page_html, *mark = strstr(page, data_mark);
    tn_text_bytes(w, page, (size_t)(mark - page));
    bool fine = number_and_write(w, cx, timeline);
    mark += strlen(data_mark);
    tn_text_bytes(w, mark, strlen(mark));
    tn_memory_timeline_free(timeline);
    return fine;
}

bool tn_memory_write_page(tn_context *cx, const char *path) {
    tn_text_writer *w = tn_text_open(cx, "tn_memory_write_page", path);
    if (!w) return false;
    if (w->well && !write_page(w, cx)) w->well = false;
    return tn_text_close(w);
}
