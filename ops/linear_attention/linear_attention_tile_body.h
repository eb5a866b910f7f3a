/* The tile functions for one type: included by linear_attention_cpu_tile.c after tile_f32.h and after tile_f64.h, which say what REAL,
 * OF(name) and the primitives are. */

static REAL *OF(row_of)(const void *tile, int64_t ld, int64_t i) { return (REAL *)tile + i * ld; }

/* x's element (token i of the tile, feature 0), counted from x's first. */
static int64_t OF(at_row)(const tn_la_operand *x, const tn_la_place *at, int64_t i) {
    return at->batch * x->stride.batch + at->head * x->stride.head + (at->first + i) * x->stride.token;
}

TN_INLINE void OF(load_row)(tn_dtype dtype, const void *from, int64_t n, REAL *restrict to) {
    for (int64_t j = 0; j < n; j++) to[j] = LOAD(dtype, from, j);
}

TN_INLINE void OF(load_rows)(tn_dtype dtype, const tn_la_operand *x, const tn_la_place *at, void *tile, int64_t ld) {
    for (int64_t i = 0; i < at->count; i++)
        OF(load_row)(dtype, AFTER(dtype, x->x, OF(at_row)(x, at, i)), x->width, OF(row_of)(tile, ld, i));
}

TN_SIMD_CLONES static void OF(load)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, void *tile, int64_t ld) {
    FOR_DTYPE(p->dtype, OF(load_rows), x, at, tile, ld);
}

TN_INLINE void OF(softmax_row)(REAL *row, int64_t n) {
    REAL most = OF(row_max)(row, n, row[0]);
    for (int64_t j = 0; j < n; j++) row[j] = EXP(row[j] - most);
    REAL factor = 1 / OF(row_sum)(row, n);
    for (int64_t j = 0; j < n; j++) row[j] *= factor;
}

TN_INLINE void OF(softmax_column)(REAL *restrict row, const REAL *restrict maximum, const REAL *restrict sum, int64_t n) {
    for (int64_t j = 0; j < n; j++) row[j] = EXP(row[j] - maximum[j]) / sum[j];
}

/* Where the statistics of x's (batch, head) begin. */
static REAL *OF(column)(const tn_la_problem *p, const void *statistics, const tn_la_place *at) {
    return (REAL *)statistics + (at->batch * p->h + at->head) * p->d;
}

TN_INLINE void OF(act_row)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, REAL *row) {
    int64_t n = x->width;
#define ACT_LOOP(act) \
    for (int64_t j = 0; j < n; j++) row[j] = ACT(act, row[j])
    FOR_CONSTANT_ACT(x->act, ACT_LOOP)
#undef ACT_LOOP
    if (x->act != TN_SOFTMAX) return;
    if (x->over_sequence) OF(softmax_column)(row, OF(column)(p, x->maximum, at), OF(column)(p, x->sum, at), n);
    else OF(softmax_row)(row, n);
}

TN_INLINE void OF(rotate_row)(REAL *restrict first, REAL *restrict second, const REAL *restrict c, const REAL *restrict s, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        REAL a = first[j], b = second[j];
        first[j] = a * c[j] - b * s[j];
        second[j] = a * s[j] + b * c[j];
    }
}
TN_INLINE void OF(spread_row)(REAL *restrict first, REAL *restrict second, const REAL *restrict c, const REAL *restrict s, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        second[j] = first[j] * s[j];
        first[j] = first[j] * c[j];
    }
}

TN_INLINE void OF(encode_rows)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, void *tile, int64_t ld,
                               tn_la_turn turn) {
    const tn_lrpe_grid *grid = &x->grid;
    const REAL *theta = (const REAL *)p->theta + (grid->theta_heads == 1 ? 0 : at->head * grid->theta_width);
    REAL largest = LARGEST_THETA(grid, theta);
    for (int64_t i = 0; i < at->count; i++) {
        REAL *row = OF(row_of)(tile, ld, i), *c = (REAL *)turn.cosine + i * grid->angles, *s = (REAL *)turn.sine + i * grid->angles;
        ANGLES(grid, theta, largest, at->position + i, c, s);
        if (p->kind == TN_ROTATE) OF(rotate_row)(row, row + grid->angles, c, s, grid->angles);
        else OF(spread_row)(row, row + grid->angles, c, s, grid->angles);
    }
}

