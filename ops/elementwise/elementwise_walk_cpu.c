#include "elementwise_walk_cpu.h"

#include <string.h>

#include "../../libtensor/bf16.h"
#include "../../libtensor/parallel.h"
#include "../../libtensor/simd.h"

#define PANEL_BYTES 8192
#define PANEL_MOST (PANEL_BYTES / 4)
#define PLAIN_BLOCK 4096
#define SMALLEST_GRAIN 16384 /* elements below which a second thread is not worth its start */
#define SPLIT_FROM 65536     /* elements from which few long sums are cut into segments */
#define SPLIT_TASKS 64
#define FETCHED_BYTES 1024

static const size_t compute_bytes[TN_COMPUTE_COUNT] = { sizeof(double), sizeof(float), sizeof(int64_t) };

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- between dtypes ---- */

TN_SIMD_CLONES static void widen_bf16(float *to, const tn_bf16 *from, int64_t n) {
    for (int64_t i = 0; i < n; i += TN_VF_LANES) tn_vf_store_part(to + i, tn_vf_load_bf16_part(from + i, n - i), n - i);
}
TN_SIMD_CLONES static void narrow_bf16(tn_bf16 *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i += TN_VF_LANES) tn_vf_store_bf16_part(to + i, tn_vf_load_part(from + i, n - i), n - i);
}

#define AS_IS(v) (v)
#define IS_SET(v) ((v) != 0)

/* Reads n elements `stride` apart as the type that is computed in. */
#define READ(name, type, from_type, convert)                                     \
    static void name(void *to, const void *from, int64_t stride, int64_t n) {    \
        type *restrict t = to;                                                   \
        const from_type *restrict f = from;                                      \
        if (stride == 1)                                                         \
            for (int64_t i = 0; i < n; i++) t[i] = (type)convert(f[i]);          \
        else if (stride == 0)                                                    \
            for (int64_t i = 0; i < n; i++) t[i] = (type)convert(f[0]);          \
        else                                                                     \
            for (int64_t i = 0; i < n; i++) t[i] = (type)convert(f[i * stride]); \
    }
#define WRITE(name, type, to_type, convert)                            \
    static void name(void *to, const void *from, int64_t n) {          \
        to_type *restrict t = to;                                      \
        const type *restrict f = from;                                 \
        for (int64_t i = 0; i < n; i++) t[i] = (to_type)convert(f[i]); \
    }

READ(f64_from_f64, double, double, AS_IS)
READ(f64_from_f32, double, float, AS_IS)
READ(f64_from_bf16, double, tn_bf16, tn_bf16_to_f32)
READ(f64_from_i64, double, int64_t, AS_IS)
READ(f64_from_i32, double, int32_t, AS_IS)
READ(f64_from_u8, double, uint8_t, AS_IS)
READ(f32_from_f32, float, float, AS_IS)
READ(f32_from_bf16_apart, float, tn_bf16, tn_bf16_to_f32)
READ(f32_from_i64, float, int64_t, AS_IS)
READ(f32_from_i32, float, int32_t, AS_IS)
READ(f32_from_u8, float, uint8_t, AS_IS)
READ(i64_from_i64, int64_t, int64_t, AS_IS)
READ(i64_from_i32, int64_t, int32_t, AS_IS)
READ(i64_from_u8, int64_t, uint8_t, AS_IS)
static void f32_from_bf16(void *to, const void *from, int64_t stride, int64_t n) {
    if (stride == 1) widen_bf16(to, from, n);
    else f32_from_bf16_apart(to, from, stride, n);
}

