#include <string.h>

#include "../../libtensor/parallel.h"
#include "../../libtensor/philox.h"
#include "../lanes_cpu.h"
#include "dropout_internal.h"

#define SMALLEST_GRAIN 256 /* groups */

typedef struct tn_dropout_job {
    tn_dtype dtype;
    int64_t n;
    const void *from;
    void *to;
    uint64_t seed, block;
    uint32_t threshold;
    double scale;
} tn_dropout_job;

/* Sixteen blocks from `first` on, word by word, so that each word's lanes are a vector. */
TN_INLINE void draw(uint64_t seed, uint64_t first, uint32_t words[4][TN_DROPOUT_BLOCKS]) {
    for (int lane = 0; lane < TN_DROPOUT_BLOCKS; lane++) {
        tn_philox_block counter = { { (uint32_t)(first + (uint64_t)lane), (uint32_t)((first + (uint64_t)lane) >> 32), 0, 0 } };
        tn_philox_block out = tn_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
        for (int word = 0; word < 4; word++) words[word][lane] = out.word[word];
    }
}

TN_INLINE void drop_groups(tn_dtype dtype, const tn_dropout_job *job, int64_t begin, int64_t end) {
    float scale = (float)job->scale;
    for (int64_t group = begin; group < end; group++) {
        uint32_t words[4][TN_DROPOUT_BLOCKS];
        draw(job->seed, job->block + (uint64_t)group * TN_DROPOUT_BLOCKS, words);
        for (int word = 0; word < 4; word++) {
            int64_t at = group * TN_DROPOUT_GROUP + word * TN_DROPOUT_BLOCKS;
            if (at >= job->n) break;
            tn_vu random;
            memcpy(&random, words[word], sizeof random);
            tn_vf kept = tn_lanes_load(dtype, job->from, at, job->n) * scale;
            tn_lanes_store(dtype, job->to, at, job->n, tn_vf_select((tn_vi)(random >= job->threshold), kept, tn_vf_zero()));
        }
    }
}

TN_SIMD_CLONES static void drop_f32(void *user, int64_t begin, int64_t end) { drop_groups(TN_F32, user, begin, end); }
TN_SIMD_CLONES static void drop_bf16(void *user, int64_t begin, int64_t end) { drop_groups(TN_BF16, user, begin, end); }

static void drop_f64(void *user, int64_t begin, int64_t end) {
    const tn_dropout_job *job = user;
    for (int64_t group = begin; group < end; group++) {
        uint32_t words[4][TN_DROPOUT_BLOCKS];
        draw(job->seed, job->block + (uint64_t)group * TN_DROPOUT_BLOCKS, words);
        for (int e = 0; e < TN_DROPOUT_GROUP && group * TN_DROPOUT_GROUP + e < job->n; e++) {
            int64_t at = group * TN_DROPOUT_GROUP + e;
            bool keep = words[e / TN_DROPOUT_BLOCKS][e % TN_DROPOUT_BLOCKS] >= job->threshold;
            ((double *)job->to)[at] = keep ? ((const double *)job->from)[at] * job->scale : 0;
        }
    }
}

tn_status tn_dropout_cpu(tn_op_call *call) {
    const tn_dropout_args *args = call->args;
    const tn_tensor *from = call->in_spec ? call->dout[0] : call->in[0];
    tn_tensor *to = call->in_spec ? call->din[0] : call->out[0];
    if (args->p == 0) memcpy(to->data, from->data, tn_bytes(from));
    else if (args->p == 1) memset(to->data, 0, tn_bytes(to));
    if (args->p == 0 || args->p == 1) return TN_OK;

    const tn_tensor *place = call->in[TN_DROPOUT_PLACE];
    uint64_t counter = args->counter + (place ? (uint64_t) * (const int64_t *)place->data : 0);
    tn_dropout_job job = { .dtype = from->dtype,
                           .n = from->numel,
                           .from = from->data,
                           .to = to->data,
                           .seed = args->seed,
                           .block = counter / 2,
                           .threshold = tn_dropout_threshold(args->p),
                           .scale = 1 / (1 - args->p) };
    static const tn_range_body bodies[3] = { [TN_F64] = drop_f64, [TN_F32] = drop_f32, [TN_BF16] = drop_bf16 };
    int64_t groups = tn_chunk_count(from->numel, TN_DROPOUT_GROUP);
    tn_parallel_for(groups, tn_even_grain(groups, SMALLEST_GRAIN, 1, call->threads), bodies[from->dtype], &job, call->threads);
    return TN_OK;
}
