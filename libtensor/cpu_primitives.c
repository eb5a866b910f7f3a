#include "cpu_primitives.h"

#include <stdatomic.h>

#include "parallel.h"
#include "simd.h"
#include "transpose.h"

#define SMALL_BYTES (128 * 1024) /* below this a second thread costs more than it brings */
#define LONG_ROW 16384           /* elements of a row that are handed out at once */

/* ---- rows: n elements, strides in elements ---- */

typedef void (*row_kernel)(void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t n);

#define TYPE_F64 double
#define TYPE_F32 float
#define TYPE_BF16 tn_bf16
#define TYPE_I64 int64_t
#define TYPE_I32 int32_t
#define TYPE_U8 uint8_t
#define TYPE_BOOL uint8_t

/* What an element counts as, and that as the other dtype: from a floating or from an integer value. */
#define READ_F64(x) (x)
#define READ_F32(x) (x)
#define READ_BF16(x) tn_bf16_to_f32(x)
#define READ_I64(x) (x)
#define READ_I32(x) (x)
#define READ_U8(x) (x)
#define READ_BOOL(x) ((x) != 0)

#define FLOAT_AS_F64(x) (double)(x)
#define FLOAT_AS_F32(x) (float)(x)
#define FLOAT_AS_BF16(x) _Generic((x), float : tn_f32_to_bf16((float)(x)), default : tn_f64_to_bf16((double)(x)))
#define FLOAT_AS_I64(x) tn_saturate_i64((double)(x))
#define FLOAT_AS_I32(x) tn_saturate_i32((double)(x))
#define FLOAT_AS_U8(x) tn_saturate_u8((double)(x))
#define FLOAT_AS_BOOL(x) ((x) != 0)
#define INTEGER_AS_F64(x) (double)(x)
#define INTEGER_AS_F32(x) (float)(x)
#define INTEGER_AS_BF16(x) tn_f64_to_bf16((double)(x))
#define INTEGER_AS_I64(x) (int64_t)(x)
#define INTEGER_AS_I32(x) (int32_t)(x)
#define INTEGER_AS_U8(x) (uint8_t)(x)
#define INTEGER_AS_BOOL(x) ((x) != 0)

#define CONVERT_LOOP(FROM, TO, KIND)                                              \
    TYPE_##TO *t = (TYPE_##TO *)to;                                               \
    const TYPE_##FROM *f = (const TYPE_##FROM *)from;                             \
    if (to_stride == 1 && from_stride == 1)                                       \
        for (int64_t i = 0; i < n; i++) t[i] = KIND##_AS_##TO(READ_##FROM(f[i])); \
    else                                                                          \
        for (int64_t i = 0; i < n; i++) t[i * to_stride] = KIND##_AS_##TO(READ_##FROM(f[i * from_stride]));
#define CONVERT(FROM, TO, KIND)                                                                                                   \
    static void FROM##_to_##TO(void *restrict to, int64_t to_stride, const void *restrict from, int64_t from_stride, int64_t n) { \
        CONVERT_LOOP(FROM, TO, KIND)                                                                                              \
    }
#define CONVERT_FAST(FROM, TO, KIND)                                                                                                \
    TN_SIMD_CLONES static void FROM##_to_##TO(void *restrict to, int64_t to_stride, const void *restrict from, int64_t from_stride, \
                                              int64_t n) {                                                                          \
        CONVERT_LOOP(FROM, TO, KIND)                                                                                                \
    }

