#include "reduction_cpu.h"

#include <stdalign.h>

#include "../libtensor/parallel.h"
#include "lanes_cpu.h"

/* ---- the plan ---- */

#define PANEL TN_REDUCE_PANEL
#define ROW_SEGMENT 4096     /* reduced elements in a block of rows */
#define ROW_PANEL_SIZE 32768 /* elements in a panel of rows, about */
#define GATHERED 2048        /* elements in a block that is gathered */
#define FEW_UNITS 32         /* below so many panels the reduced elements are cut into chunks */
#define CHUNK_SIZE 32768     /* elements in a chunk at least */
#define TASK_SIZE 16384      /* elements for one turn of a thread at least */

typedef struct reduce_axis {
    int64_t size, in_stride, out_stride, index_step;
    bool reduced;
} reduce_axis;

typedef struct reduce_plan {
    const tn_reduction *reduction;
    int n_kept, n_reduced; /* beside across and along */
    reduce_axis kept[TN_MAX_AXES], reduced[TN_MAX_AXES];
    reduce_axis across, along;
    bool as_rows, gathered;
    int64_t panel, n_panels;     /* across */
    int64_t segment, n_segments; /* along */
    int64_t n_units;             /* panels of all kept axes */
    int64_t n_steps;             /* blocks of one panel */
    int64_t n_chunks;            /* of one panel's steps */
    int64_t unit_size;           /* elements read for one panel */
    size_t state_bytes;          /* of one panel */
} reduce_plan;

static int collect_axes(const tn_reduction *r, reduce_axis *axes) {
    int n = 0;
    int64_t out_stride = 1, index_step = 1;
    for (int i = r->in->axes - 1; i >= 0; i--) {
        bool reduced = r->axes >> i & 1;
        int64_t size = r->in->shape[i];
        if (size != 1)
            axes[n++] =
                (reduce_axis){ size, r->in->stride[i], reduced ? 0 : out_stride, reduced && r->reducer->ordered ? index_step : 0, reduced };
        *(reduced ? &index_step : &out_stride) *= size;
    }
    return n;
}

static int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

/* Innermost first. */
static void sort_by_stride(reduce_axis *axes, int n) {
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && magnitude(axes[j].in_stride) < magnitude(axes[j - 1].in_stride); j--) {
            reduce_axis swap = axes[j];
            axes[j] = axes[j - 1];
            axes[j - 1] = swap;
        }
}

static int merge_axes(reduce_axis *axes, int n) {
    int merged = 0;
    for (int i = 1; i < n; i++) {
        reduce_axis *inner = &axes[merged], outer = axes[i];
        if (inner->reduced == outer.reduced && outer.in_stride == inner->size * inner->in_stride &&
            outer.out_stride == inner->size * inner->out_stride && outer.index_step == inner->size * inner->index_step)
            inner->size *= outer.size;
        else axes[++merged] = outer;
    }
    return n ? merged + 1 : 0;
}

static int64_t at_least_1(int64_t x) { return x > 1 ? x : 1; }

static int64_t even_part(int64_t n, int64_t largest, int64_t multiple) {
    int64_t parts = tn_chunk_count(n, largest);
    int64_t part = parts ? (n + parts - 1) / parts : 1;
    part = (part + multiple - 1) / multiple * multiple;
    return part < largest ? part : largest;
}

static void cut_blocks(reduce_plan *plan, const tn_reducer *reducer) {
    int64_t across = plan->across.size, along = plan->along.size;
    if (plan->as_rows) {
        plan->segment = plan->gathered ? GATHERED : ROW_SEGMENT;
        int64_t room = (plan->gathered ? GATHERED : ROW_PANEL_SIZE) / at_least_1(plan->gathered && along > GATHERED ? GATHERED : along);
        plan->panel = even_part(across, room < 1 ? 1 : room > PANEL ? PANEL : room, 1);
    } else {
        plan->panel = even_part(across, PANEL, 16);
        plan->segment = plan->gathered ? at_least_1(GATHERED / plan->panel) : reducer->column_rows;
    }
    if (plan->segment > along) plan->segment = at_least_1(along);
    plan->n_panels = tn_chunk_count(across, plan->panel);
    plan->n_segments = tn_chunk_count(along, plan->segment);
}

