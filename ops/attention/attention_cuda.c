/* attention and tpa_attention on CUDA: which kernels a call is. */
#include "../../libtensor/gemm_cuda.h"
#include "attention_decode.h"
#include "attention_decode_kv.h"
#include "attention_fused.h"
#include "attention_plain.h"

#define ALIGNMENT 512

typedef enum tn_at_way { WAY_PLAIN, WAY_FUSED, WAY_DECODE, WAY_DECODE_KV, WAY_COMPOSED } tn_at_way;

/* What lies behind a sequence's keys may be NaN, which a GEMM over all of m would take in. */
static tn_at_way way_of(const tn_op_call *call, const tn_at_problem *p, bool backward) {
    if (call->device->cuda_path == TN_CUDA_PLAIN || p->algo == TN_TPA_NAIVE) return WAY_PLAIN;
    if (!backward && tn_at_decode_kv_fits(p, call->device)) return WAY_DECODE_KV;
    if (backward || p->n != 1 || !p->k.rank) return tn_at_fused_fits(p, call->device, backward) ? WAY_FUSED : WAY_PLAIN;
    if (p->algo == TN_TPA_COMPOSED) return p->seqlens || p->cu_seqlens || p->m == 0 ? WAY_PLAIN : WAY_COMPOSED;
    return tn_at_decode_fits(p, call->device) ? WAY_DECODE : WAY_PLAIN;
}

/* ---- composed: q, t and the weights in the workspace, and what the GEMMs like to have ---- */

typedef struct composed_room {
    size_t q, t, weights, gemm, all; /* where each begins */
} composed_room;

static size_t aligned(int64_t bytes) { return ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static composed_room room_of(const tn_at_problem *p) {
    int64_t size = (int64_t)tn_dtype_size(p->dtype), wide = (int64_t)tn_dtype_size(p->wide), heads = p->b * p->h;
    size_t first = tn_gemm_cuda_workspace_bytes(p->b, p->h, p->m * p->k.rank), second = tn_gemm_cuda_workspace_bytes(p->b, p->h, p->e);
    composed_room r = { .q = 0 };
    r.t = r.q + aligned(heads * p->d * size);
    r.weights = r.t + aligned(heads * p->m * p->k.rank * wide);
    r.gemm = r.weights + aligned(heads * p->m * p->v.rank * size);
    r.all = r.gemm + (first > second ? first : second);
    return r;
}

static tn_status composed_forward(tn_op_call *call, const tn_at_problem *p) {
    composed_room r = room_of(p);
    char *base = call->workspace;
    int64_t by_k = p->m * p->k.rank, by_v = p->m * p->v.rank;
    tn_gemm_cuda_product scores = { .dtype = p->dtype,
                                    .c_dtype = p->wide,
                                    .transpose_b = true,
                                    .m = p->h,
                                    .n = by_k,
                                    .k = p->d,
                                    .lda = p->d,
                                    .ldb = p->d,
                                    .ldc = by_k,
                                    .n_batch = p->b,
                                    .batch_a = p->h * p->d,
                                    .batch_b = by_k * p->d,
                                    .batch_c = p->h * by_k,
                                    .a = base + r.q,
                                    .b = p->k.x,
                                    .c = base + r.t,
                                    .alpha = 1 };
    tn_gemm_cuda_product values = { .dtype = p->dtype,
                                    .c_dtype = p->dtype,
                                    .m = p->h,
                                    .n = p->e,
                                    .k = by_v,
                                    .lda = by_v,
                                    .ldb = p->e,
                                    .ldc = p->e,
                                    .n_batch = p->b,
                                    .batch_a = p->h * by_v,
                                    .batch_b = by_v * p->e,
                                    .batch_c = p->h * p->e,
                                    .a = base + r.weights,
                                    .b = p->v.x,
                                    .c = p->o,
                                    .alpha = 1 };
    if (p->b == 0) return TN_OK;
    tn_status status = tn_cuda_said(call->device, tn_at_composed_query(p, base + r.q, call->stream), "tpa_attention composed");
    if (status == TN_OK) status = tn_gemm_cuda(call->device, &scores, base + r.gemm, r.all - r.gemm, call->stream);
    if (status == TN_OK)
        status = tn_cuda_said(call->device, tn_at_composed_soften(p, base + r.t, base + r.weights, call->stream), "tpa_attention composed");
    if (status == TN_OK) status = tn_gemm_cuda(call->device, &values, base + r.gemm, r.all - r.gemm, call->stream);
    return status;
}

/* ---- the op ---- */

size_t tn_attention_workspace_cuda(const tn_op_call *call, bool backward) {
    tn_at_problem problem;
    tn_at_problem_of(call, backward, &problem);
    switch (way_of(call, &problem, backward)) {
    case WAY_FUSED: return tn_at_fused_workspace(&problem, call->device, backward);
    case WAY_DECODE: return tn_at_decode_workspace(&problem, call->device);
    case WAY_DECODE_KV: return tn_at_decode_kv_workspace(&problem, call->device);
    case WAY_COMPOSED: return room_of(&problem).all;
    default: return tn_at_plain_workspace(&problem, backward);
    }
}

tn_status tn_attention_forward_cuda(tn_op_call *call) {
    tn_at_problem problem;
    tn_at_problem_of(call, false, &problem);
    int error = 0;
    switch (way_of(call, &problem, false)) {
    case WAY_FUSED: error = tn_at_fused_forward(&problem, call->device, call->workspace, call->stream); break;
    case WAY_DECODE: error = tn_at_decode_forward(&problem, call->device, call->workspace, call->stream); break;
    case WAY_DECODE_KV: error = tn_at_decode_kv_forward(&problem, call->device, call->workspace, call->stream); break;
    case WAY_COMPOSED: return composed_forward(call, &problem);
    default: error = tn_at_plain_forward(&problem, call->workspace, call->stream); break;
    }
    return tn_cuda_said(call->device, error, "attention forward");
}

tn_status tn_attention_backward_cuda(tn_op_call *call) {
    tn_at_problem problem;
    tn_at_problem_of(call, true, &problem);
    int error = way_of(call, &problem, true) == WAY_FUSED ? tn_at_fused_backward(&problem, call->device, call->workspace, call->stream)
                                                          : tn_at_plain_backward(&problem, call->workspace, call->stream);
    return tn_cuda_said(call->device, error, "attention backward");
}
