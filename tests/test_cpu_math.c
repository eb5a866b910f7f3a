/* What the CPU's kernels stand on: bf16, vectors and their functions, random numbers, copies, matrix products, the devices. */
#include "harness.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libtensor/bf16.h"
#include "libtensor/blas.h"
#include "libtensor/cpu_primitives.h"
#include "libtensor/gemm_cpu.h"
#include "libtensor/gemm_kernel.h"
#include "libtensor/parallel.h"
#include "libtensor/philox.h"
#include "libtensor/simd.h"

static uint64_t dice_state;
static uint64_t dice(void) { return tn_philox_bits(20240229, dice_state++); }
static int64_t dice_below(int64_t n) { return tn_philox_integer(dice(), 0, n); }
static double dice_number(void) { return 2 * tn_philox_uniform_f64(dice()) - 1; }

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* ---- bf16 ---- */

static void bf16_round_trip(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        float x = tn_bf16_to_f32((tn_bf16)i);
        tn_bf16 back = tn_f32_to_bf16(x), direct = tn_f64_to_bf16((double)x);
        if (isnan(x)) TN_TEST_WANT(isnan(tn_bf16_to_f32(back)) && isnan(tn_bf16_to_f32(direct)), "NaN %04x became %04x", i, back);
        else TN_TEST_WANT(back == i && direct == i, "%04x became %04x and %04x", i, back, direct);
    }
}

static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (int i = 0; i < 200000; i++) {
        uint32_t bits = (uint32_t)dice() & (i % 3 ? 0xffffffffu : 0xffff8000u); /* a third of them ties */
        if ((bits & 0x7f800000) == 0x7f800000) continue;
        float x = float_of(bits), below = float_of(bits & 0xffff0000u), above = float_of((bits & 0xffff0000u) + 0x10000u);
        double down = fabs((double)x - below), up = fabs((isinf(above) ? ldexp(above > 0 ? 1 : -1, 128) : (double)above) - x);
        bool even = (bits >> 16 & 1) == 0;
        float want = down < up || (down == up && even) ? below : above;
        TN_TEST_WANT(bits_of(tn_bf16_to_f32(tn_f32_to_bf16(x))) == bits_of(want), "%a rounded to %a, not %a", x,
                     tn_bf16_to_f32(tn_f32_to_bf16(x)), want);
    }
    /* Just beside a tie of bf16, nearer to it than an f32 can say. */
    assert_int_equal(tn_f64_to_bf16(1.00390625 + 0x1p-40), 0x3f81);
    assert_int_equal(tn_f64_to_bf16(1.00390625), 0x3f80);
    assert_int_equal(tn_f64_to_bf16(-1.01171875 + 0x1p-40), 0xbf81);
    assert_int_equal(tn_f64_to_bf16(1e300), 0x7f80);
    assert_int_equal(tn_f64_to_bf16(-1e-300), 0x8000);
}

/* ---- vectors ---- */

#define MAP(name, expression)                                              \
    TN_SIMD_CLONES static void name(const float *x, float *y, int64_t n) { \
        for (int64_t i = 0; i < n; i += TN_VF_LANES) {                     \
            tn_vf v = tn_vf_load(x + i);                                   \
            tn_vf_store(y + i, expression);                                \
        }                                                                  \
    }
MAP(map_exp, tn_vf_exp(v))
MAP(map_log, tn_vf_log(v))
MAP(map_log1p, tn_vf_log1p(v))
MAP(map_tanh, tn_vf_tanh(v))
MAP(map_sigmoid, tn_vf_sigmoid(v))
MAP(map_erf, tn_vf_erf(v))
MAP(map_sin, tn_vf_sin(v))
MAP(map_cos, tn_vf_cos(v))
MAP(map_sqrt, tn_vf_sqrt(v))
MAP(map_bf16, tn_vf_from_bf16_bits(tn_vf_to_bf16_bits(v)))

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double ulp_of(double x) {
    int exponent;
    if (fabs(x) < FLT_MIN) return 0x1p-149;
    frexp(x, &exponent);
    return ldexp(1, exponent - 24);
}

/* Empty when y is what f(x) should be, else what is wrong with it. */
static const char *judge(double want, float y, double limit) {
    if (isnan(want)) return isnan(y) ? "" : "NaN is wanted";
    if (isinf((float)want)) {
        /* Half an ulp beyond the largest number rounds to infinity, and either neighbour is within the limit. */
        bool near_edge = fabs(want) < (double)FLT_MAX * (1 + 2e-7) && fabsf(y) == FLT_MAX;
        return (isinf(y) && (y > 0) == (want > 0)) || near_edge ? "" : "an infinity is wanted";
    }
    if (want == 0) return y == 0 && !signbit(y) == !signbit(want) ? "" : "a zero of that sign is wanted";
    return fabs((double)y - want) <= limit * ulp_of(want) ? "" : "it is too far off";
}

typedef struct function_case {
    const char *name;
    void (*map)(const float *x, float *y, int64_t n);
    double (*exact)(double x);
    double ulps;
} function_case;
static const function_case functions[] = {
    { "exp", map_exp, exp, 2 },
    { "log", map_log, log, 2 },
    { "log1p", map_log1p, log1p, 2 },
    { "tanh", map_tanh, tanh, 2 },
    { "sigmoid", map_sigmoid, sigmoid, 2 },
    { "erf", map_erf, erf, 4 },
    { "sin", map_sin, sin, 2 },
    { "cos", map_cos, cos, 2 },
    { "sqrt", map_sqrt, sqrt, 0.501 },
};

static void check_values(const function_case *f, const float *x, int n) {
    float y[256];
    f->map(x, y, n);
    for (int i = 0; i < n; i++) {
        const char *wrong = judge(f->exact((double)x[i]), y[i], f->ulps);
        TN_TEST_WANT(!*wrong, "%s(%a) = %a, exactly %a: %s", f->name, x[i], y[i], f->exact((double)x[i]), wrong);
    }
}

static void functions_are_accurate(void **state) {
    (void)state;
    const uint32_t stride = 20011; /* every so many of the 2^32 floats */
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        float x[256];
        for (uint64_t bits = 0; bits < UINT64_C(1) << 32;) {
            for (int i = 0; i < 256; i++, bits += stride) x[i] = float_of((uint32_t)bits);
            check_values(&functions[f], x, 256);
        }
        for (int i = 0; i < 256; i++) x[i] = (float)(i - 128) / 16;
        check_values(&functions[f], x, 256);
    }
}

static void functions_at_special_values(void **state) {
    (void)state;
    const float special[] = { 0.0f,    -0.0f,   INFINITY, -INFINITY, NAN,     -NAN,        1.0f,        -1.0f,
                              FLT_MIN, FLT_MAX, -FLT_MAX, 1e-45f,    -1e-45f, 88.7228317f, 88.7228394f, -103.97f };
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) check_values(&functions[f], special, 16);
}

