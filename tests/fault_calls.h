/* Calls that fail on demand: the test program is linked so that the library's calls of these functions come here first (--wrap).
 *
 *     fault_arm(FAULT_FILE, 3, false);      the third call from now on fails
 *     ... what is tested ...
 *     if (fault_disarm() == 0) ...          there was no third one
 */
#ifndef TENON_FAULT_CALLS_H
#define TENON_FAULT_CALLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum fault_kind {
    FAULT_HOST,    /* malloc, calloc and realloc of the library and the programs; not of jansson, which asserts that it has memory */
    FAULT_DEVICE,  /* the allocator: every tensor and every workspace */
    FAULT_SEGMENT, /* what the allocator takes from the system */
    FAULT_FILE,    /* open, read, write, fsync, rename, close, mkdir, ... */
    FAULT_SHORT,   /* reads and writes that do less than asked, or are interrupted: nobody may notice */
    FAULT_CUDA,    /* the CUDA runtime and cuBLASLt */
    FAULT_KINDS
} fault_kind;

const char *fault_name(fault_kind kind);

void fault_arm(fault_kind kind, int64_t n, bool for_ever);
/* How many calls failed since; nothing fails from here on. */
int64_t fault_disarm(void);
/* Around a call into code of others that is linked in: what this thread does there neither fails nor counts. */
void fault_pause(void);
void fault_resume(void);
/* For the functions that are wrapped: is this call to fail? `what` is kept to be told. */
bool fault_strikes(fault_kind kind, const char *what);
/* The call that failed last. */
const char *fault_last(void);

#endif
