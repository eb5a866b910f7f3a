/* A safetensors file: whatever opens can be listed, looked up and loaded. */
#include <string.h>

#include "fuzz_input.h"
#include "libtensor/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    tn_context *cx = fuzz_begin();
    tn_file *file = tn_file_open(cx, fuzz_file(data, n_bytes));
    fuzz_want((file == NULL) == tn_failed(cx));
    for (int64_t i = 0; i < tn_file_count(file); i++) {
        const tn_file_entry *entry = tn_file_entry_at(file, i);
        fuzz_want(tn_file_find(file, entry->name) == entry);
        tn_tensor *t = tn_file_load(file, entry->name);
        fuzz_want(t ? tn_bytes(t) == entry->n_bytes : tn_failed(cx));
        tn_clear_error(cx);
    }
    for (int64_t i = 0; i < tn_file_metadata_count(file); i++) {
        const char *key, *value;
        fuzz_want(tn_file_metadata_at(file, i, &key, &value) && strcmp(tn_file_metadata(file, key), value) == 0);
    }
    tn_file_close(file);
    fuzz_end();
    return 0;
}
