/* A run of tables on one device: building cells, checking them, measuring them. bench/README.md tells the method. */
#ifndef TENON_BENCH_RUN_H
#define TENON_BENCH_RUN_H

#include "bench_machine.h"
#include "bench_table.h"
#include "bench_timer.h"

typedef enum bench_status {
    BENCH_OK,
    BENCH_WRONG,       /* the result is not the CPU's: not timed */
    BENCH_UNSUPPORTED, /* the device has no kernel for it */
    BENCH_OUT_OF_MEMORY,
    BENCH_FAILED
} bench_status;

struct bench_result {
    bench_status status;
    char note[256];          /* what went wrong */
    double median, p20, p80; /* in the table's unit */
    int repeats;
    int64_t floor_bytes;    /* 0: none is known, or nothing must move */
    double floor_ms, share; /* floor_bytes at the speed of the plain copy; floor_ms / median */
    double flops, tflops;   /* 0: not counted */
};

#define BENCH_MAX_SETS 8 /* of inputs, that take turns */

struct bench_run {
    tn_context *cx;
    tn_context *reference; /* CPU, f64 */
    bench_timer *timer;
    bench_machine machine;
    bool quick;
    double copy_bytes_per_s; /* of the plain copy: read and written */
    tn_tensor *flush;        /* overwritten between calls; larger than every cache */
    bool flush_reads;        /* and read, so that no dirty line is left to be written back while a call is timed */
    int64_t n_rotated_bytes; /* successive calls use inputs of at least so many bytes together */
    double budget_ms;        /* device time per cell */
    int min_repeats, max_repeats;
    uint64_t random;
    uint32_t gated; /* bits: the table's columns that have been compared whole at its gate_rows */

    bench_set row_sets[BENCH_MAX_SETS]; /* while the columns of a row are measured in turns */
    int n_row_sets;
};

/* Opens the device, measures the plain copy and describes the machine. False: *error says why; close in every case. */
bool bench_run_open(bench_run *run, const char *device, bool quick, const char **error);
void bench_run_close(bench_run *run);

/* "ms", "MiB" or "ns". */
const char *bench_unit(bench_kind kind);

/* To be called before the first cell of a table in one kind and dtype. */
void bench_begin_table(bench_run *run);

/* Gives what lies unused back to the device, and waits while the driver wipes it: meanwhile kernels are up to a seventh slower. */
void bench_release_memory(bench_run *run);

/* Are the columns of the cell's row measured in turns, a call of each on the same inputs? */
bool bench_in_turns(const bench_cell *cell);

/* Checks and measures one cell, or several of one row in turns. The context is as before afterwards, whatever happened. */
void bench_measure_cells(bench_run *run, const bench_cell *cells, int n_cells, bench_result *results);

/* Overwrites the caches. */
void bench_flush(bench_run *run);

/* ---- sets: the inputs of a cell ---- */

/* Builds the inputs in the innermost scope: new numbers, or those of `like` where it is not NULL. */
bool bench_set_make(bench_set *set, tn_context *cx, const bench_cell *cell, const bench_set *like);
/* Reads the attributes and runs the column's open. */
bool bench_set_open(bench_set *set);
void bench_set_close(bench_set *set);
tn_tensor *bench_set_forward(bench_set *set);
/* An upstream gradient for o: normal numbers, or 1 for a scalar. */
tn_tensor *bench_upstream(tn_tensor *o);
void bench_set_clear_grads(bench_set *set);
int64_t bench_set_bytes(const bench_set *set);
/* Bytes the cell's pass must move; 0: not known. Never fails. */
int64_t bench_floor_bytes(const bench_set *set);

/* ---- the gate ---- */

/* Compares the cell with the CPU in f64: whole where n is at most the table's gate_rows, else in slices; `timed` is a set that has been
 * opened. False where they differ, with a word on where; what fails along the way is an error on run->cx. */
bool bench_gate(bench_run *run, const bench_cell *cell, bench_set *timed, char *why, size_t n_bytes);

/* ---- statistics ---- */

/* Sorts the samples and takes median, 20th and 80th percentile. */
void bench_summarise(double *samples, int n, bench_result *result);

#endif