static void vector_bf16_is_the_scalar_one(void **state) {
    (void)state;
    float x[256], y[256];
    for (int round = 0; round < 500; round++) {
        for (int i = 0; i < 256; i++) x[i] = float_of((uint32_t)dice() & (i % 2 ? 0xffffffffu : 0xffff8000u));
        map_bf16(x, y, 256);
        for (int i = 0; i < 256; i++)
            TN_TEST_WANT(tn_f32_to_bf16(x[i]) == bits_of(y[i]) >> 16, "%a became %a, not %a", x[i], y[i],
                         tn_bf16_to_f32(tn_f32_to_bf16(x[i])));
    }
}

TN_SIMD_CLONES static void partial_lanes(const float *x, float *y, const tn_bf16 *h, tn_bf16 *g, const double *d, double *e, int64_t n) {
    tn_vf_store_part(y, tn_vf_load_part_or(x, n, 7), n);
    y[20] = tn_vf_sum(tn_vf_load_part(x, n));
    y[21] = tn_vf_max_lane(tn_vf_load_part_or(x, n, -INFINITY));
    y[22] = tn_vf_min_lane(tn_vf_load_part_or(x, n, INFINITY));
    tn_vf_store_bf16_part(g, tn_vf_load_bf16_part(h, n), n);
    tn_vd_store_part(e, tn_vd_load_part(d, n / 2), n / 2);
    e[20] = tn_vd_sum(tn_vd_load_part(d, n / 2));
    e[21] = tn_vd_max_lane(tn_vd_load_part_or(d, n / 2, -INFINITY));
}

static void partial_loads_and_stores(void **state) {
    (void)state;
    for (int64_t n = 0; n <= 16; n++) {
        float x[16], y[24];
        tn_bf16 h[16], g[24];
        double d[8], e[24], sum = 0, sum_d = 0;
        for (int i = 0; i < 24; i++) y[i] = -1, g[i] = 99, e[i] = -1;
        for (int i = 0; i < 16; i++) x[i] = (float)(i * 5 % 16 + 1), h[i] = (tn_bf16)(i + 1);
        for (int i = 0; i < 8; i++) d[i] = i + 1;
        partial_lanes(x, y, h, g, d, e, n);
        float most = -INFINITY, least = INFINITY;
        for (int i = 0; i < 16; i++) {
            assert_true(y[i] == (i < n ? x[i] : -1) && g[i] == (i < n ? h[i] : 99));
            if (i < n) sum += x[i], most = fmaxf(most, x[i]), least = fminf(least, x[i]);
        }
        for (int i = 0; i < 8; i++) {
            assert_true(e[i] == (i < n / 2 ? d[i] : -1));
            if (i < n / 2) sum_d += d[i];
        }
        assert_true(y[20] == sum && y[21] == most && y[22] == least && e[20] == sum_d);
        assert_true(e[21] == (n / 2 ? d[n / 2 - 1] : -INFINITY));
    }
}

TN_SIMD_CLONES static void extremes(const float *a, const float *b, float *low, float *high, float *low_nan, float *high_nan, bool *any) {
    tn_vf x = tn_vf_load(a), y = tn_vf_load(b);
    tn_vf_store(low, tn_vf_min(x, y));
    tn_vf_store(high, tn_vf_max(x, y));
    tn_vf_store(low_nan, tn_vf_min_nan(x, y));
    tn_vf_store(high_nan, tn_vf_max_nan(x, y));
    *any = tn_vi_any(tn_vf_is_nan(x));
}

static void minima_and_maxima_with_nan(void **state) {
    (void)state;
    float a[16], b[16], low[16], high[16], low_nan[16], high_nan[16];
    bool any;
    for (int i = 0; i < 16; i++) a[i] = (float)(i % 4), b[i] = (float)(i / 4);
    a[3] = NAN, b[7] = NAN;
    extremes(a, b, low, high, low_nan, high_nan, &any);
    assert_true(any);
    for (int i = 0; i < 16; i++) {
        if (i == 3 || i == 7) {
            assert_true(isnan(low_nan[i]) && isnan(high_nan[i]));
            assert_true(i == 3 ? low[i] == b[i] && high[i] == b[i] : isnan(low[i]) && isnan(high[i]));
        } else {
            assert_true(low[i] == fminf(a[i], b[i]) && high[i] == fmaxf(a[i], b[i]));
            assert_true(low_nan[i] == low[i] && high_nan[i] == high[i]);
        }
    }
}

TN_SIMD_CLONES static void turn_by(const float *theta, double position, float *sine, float *cosine) {
    tn_vf s, c;
    tn_vf_sincos_f64(tn_vd16_from_vf(tn_vf_load(theta)) * position, &s, &c);
    tn_vf_store(sine, s);
    tn_vf_store(cosine, c);
}

static void angles_of_products(void **state) {
    (void)state;
    const double positions[] = { 0, 1, 77, 65535, 999999, 1000000 };
    for (size_t p = 0; p < sizeof positions / sizeof *positions; p++)
        for (int round = 0; round < 200; round++) {
            float theta[16], s[16], c[16];
            for (int i = 0; i < 16; i++) theta[i] = (float)(3 * fabs(dice_number()));
            turn_by(theta, positions[p], s, c);
            for (int i = 0; i < 16; i++) {
                double angle = fabs((double)theta[i] * positions[p]); /* an angle of 0 may lose its sign */
                TN_TEST_WANT(!*judge(sin(angle), s[i], 2) && !*judge(cos(angle), c[i], 2), "%a: sine %a, cosine %a", angle, s[i], c[i]);
            }
        }
}

/* ---- parallel loops ---- */

typedef struct visits {
    int count[1000];
    int64_t begin[1000], end[1000];
    bool nested_ok;
} visits;

static void visit_range(void *user, int64_t begin, int64_t end) {
    visits *v = user;
    for (int64_t i = begin; i < end; i++) v->count[i]++, v->begin[i] = begin, v->end[i] = end;
}
static void visit_nested(void *user, int64_t begin, int64_t end) {
    tn_parallel_for(10, 1, visit_range, &((visits *)user)[begin], 4);
    (void)end;
}

static void note_index(void *user, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) ((int *)user)[i] = tn_parallel_index();
}

/* Scratch is made for the threads of a loop; threads of the caller's own have loops of their own. */
static void parallel_index_is_of_the_loop(void **state) {
    (void)state;
    enum { CALLERS = 3, N = 8 };
    int index[CALLERS][N];
    tn_parallel_for(N, 1, note_index, index[0], 2);
    for (int i = 0; i < N; i++) assert_in_range(index[0][i], 0, 1);
    memset(index, -1, sizeof index);
#ifdef _OPENMP
#pragma omp parallel for num_threads(CALLERS)
#endif
    for (int caller = 0; caller < CALLERS; caller++) tn_parallel_for(N, 1, note_index, index[caller], 2);
    for (int caller = 0; caller < CALLERS; caller++)
        for (int i = 0; i < N; i++) assert_int_equal(index[caller][i], 0);
}

