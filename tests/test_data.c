/* What models are trained on: the same rows for the same numbers, tokens that are those of the file, and no bad file that gets through. */
#include <math.h>
#include <sys/stat.h>

#include "data_folder.h"

/* ---- texts ---- */

static const char *const poem = "the h\xc3\xa4re ran, the t\xc3\xb6rtoise walked; the rest \xe2\x80\x94 is \xf0\x9f\x90\xa2 history\n";

static void characters(void **state) {
    (void)state;
    tn_data *data = open_kind(TN_DATA_AUTO, write_file("poem.txt", poem, strlen(poem)));
    tn_test_ok(cx);
    tn_data_info info = tn_data_info_of(data);
    assert_int_equal(info.kind, TN_DATA_CHAR);
    int64_t n = info.n_tokens[0] + info.n_tokens[1];
    assert_int_equal(n, (int64_t)strlen(poem) - 1 - 1 - 2 - 3);
    assert_int_equal(info.n_tokens[0], n * 9 / 10);
    const tn_vocabulary *vocabulary = tn_data_vocabulary(data);
    assert_int_equal(info.vocab, tn_vocabulary_count(vocabulary));
    size_t n_bytes = 0;
    assert_true(*tn_vocabulary_text(vocabulary, 0, &n_bytes) == '\n' && n_bytes == 1);
    assert_int_equal((tn_vocabulary_text(vocabulary, info.vocab - 1, &n_bytes), n_bytes), 4);

    int64_t ids[8], targets[8];
    tn_data_draw draw = { .order = TN_DATA_SEQUENTIAL, .n_rows = 1, .first_row = 1, .length = 8 };
    assert_true(tn_data_rows(data, &draw, ids, targets));
    assert_string_equal(text_of(vocabulary, ids, 8), " ran, th");
    assert_string_equal(text_of(vocabulary, targets, 8), "ran, the");
    assert_int_equal(tn_data_row_count(data, TN_DATA_TRAIN, 8), (info.n_tokens[0] - 1) / 8);
    draw.first_row += 3 * tn_data_row_count(data, TN_DATA_TRAIN, 8);
    assert_true(tn_data_rows(data, &draw, ids, targets));
    assert_string_equal(text_of(vocabulary, ids, 8), " ran, th");
    tn_data_close(data);
}

static void bytes(void **state) {
    (void)state;
    tn_data *data = open_kind(TN_DATA_BYTE, write_file("noise",
                                                       "\xff\x00\x80"
                                                       "abcdefghijklmnopq",
                                                       20));
    tn_test_ok(cx);
    assert_int_equal(tn_data_info_of(data).vocab, 256);
    int64_t ids[3], targets[3];
    assert_true(tn_data_rows(data, &(tn_data_draw){ .order = TN_DATA_SEQUENTIAL, .n_rows = 1, .length = 3 }, ids, targets));
    assert_true(ids[0] == 255 && ids[1] == 0 && ids[2] == 128 && targets[2] == 'a');
    tn_data_close(data);
}

static void texts_refused(void **state) {
    (void)state;
    assert_null(open_kind(TN_DATA_CHAR, write_file("latin1", "caf\xe9 au lait", 12)));
    tn_test_error(cx, TN_ERR_FORMAT, "byte 3 (0xe9) is not UTF-8");
    assert_null(open_kind(TN_DATA_CHAR, write_file("empty", "", 0)));
    tn_test_error(cx, TN_ERR_FORMAT, "is empty");
    assert_null(open_kind(TN_DATA_CHAR, path_of("missing")));
    tn_test_error(cx, TN_ERR_IO, "No such file");
    assert_null(open_kind(TN_DATA_CHAR, folder));
    tn_test_error(cx, TN_ERR_IO, "not a regular file");
    assert_null(open_kind(TN_DATA_AUTO, NULL));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no path");
    const char *train = write_file("train.txt", "abab", 4), *other = write_file("other.txt", "abc", 3);
    assert_null(tn_data_open(cx, &(tn_data_options){ .path = train, .validation_path = other }));
    tn_test_error(cx, TN_ERR_FORMAT, "byte 2: U+0063 does not occur");
    tn_data *data = open_kind(TN_DATA_CHAR, train);
    int64_t ids[4], targets[4];
    assert_false(tn_data_rows(data, &(tn_data_draw){ .n_rows = 1, .length = 4 }, ids, targets));
    tn_test_error(cx, TN_ERR_ARGUMENT, "the training split has 3 tokens");
    assert_int_equal(tn_data_row_count(data, TN_DATA_TRAIN, 4), 0);
    tn_data_close(data);
}

