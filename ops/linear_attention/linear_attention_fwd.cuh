/* The passes of the non-causal forward on CUDA and what they share. */
#ifndef TENON_LINEAR_ATTENTION_FWD_CUH
#define TENON_LINEAR_ATTENTION_FWD_CUH

#include "linear_attention_internal.h"
#include "linear_attention_tiles.cuh"

/* How heads of `per_head` equal pieces each are dealt to blocks: `whole` heads to every block, then the pieces of the heads that are left
 * over in contiguous runs, `each` + 1 pieces for the first `longer` blocks and `each` for the others. So all blocks have the same work to
 * one piece, whatever the number of heads, and only the heads left over are ever cut. */
struct tn_la_deal {
    int heads, per_head, blocks, whole, each, longer;
};
static inline void tn_la_deal_out(tn_la_deal *deal, int64_t heads, int64_t per_head, int64_t blocks) {
    if (blocks > heads * per_head) blocks = heads * per_head;
    *deal = tn_la_deal{ (int)heads, (int)per_head, (int)blocks, 0, 0, 0 };
    if (blocks == 0) return;
    deal->whole = (int)(heads / blocks);
    const int64_t rest = heads % blocks * per_head;
    deal->each = (int)(rest / blocks), deal->longer = (int)(rest % blocks);
}
/* Of the pieces left over: where a block's run begins, which block has one. */
static inline __host__ __device__ int tn_la_rest_begin(const tn_la_deal &deal, int block) {
    return block * deal.each + (block < deal.longer ? block : deal.longer);
}
static inline __host__ __device__ int tn_la_rest_of(const tn_la_deal &deal, int piece) {
    const int in_longer = deal.longer * (deal.each + 1);
    return piece < in_longer ? piece / (deal.each + 1) : deal.longer + (piece - in_longer) / deal.each;
}
static inline __host__ __device__ int tn_la_pieces_of(const tn_la_deal &deal, int block) {
    return deal.whole * deal.per_head + deal.each + (block < deal.longer);
}
static inline __host__ __device__ int tn_la_heads_left(const tn_la_deal &deal) { return deal.heads - deal.whole * deal.blocks; }

/* Where a block is: in a stretch of pieces of one head, `left` of them from `piece` on (0: it has had all its pieces), with `after` pieces
 * of other heads to follow. */
struct tn_la_place {
    int head, piece, left, after;
};
TN_TILE_DEVICE void tn_la_rest_place(const tn_la_deal &deal, int block, tn_la_place &at) {
    const int piece = tn_la_rest_begin(deal, block), head = piece / deal.per_head;
    at.head = deal.whole * deal.blocks + head, at.piece = piece - head * deal.per_head;
    at.left = min(deal.per_head - at.piece, at.after), at.after -= at.left;
}
TN_TILE_DEVICE tn_la_place tn_la_first_place(const tn_la_deal &deal, int block) {
    tn_la_place at = { block * deal.whole, 0, deal.per_head, tn_la_pieces_of(deal, block) - deal.per_head };
    if (deal.whole == 0) at.after += deal.per_head, tn_la_rest_place(deal, block, at);
    return at;
}
/* To the next piece; true if that begins another stretch. */
TN_TILE_DEVICE bool tn_la_next_place(const tn_la_deal &deal, int block, tn_la_place &at) {
    at.piece++;
    if (--at.left > 0) return false;
    if (at.after == 0) return true;
    const bool last_whole = at.head < deal.whole * deal.blocks && at.head + 1 == (block + 1) * deal.whole;
    if (last_whole) {
        tn_la_rest_place(deal, block, at);
    } else {
        at.head++, at.piece = 0;
        at.left = min(deal.per_head, at.after), at.after -= at.left;
    }
    return true;
}

/* TN_LA_BROAD: not turned either, but d is above 128: q and k come as two halves, as with cosine they become two. */
enum tn_la_kind { TN_LA_UNTURNED, TN_LA_ROTATED, TN_LA_COSINE, TN_LA_BROAD };
static constexpr __host__ __device__ bool tn_la_turns(int kind) { return kind == TN_LA_ROTATED || kind == TN_LA_COSINE; }
static constexpr __host__ __device__ bool tn_la_has_halves(int kind) { return kind == TN_LA_COSINE || kind == TN_LA_BROAD; }

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
    float *s,
        *parts; /* s: NULL where a short kernel need not keep it; parts: [blocks + heads left over][state_rows][e], what each run adds to each head it meets */
    void *o;
    int64_t o_batch, o_token, o_head;
    tn_la_deal state_deal, out_deal;
    int stages;
    bool early; /* the kernel starts before the one ahead of it has ended, and waits where it needs its result */
};

/* The width (64 or 128) that e and d, or halves of d, fit into. */
static inline int tn_la_width(const tn_la_forward &f) { return f.d > 64 || f.e > 64 ? 128 : 64; }

/* Where a kernel activates: TN_LA_SETTLED: in shared memory, any activation of any operand (tn_tile_share::settle). Else the fragments of k
 * or q, by the activation that is named: those that are common have kernels of their own. */
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
cudaError_t tn_la_launch_short(const tn_la_forward &f, int multiprocessors, cudaStream_t stream);

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
static cudaError_t tn_la_launch(void (*kernel)(Arguments...), dim3 grid, dim3 threads, size_t shared, cudaStream_t stream, bool early,
                                const Arguments &...given) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, given...);
}

/* How one slot turns: by theta and the coordinate of an axis. It is looked up before tiles are sent for, and used after: else it waits
 * behind them. */
struct tn_la_slot {
    float theta;
    int axis;
};
/* theta of a slot of a head; slots beyond d and features that no axis reaches do not turn. */
TN_TILE_DEVICE tn_la_slot tn_la_slot_of(const tn_la_forward &f, const tn_lrpe_grid &grid, int head_in_batch, int slot) {
    tn_la_slot turn = { 0, 0 };
    int feature = tn_slot_feature(f.kind == TN_LA_ROTATED, f.d, slot);
    if (f.kind == TN_LA_ROTATED && feature >= f.d / 2) feature -= f.d / 2;
    /* tn_lrpe_axis and tn_lrpe_theta_column, without divisions of 64 bits. */
    const unsigned span = grid.span > feature ? (unsigned)feature + 1 : (unsigned)grid.span, axis = (unsigned)feature / span;
    if (slot >= f.d || axis >= (unsigned)grid.axes) return turn;
    int64_t row = grid.theta_heads == 1 ? 0 : head_in_batch, column = grid.theta_width == 1 ? 0 : feature - axis * span;
    turn.theta = f.theta[row * grid.theta_width + column];
    turn.axis = (int)axis;
    return turn;
}

#endif
