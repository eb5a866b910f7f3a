/* What an op is: one description from which dispatch, the tape, tests, gradient checks, benchmarks and tenon-op follow.
 *
 * An op is a tn_op_def. tn_apply runs it: check() says whether the call is right and what comes out, the dispatcher
 * allocates, the kernel of the context's device computes, and, where a gradient is wanted, a node goes onto the tape.
 * An op from outside the library is registered with tn_op_register (ops/registry.h) and is treated like the library's own. */
#ifndef TENON_OP_H
#define TENON_OP_H

#include "../libtensor/device.h"
#include "../libtensor/memory.h"
#include "../libtensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TN_OP_MAX_INPUTS 16
#define TN_OP_MAX_OUTPUTS 4
#define TN_OP_MAX_AUX 4
#define TN_OP_MAX_ARGS_BYTES 256

#define TN_COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

typedef struct tn_op_def tn_op_def;
typedef struct tn_op_call tn_op_call;

/* ---- attributes: the args struct seen from outside ---- */

/* An int list in an args struct (LRPE's shape, a permutation, ...). */
typedef tn_shape tn_int_list;
/* TN_DIMS(0, -1): such a list by value. */
#define TN_DIMS(...) ((tn_int_list){ TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } })

typedef enum tn_attr_type {
    TN_ATTR_BOOL,     /* bool */
    TN_ATTR_INT,      /* int64_t */
    TN_ATTR_FLOAT,    /* double */
    TN_ATTR_ENUM,     /* int, one of `names` */
    TN_ATTR_INT_LIST, /* tn_int_list */
    TN_ATTR_DTYPE     /* tn_dtype */
} tn_attr_type;

typedef struct tn_attr_def {
    const char *name;
    tn_attr_type type;
    size_t offset;            /* in the args struct */
    const char *default_text; /* as in `tenon-op --set`; NULL: required */
    const char *const *names; /* TN_ATTR_ENUM: NULL-terminated, the index is the value */
    const char *doc;
} tn_attr_def;

