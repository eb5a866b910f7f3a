/* f32 and bf16, row by row: a row is read once, goes through short f32 buffers that stay in the first cache, and is written once. Loops
 * are plain, so that the compiler makes vector code of whatever width a clone has; sums are kept in LANES parts that are added in one
 * order on every instruction set. */
#include "../activation_cpu.h"
#include "../lanes_cpu.h"
#include "../lrpe_angle_cpu.h"
#include "lrpe_cpu.h"

#define LANES 32
#define FETCH_AHEAD 4096 /* bytes */
#define STRIP 64         /* tokens of a panel of columns that stay in cache between the maximum and the sum */

/* exp(x - max) of a row or column without a finite element would be NaN where other pieces of it need 0. */
TN_INLINE float finite_base(float max) { return max == -INFINITY ? 0 : max; }

/* The row at p with its elements side by side: as it is, or gathered. What lies FETCH_AHEAD after it, mostly a row soon to come, is asked
 * for: rows are too short for the hardware to see far ahead. */
TN_INLINE const void *dense_row(tn_dtype dtype, const void *p, int64_t stride, int64_t n, void *gathered) {
    if (stride == 1) {
        for (int64_t at = 0; at < n * (dtype == TN_F32 ? 4 : 2); at += 64) __builtin_prefetch((const char *)p + FETCH_AHEAD + at);
        return p;
    }
    for (int64_t i = 0; i < n; i++) {
        if (dtype == TN_F32) ((float *)gathered)[i] = ((const float *)p)[i * stride];
        else ((tn_bf16 *)gathered)[i] = ((const tn_bf16 *)p)[i * stride];
    }
    return gathered;
}

/* ---- sums and maxima of a row ---- */

TN_INLINE float lanes_sum(float *lane) {
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}
TN_INLINE float row_max(const float *x, int64_t n) {
    float lane[LANES];
    for (int j = 0; j < LANES; j++) lane[j] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (int j = 0; i + j < n; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] = lane[j + half] > lane[j] ? lane[j + half] : lane[j];
    return lane[0];
}
/* x becomes exp(x - max); returns the sum. */
TN_INLINE float row_exp(float *restrict x, int64_t n, float max) {
    float lane[LANES] = { 0 };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += x[i + j] = tn_f32_exp_below_0(x[i + j] - max);
    for (int j = 0; i + j < n; j++) lane[j] += x[i + j] = tn_f32_exp_below_0(x[i + j] - max);
    return lanes_sum(lane);
}
TN_INLINE float row_dot(const float *a, const float *b, int64_t n) {
    float lane[LANES] = { 0 };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += a[i + j] * b[i + j];
    for (int j = 0; i + j < n; j++) lane[j] += a[i + j] * b[i + j];
    return lanes_sum(lane);
}

/* ---- the activation of a row ---- */

#define FOR_CONSTANT_ACT(act, loop)           \
    switch (act) {                            \
    case TN_RELU: loop(TN_RELU); break;       \
    case TN_SIGMOID: loop(TN_SIGMOID); break; \
    case TN_SILU: loop(TN_SILU); break;       \
    case TN_GELU: loop(TN_GELU); break;       \
    case TN_TANH: loop(TN_TANH); break;       \
    default: loop(TN_NONE); break;            \
    }

TN_INLINE void act_row(tn_dtype dtype, int act, const void *restrict x, float *restrict y, int64_t n) {
#define ACT_LOOP(constant) \
    for (int64_t i = 0; i < n; i++) y[i] = tn_f32_act(constant, tn_lane_load(dtype, x, i))
    FOR_CONSTANT_ACT(act, ACT_LOOP)
}
/* dx = g act'(x) */
TN_INLINE void act_back(tn_dtype dtype, int act, const void *restrict x, const float *restrict g, void *restrict dx, int64_t n) {
#define BACK_LOOP(constant) \
    for (int64_t i = 0; i < n; i++) tn_lane_store(dtype, dx, i, g[i] * tn_f32_act_slope(constant, tn_lane_load(dtype, x, i)))
    FOR_CONSTANT_ACT(act, BACK_LOOP)
}

