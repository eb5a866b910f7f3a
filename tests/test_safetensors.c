/* safetensors files: what goes out comes back, equal content gives equal bytes, and no bad file gets past the header check. */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libtensor/host_memory.h"
#include "libtensor/safetensors.h"

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof(array)[0]))

static char folder[TN_TEST_FOLDER_BYTES];

static const char *path_of(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static unsigned char *read_all(const char *path, size_t *n_bytes) {
    FILE *stream = fopen(path, "rb");
    if (!stream) return NULL;
    fseek(stream, 0, SEEK_END);
    *n_bytes = (size_t)ftell(stream);
    rewind(stream);
    unsigned char *bytes = malloc(*n_bytes + 1);
    if (bytes && fread(bytes, 1, *n_bytes, stream) != *n_bytes) *n_bytes = 0;
    fclose(stream);
    return bytes;
}

static void write_all(const char *path, const void *bytes, size_t n_bytes) {
    FILE *stream = fopen(path, "wb");
    TN_TEST_WANT(stream && fwrite(bytes, 1, n_bytes, stream) == n_bytes && fclose(stream) == 0, "can't write %s", path);
}

static int files_in_folder(void) {
    DIR *directory = opendir(folder);
    int n = 0;
    for (struct dirent *entry; directory && (entry = readdir(directory));) n += entry->d_name[0] != '.';
    if (directory) closedir(directory);
    return n;
}

static void empty_folder(void) {
    DIR *directory = opendir(folder);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        if (entry->d_name[0] != '.') remove(path_of(entry->d_name));
    }
    if (directory) closedir(directory);
}

static uint64_t random_state = 1;
static uint32_t next_random(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static tn_context *open_context(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1 });
    tn_test_ok(cx);
    return cx;
}

/* Each case begins and ends with an empty folder and the same number of live blocks. */
static int64_t live_blocks;
static int set_up(void **state) {
    (void)state;
    empty_folder();
    random_state = 1;
    live_blocks = tn_host_live_blocks();
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    empty_folder();
    if (tn_host_live_blocks() == live_blocks) return 0;
    print_error("leaked %lld blocks\n", (long long)(tn_host_live_blocks() - live_blocks));
    return -1;
}

/* ---- round trips ---- */

static const tn_shape shapes[] = {
    { 0, { 0 } },
    { 1, { 0 } },
    { 1, { 1 } },
    { 3, { 3, 0, 5 } },
    { 1, { 7 } },
    { 3, { 2, 3, 4 } },
    { 2, { 1, 4099 } },
    { 8, { 1, 2, 1, 3, 1, 2, 1, 5 } },
    /* More bytes than are written at once, for every dtype but the narrowest. */
    { 2, { 1100, 2003 } },
};

static unsigned char *random_bytes(tn_dtype dtype, size_t n_bytes) {
    unsigned char *bytes = malloc(n_bytes + 1);
    for (size_t i = 0; bytes && i < n_bytes; i++) bytes[i] = (unsigned char)(dtype == TN_BOOL ? next_random() & 1 : next_random());
    return bytes;
}

static void check_entry(const tn_file *file, const char *name, tn_dtype dtype, const tn_shape *shape, const unsigned char *bytes) {
    const tn_file_entry *entry = tn_file_find(file, name);
    TN_TEST_WANT(entry && entry->dtype == dtype && entry->shape.axes == shape->axes, "entry %s is wrong", name);
    tn_tensor *t = tn_file_load(file, name);
    TN_TEST_WANT(t && t->dtype == dtype && t->axes == shape->axes, "tensor %s is wrong", name);
    for (int i = 0; i < shape->axes; i++) assert_int_equal(t->shape[i], shape->size[i]);
    unsigned char *got = malloc(tn_bytes(t) + 1);
    assert_true(tn_to_data(t, got, tn_bytes(t)));
    assert_int_equal(entry->n_bytes, tn_bytes(t));
    assert_memory_equal(got, bytes, tn_bytes(t));
    assert_memory_equal(entry->data, bytes, tn_bytes(t));
    free(got);
}

static void round_trip(void **state) {
    tn_dtype dtype = *(const tn_dtype *)*state;
    tn_context *cx = open_context();
    tn_named_tensor tensors[COUNT(shapes)];
    char names[COUNT(shapes)][32];
    unsigned char *bytes[COUNT(shapes)];
    for (int64_t i = 0; i < COUNT(shapes); i++) {
        tn_tensor *t = tn_empty(cx, dtype, shapes[i]);
        bytes[i] = random_bytes(dtype, tn_bytes(t));
        tn_set_data(t, bytes[i], tn_bytes(t));
        snprintf(names[i], sizeof names[i], "t%lld", (long long)i);
        tensors[i] = (tn_named_tensor){ names[i], t };
    }
    tn_file_save(cx, path_of("a"), tensors, COUNT(shapes), NULL, 0);
    tn_test_ok(cx);
    tn_file *file = tn_file_open(cx, path_of("a"));
    tn_test_ok(cx);
    assert_int_equal(tn_file_count(file), COUNT(shapes));
    for (int64_t i = 0; i < COUNT(shapes); i++) {
        tn_test_note("%s, shape %lld", tn_dtype_name(dtype), (long long)i);
        check_entry(file, names[i], dtype, &shapes[i], bytes[i]);
        free(bytes[i]);
    }
    tn_test_ok(cx);
    tn_file_close(file);
    tn_close(cx);
}

