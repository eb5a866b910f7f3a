/* One query against a short cache of factors of rank 1, where time is a chain of latencies: a block has all keys and 32 heads, so weights
 * are made once, and nothing of the width of o is merged.
 *
 *     s [32 heads, keys] = (q bk') * ak'      p = exp(s - maximum) * av'      o [32, D] = sum over groups of keys of weight p bv
 *
 * A warp makes p of 16 heads and a group of 16 to 64 keys, with the group's maxima and sums, and leaves it in the order in which mma.sync
 * wants it; then it has 16 heads, a quarter of the columns of o, and all keys.
 *
 *     bk [keys][D] | ak, av [keys][32] | bv [keys][D] | p [keys / 16][2][lane] | maximum, sum [group][32] | q [32][D] | its factors |
 */
#include "attention_decode.cuh"

namespace {

constexpr int WARPS = 8;

/* A group is T tiles of 16 keys. */
template <int D, int T> struct shape_of {
    static constexpr int THREADS = WARPS * TN_WARP, HEADS = 32, KEY_WARPS = WARPS / 2, KEYS = KEY_WARPS * 16 * T;
    static constexpr int TILES = D / 8 / KEY_WARPS; /* of 8 columns, of a warp */
    static constexpr int AK = KEYS * D * 2, AV = AK + KEYS * HEADS * 2, BV = AV + KEYS * HEADS * 2, P = BV + KEYS * D * 2;
    static constexpr int STATS = P + KEYS * HEADS * 2, Q = STATS + KEY_WARPS * HEADS * 8, FACTORS = Q + HEADS * D * 2;
    static constexpr int BYTES = FACTORS + TN_AT_MOST_RANKS * (D + HEADS) * 2;
    static constexpr int BLOCKS = BYTES <= 112 * 1024 ? 2 : 1;
};

/* ---- by keys ---- */

/* A warp's weights of 16 heads and a group of keys, of which a thread has rows lane / 4 and lane / 4 + 8. */
template <int T> struct group_state {
    float s[T][2][4];
    uint32_t p[T][4];
    float most[2], sum[2];
};

template <typename S, int D, int T>
__device__ __forceinline__ void score(group_state<T> &w, uint32_t memory, int warp_heads, int warp_keys) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
#pragma unroll
    for (int t = 0; t < T; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) w.s[t][0][i] = w.s[t][1][i] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t q[4];
        tn_at_load(q, memory + S::Q + tn_at_piece<D * 2>(warp_heads + matrix % 2 * 8 + row8, 2 * k + matrix / 2));
#pragma unroll
        for (int t = 0; t < T; t++) {
            uint32_t b[4];
            tn_at_load(b, memory + tn_at_piece<D * 2>(warp_keys + t * 16 + matrix / 2 * 8 + row8, 2 * k + matrix % 2));
            tn_at_multiply_add(w.s[t][0], q, b[0], b[1]);
            tn_at_multiply_add(w.s[t][1], q, b[2], b[3]);
        }
    }
}

template <typename S, int T>
__device__ __forceinline__ void weigh(group_state<T> &w, uint32_t memory, float scale, int warp_heads, int warp_keys, int there) {
    int lane = threadIdx.x % TN_WARP, matrix = lane / 8, row8 = lane % 8;
    w.most[0] = w.most[1] = -INFINITY, w.sum[0] = w.sum[1] = 0;
    uint32_t av[T][4];
#pragma unroll
    for (int t = 0; t < T; t++) {
        uint32_t ak[4];
        int at = tn_at_piece<S::HEADS * 2>(warp_keys + t * 16 + matrix / 2 * 8 + row8, warp_heads / 8 + matrix % 2);
        tn_at_load_transposed(ak, memory + S::AK + at);
        tn_at_load_transposed(av[t], memory + S::AV + at);
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t pair = ak[j * 2 + i / 2];
                int key = warp_keys + t * 16 + j * 8 + lane % 4 * 2 + i % 2;
                float s = key < there ? w.s[t][j][i] * (i % 2 ? tn_at_high(pair) : tn_at_low(pair)) * scale : -INFINITY;
                w.s[t][j][i] = s;
                w.most[i / 2] = fmaxf(w.most[i / 2], s);
            }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        w.most[i] = fmaxf(w.most[i], __shfl_xor_sync(0xffffffffu, w.most[i], 1));
        w.most[i] = fmaxf(w.most[i], __shfl_xor_sync(0xffffffffu, w.most[i], 2));
        float base = w.most[i] == -INFINITY ? 0.0f : w.most[i];
#pragma unroll
        for (int t = 0; t < T; t++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float low = tn_at_exp2(w.s[t][j][2 * i] - base), high = tn_at_exp2(w.s[t][j][2 * i + 1] - base);
                w.sum[i] += low + high;
                w.p[t][j * 2 + i] = tn_at_pair(low * tn_at_low(av[t][j * 2 + i]), high * tn_at_high(av[t][j * 2 + i]));
            }
        w.sum[i] += __shfl_xor_sync(0xffffffffu, w.sum[i], 1);
        w.sum[i] += __shfl_xor_sync(0xffffffffu, w.sum[i], 2);
    }
}