TN_INLINE void softmax_row(float *restrict p, int64_t n) {
    float max = finite_base(row_max(p, n));
    float scale = 1 / row_exp(p, n, max);
    for (int64_t i = 0; i < n; i++) p[i] *= scale;
}
TN_INLINE void softmax_columns(float *restrict p, const float *restrict max, const float *restrict sum, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = tn_f32_exp_below_0(p[i] - finite_base(max[i])) / sum[i];
}

/* Column (b, h, first feature) of what is kept for every column of tokens. */
TN_INLINE int64_t column_of(const tn_lrpe_call *call, const tn_lrpe_row *row) {
    return (row->batch * call->heads + row->head) * call->width;
}

TN_INLINE void activate_as(tn_dtype dtype, const tn_lrpe_work *work, const tn_lrpe_row *row, const void *x, float *y) {
    const tn_lrpe_call *call = &work->call;
    act_row(dtype, call->softmax ? TN_NONE : call->act, x, y, call->width);
    if (call->softmax == TN_LRPE_SOFTMAX_FEATURES) softmax_row(y, call->width);
    if (call->softmax == TN_LRPE_SOFTMAX_TOKENS) {
        int64_t column = column_of(call, row);
        softmax_columns(y, (const float *)work->max + column, (const float *)work->sum + column, call->width);
    }
}

/* y = act(x) of a row in f32. A function of its own, since there are many loops to choose from. */
TN_SIMD_CLONES static void activate(const tn_lrpe_work *work, const tn_lrpe_row *row, const void *x, float *y) {
    if (work->call.dtype == TN_F32) activate_as(TN_F32, work, row, x, y);
    else activate_as(TN_BF16, work, row, x, y);
}

/* ---- the encoding of a row and its backward; c and s: W cosines and W sines ---- */

TN_INLINE void encode(tn_dtype from, tn_dtype to, bool rotate, const void *restrict x, const float *restrict c, const float *restrict s,
                      void *restrict o, int64_t w) {
    if (!rotate) {
        for (int64_t i = 0; i < w; i++) tn_lane_store(to, o, i, tn_lane_load(from, x, i) * c[i]);
        for (int64_t i = 0; i < w; i++) tn_lane_store(to, o, w + i, tn_lane_load(from, x, i) * s[i]);
        return;
    }
    for (int64_t i = 0; i < w; i++) tn_lane_store(to, o, i, tn_lane_load(from, x, i) * c[i] - tn_lane_load(from, x, w + i) * s[i]);
    for (int64_t i = 0; i < w; i++) tn_lane_store(to, o, w + i, tn_lane_load(from, x, i) * s[i] + tn_lane_load(from, x, w + i) * c[i]);
}

/* g, the gradient of act(x), from do. */
TN_INLINE void decode(tn_dtype from, tn_dtype to, bool rotate, const void *restrict d, const float *restrict c, const float *restrict s,
                      void *restrict g, int64_t w) {
    for (int64_t i = 0; i < w; i++) tn_lane_store(to, g, i, tn_lane_load(from, d, i) * c[i] + tn_lane_load(from, d, w + i) * s[i]);
    if (rotate)
        for (int64_t i = 0; i < w; i++) tn_lane_store(to, g, w + i, tn_lane_load(from, d, w + i) * c[i] - tn_lane_load(from, d, i) * s[i]);
}

/* turn += dA, from y = act(x) and its gradient g (rotate) or do (cosine). */
TN_INLINE void add_turn(tn_dtype dtype, bool rotate, const float *restrict y, const float *restrict g, const void *restrict d,
                        const float *restrict c, const float *restrict s, float *restrict turn, int64_t w) {
    if (rotate)
        for (int64_t i = 0; i < w; i++) turn[i] += y[i] * g[w + i] - y[w + i] * g[i];
    else
        for (int64_t i = 0; i < w; i++) turn[i] += y[i] * (tn_lane_load(dtype, d, w + i) * c[i] - tn_lane_load(dtype, d, i) * s[i]);
}

/* ---- rows ---- */

