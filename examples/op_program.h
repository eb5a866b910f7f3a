/* tenon-op's parts: listing, running one op on a file, checking files. */
#ifndef TENON_OP_PROGRAM_H
#define TENON_OP_PROGRAM_H

#include "cli.h"
#include "tenon.h"

typedef struct op_request {
    const tn_cli *cli;
    const char *device;
    const tn_dtype *dtype; /* NULL: as the file has it */
    const char *in, *out;
    tn_cli_texts settings;
    bool backward;
} op_request;

/* Each returns the program's exit code. */
int tn_op_list_text(void);
int tn_op_list_json(void);
int tn_op_run_file(const op_request *request, const char *op_name);
int tn_op_check_files(const op_request *request, char *const *paths, int n_paths);

#endif
