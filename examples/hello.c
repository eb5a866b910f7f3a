/* hello: a network of two layers learns sin(3x) from random points. Copy it and change it. */
#include <stdio.h>

#include "tenon.h"

int main(void) {
    tn_context *cx = tn_open(&(tn_options){ .device = "auto", .seed = 1337 });

    /* Parameters live as long as the context. The list gives them names, for the optimizer and for tn_params_save. */
    tn_params *params = tn_params_new(cx);
    tn_tensor *w1 = tn_params_add(params, tn_fill_kaiming_normal(tn_parameter(cx, TN_F32, TN_SHAPE(64, 1)), 1.0), 0, "layer.1.weight");
    tn_tensor *b1 = tn_params_add(params, tn_fill_normal(tn_parameter(cx, TN_F32, TN_SHAPE(64)), 0.0, 0.5), 0, "layer.1.bias");
    tn_tensor *w2 = tn_params_add(params, tn_fill_kaiming_normal(tn_parameter(cx, TN_F32, TN_SHAPE(1, 64)), 1.0), 0, "layer.2.weight");
    tn_tensor *b2 = tn_params_add(params, tn_parameter(cx, TN_F32, TN_SHAPE(1)), 0, "layer.2.bias");
    tn_adamw *optimizer = tn_adamw_new(params, TN_ADAMW(.lr = 0.01));

    for (int step = 0; step <= 500; step++) {
        tn_scope *scope = tn_scope_begin(cx); /* temporaries made from here on end with it: no free per tensor */
        tn_tensor *x = tn_rand(cx, TN_F32, TN_SHAPE(256, 1), -1.0, 1.0);
        tn_tensor *wanted = tn_sin(tn_mul_scalar(x, 3.0));

        tn_tensor *hidden = tn_tanh(tn_linear(x, w1, b1));
        tn_tensor *error = tn_sub(tn_linear(hidden, w2, b2), wanted);
        tn_tensor *loss = tn_mean(tn_mul(error, error));

        tn_backward(loss); /* adds to the gradient of every parameter */
        tn_adamw_step(optimizer);
        tn_zero_grad(params);
        if (step % 100 == 0) printf("step %3d  loss %.6f\n", step, tn_item(loss));
        tn_scope_end(scope);
    }

    /* Nothing above was checked: the first error would have been kept, and every later call would have done nothing. */
    bool failed = tn_failed(cx);
    if (failed) fprintf(stderr, "hello: %s\n", tn_error(cx));
    tn_close(cx);
    return failed;
}