/* A row of x, side by side. */
TN_INLINE const void *x_of(tn_dtype dtype, const tn_lrpe_call *call, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const void *x = tn_elements_after(dtype, call->x, tn_lrpe_at(&call->x_stride, row->batch, row->token, row->head));
    return dense_row(dtype, x, call->x_stride.feature, call->width, block->row[0]);
}
TN_INLINE const void *do_of(tn_dtype dtype, const tn_lrpe_call *call, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const void *d = tn_elements_after(dtype, call->d, tn_lrpe_at(&call->do_stride, row->batch, row->token, row->head));
    return dense_row(dtype, d, call->do_stride.feature, call->out_width, block->row[1]);
}

TN_INLINE void forward_row(tn_dtype dtype, const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const tn_lrpe_call *call = &work->call;
    int64_t w = call->grid.angles;
    const float *c = (const float *)block->table + row->table, *s = c + w;
    const void *x = x_of(dtype, call, block, row);
    void *o = tn_elements_after(dtype, call->o, tn_lrpe_at(&call->o_stride, row->batch, row->token, row->head));
    if (call->act == TN_NONE) {
        if (call->kind == TN_ROTATE) encode(dtype, dtype, true, x, c, s, o, w);
        else encode(dtype, dtype, false, x, c, s, o, w);
        return;
    }
    float *y = block->row[2];
    activate(work, row, x, y);
    if (call->kind == TN_ROTATE) encode(TN_F32, dtype, true, y, c, s, o, w);
    else encode(TN_F32, dtype, false, y, c, s, o, w);
}

/* The gradient of act(x), in f32. */
TN_INLINE float *gradient_of(tn_dtype dtype, const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row, const void *d) {
    int64_t w = work->call.grid.angles;
    const float *c = (const float *)block->table + row->table, *s = c + w;
    float *g = block->row[3];
    if (work->call.kind == TN_ROTATE) decode(dtype, TN_F32, true, d, c, s, g, w);
    else decode(dtype, TN_F32, false, d, c, s, g, w);
    return g;
}

TN_INLINE void dots_row(tn_dtype dtype, const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const tn_lrpe_call *call = &work->call;
    float *restrict p = block->row[2], *restrict g = gradient_of(dtype, work, block, row, do_of(dtype, call, block, row));
    float *restrict dot = (float *)work->chunk_dot + block->chunk * call->batch * call->heads * call->width + column_of(call, row);
    activate(work, row, x_of(dtype, call, block, row), p);
    for (int64_t i = 0; i < call->width; i++) dot[i] += p[i] * g[i];
}

/* dx from the gradient g of y = act(x). */
TN_INLINE void finish_row(tn_dtype dtype, const tn_lrpe_work *work, const tn_lrpe_row *row, const void *x, const float *restrict y,
                          const float *restrict g, void *restrict dx) {
    const tn_lrpe_call *call = &work->call;
    int64_t n = call->width;
    if (call->softmax == TN_LRPE_SOFTMAX_FEATURES) {
        float dot = row_dot(y, g, n);
        for (int64_t i = 0; i < n; i++) tn_lane_store(dtype, dx, i, y[i] * (g[i] - dot));
    } else if (call->softmax == TN_LRPE_SOFTMAX_TOKENS) {
        const float *restrict dot = (const float *)work->dot + column_of(call, row);
        for (int64_t i = 0; i < n; i++) tn_lane_store(dtype, dx, i, y[i] * (g[i] - dot[i]));
    } else {
        act_back(dtype, call->act, x, g, dx, n);
    }
}

TN_INLINE void backward_row(tn_dtype dtype, const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const tn_lrpe_call *call = &work->call;
    int64_t w = call->grid.angles;
    const float *c = (const float *)block->table + row->table, *s = c + w;
    const void *d = do_of(dtype, call, block, row);
    void *dx = call->dx ? tn_elements_after(dtype, call->dx, tn_lrpe_at(&call->dx_stride, row->batch, row->token, row->head)) : NULL;
    if (call->act == TN_NONE && !block->turn) {
        if (!dx) return;
        if (call->kind == TN_ROTATE) decode(dtype, dtype, true, d, c, s, dx, w);
        else decode(dtype, dtype, false, d, c, s, dx, w);
        return;
    }
    float *y = block->row[2], *g = gradient_of(dtype, work, block, row, d);
    const void *x = x_of(dtype, call, block, row);
    if (block->turn || call->softmax) activate(work, row, x, y);
    if (block->turn) {
        float *turn = (float *)block->turn + row->turn;
        if (call->kind == TN_ROTATE) add_turn(dtype, true, y, g, d, c, s, turn, w);
        else add_turn(dtype, false, y, g, d, c, s, turn, w);
    }
    if (dx) finish_row(dtype, work, row, x, y, g, dx);
}