static void no_tensors(void **state) {
    (void)state;
    tn_context *cx = open_context();
    assert_true(tn_file_save(cx, path_of("a"), NULL, 0, NULL, 0));
    tn_file *file = tn_file_open(cx, path_of("a"));
    tn_test_ok(cx);
    assert_int_equal(tn_file_count(file), 0);
    assert_int_equal(tn_file_metadata_count(file), 0);
    assert_null(tn_file_find(file, "x"));
    assert_null(tn_file_entry_at(file, 0));
    assert_null(tn_file_metadata(file, "x"));
    tn_file_close(file);
    tn_close(cx);
}

static void non_contiguous(void **state) {
    (void)state;
    tn_context *cx = open_context();
    tn_tensor *t = tn_arange(cx, TN_F32, 60);
    tn_tensor *transposed = tn_alias(t, TN_SHAPE(5, 12), (int64_t[]){ 1, 5 }, 0);
    tn_tensor *broadcast = tn_alias(t, TN_SHAPE(3, 4), (int64_t[]){ 0, 2 }, 7);
    tn_tensor *window = tn_alias(t, TN_SHAPE(2, 3), (int64_t[]){ 10, 1 }, 33);
    tn_named_tensor tensors[] = { { "transposed", transposed }, { "broadcast", broadcast }, { "window", window } };
    assert_true(tn_file_save(cx, path_of("a"), tensors, COUNT(tensors), NULL, 0));
    tn_file *file = tn_file_open(cx, path_of("a"));
    tn_test_ok(cx);
    for (int64_t i = 0; i < COUNT(tensors); i++) {
        double *wanted = tn_test_doubles(tensors[i].tensor), *got = tn_test_doubles(tn_file_load(file, tensors[i].name));
        tn_test_near(wanted, got, tensors[i].tensor->numel, 0, 0, tensors[i].name);
        free(wanted);
        free(got);
    }
    tn_file_close(file);
    tn_close(cx);
}

/* ---- bytes ---- */

static void exact_bytes(void **state) {
    (void)state;
    tn_context *cx = open_context();
    tn_tensor *mask = tn_from_data(cx, TN_BOOL, TN_SHAPE(3), (unsigned char[]){ 1, 0, 1 });
    tn_tensor *w = tn_from_data(cx, TN_F32, TN_SHAPE(1, 2), (float[]){ 1, -2 });
    tn_tensor *n = tn_from_data(cx, TN_I64, TN_SCALAR, (int64_t[]){ 258 });
    tn_named_tensor tensors[] = { { "mask", mask }, { "w", w }, { "n", n } };
    tn_named_text metadata[] = { { "b", "2" }, { "a", "\xc3\xa9\n" } };
    assert_true(tn_file_save(cx, path_of("a"), tensors, COUNT(tensors), metadata, COUNT(metadata)));
    tn_test_ok(cx);
    static const char wanted[] = "\xd0\0\0\0\0\0\0\0"
                                 "{\"__metadata__\":{\"a\":\"\xc3\xa9\\n\",\"b\":\"2\"},"
                                 "\"n\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
                                 "\"w\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[8,16]},"
                                 "\"mask\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[16,19]}}"
                                 "    "
                                 "\2\1\0\0\0\0\0\0\0\0\x80\x3f\0\0\0\xc0\1\0\1";
    size_t n_bytes = 0;
    unsigned char *got = read_all(path_of("a"), &n_bytes);
    assert_int_equal(n_bytes, sizeof wanted - 1);
    assert_memory_equal(got, wanted, sizeof wanted - 1);
    free(got);
    tn_close(cx);
}

static void any_order_same_bytes(void **state) {
    (void)state;
    enum { N = 40, N_TEXTS = 10 };
    tn_context *cx = open_context();
    tn_named_tensor tensors[N];
    tn_named_text texts[N_TEXTS];
    char names[N][32], keys[N_TEXTS][32];
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "layer.%d", i);
        tensors[i] = (tn_named_tensor){ names[i], tn_full(cx, (tn_dtype)(i % TN_DTYPE_COUNT), TN_SHAPE(i % 5, 3), i % 2) };
    }
    for (int i = 0; i < N_TEXTS; i++) {
        snprintf(keys[i], sizeof keys[i], "key%d", i);
        texts[i] = (tn_named_text){ keys[i], names[i] };
    }
    size_t n_first = 0;
    unsigned char *first = NULL;
    for (int round = 0; round < 5; round++) {
        for (int i = N - 1; i > 0; i--) {
            int j = (int)(next_random() % (uint32_t)(i + 1));
            tn_named_tensor swapped = tensors[i];
            tensors[i] = tensors[j], tensors[j] = swapped;
        }
        tn_named_text text = texts[round];
        texts[round] = texts[N_TEXTS - 1], texts[N_TEXTS - 1] = text;
        assert_true(tn_file_save(cx, path_of("a"), tensors, N, texts, N_TEXTS));
        size_t n_bytes = 0;
        unsigned char *bytes = read_all(path_of("a"), &n_bytes);
        if (!first) first = bytes, n_first = n_bytes;
        assert_int_equal(n_bytes, n_first);
        assert_memory_equal(bytes, first, n_first);
        if (bytes != first) free(bytes);
    }
    free(first);
    tn_test_ok(cx);
    tn_close(cx);
}

static void entries_in_order_and_aligned(void **state) {
    (void)state;
    tn_context *cx = open_context();
    tn_named_tensor tensors[TN_DTYPE_COUNT];
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        tensors[i] = (tn_named_tensor){ tn_dtype_name((tn_dtype)i), tn_zeros(cx, (tn_dtype)i, TN_SHAPE(3)) };
    assert_true(tn_file_save(cx, path_of("a"), tensors, TN_DTYPE_COUNT, NULL, 0));
    tn_file *file = tn_file_open(cx, path_of("a"));
    tn_test_ok(cx);
    size_t width = 8;
    for (int64_t i = 0; i < tn_file_count(file); i++) {
        const tn_file_entry *entry = tn_file_entry_at(file, i);
        assert_true(tn_dtype_size(entry->dtype) <= width);
        width = tn_dtype_size(entry->dtype);
        assert_int_equal((uintptr_t)entry->data % width, 0);
    }
    tn_file_close(file);
    tn_close(cx);
}

