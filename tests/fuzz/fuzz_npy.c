/* An .npy file. */
#include "fuzz_input.h"
#include "libtensor/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    tn_context *cx = fuzz_begin();
    const tn_tensor *t = tn_npy_load(cx, fuzz_file(data, n_bytes));
    fuzz_want((t == NULL) == tn_failed(cx));
    if (t) fuzz_want(tn_bytes(t) <= 2 * n_bytes);
    fuzz_end();
    return 0;
}
