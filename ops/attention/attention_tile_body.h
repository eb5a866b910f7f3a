/* The tile functions for one type: included by attention_cpu_tile.c after tile_f32.h and after tile_f64.h, which say what REAL, OF(name)
 * and the primitives are. */

#define ROW(tile, ld, i) ((REAL *)(tile) + (i) * (ld))
#define BLENDED 4 /* tokens that are added to a row of o at once */

/* ---- operands ---- */

static int64_t OF(whole_at)(const tn_at_operand *x, const tn_at_place *at, int64_t i) {
    return ((at->batch * x->tokens + at->first + i) * x->heads + at->head) * x->width;
}
static int64_t OF(a_at)(const tn_at_operand *x, const tn_at_place *at, int64_t i) {
    return ((at->batch * x->tokens + at->first + i) * x->heads + at->head) * x->rank;
}
static int64_t OF(x_at)(const tn_at_operand *x, const tn_at_place *at, int64_t i) {
    return (at->batch * x->tokens + at->first + i) * x->rank * x->width;
}

/* Of a row and as many neighbouring elements, the first of which is `first`. */
TN_INLINE REAL OF(data_dot)(tn_dtype dtype, const REAL *restrict row, const void *from, int64_t first, int64_t width) {
    REAL lane[LANES] = { 0 }, rest = 0;
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += row[j + l] * LOAD(dtype, from, first + j + l);
    for (; j < width; j++) rest += row[j] * LOAD(dtype, from, first + j);
    return OF(fold)(lane) + rest;
}

TN_INLINE void OF(load_of)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, void *tile, int64_t ld) {
    REAL factor = (REAL)x->factor;
    int64_t width = x->width;
    for (int64_t i = 0; i < at->count; i++) {
        if (!x->rank) {
            const void *from = tn_elements_after(dtype, x->x, OF(whole_at)(x, at, i));
            for (int64_t g = 0; g < at->heads; g++) {
                REAL *restrict row = ROW(tile, ld, i * at->heads + g);
                for (int64_t j = 0; j < width; j++) row[j] = factor * LOAD(dtype, from, g * width + j);
            }
            continue;
        }
        REAL *restrict row = ROW(tile, ld, i);
        const void *a = tn_elements_after(dtype, x->a, OF(a_at)(x, at, i)), *from = tn_elements_after(dtype, x->x, OF(x_at)(x, at, i));
        for (int64_t r = 0; r < x->rank; r++) {
            REAL weight = factor * LOAD(dtype, a, r);
            for (int64_t j = 0; j < width; j++) row[j] = (r ? row[j] : 0) + weight * LOAD(dtype, from, r * width + j);
        }
    }
}
TN_SIMD_CLONES static void OF(load)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, void *tile, int64_t ld) {
    FOR_DTYPE(dtype, OF(load_of), x, at, tile, ld);
}

TN_INLINE void OF(store_of)(tn_dtype dtype, const tn_at_operand *x, void *to, const tn_at_place *at, const void *scale, const void *tile,
                            int64_t ld) {
    for (int64_t i = 0; i < at->count; i++) {
        void *row_to = tn_elements_after(dtype, to, OF(whole_at)(x, at, i));
        for (int64_t g = 0; g < at->heads; g++) {
            const REAL *restrict row = ROW(tile, ld, i * at->heads + g);
            REAL factor = scale ? ((const REAL *)scale)[i * at->heads + g] : (REAL)x->factor;
            for (int64_t j = 0; j < x->width; j++) STORE(dtype, row_to, g * x->width + j, factor * row[j]);
        }
    }
}
TN_SIMD_CLONES static void OF(store)(tn_dtype dtype, const tn_at_operand *x, void *to, const tn_at_place *at, const void *scale,
                                     const void *tile, int64_t ld) {
    FOR_DTYPE(dtype, OF(store_of), x, to, at, scale, tile, ld);
}