#define TN_ATTR(args_type, field, attr_type, default_value, doc_text) \
    { .name = #field, .type = attr_type, .offset = offsetof(args_type, field), .default_text = default_value, .doc = doc_text }
#define TN_ATTR_OF(args_type, field, enum_names, default_value, doc_text)                                                               \
    {                                                                                                                                   \
        .name = #field, .type = TN_ATTR_ENUM, .offset = offsetof(args_type, field), .default_text = default_value, .names = enum_names, \
        .doc = doc_text                                                                                                                 \
    }

/* ---- inputs and outputs ---- */

#define TN_MASK(dtype) (1u << (dtype))
#define TN_FLOATS (TN_MASK(TN_F64) | TN_MASK(TN_F32) | TN_MASK(TN_BF16))
#define TN_INTS (TN_MASK(TN_I64) | TN_MASK(TN_I32) | TN_MASK(TN_U8))
#define TN_ANY_DTYPE (TN_FLOATS | TN_INTS | TN_MASK(TN_BOOL))

typedef enum tn_input_flags {
    TN_INPUT_OPTIONAL = 1,
    TN_INPUT_NO_GRADIENT = 2, /* indices, masks, lengths */
    TN_INPUT_STRIDED = 4,     /* the kernels follow strides; without it they are given dense copies where needed */
    TN_INPUT_VARIADIC = 8,    /* the last input, any number of times */
    TN_INPUT_WIDE = 16,       /* f32 for f32 and bf16 data, f64 for f64: theta, log_decay, state */
    TN_INPUT_ALIGNED = 32 /* kernels on CUDA are given 16-byte aligned data, copied where need be, so that a view gets the same kernel */
} tn_input_flags;

typedef struct tn_input_def {
    const char *name;
    unsigned flags;
    unsigned dtypes; /* TN_MASK bits; 0: the same dtype as the first input */
    const char *doc;
} tn_input_def;

typedef struct tn_output_def {
    const char *name;
    const char *doc;
} tn_output_def;

typedef struct tn_spec {
    tn_dtype dtype;
    tn_shape shape;
} tn_spec;

/* ---- one call of an op, as check(), the kernels and the formulas see it ---- */

struct tn_op_call {
    const tn_op_def *op;
    tn_context *cx;
    const void *args;
    int n_in, n_out, n_aux;
    uint32_t wants; /* bit i: input i wants a gradient */

    tn_tensor *in[TN_OP_MAX_INPUTS];   /* NULL where optional and absent */
    tn_tensor *out[TN_OP_MAX_OUTPUTS]; /* backward: only those saved */
    tn_tensor *aux[TN_OP_MAX_AUX];     /* statistics made for backward; forward: NULL unless `wants` */

    /* backward only */
    const tn_spec *in_spec;             /* dtype and shape of every input, saved or not */
    tn_tensor *dout[TN_OP_MAX_OUTPUTS]; /* NULL: no gradient reached this output (never so for a single output) */
    tn_tensor *din[TN_OP_MAX_INPUTS];   /* written (not added to), NULL where not wanted; dense, the input's shape and dtype */
    uint32_t transposed;                /* bit i: input i lay with its last two axes swapped in memory, and with
                                           TN_OP_TRANSPOSED_DIN so does din[i] */

    void *workspace; /* workspace() bytes, undefined contents */
    size_t workspace_bytes;
    tn_device *device;
    void *stream; /* native stream */
    int threads;

    /* ---- what check() fills in ---- */
    tn_spec out_spec[TN_OP_MAX_OUTPUTS]; /* for n_out outputs (preset to the op's number of outputs) */
    tn_spec aux_spec[TN_OP_MAX_AUX];     /* for n_aux tensors (preset to 0); allocated only where backward will run */
    uint32_t save_in, save_out;          /* bits: what backward reads; look at `wants` to save no more than needed */
};

/* Refuses the call, from check(): records op, place, the shapes and dtypes it got and what it wanted. Returns false. */
TN_API bool tn_refuse_at(tn_op_call *call, tn_status status, const char *file, int line, const char *format, ...) TN_PRINTF(5, 6);
#define tn_refuse(call, status, ...) tn_refuse_at((call), (status), __FILE__, __LINE__, __VA_ARGS__)
/* Return `TN_CHECK(condition, call, status, "wanted ...")`-style early from check(). */
#define TN_WANT(condition, call, status, ...)                              \
    do {                                                                   \
        if (!(condition)) return tn_refuse((call), (status), __VA_ARGS__); \
    } while (0)

typedef tn_status (*tn_kernel)(tn_op_call *call);

/* ---- samples: inputs that tests, gradient checks and benchmarks build from ---- */

typedef enum tn_sample_fill {
    TN_FILL_NORMAL,   /* mean a, deviation b (0, 1 when both are 0) */
    TN_FILL_UNIFORM,  /* in [a, b) */
    TN_FILL_INTEGER,  /* in [a, b) */
    TN_FILL_CONSTANT, /* a */
    TN_FILL_LIST      /* values[], cycled */
} tn_sample_fill;

typedef struct tn_sample_input {
    bool present; /* false: the optional input is left out */
    tn_shape shape;
    tn_sample_fill fill;
    double a, b;
    const double *values;
    int n_values;
    bool other_dtype; /* use `dtype` instead of the dtype the sample runs in */
    tn_dtype dtype;
} tn_sample_input;

#define TN_SAMPLE_SHAPE(...)                                                      \
    {                                                                             \
        .present = true, .shape = { TN_COUNT_ARGS(__VA_ARGS__), { __VA_ARGS__ } } \
    }

typedef struct tn_sample {
    const char *name;                     /* unique within the op: "bhnd-l5" */
    tn_sample_input in[TN_OP_MAX_INPUTS]; /* variadic ops: the inputs present, in order */
    const char *attrs;                    /* as JSON: "{\"act\": \"silu\"}"; NULL: the defaults */
    tn_status error;                      /* TN_OK, or what this call must fail with */
    const char *message;                  /* words the error must contain */
    bool in_data;                         /* the error lies in the tensors' values: a device that does not wait for the host
                                                  can't report it, and must only do no harm */
    unsigned dtypes;                      /* TN_MASK of the data dtypes it runs in; 0: all the op takes */
    bool no_gradcheck;                    /* kinks at the sample's points: compare with the formula only */
} tn_sample;

/* ---- the description ---- */

typedef enum tn_op_flags {
    TN_OP_VIEW = 1, /* outputs share the input's storage: view() makes them, no kernel runs */
    TN_OP_NOT_DIFFERENTIABLE = 2,
    TN_OP_STRIDED_DOUT = 4,    /* backward follows dout's strides; without it dout is dense */
    TN_OP_RANDOM = 8,          /* draws from the context's random stream */
    TN_OP_THREADS_MATTER = 16, /* another number of CPU threads may round otherwise: sums that go through BLAS */
    TN_OP_TRANSPOSED_DIN = 32  /* backward follows din's strides: the gradient of a transposed matrix is made as that matrix lies */
} tn_op_flags;

struct tn_op_def {
    const char *name, *doc, *family;
    unsigned flags;
    int n_inputs, n_outputs, n_attrs;
    const tn_input_def *inputs;
    const tn_output_def *outputs;
    const tn_attr_def *attrs;
    size_t args_bytes;
    const tn_sample *samples; /* ends with one without a name */
    const void *own;          /* for the op's own functions, e.g. where one function serves several ops */

    /* The one place that says what is supported: validates, and fills out_spec, aux_spec, save_in and save_out. */
    bool (*check)(tn_op_call *call);

    /* Kernels per device; NULL where the device has none. The dtype masks say for which dtype of the first input. */
    tn_kernel forward[TN_DEVICE_KIND_COUNT], backward[TN_DEVICE_KIND_COUNT];
    unsigned forward_dtypes[TN_DEVICE_KIND_COUNT], backward_dtypes[TN_DEVICE_KIND_COUNT];
    /* Scratch bytes of a pass; NULL: none. */
    size_t (*workspace[TN_DEVICE_KIND_COUNT])(const tn_op_call *call, bool backward);

    /* TN_OP_VIEW: makes call->out[0] from call->in[0], e.g. with tn_alias. */
    bool (*view)(tn_op_call *call);
    /* Instead of a kernel: fills din[] with tensors made by other calls (or dout itself), each with a tn_retain that passes to the tape. */
    bool (*backward_tensors)(tn_op_call *call);
    /* Is dout[0], as it is, the gradient of this input? Then it is handed on and no kernel is asked for it; NULL: never. */
    bool (*passes_gradient)(const tn_op_call *call, int input);

    /* Formulas, from the call after check(): bytes the tape holds for this call, and bytes a pass must move at least. */
    int64_t (*saved_bytes)(const tn_op_call *call);
    int64_t (*floor_bytes)(const tn_op_call *call, bool backward);
};

/* Runs an op. `in` holds n_in tensors (NULL for an absent optional input), args the op's args struct; out[0..n_outputs) receives the
 * outputs, which belong to the innermost scope. Returns out[0], or NULL with every out NULL. */
TN_API tn_tensor *tn_apply(const tn_op_def *op, tn_tensor *const *in, int n_in, const void *args, tn_tensor **out);

/* What tn_apply would do, without doing it: fills `call` as far as check() does, for the formulas. `args` must outlive it. */
TN_API bool tn_op_plan(const tn_op_def *op, tn_tensor *const *in, int n_in, const void *args, tn_op_call *call);

#ifdef __cplusplus
}
#endif
#endif
