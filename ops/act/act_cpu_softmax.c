/* Softmax. The tensor is seen as [outer, axis, inner]. Where inner is 1 a row is a line of memory; otherwise the axis is walked
 * in place over a panel of neighbouring columns. Rows stay in cache between the passes, so memory is read once and written
 * once; lines too long for that are cut into pieces that first give their maximum and sum. The cut depends on the shape
 * alone, so results do not depend on the number of threads. */
#include "../../libtensor/parallel.h"
#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "../op_support.h"
#include "act_internal.h"

#define PIECE 65536 /* elements of a row, or rows of a column, handled as a whole */
#define PANEL 128   /* neighbouring columns walked together */
#define KEPT 4096   /* rows up to here keep their exponentials in f32 on the stack */
#define TASK_ELEMENTS 16384
#define STREAM_FROM ((size_t)16 << 20) /* bytes of a result that caches are not expected to keep */

typedef struct tn_softmax_job {
    tn_dtype dtype;
    tn_around around;
    int64_t pieces, panels;
    const void *x, *o, *d; /* forward: x; backward: o and d */
    void *to;
    bool stream;                   /* writes past the caches */
    struct tn_softmax_stat *stats; /* where lines come in pieces: [outer, pieces, inner] */
} tn_softmax_job;

/* What a piece knows of one line: the maximum and the sum of exponentials below it, or (backward) 0 and the sum of o do. */
typedef struct tn_softmax_stat {
    float max, sum;
} tn_softmax_stat;

static tn_softmax_job job_of(const tn_op_call *call, const tn_tensor *like) {
    const tn_act_args *args = call->args;
    tn_softmax_job job = { .dtype = like->dtype, .stats = call->workspace };
    job.around = tn_around_axis(like->shape, like->axes, tn_axis_of(args->dim, like->axes));
    job.pieces = like->dtype == TN_F64 ? 1 : tn_chunk_count(job.around.axis, PIECE);
    job.panels = tn_chunk_count(job.around.inner, PANEL);
    return job;
}

size_t tn_softmax_workspace(const tn_op_call *call, bool backward) {
    const tn_act_args *args = call->args;
    const tn_tensor *like = backward ? call->out[0] : call->in[0];
    if (args->act != TN_SOFTMAX || !like) return 0;
    tn_softmax_job job = job_of(call, like);
    return job.pieces > 1 ? (size_t)(job.around.outer * job.pieces * job.around.inner) * sizeof(tn_softmax_stat) : 0;
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Maxima and exponentials come from plain loops, of which the compiler makes vector code of any width. */

#define BLOCK 64 /* partial maxima and sums of a row */

/* Elements i .. i + width - 1 as f32: in place, or widened into `buffer`. */
TN_INLINE const float *as_f32(tn_dtype dtype, const void *x, int64_t i, int64_t width, float *buffer) {
    if (dtype == TN_F32) return (const float *)x + i;
    for (int64_t j = 0; j < width; j++) buffer[j] = tn_bf16_to_f32(((const tn_bf16 *)x)[i + j]);
    return buffer;
}

/* exp(x - max) of a line without a finite element would be NaN where other pieces of the line need 0. */
TN_INLINE float finite_base(float max) { return max == -INFINITY ? 0 : max; }

/* ---- rows, f32 and bf16 ---- */

TN_INLINE void block_max(float *max, const float *x, int64_t n) {
    for (int64_t j = 0; j < n; j++) max[j] = x[j] > max[j] ? x[j] : max[j];
}
TN_INLINE void block_exp(float *restrict sum, float *restrict e, const float *restrict x, float max, int64_t n) {
    for (int64_t j = 0; j < n; j++) sum[j] += e[j] = tn_f32_exp_below_0(x[j] - max);
}

TN_INLINE float row_max(tn_dtype dtype, const void *x, int64_t n) {
    float max[BLOCK], buffer[BLOCK];
    for (int j = 0; j < BLOCK; j++) max[j] = -INFINITY;
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) block_max(max, as_f32(dtype, x, i, BLOCK, buffer), BLOCK);
    block_max(max, as_f32(dtype, x, i, n - i, buffer), n - i);
    for (int half = BLOCK / 2; half; half /= 2) block_max(max, max + half, half);
    return finite_base(max[0]);
}