static void parallel_loops_cover_everything_once(void **state) {
    (void)state;
    visits *v = test_calloc(8, sizeof *v);
    for (int64_t n = 0; n <= 1000; n = n * 2 + 1)
        for (int64_t grain = 0; grain <= 1100; grain = grain * 3 + 1)
            for (int threads = 1; threads <= 5; threads += 2) {
                int64_t step = grain < 1 ? 1 : grain;
                memset(v, 0, sizeof *v);
                tn_parallel_for(n, grain, visit_range, v, threads);
                for (int64_t i = 0; i < n; i++) {
                    assert_int_equal(v->count[i], 1);
                    assert_int_equal(v->begin[i], i / step * step);
                    assert_int_equal(v->end[i], i / step * step + step < n ? i / step * step + step : n);
                }
            }
    memset(v, 0, 8 * sizeof *v);
    tn_parallel_for(8, 1, visit_nested, v, 4);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 10; j++) assert_int_equal(v[i].count[j], 1);
    assert_int_equal(tn_chunk_count(0, 5), 0);
    assert_int_equal(tn_chunk_count(11, 5), 3);
    assert_int_equal(tn_even_grain(1000, 10, 16, 4) % 16, 0);
    assert_true(tn_parallel_threads() >= 1 && tn_parallel_index() == 0 && !tn_parallel_inside());
    test_free(v);
}

/* ---- random numbers ---- */

static void philox_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
          { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        tn_philox_block counter;
        memcpy(counter.word, known[i].counter, sizeof counter.word);
        tn_philox_block out = tn_philox(counter, known[i].key[0], known[i].key[1]);
        assert_memory_equal(out.word, known[i].out, sizeof out.word);
    }
    assert_true(tn_philox_bits(1337, 0) == UINT64_C(0xf009740adab1c1f7) && tn_philox_bits(1337, 5) == UINT64_C(0x4292548aae7574f0));
    assert_true(tn_philox_integer(0, -3, 4) == -3 && tn_philox_integer(UINT64_MAX, -3, 4) == 3);
    assert_true(tn_philox_integer(UINT64_MAX, INT64_MIN, INT64_MAX) == INT64_MAX - 1);
    assert_true(tn_philox_integer(0, INT64_MIN, INT64_MAX) == INT64_MIN);
    assert_true(tn_philox_uniform_f64(UINT64_MAX) == 1 - 0x1p-52 && tn_philox_uniform_f32(UINT64_MAX) == 1 - 0x1p-24f);
}

static tn_tensor view(void *data, tn_dtype dtype, int axes, const int64_t *shape, const int64_t *stride) {
    tn_tensor t = { .data = data, .dtype = dtype, .axes = axes, .numel = 1 };
    for (int i = axes - 1; i >= 0; i--) {
        t.shape[i] = shape[i];
        t.stride[i] = stride ? stride[i] : t.numel;
        t.numel *= shape[i];
    }
    return t;
}
static tn_tensor vector(void *data, tn_dtype dtype, int64_t n) { return view(data, dtype, 1, &n, NULL); }

static void normal_numbers_have_these_bits(void **state) {
    (void)state;
    static const double want[] = { 0x1.7f2e8336310ffp+0, -0x1.d1b5192b09d95p+0, -0x1.c0629d279db6fp-2,
                                   0x1.365df49e9b49fp+1, -0x1.55065c576d0c8p-6, 0x1.513ea0e19234fp-2 };
    double number[6];
    tn_tensor t = vector(number, TN_F64, 6);
    tn_cpu_random(&t, &(tn_random_spec){ .kind = TN_RANDOM_NORMAL, .a = 0, .b = 1, .seed = 1337 }, 1);
    assert_memory_equal(number, want, sizeof want);
    tn_cpu_random(&t, &(tn_random_spec){ .kind = TN_RANDOM_NORMAL, .a = 3, .b = 0.5, .seed = 1337 }, 1);
    for (int i = 0; i < 6; i++) {
        volatile double scaled = 0.5 * want[i];
        assert_true(number[i] == 3 + scaled);
    }
}

/* Element i of a tensor depends on seed and counter + i alone. */
static void random_numbers_do_not_depend_on_the_cut(void **state) {
    (void)state;
    enum { N = 40000 };
    char *whole = test_malloc(N * 8), *part = test_malloc(N * 8);
    for (int dtype = 0; dtype < TN_DTYPE_COUNT; dtype++)
        for (int kind = TN_RANDOM_UNIFORM; kind <= TN_RANDOM_INTEGER; kind++) {
            size_t size = tn_dtype_size((tn_dtype)dtype);
            tn_random_spec spec = {
                .kind = (tn_random_kind)kind, .a = -2, .b = 3, .low = -100, .high = 100, .seed = 99, .counter = 1000003
            };
            tn_tensor t = vector(whole, (tn_dtype)dtype, N), u = vector(part, (tn_dtype)dtype, N);
            assert_int_equal(tn_cpu_random(&t, &spec, 1), TN_OK);
            tn_cpu_random(&u, &spec, 3);
            assert_memory_equal(whole, part, N * size);
            for (int64_t at = 1; at < 4000; at = at * 3 + 1) {
                tn_random_spec later = spec;
                later.counter += (uint64_t)at;
                u = vector(part, (tn_dtype)dtype, 700);
                tn_cpu_random(&u, &later, 2);
                assert_memory_equal(whole + (size_t)at * size, part, 700 * size);
            }
        }
    tn_tensor none = vector(whole, TN_I64, 0);
    assert_int_equal(tn_cpu_random(&none, &(tn_random_spec){ .kind = TN_RANDOM_UNIFORM }, 1), TN_OK);
    assert_int_equal(tn_cpu_random(&none, &(tn_random_spec){ .kind = TN_RANDOM_INTEGER, .low = 4, .high = 4 }, 1), TN_ERR_ARGUMENT);
    test_free(whole);
    test_free(part);
}

static void random_moments_and_ranges(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    double *x = test_malloc(N * sizeof *x);
    tn_tensor t = vector(x, TN_F64, N);
    for (int kind = 0; kind < 2; kind++) {
        tn_cpu_random(&t, &(tn_random_spec){ .kind = (tn_random_kind)kind, .a = 0, .b = 1, .seed = 5 }, 2);
        double mean = 0, variance = 0, skew = 0, kurtosis = 0, neighbours = 0;
        for (int i = 0; i < N; i++) mean += x[i] / N;
        for (int i = 0; i < N; i++) {
            double d = x[i] - mean;
            variance += d * d / N, skew += d * d * d / N, kurtosis += d * d * d * d / N;
            if (i) neighbours += d * (x[i - 1] - mean) / N;
            TN_TEST_WANT(kind == 1 || (x[i] >= 0 && x[i] < 1), "uniform number %a", x[i]);
        }
        double spread = kind ? 1 : 1.0 / 12;
        /* Within five standard errors. */
        double want[] = { kind ? 0 : 0.5, spread, 0, kind ? 3 : 1.8, 0 };
        double got[] = { mean, variance, skew / pow(spread, 1.5), kurtosis / (spread * spread), neighbours / spread };
        tn_test_near(want, got, 5, 5 * sqrt(24.0 / N), 0, kind ? "moments of normal numbers" : "moments of uniform numbers");
    }
    test_free(x);
}

