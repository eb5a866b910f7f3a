#include "attention_cache.h"

#include "../autograd/autograd.h"
#include "../libtensor/context.h"
#include "../libtensor/host_memory.h"

enum { PART_AK, PART_BK, PART_AV, PART_BV, N_PARTS };

struct tn_attention_cache {
    tn_context *cx;
    tn_attention_cache_shape shape;
    tn_tensor *part[N_PARTS]; /* [b,capacity,.,.]; without factors the second and the last alone */
    tn_tensor *seqlens;       /* i64 [b] on the device, as `length` on the host */
    int64_t *length;
};

static bool has_factors(const tn_attention_cache_shape *s) { return s->key_rank > 0; }

/* The sizes of a part behind batch and token; none where there is no such part. */
static bool part_sizes(const tn_attention_cache_shape *s, int part, int64_t *rows, int64_t *width) {
    bool key = part == PART_AK || part == PART_BK;
    int64_t rank = key ? s->key_rank : s->value_rank;
    if (part == PART_AK || part == PART_AV) {
        *rows = s->heads;
        *width = rank;
        return has_factors(s);
    }
    *rows = has_factors(s) ? rank : s->heads;
    *width = key ? s->key_width : s->value_width;
    return true;
}

size_t tn_attention_cache_shape_bytes(tn_dtype dtype, tn_attention_cache_shape shape) {
    size_t bytes = 0;
    for (int i = 0; i < N_PARTS; i++) {
        int64_t rows, width;
        if (part_sizes(&shape, i, &rows, &width)) bytes += (size_t)(rows * width) * tn_dtype_size(dtype);
    }
    return bytes;
}

static bool is_sensible(tn_context *cx, tn_dtype dtype, const tn_attention_cache_shape *s) {
    if (!tn_dtype_is_float(dtype))
        return tn_fail(cx, TN_ERR_DTYPE, "attention_cache", "wanted a floating-point dtype, got %s", tn_dtype_name(dtype)), false;
    if (s->batch < 1 || s->capacity < 1 || s->heads < 1 || s->key_width < 1 || s->value_width < 1)
        return tn_fail(cx, TN_ERR_SHAPE, "attention_cache", "batch, capacity, heads and widths must be at least 1"), false;
    if (s->key_rank < 0 || s->value_rank < 0 || (s->key_rank > 0) != (s->value_rank > 0))
        return tn_fail(cx, TN_ERR_SHAPE, "attention_cache", "ranks %lld and %lld: wanted both 0, or both at least 1",
                       (long long)s->key_rank, (long long)s->value_rank),
               false;
    return true;
}

static bool make_parts(tn_attention_cache *cache, tn_dtype dtype) {
    const tn_attention_cache_shape *s = &cache->shape;
    tn_label_push(cache->cx, "attention_cache");
    for (int i = 0; i < N_PARTS; i++) {
        int64_t rows, width;
        if (!part_sizes(s, i, &rows, &width)) continue;
        cache->part[i] = tn_retain(tn_empty(cache->cx, dtype, TN_SHAPE(s->batch, s->capacity, rows, width)));
    }
    cache->seqlens = tn_retain(tn_zeros(cache->cx, TN_I64, TN_SHAPE(s->batch)));
    tn_label_pop(cache->cx);
    return cache->seqlens && cache->part[PART_BK] && cache->part[PART_BV] &&
           (!has_factors(s) || (cache->part[PART_AK] && cache->part[PART_AV]));
}

tn_attention_cache *tn_attention_cache_new(tn_context *cx, tn_dtype dtype, tn_attention_cache_shape shape) {
    if (!cx || tn_failed(cx) || !is_sensible(cx, dtype, &shape)) return NULL;
    tn_attention_cache *cache = tn_host_calloc(sizeof *cache);
    int64_t *length = tn_host_calloc((size_t)shape.batch * sizeof *length);
    if (!cache || !length) {
        tn_host_free(length);
        tn_host_free(cache);
        return tn_fail(cx, TN_ERR_HOST_MEMORY, "attention_cache", "the host has no memory left");
    }
    *cache = (tn_attention_cache){ .cx = cx, .shape = shape, .length = length };
    tn_scope *scope = tn_scope_begin(cx);
    bool made = make_parts(cache, dtype);
    tn_scope_end(scope);
    if (made) return cache;
    tn_attention_cache_free(cache);
    return NULL;
}

