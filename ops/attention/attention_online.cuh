/* The softmax of one query as keys go by: what a warp of the decode kernels keeps, and how it follows a maximum that rises. */
#ifndef TENON_ATTENTION_ONLINE_CUH
#define TENON_ATTENTION_ONLINE_CUH

#include "attention_tiles.cuh"

/* Of 16 heads, of which a thread has rows lane / 4 and lane / 4 + 8. */
template <int E> struct tn_at_online {
    float o[E / 8][4];
    float most[2], sum[2]; /* sum: of the thread's own columns until the end */

    /* `most_seen`: maxima of the thread's own columns, the ones so far among them. */
    __device__ __forceinline__ void rise_to(float (&most_seen)[2]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            most_seen[i] = fmaxf(most_seen[i], __shfl_xor_sync(0xffffffffu, most_seen[i], 1));
            most_seen[i] = fmaxf(most_seen[i], __shfl_xor_sync(0xffffffffu, most_seen[i], 2));
        }
        bool risen = most_seen[0] != most[0] || most_seen[1] != most[1];
        if (!__any_sync(0xffffffffu, risen)) return;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float kept = most[i] == -INFINITY ? 0.0f : tn_at_exp2(most[i] - most_seen[i]);
            most[i] = most_seen[i];
            sum[i] *= kept;
#pragma unroll
            for (int t = 0; t < E / 8; t++) o[t][2 * i] *= kept, o[t][2 * i + 1] *= kept;
        }
    }
    /* What scores are taken relative to. */
    __device__ __forceinline__ float base(int i) const { return most[i] == -INFINITY ? 0.0f : most[i]; }
};

#endif