/* The sum of exp(x - max); the exponentials go to `kept`, unless that is NULL. The row after the next is fetched from memory
 * meanwhile. */
TN_INLINE float row_sum(tn_dtype dtype, const void *x, int64_t n, float max, float *kept) {
    float sum[BLOCK] = { 0 }, buffer[BLOCK], unkept[BLOCK];
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        for (int j = 0; j < BLOCK; j += TN_VF_LANES) __builtin_prefetch(tn_elements_after(dtype, x, 2 * n + i + j));
        block_exp(sum, kept ? kept + i : unkept, as_f32(dtype, x, i, BLOCK, buffer), max, BLOCK);
    }
    block_exp(sum, kept ? kept + i : unkept, as_f32(dtype, x, i, n - i, buffer), max, n - i);
    for (int half = BLOCK / 2; half; half /= 2)
        for (int j = 0; j < half; j++) sum[j] += sum[j + half];
    return sum[0];
}

TN_INLINE void row_scale(tn_dtype dtype, const float *e, void *o, int64_t n, float scale) {
    for (int64_t i = 0; i < n; i++) tn_lane_store(dtype, o, i, e[i] * scale);
}
TN_INLINE void row_stream(const float *e, float *o, int64_t n, float scale) {
    for (int64_t i = 0; i < n; i += TN_VF_LANES) tn_vf_stream(o + i, tn_vf_load(e + i) * scale);
}
TN_INLINE void row_again(tn_dtype dtype, const void *restrict x, void *restrict o, int64_t n, float max, float scale) {
    for (int64_t i = 0; i < n; i++) tn_lane_store(dtype, o, i, tn_f32_exp_below_0(tn_lane_load(dtype, x, i) - max) * scale);
}

/* The next row's maximum is found before this row's exponentials, which do not wait for it. */
TN_INLINE void forward_rows(tn_dtype dtype, const void *x, void *o, int64_t n, int64_t rows, bool stream) {
    float on_stack[KEPT], max = row_max(dtype, x, n);
    for (int64_t row = 0; row < rows; row++) {
        const void *next = tn_elements_after(dtype, x, n);
        float next_max = row + 1 < rows ? row_max(dtype, next, n) : 0;
        float *kept = n <= KEPT ? on_stack : dtype == TN_F32 ? o : NULL;
        float scale = 1 / row_sum(dtype, x, n, max, kept);
        if (stream) row_stream(kept, o, n, scale);
        else if (kept) row_scale(dtype, kept, o, n, scale);
        else row_again(dtype, x, o, n, max, scale);
        x = next;
        o = tn_elements_after(dtype, o, n);
        max = next_max;
    }
}

