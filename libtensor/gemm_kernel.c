#include "gemm_kernel.h"

#include "simd.h"
#include "transpose.h"

/* ---- the innermost loop: ROWS x (VECTORS of B) sums in registers ----
 *
 * c[i][j] (+)= sum over k of a[i * a_row + k * a_step] * b[k * b_step + j]. A is read where it lies, an element at a time, so its
 * strides do not matter; B comes from a packed panel. */

typedef void (*micro_kernel)(int64_t k, const void *a, int64_t a_row, int64_t a_step, const void *b, int64_t b_step, void *c, int64_t ldc,
                             bool add);

/* Unrolled early, so that the array of sums becomes registers. */
#define UNROLLED(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

/* Rows come in groups of four, so that the addresses of A take few registers. */
#define MICRO(name, T, BYTES, ROWS, VECTORS, TARGET)                                                                                      \
    TARGET static void name(int64_t k, const void *from_a, int64_t a_row, int64_t a_step, const void *from_b, int64_t b_step, void *to_c, \
                            int64_t ldc, bool add) {                                                                                      \
        typedef T vector __attribute__((vector_size(BYTES)));                                                                             \
        typedef T memory __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));                                              \
        enum { LANES = BYTES / sizeof(T), GROUPS = (ROWS + 3) / 4 };                                                                      \
        vector sum[ROWS][VECTORS];                                                                                                        \
        UNROLLED(i, ROWS)                                                                                                                 \
        UNROLLED(x, VECTORS) sum[i][x] = (vector){ 0 };                                                                                   \
        const T *group[GROUPS], *b = (const T *)from_b;                                                                                   \
        UNROLLED(g, GROUPS) group[g] = (const T *)from_a + 4 * g * a_row;                                                                 \
        const int64_t offset[4] = { 0, a_row, 2 * a_row, 3 * a_row };                                                                     \
        for (; k > 0; k--) {                                                                                                              \
            vector column[VECTORS];                                                                                                       \
            UNROLLED(x, VECTORS) column[x] = *(const memory *)(b + x * LANES);                                                            \
            UNROLLED(i, ROWS)                                                                                                             \
            UNROLLED(x, VECTORS) sum[i][x] += group[i / 4][offset[i % 4]] * column[x];                                                    \
            UNROLLED(g, GROUPS) group[g] += a_step;                                                                                       \
            b += b_step;                                                                                                                  \
        }                                                                                                                                 \
        UNROLLED(i, ROWS)                                                                                                                 \
        UNROLLED(x, VECTORS) {                                                                                                            \
            memory *to = (memory *)((T *)to_c + i * ldc + x * LANES);                                                                     \
            if (add) sum[i][x] += *to;                                                                                                    \
            *to = sum[i][x];                                                                                                              \
        }                                                                                                                                 \
    }

