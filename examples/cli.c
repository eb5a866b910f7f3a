#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tenon.h"

int tn_cli_refuse(const tn_cli *cli, const char *format, ...) {
    fprintf(stderr, "%s: ", cli->program);
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    return TN_CLI_USAGE;
}

int tn_cli_finish(const tn_cli *cli, int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fprintf(stderr, "%s: standard output can't be written: %s\n", cli->program, strerror(errno));
    return TN_CLI_FAILED;
}

/* ---- --help ---- */

static void print_indented(const char *text, const char *indent) {
    for (const char *at = text; *at;) {
        size_t n = strcspn(at, "\n");
        printf("%s%.*s\n", indent, (int)n, at);
        at += n + (at[n] == '\n');
    }
}

static void print_option(const tn_cli_option *option) {
    char head[160];
    size_t at = (size_t)snprintf(head, sizeof head, "--%s", option->name);
    if (option->type == TN_CLI_CHOICE)
        for (int i = 0; option->choices[i] && at < sizeof head; i++)
            at += (size_t)snprintf(head + at, sizeof head - at, "%s%s", i ? "|" : " ", option->choices[i]);
    else if (option->type != TN_CLI_FLAG) snprintf(head + at, sizeof head - at, " %s", option->argument ? option->argument : "VALUE");
    printf("  %s\n", head);
    print_indented(option->doc, "        ");
}

static void print_help(const tn_cli *cli) {
    print_indented(cli->usage, "usage: ");
    printf("\n%s\n\n", cli->doc);
    for (const tn_cli_option *option = cli->options; option->name; option++) print_option(option);
    printf("  --help\n        this text\n  --version\n        the version\n\n");
    printf("Exit codes: 0 all is well, 1 it failed, 2 wrong usage or unusable input.\n");
}

/* ---- values ---- */

static int refuse_value(const tn_cli *cli, const tn_cli_option *option, const char *text, const char *wanted) {
    return tn_cli_refuse(cli, "--%s wants %s, got '%s'", option->name, wanted, text);
}

static int set_choice(const tn_cli *cli, const tn_cli_option *option, const char *text) {
    char wanted[256];
    size_t at = (size_t)snprintf(wanted, sizeof wanted, "one of");
    for (int i = 0; option->choices[i]; i++) {
        if (strcmp(option->choices[i], text) == 0) {
            *(int *)option->value = i;
            return TN_CLI_OK;
        }
        if (at < sizeof wanted) at += (size_t)snprintf(wanted + at, sizeof wanted - at, "%s %s", i ? "," : "", option->choices[i]);
    }
    return refuse_value(cli, option, text, wanted);
}

static int set_value(const tn_cli *cli, const tn_cli_option *option, const char *text) {
    char *end;
    errno = 0;
    switch (option->type) {
    case TN_CLI_FLAG: *(bool *)option->value = true; return TN_CLI_OK;
    case TN_CLI_TEXT: *(const char **)option->value = text; return TN_CLI_OK;
    case TN_CLI_INT:
        *(int64_t *)option->value = strtoll(text, &end, 10);
        return end == text || *end || errno ? refuse_value(cli, option, text, "a whole number") : TN_CLI_OK;
    case TN_CLI_NUMBER:
        *(double *)option->value = strtod(text, &end);
        return end == text || *end || errno ? refuse_value(cli, option, text, "a number") : TN_CLI_OK;
    case TN_CLI_CHOICE: return set_choice(cli, option, text);
    case TN_CLI_TEXTS: {
        tn_cli_texts *texts = option->value;
        if (texts->n == TN_CLI_MAX_TEXTS) return tn_cli_refuse(cli, "--%s is given more than %d times", option->name, TN_CLI_MAX_TEXTS);
        texts->text[texts->n++] = text;
        return TN_CLI_OK;
    }
    }
    return TN_CLI_USAGE;
}

/* ---- the line ---- */

/* Between the words of a name stands - or _. */
static bool is_named(const tn_cli_option *option, const char *name, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((name[i] == '-' ? '_' : name[i]) != (option->name[i] == '-' ? '_' : option->name[i])) return false;
    return !option->name[n];
}

static const tn_cli_option *find_option(const tn_cli *cli, const char *name, size_t n) {
    for (const tn_cli_option *option = cli->options; option->name; option++)
        if (is_named(option, name, n)) return option;
    return NULL;
}

/* Reads the option at argv[*at] and moves *at past its value. */
static int read_option(const tn_cli *cli, int argc, char **argv, int *at) {
    const char *text = argv[*at];
    const char *name = text[1] == '-' ? text + 2 : text + 1;
    size_t n = strcspn(name, "=");
    const tn_cli_option *option = text[1] == '-' ? find_option(cli, name, n) : NULL;
    if (!option) return tn_cli_refuse(cli, "unknown option '%.*s'; see --help", (int)(name + n - text), text);
    if (option->type == TN_CLI_FLAG)
        return name[n] == '=' ? tn_cli_refuse(cli, "--%s takes no value, got '%s'", option->name, name + n + 1)
                              : set_value(cli, option, "");
    if (name[n] == '=') return set_value(cli, option, name + n + 1);
    if (*at + 1 >= argc)
        return tn_cli_refuse(cli, "--%s wants a value: %s", option->name, option->argument ? option->argument : "see --help");
    return set_value(cli, option, argv[++*at]);
}

bool tn_cli_parse(const tn_cli *cli, int argc, char **argv, int *n_arguments, int *code) {
    bool options_over = false;
    *n_arguments = 0;
    *code = TN_CLI_OK;
    for (int i = 1; i < argc; i++) {
        if (options_over || argv[i][0] != '-' || !argv[i][1]) {
            argv[(*n_arguments)++] = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            options_over = true;
        } else if (strcmp(argv[i], "--help") == 0) {
            print_help(cli);
            *code = tn_cli_finish(cli, TN_CLI_OK);
            return false;
        } else if (strcmp(argv[i], "--version") == 0) {
            printf("%s %s\n", cli->program, tn_version());
            *code = tn_cli_finish(cli, TN_CLI_OK);
            return false;
        } else if ((*code = read_option(cli, argc, argv, &i)) != TN_CLI_OK) {
            return false;
        }
    }
    return true;
}
