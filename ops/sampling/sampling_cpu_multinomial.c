#include "sampling_internal.h"

#include <math.h>
#include <stdatomic.h>

#include "../../libtensor/bf16.h"
#include "../../libtensor/parallel.h"
#include "../../libtensor/philox.h"

#define TASK_SIZE 8192 /* weights for one turn of a thread at least */

typedef struct multinomial {
    const tn_multinomial_args *args;
    const tn_tensor *weights;
    int64_t size; /* of a row */
    int64_t *index;
    double *rows;                /* a row for each thread */
    _Atomic int64_t refused_row; /* the first that can't be drawn from; INT64_MAX: none */
} multinomial;

static double weight_at(const tn_tensor *t, int64_t at) {
    if (t->dtype == TN_F64) return ((const double *)t->data)[at];
    return t->dtype == TN_F32 ? (double)((const float *)t->data)[at] : (double)tn_bf16_to_f32(((const tn_bf16 *)t->data)[at]);
}

/* Copies a row; false if it can't be drawn from. */
static bool load_row(const multinomial *m, int64_t row, double *weights) {
    int64_t n_positive = 0;
    bool valid = true;
    double total = 0;
    for (int64_t i = 0; i < m->size; i++) {
        double w = weight_at(m->weights, row * m->size + i);
        weights[i] = w;
        valid &= w >= 0 && w < INFINITY;
        total += w;
        n_positive += w > 0;
    }
    return valid && total < INFINITY && n_positive >= (m->args->replacement ? m->args->n_samples > 0 : m->args->n_samples);
}

static double draw(const multinomial *m, int64_t row, int64_t sample) {
    uint64_t at = m->args->counter + (uint64_t)(row * m->args->n_samples + sample);
    return tn_philox_uniform_f64(tn_philox_bits(m->args->seed, at));
}

/* The first place whose running sum lies above `target`. Rounding can carry target up to the sum itself: then the last place
 * that has any weight. */
static int64_t place_above(const double *running, int64_t n, double target) {
    if (target >= running[n - 1]) target = nextafter(running[n - 1], 0);
    int64_t low = 0, high = n - 1;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (running[middle] > target) high = middle;
        else low = middle + 1;
    }
    return low;
}

static void draw_with_replacement(const multinomial *m, int64_t row, double *weights) {
    for (int64_t i = 1; i < m->size; i++) weights[i] += weights[i - 1];
    for (int64_t i = 0; i < m->args->n_samples; i++)
        m->index[row * m->args->n_samples + i] = place_above(weights, m->size, draw(m, row, i) * weights[m->size - 1]);
}

/* A place that was drawn loses its weight. */
static void draw_without_replacement(const multinomial *m, int64_t row, double *weights) {
    for (int64_t i = 0; i < m->args->n_samples; i++) {
        double total = 0, sum = 0;
        for (int64_t k = 0; k < m->size; k++) total += weights[k];
        double target = draw(m, row, i) * total;
        int64_t place = -1;
        for (int64_t k = 0; k < m->size && sum <= target; k++) {
            sum += weights[k];
            if (weights[k] > 0) place = k;
        }
        weights[place] = 0;
        m->index[row * m->args->n_samples + i] = place;
    }
}

static void draw_rows(void *user, int64_t begin, int64_t end) {
    multinomial *m = user;
    double *weights = m->rows + tn_parallel_index() * m->size;
    for (int64_t row = begin; row < end; row++) {
        if (!load_row(m, row, weights)) {
            int64_t first = m->refused_row;
            while (row < first && !atomic_compare_exchange_weak(&m->refused_row, &first, row)) continue;
            return;
        }
        if (m->args->replacement) draw_with_replacement(m, row, weights);
        else draw_without_replacement(m, row, weights);
    }
}

size_t tn_multinomial_workspace(const tn_op_call *call, bool backward) {
    const tn_tensor *x = call->in[0];
    return backward ? 0 : (size_t)x->shape[x->axes - 1] * (size_t)tn_threads(call->cx) * sizeof(double);
}

tn_status tn_multinomial_forward_cpu(tn_op_call *call) {
    const tn_tensor *x = call->in[0];
    multinomial m = { .args = call->args,
                      .weights = x,
                      .size = x->shape[x->axes - 1],
                      .index = call->out[0]->data,
                      .rows = call->workspace,
                      .refused_row = INT64_MAX };
    if (call->out[0]->numel == 0) return TN_OK;
    int64_t n_rows = x->numel / m.size;
    tn_parallel_for(n_rows, tn_even_grain(n_rows, TASK_SIZE / m.size + 1, 1, call->threads), draw_rows, &m, call->threads);
    if (m.refused_row == INT64_MAX) return TN_OK;
    tn_refuse(call, TN_ERR_ARGUMENT, "row %lld of the weights: wanted finite weights of at least 0, %lld of them above 0",
              (long long)m.refused_row, (long long)(m.args->replacement ? 1 : m.args->n_samples));
    return TN_ERR_ARGUMENT;
}