CONVERT_FAST(F64, F32, FLOAT)
CONVERT(F64, BF16, FLOAT)
CONVERT(F64, I64, FLOAT)
CONVERT(F64, I32, FLOAT)
CONVERT(F64, U8, FLOAT)
CONVERT(F64, BOOL, FLOAT)
CONVERT_FAST(F32, F64, FLOAT)
CONVERT_FAST(F32, BF16, FLOAT)
CONVERT(F32, I64, FLOAT)
CONVERT(F32, I32, FLOAT)
CONVERT(F32, U8, FLOAT)
CONVERT(F32, BOOL, FLOAT)
CONVERT_FAST(BF16, F64, FLOAT)
CONVERT_FAST(BF16, F32, FLOAT)
CONVERT(BF16, I64, FLOAT)
CONVERT(BF16, I32, FLOAT)
CONVERT(BF16, U8, FLOAT)
CONVERT(BF16, BOOL, FLOAT)
CONVERT(I64, F64, INTEGER)
CONVERT(I64, F32, INTEGER)
CONVERT(I64, BF16, INTEGER)
CONVERT(I64, I32, INTEGER)
CONVERT(I64, U8, INTEGER)
CONVERT(I64, BOOL, INTEGER)
CONVERT(I32, F64, INTEGER)
CONVERT(I32, F32, INTEGER)
CONVERT(I32, BF16, INTEGER)
CONVERT(I32, I64, INTEGER)
CONVERT(I32, U8, INTEGER)
CONVERT(I32, BOOL, INTEGER)
CONVERT(U8, F64, INTEGER)
CONVERT(U8, F32, INTEGER)
CONVERT(U8, BF16, INTEGER)
CONVERT(U8, I64, INTEGER)
CONVERT(U8, I32, INTEGER)
CONVERT(U8, BOOL, INTEGER)
CONVERT(BOOL, F64, INTEGER)
CONVERT(BOOL, F32, INTEGER)
CONVERT(BOOL, BF16, INTEGER)
CONVERT(BOOL, I64, INTEGER)
CONVERT(BOOL, I32, INTEGER)
CONVERT(BOOL, U8, INTEGER)

/* Elements moved as they are; a `from_stride` of 0 repeats one element. */
#define MOVE(name, type)                                                                              \
    static void name(void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t n) { \
        type *t = (type *)to;                                                                         \
        const type *f = (const type *)from;                                                           \
        if (to_stride == 1 && from_stride == 1) {                                                     \
            memmove(t, f, (size_t)n * sizeof *t);                                                     \
        } else if (to_stride == 1 && from_stride == 0) {                                              \
            type value = *f;                                                                          \
            for (int64_t i = 0; i < n; i++) t[i] = value;                                             \
        } else {                                                                                      \
            for (int64_t i = 0; i < n; i++) t[i * to_stride] = f[i * from_stride];                    \
        }                                                                                             \
    }
MOVE(move_8, uint8_t)
MOVE(move_16, uint16_t)
MOVE(move_32, uint32_t)
MOVE(move_64, uint64_t)

static const row_kernel convert_row[TN_DTYPE_COUNT][TN_DTYPE_COUNT] = {
    [TN_F64] = { move_64, F64_to_F32, F64_to_BF16, F64_to_I64, F64_to_I32, F64_to_U8, F64_to_BOOL },
    [TN_F32] = { F32_to_F64, move_32, F32_to_BF16, F32_to_I64, F32_to_I32, F32_to_U8, F32_to_BOOL },
    [TN_BF16] = { BF16_to_F64, BF16_to_F32, move_16, BF16_to_I64, BF16_to_I32, BF16_to_U8, BF16_to_BOOL },
    [TN_I64] = { I64_to_F64, I64_to_F32, I64_to_BF16, move_64, I64_to_I32, I64_to_U8, I64_to_BOOL },
    [TN_I32] = { I32_to_F64, I32_to_F32, I32_to_BF16, I32_to_I64, move_32, I32_to_U8, I32_to_BOOL },
    [TN_U8] = { U8_to_F64, U8_to_F32, U8_to_BF16, U8_to_I64, U8_to_I32, move_8, U8_to_BOOL },
    [TN_BOOL] = { BOOL_to_F64, BOOL_to_F32, BOOL_to_BF16, BOOL_to_I64, BOOL_to_I32, BOOL_to_U8, move_8 },
};

#define ACCUMULATE_LOOP(type, READ, WRITE)                                     \
    type *t = (type *)to;                                                      \
    const type *f = (const type *)from;                                        \
    if (to_stride == 1 && from_stride == 1)                                    \
        for (int64_t i = 0; i < n; i++) t[i] = WRITE(READ(t[i]) + READ(f[i])); \
    else                                                                       \
        for (int64_t i = 0; i < n; i++) t[i * to_stride] = WRITE(READ(t[i * to_stride]) + READ(f[i * from_stride]));
