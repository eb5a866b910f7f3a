#include "view_internal.h"

#define SCALAR              \
    {                       \
        { .present = true } \
    }
#define BAD(word) .error = TN_ERR_ARGUMENT, .message = word
#define MISFIT(word) .error = TN_ERR_SHAPE, .message = word

const tn_sample tn_reshape_samples[] = {
    { .name = "split", .in = { TN_SAMPLE_SHAPE(3, 10) }, .attrs = "{\"shape\": [3, 5, 2]}" },
    { .name = "join", .in = { TN_SAMPLE_SHAPE(3, 5, 2) }, .attrs = "{\"shape\": [15, 2]}" },
    { .name = "flat", .in = { TN_SAMPLE_SHAPE(2, 3, 7) }, .attrs = "{\"shape\": [-1]}" },
    { .name = "recut", .in = { TN_SAMPLE_SHAPE(4, 6) }, .attrs = "{\"shape\": [3, 8]}" },
    { .name = "inferred", .in = { TN_SAMPLE_SHAPE(2, 9, 12) }, .attrs = "{\"shape\": [2, 9, -1, 4]}" },
    { .name = "ones", .in = { TN_SAMPLE_SHAPE(1, 5, 1, 3) }, .attrs = "{\"shape\": [5, 1, 1, 3, 1]}" },
    { .name = "same", .in = { TN_SAMPLE_SHAPE(5, 3) }, .attrs = "{\"shape\": [5, 3]}" },
    { .name = "to-scalar", .in = { TN_SAMPLE_SHAPE(1, 1) }, .attrs = "{\"shape\": []}" },
    { .name = "from-scalar", .in = SCALAR, .attrs = "{\"shape\": [1, 1]}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(3, 0) }, .attrs = "{\"shape\": [0, 7]}" },
    { .name = "eight-axes", .in = { TN_SAMPLE_SHAPE(6) }, .attrs = "{\"shape\": [1, 2, 1, 3, 1, 1, 1, 1]}" },
    { .name = "too-few", .in = { TN_SAMPLE_SHAPE(3, 4) }, .attrs = "{\"shape\": [5, 2]}", MISFIT("wanted 12") },
    { .name = "not-divisible", .in = { TN_SAMPLE_SHAPE(3, 4) }, .attrs = "{\"shape\": [5, -1]}", MISFIT("do not fill") },
    { .name = "nothing-left", .in = { TN_SAMPLE_SHAPE(3, 0) }, .attrs = "{\"shape\": [0, -1]}", MISFIT("do not fill") },
    { .name = "two-open", .in = { TN_SAMPLE_SHAPE(3, 4) }, .attrs = "{\"shape\": [-1, -1]}", BAD("more than one") },
    { .name = "negative", .in = { TN_SAMPLE_SHAPE(3, 4) }, .attrs = "{\"shape\": [3, -4]}", BAD("size -4") },
    { .name = "overflow", .in = { TN_SAMPLE_SHAPE(3, 4) }, .attrs = "{\"shape\": [4611686018427387904, 4]}", MISFIT("too many") },
    { .name = NULL },
};

const tn_sample tn_permute_samples[] = {
    { .name = "transpose", .in = { TN_SAMPLE_SHAPE(3, 5) }, .attrs = "{\"dims\": [1, 0]}" },
    { .name = "heads", .in = { TN_SAMPLE_SHAPE(2, 7, 3, 4) }, .attrs = "{\"dims\": [0, 2, 1, 3]}" },
    { .name = "cycle", .in = { TN_SAMPLE_SHAPE(2, 3, 5) }, .attrs = "{\"dims\": [2, 0, 1]}" },
    { .name = "negative", .in = { TN_SAMPLE_SHAPE(2, 3, 5) }, .attrs = "{\"dims\": [-1, 0, -2]}" },
    { .name = "same", .in = { TN_SAMPLE_SHAPE(2, 3) }, .attrs = "{\"dims\": [0, 1]}" },
    { .name = "one-axis", .in = { TN_SAMPLE_SHAPE(17) }, .attrs = "{\"dims\": [0]}" },
    { .name = "scalar", .in = SCALAR, .attrs = "{\"dims\": []}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(2, 0, 3) }, .attrs = "{\"dims\": [1, 2, 0]}" },
    { .name = "too-few", .in = { TN_SAMPLE_SHAPE(2, 3) }, .attrs = "{\"dims\": [0]}", BAD("each of the 2 axes once") },
    { .name = "twice", .in = { TN_SAMPLE_SHAPE(2, 3) }, .attrs = "{\"dims\": [1, -1]}", BAD("axis 1 twice") },
    { .name = "beyond", .in = { TN_SAMPLE_SHAPE(2, 3) }, .attrs = "{\"dims\": [0, 2]}", BAD("axis 2") },
    { .name = NULL },
};

const tn_sample tn_slice_samples[] = {
    { .name = "first", .in = { TN_SAMPLE_SHAPE(7, 3) }, .attrs = "{\"end\": 4}" },
    { .name = "middle", .in = { TN_SAMPLE_SHAPE(3, 17, 2) }, .attrs = "{\"dim\": 1, \"start\": 5, \"end\": 11}" },
    { .name = "last", .in = { TN_SAMPLE_SHAPE(3, 7) }, .attrs = "{\"dim\": -1, \"start\": -3}" },
    { .name = "negative-end", .in = { TN_SAMPLE_SHAPE(3, 7) }, .attrs = "{\"dim\": 1, \"start\": 1, \"end\": -1}" },
    { .name = "step", .in = { TN_SAMPLE_SHAPE(3, 17) }, .attrs = "{\"dim\": 1, \"start\": 2, \"end\": 16, \"step\": 3}" },
    { .name = "step-first", .in = { TN_SAMPLE_SHAPE(7, 3) }, .attrs = "{\"dim\": 0, \"step\": 2}" },
    { .name = "step-over-end", .in = { TN_SAMPLE_SHAPE(5) }, .attrs = "{\"start\": 1, \"step\": 100}" },
    { .name = "cut-off", .in = { TN_SAMPLE_SHAPE(5, 2) }, .attrs = "{\"start\": -100, \"end\": 100}" },
    { .name = "one", .in = { TN_SAMPLE_SHAPE(5, 3) }, .attrs = "{\"dim\": 1, \"start\": 2}" },
    { .name = "none", .in = { TN_SAMPLE_SHAPE(5, 3) }, .attrs = "{\"dim\": 1, \"start\": 3}" },
    { .name = "backwards", .in = { TN_SAMPLE_SHAPE(5) }, .attrs = "{\"start\": 4, \"end\": 2}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(0, 3) }, .attrs = "{\"end\": 2}" },
    { .name = "bad-dim", .in = { TN_SAMPLE_SHAPE(5, 3) }, .attrs = "{\"dim\": 2}", BAD("dim 2") },
    { .name = "bad-step", .in = { TN_SAMPLE_SHAPE(5, 3) }, .attrs = "{\"step\": 0}", BAD("step 0") },
    { .name = "negative-step", .in = { TN_SAMPLE_SHAPE(5, 3) }, .attrs = "{\"step\": -1}", BAD("step -1") },
    { .name = "scalar", .in = SCALAR, BAD("axis") },
    { .name = NULL },
};

const tn_sample tn_expand_samples[] = {
    { .name = "last", .in = { TN_SAMPLE_SHAPE(3, 1) }, .attrs = "{\"shape\": [3, 7]}" },
    { .name = "first", .in = { TN_SAMPLE_SHAPE(1, 5) }, .attrs = "{\"shape\": [17, 5]}" },
    { .name = "new-axes", .in = { TN_SAMPLE_SHAPE(3) }, .attrs = "{\"shape\": [2, 5, 3]}" },
    { .name = "kept", .in = { TN_SAMPLE_SHAPE(2, 1, 3, 1) }, .attrs = "{\"shape\": [-1, 4, -1, 5]}" },
    { .name = "same", .in = { TN_SAMPLE_SHAPE(3, 5) }, .attrs = "{\"shape\": [3, 5]}" },
    { .name = "scalar", .in = SCALAR, .attrs = "{\"shape\": [3, 2]}" },
    { .name = "to-nothing", .in = { TN_SAMPLE_SHAPE(1, 3) }, .attrs = "{\"shape\": [0, 3]}" },
    { .name = "misfit", .in = { TN_SAMPLE_SHAPE(3, 2) }, .attrs = "{\"shape\": [3, 4]}", MISFIT("can't become 4") },
    { .name = "too-few-axes", .in = { TN_SAMPLE_SHAPE(3, 1) }, .attrs = "{\"shape\": [3]}", BAD("1 axes") },
    { .name = "open-new-axis", .in = { TN_SAMPLE_SHAPE(3) }, .attrs = "{\"shape\": [-1, 3]}", BAD("size -1 of axis 0") },
    { .name = "overflow", .in = { TN_SAMPLE_SHAPE(1, 1) }, .attrs = "{\"shape\": [4611686018427387904, 4]}", MISFIT("too many") },
    { .name = NULL },
};

const tn_sample tn_contiguous_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(3, 5, 7) } },
    { .name = "one", .in = { TN_SAMPLE_SHAPE(1) } },
    { .name = "scalar", .in = SCALAR },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(3, 0) } },
    { .name = "attributes", .in = { TN_SAMPLE_SHAPE(3) }, .attrs = "{\"dim\": 1}", BAD("no attribute 'dim'") },
    { .name = NULL },
};