static void metadata(void **state) {
    (void)state;
    tn_context *cx = open_context();
    const tn_named_text texts[] = { { "step", "12" },
                                    { "", "empty key" },
                                    { "empty", "" },
                                    { "attrs", "{\"a\": [1, \"\\\"\"]}" },
                                    { "\xe6\x97\xa5", "\xf0\x9f\x90\x9f \x01\x7f" } };
    assert_true(tn_file_save(cx, path_of("a"), NULL, 0, texts, COUNT(texts)));
    tn_file *file = tn_file_open(cx, path_of("a"));
    tn_test_ok(cx);
    assert_int_equal(tn_file_metadata_count(file), COUNT(texts));
    for (int64_t i = 0; i < COUNT(texts); i++) assert_string_equal(tn_file_metadata(file, texts[i].key), texts[i].value);
    assert_null(tn_file_metadata(file, "absent"));
    const char *key = NULL, *value = NULL, *previous = NULL;
    for (int64_t i = 0; tn_file_metadata_at(file, i, &key, &value); i++) {
        assert_true(i == 0 || strcmp(previous, key) < 0);
        previous = key;
    }
    assert_false(tn_file_metadata_at(file, -1, &key, &value));
    tn_file_close(file);
    tn_close(cx);
}

/* What other writers may do and ours does not. */
static void foreign_but_legal(void **state) {
    (void)state;
    static const char *const headers[] = {
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]},\"m\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        "{ \"x\" : {\"data_offsets\":[1,5], \"shape\":[1,1,1,1,1,1,1,1], \"dtype\":\"F32\" },\n\"m\":{\"dtype\":\"U8\",\"shape\":[],"
        "\"data_offsets\":[0,1]}}\n\t ",
        "{\"m\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[1,1]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[5,5]},\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]},"
        "\"__metadata__\":{}}",
    };
    tn_context *cx = open_context();
    for (int64_t i = 0; i < COUNT(headers); i++) {
        tn_test_note("header %lld", (long long)i);
        unsigned char bytes[512];
        uint64_t length = strlen(headers[i]);
        memcpy(bytes, &length, 8);
        memcpy(bytes + 8, headers[i], length);
        memcpy(bytes + 8 + length, "\1\0\0\x80\x3f", 5);
        write_all(path_of("a"), bytes, 8 + length + 5);
        tn_file *file = tn_file_open(cx, path_of("a"));
        tn_test_ok(cx);
        assert_true(tn_item(tn_file_load(file, "x")) == 1.0);
        assert_true(tn_item(tn_file_load(file, "m")) == 1.0);
        tn_test_ok(cx);
        tn_file_close(file);
    }
    tn_close(cx);
}

/* ---- bad files ---- */

typedef struct bad_file {
    const char *name;
    const char *header;
    size_t header_bytes;
    size_t data_bytes;
    size_t cut;        /* bytes missing at the end */
    bool false_length; /* `length` stands in the file instead of header_bytes */
    uint64_t length;
    tn_status status; /* 0: TN_ERR_FORMAT */
    const char *words;
} bad_file;

#define HEADER(text) .header = text, .header_bytes = sizeof(text) - 1
#define GOOD "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}"
#define GOOD_BYTES (sizeof(GOOD) - 1)
#define ONE(dtype, shape, offsets) "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define PAIR(offsets_x, offsets_y)                                       \
    "{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" offsets_x \
    "},\"y\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" offsets_y "}}"

