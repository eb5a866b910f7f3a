/* Fill, copy, accumulate, random numbers and searches over any strides and dtypes.
 *
 * Dense tensors go 16 bytes a thread. A copy whose sides have different contiguous axes turns small squares in registers, 16 bytes
 * wide on both sides; where they do not come out even, or f32 becomes bf16 or the reverse, it goes through tiles in shared memory, so
 * that both sides are still read and written along their own axis. Everything else walks a merged loop nest. What is not worth a kernel
 * for each dtype, or pair of them, finds its dtype at run time: all threads take the same branch. */
#include "cuda_primitives.h"

#include <limits.h>
#include <string.h>
#include <type_traits>

#include "cuda_common.cuh"
#include "philox.h"

#define THREADS 256

/* ---- conversions: float to integer truncates toward zero and saturates, NaN gives 0; anything to bool is != 0 ---- */

struct tn_bool {
    uint8_t value;
};

template <typename To, typename From> struct convert {
    static __device__ __forceinline__ To from(From x) { return (To)x; }
};
template <typename To> struct integer_limits;
template <> struct integer_limits<int64_t> {
    static __device__ __forceinline__ int64_t low() { return LLONG_MIN; }
    static __device__ __forceinline__ int64_t high() { return LLONG_MAX; }
};
template <> struct integer_limits<int32_t> {
    static __device__ __forceinline__ int32_t low() { return INT_MIN; }
    static __device__ __forceinline__ int32_t high() { return INT_MAX; }
};
template <> struct integer_limits<uint8_t> {
    static __device__ __forceinline__ uint8_t low() { return 0; }
    static __device__ __forceinline__ uint8_t high() { return 255; }
};

template <typename To> __device__ __forceinline__ To saturate(double x) {
    if (x != x) return 0;
    if (x <= (double)integer_limits<To>::low()) return integer_limits<To>::low();
    if (x >= (double)integer_limits<To>::high()) return integer_limits<To>::high();
    return (To)x;
}
#define SATURATING(To)                                                                                          \
    template <> struct convert<To, double> {                                                                    \
        static __device__ __forceinline__ To from(double x) { return saturate<To>(x); }                         \
    };                                                                                                          \
    template <> struct convert<To, float> {                                                                     \
        static __device__ __forceinline__ To from(float x) { return saturate<To>((double)x); }                  \
    };                                                                                                          \
    template <> struct convert<To, tn_cuda_bf16> {                                                              \
        static __device__ __forceinline__ To from(tn_cuda_bf16 x) { return saturate<To>((double)tn_widen(x)); } \
    };
SATURATING(int64_t)
SATURATING(int32_t)
SATURATING(uint8_t)

/* bf16 takes part through f32 (f64 is rounded once, directly). */
template <typename From> struct convert<tn_cuda_bf16, From> {
    static __device__ __forceinline__ tn_cuda_bf16 from(From x) { return __double2bfloat16((double)x); }
};
template <> struct convert<tn_cuda_bf16, tn_cuda_bf16> {
    static __device__ __forceinline__ tn_cuda_bf16 from(tn_cuda_bf16 x) { return x; }
};
template <> struct convert<tn_cuda_bf16, float> {
    static __device__ __forceinline__ tn_cuda_bf16 from(float x) { return __float2bfloat16_rn(x); }
};
template <> struct convert<float, tn_cuda_bf16> {
    static __device__ __forceinline__ float from(tn_cuda_bf16 x) { return tn_widen(x); }
};
template <> struct convert<double, tn_cuda_bf16> {
    static __device__ __forceinline__ double from(tn_cuda_bf16 x) { return (double)tn_widen(x); }
};

__device__ __forceinline__ bool is_nonzero(tn_cuda_bf16 x) { return tn_widen(x) != 0; }
template <typename From> __device__ __forceinline__ bool is_nonzero(From x) { return x != 0; }
template <typename From> struct convert<tn_bool, From> {
    static __device__ __forceinline__ tn_bool from(From x) { return tn_bool{ (uint8_t)is_nonzero(x) }; }
};
template <typename To> struct convert<To, tn_bool> {
    static __device__ __forceinline__ To from(tn_bool x) { return convert<To, uint8_t>::from(x.value != 0); }
};
template <> struct convert<tn_bool, tn_bool> {
    static __device__ __forceinline__ tn_bool from(tn_bool x) { return x; }
};
template <> struct convert<tn_cuda_bf16, tn_bool> {
    static __device__ __forceinline__ tn_cuda_bf16 from(tn_bool x) { return __float2bfloat16_rn(x.value ? 1.0f : 0.0f); }
};