/* ---- blocks ---- */

TN_SIMD_CLONES static void angles(const tn_lrpe_work *work, const tn_lrpe_block *block) {
    const tn_lrpe_grid *grid = &work->call.grid;
    int64_t heads = grid->theta_heads == 1 ? 1 : block->heads, first = grid->theta_heads == 1 ? 0 : block->head;
    for (int64_t h = 0; h < heads; h++) {
        const float *theta = (const float *)work->call.theta + (first + h) * grid->theta_width;
        float largest = tn_lrpe_largest_theta(grid, theta);
        for (int64_t t = 0; t < block->tokens; t++) {
            float *c = (float *)block->table + t * block->table_token + h * block->table_head;
            tn_lrpe_angles_f32(grid, theta, largest, block->token + t, work->moved, c, c + grid->angles);
        }
    }
}

/* dtheta's part of one feature and token: the coordinate times dA. */
TN_INLINE void add_coordinates(const tn_lrpe_work *work, int64_t token, const float *restrict turn, double *restrict sum) {
    const tn_lrpe_grid *grid = &work->call.grid;
    for (int axis = 0; axis < grid->axes; axis++) {
        tn_lrpe_features at = tn_lrpe_features_of(grid, axis);
        double coordinate = (double)tn_lrpe_moved_coordinate(grid, token, axis, work->moved);
        for (int64_t i = at.first; i < at.last; i++) sum[i] += coordinate * (double)turn[i];
    }
}

TN_INLINE void add_block_to_dtheta(const tn_lrpe_work *work, const tn_lrpe_block *block) {
    int64_t heads = work->call.grid.theta_heads == 1 ? 1 : block->heads;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t t = 0; t < block->tokens; t++)
            add_coordinates(work, block->token + t, (const float *)block->turn + t * block->turn_token + h * block->turn_head,
                            block->dtheta + h * work->call.grid.angles);
}

