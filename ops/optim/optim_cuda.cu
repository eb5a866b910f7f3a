/* The optimizers' arithmetic on CUDA: all tensors in a few launches.
 *
 * A launch takes up to BATCH tensors of one dtype, whose pointers and rates travel by value in the kernel's parameters; the tensors are cut
 * into pieces of PIECE elements, and a block finds its piece by a search in that table:
 *
 *     tensor     | 0            | 1     | 2                   | ..
 *     piece      | 0  1  2  3   | 4     | 5  6  7  8  9  10   | ..      = block
 *
 * Bytes per element: AdamW on f32 reads g, p, m, v and writes p, m, v (28); on bf16 it reads g, p, master, m, v and writes p, master, m, v
 * (30). Nothing waits for the host: the norm of the gradients stays on the device, and the kernel that scales them reads it there. */
#include "optim_internal.h"

#include "../../libtensor/cuda_common.cuh"

#define THREADS 256
#define PIECE TN_OPTIM_CHUNK /* also the piece of the norm's sum, so that its order is the same on every GPU */
#define BATCH 40             /* tensors whose records fit a kernel's 4 KiB of parameters */

struct optim_record {
    int64_t n;
    int64_t first_piece; /* pieces of the tensors before it in this launch */
    int64_t first_part;  /* where its parts of the norm go */
    void *p, *g, *master, *first, *second;
    double rate, keep, root_scale,
        decay; /* with a schedule, rate is what the learning rate is scaled by, and keep and root_scale are not used */
};

struct optim_batch {
    int n_tensors;
    int64_t n_pieces;
    optim_record tensor[BATCH];
};

/* The piece of a block. */
struct optim_piece {
    int tensor;
    int64_t number, begin, end;
};

__device__ __forceinline__ optim_piece piece_of(const optim_batch &batch) {
    int low = 0, high = batch.n_tensors;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (batch.tensor[middle].first_piece <= (int64_t)blockIdx.x) low = middle;
        else high = middle;
    }
    optim_piece piece;
    piece.tensor = low;
    piece.number = (int64_t)blockIdx.x - batch.tensor[low].first_piece;
    piece.begin = piece.number * PIECE;
    piece.end = piece.begin + PIECE < batch.tensor[low].n ? piece.begin + PIECE : batch.tensor[low].n;
    return piece;
}

/* ---- groups of neighbouring elements ---- */

/* N elements of T by one access of 8 or 16 bytes, or one element. */
template <typename T, int N> struct alignas(N * sizeof(T)) element_group { T at[N]; };
template <typename T, int N> __device__ __forceinline__ void load_group(const void *from, int64_t at, tn_wide<T> (&to)[N]) {
    const element_group<T, N> group = *(const element_group<T, N> *)((const T *)from + at);
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = tn_widen(group.at[j]);
}
template <typename T, int N> __device__ __forceinline__ void store_group(void *to, int64_t at, const tn_wide<T> (&from)[N]) {
    element_group<T, N> group;
#pragma unroll
    for (int j = 0; j < N; j++) group.at[j] = tn_narrow<T>(from[j]);
    if constexpr (N * sizeof(T) == 16) {
        tn_store_pack((T *)to + at, *(const tn_pack<T> *)&group);
    } else if constexpr (N > 1) { /* 8 bytes, by assembly for tn_store_pack's reason */
        const uint2 words = *(const uint2 *)&group;
        asm volatile("st.global.v2.b32 [%0], {%1, %2};"
                     :
                     : "l"(__cvta_generic_to_global((T *)to + at)), "r"(words.x), "r"(words.y)
                     : "memory");
    } else {
        ((T *)to)[at] = group.at[0];
    }
}

/* Calls body.run<N>(element) for all of a piece: groups of Body::group elements where they are aligned, the rest one by one. */
template <bool Packed, typename Body> __device__ __forceinline__ void over_piece(const optim_piece &piece, const Body &body) {
    constexpr int n = Body::group;
    int64_t tail = piece.begin;
    if constexpr (Packed) {
        tail = piece.end - (piece.end - piece.begin) % n;
        for (int64_t i = piece.begin + (int64_t)threadIdx.x * n; i < tail; i += THREADS * n) body.template run<n>(i);
    }
    for (int64_t i = tail + threadIdx.x; i < piece.end; i += THREADS) body.template run<1>(i);
}

