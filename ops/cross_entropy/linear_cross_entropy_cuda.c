/* linear_cross_entropy on CUDA: chunks of rows, whose logits lie in scratch in f32 (f64 for f64), with rows padded to whole 16 bytes.
 * Where the data is bf16, so is dlogits, beside the logits: the tensor cores want both operands alike. dweight is summed in f32. */
#include "../../libtensor/cuda_primitives.h"
#include "../../libtensor/gemm_cuda.h"
#include "../op_support.h"
#include "cross_entropy_cuda.h"

#define CHUNK_LOGITS ((int64_t)1 << 26) /* at most 256 MiB of f32 */
#define FEWEST_CHUNKS 8                 /* ... and an eighth of all rows ... */
#define SMALL_CHUNK_ROWS 256            /* ... but no fewer than keep GEMM busy */
#define TILE_ROWS 128
#define ROW_ELEMENTS 16

typedef struct tn_chunked_cuda {
    tn_op_call *call;
    tn_dtype dtype, wide;
    int64_t rows, d, v, chunk, row; /* row: elements from one row of logits to the next */
    const char *x, *weight;
    char *dx, *dweight; /* NULL: not wanted */

    /* scratch */
    void *gemm, *logits, *dlogits, *losses, *mean, *scale, *wide_dweight;
    size_t gemm_bytes, bytes;
} tn_chunked_cuda;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int64_t chunk_rows(int64_t rows, int64_t v) {
    int64_t most = CHUNK_LOGITS / (v > 0 ? v : 1), chunk = round_up((rows + FEWEST_CHUNKS - 1) / FEWEST_CHUNKS, TILE_ROWS);
    if (chunk < SMALL_CHUNK_ROWS) chunk = SMALL_CHUNK_ROWS;
    if (chunk > most) chunk = most > TILE_ROWS ? most / TILE_ROWS * TILE_ROWS : most > 16 ? most : 16;
    return chunk < rows ? chunk : rows > 0 ? rows : 1;
}

static void *take(tn_chunked_cuda *job, char *workspace, size_t bytes) {
    size_t at = job->bytes;
    job->bytes += (bytes + 511) / 512 * 512;
    return workspace ? workspace + at : NULL;
}

static void *data_of(const tn_tensor *t) { return t ? t->data : NULL; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* What the products of one chunk want at most. */
static size_t gemm_scratch(const tn_chunked_cuda *job, bool backward) {
    size_t bytes = tn_gemm_cuda_workspace_bytes(1, job->chunk, job->v);
    if (!backward) return bytes;
    return larger(bytes, larger(tn_gemm_cuda_workspace_bytes(1, job->chunk, job->d), tn_gemm_cuda_workspace_bytes(1, job->v, job->d)));
}

/* With the workspace NULL: only its size. */
static tn_chunked_cuda chunked(const tn_op_call *call, char *workspace, bool backward) {
    const tn_tensor *x = call->in[0], *weight = call->in[1];
    tn_chunked_cuda job = { .call = (tn_op_call *)call,
                            .dtype = x->dtype,
                            .wide = tn_wide_dtype(x->dtype),
                            .rows = call->in[2]->numel,
                            .d = weight->shape[1],
                            .v = weight->shape[0],
                            .x = x->data,
                            .weight = weight->data };
    size_t wide_size = tn_dtype_size(job.wide);
    bool half = x->dtype == TN_BF16;
    job.chunk = chunk_rows(job.rows, job.v);
    job.row = round_up(job.v, ROW_ELEMENTS);
    job.gemm_bytes = gemm_scratch(&job, backward);
    job.gemm = take(&job, workspace, job.gemm_bytes);
    job.logits = take(&job, workspace, (size_t)(job.chunk * job.row) * wide_size);
    job.mean = take(&job, workspace, tn_entropy_mean_bytes_cuda(job.rows));
    if (!backward) {
        job.losses = take(&job, workspace, (size_t)job.rows * wide_size);
        return job;
    }
    job.dx = data_of(call->din[0]);
    job.dweight = data_of(call->din[1]);
    job.scale = take(&job, workspace, wide_size);
    job.dlogits = half ? take(&job, workspace, (size_t)(job.chunk * job.row) * tn_dtype_size(TN_BF16)) : job.logits;
    if (half && job.dweight && job.chunk < job.rows) job.wide_dweight = take(&job, workspace, (size_t)(job.v * job.d) * wide_size);
    return job;
}

size_t tn_linear_cross_entropy_workspace_cuda(const tn_op_call *call, bool backward) { return chunked(call, NULL, backward).bytes; }

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
    return run(job, (tn_gemm_cuda_product){ .c_dtype = job->wide,
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
                                            .a = job->dlogits,
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
                                            .a = job->dlogits,
                                            .lda = job->row,
                                            .b = rows_of_x(job, first),
                                            .ldb = job->d,
                                            .c = job->wide_dweight ? job->wide_dweight : job->dweight,
                                            .ldc = job->d,
                                            .beta = first > 0 });
}