TN_INLINE void OF(back_of)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *d, int64_t ld, void *dx) {
    REAL factor = (REAL)x->factor;
    for (int64_t i = 0; i < at->count; i++) {
        const REAL *restrict row = ROW(d, ld, i);
        const void *a = tn_elements_after(dtype, x->a, OF(a_at)(x, at, i)), *from = tn_elements_after(dtype, x->x, OF(x_at)(x, at, i));
        for (int64_t r = 0; r < x->rank; r++) {
            if (x->da)
                STORE(dtype, tn_elements_after(dtype, x->da, OF(a_at)(x, at, i)), r,
                      factor * OF(data_dot)(dtype, row, from, r * x->width, x->width));
            REAL *restrict to = (REAL *)dx + (i * x->rank + r) * x->width, weight = factor * LOAD(dtype, a, r);
            for (int64_t j = 0; dx && j < x->width; j++) to[j] += weight * row[j];
        }
    }
}
TN_SIMD_CLONES static void OF(back)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *d, int64_t ld, void *dx) {
    FOR_DTYPE(dtype, OF(back_of), x, at, d, ld, dx);
}

TN_INLINE void OF(narrow_of)(tn_dtype dtype, int64_t n, const REAL *restrict from, void *to) {
    for (int64_t i = 0; i < n; i++) STORE(dtype, to, i, from[i]);
}
TN_SIMD_CLONES static void OF(narrow)(tn_dtype dtype, int64_t n, const void *from, void *to) {
    FOR_DTYPE(dtype, OF(narrow_of), n, from, to);
}

TN_INLINE void OF(widen_of)(tn_dtype dtype, int64_t n, const void *from, REAL *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = LOAD(dtype, from, i);
}
TN_SIMD_CLONES static void OF(widen)(tn_dtype dtype, int64_t n, const void *from, void *to) { FOR_DTYPE(dtype, OF(widen_of), n, from, to); }

/* ---- softmax ---- */

TN_SIMD_CLONES static void OF(start)(int64_t rows, int64_t width, void *o, int64_t ld, void *maximum, void *sum) {
    for (int64_t i = 0; i < rows; i++) {
        ((REAL *)maximum)[i] = -(REAL)INFINITY;
        ((REAL *)sum)[i] = 0;
        memset(ROW(o, ld, i), 0, (size_t)width * sizeof(REAL));
    }
}

TN_SIMD_CLONES static void OF(soften)(int64_t rows, int64_t keys, const int64_t *seen, void *s, int64_t ld_s, void *maximum, void *sum,
                                      int64_t width, void *o, int64_t ld_o) {
    for (int64_t i = 0; i < rows; i++) {
        REAL *restrict row = ROW(s, ld_s, i), *restrict out = ROW(o, ld_o, i), *most = (REAL *)maximum + i, *total = (REAL *)sum + i;
        int64_t n = seen[i];
        for (int64_t j = n; j < keys; j++) row[j] = 0;
        if (n == 0) continue;
        REAL before = *most, now = OF(row_max)(row, n, before);
        for (int64_t j = 0; j < n; j++) row[j] = EXP(row[j] - now);
        REAL fresh = OF(row_sum)(row, n), kept = now == before ? 1 : EXP(before - now);
        *most = now;
        *total = *total * kept + fresh;
        if (kept == 1) continue;
        for (int64_t j = 0; j < width; j++) out[j] *= kept;
    }
}

static void OF(finish)(int64_t rows, const void *maximum, const void *sum, void *scale, void *lse) {
    for (int64_t i = 0; i < rows; i++) {
        REAL total = ((const REAL *)sum)[i];
        ((REAL *)scale)[i] = total == 0 ? 0 : 1 / total;
        if (lse) ((REAL *)lse)[i] = total == 0 ? -(REAL)INFINITY : ((const REAL *)maximum)[i] + LOG(total);
    }
}

