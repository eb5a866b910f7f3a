/* What a run leaves to read: log.jsonl, loss.svg and, on a terminal, a line of progress. */
#ifndef TENON_TRAIN_LOG_H
#define TENON_TRAIN_LOG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct train_record {
    int64_t step; /* finished steps */
    double loss, lr, grad_norm, tok_s, ms;
    double val_loss, val_accuracy; /* NAN where not evaluated */
} train_record;

typedef struct train_log {
    const char *folder;
    FILE *stream; /* log.jsonl */
    train_record *records;
    int64_t n_records, room;
    int64_t steps;      /* in all */
    double flops, peak; /* of a step; of the device a second, 0: unknown */
    bool terminal;
    char failure[512];
} train_log;

/* Opens folder/log.jsonl. A run that goes on after `first_step` steps keeps what the log says of those; else the log begins anew. */
bool train_log_open(train_log *log, const char *folder, int64_t first_step);
void train_log_close(train_log *log);
/* Writes one line, and shows it. */
bool train_log_add(train_log *log, const train_record *record);
/* Draws folder/loss.svg. */
bool train_log_plot(train_log *log);

/* Training loss and validation loss over steps as a picture of its own. */
bool train_plot(FILE *stream, const train_record *records, int64_t n);

#endif
