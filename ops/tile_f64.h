/* What a CPU tile body of f64 data is written in; the body ends with tile_end.h, which takes it away again. */
#include "lanes_cpu.h"

#define REAL double
#define OF(name) name##_f64
#define LOAD(dtype, from, j) ((void)(dtype), ((const double *)(from))[j])
#define STORE(dtype, to, j, x) ((void)(dtype), ((double *)(to))[j] = (x))
#define FOR_DTYPE(dtype, function, ...) ((void)(dtype), function(TN_F64, __VA_ARGS__))
#define EXP(x) exp(x)
#define LOG(x) log(x)
#include "tile_rows.h"