static void count_work(reduce_plan *plan) {
    int64_t kept = 1, reduced = 1;
    for (int i = 0; i < plan->n_kept; i++) kept *= plan->kept[i].size;
    for (int i = 0; i < plan->n_reduced; i++) reduced *= plan->reduced[i].size;
    plan->n_units = kept * plan->n_panels;
    plan->n_steps = reduced * plan->n_segments;
    plan->unit_size = reduced * plan->along.size * (plan->panel < plan->across.size ? plan->panel : plan->across.size);
    plan->n_chunks = 1;
    if (plan->n_units > 0 && plan->n_units < FEW_UNITS) {
        plan->n_chunks = tn_chunk_count(FEW_UNITS, plan->n_units);
        if (plan->n_chunks > plan->unit_size / CHUNK_SIZE) plan->n_chunks = at_least_1(plan->unit_size / CHUNK_SIZE);
        if (plan->n_chunks > plan->n_steps) plan->n_chunks = at_least_1(plan->n_steps);
    }
    plan->state_bytes = ((size_t)plan->panel * (size_t)plan->reduction->reducer->state_bytes + 63) & ~(size_t)63;
}

static void make_plan(reduce_plan *plan, const tn_reduction *r) {
    reduce_axis axes[TN_MAX_AXES];
    int n = collect_axes(r, axes);
    sort_by_stride(axes, n);
    n = merge_axes(axes, n);
    plan->reduction = r;
    plan->n_kept = plan->n_reduced = 0;
    plan->across = (reduce_axis){ .size = 1 };
    plan->along = (reduce_axis){ .size = 1, .in_stride = 1, .reduced = true };
    bool have_across = false, have_along = false;
    for (int i = 0; i < n; i++) {
        bool *have = axes[i].reduced ? &have_along : &have_across;
        if (!*have) *(axes[i].reduced ? &plan->along : &plan->across) = axes[i];
        else if (axes[i].reduced) plan->reduced[plan->n_reduced++] = axes[i];
        else plan->kept[plan->n_kept++] = axes[i];
        *have = true;
    }
    bool same_dtype = r->in->dtype == r->reducer->dtype;
    bool columns = same_dtype && plan->across.in_stride == 1, rows = same_dtype && plan->along.in_stride == 1;
    bool along_inside = magnitude(plan->along.in_stride) <= magnitude(plan->across.in_stride) || plan->across.size == 1;
    bool turned = !columns && plan->along.size < r->reducer->short_row && plan->across.size > plan->along.size;
    plan->gathered = turned || (!columns && !rows);
    plan->as_rows = !turned && (plan->gathered ? along_inside : !columns);
    cut_blocks(plan, r->reducer);
    count_work(plan);
}

/* ---- walking over axes ---- */

typedef struct reduce_walk {
    int64_t in, out, index; /* offsets */
    int64_t at[TN_MAX_AXES];
} reduce_walk;

static void walk_to(reduce_walk *walk, const reduce_axis *axes, int n, int64_t place) {
    walk->in = walk->out = walk->index = 0;
    for (int i = 0; i < n; i++) {
        int64_t at = place % axes[i].size;
        place /= axes[i].size;
        walk->at[i] = at;
        walk->in += at * axes[i].in_stride;
        walk->out += at * axes[i].out_stride;
        walk->index += at * axes[i].index_step;
    }
}

static void walk_on(reduce_walk *walk, const reduce_axis *axes, int n) {
    for (int i = 0; i < n; i++) {
        const reduce_axis *axis = &axes[i];
        walk->in += axis->in_stride;
        walk->out += axis->out_stride;
        walk->index += axis->index_step;
        if (++walk->at[i] < axis->size) return;
        walk->at[i] = 0;
        walk->in -= axis->size * axis->in_stride;
        walk->out -= axis->size * axis->out_stride;
        walk->index -= axis->size * axis->index_step;
    }
}