static const bad_file bad_files[] = {
    { "empty", HEADER(""), .cut = 8, .words = "too short" },
    { "seven-bytes", HEADER(""), .cut = 1, .words = "too short" },
    { "no-header", HEADER(""), .words = "begin with '{'" },
    { "length-zero", HEADER(""), .data_bytes = 16, .words = "begin with '{'" },
    { "length-one-too-many", HEADER(GOOD), .false_length = true, .length = GOOD_BYTES + 1, .words = "truncated" },
    { "length-one-too-few", HEADER(GOOD), .data_bytes = 16, .false_length = true, .length = GOOD_BYTES - 1, .words = "JSON" },
    { "length-16m-plus-1", HEADER(GOOD), .data_bytes = 16, .false_length = true, .length = (16 << 20) + 1, .words = "over the cap" },
    { "length-2^32", HEADER(GOOD), .data_bytes = 16, .false_length = true, .length = 1ull << 32, .words = "over the cap" },
    { "length-minus-1", HEADER(GOOD), .data_bytes = 16, .false_length = true, .length = UINT64_MAX, .words = "over the cap" },
    { "length-minus-8", HEADER(GOOD), .data_bytes = 16, .false_length = true, .length = UINT64_MAX - 7, .words = "over the cap" },
    { "length-int64-min", HEADER(GOOD), .data_bytes = 16, .false_length = true, .length = 1ull << 63, .words = "over the cap" },
    { "cut-in-header", HEADER(GOOD), .data_bytes = 16, .cut = 16 + 20, .words = "truncated" },
    { "cut-before-data", HEADER(GOOD), .data_bytes = 16, .cut = 16, .words = "'x': truncated" },
    { "cut-in-data", HEADER(GOOD), .data_bytes = 16, .cut = 1, .words = "'x': truncated" },
    { "trailing-byte", HEADER(GOOD), .data_bytes = 17, .words = "1 bytes after the last tensor" },
    { "trailing-bytes-and-no-tensor", HEADER("{}"), .data_bytes = 3, .words = "3 bytes after the last tensor" },
    { "not-json", HEADER("{hello}"), .words = "JSON" },
    { "leading-space", HEADER(" {}"), .words = "begin with '{'" },
    { "array", HEADER("[]"), .words = "begin with '{'" },
    { "string", HEADER("\"x\""), .words = "begin with '{'" },
    { "unclosed", HEADER("{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"), .data_bytes = 16, .words = "JSON" },
    { "text-after-json", HEADER(GOOD "x"), .data_bytes = 16, .words = "JSON" },
    { "two-objects", HEADER("{}{}"), .words = "JSON" },
    { "trailing-comma", HEADER("{\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},}"), .data_bytes = 16, .words = "JSON" },
    { "zero-padding", HEADER("{}\0\0"), .words = "JSON" },
    { "bad-utf8", HEADER("{\"\xff\":{}}"), .words = "JSON" },
    { "overlong-utf8", HEADER("{\"\xc0\xaf\":{}}"), .words = "JSON" },
    { "lone-surrogate", HEADER("{\"\\ud800\":{}}"), .words = "JSON" },
    { "raw-nul-in-name", HEADER("{\"x\0y\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"), .words = "JSON" },
    { "escaped-nul-in-name", HEADER("{\"x\\u0000y\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"), .words = "JSON" },
    { "raw-newline-in-name", HEADER("{\"x\ny\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"), .words = "JSON" },
    { "nan", HEADER(ONE("\"F32\"", "[NaN]", "[0,0]")), .words = "JSON" },
    { "hex-number", HEADER(ONE("\"F32\"", "[0x4]", "[0,16]")), .data_bytes = 16, .words = "JSON" },
    { "duplicate-tensor",
      HEADER("{\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"x\":{\"dtype\":\"U8\",\"shape\":[0],"
             "\"data_offsets\":[0,0]}}"),
      .words = "duplicate" },
    { "duplicate-tensor-by-escape",
      HEADER("{\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"\\u0078\":{\"dtype\":\"U8\","
             "\"shape\":[0],\"data_offsets\":[0,0]}}"),
      .words = "duplicate" },
    { "duplicate-field", HEADER("{\"x\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}"), .data_bytes = 4,
      .words = "duplicate" },
    { "duplicate-metadata", HEADER("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}"), .words = "duplicate" },
    { "two-metadata", HEADER("{\"__metadata__\":{},\"__metadata__\":{}}"), .words = "duplicate" },
    { "metadata-number", HEADER("{\"__metadata__\":{\"step\":3}}"), .words = "__metadata__ 'step' is not a string" },
    { "metadata-null", HEADER("{\"__metadata__\":{\"step\":null}}"), .words = "__metadata__ 'step' is not a string" },
    { "metadata-object", HEADER("{\"__metadata__\":{\"step\":{}}}"), .words = "__metadata__ 'step' is not a string" },
    { "metadata-array", HEADER("{\"__metadata__\":[]}"), .words = "__metadata__ is not an object" },
    { "metadata-text", HEADER("{\"__metadata__\":\"x\"}"), .words = "__metadata__ is not an object" },
    { "entry-number", HEADER("{\"x\":1}"), .words = "'x': its entry is not an object" },
    { "entry-array", HEADER("{\"x\":[\"F32\",[],[0,4]]}"), .data_bytes = 4, .words = "'x': its entry is not an object" },
    { "no-dtype", HEADER("{\"x\":{\"shape\":[],\"data_offsets\":[0,4]}}"), .data_bytes = 4, .words = "'x': dtype is missing" },
    { "no-shape", HEADER("{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}"), .data_bytes = 4, .words = "'x': shape is missing" },
    { "no-offsets", HEADER("{\"x\":{\"dtype\":\"F32\",\"shape\":[]}}"), .data_bytes = 4, .words = "'x': data_offsets is missing" },
    { "unknown-field", HEADER("{\"x\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"strides\":[]}}"), .data_bytes = 4,
      .words = "'x': unknown field 'strides'" },
    { "field-in-capitals", HEADER("{\"x\":{\"Dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}"), .data_bytes = 4, .words = "missing" },
    { "dtype-number", HEADER(ONE("32", "[]", "[0,4]")), .data_bytes = 4, .words = "'x': dtype is not a string" },
    { "dtype-lower-case", HEADER(ONE("\"f32\"", "[]", "[0,4]")), .data_bytes = 4, .words = "'x': 'f32' is no dtype" },
    { "dtype-unknown", HEADER(ONE("\"F33\"", "[]", "[0,4]")), .data_bytes = 4, .words = "'x': 'F33' is no dtype" },
    { "dtype-empty", HEADER(ONE("\"\"", "[]", "[0,4]")), .data_bytes = 4, .words = "no dtype" },
    { "dtype-f16", HEADER(ONE("\"F16\"", "[2]", "[0,4]")), .data_bytes = 4, .status = TN_ERR_DTYPE,
      .words = "'x': dtype F16 is not supported" },
    { "dtype-i16", HEADER(ONE("\"I16\"", "[2]", "[0,4]")), .data_bytes = 4, .status = TN_ERR_DTYPE, .words = "I16 is not supported" },
    { "dtype-u16", HEADER(ONE("\"U16\"", "[2]", "[0,4]")), .data_bytes = 4, .status = TN_ERR_DTYPE, .words = "U16 is not supported" },
    { "dtype-u32", HEADER(ONE("\"U32\"", "[1]", "[0,4]")), .data_bytes = 4, .status = TN_ERR_DTYPE, .words = "U32 is not supported" },
    { "dtype-u64", HEADER(ONE("\"U64\"", "[1]", "[0,8]")), .data_bytes = 8, .status = TN_ERR_DTYPE, .words = "U64 is not supported" },
    { "dtype-i8", HEADER(ONE("\"I8\"", "[4]", "[0,4]")), .data_bytes = 4, .status = TN_ERR_DTYPE, .words = "I8 is not supported" },
    { "dtype-f8", HEADER(ONE("\"F8_E4M3\"", "[4]", "[0,4]")), .data_bytes = 4, .status = TN_ERR_DTYPE,
      .words = "F8_E4M3 is not supported" },
    { "wrong-dtype-for-bytes", HEADER(ONE("\"F64\"", "[2,2]", "[0,16]")), .data_bytes = 16, .words = "'x': shape and dtype make 32 bytes" },
    { "shape-number", HEADER(ONE("\"F32\"", "4", "[0,16]")), .data_bytes = 16, .words = "'x': shape is not an array" },
    { "shape-null", HEADER(ONE("\"F32\"", "null", "[0,4]")), .data_bytes = 4, .words = "'x': shape is not an array" },
    { "shape-text", HEADER(ONE("\"F32\"", "[\"4\"]", "[0,16]")), .data_bytes = 16, .words = "'x': shape[0] is not a non-negative integer" },
    { "shape-negative", HEADER(ONE("\"F32\"", "[-2,-2]", "[0,16]")), .data_bytes = 16, .words = "shape[0] is not a non-negative integer" },
    { "shape-fraction", HEADER(ONE("\"F32\"", "[2,2.0]", "[0,16]")), .data_bytes = 16, .words = "shape[1] is not a non-negative integer" },
    { "shape-exponent", HEADER(ONE("\"F32\"", "[4e0]", "[0,16]")), .data_bytes = 16, .words = "shape[0] is not a non-negative integer" },
    { "shape-true", HEADER(ONE("\"F32\"", "[true]", "[0,4]")), .data_bytes = 4, .words = "shape[0] is not a non-negative integer" },
    { "shape-nested", HEADER(ONE("\"F32\"", "[[4]]", "[0,16]")), .data_bytes = 16, .words = "shape[0] is not a non-negative integer" },
    { "shape-too-small", HEADER(ONE("\"F32\"", "[3]", "[0,16]")), .data_bytes = 16, .words = "make 12 bytes" },
    { "shape-too-large", HEADER(ONE("\"F32\"", "[5]", "[0,16]")), .data_bytes = 16, .words = "make 20 bytes" },
    { "nine-axes", HEADER(ONE("\"F32\"", "[1,1,1,1,1,1,1,1,4]", "[0,16]")), .data_bytes = 16, .status = TN_ERR_SHAPE,
      .words = "'x': 9 axes" },
    { "shape-2^32x2^32", HEADER(ONE("\"U8\"", "[4294967296,4294967296]", "[0,0]")), .words = "'x': its shape overflows" },
    { "shape-wraps-to-16-bytes", HEADER(ONE("\"F32\"", "[4611686018427387908]", "[0,16]")), .data_bytes = 16, .words = "'x': " },
    { "shape-int64-max", HEADER(ONE("\"F64\"", "[9223372036854775807]", "[0,16]")), .data_bytes = 16, .words = "'x': " },
    { "shape-2^63", HEADER(ONE("\"U8\"", "[9223372036854775808]", "[0,16]")), .data_bytes = 16, .words = "JSON" },
    { "offsets-one", HEADER(ONE("\"F32\"", "[]", "[4]")), .data_bytes = 4, .words = "'x': data_offsets is not an array of two" },
    { "offsets-three", HEADER(ONE("\"F32\"", "[]", "[0,4,8]")), .data_bytes = 4, .words = "data_offsets is not an array of two" },
    { "offsets-object", HEADER(ONE("\"F32\"", "[]", "{}")), .data_bytes = 4, .words = "data_offsets is not an array of two" },
    { "offsets-null", HEADER(ONE("\"F32\"", "[]", "null")), .data_bytes = 4, .words = "data_offsets is not an array of two" },
    { "offsets-text", HEADER(ONE("\"F32\"", "[]", "[\"0\",\"4\"]")), .data_bytes = 4, .words = "data_offsets is not an array of two" },
    { "offsets-negative", HEADER(ONE("\"F32\"", "[]", "[-4,0]")), .data_bytes = 4, .words = "data_offsets is not an array of two" },
    { "offsets-fraction", HEADER(ONE("\"F32\"", "[]", "[0,4.0]")), .data_bytes = 4, .words = "data_offsets is not an array of two" },
    { "offsets-backwards", HEADER(ONE("\"F32\"", "[]", "[4,0]")), .data_bytes = 4, .words = "'x': data_offsets run backwards" },
    { "offsets-huge", HEADER(ONE("\"F32\"", "[]", "[0,9223372036854775807]")), .data_bytes = 4, .words = "'x': truncated" },
    { "offsets-2^64", HEADER(ONE("\"F32\"", "[]", "[0,18446744073709551620]")), .data_bytes = 4, .words = "JSON" },
    { "offsets-past-end", HEADER(ONE("\"F32\"", "[]", "[4,8]")), .data_bytes = 4, .words = "'x': truncated" },
    { "hole-at-start", HEADER(ONE("\"F32\"", "[]", "[4,8]")), .data_bytes = 8, .words = "'x': its data begins at byte 4, leaving a gap" },
    { "hole", HEADER(PAIR("[0,4]", "[5,9]")), .data_bytes = 9, .words = "'y': its data begins at byte 5, leaving a gap" },
    { "out-of-order-with-hole", HEADER(PAIR("[5,9]", "[0,4]")), .data_bytes = 9, .words = "'x': its data begins at byte 5, leaving a gap" },
    { "overlap", HEADER(PAIR("[0,4]", "[3,7]")), .data_bytes = 7, .words = "'y': its data begins at byte 3, overlapping" },
    { "same-place", HEADER(PAIR("[0,4]", "[0,4]")), .data_bytes = 4, .words = "'y': its data begins at byte 0, overlapping" },
    { "out-of-order-overlap", HEADER(PAIR("[3,7]", "[0,4]")), .data_bytes = 7, .words = "'x': its data begins at byte 3, overlapping" },
    { "empty-tensor-inside-another",
      HEADER("{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"y\":{\"dtype\":\"U8\",\"shape\":[0],"
             "\"data_offsets\":[2,2]}}"),
      .data_bytes = 4, .words = "'y': its data begins at byte 2, overlapping" },
    { "control-characters-in-name", HEADER("{\"x\\u001b[31m\":1}"), .words = "'x?[31m': its entry" },
};