/* A range so narrow that rounding to the dtype reaches its upper end. */
static void uniform_numbers_stay_below_high(void **state) {
    (void)state;
    enum { N = 20000 };
    float *f = test_malloc(N * sizeof *f);
    tn_bf16 *h = test_malloc(N * sizeof *h);
    const double ends[][2] = { { 0, 1 }, { 1, 1 + 0x1p-7 }, { -1, 0 }, { -3, -2 }, { 1e-30, 2e-30 } };
    for (size_t e = 0; e < sizeof ends / sizeof *ends; e++) {
        tn_random_spec spec = { .kind = TN_RANDOM_UNIFORM, .a = ends[e][0], .b = ends[e][1], .seed = 8 };
        tn_tensor t = vector(f, TN_F32, N), u = vector(h, TN_BF16, N);
        tn_cpu_random(&t, &spec, 1);
        tn_cpu_random(&u, &spec, 1);
        for (int i = 0; i < N; i++) {
            TN_TEST_WANT(f[i] < ends[e][1] && f[i] >= (float)ends[e][0], "f32 %a of [%a, %a)", f[i], ends[e][0], ends[e][1]);
            float x = tn_bf16_to_f32(h[i]);
            TN_TEST_WANT(x < ends[e][1] && x >= tn_bf16_to_f32(tn_f64_to_bf16(ends[e][0])) - 1e-45f, "bf16 %a of [%a, %a)", x, ends[e][0],
                         ends[e][1]);
        }
    }
    test_free(f);
    test_free(h);
}

/* ---- copies ---- */

static double read_number(const void *data, tn_dtype dtype, int64_t at) {
    switch (dtype) {
    case TN_F64: return ((const double *)data)[at];
    case TN_F32: return ((const float *)data)[at];
    case TN_BF16: return tn_bf16_to_f32(((const tn_bf16 *)data)[at]);
    case TN_I64: return (double)((const int64_t *)data)[at];
    case TN_I32: return ((const int32_t *)data)[at];
    default: return ((const uint8_t *)data)[at];
    }
}

/* What `x`, held by `from`, is in `to`; written without the tables of the library. */
static double expected_number(double x, tn_dtype from, tn_dtype to) {
    bool real = from == TN_F64 || from == TN_F32 || from == TN_BF16;
    if (to == TN_BOOL) return x != 0;
    if (to == TN_F64 || from == to) return x;
    if (to == TN_F32) return (float)x;
    if (to == TN_BF16) return tn_bf16_to_f32(tn_f64_to_bf16(x));
    double low = to == TN_I64 ? -0x1p63 : to == TN_I32 ? -0x1p31 : 0, high = to == TN_I64 ? 0x1p63 : to == TN_I32 ? 0x1p31 - 1 : 255;
    if (real) return isnan(x) ? 0 : trunc(x) < low ? low : trunc(x) > high ? high : trunc(x);
    if (to == TN_I32) return (int32_t)(uint32_t)(int64_t)x;
    if (to == TN_U8) return (uint8_t)(int64_t)x;
    return x;
}

static const double odd_numbers[] = { 0,   1,    -1,    0.5,  -0.75, 255,   256,    -1.5,    300.7, 1e9,      -1e9,      3e9,
                                      4e9, 1e19, -1e19, 1e30, 127.9, 65537, 0x1p31, -0x1p31, NAN,   INFINITY, -INFINITY, 1 + 0x1p-8 };

static void fill_numbers(void *data, tn_dtype dtype, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint64_t d = dice();
        double x = d % 4 ? (double)(int64_t)(d >> 8) / 0x1p50 : odd_numbers[d / 4 % (sizeof odd_numbers / sizeof *odd_numbers)];
        if (dtype == TN_F64) ((double *)data)[i] = x;
        if (dtype == TN_F32) ((float *)data)[i] = (float)x;
        if (dtype == TN_BF16) ((tn_bf16 *)data)[i] = tn_f64_to_bf16(x);
        if (dtype == TN_I64) ((int64_t *)data)[i] = (int64_t)(d >> (d % 40 + 12)) - 500;
        if (dtype == TN_I32) ((int32_t *)data)[i] = (int32_t)(d >> (d % 31));
        if (dtype == TN_U8) ((uint8_t *)data)[i] = (uint8_t)(d >> 9);
        if (dtype == TN_BOOL) ((uint8_t *)data)[i] = d >> 9 & 1;
    }
}

/* Offset of the row-major `index`-th element. */
static int64_t offset_of(const tn_tensor *t, int64_t index) {
    int64_t offset = 0;
    for (int i = t->axes - 1; i >= 0; i--) {
        offset += index % t->shape[i] * t->stride[i];
        index /= t->shape[i];
    }
    return offset;
}

