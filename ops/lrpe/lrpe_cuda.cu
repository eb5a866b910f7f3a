/* Host side of the CUDA kernels: who runs packed, how the work is cut, and how much scratch it takes. No cut depends on the GPU, so that
 * sums are taken in the same order on every one. */
#include "lrpe_cuda.cuh"

/* Blocks that fill a GPU several times over: of those that share sums, and of those that share nothing. */
#define BLOCKS_WITH_SUMS 1056
#define BLOCKS_WANTED 512
#define GRID_Y 65535    /* blocks along y that a launch can have */
#define COLUMN_UNITS 32 /* packs of a block that takes statistics of columns */

static bool fits_packs(const tn_lrpe_call *lrpe, const void *data, const tn_lrpe_strides &stride, int64_t n) {
    return tn_aligned16(data) && stride.feature == 1 && (lrpe->batch == 1 || stride.batch % n == 0) &&
           (lrpe->grid.tokens == 1 || stride.token % n == 0) && (lrpe->heads == 1 || stride.head % n == 0);
}

static bool can_pack(const tn_lrpe_call *lrpe, const tn_device *device, int64_t n, int64_t packs) {
    const int64_t most = INT32_MAX;
    const tn_lrpe_grid *grid = &lrpe->grid;
    if (device->cuda_path == TN_CUDA_PLAIN || lrpe->dtype == TN_F64 || grid->angles % n || packs > LRPE_THREADS) return false;
    if (lrpe->softmax == TN_LRPE_SOFTMAX_FEATURES && packs > TN_WARP) return false;
    if (grid->axes > 1 && grid->span < n) return false;
    if (grid->tokens > most / lrpe->heads / packs / 2 || grid->span > most || grid->theta_width > most) return false;
    return (!lrpe->x || fits_packs(lrpe, lrpe->x, lrpe->x_stride, n)) && (!lrpe->d || fits_packs(lrpe, lrpe->d, lrpe->do_stride, n)) &&
           tn_aligned16(lrpe->o) && tn_aligned16(lrpe->dx) && tn_aligned16(lrpe->table) && tn_aligned16(lrpe->max) &&
           tn_aligned16(lrpe->sum);
}

/* Batches that share a thread's cosines and sines. Few are enough for the arithmetic to hide behind memory, and memory likes few streams;
 * a table, and the sums of dtheta, are better met only once. */
static int64_t batches_of(const tn_lrpe_call *lrpe) {
    if (lrpe->dtheta || (lrpe->d && lrpe->table)) return lrpe->batch;
    int64_t few = lrpe->kind == TN_ROTATE ? 2 : 3;
    return few < lrpe->batch ? few : lrpe->batch;
}

bool lrpe_can_pack(const tn_lrpe_call *lrpe, const tn_device *device, lrpe_job *job) {
    int64_t n = lrpe->dtype == TN_F32 ? 4 : 8, packs = lrpe->grid.angles / n;
    if (lrpe->batch * lrpe->heads * lrpe->grid.tokens * lrpe->width == 0 || !can_pack(lrpe, device, n, packs)) return false;
    *job = lrpe_job();
    job->call = *lrpe;
    job->tokens = (uint32_t)lrpe->grid.tokens;
    job->heads = (uint32_t)lrpe->heads;
    job->leading = (uint32_t)lrpe->grid.leading;
    job->axes = (uint32_t)lrpe->grid.axes;
    job->span = (uint32_t)lrpe->grid.span;
    for (int i = 0; i < lrpe->grid.axes; i++) job->extent[i] = (uint32_t)lrpe->grid.extent[i];
    job->rows = job->tokens * job->heads;
    job->packs = (uint32_t)packs;
    while (1u << job->lanes_log2 < job->packs) job->lanes_log2++;
    job->tokens_fastest = lrpe->layout == TN_BHND || lrpe->softmax == TN_LRPE_SOFTMAX_TOKENS;
    const int64_t least = (lrpe->batch + GRID_Y - 1) / GRID_Y;
    job->batch_step = batches_of(lrpe);
    while (job->batch_step > 1 && (int64_t)lrpe_row_blocks(*job).x * lrpe_row_blocks(*job).y < BLOCKS_WANTED)
        job->batch_step = (job->batch_step + 1) / 2;
    if (job->batch_step < least) job->batch_step = least;
    return true;
}

static int64_t at_most(int64_t wanted, int64_t most) { return wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most; }
static int64_t take(lrpe_scratch *scratch, int64_t n) {
    int64_t at = scratch->total;
    scratch->total += (n + 31) / 32 * 32;
    return at;
}

