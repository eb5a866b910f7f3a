/* The host's own time: what a call costs before, or beside, the device's work. */
#include "bench_run.h"
#include "libtensor/context_internal.h"

#define CHAIN 200   /* calls per round: fewer than a device's queue holds, so that no launch waits */
#define PAIRS 20000 /* of alloc and free, which put nothing on the device */

/* A chain of products of n elements by ones; true also records it, and goes back through it where `backward_ns` is not NULL. */
static bool chain(tn_context *cx, int64_t n, bool record, double *forward_ns, double *backward_ns) {
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *x = tn_full(cx, TN_F32, TN_SHAPE(n), 1), *one = tn_full(cx, TN_F32, TN_SHAPE(n), 1), *y = x;
    tn_tensor *upstream = tn_full(cx, TN_F32, TN_SHAPE(n), 1);
    tn_require_grad(x, record);
    tn_synchronize(cx);
    double start = bench_now_ns();
    for (int i = 0; i < CHAIN; i++) y = tn_mul(y, one);
    *forward_ns = (bench_now_ns() - start) / CHAIN;
    tn_synchronize(cx);
    if (backward_ns) {
        start = bench_now_ns();
        tn_backward_with(y, TN_BACKWARD(.grad = upstream));
        *backward_ns = (bench_now_ns() - start) / CHAIN;
        tn_synchronize(cx);
    }
    tn_scope_end(scope);
    return !tn_failed(cx);
}

static bool op_ns(bench_run *run, const bench_cell *cell, double *ns, int n_rounds) {
    bool fine = chain(run->cx, cell->n, false, &ns[0], NULL);
    for (int i = 0; fine && i < n_rounds; i++) fine = chain(run->cx, cell->n, false, &ns[i], NULL);
    return fine;
}

static bool op_recorded_ns(bench_run *run, const bench_cell *cell, double *ns, int n_rounds) {
    bool fine = chain(run->cx, cell->n, true, &ns[0], NULL);
    for (int i = 0; fine && i < n_rounds; i++) fine = chain(run->cx, cell->n, true, &ns[i], NULL);
    return fine;
}

static bool backward_ns(bench_run *run, const bench_cell *cell, double *ns, int n_rounds) {
    double forward;
    bool fine = chain(run->cx, cell->n, true, &forward, &ns[0]);
    for (int i = 0; fine && i < n_rounds; i++) fine = chain(run->cx, cell->n, true, &forward, &ns[i]);
    return fine;
}

/* On a device that launches nothing what is left of an op is its dispatch: checks, allocation, bookkeeping. */
static bool dispatch_ns(bench_run *run, const bench_cell *cell, double *ns, int n_rounds) {
    tn_context *dry = tn_open(&(tn_options){ .device = "dry-run" });
    bool fine = dry && chain(dry, cell->n, false, &ns[0], NULL);
    for (int i = 0; fine && i < n_rounds; i++) fine = chain(dry, cell->n, false, &ns[i], NULL);
    if (!fine)
        tn_fail(run->cx, dry ? tn_error_status(dry) : TN_ERR_HOST_MEMORY, "bench_host", "dry run: %s", dry ? tn_error(dry) : "no memory");
    tn_close(dry);
    return fine;
}

/* One block of the context's own allocator, taken and given back. */
static bool alloc_free_ns(bench_run *run, const bench_cell *cell, double *ns, int n_rounds) {
    static const tn_owner owner = { .op = "bench_host", .label = "", .pass = TN_PASS_NONE };
    tn_allocator *allocator = run->cx->allocator;
    for (int round = -1; round < n_rounds; round++) { /* round -1 fills the cache */
        double start = bench_now_ns();
        for (int i = 0; i < PAIRS; i++) {
            tn_block *block = tn_allocator_take(allocator, (size_t)cell->n * 4, 0, TN_CATEGORY_TEMPORARY, &owner);
            if (!block) return tn_fail(run->cx, TN_ERR_MEMORY, "bench_host", "%s", tn_allocator_error(allocator));
            tn_allocator_give(allocator, block);
        }
        if (round >= 0) ns[round] = (bench_now_ns() - start) / PAIRS;
    }
    return true;
}

static bool tensor_ns(bench_run *run, const bench_cell *cell, double *ns, int n_rounds) {
    for (int round = -1; round < n_rounds && !tn_failed(run->cx); round++) {
        double start = bench_now_ns();
        for (int i = 0; i < PAIRS; i++) tn_release(tn_empty(run->cx, TN_F32, TN_SHAPE(cell->n)));
        if (round >= 0) ns[round] = (bench_now_ns() - start) / PAIRS;
    }
    return !tn_failed(run->cx);
}

static const bench_column columns[] = {
    { .name = "op", .host = op_ns },
    { .name = "op_recorded", .host = op_recorded_ns },
    { .name = "backward", .host = backward_ns },
    { .name = "dispatch", .host = dispatch_ns },
    { .name = "alloc_free", .host = alloc_free_ns },
    { .name = "tensor", .host = tensor_ns },
};

static const bench_table tables[] = {
    {
        .family = "host",
        .doc =
            "host time of one call on n f32 elements: an op and its launch, the same recorded, backward through it, its dispatch alone,\n"
            "a cached alloc and free, a tensor made and released",
        .kinds = BENCH_BIT(BENCH_HOST),
        .columns = columns,
        .n_columns = TN_COUNT(columns),
        .rows = { 1, 4096, 1048576 },
        .cpu_rows = { 1, 4096 },
    },
};

const bench_table_list bench_host_tables = { tables, TN_COUNT(tables) };