/* Updates take four elements at once, so that moments and masters (f32) go by 16 bytes and warps by whole lines; sums and scaling 16
 * bytes. */
#define STEP_GROUP 4

/* ---- parameters in f64 and f32, or in bf16 with a master ---- */

/* A bf16 parameter that is not its master's rounding was written by someone else and replaces it. */
template <typename T, int N> __device__ __forceinline__ void load_parameter(const optim_record &t, int64_t at, tn_wide<T> (&p)[N]) {
    load_group<T, N>(t.p, at, p);
    if constexpr (sizeof(T) == 2) {
        float master[N];
        load_group<float, N>(t.master, at, master);
#pragma unroll
        for (int j = 0; j < N; j++) p[j] = tn_widen(tn_narrow<T>(master[j])) == p[j] ? master[j] : p[j];
    }
}
template <typename T, int N> __device__ __forceinline__ void store_parameter(const optim_record &t, int64_t at, const tn_wide<T> (&p)[N]) {
    store_group<T, N>(t.p, at, p);
    if constexpr (sizeof(T) == 2) store_group<float, N>(t.master, at, p);
}

/* ---- the rules ---- */

template <typename W> struct adamw_rule { W beta1, beta2, rest1, rest2, eps; };

template <typename W> struct adamw_rates { W keep, rate, root_scale; };

/* As set_rates in optim.c makes them, from what the device knows; without contraction, so that the bits are the same. */
template <typename W> __device__ __forceinline__ adamw_rates<W> rates_of(const optim_record &t, const double *schedule) {
    adamw_rates<W> rates = { (W)t.keep, (W)t.rate, (W)t.root_scale };
    if (schedule) {
        double lr = __dmul_rn(schedule[TN_SCHEDULE_LR], t.rate);
        rates.keep = (W)__dsub_rn(1.0, __dmul_rn(lr, t.decay));
        rates.rate = (W)(lr / schedule[TN_SCHEDULE_BIAS1]);
        rates.root_scale = (W)(1 / sqrt(schedule[TN_SCHEDULE_BIAS2]));
    }
    return rates;
}

template <typename T> struct adamw_body {
    typedef tn_wide<T> W;
    static constexpr int group = STEP_GROUP;
    const optim_record &t;
    const adamw_rule<W> &rule;
    const adamw_rates<W> rates;

    template <int N> __device__ __forceinline__ void run(int64_t at) const {
        W g[N], m[N], v[N], p[N];
        load_group<T, N>(t.g, at, g);
        load_group<W, N>(t.first, at, m);
        load_group<W, N>(t.second, at, v);
        load_parameter<T, N>(t, at, p);
#pragma unroll
        for (int j = 0; j < N; j++) {
            m[j] = rule.beta1 * m[j] + rule.rest1 * g[j];
            v[j] = rule.beta2 * v[j] + rule.rest2 * g[j] * g[j];
            p[j] = p[j] * rates.keep - rates.rate * m[j] / (sqrt(v[j]) * rates.root_scale + rule.eps);
        }
        store_group<W, N>(t.first, at, m);
        store_group<W, N>(t.second, at, v);
        store_parameter<T, N>(t, at, p);
    }
};

template <typename W> struct sgd_rule {
    W momentum;
    bool nesterov;
};

template <typename T> struct sgd_body {
    typedef tn_wide<T> W;
    static constexpr int group = STEP_GROUP;
    const optim_record &t;
    const sgd_rule<W> &rule;

    template <int N> __device__ __forceinline__ void run(int64_t at) const {
        W d[N], b[N], p[N];
        load_group<T, N>(t.g, at, d);
        if (t.first) load_group<W, N>(t.first, at, b);
        load_parameter<T, N>(t, at, p);
        const W rate = (W)t.rate, decay = (W)t.decay;
#pragma unroll
        for (int j = 0; j < N; j++) d[j] += decay * p[j];
        if (t.first) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                b[j] = rule.momentum * b[j] + d[j];
                d[j] = rule.nesterov ? d[j] + rule.momentum * b[j] : b[j];
            }
            store_group<W, N>(t.first, at, b);
        }
#pragma unroll
        for (int j = 0; j < N; j++) p[j] -= rate * d[j];
        store_parameter<T, N>(t, at, p);
    }
};

