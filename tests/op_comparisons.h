/* Ways to run a sample that must agree: f64 and few bits, one thread and several, dense and strided, real and dry. */
#ifndef TENON_OP_COMPARISONS_H
#define TENON_OP_COMPARISONS_H

#include "op_runs.h"

/* Relative L2 error allowed where the same numbers are added in another order: a tenth to a fifth of the accuracy rule. */
double tn_same_kernel_tolerance(tn_dtype dtype);

/* Against f64 computed on the CPU from the same inputs; each output's gradient alone too, where there are several. */
void tn_compare_with_f64(run_how *how);
/* 1, 2 and 3 threads: equal bits, or nearly so where the op says that threads matter. */
void tn_compare_threads(run_how *how);
/* Every input in every layout, alone and together with the upstream gradients. */
void tn_compare_layouts(run_how *how);
/* The run described by `how` against the results of a dense one. */
void tn_compare_layout(const run_how *how, const run_results *dense, const char *what);
/* A dry run asks for the same memory in the same order. */
void tn_compare_with_dry_run(run_how *how);

#endif
