#include "linear_attention_cpu.h"

#include <string.h>

#include "../../libtensor/gemm_cpu.h"
#include "../../libtensor/gemm_kernel.h"
#include "../../libtensor/parallel.h"

#define FULL_ROWS 128 /* tokens of a tile: S is read and written once for as many */
#define CHUNK 64      /* the causal default: half the work is within chunks where d = e = 128 */
#define PAD 16        /* elements at the end of a row, so that rows do not fall into one set of a cache */
#define ALIGNMENT 64

/* ---- memory: the same walk counts bytes and hands out places ---- */

typedef struct carver {
    char *base; /* NULL: counting */
    size_t used;
} carver;

static void *carve(carver *c, int64_t count, int64_t size) {
    void *place = c->base ? c->base + c->used : NULL;
    c->used += ((size_t)(count * size) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return place;
}

static tn_la_frame carve_frame(const tn_la_job *job, carver *c) {
    const tn_la_problem *p = &job->p;
    int64_t size = job->tile->size, by_d = job->rows * job->ld_d, by_e = job->rows * job->ld_e,
            by_a = p->causal ? job->rows * job->ld_a : 0;
    int64_t states = p->state_rows * p->e, angles = p->encoded ? job->rows * p->q.grid.angles : 0;
    return (tn_la_frame){ .q = carve(c, by_d, size),
                          .k = carve(c, by_d, size),
                          .dx = carve(c, by_d, size),
                          .moved = carve(c, by_d, size),
                          .v = carve(c, by_e, size),
                          .gate = carve(c, by_e, size),
                          .y = carve(c, by_e, size),
                          .dy = carve(c, by_e, size),
                          .a = carve(c, by_a, size),
                          .b = carve(c, by_a, size),
                          .s = carve(c, states, size),
                          .ds = carve(c, states, size),
                          .q_turn = { carve(c, angles, size), carve(c, angles, size) },
                          .k_turn = { carve(c, angles, size), carve(c, angles, size) },
                          .row = carve(c, p->d > p->e ? p->d : p->e, size),
                          .log = carve(c, job->rows, sizeof(double)),
                          .diagonal = carve(c, job->rows, sizeof(double)),
                          .sums = carve(c, p->d, sizeof(double)) };
}

tn_la_frame tn_la_frame_of(const tn_la_job *job) {
    carver c = { .base = job->frames + (size_t)tn_parallel_index() * job->frame_bytes };
    return carve_frame(job, &c);
}

static int64_t padded(int64_t width) { return (width + PAD - 1) / PAD * PAD + PAD; }

static int64_t rows_of(const tn_la_problem *p) {
    int64_t longest = p->n > p->m ? p->n : p->m, rows = !p->causal ? FULL_ROWS : p->chunk ? p->chunk : CHUNK;
    if (longest < rows) rows = longest;
    return rows > 0 ? rows : 1;
}

/* Statistics that nothing keeps. */
static void carve_statistics(tn_la_problem *p, carver *c, int64_t size) {
    tn_la_operand *operands[] = { &p->q, &p->k };
    for (int i = 0; i < 2; i++) {
        if (!operands[i]->over_sequence || operands[i]->maximum) continue;
        operands[i]->maximum = carve(c, p->b * p->h * p->d, size);
        operands[i]->sum = carve(c, p->b * p->h * p->d, size);
    }
}

/* Readies a job in the call's workspace, or counts the bytes it takes where there is none. */
static size_t plan_job(const tn_op_call *call, bool backward, tn_la_job *job) {
    *job = (tn_la_job){ .threads = call->threads > 1 ? call->threads : 1 };
    tn_la_problem *p = &job->p;
    tn_la_problem_of(call, backward, p);
    job->tile = p->wide == TN_F64 ? &tn_la_tiles_f64 : &tn_la_tiles_f32;
    job->items = p->sequences * p->h;
    job->rows = rows_of(p);
    job->ld_d = padded(p->state_rows);
    job->ld_e = padded(p->e);
    job->ld_a = padded(job->rows);
    carver frame = { 0 }, c = { .base = call->workspace };
    carve_frame(job, &frame);
    job->frame_bytes = frame.used;
    job->frames = carve(&c, job->threads, (int64_t)frame.used);
    if (!backward) carve_statistics(p, &c, job->tile->size);
    bool theta = backward && call->wants >> TN_LA_THETA & 1, decay = backward && call->wants >> TN_LA_LOG_DECAY & 1;
    if (theta) job->turned = carve(&c, job->items * p->q.grid.angles, sizeof(double));
    if (decay) job->weight = carve(&c, p->b * p->h * p->n, sizeof(double));
    if (decay) job->decayed = carve(&c, job->items, sizeof(double));
    return c.used;
}

size_t tn_linear_attention_workspace_cpu(const tn_op_call *call, bool backward) {
    tn_op_call counting = *call;
    tn_la_job job;
    counting.workspace = NULL;
    return plan_job(&counting, backward, &job);
}

/* ---- pieces of the sweeps ---- */

/* A lone item is not run by several threads at once, so that its products may be; others take the kernel as it is, a thread each. */
void tn_la_product(const tn_la_job *job, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc) {
    if (job->items == 1 && job->threads > 1) {
        if (job->tile->size == 8) tn_gemm_f64(ta, tb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc, job->threads, NULL);
        else tn_gemm_f32(ta, tb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc, job->threads, NULL);
        return;
    }
    tn_gemm_alone(job->p.wide, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

static size_t state_bytes(const tn_la_job *job) { return (size_t)(job->p.state_rows * job->p.e * job->tile->size); }

void *tn_la_state_at(const tn_la_job *job, const void *all, int64_t item) {
    return all ? (char *)all + (size_t)item * state_bytes(job) : NULL;
}

void tn_la_state_copy(const tn_la_job *job, void *to, const void *from) {
    if (from && from != to) memcpy(to, from, state_bytes(job));
    if (!from) memset(to, 0, state_bytes(job));
}

void tn_la_load_upstream(const tn_la_job *job, const tn_la_place *at, void *dy) {
    tn_la_operand upstream = job->p.g;
    upstream.x = job->p.d_o;
    if (upstream.x) job->tile->load(&job->p, &upstream, at, dy, job->ld_e);
    else memset(dy, 0, (size_t)(at->count * job->ld_e * job->tile->size));
}

void tn_la_finish(const tn_la_job *job, const tn_la_frame *frame, const tn_la_place *at, const tn_la_back *back, void *d) {
    const tn_la_problem *p = &job->p;
    if (back->x->encoded || back->scale != 1)
        job->tile->turn_back(back->x, at, back->scale, back->tile, d, back->ld, back->turn, back->turned);
    if (back->summing) job->tile->sequence_sums(p, back->x, at, d, back->ld, frame->sums, frame->row);
    else if (back->dx) job->tile->store_gradient(p, back->x, at, d, back->ld, frame->sums, back->dx, frame->row);
}

/* ---- forward ---- */

static bool sequences_fit(tn_op_call *call, const tn_la_problem *p) {
    const int64_t *cu = p->cu_seqlens;
    if (!cu) return true;
    bool rising = cu[0] == 0 && cu[p->sequences] == p->n;
    for (int64_t i = 0; i < p->sequences; i++) rising = rising && cu[i] <= cu[i + 1];
    if (rising) return true;
    return tn_refuse(call, TN_ERR_ARGUMENT, "cu_seqlens: wanted numbers that rise from 0 to the %lld tokens there are", (long long)p->n);
}

tn_status tn_linear_attention_forward_cpu(tn_op_call *call) {
    tn_la_job job;
    plan_job(call, false, &job);
    if (!sequences_fit(call, &job.p)) return TN_ERR_ARGUMENT;
    tn_parallel_for(job.items, 1, job.p.causal ? tn_la_causal_forward : tn_la_full_forward, &job, job.threads);
    return TN_OK;
}

/* ---- backward ---- */

static void store_wide(const tn_la_problem *p, void *to, int64_t i, double value) {
    if (p->wide == TN_F64) ((double *)to)[i] = value;
    else ((float *)to)[i] = (float)value;
}

/* dtheta [theta_heads, theta_width] from what the items gathered, in order. */
static void sum_theta(const tn_la_job *job) {
    const tn_lrpe_grid *grid = &job->p.q.grid;
    for (int64_t head = 0; head < grid->theta_heads; head++)
        for (int64_t column = 0; column < grid->theta_width; column++) {
            double sum = 0;
            for (int64_t item = 0; item < job->items; item++) {
                if (grid->theta_heads > 1 && item % job->p.h != head) continue;
                const double *turned = job->turned + item * grid->angles;
                int64_t step = grid->theta_width == 1 ? 1 : grid->span;
                for (int64_t j = column; j < grid->angles; j += step) sum += tn_lrpe_axis(grid, j) >= 0 ? turned[j] : 0;
            }
            store_wide(&job->p, job->p.dtheta, head * grid->theta_width + column, sum);
        }
}

static void sum_constant_decay(const tn_la_job *job) {
    for (int64_t head = 0; head < job->p.h; head++) {
        double sum = 0;
        for (int64_t item = head; item < job->items; item += job->p.h) sum += job->decayed[item];
        store_wide(&job->p, job->p.dlog_decay, head, sum);
    }
}

tn_status tn_linear_attention_backward_cpu(tn_op_call *call) {
    tn_la_job job;
    plan_job(call, true, &job);
    if (job.turned) memset(job.turned, 0, (size_t)(job.items * job.p.q.grid.angles) * sizeof(double));
    tn_parallel_for(job.items, 1, job.p.causal ? tn_la_causal_backward : tn_la_full_backward, &job, job.threads);
    if (job.turned) sum_theta(&job);
    if (job.decayed && job.p.decay == TN_LA_CONSTANT_DECAY) sum_constant_decay(&job);
    return TN_OK;
}
