/* A run as one JSON document: what --json writes, --stored and --verify read, and bench_html.c draws. */
#ifndef TENON_BENCH_DOCUMENT_H
#define TENON_BENCH_DOCUMENT_H

#include <jansson.h>

#include "bench_report.h"

/* The document of a run; `peers` is what the peers said of themselves, or NULL. */
json_t *bench_document_of(const bench_run *run, const bench_rows *tables, int n_tables, const json_t *peers);

/* A stored document. NULL: `why` says what is the matter with it. */
json_t *bench_document_read(const char *path, char *why, size_t n_bytes);
/* Adds the tables of a further run to a document; a table that both hold is replaced. False where the two are not from one machine and
 * commit. */
bool bench_document_add(json_t *document, const json_t *more, char *why, size_t n_bytes);

bool bench_document_write(const json_t *document, FILE *stream);

/* The document as one page that needs nothing else: plots, tables, and the headline's rows. */
void bench_html_write(const json_t *document, FILE *stream);

#endif
