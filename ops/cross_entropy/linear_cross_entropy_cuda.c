/* linear_cross_entropy on CUDA: chunks of rows, whose logits lie in scratch in the data's dtype, with rows padded to whole 16 bytes. Where
 * gradients are wanted, forward turns a chunk's logits into dlogits in place and feeds both products from them; backward scales the
 * results. dweight is summed over the chunks in f32 (f64). */
#include "../../libtensor/cuda_primitives.h"
#include "../../libtensor/gemm_cuda.h"
#include "../op_support.h"
#include "cross_entropy_cuda.h"

#define CHUNK_BYTES ((int64_t)512 << 20) /* of logits at most ... */
#define FEWEST_CHUNKS 8                  /* ... and an eighth of all rows ... */
#define SMALL_CHUNK_ROWS 2048            /* ... but no fewer than keep GEMM busy */
#define TILE_ROWS 128
#define ROW_ELEMENTS 16

typedef struct tn_chunked_cuda {
    const tn_op_call *call;
    tn_dtype dtype, wide;
    bool both;                      /* a row of logits fits on chip: one kernel makes loss and dlogits */
    int64_t rows, d, v, chunk, row; /* row: elements from one row of logits to the next */
    const char *x, *weight;
    char *dx, *dweight; /* NULL: not wanted */

    /* scratch; the last four for gradients only */
    void *gemm, *logits, *losses, *mean, *scale, *max, *log_sum, *wide_dweight;
    size_t gemm_bytes, bytes;
} tn_chunked_cuda;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int64_t chunk_rows(int64_t rows, int64_t row_bytes) {
    int64_t most = CHUNK_BYTES / (row_bytes > 0 ? row_bytes : 1), chunk = round_up((rows + FEWEST_CHUNKS - 1) / FEWEST_CHUNKS, TILE_ROWS);
    if (chunk < SMALL_CHUNK_ROWS) chunk = SMALL_CHUNK_ROWS;
    if (chunk > most) chunk = most > TILE_ROWS ? most / TILE_ROWS * TILE_ROWS : most > 16 ? most : 16;
    return chunk < rows ? chunk : rows > 0 ? rows : 1;
}

