#include "gemm_cuda.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "cuda_primitives.h"
#include "host_memory.h"

/* Larger products are cut: a batch is one axis of the grid, and so are the tiles along m. */
#define MOST_BATCH ((int64_t)32768)
#define MOST_ROWS ((int64_t)1 << 20)

/* cuBLASLt is opened at the first product, so that programs start where it is not installed. */
static struct {
    void *library;
    cublasStatus_t (*create)(cublasLtHandle_t *);
    cublasStatus_t (*desc_init)(cublasLtMatmulDesc_t, size_t, cublasComputeType_t, cudaDataType_t);
    cublasStatus_t (*desc_set)(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *, size_t);
    cublasStatus_t (*layout_init)(cublasLtMatrixLayout_t, size_t, cudaDataType, uint64_t, uint64_t, int64_t);
    cublasStatus_t (*layout_set)(cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, const void *, size_t);
    cublasStatus_t (*preference_init)(cublasLtMatmulPreference_t, size_t);
    cublasStatus_t (*preference_set)(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void *, size_t);
    cublasStatus_t (*heuristic)(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
                                cublasLtMatmulHeuristicResult_t *, int *);
    cublasStatus_t (*config)(const cublasLtMatmulAlgo_t *, cublasLtMatmulAlgoConfigAttributes_t, void *, size_t, size_t *);
    cublasStatus_t (*matmul)(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *, cublasLtMatrixLayout_t, const void *,
                             cublasLtMatrixLayout_t, const void *, const void *, cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t,
                             const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t);
    const char *(*status_name)(cublasStatus_t);
    char missing[160];
} lt;

