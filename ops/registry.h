/* Every op there is: those of op_list.def and those registered from outside. */
#ifndef TENON_REGISTRY_H
#define TENON_REGISTRY_H

#include "../autograd/op.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Adds an op from outside the library; def must stay valid. False, with a reason on cx, if it is incomplete or its name is taken. */
TN_API bool tn_op_register(tn_context *cx, const tn_op_def *def);
TN_API int tn_op_count(void);
TN_API const tn_op_def *tn_op_at(int index);
TN_API const tn_op_def *tn_op_find(const char *name); /* NULL if there is none */
/* What a def lacks to be complete (reference, backward, samples, error samples, saved-bytes formula, ...); NULL: nothing. */
TN_API const char *tn_op_incomplete(const tn_op_def *def);

/* Fills args with the defaults; required attributes are zero and their bits are set in the result. */
TN_API uint64_t tn_op_default_args(const tn_op_def *op, void *args);
/* Sets one attribute from text ("true", "4,5", "silu"); false, with a reason in `reason`, if it does not fit. */
TN_API bool tn_op_set_attr(const tn_op_def *op, void *args, const char *name, const char *text, char *reason, size_t n_bytes);
/* Sets attributes from a JSON object ("{\"act\": \"silu\", \"shape\": [4, 5]}"); required ones must be there. */
TN_API bool tn_op_set_attrs_json(const tn_op_def *op, void *args, const char *json, char *reason, size_t n_bytes);

#ifdef __cplusplus
}
#endif
#endif
