/* The ops, one line each: what they compute, and their gradients, as expressions. elementwise.c makes descriptions of
 * the lines and elementwise_cpu.c kernels: the expressions are compiled for f64, for f32 and (forward) for i64.
 *
 * In the expressions a, b, x are inputs, o the output, d the output's gradient, p0 and p1 the args struct's numbers, s0 the
 * first of them as a plain double, zero, one and half what they say. SELECT(condition, yes, no) chooses.
 *
 * Before each expression stands how f32 is computed: `loop` leaves it to the compiler, one element after the other; `lanes`
 * computes sixteen at a time, with the functions of simd.h. Before each gradient stands what it reads besides d: none, x, o,
 * a, b, ab or cond. A gradient that is d itself is `pass`: where shapes and dtypes agree nothing is computed. */
#ifndef TENON_ELEMENTWISE_LIST_H
#define TENON_ELEMENTWISE_LIST_H

#define SIGMOID(x) ACT(TN_SIGMOID, x)

/* OP(name, doc, how, forward, reads, how, gradient) */
#define TN_UNARY_OPS(OP)                                                                   \
    OP(neg, "-x", loop, -x, none, loop, -d)                                                \
    OP(abs, "|x|", loop, ABS(x), x, loop, SELECT(x > zero, d, SELECT(x < zero, -d, zero))) \
    OP(exp, "e^x", lanes, EXP(x), o, loop, d *o)                                           \
    OP(log, "ln x", lanes, LOG(x), x, loop, d / x)                                         \
    OP(log1p, "ln(1 + x)", lanes, LOG1P(x), x, loop, d / (one + x))                        \
    OP(sqrt, "square root of x", loop, SQRT(x), o, loop, half *d / o)                      \
    OP(rsqrt, "1 / sqrt(x)", loop, one / SQRT(x), o, loop, -half * d * o * o * o)          \
    OP(sin, "sine of x", lanes, SIN(x), x, lanes, d *COS(x))                               \
    OP(cos, "cosine of x", lanes, COS(x), x, lanes, -d *SIN(x))                            \
    OP(softplus, "ln(1 + e^x)", lanes, SOFTPLUS(x), x, lanes, d *SIGMOID(x))               \
    OP(logsigmoid, "ln(1 / (1 + e^-x))", lanes, -SOFTPLUS(-x), x, lanes, d *SIGMOID(-x))

/* The same of ops with numbers in an args struct, tn_<name>_args. */
#define TN_UNARY_OPS_WITH_NUMBERS(OP)                                                                 \
    OP(affine, "x * scale + shift", loop, x *p0 + p1, none, loop, d * p0)                             \
    OP(clamp, "x kept within low and high", loop, SELECT(x < p0, p0, SELECT(x > p1, p1, x)), x, loop, \
       SELECT((x >= p0) & (x <= p1), d, zero))                                                        \
    OP(pow_scalar, "x^exponent", lanes, POWER(x, s0), x, lanes, s0 == 0 ? zero : d * p0 * POWER(x, s0 - 1))

/* OP(name, doc, how, forward, forward of integers, reads, how, gradient of a, reads, how, gradient of b) */
#define TN_BINARY_OPS(OP)                                                                                                  \
    OP(add, "a + b", loop, a + b, WRAP(a, +, b), pass, loop, d, pass, loop, d)                                             \
    OP(sub, "a - b", loop, a - b, WRAP(a, -, b), pass, loop, d, none, loop, -d)                                            \
    OP(mul, "a b", loop, a *b, WRAP(a, *, b), b, loop, d *b, a, loop, d *a)                                                \
    OP(div, "a / b", loop, a / b, QUOTIENT(a, b), b, loop, d / b, ab, loop, -(d / b) * (a / b))                            \
    OP(maximum, "the greater of a and b", loop, SELECT((a > b) | (a != a), a, b), (a > b ? a : b), ab, loop,               \
       SELECT(a > b, d, SELECT(a == b, half * d, zero)), ab, loop, SELECT(b > a, d, SELECT(a == b, half * d, zero)))       \
    OP(minimum, "the lesser of a and b", loop, SELECT((a < b) | (a != a), a, b), (a < b ? a : b), ab, loop,                \
       SELECT(a < b, d, SELECT(a == b, half * d, zero)), ab, loop, SELECT(b < a, d, SELECT(a == b, half * d, zero)))       \
    OP(pow, "a^b", loop, POW(a, b), 0 /* refused */, ab, loop, SELECT(b == zero, zero, d * b * POW(a, b - one)), ab, loop, \
       SELECT(a > zero, d * POW(a, b) * LOG(a), zero))

/* OP(name, doc, condition) */
#define TN_COMPARISON_OPS(OP)        \
    OP(eq, "a = b", a == b)          \
    OP(ne, "a and b differ", a != b) \
    OP(lt, "a < b", a < b)           \
    OP(le, "a <= b", a <= b)         \
    OP(gt, "a > b", a > b)           \
    OP(ge, "a >= b", a >= b)

/* OP(name, doc, forward, forward of integers, reads, gradient of a, reads, gradient of b) */
#define TN_CHOICE_OPS(OP)                                                                                                          \
    OP(where, "a where cond holds, else b", SELECT(cond != zero, a, b), (cond ? a : b), cond, SELECT(cond != zero, d, zero), cond, \
       SELECT(cond != zero, zero, d))

#endif
