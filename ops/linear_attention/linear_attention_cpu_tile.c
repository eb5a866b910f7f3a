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

#include "../tile_f32.h"
#define ACT(act, x) tn_f32_act(act, x)
#define SLOPE(act, x) tn_f32_act_slope(act, x)
#define LARGEST_THETA(grid, theta) tn_lrpe_largest_theta(grid, theta)
#define ANGLES(grid, theta, largest, token, cosine, sine) tn_lrpe_angles_f32(grid, theta, largest, token, 0, cosine, sine)
#include "linear_attention_tile_body.h"

#include "../tile_f64.h"
#define ACT(act, x) tn_f64_act(act, x)
#define SLOPE(act, x) tn_f64_act_slope(act, x)
#define LARGEST_THETA(grid, theta) 0
#define ANGLES(grid, theta, largest, token, cosine, sine) ((void)(largest), tn_lrpe_angles_f64(grid, theta, token, 0, cosine, sine))
#include "linear_attention_tile_body.h"