/* ---- gathering what has no unit stride or another dtype ---- */

#define GATHER(to_type, from_type, convert)                                               \
    for (int64_t i = 0; i < n_outer; i++)                                                 \
        for (int64_t j = 0; j < n_inner; j++) {                                           \
            from_type x = ((const from_type *)from)[i * outer_stride + j * inner_stride]; \
            ((to_type *)to)[i * n_inner + j] = convert(x);                                \
        }                                                                                 \
    return;

static void gather(void *to, tn_dtype dtype, const void *from, int64_t n_outer, int64_t outer_stride, int64_t n_inner,
                   int64_t inner_stride) {
    switch (dtype) {
    case TN_F64: GATHER(double, double, )
    case TN_F32: GATHER(float, float, )
    case TN_BF16: GATHER(float, tn_bf16, tn_bf16_to_f32)
    case TN_I64: GATHER(int64_t, int64_t, )
    case TN_I32: GATHER(int64_t, int32_t, )
    case TN_U8: GATHER(int64_t, uint8_t, )
    case TN_BOOL: GATHER(int64_t, uint8_t, !!)
    case TN_DTYPE_COUNT: return;
    }
}

/* ---- one panel ---- */

static const char *address(const reduce_plan *plan, int64_t offset) {
    const tn_tensor *in = plan->reduction->in;
    return (const char *)in->data + offset * (int64_t)tn_dtype_size(in->dtype);
}

static void fold_block(const reduce_plan *plan, void *state, tn_reduce_block *block) {
    const tn_reducer *reducer = plan->reduction->reducer;
    if (plan->gathered) {
        alignas(64) double room[GATHERED];
        tn_dtype dtype = plan->reduction->in->dtype;
        if (plan->as_rows) gather(room, dtype, block->data, block->across, block->across_stride, block->along, block->along_stride);
        else gather(room, dtype, block->data, block->along, block->along_stride, block->across, block->across_stride);
        block->data = room;
        block->across_stride = plan->as_rows ? block->along : 1;
        block->along_stride = plan->as_rows ? 1 : block->across;
        if (reducer->widened) reducer = reducer->widened;
        (plan->as_rows ? reducer->rows : reducer->columns)(state, block);
        return;
    }
    (plan->as_rows ? reducer->rows : reducer->columns)(state, block);
}

/* Folds steps [first, last) of n outputs whose elements start at offset `in`. */
static void fold_steps(const reduce_plan *plan, void *state, int64_t n, int64_t in, int64_t first, int64_t last) {
    if (first >= last) return;
    reduce_walk walk;
    int64_t segment = first % plan->n_segments;
    walk_to(&walk, plan->reduced, plan->n_reduced, first / plan->n_segments);
    for (int64_t step = first; step < last; step++) {
        int64_t begin = segment * plan->segment, rest = plan->along.size - begin;
        tn_reduce_block block = {
            .data = address(plan, in + walk.in + begin * plan->along.in_stride),
            .across = n,
            .along = rest < plan->segment ? rest : plan->segment,
            .across_stride = plan->across.in_stride,
            .along_stride = plan->along.in_stride,
            .index = walk.index + begin * plan->along.index_step,
            .index_step = plan->along.index_step,
            .flip = plan->reduction->flip,
        };
        fold_block(plan, state, &block);
        if (++segment == plan->n_segments) {
            segment = 0;
            walk_on(&walk, plan->reduced, plan->n_reduced);
        }
    }
}

/* A panel: where its inputs and outputs start and how many outputs it has. */
typedef struct reduce_unit {
    int64_t in, out, n;
} reduce_unit;

static reduce_unit unit_at(const reduce_plan *plan, const reduce_walk *kept, int64_t panel) {
    int64_t begin = panel * plan->panel, rest = plan->across.size - begin;
    return (reduce_unit){
        .in = kept->in + begin * plan->across.in_stride,
        .out = kept->out + begin * plan->across.out_stride,
        .n = rest < plan->panel ? rest : plan->panel,
    };
}

