/* linear_cross_entropy on the CPU: chunks of rows; the logits of one chunk lie in scratch, in f32 (f64 for f64). bf16 data is widened on
 * its way in, x a chunk and weight a panel of rows at a time, and the gradients are summed in f32 and rounded once. The gradients are made
 * in forward, from logits that are there, as if do were 1. */
#include <string.h>

#include "../../libtensor/gemm_cpu.h"
#include "../../libtensor/parallel.h"
#include "../lanes_cpu.h"
#include "../op_support.h"
#include "cross_entropy_internal.h"

#define CHUNK_LOGITS ((int64_t)1 << 22) /* 16 MiB of f32 */
#define PANEL_ELEMENTS ((int64_t)1 << 20)
#define LEAST_CHUNK_ROWS 16
#define MOST_CHUNK_ROWS 1024

typedef tn_status (*tn_gemm)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                             int64_t ldb, double beta, void *c, int64_t ldc, int threads, void *workspace);

typedef struct tn_chunked {
    tn_dtype dtype, wide;
    bool half; /* bf16 */
    int64_t rows, d, v, chunk, panel;
    size_t element, wide_element; /* bytes */
    tn_gemm gemm;
    int threads;
    const char *x, *weight;
    char *dx, *dweight; /* NULL: not wanted */

    /* scratch; max and log_sum for gradients, the last four for bf16 */
    char *logits, *max, *log_sum, *wide_x, *wide_panel, *wide_dx, *wide_dweight;
    size_t scratch_bytes;
} tn_chunked;

/* An even cut whose logits fit CHUNK_LOGITS. */
static int64_t chunk_rows(int64_t rows, int64_t v) {
    int64_t most = CHUNK_LOGITS / (v > 0 ? v : 1);
    most = most < LEAST_CHUNK_ROWS ? LEAST_CHUNK_ROWS : most > MOST_CHUNK_ROWS ? MOST_CHUNK_ROWS : most;
    int64_t chunks = tn_chunk_count(rows, most);
    return chunks > 0 ? (rows + chunks - 1) / chunks : 1;
}

static char *take(tn_chunked *job, char *workspace, int64_t elements) {
    size_t at = job->scratch_bytes;
    job->scratch_bytes += ((size_t)elements * job->wide_element + 63) / 64 * 64;
    return workspace ? workspace + at : NULL;
}

/* With the workspace NULL: only its size. */
static tn_chunked chunked(const tn_op_call *call, char *workspace) {
    const tn_tensor *x = call->in[0], *weight = call->in[1];
    tn_chunked job = { .dtype = x->dtype,
                       .wide = tn_wide_dtype(x->dtype),
                       .half = x->dtype == TN_BF16,
                       .rows = call->in[2]->numel,
                       .d = weight->shape[1],
                       .v = weight->shape[0],
                       .threads = tn_threads(call->cx),
                       .x = x->data,
                       .weight = weight->data };
    job.element = tn_dtype_size(job.dtype);
    job.wide_element = tn_dtype_size(job.wide);
    job.gemm = job.wide == TN_F64 ? tn_gemm_f64 : tn_gemm_f32;
    job.chunk = chunk_rows(job.rows, job.v);
    job.panel = job.half ? PANEL_ELEMENTS / (job.d + 1) + 64 : job.v;
    if (job.panel > job.v) job.panel = job.v;
    job.logits = take(&job, workspace, job.chunk * job.v);
    if (job.half) {
        job.wide_x = take(&job, workspace, job.chunk * job.d);
        job.wide_panel = take(&job, workspace, job.panel * job.d);
    }
    if (!call->wants) return job;
    job.max = take(&job, workspace, job.chunk);
    job.log_sum = take(&job, workspace, job.chunk);
    if (tn_wants(call, 0)) job.dx = call->aux[0]->data;
    if (tn_wants(call, 1)) job.dweight = call->aux[1]->data;
    if (job.half && job.dx) job.wide_dx = take(&job, workspace, job.chunk * job.d);
    if (job.half && job.dweight) job.wide_dweight = take(&job, workspace, job.v * job.d);
    return job;
}

