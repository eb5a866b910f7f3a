/* What a run found: as text tables on standard output, CSV, and JSON. */
#ifndef TENON_BENCH_REPORT_H
#define TENON_BENCH_REPORT_H

#include "bench_run.h"

/* The rows of one table, results[row * n_columns + column]. */
typedef struct bench_rows {
    bench_choice choice;
    const bench_column *columns[BENCH_MAX_COLUMNS];
    int n_columns, n_rows;
    int64_t n[BENCH_MAX_ROWS];
    bench_result *results;
} bench_rows;

/* "ok", "wrong", "unsupported", "out of memory", "failed". */
const char *bench_status_name(bench_status status);

/* One line on what is run, where and how fast it copies. */
void bench_print_heading(FILE *stream, const bench_run *run);
/* The table: row index, n, each column, floor, share of the floor (or TFLOP/s), 20th and 80th percentile. */
void bench_print_rows(FILE *stream, const bench_rows *rows);

void bench_csv_heading(FILE *stream);
void bench_csv_rows(FILE *stream, const bench_rows *rows);

/* The whole run. False if it could not be written. */
bool bench_json_write(FILE *stream, const bench_run *run, const bench_rows *tables, int n_tables);

/* What `git describe` said when the program was built. */
const char *bench_commit(void);

#endif
