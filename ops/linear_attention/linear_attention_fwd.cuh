/* The passes of the non-causal forward on CUDA and what they share. */
#ifndef TENON_LINEAR_ATTENTION_FWD_CUH
#define TENON_LINEAR_ATTENTION_FWD_CUH

#include "linear_attention_internal.h"
#include "linear_attention_tiles.cuh"

/* Runs of a list of `units` equal pieces, one for each of `blocks`; the first `longer` runs have each + 1 pieces, the others `each`. */
struct tn_la_runs {
    int units, per_head; /* units = heads x per_head */
    int blocks, each, longer;
};
static inline void tn_la_cut(tn_la_runs *runs, int64_t heads, int64_t per_head, int64_t blocks) {
    int64_t units = heads * per_head;
    if (blocks > units) blocks = units;
    runs->units = (int)units, runs->per_head = (int)per_head, runs->blocks = (int)blocks;
    runs->each = blocks ? (int)(units / blocks) : 0, runs->longer = blocks ? (int)(units % blocks) : 0;
}
static inline __host__ __device__ int tn_la_run_begin(const tn_la_runs &runs, int block) { return block * runs.each + (block < runs.longer ? block : runs.longer); }
static inline __host__ __device__ int tn_la_run_of(const tn_la_runs &runs, int unit) {
    int in_longer = runs.longer * (runs.each + 1);
    return unit < in_longer ? unit / (runs.each + 1) : runs.longer + (unit - in_longer) / runs.each;
}
/* Does a run end inside a head? */
static inline bool tn_la_runs_cut_heads(const tn_la_runs &runs) { return runs.blocks > 0 && (int64_t)runs.blocks * runs.per_head != runs.units; }

enum tn_la_kind { TN_LA_UNTURNED, TN_LA_ROTATED, TN_LA_COSINE };

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
    float *s, *parts;   /* parts: [blocks + heads][state_rows][e], what each run adds to each head it meets, where runs cut heads */
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

/* Fill in how the pass is cut for the device, with a stage count of its own each (so: plan, launch, plan, launch); false: it has too little
 * shared memory. Then launch it. */
bool tn_la_plan_state(tn_la_forward *f, const tn_device *device, tn_dtype dtype);
cudaError_t tn_la_launch_state(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream);
bool tn_la_plan_out(tn_la_forward *f, const tn_device *device, tn_dtype dtype, tn_la_product product);
cudaError_t tn_la_launch_out(const tn_la_forward &f, tn_dtype dtype, tn_la_product product, cudaStream_t stream);
/* Heads so short that one block has all of one: both passes in one launch. */
bool tn_la_is_short(const tn_la_forward &f);
cudaError_t tn_la_launch_short(const tn_la_forward &f, cudaStream_t stream);

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
    /* tn_lrpe_axis and tn_lrpe_theta_column, without divisions of 64 bits. */
    const unsigned span = grid.span > feature ? (unsigned)feature + 1 : (unsigned)grid.span, axis = (unsigned)feature / span;
    if (slot >= f.d || axis >= (unsigned)grid.axes) return turn;
    int64_t row = grid.theta_heads == 1 ? 0 : head_in_batch, column = grid.theta_width == 1 ? 0 : feature - axis * span;
    turn.rate = tn_tile_rate_of(f.theta[row * grid.theta_width + column]);
    turn.axis = (int)axis;
    return turn;
}

#endif