template <typename T, bool Packed>
__global__ void __launch_bounds__(THREADS)
    adamw_step(const __grid_constant__ optim_batch batch, const __grid_constant__ adamw_rule<tn_wide<T>> rule, const double *schedule) {
    optim_piece piece = piece_of(batch);
    const optim_record &t = batch.tensor[piece.tensor];
    over_piece<Packed>(piece, adamw_body<T>{ t, rule, rates_of<tn_wide<T>>(t, schedule) });
}
template <typename T, bool Packed>
__global__ void __launch_bounds__(THREADS)
    sgd_step(const __grid_constant__ optim_batch batch, const __grid_constant__ sgd_rule<tn_wide<T>> rule) {
    optim_piece piece = piece_of(batch);
    over_piece<Packed>(piece, sgd_body<T>{ batch.tensor[piece.tensor], rule });
}

/* ---- the norm of all gradients ---- */

template <typename T> struct squares_body {
    static constexpr int group = tn_pack<T>::n;
    const optim_record &t;
    double &sum;

    template <int N> __device__ __forceinline__ void run(int64_t at) const {
        tn_wide<T> g[N];
        load_group<T, N>(t.g, at, g);
#pragma unroll
        for (int j = 0; j < N; j++) sum += (double)g[j] * (double)g[j];
    }
};

template <typename T, bool Packed>
__global__ void __launch_bounds__(THREADS) sum_squares(const __grid_constant__ optim_batch batch, double *parts) {
    __shared__ double scratch[TN_WARP];
    optim_piece piece = piece_of(batch);
    double sum = 0;
    over_piece<Packed>(piece, squares_body<T>{ batch.tensor[piece.tensor], sum });
    sum = tn_block_sum(sum, scratch);
    if (threadIdx.x == 0) parts[batch.tensor[piece.tensor].first_part + piece.number] = sum;
}

#define NORM_THREADS 1024

/* One block: every thread adds the parts NORM_THREADS apart. */
__global__ void __launch_bounds__(NORM_THREADS) finish_norm(double *norm, const double *parts, int64_t n_parts) {
    __shared__ double scratch[TN_WARP];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n_parts; i += NORM_THREADS) sum += parts[i];
    sum = tn_block_sum(sum, scratch);
    if (threadIdx.x == 0) *norm = sqrt(sum);
}

template <typename T> struct scale_body {
    static constexpr int group = tn_pack<T>::n;
    const optim_record &t;
    tn_wide<T> factor;

    template <int N> __device__ __forceinline__ void run(int64_t at) const {
        tn_wide<T> g[N];
        load_group<T, N>(t.g, at, g);
#pragma unroll
        for (int j = 0; j < N; j++) g[j] *= factor;
        store_group<T, N>(t.g, at, g);
    }
};

/* Leaves the gradients alone where their norm is small enough; a NaN is no such norm. */
template <typename T, bool Packed>
__global__ void __launch_bounds__(THREADS) scale_gradients(const __grid_constant__ optim_batch batch, const double *norm, double max_norm) {
    const double against_zero = 1e-6;
    double factor = max_norm / (*norm + against_zero);
    if (factor >= 1) return;
    optim_piece piece = piece_of(batch);
    over_piece<Packed>(piece, scale_body<T>{ batch.tensor[piece.tensor], (tn_wide<T>)factor });
}

/* ---- launches ---- */

static optim_record record_of(const tn_optim_list *list, const tn_optim_tensor &t) {
    optim_record record = {};
    record.n = t.n;
    record.first_part = t.first_chunk;
    record.p = t.p, record.g = t.g, record.master = t.master, record.first = t.first, record.second = t.second;
    record.rate = list->schedule ? t.lr_scale : t.rate, record.keep = t.keep, record.root_scale = t.root_scale, record.decay = t.decay;
    return record;
}

static bool can_pack(const tn_optim_list *list, const tn_optim_tensor &t) {
    return t.dtype != TN_F64 && list->device->cuda_path != TN_CUDA_PLAIN && tn_aligned16(t.p) && tn_aligned16(t.g) &&
           tn_aligned16(t.master) && tn_aligned16(t.first) && tn_aligned16(t.second);
}

