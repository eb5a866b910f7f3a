/* A thin layer over CMocka: a main that lists, filters and counts cases, and comparisons that say where they failed.
 *
 * CMocka's own float comparisons are not used anywhere: assert_float_equal passes on NaN. */
#ifndef TENON_HARNESS_H
#define TENON_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "libtensor/context.h"
#include "libtensor/tensor.h"

/* Runs the cases under CMocka. Arguments of the program: --list, --filter GLOB. Returns its exit code: 0 all passed, 1 some
 * failed, 2 wrong arguments, 77 all skipped. "PROGRAM PASSED FAILED SKIPPED" is appended to the file named by TENON_TEST_COUNTS. */
int tn_test_main(const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc, char **argv);
/* Makes a new folder, whose path `folder` gets, and removes it and what is in it when the cases are through. */
#define TN_TEST_FOLDER_BYTES 64
int tn_test_main_in_folder(char folder[TN_TEST_FOLDER_BYTES], const char *name, const struct CMUnitTest *cases, size_t n_cases, int argc,
                           char **argv);
#define TN_TEST_MAIN(name, cases) \
    int main(int argc, char **argv) { return tn_test_main(name, cases, sizeof(cases) / sizeof(cases)[0], argc, argv); }

/* The device the tests run on: TENON_TEST_DEVICE, else "cpu". */
const char *tn_test_device(void);

/* Skips the case: CMocka's skip(), counted. */
_Noreturn void tn_test_skip(const char *file, int line);
#undef skip
#define skip() tn_test_skip(__FILE__, __LINE__)

/* What a failing line should say about the case at hand: seed, shape, dtype. Stays until the next note or the case's end. */
void tn_test_note(const char *format, ...) TN_PRINTF(1, 2);
/* Fails the case with a message and the note. The command that reruns just this case follows every failure. */
_Noreturn void tn_test_fail(const char *file, int line, const char *format, ...) TN_PRINTF(3, 4);
#define TN_TEST_WANT(condition, ...)                                     \
    do {                                                                 \
        if (!(condition)) tn_test_fail(__FILE__, __LINE__, __VA_ARGS__); \
    } while (0)

/* ||actual - expected|| / ||expected||; the plain ||actual|| where expected is all zero. Infinite where a NaN or Inf
 * stands on one side only. */
double tn_test_relative_l2(const double *expected, const double *actual, int64_t n);
void tn_test_close_at(const char *file, int line, const double *expected, const double *actual, int64_t n, double tolerance,
                      const char *what);
void tn_test_near_at(const char *file, int line, const double *expected, const double *actual, int64_t n, double atol, double rtol,
                     const char *what);
/* Fails unless the relative L2 error is within the tolerance. */
#define tn_test_close(expected, actual, n, tolerance, what) \
    tn_test_close_at(__FILE__, __LINE__, (expected), (actual), (n), (tolerance), (what))
/* Fails unless |actual - expected| <= atol + rtol |expected| for every element. */
#define tn_test_near(expected, actual, n, atol, rtol, what) \
    tn_test_near_at(__FILE__, __LINE__, (expected), (actual), (n), (atol), (rtol), (what))

/* t's elements as doubles, row-major, for free(). Fails the case if they can't be read. */
double *tn_test_doubles(const tn_tensor *t);

/* Fails the case if cx has an error, and prints it. */
void tn_test_ok_at(const char *file, int line, const tn_context *cx);
#define tn_test_ok(cx) tn_test_ok_at(__FILE__, __LINE__, (cx))
/* Fails the case unless cx has an error of this status whose message contains `words` (NULL: any); clears it. */
void tn_test_error_at(const char *file, int line, tn_context *cx, tn_status status, const char *words);
#define tn_test_error(cx, status, words) tn_test_error_at(__FILE__, __LINE__, (cx), (status), (words))

#endif