static bool same_number(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

static void check_copy(const tn_tensor *to, const tn_tensor *from) {
    for (int64_t i = 0; i < to->numel; i++) {
        double x = read_number(from->data, from->dtype, offset_of(from, i)), y = read_number(to->data, to->dtype, offset_of(to, i));
        double want = expected_number(x, from->dtype, to->dtype);
        TN_TEST_WANT(same_number(y, want), "element %" PRId64 ": %g (%s) became %g (%s), not %g", i, x, tn_dtype_name(from->dtype), y,
                     tn_dtype_name(to->dtype), want);
    }
}

#define ROOM (1 << 18)
static void *source, *target;
static int make_room(void **state) {
    (void)state;
    source = malloc(ROOM * 8), target = malloc(ROOM * 8);
    return source && target ? 0 : -1;
}
static int free_room(void **state) {
    (void)state;
    free(source), free(target);
    return 0;
}

static void copies_convert_every_pair(void **state) {
    (void)state;
    for (int from = 0; from < TN_DTYPE_COUNT; from++)
        for (int to = 0; to < TN_DTYPE_COUNT; to++)
            for (int64_t n = 1; n < 3000; n = n * 7 + 3) {
                fill_numbers(source, (tn_dtype)from, n * 2);
                tn_tensor a = vector(source, (tn_dtype)from, n), b = vector(target, (tn_dtype)to, n);
                tn_cpu_copy(&b, &a, 2);
                check_copy(&b, &a);
                a.stride[0] = 2, b.stride[0] = 3;
                tn_cpu_copy(&b, &a, 2);
                check_copy(&b, &a);
            }
}

/* Strides of a random view with these sizes: axes in random order, gaps, broadcasts (not in `whole` ones), flips. */
static void random_strides(int axes, const int64_t *shape, bool whole, int64_t *stride, int64_t *first, int64_t *room) {
    int order[TN_MAX_AXES];
    for (int i = 0; i < axes; i++) order[i] = i;
    for (int i = axes - 1; i > 0; i--) {
        int j = (int)dice_below(i + 1), o = order[i];
        order[i] = order[j], order[j] = o;
    }
    int64_t step = 1;
    *first = 0;
    for (int i = 0; i < axes; i++) {
        int axis = order[i];
        if (dice_below(5) == 0) step *= 2;
        stride[axis] = step;
        step *= shape[axis];
        if (!whole && dice_below(5) == 0) stride[axis] = 0;
        if (stride[axis] && shape[axis] && dice_below(6) == 0) {
            *first += stride[axis] * (shape[axis] - 1);
            stride[axis] = -stride[axis];
        }
    }
    *room = step;
}

static void copies_follow_any_strides(void **state) {
    (void)state;
    for (int round = 0; round < 1500; round++) {
        int axes = (int)dice_below(5);
        int64_t shape[TN_MAX_AXES], a_stride[TN_MAX_AXES], b_stride[TN_MAX_AXES], a_first, b_first, a_room, b_room;
        for (int i = 0; i < axes; i++) shape[i] = dice_below(round % 5 == 0 ? 40 : 7) + (dice_below(20) != 0);
        random_strides(axes, shape, false, a_stride, &a_first, &a_room);
        random_strides(axes, shape, true, b_stride, &b_first, &b_room);
        if (a_room > ROOM || b_room > ROOM) continue;
        tn_dtype from = (tn_dtype)dice_below(TN_DTYPE_COUNT), to = dice_below(2) ? from : (tn_dtype)dice_below(TN_DTYPE_COUNT);
        fill_numbers(source, from, a_room);
        tn_tensor a = view((char *)source + (size_t)a_first * tn_dtype_size(from), from, axes, shape, a_stride);
        tn_tensor b = view((char *)target + (size_t)b_first * tn_dtype_size(to), to, axes, shape, b_stride);
        tn_test_note("round %d", round);
        assert_int_equal(tn_cpu_copy(&b, &a, 1 + round % 3), TN_OK);
        check_copy(&b, &a);
    }
}

static void copies_transpose(void **state) {
    (void)state;
    static const int64_t sizes[][2] = { { 16, 16 }, { 17, 33 }, { 8, 500 }, { 500, 9 }, { 128, 256 }, { 31, 1030 }, { 300, 300 } };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int from = 0; from < TN_DTYPE_COUNT; from++)
            for (int to = 0; to < TN_DTYPE_COUNT; to += 1 + (to == from)) {
                int64_t m = sizes[s][0], n = sizes[s][1], shape[3] = { 2, m, n }, a_stride[3] = { m * n, 1, m };
                fill_numbers(source, (tn_dtype)from, 2 * m * n);
                tn_tensor a = view(source, (tn_dtype)from, 3, shape, a_stride), b = view(target, (tn_dtype)to, 3, shape, NULL);
                tn_cpu_copy(&b, &a, 2);
                check_copy(&b, &a);
            }
}

static void dense_copies_and_zero_sizes(void **state) {
    (void)state;
    const int64_t shape[2] = { 0, 5 }, huge[2] = { 3, 0 };
    tn_tensor none = view(NULL, TN_F32, 2, shape, NULL), also = view(NULL, TN_BF16, 2, huge, NULL);
    assert_int_equal(tn_cpu_copy(&none, &none, 2), TN_OK);
    assert_int_equal(tn_cpu_copy(&also, &also, 2), TN_OK);
    assert_int_equal(tn_cpu_fill(&none, 1, 2), TN_OK);
    assert_int_equal(tn_cpu_accumulate(&none, &none, 2), TN_OK);
    assert_int_equal(tn_cpu_arange(&none, 2), TN_OK);
    assert_true(tn_cpu_find_nonfinite(&none, 2) == -1);
    fill_numbers(source, TN_I64, ROOM);
    for (size_t bytes = 0; bytes < ROOM * 8; bytes = bytes * 5 + 3) {
        memset(target, 0, bytes + 1);
        tn_cpu_copy_bytes(target, source, bytes, 3);
        assert_int_equal(memcmp(target, source, bytes), 0);
        assert_int_equal(((char *)target)[bytes], 0);
    }
}

static void fills_and_ranges(void **state) {
    (void)state;
    static const double values[] = { 0, 1.5, -3, 300, NAN, -INFINITY };
    for (int dtype = 0; dtype < TN_DTYPE_COUNT; dtype++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            tn_tensor dense = vector(target, (tn_dtype)dtype, 70000);
            const int64_t shape[3] = { 3, 5, 50 }, stride[3] = { 1000, 1, 7 };
            tn_cpu_fill(&dense, -7, 2);
            tn_tensor gaps = view(target, (tn_dtype)dtype, 3, shape, stride);
            double around = expected_number(-7, TN_F64, (tn_dtype)dtype), want = expected_number(values[v], TN_F64, (tn_dtype)dtype);
            tn_cpu_fill(&gaps, values[v], 2);
            for (int64_t i = 0; i < gaps.numel; i++)
                TN_TEST_WANT(same_number(read_number(target, (tn_dtype)dtype, offset_of(&gaps, i)), want), "element %" PRId64, i);
            for (int64_t i = 0; i < 70000; i++)
                if (i / 1000 > 2 || i % 1000 > 4 + 7 * 49) assert_true(read_number(target, (tn_dtype)dtype, i) == around);
            tn_cpu_fill(&dense, values[v], 2);
            for (int64_t i = 0; i < 70000; i += 13) assert_true(same_number(read_number(target, (tn_dtype)dtype, i), want));
            tn_cpu_arange(&dense, 2);
            for (int64_t i = 0; i < 70000; i += 11)
                assert_true(read_number(target, (tn_dtype)dtype, i) == expected_number((double)i, TN_I64, (tn_dtype)dtype));
        }
}

static void accumulating(void **state) {
    (void)state;
    for (int round = 0; round < 300; round++) {
        const int64_t shape[3] = { 1 + dice_below(9), 1 + dice_below(30), 1 + dice_below(200) };
        int64_t a_stride[3], b_stride[3], a_first, b_first, a_room, b_room;
        random_strides(3, shape, false, a_stride, &a_first, &a_room);
        random_strides(3, shape, true, b_stride, &b_first, &b_room);
        if (a_room > ROOM || b_room > ROOM) continue;
        tn_dtype dtype = (tn_dtype)(round % 3);
        for (int64_t i = 0; i < a_room; i++) { /* small integers: exact in every dtype */
            double x = (double)dice_below(50);
            expected_number(x, TN_F64, dtype);
            if (dtype == TN_F64) ((double *)source)[i] = x;
            if (dtype == TN_F32) ((float *)source)[i] = (float)x;
            if (dtype == TN_BF16) ((tn_bf16 *)source)[i] = tn_f64_to_bf16(x);
        }
        tn_tensor a = view((char *)source + (size_t)a_first * tn_dtype_size(dtype), dtype, 3, shape, a_stride);
        tn_tensor b = view((char *)target + (size_t)b_first * tn_dtype_size(dtype), dtype, 3, shape, b_stride);
        tn_cpu_fill(&b, 4, 1);
        assert_int_equal(tn_cpu_accumulate(&b, &a, 2), TN_OK);
        for (int64_t i = 0; i < b.numel; i++)
            assert_true(read_number(b.data, dtype, offset_of(&b, i)) == 4 + read_number(a.data, dtype, offset_of(&a, i)));
    }
    tn_tensor integer = vector(target, TN_I64, 3), real = vector(source, TN_F32, 3);
    assert_int_equal(tn_cpu_accumulate(&integer, &integer, 1), TN_ERR_DTYPE);
    assert_int_equal(tn_cpu_accumulate(&integer, &real, 1), TN_ERR_DTYPE);
}