template <typename S, int T> __device__ __forceinline__ void hand_over(const group_state<T> &w, unsigned char *memory, int group) {
    int lane = threadIdx.x % TN_WARP, heads16 = threadIdx.x / TN_WARP % 2;
    uint4 *p = (uint4 *)(memory + S::P) + (group * T * 2 + heads16) * TN_WARP + lane;
    float2 *stats = (float2 *)(memory + S::STATS) + group * S::HEADS + heads16 * 16 + lane / 4;
#pragma unroll
    for (int t = 0; t < T; t++) p[t * 2 * TN_WARP] = make_uint4(w.p[t][0], w.p[t][1], w.p[t][2], w.p[t][3]);
    if (lane % 4) return;
    stats[0] = make_float2(w.most[0], w.sum[0]);
    stats[8] = make_float2(w.most[1], w.sum[1]);
}

/* ---- by columns ---- */

/* Keys 16 i to 16 i + 15 of bv's columns 8 j to 8 j + 7. */
template <typename S, int D> __device__ __forceinline__ void load_values(uint32_t (&b)[2], uint32_t memory, int i, int j) {
    int lane = threadIdx.x % 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(memory + S::BV + tn_at_piece<D * 2>(i * 16 + lane, j))
                 : "memory");
}

template <typename S, int D, int T>
__device__ __forceinline__ void add_up(float (&o)[S::TILES][4], float (&most)[2], float (&sum)[2], const unsigned char *memory, int part) {
    int lane = threadIdx.x % TN_WARP, heads16 = threadIdx.x / TN_WARP % 2;
    const float2 *stats = (const float2 *)(memory + S::STATS) + heads16 * 16 + lane / 4;
    most[0] = most[1] = -INFINITY, sum[0] = sum[1] = 0;
#pragma unroll
    for (int group = 0; group < S::KEY_WARPS; group++)
#pragma unroll
        for (int i = 0; i < 2; i++) most[i] = fmaxf(most[i], stats[group * S::HEADS + i * 8].x);
#pragma unroll
    for (int j = 0; j < S::TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[j][i] = 0;
#pragma unroll 4
    for (int group = 0; group < S::KEY_WARPS; group++) {
        float of_group[S::TILES][4] = {}, weight[2];
#pragma unroll
        for (int t = 0; t < T; t++) {
            uint4 raw = *(const uint4 *)(memory + S::P + (((group * T + t) * 2 + heads16) * TN_WARP + lane) * 16);
            uint32_t p[4] = { raw.x, raw.y, raw.z, raw.w };
#pragma unroll
            for (int j = 0; j < S::TILES; j++) {
                uint32_t b[2];
                load_values<S, D>(b, tn_at_shared(memory), group * T + t, part * S::TILES + j);
                tn_at_multiply_add(of_group[j], p, b[0], b[1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float2 stat = stats[group * S::HEADS + i * 8];
            weight[i] = tn_at_weight_of(stat.x, most[i]);
            sum[i] += weight[i] * stat.y;
        }
#pragma unroll
        for (int j = 0; j < S::TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[j][i] += weight[i / 2] * of_group[j][i];
    }
}

template <typename S, int D>
__device__ __forceinline__ void write(const tn_at_decode_args &a, const tn_at_decode_place &p, const float (&o)[S::TILES][4],
                                      const float (&most)[2], const float (&sum)[2], int part) {
    int lane = threadIdx.x % TN_WARP, column = part * S::TILES * 8 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int head = p.head0 + threadIdx.x / TN_WARP % 2 * 16 + i * 8 + lane / 4;
        float factor = sum[i] == 0 ? 0.0f : a.scale_v / sum[i];
        if (head >= p.last) continue;
#pragma unroll
        for (int j = 0; j < S::TILES; j++)
            *(uint32_t *)(a.o + (p.batch * a.h + head) * D + column + j * 8) = tn_at_pair(o[j][2 * i] * factor, o[j][2 * i + 1] * factor);
        if (a.lse && column == 0) a.lse[p.batch * a.h + head] = sum[i] == 0 ? -INFINITY : (most[i] + log2f(sum[i])) * 0.693147181f;
    }
}

template <int D, int T>
__global__ void __launch_bounds__(WARPS *TN_WARP, shape_of<D, T>::BLOCKS) decode(const __grid_constant__ tn_at_decode_args a) {
    using S = shape_of<D, T>;
    extern __shared__ __align__(128) unsigned char memory[];
    int warp = threadIdx.x / TN_WARP, warp_heads = warp % 2 * 16, key_warp = warp / 2, warp_keys = key_warp * 16 * T;
    tn_at_decode_place p = tn_at_decode_place_of(a, S::HEADS);
    uint32_t at = tn_at_shared(memory);
    int there = (int)p.end;
    int64_t row = p.batch * a.m;

    tn_at_decode_fetch_query<S, D>(a, p, memory + S::FACTORS);
    tn_at_copy_commit();
    tn_at_decode_fetch<S::THREADS, S::KEYS, D * 2>(at, a.bk + row * D, D, D / 8, there);
    tn_at_decode_fetch<S::THREADS, S::KEYS, S::HEADS * 2>(at + S::AK, a.ak + row * a.h + p.head0, a.h, p.pieces, there);
    tn_at_decode_fetch<S::THREADS, S::KEYS, S::HEADS * 2>(at + S::AV, a.av + row * a.h + p.head0, a.h, p.pieces, there);
    tn_at_copy_commit();
    tn_at_decode_fetch<S::THREADS, S::KEYS, D * 2>(at + S::BV, a.bv + row * D, D, D / 8, there);
    tn_at_copy_commit();

    tn_at_copy_wait<2>();
    __syncthreads();
    tn_at_decode_make_query<S, D>((a.rq + 15) / 16 * 16, memory + S::FACTORS, memory + S::Q, warp_heads, key_warp);
    tn_at_copy_wait<1>();
    __syncthreads();
    group_state<T> w;
    score<S, D>(w, at, warp_heads, warp_keys);
    weigh<S>(w, at, a.scale, warp_heads, warp_keys, there);
    hand_over<S>(w, memory, key_warp);
    tn_at_copy_wait<0>();
    __syncthreads();
    float o[S::TILES][4], most[2], sum[2];
    add_up<S, D, T>(o, most, sum, memory, key_warp);
    write<S, D>(a, p, o, most, sum, key_warp);
}

template <int D, int T> cudaError_t start(const tn_at_decode_args &a, int64_t head_groups, cudaStream_t stream) {
    using S = shape_of<D, T>;
    cudaError_t error = cudaFuncSetAttribute(decode<D, T>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error != cudaSuccess) return error;
    decode<D, T><<<dim3(1, (unsigned)a.b, (unsigned)head_groups), S::THREADS, S::BYTES, stream>>>(a);
    return cudaGetLastError();
}

template <int D> cudaError_t start_for(const tn_at_decode_args &a, int64_t head_groups, cudaStream_t stream) {
    return (a.chunk <= 64 ? start<D, 1> : a.chunk <= 128 ? start<D, 2> : start<D, 4>)(a, head_groups, stream);
}

} // namespace

int tn_at_decode_short(const tn_at_decode_args *a, int64_t width, int64_t head_groups, cudaStream_t stream) {
    return (int)(width == 128 ? start_for<128> : start_for<64>)(*a, head_groups, stream);
}