void tn_attention_cache_free(tn_attention_cache *cache) {
    if (!cache) return;
    for (int i = 0; i < N_PARTS; i++) tn_release(cache->part[i]);
    tn_release(cache->seqlens);
    tn_host_free(cache->length);
    tn_host_free(cache);
}

/* ---- appending ---- */

/* Do the new tokens' parts go with the cache and with each other? Says how many tokens they are. */
static bool tokens_of(const tn_attention_cache *cache, tn_tensor *const part[N_PARTS], int64_t *tokens) {
    *tokens = part[PART_BK] && part[PART_BK]->axes == 4 ? part[PART_BK]->shape[1] : 0;
    for (int i = 0; i < N_PARTS; i++) {
        static const char *const names[] = { "ak", "bk", "av", "bv" };
        int64_t rows, width;
        char got[160];
        if (!part_sizes(&cache->shape, i, &rows, &width)) {
            if (part[i])
                return tn_fail(cache->cx, TN_ERR_SHAPE, "attention_cache", "%s was given, but the cache has no factors", names[i]), false;
            continue;
        }
        if (!part[i]) {
            if (!tn_failed(cache->cx)) tn_fail(cache->cx, TN_ERR_ARGUMENT, "attention_cache", "%s is missing", names[i]);
            return false;
        }
        tn_shape wanted = TN_SHAPE(cache->shape.batch, *tokens, rows, width);
        bool same = part[i]->axes == 4 && part[i]->dtype == cache->part[i]->dtype;
        for (int axis = 0; same && axis < 4; axis++) same = part[i]->shape[axis] == wanted.size[axis];
        if (!same)
            return tn_fail(cache->cx, TN_ERR_SHAPE, "attention_cache", "%s is %s; wanted %s [%lld,%lld,%lld,%lld]", names[i],
                           tn_describe(part[i], got, sizeof got), tn_dtype_name(cache->part[i]->dtype), (long long)wanted.size[0],
                           (long long)wanted.size[1], (long long)rows, (long long)width),
                   false;
    }
    return true;
}

static bool has_room(const tn_attention_cache *cache, int64_t tokens) {
    for (int64_t i = 0; i < cache->shape.batch; i++)
        if (cache->length[i] + tokens > cache->shape.capacity)
            return tn_fail(cache->cx, TN_ERR_SHAPE, "attention_cache", "sequence %lld has %lld tokens of %lld: no room for %lld more",
                           (long long)i, (long long)cache->length[i], (long long)cache->shape.capacity, (long long)tokens),
                   false;
    return true;
}

/* Sequences of one length are written, and counted, at once. */
static bool equally_long(const tn_attention_cache *cache) {
    for (int64_t i = 1; i < cache->shape.batch; i++)
        if (cache->length[i] != cache->length[0]) return false;
    return true;
}

/* `tokens` tokens from `token` on of n sequences from `sequence` on. */
static tn_tensor *place_in(tn_tensor *t, int64_t sequence, int64_t n, int64_t token, int64_t tokens) {
    return tn_alias(t, TN_SHAPE(n, tokens, t->shape[2], t->shape[3]), t->stride, sequence * t->stride[0] + token * t->stride[1]);
}

static bool write_tokens(tn_attention_cache *cache, tn_tensor *const part[N_PARTS], int64_t sequence, int64_t n, int64_t tokens) {
    for (int i = 0; i < N_PARTS; i++) {
        if (!part[i]) continue;
        tn_tensor *to = place_in(cache->part[i], sequence, n, cache->length[sequence], tokens);
        if (!tn_assign(to, place_in(part[i], sequence, n, 0, tokens))) return false;
    }
    return true;
}

static bool write_lengths(tn_attention_cache *cache, int64_t sequence, int64_t n) {
    tn_tensor *place = tn_alias(cache->seqlens, TN_SHAPE(n), (int64_t[]){ 1 }, sequence);
    return tn_fill(place, (double)cache->length[sequence]) != NULL;
}