TN_SIMD_CLONES static void OF(weights)(int64_t rows, int64_t keys, const int64_t *seen, const void *lse, void *s, int64_t ld_s) {
    for (int64_t i = 0; i < rows; i++) {
        REAL *restrict row = ROW(s, ld_s, i), whole = ((const REAL *)lse)[i];
        int64_t n = seen[i];
        /* A score is at most its row's log-sum-exp, but for rounding. */
        for (int64_t j = 0; j < n; j++) row[j] = EXP(row[j] < whole ? row[j] - whole : 0);
        for (int64_t j = n; j < keys; j++) row[j] = 0;
    }
}

TN_SIMD_CLONES static void OF(slopes)(int64_t rows, int64_t keys, const void *delta, const void *s, void *dp, int64_t ld_s) {
    for (int64_t i = 0; i < rows; i++) {
        const REAL *restrict p = ROW(s, ld_s, i);
        REAL *restrict row = ROW(dp, ld_s, i), less = ((const REAL *)delta)[i];
        for (int64_t j = 0; j < keys; j++) row[j] = p[j] * (row[j] - less);
    }
}

TN_SIMD_CLONES static void OF(dots)(int64_t rows, int64_t width, const void *a, const void *b, int64_t ld, void *sums) {
    for (int64_t i = 0; i < rows; i++) ((REAL *)sums)[i] = OF(row_dot)(ROW(a, ld, i), ROW(b, ld, i), width);
}

/* ---- decoding ---- */

TN_INLINE void OF(contract_of)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *t, int64_t ld_t, void *s,
                               int64_t ld_s) {
    REAL factor = (REAL)x->factor;
    for (int64_t g = 0; g < at->heads; g++) {
        const REAL *restrict from = ROW(t, ld_t, g);
        REAL *restrict to = ROW(s, ld_s, g);
        const void *a = tn_elements_after(dtype, x->a, OF(a_at)(x, at, 0) + g * x->rank);
        for (int64_t j = 0; j < at->count; j++) {
            REAL sum = 0;
            for (int64_t r = 0; r < x->rank; r++) sum += LOAD(dtype, a, j * x->heads * x->rank + r) * from[j * x->rank + r];
            to[j] = factor * sum;
        }
    }
}
TN_SIMD_CLONES static void OF(contract)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *t, int64_t ld_t, void *s,
                                        int64_t ld_s) {
    FOR_DTYPE(dtype, OF(contract_of), x, at, t, ld_t, s, ld_s);
}

TN_INLINE void OF(expand_of)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *s, int64_t ld_s, void *t,
                             int64_t ld_t) {
    REAL factor = (REAL)x->factor;
    for (int64_t g = 0; g < at->heads; g++) {
        const REAL *restrict from = ROW(s, ld_s, g);
        REAL *restrict to = ROW(t, ld_t, g);
        const void *a = tn_elements_after(dtype, x->a, OF(a_at)(x, at, 0) + g * x->rank);
        for (int64_t j = 0; j < at->count; j++)
            for (int64_t r = 0; r < x->rank; r++) to[j * x->rank + r] = factor * LOAD(dtype, a, j * x->heads * x->rank + r) * from[j];
    }
}
TN_SIMD_CLONES static void OF(expand)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, const void *s, int64_t ld_s, void *t,
                                      int64_t ld_t) {
    FOR_DTYPE(dtype, OF(expand_of), x, at, s, ld_s, t, ld_t);
}

