#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "../lrpe_angle_cpu.h"
#include "linear_attention_tile_cpu.h"

/* Runs loop(act) with act a constant, so that the choice stands outside the loop. */
#define FOR_CONSTANT_ACT(act, loop)           \
    switch (act) {                            \
    case TN_RELU: loop(TN_RELU); break;       \
    case TN_SIGMOID: loop(TN_SIGMOID); break; \
    case TN_SILU: loop(TN_SILU); break;       \
    case TN_GELU: loop(TN_GELU); break;       \
    case TN_TANH: loop(TN_TANH); break;       \
    default: break;                           \
    }

#define AFTER(dtype, base, elements) tn_elements_after(dtype, base, elements)

#define REAL float
#define OF(name) name##_f32
#define LOAD(dtype, from, j) tn_lane_load(dtype, from, j)
#define STORE(dtype, to, j, x) tn_lane_store(dtype, to, j, x)
#define FOR_DTYPE(dtype, function, ...)                       \
    do {                                                      \
        if ((dtype) == TN_F32) function(TN_F32, __VA_ARGS__); \
        else function(TN_BF16, __VA_ARGS__);                  \
    } while (0)
#define EXP(x) tn_f32_exp_below_0(x)
#define ACT(act, x) tn_f32_act(act, x)
#define SLOPE(act, x) tn_f32_act_slope(act, x)
#define LARGEST_THETA(grid, theta) tn_lrpe_largest_theta(grid, theta)
#define ANGLES(grid, theta, largest, token, cosine, sine) tn_lrpe_angles_f32(grid, theta, largest, token, 0, cosine, sine)
#include "linear_attention_tile_body.h"
#undef REAL
#undef OF
#undef LOAD
#undef STORE
#undef FOR_DTYPE
#undef EXP
#undef ACT
#undef SLOPE
#undef LARGEST_THETA
#undef ANGLES

#define REAL double
#define OF(name) name##_f64
#define LOAD(dtype, from, j) ((void)(dtype), ((const double *)(from))[j])
#define STORE(dtype, to, j, x) ((void)(dtype), ((double *)(to))[j] = (x))
#define FOR_DTYPE(dtype, function, ...) ((void)(dtype), function(TN_F64, __VA_ARGS__))
#define EXP(x) exp(x)
#define ACT(act, x) tn_f64_act(act, x)
#define SLOPE(act, x) tn_f64_act_slope(act, x)
#define LARGEST_THETA(grid, theta) 0
#define ANGLES(grid, theta, largest, token, cosine, sine) ((void)(largest), tn_lrpe_angles_f64(grid, theta, token, 0, cosine, sine))
#include "linear_attention_tile_body.h"
