/* Command lines of Tenon's programs: --name VALUE or --name=VALUE, --help, --version, and errors that name the option.
 *
 * Every program exits 0 when all is well, 1 when what it was to do failed, 2 when it was asked wrongly. Results go to standard
 * output, everything else to standard error. */
#ifndef TENON_CLI_H
#define TENON_CLI_H

#include <stdbool.h>
#include <stdint.h>

enum { TN_CLI_OK = 0, TN_CLI_FAILED = 1, TN_CLI_USAGE = 2 };

typedef enum tn_cli_type {
    TN_CLI_FLAG,   /* bool, takes no value */
    TN_CLI_TEXT,   /* const char * */
    TN_CLI_INT,    /* int64_t */
    TN_CLI_NUMBER, /* double */
    TN_CLI_CHOICE, /* int: the index in choices */
    TN_CLI_TEXTS   /* tn_cli_texts: may be given several times */
} tn_cli_type;

#define TN_CLI_MAX_TEXTS 64
typedef struct tn_cli_texts {
    const char *text[TN_CLI_MAX_TEXTS];
    int n;
} tn_cli_texts;

typedef struct tn_cli_option {
    const char *name; /* without the dashes */
    tn_cli_type type;
    void *value;                /* holds the default before parsing */
    const char *argument;       /* what --help calls the value: "FILE" */
    const char *doc;            /* may have several lines */
    const char *const *choices; /* TN_CLI_CHOICE: ends with NULL */
} tn_cli_option;

typedef struct tn_cli {
    const char *program;
    const char *usage; /* one line per way to call it, without "usage:" */
    const char *doc;
    const tn_cli_option *options; /* ends with one that has no name */
} tn_cli;

/* Reads the options into their values and moves the other arguments to the front: argv[0 .. *n_arguments). False where the
 * program is to end now, with *code: after --help and --version, and after an error it has already told. */
bool tn_cli_parse(const tn_cli *cli, int argc, char **argv, int *n_arguments, int *code);

/* Says "PROGRAM: ..." on standard error and returns TN_CLI_USAGE. */
int tn_cli_refuse(const tn_cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* `code`, or TN_CLI_FAILED with a message where standard output could not be written. */
int tn_cli_finish(const tn_cli *cli, int code);

#endif
