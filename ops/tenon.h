/* Tenon: tensors, a tape that differentiates, and the ops of linear attention, in C.
 *
 * This one header is all a program needs:
 *
 *     tn_context *cx = tn_open(&(tn_options){ .device = "auto", .seed = 1337 });
 *     tn_tensor *w = tn_fill_xavier_normal(tn_parameter(cx, TN_F32, TN_SHAPE(64, 64)), 1.0);
 *     tn_scope *s = tn_scope_begin(cx);
 *     tn_tensor *loss = tn_mean(tn_linear(tn_randn(cx, TN_F32, TN_SHAPE(8, 64)), w, NULL));
 *     tn_backward(loss);
 *     tn_print(stdout, tn_grad(w));
 *     tn_scope_end(s);
 *     if (tn_failed(cx)) fprintf(stderr, "%s\n", tn_error(cx));
 *     tn_close(cx);
 *
 * context.h says how errors, scopes and labels work, tensor.h what a tensor is, autograd.h how gradients flow,
 * memory.h how to see where the bytes are, op.h and registry.h how to add an op of your own. */
#ifndef TENON_H
#define TENON_H

/* Macros that fill in documented defaults, such as TN_LINEAR(.act = TN_GELU), name a field twice by design. */
#if defined(__GNUC__) && !defined(__cplusplus) && !defined(TENON_KEEP_OVERRIDE_WARNINGS)
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#include "../autograd/autograd.h"
#include "../autograd/gradcheck.h"
#include "../autograd/op.h"
#include "../libtensor/context.h"
#include "../libtensor/dlpack.h"
#include "../libtensor/graph.h"
#include "../libtensor/memory.h"
#include "../libtensor/memory_export.h"
#include "../libtensor/npy.h"
#include "../libtensor/safetensors.h"
#include "../libtensor/tensor.h"
#include "attention_cache.h"
#include "lao.h"
#include "op_headers.h"
#include "registry.h"

#endif
