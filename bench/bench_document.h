/* A run as one JSON document: what --json writes, --stored and --verify read, and bench_html.c draws. */
#ifndef TENON_BENCH_DOCUMENT_H
#define TENON_BENCH_DOCUMENT_H

#include <jansson.h>

#include "bench_report.h"

/* The document of a run; `peers` is what the peers said of themselves, or NULL. */
json_t *bench_document_of(const bench_run *run, const bench_rows *tables, int n_tables, const json_t *peers);

/* A stored document. NULL: `why` says what is the matter with it. */
json_t *bench_document_read(const char *path, char *why, size_t n_bytes);
/* A document's table; NULL: it has none of that name. */
const json_t *bench_document_table(const json_t *document, const char *name);
/* Adds the tables of a further run, which loses them; of two of one name the newer stays, and what is said of the run as a whole is what
 * the newest run says. False where the two are not from one machine. */
bool bench_document_add(json_t *document, json_t *more, char *why, size_t n_bytes);
/* After that: tables in the order given, which say of their run (commit, date, copy, method, peers) only what is not the document's. */
void bench_document_settle(json_t *document, const bench_choice *order, int n_order);

bool bench_document_write(const json_t *document, FILE *stream);

/* The document as one page that needs nothing else: plots, tables, and the headline's rows. */
void bench_html_write(const json_t *document, FILE *stream);

#endif