WRITE(f64_to_f64, double, double, AS_IS)
WRITE(f64_to_f32, double, float, AS_IS)
WRITE(f64_to_bf16, double, tn_bf16, tn_f64_to_bf16)
WRITE(f64_to_bool, double, uint8_t, IS_SET)
WRITE(f32_to_f32, float, float, AS_IS)
WRITE(f32_to_bool, float, uint8_t, IS_SET)
WRITE(i64_to_i64, int64_t, int64_t, AS_IS)
WRITE(i64_to_i32, int64_t, int32_t, AS_IS)
WRITE(i64_to_u8, int64_t, uint8_t, AS_IS)
WRITE(i64_to_bool, int64_t, uint8_t, IS_SET)
static void f32_to_bf16(void *to, const void *from, int64_t n) { narrow_bf16(to, from, n); }

typedef void (*tn_read_function)(void *to, const void *from, int64_t stride, int64_t n);
typedef void (*tn_write_function)(void *to, const void *from, int64_t n);

static const tn_read_function readers[TN_COMPUTE_COUNT][TN_DTYPE_COUNT] = {
    [TN_COMPUTE_F64] = { [TN_F64] = f64_from_f64,
                         [TN_F32] = f64_from_f32,
                         [TN_BF16] = f64_from_bf16,
                         [TN_I64] = f64_from_i64,
                         [TN_I32] = f64_from_i32,
                         [TN_U8] = f64_from_u8,
                         [TN_BOOL] = f64_from_u8 },
    [TN_COMPUTE_F32] = { [TN_F32] = f32_from_f32,
                         [TN_BF16] = f32_from_bf16,
                         [TN_I64] = f32_from_i64,
                         [TN_I32] = f32_from_i32,
                         [TN_U8] = f32_from_u8,
                         [TN_BOOL] = f32_from_u8 },
    [TN_COMPUTE_I64] = { [TN_I64] = i64_from_i64, [TN_I32] = i64_from_i32, [TN_U8] = i64_from_u8, [TN_BOOL] = i64_from_u8 },
};
static const tn_write_function writers[TN_COMPUTE_COUNT][TN_DTYPE_COUNT] = {
    [TN_COMPUTE_F64] = { [TN_F64] = f64_to_f64, [TN_F32] = f64_to_f32, [TN_BF16] = f64_to_bf16, [TN_BOOL] = f64_to_bool },
    [TN_COMPUTE_F32] = { [TN_F32] = f32_to_f32, [TN_BF16] = f32_to_bf16, [TN_BOOL] = f32_to_bool },
    [TN_COMPUTE_I64] = { [TN_I64] = i64_to_i64, [TN_I32] = i64_to_i32, [TN_U8] = i64_to_u8, [TN_BOOL] = i64_to_bool },
};

/* The dtype whose elements are those that are computed in. */
static const tn_dtype compute_dtype[TN_COMPUTE_COUNT] = { TN_F64, TN_F32, TN_I64 };

/* ---- sums: panels in their own precision, what grows from panel to panel in f64 ---- */

TN_SIMD_CLONES static void add_f32(double *sum, const float *v, int64_t n) {
    int64_t i = 0;
    for (; i + TN_VD_LANES <= n; i += TN_VD_LANES) tn_vd_store(sum + i, tn_vd_load(sum + i) + tn_vd_load_f32(v + i));
    for (; i < n; i++) sum[i] += v[i];
}
TN_SIMD_CLONES static void add_f64(double *sum, const double *v, int64_t n) {
    for (int64_t i = 0; i < n; i++) sum[i] += v[i];
}
TN_SIMD_CLONES static double sum_f32(const float *v, int64_t n) {
    tn_vf sum[4];
    for (int k = 0; k < 4; k++) sum[k] = tn_vf_zero();
    int64_t i = 0;
    for (; i + 4 * TN_VF_LANES <= n; i += 4 * TN_VF_LANES)
        for (int k = 0; k < 4; k++) sum[k] += tn_vf_load(v + i + k * TN_VF_LANES);
    for (; i < n; i += TN_VF_LANES) sum[0] += tn_vf_load_part(v + i, n - i);
    return tn_vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}
