/* What generation keeps of the tokens gone by: their keys and values (attention), or the factors of these (tpa_attention).
 *
 *     tn_attention_cache *cache = tn_attention_cache_new(cx, TN_BF16, (tn_attention_cache_shape){
 *         .batch = 8, .capacity = 4096, .heads = 32, .key_width = 128, .value_width = 128, .key_rank = 1, .value_rank = 1 });
 *     for (...) {
 *         tn_attention_cache_append(cache, ak, bk, av, bv);                                  one token, or several
 *         o = tn_attention_cache_attend(cache, aq, bq, TN_TPA_ATTENTION(.causal = true));    against all that are there
 *     }
 *
 * With ranks of 0 the cache holds k [b,.,heads,key_width] and v themselves; .heads is then the number of their heads, which may be fewer
 * than the query's (grouped, multi-query), and ak, av and aq are NULL. Sequences of a batch may differ in length.
 *
 * Bytes a token: heads (key_width + value_width) elements, or key_rank (heads + key_width) + value_rank (heads + value_width) of them.
 * Memory for `capacity` tokens is taken once. No gradient goes through a cache. */
#ifndef TENON_ATTENTION_CACHE_H
#define TENON_ATTENTION_CACHE_H

#include "attention/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_attention_cache tn_attention_cache;

typedef struct tn_attention_cache_shape {
    int64_t batch, capacity, heads, key_width, value_width;
    int64_t key_rank, value_rank; /* both 0: keys and values, not factors */
} tn_attention_cache_shape;

/* Empty. NULL with an error on the context where a size makes no sense or memory is out. */
TN_API tn_attention_cache *tn_attention_cache_new(tn_context *cx, tn_dtype dtype, tn_attention_cache_shape shape);
/* Before tn_close. */
TN_API void tn_attention_cache_free(tn_attention_cache *cache);

/* t tokens more of every sequence: ak [b,t,heads,rk], bk [b,t,rk,key_width], av, bv likewise; without factors bk is k [b,t,heads,key_width]
 * and bv v. False with an error, and nothing appended, where they do not fit. */
TN_API bool tn_attention_cache_append(tn_attention_cache *cache, tn_tensor *ak, tn_tensor *bk, tn_tensor *av, tn_tensor *bv);
/* Cuts a sequence down to its first `length` tokens: 0 makes room for another. */
TN_API bool tn_attention_cache_cut(tn_attention_cache *cache, int64_t sequence, int64_t length);

/* The last n tokens' queries (already appended), aq [b,n,heads,rq] and bq [b,n,rq,key_width], against the tokens that are there -> o
 * [b,n,heads,value_width]. Without factors bq is q [b,n,h,key_width], and of args only scale and causal count. args.seqlens is the cache's
 * own. */
TN_API tn_tensor *tn_attention_cache_attend(tn_attention_cache *cache, tn_tensor *aq, tn_tensor *bq, tn_tpa_attention_args args);

TN_API int64_t tn_attention_cache_length(const tn_attention_cache *cache, int64_t sequence);
TN_API size_t tn_attention_cache_token_bytes(const tn_attention_cache *cache);
/* What a cache of that shape would take for each token, to compare without making one. */
TN_API size_t tn_attention_cache_shape_bytes(tn_dtype dtype, tn_attention_cache_shape shape);

#ifdef __cplusplus
}
#endif
#endif
