/* tenon-demo: trains a small linear-attention language model on text and lets it write some.
 *
 * The text is the project's own sources, or --data FILE. Progress goes to stderr, what the model writes to stdout. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"
#include "demo_model.h"
#include "demo_text.h"

typedef struct demo_options {
    const char *data, *device;
    int64_t steps, batch, context, seed, characters;
    double temperature;
} demo_options;

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Warm-up, then a cosine down to a tenth. */
static double learning_rate(int64_t step, int64_t steps) {
    const double peak = 4e-3;
    double warm_up = fmin(40, 0.1 * (double)steps), progress = (double)step / (double)steps;
    if ((double)step < warm_up) return peak * ((double)step + 1) / warm_up;
    return peak * (0.1 + 0.45 * (1 + cos(3.141592653589793 * progress)));
}

/* Fills tokens and targets [batch, context] with random windows of the text. */
static bool draw_batch(tn_context *cx, const demo_text *text, const demo_options *o, tn_tensor **tokens, tn_tensor **targets) {
    size_t n = (size_t)(o->batch * o->context);
    int64_t *windows = malloc(2 * n * sizeof *windows), *next = windows + n;
    int64_t *starts = malloc((size_t)o->batch * sizeof *starts);
    tn_tensor *drawn = tn_randint(cx, TN_I64, TN_SHAPE(o->batch), 0, (int64_t)text->n_bytes - o->context);
    bool fine = windows && starts && tn_to_data(drawn, starts, (size_t)o->batch * sizeof *starts);
    for (int64_t b = 0; fine && b < o->batch; b++)
        for (int64_t i = 0; i < o->context; i++) {
            windows[b * o->context + i] = text->token_of[(unsigned char)text->bytes[starts[b] + i]];
            next[b * o->context + i] = text->token_of[(unsigned char)text->bytes[starts[b] + i + 1]];
        }
    if (fine) {
        *tokens = tn_from_data(cx, TN_I64, TN_SHAPE(o->batch, o->context), windows);
        *targets = tn_from_data(cx, TN_I64, TN_SHAPE(o->batch, o->context), next);
    }
    free(windows);
    free(starts);
    return fine && *targets;
}

/* One step; returns the loss, NaN on failure. */
static double train_step(demo_model *model, tn_adamw *optimizer, const demo_text *text, const demo_options *o, int64_t step) {
    tn_context *cx = model->cx;
    tn_tensor *tokens, *targets;
    double value = NAN;
    tn_scope *scope = tn_scope_begin(cx);
    if (draw_batch(cx, text, o, &tokens, &targets)) {
        tn_tensor *loss = tn_cross_entropy(demo_model_forward(model, tokens), targets, TN_CROSS_ENTROPY());
        tn_backward(loss);
        tn_clip_grad_norm(model->params, 1.0);
        tn_adamw_set_lr(optimizer, learning_rate(step, o->steps));
        tn_adamw_step(optimizer);
        tn_zero_grad(model->params);
        value = tn_item(loss);
    }
    tn_scope_end(scope);
    return tn_failed(cx) ? NAN : value;
}

static void show_progress(const demo_options *o, int64_t step, double loss, double started, bool terminal) {
    bool last = step + 1 == o->steps;
    if (!last && (terminal ? step % 5 : step % 50)) return;
    double spent = seconds_now() - started, done = (double)(step + 1);
    fprintf(stderr, "%sstep %4" PRId64 "/%" PRId64 "  loss %.3f  %6.0f tokens/s  ETA %3.0f s%s", terminal ? "\r" : "", step + 1, o->steps,
            loss, done * (double)(o->batch * o->context) / spent, spent / done * ((double)o->steps - done), terminal && !last ? " " : "\n");
}

static bool train(demo_model *model, const demo_text *text, const demo_options *o) {
    tn_adamw *optimizer = tn_adamw_new(model->params, TN_ADAMW(.lr = 1e-3, .beta2 = 0.98, .weight_decay = 0.05));
    tn_adamw_group(optimizer, 1, 1.0, 0.0);
    bool terminal = isatty(STDERR_FILENO);
    double started = seconds_now(), smooth = 0;
    for (int64_t step = 0; step < o->steps; step++) {
        double loss = train_step(model, optimizer, text, o, step);
        if (isnan(loss)) return false;
        smooth = step == 0 ? loss : 0.95 * smooth + 0.05 * loss;
        show_progress(o, step, smooth, started, terminal);
    }
    tn_adamw_free(optimizer);
    return !tn_failed(model->cx);
}

static uint64_t random_state;
static double next_random(void) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(random_state >> 11) * 0x1p-53;
}

static int64_t sample_token(const float *logits, int64_t n, double temperature) {
    double weights[256], sum = 0, top = -INFINITY;
    for (int64_t i = 0; i < n; i++) top = fmax(top, logits[i]);
    for (int64_t i = 0; i < n; i++) sum += weights[i] = exp((logits[i] - top) / temperature);
    double at = next_random() * sum;
    for (int64_t i = 0; i < n; i++)
        if ((at -= weights[i]) < 0) return i;
    return n - 1;
}

/* Logits for what follows the window. */
static bool next_logits(demo_model *model, const int64_t *window, int64_t n, float *logits) {
    tn_context *cx = model->cx;
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *all = demo_model_forward(model, tn_from_data(cx, TN_I64, TN_SHAPE(1, n), window));
    tn_tensor *last = tn_select(tn_select(all, 1, n - 1), 0, 0);
    bool fine = tn_to_data(last, logits, (size_t)model->config.n_tokens * sizeof *logits);
    tn_scope_end(scope);
    return fine;
}

