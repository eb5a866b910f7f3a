#include "reduction_cuda.cuh"

/* ---- plans ---- */

#define MOST_BLOCKS 4096  /* outputs are cut into chunks as long as there are fewer blocks */
#define MOST_COLUMNS 1536 /* of columns, whose chunks each leave a state for every column, to be merged */
#define CHUNK_BYTES 16384 /* read by a chunk at least */
#define BLOCK_BYTES 16384 /* a row of more has a block of its own */

typedef struct axis {
    int64_t size, in, mark;
    bool reduced;
} axis;

/* Innermost first; without those of size 1. */
static int collect_axes(const tn_tensor *t, uint32_t reduced_axes, bool ordered, axis *axes) {
    int n = 0;
    int64_t out_step = 1, place_step = 1;
    for (int i = t->axes - 1; i >= 0; i--) {
        bool reduced = reduced_axes >> i & 1;
        int64_t *step = reduced ? &place_step : &out_step;
        if (t->shape[i] != 1) axes[n++] = axis{ t->shape[i], t->stride[i], reduced && !ordered ? 0 : *step, reduced };
        *step *= t->shape[i];
    }
    return n;
}

/* How far apart neighbours are; repetitions of one element count as furthest, so that they come last. */
static int64_t distance(const axis &a) { return a.in == 0 ? INT64_MAX : a.in < 0 ? -a.in : a.in; }

static void sort_by_distance(axis *axes, int n) {
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && distance(axes[j]) < distance(axes[j - 1]); j--) {
            axis swap = axes[j];
            axes[j] = axes[j - 1];
            axes[j - 1] = swap;
        }
}

static int merge_axes(axis *axes, int n) {
    int merged = 0;
    for (int i = 1; i < n; i++) {
        axis *inner = &axes[merged];
        const axis outer = axes[i];
        if (inner->reduced == outer.reduced && outer.in == inner->size * inner->in && outer.mark == inner->size * inner->mark)
            inner->size *= outer.size;
        else axes[++merged] = outer;
    }
    return n ? merged + 1 : 0;
}

static void append(tn_reduce_walk *walk, const axis &a) {
    walk->size[walk->n] = a.size;
    walk->in[walk->n] = a.in;
    walk->mark[walk->n++] = a.mark;
}

tn_reduce_plan tn_reduce_make_plan(const tn_tensor *t, uint32_t reduced_axes, bool ordered) {
    axis axes[TN_MAX_AXES];
    tn_reduce_plan plan = {};
    int n = collect_axes(t, reduced_axes, ordered, axes);
    sort_by_distance(axes, n);
    n = merge_axes(axes, n);
    const axis *kept = NULL, *reduced = NULL;
    for (int i = n - 1; i >= 0; i--) *(axes[i].reduced ? &reduced : &kept) = &axes[i];
    plan.columns = kept && (!reduced || distance(*kept) < distance(*reduced));
    plan.n_out = plan.n_reduced = 1;
    for (int i = 0; i < t->axes; i++) *(reduced_axes >> i & 1 ? &plan.n_reduced : &plan.n_out) *= t->shape[i];
    for (int i = 0; i < n; i++) {
        if (plan.columns && &axes[i] == kept) continue;
        append(axes[i].reduced ? &plan.reduced : &plan.kept, axes[i]);
    }
    plan.across = plan.columns ? kept->size : 1;
    plan.across_in = plan.columns ? kept->in : 0;
    plan.across_out = plan.columns ? kept->mark : 0;
    return plan;
}

/* ---- cuts ---- */

static int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

