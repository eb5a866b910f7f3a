/* An op's inputs and upstream gradients in a safetensors file: inputs under the op's input names (a repeated last input as NAME.0,
 * NAME.1, ...), outputs as out.NAME, upstream gradients as grad_out.NAME, gradients as grad.INPUT. */
#ifndef TENON_OP_FILE_H
#define TENON_OP_FILE_H

#include "../autograd/op.h"
#include "../libtensor/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TN_OP_NAME_BYTES 128

/* What a file calls input i; returns buffer. */
TN_API const char *tn_op_file_input_name(const tn_op_def *op, int i, char buffer[TN_OP_NAME_BYTES]);

/* Loads the inputs onto cx, in the innermost scope. Float data is converted to *dtype, wide inputs to the dtype that goes with it, integers
 * stay; with dtype NULL everything stays as the file has it. With requires_grad every float input that has a gradient is made a
 * leaf that wants one. False, with an error on cx, if an input is missing or the file holds a tensor that has no place in a call of op. */
TN_API bool tn_op_file_inputs(tn_context *cx, const tn_file *file, const tn_op_def *op, const tn_dtype *dtype, bool requires_grad,
                              tn_tensor *in[TN_OP_MAX_INPUTS], int *n_in);

/* Goes backward from the outputs of a call, with grad_out.NAME of the file as upstream gradients, or ones where it has none. False,
 * with an error on the context, also if no output has a gradient. */
TN_API bool tn_op_file_backward(const tn_file *file, const tn_op_def *op, tn_tensor *const *out);

#ifdef __cplusplus
}
#endif
#endif
