/* tenon-gradcheck: compares every op's gradients with differences of the op itself, on every sample. */
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "op_file.h"
#include "sample_inputs.h"
#include "tenon.h"

typedef struct request {
    const tn_cli *cli;
    tn_context *cx;
    tn_gradcheck_options options;
    bool list;
    int n_passed, n_failed, n_empty, n_not_run;
} request;

static const char usage[] = "tenon-gradcheck [OP | OP/SAMPLE]... [--device D] [--fast] [--list]";
static const char doc[] =
    "Compares gradients with central differences in f64 (step 1e-6, atol 1e-5, rtol 1e-3) for every sample of every op, or of those\n"
    "named (* and ? stand for other characters): the whole Jacobian on small samples, random projections on larger ones.";

static bool selected(const char *pattern, const tn_op_def *op, const tn_sample *sample) {
    char name[256];
    snprintf(name, sizeof name, "%s/%s", op->name, sample->name);
    return fnmatch(pattern, op->name, 0) == 0 || fnmatch(pattern, name, 0) == 0;
}

static bool wanted(char *const *patterns, int n, const tn_op_def *op, const tn_sample *sample) {
    for (int i = 0; i < n; i++)
        if (selected(patterns[i], op, sample)) return true;
    return n == 0;
}

/* A pattern must name something; an op without gradients counts, with a word about it. */
static bool patterns_fit(const request *r, char *const *patterns, int n_patterns) {
    for (int p = 0; p < n_patterns; p++) {
        int n_ops = 0, n_checks = 0;
        for (int i = 0; i < tn_op_count(); i++) {
            const tn_op_def *op = tn_op_at(i);
            for (const tn_sample *sample = op->samples; sample->name; sample++) {
                if (!selected(patterns[p], op, sample)) continue;
                n_ops++;
                n_checks += tn_sample_has_gradcheck(r->cx, op, sample);
            }
        }
        if (n_ops == 0)
            return tn_cli_refuse(r->cli, "there is no op or sample '%s'; tenon-op --list shows the ops, --list the samples", patterns[p]) <
                   0;
        if (n_checks == 0) fprintf(stderr, "%s: '%s' has no gradient to check\n", r->cli->program, patterns[p]);
    }
    return true;
}

static void explain(const request *r, const tn_op_def *op, const tn_sample *sample, const tn_gradcheck_result *result) {
    char input[TN_OP_NAME_BYTES] = "?";
    if (result->input >= 0) tn_op_file_input_name(op, result->input, input);
    const char *output = result->output >= 0 ? op->outputs[result->output].name : "?";
    printf("    d %s / d %s: backward says %.9g, differences %.9g; ", output, input, result->analytic, result->numeric);
    if (result->full) printf("output element %" PRId64 ", input element %" PRId64, result->output_index, result->input_index);
    else printf("along a random direction");
    printf("; seed %" PRIu64 "; attributes %s\n", r->options.seed, sample->attrs ? sample->attrs : "{}");
    printf("    rerun: %s '%s/%s'\n", r->cli->program, op->name, sample->name);
}

static void check_sample(request *r, const tn_op_def *op, const tn_sample *sample) {
    tn_gradcheck_result result;
    printf("%s/%s ", op->name, sample->name);
    if (!tn_sample_gradcheck(r->cx, op, sample, r->options, &result)) {
        printf("NOT RUN\n    %s\n", tn_error(r->cx));
        tn_clear_error(r->cx);
        r->n_not_run++;
        return;
    }
    if (result.passed && result.n_compared == 0) {
        printf("nothing to compare: no input element, or no output element in f64\n");
        r->n_empty++;
        return;
    }
    *(result.passed ? &r->n_passed : &r->n_failed) += 1;
    printf("%s %" PRId64 " compared, worst %.3g of the tolerance, %s\n", result.full ? "full" : "projected", result.n_compared,
           result.worst_share, result.passed ? "ok" : "FAILED");
    if (!result.passed) explain(r, op, sample, &result);
    fflush(stdout);
}

static int check_all(request *r, char *const *patterns, int n_patterns) {
    for (int i = 0; i < tn_op_count(); i++) {
        const tn_op_def *op = tn_op_at(i);
        for (const tn_sample *sample = op->samples; sample->name; sample++) {
            if (!wanted(patterns, n_patterns, op, sample) || !tn_sample_has_gradcheck(r->cx, op, sample)) continue;
            if (r->list) printf("%s/%s\n", op->name, sample->name);
            else check_sample(r, op, sample);
        }
    }
    if (r->list) return TN_CLI_OK;
    printf("%d passed, %d failed", r->n_passed, r->n_failed);
    if (r->n_empty) printf(", %d with nothing to compare", r->n_empty);
    if (r->n_not_run) printf(", %d could not be run", r->n_not_run);
    printf("\n");
    return r->n_failed || r->n_not_run ? TN_CLI_FAILED : TN_CLI_OK;
}

int main(int argc, char **argv) {
    const char *device = "auto";
    int64_t seed = 1;
    bool fast = false;
    request r = { .options = TN_GRADCHECK(.seed = 1) };
    const tn_cli_option options[] = {
        { "device", TN_CLI_TEXT, &device, .argument = "cpu|cuda|auto",
          .doc = "where to compute (auto: the first usable GPU, else the CPU)" },
        { "fast", TN_CLI_FLAG, &fast, .doc = "whole Jacobians only of the smallest samples, and fewer projections" },
        { "list", TN_CLI_FLAG, &r.list, .doc = "list what would be checked" },
        { "seed", TN_CLI_INT, &seed, .argument = "N", .doc = "of the inputs (1)" },
        { .name = NULL },
    };
    const tn_cli cli = { .program = "tenon-gradcheck", .usage = usage, .doc = doc, .options = options };
    int n_patterns, code;
    if (!tn_cli_parse(&cli, argc, argv, &n_patterns, &code)) return code;
    r.cli = &cli;
    r.options.seed = (uint64_t)seed;
    if (fast) r.options.full_limit = 2000, r.options.n_projections = 2;

    r.cx = tn_open(&(tn_options){ .device = device, .history_events = -1 });
    if (tn_failed(r.cx)) code = tn_cli_refuse(&cli, "--device: %s", tn_error(r.cx));
    else if (!patterns_fit(&r, argv, n_patterns)) code = TN_CLI_USAGE;
    else code = check_all(&r, argv, n_patterns);
    tn_close(r.cx);
    return tn_cli_finish(&cli, code);
}
