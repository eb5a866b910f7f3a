/* tenon-generate: text from a checkpoint that tenon-train wrote, token by token as it comes.
 *
 *     tenon-generate --checkpoint=run --prompt="ROMEO:" --tokens=500 --temperature=0.8 --top-k=40 --seed=7
 *
 * A linear layer keeps a state of fixed size, so each of its tokens costs the same; tpa and softmax keep what they need of every token. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "cli.h"
#include "model_language.h"

typedef struct generate_options {
    const char *checkpoint, *prompt, *device;
    int64_t tokens, seed, top_k;
    double temperature, top_p;
} generate_options;

typedef struct generator {
    const generate_options *options;
    const tn_vocabulary *vocabulary; /* NULL: tokens are shown as numbers */
    model model;
    model_cache caches[TRAIN_MAX_LAYERS];
    int64_t position; /* tokens the caches hold */
} generator;

/* ---- choosing a token ---- */

/* Weights of the candidates [1, k], likeliest first, without those beyond the share top_p. */
static tn_tensor *within_top_p(tn_tensor *weights, double top_p) {
    tn_tensor *before = tn_cumsum(weights, TN_CUMSUM(.dim = -1, .exclusive = true));
    return tn_where(tn_lt(before, tn_full(weights->cx, weights->dtype, TN_SCALAR, top_p)), weights,
                    tn_full(weights->cx, weights->dtype, TN_SCALAR, 0));
}

/* The next token from logits [1, n], -1 on error. */
static int64_t choose(const generate_options *o, tn_tensor *logits) {
    if (!logits) return -1;
    logits = tn_cast(logits, TN_F32);
    if (o->temperature == 0) return (int64_t)tn_item(tn_argmax(logits));
    int64_t n = logits->shape[1], k = o->top_k > 0 && o->top_k < n ? o->top_k : n;
    bool sorted = k < n || o->top_p < 1;
    tn_tensor *places = NULL, *scores = sorted ? tn_topk(logits, TN_TOPK(.k = k), &places) : logits;
    tn_tensor *scale = tn_full(logits->cx, TN_F32, TN_SCALAR, 1 / o->temperature);
    tn_tensor *weights = tn_softmax(tn_mul(scores, scale), -1);
    if (o->top_p < 1) weights = within_top_p(weights, o->top_p);
    tn_tensor *drawn = tn_multinomial(weights, TN_MULTINOMIAL(.n_samples = 1));
    if (sorted) drawn = tn_gather(places, drawn, -1);
    int64_t token = (int64_t)tn_item(drawn);
    return tn_failed(logits->cx) ? -1 : token;
}

/* ---- running ---- */

static void show(const generator *g, int64_t token) {
    size_t n_bytes;
    const char *text = g->vocabulary ? tn_vocabulary_text(g->vocabulary, token, &n_bytes) : NULL;
    if (text) fwrite(text, 1, n_bytes, stdout);
    else printf("%" PRId64 " ", token);
    fflush(stdout);
}

/* Feeds n ids and chooses what comes next. */
static int64_t step(generator *g, const int64_t *ids, int64_t n) {
    tn_context *cx = g->model.cx;
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *logits = model_next_logits(&g->model, tn_from_data(cx, TN_I64, TN_SHAPE(1, n), ids), g->position, g->caches);
    int64_t token = choose(g->options, logits);
    tn_scope_end(scope);
    g->position += n;
    return token;
}

static bool write_tokens(generator *g, const int64_t *prompt, int64_t n_prompt) {
    int64_t end = g->vocabulary ? tn_vocabulary_end(g->vocabulary) : -1;
    for (int i = 0; i < g->model.config->layers; i++) g->caches[i].room = n_prompt + g->options->tokens;
    int64_t token = g->options->tokens > 0 ? step(g, prompt, n_prompt) : -1;
    for (int64_t i = 0; i < g->options->tokens && token >= 0 && token != end; i++) {
        show(g, token);
        if (i + 1 < g->options->tokens) token = step(g, &token, 1);
    }
    putchar('\n');
    return !tn_failed(g->model.cx);
}

/* The prompt's tokens, for free(): encoded, or numbers where there is no vocabulary. -1 on error. */
static int64_t read_prompt(const generator *g, int64_t **ids) {
    const char *text = g->options->prompt;
    if (g->vocabulary) return tn_vocabulary_encode(g->model.cx, g->vocabulary, text, strlen(text), ids);
    int64_t n = 0;
    *ids = malloc((strlen(text) + 1) * sizeof **ids);
    for (char *end; *ids && *text; text = end + (*end == ' ')) {
        (*ids)[n++] = strtoll(text, &end, 10);
        if (end == text)
            return tn_fail(g->model.cx, TN_ERR_ARGUMENT, "prompt", "wanted numbers of tokens: the checkpoint has no vocabulary"), -1;
    }
    return n;
}

