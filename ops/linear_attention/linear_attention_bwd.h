/* What the parts of the CUDA backward of non-causal linear attention know of each other. */
#ifndef TENON_LINEAR_ATTENTION_BWD_H
#define TENON_LINEAR_ATTENTION_BWD_H

#include "linear_attention_internal.h"

#include <cuda_runtime.h>

/* linear_attention_bwd_plain.cu: any dtype, width and alignment. */
size_t tn_la_backward_plain_workspace(const tn_la_problem *problem);
void tn_la_backward_plain(const tn_la_problem *problem, void *workspace, void *stream);

/* The passes over tiles of 64 tokens, for bf16. */

/* The tiles of all slices in a row are dealt out in even, contiguous ranges; block x has first(x) .. first(x + 1) - 1 and is never without
 * one. A piece is what a block has of one slice; it leaves what it sums at place block + slice, which no other piece has. */
typedef struct tn_bwd_deal {
    uint32_t tiles, all, blocks, heads; /* tiles of a slice, of all, blocks that have some, heads of a batch */
} tn_bwd_deal;

enum { TN_BWD_TOKENS = 64 };

typedef struct tn_bwd_pass {
    tn_bwd_deal deal;
    tn_la_operand x, z; /* q and g, or k and v */
    const void *d_o;    /* first pass */
    tn_la_strides o_stride;
    void *dx, *dz;      /* gradients of x and z, NULL where not wanted */
    const float *state; /* S, or dS: [slices][d'][e] */
    const float *theta;
    const float *off;   /* softmax over the sequence: the sum of p dp, [slices][padded width]; NULL: not known yet */
    tn_bwd_deal dealt;  /* second pass: how the first was dealt, where state_parts are given in place of dS */
    float *state_parts; /* first pass: dS by pieces, [d' padded][e padded], NULL: not wanted */
    int what;           /* what a head's tokens are summed up for: TN_BWD_*SUMS* */
    float *sums;        /* by pieces [padded width] */
    float scale;
    bool follows; /* the stream's last kernel lets this one start early */
    int d, e;
    int how; /* which LRPE: TN_BWD_* */
    bool has_gate;
} tn_bwd_pass;

enum { TN_BWD_PLAIN, TN_BWD_ROTATE, TN_BWD_COSINE, TN_BWD_BROAD /* none, d above 128 */ };
enum { TN_BWD_NO_SUMS, TN_BWD_SUMS_THETA, TN_BWD_SUMS_SOFTMAX /* of p dp */ };

/* Both passes in one kernel: see linear_attention_bwd_short.cu. */
typedef struct tn_bwd_short {
    tn_bwd_pass q, k;
    uint32_t slices;
    const float *begin; /* dstate_out or NULL */
    float *ds;          /* dstate or NULL */
} tn_bwd_short;

/* Which instance of the kernels: padded widths 64 or 128; wgmma or mma.sync. Return a cudaError_t. */
int tn_bwd_run_q(const tn_bwd_pass *pass, int width, bool wgmma, void *stream);
/* Cosine LRPE, d = e = 128, one axis and no leading tokens, gate; softmax neither over the sequence nor on the gate; wgmma. */
int tn_bwd_run_q_cosine(const tn_bwd_pass *pass, void *stream);
int tn_bwd_shared_q_cosine(void);
/* The same; v as it is. */
int tn_bwd_run_kv_cosine(const tn_bwd_pass *pass, void *stream);
int tn_bwd_shared_kv_cosine(void);
/* No activations, no LRPE, d = e = 128, gate; wgmma. */
int tn_bwd_run_short(const tn_bwd_short *pass, void *stream);
int tn_bwd_shared_short(void);
int tn_bwd_run_kv(const tn_bwd_pass *pass, int width, bool wgmma, void *stream);
/* d from 129 to 256: no LRPE, no activation of q, k, v. */
int tn_bwd_run_q_broad(const tn_bwd_pass *pass, int width, bool wgmma, void *stream);
int tn_bwd_run_kv_broad(const tn_bwd_pass *pass, int width, bool wgmma, void *stream);
int tn_bwd_shared_broad(bool wgmma);
/* Shared memory that a block needs; -1 where this library has no such code for the GPU. */
int tn_bwd_shared_q(int width, bool cosine, bool wgmma);
int tn_bwd_shared_kv(int width, bool cosine, bool wgmma);

#ifdef __CUDACC__
/* The shared memory that a block of the kernel needs, which it is allowed to have after this, or -1 where that cannot be, or where it is
 * to use wgmma and is not there as code for sm_90a. `known` keeps the answer: it is 0 before the first call, and the same whoever comes
 * first. */
template <typename Kernel> static inline int tn_bwd_ready(Kernel kernel, int bytes, bool wgmma, int *known) {
    int answer = __atomic_load_n(known, __ATOMIC_RELAXED);
    if (answer) return answer;
    cudaFuncAttributes attributes;
    bool there = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && (!wgmma || attributes.binaryVersion == 90) &&
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess;
    if (!there) cudaGetLastError();
    answer = there ? bytes : -1;
    __atomic_store_n(known, answer, __ATOMIC_RELAXED);
    return answer;
}

/* Launches a kernel that may start before the stream's last one is done: it has to call tn_bwd_await_previous(). */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t tn_bwd_launch_early(void (*kernel)(Parameters...), dim3 grid, unsigned threads, int shared_bytes,
                                              cudaStream_t stream, Arguments... arguments) {
    cudaLaunchAttribute early;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = (size_t)shared_bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}
#endif

#endif
