/* .npy files: NumPy's own bytes are read and written, and nothing else gets past the header. */
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libtensor/host_memory.h"
#include "libtensor/npy.h"

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof(array)[0]))

static char path[64];
static tn_context *cx;

static int set_up(void **state) {
    (void)state;
    cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1 });
    return cx == NULL;
}

static int tear_down(void **state) {
    (void)state;
    tn_close(cx);
    return 0;
}

static void write_all(const void *bytes, size_t n_bytes) {
    remove(path); /* some file systems flush a file that is written over */
    FILE *stream = fopen(path, "wb");
    TN_TEST_WANT(stream && fwrite(bytes, 1, n_bytes, stream) == n_bytes && fclose(stream) == 0, "can't write %s", path);
}

/* A file of this version with this dict, without padding, and these data. */
static size_t make_file(unsigned char *file, int version, const char *dict, const void *data, size_t n_bytes) {
    size_t length = strlen(dict), width = version == 1 ? 2 : 4;
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (unsigned char)version;
    file[7] = 0;
    for (size_t i = 0; i < width; i++) file[8 + i] = (unsigned char)(length >> 8 * i);
    memcpy(file + 8 + width, dict, length);
    memcpy(file + 8 + width + length, data, n_bytes);
    return 8 + width + length + n_bytes;
}

static tn_tensor *load(int version, const char *dict, const void *data, size_t n_bytes) {
    static unsigned char file[4096];
    write_all(file, make_file(file, version, dict, data, n_bytes));
    return tn_npy_load(cx, path);
}

static void want_values(const tn_tensor *t, int64_t n, const double *wanted) {
    tn_test_ok(cx);
    assert_int_equal(t->numel, n);
    double *values = tn_test_doubles(t);
    for (int64_t i = 0; i < n; i++) assert_true(values[i] == wanted[i] || (isnan(values[i]) && isnan(wanted[i])));
    free(values);
}

/* ---- files as NumPy writes them ---- */

/* np.save of np.arange(6, dtype=np.float32).reshape(2, 3), byte for byte. */
static const char numpy_bytes[] = "\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
                                  "                                                          \n"
                                  "\0\0\0\0\0\0\x80?\0\0\0@\0\0@@\0\0\x80@\0\0\xa0@";

static void as_numpy(void **state) {
    (void)state;
    const size_t n_bytes = sizeof numpy_bytes - 1;
    assert_int_equal(n_bytes, 128 + 24);
    write_all(numpy_bytes, n_bytes);
    tn_tensor *t = tn_npy_load(cx, path);
    want_values(t, 6, (double[]){ 0, 1, 2, 3, 4, 5 });
    assert_true(t->axes == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->dtype == TN_F32);
    remove(path);
    assert_true(tn_npy_save(t, path));
    char read[256];
    FILE *stream = fopen(path, "rb");
    assert_int_equal(fread(read, 1, sizeof read, stream), n_bytes);
    fclose(stream);
    assert_memory_equal(read, numpy_bytes, n_bytes);
}

static void every_dtype(void **state) {
    (void)state;
    static const tn_shape shapes[] = { { 0 }, { 1, { 5 } }, { 2, { 0, 3 } }, { 8, { 1, 2, 1, 3, 1, 1, 2, 1 } } };
    for (int dtype = 0; dtype < TN_DTYPE_COUNT; dtype++)
        for (int64_t i = 0; i < COUNT(shapes); i++) {
            tn_test_note("%s, shape %d", tn_dtype_name((tn_dtype)dtype), (int)i);
            tn_tensor *t = tn_randint(cx, (tn_dtype)dtype, shapes[i], 0, 2);
            bool saved = tn_npy_save(t, path);
            if (dtype == TN_BF16) {
                assert_false(saved);
                tn_test_error(cx, TN_ERR_DTYPE, ".npy has no dtype for bf16; cast to f32 first");
                continue;
            }
            tn_tensor *back = tn_npy_load(cx, path);
            tn_test_ok(cx);
            assert_true(back->dtype == t->dtype && tn_same_shape(back, t));
            double *wanted = tn_test_doubles(t);
            want_values(back, t->numel, wanted);
            free(wanted);
        }
}