TN_INLINE float row_dot(tn_dtype dtype, const void *o, const void *d, int64_t n) {
    tn_vf sum[4];
    for (int k = 0; k < 4; k++) sum[k] = tn_vf_zero();
    int64_t i = 0;
    for (; i + 4 * TN_VF_LANES <= n; i += 4 * TN_VF_LANES)
        for (int k = 0; k < 4; k++)
            sum[k] += tn_lanes_load(dtype, o, i + k * TN_VF_LANES, n) * tn_lanes_load(dtype, d, i + k * TN_VF_LANES, n);
    for (; i < n; i += TN_VF_LANES) sum[0] += tn_lanes_load(dtype, o, i, n) * tn_lanes_load(dtype, d, i, n);
    return tn_vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

TN_INLINE void row_back(tn_dtype dtype, const void *o, const void *d, void *dx, int64_t n, float dot) {
    for (int64_t i = 0; i < n; i += TN_VF_LANES)
        tn_lanes_store(dtype, dx, i, n, tn_lanes_load(dtype, o, i, n) * (tn_lanes_load(dtype, d, i, n) - dot));
}

TN_INLINE void backward_rows(tn_dtype dtype, const void *o, const void *d, void *dx, int64_t n, int64_t rows) {
    for (int64_t row = 0; row < rows; row++) {
        row_back(dtype, o, d, dx, n, row_dot(dtype, o, d, n));
        o = tn_elements_after(dtype, o, n);
        d = tn_elements_after(dtype, d, n);
        dx = tn_elements_after(dtype, dx, n);
    }
}

/* ---- columns, f32 and bf16: `width` <= PANEL neighbours, `rows` steps of `stride` elements ---- */

typedef struct tn_softmax_columns {
    int64_t rows, stride, width;
} tn_softmax_columns;

#define FOR_COLUMNS(columns, i, j)               \
    for (int64_t i = 0; i < (columns).rows; i++) \
        for (int64_t j = 0; j < (columns).width; j += TN_VF_LANES)
#define AT_ROW(pointer, i) tn_elements_after(dtype, pointer, (i)*c.stride)

/* Processors do not guess steps as long as a row's, so the row `AHEAD` is asked for. */
#define AHEAD 16
#define FETCH_AHEAD(pointer, i, j, for_writing) \
    __builtin_prefetch(tn_elements_after(dtype, pointer, ((i) + AHEAD) * c.stride + (j)), for_writing)

/* Sums over many rows are formed from sums over this many, which keeps more of their digits. */
#define ROWS_SUMMED 256

TN_INLINE void column_exp(tn_dtype dtype, const void *x, tn_softmax_columns c, const float *restrict max, float *restrict sum,
                          float *kept) {
    float buffer[PANEL], unkept[PANEL];
    for (int64_t i = 0; i < c.rows; i++) {
        for (int64_t j = 0; j < c.width; j += TN_VF_LANES) {
            FETCH_AHEAD(x, i, j, 0);
            if (kept) FETCH_AHEAD(kept, i, j, 1);
        }
        const float *restrict v = as_f32(dtype, x, i * c.stride, c.width, buffer);
        float *restrict e = kept ? kept + i * c.stride : unkept;
        for (int64_t j = 0; j < c.width; j++) sum[j] += e[j] = tn_f32_exp_below_0(v[j] - max[j]);
    }
}

TN_INLINE void column_product(tn_dtype dtype, const void *o, const void *d, tn_softmax_columns c, float *sum) {
    FOR_COLUMNS(c, i, j) {
        FETCH_AHEAD(o, i, j, 0);
        FETCH_AHEAD(d, i, j, 0);
        tn_vf product = tn_lanes_load(dtype, AT_ROW(o, i), j, c.width) * tn_lanes_load(dtype, AT_ROW(d, i), j, c.width);
        tn_vf_store(sum + j, tn_vf_load(sum + j) + product);
    }
}

/* Runs `add` over blocks of rows: first row `at`, `block` columns, sums into `part`. */
#define SUM_BLOCKS(c, sum, at, block, part, add)                                                 \
    for (int64_t at = 0; at < (c).rows; at += ROWS_SUMMED) {                                     \
        tn_softmax_columns block = { least((c).rows - at, ROWS_SUMMED), (c).stride, (c).width }; \
        float part[PANEL] = { 0 };                                                               \
        add;                                                                                     \
        for (int64_t j = 0; j < PANEL; j++) sum[j] += part[j];                                   \
    }

/* Maxima, and the sums of exp(x - max); the exponentials go to `kept`, unless that is NULL. */
TN_INLINE void column_stats(tn_dtype dtype, const void *x, tn_softmax_columns c, float *max, float *sum, float *kept) {
    float buffer[PANEL];
    for (int64_t j = 0; j < PANEL; j++) max[j] = -INFINITY, sum[j] = 0;
    for (int64_t i = 0; i < c.rows; i++) {
        for (int64_t j = 0; j < c.width; j += TN_VF_LANES) FETCH_AHEAD(x, i, j, 0);
        const float *v = as_f32(dtype, x, i * c.stride, c.width, buffer);
        for (int64_t j = 0; j < c.width; j++) max[j] = v[j] > max[j] ? v[j] : max[j];
    }
    for (int64_t j = 0; j < PANEL; j++) max[j] = finite_base(max[j]);
    SUM_BLOCKS(c, sum, at, block, part, column_exp(dtype, AT_ROW(x, at), block, max, part, kept ? kept + at * c.stride : NULL))
}

TN_INLINE void column_scale(tn_dtype dtype, float *o, tn_softmax_columns c, const float *scale) {
    FOR_COLUMNS(c, i, j) {
        FETCH_AHEAD(o, i, j, 1);
        float *at = o + i * c.stride + j;
        tn_vf_store_part(at, tn_vf_load_part(at, c.width - j) * tn_vf_load(scale + j), c.width - j);
    }
}
TN_INLINE void column_again(tn_dtype dtype, const void *x, void *o, tn_softmax_columns c, const float *max, const float *scale) {
    for (int64_t i = 0; i < c.rows; i++) {
        for (int64_t j = 0; j < c.width; j += TN_VF_LANES) {
            FETCH_AHEAD(x, i, j, 0);
            FETCH_AHEAD(o, i, j, 1);
        }
        const void *restrict from = AT_ROW(x, i);
        void *restrict to = AT_ROW(o, i);
        for (int64_t j = 0; j < c.width; j++)
            tn_lane_store(dtype, to, j, tn_f32_exp_below_0(tn_lane_load(dtype, from, j) - max[j]) * scale[j]);
    }
}

TN_INLINE void column_dot(tn_dtype dtype, const void *o, const void *d, tn_softmax_columns c, float *dot) {
    for (int64_t j = 0; j < PANEL; j++) dot[j] = 0;
    SUM_BLOCKS(c, dot, at, block, part, column_product(dtype, AT_ROW(o, at), AT_ROW(d, at), block, part))
}
TN_INLINE void column_back(tn_dtype dtype, const void *o, const void *d, void *dx, tn_softmax_columns c, const float *dot) {
    FOR_COLUMNS(c, i, j) {
        FETCH_AHEAD(o, i, j, 0);
        FETCH_AHEAD(d, i, j, 0);
        FETCH_AHEAD(dx, i, j, 1);
        tn_vf v = tn_lanes_load(dtype, AT_ROW(d, i), j, c.width) - tn_vf_load(dot + j);
        tn_lanes_store(dtype, AT_ROW(dx, i), j, c.width, tn_lanes_load(dtype, AT_ROW(o, i), j, c.width) * v);
    }
}

/* ---- tasks: one per (outer, piece, panel) ---- */

typedef struct tn_softmax_task {
    int64_t at; /* first element */
    tn_softmax_columns columns;
    tn_softmax_stat *own, *whole; /* of the first column: this piece's, and (in the first piece's place) the line's */
} tn_softmax_task;

static inline tn_softmax_task task_of(const tn_softmax_job *job, int64_t index) {
    const tn_around *around = &job->around;
    int64_t panel = index % job->panels, piece = index / job->panels % job->pieces, outer = index / job->panels / job->pieces;
    int64_t row = piece * PIECE, column = panel * PANEL;
    tn_softmax_task task = { .at = (outer * around->axis + row) * around->inner + column };
    task.columns.rows = job->pieces > 1 ? least(around->axis - row, PIECE) : around->axis;
    task.columns.stride = around->inner;
    task.columns.width = least(around->inner - column, PANEL);
    if (job->stats) {
        task.whole = job->stats + outer * job->pieces * around->inner + column;
        task.own = task.whole + piece * around->inner;
    }
    return task;
}

#define ELEMENTS(pointer) tn_elements_after(dtype, job->pointer, task.at)
TN_INLINE void forward_columns(tn_dtype dtype, const tn_softmax_job *job, tn_softmax_task task) {
    float max[PANEL], scale[PANEL];
    column_stats(dtype, ELEMENTS(x), task.columns, max, scale, dtype == TN_F32 ? ELEMENTS(to) : NULL);
    for (int64_t j = 0; j < PANEL; j++) scale[j] = 1 / scale[j];
    if (dtype == TN_F32) column_scale(dtype, ELEMENTS(to), task.columns, scale);
    else column_again(dtype, ELEMENTS(x), ELEMENTS(to), task.columns, max, scale);
}

TN_INLINE void forward_stats(tn_dtype dtype, const tn_softmax_job *job, tn_softmax_task task) {
    if (job->around.inner == 1) {
        float max = row_max(dtype, ELEMENTS(x), task.columns.rows);
        *task.own = (tn_softmax_stat){ max, row_sum(dtype, ELEMENTS(x), task.columns.rows, max, NULL) };
        return;
    }
    float max[PANEL], sum[PANEL];
    column_stats(dtype, ELEMENTS(x), task.columns, max, sum, NULL);
    for (int64_t j = 0; j < task.columns.width; j++) task.own[j] = (tn_softmax_stat){ max[j], sum[j] };
}

TN_INLINE void forward_piece(tn_dtype dtype, const tn_softmax_job *job, tn_softmax_task task) {
    if (job->around.inner == 1) {
        row_again(dtype, ELEMENTS(x), ELEMENTS(to), task.columns.rows, task.whole->max, 1 / task.whole->sum);
        return;
    }
    float max[PANEL] = { 0 }, scale[PANEL] = { 0 };
    for (int64_t j = 0; j < task.columns.width; j++) max[j] = task.whole[j].max, scale[j] = 1 / task.whole[j].sum;
    column_again(dtype, ELEMENTS(x), ELEMENTS(to), task.columns, max, scale);
}

TN_INLINE void backward_columns(tn_dtype dtype, const tn_softmax_job *job, tn_softmax_task task) {
    float dot[PANEL];
    column_dot(dtype, ELEMENTS(o), ELEMENTS(d), task.columns, dot);
    column_back(dtype, ELEMENTS(o), ELEMENTS(d), ELEMENTS(to), task.columns, dot);
}

TN_INLINE void backward_stats(tn_dtype dtype, const tn_softmax_job *job, tn_softmax_task task) {
    if (job->around.inner == 1) {
        *task.own = (tn_softmax_stat){ 0, row_dot(dtype, ELEMENTS(o), ELEMENTS(d), task.columns.rows) };
        return;
    }
    float dot[PANEL];
    column_dot(dtype, ELEMENTS(o), ELEMENTS(d), task.columns, dot);
    for (int64_t j = 0; j < task.columns.width; j++) task.own[j] = (tn_softmax_stat){ 0, dot[j] };
}

TN_INLINE void backward_piece(tn_dtype dtype, const tn_softmax_job *job, tn_softmax_task task) {
    if (job->around.inner == 1) {
        row_back(dtype, ELEMENTS(o), ELEMENTS(d), ELEMENTS(to), task.columns.rows, task.whole->sum);
        return;
    }
    float dot[PANEL] = { 0 };
    for (int64_t j = 0; j < task.columns.width; j++) dot[j] = task.whole[j].sum;
    column_back(dtype, ELEMENTS(o), ELEMENTS(d), ELEMENTS(to), task.columns, dot);
}

#define BODY(name)                                                                   \
    TN_SIMD_CLONES static void name##_body(void *user, int64_t begin, int64_t end) { \
        const tn_softmax_job *job = user;                                            \
        for (int64_t i = begin; i < end; i++) {                                      \
            if (job->dtype == TN_F32) name(TN_F32, job, task_of(job, i));            \
            else name(TN_BF16, job, task_of(job, i));                                \
        }                                                                            \
    }
