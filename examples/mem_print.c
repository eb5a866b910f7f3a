#include "mem_print.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *mem_bytes(int64_t bytes, char buffer[32]) {
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double value = (double)bytes;
    int unit = 0;
    while (fabs(value) >= 1024 && unit < 4) value /= 1024, unit++;
    snprintf(buffer, 32, unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
    return buffer;
}

void mem_print_peak(const mem_report *report) {
    char text[3][32];
    const tn_pool_stats *all = &report->stats.all;
    int64_t by_category[TN_CATEGORY_COUNT] = { 0 };
    for (int64_t i = 0; i < report->timeline->n_lives; i++) {
        const tn_memory_life *life = &report->timeline->lives[i];
        if (tn_memory_lives_at(life, report->timeline->peak_event)) by_category[life->category] += life->allocated_bytes;
    }
    printf("peak of allocated bytes: %s (%" PRId64 "), after event %" PRId64 " of %" PRId64 "\n", mem_bytes(all->allocated.peak, text[0]),
           all->allocated.peak, report->timeline->peak_event + 1, report->timeline->n_events);
    for (int c = 0; c < TN_CATEGORY_COUNT; c++)
        if (by_category[c])
            printf("  %-12s %12s  %5.1f%%\n", tn_category_name((tn_category)c), mem_bytes(by_category[c], text[0]),
                   100.0 * (double)by_category[c] / (double)all->allocated.peak);
    double reserved = all->reserved.peak ? (double)all->reserved.peak : 1;
    printf("at most requested %s, allocated %s, reserved %s: of that %.1f%% is rounding, %.1f%% gaps and cache\n",
           mem_bytes(all->requested.peak, text[0]), mem_bytes(all->allocated.peak, text[1]), mem_bytes(all->reserved.peak, text[2]),
           100.0 * (double)(all->allocated.peak - all->requested.peak) / reserved,
           100.0 * (double)(all->reserved.peak - all->allocated.peak) / reserved);
    printf("workspace at most %s\n", mem_bytes(report->stats.category[TN_CATEGORY_WORKSPACE].peak, text[0]));
}

void mem_print_saved(const mem_report *report) {
    char text[4][32];
    int64_t off = 0;
    printf("\nkept for backward once forward is done: %s; each storage once: %s, of which %s only because a view lies in it\n",
           mem_bytes(report->saved.ledger_bytes, text[0]), mem_bytes(report->saved.unique_bytes, text[1]),
           mem_bytes(report->saved.pinned_extra_bytes, text[2]));
    printf("  %-20s %-24s %5s %12s %12s %10s\n", "label", "op", "calls", "saved", "formula", "difference");
    for (int64_t i = 0; i < report->n_table; i++) {
        const mem_saved *row = &report->table[i];
        off += llabs(row->saved_bytes - row->formula_bytes);
        printf("  %-20s %-24s %5" PRId64 " %12s %12s %10" PRId64 "\n", row->label, row->op, row->n_calls,
               mem_bytes(row->saved_bytes, text[0]), mem_bytes(row->formula_bytes, text[1]), row->saved_bytes - row->formula_bytes);
    }
    printf("  differences: %" PRId64 " bytes\n", off);
}

/* ---- the live set ---- */

typedef struct owner_row {
    const tn_memory_life *life;
    int64_t bytes, n;
} owner_row;

static bool same_owner(const tn_memory_life *a, const tn_memory_life *b) {
    return a->category == b->category && a->form == b->form && a->owner.pass == b->owner.pass && strcmp(a->owner.op, b->owner.op) == 0 &&
           strcmp(a->owner.label, b->owner.label) == 0;
}

static int by_bytes(const void *a, const void *b) {
    const owner_row *x = a, *y = b;
    return x->bytes < y->bytes ? 1 : x->bytes > y->bytes ? -1 : 0;
}

void mem_print_live(const mem_report *report, int64_t most) {
    const tn_memory_timeline *t = report->timeline;
    owner_row *rows = malloc((size_t)(t->n_lives + 1) * sizeof *rows);
    int64_t n = 0;
    char text[32], form[192];
    for (int64_t i = 0; rows && i < t->n_lives; i++) {
        if (!tn_memory_lives_at(&t->lives[i], t->peak_event)) continue;
        int64_t at = 0;
        while (at < n && !same_owner(rows[at].life, &t->lives[i])) at++;
        if (at == n) rows[n++] = (owner_row){ .life = &t->lives[i] };
        rows[at].bytes += t->lives[i].allocated_bytes;
        rows[at].n++;
    }
    if (!rows) return;
    qsort(rows, (size_t)n, sizeof *rows, by_bytes);
    printf("\nlive at the peak, largest owners first (%" PRId64 " of %" PRId64 ")\n  %12s %6s  %-10s %-9s %-24s %s\n", n < most ? n : most,
           n, "bytes", "blocks", "category", "pass", "tensor", "owner");
    for (int64_t i = 0; i < n && i < most; i++) {
        const tn_owner *owner = &rows[i].life->owner;
        printf("  %12s %6" PRId64 "  %-10s %-9s %-24s %s%s%s\n", mem_bytes(rows[i].bytes, text), rows[i].n,
               tn_category_name(rows[i].life->category), tn_pass_name(owner->pass),
               tn_tensor_form_text(rows[i].life->form, form, sizeof form), owner->label, *owner->label ? "/" : "", owner->op);
    }
    free(rows);
}