TN_SIMD_CLONES static void OF(prepare)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, double scale, void *tile,
                                       int64_t ld, tn_la_turn turn) {
    FOR_DTYPE(p->dtype, OF(load_rows), x, at, tile, ld);
    if (x->act != TN_NONE)
        for (int64_t i = 0; i < at->count; i++) OF(act_row)(p, x, at, OF(row_of)(tile, ld, i));
    if (x->encoded) OF(encode_rows)(p, x, at, tile, ld, turn);
    if (scale == 1) return;
    int64_t width = x->encoded ? p->state_rows : x->width;
    for (int64_t i = 0; i < at->count; i++) {
        REAL *row = OF(row_of)(tile, ld, i);
        for (int64_t j = 0; j < width; j++) row[j] *= (REAL)scale;
    }
}

/* For a token: turned[j] += coordinate of j's axis * (d2 x1 - d1 x2), the gradient of the angle of feature j. */
TN_INLINE void OF(turned_row)(const tn_lrpe_grid *grid, int64_t token, const REAL *restrict x, const REAL *restrict d,
                              double *restrict turned) {
    int64_t half = grid->angles;
    for (int axis = 0; axis < grid->axes; axis++) {
        tn_lrpe_features at = tn_lrpe_features_of(grid, axis);
        double coordinate = (double)tn_lrpe_coordinate(grid, token, axis);
        if (coordinate == 0) continue;
        for (int64_t j = at.first; j < at.last; j++) turned[j] += coordinate * (double)(d[half + j] * x[j] - d[j] * x[half + j]);
    }
}

TN_INLINE void OF(turn_row_back)(const tn_la_operand *x, bool pairs, REAL scale, REAL *restrict first, REAL *restrict second,
                                 const REAL *restrict c, const REAL *restrict s) {
    int64_t n = x->grid.angles;
    for (int64_t j = 0; j < n; j++) {
        REAL a = first[j] * scale, b = second[j] * scale;
        first[j] = a * c[j] + b * s[j];
        if (pairs) second[j] = b * c[j] - a * s[j];
    }
}

TN_SIMD_CLONES static void OF(turn_back)(const tn_la_operand *x, const tn_la_place *at, double scale, const void *tile, void *d, int64_t ld,
                                         tn_la_turn turn, double *turned) {
    for (int64_t i = 0; i < at->count; i++) {
        REAL *row = OF(row_of)(d, ld, i);
        if (x->encoded) {
            int64_t n = x->grid.angles;
            const REAL *c = (const REAL *)turn.cosine + i * n, *s = (const REAL *)turn.sine + i * n;
            if (turned) OF(turned_row)(&x->grid, at->position + i, OF(row_of)(tile, ld, i), row, turned);
            if (n < x->width) OF(turn_row_back)(x, true, (REAL)scale, row, row + n, c, s);
            else OF(turn_row_back)(x, false, (REAL)scale, row, row + n, c, s);
        } else if (scale != 1) {
            for (int64_t j = 0; j < x->width; j++) row[j] *= (REAL)scale;
        }
    }
}

/* row := slope of act at row, times d. */
TN_INLINE void OF(slope_row)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, REAL *restrict row,
                             const REAL *restrict d, const double *restrict sums) {
    int64_t n = x->width;
    if (x->act == TN_NONE)
        for (int64_t j = 0; j < n; j++) row[j] = d[j];
#define SLOPE_LOOP(act) \
    for (int64_t j = 0; j < n; j++) row[j] = SLOPE(act, row[j]) * d[j]
    FOR_CONSTANT_ACT(x->act, SLOPE_LOOP)
#undef SLOPE_LOOP
    if (x->act != TN_SOFTMAX) return;
    OF(act_row)(p, x, at, row);
    if (x->over_sequence) {
        for (int64_t j = 0; j < n; j++) row[j] *= d[j] - (REAL)sums[j];
    } else {
        REAL mean = OF(row_dot)(row, d, n);
        for (int64_t j = 0; j < n; j++) row[j] *= d[j] - mean;
    }
}

TN_INLINE void OF(store_row)(tn_dtype dtype, const REAL *restrict row, int64_t n, void *to) {
    for (int64_t j = 0; j < n; j++) STORE(dtype, to, j, row[j]);
}

TN_INLINE void OF(store_gradients)(tn_dtype dtype, const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, const void *d,
                                   int64_t ld, const double *sums, void *dx, REAL *row) {
    for (int64_t i = 0; i < at->count; i++) {
        int64_t first = OF(at_row)(x, at, i);
        if (x->act == TN_NONE) {
            OF(store_row)(dtype, OF(row_of)(d, ld, i), x->width, AFTER(dtype, dx, first));
            continue;
        }
        OF(load_row)(dtype, AFTER(dtype, x->x, first), x->width, row);
        OF(slope_row)(p, x, at, row, OF(row_of)(d, ld, i), sums);
        OF(store_row)(dtype, row, x->width, AFTER(dtype, dx, first));
    }
}

