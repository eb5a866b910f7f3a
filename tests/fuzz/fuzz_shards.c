/* A file to train on, of the kind that the first byte names; every token of a row must be one that there is. */
#include "examples/data_source.h"
#include "fuzz_input.h"

#define LENGTH 8
#define ROWS 4

static void draw(tn_context *cx, const tn_data *data, tn_data_split split, tn_data_order order) {
    int64_t ids[ROWS * LENGTH], targets[ROWS * LENGTH], vocab = tn_data_info_of(data).vocab;
    tn_data_draw rows = { .split = split, .order = order, .first_row = 3, .n_rows = ROWS, .length = LENGTH };
    bool drawn = tn_data_rows(data, &rows, ids, targets);
    fuzz_want(drawn != tn_failed(cx));
    for (int i = 0; drawn && i < ROWS * LENGTH; i++) {
        fuzz_want(ids[i] >= 0 && ids[i] < vocab && targets[i] >= 0 && targets[i] < vocab);
        fuzz_want(i % LENGTH == LENGTH - 1 || targets[i] == ids[i + 1]);
    }
    tn_clear_error(cx);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) return 0;
    tn_context *cx = fuzz_begin();
    tn_data_options options = { .kind = (tn_data_kind)(data[0] % (TN_DATA_SHARDS + 1)),
                                .path = fuzz_file(data + 1, n_bytes - 1),
                                .vocab = data[0] / 8 * 100 };
    tn_data *source = tn_data_open(cx, &options);
    fuzz_want((source == NULL) == tn_failed(cx));
    for (int i = 0; source && i < 4; i++) draw(cx, source, (tn_data_split)(i % 2), (tn_data_order)(i / 2));
    tn_data_close(source);
    fuzz_end();
    return 0;
}
