/* llm.c's tokenizer file (first byte even) or nanoGPT's pickle (odd); then the file's own bytes as a text: what can be encoded decodes to
 * itself. */
#include <stdlib.h>
#include <string.h>

#include "examples/data_vocabulary.h"
#include "fuzz_input.h"

#define TEXT_BYTES 512

static void encode(tn_context *cx, const tn_vocabulary *vocabulary, const char *text, size_t n_bytes) {
    int64_t *ids, n = tn_vocabulary_encode(cx, vocabulary, text, n_bytes, &ids);
    size_t at = 0, length = 0;
    fuzz_want((n < 0) == tn_failed(cx));
    for (int64_t i = 0; i < n; i++, at += length) {
        const char *piece = tn_vocabulary_text(vocabulary, ids[i], &length);
        fuzz_want(piece && length <= n_bytes - at && memcmp(piece, text + at, length) == 0);
    }
    fuzz_want(n < 0 || at == n_bytes);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) return 0;
    tn_context *cx = fuzz_begin();
    const char *path = fuzz_file(data + 1, n_bytes - 1);
    tn_vocabulary *vocabulary = data[0] % 2 ? tn_vocabulary_nanogpt(cx, path) : tn_vocabulary_tokenizer(cx, path);
    fuzz_want((vocabulary == NULL) == tn_failed(cx));
    if (vocabulary) encode(cx, vocabulary, (const char *)data, n_bytes < TEXT_BYTES ? n_bytes : TEXT_BYTES);
    tn_vocabulary_free(vocabulary);
    fuzz_end();
    return 0;
}
