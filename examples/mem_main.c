/* tenon-mem: what a training step keeps in memory, where it peaks, and what it would take.
 *
 *     tenon-mem --config=examples/configs/shakespeare-char-cpu.json --data=input.txt --html=memory.html
 *     tenon-mem --task=uniform --layers=12 --width=768 --heads=6 --context=1024 --batch=32 --device=cuda
 *     tenon-mem --op=linear_attention --set causal=true */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem_print.h"

typedef struct mem_request {
    const char *config, *op, *sample;
    tn_cli_texts settings;
    mem_files files;
    int64_t rows, events, repeat;
    bool no_growth;
} mem_request;

static int say(const char *message, int code) {
    fprintf(stderr, "tenon-mem: %s\n", message);
    return code;
}

static bool read_line(int argc, char **argv, mem_request *request, train_config *config, int *code) {
    const tn_cli_option own[] = {
        { "config", TN_CLI_TEXT, &request->config, "FILE", "JSON object with any of the keys below, as for tenon-train", NULL },
        { "op", TN_CLI_TEXT, &request->op, "NAME", "one op, forward and backward, instead of a training step", NULL },
        { "sample", TN_CLI_TEXT, &request->sample, "NAME", "which of the op's samples gives the inputs", NULL },
        { "set", TN_CLI_TEXTS, &request->settings, "KEY=VALUE", "an attribute of the op", NULL },
        { "snapshot", TN_CLI_TEXT, &request->files.snapshot, "FILE", "for PyTorch's memory viewer", NULL },
        { "trace", TN_CLI_TEXT, &request->files.trace, "FILE", "for Perfetto and chrome://tracing", NULL },
        { "csv", TN_CLI_TEXT, &request->files.csv, "FILE", "the events", NULL },
        { "html", TN_CLI_TEXT, &request->files.html, "FILE", "a page with the timeline and the live set of any moment", NULL },
        { "events", TN_CLI_INT, &request->events, "N", "events that are remembered (1048576; 0: none)", NULL },
        { "rows", TN_CLI_INT, &request->rows, "N", "lines of the live set that are shown", NULL },
        { "repeat", TN_CLI_INT, &request->repeat, "N", "steps that are looked at (1)", NULL },
        { "no-growth", TN_CLI_FLAG, &request->no_growth, NULL, "leave out how the peak grows, and what --recompute would change", NULL },
        { NULL },
    };
    tn_cli_option *options = train_config_options(config, own);
    char **scratch = malloc((size_t)(argc + 1) * sizeof *scratch);
    int n_arguments = 0;
    bool fine = false;
    *code = TN_CLI_FAILED;
    if (options && scratch) {
        const tn_cli cli = { "tenon-mem", "tenon-mem [--config FILE] [--key=value]...\ntenon-mem --op NAME [--set KEY=VALUE]...",
                             "Shows what a training step, or one op, takes: peaks, the live set, what is kept for backward.", options };
        memcpy(scratch, argv, (size_t)(argc + 1) * sizeof *scratch);
        fine = tn_cli_parse(&cli, argc, scratch, &n_arguments, code);
        if (fine && n_arguments) *code = tn_cli_refuse(&cli, "unexpected argument '%s'", scratch[0]);
    }
    free(options);
    free(scratch);
    return fine && !n_arguments;
}

/* Without a file to read, tokens are drawn: what they are does not matter here. */
static bool settle(int argc, char **argv, mem_request *request, train_config *config, int *code) {
    char message[2048] = "";
    train_config_defaults(config);
    request->rows = 20;
    request->events = 1 << 20;
    request->repeat = 1;
    if (!read_line(argc, argv, request, config, code)) return false;
    if (request->repeat < 1 || request->rows < 0 || request->events < 0) {
        *code = say("--repeat wants 1 or more, --rows and --events 0 or more", TN_CLI_USAGE);
        return false;
    }
    bool fine = !request->config || train_config_from_file(config, request->config, message, sizeof message);
    request->settings.n = 0;
    if (fine && !read_line(argc, argv, request, config, code)) return false;
    if (fine && !config->data && config->task == TRAIN_TASK_NONE) config->task = TRAIN_TASK_UNIFORM;
    if (config->task == TRAIN_TASK_UNIFORM && !config->task_length) config->task_length = config->context;
    fine = fine && (request->op || train_config_check(config, message, sizeof message));
    if (!fine) *code = say(message, TN_CLI_USAGE);
    return fine;
}

static void print_step(const mem_request *request, const train_config *config, tn_context *cx, const mem_report *report,
                       int64_t predicted) {
    char text[2][32];
    int64_t peak = report->stats.all.allocated.peak;
    printf("%s: %.3f M parameters, %" PRId64 " tokens a step, %.3f ms; recompute %s; %s\n", config->model,
           (double)report->n_parameters / 1e6, report->n_tokens, 1e3 * report->seconds, config->recompute, tn_device_detail(cx));
    mem_print_peak(report);
    printf("predicted %s (%" PRId64 "), measured %s (%" PRId64 "): %+.3f%%\n", mem_bytes(predicted, text[0]), predicted,
           mem_bytes(peak, text[1]), peak, 100.0 * (double)(predicted - peak) / (double)peak);
    mem_print_saved(report);
    mem_print_live(report, request->rows);
}

static int report_step(const mem_request *request, const train_config *asked, tn_context *cx) {
    mem_report report;
    train_config config = *asked;
    train_budget budget;
    char reason[1024];
    tn_memory_stats dry;
    if (!mem_plan(cx, &config, &budget)) return say(tn_error(cx), TN_CLI_FAILED);
    if (!mem_predict_step(&config, &dry, reason, sizeof reason)) return say(reason, TN_CLI_FAILED);
    if (!mem_measure_step(cx, &config, request->repeat, &request->files, &report)) {
        mem_report_free(&report);
        return say(tn_error(cx), TN_CLI_FAILED);
    }
    print_step(request, &config, cx, &report, dry.all.allocated.peak);
    int64_t length = report.length;
    mem_report_free(&report);
    if (request->no_growth || (mem_print_recompute(cx, &config) && mem_print_growth(&config, length))) return TN_CLI_OK;
    return tn_failed(cx) ? say(tn_error(cx), TN_CLI_FAILED) : TN_CLI_FAILED;
}

static int report_op(const mem_request *request, const train_config *config, tn_context *cx) {
    mem_report report;
    bool fine = mem_measure_op(cx, request->op, request->sample, &request->settings, model_dtype(config), &request->files, &report);
    if (fine) {
        printf("%s; %s\n", request->op, tn_device_detail(cx));
        mem_print_peak(&report);
        mem_print_saved(&report);
        mem_print_live(&report, request->rows);
    }
    mem_report_free(&report);
    return fine ? TN_CLI_OK : say(tn_error(cx), tn_error_status(cx) == TN_ERR_ARGUMENT ? TN_CLI_USAGE : TN_CLI_FAILED);
}

int main(int argc, char **argv) {
    mem_request request = { 0 };
    train_config config;
    int code;
    if (settle(argc, argv, &request, &config, &code)) {
        tn_options options = mem_options(&config, config.device);
        options.history_events = request.events > 0 ? request.events : -1;
        tn_context *cx = tn_open(&options);
        if (!cx || tn_failed(cx)) code = say(cx ? tn_error(cx) : "the host has no memory left", TN_CLI_USAGE);
        else code = request.op ? report_op(&request, &config, cx) : report_step(&request, &config, cx);
        tn_close(cx);
    }
    train_config_free(&config);
    return tn_cli_finish(&(tn_cli){ .program = "tenon-mem" }, code);
}