static bool find(const char *name, void *function) {
    void *found = dlsym(lt.library, name);
    if (!found) snprintf(lt.missing, sizeof lt.missing, "cuBLASLt has no %s", name);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

static void load_library(void) {
    char name[64];
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    lt.library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!lt.library) {
        char path[128];
        snprintf(path, sizeof path, "/usr/local/cuda/lib64/%s", name);
        lt.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    if (!lt.library) {
        snprintf(lt.missing, sizeof lt.missing, "%s can't be loaded", name);
        return;
    }
    bool fine = find("cublasLtCreate", &lt.create) && find("cublasLtMatmulDescInit_internal", &lt.desc_init) &&
                find("cublasLtMatmulDescSetAttribute", &lt.desc_set) && find("cublasLtMatrixLayoutInit_internal", &lt.layout_init) &&
                find("cublasLtMatrixLayoutSetAttribute", &lt.layout_set) &&
                find("cublasLtMatmulPreferenceInit_internal", &lt.preference_init) &&
                find("cublasLtMatmulPreferenceSetAttribute", &lt.preference_set) && find("cublasLtMatmulAlgoGetHeuristic", &lt.heuristic) &&
                find("cublasLtMatmulAlgoConfigGetAttribute", &lt.config) && find("cublasLtMatmul", &lt.matmul) &&
                find("cublasLtGetStatusName", &lt.status_name);
    if (fine) lt.missing[0] = '\0';
}

static pthread_once_t loaded = PTHREAD_ONCE_INIT;

/* ---- what is kept per shape ---- */

typedef struct gemm_key {
    int64_t m, n, k, lda, ldb, ldc, n_batch, batch_a, batch_b, batch_c;
    int32_t dtype, c_dtype, transpose_a, transpose_b, relu, bias, beta, tf32;
    int32_t align_a, align_b, align_c, align_bias;
    uint64_t workspace_bytes;
} gemm_key;

typedef struct gemm_plan {
    gemm_key key;
    bool used;
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
} gemm_plan;

/* All contexts share a handle: it costs milliseconds to make, threads may use it side by side, and it stays until the program ends. */
static struct {
    pthread_mutex_t lock;
    cublasLtHandle_t handle;
} shared = { .lock = PTHREAD_MUTEX_INITIALIZER };

typedef struct tn_gemm_cuda_state {
    cublasLtHandle_t handle;
    gemm_plan *plans; /* open addressing; capacity a power of two */
    size_t n_plans, capacity;
    bool tf32;
} tn_gemm_cuda_state;

static tn_status said(tn_device *device, cublasStatus_t status, const char *call) {
    if (status == CUBLAS_STATUS_SUCCESS) return TN_OK;
    snprintf(device->failure, sizeof device->failure, "%s: %s", call, lt.status_name(status));
    return status == CUBLAS_STATUS_ALLOC_FAILED    ? TN_ERR_HOST_MEMORY
           : status == CUBLAS_STATUS_NOT_SUPPORTED ? TN_ERR_UNSUPPORTED
                                                   : TN_ERR_DEVICE;
}
#define RETURN_UNLESS_OK(expression, call)                             \
    do {                                                               \
        tn_status status_of_call = said(device, (expression), (call)); \
        if (status_of_call != TN_OK) return status_of_call;            \
    } while (0)

static tn_status no_host_memory(tn_device *device) {
    snprintf(device->failure, sizeof device->failure, "the host has no memory left");
    return TN_ERR_HOST_MEMORY;
}

static tn_status state_of(tn_device *device, tn_gemm_cuda_state **state) {
    *state = device->gemm;
    if (*state && (*state)->handle) return TN_OK;
    pthread_once(&loaded, load_library);
    if (lt.missing[0]) {
        snprintf(device->failure, sizeof device->failure, "%s", lt.missing);
        return TN_ERR_UNSUPPORTED;
    }
    if (!*state) *state = device->gemm = tn_host_calloc(sizeof **state);
    if (!*state) return no_host_memory(device);
    pthread_mutex_lock(&shared.lock);
    tn_status status = shared.handle ? TN_OK : said(device, lt.create(&shared.handle), "cublasLtCreate");
    if (status != TN_OK) shared.handle = NULL;
    (*state)->handle = shared.handle;
    pthread_mutex_unlock(&shared.lock);
    return status;
}

tn_status tn_gemm_cuda_allow_tf32(tn_device *device, bool allowed) {
    if (!device->gemm) device->gemm = tn_host_calloc(sizeof(tn_gemm_cuda_state));
    if (!device->gemm) return no_host_memory(device);
    ((tn_gemm_cuda_state *)device->gemm)->tf32 = allowed;
    return TN_OK;
}

void tn_gemm_cuda_close(tn_device *device) {
    tn_gemm_cuda_state *state = device->gemm;
    if (!state) return;
    tn_host_free(state->plans);
    tn_host_free(state);
    device->gemm = NULL;
}

static int32_t alignment_of(const void *p) {
    uintptr_t low = (uintptr_t)p & 255;
    return p ? (int32_t)(low ? low & -low : 256) : 256;
}

static gemm_key key_of(const tn_gemm_cuda_state *state, const tn_gemm_cuda_product *p, size_t workspace_bytes) {
    gemm_key key;
    memset(&key, 0, sizeof key); /* padding takes part in the comparison */
    key.m = p->m, key.n = p->n, key.k = p->k;
    key.lda = p->lda, key.ldb = p->ldb, key.ldc = p->ldc;
    key.n_batch = p->n_batch, key.batch_a = p->batch_a, key.batch_b = p->batch_b, key.batch_c = p->batch_c;
    key.dtype = p->dtype, key.c_dtype = p->c_dtype;
    key.transpose_a = p->transpose_a, key.transpose_b = p->transpose_b;
    key.relu = p->relu, key.bias = p->bias != NULL, key.beta = p->beta != 0, key.tf32 = state->tf32;
    key.align_a = alignment_of(p->a), key.align_b = alignment_of(p->b), key.align_c = alignment_of(p->c),
    key.align_bias = alignment_of(p->bias);
    key.workspace_bytes = workspace_bytes;
    return key;
}

static uint64_t hash_of(const gemm_key *key) {
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < sizeof *key; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        hash = (hash ^ word) * UINT64_C(1099511628211);
        hash ^= hash >> 29;
    }
    return hash;
}
_Static_assert(sizeof(gemm_key) % 8 == 0, "the key is hashed word by word");

/* The slot that holds the key, or the empty one where it belongs. */
static gemm_plan *slot_for(gemm_plan *plans, size_t capacity, const gemm_key *key) {
    size_t at = (size_t)hash_of(key) & (capacity - 1);
    while (plans[at].used && memcmp(&plans[at].key, key, sizeof *key) != 0) at = (at + 1) & (capacity - 1);
    return &plans[at];
}

