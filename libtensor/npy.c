#include "npy.h"

#include <inttypes.h>
#include <string.h>

#include "context_internal.h"
#include "file_map.h"
#include "file_write.h"
#include "safetensors_format.h"

#define MAGIC "\x93NUMPY"
#define MAGIC_BYTES 6
#define HEADER_CAP_BYTES ((size_t)64 << 10)
#define ALIGNMENT 64 /* of the data in a file that is written, as NumPy has it */

#define LOAD_OP "tn_npy_load"
#define SAVE_OP "tn_npy_save"

static const char *const dtype_codes[TN_DTYPE_COUNT] = {
    [TN_F64] = "<f8", [TN_F32] = "<f4", [TN_I64] = "<i8", [TN_I32] = "<i4", [TN_U8] = "|u1", [TN_BOOL] = "|b1",
};

/* ---- the header: a Python dict of three members, read by hand ---- */

typedef struct npy_reader {
    tn_context *cx;
    const char *path;
    tn_file_map map;
    const char *at, *end; /* what is left of the header's text */
    tn_dtype dtype;
    bool half, fortran; /* '<f2'; Fortran order */
    tn_shape shape;
    bool has_descr, has_order, has_shape;
    const unsigned char *data;
    size_t n_bytes; /* of the data */
} npy_reader;

#define FAIL(r, status, ...) tn_fail((r)->cx, (status), LOAD_OP, __VA_ARGS__)

static bool malformed(const npy_reader *r, const char *what) {
    return FAIL(r, TN_ERR_FORMAT, "%s: header, byte %td: %s", r->path, r->at - (const char *)r->map.bytes, what);
}

static void skip_space(npy_reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

/* Takes `c` if it comes next. */
static bool take(npy_reader *r, char c) {
    skip_space(r);
    if (r->at == r->end || *r->at != c) return false;
    r->at++;
    return true;
}

/* A text in quotes, without escapes: none that can be in such a header needs one. */
static bool take_text(npy_reader *r, char text[32]) {
    skip_space(r);
    if (r->at == r->end || (*r->at != '\'' && *r->at != '"')) return malformed(r, "wanted a text in quotes");
    char quote = *r->at++;
    size_t n = 0;
    while (r->at < r->end && *r->at != quote && *r->at != '\\' && n < 31) text[n++] = *r->at++;
    text[n] = '\0';
    if (r->at == r->end || *r->at != quote) return malformed(r, "a text without its end, or longer than any wanted");
    r->at++;
    return true;
}

static bool take_word(npy_reader *r, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0) return false;
    r->at += n;
    return true;
}

static bool read_descr(npy_reader *r) {
    char code[32] = "";
    skip_space(r);
    if (r->at < r->end && *r->at == '[') return FAIL(r, TN_ERR_DTYPE, "%s: an array of records; only plain numbers are read", r->path);
    if (!take_text(r, code)) return false;
    if (strcmp(code, "<f2") == 0) {
        r->half = true;
        r->dtype = TN_F32;
        return true;
    }
    for (int i = 0; i < TN_DTYPE_COUNT; i++)
        if (dtype_codes[i] && strcmp(code + 1, dtype_codes[i] + 1) == 0 &&
            (code[0] == dtype_codes[i][0] || code[0] == '=' || dtype_codes[i][0] == '|')) {
            if (code[0] == '>') break;
            r->dtype = (tn_dtype)i;
            return true;
        }
    const char *hint = code[0] == '>' ? ": big-endian; in NumPy, a.astype(a.dtype.newbyteorder('<')) turns it round"
                       : strcmp(code, "|V2") == 0 || strcmp(code, "<V2") == 0
                           ? ": two bytes without a meaning (bf16 has no dtype in this format); save f32 instead"
                           : "";
    return FAIL(r, TN_ERR_DTYPE, "%s: dtype '%s' is not read%s (read are <f8 <f4 <f2 <i8 <i4 |u1 |b1)", r->path, tn_show(code).text, hint);
}

static bool read_order(npy_reader *r) {
    skip_space(r);
    r->fortran = take_word(r, "True");
    return r->fortran || take_word(r, "False") || malformed(r, "fortran_order is neither True nor False");
}

static bool read_size(npy_reader *r, int64_t *size) {
    skip_space(r);
    if (r->at == r->end || *r->at < '0' || *r->at > '9') return malformed(r, "a size that is no number");
    *size = 0;
    for (; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++)
        if (__builtin_mul_overflow(*size, 10, size) || __builtin_add_overflow(*size, *r->at - '0', size))
            return malformed(r, "a size over 2^63");
    return true;
}