#define SAME(x) (x)
TN_SIMD_CLONES static void accumulate_f64(void *to, int64_t to_stride, const void *from, int64_t from_stride,
                                          int64_t n){ ACCUMULATE_LOOP(double, SAME, SAME) } TN_SIMD_CLONES
    static void accumulate_f32(void *to, int64_t to_stride, const void *from, int64_t from_stride,
                               int64_t n){ ACCUMULATE_LOOP(float, SAME, SAME) } TN_SIMD_CLONES
    static void accumulate_bf16(void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t n) {
    ACCUMULATE_LOOP(tn_bf16, tn_bf16_to_f32, tn_f32_to_bf16)
}

/* ---- walks: the axes of two tensors, merged where they lie behind one another, and in the order of `to`'s memory ---- */

typedef struct walk {
    int axes;
    int64_t size[TN_MAX_AXES], to_stride[TN_MAX_AXES], from_stride[TN_MAX_AXES];
} walk;

static int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

static void swap_axes(walk *w, int i, int j) {
    int64_t size = w->size[i], to = w->to_stride[i], from = w->from_stride[i];
    w->size[i] = w->size[j], w->to_stride[i] = w->to_stride[j], w->from_stride[i] = w->from_stride[j];
    w->size[j] = size, w->to_stride[j] = to, w->from_stride[j] = from;
}

static bool belongs_behind(const walk *w, int i, int j) {
    int64_t a = magnitude(w->to_stride[i]), b = magnitude(w->to_stride[j]);
    return a != b ? a < b : magnitude(w->from_stride[i]) < magnitude(w->from_stride[j]);
}

static void merge_axes(walk *w) {
    int last = 0;
    for (int i = 1; i < w->axes; i++) {
        bool joins = w->to_stride[last] == w->to_stride[i] * w->size[i] && w->from_stride[last] == w->from_stride[i] * w->size[i];
        if (joins) {
            w->size[last] *= w->size[i];
            w->to_stride[last] = w->to_stride[i];
            w->from_stride[last] = w->from_stride[i];
        } else {
            swap_axes(w, ++last, i);
        }
    }
    w->axes = last + 1;
}

/* At least one axis comes out. `from` may be NULL. With `keep_order` the walk is row-major. */
static walk make_walk(const tn_tensor *to, const tn_tensor *from, bool keep_order) {
    walk w = { .axes = 0 };
    for (int i = 0; i < to->axes; i++) {
        if (to->shape[i] == 1) continue;
        w.size[w.axes] = to->shape[i];
        w.to_stride[w.axes] = to->stride[i];
        w.from_stride[w.axes++] = from ? from->stride[i] : 0;
    }
    if (w.axes == 0) {
        w.axes = 1;
        w.size[0] = 1, w.to_stride[0] = 1, w.from_stride[0] = 1;
        return w;
    }
    if (!keep_order)
        for (int i = 1; i < w.axes; i++)
            for (int j = i; j > 0 && belongs_behind(&w, j - 1, j); j--) swap_axes(&w, j - 1, j);
    merge_axes(&w);
    return w;
}

/* Offsets of the walk's `row`-th row, axes [0, outer) counting. */
typedef struct place {
    int64_t index[TN_MAX_AXES], to, from;
} place;

static place place_at(const walk *w, int outer, int64_t row) {
    place p = { .to = 0, .from = 0 };
    for (int i = outer - 1; i >= 0; i--) {
        p.index[i] = row % w->size[i];
        row /= w->size[i];
        p.to += p.index[i] * w->to_stride[i];
        p.from += p.index[i] * w->from_stride[i];
    }
    return p;
}

static void place_next(const walk *w, int outer, place *p) {
    for (int i = outer - 1; i >= 0; i--) {
        p->to += w->to_stride[i];
        p->from += w->from_stride[i];
        if (++p->index[i] < w->size[i]) return;
        p->to -= w->size[i] * w->to_stride[i];
        p->from -= w->size[i] * w->from_stride[i];
        p->index[i] = 0;
    }
}