/* Row i is row i, alone or among others; other seeds, splits and rows differ; every place is drawn. */
static void rows_repeat(void **state) {
    (void)state;
    char text[1000];
    for (int i = 0; i < 1000; i++) text[i] = (char)('a' + i * 7 % 26);
    const char *path = write_file("long.txt", text, sizeof text);
    tn_data *data = open_kind(TN_DATA_BYTE, path);
    tn_data *other = tn_data_open(cx, &(tn_data_options){ .kind = TN_DATA_BYTE, .path = path, .seed = 8 });
    static int64_t ids[1000], targets[1000], again[10], target[10];
    assert_true(tn_data_rows(data, &(tn_data_draw){ .first_row = 100, .n_rows = 64, .length = 10 }, ids, targets));
    int same = 0;
    for (int64_t i = 0; i < 64; i++) {
        tn_data_draw draw = { .first_row = 100 + i, .n_rows = 1, .length = 10 };
        assert_true(tn_data_rows(data, &draw, again, target));
        assert_memory_equal(again, ids + 10 * i, sizeof again);
        assert_memory_equal(target, targets + 10 * i, sizeof target);
        assert_true(tn_data_rows(other, &draw, again, target));
        same += memcmp(again, ids + 10 * i, sizeof again) == 0;
    }
    assert_true(same < 16);
    /* Nine hundred tokens have eleven places for a row of 889. */
    bool first = false, last = false;
    for (int64_t row = 0; row < 20000; row++) {
        assert_true(tn_data_rows(data, &(tn_data_draw){ .first_row = row, .n_rows = 1, .length = 889 }, ids, targets));
        first |= ids[0] == text[0] && ids[1] == text[1];
        last |= targets[888] == text[899];
        if (first && last) break;
    }
    assert_true(first && last);
    tn_data_close(data);
    tn_data_close(other);
}

/* ---- token files ---- */

static unsigned char shard[1024 + 2 * 64];

/* A shard of tokens first, first + 1, .. */
static size_t make_shard(int n, int first) {
    memset(shard, 0, sizeof shard);
    put_u32(shard, 20240520);
    put_u32(shard + 4, 1);
    put_u32(shard + 8, (uint32_t)n);
    for (int i = 0; i < n; i++) {
        shard[1024 + 2 * i] = (unsigned char)(first + i);
        shard[1025 + 2 * i] = (unsigned char)((first + i) >> 8);
    }
    return 1024 + 2 * (size_t)n;
}

