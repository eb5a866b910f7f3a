/* Tasks that are drawn: their rules, the same rows for the same numbers, and sizes that do not fit. */
#include "data_folder.h"

static void recall(void **state) {
    (void)state;
    tn_data *data = tn_data_open(cx, &(tn_data_options){ .kind = TN_DATA_RECALL, .seed = 5, .task = { .queries = 40 } });
    tn_test_ok(cx);
    assert_true(tn_data_info_of(data).length == 256 && tn_data_info_of(data).vocab == 8192);
    static int64_t ids[32 * 256], targets[32 * 256], again[256], target[256];
    assert_true(tn_data_rows(data, &(tn_data_draw){ .first_row = 9, .n_rows = 32, .length = 256 }, ids, targets));
    assert_true(tn_data_rows(data, &(tn_data_draw){ .first_row = 11, .n_rows = 1, .length = 256 }, again, target));
    assert_memory_equal(again, ids + 512, sizeof again);
    int64_t early = 0;
    for (int64_t row = 0; row < 32; row++) {
        const int64_t *id = ids + 256 * row, *wanted = targets + 256 * row;
        int n = 0;
        for (int i = 0; i < 256; i++) {
            assert_true(id[i] >= 0 && id[i] < 8192);
            if (wanted[i] == TN_DATA_IGNORE) continue;
            assert_true(i >= 128);
            n++;
            early += i < 192;
            int at = 0;
            while (at < 128 && id[at] != id[i]) at += 2;
            assert_true(at < 128 && id[at] < 4096 && id[at + 1] >= 4096 && id[at + 1] == wanted[i]);
        }
        assert_int_equal(n, 40);
    }
    assert_true(early > 32 * 40 / 2);
    tn_data_close(data);
    assert_null(tn_data_open(cx, &(tn_data_options){ .kind = TN_DATA_RECALL, .task = { .vocab = 64 } }));
    tn_test_error(cx, TN_ERR_ARGUMENT, "want a vocab of 130");
    assert_null(tn_data_open(cx, &(tn_data_options){ .kind = TN_DATA_RECALL, .task = { .length = 130 } }));
    tn_test_error(cx, TN_ERR_ARGUMENT, "want a length of 256");
}

static void copy(void **state) {
    (void)state;
    tn_data *data = tn_data_open(cx, &(tn_data_options){ .kind = TN_DATA_COPY, .task = { .length = 40, .copies = 20, .vocab = 3 } });
    static int64_t ids[50 * 40], targets[50 * 40];
    tn_data_draw draw = { .n_rows = 50, .length = 40, .split = TN_DATA_VALIDATION };
    assert_true(tn_data_rows(data, &draw, ids, targets));
    for (int row = 0; row < 50; row++)
        for (int i = 0, said = 0; i < 20; i++) {
            assert_true(targets[40 * row + i] == TN_DATA_IGNORE && ids[40 * row + 20 + i] == 2);
            if (ids[40 * row + i]) assert_int_equal(targets[40 * row + 20 + said++], ids[40 * row + i]);
        }
    tn_data_close(data);
}

static void induction(void **state) {
    (void)state;
    tn_data *data = tn_data_open(cx, &(tn_data_options){ .kind = TN_DATA_INDUCTION, .task = { .length = 9, .vocab = 5 } });
    int64_t ids[9], targets[9], seen = 0;
    for (int64_t row = 0; row < 200; row++) {
        assert_true(tn_data_rows(data, &(tn_data_draw){ .first_row = row, .n_rows = 1, .length = 9 }, ids, targets));
        int at = 0;
        while (ids[at] != 4) at++;
        assert_true(at < 7 && ids[8] == 4 && targets[8] == ids[at + 1] && targets[8] < 4);
        for (int i = 0; i < 8; i++) assert_true(targets[i] == TN_DATA_IGNORE && (i == at || ids[i] < 4));
        seen |= 1 << at;
    }
    assert_int_equal(seen, 127);
    tn_data_close(data);
}

/* Every class comes, no image is empty, and the same row gives the same pixels. */
static void shapes(void **state) {
    (void)state;
    tn_data *data = tn_data_open(cx, &(tn_data_options){ .kind = TN_DATA_SHAPES, .task = { .noise = -1 } });
    tn_data_info info = tn_data_info_of(data);
    assert_true(info.grid_rows == 8 && info.grid_columns == 8 && info.n_features == 16 && info.vocab == TN_SHAPES_CLASSES);
    static float patches[64 * 1024], again[1024];
    int64_t labels[64], label, seen = 0;
    assert_true(tn_data_images(data, &(tn_data_draw){ .n_rows = 64 }, patches, labels));
    assert_true(tn_data_images(data, &(tn_data_draw){ .first_row = 63, .n_rows = 1 }, again, &label));
    assert_memory_equal(again, patches + 63 * 1024, sizeof again);
    assert_int_equal(label, labels[63]);
    for (int i = 0; i < 64; i++) {
        double sum = 0;
        for (int j = 0; j < 1024; j++) sum += patches[1024 * i + j];
        assert_true(tn_data_class_name(labels[i]) && sum > 10 && sum < 600);
        seen |= (int64_t)1 << labels[i];
    }
    assert_int_equal(seen, (1 << TN_SHAPES_CLASSES) - 1);
    int64_t ids[64];
    assert_false(tn_data_rows(data, &(tn_data_draw){ .n_rows = 1, .length = 64 }, ids, ids));
    tn_test_error(cx, TN_ERR_ARGUMENT, "shapes are images");
    tn_data_close(data);
}

static const struct CMUnitTest cases[] = { CASE(recall), CASE(copy), CASE(induction), CASE(shapes) };

int main(int argc, char **argv) { return run_in_folder("test_data_tasks", cases, sizeof cases / sizeof *cases, argc, argv); }