TN_SIMD_CLONES static double sum_f64(const double *v, int64_t n) {
    tn_vd sum[2] = { tn_vd_zero(), tn_vd_zero() };
    int64_t i = 0;
    for (; i + 2 * TN_VD_LANES <= n; i += 2 * TN_VD_LANES)
        for (int k = 0; k < 2; k++) sum[k] += tn_vd_load(v + i + k * TN_VD_LANES);
    for (; i < n; i += TN_VD_LANES) sum[0] += tn_vd_load_part(v + i, n - i);
    return tn_vd_sum(sum[0] + sum[1]);
}

static void add(tn_compute compute, double *sum, const void *v, int64_t n) {
    if (compute == TN_COMPUTE_F32) add_f32(sum, v, n);
    else add_f64(sum, v, n);
}
static double sum_of(tn_compute compute, const void *v, int64_t n) { return compute == TN_COMPUTE_F32 ? sum_f32(v, n) : sum_f64(v, n); }

/* ---- building a walk ---- */

void tn_walk_begin(tn_walk *walk, const tn_shape *shape, tn_compute compute, tn_panel_function function, const double *numbers) {
    walk->compute = compute;
    walk->function = function;
    walk->numbers = numbers;
    walk->axes = shape->axes;
    walk->n_in = 0;
    walk->partials = NULL;
    for (int axis = 0; axis < shape->axes; axis++) walk->size[axis] = shape->size[axis];
}

/* Axes are aligned at the last; those t lacks or repeats have stride 0. */
static void set_operand(const tn_walk *walk, tn_walk_operand *operand, const tn_tensor *t) {
    operand->data = t->data;
    operand->dtype = t->dtype;
    for (int axis = 0; axis < walk->axes; axis++) {
        int own = axis - (walk->axes - t->axes);
        operand->stride[axis] = own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
    }
}

void tn_walk_read(tn_walk *walk, const tn_tensor *t) { set_operand(walk, &walk->in[walk->n_in++], t); }

static void move_axis(tn_walk *walk, int from, int to) {
    walk->size[to] = walk->size[from];
    walk->to.stride[to] = walk->to.stride[from];
    for (int k = 0; k < walk->n_in; k++) walk->in[k].stride[to] = walk->in[k].stride[from];
}

static bool runs_on(const tn_walk_operand *operand, int outer, int inner, int64_t size) {
    return operand->stride[outer] == operand->stride[inner] * size;
}

/* Drops axes of one element and joins neighbours that every operand walks as one; at least two axes are left. */
static void collapse(tn_walk *walk) {
    int axes = 0;
    for (int axis = 0; axis < walk->axes; axis++) {
        if (walk->size[axis] == 1) continue;
        bool joins = axes > 0 && runs_on(&walk->to, axes - 1, axis, walk->size[axis]);
        for (int k = 0; joins && k < walk->n_in; k++) joins = runs_on(&walk->in[k], axes - 1, axis, walk->size[axis]);
        int64_t size = joins ? walk->size[axes - 1] : 1;
        if (joins) axes--;
        move_axis(walk, axis, axes);
        walk->size[axes++] *= size;
    }
    for (; axes < 2; axes++) {
        for (int axis = axes; axis > 0; axis--) move_axis(walk, axis - 1, axis);
        walk->size[0] = 1;
        walk->to.stride[0] = 0;
        for (int k = 0; k < walk->n_in; k++) walk->in[k].stride[0] = 0;
    }
    walk->axes = axes;
}

static int64_t unit_elements(const tn_walk *walk) {
    return (walk->summed[walk->axes - 2] ? 1 : walk->rows) * (walk->summed[walk->axes - 1] ? 1 : walk->columns);
}