/* (), (3,) or (3, 4): a single size must have its comma. */
static bool read_shape(npy_reader *r) {
    if (!take(r, '(')) return malformed(r, "shape is not a tuple");
    bool comma = true;
    while (!take(r, ')')) {
        int64_t size = 0;
        if (!comma) return malformed(r, "a shape without its comma");
        if (!read_size(r, &size)) return false;
        if (r->shape.axes == TN_MAX_AXES) return FAIL(r, TN_ERR_SHAPE, "%s: more than the %d axes supported", r->path, TN_MAX_AXES);
        r->shape.size[r->shape.axes++] = size;
        comma = take(r, ',');
    }
    return r->shape.axes != 1 || comma || malformed(r, "a shape of one size without its comma");
}

static bool read_member(npy_reader *r) {
    char name[32] = "";
    if (!take_text(r, name)) return false;
    bool *has = strcmp(name, "descr") == 0           ? &r->has_descr
                : strcmp(name, "fortran_order") == 0 ? &r->has_order
                : strcmp(name, "shape") == 0         ? &r->has_shape
                                                     : NULL;
    if (!has) return malformed(r, "a member that is none of descr, fortran_order and shape");
    if (*has) return malformed(r, "a member that stands twice");
    *has = true;
    if (!take(r, ':')) return malformed(r, "wanted ':'");
    return has == &r->has_descr ? read_descr(r) : has == &r->has_order ? read_order(r) : read_shape(r);
}

static bool read_dict(npy_reader *r) {
    if (!take(r, '{')) return malformed(r, "it does not begin with '{'");
    bool comma = true;
    while (!take(r, '}')) {
        if (!comma) return malformed(r, "wanted ',' or '}'");
        if (!read_member(r)) return false;
        comma = take(r, ',');
    }
    skip_space(r);
    if (r->at != r->end) return malformed(r, "something after the dict");
    return (r->has_descr && r->has_order && r->has_shape) || malformed(r, "descr, fortran_order or shape is missing");
}

/* ---- reading ---- */

static bool find_header(npy_reader *r) {
    const unsigned char *bytes = r->map.bytes;
    size_t n_bytes = r->map.n_bytes;
    if (n_bytes < MAGIC_BYTES + 2 || memcmp(bytes, MAGIC, MAGIC_BYTES) != 0)
        return FAIL(r, TN_ERR_FORMAT, "%s: not an .npy file: it does not begin with \\x93NUMPY and a version", r->path);
    int major = bytes[MAGIC_BYTES], minor = bytes[MAGIC_BYTES + 1];
    if (major < 1 || major > 3 || minor != 0)
        return FAIL(r, TN_ERR_FORMAT, "%s: version %d.%d, only 1.0, 2.0 and 3.0 are known", r->path, major, minor);
    size_t width = major == 1 ? 2 : 4, start = MAGIC_BYTES + 2 + width, length = 0;
    if (n_bytes < start) return FAIL(r, TN_ERR_FORMAT, "%s: truncated within its first %zu bytes", r->path, start);
    for (size_t i = 0; i < width; i++) length |= (size_t)bytes[MAGIC_BYTES + 2 + i] << 8 * i;
    if (length > HEADER_CAP_BYTES)
        return FAIL(r, TN_ERR_FORMAT, "%s: a header of %zu bytes, more than the %zu allowed", r->path, length, HEADER_CAP_BYTES);
    if (length > n_bytes - start)
        return FAIL(r, TN_ERR_FORMAT, "%s: truncated: a header of %zu bytes, but only %zu follow", r->path, length, n_bytes - start);
    r->at = (const char *)bytes + start;
    r->end = r->at + length;
    r->data = bytes + start + length;
    r->n_bytes = n_bytes - start - length;
    return true;
}

static bool check_data(const npy_reader *r) {
    int64_t numel = tn_shape_numel(&r->shape);
    if (numel < 0) return FAIL(r, TN_ERR_FORMAT, "%s: its shape overflows", r->path);
    size_t wanted = (size_t)numel * (r->half ? 2 : tn_dtype_size(r->dtype));
    if (r->n_bytes != wanted)
        return FAIL(r, TN_ERR_FORMAT, "%s: %s: its shape and dtype make %zu bytes of data, it has %zu", r->path,
                    r->n_bytes < wanted ? "truncated" : "too long", wanted, r->n_bytes);
    for (size_t i = 0; r->dtype == TN_BOOL && i < wanted; i++)
        if (r->data[i] > 1) return FAIL(r, TN_ERR_FORMAT, "%s: boolean %zu is %d, neither 0 nor 1", r->path, i, r->data[i]);
    return true;
}

