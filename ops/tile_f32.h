/* What a CPU tile body of f32 or bf16 data, computed in f32, is written in; the body ends with tile_end.h, which takes it away again. */
#include "lanes_cpu.h"

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
#include "tile_rows.h"
