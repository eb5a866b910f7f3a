/* The activations every op that takes an `act` attribute knows. */
#ifndef TENON_ACTIVATION_H
#define TENON_ACTIVATION_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_activation { TN_NONE, TN_RELU, TN_SIGMOID, TN_SILU, TN_GELU, TN_TANH, TN_SOFTMAX } tn_activation;

/* Names for attributes, in the enum's order; the second list leaves out softmax, for ops that work element by element. */
#define TN_ACTIVATION_NAMES \
    { "none", "relu", "sigmoid", "silu", "gelu", "tanh", "softmax", NULL }
#define TN_POINTWISE_ACTIVATION_NAMES \
    { "none", "relu", "sigmoid", "silu", "gelu", "tanh", NULL }

#ifdef __cplusplus
}
#endif
#endif