BODY(forward_columns)
BODY(forward_stats)
BODY(forward_piece)
BODY(backward_columns)
BODY(backward_stats)
BODY(backward_piece)

TN_SIMD_CLONES static void forward_rows_body(void *user, int64_t begin, int64_t end) {
    const tn_softmax_job *job = user;
    int64_t n = job->around.axis;
    const void *x = tn_elements_after(job->dtype, job->x, begin * n);
    void *o = tn_elements_after(job->dtype, job->to, begin * n);
    if (job->dtype == TN_F32) forward_rows(TN_F32, x, o, n, end - begin, job->stream);
    else forward_rows(TN_BF16, x, o, n, end - begin, false);
    if (job->stream) tn_stream_end();
}
TN_SIMD_CLONES static void backward_rows_body(void *user, int64_t begin, int64_t end) {
    const tn_softmax_job *job = user;
    int64_t n = job->around.axis;
    const void *o = tn_elements_after(job->dtype, job->o, begin * n), *d = tn_elements_after(job->dtype, job->d, begin * n);
    void *dx = tn_elements_after(job->dtype, job->to, begin * n);
    if (job->dtype == TN_F32) backward_rows(TN_F32, o, d, dx, n, end - begin);
    else backward_rows(TN_BF16, o, d, dx, n, end - begin);
}