static int64_t within(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* `block_bytes` go into one chunkless block of which there are n_blocks. */
static int64_t chunks_for(int64_t n_blocks, int64_t block_bytes, int64_t most_blocks) {
    if (n_blocks < 1) return 1;
    int64_t most = block_bytes / CHUNK_BYTES;
    return within(most_blocks / n_blocks, 1, most < 1 ? 1 : most);
}

static tn_reduce_cut cut_rows(const tn_reduce_plan &plan, size_t element_bytes, int pack) {
    const int loads = pack > 1 ? 4 : 8;
    tn_reduce_cut cut = {};
    int64_t row_bytes = plan.n_reduced * (int64_t)element_bytes, lanes = parts_of(parts_of(plan.n_reduced, pack), loads);
    cut.n_panels = cut.n_chunks = 1;
    cut.x = 1;
    if (row_bytes > BLOCK_BYTES) {
        cut.x = TN_REDUCE_THREADS;
        cut.n_chunks = chunks_for(plan.n_out, row_bytes, MOST_BLOCKS);
    }
    while (cut.x < lanes && cut.x < TN_WARP) cut.x *= 2;
    for (cut.log_x = 0; 1 << cut.log_x < cut.x; cut.log_x++) continue;
    cut.y = 1;
    cut.z = TN_REDUCE_THREADS / cut.x;
    cut.n_units = plan.n_out;
    return cut;
}

static tn_reduce_cut cut_columns(const tn_reduce_plan &plan, size_t element_bytes, int pack) {
    const int loads = pack > 1 ? 4 : 8;
    tn_reduce_cut cut = {};
    cut.x = (int)within(parts_of(plan.across, pack), 1, TN_WARP);
    cut.y = (int)within(parts_of(plan.n_reduced, loads), 1, TN_REDUCE_THREADS / cut.x);
    cut.z = TN_REDUCE_THREADS / (cut.x * cut.y);
    int64_t width = (int64_t)cut.x * pack;
    cut.n_panels = parts_of(plan.across, width);
    cut.n_units = plan.across ? plan.n_out / plan.across * cut.n_panels : 0;
    cut.n_chunks = 1;
    if (cut.z == 1)
        cut.n_chunks =
            chunks_for(cut.n_units, plan.n_reduced * (width < plan.across ? width : plan.across) * (int64_t)element_bytes, MOST_COLUMNS);
    return cut;
}

tn_reduce_cut tn_reduce_make_cut(const tn_reduce_plan &plan, size_t element_bytes, int pack) {
    tn_reduce_cut cut = plan.columns ? cut_columns(plan, element_bytes, pack) : cut_rows(plan, element_bytes, pack);
    cut.n_blocks = parts_of(cut.n_units * cut.n_chunks, cut.z);
    return cut;
}

static bool walk_in_packs(const tn_reduce_walk &walk, int from, int64_t pack) {
    for (int i = from; i < walk.n; i++)
        if (walk.in[i] % pack) return false;
    return true;
}

bool tn_reduce_comes_in_packs(const tn_reduce_plan &plan, const void *data, size_t element_bytes) {
    int64_t pack = 16 / (int64_t)element_bytes;
    if (pack < 2 || !tn_aligned16(data)) return false;
    if (plan.columns)
        return plan.across_in == 1 && plan.across % pack == 0 && walk_in_packs(plan.kept, 0, pack) && walk_in_packs(plan.reduced, 0, pack);
    return plan.reduced.n > 0 && plan.reduced.in[0] == 1 && plan.reduced.size[0] % pack == 0 && walk_in_packs(plan.kept, 0, pack) &&
           walk_in_packs(plan.reduced, 1, pack);
}

size_t tn_reduce_parts_bytes(const tn_reduce_plan &plan, size_t element_bytes, size_t state_bytes) {
    if (plan.n_out == 0) return 0;
    int64_t one = tn_reduce_make_cut(plan, element_bytes, 1).n_chunks,
            packs = tn_reduce_make_cut(plan, element_bytes, 16 / (int)element_bytes).n_chunks;
    int64_t n_chunks = one > packs ? one : packs;
    return n_chunks > 1 ? (size_t)(n_chunks * plan.n_out) * state_bytes : 0;
}

/* ---- sums ---- */

/* f32 and bf16 are summed in f32 by a thread and in f64 from thread to thread. */
template <typename T> struct sum_of {
    typedef T element;
    typedef tn_wide<T> value, fold;
    typedef double state;
    static constexpr bool packable = sizeof(T) < 8;
    T *o;
    double divisor;

    __host__ __device__ size_t element_bytes() const { return sizeof(T); }
    __device__ value at(const void *data, int64_t i) const { return tn_widen(((const T *)data)[i]); }
    __device__ value neutral() const { return 0; }
    __device__ fold start() const { return 0; }
    template <bool Rising, int U, int N>
    __device__ __forceinline__ void take(fold &sum, value (&v)[U][N], const int64_t (&)[U], int64_t) const {
        value flat[U * N];
#pragma unroll
        for (int k = 0; k < U * N; k++) flat[k] = v[k / N][k % N];
        sum += tn_tree_sum(flat);
    }
    __device__ state settle(fold sum) const { return sum; }
    __device__ state merge(state a, state b) const { return a + b; }
    __device__ state shuffle(state s, int step) const { return __shfl_xor_sync(0xffffffffu, s, step); }
    __device__ void finish(state s, int64_t to) const { o[to] = tn_narrow<T>((value)(divisor == 1 ? s : s / divisor)); }
};

struct sum_of_integers {
    typedef int64_t element;
    typedef uint64_t value, fold, state;
    static constexpr bool packable = false;
    uint64_t *o;
    tn_dtype dtype;

    __host__ __device__ size_t element_bytes() const { return dtype == TN_I64 ? 8 : dtype == TN_I32 ? 4 : 1; }
    __device__ value at(const void *data, int64_t i) const { return (uint64_t)tn_integer_at(dtype, data, i); }
    __device__ value neutral() const { return 0; }
    __device__ fold start() const { return 0; }
    template <bool Rising, int U, int N>
    __device__ __forceinline__ void take(fold &sum, value (&v)[U][N], const int64_t (&)[U], int64_t) const {
#pragma unroll
        for (int u = 0; u < U; u++) sum += v[u][0];
    }
    __device__ state settle(fold sum) const { return sum; }
    __device__ state merge(state a, state b) const { return a + b; }
    __device__ state shuffle(state s, int step) const { return __shfl_xor_sync(0xffffffffu, (unsigned long long)s, step); }
    __device__ void finish(state s, int64_t to) const { o[to] = s; }
};

extern "C" size_t tn_cuda_sum_bytes(const tn_tensor *x, uint32_t axes) {
    return tn_reduce_parts_bytes(tn_reduce_make_plan(x, axes, false), tn_dtype_size(x->dtype), sizeof(double));
}

extern "C" int tn_cuda_sum(tn_device *device, const tn_tensor *x, uint32_t axes, double divisor, void *o, void *workspace, void *stream) {
    tn_reduce_plan plan = tn_reduce_make_plan(x, axes, false);
    cudaStream_t s = (cudaStream_t)stream;
    if (!tn_dtype_is_float(x->dtype))
        return (int)tn_reduce_run(device, sum_of_integers{ (uint64_t *)o, x->dtype }, x->data, plan, workspace, s);
    cudaError_t error = cudaSuccess;
    TN_WITH_FLOAT(x->dtype, T, (error = tn_reduce_run(device, sum_of<T>{ (T *)o, divisor }, x->data, plan, workspace, s)));
    return (int)error;
}
