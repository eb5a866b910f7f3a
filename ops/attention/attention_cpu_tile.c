#include <math.h>
#include <string.h>

#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "attention_tile_cpu.h"

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
#define LOG(x) logf(x)
#include "attention_tile_body.h"
#undef REAL
#undef OF
#undef LOAD
#undef STORE
#undef FOR_DTYPE
#undef EXP
#undef LOG

#define REAL double
#define OF(name) name##_f64
#define LOAD(dtype, from, j) ((void)(dtype), ((const double *)(from))[j])
#define STORE(dtype, to, j, x) ((void)(dtype), ((double *)(to))[j] = (x))
#define FOR_DTYPE(dtype, function, ...) ((void)(dtype), function(TN_F64, __VA_ARGS__))
#define EXP(x) exp(x)
#define LOG(x) log(x)
#include "attention_tile_body.h"
