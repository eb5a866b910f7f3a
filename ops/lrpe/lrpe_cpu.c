#include "lrpe_cpu.h"

#include <string.h>

#include "../lanes_cpu.h"

#define TABLE_BYTES ((int64_t)128 << 10) /* of a block: they stay in the second cache */
#define STACK_BYTES ((size_t)144 << 10)  /* scratch up to here needs no workspace */
#define MOST_CHUNKS 64
#define LEAST_CHUNK 16 /* tokens */
#define ENOUGH_TASKS 8
#define TASK_ELEMENTS 16384
#define LEAST_PIECE 256 /* tokens */
#define CACHE_LINE 64

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t shares(int64_t n, int64_t size) { return tn_chunk_count(n, size); }

/* ---- the cut ---- */

static inline bool shared_theta(const tn_lrpe_work *work) { return work->call.grid.theta_heads == 1; }
/* Rows of cosines that a token has in a block. */
static inline int64_t table_heads(const tn_lrpe_work *work) { return shared_theta(work) ? 1 : work->group_heads; }

static void cut(tn_lrpe_work *work) {
    const tn_lrpe_call *call = &work->call;
    int64_t elements = (call->dtheta ? 3 : 2) * call->grid.angles, tokens = call->grid.tokens;
    int64_t row = most(elements * (int64_t)tn_dtype_size(call->wide), 1);
    work->heads_outside = call->layout == TN_BHND;
    int64_t heads = most(call->heads, 1);
    if (!shared_theta(work)) heads = work->heads_outside ? 1 : least(heads, most(TABLE_BYTES / row, 1));
    work->head_groups = shares(call->heads, heads);
    work->chunk_tokens = most(shares(tokens, most(MOST_CHUNKS / most(work->head_groups, 1), 1)), LEAST_CHUNK);
    work->chunks = shares(tokens, work->chunk_tokens);
    /* Groups of heads that share a kept table would write it twice. */
    if (work->chunks * work->head_groups < ENOUGH_TASKS && !(shared_theta(work) && call->table))
        heads = least(heads, most(call->heads / shares(ENOUGH_TASKS, most(work->chunks, 1)), 1));
    work->group_heads = heads;
    work->head_groups = shares(call->heads, heads);
    work->block_tokens = least(work->chunk_tokens, most(TABLE_BYTES / (row * table_heads(work)), 1));
    work->dtheta_rows = shared_theta(work) ? work->head_groups : call->heads;
}

/* Columns of tokens that are neighbours in memory. */
typedef struct tn_lrpe_runs {
    int64_t per_batch, width, panels;
} tn_lrpe_runs;

static tn_lrpe_runs runs_of(const tn_lrpe_call *call) {
    bool whole = call->x_stride.feature == 1 && call->x_stride.head == call->width;
    int64_t width = whole ? call->heads * call->width : call->width;
    return (tn_lrpe_runs){ whole ? 1 : call->heads, width, shares(width, TN_LRPE_PANEL) };
}

static void cut_columns(tn_lrpe_work *work) {
    tn_lrpe_runs runs = runs_of(&work->call);
    int64_t tokens = work->call.grid.tokens, tasks = most(work->call.batch * runs.per_batch * runs.panels, 1);
    int64_t pieces = most(least(shares(ENOUGH_TASKS, tasks), shares(tokens, LEAST_PIECE)), 1);
    work->piece_tokens = most(shares(tokens, pieces), 1);
    work->pieces = most(shares(tokens, work->piece_tokens), 1);
}

/* ---- scratch ---- */

