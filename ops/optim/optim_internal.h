#ifndef TENON_OPTIM_INTERNAL_H
#define TENON_OPTIM_INTERNAL_H

#include "../../libtensor/context_internal.h"
#include "optim.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One parameter on its way through a kernel. f32 stands for f64 where the parameter is f64. */
typedef struct tn_optim_tensor {
    tn_dtype dtype; /* of p and g: f64, f32 or bf16 */
    int64_t n;
    int64_t first_chunk; /* chunks of TN_OPTIM_CHUNK elements in the tensors before this one */
    void *p, *g;
    void *master;         /* f32; bf16 parameters only. Where p is not its rounding, p is right. */
    void *first, *second; /* AdamW: m and v; SGD: b, or NULL without momentum */

    /* AdamW: p = p * keep - rate * m / (sqrt(v) * root_scale + eps).  SGD: g + decay * p, and rate. */
    double rate, keep, root_scale, decay;
    double lr_scale; /* AdamW: for kernels that make the three rates from tn_optim_list.schedule */
} tn_optim_tensor;

/* What changes from step to step, in the device's memory, f64: the learning rate, 1 - beta1^step and 1 - beta2^step. */
enum { TN_SCHEDULE_LR, TN_SCHEDULE_BIAS1, TN_SCHEDULE_BIAS2, TN_SCHEDULE_COUNT };

/* Fixed, so that the norm's sum does not depend on the number of threads. */
#define TN_OPTIM_CHUNK ((int64_t)16384)

typedef struct tn_optim_list {
    tn_optim_tensor *tensors;
    int64_t n_tensors, n_chunks;
    const double *schedule; /* AdamW after tn_optimizer_prepare: takes the place of the tensors' rates; else NULL */
    tn_device *device;
    void *stream;
    int threads;
} tn_optim_list;

/* What a device must offer; each call covers all tensors and waits for nothing. */
typedef struct tn_optim_kernels {
    tn_status (*adamw)(const tn_optim_list *list, const tn_adamw_args *args);
    tn_status (*sgd)(const tn_optim_list *list, const tn_sgd_args *args);
    /* *norm := the norm of all g, then g *= max_norm / (norm + 1e-6) where that is below 1. `norm` lies on the device, `parts` is device
     * scratch for n_chunks doubles. */
    tn_status (*clip)(const tn_optim_list *list, double max_norm, double *norm, double *parts);
} tn_optim_kernels;

extern const tn_optim_kernels tn_optim_kernels_cpu, tn_optim_kernels_cuda;

typedef enum tn_optimizer_kind { TN_OPTIMIZER_ADAMW, TN_OPTIMIZER_SGD } tn_optimizer_kind;

/* What the optimizer keeps of one parameter; all NULL until its first gradient. */
typedef struct tn_optim_state {
    tn_tensor *first, *second, *master;
    int64_t steps;
    bool repeated; /* the tensor has an earlier place in the list, and its state is there */
} tn_optim_state;

typedef struct tn_optim_group {
    int group;
    double lr_scale, weight_decay;
} tn_optim_group;

struct tn_optimizer {
    tn_context *cx;
    tn_params *params;
    tn_optimizer_kind kind;
    const char *name; /* "adamw", "sgd" */
    tn_adamw_args adamw;
    tn_sgd_args sgd;
    double lr;
    tn_tensor *schedule; /* NULL until tn_optimizer_prepare */
    int64_t prepared;    /* the step it is prepared for */

    tn_optim_group *groups;
    int n_groups;
    tn_optim_state *states;   /* by the parameter's place in the list */
    tn_optim_tensor *tensors; /* a step's list */
    int64_t n_states;
};

/* Room for the state of every parameter in the list. */
bool tn_optimizer_grow(tn_optimizer *opt);
/* Makes what is missing of a parameter's state, zero. */
bool tn_optimizer_make_state(tn_optimizer *opt, tn_optim_state *state, const tn_tensor *p);
void tn_optimizer_drop_state(tn_optim_state *state);
/* What a parameter's state consists of, by the tensors' names in a file; NULL ends the list. The dtype is that of the state tensor. */
typedef struct tn_optim_part {
    const char *suffix;
    tn_dtype dtype;
    size_t offset; /* of the tensor in tn_optim_state */
} tn_optim_part;
int tn_optimizer_parts(const tn_optimizer *opt, tn_dtype dtype, tn_optim_part parts[3]);

static inline tn_tensor **tn_optim_part_of(tn_optim_state *state, const tn_optim_part *part) {
    return (tn_tensor **)((char *)state + part->offset);
}

#ifdef __cplusplus
}
#endif
#endif
