/* The peers: a Python program that runs the same tables, started as a child and asked for one table after the other, so that Tenon and
 * its peers take turns on one machine. Question and answers are lines of JSON; bench/peers/README.md tells them. */
#ifndef TENON_BENCH_PEERS_H
#define TENON_BENCH_PEERS_H

#include <jansson.h>

#include "bench_report.h"

typedef struct bench_peers bench_peers;

/* Starts `python3 FOLDER/serve.py`. NULL: there is no Python, no PyTorch or no such program; `why` says so. */
bench_peers *bench_peers_open(const char *folder, const char *device, bool quick, char *why, size_t n_bytes);
/* What they are: versions, device, the plain copy as they measure it. Lives as long as they do. */
const json_t *bench_peers_about(const bench_peers *peers);

/* Says which tables are to come, with rows chosen: what must be compiled is compiled here, several at a time. */
bool bench_peers_prepare(bench_peers *peers, const bench_rows *tables, int n_tables);
/* Measures the rows of a table and puts the results into rows->peers. Begins nothing after `seconds` (0: takes its time). False: they have
 * gone; what was measured before stays. */
bool bench_peers_measure(bench_peers *peers, bench_rows *rows, double seconds);

void bench_peers_close(bench_peers *peers);

#endif
