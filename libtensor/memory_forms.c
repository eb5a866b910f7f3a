#include "memory_forms.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "host_memory.h"

/* A program that grows its shapes step by step must not fill the host with them. */
#define MOST_FORMS ((uint64_t)1 << 16)

enum { PAGE_FORMS = 128 };

struct tn_form_page {
    struct tn_form_page *older;
    int n;
    tn_form_entry entries[PAGE_FORMS];
};

static bool add_page(tn_form_book *book) {
    tn_form_page *page = tn_host_alloc(sizeof *page);
    if (!page) return false;
    page->older = book->pages;
    page->n = 0;
    book->pages = page;
    return true;
}

static bool grow(tn_form_book *book) {
    uint64_t n_slots = book->n_slots ? 2 * book->n_slots : 2 * PAGE_FORMS;
    tn_form_entry **slots = tn_host_calloc((size_t)n_slots * sizeof *slots);
    if (!slots) return false;
    for (uint64_t i = 0; i < book->n_slots; i++) {
        if (!book->slots[i]) continue;
        uint64_t at = book->slots[i]->hash;
        while (slots[at & (n_slots - 1)]) at++;
        slots[at & (n_slots - 1)] = book->slots[i];
    }
    tn_host_free(book->slots);
    book->slots = slots;
    book->n_slots = n_slots;
    return true;
}

static const tn_tensor_form *add(tn_form_book *book, uint64_t hash, tn_dtype dtype, const tn_shape *shape) {
    if (book->n == MOST_FORMS || (2 * book->n >= book->n_slots && !grow(book))) return NULL;
    if ((!book->pages || book->pages->n == PAGE_FORMS) && !add_page(book)) return NULL;
    tn_form_entry *entry = &book->pages->entries[book->pages->n++];
    *entry = (tn_form_entry){ hash, { dtype, *shape } };
    uint64_t at = hash;
    while (book->slots[at & (book->n_slots - 1)]) at++;
    book->slots[at & (book->n_slots - 1)] = entry;
    book->n++;
    return &entry->form;
}

const tn_tensor_form *tn_form_book_search(tn_form_book *book, uint64_t hash, tn_dtype dtype, const tn_shape *shape) {
    uint64_t last = book->n_slots - 1;
    if (book->slots)
        for (uint64_t at = hash; book->slots[at & last]; at++)
            if (tn_form_is(book->slots[at & last], hash, dtype, shape)) return &book->slots[at & last]->form;
    return add(book, hash, dtype, shape);
}

bool tn_form_book_open(tn_form_book *book) { return grow(book) && add_page(book); }

void tn_form_book_free(tn_form_book *book) {
    while (book->pages) {
        tn_form_page *page = book->pages;
        book->pages = page->older;
        tn_host_free(page);
    }
    tn_host_free(book->slots);
    *book = (tn_form_book){ 0 };
}

const char *tn_tensor_form_text(const tn_tensor_form *form, char *buffer, size_t n_bytes) {
    if (n_bytes) buffer[0] = '\0';
    if (!form) return buffer;
    int at = snprintf(buffer, n_bytes, "%s [", tn_dtype_name(form->dtype));
    for (int i = 0; i < form->shape.axes && at >= 0 && (size_t)at < n_bytes; i++)
        at += snprintf(buffer + at, n_bytes - (size_t)at, "%s%" PRId64, i ? "," : "", form->shape.size[i]);
    if (at >= 0 && (size_t)at < n_bytes) snprintf(buffer + at, n_bytes - (size_t)at, "]");
    return buffer;
}