/* Runs `body` with T the C++ type of any dtype. */
#define WITH_DTYPE(dtype, T, ...) \
    switch (dtype) {              \
    case TN_F64: {                \
        using T = double;         \
        __VA_ARGS__;              \
    } break;                      \
    case TN_F32: {                \
        using T = float;          \
        __VA_ARGS__;              \
    } break;                      \
    case TN_BF16: {               \
        using T = tn_cuda_bf16;   \
        __VA_ARGS__;              \
    } break;                      \
    case TN_I64: {                \
        using T = int64_t;        \
        __VA_ARGS__;              \
    } break;                      \
    case TN_I32: {                \
        using T = int32_t;        \
        __VA_ARGS__;              \
    } break;                      \
    case TN_U8: {                 \
        using T = uint8_t;        \
        __VA_ARGS__;              \
    } break;                      \
    default: {                    \
        using T = tn_bool;        \
        __VA_ARGS__;              \
    } break;                      \
    }

static tn_nest nest_of(const tn_tensor *a, const tn_tensor *b) {
    const int64_t *strides[2] = { a->stride, b ? b->stride : a->stride };
    return tn_make_nest(a->axes, a->shape, b ? 2 : 1, strides);
}

/* ---- fill ---- */

/* Runs `body` with E the integer of a dtype's size. */
#define WITH_BITS(bytes, E, ...) \
    switch (bytes) {             \
    case 8: {                    \
        using E = uint64_t;      \
        __VA_ARGS__;             \
    } break;                     \
    case 4: {                    \
        using E = uint32_t;      \
        __VA_ARGS__;             \
    } break;                     \
    case 2: {                    \
        using E = uint16_t;      \
        __VA_ARGS__;             \
    } break;                     \
    default: {                   \
        using E = uint8_t;       \
        __VA_ARGS__;             \
    } break;                     \
    }

/* The bits of `value` in a dtype of E's size. */
template <typename E> __device__ __forceinline__ E bits_of(tn_dtype dtype, double value) {
    E bits = 0;
    WITH_DTYPE(
        dtype, T, if constexpr (sizeof(T) == sizeof(E)) {
            T converted = convert<T, double>::from(value);
            memcpy(&bits, &converted, sizeof bits);
        });
    return bits;
}

template <typename E> static __global__ void fill_nest(E *to, const tn_nest nest, tn_dtype dtype, double value) {
    E bits = bits_of<E>(dtype, value);
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t offset;
        tn_nest_offsets<1, int64_t>(nest, i, &offset);
        to[offset] = bits;
    }
}

/* n whole packs, then the elements after them. */
template <typename E> static __global__ void fill_dense(E *to, int64_t numel, tn_dtype dtype, double value) {
    E bits = bits_of<E>(dtype, value);
    tn_pack<E> pack;
#pragma unroll
    for (int j = 0; j < tn_pack<E>::n; j++) pack.at[j] = bits;
    int64_t n_packs = numel / tn_pack<E>::n, first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first; i < n_packs; i += step) tn_store_pack(to + i * tn_pack<E>::n, pack);
    for (int64_t i = n_packs * tn_pack<E>::n + first; i < numel; i += step) to[i] = bits;
}

template <typename E> static void fill(tn_tensor *to, const tn_nest &nest, double value, cudaStream_t stream) {
    E *data = (E *)to->data;
    if (tn_nest_is_dense(nest) && tn_aligned16(data))
        fill_dense<<<tn_blocks(to->numel, THREADS * tn_pack<E>::n), THREADS, 0, stream>>>(data, to->numel, to->dtype, value);
    else fill_nest<<<tn_blocks(to->numel, THREADS), THREADS, 0, stream>>>(data, nest, to->dtype, value);
}

extern "C" int tn_cuda_fill(tn_tensor *to, double value, void *stream) {
    if (to->numel == 0) return 0;
    tn_nest nest = nest_of(to, NULL);
    WITH_BITS(tn_dtype_size(to->dtype), E, fill<E>(to, nest, value, (cudaStream_t)stream));
    return (int)cudaGetLastError();
}

/* ---- copy ---- */

#define NEST_ITEMS 4 /* a thread has in flight */

/* The same without a conversion; a thread's items lie THREADS apart, and each axis is divided by once for all of them. */
template <typename E, typename Index>
static __global__ void __launch_bounds__(THREADS) copy_bits_nest(E *to, const E *from, const tn_nest nest) {
    int64_t first = (int64_t)blockIdx.x * (THREADS * NEST_ITEMS) + threadIdx.x, to_at[NEST_ITEMS], from_at[NEST_ITEMS];
    Index left[NEST_ITEMS];
    E item[NEST_ITEMS];
#pragma unroll
    for (int u = 0; u < NEST_ITEMS; u++) left[u] = (Index)(first + u * THREADS), to_at[u] = from_at[u] = 0;
#pragma unroll 1
    for (int axis = nest.axes - 1; axis > 0; axis--) {
        Index size = (Index)nest.shape[axis];
        int64_t to_stride = nest.stride[0][axis], from_stride = nest.stride[1][axis];
#pragma unroll
        for (int u = 0; u < NEST_ITEMS; u++) {
            Index outer = left[u] / size, at = left[u] - outer * size;
            to_at[u] += (int64_t)at * to_stride;
            from_at[u] += (int64_t)at * from_stride;
            left[u] = outer;
        }
    }
#pragma unroll
    for (int u = 0; u < NEST_ITEMS; u++)
        if (first + u * THREADS < nest.numel) item[u] = from[from_at[u] + (int64_t)left[u] * nest.stride[1][0]];
#pragma unroll
    for (int u = 0; u < NEST_ITEMS; u++)
        if (first + u * THREADS < nest.numel) to[to_at[u] + (int64_t)left[u] * nest.stride[0][0]] = item[u];
}