/* Memory is read from one end to the other: all heads of a token, then the next token. */
TN_INLINE void OF(scores_of)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, int64_t group, const void *q, int64_t ld_q,
                             void *s, int64_t ld_s) {
    REAL factor = (REAL)x->factor;
    tn_at_place first = *at;
    first.head = at->head / group;
    for (int64_t j = 0; j < at->count; j++) {
        const void *token = tn_elements_after(dtype, x->x, OF(whole_at)(x, &first, j));
        for (int64_t g = 0; g < at->heads; g++) {
            ROW(s, ld_s, g)[j] = factor * OF(data_dot)(dtype, ROW(q, ld_q, g), token, g / group * x->width, x->width);
        }
    }
}
TN_SIMD_CLONES static void OF(scores)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, int64_t group, const void *q,
                                      int64_t ld_q, void *s, int64_t ld_s) {
    FOR_DTYPE(dtype, OF(scores_of), x, at, group, q, ld_q, s, ld_s);
}

TN_INLINE void OF(blend_of)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, int64_t group, const void *s, int64_t ld_s,
                            void *o, int64_t ld_o) {
    REAL factor = (REAL)x->factor;
    tn_at_place first = *at;
    first.head = at->head / group;
    for (int64_t j = 0; j < at->count; j += BLENDED) {
        int64_t n = at->count - j < BLENDED ? at->count - j : BLENDED;
        for (int64_t g = 0; g < at->heads; g++) {
            const REAL *weight = ROW(s, ld_s, g) + j;
            REAL *restrict to = ROW(o, ld_o, g);
            const void *from[BLENDED];
            for (int64_t i = 0; i < n; i++) from[i] = tn_elements_after(dtype, x->x, OF(whole_at)(x, &first, j + i) + g / group * x->width);
            if (n == BLENDED) {
                REAL a = factor * weight[0], b = factor * weight[1], c = factor * weight[2], d = factor * weight[3];
                for (int64_t i = 0; i < x->width; i++)
                    to[i] += (a * LOAD(dtype, from[0], i) + b * LOAD(dtype, from[1], i)) +
                             (c * LOAD(dtype, from[2], i) + d * LOAD(dtype, from[3], i));
                continue;
            }
            for (int64_t k = 0; k < n; k++) {
                REAL a = factor * weight[k];
                for (int64_t i = 0; i < x->width; i++) to[i] += a * LOAD(dtype, from[k], i);
            }
        }
    }
}
TN_SIMD_CLONES static void OF(blend)(tn_dtype dtype, const tn_at_operand *x, const tn_at_place *at, int64_t group, const void *s,
                                     int64_t ld_s, void *o, int64_t ld_o) {
    FOR_DTYPE(dtype, OF(blend_of), x, at, group, s, ld_s, o, ld_o);
}

TN_SIMD_CLONES static void OF(merge)(int64_t rows, int64_t width, const void *part, const void *part_maximum, const void *part_sum, void *o,
                                     void *maximum, void *sum) {
    for (int64_t i = 0; i < rows; i++) {
        REAL theirs = ((const REAL *)part_maximum)[i], *most = (REAL *)maximum + i, *total = (REAL *)sum + i;
        if (((const REAL *)part_sum)[i] == 0) continue;
        REAL now = theirs > *most ? theirs : *most, keep = EXP(*most - now), take = EXP(theirs - now);
        const REAL *restrict from = ROW(part, width, i);
        REAL *restrict to = ROW(o, width, i);
        for (int64_t j = 0; j < width; j++) to[j] = to[j] * keep + from[j] * take;
        *total = *total * keep + ((const REAL *)part_sum)[i] * take;
        *most = now;
    }
}

#undef ROW
#undef BLENDED

const tn_at_tile_ops OF(tn_at_tiles) = {
    .size = sizeof(REAL),
    .load = OF(load),
    .store = OF(store),
    .back = OF(back),
    .narrow = OF(narrow),
    .widen = OF(widen),
    .soften = OF(soften),
    .finish = OF(finish),
    .weights = OF(weights),
    .slopes = OF(slopes),
    .dots = OF(dots),
    .contract = OF(contract),
    .expand = OF(expand),
    .scores = OF(scores),
    .blend = OF(blend),
    .merge = OF(merge),
    .start = OF(start),
};

#include "../tile_end.h"
