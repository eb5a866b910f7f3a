/* max, min and argmax: value and place of the first winner.
 *
 * Every element becomes an integer key in whose order the largest wins: for floats the bits, turned so that integers compare as the
 * floats do, with NaN above all; min turns the order round. Two elements that are equal have one key. */
#include "reduce_internal.h"

#include <stdalign.h>

#include "../lanes_cpu.h"

/* A panel's state: the n places (-1: no element yet), then the n best keys. */
static void extremum_start(void *state, int64_t n) { memset(state, 0xff, (size_t)n * 8); }

/* ---- f32 and bf16: keys of 32 bits ---- */

/* The sum with 0 makes -0 into 0. */
TN_INLINE tn_vi keys_of(tn_vf x, int32_t flip) {
    tn_vi bits = (tn_vi)(x + 0.0f) ^ flip;
    return tn_vi_select(tn_vf_is_nan(x), tn_vi_set(INT32_MAX), bits ^ ((bits >> 31) & INT32_MAX));
}

TN_INLINE int32_t key_of(float x, int32_t flip) {
    float sum = x + 0.0f;
    int32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    bits ^= flip;
    return x != x ? INT32_MAX : bits ^ ((bits >> 31) & INT32_MAX);
}

/* INT32_MAX comes back as a NaN. */
static float value_of(int32_t key, int32_t flip) {
    int32_t bits = key == INT32_MAX ? key : (key ^ ((key >> 31) & INT32_MAX)) ^ flip;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x == 0 ? 0 : x;
}

static inline void take_32(void *state, int64_t n, int64_t i, int32_t key, int64_t at) {
    int64_t *place = state;
    int32_t *best = (int32_t *)(place + n);
    if (place[i] >= 0 && (key < best[i] || (key == best[i] && at > place[i]))) return;
    place[i] = at;
    best[i] = key;
}

TN_INLINE int32_t best_of_run(tn_dtype dtype, const void *p, int64_t n, int32_t flip, int64_t *place) {
    int32_t best = key_of(tn_element_load(dtype, p, 0), flip);
    *place = 0;
    if (n < TN_VF_LANES) {
        for (int64_t i = 1; i < n; i++) {
            int32_t key = key_of(tn_element_load(dtype, p, i), flip);
            if (key > best) best = key, *place = i;
        }
        return best;
    }
    tn_vi top = keys_of(tn_lanes_load(dtype, p, 0, n), flip), at = tn_vi_lane();
    for (int64_t next = TN_VF_LANES; next < n; next += TN_VF_LANES) {
        int64_t i = next + TN_VF_LANES <= n ? next : n - TN_VF_LANES; /* the last ones overlap: seeing an element twice changes nothing */
        tn_vi keys = keys_of(tn_lanes_load(dtype, p, i, n), flip), better = keys > top;
        top = tn_vi_select(better, keys, top);
        at = tn_vi_select(better, tn_vi_lane() + (int32_t)i, at);
    }
    int32_t keys[TN_VF_LANES], places[TN_VF_LANES];
    memcpy(keys, &top, sizeof keys);
    memcpy(places, &at, sizeof places);
    best = keys[0];
    for (int lane = 1; lane < TN_VF_LANES; lane++) best = keys[lane] > best ? keys[lane] : best;
    int32_t first = INT32_MAX;
    for (int lane = 0; lane < TN_VF_LANES; lane++) first = keys[lane] == best && places[lane] < first ? places[lane] : first;
    *place = first;
    return best;
}

TN_INLINE void extremum_rows(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    int32_t flip = block->flip ? INT32_MIN : 0;
    for (int64_t a = 0; a < block->across; a++) {
        int64_t place;
        int32_t best = best_of_run(dtype, tn_elements_after(dtype, block->data, a * block->across_stride), block->along, flip, &place);
        take_32(state, block->across, a, best, block->index + place * block->index_step);
    }
}

/* Columns i .. i + 15 (of n) of rows l .. l + n_rows - 1 into the best of each column. */
TN_INLINE void fold_strip(tn_dtype dtype, const void *row, int64_t stride, int64_t i, int64_t n, int64_t l, int n_rows, int32_t flip,
                          int32_t *best, int32_t *place) {
    tn_vi top, at;
    memcpy(&top, best + i, sizeof top);
    memcpy(&at, place + i, sizeof at);
    for (int k = 0; k < n_rows; k++, row = tn_elements_after(dtype, row, stride)) {
        tn_vi keys = keys_of(tn_lanes_load(dtype, row, i, n), flip), better = keys > top;
        top = tn_vi_select(better, keys, top);
        at = tn_vi_select(better, tn_vi_set((int32_t)l + k), at);
    }
    memcpy(best + i, &top, sizeof top);
    memcpy(place + i, &at, sizeof at);
}