template <typename To, typename From>
__device__ __forceinline__ void read_converted(const From *from, const int64_t (&offset)[NEST_ITEMS][2], int n, To (&item)[NEST_ITEMS]) {
    From read[NEST_ITEMS];
#pragma unroll
    for (int u = 0; u < NEST_ITEMS; u++)
        if (u < n) read[u] = from[offset[u][1]];
#pragma unroll
    for (int u = 0; u < NEST_ITEMS; u++)
        if (u < n) item[u] = convert<To, From>::from(read[u]);
}

/* With a conversion from a dtype found at run time; items as above. */
template <typename To>
static __global__ void __launch_bounds__(THREADS) copy_converted_nest(To *to, const void *from, tn_dtype dtype, const tn_nest nest) {
    int64_t first = (int64_t)blockIdx.x * (THREADS * NEST_ITEMS) + threadIdx.x, offset[NEST_ITEMS][2];
    To item[NEST_ITEMS];
    if (first >= nest.numel) return;
    int64_t left = (nest.numel - first + THREADS - 1) / THREADS;
    int n = left < NEST_ITEMS ? (int)left : NEST_ITEMS;
#pragma unroll
    for (int u = 0; u < NEST_ITEMS; u++) {
        if (u >= n) break;
        if (nest.numel <= INT_MAX) tn_nest_offsets<2, uint32_t>(nest, (uint32_t)(first + u * THREADS), offset[u]);
        else tn_nest_offsets<2, int64_t>(nest, first + u * THREADS, offset[u]);
    }
    WITH_DTYPE(dtype, From, (read_converted<To, From>((const From *)from, offset, n, item)));
#pragma unroll
    for (int u = 0; u < NEST_ITEMS; u++)
        if (u < n) to[offset[u][0]] = item[u];
}

/* Eight elements a thread: the narrower side moves at least 8 bytes at a time. */
template <typename To, typename From> static __global__ void copy_dense(To *to, const From *from, int64_t numel) {
    const int n = 8;
    struct alignas(sizeof(From) * n > 16 ? 16 : sizeof(From) * n) from_group {
        From at[n];
    };
    struct alignas(sizeof(To) * n > 16 ? 16 : sizeof(To) * n) to_group {
        To at[n];
    };
    int64_t n_groups = numel / n, first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first; i < n_groups; i += step) {
        from_group read = ((const from_group *)from)[i];
        to_group written;
#pragma unroll
        for (int j = 0; j < n; j++) written.at[j] = convert<To, From>::from(read.at[j]);
        ((to_group *)to)[i] = written;
    }
    for (int64_t i = n_groups * n + first; i < numel; i += step) to[i] = convert<To, From>::from(from[i]);
}

/* Tiles hold 4 KiB at least, so that enough of small elements is in flight. */
#define TILE_ROWS 8
#define TILE_THREADS_X 32
template <typename E> struct tile_of {
    static constexpr int size = sizeof(E) <= 2 ? 64 : 32,
                         pad = sizeof(E) < 4 ? 4 / (int)sizeof(E) : 1; /* columns begin in different banks */
};

/* Axis `x` is contiguous in `from`, axis `y` in `to`; a block moves a tile of them for one item of the others. */
struct tiling {
    tn_nest rest;
    int64_t size_x, size_y, to_stride_x, from_stride_y, tiles_x, tiles_y;
};

template <typename To, typename From> static __global__ void __launch_bounds__(THREADS) copy_tiles(To *to, const From *from, tiling t) {
    constexpr int size = tile_of<From>::size;
    __shared__ From tile[size][size + tile_of<From>::pad];
    int64_t n_tiles = t.rest.numel * t.tiles_x * t.tiles_y;
    for (int64_t block = blockIdx.x; block < n_tiles; block += gridDim.x) {
        int64_t offset[2], x0 = block % t.tiles_x * size, y0 = block / t.tiles_x % t.tiles_y * size;
        tn_nest_offsets<2, int64_t>(t.rest, block / (t.tiles_x * t.tiles_y), offset);
#pragma unroll
        for (int row = 0; row < size; row += TILE_ROWS)
#pragma unroll
            for (int column = 0; column < size; column += TILE_THREADS_X) {
                int64_t x = x0 + column + threadIdx.x, y = y0 + row + threadIdx.y;
                if (x < t.size_x && y < t.size_y) tile[row + threadIdx.y][column + threadIdx.x] = from[offset[1] + x + y * t.from_stride_y];
            }
        __syncthreads();
#pragma unroll
        for (int row = 0; row < size; row += TILE_ROWS)
#pragma unroll
            for (int column = 0; column < size; column += TILE_THREADS_X) {
                int64_t x = x0 + row + threadIdx.y, y = y0 + column + threadIdx.x;
                if (x < t.size_x && y < t.size_y)
                    to[offset[0] + y + x * t.to_stride_x] = convert<To, From>::from(tile[column + threadIdx.x][row + threadIdx.y]);
            }
        __syncthreads();
    }
}

