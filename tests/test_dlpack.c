/* DLPack: what leaves and comes back shares memory, is given back exactly once, and is counted as nobody's but its owner's. */
#include "harness.h"

#include <stdlib.h>
#include <string.h>

#include "libtensor/dlpack.h"
#include "libtensor/host_memory.h"
#include "libtensor/memory.h"
#include "ops/tenon.h"

static tn_context *cx;
static int64_t live_blocks;

static int set_up(void **state) {
    (void)state;
    live_blocks = tn_host_live_blocks();
    cx = tn_open(&(tn_options){ .device = tn_test_device(), .seed = 1, .debug = true });
    return cx == NULL;
}

static int tear_down(void **state) {
    (void)state;
    tn_close(cx);
    return tn_host_live_blocks() != live_blocks;
}

static int64_t foreign_bytes(void) {
    tn_memory_stats stats;
    assert_true(tn_memory_stats_get(cx, &stats));
    return stats.foreign.current;
}

/* ---- another library's memory ---- */

static float numbers[24];
static int n_deleted;

static void count_deleted(tn_dl_managed *self) {
    assert_ptr_equal(self->manager, numbers);
    n_deleted++;
}
static void count_deleted_versioned(tn_dl_managed_versioned *self) {
    assert_ptr_equal(self->manager, numbers);
    n_deleted++;
}

static int64_t shape[2] = { 3, 4 }, stride[2] = { 8, 2 };

/* Every second number of three rows of eight, the first left out. */
static tn_dl_managed make_managed(void) {
    for (int i = 0; i < 24; i++) numbers[i] = (float)i;
    n_deleted = 0;
    shape[0] = 3, shape[1] = 4, stride[0] = 8, stride[1] = 2;
    return (tn_dl_managed){ .tensor = { .data = numbers,
                                        .device = { TN_DL_CPU, 0 },
                                        .axes = 2,
                                        .dtype = { TN_DL_FLOAT, 32, 1 },
                                        .shape = shape,
                                        .stride = stride,
                                        .byte_offset = 4 },
                            .manager = numbers,
                            .deleter = count_deleted };
}

static void want_host(void) {
    if (strcmp(tn_device_name(cx), "cpu") != 0) skip();
}

static void imports(void **state) {
    (void)state;
    want_host();
    tn_dl_managed managed = make_managed();
    tn_memory_stats before, after;
    tn_memory_stats_get(cx, &before);
    tn_scope *outer = tn_scope_begin(cx), *inner = tn_scope_begin(cx);
    tn_tensor *t = tn_from_dlpack(cx, &managed);
    tn_test_ok(cx);
    assert_true(t->dtype == TN_F32 && t->axes == 2 && t->stride[0] == 8 && t->data == numbers + 1);
    assert_true(tn_item_at(t, TN_SHAPE(2, 3)) == 23);
    tn_memory_stats_get(cx, &after);
    assert_int_equal(after.foreign.current, (2 * 8 + 3 * 2 + 1) * 4);
    assert_int_equal(after.all.allocated.current, before.all.allocated.current);
    assert_int_equal(after.category[TN_CATEGORY_TEMPORARY].current, before.category[TN_CATEGORY_TEMPORARY].current);
    assert_true(tn_memory_check(cx));
    tn_tensor *view = tn_scope_keep(inner, tn_alias(t, TN_SHAPE(2), (int64_t[]){ 2 }, 8));
    assert_null(tn_alias(t, TN_SHAPE(2), (int64_t[]){ 1 }, 22));
    tn_test_error(cx, TN_ERR_SHAPE, NULL);
    tn_fill(t, 7);
    assert_true(numbers[1] == 7 && numbers[2] == 2);
    tn_scope_end(inner);
    assert_int_equal(n_deleted, 0);
    assert_true(tn_item_at(view, TN_SHAPE(1)) == 7);
    tn_scope_end(outer);
    assert_int_equal(n_deleted, 1);
    assert_int_equal(foreign_bytes(), 0);
    tn_memory_stats_get(cx, &after);
    assert_int_equal(after.foreign.peak, 92);
}

/* Saved for backward it is tagged like any tensor, and lives until backward is done. */
static void through_the_tape(void **state) {
    (void)state;
    want_host();
    tn_dl_managed managed = make_managed();
    tn_tensor *w = tn_parameter(cx, TN_F32, TN_SHAPE(5, 4));
    tn_fill(w, 1);
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *x = tn_from_dlpack(cx, &managed), *loss = tn_sum(tn_linear(x, w, NULL));
    assert_int_equal(tn_memory_category_of(x), TN_CATEGORY_SAVED);
    tn_release(x);
    assert_int_equal(n_deleted, 0);
    tn_backward(loss);
    tn_test_ok(cx);
    assert_int_equal(n_deleted, 1);
    assert_true(tn_item_at(tn_grad(w), TN_SHAPE(4, 0)) == 1 + 9 + 17);
    tn_scope_end(scope);
}