static void set_number(tn_tensor *t, int64_t index, double x) {
    int64_t at = offset_of(t, index);
    if (t->dtype == TN_F64) ((double *)t->data)[at] = x;
    if (t->dtype == TN_F32) ((float *)t->data)[at] = (float)x;
    if (t->dtype == TN_BF16) ((tn_bf16 *)t->data)[at] = tn_f64_to_bf16(x);
}

static void first_nonfinite(void **state) {
    (void)state;
    for (int dtype = TN_F64; dtype <= TN_BF16; dtype++)
        for (int turned = 0; turned < 2; turned++) {
            const int64_t shape[2] = { 300, 401 }, stride[2] = { 1, 300 };
            tn_tensor t = view(target, (tn_dtype)dtype, 2, shape, turned ? stride : NULL);
            tn_cpu_fill(&t, 1, 2);
            assert_true(tn_cpu_find_nonfinite(&t, 2) == -1);
            const int64_t places[] = { 120299, 70001, 401, 1, 0 };
            for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
                set_number(&t, places[p], p % 2 ? NAN : -INFINITY);
                assert_true(tn_cpu_find_nonfinite(&t, 1) == places[p] && tn_cpu_find_nonfinite(&t, 3) == places[p]);
            }
        }
    tn_tensor integer = vector(target, TN_I32, 10);
    assert_true(tn_cpu_find_nonfinite(&integer, 1) == -1);
}

/* ---- matrix products ---- */

typedef struct matrices {
    tn_gemm_batch call;
    double *want; /* [batch][m][n] */
    void *a, *b, *c, *before;
    size_t c_bytes;
} matrices;

static void *random_matrix(tn_dtype dtype, int64_t n) {
    char *data = calloc((size_t)n + 1, 8);
    assert_non_null(data);
    for (int64_t i = 0; i < n; i++) {
        tn_tensor one = vector(data + (size_t)i * tn_dtype_size(dtype), dtype, 1);
        set_number(&one, 0, dice_number());
    }
    return data;
}

static matrices make_matrices(tn_gemm_batch call, int64_t pad, bool shared_b) {
    int64_t a_rows = call.ta ? call.k : call.m, b_rows = call.tb ? call.n : call.k;
    call.lda = (call.ta ? call.m : call.k) + pad, call.ldb = (call.tb ? call.k : call.n) + pad, call.ldc = call.n + pad;
    call.stride_a = a_rows * call.lda + pad, call.stride_b = shared_b ? 0 : b_rows * call.ldb, call.stride_c = call.m * call.ldc;
    matrices x = { .call = call };
    size_t size = tn_dtype_size(call.dtype);
    x.c_bytes = (size_t)(call.n_batch * call.stride_c) * size;
    x.call.a = x.a = random_matrix(call.dtype, call.n_batch * call.stride_a);
    x.call.b = x.b = random_matrix(call.dtype, call.n_batch * b_rows * call.ldb);
    x.call.c = x.c = random_matrix(call.dtype, call.n_batch * call.stride_c);
    x.before = malloc(x.c_bytes + 1);
    x.want = calloc((size_t)(call.n_batch * call.m * call.n) + 1, sizeof *x.want);
    assert_true(x.before && x.want);
    memcpy(x.before, x.c, x.c_bytes);
    return x;
}

static void free_matrices(matrices *x) { free(x->a), free(x->b), free(x->c), free(x->before), free(x->want); }

static double *numbers_of(const void *data, tn_dtype dtype, int64_t n) {
    double *number = malloc((size_t)(n + 1) * sizeof *number);
    assert_non_null(number);
    for (int64_t i = 0; i < n; i++) number[i] = read_number(data, dtype, i);
    return number;
}

static void expect_product(matrices *x) {
    const tn_gemm_batch *c = &x->call;
    double *a = numbers_of(x->a, c->dtype, c->n_batch * c->stride_a);
    double *b = numbers_of(x->b, c->dtype, c->n_batch * (c->tb ? c->n : c->k) * c->ldb);
    for (int64_t s = 0; s < c->n_batch; s++)
        for (int64_t i = 0; i < c->m; i++)
            for (int64_t j = 0; j < c->n; j++) {
                const double *row = a + s * c->stride_a + (c->ta ? i : i * c->lda),
                             *column = b + s * c->stride_b + (c->tb ? j * c->ldb : j);
                int64_t along_a = c->ta ? c->lda : 1, along_b = c->tb ? 1 : c->ldb;
                double sum = 0, before = read_number(x->before, c->dtype, s * c->stride_c + i * c->ldc + j);
                for (int64_t l = 0; l < c->k; l++) sum += row[l * along_a] * column[l * along_b];
                x->want[(s * c->m + i) * c->n + j] = (c->alpha == 0 ? 0 : c->alpha * sum) + (c->beta == 0 ? 0 : c->beta * before);
            }
    free(a), free(b);
}

static void compare_product(const matrices *x) {
    const tn_gemm_batch *c = &x->call;
    double unit = c->dtype == TN_F64 ? 0x1p-53 : c->dtype == TN_F32 ? 0x1p-24 : 0x1p-8;
    double scale = fabs(c->alpha) * sqrt((double)c->k + 1) + fabs(c->beta) + 1e-300;
    double accumulated = (c->dtype == TN_F64 ? 0x1p-53 : 0x1p-24) * (double)(c->k + 4);
    for (int64_t s = 0; s < c->n_batch; s++)
        for (int64_t i = 0; i < c->m; i++) {
            for (int64_t j = 0; j < c->n; j++) {
                double want = x->want[(s * c->m + i) * c->n + j], got = read_number(x->c, c->dtype, s * c->stride_c + i * c->ldc + j);
                TN_TEST_WANT(fabs(got - want) <= unit * fabs(want) + accumulated * scale,
                             "[%" PRId64 ",%" PRId64 ",%" PRId64 "] %a, not %a", s, i, j, got, want);
            }
            for (int64_t j = c->n; j < c->ldc; j++) { /* what lies between the rows is not touched */
                int64_t at = s * c->stride_c + i * c->ldc + j;
                assert_true(read_number(x->c, c->dtype, at) == read_number(x->before, c->dtype, at));
            }
        }
}

static void note_product(const tn_gemm_batch *c) {
    tn_test_note("%s %c%c batch %" PRId64 ", m %" PRId64 ", n %" PRId64 ", k %" PRId64 ", alpha %g, beta %g", tn_dtype_name(c->dtype),
                 "NT"[c->ta], "NT"[c->tb], c -> n_batch, c -> m, c -> n, c -> k, c -> alpha, c -> beta);
}