static void write_bad_file(const bad_file *bad) {
    size_t n_bytes = 8 + bad->header_bytes + bad->data_bytes;
    unsigned char *bytes = calloc(1, n_bytes);
    assert_non_null(bytes);
    uint64_t length = bad->false_length ? bad->length : bad->header_bytes;
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, bad->header, bad->header_bytes);
    write_all(path_of("bad.safetensors"), bytes, n_bytes - bad->cut);
    free(bytes);
}

static void check_refused(tn_context *cx, tn_status status, const char *words) {
    assert_null(tn_file_open(cx, path_of("bad.safetensors")));
    TN_TEST_WANT(strstr(tn_error(cx), path_of("bad.safetensors")), "the error does not name the file: %s", tn_error(cx));
    assert_string_equal(tn_error_op(cx), "tn_file_open");
    tn_test_error(cx, status, words);
    assert_true(tn_item(tn_full(cx, TN_F32, TN_SCALAR, 3)) == 3);
    tn_test_ok(cx);
}

static void refuse_bad_file(void **state) {
    const bad_file *bad = *state;
    tn_context *cx = open_context();
    write_bad_file(bad);
    check_refused(cx, bad->status ? bad->status : TN_ERR_FORMAT, bad->words);
    tn_close(cx);
}

/* A header of n times the same text. */
static void write_repeated(const char *begin, const char *text, size_t n) {
    uint64_t length = strlen(begin) + strlen(text) * n;
    char *bytes = malloc(8 + length + 1);
    assert_non_null(bytes);
    memcpy(bytes, &length, 8);
    char *at = stpcpy(bytes + 8, begin);
    for (size_t i = 0; i < n; i++) at = stpcpy(at, text);
    write_all(path_of("bad.safetensors"), bytes, 8 + length);
    free(bytes);
}

