/* Random tensors on the CPU. Compiled without contraction of a * b + c, see philox.h. */
#include "cpu_primitives.h"
#include "parallel.h"
#include "philox.h"
#include "simd.h"

#define DRAWS 512 /* numbers made at a time, in a buffer that stays in the first-level cache */
#define GRAIN (32 * DRAWS)

typedef struct fill_random {
    tn_tensor *to;
    const tn_random_spec *spec;
} fill_random;

/* The stages are loops of their own, free of branches, so that each is vectorised. */
TN_SIMD_CLONES static void make_draws(uint64_t seed, uint64_t first_block, uint64_t even[DRAWS / 2], uint64_t odd[DRAWS / 2]) {
    for (int i = 0; i < DRAWS / 2; i++) tn_philox_draws(seed, first_block + (uint64_t)i, &even[i], &odd[i]);
}
TN_SIMD_CLONES static void make_uniform(const uint64_t *even, const uint64_t *odd, double value[DRAWS], double low, double range) {
    for (int i = 0; i < DRAWS / 2; i++) {
        value[2 * i] = tn_philox_scale(tn_philox_uniform_f64(even[i]), low, range);
        value[2 * i + 1] = tn_philox_scale(tn_philox_uniform_f64(odd[i]), low, range);
    }
}
TN_SIMD_CLONES static void make_normal(const uint64_t *even, const uint64_t *odd, double value[DRAWS], double mean, double deviation) {
    for (int i = 0; i < DRAWS / 2; i++) {
        double a, b;
        tn_philox_normal_pair(even[i], odd[i], &a, &b);
        value[2 * i] = tn_philox_scale(a, mean, deviation);
        value[2 * i + 1] = tn_philox_scale(b, mean, deviation);
    }
}
static void make_integers(const uint64_t *even, const uint64_t *odd, int64_t value[DRAWS], int64_t low, int64_t high) {
    for (int i = 0; i < DRAWS / 2; i++) {
        value[2 * i] = tn_philox_integer(even[i], low, high);
        value[2 * i + 1] = tn_philox_integer(odd[i], low, high);
    }
}

/* `high` is infinite unless the numbers must stay below it. */
static void store_floats(tn_tensor *to, int64_t at, const double *value, int64_t n, double high) {
    switch (to->dtype) {
    case TN_F64:
        for (int64_t i = 0; i < n; i++) ((double *)to->data)[at + i] = tn_philox_below_f64(value[i], high);
        break;
    case TN_F32:
        for (int64_t i = 0; i < n; i++) ((float *)to->data)[at + i] = tn_philox_below_f32(value[i], high);
        break;
    case TN_BF16:
        for (int64_t i = 0; i < n; i++) ((tn_bf16 *)to->data)[at + i] = tn_philox_below_bf16(value[i], high);
        break;
    case TN_I64:
        for (int64_t i = 0; i < n; i++) ((int64_t *)to->data)[at + i] = tn_saturate_i64(value[i]);
        break;
    case TN_I32:
        for (int64_t i = 0; i < n; i++) ((int32_t *)to->data)[at + i] = tn_saturate_i32(value[i]);
        break;
    case TN_U8:
        for (int64_t i = 0; i < n; i++) ((uint8_t *)to->data)[at + i] = tn_saturate_u8(value[i]);
        break;
    default:
        for (int64_t i = 0; i < n; i++) ((uint8_t *)to->data)[at + i] = value[i] != 0;
    }
}

static void store_integers(tn_tensor *to, int64_t at, const int64_t *value, int64_t n) {
    switch (to->dtype) {
    case TN_F64:
        for (int64_t i = 0; i < n; i++) ((double *)to->data)[at + i] = (double)value[i];
        break;
    case TN_F32:
        for (int64_t i = 0; i < n; i++) ((float *)to->data)[at + i] = (float)value[i];
        break;
    case TN_BF16:
        for (int64_t i = 0; i < n; i++) ((tn_bf16 *)to->data)[at + i] = tn_f64_to_bf16((double)value[i]);
        break;
    case TN_I64: memcpy((int64_t *)to->data + at, value, (size_t)n * sizeof *value); break;
    case TN_I32:
        for (int64_t i = 0; i < n; i++) ((int32_t *)to->data)[at + i] = (int32_t)value[i];
        break;
    case TN_U8:
        for (int64_t i = 0; i < n; i++) ((uint8_t *)to->data)[at + i] = (uint8_t)value[i];
        break;
    default:
        for (int64_t i = 0; i < n; i++) ((uint8_t *)to->data)[at + i] = value[i] != 0;
    }
}

static void random_range(void *user, int64_t begin, int64_t end) {
    const fill_random *job = (const fill_random *)user;
    const tn_random_spec *spec = job->spec;
    uint64_t even[DRAWS / 2], odd[DRAWS / 2];
    union {
        double number[DRAWS];
        int64_t integer[DRAWS];
    } value;
    while (begin < end) {
        uint64_t draw = spec->counter + (uint64_t)begin;
        int64_t skip = draw & 1, n = end - begin < DRAWS - skip ? end - begin : DRAWS - skip;
        make_draws(spec->seed, draw >> 1, even, odd);
        if (spec->kind == TN_RANDOM_INTEGER) {
            make_integers(even, odd, value.integer, spec->low, spec->high);
            store_integers(job->to, begin, value.integer + skip, n);
        } else if (spec->kind == TN_RANDOM_NORMAL) {
            make_normal(even, odd, value.number, spec->a, spec->b);
            store_floats(job->to, begin, value.number + skip, n, INFINITY);
        } else {
            make_uniform(even, odd, value.number, spec->a, spec->b - spec->a);
            store_floats(job->to, begin, value.number + skip, n, spec->a < spec->b ? spec->b : INFINITY);
        }
        begin += n;
    }
}

tn_status tn_cpu_random(tn_tensor *to, const tn_random_spec *spec, int threads) {
    if (spec->kind == TN_RANDOM_INTEGER && spec->low >= spec->high) return TN_ERR_ARGUMENT;
    fill_random job = { to, spec };
    tn_parallel_for(to->numel, GRAIN, random_range, &job, threads);
    return TN_OK;
}