static int64_t rows_of(const walk *w, int outer) {
    int64_t rows = 1;
    for (int i = 0; i < outer; i++) rows *= w->size[i];
    return rows;
}

typedef struct row_job {
    walk walk;
    row_kernel kernel;
    char *to;
    const char *from;
    int64_t to_size, from_size; /* bytes of an element */
    int64_t pieces, piece;      /* a row is handed out in so many pieces of so many elements */
} row_job;

static void run_rows(void *user, int64_t begin, int64_t end) {
    const row_job *job = (const row_job *)user;
    const walk *w = &job->walk;
    int last = w->axes - 1;
    place p = place_at(w, last, begin / job->pieces);
    int64_t at = begin % job->pieces;
    for (int64_t item = begin; item < end; item++) {
        int64_t first = at * job->piece, n = w->size[last] - first < job->piece ? w->size[last] - first : job->piece;
        job->kernel(job->to + (p.to + first * w->to_stride[last]) * job->to_size, w->to_stride[last],
                    job->from + (p.from + first * w->from_stride[last]) * job->from_size, w->from_stride[last], n);
        if (++at == job->pieces) {
            at = 0;
            place_next(w, last, &p);
        }
    }
}

static void walk_rows(row_job *job, int64_t numel, int threads) {
    int64_t length = job->walk.size[job->walk.axes - 1];
    job->piece = length > 2 * LONG_ROW ? LONG_ROW : length;
    job->pieces = tn_chunk_count(length, job->piece);
    int64_t items = rows_of(&job->walk, job->walk.axes - 1) * job->pieces;
    int64_t element = job->to_size + job->from_size;
    int64_t grain = tn_even_grain(items, SMALL_BYTES / (element * job->piece) + 1, 1, threads);
    tn_parallel_for(items, grain, run_rows, job, numel * element < 2 * SMALL_BYTES ? 1 : threads);
}

/* ---- transposing copies: the last axis is dense in `to`, the one before it in `from` ---- */

#define TILE 16
#define STRIP 64 /* tiles a work item goes down, so that whole lines of `to` are written */

static void load_tile(char *tile, const char *from, int64_t from_step, int64_t rows, int64_t row_bytes, int64_t size) {
    for (int64_t i = 0; i < rows; i++) memcpy(tile + i * TILE * size, from + i * from_step, (size_t)row_bytes);
}

/* A whole tile; steps in bytes from row to row. */
#define TURN_TILE(name, type, LANES)                                                                                         \
    static void name(char *to, int64_t to_step, const char *from, int64_t from_step) {                                       \
        typedef type vector __attribute__((vector_size(16)));                                                                \
        for (int64_t i = 0; i < TILE; i += LANES)                                                                            \
            for (int64_t j = 0; j < TILE; j += LANES) {                                                                      \
                vector row[LANES], mixed[LANES];                                                                             \
                for (int r = 0; r < LANES; r++) memcpy(&row[r], from + (j + r) * from_step + i * (int64_t)sizeof(type), 16); \
                TN_TRANSPOSE(row, mixed, LANES);                                                                             \
                for (int r = 0; r < LANES; r++) memcpy(to + (i + r) * to_step + j * (int64_t)sizeof(type), &row[r], 16);     \
            }                                                                                                                \
    }
TURN_TILE(turn_tile_8, uint8_t, 16)
TURN_TILE(turn_tile_16, uint16_t, 8)
TURN_TILE(turn_tile_32, uint32_t, 4)
TURN_TILE(turn_tile_64, uint64_t, 2)

static void turn_tile(char *to, int64_t to_step, const char *from, int64_t from_step, int64_t size) {
    if (size == 1) turn_tile_8(to, to_step, from, from_step);
    if (size == 2) turn_tile_16(to, to_step, from, from_step);
    if (size == 4) turn_tile_32(to, to_step, from, from_step);
    if (size == 8) turn_tile_64(to, to_step, from, from_step);
}

typedef struct turn_job {
    walk walk;
    row_kernel kernel;
    char *to;
    const char *from;
    int64_t to_size, from_size;
    bool convert;
    int64_t bands, strips; /* of TILE by STRIP * TILE elements, per outer row */
} turn_job;