/* Exact: every f16 is an f32. A subnormal is its 10 bits times 2^-24. */
static float half_to_f32(uint16_t half) {
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    float size;
    uint32_t bits = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    memcpy(&size, &bits, sizeof size);
    if (exponent == 0) size = (float)fraction * 0x1p-24f;
    return half & 0x8000 ? -size : size;
}

static tn_tensor *load_halves(const npy_reader *r, tn_shape shape) {
    size_t n = r->n_bytes / 2;
    float *wide = tn_host_alloc(n * sizeof *wide + 1);
    if (!wide) return FAIL(r, TN_ERR_HOST_MEMORY, "%s: no host memory", r->path);
    for (size_t i = 0; i < n; i++) wide[i] = half_to_f32((uint16_t)(r->data[2 * i] | r->data[2 * i + 1] << 8));
    tn_tensor *t = tn_from_data(r->cx, TN_F32, shape, wide);
    tn_host_free(wide);
    return t;
}

/* What lies in Fortran order is the transposed array in row-major order. */
static tn_tensor *load_array(const npy_reader *r) {
    tn_shape stored = r->shape;
    int64_t stride[TN_MAX_AXES], next = 1;
    int last = r->shape.axes - 1;
    for (int i = 0; i <= last; i++) {
        if (r->fortran) stored.size[i] = r->shape.size[last - i];
        stride[i] = next;
        next *= r->shape.size[i];
    }
    tn_tensor *t = r->half ? load_halves(r, stored) : tn_from_data(r->cx, r->dtype, stored, r->data);
    if (!r->fortran || last < 1) return t;
    tn_tensor *view = tn_alias(t, r->shape, stride, 0);
    tn_release(t);
    return view;
}

tn_tensor *tn_npy_load(tn_context *cx, const char *path) {
    if (!tn_ready(cx)) return NULL;
    if (!path || !*path) return tn_fail(cx, TN_ERR_ARGUMENT, LOAD_OP, "no path");
    npy_reader r = { .cx = cx, .path = path };
    if (!tn_file_map_open(cx, LOAD_OP, path, &r.map)) return NULL;
    tn_tensor *t = find_header(&r) && read_dict(&r) && check_data(&r) ? load_array(&r) : NULL;
    tn_file_map_close(&r.map);
    return t;
}

/* ---- writing ---- */

/* The whole header, padded so that the data is aligned; returns its length. */
static size_t make_header(const tn_tensor *t, char header[512]) {
    char shape[TN_MAX_AXES * 24 + 4] = "";
    size_t n = 0, start = MAGIC_BYTES + 4;
    for (int i = 0; i < t->axes; i++)
        n += (size_t)snprintf(shape + n, sizeof shape - n, "%s%" PRId64 "%s", i ? ", " : "", t->shape[i], t->axes == 1 ? "," : "");
    int length =
        snprintf(header + start, 512 - start, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", dtype_codes[t->dtype], shape);
    size_t total = (start + (size_t)length + 1 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    memcpy(header, MAGIC "\x01\x00", MAGIC_BYTES + 2);
    header[MAGIC_BYTES + 2] = (char)((total - start) & 0xff);
    header[MAGIC_BYTES + 3] = (char)((total - start) >> 8);
    memset(header + start + length, ' ', total - start - (size_t)length);
    header[total - 1] = '\n';
    return total;
}

bool tn_npy_save(const tn_tensor *t, const char *path) {
    if (!t || !tn_ready(t->cx)) return false;
    tn_context *cx = t->cx;
    if (!path || !*path) return tn_fail(cx, TN_ERR_ARGUMENT, SAVE_OP, "no path");
    if (!dtype_codes[t->dtype])
        return tn_fail(cx, TN_ERR_DTYPE, SAVE_OP, "%s: .npy has no dtype for %s; cast to f32 first", path, tn_dtype_name(t->dtype));
    if (cx->device->dry_run) return tn_fail(cx, TN_ERR_UNSUPPORTED, SAVE_OP, "%s: a dry run has no data to write", path);
    char header[512];
    size_t n_bytes = make_header(t, header);
    tn_file_writer w;
    bool written =
        tn_file_writer_begin(&w, cx, SAVE_OP, path) && tn_file_writer_bytes(&w, header, n_bytes) && tn_file_writer_tensor(&w, t, "array");
    return tn_file_writer_finish(&w, written);
}
