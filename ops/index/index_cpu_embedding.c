#include "index_internal.h"

#include "../../libtensor/parallel.h"
#include "../lanes_cpu.h"

#define PANEL 256       /* columns of the table at a time */
#define ROW_BLOCK 64    /* rows of the table in one task */
#define SUM_BLOCK 256   /* rows added in f32 before the sum goes into an f64 */
#define TASK_SIZE 16384 /* elements for one turn of a thread at least */

typedef struct embedding {
    const tn_tensor *index;
    const char *from; /* forward: weight; backward: do */
    char *to;         /* forward: o; backward: dweight */
    tn_dtype dtype;
    int64_t n_rows, width; /* v, d */
    int64_t n_panels, n_blocks;
    const int64_t *end; /* backward: where the places of row r end in `place`, which lists them row by row, rising */
    const int64_t *place;
} embedding;

/* ---- forward ---- */

static bool index_fits(tn_op_call *call, const tn_tensor *index, int64_t n_rows) {
    bool fits = true;
    for (int64_t i = 0; i < index->numel; i++) fits &= (uint64_t)tn_index_at(index, i) < (uint64_t)n_rows;
    if (fits) return true;
    int64_t i = 0;
    while ((uint64_t)tn_index_at(index, i) < (uint64_t)n_rows) i++;
    return tn_refuse(call, TN_ERR_ARGUMENT, "index %lld at position %lld: wanted 0 to %lld", (long long)tn_index_at(index, i), (long long)i,
                     (long long)n_rows - 1);
}

static void copy_rows(void *user, int64_t begin, int64_t end) {
    const embedding *e = user;
    size_t row_bytes = (size_t)e->width * tn_dtype_size(e->dtype);
    for (int64_t i = begin; i < end; i++)
        memcpy(e->to + (size_t)i * row_bytes, e->from + (size_t)tn_index_at(e->index, i) * row_bytes, row_bytes);
}

tn_status tn_embedding_forward_cpu(tn_op_call *call) {
    const tn_tensor *weight = call->in[0], *index = call->in[1];
    embedding e = { .index = index, .from = weight->data, .to = call->out[0]->data, .dtype = weight->dtype, .width = weight->shape[1] };
    if (!index_fits(call, index, weight->shape[0])) return TN_ERR_ARGUMENT;
    if (e.width == 0) return TN_OK;
    tn_parallel_for(index->numel, tn_even_grain(index->numel, TASK_SIZE / e.width + 1, 1, call->threads), copy_rows, &e, call->threads);
    return TN_OK;
}

/* ---- backward: the places are sorted by row, then every row sums its own, in order ---- */

size_t tn_embedding_workspace(const tn_op_call *call, bool backward) {
    return backward ? (size_t)(call->in_spec[0].shape.size[0] + call->in[1]->numel) * sizeof(int64_t) : 0;
}

/* Counting sort; afterwards end[r] is where row r ends. */
static void sort_places(const tn_tensor *index, int64_t n_rows, int64_t *end, int64_t *place) {
    memset(end, 0, (size_t)n_rows * sizeof *end);
    for (int64_t i = 0; i < index->numel; i++) end[tn_index_at(index, i)]++;
    int64_t begin = 0;
    for (int64_t row = 0; row < n_rows; row++) {
        int64_t count = end[row];
        end[row] = begin;
        begin += count;
    }
    for (int64_t i = 0; i < index->numel; i++) place[end[tn_index_at(index, i)]++] = i;
}