/* Slices of the tokens, so that blocks of COLUMN_UNITS packs times batches times slices fill the GPU. */
static int64_t slices_of(const tn_lrpe_call *lrpe, int64_t packs) {
    int64_t blocks = (lrpe->heads * packs + COLUMN_UNITS - 1) / COLUMN_UNITS * lrpe->batch;
    return at_most((BLOCKS_WITH_SUMS + blocks - 1) / blocks, lrpe->grid.tokens / 64);
}

lrpe_scratch lrpe_scratch_of(const tn_lrpe_call *lrpe, const tn_device *device, bool backward) {
    lrpe_scratch scratch = {};
    lrpe_job job;
    int64_t columns = lrpe->batch * lrpe->heads * lrpe->width;
    if (columns * lrpe->grid.tokens == 0) return scratch;
    bool packed = lrpe_can_pack(lrpe, device, &job), over_tokens = lrpe->softmax == TN_LRPE_SOFTMAX_TOKENS;
    bool on_chip = packed && over_tokens && lrpe_slab_of(job, device, backward).blocks;
    if (backward) {
        int64_t splits = packed ? lrpe_row_blocks(job).y : 1, rows = packed ? LRPE_THREADS >> job.lanes_log2 : 1;
        scratch.n_parts = splits * at_most(BLOCKS_WITH_SUMS / (lrpe->heads * splits), (lrpe->grid.tokens + rows - 1) / rows);
        if (lrpe->dtheta) scratch.parts = take(&scratch, scratch.n_parts * lrpe->heads * lrpe->grid.angles);
    }
    if (!over_tokens || on_chip) return scratch;
    if (backward) scratch.dots = take(&scratch, columns);
    if (!backward && !lrpe->max) scratch.max = take(&scratch, columns);
    if (!backward && !lrpe->sum) scratch.sum = take(&scratch, columns);
    if (packed) {
        scratch.shift = take(&scratch, columns);
        scratch.slices = slices_of(lrpe, backward ? job.packs : lrpe->width / (lrpe->grid.angles / job.packs));
        scratch.partials = take(&scratch, (backward ? 1 : 2) * scratch.slices * columns);
    }
    return scratch;
}

/* ---- softmax over the tokens, on chip ---- */

/* Bytes of a block: three of them share a multiprocessor, so that some read while others write. */
#define SLAB_BYTES (64 << 10)
#define SLAB_BLOCKS_WANTED 1056
#define SLAB_FEW_TOKENS 256 /* of a block: fewer are worth the exchange only where the GPU is half empty, half as many nowhere */
#define SLAB_CROWDED_TOKENS 256

static lrpe_slab slab_of_packs(const lrpe_job &job, bool backward, int packs) {
    lrpe_slab slab = {};
    int64_t parts = (job.call.kind == TN_ROTATE ? 2 : 1) + (backward ? 2 : 0), per_thread = LRPE_SLAB_THREADS / packs;
    int64_t rows = job.call.batch * job.heads * (job.packs / packs);
    slab.packs = packs;
    slab.crowded = backward && job.call.kind == TN_ROTATE && job.call.dtype == TN_BF16 && job.tokens <= SLAB_CROWDED_TOKENS;
    for (slab.blocks = 1; slab.blocks <= LRPE_SLAB_BLOCKS; slab.blocks *= 2) {
        int64_t tokens = (job.tokens + slab.blocks - 1) / slab.blocks, kept = (tokens + per_thread - 1) / per_thread;
        slab.tokens = (uint32_t)tokens;
        slab.bytes = (size_t)(kept * LRPE_SLAB_THREADS * parts * 16);
        bool few = tokens <= SLAB_FEW_TOKENS && (rows * slab.blocks >= SLAB_BLOCKS_WANTED / 2 || (backward && !slab.crowded));
        bool fills = few || rows * slab.blocks >= SLAB_BLOCKS_WANTED || tokens <= SLAB_FEW_TOKENS / 2 || slab.blocks == LRPE_SLAB_BLOCKS;
        if (slab.bytes <= SLAB_BYTES && fills && rows * slab.blocks <= INT32_MAX) return slab;
    }
    slab.blocks = 0;
    return slab;
}

/* As many packs of a row as fit: their bytes lie side by side. One alone would be half of a sector of memory. */
lrpe_slab lrpe_slab_of(const lrpe_job &job, const tn_device *device, bool backward) {
    lrpe_slab slab = {};
    if (device->cuda_path != TN_CUDA_HOPPER || job.call.dtheta) return slab;
    for (int packs = 4; packs >= 1 && slab.blocks == 0; packs /= 2)
        if (job.packs % packs == 0 && (packs > 1 || job.packs == 1)) slab = slab_of_packs(job, backward, packs);
    return slab;
}