static void *take(tn_chunked_cuda *job, char *workspace, size_t bytes) {
    size_t at = job->bytes;
    job->bytes += (bytes + 511) / 512 * 512;
    return workspace ? workspace + at : NULL;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* What the products of one chunk want at most. */
static size_t gemm_scratch(const tn_chunked_cuda *job) {
    size_t bytes = tn_gemm_cuda_workspace_bytes(1, job->chunk, job->v);
    if (job->dx) bytes = larger(bytes, tn_gemm_cuda_workspace_bytes(1, job->chunk, job->d));
    return job->dweight ? larger(bytes, tn_gemm_cuda_workspace_bytes(1, job->v, job->d)) : bytes;
}

/* With the workspace NULL: only its size. */
static tn_chunked_cuda chunked(const tn_op_call *call, char *workspace) {
    const tn_tensor *x = call->in[0], *weight = call->in[1];
    tn_chunked_cuda job = { .call = call,
                            .dtype = x->dtype,
                            .wide = tn_wide_dtype(x->dtype),
                            .rows = call->in[2]->numel,
                            .d = weight->shape[1],
                            .v = weight->shape[0],
                            .x = x->data,
                            .weight = weight->data };
    size_t size = tn_dtype_size(job.dtype), wide_size = tn_dtype_size(job.wide);
    if (tn_wants(call, 0)) job.dx = call->aux[0]->data;
    if (tn_wants(call, 1)) job.dweight = call->aux[1]->data;
    job.both = call->wants && tn_entropy_fits_cuda(call->device, job.dtype, job.v);
    job.row = round_up(job.v, ROW_ELEMENTS);
    job.chunk = chunk_rows(job.rows, job.row * (int64_t)size);
    job.gemm_bytes = gemm_scratch(&job);
    job.gemm = take(&job, workspace, job.gemm_bytes);
    job.logits = take(&job, workspace, (size_t)(job.chunk * job.row) * size);
    job.losses = take(&job, workspace, (size_t)job.rows * wide_size);
    job.mean = take(&job, workspace, tn_entropy_mean_bytes_cuda(job.rows));
    if (!call->wants) return job;
    job.scale = take(&job, workspace, wide_size);
    job.max = take(&job, workspace, (size_t)job.chunk * wide_size);
    job.log_sum = take(&job, workspace, (size_t)job.chunk * wide_size);
    if (job.dtype == TN_BF16 && job.dweight && job.chunk < job.rows)
        job.wide_dweight = take(&job, workspace, (size_t)(job.v * job.d) * wide_size);
    return job;
}

size_t tn_linear_cross_entropy_workspace_cuda(const tn_op_call *call, bool backward) { return backward ? 0 : chunked(call, NULL).bytes; }

/* ---- one chunk of rows ---- */

static tn_status run(const tn_chunked_cuda *job, tn_gemm_cuda_product product) {
    product.dtype = job->dtype;
    product.n_batch = 1;
    product.alpha = 1;
    return tn_gemm_cuda(job->call->device, &product, job->gemm, job->gemm_bytes, job->call->stream);
}

static const char *rows_of_x(const tn_chunked_cuda *job, int64_t first) {
    return job->x + (size_t)(first * job->d) * tn_dtype_size(job->dtype);
}

/* logits = x weight' */
static tn_status make_logits(const tn_chunked_cuda *job, int64_t first, int64_t rows) {
    return run(job, (tn_gemm_cuda_product){ .c_dtype = job->dtype,
                                            .transpose_b = true,
                                            .m = rows,
                                            .n = job->v,
                                            .k = job->d,
                                            .a = rows_of_x(job, first),
                                            .lda = job->d,
                                            .b = job->weight,
                                            .ldb = job->d,
                                            .c = job->logits,
                                            .ldc = job->row });
}

/* dx = dlogits weight */
static tn_status make_dx(const tn_chunked_cuda *job, int64_t first, int64_t rows) {
    return run(job, (tn_gemm_cuda_product){ .c_dtype = job->dtype,
                                            .m = rows,
                                            .n = job->d,
                                            .k = job->v,
                                            .a = job->logits,
                                            .lda = job->row,
                                            .b = job->weight,
                                            .ldb = job->d,
                                            .c = job->dx + (size_t)(first * job->d) * tn_dtype_size(job->dtype),
                                            .ldc = job->d });
}

/* dweight += dlogits' x */
static tn_status add_dweight(const tn_chunked_cuda *job, int64_t first, int64_t rows) {
    return run(job, (tn_gemm_cuda_product){ .c_dtype = job->wide_dweight ? job->wide : job->dtype,
                                            .transpose_a = true,
                                            .m = job->v,
                                            .n = job->d,
                                            .k = rows,
                                            .a = job->logits,
                                            .lda = job->row,
                                            .b = rows_of_x(job, first),
                                            .ldb = job->d,
                                            .c = job->wide_dweight ? job->wide_dweight : job->dweight,
                                            .ldc = job->d,
                                            .beta = first > 0 });
}

static tn_entropy_rows_cuda chunk_entropy(const tn_chunked_cuda *job, int64_t first, int64_t rows) {
    const tn_cross_entropy_args *args = job->call->args;
    return (tn_entropy_rows_cuda){ .dtype = job->dtype,
                                   .rows = rows,
                                   .v = job->v,
                                   .ignore_index = args->ignore_index,
                                   .row = job->row,
                                   .drow = job->row,
                                   .logits = job->logits,
                                   .target = (const int64_t *)job->call->in[2]->data + first,
                                   .max = job->max,
                                   .log_sum = job->log_sum,
                                   .loss = (char *)job->losses + (size_t)first * tn_dtype_size(job->wide),
                                   .ddtype = job->dtype,
                                   .dlogits = job->logits,
                                   .scale = job->scale };
}

/* The rows' losses and, where gradients are wanted, dlogits in the logits' place. */
static tn_status make_losses(const tn_chunked_cuda *job, int64_t first, int64_t rows) {
    const tn_op_call *call = job->call;
    tn_entropy_rows_cuda chunk = chunk_entropy(job, first, rows);
    if (job->both) return tn_entropy_both_cuda(call->device, &chunk, call->stream);
    tn_status status = tn_entropy_losses_cuda(call->device, &chunk, call->stream);
    return status == TN_OK && call->wants ? tn_entropy_gradients_cuda(call->device, &chunk, call->stream) : status;
}

static tn_status run_chunk(const tn_chunked_cuda *job, int64_t first) {
    int64_t rows = job->rows - first < job->chunk ? job->rows - first : job->chunk;
    tn_status status = make_logits(job, first, rows);
    if (status == TN_OK) status = make_losses(job, first, rows);
    if (status == TN_OK && job->dweight) status = add_dweight(job, first, rows);
    if (status == TN_OK && job->dx) status = make_dx(job, first, rows);
    return status;
}

/* Without rows no product writes dweight. */
static tn_status finish_dweight(const tn_chunked_cuda *job) {
    tn_tensor *dweight = job->call->aux[1];
    tn_device *device = job->call->device;
    if (job->rows == 0) return tn_cuda_said(device, tn_cuda_fill(dweight, 0, job->call->stream), "fill");
    if (!job->wide_dweight) return TN_OK;
    tn_tensor wide = *dweight;
    wide.dtype = job->wide;
    wide.data = job->wide_dweight;
    return tn_cuda_said(device, tn_cuda_copy(dweight, &wide, job->call->stream), "rounding of dweight");
}

/* ---- calls ---- */

tn_status tn_linear_cross_entropy_forward_cuda(tn_op_call *call) {
    const tn_cross_entropy_args *args = call->args;
    const int64_t *target = call->in[2]->data;
    tn_chunked_cuda job = chunked(call, call->workspace);
    tn_status status = tn_entropy_check_targets_cuda(call, call->in[2], job.v);
    if (status == TN_OK && call->wants)
        status =
            tn_entropy_scale_cuda(call->device, job.dtype, NULL, target, job.rows, args->ignore_index, job.scale, job.mean, call->stream);
    for (int64_t first = 0; status == TN_OK && first < job.rows; first += job.chunk) status = run_chunk(&job, first);
    if (status == TN_OK && job.dweight) status = finish_dweight(&job);
    if (status != TN_OK) return status;
    return tn_entropy_mean_cuda(call->device, job.losses, target, job.rows, args->ignore_index, call->out[0], job.mean, call->stream);
}

tn_status tn_linear_cross_entropy_backward_cuda(tn_op_call *call) {
    tn_status status = TN_OK;
    for (int i = 0; status == TN_OK && i < 2; i++)
        if (call->din[i]) status = tn_entropy_scaled_cuda(call->device, call->din[i], call->aux[i], call->dout[0], call->stream);
    return status;
}
