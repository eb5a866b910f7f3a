/* optim: AdamW, SGD with momentum, and clipping of the gradient's norm, over a list of parameters.
 *
 *     tn_adamw *opt = tn_adamw_new(params, TN_ADAMW(.lr = 3e-4));
 *     tn_adamw_group(opt, 1, 1.0, 0.0);                 group 1 (norm weights, biases): no decay
 *     ...
 *     tn_backward(loss);
 *     tn_clip_grad_norm(params, 1.0);
 *     tn_adamw_step(opt);
 *     tn_zero_grad(opt);
 *
 * A parameter without a gradient is skipped; one listed twice is updated once, by its first place. Moments are f32 (f64 for f64
 * parameters); a bf16 parameter has an f32 master besides, and is that master rounded. Where a parameter was changed by other hands
 * (loaded, filled) it is what counts, and its master starts from it anew. What an optimizer keeps is made when a parameter's first
 * gradient comes, belongs to category optimizer, and takes
 *     AdamW   8 bytes per element (16 for f64), bf16 12
 *     SGD     with momentum 4 bytes per element (8 for f64), bf16 8; without: nothing, bf16 4
 *
 * Steps and clipping never wait for the device. An optimizer is freed with its context or by tn_optimizer_free; its list of
 * parameters must live as long as it is used. */
#ifndef TENON_OPTIM_H
#define TENON_OPTIM_H

#include "../../autograd/autograd.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tn_optimizer tn_optimizer;
typedef tn_optimizer tn_adamw;
typedef tn_optimizer tn_sgd;

typedef struct tn_adamw_args {
    double lr;           /* 1e-3 */
    double beta1, beta2; /* in [0, 1): 0.9, 0.999 */
    double eps;          /* 1e-8 */
    double weight_decay; /* 0.01, of every group that tn_optimizer_group does not name */
} tn_adamw_args;
#define TN_ADAMW(...) ((tn_adamw_args){ .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, __VA_ARGS__ })

typedef struct tn_sgd_args {
    double lr;           /* 1e-3 */
    double momentum;     /* in [0, 1): 0 */
    double weight_decay; /* added to the gradient: 0 */
    bool nesterov;       /* false */
} tn_sgd_args;
#define TN_SGD(...) ((tn_sgd_args){ .lr = 1e-3, .momentum = 0, .weight_decay = 0, .nesterov = false, __VA_ARGS__ })

/* The gradient g, bias-corrected moments m and v:  p = p (1 - lr weight_decay) - lr m / (sqrt(v) + eps) */
TN_API tn_adamw *tn_adamw_new(tn_params *params, tn_adamw_args args);
/* d = g + weight_decay p;  b = momentum b + d;  p = p - lr b, or with nesterov p - lr (d + momentum b) */
TN_API tn_sgd *tn_sgd_new(tn_params *params, tn_sgd_args args);
TN_API void tn_optimizer_free(tn_optimizer *opt);

/* Parameters of `group` get the learning rate lr x lr_scale and this decay. */
TN_API bool tn_optimizer_group(tn_optimizer *opt, int group, double lr_scale, double weight_decay);
TN_API bool tn_optimizer_set_lr(tn_optimizer *opt, double lr);
TN_API double tn_optimizer_lr(const tn_optimizer *opt);

/* AdamW: says that the next step, counted from here, comes: called, or replayed from a recording (graph.h). Learning rate and step count
 * then lie in the device's memory, where a recorded tn_optimizer_step finds those of each replay. From the first call on it is wanted
 * before every step, and all parameters count the same steps. */
TN_API bool tn_optimizer_prepare(tn_optimizer *opt);
/* Updates every parameter that has a gradient. With an error standing on the context nothing changes. */
TN_API bool tn_optimizer_step(tn_optimizer *opt);
TN_API void tn_optimizer_zero_grad(const tn_optimizer *opt);

/* Moments, masters and step counts to and from a safetensors file, as NAME.m, NAME.v (SGD: NAME.momentum), NAME.master and NAME.step.
 * Together with tn_params_save and the caller's own learning rate they continue training bit for bit. Loading checks everything before
 * it changes anything. */
TN_API bool tn_optimizer_save(const tn_optimizer *opt, const char *path);
TN_API bool tn_optimizer_load(tn_optimizer *opt, const char *path);

/* Scales all gradients down so that together they have at most the Euclidean norm max_norm (INFINITY: only measures). Returns the norm
 * before, an f64 scalar in the innermost scope: tn_item reads it, and only that waits. A NaN or Inf in it reaches all gradients. */
TN_API tn_tensor *tn_clip_grad_norm(const tn_params *params, double max_norm);

/* The same under the names of the two kinds. */
static inline bool tn_adamw_group(tn_adamw *opt, int group, double lr_scale, double weight_decay) {
    return tn_optimizer_group(opt, group, lr_scale, weight_decay);
}
static inline bool tn_adamw_set_lr(tn_adamw *opt, double lr) { return tn_optimizer_set_lr(opt, lr); }
static inline bool tn_adamw_step(tn_adamw *opt) { return tn_optimizer_step(opt); }
static inline bool tn_adamw_save(const tn_adamw *opt, const char *path) { return tn_optimizer_save(opt, path); }
static inline bool tn_adamw_load(tn_adamw *opt, const char *path) { return tn_optimizer_load(opt, path); }
static inline void tn_adamw_free(tn_adamw *opt) { tn_optimizer_free(opt); }
static inline bool tn_sgd_group(tn_sgd *opt, int group, double lr_scale, double weight_decay) {
    return tn_optimizer_group(opt, group, lr_scale, weight_decay);
}
static inline bool tn_sgd_set_lr(tn_sgd *opt, double lr) { return tn_optimizer_set_lr(opt, lr); }
static inline bool tn_sgd_step(tn_sgd *opt) { return tn_optimizer_step(opt); }
static inline bool tn_sgd_save(const tn_sgd *opt, const char *path) { return tn_optimizer_save(opt, path); }
static inline bool tn_sgd_load(tn_sgd *opt, const char *path) { return tn_optimizer_load(opt, path); }
static inline void tn_sgd_free(tn_sgd *opt) { tn_optimizer_free(opt); }

#ifdef __cplusplus
}
inline void tn_zero_grad(const tn_optimizer *opt) { tn_optimizer_zero_grad(opt); }
#else
/* tn_zero_grad takes an optimizer as well as a list of parameters. */
#define tn_zero_grad(of) \
    _Generic((of), tn_optimizer * : tn_optimizer_zero_grad, const tn_optimizer * : tn_optimizer_zero_grad, default : tn_zero_grad)(of)
#endif
#endif