static int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

static int axis_with_stride_one(const tn_nest &nest, int operand) {
    for (int i = 0; i < nest.axes; i++)
        if (nest.stride[operand][i] == 1) return i;
    return -1;
}

/* True where tiles pay: both sides have a contiguous axis, two different ones, both long. */
static bool make_tiling(const tn_nest &nest, int size, tiling *t) {
    int y = axis_with_stride_one(nest, 0), x = axis_with_stride_one(nest, 1);
    const int64_t short_axis = 8;
    if (x < 0 || y < 0 || x == y || nest.shape[x] < short_axis || nest.shape[y] < short_axis) return false;
    *t = tiling{
        {}, nest.shape[x], nest.shape[y], nest.stride[0][x], nest.stride[1][y], parts_of(nest.shape[x], size), parts_of(nest.shape[y], size)
    };
    int64_t shape[TN_MAX_AXES], to[TN_MAX_AXES], from[TN_MAX_AXES];
    int n = 0;
    for (int i = 0; i < nest.axes; i++) {
        if (i == x || i == y) continue;
        shape[n] = nest.shape[i];
        to[n] = nest.stride[0][i];
        from[n++] = nest.stride[1][i];
    }
    const int64_t *strides[2] = { to, from };
    t->rest = tn_make_nest(n, shape, 2, strides);
    return true;
}

/* Turned copies: a thread takes a square of n x n elements, n of which are 16 bytes: it reads its n rows, turns them in registers, and
 * writes its n columns. A warp's threads lie 8 side by side along x and 4 along y, so that it reads pieces of 128 bytes and writes pieces
 * of 64, all of them whole sectors; a block has 2^log_x threads along x, as a rule 16 of its 256:
 *
 *     from   x ->                                      to   y ->
 *     y      | a0 a1 .. | b0 b1 .. |  n rows           x    | a0 c0 .. |     n columns of each square
 *            | c0 c1 .. | d0 d1 .. |  16 bytes each         | a1 c1 .. |
 *
 * Blocks follow each other in bands of TURN_BAND blocks along x, so that those that run at the same time lie near each other on both
 * sides. */
#define TURN_BAND 16
#define TURN_LOADS 4 /* a thread has in flight at least */

struct turning {
    tiling tiles;
    int log_x, warp_log_x; /* threads along x of a block and of a warp */
};

__device__ __forceinline__ void set_word(uint4 &words, int i, uint32_t word) {
    (i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w) = word;
}

/* Column c of n rows. */
template <int n> __device__ __forceinline__ uint4 column_of(const uint4 (&rows)[n], int c) {
    uint4 column;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (n == 8)
            set_word(column, i, __byte_perm(tn_word_of(rows[2 * i], c / 2), tn_word_of(rows[2 * i + 1], c / 2), c & 1 ? 0x7632 : 0x5410));
        else if constexpr (n == 4) set_word(column, i, tn_word_of(rows[i], c));
        else set_word(column, i, tn_word_of(rows[i / 2], 2 * c + i % 2));
    }
    return column;
}

template <typename E> __device__ __forceinline__ void store_words(E *to, const uint4 &words) {
    tn_pack<uint32_t> pack = { { words.x, words.y, words.z, words.w } };
    tn_store_pack((uint32_t *)to, pack);
}

/* Squares of a thread, one below the other. */
template <typename E> struct turned_squares {
    static constexpr int n = 16 / (int)sizeof(E), squares = n < TURN_LOADS ? TURN_LOADS / n : 1;
};