static void negative_and_missing_strides(void **state) {
    (void)state;
    want_host();
    tn_dl_managed managed = make_managed();
    stride[0] = -8;
    managed.tensor.byte_offset = 17 * 4;
    tn_tensor *t = tn_from_dlpack(cx, &managed);
    tn_test_ok(cx);
    assert_true(tn_item_at(t, TN_SHAPE(0, 0)) == 17 && tn_item_at(t, TN_SHAPE(2, 1)) == 3);
    tn_release(t);
    managed = make_managed();
    managed.tensor.stride = NULL;
    managed.tensor.byte_offset = 0;
    managed.deleter = NULL;
    t = tn_from_dlpack(cx, &managed);
    assert_true(tn_is_contiguous(t) && tn_item_at(t, TN_SHAPE(2, 3)) == 11);
    tn_release(t);
    managed.tensor.axes = 0;
    t = tn_from_dlpack(cx, &managed);
    assert_true(tn_item(t) == 0);
    tn_release(t);
    managed = make_managed();
    shape[1] = 0;
    managed.tensor.data = NULL;
    t = tn_from_dlpack(cx, &managed);
    tn_test_ok(cx);
    assert_int_equal(t->numel, 0);
    tn_release(t);
    assert_int_equal(n_deleted, 1);
}

static void versioned(void **state) {
    (void)state;
    want_host();
    tn_dl_managed plain = make_managed();
    tn_dl_managed_versioned managed = {
        .version = { 1, 9 }, .manager = numbers, .deleter = count_deleted_versioned, .tensor = plain.tensor
    };
    tn_tensor *t = tn_from_dlpack_versioned(cx, &managed);
    tn_test_ok(cx);
    assert_ptr_equal(t->data, numbers + 1);
    tn_release(t);
    assert_int_equal(n_deleted, 1);
    managed.flags = TN_DL_READ_ONLY;
    t = tn_from_dlpack_versioned(cx, &managed);
    tn_test_ok(cx);
    assert_int_equal(n_deleted, 2);
    assert_true(t->data != numbers + 1 && tn_item_at(t, TN_SHAPE(1, 2)) == 13 && foreign_bytes() == 0);
    managed.version.major = 2;
    assert_null(tn_from_dlpack_versioned(cx, &managed));
    tn_test_error(cx, TN_ERR_UNSUPPORTED, "DLPack 2.9");
    assert_int_equal(n_deleted, 2);
}

static void refused(void **state) {
    (void)state;
    want_host();
    static const struct {
        tn_dl_device device;
        tn_dl_dtype dtype;
        int32_t axes;
        int64_t size, stride;
        uint64_t offset;
        tn_status status;
        const char *words;
    } bad[] = {
        { { TN_DL_CUDA, 0 }, { TN_DL_FLOAT, 32, 1 }, 2, 3, 8, 0, TN_ERR_UNSUPPORTED, "memory of device type 2" },
        { { 7, 0 }, { TN_DL_FLOAT, 32, 1 }, 2, 3, 8, 0, TN_ERR_UNSUPPORTED, "memory of device type 7" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 16, 1 }, 2, 3, 8, 0, TN_ERR_DTYPE, "16 bits" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 4 }, 2, 3, 8, 0, TN_ERR_DTYPE, "4 lanes" },
        { { TN_DL_CPU, 0 }, { 9, 32, 1 }, 2, 3, 8, 0, TN_ERR_DTYPE, "type code 9" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 1 }, 9, 3, 8, 0, TN_ERR_SHAPE, "9 axes" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 1 }, -1, 3, 8, 0, TN_ERR_SHAPE, "-1 axes" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 1 }, 2, -3, 8, 0, TN_ERR_SHAPE, "below 0" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 1 }, 2, INT64_MAX, 8, 0, TN_ERR_SHAPE, "overflows" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 1 }, 2, 3, INT64_MAX, 0, TN_ERR_SHAPE, "strides overflow" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 1 }, 2, 3, INT64_MIN, 0, TN_ERR_SHAPE, "strides overflow" },
        { { TN_DL_CPU, 0 }, { TN_DL_FLOAT, 32, 1 }, 2, 3, 8, 2, TN_ERR_ARGUMENT, "not aligned" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tn_dl_managed managed = make_managed();
        managed.tensor.device = bad[i].device;
        managed.tensor.dtype = bad[i].dtype;
        managed.tensor.axes = bad[i].axes;
        managed.tensor.byte_offset = bad[i].offset;
        shape[0] = bad[i].size, stride[0] = bad[i].stride;
        assert_null(tn_from_dlpack(cx, &managed));
        tn_test_error(cx, bad[i].status, bad[i].words);
        assert_int_equal(n_deleted, 0);
    }
    tn_dl_managed managed = make_managed();
    managed.tensor.data = NULL;
    assert_null(tn_from_dlpack(cx, &managed));
    tn_test_error(cx, TN_ERR_ARGUMENT, "NULL where 12 elements");
    assert_null(tn_from_dlpack(cx, NULL));
    tn_test_ok(cx);
}

