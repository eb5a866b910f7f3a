/* The passes of the non-causal forward on CUDA and what they share. */
#ifndef TENON_LINEAR_ATTENTION_FWD_CUH
#define TENON_LINEAR_ATTENTION_FWD_CUH

#include "linear_attention_internal.h"
#include "linear_attention_tiles.cuh"

/* Runs of a list of `units` equal pieces, one for each of `blocks`: block i has [units i / blocks, units (i + 1) / blocks). */
struct tn_la_runs {
    int64_t units, per_head; /* units = heads x per_head */
    int blocks;
};
static inline __host__ __device__ int64_t tn_la_run_begin(const tn_la_runs &runs, int64_t block) { return runs.units * block / runs.blocks; }
static inline __host__ __device__ int64_t tn_la_run_of(const tn_la_runs &runs, int64_t unit) { return ((unit + 1) * runs.blocks - 1) / runs.units; }

enum tn_la_kind { TN_LA_UNTURNED, TN_LA_ROTATED, TN_LA_COSINE };

/* Does a run end inside a head? */
static inline bool tn_la_runs_cut_heads(const tn_la_runs &runs) {
    return runs.per_head > 0 && runs.blocks > 0 && runs.blocks != runs.units / runs.per_head;
}

/* Everything the tiled kernels know of a call. heads: b h; state: S's rows d', of which the first d are turned with cosine. */
struct tn_la_forward {
    tn_tile_operand q, k, v, g;
    tn_lrpe_grid q_grid, k_grid;
    const float *theta; /* NULL: no LRPE */
    tn_la_kind kind;
    int h, d, e, state_rows;
    int64_t heads;
    float scale;
    const float *state; /* NULL: zero */
    float *s, *parts;   /* parts: [runs.blocks + heads][state_rows][e], what each run adds to each head it meets, where runs cut heads */
    void *o;
    int64_t o_batch, o_token, o_head;
    tn_la_runs state_runs, out_runs;
    int stages;
    bool early; /* the kernel starts before the one ahead of it has ended, and waits where it needs its result */
};

/* The width (64 or 128) that d and e fit into. */
static inline int tn_la_width(const tn_la_forward &f) { return f.d > 64 || f.e > 64 ? 128 : 64; }

/* Where a kernel activates: TN_LA_SETTLED: in shared memory, any activation of any operand (tn_tile_share::settle). Else the fragments of k or q,
 * by the activation that is named: those that are common have kernels of their own. */
#define TN_LA_SETTLED (-1)

/* Which products a kernel runs on. */
enum tn_la_product { TN_LA_MMA, TN_LA_WGMMA };

/* Fill in how the pass is cut for the device, with a stage count of its own each (so: plan, launch, plan, launch), and launch it. */
void tn_la_plan_state(tn_la_forward *f, const tn_device *device, tn_dtype dtype);
cudaError_t tn_la_launch_state(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream);
void tn_la_plan_out(tn_la_forward *f, const tn_device *device, tn_dtype dtype);
cudaError_t tn_la_launch_out(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream);

/* Starting early (Hopper): let the next kernel begin; wait for the one before. */
TN_TILE_DEVICE void tn_la_let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}
TN_TILE_DEVICE void tn_la_await_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

template <typename... Arguments>
static cudaError_t tn_la_launch(void (*kernel)(Arguments...), dim3 grid, int threads, size_t shared, cudaStream_t stream, bool early,
                                const tn_la_forward &f) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, f);
}

/* How fragments of one slot turn: its rate and the coordinate axis that drives it. */
struct tn_la_slot {
    tn_tile_rate rate;
    int axis;
};
/* theta of a slot of a head; slots beyond d and features that no axis reaches do not turn. */
TN_TILE_DEVICE tn_la_slot tn_la_slot_of(const tn_la_forward &f, const tn_lrpe_grid &grid, int head_in_batch, int slot) {
    tn_la_slot turn = { { 0, 0 }, 0 };
    int feature = tn_slot_feature(f.kind == TN_LA_ROTATED, f.d, slot);
    if (f.kind == TN_LA_ROTATED && feature >= f.d / 2) feature -= f.d / 2;
    int axis = slot < f.d ? tn_lrpe_axis(&grid, feature) : -1;
    if (axis < 0) return turn;
    int64_t row = grid.theta_heads == 1 ? 0 : head_in_batch;
    turn.rate = tn_tile_rate_of(f.theta[row * grid.theta_width + tn_lrpe_theta_column(&grid, feature)]);
    turn.axis = axis;
    return turn;
}

#endif