template <typename E> static __global__ void __launch_bounds__(THREADS) copy_turned(E *to, const E *from, const turning t) {
    constexpr int n = turned_squares<E>::n, squares = turned_squares<E>::squares;
    const tiling &tiles = t.tiles;
    int lane = threadIdx.x % TN_WARP, warp = threadIdx.x / TN_WARP, warps_log_x = t.log_x - t.warp_log_x, threads_y = THREADS >> t.log_x;
    int thread_x = ((warp & ((1 << warps_log_x) - 1)) << t.warp_log_x) + (lane & ((1 << t.warp_log_x) - 1));
    int thread_y = (warp >> warps_log_x) * (TN_WARP >> t.warp_log_x) + (lane >> t.warp_log_x);
    uint32_t tiles_x = (uint32_t)tiles.tiles_x, tiles_y = (uint32_t)tiles.tiles_y, plane = tiles_x * tiles_y, block = blockIdx.x;
    uint32_t item = block / plane, in_plane = block - item * plane, band = in_plane / (TURN_BAND * tiles_y),
             in_band = in_plane - band * TURN_BAND * tiles_y;
    uint32_t width = min(tiles_x - band * TURN_BAND, (uint32_t)TURN_BAND), tile_y = in_band / width,
             tile_x = band * TURN_BAND + in_band - tile_y * width;
    int64_t x = (((int64_t)tile_x << t.log_x) + thread_x) * n, y = ((int64_t)tile_y * squares * threads_y + thread_y) * n, offset[2];
    if (x >= tiles.size_x) return;
    tn_nest_offsets<2, uint32_t>(tiles.rest, item, offset);
    to += offset[0] + x * tiles.to_stride_x;
    from += offset[1] + x;
    uint4 rows[squares][n];
#pragma unroll
    for (int s = 0; s < squares; s++)
#pragma unroll
        for (int u = 0; u < n; u++)
            if (y + s * threads_y * n < tiles.size_y) rows[s][u] = tn_load_raw(from + (y + s * threads_y * n + u) * tiles.from_stride_y);
#pragma unroll
    for (int s = 0; s < squares; s++) {
        if (y + s * threads_y * n >= tiles.size_y) break;
#pragma unroll
        for (int c = 0; c < n; c++) store_words(to + y + s * threads_y * n + c * tiles.to_stride_x, column_of<n>(rows[s], c));
    }
}

static int log_of_threads(int64_t packs, int most) {
    int log = 0;
    while (log < most && (int64_t)1 << log < packs) log++;
    return log;
}

/* Makes tiles of squares, where both sides come in whole packs. */
static bool make_turning(const tiling &elements, int n, int squares, turning *t) {
    const int log_threads = 8, log_warp = 5;
    int64_t packs_x = elements.size_x / n, packs_y = parts_of(elements.size_y, n * squares);
    if (elements.size_x % n || elements.size_y % n || elements.to_stride_x % n || elements.from_stride_y % n) return false;
    for (int i = 0; i < elements.rest.axes; i++)
        if (elements.rest.stride[0][i] % n || elements.rest.stride[1][i] % n) return false;
    t->tiles = elements;
    t->log_x = log_of_threads(packs_x, 4);
    int log_y = log_of_threads(packs_y, log_threads - t->log_x);
    t->log_x = log_threads - log_y;
    t->warp_log_x = t->log_x < 3 ? t->log_x : 3;
    if (t->warp_log_x < log_warp - log_y) t->warp_log_x = log_warp - log_y;
    t->tiles.tiles_x = parts_of(packs_x, (int64_t)1 << t->log_x);
    t->tiles.tiles_y = parts_of(packs_y, (int64_t)1 << log_y);
    return (double)t->tiles.tiles_x * (double)t->tiles.tiles_y * (double)elements.rest.numel < INT_MAX / TURN_BAND;
}

template <typename E> static bool launch_turned(tn_tensor *to, const tn_tensor *from, const tiling &elements, cudaStream_t stream) {
    turning t;
    if (!tn_aligned16(to->data) || !tn_aligned16(from->data)) return false;
    if (!make_turning(elements, turned_squares<E>::n, turned_squares<E>::squares, &t)) return false;
    unsigned blocks = (unsigned)(t.tiles.rest.numel * t.tiles.tiles_x * t.tiles.tiles_y);
    copy_turned<E><<<blocks, THREADS, 0, stream>>>((E *)to->data, (const E *)from->data, t);
    return true;
}

/* The same copy in units of 16 bytes, where both sides' innermost axis is contiguous and everything is aligned. */
static bool widen_nest(tn_nest *nest, const void *to, const void *from, size_t element_bytes) {
    int last = nest->axes - 1;
    int64_t n = 16 / (int64_t)element_bytes;
    if (nest->stride[0][last] != 1 || nest->stride[1][last] != 1 || nest->shape[last] % n || !tn_aligned16(to) || !tn_aligned16(from))
        return false;
    for (int i = 0; i < last; i++)
        if (nest->stride[0][i] % n || nest->stride[1][i] % n) return false;
    for (int i = 0; i < last; i++) {
        nest->stride[0][i] /= n;
        nest->stride[1][i] /= n;
    }
    nest->shape[last] /= n;
    nest->numel /= n;
    return true;
}

template <typename E> static void launch_bits_nest(E *to, const E *from, const tn_nest &nest, cudaStream_t stream) {
    unsigned blocks = tn_blocks(nest.numel, THREADS * NEST_ITEMS);
    if (nest.numel <= INT_MAX) copy_bits_nest<E, uint32_t><<<blocks, THREADS, 0, stream>>>(to, from, nest);
    else copy_bits_nest<E, int64_t><<<blocks, THREADS, 0, stream>>>(to, from, nest);
}