/* The cut depends on shapes alone: a sum has the same bits whatever the number of threads. */
static void cut(tn_walk *walk) {
    int rows_axis = walk->axes - 2, columns_axis = walk->axes - 1;
    int64_t most = PANEL_BYTES / (int64_t)compute_bytes[walk->compute], numel = 1;
    int64_t row = walk->size[columns_axis] > 0 ? walk->size[columns_axis] : 1;
    walk->columns = least(row, most);
    walk->rows = least(walk->size[rows_axis], most / row);
    if (walk->rows < 1) walk->rows = 1;
    walk->units = walk->steps = 1;
    for (int axis = 0; axis < walk->axes; axis++) {
        int64_t box = axis == columns_axis ? walk->columns : axis == rows_axis ? walk->rows : 1;
        walk->summed[axis] = walk->size[axis] != 1 && walk->to.stride[axis] == 0;
        walk->boxes[axis] = tn_chunk_count(walk->size[axis], box);
        *(walk->summed[axis] ? &walk->steps : &walk->units) *= walk->boxes[axis];
        numel *= walk->size[axis];
    }
    walk->segments = 1;
    if (numel >= SPLIT_FROM && walk->partials) walk->segments = least(tn_chunk_count(SPLIT_TASKS, walk->units), walk->steps);
}

/* Units are at most SPLIT_TASKS where segments are more than one, so there are fewer than twice as many partials. */
size_t tn_walk_partial_bytes(int64_t n, int64_t n_to) {
    return n >= SPLIT_FROM ? (size_t)(2 * SPLIT_TASKS * least(n_to, PANEL_MOST)) * sizeof(double) : 0;
}

/* ---- one box ---- */

typedef struct tn_box {
    int64_t rows, columns;
    int64_t in[TN_WALK_MAX_IN], to; /* offsets of its first element */
} tn_box;

static tn_box box_at(const tn_walk *walk, int64_t unit, int64_t step) {
    tn_box box = { .rows = walk->rows, .columns = walk->columns };
    int rows_axis = walk->axes - 2, columns_axis = walk->axes - 1;
    for (int axis = columns_axis; axis >= 0; axis--) {
        int64_t *rest = walk->summed[axis] ? &step : &unit, boxes = walk->boxes[axis];
        if (boxes <= 1) continue;
        int64_t at = *rest % boxes;
        *rest /= boxes;
        if (axis == columns_axis) box.columns = least(walk->columns, walk->size[axis] - (at *= walk->columns));
        else if (axis == rows_axis) box.rows = least(walk->rows, walk->size[axis] - (at *= walk->rows));
        box.to += at * walk->to.stride[axis];
        for (int k = 0; k < walk->n_in; k++) box.in[k] += at * walk->in[k].stride[axis];
    }
    return box;
}

/* Operand k's part of the box: in place where it lies as the kernel wants it, else copied to `buffer`. */
static const void *fetch(const tn_walk *walk, int k, const tn_box *box, void *buffer) {
    const tn_walk_operand *operand = &walk->in[k];
    int64_t row_step = operand->stride[walk->axes - 2], step = operand->stride[walk->axes - 1];
    const char *from = operand->data + box->in[k] * (int64_t)tn_dtype_size(operand->dtype);
    tn_read_function read = readers[walk->compute][operand->dtype];
    if (box->rows == 1 || row_step == box->columns * step) {
        if (step == 1 && operand->dtype == compute_dtype[walk->compute]) return from;
        read(buffer, from, step, box->rows * box->columns);
        return buffer;
    }
    int64_t row_bytes = row_step * (int64_t)tn_dtype_size(operand->dtype), width = box->columns * (int64_t)compute_bytes[walk->compute];
    for (int64_t row = 0; row < box->rows; row++) read((char *)buffer + row * width, from + row * row_bytes, step, box->columns);
    return buffer;
}

typedef struct tn_panel_buffers {
    double in[TN_WALK_MAX_IN][PANEL_BYTES / sizeof(double)];
    double to[PANEL_BYTES / sizeof(double)];
} tn_panel_buffers;