static void products_are_right(void **state) {
    (void)state;
    static const int64_t sizes[][3] = { { 1, 1, 1 },       { 1, 7, 5 },      { 5, 1, 9 },     { 1, 300, 40 },  { 300, 1, 2100 },
                                        { 1, 3, 2100 },    { 2, 3, 4 },      { 12, 32, 8 },   { 13, 33, 17 },  { 24, 48, 16 },
                                        { 31, 5, 200 },    { 64, 64, 64 },   { 100, 16, 31 }, { 7, 130, 193 }, { 193, 129, 5 },
                                        { 50, 70, 400 },   { 90, 90, 90 },   { 4, 4, 0 },     { 0, 4, 3 },     { 5, 0, 3 },
                                        { 129, 131, 133 }, { 17, 256, 1024 } };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int dtype = TN_F64; dtype <= TN_BF16; dtype++)
            for (int form = 0; form < 12; form++) {
                double alphas[] = { 1, 1, -0.5 }, betas[] = { 0, 1, 0.25 };
                matrices x = make_matrices((tn_gemm_batch){ .dtype = (tn_dtype)dtype,
                                                            .ta = form & 1,
                                                            .tb = form & 2,
                                                            .n_batch = 1,
                                                            .m = sizes[s][0],
                                                            .n = sizes[s][1],
                                                            .k = sizes[s][2],
                                                            .alpha = alphas[form / 4],
                                                            .beta = betas[form / 4],
                                                            .threads = 2 },
                                           form % 3, false);
                note_product(&x.call);
                expect_product(&x);
                assert_int_equal(tn_gemm_batched(&x.call), TN_OK);
                compare_product(&x);
                free_matrices(&x);
            }
}

static void batched_products_are_right(void **state) {
    (void)state;
    static const int64_t sizes[][4] = { { 5, 3, 4, 5 },      { 64, 16, 16, 16 },   { 3, 1, 50, 20 }, { 4, 60, 1, 33 },
                                        { 2, 130, 140, 60 }, { 2, 270, 260, 250 }, { 0, 3, 3, 3 } };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int dtype = TN_F64; dtype <= TN_BF16; dtype++)
            for (int form = 0; form < 8; form++) {
                if (sizes[s][1] > 200 && form % 4) continue;
                matrices x = make_matrices((tn_gemm_batch){ .dtype = (tn_dtype)dtype,
                                                            .ta = form & 1,
                                                            .tb = form & 2,
                                                            .n_batch = sizes[s][0],
                                                            .m = sizes[s][1],
                                                            .n = sizes[s][2],
                                                            .k = sizes[s][3],
                                                            .alpha = 1,
                                                            .beta = form % 3 / 2.0,
                                                            .threads = 1 + form % 3 },
                                           form % 2, form & 4);
                note_product(&x.call);
                expect_product(&x);
                assert_int_equal(tn_gemm_batched(&x.call), TN_OK);
                compare_product(&x);
                free_matrices(&x);
            }
}

/* Every tile by our own kernel, also where OpenBLAS would have been called. */
static void own_kernel_is_right(void **state) {
    (void)state;
    static const int64_t sizes[][3] = { { 205, 140, 400 }, { 200, 70, 256 }, { 48, 256, 1024 } };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int dtype = TN_F64; dtype <= TN_BF16; dtype++)
            for (int form = 0; form < 4; form++) {
                matrices x = make_matrices((tn_gemm_batch){ .dtype = (tn_dtype)dtype,
                                                            .ta = form & 1,
                                                            .tb = form & 2,
                                                            .n_batch = 1,
                                                            .m = sizes[s][0],
                                                            .n = sizes[s][1],
                                                            .k = sizes[s][2],
                                                            .alpha = 1,
                                                            .beta = form == 3 ? 0.5 : 0 },
                                           0, false);
                const tn_gemm_batch *c = &x.call;
                tn_gemm_problem p = {
                    c->dtype, c->ta, c->tb, c->m, c->n, c->k, c->alpha, c->beta, c->a, c->b, c->c, c->lda, c->ldb, c->ldc
                };
                tn_gemm_tiling tiling = tn_gemm_tiles(&p);
                note_product(c);
                expect_product(&x);
                for (int64_t i = tiling.n_down - 1; i >= 0; i--)
                    for (int64_t j = 0; j < tiling.n_across; j++) tn_gemm_tile(&p, i, j);
                compare_product(&x);
                free_matrices(&x);
            }
}

static void products_and_nan(void **state) {
    (void)state;
    static const int64_t sizes[] = { 3, 20, 150 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int dtype = TN_F64; dtype <= TN_BF16; dtype++) {
            int64_t n = sizes[s];
            matrices x = make_matrices(
                (tn_gemm_batch){ .dtype = (tn_dtype)dtype, .n_batch = 1, .m = n, .n = n, .k = n, .alpha = 1, .beta = 0, .threads = 2 }, 0,
                false);
            tn_tensor a = vector(x.a, (tn_dtype)dtype, n * n), c = vector(x.c, (tn_dtype)dtype, n * n);
            tn_cpu_fill(&c, NAN, 1); /* beta = 0 does not read C */
            expect_product(&x);
            assert_int_equal(tn_gemm_batched(&x.call), TN_OK);
            compare_product(&x);
            set_number(&a, n + 1, NAN); /* row 1 of A */
            tn_gemm_batched(&x.call);
            for (int64_t i = 0; i < n * n; i++) assert_true(isnan(read_number(x.c, (tn_dtype)dtype, i)) == (i / n == 1));
            x.call.alpha = 0, x.call.beta = 0; /* nothing is read */
            tn_gemm_batched(&x.call);
            for (int64_t i = 0; i < n * n; i++) assert_true(read_number(x.c, (tn_dtype)dtype, i) == 0);
            free_matrices(&x);
        }
}

static void products_refuse_nonsense(void **state) {
    (void)state;
    float a[12] = { 0 }, c[12] = { 0 };
    assert_int_equal(tn_gemm_f32(false, false, 3, 4, 2, 1, a, 1, a, 4, 0, c, 4, 1, NULL), TN_ERR_ARGUMENT);
    assert_int_equal(tn_gemm_f32(false, false, 3, 4, 2, 1, a, 2, a, 3, 0, c, 4, 1, NULL), TN_ERR_ARGUMENT);
    assert_int_equal(tn_gemm_f32(false, false, 3, 4, 2, 1, a, 2, a, 4, 0, c, 3, 1, NULL), TN_ERR_ARGUMENT);
    assert_int_equal(tn_gemm_f64(false, false, -1, 4, 2, 1, a, 2, a, 4, 0, c, 4, 1, NULL), TN_ERR_ARGUMENT);
    assert_int_equal(tn_gemm_batched(&(tn_gemm_batch){ .dtype = TN_I32 }), TN_ERR_DTYPE);
    assert_int_equal(tn_gemm_bf16(true, false, 0, 4, 2, 1, NULL, 0, NULL, 4, 0, NULL, 4, 1, NULL), TN_OK);
}

