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

/* An input's dtypes; 0 where it follows the first input. */
unsigned tn_op_input_dtypes(const tn_op_def *op, int i);
/* Dtypes of the first input for which a device can do a pass. */
unsigned tn_op_forward_dtypes(const tn_op_def *op, int kind);
unsigned tn_op_backward_dtypes(const tn_op_def *op, int kind);

/* Each returns the program's exit code. */
int tn_op_list_text(void);
int tn_op_list_json(void);
int tn_op_list_reference(void);
int tn_op_run_file(const op_request *request, const char *op_name);
int tn_op_check_files(const op_request *request, char *const *paths, int n_paths);

#endif