/* Takes `bytes` of the workspace; base is NULL where only the size is asked for. */
static void *take(char *base, size_t *at, int64_t bytes) {
    void *place = base ? base + *at : NULL;
    *at += ((size_t)bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return place;
}

static size_t lay_out(tn_lrpe_work *work, char *base, bool backward, int threads) {
    const tn_lrpe_call *call = &work->call;
    int64_t wide = (int64_t)tn_dtype_size(call->wide), columns = call->batch * call->heads * call->width * wide;
    int64_t block_rows = work->block_tokens * table_heads(work);
    size_t at = 0, own = 0;
    take(NULL, &own, call->table ? 0 : block_rows * 2 * call->grid.angles * wide);
    work->table_bytes = own;
    take(NULL, &own, call->dtheta ? block_rows * call->grid.angles * wide : 0);
    work->turn_bytes = own - work->table_bytes;
    size_t before_rows = own;
    take(NULL, &own, call->out_width * wide);
    work->row_bytes = own - before_rows;
    work->scratch_bytes = before_rows + TN_LRPE_ROWS * work->row_bytes;
    work->threads = threads;
    if (work->scratch_bytes > STACK_BYTES) work->scratch = take(base, &at, (int64_t)work->scratch_bytes * most(threads, 1));
    if (call->dtheta) work->dtheta = take(base, &at, work->chunks * work->dtheta_rows * call->grid.angles * (int64_t)sizeof(double));
    if (call->softmax != TN_LRPE_SOFTMAX_TOKENS) return at;
    work->max = call->max;
    work->sum = call->sum;
    if (backward) {
        work->dot = take(base, &at, columns);
        work->chunk_dot = take(base, &at, work->chunks * columns);
        return at;
    }
    if (!work->max) {
        work->max = take(base, &at, columns);
        work->sum = take(base, &at, columns);
    }
    work->piece_max = work->pieces > 1 ? take(base, &at, work->pieces * columns) : work->max;
    work->piece_sum = work->pieces > 1 ? take(base, &at, work->pieces * columns) : work->sum;
    return at;
}

static size_t prepare(tn_lrpe_work *work, const tn_op_call *call, char *base, bool backward) {
    *work = (tn_lrpe_work){ 0 };
    tn_lrpe_plan(&work->call, call, backward);
    work->kernels = work->call.dtype == TN_F64 ? &tn_lrpe_kernels_f64 : &tn_lrpe_kernels_rows;
    cut(work);
    if (work->call.softmax == TN_LRPE_SOFTMAX_TOKENS && !backward) cut_columns(work);
    return lay_out(work, base, backward, call->threads);
}

size_t tn_lrpe_workspace_cpu(const tn_op_call *call, bool backward) {
    tn_lrpe_work work;
    return prepare(&work, call, NULL, backward);
}

static inline void *wide_after(const tn_lrpe_work *work, const void *p, int64_t elements) {
    return tn_elements_after(work->call.wide, p, elements);
}

/* ---- tasks: one per chunk of tokens and group of heads ---- */

typedef void (*block_step)(const tn_lrpe_work *work, const tn_lrpe_block *block);

/* What the threads run: a step over every block. */
typedef struct tn_lrpe_sweep {
    const tn_lrpe_work *work;
    block_step step;
    bool makes_table;
} tn_lrpe_sweep;

static tn_lrpe_block block_in(const tn_lrpe_work *work, int64_t chunk, int64_t group) {
    int64_t head = group * work->group_heads;
    tn_lrpe_block block = { .chunk = chunk, .head = head, .heads = least(work->group_heads, work->call.heads - head) };
    int64_t row = shared_theta(work) ? group : head;
    if (work->dtheta) block.dtheta = work->dtheta + (chunk * work->dtheta_rows + row) * work->call.grid.angles;
    return block;
}

/* The calling thread's scratch in the workspace. In a parallel region of the caller's own, all of a call runs on one thread, whatever its
 * number there. */
static char *own_scratch(const tn_lrpe_work *work) {
    int index = tn_parallel_index();
    return work->scratch + (size_t)(index < work->threads ? index : 0) * work->scratch_bytes;
}

static void place_tables(const tn_lrpe_work *work, tn_lrpe_block *block, char *own) {
    const tn_lrpe_call *call = &work->call;
    int64_t angles = call->grid.angles, head_rows = shared_theta(work) ? 0 : work->heads_outside ? block->tokens : 1;
    int64_t token_rows = work->heads_outside ? 1 : shared_theta(work) ? 1 : block->heads;
    block->table = own;
    block->table_token = token_rows * 2 * angles;
    block->table_head = head_rows * 2 * angles;
    if (call->table) {
        block->table = wide_after(work, call->table, tn_lrpe_at(&call->table_stride, 0, block->token, block->head));
        block->table_token = call->table_stride.token;
        block->table_head = call->table_stride.head;
    }
    block->turn = work->dtheta ? own + work->table_bytes : NULL;
    block->turn_token = token_rows * angles;
    block->turn_head = head_rows * angles;
    for (int i = 0; i < TN_LRPE_ROWS; i++) block->row[i] = own + work->table_bytes + work->turn_bytes + (size_t)i * work->row_bytes;
}

/* Sums of this chunk and these heads start at 0. */
static void clear_sums(const tn_lrpe_work *work, const tn_lrpe_block *block, block_step step) {
    const tn_lrpe_call *call = &work->call;
    if (work->dtheta && step == work->kernels->backward)
        memset(block->dtheta, 0, (size_t)((shared_theta(work) ? 1 : block->heads) * call->grid.angles) * sizeof *block->dtheta);
    if (step != work->kernels->dots) return;
    for (int64_t b = 0; b < call->batch; b++) {
        int64_t at = ((block->chunk * call->batch + b) * call->heads + block->head) * call->width;
        memset(wide_after(work, work->chunk_dot, at), 0, (size_t)(block->heads * call->width) * tn_dtype_size(call->wide));
    }
}

static void sweep_tasks(void *user, int64_t begin, int64_t end) {
    const tn_lrpe_sweep *sweep = user;
    const tn_lrpe_work *work = sweep->work;
    char stack[STACK_BYTES] __attribute__((aligned(CACHE_LINE))), *own = work->scratch ? own_scratch(work) : stack;
    for (int64_t task = begin; task < end; task++) {
        int64_t chunk = task / work->head_groups, first = chunk * work->chunk_tokens;
        int64_t last = least(first + work->chunk_tokens, work->call.grid.tokens);
        tn_lrpe_block block = block_in(work, chunk, task % work->head_groups);
        clear_sums(work, &block, sweep->step);
        for (block.token = first; block.token < last; block.token += block.tokens) {
            block.tokens = least(work->block_tokens, last - block.token);
            place_tables(work, &block, own);
            if (sweep->makes_table) work->kernels->angles(work, &block);
            sweep->step(work, &block);
        }
    }
}

static void sweep(const tn_lrpe_work *work, block_step step, bool makes_table, int threads) {
    tn_lrpe_sweep all = { work, step, makes_table };
    int64_t tasks = work->chunks * work->head_groups;
    int64_t elements = work->chunk_tokens * work->group_heads * most(work->call.batch, 1) * work->call.width;
    tn_parallel_for(tasks, tn_even_grain(tasks, TASK_ELEMENTS / (elements + 1), 1, threads), sweep_tasks, &all, threads);
}

/* ---- softmax over the tokens ---- */

static void column_tasks(void *user, int64_t begin, int64_t end) {
    const tn_lrpe_work *work = user;
    const tn_lrpe_call *call = &work->call;
    tn_lrpe_runs runs = runs_of(call);
    for (int64_t task = begin; task < end; task++) {
        int64_t panel = task % runs.panels, run = task / runs.panels % runs.per_batch,
                b = task / runs.panels / runs.per_batch % call->batch;
        int64_t piece = task / runs.panels / runs.per_batch / call->batch, token = piece * work->piece_tokens,
                column = panel * TN_LRPE_PANEL;
        int64_t at = ((piece * call->batch + b) * runs.per_batch + run) * runs.width + column;
        int64_t from = tn_lrpe_at(&call->x_stride, b, token, run) + column * call->x_stride.feature;
        tn_lrpe_columns columns = {
            .x = tn_elements_after(call->dtype, call->x, from),
            .tokens = least(work->piece_tokens, call->grid.tokens - token),
            .token_stride = call->x_stride.token,
            .width = least(TN_LRPE_PANEL, runs.width - column),
            .feature_stride = call->x_stride.feature,
            .max = wide_after(work, work->piece_max, at),
            .sum = wide_after(work, work->piece_sum, at),
        };
        work->kernels->columns(&columns, call->dtype);
    }
}

static void merge_columns_body(void *user, int64_t begin, int64_t end) {
    const tn_lrpe_work *work = user;
    work->kernels->merge_columns(work, begin, end);
}
static void merge_dots_body(void *user, int64_t begin, int64_t end) {
    const tn_lrpe_work *work = user;
    work->kernels->merge_dots(work, begin, end);
}

static void find_statistics(tn_lrpe_work *work, int threads) {
    tn_lrpe_runs runs = runs_of(&work->call);
    int64_t tasks = work->pieces * work->call.batch * runs.per_batch * runs.panels;
    int64_t elements = work->piece_tokens * least(runs.width, TN_LRPE_PANEL),
            columns = work->call.batch * work->call.heads * work->call.width;
    tn_parallel_for(tasks, tn_even_grain(tasks, TASK_ELEMENTS / (elements + 1), 1, threads), column_tasks, work, threads);
    if (work->pieces > 1)
        tn_parallel_for(columns, tn_even_grain(columns, TASK_ELEMENTS, CACHE_LINE, threads), merge_columns_body, work, threads);
}

static void find_dots(tn_lrpe_work *work, int threads) {
    int64_t columns = work->call.batch * work->call.heads * work->call.width;
    sweep(work, work->kernels->dots, !work->call.table, threads);
    tn_parallel_for(columns, tn_even_grain(columns, TASK_ELEMENTS, CACHE_LINE, threads), merge_dots_body, work, threads);
}

/* ---- theta's gradient from the chunks' sums ---- */

static double chunks_sum(const tn_lrpe_work *work, int64_t row, int64_t feature) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < work->chunks; chunk++)
        sum += work->dtheta[(chunk * work->dtheta_rows + row) * work->call.grid.angles + feature];
    return sum;
}