const tn_sample tn_copy_samples[] = {
    { .name = "plain", .in = { TN_SAMPLE_SHAPE(3, 5, 7) } },
    { .name = "one", .in = { TN_SAMPLE_SHAPE(1) } },
    { .name = "scalar", .in = SCALAR },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(3, 0) } },
    { .name = "attributes", .in = { TN_SAMPLE_SHAPE(3) }, .attrs = "{\"dim\": 1}", BAD("no attribute 'dim'") },
    { .name = NULL },
};

const tn_sample tn_cast_samples[] = {
    { .name = "f64", .in = { TN_SAMPLE_SHAPE(3, 7) }, .attrs = "{\"dtype\": \"f64\"}" },
    { .name = "f32", .in = { TN_SAMPLE_SHAPE(3, 7) }, .attrs = "{\"dtype\": \"f32\"}" },
    { .name = "bf16", .in = { TN_SAMPLE_SHAPE(3, 7) }, .attrs = "{\"dtype\": \"bf16\"}" },
    { .name = "i64",
      .in = { { .present = true, .shape = { 2, { 3, 7 } }, .fill = TN_FILL_INTEGER, .b = 100 } },
      .attrs = "{\"dtype\": \"i64\"}" },
    { .name = "i32",
      .in = { { .present = true, .shape = { 2, { 3, 7 } }, .fill = TN_FILL_INTEGER, .b = 100 } },
      .attrs = "{\"dtype\": \"i32\"}" },
    { .name = "u8",
      .in = { { .present = true, .shape = { 2, { 3, 7 } }, .fill = TN_FILL_INTEGER, .b = 100 } },
      .attrs = "{\"dtype\": \"u8\"}" },
    { .name = "bool",
      .in = { { .present = true, .shape = { 2, { 3, 7 } }, .fill = TN_FILL_INTEGER, .b = 3 } },
      .attrs = "{\"dtype\": \"bool\"}" },
    { .name = "scalar", .in = SCALAR, .attrs = "{\"dtype\": \"f64\"}" },
    { .name = "empty", .in = { TN_SAMPLE_SHAPE(0, 3) }, .attrs = "{\"dtype\": \"f64\"}" },
    { .name = "no-dtype", .in = { TN_SAMPLE_SHAPE(3) }, .attrs = "{\"dtype\": \"f16\"}", BAD("f16") },
    { .name = "missing-dtype", .in = { TN_SAMPLE_SHAPE(3) }, BAD("dtype") },
    { .name = NULL },
};

