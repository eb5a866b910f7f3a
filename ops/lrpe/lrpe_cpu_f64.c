/* f64: the formulas as they stand, by libm. The reference for everything else. */
#include <string.h>

#include "../activation_cpu.h"
#include "../lrpe_angle_cpu.h"
#include "lrpe_cpu.h"

/* ---- rows ---- */

static double finite_base(double max) { return max == -INFINITY ? 0 : max; }

static int64_t column_of(const tn_lrpe_call *call, const tn_lrpe_row *row) { return (row->batch * call->heads + row->head) * call->width; }

static double x_at(const tn_lrpe_call *call, const tn_lrpe_row *row, int64_t i) {
    return ((const double *)call->x)[tn_lrpe_at(&call->x_stride, row->batch, row->token, row->head) + i * call->x_stride.feature];
}
static double do_at(const tn_lrpe_call *call, const tn_lrpe_row *row, int64_t i) {
    return ((const double *)call->d)[tn_lrpe_at(&call->do_stride, row->batch, row->token, row->head) + i * call->do_stride.feature];
}

/* y = act(x) */
static void activate(const tn_lrpe_work *work, const tn_lrpe_row *row, double *y) {
    const tn_lrpe_call *call = &work->call;
    double max = -INFINITY, sum = 0;
    int64_t n = call->width;
    for (int64_t i = 0; i < n; i++) y[i] = x_at(call, row, i);
    if (call->softmax == TN_LRPE_SOFTMAX_FEATURES) {
        for (int64_t i = 0; i < n; i++) max = fmax(max, y[i]);
        for (int64_t i = 0; i < n; i++) sum += y[i] = exp(y[i] - max);
        for (int64_t i = 0; i < n; i++) y[i] /= sum;
    } else if (call->softmax == TN_LRPE_SOFTMAX_TOKENS) {
        const double *maxima = (const double *)work->max + column_of(call, row), *sums = (const double *)work->sum + column_of(call, row);
        for (int64_t i = 0; i < n; i++) y[i] = exp(y[i] - finite_base(maxima[i])) / sums[i];
    } else {
        for (int64_t i = 0; i < n; i++) y[i] = tn_f64_act(call->act, y[i]);
    }
}

static void forward_row(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const tn_lrpe_call *call = &work->call;
    int64_t w = call->grid.angles;
    const double *c = (const double *)block->table + row->table, *s = c + w;
    double *y = block->row[0], *o = (double *)call->o + tn_lrpe_at(&call->o_stride, row->batch, row->token, row->head);
    activate(work, row, y);
    for (int64_t i = 0; i < w; i++) {
        o[i] = call->kind == TN_ROTATE ? y[i] * c[i] - y[w + i] * s[i] : y[i] * c[i];
        o[w + i] = call->kind == TN_ROTATE ? y[i] * s[i] + y[w + i] * c[i] : y[i] * s[i];
    }
}

/* g, the gradient of act(x) */
static void decode(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row, double *g) {
    const tn_lrpe_call *call = &work->call;
    int64_t w = call->grid.angles;
    const double *c = (const double *)block->table + row->table, *s = c + w;
    for (int64_t i = 0; i < w; i++) {
        double d1 = do_at(call, row, i), d2 = do_at(call, row, w + i);
        g[i] = d1 * c[i] + d2 * s[i];
        if (call->kind == TN_ROTATE) g[w + i] = d2 * c[i] - d1 * s[i];
    }
}

static void add_turn(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row, const double *y, const double *g) {
    const tn_lrpe_call *call = &work->call;
    int64_t w = call->grid.angles;
    const double *c = (const double *)block->table + row->table, *s = c + w;
    double *turn = (double *)block->turn + row->turn;
    for (int64_t i = 0; i < w; i++)
        turn[i] += call->kind == TN_ROTATE ? y[i] * g[w + i] - y[w + i] * g[i]
                                           : y[i] * (do_at(call, row, w + i) * c[i] - do_at(call, row, i) * s[i]);
}

static void dots_row(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const tn_lrpe_call *call = &work->call;
    double *p = block->row[0], *g = block->row[1];
    double *dot = (double *)work->chunk_dot + block->chunk * call->batch * call->heads * call->width + column_of(call, row);
    activate(work, row, p);
    decode(work, block, row, g);
    for (int64_t i = 0; i < call->width; i++) dot[i] += p[i] * g[i];
}