static void finish_unit(const reduce_plan *plan, const void *state, const reduce_unit *unit) {
    plan->reduction->reducer->finish(plan->reduction, state, unit->n, unit->out, plan->across.out_stride);
}

/* ---- all panels ---- */

#define STATE_BYTES (PANEL * 16)

static void run_units(void *user, int64_t begin, int64_t end) {
    const reduce_plan *plan = user;
    alignas(64) char state[STATE_BYTES];
    reduce_walk kept;
    int64_t panel = begin % plan->n_panels;
    walk_to(&kept, plan->kept, plan->n_kept, begin / plan->n_panels);
    for (int64_t i = begin; i < end; i++) {
        reduce_unit unit = unit_at(plan, &kept, panel);
        plan->reduction->reducer->start(state, unit.n);
        fold_steps(plan, state, unit.n, unit.in, 0, plan->n_steps);
        finish_unit(plan, state, &unit);
        if (++panel == plan->n_panels) {
            panel = 0;
            walk_on(&kept, plan->kept, plan->n_kept);
        }
    }
}

static reduce_unit unit_of(const reduce_plan *plan, int64_t i) {
    reduce_walk kept;
    walk_to(&kept, plan->kept, plan->n_kept, i / plan->n_panels);
    return unit_at(plan, &kept, i % plan->n_panels);
}

static void run_chunks(void *user, int64_t begin, int64_t end) {
    const reduce_plan *plan = user;
    for (int64_t task = begin; task < end; task++) {
        int64_t chunk = task % plan->n_chunks;
        reduce_unit unit = unit_of(plan, task / plan->n_chunks);
        void *state = (char *)plan->reduction->workspace + (size_t)task * plan->state_bytes;
        plan->reduction->reducer->start(state, unit.n);
        /* Steps are many times more than chunks where it matters, and both are far from overflowing. */
        fold_steps(plan, state, unit.n, unit.in, plan->n_steps * chunk / plan->n_chunks, plan->n_steps * (chunk + 1) / plan->n_chunks);
    }
}

static void merge_chunks(const reduce_plan *plan) {
    for (int64_t i = 0; i < plan->n_units; i++) {
        reduce_unit unit = unit_of(plan, i);
        char *state = (char *)plan->reduction->workspace + (size_t)(i * plan->n_chunks) * plan->state_bytes;
        for (int64_t chunk = 1; chunk < plan->n_chunks; chunk++)
            plan->reduction->reducer->merge(state, state + (size_t)chunk * plan->state_bytes, unit.n);
        finish_unit(plan, state, &unit);
    }
}

size_t tn_reduce_workspace_bytes(const tn_reduction *reduction) {
    if (reduction->in->numel < 2 * CHUNK_SIZE) return 0;
    reduce_plan plan;
    make_plan(&plan, reduction);
    return plan.n_chunks > 1 ? (size_t)(plan.n_units * plan.n_chunks) * plan.state_bytes : 0;
}

void tn_reduce_run(const tn_reduction *reduction) {
    reduce_plan plan;
    make_plan(&plan, reduction);
    if (plan.n_chunks > 1) {
        tn_parallel_for(plan.n_units * plan.n_chunks, 1, run_chunks, &plan, reduction->threads);
        merge_chunks(&plan);
        return;
    }
    int64_t smallest = TASK_SIZE / at_least_1(plan.unit_size) + 1;
    tn_parallel_for(plan.n_units, tn_even_grain(plan.n_units, smallest, 1, reduction->threads), run_units, &plan, reduction->threads);
}

/* ---- sums: f32 within a block, f64 from block to block ---- */

static void sum_start(void *state, int64_t n) { memset(state, 0, (size_t)n * 8); }

