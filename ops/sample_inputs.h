/* From an op's samples to tensors and args: what tests, gradient checks and benchmarks run. */
#ifndef TENON_SAMPLE_INPUTS_H
#define TENON_SAMPLE_INPUTS_H

#include "../autograd/gradcheck.h"
#include "../autograd/op.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Room for the args struct of any op. */
typedef union tn_op_args_buffer {
    int64_t integer;
    double number;
    void *pointer;
    char bytes[TN_OP_MAX_ARGS_BYTES];
} tn_op_args_buffer;

/* The data dtypes `sample` runs in on cx's device, as TN_MASK bits. */
TN_API unsigned tn_sample_dtypes(const tn_context *cx, const tn_op_def *op, const tn_sample *sample);

/* Builds the inputs of `sample` on cx, in the innermost scope, and its args. Float data has `dtype` or, for wide inputs, the dtype that
 * goes with it; an input of a fixed other dtype has that one. The numbers depend on seed, input and element alone: not on the device, and
 * on the dtype only by rounding. With requires_grad every input that has a gradient is made a leaf that wants one. in[] holds n_in
 * tensors, NULL for an input left out. False, with an error on cx, if the attributes do not fit the op or memory is short. */
TN_API bool tn_sample_make(tn_context *cx, const tn_op_def *op, const tn_sample *sample, tn_dtype dtype, uint64_t seed, bool requires_grad,
                           tn_tensor *in[TN_OP_MAX_INPUTS], int *n_in, tn_op_args_buffer *args);

/* Would tn_sample_gradcheck have something to check? Not for errors, kinks, ops without gradients, and samples that do not run in f64. */
TN_API bool tn_sample_has_gradcheck(const tn_context *cx, const tn_op_def *op, const tn_sample *sample);
/* Gradient check of the sample in f64. The result is cleared first, and has compared nothing where no f64 output depends on an f64 input.
 * options.seed is also that of the inputs. */
TN_API bool tn_sample_gradcheck(tn_context *cx, const tn_op_def *op, const tn_sample *sample, tn_gradcheck_options options,
                                tn_gradcheck_result *result);

#ifdef __cplusplus
}
#endif
#endif