static void shards(void **state) {
    (void)state;
    write_file("fw_train_000001.bin", shard, make_shard(7, 300));
    write_file("fw_train_000002.bin", shard, make_shard(1, 307));
    write_file("fw_train_000003.bin", shard, make_shard(40, 308));
    const char *validation = write_file("fw_val_000000.bin", shard, make_shard(20, 1000));
    tn_data *data = tn_data_open(cx, &(tn_data_options){ .path = path_of("fw_train_*.bin"), .validation_path = validation, .seed = 3 });
    tn_test_ok(cx);
    tn_data_info info = tn_data_info_of(data);
    assert_true(info.kind == TN_DATA_SHARDS && info.n_tokens[0] == 48 && info.n_tokens[1] == 20 && info.vocab == 50257);
    int64_t ids[12], targets[12];
    for (int64_t row = 0; row < 50; row++) {
        tn_data_draw draw = { .first_row = row, .n_rows = 1, .length = 12, .split = row % 2 ? TN_DATA_VALIDATION : TN_DATA_TRAIN };
        assert_true(tn_data_rows(data, &draw, ids, targets));
        assert_true(ids[0] >= (row % 2 ? 1000 : 300) && targets[11] < (row % 2 ? 1020 : 348));
        for (int i = 0; i < 12; i++) assert_true(ids[i] == ids[0] + i && targets[i] == ids[i] + 1);
    }
    tn_data_close(data);
    data = tn_data_open(cx, &(tn_data_options){ .path = validation, .vocab = 1015 });
    assert_false(
        tn_data_rows(data, &(tn_data_draw){ .order = TN_DATA_SEQUENTIAL, .n_rows = 1, .length = 12 }, ids, targets) &&
        tn_data_rows(data, &(tn_data_draw){ .first_row = 1, .order = TN_DATA_SEQUENTIAL, .n_rows = 5, .length = 3 }, ids, targets));
    tn_test_error(cx, TN_ERR_FORMAT, "token 15 is 1015, but there are only 1015 tokens");
    tn_data_close(data);
}

static void shards_refused(void **state) {
    (void)state;
    size_t n_bytes = make_shard(64, 0);
    for (size_t n = 1; n < n_bytes; n++) {
        assert_null(open_kind(TN_DATA_SHARDS, write_file("cut.bin", shard, n)));
        tn_test_error(cx, TN_ERR_FORMAT, "truncated");
    }
    struct {
        size_t at;
        uint32_t value;
        const char *words;
    } bad[] = { { 0, 20240521, "magic number is 20240521" },
                { 4, 2, "version 2" },
                { 8, 0, "claims 0 tokens" },
                { 8, 0xffffffff, "claims -1 tokens" },
                { 8, 63, "too long" },
                { 8, 0x7fffffff, "truncated: 2147483647 tokens make a file of 4294968318 bytes" } };
    for (int64_t i = 0; i < COUNT(bad); i++) {
        make_shard(64, 0);
        put_u32(shard + bad[i].at, bad[i].value);
        assert_null(open_kind(TN_DATA_SHARDS, write_file("bad.bin", shard, n_bytes)));
        tn_test_error(cx, TN_ERR_FORMAT, bad[i].words);
    }
    assert_null(open_kind(TN_DATA_AUTO, path_of("nothing_*.bin")));
    tn_test_error(cx, TN_ERR_IO, "no file matches");
}

/* A shard of more than 2 GiB: a sparse file, of which the last tokens are written. */
static void large_shard(void **state) {
    (void)state;
    make_shard(4, 0);
    int64_t n = ((int64_t)1 << 30) + (1 << 29);
    put_u32(shard + 8, (uint32_t)n);
    const char *path = write_file("large.bin", shard, 1024);
    int fine = truncate(path, 1024 + 2 * n);
    FILE *stream = fopen(path, "r+b");
    const unsigned char last[] = { 1, 0, 2, 0, 3, 0 };
    fine = fine || !stream || fseeko(stream, 1024 + 2 * (n - 3), SEEK_SET) || fwrite(last, 1, 6, stream) != 6 || fclose(stream);
    if (fine != 0) {
        remove(path);
        skip();
    }
    tn_data *data = tn_data_open(cx, &(tn_data_options){ .path = path, .validation_path = path });
    remove(path);
    tn_test_ok(cx);
    assert_int_equal(tn_data_info_of(data).n_tokens[0], n);
    int64_t ids[2], targets[2];
    tn_data_draw draw = { .order = TN_DATA_SEQUENTIAL, .n_rows = 1, .length = 2, .first_row = (n - 1) / 2 - 1 };
    assert_true(tn_data_rows(data, &draw, ids, targets));
    assert_true(ids[0] == 0 && ids[1] == 1 && targets[1] == 2);
    tn_data_close(data);
}