/* The pieces of each line, in order, into the first one's place. */
static void merge_stats(tn_softmax_job *job) {
    int64_t pieces = job->pieces, inner = job->around.inner;
    for (int64_t outer = 0; outer < job->around.outer; outer++)
        for (int64_t column = 0; column < inner; column++) {
            tn_softmax_stat *line = job->stats + outer * pieces * inner + column, whole = *line;
            for (int64_t piece = 1; piece < pieces; piece++) whole.max = fmaxf(whole.max, line[piece * inner].max);
            whole.sum = 0;
            for (int64_t piece = 0; piece < pieces; piece++)
                whole.sum += line[piece * inner].sum * expf(line[piece * inner].max - whole.max);
            *line = whole;
        }
}

/* Bodies for whole rows, for whole columns, and for lines in pieces. */
typedef struct tn_softmax_bodies {
    tn_range_body rows, columns, stats, piece;
} tn_softmax_bodies;

static void run(tn_softmax_job *job, const tn_softmax_bodies *bodies, int threads) {
    const tn_around *around = &job->around;
    if (around->axis == 0) return;
    int64_t tasks = around->outer * job->pieces * job->panels;
    int64_t task_elements = least(around->axis, PIECE) * least(around->inner, PANEL);
    int64_t grain = tn_even_grain(tasks, TASK_ELEMENTS / (task_elements + 1), 1, threads);
    if (job->pieces == 1) {
        tn_parallel_for(tasks, grain, around->inner == 1 ? bodies->rows : bodies->columns, job, threads);
        return;
    }
    tn_parallel_for(tasks, grain, bodies->stats, job, threads);
    merge_stats(job);
    tn_parallel_for(tasks, grain, bodies->piece, job, threads);
}

