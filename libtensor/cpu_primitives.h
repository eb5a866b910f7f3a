/* The kernels that tensors themselves need, on the CPU: any dtype, any strides, all cores. */
#ifndef TENON_CPU_PRIMITIVES_H
#define TENON_CPU_PRIMITIVES_H

#include "device.h"

/* Converting: float to integer truncates toward zero, saturates, and gives 0 for NaN; integer to narrower integer wraps; anything to
 * bool is != 0; to a narrower float rounds once, to nearest even. */
tn_status tn_cpu_fill(tn_tensor *to, double value, int threads);
tn_status tn_cpu_copy(tn_tensor *to, const tn_tensor *from, int threads);
tn_status tn_cpu_accumulate(tn_tensor *to, const tn_tensor *from, int threads); /* TN_ERR_DTYPE for integers or unequal dtypes */
tn_status tn_cpu_arange(tn_tensor *to, int threads);
tn_status tn_cpu_random(tn_tensor *to, const tn_random_spec *spec, int threads); /* TN_ERR_ARGUMENT for an empty range of integers */
int64_t tn_cpu_find_nonfinite(const tn_tensor *t, int threads);

void tn_cpu_copy_bytes(void *to, const void *from, size_t bytes, int threads);
void tn_cpu_fill_bytes(void *to, unsigned char byte, size_t bytes, int threads);

static inline int64_t tn_saturate_i64(double x) {
    if (x >= 9223372036854775808.0) return INT64_MAX;
    if (x < -9223372036854775808.0) return INT64_MIN;
    return x == x ? (int64_t)x : 0;
}
static inline int32_t tn_saturate_i32(double x) {
    if (x >= 2147483648.0) return INT32_MAX;
    if (x <= -2147483649.0) return INT32_MIN;
    return x == x ? (int32_t)x : 0;
}
static inline uint8_t tn_saturate_u8(double x) {
    if (x >= 256.0) return UINT8_MAX;
    return x > 0 ? (uint8_t)x : 0;
}

#endif