static void backward_row(const tn_lrpe_work *work, const tn_lrpe_block *block, const tn_lrpe_row *row) {
    const tn_lrpe_call *call = &work->call;
    double *y = block->row[0], *g = block->row[1], dot = 0;
    decode(work, block, row, g);
    if (call->act != TN_NONE || block->turn) activate(work, row, y);
    if (block->turn) add_turn(work, block, row, y, g);
    if (!call->dx) return;
    double *dx = (double *)call->dx + tn_lrpe_at(&call->dx_stride, row->batch, row->token, row->head);
    const double *dots = work->dot ? (const double *)work->dot + column_of(call, row) : NULL;
    if (call->softmax == TN_LRPE_SOFTMAX_FEATURES)
        for (int64_t i = 0; i < call->width; i++) dot += y[i] * g[i];
    for (int64_t i = 0; i < call->width; i++) {
        if (call->softmax) dx[i] = y[i] * (g[i] - (dots ? dots[i] : dot));
        else dx[i] = call->act == TN_NONE ? g[i] : g[i] * tn_f64_act_slope(call->act, x_at(call, row, i));
    }
}

/* ---- blocks ---- */

static int64_t theta_heads(const tn_lrpe_work *work, const tn_lrpe_block *block) {
    return work->call.grid.theta_heads == 1 ? 1 : block->heads;
}

static void angles(const tn_lrpe_work *work, const tn_lrpe_block *block) {
    const tn_lrpe_grid *grid = &work->call.grid;
    int64_t first = grid->theta_heads == 1 ? 0 : block->head;
    for (int64_t h = 0; h < theta_heads(work, block); h++)
        for (int64_t t = 0; t < block->tokens; t++) {
            double *c = (double *)block->table + t * block->table_token + h * block->table_head;
            const double *theta = (const double *)work->call.theta + (first + h) * grid->theta_width;
            tn_lrpe_angles_f64(grid, theta, block->token + t, work->moved, c, c + grid->angles);
        }
}

static void forward(const tn_lrpe_work *work, const tn_lrpe_block *block) { tn_lrpe_for_rows(work, block, forward_row); }
static void dots(const tn_lrpe_work *work, const tn_lrpe_block *block) { tn_lrpe_for_rows(work, block, dots_row); }

static void add_block_to_dtheta(const tn_lrpe_work *work, const tn_lrpe_block *block) {
    const tn_lrpe_grid *grid = &work->call.grid;
    for (int64_t h = 0; h < theta_heads(work, block); h++)
        for (int64_t t = 0; t < block->tokens; t++) {
            const double *turn = (const double *)block->turn + t * block->turn_token + h * block->turn_head;
            for (int64_t i = 0; i < grid->angles; i++) {
                int axis = tn_lrpe_axis(grid, i);
                if (axis < 0) continue;
                double coordinate = (double)tn_lrpe_moved_coordinate(grid, block->token + t, axis, work->moved);
                block->dtheta[h * grid->angles + i] += coordinate * turn[i];
            }
        }
}

static void backward(const tn_lrpe_work *work, const tn_lrpe_block *block) {
    if (block->turn) memset(block->turn, 0, (size_t)(block->tokens * theta_heads(work, block) * work->call.grid.angles) * sizeof(double));
    tn_lrpe_for_rows(work, block, backward_row);
    if (block->turn) add_block_to_dtheta(work, block);
}

/* ---- columns of tokens ---- */

static void columns(const tn_lrpe_columns *c, tn_dtype dtype) {
    (void)dtype;
    for (int64_t i = 0; i < c->width; i++) {
        const double *x = (const double *)c->x + i * c->feature_stride;
        double max = -INFINITY, sum = 0;
        for (int64_t t = 0; t < c->tokens; t++) max = fmax(max, x[t * c->token_stride]);
        for (int64_t t = 0; t < c->tokens; t++) sum += exp(x[t * c->token_stride] - finite_base(max));
        ((double *)c->max)[i] = max;
        ((double *)c->sum)[i] = sum;
    }
}

static void merge_columns(const tn_lrpe_work *work, int64_t begin, int64_t end) {
    int64_t all = work->call.batch * work->call.heads * work->call.width;
    for (int64_t i = begin; i < end; i++) {
        const double *piece_max = (const double *)work->piece_max + i, *piece_sum = (const double *)work->piece_sum + i;
        double max = -INFINITY, sum = 0;
        for (int64_t piece = 0; piece < work->pieces; piece++) max = fmax(max, piece_max[piece * all]);
        for (int64_t piece = 0; piece < work->pieces; piece++)
            sum += piece_sum[piece * all] * exp(piece_max[piece * all] - finite_base(max));
        ((double *)work->max)[i] = max;
        ((double *)work->sum)[i] = sum;
    }
}

static void merge_dots(const tn_lrpe_work *work, int64_t begin, int64_t end) {
    int64_t all = work->call.batch * work->call.heads * work->call.width;
    for (int64_t i = begin; i < end; i++) {
        double dot = 0;
        for (int64_t chunk = 0; chunk < work->chunks; chunk++) dot += ((const double *)work->chunk_dot)[chunk * all + i];
        ((double *)work->dot)[i] = dot;
    }
}

const tn_lrpe_kernels tn_lrpe_kernels_f64 = {
    .angles = angles,
    .forward = forward,
    .dots = dots,
    .backward = backward,
    .columns = columns,
    .merge_columns = merge_columns,
    .merge_dots = merge_dots,
};
