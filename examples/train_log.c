#include "train_log.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool refuse(train_log *log, const char *what, const char *name) {
    snprintf(log->failure, sizeof log->failure, "%s/%s %s: %s", log->folder, name, what, strerror(errno));
    return false;
}

static bool keep(train_log *log, const train_record *record) {
    if (log->n_records == log->room) {
        int64_t room = log->room ? 2 * log->room : 256;
        train_record *records = realloc(log->records, (size_t)room * sizeof *records);
        if (!records) return false;
        log->records = records;
        log->room = room;
    }
    log->records[log->n_records++] = *record;
    return true;
}

/* ---- log.jsonl ---- */

/* JSON has no word for a number that is none. */
static void set_number(json_t *object, const char *key, double value) {
    json_object_set_new(object, key, isfinite(value) ? json_real(value) : json_null());
}

static bool write_record(train_log *log, const train_record *r) {
    json_t *object = json_pack("{s:I}", "step", (json_int_t)r->step);
    set_number(object, "loss", r->loss);
    set_number(object, "lr", r->lr);
    set_number(object, "grad_norm", r->grad_norm);
    set_number(object, "tok_s", r->tok_s);
    set_number(object, "ms", r->ms);
    if (!isnan(r->val_loss)) set_number(object, "val_loss", r->val_loss);
    if (!isnan(r->val_accuracy)) set_number(object, "val_accuracy", r->val_accuracy);
    bool fine = object && json_dumpf(object, log->stream, JSON_REAL_PRECISION(8) | JSON_PRESERVE_ORDER) == 0 &&
                fputc('\n', log->stream) != EOF && fflush(log->stream) == 0;
    json_decref(object);
    return fine || refuse(log, "can't be written", "log.jsonl");
}

static double number_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* Reads what an earlier part of the run logged, as far as it counts; a last line cut short is left out. */
static bool read_records(train_log *log, const char *path, int64_t first_step) {
    FILE *stream = fopen(path, "r");
    char line[1024];
    bool fine = true;
    if (!stream) return errno == ENOENT;
    while (fine && fgets(line, sizeof line, stream)) {
        json_t *object = json_loads(line, 0, NULL);
        train_record r = { .step = json_integer_value(json_object_get(object, "step")),
                           .loss = number_of(object, "loss"),
                           .lr = number_of(object, "lr"),
                           .grad_norm = number_of(object, "grad_norm"),
                           .tok_s = number_of(object, "tok_s"),
                           .ms = number_of(object, "ms"),
                           .val_loss = number_of(object, "val_loss"),
                           .val_accuracy = number_of(object, "val_accuracy") };
        if (object && r.step >= 1 && r.step <= first_step) fine = keep(log, &r);
        json_decref(object);
    }
    fclose(stream);
    return fine;
}

bool train_log_open(train_log *log, const char *folder, int64_t first_step) {
    char path[4096];
    *log = (train_log){ .folder = folder, .terminal = isatty(STDERR_FILENO) };
    snprintf(path, sizeof path, "%s/log.jsonl", folder);
    if (first_step > 0 && !read_records(log, path, first_step)) return refuse(log, "can't be read", "log.jsonl");
    log->stream = fopen(path, "w");
    if (!log->stream) return refuse(log, "can't be written", "log.jsonl");
    for (int64_t i = 0; i < log->n_records; i++)
        if (!write_record(log, &log->records[i])) return false;
    return true;
}

void train_log_close(train_log *log) {
    if (log->stream) fclose(log->stream);
    free(log->records);
    *log = (train_log){ 0 };
}

/* ---- progress ---- */

static void show(const train_log *log, const train_record *r) {
    double left = (double)(log->steps - r->step) * r->ms * 1e-3;
    bool evaluated = !isnan(r->val_loss), last = r->step == log->steps;
    fprintf(stderr, "\rstep %" PRId64 "/%" PRId64 "  loss %.4f  norm %.2f  lr %.2e  %.1f ms  %.0f tok/s", r->step, log->steps, r->loss,
            r->grad_norm, r->lr, r->ms, r->tok_s);
    if (log->peak > 0) fprintf(stderr, "  %.1f%% of peak", 100 * log->flops / (r->ms * 1e-3) / log->peak);
    fprintf(stderr, "  ETA %.0f:%02.0f", floor(left / 60), floor(fmod(left, 60)));
    if (evaluated) fprintf(stderr, "  val %.4f", r->val_loss);
    if (!isnan(r->val_accuracy)) fprintf(stderr, "  right %.2f%%", 100 * r->val_accuracy);
    fprintf(stderr, "\033[K%s", evaluated || last ? "\n" : "");
    fflush(stderr);
}

bool train_log_add(train_log *log, const train_record *record) {
    if (log->terminal) show(log, record);
    return keep(log, record) && write_record(log, record);
}

bool train_log_plot(train_log *log) {
    char path[4096], aside[4200];
    snprintf(path, sizeof path, "%s/loss.svg", log->folder);
    snprintf(aside, sizeof aside, "%s.partial", path);
    FILE *stream = fopen(aside, "w");
    bool fine = stream && train_plot(stream, log->records, log->n_records);
    if (stream && fclose(stream) != 0) fine = false;
    return (fine && rename(aside, path) == 0) || refuse(log, "can't be written", "loss.svg");
}