/* Continues a beginning that stands in the text, sliding the window along. */
static bool write_text(demo_model *model, const demo_text *text, const demo_options *o) {
    int64_t n = 0, context = model->config.context;
    int64_t *window = malloc((size_t)context * sizeof *window);
    float logits[256];
    bool fine = window != NULL;
    tn_no_grad_begin(model->cx);
    for (const char *start = "\n"; fine && *start; start++) window[n++] = text->token_of[(unsigned char)*start];
    for (int64_t i = 0; fine && i < o->characters; i++) {
        fine = next_logits(model, window, n, logits);
        if (!fine) break;
        int64_t token = sample_token(logits, model->config.n_tokens, o->temperature);
        putchar(text->byte_of[token]);
        fflush(stdout);
        if (n == context) memmove(window, window + 1, (size_t)--n * sizeof *window);
        window[n++] = token;
    }
    putchar('\n');
    tn_no_grad_end(model->cx);
    free(window);
    return fine;
}

static bool load_text(demo_text *text, const demo_options *o) {
    if (o->data) {
        if (!demo_text_add_file(text, o->data)) {
            fprintf(stderr, "tenon-demo: --data %s can't be read: %s\n", o->data, strerror(errno));
            return false;
        }
    } else {
        static const char *const folders[] = { "libtensor", "autograd", "ops", "examples" };
        for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", TN_SOURCE_DIR, folders[i]);
            demo_text_add_folder(text, path);
        }
    }
    if (text->n_bytes <= (size_t)o->context + 1) {
        fprintf(stderr, "tenon-demo: %s holds %zu bytes of text, wanted more than the context of %" PRId64 "\n",
                o->data ? o->data : TN_SOURCE_DIR, text->n_bytes, o->context);
        return false;
    }
    demo_text_finish(text);
    return true;
}

static int run(const demo_options *o, const demo_text *text) {
    tn_context *cx = tn_open(&(tn_options){ .device = o->device, .seed = (uint64_t)o->seed });
    demo_model model;
    demo_model_init(
        &model, cx,
        (demo_config){ .n_tokens = text->n_tokens, .layers = 4, .heads = 4, .width = 128, .context = o->context, .hidden = 320 });
    if (!tn_failed(cx))
        fprintf(stderr, "%zu characters of text, %d distinct; %.2f M parameters; %s (%s)\n", text->n_bytes, text->n_tokens,
                1e-6 * (double)demo_model_parameters(&model), tn_device_name(cx), tn_device_detail(cx));
    random_state = (uint64_t)o->seed;
    bool fine = train(&model, text, o) && write_text(&model, text, o);
    if (!fine) fprintf(stderr, "tenon-demo: %s\n", tn_error(cx));
    tn_close(cx);
    return fine ? 0 : 1;
}

static bool in_range(const tn_cli *cli, const char *name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return true;
    tn_cli_refuse(cli, "--%s %" PRId64 ": wanted %" PRId64 " to %" PRId64, name, value, low, high);
    return false;
}

int main(int argc, char **argv) {
    demo_options o = { .device = "auto", .steps = 700, .batch = 16, .context = 128, .seed = 1337, .characters = 600, .temperature = 0.7 };
    const tn_cli_option options[] = {
        { "data", TN_CLI_TEXT, &o.data, "FILE", "text to learn from (default: the project's own sources)", NULL },
        { "device", TN_CLI_TEXT, &o.device, "D", "auto, cpu or cuda", NULL },
        { "steps", TN_CLI_INT, &o.steps, "N", "training steps", NULL },
        { "batch", TN_CLI_INT, &o.batch, "N", "windows per step", NULL },
        { "context", TN_CLI_INT, &o.context, "N", "characters per window", NULL },
        { "seed", TN_CLI_INT, &o.seed, "N", "of weights, windows and sampling", NULL },
        { "characters", TN_CLI_INT, &o.characters, "N", "how many to write at the end", NULL },
        { "temperature", TN_CLI_NUMBER, &o.temperature, "T", "of the sampling", NULL },
        { .name = NULL },
    };
    const tn_cli cli = { "tenon-demo", "tenon-demo [options]",
                         "Trains a toy linear-attention language model on text and prints text it generates.", options };
    int n_arguments, code;
    if (!tn_cli_parse(&cli, argc, argv, &n_arguments, &code)) return code;
    if (n_arguments) return tn_cli_refuse(&cli, "unexpected argument '%s'", argv[0]);
    if (!in_range(&cli, "steps", o.steps, 1, 1000000) || !in_range(&cli, "batch", o.batch, 1, 4096) ||
        !in_range(&cli, "context", o.context, 8, 4096) || !in_range(&cli, "seed", o.seed, 0, INT64_MAX) ||
        !in_range(&cli, "characters", o.characters, 0, 1000000))
        return TN_CLI_USAGE;
    if (!(o.temperature >= 1e-3 && o.temperature <= 100))
        return tn_cli_refuse(&cli, "--temperature %g: wanted 0.001 to 100", o.temperature);
    demo_text text = { 0 };
    code = load_text(&text, &o) ? run(&o, &text) : TN_CLI_USAGE;
    demo_text_free(&text);
    return tn_cli_finish(&cli, code);
}