size_t tn_linear_cross_entropy_workspace_cpu(const tn_op_call *call, bool backward) {
    return backward ? 0 : chunked(call, NULL).scratch_bytes;
}

/* ---- bf16 <-> f32 ---- */

typedef struct tn_converted {
    const void *from;
    void *to;
} tn_converted;

TN_SIMD_CLONES static void widen_range(void *user, int64_t begin, int64_t end) {
    const tn_converted *job = user;
    for (int64_t i = begin; i < end; i += TN_VF_LANES) tn_lanes_store(TN_F32, job->to, i, end, tn_lanes_load(TN_BF16, job->from, i, end));
}
TN_SIMD_CLONES static void narrow_range(void *user, int64_t begin, int64_t end) {
    const tn_converted *job = user;
    for (int64_t i = begin; i < end; i += TN_VF_LANES) tn_lanes_store(TN_BF16, job->to, i, end, tn_lanes_load(TN_F32, job->from, i, end));
}

static void convert(tn_range_body body, const void *from, void *to, int64_t n, int threads) {
    tn_converted job = { from, to };
    tn_parallel_for(n, 16384, body, &job, threads);
}

/* ---- one chunk of rows ---- */

static const void *chunk_x(const tn_chunked *job, int64_t first, int64_t rows) {
    const char *x = job->x + (size_t)(first * job->d) * job->element;
    if (!job->half) return x;
    convert(widen_range, x, job->wide_x, rows * job->d, job->threads);
    return job->wide_x;
}

static const void *weight_panel(const tn_chunked *job, int64_t first, int64_t n) {
    const char *weight = job->weight + (size_t)(first * job->d) * job->element;
    if (!job->half) return weight;
    convert(widen_range, weight, job->wide_panel, n * job->d, job->threads);
    return job->wide_panel;
}

static int64_t panel_size(const tn_chunked *job, int64_t first) { return job->v - first < job->panel ? job->v - first : job->panel; }

/* logits = x weight' */
static tn_status make_logits(const tn_chunked *job, const void *x, int64_t rows) {
    tn_status status = TN_OK;
    for (int64_t first = 0; status == TN_OK && first < job->v; first += job->panel) {
        int64_t n = panel_size(job, first);
        status = job->gemm(false, true, rows, n, job->d, 1, x, job->d, weight_panel(job, first, n), job->d, 0,
                           job->logits + (size_t)first * job->wide_element, job->v, job->threads, NULL);
    }
    return status;
}

/* dx = dlogits weight */
static tn_status make_dx(const tn_chunked *job, int64_t first_row, int64_t rows) {
    char *dx = job->dx + (size_t)(first_row * job->d) * job->element, *to = job->half ? job->wide_dx : dx;
    tn_status status = TN_OK;
    for (int64_t first = 0; status == TN_OK && first < job->v; first += job->panel) {
        int64_t n = panel_size(job, first);
        status = job->gemm(false, false, rows, job->d, n, 1, job->logits + (size_t)first * job->wide_element, job->v,
                           weight_panel(job, first, n), job->d, first > 0, to, job->d, job->threads, NULL);
    }
    if (job->half && status == TN_OK) convert(narrow_range, to, dx, rows * job->d, job->threads);
    return status;
}

/* dweight += dlogits' x */
static tn_status add_dweight(const tn_chunked *job, const void *x, int64_t first_row, int64_t rows) {
    return job->gemm(true, false, job->v, job->d, rows, 1, job->logits, job->v, x, job->d, first_row > 0,
                     job->half ? job->wide_dweight : job->dweight, job->d, job->threads, NULL);
}