/* `columns` elements of the axis dense in `from` by rows [first, last) of the axis dense in `to`. */
static void turn_band(const turn_job *job, char *to, const char *from, int64_t columns, int64_t first, int64_t last) {
    const walk *w = &job->walk;
    int64_t to_size = job->to_size, from_size = job->from_size;
    int64_t to_step = w->to_stride[w->axes - 2] * to_size, from_step = w->from_stride[w->axes - 1] * from_size;
    _Alignas(64) char tile[TILE * TILE * 8], turned[TILE * TILE * 8];
    for (int64_t row = first; row < last; row += TILE) {
        int64_t rows = last - row < TILE ? last - row : TILE;
        if (rows == TILE && columns == TILE && !job->convert) {
            turn_tile(to + row * to_size, to_step, from + row * from_step, from_step, to_size);
            continue;
        }
        load_tile(tile, from + row * from_step, from_step, rows, columns * from_size, from_size);
        turn_tile(turned, TILE * from_size, tile, TILE * from_size, from_size);
        for (int64_t j = 0; j < columns; j++) job->kernel(to + j * to_step + row * to_size, 1, turned + j * TILE * from_size, 1, rows);
    }
}

static void run_turns(void *user, int64_t begin, int64_t end) {
    const turn_job *job = (const turn_job *)user;
    const walk *w = &job->walk;
    int outer = w->axes - 2;
    int64_t across = w->size[outer], down = w->size[outer + 1];
    for (int64_t item = begin; item < end; item++) {
        int64_t strip = item % job->strips, band = item / job->strips % job->bands;
        place p = place_at(w, outer, item / job->strips / job->bands);
        int64_t column = band * TILE, first = strip * STRIP * TILE;
        int64_t columns = across - column < TILE ? across - column : TILE;
        int64_t last = down - first < STRIP * TILE ? down : first + STRIP * TILE;
        turn_band(job, job->to + (p.to + column * w->to_stride[outer]) * job->to_size, job->from + (p.from + column) * job->from_size,
                  columns, first, last);
    }
}

/* True if the copy is one that reads across the grain; its two axes are then the last. */
static bool prepare_turn(walk *w) {
    int last = w->axes - 1;
    if (last < 1 || w->to_stride[last] != 1 || magnitude(w->from_stride[last]) <= 1 || w->size[last] < TILE / 2) return false;
    for (int i = 0; i < last; i++) {
        if (w->from_stride[i] != 1 || w->size[i] < TILE / 2) continue;
        swap_axes(w, i, last - 1);
        return true;
    }
    return false;
}

static void walk_turned(turn_job *job, int64_t numel, int threads) {
    const walk *w = &job->walk;
    job->bands = tn_chunk_count(w->size[w->axes - 2], TILE);
    job->strips = tn_chunk_count(w->size[w->axes - 1], STRIP * TILE);
    int64_t items = rows_of(w, w->axes - 2) * job->bands * job->strips;
    int64_t element = job->to_size + job->from_size;
    tn_parallel_for(items, tn_even_grain(items, 1, 1, threads), run_turns, job, numel * element < 2 * SMALL_BYTES ? 1 : threads);
}

/* ---- dense bytes ---- */

typedef struct byte_job {
    char *to;
    const char *from;
    int byte;
} byte_job;

static void copy_byte_range(void *user, int64_t begin, int64_t end) {
    const byte_job *job = (const byte_job *)user;
    memmove(job->to + begin, job->from + begin, (size_t)(end - begin));
}
static void fill_byte_range(void *user, int64_t begin, int64_t end) {
    const byte_job *job = (const byte_job *)user;
    memset(job->to + begin, job->byte, (size_t)(end - begin));
}
/* One piece a thread: the C library bypasses the caches only when it sees a piece larger than they are. */
static int64_t byte_grain(size_t bytes, int threads) {
    int64_t share = tn_chunk_count((int64_t)bytes, threads > 1 ? threads : 1);
    return share < SMALL_BYTES ? SMALL_BYTES : (share + 4095) / 4096 * 4096;
}