static void nesting_bombs(void **state) {
    (void)state;
    tn_context *cx = open_context();
    write_repeated("{\"x\":", "[", 1 << 20);
    check_refused(cx, TN_ERR_FORMAT, "depth");
    write_repeated("", "{\"x\":", 1 << 20);
    check_refused(cx, TN_ERR_FORMAT, "depth");
    tn_close(cx);
}

static void bytes_of_bool(void **state) {
    (void)state;
    tn_context *cx = open_context();
    static const char header[] = ONE("\"BOOL\"", "[3]", "[0,3]");
    unsigned char bytes[8 + sizeof header + 2] = { sizeof header - 1 };
    memcpy(bytes + 8, header, sizeof header - 1);
    memcpy(bytes + 8 + sizeof header - 1, "\1\0\2", 3);
    write_all(path_of("a"), bytes, sizeof bytes);
    tn_file *file = tn_file_open(cx, path_of("a"));
    tn_test_ok(cx);
    assert_null(tn_file_load(file, "x"));
    TN_TEST_WANT(strstr(tn_error(cx), path_of("a")), "the error does not name the file: %s", tn_error(cx));
    tn_test_error(cx, TN_ERR_FORMAT, "'x': BOOL element 2 is 2");
    tn_file_close(file);
    tn_close(cx);
}

static void unusable_paths(void **state) {
    (void)state;
    tn_context *cx = open_context();
    assert_null(tn_file_open(cx, path_of("absent")));
    tn_test_error(cx, TN_ERR_IO, "No such file");
    assert_null(tn_file_open(cx, folder));
    tn_test_error(cx, TN_ERR_IO, "not a regular file");
    assert_int_equal(mkfifo(path_of("pipe"), 0600), 0);
    assert_null(tn_file_open(cx, path_of("pipe")));
    tn_test_error(cx, TN_ERR_IO, "not a regular file");
    assert_null(tn_file_open(cx, NULL));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no path");
    assert_null(tn_file_open(cx, ""));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no path");
    tn_close(cx);
}

static void null_and_failed(void **state) {
    (void)state;
    assert_null(tn_file_open(NULL, "x"));
    assert_null(tn_file_load(NULL, "x"));
    assert_null(tn_file_find(NULL, "x"));
    assert_null(tn_file_entry_at(NULL, 0));
    assert_null(tn_file_metadata(NULL, "x"));
    assert_int_equal(tn_file_count(NULL), 0);
    assert_false(tn_file_save(NULL, "x", NULL, 0, NULL, 0));
    tn_file_close(NULL);
    tn_context *cx = open_context();
    assert_true(tn_file_save(cx, path_of("a"), NULL, 0, NULL, 0));
    tn_file *file = tn_file_open(cx, path_of("a"));
    assert_null(tn_file_load(file, "absent"));
    assert_null(tn_file_open(cx, path_of("a")));
    assert_false(tn_file_save(cx, path_of("b"), NULL, 0, NULL, 0));
    assert_int_equal(files_in_folder(), 1);
    tn_test_error(cx, TN_ERR_ARGUMENT, "there is no tensor 'absent'");
    tn_file_close(file);
    tn_close(cx);
}