#define ROWS(name)                                                                                                 \
    TN_INLINE void name##_row_f32(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) {  \
        name##_row(TN_F32, work, block, row);                                                                      \
    }                                                                                                              \
    TN_INLINE void name##_row_bf16(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) { \
        name##_row(TN_BF16, work, block, row);                                                                     \
    }                                                                                                              \
    TN_INLINE void name##_rows(const tn_lrpe_work *work, const tn_lrpe_block *block) {                             \
        if (work->call.dtype == TN_F32) tn_lrpe_for_rows(work, block, name##_row_f32);                             \
        else tn_lrpe_for_rows(work, block, name##_row_bf16);                                                       \
    }
ROWS(forward)
ROWS(dots)
ROWS(backward)

TN_SIMD_CLONES static void forward_block(const tn_lrpe_work *work, const tn_lrpe_block *block) { forward_rows(work, block); }
TN_SIMD_CLONES static void dots_block(const tn_lrpe_work *work, const tn_lrpe_block *block) { dots_rows(work, block); }
TN_SIMD_CLONES static void backward_block(const tn_lrpe_work *work, const tn_lrpe_block *block) {
    int64_t heads = work->call.grid.theta_heads == 1 ? 1 : block->heads;
    if (block->turn) memset(block->turn, 0, (size_t)(block->tokens * heads * work->call.grid.angles) * sizeof(float));
    backward_rows(work, block);
    if (block->turn) add_block_to_dtheta(work, block);
}

/* ---- columns of tokens ---- */

/* Elements of a column's neighbours at one token. */
TN_INLINE void strip_max(tn_dtype dtype, const void *restrict x, int64_t stride, float *restrict max, int64_t n) {
    if (stride == 1)
        for (int64_t i = 0; i < n; i++) max[i] = tn_lane_load(dtype, x, i) > max[i] ? tn_lane_load(dtype, x, i) : max[i];
    else
        for (int64_t i = 0; i < n; i++) max[i] = tn_lane_load(dtype, x, i * stride) > max[i] ? tn_lane_load(dtype, x, i * stride) : max[i];
}
TN_INLINE void strip_sum(tn_dtype dtype, const void *restrict x, int64_t stride, const float *restrict base, float *restrict sum,
                         int64_t n) {
    if (stride == 1)
        for (int64_t i = 0; i < n; i++) sum[i] += tn_f32_exp_below_0(tn_lane_load(dtype, x, i) - base[i]);
    else
        for (int64_t i = 0; i < n; i++) sum[i] += tn_f32_exp_below_0(tn_lane_load(dtype, x, i * stride) - base[i]);
}

/* Strip by strip: the maximum so far grows, and the sum so far is scaled to it. */
TN_INLINE void reduce_columns(tn_dtype dtype, const tn_lrpe_columns *c) {
    float *restrict max = c->max, *restrict sum = c->sum, before[TN_LRPE_PANEL], base[TN_LRPE_PANEL];
    int64_t n = c->width;
    for (int64_t i = 0; i < n; i++) max[i] = -INFINITY, sum[i] = 0;
    for (int64_t strip = 0; strip < c->tokens; strip += STRIP) {
        int64_t end = strip + STRIP < c->tokens ? strip + STRIP : c->tokens;
        for (int64_t i = 0; i < n; i++) before[i] = max[i];
        for (int64_t t = strip; t < end; t++)
            strip_max(dtype, tn_elements_after(dtype, c->x, t * c->token_stride), c->feature_stride, max, n);
        for (int64_t i = 0; i < n; i++) {
            base[i] = finite_base(max[i]);
            sum[i] *= tn_f32_exp_below_0(before[i] - base[i]);
        }
        for (int64_t t = strip; t < end; t++)
            strip_sum(dtype, tn_elements_after(dtype, c->x, t * c->token_stride), c->feature_stride, base, sum, n);
    }
}

TN_SIMD_CLONES static void columns(const tn_lrpe_columns *c, tn_dtype dtype) {
    if (dtype == TN_F32) reduce_columns(TN_F32, c);
    else reduce_columns(TN_BF16, c);
}

TN_SIMD_CLONES static void merge_columns(const tn_lrpe_work *work, int64_t begin, int64_t end) {
    int64_t all = work->call.batch * work->call.heads * work->call.width;
    float *restrict max = work->max, *restrict sum = work->sum;
    const float *restrict piece_max = work->piece_max, *restrict piece_sum = work->piece_sum;
    for (int64_t i = begin; i < end; i++) max[i] = piece_max[i], sum[i] = 0;
    for (int64_t piece = 1; piece < work->pieces; piece++)
        for (int64_t i = begin; i < end; i++) max[i] = piece_max[piece * all + i] > max[i] ? piece_max[piece * all + i] : max[i];
    for (int64_t piece = 0; piece < work->pieces; piece++)
        for (int64_t i = begin; i < end; i++)
            sum[i] += piece_sum[piece * all + i] * tn_f32_exp_below_0(piece_max[piece * all + i] - finite_base(max[i]));
}

TN_SIMD_CLONES static void merge_dots(const tn_lrpe_work *work, int64_t begin, int64_t end) {
    int64_t all = work->call.batch * work->call.heads * work->call.width;
    float *restrict dot = work->dot;
    const float *restrict part = work->chunk_dot;
    for (int64_t i = begin; i < end; i++) dot[i] = 0;
    for (int64_t chunk = 0; chunk < work->chunks; chunk++)
        for (int64_t i = begin; i < end; i++) dot[i] += part[chunk * all + i];
}

const tn_lrpe_kernels tn_lrpe_kernels_rows = {
    .angles = angles,
    .forward = forward_block,
    .dots = dots_block,
    .backward = backward_block,
    .columns = columns,
    .merge_columns = merge_columns,
    .merge_dots = merge_dots,
};
