/* The optimizers' arithmetic on the CPU: all tensors as one long row of chunks, spread over all cores. */
#include <math.h>

#include "../../libtensor/parallel.h"
#include "../lanes_cpu.h"
#include "optim_internal.h"

#define LANES TN_VF_LANES

/* The tensor that chunk number `chunk` lies in. */
static const tn_optim_tensor *tensor_of(const tn_optim_list *list, int64_t chunk) {
    int64_t low = 0, high = list->n_tensors;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (list->tensors[middle].first_chunk <= chunk) low = middle;
        else high = middle;
    }
    return &list->tensors[low];
}

/* The elements of that chunk. */
static int64_t chunk_begin(const tn_optim_tensor *t, int64_t chunk) { return (chunk - t->first_chunk) * TN_OPTIM_CHUNK; }
static int64_t chunk_end(const tn_optim_tensor *t, int64_t chunk) {
    int64_t begin = chunk_begin(t, chunk);
    return t->n - begin < TN_OPTIM_CHUNK ? t->n : begin + TN_OPTIM_CHUNK;
}

/* Few and small tensors are done sooner by one thread than by waking the others. */
static int worthwhile_threads(const tn_optim_list *list) {
    int64_t n = 0;
    for (int64_t i = 0; i < list->n_tensors && n <= TN_OPTIM_CHUNK; i++) n += list->tensors[i].n;
    return n > TN_OPTIM_CHUNK ? list->threads : 1;
}

/* ---- parameters in f32, or in bf16 with a master ---- */

#define LOAD(dtype, from) tn_lanes_load(dtype, from, i, end)
#define STORE(dtype, to, v) tn_lanes_store(dtype, to, i, end, v)

/* A bf16 parameter that is not its master's rounding was written by someone else and replaces it. */
TN_INLINE tn_vf load_parameter(const tn_optim_tensor *t, int64_t i, int64_t end, tn_dtype dtype) {
    tn_vf p = LOAD(dtype, t->p);
    if (dtype == TN_F32) return p;
    tn_vf master = LOAD(TN_F32, t->master);
    return tn_vf_select(tn_vf_from_bf16_bits(tn_vf_to_bf16_bits(master)) == p, master, p);
}

TN_INLINE void store_parameter(const tn_optim_tensor *t, int64_t i, int64_t end, tn_dtype dtype, tn_vf p) {
    STORE(dtype, t->p, p);
    if (dtype == TN_BF16) STORE(TN_F32, t->master, p);
}

/* ---- AdamW ---- */

typedef struct tn_adamw_job {
    const tn_optim_list *list;
    const tn_adamw_args *args;
} tn_adamw_job;

TN_INLINE void adamw_lanes(const tn_optim_tensor *t, const tn_adamw_args *args, int64_t begin, int64_t end, tn_dtype dtype) {
    const float beta1 = (float)args->beta1, beta2 = (float)args->beta2, rest1 = (float)(1 - args->beta1), rest2 = (float)(1 - args->beta2);
    const float eps = (float)args->eps, keep = (float)t->keep, rate = (float)t->rate, root_scale = (float)t->root_scale;
    for (int64_t i = begin; i < end; i += LANES) {
        tn_vf g = LOAD(dtype, t->g);
        tn_vf m = beta1 * LOAD(TN_F32, t->first) + rest1 * g;
        tn_vf v = beta2 * LOAD(TN_F32, t->second) + rest2 * g * g;
        STORE(TN_F32, t->first, m);
        STORE(TN_F32, t->second, v);
        tn_vf p = load_parameter(t, i, end, dtype);
        store_parameter(t, i, end, dtype, p * keep - rate * m / (tn_vf_sqrt(v) * root_scale + eps));
    }
}
TN_SIMD_CLONES static void adamw_f32(const tn_optim_tensor *t, const tn_adamw_args *args, int64_t begin, int64_t end) {
    adamw_lanes(t, args, begin, end, TN_F32);
}
TN_SIMD_CLONES static void adamw_bf16(const tn_optim_tensor *t, const tn_adamw_args *args, int64_t begin, int64_t end) {
    adamw_lanes(t, args, begin, end, TN_BF16);
}

