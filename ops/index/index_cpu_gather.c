#include "index_internal.h"

#include <stdatomic.h>
#include <string.h>

#include "../../libtensor/parallel.h"
#include "../../libtensor/simd.h"
#include "../op_support.h"

#define TASK_SIZE 8192 /* elements for one turn of a thread at least */
#define PANEL 64       /* columns that belong to one task where the first axis is gathered */

typedef struct gather {
    const tn_tensor *index, *x; /* x: forward only */
    int axis, last;             /* the gathered axis, the index's last one */
    int64_t limit;              /* indices lie in [0, limit) */
    char *o;
    _Atomic int64_t bad; /* the first position with an index outside; numel: none */

    /* backward */
    const tn_tensor *dout;
    tn_tensor *dx;
    int64_t slice; /* elements of dx from the gathered axis on */
    char *wide;    /* f32 sums of bf16 gradients, a slice per thread (of all dx where the first axis is gathered) */
} gather;

static void note_bad(gather *g, int64_t at) {
    int64_t bad = g->bad;
    while (at < bad && !atomic_compare_exchange_weak(&g->bad, &bad, at)) continue;
}

/* ---- forward: a row of the index's last axis at a time ---- */

#define READ_ROW(type)                                                                                       \
    for (int64_t j = 0; j < n; j++) {                                                                        \
        int64_t i = tn_index_at(g->index, index_at + j * index_stride);                                      \
        if ((uint64_t)i < (uint64_t)g->limit)                                                                \
            ((type *)g->o)[row * n + j] = ((const type *)g->x->data)[x_at + j * x_stride + i * axis_stride]; \
        else note_bad(g, row *n + j);                                                                        \
    }

static void read_row(gather *g, int64_t row, int64_t index_at, int64_t x_at) {
    const tn_tensor *x = g->x;
    int64_t n = g->index->shape[g->last], index_stride = g->index->stride[g->last];
    int64_t axis_stride = x->stride[g->axis], x_stride = g->last == g->axis ? 0 : x->stride[g->last];
    int64_t first = tn_index_at(g->index, index_at);
    if (index_stride == 0 && x_stride == 1 && (uint64_t)first < (uint64_t)g->limit) {
        size_t size = tn_dtype_size(x->dtype);
        memcpy(g->o + (size_t)(row * n) * size, (const char *)x->data + (x_at + first * axis_stride) * (int64_t)size, (size_t)n * size);
        return;
    }
    switch (tn_dtype_size(x->dtype)) {
    case 8: READ_ROW(uint64_t) break;
    case 4: READ_ROW(uint32_t) break;
    case 2: READ_ROW(uint16_t) break;
    default: READ_ROW(uint8_t)
    }
}

static void read_rows(void *user, int64_t begin, int64_t end) {
    gather *g = user;
    for (int64_t row = begin; row < end; row++) {
        int64_t index_at = 0, x_at = 0, rest = row;
        for (int i = g->last - 1; i >= 0; i--) {
            int64_t at = rest % g->index->shape[i];
            rest /= g->index->shape[i];
            index_at += at * g->index->stride[i];
            if (i != g->axis) x_at += at * g->x->stride[i];
        }
        read_row(g, row, index_at, x_at);
    }
}

static tn_status refuse_index(tn_op_call *call, const gather *g) {
    int64_t offset = 0, rest = g->bad;
    for (int i = g->last; i >= 0; i--) {
        offset += rest % g->index->shape[i] * g->index->stride[i];
        rest /= g->index->shape[i];
    }
    tn_refuse(call, TN_ERR_ARGUMENT, "index %lld at position %lld: wanted 0 to %lld", (long long)tn_index_at(g->index, offset),
              (long long)g->bad, (long long)g->limit - 1);
    return TN_ERR_ARGUMENT;
}

tn_status tn_gather_forward_cpu(tn_op_call *call) {
    const tn_tensor *x = call->in[0], *index = call->in[1];
    if (index->numel == 0) return TN_OK;
    gather g = { .index = index, .x = x, .o = call->out[0]->data, .last = index->axes - 1, .bad = index->numel };
    g.axis = tn_axis_of(((const tn_gather_args *)call->args)->dim, x->axes);
    g.limit = x->shape[g.axis];
    int64_t n = index->shape[g.last], n_rows = index->numel / n;
    tn_parallel_for(n_rows, tn_even_grain(n_rows, TASK_SIZE / n + 1, 1, call->threads), read_rows, &g, call->threads);
    return g.bad < index->numel ? refuse_index(call, &g) : TN_OK;
}

/* ---- backward: a task owns a slice of dx from the gathered axis on, or some columns where that is the first axis ---- */

size_t tn_gather_workspace(const tn_op_call *call, bool backward) {
    if (!backward || call->in_spec[0].dtype != TN_BF16) return 0;
    const tn_shape *shape = &call->in_spec[0].shape;
    int axis = tn_axis_of(((const tn_gather_args *)call->args)->dim, shape->axes);
    int64_t slices = axis ? tn_threads(call->cx) : 1;
    for (int i = axis; i < shape->axes; i++) slices *= shape->size[i];
    return (size_t)slices * sizeof(float);
}