static void products_repeat_bit_for_bit(void **state) {
    (void)state;
    static const int64_t sizes[] = { 40, 150, 300 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int dtype = TN_F64; dtype <= TN_BF16; dtype++) {
            matrices x = make_matrices((tn_gemm_batch){ .dtype = (tn_dtype)dtype,
                                                        .tb = true,
                                                        .n_batch = 2,
                                                        .m = sizes[s],
                                                        .n = sizes[s],
                                                        .k = sizes[s],
                                                        .alpha = 1,
                                                        .beta = 0,
                                                        .threads = 2 },
                                       0, false);
            tn_gemm_batched(&x.call);
            memcpy(x.before, x.c, x.c_bytes);
            tn_gemm_batched(&x.call);
            assert_memory_equal(x.before, x.c, x.c_bytes);
            free_matrices(&x);
        }
}

static void openblas_says_what_it_is(void **state) {
    (void)state;
    const char *before = getenv("OPENBLAS_CORETYPE");
    const tn_blas *blas = tn_blas_get();
    const char *after = getenv("OPENBLAS_CORETYPE");
    assert_true((!before && !after) || (before && after && strcmp(before, after) == 0));
    assert_ptr_equal(blas, tn_blas_get());
    if (!blas) skip();
    assert_true(strlen(blas->description) > 0);
    int threads = tn_blas_begin(blas, 1);
    tn_blas_end(blas, threads);
}

/* ---- devices ---- */

static void cpu_device_memory(void **state) {
    (void)state;
    char reason[200] = "";
    tn_device *device = tn_device_open_cpu(2, reason, sizeof reason);
    assert_non_null(device);
    assert_true(device->kind == TN_DEVICE_CPU && !device->dry_run && device->threads == 2 && strstr(device->detail, "2 threads"));
    static const size_t sizes[] = { 1, 512, 4096, 5000, (size_t)2 << 20, ((size_t)5 << 20) + 1 };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        void *memory = NULL;
        assert_int_equal(device->interface->segment_alloc(device, sizes[s], &memory), TN_OK);
        assert_int_equal((uintptr_t)memory % (sizes[s] >= (size_t)2 << 20 ? (size_t)2 << 20 : 512), 0);
        size_t at = 0;
        device->interface->fill_bytes(device, memory, 0xab, sizes[s], 0);
        device->interface->find_other_byte(device, memory, 0xab, sizes[s], &at);
        assert_int_equal(at, sizes[s]);
        ((unsigned char *)memory)[sizes[s] - 1] = 0;
        device->interface->find_other_byte(device, memory, 0xab, sizes[s], &at);
        assert_int_equal(at, sizes[s] - 1);
        device->interface->segment_free(device, memory, sizes[s]);
    }
    void *none = NULL;
    assert_int_equal(device->interface->segment_alloc(device, (size_t)1 << 60, &none), TN_ERR_MEMORY);
    assert_int_equal(device->interface->segment_alloc(device, SIZE_MAX, &none), TN_ERR_MEMORY);
    assert_true(strlen(device->failure) > 0);
    tn_stream first, second;
    device->interface->stream_create(device, &first);
    device->interface->stream_create(device, &second);
    assert_true(first > 0 && second > first);
    device->interface->close(device);
}

static void dry_run_device(void **state) {
    (void)state;
    char reason[200] = "";
    tn_device *device = tn_device_open_dry_run(TN_DEVICE_CUDA, reason, sizeof reason);
    assert_non_null(device);
    assert_true(device->dry_run && device->kind == TN_DEVICE_CUDA && strcmp(device->name, "dry-run") == 0);
    void *a = NULL, *b = NULL, *c = NULL;
    assert_int_equal(device->interface->segment_alloc(device, (size_t)3 << 20, &a), TN_OK);
    assert_int_equal(device->interface->segment_alloc(device, (size_t)1 << 45, &b), TN_OK);
    assert_true((uintptr_t)a >= (uintptr_t)1 << 40 && (uintptr_t)a % ((uintptr_t)2 << 20) == 0 &&
                (uintptr_t)b >= (uintptr_t)a + ((uintptr_t)3 << 20));
    assert_int_equal(device->interface->segment_alloc(device, (size_t)1 << 53, &c), TN_ERR_MEMORY);
    double x = 1;
    tn_tensor t = vector(a, TN_F64, 1);
    assert_int_equal(device->interface->fill(device, &t, 3, 0), TN_OK);
    assert_int_equal(device->interface->copy_from_host(device, a, &x, 8, 0), TN_OK);
    assert_int_equal(device->interface->copy_to_host(device, &x, a, 8, 0), TN_ERR_UNSUPPORTED);
    assert_true(strlen(device->failure) > 0 && x == 1);
    int64_t at = 0;
    assert_int_equal(device->interface->find_nonfinite(device, &t, &at, 0), TN_OK);
    assert_true(at == -1);
    device->interface->close(device);
}

static const struct CMUnitTest cases[] = {
    cmocka_unit_test(bf16_round_trip),
    cmocka_unit_test(bf16_rounds_to_nearest_even),
    cmocka_unit_test(functions_are_accurate),
    cmocka_unit_test(functions_at_special_values),
    cmocka_unit_test(vector_bf16_is_the_scalar_one),
    cmocka_unit_test(partial_loads_and_stores),
    cmocka_unit_test(minima_and_maxima_with_nan),
    cmocka_unit_test(angles_of_products),
    cmocka_unit_test(parallel_loops_cover_everything_once),
    cmocka_unit_test(parallel_index_is_of_the_loop),
    cmocka_unit_test(philox_known_answers),
    cmocka_unit_test(normal_numbers_have_these_bits),
    cmocka_unit_test(random_numbers_do_not_depend_on_the_cut),
    cmocka_unit_test(random_moments_and_ranges),
    cmocka_unit_test(uniform_numbers_stay_below_high),
    cmocka_unit_test_setup_teardown(copies_convert_every_pair, make_room, free_room),
    cmocka_unit_test_setup_teardown(copies_follow_any_strides, make_room, free_room),
    cmocka_unit_test_setup_teardown(copies_transpose, make_room, free_room),
    cmocka_unit_test_setup_teardown(dense_copies_and_zero_sizes, make_room, free_room),
    cmocka_unit_test_setup_teardown(fills_and_ranges, make_room, free_room),
    cmocka_unit_test_setup_teardown(accumulating, make_room, free_room),
    cmocka_unit_test_setup_teardown(first_nonfinite, make_room, free_room),
    cmocka_unit_test(products_are_right),
    cmocka_unit_test(batched_products_are_right),
    cmocka_unit_test(own_kernel_is_right),
    cmocka_unit_test(products_and_nan),
    cmocka_unit_test(products_refuse_nonsense),
    cmocka_unit_test(products_repeat_bit_for_bit),
    cmocka_unit_test(openblas_says_what_it_is),
    cmocka_unit_test(cpu_device_memory),
    cmocka_unit_test(dry_run_device),
};
TN_TEST_MAIN("test_cpu_math", cases)
