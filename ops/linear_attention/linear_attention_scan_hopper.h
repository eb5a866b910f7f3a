/* The scan by wgmma: states of 128 x 128, data that is neither activated nor encoded. */
#ifndef TENON_LINEAR_ATTENTION_SCAN_HOPPER_H
#define TENON_LINEAR_ATTENTION_SCAN_HOPPER_H

#include "linear_attention_scan.h"

#define TN_LA_SCAN_HOPPER_PARTS 2 /* of dots */

#ifdef __CUDACC__
bool tn_la_scan_hopper_fits(const tn_la_scan *scan, const tn_device *device);
/* Or, with sum, the segments' own S alone (of all but the last), and their decay. */
cudaError_t tn_la_scan_hopper_run(const tn_la_scan *scan, int segments, float *sums, float *totals, bool sum, cudaStream_t stream);

/* linear_attention_sweep_hopper.cu: the reverse scans that make dk and dv as one. */
bool tn_la_sweep_hopper_fits(const tn_la_scan *key, const tn_la_scan *value, const tn_device *device);
cudaError_t tn_la_sweep_hopper_run(const tn_la_scan *key, const tn_la_scan *value, int segments, const float *sums, cudaStream_t stream);
#endif

#endif