static bool make_room(tn_gemm_cuda_state *state) {
    if (4 * (state->n_plans + 1) <= 3 * state->capacity) return true;
    size_t capacity = state->capacity ? 2 * state->capacity : 64;
    gemm_plan *plans = tn_host_calloc(capacity * sizeof *plans);
    if (!plans) return false;
    for (size_t i = 0; i < state->capacity; i++)
        if (state->plans[i].used) *slot_for(plans, capacity, &state->plans[i].key) = state->plans[i];
    tn_host_free(state->plans);
    state->plans = plans;
    state->capacity = capacity;
    return true;
}

static cudaDataType_t cuda_type(tn_dtype dtype) { return dtype == TN_F64 ? CUDA_R_64F : dtype == TN_F32 ? CUDA_R_32F : CUDA_R_16BF; }

static tn_status init_layout(tn_device *device, cublasLtMatrixLayoutOpaque_t *layout, tn_dtype dtype, int64_t rows, int64_t columns,
                             int64_t ld, int64_t n_batch, int64_t stride) {
    int32_t count = (int32_t)n_batch;
    RETURN_UNLESS_OK(lt.layout_init(layout, sizeof *layout, cuda_type(dtype), (uint64_t)rows, (uint64_t)columns, ld),
                     "cublasLtMatrixLayoutInit");
    RETURN_UNLESS_OK(lt.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), "cublasLtMatrixLayoutSetAttribute");
    RETURN_UNLESS_OK(lt.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
                     "cublasLtMatrixLayoutSetAttribute");
    return TN_OK;
}

/* cuBLASLt sees columns where we see rows: our c = a b is its c' = b' a', with the operands in the other order. */
static tn_status init_plan(tn_device *device, gemm_plan *plan, const tn_gemm_cuda_product *p, bool tf32) {
    cublasComputeType_t compute = p->dtype == TN_F64           ? CUBLAS_COMPUTE_64F
                                  : p->dtype == TN_F32 && tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                               : CUBLAS_COMPUTE_32F;
    cublasOperation_t op_b = p->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, op_a = p->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = p->bias ? (p->relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS)
                                          : (p->relu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_DEFAULT);
    RETURN_UNLESS_OK(lt.desc_init(&plan->desc, sizeof plan->desc, compute, p->dtype == TN_F64 ? CUDA_R_64F : CUDA_R_32F),
                     "cublasLtMatmulDescInit");
    RETURN_UNLESS_OK(lt.desc_set(&plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof op_b), "cublasLtMatmulDescSetAttribute");
    RETURN_UNLESS_OK(lt.desc_set(&plan->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof op_a), "cublasLtMatmulDescSetAttribute");
    RETURN_UNLESS_OK(lt.desc_set(&plan->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue), "cublasLtMatmulDescSetAttribute");
    if (p->bias)
        RETURN_UNLESS_OK(lt.desc_set(&plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias),
                         "cublasLtMatmulDescSetAttribute");
    tn_status status = p->transpose_b ? init_layout(device, &plan->a, p->dtype, p->k, p->n, p->ldb, p->n_batch, p->batch_b)
                                      : init_layout(device, &plan->a, p->dtype, p->n, p->k, p->ldb, p->n_batch, p->batch_b);
    if (status == TN_OK)
        status = p->transpose_a ? init_layout(device, &plan->b, p->dtype, p->m, p->k, p->lda, p->n_batch, p->batch_a)
                                : init_layout(device, &plan->b, p->dtype, p->k, p->m, p->lda, p->n_batch, p->batch_a);
    return status == TN_OK ? init_layout(device, &plan->c, p->c_dtype, p->n, p->m, p->ldc, p->n_batch, p->batch_c) : status;
}

/* ---- the algorithm ---- */

#define CANDIDATES 10
#define SHORT_K 1024
#define MANY_WAVES 8

/* Tiles of at least 128 x 128 of which a Hopper multiprocessor can hold two sums, so that one is written while the next is made. */
static bool writes_beside(const cublasLtMatmulAlgo_t *algorithm) {
    uint32_t tile = 0;
    size_t n_bytes;
    if (lt.config(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, &n_bytes) != CUBLAS_STATUS_SUCCESS) return false;
    switch (tile) {
    case CUBLASLT_MATMUL_TILE_128x128:
    case CUBLASLT_MATMUL_TILE_128x160:
    case CUBLASLT_MATMUL_TILE_160x128:
    case CUBLASLT_MATMUL_TILE_136x128:
    case CUBLASLT_MATMUL_TILE_144x128:
    case CUBLASLT_MATMUL_TILE_152x128:
    case CUBLASLT_MATMUL_TILE_168x128:
    case CUBLASLT_MATMUL_TILE_176x128: return true;
    default: return false;
    }
}