/* ---- keeping less ---- */

static bool print_recompute(const train_config *config, const tn_data *data, const char *recompute, char *reason, size_t n_bytes) {
    train_config changed = *config;
    tn_memory_stats stats;
    train_budget budget;
    char text[2][32];
    changed.recompute = recompute;
    if (!mem_predict_step(&changed, &stats, reason, n_bytes) || !train_budget_predict(&changed, data, recompute, &budget, reason, n_bytes))
        return false;
    printf("  %-16s %12s %14s %9.1f%%%s\n", recompute, mem_bytes(stats.all.allocated.peak, text[0]),
           mem_bytes(stats.category[TN_CATEGORY_SAVED].peak, text[1]), 100 * budget.more_work,
           strcmp(recompute, config->recompute) ? "" : "   as run here");
    return true;
}

bool mem_print_recompute(tn_context *cx, const train_config *config) {
    static const char *const choices[] = { "none", "attention", "mlp", "block", "every-2", "every-4", "offload" };
    enum { N_CHOICES = sizeof choices / sizeof *choices };
    char reason[1024] = "";
    int i = 0, among = 0;
    tn_data_options options = train_config_data(config);
    tn_data *data = tn_data_open(cx, &options);
    if (!data) return false;
    printf("\nwhat --recompute would make of it (predicted)\n  %-16s %12s %14s %10s\n", "recompute", "peak", "saved at most", "more work");
    while (i < N_CHOICES && print_recompute(config, data, choices[i], reason, sizeof reason))
        among |= !strcmp(choices[i++], config->recompute);
    bool fine = i == N_CHOICES && (among || print_recompute(config, data, config->recompute, reason, sizeof reason));
    tn_data_close(data);
    if (!fine) fprintf(stderr, "tenon-mem: recompute: %s\n", reason);
    return fine;
}

/* ---- growth ---- */

static bool print_growth_with(const char *what, const int64_t *value, train_config *changed, int64_t *place) {
    int64_t peaks[3];
    tn_memory_stats stats;
    char text[3][32], reason[1024];
    for (int i = 0; i < 3; i++) {
        *place = *value << i;
        if (!mem_predict_step(changed, &stats, reason, sizeof reason)) {
            fprintf(stderr, "tenon-mem: %s %" PRId64 ": %s\n", what, *place, reason);
            return false;
        }
        peaks[i] = stats.all.allocated.peak;
    }
    *place = *value;
    /* fixed + each * value^power, through all three: the second step of a line is twice the first. */
    double first = (double)(peaks[1] - peaks[0]), second = (double)(peaks[2] - peaks[1]);
    printf("  %-8s %6" PRId64 " %12s  %6" PRId64 " %12s  %6" PRId64 " %12s", what, *value, mem_bytes(peaks[0], text[0]), *value * 2,
           mem_bytes(peaks[1], text[1]), *value * 4, mem_bytes(peaks[2], text[2]));
    if (first > 0 && second > first) {
        double power = log2(second / first), each = first / (pow(2.0 * (double)*value, power) - pow((double)*value, power));
        printf("   = %.2f MiB + %.4f MiB x %s^%.2f", ((double)peaks[0] - each * pow((double)*value, power)) / 1048576, each / 1048576, what,
               power);
    }
    printf("\n");
    return true;
}

bool mem_print_growth(const train_config *config, int64_t length) {
    train_config changed = *config;
    printf("\nhow the peak grows (predicted)\n");
    bool fine = print_growth_with("batch", &config->batch, &changed, &changed.batch);
    if (fine && config->task == TRAIN_TASK_NONE) fine = print_growth_with("context", &length, &changed, &changed.context);
    else if (fine && config->task != TRAIN_TASK_SHAPES) fine = print_growth_with("length", &length, &changed, &changed.task_length);
    if (fine && config->layers * 4 <= TRAIN_MAX_LAYERS) fine = print_growth_with("layers", &config->layers, &changed, &changed.layers);
    return fine;
}