template <typename To, typename From> static void launch_tiles(To *to, const From *from, const tiling &t, cudaStream_t stream) {
    copy_tiles<To, From><<<tn_blocks(t.rest.numel * t.tiles_x * t.tiles_y, 1), dim3(TILE_THREADS_X, TILE_ROWS), 0, stream>>>(to, from, t);
}

/* Of one dtype, whose elements are moved as the integer E of their size. */
template <typename E> static void copy_bits(tn_tensor *to, const tn_tensor *from, tn_nest nest, cudaStream_t stream) {
    tiling t;
    if (widen_nest(&nest, to->data, from->data, sizeof(E)))
        return launch_bits_nest((uint4 *)to->data, (const uint4 *)from->data, nest, stream);
    if (!make_tiling(nest, tile_of<E>::size, &t)) return launch_bits_nest((E *)to->data, (const E *)from->data, nest, stream);
    if constexpr (sizeof(E) > 1)
        if (launch_turned<E>(to, from, t, stream)) return;
    launch_tiles((E *)to->data, (const E *)from->data, t, stream);
}

/* From one float to another there are kernels at memory speed where both sides are dense, and turned ones between f32 and bf16. */
template <typename To, typename From>
static void copy_converted(tn_tensor *to, const tn_tensor *from, const tn_nest &nest, cudaStream_t stream) {
    constexpr bool floats = !std::is_integral<To>::value && !std::is_integral<From>::value && !std::is_same<To, tn_bool>::value &&
                            !std::is_same<From, tn_bool>::value;
    if constexpr (floats)
        if (tn_nest_is_dense(nest) && tn_aligned16(to->data) && tn_aligned16(from->data)) {
            unsigned blocks = tn_blocks(to->numel, THREADS * 8);
            copy_dense<To, From><<<blocks, THREADS, 0, stream>>>((To *)to->data, (const From *)from->data, to->numel);
            return;
        }
    if constexpr (floats && sizeof(To) + sizeof(From) == 6) {
        tiling t;
        if (make_tiling(nest, tile_of<From>::size, &t)) return launch_tiles((To *)to->data, (const From *)from->data, t, stream);
    }
    copy_converted_nest<To>
        <<<tn_blocks(nest.numel, THREADS * NEST_ITEMS), THREADS, 0, stream>>>((To *)to->data, from->data, from->dtype, nest);
}

extern "C" int tn_cuda_copy(tn_tensor *to, const tn_tensor *from, void *stream) {
    if (to->numel == 0) return 0;
    tn_nest nest = nest_of(to, from);
    cudaStream_t s = (cudaStream_t)stream;
    size_t bytes = tn_dtype_size(to->dtype);
    if (to->dtype != from->dtype) {
        WITH_DTYPE(
            to->dtype, To,
            WITH_DTYPE(from->dtype, From, if constexpr (!std::is_same<To, From>::value) copy_converted<To, From>(to, from, nest, s)));
    } else if (tn_nest_is_dense(nest)) {
        return (int)cudaMemcpyAsync(to->data, from->data, (size_t)to->numel * bytes, cudaMemcpyDeviceToDevice, s);
    } else {
        WITH_BITS(bytes, E, copy_bits<E>(to, from, nest, s));
    }
    return (int)cudaGetLastError();
}

/* ---- accumulate ---- */

template <typename T> static __global__ void accumulate_nest(T *to, const T *from, tn_nest nest) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t offset[2];
        tn_nest_offsets<2, int64_t>(nest, i, offset);
        to[offset[0]] = tn_narrow<T>(tn_widen(to[offset[0]]) + tn_widen(from[offset[1]]));
    }
}

#define ACCUMULATE_PACKS 4 /* of each operand that a thread has in flight */

/* Packs of a thread lie THREADS apart. */
template <typename T> static __global__ void __launch_bounds__(THREADS) accumulate_packs(T *to, const T *from, int64_t numel) {
    constexpr int n = tn_pack<T>::n;
    int64_t n_packs = numel / n, first = (int64_t)blockIdx.x * (THREADS * ACCUMULATE_PACKS) + threadIdx.x;
    uint4 raw_to[ACCUMULATE_PACKS], raw_from[ACCUMULATE_PACKS];
#pragma unroll
    for (int u = 0; u < ACCUMULATE_PACKS; u++) {
        int64_t i = first + u * THREADS;
        if (i < n_packs) raw_to[u] = tn_load_raw(to + i * n);
        if (i < n_packs) raw_from[u] = tn_load_raw(from + i * n);
    }
#pragma unroll
    for (int u = 0; u < ACCUMULATE_PACKS; u++) {
        int64_t i = first + u * THREADS;
        if (i >= n_packs) break;
        tn_pack<T> sum;
#pragma unroll
        for (int j = 0; j < n; j++) sum.at[j] = tn_narrow<T>(tn_raw_element<T>(raw_to[u], j) + tn_raw_element<T>(raw_from[u], j));
        tn_store_pack(to + i * n, sum);
    }
    int64_t tail = n_packs * n + threadIdx.x;
    if (blockIdx.x == 0 && tail < numel) to[tail] = tn_narrow<T>(tn_widen(to[tail]) + tn_widen(from[tail]));
}