static bool append(tn_attention_cache *cache, tn_tensor *const part[N_PARTS], int64_t tokens) {
    int64_t batch = cache->shape.batch, step = equally_long(cache) ? batch : 1;
    for (int64_t i = 0; i < batch; i += step)
        if (!write_tokens(cache, part, i, step, tokens)) return false;
    for (int64_t i = 0; i < batch; i++) cache->length[i] += tokens;
    for (int64_t i = 0; i < batch; i += step)
        if (!write_lengths(cache, i, step)) return false;
    return true;
}

bool tn_attention_cache_append(tn_attention_cache *cache, tn_tensor *ak, tn_tensor *bk, tn_tensor *av, tn_tensor *bv) {
    tn_tensor *const part[N_PARTS] = { ak, bk, av, bv };
    int64_t tokens;
    if (!cache || !tokens_of(cache, part, &tokens) || !has_room(cache, tokens)) return false;
    if (tokens == 0) return true;
    tn_scope *scope = tn_scope_begin(cache->cx);
    bool done = append(cache, part, tokens);
    tn_scope_end(scope);
    return done;
}

bool tn_attention_cache_cut(tn_attention_cache *cache, int64_t sequence, int64_t length) {
    if (!cache) return false;
    if (sequence < 0 || sequence >= cache->shape.batch || length < 0 || length > cache->length[sequence])
        return tn_fail(cache->cx, TN_ERR_ARGUMENT, "attention_cache", "sequence %lld can't be cut to %lld tokens", (long long)sequence,
                       (long long)length),
               false;
    cache->length[sequence] = length;
    tn_scope *scope = tn_scope_begin(cache->cx);
    bool done = write_lengths(cache, sequence, 1);
    tn_scope_end(scope);
    return done;
}

/* ---- attending ---- */

/* What the op reads: of a single sequence the tokens that are there, which lie together; else all there is room for, and the lengths. */
static tn_tensor *tokens_to_read(tn_attention_cache *cache, int part) {
    return cache->shape.batch > 1 ? cache->part[part] : place_in(cache->part[part], 0, 1, 0, cache->length[0]);
}

static tn_tensor *attend(tn_attention_cache *cache, tn_tensor *aq, tn_tensor *bq, tn_tpa_attention_args args) {
    args.cu_seqlens = NULL;
    args.seqlens = cache->shape.batch > 1 ? cache->seqlens : NULL;
    tn_tensor *bk = tokens_to_read(cache, PART_BK), *bv = tokens_to_read(cache, PART_BV);
    if (!has_factors(&cache->shape))
        return tn_attention(bq, bk, bv, (tn_attention_args){ .seqlens = args.seqlens, .scale = args.scale, .causal = args.causal });
    return tn_tpa_attention(aq, bq, tokens_to_read(cache, PART_AK), bk, tokens_to_read(cache, PART_AV), bv, args);
}

tn_tensor *tn_attention_cache_attend(tn_attention_cache *cache, tn_tensor *aq, tn_tensor *bq, tn_tpa_attention_args args) {
    if (!cache || !bq) return NULL;
    if (!aq != !has_factors(&cache->shape)) {
        if (tn_failed(cache->cx)) return NULL;
        return tn_fail(cache->cx, TN_ERR_ARGUMENT, "attention_cache", "aq goes with a cache of factors, and with no other");
    }
    tn_scope *scope = tn_scope_begin(cache->cx);
    tn_no_grad_begin(cache->cx);
    tn_tensor *o = attend(cache, aq, bq, args);
    tn_no_grad_end(cache->cx);
    return tn_scope_return(scope, o);
}

int64_t tn_attention_cache_length(const tn_attention_cache *cache, int64_t sequence) {
    return cache && sequence >= 0 && sequence < cache->shape.batch ? cache->length[sequence] : 0;
}

size_t tn_attention_cache_token_bytes(const tn_attention_cache *cache) {
    return cache ? tn_attention_cache_shape_bytes(cache->part[PART_BK]->dtype, cache->shape) : 0;
}