static void orders_and_versions(void **state) {
    (void)state;
    const int32_t data[6] = { 1, 4, 2, 5, 3, 6 };
    for (int version = 1; version <= 3; version++) {
        tn_tensor *t = load(version, "{'shape':(2,3),\"descr\": \"<i4\" , 'fortran_order': True}", data, sizeof data);
        want_values(t, 6, (double[]){ 1, 2, 3, 4, 5, 6 });
        assert_true(t->stride[0] == 1 && t->stride[1] == 2);
        assert_true(tn_npy_save(t, path));
        want_values(tn_npy_load(cx, path), 6, (double[]){ 1, 2, 3, 4, 5, 6 });
    }
    want_values(load(1, "{'descr': '=i4', 'fortran_order': True, 'shape': (6,)}\n", data, sizeof data), 6, (double[]){ 1, 4, 2, 5, 3, 6 });
    want_values(load(1, "{'descr': '<i4', 'fortran_order': True, 'shape': ()}", data, 4), 1, (double[]){ 1 });
    const uint16_t halves[] = { 0x3c00, 0xc000, 0x0001, 0x83ff, 0x7c00, 0x7bff, 0x8000, 0x7e00 };
    want_values(load(1, "{'descr': '<f2', 'fortran_order': False, 'shape': (8,)}", halves, sizeof halves), 8,
                (double[]){ 1, -2, 0x1p-24, -1023 * 0x1p-24, INFINITY, 65504, 0, NAN });
}

/* ---- what is refused ---- */

#define DICT(descr, order, shape) "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape ", }"