static void compute_box(const tn_walk *walk, const tn_box *box, void *to, tn_panel_buffers *buffers) {
    tn_panel panel;
    panel.n = box->rows * box->columns;
    panel.to = to;
    panel.numbers = walk->numbers;
    for (int k = 0; k < walk->n_in; k++) panel.in[k] = fetch(walk, k, box, buffers->in[k]);
    walk->function(&panel);
}

/* ---- walks without a sum: one box a unit, and what a box makes lies together in the destination ---- */

static void map_units(void *user, int64_t begin, int64_t end) {
    const tn_walk *walk = user;
    tn_panel_buffers buffers;
    bool in_place = walk->to.dtype == compute_dtype[walk->compute];
    for (int64_t unit = begin; unit < end; unit++) {
        tn_box box = box_at(walk, unit, 0);
        char *to = walk->to.data + box.to * (int64_t)tn_dtype_size(walk->to.dtype);
        compute_box(walk, &box, in_place ? (void *)to : buffers.to, &buffers);
        if (!in_place) writers[walk->compute][walk->to.dtype](to, buffers.to, box.rows * box.columns);
    }
}

/* ---- walks with a sum ---- */

static void add_box(const tn_walk *walk, const tn_box *box, double *sum, const void *v) {
    bool rows_summed = walk->summed[walk->axes - 2], columns_summed = walk->summed[walk->axes - 1];
    int64_t n = box->rows * box->columns, row_bytes = box->columns * (int64_t)compute_bytes[walk->compute];
    if (rows_summed == columns_summed) {
        if (rows_summed) *sum += sum_of(walk->compute, v, n);
        else add(walk->compute, sum, v, n);
        return;
    }
    for (int64_t row = 0; row < box->rows; row++) {
        const char *values = (const char *)v + row * row_bytes;
        if (rows_summed) add(walk->compute, sum, values, box->columns);
        else sum[row] += sum_of(walk->compute, values, box->columns);
    }
}

static void store_unit(const tn_walk *walk, int64_t unit, const double *sum) {
    tn_box box = box_at(walk, unit, 0);
    int64_t n = (walk->summed[walk->axes - 2] ? 1 : box.rows) * (walk->summed[walk->axes - 1] ? 1 : box.columns);
    writers[TN_COMPUTE_F64][walk->to.dtype](walk->to.data + box.to * (int64_t)tn_dtype_size(walk->to.dtype), sum, n);
}

/* Steps lie apart in memory, which processors do not foresee: the start of the next box is asked for in time. */
static void fetch_start(const tn_walk *walk, const tn_box *box) {
    for (int k = 0; k < walk->n_in; k++) {
        const char *from = walk->in[k].data + box->in[k] * (int64_t)tn_dtype_size(walk->in[k].dtype);
        for (int64_t at = 0; walk->in[k].stride[walk->axes - 1] == 1 && at < FETCHED_BYTES; at += 64) __builtin_prefetch(from + at);
    }
}

/* One task is one segment of the steps of one unit. */
static void sum_tasks(void *user, int64_t begin, int64_t end) {
    const tn_walk *walk = user;
    tn_panel_buffers buffers;
    double on_stack[PANEL_MOST];
    int64_t elements = unit_elements(walk);
    for (int64_t task = begin; task < end; task++) {
        int64_t unit = task / walk->segments, segment = task % walk->segments;
        double *sum = walk->segments > 1 ? walk->partials + task * elements : on_stack;
        memset(sum, 0, (size_t)elements * sizeof *sum);
        int64_t last = walk->steps * (segment + 1) / walk->segments;
        int64_t step = walk->steps * segment / walk->segments;
        for (tn_box next = box_at(walk, unit, step); step < last; step++) {
            tn_box box = next;
            if (step + 1 < last) {
                next = box_at(walk, unit, step + 1);
                fetch_start(walk, &next);
            }
            compute_box(walk, &box, buffers.to, &buffers);
            add_box(walk, &box, sum, buffers.to);
        }
        if (walk->segments == 1) store_unit(walk, unit, sum);
    }
}

