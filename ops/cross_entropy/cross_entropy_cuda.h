/* Rows of logits on CUDA, for cross_entropy and for the chunks of linear_cross_entropy. */
#ifndef TENON_CROSS_ENTROPY_CUDA_H
#define TENON_CROSS_ENTROPY_CUDA_H

#include "cross_entropy_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Targets that are no class make the loss NaN here; only in debug contexts they are looked for on the host, and are the error they are
 * on the CPU. */
tn_status tn_entropy_check_targets_cuda(tn_op_call *call, const tn_tensor *target, int64_t v);

/* The wide dtype is f64 for f64 and f32 for f32 and bf16. Nothing here may overlap, but dlogits may be the logits. */
typedef struct tn_entropy_rows_cuda {
    tn_dtype dtype; /* of the logits */
    int64_t rows, v, ignore_index;
    int64_t row, drow; /* elements from one row of logits (of dlogits) to the next */
    const void *logits;
    const int64_t *target;
    void *max, *log_sum; /* [rows], wide; forward writes them unless NULL, backward reads them */

    void *loss; /* forward: [rows], wide */

    tn_dtype ddtype; /* of dlogits: that of the logits, or bf16 for f32 */
    void *dlogits;
    const void *scale; /* backward: the gradient of one row's loss, wide, on the device */
} tn_entropy_rows_cuda;

/* The loss and the statistics of every row; NaN where the target is no class. */
tn_status tn_entropy_losses_cuda(tn_device *device, const tn_entropy_rows_cuda *job, void *stream);
/* dlogits of every row; zero where the target is no class or ignored. */
tn_status tn_entropy_gradients_cuda(tn_device *device, const tn_entropy_rows_cuda *job, void *stream);

/* Scratch of the two calls below. */
size_t tn_entropy_mean_bytes_cuda(int64_t rows);
/* o = the sum of `loss` [rows] over the targets that count, by their number; 0 where there is none. */
tn_status tn_entropy_mean_cuda(tn_device *device, const void *loss, const int64_t *target, int64_t rows, int64_t ignore_index, tn_tensor *o,
                               void *scratch, void *stream);
/* *scale (wide) = do, or 1 where dout is NULL, by the number of targets that count; 0 where there is none. */
tn_status tn_entropy_scale_cuda(tn_device *device, tn_dtype dtype, const tn_tensor *dout, const int64_t *target, int64_t rows,
                                int64_t ignore_index, void *scale, void *scratch, void *stream);

/* ---- for linear_cross_entropy: both passes over a chunk at once ---- */

/* Does a row of so many f32 or bf16 logits fit on chip? */
bool tn_entropy_fits_cuda(const tn_device *device, tn_dtype dtype, int64_t v);
/* The loss of every row, and dlogits in the logits' place: rows start at whole 16 bytes, and what lies between v and the next 16 bytes
 * becomes 0. For rows that fit. */
tn_status tn_entropy_both_cuda(tn_device *device, const tn_entropy_rows_cuda *job, void *stream);
/* to = from do, dense and of one shape. */
tn_status tn_entropy_scaled_cuda(tn_device *device, const tn_tensor *to, const tn_tensor *from, const tn_tensor *dout, void *stream);

#ifdef __cplusplus
}
#endif
#endif