/* A thousand damaged files: whatever opens must load without harm. */
static void random_damage(void **state) {
    (void)state;
    tn_context *cx = open_context();
    tn_named_tensor tensors[] = { { "a", tn_randn(cx, TN_F32, TN_SHAPE(2, 3)) }, { "b", tn_full(cx, TN_BOOL, TN_SHAPE(5), 1) } };
    tn_named_text texts[] = { { "k", "v" } };
    assert_true(tn_file_save(cx, path_of("a"), tensors, COUNT(tensors), texts, 1));
    size_t n_bytes = 0;
    unsigned char *good = read_all(path_of("a"), &n_bytes), *bytes = malloc(n_bytes);
    for (int i = 0; i < 1000; i++) {
        memcpy(bytes, good, n_bytes);
        int n_changes = 1 + (int)(next_random() % 3);
        for (int j = 0; j < n_changes; j++) bytes[next_random() % n_bytes] = (unsigned char)next_random();
        size_t kept = next_random() % 4 ? n_bytes : next_random() % n_bytes;
        write_all(path_of("bad.safetensors"), bytes, kept);
        tn_scope *scope = tn_scope_begin(cx);
        tn_file *file = tn_file_open(cx, path_of("bad.safetensors"));
        for (int64_t at = 0; at < tn_file_count(file); at++) tn_file_load(file, tn_file_entry_at(file, at)->name);
        tn_file_close(file);
        tn_clear_error(cx);
        tn_scope_end(scope);
    }
    free(good);
    free(bytes);
    tn_close(cx);
}

/* ---- saves that fail ---- */

static void check_old_file(const char *name) {
    size_t n_bytes = 0;
    unsigned char *bytes = read_all(path_of(name), &n_bytes);
    TN_TEST_WANT(n_bytes == 3 && memcmp(bytes, "old", 3) == 0, "the old file changed");
    free(bytes);
}

static void refused_saves(void **state) {
    (void)state;
    tn_context *cx = open_context(), *other = open_context();
    tn_tensor *t = tn_zeros(cx, TN_F32, TN_SHAPE(3));
    const struct {
        const char *words;
        tn_named_tensor tensors[2];
        tn_named_text texts[2];
    } cases[] = {
        { "'x' given twice", { { "x", t }, { "x", t } }, { { "a", "" }, { "b", "" } } },
        { "tensor 1 has no name", { { "x", t }, { NULL, t } }, { { "a", "" }, { "b", "" } } },
        { "'y' is NULL", { { "x", t }, { "y", NULL } }, { { "a", "" }, { "b", "" } } },
        { "__metadata__ can't be the name", { { "x", t }, { "__metadata__", t } }, { { "a", "" }, { "b", "" } } },
        { "another context", { { "x", t }, { "y", tn_zeros(other, TN_F32, TN_SCALAR) } }, { { "a", "" }, { "b", "" } } },
        { "is not UTF-8", { { "x", t }, { "\xff", t } }, { { "a", "" }, { "b", "" } } },
        { "'a' given twice", { { "x", t }, { "y", t } }, { { "a", "" }, { "a", "" } } },
        { "metadata 0 lacks", { { "x", t }, { "y", t } }, { { NULL, "" }, { "a", "" } } },
        { "metadata 1 lacks", { { "x", t }, { "y", t } }, { { "b", "" }, { "a", NULL } } },
        { "the metadata value '\xc3' is not UTF-8", { { "x", t }, { "y", t } }, { { "b", "\xc3" }, { "a", "" } } },
        { "the metadata key '\xc3' is not UTF-8", { { "x", t }, { "y", t } }, { { "\xc3", "" }, { "a", "" } } },
    };
    write_all(path_of("a"), "old", 3);
    for (int64_t i = 0; i < COUNT(cases); i++) {
        tn_test_note("wanted: %s", cases[i].words);
        assert_false(tn_file_save(cx, path_of("a"), cases[i].tensors, 2, cases[i].texts, 2));
        TN_TEST_WANT(strstr(tn_error(cx), path_of("a")), "the error does not name the file: %s", tn_error(cx));
        tn_test_error(cx, TN_ERR_ARGUMENT, cases[i].words);
        check_old_file("a");
        assert_int_equal(files_in_folder(), 1);
    }
    assert_false(tn_file_save(cx, path_of("a"), NULL, 1, NULL, 0));
    tn_test_error(cx, TN_ERR_ARGUMENT, "NULL");
    assert_false(tn_file_save(cx, path_of("a"), NULL, -1, NULL, 0));
    tn_test_error(cx, TN_ERR_ARGUMENT, "negative");
    assert_false(tn_file_save(cx, NULL, NULL, 0, NULL, 0));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no path");
    tn_close(other);
    tn_close(cx);
}

static void unwritable_paths(void **state) {
    (void)state;
    tn_context *cx = open_context();
    assert_false(tn_file_save(cx, path_of("absent/a"), NULL, 0, NULL, 0));
    tn_test_error(cx, TN_ERR_IO, "No such file");
    assert_false(tn_file_save(cx, folder, NULL, 0, NULL, 0));
    tn_test_error(cx, TN_ERR_IO, "not a regular file");
    assert_int_equal(mkfifo(path_of("pipe"), 0600), 0);
    assert_false(tn_file_save(cx, path_of("pipe"), NULL, 0, NULL, 0));
    tn_test_error(cx, TN_ERR_IO, "not a regular file");
    write_all(path_of("plain"), "old", 3);
    assert_false(tn_file_save(cx, path_of("plain/a"), NULL, 0, NULL, 0));
    tn_test_error(cx, TN_ERR_IO, "Not a directory");
    assert_int_equal(files_in_folder(), 2);
    check_old_file("plain");
    tn_close(cx);
}

