/* Running sums, in f64 along the axis whatever the float dtype; integers modulo 2^64. */
#include "reduce_internal.h"

#include "../../libtensor/parallel.h"
#include "../op_support.h"

#define PANEL 256 /* lines summed side by side where they are neighbours */
#define ROWS 8    /* lines summed side by side where each is a row */

typedef struct cumsum {
    const tn_tensor *in;
    tn_tensor *out;
    tn_around around;
    int64_t n_panels; /* of neighbouring lines, or of rows */
    bool reverse, exclusive;
} cumsum;

/* n lines, the first starting at element `first`, whose starts are `apart`. */
#define CUMSUM_LINES(name, in_type, out_type, sum_type, widen, narrow)                              \
    TN_INLINE void some_lines_##name(const cumsum *c, int64_t first, int64_t n, int64_t apart) {    \
        sum_type sum[PANEL];                                                                        \
        int64_t step = c->reverse ? -c->around.inner : c->around.inner;                             \
        int64_t begin = first + (c->reverse ? (c->around.axis - 1) * c->around.inner : 0);          \
        const in_type *x = (const in_type *)c->in->data + begin;                                    \
        out_type *o = (out_type *)c->out->data + begin;                                             \
        for (int64_t i = 0; i < n; i++) sum[i] = 0;                                                 \
        for (int64_t l = 0; l < c->around.axis; l++) {                                              \
            for (int64_t i = 0; i < n; i++) {                                                       \
                sum_type next = sum[i] + widen(x[l * step + i * apart]);                            \
                o[l * step + i * apart] = narrow(c->exclusive ? sum[i] : next);                     \
                sum[i] = next;                                                                      \
            }                                                                                       \
        }                                                                                           \
    }                                                                                               \
    TN_SIMD_CLONES static void lines_##name(const cumsum *c, int64_t first, int64_t n) {            \
        if (c->around.inner > 1) some_lines_##name(c, first, n, 1);                                 \
        else if (n == ROWS) some_lines_##name(c, first, ROWS, c->around.axis);                      \
        else                                                                                        \
            for (int64_t i = 0; i < n; i++) some_lines_##name(c, first + i * c->around.axis, 1, 1); \
    }

#define TO_F64(x) ((double)(x))
#define BF16_TO_F64(x) ((double)tn_bf16_to_f32(x))
#define F64_TO_BF16(x) tn_f32_to_bf16((float)(x))
#define TO_F32(x) ((float)(x))
#define TO_U64(x) ((uint64_t)(int64_t)(x))
#define TO_I64(x) ((int64_t)(x))
#define TRUTH(x) ((x) ? UINT64_C(1) : UINT64_C(0))

CUMSUM_LINES(f64, double, double, double, TO_F64, TO_F64)
CUMSUM_LINES(f32, float, float, double, TO_F64, TO_F32)
CUMSUM_LINES(bf16, tn_bf16, tn_bf16, double, BF16_TO_F64, F64_TO_BF16)
CUMSUM_LINES(i64, int64_t, int64_t, uint64_t, TO_U64, TO_I64)
CUMSUM_LINES(i32, int32_t, int64_t, uint64_t, TO_U64, TO_I64)
CUMSUM_LINES(u8, uint8_t, int64_t, uint64_t, TO_U64, TO_I64)
CUMSUM_LINES(bool, uint8_t, int64_t, uint64_t, TRUTH, TO_I64)

static void lines(const cumsum *c, int64_t first, int64_t n) {
    switch (c->in->dtype) {
    case TN_F64: lines_f64(c, first, n); break;
    case TN_F32: lines_f32(c, first, n); break;
    case TN_BF16: lines_bf16(c, first, n); break;
    case TN_I64: lines_i64(c, first, n); break;
    case TN_I32: lines_i32(c, first, n); break;
    case TN_U8: lines_u8(c, first, n); break;
    case TN_BOOL: lines_bool(c, first, n); break;
    case TN_DTYPE_COUNT: break;
    }
}

static void run_panels(void *user, int64_t begin, int64_t end) {
    const cumsum *c = user;
    int64_t axis = c->around.axis, inner = c->around.inner;
    for (int64_t i = begin; i < end; i++) {
        if (inner == 1) {
            int64_t rest = c->around.outer - i * ROWS;
            lines(c, i * ROWS * axis, rest < ROWS ? rest : ROWS);
        } else {
            int64_t at = i % c->n_panels * PANEL, rest = inner - at;
            lines(c, i / c->n_panels * axis * inner + at, rest < PANEL ? rest : PANEL);
        }
    }
}

static tn_status run_cumsum(const tn_op_call *call, const tn_tensor *in, tn_tensor *out, bool reverse) {
    const tn_cumsum_args *args = call->args;
    const int64_t task = 1 << 14;
    cumsum c = { .in = in, .out = out, .reverse = reverse, .exclusive = args->exclusive };
    if (in->numel == 0) return TN_OK;
    c.around = tn_around_axis(in->shape, in->axes, tn_axis_of(args->dim, in->axes));
    c.n_panels = c.around.inner == 1 ? tn_chunk_count(c.around.outer, ROWS) : tn_chunk_count(c.around.inner, PANEL);
    int64_t n = c.around.inner == 1 ? c.n_panels : c.around.outer * c.n_panels;
    tn_parallel_for(n, tn_even_grain(n, task / (in->numel / n + 1) + 1, 1, call->threads), run_panels, &c, call->threads);
    return TN_OK;
}

tn_status tn_cumsum_forward_cpu(tn_op_call *call) {
    return run_cumsum(call, call->in[0], call->out[0], ((const tn_cumsum_args *)call->args)->reverse);
}

/* dx_i is the sum of do over the outputs that x_i went into: the same sum from the other end. */
tn_status tn_cumsum_backward_cpu(tn_op_call *call) {
    return run_cumsum(call, call->dout[0], call->din[0], !((const tn_cumsum_args *)call->args)->reverse);
}