template <typename T> static void accumulate(T *to, const T *from, const tn_nest &nest, cudaStream_t stream) {
    if constexpr (sizeof(T) < 8)
        if (tn_nest_is_dense(nest) && tn_aligned16(to) && tn_aligned16(from)) {
            unsigned blocks = tn_blocks(nest.numel, THREADS * ACCUMULATE_PACKS * tn_pack<T>::n);
            accumulate_packs<T><<<blocks, THREADS, 0, stream>>>(to, from, nest.numel);
            return;
        }
    accumulate_nest<T><<<tn_blocks(nest.numel, THREADS), THREADS, 0, stream>>>(to, from, nest);
}

extern "C" int tn_cuda_accumulate(tn_tensor *to, const tn_tensor *from, void *stream) {
    if (to->numel == 0) return 0;
    tn_nest nest = nest_of(to, from);
    TN_WITH_FLOAT(to->dtype, T, accumulate<T>((T *)to->data, (const T *)from->data, nest, (cudaStream_t)stream));
    return (int)cudaGetLastError();
}

/* ---- arange ---- */

static __global__ void arange_dense(void *to, tn_dtype dtype, int64_t numel) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += (int64_t)gridDim.x * blockDim.x)
        WITH_DTYPE(dtype, T, (((T *)to)[i] = convert<T, int64_t>::from(i)));
}

extern "C" int tn_cuda_arange(tn_tensor *to, void *stream) {
    if (to->numel == 0) return 0;
    arange_dense<<<tn_blocks(to->numel, THREADS), THREADS, 0, (cudaStream_t)stream>>>(to->data, to->dtype, to->numel);
    return (int)cudaGetLastError();
}

/* ---- random numbers: a thread makes the two draws of one Philox block, with the same arithmetic as the CPU ---- */

template <typename T> struct random_float;
template <> struct random_float<double> {
    static __device__ __forceinline__ double below(double x, double high) { return tn_philox_below_f64(x, high); }
};
template <> struct random_float<float> {
    static __device__ __forceinline__ float below(double x, double high) { return tn_philox_below_f32(x, high); }
};
template <> struct random_float<tn_cuda_bf16> {
    static __device__ __forceinline__ tn_cuda_bf16 below(double x, double high) {
        return __ushort_as_bfloat16(tn_philox_below_bf16(x, high));
    }
};

template <typename T> struct drawn {
    static __device__ __forceinline__ T number(double x, double high) { return convert<T, double>::from(x); }
};
#define DRAWN_FLOAT(T)                                                                                                \
    template <> struct drawn<T> {                                                                                     \
        static __device__ __forceinline__ T number(double x, double high) { return random_float<T>::below(x, high); } \
    };
DRAWN_FLOAT(double)
DRAWN_FLOAT(float)
DRAWN_FLOAT(tn_cuda_bf16)

static __global__ void random_dense(void *to, tn_dtype dtype, int64_t numel, tn_random_spec spec, double high) {
    int64_t skip = (int64_t)(spec.counter & 1), n_blocks = (numel + skip + 1) / 2;
    for (int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; block < n_blocks; block += (int64_t)gridDim.x * blockDim.x) {
        uint64_t bits[2];
        tn_philox_draws(spec.seed, (spec.counter >> 1) + (uint64_t)block, &bits[0], &bits[1]);
        double value[2];
        if (spec.kind == TN_RANDOM_NORMAL) tn_philox_normal_pair(bits[0], bits[1], &value[0], &value[1]);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int64_t i = 2 * block + j - skip;
            if (i < 0 || i >= numel) continue;
            if (spec.kind == TN_RANDOM_INTEGER) {
                int64_t x = tn_philox_integer(bits[j], spec.low, spec.high);
                WITH_DTYPE(dtype, T, (((T *)to)[i] = convert<T, int64_t>::from(x)));
            } else {
                double x = spec.kind == TN_RANDOM_NORMAL
                               ? tn_philox_scale(value[j], spec.a, spec.b)
                               : tn_philox_scale(tn_philox_uniform_f64(bits[j]), spec.a, __dsub_rn(spec.b, spec.a));
                WITH_DTYPE(dtype, T, (((T *)to)[i] = drawn<T>::number(x, high)));
            }
        }
    }
}

