/* tenon-op: lists the ops, runs one on a safetensors file, checks files that hold expected results. */
#include <stddef.h>

#include "op_program.h"

static const char usage[] =
    "tenon-op --list [--json]\n"
    "tenon-op --reference\n"
    "tenon-op OP --in X.safetensors --out Y.safetensors [--set key=value]... [--backward] [--device D] [--dtype T]\n"
    "tenon-op --check FILE... [--device D] [--dtype T]";
static const char doc[] = "Lists the ops, runs one on the tensors of a file, or reruns files that hold expected results.\n"
                          "In a file an input has the op's name for it; results are out.NAME, upstream gradients grad_out.NAME, gradients\n"
                          "grad.INPUT; a repeated last input is NAME.0, NAME.1, and so on. --list shows the names.";

int main(int argc, char **argv) {
    static const char *const dtype_names[] = { "f64", "f32", "bf16", NULL };
    static const tn_dtype dtypes[] = { TN_F64, TN_F32, TN_BF16 };
    op_request request = { .device = "auto" };
    bool list = false, json = false, reference = false, check = false;
    int dtype = -1;
    const tn_cli_option options[] = {
        { "list", TN_CLI_FLAG, &list, .doc = "list ops, inputs, outputs, attributes, devices and dtypes" },
        { "json", TN_CLI_FLAG, &json, .doc = "with --list: as JSON" },
        { "reference", TN_CLI_FLAG, &reference, .doc = "all there is to say of every op, as Markdown" },
        { "in", TN_CLI_TEXT, &request.in, .argument = "FILE", .doc = "inputs; tensors named grad_out.NAME are used by --backward" },
        { "out", TN_CLI_TEXT, &request.out, .argument = "FILE", .doc = "where the results go" },
        { "set", TN_CLI_TEXTS, &request.settings, .argument = "KEY=VALUE",
          .doc = "an attribute: true or false, numbers, names, lists as 4,5; as often as needed" },
        { "backward", TN_CLI_FLAG, &request.backward,
          .doc = "also compute the gradients, from grad_out.NAME of the input file or else from ones" },
        { "check", TN_CLI_FLAG, &check,
          .doc = "rerun the op named in each FILE's metadata (op, attrs) and print each result's relative L2 error;\n"
                 "allowed are 1e-9 in f64, 3e-5 in f32, 2.5e-2 in bf16" },
        { "device", TN_CLI_TEXT, &request.device, .argument = "cpu|cuda|auto",
          .doc = "where to compute (auto: the first usable GPU, else the CPU)" },
        { "dtype", TN_CLI_CHOICE, &dtype, .doc = "convert float inputs first (default: as the file has them)", .choices = dtype_names },
        { .name = NULL },
    };
    const tn_cli cli = { .program = "tenon-op", .usage = usage, .doc = doc, .options = options };
    int n_arguments, code;
    if (!tn_cli_parse(&cli, argc, argv, &n_arguments, &code)) return code;
    request.cli = &cli;
    if (dtype >= 0) request.dtype = &dtypes[dtype];

    if (json && !list) return tn_cli_refuse(&cli, "--json goes with --list");
    if (list + reference + check > 1) return tn_cli_refuse(&cli, "--list, --reference and --check exclude each other");
    const char *mode = list ? "list" : reference ? "reference" : "check";
    if ((list || reference || check) && (request.in || request.out || request.settings.n || request.backward))
        return tn_cli_refuse(&cli, "--in, --out, --set and --backward belong to running an op, not to --%s", mode);
    if ((list || reference) && n_arguments) return tn_cli_refuse(&cli, "--%s takes no argument, got '%s'", mode, argv[0]);
    if (list) code = json ? tn_op_list_json() : tn_op_list_text();
    else if (reference) code = tn_op_list_reference();
    else if (check && !n_arguments) return tn_cli_refuse(&cli, "--check wants at least one file");
    else if (check) code = tn_op_check_files(&request, argv, n_arguments);
    else if (n_arguments == 0) return tn_cli_refuse(&cli, "which op? see --help and --list");
    else if (n_arguments > 1) return tn_cli_refuse(&cli, "one op at a time: '%s' is one argument too many", argv[1]);
    else code = tn_op_run_file(&request, argv[0]);
    return tn_cli_finish(&cli, code);
}