TN_INLINE float sum_run(tn_dtype dtype, const void *p, int64_t n) {
    if (n < TN_VF_LANES) {
        float sum = 0;
        for (int64_t i = 0; i < n; i++) sum += tn_element_load(dtype, p, i);
        return sum;
    }
    tn_vf a = tn_vf_zero(), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * TN_VF_LANES <= n; i += 4 * TN_VF_LANES) {
        a += tn_lanes_load(dtype, p, i, n);
        b += tn_lanes_load(dtype, p, i + TN_VF_LANES, n);
        c += tn_lanes_load(dtype, p, i + 2 * TN_VF_LANES, n);
        d += tn_lanes_load(dtype, p, i + 3 * TN_VF_LANES, n);
    }
    for (; i < n; i += TN_VF_LANES) a += tn_lanes_load(dtype, p, i, n);
    return tn_vf_sum((a + b) + (c + d));
}

TN_INLINE void sum_rows(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    double *sum = state;
    for (int64_t a = 0; a < block->across; a++)
        sum[a] += (double)sum_run(dtype, tn_elements_after(dtype, block->data, a * block->across_stride), block->along);
}

TN_INLINE tn_vf sum_4_rows(tn_dtype dtype, const void *p, int64_t stride, int64_t i, int64_t n) {
    return (tn_lanes_load(dtype, p, i, n) + tn_lanes_load(dtype, p, i + stride, n + stride)) +
           (tn_lanes_load(dtype, p, i + 2 * stride, n + 2 * stride) + tn_lanes_load(dtype, p, i + 3 * stride, n + 3 * stride));
}

/* Rows in turn into one row of sums, which stays in the nearest cache. */
TN_INLINE void sum_columns(tn_dtype dtype, void *state, const tn_reduce_block *block) {
    double *total = state;
    alignas(64) float sum[PANEL];
    int64_t n = block->across, stride = block->along_stride, l = 0;
    memset(sum, 0, (size_t)((n + 15) / 16 * 16) * sizeof *sum);
    for (; n >= TN_VF_LANES && l + 8 <= block->along; l += 8) {
        const void *p = tn_elements_after(dtype, block->data, l * stride), *q = tn_elements_after(dtype, p, 4 * stride);
        for (int64_t i = 0; i < n; i += TN_VF_LANES)
            tn_vf_store(sum + i, tn_vf_load(sum + i) + (sum_4_rows(dtype, p, stride, i, n) + sum_4_rows(dtype, q, stride, i, n)));
    }
    for (; l < block->along; l++) {
        const void *p = tn_elements_after(dtype, block->data, l * stride);
        if (n < TN_VF_LANES)
            for (int64_t i = 0; i < n; i++) sum[i] += tn_element_load(dtype, p, i);
        else
            for (int64_t i = 0; i < n; i += TN_VF_LANES) tn_vf_store(sum + i, tn_vf_load(sum + i) + tn_lanes_load(dtype, p, i, n));
    }
    for (int64_t i = 0; i < n; i++) total[i] += (double)sum[i];
}

TN_SIMD_CLONES static void sum_rows_f32(void *state, const tn_reduce_block *block) { sum_rows(TN_F32, state, block); }
TN_SIMD_CLONES static void sum_rows_bf16(void *state, const tn_reduce_block *block) { sum_rows(TN_BF16, state, block); }
TN_SIMD_CLONES static void sum_columns_f32(void *state, const tn_reduce_block *block) { sum_columns(TN_F32, state, block); }
TN_SIMD_CLONES static void sum_columns_bf16(void *state, const tn_reduce_block *block) { sum_columns(TN_BF16, state, block); }

TN_SIMD_CLONES static void sum_rows_f64(void *state, const tn_reduce_block *block) {
    double *sum = state;
    for (int64_t a = 0; a < block->across; a++) {
        const double *p = (const double *)block->data + a * block->across_stride;
        tn_vd s = tn_vd_zero(), t = s;
        int64_t i = 0, n = block->along;
        for (; i + 2 * TN_VD_LANES <= n; i += 2 * TN_VD_LANES) {
            s += tn_vd_load(p + i);
            t += tn_vd_load(p + i + TN_VD_LANES);
        }
        double rest = 0;
        for (; i < n; i++) rest += p[i];
        sum[a] += tn_vd_sum(s + t) + rest;
    }
}

