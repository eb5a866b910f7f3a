/* Do the gradients match the function? Central differences in f64 against backward. */
#ifndef TENON_GRADCHECK_H
#define TENON_GRADCHECK_H

#include "autograd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Computes n_out outputs from the inputs; called many times with changed values. False stops the check. */
typedef bool (*tn_gradcheck_function)(void *user, tn_tensor *const *in, int n_in, tn_tensor **out, int n_out);

typedef struct tn_gradcheck_options {
    double eps, atol, rtol; /* 1e-6, 1e-5, 1e-3 */
    int64_t full_limit;     /* in x out elements up to which the full Jacobian is compared; above it, projections (0: default 20000) */
    int n_projections;      /* random directions per input otherwise (0: default 8) */
    uint64_t seed;
} tn_gradcheck_options;
#define TN_GRADCHECK(...) ((tn_gradcheck_options){ .eps = 1e-6, .atol = 1e-5, .rtol = 1e-3, __VA_ARGS__ })

typedef struct tn_gradcheck_result {
    bool passed, full;
    double worst_share; /* |analytic - numeric| / (atol + rtol |numeric|), the largest; > 1 fails */
    double analytic, numeric;
    int input, output;                 /* where it was */
    int64_t input_index, output_index; /* projections: -1, -1 */
    int64_t n_compared;
} tn_gradcheck_result;

/* Checks d out / d in for every input that requires a gradient and every output in f64; all those inputs must be f64 leaves. Where there is
 * neither, or they are empty, n_compared is 0 and nothing was shown. False, with the reason on the context,
 * if the check could not be made; whether it passed is in the result. */
TN_API bool tn_gradcheck(tn_gradcheck_function function, void *user, tn_tensor *const *in, int n_in, int n_out,
                         tn_gradcheck_options options, tn_gradcheck_result *result);

#ifdef __cplusplus
}
#endif
#endif
