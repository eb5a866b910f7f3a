/* What a family folder hands to the registry: its ops under the name of its line in op_list.def. */
#ifndef TENON_FAMILY_H
#define TENON_FAMILY_H

#include "../autograd/op.h"

typedef struct tn_op_family {
    const tn_op_def *const *ops;
    int n_ops;
} tn_op_family;

#endif