TN_INLINE void fold_rows(tn_dtype dtype, const tn_reduce_block *block, int64_t l, int n_rows, int32_t flip, int32_t *best, int32_t *place) {
    int64_t n = block->across, stride = block->along_stride, i = 0;
    const void *row = tn_elements_after(dtype, block->data, l * stride);
    for (; i + TN_VF_LANES <= n; i += TN_VF_LANES) fold_strip(dtype, row, stride, i, i + TN_VF_LANES, l, n_rows, flip, best, place);
    if (i < n) fold_strip(dtype, row, stride, i, n, l, n_rows, flip, best, place);
}

TN_INLINE void extremum_columns(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    alignas(64) int32_t best[TN_REDUCE_PANEL], place[TN_REDUCE_PANEL];
    int64_t n = block->across, l = 1;
    int32_t flip = block->flip ? INT32_MIN : 0;
    for (int64_t i = 0; i < n; i += TN_VF_LANES) {
        tn_vi keys = keys_of(tn_lanes_load(dtype, block->data, i, n), flip);
        memcpy(best + i, &keys, sizeof keys);
        memset(place + i, 0, sizeof keys);
    }
    for (; l + 4 <= block->along; l += 4) fold_rows(dtype, block, l, 4, flip, best, place);
    for (; l < block->along; l++) fold_rows(dtype, block, l, 1, flip, best, place);
    for (int64_t i = 0; i < n; i++) take_32(state, n, i, best[i], block->index + place[i] * block->index_step);
}

TN_SIMD_CLONES static void extremum_rows_f32(void *state, const tn_reduce_block *block) { extremum_rows(TN_F32, state, block); }
TN_SIMD_CLONES static void extremum_rows_bf16(void *state, const tn_reduce_block *block) { extremum_rows(TN_BF16, state, block); }
TN_SIMD_CLONES static void extremum_columns_f32(void *state, const tn_reduce_block *block) { extremum_columns(TN_F32, state, block); }
TN_SIMD_CLONES static void extremum_columns_bf16(void *state, const tn_reduce_block *block) { extremum_columns(TN_BF16, state, block); }

static void extremum_merge_32(void *state, const void *later, int64_t n) {
    const int64_t *place = later;
    const int32_t *best = (const int32_t *)(place + n);
    for (int64_t i = 0; i < n; i++)
        if (place[i] >= 0) take_32(state, n, i, best[i], place[i]);
}

/* ---- f64 and integers: keys of 64 bits, an element at a time ---- */

TN_INLINE int64_t wide_key(tn_dtype dtype, const void *p, int64_t i, bool flip) {
    if (dtype == TN_I64) {
        int64_t x = ((const int64_t *)p)[i];
        return flip ? ~x : x; /* turns the order round without overflow */
    }
    double x = ((const double *)p)[i], sum = x + 0.0;
    int64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (flip) bits ^= INT64_MIN;
    return x != x ? INT64_MAX : bits ^ ((bits >> 63) & INT64_MAX);
}

static double wide_value(int64_t key, bool flip) {
    int64_t bits = key ^ ((key >> 63) & INT64_MAX);
    double x;
    if (flip && key != INT64_MAX) bits ^= INT64_MIN;
    memcpy(&x, &bits, sizeof x);
    return x == 0 ? 0 : x;
}

static inline void take_64(void *state, int64_t n, int64_t i, int64_t key, int64_t at) {
    int64_t *place = state, *best = place + n;
    if (place[i] >= 0 && (key < best[i] || (key == best[i] && at > place[i]))) return;
    place[i] = at;
    best[i] = key;
}

TN_INLINE void extremum_rows_wide(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    for (int64_t a = 0; a < block->across; a++) {
        int64_t at = a * block->across_stride, best = wide_key(dtype, block->data, at, block->flip), place = 0;
        for (int64_t l = 1; l < block->along; l++) {
            int64_t key = wide_key(dtype, block->data, at + l, block->flip);
            if (key > best) best = key, place = l;
        }
        take_64(state, block->across, a, best, block->index + place * block->index_step);
    }
}

TN_INLINE void extremum_columns_wide(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    int64_t best[TN_REDUCE_PANEL], place[TN_REDUCE_PANEL], n = block->across;
    for (int64_t a = 0; a < n; a++) {
        best[a] = wide_key(dtype, block->data, a, block->flip);
        place[a] = 0;
    }
    for (int64_t l = 1; l < block->along; l++)
        for (int64_t a = 0; a < n; a++) {
            int64_t key = wide_key(dtype, block->data, l * block->along_stride + a, block->flip);
            bool better = key > best[a];
            best[a] = better ? key : best[a];
            place[a] = better ? l : place[a];
        }
    for (int64_t a = 0; a < n; a++) take_64(state, n, a, best[a], block->index + place[a] * block->index_step);
}