TN_SIMD_CLONES static void OF(store_gradient)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, const void *d,
                                              int64_t ld, const double *sums, void *dx, void *row) {
    FOR_DTYPE(p->dtype, OF(store_gradients), p, x, at, d, ld, sums, dx, (REAL *)row);
}

TN_INLINE void OF(add_sequence_sums)(tn_dtype dtype, const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, const void *d,
                                     int64_t ld, double *sums, REAL *row) {
    for (int64_t i = 0; i < at->count; i++) {
        const REAL *given = OF(row_of)(d, ld, i);
        OF(load_row)(dtype, AFTER(dtype, x->x, OF(at_row)(x, at, i)), x->width, row);
        OF(act_row)(p, x, at, row);
        for (int64_t j = 0; j < x->width; j++) sums[j] += (double)(row[j] * given[j]);
    }
}

TN_SIMD_CLONES static void OF(sequence_sums)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, const void *d,
                                             int64_t ld, double *sums, void *row) {
    FOR_DTYPE(p->dtype, OF(add_sequence_sums), p, x, at, d, ld, sums, (REAL *)row);
}

TN_INLINE void OF(take_statistics)(tn_dtype dtype, const tn_la_operand *x, const tn_la_place *at, REAL *restrict maximum,
                                   REAL *restrict sum, REAL *restrict most) {
    int64_t n = x->width;
    for (int64_t j = 0; j < n; j++) most[j] = maximum[j];
    for (int64_t i = 0; i < at->count; i++) {
        const void *row = AFTER(dtype, x->x, OF(at_row)(x, at, i));
        for (int64_t j = 0; j < n; j++) {
            REAL value = LOAD(dtype, row, j);
            most[j] = value > most[j] ? value : most[j];
        }
    }
    for (int64_t j = 0; j < n; j++) {
        sum[j] *= EXP(maximum[j] - most[j]);
        maximum[j] = most[j];
    }
    for (int64_t i = 0; i < at->count; i++) {
        const void *row = AFTER(dtype, x->x, OF(at_row)(x, at, i));
        for (int64_t j = 0; j < n; j++) sum[j] += EXP(LOAD(dtype, row, j) - most[j]);
    }
}

TN_SIMD_CLONES static void OF(statistics)(const tn_la_problem *p, const tn_la_operand *x, const tn_la_place *at, void *maximum, void *sum,
                                          void *row) {
    FOR_DTYPE(p->dtype, OF(take_statistics), x, at, (REAL *)maximum, (REAL *)sum, (REAL *)row);
}

TN_INLINE void OF(store_rows)(tn_dtype dtype, const tn_la_operand *like, const tn_la_place *at, const void *y, const void *gate, int64_t ld,
                              void *o) {
    for (int64_t i = 0; i < at->count; i++) {
        const REAL *row = OF(row_of)(y, ld, i);
        void *to = AFTER(dtype, o, OF(at_row)(like, at, i));
        if (!gate) {
            OF(store_row)(dtype, row, like->width, to);
            continue;
        }
        const REAL *by = OF(row_of)(gate, ld, i);
        for (int64_t j = 0; j < like->width; j++) STORE(dtype, to, j, row[j] * by[j]);
    }
}

TN_SIMD_CLONES static void OF(store)(const tn_la_problem *p, const tn_la_operand *like, const tn_la_place *at, const void *y,
                                     const void *gate, int64_t ld, void *o) {
    FOR_DTYPE(p->dtype, OF(store_rows), like, at, y, gate, ld, o);
}

TN_SIMD_CLONES static void OF(gate_back)(int64_t count, int64_t width, void *d, void *y, const void *gate, int64_t ld) {
    for (int64_t i = 0; i < count; i++) {
        REAL *restrict given = OF(row_of)(d, ld, i), *restrict value = OF(row_of)(y, ld, i);
        const REAL *restrict by = OF(row_of)(gate, ld, i);
        for (int64_t j = 0; j < width; j++) {
            REAL g = given[j];
            given[j] = g * by[j];
            value[j] = g * value[j];
        }
    }
}

TN_SIMD_CLONES static void OF(multiply)(int64_t count, int64_t width, void *d, const void *gate, int64_t ld) {
    for (int64_t i = 0; i < count; i++) {
        REAL *restrict given = OF(row_of)(d, ld, i);
        const REAL *restrict by = OF(row_of)(gate, ld, i);
        for (int64_t j = 0; j < width; j++) given[j] *= by[j];
    }
}