static void adamw_f64(const tn_optim_tensor *t, const tn_adamw_args *args, int64_t begin, int64_t end) {
    double *p = t->p, *m = t->first, *v = t->second;
    const double *g = t->g;
    for (int64_t i = begin; i < end; i++) {
        m[i] = args->beta1 * m[i] + (1 - args->beta1) * g[i];
        v[i] = args->beta2 * v[i] + (1 - args->beta2) * g[i] * g[i];
        p[i] = p[i] * t->keep - t->rate * m[i] / (sqrt(v[i]) * t->root_scale + args->eps);
    }
}

static void adamw_chunks(void *user, int64_t first, int64_t last) {
    const tn_adamw_job *job = user;
    for (int64_t chunk = first; chunk < last; chunk++) {
        const tn_optim_tensor *t = tensor_of(job->list, chunk);
        int64_t begin = chunk_begin(t, chunk), end = chunk_end(t, chunk);
        if (t->dtype == TN_F64) adamw_f64(t, job->args, begin, end);
        else if (t->dtype == TN_F32) adamw_f32(t, job->args, begin, end);
        else adamw_bf16(t, job->args, begin, end);
    }
}

static tn_status adamw(const tn_optim_list *list, const tn_adamw_args *args) {
    tn_adamw_job job = { list, args };
    tn_parallel_for(list->n_chunks, 1, adamw_chunks, &job, worthwhile_threads(list));
    return TN_OK;
}

/* ---- SGD ---- */

typedef struct tn_sgd_job {
    const tn_optim_list *list;
    const tn_sgd_args *args;
} tn_sgd_job;

TN_INLINE void sgd_lanes(const tn_optim_tensor *t, const tn_sgd_args *args, int64_t begin, int64_t end, tn_dtype dtype) {
    const float momentum = (float)args->momentum, rate = (float)t->rate, decay = (float)t->decay;
    for (int64_t i = begin; i < end; i += LANES) {
        tn_vf p = load_parameter(t, i, end, dtype);
        tn_vf d = LOAD(dtype, t->g) + decay * p;
        if (t->first) {
            tn_vf b = momentum * LOAD(TN_F32, t->first) + d;
            STORE(TN_F32, t->first, b);
            d = args->nesterov ? d + momentum * b : b;
        }
        store_parameter(t, i, end, dtype, p - rate * d);
    }
}
TN_SIMD_CLONES static void sgd_f32(const tn_optim_tensor *t, const tn_sgd_args *args, int64_t begin, int64_t end) {
    sgd_lanes(t, args, begin, end, TN_F32);
}
TN_SIMD_CLONES static void sgd_bf16(const tn_optim_tensor *t, const tn_sgd_args *args, int64_t begin, int64_t end) {
    sgd_lanes(t, args, begin, end, TN_BF16);
}

static void sgd_f64(const tn_optim_tensor *t, const tn_sgd_args *args, int64_t begin, int64_t end) {
    double *p = t->p, *b = t->first;
    const double *g = t->g;
    for (int64_t i = begin; i < end; i++) {
        double d = g[i] + t->decay * p[i];
        if (b) {
            b[i] = args->momentum * b[i] + d;
            d = args->nesterov ? d + args->momentum * b[i] : b[i];
        }
        p[i] -= t->rate * d;
    }
}

static void sgd_chunks(void *user, int64_t first, int64_t last) {
    const tn_sgd_job *job = user;
    for (int64_t chunk = first; chunk < last; chunk++) {
        const tn_optim_tensor *t = tensor_of(job->list, chunk);
        int64_t begin = chunk_begin(t, chunk), end = chunk_end(t, chunk);
        if (t->dtype == TN_F64) sgd_f64(t, job->args, begin, end);
        else if (t->dtype == TN_F32) sgd_f32(t, job->args, begin, end);
        else sgd_bf16(t, job->args, begin, end);
    }
}