/* The heuristic's first choice, but where k is short and c large, so that writing c takes a good part of the time: the first of its choices
 * that writes beside its sums. Measured on an H100 in bf16: 3 to 20 % less time at k = 768, 2 to 5 % more at 2048. */
static int choice_of(const tn_device *device, const gemm_key *key, const cublasLtMatmulHeuristicResult_t *results, int n) {
    const double largest_tile = 176 * 128;
    double waves = (double)key->n_batch * (double)key->m * (double)key->n / largest_tile / (device->multiprocessors + 1);
    if (device->cuda_path != TN_CUDA_HOPPER || key->dtype != TN_BF16 || key->k > SHORT_K || waves < MANY_WAVES) return 0;
    for (int i = 0; i < n; i++)
        if (results[i].state == CUBLAS_STATUS_SUCCESS && writes_beside(&results[i].algo)) return i;
    return 0;
}

static tn_status choose_algorithm(tn_device *device, const tn_gemm_cuda_state *state, gemm_plan *plan) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    uint32_t align_a = (uint32_t)plan->key.align_b, align_b = (uint32_t)plan->key.align_a, align_c = (uint32_t)plan->key.align_c;
    /* Where k is cut, the parts are added in f32: in bf16 they would be rounded one by one. */
    uint32_t reductions = plan->key.c_dtype == TN_BF16 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_MASK;
    int n_found = 0;
    RETURN_UNLESS_OK(lt.preference_init(&preference, sizeof preference), "cublasLtMatmulPreferenceInit");
    RETURN_UNLESS_OK(lt.preference_set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &plan->key.workspace_bytes,
                                       sizeof plan->key.workspace_bytes),
                     "cublasLtMatmulPreferenceSetAttribute");
    RETURN_UNLESS_OK(lt.preference_set(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions),
                     "cublasLtMatmulPreferenceSetAttribute");
    RETURN_UNLESS_OK(lt.preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_a, sizeof align_a),
                     "cublasLtMatmulPreferenceSetAttribute");
    RETURN_UNLESS_OK(lt.preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_b, sizeof align_b),
                     "cublasLtMatmulPreferenceSetAttribute");
    RETURN_UNLESS_OK(lt.preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_c, sizeof align_c),
                     "cublasLtMatmulPreferenceSetAttribute");
    RETURN_UNLESS_OK(lt.preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_c, sizeof align_c),
                     "cublasLtMatmulPreferenceSetAttribute");
    RETURN_UNLESS_OK(
        lt.heuristic(state->handle, &plan->desc, &plan->a, &plan->b, &plan->c, &plan->c, &preference, CANDIDATES, results, &n_found),
        "cublasLtMatmulAlgoGetHeuristic");
    if (n_found == 0) {
        snprintf(device->failure, sizeof device->failure, "cublasLtMatmulAlgoGetHeuristic: no algorithm for this product");
        return TN_ERR_UNSUPPORTED;
    }
    plan->algorithm = results[choice_of(device, &plan->key, results, n_found)].algo;
    return TN_OK;
}

static tn_status plan_for(tn_device *device, tn_gemm_cuda_state *state, const tn_gemm_cuda_product *p, size_t workspace_bytes,
                          gemm_plan **found) {
    gemm_key key = key_of(state, p, workspace_bytes);
    if (!make_room(state)) return no_host_memory(device);
    gemm_plan *plan = *found = slot_for(state->plans, state->capacity, &key);
    if (plan->used) return TN_OK;
    plan->key = key;
    tn_status status = init_plan(device, plan, p, state->tf32);
    if (status == TN_OK) status = choose_algorithm(device, state, plan);
    plan->used = status == TN_OK;
    state->n_plans += plan->used;
    return status;
}

/* ---- calls ---- */