/* As above, for floats from an even draw on: 16 bytes a thread. */
template <typename T, int Kind>
static __global__ void __launch_bounds__(THREADS) random_packs(T *to, int64_t numel, tn_random_spec spec, double high) {
    constexpr int N = 16 / (int)sizeof(T);
    const double scale = Kind == TN_RANDOM_NORMAL ? spec.b : __dsub_rn(spec.b, spec.a);
    for (int64_t first = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N; first < numel; first += (int64_t)gridDim.x * THREADS * N) {
        tn_pack<T> pack;
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            uint64_t even, odd;
            double value[2];
            tn_philox_draws(spec.seed, (spec.counter >> 1) + (uint64_t)(first + j) / 2, &even, &odd);
            if (Kind == TN_RANDOM_NORMAL) tn_philox_normal_pair(even, odd, &value[0], &value[1]);
            else value[0] = tn_philox_uniform_f64(even), value[1] = tn_philox_uniform_f64(odd);
            pack.at[j] = drawn<T>::number(tn_philox_scale(value[0], spec.a, scale), high);
            pack.at[j + 1] = drawn<T>::number(tn_philox_scale(value[1], spec.a, scale), high);
        }
        if (first + N <= numel) tn_store_pack(to + first, pack);
        else
#pragma unroll
            for (int j = 0; j < N; j++)
                if (first + j < numel) to[first + j] = pack.at[j];
    }
}

template <typename T> static void start_random_packs(tn_tensor *to, const tn_random_spec &spec, double high, cudaStream_t stream) {
    unsigned blocks = tn_blocks((to->numel + 16 / (int64_t)sizeof(T) - 1) * (int64_t)sizeof(T) / 16, THREADS);
    if (spec.kind == TN_RANDOM_NORMAL)
        random_packs<T, TN_RANDOM_NORMAL><<<blocks, THREADS, 0, stream>>>((T *)to->data, to->numel, spec, high);
    else random_packs<T, TN_RANDOM_UNIFORM><<<blocks, THREADS, 0, stream>>>((T *)to->data, to->numel, spec, high);
}

extern "C" int tn_cuda_random(tn_tensor *to, const tn_random_spec *spec, void *stream) {
    if (to->numel == 0) return 0;
    if (spec->kind == TN_RANDOM_INTEGER && spec->low >= spec->high) return (int)cudaErrorInvalidValue;
    double high = spec->kind == TN_RANDOM_UNIFORM && spec->a < spec->b ? spec->b : INFINITY;
    bool packs = spec->kind != TN_RANDOM_INTEGER && spec->counter % 2 == 0 && tn_aligned16(to->data);
    if (packs && to->dtype == TN_F32) start_random_packs<float>(to, *spec, high, (cudaStream_t)stream);
    else if (packs && to->dtype == TN_BF16) start_random_packs<tn_cuda_bf16>(to, *spec, high, (cudaStream_t)stream);
    else
        random_dense<<<tn_blocks((to->numel + 2) / 2, THREADS), THREADS, 0, (cudaStream_t)stream>>>(to->data, to->dtype, to->numel, *spec,
                                                                                                    high);
    return (int)cudaGetLastError();
}

/* ---- searches ---- */

static __global__ void start_search(int64_t *found) { *found = LLONG_MAX; }
static __global__ void end_search(int64_t *found) {
    if (*found == LLONG_MAX) *found = -1;
}

/* The minimum over integers does not depend on the order of its operands, so an atomic keeps the result fixed. */
__device__ __forceinline__ void note(int64_t *found, int64_t at) { atomicMin((long long *)found, (long long)at); }

template <typename T> static __global__ void search_nonfinite(const T *from, tn_nest nest, int64_t *found) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < nest.numel; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t offset;
        tn_nest_offsets<1, int64_t>(nest, i, &offset);
        if (!isfinite(tn_widen(from[offset]))) note(found, i);
    }
}

static __global__ void search_other_byte(const unsigned char *from, unsigned char byte, int64_t bytes, int64_t *found) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < bytes; i += (int64_t)gridDim.x * blockDim.x)
        if (from[i] != byte) note(found, i);
}

extern "C" int tn_cuda_find_nonfinite(const tn_tensor *t, int64_t *found, void *stream) {
    start_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    tn_nest nest = nest_of(t, NULL);
    if (t->numel > 0 && tn_dtype_size(t->dtype) && (t->dtype == TN_F64 || t->dtype == TN_F32 || t->dtype == TN_BF16))
        TN_WITH_FLOAT(
            t->dtype, T,
            (search_nonfinite<T><<<tn_blocks(t->numel, THREADS), THREADS, 0, (cudaStream_t)stream>>>((const T *)t->data, nest, found)));
    end_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    return (int)cudaGetLastError();
}

extern "C" int tn_cuda_find_other_byte(const void *from, unsigned char byte, size_t bytes, int64_t *found, void *stream) {
    start_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    if (bytes)
        search_other_byte<<<tn_blocks((int64_t)bytes, THREADS), THREADS, 0, (cudaStream_t)stream>>>((const unsigned char *)from, byte,
                                                                                                    (int64_t)bytes, found);
    end_search<<<1, 1, 0, (cudaStream_t)stream>>>(found);
    return (int)cudaGetLastError();
}