/* pickle.dumps({'vocab_size': 3, 'itos': {0: '\n', 1: 'a', 2: 'ä'}, 'stoi': {..}}) of protocols 4 and 2. */
static const unsigned char meta_4[] =
    "\x80\x04\x95\x46\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\nvocab_size\x94K\x03\x8c\x04itos\x94}\x94(K\x00\x8c\x01\n\x94K\x01\x8c\x01"
    "a\x94K\x02\x8c\x02\xc3\xa4\x94u\x8c\x04stoi\x94}\x94(h\x04K\x00h\x05K\x01h\x06K\x02uu.";
static const unsigned char meta_2[] =
    "\x80\x02}q\x00(X\n\x00\x00\x00vocab_sizeq\x01K\x03X\x04\x00\x00\x00itosq\x02}q\x03(K\x00X\x01\x00\x00\x00\nq\x04K\x01X\x01\x00\x00\x00"
    "aq\x05K\x02X\x02\x00\x00\x00\xc3\xa4q\x06uX\x04\x00\x00\x00stoiq\x07}q\x08(h\x04K\x00h\x05K\x01h\x06K\x02uu.";

static void nanogpt(void **state) {
    (void)state;
    const unsigned char tokens[] = { 2, 0, 1, 0, 0, 0, 1, 0, 2, 0 };
    const char *path = write_file("tokens.bin", tokens, sizeof tokens);
    for (int protocol = 0; protocol < 2; protocol++) {
        if (protocol) write_file("meta.pkl", meta_2, sizeof meta_2 - 1);
        else write_file("meta.pkl", meta_4, sizeof meta_4 - 1);
        tn_data *data = tn_data_open(cx, &(tn_data_options){ .path = path, .validation_path = path });
        tn_test_ok(cx);
        assert_true(tn_data_info_of(data).kind == TN_DATA_BIN && tn_data_info_of(data).vocab == 3);
        int64_t ids[4], targets[4];
        assert_true(tn_data_rows(data, &(tn_data_draw){ .order = TN_DATA_SEQUENTIAL, .n_rows = 1, .length = 4 }, ids, targets));
        assert_string_equal(text_of(tn_data_vocabulary(data), ids, 4), "\xc3\xa4"
                                                                       "a\na");
        tn_data_close(data);
    }
    /* Cut or changed anywhere it is refused, or reads as another dict of the same kind. */
    for (size_t n = 1; n < sizeof meta_4 - 1; n++) {
        assert_null(open_kind(TN_DATA_BIN, (write_file("meta.pkl", meta_4, n), path)));
        tn_test_error(cx, TN_ERR_FORMAT, "meta.pkl");
    }
    for (size_t i = 0; i < sizeof meta_2 - 1; i++)
        for (int bit = 0; bit < 8; bit++) {
            unsigned char changed[sizeof meta_2];
            memcpy(changed, meta_2, sizeof meta_2);
            changed[i] ^= (unsigned char)(1 << bit);
            tn_vocabulary *vocabulary = tn_vocabulary_nanogpt(cx, write_file("changed.pkl", changed, sizeof meta_2 - 1));
            assert_true(vocabulary != NULL || tn_error_status(cx) == TN_ERR_FORMAT);
            tn_clear_error(cx);
            tn_vocabulary_free(vocabulary);
        }
    remove(path_of("meta.pkl"));
    assert_null(open_kind(TN_DATA_BIN, path));
    tn_test_error(cx, TN_ERR_ARGUMENT, "say how many there are (vocab)");
    assert_null(open_kind(TN_DATA_BIN, write_file("odd.bin", "abc", 3)));
    tn_clear_error(cx);
    assert_null(tn_data_open(cx, &(tn_data_options){ .path = path_of("odd.bin"), .vocab = 9 }));
    tn_test_error(cx, TN_ERR_FORMAT, "no whole number of uint16");
}

static const struct CMUnitTest cases[] = { CASE(characters), CASE(bytes),          CASE(texts_refused), CASE(rows_repeat),
                                           CASE(shards),     CASE(shards_refused), CASE(large_shard),   CASE(nanogpt) };

int main(int argc, char **argv) { return run_in_folder("test_data", cases, sizeof cases / sizeof *cases, argc, argv); }