TN_SIMD_CLONES static void extremum_rows_f64(void *state, const tn_reduce_block *block) { extremum_rows_wide(TN_F64, state, block); }
TN_SIMD_CLONES static void extremum_rows_i64(void *state, const tn_reduce_block *block) { extremum_rows_wide(TN_I64, state, block); }
TN_SIMD_CLONES static void extremum_columns_f64(void *state, const tn_reduce_block *block) { extremum_columns_wide(TN_F64, state, block); }
TN_SIMD_CLONES static void extremum_columns_i64(void *state, const tn_reduce_block *block) { extremum_columns_wide(TN_I64, state, block); }

static void extremum_merge_64(void *state, const void *later, int64_t n) {
    const int64_t *place = later, *best = place + n;
    for (int64_t i = 0; i < n; i++)
        if (place[i] >= 0) take_64(state, n, i, best[i], place[i]);
}

/* ---- results ---- */

static void write_places(const tn_reduction *r, const int64_t *place, int64_t n, int64_t at, int64_t stride) {
    if (!r->index) return;
    for (int64_t i = 0; i < n; i++) {
        if (r->index_dtype == TN_I64) ((int64_t *)r->index)[at + i * stride] = place[i];
        else ((int32_t *)r->index)[at + i * stride] = (int32_t)place[i];
    }
}

static void extremum_finish_32(const tn_reduction *r, const void *state, int64_t n, int64_t at, int64_t stride) {
    const int64_t *place = state;
    const int32_t *best = (const int32_t *)(place + n);
    int32_t flip = r->flip ? INT32_MIN : 0;
    write_places(r, place, n, at, stride);
    for (int64_t i = 0; r->out && i < n; i++) {
        if (r->out_dtype == TN_F32) ((float *)r->out)[at + i * stride] = value_of(best[i], flip);
        else ((tn_bf16 *)r->out)[at + i * stride] = tn_f32_to_bf16(value_of(best[i], flip));
    }
}

static void extremum_finish_64(const tn_reduction *r, const void *state, int64_t n, int64_t at, int64_t stride) {
    const int64_t *place = state, *best = place + n;
    write_places(r, place, n, at, stride);
    for (int64_t i = 0; r->out && i < n; i++) {
        int64_t whole = r->flip ? ~best[i] : best[i];
        switch (r->out_dtype) {
        case TN_F64: ((double *)r->out)[at + i * stride] = wide_value(best[i], r->flip); break;
        case TN_I64: ((int64_t *)r->out)[at + i * stride] = whole; break;
        case TN_I32: ((int32_t *)r->out)[at + i * stride] = (int32_t)whole; break;
        default: ((uint8_t *)r->out)[at + i * stride] = (uint8_t)whole;
        }
    }
}

#define COLUMN_ROWS 256
#define SHORT_ROW 32

static const tn_reducer extremum_f64 = { TN_F64,
                                         NULL,
                                         true,
                                         16,
                                         COLUMN_ROWS,
                                         SHORT_ROW,
                                         extremum_start,
                                         extremum_rows_f64,
                                         extremum_columns_f64,
                                         extremum_merge_64,
                                         extremum_finish_64 };
static const tn_reducer extremum_f32 = { TN_F32,
                                         NULL,
                                         true,
                                         12,
                                         COLUMN_ROWS,
                                         SHORT_ROW,
                                         extremum_start,
                                         extremum_rows_f32,
                                         extremum_columns_f32,
                                         extremum_merge_32,
                                         extremum_finish_32 };
static const tn_reducer extremum_bf16 = {
    TN_BF16,           &extremum_f32,     true, 12, COLUMN_ROWS, SHORT_ROW, extremum_start, extremum_rows_bf16, extremum_columns_bf16,
    extremum_merge_32, extremum_finish_32
};
static const tn_reducer extremum_i64 = { TN_I64,
                                         NULL,
                                         true,
                                         16,
                                         COLUMN_ROWS,
                                         SHORT_ROW,
                                         extremum_start,
                                         extremum_rows_i64,
                                         extremum_columns_i64,
                                         extremum_merge_64,
                                         extremum_finish_64 };

const tn_reducer *tn_reducer_extremum(tn_dtype dtype) {
    return dtype == TN_F64 ? &extremum_f64 : dtype == TN_F32 ? &extremum_f32 : dtype == TN_BF16 ? &extremum_bf16 : &extremum_i64;
}