static void *after(void *data, int64_t elements, tn_dtype dtype) {
    return data ? (char *)data + (size_t)elements * tn_dtype_size(dtype) : NULL;
}

static tn_entropy_rows_cuda chunk_entropy(const tn_chunked_cuda *job, int64_t first, int64_t rows) {
    const tn_op_call *call = job->call;
    const tn_cross_entropy_args *args = call->args;
    return (tn_entropy_rows_cuda){ .dtype = job->wide,
                                   .rows = rows,
                                   .v = job->v,
                                   .ignore_index = args->ignore_index,
                                   .row = job->row,
                                   .drow = job->row,
                                   .logits = job->logits,
                                   .target = (const int64_t *)call->in[2]->data + first,
                                   .max = after(data_of(call->aux[0]), first, job->wide),
                                   .log_sum = after(data_of(call->aux[1]), first, job->wide),
                                   .loss = after(job->losses, first, job->wide),
                                   .ddtype = job->dtype == TN_BF16 ? TN_BF16 : job->wide,
                                   .dlogits = job->dlogits,
                                   .scale = job->scale };
}

static int64_t rows_from(const tn_chunked_cuda *job, int64_t first) {
    return job->rows - first < job->chunk ? job->rows - first : job->chunk;
}

/* ---- calls ---- */

tn_status tn_linear_cross_entropy_forward_cuda(tn_op_call *call) {
    const tn_cross_entropy_args *args = call->args;
    tn_chunked_cuda job = chunked(call, call->workspace, false);
    tn_status status = tn_entropy_check_targets_cuda(call, call->in[2], job.v);
    for (int64_t first = 0; status == TN_OK && first < job.rows; first += job.chunk) {
        int64_t rows = rows_from(&job, first);
        status = make_logits(&job, first, rows);
        tn_entropy_rows_cuda chunk = chunk_entropy(&job, first, rows);
        if (status == TN_OK) status = tn_entropy_losses_cuda(call->device, &chunk, call->stream);
    }
    if (status != TN_OK) return status;
    return tn_entropy_mean_cuda(call->device, job.losses, call->in[2]->data, job.rows, args->ignore_index, call->out[0], job.mean,
                                call->stream);
}

static tn_status backward_chunk(const tn_chunked_cuda *job, int64_t first) {
    int64_t rows = rows_from(job, first);
    tn_status status = make_logits(job, first, rows);
    tn_entropy_rows_cuda chunk = chunk_entropy(job, first, rows);
    if (status == TN_OK) status = tn_entropy_gradients_cuda(job->call->device, &chunk, job->call->stream);
    if (status == TN_OK && job->dweight) status = add_dweight(job, first, rows);
    if (status == TN_OK && job->dx) status = make_dx(job, first, rows);
    return status;
}

/* Without rows no product writes dweight. */
static tn_status finish_dweight(const tn_chunked_cuda *job) {
    tn_tensor *dweight = job->call->din[1];
    tn_device *device = job->call->device;
    if (job->rows == 0) return tn_cuda_said(device, tn_cuda_fill(dweight, 0, job->call->stream), "fill");
    if (!job->wide_dweight) return TN_OK;
    tn_tensor wide = *dweight;
    wide.dtype = job->wide;
    wide.data = job->wide_dweight;
    return tn_cuda_said(device, tn_cuda_copy(dweight, &wide, job->call->stream), "rounding of dweight");
}

tn_status tn_linear_cross_entropy_backward_cuda(tn_op_call *call) {
    const tn_cross_entropy_args *args = call->args;
    tn_chunked_cuda job = chunked(call, call->workspace, true);
    tn_status status = tn_entropy_scale_cuda(call->device, call->dout[0], call->in[2]->data, job.rows, args->ignore_index, job.scale,
                                             job.mean, call->stream);
    for (int64_t first = 0; status == TN_OK && first < job.rows; first += job.chunk) status = backward_chunk(&job, first);
    return status == TN_OK && job.dweight ? finish_dweight(&job) : status;
}