static void merge_segments(void *user, int64_t begin, int64_t end) {
    const tn_walk *walk = user;
    int64_t elements = unit_elements(walk);
    for (int64_t unit = begin; unit < end; unit++) {
        double *sum = walk->partials + unit * walk->segments * elements;
        for (int64_t segment = 1; segment < walk->segments; segment++) add_f64(sum, sum + segment * elements, elements);
        store_unit(walk, unit, sum);
    }
}

static void run_sum(tn_walk *walk, int64_t numel, int threads) {
    int64_t tasks = walk->units * walk->segments;
    int64_t grain = tn_even_grain(tasks, SMALLEST_GRAIN / (tasks > 0 ? numel / tasks + 1 : 1), 1, threads);
    tn_parallel_for(tasks, grain, sum_tasks, walk, threads);
    if (walk->segments > 1) tn_parallel_for(walk->units, 4, merge_segments, walk, threads);
}

/* ---- running ---- */

/* Everything dense and of the dtype that is computed in: one panel a thread, nothing copied. */
static bool is_plain(const tn_walk *walk) {
    tn_dtype dtype = compute_dtype[walk->compute];
    bool plain = walk->axes == 2 && walk->size[0] == 1 && walk->to.dtype == dtype;
    bool one = walk->size[1] == 1;
    for (int k = 0; plain && k < walk->n_in; k++) plain = walk->in[k].dtype == dtype && (one || walk->in[k].stride[1] == 1);
    return plain && (one || walk->to.stride[1] == 1);
}

static void run_plain(const tn_walk *walk, int64_t begin, int64_t end) {
    int64_t size = (int64_t)compute_bytes[walk->compute];
    tn_panel panel;
    panel.n = end - begin;
    panel.to = walk->to.data + begin * size;
    panel.numbers = walk->numbers;
    for (int k = 0; k < walk->n_in; k++) panel.in[k] = walk->in[k].data + begin * size;
    walk->function(&panel);
}

typedef struct tn_plain_walks {
    const tn_walk *walks;
    int n;
} tn_plain_walks;

/* Several walks take turns block by block, so that what they share is read from memory once. */
static void plain_range(void *user, int64_t begin, int64_t end) {
    const tn_plain_walks *plain = user;
    int64_t block = plain->n > 1 ? PLAIN_BLOCK : end - begin;
    for (int64_t at = begin; at < end; at += block)
        for (int i = 0; i < plain->n; i++) run_plain(&plain->walks[i], at, least(at + block, end));
}

static void run_boxes(tn_walk *walk, int threads) {
    cut(walk);
    bool sums = false;
    int64_t numel = 1, box = walk->rows * walk->columns;
    for (int axis = 0; axis < walk->axes; axis++) {
        sums = sums || walk->summed[axis];
        numel *= walk->size[axis];
    }
    if (sums) run_sum(walk, numel, threads);
    else tn_parallel_for(walk->units, tn_even_grain(walk->units, SMALLEST_GRAIN / box, 1, threads), map_units, walk, threads);
}

void tn_walk_write(tn_walk *walk, const tn_tensor *to) {
    set_operand(walk, &walk->to, to);
    collapse(walk);
}

void tn_walk_run(tn_walk *walks, int n, int threads) {
    bool plain = true;
    for (int i = 0; plain && i < n; i++) plain = is_plain(&walks[i]);
    if (plain) {
        int64_t numel = walks[0].size[1];
        tn_parallel_for(numel, tn_even_grain(numel, SMALLEST_GRAIN, 64, threads), plain_range, &(tn_plain_walks){ walks, n }, threads);
        return;
    }
    for (int i = 0; i < n; i++)
        if (is_plain(&walks[i])) tn_walk_run(&walks[i], 1, threads);
        else run_boxes(&walks[i], threads);
}
