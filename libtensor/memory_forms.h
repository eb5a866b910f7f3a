/* The dtypes and shapes that blocks were made for, each kept once, so that an event holds a pointer. */
#ifndef TENON_MEMORY_FORMS_H
#define TENON_MEMORY_FORMS_H

#include "memory.h"

typedef struct tn_form_entry {
    uint64_t hash;
    tn_tensor_form form;
} tn_form_entry;

typedef struct tn_form_page tn_form_page;

typedef struct tn_form_book {
    tn_form_entry **slots; /* open addressing over a power of two; NULL before it is opened */
    uint64_t n_slots, n;
    tn_form_page *pages; /* where entries lie, newest first */
} tn_form_book;

/* Makes room for as many forms as most programs have, so that only others take host memory on the way. False: there is none. */
bool tn_form_book_open(tn_form_book *book);
/* Looks on where the first slot holds another one, and adds what is new. */
const tn_tensor_form *tn_form_book_search(tn_form_book *book, uint64_t hash, tn_dtype dtype, const tn_shape *shape);

static inline bool tn_form_is(const tn_form_entry *entry, uint64_t hash, tn_dtype dtype, const tn_shape *shape) {
    if (entry->hash != hash || entry->form.dtype != dtype || entry->form.shape.axes != shape->axes) return false;
    for (int i = 0; i < shape->axes; i++)
        if (entry->form.shape.size[i] != shape->size[i]) return false;
    return true;
}

/* The one kept for this dtype and shape of `numel` elements. NULL without host memory, and for new ones once very many are known. */
static inline const tn_tensor_form *tn_form_book_find(tn_form_book *book, tn_dtype dtype, const tn_shape *shape, int64_t numel) {
    uint64_t last = shape->axes ? (uint64_t)shape->size[shape->axes - 1] : 0;
    uint64_t hash = (((uint64_t)numel << 8) + (uint64_t)dtype + 16 * (uint64_t)shape->axes + (last << 32)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
    const tn_form_entry *entry = book->slots ? book->slots[hash & (book->n_slots - 1)] : NULL;
    return entry && tn_form_is(entry, hash, dtype, shape) ? &entry->form : tn_form_book_search(book, hash, dtype, shape);
}
void tn_form_book_free(tn_form_book *book);

#endif