#define ADD_ROW(sum_type, from_type, widen)                                                                                  \
    for (int64_t j = first; j < last; j++) {                                                                                 \
        int64_t i = tn_index_at(g->index, index_at + j * index_stride);                                                      \
        ((sum_type *)to)[to_at + j * to_stride + i * axis_stride] += widen(((const from_type *)g->dout->data)[dout_at + j]); \
    }

/* Columns [first, last) of one row of do. */
static void add_row(const gather *g, char *to, int64_t to_at, int64_t index_at, int64_t dout_at, int64_t first, int64_t last) {
    int64_t index_stride = g->index->stride[g->last], axis_stride = g->dx->stride[g->axis], to_stride = g->last == g->axis ? 0 : 1;
    if (g->dx->dtype == TN_F64) ADD_ROW(double, double, )
    else if (g->dx->dtype == TN_F32) ADD_ROW(float, float, )
    else ADD_ROW(float, tn_bf16, tn_bf16_to_f32)
}

/* All rows of do from the gathered axis on, whose first is at the given places, into a slice of sums. */
static void add_slice(const gather *g, char *to, int64_t index_at, int64_t dout_at, int64_t first, int64_t last) {
    int64_t n_rows = 1;
    for (int i = g->axis; i < g->last; i++) n_rows *= g->index->shape[i];
    for (int64_t row = 0; row < n_rows; row++) {
        int64_t to_at = 0, index_offset = 0, rest = row;
        for (int i = g->last - 1; i >= g->axis; i--) {
            int64_t at = rest % g->index->shape[i];
            rest /= g->index->shape[i];
            index_offset += at * g->index->stride[i];
            if (i != g->axis) to_at += at * g->dx->stride[i];
        }
        add_row(g, to, to_at, index_at + index_offset, dout_at + row * g->index->shape[g->last], first, last);
    }
}

TN_SIMD_CLONES static void narrow(const float *from, tn_bf16 *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = tn_f32_to_bf16(from[i]);
}

/* Where the index's part of an outer place starts; false if the place lies beyond the index. */
static bool outer_place(const gather *g, int64_t outer, int64_t *index_at, int64_t *dout_at) {
    *index_at = *dout_at = 0;
    for (int i = g->axis - 1; i >= 0; i--) {
        int64_t at = outer % g->dx->shape[i];
        outer /= g->dx->shape[i];
        if (at >= g->index->shape[i]) return false;
        *index_at += at * g->index->stride[i];
        *dout_at += at * g->dout->stride[i];
    }
    return true;
}

static void add_slices(void *user, int64_t begin, int64_t end) {
    const gather *g = user;
    bool wide = g->dx->dtype == TN_BF16;
    size_t size = wide ? sizeof(float) : tn_dtype_size(g->dx->dtype), n_bytes = (size_t)g->slice * size;
    char *own = wide ? g->wide + (size_t)tn_parallel_index() * n_bytes : NULL;
    for (int64_t outer = begin; outer < end; outer++) {
        int64_t index_at, dout_at;
        char *to = wide ? own : (char *)g->dx->data + (size_t)outer * n_bytes;
        memset(to, 0, n_bytes);
        if (outer_place(g, outer, &index_at, &dout_at)) add_slice(g, to, index_at, dout_at, 0, g->index->shape[g->last]);
        if (wide) narrow((const float *)to, (tn_bf16 *)g->dx->data + outer * g->slice, g->slice);
    }
}

static void add_columns(void *user, int64_t begin, int64_t end) {
    const gather *g = user;
    int64_t n = g->index->shape[g->last], width = g->last == g->axis ? n : PANEL;
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t first = panel * width, last = first + width < n ? first + width : n;
        add_slice(g, g->dx->dtype == TN_BF16 ? g->wide : g->dx->data, 0, 0, first, last);
    }
}

static void add_along_first(gather *g, int threads) {
    bool wide = g->dx->dtype == TN_BF16;
    int64_t n = g->index->shape[g->last];
    memset(wide ? g->wide : g->dx->data, 0, (size_t)g->dx->numel * (wide ? sizeof(float) : tn_dtype_size(g->dx->dtype)));
    /* Columns of a single axis may meet in one place, so they stay with one task. */
    int64_t n_panels = n == 0 ? 0 : g->last == g->axis ? 1 : tn_chunk_count(n, PANEL);
    int64_t grain = g->dout->numel < TASK_SIZE ? n_panels : 1;
    tn_parallel_for(n_panels, grain, add_columns, g, threads);
    if (wide) narrow((const float *)g->wide, g->dx->data, g->dx->numel);
}

tn_status tn_gather_backward_cpu(tn_op_call *call) {
    gather g = { .index = call->in[1], .dout = call->dout[0], .dx = call->din[0], .wide = call->workspace };
    if (g.dx->numel == 0) return TN_OK;
    g.axis = tn_axis_of(((const tn_gather_args *)call->args)->dim, g.dx->axes);
    g.last = g.dx->axes - 1;
    g.slice = 1;
    for (int i = g.axis; i <= g.last; i++) g.slice *= g.dx->shape[i];
    if (g.axis == 0) {
        add_along_first(&g, call->threads);
        return TN_OK;
    }
    int64_t n_slices = g.dx->numel / g.slice;
    tn_parallel_for(n_slices, tn_even_grain(n_slices, TASK_SIZE / g.slice + 1, 1, call->threads), add_slices, &g, call->threads);
    return TN_OK;
}