#define MICRO_SMALL(prefix, T, BYTES, TARGET)   \
    MICRO(prefix##_4x2, T, BYTES, 4, 2, TARGET) \
    MICRO(prefix##_4x1, T, BYTES, 4, 1, TARGET) \
    MICRO(prefix##_2x2, T, BYTES, 2, 2, TARGET) \
    MICRO(prefix##_2x1, T, BYTES, 2, 1, TARGET) \
    MICRO(prefix##_1x2, T, BYTES, 1, 2, TARGET) \
    MICRO(prefix##_1x1, T, BYTES, 1, 1, TARGET)
/* 12 rows fill 32 registers, 6 rows 16. */
#define MICRO_32(prefix, T, BYTES, TARGET)        \
    MICRO(prefix##_12x2, T, BYTES, 12, 2, TARGET) \
    MICRO(prefix##_12x1, T, BYTES, 12, 1, TARGET) \
    MICRO(prefix##_8x2, T, BYTES, 8, 2, TARGET)   \
    MICRO(prefix##_8x1, T, BYTES, 8, 1, TARGET)   \
    MICRO_SMALL(prefix, T, BYTES, TARGET)
#define MICRO_16(prefix, T, BYTES, TARGET)      \
    MICRO(prefix##_6x2, T, BYTES, 6, 2, TARGET) \
    MICRO(prefix##_6x1, T, BYTES, 6, 1, TARGET) \
    MICRO_SMALL(prefix, T, BYTES, TARGET)

typedef struct kernel_set {
    int64_t lanes; /* elements of a vector */
    int n_sizes;
    int64_t rows[5];        /* that a kernel takes, falling, the last 1 */
    micro_kernel run[5][2]; /* [.][0] one vector wide, [.][1] two */
} kernel_set;

#define SMALL_ROWS_(prefix) \
    { prefix##_4x1, prefix##_4x2 }, { prefix##_2x1, prefix##_2x2 }, { prefix##_1x1, prefix##_1x2 }
#define KERNEL_SET_32(prefix, T, BYTES)                    \
    static const kernel_set prefix = { BYTES / sizeof(T),  \
                                       5,                  \
                                       { 12, 8, 4, 2, 1 }, \
                                       { { prefix##_12x1, prefix##_12x2 }, { prefix##_8x1, prefix##_8x2 }, SMALL_ROWS_(prefix) } };
#define KERNEL_SET_16(prefix, T, BYTES) \
    static const kernel_set prefix = { BYTES / sizeof(T), 4, { 6, 4, 2, 1 }, { { prefix##_6x1, prefix##_6x2 }, SMALL_ROWS_(prefix) } };

#define NO_TARGET
MICRO_16(base_f32, float, 16, NO_TARGET)
MICRO_16(base_f64, double, 16, NO_TARGET)
KERNEL_SET_16(base_f32, float, 16)
KERNEL_SET_16(base_f64, double, 16)
#if defined(__x86_64__)
#define AVX2_TARGET __attribute__((target("avx2,fma")))
#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
MICRO_16(avx2_f32, float, 32, AVX2_TARGET)
MICRO_16(avx2_f64, double, 32, AVX2_TARGET)
KERNEL_SET_16(avx2_f32, float, 32)
KERNEL_SET_16(avx2_f64, double, 32)
MICRO_32(avx512_f32, float, 64, AVX512_TARGET)
MICRO_32(avx512_f64, double, 64, AVX512_TARGET)
KERNEL_SET_32(avx512_f32, float, 64)
KERNEL_SET_32(avx512_f64, double, 64)
#endif

static const kernel_set *choose_kernels(bool f64) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return f64 ? &avx512_f64 : &avx512_f32;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return f64 ? &avx2_f64 : &avx2_f32;
#endif
    return f64 ? &base_f64 : &base_f32;
}

/* ---- sizes ---- */

#define DEPTH 192 /* k at a time: a panel of B, two vectors wide, stays in the first-level cache */
#define TILE_ROWS 192
#define FEWEST_TILES 4  /* so that threads have something to share, where that leaves .. */
#define FEWEST_ROWS 36  /* .. rows enough to make up for packing B */
#define ROW_BYTES 512   /* of a tile of C and of packed B */
#define VECTOR_PART 256 /* elements of a C that is a vector */
#define COPIED_ROWS 24  /* of A at a time, a multiple of every kernel's rows */
#define COPY_PAD 16     /* elements between copied rows, so that they do not fall into one set of the cache */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
/* The largest even share of `whole` that is at most `limit`, rounded up to `multiple`. */
static int64_t even_share(int64_t whole, int64_t limit, int64_t multiple) {
    int64_t pieces = whole > 0 ? (whole - 1) / limit + 1 : 1, share = whole / pieces + (whole % pieces != 0);
    return smaller(limit, (share + multiple - 1) / multiple * multiple);
}

/* ---- B into panels: panel p holds columns [p * width, ..), k after k, filled up with zeros ---- */

#define PACK_ROWS(name, T, FROM, V, LOAD, STORE, LOAD_PART, LANES)                                                 \
    TN_SIMD_CLONES static void name(T *to, const FROM *b, int64_t ldb, int64_t k, int64_t n, int64_t width) {      \
        for (int64_t first = 0; first < n; first += width) {                                                       \
            T *panel = to + first * k;                                                                             \
            int64_t columns = n - first < width ? n - first : width;                                               \
            for (int64_t l = 0; l < k; l++)                                                                        \
                for (int64_t j = 0; j < width; j += LANES) {                                                       \
                    const FROM *row = b + l * ldb + first + j;                                                     \
                    V v = columns - j >= LANES ? LOAD(row) : columns > j ? LOAD_PART(row, columns - j) : (V){ 0 }; \
                    STORE(panel + l * width + j, v);                                                               \
                }                                                                                                  \
        }                                                                                                          \
    }
/* Eight f32 at a time: the narrowest kernel takes two vectors of four. */
typedef float vf8_memory __attribute__((vector_size(32), aligned(4), may_alias));
typedef double vd4_memory __attribute__((vector_size(32), aligned(8), may_alias));
TN_INLINE tn_vf8 load_8(const float *p) { return *(const vf8_memory *)p; }
TN_INLINE void store_8(float *p, tn_vf8 v) { *(vf8_memory *)p = v; }
TN_INLINE tn_vf8 load_8_part(const float *p, int64_t n) {
    float lane[8] = { 0 };
    for (int64_t i = 0; i < n; i++) lane[i] = p[i];
    return load_8(lane);
}
TN_INLINE tn_vd4 load_4(const double *p) { return *(const vd4_memory *)p; }
TN_INLINE void store_4(double *p, tn_vd4 v) { *(vd4_memory *)p = v; }
TN_INLINE tn_vd4 load_4_part(const double *p, int64_t n) {
    double lane[4] = { 0 };
    for (int64_t i = 0; i < n; i++) lane[i] = p[i];
    return load_4(lane);
}
typedef uint32_t vu8 __attribute__((vector_size(32)));
typedef uint16_t vh8 __attribute__((vector_size(16)));
TN_INLINE tn_vf8 widen_8(vh8 half) { return (tn_vf8)(__builtin_convertvector(half, vu8) << 16); }
TN_INLINE tn_vf8 load_8_bf16(const tn_bf16 *p) {
    vh8 half;
    memcpy(&half, p, sizeof half);
    return widen_8(half);
}
TN_INLINE tn_vf8 load_8_bf16_part(const tn_bf16 *p, int64_t n) {
    tn_bf16 lane[8] = { 0 };
    for (int64_t i = 0; i < n; i++) lane[i] = p[i];
    return load_8_bf16(lane);
}
PACK_ROWS(pack_f32, float, float, tn_vf8, load_8, store_8, load_8_part, 8)
PACK_ROWS(pack_f64, double, double, tn_vd4, load_4, store_4, load_4_part, 4)
PACK_ROWS(pack_bf16, float, tn_bf16, tn_vf8, load_8_bf16, store_8, load_8_bf16_part, 8)

/* From B stored [n,k]: blocks of `LANES` columns by as many k are turned in registers. */
#define PACK_COLUMNS(name, T, FROM, LANES, WRITE, SCALAR)                                                                \
    TN_SIMD_CLONES static void name(T *to, const FROM *b, int64_t ldb, int64_t k, int64_t n, int64_t width) {            \
        typedef FROM vector __attribute__((vector_size(LANES * sizeof(FROM))));                                          \
        for (int64_t j = 0; j < n; j += LANES) {                                                                         \
            T *panel = to + j / width * width * k + j % width;                                                           \
            int64_t l = 0;                                                                                               \
            if (n - j >= LANES)                                                                                          \
                for (; l + LANES <= k; l += LANES) {                                                                     \
                    vector row[LANES], mixed[LANES];                                                                     \
                    for (int r = 0; r < LANES; r++) memcpy(&row[r], b + (j + r) * ldb + l, sizeof row[r]);               \
                    TN_TRANSPOSE(row, mixed, LANES)                                                                      \
                    for (int r = 0; r < LANES; r++) WRITE(panel + (l + r) * width, row[r]);                              \
                }                                                                                                        \
            for (; l < k; l++)                                                                                           \
                for (int64_t r = 0; r < LANES; r++) panel[l * width + r] = j + r < n ? SCALAR(b[(j + r) * ldb + l]) : 0; \
        }                                                                                                                \
        clear_rest(to, sizeof(T), k, n, LANES, width);                                                                   \
    }
/* Zeros for the columns of the last panel behind the block in which n ends. */
static void clear_rest(void *to, int64_t size, int64_t k, int64_t n, int64_t lanes, int64_t width) {
    int64_t used = (n + lanes - 1) / lanes * lanes % width;
    char *panel = (char *)to + (n - 1) / width * width * k * size;
    if (used == 0) return;
    for (int64_t l = 0; l < k; l++) memset(panel + (l * width + used) * size, 0, (size_t)((width - used) * size));
}
#define SAME(x) (x)
#define WRITE_WHOLE(p, v) memcpy((p), &(v), sizeof(v))
#define WRITE_WIDE(p, v) store_8((p), widen_8(v))
PACK_COLUMNS(turn_f32, float, float, 4, WRITE_WHOLE, SAME)
PACK_COLUMNS(turn_f64, double, double, 2, WRITE_WHOLE, SAME)
PACK_COLUMNS(turn_bf16, float, tn_bf16, 8, WRITE_WIDE, tn_bf16_to_f32)

static void pack_b(const tn_gemm_problem *p, void *to, int64_t k0, int64_t j0, int64_t k, int64_t n, int64_t width) {
    int64_t at = p->tb ? j0 * p->ldb + k0 : k0 * p->ldb + j0;
    if (p->dtype == TN_F64) (p->tb ? turn_f64 : pack_f64)((double *)to, (const double *)p->b + at, p->ldb, k, n, width);
    if (p->dtype == TN_F32) (p->tb ? turn_f32 : pack_f32)((float *)to, (const float *)p->b + at, p->ldb, k, n, width);
    if (p->dtype == TN_BF16) (p->tb ? turn_bf16 : pack_bf16)((float *)to, (const tn_bf16 *)p->b + at, p->ldb, k, n, width);
}

/* ---- A: read in place, or from a copy where it must be widened or its rows fall into one set of the cache ---- */

typedef struct a_view {
    const void *first;
    int64_t row, step;
} a_view;

TN_SIMD_CLONES static void widen_row(float *to, const tn_bf16 *from, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store_8(to + i, load_8_bf16(from + i));
    for (; i < n; i++) to[i] = tn_bf16_to_f32(from[i]);
}

static bool copies_a(const tn_gemm_problem *p) {
    return p->dtype == TN_BF16 || (p->m > 1 && p->lda * (int64_t)tn_dtype_size(p->dtype) % 1024 == 0);
}

static a_view copy_a(const tn_gemm_problem *p, void *copy, int64_t i0, int64_t k0, int64_t rows, int64_t k) {
    int64_t lines = p->ta ? k : rows, length = p->ta ? rows : k, stride = (p->ta ? COPIED_ROWS : DEPTH) + COPY_PAD;
    int64_t at = p->ta ? k0 * p->lda + i0 : i0 * p->lda + k0, size = p->dtype == TN_F64 ? 8 : 4;
    for (int64_t line = 0; line < lines; line++) {
        char *to = (char *)copy + line * stride * size;
        int64_t from = at + line * p->lda;
        if (p->dtype == TN_BF16) widen_row((float *)to, (const tn_bf16 *)p->a + from, length);
        else memcpy(to, (const char *)p->a + from * size, (size_t)(length * size));
    }
    return (a_view){ copy, p->ta ? 1 : stride, p->ta ? stride : 1 };
}

static a_view view_a(const tn_gemm_problem *p, int64_t i0, int64_t k0) {
    int64_t size = (int64_t)tn_dtype_size(p->dtype);
    if (p->ta) return (a_view){ (const char *)p->a + (k0 * p->lda + i0) * size, 1, p->lda };
    return (a_view){ (const char *)p->a + (i0 * p->lda + k0) * size, p->lda, 1 };
}

/* ---- C ---- */

/* c := scale * c, without reading it where scale is 0. */
#define SCALE(name, T, READ, WRITE)                                                                                \
    static void name(T *c, int64_t ldc, int64_t m, int64_t n, double scale) {                                      \
        for (int64_t i = 0; i < m; i++)                                                                            \
            for (int64_t j = 0; j < n; j++) c[i * ldc + j] = scale == 0 ? 0 : WRITE(READ(c[i * ldc + j]) * scale); \
    }
#define AS_FLOAT(x) (float)(x)
SCALE(scale_f32, float, SAME, AS_FLOAT)
SCALE(scale_f64, double, SAME, SAME)
SCALE(scale_bf16, tn_bf16, tn_bf16_to_f32, tn_f64_to_bf16)

/* c := alpha * sum + beta * c */
#define MERGE(name, T, SUM, READ, WRITE)                                                                                         \
    TN_SIMD_CLONES static void name(T *c, int64_t ldc, const SUM *sum, int64_t lds, int64_t m, int64_t n, SUM alpha, SUM beta) { \
        for (int64_t i = 0; i < m; i++, c += ldc, sum += lds) {                                                                  \
            if (beta == 0)                                                                                                       \
                for (int64_t j = 0; j < n; j++) c[j] = WRITE(alpha * sum[j]);                                                    \
            else                                                                                                                 \
                for (int64_t j = 0; j < n; j++) c[j] = WRITE(alpha * sum[j] + beta * READ(c[j]));                                \
        }                                                                                                                        \
    }
MERGE(merge_f32, float, float, SAME, SAME)
MERGE(merge_f64, double, double, SAME, SAME)
MERGE(merge_bf16, tn_bf16, float, tn_bf16_to_f32, tn_f32_to_bf16)

static void scale_c(const tn_gemm_problem *p, int64_t i0, int64_t j0, int64_t m, int64_t n) {
    int64_t at = i0 * p->ldc + j0;
    if (p->beta == 1) return;
    if (p->dtype == TN_F64) scale_f64((double *)p->c + at, p->ldc, m, n, p->beta);
    if (p->dtype == TN_F32) scale_f32((float *)p->c + at, p->ldc, m, n, p->beta);
    if (p->dtype == TN_BF16) scale_bf16((tn_bf16 *)p->c + at, p->ldc, m, n, p->beta);
}

static void merge_c(const tn_gemm_problem *p, const void *sum, int64_t lds, int64_t i0, int64_t j0, int64_t m, int64_t n) {
    int64_t at = i0 * p->ldc + j0;
    float alpha = (float)p->alpha, beta = (float)p->beta;
    if (p->dtype == TN_F64) merge_f64((double *)p->c + at, p->ldc, (const double *)sum, lds, m, n, p->alpha, p->beta);
    if (p->dtype == TN_F32) merge_f32((float *)p->c + at, p->ldc, (const float *)sum, lds, m, n, alpha, beta);
    if (p->dtype == TN_BF16) merge_bf16((tn_bf16 *)p->c + at, p->ldc, (const float *)sum, lds, m, n, alpha, beta);
}

/* ---- a tile ---- */

typedef struct target {
    char *c;
    int64_t ldc, size; /* elements, bytes of an element */
    bool add;
} target;

/* Columns that do not fill a vector go through a buffer. */
static void run_narrow(micro_kernel run, int64_t k, a_view a, const void *b, int64_t width, target to, int64_t rows, int64_t columns) {
    _Alignas(64) char sum[12 * 2 * 64];
    run(k, a.first, a.row, a.step, b, width, sum, width, false);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            char *c = to.c + (i * to.ldc + j) * to.size;
            const char *s = sum + (i * width + j) * to.size;
            if (to.size == 8) *(double *)c = *(const double *)s + (to.add ? *(double *)c : 0);
            else *(float *)c = *(const float *)s + (to.add ? *(float *)c : 0);
        }
}

/* `rows` rows by one panel of `columns` columns. */
static void run_panel(const kernel_set *set, int64_t k, a_view a, const char *b, target to, int64_t rows, int64_t columns) {
    int64_t width = 2 * set->lanes;
    int wide = columns > set->lanes;
    bool whole = columns == width || columns == set->lanes;
    for (int s = 0; s < set->n_sizes; s++)
        for (; rows >= set->rows[s]; rows -= set->rows[s]) {
            micro_kernel run = set->run[s][wide];
            if (whole) run(k, a.first, a.row, a.step, b, width, to.c, to.ldc, to.add);
            else run_narrow(run, k, a, b, width, to, set->rows[s], columns);
            a.first = (const char *)a.first + set->rows[s] * a.row * to.size;
            to.c += set->rows[s] * to.ldc * to.size;
        }
}

static void run_panels(const kernel_set *set, int64_t k, a_view a, const char *b, target to, int64_t rows, int64_t n) {
    int64_t width = 2 * set->lanes;
    for (int64_t j = 0; j < n; j += width) {
        run_panel(set, k, a, b + j * k * to.size, to, rows, smaller(width, n - j));
        to.c += width * to.size;
    }
}

static bool is_vector(const tn_gemm_problem *p) { return p->m == 1 || p->n == 1; }

tn_gemm_tiling tn_gemm_tiles(const tn_gemm_problem *p) {
    int64_t columns = ROW_BYTES / (p->dtype == TN_F64 ? 8 : 4);
    int64_t across = p->n > 0 ? (p->n - 1) / columns + 1 : 1, pieces = (FEWEST_TILES - 1) / across + 1;
    int64_t rows = smaller(TILE_ROWS, (p->m - 1) / pieces + 1);
    tn_gemm_tiling tiling = { .rows = even_share(p->m, rows > FEWEST_ROWS ? rows : FEWEST_ROWS, 12), .columns = columns };
    if (is_vector(p)) tiling.rows = tiling.columns = VECTOR_PART;
    tiling.n_down = p->m > 0 ? (p->m - 1) / tiling.rows + 1 : 0;
    tiling.n_across = p->n > 0 ? (p->n - 1) / tiling.columns + 1 : 0;
    return tiling;
}

static void matrix_tile(const tn_gemm_problem *p, tn_gemm_tiling tiling, int64_t down, int64_t across) {
    _Alignas(64) char b[DEPTH * ROW_BYTES], sum[TILE_ROWS * ROW_BYTES], copy[DEPTH * (COPIED_ROWS + COPY_PAD) * 8];
    _Static_assert(COPIED_ROWS < DEPTH, "rows of k elements need less room than k rows");
    const kernel_set *set = choose_kernels(p->dtype == TN_F64);
    int64_t i0 = down * tiling.rows, j0 = across * tiling.columns, size = p->dtype == TN_F64 ? 8 : 4;
    int64_t m = smaller(tiling.rows, p->m - i0), n = smaller(tiling.columns, p->n - j0);
    bool direct = p->alpha == 1 && p->dtype != TN_BF16, copies = copies_a(p);
    if ((direct && p->beta != 0) || p->k == 0 || p->alpha == 0) scale_c(p, i0, j0, m, n);
    if (p->k == 0 || p->alpha == 0) return;
    target to = { sum, tiling.columns, size, false };
    if (direct) to = (target){ (char *)p->c + (i0 * p->ldc + j0) * size, p->ldc, size, p->beta != 0 };
    int64_t depth = even_share(p->k, DEPTH, 8), strip = copies ? COPIED_ROWS : m;
    for (int64_t k0 = 0; k0 < p->k; k0 += depth) {
        int64_t k = smaller(depth, p->k - k0);
        pack_b(p, b, k0, j0, k, n, 2 * set->lanes);
        for (int64_t i = 0; i < m; i += strip) {
            int64_t rows = smaller(strip, m - i);
            a_view a = copies ? copy_a(p, copy, i0 + i, k0, rows, k) : view_a(p, i0 + i, k0);
            target at = to;
            at.c += i * to.ldc * size;
            run_panels(set, k, a, b, at, rows, n);
        }
        to.add = true;
    }
    if (!direct) merge_c(p, sum, tiling.columns, i0, j0, m, n);
}

void tn_gemm_tile(const tn_gemm_problem *p, int64_t down, int64_t across) {
    tn_gemm_tiling tiling = tn_gemm_tiles(p);
    if (!is_vector(p)) {
        matrix_tile(p, tiling, down, across);
        return;
    }
    int64_t first = (down + across) * VECTOR_PART, whole = p->m == 1 ? p->n : p->m;
    tn_gemv_part(p, first, smaller(VECTOR_PART, whole - first));
}

void tn_gemm_alone(tn_dtype dtype, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc) {
    tn_gemm_problem problem = { .dtype = dtype,
                                .ta = ta,
                                .tb = tb,
                                .m = m,
                                .n = n,
                                .k = k,
                                .alpha = 1,
                                .beta = beta,
                                .a = a,
                                .b = b,
                                .c = c,
                                .lda = lda,
                                .ldb = ldb,
                                .ldc = ldc };
    tn_gemm_tiling tiling = tn_gemm_tiles(&problem);
    for (int64_t tile = 0; tile < tiling.n_down * tiling.n_across; tile++)
        tn_gemm_tile(&problem, tile / tiling.n_across, tile % tiling.n_across);
}
