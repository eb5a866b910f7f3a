/* Running the tables that were asked for, in turns with the peers where there are any. */
#ifndef TENON_BENCH_SESSION_H
#define TENON_BENCH_SESSION_H

#include "bench_peers.h"
#include "bench_report.h"
#include "examples/cli.h"

typedef struct bench_session {
    const tn_cli *cli;
    const char *device, *peers_folder; /* NULL: no peers */
    bool quick, largest;
    int64_t n[BENCH_MAX_ROWS]; /* rows to run instead of the tables' own, where n_count > 0 */
    int n_count;
    double minutes; /* nothing is begun after so many; INFINITY: all is run */

    bench_run run;
    bench_peers *peers;
    bench_rows *tables;
    int n_tables, n_wrong;
    double begin_ns;
    FILE *csv; /* every table's rows as soon as they are there, or NULL */
} bench_session;

/* Opens device and peers. False: TN_CLI_USAGE's message has been said. */
bool bench_session_open(bench_session *session);
void bench_session_close(bench_session *session);

/* Runs them all and prints each. An interrupt or a request to end (SIGINT, SIGTERM) leaves out the table at hand and the rest, as the end
 * of `minutes` does. False where the host has no memory left. */
bool bench_session_run(bench_session *session, const bench_choice *choices, int n_choices);

#define BENCH_NOTHING_STORED (-1) /* nothing could be compared */
#define BENCH_CUT_SHORT (-2)      /* interrupted, or out of minutes */
/* Runs a stored document's tables again, at its rows, and prints the rows whose medians moved by more than their spread. Returns how many
 * did, or one of these. */
int bench_session_verify(bench_session *session, const json_t *stored, const bench_choice *choices, int n_choices);

#endif