/* n columns of the sum of `count` rows of do, the first of which are at `from`. */
TN_INLINE void sum_places(tn_dtype dtype, void *to, const void *from, int64_t stride, const int64_t *place, int64_t count, int64_t n) {
    float sum[PANEL];
    double total[PANEL];
    for (int64_t first = 0; first < count; first += SUM_BLOCK) {
        int64_t last = count - first < SUM_BLOCK ? count : first + SUM_BLOCK;
        for (int64_t i = 0; i < n; i += TN_VF_LANES)
            tn_vf_store(sum + i, tn_lanes_load(dtype, tn_elements_after(dtype, from, place[first] * stride), i, n));
        for (int64_t k = first + 1; k < last; k++) {
            const void *row = tn_elements_after(dtype, from, place[k] * stride);
            for (int64_t i = 0; i < n; i += TN_VF_LANES) tn_vf_store(sum + i, tn_vf_load(sum + i) + tn_lanes_load(dtype, row, i, n));
        }
        if (count <= SUM_BLOCK) break;
        for (int64_t i = 0; i < n; i++) total[i] = (first ? total[i] : 0) + (double)sum[i];
    }
    for (int64_t i = 0; count > SUM_BLOCK && i < n; i++) sum[i] = (float)total[i];
    for (int64_t i = 0; i < n; i += TN_VF_LANES) tn_lanes_store(dtype, to, i, n, tn_vf_load(sum + i));
}

TN_SIMD_CLONES static void sum_places_f32(void *to, const void *from, int64_t stride, const int64_t *place, int64_t count, int64_t n) {
    sum_places(TN_F32, to, from, stride, place, count, n);
}
TN_SIMD_CLONES static void sum_places_bf16(void *to, const void *from, int64_t stride, const int64_t *place, int64_t count, int64_t n) {
    sum_places(TN_BF16, to, from, stride, place, count, n);
}
static void sum_places_f64(void *to, const void *from, int64_t stride, const int64_t *place, int64_t count, int64_t n) {
    double *sum = to;
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t k = 0; k < count; k++)
        for (int64_t i = 0; i < n; i++) sum[i] += ((const double *)from)[place[k] * stride + i];
}

static void sum_row(const embedding *e, int64_t row, int64_t column, int64_t n) {
    int64_t begin = row ? e->end[row - 1] : 0, count = e->end[row] - begin;
    const int64_t *place = e->place + begin;
    void *to = tn_elements_after(e->dtype, e->to, row * e->width + column);
    const void *from = tn_elements_after(e->dtype, e->from, column);
    if (count == 0) memset(to, 0, (size_t)n * tn_dtype_size(e->dtype));
    else if (e->dtype == TN_F64) sum_places_f64(to, from, e->width, place, count, n);
    else if (e->dtype == TN_F32) sum_places_f32(to, from, e->width, place, count, n);
    else sum_places_bf16(to, from, e->width, place, count, n);
}

/* Panel by panel: a row that most places point at is then still shared among the threads. */
static void sum_blocks(void *user, int64_t begin, int64_t end) {
    const embedding *e = user;
    for (int64_t task = begin; task < end; task++) {
        int64_t column = task / e->n_blocks * PANEL, first = task % e->n_blocks * ROW_BLOCK;
        int64_t n = e->width - column < PANEL ? e->width - column : PANEL;
        int64_t last = e->n_rows - first < ROW_BLOCK ? e->n_rows : first + ROW_BLOCK;
        for (int64_t row = first; row < last; row++) sum_row(e, row, column, n);
    }
}

tn_status tn_embedding_backward_cpu(tn_op_call *call) {
    const tn_tensor *dweight = call->din[0], *index = call->in[1];
    int64_t *end = call->workspace, n_rows = dweight->shape[0], width = dweight->shape[1];
    embedding e = {
        .index = index, .from = call->dout[0]->data, .to = dweight->data, .dtype = dweight->dtype, .n_rows = n_rows, .width = width
    };
    if (dweight->numel == 0) return TN_OK;
    sort_places(index, n_rows, end, end + n_rows);
    e.end = end;
    e.place = end + n_rows;
    e.n_panels = tn_chunk_count(width, PANEL);
    e.n_blocks = tn_chunk_count(n_rows, ROW_BLOCK);
    int64_t n_tasks = e.n_panels * e.n_blocks;
    int64_t grain = tn_even_grain(n_tasks, TASK_SIZE / (ROW_BLOCK * (width < PANEL ? width : PANEL)) + 1, 1, call->threads);
    tn_parallel_for(n_tasks, grain, sum_blocks, &e, call->threads);
    return TN_OK;
}