size_t tn_gemm_cuda_workspace_bytes(int64_t n_batch, int64_t m, int64_t n) {
    const double most = 32 << 20, least = 1 << 20; /* what cuBLAS takes on Hopper; counters and small needs */
    const double cuts_of_k = 64;
    double bytes = least + cuts_of_k * sizeof(float) * (double)n_batch * (double)m * (double)n;
    return (size_t)(bytes < most ? bytes : most) & ~(size_t)255;
}

/* An empty sum. */
static tn_status without_k(tn_device *device, const tn_gemm_cuda_product *p, void *stream) {
    if (p->bias || p->relu || (p->beta != 0 && p->beta != 1)) {
        snprintf(device->failure, sizeof device->failure, "a product with k = 0 has neither bias nor relu, and beta is 0 or 1");
        return TN_ERR_ARGUMENT;
    }
    if (p->beta == 1) return TN_OK;
    tn_tensor c = { .data = p->c, .dtype = p->c_dtype, .axes = 3, .numel = p->n_batch * p->m * p->n };
    const int64_t shape[] = { p->n_batch, p->m, p->n }, stride[] = { p->batch_c, p->ldc, 1 };
    memcpy(c.shape, shape, sizeof shape);
    memcpy(c.stride, stride, sizeof stride);
    return tn_cuda_said(device, tn_cuda_fill(&c, 0, stream), "fill");
}

static tn_status run_one(tn_device *device, tn_gemm_cuda_state *state, const tn_gemm_cuda_product *p, void *workspace,
                         size_t workspace_bytes, void *stream) {
    gemm_plan *plan;
    tn_status status = plan_for(device, state, p, workspace_bytes, &plan);
    if (status != TN_OK) return status;
    if (p->bias)
        RETURN_UNLESS_OK(lt.desc_set(&plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias),
                         "cublasLtMatmulDescSetAttribute");
    float alpha32 = (float)p->alpha, beta32 = (float)p->beta;
    const void *alpha = p->dtype == TN_F64 ? (const void *)&p->alpha : &alpha32,
               *beta = p->dtype == TN_F64 ? (const void *)&p->beta : &beta32;
    return said(device,
                lt.matmul(state->handle, &plan->desc, alpha, p->b, &plan->a, p->a, &plan->b, beta, p->c, &plan->c, p->c, &plan->c,
                          &plan->algorithm, workspace, workspace_bytes, (cudaStream_t)stream),
                "cublasLtMatmul");
}

static int64_t at_most(int64_t left, int64_t most) { return left < most ? left : most; }

/* The part of p that starts at item `batch` and row `row`. */
static tn_gemm_cuda_product part_of(const tn_gemm_cuda_product *p, int64_t batch, int64_t row) {
    const int64_t size = (int64_t)tn_dtype_size(p->dtype), c_size = (int64_t)tn_dtype_size(p->c_dtype);
    tn_gemm_cuda_product part = *p;
    part.n_batch = at_most(p->n_batch - batch, MOST_BATCH);
    part.m = at_most(p->m - row, MOST_ROWS);
    part.a = (const char *)p->a + (batch * p->batch_a + row * (p->transpose_a ? 1 : p->lda)) * size;
    part.b = (const char *)p->b + batch * p->batch_b * size;
    part.c = (char *)p->c + (batch * p->batch_c + row * p->ldc) * c_size;
    return part;
}

tn_status tn_gemm_cuda(tn_device *device, const tn_gemm_cuda_product *p, void *workspace, size_t workspace_bytes, void *stream) {
    if (p->m == 0 || p->n == 0 || p->n_batch == 0) return TN_OK;
    if (p->k == 0) return without_k(device, p, stream);
    tn_gemm_cuda_state *state;
    tn_status status = state_of(device, &state);
    /* More scratch than the shape asks for must not lead to another algorithm. */
    workspace_bytes = (size_t)at_most((int64_t)workspace_bytes, (int64_t)tn_gemm_cuda_workspace_bytes(p->n_batch, p->m, p->n));
    for (int64_t batch = 0; status == TN_OK && batch < p->n_batch; batch += MOST_BATCH)
        for (int64_t row = 0; status == TN_OK && row < p->m; row += MOST_ROWS) {
            tn_gemm_cuda_product part = part_of(p, batch, row);
            status = run_one(device, state, &part, workspace, workspace_bytes, stream);
        }
    return status;
}