static void without_host_memory(void **state) {
    (void)state;
    want_host();
    tn_tensor *t = NULL;
    tn_dl_managed managed = make_managed();
    for (int64_t n = 1; !t; n++) {
        tn_host_fail_after(n, n % 2);
        t = tn_from_dlpack(cx, &managed);
        tn_host_fail_after(0, false);
        if (!t) tn_test_error(cx, TN_ERR_HOST_MEMORY, NULL);
        if (!t) assert_true(n_deleted == 0 && foreign_bytes() == 0);
    }
    tn_release(t);
}

/* ---- ours to others ---- */

static void exports(void **state) {
    (void)state;
    tn_scope *scope = tn_scope_begin(cx);
    tn_tensor *t = tn_arange(cx, TN_I32, 12), *view = tn_alias(t, TN_SHAPE(3, 2), (int64_t[]){ 4, 2 }, 1);
    tn_dl_managed *managed = tn_to_dlpack(view);
    tn_dl_managed_versioned *second = tn_to_dlpack_versioned(t);
    tn_test_ok(cx);
    tn_scope_end(scope);
    bool cuda = strcmp(tn_device_name(cx), "cuda") == 0;
    assert_true(managed->tensor.axes == 2 && managed->tensor.shape[1] == 2 && managed->tensor.stride[0] == 4 &&
                managed->tensor.byte_offset == 0);
    assert_true(managed->tensor.device.type == (cuda ? TN_DL_CUDA : TN_DL_CPU) && managed->tensor.dtype.code == TN_DL_INT);
    assert_true(second->version.major == 1 && second->flags == 0 && second->tensor.dtype.bits == 32 && second->tensor.axes == 1);
    /* And back again: the same memory under a tensor of its own. */
    tn_tensor *back = tn_from_dlpack_versioned(cx, second);
    tn_fill(tn_from_dlpack(cx, managed), 50);
    tn_test_ok(cx);
    int32_t values[12];
    assert_true(tn_to_data(back, values, sizeof values));
    for (int i = 0; i < 12; i++) assert_int_equal(values[i], i % 2 ? 50 : i);
}

static void exports_of_every_dtype(void **state) {
    (void)state;
    for (int dtype = 0; dtype < TN_DTYPE_COUNT; dtype++) {
        tn_dl_managed *managed = tn_to_dlpack(tn_zeros(cx, (tn_dtype)dtype, TN_SHAPE(2)));
        tn_tensor *back = tn_from_dlpack(cx, managed);
        tn_test_ok(cx);
        assert_int_equal(back->dtype, dtype);
        tn_release(back);
    }
}

/* A consumer that keeps its tensor longer than the context lives can still call the deleter. */
static void context_goes_first(void **state) {
    (void)state;
    tn_context *other = tn_open(&(tn_options){ .device = tn_test_device() });
    tn_dl_managed *managed = tn_to_dlpack(tn_zeros(other, TN_F32, TN_SHAPE(3)));
    tn_close(other);
    managed->deleter(managed);
}

static void dry_run(void **state) {
    (void)state;
    tn_context *dry = tn_open(&(tn_options){ .device = "dry-run" });
    assert_null(tn_to_dlpack(tn_zeros(dry, TN_F32, TN_SHAPE(3))));
    tn_test_error(dry, TN_ERR_UNSUPPORTED, "dry run");
    tn_dl_managed managed = make_managed();
    assert_null(tn_from_dlpack(dry, &managed));
    tn_test_error(dry, TN_ERR_UNSUPPORTED, "dry run");
    tn_close(dry);
}

#define CASE(function) \
    { #function, function, set_up, tear_down, NULL }

static const struct CMUnitTest cases[] = {
    CASE(imports),
    CASE(through_the_tape),
    CASE(negative_and_missing_strides),
    CASE(versioned),
    CASE(refused),
    CASE(without_host_memory),
    CASE(exports),
    CASE(exports_of_every_dtype),
    CASE(context_goes_first),
    CASE(dry_run),
};

TN_TEST_MAIN("test_dlpack", cases)
