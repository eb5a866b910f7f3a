/* tenon-mem's text. */
#ifndef TENON_MEM_PRINT_H
#define TENON_MEM_PRINT_H

#include "mem_step.h"

/* Bytes for people: "12.3 MiB"; returns buffer. */
const char *mem_bytes(int64_t bytes, char buffer[32]);

void mem_print_peak(const mem_report *report);
void mem_print_saved(const mem_report *report);
/* The `most` largest owners of what lived at the peak. */
void mem_print_live(const mem_report *report, int64_t most);
/* What each way to keep less would take, in memory and in work, predicted. */
bool mem_print_recompute(tn_context *cx, const train_config *config);
/* Peaks predicted for multiples of batch, layers and `length`, the tokens of a row. */
bool mem_print_growth(const train_config *config, int64_t length);

#endif