void tn_cpu_copy_bytes(void *to, const void *from, size_t bytes, int threads) {
    byte_job job = { (char *)to, (const char *)from, 0 };
    if (to != from) tn_parallel_for((int64_t)bytes, byte_grain(bytes, threads), copy_byte_range, &job, threads);
}

void tn_cpu_fill_bytes(void *to, unsigned char byte, size_t bytes, int threads) {
    byte_job job = { (char *)to, NULL, byte };
    tn_parallel_for((int64_t)bytes, byte_grain(bytes, threads), fill_byte_range, &job, threads);
}

/* ---- the primitives ---- */

tn_status tn_cpu_copy(tn_tensor *to, const tn_tensor *from, int threads) {
    if (to->numel == 0) return TN_OK;
    walk w = make_walk(to, from, false);
    int64_t to_size = (int64_t)tn_dtype_size(to->dtype), from_size = (int64_t)tn_dtype_size(from->dtype);
    bool dense = w.axes == 1 && w.to_stride[0] == 1 && w.from_stride[0] == 1;
    if (dense && to->dtype == from->dtype) {
        tn_cpu_copy_bytes(to->data, from->data, (size_t)(to->numel * to_size), threads);
        return TN_OK;
    }
    row_kernel kernel = convert_row[from->dtype][to->dtype];
    if (prepare_turn(&w)) {
        turn_job job = { .walk = w,
                         .kernel = kernel,
                         .to = (char *)to->data,
                         .from = (const char *)from->data,
                         .to_size = to_size,
                         .from_size = from_size,
                         .convert = to->dtype != from->dtype };
        walk_turned(&job, to->numel, threads);
        return TN_OK;
    }
    row_job job = {
        .walk = w, .kernel = kernel, .to = (char *)to->data, .from = (const char *)from->data, .to_size = to_size, .from_size = from_size
    };
    walk_rows(&job, to->numel, threads);
    return TN_OK;
}

tn_status tn_cpu_accumulate(tn_tensor *to, const tn_tensor *from, int threads) {
    static const row_kernel add_row[TN_DTYPE_COUNT] = { [TN_F64] = accumulate_f64, [TN_F32] = accumulate_f32, [TN_BF16] = accumulate_bf16 };
    if (to->dtype != from->dtype || !add_row[to->dtype]) return TN_ERR_DTYPE;
    if (to->numel == 0) return TN_OK;
    int64_t size = (int64_t)tn_dtype_size(to->dtype);
    row_job job = { .walk = make_walk(to, from, false),
                    .kernel = add_row[to->dtype],
                    .to = (char *)to->data,
                    .from = (const char *)from->data,
                    .to_size = size,
                    .from_size = size };
    walk_rows(&job, to->numel, threads);
    return TN_OK;
}

tn_status tn_cpu_fill(tn_tensor *to, double value, int threads) {
    if (to->numel == 0) return TN_OK;
    int64_t size = (int64_t)tn_dtype_size(to->dtype);
    unsigned char element[8] = { 0 };
    convert_row[TN_F64][to->dtype](element, 1, &value, 1, 1);
    walk w = make_walk(to, NULL, false);
    bool alike = memcmp(element, element + 1, (size_t)size - 1) == 0;
    if (alike && w.axes == 1 && w.to_stride[0] == 1) {
        tn_cpu_fill_bytes(to->data, element[0], (size_t)(to->numel * size), threads);
        return TN_OK;
    }
    for (int i = 0; i < w.axes; i++) w.from_stride[i] = 0;
    row_job job = { .walk = w,
                    .kernel = convert_row[to->dtype][to->dtype],
                    .to = (char *)to->data,
                    .from = (const char *)element,
                    .to_size = size,
                    .from_size = size };
    walk_rows(&job, to->numel, threads);
    return TN_OK;
}

static void arange_range(void *user, int64_t begin, int64_t end) {
    tn_tensor *to = (tn_tensor *)user;
    int64_t size = (int64_t)tn_dtype_size(to->dtype), number[256];
    for (int64_t at = begin; at < end; at += 256) {
        int64_t n = end - at < 256 ? end - at : 256;
        for (int64_t i = 0; i < n; i++) number[i] = at + i;
        convert_row[TN_I64][to->dtype]((char *)to->data + at * size, 1, number, 1, n);
    }
}