/* One token: S := factor * S + k' v, y := q S, in one pass over S. */
TN_SIMD_CLONES static void OF(recur)(int64_t rows, int64_t width, double factor, const void *q, const void *k, const void *v,
                                     const void *from, void *to, void *y) {
    const REAL *restrict value = (const REAL *)v;
    REAL *restrict sum = (REAL *)y, by = (REAL)factor;
    for (int64_t j = 0; j < width; j++) sum[j] = 0;
    for (int64_t i = 0; i < rows; i++) {
        REAL query = ((const REAL *)q)[i], key = ((const REAL *)k)[i];
        const REAL *before = from ? (const REAL *)from + i * width : NULL;
        REAL *after = (REAL *)to + i * width;
        for (int64_t j = 0; j < width; j++) {
            REAL state = key * value[j] + (before ? by * before[j] : 0);
            after[j] = state;
            sum[j] += query * state;
        }
    }
}

TN_SIMD_CLONES static void OF(mask)(int64_t count, const double *log, void *a, int64_t ld) {
    for (int64_t i = 0; i < count; i++) {
        REAL *restrict row = OF(row_of)(a, ld, i);
        if (log)
            for (int64_t j = 0; j <= i; j++) row[j] *= EXP((REAL)(log[i] - log[j]));
        for (int64_t j = i + 1; j < count; j++) row[j] = 0;
    }
}

static void OF(take_diagonal)(int64_t count, void *a, int64_t ld, double *diagonal) {
    for (int64_t i = 0; i < count; i++) {
        diagonal[i] = (double)((REAL *)a)[i * ld + i];
        ((REAL *)a)[i * ld + i] = 0;
    }
}

TN_SIMD_CLONES static void OF(add_rows)(int64_t count, int64_t width, const double *factor, const void *from, void *to, int64_t ld) {
    for (int64_t i = 0; i < count; i++) {
        const REAL *restrict row = OF(row_of)(from, ld, i);
        REAL *restrict out = OF(row_of)(to, ld, i), by = (REAL)factor[i];
        for (int64_t j = 0; j < width; j++) out[j] += row[j] * by;
    }
}

TN_SIMD_CLONES static void OF(decay_rows)(int64_t count, int64_t width, const double *log, double whole, bool minus, const void *from,
                                          void *to, int64_t ld) {
    for (int64_t i = 0; i < count; i++) {
        const REAL *restrict row = OF(row_of)(from, ld, i);
        REAL *restrict out = OF(row_of)(to, ld, i);
        REAL factor = (REAL)exp(minus ? whole - log[i] : log[i] - whole);
        for (int64_t j = 0; j < width; j++) out[j] = row[j] * factor;
    }
}

TN_SIMD_CLONES static void OF(dots)(int64_t count, int64_t width, const void *a, const void *b, int64_t ld, double sign, double *sums) {
    for (int64_t i = 0; i < count; i++) sums[i] += sign * (double)OF(row_dot)(OF(row_of)(a, ld, i), OF(row_of)(b, ld, i), width);
}

TN_SIMD_CLONES static void OF(scale)(int64_t n, double factor, void *to) {
    REAL *x = (REAL *)to;
    for (int64_t j = 0; j < n; j++) x[j] *= (REAL)factor;
}

TN_SIMD_CLONES static double OF(dot)(int64_t n, const void *a, const void *b) {
    double sum = 0;
    const REAL *x = (const REAL *)a, *y = (const REAL *)b;
    for (int64_t j = 0; j < n; j += 256) sum += (double)OF(row_dot)(x + j, y + j, n - j < 256 ? n - j : 256);
    return sum;
}

const tn_la_tile_ops OF(tn_la_tiles) = {
    .size = sizeof(REAL),
    .load = OF(load),
    .prepare = OF(prepare),
    .turn_back = OF(turn_back),
    .store_gradient = OF(store_gradient),
    .sequence_sums = OF(sequence_sums),
    .statistics = OF(statistics),
    .store = OF(store),
    .gate_back = OF(gate_back),
    .multiply = OF(multiply),
    .recur = OF(recur),
    .mask = OF(mask),
    .take_diagonal = OF(take_diagonal),
    .add_rows = OF(add_rows),
    .decay_rows = OF(decay_rows),
    .dots = OF(dots),
    .scale = OF(scale),
    .dot = OF(dot),
};

#undef ACT
#undef SLOPE
#undef LARGEST_THETA
#undef ANGLES
#include "../tile_end.h"