static tn_entropy_rows chunk_entropy(const tn_op_call *call, const tn_chunked *job, int64_t first, int64_t rows) {
    const tn_cross_entropy_args *args = call->args;
    return (tn_entropy_rows){ .dtype = job->wide,
                              .rows = rows,
                              .v = job->v,
                              .ignore_index = args->ignore_index,
                              .logits = job->logits,
                              .target = (const int64_t *)call->in[2]->data + first,
                              .max = job->max,
                              .log_sum = job->log_sum,
                              .dlogits = job->logits };
}

static int64_t rows_from(const tn_chunked *job, int64_t first) { return job->rows - first < job->chunk ? job->rows - first : job->chunk; }

/* ---- calls ---- */

/* The loss of a chunk is added to *loss; `scale`: what a row's loss counts in the mean. */
static tn_status run_chunk(const tn_op_call *call, const tn_chunked *job, int64_t first, double scale, double *loss) {
    int64_t rows = rows_from(job, first);
    const void *x = chunk_x(job, first, rows);
    tn_status status = make_logits(job, x, rows);
    if (status != TN_OK) return status;
    tn_entropy_rows chunk = chunk_entropy(call, job, first, rows);
    *loss += tn_cross_entropy_sum(&chunk, job->threads);
    if (!call->wants) return TN_OK;
    chunk.scale = scale;
    tn_cross_entropy_gradient(&chunk, job->threads);
    if (job->dweight) status = add_dweight(job, x, first, rows);
    if (job->dx && status == TN_OK) status = make_dx(job, first, rows);
    return status;
}

tn_status tn_linear_cross_entropy_forward_cpu(tn_op_call *call) {
    tn_chunked job = chunked(call, call->workspace);
    tn_status status;
    int64_t count = tn_cross_entropy_count(call, call->in[2], job.v, &status);
    double loss = 0, scale = count > 0 ? 1 / (double)count : 0;
    for (int64_t first = 0; status == TN_OK && first < job.rows; first += job.chunk) status = run_chunk(call, &job, first, scale, &loss);
    if (status != TN_OK) return status;
    if (job.dweight && job.rows == 0) memset(job.dweight, 0, tn_bytes(call->aux[1]));
    else if (job.dweight && job.half) convert(narrow_range, job.wide_dweight, job.dweight, job.v * job.d, job.threads);
    tn_cross_entropy_store(call->out[0], count > 0 ? loss / (double)count : 0);
    return TN_OK;
}

/* to = from times a number. */
typedef struct tn_scaling {
    const tn_tensor *from, *to;
    double by;
} tn_scaling;

TN_SIMD_CLONES static void scale_f32(const tn_scaling *job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += TN_VF_LANES)
        tn_lanes_store(TN_F32, job->to->data, i, end, tn_lanes_load(TN_F32, job->from->data, i, end) * (float)job->by);
}
TN_SIMD_CLONES static void scale_bf16(const tn_scaling *job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += TN_VF_LANES)
        tn_lanes_store(TN_BF16, job->to->data, i, end, tn_lanes_load(TN_BF16, job->from->data, i, end) * (float)job->by);
}

static void scale_range(void *user, int64_t begin, int64_t end) {
    const tn_scaling *job = user;
    if (job->to->dtype == TN_F32) scale_f32(job, begin, end);
    else if (job->to->dtype == TN_BF16) scale_bf16(job, begin, end);
    else
        for (int64_t i = begin; i < end; i++) ((double *)job->to->data)[i] = ((const double *)job->from->data)[i] * job->by;
}

tn_status tn_linear_cross_entropy_backward_cpu(tn_op_call *call) {
    for (int i = 0; i < 2; i++) {
        if (!call->din[i]) continue;
        tn_scaling job = { call->aux[i], call->din[i], tn_cross_entropy_load(call->dout[0]) };
        tn_parallel_for(job.to->numel, tn_even_grain(job.to->numel, 16384, TN_VF_LANES, call->threads), scale_range, &job, call->threads);
    }
    return TN_OK;
}