static void refused(void **state) {
    (void)state;
    static const struct {
        const char *dict;
        tn_status status;
        const char *words;
    } bad[] = {
        { DICT("'>f4'", "False", "(2,)"), TN_ERR_DTYPE, "big-endian" },
        { DICT("'>i8'", "False", "(1,)"), TN_ERR_DTYPE, "big-endian" },
        { DICT("'|V2'", "False", "(4,)"), TN_ERR_DTYPE, "bf16 has no dtype" },
        { DICT("'<u2'", "False", "(4,)"), TN_ERR_DTYPE, "dtype '<u2' is not read" },
        { DICT("'<c8'", "False", "(1,)"), TN_ERR_DTYPE, "dtype '<c8'" },
        { DICT("'|O'", "False", "(1,)"), TN_ERR_DTYPE, "dtype '|O'" },
        { DICT("''", "False", "(1,)"), TN_ERR_DTYPE, "dtype ''" },
        { DICT("[('a', '<f4')]", "False", "(1,)"), TN_ERR_DTYPE, "records" },
        { DICT("'<f4'", "0", "(2,)"), TN_ERR_FORMAT, "neither True nor False" },
        { DICT("'<f4'", "False", "(2)"), TN_ERR_FORMAT, "without its comma" },
        { DICT("'<f4'", "False", "[2]"), TN_ERR_FORMAT, "not a tuple" },
        { DICT("'<f4'", "False", "(-2,)"), TN_ERR_FORMAT, "no number" },
        { DICT("'<f4'", "False", "(2 1,)"), TN_ERR_FORMAT, "without its comma" },
        { DICT("'<f4'", "False", "(,)"), TN_ERR_FORMAT, "no number" },
        { DICT("'<f4'", "False", "(2L,)"), TN_ERR_FORMAT, "without its comma" },
        { DICT("'<f4'", "False", "(99999999999999999999,)"), TN_ERR_FORMAT, "over 2^63" },
        { DICT("'<f4'", "False", "(4611686018427387905, 2)"), TN_ERR_FORMAT, "overflows" },
        { DICT("'<f4'", "False", "(1, 1, 1, 1, 1, 1, 1, 1, 2)"), TN_ERR_SHAPE, "more than the 8 axes" },
        { DICT("'<f4'", "False", "(3,)"), TN_ERR_FORMAT, "truncated: its shape and dtype make 12 bytes" },
        { DICT("'<f4'", "False", "(1,)"), TN_ERR_FORMAT, "too long" },
        { "{'descr': '<f4', 'shape': (2,)}", TN_ERR_FORMAT, "is missing" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}", TN_ERR_FORMAT, "none of descr" },
        { "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", TN_ERR_FORMAT, "stands twice" },
        { "{'descr': '<f4' 'fortran_order': False, 'shape': (2,)}", TN_ERR_FORMAT, "wanted ','" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", TN_ERR_FORMAT, "after the dict" },
        { "{'descr' '<f4', 'fortran_order': False, 'shape': (2,)}", TN_ERR_FORMAT, "wanted ':'" },
        { "{descr: '<f4', 'fortran_order': False, 'shape': (2,)}", TN_ERR_FORMAT, "text in quotes" },
        { "[]", TN_ERR_FORMAT, "does not begin with '{'" },
        { "", TN_ERR_FORMAT, "does not begin with '{'" },
    };
    const float data[2] = { 1, 2 };
    for (int64_t i = 0; i < COUNT(bad); i++) {
        tn_test_note("%s", bad[i].dict);
        assert_null(load(1, bad[i].dict, data, sizeof data));
        tn_test_error(cx, bad[i].status, bad[i].words);
    }
    assert_null(load(4, DICT("'<f4'", "False", "(2,)"), data, sizeof data));
    tn_test_error(cx, TN_ERR_FORMAT, "version 4.0");
    assert_null(load(1, DICT("'|b1'", "False", "(8,)"), data, sizeof data));
    tn_test_error(cx, TN_ERR_FORMAT, "neither 0 nor 1");
    write_all("\x93NUMPY\x02\x00\xff\xff\xff\xff{}", 14);
    assert_null(tn_npy_load(cx, path));
    tn_test_error(cx, TN_ERR_FORMAT, "more than the 65536 allowed");
    assert_null(tn_npy_load(cx, "/nowhere/x.npy"));
    tn_test_error(cx, TN_ERR_IO, "No such file");
    assert_false(tn_npy_save(tn_zeros(cx, TN_F32, TN_SCALAR), "/nowhere/x.npy"));
    tn_test_error(cx, TN_ERR_IO, "/nowhere/x.npy");
    assert_null(tn_npy_load(cx, NULL));
    tn_test_error(cx, TN_ERR_ARGUMENT, "no path");
}

/* Cut anywhere it is refused; with any bit of the header changed it is refused or another sound array. */
static void damage(void **state) {
    (void)state;
    char bytes[sizeof numpy_bytes];
    const size_t n_bytes = sizeof numpy_bytes - 1;
    for (size_t n = 0; n < n_bytes; n++) {
        write_all(numpy_bytes, n);
        assert_null(tn_npy_load(cx, path));
        tn_test_error(cx, TN_ERR_FORMAT, NULL);
    }
    for (size_t bit = 0; bit < 8 * 128; bit++) {
        memcpy(bytes, numpy_bytes, sizeof bytes);
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        write_all(bytes, n_bytes);
        tn_tensor *t = tn_npy_load(cx, path);
        assert_true(t ? tn_bytes(t) == 24 : tn_error_status(cx) == TN_ERR_FORMAT || tn_error_status(cx) == TN_ERR_DTYPE);
        tn_clear_error(cx);
        tn_release(t);
    }
}

static void without_host_memory(void **state) {
    (void)state;
    tn_tensor *t = tn_alias(tn_arange(cx, TN_F32, 6), TN_SHAPE(2, 3), (int64_t[]){ 1, 2 }, 0);
    tn_test_ok(cx);
    remove(path);
    bool done = false;
    for (int64_t n = 1; !done; n++) {
        int64_t live = tn_host_live_blocks();
        tn_host_fail_after(n, n % 2);
        done = tn_npy_save(t, path);
        tn_host_fail_after(0, false);
        if (!done) tn_test_error(cx, TN_ERR_HOST_MEMORY, NULL);
        if (!done) assert_int_equal(tn_host_live_blocks(), live);
        assert_int_equal(access(path, F_OK) == 0, done);
    }
}

#define CASE(function) \
    { #function, function, set_up, tear_down, NULL }

static const struct CMUnitTest cases[] = {
    CASE(as_numpy), CASE(every_dtype), CASE(orders_and_versions), CASE(refused), CASE(damage), CASE(without_host_memory),
};

int main(int argc, char **argv) {
    snprintf(path, sizeof path, "/tmp/tenon-test-%ld.npy", (long)getpid());
    int code = tn_test_main("test_npy", cases, sizeof cases / sizeof *cases, argc, argv);
    remove(path);
    return code;
}