static void add_up_dtheta(const tn_lrpe_work *work) {
    const tn_lrpe_grid *grid = &work->call.grid;
    for (int64_t head = 0; head < grid->theta_heads; head++) {
        int64_t first = shared_theta(work) ? 0 : head, rows = shared_theta(work) ? work->dtheta_rows : 1;
        for (int64_t column = 0; column < grid->theta_width; column++) {
            /* The features a column turns are `span` apart; those of a scalar are all. */
            int64_t reached = least(grid->angles, grid->axes * grid->span), step = grid->theta_width == 1 ? 1 : grid->span;
            double sum = 0;
            for (int64_t feature = column; feature < reached; feature += step)
                for (int64_t row = first; row < first + rows; row++) sum += chunks_sum(work, row, feature);
            int64_t at = head * grid->theta_width + column;
            if (work->call.wide == TN_F64) ((double *)work->call.dtheta)[at] = sum;
            else ((float *)work->call.dtheta)[at] = (float)sum;
        }
    }
}

/* ---- the passes ---- */

tn_status tn_lrpe_forward_cpu(tn_op_call *call) {
    tn_lrpe_work work;
    prepare(&work, call, call->workspace, false);
    if (work.call.offset_t) work.moved = *work.call.offset_t;
    if (work.call.softmax == TN_LRPE_SOFTMAX_TOKENS) find_statistics(&work, call->threads);
    sweep(&work, work.kernels->forward, true, call->threads);
    return TN_OK;
}

tn_status tn_lrpe_backward_cpu(tn_op_call *call) {
    tn_lrpe_work work;
    prepare(&work, call, call->workspace, true);
    if (work.call.offset_t) work.moved = *work.call.offset_t;
    if (work.call.softmax == TN_LRPE_SOFTMAX_TOKENS && work.call.dx) find_dots(&work, call->threads);
    sweep(&work, work.kernels->backward, !work.call.table, call->threads);
    if (work.call.dtheta) add_up_dtheta(&work);
    return TN_OK;
}
