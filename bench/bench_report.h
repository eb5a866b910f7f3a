/* What a run found: as text tables on standard output, and as CSV. */
#ifndef TENON_BENCH_REPORT_H
#define TENON_BENCH_REPORT_H

#include "bench_run.h"

#define BENCH_PROVIDER_BYTES 24

/* What a peer needed for the same work as one row of one column. */
typedef struct bench_peer_row {
    int row, column;
    char provider[BENCH_PROVIDER_BYTES]; /* "eager", "compile", "fla", ... */
    bench_result result;
} bench_peer_row;

/* The rows of one table, results[row * n_columns + column], and the peers' beside them. */
typedef struct bench_rows {
    bench_choice choice;
    const bench_column *columns[BENCH_MAX_COLUMNS];
    int n_columns, n_rows;
    int64_t n[BENCH_MAX_ROWS];
    bench_result *results;
    bench_peer_row *peers;
    int n_peers;
    double seconds; /* it took, peers included */
} bench_rows;

/* "ok", "wrong", "unsupported", "out of memory", "failed". */
const char *bench_status_name(bench_status status);

/* The quickest (smallest) peer of a row of a column; NULL: there is none. */
const bench_peer_row *bench_best_peer(const bench_rows *rows, int row, int column);

/* One line on what is run, where and how fast it copies. */
void bench_print_heading(FILE *stream, const bench_run *run);
/* The table: row index, n, each column, floor, share of the floor (or TFLOP/s), 20th and 80th percentile; then the peers' table, if any. */
void bench_print_rows(FILE *stream, const bench_rows *rows);

void bench_csv_heading(FILE *stream);
void bench_csv_rows(FILE *stream, const bench_rows *rows);

/* What `git describe` said when the program was built. */
const char *bench_commit(void);

#endif