tn_status tn_cpu_arange(tn_tensor *to, int threads) {
    tn_parallel_for(to->numel, LONG_ROW, arange_range, to, threads);
    return TN_OK;
}

/* ---- the first NaN or Inf ---- */

#define FIRST_NONFINITE(name, unsigned_type, exponent)                                                     \
    TN_SIMD_CLONES static int64_t name(const void *from, int64_t stride, int64_t n) {                      \
        const unsigned_type *f = (const unsigned_type *)from;                                              \
        for (int64_t block = 0; block < n; block += 1024) {                                                \
            int64_t end = n - block < 1024 ? n : block + 1024;                                             \
            unsigned_type found = 0;                                                                       \
            if (stride == 1)                                                                               \
                for (int64_t i = block; i < end; i++) found |= (f[i] & (exponent)) == (exponent);          \
            else                                                                                           \
                for (int64_t i = block; i < end; i++) found |= (f[i * stride] & (exponent)) == (exponent); \
            if (!found) continue;                                                                          \
            for (int64_t i = block; i < end; i++)                                                          \
                if ((f[i * stride] & (exponent)) == (exponent)) return i;                                  \
        }                                                                                                  \
        return -1;                                                                                         \
    }
FIRST_NONFINITE(first_nonfinite_f64, uint64_t, UINT64_C(0x7ff0000000000000))
FIRST_NONFINITE(first_nonfinite_f32, uint32_t, UINT32_C(0x7f800000))
FIRST_NONFINITE(first_nonfinite_bf16, uint16_t, UINT16_C(0x7f80))

typedef struct find_job {
    walk walk;
    const char *from;
    int64_t size, pieces, piece;
    int64_t (*first)(const void *from, int64_t stride, int64_t n);
    _Atomic int64_t found; /* row-major index, INT64_MAX: none yet */
} find_job;

static void keep_smaller(_Atomic int64_t *found, int64_t at) {
    int64_t now = atomic_load(found);
    while (at < now && !atomic_compare_exchange_weak(found, &now, at)) {}
}

static void run_find(void *user, int64_t begin, int64_t end) {
    find_job *job = (find_job *)user;
    const walk *w = &job->walk;
    int last = w->axes - 1;
    place p = place_at(w, last, begin / job->pieces);
    for (int64_t item = begin; item < end; item++) {
        int64_t first = item % job->pieces * job->piece, n = w->size[last] - first < job->piece ? w->size[last] - first : job->piece;
        int64_t index = item / job->pieces * w->size[last] + first;
        if (index >= atomic_load(&job->found)) return;
        int64_t at = job->first(job->from + (p.to + first * w->to_stride[last]) * job->size, w->to_stride[last], n);
        if (at >= 0) {
            keep_smaller(&job->found, index + at);
            return;
        }
        if (item % job->pieces == job->pieces - 1) place_next(w, last, &p);
    }
}

int64_t tn_cpu_find_nonfinite(const tn_tensor *t, int threads) {
    static int64_t (*const first[TN_DTYPE_COUNT])(const void *, int64_t, int64_t) = {
        [TN_F64] = first_nonfinite_f64, [TN_F32] = first_nonfinite_f32, [TN_BF16] = first_nonfinite_bf16
    };
    if (t->numel == 0 || !first[t->dtype]) return -1;
    find_job job = {
        .walk = make_walk(t, NULL, true), .from = (const char *)t->data, .size = (int64_t)tn_dtype_size(t->dtype), .first = first[t->dtype]
    };
    int64_t length = job.walk.size[job.walk.axes - 1];
    job.piece = length > 2 * LONG_ROW ? LONG_ROW : length;
    job.pieces = tn_chunk_count(length, job.piece);
    atomic_init(&job.found, INT64_MAX);
    int64_t items = rows_of(&job.walk, job.walk.axes - 1) * job.pieces;
    int64_t grain = tn_even_grain(items, SMALL_BYTES / (job.size * job.piece) + 1, 1, threads);
    tn_parallel_for(items, grain, run_find, &job, threads);
    int64_t found = atomic_load(&job.found);
    return found == INT64_MAX ? -1 : found;
}