static tn_status sgd(const tn_optim_list *list, const tn_sgd_args *args) {
    tn_sgd_job job = { list, args };
    tn_parallel_for(list->n_chunks, 1, sgd_chunks, &job, worthwhile_threads(list));
    return TN_OK;
}

/* ---- the norm of all gradients ---- */

typedef struct tn_clip_job {
    const tn_optim_list *list;
    double *parts;
    double factor;
} tn_clip_job;

/* In f64, so that no gradient's square overflows. */
TN_INLINE double squares(const tn_optim_tensor *t, int64_t begin, int64_t end, tn_dtype dtype) {
    tn_vd16 sum = { 0 };
    for (int64_t i = begin; i < end; i += LANES) {
        tn_vd16 g = tn_vd16_from_vf(LOAD(dtype, t->g));
        sum += g * g;
    }
    double total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total;
}
TN_SIMD_CLONES static double squares_f32(const tn_optim_tensor *t, int64_t begin, int64_t end) { return squares(t, begin, end, TN_F32); }
TN_SIMD_CLONES static double squares_bf16(const tn_optim_tensor *t, int64_t begin, int64_t end) { return squares(t, begin, end, TN_BF16); }

static double squares_f64(const tn_optim_tensor *t, int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t i = begin; i < end; i++) sum += ((const double *)t->g)[i] * ((const double *)t->g)[i];
    return sum;
}

static void square_chunks(void *user, int64_t first, int64_t last) {
    const tn_clip_job *job = user;
    for (int64_t chunk = first; chunk < last; chunk++) {
        const tn_optim_tensor *t = tensor_of(job->list, chunk);
        int64_t begin = chunk_begin(t, chunk), end = chunk_end(t, chunk);
        job->parts[chunk] = t->dtype == TN_F64   ? squares_f64(t, begin, end)
                            : t->dtype == TN_F32 ? squares_f32(t, begin, end)
                                                 : squares_bf16(t, begin, end);
    }
}

TN_INLINE void scale(const tn_optim_tensor *t, float factor, int64_t begin, int64_t end, tn_dtype dtype) {
    for (int64_t i = begin; i < end; i += LANES) STORE(dtype, t->g, LOAD(dtype, t->g) * factor);
}
TN_SIMD_CLONES static void scale_f32(const tn_optim_tensor *t, float factor, int64_t begin, int64_t end) {
    scale(t, factor, begin, end, TN_F32);
}
TN_SIMD_CLONES static void scale_bf16(const tn_optim_tensor *t, float factor, int64_t begin, int64_t end) {
    scale(t, factor, begin, end, TN_BF16);
}

static void scale_chunks(void *user, int64_t first, int64_t last) {
    const tn_clip_job *job = user;
    for (int64_t chunk = first; chunk < last; chunk++) {
        const tn_optim_tensor *t = tensor_of(job->list, chunk);
        int64_t begin = chunk_begin(t, chunk), end = chunk_end(t, chunk);
        if (t->dtype == TN_F32) scale_f32(t, (float)job->factor, begin, end);
        else if (t->dtype == TN_BF16) scale_bf16(t, (float)job->factor, begin, end);
        else
            for (int64_t i = begin; i < end; i++) ((double *)t->g)[i] *= job->factor;
    }
}

static tn_status clip(const tn_optim_list *list, double max_norm, double *norm, double *parts) {
    const double against_zero = 1e-6;
    tn_clip_job job = { .list = list, .parts = parts };
    int threads = worthwhile_threads(list);
    tn_parallel_for(list->n_chunks, 1, square_chunks, &job, threads);
    double sum = 0;
    for (int64_t chunk = 0; chunk < list->n_chunks; chunk++) sum += parts[chunk];
    *norm = sqrt(sum);
    job.factor = isinf(max_norm) ? 1 : max_norm / (*norm + against_zero);
    if (!(job.factor >= 1)) tn_parallel_for(list->n_chunks, 1, scale_chunks, &job, threads);
    return TN_OK;
}

const tn_optim_kernels tn_optim_kernels_cpu = { .adamw = adamw, .sgd = sgd, .clip = clip };
