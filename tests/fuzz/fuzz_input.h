/* What fuzz targets share: one context for all inputs, and bytes as a file or as numbers.
 *
 * A target is one function, LLVMFuzzerTestOneInput. Linked with libFuzzer it is fed with changed inputs (./run fuzz); linked with
 * fuzz_replay.c it runs over the kept ones, as a test. A target stops by abort() where the library is wrong. */
#ifndef TENON_FUZZ_INPUT_H
#define TENON_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libtensor/tensor.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

/* A CPU context with one thread, 64 MiB at most and no error, in a scope of its own; opened once. fuzz_end ends the scope. */
tn_context *fuzz_begin(void);
void fuzz_end(void);

/* A file with these bytes: its path, which the next call makes invalid. */
const char *fuzz_file(const uint8_t *data, size_t n_bytes);

/* Stops unless `condition` holds. */
void fuzz_want_at(bool condition, const char *text, const char *file, int line);
#define fuzz_want(condition) fuzz_want_at((condition), #condition, __FILE__, __LINE__)

/* Bytes taken from the front; zeros when there are none left. */
typedef struct fuzz_bytes {
    const uint8_t *at;
    size_t n;
} fuzz_bytes;
uint8_t fuzz_byte(fuzz_bytes *bytes);

#endif