TN_SIMD_CLONES static void sum_columns_f64(void *state, const tn_reduce_block *block) {
    double *total = state, sum[PANEL] = { 0 };
    for (int64_t l = 0; l < block->along; l++) {
        const double *p = (const double *)block->data + l * block->along_stride;
        for (int64_t i = 0; i < block->across; i++) sum[i] += p[i];
    }
    for (int64_t i = 0; i < block->across; i++) total[i] += sum[i];
}

static void sum_merge_f64(void *state, const void *later, int64_t n) {
    double *sum = state;
    for (int64_t i = 0; i < n; i++) sum[i] += ((const double *)later)[i];
}

static void sum_finish_f64(const tn_reduction *r, const void *state, int64_t n, int64_t at, int64_t stride) {
    const double *sum = state;
    double divisor = r->divisor;
    if (r->out_dtype == TN_F64)
        for (int64_t i = 0; i < n; i++) ((double *)r->out)[at + i * stride] = sum[i] / divisor;
    else if (r->out_dtype == TN_F32)
        for (int64_t i = 0; i < n; i++) ((float *)r->out)[at + i * stride] = (float)(sum[i] / divisor);
    else
        for (int64_t i = 0; i < n; i++) ((tn_bf16 *)r->out)[at + i * stride] = tn_f32_to_bf16((float)(sum[i] / divisor));
}

static void sum_rows_i64(void *state, const tn_reduce_block *block) {
    uint64_t *sum = state;
    for (int64_t a = 0; a < block->across; a++) {
        const uint64_t *p = (const uint64_t *)block->data + a * block->across_stride;
        for (int64_t l = 0; l < block->along; l++) sum[a] += p[l];
    }
}

static void sum_columns_i64(void *state, const tn_reduce_block *block) {
    uint64_t *sum = state;
    for (int64_t l = 0; l < block->along; l++) {
        const uint64_t *p = (const uint64_t *)block->data + l * block->along_stride;
        for (int64_t i = 0; i < block->across; i++) sum[i] += p[i];
    }
}

static void sum_merge_i64(void *state, const void *later, int64_t n) {
    uint64_t *sum = state;
    for (int64_t i = 0; i < n; i++) sum[i] += ((const uint64_t *)later)[i];
}

static void sum_finish_i64(const tn_reduction *r, const void *state, int64_t n, int64_t at, int64_t stride) {
    for (int64_t i = 0; i < n; i++) ((int64_t *)r->out)[at + i * stride] = ((const int64_t *)state)[i];
}

#define COLUMN_ROWS 256

static const tn_reducer sum_f64 = { TN_F64,          NULL,          false,         8, COLUMN_ROWS, 0, sum_start, sum_rows_f64,
                                    sum_columns_f64, sum_merge_f64, sum_finish_f64 };
static const tn_reducer sum_f32 = { TN_F32,          NULL,          false,         8, COLUMN_ROWS, 0, sum_start, sum_rows_f32,
                                    sum_columns_f32, sum_merge_f64, sum_finish_f64 };
static const tn_reducer sum_bf16 = { TN_BF16,          &sum_f32,      false,         8, COLUMN_ROWS, 0, sum_start, sum_rows_bf16,
                                     sum_columns_bf16, sum_merge_f64, sum_finish_f64 };
static const tn_reducer sum_i64 = { TN_I64,          NULL,          false,         8, COLUMN_ROWS, 0, sum_start, sum_rows_i64,
                                    sum_columns_i64, sum_merge_i64, sum_finish_i64 };

const tn_reducer *tn_reducer_sum(tn_dtype dtype) {
    return dtype == TN_F64 ? &sum_f64 : dtype == TN_F32 ? &sum_f32 : dtype == TN_BF16 ? &sum_bf16 : &sum_i64;
}