const tn_sample tn_concat_samples[] = {
    { .name = "first", .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(2, 5) } },
    { .name = "last", .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(3, 1), TN_SAMPLE_SHAPE(3, 7) }, .attrs = "{\"dim\": -1}" },
    { .name = "middle", .in = { TN_SAMPLE_SHAPE(2, 3, 4), TN_SAMPLE_SHAPE(2, 17, 4) }, .attrs = "{\"dim\": 1}" },
    { .name = "single", .in = { TN_SAMPLE_SHAPE(3, 5) }, .attrs = "{\"dim\": 1}" },
    { .name = "with-empty", .in = { TN_SAMPLE_SHAPE(0, 3), TN_SAMPLE_SHAPE(2, 3), TN_SAMPLE_SHAPE(0, 3) } },
    { .name = "all-empty", .in = { TN_SAMPLE_SHAPE(2, 0), TN_SAMPLE_SHAPE(2, 0) }, .attrs = "{\"dim\": 1}" },
    { .name = "misfit", .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(2, 4) }, MISFIT("input 1 does not fit") },
    { .name = "axes-misfit", .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(3) }, MISFIT("input 1 does not fit") },
    { .name = "bad-dim", .in = { TN_SAMPLE_SHAPE(3, 5), TN_SAMPLE_SHAPE(3, 5) }, .attrs = "{\"dim\": 2}", BAD("dim 2") },
    { .name = "scalars", .in = { { .present = true }, { .present = true } }, BAD("axis") },
    { .name = "dtypes",
      .in = { TN_SAMPLE_SHAPE(3), { .present = true, .shape = { 1, { 3 } }, .other_dtype = true, .dtype = TN_I32 } },
      .dtypes = TN_FLOATS,
      .error = TN_ERR_DTYPE,
      .message = "input 1 is i32" },
    { .name = NULL },
};
