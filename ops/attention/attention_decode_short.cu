/* One query against a short cache of factors of rank 1, where time is a chain of latencies: all scores of 32 heads exist at once, so weights
 * are made once, and nothing of the width of o is merged.
 *
 *     s [32 heads, keys] = (q bk') * ak'      p = exp(s - maximum) * av'      o [32, columns] = sum over groups of keys of weight p bv
 *
 * The blocks of a cluster share a sequence in two ways: first by keys, then by columns of o. A warp makes the scores of 16 heads and a group
 * of 16 keys (or 32), and hands p, in the order in which mma.sync wants it, with the group's maxima and sums to every block of the cluster;
 * then a warp has 16 heads and 8 columns, and all keys.
 *
 *     bk [own keys][D] | ak, av [own keys][32] | bv [keys][own columns] | p [keys / 16][2][lane] | maximum, sum [group][32] | q | its factors |
 *
 * One barrier of the cluster stands between the two. */
#include "attention_decode.cuh"

namespace {

constexpr int WARPS = 8;

/* C blocks to a cluster, T tiles of 16 keys to a group. */
template <int D, int C, int T> struct shape_of {
    static constexpr int THREADS = WARPS * TN_WARP, HEADS = 32, KEY_WARPS = WARPS / 2;
    static constexpr int KEYS = KEY_WARPS * 16 * T, ALL = C * KEYS, GROUPS = C * KEY_WARPS;
    static constexpr int COLUMNS = D / C, PARTS = COLUMNS >= 8 * KEY_WARPS ? KEY_WARPS : COLUMNS / 8, TILES = COLUMNS / 8 / PARTS;
    static constexpr int AK = KEYS * D * 2, AV = AK + KEYS * HEADS * 2, BV = AV + KEYS * HEADS * 2, P = BV + ALL * COLUMNS * 2;
    static constexpr int STATS = P + ALL * HEADS * 2, Q = STATS + GROUPS * HEADS * 8, FACTORS = Q + HEADS * D * 2;
    static constexpr int BYTES = FACTORS + TN_AT_MOST_RANKS * (D + HEADS) * 2;
    static constexpr int BLOCKS = BYTES <= 112 * 1024 ? 2 : 1;
};

/* ---- the cluster ---- */

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define TN_AT_CLUSTERS 1
#else
#define TN_AT_CLUSTERS 0
#endif

template <int C> __device__ __forceinline__ void say_started() {
#if TN_AT_CLUSTERS
    if (C > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
template <int C> __device__ __forceinline__ void say_done() {
#if TN_AT_CLUSTERS
    if (C > 1) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
template <int C> __device__ __forceinline__ void await_all() {
#if TN_AT_CLUSTERS
    if (C > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* Where shared memory's `at` is in block `rank`. */
template <int C> __device__ __forceinline__ uint32_t in_block(uint32_t at, int rank) {
#if TN_AT_CLUSTERS
    if (C > 1) asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
#endif
    return at;
}
template <int C> __device__ __forceinline__ void store_16(uint32_t at, const uint32_t (&x)[4]) {
#if TN_AT_CLUSTERS
    if (C > 1) {
        asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
        return;
    }
#endif
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}
template <int C> __device__ __forceinline__ void store_pair(uint32_t at, float low, float high) {
#if TN_AT_CLUSTERS
    if (C > 1) {
        asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(low), "f"(high) : "memory");
        return;
    }
#endif
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(low), "f"(high) : "memory");
}

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

/* To every block of the cluster. The four lanes that know a row's maximum and sum take turns. */
template <typename S, int C, int T> __device__ __forceinline__ void hand_out(const group_state<T> &w, uint32_t memory, int group) {
    int lane = threadIdx.x % TN_WARP, heads16 = threadIdx.x / TN_WARP % 2;
    uint32_t p = memory + S::P + ((group * T * 2 + heads16) * TN_WARP + lane) * 16,
             stats = memory + S::STATS + (group * S::HEADS + heads16 * 16 + lane / 4) * 8;
#pragma unroll
    for (int rank = 0; rank < C; rank++) {
        uint32_t to = in_block<C>(p, rank);
#pragma unroll
        for (int t = 0; t < T; t++) store_16<C>(to + t * 2 * TN_WARP * 16, w.p[t]);
        if (lane % 4 != rank % 4) continue;
        to = in_block<C>(stats, rank);
        store_pair<C>(to, w.most[0], w.sum[0]);
        store_pair<C>(to + 64, w.most[1], w.sum[1]);
    }
}

/* ---- by columns ---- */

/* Keys 16 i to 16 i + 15 of bv's columns 8 j to 8 j + 7. */
template <typename S> __device__ __forceinline__ void load_values(uint32_t (&b)[2], uint32_t memory, int i, int j) {
    int lane = threadIdx.x % 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(memory + S::BV + tn_at_piece<S::COLUMNS * 2>(i * 16 + lane, j))
                 : "memory");
}

template <typename S, int T>
__device__ __forceinline__ void add_up(float (&o)[S::TILES][4], float (&most)[2], float (&sum)[2], const unsigned char *memory, int part) {
    int lane = threadIdx.x % TN_WARP, heads16 = threadIdx.x / TN_WARP % 2;
    const float2 *stats = (const float2 *)(memory + S::STATS) + heads16 * 16 + lane / 4;
    most[0] = most[1] = -INFINITY, sum[0] = sum[1] = 0;
#pragma unroll
    for (int group = 0; group < S::GROUPS; group++)
#pragma unroll
        for (int i = 0; i < 2; i++) most[i] = fmaxf(most[i], stats[group * S::HEADS + i * 8].x);
#pragma unroll
    for (int j = 0; j < S::TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[j][i] = 0;
#pragma unroll 4
    for (int group = 0; group < S::GROUPS; group++) {
        float of_group[S::TILES][4] = {}, weight[2];
#pragma unroll
        for (int t = 0; t < T; t++) {
            uint4 raw = *(const uint4 *)(memory + S::P + (((group * T + t) * 2 + heads16) * TN_WARP + lane) * 16);
            uint32_t p[4] = { raw.x, raw.y, raw.z, raw.w };
#pragma unroll
            for (int j = 0; j < S::TILES; j++) {
                uint32_t b[2];
                load_values<S>(b, tn_at_shared(memory), group * T + t, part * S::TILES + j);
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
    int lane = threadIdx.x % TN_WARP, column = blockIdx.x * S::COLUMNS + part * S::TILES * 8 + lane % 4 * 2;
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

template <int D, int C, int T>
__global__ void __launch_bounds__(WARPS *TN_WARP, shape_of<D, C, T>::BLOCKS) decode(const __grid_constant__ tn_at_decode_args a) {
    using S = shape_of<D, C, T>;
    extern __shared__ __align__(128) unsigned char memory[];
    say_started<C>();
    int warp = threadIdx.x / TN_WARP, warp_heads = warp % 2 * 16, key_warp = warp / 2, warp_keys = key_warp * 16 * T, rank = blockIdx.x;
    tn_at_decode_place p = tn_at_decode_place_of(a, S::HEADS);
    uint32_t at = tn_at_shared(memory);
    int all = (int)(a.seqlens ? tn_at_within(a.seqlens[p.batch], 0, a.m) : a.m), there = all - rank * S::KEYS;
    int64_t row = p.batch * a.m, own = row + (there > 0 ? rank * S::KEYS : 0);

    tn_at_decode_fetch_query<S, D>(a, p, memory + S::FACTORS);
    tn_at_copy_commit();
    tn_at_decode_fetch<S::THREADS, S::KEYS, D * 2>(at, a.bk + own * D, D, D / 8, there);
    tn_at_decode_fetch<S::THREADS, S::KEYS, S::HEADS * 2>(at + S::AK, a.ak + own * a.h + p.head0, a.h, p.pieces, there);
    tn_at_decode_fetch<S::THREADS, S::KEYS, S::HEADS * 2>(at + S::AV, a.av + own * a.h + p.head0, a.h, p.pieces, there);
    tn_at_copy_commit();
    tn_at_decode_fetch<S::THREADS, S::ALL, S::COLUMNS * 2>(at + S::BV, a.bv + row * D + rank * S::COLUMNS, D, S::COLUMNS / 8, all);
    tn_at_copy_commit();

    tn_at_copy_wait<2>();
    __syncthreads();
    tn_at_decode_make_query<S, D>((a.rq + 15) / 16 * 16, memory + S::FACTORS, memory + S::Q, warp_heads, key_warp);
    tn_at_copy_wait<1>();
    __syncthreads();
    group_state<T> w;
    score<S, D>(w, at, warp_heads, warp_keys);
    weigh<S>(w, at, a.scale, warp_heads, warp_keys, there);
    await_all<C>(); /* have started: their memory is theirs */
    hand_out<S, C>(w, at, rank * S::KEY_WARPS + key_warp);
    say_done<C>();
    tn_at_copy_wait<0>();
    await_all<C>();
    __syncthreads();
    if (key_warp >= S::PARTS) return;
    float o[S::TILES][4], most[2], sum[2];
    add_up<S, T>(o, most, sum, memory, key_warp);
    write<S, D>(a, p, o, most, sum, key_warp);
}

template <int D, int C, int T> cudaError_t start(const tn_at_decode_args &a, int64_t head_groups, cudaStream_t stream) {
    using S = shape_of<D, C, T>;
    cudaError_t error = cudaFuncSetAttribute(decode<D, C, T>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3(C, (unsigned)a.b, (unsigned)head_groups);
    how.blockDim = dim3(S::THREADS);
    how.dynamicSmemBytes = S::BYTES;
    how.stream = stream;
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = C;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    how.attrs = &cluster;
    how.numAttrs = C > 1 ? 1 : 0;
    return cudaLaunchKernelEx(&how, decode<D, C, T>, a);
}

} // namespace

template <int D> cudaError_t start_for(const tn_at_decode_args &a, const tn_at_split &split, int64_t head_groups, cudaStream_t stream) {
    if (split.chunk == 128) return start<D, 2, 2>(a, head_groups, stream);
    switch (split.cluster) {
    case 1: return start<D, 1, 1>(a, head_groups, stream);
    case 2: return start<D, 2, 1>(a, head_groups, stream);
    default: return start<D, 8, 1>(a, head_groups, stream);
    }
}

int tn_at_decode_short(const tn_at_decode_args *a, int64_t width, const tn_at_split *split, int64_t head_groups, cudaStream_t stream) {
    return (int)(width == 128 ? start_for<128> : start_for<64>)(*a, *split, head_groups, stream);
}