/* ---- f64: one line after the other, whatever its stride ---- */

static void forward_f64(void *user, int64_t begin, int64_t end) {
    const tn_softmax_job *job = user;
    int64_t n = job->around.axis, stride = job->around.inner;
    for (int64_t line = begin; line < end; line++) {
        int64_t at = line / stride * n * stride + line % stride;
        const double *x = (const double *)job->x + at;
        double *o = (double *)job->to + at, max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < n; i++) max = fmax(max, x[i * stride]);
        for (int64_t i = 0; i < n; i++) sum += o[i * stride] = exp(x[i * stride] - max);
        for (int64_t i = 0; i < n; i++) o[i * stride] /= sum;
    }
}

static void backward_f64(void *user, int64_t begin, int64_t end) {
    const tn_softmax_job *job = user;
    int64_t n = job->around.axis, stride = job->around.inner;
    for (int64_t line = begin; line < end; line++) {
        int64_t at = line / stride * n * stride + line % stride;
        const double *o = (const double *)job->o + at, *d = (const double *)job->d + at;
        double *dx = (double *)job->to + at, dot = 0;
        for (int64_t i = 0; i < n; i++) dot += o[i * stride] * d[i * stride];
        for (int64_t i = 0; i < n; i++) dx[i * stride] = o[i * stride] * (d[i * stride] - dot);
    }
}

static void run_f64(tn_softmax_job *job, tn_range_body body, int threads) {
    int64_t lines = job->around.outer * job->around.inner;
    tn_parallel_for(lines, tn_even_grain(lines, TASK_ELEMENTS / (job->around.axis + 1), 8, threads), body, job, threads);
}

static const tn_softmax_bodies forward_bodies = { forward_rows_body, forward_columns_body, forward_stats_body, forward_piece_body };
static const tn_softmax_bodies backward_bodies = { backward_rows_body, backward_columns_body, backward_stats_body, backward_piece_body };

tn_status tn_softmax_forward_cpu(tn_op_call *call) {
    tn_softmax_job job = job_of(call, call->in[0]);
    job.x = call->in[0]->data;
    job.to = call->out[0]->data;
    job.stream = job.dtype == TN_F32 && job.around.inner == 1 && job.around.axis <= KEPT && job.around.axis % TN_VF_LANES == 0 &&
                 tn_bytes(call->out[0]) >= STREAM_FROM && (uintptr_t)job.to % 64 == 0;
    if (job.dtype == TN_F64) run_f64(&job, forward_f64, call->threads);
    else run(&job, &forward_bodies, call->threads);
    return TN_OK;
}

tn_status tn_softmax_backward_cpu(tn_op_call *call) {
    tn_softmax_job job = job_of(call, call->out[0]);
    job.o = call->out[0]->data;
    job.d = call->dout[0]->data;
    job.to = call->din[0]->data;
    if (job.dtype == TN_F64) run_f64(&job, backward_f64, call->threads);
    else run(&job, &backward_bodies, call->threads);
    return TN_OK;
}
