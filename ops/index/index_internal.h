#ifndef TENON_INDEX_INTERNAL_H
#define TENON_INDEX_INTERNAL_H

#include "index.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const tn_sample tn_embedding_samples[], tn_gather_samples[];

tn_status tn_embedding_forward_cpu(tn_op_call *call);
tn_status tn_embedding_backward_cpu(tn_op_call *call);
size_t tn_embedding_workspace(const tn_op_call *call, bool backward);

tn_status tn_gather_forward_cpu(tn_op_call *call);
tn_status tn_gather_backward_cpu(tn_op_call *call);
size_t tn_gather_workspace(const tn_op_call *call, bool backward);

tn_status tn_embedding_forward_cuda(tn_op_call *call);
tn_status tn_embedding_backward_cuda(tn_op_call *call);
size_t tn_embedding_workspace_cuda(const tn_op_call *call, bool backward);

tn_status tn_gather_forward_cuda(tn_op_call *call);
tn_status tn_gather_backward_cuda(tn_op_call *call);
size_t tn_gather_workspace_cuda(const tn_op_call *call, bool backward);

static inline int64_t tn_index_at(const tn_tensor *index, int64_t offset) {
    return index->dtype == TN_I64 ? ((const int64_t *)index->data)[offset] : ((const int32_t *)index->data)[offset];
}

#ifdef __cplusplus
}
#endif
#endif
