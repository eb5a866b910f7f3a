/* An op as a user of the library would write one: o = factor * x^3, on the CPU. */
#ifndef TENON_OUTSIDE_OP_H
#define TENON_OUTSIDE_OP_H

#include "autograd/op.h"

extern const tn_op_def tn_outside_op;

#endif
