#include "sampling_internal.h"

#include <string.h>

#include "../../libtensor/parallel.h"
#include "../../libtensor/simd.h"
#include "../op_support.h"

#define TASK_SIZE 8192 /* elements for one turn of a thread at least */
#define PACK 32        /* neighbours that are looked over at once */

/* An element as an integer in whose order the largest comes first: the bits, turned so that integers compare as the floats do, with
 * NaN above all; with `largest` false the order is turned round. */
typedef struct candidate {
    int64_t key, place;
} candidate;

typedef struct topk {
    const tn_tensor *x;
    tn_tensor *values, *indices;
    tn_around around;
    int64_t k;
    bool largest;
    candidate *heaps; /* k for each thread */
} topk;

static inline int64_t key_of(double x, bool largest) {
    double sum = x + 0.0; /* makes -0 into 0 */
    int64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    int64_t key = x != x ? INT64_MAX : bits ^ ((bits >> 63) & INT64_MAX);
    return largest ? key : ~key;
}

static inline int64_t key_at(const topk *t, int64_t at) {
    const void *p = t->x->data;
    if (t->x->dtype == TN_F64) return key_of(((const double *)p)[at], t->largest);
    return key_of(t->x->dtype == TN_F32 ? (double)((const float *)p)[at] : (double)tn_bf16_to_f32(((const tn_bf16 *)p)[at]), t->largest);
}

/* ---- the k first of a line: a heap whose top is the last of them ---- */

/* Does a stand behind b? No two are equal, for they differ in their place. */
static inline bool behind(candidate a, candidate b) { return a.key < b.key || (a.key == b.key && a.place > b.place); }