/* job.launch<T, Packed>(batch) for the tensors of one dtype that can (cannot) be read in packs. */
template <typename T, bool Packed, typename Job>
static cudaError_t launch_batches(const tn_optim_list *list, tn_dtype dtype, const Job &job) {
    const int64_t most_pieces = 0x7fffffff;
    optim_batch batch;
    batch.n_tensors = 0;
    batch.n_pieces = 0;
    for (int64_t i = 0; i < list->n_tensors; i++) {
        const tn_optim_tensor &t = list->tensors[i];
        int64_t pieces = (t.n + PIECE - 1) / PIECE;
        if (t.dtype != dtype || can_pack(list, t) != Packed) continue;
        if (batch.n_tensors == BATCH || (batch.n_tensors > 0 && batch.n_pieces + pieces > most_pieces)) {
            job.template launch<T, Packed>(batch);
            batch.n_tensors = 0;
            batch.n_pieces = 0;
        }
        optim_record &record = batch.tensor[batch.n_tensors++];
        record = record_of(list, t);
        record.first_piece = batch.n_pieces;
        batch.n_pieces += pieces;
    }
    if (batch.n_tensors > 0) job.template launch<T, Packed>(batch);
    return cudaGetLastError();
}

template <typename Job> static tn_status launch_all(const tn_optim_list *list, const char *name, const Job &job) {
    cudaError_t error = launch_batches<double, false>(list, TN_F64, job);
    if (error == cudaSuccess) error = launch_batches<float, false>(list, TN_F32, job);
    if (error == cudaSuccess) error = launch_batches<float, true>(list, TN_F32, job);
    if (error == cudaSuccess) error = launch_batches<tn_cuda_bf16, false>(list, TN_BF16, job);
    if (error == cudaSuccess) error = launch_batches<tn_cuda_bf16, true>(list, TN_BF16, job);
    return tn_cuda_said(list->device, (int)error, name);
}

struct adamw_job {
    const tn_adamw_args *args;
    const double *schedule;
    cudaStream_t stream;

    template <typename T, bool Packed> void launch(const optim_batch &batch) const {
        typedef tn_wide<T> W;
        adamw_rule<W> rule = { (W)args->beta1, (W)args->beta2, (W)(1 - args->beta1), (W)(1 - args->beta2), (W)args->eps };
        adamw_step<T, Packed><<<(unsigned)batch.n_pieces, THREADS, 0, stream>>>(batch, rule, schedule);
    }
};

struct sgd_job {
    const tn_sgd_args *args;
    cudaStream_t stream;

    template <typename T, bool Packed> void launch(const optim_batch &batch) const {
        sgd_rule<tn_wide<T>> rule = { (tn_wide<T>)args->momentum, args->nesterov };
        sgd_step<T, Packed><<<(unsigned)batch.n_pieces, THREADS, 0, stream>>>(batch, rule);
    }
};

struct squares_job {
    double *parts;
    cudaStream_t stream;

    template <typename T, bool Packed> void launch(const optim_batch &batch) const {
        sum_squares<T, Packed><<<(unsigned)batch.n_pieces, THREADS, 0, stream>>>(batch, parts);
    }
};

struct scale_job {
    const double *norm;
    double max_norm;
    cudaStream_t stream;

    template <typename T, bool Packed> void launch(const optim_batch &batch) const {
        scale_gradients<T, Packed><<<(unsigned)batch.n_pieces, THREADS, 0, stream>>>(batch, norm, max_norm);
    }
};

static tn_status adamw(const tn_optim_list *list, const tn_adamw_args *args) {
    return launch_all(list, "adamw", adamw_job{ args, list->schedule, (cudaStream_t)list->stream });
}

static tn_status sgd(const tn_optim_list *list, const tn_sgd_args *args) {
    return launch_all(list, "sgd", sgd_job{ args, (cudaStream_t)list->stream });
}

static tn_status clip(const tn_optim_list *list, double max_norm, double *norm, double *parts) {
    cudaStream_t stream = (cudaStream_t)list->stream;
    tn_status status = launch_all(list, "norm of gradients", squares_job{ parts, stream });
    if (status != TN_OK) return status;
    finish_norm<<<1, NORM_THREADS, 0, stream>>>(norm, parts, list->n_chunks);
    status = tn_cuda_said(list->device, (int)cudaGetLastError(), "norm of gradients");
    if (status != TN_OK || isinf(max_norm)) return status;
    return launch_all(list, "clipping of gradients", scale_job{ norm, max_norm, stream });
}

extern "C" const tn_optim_kernels tn_optim_kernels_cuda = { adamw, sgd, clip };