static bool generate(generator *g) {
    tn_context *cx = g->model.cx;
    int64_t *ids = NULL, n = read_prompt(g, &ids);
    if (n == 0) tn_fail(cx, TN_ERR_ARGUMENT, "prompt", "it has no token: wanted one at least");
    if (n > 0 && g->vocabulary) printf("%s", g->options->prompt);
    tn_no_grad_begin(cx);
    bool fine = n > 0 && write_tokens(g, ids, n);
    tn_no_grad_end(cx);
    for (int i = 0; i < g->model.config->layers; i++) model_cache_free(&g->caches[i]);
    free(ids);
    return fine;
}

static bool load_model(generator *g, tn_context *cx, const run_checkpoint *checkpoint, const train_config *config) {
    int64_t vocab = json_integer_value(json_object_get(run_checkpoint_state_of(checkpoint)->more, "n_tokens"));
    if (config->task == TRAIN_TASK_SHAPES)
        return tn_fail(cx, TN_ERR_UNSUPPORTED, "generate", "the model tells images apart and writes no text");
    model_init(&g->model, cx, config, &(tn_data_info){ .vocab = vocab });
    g->vocabulary = run_checkpoint_vocabulary(checkpoint);
    if (!run_checkpoint_load(checkpoint, g->model.params, NULL)) return false;
    tn_rng_set(cx, (tn_rng_state){ (uint64_t)g->options->seed, 0 });
    return true;
}

static int run(const generate_options *o) {
    generator g = { .options = o };
    train_config config;
    char message[1024];
    int code = TN_CLI_USAGE;
    tn_context *cx = tn_open(&(tn_options){ .device = o->device, .seed = (uint64_t)o->seed });
    run_checkpoint *checkpoint = run_checkpoint_open(cx, o->checkpoint);
    train_config_defaults(&config);
    if (!checkpoint) {
        fprintf(stderr, "tenon-generate: %s\n", tn_error(cx));
    } else if (!train_config_from_json(&config, run_checkpoint_state_of(checkpoint)->config, message, sizeof message) ||
               !train_config_check(&config, message, sizeof message)) {
        fprintf(stderr, "tenon-generate: %s: %s\n", run_checkpoint_path(checkpoint), message);
    } else {
        bool fine = load_model(&g, cx, checkpoint, &config) && generate(&g);
        code = fine ? TN_CLI_OK : TN_CLI_FAILED;
        if (!fine) fprintf(stderr, "tenon-generate: %s\n", tn_error(cx));
    }
    run_checkpoint_close(checkpoint);
    tn_close(cx);
    train_config_free(&config);
    return code;
}

int main(int argc, char **argv) {
    generate_options o = { .prompt = "\n", .device = "auto", .tokens = 500, .seed = 1337, .temperature = 0.8, .top_p = 1 };
    const tn_cli_option options[] = {
        { "checkpoint", TN_CLI_TEXT, &o.checkpoint, "DIR", "a checkpoint, or the folder of a run, whose newest is taken", NULL },
        { "prompt", TN_CLI_TEXT, &o.prompt, "TEXT", "what the text begins with", NULL },
        { "tokens", TN_CLI_INT, &o.tokens, "N", "how many to write", NULL },
        { "temperature", TN_CLI_NUMBER, &o.temperature, "T", "below 1 sharpens the choice; 0: always the likeliest", NULL },
        { "top-k", TN_CLI_INT, &o.top_k, "K", "choose among the K likeliest (0: all)", NULL },
        { "top-p", TN_CLI_NUMBER, &o.top_p, "P", "choose among the likeliest that make up P", NULL },
        { "seed", TN_CLI_INT, &o.seed, "N", "of the choice", NULL },
        { "device", TN_CLI_TEXT, &o.device, "D", "auto, cpu or cuda", NULL },
        { .name = NULL },
    };
    const tn_cli cli = { "tenon-generate", "tenon-generate --checkpoint DIR [options]",
                         "Writes text with a model that tenon-train trained.", options };
    int n_arguments, code;
    if (!tn_cli_parse(&cli, argc, argv, &n_arguments, &code)) return code;
    if (n_arguments) return tn_cli_refuse(&cli, "unexpected argument '%s'", argv[0]);
    if (!o.checkpoint) return tn_cli_refuse(&cli, "--checkpoint is needed");
    if (!(o.temperature >= 0 && o.temperature <= 100)) return tn_cli_refuse(&cli, "--temperature %g: wanted 0 to 100", o.temperature);
    if (!(o.top_p > 0 && o.top_p <= 1)) return tn_cli_refuse(&cli, "--top-p %g: wanted above 0, to 1", o.top_p);
    if (o.tokens < 0 || o.top_k < 0 || o.seed < 0) return tn_cli_refuse(&cli, "--tokens, --top-k and --seed can't be below 0");
    return tn_cli_finish(&cli, run(&o));
}
