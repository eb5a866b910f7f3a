/* Vocabularies: text to tokens and back, and no bad file that gets through. */
#include "data_folder.h"

/* The 256 bytes in order, then pairs in the order they were learnt. */
static size_t make_tokenizer(unsigned char *file) {
    static const char *const pairs[] = { "he", " t", " the", "in", "ing", "re", "'s" };
    memset(file, 0, 1024);
    put_u32(file, 20240328);
    put_u32(file + 4, 2);
    put_u32(file + 8, 256 + COUNT(pairs));
    put_u32(file + 12, 5);
    size_t at = 1024;
    for (int i = 0; i < 256; i++) file[at++] = 1, file[at++] = (unsigned char)i;
    for (int64_t i = 0; i < COUNT(pairs); i++) {
        file[at++] = (unsigned char)strlen(pairs[i]);
        memcpy(file + at, pairs[i], strlen(pairs[i]));
        at += strlen(pairs[i]);
    }
    return at;
}

static void same_vocabulary(const tn_vocabulary *a, const tn_vocabulary *b) {
    assert_int_equal(tn_vocabulary_count(a), tn_vocabulary_count(b));
    assert_int_equal(tn_vocabulary_end(a), tn_vocabulary_end(b));
    for (int64_t i = 0; i < tn_vocabulary_count(a); i++) {
        size_t n = 0, m = 0;
        const char *x = tn_vocabulary_text(a, i, &n), *y = tn_vocabulary_text(b, i, &m);
        assert_true(n == m && memcmp(x, y, n) == 0);
    }
}

static void want_ids(const tn_vocabulary *vocabulary, const char *text, int64_t n, const int64_t *wanted) {
    int64_t *ids = NULL, got = tn_vocabulary_encode(cx, vocabulary, text, strlen(text), &ids);
    tn_test_ok(cx);
    assert_int_equal(got, n);
    for (int64_t i = 0; i < n; i++) TN_TEST_WANT(ids[i] == wanted[i], "'%s': token %d is %d", text, (int)i, (int)ids[i]);
    assert_string_equal(text_of(vocabulary, ids, n), text);
    free(ids);
}
#define WANT_IDS(vocabulary, text, ...) \
    want_ids((vocabulary), (text), COUNT(((int64_t[]){ __VA_ARGS__ })), (const int64_t[]){ __VA_ARGS__ })

static void tokenizer(void **state) {
    (void)state;
    static unsigned char file[4096];
    size_t n_bytes = make_tokenizer(file);
    tn_vocabulary *vocabulary = tn_vocabulary_tokenizer(cx, write_file("tokenizer.bin", file, n_bytes));
    tn_test_ok(cx);
    assert_true(tn_vocabulary_count(vocabulary) == 263 && tn_vocabulary_end(vocabulary) == 5);
    WANT_IDS(vocabulary, "the the", 't', 256, 258);
    WANT_IDS(vocabulary, "ring's", 'r', 260, 262);
    WANT_IDS(vocabulary, "  the\n\n \xff", ' ', 258, '\n', '\n', ' ', 0xff);
    json_t *json = tn_vocabulary_json(vocabulary);
    tn_vocabulary *again = tn_vocabulary_from_json(cx, json, "json");
    tn_test_ok(cx);
    same_vocabulary(vocabulary, again);
    json_decref(json);
    tn_vocabulary_free(again);
    tn_vocabulary_free(vocabulary);
    for (size_t n = 1; n < n_bytes; n++) {
        assert_null(tn_vocabulary_tokenizer(cx, write_file("cut.bin", file, n)));
        tn_test_error(cx, TN_ERR_FORMAT, "truncated");
    }
    file[n_bytes] = 0;
    assert_null(tn_vocabulary_tokenizer(cx, write_file("long.bin", file, n_bytes + 1)));
    tn_test_error(cx, TN_ERR_FORMAT, "1 bytes after the last token");
    put_u32(file, 20240520);
    assert_null(tn_vocabulary_tokenizer(cx, write_file("foreign.bin", file, n_bytes)));
    tn_test_error(cx, TN_ERR_FORMAT, "not a tokenizer file");
}

static void vocabulary_json(void **state) {
    (void)state;
    const char text[] = "b\0a\xc3\xa4\"\\\n";
    tn_vocabulary *vocabulary = tn_vocabulary_characters(cx, text, sizeof text - 1), *all = tn_vocabulary_bytes(cx);
    tn_vocabulary *const both[] = { vocabulary, all };
    for (int i = 0; i < 2; i++) {
        json_t *json = tn_vocabulary_json(both[i]);
        const char *path = path_of("vocabulary.json");
        assert_int_equal(json_dump_file(json, path, 0), 0);
        tn_vocabulary *again = tn_vocabulary_load(cx, path);
        tn_test_ok(cx);
        same_vocabulary(both[i], again);
        tn_vocabulary_free(again);
        json_decref(json);
    }
    int64_t *ids;
    assert_int_equal(tn_vocabulary_encode(cx, vocabulary, "abz", 3, &ids), -1);
    tn_test_error(cx, TN_ERR_ARGUMENT, "'z' (U+007A) is not among the 7 characters");
    static const char *const bad[] = { "[]",
                                       "{}",
                                       "{\"kind\":\"byte\",\"end\":0,\"tokens\":[\"a\"]}",
                                       "{\"kind\":\"words\",\"end\":0,\"tokens\":[\"a\"]}",
                                       "{\"kind\":\"characters\",\"end\":-1,\"tokens\":[\"a\",\"a\"]}",
                                       "{\"kind\":\"characters\",\"end\":-1,\"tokens\":[\"ab\"]}",
                                       "{\"kind\":\"characters\",\"end\":1,\"tokens\":[\"a\"]}",
                                       "{\"kind\":\"tokenizer\",\"end\":-1,\"tokens\":[\"\xc4\x80\"]}",
                                       "{\"kind\":\"tokenizer\",\"end\":-1,\"tokens\":[3]}",
                                       "{\"kind\":3,\"end\":-1,\"tokens\":[]}",
                                       "nonsense" };
    for (int64_t i = 0; i < COUNT(bad); i++) {
        tn_test_note("%s", bad[i]);
        assert_null(tn_vocabulary_load(cx, write_file("bad.json", bad[i], strlen(bad[i]))));
        tn_test_error(cx, TN_ERR_FORMAT, "bad.json");
    }
    tn_vocabulary_free(vocabulary);
    tn_vocabulary_free(all);
}

static const struct CMUnitTest cases[] = { CASE(tokenizer), CASE(vocabulary_json) };

int main(int argc, char **argv) { return run_in_folder("test_vocabulary", cases, sizeof cases / sizeof *cases, argc, argv); }
