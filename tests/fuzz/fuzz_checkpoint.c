/* A checkpoint's state.json (first byte even) or vocabulary.json (odd): what is read can be written, and is then the same. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "examples/checkpoint_state.h"
#include "fuzz_input.h"

static bool same_double(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

static void try_state(tn_context *cx, const char *text, size_t n_bytes) {
    run_checkpoint_state state = { 0 }, again = { 0 };
    run_checkpoint_files files = { 0 }, files_again = { 0 };
    if (!run_checkpoint_state_parse(cx, "state.json", text, n_bytes, &state, &files)) {
        fuzz_want(tn_failed(cx));
        return;
    }
    char *written = run_checkpoint_state_text(cx, &state, &files);
    fuzz_want(written != NULL);
    fuzz_want(run_checkpoint_state_parse(cx, "state.json", written, strlen(written), &again, &files_again));
    fuzz_want(again.step == state.step && again.data_row == state.data_row && again.threads == state.threads);
    fuzz_want(again.random.seed == state.random.seed && again.random.counter == state.random.counter);
    fuzz_want(same_double(again.best_loss, state.best_loss) && json_equal(again.config, state.config));
    for (int i = 0; i < RUN_CHECKPOINT_FILES; i++)
        fuzz_want(files.present[i] == files_again.present[i] && files.sum[i].n_bytes == files_again.sum[i].n_bytes &&
                  files.sum[i].crc == files_again.sum[i].crc);
    free(written);
    run_checkpoint_state_free(&state);
    run_checkpoint_state_free(&again);
}

static void try_vocabulary(tn_context *cx, const uint8_t *data, size_t n_bytes) {
    tn_vocabulary *vocabulary = tn_vocabulary_load(cx, fuzz_file(data, n_bytes));
    fuzz_want((vocabulary == NULL) == tn_failed(cx));
    if (!vocabulary) return;
    json_t *json = tn_vocabulary_json(vocabulary);
    tn_vocabulary *again = tn_vocabulary_from_json(cx, json, "again");
    fuzz_want(again && tn_vocabulary_count(again) == tn_vocabulary_count(vocabulary));
    json_decref(json);
    tn_vocabulary_free(vocabulary);
    tn_vocabulary_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) return 0;
    tn_context *cx = fuzz_begin();
    if (data[0] % 2 == 0) try_state(cx, (const char *)data + 1, n_bytes - 1);
    else try_vocabulary(cx, data + 1, n_bytes - 1);
    fuzz_end();
    return 0;
}
