/* The mask of dropout_internal.h, from as few Philox blocks as it takes: four elements a block.
 *
 * A warp takes a chunk of two packs a lane, which is two or four pairs of groups of 64 elements. For a pair, lane l computes block l % 16
 * of group l / 16; where word w of the block decides about its element, a vote gathers the decisions, sixteen of each of the two groups:
 *
 *     bit of vote w:    0 .. 15                    16 .. 31
 *     element:          64 g + 16 w + bit          64 (g + 1) + 16 w + bit - 16
 *
 * Then each lane takes the bits of its packs from the votes. The packs are asked for before the blocks are computed. What does not fill a
 * chunk goes element by element. */
#include <string.h>

#include "dropout_internal.h"

#include "../../libtensor/cuda_common.cuh"
#include "../../libtensor/philox.h"

#define THREADS 256
#define WARPS (THREADS / TN_WARP)
#define PACKS 2 /* a lane has in flight */
#define PAIR (2 * TN_DROPOUT_GROUP)

namespace {

struct dropout_mask {
    uint64_t seed, block; /* of element 0 */
    const int64_t *place; /* added to twice that; NULL: nothing is */
    uint32_t threshold;
    double scale;
};

/* The mask with what only the device knows. */
__device__ __forceinline__ dropout_mask placed(dropout_mask mask) {
    if (mask.place) mask.block += (uint64_t)*mask.place / 2;
    return mask;
}

__device__ __forceinline__ tn_philox_block block_at(const dropout_mask &mask, int64_t group, int64_t place) {
    uint64_t index = mask.block + (uint64_t)(group * TN_DROPOUT_BLOCKS + place);
    tn_philox_block counter;
    counter.word[0] = (uint32_t)index, counter.word[1] = (uint32_t)(index >> 32), counter.word[2] = 0, counter.word[3] = 0;
    return tn_philox(counter, (uint32_t)mask.seed, (uint32_t)(mask.seed >> 32));
}

/* An element by itself, with a block of its own. */
template <typename T> __device__ __forceinline__ void drop_element(T *to, const T *from, int64_t i, const dropout_mask &mask) {
    int e = (int)(i % TN_DROPOUT_GROUP), word = e / TN_DROPOUT_BLOCKS;
    tn_philox_block block = block_at(mask, i / TN_DROPOUT_GROUP, e % TN_DROPOUT_BLOCKS);
    uint32_t random = word == 0 ? block.word[0] : word == 1 ? block.word[1] : word == 2 ? block.word[2] : block.word[3];
    to[i] = tn_narrow<T>(random >= mask.threshold ? tn_widen(from[i]) * (tn_wide<T>)mask.scale : (tn_wide<T>)0);
}

template <typename T> __global__ void __launch_bounds__(THREADS) dropout_elements(T *to, const T *from, int64_t numel, dropout_mask mask) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < numel) drop_element(to, from, i, placed(mask));
}

template <typename T> __global__ void __launch_bounds__(THREADS) dropout_chunks(T *to, const T *from, int64_t numel, dropout_mask given) {
    const dropout_mask mask = placed(given);
    const int n = tn_pack<T>::n, chunk = PACKS * TN_WARP * n, pairs = chunk / PAIR;
    int lane = threadIdx.x % TN_WARP;
    int64_t begin = ((int64_t)blockIdx.x * WARPS + threadIdx.x / TN_WARP) * chunk;
    if (begin + chunk > numel) {
        for (int64_t i = begin + lane; i < numel; i += TN_WARP) drop_element(to, from, i, mask);
        return;
    }
    float scale = (float)mask.scale;
    uint4 raw[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) raw[p] = *reinterpret_cast<const uint4 *>(from + begin + (p * TN_WARP + lane) * n);
    uint32_t votes[pairs][4];
#pragma unroll
    for (int pair = 0; pair < pairs; pair++) {
        tn_philox_block block = block_at(mask, begin / TN_DROPOUT_GROUP + pair * 2 + lane / TN_DROPOUT_BLOCKS, lane % TN_DROPOUT_BLOCKS);
#pragma unroll
        for (int word = 0; word < 4; word++) votes[pair][word] = __ballot_sync(0xffffffffu, block.word[word] >= mask.threshold);
    }
    int e = lane * n; /* the first pack's first element; the others lie whole groups on */
    int word = e % TN_DROPOUT_GROUP / TN_DROPOUT_BLOCKS, shift = e % PAIR / TN_DROPOUT_GROUP * TN_DROPOUT_BLOCKS + e % TN_DROPOUT_BLOCKS;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int first = p * TN_WARP * n / PAIR, last = (p + 1) * TN_WARP * n / PAIR - 1; /* of the pairs that a warp's packs lie in */
        bool later = e >= PAIR;
        uint32_t vote = later ? votes[last][0] : votes[first][0];
#pragma unroll
        for (int w = 1; w < 4; w++)
            if (word == w) vote = later ? votes[last][w] : votes[first][w];
        vote >>= shift;
        tn_pack<T> x, o;
        memcpy(&x, &raw[p], sizeof x);
#pragma unroll
        for (int j = 0; j < n; j++) o.at[j] = tn_narrow<T>(vote >> j & 1 ? tn_widen(x.at[j]) * scale : 0.0f);
        tn_store_pack(to + begin + (p * TN_WARP + lane) * n, o);
    }
}

template <typename T> void launch(tn_op_call *call, T *to, const T *from, int64_t numel, const dropout_mask &mask) {
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (call->device->cuda_path == TN_CUDA_PLAIN || sizeof(T) == 8 || !tn_aligned16(to) || !tn_aligned16(from)) {
        dropout_elements<T><<<tn_blocks(numel, THREADS), THREADS, 0, stream>>>(to, from, numel, mask);
    } else {
        unsigned blocks = tn_blocks(numel, PACKS * tn_pack<T>::n * THREADS);
        if constexpr (sizeof(T) < 8) dropout_chunks<T><<<blocks, THREADS, 0, stream>>>(to, from, numel, mask);
    }
}

} // namespace

extern "C" tn_status tn_dropout_cuda(tn_op_call *call) {
    const tn_dropout_args *args = (const tn_dropout_args *)call->args;
    const tn_tensor *from = call->in_spec ? call->dout[0] : call->in[0];
    tn_tensor *to = call->in_spec ? call->din[0] : call->out[0];
    cudaStream_t stream = (cudaStream_t)call->stream;
    if (to->numel == 0) return TN_OK;
    if (args->p == 0)
        return tn_cuda_said(call->device, (int)cudaMemcpyAsync(to->data, from->data, tn_bytes(to), cudaMemcpyDeviceToDevice, stream),
                            "cudaMemcpyAsync");
    if (args->p == 1) return tn_cuda_said(call->device, (int)cudaMemsetAsync(to->data, 0, tn_bytes(to), stream), "cudaMemsetAsync");
    const tn_tensor *place = call->in[TN_DROPOUT_PLACE];
    dropout_mask mask = { args->seed, args->counter / 2, place ? (const int64_t *)place->data : NULL, tn_dropout_threshold(args->p),
                          1 / (1 - args->p) };
    TN_WITH_FLOAT(to->dtype, T, (launch<T>(call, (T *)to->data, (const T *)from->data, to->numel, mask)));
    return tn_cuda_said(call->device, (int)cudaGetLastError(), "dropout");
}
