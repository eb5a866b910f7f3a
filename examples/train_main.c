/* tenon-train: trains a small model on a text or a task, and can be stopped and resumed at any step.
 *
 *     tenon-train --config=examples/configs/shakespeare-char-cpu.json --data=input.txt --out=run
 *     tenon-train --out=run --resume
 *
 * What a key is set to: its default, then what the checkpoint says when resuming, then --config, then the command line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train_loop.h"

typedef struct train_request {
    const char *config;
    bool resume;
} train_request;

#define MESSAGE_BYTES 2048

/* Reads the command line over what `config` holds. */
static bool read_options(train_request *request, train_config *config, int argc, char **argv, int *code) {
    const tn_cli_option own[] = {
        { "config", TN_CLI_TEXT, &request->config, "FILE", "JSON object with any of the keys below", NULL },
        { "resume", TN_CLI_FLAG, &request->resume, NULL, "go on from the newest checkpoint in --out, if there is one", NULL },
        { NULL },
    };
    tn_cli_option *options = train_config_options(config, own);
    int n_arguments = 0;
    *code = TN_CLI_FAILED;
    if (!options) return false;
    const tn_cli cli = { "tenon-train", "tenon-train [--config FILE] [--key=value]...",
                         "Trains a small model on text, tokens or a task. Writes log.jsonl, loss.svg and checkpoints to --out.", options };
    bool fine = tn_cli_parse(&cli, argc, argv, &n_arguments, code);
    if (fine && n_arguments) {
        *code = tn_cli_refuse(&cli, "unexpected argument '%s'", argv[0]);
        fine = false;
    }
    free(options);
    return fine;
}

static int refuse(const char *message, int code) {
    fprintf(stderr, "tenon-train: %s\n", message);
    return code;
}

/* The arguments, for a second reading: parsing moves them about. */
static char **copy_arguments(int argc, char **argv) {
    char **copy = malloc((size_t)(argc + 1) * sizeof *copy);
    if (copy) memcpy(copy, argv, (size_t)(argc + 1) * sizeof *copy);
    return copy;
}

/* Puts together the run's config over that of the checkpoint, if any. */
static bool compose(train_request *request, train_config *config, const run_checkpoint *from, int argc, char **argv, int *code) {
    char message[MESSAGE_BYTES];
    train_config saved;
    *code = TN_CLI_USAGE;
    train_config_defaults(&saved);
    train_config_defaults(config);
    bool fine = true;
    if (from) {
        const json_t *object = run_checkpoint_state_of(from)->config;
        fine = train_config_from_json(&saved, object, message, sizeof message) &&
               train_config_from_json(config, object, message, sizeof message);
        config->stop_after = 0; /* it was said of that part of the run alone */
    }
    if (fine && request->config) fine = train_config_from_file(config, request->config, message, sizeof message);
    if (!fine) {
        refuse(message, 0);
    } else if ((fine = read_options(request, config, argc, argv, code))) {
        const char *changed = from ? train_config_fixed_difference(&saved, config) : NULL;
        if (changed) snprintf(message, sizeof message, "%s is not what the run in %s began with", changed, run_checkpoint_path(from));
        fine = !changed && train_config_check(config, message, sizeof message);
        if (!fine) *code = refuse(message, TN_CLI_USAGE);
    }
    train_config_free(&saved);
    return fine;
}

static int run(const train_config *config, tn_context *cx, const run_checkpoint *from) {
    char message[MESSAGE_BYTES];
    int code = train_run(config, cx, from, message, sizeof message);
    return code == TN_CLI_OK ? code : refuse(message, code);
}

/* The first reading of the line tells where to look: --config, --resume, --out, --device. */
static int start(train_request *request, int argc, char **argv, char **again) {
    train_config first, config;
    char message[MESSAGE_BYTES];
    int code;
    train_config_defaults(&first);
    bool fine = read_options(request, &first, argc, argv, &code);
    if (fine && request->config && !train_config_from_file(&first, request->config, message, sizeof message)) {
        code = refuse(message, TN_CLI_USAGE);
        fine = false;
    }
    memcpy(argv, again, (size_t)(argc + 1) * sizeof *argv);
    fine = fine && read_options(request, &first, argc, argv, &code);
    if (!fine) {
        train_config_free(&first);
        return code;
    }
    bool there = run_checkpoint_exists(first.out);
    tn_context *cx = tn_open(&(tn_options){ .device = first.device, .seed = (uint64_t)first.seed, .threads = (int)first.threads });
    run_checkpoint *from = request->resume && there ? run_checkpoint_open(cx, first.out) : NULL;
    train_config_defaults(&config);
    if (there && !request->resume) {
        fprintf(stderr, "tenon-train: %s holds a run: wanted --resume to go on with it, or another --out\n", first.out);
        code = TN_CLI_USAGE;
    } else if (tn_failed(cx)) {
        code = refuse(tn_error(cx), TN_CLI_USAGE);
    } else {
        memcpy(argv, again, (size_t)(argc + 1) * sizeof *argv);
        if (compose(request, &config, from, argc, argv, &code)) code = run(&config, cx, from);
    }
    run_checkpoint_close(from);
    tn_close(cx);
    train_config_free(&config);
    train_config_free(&first);
    return code;
}

int main(int argc, char **argv) {
    train_request request = { 0 };
    char **again = copy_arguments(argc, argv);
    if (!again) return refuse("the host has no memory left", TN_CLI_FAILED);
    int code = start(&request, argc, argv, again);
    free(again);
    return code;
}