static void sink(candidate *heap, int64_t n, int64_t at) {
    candidate moved = heap[at];
    for (int64_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && behind(heap[child + 1], heap[child])) child++;
        if (!behind(heap[child], moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/* Few elements of a long line get past the last of the heap. The first pack from i on that may hold one, else where the packs end. A NaN is
 * let through, to be looked at by its key. */
#define DEFINE_NEXT_PACK(name, type, wide, widen)                                                      \
    TN_SIMD_CLONES static int64_t name(const type *x, int64_t i, int64_t n, wide last, bool largest) { \
        for (; i + PACK <= n; i += PACK) {                                                             \
            int found = 0;                                                                             \
            if (largest)                                                                               \
                for (int j = 0; j < PACK; j++) found |= !((wide)widen(x[i + j]) <= last);              \
            else                                                                                       \
                for (int j = 0; j < PACK; j++) found |= !((wide)widen(x[i + j]) >= last);              \
            if (found) break;                                                                          \
        }                                                                                              \
        return i;                                                                                      \
    }
DEFINE_NEXT_PACK(next_pack_f64, double, double, )
DEFINE_NEXT_PACK(next_pack_f32, float, float, )
DEFINE_NEXT_PACK(next_pack_bf16, tn_bf16, float, tn_bf16_to_f32)

/* In the line that begins at `from`; the last of the heap stands at `last` in it. */
static int64_t next_pack(const topk *t, int64_t from, int64_t i, int64_t last) {
    int64_t n = t->around.axis;
    if (t->x->dtype == TN_F64) {
        const double *x = (const double *)t->x->data + from;
        return next_pack_f64(x, i, n, x[last], t->largest);
    }
    if (t->x->dtype == TN_F32) {
        const float *x = (const float *)t->x->data + from;
        return next_pack_f32(x, i, n, x[last], t->largest);
    }
    const tn_bf16 *x = (const tn_bf16 *)t->x->data + from;
    return next_pack_bf16(x, i, n, tn_bf16_to_f32(x[last]), t->largest);
}

static void first_of_line(const topk *t, candidate *heap, int64_t from) {
    int64_t k = t->k, stride = t->around.inner;
    for (int64_t i = 0; i < k; i++) heap[i] = (candidate){ key_at(t, from + i * stride), i };
    for (int64_t i = k / 2 - 1; i >= 0; i--) sink(heap, k, i);
    for (int64_t i = k; i < t->around.axis; i++) {
        if (stride == 1 && (i - k) % PACK == 0) i = next_pack(t, from, i, heap[0].place);
        if (i == t->around.axis) break;
        int64_t key = key_at(t, from + i * stride);
        /* An equal one stands behind those met before it. */
        if (key <= heap[0].key) continue;
        heap[0] = (candidate){ key, i };
        sink(heap, k, 0);
    }
    for (int64_t n = k - 1; n > 0; n--) {
        candidate last = heap[0];
        heap[0] = heap[n];
        heap[n] = last;
        sink(heap, n, 0);
    }
}

static void run_lines(void *user, int64_t begin, int64_t end) {
    const topk *t = user;
    candidate *heap = t->heaps + tn_parallel_index() * t->k;
    size_t size = tn_dtype_size(t->x->dtype);
    for (int64_t line = begin; line < end; line++) {
        int64_t outer = line / t->around.inner, inner = line % t->around.inner;
        int64_t from = outer * t->around.axis * t->around.inner + inner, to = outer * t->k * t->around.inner + inner;
        first_of_line(t, heap, from);
        for (int64_t i = 0; i < t->k; i++) {
            int64_t at = to + i * t->around.inner;
            memcpy((char *)t->values->data + (size_t)at * size,
                   (const char *)t->x->data + (size_t)(from + heap[i].place * t->around.inner) * size, size);
            ((int64_t *)t->indices->data)[at] = heap[i].place;
        }
    }
}

static void scatter_lines(void *user, int64_t begin, int64_t end) {
    const topk *t = user; /* x is dx here and values their gradient */
    size_t size = tn_dtype_size(t->x->dtype);
    for (int64_t line = begin; line < end; line++) {
        int64_t outer = line / t->around.inner, inner = line % t->around.inner;
        char *to = (char *)t->x->data + (size_t)(outer * t->around.axis * t->around.inner + inner) * size;
        for (int64_t i = 0; i < t->k; i++) {
            int64_t from = (outer * t->k + i) * t->around.inner + inner, place = ((const int64_t *)t->indices->data)[from];
            memcpy(to + (size_t)(place * t->around.inner) * size, (const char *)t->values->data + (size_t)from * size, size);
        }
    }
}

static void for_all_lines(const topk *t, tn_range_body body, int threads) {
    int64_t n_lines = t->around.outer * t->around.inner;
    if (t->k > 0)
        tn_parallel_for(n_lines, tn_even_grain(n_lines, TASK_SIZE / (t->around.axis + 1) + 1, 1, threads), body, (void *)t, threads);
}

size_t tn_topk_workspace(const tn_op_call *call, bool backward) {
    const tn_topk_args *args = call->args;
    return backward ? 0 : (size_t)args->k * (size_t)tn_threads(call->cx) * sizeof(candidate);
}

tn_status tn_topk_forward_cpu(tn_op_call *call) {
    const tn_topk_args *args = call->args;
    const tn_tensor *x = call->in[0];
    topk t = { .x = x, .values = call->out[0], .indices = call->out[1], .k = args->k, .largest = args->largest, .heaps = call->workspace };
    t.around = tn_around_axis(x->shape, x->axes, tn_axis_of(args->dim, x->axes));
    for_all_lines(&t, run_lines, call->threads);
    return TN_OK;
}

static void clear_part(void *user, int64_t begin, int64_t end) { memset((char *)user + begin, 0, (size_t)(end - begin)); }

tn_status tn_topk_backward_cpu(tn_op_call *call) {
    const tn_topk_args *args = call->args;
    const tn_tensor *dx = call->din[0];
    const int64_t clear_grain = 1 << 18;
    tn_parallel_for((int64_t)tn_bytes(dx), clear_grain, clear_part, dx->data, call->threads);
    if (!call->dout[0]) return TN_OK;
    topk t = { .x = dx, .values = call->dout[0], .indices = call->out[1], .k = args->k };
    t.around = tn_around_axis(dx->shape, dx->axes, tn_axis_of(args->dim, dx->axes));
    for_all_lines(&t, scatter_lines, call->threads);
    return TN_OK;
}
