/* tenon-train: trains a small model on a text or a task, and can be stopped and resumed at any step.
 *
 *     tenon-train --config=examples/configs/shakespeare-char-cpu.json --data=input.txt --out=runs/first
 *     tenon-train --out=runs/first --resume
 *
 * What a key is set to: its default, then what the checkpoint says when resuming, then --config, then the command line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train_loop.h"

#define MESSAGE_BYTES 2048

typedef struct train_request {
    const char *config;
    bool resume;
} train_request;

/* The command line: parsing moves the arguments about, so each reading takes a copy. */
typedef struct train_line {
    int argc;
    char **argv, **scratch;
} train_line;

static int refuse(const char *message, int code) {
    fprintf(stderr, "tenon-train: %s\n", message);
    return code;
}

/* Reads the command line over what `config` holds. False where the program is to end, with *code. */
static bool read_line(const train_line *line, train_request *request, train_config *config, int *code) {
    const tn_cli_option own[] = {
        { "config", TN_CLI_TEXT, &request->config, "FILE", "JSON object with any of the keys below", NULL },
        { "resume", TN_CLI_FLAG, &request->resume, NULL, "go on from the newest checkpoint in --out, if there is one", NULL },
        { .name = NULL },
    };
    tn_cli_option *options = train_config_options(config, own);
    int n_arguments = 0;
    *code = TN_CLI_FAILED;
    if (!options) return false;
    const tn_cli cli = { "tenon-train", "tenon-train [--config FILE] [--key=value]...",
                         "Trains a small model on text, tokens or a task. Writes log.jsonl, loss.svg and checkpoints to --out.", options };
    memcpy(line->scratch, line->argv, (size_t)(line->argc + 1) * sizeof *line->argv);
    bool fine = tn_cli_parse(&cli, line->argc, line->scratch, &n_arguments, code);
    if (fine && n_arguments) *code = tn_cli_refuse(&cli, "unexpected argument '%s'", line->scratch[0]);
    free(options);
    return fine && !n_arguments;
}

/* Defaults, then `saved` (NULL: none), --config, and the command line, which is read before that too: it says where --config is. */
static bool settle(const train_line *line, train_request *request, const json_t *saved, train_config *config, int *code) {
    char message[MESSAGE_BYTES];
    train_config_defaults(config);
    bool fine = true;
    if (saved) {
        fine = train_config_from_json(config, saved, message, sizeof message);
        config->stop_after = 0; /* it was said of that part of the run alone */
    }
    if (fine && !read_line(line, request, config, code)) return false;
    if (fine && request->config) fine = train_config_from_file(config, request->config, message, sizeof message);
    if (fine) return read_line(line, request, config, code);
    *code = refuse(message, TN_CLI_USAGE);
    return false;
}

/* May the run that wrote `saved` go on as `config` says? */
static bool check_resumed(const train_config *config, const json_t *saved, const char *path, char *message, size_t n_bytes) {
    train_config before;
    train_config_defaults(&before);
    bool fine = train_config_from_json(&before, saved, message, n_bytes);
    const char *changed = fine ? train_config_fixed_difference(&before, config) : NULL;
    if (changed) snprintf(message, n_bytes, "%s is not what the run in %s began with", changed, path);
    train_config_free(&before);
    return fine && !changed;
}

static int run(const train_config *config, tn_context *cx, const run_checkpoint *from) {
    char message[MESSAGE_BYTES];
    bool fine = train_config_check(config, message, sizeof message) &&
                (!from || check_resumed(config, run_checkpoint_state_of(from)->config, run_checkpoint_path(from), message, sizeof message));
    int code = fine ? train_run(config, cx, from, message, sizeof message) : TN_CLI_USAGE;
    return code == TN_CLI_OK ? code : refuse(message, code);
}

/* Goes on with the run in first->out. */
static int resume(const train_line *line, train_request *request, const train_config *first, tn_context *cx) {
    run_checkpoint *from = run_checkpoint_open(cx, first->out);
    if (!from) return refuse(tn_error(cx), TN_CLI_USAGE);
    train_config config;
    int code;
    if (settle(line, request, run_checkpoint_state_of(from)->config, &config, &code)) code = run(&config, cx, from);
    train_config_free(&config);
    run_checkpoint_close(from);
    return code;
}

static int start(const train_line *line) {
    train_request request = { 0 };
    train_config config;
    int code;
    if (settle(line, &request, NULL, &config, &code)) {
        tn_context *cx = tn_open(&(tn_options){ .device = config.device, .seed = (uint64_t)config.seed, .threads = (int)config.threads });
        bool there = run_checkpoint_exists(config.out);
        if (tn_failed(cx)) code = refuse(tn_error(cx), TN_CLI_USAGE);
        else if (there && request.resume) code = resume(line, &request, &config, cx);
        else if (there) code = refuse("--out holds a run: wanted --resume to go on with it, or another --out", TN_CLI_USAGE);
        else code = run(&config, cx, NULL);
        tn_close(cx);
    }
    train_config_free(&config);
    return code;
}

int main(int argc, char **argv) {
    train_line line = { argc, argv, malloc((size_t)(argc + 1) * sizeof *argv) };
    if (!line.scratch) return refuse("the host has no memory left", TN_CLI_FAILED);
    int code = start(&line);
    free(line.scratch);
    return tn_cli_finish(&(tn_cli){ .program = "tenon-train" }, code);
}