/* The disk is full half way: a limit on the size of files stands for it. */
static void full_disk(void **state) {
    (void)state;
    tn_context *cx = open_context();
    tn_named_tensor tensors[] = { { "x", tn_zeros(cx, TN_F32, TN_SHAPE(1 << 20)) } };
    write_all(path_of("a"), "old", 3);
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 100000, before.rlim_max });
    bool saved = tn_file_save(cx, path_of("a"), tensors, 1, NULL, 0);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
    assert_false(saved);
    tn_test_error(cx, TN_ERR_IO, "File too large");
    check_old_file("a");
    assert_int_equal(files_in_folder(), 1);
    assert_true(tn_file_save(cx, path_of("a"), tensors, 1, NULL, 0));
    tn_test_ok(cx);
    assert_int_equal(files_in_folder(), 1);
    tn_close(cx);
}

static void relative_paths(void **state) {
    (void)state;
    tn_context *cx = open_context();
    char before[512];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(folder), 0);
    bool saved = tn_file_save(cx, "plain", NULL, 0, NULL, 0) && tn_file_save(cx, "./dotted", NULL, 0, NULL, 0);
    assert_int_equal(chdir(before), 0);
    tn_test_ok(cx);
    assert_true(saved);
    assert_int_equal(files_in_folder(), 2);
    tn_close(cx);
}

/* ---- host memory that runs out ---- */

/* The allocator's own books count as its memory. */
static void want_out_of_memory(tn_context *cx) {
    tn_test_error(cx, tn_error_status(cx) == TN_ERR_MEMORY ? TN_ERR_MEMORY : TN_ERR_HOST_MEMORY, NULL);
}

static void save_without_memory(void **state) {
    (void)state;
    tn_context *cx = open_context();
    tn_tensor *t = tn_arange(cx, TN_F32, 6);
    tn_named_tensor tensors[] = { { "x", t }, { "y", tn_alias(t, TN_SHAPE(3, 2), (int64_t[]){ 1, 3 }, 0) } };
    tn_named_text texts[] = { { "a", "b" } };
    for (int for_ever = 0; for_ever < 2; for_ever++) {
        write_all(path_of("a"), "old", 3);
        bool saved = false;
        for (int n = 1; !saved && n < 1000; n++) {
            tn_test_note("allocation %d fails%s", n, for_ever ? " and all after it" : "");
            int64_t live = tn_host_live_blocks();
            tn_host_fail_after(n, for_ever);
            saved = tn_file_save(cx, path_of("a"), tensors, 2, texts, 1);
            tn_host_fail_after(0, false);
            assert_int_equal(files_in_folder(), 1);
            if (saved) break;
            want_out_of_memory(cx);
            assert_true(tn_host_live_blocks() <= live);
            check_old_file("a");
        }
        assert_true(saved);
    }
    tn_close(cx);
}

static void read_without_memory(void **state) {
    (void)state;
    tn_context *cx = open_context();
    tn_named_tensor tensors[] = { { "x", tn_arange(cx, TN_F32, 6) } };
    tn_named_text texts[] = { { "a", "b" } };
    assert_true(tn_file_save(cx, path_of("a"), tensors, 1, texts, 1));
    for (int for_ever = 0; for_ever < 2; for_ever++) {
        bool loaded = false;
        for (int n = 1; !loaded && n < 1000; n++) {
            tn_test_note("allocation %d fails%s", n, for_ever ? " and all after it" : "");
            tn_host_fail_after(n, for_ever);
            tn_file *file = tn_file_open(cx, path_of("a"));
            loaded = tn_file_load(file, "x") != NULL;
            tn_file_close(file);
            tn_host_fail_after(0, false);
            if (!loaded) want_out_of_memory(cx);
        }
        assert_true(loaded);
    }
    tn_close(cx);
}

/* ---- the list ---- */

#define CASE(function) \
    { #function, function, set_up, tear_down, NULL }

static const struct CMUnitTest plain_cases[] = {
    CASE(no_tensors),
    CASE(non_contiguous),
    CASE(exact_bytes),
    CASE(any_order_same_bytes),
    CASE(entries_in_order_and_aligned),
    CASE(metadata),
    CASE(foreign_but_legal),
    CASE(nesting_bombs),
    CASE(bytes_of_bool),
    CASE(unusable_paths),
    CASE(null_and_failed),
    CASE(random_damage),
    CASE(refused_saves),
    CASE(unwritable_paths),
    CASE(full_disk),
    CASE(relative_paths),
    CASE(save_without_memory),
    CASE(read_without_memory),
};

#define N_CASES (COUNT(plain_cases) + TN_DTYPE_COUNT + COUNT(bad_files))

int main(int argc, char **argv) {
    static struct CMUnitTest cases[N_CASES];
    static char names[N_CASES][64];
    static tn_dtype dtypes[TN_DTYPE_COUNT];
    size_t n = 0;
    for (; n < (size_t)COUNT(plain_cases); n++) cases[n] = plain_cases[n];
    for (int i = 0; i < TN_DTYPE_COUNT; i++, n++) {
        dtypes[i] = (tn_dtype)i;
        snprintf(names[n], sizeof names[n], "round_trip/%s", tn_dtype_name(dtypes[i]));
        cases[n] = (struct CMUnitTest){ names[n], round_trip, set_up, tear_down, &dtypes[i] };
    }
    for (int64_t i = 0; i < COUNT(bad_files); i++, n++) {
        snprintf(names[n], sizeof names[n], "bad_file/%s", bad_files[i].name);
        cases[n] = (struct CMUnitTest){ names[n], refuse_bad_file, set_up, tear_down, (void *)&bad_files[i] };
    }
    return tn_test_main_in_folder(folder, "test_safetensors", cases, n, argc, argv);
}
