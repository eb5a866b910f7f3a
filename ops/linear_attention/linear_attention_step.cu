/* One token of generation: S = decay S + kb' vb, o = gb * (qb S), with the state read once and written once, which are the bytes that
 * count.
 *
 * A block takes a head and some columns of S, four adjacent ones a thread; threads of a column share its rows out among them. Each thread
 * has eight 16-byte loads of S under way. q and k (activated, turned) lie in shared memory; partial sums of o meet there in a fixed order.
 * The state may be written where it was read. */
#include "linear_attention_plain.cuh"
#include "linear_attention_step.h"

namespace {

constexpr int THREADS = 128, AHEAD = 8;

struct step {
    tn_la_operand q, k, v, g;
    bool has_gate, cosine, per_token;
    const float *theta, *log_decay, *state;
    float *state_out;
    void *o;
    tn_la_strides o_stride;
    int64_t heads;
    int rows, e, columns; /* columns: of a block, a multiple of 4 */
    float scale;
};

/* to = lrpe(act(x)) of the one token of a slice; the whole block calls it. */
template <typename T> __device__ void encode(const step &a, const tn_la_operand &x, int64_t slice, float *to, float *scratch) {
    const T *from = (const T *)x.x + tn_la_row(x.stride, a.heads, slice, 0);
    const int d = (int)x.width, half = x.encoded && !a.cosine ? d / 2 : d;
    float maximum = 0, sum = 1;
    if (x.act == TN_SOFTMAX) tn_la_softmax_row(from, d, &maximum, &sum, scratch);
    for (int i = threadIdx.x; i < half; i += THREADS) {
        float one = tn_la_activated(x, tn_widen(from[i]), slice, i, maximum, sum), c, s;
        if (!x.encoded) {
            to[i] = one;
            continue;
        }
        tn_la_turn(x.grid, a.theta, slice % a.heads, 0, i, &c, &s);
        if (a.cosine) {
            to[i] = one * c;
            to[d + i] = one * s;
        } else {
            float two = tn_la_activated(x, tn_widen(from[half + i]), slice, half + i, maximum, sum);
            to[i] = one * c - two * s;
            to[half + i] = one * s + two * c;
        }
    }
}

template <typename T> __global__ void __launch_bounds__(THREADS) take_step(const __grid_constant__ step a) {
    extern __shared__ float shared[];
    __shared__ float scratch[THREADS / TN_WARP];
    const int padded = (a.rows + 3) & ~3;
    float *q = shared, *k = q + padded, *v = k + padded, *g = v + a.e, *parts = g + a.e; /* parts: [row groups][columns] */
    const int64_t slice = blockIdx.x, head = slice % a.heads;
    encode<T>(a, a.q, slice, q, scratch);
    encode<T>(a, a.k, slice, k, scratch);
    encode<T>(a, a.v, slice, v, scratch);
    if (a.has_gate) encode<T>(a, a.g, slice, g, scratch);
    const float decay = a.log_decay ? expf(a.log_decay[a.per_token ? slice : head]) : 1.0f;
    __syncthreads();

    const int across = a.columns / 4, groups = THREADS / across, group = threadIdx.x / across, own = threadIdx.x % across * 4;
    const int column = blockIdx.y * a.columns + own;
    if (group < groups && column < a.e) {
        const int64_t begin = slice * (int64_t)a.rows * a.e + column;
        const float4 values = *reinterpret_cast<const float4 *>(v + column);
        float4 sum = make_float4(0, 0, 0, 0);
        for (int row0 = group; row0 < a.rows; row0 += groups * AHEAD) {
            float4 s[AHEAD];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                int row = row0 + u * groups;
                s[u] = a.state && row < a.rows ? *reinterpret_cast<const float4 *>(a.state + begin + (int64_t)row * a.e)
                                               : make_float4(0, 0, 0, 0);
            }
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                int row = row0 + u * groups;
                if (row >= a.rows) break;
                float key = k[row], query = q[row];
                s[u].x = fmaf(s[u].x, decay, key * values.x), s[u].y = fmaf(s[u].y, decay, key * values.y);
                s[u].z = fmaf(s[u].z, decay, key * values.z), s[u].w = fmaf(s[u].w, decay, key * values.w);
                sum.x = fmaf(query, s[u].x, sum.x), sum.y = fmaf(query, s[u].y, sum.y);
                sum.z = fmaf(query, s[u].z, sum.z), sum.w = fmaf(query, s[u].w, sum.w);
                if (a.state_out) *reinterpret_cast<float4 *>(a.state_out + begin + (int64_t)row * a.e) = s[u];
            }
        }
        *reinterpret_cast<float4 *>(parts + group * a.columns + own) = sum;
    }
    __syncthreads();
    T *o = (T *)a.o + tn_la_row(a.o_stride, a.heads, slice, 0);
    for (int i = threadIdx.x; i < a.columns && blockIdx.y * a.columns + i < a.e; i += THREADS) {
        float sum = 0;
        for (int part = 0; part < groups; part++) sum += parts[part * a.columns + i];
        int at = blockIdx.y * a.columns + i;
        o[at] = tn_narrow<T>(sum * a.scale * (a.has_gate ? g[at] : 1.0f));
    }
}

template <typename T> void launch(const step &a, dim3 grid, size_t bytes, cudaStream_t stream) {
    take_step<T><<<grid, THREADS, bytes, stream>>>(a);
}

} // namespace

extern "C" bool tn_la_step_fits(const tn_la_problem *p) {
    return p->n == 1 && !p->cu_seqlens && p->dtype != TN_F64 && p->e % 4 == 0 && p->e <= 1024 && p->state_rows <= 2048 &&
           tn_aligned16(p->state) && tn_aligned16(p->state_out);
}

extern "C" int tn_la_step(const tn_op_call *call, const tn_la_problem *p) {
    step a = {};
    a.q = p->q, a.k = p->k, a.v = p->v, a.g = p->g;
    a.has_gate = p->has_gate, a.cosine = p->encoded && p->kind == TN_COSINE, a.per_token = p->decay == TN_LA_SCALAR_DECAY;
    a.theta = (const float *)p->theta;
    a.log_decay = p->decay == TN_LA_NO_DECAY ? NULL : (const float *)p->log_decay;
    a.state = (const float *)p->state, a.state_out = (float *)p->state_out;
    a.o = p->o, a.o_stride = p->o_stride;
    a.heads = p->h;
    a.rows = (int)p->state_rows, a.e = (int)p->e;
    a.scale = (float)p->scale;
    const int64_t slices = p->b * p->h;
    if (slices == 0) return 0;
    /* Fewer columns a block where there are few heads; no fewer than 32, a whole line. */
    int columns = a.e < 512 ? a.e : 512;
    while (columns % 8 == 0 && columns > 32 && slices * ((a.e + columns - 1) / columns) < 4 * (int64_t)call->device->multiprocessors)
        columns /= 2;
    a.columns = columns;
    const dim3 grid((unsigned)slices, (unsigned)((a.e + columns - 1) / columns));
    const int groups = THREADS / (columns / 4);
    const size_t bytes = (size_t)(2 * (a.rows + 3) + 2 * a.e + groups * columns) * sizeof(float);
    if (p->dtype == TN_F32) launch<float>(a, grid, bytes, (cudaStream_t)call->stream);
    else launch<tn_cuda_bf16>(a, grid, bytes, (cudaStream_t)call->stream);
    return (int)cudaGetLastError();
}
